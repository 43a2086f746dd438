//! virtio-mmio, version 2 (virtio 1.2, section 4.2).

use std::sync::Arc;

use cardcage_memory::IoHandler;

use crate::{Core, F_VERSION_1, Interrupt, VirtioDevice};

/// Bytes of the register block that guests map.
pub const LEN: u64 = 0x200;
const CONFIG: u64 = 0x100;
const MAGIC: u64 = 0x7472_6976;
const VENDOR: u64 = 0x554d_4551;

/// An interrupt line: called with its new level.
pub type Line = Box<dyn Fn(bool) + Send + Sync>;

/// Register block of one device.
pub struct Registers {
    core: Arc<Core>,
    device_id: u32,
}

struct MmioInterrupt(Line);

impl Interrupt for MmioInterrupt {
    fn message(&self, _vector: u16) -> bool {
        false
    }
    fn set_line(&self, level: bool) {
        (self.0)(level);
    }
}

/// Puts a device behind a register block of [`LEN`] bytes.
pub fn registers(name: &str, device_id: u32, device: Arc<dyn VirtioDevice>, line: Line) -> (Arc<Registers>, Arc<Core>) {
    let core = Core::new(name, device, F_VERSION_1);
    core.connect(Arc::new(MmioInterrupt(line)));
    (Arc::new(Registers { core: core.clone(), device_id }), core)
}

impl IoHandler for Registers {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let c = &self.core;
        if offset >= CONFIG {
            let mut data = [0; 8];
            c.device().config_read((offset - CONFIG) as u32, &mut data[..usize::from(size.min(8))]);
            return u64::from_le_bytes(data);
        }
        if size != 4 {
            return 0;
        }
        match offset {
            0x00 => MAGIC,
            0x04 => 2,
            0x08 => u64::from(self.device_id),
            0x0c => VENDOR,
            0x10 => u64::from(c.device_features()),
            0x34 => c.selected().map_or(0, |(_, max)| u64::from(max)),
            0x44 => c.selected().map_or(0, |(q, _)| u64::from(q.enabled)),
            0x60 => u64::from(c.isr()),
            0x70 => u64::from(c.status()),
            // No shared memory regions: length and base read as all ones.
            0xb0..=0xbc => 0xffff_ffff,
            0xfc => u64::from(c.generation()),
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let c = &self.core;
        if offset >= CONFIG {
            c.device().config_write((offset - CONFIG) as u32, &value.to_le_bytes()[..usize::from(size.min(8))]);
            return;
        }
        if size != 4 {
            return;
        }
        let low = |field: &mut u64| *field = *field & !0xffff_ffff | value & 0xffff_ffff;
        let high = |field: &mut u64| *field = *field & 0xffff_ffff | value << 32;
        match offset {
            0x14 => c.set_feature_select(false, value as u32),
            0x20 => c.set_driver_features(value as u32),
            0x24 => c.set_feature_select(true, value as u32),
            0x30 => c.select_queue(value as u16),
            0x38 => c.set_selected_size(value.min(0xffff) as u16),
            0x44 if value == 1 => c.change_selected(|q| q.enabled = true),
            0x44 if value == 0 => c.disable_selected(),
            0x50 => c.notify(value as u16),
            0x64 => {
                c.acknowledge_isr(value as u8);
            }
            0x70 => c.set_status(value as u8, false),
            0x80 => c.change_selected(|q| low(&mut q.desc)),
            0x84 => c.change_selected(|q| high(&mut q.desc)),
            0x90 => c.change_selected(|q| low(&mut q.avail)),
            0x94 => c.change_selected(|q| high(&mut q.avail)),
            0xa0 => c.change_selected(|q| low(&mut q.used)),
            0xa4 => c.change_selected(|q| high(&mut q.used)),
            _ => {}
        }
    }
}
