use super::*;
use cardcage_accel::{ApicEvent, LocalApic, VcpuSignal};
use cardcage_memory::AddressSpace;
use std::sync::Mutex;

struct Machine {
    clock: VirtualClock,
    irqchip: Arc<Irqchip>,
    ports: AddressSpace,
    memory: AddressSpace,
}

fn machine(cpus: u32) -> Machine {
    let clock = VirtualClock::manual();
    let irqchip = Irqchip::new(&clock, &(0..cpus).collect::<Vec<_>>());
    let (ports, memory) = (AddressSpace::new(), AddressSpace::new());
    irqchip.map(&ports, &memory).unwrap();
    Machine { clock, irqchip, ports, memory }
}

impl Machine {
    fn lapic(&self, index: usize) -> &Lapic {
        self.irqchip.lapic(index).unwrap()
    }

    /// As firmware does: vectors 0x08 and 0x70, masks as given.
    fn set_up_pic(&self, masks: [u64; 2]) {
        for (port, base, cascade, mask) in [(0x20, 0x08, 4, masks[0]), (0xa0, 0x70, 2, masks[1])] {
            self.ports.write(port, 1, 0x11);
            [base, cascade, 1, mask].iter().for_each(|&v| self.ports.write(port + 1, 1, v));
        }
    }

    fn route(&self, pin: u64, low: u64) {
        for (register, value) in [(0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)] {
            self.memory.write(IOAPIC_ADDRESS, 4, register);
            self.memory.write(IOAPIC_ADDRESS + 0x10, 4, value);
        }
    }
}

#[test]
fn the_timer_reaches_the_boot_processor_through_the_8259_after_power_on() {
    let m = machine(2);
    let signal = Arc::new(VcpuSignal::new(None));
    m.lapic(0).connect(signal.clone());
    signal.take_attention();
    m.set_up_pic([0xfe, 0xff]);
    m.ports.write(0x43, 1, 0x34);
    m.ports.write(0x40, 1, 0x9c);
    m.ports.write(0x40, 1, 0x2e);
    assert_eq!(m.lapic(0).pending(true), Some(ApicEvent::Interrupt));
    assert_eq!((m.lapic(0).acknowledge(), m.lapic(1).pending(true)), (Some(0x08), None));
    m.ports.write(0x20, 1, 0x20);
    signal.take_attention();
    assert_eq!(m.lapic(0).pending(true), None);
    m.clock.step(10_100_000).unwrap();
    assert!(signal.take_attention());
    assert_eq!(m.lapic(0).acknowledge(), Some(0x08));
}

#[test]
fn isa_interrupts_reach_both_controllers_and_the_timer_has_pin_two() {
    let m = machine(1);
    m.set_up_pic([0x00, 0x00]);
    m.lapic(0).mmio_write(0xf0, 0x1ff);
    m.lapic(0).mmio_write(0x350, 0x1_0000);
    m.route(2, 0x30);
    m.route(4, 0x34);
    m.irqchip.set_gsi(0, true);
    m.irqchip.set_gsi(4, true);
    assert_eq!(m.lapic(0).acknowledge(), Some(0x34));
    m.lapic(0).mmio_write(0xb0, 0);
    assert_eq!(m.lapic(0).acknowledge(), Some(0x30));
    assert_eq!(m.irqchip.pic().acknowledge(), 0x08);
}

#[test]
fn gsis_above_15_reach_the_io_apic_only() {
    let m = machine(1);
    m.set_up_pic([0x00, 0x00]);
    m.lapic(0).mmio_write(0xf0, 0x1ff);
    m.route(18, 0x8052);
    for gsi in [18, 24, 1000] {
        m.irqchip.set_gsi(gsi, true);
    }
    assert!(!m.irqchip.pic().output());
    assert_eq!(m.lapic(0).acknowledge(), Some(0x52));
}

#[test]
fn message_signalled_interrupts_carry_destination_vector_and_mode() {
    let m = machine(2);
    (0..2).for_each(|i| m.lapic(i).mmio_write(0xf0, 0x1ff));
    m.irqchip.send_msi(0xfee0_1000, 0x4051);
    m.irqchip.send_msi(0xfee0_0000, 0x0400);
    m.irqchip.send_msi(0x1_fee0_0000, 0x4052);
    m.irqchip.send_msi(0xfee0_0000, 0x8053);
    m.irqchip.send_msi(0xfee0_1020, 0x4054);
    assert_eq!((m.lapic(1).acknowledge(), m.lapic(1).acknowledge()), (Some(0x51), None));
    assert_eq!((m.lapic(0).pending(false), m.lapic(0).acknowledge()), (Some(ApicEvent::Nmi), None));
}

