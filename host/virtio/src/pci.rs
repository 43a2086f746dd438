//! virtio-pci (virtio 1.2, section 4.1): modern registers in a memory BAR, the legacy ones in an I/O BAR.
//!
//! | BAR | content |
//! |---|---|
//! | 0 | legacy registers, if the device is transitional |
//! | 1 | MSI-X table and pending bits |
//! | 4 | modern registers: common, interrupt status, device, notification |

use std::sync::Arc;

use cardcage_memory::IoHandler;
use cardcage_pci::{BarKind, Devfn, Identity, Intx, Msix, MsixLayout, PciError, PciFunction, PciHook, Pin};

use crate::legacy::{HEADER_LEN, LegacyBar};
use crate::{Core, F_VERSION_1, Interrupt, NO_VECTOR, VirtioDevice};

const VENDOR: u16 = 0x1af4;
/// Device IDs of modern devices start here (virtio 1.2, section 4.1.2).
const MODERN_ID: u16 = 0x1040;
const CAP_VENDOR: u8 = 9;
const MODERN_BAR: u8 = 4;
const MSIX_BAR: u8 = 1;
/// Each part of the modern BAR has a page of its own.
const PART: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;

/// Parts of the modern BAR by `cfg_type` (virtio 1.2, section 4.1.4): common, notification, interrupt status, device.
const PARTS: [(u8, u64); 4] = [(1, 0), (2, 3 * PART), (3, PART), (4, 2 * PART)];
const CFG_TYPE_PCI: u8 = 5;

/// What the function is to look like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the kind.
    pub name: String,
    /// Id of the device.
    pub id: Option<String>,
    /// virtio device ID.
    pub device_id: u32,
    /// Class, sub-class and programming interface.
    pub class: u32,
    /// Whether there are legacy registers.
    pub legacy: bool,
    /// Whether there are modern registers.
    pub modern: bool,
    /// MSI-X vectors; 0 for none; by default one for each queue and one for configuration changes.
    pub vectors: Option<u16>,
    /// Whether other functions share the slot.
    pub multifunction: bool,
}

/// Device IDs that transitional devices have (virtio 1.2, section 4.1.2.1).
fn transitional_id(device_id: u32) -> Option<u16> {
    Some(match device_id {
        1 => 0x1000,
        2 => 0x1001,
        5 => 0x1002,
        3 => 0x1003,
        8 => 0x1004,
        4 => 0x1005,
        9 => 0x1009,
        _ => return None,
    })
}

/// The class that a category of devices has (PCI Code and ID Assignment Specification).
pub fn class_of_category(category: &str) -> u32 {
    match category {
        "storage" => 0x01_0000,
        "network" => 0x02_0000,
        "display" => 0x03_8000,
        "sound" => 0x04_0100,
        "input" => 0x09_8000,
        _ => 0x00_ff00,
    }
}

/// Puts a device behind a PCI function. Add the function to a bus to make it visible.
pub fn function(options: &Options, device: Arc<dyn VirtioDevice>) -> Result<(Arc<PciFunction>, Arc<Core>), PciError> {
    let transitional = if options.legacy { transitional_id(options.device_id) } else { None };
    let modern = options.modern || transitional.is_none();
    let core = Core::new(&options.name, device, if modern { F_VERSION_1 } else { 0 });
    let vectors = options.vectors.unwrap_or(core.queue_count().saturating_add(1));
    let identity = Identity {
        vendor: VENDOR,
        device: transitional.unwrap_or(MODERN_ID.wrapping_add(options.device_id as u16)),
        class: options.class,
        revision: u8::from(transitional.is_none()),
        subsystem_vendor: VENDOR,
        subsystem: if transitional.is_some() { options.device_id as u16 } else { 0x1100 },
    };
    let mut f = PciFunction::builder(&options.name, identity);
    f.id(options.id.as_deref());
    if options.multifunction {
        f.multifunction();
    }
    let msix = match vectors {
        0 => None,
        n => Some(Msix::new(&options.name, MsixLayout::exclusive(n, MSIX_BAR).0)?),
    };
    if transitional.is_some() {
        let size = (HEADER_LEN + 64).next_power_of_two();
        f.bar(0, BarKind::Io, size, Arc::new(LegacyBar { core: core.clone(), msix: msix.clone() }))?;
    }
    let mut window = None;
    if modern {
        let bar = Arc::new(ModernBar { core: core.clone(), vector_limit: vectors });
        f.bar(usize::from(MODERN_BAR), BarKind::Memory64 { prefetchable: true }, 4 * PART, bar.clone())?;
        window = Some(add_capabilities(&mut f, bar)?);
    }
    if let Some(m) = &msix {
        f.msix(m.clone())?;
    }
    let line = Intx::new();
    f.intx(Pin::A, line.clone());
    core.connect(Arc::new(PciInterrupt { msix, line }));
    f.hook(Arc::new(Hook { core: core.clone(), window }));
    Ok((f.build(), core))
}

