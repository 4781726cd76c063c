//! The next run of a strategy: when it is due after the last one, what becomes of runs that were
//! missed, and how far a strategy keeps from the others.

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Schedule;
use crate::model::{Digest, Span};

/// A run that begins later than this after its time was missed: the process was down, the machine
/// asleep, or the run before took longer.
const LATE: TimeDelta = TimeDelta::minutes(2);

/// What becomes of runs that were missed. Several are one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// One run, at once.
    #[default]
    RunOnce,
    /// None: the next run is at the next time of the schedule.
    Skip,
}

/// When a run begins, and which time of its schedule it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The time of the schedule; the present for one that was missed.
    pub at: DateTime<Utc>,
    /// When the run begins: not before this.
    pub begins: DateTime<Utc>,
    /// Whether it was missed, and is made up for now.
    pub missed: bool,
}

impl Schedule {
    /// The run after the one that began at or was due at `last`, `jitter` after its time. None only
    /// at the end of the calendar.
    pub fn due(
        &self,
        last: DateTime<Utc>,
        now: DateTime<Utc>,
        missed: Missed,
        jitter: TimeDelta,
    ) -> Option<Due> {
        let at = self.next_after(last)?;
        let begins = at.checked_add_signed(jitter)?;
        if begins.checked_add_signed(LATE).is_none_or(|late| now <= late) {
            return Some(Due { at, begins, missed: false });
        }
        match missed {
            Missed::RunOnce => Some(Due { at: now, begins: now, missed: true }),
            Missed::Skip => {
                // One that is due now is not missed.
                let at =
                    self.next_after(now.checked_sub_signed(LATE)?.checked_sub_signed(jitter)?)?;
                Some(Due { at, begins: at.checked_add_signed(jitter)?, missed: false })
            }
        }
    }
}

