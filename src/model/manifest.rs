//! The manifest: the document that commits a snapshot, format 1. `docs/format.md` is its full text.

use std::num::NonZeroU32;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::sealed::{SealError, seal, unseal};
use super::{Digest, Name, SnapshotId, SnapshotRef, checked_total, parse_artifact_name, total};

/// The format this version writes, and the newest it reads.
pub const FORMAT: u32 = 1;
/// What this version understands of a manifest's `requires`.
pub const FEATURES: [&str; 6] = ["zstd", "gzip", "age", "continued", "numbered", "missing"];
/// Its name in the layout of a sealed document.
const KIND: &str = "manifest";

/// What a snapshot consists of. A snapshot exists if and only if its manifest exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// What a reader must understand beyond the format, of [`FEATURES`].
    pub requires: Vec<String>,
    /// The application that was backed up.
    pub instance: Name,
    /// The strategy whose run wrote this.
    pub strategy: Name,
    /// The snapshot's id, the name of its folder.
    pub id: SnapshotId,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// When every artifact was complete and checked.
    pub finished: DateTime<Utc>,
    /// When the next snapshot of the strategy is due, by the schedule that was in force; none
    /// without a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_due: Option<DateTime<Utc>>,
    pub program: Program,
    /// Whether content is missing.
    pub completeness: Completeness,
    /// Where this copy is kept, and how it was checked there.
    pub storage: StorageNote,
    /// Every stored stream, in the order written.
    pub artifacts: Vec<Artifact>,
}

/// The program that wrote a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// `holdfast`.
    pub name: String,
    pub version: String,
}

/// Whether a snapshot has all that its sources had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Completeness {
    /// Nothing is missing.
    Whole,
    /// Content is missing (unreadable or vanished entries); the facts say what.
    Partial,
}

/// The storage that holds a copy, and how the copy was looked up again before the commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageNote {
    /// The storage's name in the configuration.
    pub name: Name,
    pub remote_check: RemoteCheck,
}

/// What a storage could be asked about an object that it had just taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RemoteCheck {
    /// Its size only.
    Size,
    /// Its size and a CRC-32C that the storage computed of what arrived.
    Crc32c,
}

/// One stored stream of a snapshot: a dump, a tarball, an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// [`artifact_name()`](super::artifact_name()), or `facts.json`; the objects are named after
    /// it.
    pub name: String,
    /// The source it came from; none for the facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
    /// What the plain stream is.
    pub kind: ArtifactKind,
    /// How the plain stream is encoded.
    pub codec: Codec,
    /// Bytes after compression and before encryption.
    pub compressed_bytes: u64,
    /// The stored objects. Joined in this order they are the encoded stream.
    pub objects: Vec<StoredObject>,
}

impl Artifact {
    /// Which of its source it is: what belongs together, as a tarball and its index, has the same.
    pub fn number(&self) -> NonZeroU32 {
        parse_artifact_name(&self.name).map_or(NonZeroU32::MIN, |(_, number, _)| number)
    }

    /// Bytes stored, all objects together.
    pub fn stored_bytes(&self) -> u64 {
        total(self.objects.iter().map(|object| object.size))
    }
}

/// What the plain stream of an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactKind {
    /// `pg_dump --format=custom --compress=0`.
    PgDump,
    /// Roles and tablespaces as SQL, of `pg_dumpall --globals-only`.
    PgGlobals,
    /// The database file of an SQLite database.
    Sqlite,
    /// A POSIX (pax) tarball.
    Tar,
    /// What is in the tarball, JSON lines.
    Index,
    /// Where each block of the tarball begins, JSON lines.
    Blocks,
    /// Entries that could not be read and so are not in the tarball, JSON lines.
    Missing,
    /// The standard output of a command.
    Stream,
    /// All that was counted and noticed, JSON.
    Facts,
}

impl ArtifactKind {
    /// Whether it is the bulk of its source, which the source's name stands for.
    pub fn is_main(self) -> bool {
        matches!(self, Self::PgDump | Self::Sqlite | Self::Tar | Self::Stream)
    }

    /// Whether it is restored into a database.
    pub fn is_database(self) -> bool {
        matches!(self, Self::PgDump | Self::Sqlite)
    }

    /// Whether it is a tarball of files, of which parts can be restored.
    pub fn is_files(self) -> bool {
        self == Self::Tar
    }
}

/// How a plain stream is encoded: compressed first, encrypted after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Codec {
    pub compression: Compression,
    pub encryption: Encryption,
}

impl Codec {
    /// What the names of objects end in: `.zst.age`, `.gz`, or nothing.
    pub fn suffix(self) -> String {
        let compression = match self.compression {
            Compression::Zstd => ".zst",
            Compression::Gzip => ".gz",
            Compression::None => "",
        };
        let encryption = match self.encryption {
            Encryption::Age => ".age",
            Encryption::None => "",
        };
        format!("{compression}{encryption}")
    }
}

