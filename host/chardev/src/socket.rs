//! Sockets: listening for one connection at a time, or connecting to somebody.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::options::{SocketAddress, SocketOptions};
use crate::{CharError, worker};

/// How long a TCP connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A socket that others connect to. Its path vanishes with it.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener, String),
    Tcp(TcpListener, bool),
}

impl Listener {
    pub(crate) fn bind(options: &SocketOptions) -> Result<Self, CharError> {
        let failed = |e: io::Error| CharError::io(format!("listen on '{}'", options.address), &e);
        let listener = match &options.address {
            SocketAddress::Unix(path) => {
                remove_stale(path);
                Self::Unix(UnixListener::bind(path).map_err(failed)?, path.clone())
            }
            SocketAddress::Tcp { host, port } => {
                let host = if host.is_empty() { "::" } else { host };
                Self::Tcp(TcpListener::bind((host, *port)).map_err(failed)?, options.nodelay)
            }
        };
        rustix::io::ioctl_fionbio(&listener, true).map_err(|e| failed(e.into()))?;
        Ok(listener)
    }

    /// A connection, if somebody has made one.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        let stream: OwnedFd = match self {
            Self::Unix(listener, _) => listener.accept()?.0.into(),
            Self::Tcp(listener, nodelay) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(*nodelay)?;
                stream.into()
            }
        };
        rustix::io::ioctl_fionbio(&stream, true)?;
        Ok(stream)
    }

    /// Waits for a connection.
    pub(crate) fn wait(&self) -> io::Result<OwnedFd> {
        loop {
            worker::wait_readable(self.as_fd())?;
            match self.accept() {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => (),
                result => return result,
            }
        }
    }

    /// Where it listens; with the port that the host chose.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Unix(_, path) => format!("unix:{path}"),
            Self::Tcp(listener, _) => {
                listener.local_addr().map_or_else(|_| "tcp:".to_owned(), |address| format!("tcp:{address}"))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener, _) => listener.as_fd(),
            Self::Tcp(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the socket of a listener that has died. One that answers stays, and so does what is no socket.
fn remove_stale(path: &str) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        // If it fails, binding says why.
        let _ = std::fs::remove_file(path);
    }
}

/// Connects to somebody.
pub(crate) fn connect(options: &SocketOptions) -> io::Result<OwnedFd> {
    let stream: OwnedFd = match &options.address {
        SocketAddress::Unix(path) => UnixStream::connect(path)?.into(),
        SocketAddress::Tcp { host, port } => {
            let host = if host.is_empty() { "localhost" } else { host };
            let stream = connect_tcp(host, *port)?;
            stream.set_nodelay(options.nodelay)?;
            stream.into()
        }
    };
    rustix::io::ioctl_fionbio(&stream, true)?;
    Ok(stream)
}

/// Tries all addresses of a host.
fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(rustix::io::Errno::ADDRNOTAVAIL);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
