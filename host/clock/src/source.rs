//! Where a clock's time comes from.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Where a clock's time comes from. All calls may come from several threads at once.
pub trait TimeSource: Send + Sync {
    /// Nanoseconds since the clock's zero. Cheap, takes no lock; goes back only by [`set`](Self::set).
    fn now(&self) -> u64;
    /// Whether time may pass.
    fn is_running(&self) -> bool;
    /// Lets time pass, from where it stands.
    fn resume(&self);
    /// Makes time stand still.
    fn stop(&self);
    /// Goes to `ns`, forth or back, running or not.
    fn set(&self, ns: u64);
    /// Moves forward to `ns` if this source is moved from outside; false if it is not.
    fn advance_to(&self, ns: u64) -> bool {
        let _ = ns;
        false
    }
    /// How long in the host's time until this source will have reached `deadline`, which lies ahead, by itself; `None`
    /// if it does not go with the host's time. Only asked while running.
    fn host_wait(&self, deadline: u64) -> Option<Duration>;
}

/// The host's monotonic clock, in nanoseconds from a zero of its own.
#[inline]
pub fn host_monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// The running flag in [`HostSource::word`].
const RUNNING: u64 = 1 << 63;
/// The value part of [`HostSource::word`].
const VALUE: u64 = RUNNING - 1;
/// [`HostSource::word`] while it changes.
const CHANGING: u64 = u64::MAX;

/// Goes with the host's monotonic clock while running.
#[derive(Default)]
pub struct HostSource {
    /// While running: [`RUNNING`] and the host's time at the clock's zero (modulo 2^63). While stopped: the clock's
    /// time. Both in one word, so that a reader needs no lock.
    word: AtomicU64,
    change: Mutex<()>,
}

impl HostSource {
    /// Replaces the word by `next(now, running)`. Readers wait in between, so none sees a time later than the one at
    /// which the clock is stopped.
    fn replace(&self, next: impl FnOnce(u64, bool) -> (u64, bool)) {
        let _guard = self.change.lock().unwrap_or_else(|p| p.into_inner());
        let word = self.word.swap(CHANGING, Ordering::SeqCst);
        let host = host_monotonic_ns();
        let (ns, run) = next(value(word, host), word & RUNNING != 0);
        // An even zero is never CHANGING, and at most 1 ns early.
        let word = if run { RUNNING | (host.wrapping_sub(ns) & (VALUE - 1)) } else { ns & VALUE };
        self.word.store(word, Ordering::SeqCst);
    }

    #[cold]
    fn now_after_change(&self) -> u64 {
        loop {
            std::thread::yield_now();
            let word = self.word.load(Ordering::Acquire);
            if word != CHANGING {
                let now = value(word, host_monotonic_ns());
                if self.word.load(Ordering::SeqCst) == word {
                    return now;
                }
            }
        }
    }
}

#[inline]
fn value(word: u64, host: u64) -> u64 {
    if word & RUNNING != 0 { host.wrapping_sub(word) & VALUE } else { word }
}

impl TimeSource for HostSource {
    #[inline]
    fn now(&self) -> u64 {
        let word = self.word.load(Ordering::Acquire);
        if word & RUNNING == 0 {
            return word;
        }
        let now = value(word, host_monotonic_ns());
        // CHANGING has the flag, too; if the word changed, the host's time may be later than that of the change.
        if word == CHANGING || self.word.load(Ordering::SeqCst) != word {
            return self.now_after_change();
        }
        now
    }

    fn is_running(&self) -> bool {
        loop {
            match self.word.load(Ordering::SeqCst) {
                CHANGING => std::thread::yield_now(),
                word => return word & RUNNING != 0,
            }
        }
    }

    fn resume(&self) {
        self.replace(|now, _| (now, true));
    }

    fn stop(&self) {
        self.replace(|now, _| (now, false));
    }

    fn set(&self, ns: u64) {
        self.replace(|_, running| (ns, running));
    }

    fn host_wait(&self, deadline: u64) -> Option<Duration> {
        Some(Duration::from_nanos(deadline.saturating_sub(self.now())))
    }
}

/// Moves only when told to.
pub struct ManualSource {
    now: AtomicU64,
    running: AtomicBool,
}

impl Default for ManualSource {
    /// At 0, running.
    fn default() -> Self {
        Self { now: AtomicU64::new(0), running: AtomicBool::new(true) }
    }
}

impl TimeSource for ManualSource {
    #[inline]
    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }
    fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }
    fn resume(&self) {
        self.running.store(true, Ordering::SeqCst);
    }
    fn stop(&self) {
        self.running.store(false, Ordering::SeqCst);
    }
    fn set(&self, ns: u64) {
        self.now.store(ns, Ordering::SeqCst);
    }
    fn advance_to(&self, ns: u64) -> bool {
        self.now.fetch_max(ns, Ordering::SeqCst);
        true
    }
    fn host_wait(&self, _deadline: u64) -> Option<Duration> {
        None
    }
}
