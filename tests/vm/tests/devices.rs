//! The small devices on the buses of a `pc`, through qtest: what their plugins and the host make of each other.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use cardcage_qtest_driver::virtio::{NO_VECTOR, VERSION_1, VirtioDevice};
use cardcage_qtest_driver::{GuestAllocator, Machine, Pci};
use cardcage_tests::{PATIENCE, program_with};
use serde_json::json;

const COM1: u16 = 0x3f8;
const SECOND: u64 = 1_000_000_000;

fn start(plugins: &[&str], args: &[&str]) -> Option<Machine> {
    let program = program_with(plugins)?;
    Some(Machine::start(program, ["-machine", "pc", "-nodefaults"].iter().chain(args).copied()))
}

/// Waits for what happens in real time: backends do.
#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A machine with a serial port whose other side is here.
fn serial(id: &str) -> Option<(Machine, UnixStream)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(id);
    let listener = UnixListener::bind(&path).unwrap();
    let chardev = format!("socket,path={},id={id}", path.display());
    let device = format!("isa-serial,chardev={id}");
    let machine = start(&["isa-serial"], &["-chardev", &chardev, "-device", &device])?;
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some((machine, stream))
}

#[test]
fn a_serial_port_sends_and_receives() {
    let Some((machine, mut other)) = serial("s") else { return };
    assert_eq!(machine.inb(COM1 + 5) & 0x60, 0x60, "the transmitter is empty");
    machine.outb(COM1 + 2, 0xc7);
    assert_eq!(machine.inb(COM1 + 2) & 0xc0, 0xc0, "FIFOs are on");
    let sent: Vec<u8> = (0..=255).collect();
    for byte in &sent {
        wait_until("room in the transmitter", || machine.inb(COM1 + 5) & 0x20 != 0);
        machine.outb(COM1, *byte);
    }
    let mut received = vec![0; sent.len()];
    other.read_exact(&mut received).unwrap();
    assert_eq!(received, sent);

    other.write_all(&sent).unwrap();
    let mut received = Vec::new();
    while received.len() < sent.len() {
        wait_until("a byte", || machine.inb(COM1 + 5) & 1 != 0);
        received.push(machine.inb(COM1));
    }
    assert_eq!(received, sent);
    assert_eq!(machine.inb(COM1 + 5) & 0x0e, 0, "no overrun, no error");
    machine.shutdown();
}

#[test]
fn a_serial_port_interrupts() {
    let Some((machine, mut other)) = serial("s") else { return };
    machine.irq_intercept_in("ioapic");
    machine.outb(COM1 + 4, 0x08);
    machine.outb(COM1 + 1, 0x02);
    assert!(machine.irq_level(4), "the transmitter is empty");
    assert_eq!(machine.inb(COM1 + 2) & 0x0f, 0x02);
    assert!(!machine.irq_level(4), "reading IIR takes it back");
    machine.outb(COM1 + 1, 0x01);
    assert!(!machine.irq_level(4));
    other.write_all(b"k").unwrap();
    wait_until("the interrupt", || machine.irq_level(4));
    assert_eq!(machine.inb(COM1 + 2) & 0x0f, 0x04);
    assert_eq!(machine.inb(COM1), b'k');
    assert!(!machine.irq_level(4));
    machine.shutdown();
}

#[test]
fn a_serial_port_in_loopback_hears_itself_alone() {
    let Some((machine, mut other)) = serial("s") else { return };
    machine.outb(COM1 + 4, 0x1b);
    assert_eq!(machine.inb(COM1 + 6) & 0xf0, 0xb0, "RTS, DTR and OUT2 come back as CTS, DSR and DCD");
    machine.outb(COM1, 0x5a);
    wait_until("the byte", || machine.inb(COM1 + 5) & 1 != 0);
    assert_eq!(machine.inb(COM1), 0x5a);
    machine.outb(COM1 + 4, 0x0b);
    machine.outb(COM1, b'!');
    let mut byte = [0];
    other.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"!", "nothing else has gone out");
}

#[test]
fn a_serial_port_keeps_input_while_the_machine_stands() {
    let Some((machine, mut other)) = serial("s") else { return };
    machine.qmp(json!({"execute": "stop"}));
    other.write_all(b"late").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(machine.inb(COM1 + 5) & 1, 0, "a stopped machine takes no input");
    machine.qmp(json!({"execute": "cont"}));
    for byte in b"late" {
        wait_until("a byte", || machine.inb(COM1 + 5) & 1 != 0);
        assert_eq!(machine.inb(COM1), *byte);
    }
}