/// How long a strategy waits after its time, at most `most`: always the same for the same `name`,
/// and others for others, so that many machines with the same schedule do not begin at once.
pub fn jitter(most: Option<Span>, name: &str) -> TimeDelta {
    let most = most.map_or(0, |most| i64::try_from(most.duration().as_secs()).unwrap_or(i64::MAX));
    let digest = Digest::of(name.as_bytes());
    let number = digest
        .as_bytes()
        .iter()
        .take(7)
        .fold(0_i64, |number, byte| (number << 8) | i64::from(*byte));
    let seconds = number.checked_rem(most.saturating_add(1)).unwrap_or(0);
    TimeDelta::try_seconds(seconds).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::timezone;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn times_at_the_borders_of_the_calendar_do_not_overflow() {
        let nightly = schedule("30 1 * * *", "UTC");
        let moments = [DateTime::<Utc>::MIN_UTC, DateTime::UNIX_EPOCH, DateTime::<Utc>::MAX_UTC];
        let spans = [TimeDelta::MIN, TimeDelta::zero(), TimeDelta::MAX];
        for (last, now) in moments.into_iter().flat_map(|a| moments.map(|b| (a, b))) {
            for jitter in spans {
                for missed in [Missed::RunOnce, Missed::Skip] {
                    let _ = nightly.due(last, now, missed, jitter);
                }
                let allowance = crate::schedule::Allowance {
                    stale_after: None,
                    last_took: Some(jitter),
                    jitter,
                };
                let _ = nightly.overdue(last, now, allowance);
            }
        }
        for seconds in [0, 1, i64::MAX as u64, u64::MAX] {
            let most = Span::from(std::time::Duration::from_secs(seconds));
            assert!(jitter(Some(most), "a") >= TimeDelta::zero(), "{seconds}");
        }
    }

    fn schedule(line: &str, zone: &str) -> Schedule {
        Schedule::new(line, timezone(zone).unwrap()).unwrap()
    }

    fn due(
        last: &str,
        now: &str,
        missed: Missed,
        jitter: i64,
    ) -> (DateTime<Utc>, DateTime<Utc>, bool) {
        let nightly = schedule("30 1 * * *", "UTC");
        let due = nightly.due(at(last), at(now), missed, TimeDelta::minutes(jitter)).unwrap();
        (due.at, due.begins, due.missed)
    }

    #[test]
    fn the_next_run_is_that_after_the_last_one() {
        let next = at("2026-11-21T01:30:00Z");
        for missed in [Missed::RunOnce, Missed::Skip] {
            assert_eq!(
                due("2026-11-20T01:30:00Z", "2026-11-20T01:40:00Z", missed, 0),
                (next, next, false)
            );
            // The jitter of the run before does not move it.
            assert_eq!(
                due("2026-11-20T01:37:00Z", "2026-11-20T01:40:00Z", missed, 0),
                (next, next, false)
            );
            let later = next + TimeDelta::minutes(7);
            assert_eq!(
                due("2026-11-20T01:37:00Z", "2026-11-20T01:40:00Z", missed, 7),
                (next, later, false)
            );
            // Due this very moment, or a moment ago: not missed.
            for now in ["2026-11-21T01:30:00Z", "2026-11-21T01:31:59Z"] {
                assert_eq!(
                    due("2026-11-20T01:30:00Z", now, missed, 0),
                    (next, next, false),
                    "{now}"
                );
            }
            // Its time has come, but its jitter has not passed.
            assert_eq!(
                due("2026-11-20T01:37:00Z", "2026-11-21T01:36:00Z", missed, 7),
                (next, later, false)
            );
        }
    }

    #[test]
    fn several_missed_runs_are_one_or_none() {
        let now = at("2026-11-24T12:00:00Z");
        let next = at("2026-11-25T01:30:00Z");
        let (last, text) = ("2026-11-20T01:30:00Z", "2026-11-24T12:00:00Z");
        assert_eq!(due(last, text, Missed::RunOnce, 0), (now, now, true));
        assert_eq!(due(last, text, Missed::Skip, 0), (next, next, false));
        // After the one that was made up for, the next is that of the schedule.
        assert_eq!(due(text, text, Missed::RunOnce, 0), (next, next, false));
    }

    #[test]
    fn a_process_that_starts_anew_all_the_time_neither_doubles_nor_loses_a_run() {
        let nightly = schedule("30 1 * * *", "Europe/Oslo");
        // It restarts every 17 minutes for a year, over both changes of the clocks, and remembers
        // only when it last ran.
        let (mut now, end) = (at("2026-01-01T12:00:00Z"), at("2027-01-01T12:00:00Z"));
        let (mut last, mut runs) = (now, 0);
        while now < end {
            let due = nightly.due(last, now, Missed::RunOnce, TimeDelta::zero()).unwrap();
            let until = now + TimeDelta::minutes(17);
            if due.begins < until {
                last = due.begins.max(now);
                runs += 1;
            }
            now = until;
        }
        assert_eq!(runs, 365);
    }

    #[test]
    fn each_fire_of_years_is_due_exactly_once_in_zones_of_all_kinds() {
        for zone in [
            "Europe/Oslo",
            "America/New_York",
            "Australia/Lord_Howe",
            "Asia/Kathmandu",
            "Africa/Casablanca",
        ] {
            for line in ["30 1 * * *", "15 2 * * *", "*/20 * * * *", "0 */6 * * *", "30 2 * * SUN"]
            {
                let schedule = schedule(line, zone);
                let (start, end) = (at("2026-01-01T00:00:00Z"), at("2028-01-01T00:00:00Z"));
                let fires = std::iter::successors(schedule.next_after(start), |fire| {
                    schedule.next_after(*fire)
                });
                let expected: Vec<_> = fires.take_while(|fire| *fire < end).collect();
                let mut found = Vec::new();
                let mut last = start;
                // Each run begins half a second late and takes a minute.
                while let Some(due) = schedule.due(
                    last,
                    last + TimeDelta::minutes(1),
                    Missed::RunOnce,
                    TimeDelta::zero(),
                ) {
                    if due.at >= end {
                        break;
                    }
                    assert!(!due.missed, "{zone} {line}: {due:?}");
                    found.push(due.at);
                    last = due.at + TimeDelta::milliseconds(500);
                }
                assert_eq!(found, expected, "{zone} {line}");
            }
        }
    }

    #[test]
    fn jitter_is_the_same_for_one_and_differs_between_many() {
        let most: Span = "10m".parse().unwrap();
        assert_eq!(jitter(None, "shop/daily"), TimeDelta::zero());
        let of = |name: &str| jitter(Some(most), name).num_seconds();
        assert_eq!(of("shop/daily"), of("shop/daily"));
        let many: Vec<i64> = (0..1_000).map(|number| of(&format!("shop-{number}/daily"))).collect();
        assert!(many.iter().all(|seconds| (0..=600).contains(seconds)));
        let distinct: std::collections::BTreeSet<_> = many.iter().collect();
        assert!(distinct.len() > 400, "{}", distinct.len());
        let mean = many.iter().sum::<i64>() / 1_000;
        assert!((250..350).contains(&mean), "{mean}");
    }
}
