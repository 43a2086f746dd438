//! The local APIC's timer (SDM volume 3, section 11.5.4): one-shot, periodic and TSC-deadline, in nanoseconds.

use super::MIN_PERIOD_NS;

/// What bits 17 and 18 of the timer's LVT entry select.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    /// The reserved combination counts once.
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct ApicTimer {
    mode: Mode,
    initial: u32,
    /// Divide configuration register.
    divide: u32,
    /// When it expires next.
    deadline: Option<u64>,
    /// Earliest time of the next tick that is delivered.
    not_before: u64,
}

impl ApicTimer {
    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// Nanoseconds per count: 1 to 128.
    fn divisor(&self) -> u64 {
        let encoding = self.divide & 3 | self.divide >> 1 & 4;
        let log2 = (encoding + 1) & 7;
        1 << log2
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    /// The mode changes with the LVT entry. To or from TSC-deadline disarms; otherwise the count goes on.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if self.mode != mode && (self.mode == Mode::TscDeadline || mode == Mode::TscDeadline) {
            self.initial = 0;
            self.deadline = None;
        }
        self.mode = mode;
    }

    /// A write of the initial count (re)starts the timer; zero stops it. Ignored in TSC-deadline mode.
    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = count;
        self.not_before = 0;
        self.deadline = (count != 0).then(|| now.saturating_add(self.period()));
    }

    /// The divider takes effect at once; the count stays.
    pub(super) fn set_divide(&mut self, value: u32, now: u64) {
        let count = self.current(now);
        self.divide = value & 0xb;
        self.continue_from(count, now);
    }

    /// Sets the current count, as after a change of the divider or from saved state.
    pub(super) fn continue_from(&mut self, count: u32, now: u64) {
        if self.mode != Mode::TscDeadline {
            let running = self.initial != 0 && count != 0;
            self.deadline = running.then(|| now.saturating_add(u64::from(count) * self.divisor()));
        }
    }

    /// Takes over initial count and divider from saved state, not counting.
    pub(super) fn load(mode: Mode, initial: u32, divide: u32) -> Self {
        let initial = if mode == Mode::TscDeadline { 0 } else { initial };
        Self { mode, initial, divide: divide & 0xb, deadline: None, not_before: 0 }
    }

    /// The current count register.
    pub(super) fn current(&self, now: u64) -> u32 {
        let (Some(deadline), period) = (self.deadline, self.period()) else { return 0 };
        if self.mode == Mode::TscDeadline || period == 0 {
            return 0;
        }
        let left = match deadline.checked_sub(now) {
            Some(left) => left,
            None if self.mode == Mode::Periodic => period - (now - deadline) % period,
            None => 0,
        };
        u32::try_from(left.div_ceil(self.divisor())).unwrap_or(u32::MAX).min(self.initial)
    }

    /// Whether it counts down (TSC-deadline mode does not count).
    pub(super) fn is_counting(&self) -> bool {
        self.deadline.is_some() && self.mode != Mode::TscDeadline
    }

    /// IA32_TSC_DEADLINE: zero unless armed in that mode.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.deadline.filter(|_| self.mode == Mode::TscDeadline).unwrap_or(0)
    }

    /// A write of IA32_TSC_DEADLINE; zero disarms, a time that has passed expires at once. Ignored in other modes.
    pub(super) fn set_tsc_deadline(&mut self, tsc: u64) {
        if self.mode == Mode::TscDeadline {
            self.deadline = (tsc != 0).then_some(tsc);
            self.not_before = 0;
        }
    }

    /// When the owner should call [`expire`](Self::expire).
    pub(super) fn wake_at(&self) -> Option<u64> {
        self.deadline.map(|deadline| deadline.max(self.not_before))
    }

    /// Whether the timer expires at `now`; a periodic one goes on. Ticks that were missed are not made up for.
    pub(super) fn expire(&mut self, now: u64) -> bool {
        let Some(deadline) = self.deadline.filter(|_| self.wake_at().is_some_and(|wake| wake <= now)) else {
            return false;
        };
        let period = self.period();
        self.deadline = None;
        if self.mode == Mode::Periodic && period != 0 {
            let missed = (now - deadline) / period;
            self.deadline = deadline.checked_add(missed.saturating_add(1).saturating_mul(period));
            self.not_before = now.saturating_add(MIN_PERIOD_NS);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn periodic(count: u32, divide: u32) -> ApicTimer {
        let mut timer = ApicTimer::load(Mode::Periodic, 0, divide);
        timer.set_initial(count, 1000);
        timer
    }

    #[test]
    fn the_divider_is_encoded_as_the_manual_says() {
        let encodings = [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)];
        for (divide, divisor) in encodings {
            assert_eq!(ApicTimer::load(Mode::OneShot, 1, divide).divisor(), divisor, "{divide:#b}");
        }
    }

    #[test]
    fn a_one_shot_timer_counts_down_and_stays_at_zero() {
        let mut timer = ApicTimer::load(Mode::OneShot, 0, 0xb);
        timer.set_initial(500, 1000);
        assert_eq!([1000, 1001, 1499].map(|now| timer.current(now)), [500, 499, 1]);
        assert!(!timer.expire(1499) && timer.expire(1500) && !timer.expire(1501));
        assert_eq!((timer.current(1600), timer.wake_at()), (0, None));
    }

    #[test]
    fn a_periodic_timer_skips_ticks_that_the_host_missed_and_keeps_its_phase() {
        let mut timer = periodic(100_000, 0xb);
        assert!(timer.expire(101_000));
        assert_eq!(timer.wake_at(), Some(201_000));
        assert!(timer.expire(555_000));
        assert_eq!((timer.wake_at(), timer.current(555_000)), (Some(601_000), 46_000));
    }

    #[test]
    fn a_very_short_period_does_not_wake_the_host_for_each_tick() {
        let mut timer = periodic(1, 0xb);
        assert!(timer.expire(1001));
        assert_eq!(timer.wake_at(), Some(1001 + MIN_PERIOD_NS));
        assert!(timer.expire(1001 + MIN_PERIOD_NS));
    }

    #[test]
    fn a_change_of_the_divider_keeps_the_count() {
        let mut timer = periodic(1000, 0xb);
        timer.set_divide(0, 1400);
        assert_eq!((timer.current(1400), timer.wake_at()), (600, Some(2600)));
    }

    #[test]
    fn deadlines_are_forgotten_when_the_mode_changes() {
        let mut timer = ApicTimer::default();
        timer.set_tsc_deadline(5);
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_mode(Mode::TscDeadline);
        timer.set_tsc_deadline(70);
        timer.set_initial(5, 10);
        assert_eq!((timer.tsc_deadline(), timer.current(20), timer.wake_at()), (70, 0, Some(70)));
        assert!(timer.expire(70));
        assert_eq!(timer.tsc_deadline(), 0);
        timer.set_tsc_deadline(90);
        timer.set_mode(Mode::OneShot);
        assert_eq!(timer.wake_at(), None);
    }
}
