//! What the loop's thread and its handles share.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, epoll, eventfd};

/// Key of the descriptor that wakes the loop.
pub(crate) const WAKE_KEY: u64 = 0;

type Callback = Arc<dyn Fn(u32) + Send + Sync>;
type Deferred = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Watches {
    /// Keys are never used twice: an event that was on its way for an fd that is gone finds nothing.
    by_key: HashMap<u64, Callback>,
    keys: HashMap<RawFd, u64>,
    last_key: u64,
}

#[derive(Default)]
struct Gate {
    pauses: u32,
    parked: bool,
    quit: bool,
}

pub(crate) struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    /// Spares the eventfd's write when the loop has been woken already.
    woken: AtomicBool,
    watches: Mutex<Watches>,
    deferred: Mutex<VecDeque<Deferred>>,
    gate: Mutex<Gate>,
    changed: Condvar,
    pausing: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE_KEY), epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            wake,
            woken: AtomicBool::new(false),
            watches: Mutex::default(),
            deferred: Mutex::default(),
            gate: Mutex::default(),
            changed: Condvar::new(),
            pausing: AtomicU64::new(0),
        })
    }

    pub(crate) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    pub(crate) fn wake(&self) {
        if !self.woken.swap(true, Ordering::SeqCst) {
            // Only fails when the counter is full, and then the loop is awake anyway.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Before looking for work: what comes afterwards wakes the loop again.
    pub(crate) fn clear_wake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        self.woken.store(false, Ordering::SeqCst);
    }

    // ---- descriptors

    pub(crate) fn watch(&self, fd: RawFd, interest: u32, callback: Callback) -> io::Result<()> {
        let mut watches = lock(&self.watches);
        let key = watches.last_key + 1;
        let borrowed = borrow(fd)?;
        let (data, flags) = (epoll::EventData::new_u64(key), epoll::EventFlags::from_bits_retain(interest));
        match epoll::add(&self.epoll, borrowed, data, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) if !watches.keys.contains_key(&fd) => {
                epoll::modify(&self.epoll, borrowed, data, flags)?;
            }
            Err(e) => return Err(e.into()),
        }
        if interest == 0 {
            self.set_kernel_interest(fd, key, 0)?;
        }
        watches.last_key = key;
        if let Some(old) = watches.keys.insert(fd, key) {
            watches.by_key.remove(&old);
        }
        watches.by_key.insert(key, callback);
        Ok(())
    }

    pub(crate) fn set_interest(&self, fd: RawFd, interest: u32) -> io::Result<()> {
        let watches = lock(&self.watches);
        let key = *watches.keys.get(&fd).ok_or(io::ErrorKind::NotFound)?;
        self.set_kernel_interest(fd, key, interest)
    }

    /// Makes the kernel's interest in `fd` what it is to be. Without any the kernel is not to know the fd: it would
    /// tell of a hangup for ever.
    fn set_kernel_interest(&self, fd: RawFd, key: u64, interest: u32) -> io::Result<()> {
        let fd = borrow(fd)?;
        let (data, flags) = (epoll::EventData::new_u64(key), epoll::EventFlags::from_bits_retain(interest));
        let done = match interest {
            0 => epoll::delete(&self.epoll, fd),
            _ => epoll::modify(&self.epoll, fd, data, flags),
        };
        match done {
            Err(rustix::io::Errno::NOENT) if interest == 0 => Ok(()),
            Err(rustix::io::Errno::NOENT) => Ok(epoll::add(&self.epoll, fd, data, flags)?),
            other => Ok(other?),
        }
    }

    pub(crate) fn unwatch(&self, fd: RawFd) {
        let mut watches = lock(&self.watches);
        if let Some(key) = watches.keys.remove(&fd) {
            watches.by_key.remove(&key);
            if let Ok(fd) = borrow(fd) {
                // The kernel has forgotten an fd that was closed too early.
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
    }

    pub(crate) fn call(&self, key: u64, events: u32) {
        let callback = lock(&self.watches).by_key.get(&key).cloned();
        if let Some(callback) = callback {
            callback(events);
        }
    }

    // ---- deferred calls

    pub(crate) fn defer(&self, f: Deferred) {
        lock(&self.deferred).push_back(f);
        self.wake();
    }

    pub(crate) fn has_deferred(&self) -> bool {
        !lock(&self.deferred).is_empty()
    }

    /// Runs what waits now; what these calls defer runs in the next round.
    pub(crate) fn run_deferred(&self) {
        let waiting = std::mem::take(&mut *lock(&self.deferred));
        waiting.into_iter().for_each(|f| f());
    }

    // ---- pausing

    pub(crate) fn is_pausing(&self) -> bool {
        self.pausing.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn pause(&self) {
        self.pausing.fetch_add(1, Ordering::SeqCst);
        let mut gate = lock(&self.gate);
        gate.pauses += 1;
        self.wake();
        while !gate.parked && !gate.quit {
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn resume(&self) {
        let mut gate = lock(&self.gate);
        gate.pauses = gate.pauses.saturating_sub(1);
        self.pausing.store(gate.pauses.into(), Ordering::SeqCst);
        self.changed.notify_all();
    }

    pub(crate) fn quit(&self) {
        lock(&self.gate).quit = true;
        self.changed.notify_all();
        self.wake();
    }

    /// The loop's thread parks here while it is paused, after what was deferred has run. False when it is to end.
    pub(crate) fn wait_while_paused(&self) -> bool {
        if self.is_pausing() {
            while self.has_deferred() {
                self.run_deferred();
            }
        }
        let mut gate = lock(&self.gate);
        while gate.pauses > 0 && !gate.quit {
            gate.parked = true;
            self.changed.notify_all();
            gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.parked = false;
        !gate.quit
    }
}

/// The fd as rustix wants it. It is the caller's and open: the kernel checks it again.
#[expect(unsafe_code, reason = "descriptors come from callers as numbers")]
fn borrow<'a>(fd: RawFd) -> io::Result<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: not -1, and used for one epoll_ctl call only, which refuses a number that is not open.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
