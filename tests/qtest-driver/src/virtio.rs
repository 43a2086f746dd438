//! Virtio devices behind each of their transports (virtio 1.2, section 4.1 with 4.1.5.1 for legacy, and 4.2).

use crate::{Bar, GuestAllocator, PciDevice, Qtest, QueueLayout, Virtqueue};

/// Status bits (section 2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver for it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// The driver has understood the features.
    pub const FEATURES_OK: u8 = 8;
    /// The device has given up until it is reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// The feature bit of devices that follow version 1.
pub const VERSION_1: u64 = 1 << 32;
/// No MSI-X vector.
pub const NO_VECTOR: u16 = 0xffff;

/// Registers of a device, wherever they are.
trait Transport {
    fn is_legacy(&self) -> bool;
    fn device_features(&self) -> u64;
    fn set_driver_features(&self, features: u64);
    fn status(&self) -> u8;
    fn set_status(&self, status: u8);
    /// The largest size of a queue; 0 if there is none.
    fn queue_max(&self, index: u16) -> u16;
    fn start_queue(&self, index: u16, layout: QueueLayout, vector: u16);
    fn notify(&self, index: u16);
    /// Reads and clears.
    fn interrupt_status(&self) -> u8;
    fn set_config_vector(&self, vector: u16);
    fn config_read8(&self, offset: u32) -> u8;
    fn config_read32(&self, offset: u32) -> u32;
    fn config_write8(&self, offset: u32, value: u8);
}

/// A virtio device as its driver sees it.
pub struct VirtioDevice<'a> {
    qtest: &'a Qtest,
    memory: &'a GuestAllocator,
    transport: Box<dyn Transport + 'a>,
    /// The BARs that the transport has mapped.
    bars: Vec<(u8, Bar<'a>)>,
}

