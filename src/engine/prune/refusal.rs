//! Why nothing is deleted.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};

use crate::model::{Name, SnapshotId};

/// Why nothing is deleted in one place, although there may be something to delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Refusal {
    /// It could not be listed, or not be asked.
    Unreachable { problem: String },
    /// A manifest cannot be read: nobody knows what the snapshot is.
    Manifest {
        id: SnapshotId,
        problem: String,
        /// A later version wrote it, or one that reads larger ones.
        newer: bool,
    },
    /// Something stands where the format has a file or a folder, and is none: nobody knows what it
    /// hides.
    Unexpected { problem: String },
    /// An object that a manifest names is missing or cut.
    Damaged { id: SnapshotId, problem: String },
    /// A mark cannot be read: nobody knows what it protects.
    Mark {
        storage: Name,
        /// Which, and why not.
        problem: String,
    },
    /// The clock of this machine is before the newest snapshot.
    Clock {
        newest: SnapshotId,
        /// The time by this machine.
        now: DateTime<Utc>,
    },
    /// Snapshots are gone that this host did not delete, and that retention would have kept.
    Shrunk { gone: Vec<SnapshotId> },
    /// A run or a drill found that a snapshot has much less than the last good one, and nobody has
    /// looked at it since.
    Suspect { id: SnapshotId },
    /// More would be deleted than one pruning may.
    TooMany {
        delete: usize,
        of: usize,
        /// How many percent are allowed.
        percent: u8,
    },
}

impl Refusal {
    /// Whether it yields to `--force`: the operator has looked, and means it.
    pub fn yields(&self) -> bool {
        matches!(self, Self::Shrunk { .. } | Self::TooMany { .. })
    }
}

/// Each refusal with its words.
pub(super) fn with_messages<S: Serializer>(
    refusals: &[Refusal],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Told<'a> {
        #[serde(flatten)]
        refusal: &'a Refusal,
        message: String,
    }
    serializer
        .collect_seq(refusals.iter().map(|refusal| Told { refusal, message: refusal.to_string() }))
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { problem } => f.write_str(problem),
            Self::Unexpected { problem } => write!(
                f,
                "{problem}. Nobody knows what it hides: put back what belongs there, or move it out \
                 of the storage"
            ),
            Self::Manifest { id, problem, newer: true } => {
                write!(f, "The manifest of `{id}` cannot be used by this version: {problem}")
            }
            Self::Manifest { id, problem, newer: false } => write!(
                f,
                "The manifest of `{id}` cannot be read: {problem}. Look at it with `backup \
                 verify`; when it is lost, `backup forget {id}`"
            ),
            Self::Damaged { id, problem } => write!(
                f,
                "`{id}` is damaged: {problem}. While a storage loses objects nothing is deleted \
                 there. Look at it with `backup verify`; when it is \
                 lost, `backup forget {id}`"
            ),
            Self::Mark { storage, problem } => {
                write!(
                    f,
                    "The marks in `{storage}` cannot be read, so it is not known what is held: \
                     {problem}. Mend the storage; a hold that is damaged goes by `backup \
                     release`, any other mark only by hand"
                )
            }
            Self::Clock { newest, now } => write!(
                f,
                "The clock of this machine says {}, and the newest snapshot is `{newest}`. Set the \
                 clock; when that snapshot was dated wrongly, \
                 `backup forget {newest}`",
                now.format("%Y-%m-%d %H:%M:%S UTC")
            ),
            Self::Shrunk { gone } => {
                let some: Vec<&str> = gone.iter().take(3).map(SnapshotId::as_str).collect();
                let more = if gone.len() > some.len() { ", ..." } else { "" };
                write!(
                    f,
                    "{} snapshot(s) are gone since they were last listed; retention keeps them, \
                     and this program did not delete them here: {}{more}. Find out \
                     who did; `backup prune --force` takes it as it is",
                    gone.len(),
                    some.join(", ")
                )
            }
            Self::Suspect { id } => write!(
                f,
                "`{id}` is suspect: much less is in it than in the last good snapshot. Older ones \
                 may have all that is left, so nothing is deleted. Look at `backup diff`; when it \
                 is as it should be, `backup release {id} --reason TEXT`"
            ),
            Self::TooMany { delete, of, percent } => write!(
                f,
                "{delete} of {of} snapshots would be deleted, and `max_delete_percent` is \
                 {percent}. Look at `backup prune --plan`; \
                 `backup prune --force` does it"
            ),
        }
    }
}
