//! What the rules of a retention come to on a schedule: those that cannot do there what their name
//! says.
//!
//! Two kinds of rules depend on how far apart runs are. A rule that keeps less than its name says
//! is an error, because who wrote it counts on snapshots that will not be there. A rule that keeps
//! as much or more is advice: restic's own documentation has `keep-daily` with a backup every
//! Sunday, and manual runs come between those of the schedule.
//!
//! - **Never**: a `keep_within*` that is so short that, at each run, the run before lies outside of
//!   it. It keeps the newest snapshot only, which is always kept. An error.
//! - **By chance**: a `keep_within*` as long as it is from one run to the next. What is exactly so
//!   old is too old, so whether the snapshot before the newest is kept hangs on the second in which
//!   a run begins. Advice.
//! - **As `keep_last`**: a count by periods that are shorter than what lies between two runs, such
//!   as `keep_hourly = 24` with a daily schedule. There are never two snapshots in one hour, so it
//!   keeps the last 24, which are those of 24 days. Advice.
//!
//! Nothing is said of a period that is about as long as it is between two runs (`keep_daily` with a
//! daily schedule), nor of a strategy that is run by hand or is not active.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::model::{SnapshotId, Span};
use crate::retention::{Calendar, Count, Policy, Reach, Rule, Snapshot, decide};
use crate::schedule::Schedule;

/// Where a schedule is looked at from; the settings of a file mean the same whenever it is read.
/// The first years have a leap day, and changes of the clocks in all zones that have them.
const FROM: DateTime<Utc> = match DateTime::from_timestamp_secs(1_704_067_200) {
    Some(new_year_of_2024) => new_year_of_2024,
    None => DateTime::UNIX_EPOCH,
};
/// How long a schedule is looked at, and how many runs of it at most: a schedule of every minute
/// tells within an hour what it does.
const LONG: TimeDelta = TimeDelta::days(5 * 366);
const MANY: usize = 1_000;

/// The rules of `policy` that keep nothing on `schedule`, in words for an error.
pub(super) fn never(policy: &Policy, schedule: &Schedule) -> Vec<(Rule, String)> {
    // Of most rules the first two runs tell that they keep something, so that this takes no time.
    let keeps_nothing = |rule: &Rule| {
        matches!(rule.reach, Reach::Within(_))
            && pairs(schedule).all(|pair| age(rule, schedule, pair) == Age::Beyond)
    };
    let words = |rule: Rule| {
        let shortest = Span::from(shortest(schedule).to_std().unwrap_or_default());
        (
            rule,
            format!(
                "`{rule}` keeps nothing on the schedule `{}`: there are {shortest} and more \
                 between two runs, so only the newest snapshot is so young, which is kept anyway",
                schedule.line
            ),
        )
    };
    policy.rules().filter(keeps_nothing).map(words).collect()
}

/// The rules of `policy` that are not quite what they seem on `schedule`, a sentence each.
pub(super) fn odd(policy: &Policy, schedule: &Schedule) -> Vec<String> {
    let line = &schedule.line;
    let pairs: Vec<_> = pairs(schedule).collect();
    let shortest = shortest(schedule);
    let words = |rule: Rule| match rule.reach {
        Reach::Within(_) => {
            let number =
                |wanted| pairs.iter().filter(|pair| age(&rule, schedule, **pair) == wanted).count();
            (number(Age::Just) > number(Age::Within)).then(|| {
                format!(
                    "`{rule}` is just as long as it is from one run of the schedule `{line}` \
                    to the next: whether it keeps the snapshot before the newest is a matter of \
                    seconds. Make it longer or shorter"
                )
            })
        }
        Reach::Count(count) => {
            let noun = longest(rule.calendar)
                .filter(|(_, longest)| *longest < shortest)
                .map(|(noun, _)| noun)?;
            let kept = match count {
                Count::Limited(count) => format!("the last {count}"),
                Count::Unlimited => "all".to_owned(),
            };
            Some(format!(
                "`{rule}` keeps {kept} of the schedule `{line}`, as `keep_last = {count}` would: \
                 it never has two in {noun}"
            ))
        }
    };
    policy.rules().filter_map(words).collect()
}

/// How old a snapshot is at the least when `policy` lets it go, if every run of `schedule` succeeds
/// and prunes. None when it keeps all of the runs that are looked at.
pub(super) fn first_goes(policy: &Policy, schedule: &Schedule) -> Option<Span> {
    let mut there: Vec<Snapshot> = Vec::new();
    let mut youngest: Option<TimeDelta> = None;
    for (run, _) in pairs(schedule) {
        there.push(Snapshot { id: SnapshotId::new(run, [0; 3]), whole: true });
        let decisions = decide(policy, &there, schedule.timezone, run, &BTreeMap::new());
        let going: BTreeSet<SnapshotId> =
            decisions.into_iter().filter(|all| !all.keep).map(|all| all.id).collect();
        there.retain(|snapshot| !going.contains(&snapshot.id));
        youngest = going.iter().map(|id| run - id.time()).chain(youngest).min();
    }
    youngest.and_then(|age| age.to_std().ok()).map(Span::from)
}

