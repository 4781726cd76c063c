//! Marks: what is said of a snapshot after it was taken. `docs/format.md` has their full text.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::layout::MARKS_FOLDER;
use super::sealed::{SealError, seal, unseal};
use super::{Name, SnapshotId, SnapshotRef};

/// The format of the marks that this version writes, and the newest it reads.
pub const MARK_FORMAT: u32 = 1;

/// What is said of one snapshot. It stands in every storage that has the snapshot, and holds
/// wherever it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// [`MARK_FORMAT`] of the writer.
    pub format: u32,
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// When it was said.
    pub made: DateTime<Utc>,
    #[serde(flatten)]
    pub says: Says,
}

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Says {
    /// The snapshot must not be deleted.
    Hold {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Until when; until it is released, where none is given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<DateTime<Utc>>,
    },
    /// It was restored in a rehearsal, and judged.
    Drill {
        /// How it was judged.
        verdict: Verdict,
        /// What of the evidence may stand beside what is encrypted: it tells nothing about the
        /// content.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        evidence: Option<Evidence>,
    },
    /// It has much less than the last good one, so that nothing of its strategy is deleted until
    /// somebody has looked at it.
    Suspect {
        /// Why; it tells nothing about the content.
        reason: String,
    },
}

/// What a mark says of a drill besides the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The drill's own id.
    pub drill: SnapshotId,
    /// The storage that it read from.
    pub storage: Name,
    /// Whole seconds that getting everything back took.
    pub recovery_seconds: u64,
    pub passed: u64,
    /// Checks that did not.
    pub not_passed: u64,
    /// Whether it failed only because the snapshot has much less than the last good one.
    #[serde(default)]
    pub suspect: bool,
    pub version: String,
}

/// How a drill judged a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was restored, and every check held.
    Passed,
    /// It is bad.
    Failed,
    /// It could not be judged.
    Inconclusive,
}

impl Verdict {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a mark cannot be used. Nobody knows then what it protects, so nothing may be deleted.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// It is not what was written.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// It says something that this version does not know.
    #[error("It is not a mark that this version knows: {0}. Use a newer version of the program")]
    Unknown(String),
    /// It is of another snapshot than its key says.
    #[error("It belongs under `{belongs}`: it was moved or planted there")]
    Misplaced { belongs: String },
}

impl Mark {
    /// The snapshot that it is about.
    pub fn snapshot_ref(&self) -> SnapshotRef {
        SnapshotRef {
            instance: self.instance.clone(),
            strategy: self.strategy.clone(),
            id: self.id.clone(),
        }
    }

    /// The folder of an instance's marks.
    pub fn folder(instance: &Name) -> String {
        format!("{instance}/{MARKS_FOLDER}/")
    }

    /// Where a hold of the snapshot stands; there is at most one.
    pub fn hold_key(instance: &Name, id: &SnapshotId) -> String {
        format!("{}hold-{id}.json", Self::folder(instance))
    }

    /// Where it is said that the snapshot is suspect.
    pub fn suspect_key(instance: &Name, id: &SnapshotId) -> String {
        format!("{}suspect-{id}.json", Self::folder(instance))
    }

    /// Where it stands in a storage.
    pub fn key(&self) -> String {
        match self.says {
            Says::Hold { .. } => Self::hold_key(&self.instance, &self.id),
            Says::Suspect { .. } => Self::suspect_key(&self.instance, &self.id),
            Says::Drill { .. } => {
                let time = self.made.format("%Y%m%dT%H%M%SZ");
                format!("{}drill-{time}-{}.json", Self::folder(&self.instance), self.id)
            }
        }
    }

    /// The mark as stored, in the layout of a manifest.
    pub fn to_bytes(&self) -> Vec<u8> {
        seal("mark", self)
    }

    /// Reads the mark that stands under `key`.
    ///
    /// # Errors
    /// Everything a [`MarkError`] says.
    pub fn from_bytes(bytes: &[u8], key: &str) -> Result<Self, MarkError> {
        let (_, document) = unseal("mark", bytes, MARK_FORMAT)?;
        let mark: Self = serde_json::from_str(document)
            .map_err(|error| MarkError::Unknown(error.to_string()))?;
        if mark.key() == key { Ok(mark) } else { Err(MarkError::Misplaced { belongs: mark.key() }) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mark, MarkError, Says, Verdict};

    fn mark(says: Says) -> Mark {
        Mark {
            format: 1,
            instance: "ella".parse().unwrap(),
            strategy: "daily".parse().unwrap(),
            id: "20261121T013000Z-7f3a9c".parse().unwrap(),
            made: "2026-11-22T05:00:00Z".parse().unwrap(),
            says,
        }
    }

    #[test]
    fn a_mark_reads_back_as_written_from_its_own_place_only() {
        let until = Some("2027-01-01T00:00:00Z".parse().unwrap());
        for (mark, key) in [
            (
                mark(Says::Hold { reason: None, until: None }),
                "ella/marks/hold-20261121T013000Z-7f3a9c.json",
            ),
            (
                mark(Says::Hold { reason: Some("audit".to_owned()), until }),
                "ella/marks/hold-20261121T013000Z-7f3a9c.json",
            ),
            (
                mark(Says::Drill { verdict: Verdict::Passed, evidence: None }),
                "ella/marks/drill-20261122T050000Z-20261121T013000Z-7f3a9c.json",
            ),
            (
                mark(Says::Suspect { reason: "rows".to_owned() }),
                "ella/marks/suspect-20261121T013000Z-7f3a9c.json",
            ),
        ] {
            assert_eq!(mark.key(), key);
            assert_eq!(Mark::from_bytes(&mark.to_bytes(), key).unwrap(), mark);
            let moved =
                Mark::from_bytes(&mark.to_bytes(), "ella/marks/hold-20261122T013000Z-7f3a9c.json");
            assert!(matches!(moved, Err(MarkError::Misplaced { .. })), "{moved:?}");
        }
    }

    #[test]
    fn a_mark_that_was_changed_or_is_not_understood_is_an_error() {
        let mark = mark(Says::Hold { reason: Some("audit".to_owned()), until: None });
        let bytes = mark.to_bytes();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            assert!(Mark::from_bytes(&flipped, &mark.key()).is_err(), "bit flipped at {position}");
            assert!(
                Mark::from_bytes(&bytes[..position], &mark.key()).is_err(),
                "cut at {position}"
            );
        }
        let mut later = serde_json::to_value(&mark).unwrap();
        later["kind"] = "seal".into();
        let unknown = Mark::from_bytes(&super::seal("mark", &later), &mark.key());
        assert!(unknown.is_err_and(|error| error.to_string().contains("newer version")));
        later["format"] = 2.into();
        let newer = Mark::from_bytes(&super::seal("mark", &later), &mark.key());
        assert!(newer.is_err_and(|error| error.to_string().contains("format 2")));
    }
}
