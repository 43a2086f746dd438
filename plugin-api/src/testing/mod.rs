//! Tests for devices without a VM, behind the feature `testing`.
//!
//! A [`TestHost`] is a host in a box: RAM, a clock that stands still until the test moves it, and records of all that a
//! device does. A [`TestDevice`] is one device on it, made and called through the same binary interface that a VM uses;
//! [`TestVirtio`] adds a driver that lays out queues. [`conformance`] has checks that every device should pass.
//!
//! In Cargo.toml:
//!
//! ```text
//! [dev-dependencies]
//! cardcage-plugin-api = { version = "1", features = ["testing"] }
//! ```
//!
//! ```
//! use cardcage_plugin_api::{testing::*, *};
//!
//! /// A port that says how many milliseconds the machine has run, and interrupts every second.
//! struct Uptime(Option<(Timer, Irq)>);
//!
//! impl Device for Uptime {
//!     const INFO: DeviceInfo = DeviceInfo::new("uptime", BusKind::Isa, Category::Misc, "Tells the time");
//!     type Config = ();
//!     fn new(_: (), _: &Context) -> Result<Self> {
//!         Ok(Self(None))
//!     }
//!     fn realize(&mut self, bus: &mut Bus, ctx: &Context) -> Result<()> {
//!         bus.pio(0x300, 4)?;
//!         let timer = ctx.timer(0);
//!         timer.arm(1_000_000_000);
//!         self.0 = Some((timer, bus.isa_irq(5)?));
//!         Ok(())
//!     }
//!     fn read(&mut self, _: Region, _: u64, _: u8, ctx: &Context) -> u64 {
//!         ctx.now(Clock::Virtual) / 1_000_000
//!     }
//!     fn timer(&mut self, _: u64, ctx: &Context) {
//!         if let Some((timer, irq)) = &self.0 {
//!             irq.pulse();
//!             timer.arm(ctx.now(Clock::Virtual) + 1_000_000_000);
//!         }
//!     }
//! }
//!
//! let host = TestHost::new();
//! let mut device = TestDevice::new::<Uptime>(&host, &[]).unwrap();
//! device.advance(2_500_000_000);
//! assert_eq!(device.inl(0x300), 2500);
//! assert_eq!(host.irq_edges(5), 2);
//!
//! conformance::check::<Uptime>(TestHost::new, &[]);
//! ```

pub mod conformance;
mod device;
mod disk;
mod host;
mod ram;
mod random;
mod services;
mod virtio;

pub use device::{SavedState, TestDevice};
pub use disk::{DiskOp, TestDisk};
pub use host::TestHost;
pub use random::TestRandom;
pub use virtio::{Buffer, DESC_NEXT, DESC_WRITE, TestVirtio, Used};
