//! A bus with functions, driven through configuration ports as a guest does.

use std::sync::atomic::{AtomicUsize, Ordering};

use cardcage_memory::IoHandler;
use proptest::prelude::*;

use super::*;
use crate::intx::tests::Recorder;
use crate::msix::tests::Inbox;
use crate::registers as reg;
use crate::{BarKind, ConfigPorts, Identity, Intx, Msix, MsixLayout, PciHook, Pin, ResetControl};

/// Reads give the tag and the offset.
struct Tag(u64);
impl IoHandler for Tag {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.0 << 16 | offset
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64) {}
}

struct Board {
    memory: Arc<AddressSpace>,
    ports: Arc<AddressSpace>,
    gsis: Arc<Recorder>,
    messages: Arc<Inbox>,
    bus: Arc<PciBus>,
    resets: Arc<AtomicUsize>,
    config: Arc<ConfigPorts>,
}

impl Board {
    fn new() -> Self {
        let (memory, ports) = (Arc::new(AddressSpace::new()), Arc::new(AddressSpace::new()));
        let (gsis, messages) = (Arc::new(Recorder::default()), Arc::new(Inbox::default()));
        let router = InterruptRouter::new(gsis.clone());
        (0..4).for_each(|pirq| router.set_route(pirq, 5));
        let bus = PciBus::new(memory.clone(), ports.clone(), router, messages.clone());
        let resets = Arc::new(AtomicUsize::new(0));
        let counter = resets.clone();
        let reset = ResetControl::new(Box::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        }));
        let config = ConfigPorts::new(bus.clone(), reset);
        config.map(&ports).unwrap();
        Self { memory, ports, gsis, messages, bus, resets, config }
    }

    fn config_write(&self, at: Devfn, offset: u16, size: u8, value: u32) {
        self.ports.write(0xcf8, 4, 1 << 31 | u64::from(at.byte()) << 8 | u64::from(offset & 0xfc));
        self.ports.write(0xcfc + u64::from(offset & 3), size, value.into());
    }

    fn config_read(&self, at: Devfn, offset: u16, size: u8) -> u32 {
        self.ports.write(0xcf8, 4, 1 << 31 | u64::from(at.byte()) << 8 | u64::from(offset & 0xfc));
        self.ports.read(0xcfc + u64::from(offset & 3), size) as u32
    }
}

fn at(slot: u8, function: u8) -> Devfn {
    Devfn::new(slot, function).unwrap()
}

fn identity() -> Identity {
    Identity { vendor: 0x1af4, device: 0x1041, class: 0x02_00_00, ..Identity::default() }
}

fn plain(name: &str, id: Option<&str>) -> Arc<PciFunction> {
    let mut builder = PciFunction::builder(name, identity());
    builder.id(id);
    builder.build()
}

/// I/O BAR 0, memory BAR 1 with MSI-X, 64-bit BAR 4, INTA.
fn device(tag: u64) -> (Arc<PciFunction>, Arc<Intx>, Arc<Msix>) {
    let line = Intx::new();
    let msix = Msix::new("dev", MsixLayout::exclusive(4, 1).0).unwrap();
    let mut builder = PciFunction::builder("dev", identity());
    builder.bar(0, BarKind::Io, 0x20, Arc::new(Tag(tag))).unwrap();
    builder.bar(4, BarKind::Memory64 { prefetchable: true }, 0x4000, Arc::new(Tag(tag + 1))).unwrap();
    builder.msix(msix.clone()).unwrap().intx(Pin::A, line.clone());
    (builder.build(), line, msix)
}

#[test]
fn bars_follow_the_command_register_and_their_addresses_at_once() {
    let board = Board::new();
    let here = board.bus.add(None, device(1).0).unwrap();
    board.config_write(here, 0x10, 4, 0xc000);
    assert_eq!(board.ports.read(0xc004, 4), 0xffff_ffff);
    board.config_write(here, reg::COMMAND, 2, 3);
    assert_eq!(board.ports.read(0xc004, 4), 1 << 16 | 4);
    board.config_write(here, 0x20, 4, 0xe000_0000);
    assert_eq!(board.memory.read(0xe000_3fff, 1), 2 << 16 | 0x3fff);
    board.config_write(here, 0x24, 4, 1);
    assert_eq!(board.memory.read(0xe000_0000, 1), 0xff);
    assert_eq!(board.memory.read(0x1_e000_0000, 1), 2 << 16);
    board.config_write(here, 0x10, 2, 0xd000);
    assert_eq!((board.ports.read(0xc004, 1), board.ports.read(0xd004, 1)), (0xff, 1 << 16 | 4));
    board.config_write(here, reg::COMMAND, 2, 0);
    assert_eq!((board.ports.read(0xd004, 1), board.memory.ranges().len()), (0xff, 0));
}

