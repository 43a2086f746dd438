//! Synthetic kernels of every form, damaged ones, and Debian's own if they are there.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn ram(mib: u64) -> GuestRam {
    GuestRam::new(&[(0, mib * MIB)]).unwrap()
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((name.len() as u32).to_le_bytes());
    note.extend((desc.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    for part in [name, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn pvh_notes(entry: u32) -> Vec<u8> {
    [note(b"GNU\0", 3, &[1; 20]), note(b"Xen\0", 6, b"linux\0"), note(b"Xen\0", 18, &u64::from(entry).to_le_bytes())]
        .concat()
}

/// An ELF file with one segment of `code` and 0x1000 zeroes, and notes.
fn elf(physical: u64, code: &[u8], notes: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend((physical + 0x10).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    file.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let code_at = 64 + 2 * 56;
    let notes_at = code_at + code.len() as u64;
    let headers = [
        (1u32, code_at, physical, code.len() as u64, code.len() as u64 + 0x1000),
        (4, notes_at, 0, notes.len() as u64, notes.len() as u64),
    ];
    for (kind, offset, physical, file_size, memory_size) in headers {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for field in [offset, physical | 0xffff_ffff_8000_0000, physical, file_size, memory_size, 4] {
            file.extend(field.to_le_bytes());
        }
    }
    file.extend(code);
    file.extend(notes);
    file
}

/// A bzImage with 4 setup sectors, 0x400 bytes of protected-mode code, and a payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 5 * 512 + 0x400];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x1f4, &(((0x400 + payload.len()).div_ceil(16)) as u32).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21, 0x3f, 0]);
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &0x400u32.to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x80_0000u32.to_le_bytes());
    put(5 * 512 + 0x200, b"entry64");
    file.extend(payload);
    file
}

fn zstd_payload(bytes: &[u8]) -> Vec<u8> {
    let mut payload = zstd::encode_all(bytes, 1).unwrap();
    payload.extend((bytes.len() as u32).to_le_bytes());
    payload
}

fn boot(kernel: Vec<u8>, ram: &GuestRam) -> Result<BootInfo, BootError> {
    boot_with(kernel, None, "console=ttyS0", ram, &BootOptions::default())
}

fn boot_with(
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
    cmdline: &str,
    ram: &GuestRam,
    options: &BootOptions,
) -> Result<BootInfo, BootError> {
    let initrd = initrd.map(|bytes| Source::bytes("rd", bytes));
    load_sources(&Source::bytes("k", kernel), initrd.as_ref(), cmdline, ram, options)
}

fn refusal(kernel: Vec<u8>) -> String {
    boot(kernel, &ram(32)).unwrap_err().to_string()
}

fn bytes_at<const N: usize>(ram: &GuestRam, addr: u64) -> [u8; N] {
    let mut bytes = [0; N];
    ram.read(addr, &mut bytes).unwrap();
    bytes
}

fn u64_at(ram: &GuestRam, addr: u64) -> u64 {
    u64::from_le_bytes(bytes_at(ram, addr))
}

fn u32_at(ram: &GuestRam, addr: u64) -> u32 {
    u32::from_le_bytes(bytes_at(ram, addr))
}

#[test]
fn a_pvh_kernel_finds_its_start_info() {
    let ram = ram(32);
    ram.fill(0x20_0000, 0x2000, 0xaa).unwrap();
    let options = BootOptions { rsdp: Some(0xe_0000), ..BootOptions::default() };
    let kernel = elf(0x20_0000, b"code", &pvh_notes(0x20_0002));
    let info = boot_with(kernel, Some(b"ramdisk".to_vec()), "root=x", &ram, &options).unwrap();
    assert_eq!((info.protocol, info.kernel.clone()), (Protocol::Pvh, 0x20_0000..0x20_1004));
    assert_eq!(bytes_at(&ram, 0x20_0000), *b"code\0\0\0\0");
    assert_eq!(bytes_at(&ram, 0x20_1003), [0, 0xaa]);
    let state = info.state;
    assert_eq!((state.rip, state.cr0, state.cr4, state.efer), (0x20_0002, 0x11, 0, 0));
    let start = state.gpr[3];
    assert_eq!((u32_at(&ram, start), u32_at(&ram, start + 4)), (0x336e_c578, 1));
    assert_eq!(u64_at(&ram, start + 32), 0xe_0000);
    let cmdline = u64_at(&ram, start + 24);
    assert_eq!(bytes_at(&ram, cmdline), *b"root=x\0");
    assert_eq!(u32_at(&ram, start + 12), 1);
    let module = u64_at(&ram, start + 16);
    let initrd = info.initrd.unwrap();
    assert_eq!((u64_at(&ram, module), u64_at(&ram, module + 8)), (initrd.start, 7));
    assert_eq!((initrd.start, bytes_at(&ram, initrd.start)), (32 * MIB - 0x1000, *b"ramdisk"));
    let (map, entries) = (u64_at(&ram, start + 40), u32_at(&ram, start + 48));
    let last = map + 24 * u64::from(entries - 1);
    assert_eq!((u64_at(&ram, last), u64_at(&ram, last + 8), u64_at(&ram, last + 16)), (MIB, 31 * MIB, 1));
}

#[test]
fn a_bzimage_is_unpacked_and_entered_by_pvh() {
    let ram = ram(32);
    let inner = elf(0x100_0000, b"inner kernel", &pvh_notes(0x100_0004));
    let info = boot(bzimage(&zstd_payload(&inner)), &ram).unwrap();
    assert_eq!((info.protocol, info.state.rip), (Protocol::Pvh, 0x100_0004));
    assert_eq!(info.summary, "bzImage 2.15, zstd, PVH entry at 0x1000004");
    assert_eq!(bytes_at(&ram, 0x100_0000), *b"inner kernel");
}

#[test]
fn what_cannot_be_unpacked_here_is_left_to_the_guest() {
    let no_note = zstd_payload(&elf(0x100_0000, b"x", &[]));
    let no_elf = zstd_payload(b"flat binary");
    for payload in [no_note, no_elf, b"\x89LZO unknown".to_vec()] {
        let ram = ram(64);
        let info = boot(bzimage(&payload), &ram).unwrap();
        assert_eq!((info.protocol, info.state.rip), (Protocol::Linux64, 0x100_0200));
        assert_eq!(bytes_at(&ram, 0x100_0200), *b"entry64");
    }
    let ram = ram(64);
    let inner = zstd_payload(&elf(0x100_0000, b"x", &pvh_notes(0x100_0000)));
    let options = BootOptions { unpack: Unpack::InGuest, ..BootOptions::default() };
    let info = boot_with(bzimage(&inner), None, "", &ram, &options).unwrap();
    assert_eq!(info.protocol, Protocol::Linux64);
}

#[test]
fn the_zero_page_and_the_page_tables_are_as_the_protocol_says() {
    let ram = ram(64);
    let options = BootOptions { rsdp: Some(0xe_1234), ..BootOptions::default() };
    let info = boot_with(bzimage(b"?"), Some(vec![7; 5000]), "quiet", &ram, &options).unwrap();
    let state = info.state;
    let page = state.gpr[6];
    assert_eq!(bytes_at(&ram, page + 0x202), *b"HdrS\x0f\x02");
    assert_eq!(bytes_at(&ram, page + 0x210), [0xff, 1]);
    assert_eq!(u64_at(&ram, page + 0x70), 0xe_1234);
    let cmdline = u32_at(&ram, page + 0x228);
    assert_eq!(bytes_at(&ram, cmdline.into()), *b"quiet\0");
    let initrd = info.initrd.unwrap();
    assert_eq!((u64::from(u32_at(&ram, page + 0x218)), u32_at(&ram, page + 0x21c)), (initrd.start, 5000));
    let entries = u64::from(bytes_at::<1>(&ram, page + 0x1e8)[0]);
    let last = page + 0x2d0 + 20 * (entries - 1);
    assert_eq!((u64_at(&ram, last), u64_at(&ram, last + 8), u32_at(&ram, last + 16)), (MIB, 63 * MIB, 1));
    assert_eq!((state.cr0 & 0x8000_0001, state.cr4, state.efer), (0x8000_0001, 0x20, 0x500));
    for addr in [0, 0x100_0200, 0xfee0_0000, 0xffff_ffff] {
        let pdpt = u64_at(&ram, state.cr3) & !0xfff;
        let directory = u64_at(&ram, pdpt + 8 * (addr >> 30)) & !0xfff;
        let entry = u64_at(&ram, directory + 8 * (addr >> 21 & 511));
        assert_eq!((entry & 0x83, entry & !0x1f_ffff), (0x83, addr & !0x1f_ffff), "{addr:#x}");
    }
    let code = u64_at(&ram, state.gdtr.base + u64::from(state.segments[1].selector));
    assert_eq!((code >> 53 & 1, code >> 47 & 1), (1, 1));
}

#[test]
fn a_linux_elf_without_a_note_is_entered_in_long_mode() {
    let ram = ram(32);
    let info = boot(elf(0x100_0000, b"....Linux version 6.1", &[]), &ram).unwrap();
    assert_eq!((info.protocol, info.state.rip), (Protocol::Linux64, 0x100_0010));
    assert_eq!(bytes_at(&ram, info.state.gpr[6] + 0x202), *b"HdrS");
}

#[test]
fn a_relocatable_bzimage_goes_where_it_fits() {
    let ram = GuestRam::new(&[(0, 16 * MIB)]).unwrap();
    let info = boot(bzimage(b"?"), &ram).unwrap();
    assert_eq!(info.kernel, 2 * MIB..10 * MIB);
    let text = boot(bzimage(b"?"), &self::ram(8)).unwrap_err().to_string();
    assert_eq!(
        text,
        "'k' needs guest memory at 0x1000000..0x1800000, which is not free RAM (8 MiB in all); use -m 24M or more"
    );
}

#[test]
fn files_that_are_no_kernel_are_named() {
    let starts =
        |text: String, what: &str| assert!(text.starts_with(&format!("'k' is no kernel: it is {what}")), "{text}");
    starts(refusal(vec![]), "empty");
    starts(refusal(b"hello world".to_vec()), "unknown data that begins with 68 65 6c 6c");
    starts(refusal(b"QFI\xfb....".to_vec()), "a qcow2 disk image (use -drive for it)");
    starts(refusal(vec![0x1f, 0x8b, 8, 0]), "gzip data");
    let mut object = elf(0x10_0000, b"x", &[]);
    object[16] = 1;
    starts(refusal(object), "an ELF object file");
}

#[test]
fn kernels_of_other_architectures_are_named() {
    let is_for = |kernel, what: &str| {
        let text = refusal(kernel);
        assert!(text.starts_with(&format!("'k' is a kernel for {what}")), "{text}");
        assert!(text.ends_with("use a kernel built for x86-64"), "{text}");
    };
    let mut arm64 = vec![0; 64];
    arm64[..2].copy_from_slice(b"MZ");
    arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
    is_for(arm64, "arm64 (AArch64 Image)");
    let machine = |class, data, machine: [u8; 2]| {
        let mut file = elf(0x10_0000, b"x", &[]);
        (file[4], file[5], file[18], file[19]) = (class, data, machine[0], machine[1]);
        file
    };
    is_for(machine(2, 1, [183, 0]), "arm64 (AArch64), ELF machine 183");
    is_for(machine(1, 1, [3, 0]), "32-bit x86 (i386), ELF machine 3");
    is_for(machine(2, 2, [0, 22]), "s390, ELF machine 22");
    let mut old = bzimage(b"?");
    old[0x236] = 0;
    is_for(old, "32-bit x86 (i386)");
}

#[test]
fn old_protocols_and_missing_entries_are_named() {
    let mut old = bzimage(b"?");
    old[0x206] = 6;
    assert_eq!(refusal(old), "'k' speaks boot protocol 2.6, 2.12 or newer is needed (Linux 3.8); use a newer kernel");
    assert!(refusal(elf(0x10_0000, b"x", &[])).contains("XEN_ELFNOTE_PHYS32_ENTRY"));
    assert!(refusal(elf(0x10_0000, b"x", &pvh_notes(5))).contains("its PVH entry 0x5 is outside of its segments"));
}

#[test]
fn truncated_kernels_are_named() {
    let inner = elf(0x100_0000, &[0x90; 5000], &pvh_notes(0x100_0000));
    let whole = bzimage(&zstd_payload(&inner));
    for len in [0x210, 0x400, 5 * 512 + 0x100, whole.len() - 17] {
        let text = refusal(whole[..len].to_vec());
        assert!(text.starts_with("'k' is truncated: "), "{len}: {text}");
    }
    for len in [20, 100, 300, 5000] {
        let text = refusal(inner[..len].to_vec());
        assert!(text.starts_with("'k' is truncated: "), "{len}: {text}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let kernel = || elf(0x20_0000, b"x", &pvh_notes(0x20_0000));
    let long = "x".repeat(2048);
    let text = |r: Result<BootInfo, BootError>| r.unwrap_err().to_string();
    let options = BootOptions::default();
    assert_eq!(
        text(boot_with(bzimage(b"?"), None, &long, &ram(64), &options)),
        "the kernel command line has 2048 bytes, 'k' takes at most 2047; shorten -append"
    );
    assert!(boot_with(bzimage(b"?"), None, &long[1..], &ram(64), &options).is_ok());
    assert!(text(boot_with(kernel(), None, "a\0b", &ram(8), &options)).contains("zero byte at position 1"));
    assert_eq!(
        text(boot_with(kernel(), Some(vec![0; 7 << 20]), "", &ram(8), &options)),
        "initial ramdisk 'rd' of 7340032 bytes does not fit into 8 MiB of guest memory beside the kernel and below \
         0x100000000; use a larger -m or a smaller ramdisk"
    );
    let low = elf(0x1000, b"x", &pvh_notes(0x1000));
    assert!(text(boot_with(low, None, "", &ram(8), &options)).contains("linked to another address"));
}

#[test]
fn the_ramdisk_stays_clear_of_acpi_tables_and_of_the_kernels_limit() {
    let ram = ram(64);
    let options = BootOptions { acpi: std::iter::once(63 * MIB..64 * MIB).collect(), ..BootOptions::default() };
    let info = boot_with(bzimage(b"?"), Some(vec![1; 0x1000]), "", &ram, &options).unwrap();
    assert_eq!(info.initrd.unwrap().end, 63 * MIB);
    let mut kernel = bzimage(b"?");
    kernel[0x22c..0x230].copy_from_slice(&0x2ff_ffffu32.to_le_bytes());
    let info = boot_with(kernel, Some(vec![1; 0x1000]), "", &ram, &options).unwrap();
    assert_eq!(info.initrd.unwrap().end, 48 * MIB);
}

#[test]
fn files_are_read_and_missing_ones_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    std::fs::write(&path, elf(0x20_0000, b"code", &pvh_notes(0x20_0000))).unwrap();
    let ram = ram(8);
    let options = BootOptions::default();
    let info = load(&path, Some(&path), "", &ram, &options).unwrap();
    assert_eq!(bytes_at(&ram, info.initrd.unwrap().start), *b"\x7fELF");
    let missing = dir.path().join("none");
    let text = load(&missing, None, "", &ram, &options).unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "cannot read '{}': No such file or directory (os error 2); check the path and its permissions",
            missing.display()
        )
    );
    assert!(load(&path, Some(dir.path()), "", &ram, &options).is_err());
}

/// Debian's kernels: files named in `CARDCAGE_TEST_KERNELS` (separated by colons), or what `scripts` have fetched.
fn real_kernels() -> Vec<PathBuf> {
    if let Some(list) = std::env::var_os("CARDCAGE_TEST_KERNELS") {
        return std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
    }
    let guest = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guest"));
    let files = ["linux-6.1/bzImage", "linux-6.12/bzImage", "linux-6.1/vmlinux", "linux-6.12/vmlinux"];
    files.into_iter().map(|file| guest.join(file)).filter(|path| path.exists()).collect()
}

#[test]
fn debians_kernels_have_a_pvh_entry_inside() {
    let kernels = real_kernels();
    if kernels.is_empty() {
        eprintln!("skipped: no kernels in target/guest, and CARDCAGE_TEST_KERNELS names none");
    }
    for path in kernels {
        let ram = ram(256);
        let info = load(&path, None, "console=ttyS0", &ram, &BootOptions::default()).unwrap();
        eprintln!("{}: {}", path.display(), info.summary);
        assert_eq!((info.protocol, info.kernel.start), (Protocol::Pvh, 0x100_0000), "{}", info.summary);
        if info.summary.starts_with("bzImage") {
            let guest = BootOptions { unpack: Unpack::InGuest, ..BootOptions::default() };
            let info = load(&path, None, "console=ttyS0", &ram, &guest).unwrap();
            assert_eq!((info.protocol, info.state.rip), (Protocol::Linux64, 0x100_0200));
        }
    }
}

fn some_kernel() -> impl Strategy<Value = Vec<u8>> {
    let inner = elf(0x100_0000, &[0x90; 600], &pvh_notes(0x100_0000));
    prop::sample::select(vec![
        elf(0x10_0000, b"....Linux version 6.1", &[]),
        inner.clone(),
        bzimage(&zstd_payload(&inner)),
        bzimage(b"?"),
    ])
}

proptest! {
    #[test]
    fn damaged_and_truncated_kernels_never_panic(
        mut kernel in some_kernel(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        header in prop::collection::vec((0usize..0x270, any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        for (at, value) in flips {
            let at = at.index(kernel.len());
            kernel[at] = value;
        }
        for (at, value) in header {
            if let Some(byte) = kernel.get_mut(at) {
                *byte = value;
            }
        }
        if let Some(cut) = cut {
            kernel.truncate(cut.index(kernel.len()));
        }
        let ram = ram(20);
        if let Ok(info) = boot_with(kernel, Some(vec![1; 100]), "a", &ram, &BootOptions::default()) {
            prop_assert!(ram.find(info.kernel.start, info.kernel.end - info.kernel.start).is_some());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), elf: bool) {
        let mut kernel = if elf { b"\x7fELF\x02\x01".to_vec() } else { Vec::new() };
        kernel.extend(bytes);
        let _ = boot(kernel, &ram(2));
    }
}
