//! What the frontends and the thread of a chardev share: buffers, who is there, who has the focus.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

use crate::mux::{Escapes, HELP, Key};
use crate::ring::Ring;
use crate::{Event, Frontend};

/// Bytes of output that wait for the host, at most.
const MAX_OUTPUT: usize = 64 << 10;
/// Frontends that were refused hear of room when this much is left to write.
const LOW_OUTPUT: usize = MAX_OUTPUT / 2;
/// Bytes of input that a multiplexer reads ahead of a frontend that has no room, so that its escapes are heard.
const MAX_BACKLOG: usize = 4096;

/// What Ctrl-A x calls.
pub(crate) type QuitHook = Arc<Mutex<Option<Box<dyn Fn() + Send + Sync>>>>;

pub(crate) struct Core {
    mux: bool,
    state: Mutex<State>,
    wake: OwnedFd,
    quit: QuitHook,
    ended: Condvar,
}

/// Where output goes.
pub(crate) enum Sink {
    /// To the thread.
    Queue(VecDeque<u8>),
    /// Nowhere.
    Nothing,
    /// Into memory.
    Ring(Ring),
}

struct State {
    sink: Sink,
    open: bool,
    slots: Vec<Slot>,
    next_key: u64,
    focus: Option<u64>,
    escapes: Escapes,
    closing: bool,
    threads: usize,
}

struct Slot {
    key: u64,
    frontend: Arc<dyn Frontend>,
    /// Its last output was not taken whole.
    refused: bool,
    /// Input that it had no room for.
    backlog: VecDeque<u8>,
}

impl Core {
    pub(crate) fn new(mux: bool, sink: Sink, quit: QuitHook) -> Result<Self, Errno> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let open = !matches!(sink, Sink::Queue(_));
        let (slots, escapes) = (Vec::new(), Escapes::default());
        let state = State { sink, open, slots, next_key: 0, focus: None, escapes, closing: false, threads: 0 };
        Ok(Self { mux, state: Mutex::new(state), wake, quit, ended: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Readable when the thread should look around.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the thread wakes anyway.
        let _ = write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(crate) fn woken(&self) {
        let _ = read(&self.wake, &mut [0_u8; 8]);
    }

    // ---- frontends

    /// A key for the new frontend; none if there is one already that shares with nobody.
    pub(crate) fn attach(&self, frontend: Arc<dyn Frontend>) -> Option<u64> {
        let mut state = self.lock();
        if !self.mux && !state.slots.is_empty() {
            return None;
        }
        let key = state.next_key;
        state.next_key += 1;
        state.slots.push(Slot { key, frontend: frontend.clone(), refused: false, backlog: VecDeque::new() });
        let open = state.open;
        drop(state);
        if open {
            frontend.event(Event::Opened);
        }
        self.set_focus(Some(key));
        self.wake();
        Some(key)
    }

    pub(crate) fn detach(&self, key: u64) {
        let mut state = self.lock();
        state.slots.retain(|slot| slot.key != key);
        let had_focus = state.focus == Some(key);
        let next = state.slots.last().map(|slot| slot.key);
        drop(state);
        if had_focus {
            self.set_focus(next);
        }
    }

    pub(crate) fn is_attached(&self) -> bool {
        !self.lock().slots.is_empty()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Takes output of a frontend; says how many bytes.
    pub(crate) fn write(&self, key: Option<u64>, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let open = state.open;
        let queue = match &mut state.sink {
            Sink::Nothing => return bytes.len(),
            Sink::Ring(ring) => {
                ring.write(bytes);
                return bytes.len();
            }
            Sink::Queue(_) if !open => return bytes.len(),
            Sink::Queue(queue) => queue,
        };
        let was_empty = queue.is_empty();
        let taken = bytes.len().min(MAX_OUTPUT.saturating_sub(queue.len()));
        queue.extend(&bytes[..taken]);
        if taken < bytes.len() {
            state.slots.iter_mut().filter(|slot| Some(slot.key) == key).for_each(|slot| slot.refused = true);
        }
        drop(state);
        if was_empty && taken != 0 {
            self.wake();
        }
        taken
    }

    pub(crate) fn set_focus(&self, focus: Option<u64>) {
        let mut state = self.lock();
        let old = state.focus.filter(|_| state.focus != focus);
        state.focus = focus;
        let find = |key: Option<u64>| state.slots.iter().find(|s| Some(s.key) == key).map(|s| s.frontend.clone());
        let (left, entered) = (find(old), find(focus));
        drop(state);
        if !self.mux {
            return;
        }
        if let Some(frontend) = left {
            frontend.event(Event::FocusOut);
        }
        if let Some(frontend) = entered {
            frontend.event(Event::FocusIn);
        }
    }

    pub(crate) fn with_ring<T>(&self, f: impl FnOnce(&mut Ring) -> T) -> Option<T> {
        match &mut self.lock().sink {
            Sink::Ring(ring) => Some(f(ring)),
            _ => None,
        }
    }

    // ---- the thread

    /// The other side is there.
    pub(crate) fn opened(&self) {
        self.set_open(true);
    }

    /// The other side has gone, and what it was to read with it.
    pub(crate) fn closed(&self) {
        if let Sink::Queue(queue) = &mut self.lock().sink {
            queue.clear();
        }
        self.set_open(false);
        self.tell_refused();
    }

    fn set_open(&self, open: bool) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.open, open) == open {
            return;
        }
        // Under the same lock: a frontend that attaches now hears of it once, from here or from `attach`.
        let frontends: Vec<_> = state.slots.iter().map(|slot| slot.frontend.clone()).collect();
        drop(state);
        let event = if open { Event::Opened } else { Event::Closed };
        frontends.iter().for_each(|frontend| frontend.event(event));
    }

    fn tell_refused(&self) {
        let mut state = self.lock();
        let refused = state.slots.iter_mut().filter_map(|slot| {
            let refused = std::mem::take(&mut slot.refused);
            refused.then(|| slot.frontend.clone())
        });
        let frontends: Vec<_> = refused.collect();
        drop(state);
        frontends.iter().for_each(|frontend| frontend.event(Event::Writable));
    }

    /// Copies output that waits; says how many bytes. They stay until they are `written`.
    pub(crate) fn output(&self, into: &mut [u8]) -> usize {
        let state = self.lock();
        let Sink::Queue(queue) = &state.sink else { return 0 };
        let count = queue.len().min(into.len());
        into.iter_mut().zip(queue).for_each(|(to, from)| *to = *from);
        count
    }

    pub(crate) fn written(&self, count: usize) {
        let mut state = self.lock();
        let Sink::Queue(queue) = &mut state.sink else { return };
        queue.drain(..count.min(queue.len()));
        let low = queue.len() <= LOW_OUTPUT;
        drop(state);
        if low {
            self.tell_refused();
        }
    }

    /// Bytes of input that can be taken now.
    pub(crate) fn room(&self) -> usize {
        let state = self.lock();
        let Some(slot) = state.slots.iter().find(|slot| Some(slot.key) == state.focus) else { return 0 };
        if self.mux {
            return MAX_BACKLOG - slot.backlog.len().min(MAX_BACKLOG);
        }
        let frontend = slot.frontend.clone();
        drop(state);
        frontend.room()
    }

    /// Hands on input: not more than `room` said.
    pub(crate) fn input(&self, bytes: &[u8]) {
        if self.mux {
            bytes.iter().for_each(|&byte| self.mux_input(byte));
            self.deliver();
        } else if let Some(frontend) = self.focused() {
            frontend.receive(bytes);
        }
    }

    fn focused(&self) -> Option<Arc<dyn Frontend>> {
        let state = self.lock();
        state.slots.iter().find(|slot| Some(slot.key) == state.focus).map(|slot| slot.frontend.clone())
    }

    fn mux_input(&self, byte: u8) {
        let mut state = self.lock();
        let focus = state.focus;
        match state.escapes.key(byte) {
            Key::Nothing => (),
            Key::Send(byte) => {
                if let Some(slot) = state.slots.iter_mut().find(|slot| Some(slot.key) == focus) {
                    slot.backlog.push_back(byte);
                }
            }
            Key::Next => {
                let at = state.slots.iter().position(|slot| Some(slot.key) == focus).map_or(0, |at| at + 1);
                let next = state.slots.get(at).or_else(|| state.slots.first()).map(|slot| slot.key);
                drop(state);
                self.set_focus(next);
            }
            Key::Help => {
                drop(state);
                self.write(None, HELP.as_bytes());
            }
            Key::Break => {
                drop(state);
                self.sent_break();
            }
            Key::Quit => {
                drop(state);
                self.write(None, b"\r\ncardcage: quit from the console\r\n");
                if let Some(quit) = self.quit.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
                    quit();
                }
            }
        }
    }