#[test]
fn four_serial_ports_have_their_own_addresses() {
    let args =
        ["-chardev", "ringbuf,id=a,size=256", "-chardev", "null,id=b", "-serial", "chardev:b", "-serial", "chardev:a"];
    let Some(machine) = start(&["isa-serial"], &args) else { return };
    for base in [0x3f8, 0x2f8] {
        machine.outb(base + 7, 0xa5);
        assert_eq!(machine.inb(base + 7), 0xa5);
    }
    assert_eq!(machine.inb(0x3e8 + 7), 0xff);
}

/// Reads a register of the clock chip.
fn cmos(machine: &Machine, register: u8) -> u8 {
    machine.outb(0x70, register);
    machine.inb(0x71)
}

fn set_cmos(machine: &Machine, register: u8, value: u8) {
    machine.outb(0x70, register);
    machine.outb(0x71, value);
}

#[test]
fn the_clock_chip_shows_the_time_and_goes_with_the_virtual_clock() {
    let Some(machine) = start(&["mc146818rtc"], &[]) else { return };
    set_cmos(&machine, 0x0b, 0x06);
    // Stopped, set to the last second of a leap year's February, started.
    set_cmos(&machine, 0x0b, 0x86);
    for (register, value) in [(0, 59), (2, 59), (4, 23), (7, 28), (8, 2), (9, 24), (0x32, 20)] {
        set_cmos(&machine, register, value);
    }
    set_cmos(&machine, 0x0b, 0x06);
    let time = |machine: &Machine| [9, 8, 7, 4, 2, 0].map(|register| cmos(machine, register));
    assert_eq!(time(&machine), [24, 2, 28, 23, 59, 59]);
    machine.clock_step(2 * SECOND);
    let later = time(&machine);
    assert_eq!(later[..5], [24, 2, 29, 0, 0]);
    assert!(later[5] <= 2, "{later:?}");
    machine.clock_step(86_400 * SECOND);
    assert_eq!(time(&machine)[..5], [24, 3, 1, 0, 0]);
    assert_eq!(cmos(&machine, 0x0d) & 0x80, 0x80, "the battery is good");
}

#[test]
fn the_clock_chip_interrupts_for_alarms_and_periods() {
    let Some(machine) = start(&["mc146818rtc"], &[]) else { return };
    machine.irq_intercept_in("ioapic");
    set_cmos(&machine, 0x0b, 0x86);
    for (register, value) in [(0, 10), (2, 0), (4, 12), (1, 15), (3, 0), (5, 12)] {
        set_cmos(&machine, register, value);
    }
    set_cmos(&machine, 0x0b, 0x26);
    cmos(&machine, 0x0c);
    machine.clock_step(3 * SECOND);
    assert!(!machine.irq_level(8), "the alarm is five seconds away");
    machine.clock_step(4 * SECOND);
    assert!(machine.irq_level(8));
    assert_eq!(cmos(&machine, 0x0c) & 0xa0, 0xa0);
    assert!(!machine.irq_level(8));

    // 1024 Hz.
    set_cmos(&machine, 0x0a, 0x26);
    set_cmos(&machine, 0x0b, 0x46);
    machine.take_irq_changes();
    let mut raised = 0;
    for _ in 0..8 {
        machine.clock_step(SECOND / 1024 + 1);
        raised += usize::from(machine.irq_level(8));
        assert_eq!(cmos(&machine, 0x0c) & 0xc0, 0xc0);
    }
    assert_eq!(raised, 8);
}

#[test]
fn the_memory_of_the_clock_chip_outlives_a_reset() {
    let Some(machine) = start(&["mc146818rtc"], &[]) else { return };
    set_cmos(&machine, 0x40, 0x77);
    set_cmos(&machine, 0x0b, 0x46);
    machine.qmp(json!({"execute": "system_reset"}));
    assert_eq!(cmos(&machine, 0x40), 0x77);
    assert_eq!(cmos(&machine, 0x0b) & 0x70, 0, "interrupts are off after a reset");
}

/// Writes to the keyboard controller's data port and gives its answer.
fn keyboard(machine: &Machine, bytes: &[u8]) -> Vec<u8> {
    for byte in bytes {
        assert_eq!(machine.inb(0x64) & 2, 0, "the controller takes a byte");
        machine.outb(0x60, *byte);
    }
    let mut answer = Vec::new();
    while machine.inb(0x64) & 1 != 0 {
        answer.push(machine.inb(0x60));
        machine.clock_step(SECOND / 100);
    }
    answer
}

