use super::*;
use proptest::prelude::*;

const SVR: u32 = 0xf0;
const EOI: u32 = 0xb0;
const ESR: u32 = 0x280;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_ERROR: u32 = 0x370;
const INITIAL: u32 = 0x380;
const CURRENT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;
const X2APIC: u64 = BASE_ENABLE | BASE_X2APIC;

struct Machine {
    clock: VirtualClock,
    bus: Arc<ApicBus>,
    lapics: Vec<Arc<Lapic>>,
}

/// Local APICs with ids 0, 1, …, software enabled, with logical ids 1, 2, 4, … in the flat model.
fn machine(count: u32) -> Machine {
    let (clock, bus) = (VirtualClock::manual(), Arc::new(ApicBus::default()));
    let lapics: Vec<_> = (0..count).map(|id| Lapic::new(id, id == 0, &clock, &bus)).collect();
    for lapic in &lapics {
        lapic.connect(Arc::new(VcpuSignal::new(None)));
        lapic.mmio_write(SVR, 0x1ff);
        lapic.mmio_write(0xd0, 1 << (24 + lapic.id()));
        lapic.taken(ApicEvent::Startup(0));
        assert!(lapic.signal.get().unwrap().take_attention());
    }
    Machine { clock, bus, lapics }
}

fn send(from: &Lapic, destination: u32, low: u32) {
    from.mmio_write(ICR_HIGH, destination << 24);
    from.mmio_write(ICR_LOW, low);
}

fn receivers(machine: &Machine) -> Vec<u32> {
    let took = machine.lapics.iter().filter(|lapic| lapic.acknowledge().is_some());
    took.map(|lapic| lapic.id()).collect()
}

#[test]
fn fixed_interrupts_are_served_by_priority_and_ended_in_that_order() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    for vector in [0x31, 0x52, 0x35] {
        send(lapic, 0, vector);
    }
    assert!(lapic.signal.get().unwrap().take_attention());
    assert_eq!(lapic.pending(false), None);
    assert_eq!(lapic.pending(true), Some(ApicEvent::Interrupt));
    assert_eq!(lapic.acknowledge(), Some(0x52));
    assert_eq!((lapic.pending(true), lapic.acknowledge(), lapic.mmio_read(0xa0)), (None, None, 0x50));
    lapic.mmio_write(EOI, 0);
    assert_eq!(lapic.acknowledge(), Some(0x35));
    lapic.mmio_write(EOI, 0);
    assert_eq!((lapic.acknowledge(), lapic.mmio_read(0x110)), (Some(0x31), 1 << 17));
}

#[test]
fn the_end_of_one_interrupt_calls_for_attention_to_the_next() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    send(lapic, 0, 0x41);
    send(lapic, 0, 0x42);
    assert_eq!(lapic.acknowledge(), Some(0x42));
    lapic.signal.get().unwrap().take_attention();
    lapic.mmio_write(EOI, 0);
    assert!(lapic.signal.get().unwrap().take_attention());
}

#[test]
fn cr8_holds_back_lower_classes_and_calls_for_attention_when_lowered() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    lapic.set_cr8(5);
    send(lapic, 0, 0x5f);
    lapic.signal.get().unwrap().take_attention();
    assert_eq!((lapic.pending(true), lapic.cr8(), lapic.mmio_read(0x80)), (None, 5, 0x50));
    lapic.set_cr8(4);
    assert!(lapic.signal.get().unwrap().take_attention());
    assert_eq!(lapic.acknowledge(), Some(0x5f));
}

#[test]
fn destinations_and_shorthands_reach_whom_they_name() {
    let m = machine(3);
    let from = &m.lapics[1];
    let cases: [(u32, u32, &[u32]); 9] = [
        (2, 0x40, &[2]),
        (0xff, 0x40, &[0, 1, 2]),
        (9, 0x40, &[]),
        (0b101, 0x840, &[0, 2]),
        (0xff, 0x840, &[0, 1, 2]),
        (0, 0x40040, &[1]),
        (0, 0x80040, &[0, 1, 2]),
        (0, 0xc0040, &[0, 2]),
        (0x00, 0x840, &[]),
    ];
    for (destination, low, expected) in cases {
        send(from, destination, low);
        assert_eq!(receivers(&m), expected, "{destination:#x} {low:#x}");
        m.lapics.iter().for_each(|lapic| lapic.mmio_write(EOI, 0));
    }
}

