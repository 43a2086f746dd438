//! The time of day that a real-time clock shows (`-rtc base=…,clock=…`).

use std::time::{SystemTime, UNIX_EPOCH};

use crate::VirtualClock;

/// The host's time of day, in nanoseconds since 1970-01-01 00:00 UTC (negative before).
pub fn host_utc_ns() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

#[derive(Debug, Clone)]
enum Reference {
    Host,
    Virtual(VirtualClock),
}

/// A time of day for the guest: a reference clock and an offset. Times are nanoseconds since 1970-01-01 00:00 UTC.
///
/// `base=utc` starts at [`host_utc_ns`]; `base=localtime` adds the offset of the time zone; a date is itself.
#[derive(Debug, Clone)]
pub struct UtcClock {
    reference: Reference,
    offset_ns: i64,
}

impl UtcClock {
    /// `clock=vm`: shows `start_ns` now, and goes, stops and steps with `clock`.
    pub fn following(clock: &VirtualClock, start_ns: i64) -> Self {
        let offset_ns = start_ns.saturating_sub_unsigned(clock.now());
        Self { reference: Reference::Virtual(clock.clone()), offset_ns }
    }

    /// `clock=host`: shows `start_ns` now, and goes with the host's time of day, also while the machine is stopped and
    /// when the host's clock is set.
    pub fn following_host(start_ns: i64) -> Self {
        Self { reference: Reference::Host, offset_ns: start_ns.saturating_sub(host_utc_ns()) }
    }

    /// The time of day.
    pub fn utc_now_ns(&self) -> i64 {
        match &self.reference {
            Reference::Host => self.offset_ns.saturating_add(host_utc_ns()),
            Reference::Virtual(clock) => self.offset_ns.saturating_add_unsigned(clock.now()),
        }
    }

    /// The virtual clock that this time of day goes with, if it does: its timers can then be armed for
    /// [`deadline`](Self::deadline).
    pub fn virtual_clock(&self) -> Option<&VirtualClock> {
        match &self.reference {
            Reference::Host => None,
            Reference::Virtual(clock) => Some(clock),
        }
    }

    /// When `clock` will stand at the moment that this clock shows `utc_ns`, if both go on as they do now.
    pub fn deadline(&self, clock: &VirtualClock, utc_ns: i64) -> u64 {
        let ahead = utc_ns.saturating_sub(self.utc_now_ns());
        clock.now().saturating_add_signed(ahead)
    }
}
