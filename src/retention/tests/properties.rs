//! What holds whatever the policy and the history.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::{Index, select};

use super::{at, snapshot};
use crate::model::SnapshotId;
use crate::retention::{Count, Decision, Period, Policy, Reach, Reason, Snapshot, decide};

const ZONES: [Tz; 4] = [Tz::UTC, Tz::Europe__Oslo, Tz::America__New_York, Tz::Australia__Lord_Howe];

fn any_count() -> impl Strategy<Value = Option<Count>> {
    prop_oneof![
        3 => Just(None),
        3 => (1_i64..6).prop_map(|number| Some(Count::try_from(number).unwrap())),
        1 => Just(Some(Count::Unlimited)),
    ]
}

fn any_period() -> impl Strategy<Value = Option<Period>> {
    let some = (0_u32..4, 0_u32..40, 0_u32..30).prop_map(|(months, days, hours)| {
        Some(Period {
            months,
            days,
            hours: if (months, days) == (0, 0) { hours + 1 } else { hours },
        })
    });
    prop_oneof![3 => Just(None), 2 => some]
}

/// Any of the rules, at least one.
fn any_policy() -> impl Strategy<Value = Policy> {
    let counts = proptest::array::uniform7(any_count());
    let periods = proptest::array::uniform7(any_period());
    (counts, periods).prop_filter_map("no rule", |(counts, periods)| {
        let [
            keep_last,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_quarterly,
            keep_yearly,
        ] = counts;
        let [
            keep_within,
            keep_within_hourly,
            keep_within_daily,
            keep_within_weekly,
            keep_within_monthly,
            keep_within_quarterly,
            keep_within_yearly,
        ] = periods;
        let policy = Policy {
            keep_last,
            keep_hourly,
            keep_daily,
            keep_weekly,
            keep_monthly,
            keep_quarterly,
            keep_yearly,
            keep_within,
            keep_within_hourly,
            keep_within_daily,
            keep_within_weekly,
            keep_within_monthly,
            keep_within_quarterly,
            keep_within_yearly,
        };
        (policy != Policy::default()).then_some(policy)
    })
}

/// Up to forty snapshots: several an hour, or months apart, over both changes of the clocks; a few
/// of them partial.
fn any_history() -> impl Strategy<Value = Vec<Snapshot>> {
    let minutes = prop_oneof![0_i64..300, 0_i64..20_000, 0_i64..1_000_000];
    proptest::collection::btree_map(minutes, proptest::bool::weighted(0.85), 1..40).prop_map(
        |all| {
            all.iter()
                .map(|(minutes, whole)| snapshot(now() - TimeDelta::minutes(minutes - 60), *whole))
                .collect()
        },
    )
}

/// The last hour of a history is in the future.
fn now() -> DateTime<Utc> {
    at("2026-11-21T12:00")
}

fn kept(decisions: &[Decision]) -> BTreeSet<SnapshotId> {
    decisions.iter().filter(|decision| decision.keep).map(|decision| decision.id.clone()).collect()
}

/// Each rule of either, the one that keeps more where both have it.
fn raised(one: &Policy, other: &Policy) -> Policy {
    let count = |one: Option<Count>, other: Option<Count>| match (one, other) {
        (Some(Count::Limited(one)), Some(Count::Limited(other))) => {
            Some(Count::Limited(one.max(other)))
        }
        (Some(_), Some(_)) => Some(Count::Unlimited),
        (one, other) => one.or(other),
    };
    let period = |one: Option<Period>, other: Option<Period>| match (one, other) {
        (Some(one), Some(other)) => Some(Period {
            months: one.months.max(other.months),
            days: one.days.max(other.days),
            hours: one.hours.max(other.hours),
        }),
        (one, other) => one.or(other),
    };
    Policy {
        keep_last: count(one.keep_last, other.keep_last),
        keep_hourly: count(one.keep_hourly, other.keep_hourly),
        keep_daily: count(one.keep_daily, other.keep_daily),
        keep_weekly: count(one.keep_weekly, other.keep_weekly),
        keep_monthly: count(one.keep_monthly, other.keep_monthly),
        keep_quarterly: count(one.keep_quarterly, other.keep_quarterly),
        keep_yearly: count(one.keep_yearly, other.keep_yearly),
        keep_within: period(one.keep_within, other.keep_within),
        keep_within_hourly: period(one.keep_within_hourly, other.keep_within_hourly),
        keep_within_daily: period(one.keep_within_daily, other.keep_within_daily),
        keep_within_weekly: period(one.keep_within_weekly, other.keep_within_weekly),
        keep_within_monthly: period(one.keep_within_monthly, other.keep_within_monthly),
        keep_within_quarterly: period(one.keep_within_quarterly, other.keep_within_quarterly),
        keep_within_yearly: period(one.keep_within_yearly, other.keep_within_yearly),
    }
}