/// One vendor capability for each part of the BAR, and the window into it (virtio 1.2, section 4.1.4). Gives the
/// window.
fn add_capabilities(f: &mut cardcage_pci::PciFunctionBuilder, bar: Arc<ModernBar>) -> Result<ConfigWindow, PciError> {
    for (cfg_type, offset) in PARTS {
        let mut body = vendor_capability(cfg_type, MODERN_BAR, offset as u32, PART as u32);
        if cfg_type == 2 {
            body[0] = 20;
            body.extend(NOTIFY_MULTIPLIER.to_le_bytes());
        }
        f.capability(CAP_VENDOR, &body, &vec![0; body.len()])?;
    }
    let mut body = vendor_capability(CFG_TYPE_PCI, 0, 0, 0);
    body[0] = 20;
    body.extend([0; 4]);
    let mut writable = vec![0; body.len()];
    // BAR, offset, length and data are the driver's.
    writable[2] = 0xff;
    writable[6..].fill(0xff);
    let at = f.capability(CAP_VENDOR, &body, &writable)?;
    Ok(ConfigWindow { at: u16::from(at), bar })
}

/// `struct virtio_pci_cap` behind its ID and next pointer.
fn vendor_capability(cfg_type: u8, bar: u8, offset: u32, len: u32) -> Vec<u8> {
    let mut body = vec![16, cfg_type, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body
}

struct PciInterrupt {
    msix: Option<Arc<Msix>>,
    line: Arc<Intx>,
}

impl Interrupt for PciInterrupt {
    fn message(&self, vector: u16) -> bool {
        let Some(msix) = self.msix.as_ref().filter(|m| m.is_enabled()) else { return false };
        if vector != NO_VECTOR {
            msix.fire(vector);
        }
        true
    }
    fn set_line(&self, level: bool) {
        self.line.set_level(level);
    }
}

struct ModernBar {
    core: Arc<Core>,
    vector_limit: u16,
}

impl IoHandler for ModernBar {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let at = offset % PART;
        match offset / PART {
            0 => self.common_read(at, size),
            1 if at == 0 => u64::from(self.core.acknowledge_isr(0xff)),
            2 => {
                let mut data = [0; 8];
                self.core.device().config_read(at as u32, &mut data[..usize::from(size.min(8))]);
                u64::from_le_bytes(data)
            }
            _ => 0,
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        let at = offset % PART;
        match offset / PART {
            0 => self.common_write(at, size, value),
            2 => self.core.device().config_write(at as u32, &value.to_le_bytes()[..usize::from(size.min(8))]),
            3 => self.core.notify((at / u64::from(NOTIFY_MULTIPLIER)) as u16),
            _ => {}
        }
    }
}

/// Offsets in the common configuration structure (virtio 1.2, section 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(super) const DEVICE_FEATURE: u64 = 4;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(super) const DRIVER_FEATURE: u64 = 12;
    pub(super) const CONFIG_VECTOR: u64 = 16;
    pub(super) const NUM_QUEUES: u64 = 18;
    pub(super) const STATUS: u64 = 20;
    pub(super) const GENERATION: u64 = 21;
    pub(super) const QUEUE_SELECT: u64 = 22;
    pub(super) const QUEUE_SIZE: u64 = 24;
    pub(super) const QUEUE_VECTOR: u64 = 26;
    pub(super) const QUEUE_ENABLE: u64 = 28;
    pub(super) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(super) const QUEUE_DESC: u64 = 32;
    pub(super) const QUEUE_DRIVER: u64 = 40;
    pub(super) const QUEUE_DEVICE: u64 = 48;
    pub(super) const END: u64 = 56;
}

