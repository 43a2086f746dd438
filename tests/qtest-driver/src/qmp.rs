//! A small QMP client: one command at a time, events kept in order.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::PATIENCE;

/// A connection in command mode.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    greeting: Value,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Takes over a connection: reads the greeting and negotiates.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("sockets have time-outs");
        let mut qmp = Self { stream: BufReader::new(stream), greeting: Value::Null, events: VecDeque::new() };
        qmp.greeting = qmp.receive("the greeting");
        assert!(qmp.greeting.get("QMP").is_some(), "no greeting but {}", qmp.greeting);
        qmp.execute(json!({"execute": "qmp_capabilities"}));
        qmp
    }

    /// What the server said first.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Sends a command and gives what it returns.
    #[track_caller]
    pub fn execute(&mut self, command: Value) -> Value {
        match self.try_execute(command.clone()) {
            Ok(value) => value,
            Err(error) => panic!("{command} fails: {error}"),
        }
    }

    /// Sends a command and gives what it returns, or its error (`class` and `desc`).
    #[track_caller]
    pub fn try_execute(&mut self, command: Value) -> Result<Value, Value> {
        let sent = self.stream.get_mut().write_all(command.to_string().as_bytes());
        sent.unwrap_or_else(|e| panic!("cannot send {command}: {e}"));
        loop {
            let mut reply = self.receive("a reply");
            if reply.get("event").is_some() {
                self.events.push_back(reply);
            } else if reply.get("error").is_some() {
                return Err(reply["error"].take());
            } else {
                assert!(reply.get("return").is_some(), "{command} is answered with {reply}");
                return Ok(reply["return"].take());
            }
        }
    }

    /// Takes the first event called `name` from those that have come, or waits for it. Others stay in order.
    #[track_caller]
    pub fn wait_event(&mut self, name: &str) -> Value {
        let mut at = 0;
        loop {
            while at >= self.events.len() {
                let event = self.receive(name);
                assert!(event.get("event").is_some(), "while waiting for {name} comes {event}");
                self.events.push_back(event);
            }
            if self.events[at]["event"] == name {
                return self.events.remove(at).expect("it was just looked at");
            }
            at += 1;
        }
    }

    /// Takes the events that came with the replies so far.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events).into()
    }

    #[track_caller]
    fn receive(&mut self, what: &str) -> Value {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.unwrap_or_else(|e| panic!("QMP: waiting for {what}: {e}"));
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("QMP: waiting for {what}: {e} in {line:?}"))
    }
}
