//! The board's functions on a bus, driven through ports as a guest does.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cardcage_memory::AddressSpace;
use proptest::prelude::*;

use super::*;
use crate::intx::tests::Recorder;
use crate::msix::tests::Inbox;
use crate::{Devfn, I440fx, PciBus, Piix3};

#[derive(Default)]
struct Power {
    now: AtomicU64,
    timer: Mutex<Option<u64>>,
    offs: AtomicUsize,
    suspends: AtomicUsize,
    wakes: AtomicUsize,
}

impl PowerSink for Power {
    fn now_ns(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }
    fn set_timer(&self, deadline_ns: Option<u64>) {
        *lock(&self.timer) = deadline_ns;
    }
    fn power_off(&self) {
        self.offs.fetch_add(1, Ordering::SeqCst);
    }
    fn suspend(&self) {
        self.suspends.fetch_add(1, Ordering::SeqCst);
    }
    fn wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
    }
}

type MapChanges = Vec<([u8; 7], u8)>;

struct Board {
    ports: Arc<AddressSpace>,
    gsis: Arc<Recorder>,
    power: Arc<Power>,
    bus: Arc<PciBus>,
    pm: Arc<Piix4Pm>,
    router: Arc<InterruptRouter>,
    pam: Arc<Mutex<MapChanges>>,
}

const BRIDGE: Devfn = Devfn::from_byte(0);
const ISA: Devfn = Devfn::from_byte(1 << 3);
const PM: Devfn = Devfn::from_byte(1 << 3 | 3);

fn board(base: Option<u16>) -> Board {
    let ports = Arc::new(AddressSpace::new());
    let gsis = Arc::new(Recorder::default());
    let router = InterruptRouter::new(gsis.clone());
    let memory = Arc::new(AddressSpace::new());
    let bus = PciBus::new(memory, ports.clone(), router.clone(), Arc::new(Inbox::default()));
    let power = Arc::new(Power::default());
    let pam = Arc::new(Mutex::new(Vec::new()));
    let seen = pam.clone();
    bus.add(Some(BRIDGE), I440fx::function(Box::new(move |pam, smram| lock(&seen).push((pam, smram))))).unwrap();
    bus.add(Some(ISA), Piix3::function(router.clone(), [10, 10, 11, 11])).unwrap();
    let (pm, function) = Piix4Pm::new(PmOptions { base }, router.clone(), power.clone());
    bus.add(Some(PM), function).unwrap();
    Board { ports, gsis, power, bus, pm, router, pam }
}

#[test]
fn the_three_functions_are_who_they_should_be() {
    let board = board(None);
    let ids: Vec<u32> = [BRIDGE, ISA, PM].map(|at| board.bus.config_read(at, 0, 4)).into();
    assert_eq!(ids, [0x1237_8086, 0x7000_8086, 0x7113_8086]);
    assert_eq!(board.bus.config_read(BRIDGE, 4, 4), 0x0280_0006);
    assert_eq!(board.bus.config_read(ISA, 8, 4), 0x0601_0000);
    assert_eq!(board.bus.config_read(ISA, 0xe, 1), 0x80);
    assert_eq!(board.bus.config_read(PM, 8, 4), 0x0680_0003);
}

#[test]
fn pirq_routing_registers_move_interrupts() {
    let board = board(None);
    assert_eq!(board.bus.config_read(ISA, 0x60, 4), 0x0b0b_0a0a);
    board.bus.config_write(ISA, 0x61, 1, 5);
    assert_eq!(board.router.gsi(1), Some(5));
    board.bus.config_write(ISA, 0x60, 4, 0x8080_8080);
    assert_eq!([0, 1, 2, 3].map(|pirq| board.router.gsi(pirq)), [None; 4]);
    board.bus.reset();
    assert_eq!([0, 1, 2, 3].map(|pirq| board.router.gsi(pirq)), [Some(10), Some(10), Some(11), Some(11)]);
}

#[test]
fn pam_registers_are_kept_and_told() {
    let board = board(None);
    board.bus.config_write(BRIDGE, 0x59, 4, 0xffff_ffff);
    board.bus.config_write(BRIDGE, 0x72, 1, 0x0a);
    board.bus.config_write(BRIDGE, 0x50, 1, 1);
    assert_eq!(
        lock(&board.pam).as_slice(),
        [([0x30, 0x33, 0x33, 0x33, 0, 0, 0], 2), ([0x30, 0x33, 0x33, 0x33, 0, 0, 0], 0x0a)]
    );
    board.bus.reset();
    assert_eq!(lock(&board.pam).last(), Some(&([0; 7], 2)));
}

