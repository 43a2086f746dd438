//! The clock as firmware and kernels see it.

use super::*;
use cardcage_plugin_api::testing::*;
use proptest::prelude::*;
use rtc::*;

const NS: u64 = 1_000_000_000;
const UIP_AHEAD: u64 = UIP_AHEAD_NS as u64;
const HOURS_24: u8 = 0x02;
const BINARY: u8 = 0x04;
const SET: u8 = 0x80;
const UIE: u8 = 0x10;
const AIE: u8 = 0x20;
const PIE: u8 = 0x40;

struct Cmos(TestDevice);

impl Cmos {
    fn on(host: &TestHost, properties: &[(&str, &str)]) -> Self {
        Self(TestDevice::new::<Clockwork>(host, properties).unwrap())
    }
    fn get(&mut self, register: u8) -> u8 {
        self.0.outb(0x70, register);
        self.0.inb(0x71)
    }
    fn set(&mut self, register: u8, value: u8) {
        self.0.outb(0x70, register);
        self.0.outb(0x71, value);
    }
    /// Sets the time of day in a mode, with the divider chain held.
    fn set_time(&mut self, mode: u8, h: u8, m: u8, s: u8) {
        self.set(REG_B, mode);
        self.set(REG_A, 0x76);
        self.set(HOURS, h);
        self.set(MINUTES, m);
        self.set(SECONDS, s);
        self.set(REG_A, 0x26);
    }
    fn time(&mut self) -> (u8, u8, u8) {
        (self.get(HOURS), self.get(MINUTES), self.get(SECONDS))
    }
    fn date(&mut self) -> (u8, u8, u8, u8) {
        (self.get(CENTURY), self.get(YEAR), self.get(MONTH), self.get(DAY))
    }
    fn advance(&mut self, seconds: u64) {
        self.0.advance(seconds * NS);
    }
}

fn clock() -> (TestHost, Cmos) {
    let host = TestHost::new();
    let cmos = Cmos::on(&host, &[]);
    (host, cmos)
}

#[test]
fn the_clock_shows_the_hosts_time_in_bcd() {
    // 2026-11-22T15:47:09Z, a Sunday.
    let host = TestHost::new().with_rtc(1_795_362_429);
    let mut cmos = Cmos::on(&host, &[]);
    assert_eq!(cmos.date(), (0x20, 0x26, 0x11, 0x22));
    assert_eq!(cmos.time(), (0x15, 0x47, 0x09));
    assert_eq!((cmos.get(WEEKDAY), cmos.get(REG_D)), (1, 0x80));
    cmos.set(REG_B, HOURS_24 | BINARY);
    assert_eq!(cmos.time(), (15, 47, 9));
    cmos.set(REG_B, BINARY);
    assert_eq!(cmos.time(), (0x83, 47, 9));
}

#[test]
fn twelve_hour_mode_turns_over_at_noon_and_midnight() {
    let (_, mut cmos) = clock();
    for (mode, before, after) in [
        (0, 0x12, 0x01),
        (0, 0x92, 0x81),
        (0, 0x11, 0x92),
        (0, 0x91, 0x12),
        (BINARY, 0x8c, 0x81),
        (BINARY, 0x0c, 0x01),
        (BINARY, 0x0b, 0x8c),
        (BINARY, 0x8b, 0x0c),
    ] {
        let last = if mode == BINARY { 59 } else { 0x59 };
        cmos.set_time(mode, before, last, last);
        cmos.advance(1);
        assert_eq!(cmos.time(), (after, 0, 0), "mode {mode:#x}, from hour {before:#x}");
    }
}

#[test]
fn midnight_in_bcd_carries_into_the_day() {
    let (_, mut cmos) = clock();
    cmos.set(REG_B, HOURS_24 | SET);
    for (register, value) in
        [(CENTURY, 0x20), (YEAR, 0x99), (MONTH, 0x12), (DAY, 0x31), (HOURS, 0x23), (MINUTES, 0x59), (SECONDS, 0x59)]
    {
        cmos.set(register, value);
    }
    cmos.set(REG_B, HOURS_24);
    cmos.advance(1);
    assert_eq!((cmos.date(), cmos.time()), ((0x21, 0x00, 0x01, 0x01), (0, 0, 0)));
}

