//! The character interface that plugins see, over the host's chardevs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

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
}

impl Frontend for Port {
    fn room(&self) -> usize {
        let running = self.services.upgrade().is_some_and(|s| s.running.load(Ordering::SeqCst));
        let slot = self.slot.upgrade().filter(|_| running);
        slot.and_then(|s| s.call(|d| d.char_room(self.token))).unwrap_or(0)
    }

    fn receive(&self, bytes: &[u8]) {
        if let Some(slot) = self.slot.upgrade() {
            slot.call(|d| d.char_receive(self.token, RSlice::from_slice(bytes)));
        }
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
    let port = Arc::new(Port { services: Arc::downgrade(services), slot, token });
    let handle = Arc::new(chardev.attach(port).map_err(|e| e.to_string())?);
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
