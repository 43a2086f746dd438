//! What can be learned of an open file: its length, what O_DIRECT demands, and the block sizes of a device.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use rustix::fs::{AtFlags, StatxFlags, ioctl_blkpbszget, ioctl_blksszget, statx};
use rustix::io::{Errno, pread};

use crate::SECTOR_SIZE;
use crate::bounce::AlignedBuf;

/// The strictest demand that disks and file systems make.
const MAX_ALIGNMENT: u64 = 4096;

/// Length in bytes, of a file or a device.
pub(crate) fn length(mut file: &File) -> Result<u64, Errno> {
    file.seek(SeekFrom::End(0)).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Logical and physical block size of a block device.
pub(crate) fn block_sizes(file: &File) -> Option<(u32, u32)> {
    let logical = ioctl_blksszget(file).ok()?;
    Some((logical, ioctl_blkpbszget(file).unwrap_or(logical).max(logical)))
}

/// What memory and offsets must be multiples of under O_DIRECT: the kernel's word, or else an experiment.
pub(crate) fn direct_alignment(file: &File, is_device: bool) -> (u64, usize) {
    let told = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let told = told.filter(|s| s.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && s.stx_dio_offset_align != 0);
    if let Some(s) = told {
        return (u64::from(s.stx_dio_offset_align), s.stx_dio_mem_align.max(1) as usize);
    }
    let logical = is_device.then(|| ioctl_blksszget(file).ok()).flatten().map(u64::from);
    let request = logical.unwrap_or_else(|| try_alignments(file));
    (request, MAX_ALIGNMENT as usize)
}

/// The least alignment at which a read succeeds.
fn try_alignments(file: &File) -> u64 {
    let mut alignment = SECTOR_SIZE;
    while alignment < MAX_ALIGNMENT {
        let Ok(mut buf) = AlignedBuf::new(alignment as usize, MAX_ALIGNMENT as usize) else { break };
        match pread(file, buf.bytes(), 0) {
            Err(Errno::INVAL) => alignment *= 2,
            _ => return alignment,
        }
    }
    MAX_ALIGNMENT
}
