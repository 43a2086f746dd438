//! Locks on ranges of an image, for writes that must first read what is around them.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::request::locked;

/// Ranges that writes are working on. A thread holds one range at most, so nobody waits in a circle.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    held: Mutex<Vec<(Range<u64>, bool)>>,
    released: Condvar,
}

impl RangeLocks {
    /// Waits until no other holder conflicts. An exclusive holder conflicts with all others that overlap it.
    pub(crate) fn lock(&self, range: Range<u64>, exclusive: bool) -> RangeGuard<'_> {
        let conflicts = |held: &Vec<(Range<u64>, bool)>| {
            let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            held.iter().any(|(other, others)| (exclusive || *others) && overlaps(other))
        };
        let held = locked(&self.held);
        let mut held = self.released.wait_while(held, |held| conflicts(held)).unwrap_or_else(PoisonError::into_inner);
        held.push((range.clone(), exclusive));
        RangeGuard { locks: self, range, exclusive }
    }
}

/// A range that is held.
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: Range<u64>,
    exclusive: bool,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = locked(&self.locks.held);
        if let Some(at) =
            held.iter().position(|(range, exclusive)| *range == self.range && *exclusive == self.exclusive)
        {
            held.swap_remove(at);
        }
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn exclusive_holders_of_overlapping_ranges_exclude_each_other() {
        let (locks, inside) = (RangeLocks::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for start in 0..4 {
                let (locks, inside) = (&locks, &inside);
                scope.spawn(move || {
                    for _ in 0..500 {
                        let guard = locks.lock(start..start + 4, true);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(guard);
                    }
                });
            }
        });
    }

    #[test]
    fn shared_holders_and_distant_ones_do_not_wait() {
        let locks = RangeLocks::default();
        let _a = locks.lock(0..8, false);
        let _b = locks.lock(4..12, false);
        let _c = locks.lock(12..16, true);
    }
}
