//! One rule of a policy: which snapshots it takes for the same, and how far back it keeps one of
//! them.

use std::fmt;

use chrono::{
    DateTime, Datelike, Days, MappedLocalTime, Months, TimeDelta, TimeZone as _, Timelike, Utc,
};
use chrono_tz::{GapInfo, Tz};

use super::{Count, Period, Policy};

/// A rule of a policy; as text, what was configured: `keep_daily = 30`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Its key in the policy.
    pub name: &'static str,
    /// Of the snapshots of one such period, the newest is kept.
    pub calendar: Calendar,
    pub reach: Reach,
}

/// How far back a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// So many periods that have a snapshot.
    Count(Count),
    /// What is younger than the newest snapshot by less than this.
    Within(Period),
}

/// What of the calendar tells two snapshots apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calendar {
    /// Nothing: each is for itself.
    Each,
    /// An hour that the clock shows; one that is shown twice, when the clocks go back, is one.
    Hour,
    /// A date.
    Day,
    /// An ISO week, from Monday.
    Week,
    /// A month of a year.
    Month,
    /// Three months, from January, April, July and October.
    Quarter,
    /// A year.
    Year,
}

impl Calendar {
    /// Numbers that are equal for times of the same period only.
    pub(super) fn period(self, time: DateTime<Utc>, timezone: Tz) -> (i32, u32, u32) {
        let local = time.with_timezone(&timezone).naive_local();
        match self {
            Self::Each => (0, 0, 0),
            Self::Hour => (local.year(), local.ordinal(), local.hour()),
            Self::Day => (local.year(), local.ordinal(), 0),
            Self::Week => (local.iso_week().year(), local.iso_week().week(), 0),
            Self::Month => (local.year(), local.month(), 0),
            Self::Quarter => (local.year(), local.month0() / 3, 0),
            Self::Year => (local.year(), 0, 0),
        }
    }

    /// Its noun, but for [`Calendar::Each`], which has none.
    pub fn noun(self) -> Option<&'static str> {
        match self {
            Self::Each => None,
            Self::Hour => Some("hour"),
            Self::Day => Some("day"),
            Self::Week => Some("week"),
            Self::Month => Some("month"),
            Self::Quarter => Some("quarter"),
            Self::Year => Some("year"),
        }
    }

    /// Whether two instants are in the same period of the zone.
    pub fn is_same(self, one: DateTime<Utc>, other: DateTime<Utc>, timezone: Tz) -> bool {
        self != Self::Each && self.period(one, timezone) == self.period(other, timezone)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reach {
            Reach::Count(count) => write!(f, "{} = {count}", self.name),
            Reach::Within(period) => write!(f, "{} = {period}", self.name),
        }
    }
}

impl Policy {
    /// The rules that are set.
    pub fn rules(&self) -> impl Iterator<Item = Rule> {
        use Calendar::{Day, Each, Hour, Month, Quarter, Week, Year};
        let count = |count: Option<Count>| count.map(Reach::Count);
        let within = |period: Option<Period>| period.map(Reach::Within);
        [
            ("keep_last", Each, count(self.keep_last)),
            ("keep_hourly", Hour, count(self.keep_hourly)),
            ("keep_daily", Day, count(self.keep_daily)),
            ("keep_weekly", Week, count(self.keep_weekly)),
            ("keep_monthly", Month, count(self.keep_monthly)),
            ("keep_quarterly", Quarter, count(self.keep_quarterly)),
            ("keep_yearly", Year, count(self.keep_yearly)),
            ("keep_within", Each, within(self.keep_within)),
            ("keep_within_hourly", Hour, within(self.keep_within_hourly)),
            ("keep_within_daily", Day, within(self.keep_within_daily)),
            ("keep_within_weekly", Week, within(self.keep_within_weekly)),
            ("keep_within_monthly", Month, within(self.keep_within_monthly)),
            ("keep_within_quarterly", Quarter, within(self.keep_within_quarterly)),
            ("keep_within_yearly", Year, within(self.keep_within_yearly)),
        ]
        .into_iter()
        .filter_map(|(name, calendar, reach)| reach.map(|reach| Rule { name, calendar, reach }))
    }
}

impl Period {
    /// The instant this long before another: months and days by the calendar of the zone, then
    /// hours as time that passes. A month that is too short for the day ends it: a month before 31
    /// March is 28 February (restic goes on to 3 March, and so keeps less). Where the clocks
    /// change, a time that is shown twice is the first, and one that is skipped is the end of the
    /// gap, as for a schedule. None before the calendar begins.
    pub fn before(self, instant: DateTime<Utc>, timezone: Tz) -> Option<DateTime<Utc>> {
        let wall = instant
            .with_timezone(&timezone)
            .naive_local()
            .checked_sub_months(Months::new(self.months))?
            .checked_sub_days(Days::new(self.days.into()))?;
        let instant = if (self.months, self.days) == (0, 0) {
            // What time the clock showed does not matter: the present hour may be one that is shown
            // twice.
            instant
        } else {
            match timezone.from_local_datetime(&wall) {
                MappedLocalTime::Single(instant) | MappedLocalTime::Ambiguous(instant, _) => {
                    instant.to_utc()
                }
                MappedLocalTime::None => GapInfo::new(&wall, &timezone)?.end?.to_utc(),
            }
        };
        instant.checked_sub_signed(TimeDelta::hours(self.hours.into()))
    }
}
