//! What devices share: memory, time, backends, and the ways to the outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use cardcage_block::BlockGraph;
use cardcage_chardev::{CharHandle, Chardevs};
use cardcage_clock::{UtcClock, VirtualClock};
use cardcage_eventloop::EventLoopHandle;
use cardcage_memory::GuestRam;
use cardcage_plugin_abi as abi;
use cardcage_qmp::Events;
use serde_json::{Value, json};
use tracing::{error, warn};

use crate::control::{Cause, Control, Request};
use crate::device::Slot;

/// Shared by all devices of a machine.
pub(crate) struct Services {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) clock: VirtualClock,
    pub(crate) rtc: UtcClock,
    pub(crate) event_loop: EventLoopHandle,
    pub(crate) blocks: Arc<BlockGraph>,
    pub(crate) chardevs: Arc<Chardevs>,
    pub(crate) cpus: u32,
    pub(crate) control: Control,
    pub(crate) events: Arc<OnceLock<Events>>,
    /// Whether the machine runs: input waits while it does not.
    pub(crate) running: AtomicBool,
    pub(crate) inputs: Mutex<Vec<Weak<CharHandle>>>,
}

impl Services {
    /// Sends a QMP event to whoever listens.
    pub(crate) fn emit(&self, name: &str, data: Option<Value>) {
        if let Some(events) = self.events.get() {
            events.emit(name, data);
        }
    }

    /// Remembers a device's end of a chardev, to let input in again when the machine goes on.
    pub(crate) fn add_input(&self, handle: &Arc<CharHandle>) {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(handle));
    }

    /// Opens or closes the way for input.
    pub(crate) fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::SeqCst);
        if running {
            let mut inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
            inputs.retain(|i| i.strong_count() > 0);
            let handles: Vec<_> = inputs.iter().filter_map(Weak::upgrade).collect();
            drop(inputs);
            handles.iter().for_each(|h| h.resume_input());
        }
    }

    /// A device asks for a change of run state.
    pub(crate) fn device_request(&self, request: u32, argument: i64) {
        let request = match request {
            abi::REQUEST_EXIT => Request::Exit(i32::try_from(argument).unwrap_or(1)),
            abi::REQUEST_SHUTDOWN => Request::Shutdown(Cause::GuestShutdown),
            abi::REQUEST_RESET => Request::Reset(Cause::GuestReset),
            abi::REQUEST_GUEST_PANICKED => Request::GuestPanicked,
            abi::REQUEST_GUEST_CRASHLOADED => {
                self.emit("GUEST_CRASHLOADED", Some(json!({"action": "run"})));
                return;
            }
            abi::REQUEST_GUEST_PVSHUTDOWN => {
                self.emit("GUEST_PVSHUTDOWN", Some(json!({"action": "shutdown"})));
                Request::Shutdown(Cause::GuestShutdown)
            }
            other => {
                warn!("a device asks for the unknown change {other} of the run state");
                return;
            }
        };
        self.control.send(request);
    }

    /// A device panicked: it is told once, and the machine goes on without it.
    pub(crate) fn device_broken(&self, slot: &Slot, why: &str) {
        if slot.set_broken(why) {
            error!("device '{}' ({}) is broken and answers no more: {why}", slot.id(), slot.kind());
            let data = json!({"device": slot.id(), "driver": slot.kind(), "reason": why});
            self.emit("DEVICE_BROKEN", Some(data));
        }
    }
}
