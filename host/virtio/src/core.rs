//! What all transports share: device status, feature negotiation and queue registers (virtio 1.2, chapters 2 and 3).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{F_VERSION_1, Interrupt, Link, NO_VECTOR, QueueSetup, VirtioDevice};

/// Device status bits (virtio 1.2, section 2.1).
pub(crate) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 0x40;
    pub(crate) const FAILED: u8 = 0x80;
}

/// Interrupt status bits (virtio 1.2, section 4.1.4.5).
pub(crate) mod isr {
    pub(crate) const QUEUE: u8 = 1;
    pub(crate) const CONFIG: u8 = 2;
}

/// Registers of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Size that the driver chose.
    pub size: u16,
    /// Whether the driver enabled it.
    pub enabled: bool,
    /// Descriptor area.
    pub desc: u64,
    /// Driver area.
    pub avail: u64,
    /// Device area.
    pub used: u64,
    /// MSI-X vector.
    pub vector: u16,
}

/// Everything of a transport that a guest can have changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    /// Version of this layout.
    pub version: u32,
    /// Device status.
    pub status: u8,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// Feature selectors: device, driver.
    pub feature_select: [u32; 2],
    /// Queue selector.
    pub queue_select: u16,
    /// Interrupt status.
    pub isr: u8,
    /// MSI-X vector for configuration changes.
    pub config_vector: u16,
    /// The queues.
    pub queues: Vec<QueueState>,
}

/// A saved transport that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Saved by a newer program.
    #[error("virtio transport state has version {0}; this program reads up to {version}", version = Core::STATE_VERSION)]
    Version(u32),
    /// Another number of queues.
    #[error("virtio transport state has {found} queues, the device has {expected}")]
    Queues {
        /// In the state.
        found: usize,
        /// In the device.
        expected: usize,
    },
    /// The device refused the queues.
    #[error("the device refuses the saved queues: {0}")]
    Activate(String),
}

struct Registers {
    status: u8,
    driver_features: u64,
    feature_select: [u32; 2],
    queue_select: u16,
    queues: Vec<QueueState>,
}

/// Status, features and queues of one device, whatever the transport.
pub struct Core {
    device: Arc<dyn VirtioDevice>,
    name: String,
    offered: u64,
    max_sizes: Vec<u16>,
    registers: Mutex<Registers>,
    /// Held while the status changes, which can call into the device.
    transition: Mutex<()>,
    active: AtomicBool,
    /// Interrupt status; held while the line follows it.
    isr: Mutex<u8>,
    generation: AtomicU8,
    config_vector: AtomicU16,
    vectors: Vec<AtomicU16>,
    interrupt: OnceLock<Arc<dyn Interrupt>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Newest state that this program reads and writes.
    pub const STATE_VERSION: u32 = 1;

    pub(crate) fn new(name: &str, device: Arc<dyn VirtioDevice>, transport_features: u64) -> Arc<Self> {
        let max_sizes = device.queue_sizes();
        let queues = max_sizes.iter().map(|&size| blank_queue(size)).collect();
        Arc::new(Self {
            name: name.into(),
            offered: device.features() | transport_features,
            vectors: max_sizes.iter().map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            max_sizes,
            registers: Mutex::new(Registers {
                status: 0,
                driver_features: 0,
                feature_select: [0; 2],
                queue_select: 0,
                queues,
            }),
            transition: Mutex::new(()),
            active: AtomicBool::new(false),
            isr: Mutex::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            interrupt: OnceLock::new(),
            device,
        })
    }

    pub(crate) fn connect(&self, interrupt: Arc<dyn Interrupt>) {
        let _ = self.interrupt.set(interrupt);
    }

    pub(crate) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    pub(crate) fn queue_count(&self) -> u16 {
        self.max_sizes.len() as u16
    }

    /// Features that are offered, transport's included.
    pub fn offered_features(&self) -> u64 {
        self.offered
    }

    // ---- features

