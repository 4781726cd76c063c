//! The decision, with the semantics that restic's users know (`restic forget`,
//! `internal/data/snapshot_policy.go` there): newest first, each snapshot is held against every
//! rule by itself.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::Serialize;

use super::{Calendar, Count, Policy, Reach, Reason, Rule};
use crate::model::SnapshotId;

/// A snapshot, as far as a decision depends on it. Its time is that of its id: when its run began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub id: SnapshotId,
    /// Whether no content is missing from it.
    pub whole: bool,
}

/// What becomes of a snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    pub id: SnapshotId,
    /// Whether it is kept; else it may be deleted.
    pub keep: bool,
    /// Every reason for that; at least one.
    pub reasons: Vec<Reason>,
}

impl Decision {
    /// Takes into account that the storage does not let the snapshot be deleted before `until`, or
    /// ever by itself where it is none: if it was to go, it is kept till then. A lock that has
    /// ended by `now` is none.
    pub fn lock(&mut self, until: Option<DateTime<Utc>>, now: DateTime<Utc>) {
        if !self.keep && until.is_none_or(|until| until > now) {
            self.keep = true;
            self.reasons = vec![Reason::Locked { until }];
        }
    }
}

/// Decides on each of `snapshots`, which are all those of one instance and strategy on one storage.
/// The decisions come newest first.
///
/// - Periods are those of `timezone`, weeks are ISO weeks. Of each period the newest snapshot
///   counts. The oldest snapshot is kept by a rule whose count is not used up, so that history
///   grows to its full length.
/// - Whole snapshots are counted among themselves. A partial one goes once there is a newer whole
///   one; those that are left are counted among themselves by the same rules, and use up nothing of
///   the whole ones.
/// - Snapshots that are later than `now` neither count nor are deleted: a clock was wrong, and
///   nobody can say what they are.
/// - Those that `protected` calls suspect ([`Reason::Suspect`]) do not count either: they use up
///   nothing, and no other goes for them.
/// - The newest whole snapshot is never deleted, nor is the newest partial one while no whole one
///   is newer, nor are those in `protected`, which says of each why ([`Reason::Held`],
///   [`Reason::Drilled`], [`Reason::LastGood`]; an empty list protects nothing). They use up counts
///   like all others, so that protecting one changes nothing for the others.
/// - A policy without any rule keeps everything, partial or not.
///
/// Who deletes by these decisions goes from the newest to the oldest: then a pruning that is cut
/// short anywhere is finished by the next one, which decides the same of what is left. (In any
/// other order no more is deleted either, but the oldest that is left may now be kept as the
/// oldest.)
pub fn decide(
    policy: &Policy,
    snapshots: &[Snapshot],
    timezone: Tz,
    now: DateTime<Utc>,
    protected: &BTreeMap<SnapshotId, Vec<Reason>>,
) -> Vec<Decision> {
    let mut newest_first: Vec<&Snapshot> = snapshots.iter().collect();
    newest_first.sort_by(|a, b| b.id.cmp(&a.id));
    let is_suspect =
        |id: &SnapshotId| protected.get(id).is_some_and(|said| said.contains(&Reason::Suspect));
    let counting: Vec<&Snapshot> = newest_first
        .iter()
        .copied()
        .filter(|snapshot| snapshot.id.time() <= now && !is_suspect(&snapshot.id))
        .collect();
    let mut whole =
        Counted::new(policy, timezone, counting.iter().copied().filter(|one| one.whole));
    let newest = whole.newest.clone();
    let mut partial = Counted::new(
        policy,
        timezone,
        counting.iter().copied().filter(|one| {
            !one.whole && newest.as_ref().is_none_or(|newest| newest.time() <= one.id.time())
        }),
    );
    let keeps_all = policy.rules().next().is_none();
    newest_first
        .into_iter()
        .map(|Snapshot { id, whole: is_whole }| {
            let mut reasons = protected.get(id).cloned().unwrap_or_default();
            let mut fate = Reason::Unmatched;
            if id.time() > now {
                reasons.push(Reason::Future);
            } else if is_suspect(id) {
                // Kept as such.
            } else if *is_whole {
                whole.keep(id, Reason::Newest, timezone, &mut reasons);
            } else if let Some(newest) = newest.as_ref().filter(|one| one.time() > id.time()) {
                fate = Reason::Superseded { by: newest.clone() };
            } else {
                partial.keep(id, Reason::NothingWhole, timezone, &mut reasons);
            }
            if keeps_all {
                reasons.push(Reason::NoPolicy);
            }
            let keep = !reasons.is_empty();
            Decision { id: id.clone(), keep, reasons: if keep { reasons } else { vec![fate] } }
        })
        .collect()
}

/// Snapshots that are counted among themselves, newest first.
struct Counted {
    newest: Option<SnapshotId>,
    oldest: Option<SnapshotId>,
    rules: Vec<Spending>,
}

impl Counted {
    fn new<'a>(
        policy: &Policy,
        timezone: Tz,
        newest_first: impl Iterator<Item = &'a Snapshot>,
    ) -> Self {
        let ids: Vec<&SnapshotId> = newest_first.map(|snapshot| &snapshot.id).collect();
        let newest = ids.first().map(|id| (*id).clone());
        let rules = newest.iter().flat_map(|newest| {
            policy.rules().map(|rule| Spending::new(rule, newest.time(), timezone))
        });
        Self { rules: rules.collect(), oldest: ids.last().map(|id| (*id).clone()), newest }
    }

    /// Adds to `reasons` why the snapshot is kept, `newest` where it is the newest of them.
    fn keep(&mut self, id: &SnapshotId, newest: Reason, timezone: Tz, reasons: &mut Vec<Reason>) {
        if self.newest.as_ref() == Some(id) {
            reasons.push(newest);
        }
        let oldest = self.oldest.as_ref() == Some(id);
        let rules = self.rules.iter_mut();
        reasons.extend(rules.filter_map(|rule| rule.keep(id.time(), oldest, timezone)));
    }
}

/// A rule while it is held against the snapshots, newest first.
struct Spending {
    rule: Rule,
    left: Left,
    last: Option<(i32, u32, u32)>,
}

/// How far back a rule still keeps.
enum Left {
    /// So many more.
    Count(u32),
    /// Without limit.
    Unlimited,
    /// What is later than this.
    After(DateTime<Utc>),
}

impl Spending {
    /// `newest` is the newest snapshot that counts.
    fn new(rule: Rule, newest: DateTime<Utc>, timezone: Tz) -> Self {
        let left = match rule.reach {
            Reach::Count(Count::Limited(count)) => Left::Count(count.get()),
            Reach::Count(Count::Unlimited) => Left::Unlimited,
            Reach::Within(period) => {
                period.before(newest, timezone).map_or(Left::Unlimited, Left::After)
            }
        };
        Self { rule, left, last: None }
    }

    /// Why this rule keeps the snapshot of `time`, if it does; then it is spent on it.
    fn keep(&mut self, time: DateTime<Utc>, oldest: bool, timezone: Tz) -> Option<Reason> {
        let reaches = match &self.left {
            Left::Count(left) => *left > 0,
            Left::Unlimited => true,
            Left::After(cutoff) => time > *cutoff,
        };
        if !reaches {
            return None;
        }
        let period = Some(self.rule.calendar.period(time, timezone));
        let first = self.rule.calendar == Calendar::Each || period != self.last;
        if !first && !oldest {
            return None;
        }
        self.last = period;
        if let Left::Count(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        Some(Reason::Rule { rule: self.rule.to_string(), oldest: !first })
    }
}