/// The compression of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// RFC 8878.
    Zstd,
    /// RFC 1952.
    Gzip,
    /// As it is.
    None,
}

/// The encryption of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// <https://age-encryption.org/v1>, to X25519 recipients.
    Age,
    /// As it is.
    None,
}

/// One object at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Relative to the snapshot's folder; a plain file name.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Digest of those bytes.
    pub digest: Digest,
}

/// Why a document is not a manifest that may be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not the document that was written.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// It lacks a field, or has one that cannot be.
    #[error("It is not a manifest: {0}")]
    Malformed(String),
    /// It needs what this version does not know.
    #[error("It requires {}, which this version does not know: \
        use a newer version of the program", .0.join(", "))]
    Requires(Vec<String>),
    /// It belongs to another snapshot than the folder it lies in.
    #[error(
        "It is of {found}, but lies in the folder of {expected}: it was moved or planted there"
    )]
    Misplaced {
        /// The identity in it.
        found: String,
        /// The identity of its folder.
        expected: String,
    },
}

impl ManifestError {
    /// Whether it is whole, and larger than this version reads.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Sealed(SealError::TooLarge))
    }

    /// Whether it is whole, and a later version wrote it: that says nothing against the snapshot.
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Requires(_) | Self::Sealed(SealError::Newer { .. }))
    }
}

impl Manifest {
    /// Where it is stored.
    pub fn snapshot_ref(&self) -> SnapshotRef {
        SnapshotRef {
            instance: self.instance.clone(),
            strategy: self.strategy.clone(),
            id: self.id.clone(),
        }
    }

