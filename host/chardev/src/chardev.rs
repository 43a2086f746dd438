//! A chardev, and a frontend's hold on it.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{Core, QuitHook, Sink};
use crate::options::{BackendOptions, ChardevOptions, SocketOptions};
use crate::pty::open_pty;
use crate::ring::Ring;
use crate::socket::{Listener, connect};
use crate::terminal::Terminal;
use crate::worker::{self, Link, Port};
use crate::{CharError, Frontend};

/// How long closing a chardev waits for its thread.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The host's side of a character device. Dropping it writes what waits, and closes it.
pub struct Chardev {
    id: String,
    filename: String,
    core: Arc<Core>,
}

impl std::fmt::Debug for Chardev {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chardev").field("id", &self.id).field("filename", &self.filename).finish_non_exhaustive()
    }
}

impl Chardev {
    /// Makes a chardev; a socket with `wait=on` waits for its first connection here.
    pub(crate) fn open(options: &ChardevOptions, quit: QuitHook) -> Result<Self, CharError> {
        let ChardevOptions { id, mux, backend } = options;
        let make = |sink, filename: &str| Self::new(id, *mux, sink, filename, quit.clone());
        let served = |filename: &str, port, link| {
            let chardev = make(Sink::Queue(Default::default()), filename)?;
            worker::start(id, &chardev.core, port, link)?;
            Ok(chardev)
        };
        match backend {
            BackendOptions::Null => make(Sink::Nothing, "null"),
            BackendOptions::Ringbuf { size } => make(Sink::Ring(Ring::new(*size)), "ringbuf"),
            BackendOptions::Stdio { signal } => {
                let (terminal, input, output) = Terminal::take(*signal)?;
                let link = Link { input: Some(Arc::new(input)), output: Some(Arc::new(output)) };
                served("stdio", Port::Fixed { _terminal: Some(terminal) }, Some(link))
            }
            BackendOptions::File { path, append } => {
                let mut open = OpenOptions::new();
                open.write(true).create(true).append(*append).truncate(!append);
                let file = open.open(path).map_err(|e| CharError::io(format!("open '{path}'"), &e))?;
                let link = Link { input: None, output: Some(Arc::new(file.into())) };
                served("file", Port::Fixed { _terminal: None }, Some(link))
            }
            BackendOptions::Pty => {
                let (master, path) = open_pty()?;
                served(&format!("pty:{path}"), Port::Pty(Arc::new(master)), None)
            }
            BackendOptions::Socket(socket) => {
                let (filename, port, link) = open_socket(socket)?;
                served(&filename, port, link)
            }
        }
    }

    /// A chardev on an open descriptor that is read and written.
    pub(crate) fn from_fd(id: &str, mux: bool, fd: OwnedFd, quit: QuitHook) -> Result<Self, CharError> {
        let chardev = Self::new(id, mux, Sink::Queue(Default::default()), "fd", quit)?;
        worker::start(id, &chardev.core, Port::Fixed { _terminal: None }, Some(Link::both(Arc::new(fd))))?;
        Ok(chardev)
    }

    fn new(id: &str, mux: bool, sink: Sink, filename: &str, quit: QuitHook) -> Result<Self, CharError> {
        let core = Core::new(mux, sink, quit).map_err(|e| CharError::host("make an eventfd", e))?;
        Ok(Self { id: id.to_owned(), filename: filename.to_owned(), core: Arc::new(core) })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What is behind it: `null`, `stdio`, `file`, `pty:PATH`, `unix:PATH`, `tcp:ADDRESS`, …
    pub fn filename(&self) -> &str {
        &self.filename
    }

    /// The path that another program opens, if this is a pty.
    pub fn pty_path(&self) -> Option<&str> {
        self.filename.strip_prefix("pty:")
    }

    /// Whether a frontend is attached.
    pub fn is_attached(&self) -> bool {
        self.core.is_attached()
    }

    /// Whether somebody is on the other side.
    pub fn is_open(&self) -> bool {
        self.core.is_open()
    }

    /// Attaches a frontend: one, or with `mux=on` any number, of which the newest gets the focus.
    pub fn attach(self: &Arc<Self>, frontend: Arc<dyn Frontend>) -> Result<CharHandle, CharError> {
        let key = self.core.attach(frontend).ok_or_else(|| CharError::InUse(self.id.clone()))?;
        Ok(CharHandle { chardev: self.clone(), key })
    }

    /// Takes bytes out of a ring buffer, the oldest first.
    pub fn ring_read(&self, max: usize) -> Result<Vec<u8>, CharError> {
        self.core.with_ring(|ring| ring.read(max)).ok_or_else(|| CharError::NotARing(self.id.clone()))
    }

    /// Puts bytes into a ring buffer, as if a frontend had written them.
    pub fn ring_write(&self, bytes: &[u8]) -> Result<(), CharError> {
        self.core.with_ring(|ring| ring.write(bytes)).ok_or_else(|| CharError::NotARing(self.id.clone()))
    }

    /// Writes what waits, closes the descriptors and gives the terminal back. Also happens when it is dropped; not for
    /// calls from inside of a frontend.
    pub fn close(&self) {
        self.core.close();
        self.core.wait_for_end(CLOSE_LIMIT);
    }
}

impl Drop for Chardev {
    fn drop(&mut self) {
        // Without waiting: the last holder may be a frontend in a call of the thread.
        self.core.close();
    }
}

fn open_socket(options: &SocketOptions) -> Result<(String, Port, Option<Link>), CharError> {
    let both = |stream| Link::both(Arc::new(stream));
    if options.server {
        let listener = Listener::bind(options)?;
        let filename = listener.address();
        let waited = options.wait.then(|| {
            tracing::info!(address = filename, "waiting for a connection");
            listener.wait()
        });
        let stream = waited.transpose().map_err(|e| CharError::io(format!("accept on '{}'", options.address), &e))?;
        return Ok((filename, Port::Server(listener), stream.map(both)));
    }
    let filename = match &options.address {
        crate::SocketAddress::Unix(path) => format!("unix:{path}"),
        address => format!("tcp:{address}"),
    };
    let link = match connect(options) {
        Ok(stream) => Some(both(stream)),
        Err(_) if options.reconnect_ms != 0 => None,
        Err(e) => return Err(CharError::io(format!("connect to '{}'", options.address), &e)),
    };
    Ok((filename, Port::Client(options.clone()), link))
}

/// A frontend's hold on a chardev. Dropping it detaches the frontend; a call into it that has begun may still run.
#[derive(Debug)]
pub struct CharHandle {
    chardev: Arc<Chardev>,
    key: u64,
}

impl CharHandle {
    /// The chardev.
    pub fn chardev(&self) -> &Arc<Chardev> {
        &self.chardev
    }

    /// Hands over output, and says how many bytes were taken. Never blocks. The rest can be offered again after
    /// [`Event::Writable`](crate::Event::Writable).
    pub fn write(&self, bytes: &[u8]) -> usize {
        self.chardev.core.write(Some(self.key), bytes)
    }

    /// Says that the frontend has room for input again.
    pub fn resume_input(&self) {
        self.chardev.core.wake();
    }

    /// Makes the multiplexer's input come here.
    pub fn take_focus(&self) {
        self.chardev.core.set_focus(Some(self.key));
    }
}

impl Drop for CharHandle {
    fn drop(&mut self) {
        self.chardev.core.detach(self.key);
    }
}
