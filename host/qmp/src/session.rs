//! One client, from greeting to end of file.
//!
//! Without out-of-band execution one request is taken at a time: input is looked at no further until it has been
//! answered. With it up to eight requests wait in a queue, and those sent with `exec-oob` overtake them. Input also
//! rests while much is unsent, so that a client cannot make the server store replies without end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::commands::Outcome;
use crate::json::{JsonError, Layout, Parser};
use crate::outbox::Outbox;
use crate::request::{self, Request};
use crate::server::ServerHandle;
use crate::{Argument, CommandError, ErrorClass, Place};

/// Requests that wait while another is carried out, at most; and out-of-band commands that run at once.
const QUEUE: usize = 8;
const INPUT_BLOCK: usize = 64 << 10;
/// How long a client may take to read what is left for it when its connection ends.
const FLUSH: Duration = Duration::from_secs(5);
const NEGOTIATION: &str = "qmp_capabilities";

crate::qmp_types! {
    /// What a client may enable.
    pub(crate) enum QmpCapability {
        /// Out-of-band execution.
        Oob = "oob",
    }

    /// Arguments of `qmp_capabilities`.
    pub(crate) struct QmpCapabilities {
        /// What to enable.
        enable: Option<Vec<QmpCapability>>,
    }
}

/// Serves a connection until it ends or the server is shut down.
pub(crate) async fn serve<S>(stream: S, layout: Layout, server: ServerHandle)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let number = server.next_session();
    let outbox = Arc::new(Outbox::new(layout));
    outbox.reply(&json!({"QMP": {"version": server.version().to_json(), "capabilities": ["oob"]}}));
    server.events().attach(number, outbox.clone());
    let mut writing = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.write_to(std::pin::pin!(writer)).await }
    });
    Session::new(number, server.clone(), outbox.clone()).run(std::pin::pin!(reader)).await;
    server.events().detach(number);
    outbox.close();
    if tokio::time::timeout(FLUSH, &mut writing).await.is_err() {
        tracing::debug!("QMP client {number} does not read what is left for it");
        writing.abort();
    }
}

/// A message as it came in, in the order in which it is answered.
type Message = Result<Value, JsonError>;

struct Session {
    number: u64,
    server: ServerHandle,
    outbox: Arc<Outbox>,
    negotiated: bool,
    oob: bool,
    parser: Parser,
    input: Vec<u8>,
    /// Where in `input` the parser has got to.
    position: usize,
    queue: VecDeque<Message>,
    running: Option<(Option<Value>, JoinHandle<Outcome>)>,
    overtaking: JoinSet<(Option<Value>, Outcome)>,
    stop: watch::Receiver<bool>,
}

impl Session {
    fn new(number: u64, server: ServerHandle, outbox: Arc<Outbox>) -> Self {
        let stop = server.stop_signal();
        Self {
            number,
            server,
            outbox,
            negotiated: false,
            oob: false,
            parser: Parser::default(),
            input: Vec::new(),
            position: 0,
            queue: VecDeque::new(),
            running: None,
            overtaking: JoinSet::new(),
            stop,
        }
    }

    /// Until the client is gone, or the server stops and what runs has been answered. A command that runs when the
    /// client goes away runs on.
    async fn run(&mut self, mut reader: impl AsyncRead + Unpin) {
        let mut open = true;
        let mut block = vec![0; INPUT_BLOCK];
        while open || self.running.is_some() || !self.overtaking.is_empty() {
            if open {
                self.take_input();
                self.start_next();
            }
            let wants_input = open && self.has_room() && self.position == self.input.len();
            let is_full = self.outbox.is_full();
            tokio::select! {
                biased;
                () = self.outbox.gone() => break,
                _ = self.stop.wait_for(|stop| *stop), if open => {
                    open = false;
                    self.queue.clear();
                }
                (id, outcome) = finished(&mut self.running) => {
                    self.running = None;
                    self.outbox.reply(&request::reply(id, outcome));
                }
                Some(Ok((id, outcome))) = self.overtaking.join_next() => {
                    self.outbox.reply(&request::reply(id, outcome));
                }
                () = self.outbox.drained(), if is_full => {}
                read = reader.read(&mut block), if wants_input => match read {
                    Ok(len @ 1..) => {
                        self.input.clear();
                        self.input.extend_from_slice(block.get(..len).unwrap_or_default());
                        self.position = 0;
                    }
                    Ok(0) | Err(_) => {
                        open = false;
                        self.queue.clear();
                    }
                },
                // There is input and room for it: others had their turn, so go on.
                () = tokio::task::yield_now(), if open && !wants_input && self.has_room() => {}
            }
        }
        self.overtaking.detach_all();
    }