/// Each run of a schedule with the next one; at least one pair, unless the schedule has no second
/// run.
fn pairs(schedule: &Schedule) -> impl Iterator<Item = (DateTime<Utc>, DateTime<Utc>)> {
    let next = |after| schedule.next_after(after);
    let first = next(FROM).and_then(|run| Some((run, next(run)?)));
    let all = std::iter::successors(first, move |(_, run)| Some((*run, next(*run)?)));
    all.take(MANY)
        .enumerate()
        .take_while(|(index, (run, _))| *index == 0 || *run - FROM < LONG)
        .map(|(_, pair)| pair)
}

/// The least time from one run to the next.
pub(super) fn shortest(schedule: &Schedule) -> TimeDelta {
    pairs(schedule).map(|(run, next)| next - run).min().unwrap_or(TimeDelta::MAX)
}

/// Where the run before is, for a rule that keeps what is younger than a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Within,
    /// Exactly where it ends; whichever begins a little late decides.
    Just,
    Beyond,
}

fn age(rule: &Rule, schedule: &Schedule, (before, run): (DateTime<Utc>, DateTime<Utc>)) -> Age {
    let Reach::Within(period) = rule.reach else { return Age::Within };
    match period.before(run, schedule.timezone) {
        Some(end) if before < end => Age::Beyond,
        Some(end) if before == end => Age::Just,
        _ => Age::Within,
    }
}

/// The longest that such a period takes, when the clocks go back in it, with its noun.
fn longest(calendar: Calendar) -> Option<(&'static str, TimeDelta)> {
    let (noun, hours) = match calendar {
        Calendar::Each => return None,
        // Longer once a year, which would only keep silent what is true on all other days.
        Calendar::Hour => ("an hour", 1),
        Calendar::Day => ("a day", 24 + 1),
        Calendar::Week => ("a week", 7 * 24 + 1),
        Calendar::Month => ("a month", 31 * 24 + 1),
        Calendar::Quarter => ("a quarter", 92 * 24),
        Calendar::Year => ("a year", 366 * 24),
    };
    Some((noun, TimeDelta::hours(hours)))
}

#[cfg(test)]
mod tests {
    use super::{first_goes, never, odd};
    use crate::retention::Policy;
    use crate::schedule::{Schedule, timezone};

    fn read(rules: &str, line: &str, zone: &str) -> (Policy, Schedule) {
        (toml::from_str(rules).unwrap(), Schedule::new(line, timezone(zone).unwrap()).unwrap())
    }

    #[test]
    fn a_period_shorter_than_from_run_to_run_keeps_nothing() {
        for (line, zone, rules) in [
            ("30 1 * * *", "UTC", "keep_within = \"23h\""),
            ("30 1 * * *", "Europe/Oslo", "keep_within_hourly = \"22h\""),
            ("30 1 * * 1", "Europe/Oslo", "keep_within_daily = \"6d\""),
            ("0 3 1 * *", "America/New_York", "keep_within_weekly = \"27d\""),
            ("0 0 29 2 *", "UTC", "keep_within_yearly = \"3y\""),
            ("0 * * * *", "UTC", "keep_within = \"1h\""),
        ] {
            let (policy, schedule) = read(rules, line, zone);
            let wrong = never(&policy, &schedule);
            // An hour is the shortest that can be configured, and just as long as the last one
            // here: that is by chance.
            assert_eq!(
                wrong.len(),
                usize::from(line != "0 * * * *"),
                "{line} {zone} {rules}: {wrong:?}"
            );
        }
        let (policy, schedule) = read("keep_within = \"12h\"\nkeep_daily = 7", "30 1 * * *", "UTC");
        let words: Vec<String> =
            never(&policy, &schedule).into_iter().map(|(_, words)| words).collect();
        assert_eq!(
            words,
            ["`keep_within = 12h` keeps nothing on the schedule `30 1 * * *`: there are 1d and \
                 more between two runs, so only the newest snapshot is so young, which is kept \
                 anyway"]
        );
    }

