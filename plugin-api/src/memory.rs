//! Guest RAM, as a `vm-memory` backend: `virtio-queue` and everything else built on vm-memory works on it.
//!
//! A [`GuestMemory`] is a snapshot of the memory map. Take one with [`Context::memory`](crate::Context::memory) where
//! you need it and let it go afterwards: the host can take a region away only when nobody holds it any more.
//!
//! ```no_run
//! # use cardcage_plugin_api::*;
//! # fn f(ctx: &Context) -> Result<()> {
//! use cardcage_plugin_api::memory::{Bytes, GuestAddress};
//! ctx.memory().write_obj(1u32, GuestAddress(0x1000))?;
//! # Ok(()) }
//! ```
#![expect(unsafe_code, reason = "turns the host's table of regions into vm-memory slices")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cardcage_plugin_abi::abi_stable::std_types::RArc;
use cardcage_plugin_abi::{MemTable, MemoryObj, Region};
pub use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, Le16, Le32, Le64};
use vm_memory::{
    GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
    bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice},
    guest_memory,
};

/// All guest RAM at one moment.
pub type GuestMemory = Arc<GuestRegionCollection<RamRegion>>;

/// The host's bitmaps for one region, or a part of it.
#[derive(Clone, Copy, Debug)]
pub struct DirtyBitmap {
    dirty: *const AtomicU64,
    watch: *const AtomicU64,
    watch_hits: *const AtomicU64,
    shift: u32,
    offset: usize,
}
// SAFETY: the pointers name atomics that the host keeps as long as the region.
unsafe impl Send for DirtyBitmap {}
// SAFETY: as above.
unsafe impl Sync for DirtyBitmap {}

impl WithBitmapSlice<'_> for DirtyBitmap {
    type S = DirtyBitmap;
}
impl BitmapSlice for DirtyBitmap {}
impl Bitmap for DirtyBitmap {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.dirty.is_null() || len == 0 {
            return;
        }
        let first = (self.offset + offset) >> self.shift;
        let last = (self.offset + offset + len - 1) >> self.shift;
        for page in first..=last {
            let bit = 1 << (page % 64);
            // SAFETY: the host sized both bitmaps to the region, and vm-memory has checked the offset against it.
            unsafe { &*self.dirty.add(page / 64) }.fetch_or(bit, Ordering::SeqCst);
            if self.watch.is_null() {
                continue;
            }
            // SAFETY: as above.
            if unsafe { &*self.watch.add(page / 64) }.load(Ordering::SeqCst) & bit != 0 {
                // SAFETY: set together with `watch`.
                unsafe { &*self.watch_hits }.fetch_add(1, Ordering::Release);
            }
        }
    }
    #[inline]
    fn dirty_at(&self, offset: usize) -> bool {
        let page = (self.offset + offset) >> self.shift;
        // SAFETY: as in `mark_dirty`.
        !self.dirty.is_null() && unsafe { &*self.dirty.add(page / 64) }.load(Ordering::Relaxed) >> (page % 64) & 1 == 1
    }
    #[inline]
    fn slice_at(&self, offset: usize) -> DirtyBitmap {
        DirtyBitmap { offset: self.offset + offset, ..*self }
    }
}

/// One range of guest RAM.
#[derive(Debug)]
pub struct RamRegion {
    region: Region,
    /// Keeps the mapping alive.
    _table: RArc<MemTable>,
}

impl GuestMemoryRegionBytes for RamRegion {}
impl GuestMemoryRegion for RamRegion {
    type B = DirtyBitmap;
    #[inline]
    fn len(&self) -> GuestUsize {
        self.region.len
    }
    #[inline]
    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.region.start)
    }
    #[inline]
    fn bitmap(&self) -> BS<'_, DirtyBitmap> {
        DirtyBitmap {
            dirty: self.region.dirty.cast(),
            watch: self.region.watch.cast(),
            watch_hits: self.region.watch_hits.cast(),
            shift: self.region.page_shift,
            offset: 0,
        }
    }
    #[inline]
    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> guest_memory::Result<VolatileSlice<'_, BS<'_, DirtyBitmap>>> {
        let end = offset.0.checked_add(count as u64).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        if end > self.region.len {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let bitmap = self.bitmap().slice_at(offset.0 as usize);
        // SAFETY: inside of the region that the host mapped; `_table` keeps the mapping alive.
        Ok(unsafe { VolatileSlice::with_bitmap(self.region.hva.add(offset.0 as usize), count, bitmap, None) })
    }
}

/// Gives the current snapshot and notices when the host changes the map.
pub(crate) struct MemoryView {
    source: MemoryObj,
    generation: *const AtomicU64,
    seen: u64,
    current: GuestMemory,
}
// SAFETY: the counter belongs to `source`, which is shared between threads.
unsafe impl Send for MemoryView {}

impl MemoryView {
    pub(crate) fn new(source: MemoryObj) -> Self {
        let generation = source.generation().cast();
        let (seen, current) = snapshot(&source);
        Self { source, generation, seen, current }
    }

    #[inline]
    pub(crate) fn get(&mut self) -> &GuestMemory {
        // SAFETY: the host promises that the counter lives as long as `source`.
        if unsafe { &*self.generation }.load(Ordering::Acquire) != self.seen {
            (self.seen, self.current) = snapshot(&self.source);
        }
        &self.current
    }
}

fn snapshot(source: &MemoryObj) -> (u64, GuestMemory) {
    let table = source.snapshot();
    let regions = table.regions.iter().map(|&region| RamRegion { region, _table: table.clone() }).collect();
    let memory = GuestRegionCollection::from_regions(regions).expect("the host's table is sorted and not empty");
    (table.generation, Arc::new(memory))
}
