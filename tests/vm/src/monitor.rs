//! A QMP session, over whatever carries bytes.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::PATIENCE;

/// A QMP client that sees every line.
pub struct Monitor {
    reader: Box<dyn BufRead + Send>,
    writer: Box<dyn Write + Send>,
    /// What the server said first.
    pub greeting: Value,
    events: VecDeque<Value>,
}

impl Monitor {
    /// Reads the greeting and does not negotiate.
    #[track_caller]
    pub fn raw(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Self {
        let (reader, writer) = (Box::new(BufReader::new(reader)), Box::new(writer));
        let mut monitor = Self { reader, writer, greeting: Value::Null, events: VecDeque::new() };
        monitor.greeting = monitor.receive();
        assert!(monitor.greeting.get("QMP").is_some(), "no greeting but {}", monitor.greeting);
        monitor
    }

    /// Negotiates.
    #[track_caller]
    pub fn negotiate(mut self) -> Self {
        assert_eq!(self.ask("qmp_capabilities"), json!({}));
        self
    }

    /// Connects to a socket that is there or comes soon, and negotiates.
    #[track_caller]
    pub fn connect(path: &Path) -> Self {
        Self::unix(connect(path)).negotiate()
    }

    /// A session on a connected socket, not negotiated.
    #[track_caller]
    pub fn unix(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("sockets have time-outs");
        Self::raw(stream.try_clone().expect("a second descriptor"), stream)
    }

    /// A session on a connected socket, not negotiated.
    #[track_caller]
    pub fn tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("sockets have time-outs");
        Self::raw(stream.try_clone().expect("a second descriptor"), stream)
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.writer.write_all(bytes).and_then(|()| self.writer.flush()).expect("the server takes input");
    }

    /// The next line, whatever it is.
    #[track_caller]
    pub fn receive(&mut self) -> Value {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).unwrap_or_else(|e| panic!("no answer: {e}"));
        assert!(read > 0, "the server has closed the connection");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line:?}"))
    }

    /// The next reply; events before it are kept.
    #[track_caller]
    pub fn reply(&mut self) -> Value {
        loop {
            let value = self.receive();
            if value.get("event").is_none() {
                return value;
            }
            self.events.push_back(value);
        }
    }

    /// Runs a command without arguments and gives what it returns.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> Value {
        self.execute(command, json!({}))
    }

    /// Runs a command and gives what it returns.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.try_execute(command, arguments).unwrap_or_else(|error| panic!("{command} fails: {error}"))
    }

    /// Runs a command that fails, and gives its error class and text.
    #[track_caller]
    pub fn refused(&mut self, command: &str, arguments: Value) -> (String, String) {
        let error = self.try_execute(command, arguments).expect_err("the command must fail");
        (error["class"].as_str().expect("a class").into(), error["desc"].as_str().expect("a text").into())
    }

    #[track_caller]
    fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        self.send(json!({"execute": command, "arguments": arguments}).to_string().as_bytes());
        let mut reply = self.reply();
        match reply.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(reply["return"].take()),
        }
    }

    /// Takes the events that came before replies.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events).into()
    }

    /// Names of the events that came before replies.
    pub fn take_event_names(&mut self) -> Vec<String> {
        self.take_events().iter().map(|e| e["event"].as_str().unwrap_or_default().into()).collect()
    }

    /// Waits for an event; those before it are dropped.
    #[track_caller]
    pub fn wait_event(&mut self, name: &str) -> Value {
        loop {
            let value = self.events.pop_front().unwrap_or_else(|| self.receive());
            if value["event"] == name {
                return value;
            }
            assert!(value.get("event").is_some(), "while waiting for {name} comes {value}");
        }
    }

    /// Waits until the server closes the connection; the lines before that.
    #[track_caller]
    pub fn rest(mut self) -> Vec<Value> {
        let mut lines: Vec<Value> = self.take_events();
        loop {
            let mut line = String::new();
            match self.reader.read_line(&mut line) {
                Ok(1..) => lines.push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line:?}"))),
                _ => return lines,
            }
        }
    }
}

/// Connects to a socket that is there or comes soon.
#[track_caller]
pub(crate) fn connect(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(e) if start.elapsed() > PATIENCE => panic!("cannot connect to {}: {e}", path.display()),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
}
