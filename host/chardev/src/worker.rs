//! The thread of a chardev: moves bytes between its descriptors and its buffers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::CharError;
use crate::core::Core;
use crate::options::SocketOptions;
use crate::socket::{Listener, connect};
use crate::terminal::Terminal;

/// How often a pty is asked whether somebody has opened it: the kernel has no event for it.
const PTY_POLL: Duration = Duration::from_millis(200);
/// How long output may take to leave when the chardev is closed.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Bytes that move in one call.
const CHUNK: usize = 4096;

/// Where descriptors come from when there are none.
pub(crate) enum Port {
    /// From the start, and never again. The terminal is given back with them.
    Fixed {
        _terminal: Option<Terminal>,
    },
    Pty(Arc<OwnedFd>),
    Server(Listener),
    Client(SocketOptions),
}

/// The descriptors of a chardev that somebody is connected to.
#[derive(Default)]
pub(crate) struct Link {
    pub(crate) input: Option<Arc<OwnedFd>>,
    pub(crate) output: Option<Arc<OwnedFd>>,
}

impl Link {
    pub(crate) fn both(fd: Arc<OwnedFd>) -> Self {
        Self { input: Some(fd.clone()), output: Some(fd) }
    }
}

/// Starts the thread.
pub(crate) fn start(id: &str, core: &Arc<Core>, port: Port, link: Option<Link>) -> Result<(), CharError> {
    if link.is_some() {
        // Not first from the thread: what a frontend writes before it runs would be lost.
        core.opened();
    }
    let mut worker = Worker { core: core.clone(), port, link };
    core.thread_started();
    let name = format!("char-{id}");
    let thread = thread::Builder::new().name(name).spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
            tracing::error!("a frontend of a chardev panicked; the chardev is closed");
            worker.core.close();
        }
        let core = worker.core.clone();
        // The descriptors go, and the terminal comes back, before anyone hears of the end.
        drop(worker);
        core.thread_ended();
    });
    thread.map(drop).map_err(|e| {
        core.thread_ended();
        CharError::io("start a thread for a chardev", &e)
    })
}

struct Worker {
    core: Arc<Core>,
    port: Port,
    link: Option<Link>,
}

/// What poll found.
#[derive(Default)]
struct Ready {
    input: bool,
    output: bool,
    hang_up: bool,
    connection: bool,
    timed_out: bool,
}

impl Worker {
    fn run(&mut self) {
        let mut buffer = [0; CHUNK];
        while !self.core.is_closing() {
            self.core.deliver();
            let room = self.core.room();
            let output = self.core.output(&mut buffer);
            let ready = self.wait(room != 0, output != 0);
            if self.link.is_none() && (ready.connection || ready.timed_out) {
                self.connect();
            }
            if ready.output {
                self.write(&buffer[..output]);
            }
            if ready.input {
                self.read(&mut buffer, room);
            }
            // What a program wrote before it closed its side of a pty has been read above, or cannot be.
            if ready.hang_up && matches!(self.port, Port::Pty(_)) && !ready.input {
                self.disconnect();
            }
        }
        self.flush(&mut buffer);
    }

    /// Waits until something can be done.
    fn wait(&self, wants_input: bool, has_output: bool) -> Ready {
        let link = self.link.as_ref();
        let input = link.and_then(|link| link.input.as_deref()).filter(|_| wants_input);
        let output = link.and_then(|link| link.output.as_deref()).filter(|_| has_output);
        let listener = match &self.port {
            Port::Server(listener) if link.is_none() => Some(listener.as_fd()),
            _ => None,
        };
        let wake = Some((self.core.wake_fd(), PollFlags::IN));
        let sources = [
            wake,
            input.map(|fd| (fd.as_fd(), PollFlags::IN)),
            output.map(|fd| (fd.as_fd(), PollFlags::OUT)),
            listener.map(|fd| (fd, PollFlags::IN)),
        ];
        let found = poll_some(sources, self.timeout());
        if !found[0].is_empty() {
            self.core.woken();
        }
        let hang_up = (found[1] | found[2]).contains(PollFlags::HUP);
        let input = !found[1].is_empty() && (found[1].contains(PollFlags::IN) || !matches!(self.port, Port::Pty(_)));
        let timed_out = found.iter().all(|flags| flags.is_empty());
        Ready { input, output: !found[2].is_empty(), hang_up, connection: !found[3].is_empty(), timed_out }
    }

