"""Figures: samples taken in turns, their medians and ratios, tables and JSON."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from .programs import Failed, Program


@dataclass
class Row:
    """One line of a table: samples of each program, in the item's unit."""

    label: str
    samples: dict[str, list[float]]

    def median(self, program: str) -> float | None:
        """The median of one program's samples."""
        values = self.samples.get(program)
        return statistics.median(values) if values else None

    def ratio(self) -> float | None:
        """cardcage's median over QEMU's."""
        own, peer = self.median("cardcage"), self.median("qemu")
        return own / peer if own is not None and peer else None


@dataclass
class Item:
    """One table. `higher_is_better` turns ratios around, into speeds relative to QEMU."""

    name: str
    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    higher_is_better: bool = False
    # One figure for the whole item, by name: its value, and the aim as ("<=" or ">=", limit).
    summary: dict[str, tuple[float, tuple[str, float] | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def relative(self, row: Row) -> float | None:
        """The ratio in the item's own direction."""
        ratio = row.ratio()
        return 1 / ratio if ratio and self.higher_is_better else ratio

    def aim_missed(self) -> bool:
        """Whether a summary figure misses its aim."""
        return any(aim and not meets(value, aim) for value, aim in self.summary.values())

    def as_json(self) -> dict:
        """All samples, medians, ratios and aims."""
        return {
            "unit": self.unit,
            "rows": [{"label": row.label, "samples": row.samples,
                      "median": {name: row.median(name) for name in row.samples}, "ratio": self.relative(row)}
                     for row in self.rows],
            "summary": {name: {"value": value, "aim": aim and f"{aim[0]} {aim[1]}", "met": aim and meets(value, aim)}
                        for name, (value, aim) in self.summary.items()},
            "notes": self.notes,
            "failures": self.failures,
        }


def meets(value: float, aim: tuple[str, float]) -> bool:
    """Whether a value is on the right side of its aim."""
    return value <= aim[1] if aim[0] == "<=" else value >= aim[1]


def in_turns(item: Item, label: str, programs: list[Program], rounds: int,
             sample: Callable[[Program], float]) -> Row:
    """Takes `rounds` samples of each program, the order reversed every other round.

    A run that fails is noted as a failure and has no sample.
    """
    row = Row(label, {program.name: [] for program in programs})
    for turn in range(rounds):
        for program in programs if turn % 2 == 0 else reversed(programs):
            try:
                row.samples[program.name].append(sample(program))
            except Failed as error:
                text = f"{label}: {program.name}: {error}"
                print(f"bench: {text}", file=sys.stderr)
                item.failures.append(text)
    item.rows.append(row)
    return row


def print_item(item: Item) -> None:
    """The item's table on standard output."""
    print(f"\n{item.title}")
    names = list(dict.fromkeys(name for row in item.rows for name in row.samples))
    width = max([len(row.label) for row in item.rows] + [12])
    relative = "speed/qemu" if item.higher_is_better else "ratio"
    heads = [f"{name} [{item.unit}]" for name in names]
    if heads:
        print("  " + " " * width + "".join(f"{head:>18}{'min..max':>18}" for head in heads)
              + (f"{relative:>12}" if len(names) > 1 else ""))
    for row in item.rows:
        line = f"  {row.label:<{width}}"
        for name in names:
            values = row.samples.get(name)
            if values:
                line += f"{number(statistics.median(values)):>18}{number(min(values)) + '..' + number(max(values)):>18}"
            else:
                line += f"{'-':>18}{'-':>18}"
        if len(names) > 1:
            ratio = item.relative(row)
            line += f"{'-' if ratio is None else format(ratio, '.2f'):>12}"
        print(line)
    for name, (value, aim) in item.summary.items():
        verdict = f"  (aim {aim[0]} {aim[1]:g}: {'met' if meets(value, aim) else 'missed'})" if aim else ""
        print(f"  {name}: {number(value)}{verdict}")
    for note in item.notes:
        print(f"  {note}")
    for failure in item.failures:
        print(f"  FAILED {failure}")


def number(value: float) -> str:
    """Three significant digits."""
    magnitude = abs(value)
    return f"{value:.0f}" if magnitude >= 100 else f"{value:.1f}" if magnitude >= 10 else f"{value:.3g}"
