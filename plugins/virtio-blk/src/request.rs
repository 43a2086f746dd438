//! From a chain of descriptors to a request (virtio 1.2, section 5.2.6), with every check that a driver can fail.
//!
//! Two kinds of faults are told apart. What breaks the rules of the ring (no header, no room for the status, parts in the
//! wrong order) breaks the device until the driver resets it. What is merely not possible (beyond the end, not aligned,
//! not offered) ends the request with a status.

use cardcage_plugin_api::memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend};
use cardcage_plugin_api::*;

use crate::config::{F_DISCARD, F_WRITE_ZEROES, ID_LEN, SECTOR, Shape};

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// The request succeeded.
pub(crate) const S_OK: u8 = 0;
/// It failed.
pub(crate) const S_IOERR: u8 = 1;
/// The device cannot do that.
pub(crate) const S_UNSUPP: u8 = 2;

const HEADER: usize = 16;
const SEGMENT: usize = 16;
/// Flag of a segment of a write of zeroes: the range may be deallocated.
const UNMAP: u32 = 1;

/// What is asked of the drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes { unmap: bool },
}

/// A request for the drive, and where its end is to be told. Offsets and lengths are in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Guest memory that the bytes come from or go to.
    pub(crate) data: Vec<GuestRange>,
    pub(crate) end: End,
}

/// How the end of a request is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) queue: u16,
    pub(crate) head: u16,
    /// Address of the status byte.
    pub(crate) status: u64,
    /// Bytes of the chain that the device may write.
    pub(crate) writable: u32,
}

/// What a chain asked for.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Something for the drive.
    Submit(Request),
    /// It is done already, with this status.
    Done(End, u8),
}

/// What a chain is measured against.
pub(crate) struct Rules<'a> {
    pub(crate) shape: &'a Shape,
    /// Features that the driver has accepted.
    pub(crate) features: u64,
    /// Sectors of the drive.
    pub(crate) capacity: u64,
    /// Answer to GET_ID.
    pub(crate) id: [u8; ID_LEN],
}

impl Rules<'_> {
    /// Reads a chain of queue `queue`. An error means that the driver has broken the rules of the ring.
    pub(crate) fn parse(&self, queue: u16, chain: &Chain, memory: &GuestMemory) -> Result<Parsed> {
        let (mut readable, mut writable) = split(chain)?;
        let mut header = [0; HEADER];
        if !take(&mut readable, memory, &mut header)? {
            return Err(Error::new(format!("a request has no header of {HEADER} bytes")));
        }
        let end = take_end(queue, chain.head(), &mut writable, memory)?;
        let (kind, sector) = (le32(&header, 0), u64::from(le32(&header, 8)) | u64::from(le32(&header, 12)) << 32);
        let transfer = |op, data: Vec<GuestRange>| match self.range(sector, total(&data)) {
            Some((offset, len)) => Parsed::Submit(Request { op, offset, len, data, end }),
            None => Parsed::Done(end, S_IOERR),
        };
        Ok(match kind {
            T_IN => transfer(Op::Read, writable),
            T_OUT if self.shape.read_only => Parsed::Done(end, S_IOERR),
            T_OUT => transfer(Op::Write, readable),
            T_FLUSH => Parsed::Submit(Request { op: Op::Flush, offset: 0, len: 0, data: Vec::new(), end }),
            T_GET_ID => Parsed::Done(end, self.put_id(&writable, memory)),
            T_DISCARD | T_WRITE_ZEROES => self.parse_segment(kind, readable, memory, end)?,
            _ => Parsed::Done(end, S_UNSUPP),
        })
    }

    /// A range of sectors in bytes, if it consists of whole blocks inside of the drive.
    fn range(&self, sector: u64, len: u64) -> Option<(u64, u64)> {
        let (offset, block) = (sector.checked_mul(SECTOR)?, u64::from(self.shape.logical));
        let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block);
        let inside = offset.checked_add(len)? <= self.capacity.checked_mul(SECTOR)?;
        (aligned && inside).then_some((offset, len))
    }

    fn put_id(&self, writable: &[GuestRange], memory: &GuestMemory) -> u8 {
        let mut rest = &self.id[..];
        for &GuestRange { addr, len } in writable {
            let (now, later) = rest.split_at(rest.len().min(usize::try_from(len).unwrap_or(usize::MAX)));
            if memory.write_slice(now, GuestAddress(addr)).is_err() {
                return S_IOERR;
            }
            rest = later;
        }
        S_OK
    }

    /// Discard and write zeroes: one segment, as the configuration space says.
    fn parse_segment(
        &self,
        kind: u32,
        mut readable: Vec<GuestRange>,
        memory: &GuestMemory,
        end: End,
    ) -> Result<Parsed> {
        let (feature, allowed_flags, max_sectors) = match kind {
            T_DISCARD => (F_DISCARD, 0, self.shape.max_discard_sectors),
            _ => (F_WRITE_ZEROES, UNMAP, self.shape.max_write_zeroes_sectors),
        };
        let done = |status| Ok(Parsed::Done(end, status));
        if self.features & feature == 0 {
            return done(S_UNSUPP);
        }
        let mut segment = [0; SEGMENT];
        if total(&readable) > SEGMENT as u64 {
            return done(S_UNSUPP);
        }
        if !take(&mut readable, memory, &mut segment)? {
            return done(S_IOERR);
        }
        let sector = u64::from(le32(&segment, 0)) | u64::from(le32(&segment, 4)) << 32;
        let (sectors, flags) = (le32(&segment, 8), le32(&segment, 12));
        if flags & !allowed_flags != 0 {
            return done(S_UNSUPP);
        }
        let range = self.range(sector, u64::from(sectors) * SECTOR).filter(|_| sectors <= max_sectors);
        let Some((offset, len)) = range else { return done(S_IOERR) };
        if len == 0 {
            return done(S_OK);
        }
        let op = match kind {
            T_DISCARD => Op::Discard,
            _ => Op::WriteZeroes { unmap: flags & UNMAP != 0 },
        };
        Ok(Parsed::Submit(Request { op, offset, len, data: Vec::new(), end }))
    }
}

