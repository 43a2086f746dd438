use super::*;
use proptest::prelude::*;

type Changes = Arc<Mutex<Vec<(u64, bool)>>>;

/// A timer, its ports, and when its interrupt line changed (in ticks).
fn pit() -> (VirtualClock, Arc<Pit>, PitPorts, Changes) {
    let (clock, changes) = (VirtualClock::manual(), Changes::default());
    let log = (clock.clone(), changes.clone());
    let pit = Pit::new(&clock, move |level| {
        let mut changes = log.1.lock().unwrap();
        if changes.last().is_some_and(|last| last.1) != level {
            changes.push((tick_at(log.0.now()), level));
        }
    });
    (clock, pit.clone(), PitPorts::Counters(pit), changes)
}

fn program(ports: &PitPorts, counter: u64, mode: u64, count: u64) {
    ports.write(3, 1, counter << 6 | 0x30 | mode << 1);
    ports.write(counter, 1, count);
    ports.write(counter, 1, count >> 8);
}

/// The count of a counter, latched first.
fn latched(ports: &PitPorts, counter: u64) -> u64 {
    ports.write(3, 1, counter << 6);
    ports.read(counter, 1) | ports.read(counter, 1) << 8
}

fn status(ports: &PitPorts, counter: u64) -> u64 {
    ports.write(3, 1, 0xe0 | 2 << counter);
    ports.read(counter, 1)
}

fn go_to(clock: &VirtualClock, tick: u64) {
    clock.step(time_of(tick) - clock.now()).unwrap();
}

#[test]
fn mode_0_raises_the_line_once_after_count_plus_one_ticks() {
    let (clock, _pit, ports, changes) = pit();
    program(&ports, 0, 0, 1000);
    go_to(&clock, 501);
    assert_eq!((latched(&ports, 0), status(&ports, 0)), (500, 0x30));
    go_to(&clock, 5000);
    assert_eq!(*changes.lock().unwrap(), [(1001, true)]);
    assert_eq!((latched(&ports, 0), status(&ports, 0)), (0x10000 + 1001 - 5000, 0xb0));
    assert_eq!(clock.next_deadline(), None);
}

#[test]
fn mode_2_pulses_the_line_each_period() {
    let (clock, _pit, ports, changes) = pit();
    program(&ports, 0, 2, 1193);
    go_to(&clock, 3 * 1193 + 1);
    let rises: Vec<u64> = changes.lock().unwrap().iter().filter(|c| c.1).map(|c| c.0).collect();
    assert_eq!(rises, [0, 1194, 2387, 3580]);
    assert_eq!(latched(&ports, 0), 1193);
    go_to(&clock, 3 * 1193 + 1 + 1192);
    assert_eq!((latched(&ports, 0), status(&ports, 0) >> 7), (1, 0));
}

#[test]
fn mode_3_is_high_for_the_longer_half_and_counts_by_two() {
    let (clock, _pit, ports, changes) = pit();
    program(&ports, 0, 3, 101);
    go_to(&clock, 1 + 303);
    let expected = [(0, true), (52, false), (102, true), (153, false), (203, true), (254, false), (304, true)];
    assert_eq!(*changes.lock().unwrap(), expected);
    go_to(&clock, 1 + 303 + 10);
    assert_eq!(latched(&ports, 0), 80);
}

#[test]
fn a_new_count_in_mode_2_waits_for_the_end_of_the_cycle() {
    let (clock, _pit, ports, _) = pit();
    program(&ports, 0, 2, 1000);
    go_to(&clock, 401);
    ports.write(0, 1, 500 & 0xff);
    ports.write(0, 1, 500 >> 8);
    assert_eq!((latched(&ports, 0), status(&ports, 0) & 0x40), (600, 0x40));
    go_to(&clock, 1001 + 100);
    assert_eq!((latched(&ports, 0), status(&ports, 0) & 0x40), (400, 0));
}

#[test]
fn mode_4_strobes_low_for_one_tick() {
    let (clock, _pit, ports, changes) = pit();
    program(&ports, 0, 4, 100);
    go_to(&clock, 1000);
    assert_eq!(*changes.lock().unwrap(), [(0, true), (101, false), (102, true)]);
}

#[test]
fn a_strobe_that_is_over_when_the_timer_runs_still_makes_an_edge() {
    let (clock, _pit, ports, changes) = pit();
    program(&ports, 0, 4, 1000);
    clock.set(time_of(1500));
    clock.run_expired();
    assert_eq!(*changes.lock().unwrap(), [(0, true), (1500, false), (1500, true)]);
    assert_eq!(clock.next_deadline(), None);
    ports.write(0, 1, 100);
    ports.write(0, 1, 0);
    clock.set(time_of(1700));
    clock.run_expired();
    assert_eq!(changes.lock().unwrap()[3..], [(1700, false), (1700, true)]);
}

