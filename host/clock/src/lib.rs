//! The virtual clock: all time that a guest can see, in nanoseconds from 0.
//!
//! [`VirtualClock`] is a cheap handle; clones are the same clock. Its time comes from a [`TimeSource`]: the host's
//! monotonic clock ([`VirtualClock::host`]), explicit steps ([`VirtualClock::manual`]), or anything else that
//! implements the trait, such as a count of retired instructions.
//!
//! # Timers
//! A [`Timer`] belongs to its clock and is one-shot. Callbacks run on the thread that *drives* the clock: the one
//! inside [`VirtualClock::run_expired`] (an event loop) or [`VirtualClock::step`] (a test's socket). One thread drives
//! at a time, so no two callbacks run at once. No lock is held while a callback runs; it may arm, cancel and create
//! timers, its own too, but may not drive the clock.
//!
//! # Who sleeps until when
//! A driver sleeps for [`VirtualClock::host_wait`]. What shortens that wait (an earlier deadline, a start, a stop, a
//! step) is told to everybody who asked with [`VirtualClock::on_change`].
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicU64, Ordering::SeqCst}};
//! let clock = cardcage_clock::VirtualClock::manual();
//! let fired_at = Arc::new(AtomicU64::new(0));
//! let timer = clock.timer({
//!     let (clock, fired_at) = (clock.clone(), fired_at.clone());
//!     move || fired_at.store(clock.now(), SeqCst)
//! });
//! timer.arm(700);
//! assert_eq!(clock.step(1000), Ok(1000));
//! assert_eq!(fired_at.load(SeqCst), 700);
//! ```

mod source;
mod timers;
mod utc;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::Duration;

pub use source::{HostSource, ManualSource, TimeSource, host_monotonic_ns};
pub use timers::Timer;
pub use utc::{UtcClock, host_utc_ns};

use timers::Timers;

/// Callbacks per instant (or per call of [`VirtualClock::run_expired`]) before the driver goes on. A timer that keeps
/// re-arming itself for a time that has passed then cannot hold up its driver for ever.
const MAX_RUNS: u32 = 10_000;

/// Why a clock did not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// The clock runs by itself.
    #[error("this clock is not moved by hand: only a manual clock can be stepped")]
    NotManual,
    /// The clock stands still.
    #[error("the clock is stopped")]
    Stopped,
    /// There is no deadline to step to.
    #[error("no timer is pending")]
    NoDeadline,
    /// A timer callback tried to drive the clock that runs it.
    #[error("a timer callback cannot step its own clock")]
    Reentrant,
    /// The step leads beyond the end of time.
    #[error("cannot step by {by_ns} ns from {now_ns} ns: time ends at {max} ns", max = u64::MAX - 1)]
    Overflow {
        /// Where the clock stands.
        now_ns: u64,
        /// The step asked for.
        by_ns: u64,
    },
}

type Listener = Arc<dyn Fn() + Send + Sync>;

pub(crate) struct Inner {
    source: Box<dyn TimeSource>,
    pub(crate) timers: Timers,
    listeners: RwLock<Vec<(u64, Listener)>>,
    /// [`thread_token`] of the thread that drives, or 0. Changed under `drive`.
    driver: AtomicUsize,
    drive: Mutex<()>,
    drive_ended: Condvar,
}

/// All time that a guest can see. See the crate's front page.
#[derive(Clone)]
pub struct VirtualClock {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for VirtualClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtualClock").field("now_ns", &self.now()).field("running", &self.is_running()).finish()
    }
}

impl VirtualClock {
    /// A clock that goes with the host's monotonic clock while it runs. Stands at 0, stopped.
    pub fn host() -> Self {
        Self::with_source(HostSource::default())
    }

    /// A clock that moves only by [`step`](Self::step) and [`step_to_next`](Self::step_to_next). Stands at 0, running.
    pub fn manual() -> Self {
        Self::with_source(ManualSource::default())
    }

    /// A clock with a source of its own.
    pub fn with_source(source: impl TimeSource + 'static) -> Self {
        let inner = Inner {
            source: Box::new(source),
            timers: Timers::default(),
            listeners: RwLock::default(),
            driver: AtomicUsize::new(0),
            drive: Mutex::default(),
            drive_ended: Condvar::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Nanoseconds since the clock's zero. Takes no lock; never goes back except by [`set`](Self::set).
    #[inline]
    pub fn now(&self) -> u64 {
        self.inner.source.now()
    }

    /// Whether time passes (a manual clock: whether it may be stepped).
    pub fn is_running(&self) -> bool {
        self.inner.source.is_running()
    }

    /// Lets time pass. Nothing happens if it does already.
    pub fn resume(&self) {
        self.inner.source.resume();
        self.inner.changed();
    }

    /// Makes time stand still; no timer starts to run until [`resume`](Self::resume). One that runs at this moment may
    /// go on: pause the driver first where that matters.
    pub fn stop(&self) {
        self.inner.source.stop();
        self.inner.changed();
    }

    /// Puts the clock to `ns`, forth or back, as restoring a snapshot does. Runs no timer; those already armed keep
    /// their deadlines.
    pub fn set(&self, ns: u64) {
        self.inner.source.set(ns);
        self.inner.changed();
    }

    /// A timer that is not armed. `callback` should hold what it works on weakly if that also owns the timer.
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        Timer::new(self.inner.clone(), Box::new(callback))
    }

    /// The earliest deadline of all armed timers. Takes no lock.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        self.inner.timers.earliest()
    }

