"""Lists in the documents hold what the workspace has."""

import re
import tomllib
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def table_cells(document: str, column: int) -> str:
    """One column of every table of a document, as one text."""
    lines = (ROOT / document).read_text().splitlines()
    return "\n".join(line.split("|")[column] for line in lines if line.startswith("|"))


class Documents(unittest.TestCase):
    def test_each_third_party_crate_has_its_reason(self):
        dependencies = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["dependencies"]
        third_party = {name for name in dependencies if not name.startswith("cardcage-")}
        explained = set(re.findall(r"[\w-]+", table_cells("CONTRIBUTING.md", 1)))
        self.assertEqual(sorted(third_party - explained), [], "crates without a line in CONTRIBUTING.md")

    def test_each_crate_of_the_host_and_the_api_is_on_the_code_map(self):
        manifests = [*ROOT.glob("host/*/Cargo.toml"), *ROOT.glob("plugin-api/**/Cargo.toml")]
        names = {tomllib.loads(path.read_text())["package"]["name"] for path in manifests}
        mapped = set(re.findall(r"[\w-]+", table_cells("ARCHITECTURE.md", 2)))
        self.assertEqual(sorted(names - mapped), [], "crates without a line in ARCHITECTURE.md")
