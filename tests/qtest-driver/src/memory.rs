//! Guest RAM for a test's own structures.

use std::cell::Cell;

/// Hands out guest-physical addresses, and never takes them back: a test is short.
#[derive(Debug)]
pub struct GuestAllocator {
    next: Cell<u64>,
    end: u64,
}

impl Default for GuestAllocator {
    /// From 1 MiB to 64 MiB, which every PC has.
    fn default() -> Self {
        Self::new(1 << 20, 64 << 20)
    }
}

impl GuestAllocator {
    /// Addresses from `start` to `end`.
    pub fn new(start: u64, end: u64) -> Self {
        Self { next: Cell::new(start), end }
    }

    /// An address with room for `size` bytes; `align` is a power of two. What is there is whatever was there.
    #[track_caller]
    pub fn alloc(&self, size: u64, align: u64) -> u64 {
        let start = self.next.get().next_multiple_of(align);
        assert!(start + size <= self.end, "{size:#x} bytes of guest RAM do not fit below {:#x}", self.end);
        self.next.set(start + size);
        start
    }
}
