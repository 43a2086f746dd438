//! A place for one device object of a plugin: what everybody who calls the device holds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use cardcage_memory::IoHandler;
use cardcage_plugin_abi::DeviceObj;

/// Holds the device object. Calls go through [`Slot::call`]; after [`Slot::close`] they reach nobody.
pub(crate) struct Slot {
    id: String,
    kind: String,
    object: OnceLock<DeviceObj>,
    open: AtomicBool,
    broken: Mutex<Option<String>>,
}

impl Slot {
    pub(crate) fn new(id: &str, kind: &str) -> Self {
        Self {
            id: id.into(),
            kind: kind.into(),
            object: OnceLock::new(),
            open: AtomicBool::new(false),
            broken: Mutex::new(None),
        }
    }

    /// The id that the user gave, or a made-up name.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
    /// Name of the kind.
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// Puts the object in. Events reach it from now on.
    pub(crate) fn fill(&self, object: DeviceObj) {
        if self.object.set(object).is_ok() {
            self.open.store(true, Ordering::Release);
        }
    }

    /// Calls the device; `None` if there is none, or none any more.
    #[inline]
    pub(crate) fn call<R>(&self, f: impl FnOnce(&DeviceObj) -> R) -> Option<R> {
        if !self.open.load(Ordering::Acquire) {
            return None;
        }
        self.object.get().map(f)
    }

    /// No call starts any more.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::Release);
    }

    pub(crate) fn event(&self, kind: u32, token: u64, data: u64) {
        self.call(|d| d.event(kind, token, data));
    }

    /// Remembers why the device broke; true the first time.
    pub(crate) fn set_broken(&self, why: &str) -> bool {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        let first = broken.is_none();
        broken.get_or_insert_with(|| why.into());
        first
    }
    /// Why the device is broken, if it is.
    pub(crate) fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One region of a device, as the address spaces call it.
pub(crate) struct RegionHandler {
    pub(crate) slot: std::sync::Arc<Slot>,
    pub(crate) region: u32,
}

impl IoHandler for RegionHandler {
    #[inline]
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mask = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        self.slot.call(|d| d.read(self.region, offset, size)).unwrap_or(u64::MAX) & mask
    }
    #[inline]
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.slot.call(|d| d.write(self.region, offset, size, value));
    }
}
