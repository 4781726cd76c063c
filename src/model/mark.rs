//! Marks: what is said of a snapshot after it was taken. `docs/format.md` has their full text.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::layout::MARKS_FOLDER;
use super::sealed::{SealError, seal, unseal};
use super::{Digest, Name, SnapshotId, SnapshotRef};

/// The format of the marks that this version writes, and the newest it reads. Marks of format 1
/// have no id of their own; holds and suspicions of that format were replaced and deleted.
pub const MARK_FORMAT: u32 = 2;
/// The word of `if_unknown` that lets a mark of an unknown kind count as a hold.
const HOLD: &str = "hold";

/// What is said of one snapshot. It stands in every storage that has the snapshot, and counts
/// wherever it stands. Marks are added, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// [`MARK_FORMAT`] of the writer.
    pub format: u32,
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// Its own id, the same in every storage. None in format 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark_id: Option<SnapshotId>,
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
    /// These marks count no more, and no others do because of it.
    Release {
        ends: Vec<MarkRef>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// That the snapshot is gone from the storage where this stands is meant.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        forgotten: bool,
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
        #[serde(default, skip_serializing_if = "Suspector::is_drill")]
        by: Suspector,
    },
    /// The copy in one storage is not what was written.
    Damaged {
        /// The storage, as the manifest of that copy names it.
        storage: Name,
        /// Which object, and how it differs.
        reason: String,
    },
    /// This version does not know the kind. The mark says that it then counts as a hold.
    #[serde(skip)]
    Unknown { kind: String },
}

/// What found a snapshot suspect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suspector {
    /// A drill, whose own mark says so too.
    #[default]
    Drill,
    /// The run that took it: the mark is written before the manifest.
    Run,
}

impl Suspector {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
    fn is_drill(&self) -> bool {
        *self == Self::Drill
    }
}

/// One mark, by its content: a key of format 1 may be used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MarkRef {
    /// Below the folder of the instance's marks.
    pub key: String,
    /// Of the stored object.
    pub digest: Digest,
}

impl MarkRef {
    /// Whether its key is that of a mark of the snapshot `id`, in whatever format.
    pub fn is_of(&self, id: &SnapshotId) -> bool {
        Mark::id_in_key(&self.key).as_ref() == Some(id)
    }
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

impl MarkError {
    /// Whether it is whole, and a later version knows what it says.
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Sealed(SealError::Newer { .. }))
    }
}

/// What is read of a mark of an unknown kind.
#[derive(Deserialize)]
struct UnknownMark {
    format: u32,
    instance: Name,
    strategy: Name,
    id: SnapshotId,
    mark_id: SnapshotId,
    made: DateTime<Utc>,
    kind: String,
    if_unknown: String,
}

impl Mark {
    /// A mark of the snapshot `of`. `own` is its own id, which no other mark of the same kind has.
    pub fn new(of: SnapshotRef, own: SnapshotId, made: DateTime<Utc>, says: Says) -> Self {
        let SnapshotRef { instance, strategy, id } = of;
        Self { format: MARK_FORMAT, instance, strategy, id, mark_id: Some(own), made, says }
    }

    /// The suspicion that goes with the mark of a drill which found its snapshot suspect.
    pub fn suspicion(&self) -> Self {
        let reason = "It has much less than the last good snapshot, by a drill".to_owned();
        Self { says: Says::Suspect { reason, by: Suspector::Drill }, ..self.clone() }
    }

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

    /// The folder of a snapshot's marks.
    pub fn folder_of(instance: &Name, id: &SnapshotId) -> String {
        format!("{}{id}/", Self::folder(instance))
    }

    /// The snapshot of a mark, by its key below the folder of the instance's marks.
    pub fn id_in_key(key: &str) -> Option<SnapshotId> {
        match key.split_once('/') {
            Some((_, name)) if name.contains('/') => None,
            Some((id, _)) => id.parse().ok(),
            // `hold-<id>.json`, and for a drill also its time: an id has one dash in it.
            None => {
                let mut parts = key.strip_suffix(".json")?.rsplitn(3, '-');
                let (salt, time) = (parts.next()?, parts.next()?);
                format!("{time}-{salt}").parse().ok()
            }
        }
    }

    /// Where a hold of format 1 stands; there is at most one.
    pub fn old_hold_key(instance: &Name, id: &SnapshotId) -> String {
        format!("{}hold-{id}.json", Self::folder(instance))
    }

