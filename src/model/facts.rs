//! The facts: all that was counted and noticed when a snapshot was taken, stored encrypted with the
//! rest.

use serde::{Deserialize, Serialize};

use super::{Digest, Name, Remarks, SnapshotId, checked_total, parse_artifact_name, total};

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
    /// The name of the database in it, for one of several of its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// What its source reported about it alone, of the shape that a source's object has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<serde_json::Value>,
}

/// Why a document is not facts that may be used.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    #[error(transparent)]
    Malformed(#[from] serde_json::Error),
    #[error("its sizes are larger than can be")]
    TooLarge,
}

impl Facts {
    /// Reads the plain stream of `facts.json`.
    ///
    /// # Errors
    /// When it is malformed, or states sizes that cannot be.
    pub fn from_reader(stream: impl std::io::Read) -> Result<Self, FactsError> {
        let facts: Self = serde_json::from_reader(stream)?;
        let plain = facts.artifacts.iter().map(|artifact| artifact.plain_bytes);
        checked_total(plain).ok_or(FactsError::TooLarge)?;
        Ok(facts)
    }

    /// Bytes before compression of all artifacts together.
    pub fn plain_bytes(&self) -> u64 {
        total(self.artifacts.iter().map(|artifact| artifact.plain_bytes))
    }

    /// The plain stream of the artifact of that name.
    pub fn artifact(&self, name: &str) -> Option<&ArtifactFacts> {
        self.artifacts.iter().find(|known| known.name == name)
    }

    /// What was reported about a source: as a whole, and about each of its artifacts alone with
    /// the name of the database in it.
    pub fn objects_of(
        &self,
        source: &Name,
    ) -> impl Iterator<Item = (Option<&str>, &serde_json::Value)> {
        let whole = self.sources.iter().filter(move |known| known.name == *source);
        let alone = self
            .artifacts_of(source)
            .filter_map(|known| known.facts.as_ref().map(|facts| (known.of.as_deref(), facts)));
        whole.map(|known| (None, &known.facts)).chain(alone)
    }

    /// Those of the artifacts that are of a source.
    pub fn artifacts_of(&self, source: &Name) -> impl Iterator<Item = &ArtifactFacts> {
        let is_of = |known: &ArtifactFacts, source: &Name| {
            parse_artifact_name(&known.name).is_some_and(|(name, ..)| name == source.as_str())
        };
        self.artifacts.iter().filter(move |known| is_of(known, source))
    }
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
