//! Drives a machine's devices from a test, with no CPU: ports, memory, clock and interrupts over qtest, commands and
//! events over QMP, PCI configuration, and virtqueues laid out by hand.
//!
//! ```no_run
//! use cardcage_qtest_driver::{Machine, Pci};
//! use serde_json::json;
//!
//! let machine = Machine::start("cardcage", ["-machine", "pc", "-nodefaults", "-device", "virtio-rng-pci"]);
//! assert_eq!(machine.qmp(json!({"execute": "query-status"}))["running"], true);
//! let pci = Pci::new(&machine);
//! let rng = pci.find(0x1af4, 0x1005).expect("the device is there");
//! rng.enable();
//! machine.shutdown();
//! ```
//!
//! This is for tests: whatever does not go as expected panics with a text that names it. Where a refusal is what a test
//! looks for there is a method that returns it ([`Qtest::request`], [`Qmp::try_execute`]). No wait is without end:
//! sockets time out after [`PATIENCE`].

use std::time::Duration;

mod memory;
mod pci;
mod process;
mod qmp;
mod qtest;
pub mod virtio;
mod virtqueue;

pub use memory::GuestAllocator;
pub use pci::{Bar, Capability, Msix, Pci, PciDevice};
pub use process::Machine;
pub use qmp::Qmp;
pub use qtest::Qtest;
pub use virtqueue::{QueueLayout, Used, Virtqueue};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(50);
