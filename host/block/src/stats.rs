//! What a device did to its image, counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::Op;
use crate::request::IoResult;

/// Requests of one kind that have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpStats {
    /// Requests that succeeded.
    pub operations: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes of the requests that succeeded.
    pub bytes: u64,
    /// Time from submission to completion, of all requests.
    pub total_time_ns: u64,
}

/// What a device did, by kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockStats {
    /// Reads.
    pub read: OpStats,
    /// Writes, of data or of zeroes.
    pub write: OpStats,
    /// Flushes. They have no bytes.
    pub flush: OpStats,
    /// Discards.
    pub unmap: OpStats,
}

/// The counters behind [`BlockStats`].
#[derive(Debug, Default)]
pub(crate) struct Counters([OpCounters; 4]);

#[derive(Debug, Default)]
struct OpCounters {
    operations: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    total_time_ns: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, op: Op, bytes: u64, time: Duration, result: IoResult) {
        let [read, write, flush, unmap] = &self.0;
        let counters = match op {
            Op::Read => read,
            Op::Write { .. } | Op::WriteZeroes { .. } => write,
            Op::Flush => flush,
            Op::Discard => unmap,
        };
        counters.total_time_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        match result {
            Ok(()) => {
                counters.operations.fetch_add(1, Relaxed);
                counters.bytes.fetch_add(bytes, Relaxed);
            }
            Err(_) => drop(counters.failed.fetch_add(1, Relaxed)),
        }
    }

    pub(crate) fn snapshot(&self) -> BlockStats {
        let [read, write, flush, unmap] = self.0.each_ref().map(|c| OpStats {
            operations: c.operations.load(Relaxed),
            failed: c.failed.load(Relaxed),
            bytes: c.bytes.load(Relaxed),
            total_time_ns: c.total_time_ns.load(Relaxed),
        });
        BlockStats { read, write, flush, unmap }
    }
}