/// What a policy keeps, told by sets: of each period the newest, of these the first so many or the
/// young ones; and the oldest where that is too few.
fn by_sets(policy: &Policy, history: &[Snapshot], timezone: Tz) -> BTreeSet<SnapshotId> {
    let (present, future): (Vec<&Snapshot>, Vec<&Snapshot>) =
        history.iter().partition(|snapshot| snapshot.id.time() <= now());
    let (whole, partial): (Vec<&Snapshot>, Vec<&Snapshot>) =
        present.into_iter().partition(|snapshot| snapshot.whole);
    let newest = whole.iter().map(|snapshot| snapshot.id.time()).max();
    let partial = partial.into_iter().filter(|one| newest.is_none_or(|it| it <= one.id.time()));
    let mut kept: BTreeSet<SnapshotId> = future.iter().map(|one| one.id.clone()).collect();
    kept.extend(one_kind_by_sets(policy, &whole, timezone));
    kept.extend(one_kind_by_sets(policy, &partial.collect::<Vec<_>>(), timezone));
    kept
}

fn one_kind_by_sets(policy: &Policy, counting: &[&Snapshot], timezone: Tz) -> BTreeSet<SnapshotId> {
    let ids: BTreeSet<&SnapshotId> = counting.iter().map(|snapshot| &snapshot.id).collect();
    let newest = ids.last().copied();
    let mut kept: BTreeSet<SnapshotId> = newest.cloned().into_iter().collect();
    let Some(newest) = newest else { return kept };
    for rule in policy.rules() {
        let form = match rule.name.trim_start_matches("keep_").trim_start_matches("within_") {
            "hourly" => "%Y-%m-%d %H",
            "daily" => "%Y-%m-%d",
            "weekly" => "%G-%V",
            "monthly" | "quarterly" => "%Y-%m",
            "yearly" => "%Y",
            _ => "%s",
        };
        let mut groups: BTreeMap<String, &SnapshotId> = BTreeMap::new();
        for id in &ids {
            let mut name = id.time().with_timezone(&timezone).format(form).to_string();
            if rule.name.ends_with("quarterly") {
                let (year, month) = name.split_once('-').unwrap();
                name = format!("{year} {}", month.parse::<u32>().unwrap().div_ceil(3));
            }
            // Ids come in order, so the newest of a group stays.
            groups.insert(name, id);
        }
        let firsts: BTreeSet<&SnapshotId> = groups.into_values().collect();
        let oldest = ids.first().copied();
        match rule.reach {
            Reach::Count(Count::Unlimited) => {
                kept.extend(firsts.into_iter().chain(oldest).cloned());
            }
            Reach::Count(Count::Limited(count)) => {
                let count = count.get() as usize;
                let too_few = firsts.len() < count;
                kept.extend(
                    firsts.into_iter().rev().take(count).chain(oldest.filter(|_| too_few)).cloned(),
                );
            }
            Reach::Within(period) => {
                let end = period.before(newest.time(), timezone).unwrap();
                kept.extend(firsts.into_iter().chain(oldest).filter(|id| id.time() > end).cloned());
            }
        }
    }
    kept
}