#[test]
fn setting_the_clock_tells_the_world_how_far_it_is_off() {
    let (host, mut cmos) = clock();
    cmos.set(HOURS, 0x02);
    assert_eq!(host.take_events(), [("RTC_CHANGE".to_string(), r#"{"offset":7200}"#.to_string())]);
    cmos.set(YEAR, 0x25);
    let year = 365 * 86_400 - 7200;
    assert_eq!(host.take_events(), [("RTC_CHANGE".to_string(), format!(r#"{{"offset":-{year}}}"#))]);
    // While it is held, nothing has been set yet.
    cmos.set(REG_B, HOURS_24 | SET);
    cmos.set(YEAR, 0x26);
    cmos.set(HOURS, 0x00);
    assert!(host.take_events().is_empty());
    cmos.set(REG_B, HOURS_24);
    assert_eq!(host.take_events()[0].1, r#"{"offset":0}"#);
}

#[test]
fn the_set_bit_stops_the_clock_until_it_is_taken_back() {
    let (_, mut cmos) = clock();
    cmos.set(REG_B, HOURS_24 | SET | UIE);
    assert_eq!(cmos.get(REG_B), HOURS_24 | SET);
    let held = cmos.time();
    cmos.advance(5);
    assert_eq!(cmos.time(), held);
    cmos.set(REG_B, HOURS_24);
    cmos.advance(1);
    assert_eq!(cmos.time(), (0, 0, 1));
}

#[test]
fn the_first_update_comes_half_a_second_after_divider_reset_and_announces_itself() {
    let (_, mut cmos) = clock();
    cmos.set_time(HOURS_24, 0x02, 0x04, 0x58);
    cmos.0.advance(NS / 2 - UIP_AHEAD - 1);
    assert_eq!((cmos.get(REG_A), cmos.time()), (0x26, (0x02, 0x04, 0x58)));
    cmos.0.advance(1);
    assert_eq!(cmos.get(REG_A), 0xa6);
    cmos.0.advance(UIP_AHEAD);
    assert_eq!((cmos.get(REG_A), cmos.time()), (0x26, (0x02, 0x04, 0x59)));
}

#[test]
fn every_second_is_an_update_and_reading_c_acknowledges_it() {
    let (host, mut cmos) = clock();
    cmos.set(REG_A, 0x20);
    cmos.get(REG_C);
    cmos.set(REG_B, HOURS_24 | UIE);
    cmos.0.advance(NS - 1);
    assert!(!host.irq(8));
    cmos.0.advance(1);
    assert!(host.irq(8));
    assert_eq!((cmos.get(REG_C), host.irq(8), cmos.get(REG_C)), (0x90, false, 0));
    cmos.advance(3);
    assert_eq!((host.irq_edges(8), cmos.get(REG_C)), (2, 0x90));
}

#[test]
fn updates_can_be_polled_without_an_interrupt_or_a_timer() {
    let (host, mut cmos) = clock();
    cmos.set(REG_A, 0x20);
    cmos.get(REG_C);
    assert_eq!((host.next_deadline(), cmos.get(REG_C)), (None, 0));
    cmos.advance(1);
    assert_eq!((cmos.get(REG_C), host.irq(8)), (0x10, false));
}

#[test]
fn the_alarm_matches_seconds_minutes_and_hours_or_anything() {
    let (host, mut cmos) = clock();
    cmos.set(REG_A, 0x20);
    cmos.set(HOURS_ALARM, 0x01);
    cmos.set(MINUTES_ALARM, 0x30);
    cmos.set(SECONDS_ALARM, 0x15);
    cmos.get(REG_C);
    cmos.set(REG_B, HOURS_24 | AIE);
    assert_eq!(host.next_deadline(), Some((5400 + 15) * NS));
    cmos.advance(5400 + 14);
    assert!(!host.irq(8));
    cmos.advance(1);
    assert_eq!((host.irq(8), cmos.get(REG_C), host.irq(8)), (true, 0xb0, false));
    // Tomorrow again.
    assert_eq!(host.next_deadline(), Some((86_400 + 5400 + 15) * NS));
    cmos.set(HOURS_ALARM, 0xff);
    cmos.set(MINUTES_ALARM, 0xc0);
    assert_eq!(host.next_deadline(), Some((5460 + 15) * NS));
    cmos.set(SECONDS_ALARM, 0x99);
    assert_eq!(host.next_deadline(), None);
}

#[test]
fn the_alarm_tells_morning_from_afternoon() {
    let (_, mut cmos) = clock();
    cmos.set(MINUTES_ALARM, 0xc0);
    cmos.set(SECONDS_ALARM, 0xc0);
    cmos.set_time(0, 0x81, 0x59, 0x00);
    cmos.set(HOURS_ALARM, 0x02);
    cmos.get(REG_C);
    cmos.advance(60);
    assert_eq!((cmos.get(HOURS), cmos.get(REG_C) & 0x20), (0x82, 0));
    cmos.set_time(0, 0x81, 0x59, 0x00);
    cmos.set(HOURS_ALARM, 0x82);
    cmos.get(REG_C);
    cmos.advance(60);
    assert_eq!((cmos.get(HOURS), cmos.get(REG_C) & 0x20), (0x82, 0x20));
}

#[test]
fn the_periodic_interrupt_follows_the_rate() {
    let (host, mut cmos) = clock();
    for (rate, hertz) in [(6, 1024u64), (15, 2), (3, 8192), (1, 256), (2, 128)] {
        cmos.set(REG_B, HOURS_24);
        cmos.set(REG_A, 0x20);
        cmos.get(REG_C);
        cmos.set(REG_A, 0x20 | rate);
        cmos.set(REG_B, HOURS_24 | PIE);
        let (start, before) = (host.now(), host.irq_edges(8));
        for _ in 0..10 {
            let deadline = host.next_deadline().unwrap();
            cmos.0.advance(deadline - host.now());
            assert_eq!(cmos.get(REG_C) & 0xc0, 0xc0);
        }
        assert_eq!(host.irq_edges(8) - before, 10);
        let took = host.now() - start;
        let exact = 10 * NS / hertz;
        assert!(took.abs_diff(exact) <= NS / 32_768, "rate {rate}: ten periods took {took} ns, not {exact}");
    }
}

#[test]
fn a_new_rate_counts_from_the_last_tick() {
    let (host, mut cmos) = clock();
    cmos.set(REG_A, 0x20);
    cmos.set(REG_A, 0x2d);
    cmos.set(REG_B, HOURS_24 | PIE);
    cmos.0.advance(NS / 8);
    cmos.set(REG_A, 0x2f);
    cmos.get(REG_C);
    assert_eq!(host.next_deadline(), Some(NS / 8 + NS / 2));
}

#[test]
fn ticks_that_a_slow_guest_misses_are_lost_or_made_up_for() {
    for (policy, expected) in [("discard", 1), ("slew", 5)] {
        let host = TestHost::new();
        let mut cmos = Cmos::on(&host, &[("lost_tick_policy", policy)]);
        cmos.set(REG_A, 0x20);
        cmos.get(REG_C);
        cmos.set(REG_A, 0x2f);
        cmos.set(REG_B, HOURS_24 | PIE);
        cmos.0.advance(5 * NS / 2);
        let mut seen = 0;
        while cmos.get(REG_C) & 0x40 != 0 {
            seen += 1;
        }
        assert_eq!(seen, expected, "{policy}");
        assert_eq!(host.irq_edges(8), expected, "{policy}");
    }
}

#[test]
fn the_ram_keeps_what_is_written_and_survives_a_reset() {
    let (host, mut cmos) = clock();
    cmos.set(0x40, 0x5a);
    cmos.set(0x0f, 0x09);
    cmos.set(REG_B, HOURS_24 | PIE | AIE | UIE);
    cmos.advance(2);
    assert!(host.irq(8));
    cmos.0.reset(ResetKind::Warm);
    assert_eq!((cmos.get(0x40), cmos.get(0x0f), cmos.get(REG_B)), (0x5a, 0x09, HOURS_24));
    assert_eq!((host.irq(8), cmos.get(REG_C), cmos.time()), (false, 0, (0, 0, 2)));
}

#[test]
fn registers_c_and_d_and_the_index_port_are_not_for_writing_or_reading() {
    let (_, mut cmos) = clock();
    cmos.set(REG_C, 0xff);
    cmos.set(REG_D, 0x00);
    assert_eq!((cmos.get(REG_D), cmos.0.inb(0x70)), (0x80, 0xff));
}

#[test]
fn the_century_of_ps2_machines_is_the_same_byte() {
    let (_, mut cmos) = clock();
    assert_eq!((cmos.get(CENTURY_PS2), cmos.get(CENTURY)), (0x20, 0x20));
    cmos.set(CENTURY_PS2, 0x19);
    assert_eq!(cmos.get(CENTURY), 0x19);
}

#[test]
fn a_base_year_of_1980_counts_from_there() {
    let host = TestHost::new();
    let mut cmos = Cmos::on(&host, &[("base_year", "1980")]);
    assert_eq!(cmos.date(), (0x00, 0x46, 0x01, 0x01));
}

#[test]
fn the_ram_tells_firmware_how_much_memory_there_is() {
    let machine = |below: u64, above: u64| {
        json::Object::new().field("ram-below-4g", below).field("ram-above-4g", above).field("cpus", 4)
    };
    let host = TestHost::new().with_machine(&machine(128 << 20, 0));
    let mut cmos = Cmos::on(&host, &[]);
    let mut word = |at| u16::from(cmos.get(at)) | u16::from(cmos.get(at + 1)) << 8;
    assert_eq!((word(0x15), word(0x17), word(0x30), word(0x34)), (640, 65_535, 65_535, 112 * 16));
    assert_eq!((cmos.get(0x5b), cmos.get(0x5f), cmos.get(0x14)), (0, 3, 6));

    let host = TestHost::new().with_machine(&machine(3 << 30, 5 << 30));
    let mut cmos = Cmos::on(&host, &[]);
    assert_eq!((cmos.get(0x34), cmos.get(0x35)), (0x00, 0xbf));
    assert_eq!((cmos.get(0x5b), cmos.get(0x5c), cmos.get(0x5d)), (0x00, 0x40, 0x01));
}

#[test]
fn a_clock_that_the_guest_has_set_moves_with_its_offset_and_its_alarm() {
    let (_, mut cmos) = clock();
    cmos.set(HOURS, 0x07);
    cmos.set(REG_A, 0x20);
    cmos.set(SECONDS_ALARM, 0x02);
    cmos.set(MINUTES_ALARM, 0xff);
    cmos.set(HOURS_ALARM, 0xff);
    cmos.get(REG_C);
    cmos.set(REG_B, HOURS_24 | AIE);
    let mut moved = Cmos(cmos.0.migrate().unwrap());
    assert_eq!(moved.time(), (7, 0, 0));
    moved.advance(2);
    assert!(moved.0.host().irq(8));
    assert_eq!(moved.get(REG_C), 0xb0);
}

#[test]
fn firmware_finds_it_in_acpi() {
    let (host, _cmos) = clock();
    assert_eq!(host.acpi(), [r#"{"hid":"PNP0B00"}"#]);
}

#[test]
fn it_conforms() {
    conformance::check::<Clockwork>(TestHost::new, &[]);
    conformance::check::<Clockwork>(TestHost::new, &[("lost_tick_policy", "slew"), ("base_year", "1980")]);
}

proptest! {
    #[test]
    fn any_time_that_is_set_is_read_back(
        mode in 0u8..4, century in 0u8..100, year in 0u8..100, month in 1u8..=12, day in 1u8..=28,
        hour in 0u8..24, minute in 0u8..60, second in 0u8..60,
    ) {
        let (_, mut cmos) = clock();
        let mode = mode << 1;
        let encode = |n: u8| if mode & BINARY != 0 { n } else { ((n / 10) << 4) | (n % 10) };
        let twelve = |h: u8| encode(if h.is_multiple_of(12) { 12 } else { h % 12 }) | if h >= 12 { 0x80 } else { 0 };
        let hour = if mode & HOURS_24 != 0 { encode(hour) } else { twelve(hour) };
        let wanted = [
            (CENTURY, encode(century)), (YEAR, encode(year)), (MONTH, encode(month)), (DAY, encode(day)),
            (HOURS, hour), (MINUTES, encode(minute)), (SECONDS, encode(second)),
        ];
        cmos.set(REG_B, mode | SET);
        wanted.iter().for_each(|&(register, value)| cmos.set(register, value));
        cmos.set(REG_B, mode);
        for (register, value) in wanted {
            prop_assert_eq!(cmos.get(register), value, "register {:#x}", register);
        }
    }
}
