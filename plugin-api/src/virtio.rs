//! virtio devices: features, configuration space and queues. The transports are the host's.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cardcage_plugin_abi as abi;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT, Reader, Writer};

use crate::context::{Context, GuestRange};
use crate::memory::{Address, Bytes, GuestAddress, GuestMemory};
use crate::state::{SectionReader, SectionWriter};
use crate::{Device, Error, Result};

/// VIRTIO_F_RING_INDIRECT_DESC: descriptors may point to tables (virtio 1.2, section 6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_RING_EVENT_IDX: notifications are suppressed by index (virtio 1.2, section 6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1: the device follows virtio 1.0 or later (virtio 1.2, section 6).
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;

/// The part of a virtio device beyond [`Device`].
///
/// One implementation gives two kinds: `NAME-pci` and `NAME-device` (virtio-mmio), where `NAME` is that of
/// [`Device::INFO`]. The host adds the transport's properties and features. [`Device::realize`] gets a bus on which
/// nothing can be registered; [`Device::read`] and [`Device::write`] are not called.
///
/// # Lifecycle of the queues
/// [`activate`](Self::activate) hands them over when the driver sets DRIVER_OK; [`driver_reset`](Self::driver_reset)
/// takes them back. In between, [`notified`](Self::notified) says that a queue has buffers. An error from any of them
/// sets DEVICE_NEEDS_RESET: the driver has broken the rules, and nothing more is done until it resets the device.
///
/// A restored device is activated first and gets [`Device::load`] afterwards; save each queue with
/// [`VirtQueue::save`].
#[expect(unused_variables, reason = "default methods ignore their arguments")]
pub trait VirtioDevice: Device {
    /// virtio device ID (virtio 1.2, section 5).
    const DEVICE_ID: u32;

    /// Device-specific feature bits that are offered, plus [`F_INDIRECT_DESC`] and [`F_EVENT_IDX`] as wanted.
    fn features(&self) -> u64 {
        F_INDIRECT_DESC | F_EVENT_IDX
    }

    /// The largest size of each queue: a power of two, at most 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads the device-specific configuration space. What lies beyond it reads as zero.
    fn config_read(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
    }

    /// Writes the device-specific configuration space.
    fn config_write(&mut self, offset: u32, data: &[u8], ctx: &Context) {}

    /// The driver is ready. Queues that it did not set up are absent.
    fn activate(&mut self, driver: Driver, ctx: &Context) -> Result<()>;

    /// The driver has made buffers available in this queue.
    fn notified(&mut self, queue: u16, ctx: &Context) -> Result<()>;

    /// The driver has reset the device: drop the queues. No guest memory is touched after the call returns; wait for
    /// requests that are in flight ([`Block::drain`](crate::Block::drain)).
    fn driver_reset(&mut self, ctx: &Context);
}

/// The driver's side, once it is ready.
pub struct Driver {
    /// The features that both sides agreed on.
    pub features: u64,
    /// The queues that it set up, in ascending order.
    pub queues: Vec<VirtQueue>,
    /// For interrupts outside of a queue.
    pub link: Link,
}

impl Driver {
    pub(crate) fn new(features: u64, setups: &[abi::QueueSetup], link: Arc<abi::VirtioLinkObj>) -> Result<Self> {
        let queues = setups.iter().map(|s| VirtQueue::new(s, features, link.clone())).collect::<Result<_>>()?;
        Ok(Self { features, queues, link: Link(link) })
    }

    /// Takes the queue with this number out of the set.
    pub fn take_queue(&mut self, index: u16) -> Option<VirtQueue> {
        let at = self.queues.iter().position(|q| q.index == index)?;
        Some(self.queues.remove(at))
    }
}

/// The way to the driver for what is not about a queue.
pub struct Link(Arc<abi::VirtioLinkObj>);

impl Link {
    /// The configuration space changed.
    pub fn config_changed(&self) {
        self.0.config_interrupt();
    }
    /// The device cannot go on until the driver resets it.
    pub fn needs_reset(&self) {
        self.0.needs_reset();
    }
}

/// A split virtqueue (virtio 1.2, section 2.7) that the driver has set up.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    link: Arc<abi::VirtioLinkObj>,
}

