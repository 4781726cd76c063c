//! When a strategy is due: a cron line in a time zone, and the next instant that it means.
//!
//! This room is pure: it knows calendars and clock changes, and is handed the time and when the
//! last run was. It does not know what runs, nor wait for it. Which run is next after one (`due`),
//! which snapshot is missed (`fresh`), and when a failure is tried again (`retry`) are rules here.
//! `croner` reads the line and finds matching wall-clock times; which instants such a time is, when
//! the clocks change, is decided here.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod due;
mod fresh;
mod retry;

use std::borrow::Cow;
use std::fmt;

use chrono::{
    DateTime, MappedLocalTime, NaiveDateTime, Offset as _, TimeDelta, TimeZone as _, Utc,
};
use chrono_tz::{GapInfo, Tz};
use croner::Cron;
use croner::parser::{CronParser, Year};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use due::{Due, Missed, jitter};
pub use fresh::{Allowance, Overdue};
pub use retry::Retry;

/// A cron line in a time zone.
///
/// Five fields: minute, hour, day of the month, month, day of the week; a sixth in front is the
/// second. Names (`MON`, `JAN`), lists, ranges and steps; Sunday is 0 or 7; `L` is the last day,
/// `FRI#2` the second Friday; `@daily` and its like. As in every cron, a line that restricts both
/// kinds of day fires on days that fit either.
#[derive(Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The line as it was written.
    pub line: String,
    /// The zone that the line is read in.
    pub timezone: Tz,
    cron: Cron,
    clock_changes: ClockChanges,
}

/// What a line means where the clocks change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClockChanges {
    /// A line of fixed times (no `*` and no step in hour and minute), which means so many runs a
    /// day: a time that is skipped is due at the end of the gap, a time that is repeated is due the
    /// first time only.
    OncePerTime,
    /// Any other line, which means an interval: due whenever the clock really shows a time that
    /// fits.
    EveryOccurrence,
}

/// A text that is not a cron line, or one that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// It cannot be read.
    #[error("`{line}` is not a cron line: {problem}")]
    Line { line: String, problem: String },
    /// Nothing could be backed up then that a schedule should decide on.
    #[error("`@reboot` is not a time; a schedule says when a strategy is due by the clock")]
    Reboot,
    /// It can be read, and is never due.
    #[error("`{0}` is never due: no date fits it")]
    Never(String),
}

/// A text that is not the name of a time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a time zone: expected a name of the IANA database, such as `Europe/Oslo` or `UTC`"
)]
pub struct ZoneError(String);

/// The time zone of a name of the IANA database (`Europe/Oslo`), which is compiled in.
///
/// # Errors
/// When there is none of exactly that name.
pub fn timezone(name: &str) -> Result<Tz, ZoneError> {
    name.parse().map_err(|_| ZoneError(name.to_owned()))
}

/// The names of all time zones.
pub fn timezones() -> impl Iterator<Item = &'static str> {
    chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())
}

/// The line alone.
impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.line)
    }
}

/// In UTC, until its `timezone` is set.
impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let line = String::deserialize(deserializer)?;
        Self::new(&line, Tz::UTC).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Schedule {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Schedule".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "cron" })
    }
}