#[test]
fn the_gate_triggers_mode_1_and_holds_mode_0() {
    let (clock, pit, ports, _) = pit();
    let control = PitPorts::Control(pit);
    let out = || control.read(0, 1) & 0x20 != 0;
    program(&ports, 2, 1, 50);
    go_to(&clock, 200);
    assert!(out());
    control.write(0, 1, 1);
    go_to(&clock, 202);
    assert!(!out());
    go_to(&clock, 251);
    assert!(out());

    control.write(0, 1, 0);
    program(&ports, 2, 0, 50);
    go_to(&clock, 400);
    assert_eq!((latched(&ports, 2), out()), (50, false));
    control.write(0, 1, 3);
    go_to(&clock, 420);
    assert_eq!((latched(&ports, 2), control.read(0, 1) & 3), (30, 3));
    control.write(0, 1, 2);
    go_to(&clock, 800);
    assert_eq!(latched(&ports, 2), 30);
    control.write(0, 1, 3);
    go_to(&clock, 830);
    assert!(out());
}

#[test]
fn a_low_gate_stops_mode_3_with_its_output_high_and_starts_it_anew() {
    let (clock, pit, ports, _) = pit();
    let control = PitPorts::Control(pit);
    control.write(0, 1, 1);
    program(&ports, 2, 3, 100);
    go_to(&clock, 60);
    assert_eq!(control.read(0, 1) & 0x20, 0);
    control.write(0, 1, 0);
    assert_eq!(control.read(0, 1) & 0x20, 0x20);
    go_to(&clock, 1000);
    control.write(0, 1, 1);
    go_to(&clock, 1001 + 49);
    assert_eq!(control.read(0, 1) & 0x20, 0x20);
    go_to(&clock, 1001 + 50);
    assert_eq!(control.read(0, 1) & 0x20, 0);
}

#[test]
fn single_byte_accesses_and_decimal_counts_work() {
    let (clock, _pit, ports, _) = pit();
    ports.write(3, 1, 0x10);
    ports.write(0, 1, 200);
    go_to(&clock, 51);
    assert_eq!(ports.read(0, 1), 150);
    ports.write(3, 1, 0x20);
    ports.write(0, 1, 0x80);
    assert_eq!(ports.read(0, 1), 0x80);
    program(&ports, 0, 0, 0);
    ports.write(3, 1, 0x31);
    ports.write(0, 2, 0x1234);
    ports.write(0, 1, 0x12);
    let at = tick_at(clock.now());
    go_to(&clock, at + 1 + 235);
    assert_eq!(latched(&ports, 0), 0x0999);
}

#[test]
fn a_latched_count_stays_until_it_is_read_and_status_comes_first() {
    let (clock, _pit, ports, _) = pit();
    program(&ports, 0, 2, 1000);
    go_to(&clock, 101);
    ports.write(3, 1, 0xc2);
    go_to(&clock, 501);
    ports.write(3, 1, 0);
    assert_eq!(ports.read(0, 1), 0xb4);
    assert_eq!(ports.read(0, 1) | ports.read(0, 1) << 8, 900);
    assert_eq!(latched(&ports, 0), 500);
}

#[test]
fn the_fastest_periods_do_not_wake_the_host_for_each_tick() {
    let (clock, _pit, ports, changes) = pit();
    program(&ports, 0, 2, 2);
    clock.step(10_000_000).unwrap();
    assert!(changes.lock().unwrap().len() <= 1002);
}

#[test]
fn saved_state_goes_on_where_it_was() {
    let (clock, original, ports, _) = pit();
    program(&ports, 0, 2, 1000);
    program(&ports, 2, 0, 5000);
    go_to(&clock, 700);
    let saved = original.save();
    let (other_clock, other, other_ports, changes) = pit();
    other_clock.set(clock.now());
    other.restore(&saved);
    assert_eq!((other.save(), latched(&other_ports, 0)), (saved, latched(&ports, 0)));
    go_to(&other_clock, 1001);
    assert_eq!(changes.lock().unwrap().last(), Some(&(1001, true)));
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(accesses in prop::collection::vec((0u8..8, any::<u64>()), 1..300)) {
        let (clock, pit, ports, _) = pit();
        let control = PitPorts::Control(pit.clone());
        for (what, value) in accesses {
            match what {
                0 | 1 => ports.write(3, 1, value),
                2 | 3 => ports.write(value >> 8 & 3, (value >> 16) as u8 & 7, value),
                4 => drop(ports.read(value & 3, (value >> 16) as u8).to_string()),
                5 => control.write(0, 1, value),
                6 => prop_assert!(clock.step(value % 200_000).is_ok()),
                _ => {
                    let saved = pit.save();
                    pit.restore(&saved);
                    prop_assert_eq!(saved, pit.save());
                }
            }
        }
    }
}
