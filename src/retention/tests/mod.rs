//! What the room promises of whole histories.

mod cases;
mod properties;
mod years;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;

use super::{Decision, Policy, Reason, Snapshot, decide};
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
    let decisions = decide(
        &policy(rules),
        &snapshots,
        zone.parse().unwrap(),
        at("2200-01-01T00:00"),
        &BTreeMap::new(),
    );
    assert_eq!(decisions.len(), times.len());
    assert!(decisions.iter().all(|decision| !decision.reasons.is_empty()));
    let stays: BTreeSet<&SnapshotId> =
        decisions.iter().filter(|decision| decision.keep).map(|decision| &decision.id).collect();
    (0..times.len()).filter(|index| stays.contains(&snapshots[*index].id)).collect()
}

/// `count` times, the newest first, so many hours apart.
fn every(hours: i64, count: i64, newest: &str) -> Vec<DateTime<Utc>> {
    (0..count).map(|index| at(newest) - TimeDelta::hours(hours * index)).collect()
}

fn reasons<'a>(decisions: &'a [Decision], snapshot: &Snapshot) -> (bool, &'a [Reason]) {
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
    let all =
        [&old, &future, &newest, &held, &old_partial, &second, &new_partial].map(Clone::clone);
    let protected = BTreeMap::from([(
        held.id.clone(),
        vec![Reason::Held { reason: Some("audit".to_owned()), until: None }],
    )]);
    let decisions = decide(&policy("keep_last = 2"), &all, Tz::UTC, now, &protected);
    assert!(decisions.is_sorted_by(|a, b| a.id.time() > b.id.time()));
    let says = |snapshot, keep, words: &str| {
        let (kept, reasons) = reasons(&decisions, snapshot);
        let said: Vec<String> = reasons.iter().map(ToString::to_string).collect();
        assert_eq!((kept, said.join("; ").as_str()), (keep, words));
    };
    says(&future, true, "its time is in the future");
    says(&new_partial, true, "it is partial, but no whole one is newer; `keep_last = 2`");
    says(&newest, true, "the newest whole one; `keep_last = 2`");
    says(&old_partial, false, "it is partial, and `20261119T120000Z-010203` is newer and whole");
    says(&second, true, "`keep_last = 2`");
    says(&held, true, "held: audit");
    says(&old, false, "no rule keeps it");
}

/// Each of the histories: seconds after noon, whole, and whether it stays with `keep_last = 1`.
#[test]
fn partial_and_future_snapshots_at_the_edges() {
    let now = at("2026-11-21T12:00");
    let histories: &[&[(i64, bool, bool)]] = &[
        // Partial ones are counted among themselves while there is nothing better.
        &[(0, false, true), (-10, false, false), (-20, false, false)],
        // A whole one of the same second is not newer.
        &[(-10, true, true), (-10, false, true), (-11, false, false)],
        // The whole one is older than the partial ones, and stays beside them.
        &[(-1, false, true), (-2, false, false), (-3, true, true), (-4, true, false)],
        // Those that a newer whole one replaces use up nothing.
        &[(-1, true, true), (-2, false, false), (-3, true, false)],
        // What begins this very second is not in the future; a second later is.
        &[(0, true, true), (-1, true, false)],
        &[(1, true, true), (-1, true, true), (-2, true, false)],
        // A whole one of the future replaces nothing, and a partial one of the future stays too.
        &[(2, false, true), (1, true, true), (-1, false, true)],
        &[(9, true, true), (8, true, true), (7, false, true)],
        &[],
    ];
    for history in histories {
        let all: Vec<Snapshot> = history
            .iter()
            .map(|(seconds, whole, _)| Snapshot {
                id: SnapshotId::new(now + TimeDelta::seconds(*seconds), [0, 0, u8::from(*whole)]),
                whole: *whole,
            })
            .collect();
        let decisions = decide(&policy("keep_last = 1"), &all, Tz::UTC, now, &BTreeMap::new());
        let stays: Vec<bool> = decisions.iter().map(|decision| decision.keep).collect();
        assert_eq!(
            stays,
            history.iter().map(|(.., stays)| *stays).collect::<Vec<_>>(),
            "{decisions:#?}"
        );
    }
}

