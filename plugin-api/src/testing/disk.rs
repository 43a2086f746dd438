//! A block backend in memory.

use cardcage_plugin_abi as abi;

use crate::context::GuestRange;
use crate::memory::{Bytes, GuestAddress, GuestMemory};

/// EFAULT: data outside of guest RAM.
const FAULT: i32 = 14;
/// EINVAL: a range outside of the disk.
const INVALID: i32 = 22;
/// EPERM: a write to a disk that is read-only.
const NOT_PERMITTED: i32 = 1;

/// What a request was, in the record of a [`TestDisk`]. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskOp {
    /// A read.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// A write.
    Write {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// A flush.
    Flush,
    /// A discard.
    Discard {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Zeroes were written.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// The range may be deallocated.
        may_unmap: bool,
    },
}

/// A disk for a [`TestHost`](super::TestHost).
///
/// Requests complete when the test calls [`TestDevice::run`](super::TestDevice::run), in the order in which they were
/// submitted, unless they are held ([`TestHost::hold_disk`](super::TestHost::hold_disk)).
#[derive(Debug, Clone)]
pub struct TestDisk {
    pub(super) data: Vec<u8>,
    pub(super) info: abi::BlockInfo,
    pub(super) hold: bool,
    pub(super) failures: Vec<i32>,
    pub(super) pending: Vec<Pending>,
    pub(super) performed: Vec<DiskOp>,
}

#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) op: u32,
    pub(super) may_unmap: bool,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) data: Vec<GuestRange>,
    pub(super) token: u64,
}

impl TestDisk {
    /// A disk of `len` zero bytes that can be written, discarded and flushed.
    pub fn new(len: usize) -> Self {
        let info = abi::BlockInfo {
            len: len as u64,
            request_alignment: 1,
            logical_block_size: 512,
            physical_block_size: 512,
            flags: abi::BLOCK_DISCARD | abi::BLOCK_WRITE_BACK,
        };
        let (failures, pending, performed) = (Vec::new(), Vec::new(), Vec::new());
        Self { data: vec![0; len], info, hold: false, failures, pending, performed }
    }
    /// Refuse writes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.info.flags |= abi::BLOCK_READ_ONLY;
        self
    }
    /// Probed block sizes and the alignment of requests, in bytes.
    #[must_use]
    pub fn block_sizes(mut self, logical: u32, physical: u32, request_alignment: u32) -> Self {
        self.info.logical_block_size = logical;
        self.info.physical_block_size = physical;
        self.info.request_alignment = request_alignment;
        self
    }
    /// Writes are durable at once.
    #[must_use]
    pub fn write_through(mut self) -> Self {
        self.info.flags &= !abi::BLOCK_WRITE_BACK;
        self
    }

    /// Does what a request asks for; a host errno if it fails.
    pub(super) fn perform(&mut self, request: &Pending, memory: &GuestMemory) -> Result<(), i32> {
        let Pending { op, may_unmap, offset, len, .. } = *request;
        self.performed.push(match op {
            abi::BLOCK_OP_READ => DiskOp::Read { offset, len },
            abi::BLOCK_OP_WRITE => DiskOp::Write { offset, len },
            abi::BLOCK_OP_DISCARD => DiskOp::Discard { offset, len },
            abi::BLOCK_OP_WRITE_ZEROES => DiskOp::WriteZeroes { offset, len, may_unmap },
            _ => DiskOp::Flush,
        });
        if !self.failures.is_empty() {
            return Err(self.failures.remove(0));
        }
        if op == abi::BLOCK_OP_FLUSH {
            return Ok(());
        }
        if op != abi::BLOCK_OP_READ && self.info.flags & abi::BLOCK_READ_ONLY != 0 {
            return Err(NOT_PERMITTED);
        }
        let end = offset.checked_add(len).filter(|&end| end <= self.data.len() as u64).ok_or(INVALID)?;
        let alignment = u64::from(self.info.request_alignment);
        if offset % alignment != 0 || len % alignment != 0 {
            return Err(INVALID);
        }
        let mut range = &mut self.data[offset as usize..end as usize];
        match op {
            abi::BLOCK_OP_DISCARD | abi::BLOCK_OP_WRITE_ZEROES => range.fill(0),
            _ => {
                for piece in &request.data {
                    let (now, later) = range.split_at_mut_checked(piece.len as usize).ok_or(INVALID)?;
                    let at = GuestAddress(piece.addr);
                    let moved = match op {
                        abi::BLOCK_OP_READ => memory.write_slice(now, at),
                        _ => memory.read_slice(now, at),
                    };
                    moved.map_err(|_| FAULT)?;
                    range = later;
                }
            }
        }
        Ok(())
    }
}
