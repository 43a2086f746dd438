//! The driver against a machine in this process, and against a program that behaves as an emulator does.

mod fake;

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cardcage_qtest::{Qtest as Server, QtestAddress};
use cardcage_qtest_driver::virtio::{NO_VECTOR, VERSION_1, VirtioDevice, status};
use cardcage_qtest_driver::{Capability, GuestAllocator, Machine, Pci, Qtest};
use serde_json::json;

/// A client and the server that it drives, which must live as long.
fn start() -> (Qtest, Server) {
    let dir = tempfile::tempdir().unwrap();
    let address = QtestAddress { path: dir.path().join("qtest.sock"), server: true, wait: false };
    let server = Server::start(&address, None, fake::Fake::default()).unwrap();
    (Qtest::new(UnixStream::connect(&address.path).unwrap()), server)
}

fn panic_text<T>(work: impl FnOnce() -> T) -> String {
    let panic = catch_unwind(AssertUnwindSafe(work)).err().expect("a panic was expected");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn memory_clock_and_interrupts_are_reached() {
    let (qtest, _server) = start();
    qtest.writeq(0x1000, 0x1122_3344_5566_7788);
    assert_eq!((qtest.readb(0x1000), qtest.readw(0x1002), qtest.readl(0x1004)), (0x88, 0x5566, 0x1122_3344));
    qtest.write(0x2000, &[1, 2, 3]);
    qtest.memset(0x2003, 2, 9);
    assert_eq!(qtest.read(0x2000, 6), [1, 2, 3, 9, 9, 0]);
    assert_eq!((qtest.clock_step(500), qtest.clock_step_to_next(), qtest.clock_set(7000)), (500, 600, 7000));
    qtest.irq_intercept_in("ioapic");
    qtest.outb(0x70, 1);
    assert!(qtest.irq_level(8) && !qtest.irq_level(9));
    qtest.outb(0x70, 0);
    assert_eq!(qtest.take_irq_changes(), [(8, true), (8, false)]);
    assert_eq!(qtest.request("bogus").unwrap_err(), "FAIL Unknown command 'bogus'");
    assert!(panic_text(|| qtest.irq_intercept_out("x", None)).contains("irq_intercept_out x"));
}

#[test]
fn a_server_that_goes_away_is_named() {
    let (qtest, server) = start();
    drop(server);
    let text = panic_text(|| qtest.inb(0x60));
    assert!(text.contains("inb 0x60"), "{text}");
}

#[test]
fn pci_functions_are_found_sized_and_placed() {
    let (qtest, _server) = start();
    let pci = Pci::new(&qtest);
    assert_eq!(pci.scan().iter().map(|f| f.slot()).collect::<Vec<_>>(), [(3, 0)]);
    let function = pci.find(0x1234, 0x5678).unwrap();
    assert!(pci.find(0x1234, 0x5679).is_none());
    let caps = [Capability { id: 9, offset: 0x40 }, Capability { id: 0x11, offset: 0x50 }];
    assert_eq!(function.capabilities(), caps);
    let (ports, memory) = (function.map_bar(0), function.map_bar(1));
    function.enable();
    assert_eq!(function.config_read8(4) & 7, 7);
    assert_eq!((ports.is_io(), ports.address(), ports.size()), (true, 0xc000, 0x20));
    assert_eq!((memory.is_io(), memory.address(), memory.size()), (false, 0xe000_0000, 0x1000));
    assert_eq!(ports.read16(6), 0xc006);
    memory.write32(0x10, 0xaabb_ccdd);
    assert_eq!((memory.read8(0x11), memory.read16(0x12)), (0xcc, 0xaabb));
    assert!(panic_text(|| function.map_bar(2)).contains("BAR 2 is absent"));
}

#[test]
fn msix_vectors_are_seen_in_ram() {
    let (qtest, _server) = start();
    let pci = Pci::new(&qtest);
    let function = pci.device(3, 0);
    let msix = function.enable_msix(|number| function.map_bar(number));
    assert_eq!(msix.vectors(), 4);
    msix.arm(1, 0x9000, 0x1234_5678);
    assert!(!msix.take(1));
    qtest.outb(0x80, 0);
    assert!(msix.take(1) && !msix.take(1));
    msix.mask(1, true);
    qtest.outb(0x80, 0);
    assert!(!msix.take(1));
}

#[test]
fn virtqueues_carry_chains_and_indirect_tables() {
    let (qtest, _server) = start();
    let memory = GuestAllocator::default();
    let device = VirtioDevice::mmio(&qtest, &memory, fake::MMIO);
    assert_eq!(device.device_features(), VERSION_1 | 1 << 28);
    assert_eq!(device.negotiate(1 << 28 | 1 << 29), VERSION_1 | 1 << 28);
    assert_eq!(device.config_read32(0), 0xc0ff_ee00);
    let mut queue = device.queue(0, NO_VECTOR);
    assert_eq!(queue.layout().size, 4);
    device.driver_ok();
    assert_eq!(device.status(), status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
    let (data, table) = (memory.alloc(64, 64), memory.alloc(64, 16));
    assert!(queue.poll_used().is_none());
    // More rounds than there are descriptors: they come back.
    for round in 0..12u32 {
        qtest.memset(data, 64, 0);
        let chain = queue.add(&[(data, 8)], &[(data + 8, 8), (data + 16, 8)]);
        let indirect = queue.add_indirect(table, &[(data, 8)], &[(data + 32, 4 + round)]);
        device.kick(0, &queue);
        let (one, two) = (queue.wait_used(), queue.wait_used());
        assert_eq!((one.head, one.len, two.head, two.len), (chain, 16, indirect, 4 + round));
        assert_eq!(device.interrupt_status(), 1);
        assert_eq!(device.interrupt_status(), 0);
        let bytes = qtest.read(data, 40);
        assert!(bytes[..8].iter().chain(&bytes[24..32]).all(|b| *b == 0), "{bytes:?}");
        assert!(bytes[8..24].iter().chain(&bytes[32..36]).all(|b| *b == 0x5a), "{bytes:?}");
    }
    assert!(panic_text(|| queue.add(&[(data, 1); 5], &[])).contains("5 buffers, 4 descriptors free"));
}

fn emulator() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().and_then(Path::parent).unwrap().join("examples/pretend_system")
}

#[test]
fn a_machine_is_started_asked_and_ended() {
    let machine = Machine::start(emulator(), ["-machine", "pretend"]);
    assert_eq!(machine.monitor().greeting()["QMP"]["version"]["qemu"]["major"], 10);
    machine.writel(0x10_0000, 42);
    assert_eq!(machine.readl(0x10_0000), 42);
    machine.qmp(json!({"execute": "stop"}));
    assert_eq!(machine.wait_event("RESUME")["event"], "RESUME");
    assert_eq!(machine.monitor().take_events()[0]["event"], "STOP");
    let error = machine.monitor().try_execute(json!({"execute": "nope"})).unwrap_err();
    assert_eq!(error, json!({"class": "CommandNotFound", "desc": "The command nope has not been found"}));
    assert!(panic_text(|| machine.qmp(json!({"execute": "nope"}))).contains("has not been found"));
    machine.shutdown();
}

#[test]
fn a_machine_that_quits_is_waited_for() {
    let machine = Machine::start(emulator(), [""; 0]);
    machine.qmp(json!({"execute": "quit"}));
    assert_eq!(machine.wait_event("SHUTDOWN")["data"]["reason"], "host-qmp-quit");
    assert!(machine.wait_exit().success());
}

#[test]
fn a_machine_that_cannot_start_is_reported() {
    let text = panic_text(|| Machine::start(emulator(), ["-pretend", "3"]));
    assert!(text.contains("exit status: 3 before it connects its qtest socket"), "{text}");
    let text = panic_text(|| Machine::start("/nonexistent/emulator", [""; 0]));
    assert!(text.contains("cannot start /nonexistent/emulator"), "{text}");
}
