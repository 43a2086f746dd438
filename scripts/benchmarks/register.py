"""One register access of a device in a plugin, through the bus and the plugin ABI, without a guest.

The figure comes from the example program `plugin_access`, which prints a line that contains "N ns" for each kind of
access. QEMU has no counterpart: its devices are linked into it.
"""

import os
import re
import subprocess
from argparse import Namespace
from pathlib import Path

from .programs import Cardcage, Qemu
from .report import Item, Row

EXAMPLE = "plugin_access"
AIM_NS = ("<=", 20.0)


def measure(root: Path, _cardcage: Cardcage, _peer: Qemu | None, args: Namespace) -> Item:
    """Runs the example if it was built."""
    item = Item("register", "Register access of a device in a plugin", "ns")
    target = Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    program = target / "release/examples" / EXAMPLE
    if not program.is_file():
        item.notes.append(f"not measured: {program} is not built (cargo build --release --example {EXAMPLE})")
        return item
    samples: dict[str, list[float]] = {}
    for _ in range(args.rounds or 5):
        done = subprocess.run([program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        found = re.findall(r"^(.*?):? *\b([\d.]+) ns", done.stdout, re.M)
        if done.returncode != 0 or not found:
            item.failures.append(f"{EXAMPLE} ended with status {done.returncode} and printed {done.stdout.strip()!r}")
            return item
        for label, value in found:
            samples.setdefault(label or "access", []).append(float(value))
    for label, values in samples.items():
        item.rows.append(Row(label, {"cardcage": values}))
    worst = max(row.median("cardcage") for row in item.rows)
    item.summary["slowest kind of access, ns"] = (worst, AIM_NS)
    return item