impl<'a> VirtioDevice<'a> {
    /// A virtio-pci device through its capabilities. Maps the BARs that they name and enables the device.
    #[track_caller]
    pub fn pci_modern(qtest: &'a Qtest, memory: &'a GuestAllocator, device: PciDevice<'a>) -> Self {
        let mut bars: Vec<(u8, Bar<'a>)> = Vec::new();
        let mut regions: [Option<Region<'a>>; 5] = [None; 5];
        let mut notify_multiplier = 0;
        for capability in device.capabilities().into_iter().filter(|cap| cap.id == 0x09) {
            let kind = usize::from(device.config_read8(capability.offset + 3));
            let bar = device.config_read8(capability.offset + 4);
            let offset = device.config_read32(capability.offset + 8);
            if !matches!(kind, 1..=4) || regions[kind].is_some() {
                continue;
            }
            if kind == 2 {
                notify_multiplier = device.config_read32(capability.offset + 16);
            }
            let bar = mapped(&mut bars, device, bar);
            regions[kind] = Some(Region { bar, offset });
        }
        device.enable();
        let region = |kind: usize, name: &str| regions[kind].unwrap_or_else(|| panic!("no capability for the {name}"));
        let transport = Modern {
            common: region(1, "common configuration"),
            notify: region(2, "notifications"),
            isr: region(3, "interrupt status"),
            config: regions[4],
            notify_multiplier,
        };
        Self { qtest, memory, transport: Box::new(transport), bars }
    }

    /// A transitional virtio-pci device through its legacy registers in BAR 0. `msix` tells whether MSI-X is going to be
    /// on, which moves the device's own configuration by four bytes.
    #[track_caller]
    pub fn pci_legacy(qtest: &'a Qtest, memory: &'a GuestAllocator, device: PciDevice<'a>, msix: bool) -> Self {
        let mut bars = Vec::new();
        let bar = mapped(&mut bars, device, 0);
        assert!(bar.is_io(), "BAR 0 of a transitional device is in port space");
        device.enable();
        Self { qtest, memory, transport: Box::new(Legacy { bar, config: if msix { 24 } else { 20 }, msix }), bars }
    }

    /// A virtio-mmio device (version 2) at an address.
    #[track_caller]
    pub fn mmio(qtest: &'a Qtest, memory: &'a GuestAllocator, base: u64) -> Self {
        assert_eq!(qtest.readl(base), 0x7472_6976, "the magic value at {base:#x}");
        assert_eq!(qtest.readl(base + 4), 2, "the version at {base:#x}");
        Self { qtest, memory, transport: Box::new(Mmio { qtest, base }), bars: Vec::new() }
    }

    /// A BAR of the device; mapped if it is not.
    #[track_caller]
    pub fn bar(&mut self, device: PciDevice<'a>, number: u8) -> Bar<'a> {
        mapped(&mut self.bars, device, number)
    }

    /// What the device offers.
    pub fn device_features(&self) -> u64 {
        self.transport.device_features()
    }

    /// The status register.
    pub fn status(&self) -> u8 {
        self.transport.status()
    }

    /// Resets the device.
    #[track_caller]
    pub fn reset(&self) {
        self.transport.set_status(0);
        assert_eq!(self.transport.status(), 0, "the status after a reset");
    }

    /// Resets the device and accepts those of its features that are in `wanted` (and version 1 unless it is legacy).
    /// Gives what was accepted.
    #[track_caller]
    pub fn negotiate(&self, wanted: u64) -> u64 {
        self.reset();
        let mut status = status::ACKNOWLEDGE | status::DRIVER;
        self.transport.set_status(status::ACKNOWLEDGE);
        self.transport.set_status(status);
        let needed = if self.transport.is_legacy() { 0 } else { VERSION_1 };
        let features = self.device_features() & (wanted | needed);
        assert_eq!(features & needed, needed, "a device that is not legacy offers version 1");
        self.transport.set_driver_features(features);
        if !self.transport.is_legacy() {
            status |= status::FEATURES_OK;
            self.transport.set_status(status);
            assert_eq!(self.transport.status(), status, "the status after features {features:#x}");
        }
        features
    }

    /// Sets a queue up with as many descriptors as the device allows (256 at most, except where the device decides),
    /// and the MSI-X vector for it.
    #[track_caller]
    pub fn queue(&self, index: u16, vector: u16) -> Virtqueue<'a> {
        let max = self.transport.queue_max(index);
        assert!(max > 0, "the device has no queue {index}");
        let size = if self.transport.is_legacy() { max } else { max.min(256) };
        let layout = QueueLayout::alloc(self.qtest, self.memory, size, self.transport.is_legacy());
        self.transport.start_queue(index, layout, vector);
        Virtqueue::new(self.qtest, layout)
    }

    /// Tells the device that the driver is ready.
    pub fn driver_ok(&self) {
        self.transport.set_status(self.transport.status() | status::DRIVER_OK);
    }

    /// Publishes what has been added to a queue and notifies the device.
    pub fn kick(&self, index: u16, queue: &Virtqueue<'_>) {
        queue.publish();
        self.transport.notify(index);
    }

    /// Notifies the device.
    pub fn notify(&self, index: u16) {
        self.transport.notify(index);
    }

    /// Reads the interrupt status and acknowledges it: bit 0 for queues, bit 1 for the configuration.
    pub fn interrupt_status(&self) -> u8 {
        self.transport.interrupt_status()
    }

    /// Sets the MSI-X vector for changes of the configuration.
    pub fn set_config_vector(&self, vector: u16) {
        self.transport.set_config_vector(vector);
    }

    /// Reads the device's own configuration.
    pub fn config_read8(&self, offset: u32) -> u8 {
        self.transport.config_read8(offset)
    }

    /// Reads the device's own configuration.
    pub fn config_read32(&self, offset: u32) -> u32 {
        self.transport.config_read32(offset)
    }

    /// Reads 64 bits of the device's own configuration, as two accesses.
    pub fn config_read64(&self, offset: u32) -> u64 {
        u64::from(self.config_read32(offset)) | u64::from(self.config_read32(offset + 4)) << 32
    }

    /// Writes the device's own configuration.
    pub fn config_write8(&self, offset: u32, value: u8) {
        self.transport.config_write8(offset, value);
    }
}

#[track_caller]
fn mapped<'a>(bars: &mut Vec<(u8, Bar<'a>)>, device: PciDevice<'a>, number: u8) -> Bar<'a> {
    if let Some((_, bar)) = bars.iter().find(|(n, _)| *n == number) {
        return *bar;
    }
    let bar = device.map_bar(number);
    bars.push((number, bar));
    bar
}

fn halves(value: u64) -> (u32, u32) {
    ((value & 0xffff_ffff) as u32, (value >> 32) as u32)
}

/// A structure of virtio-pci inside a BAR.
#[derive(Clone, Copy)]
struct Region<'a> {
    bar: Bar<'a>,
    offset: u32,
}

