//! Vectors of raw memory that requests read into or write from.
#![expect(unsafe_code, reason = "request buffers are guest memory, shared with the guest and reached by raw pointers")]

use std::ptr;

/// Where a request's bytes come from or go to: pieces of memory by raw pointer, in order.
///
/// The pieces may be guest memory that the guest changes meanwhile, so no Rust reference to them is ever made.
#[derive(Debug, Default)]
pub struct IoBuffers {
    pieces: Vec<libc::iovec>,
    len: u64,
}

// SAFETY: the pointers name memory that may be reached from any thread, by the contract of `from_raw`.
unsafe impl Send for IoBuffers {}
// SAFETY: as above; the list itself is not changed through a shared reference.
unsafe impl Sync for IoBuffers {}

impl IoBuffers {
    /// No bytes.
    pub const fn empty() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }

    /// Buffers from pointers and lengths in bytes. Empty pieces are left out.
    ///
    /// # Safety
    /// Until the completion of the request that they go into is called, each piece must stay mapped, readable, and for
    /// a read request writable, from any thread. It may overlap memory that others reach only by raw pointers, as
    /// guest memory is; the bytes are then undefined, and nothing else.
    pub unsafe fn from_raw(pieces: impl IntoIterator<Item = (*mut u8, usize)>) -> Self {
        let pieces = pieces.into_iter().filter(|piece| piece.1 != 0);
        let pieces: Vec<_> = pieces.map(|(base, len)| libc::iovec { iov_base: base.cast(), iov_len: len }).collect();
        let len = pieces.iter().fold(0_u64, |sum, piece| sum.saturating_add(piece.iov_len as u64));
        Self { pieces, len }
    }

    /// Buffers over a slice, whose owner waits for the request before anything else happens to the slice.
    pub(crate) fn from_slice(bytes: &mut [u8]) -> Self {
        // SAFETY: the callers in this crate block until the completion is called.
        unsafe { Self::from_raw([(bytes.as_mut_ptr(), bytes.len())]) }
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn pieces(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// Whether each piece starts at a multiple of `memory` and is a multiple of `length` bytes long.
    pub(crate) fn is_aligned(&self, memory: usize, length: usize) -> bool {
        let aligned =
            |p: &libc::iovec| (p.iov_base as usize).is_multiple_of(memory) && p.iov_len.is_multiple_of(length);
        self.pieces.iter().all(aligned)
    }

    /// The pieces of the bytes from `skip` on, at most `max` bytes of them.
    pub(crate) fn part(&self, skip: u64, max: u64) -> Vec<libc::iovec> {
        let (mut skip, mut left) = (skip, max);
        let mut part = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let len = piece.iov_len as u64;
            if skip >= len {
                skip -= len;
                continue;
            }
            if left == 0 {
                break;
            }
            let take = (len - skip).min(left);
            let base = piece.iov_base.wrapping_byte_add(skip as usize);
            part.push(libc::iovec { iov_base: base, iov_len: take as usize });
            left -= take;
            skip = 0;
        }
        part
    }

    /// Copies bytes into the buffers, from their byte `at` on. What does not fit is left out.
    pub(crate) fn copy_in(&self, at: u64, bytes: &[u8]) {
        let mut bytes = bytes;
        for piece in self.part(at, bytes.len() as u64) {
            let (now, rest) = bytes.split_at(piece.iov_len);
            // SAFETY: `from_raw` promises that the piece is writable; `bytes` is a Rust slice, so it is not in it.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
            bytes = rest;
        }
    }

    /// Copies bytes out of the buffers, from their byte `at` on. The rest of `bytes` stays as it is.
    pub(crate) fn copy_out(&self, at: u64, bytes: &mut [u8]) {
        let mut bytes = bytes;
        for piece in self.part(at, bytes.len() as u64) {
            let (now, rest) = bytes.split_at_mut(piece.iov_len);
            // SAFETY: `from_raw` promises that the piece is readable; `bytes` is a Rust slice, so it is not in it.
            unsafe { ptr::copy_nonoverlapping(piece.iov_base.cast(), now.as_mut_ptr(), now.len()) };
            bytes = rest;
        }
    }

    /// Zeroes the bytes from `at` on.
    pub(crate) fn zero_from(&self, at: u64) {
        for piece in self.part(at, u64::MAX) {
            // SAFETY: `from_raw` promises that the piece is writable.
            unsafe { ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        }
    }

    /// Whether all bytes are zero just now.
    pub(crate) fn is_zero(&self) -> bool {
        let mut chunk = [0_u8; 4096];
        let mut at = 0;
        while at < self.len {
            let now = (self.len - at).min(chunk.len() as u64) as usize;
            self.copy_out(at, &mut chunk[..now]);
            if chunk[..now].iter().any(|&byte| byte != 0) {
                return false;
            }
            at += now as u64;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(a: &mut [u8], b: &mut [u8]) -> IoBuffers {
        // SAFETY: the tests use the buffers only while the arrays live.
        unsafe { IoBuffers::from_raw([(a.as_mut_ptr(), a.len()), (ptr::null_mut(), 0), (b.as_mut_ptr(), b.len())]) }
    }

    #[test]
    fn bytes_cross_from_one_piece_to_the_next() {
        let (mut a, mut b) = ([0; 3], [0; 3]);
        let buffers = over(&mut a, &mut b);
        assert_eq!(buffers.len(), 6);
        buffers.copy_in(2, &[1, 2, 3]);
        let mut out = [9; 6];
        buffers.copy_out(1, &mut out);
        assert_eq!(out, [0, 1, 2, 3, 0, 9]);
        assert!(!buffers.is_zero());
        buffers.zero_from(3);
        assert_eq!((a, b), ([0, 0, 1], [0, 0, 0]));
    }

    #[test]
    fn a_part_ends_where_it_is_told_to() {
        let (mut a, mut b) = ([0; 3], [0; 3]);
        let buffers = over(&mut a, &mut b);
        let lens = |skip, max| buffers.part(skip, max).iter().map(|p| p.iov_len).collect::<Vec<_>>();
        assert_eq!(lens(0, 2), [2]);
        assert_eq!(lens(2, 2), [1, 1]);
        assert_eq!(lens(3, 9), [3]);
        assert!(lens(6, 1).is_empty() && lens(0, 0).is_empty());
    }
}
