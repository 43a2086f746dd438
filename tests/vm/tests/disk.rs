//! virtio-blk on a raw file, through every transport: what a driver asks for is what the file has.

use std::time::{Duration, Instant};

use cardcage_qtest_driver::virtio::{NO_VECTOR, VirtioDevice, status};
use cardcage_qtest_driver::{GuestAllocator, Machine, Pci, PciDevice, Qtest, Virtqueue};
use cardcage_tests::{PATIENCE, program_with};
use serde_json::json;
use tempfile::NamedTempFile;

const SECTOR: usize = 512;
const CAPACITY: u64 = 2048;
const VIRTIO: u16 = 0x1af4;
/// First slot of virtio-mmio.
const MMIO: u64 = 0xfeb0_0000;

// Features, request types and status (virtio 1.2, section 5.2).
const F_RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const F_INDIRECT: u64 = 1 << 28;
const ALL: u64 = F_FLUSH | F_MQ | F_DISCARD | F_WRITE_ZEROES | F_INDIRECT;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(CAPACITY * SECTOR as u64).unwrap();
    image
}

fn start(image: &NamedTempFile, drive: &str, devices: &[&str]) -> Option<Machine> {
    let program = program_with(&["virtio-blk"])?;
    let drive = format!("if=none,id=d,format=raw,file={}{drive}", image.path().display());
    let mut args = vec!["-machine", "pc", "-nodefaults", "-drive", &drive];
    devices.iter().for_each(|device| args.extend(["-device", device]));
    Some(Machine::start(program, args))
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 7 + seed * 13 + n / 256) % 251) as u8).collect()
}

/// A request that the device has, or had.
struct Asked {
    head: u16,
    data: u64,
    len: usize,
    state: u64,
}

impl Asked {
    fn data(&self, qtest: &Qtest) -> Vec<u8> {
        qtest.read(self.data, self.len)
    }
}

/// One disk with one queue in use.
struct Disk<'a> {
    qtest: &'a Qtest,
    memory: &'a GuestAllocator,
    device: VirtioDevice<'a>,
    queue: Virtqueue<'a>,
}

impl<'a> Disk<'a> {
    fn new(qtest: &'a Qtest, memory: &'a GuestAllocator, device: VirtioDevice<'a>) -> Self {
        device.negotiate(ALL);
        let queue = device.queue(0, NO_VECTOR);
        device.driver_ok();
        Self { qtest, memory, device, queue }
    }

    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], len: usize) -> Asked {
        let asked = ask(self.qtest, self.memory, &mut self.queue, kind, sector, data, len);
        self.device.kick(0, &self.queue);
        asked
    }

    /// Asks and waits; the status.
    #[track_caller]
    fn run(&mut self, kind: u32, sector: u64, data: &[u8], len: usize) -> (u8, Asked) {
        let asked = self.ask(kind, sector, data, len);
        let used = self.queue.wait_used();
        assert_eq!(used.head, asked.head);
        (self.qtest.readb(asked.state), asked)
    }
}

/// Puts a request into a queue: `data` goes to the device, `len` bytes come from it.
fn ask(
    qtest: &Qtest,
    memory: &GuestAllocator,
    queue: &mut Virtqueue<'_>,
    kind: u32,
    sector: u64,
    data: &[u8],
    len: usize,
) -> Asked {
    let size = data.len().max(len);
    let (header, buffer, state) = (memory.alloc(16, 16), memory.alloc(size.max(1) as u64, 16), memory.alloc(1, 1));
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    qtest.write(header, &bytes);
    qtest.write(buffer, data);
    qtest.writeb(state, 0xee);
    let mut readable = vec![(header, 16)];
    let mut writable = vec![(state, 1)];
    if !data.is_empty() {
        readable.push((buffer, data.len() as u32));
    } else if len > 0 {
        writable.insert(0, (buffer, len as u32));
    }
    let head = queue.add(&readable, &writable);
    Asked { head, data: buffer, len: size, state }
}

