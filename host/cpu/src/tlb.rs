//! Software TLBs, and the loads and stores of guest code that go through them.
//!
//! Each privilege class (supervisor, user) has a direct-mapped table for data. An entry's tags are the page's linear
//! address, or a value that no access matches; the addend turns a linear address into a host address. **The tag check
//! is the one guard of every host pointer**: an access goes through only if the page of its *last* byte equals the
//! tag of the entry that its *first* byte selects, so it never leaves a page.
//!
//! A page that holds decoded code, or that a data breakpoint lies on, or that was not yet marked dirty in the page
//! tables, has no write tag: stores to it take the slow path in `memory`.
#![expect(unsafe_code, reason = "guest RAM is reached through host pointers that the tag check has validated")]

use crate::op::Op;
use crate::state::Cpu;

const SETS: usize = 1024;
const NO_TAG: u64 = 1;
/// How many entries of pages that are not global are remembered one by one.
const LIST: usize = 256;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    read: u64,
    write: u64,
    addend: u64,
    global: bool,
}

impl Entry {
    const EMPTY: Entry = Entry { read: NO_TAG, write: NO_TAG, addend: 0, global: false };
}

/// Both classes, one after the other.
#[repr(C)]
pub(crate) struct Tlb {
    entries: [Entry; 2 * SETS],
    /// Offset in bytes of the present class's entries: 0 or `SETS` of them.
    class: usize,
    /// Entries filled for pages that are not global; more than fit are not listed and cost a full flush.
    listed: [u16; LIST],
    count: usize,
}

/// A code page as instruction fetch sees it.
#[derive(Clone, Copy)]
pub(crate) struct CodeEntry {
    pub(crate) tag: u64,
    pub(crate) phys: u64,
    pub(crate) epoch: u32,
}

/// Recently used code pages.
pub(crate) struct CodeTlb {
    pub(crate) entries: [CodeEntry; 256],
    /// Linear pages that code was ever fetched from, as a Bloom filter of one hash.
    seen: Box<[u64; 1024]>,
    /// Large pages that were ever used, likewise, by their number and size.
    large: Box<[u64; 1024]>,
}

impl CodeTlb {
    pub(crate) fn new() -> CodeTlb {
        CodeTlb {
            entries: [CodeEntry { tag: NO_TAG, phys: 0, epoch: 0 }; 256],
            seen: Box::new([0; 1024]),
            large: Box::new([0; 1024]),
        }
    }
    fn spot(page: u64) -> (usize, u64) {
        let h = (page >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        ((h >> 6) as usize & 1023, 1 << (h & 63))
    }
    /// Remembers that part of a large page was taken in.
    pub(crate) fn note_large(&mut self, linear: u64, shift: u32) {
        let (word, bit) = Self::spot((linear >> shift << 12) ^ u64::from(shift));
        self.large[word] |= bit;
    }
    /// Whether `linear` may be on a large page, of which several parts may have been taken in.
    pub(crate) fn may_be_large(&self, linear: u64) -> bool {
        [21, 22, 30].into_iter().any(|shift| {
            let (word, bit) = Self::spot((linear >> shift << 12) ^ shift);
            self.large[word] & bit != 0
        })
    }
    pub(crate) fn note(&mut self, page: u64) {
        let (word, bit) = Self::spot(page);
        self.seen[word] |= bit;
    }
    /// Whether code may have been fetched from the page of `linear`.
    pub(crate) fn has_seen(&self, linear: u64) -> bool {
        let (word, bit) = Self::spot(linear & !0xfff);
        self.seen[word] & bit != 0
    }
}

impl Tlb {
    pub(crate) fn new() -> Tlb {
        Tlb { entries: [Entry::EMPTY; 2 * SETS], class: 0, listed: [0; LIST], count: 0 }
    }

    /// Chooses the table by privilege.
    pub(crate) fn select(&mut self, user: bool) {
        self.class = if user { SETS * size_of::<Entry>() } else { 0 };
    }

