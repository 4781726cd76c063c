//! What a partial snapshot lacks of what is restored or dumped from it.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use crate::archive::index::path_member;
use crate::archive::patterns::{Choice, Filter};
use crate::archive::selection::lies_in;
use crate::archive::{MissingEntry, Pattern, each_missing, lossy};
use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::fault::failed_in;
use crate::engine::read::streams::ArtifactStreams;
use crate::model::{Artifact, Cancel, Facts, Manifest, Name};
use crate::pipeline::Identity;
use crate::source::SourceError;

/// How many entries are listed.
const LISTED: usize = 1_000;

/// Which of the missing entries matter.
pub(in crate::engine) enum Part<'a> {
    /// Those that the patterns could match; all without patterns.
    Patterns(&'a [Pattern]),
    /// Those in this file or folder.
    Within(&'a [u8]),
}

/// Entries that could not be read when the snapshot was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub count: u64,
    /// The first of them.
    pub entries: Vec<MissingLine>,
    #[serde(skip)]
    sources: BTreeSet<Name>,
}

/// One of them. As JSON: `source`, `path` or `path_b64` (neither where it is the whole source), and
/// `reason`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingLine {
    pub source: Name,
    pub path: Option<Vec<u8>>,
    /// Why, in words.
    pub reason: String,
}

impl MissingLine {
    /// `source/path`, with bytes that are not UTF-8 replaced.
    pub fn place(&self) -> String {
        match &self.path {
            Some(path) => format!("{}/{}", self.source, lossy(path)),
            None => self.source.to_string(),
        }
    }
}

impl Serialize for MissingLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("source", &self.source)?;
        if let Some((key, path)) = self.path.as_deref().map(path_member) {
            map.serialize_entry(key, &path)?;
        }
        map.serialize_entry("reason", &self.reason)?;
        map.end()
    }
}

impl Missing {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes in what is missing of `artifact`: by the list beside it, and where there is none by
    /// the facts, which keep the first 1,000 warnings. For threads that may block.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub(in crate::engine) fn add(
        &mut self,
        streams: &ArtifactStreams,
        artifact: &Artifact,
        facts: Option<&Facts>,
        part: &Part<'_>,
        cancel: &Cancel,
    ) -> Result<(), SourceError> {
        let Some(source) = &artifact.source else { return Ok(()) };
        let filter = match part {
            Part::Patterns(patterns) if !patterns.is_empty() => {
                Some(Filter::new(patterns, &[]).map_err(|error| {
                    SourceError::Unsuitable(format!("The patterns cannot be used: {error}"))
                })?)
            }
            _ => None,
        };
        let matters = |path: &[u8]| match part {
            Part::Within(folder) => *folder == b"." || lies_in(path, folder) || path == *folder,
            Part::Patterns(_) => filter
                .as_ref()
                .is_none_or(|filter| path == b"." || filter.choose_at(path, true) != Choice::Leave),
        };
        let Self { count, entries, sources } = self;
        let mut take = |path: Option<Vec<u8>>, reason: String| {
            if path.as_deref().is_some_and(|path| !matters(path)) {
                return;
            }
            *count = count.saturating_add(1);
            if entries.len() < LISTED {
                entries.push(MissingLine { source: source.clone(), path, reason });
            }
        };
        let listed = each_missing(streams, cancel, |MissingEntry { path, reason }| {
            take(Some(path), reason);
        })?;
        if listed || !sources.insert(source.clone()) {
            return Ok(());
        }
        let warnings = facts.into_iter().flat_map(|facts| facts.remarks.warnings.kept());
        for warning in warnings.filter(|warning| warning.missing) {
            if warning.note.source.as_deref() == Some(source.as_str()) {
                let path = warning.note.path.clone().map(String::into_bytes);
                take(path, warning.note.reason.clone());
            }
        }
        Ok(())
    }
}

/// What `artifacts` of a snapshot lack of what the patterns choose.
///
/// # Errors
/// When a list cannot be read.
pub(in crate::engine) async fn missing(
    engine: &Engine,
    (storage, manifest, facts): (&OpenStorage, &Manifest, Option<&Arc<Facts>>),
    artifacts: impl Iterator<Item = &Artifact>,
    identities: &[Identity],
    paths: &[Pattern],
) -> Result<Missing, EngineError> {
    let mut missing = Missing::default();
    for artifact in artifacts {
        let streams =
            ArtifactStreams::new(storage, manifest, artifact, identities, facts, &engine.progress);
        let name = artifact.name.clone();
        let (artifact, facts, paths) = (artifact.clone(), facts.cloned(), paths.to_vec());
        let cancel = engine.cancel.clone();
        let added = blocking(move || {
            let part = Part::Patterns(&paths);
            let added = missing.add(&streams, &artifact, facts.as_deref(), &part, &cancel);
            (missing, added)
        });
        let (so_far, added) = added.await?;
        added.map_err(|error| failed_in(engine, storage, &manifest.id, &name, error))?;
        missing = so_far;
    }
    Ok(missing)
}
