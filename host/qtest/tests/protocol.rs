//! The protocol over a real socket, against a target made of RAM, a few ports and a timer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use cardcage_qtest::{Error, IrqLines, Qtest, QtestAddress, QtestTarget};
use proptest::prelude::*;

const HANG: Duration = Duration::from_secs(60);
const TICK: u64 = 1000;

/// 64 KiB of RAM at 0; a log of accesses above it; a timer that raises line 8 every [`TICK`] ns while port 0x70 holds 1.
#[derive(Default)]
struct Toy {
    ram: Vec<u8>,
    accesses: Vec<String>,
    now: u64,
    timer: bool,
    lines: Option<IrqLines>,
}

impl Toy {
    fn new() -> Self {
        Self { ram: vec![0; 0x10000], ..Self::default() }
    }

    fn ram(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(addr).ok()?;
        self.ram.get_mut(start..start.checked_add(len)?)
    }
}

impl QtestTarget for Toy {
    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        match port {
            0x70 => u32::from(self.timer),
            0x80 => u32::try_from(self.accesses.len()).unwrap(),
            _ => u32::MAX >> (32 - 8 * u32::from(size)),
        }
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        match port {
            0x70 => self.timer = value == 1,
            0x71 => self.lines.iter().for_each(|lines| lines.set(8, value != 0)),
            0x72 => panic!("on purpose"),
            _ => self.accesses.push(format!("out{size} {port:#x} {value:#x}")),
        }
    }
    fn read_memory(&mut self, addr: u64, data: &mut [u8]) {
        match self.ram(addr, data.len()) {
            Some(ram) => data.copy_from_slice(ram),
            None => {
                self.accesses.push(format!("read{} {addr:#x}", data.len()));
                data.fill(0xff);
            }
        }
    }
    fn write_memory(&mut self, addr: u64, data: &[u8]) {
        match self.ram(addr, data.len()) {
            Some(ram) => ram.copy_from_slice(data),
            None => self.accesses.push(format!("write{} {addr:#x}", data.len())),
        }
    }
    fn clock(&mut self) -> u64 {
        self.now
    }
    fn clock_step(&mut self, ns: u64) -> Result<u64, String> {
        let now = self.now.saturating_add(ns);
        let ticks = now / TICK - self.now / TICK;
        for _ in 0..if self.timer { ticks.min(9) } else { 0 } {
            let lines = self.lines.as_ref().ok_or("nobody listens")?;
            lines.set(8, true);
            lines.set(8, false);
        }
        self.now = now;
        Ok(self.now)
    }
    fn clock_step_to_next(&mut self) -> Result<Option<u64>, String> {
        let next = TICK - self.now % TICK;
        if self.timer { self.clock_step(next).map(Some) } else { Ok(None) }
    }
    fn clock_set(&mut self, ns: u64) -> Result<u64, String> {
        self.now = ns.min(1 << 40);
        Ok(self.now)
    }
    fn irq_intercept_in(&mut self, path: &str, lines: IrqLines) -> Result<(), String> {
        if path != "ioapic" {
            return Err(format!("there is no device '{path}'"));
        }
        self.lines = Some(lines);
        Ok(())
    }
    fn irq_intercept_out(&mut self, path: &str, name: Option<&str>, _: IrqLines) -> Result<(), String> {
        Err(format!("there is no output {name:?} of '{path}'"))
    }
    fn set_irq_in(&mut self, path: &str, name: Option<&str>, number: u32, level: i32) -> Result<(), String> {
        self.accesses.push(format!("irq {path} {name:?} {number} {level}"));
        Ok(())
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(HANG)).unwrap();
        Self(BufReader::new(stream))
    }
    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(text.as_ref()).unwrap();
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.strip_suffix('\n').unwrap_or_else(|| panic!("no line but {line:?}")).to_owned()
    }
    #[track_caller]
    fn ask(&mut self, request: &str, reply: &str) {
        self.send(format!("{request}\n"));
        assert_eq!(self.line(), reply, "{request}");
    }
}

/// A server that has connected to a listening test, as with `-qtest unix:PATH`.
fn start() -> (Client, Qtest) {
    start_logging(None)
}

fn start_logging(log: Option<&Path>) -> (Client, Qtest) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qtest.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let address: QtestAddress = format!("unix:{}", path.display()).parse().unwrap();
    let qtest = Qtest::start(&address, log, Toy::new()).unwrap();
    (Client::new(listener.accept().unwrap().0), qtest)
}

