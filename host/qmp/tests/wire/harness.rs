//! A server with a few commands, and a client of the real socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cardcage_qmp::{Call, CommandError, Commands, ListenOptions, Server, VersionInfo, qmp_types};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A test that hangs ends after this; nothing is measured with it.
pub(crate) const HANG: Duration = Duration::from_secs(60);

qmp_types! {
    /// Which way.
    pub(crate) enum Direction {
        /// Left.
        Left = "left",
        /// Right.
        Right = "right",
    }

    /// Where to go.
    pub(crate) struct Address {
        /// Host name.
        host: String,
        /// Port.
        port: u16,
        /// Further ones.
        next: Option<Vec<Address>>,
    }

    /// Arguments of `test-all`.
    pub(crate) struct TestAll {
        /// A string.
        name: String,
        /// A boolean.
        up: bool,
        /// Any integer.
        count: Option<i64>,
        /// A size.
        byte_size: Option<u64> = "byte-size",
        /// A number.
        ratio: Option<f64>,
        /// A choice.
        direction: Option<Direction> = "type",
        /// An object.
        address: Option<Address>,
        /// Strings.
        names: Option<Vec<String>>,
        /// Anything.
        any: Option<Value>,
    }

    /// Arguments of `device_add`.
    pub(crate) struct DeviceAdd {
        /// What.
        driver: String,
        ..rest
    }

    /// Arguments of `emit`.
    pub(crate) struct Emit {
        /// Name of the event.
        event: String,
        /// How many.
        times: u32,
        /// Bytes of data in each.
        size: u32,
    }
}

pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
    /// Lets one `wait` command go on.
    pub(crate) go: mpsc::Sender<()>,
    /// Commands that were carried out, in order.
    pub(crate) done: Arc<Mutex<Vec<String>>>,
}

pub(crate) fn commands(go: mpsc::Receiver<()>, done: Arc<Mutex<Vec<String>>>) -> Commands {
    let mut commands = Commands::new();
    let go = Mutex::new(go);
    commands.blocking("test-all", |all: TestAll, _: &Call| Ok(all)).allow_preconfig();
    commands.blocking("device_add", |add: DeviceAdd, _: &Call| Ok(Value::Object(add.rest)));
    commands.blocking("wait", move |(), call: &Call| {
        go.lock().unwrap().recv().unwrap();
        done.lock().unwrap().push("wait".into());
        call.events().emit("WAITED", None);
        Ok(())
    });
    commands.asynchronous("quick", async |(), _| Ok(())).allow_oob();
    commands.blocking("quick-blocking", |(), _: &Call| Ok(())).allow_oob();
    commands.blocking("stop", |(), call: &Call| {
        call.events().emit("STOP", None);
        Ok(())
    });
    commands.blocking("emit", |emit: Emit, call: &Call| {
        for n in 0..emit.times {
            call.events().emit(&emit.event, json!({"n": n, "pad": "x".repeat(emit.size as usize)}));
        }
        Ok(())
    });
    commands.blocking("panic", |(), _: &Call| -> Result<(), CommandError> { panic!("on purpose") });
    commands.asynchronous("panic-async", async |(), _| -> Result<(), CommandError> { panic!("on purpose") });
    commands.blocking("device_del", |(), _: &Call| -> Result<(), _> { Err(CommandError::device_not_found("nope")) });
    commands.blocking("quit", |(), call: &Call| {
        call.events().emit("SHUTDOWN", json!({"guest": false, "reason": "host-qmp-quit"}));
        call.server().shutdown();
        Ok(())
    });
    commands.event::<Emit>("SHUTDOWN");
    commands
}

pub(crate) fn start() -> Fixture {
    let (go, wait) = mpsc::channel();
    let done = Arc::new(Mutex::new(Vec::new()));
    let version = VersionInfo::new(10, 0, 2, "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1");
    let server = Server::start(version, commands(wait, done.clone())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    server.listen_unix(&path, ListenOptions::default()).unwrap();
    Fixture { server, dir, path, go, done }
}

impl Fixture {
    /// A client that has read the greeting.
    pub(crate) fn connect(&self) -> Client {
        let mut client = Client::new(UnixStream::connect(&self.path).unwrap());
        client.line();
        client
    }

    /// A client in command mode.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.connect();
        client.ask(r#"{"execute":"qmp_capabilities"}"#, r#"{"return": {}}"#);
        client
    }

    /// A client in command mode with out-of-band execution.
    pub(crate) fn oob_client(&self) -> Client {
        let mut client = self.connect();
        client.ask(r#"{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}"#, r#"{"return": {}}"#);
        client
    }
}

pub(crate) struct Client {
    pub(crate) stream: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, input: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(input.as_ref()).unwrap();
    }

    /// The next line, without its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.strip_suffix("\r\n").unwrap_or_else(|| panic!("no line but {line:?}")).to_owned()
    }

    pub(crate) fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, request: impl AsRef<[u8]>, reply: &str) {
        self.send(request.as_ref());
        assert_eq!(self.line(), reply, "{}", request.as_ref().escape_ascii());
    }

    /// Asks and expects an error without id, of class GenericError.
    #[track_caller]
    pub(crate) fn ask_error(&mut self, request: impl AsRef<[u8]>, desc: &str) {
        self.send(request.as_ref());
        let reply = self.json();
        assert_eq!(reply["error"], json!({"class": "GenericError", "desc": desc}));
    }

    /// Everything up to the end of the connection.
    pub(crate) fn rest(mut self) -> String {
        let mut rest = String::new();
        self.stream.read_to_string(&mut rest).unwrap();
        rest
    }
}