    /// How long a driver may sleep, in the host's time: zero if a timer is due, `None` if none will become due by
    /// itself.
    pub fn host_wait(&self) -> Option<Duration> {
        let deadline = self.next_deadline()?;
        if !self.is_running() {
            return None;
        }
        if deadline <= self.now() {
            return Some(Duration::ZERO);
        }
        self.inner.source.host_wait(deadline)
    }

    /// Calls `listener` whenever [`host_wait`](Self::host_wait) may have become shorter or `None`. It runs on the
    /// thread that made the change and must not block; it is not called for what the driver's own callbacks change,
    /// as the driver looks again anyway. Dropping the result ends it.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) -> ChangeListener {
        let id = self.inner.timers.next_id();
        self.inner.listeners.write().unwrap_or_else(|p| p.into_inner()).push((id, Arc::new(listener)));
        ChangeListener { clock: self.inner.clone(), id }
    }

    /// Runs the timers that are due. False if another thread drives the clock at the moment: that one runs them, and
    /// calls the listeners at its end if any are left.
    pub fn run_expired(&self) -> bool {
        let Ok(_drive) = self.inner.try_drive() else { return false };
        let now = self.now();
        for _ in 0..MAX_RUNS {
            if !self.is_running() || !self.inner.timers.run_one(now) {
                break;
            }
        }
        true
    }

    /// Moves a manual clock by `ns`, and runs every timer on the way with the clock at its deadline. Gives where the
    /// clock stands then. Waits for another thread that drives the clock.
    pub fn step(&self, ns: u64) -> Result<u64, ClockError> {
        let _drive = self.inner.wait_to_drive()?;
        let now_ns = self.now();
        let target =
            now_ns.checked_add(ns).filter(|&t| t != u64::MAX).ok_or(ClockError::Overflow { now_ns, by_ns: ns })?;
        self.walk_to(target)
    }

    /// Moves a manual clock to the next deadline, and runs what is due there. Gives where the clock stands then.
    pub fn step_to_next(&self) -> Result<u64, ClockError> {
        let _drive = self.inner.wait_to_drive()?;
        let deadline = self.next_deadline().ok_or(ClockError::NoDeadline)?;
        self.walk_to(deadline.max(self.now()))
    }

    fn walk_to(&self, target: u64) -> Result<u64, ClockError> {
        loop {
            let next = self.next_deadline().unwrap_or(target).max(self.now()).min(target);
            if !self.is_running() {
                return Err(ClockError::Stopped);
            }
            if !self.inner.source.advance_to(next) {
                return Err(ClockError::NotManual);
            }
            let endless = (0..MAX_RUNS).all(|_| self.is_running() && self.inner.timers.run_one(next));
            if next == target {
                return Ok(self.now());
            }
            if endless {
                // Something re-arms itself for the present: leave it behind, still due.
                self.inner.source.advance_to(next + 1);
            }
        }
    }
}

/// Keeps an [`on_change`](VirtualClock::on_change) listener alive.
#[must_use = "dropping it ends the listening"]
pub struct ChangeListener {
    clock: Arc<Inner>,
    id: u64,
}

impl Drop for ChangeListener {
    fn drop(&mut self) {
        let mut listeners = self.clock.listeners.write().unwrap_or_else(|p| p.into_inner());
        let removed = listeners.iter().position(|l| l.0 == self.id).map(|at| listeners.swap_remove(at));
        drop(listeners);
        drop(removed);
    }
}

/// The right to run timers; ends with the value.
struct Drive<'a>(&'a Inner);

impl Drop for Drive<'_> {
    fn drop(&mut self) {
        let guard = self.0.lock_drive();
        self.0.driver.store(0, Ordering::SeqCst);
        drop(guard);
        self.0.drive_ended.notify_all();
        if self.0.timers.earliest().is_some_and(|d| d <= self.0.source.now()) {
            self.0.changed();
        }
    }
}

impl Inner {
    fn lock_drive(&self) -> MutexGuard<'_, ()> {
        self.drive.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn try_drive(&self) -> Result<Drive<'_>, ()> {
        let _guard = self.lock_drive();
        self.driver.compare_exchange(0, thread_token(), Ordering::SeqCst, Ordering::SeqCst).map_err(drop)?;
        Ok(Drive(self))
    }

    fn wait_to_drive(&self) -> Result<Drive<'_>, ClockError> {
        let mut guard = self.lock_drive();
        loop {
            match self.driver.load(Ordering::SeqCst) {
                0 => break,
                driver if driver == thread_token() => return Err(ClockError::Reentrant),
                _ => guard = self.drive_ended.wait(guard).unwrap_or_else(|p| p.into_inner()),
            }
        }
        self.driver.store(thread_token(), Ordering::SeqCst);
        Ok(Drive(self))
    }

    /// Tells the listeners, unless it is the driver itself that made the change.
    pub(crate) fn changed(&self) {
        if self.driver.load(Ordering::SeqCst) == thread_token() {
            return;
        }
        let listeners = self.listeners.read().unwrap_or_else(|p| p.into_inner());
        // Most clocks have one listener: no allocation for it.
        match listeners.as_slice() {
            [] => {}
            [(_, one)] => {
                let one = one.clone();
                drop(listeners);
                one();
            }
            several => {
                let several: Vec<Listener> = several.iter().map(|l| l.1.clone()).collect();
                drop(listeners);
                several.iter().for_each(|listener| listener());
            }
        }
    }
}

/// A number that names the calling thread while it lives, never 0.
fn thread_token() -> usize {
    thread_local!(static TOKEN: u8 = const { 0 });
    TOKEN.with(|token| std::ptr::from_ref(token) as usize)
}

#[cfg(test)]
mod tests;
