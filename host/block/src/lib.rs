//! Block nodes: the host's view of disk images.
//!
//! A [`BlockGraph`] holds nodes by name, as `-blockdev` and `-drive` make them. A node is one layer: the `file` driver
//! reaches a host file or block device, the `raw` driver shows a part of another node. A device attaches to a node and
//! gets a [`BlockBackend`], through which any number of threads submit [`Request`]s at once.
//!
//! # A request's life
//! 1. The submitter makes a [`Request`] from raw buffers ([`IoBuffers`]) that may point into guest memory, and a
//!    [`Completion`]. [`BlockBackend::submit`] never waits and never completes a request before it returns.
//! 2. A worker of the [`IoEngine`] performs it. Requests in flight at the same time have no order among each other.
//! 3. The completion is called exactly once, on a thread of the engine, with `Ok` or an errno. From then on the buffers
//!    are the submitter's again. [`CompletionQueue`] brings completions to an event loop instead.
//!
//! A **flush** makes durable what writes wrote that had *completed* before the flush was submitted; it says nothing
//! of writes still in flight. `fua` on a write makes that write durable before it completes. The image's bytes beyond
//! the end of an odd-sized file, up to the next multiple of 512, read as zeroes.
//!
//! [`BlockBackend::drain`] returns when nothing is in flight and all completions have returned. It does not keep new
//! requests out: whoever pauses a machine stops the submitters first.
//!
//! # What keeps images whole
//! * A user of a node declares [`Permissions`]: what it does, and what it lets others do. Users in this process are
//!   checked against each other in the graph, other processes (QEMU, qemu-img) through locks on bytes of the file.
//! * The format of an image is never guessed: a `-drive` must say `format=raw`.
//! * After a failed `fdatasync` through the page cache all later flushes fail: the kernel drops what it could not
//!   write, and a second, successful call would lie.

mod backend;
mod bounce;
mod buffers;
mod completions;
mod error;
mod file;
mod graph;
mod host_file;
mod lock;
mod node;
mod options;
mod permissions;
mod pool;
mod probe;
mod ranges;
mod raw;
mod request;
mod stats;

pub use backend::BlockBackend;
pub use buffers::IoBuffers;
pub use completions::CompletionQueue;
pub use error::BlockError;
pub use graph::{BackendInfo, BlockGraph, Drive, NodeInfo};
pub use host_file::HostFile;
pub use node::{BlockDriver, BlockNode, Limits};
pub use options::{
    CacheOptions, ChildRef, DetectZeroes, Discard, DriveOptions, FileOptions, Interface, Locking, NodeKind,
    NodeOptions, RawOptions,
};
pub use permissions::Permissions;
pub use pool::{IoEngine, ThreadPool};
pub use request::{Completion, IoResult, Op, Request};
pub use rustix::io::Errno;
pub use stats::{BlockStats, OpStats};

/// Length of a sector, the unit in which images are measured.
pub const SECTOR_SIZE: u64 = 512;