proptest! {
    #[test]
    fn the_newest_whole_one_and_those_of_the_future_are_never_deleted(
        policy in any_policy(), history in any_history(), zone in select(&ZONES),
    ) {
        let decisions = decide(&policy, &history, zone, now(), &BTreeMap::new());
        prop_assert_eq!(decisions.len(), history.len());
        let whole = history.iter().filter(|snapshot| snapshot.whole && snapshot.id.time() <= now());
        let newest = whole.map(|snapshot| &snapshot.id).max();
        for decision in &decisions {
            let precious = newest == Some(&decision.id) || decision.id.time() > now();
            prop_assert!(decision.keep || !precious, "{decision:?}");
            prop_assert!(!decision.reasons.is_empty());
        }
        // Whatever else is lost, something is left.
        prop_assert!(!kept(&decisions).is_empty());
    }

    #[test]
    fn what_is_kept_is_what_the_rules_say_told_in_another_way(
        policy in any_policy(), history in any_history(), zone in select(&ZONES),
    ) {
        prop_assert_eq!(kept(&decide(&policy, &history, zone, now(), &BTreeMap::new())),
            by_sets(&policy, &history, zone));
    }

    #[test]
    fn another_rule_or_a_higher_count_never_deletes_more(
        policy in any_policy(), other in any_policy(), history in any_history(),
            zone in select(&ZONES),
    ) {
        let before = kept(&decide(&policy, &history, zone, now(), &BTreeMap::new()));
        let after = kept(&decide(&raised(&policy, &other), &history, zone, now(),
            &BTreeMap::new()));
        prop_assert!(before.is_subset(&after), "{:?}", before.difference(&after));
    }

    #[test]
    fn time_that_passes_changes_nothing_unless_a_snapshot_passes_from_future_to_past(
        policy in any_policy(), history in any_history(), zone in select(&ZONES),
            minutes in 0_i64..1_000_000,
    ) {
        let last = history.iter().map(|snapshot| snapshot.id.time()).max().unwrap();
        let decide_at = |now| decide(&policy, &history, zone, now, &BTreeMap::new());
        prop_assert_eq!(decide_at(last), decide_at(last + TimeDelta::minutes(minutes)));
        let future = history.iter().map(|snapshot| snapshot.id.time()).filter(|time| *time > now())
            .min();
        let just_before = future.map_or(now(), |future| future - TimeDelta::seconds(1));
        prop_assert_eq!(decide_at(now()), decide_at(just_before));
    }

    #[test]
    fn the_order_of_the_listing_does_not_matter(
        policy in any_policy(), zone in select(&ZONES),
        (history, shuffled) in any_history().prop_flat_map(|history| (Just(history.clone()),
            Just(history).prop_shuffle())),
    ) {
        let decisions = decide(&policy, &history, zone, now(), &BTreeMap::new());
        prop_assert!(decisions.is_sorted_by(|a, b| a.id > b.id), "the newest is first");
        prop_assert_eq!(decisions, decide(&policy, &shuffled, zone, now(), &BTreeMap::new()));
    }

    #[test]
    fn deleting_newest_first_can_be_cut_short_anywhere_and_the_next_time_finishes_it(
        policy in any_policy(), history in any_history(), zone in select(&ZONES),
            cut in any::<Index>(),
    ) {
        let decisions = decide(&policy, &history, zone, now(), &BTreeMap::new());
        let going: Vec<&SnapshotId> = decisions.iter().filter(|decision| !decision.keep)
            .map(|decision| &decision.id).collect();
        let (gone, left) = going.split_at(cut.index(going.len() + 1));
        let remaining: Vec<Snapshot> = history.iter()
            .filter(|snapshot| !gone.contains(&&snapshot.id)).cloned().collect();
        let again = decide(&policy, &remaining, zone, now(), &BTreeMap::new());
        let going_again: Vec<&SnapshotId> = again.iter().filter(|decision| !decision.keep)
            .map(|decision| &decision.id).collect();
        prop_assert_eq!(going_again, left);
        prop_assert_eq!(kept(&again), kept(&decisions));
    }

    #[test]
    fn whichever_were_deleted_before_no_more_than_the_others_are(
        policy in any_policy(), history in any_history(), zone in select(&ZONES),
            choice in any::<u64>(),
    ) {
        let decisions = decide(&policy, &history, zone, now(), &BTreeMap::new());
        let is_gone = |id: &SnapshotId| {
            decisions.iter().enumerate().any(|(index, decision)| decision.id == *id
                && !decision.keep && choice >> index & 1 == 1)
        };
        let remaining: Vec<Snapshot> = history.iter().filter(|snapshot| !is_gone(&snapshot.id))
            .cloned().collect();
        let again = kept(&decide(&policy, &remaining, zone, now(), &BTreeMap::new()));
        prop_assert!(kept(&decisions).is_subset(&again));
    }

    #[test]
    fn what_is_held_stays_and_changes_nothing_for_the_others(
        policy in any_policy(), history in any_history(), zone in select(&ZONES),
            held in any::<Index>(), lock in any::<bool>(),
    ) {
        let held = history[held.index(history.len())].id.clone();
        let before = decide(&policy, &history, zone, now(), &BTreeMap::new());
        let reason = Reason::Held { reason: None, until: None };
        let mut after = decide(&policy, &history, zone, now(), &BTreeMap::from([(held.clone(),
            vec![reason.clone()])]));
        if lock {
            // As the storage would say it: that comes after, and changes only what it locks.
            after = before.clone();
            after.iter_mut().filter(|decision| decision.id == held)
                .for_each(|decision| decision.lock(Some(now() + TimeDelta::days(1)), now()));
        }
        for (before, after) in before.iter().zip(&after) {
            if after.id == held {
                prop_assert!(after.keep);
                prop_assert!(lock || after.reasons[0] == reason);
            } else {
                prop_assert_eq!(before, after);
            }
        }
    }
}
