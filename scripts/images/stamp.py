"""Stamps: what an output was made from, so that nothing is made twice.

A stamp is a JSON file beside the output. It holds the inputs (package checksums, the recipe's own checksum) and the
size of each file that was made. An output is current when its stamp names the same inputs and the files still have
those sizes.
"""

import hashlib
import json
import os
from pathlib import Path


def recipe(*files: Path | str) -> str:
    """Checksum of the source files that a recipe consists of."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def sha256(file: Path) -> str:
    """SHA-256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class Stamp:
    """The stamp `path`, for outputs in the same folder."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.content = json.loads(path.read_text())
        except (OSError, ValueError):
            self.content = {}

    def inputs(self) -> dict:
        """The inputs of the last run; empty if there was none."""
        return self.content.get("inputs", {})

    def is_current(self, inputs: dict) -> bool:
        """Whether the outputs were made from exactly these inputs and are still there."""
        if not self.content or self.inputs() != inputs:
            return False
        sizes = self.content["outputs"]
        return all((self.path.parent / name).is_file() and (self.path.parent / name).stat().st_size == size
                   for name, size in sizes.items())

    def write(self, inputs: dict, outputs: list[Path]) -> None:
        """Records that `outputs` were made from `inputs`. Written last and whole, so that a broken run leaves none."""
        folder = self.path.parent
        sizes = {str(output.relative_to(folder)): output.stat().st_size for output in outputs}
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({"inputs": inputs, "outputs": sizes}, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, self.path)
        self.content = {"inputs": inputs, "outputs": sizes}
