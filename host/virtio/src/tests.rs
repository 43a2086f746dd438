//! Drivers by hand: what a guest does to a device behind each transport.

use std::sync::{Arc, Mutex};

use cardcage_memory::{AddressSpace, IoHandler};
use cardcage_pci::{GsiSink, InterruptRouter, MsiSink, PciBus};
use proptest::prelude::*;

use crate::{Core, F_VERSION_1, Link, QueueSetup, VirtioDevice, mmio, pci};

#[derive(Default)]
struct Probe {
    log: Mutex<Vec<String>>,
    link: Mutex<Option<Arc<dyn Link>>>,
    refuse: bool,
}

impl Probe {
    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
    fn say(&self, text: String) {
        self.log.lock().unwrap().push(text);
    }
}

impl VirtioDevice for Probe {
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 64]
    }
    fn config_read(&self, offset: u32, data: &mut [u8]) {
        for (i, b) in data.iter_mut().enumerate() {
            *b = (offset as u8).wrapping_add(i as u8);
        }
    }
    fn config_write(&self, offset: u32, data: &[u8]) {
        self.say(format!("config {offset} {data:?}"));
    }
    fn activate(&self, features: u64, queues: &[QueueSetup], link: Arc<dyn Link>) -> Result<(), String> {
        self.say(format!("activate {features:#x} {queues:x?}"));
        *self.link.lock().unwrap() = Some(link);
        if self.refuse { Err("refused".into()) } else { Ok(()) }
    }
    fn notify(&self, queue: u16) {
        self.say(format!("notify {queue}"));
    }
    fn reset(&self) {
        *self.link.lock().unwrap() = None;
    }
}

#[derive(Default)]
struct Interrupts(Mutex<Vec<String>>);
impl GsiSink for Interrupts {
    fn set_gsi(&self, gsi: u32, level: bool) {
        self.0.lock().unwrap().push(format!("gsi {gsi} {level}"));
    }
}
impl MsiSink for Interrupts {
    fn send_msi(&self, address: u64, data: u32) {
        self.0.lock().unwrap().push(format!("msi {address:#x} {data:#x}"));
    }
}

struct Slot {
    probe: Arc<Probe>,
    core: Arc<Core>,
    bus: Arc<PciBus>,
    at: cardcage_pci::Devfn,
    memory: Arc<AddressSpace>,
    ports: Arc<AddressSpace>,
    interrupts: Arc<Interrupts>,
}

const MODERN: u64 = 0xe000_0000;
const TABLE: u64 = 0xe010_0000;
const LEGACY: u64 = 0xc000;

fn plugged(legacy: bool) -> Slot {
    let probe = Arc::new(Probe::default());
    let interrupts = Arc::new(Interrupts::default());
    let (memory, ports) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
    let router = InterruptRouter::new(interrupts.clone());
    (0..4).for_each(|pirq| router.set_route(pirq, 11));
    let bus = PciBus::new(memory.clone(), ports.clone(), router, interrupts.clone());
    let options = pci::Options {
        name: "probe-pci".into(),
        id: None,
        device_id: 4,
        class: pci::class_of_category("misc"),
        legacy,
        modern: true,
        vectors: None,
        multifunction: false,
    };
    let (function, core) = pci::function(&options, probe.clone()).unwrap();
    let at = bus.add(None, function).unwrap();
    bus.config_write(at, 0x10, 4, LEGACY as u32);
    bus.config_write(at, 0x14, 4, TABLE as u32);
    bus.config_write(at, 0x20, 4, MODERN as u32);
    bus.config_write(at, 4, 2, 7);
    Slot { probe, core, bus, at, memory, ports, interrupts }
}