    #[test]
    fn what_keeps_something_is_no_error() {
        for (line, zone, rules) in [
            ("30 1 * * *", "UTC", "keep_within = \"25h\"\nkeep_within_yearly = \"2d\""),
            ("30 1 * * *", "UTC", "keep_within = \"1d\""),
            // On one night a year it is an hour less.
            ("30 1 * * *", "Europe/Oslo", "keep_within = \"23h\""),
            // From Monday to Friday; over the weekend only it is longer.
            ("30 1 * * 1-5", "UTC", "keep_within = \"2d\""),
            ("0 1,2 * * *", "UTC", "keep_within = \"2h\""),
            ("30 1 * * 0", "UTC", "keep_daily = 4\nkeep_hourly = 9"),
            ("* * * * *", "UTC", "keep_within = \"1h\"\nkeep_last = 1"),
        ] {
            let (policy, schedule) = read(rules, line, zone);
            assert_eq!(never(&policy, &schedule), [], "{line} {zone} {rules}");
        }
    }

    #[test]
    fn what_is_not_quite_what_it_seems_is_advice() {
        for (line, zone, rules, words) in [
            // The first example of restic's documentation.
            (
                "0 11 * * 0",
                "UTC",
                "keep_daily = 4",
                "`keep_daily = 4` keeps the last 4 of the schedule `0 11 * * 0`, as `keep_last = \
                 4` would: it never has two in a day",
            ),
            (
                "30 1 * * *",
                "Europe/Oslo",
                "keep_hourly = -1",
                "`keep_hourly = unlimited` keeps all of the schedule `30 1 * * *`, as `keep_last = \
                 unlimited` would: it never has two in an hour",
            ),
            ("0 3 1 * *", "UTC", "keep_weekly = 8", "never has two in a week"),
            ("0 3 1 1,7 *", "UTC", "keep_quarterly = 8", "never has two in a quarter"),
            (
                "30 1 * * *",
                "Europe/Oslo",
                "keep_within = \"1d\"",
                "`keep_within = 1d` is just as long as it is from one run",
            ),
            ("30 1 * * *", "Europe/Oslo", "keep_within = \"24h\"", "just as long"),
            ("0 * * * *", "Europe/Oslo", "keep_within_daily = \"1h\"", "just as long"),
            ("30 2 * * *", "Europe/Oslo", "keep_within = \"1d\"", "just as long"),
        ] {
            let (policy, schedule) = read(rules, line, zone);
            let advice = odd(&policy, &schedule);
            assert!(
                advice.len() == 1 && advice[0].contains(words),
                "{line} {zone} {rules}: {advice:?}"
            );
        }
    }

    #[test]
    fn what_everyone_configures_needs_no_advice() {
        let usual = "keep_daily = 7\nkeep_weekly = 5\nkeep_monthly = 12\nkeep_yearly = 75\n\
            keep_quarterly = -1";
        let within = "keep_within_daily = \"7d\"\nkeep_within_weekly = \"1m\"\n\
            keep_within_monthly = \"1y\"\nkeep_within_yearly = \"75y\"";
        for zone in ["UTC", "Europe/Oslo", "America/New_York", "Australia/Lord_Howe"] {
            for (line, rules) in [
                ("30 1 * * *", usual),
                ("30 1 * * *", within),
                ("30 2 * * 1-5", usual),
                ("@hourly", "keep_hourly = 24\nkeep_last = 3\nkeep_within = \"2d\""),
                ("*/15 * * * *", usual),
                ("30 1 * * 0", "keep_weekly = 8\nkeep_monthly = 12\nkeep_yearly = 3"),
                ("0 0 1 * *", "keep_monthly = 12\nkeep_quarterly = 4"),
            ] {
                let (policy, schedule) = read(rules, line, zone);
                assert_eq!(odd(&policy, &schedule), [""; 0], "{line} {zone}");
                assert_eq!(never(&policy, &schedule), [], "{line} {zone}");
            }
        }
    }

    #[test]
    fn how_soon_a_snapshot_goes_is_known_before_it_does() {
        for (line, zone, rules, goes) in [
            ("30 1 * * *", "UTC", "keep_daily = 7", Some("7d")),
            ("30 1 * * *", "UTC", "keep_daily = 7\nkeep_monthly = 12", Some("7d")),
            ("30 1 * * *", "UTC", "keep_monthly = 12\nkeep_last = 1", Some("1d")),
            ("30 1 * * *", "UTC", "keep_within = \"30d\"", Some("30d")),
            // 23 hours, on one day of the year.
            ("30 1 * * *", "Europe/Oslo", "keep_last = 1", Some("23h")),
            ("30 1 * * 0", "UTC", "keep_last = 4", Some("28d")),
            ("30 1 * * *", "UTC", "keep_last = -1", None),
            ("30 1 1 1 *", "UTC", "keep_yearly = 10", None),
        ] {
            let (policy, schedule) = read(rules, line, zone);
            assert_eq!(
                first_goes(&policy, &schedule).map(|age| age.to_string()).as_deref(),
                goes,
                "{line} {zone} {rules}"
            );
        }
    }
}
