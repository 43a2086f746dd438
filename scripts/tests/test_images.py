"""Kernels are unpacked and archives are written as their formats say."""

import gzip
import lzma
import struct
import tempfile
import unittest
from pathlib import Path

from images import initramfs, kernel, stamp
from images.apt import Unavailable

ELF = b"\x7fELF" + bytes(range(200))


def bzimage(payload: bytes, version: int = 0x20F) -> bytes:
    """The least that a bzImage needs: setup header, some code, the payload."""
    image = bytearray(0x600 + 0x40) + payload
    image[kernel.SETUP_SECTS] = 2
    image[kernel.HEADER_MAGIC:kernel.HEADER_MAGIC + 4] = b"HdrS"
    struct.pack_into("<H", image, kernel.VERSION, version)
    struct.pack_into("<II", image, kernel.PAYLOAD_OFFSET, 0x40, len(payload))
    return bytes(image)


class Kernel(unittest.TestCase):
    def test_gzip_payload_is_unpacked(self):
        self.assertEqual(kernel.elf_inside(bzimage(gzip.compress(ELF))), ELF)

    def test_xz_payload_with_its_size_appended_is_unpacked(self):
        payload = lzma.compress(ELF) + struct.pack("<I", len(ELF))
        self.assertEqual(kernel.elf_inside(bzimage(payload)), ELF)

    def test_a_file_without_setup_header_is_refused(self):
        with self.assertRaisesRegex(Unavailable, "no setup header"):
            kernel.elf_inside(bytes(4096))

    def test_an_old_boot_protocol_is_refused(self):
        with self.assertRaisesRegex(Unavailable, "boot protocol 0x207"):
            kernel.elf_inside(bzimage(gzip.compress(ELF), version=0x207))

    def test_an_unknown_compression_is_named(self):
        with self.assertRaisesRegex(Unavailable, "unknown compression deadbeef"):
            kernel.elf_inside(bzimage(bytes.fromhex("deadbeef") + bytes(16)))

    def test_a_payload_that_is_no_elf_is_refused(self):
        with self.assertRaisesRegex(Unavailable, "no ELF"):
            kernel.elf_inside(bzimage(gzip.compress(b"something else")))


class Archive(unittest.TestCase):
    def test_entries_are_aligned_and_the_trailer_is_last(self):
        archive = initramfs.Archive()
        archive.file("etc/tour", b"12345", 0o755)
        archive.link("bin/sh", "busybox")
        data = archive.finish()
        self.assertEqual(len(data) % 4, 0)
        names, at = [], 0
        while at < len(data):
            self.assertEqual(data[at:at + 6], b"070701")
            fields = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
            size, name_size = fields[6], fields[11]
            names.append(data[at + 110:at + 110 + name_size - 1].decode())
            content = -(-(at + 110 + name_size) // 4) * 4
            at = -(-(content + size) // 4) * 4
        self.assertEqual(names, ["bin/sh", "etc", "etc/tour", "TRAILER!!!"])

    def test_the_order_of_additions_does_not_matter(self):
        one, other = initramfs.Archive(), initramfs.Archive()
        for archive, names in ((one, "ab"), (other, "ba")):
            for name in names:
                archive.file(name, name.encode(), 0o644)
        self.assertEqual(one.finish(), other.finish())


class Stamp(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.output = Path(folder.name) / "output"
        self.output.write_bytes(b"made")
        self.stamp_path = Path(folder.name) / "stamp.json"
        stamp.Stamp(self.stamp_path).write({"recipe": "1"}, [self.output])

    def test_the_same_inputs_are_current(self):
        self.assertTrue(stamp.Stamp(self.stamp_path).is_current({"recipe": "1"}))

    def test_another_recipe_is_not_current(self):
        self.assertFalse(stamp.Stamp(self.stamp_path).is_current({"recipe": "2"}))

    def test_a_truncated_output_is_not_current(self):
        self.output.write_bytes(b"mad")
        self.assertFalse(stamp.Stamp(self.stamp_path).is_current({"recipe": "1"}))

    def test_a_damaged_stamp_is_not_current(self):
        self.stamp_path.write_text("{")
        self.assertFalse(stamp.Stamp(self.stamp_path).is_current({"recipe": "1"}))
