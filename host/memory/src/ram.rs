//! The memory itself: memfd-backed regions with dirty and watch bitmaps.
#![expect(unsafe_code, reason = "guest RAM is shared with the guest and reached through raw pointers")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Log2 of the page size of the bitmaps.
pub const PAGE_SHIFT: u32 = 12;
/// Page size of the bitmaps, in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host refused the memory.
    #[error("cannot set up {size} bytes of guest memory: {source}; use a smaller -m")]
    Allocate {
        /// Bytes asked for.
        size: u64,
        /// The host's reason.
        source: rustix::io::Errno,
    },
    /// Regions are empty, unaligned, unsorted or overlap.
    #[error(
        "guest memory region at {start:#x} of {len:#x} bytes is empty, not page aligned, or overlaps the one before"
    )]
    Layout {
        /// Guest-physical start of the region at fault.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
}

/// An access that is not wholly inside one region of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest-physical {addr:#x} + {len:#x} is not RAM")]
pub struct OutOfRange {
    /// Guest-physical address of the access.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// One contiguous range of guest-physical addresses that is RAM.
#[derive(Debug)]
pub struct RamRegion {
    start: u64,
    len: u64,
    file_offset: u64,
    hva: *mut u8,
    dirty: Box<[AtomicU64]>,
    watch: Box<[AtomicU64]>,
}

// SAFETY: the pointer names a shared mapping that lives as long as the region; all access is by volatile or raw copies.
unsafe impl Send for RamRegion {}
// SAFETY: as above; the bitmaps are atomics.
unsafe impl Sync for RamRegion {}

impl RamRegion {
    /// Guest-physical address of the first byte.
    #[inline]
    pub fn start(&self) -> u64 {
        self.start
    }
    /// Length in bytes, a multiple of [`PAGE_SIZE`].
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Never: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }
    /// Offset of the first byte in the memfd.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }
    /// Host address of the first byte. Valid as long as the [`GuestRam`] lives.
    #[inline]
    pub fn hva(&self) -> *mut u8 {
        self.hva
    }
    /// One bit per page, set after the page was written by a device or the host.
    pub fn dirty_bitmap(&self) -> &[AtomicU64] {
        &self.dirty
    }
    /// One bit per page, set while somebody wants to hear of writes.
    pub fn watch_bitmap(&self) -> &[AtomicU64] {
        &self.watch
    }
}

impl Drop for RamRegion {
    fn drop(&mut self) {
        // SAFETY: mapped in `GuestRam::new` with this length; nobody can hold the region any more.
        let _ = unsafe { munmap(self.hva.cast(), self.len as usize) };
    }
}

/// All RAM of a machine.
#[derive(Debug)]
pub struct GuestRam {
    regions: Vec<RamRegion>,
    fd: OwnedFd,
    watch_hits: AtomicU64,
}

