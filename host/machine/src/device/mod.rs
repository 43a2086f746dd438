//! Devices: from a user's wish to something that the guest sees, and back.

mod block;
mod chardev;
mod host;
mod plan;
mod reactor;
mod slot;
mod table;
mod virtio;

pub(crate) use plan::AcpiDevice;
pub(crate) use slot::{RegionHandler, Slot};
pub(crate) use table::DeviceTable;
pub use table::{DeviceError, DeviceOptions};
