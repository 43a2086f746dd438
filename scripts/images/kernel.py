"""Debian's cloud kernels: the bzImage, the ELF image inside it, and the modules.

The position of the compressed ELF image stands in the setup header of the bzImage (Linux
Documentation/arch/x86/boot.rst, fields setup_sects, payload_offset and payload_length).
"""

import lzma
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

from . import stamp
from .apt import Store, Unavailable, unpack

SETUP_SECTS = 0x1F1
HEADER_MAGIC = 0x202
VERSION = 0x206
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C


def fetch(guest: Path, store: Store, series: str) -> None:
    """Makes `guest`/linux-`series`/ from Debian's newest cloud kernel of that series."""
    folder = guest / f"linux-{series}"
    mark = stamp.Stamp(folder / "stamp.json")
    recipe = stamp.recipe(__file__)
    before = mark.inputs()
    if not store.update and mark.is_current(before | {"recipe": recipe}):
        return
    pattern = f"linux-image-{series.replace('.', '[.]')}[.].*-cloud-amd64(-unsigned)?"
    package, deb = store.fetch(pattern, before)
    inputs = vars(package) | {"recipe": recipe}
    if mark.is_current(inputs):
        return
    unpacked = guest / "unpacked"
    unpack(deb, unpacked)
    _lay_out(unpacked, folder)
    shutil.rmtree(unpacked)
    mark.write(inputs, [folder / "bzImage", folder / "vmlinux", folder / "release"])
    print(f"guests: linux-{series}: {package.name} {package.version}", flush=True)


def _lay_out(unpacked: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    images = list(unpacked.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise Unavailable(f"expected one kernel image in the package, found {len(images)}")
    release = images[0].name.removeprefix("vmlinuz-")
    bzimage = images[0].read_bytes()
    (folder / "bzImage").write_bytes(bzimage)
    (folder / "vmlinux").write_bytes(elf_inside(bzimage))
    (folder / "release").write_text(release + "\n")
    modules = [path for path in (unpacked / "lib/modules" / release, unpacked / "usr/lib/modules" / release)
               if path.is_dir()]
    if modules:
        shutil.move(modules[0], folder / "modules")


def elf_inside(bzimage: bytes) -> bytes:
    """The ELF image that a bzImage unpacks and enters."""
    if len(bzimage) < 0x250 or bzimage[HEADER_MAGIC:HEADER_MAGIC + 4] != b"HdrS":
        raise Unavailable("the kernel image has no setup header")
    (version,) = struct.unpack_from("<H", bzimage, VERSION)
    if version < 0x208:
        raise Unavailable(f"boot protocol {version:#x} does not tell where the payload is; 0x208 is the first to")
    setup_sectors = bzimage[SETUP_SECTS] or 4
    offset, length = struct.unpack_from("<II", bzimage, PAYLOAD_OFFSET)
    start = (setup_sectors + 1) * 512 + offset
    elf = _decompress(bzimage[start:start + length])
    if elf[:4] != b"\x7fELF":
        raise Unavailable("the payload of the kernel image is no ELF file")
    return elf


def _decompress(payload: bytes) -> bytes:
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload)
    if payload.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    # The kernel's build appends the unpacked size in four bytes; these two programs would take them for data.
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return _filter(payload[:-4], "zstd", "-dc")
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return _filter(payload[:-4], "lz4", "-dc")
    raise Unavailable(f"unknown compression {payload[:4].hex()} of the kernel; known are gzip, xz, zstd and lz4")


def _filter(data: bytes, *command: str) -> bytes:
    try:
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout
    except FileNotFoundError:
        raise Unavailable(f"the program {command[0]} is missing; scripts/packages installs it") from None
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"{command[0]} cannot unpack the kernel (status {error.returncode})") from None
