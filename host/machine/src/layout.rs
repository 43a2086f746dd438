//! The memory map of the `pc` machine.
//!
//! | guest-physical | what |
//! |---|---|
//! | 0 – 3 GiB or 3.5 GiB | RAM; 3.5 GiB if all of it fits below that |
//! | up to 0xfeaf_ffff | PCI memory window |
//! | 0xfeb0_0000 | virtio-mmio slots of 0x200 bytes |
//! | 0xfec0_0000 | I/O APIC |
//! | 0xfee0_0000 | local APICs |
//! | 4 GiB – | the rest of RAM, then the 64-bit PCI window |

/// First address of the low PCI window's end: the virtio-mmio slots.
pub(crate) const PCI_WINDOW_END: u64 = 0xfeb0_0000;
/// Number of virtio-mmio slots: one for each I/O APIC pin that nobody else uses.
pub(crate) const VIRTIO_MMIO_SLOTS: u32 = 8;
const FOUR_GIB: u64 = 1 << 32;
const LOW_LIMIT: u64 = 0xe000_0000;
const LOW_SPLIT: u64 = 0xc000_0000;

/// RAM as start and length, for `size` bytes.
pub(crate) fn ram(size: u64) -> Vec<(u64, u64)> {
    if size < LOW_LIMIT { vec![(0, size)] } else { vec![(0, LOW_SPLIT), (FOUR_GIB, size - LOW_SPLIT)] }
}

/// First address of the PCI window below 4 GiB.
pub(crate) fn pci_window_start(size: u64) -> u64 {
    if size < LOW_LIMIT { size.max(1 << 31) } else { LOW_SPLIT }
}

/// First address and length of the PCI window above 4 GiB.
pub(crate) fn pci_window_64(size: u64) -> (u64, u64) {
    let end = ram(size).last().map_or(FOUR_GIB, |r| r.0 + r.1).max(FOUR_GIB);
    let gib = 1 << 30;
    (end.next_multiple_of(gib), 64 * gib)
}

/// Address and GSI of a virtio-mmio slot.
pub(crate) fn virtio_mmio_slot(index: u32) -> (u64, u32) {
    (PCI_WINDOW_END + u64::from(index) * cardcage_virtio::mmio::LEN, 16 + index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_where_the_windows_need_the_room() {
        assert_eq!(ram(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram(4 << 30), [(0, LOW_SPLIT), (FOUR_GIB, (4 << 30) - LOW_SPLIT)]);
        assert_eq!(ram(5 << 30).iter().map(|r| r.1).sum::<u64>(), 5 << 30);
        assert_eq!(pci_window_64(5 << 30).0, 6 << 30);
    }
}
