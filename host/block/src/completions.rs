//! Completions for a thread that waits on file descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};

use crate::request::{Completion, IoResult, locked};

/// Ended requests by token, and an eventfd that is readable while there are some.
///
/// A device that lives on an event loop watches the descriptor there and handles completions on its own thread. The
/// queue holds at most as many entries as requests were in flight.
#[derive(Debug)]
pub struct CompletionQueue {
    ended: Mutex<Vec<(u64, IoResult)>>,
    event: OwnedFd,
}

impl CompletionQueue {
    /// An empty queue.
    pub fn new() -> Result<Arc<Self>, Errno> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { ended: Mutex::new(Vec::new()), event }))
    }

    /// A completion that puts `token` into the queue.
    pub fn completion(self: &Arc<Self>, token: u64) -> Completion {
        let queue = self.clone();
        Completion::new(move |result| queue.push(token, result))
    }

    /// Takes what has ended, in the order in which it did.
    pub fn take(&self) -> Vec<(u64, IoResult)> {
        // Reset first: what ends after this is signalled anew.
        let _ = read(&self.event, &mut [0_u8; 8]);
        std::mem::take(&mut *locked(&self.ended))
    }

    fn push(&self, token: u64, result: IoResult) {
        let mut ended = locked(&self.ended);
        ended.push((token, result));
        if ended.len() == 1 {
            // Only fails when the counter is full, and then the descriptor is readable anyway.
            let _ = write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_readable(queue: &CompletionQueue) -> bool {
        let mut fds = [PollFd::new(queue, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn the_descriptor_is_readable_while_completions_wait() {
        let queue = CompletionQueue::new().unwrap();
        assert!(!is_readable(&queue));
        queue.completion(7).call(Ok(()));
        queue.completion(8).call(Err(Errno::NOSPC));
        assert!(is_readable(&queue));
        assert_eq!(queue.take(), [(7, Ok(())), (8, Err(Errno::NOSPC))]);
        assert!(!is_readable(&queue) && queue.take().is_empty());
        queue.completion(9).call(Ok(()));
        assert!(is_readable(&queue));
    }
}
