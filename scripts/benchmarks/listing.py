"""Time to describe every device that a program has, with all properties, over QMP.

cardcage answers one `query-available-devices`. QEMU has no such command: a client asks `qom-list-types` for the
names and `device-list-properties` for each, and the figure is the sum. The second row divides by the devices.
"""

import json
import time
from argparse import Namespace
from pathlib import Path

from .programs import Cardcage, Failed, Process, Program, Qemu
from .report import Item, Row, in_turns

LIMIT_S = 30.0
AIM_MS = ("<=", 5.0)


def measure(_root: Path, cardcage: Cardcage, peer: Qemu | None, args: Namespace) -> Item:
    """Asks each program for its devices."""
    item = Item("listing", "All devices and their properties over QMP (wall-clock)", "ms")
    programs: list[Program] = [cardcage, *([peer] if peer else [])]
    per_device: dict[str, list[float]] = {program.name: [] for program in programs}
    counts: dict[str, int] = {}

    def sample(program: Program) -> float:
        with Process(program.command("-S", "-qmp", "stdio")) as process:
            process.line(LIMIT_S)
            _ask(process, "qmp_capabilities")
            start = time.monotonic()
            devices = (_list_of_cardcage if isinstance(program, Cardcage) else _list_of_qemu)(process)
            spent_ms = (time.monotonic() - start) * 1e3
        if not devices:
            raise Failed("listed no device")
        counts[program.name] = devices
        per_device[program.name].append(spent_ms / devices)
        return spent_ms

    row = in_turns(item, "all devices", programs, args.rounds or 10, sample)
    item.rows.append(Row("per device", per_device))
    item.notes += [f"{name}: {count} devices" for name, count in counts.items()]
    if (median := row.median("cardcage")) is not None:
        item.summary["cardcage, all devices, ms"] = (median, AIM_MS)
    return item


def _list_of_cardcage(process: Process) -> int:
    return len(_ask(process, "query-available-devices"))


def _list_of_qemu(process: Process) -> int:
    types = _ask(process, "qom-list-types", {"implements": "device", "abstract": False})
    for kind in types:
        _ask(process, "device-list-properties", {"typename": kind["name"]})
    return len(types)


def _ask(process: Process, command: str, arguments: dict | None = None) -> list:
    process.send(json.dumps({"execute": command} | ({"arguments": arguments} if arguments else {})) + "\n")
    while True:
        answer = json.loads(process.line(LIMIT_S))
        if "error" in answer:
            raise Failed(f"{command}: {answer['error']['desc']}")
        if "return" in answer:
            return answer["return"]
