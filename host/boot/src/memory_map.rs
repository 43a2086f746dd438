//! The memory map that a kernel is given: RAM without its holes, ACPI tables, and what to leave alone.

use std::ops::Range;

use cardcage_memory::GuestRam;

use crate::place::{HOLE, without};
use crate::{BootError, BootOptions};

/// Most entries: as many as the zero page has room for.
pub(crate) const ENTRIES_MAX: usize = 128;
/// The extended BIOS data area, which software that predates memory maps looks for.
const EBDA: Range<u64> = 0x9_fc00..0xa_0000;
/// The BIOS area.
const BIOS: Range<u64> = 0xf_0000..0x10_0000;

/// What a range of addresses is. Numbers are those of INT 15h, E820, and of PVH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Usable.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables; usable once they have been read.
    Acpi = 3,
}

/// One range of the memory map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What they are.
    pub kind: MemoryKind,
}

impl MemoryMapEntry {
    fn new(range: Range<u64>, kind: MemoryKind) -> Self {
        Self { range, kind }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

/// The memory map of a machine, in ascending order and without overlaps.
pub fn memory_map(ram: &GuestRam, options: &BootOptions) -> Result<Vec<MemoryMapEntry>, BootError> {
    let acpi = options.acpi.iter().map(|range| (range.clone(), MemoryKind::Acpi));
    let reserved = options.reserved.iter().cloned().chain([EBDA, BIOS]).map(|range| (range, MemoryKind::Reserved));
    let mut taken: Vec<Range<u64>> = Vec::new();
    let mut map: Vec<MemoryMapEntry> = Vec::new();
    for (range, kind) in acpi.chain(reserved) {
        let parts = without(range, &taken);
        taken.extend(parts.iter().cloned());
        map.extend(parts.into_iter().map(|part| MemoryMapEntry::new(part, kind)));
    }
    taken.push(HOLE);
    for region in ram.regions() {
        let parts = without(region.start()..region.start() + region.len(), &taken);
        map.extend(parts.into_iter().map(|part| MemoryMapEntry::new(part, MemoryKind::Ram)));
    }
    map.sort_by_key(|entry| entry.range.start);
    if map.len() > ENTRIES_MAX {
        return Err(BootError::MemoryMap { entries: map.len(), max: ENTRIES_MAX });
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryKind::{Acpi, Ram, Reserved};

    #[test]
    fn ram_has_the_holes_of_a_pc() {
        let ram = GuestRam::new(&[(0, 0x800_0000), (1 << 32, 0x100_0000)]).unwrap();
        let options = BootOptions {
            acpi: vec![0x7ff_0000..0x800_0000, 0xf_0000..0xf_0100],
            reserved: std::iter::once(0x7fe_0000..0x7ff_1000).collect(),
            ..BootOptions::default()
        };
        let map: Vec<_> = memory_map(&ram, &options).unwrap().into_iter().map(|e| (e.range, e.kind)).collect();
        assert_eq!(
            map,
            [
                (0..0x9_fc00, Ram),
                (0x9_fc00..0xa_0000, Reserved),
                (0xf_0000..0xf_0100, Acpi),
                (0xf_0100..0x10_0000, Reserved),
                (0x10_0000..0x7fe_0000, Ram),
                (0x7fe_0000..0x7ff_0000, Reserved),
                (0x7ff_0000..0x800_0000, Acpi),
                (1 << 32..0x1_0100_0000, Ram),
            ]
        );
    }

    #[test]
    fn more_entries_than_a_kernel_takes_are_an_error() {
        let layout: Vec<_> = (0..130).map(|i| (0x10_0000 + i * 0x2000, 0x1000)).collect();
        let ram = GuestRam::new(&layout).unwrap();
        assert!(matches!(memory_map(&ram, &BootOptions::default()), Err(BootError::MemoryMap { .. })));
    }
}
