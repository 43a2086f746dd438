//! Guest RAM of a test: one zeroed allocation from address 0 on.
#![expect(unsafe_code, reason = "allocates and frees the memory that the region table names")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cardcage_plugin_abi::abi_stable::{sabi_trait::TD_Opaque, std_types::*};
use cardcage_plugin_abi::{MemTable, MemoryAbi, MemoryAbi_TO, MemoryObj, Region};

const PAGE: usize = 4096;
/// Enough for what rings hold. More would make the allocator write the zeroes itself, where the kernel has zero pages.
const ALIGNMENT: usize = 16;

pub(super) struct Ram {
    table: RArc<MemTable>,
    layout: Layout,
    generation: AtomicU64,
}

impl Ram {
    pub(super) fn new(len: usize) -> Arc<Self> {
        let layout = Layout::from_size_align(len.max(PAGE), ALIGNMENT);
        let layout = layout.expect("the size of test RAM fits the address space");
        // SAFETY: the layout has a size that is not zero.
        let hva = unsafe { alloc_zeroed(layout) };
        if hva.is_null() {
            handle_alloc_error(layout);
        }
        let region = Region {
            start: 0,
            len: layout.size() as u64,
            hva,
            dirty: std::ptr::null(),
            watch: std::ptr::null(),
            watch_hits: std::ptr::null(),
            file_offset: 0,
            fd: -1,
            page_shift: 12,
            flags: 0,
        };
        let table = RArc::new(MemTable { generation: 0, regions: RVec::from(vec![region]) });
        Arc::new(Self { table, layout, generation: AtomicU64::new(0) })
    }

    pub(super) fn len(&self) -> u64 {
        self.layout.size() as u64
    }

    pub(super) fn object(self: &Arc<Self>) -> MemoryObj {
        MemoryAbi_TO::from_ptr(RArc::new(View(self.clone())), TD_Opaque)
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // Somebody who still has a table may still use the memory: leave it to them.
        if RArc::strong_count(&self.table) == 1 {
            // SAFETY: allocated in `new` with this layout, and nobody else has its address.
            unsafe { dealloc(self.table.regions[0].hva, self.layout) };
        }
    }
}

struct View(Arc<Ram>);

impl MemoryAbi for View {
    fn snapshot(&self) -> RArc<MemTable> {
        self.0.table.clone()
    }
    fn generation(&self) -> *const u64 {
        self.0.generation.as_ptr().cast_const()
    }
}