/// Steps of a modern driver's initialisation (virtio 1.2, section 3.1.1) up to DRIVER_OK.
fn initialise(read: impl Fn(u64, u8) -> u64, write: impl Fn(u64, u8, u64)) {
    write(20, 1, 3);
    write(8, 4, 1);
    write(12, 4, F_VERSION_1 >> 32);
    write(8, 4, 0);
    write(12, 4, 1);
    write(20, 1, 11);
    assert_eq!(read(20, 1), 11);
    write(22, 2, 1);
    assert_eq!(read(24, 2), 64);
    write(24, 2, 32);
    write(26, 2, 1);
    for (register, address) in [(32, 0x1000u64), (40, 0x2000), (48, 0x3_0000_3000)] {
        write(register, 4, address & 0xffff_ffff);
        write(register + 4, 4, address >> 32);
        assert_eq!(read(register, 8), address);
    }
    write(28, 2, 1);
    write(20, 1, 15);
}

#[test]
fn a_modern_driver_negotiates_sets_up_a_queue_and_is_interrupted_by_message() {
    let s = plugged(true);
    let m = &s.memory;
    for (at, value) in [(16, 0xfee0_1000u64), (20, 0), (24, 0x41), (28, 0)] {
        m.write(TABLE + at, 4, value);
    }
    let msix = capability(&s, 0x11).0;
    s.bus.config_write(s.at, msix + 2, 2, 0x8000);
    initialise(|at, size| m.read(MODERN + at, size), |at, size, v| m.write(MODERN + at, size, v));
    let queue = QueueSetup { index: 1, size: 32, desc: 0x1000, avail: 0x2000, used: 0x3_0000_3000 };
    assert_eq!(s.probe.take_log(), [format!("activate {:#x} {:x?}", F_VERSION_1 | 1, [queue])]);
    m.write(MODERN + 0x3004, 2, 1);
    assert_eq!(s.probe.take_log(), ["notify 1"]);
    let link = s.probe.link.lock().unwrap().clone().unwrap();
    link.queue_interrupt(1);
    assert_eq!(*s.interrupts.0.lock().unwrap(), ["msi 0xfee01000 0x41"]);
    assert_eq!(m.read(MODERN + 0x2003, 4), 0x06050403);
}

#[test]
fn a_legacy_driver_gets_one_page_number_and_the_line() {
    let s = plugged(true);
    let p = &s.ports;
    assert_eq!(p.read(LEGACY, 4), 0b101);
    p.write(LEGACY + 18, 1, 3);
    p.write(LEGACY + 4, 4, 0xffff_ffff);
    p.write(LEGACY + 14, 2, 0);
    assert_eq!(p.read(LEGACY + 12, 2), 256);
    p.write(LEGACY + 8, 4, 0x10);
    p.write(LEGACY + 18, 1, 7);
    let queue = QueueSetup { index: 0, size: 256, desc: 0x10000, avail: 0x11000, used: 0x12000 };
    assert_eq!(s.probe.take_log(), [format!("activate 0x5 {:x?}", [queue])]);
    let link = s.probe.link.lock().unwrap().clone().unwrap();
    link.queue_interrupt(0);
    assert_eq!(p.read(LEGACY + 19, 1), 1);
    assert_eq!(*s.interrupts.0.lock().unwrap(), ["gsi 11 true", "gsi 11 false"]);
    assert_eq!(p.read(LEGACY + 20, 1), 0, "without MSI-X the device's configuration starts at 20");
    p.write(LEGACY + 18, 1, 0);
    assert!(s.probe.link.lock().unwrap().is_none());
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let s = plugged(false);
    let m = &s.memory;
    m.write(MODERN + 20, 1, 3);
    m.write(MODERN + 12, 4, 0b10);
    m.write(MODERN + 8, 4, 1);
    m.write(MODERN + 12, 4, 1);
    m.write(MODERN + 20, 1, 11);
    assert_eq!(m.read(MODERN + 20, 1), 3);
    m.write(MODERN + 20, 1, 7);
    assert!(s.probe.take_log().is_empty(), "not activated without FEATURES_OK");
}

