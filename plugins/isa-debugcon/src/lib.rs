//! `isa-debugcon`: a port that prints every byte that is written to it, as firmware uses it for its messages (Bochs's
//! port 0xe9).
//!
//! A read gives a fixed value, by which a guest can tell that the port is there. A guest cannot wait for this port, so
//! what the backend does not take at once is kept, up to a limit, and beyond that lost and counted.

use std::collections::VecDeque;

use cardcage_plugin_api::properties::ChardevRef;
use cardcage_plugin_api::*;

/// Bytes kept for a backend that is slow: a guest could otherwise fill the host's memory.
const BACKLOG: usize = 64 << 10;

/// What users can set.
#[derive(DeviceProperties)]
struct Config {
    /// Port
    #[prop(default = "0xe9")]
    iobase: u16,
    /// Value that the guest reads
    #[prop(default = "0xe9")]
    readback: u32,
    /// Character backend that the bytes go to
    chardev: ChardevRef,
}

struct DebugCon {
    config: Config,
    chardev: Option<Chardev>,
    backlog: VecDeque<u8>,
    written: u64,
    lost: u64,
}

impl DebugCon {
    fn put(&mut self, byte: u8) {
        self.written = self.written.saturating_add(1);
        let taken = self.backlog.is_empty() && self.chardev.as_ref().is_some_and(|c| c.write(&[byte]) == 1);
        if taken {
            return;
        }
        if self.backlog.len() < BACKLOG {
            self.backlog.push_back(byte);
        } else {
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn flush(&mut self) {
        let Some(chardev) = &self.chardev else { return };
        while !self.backlog.is_empty() {
            let taken = chardev.write(self.backlog.make_contiguous());
            if taken == 0 {
                return;
            }
            self.backlog.drain(..taken);
        }
    }
}

impl Device for DebugCon {
    const INFO: DeviceInfo =
        DeviceInfo::new("isa-debugcon", BusKind::Isa, Category::Misc, "Port that prints what is written to it")
            .migratable(1);
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        Ok(Self { config, chardev: None, backlog: VecDeque::new(), written: 0, lost: 0 })
    }
    fn realize(&mut self, bus: &mut Bus, ctx: &Context) -> Result<()> {
        self.chardev = Some(ctx.chardev(&self.config.chardev, 0)?);
        bus.pio(self.config.iobase, 1)?;
        Ok(())
    }
    fn read(&mut self, _: Region, _offset: u64, _size: u8, _: &Context) -> u64 {
        self.config.readback.into()
    }
    fn write(&mut self, _: Region, _offset: u64, _size: u8, value: u64, _: &Context) {
        self.put(value as u8);
    }
    fn char_writable(&mut self, _: u64, _: &Context) {
        self.flush();
    }
    fn run_state(&mut self, running: bool, _: &Context) {
        if running {
            self.flush();
        }
    }

    fn save(&mut self, state: &mut state::StateWriter) -> Result<()> {
        state.section("backlog", 1, |s| s.bytes(self.backlog.make_contiguous()));
        Ok(())
    }
    fn load(&mut self, state: &state::StateReader, _: &Context) -> Result<()> {
        let mut s = state.section("backlog", 1)?;
        let bytes = s.bytes()?;
        if bytes.len() > BACKLOG {
            return Err(Error::new(format!("the saved backlog has {} bytes, allowed are {BACKLOG}", bytes.len())));
        }
        self.backlog = bytes.iter().copied().collect();
        s.end()
    }
    fn inspect(&self) -> json::Object {
        json::Object::new().field("backlog-bytes", self.backlog.len())
    }
    fn stats(&self) -> json::Object {
        json::Object::new().field("written-bytes", self.written).field("lost-bytes", self.lost)
    }
}

plugin! { devices: [DebugCon] }

#[cfg(test)]
mod tests {
    use super::*;
    use cardcage_plugin_api::testing::*;

    const CHARDEV: &[(&str, &str)] = &[("chardev", "log")];

    fn host() -> TestHost {
        TestHost::new().with_chardev("log")
    }

    #[test]
    fn bytes_written_come_out_and_reads_tell_that_it_is_there() {
        let host = host();
        let mut device = TestDevice::new::<DebugCon>(&host, CHARDEV).unwrap();
        b"hello".iter().for_each(|&b| device.outb(0xe9, b));
        assert_eq!(host.take_output("log"), b"hello");
        assert_eq!(device.inb(0xe9), 0xe9);
    }

    #[test]
    fn a_slow_backend_gets_everything_in_order() {
        let host = host();
        let mut device = TestDevice::new::<DebugCon>(&host, CHARDEV).unwrap();
        host.set_output_room("log", Some(2));
        b"abcde".iter().for_each(|&b| device.outb(0xe9, b));
        assert_eq!(host.take_output("log"), b"ab");
        host.set_output_room("log", Some(1));
        device.run();
        device.outb(0xe9, b'f');
        assert_eq!(host.take_output("log"), b"c");
        host.set_output_room("log", None);
        device.run();
        assert_eq!(host.take_output("log"), b"def");
    }

    #[test]
    fn what_goes_beyond_the_backlog_is_lost_and_counted() {
        let host = host();
        let mut device = TestDevice::new::<DebugCon>(&host, CHARDEV).unwrap();
        host.set_output_room("log", Some(0));
        for _ in 0..BACKLOG + 3 {
            device.outb(0xe9, b'x');
        }
        assert_eq!(device.stats(), r#"{"written-bytes":65539,"lost-bytes":3}"#);
        assert_eq!(device.inspect(), r#"{"backlog-bytes":65536}"#);
    }

    #[test]
    fn bytes_that_were_not_taken_yet_move_with_the_device() {
        let host = host();
        let mut device = TestDevice::new::<DebugCon>(&host, CHARDEV).unwrap();
        host.set_output_room("log", Some(0));
        device.outb(0xe9, b'!');
        let next = device.migrate().unwrap();
        assert_eq!(next.host().take_output("log"), b"!");
    }

    #[test]
    fn a_backend_is_required() {
        let refused = TestDevice::new::<DebugCon>(&host(), &[]).err().unwrap();
        assert_eq!(refused.to_string(), "property 'chardev' is required");
        let refused = TestDevice::new::<DebugCon>(&host(), &[("chardev", "none")]).err().unwrap();
        assert_eq!(refused.to_string(), "there is no chardev 'none'");
    }

    #[test]
    fn it_conforms() {
        conformance::check::<DebugCon>(host, CHARDEV);
    }
}
