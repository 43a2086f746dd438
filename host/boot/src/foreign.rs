//! Says what a file is that is not a kernel for this machine.

use crate::{BootError, Source};

/// A mark in a file, and what has it there.
struct Mark {
    offset: usize,
    bytes: &'static [u8],
    name: &'static str,
}

const fn mark(offset: usize, bytes: &'static [u8], name: &'static str) -> Mark {
    Mark { offset, bytes, name }
}

/// Kernels for other processors.
const KERNELS: [Mark; 7] = [
    mark(0x38, b"ARM\x64", "arm64 (AArch64 Image)"),
    mark(0x30, b"RISCV\0\0\0", "RISC-V"),
    mark(0x38, b"RSC\x05", "RISC-V"),
    mark(0x38, &[0xcd, 0x23, 0x82, 0x81], "LoongArch"),
    mark(0x24, &[0x18, 0x28, 0x6f, 0x01], "32-bit Arm (zImage)"),
    mark(0, &[0x27, 0x05, 0x19, 0x56], "U-Boot (uImage)"),
    mark(4, b"zimg", "another architecture (EFI zboot image)"),
];

/// What else people pass as a kernel.
const OTHERS: [Mark; 10] = [
    mark(0, &[0x1f, 0x8b], "gzip data (unpack it first)"),
    mark(0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "xz data (unpack it first)"),
    mark(0, &[0x28, 0xb5, 0x2f, 0xfd], "zstd data (unpack it first)"),
    mark(0, b"BZh", "bzip2 data (unpack it first)"),
    mark(0, b"QFI\xfb", "a qcow2 disk image (use -drive for it)"),
    mark(0, b"070701", "a cpio archive (use -initrd for it)"),
    mark(0, b"!<arch>\n", "an archive, perhaps a Debian package (unpack it first)"),
    mark(0x8001, b"CD001", "a CD image (use -cdrom for it)"),
    mark(0, b"MZ", "an EFI or Windows program without a Linux header"),
    mark(0x1fe, &[0x55, 0xaa], "a boot sector or disk image (use -drive for it)"),
];

/// The error for a file that is neither ELF nor bzImage, by its first bytes.
pub(crate) fn refuse(source: &Source, start: &[u8]) -> BootError {
    let path = source.name().to_string();
    let has = |m: &&Mark| start.get(m.offset..).is_some_and(|rest| rest.starts_with(m.bytes));
    if let Some(kernel) = KERNELS.iter().find(has) {
        return BootError::Architecture { path, found: kernel.name.into() };
    }
    let found = match OTHERS.iter().find(has) {
        Some(other) => other.name.to_string(),
        None if start.is_empty() => String::from("empty"),
        None => {
            let bytes: Vec<String> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            format!("unknown data that begins with {}", bytes.join(" "))
        }
    };
    BootError::NotAKernel { path, found }
}