    pub(crate) fn feature_select(&self, driver: bool) -> u32 {
        lock(&self.registers).feature_select[usize::from(driver)]
    }
    pub(crate) fn set_feature_select(&self, driver: bool, select: u32) {
        lock(&self.registers).feature_select[usize::from(driver)] = select;
    }
    /// The word of the offered features that the driver has selected.
    pub(crate) fn device_features(&self) -> u32 {
        word(self.offered, lock(&self.registers).feature_select[0])
    }
    pub(crate) fn driver_features(&self) -> u32 {
        let r = lock(&self.registers);
        word(r.driver_features, r.feature_select[1])
    }
    pub(crate) fn set_driver_features(&self, value: u32) {
        let mut r = lock(&self.registers);
        if r.status & (status::FEATURES_OK | status::DRIVER_OK) != 0 {
            return;
        }
        match r.feature_select[1] {
            0 => r.driver_features = r.driver_features & !0xffff_ffff | u64::from(value),
            1 => r.driver_features = r.driver_features & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }
    /// The legacy interface has 32 bits, without selection and FEATURES_OK (virtio 1.2, section 2.2.3).
    pub(crate) fn set_legacy_features(&self, value: u32) {
        let mut r = lock(&self.registers);
        r.driver_features = u64::from(value) & self.offered;
    }
    pub(crate) fn legacy_features(&self) -> u32 {
        lock(&self.registers).driver_features as u32
    }

    // ---- status

    pub(crate) fn status(&self) -> u8 {
        lock(&self.registers).status
    }

    /// A write of the status register: 0 resets; bits are only ever added.
    pub(crate) fn set_status(self: &Arc<Self>, value: u8, legacy: bool) {
        let _transition = lock(&self.transition);
        if value == 0 {
            self.reset_locked();
            return;
        }
        let mut r = lock(&self.registers);
        let mut new = r.status | value;
        let added = new & !r.status;
        if added & status::FEATURES_OK != 0 && !self.features_are_acceptable(r.driver_features, legacy) {
            new &= !status::FEATURES_OK;
        }
        r.status = new;
        let negotiated = legacy || new & status::FEATURES_OK != 0;
        if added & status::DRIVER_OK == 0 || !negotiated || new & (status::FAILED | status::NEEDS_RESET) != 0 {
            return;
        }
        let (features, queues) = (r.driver_features, setups(&r.queues));
        drop(r);
        if let Err(e) = self.activate(features, &queues) {
            warn!("{}: {e}; the device waits to be reset", self.name);
            self.needs_reset();
        }
    }

    fn activate(self: &Arc<Self>, features: u64, queues: &[QueueSetup]) -> Result<(), String> {
        let link: Arc<dyn Link> = self.clone();
        self.device.activate(features, queues, link)?;
        self.active.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn features_are_acceptable(&self, driver: u64, legacy: bool) -> bool {
        driver & !self.offered == 0 && (legacy || driver & F_VERSION_1 != 0)
    }

    /// Back to the state after power on (virtio 1.2, section 2.4).
    pub fn reset(&self) {
        let _transition = lock(&self.transition);
        self.reset_locked();
    }

    fn reset_locked(&self) {
        self.active.store(false, Ordering::SeqCst);
        self.device.reset();
        let mut r = lock(&self.registers);
        r.status = 0;
        r.driver_features = 0;
        r.feature_select = [0; 2];
        r.queue_select = 0;
        for (q, &size) in r.queues.iter_mut().zip(&self.max_sizes) {
            *q = blank_queue(size);
        }
        drop(r);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.vectors.iter().for_each(|v| v.store(NO_VECTOR, Ordering::SeqCst));
        self.acknowledge_isr(0xff);
    }

    // ---- queues

    pub(crate) fn queue_select(&self) -> u16 {
        lock(&self.registers).queue_select
    }
    pub(crate) fn select_queue(&self, queue: u16) {
        lock(&self.registers).queue_select = queue;
    }
    /// The selected queue with its largest size; none if there is no such queue.
    pub(crate) fn selected(&self) -> Option<(QueueState, u16)> {
        let r = lock(&self.registers);
        let at = usize::from(r.queue_select);
        Some((*r.queues.get(at)?, *self.max_sizes.get(at)?))
    }
    /// Changes the selected queue. Addresses and size are fixed while it is enabled.
    pub(crate) fn change_selected(&self, change: impl FnOnce(&mut QueueState)) {
        let mut r = lock(&self.registers);
        let at = usize::from(r.queue_select);
        if let Some(q) = r.queues.get_mut(at).filter(|q| !q.enabled) {
            change(q);
        }
    }
    pub(crate) fn set_selected_size(&self, size: u16) {
        let max = self.selected().map_or(0, |(_, max)| max);
        if size.is_power_of_two() && size <= max {
            self.change_selected(|q| q.size = size);
        }
    }
    pub(crate) fn disable_selected(&self) {
        let mut r = lock(&self.registers);
        let at = usize::from(r.queue_select);
        if let Some(q) = r.queues.get_mut(at) {
            q.enabled = false;
        }
    }

    /// The driver's notification.
    #[inline]
    pub(crate) fn notify(&self, queue: u16) {
        if self.active.load(Ordering::Acquire) && queue < self.queue_count() {
            self.device.notify(queue);
        }
    }

    // ---- interrupts

    pub(crate) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }
    pub(crate) fn set_config_vector(&self, vector: u16, limit: u16) {
        self.config_vector.store(if vector < limit { vector } else { NO_VECTOR }, Ordering::SeqCst);
    }
    pub(crate) fn queue_vector(&self) -> u16 {
        self.vectors.get(usize::from(self.queue_select())).map_or(NO_VECTOR, |v| v.load(Ordering::SeqCst))
    }
    pub(crate) fn set_queue_vector(&self, vector: u16, limit: u16) {
        if let Some(v) = self.vectors.get(usize::from(self.queue_select())) {
            v.store(if vector < limit { vector } else { NO_VECTOR }, Ordering::SeqCst);
        }
    }
    pub(crate) fn isr(&self) -> u8 {
        *lock(&self.isr)
    }
    /// Takes bits out of the interrupt status, and gives what it was; the line goes down when none is left.
    pub(crate) fn acknowledge_isr(&self, bits: u8) -> u8 {
        let mut isr = lock(&self.isr);
        let before = *isr;
        *isr &= !bits;
        if *isr == 0
            && let Some(i) = self.interrupt.get()
        {
            i.set_line(false);
        }
        before
    }
    /// Changes whenever the configuration space has (virtio 1.2, section 2.5.1).
    pub(crate) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    fn deliver(&self, vector: u16, bits: u8) {
        let Some(i) = self.interrupt.get() else { return };
        if !i.message(vector) {
            let mut isr = lock(&self.isr);
            *isr |= bits;
            i.set_line(true);
        }
    }

    // ---- saving

    /// All registers.
    pub fn save(&self) -> CoreState {
        let r = lock(&self.registers);
        let mut queues = r.queues.clone();
        for (q, v) in queues.iter_mut().zip(&self.vectors) {
            q.vector = v.load(Ordering::SeqCst);
        }
        CoreState {
            version: Self::STATE_VERSION,
            status: r.status,
            driver_features: r.driver_features,
            feature_select: r.feature_select,
            queue_select: r.queue_select,
            isr: self.isr(),
            config_vector: self.config_vector(),
            queues,
        }
    }

    /// Takes saved registers, and hands the queues to the device if the driver was ready.
    pub fn load(self: &Arc<Self>, state: &CoreState) -> Result<(), StateError> {
        if state.version > Self::STATE_VERSION {
            return Err(StateError::Version(state.version));
        }
        let (found, expected) = (state.queues.len(), self.max_sizes.len());
        if found != expected {
            return Err(StateError::Queues { found, expected });
        }
        let _transition = lock(&self.transition);
        self.reset_locked();
        let mut r = lock(&self.registers);
        r.status = state.status;
        r.driver_features = state.driver_features;
        r.feature_select = state.feature_select;
        r.queue_select = state.queue_select;
        r.queues.clone_from(&state.queues);
        let queues = setups(&r.queues);
        drop(r);
        for (v, q) in self.vectors.iter().zip(&state.queues) {
            v.store(q.vector, Ordering::SeqCst);
        }
        self.config_vector.store(state.config_vector, Ordering::SeqCst);
        *lock(&self.isr) = state.isr;
        if let Some(i) = self.interrupt.get() {
            i.set_line(state.isr != 0);
        }
        if state.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK {
            self.activate(state.driver_features, &queues).map_err(StateError::Activate)?;
        }
        Ok(())
    }
}

impl Link for Core {
    fn queue_interrupt(&self, queue: u16) {
        let vector = self.vectors.get(usize::from(queue)).map_or(NO_VECTOR, |v| v.load(Ordering::SeqCst));
        self.deliver(vector, isr::QUEUE);
    }
    fn config_interrupt(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        if self.status() & status::DRIVER_OK != 0 {
            self.deliver(self.config_vector(), isr::CONFIG);
        }
    }
    fn needs_reset(&self) {
        self.active.store(false, Ordering::SeqCst);
        lock(&self.registers).status |= status::NEEDS_RESET;
        self.config_interrupt();
    }
}

fn blank_queue(size: u16) -> QueueState {
    QueueState { size, enabled: false, desc: 0, avail: 0, used: 0, vector: NO_VECTOR }
}

fn setups(queues: &[QueueState]) -> Vec<QueueSetup> {
    let numbered = queues.iter().enumerate().filter(|(_, q)| q.enabled);
    numbered
        .map(|(i, q)| QueueSetup { index: i as u16, size: q.size, desc: q.desc, avail: q.avail, used: q.used })
        .collect()
}

fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
