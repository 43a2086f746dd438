//! What one client is still to be sent.
//!
//! Replies are pushed by the client's session, which starts no command while much is unsent. Events are pushed by any
//! thread and never wait: a client that leaves too many of them unread is given up.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::json::{self, Layout};

/// Unsent bytes above which a session takes no further input.
const HIGH_WATER: usize = 256 << 10;
/// Unsent bytes of events at which a client is given up.
const EVENT_LIMIT: usize = 4 << 20;
/// Bytes handed to one write.
const BATCH: usize = 64 << 10;

#[derive(Default)]
struct State {
    lines: VecDeque<(Arc<str>, bool)>,
    unsent: usize,
    unsent_events: usize,
    wants_events: bool,
    /// Nothing is added any more; what is there is still to be sent.
    closed: bool,
    /// Nothing can be sent any more.
    gone: bool,
}

/// The queue between a session, the event hub and the task that writes.
#[derive(Default)]
pub(crate) struct Outbox {
    layout: Layout,
    state: Mutex<State>,
    /// For the writer: there are lines, or it is closed.
    filled: Notify,
    /// For the session: it may have fallen below the high-water mark.
    drained: Notify,
    /// For the writer in the middle of a write, and for the session: it is gone.
    writer_gone: Notify,
    session_gone: Notify,
}

/// One message in both layouts, each made when it is first asked for.
pub(crate) struct Message<'a> {
    value: &'a Value,
    line: Option<Arc<str>>,
    pretty: Option<Arc<str>>,
}

impl<'a> Message<'a> {
    pub(crate) fn new(value: &'a Value) -> Self {
        Self { value, line: None, pretty: None }
    }

    fn text(&mut self, layout: Layout) -> Arc<str> {
        let slot = match layout {
            Layout::Line => &mut self.line,
            Layout::Pretty => &mut self.pretty,
        };
        slot.get_or_insert_with(|| {
            let mut text = String::new();
            json::write(&mut text, self.value, layout);
            text.push_str("\r\n");
            text.into()
        })
        .clone()
    }
}

impl Outbox {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, ..Self::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Queues a reply or the greeting.
    pub(crate) fn reply(&self, value: &Value) {
        let text = Message::new(value).text(self.layout);
        self.push(&mut self.state(), text, false);
    }

    /// Queues the reply to a successful negotiation; events follow it from now on.
    pub(crate) fn reply_and_want_events(&self, value: &Value) {
        let text = Message::new(value).text(self.layout);
        let mut state = self.state();
        self.push(&mut state, text, false);
        state.wants_events = true;
    }

    /// Queues an event if the client takes events. Never waits.
    pub(crate) fn event(&self, message: &mut Message<'_>) {
        let mut state = self.state();
        if !state.wants_events || state.closed || state.gone {
            return;
        }
        let text = message.text(self.layout);
        if state.unsent_events + text.len() > EVENT_LIMIT {
            tracing::warn!("a QMP client that leaves {} bytes of events unread is disconnected", state.unsent_events);
            self.give_up(&mut state);
        } else {
            self.push(&mut state, text, true);
        }
    }

    fn push(&self, state: &mut State, text: Arc<str>, is_event: bool) {
        if state.gone {
            return;
        }
        state.unsent += text.len();
        state.unsent_events += if is_event { text.len() } else { 0 };
        state.lines.push_back((text, is_event));
        self.filled.notify_one();
    }

    fn give_up(&self, state: &mut State) {
        state.gone = true;
        state.lines = VecDeque::new();
        self.writer_gone.notify_one();
        self.session_gone.notify_one();
        self.filled.notify_one();
    }

    /// Ends the queue: the writer sends what is left, then closes the connection.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
    }

    /// Whether so much is unsent that no further command should be started.
    pub(crate) fn is_full(&self) -> bool {
        self.state().unsent > HIGH_WATER
    }

    /// Returns when something was sent since the last call. Cancel safe.
    pub(crate) async fn drained(&self) {
        self.drained.notified().await;
    }

    /// Returns when nothing can be sent any more. Cancel safe.
    pub(crate) async fn gone(&self) {
        while !self.state().gone {
            self.session_gone.notified().await;
        }
    }

    /// The next lines to write together: their text and how much of it is events. `None` when all is over.
    async fn next(&self) -> Option<(String, usize)> {
        loop {
            {
                let mut state = self.state();
                if state.gone {
                    return None;
                }
                let mut batch = (String::new(), 0);
                while batch.0.len() < BATCH {
                    let Some((text, is_event)) = state.lines.pop_front() else { break };
                    batch.0.push_str(&text);
                    batch.1 += if is_event { text.len() } else { 0 };
                }
                if !batch.0.is_empty() {
                    return Some(batch);
                }
                if state.closed {
                    return None;
                }
            }
            self.filled.notified().await;
        }
    }

    /// Writes all that is queued until the queue is closed or the client gone, then closes the connection.
    pub(crate) async fn write_to(&self, mut writer: impl AsyncWrite + Unpin) {
        while let Some((text, events)) = self.next().await {
            let written = tokio::select! {
                biased;
                () = self.writer_gone.notified() => return,
                written = async {
                    writer.write_all(text.as_bytes()).await?;
                    writer.flush().await
                } => written,
            };
            let mut state = self.state();
            state.unsent -= text.len();
            state.unsent_events -= events;
            if let Err(error) = written {
                tracing::debug!("a QMP client is gone: {error}");
                self.give_up(&mut state);
                return;
            }
            self.drained.notify_one();
        }
        // The peer may have closed already; there is nobody left to tell.
        let _ = writer.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::AsyncReadExt;

    async fn written(outbox: &Outbox) -> String {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        outbox.close();
        outbox.write_to(ours).await;
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn events_start_after_the_reply_to_the_negotiation() {
        let outbox = Outbox::new(Layout::Line);
        outbox.event(&mut Message::new(&json!("early")));
        outbox.reply_and_want_events(&json!("reply"));
        outbox.event(&mut Message::new(&json!("late")));
        assert_eq!(written(&outbox).await, "\"reply\"\r\n\"late\"\r\n");
    }

    #[tokio::test]
    async fn a_client_that_leaves_events_unread_is_given_up() {
        let outbox = Outbox::new(Layout::Line);
        outbox.reply_and_want_events(&json!({}));
        let large = json!("x".repeat(1 << 20));
        for _ in 0..5 {
            outbox.event(&mut Message::new(&large));
        }
        outbox.gone().await;
        assert_eq!(written(&outbox).await, "");
    }

    #[tokio::test]
    async fn a_large_reply_does_not_count_as_unread_events() {
        let outbox = Outbox::new(Layout::Line);
        outbox.reply_and_want_events(&json!("x".repeat(EVENT_LIMIT)));
        outbox.event(&mut Message::new(&json!("event")));
        assert!(outbox.is_full() && !outbox.state().gone);
    }
}