    /// Takes in a page of RAM.
    pub(crate) fn fill(
        &mut self,
        user: bool,
        linear: u64,
        host_page: u64,
        writable: bool,
        readable: bool,
        global: bool,
    ) {
        let page = linear & !0xfff;
        let at = ((page >> 12) as usize & (SETS - 1)) + if user { SETS } else { 0 };
        self.entries[at] = Entry {
            read: if readable { page } else { NO_TAG },
            write: if writable { page } else { NO_TAG },
            addend: host_page.wrapping_sub(page),
            global,
        };
        if !global {
            if self.count < LIST {
                self.listed[self.count] = at as u16;
            }
            self.count = (self.count + 1).min(LIST + 1);
        }
    }

    /// Forgets all pages.
    pub(crate) fn flush_all(&mut self) {
        self.entries.fill(Entry::EMPTY);
        self.count = 0;
    }

    /// Forgets all pages that are not global.
    pub(crate) fn flush_local(&mut self) {
        if self.count > LIST {
            for e in &mut self.entries {
                if !e.global {
                    *e = Entry::EMPTY;
                }
            }
        } else {
            for &at in &self.listed[..self.count] {
                let e = &mut self.entries[usize::from(at) & (2 * SETS - 1)];
                if !e.global {
                    *e = Entry::EMPTY;
                }
            }
        }
        self.count = 0;
    }

    /// Forgets one page.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        let at = (linear >> 12) as usize & (SETS - 1);
        self.entries[at] = Entry::EMPTY;
        self.entries[at + SETS] = Entry::EMPTY;
    }

    /// Sends stores to a page of RAM, by its host address, through the slow path.
    pub(crate) fn protect(&mut self, host_page: u64) {
        for e in &mut self.entries {
            if e.write != NO_TAG && e.write.wrapping_add(e.addend) == host_page {
                e.write = NO_TAG;
            }
        }
    }

    /// Host address of `SIZE` bytes at `a`; `None` if the slow path has to look.
    #[inline(always)]
    fn host<const SIZE: usize, const WRITE: bool>(&self, a: u64) -> Option<*mut u8> {
        // Offsets in bytes rather than indices: two instructions less on the most travelled path.
        let offset = ((a >> 12) as usize & (SETS - 1)) * size_of::<Entry>() + self.class;
        // SAFETY: `class` is where one of the two tables of `SETS` entries begins, and the rest is less than a table.
        let e = unsafe { &*self.entries.as_ptr().byte_add(offset) };
        let tag = if WRITE { e.write } else { e.read };
        let hit = a.wrapping_add(SIZE as u64 - 1) & !0xfff == tag;
        hit.then(|| std::ptr::with_exposed_provenance_mut(a.wrapping_add(e.addend) as usize))
    }

    /// Host address of `size` bytes at `a` as a class sees them, if the TLB has the page and all of them are on it.
    #[inline]
    pub(crate) fn place(&self, user: bool, a: u64, size: usize, write: bool) -> Option<*mut u8> {
        let e = &self.entries[((a >> 12) as usize & (SETS - 1)) + if user { SETS } else { 0 }];
        let tag = if write { e.write } else { e.read };
        let inside = a.wrapping_add(size as u64 - 1) & !0xfff == tag && a & !0xfff == tag;
        inside.then(|| std::ptr::with_exposed_provenance_mut(a.wrapping_add(e.addend) as usize))
    }

    /// Host address of one byte at `a` and of what follows on its page, if the TLB has the page.
    pub(crate) fn span(&self, a: u64, write: bool) -> Option<*mut u8> {
        if write { self.host::<1, true>(a) } else { self.host::<1, false>(a) }
    }
}

/// Where a read-modify-write goes: a host address, or null for the slow path.
#[derive(Clone, Copy)]
pub(crate) struct Place(*mut u8);

impl Place {
    /// The place is not plain memory; the slow path has checked that it can be written.
    pub(crate) const SLOW: Place = Place(std::ptr::null_mut());
}

#[inline(always)]
pub(crate) fn peek<const SZ: usize>(p: *const u8) -> u64 {
    // SAFETY: callers pass an address that the tag check has validated for `SZ` bytes; alignment is not assumed.
    unsafe {
        match SZ {
            1 => u64::from(p.read_volatile()),
            2 => u64::from(p.cast::<u16>().read_unaligned()),
            4 => u64::from(p.cast::<u32>().read_unaligned()),
            _ => p.cast::<u64>().read_unaligned(),
        }
    }
}