#[test]
fn the_pm_block_is_where_pmbase_says() {
    let board = board(None);
    assert_eq!(board.ports.read(0x604, 2), 0xffff);
    board.bus.config_write(PM, 0x40, 4, 0x601);
    board.bus.config_write(PM, 0x80, 1, 1);
    assert_eq!(board.ports.read(0x604, 2), 0);
    board.bus.config_write(PM, 0x40, 4, 0xb000);
    assert_eq!((board.ports.read(0x604, 2), board.ports.read(0xb004, 2)), (0xffff, 0));
    board.bus.reset();
    assert_eq!(board.ports.read(0xb004, 2), 0xffff);
    assert_eq!(self::board(Some(0x600)).ports.read(0x604, 2), 0);
}

#[test]
fn the_power_button_reaches_a_guest_that_has_switched_acpi_on() {
    let board = board(Some(0x600));
    board.pm.press_power_button();
    assert_eq!(board.ports.read(0x600, 2), 0);
    board.ports.write(0xb2, 1, 0xf1);
    board.ports.write(0x602, 2, 0x100);
    board.pm.press_power_button();
    assert_eq!((board.ports.read(0x600, 2), board.gsis.take()), (0x100, vec![(9, true)]));
    board.ports.write(0x600, 2, 0x100);
    assert_eq!(board.gsis.take(), [(9, false)]);
}

#[test]
fn s5_powers_off_and_s3_sleeps_until_woken() {
    let board = board(Some(0x600));
    board.ports.write(0x604, 2, 0x2000);
    assert_eq!(board.power.offs.load(Ordering::SeqCst), 1);
    board.pm.wake();
    assert_eq!(board.power.wakes.load(Ordering::SeqCst), 0);
    board.ports.write(0x604, 2, 0x2400);
    assert!(board.pm.is_suspended() && board.power.suspends.load(Ordering::SeqCst) == 1);
    board.pm.press_power_button();
    assert_eq!((board.power.wakes.load(Ordering::SeqCst), board.ports.read(0x600, 2)), (1, 0x8100));
    assert!(!board.pm.is_suspended());
}

#[test]
fn the_timer_interrupts_at_its_carry() {
    let board = board(Some(0x600));
    board.ports.write(0xb2, 1, 0xf1);
    board.ports.write(0x602, 2, 1);
    let deadline = lock(&board.power.timer).take().unwrap();
    board.power.now.store(deadline, Ordering::SeqCst);
    board.pm.timer_expired();
    assert_eq!((board.gsis.take(), *lock(&board.power.timer)), (vec![(9, true)], None));
    board.ports.write(0x600, 2, 1);
    assert_eq!(board.gsis.take(), [(9, false)]);
    assert!(lock(&board.power.timer).unwrap() > deadline);
}

#[test]
fn gpes_raise_the_sci_once_enabled() {
    let board = board(Some(0x600));
    board.ports.write(0xb2, 1, 0xf1);
    board.pm.raise_gpe(1);
    board.pm.raise_gpe(200);
    assert_eq!((board.ports.read(0xafe0, 1), board.gsis.take()), (2, vec![]));
    board.ports.write(0xafe2, 1, 2);
    board.ports.write(0xafe0, 1, 2);
    assert_eq!(board.gsis.take(), [(9, true), (9, false)]);
}

#[test]
fn saved_registers_come_back_and_newer_ones_are_refused() {
    let from = board(Some(0x600));
    from.ports.write(0xb2, 1, 0xf1);
    from.ports.write(0x602, 2, 0x101);
    from.pm.press_power_button();
    let state = from.pm.save();
    let to = board(Some(0x600));
    to.pm.restore(&state).unwrap();
    assert_eq!((to.ports.read(0x600, 4), to.ports.read(0x604, 2)), (0x0101_0100, 1));
    assert_eq!((to.gsis.take(), lock(&to.power.timer).is_some()), (vec![(9, true)], true));
    let newer = PmState { version: 2, ..state };
    assert!(to.pm.restore(&newer).unwrap_err().to_string().contains("version 2"));
}

proptest! {
    #[test]
    fn any_port_and_config_access_is_survived(
        accesses in prop::collection::vec((0u8..3, any::<u16>(), 0usize..3, any::<u32>(), any::<u64>()), 1..200),
    ) {
        let board = board(Some(0x600));
        for (which, offset, size, value, now) in accesses {
            let size = [1, 2, 4][size];
            board.power.now.store(now, Ordering::SeqCst);
            board.bus.config_write([BRIDGE, ISA, PM][usize::from(which)], offset % 260, size, value);
            let base = [0x600, 0xafe0, 0xb0][usize::from(which)];
            board.ports.write(base + u64::from(offset % 64), size, value.into());
            board.ports.read(base + u64::from(offset % 64), size);
            board.pm.timer_expired();
        }
    }
}
