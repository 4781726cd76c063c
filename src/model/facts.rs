//! The facts: all that was counted and noticed when a snapshot was taken, stored encrypted with the
//! rest.

use std::io::{self, BufReader, Read};

use serde::{Deserialize, Serialize};

use super::total::{MOST_VALUES, values_in};
use super::{
    ByteSize, Digest, Name, Remarks, SnapshotId, checked_total, parse_artifact_name, total,
};

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
    /// The stream failed; [`io::ErrorKind::FileTooLarge`] where it is larger than this version
    /// reads.
    #[error(transparent)]
    Stream(#[from] io::Error),
    #[error(transparent)]
    Malformed(serde_json::Error),
    #[error("its sizes are larger than can be")]
    Sizes,
}

/// The largest facts, in bytes before compression.
const LARGEST_FACTS: u64 = 32 << 20;

/// Ends with an error where facts are larger than this version reads.
struct Bounded<R> {
    stream: R,
    bytes: u64,
    /// What begins a value or ends one, wherever it stands.
    values: u64,
}

impl<R: Read> Bounded<R> {
    fn new(stream: R) -> Self {
        Self { stream, bytes: 0, values: 0 }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        let came = buffer.get(..count).unwrap_or_default();
        self.bytes = self.bytes.saturating_add(count as u64);
        self.values = self.values.saturating_add(values_in(came));
        if self.bytes > LARGEST_FACTS || self.values > MOST_VALUES {
            let problem = format!(
                "larger than this version reads: up to {} with {MOST_VALUES} values",
                ByteSize(LARGEST_FACTS)
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
        }
        Ok(count)
    }
}

impl Facts {
    /// Reads the plain stream of `facts.json`.
    ///
    /// # Errors
    /// When it is malformed, or states sizes that cannot be.
    pub fn from_reader(stream: impl Read) -> Result<Self, FactsError> {
        let stream = BufReader::with_capacity(64 << 10, Bounded::new(stream));
        let facts: Self = serde_json::from_reader(stream).map_err(|error| {
            if error.is_io() {
                FactsError::Stream(error.into())
            } else {
                FactsError::Malformed(error)
            }
        })?;
        let plain = facts.artifacts.iter().map(|artifact| artifact.plain_bytes);
        checked_total(plain).ok_or(FactsError::Sizes)?;
        Ok(facts)
    }

    /// The plain stream of `facts.json`.
    ///
    /// # Errors
    /// When nobody could read it again, since it is too large.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FactsError> {
        let body = serde_json::to_vec(self).map_err(FactsError::Malformed)?;
        io::copy(&mut Bounded::new(body.as_slice()), &mut io::sink())?;
        Ok(body)
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

    /// The tables of a source, of each of its databases; none where it has none to count.
    pub fn tables_of(&self, source: &Name) -> Option<Vec<&serde_json::Value>> {
        let lists: Vec<_> = self
            .objects_of(source)
            .filter_map(|(_, object)| object.get("tables")?.as_array())
            .collect();
        (!lists.is_empty()).then(|| lists.into_iter().flatten().collect())
    }

    /// The rows of all tables of a source together; none where any was not counted.
    pub fn rows_of(&self, source: &Name) -> Option<u128> {
        self.tables_of(source)?.into_iter().map(rows).sum()
    }

    /// Everything that a folder has and that is no folder; none where the source is none.
    pub fn entries_of(&self, source: &Name) -> Option<u128> {
        const KINDS: [&str; 4] = ["files", "symlinks", "hardlinks", "others"];
        let count = |object: &serde_json::Value| -> Option<u128> {
            object.get("files")?;
            Some(KINDS.iter().filter_map(|kind| object.get(*kind)?.as_u64()).map(u128::from).sum())
        };
        let mut counts = self.objects_of(source).filter_map(|(_, object)| count(object)).peekable();
        counts.peek()?;
        Some(counts.sum())
    }

    /// Bytes of the files of a folder; none where the source is none.
    pub fn content_bytes_of(&self, source: &Name) -> Option<u64> {
        let bytes = |object: &serde_json::Value| {
            object.get("files")?;
            object.get("bytes")?.as_u64()
        };
        let mut all = self.objects_of(source).filter_map(|(_, object)| bytes(object)).peekable();
        all.peek()?;
        Some(total(all))
    }

    /// Those of the artifacts that are of a source.
    pub fn artifacts_of(&self, source: &Name) -> impl Iterator<Item = &ArtifactFacts> {
        let is_of = |known: &ArtifactFacts, source: &Name| {
            parse_artifact_name(&known.name).is_some_and(|(name, ..)| name == source.as_str())
        };
        self.artifacts.iter().filter(move |known| is_of(known, source))
    }
}

/// The rows of a table in the object of its source, in a type that holds the sum of any number of
/// them.
pub fn rows(table: &serde_json::Value) -> Option<u128> {
    table.get("rows").and_then(serde_json::Value::as_u64).map(u128::from)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Facts of a PostgreSQL source with so many tables.
    fn of_tables(count: u32) -> Facts {
        let table = |number| {
            let name = format!("table_{number}");
            json!({ "schema": "public", "name": name, "rows": number })
        };
        let tables: Vec<_> = (0..count).map(table).collect();
        let mut remarks = Remarks::default();
        for number in 0..1_000_000 {
            remarks.warn(format!("warning {number}"));
        }
        Facts {
            format: FACTS_FORMAT,
            instance: "app".parse().unwrap(),
            strategy: "daily".parse().unwrap(),
            id: "20261121T013000Z-7f3a9c".parse().unwrap(),
            configuration: json!({}),
            artifacts: Vec::new(),
            sources: vec![SourceFacts {
                name: "db".parse().unwrap(),
                consistency: "snapshot".to_owned(),
                seconds: 1.0,
                facts: json!({ "type": "postgres", "v": 1, "tables": tables }),
            }],
            remarks,
        }
    }

    #[test]
    fn the_largest_honest_facts_read_back_as_written() {
        let facts = of_tables(100_000);
        let body = facts.to_bytes().unwrap();
        assert_eq!(Facts::from_reader(body.as_slice()).unwrap(), facts);
        // As earlier versions wrote them.
        let pretty = serde_json::to_vec_pretty(&facts).unwrap();
        assert_eq!(Facts::from_reader(pretty.as_slice()).unwrap(), facts);
    }

    #[test]
    fn facts_that_nobody_could_read_are_not_written() {
        let error = of_tables(1_000_000).to_bytes().unwrap_err();
        assert!(
            matches!(&error, FactsError::Stream(error)
                if error.kind() == io::ErrorKind::FileTooLarge),
            "{error}"
        );
    }
}
