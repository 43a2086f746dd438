//! The only crate that a cardcage plugin needs.
//!
//! A plugin is a shared library with kinds of device in it. Each kind describes itself (name, summary, bus,
//! properties with types, defaults and ranges), and that description is what `-device help`, QMP's
//! `query-available-devices` and the checks of the command line are made from.
//!
//! # A device in one page
//! A port that ends the VM, like QEMU's `isa-debug-exit`:
//!
//! ```
//! use cardcage_plugin_api::*;
//!
//! #[derive(DeviceProperties)]
//! struct Config {
//!     /// First port
//!     #[prop(default = "0x501")]
//!     iobase: u16,
//!     /// Number of ports
//!     #[prop(default = 2, range = 1..=8, unit = "bytes")]
//!     iosize: u16,
//! }
//!
//! struct DebugExit {
//!     config: Config,
//! }
//!
//! impl Device for DebugExit {
//!     const INFO: DeviceInfo =
//!         DeviceInfo::new("debug-exit", BusKind::Isa, Category::Misc, "Ends the VM when a port is written");
//!     type Config = Config;
//!
//!     fn new(config: Config, _: &Context) -> Result<Self> {
//!         Ok(Self { config })
//!     }
//!     fn realize(&mut self, bus: &mut Bus, _: &Context) -> Result<()> {
//!         bus.pio(self.config.iobase, self.config.iosize)?;
//!         Ok(())
//!     }
//!     fn read(&mut self, _: Region, _offset: u64, _size: u8, _: &Context) -> u64 {
//!         0
//!     }
//!     fn write(&mut self, _: Region, _offset: u64, _size: u8, value: u64, ctx: &Context) {
//!         log::info!("the guest ends the VM with {value}");
//!         ctx.request(Request::Exit(((value as i32) << 1) | 1));
//!     }
//! }
//!
//! plugin! { devices: [DebugExit] }
//! ```
//!
//! With `crate-type = ["cdylib"]` in Cargo.toml, `cargo build` makes a file that cardcage loads:
//!
//! ```text
//! cardcage --plugin target/debug/libdebug_exit.so -device debug-exit,help
//! cardcage --plugin target/debug/libdebug_exit.so -device debug-exit,iobase=0xf4 …
//! ```
//!
//! # Where to read on
//! * [`Device`]: the methods of a device, when they are called and by whom. Start with its lifecycle.
//! * [`properties`]: what users can set, and how types, defaults, ranges and choices are declared.
//! * [`VirtioDevice`]: features, configuration space and queues; the host brings virtio-pci and virtio-mmio.
//! * [`Context`]: what the host does for a device: memory, time, backends, events.
//! * [`Bus`]: ports, addresses, BARs and interrupts.
//! * [`state`]: saving and restoring.
//! * `testing` (with the feature of that name): a host in a box for your unit tests, and checks that every device
//!   should pass.
//!
//! Messages go through the `log` crate's macros ([`log`]); they appear in the VM's log with the device's id.
//!
//! # Rules that the compiler cannot check
//! * Plugins are built with `panic = "unwind"`, the default: a panic breaks one device, not the VM.
//! * A plugin is never unloaded. Statics live until the VM ends.
//! * Threads of your own are possible; join them in [`Device::unrealize`], and touch guest memory from them only while
//!   [`Device::run_state`] says that the machine runs.
//!
//! # Versions
//! The plugin API is version 1.0.0. A plugin works with every host of the same major version: methods that the older
//! side does not know have defaults.

extern crate self as cardcage_plugin_api;

#[cfg(panic = "abort")]
compile_error!("a cardcage plugin must be built with panic = \"unwind\": a panic must not take the whole VM down");

pub mod bytewise;
mod context;
mod device;
#[doc(hidden)]
pub mod export;
pub mod json;
mod logging;
pub mod memory;
pub mod properties;
mod shim;
pub mod state;
#[cfg(feature = "testing")]
pub mod testing;
pub mod virtio;

#[doc(hidden)]
pub use cardcage_plugin_abi as abi;
pub use cardcage_plugin_derive::DeviceProperties;
pub use context::{
    Block, BlockInfo, BlockRequest, Chardev, Clock, Context, GuestRange, Interest, Irq, Msix, Request, Timer,
};
pub use device::{BarKind, Bus, BusKind, Category, CharEvent, Device, DeviceInfo, PciId, Region, ResetKind, Unplug};
pub use log;
pub use virtio::{Chain, Driver, VirtQueue, VirtioDevice};

/// Why a device cannot do what it was asked: one sentence for the user, with the value at fault and what is allowed.
///
/// Every error type converts into it, so `?` works. It does not implement `std::error::Error` itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(String);

/// Result of what can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl<E: std::error::Error> From<E> for Error {
    fn from(e: E) -> Self {
        Self(e.to_string())
    }
}

fn from_abi<T>(result: abi::AbiResult<T>) -> Result<T> {
    result.into_result().map_err(|e| Error(e.message.into()))
}
