"""The dependency check finds each kind of wrong arrow."""

import importlib.machinery
import importlib.util
import unittest
from pathlib import Path

_loader = importlib.machinery.SourceFileLoader("arrows", str(Path(__file__).parent.parent / "arrows"))
arrows = importlib.util.module_from_spec(importlib.util.spec_from_loader("arrows", _loader))
_loader.exec_module(arrows)


def workspace(**crates: tuple[str, list[str]]) -> dict:
    """Metadata of a workspace with these crates: folder and dependencies by name."""
    return {
        "workspace_root": "/w",
        "packages": [
            {"name": name, "manifest_path": f"/w/{folder}/{name}/Cargo.toml",
             "dependencies": [{"name": needed} for needed in needs]}
            for name, (folder, needs) in crates.items()
        ],
    }


class Arrows(unittest.TestCase):
    def test_plugins_on_plugin_api_are_fine(self):
        found = arrows.violations(workspace(serial=("plugins", ["uart", "api"]), uart=("plugins", ["api"]),
                                            api=("plugin-api", []), machine=("host", ["api"])))
        self.assertEqual(found, [])

    def test_a_plugin_that_depends_on_the_host_is_found(self):
        found = arrows.violations(workspace(serial=("plugins", ["machine"]), machine=("host", [])))
        self.assertEqual(found, ["plugins must not depend on host: serial -> machine"])

    def test_an_indirect_dependency_is_found_with_its_path(self):
        found = arrows.violations(workspace(serial=("plugins", ["uart"]), uart=("plugins", ["machine"]),
                                            machine=("host", [])))
        self.assertIn("plugins must not depend on host: serial -> uart -> machine", found)

    def test_a_host_crate_that_depends_on_a_plugin_is_found(self):
        found = arrows.violations(workspace(machine=("host", ["serial"]), serial=("plugins", [])))
        self.assertEqual(found, ["host must not depend on plugins: machine -> serial"])

    def test_plugin_api_must_not_depend_on_the_host(self):
        found = arrows.violations(workspace(api=("plugin-api", ["memory"]), memory=("host", [])))
        self.assertEqual(found, ["plugin-api must not depend on host: api -> memory"])

    def test_abi_stable_is_for_the_abi_crate_alone(self):
        found = arrows.violations(workspace(registry=("host", ["abi_stable"]),
                                            **{"cardcage-plugin-abi": ("plugin-api", ["abi_stable"])}))
        self.assertEqual(found, ["only cardcage-plugin-abi may depend on abi_stable: registry -> abi_stable"])