#[test]
fn ports_and_memory_are_reached() {
    let (mut client, _qtest) = start();
    for (request, reply) in [
        ("endianness", "OK little"),
        ("inb 0x0", "OK 0x00ff"),
        ("inw 0x0", "OK 0xffff"),
        ("inl 65535", "OK 0xffffffff"),
        ("outb 0x10 0x1ff", "OK"),
        ("outw 0x10 0x12345", "OK"),
        ("outl 0x10 -1", "OK"),
        ("inb 0x80", "OK 0x0003"),
        ("writeb 0x100 0x11", "OK"),
        ("writew 0x102 0x2233", "OK"),
        ("writel 0x104 0x44556677", "OK"),
        ("writeq 0x108 0x8899aabbccddeeff", "OK"),
        ("read 0x100 0x10", "OK 0x1100332277665544ffeeddccbbaa9988"),
        ("readb 0x100", "OK 0x0000000000000011"),
        ("readw 0x102", "OK 0x0000000000002233"),
        ("readl 0x104", "OK 0x0000000044556677"),
        ("readq 0x108", "OK 0x8899aabbccddeeff"),
        ("write 0x200 4 0xAbcd", "OK"),
        ("readl 0x200", "OK 0x000000000000cdab"),
        ("write 0x200 2 0x0102030405", "OK"),
        ("readl 0x200", "OK 0x0000000000000201"),
        ("b64read 0x100 5", "OK EQAzInc="),
        ("b64write 0x300 5 EQAzInc=", "OK"),
        ("b64read 0x300 4", "OK EQAzIg=="),
        ("b64write 0x300 2 //////8=", "OK"),
        ("readl 0x300", "OK 0x000000002233ffff"),
        ("memset 0x400 0x3 0x5a", "OK"),
        ("memset 0x400 0 0", "OK"),
        ("readl 0x400", "OK 0x00000000005a5a5a"),
        ("memset 0 0x10000 1", "OK"),
        ("readb 0xffff", "OK 0x0000000000000001"),
    ] {
        client.ask(request, reply);
    }
}

#[test]
fn mistakes_fail_and_the_conversation_goes_on() {
    let (mut client, _qtest) = start();
    for (request, reply) in [
        ("frobnicate 1", "FAIL Unknown command 'frobnicate'"),
        ("", "FAIL Unknown command ''"),
        ("inb", "FAIL inb: ADDR is missing"),
        ("inb 0x10000", "FAIL inb: port 0x10000 is beyond 0xffff"),
        ("outb 1", "FAIL outb: VALUE is missing"),
        ("outb 1 x", "FAIL outb: VALUE must be a number of 64 bits, not 'x'"),
        ("outb  1 1", "FAIL outb: ADDR is missing"),
        ("read 0 0", "FAIL SIZE must not be 0"),
        ("read 0 0xffffffffffffffff", "FAIL read: SIZE 0xffffffffffffffff is beyond 0x10000000"),
        ("write 0 1 0x", "ERR invalid argument size"),
        ("write 0 1 123", "FAIL DATA must begin with 0x"),
        ("write 0 1 0xzz", "FAIL DATA must be hexadecimal digits"),
        ("b64write 0 1 ?", "FAIL DATA must be base64: Invalid symbol 63, offset 0."),
        ("clock_step", { "FAIL cannot advance clock to the next deadline because there is no pending deadline" }),
        ("irq_intercept_in nope", "FAIL there is no device 'nope'"),
        ("irq_intercept_out ioapic x", "FAIL there is no output Some(\"x\") of 'ioapic'"),
        ("module_load a b", "FAIL there is no module ab: this program has no modules"),
        ("endianness", "OK little"),
    ] {
        client.ask(request, reply);
    }
}

#[test]
fn the_clock_moves_only_when_told() {
    let (mut client, _qtest) = start();
    client.ask("clock_step 100", "OK 100");
    client.ask("clock_step 0", "FAIL 100");
    client.ask("clock_set 2000", "OK 2000");
    client.ask("clock_set 0x20000000000", "FAIL 1099511627776");
}

