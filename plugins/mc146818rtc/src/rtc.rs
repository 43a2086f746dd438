//! The MC146818 itself, without a host (Motorola MC146818A data sheet; the century byte is a PC's).
//!
//! Nothing ticks here: whatever has happened since the last look is worked out from the clocks at the next one, and a
//! timer is needed only where an interrupt is due ([`Rtc::deadline`]). The time of day is that of the real-time clock
//! plus an offset, which changes when the guest sets the clock.

use bitflags::bitflags;

use crate::calendar::DateTime;

/// Seconds.
pub const SECONDS: u8 = 0x00;
/// Seconds at which the alarm comes.
pub const SECONDS_ALARM: u8 = 0x01;
/// Minutes.
pub const MINUTES: u8 = 0x02;
/// Minutes at which the alarm comes.
pub const MINUTES_ALARM: u8 = 0x03;
/// Hours.
pub const HOURS: u8 = 0x04;
/// Hours at which the alarm comes.
pub const HOURS_ALARM: u8 = 0x05;
/// Day of the week, Sunday is 1.
pub const WEEKDAY: u8 = 0x06;
/// Day of the month.
pub const DAY: u8 = 0x07;
/// Month.
pub const MONTH: u8 = 0x08;
/// Year of the century.
pub const YEAR: u8 = 0x09;
/// Divider, rate, update in progress.
pub const REG_A: u8 = 0x0a;
/// [Control].
pub const REG_B: u8 = 0x0b;
/// [Flags]; reading clears them.
pub const REG_C: u8 = 0x0c;
/// Whether the battery is good.
pub const REG_D: u8 = 0x0d;
/// Century, where the ACPI table says that it is.
pub const CENTURY: u8 = 0x32;
/// Where PS/2 machines had it.
pub const CENTURY_PS2: u8 = 0x37;

/// Register A: update in progress.
pub const UIP: u8 = 0x80;
/// Register A: divider chain; up to 2 it runs, from 6 on it is held in reset.
const DIVIDER: u8 = 0x70;
const DIVIDER_RUNS: u8 = 0x20;
/// Register A: rate of the periodic interrupt.
const RATE: u8 = 0x0f;
/// Register D: the battery is good.
const VALID_RAM: u8 = 0x80;
/// 32768 Hz and rate 6, 1024 Hz: what the firmware of PCs sets.
const REG_A_DEFAULT: u8 = 0x26;
/// Alarm bytes from here on match anything.
const ALARM_ANY: u8 = 0xc0;
/// Hours in 12-hour mode: afternoon.
const PM: u8 = 0x80;

const SECOND: i128 = 1_000_000_000;
const HZ: u128 = 32_768;
/// An update announces itself 244 µs ahead (data sheet, figure 15: eight cycles of 32768 Hz).
pub const UIP_AHEAD_NS: i128 = 8 * SECOND / 32_768;
/// The first update comes half a second after the divider chain has been let go.
const AFTER_DIVIDER_RESET: i128 = SECOND / 2;
/// Lost ticks that are made up for between two real ones.
const MAKE_UP_LIMIT: u8 = 20;

bitflags! {
    /// Register B.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Control: u8 {
        /// 24-hour mode.
        const HOURS_24 = 1 << 1;
        /// Binary, not BCD.
        const BINARY = 1 << 2;
        /// Square wave.
        const SQUARE_WAVE = 1 << 3;
        /// Update interrupt.
        const UPDATE = 1 << 4;
        /// Alarm interrupt.
        const ALARM = 1 << 5;
        /// Periodic interrupt.
        const PERIODIC = 1 << 6;
        /// No updates: the time is being set.
        const SET = 1 << 7;
        const _ = !0;
    }

    /// Register C. The interrupt bits stand where their enables stand in register B.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u8 {
        /// The time was updated.
        const UPDATE = 1 << 4;
        /// The alarm has matched.
        const ALARM = 1 << 5;
        /// A period has passed.
        const PERIODIC = 1 << 6;
        /// Any of them, and it is enabled.
        const INTERRUPT = 1 << 7;
    }
}

/// What the host's clocks show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Virtual time in nanoseconds.
    pub virtual_ns: u64,
    /// The real-time clock: nanoseconds since 1970.
    pub rtc_ns: u64,
}