    /// Whether another message may be taken from the input.
    fn has_room(&self) -> bool {
        let room = match self.oob {
            false => self.queue.is_empty() && self.running.is_none(),
            true => self.queue.len() < QUEUE && self.overtaking.len() < QUEUE,
        };
        room && !self.outbox.is_full()
    }

    /// Cuts messages out of what has been read. Those that overtake are started at once.
    fn take_input(&mut self) {
        while self.has_room() {
            let (used, message) = self.parser.feed(self.input.get(self.position..).unwrap_or_default());
            self.position += used;
            match message {
                None => return,
                Some(Ok(value)) if self.oob && request::is_out_of_band(&value) => self.overtake(value),
                Some(message) => self.queue.push_back(message),
            }
        }
    }

    fn overtake(&mut self, mut value: Value) {
        let id = request::take_id(&mut value);
        match self.begin(value) {
            Ok(task) => {
                self.overtaking.spawn(async move { (id, outcome_of(task).await) });
            }
            Err(error) => self.outbox.reply(&request::reply(id, Err(error))),
        }
    }

    /// Answers what can be answered at once and starts the next command.
    fn start_next(&mut self) {
        while self.running.is_none() && !self.outbox.is_full() {
            let Some(message) = self.queue.pop_front() else { return };
            let mut value = match message {
                Ok(value) => value,
                Err(error) => {
                    self.outbox.reply(&request::reply(None, Err(error.into())));
                    continue;
                }
            };
            let id = request::take_id(&mut value);
            if !self.negotiated {
                self.negotiate(id, value);
                continue;
            }
            match self.begin(value) {
                Ok(task) => self.running = Some((id, task)),
                Err(error) => self.outbox.reply(&request::reply(id, Err(error))),
            }
        }
    }

    /// In the state of negotiation: only one command is there.
    fn negotiate(&mut self, id: Option<Value>, value: Value) {
        let enabled = Request::new(value, false).and_then(|request| {
            if request.command != NEGOTIATION {
                return Err(CommandError::new(
                    ErrorClass::CommandNotFound,
                    format!("Expecting capabilities negotiation with '{NEGOTIATION}'"),
                ));
            }
            QmpCapabilities::from_json(Value::Object(request.arguments), &Place::arguments())
        });
        match enabled {
            Ok(QmpCapabilities { enable }) => {
                self.oob = enable.is_some_and(|list| list.contains(&QmpCapability::Oob));
                self.negotiated = true;
                self.outbox.reply_and_want_events(&request::reply(id, Ok(json!({}))));
            }
            Err(error) => self.outbox.reply(&request::reply(id, Err(error))),
        }
    }

    /// Starts a command, in a task that outlives the session.
    fn begin(&self, value: Value) -> Result<JoinHandle<Outcome>, CommandError> {
        let request = Request::new(value, self.oob)?;
        self.server.begin(self.number, request)
    }
}

/// Waits for the command that runs, if one does. Cancel safe.
async fn finished(running: &mut Option<(Option<Value>, JoinHandle<Outcome>)>) -> (Option<Value>, Outcome) {
    match running {
        Some((id, task)) => {
            let outcome = outcome_of(task).await;
            (id.take(), outcome)
        }
        None => std::future::pending().await,
    }
}

/// What a command's task came to. One that panicked has been reported by the panic hook.
async fn outcome_of(task: impl Future<Output = Result<Outcome, tokio::task::JoinError>>) -> Outcome {
    task.await.unwrap_or_else(|_| Err(CommandError::generic("The command failed: internal error")))
}
