//! The virtio transports (virtio 1.2, chapter 4): how a virtio device, which knows only features, configuration space
//! and queues, appears to the guest.
//!
//! * [`VirtioDevice`]: the device, as a transport sees it.
//! * [`Core`]: what all transports share: status, feature negotiation, queue registers, interrupts.
//! * [`pci`]: virtio-pci, modern and transitional (with the legacy registers in an I/O BAR).
//! * [`mmio`]: virtio-mmio, version 2.
//!
//! Left out: packed rings, VIRTIO_F_RING_RESET, VIRTIO_F_NOTIFICATION_DATA and shared memory regions; none is offered.

mod core;
mod legacy;
pub mod mmio;
pub mod pci;
#[cfg(test)]
mod tests;

pub use crate::core::{Core, CoreState, QueueState, StateError};

use std::sync::Arc;

/// VIRTIO_F_VERSION_1 (virtio 1.2, section 6).
pub const F_VERSION_1: u64 = 1 << 32;
/// "No vector" in the MSI-X vector registers (virtio 1.2, section 4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

/// A virtqueue that the driver has set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of the queue.
    pub index: u16,
    /// Number of descriptors.
    pub size: u16,
    /// Guest-physical address of the descriptor area.
    pub desc: u64,
    /// Guest-physical address of the driver area.
    pub avail: u64,
    /// Guest-physical address of the device area.
    pub used: u64,
}

/// The way from a device to its driver. Called from any thread.
pub trait Link: Send + Sync {
    /// Buffers of this queue were used.
    fn queue_interrupt(&self, queue: u16);
    /// The configuration space changed.
    fn config_interrupt(&self);
    /// The device cannot go on until the driver resets it.
    fn needs_reset(&self);
}

/// A virtio device, as a transport sees it. Called from vCPU threads, with no lock of the transport held.
pub trait VirtioDevice: Send + Sync {
    /// Device-specific features that are offered.
    fn features(&self) -> u64;
    /// Largest size of each queue.
    fn queue_sizes(&self) -> Vec<u16>;
    /// Reads the configuration space; what lies beyond it reads as zero.
    fn config_read(&self, offset: u32, data: &mut [u8]);
    /// Writes the configuration space.
    fn config_write(&self, offset: u32, data: &[u8]);
    /// The driver is ready. An error sets DEVICE_NEEDS_RESET.
    fn activate(&self, features: u64, queues: &[QueueSetup], link: Arc<dyn Link>) -> Result<(), String>;
    /// The driver has made buffers available. Must not block: the work belongs on another thread.
    fn notify(&self, queue: u16);
    /// Forget the queues. When this returns, the device does not touch guest memory any more.
    fn reset(&self);
}

/// The transport's way to interrupt the guest.
pub(crate) trait Interrupt: Send + Sync {
    /// Sends `vector` if the driver has chosen messages; false if it wants the line.
    fn message(&self, vector: u16) -> bool;
    /// Drives the line.
    fn set_line(&self, level: bool);
}
