//! The thread that runs handlers which may block, one after another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::commands::{BlockingHandler, Call, Outcome};
use crate::{CommandError, Error};

struct Job {
    handler: BlockingHandler,
    arguments: Map<String, Value>,
    call: Call,
    done: oneshot::Sender<Outcome>,
}

/// A thread with a queue. The queue is bounded by what sessions have in work: one command each, and eight out of band.
pub(crate) struct Worker {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
}

impl Worker {
    pub(crate) fn start(name: &'static str) -> Result<Self, Error> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                for job in queue {
                    let work = AssertUnwindSafe(|| (job.handler)(job.arguments, job.call));
                    // The session may have ended: then nobody waits for the outcome.
                    let _ = job.done.send(catch_unwind(work).unwrap_or_else(|_| Err(broken())));
                }
            })
            .map_err(|source| Error::Start { what: "a QMP worker thread", source })?;
        Ok(Self { jobs: Mutex::new(Some(jobs)) })
    }

    /// Queues a command; the future waits for its outcome. The command runs whether or not anybody waits.
    pub(crate) fn submit(
        &self,
        handler: BlockingHandler,
        arguments: Map<String, Value>,
        call: Call,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let (done, outcome) = oneshot::channel();
        if let Some(jobs) = &*self.jobs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            // A queue without a thread drops the job, and the waiter hears of it.
            let _ = jobs.send(Job { handler, arguments, call, done });
        }
        async move { outcome.await.unwrap_or_else(|_| Err(broken())) }
    }

    /// Lets the thread end once its queue is empty.
    pub(crate) fn stop(&self) {
        self.jobs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
    }
}

fn broken() -> CommandError {
    CommandError::generic("The command failed: internal error")
}