#[test]
fn a_local_apic_beyond_255_is_reached_by_the_extended_destination() {
    let clock = VirtualClock::manual();
    let irqchip = Irqchip::new(&clock, &[0, 0x101]);
    let lapic = irqchip.lapic(1).unwrap();
    lapic.mmio_write(0xf0, 0x1ff);
    irqchip.send_msi(0xfee0_1020, 0x4051);
    assert_eq!(lapic.acknowledge(), Some(0x51));
}

#[test]
fn observers_hear_of_changes_only_and_by_gsi() {
    let m = machine(1);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = heard.clone();
    assert!(m.irqchip.observe_inputs(move |gsi, level| log.lock().unwrap().push((gsi, level))));
    assert!(!m.irqchip.observe_inputs(|_, _| ()));
    for (gsi, level) in [(8, true), (8, true), (0, true), (14, false), (8, false), (30, true)] {
        m.irqchip.set_gsi(gsi, level);
    }
    assert_eq!(*heard.lock().unwrap(), [(8, true), (0, true), (8, false)]);
}

#[test]
fn the_nmi_line_needs_lint1() {
    let m = machine(1);
    m.irqchip.nmi();
    assert_eq!(m.lapic(0).pending(false), None);
    m.lapic(0).mmio_write(0xf0, 0x1ff);
    m.lapic(0).mmio_write(0x360, 0x400);
    m.irqchip.nmi();
    assert_eq!(m.lapic(0).pending(false), Some(ApicEvent::Nmi));
}

#[test]
fn a_disabled_local_apic_passes_the_8259_through() {
    let m = machine(1);
    m.set_up_pic([0x00, 0x00]);
    m.lapic(0).mmio_write(0x350, 0x1_0000);
    m.irqchip.set_gsi(1, true);
    assert_eq!(m.lapic(0).pending(true), None);
    m.lapic(0).set_base(0xfee0_0100).unwrap();
    assert_eq!(m.lapic(0).acknowledge(), Some(0x09));
}

#[test]
fn the_8259_delivers_as_lint0_says() {
    let m = machine(1);
    m.set_up_pic([0x00, 0x00]);
    m.lapic(0).mmio_write(0xf0, 0x1ff);
    m.lapic(0).mmio_write(0x350, 0x31);
    m.irqchip.set_gsi(3, true);
    assert_eq!(m.lapic(0).acknowledge(), Some(0x31));
}

#[test]
fn saved_state_restores_the_levels_of_lines() {
    let m = machine(1);
    m.route(10, 0x8050);
    m.irqchip.set_gsi(10, true);
    m.irqchip.set_gsi(20, true);
    let saved = m.irqchip.save();
    let other = machine(1);
    let heard = Arc::new(Mutex::new(0));
    let count = heard.clone();
    other.irqchip.observe_inputs(move |_, _| *count.lock().unwrap() += 1);
    other.irqchip.restore(&saved).unwrap();
    assert_eq!(other.irqchip.save(), saved);
    other.irqchip.set_gsi(10, true);
    other.irqchip.set_gsi(20, true);
    assert_eq!(*heard.lock().unwrap(), 0);
}

#[test]
fn state_of_a_newer_version_is_refused_by_name() {
    let m = machine(1);
    let mut saved = m.irqchip.save();
    saved.ioapic.version = 2;
    let refused = m.irqchip.restore(&saved).unwrap_err();
    assert_eq!(refused.to_string(), "saved state of the I/O APIC has version 2; this program knows version 1");
}

#[test]
fn a_reset_forgets_all_but_the_levels_of_lines() {
    let m = machine(2);
    m.set_up_pic([0, 0]);
    m.route(10, 0x50);
    m.irqchip.set_gsi(10, true);
    m.lapic(1).mmio_write(0xf0, 0x1ff);
    m.irqchip.reset();
    let mut expected = IrqchipState::default();
    expected.ioapic.pins = 1 << 10;
    expected.pic.chips[1].lines = 1 << 2;
    assert_eq!(m.irqchip.save(), expected);
    assert_eq!(m.lapic(1).mmio_read(0xf0), 0xff);
}

#[test]
fn many_threads_can_raise_interrupts_at_once() {
    let m = machine(1);
    m.lapic(0).mmio_write(0xf0, 0x1ff);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let m = &m;
            scope.spawn(move || (0..48).for_each(|i| m.irqchip.send_msi(0xfee0_0000, 0x4030 + thread * 48 + i)));
        }
    });
    let mut vectors = 0;
    while m.lapic(0).acknowledge().is_some() {
        m.lapic(0).mmio_write(0xb0, 0);
        vectors += 1;
    }
    assert_eq!(vectors, 192);
}
