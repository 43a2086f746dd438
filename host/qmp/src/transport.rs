//! Connections: unix and TCP sockets that listen or connect, standard input and output, and anything else that reads
//! and writes.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::json::Layout;
use crate::server::ServerHandle;
use crate::{Error, session};

/// How long to wait when a client cannot be accepted, for want of file descriptors for instance.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a listening socket behaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct ListenOptions {
    /// Return only when the first client has connected (`wait=on`).
    pub wait: bool,
    /// How output is laid out (`pretty=on`).
    pub layout: Layout,
}

impl ServerHandle {
    /// Serves one connection that exists already: a chardev, a pty, a socket that was handed over.
    pub fn serve<S>(&self, stream: S, layout: Layout) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        self.spawn(session::serve(stream, layout, self.clone()))
    }

    /// Serves a connection of which reading and writing block, through two threads. The one that reads ends with its
    /// input; end of input ends the connection, not the server.
    pub fn serve_blocking<R, W>(&self, reader: R, writer: W, layout: Layout) -> Result<(), Error>
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let start = |source| Error::Start { what: "a QMP connection", source };
        let (ours, theirs) = UnixStream::pair().map_err(start)?;
        let feeder = theirs.try_clone().map_err(start)?;
        let alive = self.alive()?;
        std::thread::Builder::new()
            .name("qmp-output".into())
            .spawn(move || {
                if let Err(error) = copy_flushing(theirs, writer) {
                    tracing::debug!("QMP output ends: {error}");
                }
                drop(alive);
            })
            .map_err(start)?;
        std::thread::Builder::new()
            .name("qmp-input".into())
            .spawn(move || {
                if let Err(error) = copy_flushing(reader, &feeder) {
                    tracing::debug!("QMP input ends: {error}");
                }
                // The server may have closed it already.
                let _ = feeder.shutdown(Shutdown::Write);
            })
            .map_err(start)?;
        self.serve_unix(ours, layout).map_err(start)
    }

    /// Serves standard input and output.
    pub fn serve_stdio(&self, layout: Layout) -> Result<(), Error> {
        self.serve_blocking(io::stdin(), io::stdout(), layout)
    }

    /// Listens on a unix socket; any number of clients may be connected at once. A socket file that a dead process
    /// left is replaced; the file is removed when the server ends.
    pub fn listen_unix(&self, path: impl AsRef<Path>, options: ListenOptions) -> Result<(), Error> {
        let (listener, file) = bind_unix(path.as_ref())?;
        let failed = |source| Error::Listen { address: path.as_ref().display().to_string(), source };
        listener.set_nonblocking(true).map_err(failed)?;
        self.listen(Listener::Unix(listener, file), options)
    }

    /// Listens on a TCP address. Returns the address with the port that was chosen if it was 0.
    pub fn listen_tcp(&self, address: SocketAddr, options: ListenOptions) -> Result<SocketAddr, Error> {
        let failed = |source| Error::Listen { address: address.to_string(), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        self.listen(Listener::Tcp(listener), options)?;
        Ok(local)
    }

    /// Connects to a unix socket on which the client listens, as test harnesses do.
    pub fn connect_unix(&self, path: impl AsRef<Path>, layout: Layout) -> Result<(), Error> {
        let path = path.as_ref();
        let connected = UnixStream::connect(path).and_then(|stream| self.serve_unix(stream, layout));
        connected.map_err(|source| Error::Connect { address: path.display().to_string(), source })
    }

    /// Connects to a TCP address on which the client listens.
    pub fn connect_tcp(&self, address: SocketAddr, layout: Layout) -> Result<(), Error> {
        let failed = |source| Error::Connect { address: address.to_string(), source };
        let stream = TcpStream::connect(address).map_err(failed)?;
        stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(failed)?;
        let server = self.clone();
        self.spawn(async move {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => session::serve(stream, layout, server).await,
                Err(error) => tracing::error!("cannot serve a QMP connection: {error}"),
            }
        })
    }

    /// Serves one connection over a socket that exists already, such as one end of a pair.
    pub fn serve_unix(&self, stream: UnixStream, layout: Layout) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let server = self.clone();
        let served = self.spawn(async move {
            match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => session::serve(stream, layout, server).await,
                Err(error) => tracing::error!("cannot serve a QMP connection: {error}"),
            }
        });
        served.map_err(io::Error::other)
    }

    /// Runs a listener on the server's thread, and waits for its first client if asked to.
    fn listen(&self, listener: Listener, options: ListenOptions) -> Result<(), Error> {
        let (first, arrived) = mpsc::sync_channel(1);
        let server = self.clone();
        self.spawn(async move {
            if let Err(error) = server.accept_all(listener, first, options.layout).await {
                tracing::error!("cannot listen for QMP clients: {error}");
            }
        })?;
        match options.wait {
            true => arrived.recv().map_err(|_| Error::Stopped),
            false => Ok(()),
        }
    }

    /// Accepts clients until the server stops. Says so when one has come.
    async fn accept_all(&self, listener: Listener, first: mpsc::SyncSender<()>, layout: Layout) -> io::Result<()> {
        let listener = listener.into_async()?;
        let mut stop = self.stop_signal();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                // A server that stops meanwhile closes the client: no error of anybody's.
                accepted = listener.accept(self, layout) => accepted,
            };
            match accepted {
                // Nobody waits any more after the first.
                Ok(()) => drop(first.try_send(())),
                Err(error) => {
                    tracing::warn!("cannot accept a QMP client: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A listening socket; the file goes with it.
enum Listener {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// The same, known to the server's event queue.
enum AsyncListener {
    Unix(tokio::net::UnixListener, SocketFile),
    Tcp(tokio::net::TcpListener),
}

impl Listener {
    fn into_async(self) -> io::Result<AsyncListener> {
        Ok(match self {
            Self::Unix(listener, file) => AsyncListener::Unix(tokio::net::UnixListener::from_std(listener)?, file),
            Self::Tcp(listener) => AsyncListener::Tcp(tokio::net::TcpListener::from_std(listener)?),
        })
    }
}

impl AsyncListener {
    async fn accept(&self, server: &ServerHandle, layout: Layout) -> io::Result<()> {
        let served = match self {
            Self::Unix(listener, _file) => server.serve(listener.accept().await?.0, layout),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                server.serve(stream, layout)
            }
        };
        served.map_err(io::Error::other)
    }
}

fn copy_flushing(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut block = vec![0; 64 << 10];
    loop {
        let len = match from.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(block.get(..len).unwrap_or_default())?;
        to.flush()?;
    }
}

/// A socket file of ours; removed when dropped, unless another has taken its place.
struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // It may have vanished in between; nothing is lost then.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds a path, in place of a socket file on which nobody listens any more.
fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let failed = |source| Error::Listen { address: path.display().to_string(), source };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                return Err(Error::NotASocket { path: path.into() });
            }
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => return Err(Error::PathInUse { path: path.into() }),
            }
            fs::remove_file(path).map_err(failed)?;
            UnixListener::bind(path)
        }
        other => other,
    };
    Ok((listener.map_err(failed)?, SocketFile { path: path.to_owned(), identity: identity(path) }))
}
