//! Nodes of the graph, and what their drivers must do.

use std::sync::Arc;

use rustix::io::Errno;

use crate::options::{CacheOptions, DetectZeroes, Discard};
use crate::request::InFlight;
use crate::{BlockError, Completion, IoBuffers, IoEngine, IoResult, Op, Permissions, Request};

/// What requests should keep to, and what the guest may be told about the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What offsets and lengths should be multiples of; other requests work, but are slower.
    pub request_alignment: u64,
    /// What addresses of buffers should be multiples of; other buffers are copied.
    pub memory_alignment: usize,
    /// Logical and physical block size, where a real disk has said them.
    pub block_sizes: Option<(u32, u32)>,
}

/// What is behind a node: a file, or another node seen in another way.
///
/// Requests that a driver gets lie inside of its length, are not empty (but for flushes) and write only if the node is
/// not read-only. A driver completes each exactly once, never before `submit` returns.
pub trait BlockDriver: Send + Sync {
    /// The driver's name, as in `driver=`.
    fn name(&self) -> &'static str;
    /// Bytes, a multiple of 512.
    fn length(&self) -> u64;
    /// What requests should keep to.
    fn limits(&self) -> Limits;
    /// Starts a request.
    fn submit(&self, request: Request);
    /// The nodes below, each with what it is to this one (`file`).
    fn children(&self) -> Vec<(&'static str, Arc<BlockNode>)> {
        Vec::new()
    }
    /// Path of the host file, if there is one.
    fn filename(&self) -> Option<&str> {
        None
    }
    /// Says what users of this node do from now on, and let others do. An error leaves all as it was; less use and
    /// more sharing than before must succeed.
    fn set_permissions(&self, used: Permissions, shared: Permissions) -> Result<(), BlockError> {
        let _ = (used, shared);
        Ok(())
    }
    /// What this node then does with the nodes below, and lets others do with them.
    fn child_permissions(&self, used: Permissions, shared: Permissions) -> (Permissions, Permissions) {
        (used, shared)
    }
}

/// One layer of an image, with a name.
pub struct BlockNode {
    name: String,
    driver: Box<dyn BlockDriver>,
    engine: Arc<dyn IoEngine>,
    read_only: bool,
    cache: CacheOptions,
    discard: Discard,
    detect_zeroes: DetectZeroes,
    depth: usize,
    in_flight: Arc<InFlight>,
}

/// What a node is made with besides its driver.
pub(crate) struct NodeSettings {
    pub(crate) name: String,
    pub(crate) read_only: bool,
    pub(crate) cache: CacheOptions,
    pub(crate) discard: Discard,
    pub(crate) detect_zeroes: DetectZeroes,
}

impl std::fmt::Debug for BlockNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockNode")
            .field("name", &self.name)
            .field("driver", &self.driver.name())
            .finish_non_exhaustive()
    }
}

impl BlockNode {
    pub(crate) fn new(settings: NodeSettings, driver: Box<dyn BlockDriver>, engine: Arc<dyn IoEngine>) -> Self {
        let NodeSettings { name, read_only, cache, discard, detect_zeroes } = settings;
        let depth = driver.children().iter().map(|(_, child)| child.depth + 1).max().unwrap_or(0);
        let in_flight = Arc::default();
        Self { name, driver, engine, read_only, cache, discard, detect_zeroes, depth, in_flight }
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its driver.
    pub fn driver_name(&self) -> &'static str {
        self.driver.name()
    }

    pub(crate) fn driver(&self) -> &dyn BlockDriver {
        &*self.driver
    }

    /// Bytes, a multiple of 512.
    pub fn length(&self) -> u64 {
        self.driver.length()
    }

    /// What requests should keep to.
    pub fn limits(&self) -> Limits {
        self.driver.limits()
    }

    /// Whether all writes fail.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// How the host's page cache is used.
    pub fn cache(&self) -> CacheOptions {
        self.cache
    }

    /// What happens to discard requests.
    pub fn discard(&self) -> Discard {
        self.discard
    }

    /// Whether writes of zeroes are looked for.
    pub fn detect_zeroes(&self) -> DetectZeroes {
        self.detect_zeroes
    }

    /// Path of the host file, its own or that of the node below.
    pub fn filename(&self) -> Option<String> {
        let own = self.driver.filename().map(str::to_owned);
        own.or_else(|| self.driver.children().first().and_then(|(_, child)| child.filename()))
    }

    /// How many nodes lie below it, along the longest way down.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Starts a request. Fails with EIO beyond the end, with EPERM when it writes to a read-only node.
    pub fn submit(&self, mut request: Request) {
        request.done.hold(self.in_flight.enter());
        if let Err(errno) = self.check(&request) {
            return self.end(request, Err(errno));
        }
        match &mut request.op {
            Op::Discard if self.discard == Discard::Ignore => return self.end(request, Ok(())),
            Op::Flush => (),
            _ if request.len == 0 => return self.end(request, Ok(())),
            Op::WriteZeroes { unmap, .. } => *unmap &= self.discard == Discard::Unmap,
            Op::Write { .. } => {
                // A node above may want zeroes to give space back; this one may not want to.
                let most = if self.discard == Discard::Unmap { DetectZeroes::Unmap } else { DetectZeroes::On };
                request.detect_zeroes = request.detect_zeroes.max(self.detect_zeroes).min(most);
            }
            _ => (),
        }
        self.driver.submit(request);
    }

    fn check(&self, request: &Request) -> IoResult {
        if request.op.writes() && self.read_only {
            return Err(Errno::PERM);
        }
        match request.offset.checked_add(request.len) {
            Some(end) if end <= self.length() => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    /// Ends a request without performing it, on a thread of the engine as always.
    pub(crate) fn end(&self, request: Request, result: IoResult) {
        self.engine.defer(Box::new(move || request.complete(result)));
    }

    /// Waits until no request of this node is in flight, and all completions have returned. Not for completions.
    pub fn drain(&self) {
        self.in_flight.wait();
    }

    /// Requests that have not completed yet.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.count()
    }

    /// Reads bytes, and waits for them. Not for completions.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> IoResult {
        let buffers = IoBuffers::from_slice(bytes);
        self.wait_for(|done| Request::read(offset, buffers, done))
    }

    /// Writes bytes, and waits until they are written. Not for completions.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> IoResult {
        let mut copy = bytes.to_vec();
        let buffers = IoBuffers::from_slice(&mut copy);
        self.wait_for(|done| Request::write(offset, buffers, false, done))
    }

    /// Makes all completed writes durable, and waits for it. Not for completions.
    pub fn flush(&self) -> IoResult {
        self.wait_for(Request::flush)
    }

    /// Makes a request and waits until it completes.
    fn wait_for(&self, make: impl FnOnce(Completion) -> Request) -> IoResult {
        let (tx, rx) = std::sync::mpsc::sync_channel(1);
        self.submit(make(Completion::new(move |result| {
            // The receiver waits below.
            let _ = tx.send(result);
        })));
        // A completion is called in any case, so that the other end is never dropped without a word.
        rx.recv().unwrap_or(Err(Errno::IO))
    }
}
