//! What happens in a run, for whoever shows it: a terminal, a log, a machine.
//!
//! This room has the words of a run, how far it is and how it ended; the evidence of a drill, also
//! as a page to be filed; those of how a strategy fares, and the same as metrics; and it carries
//! what happened to who is not looking ([`notify`]). It does not print, and does not know what a
//! run does, nor find out how a strategy fares.

mod drill;
mod event;
mod metrics;
pub mod notify;
mod status;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{Completeness, Digest, ErrorCode, Name, Remarks, SnapshotId};

pub use crate::model::Outcome;
pub use drill::{DrillReport, DrillStep, DrillTarget, DrilledArtifact, DrilledSnapshot, html};
pub use event::{Event, EventKind};
pub use metrics::{METRICS_TYPE, metrics};
pub use status::{
    Drills, LastDrill, LastRun, LastVerification, State, Status, StorageStatus, StrategyStatus,
};

/// How far a run is. The engine counts here, and a display looks whenever it likes.
#[derive(Clone, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Default)]
struct Counters {
    stage: Mutex<Stage>,
    bytes: AtomicU64,
    stage_bytes: AtomicU64,
}

/// What is being worked on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stage {
    /// In words: `db`, `checking offsite`.
    pub name: String,
    /// Plain bytes that it is expected to move, where known.
    pub expected_bytes: Option<u64>,
    /// Counts stages, so that a display notices a change.
    pub number: u64,
    /// Whether it is a part of what the stage before was a part of: the counts go on.
    pub goes_on: bool,
}

impl Progress {
    /// Nothing done yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next stage begins.
    pub fn begin(&self, name: impl Into<String>, expected_bytes: Option<u64>) {
        let mut stage = self.0.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage =
            Stage { name: name.into(), expected_bytes, number: stage.number + 1, goes_on: false };
        self.0.stage_bytes.store(0, Ordering::Relaxed);
    }

    /// The next part of what the present stage is a part of begins: expected and counted bytes are
    /// those of the whole.
    pub fn go_on(&self, name: impl Into<String>) {
        let mut stage = self.0.stage.lock().unwrap_or_else(PoisonError::into_inner);
        *stage =
            Stage { name: name.into(), number: stage.number + 1, goes_on: true, ..stage.clone() };
    }

    /// So many more plain bytes went by.
    pub fn add(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.stage_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The present stage.
    pub fn stage(&self) -> Stage {
        self.0.stage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Plain bytes of the present stage, those before it included when it goes on.
    pub fn stage_bytes(&self) -> u64 {
        self.0.stage_bytes.load(Ordering::Relaxed)
    }

    /// Plain bytes in all.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({} bytes)", self.bytes())
    }
}

/// A run that ended, as it is shown and recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunReport {
    pub instance: Name,
    pub strategy: Name,
    /// The id of the run, and of its snapshot when one was committed.
    pub id: SnapshotId,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether content is missing; only when committed.
    pub completeness: Option<Completeness>,
    /// Whether the snapshot has much less than the last good one, so that it waits for a release.
    #[serde(default)]
    pub suspect: bool,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What each source gave, in the order taken.
    pub sources: Vec<SourceReport>,
    /// How each storage fared.
    pub storages: Vec<StorageReport>,
    /// Bytes read from the sources.
    pub plain_bytes: u64,
    /// Bytes stored, in each storage.
    pub stored_bytes: u64,
    /// What went not quite right, and what is to be known besides; the storages have theirs.
    #[serde(flatten)]
    pub remarks: Remarks,
    pub error: Option<String>,
    /// The code of `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Whether it failed for a reason that may pass by itself: the network, a server that is
    /// starting.
    pub may_pass: bool,
}

/// How often a run said something, by level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Nothing is missing because of these.
    pub notes: u64,
    /// Content is missing or doubtful, or was not pruned.
    pub warnings: u64,
    /// What failed: the run, or a storage that did not get its snapshot.
    pub errors: u64,
}

impl RunReport {
    /// What the run and all its storages said, counted.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally {
            notes: self.remarks.notes.count(),
            warnings: self.remarks.warnings.count(),
            errors: u64::from(self.error.is_some()),
        };
        for storage in &self.storages {
            let pruned = storage.pruned.as_ref().and_then(|pruned| pruned.problem.as_ref());
            tally.notes += storage.notes.len() as u64;
            tally.warnings += storage.warnings.iter().chain(pruned).count() as u64;
            let lacking = self.completeness.is_some() && !storage.committed;
            tally.errors += u64::from(storage.error.is_some() || lacking);
        }
        tally
    }
}

/// What one source gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceReport {
    pub name: Name,
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes read from it, all its artifacts together.
    pub plain_bytes: u64,
    /// Bytes stored of it.
    pub stored_bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What of it can be counted: files and what else is no folder, or tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Rows of all its tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Bytes of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_bytes: Option<u64>,
    /// Of the rules by which it was taken. Where they differ, numbers are not comparable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules_digest: Option<Digest>,
}

/// How one storage fared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StorageReport {
    pub name: Name,
    pub address: String,
    /// Whether the snapshot is committed there.
    pub committed: bool,
    pub error: Option<String>,
    /// The code of `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<ErrorCode>,
    /// Doubts about what is stored there. Older records have them among the notes.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What the operator should know all the same.
    pub notes: Vec<String>,
    /// What retention did there after the commit, where it was its turn.
    pub pruned: Option<Pruned>,
}

/// What retention did with the snapshots of a strategy in one storage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pruned {
    pub strategy: Name,
    pub storage: Name,
    /// The snapshots that were deleted, in this order.
    pub deleted: Vec<SnapshotId>,
    /// Bytes that this freed.
    pub freed_bytes: u64,
    /// How many are kept.
    pub kept: usize,
    /// Why not all was done; where it was refused, nothing was deleted.
    pub problem: Option<String>,
    /// Of the storage's error, where one stopped the deleting.
    #[serde(default)]
    pub code: Option<ErrorCode>,
}

impl Pruned {
    /// Nothing was deleted, because of `problem` where there is one.
    pub fn refused(strategy: Name, storage: Name, problem: Option<String>) -> Self {
        let deleted = Vec::new();
        Self { strategy, storage, deleted, freed_bytes: 0, kept: 0, problem, code: None }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{RunReport, Tally};

    #[test]
    fn records_of_runs_without_notes_are_read() {
        let mut old = json!({
            "instance": "shop", "strategy": "daily", "id": "20260502T013000Z-010203",
            "outcome": "problems", "completeness": "partial",
            "started": "2026-05-02T01:30:00Z", "finished": "2026-05-02T01:31:00Z", "seconds": 60.0,
            "sources": [],
            "storages": [
                {
                    "name": "disk", "address": "/srv", "committed": true, "error": null,
                    "notes": ["a doubt"], "pruned": null,
                },
                {
                    "name": "usb", "address": "/usb", "committed": false, "error": "full",
                    "notes": [], "pruned": null,
                },
            ],
            "plain_bytes": 2, "stored_bytes": 1,
            "warnings": {
                "kept": [{ "source": "files", "path": "a", "reason": "gone", "missing": true }],
                "omitted": 1, "missing": 2,
            },
            "error": null, "may_pass": false,
        });
        let read: RunReport = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(read.tally(), Tally { notes: 1, warnings: 2, errors: 1 });
        // Also as it is written now, where nothing else is changed.
        old["notes"] = json!({ "kept": [], "omitted": 0 });
        for storage in old["storages"].as_array_mut().unwrap() {
            storage["warnings"] = json!([]);
        }
        old["suspect"] = json!(false);
        assert_eq!(json!(read), old);
    }
}
