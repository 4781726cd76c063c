//! A drill that ended: the evidence, as it is shown, recorded and filed.

mod html;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{
    Check, CheckOutcome, Completeness, Digest, ErrorCode, Name, Program, Proof, Remarks,
    SnapshotId, Verdict,
};

pub use html::html;

/// A drill that ended. As JSON it is what the catalog keeps and `backup drill report --format json`
/// prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrillReport {
    /// The drill's own id.
    pub id: SnapshotId,
    pub instance: Name,
    pub strategy: Name,
    /// How the snapshot was judged.
    pub verdict: Verdict,
    /// Why it did not pass, in words: what is wrong first, then how much else.
    pub problem: Option<String>,
    /// Of the error that kept it from being judged.
    #[serde(default)]
    pub code: Option<ErrorCode>,
    /// Whether it failed only because there is much less than in the last good snapshot. Nothing of
    /// the strategy is deleted until the snapshot is released.
    pub suspect: bool,
    /// Whether it failed only because what is stored in this storage is not what was written: that
    /// says nothing of the copies in others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_this_copy: bool,
    /// The snapshot, where there was one.
    pub snapshot: Option<DrilledSnapshot>,
    /// The storage that was read.
    pub storage: Name,
    pub address: String,
    /// The machine that the drill ran on.
    pub host: String,
    /// The program that drilled.
    pub program: Program,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
    /// How long getting everything back took: all steps but the checks and the clean-up, which only
    /// a drill has; in seconds.
    pub recovery_seconds: f64,
    /// How long it might have taken, in seconds.
    pub rto_seconds: Option<f64>,
    /// How old the data was when the drill began, in seconds.
    pub recovery_point_seconds: Option<f64>,
    /// How old it might have been, in seconds.
    pub rpo_seconds: Option<f64>,
    /// What took how long.
    pub steps: Vec<DrillStep>,
    /// What was restored, and where to.
    pub targets: Vec<DrillTarget>,
    /// What was proved of each source. Older versions did not say.
    #[serde(default)]
    pub proof: BTreeMap<Name, Proof>,
    /// The artifacts that were read.
    pub artifacts: Vec<DrilledArtifact>,
    /// Bytes of artifacts that were fetched from the storage.
    pub fetched_bytes: u64,
    /// What was looked at.
    pub checks: Vec<Check>,
    #[serde(flatten)]
    pub remarks: Remarks,
    /// Scratch targets that were to stay or could not be removed, and how to remove them.
    pub left: Vec<String>,
    /// Storages where the verdict stands beside the snapshot.
    pub recorded: Vec<Name>,
    /// Where it could not be put, and why: names of storages, and `catalog`.
    pub unrecorded: Vec<(String, String)>,
}

/// The snapshot that was drilled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrilledSnapshot {
    pub id: SnapshotId,
    /// When its run began: the moment that the data is of.
    pub taken: DateTime<Utc>,
    /// Whether content is missing, by its manifest.
    pub completeness: Option<Completeness>,
    pub program: Option<Program>,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Bytes of its plain streams, where its facts could be read.
    pub plain_bytes: Option<u64>,
}

/// What one step took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrillStep {
    pub name: String,
    /// Seconds.
    pub seconds: f64,
}

/// A scratch target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrillTarget {
    /// The source whose artifacts were restored to it.
    pub source: Name,
    /// What it was, with versions.
    pub place: String,
    /// What the source was when it was dumped: `PostgreSQL 15.4`, by the facts.
    pub dumped_from: Option<String>,
}

/// An artifact that was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrilledArtifact {
    pub name: String,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// Plain bytes, where known.
    pub plain_bytes: Option<u64>,
    /// Digest of the plain bytes, where known.
    pub plain_digest: Option<Digest>,
    /// What was done with it: `restored`, `read`.
    pub done: String,
}

impl DrillReport {
    /// How many checks came out so.
    pub fn count(&self, outcome: CheckOutcome) -> usize {
        self.checks.iter().filter(|check| check.outcome == outcome).count()
    }

    /// The checks that are bad news: those that failed, then those that could not be made.
    pub fn bad_news(&self) -> impl Iterator<Item = &Check> {
        let of = |outcome| self.checks.iter().filter(move |check| check.outcome == outcome);
        of(CheckOutcome::Failed).chain(of(CheckOutcome::Inconclusive))
    }
}