#[test]
fn interrupts_come_before_the_reply_of_what_caused_them() {
    let (mut client, _qtest) = start();
    client.ask("irq_intercept_in ioapic", "OK");
    client.ask("irq_intercept_in ioapic", "OK");
    client.ask("irq_intercept_in pic", "FAIL IRQ intercept already enabled");
    client.ask("outb 0x71 1", "IRQ raise 8");
    assert_eq!(client.line(), "OK");
    client.ask("outb 0x71 1", "OK");
    client.ask("outb 0x71 0", "IRQ lower 8");
    assert_eq!(client.line(), "OK");
    client.ask("outb 0x70 1", "OK");
    client.send("clock_step 2500\n");
    let lines: Vec<_> = (0..5).map(|_| client.line()).collect();
    assert_eq!(lines, ["IRQ raise 8", "IRQ lower 8", "IRQ raise 8", "IRQ lower 8", "OK 2500"]);
    client.send("clock_step\n");
    let lines: Vec<_> = (0..3).map(|_| client.line()).collect();
    assert_eq!(lines, ["IRQ raise 8", "IRQ lower 8", "OK 3000"]);
    client.ask("set_irq_in ioapic unnamed-gpio-in 3 -1", "OK");
}

#[test]
fn requests_may_come_in_pieces_together_and_long() {
    let (mut client, _qtest) = start();
    for piece in ["b64wri", "te 0x300 0x", "5 ", "EQAzInc=", "\n"] {
        client.send(piece);
    }
    assert_eq!(client.line(), "OK");
    client.send("inb 0\ninb 1\nread 0x300 5\n");
    assert_eq!([client.line(), client.line(), client.line()], ["OK 0x00ff", "OK 0x00ff", "OK 0x1100332277"]);
    client.ask(&format!("write 0 0x10000 0x{}", "5a".repeat(0x10000)), "OK");
    client.ask("read 0 0x10000", &format!("OK 0x{}", "5a".repeat(0x10000)));
}

#[test]
fn the_log_holds_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (mut client, qtest) = start_logging(Some(&path));
    client.ask("endianness", "OK little");
    drop(client);
    qtest.wait();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = text.lines().map(|line| (&line[..3], line.split_once("] ").unwrap().1)).collect();
    assert_eq!(lines, [("[I ", "OPENED"), ("[R ", "endianness"), ("[S ", "OK little"), ("[I ", "CLOSED")]);
}

#[test]
fn a_server_takes_one_client_after_another_and_removes_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("listen.sock");
    let address = QtestAddress { path: path.clone(), server: true, wait: false };
    let qtest = Qtest::start(&address, None, Toy::new()).unwrap();
    assert!(matches!(Qtest::start(&address, None, Toy::new()), Err(Error::Listen { .. })));
    for value in ["0x0000000000000000", "0x0000000000000007"] {
        let mut client = Client::new(UnixStream::connect(&path).unwrap());
        client.ask("readb 0", &format!("OK {value}"));
        client.ask("writeb 0 7", "OK");
    }
    let _idle = UnixStream::connect(&path).unwrap();
    drop(qtest);
    assert!(!path.exists());
}

#[test]
fn a_target_that_panics_ends_the_connection() {
    let (mut client, _qtest) = start();
    client.send("outb 0x72 0\n");
    let mut line = String::new();
    assert_eq!(client.0.read_line(&mut line).unwrap(), 0, "{line}");
}

#[test]
fn an_absent_test_or_log_is_named() {
    let address = QtestAddress { path: "/nonexistent/q.sock".into(), server: false, wait: true };
    let text = |log| Qtest::start(&address, log, Toy::new()).err().unwrap().to_string();
    assert!(text(None).contains("'/nonexistent/q.sock'"));
    assert!(text(Some(Path::new("none"))).contains("'/nonexistent/q.sock'"));
    assert!(text(Some(Path::new("/nonexistent/log"))).contains("log '/nonexistent/log'"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_line_gets_one_reply(lines in prop::collection::vec("(inb|outl|read|write|b64write|memset|clock_step|set_irq_in|irq_intercept_out|\\PC{0,5})( (0x[0-9a-f]{0,5}|-?[0-9]{0,20}|\\PC{0,8})){0,4}", 1..20)) {
        let (mut client, _qtest) = start();
        for line in lines {
            client.send(format!("{line}\n"));
            let reply = client.line();
            prop_assert!(["OK", "FAIL", "ERR"].contains(&reply.split(' ').next().unwrap()), "{line}: {reply}");
        }
    }
}
