//! The legacy registers of a transitional virtio-pci device, in an I/O BAR (virtio 1.2, section 4.1.4.10).

use std::sync::Arc;

use cardcage_memory::IoHandler;
use cardcage_pci::Msix;

use crate::Core;

/// Bytes of the header with MSI-X vectors.
pub(crate) const HEADER_LEN: u64 = 24;
/// The used ring starts at the next multiple of this (virtio 1.2, section 2.7.2).
const RING_ALIGN: u64 = 4096;

pub(crate) struct LegacyBar {
    pub(crate) core: Arc<Core>,
    pub(crate) msix: Option<Arc<Msix>>,
}

impl LegacyBar {
    fn has_vectors(&self) -> bool {
        self.msix.as_ref().is_some_and(|m| m.is_enabled())
    }
    fn vector_limit(&self) -> u16 {
        self.msix.as_ref().map_or(0, |m| m.layout().vectors)
    }
    /// Where the device's configuration space begins: it moves when MSI-X is switched on.
    fn header_len(&self) -> u64 {
        if self.has_vectors() { HEADER_LEN } else { HEADER_LEN - 4 }
    }

    /// The driver gives a page number: the rings lie one behind the other, as in the first drivers.
    fn set_page(&self, page: u32) {
        let desc = u64::from(page) << 12;
        if page == 0 {
            self.core.disable_selected();
            return;
        }
        self.core.change_selected(|q| {
            let size = u64::from(q.size);
            q.desc = desc;
            q.avail = desc + 16 * size;
            q.used = (q.avail + 4 + 2 * size + 2).next_multiple_of(RING_ALIGN);
            q.enabled = true;
        });
    }
}

impl IoHandler for LegacyBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let c = &self.core;
        match (offset, size) {
            (0, 4) => u64::from(c.offered_features() as u32),
            (4, 4) => u64::from(c.legacy_features()),
            (8, 4) => c.selected().map_or(0, |(q, _)| if q.enabled { q.desc >> 12 } else { 0 }),
            (12, 2) => c.selected().map_or(0, |(_, max)| u64::from(max)),
            (14, 2) => u64::from(c.queue_select()),
            (18, 1) => u64::from(c.status()),
            (19, 1) => u64::from(c.acknowledge_isr(0xff)),
            (20, 2) if self.has_vectors() => u64::from(c.config_vector()),
            (22, 2) if self.has_vectors() => u64::from(c.queue_vector()),
            _ if offset >= self.header_len() => {
                let mut data = [0; 8];
                let len = usize::from(size.min(8));
                c.device().config_read((offset - self.header_len()) as u32, &mut data[..len]);
                u64::from_le_bytes(data)
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let c = &self.core;
        match (offset, size) {
            (4, 4) => c.set_legacy_features(value as u32),
            (8, 4) => self.set_page(value as u32),
            (14, 2) => c.select_queue(value as u16),
            (16, 2) => c.notify(value as u16),
            (18, 1) => c.set_status(value as u8, true),
            (20, 2) if self.has_vectors() => c.set_config_vector(value as u16, self.vector_limit()),
            (22, 2) if self.has_vectors() => c.set_queue_vector(value as u16, self.vector_limit()),
            _ if offset >= self.header_len() => {
                let len = usize::from(size.min(8));
                let at = (offset - self.header_len()) as u32;
                c.device().config_write(at, &value.to_le_bytes()[..len]);
            }
            _ => {}
        }
    }
}
