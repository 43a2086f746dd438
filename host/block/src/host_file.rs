//! Requests on an open host file, by blocking calls: what a thread of the pool does.
#![expect(unsafe_code, reason = "preadv and pwritev on guest memory: their safe wrappers take Rust slices")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::{Errno, retry_on_intr};

use crate::bounce::AlignedBuf;
use crate::options::DetectZeroes;
use crate::ranges::RangeLocks;
use crate::request::IoResult;
use crate::{IoBuffers, Op, Request};

/// Pieces that one system call takes (`IOV_MAX`).
const MAX_PIECES: usize = 1024;
/// Bytes that are copied for O_DIRECT in one go.
const BOUNCE_LEN: u64 = 1 << 20;
/// Bytes of zeroes that are kept to write, and how often one call writes them.
const ZEROES: (usize, u64) = (64 << 10, 256);

/// An open file or block device, and how to treat it.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    direct: Option<Direct>,
    no_flush: bool,
    /// Set when the file system said that it cannot do it.
    no_zero_range: AtomicBool,
    no_punch_hole: AtomicBool,
    /// The errno of the first `fdatasync` that lost data, or 0.
    lost_data: AtomicI32,
}

/// What O_DIRECT demands of requests.
#[derive(Debug)]
struct Direct {
    request_alignment: u64,
    memory_alignment: usize,
    writing: RangeLocks,
}

impl HostFile {
    /// `direct` has the alignment of requests and of memory if the file was opened with O_DIRECT.
    pub(crate) fn new(file: File, direct: Option<(u64, usize)>, no_flush: bool) -> Self {
        let direct = direct.map(|(request_alignment, memory_alignment)| Direct {
            request_alignment,
            memory_alignment,
            writing: RangeLocks::default(),
        });
        Self {
            file,
            direct,
            no_flush,
            no_zero_range: AtomicBool::new(false),
            no_punch_hole: AtomicBool::new(false),
            lost_data: AtomicI32::new(0),
        }
    }

    /// The open file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What offsets and lengths of requests should be multiples of; others are slower.
    pub fn request_alignment(&self) -> u64 {
        self.direct.as_ref().map_or(1, |d| d.request_alignment)
    }

    /// What addresses of buffers should be multiples of; others are copied.
    pub fn memory_alignment(&self) -> usize {
        self.direct.as_ref().map_or(1, |d| d.memory_alignment)
    }

    /// Performs a request, and waits for it. For engines that use threads.
    pub fn perform(&self, request: &Request) -> IoResult {
        let (offset, len, buffers) = (request.offset, request.len, &request.buffers);
        match request.op {
            Op::Read => self.read(offset, buffers),
            Op::Write { fua } => {
                match request.detect_zeroes {
                    detect if detect != DetectZeroes::Off && buffers.is_zero() => {
                        self.write_zeroes(offset, len, detect == DetectZeroes::Unmap)?;
                    }
                    _ => self.write(offset, buffers)?,
                }
                if fua { self.flush() } else { Ok(()) }
            }
            Op::WriteZeroes { unmap, fua } => {
                self.write_zeroes(offset, len, unmap)?;
                if fua { self.flush() } else { Ok(()) }
            }
            Op::Discard => self.discard(offset, len),
            Op::Flush => self.flush(),
        }
    }

    fn read(&self, offset: u64, buffers: &IoBuffers) -> IoResult {
        match &self.direct {
            Some(direct) if !direct.fits(offset, buffers) => self.read_bounced(direct, offset, buffers),
            _ => self.read_pieces(offset, buffers),
        }
    }

