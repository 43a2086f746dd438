//! Guest RAM and the address spaces that route accesses to devices.
//!
//! [`GuestRam`] is the memory itself: regions of a memfd, each with two bitmaps of one bit per 4 KiB page.
//! [`AddressSpace`] says who answers at an address that is not RAM.
//!
//! # Who may touch a byte, and how
//! Guest RAM is shared between vCPUs, devices and the host, without locks, as on hardware. Nothing here ever hands out
//! a Rust reference to it: bytes move by copies through raw pointers, and pointers stay valid as long as the
//! [`GuestRam`] lives.
//!
//! # The two bitmaps
//! * **dirty**: a page that the host or a device wrote. Devices set it through the plugin interface's memory view.
//! * **watch**: a page whose writes somebody wants to hear of. The software CPU watches pages that it holds decoded
//!   code of. A writer sets the dirty bit *after* the bytes, then looks at the watch bit, and counts a hit in
//!   [`GuestRam::watch_hits`] if it is set; the watcher sets the watch bit *before* it reads the bytes. One of the two
//!   therefore always sees the other.

mod address_space;
mod ram;

pub use address_space::{AddressSpace, IoHandler, MapError};
pub use ram::{GuestRam, OutOfRange, PAGE_SHIFT, PAGE_SIZE, RamError, RamRegion};
