//! What `-chardev` can say, as types.

use cardcage_options::{OptionError, Options};

/// A `-chardev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChardevOptions {
    /// Its id.
    pub id: String,
    /// Whether several frontends share it.
    pub mux: bool,
    /// What is behind it.
    pub backend: BackendOptions,
}

/// What is behind a chardev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendOptions {
    /// Nothing: output vanishes.
    Null,
    /// The terminal that the program was started from.
    Stdio {
        /// Whether Ctrl-C and its like are signals for the program; otherwise they are input.
        signal: bool,
    },
    /// A file that gets the output.
    File {
        /// Its path.
        path: String,
        /// Whether what it holds already stays.
        append: bool,
    },
    /// A pseudo terminal for another program to open.
    Pty,
    /// A unix or TCP connection.
    Socket(SocketOptions),
    /// The last bytes of output, in memory.
    Ringbuf {
        /// How many; a power of two.
        size: u64,
    },
}

/// A `-chardev socket`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// Where.
    pub address: SocketAddress,
    /// Whether it listens, for one connection at a time; otherwise it connects.
    pub server: bool,
    /// Whether making it waits for the first connection.
    pub wait: bool,
    /// Whether small TCP packets are sent at once.
    pub nodelay: bool,
    /// Milliseconds after which a client that lost its connection, or got none, tries again; 0 for never.
    pub reconnect_ms: u64,
}

/// Where a socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// A path.
    Unix(String),
    /// A host and a port.
    Tcp {
        /// Name or address; all addresses for a server if empty.
        host: String,
        /// Port number; 0 lets the host choose one.
        port: u16,
    },
}

impl std::fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => f.write_str(path),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Bytes of a ring buffer without `size`.
const DEFAULT_RING: u64 = 64 << 10;
/// A ring buffer takes its memory at once.
const MAX_RING: u64 = 1 << 30;

#[derive(Clone, Copy)]
enum Kind {
    Null,
    Stdio,
    File,
    Pty,
    Socket,
    Ringbuf,
}

const KINDS: [(&str, Kind); 7] = [
    ("null", Kind::Null),
    ("stdio", Kind::Stdio),
    ("file", Kind::File),
    ("pty", Kind::Pty),
    ("socket", Kind::Socket),
    ("ringbuf", Kind::Ringbuf),
    ("memory", Kind::Ringbuf),
];

impl ChardevOptions {
    /// Reads a `-chardev`, whose first word is the backend.
    pub fn from_options(mut options: Options) -> Result<Self, OptionError> {
        let o = &mut options;
        let kind = o.take_choice("backend", &KINDS)?.ok_or_else(|| o.missing("backend"))?;
        let id = o.take_id("id")?.ok_or_else(|| o.missing("id"))?;
        let mux = o.take_bool("mux")?.unwrap_or(false);
        let backend = match kind {
            Kind::Null => BackendOptions::Null,
            Kind::Pty => BackendOptions::Pty,
            Kind::Stdio => BackendOptions::Stdio { signal: o.take_bool("signal")?.unwrap_or(true) },
            Kind::File => {
                let append = o.take_bool("append")?.unwrap_or(false);
                BackendOptions::File { path: require_path(o)?, append }
            }
            Kind::Socket => BackendOptions::Socket(SocketOptions::take(o)?),
            Kind::Ringbuf => BackendOptions::Ringbuf { size: take_ring_size(o)? },
        };
        options.finish()?;
        Ok(Self { id, mux, backend })
    }
}

fn require_path(options: &mut Options) -> Result<String, OptionError> {
    let path = options.require_str("path")?;
    if path.is_empty() || path.contains('\0') {
        return Err(options.reject("path", &path, "a path is expected"));
    }
    Ok(path)
}

fn take_ring_size(options: &mut Options) -> Result<u64, OptionError> {
    let size = options.take_size("size")?.unwrap_or(DEFAULT_RING);
    if !size.is_power_of_two() || size > MAX_RING {
        let reason = "size of ringbuf chardev must be power of two, at most 1G";
        return Err(options.reject("size", &size.to_string(), reason));
    }
    Ok(size)
}

