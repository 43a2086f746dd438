//! Where things go in guest memory.

use std::ops::Range;

use cardcage_memory::{GuestRam, PAGE_SIZE};

use crate::bzimage::Header;
use crate::{BootError, linux64, pvh};

/// GDT for the 64-bit entry.
pub(crate) const GDT: u64 = 0x1000;
/// PVH start info, module list and memory map.
pub(crate) const START_INFO: u64 = 0x2000;
pub(crate) const MODULES: u64 = 0x2100;
pub(crate) const MEMORY_MAP: u64 = 0x3000;
/// Linux zero page.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Top of a stack of a page, for kernels that use one before they make their own.
pub(crate) const STACK: u64 = 0x8ff0;
/// Identity page tables: six pages.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// Command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// Bytes of a command line that there is room for, without the zero at its end.
pub(crate) const COMMAND_LINE_MAX: u64 = LOW_END - COMMAND_LINE - 1;
/// End of all of it: no kernel is loaded below.
pub(crate) const LOW_END: u64 = 0x4_0000;

/// Video memory, option ROMs and BIOS: never RAM for the guest.
pub(crate) const HOLE: Range<u64> = 0xa_0000..0x10_0000;
/// Kernels that can be anywhere are placed from here on.
const KERNEL_MIN: u64 = 0x10_0000;

const _: () = assert!(START_INFO + pvh::START_INFO_LEN as u64 <= MODULES);
const _: () = assert!(PAGE_TABLES + linux64::PAGE_TABLES_LEN <= COMMAND_LINE);

/// Whether all of `range` is one piece of RAM and nothing of it is blocked.
pub(crate) fn is_free(ram: &GuestRam, blocked: &[Range<u64>], range: &Range<u64>) -> bool {
    let Some(len) = range.end.checked_sub(range.start) else { return false };
    let apart = |other: &Range<u64>| other.end <= range.start || range.end <= other.start;
    ram.find(range.start, len).is_some() && blocked.iter().all(apart)
}

/// The parts of `range` that no hole covers, in ascending order.
pub(crate) fn without(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = vec![range];
    for hole in holes {
        rest = rest
            .into_iter()
            .flat_map(|r| [r.start..r.end.min(hole.start), r.start.max(hole.end)..r.end])
            .filter(|r| r.start < r.end)
            .collect();
    }
    rest
}

/// The highest page-aligned place for `len` bytes below `limit`.
pub(crate) fn highest(ram: &GuestRam, blocked: &[Range<u64>], len: u64, limit: u64) -> Option<u64> {
    let regions = ram.regions().iter().rev().map(|r| r.start()..(r.start() + r.len()).min(limit));
    regions.filter(|r| r.start < r.end).find_map(|region| {
        without(region, blocked).into_iter().rev().find_map(|free| {
            let start = free.end.checked_sub(len)? & !(PAGE_SIZE - 1);
            (start >= free.start).then_some(start)
        })
    })
}

/// Where the kernel of a bzImage goes: where it would like to be, else as low as it can.
pub(crate) fn kernel(ram: &GuestRam, blocked: &[Range<u64>], header: &Header) -> Result<u64, BootError> {
    let (preferred, alignment) = header.preferred();
    let len = header.init_size();
    let fits = |start: u64| start >= KERNEL_MIN && is_free(ram, blocked, &(start..start.saturating_add(len)));
    if fits(preferred) {
        return Ok(preferred);
    }
    let free = ram.regions().iter().flat_map(|r| without(r.start()..r.start() + r.len(), blocked));
    let lowest = |alignment: u64| {
        let starts = free.filter_map(|r| r.start.max(KERNEL_MIN).checked_next_multiple_of(alignment));
        // Above 4 GiB there are no page tables for the entry.
        starts.into_iter().find(|&start| fits(start) && start.saturating_add(len) <= 1 << 32)
    };
    alignment.and_then(lowest).ok_or_else(|| BootError::KernelTooBig {
        path: header.path().into(),
        start: preferred,
        end: preferred.saturating_add(len),
        ram: ram.size(),
    })
}

/// Writes what a kernel is told into low memory.
pub(crate) fn write_low(ram: &GuestRam, start: u64, bytes: &[u8]) -> Result<(), BootError> {
    let end = start + bytes.len() as u64;
    ram.write(start, bytes).map_err(|_| BootError::NoLowMemory { start, end })
}

/// Writes the command line as a C string.
pub(crate) fn write_command_line(ram: &GuestRam, cmdline: &str) -> Result<(), BootError> {
    write_low(ram, COMMAND_LINE, cmdline.as_bytes())?;
    write_low(ram, COMMAND_LINE + cmdline.len() as u64, &[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_cut_out() {
        assert_eq!(without(0..100, &[10..20, 90..200, 50..50]), [0..10, 20..50, 50..90]);
        assert_eq!(without(10..20, std::slice::from_ref(&(0..30))), []);
    }

    #[test]
    fn the_highest_place_avoids_what_is_blocked() {
        let ram = GuestRam::new(&[(0, 0x10_0000), (0x20_0000, 0x10_0000)]).unwrap();
        let top = 0x2f_0000..0x30_0000;
        assert_eq!(highest(&ram, &[], 0x1801, u64::MAX), Some(0x2f_e000));
        assert_eq!(highest(&ram, std::slice::from_ref(&top), 0x1801, u64::MAX), Some(0x2e_e000));
        assert_eq!(highest(&ram, &[top], 0x10_0000, u64::MAX), Some(0));
        assert_eq!(highest(&ram, &[], 0x1000, 0x20_0000), Some(0xf_f000));
        assert_eq!(highest(&ram, &[], 0x10_0001, u64::MAX), None);
    }
}
