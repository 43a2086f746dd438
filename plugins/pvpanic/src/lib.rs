//! `pvpanic`: a port through which a guest says that its kernel has panicked.
//!
//! The interface is QEMU's (docs/specs/pvpanic): a read gives the events that the host understands, a write of one bit
//! reports that event. The host sends the QMP events `GUEST_PANICKED`, `GUEST_CRASHLOADED` and `GUEST_PVSHUTDOWN`, and
//! decides what becomes of the VM. Left out: the fw_cfg entry that tells firmware the port.

use cardcage_plugin_api::*;

/// The kernel has panicked.
const PANICKED: u8 = 1 << 0;
/// The kernel has panicked and runs its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;
/// The guest has shut down orderly.
const SHUTDOWN: u8 = 1 << 2;

/// What users can set.
#[derive(DeviceProperties)]
struct Config {
    /// Port
    #[prop(default = "0x505")]
    ioport: u16,
    /// Events that are offered to the guest: 1 panicked, 2 crash kernel loaded, 4 shut down
    #[prop(default = 7)]
    events: u8,
}

struct PvPanic {
    config: Config,
    reported: u64,
}

/// The event that a write reports. Where several bits are set, the worst counts.
fn event(value: u8) -> Option<Request> {
    match value {
        v if v & PANICKED != 0 => Some(Request::GuestPanicked),
        v if v & CRASH_LOADED != 0 => Some(Request::GuestCrashLoaded),
        v if v & SHUTDOWN != 0 => Some(Request::GuestPvShutdown),
        _ => None,
    }
}

impl Device for PvPanic {
    const INFO: DeviceInfo =
        DeviceInfo::new("pvpanic", BusKind::Isa, Category::Misc, "Lets the guest say that it has panicked")
            .migratable(1);
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        Ok(Self { config, reported: 0 })
    }
    fn realize(&mut self, bus: &mut Bus, _: &Context) -> Result<()> {
        bus.pio(self.config.ioport, 1)?;
        bus.acpi("QEMU0001")
    }
    fn read(&mut self, _: Region, _offset: u64, _size: u8, _: &Context) -> u64 {
        self.config.events.into()
    }
    fn write(&mut self, _: Region, _offset: u64, _size: u8, value: u64, ctx: &Context) {
        if let Some(event) = event(value as u8) {
            self.reported = self.reported.saturating_add(1);
            ctx.request(event);
        }
    }

    /// The guest's words have been passed on: nothing is left to save.
    fn save(&mut self, _: &mut state::StateWriter) -> Result<()> {
        Ok(())
    }
    fn load(&mut self, _: &state::StateReader, _: &Context) -> Result<()> {
        Ok(())
    }
    fn stats(&self) -> json::Object {
        json::Object::new().field("reported-events", self.reported)
    }
}

plugin! { devices: [PvPanic] }

#[cfg(test)]
mod tests {
    use super::*;
    use cardcage_plugin_api::testing::*;

    #[test]
    fn the_guest_reads_which_events_are_understood() {
        let host = TestHost::new();
        assert_eq!(TestDevice::new::<PvPanic>(&host, &[]).unwrap().inb(0x505), 7);
        let host = TestHost::new();
        assert_eq!(TestDevice::new::<PvPanic>(&host, &[("events", "1"), ("ioport", "0x600")]).unwrap().inb(0x600), 1);
    }

    #[test]
    fn each_bit_reports_its_event_and_the_worst_wins() {
        let host = TestHost::new();
        let mut device = TestDevice::new::<PvPanic>(&host, &[]).unwrap();
        for value in [1, 2, 4, 7, 6, 0, 0x80] {
            device.outb(0x505, value);
        }
        use Request::*;
        assert_eq!(
            host.take_requests(),
            [GuestPanicked, GuestCrashLoaded, GuestPvShutdown, GuestPanicked, GuestCrashLoaded]
        );
        assert_eq!(device.stats(), r#"{"reported-events":5}"#);
    }

    #[test]
    fn firmware_finds_it_in_acpi() {
        let host = TestHost::new();
        let _device = TestDevice::new::<PvPanic>(&host, &[]).unwrap();
        assert_eq!(host.acpi(), [r#"{"hid":"QEMU0001"}"#]);
    }

    #[test]
    fn it_conforms() {
        conformance::check::<PvPanic>(TestHost::new, &[]);
    }
}
