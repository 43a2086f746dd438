use super::*;
use proptest::prelude::*;

fn pair() -> Arc<PicPair> {
    PicPair::new(&Arc::new(ApicBus::default()))
}

fn ports(pic: &Arc<PicPair>, which: usize) -> PicPorts {
    PicPorts::Chip(pic.clone(), which)
}

/// As a PC's firmware sets it up, with vectors 0x30 and 0x38, nothing masked, and the given ICW4.
fn initialised(icw4: u8) -> Arc<PicPair> {
    let pic = pair();
    for (which, base, cascade) in [(0, 0x30, 4), (1, 0x38, 2)] {
        let chip = ports(&pic, which);
        chip.write(0, 1, 0x11);
        for value in [base, cascade, u64::from(icw4), 0] {
            chip.write(1, 1, value);
        }
    }
    pic
}

fn pulse(pic: &PicPair, irq: u32) {
    pic.set_irq(irq, true);
    pic.set_irq(irq, false);
}

#[test]
fn nothing_gets_through_before_initialisation() {
    let pic = pair();
    (0..16).for_each(|irq| pic.set_irq(irq, true));
    assert!(!pic.output());
}

#[test]
fn lower_inputs_come_first_and_wait_for_the_end_of_the_one_in_service() {
    let pic = initialised(1);
    pulse(&pic, 4);
    pulse(&pic, 1);
    assert_eq!((pic.output(), pic.acknowledge(), pic.output()), (true, 0x31, false));
    pulse(&pic, 0);
    assert_eq!(pic.acknowledge(), 0x30);
    let master = ports(&pic, 0);
    master.write(0, 1, 0x20);
    assert!(!pic.output());
    master.write(0, 1, 0x61);
    assert_eq!((pic.output(), pic.acknowledge()), (true, 0x34));
}

#[test]
fn the_slave_asks_through_input_two() {
    let pic = initialised(1);
    pulse(&pic, 3);
    pulse(&pic, 12);
    pulse(&pic, 8);
    assert_eq!(pic.acknowledge(), 0x38);
    ports(&pic, 1).write(0, 1, 0x20);
    assert!(!pic.output());
    ports(&pic, 0).write(0, 1, 0x20);
    assert_eq!(pic.acknowledge(), 0x3c);
    let (master, slave) = (ports(&pic, 0), ports(&pic, 1));
    master.write(0, 1, 0x0b);
    slave.write(0, 1, 0x0b);
    assert_eq!((master.read(0, 1), slave.read(0, 1)), (0x04, 0x10));
}

#[test]
fn a_request_that_vanishes_is_acknowledged_as_spurious_input_seven() {
    let pic = initialised(1);
    PicPorts::Elcr(pic.clone()).write(0, 2, 0x0e20);
    pic.set_irq(5, true);
    assert!(pic.output());
    pic.set_irq(5, false);
    assert_eq!((pic.output(), pic.acknowledge()), (false, 0x37));
    let master = ports(&pic, 0);
    master.write(0, 1, 0x0b);
    assert_eq!(master.read(0, 1), 0);
}

#[test]
fn level_inputs_ask_as_long_as_they_are_high_and_some_stay_edges() {
    let pic = initialised(1);
    let elcr = PicPorts::Elcr(pic.clone());
    elcr.write(0, 2, 0xffff);
    assert_eq!(elcr.read(0, 2), 0xdef8);
    pic.set_irq(11, true);
    for _ in 0..2 {
        assert_eq!(pic.acknowledge(), 0x3b);
        ports(&pic, 1).write(0, 1, 0x20);
        ports(&pic, 0).write(0, 1, 0x20);
    }
    pic.set_irq(11, false);
    assert!(!pic.output());
}

#[test]
fn automatic_end_leaves_nothing_in_service_and_may_rotate() {
    let pic = initialised(3);
    ports(&pic, 0).write(0, 1, 0x80);
    (0..2).for_each(|irq| pulse(&pic, irq));
    assert_eq!(pic.acknowledge(), 0x30);
    pulse(&pic, 0);
    assert_eq!((pic.acknowledge(), pic.acknowledge()), (0x31, 0x30));
}

