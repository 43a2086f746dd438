"""Time from start to the QMP greeting: wall-clock, from before the process is created to the whole line."""

import time
from argparse import Namespace
from pathlib import Path

from .programs import Cardcage, Process, Program, Qemu
from .report import Item, in_turns

LIMIT_S = 10.0
AIM_MS = ("<=", 15.0)


def measure(_root: Path, cardcage: Cardcage, peer: Qemu | None, args: Namespace) -> Item:
    """Starts a stopped machine with a monitor on standard input and output."""
    item = Item("greeting", "Start to the QMP greeting (wall-clock)", "ms")

    def sample(program: Program) -> float:
        with Process(program.command("-S", "-qmp", "stdio")) as process:
            process.line(LIMIT_S)
            return (time.monotonic() - process.started) * 1e3

    row = in_turns(item, "greeting", [cardcage, *([peer] if peer else [])], args.rounds or 20, sample)
    if (median := row.median("cardcage")) is not None:
        item.summary["cardcage, ms"] = (median, AIM_MS)
    return item
