//! What can be wrong with a function that is built, added or restored.

use crate::{BarKind, Devfn};

/// Why a function cannot be built, added or restored. Texts about slots are QEMU's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// Somebody sits there.
    #[error("PCI: slot {} function {} not available for {new}, in use by {present}", at.slot(), at.function())]
    InUse {
        /// Where.
        at: Devfn,
        /// Name of the function that was to be added.
        new: String,
        /// Name of the function that sits there, and its id.
        present: String,
    },
    /// The bus is full.
    #[error("PCI: no slot/function available for {new}, all in use or reserved")]
    Full {
        /// Name of the function that was to be added.
        new: String,
    },
    /// The guest has scanned the slot already.
    #[error(
        "PCI: slot {} function 0 already occupied by {present}, new func {new} cannot be exposed to guest.",
        at.slot()
    )]
    Hidden {
        /// Where the new function was to be.
        at: Devfn,
        /// Name of the function that was to be added.
        new: String,
        /// Name of function 0.
        present: String,
    },
    /// Function 0 says that it is the only one.
    #[error("PCI: single function device can't be populated in function {:x}.{:x}", at.slot(), at.function())]
    SingleFunction {
        /// Where the new function was to be.
        at: Devfn,
    },
    /// The new function 0 says that it is the only one, but others are there.
    #[error(
        "PCI: {:x}.0 indicates single function, but {:x}.{:x} is already populated.",
        populated.slot(),
        populated.slot(),
        populated.function()
    )]
    Populated {
        /// A function of that slot that is there.
        populated: Devfn,
    },
    /// A function is on a bus at most once.
    #[error("PCI: {name} was added to a bus before; build a new function for it")]
    AddedTwice {
        /// Name of the function.
        name: String,
    },
    /// A BAR that cannot be.
    #[error("PCI: {name}: BAR {index} of {size:#x} bytes ({kind}) {reason}")]
    Bar {
        /// Name of the function.
        name: String,
        /// Which BAR.
        index: usize,
        /// Its size in bytes.
        size: u64,
        /// Its kind.
        kind: BarKind,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The capability list is full.
    #[error("PCI: {name}: capability {id:#04x} of {size} bytes does not fit into the configuration space at {at:#x}")]
    Capability {
        /// Name of the function.
        name: String,
        /// Capability ID.
        id: u8,
        /// Its size in bytes.
        size: usize,
        /// Where it would have been.
        at: usize,
    },
    /// An MSI-X capability that cannot be.
    #[error("PCI: {name}: MSI-X {what}")]
    Msix {
        /// Name of the function.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// Saved state of another version.
    #[error("PCI: {name}: saved state of {what} has version {found}, this program reads up to version {supported}")]
    Version {
        /// Name of the function or part.
        name: String,
        /// Which part.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Newest version known.
        supported: u32,
    },
    /// Saved state of a function that is built differently.
    #[error("PCI: {name}: saved configuration differs at offset {offset:#x}: saved {saved:#04x}, here {here:#04x}")]
    Differs {
        /// Name of the function.
        name: String,
        /// First byte at fault.
        offset: usize,
        /// Saved byte.
        saved: u8,
        /// Byte of this function.
        here: u8,
    },
    /// Saved state of another shape.
    #[error("PCI: {name}: saved {what} has {found} bytes, {expected} were expected")]
    Length {
        /// Name of the function.
        name: String,
        /// Which part.
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes expected.
        expected: usize,
    },
}
