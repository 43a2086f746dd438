//! Saved state: the write cache, how far the queues have come, and the requests that the drive had.
//!
//! Requests whose end the driver has not heard of are saved as they were asked for, and asked for again: until it hears
//! of their end, a driver neither uses their data nor expects them to have happened or not.

use cardcage_plugin_api::state::{SectionReader, SectionWriter, StateReader, StateWriter};
use cardcage_plugin_api::*;

use crate::ActiveQueue;
use crate::config::Shape;
use crate::request::{End, Op, Request, total};

const VERSION: u32 = 1;

pub(crate) fn write<'a>(
    state: &mut StateWriter,
    write_back: bool,
    queues: &[ActiveQueue],
    requests: impl Iterator<Item = &'a Request>,
) {
    state.section("drive", VERSION, |s| s.bool(write_back));
    state.section("queues", VERSION, |s| {
        s.u16(queues.len() as u16);
        for active in queues {
            s.u16(active.queue.index());
            active.queue.save(s);
        }
    });
    state.section("requests", VERSION, |s| {
        let requests: Vec<_> = requests.collect();
        s.u32(requests.len() as u32);
        requests.into_iter().for_each(|r| write_request(s, r));
    });
}

pub(crate) fn read_write_back(state: &StateReader) -> Result<bool> {
    let mut s = state.section("drive", VERSION)?;
    let write_back = s.bool()?;
    s.end()?;
    Ok(write_back)
}

pub(crate) fn read_queues(state: &StateReader, queues: &mut [ActiveQueue]) -> Result<()> {
    let mut s = state.section("queues", VERSION)?;
    let count = s.u16()?;
    if usize::from(count) != queues.len() {
        return Err(Error::new(format!("the saved state has {count} queues, the driver has set up {}", queues.len())));
    }
    for active in queues {
        let (saved, here) = (s.u16()?, active.queue.index());
        if saved != here {
            return Err(Error::new(format!("the saved state has queue {saved} in place of queue {here}")));
        }
        active.queue.load(&mut s)?;
    }
    s.end()
}

pub(crate) fn read_requests(
    state: &StateReader,
    queues: &[ActiveQueue],
    shape: &Shape,
    len: u64,
) -> Result<Vec<Request>> {
    let mut s = state.section("requests", VERSION)?;
    let count = s.u32()?;
    let mut requests = Vec::new();
    for _ in 0..count {
        let request = read_request(&mut s)?;
        check(&request, queues, shape, len)?;
        requests.push(request);
    }
    s.end()?;
    for active in queues {
        let (index, size) = (active.queue.index(), usize::from(active.queue.size()));
        let here = requests.iter().filter(|r| r.end.queue == index).count();
        if here > size {
            return Err(Error::new(format!(
                "the saved state has {here} requests of queue {index}, which has room for {size}"
            )));
        }
    }
    Ok(requests)
}

fn write_request(s: &mut SectionWriter, r: &Request) {
    s.u16(r.end.queue);
    s.u16(r.end.head);
    s.u64(r.end.status);
    s.u32(r.end.writable);
    s.u8(match r.op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Flush => 2,
        Op::Discard => 3,
        Op::WriteZeroes { unmap: false } => 4,
        Op::WriteZeroes { unmap: true } => 5,
    });
    s.u64(r.offset);
    s.u64(r.len);
    s.u32(r.data.len() as u32);
    for range in &r.data {
        s.u64(range.addr);
        s.u64(range.len);
    }
}

fn read_request(s: &mut SectionReader<'_>) -> Result<Request> {
    let end = End { queue: s.u16()?, head: s.u16()?, status: s.u64()?, writable: s.u32()? };
    let op = match s.u8()? {
        0 => Op::Read,
        1 => Op::Write,
        2 => Op::Flush,
        3 => Op::Discard,
        4 => Op::WriteZeroes { unmap: false },
        5 => Op::WriteZeroes { unmap: true },
        n => return Err(Error::new(format!("a saved request does {n}, allowed is 0..=5"))),
    };
    let (offset, len, count) = (s.u64()?, s.u64()?, s.u32()?);
    let mut data = Vec::new();
    for _ in 0..count {
        data.push(GuestRange { addr: s.u64()?, len: s.u64()? });
    }
    Ok(Request { op, offset, len, data, end })
}

fn check(r: &Request, queues: &[ActiveQueue], shape: &Shape, len: u64) -> Result<()> {
    let refuse = |text: String| Err(Error::new(text));
    let Some(active) = queues.iter().find(|a| a.queue.index() == r.end.queue) else {
        return refuse(format!("a saved request is of queue {}, which is not set up", r.end.queue));
    };
    if r.end.head >= active.queue.size() {
        return refuse(format!(
            "a saved request has head {}, allowed is less than {}",
            r.end.head,
            active.queue.size()
        ));
    }
    if r.offset.checked_add(r.len).is_none_or(|end| end > len) {
        return refuse(format!(
            "a saved request of {} bytes at {} is beyond the drive's end at {len}",
            r.len, r.offset
        ));
    }
    let block = u64::from(shape.logical);
    if !r.offset.is_multiple_of(block) || !r.len.is_multiple_of(block) {
        return refuse(format!("a saved request of {} bytes at {} is not of whole blocks of {block}", r.len, r.offset));
    }
    if shape.read_only && !matches!(r.op, Op::Read | Op::Flush) {
        return refuse("a saved request writes, but the drive is read-only".into());
    }
    if matches!(r.op, Op::Read | Op::Write) && total(&r.data) != r.len {
        return refuse(format!("a saved request of {} bytes has {} bytes of data", r.len, total(&r.data)));
    }
    Ok(())
}
