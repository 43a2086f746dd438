//! Events: from any thread to every client in command mode.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::outbox::{Message, Outbox};
use crate::throttle::Throttle;

#[derive(Default)]
struct State {
    outboxes: Vec<(u64, Arc<Outbox>)>,
    throttle: Throttle,
}

#[derive(Default)]
struct Hub {
    state: Mutex<State>,
    /// A window of the throttle was opened.
    opened: Notify,
}

/// Where events are emitted. Cheap to clone; usable from any thread; never waits for a client.
#[derive(Clone, Default)]
pub struct Events(Arc<Hub>);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Sends an event, stamped with the present time, to every client that has negotiated. Some kinds are limited to
    /// one a second, as in QEMU: of several the first is sent at once and the last when the second is over.
    pub fn emit(&self, name: &str, data: impl Into<Option<Value>>) {
        let event = stamped(name, data.into());
        let mut state = self.state();
        let limited = state.throttle.next();
        if let Some(event) = state.throttle.offer(name, event, Instant::now()) {
            state.broadcast(&event);
        }
        if limited != state.throttle.next() {
            self.0.opened.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn attach(&self, session: u64, outbox: Arc<Outbox>) {
        self.state().outboxes.push((session, outbox));
    }

    pub(crate) fn detach(&self, session: u64) {
        self.state().outboxes.retain(|(number, _)| *number != session);
    }

    /// Sends what the rate limits hold back when its time has come. Runs on the server's thread; never ends.
    pub(crate) async fn release_held(self) {
        loop {
            let next = self.state().throttle.next();
            tokio::select! {
                () = self.0.opened.notified() => {}
                () = async {
                    match next {
                        Some(next) => tokio::time::sleep_until(next.into()).await,
                        None => std::future::pending().await,
                    }
                } => {
                    let mut state = self.state();
                    for event in state.throttle.due(Instant::now()) {
                        state.broadcast(&event);
                    }
                }
            }
        }
    }
}

impl State {
    fn broadcast(&self, event: &Value) {
        let mut message = Message::new(event);
        for (_, outbox) in &self.outboxes {
            outbox.event(&mut message);
        }
    }
}

fn stamped(name: &str, data: Option<Value>) -> Value {
    let timestamp = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => json!({"seconds": since.as_secs(), "microseconds": since.subsec_micros()}),
        Err(_) => json!({"seconds": -1, "microseconds": -1}),
    };
    let mut event = json!({"timestamp": timestamp, "event": name});
    if let Some(data) = data {
        event["data"] = data;
    }
    event
}
