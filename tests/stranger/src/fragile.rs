//! `stranger-fragile`: a PCI function whose author made a mistake: one register write panics.

use cardcage_plugin_api::*;

/// The register that must not be written.
const TRAP: u64 = 8;

pub struct Fragile {
    value: u64,
}

impl Device for Fragile {
    const INFO: DeviceInfo =
        DeviceInfo::new("stranger-fragile", BusKind::Pci, Category::Misc, "Panics when register 8 is written");
    type Config = ();

    fn new((): (), _: &Context) -> Result<Self> {
        Ok(Self { value: 0x5a })
    }
    fn realize(&mut self, bus: &mut Bus, _: &Context) -> Result<()> {
        bus.pci(PciId {
            vendor: 0xcafe,
            device: 0xbabe,
            subsystem_vendor: 0xcafe,
            subsystem: 1,
            class: 0xff_0000,
            revision: 1,
        })?;
        bus.bar(0, 4096, BarKind::Memory32)?;
        Ok(())
    }
    fn read(&mut self, _: Region, _offset: u64, _size: u8, _: &Context) -> u64 {
        self.value
    }
    fn write(&mut self, _: Region, offset: u64, _size: u8, value: u64, _: &Context) {
        assert!(offset != TRAP, "nobody writes {value:#x} to register {TRAP}");
        self.value = value;
    }
}
