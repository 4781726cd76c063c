//! The decision, with the semantics that restic's users know (`restic forget`, `internal/data/snapshot_policy.go` there): newest first,
//! each snapshot is held against every rule by itself.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, Days, MappedLocalTime, Months, Offset as _, TimeDelta, TimeZone as _, Timelike, Utc};
use chrono_tz::Tz;
use serde::Serialize;

use super::{Count, Period, Policy};
use crate::model::SnapshotId;

/// A snapshot, as far as a decision depends on it. Its time is that of its id: when its run began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The snapshot.
    pub id: SnapshotId,
    /// Whether no content is missing from it.
    pub whole: bool,
}

/// What becomes of a snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The snapshot.
    pub id: SnapshotId,
    /// Whether it is kept; else it may be deleted.
    pub keep: bool,
    /// Every reason, in words; at least one.
    pub reasons: Vec<String>,
}

/// Decides on each of `snapshots`, which are all those of one instance and strategy on one storage. The decisions come newest first.
///
/// - Periods are those of `timezone`, weeks are ISO weeks. Of each period the newest snapshot counts. The oldest snapshot
///   is kept by a rule whose count is not used up, so that history grows to its full length.
/// - Only whole snapshots count. A partial one is kept until there is a newer whole one.
/// - Snapshots that are later than `now` neither count nor are deleted: a clock was wrong, and nobody can say what they are.
/// - The newest whole snapshot is never deleted, nor are those in `protected`, which says of each why.
/// - A policy without any rule keeps everything.
pub fn decide(
    policy: &Policy,
    snapshots: &[Snapshot],
    timezone: Tz,
    now: DateTime<Utc>,
    protected: &BTreeMap<SnapshotId, String>,
) -> Vec<Decision> {
    let mut newest_first: Vec<&Snapshot> = snapshots.iter().collect();
    newest_first.sort_by(|a, b| b.id.time().cmp(&a.id.time()).then_with(|| b.id.cmp(&a.id)));
    let counting: Vec<&Snapshot> =
        newest_first.iter().copied().filter(|snapshot| snapshot.whole && snapshot.id.time() <= now).collect();
    let newest = counting.first().map(|snapshot| &snapshot.id);
    let oldest = counting.last().map(|snapshot| &snapshot.id);
    let mut rules = newest.map(|newest| rules(policy, newest.time(), timezone)).unwrap_or_default();
    newest_first
        .into_iter()
        .map(|Snapshot { id, whole }| {
            let mut reasons: Vec<String> = protected.get(id).cloned().into_iter().collect();
            let mut fate = "no rule keeps it".to_owned();
            if id.time() > now {
                reasons.push("its time is in the future".to_owned());
            } else if !whole {
                match newest.filter(|newest| newest.time() > id.time()) {
                    Some(newest) => fate = format!("it is partial, and `{newest}` is newer and whole"),
                    None => reasons.push("it is partial, but no whole one is newer".to_owned()),
                }
            } else {
                if newest == Some(id) {
                    reasons.push("the newest whole one".to_owned());
                }
                if policy == &Policy::default() {
                    reasons.push("the policy has no rule".to_owned());
                }
                reasons.extend(rules.iter_mut().filter_map(|rule| rule.keep(id.time(), oldest == Some(id), timezone)));
            }
            let keep = !reasons.is_empty();
            Decision { id: id.clone(), keep, reasons: if keep { reasons } else { vec![fate] } }
        })
        .collect()
}

/// What of the calendar tells two snapshots apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calendar {
    /// Nothing: each is for itself.
    Each,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

