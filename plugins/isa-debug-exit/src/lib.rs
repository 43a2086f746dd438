//! `isa-debug-exit`: a port that ends the VM with an exit status, for test programs that run as guests.
//!
//! No hardware has it; the behaviour is QEMU's. A write of `v` ends the VM with status `(v << 1) | 1`, of which the
//! operating system keeps the low eight bits; so a guest can never report 0. Reads give 0.

use cardcage_plugin_api::*;

/// What users can set.
#[derive(DeviceProperties)]
struct Config {
    /// First port
    #[prop(default = "0x501")]
    iobase: u16,
    /// Number of ports
    #[prop(default = 2, range = 1..=4, unit = "bytes")]
    iosize: u16,
}

struct DebugExit {
    config: Config,
}

/// The exit status for a value that was written with `size` bytes.
fn exit_status(value: u64, size: u8) -> i32 {
    let value = value & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))));
    ((value << 1) | 1) as i32
}

impl Device for DebugExit {
    const INFO: DeviceInfo =
        DeviceInfo::new("isa-debug-exit", BusKind::Isa, Category::Misc, "Ends the VM when its port is written")
            .migratable(1);
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        Ok(Self { config })
    }
    fn realize(&mut self, bus: &mut Bus, _: &Context) -> Result<()> {
        bus.pio(self.config.iobase, self.config.iosize)?;
        Ok(())
    }
    fn read(&mut self, _: Region, _offset: u64, _size: u8, _: &Context) -> u64 {
        0
    }
    fn write(&mut self, _: Region, _offset: u64, size: u8, value: u64, ctx: &Context) {
        ctx.request(Request::Exit(exit_status(value, size)));
    }

    /// There is nothing to save, and that is fine.
    fn save(&mut self, _: &mut state::StateWriter) -> Result<()> {
        Ok(())
    }
    fn load(&mut self, _: &state::StateReader, _: &Context) -> Result<()> {
        Ok(())
    }
}

plugin! { devices: [DebugExit] }

#[cfg(test)]
mod tests {
    use super::*;
    use cardcage_plugin_api::testing::*;

    #[test]
    fn a_write_ends_the_vm_with_twice_the_value_and_one() {
        let host = TestHost::new();
        let mut device = TestDevice::new::<DebugExit>(&host, &[]).unwrap();
        device.outb(0x501, 0x10);
        device.outw(0x501, 0x0102);
        assert_eq!(host.take_requests(), [Request::Exit(33), Request::Exit(0x205)]);
        assert_eq!(device.inb(0x502), 0);
    }

    #[test]
    fn bits_beyond_the_size_of_the_access_do_not_count() {
        assert_eq!(exit_status(0xffff_ff01, 1), 3);
        assert_eq!(exit_status(0xffff_ffff, 4), -1);
        assert_eq!(exit_status(u64::MAX, 8), -1);
    }

    #[test]
    fn the_port_can_be_elsewhere() {
        let host = TestHost::new();
        let mut device = TestDevice::new::<DebugExit>(&host, &[("iobase", "0xf4"), ("iosize", "4")]).unwrap();
        device.outl(0xf4, 0);
        assert_eq!(host.take_requests(), [Request::Exit(1)]);
        assert_eq!(host.ports(), [(0xf4, 4)]);
    }

    #[test]
    fn it_conforms() {
        conformance::check::<DebugExit>(TestHost::new, &[]);
    }
}
