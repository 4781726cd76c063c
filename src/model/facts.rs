//! The facts: all that was counted and noticed when a snapshot was taken, stored encrypted with the
//! rest.

use serde::{Deserialize, Serialize};

use super::{Digest, Name, Remarks, SnapshotId};

/// The format of the facts that this version writes.
pub const FACTS_FORMAT: u32 = 1;

/// What was true of the sources when the snapshot was taken. A drill judges a restore by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FACTS_FORMAT`] of the writer.
    pub format: u32,
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// The strategy as it was resolved, secrets masked.
    pub configuration: serde_json::Value,
    /// Plain sizes and digests of every artifact but this one.
    pub artifacts: Vec<ArtifactFacts>,
    /// What each source reported, in the order taken.
    pub sources: Vec<SourceFacts>,
    #[serde(flatten)]
    pub remarks: Remarks,
}

/// The plain stream of one artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFacts {
    /// As in the manifest.
    pub name: String,
    /// Bytes before compression.
    pub plain_bytes: u64,
    /// Digest of those bytes.
    pub plain_digest: Digest,
}

/// What one source reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceFacts {
    pub name: Name,
    /// `snapshot` when everything is of one instant of the source; other words, with their meaning,
    /// are in `docs/format.md`.
    pub consistency: String,
    /// Seconds it took.
    pub seconds: f64,
    /// The source's own object, tagged with `type` and `v`.
    pub facts: serde_json::Value,
}
