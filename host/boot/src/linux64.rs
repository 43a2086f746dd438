//! The 64-bit Linux entry: zero page, identity page tables, GDT, and the state of the processor (boot.rst, "64-bit Boot
//! Protocol"; Documentation/arch/x86/zero-page.rst).

use std::ops::Range;

use cardcage_accel::{Descriptor, Segment, VcpuState};
use cardcage_memory::GuestRam;

use crate::bzimage::{HEADER, Header};
use crate::memory_map::ENTRIES_MAX;
use crate::place::{self, COMMAND_LINE, COMMAND_LINE_MAX, GDT, PAGE_TABLES, STACK, ZERO_PAGE};
use crate::{BootError, BootOptions, memory_map};

/// Bytes of the identity page tables: a PML4, a PDPT and four page directories.
pub(crate) const PAGE_TABLES_LEN: u64 = 6 * PAGE;
const PAGE: u64 = 0x1000;

/// Offsets in the zero page.
const ACPI_RSDP: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADER: usize = 0x210;
const LOAD_FLAGS: usize = 0x211;
const RAMDISK: usize = 0x218;
const COMMAND_LINE_POINTER: usize = 0x228;
const COMMAND_LINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;

/// type_of_loader of a loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// loadflags bit 0: the kernel is above 1 MiB.
const LOADED_HIGH: u8 = 1;

/// Null, null, 64-bit code (`__BOOT_CS`), data (`__BOOT_DS`), and a TSS of 16 bytes.
const DESCRIPTORS: [u64; 6] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
const CODE: Segment = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xa09b };
const DATA: Segment = Segment { selector: 0x18, base: 0, limit: u32::MAX, attributes: 0xc093 };
const TSS: Segment = Segment { selector: 0x20, base: 0, limit: 0x67, attributes: 0x008b };

/// PG, PE; bit 4 is hard-wired.
const CR0: u64 = 0x8000_0011;
/// PAE.
const CR4: u64 = 0x20;
/// LME, LMA.
const EFER: u64 = 0x500;

const RSP: usize = 4;
const RSI: usize = 6;

/// A kernel that is in memory.
pub(crate) struct Setup<'a> {
    /// Its setup header, if it has one.
    pub(crate) header: Option<&'a Header>,
    /// Where it is entered.
    pub(crate) entry: u64,
    /// Where its ramdisk is.
    pub(crate) initrd: Option<&'a Range<u64>>,
}

/// Writes what a Linux kernel is told, and gives the state in which it is entered.
pub(crate) fn enter(
    ram: &GuestRam,
    options: &BootOptions,
    cmdline: &str,
    setup: &Setup<'_>,
) -> Result<VcpuState, BootError> {
    place::write_low(ram, ZERO_PAGE, &zero_page(ram, options, setup)?)?;
    place::write_low(ram, PAGE_TABLES, &page_tables())?;
    place::write_low(ram, GDT, &DESCRIPTORS.map(u64::to_le_bytes).concat())?;
    place::write_command_line(ram, cmdline)?;
    let mut state = VcpuState {
        rip: setup.entry,
        segments: [DATA, CODE, DATA, DATA, DATA, DATA],
        tr: TSS,
        gdtr: Descriptor { base: GDT, limit: size_of_val(&DESCRIPTORS) as u16 - 1 },
        idtr: Descriptor { base: 0, limit: 0 },
        cr0: CR0,
        cr3: PAGE_TABLES,
        cr4: CR4,
        efer: EFER,
        ..VcpuState::default()
    };
    state.gpr = [0; 16];
    state.gpr[RSI] = ZERO_PAGE;
    state.gpr[RSP] = STACK;
    Ok(state)
}

fn zero_page(ram: &GuestRam, options: &BootOptions, setup: &Setup<'_>) -> Result<[u8; PAGE as usize], BootError> {
    let mut page = [0; PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| {
        page.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    match setup.header {
        Some(header) => put(HEADER, header.setup()),
        None => {
            put(BOOT_FLAG, &[0x55, 0xaa]);
            put(MAGIC, b"HdrS");
            put(VERSION, &[0x0c, 0x02]);
            put(LOAD_FLAGS, &[LOADED_HIGH]);
            put(COMMAND_LINE_SIZE, &(COMMAND_LINE_MAX as u32).to_le_bytes());
        }
    }
    put(LOADER, &[UNDEFINED_LOADER]);
    put(COMMAND_LINE_POINTER, &(COMMAND_LINE as u32).to_le_bytes());
    if let Some(initrd) = setup.initrd {
        // Ramdisks are placed below 4 GiB: the high halves stay zero.
        put(RAMDISK, &(initrd.start as u32).to_le_bytes());
        put(RAMDISK + 4, &((initrd.end - initrd.start) as u32).to_le_bytes());
    }
    put(ACPI_RSDP, &options.rsdp.unwrap_or(0).to_le_bytes());
    let map = memory_map(ram, options)?;
    put(E820_ENTRIES, &[map.len().min(ENTRIES_MAX) as u8]);
    for (i, entry) in map.iter().enumerate() {
        let at = E820_TABLE + i * E820_ENTRY;
        put(at, &entry.range.start.to_le_bytes());
        put(at + 8, &entry.len().to_le_bytes());
        put(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    Ok(page)
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |i: u64| (PAGE_TABLES + i * PAGE) | PRESENT_WRITABLE;
    let mut entries = vec![0; (PAGE_TABLES_LEN / 8) as usize];
    let (upper, directories) = entries.split_at_mut(1024);
    upper[0] = table(1);
    for i in 0..4 {
        upper[512 + i as usize] = table(2 + i);
    }
    for (i, entry) in (0..).zip(directories) {
        *entry = i << 21 | LARGE | PRESENT_WRITABLE;
    }
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}