#[test]
fn cluster_destinations_match_cluster_and_member() {
    let m = machine(3);
    for (lapic, ldr) in m.lapics.iter().zip([0x11, 0x12, 0x21]) {
        lapic.mmio_write(0xe0, 0x0fff_ffff);
        lapic.mmio_write(0xd0, ldr << 24);
    }
    let cases: [(u32, &[u32]); 4] = [(0x11, &[0]), (0x13, &[0, 1]), (0xf1, &[0, 2]), (0x31, &[])];
    for (destination, expected) in cases {
        send(&m.lapics[0], destination, 0x840);
        assert_eq!(receivers(&m), expected, "{destination:#x}");
        m.lapics.iter().for_each(|lapic| lapic.mmio_write(EOI, 0));
    }
}

#[test]
fn lowest_priority_goes_to_the_least_busy_and_equals_take_turns() {
    let m = machine(3);
    m.lapics[0].set_cr8(3);
    let mut took = Vec::new();
    for _ in 0..4 {
        send(&m.lapics[0], 0xff, 0x941);
        took.push(receivers(&m));
        m.lapics.iter().for_each(|lapic| lapic.mmio_write(EOI, 0));
    }
    assert_eq!(took, [[1], [2], [1], [2]]);
}

#[test]
fn x2apic_mode_has_wide_destinations_and_derived_logical_ids() {
    let m = machine(2);
    for lapic in &m.lapics {
        lapic.set_base(lapic.base() | X2APIC).unwrap();
        assert_eq!(lapic.mmio_read(0x20), u32::MAX);
    }
    assert_eq!(m.lapics[1].read_msr(0x802), Ok(1));
    assert_eq!(m.lapics[1].read_msr(0x80d), Ok(0b10));
    for (icr, expected) in
        [(1 << 32 | 0x40, vec![1]), (0x3 << 32 | 0x840, vec![0, 1]), (0xffff_ffff << 32 | 0x40, vec![0, 1])]
    {
        m.lapics[0].write_msr(0x830, icr).unwrap();
        assert_eq!(m.lapics[0].read_msr(0x830), Ok(icr));
        assert_eq!(receivers(&m), expected, "{icr:#x}");
        m.lapics.iter().for_each(|lapic| lapic.write_msr(0x80b, 0).unwrap());
    }
    m.lapics[0].write_msr(0x83f, 0x77).unwrap();
    assert_eq!(m.lapics[0].acknowledge(), Some(0x77));
}

#[test]
fn x2apic_registers_fault_on_reserved_bits_and_missing_registers() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    assert_eq!(lapic.read_msr(0x802), Err(GeneralProtection));
    lapic.set_base(lapic.base() | X2APIC).unwrap();
    let refused = [(0x802, 0), (0x80b, 1), (0x808, 0x100), (0x80d, 1), (0x80e, 0), (0x828, 1), (0x830, 1 << 20)];
    for (msr, value) in refused.into_iter().chain([(0x832, 1 << 19), (0x835, 1 << 17), (0x838, 1 << 32), (0x8ff, 0)]) {
        assert_eq!(lapic.write_msr(msr, value), Err(GeneralProtection), "{msr:#x} {value:#x}");
    }
    for msr in [0x800, 0x80b, 0x80e, 0x831, 0x83f, 0x840, 0x7ff, 0x900] {
        assert_eq!(lapic.read_msr(msr), Err(GeneralProtection), "{msr:#x}");
    }
}

#[test]
fn only_legal_changes_of_mode_are_taken() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    let off = lapic.base() & !BASE_ENABLE;
    let (xapic, x2apic) = (off | BASE_ENABLE, off | X2APIC);
    assert_eq!(lapic.set_base(off | BASE_X2APIC), Err(GeneralProtection));
    lapic.set_base(x2apic).unwrap();
    assert_eq!(lapic.set_base(xapic), Err(GeneralProtection));
    lapic.set_base(off).unwrap();
    assert_eq!(lapic.set_base(x2apic), Err(GeneralProtection));
    assert_eq!(lapic.set_base(xapic | 1), Err(GeneralProtection));
    lapic.set_base(xapic).unwrap();
    assert_eq!(lapic.mmio_read(SVR), 0xff);
}