#[test]
fn a_device_that_refuses_its_queues_waits_to_be_reset() {
    let probe = Arc::new(Probe { refuse: true, ..Probe::default() });
    let levels = Arc::new(Mutex::new(Vec::new()));
    let seen = levels.clone();
    let (registers, _core) =
        mmio::registers("probe-device", 4, probe.clone(), Box::new(move |l| seen.lock().unwrap().push(l)));
    let w = |at, v| registers.write(at, 4, v);
    for (at, v) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15)] {
        w(at, v);
    }
    assert_eq!(registers.read(0x70, 4), 15 | 0x40);
    assert_eq!(*levels.lock().unwrap(), [true]);
    assert_eq!(registers.read(0x60, 4), 2);
    w(0x64, 2);
    w(0x70, 0);
    assert_eq!(registers.read(0x70, 4), 0);
}

#[test]
fn the_configuration_window_reaches_the_registers() {
    let s = plugged(true);
    let (at, _) = last_vendor_capability(&s);
    s.bus.config_write(s.at, at + 4, 1, 4);
    s.bus.config_write(s.at, at + 8, 4, 20);
    s.bus.config_write(s.at, at + 12, 4, 1);
    s.bus.config_write(s.at, at + 16, 1, 1);
    assert_eq!(s.memory.read(MODERN + 20, 1), 1);
    assert_eq!(s.bus.config_read(s.at, at + 16, 1), 1);
}

#[test]
fn saved_registers_come_back_and_the_device_gets_its_queues_again() {
    let s = plugged(false);
    let m = &s.memory;
    initialise(|at, size| m.read(MODERN + at, size), |at, size, v| m.write(MODERN + at, size, v));
    let before = s.probe.take_log();
    let state = s.core.save();
    let other = plugged(false);
    other.core.load(&state).unwrap();
    assert_eq!(other.core.save(), state);
    assert_eq!(other.probe.take_log(), before);
    let newer = crate::CoreState { version: 2, ..state.clone() };
    assert!(other.core.load(&newer).unwrap_err().to_string().contains("version 2"));
    let fewer = crate::CoreState { queues: vec![], ..state };
    assert!(other.core.load(&fewer).unwrap_err().to_string().contains("0 queues"));
}

fn capability(s: &Slot, id: u32) -> (u16, u32) {
    let mut at = s.bus.config_read(s.at, 0x34, 1) as u16;
    while s.bus.config_read(s.at, at, 1) != id {
        at = s.bus.config_read(s.at, at + 1, 1) as u16;
        assert_ne!(at, 0);
    }
    (at, s.bus.config_read(s.at, at + 3, 1))
}

fn last_vendor_capability(s: &Slot) -> (u16, u32) {
    let mut at = s.bus.config_read(s.at, 0x34, 1) as u16;
    loop {
        if s.bus.config_read(s.at, at, 1) == 9 && s.bus.config_read(s.at, at + 3, 1) == 5 {
            return (at, 5);
        }
        at = s.bus.config_read(s.at, at + 1, 1) as u16;
        assert_ne!(at, 0);
    }
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_makes_a_transport_panic(
        accesses in prop::collection::vec((any::<bool>(), 0u64..0x4000, 0u32..4, any::<u64>()), 1..200)
    ) {
        let s = plugged(true);
        let (registers, _core) = mmio::registers("probe-device", 4, s.probe.clone(), Box::new(|_| {}));
        for (write, at, shift, value) in accesses {
            let size = 1u8 << shift;
            // Half of the accesses go where the registers are dense.
            let at = if value & 1 == 0 { at % 64 } else { at };
            if write {
                s.memory.write(MODERN + at, size, value);
                s.ports.write(LEGACY + at % 128, size.min(4), value);
                registers.write(at % mmio::LEN, size, value);
                s.bus.config_write(s.at, (at % 256) as u16 & !3, 4, value as u32);
            } else {
                s.memory.read(MODERN + at, size);
                s.ports.read(LEGACY + at % 128, size.min(4));
                registers.read(at % mmio::LEN, size);
                s.bus.config_read(s.at, (at % 256) as u16 & !3, 4);
            }
        }
    }
}