/// State of the chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rtc {
    /// Year that the year and century bytes count from.
    pub(crate) base_year: i64,
    /// Make up for periodic interrupts that the guest was too slow for.
    pub(crate) make_up: bool,
    /// Port 0x70 as written: the register, and the NMI mask in bit 7.
    pub(crate) index: u8,
    /// All registers. Those of the time are current only while the clock stands.
    pub(crate) cmos: [u8; 128],
    /// What the guest's clock is ahead of the real-time clock, in nanoseconds.
    pub(crate) offset_ns: i128,
    /// The guest's second up to which updates and alarms have been noticed.
    pub(crate) seen_second: i64,
    /// Part of the second that had passed when the clock was stopped.
    pub(crate) stopped_ns: i128,
    /// When the last period ended, in cycles of 32768 Hz of virtual time.
    pub(crate) tick_base: u64,
    /// Periods that ended while the guest had not seen the one before.
    pub(crate) lost_ticks: u64,
    /// How many of them were made up for since the last real one.
    pub(crate) made_up: u8,
}

impl Rtc {
    /// A chip that shows the time of the real-time clock.
    pub fn new(base_year: i64, make_up: bool, now: Now) -> Self {
        let mut cmos = [0; 128];
        cmos[usize::from(REG_A)] = REG_A_DEFAULT;
        cmos[usize::from(REG_B)] = Control::HOURS_24.bits();
        cmos[usize::from(REG_D)] = VALID_RAM;
        let mut rtc = Self {
            base_year,
            make_up,
            index: 0,
            cmos,
            offset_ns: 0,
            seen_second: 0,
            stopped_ns: 0,
            tick_base: cycles(now.virtual_ns),
            lost_ticks: 0,
            made_up: 0,
        };
        rtc.seen_second = rtc.second(now);
        rtc
    }

    /// Sets a byte of the RAM, as the firmware of the machine finds it at power on.
    pub fn set_ram(&mut self, at: u8, value: u8) {
        self.cmos[usize::from(at & 0x7f)] = value;
    }

    /// The reset pin: interrupts off, everything else stays.
    pub fn reset(&mut self, now: Now) {
        self.catch_up(now);
        let off = Control::PERIODIC | Control::ALARM | Control::UPDATE | Control::SQUARE_WAVE;
        self.cmos[usize::from(REG_B)] = (self.control() - off).bits();
        self.cmos[usize::from(REG_C)] = 0;
        (self.lost_ticks, self.made_up) = (0, 0);
    }

    fn register(&self, at: u8) -> u8 {
        self.cmos[usize::from(at & 0x7f)]
    }
    fn control(&self) -> Control {
        Control::from_bits_retain(self.register(REG_B))
    }
    fn flags(&self) -> Flags {
        Flags::from_bits_truncate(self.register(REG_C))
    }
    /// The flags, with the interrupt bit worked out.
    fn set_flags(&mut self, mut flags: Flags) {
        let enabled = flags.bits() & self.control().bits() & 0x70 != 0;
        flags.set(Flags::INTERRUPT, enabled);
        self.cmos[usize::from(REG_C)] = flags.bits();
    }
    /// Level of the interrupt output.
    pub fn interrupt(&self) -> bool {
        self.flags().contains(Flags::INTERRUPT)
    }
    /// Register that the data port shows.
    pub fn selected(&self) -> u8 {
        match self.index & 0x7f {
            CENTURY_PS2 => CENTURY,
            index => index,
        }
    }
    /// Selects a register.
    pub fn select(&mut self, value: u8) {
        self.index = value;
    }

    /// Whether the clock runs.
    fn runs(&self) -> bool {
        !self.control().contains(Control::SET) && self.register(REG_A) & DIVIDER <= DIVIDER_RUNS
    }
    /// The guest's time in nanoseconds since 1970.
    fn time(&self, now: Now) -> i128 {
        i128::from(now.rtc_ns) + self.offset_ns
    }
    fn second(&self, now: Now) -> i64 {
        self.time(now).div_euclid(SECOND) as i64
    }