/// A segment of a discard or write-zeroes request.
fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Writes, reads, flushes and refuses; the same for every transport.
fn exercise(disk: &mut Disk<'_>, image: &NamedTempFile) {
    let file = |from: usize, len: usize| std::fs::read(image.path()).unwrap()[from..from + len].to_vec();
    assert_eq!(disk.device.config_read64(0), CAPACITY);
    for (n, (sector, sectors)) in [(0, 1), (1, 8), (CAPACITY - 1, 1), (100, 128)].into_iter().enumerate() {
        let bytes = pattern(n, sectors * SECTOR);
        assert_eq!(disk.run(OUT, sector, &bytes, 0).0, OK);
        let (state, read) = disk.run(IN, sector, &[], bytes.len());
        assert_eq!((state, read.data(disk.qtest)), (OK, bytes.clone()));
        assert_eq!(disk.run(FLUSH, 0, &[], 0).0, OK);
        assert_eq!(file(sector as usize * SECTOR, bytes.len()), bytes);
    }
    for (kind, sector, data, len) in [
        (IN, CAPACITY, 0, SECTOR),
        (IN, CAPACITY - 1, 0, 2 * SECTOR),
        (IN, u64::MAX, 0, SECTOR),
        (IN, u64::MAX / SECTOR as u64 + 1, 0, SECTOR),
        (OUT, CAPACITY, SECTOR, 0),
        (OUT, CAPACITY - 1, 2 * SECTOR, 0),
        (IN, 0, 0, 100),
        (OUT, 0, 700, 0),
    ] {
        let (state, _) = disk.run(kind, sector, &vec![0x99; data], len);
        assert_eq!(state, IOERR, "request {kind} for sector {sector:#x} with {} bytes", data + len);
    }
    assert_eq!(file(0, SECTOR), pattern(0, SECTOR), "what was refused has changed nothing");
    assert_eq!(disk.run(0x4242, 0, &[], SECTOR).0, UNSUPP);
    let (state, id) = disk.run(GET_ID, 0, &[], 20);
    assert_eq!((state, &id.data(disk.qtest)[..7]), (OK, &b"cabinet"[..]));
}

#[test]
fn a_disk_works_through_every_transport() {
    let image = image();
    let Some(machine) = start(&image, "", &["virtio-blk-pci,drive=d,serial=cabinet"]) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    let function = pci.find(VIRTIO, 0x1001).expect("a transitional disk");
    let legacy = VirtioDevice::pci_legacy(&machine, &memory, function, false);
    exercise(&mut Disk::new(&machine, &memory, legacy), &image);
    let modern = VirtioDevice::pci_modern(&machine, &memory, function);
    exercise(&mut Disk::new(&machine, &memory, modern), &image);
    machine.shutdown();

    let Some(machine) = start(&image, "", &["virtio-blk-device,drive=d,serial=cabinet"]) else { return };
    let memory = GuestAllocator::default();
    assert_eq!(machine.readl(MMIO + 8), 2, "a disk in the first slot");
    let mmio = VirtioDevice::mmio(&machine, &memory, MMIO);
    exercise(&mut Disk::new(&machine, &memory, mmio), &image);
    machine.shutdown();
}