    /// The other side sent a break.
    pub(crate) fn sent_break(&self) {
        if let Some(frontend) = self.focused() {
            frontend.event(Event::Break);
        }
    }

    /// Gives frontends what they had no room for, as far as they have now.
    pub(crate) fn deliver(&self) {
        let state = self.lock();
        let slots = state.slots.iter().filter(|slot| !slot.backlog.is_empty());
        let waiting: Vec<_> = slots.map(|slot| (slot.key, slot.frontend.clone())).collect();
        drop(state);
        for (key, frontend) in waiting {
            let room = frontend.room();
            let mut state = self.lock();
            let Some(slot) = state.slots.iter_mut().find(|slot| slot.key == key) else { continue };
            let count = room.min(slot.backlog.len());
            let bytes: Vec<u8> = slot.backlog.drain(..count).collect();
            drop(state);
            if !bytes.is_empty() {
                frontend.receive(&bytes);
            }
        }
    }

    // ---- the end

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    pub(crate) fn thread_started(&self) {
        self.lock().threads += 1;
    }

    pub(crate) fn thread_ended(&self) {
        self.lock().threads -= 1;
        self.ended.notify_all();
    }

    /// Tells the thread to write what waits and to end.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.wake();
    }

    /// Waits until the thread has ended, but not for ever: a terminal may be stopped. Not from the thread itself.
    pub(crate) fn wait_for_end(&self, limit: Duration) {
        let state = self.lock();
        let running = |state: &mut State| state.threads != 0;
        drop(self.ended.wait_timeout_while(state, limit, running).unwrap_or_else(PoisonError::into_inner));
    }
}
