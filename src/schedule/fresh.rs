//! How old the newest snapshot of a strategy may be.

use chrono::{DateTime, TimeDelta, Utc};

use super::Schedule;

/// How long after its time a run may still be under way, unless the strategy says so or is known to
/// take longer.
const PATIENCE: TimeDelta = TimeDelta::hours(1);

/// A snapshot that was due, and is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overdue {
    /// The time of the schedule that it was due at.
    pub due: DateTime<Utc>,
    /// Since when it is missed.
    pub since: DateTime<Utc>,
}

/// How much later than its time a snapshot may be there.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// How long after its time a run begins.
    pub jitter: TimeDelta,
    /// What the operator allows.
    pub stale_after: Option<TimeDelta>,
    /// What the last run took.
    pub last_took: Option<TimeDelta>,
}

impl Schedule {
    /// Whether a strategy whose newest whole snapshot was begun at `newest` misses one at `now`.
    /// Where there is no snapshot at all, `newest` is when the strategy was first looked after.
    ///
    /// A run is given `stale_after` to be done; unless that is set an hour, at most the time to the
    /// next run, or twice what the last run took where that is more.
    pub fn overdue(
        &self,
        newest: DateTime<Utc>,
        now: DateTime<Utc>,
        allowance: Allowance,
    ) -> Option<Overdue> {
        let due = self.next_after(newest)?;
        let patience = allowance.stale_after.or_else(|| {
            let period = self.next_after(due)?.signed_duration_since(due);
            let twice = allowance
                .last_took
                .map_or(TimeDelta::zero(), |took| took.checked_mul(2).unwrap_or(TimeDelta::MAX));
            Some(PATIENCE.min(period).max(twice))
        });
        let since = due
            .checked_add_signed(allowance.jitter)?
            .checked_add_signed(patience.unwrap_or(PATIENCE))?;
        (since <= now).then_some(Overdue { due, since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::timezone;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn since(line: &str, newest: &str, now: &str, allowance: Allowance) -> Option<String> {
        let schedule = Schedule::new(line, timezone("UTC").unwrap()).unwrap();
        let overdue = schedule.overdue(at(newest), at(now), allowance)?;
        Some(overdue.since.format("%d %H:%M").to_string())
    }

    const NONE: Allowance =
        Allowance { jitter: TimeDelta::zero(), stale_after: None, last_took: None };

    #[test]
    fn a_snapshot_is_missed_an_hour_after_it_was_due() {
        let nightly = |now| since("30 1 * * *", "2026-11-20T01:30:00Z", now, NONE);
        assert_eq!(nightly("2026-11-20T12:00:00Z"), None);
        assert_eq!(nightly("2026-11-21T02:29:59Z"), None, "it may still run");
        assert_eq!(nightly("2026-11-21T02:30:00Z").unwrap(), "21 02:30");
        assert_eq!(
            nightly("2026-12-24T00:00:00Z").unwrap(),
            "21 02:30",
            "since the first that is missed"
        );
    }

    #[test]
    fn one_that_was_made_up_for_counts_for_the_time_that_it_was_made_up_for() {
        assert_eq!(since("30 1 * * *", "2026-11-21T09:00:00Z", "2026-11-21T23:00:00Z", NONE), None);
        assert_eq!(
            since("30 1 * * *", "2026-11-21T09:00:00Z", "2026-11-22T02:30:00Z", NONE).unwrap(),
            "22 02:30"
        );
    }

    #[test]
    fn how_long_a_run_may_take_follows_the_period_what_it_took_and_what_is_configured() {
        let newest = "2026-11-20T01:30:00Z";
        let now = "2026-11-25T00:00:00Z";
        assert_eq!(
            since("*/10 * * * *", newest, now, NONE).unwrap(),
            "20 01:50",
            "at most a period"
        );
        let long = Allowance { last_took: Some(TimeDelta::hours(3)), ..NONE };
        assert_eq!(
            since("30 1 * * *", newest, now, long).unwrap(),
            "21 07:30",
            "twice what it took"
        );
        let jittered = Allowance { jitter: TimeDelta::minutes(7), ..NONE };
        assert_eq!(since("30 1 * * *", newest, now, jittered).unwrap(), "21 02:37");
        let told = Allowance { stale_after: Some(TimeDelta::minutes(5)), ..long };
        assert_eq!(
            since("30 1 * * *", newest, now, told).unwrap(),
            "21 01:35",
            "the operator decides"
        );
    }
}