    /// How long to wait for a connection before looking again; for ever if none can come, or there is one.
    fn timeout(&self) -> Option<Duration> {
        match &self.port {
            _ if self.link.is_some() => None,
            Port::Pty(_) => Some(PTY_POLL),
            Port::Client(options) if options.reconnect_ms != 0 => Some(Duration::from_millis(options.reconnect_ms)),
            _ => None,
        }
    }

    fn connect(&mut self) {
        let link = match &self.port {
            Port::Pty(fd) => is_open(fd).then(|| Link::both(fd.clone())),
            Port::Server(listener) => match listener.accept() {
                Ok(stream) => Some(Link::both(Arc::new(stream))),
                Err(error) => {
                    tracing::debug!(%error, "a connection to a chardev did not come about");
                    None
                }
            },
            Port::Client(options) if options.reconnect_ms != 0 => {
                connect(options).ok().map(|stream| Link::both(Arc::new(stream)))
            }
            _ => None,
        };
        if link.is_some() {
            self.link = link;
            self.core.opened();
        }
    }

    fn disconnect(&mut self) {
        self.link = None;
        self.core.closed();
    }

    fn read(&mut self, buffer: &mut [u8; CHUNK], room: usize) {
        let Some(fd) = self.link.as_ref().and_then(|link| link.input.clone()) else { return };
        match read(&*fd, &mut buffer[..room.min(CHUNK)]) {
            Err(Errno::AGAIN | Errno::INTR) => (),
            Ok(count) if count != 0 => self.core.input(&buffer[..count]),
            // The end of input: of a connection all, of a terminal or a pipe only that half.
            _ => match (&self.port, &mut self.link) {
                (Port::Fixed { .. }, Some(link)) => link.input = None,
                _ => self.disconnect(),
            },
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        let Some(fd) = self.link.as_ref().and_then(|link| link.output.clone()) else { return };
        match write(&*fd, bytes) {
            Ok(count) => self.core.written(count),
            Err(Errno::AGAIN | Errno::INTR) => (),
            Err(errno) if matches!(self.port, Port::Fixed { .. }) => {
                tracing::warn!(%errno, bytes = bytes.len(), "output of a chardev is lost");
                self.core.written(bytes.len());
            }
            Err(_) => self.disconnect(),
        }
    }

    /// Writes what waits, for as long as that takes no longer than it should.
    fn flush(&mut self, buffer: &mut [u8; CHUNK]) {
        let end = Instant::now() + LAST_WORDS;
        loop {
            let count = self.core.output(buffer);
            let output = self.link.as_ref().and_then(|link| link.output.clone());
            let (Some(fd), false) = (output, count == 0) else { return };
            let left = end.saturating_duration_since(Instant::now());
            let [found] = poll_some([Some((fd.as_fd(), PollFlags::OUT))], Some(left));
            if found.is_empty() {
                return;
            }
            self.write(&buffer[..count]);
        }
    }
}

/// Whether a program has the other side of a pty open, or has left something to read in it.
fn is_open(fd: &OwnedFd) -> bool {
    let [found] = poll_some([Some((fd.as_fd(), PollFlags::IN | PollFlags::OUT))], Some(Duration::ZERO));
    found.contains(PollFlags::IN) || !found.contains(PollFlags::HUP)
}

/// Waits for some descriptors; says for each what it is ready for.
pub(crate) fn poll_some<const N: usize>(
    sources: [Option<(BorrowedFd<'_>, PollFlags)>; N],
    timeout: Option<Duration>,
) -> [PollFlags; N] {
    let mut fds: Vec<_> = sources.iter().flatten().map(|(fd, flags)| PollFd::new(fd, *flags)).collect();
    let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
    // An interrupted wait finds nothing, and the caller looks again.
    let found = poll(&mut fds, timeout.as_ref()).unwrap_or(0);
    let mut results = fds.iter().map(|fd| if found == 0 { PollFlags::empty() } else { fd.revents() });
    sources.map(|source| source.and_then(|_| results.next()).unwrap_or(PollFlags::empty()))
}

/// Waits until there is something to read.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    retry_on_intr(|| poll(&mut [PollFd::new(&fd, PollFlags::IN)], None)).map(drop)
}