impl GuestRam {
    /// RAM at the given `(start, length)` ranges, in ascending order, zero filled. Host memory is taken when touched.
    pub fn new(layout: &[(u64, u64)]) -> Result<Self, RamError> {
        let mut end = 0;
        for &(start, len) in layout {
            let aligned = start % PAGE_SIZE == 0 && len % PAGE_SIZE == 0 && len != 0;
            if !aligned || start < end || start.checked_add(len).is_none() {
                return Err(RamError::Layout { start, len });
            }
            end = start + len;
        }
        let size: u64 = layout.iter().map(|r| r.1).sum();
        let failed = |source| RamError::Allocate { size, source };
        let fd = memfd_create("cardcage-ram", MemfdFlags::CLOEXEC).map_err(failed)?;
        ftruncate(&fd, size).map_err(failed)?;
        let mut ram = Self { regions: Vec::with_capacity(layout.len()), fd, watch_hits: AtomicU64::new(0) };
        let mut file_offset = 0;
        for &(start, len) in layout {
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a fresh mapping at an address of the kernel's choice.
            let hva = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    len as usize,
                    prot,
                    MapFlags::SHARED | MapFlags::NORESERVE,
                    &ram.fd,
                    file_offset,
                )
            }
            .map_err(failed)?;
            let words = (len >> PAGE_SHIFT).div_ceil(64) as usize;
            let bitmap = || (0..words).map(|_| AtomicU64::new(0)).collect();
            ram.regions.push(RamRegion { start, len, file_offset, hva: hva.cast(), dirty: bitmap(), watch: bitmap() });
            file_offset += len;
        }
        Ok(ram)
    }

    /// The regions, in ascending order.
    #[inline]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// The memfd behind all regions.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes of RAM in all.
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum()
    }

    /// The region that holds all of `addr..addr + len`, and the offset in it.
    #[inline]
    pub fn find(&self, addr: u64, len: u64) -> Option<(&RamRegion, u64)> {
        self.regions.iter().find_map(|r| {
            let offset = addr.wrapping_sub(r.start);
            (offset < r.len && len <= r.len - offset).then_some((r, offset))
        })
    }

    /// Host address of `addr..addr + len`, if one region holds all of it.
    #[inline]
    pub fn host_address(&self, addr: u64, len: u64) -> Option<*mut u8> {
        self.find(addr, len).map(|(r, offset)| r.hva.wrapping_add(offset as usize))
    }

    /// Copies bytes out of guest RAM.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let len = buf.len() as u64;
        let src = self.host_address(addr, len).ok_or(OutOfRange { addr, len })?;
        // SAFETY: `src` names `len` mapped bytes; `buf` is ours and cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(src, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies bytes into guest RAM, and marks them as written.
    pub fn write(&self, addr: u64, buf: &[u8]) -> Result<(), OutOfRange> {
        let len = buf.len() as u64;
        let (region, offset) = self.find(addr, len).ok_or(OutOfRange { addr, len })?;
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), region.hva.add(offset as usize), buf.len()) };
        self.mark_written(region, offset, len);
        Ok(())
    }

    /// Fills bytes of guest RAM, and marks them as written.
    pub fn fill(&self, addr: u64, len: u64, value: u8) -> Result<(), OutOfRange> {
        let (region, offset) = self.find(addr, len).ok_or(OutOfRange { addr, len })?;
        // SAFETY: `find` has checked that the range is mapped.
        unsafe { std::ptr::write_bytes(region.hva.add(offset as usize), value, len as usize) };
        self.mark_written(region, offset, len);
        Ok(())
    }

    /// Sets the dirty bits of a range of `region` that was just written, and counts hits on watched pages.
    pub fn mark_written(&self, region: &RamRegion, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (first, last) = (offset >> PAGE_SHIFT, (offset + len - 1) >> PAGE_SHIFT);
        for page in first..=last {
            let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
            region.dirty[word].fetch_or(bit, Ordering::SeqCst);
            if region.watch[word].load(Ordering::SeqCst) & bit != 0 {
                self.watch_hits.fetch_add(1, Ordering::Release);
            }
        }
    }

    /// How often a watched page was written by a device or the host. The counter's address is handed to plugins.
    #[inline]
    pub fn watch_hits(&self) -> &AtomicU64 {
        &self.watch_hits
    }

    /// Starts to watch the page at `addr`; read its bytes only afterwards. False if it is not RAM.
    pub fn watch(&self, addr: u64) -> bool {
        self.watch_bit(addr).is_some_and(|(word, bit)| {
            word.fetch_or(bit, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            true
        })
    }

    /// Ends watching the page at `addr`.
    pub fn unwatch(&self, addr: u64) {
        if let Some((word, bit)) = self.watch_bit(addr) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Whether the page at `addr` is watched.
    #[inline]
    pub fn is_watched(&self, addr: u64) -> bool {
        self.watch_bit(addr).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    fn watch_bit(&self, addr: u64) -> Option<(&AtomicU64, u64)> {
        let (region, offset) = self.find(addr, 1)?;
        let page = offset >> PAGE_SHIFT;
        Some((&region.watch[(page / 64) as usize], 1 << (page % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_regions() -> GuestRam {
        GuestRam::new(&[(0, 0x2000), (0x10_0000, 0x3000)]).unwrap()
    }

    #[test]
    fn bytes_come_back_from_the_region_they_were_written_to() {
        let ram = two_regions();
        ram.write(0x10_0ffe, &[1, 2, 3, 4]).unwrap();
        let mut buf = [0; 4];
        ram.read(0x10_0ffe, &mut buf).unwrap();
        assert_eq!(buf, [1, 2, 3, 4]);
        assert_eq!(ram.regions()[1].dirty_bitmap()[0].load(Ordering::SeqCst), 0b11);
        assert_eq!(ram.regions()[0].dirty_bitmap()[0].load(Ordering::SeqCst), 0);
    }

    #[test]
    fn an_access_beyond_the_end_of_a_region_is_refused_whole() {
        let ram = two_regions();
        assert_eq!(ram.write(0x1fff, &[1, 2]), Err(OutOfRange { addr: 0x1fff, len: 2 }));
        let mut byte = [9];
        ram.read(0x1fff, &mut byte).unwrap();
        assert_eq!(byte, [0]);
        assert!(ram.read(u64::MAX, &mut [0; 2]).is_err());
    }

    #[test]
    fn overlapping_and_unaligned_layouts_are_refused() {
        for layout in [&[(0, 0x2000), (0x1000, 0x1000)][..], &[(0, 0x800)], &[(0, 0)], &[(u64::MAX - 0xfff, 0x2000)]] {
            assert!(matches!(GuestRam::new(layout), Err(RamError::Layout { .. })), "{layout:x?}");
        }
    }

    #[test]
    fn writes_to_watched_pages_are_counted() {
        let ram = two_regions();
        assert!(ram.watch(0x10_1000));
        assert!(!ram.watch(0x8000));
        ram.write(0x10_0ff0, &[0; 16]).unwrap();
        assert_eq!(ram.watch_hits().load(Ordering::SeqCst), 0);
        ram.write(0x10_0ff0, &[0; 17]).unwrap();
        assert_eq!(ram.watch_hits().load(Ordering::SeqCst), 1);
        ram.unwatch(0x10_1000);
        ram.fill(0x10_1000, 0x1000, 7).unwrap();
        assert_eq!(ram.watch_hits().load(Ordering::SeqCst), 1);
    }
}