impl Calendar {
    /// Numbers that are equal for times of the same period only.
    fn period(self, time: DateTime<Utc>, timezone: Tz) -> (i32, u32, u32) {
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
}

/// One rule of a policy while it is held against the snapshots, newest first.
struct Rule {
    /// `keep_daily = 30`.
    text: String,
    calendar: Calendar,
    reach: Reach,
    last: Option<(i32, u32, u32)>,
}

/// How far back a rule keeps.
enum Reach {
    /// So many more.
    Left(u32),
    /// Without limit.
    Unlimited,
    /// What is later than this.
    After(DateTime<Utc>),
}

impl Rule {
    /// Why this rule keeps the snapshot of `time`, if it does; then it is spent on it.
    fn keep(&mut self, time: DateTime<Utc>, oldest: bool, timezone: Tz) -> Option<String> {
        let reaches = match &self.reach {
            Reach::Left(left) => *left > 0,
            Reach::Unlimited => true,
            Reach::After(cutoff) => time > *cutoff,
        };
        if !reaches {
            return None;
        }
        let period = Some(self.calendar.period(time, timezone));
        let first = self.calendar == Calendar::Each || period != self.last;
        if !first && !oldest {
            return None;
        }
        self.last = period;
        if let Reach::Left(left) = &mut self.reach {
            *left -= 1;
        }
        let oldest = if first { "" } else { ", as the oldest there is" };
        Some(format!("`{}`{oldest}", self.text))
    }
}

fn rules(policy: &Policy, newest: DateTime<Utc>, timezone: Tz) -> Vec<Rule> {
    let counts = [
        ("keep_last", Calendar::Each, policy.keep_last),
        ("keep_hourly", Calendar::Hour, policy.keep_hourly),
        ("keep_daily", Calendar::Day, policy.keep_daily),
        ("keep_weekly", Calendar::Week, policy.keep_weekly),
        ("keep_monthly", Calendar::Month, policy.keep_monthly),
        ("keep_quarterly", Calendar::Quarter, policy.keep_quarterly),
        ("keep_yearly", Calendar::Year, policy.keep_yearly),
    ];
    let periods = [
        ("keep_within", Calendar::Each, policy.keep_within),
        ("keep_within_hourly", Calendar::Hour, policy.keep_within_hourly),
        ("keep_within_daily", Calendar::Day, policy.keep_within_daily),
        ("keep_within_weekly", Calendar::Week, policy.keep_within_weekly),
        ("keep_within_monthly", Calendar::Month, policy.keep_within_monthly),
        ("keep_within_quarterly", Calendar::Quarter, policy.keep_within_quarterly),
        ("keep_within_yearly", Calendar::Year, policy.keep_within_yearly),
    ];
    let counts = counts.into_iter().filter_map(|(name, calendar, count)| {
        let count = count?;
        let reach = match count {
            Count::Limited(count) => Reach::Left(count.get()),
            Count::Unlimited => Reach::Unlimited,
        };
        Some(Rule { text: format!("{name} = {count}"), calendar, reach, last: None })
    });
    let periods = periods.into_iter().filter_map(|(name, calendar, period)| {
        let period = period?;
        let reach = cutoff(newest, period, timezone).map_or(Reach::Unlimited, Reach::After);
        Some(Rule { text: format!("{name} = {period}"), calendar, reach, last: None })
    });
    counts.chain(periods).collect()
}

/// The instant a period before `newest`: months and days by the calendar of the zone, then hours as time that passes. A month that is
/// shorter ends earlier (a month before 31 March is 28 February). None before the calendar begins.
fn cutoff(newest: DateTime<Utc>, period: Period, timezone: Tz) -> Option<DateTime<Utc>> {
    let local = newest.with_timezone(&timezone);
    let wall = local
        .naive_local()
        .checked_sub_months(Months::new(period.months))?
        .checked_sub_days(Days::new(period.days.into()))?;
    let instant = match timezone.from_local_datetime(&wall) {
        MappedLocalTime::Single(instant) | MappedLocalTime::Ambiguous(instant, _) => instant.to_utc(),
        // A time that was skipped: the one that a clock without the change would have shown.
        MappedLocalTime::None => local.offset().fix().from_local_datetime(&wall).single()?.to_utc(),
    };
    instant.checked_sub_signed(TimeDelta::hours(period.hours.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::{DateTime, TimeDelta, Utc};
    use chrono_tz::Tz;
    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    use super::{Decision, Policy, Snapshot, decide};
    use crate::model::SnapshotId;

    fn at(time: &str) -> DateTime<Utc> {
        format!("{time}:00Z").parse().unwrap()
    }

    fn snapshot(time: DateTime<Utc>, whole: bool) -> Snapshot {
        Snapshot { id: SnapshotId::new(time, [1, 2, 3]), whole }
    }

    fn policy(rules: &str) -> Policy {
        toml::from_str(rules).unwrap()
    }

    /// The kept ones of `times`, by their positions.
    fn kept(rules: &str, zone: &str, times: &[DateTime<Utc>]) -> Vec<usize> {
        let snapshots: Vec<Snapshot> = times.iter().map(|time| snapshot(*time, true)).collect();
        let decisions =
            decide(&policy(rules), &snapshots, zone.parse().unwrap(), at("2030-01-01T00:00"), &BTreeMap::new());
        assert_eq!(decisions.len(), times.len());
        assert!(decisions.iter().all(|decision| !decision.reasons.is_empty()));
        (0..times.len())
            .filter(|index| decisions.iter().any(|decision| decision.keep && decision.id == snapshots[*index].id))
            .collect()
    }

    fn every(hours: i64, count: i64, newest: &str) -> Vec<DateTime<Utc>> {
        (0..count).map(|index| at(newest) - TimeDelta::hours(hours * index)).collect()
    }

    /// Rules, times, and the positions of those that are kept.
    type Case<'a> = (&'a str, Vec<DateTime<Utc>>, &'a [usize]);

    #[test]
    fn each_rule_keeps_what_restics_does() {
        let daily = |count| every(24, count, "2026-11-21T12:00");
        let cases: &[Case<'_>] = &[
            ("keep_last = 3", daily(10), &[0, 1, 2]),
            ("keep_last = 30", daily(3), &[0, 1, 2]),
            ("keep_last = -1", daily(4), &[0, 1, 2, 3]),
            // Six a day: the newest of each day.
            ("keep_daily = 3", every(4, 24, "2026-11-21T20:00"), &[0, 6, 12]),
            // The count is not used up, so the oldest is kept too.
            ("keep_daily = 9", every(4, 23, "2026-11-21T20:00"), &[0, 6, 12, 18, 22]),
            ("keep_daily = \"unlimited\"", every(4, 20, "2026-11-21T20:00"), &[0, 6, 12, 18, 19]),
            // 2026-11-21 is a Saturday; the weeks before it end on Sundays.
            ("keep_weekly = 3", daily(21), &[0, 6, 13]),
            ("keep_monthly = 2", daily(60), &[0, 21]),
            ("keep_quarterly = 2", daily(80), &[0, 52]),
            ("keep_yearly = 2", daily(400), &[0, 325]),
            (
                "keep_hourly = 2",
                vec![at("2026-11-21T12:50"), at("2026-11-21T12:10"), at("2026-11-21T11:59"), at("2026-11-21T10:00")],
                &[0, 2],
            ),
            // Rules do not wait for each other: the newest uses up one of each.
            ("keep_last = 1\nkeep_daily = 2", daily(5), &[0, 1]),
            ("keep_daily = 2\nkeep_weekly = 2", daily(14), &[0, 1, 6]),
            // Counted back from the newest snapshot, not from now; exactly so old is too old.
            ("keep_within = \"3d\"", daily(10), &[0, 1, 2]),
            ("keep_within = \"1m\"", daily(40), &(0..31).collect::<Vec<_>>()),
            ("keep_within = \"36h\"", daily(10), &[0, 1]),
            ("keep_within_daily = \"2d\"", every(4, 24, "2026-11-21T20:00"), &[0, 6]),
            ("keep_within_weekly = \"21d\"", daily(28), &[0, 6, 13, 20]),
            ("keep_within_yearly = \"2y\"", daily(500), &[0, 325, 499]),
        ];
        for (rules, times, expected) in cases {
            assert_eq!(kept(rules, "UTC", times), *expected, "{rules}");
        }
    }

    #[test]
    fn weeks_are_iso_weeks() {
        // Friday 1 January 2027 is in week 53 of 2026, with Monday 28 December.
        let times = [at("2027-01-04T12:00"), at("2027-01-01T12:00"), at("2026-12-28T12:00"), at("2026-12-27T12:00")];
        assert_eq!(kept("keep_weekly = 2", "UTC", &times), [0, 1]);
        assert_eq!(kept("keep_yearly = 2", "UTC", &times), [0, 2]);
    }

    #[test]
    fn periods_are_those_of_the_time_zone() {
        let times = [at("2026-11-21T12:00"), at("2026-11-20T23:30"), at("2026-11-20T12:00"), at("2026-11-19T12:00")];
        assert_eq!(kept("keep_daily = 2", "UTC", &times), [0, 1]);
        // In Oslo, 23:30 is half past midnight of the next day.
        assert_eq!(kept("keep_daily = 2", "Europe/Oslo", &times), [0, 2]);
        // A day back over the change of the clocks is 25 hours.
        let times = [at("2026-10-25T20:00"), at("2026-10-24T19:30"), at("2026-10-24T18:59")];
        assert_eq!(kept("keep_within = \"1d\"", "Europe/Oslo", &times), [0, 1]);
        assert_eq!(kept("keep_within = \"24h\"", "Europe/Oslo", &times), [0]);
    }

    fn reasons<'a>(decisions: &'a [Decision], snapshot: &Snapshot) -> (bool, &'a [String]) {
        let decision = decisions.iter().find(|decision| decision.id == snapshot.id).unwrap();
        (decision.keep, &decision.reasons)
    }

    #[test]
    fn partial_future_and_protected_snapshots_use_up_no_count() {
        let now = at("2026-11-21T12:00");
        let days = |days| now - TimeDelta::days(days);
        let future = snapshot(days(-1), true);
        let new_partial = snapshot(days(1), false);
        let newest = snapshot(days(2), true);
        let old_partial = snapshot(days(3), false);
        let second = snapshot(days(4), true);
        let held = snapshot(days(5), true);
        let old = snapshot(days(6), true);
        let all = [&old, &future, &newest, &held, &old_partial, &second, &new_partial].map(Clone::clone);
        let protected = BTreeMap::from([(held.id.clone(), "held: audit".to_owned())]);
        let decisions = decide(&policy("keep_last = 2"), &all, Tz::UTC, now, &protected);
        assert!(decisions.is_sorted_by(|a, b| a.id.time() > b.id.time()));
        let says = |snapshot, keep, words: &str| {
            let (kept, reasons) = reasons(&decisions, snapshot);
            assert_eq!((kept, reasons.join("; ").as_str()), (keep, words));
        };
        says(&future, true, "its time is in the future");
        says(&new_partial, true, "it is partial, but no whole one is newer");
        says(&newest, true, "the newest whole one; `keep_last = 2`");
        says(&old_partial, false, "it is partial, and `20261119T120000Z-010203` is newer and whole");
        says(&second, true, "`keep_last = 2`");
        says(&held, true, "held: audit");
        says(&old, false, "no rule keeps it");
    }

    #[test]
    fn a_policy_without_rules_keeps_everything() {
        assert_eq!(kept("", "UTC", &every(24, 5, "2026-11-21T12:00")), [0, 1, 2, 3, 4]);
        assert!(decide(&policy("keep_last = 1"), &[], Tz::UTC, at("2026-11-21T12:00"), &BTreeMap::new()).is_empty());
    }

    fn any_policy() -> impl Strategy<Value = Policy> {
        let rule = (0_usize..6, 1_u32..5);
        proptest::collection::vec(rule, 1..4).prop_map(|rules| {
            let mut policy = Policy::default();
            for (which, number) in rules {
                let count = Some(super::Count::try_from(i64::from(number)).unwrap());
                match which {
                    0 => policy.keep_last = count,
                    1 => policy.keep_hourly = count,
                    2 => policy.keep_daily = count,
                    3 => policy.keep_weekly = count,
                    4 => policy.keep_monthly = count,
                    _ => policy.keep_within = Some(format!("{number}d").parse().unwrap()),
                }
            }
            policy
        })
    }

    proptest! {
        #[test]
        fn whatever_the_policy_the_newest_whole_one_stays_and_a_second_look_deletes_no_more(
            policy in any_policy(),
            hours in proptest::collection::btree_map(0_i64..2_000, any::<bool>(), 1..40),
        ) {
            let now = at("2026-11-21T12:00");
            let all: Vec<Snapshot> =
                hours.iter().map(|(hours, whole)| snapshot(now + TimeDelta::hours(100 - hours), *whole)).collect();
            let decisions = decide(&policy, &all, chrono_tz::Europe::Oslo, now, &BTreeMap::new());
            let newest = all.iter().filter(|snapshot| snapshot.whole && snapshot.id.time() <= now).max_by_key(|snapshot| snapshot.id.time());
            for decision in &decisions {
                let precious = newest.is_some_and(|newest| newest.id == decision.id) || decision.id.time() > now;
                prop_assert!(decision.keep || !precious, "{decision:?}");
            }
            let is_kept = |snapshot: &&Snapshot| decisions.iter().any(|decision| decision.id == snapshot.id && decision.keep);
            let left: Vec<Snapshot> = all.iter().filter(is_kept).cloned().collect();
            let again = decide(&policy, &left, chrono_tz::Europe::Oslo, now, &BTreeMap::new());
            prop_assert_eq!(again.iter().filter(|decision| !decision.keep).count(), 0);
        }
    }
}
