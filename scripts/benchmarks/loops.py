"""The ten loops of the bench guest (tests/guests/bench): CPU time of a run less that of a run of no rounds.

Each guest's checksum must be the native program's, or the sample does not count.
"""

import statistics
import sys
from argparse import Namespace
from pathlib import Path

from images import stamp
from images.apt import Unavailable, run

from .programs import Cardcage, Failed, Program, Qemu, cpu_time_of
from .report import Item, Row, in_turns

# Rounds that keep QEMU busy for about two thirds of a second on a 2025 server core.
LOOPS = {"crc": 6000, "list": 24000, "matmul": 900, "sieve": 1000, "fib": 3500, "state": 30000, "nbody": 40000,
         "copy": 48000, "footprint": 200000, "crypto": 80000}
# What the guest writes to isa-debug-exit, as the exit status that makes of it.
STATUS_DONE = 2 * 0x10 + 1
LIMIT_S = 60.0
AIM = (">=", 0.45)


def measure(root: Path, cardcage: Cardcage, peer: Qemu | None, args: Namespace) -> Item:
    """Runs each loop on each program, and natively."""
    item = Item("loops", "CPU time of the bench guest's loops", "s", higher_is_better=True)
    folder = root / "target/guest/bench"
    try:
        _build(root, folder)
    except Unavailable as error:
        item.failures.append(f"the bench guest cannot be built: {error}")
        return item
    programs: list[Program] = [cardcage, *([peer] if peer else [])]
    rounds = args.rounds or 3
    idle = {program.name: statistics.median(_idle(item, program, folder, rounds)) for program in programs}
    for loop, count in LOOPS.items():
        expected, native_s = _native(folder, loop, count)

        def sample(program: Program) -> float:
            spent, text = _run(program, folder, loop, count)
            if expected not in text.split("\n"):
                raise Failed(f"printed {text.strip()!r}, natively it is {expected!r}")
            return max(spent - idle[program.name], 1e-6)

        row = in_turns(item, loop, programs, rounds, sample)
        row.samples["native"] = [native_s]
    _summarize(item)
    return item


def _summarize(item: Item) -> None:
    ratios = [ratio for row in item.rows if (ratio := item.relative(row))]
    if len(ratios) == len(LOOPS):
        item.summary["geometric mean of speeds, cardcage/qemu"] = (statistics.geometric_mean(ratios), AIM)
    native = [_over_native(row) for row in item.rows]
    if None not in native:
        item.summary["geometric mean of times, cardcage/native"] = (statistics.geometric_mean(native), None)


def _over_native(row: Row) -> float | None:
    own, native = row.median("cardcage"), row.median("native")
    return own / native if own and native else None


def _idle(item: Item, program: Program, folder: Path, rounds: int) -> list[float]:
    """What start, set-up and end cost without a loop."""
    samples = []
    for _ in range(rounds):
        try:
            samples.append(_run(program, folder, "crc", 0)[0])
        except Failed as error:
            print(f"bench: loops: {program.name}: {error}", file=sys.stderr)
            item.failures.append(f"no rounds: {program.name}: {error}")
    return samples or [0.0]


def _run(program: Program, folder: Path, loop: str, count: int) -> tuple[float, str]:
    command = program.command(
        "-kernel", str(folder / "bench.elf"), "-append", f"{loop} {count}", "-serial", "stdio",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-no-reboot", memory_mib=64)
    spent, status, text = cpu_time_of(command, LIMIT_S)
    text = text.replace("\r", "")
    if status != STATUS_DONE:
        raise Failed(f"ended with status {status} instead of {STATUS_DONE}: {text.strip()[-200:]}")
    return spent, text


def _native(folder: Path, loop: str, count: int) -> tuple[str, float]:
    """The line that every guest must print, and the time of the loop alone."""
    samples = []
    for _ in range(3):
        spent, _, text = cpu_time_of([str(folder / "native"), loop, str(count)], LIMIT_S)
        nothing, _, _ = cpu_time_of([str(folder / "native"), loop, "0"], LIMIT_S)
        samples.append(max(spent - nothing, 1e-6))
    return text.strip(), statistics.median(samples)


def _build(root: Path, folder: Path) -> None:
    """Builds guest and native program, unless their sources are what they were made from."""
    source = root / "tests/guests/bench"
    inputs = {"recipe": stamp.recipe(*sorted(path for path in source.iterdir() if path.is_file()))}
    folder.mkdir(parents=True, exist_ok=True)
    mark = stamp.Stamp(folder / "stamp.json")
    if not mark.is_current(inputs):
        print("bench: building the bench guest (half a minute)", file=sys.stderr)
        run(str(source / "build"), str(folder))
        mark.write(inputs, [folder / "bench.elf", folder / "native"])