pub(crate) fn total(ranges: &[GuestRange]) -> u64 {
    ranges.iter().fold(0, |sum, r| sum.saturating_add(r.len))
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    bytes.iter().skip(at).take(4).rev().fold(0, |n, &b| n << 8 | u32::from(b))
}

/// The chain's parts: those that the device reads, then those that it writes. Any other order breaks the rules
/// (section 2.7.4.2).
fn split(chain: &Chain) -> Result<(Vec<GuestRange>, Vec<GuestRange>)> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    for (range, may_write) in chain.ranges() {
        if range.addr.checked_add(range.len).is_none() {
            return Err(Error::new(format!("a descriptor of {} bytes at {:#x} wraps around", range.len, range.addr)));
        }
        match (may_write, writable.is_empty()) {
            (true, _) => writable.push(range),
            (false, true) => readable.push(range),
            (false, false) => return Err(Error::new("a request has readable parts after writable ones")),
        }
    }
    Ok((readable, writable))
}

/// Takes bytes from the front of what the device reads, however they are framed. False if there are too few.
fn take(ranges: &mut Vec<GuestRange>, memory: &GuestMemory, out: &mut [u8]) -> Result<bool> {
    if total(ranges) < out.len() as u64 {
        return Ok(false);
    }
    let (mut filled, mut used) = (0, 0);
    for range in ranges.iter_mut() {
        let now = range.len.min((out.len() - filled) as u64);
        memory.read_slice(&mut out[filled..filled + now as usize], GuestAddress(range.addr))?;
        (range.addr, range.len) = (range.addr + now, range.len - now);
        filled += now as usize;
        if range.len != 0 {
            break;
        }
        used += 1;
    }
    ranges.drain(..used);
    Ok(true)
}

/// Takes the status byte, the last that the device writes, off the end.
fn take_end(queue: u16, head: u16, writable: &mut Vec<GuestRange>, memory: &GuestMemory) -> Result<End> {
    let all = u32::try_from(total(writable)).unwrap_or(u32::MAX);
    while let Some(mut last) = writable.pop() {
        if last.len == 0 {
            continue;
        }
        last.len -= 1;
        let status = last.addr + last.len;
        if !memory.address_in_range(GuestAddress(status)) {
            return Err(Error::new(format!("the status byte at {status:#x} is not in guest RAM")));
        }
        if last.len > 0 {
            writable.push(last);
        }
        return Ok(End { queue, head, status, writable: all });
    }
    Err(Error::new("a request has no room for its status"))
}
