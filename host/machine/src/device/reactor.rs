//! The event loop that plugins see.

use std::sync::{Mutex, PoisonError, Weak};

use cardcage_eventloop::EventLoopHandle;
use cardcage_plugin_abi as abi;

use super::slot::Slot;

/// One device's part of the event loop. What it watches is forgotten with it.
pub(crate) struct Reactor {
    slot: Weak<Slot>,
    event_loop: EventLoopHandle,
    watched: Mutex<Vec<i32>>,
}

impl Reactor {
    pub(crate) fn new(slot: Weak<Slot>, event_loop: EventLoopHandle) -> Self {
        Self { slot, event_loop, watched: Mutex::default() }
    }
}

fn to_abi(fd: i32, result: std::io::Result<()>) -> abi::AbiResult<()> {
    let message = |e| format!("cannot watch file descriptor {fd}: {e}").into();
    result.map_err(|e| abi::AbiError { code: abi::ERROR_GENERIC, message: message(e) }).into()
}

impl abi::ReactorAbi for Reactor {
    fn watch(&self, fd: i32, interest: u32, token: u64) -> abi::AbiResult<()> {
        let slot = self.slot.clone();
        let watched = self.event_loop.watch(fd, interest, move |events| {
            if let Some(slot) = slot.upgrade() {
                slot.event(abi::EVENT_FD, token, events.into());
            }
        });
        if watched.is_ok() {
            self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(fd);
        }
        to_abi(fd, watched)
    }

    fn set_interest(&self, fd: i32, interest: u32) -> abi::AbiResult<()> {
        to_abi(fd, self.event_loop.set_interest(fd, interest))
    }

    fn unwatch(&self, fd: i32) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).retain(|&n| n != fd);
        self.event_loop.unwatch(fd);
    }

    fn defer(&self, token: u64) {
        let slot = self.slot.clone();
        self.event_loop.defer(move || {
            if let Some(slot) = slot.upgrade() {
                slot.event(abi::EVENT_DEFERRED, token, 0);
            }
        });
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        for fd in self.watched.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.event_loop.unwatch(fd);
        }
    }
}
