//! Who answers at an address: a sorted map of ranges, read without a lock.

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

/// A map from addresses to handlers: one for ports, one for memory-mapped I/O.
///
/// Lookups take no lock and may run while another thread maps or unmaps; they then see the map as it was before or
/// after. An access belongs to the range that holds its first byte. Where nobody is, reads give all ones and writes
/// are ignored.
pub struct AddressSpace {
    map: ArcSwap<Vec<Entry>>,
    change: Mutex<()>,
}

impl Default for AddressSpace {
    fn default() -> Self {
        Self { map: ArcSwap::from_pointee(Vec::new()), change: Mutex::new(()) }
    }
}

impl AddressSpace {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `start..start + len` is free now.
    pub fn check(&self, start: u64, len: u64) -> Result<(), MapError> {
        place(&self.map.load(), start, len).map(|_| ())
    }

    /// Puts `handler` at `start..start + len`. `owner` names it in error texts and listings.
    pub fn map(&self, start: u64, len: u64, owner: &str, handler: Arc<dyn IoHandler>) -> Result<(), MapError> {
        let _guard = self.change.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut entries = Vec::clone(&self.map.load());
        let (at, last) = place(&entries, start, len)?;
        entries.insert(at, Entry { start, last, owner: owner.into(), handler });
        self.map.store(Arc::new(entries));
        Ok(())
    }

    /// Removes the range that starts at `start`. False if there is none.
    pub fn unmap(&self, start: u64) -> bool {
        let _guard = self.change.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut entries = Vec::clone(&self.map.load());
        let Ok(at) = entries.binary_search_by_key(&start, |e| e.start) else { return false };
        entries.remove(at);
        self.map.store(Arc::new(entries));
        true
    }

    /// Reads `size` bytes at `addr`; all ones where nobody answers.
    #[inline]
    pub fn read(&self, addr: u64, size: u8) -> u64 {
        let map = self.map.load();
        match find(&map, addr) {
            Some(entry) => entry.handler.read(addr - entry.start, size),
            None => u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))),
        }
    }

    /// Writes the low `size` bytes of `value` at `addr`; ignored where nobody answers.
    #[inline]
    pub fn write(&self, addr: u64, size: u8, value: u64) {
        let map = self.map.load();
        if let Some(entry) = find(&map, addr) {
            entry.handler.write(addr - entry.start, size, value);
        }
    }

    /// All ranges: first address, last address, owner.
    pub fn ranges(&self) -> Vec<(u64, u64, String)> {
        self.map.load().iter().map(|e| (e.start, e.last, e.owner.to_string())).collect()
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

#[inline]
fn find(entries: &[Entry], addr: u64) -> Option<&Entry> {
    let at = entries.partition_point(|e| e.start <= addr);
    entries.get(at.checked_sub(1)?).filter(|e| e.last >= addr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

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

    #[test]
    fn empty_and_wrapping_ranges_are_refused() {
        let space = AddressSpace::new();
        for (start, len) in [(0, 0), (u64::MAX, 2)] {
            assert_eq!(space.map(start, len, "x", Arc::new(Echo::default())), Err(MapError::Invalid { start, len }));
        }
        space.map(u64::MAX, 1, "top", Arc::new(Echo::default())).unwrap();
    }
}
