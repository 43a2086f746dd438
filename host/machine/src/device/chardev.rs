//! The character interface that plugins see, over the host's chardevs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use cardcage_chardev::{CharHandle, Event, Frontend};
use cardcage_plugin_abi as abi;
use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};

use super::slot::Slot;
use crate::services::Services;

/// A device at one end of a chardev.
struct Port {
    services: Weak<Services>,
    slot: Weak<Slot>,
    token: u64,
    /// Bytes that were received and have not reached the device yet.
    on_way: Arc<AtomicUsize>,
    handle: Arc<OnceLock<Weak<CharHandle>>>,
}

impl Frontend for Port {
    fn room(&self) -> usize {
        let running = self.services.upgrade().is_some_and(|s| s.running.load(Ordering::SeqCst));
        let slot = self.slot.upgrade().filter(|_| running);
        // Before the device is asked: what reaches it meanwhile is then counted twice, never not at all.
        let on_way = self.on_way.load(Ordering::SeqCst);
        slot.and_then(|s| s.call(|d| d.char_room(self.token))).unwrap_or(0).saturating_sub(on_way)
    }

    /// Through the event loop, which stands while the machine does: there may have been room when it still ran.
    fn receive(&self, bytes: &[u8]) {
        let Some(services) = self.services.upgrade() else { return };
        let (slot, token, bytes) = (self.slot.clone(), self.token, bytes.to_vec());
        let (on_way, handle) = (self.on_way.clone(), self.handle.clone());
        on_way.fetch_add(bytes.len(), Ordering::SeqCst);
        services.event_loop.defer(move || {
            if let Some(slot) = slot.upgrade() {
                slot.call(|d| d.char_receive(token, RSlice::from_slice(&bytes)));
            }
            on_way.fetch_sub(bytes.len(), Ordering::SeqCst);
            if let Some(handle) = handle.get().and_then(Weak::upgrade) {
                handle.resume_input();
            }
        });
    }

    /// Through the event loop: it also comes while the device attaches, from inside of its own call.
    fn event(&self, event: Event) {
        let (kind, data) = match event {
            Event::Opened => (abi::EVENT_CHAR_CHANGED, 1),
            Event::Closed => (abi::EVENT_CHAR_CHANGED, 0),
            Event::Break => (abi::EVENT_CHAR_CHANGED, 2),
            Event::Writable => (abi::EVENT_CHAR_WRITABLE, 0),
            Event::FocusIn | Event::FocusOut => return,
        };
        let (Some(services), slot, token) = (self.services.upgrade(), self.slot.clone(), self.token) else { return };
        services.event_loop.defer(move || {
            if let Some(slot) = slot.upgrade() {
                slot.event(kind, token, data);
            }
        });
    }
}

/// Attaches a device to a chardev.
pub(crate) fn attach(services: &Arc<Services>, id: &str, slot: Weak<Slot>, token: u64) -> Result<abi::CharObj, String> {
    let chardev = services.chardevs.get(id).map_err(|e| e.to_string())?;
    let ours = Arc::new(OnceLock::new());
    let port = Port { services: Arc::downgrade(services), slot, token, on_way: Arc::default(), handle: ours.clone() };
    let handle = Arc::new(chardev.attach(Arc::new(port)).map_err(|e| e.to_string())?);
    let _ = ours.set(Arc::downgrade(&handle));
    services.add_input(&handle);
    Ok(abi::CharAbi_TO::from_ptr(RArc::new(Handle(handle)), TD_Opaque))
}

struct Handle(Arc<CharHandle>);

impl abi::CharAbi for Handle {
    fn write(&self, data: RSlice<'_, u8>) -> usize {
        self.0.write(data.as_slice())
    }
    fn resume_input(&self) {
        self.0.resume_input();
    }
    /// No backend here can carry a break.
    fn set_break(&self, _on: bool) {}
}
