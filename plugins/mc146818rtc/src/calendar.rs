//! Days and dates of the Gregorian calendar, for any numbers that a guest may write.

/// A moment as the chip's registers divide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DateTime {
    /// Year.
    pub year: i64,
    /// Month, 1 to 12; others are counted on.
    pub month: i64,
    /// Day, 1 to 31; others are counted on.
    pub day: i64,
    /// Hour, 0 to 23.
    pub hour: i64,
    /// Minute.
    pub minute: i64,
    /// Second.
    pub second: i64,
}

/// Days in 400 years.
const ERA: i64 = 146_097;

impl DateTime {
    /// The moment so many seconds after 1970-01-01T00:00:00.
    pub fn from_seconds(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Years begin in March here, so that the day that comes and goes is the last one.
        let days = days + 719_468;
        let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: of_year - (153 * shifted + 2) / 5 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// Seconds since 1970-01-01T00:00:00.
    pub fn to_seconds(self) -> i64 {
        let year = self.year + (self.month - 1).div_euclid(12);
        let month = (self.month - 1).rem_euclid(12) + 1;
        let year = year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
        let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = era * ERA + of_era - 719_468 + self.day - 1;
        ((days * 24 + self.hour) * 60 + self.minute) * 60 + self.second
    }

    /// Day of the week, Sunday is 1.
    pub fn weekday(self) -> i64 {
        (self.to_seconds().div_euclid(86_400) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments_are_right() {
        for (seconds, year, month, day, weekday) in [
            (0, 1970, 1, 1, 5),
            (951_782_400, 2000, 2, 29, 3),
            (1_767_225_600, 2026, 1, 1, 5),
            (4_107_542_400, 2100, 3, 1, 2),
            (-1, 1969, 12, 31, 4),
        ] {
            let t = DateTime::from_seconds(seconds);
            assert_eq!((t.year, t.month, t.day, t.weekday()), (year, month, day, weekday), "{seconds}");
        }
    }

    #[test]
    fn months_and_days_out_of_range_are_counted_on() {
        let moment = |year, month, day| DateTime { year, month, day, hour: 0, minute: 0, second: 0 }.to_seconds();
        assert_eq!(moment(2025, 13, 1), moment(2026, 1, 1));
        assert_eq!(moment(2026, 0, 1), moment(2025, 12, 1));
        assert_eq!(moment(2026, 3, 0), moment(2026, 2, 28));
    }

    proptest! {
        #[test]
        fn seconds_survive_the_way_there_and_back(seconds in -100_000_000_000i64..400_000_000_000) {
            prop_assert_eq!(DateTime::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}