impl SocketOptions {
    pub(crate) fn take(o: &mut Options) -> Result<Self, OptionError> {
        let address = if o.contains("path") { SocketAddress::Unix(require_path(o)?) } else { take_tcp(o)? };
        let server = o.take_bool("server")?.unwrap_or(false);
        let wait = o.take_bool("wait")?;
        let delay = o.take_bool("delay")?.unwrap_or(true);
        let nodelay = o.take_bool("nodelay")?.unwrap_or(!delay);
        let reconnect_ms = o.take_u64("reconnect-ms", 0..=u64::from(u32::MAX))?.unwrap_or(0);
        if o.take_bool("telnet")? == Some(true) {
            return Err(o.reject("telnet", "on", "the telnet protocol is not offered"));
        }
        if wait.is_some() && !server {
            return Err(o.reject("wait", "on", "'wait' option is incompatible with socket in client connect mode"));
        }
        if reconnect_ms != 0 && server {
            let reason = "'reconnect-ms' option is incompatible with socket in server listen mode";
            return Err(o.reject("reconnect-ms", &reconnect_ms.to_string(), reason));
        }
        Ok(Self { address, server, wait: wait.unwrap_or(server), nodelay, reconnect_ms })
    }
}

fn take_tcp(o: &mut Options) -> Result<SocketAddress, OptionError> {
    // A socket without either is more often one that lacks its path.
    if !o.contains("host") && !o.contains("port") {
        return Err(o.missing("path"));
    }
    let host = o.take_str("host")?.unwrap_or_default();
    let port = o.take_u64("port", 0..=u64::from(u16::MAX))?.ok_or_else(|| o.missing("port"))?;
    Ok(SocketAddress::Tcp { host, port: u16::try_from(port).unwrap_or(u16::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chardev(text: &str) -> Result<ChardevOptions, String> {
        let options = Options::parse("-chardev", text, Some("backend")).map_err(|e| e.to_string())?;
        ChardevOptions::from_options(options).map_err(|e| e.to_string())
    }

    #[test]
    fn backends_read_as_qemu_users_write_them() {
        let stdio = chardev("stdio,id=c0,mux=on,signal=off").unwrap();
        assert_eq!(
            stdio,
            ChardevOptions { id: "c0".into(), mux: true, backend: BackendOptions::Stdio { signal: false } }
        );
        let socket = |text| match chardev(text).unwrap().backend {
            BackendOptions::Socket(socket) => socket,
            other => panic!("{other:?}"),
        };
        let s = socket("socket,id=c0,path=/tmp/s,server,nowait");
        assert_eq!((s.address, s.server, s.wait), (SocketAddress::Unix("/tmp/s".into()), true, false));
        assert!(socket("socket,id=c0,path=/tmp/s,server=on").wait);
        let s = socket("socket,id=c0,host=localhost,port=4444,reconnect-ms=500,nodelay=on");
        assert_eq!((s.address.to_string().as_str(), s.reconnect_ms, s.nodelay), ("localhost:4444", 500, true));
        assert!(socket("socket,id=c0,port=1,nodelay").nodelay);
    }

    #[test]
    fn errors_name_the_option_the_value_and_what_is_allowed() {
        let cases = [
            ("stdoi,id=c", "-chardev: Parameter 'backend' does not accept value 'stdoi', did you mean 'stdio'?"),
            ("stdio", "-chardev: Parameter 'id' is missing"),
            ("file,id=c", "-chardev: Parameter 'path' is missing"),
            ("socket,id=c", "-chardev: Parameter 'path' is missing"),
            ("socket,id=c,host=h", "-chardev: Parameter 'port' is missing"),
            ("socket,id=c,port=70000", "-chardev: Parameter 'port' expects a number from 0 to 65535, not '70000'"),
            ("null,id=c,sginal=on", "-chardev: Invalid parameter 'sginal'; allowed: backend, id, mux"),
            (
                "ringbuf,id=c,size=1000",
                "-chardev: Parameter 'size' does not accept value '1000': size of ringbuf chardev must be power of two, \
                 at most 1G",
            ),
            (
                "socket,id=c,path=p,wait=on",
                "-chardev: Parameter 'wait' does not accept value 'on': 'wait' option is incompatible with socket in \
                 client connect mode",
            ),
        ];
        for (text, error) in cases {
            assert_eq!(chardev(text), Err(error.to_owned()), "{text}");
        }
    }
}
