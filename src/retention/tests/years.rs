//! Five years of nights, pruned after each, with outages: at every step what was promised is there.
//!
//! The promise is stated about all snapshots that were ever taken, most of which are gone: the
//! newest of each of the last so many periods that had one is still there. It knows periods by
//! their names (`2026-W53`), not by the code that it checks.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::select;

use super::{policy, snapshot};
use crate::model::SnapshotId;
use crate::retention::{Reason, Snapshot, decide};

const DAYS: u64 = 5 * 365 + 1;

/// What is promised of the periods of one form.
struct Promise {
    /// The name of a period, as `strftime` writes it.
    form: &'static str,
    reach: Reach,
    /// Every period that ever had a whole snapshot, in order, with its newest.
    newest: BTreeMap<String, SnapshotId>,
}

enum Reach {
    Periods(usize),
    /// A little less than what is configured, so that the edges, which are cases of their own, do
    /// not matter.
    Days(i64),
}

fn promise(form: &'static str, reach: Reach) -> Promise {
    Promise { form, reach, newest: BTreeMap::new() }
}

impl Promise {
    fn taken(&mut self, id: &SnapshotId, zone: Tz) {
        self.newest
            .insert(id.time().with_timezone(&zone).format(self.form).to_string(), id.clone());
    }

    fn must_be_there(&self) -> BTreeSet<&SnapshotId> {
        let Some(last) = self.newest.values().max().map(SnapshotId::time) else {
            return BTreeSet::new();
        };
        match self.reach {
            Reach::Periods(count) => self.newest.values().rev().take(count).collect(),
            Reach::Days(days) => {
                self.newest.values().filter(|id| last - id.time() < TimeDelta::days(days)).collect()
            }
        }
    }
}

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> i64 {
        // The generator of Knuth's MMIX; its high bits are the good ones.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        i64::try_from((self.0 >> 33) % most).unwrap()
    }
}

/// The runs of a night: one as a rule, begun up to three hours late, seldom none or some more by
/// hand; seldom partial.
fn night(day: u64, zone: Tz, dice: &mut Dice) -> Vec<(DateTime<Utc>, bool)> {
    let date = NaiveDate::from_ymd_opt(2024, 1, 1).unwrap() + chrono::Days::new(day);
    let due =
        zone.from_local_datetime(&date.and_hms_opt(1, 15, 0).unwrap()).earliest().unwrap().to_utc();
    let runs = match dice.below(20) {
        0 => 0,
        1 => 4,
        _ => 1,
    };
    let mut begun: BTreeMap<DateTime<Utc>, bool> = BTreeMap::new();
    for run in 0..runs {
        let begins = due + TimeDelta::hours(run * 5) + TimeDelta::seconds(dice.below(3 * 3600));
        begun.insert(begins, dice.below(25) > 0);
    }
    begun.into_iter().collect()
}

fn live(
    rules: &str,
    mut promises: Vec<Promise>,
    zone: Tz,
    seed: u64,
    outages: &[(u64, u64)],
    most: usize,
) -> Result<(), proptest::test_runner::TestCaseError> {
    let policy = policy(rules);
    let mut dice = Dice(seed);
    let mut there: Vec<Snapshot> = Vec::new();
    let mut first: Option<SnapshotId> = None;
    for day in (0..DAYS)
        .filter(|day| !outages.iter().any(|(from, days)| (*from..from + days).contains(day)))
    {
        for (begins, whole) in night(day, zone, &mut dice) {
            let taken = snapshot(begins, whole);
            there.push(taken.clone());
            let decisions =
                decide(&policy, &there, zone, begins + TimeDelta::minutes(5), &BTreeMap::new());
            there.retain(|snapshot| {
                decisions.iter().any(|decision| decision.id == snapshot.id && decision.keep)
            });
            if whole {
                promises.iter_mut().for_each(|promise| promise.taken(&taken.id, zone));
                first.get_or_insert(taken.id.clone());
            }

            let is_there: BTreeSet<&SnapshotId> = there
                .iter()
                .filter(|snapshot| snapshot.whole)
                .map(|snapshot| &snapshot.id)
                .collect();
            prop_assert!(
                there.iter().any(|snapshot| snapshot.id == taken.id),
                "{begins}: the newest is gone"
            );
            let mut promised = BTreeSet::new();
            for promise in &promises {
                let wanted = promise.must_be_there();
                prop_assert!(
                    wanted.is_subset(&is_there),
                    "{begins} {}: missing {:?}",
                    promise.form,
                    wanted.difference(&is_there)
                );
                promised.extend(wanted);
                // While there are fewer periods than promised, history goes back to its beginning.
                if let (Reach::Periods(count), Some(first)) = (&promise.reach, &first) {
                    prop_assert!(
                        promise.newest.len() >= *count || is_there.contains(first),
                        "{begins}: the first is gone"
                    );
                }
            }
            // And no more than that: what a rule keeps beyond it is the oldest, or at the edge of a
            // period of days.
            prop_assert!(
                is_there.len() <= promised.len() + most,
                "{begins}: {} for {} promised",
                is_there.len(),
                promised.len()
            );
            // Partial ones are there for want of a whole one only.
            let newest = is_there.last().map(|id| id.time());
            let late = there.iter().filter(|snapshot| {
                !snapshot.whole && newest.is_some_and(|newest| newest > snapshot.id.time())
            });
            prop_assert_eq!(late.count(), 0);
            // Nothing was lost that had no reason to be.
            for decision in decisions.iter().filter(|decision| !decision.keep) {
                let said = matches!(
                    decision.reasons.as_slice(),
                    [Reason::Unmatched | Reason::Superseded { .. }]
                );
                prop_assert!(said, "{decision:?}");
            }
        }
    }
    Ok(())
}

const ZONES: [Tz; 4] = [Tz::UTC, Tz::Europe__Oslo, Tz::America__New_York, Tz::Australia__Lord_Howe];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn of_each_of_the_last_days_weeks_months_and_years_with_a_backup_one_is_there(
        seed in any::<u64>(),
        zone in select(&ZONES),
        outages in proptest::collection::vec((0..DAYS, 1_u64..60), 0..15),
    ) {
        let rules = "keep_daily = 7\nkeep_weekly = 8\nkeep_monthly = 12\nkeep_quarterly = 6\n\
            keep_yearly = 4";
        let promises = vec![
            promise("%Y-%m-%d", Reach::Periods(7)),
            promise("%G-W%V", Reach::Periods(8)),
            promise("%Y-%m", Reach::Periods(12)),
            promise("%Y", Reach::Periods(4)),
        ];
        // Six quarters are among the twelve months, but for months that had no backup; and the
        // oldest.
        live(rules, promises, zone, seed, &outages, 7)?;
    }

    #[test]
    fn what_is_younger_than_a_period_is_there_whatever_failed_meanwhile(
        seed in any::<u64>(),
        zone in select(&ZONES),
        outages in proptest::collection::vec((0..DAYS, 1_u64..60), 0..15),
    ) {
        let rules = "keep_last = 3\nkeep_within = \"2d\"\nkeep_within_daily = \"14d\"\n\
            keep_within_weekly = \"2m\"\nkeep_within_monthly = \"1y\"";
        let promises = vec![
            promise("%s", Reach::Periods(3)),
            promise("%s", Reach::Days(1)),
            promise("%Y-%m-%d", Reach::Days(13)),
            promise("%G-W%V", Reach::Days(58)),
            promise("%Y-%m", Reach::Days(364)),
        ];
        live(rules, promises, zone, seed, &outages, 12)?;
    }
}