impl Schedule {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is not one, or is never due (the 31st of February).
    pub fn new(line: &str, timezone: Tz) -> Result<Self, ScheduleError> {
        let wrong = |problem: String| ScheduleError::Line { line: line.to_owned(), problem };
        let trimmed = line.trim();
        if trimmed.eq_ignore_ascii_case("@reboot") {
            return Err(ScheduleError::Reboot);
        }
        let fields: Vec<&str> = trimmed.split_whitespace().collect();
        let nickname = match fields.as_slice() {
            [only] if only.starts_with('@') => Some(only.to_ascii_lowercase()),
            _ => None,
        };
        if let Some(nickname) = &nickname {
            if !NICKNAMES.contains(&nickname.as_str()) {
                return Err(wrong(format!("expected one of `{}`", NICKNAMES.join("`, `"))));
            }
        } else if !(5..=6).contains(&fields.len()) {
            return Err(wrong(format!(
                "it has {} fields; expected minute, hour, day of the month, month and day of the \
                 week, and optionally a second in front",
                fields.len()
            )));
        }
        let parser = CronParser::builder().year(Year::Disallowed).build();
        // `croner` does not know this one.
        let read = if nickname.as_deref() == Some("@midnight") { "@daily" } else { trimmed };
        let cron = parser.parse(read).map_err(|error| wrong(in_words(&fields, &parser, &error)))?;
        let schedule = Self {
            line: trimmed.to_owned(),
            timezone,
            cron,
            clock_changes: if is_fixed(&fields) {
                ClockChanges::OncePerTime
            } else {
                ClockChanges::EveryOccurrence
            },
        };
        // Every date of the calendar comes round within 400 years, so where the search begins does
        // not matter.
        match schedule.next_match(NaiveDateTime::default(), true) {
            Some(_) => Ok(schedule),
            None => Err(ScheduleError::Never(schedule.line)),
        }
    }

    /// The first instant after `after` that the line means; none only at the end of the calendar.
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let local = after.with_timezone(&self.timezone).naive_local();
        let forward = self.next_forward(local, after)?;
        let again = match self.clock_changes {
            ClockChanges::OncePerTime => None,
            ClockChanges::EveryOccurrence => self.next_repeated(local, after),
        };
        Some(again.map_or(forward, |again| again.min(forward)))
    }

    /// The first instant after `after` among those of wall-clock times later than `local`.
    ///
    /// Later times have later instants (of two, the first), so the first that is found is the first
    /// that there is. Only in the repeated hour, the second time round, are there later times with
    /// instants that are past.
    fn next_forward(&self, local: NaiveDateTime, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut wall = local;
        loop {
            wall = self.next_match(wall, false)?;
            let (first, second) = self.instants(wall);
            if let Some(due) =
                [first, second].into_iter().flatten().find(|instant| *instant > after)
            {
                return Some(due);
            }
        }
    }

    /// While a stretch of time will be repeated: the first match of the part of it that is past,
    /// when it comes again.
    fn next_repeated(&self, local: NaiveDateTime, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let MappedLocalTime::Ambiguous(first, second) = self.timezone.from_local_datetime(&local)
        else {
            return None;
        };
        if after >= second {
            return None;
        }
        // The change lies between the two; `before` is always before it, `behind` never.
        let offset = first.offset().fix();
        let (mut before, mut behind) = (first.to_utc(), second.to_utc());
        while behind.signed_duration_since(before) > TimeDelta::seconds(1) {
            let half = TimeDelta::seconds(behind.signed_duration_since(before).num_seconds() / 2);
            let middle = before.checked_add_signed(half)?;
            if self.timezone.offset_from_utc_datetime(&middle.naive_utc()).fix() == offset {
                before = middle;
            } else {
                behind = middle;
            }
        }
        let start = behind.with_timezone(&self.timezone).naive_local();
        let wall = self.next_match(start, true).filter(|wall| *wall <= local)?;
        self.timezone.from_local_datetime(&wall).latest().map(|instant| instant.to_utc())
    }

    /// The instants that a matching wall-clock time means.
    fn instants(&self, wall: NaiveDateTime) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
        match (self.timezone.from_local_datetime(&wall), self.clock_changes) {
            (MappedLocalTime::Single(instant), _) => (Some(instant.to_utc()), None),
            (MappedLocalTime::Ambiguous(first, _), ClockChanges::OncePerTime) => {
                (Some(first.to_utc()), None)
            }
            (MappedLocalTime::Ambiguous(first, second), ClockChanges::EveryOccurrence) => {
                (Some(first.to_utc()), Some(second.to_utc()))
            }
            (MappedLocalTime::None, ClockChanges::EveryOccurrence) => (None, None),
            (MappedLocalTime::None, ClockChanges::OncePerTime) => {
                let end = GapInfo::new(&wall, &self.timezone).and_then(|gap| gap.end);
                (end.map(|end| end.to_utc()), None)
            }
        }
    }

    /// The next wall-clock time that fits the line, as if the clocks never changed.
    fn next_match(&self, wall: NaiveDateTime, inclusive: bool) -> Option<NaiveDateTime> {
        self.cron
            .find_next_occurrence(&wall.and_utc(), inclusive)
            .ok()
            .map(|found| found.naive_utc())
    }
}

