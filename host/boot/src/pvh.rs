//! PVH entry: start info, module list, memory map, and the state of the processor (Xen, docs/misc/pvh.pandoc).

use std::ops::Range;

use cardcage_accel::{Descriptor, Segment, VcpuState};
use cardcage_memory::GuestRam;

use crate::place::{self, COMMAND_LINE, MEMORY_MAP, MODULES, STACK, START_INFO};
use crate::{BootError, BootOptions, memory_map};

/// XEN_HVM_START_MAGIC_VALUE, "xEn3" with the high bit set.
const MAGIC: u32 = 0x336e_c578;
/// The version that brought the memory map.
const VERSION: u32 = 1;
/// Bytes of the start info.
pub(crate) const START_INFO_LEN: usize = 56;

/// Flat segments of 4 GiB: present, accessed, 32-bit, limit in pages.
const CODE: u32 = 0xc09b;
const DATA: u32 = 0xc093;
/// A busy 32-bit TSS.
const TSS: u32 = 0x008b;
/// Protected mode; bit 4 is hard-wired.
const CR0: u64 = 0x11;

const RBX: usize = 3;
const RSP: usize = 4;

/// Writes what a PVH kernel is told, and gives the state in which it is entered at `entry`.
pub(crate) fn enter(
    ram: &GuestRam,
    options: &BootOptions,
    cmdline: &str,
    entry: u32,
    initrd: Option<&Range<u64>>,
) -> Result<VcpuState, BootError> {
    let map = memory_map(ram, options)?;
    let mut entries = Vec::new();
    for entry in &map {
        entries.extend(entry.range.start.to_le_bytes());
        entries.extend(entry.len().to_le_bytes());
        entries.extend((entry.kind as u64).to_le_bytes());
    }
    place::write_low(ram, MEMORY_MAP, &entries)?;
    if let Some(initrd) = initrd {
        let module = [initrd.start, initrd.end - initrd.start, 0, 0];
        place::write_low(ram, MODULES, &module.map(u64::to_le_bytes).concat())?;
    }
    place::write_command_line(ram, cmdline)?;
    place::write_low(ram, START_INFO, &start_info(options, map.len(), initrd.is_some()))?;
    Ok(state(entry))
}

fn start_info(options: &BootOptions, map_entries: usize, has_initrd: bool) -> [u8; START_INFO_LEN] {
    let mut info = [0; START_INFO_LEN];
    let mut put = |at: usize, bytes: &[u8]| info[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(4, &VERSION.to_le_bytes());
    put(12, &u32::from(has_initrd).to_le_bytes());
    put(16, &if has_initrd { MODULES } else { 0 }.to_le_bytes());
    put(24, &COMMAND_LINE.to_le_bytes());
    put(32, &options.rsdp.unwrap_or(0).to_le_bytes());
    put(40, &MEMORY_MAP.to_le_bytes());
    put(48, &(map_entries as u32).to_le_bytes());
    info
}

fn state(entry: u32) -> VcpuState {
    let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: DATA };
    let code = Segment { selector: 0x08, attributes: CODE, ..data };
    let none = Descriptor { base: 0, limit: 0 };
    let mut state = VcpuState {
        rip: entry.into(),
        segments: [data, code, data, data, data, data],
        tr: Segment { selector: 0x18, base: 0, limit: 0x67, attributes: TSS },
        gdtr: none,
        idtr: none,
        cr0: CR0,
        ..VcpuState::default()
    };
    state.gpr = [0; 16];
    state.gpr[RBX] = START_INFO;
    state.gpr[RSP] = STACK;
    state
}
