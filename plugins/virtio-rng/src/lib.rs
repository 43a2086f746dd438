//! `virtio-rng`: the virtio entropy source (virtio 1.2, section 5.4).
//!
//! The driver hands over empty buffers, the device fills them with random bytes of the host. `max-bytes` and `period`
//! limit the rate as QEMU does: a period begins with the first request and ends on the virtual clock. A chain may be
//! given back half full, which the specification allows. Left out: entropy backends of the user's choice (`rng`).

use std::io::Write;

use cardcage_plugin_api::state::{StateReader, StateWriter};
use cardcage_plugin_api::virtio::Link;
use cardcage_plugin_api::*;

/// virtio device ID (virtio 1.2, section 5).
const ENTROPY_DEVICE: u32 = 4;
/// The one queue (virtio 1.2, section 5.4.2).
const REQUESTS: u16 = 0;
const QUEUE_SIZE: u16 = 8;
/// Bytes for one chain at most: a driver could otherwise keep the host busy with one chain of 4 GiB.
const CHAIN_LIMIT: u64 = 64 << 10;
/// Bytes that are fetched from the host at once.
const PIECE: usize = 4096;
/// `max-bytes` without a limit.
const UNLIMITED: u64 = i64::MAX as u64;

/// What users can set.
#[derive(DeviceProperties)]
struct Config {
    /// Random bytes that the guest may take in each period
    #[prop(default = 9223372036854775807, range = 0..=9223372036854775807, unit = "bytes", name = "max-bytes")]
    max_bytes: u64,
    /// Length of a period
    #[prop(default = 65536, range = 1..=0xffff_ffff, unit = "ms")]
    period: u32,
}

struct Entropy {
    config: Config,
    queue: Option<VirtQueue>,
    link: Option<Link>,
    timer: Option<Timer>,
    /// Bytes that are left in this period.
    quota: u64,
    /// When the period ends; none has begun if there is no such time.
    period_end: Option<u64>,
    running: bool,
    requests: u64,
    bytes: u64,
}

impl Entropy {
    /// Fills what is available and what the quota allows.
    fn serve(&mut self, ctx: &Context) -> Result<()> {
        let Some(queue) = self.queue.as_mut().filter(|_| self.running) else { return Ok(()) };
        let memory = ctx.memory();
        let mut served = false;
        while self.quota > 0 {
            let Some(chain) = queue.pop(&memory)? else { break };
            let mut writer = chain.writer(&memory)?;
            let wanted = (writer.available_bytes() as u64).min(self.quota).min(CHAIN_LIMIT);
            let mut left = wanted as usize;
            let mut piece = [0; PIECE];
            while left > 0 {
                let now = left.min(PIECE);
                ctx.fill_random(&mut piece[..now]);
                writer.write_all(&piece[..now])?;
                left -= now;
            }
            queue.push(&memory, chain.head(), wanted as u32)?;
            served = true;
            if self.config.max_bytes < UNLIMITED {
                self.quota -= wanted;
            }
            self.requests = self.requests.saturating_add(1);
            self.bytes = self.bytes.saturating_add(wanted);
        }
        if served {
            queue.notify(&memory)?;
        }
        self.begin_period(ctx);
        Ok(())
    }

    /// Serves outside of a notification.
    fn serve_unasked(&mut self, ctx: &Context) {
        if let Err(e) = self.serve(ctx) {
            log::warn!("{e}; the device needs to be reset");
            if let Some(link) = &self.link {
                link.needs_reset();
            }
        }
    }

    /// A period begins with the first bytes that are taken.
    fn begin_period(&mut self, ctx: &Context) {
        if self.period_end.is_none() && self.quota < self.config.max_bytes {
            let end = ctx.now(Clock::Virtual).saturating_add(u64::from(self.config.period) * 1_000_000);
            self.arm(Some(end));
        }
    }

    fn arm(&mut self, end: Option<u64>) {
        self.period_end = end;
        match (&self.timer, end) {
            (Some(timer), Some(at)) => timer.arm(at),
            (Some(timer), None) => timer.cancel(),
            (None, _) => {}
        }
    }
}

impl Device for Entropy {
    const INFO: DeviceInfo = DeviceInfo::new("virtio-rng", BusKind::Virtio, Category::Misc, "virtio entropy source")
        .hotpluggable()
        .migratable(1);
    type Config = Config;

    fn new(config: Config, _: &Context) -> Result<Self> {
        let quota = config.max_bytes;
        Ok(Self {
            config,
            queue: None,
            link: None,
            timer: None,
            quota,
            period_end: None,
            running: true,
            requests: 0,
            bytes: 0,
        })
    }
    fn realize(&mut self, _: &mut Bus, ctx: &Context) -> Result<()> {
        self.timer = Some(ctx.timer(0));
        Ok(())
    }
    fn reset(&mut self, _: ResetKind, ctx: &Context) {
        self.driver_reset(ctx);
    }

    fn timer(&mut self, _: u64, ctx: &Context) {
        self.period_end = None;
        self.quota = self.config.max_bytes;
        self.serve_unasked(ctx);
    }
    fn run_state(&mut self, running: bool, ctx: &Context) {
        self.running = running;
        self.serve_unasked(ctx);
    }

    fn save(&mut self, state: &mut StateWriter) -> Result<()> {
        state.section("quota", 1, |s| {
            s.u64(self.quota);
            s.bool(self.period_end.is_some());
            s.u64(self.period_end.unwrap_or(0));
        });
        if let Some(queue) = &self.queue {
            state.section("requests", 1, |s| queue.save(s));
        }
        Ok(())
    }
    fn load(&mut self, state: &StateReader, _: &Context) -> Result<()> {
        let mut s = state.section("quota", 1)?;
        self.quota = s.u64()?.min(self.config.max_bytes);
        let end = (s.bool()?, s.u64()?);
        s.end()?;
        self.arm(end.0.then_some(end.1));
        if let Some(queue) = &mut self.queue {
            let mut s = state.section("requests", 1)?;
            queue.load(&mut s)?;
            s.end()?;
        }
        // What is available is served when the machine runs.
        self.running = false;
        Ok(())
    }

