//! The engine that performs requests: replaceable, and here a pool of threads that make blocking calls.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::request::locked;
use crate::{BlockError, HostFile, Request};

/// What performs requests on host files. An implementation on io_uring can stand in for the thread pool.
pub trait IoEngine: Send + Sync {
    /// Starts a request on a host file. Returns at once; the completion is called later, by a thread of the engine.
    fn submit(&self, file: &Arc<HostFile>, request: Request);
    /// Calls `work` soon, on a thread of the engine.
    fn defer(&self, work: Box<dyn FnOnce() + Send>);
}

/// As many threads as requests that the host works on at once. QEMU's number.
const MAX_THREADS: usize = 64;
/// How long a thread waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Threads that start when all others are busy, and end when there is nothing to do.
///
/// The queue is as long as the devices' own queues are together: each slot of theirs is one request at most.
pub struct ThreadPool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Box<dyn FnOnce() + Send>>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl ThreadPool {
    /// A pool with one thread, so that requests can always be performed.
    pub fn new() -> Result<Self, BlockError> {
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new() });
        locked(&shared.state).threads = 1;
        start(&shared).map_err(BlockError::Thread)?;
        Ok(Self { shared })
    }

    fn push(&self, work: Box<dyn FnOnce() + Send>) {
        let mut state = locked(&self.shared.state);
        state.queue.push_back(work);
        if state.queue.len() <= state.idle || state.threads == MAX_THREADS {
            self.shared.work.notify_one();
            return;
        }
        state.threads += 1;
        drop(state);
        if let Err(errno) = start(&self.shared) {
            // The threads that there are get to it.
            tracing::debug!(%errno, "no further thread for block requests");
            locked(&self.shared.state).threads -= 1;
        }
    }
}

impl IoEngine for ThreadPool {
    fn submit(&self, file: &Arc<HostFile>, request: Request) {
        let file = file.clone();
        self.push(Box::new(move || {
            let result = file.perform(&request);
            request.complete(result);
        }));
    }

    fn defer(&self, work: Box<dyn FnOnce() + Send>) {
        self.push(work);
    }
}

impl Drop for ThreadPool {
    /// Lets the threads finish the queue and end. A completion may drop the pool, so nobody waits here.
    fn drop(&mut self) {
        locked(&self.shared.state).closed = true;
        self.shared.work.notify_all();
    }
}

fn start(shared: &Arc<Shared>) -> Result<(), Errno> {
    let shared = shared.clone();
    let thread = thread::Builder::new().name("block-io".to_owned()).spawn(move || shared.run());
    thread.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
}

impl Shared {
    fn run(&self) {
        while let Some(work) = self.next() {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("the completion of a block request panicked");
            }
        }
    }

    /// Work, or none if this thread is to end.
    fn next(&self) -> Option<Box<dyn FnOnce() + Send>> {
        let mut state = locked(&self.state);
        loop {
            if let Some(work) = state.queue.pop_front() {
                return Some(work);
            }
            if state.closed {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let (woken, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() && state.threads > 1 {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Barrier, mpsc};

    #[test]
    fn work_that_waits_for_other_work_gets_a_thread_of_its_own() {
        let pool = ThreadPool::new().unwrap();
        let barrier = Arc::new(Barrier::new(9));
        for _ in 0..8 {
            let barrier = barrier.clone();
            pool.defer(Box::new(move || {
                barrier.wait();
            }));
        }
        barrier.wait();
    }

    #[test]
    fn a_panic_in_a_completion_leaves_the_pool_working() {
        let pool = ThreadPool::new().unwrap();
        pool.defer(Box::new(|| panic!("a test's panic")));
        let (tx, rx) = mpsc::channel();
        pool.defer(Box::new(move || tx.send(()).unwrap()));
        rx.recv().unwrap();
    }

    #[test]
    fn work_that_was_queued_is_done_after_the_pool_is_dropped() {
        let (tx, rx) = mpsc::channel();
        let pool = ThreadPool::new().unwrap();
        for _ in 0..100 {
            let tx = tx.clone();
            pool.defer(Box::new(move || tx.send(()).unwrap()));
        }
        drop((pool, tx));
        assert_eq!(rx.iter().count(), 100);
    }
}
