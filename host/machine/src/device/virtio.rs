//! A plugin's virtio device, as the transports of `cardcage-virtio` call it.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use cardcage_eventloop::EventLoopHandle;
use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};
use cardcage_virtio::{Link, QueueSetup, VirtioDevice};

use super::slot::Slot;

/// Queues that one word of pending notifications covers; beyond, bits are shared.
const BITS: u16 = 64;

/// Passes calls on to the plugin; notifications go through the event loop, so that a vCPU does not wait for the work.
pub(crate) struct Adapter {
    slot: Arc<Slot>,
    /// A bit for each queue that was notified.
    pending: AtomicU64,
    queues: AtomicU16,
    event_loop: EventLoopHandle,
    me: Weak<Self>,
}

impl Adapter {
    pub(crate) fn new(slot: Arc<Slot>, event_loop: EventLoopHandle) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            slot,
            pending: AtomicU64::new(0),
            queues: AtomicU16::new(0),
            event_loop,
            me: me.clone(),
        })
    }

    fn run_pending(&self) {
        let pending = self.pending.swap(0, Ordering::AcqRel);
        let queues = self.queues.load(Ordering::Relaxed);
        for queue in (0..queues).filter(|q| pending >> (q % BITS) & 1 == 1) {
            self.slot.call(|d| d.virtio_notify(queue));
        }
    }
}

impl VirtioDevice for Adapter {
    fn features(&self) -> u64 {
        self.slot.call(|d| d.virtio_features()).unwrap_or(0)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let sizes = self.slot.call(|d| d.virtio_queues().into_vec()).unwrap_or_default();
        self.queues.store(sizes.len() as u16, Ordering::Relaxed);
        sizes
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) {
        if self.slot.call(|d| d.virtio_config_read(offset, RSliceMut::from_mut_slice(data))).is_none() {
            data.fill(0xff);
        }
    }

    fn config_write(&self, offset: u32, data: &[u8]) {
        self.slot.call(|d| d.virtio_config_write(offset, RSlice::from_slice(data)));
    }

    fn activate(&self, features: u64, queues: &[QueueSetup], link: Arc<dyn Link>) -> Result<(), String> {
        let queues = queues
            .iter()
            .map(|q| abi::QueueSetup { index: q.index, size: q.size, desc: q.desc, avail: q.avail, used: q.used })
            .collect();
        let link = abi::VirtioLinkAbi_TO::from_ptr(RArc::new(PluginLink(link)), TD_Opaque);
        let result = self.slot.call(|d| d.virtio_activate(features, queues, link));
        result.map_or(Err("the device is gone".into()), |r| r.into_result().map_err(|e| e.message.into()))
    }

    fn notify(&self, queue: u16) {
        if self.pending.fetch_or(1 << (queue % BITS), Ordering::AcqRel) == 0
            && let Some(me) = self.me.upgrade()
        {
            self.event_loop.defer(move || me.run_pending());
        }
    }

    fn reset(&self) {
        self.slot.call(|d| d.virtio_reset());
    }
}

struct PluginLink(Arc<dyn Link>);

impl abi::VirtioLinkAbi for PluginLink {
    fn queue_interrupt(&self, queue: u16) {
        self.0.queue_interrupt(queue);
    }
    fn config_interrupt(&self) {
        self.0.config_interrupt();
    }
    fn needs_reset(&self) {
        self.0.needs_reset();
    }
}
