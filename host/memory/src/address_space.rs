//! Who answers at an address: a sorted map of ranges, read without a lock.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

/// Something that answers accesses to a range of ports or of guest-physical addresses.
///
/// Called from vCPU threads, several at a time. `size` is 1, 2, 4 or 8; `offset` counts from the start of the range
/// that was mapped. A value is in the low `size` bytes.
pub trait IoHandler: Send + Sync {
    /// The guest reads.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// The guest writes.
    fn write(&self, offset: u64, size: u8, value: u64);
}

/// A range that cannot be mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range is empty or wraps around.
    #[error("range {start:#x} + {len:#x} is empty or wraps around")]
    Invalid {
        /// First address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Somebody else is there.
    #[error("range {start:#x}..={last:#x} overlaps {owner} at {owner_start:#x}..={owner_last:#x}")]
    Taken {
        /// First address of the refused range.
        start: u64,
        /// Last address of the refused range.
        last: u64,
        /// Name given when the other range was mapped.
        owner: String,
        /// First address of the other range.
        owner_start: u64,
        /// Last address of the other range.
        owner_last: u64,
    },
}

#[derive(Clone)]
struct Entry {
    start: u64,
    last: u64,
    owner: Arc<str>,
    handler: Arc<dyn IoHandler>,
}

/// The entries in ascending order, and their first addresses alone: a search touches few cache lines.
#[derive(Default)]
struct Map {
    starts: Vec<u64>,
    entries: Vec<Entry>,
}

impl Map {
    fn new(entries: Vec<Entry>) -> Arc<Self> {
        Arc::new(Self { starts: entries.iter().map(|e| e.start).collect(), entries })
    }

    #[inline]
    fn find(&self, addr: u64) -> Option<&Entry> {
        let at = self.starts.partition_point(|&start| start <= addr);
        self.entries.get(at.checked_sub(1)?).filter(|e| e.last >= addr)
    }
}

/// A map as a thread saw it last.
struct Seen {
    space: u64,
    generation: u64,
    map: Arc<Map>,
}

/// Spaces that a thread can use in turn without forgetting one: a machine has two.
const CACHED: usize = 4;

thread_local! {
    static SEEN: [Cell<Option<Seen>>; CACHED] = const { [const { Cell::new(None) }; CACHED] };
}

/// A map from addresses to handlers: one for ports, one for memory-mapped I/O.
///
/// Lookups take no lock and may run while another thread maps or unmaps; they then see the map as it was before or
/// after. Each thread keeps the map that it saw last, and with it handlers that were unmapped since, until its next
/// access. An access belongs to the range that holds its first byte. Where nobody is, reads give all ones and writes
/// are ignored.
pub struct AddressSpace {
    /// Tells spaces apart in the threads' caches; never used twice.
    id: u64,
    /// Changes after the map has.
    generation: AtomicU64,
    map: ArcSwap<Map>,
    change: Mutex<()>,
}

impl Default for AddressSpace {
    fn default() -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, generation: AtomicU64::new(0), map: ArcSwap::default(), change: Mutex::new(()) }
    }
}

impl AddressSpace {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `start..start + len` is free now.
    pub fn check(&self, start: u64, len: u64) -> Result<(), MapError> {
        place(&self.map.load().entries, start, len).map(|_| ())
    }

    /// Puts `handler` at `start..start + len`. `owner` names it in error texts and listings.
    pub fn map(&self, start: u64, len: u64, owner: &str, handler: Arc<dyn IoHandler>) -> Result<(), MapError> {
        let _guard = self.change.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut entries = self.map.load().entries.clone();
        let (at, last) = place(&entries, start, len)?;
        entries.insert(at, Entry { start, last, owner: owner.into(), handler });
        self.publish(entries);
        Ok(())
    }

    /// Removes the range that starts at `start`. False if there is none.
    pub fn unmap(&self, start: u64) -> bool {
        let _guard = self.change.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut entries = self.map.load().entries.clone();
        let Ok(at) = entries.binary_search_by_key(&start, |e| e.start) else { return false };
        entries.remove(at);
        self.publish(entries);
        true
    }

    /// Reads `size` bytes at `addr`; all ones where nobody answers.
    #[inline]
    pub fn read(&self, addr: u64, size: u8) -> u64 {
        self.with_map(|map| match map.find(addr) {
            Some(entry) => entry.handler.read(addr - entry.start, size),
            None => u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))),
        })
    }

    /// Writes the low `size` bytes of `value` at `addr`; ignored where nobody answers.
    #[inline]
    pub fn write(&self, addr: u64, size: u8, value: u64) {
        self.with_map(|map| {
            if let Some(entry) = map.find(addr) {
                entry.handler.write(addr - entry.start, size, value);
            }
        });
    }

    /// Calls `f` with the current map: the thread's copy if it is up to date, which costs no locked instruction. The
    /// copy is taken out of its place meanwhile: a handler may access, map and unmap.
    #[inline]
    fn with_map<R>(&self, f: impl FnOnce(&Map) -> R) -> R {
        let generation = self.generation.load(Ordering::Acquire);
        let place = self.id as usize % CACHED;
        let current = |s: &Seen| s.space == self.id && s.generation == generation;
        // A thread that is about to end has no copies any more.
        let seen = SEEN.try_with(|seen| seen[place].take()).ok().flatten().filter(current);
        let seen = seen.unwrap_or_else(|| self.look(generation));
        let result = f(&seen.map);
        let _ = SEEN.try_with(|all| all[place].set(Some(seen)));
        result
    }

    /// `generation` was read before: a change in between is seen next time.
    #[cold]
    fn look(&self, generation: u64) -> Seen {
        Seen { space: self.id, generation, map: self.map.load_full() }
    }

    fn publish(&self, entries: Vec<Entry>) {
        self.map.store(Map::new(entries));
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// All ranges: first address, last address, owner.
    pub fn ranges(&self) -> Vec<(u64, u64, String)> {
        self.map.load().entries.iter().map(|e| (e.start, e.last, e.owner.to_string())).collect()
    }
}