/// Section 4.1.4.3.
struct Modern<'a> {
    common: Region<'a>,
    notify: Region<'a>,
    isr: Region<'a>,
    config: Option<Region<'a>>,
    notify_multiplier: u32,
}

impl Modern<'_> {
    fn write32(&self, offset: u32, value: u32) {
        self.common.bar.write32(self.common.offset + offset, value);
    }
    fn write16(&self, offset: u32, value: u16) {
        self.common.bar.write16(self.common.offset + offset, value);
    }
    fn read16(&self, offset: u32) -> u16 {
        self.common.bar.read16(self.common.offset + offset)
    }
    fn config(&self) -> Region<'_> {
        self.config.expect("the device has a configuration of its own")
    }
}

impl Transport for Modern<'_> {
    fn is_legacy(&self) -> bool {
        false
    }
    fn device_features(&self) -> u64 {
        let half = |select| {
            self.write32(0x00, select);
            u64::from(self.common.bar.read32(self.common.offset + 0x04))
        };
        half(0) | half(1) << 32
    }
    fn set_driver_features(&self, features: u64) {
        let (low, high) = halves(features);
        for (select, half) in [(0, low), (1, high)] {
            self.write32(0x08, select);
            self.write32(0x0c, half);
        }
    }
    fn status(&self) -> u8 {
        self.common.bar.read8(self.common.offset + 0x14)
    }
    fn set_status(&self, status: u8) {
        self.common.bar.write8(self.common.offset + 0x14, status);
    }
    fn queue_max(&self, index: u16) -> u16 {
        self.write16(0x16, index);
        self.read16(0x18)
    }
    fn start_queue(&self, index: u16, layout: QueueLayout, vector: u16) {
        self.write16(0x16, index);
        self.write16(0x18, layout.size);
        self.write16(0x1a, vector);
        assert_eq!(self.read16(0x1a), vector, "the vector that queue {index} has taken");
        for (offset, addr) in [(0x20, layout.desc), (0x28, layout.avail), (0x30, layout.used)] {
            let (low, high) = halves(addr);
            self.write32(offset, low);
            self.write32(offset + 4, high);
        }
        self.write16(0x1c, 1);
    }
    fn notify(&self, index: u16) {
        self.write16(0x16, index);
        let offset = u32::from(self.read16(0x1e)) * self.notify_multiplier;
        self.notify.bar.write16(self.notify.offset + offset, index);
    }
    fn interrupt_status(&self) -> u8 {
        self.isr.bar.read8(self.isr.offset)
    }
    fn set_config_vector(&self, vector: u16) {
        self.write16(0x10, vector);
        assert_eq!(self.read16(0x10), vector, "the vector for the configuration");
    }
    fn config_read8(&self, offset: u32) -> u8 {
        self.config().bar.read8(self.config().offset + offset)
    }
    fn config_read32(&self, offset: u32) -> u32 {
        self.config().bar.read32(self.config().offset + offset)
    }
    fn config_write8(&self, offset: u32, value: u8) {
        self.config().bar.write8(self.config().offset + offset, value);
    }
}

/// Section 4.1.4.8.
struct Legacy<'a> {
    bar: Bar<'a>,
    config: u32,
    msix: bool,
}