impl ModernBar {
    /// A register, or a part of one: drivers may read 64-bit fields in halves.
    fn common_read(&self, at: u64, size: u8) -> u64 {
        let c = &self.core;
        let selected = c.selected();
        let queue = |f: fn(&crate::QueueState) -> u64| selected.as_ref().map_or(0, |(q, _)| f(q));
        let (start, value) = match at {
            0..4 => (common::DEVICE_FEATURE_SELECT, u64::from(c.feature_select(false))),
            4..8 => (common::DEVICE_FEATURE, u64::from(c.device_features())),
            8..12 => (common::DRIVER_FEATURE_SELECT, u64::from(c.feature_select(true))),
            12..16 => (common::DRIVER_FEATURE, u64::from(c.driver_features())),
            16..18 => (common::CONFIG_VECTOR, u64::from(c.config_vector())),
            18..20 => (common::NUM_QUEUES, u64::from(c.queue_count())),
            20 => (common::STATUS, u64::from(c.status())),
            21 => (common::GENERATION, u64::from(c.generation())),
            22..24 => (common::QUEUE_SELECT, u64::from(c.queue_select())),
            24..26 => (common::QUEUE_SIZE, queue(|q| u64::from(q.size))),
            26..28 => (common::QUEUE_VECTOR, u64::from(c.queue_vector())),
            28..30 => (common::QUEUE_ENABLE, queue(|q| u64::from(q.enabled))),
            30..32 => (common::QUEUE_NOTIFY_OFF, u64::from(c.queue_select())),
            32..40 => (common::QUEUE_DESC, queue(|q| q.desc)),
            40..48 => (common::QUEUE_DRIVER, queue(|q| q.avail)),
            48..56 => (common::QUEUE_DEVICE, queue(|q| q.used)),
            _ => (common::END, 0),
        };
        let value = value >> (8 * at.saturating_sub(start)).min(63);
        value & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))))
    }

    fn common_write(&self, at: u64, size: u8, value: u64) {
        let c = &self.core;
        match (at, size) {
            (common::DEVICE_FEATURE_SELECT, 4) => c.set_feature_select(false, value as u32),
            (common::DRIVER_FEATURE_SELECT, 4) => c.set_feature_select(true, value as u32),
            (common::DRIVER_FEATURE, 4) => c.set_driver_features(value as u32),
            (common::CONFIG_VECTOR, 2) => c.set_config_vector(value as u16, self.vector_limit),
            (common::STATUS, 1) => c.set_status(value as u8, false),
            (common::QUEUE_SELECT, 2) => c.select_queue(value as u16),
            (common::QUEUE_SIZE, 2) => c.set_selected_size(value as u16),
            (common::QUEUE_VECTOR, 2) => c.set_queue_vector(value as u16, self.vector_limit),
            (common::QUEUE_ENABLE, 2) if value == 1 => c.change_selected(|q| q.enabled = true),
            (common::QUEUE_DESC..common::END, 4 | 8) if at.is_multiple_of(u64::from(size)) => c.change_selected(|q| {
                let field = match at & !7 {
                    common::QUEUE_DESC => &mut q.desc,
                    common::QUEUE_DRIVER => &mut q.avail,
                    _ => &mut q.used,
                };
                *field = match (at & 4, size) {
                    (_, 8) => value,
                    (0, _) => *field & !0xffff_ffff | value & 0xffff_ffff,
                    _ => *field & 0xffff_ffff | value << 32,
                };
            }),
            _ => {}
        }
    }
}

/// VIRTIO_PCI_CAP_PCI_CFG: the BAR through configuration space, for guests that cannot map it.
struct ConfigWindow {
    at: u16,
    bar: Arc<ModernBar>,
}

impl ConfigWindow {
    /// Offset and size of the access that the driver has set up, if `offset` is the data register.
    fn target(&self, function: &PciFunction, offset: u16) -> Option<(u64, u8)> {
        if !(self.at + 16..self.at + 20).contains(&offset) {
            return None;
        }
        let config = function.config();
        let (bar, start, len) =
            (config.read(self.at + 4, 1), config.read(self.at + 8, 4), config.read(self.at + 12, 4));
        let fits = bar == u32::from(MODERN_BAR) && matches!(len, 1 | 2 | 4) && start % len == 0;
        (fits && u64::from(start) < 4 * PART).then_some((u64::from(start), len as u8))
    }
}

struct Hook {
    core: Arc<Core>,
    window: Option<ConfigWindow>,
}

impl PciHook for Hook {
    fn config_read(&self, function: &PciFunction, offset: u16, _size: u8) -> Option<u32> {
        let window = self.window.as_ref()?;
        let (at, len) = window.target(function, offset)?;
        Some(window.bar.read(at, len) as u32)
    }
    fn config_written(&self, function: &PciFunction, offset: u16, _size: u8) {
        if let Some(window) = &self.window
            && let Some((at, len)) = window.target(function, offset)
        {
            window.bar.write(at, len, u64::from(function.config().read(window.at + 16, 4)));
        }
    }
    fn reset(&self, _: &PciFunction) {
        self.core.reset();
    }
}

/// The slot and function that a user's `addr` means: `SLOT` or `SLOT.FUNCTION`, in hexadecimal.
pub fn parse_addr(text: &str) -> Option<Devfn> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let number = |t: &str| u8::from_str_radix(t.strip_prefix("0x").unwrap_or(t), 16).ok();
    Devfn::new(number(slot)?, number(function)?)
}
