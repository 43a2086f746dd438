//! A frontend that tells a test what it hears.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cardcage_chardev::{CharError, CharHandle, Chardev, ChardevOptions, Chardevs, Event, Frontend};
use cardcage_options::Options;

/// After this, what a test waits for does not come.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Bytes(Vec<u8>),
    Event(Event),
}

/// A frontend with settable room.
pub(crate) struct Ear {
    pub(crate) room: Mutex<usize>,
    heard: Sender<Heard>,
}

impl Frontend for Ear {
    fn room(&self) -> usize {
        *self.room.lock().unwrap()
    }
    fn receive(&self, bytes: &[u8]) {
        let mut room = self.room.lock().unwrap();
        assert!(bytes.len() <= *room, "more than there is room for");
        *room -= bytes.len();
        let _ = self.heard.send(Heard::Bytes(bytes.to_vec()));
    }
    fn event(&self, event: Event) {
        let _ = self.heard.send(Heard::Event(event));
    }
}

pub(crate) fn ear(chardev: &Arc<Chardev>, room: usize) -> (CharHandle, Arc<Ear>, Receiver<Heard>) {
    let (heard, rx) = mpsc::channel();
    let ear = Arc::new(Ear { room: Mutex::new(room), heard });
    (chardev.attach(ear.clone()).unwrap(), ear, rx)
}

/// The next `len` bytes of input, however they are cut, and whatever events come between.
pub(crate) fn bytes(heard: &Receiver<Heard>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        match heard.recv_timeout(LIMIT).expect("input comes") {
            Heard::Bytes(more) => all.extend(more),
            Heard::Event(_) => (),
        }
    }
    all
}

pub(crate) fn event(heard: &Receiver<Heard>, wanted: Event) {
    while heard.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("no {wanted:?}")) != Heard::Event(wanted) {}
}

pub(crate) fn add(chardevs: &Chardevs, text: &str) -> Result<Arc<Chardev>, CharError> {
    chardevs.add(&ChardevOptions::from_options(Options::parse("-chardev", text, Some("backend")).unwrap()).unwrap())
}

/// A chardev on one end of a socket pair, and the other end.
pub(crate) fn pair(chardevs: &Chardevs, mux: bool) -> (Arc<Chardev>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(LIMIT)).unwrap();
    (chardevs.add_fd("c0", mux, ours.into()).unwrap(), theirs)
}

pub(crate) fn read(mut stream: &UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
