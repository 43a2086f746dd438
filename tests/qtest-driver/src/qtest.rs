//! The client side of the qtest protocol.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};

use crate::PATIENCE;

struct State {
    stream: BufReader<UnixStream>,
    levels: BTreeMap<u32, bool>,
    changes: Vec<(u32, bool)>,
}

/// A connection to a machine under qtest. Each method is one request and waits for its reply.
pub struct Qtest {
    state: Mutex<State>,
}

impl Qtest {
    /// Takes over a connection. The first request is `endianness`, as in libqtest.
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("sockets have time-outs");
        stream.set_write_timeout(Some(PATIENCE)).expect("sockets have time-outs");
        let state = State { stream: BufReader::new(stream), levels: BTreeMap::new(), changes: Vec::new() };
        let qtest = Self { state: Mutex::new(state) };
        assert_eq!(qtest.ask("endianness"), "little", "the machine's byte order");
        qtest
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends a request line and gives what follows OK, or the whole reply if it is another.
    #[track_caller]
    pub fn request(&self, line: &str) -> Result<String, String> {
        let mut state = self.state();
        let sent = state.stream.get_mut().write_all(format!("{line}\n").as_bytes());
        sent.unwrap_or_else(|e| panic!("cannot send '{}' to the machine: {e}", head(line)));
        loop {
            let reply = state.line(line);
            let mut words = reply.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("IRQ"), Some(what @ ("raise" | "lower")), Some(number)) => {
                    let number = number.parse().unwrap_or_else(|_| panic!("a bad interrupt line '{reply}'"));
                    state.levels.insert(number, what == "raise");
                    state.changes.push((number, what == "raise"));
                }
                (Some("OK"), ..) => return Ok(reply.get(3..).unwrap_or_default().to_owned()),
                _ => return Err(reply),
            }
        }
    }

    #[track_caller]
    fn ask(&self, line: &str) -> String {
        self.request(line).unwrap_or_else(|reply| panic!("'{}' is answered with '{reply}'", head(line)))
    }

    #[track_caller]
    fn number(&self, line: &str) -> u64 {
        let reply = self.ask(line);
        let number = match reply.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => reply.parse(),
        };
        number.unwrap_or_else(|_| panic!("'{line}' is answered with '{reply}', which is no number"))
    }

    /// Reads `size` bytes at guest-physical `addr`, as accesses of any size.
    #[track_caller]
    pub fn read(&self, addr: u64, size: usize) -> Vec<u8> {
        if size == 0 {
            return Vec::new();
        }
        let reply = self.ask(&format!("read {addr:#x} {size:#x}"));
        let digits = reply.strip_prefix("0x").unwrap_or_else(|| panic!("a read is answered with '{}'", head(&reply)));
        let bytes = digits.as_bytes().chunks(2).map(|pair| {
            let pair = str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
            pair.unwrap_or_else(|| panic!("a read is answered with '{}'", head(&reply)))
        });
        let data: Vec<u8> = bytes.collect();
        assert_eq!(data.len(), size, "bytes that a read at {addr:#x} gives");
        data
    }

    /// Writes bytes at guest-physical `addr`, as accesses of any size.
    #[track_caller]
    pub fn write(&self, addr: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let digits: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(&format!("write {addr:#x} {:#x} 0x{digits}", data.len()));
    }

    /// Fills memory.
    #[track_caller]
    pub fn memset(&self, addr: u64, size: usize, value: u8) {
        self.ask(&format!("memset {addr:#x} {size:#x} {value:#x}"));
    }

    /// Moves the virtual clock to its next deadline and gives the time in nanoseconds.
    #[track_caller]
    pub fn clock_step_to_next(&self) -> u64 {
        self.number("clock_step")
    }

    /// Moves the virtual clock on by `ns` and gives the time.
    #[track_caller]
    pub fn clock_step(&self, ns: u64) -> u64 {
        self.number(&format!("clock_step {ns}"))
    }

    /// Sets the virtual clock and gives the time.
    #[track_caller]
    pub fn clock_set(&self, ns: u64) -> u64 {
        self.number(&format!("clock_set {ns}"))
    }

    /// Asks for the input lines of a device; they are then seen by [`irq_level`](Self::irq_level).
    #[track_caller]
    pub fn irq_intercept_in(&self, path: &str) {
        self.ask(&format!("irq_intercept_in {path}"));
    }

    /// Asks for the output lines of a device.
    #[track_caller]
    pub fn irq_intercept_out(&self, path: &str, name: Option<&str>) {
        self.ask(format!("irq_intercept_out {path} {}", name.unwrap_or("")).trim_end());
    }

    /// Sets an input line of a device.
    #[track_caller]
    pub fn set_irq_in(&self, path: &str, name: Option<&str>, number: u32, level: i32) {
        self.ask(&format!("set_irq_in {path} {} {number} {level}", name.unwrap_or("unnamed-gpio-in")));
    }

    /// The present level of an intercepted line.
    #[track_caller]
    pub fn irq_level(&self, number: u32) -> bool {
        self.inb(0);
        self.state().levels.get(&number).copied().unwrap_or(false)
    }

    /// Takes the changes of intercepted lines since the last call, in order.
    #[track_caller]
    pub fn take_irq_changes(&self) -> Vec<(u32, bool)> {
        self.inb(0);
        std::mem::take(&mut self.state().changes)
    }
}

