//! The thread that talks to the client.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::command::Interpreter;
use crate::log::Log;
use crate::{QtestAddress, QtestTarget};

/// Bytes of one request line: what a write of the largest size takes in hexadecimal, and some words.
const MAX_LINE: usize = (512 << 20) + 4096;

/// How long a client may take to read its last reply.
const LAST_REPLY: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be connected to.
    #[error("cannot connect to the qtest socket '{}': {source}", .path.display())]
    Connect {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket cannot be listened on.
    #[error("cannot listen on the qtest socket '{}': {source}", .path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be written.
    #[error("cannot open the qtest log '{}': {source}", .path.display())]
    Log {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No thread.
    #[error("cannot start the qtest thread: {0}")]
    Thread(io::Error),
}

/// What has to be closed to make the thread end.
#[derive(Default)]
struct Connection {
    stream: Mutex<Option<UnixStream>>,
    closing: AtomicBool,
}

impl Connection {
    fn stream(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.stream.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Takes note of a new client. False if the server ends.
    fn open(&self, stream: &UnixStream) -> io::Result<bool> {
        let mut current = self.stream();
        *current = Some(stream.try_clone()?);
        Ok(!self.is_closing())
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Ends the connection with the client, if there is one.
    fn hang_up(&self) {
        if let Some(stream) = self.stream().take() {
            // The client may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Takes no more requests; the one that is being served may be what ends the machine, and gets its reply.
    fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        if let Some(stream) = &*self.stream() {
            // The client may have closed it already.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

/// Hangs up when dropped: also when the target panics, so that the client does not wait for ever.
struct HangUp(Arc<Connection>);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// A running qtest server. Dropping it lets the request that is being served end, closes the connection and waits for the
/// thread, `qtest`. Not from inside of a request.
pub struct Qtest {
    connection: Arc<Connection>,
    listener: Option<(UnixListener, PathBuf)>,
    thread: Option<JoinHandle<()>>,
}

impl Qtest {
    /// Starts driving `target` for the client at `address`. As a client of a socket it ends with the connection; as a
    /// server it takes one client after another. `log` is the argument of `-qtest-log`.
    pub fn start(
        address: &QtestAddress,
        log: Option<&Path>,
        target: impl QtestTarget + 'static,
    ) -> Result<Self, Error> {
        let opened = Log::open(log);
        let log = opened.map_err(|source| Error::Log { path: log.unwrap_or(Path::new("")).into(), source })?;
        let path = &address.path;
        let connection = Arc::new(Connection::default());
        let mut session = Session { target, log, connection: connection.clone(), interpreter: Interpreter::default() };
        if !address.server {
            let stream = UnixStream::connect(path).map_err(|source| Error::Connect { path: path.clone(), source })?;
            let thread = spawn(move || session.serve(stream))?;
            return Ok(Self { connection, listener: None, thread: Some(thread) });
        }
        let failed = |source| Error::Listen { path: path.clone(), source };
        let listener = bind(path).map_err(failed)?;
        let accepting = listener.try_clone().map_err(failed)?;
        let (first, arrived) = mpsc::sync_channel(1);
        let thread = spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                // Nobody waits any more after the first.
                let _ = first.try_send(());
                session.serve(stream);
            }
        })?;
        if address.wait && arrived.recv().is_err() {
            return Err(failed(io::ErrorKind::ConnectionAborted.into()));
        }
        Ok(Self { connection, listener: Some((listener, path.clone())), thread: Some(thread) })
    }

    /// Waits until the client has closed the connection (as a server: for ever).
    pub fn wait(mut self) {
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Drop for Qtest {
    fn drop(&mut self) {
        self.connection.close();
        if let Some((listener, path)) = &self.listener {
            // Wakes the thread from accept; it has ended if this fails.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
            let _ = fs::remove_file(path);
        }
        let start = Instant::now();
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) && start.elapsed() < LAST_REPLY {
            std::thread::sleep(LOOK_AGAIN);
        }
        self.connection.hang_up();
        self.join();
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new().name("qtest".into()).spawn(work).map_err(Error::Thread)
}

/// Binds a path, in place of a socket file on which nobody listens any more.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let error = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        other => return other,
    };
    let is_socket = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let is_refused = || UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    if !is_socket || !is_refused() {
        return Err(error);
    }
    fs::remove_file(path)?;
    UnixListener::bind(path)
}

struct Session<T> {
    target: T,
    log: Log,
    connection: Arc<Connection>,
    interpreter: Interpreter,
}

impl<T: QtestTarget> Session<T> {
    /// Serves one client to its end.
    fn serve(&mut self, stream: UnixStream) {
        self.interpreter.lines.reset();
        self.log.connection("OPENED");
        if let Err(error) = self.converse(stream) {
            tracing::debug!("the qtest client is gone: {error}");
        }
        self.log.connection("CLOSED");
    }

    fn converse(&mut self, mut stream: UnixStream) -> io::Result<()> {
        let _hang_up = HangUp(self.connection.clone());
        if !self.connection.open(&stream)? {
            return Ok(());
        }
        let mut input = Vec::new();
        let mut block = vec![0; 64 << 10];
        loop {
            let len = match stream.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut rest = block.get(..len).unwrap_or_default();
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, behind) = rest.split_at(end);
                rest = behind.get(1..).unwrap_or_default();
                input.extend_from_slice(line);
                let replies = self.request(&input);
                stream.write_all(&replies)?;
                input.clear();
                if self.connection.is_closing() {
                    return Ok(());
                }
            }
            input.extend_from_slice(rest);
            if input.len() > MAX_LINE {
                return Err(io::Error::other(format!("a request is longer than {MAX_LINE} bytes")));
            }
        }
    }

    /// What a request is answered with: lines about interrupts, then its reply.
    fn request(&mut self, line: &[u8]) -> Vec<u8> {
        self.log.line('R', line);
        let reply = self.interpreter.request(&mut self.target, line);
        let mut text = Vec::new();
        for (number, raised) in self.interpreter.lines.take() {
            let what = if raised { "raise" } else { "lower" };
            self.put(&mut text, format!("IRQ {what} {number}").as_bytes());
        }
        self.put(&mut text, reply.as_bytes());
        text
    }

    fn put(&mut self, text: &mut Vec<u8>, line: &[u8]) {
        self.log.line('S', line);
        text.extend_from_slice(line);
        text.push(b'\n');
    }
}