impl VirtQueue {
    fn new(setup: &abi::QueueSetup, features: u64, link: Arc<abi::VirtioLinkObj>) -> Result<Self> {
        let refuse = |what: &dyn std::fmt::Display| Error::new(format!("virtqueue {}: {what}", setup.index));
        let mut queue = Queue::new(setup.size).map_err(|e| refuse(&e))?;
        queue.try_set_desc_table_address(GuestAddress(setup.desc)).map_err(|e| refuse(&e))?;
        queue.try_set_avail_ring_address(GuestAddress(setup.avail)).map_err(|e| refuse(&e))?;
        queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(|e| refuse(&e))?;
        queue.set_event_idx(features & F_EVENT_IDX != 0);
        queue.set_ready(true);
        Ok(Self { index: setup.index, queue, link })
    }

    /// Number of the queue.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors: also the largest number of chains that an honest driver has in flight.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next available chain, if there is one.
    ///
    /// When there is none, the driver is asked to notify (and the ring is looked at once more, so that nothing that
    /// was added meanwhile is missed).
    #[inline]
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>> {
        if !self.queue.is_valid(&**memory) {
            return Err(self.broken(&"its rings are not in guest RAM"));
        }
        loop {
            let mut chains = self.queue.iter(memory.clone()).map_err(|e| Error::new(format!("virtqueue: {e}")))?;
            if let Some(chain) = chains.next() {
                return Ok(Some(Chain(chain)));
            }
            let more = self.queue.enable_notification(&**memory).map_err(|e| self.broken(&e))?;
            if !more {
                return Ok(None);
            }
        }
    }

    /// Returns a chain to the driver: `len` is the number of bytes that were written into it.
    #[inline]
    pub fn push(&mut self, memory: &GuestMemory, head: u16, len: u32) -> Result<()> {
        self.queue.add_used(&**memory, head, len).map_err(|e| self.broken(&e))
    }

    /// Interrupts the driver, if it wants to know of what was pushed.
    #[inline]
    pub fn notify(&mut self, memory: &GuestMemory) -> Result<()> {
        if self.queue.needs_notification(&**memory).map_err(|e| self.broken(&e))? && !self.is_muted(memory)? {
            self.link.queue_interrupt(self.index);
        }
        Ok(())
    }

    /// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, section 2.7.7), which virtio-queue does not look at. With event indices
    /// the flag has no meaning.
    #[inline]
    fn is_muted(&self, memory: &GuestMemory) -> Result<bool> {
        if self.queue.event_idx_enabled() {
            return Ok(false);
        }
        let flags = memory.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Acquire);
        Ok(u16::from_le(flags.map_err(|e| self.broken(&e))?) & NO_INTERRUPT != 0)
    }

    fn broken(&self, what: &dyn std::fmt::Display) -> Error {
        Error::new(format!("virtqueue {}: {what}", self.index))
    }

    /// Writes how far the queue has come.
    pub fn save(&self, section: &mut SectionWriter) {
        let state: QueueState = self.queue.state();
        section.u16(state.next_avail);
        section.u16(state.next_used);
    }

    /// Takes how far a saved queue had come.
    pub fn load(&mut self, section: &mut SectionReader<'_>) -> Result<()> {
        self.queue.set_next_avail(section.u16()?);
        self.queue.set_next_used(section.u16()?);
        Ok(())
    }
}

/// A chain of descriptors: one buffer of the driver.
pub struct Chain(DescriptorChain<GuestMemory>);

impl Chain {
    /// Names the chain when it is pushed back.
    pub fn head(&self) -> u16 {
        self.0.head_index()
    }

    /// Reads the device-readable part from its start, as one stream of bytes.
    pub fn reader<'a>(&self, memory: &'a GuestMemory) -> Result<Reader<'a, crate::memory::DirtyBitmap>> {
        Ok(self.0.clone().reader(memory.deref())?)
    }

    /// Writes the device-writable part from its start, as one stream of bytes.
    pub fn writer<'a>(&self, memory: &'a GuestMemory) -> Result<Writer<'a, crate::memory::DirtyBitmap>> {
        Ok(self.0.clone().writer(memory.deref())?)
    }

    /// All ranges in the order of the chain, each with whether the device may write it.
    pub fn ranges(&self) -> impl Iterator<Item = (GuestRange, bool)> + use<> {
        self.0.clone().map(|d| (range(d), d.is_write_only()))
    }

    /// The device-readable ranges, in order.
    pub fn readable(&self) -> impl Iterator<Item = GuestRange> + use<> {
        self.0.clone().readable().map(range)
    }

    /// The device-writable ranges, in order.
    pub fn writable(&self) -> impl Iterator<Item = GuestRange> + use<> {
        self.0.clone().writable().map(range)
    }
}

fn range(d: Descriptor) -> GuestRange {
    GuestRange { addr: d.addr().raw_value(), len: u64::from(d.len()) }
}
