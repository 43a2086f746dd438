"""CPU time of a Linux boot: user and system time of all threads, from start to the first line of user space.

CPU time rather than wall-clock time, because the machine may be shared; in turns, because its speed may drift.
"""

from argparse import Namespace
from pathlib import Path

from .programs import Cardcage, Process, Program, Qemu
from .report import Item, in_turns

MARKER = b"cardcage: user space is up"
LIMIT_S = 60.0
AIM = ("<=", 1.1)


def measure(root: Path, cardcage: Cardcage, peer: Qemu | None, args: Namespace) -> Item:
    """Boots the kernel as ELF and as bzImage."""
    item = Item("boot", f"CPU time to the first user-space print, Linux {args.kernel}", "s")
    guest = root / "target/guest"
    programs: list[Program] = [cardcage, *([peer] if peer else [])]
    for image in ("vmlinux", "bzImage"):
        options = ["-kernel", str(guest / f"linux-{args.kernel}" / image),
                   "-initrd", str(guest / "initramfs.cpio.gz"),
                   "-append", "console=ttyS0", "-no-reboot", "-serial", "stdio"]

        def sample(program: Program) -> float:
            with Process(program.command(*options)) as process:
                process.wait_for(MARKER, LIMIT_S)
                return process.cpu_time()

        row = in_turns(item, image, programs, args.rounds or 5, sample)
        if (ratio := row.ratio()) is not None:
            item.summary[f"{image}, cardcage/qemu"] = (ratio, AIM)
    return item