#[test]
fn a_removed_function_leaves_nothing_behind() {
    let board = Board::new();
    let (function, line, _) = device(1);
    let here = board.bus.add(Some(at(7, 0)), function.clone()).unwrap();
    board.config_write(here, 0x10, 4, 0xc000);
    board.config_write(here, reg::COMMAND, 2, 3);
    line.set_level(true);
    assert_eq!(board.gsis.take(), [(5, true)]);
    assert!(board.bus.remove(here).is_some() && board.bus.remove(here).is_none());
    assert_eq!(board.gsis.take(), [(5, false)]);
    assert_eq!(board.ports.read(0xc000, 2), 0xffff);
    assert_eq!(board.config_read(here, 0, 4), 0xffff_ffff);
    let err = board.bus.add(None, function).unwrap_err();
    assert_eq!(err.to_string(), "PCI: dev was added to a bus before; build a new function for it");
}

#[test]
fn places_that_are_taken_are_refused_in_qemus_words() {
    let board = Board::new();
    let add = |at, function| board.bus.add(at, function).map_err(|e| e.to_string());
    assert_eq!(add(Some(at(3, 0)), plain("e1000", Some("x"))), Ok(at(3, 0)));
    assert_eq!(
        add(Some(at(3, 0)), plain("virtio-blk-pci", None)).unwrap_err(),
        "PCI: slot 3 function 0 not available for virtio-blk-pci, in use by e1000,id=x"
    );
    assert_eq!(
        add(Some(at(3, 1)), plain("virtio-blk-pci", None)).unwrap_err(),
        "PCI: single function device can't be populated in function 3.1"
    );
    assert_eq!(
        board.bus.plug(Some(at(3, 1)), plain("virtio-blk-pci", None)).unwrap_err().to_string(),
        "PCI: slot 3 function 0 already occupied by e1000, new func virtio-blk-pci cannot be exposed to guest."
    );
    assert_eq!(add(Some(at(9, 2)), plain("nic", None)), Ok(at(9, 2)));
    assert_eq!(
        add(Some(at(9, 0)), plain("nic", None)).unwrap_err(),
        "PCI: 9.0 indicates single function, but 9.2 is already populated."
    );
    for _ in 0..31 - 1 {
        add(None, plain("rng", None)).unwrap();
    }
    let mut both = PciFunction::builder("nic", identity());
    both.multifunction();
    assert_eq!(add(None, both.build()), Ok(at(9, 0)));
    assert_eq!(
        add(None, plain("rng", None)).unwrap_err(),
        "PCI: no slot/function available for rng, all in use or reserved"
    );
}

#[test]
fn config_ports_answer_as_the_i440fx_does() {
    let board = Board::new();
    let here = board.bus.add(None, device(1).0).unwrap();
    board.ports.write(0xcf8, 4, 0xffff_ffff);
    assert_eq!(board.ports.read(0xcf8, 4), 0x80ff_fffc);
    assert_eq!(board.ports.read(0xcfc, 4), 0xffff_ffff);
    board.ports.write(0xcf8, 2, 0);
    assert_eq!((board.ports.read(0xcf8, 4), board.ports.read(0xcf8, 2)), (0x80ff_fffc, 0xffff));
    assert_eq!(board.config_read(here, 2, 2), 0x1041);
    assert_eq!(board.ports.read(0xcfd, 2), 0x411a);
    assert_eq!(board.ports.read(0xcff, 2), 0xff10);
    board.ports.write(0xcf8, 4, u64::from(here.byte()) << 8);
    assert_eq!(board.ports.read(0xcfc, 2), 0xffff);
    board.ports.write(0xcf9, 1, 2);
    assert_eq!((board.ports.read(0xcf9, 1), board.resets.load(Ordering::SeqCst)), (2, 0));
    board.ports.write(0xcf9, 1, 6);
    assert_eq!(board.resets.load(Ordering::SeqCst), 1);
    board.config.reset();
    assert_eq!((board.ports.read(0xcf9, 1), board.ports.read(0xcf8, 4)), (0, 0));
}