    /// Reads; what lies beyond the end of the file is zeroes.
    fn read_pieces(&self, offset: u64, buffers: &IoBuffers) -> IoResult {
        let mut done = 0;
        while done < buffers.len() {
            let now = self.call(libc::preadv, offset, done, buffers)?;
            // Under O_DIRECT the last, odd piece of a file comes with the call before the end.
            let at_end = now == 0 || !now.is_multiple_of(self.request_alignment());
            done += now;
            if at_end {
                buffers.zero_from(done);
                break;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &IoBuffers) -> IoResult {
        let Some(direct) = &self.direct else { return self.write_pieces(offset, buffers) };
        let (start, end) = direct.around(offset, buffers.len());
        let partial = start != offset || end != offset + buffers.len();
        let _writing = direct.writing.lock(start..end, partial);
        if direct.fits(offset, buffers) {
            self.write_pieces(offset, buffers)
        } else {
            self.write_bounced(direct, offset, buffers)
        }
    }

    fn write_pieces(&self, offset: u64, buffers: &IoBuffers) -> IoResult {
        let mut done = 0;
        while done < buffers.len() {
            match self.call(libc::pwritev, offset, done, buffers)? {
                0 => return Err(Errno::IO),
                now => done += now,
            }
        }
        Ok(())
    }

    /// One system call for the bytes of `buffers` from `done` on, which lie at `offset + done`. Returns how many it did.
    fn call(&self, call: VectorCall, offset: u64, done: u64, buffers: &IoBuffers) -> Result<u64, Errno> {
        let rest;
        let pieces = if done == 0 {
            buffers.pieces()
        } else {
            rest = buffers.part(done, u64::MAX);
            &rest
        };
        let pieces = pieces.get(..MAX_PIECES).unwrap_or(pieces);
        let at = offset.checked_add(done).and_then(|at| libc::off_t::try_from(at).ok()).ok_or(Errno::FBIG)?;
        retry_on_intr(|| {
            // SAFETY: the pieces are valid until the request completes, which is after this call: `IoBuffers::from_raw`.
            let result = unsafe { call(self.file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int, at) };
            u64::try_from(result).map_err(|_| last_errno())
        })
    }

    fn read_bounced(&self, direct: &Direct, offset: u64, buffers: &IoBuffers) -> IoResult {
        let (mut at, end) = direct.around(offset, buffers.len());
        let mut bounce = direct.bounce(end - at)?;
        while at < end {
            let len = (end - at).min(BOUNCE_LEN) as usize;
            self.read_pieces(at, &bounce.buffers(0, len, 1))?;
            // The first block begins before the request, and the last one ends after it.
            let skip = offset.saturating_sub(at) as usize;
            buffers.copy_in((at + skip as u64) - offset, &bounce.bytes()[skip..len]);
            at += len as u64;
        }
        Ok(())
    }

    /// Writes whole blocks, whose bytes that the request does not cover are read before. The range is locked.
    fn write_bounced(&self, direct: &Direct, offset: u64, buffers: &IoBuffers) -> IoResult {
        let (mut at, end) = direct.around(offset, buffers.len());
        let request_end = offset + buffers.len();
        let block = direct.request_alignment as usize;
        let mut bounce = direct.bounce(end - at)?;
        while at < end {
            let len = (end - at).min(BOUNCE_LEN) as usize;
            if at < offset {
                self.read_pieces(at, &bounce.buffers(0, block, 1))?;
            }
            if at + len as u64 > request_end {
                self.read_pieces(at + (len - block) as u64, &bounce.buffers(len - block, len, 1))?;
            }
            let skip = offset.saturating_sub(at) as usize;
            buffers.copy_out((at + skip as u64) - offset, &mut bounce.bytes()[skip..len]);
            self.write_pieces(at, &bounce.buffers(0, len, 1))?;
            at += len as u64;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> IoResult {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if unmap && self.allocate(punch, &self.no_punch_hole, offset, len)? {
            return Ok(());
        }
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if self.allocate(zero, &self.no_zero_range, offset, len)? {
            return Ok(());
        }
        let zeroes = AlignedBuf::new(ZEROES.0, self.memory_alignment().max(4096))?;
        let step = ZEROES.0 as u64 * ZEROES.1;
        let mut done = 0;
        while done < len {
            let now = (len - done).min(step) as usize;
            let whole = zeroes.buffers(0, ZEROES.0, now / ZEROES.0);
            self.write(offset + done, &whole)?;
            let rest = zeroes.buffers(0, now % ZEROES.0, 1);
            self.write(offset + done + whole.len(), &rest)?;
            done += now as u64;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> IoResult {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // It is advice: a file system that cannot give space back has followed it.
        self.allocate(punch, &self.no_punch_hole, offset, len).map(drop)
    }

    /// False if the file system cannot do it, for this range or at all.
    fn allocate(&self, flags: FallocateFlags, never: &AtomicBool, offset: u64, len: u64) -> Result<bool, Errno> {
        if never.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let _writing = self.direct.as_ref().map(|direct| {
            let (start, end) = direct.around(offset, len);
            direct.writing.lock(start..end, false)
        });
        match retry_on_intr(|| fallocate(&self.file, flags, offset, len)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                never.store(true, Ordering::Relaxed);
                Ok(false)
            }
            // Devices refuse ranges that are no multiple of their blocks; some drivers have no such call at all.
            Err(Errno::INVAL | Errno::NODEV | Errno::NOTTY) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn flush(&self) -> IoResult {
        if self.no_flush {
            return Ok(());
        }
        match self.lost_data.load(Ordering::Relaxed) {
            0 => (),
            errno => return Err(Errno::from_raw_os_error(errno)),
        }
        let result = retry_on_intr(|| fdatasync(&self.file));
        if let (Err(errno), None) = (result, &self.direct) {
            self.lost_data.store(errno.raw_os_error(), Ordering::Relaxed);
        }
        result
    }
}

impl Direct {
    /// Whether the kernel takes the buffers as they are.
    fn fits(&self, offset: u64, buffers: &IoBuffers) -> bool {
        offset.is_multiple_of(self.request_alignment)
            && buffers.is_aligned(self.memory_alignment, self.request_alignment as usize)
    }

    /// The whole blocks that a range touches.
    fn around(&self, offset: u64, len: u64) -> (u64, u64) {
        let end = offset + len;
        (offset - offset % self.request_alignment, end.next_multiple_of(self.request_alignment))
    }

    fn bounce(&self, len: u64) -> Result<AlignedBuf, Errno> {
        let alignment = self.memory_alignment.max(self.request_alignment as usize);
        AlignedBuf::new(len.min(BOUNCE_LEN) as usize, alignment.next_power_of_two())
    }
}

/// `preadv` or `pwritev`.
type VectorCall = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