    /// Whether `key`, in a storage, is one of format 1: such keys are used more than once.
    pub fn is_of_format_1(key: &str) -> bool {
        key.split('/').count() == 3
    }

    /// Where it stands in a storage.
    pub fn key(&self) -> String {
        let kind = self.says.kind();
        let Some(own) = &self.mark_id else {
            let time = match self.says {
                Says::Drill { .. } => format!("{}-", self.made.format("%Y%m%dT%H%M%SZ")),
                _ => String::new(),
            };
            return format!("{}{kind}-{time}{}.json", Self::folder(&self.instance), self.id);
        };
        format!("{}{kind}-{own}.json", Self::folder_of(&self.instance, &self.id))
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
        let mark = serde_json::from_str(document).or_else(|error| {
            Self::counts_as_hold(document).ok_or_else(|| MarkError::Unknown(error.to_string()))
        })?;
        if mark.key() != key {
            return Err(MarkError::Misplaced { belongs: mark.key() });
        }
        if (mark.format == 1) != mark.mark_id.is_none() {
            return Err(MarkError::Unknown("its format and its id do not agree".to_owned()));
        }
        if let Says::Release { ends, .. } = &mark.says
            && let Some(other) = ends.iter().find(|ended| !ended.is_of(&mark.id))
        {
            let problem = format!("it ends `{}`, a mark of another snapshot", other.key);
            return Err(MarkError::Unknown(problem));
        }
        Ok(mark)
    }

    /// The mark in `document`, which this version does not know and which says that it then counts
    /// as a hold.
    fn counts_as_hold(document: &str) -> Option<Self> {
        let unknown: UnknownMark = serde_json::from_str(document).ok()?;
        (unknown.if_unknown == HOLD).then_some(Self {
            format: unknown.format,
            instance: unknown.instance,
            strategy: unknown.strategy,
            id: unknown.id,
            mark_id: Some(unknown.mark_id),
            made: unknown.made,
            says: Says::Unknown { kind: unknown.kind },
        })
    }
}