#[inline(always)]
pub(crate) fn poke<const SZ: usize>(p: *mut u8, v: u64) {
    // SAFETY: as in `peek`.
    unsafe {
        match SZ {
            1 => p.write(v as u8),
            2 => p.cast::<u16>().write_unaligned(v as u16),
            4 => p.cast::<u32>().write_unaligned(v as u32),
            _ => p.cast::<u64>().write_unaligned(v),
        }
    }
}

impl Cpu {
    /// Loads `SZ` bytes at linear address `a`. `None`: a fault is noted.
    #[inline(always)]
    pub(crate) fn load<const SZ: usize>(&mut self, op: &Op, a: u64) -> Option<u64> {
        match self.tlb.host::<SZ, false>(a) {
            Some(p) => Some(peek::<SZ>(p)),
            None => self.load_slowly(op, a, SZ),
        }
    }

    /// Loads `SZ` bytes if the TLB has the page.
    #[inline(always)]
    pub(crate) fn load_fast<const SZ: usize>(&self, a: u64) -> Option<u64> {
        self.tlb.host::<SZ, false>(a).map(|p| peek::<SZ>(p))
    }

    /// Stores `SZ` bytes if the TLB has the page.
    #[inline(always)]
    pub(crate) fn store_fast<const SZ: usize>(&mut self, a: u64, v: u64) -> bool {
        self.tlb.host::<SZ, true>(a).map(|p| poke::<SZ>(p, v)).is_some()
    }

    /// Stores `SZ` bytes at linear address `a`. False: a fault is noted.
    #[inline(always)]
    pub(crate) fn store<const SZ: usize>(&mut self, op: &Op, a: u64, v: u64) -> bool {
        let Some(p) = self.tlb.host::<SZ, true>(a) else {
            return self.store_slowly(op, a, SZ, v);
        };
        poke::<SZ>(p, v);
        true
    }

    /// Where `SZ` bytes are that can be loaded and stored to, if the TLB has the page.
    #[inline(always)]
    pub(crate) fn place_fast<const SZ: usize>(&self, a: u64) -> Option<*mut u8> {
        self.tlb.host::<SZ, true>(a)
    }

    /// Loads `SZ` bytes that will be stored to.
    #[inline(always)]
    pub(crate) fn load_for_store<const SZ: usize>(&mut self, op: &Op, a: u64) -> Option<(u64, Place)> {
        let Some(p) = self.tlb.host::<SZ, true>(a) else {
            return self.load_for_store_slowly(op, a, SZ).map(|v| (v, Place::SLOW));
        };
        Some((peek::<SZ>(p), Place(p)))
    }

    /// Stores where `load_for_store` has loaded. Cannot fault.
    #[inline(always)]
    pub(crate) fn store_back<const SZ: usize>(&mut self, op: &Op, a: u64, place: Place, v: u64) {
        if place.0.is_null() {
            self.store_slowly(op, a, SZ, v);
        } else {
            poke::<SZ>(place.0, v);
        }
    }

    /// Loads 16 bytes.
    #[inline(always)]
    pub(crate) fn load16(&mut self, op: &Op, a: u64) -> Option<[u64; 2]> {
        let Some(p) = self.tlb.host::<16, false>(a) else {
            return self.load16_slowly(op, a);
        };
        // SAFETY: the tag check has validated 16 bytes.
        Some(unsafe { p.cast::<[u64; 2]>().read_unaligned() })
    }

    /// Stores 16 bytes.
    #[inline(always)]
    pub(crate) fn store16(&mut self, op: &Op, a: u64, v: [u64; 2]) -> bool {
        let Some(p) = self.tlb.host::<16, true>(a) else {
            return self.store16_slowly(op, a, v);
        };
        // SAFETY: the tag check has validated 16 bytes.
        unsafe { p.cast::<[u64; 2]>().write_unaligned(v) };
        true
    }
}