fn function<'a>(pci: &'a Pci<'a>) -> PciDevice<'a> {
    pci.find(VIRTIO, 0x1001).expect("a transitional disk")
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() {
    let image = image();
    let Some(machine) = start(&image, ",discard=unmap", &["virtio-blk-pci,drive=d"]) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    let device = VirtioDevice::pci_modern(&machine, &memory, function(&pci));
    assert_eq!(device.device_features() & (F_DISCARD | F_WRITE_ZEROES | F_FLUSH), F_DISCARD | F_WRITE_ZEROES | F_FLUSH);
    let mut disk = Disk::new(&machine, &memory, device);
    let bytes = pattern(5, 64 * SECTOR);
    assert_eq!(disk.run(OUT, 0, &bytes, 0).0, OK);
    assert_eq!(disk.run(WRITE_ZEROES, 0, &segment(8, 8, 0), 0).0, OK);
    assert_eq!(disk.run(WRITE_ZEROES, 0, &segment(24, 8, 1), 0).0, OK);
    assert_eq!(disk.run(DISCARD, 0, &segment(40, 8, 0), 0).0, OK);
    let (_, read) = disk.run(IN, 0, &[], bytes.len());
    let read = read.data(&machine);
    let sectors = |from: usize, to: usize| from * SECTOR..to * SECTOR;
    for zeroed in [sectors(8, 16), sectors(24, 32)] {
        assert!(read[zeroed.clone()].iter().all(|b| *b == 0), "{zeroed:?}");
    }
    for kept in [sectors(0, 8), sectors(16, 24), sectors(32, 40), sectors(48, 64)] {
        assert_eq!(read[kept.clone()], bytes[kept.clone()], "{kept:?}");
    }
    for bad in [segment(CAPACITY, 1, 0), segment(CAPACITY - 1, 2, 0), segment(u64::MAX, 1, 0), segment(0, u32::MAX, 0)]
    {
        assert_eq!(disk.run(WRITE_ZEROES, 0, &bad, 0).0, IOERR, "{bad:?}");
        assert_eq!(disk.run(DISCARD, 0, &bad, 0).0, IOERR, "{bad:?}");
    }
    assert_eq!(disk.run(DISCARD, 0, &segment(0, 8, 1), 0).0, UNSUPP, "a discard has no unmap flag");
    machine.shutdown();
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let image = image();
    let Some(machine) = start(&image, ",readonly=on", &["virtio-blk-pci,drive=d"]) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    let device = VirtioDevice::pci_modern(&machine, &memory, function(&pci));
    assert_eq!(device.device_features() & F_RO, F_RO);
    device.negotiate(ALL | F_RO);
    let queue = device.queue(0, NO_VECTOR);
    device.driver_ok();
    let mut disk = Disk { qtest: &machine, memory: &memory, device, queue };
    assert_eq!(disk.run(OUT, 0, &[1; SECTOR], 0).0, IOERR);
    assert_eq!(disk.run(IN, 0, &[], SECTOR).0, OK);
    assert_eq!(std::fs::read(image.path()).unwrap()[..SECTOR], [0; SECTOR]);
}

#[test]
fn each_queue_has_its_vector_and_its_requests() {
    let image = image();
    let Some(machine) = start(&image, "", &["virtio-blk-pci,drive=d,num-queues=4"]) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    let function = function(&pci);
    let mut device = VirtioDevice::pci_modern(&machine, &memory, function);
    let msix = function.enable_msix(|number| device.bar(function, number));
    assert!(msix.vectors() >= 5, "{} vectors", msix.vectors());
    for vector in 0..5 {
        msix.arm(vector, memory.alloc(4, 4), 0x1234_5670 + u32::from(vector));
    }
    assert_eq!(device.negotiate(ALL) & F_MQ, F_MQ);
    assert_eq!(device.config_read8(34), 4, "queues");
    device.set_config_vector(0);
    let mut queues: Vec<_> = (0..4).map(|n| device.queue(n, n + 1)).collect();
    device.driver_ok();
    let mut asked = Vec::new();
    for (n, queue) in queues.iter_mut().enumerate() {
        for i in 0..8 {
            let sector = (n * 8 + i) as u64;
            asked.push((n, sector, ask(&machine, &memory, queue, OUT, sector, &pattern(sector as usize, SECTOR), 0)));
        }
        device.kick(n as u16, queue);
    }
    for (n, queue) in queues.iter_mut().enumerate() {
        for _ in 0..8 {
            let used = queue.wait_used();
            assert!(asked.iter().any(|(of, _, a)| *of == n && a.head == used.head), "queue {n} gives back its own");
        }
        let vector = n as u16 + 1;
        let start = Instant::now();
        while !msix.take(vector) {
            assert!(start.elapsed() < PATIENCE, "no message for queue {n}");
        }
    }
    assert!(!msix.take(0), "nothing happened to the configuration");
    assert!(asked.iter().all(|(_, _, a)| machine.readb(a.state) == OK));
    machine.shutdown();
    let written = std::fs::read(image.path()).unwrap();
    for (_, sector, _) in asked {
        let at = sector as usize * SECTOR;
        assert_eq!(written[at..at + SECTOR], pattern(sector as usize, SECTOR));
    }
}

#[test]
fn without_messages_the_pin_tells_and_the_status_register_takes_it_back() {
    let image = image();
    let Some(machine) = start(&image, "", &["virtio-blk-pci,drive=d,addr=4"]) else { return };
    machine.irq_intercept_in("ioapic");
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    // The slot's pin goes to one PIRQ: route all four to interrupt 11, as firmware would.
    let bridge = pci.find(0x8086, 0x7000).expect("the ISA bridge");
    (0x60..0x64).for_each(|register| bridge.config_write8(register, 11));
    let device = VirtioDevice::pci_modern(&machine, &memory, function(&pci));
    let mut disk = Disk::new(&machine, &memory, device);
    assert!(!machine.irq_level(11));
    assert_eq!(disk.run(IN, 0, &[], SECTOR).0, OK);
    let start = Instant::now();
    while !machine.irq_level(11) {
        assert!(start.elapsed() < PATIENCE, "no interrupt");
    }
    assert_eq!(disk.device.interrupt_status(), 1);
    assert!(!machine.irq_level(11), "reading the status takes it back");
    disk.queue.set_no_interrupt(true);
    assert_eq!(disk.run(IN, 0, &[], SECTOR).0, OK);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!machine.irq_level(11), "the driver wanted none");
}

