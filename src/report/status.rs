//! How each strategy fares: what is asked of a sidecar, by people and by what watches it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Tally;
use crate::model::{Name, Outcome, Proof, SnapshotId, Verdict, VerificationOutcome};

/// How all strategies fare at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub at: DateTime<Utc>,
    /// Whether every strategy has what its schedule promises. What is manual or inactive promises
    /// nothing.
    pub ready: bool,
    /// Each strategy of each instance.
    pub strategies: Vec<StrategyStatus>,
    /// What could not be found out. Then it is not known whether all is well, and it is not ready.
    pub problems: Vec<String>,
}

impl Status {
    /// The status at `at`.
    pub fn new(at: DateTime<Utc>, strategies: Vec<StrategyStatus>, problems: Vec<String>) -> Self {
        let ready =
            problems.is_empty() && strategies.iter().all(|strategy| strategy.state.is_well());
        Self { at, ready, strategies, problems }
    }
}

/// How a strategy fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Every storage has a whole snapshot as young as the schedule promises.
    Fresh,
    /// The first snapshot is not due yet.
    Waiting,
    /// A storage lacks a snapshot that should be there.
    Stale,
    /// Something that is stored was found not to be what was written, and nobody has repaired it.
    Damaged,
    /// No drill has passed as its schedule promises, or the last one found that the backup is bad.
    Unproven,
    /// It has no schedule: it is run by hand.
    Manual,
    /// Its schedule is not followed: `active = false`.
    Inactive,
}

impl State {
    /// Whether nothing is missed.
    pub fn is_well(self) -> bool {
        !matches!(self, Self::Stale | Self::Damaged | Self::Unproven)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Fresh => "fresh",
            Self::Waiting => "waiting",
            Self::Stale => "stale",
            Self::Damaged => "damaged",
            Self::Unproven => "unproven",
            Self::Manual => "manual",
            Self::Inactive => "inactive",
        })
    }
}

/// One strategy.
#[derive(Debug, Clone, Serialize)]
pub struct StrategyStatus {
    pub instance: Name,
    pub strategy: Name,
    pub state: State,
    /// Why it is not well.
    pub reason: Option<String>,
    /// Since when it is stale.
    pub stale_since: Option<DateTime<Utc>>,
    pub schedule: Option<String>,
    /// The zone of it.
    pub timezone: String,
    /// When it runs next, while somebody looks after it.
    pub next: Option<DateTime<Utc>>,
    /// Whether a run is under way on this machine.
    pub running: bool,
    /// How its last run ended.
    pub last_run: Option<LastRun>,
    /// The last run that committed something.
    pub last_committed: Option<LastRun>,
    /// Runs that failed since then.
    pub failures_in_a_row: u64,
    /// Runs so far, by outcome.
    pub runs: BTreeMap<Outcome, u64>,
    /// Each of its storages.
    pub storages: Vec<StorageStatus>,
    /// The last time that what is stored was looked at again, on schedule.
    pub verified: Option<LastVerification>,
    /// What is known of its drills; none where there was none, and none is scheduled.
    pub drills: Option<Drills>,
}

/// What is known of the drills of a strategy: those of this machine, and those of others whose
/// verdicts were seen in a storage.
#[derive(Debug, Clone, Serialize)]
pub struct Drills {
    /// The cron line, in the zone of the strategy.
    pub schedule: Option<String>,
    /// When the next one is due, while somebody looks after it.
    pub next: Option<DateTime<Utc>>,
    /// When the last that passed ended.
    pub last_passed: Option<DateTime<Utc>>,
    /// When the last that came to a verdict ended.
    pub last_judged: Option<DateTime<Utc>>,
    pub verdict: Option<Verdict>,
    /// The last of this machine, however it ended.
    pub last: Option<LastDrill>,
}

/// A drill of this machine that ended.
#[derive(Debug, Clone, Serialize)]
pub struct LastDrill {
    pub id: SnapshotId,
    /// The snapshot, where there was one.
    pub snapshot: Option<SnapshotId>,
    /// How it judged the snapshot.
    pub verdict: Verdict,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// How long getting everything back took, in seconds.
    pub recovery_seconds: Option<f64>,
    /// How old the data was when it began, in seconds.
    pub recovery_point_seconds: Option<f64>,
    /// What it proved of each source.
    pub proof: BTreeMap<Name, Proof>,
    /// Why it did not pass.
    pub problem: Option<String>,
}

/// A run that ended. What it said is counted where its report can be read.
#[derive(Debug, Clone, Serialize)]
pub struct LastRun {
    pub id: SnapshotId,
    /// How it ended.
    pub outcome: Outcome,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Bytes read from the sources.
    pub plain_bytes: u64,
    /// Bytes stored, in each storage.
    pub stored_bytes: u64,
    #[serde(flatten)]
    pub tally: Option<Tally>,
    pub error: Option<String>,
}

/// What a storage has of a strategy.
#[derive(Debug, Clone, Serialize)]
pub struct StorageStatus {
    pub storage: Name,
    /// When the newest whole snapshot was begun.
    pub newest_whole: Option<DateTime<Utc>>,
    /// Snapshots that have much less than the last good one and are not released. They count as
    /// nothing else.
    pub suspect: Vec<SnapshotId>,
    /// Copies that were found damaged and have not been found sound since.
    pub damaged: Vec<SnapshotId>,
    /// Whether it is as young as the schedule promises.
    pub fresh: bool,
    /// Snapshots there, when it was last listed.
    pub snapshots: u64,
    /// Bytes that they take.
    pub stored_bytes: u64,
}

/// A verification that ended.
#[derive(Debug, Clone, Serialize)]
pub struct LastVerification {
    /// How it ended.
    pub outcome: VerificationOutcome,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// Copies of snapshots that were looked at.
    pub snapshots: u64,
    /// Bytes that were read and held against their digests.
    pub read_bytes: u64,
    pub problem: Option<String>,
}