impl Transport for Legacy<'_> {
    fn is_legacy(&self) -> bool {
        true
    }
    fn device_features(&self) -> u64 {
        self.bar.read32(0).into()
    }
    fn set_driver_features(&self, features: u64) {
        self.bar.write32(4, halves(features).0);
    }
    fn status(&self) -> u8 {
        self.bar.read8(18)
    }
    fn set_status(&self, status: u8) {
        self.bar.write8(18, status);
    }
    fn queue_max(&self, index: u16) -> u16 {
        self.bar.write16(14, index);
        self.bar.read16(12)
    }
    fn start_queue(&self, index: u16, layout: QueueLayout, vector: u16) {
        self.bar.write16(14, index);
        if self.msix {
            self.bar.write16(22, vector);
            assert_eq!(self.bar.read16(22), vector, "the vector that queue {index} has taken");
        }
        self.bar.write32(8, u32::try_from(layout.desc >> 12).expect("a legacy queue is in a page of 32 bits"));
    }
    fn notify(&self, index: u16) {
        self.bar.write16(16, index);
    }
    fn interrupt_status(&self) -> u8 {
        self.bar.read8(19)
    }
    fn set_config_vector(&self, vector: u16) {
        assert!(self.msix, "a legacy device has vectors only with MSI-X");
        self.bar.write16(20, vector);
        assert_eq!(self.bar.read16(20), vector, "the vector for the configuration");
    }
    fn config_read8(&self, offset: u32) -> u8 {
        self.bar.read8(self.config + offset)
    }
    fn config_read32(&self, offset: u32) -> u32 {
        self.bar.read32(self.config + offset)
    }
    fn config_write8(&self, offset: u32, value: u8) {
        self.bar.write8(self.config + offset, value);
    }
}

/// Section 4.2.2.
struct Mmio<'a> {
    qtest: &'a Qtest,
    base: u64,
}

impl Mmio<'_> {
    fn write(&self, offset: u64, value: u32) {
        self.qtest.writel(self.base + offset, value);
    }
    fn read(&self, offset: u64) -> u32 {
        self.qtest.readl(self.base + offset)
    }
}

impl Transport for Mmio<'_> {
    fn is_legacy(&self) -> bool {
        false
    }
    fn device_features(&self) -> u64 {
        let half = |select| {
            self.write(0x14, select);
            u64::from(self.read(0x10))
        };
        half(0) | half(1) << 32
    }
    fn set_driver_features(&self, features: u64) {
        let (low, high) = halves(features);
        for (select, half) in [(0, low), (1, high)] {
            self.write(0x24, select);
            self.write(0x20, half);
        }
    }
    fn status(&self) -> u8 {
        u8::try_from(self.read(0x70)).expect("status bits are below 0x100")
    }
    fn set_status(&self, status: u8) {
        self.write(0x70, status.into());
    }
    fn queue_max(&self, index: u16) -> u16 {
        self.write(0x30, index.into());
        u16::try_from(self.read(0x34)).expect("queues have at most 32768 entries")
    }
    fn start_queue(&self, index: u16, layout: QueueLayout, _vector: u16) {
        self.write(0x30, index.into());
        self.write(0x38, layout.size.into());
        for (offset, addr) in [(0x80, layout.desc), (0x90, layout.avail), (0xa0, layout.used)] {
            let (low, high) = halves(addr);
            self.write(offset, low);
            self.write(offset + 4, high);
        }
        self.write(0x44, 1);
    }
    fn notify(&self, index: u16) {
        self.write(0x50, index.into());
    }
    fn interrupt_status(&self) -> u8 {
        let status = self.read(0x60);
        self.write(0x64, status);
        u8::try_from(status & 3).unwrap_or_default()
    }
    fn set_config_vector(&self, _vector: u16) {
        panic!("virtio-mmio has no vectors");
    }
    fn config_read8(&self, offset: u32) -> u8 {
        self.qtest.readb(self.base + 0x100 + u64::from(offset))
    }
    fn config_read32(&self, offset: u32) -> u32 {
        self.read(0x100 + u64::from(offset))
    }
    fn config_write8(&self, offset: u32, value: u8) {
        self.qtest.writeb(self.base + 0x100 + u64::from(offset), value);
    }
}