#[test]
fn a_reset_with_requests_in_flight_is_survived() {
    let image = image();
    let Some(machine) = start(&image, "", &["virtio-blk-pci,drive=d"]) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    for round in 0..10 {
        let device = VirtioDevice::pci_modern(&machine, &memory, function(&pci));
        let mut disk = Disk::new(&machine, &memory, device);
        let mut states = Vec::new();
        for n in 0..32 {
            states.push(disk.ask(OUT, n, &pattern(n as usize, 8 * SECTOR), 0).state);
        }
        match round % 3 {
            0 => disk.device.reset(),
            1 => drop(machine.qmp(json!({"execute": "system_reset"}))),
            _ => {
                machine.qmp(json!({"execute": "stop"}));
                let before: Vec<u8> = states.iter().map(|s| machine.readb(*s)).collect();
                std::thread::sleep(Duration::from_millis(50));
                let after: Vec<u8> = states.iter().map(|s| machine.readb(*s)).collect();
                assert_eq!(before, after, "a stopped machine's memory stands still");
                machine.qmp(json!({"execute": "cont"}));
                for _ in 0..32 {
                    disk.queue.wait_used();
                }
            }
        }
    }
    // As good as new, and after a reset nothing of before comes into the new driver's memory.
    let device = VirtioDevice::pci_modern(&machine, &memory, function(&pci));
    let mut disk = Disk::new(&machine, &memory, device);
    let bytes = pattern(77, SECTOR);
    assert_eq!(disk.run(OUT, 1000, &bytes, 0).0, OK);
    let (state, read) = disk.run(IN, 1000, &[], SECTOR);
    assert_eq!((state, read.data(&machine)), (OK, bytes));
    assert_eq!(
        machine.qmp(json!({"execute": "query-devices"})).as_array().unwrap().iter().find(|d| d.get("broken").is_some()),
        None
    );
    machine.shutdown();
}

#[test]
fn a_driver_that_breaks_the_rules_harms_itself_alone() {
    let image = image();
    let Some(machine) = start(&image, "", &["virtio-blk-pci,drive=d"]) else { return };
    let (pci, memory) = (Pci::new(&machine), GuestAllocator::default());
    type Crime = fn(&mut Virtqueue<'_>);
    let crimes: [(&str, Crime); 6] = [
        ("a chain that bites its tail", |q| {
            q.write_descriptor(0, 0x10_0000, 16, 1, 0);
            q.push_available(0);
        }),
        ("a head outside of the table", |q| q.push_available(0xfff0)),
        ("a buffer outside of RAM", |q| {
            q.write_descriptor(0, 0xffff_ffff_ffff_0000, 16, 1, 1);
            q.write_descriptor(1, 0xf000_0000_0000, 1, 2, 0);
            q.push_available(0);
        }),
        ("a request without a status", |q| {
            q.write_descriptor(0, 0x10_0000, 16, 0, 0);
            q.push_available(0);
        }),
        ("an indirect table inside of an indirect table", |q| {
            q.write_descriptor(0, q.layout().desc, 64, 4, 0);
            q.push_available(0);
        }),
        ("a next descriptor outside of the table", |q| {
            q.write_descriptor(0, 0x10_0000, 16, 1, 0x7fff);
            q.push_available(0);
        }),
    ];
    for (what, crime) in crimes {
        let device = VirtioDevice::pci_modern(&machine, &memory, function(&pci));
        let mut disk = Disk::new(&machine, &memory, device);
        crime(&mut disk.queue);
        disk.device.kick(0, &disk.queue);
        machine.qmp(json!({"execute": "query-status"}));
        let device = VirtioDevice::pci_modern(&machine, &memory, function(&pci));
        let mut disk = Disk::new(&machine, &memory, device);
        assert_eq!(disk.device.status() & status::NEEDS_RESET, 0, "after {what} and a reset");
        assert_eq!(disk.run(IN, 0, &[], SECTOR).0, OK, "after {what}");
    }
    machine.shutdown();
}
