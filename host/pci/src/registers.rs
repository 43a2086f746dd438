//! Offsets and bits of the configuration header (PCI 3.0, chapter 6).

use bitflags::bitflags;

/// Vendor ID, 16 bits.
pub const VENDOR_ID: u16 = 0x00;
/// Device ID, 16 bits.
pub const DEVICE_ID: u16 = 0x02;
/// Command, 16 bits; see [`Command`].
pub const COMMAND: u16 = 0x04;
/// Status, 16 bits; see [`Status`].
pub const STATUS: u16 = 0x06;
/// Revision ID, 8 bits.
pub const REVISION_ID: u16 = 0x08;
/// Class code: programming interface, subclass, base class.
pub const CLASS_CODE: u16 = 0x09;
/// Header type, 8 bits; bit 7 says that the slot has several functions.
pub const HEADER_TYPE: u16 = 0x0e;
/// First of six base address registers of 32 bits.
pub const BAR0: u16 = 0x10;
/// Subsystem vendor ID, 16 bits.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Subsystem ID, 16 bits.
pub const SUBSYSTEM_ID: u16 = 0x2e;
/// Offset of the first capability, 8 bits.
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt line, 8 bits of storage for system software.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin, 8 bits: 0 for none, 1 for INTA#.
pub const INTERRUPT_PIN: u16 = 0x3d;
/// First byte that the header leaves to the device.
pub const HEADER_END: u16 = 0x40;

/// Header type bit: the slot has several functions.
pub const MULTIFUNCTION: u8 = 0x80;

/// Capability ID of MSI-X.
pub const CAP_MSIX: u8 = 0x11;
/// Capability ID of a vendor's own capability.
pub const CAP_VENDOR: u8 = 0x09;

bitflags! {
    /// The command register (PCI 3.0, section 6.2.2).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// Answers I/O accesses.
        const IO = 1 << 0;
        /// Answers memory accesses.
        const MEMORY = 1 << 1;
        /// May access memory by itself; MSIs are such accesses.
        const BUS_MASTER = 1 << 2;
        /// Parity error response.
        const PARITY = 1 << 6;
        /// SERR# enable.
        const SERR = 1 << 8;
        /// Does not assert its INTx line.
        const INTX_DISABLE = 1 << 10;
    }

    /// The status register (PCI 3.0, section 6.2.3).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u16 {
        /// The function wants to assert its INTx line.
        const INTERRUPT = 1 << 3;
        /// A capability list is there.
        const CAPABILITIES = 1 << 4;
        /// Fast back-to-back capable.
        const FAST_BACK = 1 << 7;
        /// DEVSEL# timing "medium".
        const DEVSEL_MEDIUM = 1 << 9;
        /// Errors, cleared by writing ones.
        const ERRORS = 0xf900;
    }
}