impl Says {
    /// The stored word.
    fn kind(&self) -> &str {
        match self {
            Self::Hold { .. } => HOLD,
            Self::Release { .. } => "release",
            Self::Drill { .. } => "drill",
            Self::Suspect { .. } => "suspect",
            Self::Damaged { .. } => "damaged",
            Self::Unknown { kind } => kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mark, MarkError, MarkRef, Says, Suspector, Verdict};
    use crate::model::{Digest, SnapshotId};

    fn id(text: &str) -> SnapshotId {
        text.parse().unwrap()
    }

    fn mark(says: Says) -> Mark {
        let of = crate::model::SnapshotRef {
            instance: "ella".parse().unwrap(),
            strategy: "daily".parse().unwrap(),
            id: id("20261121T013000Z-7f3a9c"),
        };
        let made = "2026-11-22T05:00:00Z".parse().unwrap();
        Mark::new(of, id("20261122T050000Z-0a1b2c"), made, says)
    }

    fn old(says: Says) -> Mark {
        Mark { format: 1, mark_id: None, ..mark(says) }
    }

    fn ends(key: &str) -> Says {
        let ends = vec![MarkRef { key: key.to_owned(), digest: Digest::of(b"") }];
        Says::Release { ends, reason: None, forgotten: false }
    }

    #[test]
    fn a_mark_reads_back_from_its_own_place_only() {
        let hold = |until: Option<&str>| Says::Hold {
            reason: until.map(str::to_owned),
            until: until.map(|until| until.parse().unwrap()),
        };
        let drill = || Says::Drill { verdict: Verdict::Passed, evidence: None };
        let suspect = || Says::Suspect { reason: "rows".to_owned(), by: Suspector::default() };
        let damaged =
            Says::Damaged { storage: "offsite".parse().unwrap(), reason: "db.pgdump".to_owned() };
        for (mark, key) in [
            (old(hold(None)), "hold-20261121T013000Z-7f3a9c.json"),
            (old(drill()), "drill-20261122T050000Z-20261121T013000Z-7f3a9c.json"),
            (old(suspect()), "suspect-20261121T013000Z-7f3a9c.json"),
            (
                mark(hold(Some("2027-01-01T00:00:00Z"))),
                "20261121T013000Z-7f3a9c/hold-20261122T050000Z-0a1b2c.json",
            ),
            (
                mark(ends("hold-20261121T013000Z-7f3a9c.json")),
                "20261121T013000Z-7f3a9c/release-20261122T050000Z-0a1b2c.json",
            ),
            (mark(drill()), "20261121T013000Z-7f3a9c/drill-20261122T050000Z-0a1b2c.json"),
            (mark(suspect()), "20261121T013000Z-7f3a9c/suspect-20261122T050000Z-0a1b2c.json"),
            (mark(damaged), "20261121T013000Z-7f3a9c/damaged-20261122T050000Z-0a1b2c.json"),
        ] {
            let key = format!("ella/marks/{key}");
            assert_eq!(mark.key(), key);
            assert_eq!(Mark::from_bytes(&mark.to_bytes(), &key).unwrap(), mark);
            for elsewhere in [
                "ella/marks/hold-20261122T013000Z-7f3a9c.json",
                "ella/marks/20261122T013000Z-7f3a9c/hold-20261122T050000Z-0a1b2c.json",
                "shop/marks/20261121T013000Z-7f3a9c/hold-20261122T050000Z-0a1b2c.json",
            ] {
                let moved = Mark::from_bytes(&mark.to_bytes(), elsewhere);
                assert!(matches!(moved, Err(MarkError::Misplaced { .. })), "{moved:?}");
            }
        }
    }

    #[test]
    fn a_forgotten_snapshot_is_a_release_to_older_readers() {
        let forgotten = mark(Says::Release { ends: Vec::new(), reason: None, forgotten: true });
        let bytes = forgotten.to_bytes();
        assert_eq!(Mark::from_bytes(&bytes, &forgotten.key()).unwrap(), forgotten);
        // Without the key that they pass over, it is a release that ends nothing.
        let text = String::from_utf8(bytes).unwrap();
        let document = text.split_once("\"mark\":\n").unwrap().1;
        let document = document.trim_end().strip_suffix('}').unwrap();
        let mut document: serde_json::Value = serde_json::from_str(document).unwrap();
        assert!(document.as_object_mut().unwrap().remove("forgotten").is_some());
        let read: Mark = serde_json::from_value(document).unwrap();
        assert_eq!(read, mark(Says::Release { ends: Vec::new(), reason: None, forgotten: false }));
    }

    #[test]
    fn a_release_ends_marks_of_its_own_snapshot_only() {
        for own in [
            "20261121T013000Z-7f3a9c/hold-20261122T050000Z-0a1b2c.json",
            "20261121T013000Z-7f3a9c/frozen-20261122T050000Z-0a1b2c.json",
            "suspect-20261121T013000Z-7f3a9c.json",
        ] {
            let release = mark(ends(own));
            assert!(Mark::from_bytes(&release.to_bytes(), &release.key()).is_ok(), "{own}");
        }
        for other in [
            "20261120T013000Z-7f3a9c/hold-20261122T050000Z-0a1b2c.json",
            "20261121T013000Z-7f3a9c/../20261120T013000Z-7f3a9c/hold.json",
            "hold-20261120T013000Z-7f3a9c.json",
            "",
        ] {
            let release = mark(ends(other));
            let read = Mark::from_bytes(&release.to_bytes(), &release.key());
            assert!(matches!(read, Err(MarkError::Unknown(_))), "{other}: {read:?}");
        }
    }

    #[test]
    fn a_mark_that_was_changed_is_an_error() {
        let mark = mark(Says::Hold { reason: Some("audit".to_owned()), until: None });
        let bytes = mark.to_bytes();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            let changed = Mark::from_bytes(&flipped, &mark.key()).unwrap_err();
            assert!(!changed.is_newer(), "bit flipped at {position}");
            let cut = Mark::from_bytes(&bytes[..position], &mark.key()).unwrap_err();
            assert!(!cut.is_newer(), "cut at {position}");
        }
    }

    #[test]
    fn an_unknown_kind_holds_or_is_an_error() {
        let known = mark(Says::Hold { reason: None, until: None });
        let key = known.key().replace("/hold-", "/seal-");
        let mut later = serde_json::to_value(&known).unwrap();
        later["kind"] = "seal".into();
        let read = |later: &serde_json::Value| Mark::from_bytes(&super::seal("mark", later), &key);
        for word in [None, Some("ignore"), Some("")] {
            if let Some(word) = word {
                later["if_unknown"] = word.into();
            }
            assert!(read(&later).is_err_and(|error| error.is_newer()), "{word:?}");
        }
        later["if_unknown"] = "hold".into();
        assert_eq!(read(&later).unwrap().says, Says::Unknown { kind: "seal".to_owned() });
        later["format"] = 3.into();
        assert!(read(&later).is_err_and(|error| error.is_newer()));
    }
}