    /// The manifest as stored: a first line with the digest, the document, a closing line. The
    /// digest is of the lines between the first and the last, so
    /// `sed '1d;$d' manifest.json | sha256sum` computes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        seal(KIND, self)
    }

    /// The stored manifest `bytes`, which [`Manifest::from_bytes`] took, as the copy of its
    /// snapshot in another storage has it: equal but for `storage` and the digest. Fields that this
    /// version does not know stay.
    ///
    /// # Errors
    /// When `bytes` are not laid out as a manifest.
    pub fn for_copy(bytes: &[u8], storage: &StorageNote) -> Result<Vec<u8>, ManifestError> {
        let malformed = |error: serde_json::Error| ManifestError::Malformed(error.to_string());
        let mut document: serde_json::Value =
            serde_json::from_str(unseal(KIND, bytes, FORMAT)?.1).map_err(malformed)?;
        let storage = serde_json::to_value(storage).map_err(malformed)?;
        if let Some(place) = document.get_mut("storage") {
            *place = storage;
        }
        Ok(seal(KIND, &document))
    }

    /// Reads a stored manifest of the snapshot `id` of `instance` and `strategy`.
    ///
    /// # Errors
    /// Everything a [`ManifestError`] says. A manifest whose digest does not match is not looked
    /// into any further.
    pub fn from_bytes(
        bytes: &[u8],
        instance: &Name,
        strategy: &Name,
        id: &SnapshotId,
    ) -> Result<Self, ManifestError> {
        let malformed = |what: &str| ManifestError::Malformed(what.to_owned());
        let (head, document) = unseal(KIND, bytes, FORMAT)?;
        let unknown: Vec<String> = head
            .requires
            .ok_or_else(|| malformed("it states no `requires`"))?
            .into_iter()
            .filter(|feature| !FEATURES.contains(&feature.as_str()))
            .collect();
        if !unknown.is_empty() {
            return Err(ManifestError::Requires(unknown));
        }
        let manifest: Self = serde_json::from_str(document)
            .map_err(|error| ManifestError::Malformed(error.to_string()))?;
        if (&manifest.instance, &manifest.strategy, &manifest.id) != (instance, strategy, id) {
            return Err(ManifestError::Misplaced {
                found: manifest.snapshot_ref().to_string(),
                expected: format!("{instance}/{strategy}/{id}"),
            });
        }
        let plain = |key: &str| !key.is_empty() && !key.contains('/') && key != "." && key != "..";
        for artifact in &manifest.artifacts {
            if artifact.objects.is_empty()
                || !artifact.objects.iter().all(|object| plain(&object.key))
            {
                return Err(ManifestError::Malformed(format!(
                    "the objects of `{}` are not plain names in its folder",
                    artifact.name
                )));
            }
        }
        let compressed = manifest.artifacts.iter().map(|artifact| artifact.compressed_bytes);
        let stored = manifest.artifacts.iter().flat_map(|artifact| &artifact.objects);
        if checked_total(compressed).is_none()
            || checked_total(stored.map(|object| object.size)).is_none()
        {
            return Err(malformed("its sizes are larger than can be"));
        }
        Ok(manifest)
    }

    /// Bytes stored, all artifacts together.
    pub fn stored_bytes(&self) -> u64 {
        total(self.artifacts.iter().map(Artifact::stored_bytes))
    }

    /// Whether any artifact is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.artifacts.iter().any(|artifact| artifact.codec.encryption == Encryption::Age)
    }

    /// The artifact of that name.
    pub fn artifact(&self, name: &str) -> Option<&Artifact> {
        self.artifacts.iter().find(|artifact| artifact.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Manifest {
        let id: SnapshotId =
            "20261121T013000Z-7f3a9c".parse().unwrap_or_else(|error| panic!("{error}"));
        let name = |text: &str| text.parse::<Name>().unwrap_or_else(|error| panic!("{error}"));
        Manifest {
            format: FORMAT,
            requires: vec!["zstd".to_owned()],
            instance: name("ella"),
            strategy: name("daily"),
            started: id.time(),
            finished: id.time(),
            next_due: Some(id.time()),
            id,
            program: Program { name: "holdfast".to_owned(), version: "0.1.0".to_owned() },
            completeness: Completeness::Whole,
            storage: StorageNote { name: name("local"), remote_check: RemoteCheck::Size },
            artifacts: vec![Artifact {
                name: "db.pgdump".to_owned(),
                source: Some(name("db")),
                kind: ArtifactKind::PgDump,
                codec: Codec { compression: Compression::Zstd, encryption: Encryption::None },
                compressed_bytes: 3,
                objects: vec![StoredObject {
                    key: "db.pgdump.zst".to_owned(),
                    size: 3,
                    digest: Digest::of(b"abc"),
                }],
            }],
        }
    }

    fn read(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let own = example();
        Manifest::from_bytes(bytes, &own.instance, &own.strategy, &own.id)
    }

    /// `body` under a digest that matches it.
    fn sealed(body: &str) -> Vec<u8> {
        format!("{{\"digest\": \"{}\", \"manifest\":\n{body}}}\n", Digest::of(body.as_bytes()))
            .into_bytes()
    }

    #[test]
    fn a_manifest_reads_back_as_written_and_is_json() {
        let bytes = example().to_bytes();
        assert_eq!(read(&bytes).ok(), Some(example()));
        let value: Result<serde_json::Value, _> = serde_json::from_slice(&bytes);
        assert!(value.is_ok_and(|value| value.pointer("/manifest/format") == Some(&1.into())));
    }

    #[test]
    fn the_manifest_of_a_copy_differs_in_its_storage_only_and_keeps_unknown_fields() {
        let mut own = example();
        own.storage.name = "offsite".parse().unwrap();
        assert_eq!(
            Manifest::for_copy(&example().to_bytes(), &own.storage).ok(),
            Some(own.to_bytes())
        );
        let later =
            serde_json::to_string(&example()).unwrap().replacen('{', "{\"later\":[1],", 1) + "\n";
        let copied = Manifest::for_copy(&sealed(&later), &own.storage).unwrap();
        assert_eq!(read(&copied).ok(), Some(own));
        assert!(String::from_utf8(copied).unwrap().contains("\"later\""));
    }

    #[test]
    fn any_changed_or_missing_byte_is_noticed() {
        let bytes = example().to_bytes();
        for position in 0..bytes.len() {
            let mut flipped = bytes.clone();
            if let Some(byte) = flipped.get_mut(position) {
                *byte ^= 1;
            }
            assert!(read(&flipped).is_err(), "bit flipped at {position}");
            assert!(read(bytes.get(..position).unwrap_or_default()).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn a_newer_format_and_an_unknown_requirement_are_refused_in_words() {
        let body = serde_json::to_string(&example()).unwrap_or_default();
        let newer = read(&sealed(&(body.replace("\"format\":1", "\"format\":2") + "\n")));
        assert!(newer.is_err_and(|error| error.to_string().contains("format 2")));
        let unknown = read(&sealed(&(body.replace("[\"zstd\"]", "[\"zstd\",\"chunks\"]") + "\n")));
        assert!(unknown.is_err_and(|error| error.to_string().contains("requires chunks")));
    }

    #[test]
    fn a_manifest_in_another_folder_is_refused() {
        let own = example();
        let other: Name = "weekly".parse().unwrap_or_else(|error| panic!("{error}"));
        let moved = Manifest::from_bytes(&own.to_bytes(), &own.instance, &other, &own.id);
        assert!(matches!(moved, Err(ManifestError::Misplaced { .. })), "{moved:?}");
    }

    #[test]
    fn keys_that_point_out_of_the_folder_are_refused() {
        for key in ["../../etc/passwd", "", "..", "/etc/passwd", "a/b"] {
            let mut evil = example();
            evil.artifacts[0].objects[0].key = key.to_owned();
            assert!(matches!(read(&evil.to_bytes()), Err(ManifestError::Malformed(_))), "{key}");
        }
    }
}