macro_rules! accesses {
    ($($(#[doc = $doc:literal])* $name:ident ($addr:ty) -> $ty:ident;)*) => { impl Qtest { $(
        $(#[doc = $doc])*
        #[track_caller]
        pub fn $name(&self, addr: $addr) -> $ty {
            let value = self.number(&format!("{} {addr:#x}", stringify!($name)));
            value.try_into().unwrap_or_else(|_| panic!("{} {addr:#x} gives {value:#x}", stringify!($name)))
        }
    )* } };
    ($($(#[doc = $doc:literal])* $name:ident ($addr:ty, $ty:ident);)*) => { impl Qtest { $(
        $(#[doc = $doc])*
        #[track_caller]
        pub fn $name(&self, addr: $addr, value: $ty) {
            self.ask(&format!("{} {addr:#x} {value:#x}", stringify!($name)));
        }
    )* } };
}

accesses! {
    /// Reads an 8-bit port.
    inb(u16) -> u8;
    /// Reads a 16-bit port.
    inw(u16) -> u16;
    /// Reads a 32-bit port.
    inl(u16) -> u32;
    /// Reads one byte, as one access.
    readb(u64) -> u8;
    /// Reads two bytes, as one access.
    readw(u64) -> u16;
    /// Reads four bytes, as one access.
    readl(u64) -> u32;
    /// Reads eight bytes, as one access.
    readq(u64) -> u64;
}

accesses! {
    /// Writes an 8-bit port.
    outb(u16, u8);
    /// Writes a 16-bit port.
    outw(u16, u16);
    /// Writes a 32-bit port.
    outl(u16, u32);
    /// Writes one byte, as one access.
    writeb(u64, u8);
    /// Writes two bytes, as one access.
    writew(u64, u16);
    /// Writes four bytes, as one access.
    writel(u64, u32);
    /// Writes eight bytes, as one access.
    writeq(u64, u64);
}

impl State {
    #[track_caller]
    fn line(&mut self, request: &str) -> String {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        read.unwrap_or_else(|e| panic!("no reply to '{}': {e}", head(request)));
        match line.strip_suffix('\n') {
            Some(line) => line.to_owned(),
            None => panic!("the machine has closed the connection instead of answering '{}'", head(request)),
        }
    }
}

/// The start of a line that may be long.
fn head(line: &str) -> String {
    line.chars().take(80).collect()
}
