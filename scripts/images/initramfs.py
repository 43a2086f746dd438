"""The initramfs: busybox, the modules that a virtual machine's kernel needs, and the init in initramfs/.

The archive is the same, byte for byte, whenever its inputs are: names are sorted, owners are root, times are zero
(Linux Documentation/driver-api/early-userspace/buffer-format.rst, format newc).
"""

import gzip
import lzma
import os
import re
import stat
import subprocess
from pathlib import Path

from . import stamp
from .apt import Store, Unavailable, run, unpack

# By the names that their .modinfo gives them; those that are built into a kernel are not in its modules folder.
MODULES = ("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "ext4",
           "crc32c_generic")
FOLDERS = ("bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr",
           "usr/bin", "usr/sbin")
SOURCES = Path(__file__).with_name("initramfs")


def build(guest: Path, store: Store) -> None:
    """Makes `guest`/initramfs.cpio.gz, with the modules of whichever kernels are there."""
    mark = stamp.Stamp(guest / "initramfs.json")
    before = mark.inputs()
    sources = sorted(path for path in SOURCES.rglob("*") if path.is_file())
    kernels = sorted(guest.glob("linux-*/stamp.json"))
    own = {"recipe": stamp.recipe(__file__, *sources), "kernels": [stamp.sha256(path) for path in kernels]}
    if not store.update and mark.is_current(before | own):
        return
    package, deb = store.fetch("busybox-static", before)
    inputs = vars(package) | own
    if mark.is_current(inputs):
        return
    unpacked = guest / "unpacked"
    unpack(deb, unpacked)
    busybox = next(path for path in (unpacked / "bin/busybox", unpacked / "usr/bin/busybox") if path.is_file())

    archive = Archive()
    for folder in FOLDERS:
        archive.folder(folder)
    archive.console("dev/console")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in sorted(run(str(busybox), "--list").split()):
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    for source in sources:
        archive.file(str(source.relative_to(SOURCES)), source.read_bytes(), 0o755)
    for mark_of_kernel in kernels:
        _add_modules(archive, mark_of_kernel.parent)

    target = guest / "initramfs.cpio.gz"
    temporary = target.with_suffix(".new")
    temporary.write_bytes(gzip.compress(archive.finish(), compresslevel=9, mtime=0))
    os.replace(temporary, target)
    mark.write(inputs, [target])
    subprocess.run(["rm", "-rf", str(unpacked)], check=True)
    print(f"guests: initramfs.cpio.gz: {target.stat().st_size >> 10} KiB", flush=True)


def _add_modules(archive: "Archive", folder: Path) -> None:
    release = (folder / "release").read_text().strip()
    files = {_module_name(path): path for path in (folder / "modules").rglob("*.ko*")}
    order: list[str] = []
    for name in MODULES:
        _depth_first(name, files, order)
    archive.folder(f"lib/modules/{release}")
    for name in order:
        archive.file(f"lib/modules/{release}/{name}.ko", _module_bytes(files[name]), 0o644)
    listing = "".join(f"{name}.ko\n" for name in order)
    archive.file(f"lib/modules/{release}/load-order", listing.encode(), 0o644)


def _depth_first(name: str, files: dict[str, Path], order: list[str]) -> None:
    """Puts what a module depends on before the module."""
    if name in order or name not in files:
        return
    found = re.search(rb"\0depends=([^\0]*)\0", _module_bytes(files[name]))
    for needed in (found[1].decode().split(",") if found and found[1] else []):
        _depth_first(needed.replace("-", "_"), files, order)
    order.append(name)


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _module_bytes(path: Path) -> bytes:
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    raise Unavailable(f"module {path.name} has an unknown compression; known are .ko and .ko.xz")


class Archive:
    """A cpio archive in the format newc, kept in memory."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def folder(self, name: str) -> None:
        """Adds a folder; parents come first, by the caller."""
        self._entries[name] = (stat.S_IFDIR | 0o755, b"", (0, 0))

    def file(self, name: str, content: bytes, mode: int) -> None:
        """Adds a regular file, and the folders above it."""
        for parent in reversed(Path(name).parents):
            if parent != Path("."):
                self._entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", (0, 0)))
        self._entries[name] = (stat.S_IFREG | mode, content, (0, 0))

    def link(self, name: str, target: str) -> None:
        """Adds a symbolic link."""
        self._entries[name] = (stat.S_IFLNK | 0o777, target.encode(), (0, 0))

    def console(self, name: str) -> None:
        """Adds the device node that init's standard streams are opened from, before devtmpfs is mounted."""
        self._entries[name] = (stat.S_IFCHR | 0o600, b"", (5, 1))

    def finish(self) -> bytes:
        """The archive."""
        out = bytearray()
        for number, (name, (mode, content, device)) in enumerate(sorted(self._entries.items()), start=1):
            out += _entry(name, number, mode, content, device)
        out += _entry("TRAILER!!!", 0, 0, b"", (0, 0))
        return bytes(out)


def _entry(name: str, inode: int, mode: int, content: bytes, device: tuple[int, int]) -> bytes:
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
    out = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    out += bytes(-len(out) % 4) + content
    return out + bytes(-len(out) % 4)