#[test]
fn start_up_is_reported_only_after_init_and_once() {
    let m = machine(2);
    let (bsp, ap) = (&m.lapics[0], &m.lapics[1]);
    send(bsp, 1, 0x608);
    assert_eq!(ap.pending(true), None);
    send(bsp, 1, 0x4500);
    send(bsp, 1, 0x8500);
    send(bsp, 1, 0x608);
    assert_eq!(ap.pending(true), Some(ApicEvent::Init));
    ap.taken(ApicEvent::Init);
    assert_eq!((ap.pending(true), ap.mmio_read(SVR)), (Some(ApicEvent::Startup(8)), 0xff));
    ap.taken(ApicEvent::Startup(8));
    send(bsp, 1, 0x609);
    assert_eq!(ap.pending(true), None);
}

#[test]
fn an_nmi_comes_before_interrupts_and_needs_no_enabled_flag() {
    let m = machine(2);
    send(&m.lapics[1], 0, 0x40);
    send(&m.lapics[1], 0, 0x400);
    assert_eq!(m.lapics[0].pending(false), Some(ApicEvent::Nmi));
    m.lapics[0].taken(ApicEvent::Nmi);
    assert_eq!((m.lapics[0].pending(false), m.lapics[0].acknowledge()), (None, Some(0x40)));
}

#[test]
fn the_timer_interrupts_in_each_mode() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    lapic.mmio_write(DIVIDE, 0xb);
    lapic.mmio_write(LVT_TIMER, 0x40);
    lapic.mmio_write(INITIAL, 1000);
    m.clock.step(999).unwrap();
    assert_eq!((lapic.acknowledge(), lapic.mmio_read(CURRENT)), (None, 1));
    m.clock.step(1).unwrap();
    assert_eq!((lapic.acknowledge(), lapic.mmio_read(CURRENT)), (Some(0x40), 0));
    lapic.mmio_write(EOI, 0);

    lapic.mmio_write(LVT_TIMER, 0x2_0041);
    lapic.mmio_write(INITIAL, 50_000);
    for _ in 0..3 {
        m.clock.step(50_000).unwrap();
        assert_eq!(lapic.acknowledge(), Some(0x41));
        lapic.mmio_write(EOI, 0);
    }

    lapic.mmio_write(LVT_TIMER, 0x4_0042);
    assert_eq!(m.clock.next_deadline(), None);
    let deadline = m.clock.now() + 77;
    lapic.write_msr(MSR_TSC_DEADLINE, deadline).unwrap();
    assert_eq!(lapic.read_msr(MSR_TSC_DEADLINE), Ok(deadline));
    assert_eq!(m.clock.step_to_next(), Ok(deadline));
    assert_eq!((lapic.acknowledge(), lapic.read_msr(MSR_TSC_DEADLINE)), (Some(0x42), Ok(0)));
}

#[test]
fn a_masked_timer_counts_without_interrupting() {
    let m = machine(1);
    m.lapics[0].mmio_write(LVT_TIMER, 0x1_0040);
    m.lapics[0].mmio_write(INITIAL, 10);
    m.clock.step(100).unwrap();
    assert_eq!(m.lapics[0].acknowledge(), None);
}

#[test]
fn errors_show_in_esr_after_a_write_and_interrupt_once() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    lapic.mmio_write(LVT_ERROR, 0xfe);
    send(lapic, 0, 5);
    lapic.mmio_read(0x400);
    assert_eq!((lapic.acknowledge(), lapic.mmio_read(ESR)), (Some(0xfe), 0));
    lapic.mmio_write(ESR, 0);
    assert_eq!(lapic.mmio_read(ESR), 0xa0);
    lapic.mmio_write(ESR, 0);
    assert_eq!(lapic.mmio_read(ESR), 0);
}

#[test]
fn disabling_by_software_masks_all_sources() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    lapic.mmio_write(LVT_TIMER, 0x40);
    lapic.mmio_write(SVR, 0xff);
    lapic.mmio_write(LVT_LINT0, 0x700);
    assert_eq!((lapic.mmio_read(LVT_TIMER), lapic.mmio_read(LVT_LINT0)), (0x1_0040, 0x1_0700));
    send(lapic, 0, 0x40);
    assert_eq!(lapic.acknowledge(), None);
}

