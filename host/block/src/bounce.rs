//! Memory that O_DIRECT can use, for buffers that it cannot.
#![expect(unsafe_code, reason = "the allocator takes and gives raw pointers; the kernel fills the memory")]

use std::alloc::{Layout, alloc_zeroed, dealloc};

use rustix::io::Errno;

use crate::IoBuffers;

/// Zeroed memory that starts at a multiple of a power of two.
pub(crate) struct AlignedBuf {
    base: *mut u8,
    layout: Layout,
}

impl AlignedBuf {
    pub(crate) fn new(len: usize, alignment: usize) -> Result<Self, Errno> {
        let layout = Layout::from_size_align(len.max(1), alignment.max(1)).map_err(|_| Errno::INVAL)?;
        // SAFETY: the layout has at least one byte.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() { Err(Errno::NOMEM) } else { Ok(Self { base, layout }) }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated with this length and zeroed; borrowed as this buffer is. Requests made by `buffers` are
        // performed before it is borrowed again: see there.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.layout.size()) }
    }

    /// The bytes from `at` to `end`, `times` times over, as buffers of a call that is made while `self` is borrowed.
    pub(crate) fn buffers(&self, at: usize, end: usize, times: usize) -> IoBuffers {
        let end = end.min(self.layout.size());
        let at = at.min(end);
        // SAFETY: inside of the allocation; callers in this crate perform the I/O before they borrow or drop `self`.
        unsafe { IoBuffers::from_raw(std::iter::repeat_n((self.base.wrapping_add(at), end - at), times)) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base, self.layout) };
    }
}
