//! Event loop threads: file descriptors, deferred calls and virtual-clock timers.
//!
//! An [`EventLoop`] owns a thread; an [`EventLoopHandle`] lets anybody give it work. Everything that it is given runs on
//! that thread, one thing at a time, with no lock held: callbacks may watch, unwatch, defer and arm timers freely.
//!
//! # Pausing
//! After [`EventLoop::pause`] returns, no callback runs until [`EventLoop::resume`]. What was deferred before the call
//! has run by then; what comes later waits, as do descriptors and timers.
//!
//! # Limits
//! Deferred calls are kept in a list without a bound: callers defer once for any amount of work that waits.

mod shared;

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use cardcage_clock::{ChangeListener, VirtualClock};
use rustix::event::{Timespec, epoll};

use shared::{Shared, WAKE_KEY};

/// Events of poll(2) in interests and in what callbacks are told.
pub mod events {
    /// There is something to read.
    pub const IN: u32 = 0x1;
    /// There is room for writing.
    pub const OUT: u32 = 0x4;
    /// An error; always told.
    pub const ERR: u32 = 0x8;
    /// The other end is gone; always told.
    pub const HUP: u32 = 0x10;
}

/// Plugins run on these threads.
const STACK: usize = 2 << 20;
/// Events taken from the kernel at a time.
const BATCH: usize = 64;
/// How long the loop sleeps when nothing is due: only a bound against surprises.
const LONG: Duration = Duration::from_secs(3600);

/// A thread that serves descriptors, deferred calls and timers. Dropping it ends and joins the thread.
pub struct EventLoop {
    handle: EventLoopHandle,
    thread: Option<JoinHandle<()>>,
    _clock: Option<ChangeListener>,
}

/// Gives work to an event loop. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct EventLoopHandle(Arc<Shared>);

impl EventLoop {
    /// Starts a thread called `name`. With a clock, the thread drives the clock's timers.
    pub fn new(name: &str, clock: Option<&VirtualClock>) -> io::Result<Self> {
        let shared = Arc::new(Shared::new()?);
        let waker = shared.clone();
        let listener = clock.map(|c| c.on_change(move || waker.wake()));
        let (own, clock) = (shared.clone(), clock.cloned());
        let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(move || run(&own, clock))?;
        Ok(Self { handle: EventLoopHandle(shared), thread: Some(thread), _clock: listener })
    }

    /// A handle for others.
    pub fn handle(&self) -> EventLoopHandle {
        self.handle.clone()
    }

    /// Stops all callbacks; none runs when this returns. Pauses count: each wants its [`resume`](Self::resume). Not
    /// for calls from a callback.
    pub fn pause(&self) {
        debug_assert_ne!(self.thread_id(), Some(std::thread::current().id()), "a loop cannot wait for itself");
        self.handle.0.pause();
    }

    /// Lets callbacks run again.
    pub fn resume(&self) {
        self.handle.0.resume();
    }

    fn thread_id(&self) -> Option<ThreadId> {
        self.thread.as_ref().map(|t| t.thread().id())
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.handle.0.quit();
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl EventLoopHandle {
    /// Calls `callback` with the events of `fd` whenever it has one of those in `interest`, again and again while it
    /// has. An fd is watched once at a time; it stays the caller's, who unwatches it before closing it.
    pub fn watch(&self, fd: RawFd, interest: u32, callback: impl Fn(u32) + Send + Sync + 'static) -> io::Result<()> {
        self.0.watch(fd, interest, Arc::new(callback))
    }

    /// Changes the interest in a watched fd; 0 pauses it: then not even an error or the other end's hangup is told.
    pub fn set_interest(&self, fd: RawFd, interest: u32) -> io::Result<()> {
        self.0.set_interest(fd, interest)
    }

    /// Forgets an fd. A call that has begun on the loop's thread goes on.
    pub fn unwatch(&self, fd: RawFd) {
        self.0.unwatch(fd);
    }

    /// Calls `f` soon, after what was deferred before.
    pub fn defer(&self, f: impl FnOnce() + Send + 'static) {
        self.0.defer(Box::new(f));
    }
}

fn run(shared: &Shared, clock: Option<VirtualClock>) {
    let mut ready = [const { std::mem::MaybeUninit::uninit() }; BATCH];
    while shared.wait_while_paused() {
        shared.run_deferred();
        let mut timeout = LONG;
        if let Some(clock) = &clock {
            clock.run_expired();
            timeout = clock.host_wait().unwrap_or(LONG).min(LONG);
        }
        if shared.has_deferred() {
            timeout = Duration::ZERO;
        }
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let taken = match epoll::wait(shared.epoll().as_fd(), &mut ready, Some(&timeout)) {
            Ok((taken, _)) => taken,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => {
                tracing::error!("the event loop ends: {e}");
                return;
            }
        };
        for event in taken {
            match event.data.u64() {
                WAKE_KEY => shared.clear_wake(),
                // A pause that came meanwhile is kept before each callback.
                _ if shared.is_pausing() => break,
                key => shared.call(key, { event.flags }.bits()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