#[test]
fn with_automatic_end_several_requests_of_the_slave_come_one_after_the_other() {
    let pic = initialised(3);
    pulse(&pic, 9);
    pulse(&pic, 15);
    assert_eq!((pic.acknowledge(), pic.output(), pic.acknowledge(), pic.output()), (0x39, true, 0x3f, false));
}

#[test]
fn rotation_makes_the_served_input_the_last() {
    let pic = initialised(1);
    pulse(&pic, 3);
    assert_eq!(pic.acknowledge(), 0x33);
    ports(&pic, 0).write(0, 1, 0xa0);
    pulse(&pic, 3);
    pulse(&pic, 5);
    assert_eq!(pic.acknowledge(), 0x35);
    ports(&pic, 0).write(0, 1, 0x20);
    ports(&pic, 0).write(0, 1, 0xc7);
    pulse(&pic, 5);
    assert_eq!(pic.acknowledge(), 0x33);
}

#[test]
fn special_mask_mode_lets_lower_priorities_through() {
    let pic = initialised(1);
    pulse(&pic, 1);
    assert_eq!(pic.acknowledge(), 0x31);
    pulse(&pic, 6);
    assert!(!pic.output());
    let master = ports(&pic, 0);
    master.write(1, 1, 0x02);
    master.write(0, 1, 0x68);
    assert_eq!((pic.output(), pic.acknowledge()), (true, 0x36));
    master.write(0, 1, 0x20);
    master.write(0, 1, 0x0b);
    assert_eq!(master.read(0, 1), 0x02);
    master.write(0, 1, 0x48);
    pulse(&pic, 6);
    assert!(!pic.output());
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    let pic = initialised(0x11);
    pulse(&pic, 12);
    assert_eq!(pic.acknowledge(), 0x3c);
    pulse(&pic, 9);
    assert_eq!((pic.output(), pic.acknowledge()), (true, 0x39));
}

#[test]
fn a_poll_acknowledges_and_tells_the_input() {
    let pic = initialised(1);
    let master = ports(&pic, 0);
    master.write(0, 1, 0x0c);
    assert_eq!(master.read(0, 1), 0);
    pulse(&pic, 6);
    master.write(0, 1, 0x0c);
    assert_eq!((master.read(0, 1), pic.output()), (0x86, false));
    master.write(0, 1, 0x0b);
    assert_eq!(master.read(0, 1), 0x40);
}

#[test]
fn masked_requests_wait_and_show_in_irr() {
    let pic = initialised(1);
    let master = ports(&pic, 0);
    master.write(1, 1, 0x10);
    pulse(&pic, 4);
    assert_eq!((pic.output(), master.read(0, 1), master.read(1, 1)), (false, 0x10, 0x10));
    master.write(1, 1, 0);
    assert_eq!(pic.acknowledge(), 0x34);
}

#[test]
fn saved_state_goes_on_where_it_was() {
    let pic = initialised(1);
    pulse(&pic, 4);
    pulse(&pic, 10);
    assert_eq!(pic.acknowledge(), 0x3a);
    let other = pair();
    other.restore(&pic.save());
    assert_eq!(other.save(), pic.save());
    ports(&other, 0).write(0, 1, 0x20);
    assert_eq!((other.output(), other.acknowledge()), (true, 0x34));
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(accesses in prop::collection::vec((0u8..6, any::<u64>()), 1..300)) {
        let pic = pair();
        for (what, value) in accesses {
            let at = value >> 8 & 3;
            match what {
                0 | 1 => ports(&pic, usize::from(what)).write(at & 1, (value >> 16) as u8 & 3, value),
                2 => drop(ports(&pic, (at >> 1) as usize).read(at & 1, value as u8).to_string()),
                3 => pic.set_irq(value as u32 & 31, value & 0x100 != 0),
                4 => PicPorts::Elcr(pic.clone()).write(at, 2, value),
                _ => drop(pic.acknowledge().to_string()),
            }
            let saved = pic.save();
            pic.restore(&saved);
            prop_assert_eq!(saved, pic.save());
        }
    }
}