/// Sixty nights without a whole one, after ten that were whole.
#[test]
fn weeks_of_partial_snapshots_follow_the_same_rules() {
    let times = every(24, 70, "2026-11-21T12:00");
    let history: Vec<Snapshot> = (0..70).map(|index| snapshot(times[index], index >= 60)).collect();
    let rules = "keep_daily = 7\nkeep_weekly = 4";
    let decisions =
        decide(&policy(rules), &history, Tz::UTC, at("2026-11-21T12:00"), &BTreeMap::new());
    let kept_of = |whole| {
        let those = history.iter().filter(|one| one.whole == whole);
        those.filter(|one| reasons(&decisions, one).0).cloned().collect::<Vec<_>>()
    };
    for whole in [true, false] {
        let alone: Vec<DateTime<Utc>> =
            history.iter().filter(|one| one.whole == whole).map(|one| one.id.time()).collect();
        let expected: Vec<Snapshot> = kept(rules, "UTC", &alone)
            .into_iter()
            .map(|index| snapshot(alone[index], whole))
            .collect();
        assert_eq!(kept_of(whole), expected, "each kind by the rules, as if alone");
    }
    assert!(kept_of(false).len() < 12);
}

#[test]
fn a_suspect_partial_snapshot_uses_up_no_count() {
    let now = at("2026-11-21T12:00");
    let all = [1, 2, 3].map(|day| snapshot(now - TimeDelta::days(day), false));
    let protected = BTreeMap::from([(all[0].id.clone(), vec![Reason::Suspect])]);
    let decisions = decide(&policy("keep_last = 1"), &all, Tz::UTC, now, &protected);
    assert_eq!(decisions.iter().map(|one| one.keep).collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn protection_has_its_reasons_first_and_saves_partial_ones_too() {
    let now = at("2026-11-21T12:00");
    let all = [
        snapshot(now, true),
        snapshot(now - TimeDelta::days(1), false),
        snapshot(now - TimeDelta::days(2), true),
    ];
    let drilled = Reason::Drilled { at: now };
    let held = Reason::Held { reason: None, until: Some(now) };
    let gone = SnapshotId::new(now - TimeDelta::days(9), [0; 3]);
    let protected = BTreeMap::from([
        (all[0].id.clone(), vec![drilled.clone(), Reason::LastGood]),
        (all[1].id.clone(), vec![held.clone()]),
        (all[2].id.clone(), vec![]),
        (gone, vec![held.clone()]),
    ]);
    let decisions = decide(&policy("keep_last = 1"), &all, Tz::UTC, now, &protected);
    let rule = Reason::Rule { rule: "keep_last = 1".to_owned(), oldest: false };
    assert_eq!(decisions[0].reasons, [drilled, Reason::LastGood, Reason::Newest, rule]);
    assert_eq!((decisions[1].keep, decisions[1].reasons.as_slice()), (true, [held].as_slice()));
    assert_eq!(
        (decisions[2].keep, decisions[2].reasons.as_slice()),
        (false, [Reason::Unmatched].as_slice())
    );
    assert_eq!(decisions.len(), 3);
}

#[test]
fn a_lock_keeps_what_would_go_and_adds_nothing_to_what_stays() {
    let now = at("2026-11-21T12:00");
    let all = every(24, 3, "2026-11-21T12:00")
        .into_iter()
        .map(|time| snapshot(time, true))
        .collect::<Vec<_>>();
    let before = decide(&policy("keep_last = 1"), &all, Tz::UTC, now, &BTreeMap::new());
    let until = now + TimeDelta::days(1);
    let mut after = before.clone();
    after.iter_mut().for_each(|decision| decision.lock(Some(until), now));
    assert_eq!(after[0], before[0]);
    assert!(!before[1].keep);
    assert_eq!(
        (after[1].keep, after[1].reasons.as_slice()),
        (true, [Reason::Locked { until: Some(until) }].as_slice())
    );
    after = before.clone();
    after.iter_mut().for_each(|decision| decision.lock(Some(now), now));
    assert_eq!(after, before, "the lock has ended");
}

#[test]
fn a_policy_without_rules_keeps_everything() {
    assert_eq!(kept("", "UTC", &every(24, 5, "2026-11-21T12:00")), [0, 1, 2, 3, 4]);
    let now = at("2026-11-21T12:00");
    let all = [snapshot(now, true), snapshot(now - TimeDelta::days(1), false)];
    assert!(
        decide(&policy(""), &all, Tz::UTC, now, &BTreeMap::new())
            .iter()
            .all(|decision| decision.keep)
    );
    assert!(
        decide(&policy("keep_last = 1"), &[], Tz::UTC, at("2026-11-21T12:00"), &BTreeMap::new())
            .is_empty()
    );
}
