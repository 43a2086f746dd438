//! The armed timers of a clock, by deadline.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::Inner;

/// A deadline that never comes: of a timer that is not armed.
const NEVER: u64 = u64::MAX;

struct Entry {
    id: u64,
    /// Changed under the table's lock only.
    deadline: AtomicU64,
    callback: Box<dyn Fn() + Send + Sync>,
}

type Table = BTreeMap<(u64, u64), Arc<Entry>>;

pub(crate) struct Timers {
    armed: Mutex<Table>,
    /// The first key's deadline, or [`NEVER`]. Changed under the lock.
    earliest: AtomicU64,
    ids: AtomicU64,
}

impl Default for Timers {
    fn default() -> Self {
        Self { armed: Mutex::default(), earliest: AtomicU64::new(NEVER), ids: AtomicU64::new(0) }
    }
}

impl Timers {
    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn earliest(&self) -> Option<u64> {
        Some(self.earliest.load(Ordering::SeqCst)).filter(|&d| d != NEVER)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.armed.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Gives `entry` another deadline. True if the earliest of all came closer.
    fn put(&self, entry: &Arc<Entry>, deadline: u64) -> bool {
        let mut table = self.lock();
        let old = entry.deadline.swap(deadline, Ordering::SeqCst);
        let removed = if old == NEVER { None } else { table.remove(&(old, entry.id)) };
        if deadline != NEVER {
            table.insert((deadline, entry.id), entry.clone());
        }
        let closer = self.note_earliest(&table);
        drop(table);
        // A callback may own anything, even this clock: it must not be dropped under the lock.
        drop(removed);
        closer
    }

    fn note_earliest(&self, table: &Table) -> bool {
        let first = table.first_key_value().map_or(NEVER, |(key, _)| key.0);
        first < self.earliest.swap(first, Ordering::SeqCst)
    }

    /// Takes the timer with the earliest deadline, if that is not after `now`, and runs it.
    pub(crate) fn run_one(&self, now: u64) -> bool {
        if self.earliest.load(Ordering::SeqCst) > now {
            return false;
        }
        let mut table = self.lock();
        let Some(first) = table.first_entry().filter(|first| first.key().0 <= now) else { return false };
        let entry = first.remove();
        entry.deadline.store(NEVER, Ordering::SeqCst);
        self.note_earliest(&table);
        drop(table);
        (entry.callback)();
        true
    }
}

/// A one-shot timer of a [`VirtualClock`](crate::VirtualClock). Dropping it cancels it.
pub struct Timer {
    clock: Arc<Inner>,
    entry: Arc<Entry>,
}

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timer").field("deadline_ns", &self.deadline()).finish_non_exhaustive()
    }
}

impl Timer {
    pub(crate) fn new(clock: Arc<Inner>, callback: Box<dyn Fn() + Send + Sync>) -> Self {
        let entry = Arc::new(Entry { id: clock.timers.next_id(), deadline: AtomicU64::new(NEVER), callback });
        Self { clock, entry }
    }

    /// Runs the callback once when the clock reaches `deadline_ns`, or soon if it has; replaces an earlier deadline.
    /// `u64::MAX` is never.
    pub fn arm(&self, deadline_ns: u64) {
        if self.clock.timers.put(&self.entry, deadline_ns) {
            self.clock.changed();
        }
    }

    /// Forgets the deadline. The callback may be running, or about to, on the driver's thread.
    pub fn cancel(&self) {
        self.clock.timers.put(&self.entry, NEVER);
    }

    /// When the callback will run, if armed.
    pub fn deadline(&self) -> Option<u64> {
        Some(self.entry.deadline.load(Ordering::SeqCst)).filter(|&d| d != NEVER)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.cancel();
    }
}
