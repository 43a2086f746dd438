//! The driver against the emulator whose protocols these are, where one is named in `$QTEST_QEMU_BINARY` (as for QEMU's
//! own device tests); `$QTEST_QEMU_ARGS` is put before each test's arguments. Skipped with a printed reason elsewhere.

use cardcage_qtest_driver::virtio::{NO_VECTOR, VERSION_1, VirtioDevice};
use cardcage_qtest_driver::{GuestAllocator, Machine, Pci, PciDevice, Qtest, Virtqueue};
use serde_json::json;

const SECTOR: usize = 512;
const VIRTIO: u16 = 0x1af4;

fn start(args: &[&str]) -> Option<Machine> {
    let Some(binary) = std::env::var_os("QTEST_QEMU_BINARY") else {
        eprintln!("skipped: $QTEST_QEMU_BINARY names no emulator");
        return None;
    };
    let before = std::env::var("QTEST_QEMU_ARGS").unwrap_or_default();
    Some(Machine::start(binary, before.split_whitespace().chain(args.iter().copied())))
}

#[test]
fn the_clock_memory_and_qmp_are_reached() {
    let Some(machine) = start(&["-machine", "pc", "-nodefaults"]) else { return };
    machine.writeq(0x10_0000, 0x1122_3344_5566_7788);
    assert_eq!(machine.read(0x10_0000, 8), [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    let data: Vec<u8> = (0..10_000u32).map(|n| n.to_le_bytes()[0]).collect();
    machine.write(0x20_0001, &data);
    assert_eq!(machine.read(0x20_0001, data.len()), data);
    assert_eq!(machine.clock_step(1_000_000), 1_000_000);
    assert_eq!(machine.qmp(json!({"execute": "query-status"}))["status"], "running");
    machine.qmp(json!({"execute": "stop"}));
    machine.qmp(json!({"execute": "cont"}));
    assert_eq!(machine.wait_event("RESUME")["event"], "RESUME");
    assert_eq!(machine.wait_event("STOP")["event"], "STOP");
    let error = machine.monitor().try_execute(json!({"execute": "nope"})).unwrap_err();
    assert_eq!(error["class"], "CommandNotFound");
    machine.shutdown();
}

#[test]
fn the_clock_chip_raises_its_line() {
    let Some(machine) = start(&["-machine", "pc", "-nodefaults"]) else { return };
    machine.irq_intercept_in("ioapic");
    let cmos = |register: u8, value: u8| {
        machine.outb(0x70, register);
        machine.outb(0x71, value);
    };
    cmos(0x0a, 0x26);
    cmos(0x0b, 0x42);
    assert!(!machine.irq_level(8));
    machine.clock_step(2_000_000);
    assert!(machine.irq_level(8));
    assert_eq!(machine.take_irq_changes().iter().filter(|c| c.0 == 8).count(), 1);
}

#[test]
fn a_machine_that_quits_is_waited_for() {
    let Some(machine) = start(&["-machine", "none"]) else { return };
    machine.qmp(json!({"execute": "quit"}));
    assert!(machine.wait_exit().success());
}

/// Reads random bytes through queue 0 of an entropy device.
fn entropy(qtest: &Qtest, memory: &GuestAllocator, device: &VirtioDevice<'_>, queue: &mut Virtqueue<'_>) {
    let buffer = memory.alloc(64, 64);
    qtest.memset(buffer, 64, 0);
    let head = queue.add(&[], &[(buffer, 32), (buffer + 32, 32)]);
    device.kick(0, queue);
    let used = queue.wait_used();
    assert_eq!(used.head, head);
    assert!(used.len > 0 && used.len <= 64);
    assert_ne!(qtest.read(buffer, 64), [0; 64]);
}

#[test]
fn entropy_comes_through_each_transport() {
    let Some(machine) = start(&["-machine", "pc", "-nodefaults", "-device", "virtio-rng-pci"]) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    let rng = pci.find(VIRTIO, 0x1005).unwrap();
    let legacy = VirtioDevice::pci_legacy(&machine, &memory, rng, false);
    legacy.negotiate(0);
    let mut queue = legacy.queue(0, NO_VECTOR);
    legacy.driver_ok();
    entropy(&machine, &memory, &legacy, &mut queue);
    assert_eq!(legacy.interrupt_status() & 1, 1);
    let modern = VirtioDevice::pci_modern(&machine, &memory, rng);
    assert_eq!(modern.negotiate(0), VERSION_1);
    let mut queue = modern.queue(0, NO_VECTOR);
    modern.driver_ok();
    for _ in 0..20 {
        entropy(&machine, &memory, &modern, &mut queue);
    }
    machine.shutdown();

    let args = ["-machine", "microvm,x-option-roms=off", "-global", "virtio-mmio.force-legacy=off", "-nodefaults"];
    let Some(machine) = start(&[&args[..], &["-device", "virtio-rng-device"]].concat()) else { return };
    let memory = GuestAllocator::default();
    let base = (0..24).map(|slot| 0xfeb0_0000 + slot * 0x200).find(|base| machine.readl(base + 8) == 4).unwrap();
    let mmio = VirtioDevice::mmio(&machine, &memory, base);
    mmio.negotiate(0);
    let mut queue = mmio.queue(0, NO_VECTOR);
    mmio.driver_ok();
    entropy(&machine, &memory, &mmio, &mut queue);
    assert_eq!(mmio.interrupt_status(), 1);
}

/// One request to a disk: its header, data and status.
fn disk_request(
    qtest: &Qtest,
    memory: &GuestAllocator,
    queue: &mut Virtqueue<'_>,
    write: Option<&[u8]>,
    indirect: bool,
) -> (u16, u64, u64) {
    let (header, data, state) = (memory.alloc(16, 16), memory.alloc(SECTOR as u64, 16), memory.alloc(1, 1));
    qtest.write(header, &[u8::from(write.is_some()), 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    qtest.writeb(state, 0xff);
    let block = (data, SECTOR as u32);
    let (readable, writable) = match write {
        Some(bytes) => {
            qtest.write(data, bytes);
            (vec![(header, 16), block], vec![(state, 1)])
        }
        None => (vec![(header, 16)], vec![block, (state, 1)]),
    };
    let head = match indirect {
        true => queue.add_indirect(memory.alloc(64, 16), &readable, &writable),
        false => queue.add(&readable, &writable),
    };
    (head, data, state)
}

#[test]
fn a_disk_is_written_and_read_with_msix_seen_in_ram() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let drive = format!("if=none,id=d,format=raw,file={}", disk.path().display());
    let args = ["-machine", "pc", "-nodefaults", "-drive", &drive, "-device", "virtio-blk-pci,drive=d,addr=4.0"];
    let Some(machine) = start(&args) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    let function: PciDevice<'_> = pci.device(4, 0);
    assert_eq!((function.vendor(), function.slot()), (VIRTIO, (4, 0)));
    let mut device = VirtioDevice::pci_modern(&machine, &memory, function);
    let msix = function.enable_msix(|number| device.bar(function, number));
    let seen = memory.alloc(4, 4);
    msix.arm(1, seen, 0x1234_5678);
    device.negotiate(1 << 28);
    device.set_config_vector(0);
    let mut queue = device.queue(0, 1);
    device.driver_ok();
    assert_eq!(device.config_read64(0), (1 << 20) / SECTOR as u64, "capacity in sectors");
    let bytes: Vec<u8> = (0..SECTOR).map(|n| (n % 251) as u8).collect();
    for (write, indirect) in [(Some(&bytes[..]), false), (None, false), (None, true)] {
        assert!(!msix.take(1));
        let (head, data, state) = disk_request(&machine, &memory, &mut queue, write, indirect);
        device.kick(0, &queue);
        assert_eq!(queue.wait_used().head, head);
        assert_eq!(machine.readb(state), 0, "VIRTIO_BLK_S_OK");
        assert_eq!(machine.read(data, SECTOR), bytes);
        while !msix.take(1) {
            std::thread::yield_now();
        }
    }
    machine.shutdown();
    assert_eq!(std::fs::read(disk.path()).unwrap()[3 * SECTOR..4 * SECTOR], bytes);
}