#[test]
fn a_saved_page_restores_everything_that_waits() {
    let m = machine(1);
    let lapic = &m.lapics[0];
    lapic.mmio_write(DIVIDE, 0);
    lapic.mmio_write(LVT_TIMER, 0x2_0040);
    lapic.mmio_write(INITIAL, 100_000);
    lapic.set_cr8(2);
    send(lapic, 0, 0x60);
    assert_eq!(lapic.acknowledge(), Some(0x60));
    send(lapic, 0, 0x70);
    send(lapic, 0, 0x400);
    send(lapic, 0, 5);
    m.clock.step(50_001).unwrap();
    let (page, base) = (lapic.save(), lapic.base());

    let other = machine(1);
    other.clock.set(9_000_000);
    let restored = &other.lapics[0];
    restored.restore(&page, base, false).unwrap();
    assert_eq!(restored.save(), page);
    assert_eq!(restored.pending(false), Some(ApicEvent::Nmi));
    assert_eq!((restored.cr8(), restored.acknowledge()), (2, Some(0x70)));
    // 100 000 counts of 2 ns less 50 001 ns, rounded up to whole counts.
    assert_eq!(other.clock.next_deadline(), Some(9_000_000 + 150_000));
}

#[test]
fn a_saved_page_of_the_wrong_size_is_refused_and_changes_nothing() {
    let m = machine(1);
    let before = m.lapics[0].save();
    assert!(m.lapics[0].restore(&[0; 100], m.lapics[0].base(), false).unwrap_err().contains("100 bytes"));
    assert!(m.lapics[0].restore(&[], BASE_X2APIC, false).is_err());
    assert_eq!(m.lapics[0].save(), before);
}

#[derive(Debug, Clone)]
enum Access {
    Read(u32),
    Write(u32, u32),
    Rdmsr(u32),
    Wrmsr(u32, u64),
    Base(u64),
    Deliver(u64, u32),
    Step(u64),
    Acknowledge,
    Save,
}

fn access() -> impl Strategy<Value = Access> {
    let offset = || prop_oneof![(0u32..0x48).prop_map(|r| r << 4), 0u32..0x1100];
    let msr = || prop_oneof![0x800u32..0x848, Just(MSR_TSC_DEADLINE), any::<u32>()];
    let value = || prop_oneof![any::<u32>(), 0u32..0x1000, Just(0x2_0031)];
    prop_oneof![
        offset().prop_map(Access::Read),
        (offset(), value()).prop_map(|(o, v)| Access::Write(o, v)),
        msr().prop_map(Access::Rdmsr),
        (msr(), prop_oneof![any::<u64>(), value().prop_map(u64::from)]).prop_map(|(m, v)| Access::Wrmsr(m, v)),
        prop_oneof![Just(0xfee0_0900u64), Just(0xfee0_0d00), Just(0xfee0_0100), any::<u64>()].prop_map(Access::Base),
        (0u64..0x10_0000, any::<u32>()).prop_map(|(a, d)| Access::Deliver(0xfee0_0000 | a, d)),
        (0u64..1_000_000).prop_map(Access::Step),
        Just(Access::Acknowledge),
        Just(Access::Save),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(accesses in prop::collection::vec(access(), 1..200)) {
        let m = machine(2);
        let lapic = &m.lapics[0];
        for access in accesses {
            match access {
                Access::Read(offset) => drop(lapic.mmio_read(offset).to_string()),
                Access::Write(offset, value) => lapic.mmio_write(offset, value),
                Access::Rdmsr(msr) => drop(lapic.read_msr(msr)),
                Access::Wrmsr(msr, value) => drop(lapic.write_msr(msr, value)),
                Access::Base(base) => drop(lapic.set_base(base)),
                Access::Deliver(address, data) => {
                    if let Some(message) = crate::msi(address, data) {
                        m.bus.deliver(&message);
                    }
                }
                Access::Step(ns) => prop_assert!(m.clock.step(ns).is_ok()),
                Access::Acknowledge => {
                    let pending = lapic.pending(true);
                    let vector = if pending == Some(ApicEvent::Interrupt) { lapic.acknowledge() } else { None };
                    prop_assert!(vector.is_none_or(|v| v >= 16));
                    pending.into_iter().for_each(|event| lapic.taken(event));
                }
                Access::Save => prop_assert_eq!(lapic.restore(&lapic.save(), lapic.base(), false), Ok(())),
            }
        }
    }

    #[test]
    fn no_saved_page_panics(page in prop::collection::vec(any::<u8>(), 0x400), base in any::<u64>(), ns in 0u64..1 << 40) {
        let m = machine(1);
        let lapic = &m.lapics[0];
        if lapic.restore(&page, base, true).is_ok() {
            m.clock.step(ns).unwrap();
            let again = lapic.save();
            prop_assert_eq!(lapic.restore(&again, lapic.base(), true), Ok(()));
            prop_assert_eq!(lapic.save(), again);
        }
    }
}