    fn inspect(&self) -> json::Object {
        json::Object::new().field("active", self.queue.is_some()).field("quota-bytes", self.quota)
    }
    fn stats(&self) -> json::Object {
        json::Object::new().field("requests", self.requests).field("bytes", self.bytes)
    }
}

impl VirtioDevice for Entropy {
    const DEVICE_ID: u32 = ENTROPY_DEVICE;

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }
    fn activate(&mut self, mut driver: Driver, _: &Context) -> Result<()> {
        self.queue = driver.take_queue(REQUESTS);
        self.link = Some(driver.link);
        Ok(())
    }
    fn notified(&mut self, _queue: u16, ctx: &Context) -> Result<()> {
        self.serve(ctx)
    }
    fn driver_reset(&mut self, _: &Context) {
        (self.queue, self.link) = (None, None);
    }
}

plugin! { virtio: [Entropy] }

#[cfg(test)]
mod tests {
    use super::*;
    use cardcage_plugin_api::testing::*;

    const MS: u64 = 1_000_000;

    fn device(properties: &[(&str, &str)]) -> TestVirtio {
        let mut device = TestVirtio::new::<Entropy>(&TestHost::new(), properties).unwrap();
        device.start(u64::MAX).unwrap();
        device
    }

    #[test]
    fn buffers_come_back_full_of_random_bytes() {
        let mut device = device(&[]);
        let (a, b) = (device.add(0, &[], &[16, 7]), device.add(0, &[], &[64]));
        device.kick(0);
        assert_eq!(device.used(0), [Used { head: a.head, len: 23 }, Used { head: b.head, len: 64 }]);
        assert_eq!(device.interrupts(0), 1);
        let bytes = device.written(&b);
        assert!(bytes.iter().any(|&x| x != 0));
        assert_ne!(device.written(&a)[..8], bytes[..8]);
        assert_eq!(device.stats(), r#"{"requests":2,"bytes":87}"#);
    }

    #[test]
    fn a_huge_buffer_is_given_back_partly_filled() {
        let mut device = device(&[]);
        let buffer = device.add(0, &[], &[1 << 20]);
        device.kick(0);
        assert_eq!(device.used(0), [Used { head: buffer.head, len: 64 << 10 }]);
    }

    #[test]
    fn a_buffer_without_writable_parts_comes_back_empty() {
        let mut device = device(&[]);
        let buffer = device.add(0, &[b"?"], &[]);
        device.kick(0);
        assert_eq!(device.used(0), [Used { head: buffer.head, len: 0 }]);
    }

    #[test]
    fn the_quota_of_a_period_is_not_exceeded() {
        let mut device = device(&[("max-bytes", "24"), ("period", "1000")]);
        let heads: Vec<_> = (0..4).map(|_| device.add(0, &[], &[16]).head).collect();
        device.kick(0);
        assert_eq!(device.used(0), [Used { head: heads[0], len: 16 }, Used { head: heads[1], len: 8 }]);
        device.advance(999 * MS);
        device.kick(0);
        assert_eq!(device.used(0), []);
        device.advance(MS);
        assert_eq!(device.used(0), [Used { head: heads[2], len: 16 }, Used { head: heads[3], len: 8 }]);
    }

    #[test]
    fn an_idle_device_lets_no_timer_run() {
        let device = device(&[("max-bytes", "24")]);
        assert_eq!(device.host().next_deadline(), None);
    }

    #[test]
    fn a_buffer_outside_of_ram_makes_the_device_ask_for_a_reset() {
        let mut device = device(&[]);
        device.add_parts(0, &[(1 << 40, 16, DESC_WRITE)]);
        device.kick(0);
        assert!(device.needs_reset());
        device.driver_reset();
        device.start(u64::MAX).unwrap();
        device.add(0, &[], &[16]);
        device.kick(0);
        assert_eq!(device.used(0).len(), 1);
    }

    #[test]
    fn a_stopped_machine_gets_no_bytes_until_it_goes_on() {
        let mut device = device(&[]);
        device.set_running(false);
        device.add(0, &[], &[16]);
        device.kick(0);
        assert_eq!(device.used(0), []);
        device.set_running(true);
        assert_eq!(device.used(0).len(), 1);
    }

    #[test]
    fn waiting_buffers_and_the_quota_move_with_the_device() {
        let mut device = device(&[("max-bytes", "16"), ("period", "1000")]);
        device.add(0, &[], &[16]);
        let waiting = device.add(0, &[], &[4]);
        device.kick(0);
        device.used(0);
        let mut next = device.migrate().unwrap();
        assert_eq!(next.used(0), []);
        next.advance(1000 * MS);
        assert_eq!(next.used(0), [Used { head: waiting.head, len: 4 }]);
    }

    #[test]
    fn a_period_of_zero_is_refused() {
        let refused = TestVirtio::new::<Entropy>(&TestHost::new(), &[("period", "0")]).err().unwrap();
        assert_eq!(refused.to_string(), "property 'period' is 0, allowed is 1..=4294967295");
    }

    #[test]
    fn it_conforms() {
        conformance::check_virtio::<Entropy>(TestHost::new, &[]);
        conformance::check_virtio::<Entropy>(TestHost::new, &[("max-bytes", "1000"), ("period", "1")]);
    }
}