/// What cron knows, but for `@reboot`.
const NICKNAMES: [&str; 7] =
    ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// Whether hour and minute name their times one by one.
fn is_fixed(fields: &[&str]) -> bool {
    match fields {
        [nickname] => !nickname.eq_ignore_ascii_case("@hourly"),
        [minute, hour, _, _, _] | [_, minute, hour, _, _, _] => {
            !minute.contains(['*', '/', '?']) && !hour.contains(['*', '/', '?'])
        }
        _ => false,
    }
}

/// The fields of a line from its end, and what may be in them.
const FIELDS: [(&str, &str); 6] = [
    ("day of the week", "0 to 7 or `SUN` to `SAT`"),
    ("month", "1 to 12 or `JAN` to `DEC`"),
    ("day of the month", "1 to 31"),
    ("hour", "0 to 23"),
    ("minute", "0 to 59"),
    ("second", "0 to 59"),
];

/// Which field is wrong: the one that is wrong by itself too. Where there is none, what `croner`
/// says.
fn in_words(fields: &[&str], parser: &CronParser, error: &croner::errors::CronError) -> String {
    for (position, (field, (name, range))) in fields.iter().rev().zip(FIELDS).enumerate() {
        let alone: Vec<&str> =
            (0..6).rev().map(|index| if index == position { field } else { "*" }).collect();
        if parser.parse(&alone.join(" ")).is_err() {
            return format!("`{field}` does not fit the {name} ({range})");
        }
    }
    error.to_string().trim_end_matches('.').to_owned()
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({self})")
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.line, self.timezone)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::{Schedule, ScheduleError, timezone};

    fn schedule(line: &str, zone: &str) -> Schedule {
        Schedule::new(line, timezone(zone).unwrap()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The next `count` fires after `from`, in local time with its offset.
    fn fires(line: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = schedule(line, zone);
        let mut at: DateTime<Utc> = from.parse().unwrap();
        (0..count)
            .map(|_| {
                at = schedule.next_after(at).unwrap();
                at.with_timezone(&schedule.timezone).format("%d %H:%M %z").to_string()
            })
            .collect()
    }

    #[test]
    fn a_skipped_time_of_a_fixed_line_is_due_when_the_gap_ends() {
        // Oslo skips 02:00 to 03:00 on 29 March 2026.
        assert_eq!(
            fires("30 2 * * *", "Europe/Oslo", "2026-03-28T00:00:00Z", 3),
            ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]
        );
        // New York skips 02:00 to 03:00 on 8 March 2026.
        assert_eq!(
            fires("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2),
            ["08 03:00 -0400", "09 02:30 -0400"]
        );
        // Lord Howe skips half an hour only, 02:00 to 02:30 on 4 October 2026.
        assert_eq!(
            fires("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2),
            ["04 02:30 +1100", "05 02:15 +1100"]
        );
    }

    #[test]
    fn skipped_times_of_a_fixed_line_that_coincide_are_due_once() {
        assert_eq!(
            fires("0,15,30 1-4 * * *", "Europe/Oslo", "2026-03-29T00:20:00Z", 5),
            [
                "29 01:30 +0100",
                "29 03:00 +0200",
                "29 03:15 +0200",
                "29 03:30 +0200",
                "29 04:00 +0200"
            ]
        );
        assert_eq!(
            fires("10,30 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2),
            ["04 02:30 +1100", "05 02:10 +1100"]
        );
    }

    #[test]
    fn a_repeated_time_of_a_fixed_line_is_due_the_first_time_only() {
        // Oslo repeats 02:00 to 03:00 on 25 October 2026.
        assert_eq!(
            fires("30 2 * * *", "Europe/Oslo", "2026-10-24T12:00:00Z", 2),
            ["25 02:30 +0200", "26 02:30 +0100"]
        );
        assert_eq!(
            fires("10,50 1-3 * * *", "Europe/Oslo", "2026-10-24T23:55:00Z", 5),
            [
                "25 02:10 +0200",
                "25 02:50 +0200",
                "25 03:10 +0100",
                "25 03:50 +0100",
                "26 01:10 +0100"
            ]
        );
        // Asked in the repeated hour, the second time round.
        assert_eq!(
            fires("50 2 * * *", "Europe/Oslo", "2026-10-25T01:10:00Z", 1),
            ["26 02:50 +0100"]
        );
        // New York repeats 01:00 to 02:00 on 1 November 2026.
        assert_eq!(
            fires("30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2),
            ["01 01:30 -0400", "02 01:30 -0500"]
        );
        // Lord Howe repeats 01:30 to 02:00 on 5 April 2026.
        assert_eq!(
            fires("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", 2),
            ["05 01:45 +1100", "06 01:45 +1030"]
        );
    }

    #[test]
    fn other_lines_are_due_at_every_real_occurrence() {
        // The gap has no occurrence, and the repeated hour has two.
        assert_eq!(
            fires("*/30 * * * *", "Europe/Oslo", "2026-03-29T00:00:00Z", 3),
            ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200"]
        );
        assert_eq!(
            fires("*/30 * * * *", "Europe/Oslo", "2026-10-24T23:31:00Z", 6),
            [
                "25 02:00 +0200",
                "25 02:30 +0200",
                "25 02:00 +0100",
                "25 02:30 +0100",
                "25 03:00 +0100",
                "25 03:30 +0100"
            ]
        );
        assert_eq!(
            fires("20 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 3),
            ["01 01:20 -0400", "01 01:20 -0500", "01 02:20 -0500"]
        );
        assert_eq!(
            fires("*/15 2 * * *", "Europe/Oslo", "2026-03-28T12:00:00Z", 1),
            ["30 02:00 +0200"],
            "an hour that was skipped had no occurrence"
        );
        assert_eq!(
            fires("*/10 1 * * *", "Australia/Lord_Howe", "2026-04-04T14:15:00Z", 7),
            [
                "05 01:20 +1100",
                "05 01:30 +1100",
                "05 01:40 +1100",
                "05 01:50 +1100",
                "05 01:30 +1030",
                "05 01:40 +1030",
                "05 01:50 +1030"
            ]
        );
        assert_eq!(
            fires("@hourly", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", 2),
            ["04 03:00 +1100", "04 04:00 +1100"],
            "02:00 was skipped"
        );
    }

    /// The reference: every minute of the two days around each change is asked whether its wall
    /// clock fits.
    #[test]
    fn every_real_occurrence_is_what_a_look_at_the_clock_each_minute_finds() {
        for (zone, day) in [
            ("Europe/Oslo", "2026-03-28T12:00:00Z"),
            ("Europe/Oslo", "2026-10-24T12:00:00Z"),
            ("America/New_York", "2026-11-01T00:00:00Z"),
            ("Australia/Lord_Howe", "2026-04-04T03:00:00Z"),
            ("Australia/Lord_Howe", "2026-10-03T03:00:00Z"),
        ] {
            for line in ["*/7 * * * *", "5 * * * *", "*/20 1-2 * * *", "0 */2 * * *"] {
                let schedule = schedule(line, zone);
                let start: DateTime<Utc> = day.parse().unwrap();
                let end = start + chrono::TimeDelta::hours(30);
                let mut expected = Vec::new();
                let mut minute = start + chrono::TimeDelta::minutes(1);
                while minute <= end {
                    let wall = minute.with_timezone(&schedule.timezone).naive_local().and_utc();
                    if schedule.cron.is_time_matching(&wall).unwrap() {
                        expected.push(minute);
                    }
                    minute += chrono::TimeDelta::minutes(1);
                }
                let mut found = Vec::new();
                let mut at = start;
                while let Some(next) = schedule.next_after(at).filter(|next| *next <= end) {
                    found.push(next);
                    at = next;
                }
                assert_eq!(found, expected, "{line} in {zone} from {day}");
            }
        }
    }

    #[test]
    fn lines_mean_what_cron_says_they_mean() {
        for (line, from, expected) in [
            ("5 5 * * 7", "2026-11-21T00:00:00Z", "2026-11-22T05:05:00+00:00"),
            ("5 5 * * 0", "2026-11-21T00:00:00Z", "2026-11-22T05:05:00+00:00"),
            ("5 2 1 1,4,7,10 *", "2026-11-21T00:00:00Z", "2027-01-01T02:05:00+00:00"),
            ("0 3 * * mon", "2026-11-21T00:00:00Z", "2026-11-23T03:00:00+00:00"),
            ("0 3 L * *", "2026-11-21T00:00:00Z", "2026-11-30T03:00:00+00:00"),
            ("0 3 * * FRI#2", "2026-11-21T00:00:00Z", "2026-12-11T03:00:00+00:00"),
            ("0 0 29 2 *", "2026-11-21T00:00:00Z", "2028-02-29T00:00:00+00:00"),
            ("10 30 1 * * *", "2026-11-21T00:00:00Z", "2026-11-21T01:30:10+00:00"),
            ("@daily", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00+00:00"),
            ("@Midnight", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00+00:00"),
            ("@weekly", "2026-11-21T00:00:00Z", "2026-11-22T00:00:00+00:00"),
            ("0 0 13 * FRI", "2026-11-21T00:00:00Z", "2026-11-27T00:00:00+00:00"),
            ("0 0 * * *", "2026-11-20T23:59:59.5Z", "2026-11-21T00:00:00+00:00"),
        ] {
            let next = schedule(line, "UTC").next_after(from.parse().unwrap()).unwrap();
            assert_eq!(next.to_rfc3339(), expected, "{line}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_used_is_refused_in_words() {
        let utc = timezone("UTC").unwrap();
        assert_eq!(Schedule::new("@reboot", utc), Err(ScheduleError::Reboot));
        for never in ["0 0 31 2 *", "0 0 30 feb *", "0 0 31 4,6,9,11 *"] {
            assert_eq!(Schedule::new(never, utc), Err(ScheduleError::Never(never.to_owned())));
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a * * * *",
            "@nightly",
            "*/0 * * * *",
            "0 0 0 1 1 * 2027",
            "every day",
            "5-1 * * * *",
            "0 @daily * * *",
            "ä * * * *",
        ] {
            let error = Schedule::new(bad, utc).map(|_| ()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{bad}` is not a cron line: ")), "{error}");
        }
        for (bad, words) in [
            ("30 25 * * *", "`25` does not fit the hour (0 to 23)"),
            ("*/0 * * * *", "`*/0` does not fit the minute (0 to 59)"),
            ("0 0 * * 8", "`8` does not fit the day of the week (0 to 7 or `SUN` to `SAT`)"),
            ("61 0 0 * * *", "`61` does not fit the second (0 to 59)"),
            ("0 0 0 * *", "`0` does not fit the day of the month (1 to 31)"),
        ] {
            let error = Schedule::new(bad, utc).map(|_| ()).unwrap_err().to_string();
            assert_eq!(error, format!("`{bad}` is not a cron line: {words}"));
        }
        assert!(timezone("Europe/Olso").is_err());
    }
}
