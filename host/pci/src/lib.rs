//! PCI for the `pc` machine: configuration space, BARs, MSI-X, INTx routing, and the functions that the board owns.
//!
//! Follows the PCI Local Bus Specification 3.0; the board's functions follow the 82441FX (i440FX), 82371SB (PIIX3) and
//! 82371AB (PIIX4) data sheets as far as guests use them.
//!
//! # Roles
//! * [`PciFunction`]: one function as the bus sees it: a [`ConfigSpace`], a handler per BAR, an interrupt line
//!   ([`Intx`]), an MSI-X table ([`Msix`]), and a [`PciHook`] of the device behind it.
//! * [`PciBus`]: bus 0. Functions are added and removed at any time; their BARs appear in the two
//!   [`AddressSpace`](cardcage_memory::AddressSpace)s as the guest programs them.
//! * [`InterruptRouter`]: slot and pin to PIRQ to GSI, wired-or.
//! * [`ConfigPorts`]: configuration mechanism #1, ports 0xcf8 to 0xcff.
//! * [`I440fx`], [`Piix3`], [`Piix4Pm`]: the functions without which a PC cannot run.
//!
//! # A device
//! ```
//! # use std::sync::Arc;
//! # use cardcage_memory::IoHandler;
//! use cardcage_pci::{BarKind, Identity, Intx, Msix, MsixLayout, PciError, PciFunction, Pin};
//!
//! fn function(registers: Arc<dyn IoHandler>) -> Result<Arc<PciFunction>, PciError> {
//!     let (layout, size) = MsixLayout::exclusive(4, 1);
//!     let (line, msix) = (Intx::new(), Msix::new("edu", layout)?);
//!     let mut function = PciFunction::builder("edu", Identity { vendor: 0x1234, device: 0x11e8, ..Identity::default() });
//!     function.bar(0, BarKind::Memory32 { prefetchable: false }, 0x1000, registers)?;
//!     function.msix(msix)?.intx(Pin::A, line);
//!     assert_eq!(size, 0x1000);
//!     Ok(function.build())
//! }
//! ```
//!
//! # Locks
//! Each function, line and table has a lock of its own, held for a few instructions. Hooks and BAR handlers are called
//! with none held. Held while the next is taken, in this order: BAR windows, configuration space; power management,
//! interrupt line, router, [`GsiSink`]. A sink must therefore not call back into this crate.

mod bar;
mod bus;
mod config;
mod config_ports;
mod devfn;
mod error;
mod function;
mod i440fx;
mod intx;
mod msix;
mod piix3;
mod piix4_pm;
mod pm_registers;
pub mod registers;
mod windows;

pub use bar::{Bar, BarKind, Space};
pub use bus::PciBus;
pub use config::{ConfigSize, ConfigSpace, Identity};
pub use config_ports::{CONFIG_PORTS, ConfigPorts};
pub use devfn::Devfn;
pub use error::PciError;
pub use function::{FunctionState, PciFunction, PciFunctionBuilder, PciHook, Window};
pub use i440fx::{I440fx, MapChanged};
pub use intx::{GsiSink, InterruptRouter, Intx, Pin};
pub use msix::{MsiSink, Msix, MsixLayout, MsixState};
pub use piix3::{Piix3, ResetControl};
pub use piix4_pm::{Piix4Pm, PmOptions, PowerSink};
pub use pm_registers::PmState;

use std::sync::{Mutex, MutexGuard};

/// Locks, also after a panic of another thread: every critical section here leaves its data consistent at each step.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
