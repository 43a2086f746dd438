//! Requests, and how their end is told.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::IoBuffers;
use crate::options::DetectZeroes;

/// How a request ended.
pub type IoResult = Result<(), Errno>;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads into the buffers.
    Read,
    /// Writes from the buffers.
    Write {
        /// Completes only when the bytes are durable.
        fua: bool,
    },
    /// Makes the range read as zeroes.
    WriteZeroes {
        /// Lets the image give the space back.
        unmap: bool,
        /// Completes only when the zeroes are durable.
        fua: bool,
    },
    /// Says that the range's content is no longer needed. Advisory: the image may keep it.
    Discard,
    /// Makes all completed writes durable.
    Flush,
}

impl Op {
    /// Whether it may change the image.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. } | Self::Discard)
    }
}

/// One request to a node.
#[derive(Debug)]
pub struct Request {
    pub(crate) op: Op,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) buffers: IoBuffers,
    pub(crate) detect_zeroes: DetectZeroes,
    pub(crate) done: Completion,
}

impl Request {
    fn new(op: Op, offset: u64, len: u64, buffers: IoBuffers, done: Completion) -> Self {
        Self { op, offset, len, buffers, detect_zeroes: DetectZeroes::Off, done }
    }

    /// Reads bytes from `offset` on into `buffers`.
    pub fn read(offset: u64, buffers: IoBuffers, done: Completion) -> Self {
        Self::new(Op::Read, offset, buffers.len(), buffers, done)
    }

    /// Writes the bytes of `buffers` from `offset` on.
    pub fn write(offset: u64, buffers: IoBuffers, fua: bool, done: Completion) -> Self {
        Self::new(Op::Write { fua }, offset, buffers.len(), buffers, done)
    }

    /// Zeroes `len` bytes from `offset` on.
    pub fn write_zeroes(offset: u64, len: u64, unmap: bool, done: Completion) -> Self {
        Self::new(Op::WriteZeroes { unmap, fua: false }, offset, len, IoBuffers::empty(), done)
    }

    /// Gives up the content of `len` bytes from `offset` on.
    pub fn discard(offset: u64, len: u64, done: Completion) -> Self {
        Self::new(Op::Discard, offset, len, IoBuffers::empty(), done)
    }

    /// Makes all writes durable that have completed by now.
    pub fn flush(done: Completion) -> Self {
        Self::new(Op::Flush, 0, 0, IoBuffers::empty(), done)
    }

    /// What the request does.
    pub fn op(&self) -> Op {
        self.op
    }

    /// First byte in the image.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that it covers.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it covers no bytes, as a flush does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Ends the request. For engines, on a thread of theirs; a request that is dropped ends with EIO.
    pub fn complete(self, result: IoResult) {
        // The buffers go first: after the call they belong to the submitter again.
        drop(self.buffers);
        self.done.call(result);
    }
}

type Callback = Box<dyn FnOnce(IoResult) + Send>;

/// What to call when a request has ended: exactly once, with EIO if the request was dropped on its way.
#[must_use]
pub struct Completion {
    callback: Option<Callback>,
    /// Released after the callback has returned.
    in_flight: Vec<InFlightGuard>,
}

impl Completion {
    /// Calls `callback` on a thread of the engine. It must not wait for other requests of the same engine.
    pub fn new(callback: impl FnOnce(IoResult) + Send + 'static) -> Self {
        Self { callback: Some(Box::new(callback)), in_flight: Vec::new() }
    }

    /// Calls `first` with the result, before what is called already.
    pub(crate) fn before(mut self, first: impl FnOnce(IoResult) + Send + 'static) -> Self {
        let next = self.callback.take();
        let in_flight = std::mem::take(&mut self.in_flight);
        let callback = move |result| {
            first(result);
            if let Some(next) = next {
                next(result);
            }
        };
        Self { callback: Some(Box::new(callback)), in_flight }
    }

    pub(crate) fn hold(&mut self, guard: InFlightGuard) {
        self.in_flight.push(guard);
    }

    pub(crate) fn call(mut self, result: IoResult) {
        if let Some(callback) = self.callback.take() {
            callback(result);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(callback) = self.callback.take() {
            callback(Err(Errno::IO));
        }
        // The lowest node first: who drains a device finds all nodes below it drained.
        while self.in_flight.pop().is_some() {}
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completion")
    }
}

/// Counts requests, and lets a thread wait until there are none.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: Mutex<u64>,
    none: Condvar,
}

impl InFlight {
    pub(crate) fn enter(self: &Arc<Self>) -> InFlightGuard {
        *locked(&self.count) += 1;
        InFlightGuard(self.clone())
    }

    pub(crate) fn count(&self) -> u64 {
        *locked(&self.count)
    }

    pub(crate) fn wait(&self) {
        let count = locked(&self.count);
        drop(self.none.wait_while(count, |count| *count != 0).unwrap_or_else(PoisonError::into_inner));
    }
}

/// One request that is counted.
#[derive(Debug)]
pub(crate) struct InFlightGuard(Arc<InFlight>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let mut count = locked(&self.0.count);
        *count -= 1;
        if *count == 0 {
            self.0.none.notify_all();
        }
    }
}

/// The lock, also after a thread panicked with it: what these locks guard is whole between any two statements.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_dropped_request_completes_with_an_error() {
        let (tx, rx) = mpsc::channel();
        drop(Request::flush(Completion::new(move |result| tx.send(result).unwrap())));
        assert_eq!(rx.recv().unwrap(), Err(Errno::IO));
    }

    #[test]
    fn a_request_counts_until_its_completion_has_returned() {
        let in_flight = Arc::new(InFlight::default());
        let seen = in_flight.clone();
        let mut done = Completion::new(move |_| assert_eq!(seen.count(), 1));
        done.hold(in_flight.enter());
        done.before(|result| assert_eq!(result, Ok(()))).call(Ok(()));
        in_flight.wait();
    }
}