#[test]
fn the_status_register_shows_the_line_and_the_command_register_silences_it() {
    let board = Board::new();
    let (function, line, _) = device(1);
    let here = board.bus.add(None, function).unwrap();
    line.set_level(true);
    assert_eq!(board.config_read(here, reg::STATUS, 2) & 8, 8);
    assert_eq!(board.config_read(here, reg::COMMAND, 4) >> 16 & 8, 8);
    assert_eq!(board.config_read(here, reg::COMMAND, 2) & 8, 0);
    board.config_write(here, reg::COMMAND, 2, 0x400);
    assert_eq!(board.gsis.take(), [(5, true), (5, false)]);
    board.bus.reset();
    assert_eq!(board.config_read(here, reg::STATUS, 2) & 8, 0);
}

#[test]
fn msix_works_through_config_space_and_bar() {
    let board = Board::new();
    let (function, _, msix) = device(1);
    let here = board.bus.add(None, function).unwrap();
    board.config_write(here, 0x14, 4, 0xe100_0000);
    board.config_write(here, reg::COMMAND, 2, 6);
    let capability = board.config_read(here, 0x34, 1) as u16;
    assert_eq!(board.config_read(here, capability, 4), 0x0003_0011);
    assert_eq!(board.config_read(here, capability + 4, 4), 1);
    board.memory.write(0xe100_0010, 4, 0x10_0000);
    board.memory.write(0xe100_0018, 4, 0x1234_5678);
    board.memory.write(0xe100_001c, 4, 0);
    assert!(!msix.fire(1));
    board.config_write(here, capability + 2, 2, 0xc000);
    assert!(msix.fire(1) && msix.is_masked(1));
    assert_eq!(board.messages.take(), []);
    board.config_write(here, capability + 2, 2, 0x8000);
    assert_eq!(board.messages.take(), [(0x10_0000, 0x1234_5678)]);
    board.bus.reset();
    assert!(!msix.is_enabled() && msix.is_masked(1));
}

