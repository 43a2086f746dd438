//! A device's hold on a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::io::Errno;

use crate::graph::Shared;
use crate::node::{BlockNode, Limits};
use crate::request::InFlight;
use crate::stats::Counters;
use crate::{BlockStats, Op, Permissions, Request};

/// What a device reads and writes. Any number of threads may submit at once.
///
/// Dropping it gives the node free for others as soon as the last request has completed.
pub struct BlockBackend {
    attachment: Arc<Attachment>,
    in_flight: Arc<InFlight>,
}

/// The entry in the graph. Each request in flight holds it, so that the image stays locked until its last byte is
/// written, even if the device has gone.
pub(crate) struct Attachment {
    pub(crate) graph: Arc<Shared>,
    pub(crate) id: u64,
    pub(crate) node: Arc<BlockNode>,
    pub(crate) used: Permissions,
    pub(crate) write_cache: AtomicBool,
    pub(crate) counters: Arc<Counters>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.graph.detach(self.id);
    }
}

impl std::fmt::Debug for BlockBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockBackend").field("node", &self.attachment.node).finish_non_exhaustive()
    }
}

impl BlockBackend {
    pub(crate) fn new(attachment: Attachment) -> Self {
        Self { attachment: Arc::new(attachment), in_flight: Arc::default() }
    }

    /// The node.
    pub fn node(&self) -> &Arc<BlockNode> {
        &self.attachment.node
    }

    /// Bytes, a multiple of 512.
    pub fn length(&self) -> u64 {
        self.attachment.node.length()
    }

    /// What requests should keep to.
    pub fn limits(&self) -> Limits {
        self.attachment.node.limits()
    }

    /// Whether this device may not write.
    pub fn is_read_only(&self) -> bool {
        !self.attachment.used.contains(Permissions::WRITE)
    }

    /// Whether completed writes may be lost until they are flushed.
    pub fn write_cache(&self) -> bool {
        self.attachment.write_cache.load(Ordering::Relaxed)
    }

    /// Turns the write cache on or off, for requests submitted from now on.
    pub fn set_write_cache(&self, on: bool) {
        self.attachment.write_cache.store(on, Ordering::Relaxed);
    }

    /// Starts a request: see the crate's front page for what happens to it. EPERM if this device may not write.
    pub fn submit(&self, mut request: Request) {
        request.done.hold(self.in_flight.enter());
        if let Op::Write { fua } | Op::WriteZeroes { fua, .. } = &mut request.op {
            *fua |= !self.write_cache();
        }
        let (op, len, started) = (request.op, request.len, Instant::now());
        let attachment = self.attachment.clone();
        request.done = request.done.before(move |result| {
            attachment.counters.count(op, len, started.elapsed(), result);
        });
        if op.writes() && self.is_read_only() {
            return self.attachment.node.end(request, Err(Errno::PERM));
        }
        self.attachment.node.submit(request);
    }

    /// What this device did so far.
    pub fn stats(&self) -> BlockStats {
        self.attachment.counters.snapshot()
    }

    /// Waits until no request of this device is in flight, and all completions have returned. Not for completions.
    pub fn drain(&self) {
        self.in_flight.wait();
    }

    /// Requests of this device that have not completed yet.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.count()
    }
}