/// Where a range goes in the sorted list, and its last address.
fn place(entries: &[Entry], start: u64, len: u64) -> Result<(usize, u64), MapError> {
    let last = start.checked_add(len.wrapping_sub(1)).filter(|_| len != 0).ok_or(MapError::Invalid { start, len })?;
    let at = entries.partition_point(|e| e.start < start);
    let before = at.checked_sub(1).and_then(|i| entries.get(i)).filter(|e| e.last >= start);
    match before.or_else(|| entries.get(at).filter(|e| e.start <= last)) {
        None => Ok((at, last)),
        Some(other) => Err(MapError::Taken {
            start,
            last,
            owner: other.owner.to_string(),
            owner_start: other.start,
            owner_last: other.last,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Echo(AtomicU64);
    impl IoHandler for Echo {
        fn read(&self, offset: u64, size: u8) -> u64 {
            offset << 8 | u64::from(size)
        }
        fn write(&self, offset: u64, _size: u8, value: u64) {
            self.0.store(offset << 8 | value, Ordering::SeqCst);
        }
    }

    #[test]
    fn accesses_reach_the_range_that_holds_them() {
        let space = AddressSpace::new();
        let echo = Arc::new(Echo::default());
        space.map(0x3f8, 8, "com1", echo.clone()).unwrap();
        space.map(0x2f8, 8, "com2", Arc::new(Echo::default())).unwrap();
        assert_eq!(space.read(0x3fd, 1), 0x501);
        space.write(0x3f9, 1, 7);
        assert_eq!(echo.0.load(Ordering::SeqCst), 0x107);
        assert_eq!(space.read(0x400, 2), 0xffff);
        assert_eq!(space.read(0x3f7, 8), u64::MAX);
    }

    #[test]
    fn an_overlap_names_the_owner_and_changes_nothing() {
        let space = AddressSpace::new();
        space.map(0x100, 0x10, "first", Arc::new(Echo::default())).unwrap();
        for (start, len) in [(0x10f, 1), (0xff, 2), (0x0, 0x1000), (0x104, 4)] {
            let err = space.map(start, len, "second", Arc::new(Echo::default())).unwrap_err();
            assert!(err.to_string().contains("overlaps first at 0x100..=0x10f"), "{err}");
        }
        assert_eq!(space.ranges(), vec![(0x100, 0x10f, "first".to_string())]);
        assert!(space.unmap(0x100) && !space.unmap(0x100));
        assert_eq!(space.read(0x100, 1), 0xff);
    }

    /// Answers by changing the space that it is in.
    struct Restless(Arc<AddressSpace>);
    impl IoHandler for Restless {
        fn read(&self, _offset: u64, _size: u8) -> u64 {
            assert!(self.0.unmap(0x20));
            self.0.map(0x30, 1, "later", Arc::new(Echo::default())).unwrap();
            self.0.read(0x20, 1) << 8 | self.0.read(0x30, 1)
        }
        fn write(&self, _offset: u64, _size: u8, _value: u64) {}
    }

    #[test]
    fn a_handler_may_change_the_map_and_each_access_sees_the_latest() {
        let space = Arc::new(AddressSpace::new());
        space.map(0x20, 1, "first", Arc::new(Echo::default())).unwrap();
        space.map(0x10, 1, "restless", Arc::new(Restless(space.clone()))).unwrap();
        assert_eq!((space.read(0x20, 1), space.read(0x30, 1)), (1, 0xff));
        assert_eq!(space.read(0x10, 1), 0xff01);
        assert_eq!((space.read(0x20, 1), space.read(0x30, 1)), (0xff, 1));
        let others: Vec<_> = (0..CACHED).map(|_| AddressSpace::new()).collect();
        others.iter().for_each(|other| assert_eq!(other.read(0x30, 1), 0xff));
        assert_eq!(space.read(0x30, 1), 1);
        space.unmap(0x10);
    }

    #[test]
    fn another_thread_sees_a_change_at_its_next_access() {
        let space = Arc::new(AddressSpace::new());
        let (ask, asked) = std::sync::mpsc::channel();
        let (answer, answered) = std::sync::mpsc::channel();
        let reader = space.clone();
        let thread = std::thread::spawn(move || asked.iter().for_each(|at| answer.send(reader.read(at, 1)).unwrap()));
        for round in 0..100 {
            ask.send(0x40).unwrap();
            assert_eq!(answered.recv().unwrap(), 0xff, "round {round}");
            space.map(0x40, 1, "there", Arc::new(Echo::default())).unwrap();
            ask.send(0x40).unwrap();
            assert_eq!(answered.recv().unwrap(), 1, "round {round}");
            space.unmap(0x40);
        }
        drop(ask);
        thread.join().unwrap();
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        let space = AddressSpace::new();
        for (start, len) in [(0, 0), (u64::MAX, 2)] {
            assert_eq!(space.map(start, len, "x", Arc::new(Echo::default())), Err(MapError::Invalid { start, len }));
        }
        space.map(u64::MAX, 1, "top", Arc::new(Echo::default())).unwrap();
    }
}