/// A capability that is a window, and a counter of events.
#[derive(Default)]
struct Hook {
    written: AtomicUsize,
    resets: AtomicUsize,
}
impl PciHook for Hook {
    fn config_read(&self, _function: &PciFunction, offset: u16, size: u8) -> Option<u32> {
        (offset == 0x50).then_some(u32::from(size))
    }
    fn config_written(&self, function: &PciFunction, offset: u16, _size: u8) {
        self.written.fetch_add(usize::from(offset), Ordering::SeqCst);
        function.set_config(0x60, &[7]);
    }
    fn reset(&self, _function: &PciFunction) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_hook_hears_of_writes_and_reset_and_may_answer_reads() {
    let board = Board::new();
    let hook = Arc::new(Hook::default());
    let mut builder = PciFunction::builder("x", identity());
    builder.hook(hook.clone());
    let here = board.bus.add(None, builder.build()).unwrap();
    assert_eq!(board.config_read(here, 0x50, 2), 2);
    board.config_write(here, 0x44, 4, 0);
    assert_eq!((hook.written.load(Ordering::SeqCst), board.config_read(here, 0x60, 1)), (0x44, 7));
    board.bus.reset();
    assert_eq!((hook.resets.load(Ordering::SeqCst), board.config_read(here, 0x60, 1)), (1, 0));
}

#[test]
fn state_comes_back_in_another_machine() {
    let (from, to) = (Board::new(), Board::new());
    let (function, line, msix) = device(1);
    let here = from.bus.add(None, function).unwrap();
    from.config_write(here, 0x10, 4, 0xc000);
    from.config_write(here, 0x14, 4, 0xe100_0000);
    from.config_write(here, reg::COMMAND, 2, 7);
    from.config_write(here, 0x42, 2, 0x8000);
    from.memory.write(0xe100_0000, 8, 0x5000);
    assert!(msix.fire(0));
    line.set_level(true);
    let state = from.bus.function(here).unwrap().save();
    let text = serde_json::to_string(&state).unwrap();

    let (function, _, msix) = device(1);
    to.bus.add(Some(here), function).unwrap();
    assert_eq!(to.bus.restore(here, &serde_json::from_str(&text).unwrap()), Ok(true));
    assert_eq!(to.ports.read(0xc001, 1), 1 << 16 | 1);
    assert_eq!(to.gsis.take(), [(5, true)]);
    assert!(msix.is_enabled());
    to.memory.write(0xe100_000c, 4, 0);
    assert_eq!(to.messages.take(), [(0x5000, 0)]);
    assert_eq!(to.bus.function(here).unwrap().save().config, state.config);
}

#[test]
fn state_that_does_not_fit_is_refused_and_changes_nothing() {
    let board = Board::new();
    let here = board.bus.add(None, device(1).0).unwrap();
    let good = board.bus.function(here).unwrap().save();
    let refuse = |change: &dyn Fn(&mut FunctionState)| {
        let mut bad = good.clone();
        bad.config[0x3c] = 0x55;
        change(&mut bad);
        let text = board.bus.restore(here, &bad).unwrap_err().to_string();
        assert_eq!(board.bus.function(here).unwrap().save(), good);
        text
    };
    assert!(refuse(&|s| s.version = 2).contains("has version 2, this program reads up to version 1"));
    assert!(refuse(&|s| s.config[2] = 0).contains("differs at offset 0x2: saved 0x00, here 0x41"));
    assert!(refuse(&|s| s.config.truncate(9)).contains("configuration space has 9 bytes, 256"));
    assert!(refuse(&|s| s.msix = None).contains("is missing from the saved state"));
}

#[test]
fn msix_in_a_bar_that_is_too_small_or_io_is_refused() {
    let msix = Msix::new("x", MsixLayout { vectors: 4, table_bar: 0, table_offset: 0, pba_bar: 0, pba_offset: 0x40 });
    let msix = msix.unwrap();
    for (kind, size) in [(BarKind::Io, 0x100), (BarKind::Memory32 { prefetchable: false }, 0x40)] {
        let mut builder = PciFunction::builder("x", identity());
        builder.bar(0, kind, size, Arc::new(Tag(0))).unwrap();
        let text = builder.msix(msix.clone()).err().map(|e| e.to_string());
        assert_eq!(text.as_deref(), Some("PCI: x: MSI-X table or PBA is not inside a memory BAR"));
    }
}

#[derive(Debug, Clone)]
enum Access {
    Config(u8, u16, u8, u32),
    Port(u16, u8, u32),
    Memory(u64, u8, u64),
    Fire(u16),
    Line(bool),
}

fn access() -> impl Strategy<Value = Access> {
    let size = prop::sample::select(vec![1u8, 2, 4]);
    let interesting = prop::sample::select(vec![0, 0xc000, 0xc010, 0xe000_0000, 0xe000_1000, 0xffff_ffff, 0xcf8, 7]);
    prop_oneof![
        4 => (0u8..4, 0u16..0x60, size.clone(), prop_oneof![interesting, any::<u32>()])
            .prop_map(|(slot, offset, size, value)| Access::Config(slot, offset, size, value)),
        1 => (any::<u16>(), size, any::<u32>()).prop_map(|(port, size, value)| Access::Port(port, size, value)),
        1 => (0xe000_0000u64..0xe000_2000, prop::sample::select(vec![1u8, 2, 4, 8]), any::<u64>())
            .prop_map(|(addr, size, value)| Access::Memory(addr, size, value)),
        1 => (0u16..6).prop_map(Access::Fire),
        1 => any::<bool>().prop_map(Access::Line),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_moves_the_config_ports(accesses in prop::collection::vec(access(), 1..200)) {
        let board = Board::new();
        let devices: Vec<_> = (1..4).map(device).collect();
        for (function, _, _) in &devices {
            board.bus.add(None, function.clone()).unwrap();
        }
        for access in accesses {
            match access {
                Access::Config(slot, offset, size, value) => {
                    board.config_write(at(slot, 0), offset, size, value);
                    board.config_read(at(slot, 0), offset, size);
                }
                Access::Port(port, size, value) => {
                    board.ports.write(port.into(), size, value.into());
                    board.ports.read(port.into(), size);
                }
                Access::Memory(addr, size, value) => {
                    board.memory.write(addr, size, value);
                    board.memory.read(addr, size);
                }
                Access::Fire(vector) => { devices[0].2.fire(vector); }
                Access::Line(level) => devices[1].1.set_level(level),
            }
            prop_assert_eq!(board.config_read(at(0, 0), 0, 4), 0x1041_1af4);
            for slot in 0..3 {
                let function = board.bus.function(at(slot, 0)).unwrap();
                let state = function.save();
                prop_assert!(function.check(&state).is_ok());
            }
        }
    }
}
