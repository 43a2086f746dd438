use super::*;
use crate::lapic::Lapic;
use cardcage_accel::LocalApic;
use cardcage_clock::VirtualClock;
use proptest::prelude::*;

struct Machine {
    ioapic: Arc<IoApic>,
    lapic: Arc<Lapic>,
}

fn machine() -> Machine {
    let bus = Arc::new(ApicBus::default());
    let (ioapic, pic) = (IoApic::new(&bus), crate::pic::PicPair::new(&bus));
    bus.connect_chips(&ioapic, &pic);
    let lapic = Lapic::new(0, true, &VirtualClock::manual(), &bus);
    lapic.mmio_write(0xf0, 0x1ff);
    Machine { ioapic, lapic }
}

fn write(ioapic: &IoApic, register: u8, value: u32) {
    ioapic.write(SELECT, 4, register.into());
    ioapic.write(WINDOW, 4, value.into());
}

fn read(ioapic: &IoApic, register: u8) -> u32 {
    ioapic.write(SELECT, 4, register.into());
    ioapic.read(WINDOW, 4) as u32
}

fn set_entry(ioapic: &IoApic, pin: u8, low: u32) {
    write(ioapic, TABLE + 2 * pin + 1, 0);
    write(ioapic, TABLE + 2 * pin, low);
}

#[test]
fn an_edge_interrupts_once_and_is_lost_while_masked() {
    let m = machine();
    m.ioapic.set_pin(4, true);
    set_entry(&m.ioapic, 4, 0x34);
    assert_eq!(m.lapic.acknowledge(), None);
    m.ioapic.set_pin(4, false);
    m.ioapic.set_pin(4, true);
    m.ioapic.set_pin(4, true);
    assert_eq!(m.lapic.acknowledge(), Some(0x34));
    m.lapic.mmio_write(0xb0, 0);
    assert_eq!(m.lapic.acknowledge(), None);
}

#[test]
fn a_level_interrupts_again_after_each_end_until_it_falls() {
    let m = machine();
    set_entry(&m.ioapic, 10, 0x1_8050);
    m.ioapic.set_pin(10, true);
    assert_eq!(m.lapic.acknowledge(), None);
    set_entry(&m.ioapic, 10, 0x8050);
    assert_eq!(read(&m.ioapic, TABLE + 20), 0xc050);
    for _ in 0..2 {
        assert_eq!(m.lapic.acknowledge(), Some(0x50));
        assert_eq!(m.lapic.mmio_read(0x180 + 0x20), 1 << 16);
        m.lapic.mmio_write(0xb0, 0);
    }
    m.ioapic.set_pin(10, false);
    assert_eq!(m.lapic.acknowledge(), Some(0x50));
    m.lapic.mmio_write(0xb0, 0);
    assert_eq!((m.lapic.acknowledge(), read(&m.ioapic, TABLE + 20)), (None, 0x8050));
}

#[test]
fn a_switch_to_edge_ends_a_stuck_level_interrupt() {
    let m = machine();
    set_entry(&m.ioapic, 3, 0x8050);
    m.ioapic.set_pin(3, true);
    assert_eq!(read(&m.ioapic, TABLE + 6), 0xc050);
    set_entry(&m.ioapic, 3, 0x1_0050);
    assert_eq!(read(&m.ioapic, TABLE + 6), 0x1_0050);
}

#[test]
fn registers_read_as_the_datasheet_says() {
    let m = machine();
    assert_eq!((read(&m.ioapic, 1), read(&m.ioapic, TABLE)), (0x0017_0011, 0x1_0000));
    write(&m.ioapic, 0, u32::MAX);
    assert_eq!((read(&m.ioapic, 0), read(&m.ioapic, 2)), (0x0f00_0000, 0x0f00_0000));
    set_entry(&m.ioapic, 23, u32::MAX);
    write(&m.ioapic, TABLE + 47, u32::MAX);
    assert_eq!((read(&m.ioapic, TABLE + 46), read(&m.ioapic, TABLE + 47)), (0x1_afff, 0xfffe_0000));
    write(&m.ioapic, TABLE + 48, 5);
    assert_eq!((read(&m.ioapic, TABLE + 48), read(&m.ioapic, 5)), (0, 0));
    m.ioapic.set_pin(24, true);
}

#[test]
fn saved_state_goes_on_where_it_was() {
    let m = machine();
    set_entry(&m.ioapic, 10, 0x8050);
    m.ioapic.set_pin(10, true);
    let saved = m.ioapic.save();
    let other = machine();
    other.ioapic.restore(&saved);
    assert_eq!((other.ioapic.save(), other.lapic.acknowledge()), (saved, None));
    other.ioapic.end_of_interrupt(0x50);
    assert_eq!(other.lapic.acknowledge(), Some(0x50));
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(accesses in prop::collection::vec((0u8..6, any::<u8>(), any::<u64>()), 1..200)) {
        let m = machine();
        for (what, a, value) in accesses {
            match what {
                0 => write(&m.ioapic, a & 0x4f, value as u32),
                1 => drop(read(&m.ioapic, a).to_string()),
                2 => m.ioapic.set_pin(u32::from(a & 31), value & 1 != 0),
                3 => m.ioapic.end_of_interrupt(a),
                4 => m.ioapic.write(u64::from(a), a & 15, value),
                _ => drop(m.ioapic.read(value & 0x1f, a).to_string()),
            }
            prop_assert_eq!(m.ioapic.save().table.iter().filter(|e| **e & DELIVERY_STATUS != 0).count(), 0);
        }
    }
}