#[test]
fn the_keyboard_controller_tests_and_identifies_itself() {
    let Some(machine) = start(&["i8042"], &[]) else { return };
    machine.irq_intercept_in("ioapic");
    machine.outb(0x64, 0xaa);
    assert_eq!(machine.inb(0x64) & 1, 1);
    assert_eq!(machine.inb(0x60), 0x55, "the self test is passed");
    machine.outb(0x64, 0xab);
    assert_eq!(machine.inb(0x60), 0, "the keyboard's interface is fine");
    // No translation, interrupts on.
    machine.outb(0x64, 0x60);
    machine.outb(0x60, 0x03);
    machine.take_irq_changes();
    assert_eq!(keyboard(&machine, &[0xf2]), [0xfa, 0xab, 0x83], "an MF2 keyboard");
    assert!(machine.take_irq_changes().contains(&(1, true)));
    assert_eq!(keyboard(&machine, &[0xff]), [0xfa, 0xaa], "reset and self test");
    machine.outb(0x64, 0xd4);
    assert_eq!(keyboard(&machine, &[0xf2])[..2], [0xfa, 0x00], "a mouse");
    assert!(machine.take_irq_changes().contains(&(12, true)));
}

#[test]
fn the_keyboard_controller_can_pulse_the_reset_line() {
    let Some(machine) = start(&["i8042"], &[]) else { return };
    machine.outb(0x64, 0xfe);
    let event = machine.wait_event("RESET");
    assert_eq!(event["data"], json!({"guest": true, "reason": "guest-reset"}));
    assert_eq!(machine.qmp(json!({"execute": "query-status"}))["running"], true);
}

#[test]
fn the_debug_exit_port_sets_the_exit_status() {
    for (value, status) in [(0u32, 1), (0x10, 33), (0x7f, 255), (0x80, 1)] {
        let Some(machine) = start(&["isa-debug-exit"], &["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]) else {
            return;
        };
        // The machine may be gone before it answers.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| machine.outl(0xf4, value)));
        assert_eq!(machine.wait_exit().code(), Some(status), "after {value:#x}");
    }
}

#[test]
fn the_debug_console_writes_to_its_chardev() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let chardev = format!("file,id=d,path={}", log.display());
    let args = ["-chardev", &chardev, "-device", "isa-debugcon,chardev=d,iobase=0x402,readback=0x37"];
    let Some(machine) = start(&["isa-debugcon"], &args) else { return };
    assert_eq!(machine.inb(0x402), 0x37);
    b"firmware speaks\n".iter().for_each(|byte| machine.outb(0x402, *byte));
    machine.shutdown();
    assert_eq!(std::fs::read(log).unwrap(), b"firmware speaks\n");
}

#[test]
fn a_guests_panic_is_told_and_ends_the_machine() {
    let Some(machine) = start(&["pvpanic"], &["-device", "pvpanic"]) else { return };
    assert_eq!(machine.inb(0x505), 7);
    machine.outb(0x505, 2);
    assert_eq!(machine.wait_event("GUEST_CRASHLOADED")["data"], json!({"action": "run"}));
    machine.outb(0x505, 1);
    assert_eq!(machine.wait_event("GUEST_PANICKED")["data"], json!({"action": "pause"}));
    assert_eq!(machine.wait_event("GUEST_PANICKED")["data"], json!({"action": "poweroff"}));
    assert_eq!(machine.wait_event("SHUTDOWN")["data"], json!({"guest": true, "reason": "guest-panic"}));
    machine.wait_exit();
}

/// Reads random bytes through queue 0.
fn entropy(machine: &Machine, memory: &GuestAllocator, device: &VirtioDevice<'_>) {
    let mut queue = device.queue(0, NO_VECTOR);
    device.driver_ok();
    let mut seen = Vec::new();
    for _ in 0..10 {
        let buffer = memory.alloc(64, 64);
        let head = queue.add(&[], &[(buffer, 40), (buffer + 40, 24)]);
        device.kick(0, &queue);
        let used = queue.wait_used();
        assert_eq!(used.head, head);
        assert!(used.len > 0 && used.len <= 64, "{}", used.len);
        seen.push(machine.read(buffer, used.len as usize));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 10, "random bytes do not repeat");
}

#[test]
fn entropy_comes_through_every_transport() {
    let args = ["-device", "virtio-rng-pci", "-device", "virtio-rng-device"];
    let Some(machine) = start(&["virtio-rng"], &args) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    let function = pci.find(0x1af4, 0x1005).expect("a transitional entropy device");
    let legacy = VirtioDevice::pci_legacy(&machine, &memory, function, false);
    legacy.negotiate(0);
    entropy(&machine, &memory, &legacy);
    assert_eq!(legacy.interrupt_status() & 1, 1);
    let modern = VirtioDevice::pci_modern(&machine, &memory, function);
    assert_eq!(modern.negotiate(0), VERSION_1);
    entropy(&machine, &memory, &modern);

    let base = (0..8).map(|slot| 0xfeb0_0000 + slot * 0x200).find(|base| machine.readl(base + 8) == 4);
    let mmio = VirtioDevice::mmio(&machine, &memory, base.expect("an entropy device in a virtio-mmio slot"));
    mmio.negotiate(0);
    entropy(&machine, &memory, &mmio);
    assert_eq!(mmio.interrupt_status(), 1);
    machine.shutdown();
}
