"""Resident memory beyond the guest's RAM, with Linux booted to an idle shell.

From /proc/PID/smaps: the sum over all mappings but the guest's RAM. The RAM is told by the name of its memfd; where
a program keeps it in anonymous memory, by its size. RSS counts pages shared with other processes (libraries) in full,
PSS by its share; the third row is what of it belongs to no file. The kernel is a bzImage: QEMU keeps an ELF kernel
mapped, which would count 50 MiB of page cache against it.
"""

import re
import time
from argparse import Namespace
from pathlib import Path

from .programs import Cardcage, Failed, Process, Program, Qemu
from .report import Item, Row, in_turns

MARKER = b"cardcage: guest ready"
LIMIT_S = 60.0
SETTLE_S = 1.0
MEMORY_MIB = 256
RAM_NAMES = re.compile(r"memfd:(cardcage-ram|memory-backend-memfd)")
AIM_MIB = ("<=", 30.0)


def measure(root: Path, cardcage: Cardcage, peer: Qemu | None, args: Namespace) -> Item:
    """Boots Linux and reads what is resident."""
    item = Item("resident", f"Resident memory beyond {MEMORY_MIB} MiB of guest RAM, Linux {args.kernel} idle", "MiB")
    guest = root / "target/guest"
    options = ["-kernel", str(guest / f"linux-{args.kernel}/bzImage"), "-initrd", str(guest / "initramfs.cpio.gz"),
               "-append", "console=ttyS0", "-no-reboot", "-serial", "stdio"]
    programs: list[Program] = [cardcage, *([peer] if peer else [])]
    pss: dict[str, list[float]] = {program.name: [] for program in programs}
    anonymous: dict[str, list[float]] = {program.name: [] for program in programs}

    def sample(program: Program) -> float:
        with Process(program.command(*options, memory_mib=MEMORY_MIB)) as process:
            process.wait_for(MARKER, LIMIT_S)
            time.sleep(SETTLE_S)
            beyond = beyond_ram(Path(f"/proc/{process.pid}/smaps").read_text(), MEMORY_MIB)
        pss[program.name].append(beyond["Pss"])
        anonymous[program.name].append(beyond["Anonymous"])
        return beyond["Rss"]

    row = in_turns(item, "RSS", programs, args.rounds or 3, sample)
    item.rows += [Row("PSS", pss), Row("anonymous", anonymous)]
    if (median := row.median("cardcage")) is not None:
        item.summary["cardcage, RSS in MiB"] = (median, AIM_MIB)
    return item


def beyond_ram(smaps: str, memory_mib: int) -> dict[str, float]:
    """Rss, Pss and Anonymous in MiB of every mapping but the guest's RAM, from the text of an smaps file."""
    mappings = [_fields(text) for text in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps) if text]
    ram = [mapping for mapping in mappings if RAM_NAMES.search(mapping["name"])]
    if not ram:
        ram = [mapping for mapping in mappings if not mapping["name"] and mapping["Size"] == memory_mib * 1024]
    if sum(mapping["Size"] for mapping in ram) < memory_mib * 1024 * 0.9:
        raise Failed(f"no mapping of the guest's {memory_mib} MiB found in smaps")
    return {key: sum(mapping[key] for mapping in mappings if mapping not in ram) / 1024
            for key in ("Rss", "Pss", "Anonymous")}


def _fields(text: str) -> dict:
    """One mapping: its address and name, and the figures in KiB."""
    head, _, rest = text.partition("\n")
    columns = head.split(None, 5)
    figures = {key: int(value) for key, value in re.findall(r"^(Size|Rss|Pss|Anonymous): +(\d+) kB$", rest, re.M)}
    return {"range": columns[0], "name": columns[5] if len(columns) > 5 else "", **figures}