    /// Cycles of 32768 Hz between two periodic interrupts (data sheet, table 5).
    fn period(&self) -> Option<u64> {
        match self.register(REG_A) & RATE {
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Notices what has happened until now.
    fn catch_up(&mut self, now: Now) {
        let mut flags = self.flags();
        if self.runs() {
            let second = self.second(now);
            if second > self.seen_second {
                flags |= Flags::UPDATE;
                if self.next_alarm().is_some_and(|at| at <= second) {
                    flags |= Flags::ALARM;
                }
            }
            self.seen_second = second;
        }
        if let Some(period) = self.period() {
            let ticks = cycles(now.virtual_ns).saturating_sub(self.tick_base) / period;
            if ticks > 0 {
                let unseen = u64::from(flags.contains(Flags::PERIODIC));
                if self.make_up && self.control().contains(Control::PERIODIC) {
                    self.lost_ticks = self.lost_ticks.saturating_add(ticks - 1 + unseen);
                }
                flags |= Flags::PERIODIC;
                self.made_up = 0;
                self.tick_base += ticks * period;
            }
        }
        self.set_flags(flags);
    }

    /// The next second after the last one seen at which the alarm matches.
    fn next_alarm(&self) -> Option<i64> {
        let any = |at| self.register(at) >= ALARM_ANY;
        let (second, minute) = (self.number(SECONDS_ALARM), self.number(MINUTES_ALARM));
        if !any(SECONDS_ALARM) && second > 59 || !any(MINUTES_ALARM) && minute > 59 {
            return None;
        }
        let hour = self.decode_hour(self.register(HOURS_ALARM));
        let start = self.seen_second + 1;
        let (mut at, end) = (start, start + 86_400);
        while at < end {
            let of_day = at.rem_euclid(86_400);
            if !any(HOURS_ALARM) && of_day / 3600 != hour {
                at += 3600 - of_day % 3600;
            } else if !any(MINUTES_ALARM) && of_day / 60 % 60 != minute {
                at += 60 - of_day % 60;
            } else if !any(SECONDS_ALARM) && of_day % 60 != second {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// When [`expire`](Self::expire) wants to be called: the virtual time of the next interrupt that is enabled and not
    /// pending.
    pub fn deadline(&self, now: Now) -> Option<u64> {
        let (control, flags) = (self.control(), self.flags());
        let wanted = |bit: Control| control.contains(bit) && flags.bits() & bit.bits() == 0;
        let tick = self.period().filter(|_| wanted(Control::PERIODIC)).map(|p| nanoseconds(self.tick_base + p));
        let update = wanted(Control::UPDATE).then(|| self.seen_second + 1);
        let alarm = wanted(Control::ALARM).then(|| self.next_alarm()).flatten();
        let second = [update, alarm].into_iter().flatten().min().filter(|_| self.runs());
        let second = second.map(|at| {
            let ahead = i128::from(at) * SECOND - self.time(now);
            now.virtual_ns.saturating_add(u64::try_from(ahead.max(0)).unwrap_or(u64::MAX))
        });
        [tick, second].into_iter().flatten().min()
    }

    /// The [deadline](Self::deadline) has come.
    pub fn expire(&mut self, now: Now) {
        self.catch_up(now);
    }

    /// The guest reads the data port.
    pub fn read(&mut self, now: Now) -> u8 {
        self.catch_up(now);
        match self.selected() {
            at @ (SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY) => {
                self.refresh_time(now);
                self.register(at)
            }
            REG_A => self.register(REG_A) & !UIP | if self.update_is_near(now) { UIP } else { 0 },
            REG_C => self.acknowledge(),
            at => self.register(at),
        }
    }

    fn update_is_near(&self, now: Now) -> bool {
        self.runs() && self.time(now).rem_euclid(SECOND) >= SECOND - UIP_AHEAD_NS
    }

    /// Reading register C clears it; a tick that was lost comes at once.
    fn acknowledge(&mut self) -> u8 {
        let value = self.register(REG_C);
        let again = self.lost_ticks > 0 && self.made_up < MAKE_UP_LIMIT && self.control().contains(Control::PERIODIC);
        if again {
            self.lost_ticks -= 1;
            self.made_up += 1;
        }
        self.set_flags(if again { Flags::PERIODIC } else { Flags::empty() });
        value
    }

    /// The guest writes the data port. If it has set the clock, the result is by how many seconds that now differs from
    /// the real-time clock.
    pub fn write(&mut self, value: u8, now: Now) -> Option<i64> {
        self.catch_up(now);
        let at = self.selected();
        match at {
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                if !self.runs() {
                    self.set_ram(at, value);
                    return None;
                }
                self.refresh_time(now);
                self.set_ram(at, value);
                // The day of the week follows from the date.
                (at != WEEKDAY).then(|| self.set_clock(now, self.time(now).rem_euclid(SECOND)))
            }
            REG_A => self.write_a(value, now),
            REG_B => self.write_b(Control::from_bits_retain(value), now),
            REG_C | REG_D => None,
            _ => {
                self.set_ram(at, value);
                None
            }
        }
    }

    fn write_a(&mut self, value: u8, now: Now) -> Option<i64> {
        let (ran, had_period) = (self.runs(), self.period().is_some());
        if ran {
            self.refresh_time(now);
        }
        self.set_ram(REG_A, value & !UIP);
        if !had_period {
            self.tick_base = cycles(now.virtual_ns);
        }
        match (ran, self.runs()) {
            (true, false) => self.stopped_ns = AFTER_DIVIDER_RESET,
            (false, true) => return Some(self.set_clock(now, AFTER_DIVIDER_RESET)),
            _ => {}
        }
        None
    }

    fn write_b(&mut self, mut value: Control, now: Now) -> Option<i64> {
        let ran = self.runs();
        if value.contains(Control::SET) {
            value -= Control::UPDATE;
            if ran {
                self.refresh_time(now);
                self.stopped_ns = self.time(now).rem_euclid(SECOND);
            }
        }
        self.set_ram(REG_B, value.bits());
        self.set_flags(self.flags());
        (!ran && self.runs()).then(|| self.set_clock(now, self.stopped_ns))
    }

    /// Lets the clock go on from what stands in the registers and this part of a second.
    fn set_clock(&mut self, now: Now, nanoseconds: i128) -> i64 {
        let second = self.registers_time().to_seconds();
        self.offset_ns = i128::from(second) * SECOND + nanoseconds - i128::from(now.rtc_ns);
        self.seen_second = second;
        second - (now.rtc_ns / 1_000_000_000) as i64
    }

    /// A register as a number, in the mode of register B.
    fn number(&self, at: u8) -> i64 {
        self.decode(self.register(at))
    }
    fn decode(&self, value: u8) -> i64 {
        let binary = self.control().contains(Control::BINARY);
        i64::from(if binary { value } else { (value >> 4) * 10 + (value & 0x0f) })
    }
    fn encode(&self, number: i64) -> u8 {
        let number = number.rem_euclid(100) as u8;
        if self.control().contains(Control::BINARY) { number } else { ((number / 10) << 4) | (number % 10) }
    }
    fn decode_hour(&self, value: u8) -> i64 {
        if self.control().contains(Control::HOURS_24) {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }
    fn encode_hour(&self, hour: i64) -> u8 {
        if self.control().contains(Control::HOURS_24) {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn registers_time(&self) -> DateTime {
        DateTime {
            year: self.base_year + self.number(CENTURY) * 100 + self.number(YEAR),
            month: self.number(MONTH),
            day: self.number(DAY),
            hour: self.decode_hour(self.register(HOURS)),
            minute: self.number(MINUTES),
            second: self.number(SECONDS),
        }
    }

    /// Brings the registers up to date, if the clock runs.
    fn refresh_time(&mut self, now: Now) {
        if !self.runs() {
            return;
        }
        let t = DateTime::from_seconds(self.second(now));
        let year = t.year - self.base_year;
        for (at, value) in [
            (SECONDS, self.encode(t.second)),
            (MINUTES, self.encode(t.minute)),
            (HOURS, self.encode_hour(t.hour)),
            (WEEKDAY, self.encode(t.weekday())),
            (DAY, self.encode(t.day)),
            (MONTH, self.encode(t.month)),
            (YEAR, self.encode(year)),
            (CENTURY, self.encode(year.div_euclid(100))),
        ] {
            self.set_ram(at, value);
        }
    }
}

/// Whole cycles of 32768 Hz until then.
fn cycles(virtual_ns: u64) -> u64 {
    (u128::from(virtual_ns) * HZ / 1_000_000_000) as u64
}
/// When that many cycles have passed.
fn nanoseconds(cycles: u64) -> u64 {
    u64::try_from((u128::from(cycles) * 1_000_000_000).div_ceil(HZ)).unwrap_or(u64::MAX)
}
