//! The entries of the folders of a snapshot, as its indexes have them.

use std::num::NonZeroU32;
use std::ops::ControlFlow;

use tokio::runtime::Handle;

use crate::archive::index::{Entry, IndexError, IndexReader};
use crate::archive::{PathSet, Pattern};
use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::fault::{reading_failed, usable_manifest};
use crate::engine::read::fetch::{read_facts, read_plain};
use crate::engine::snapshots::list::Snapshot;
use crate::engine::state::locks::ReadLock;
use crate::model::{Artifact, ArtifactKind, Facts, Manifest, Name};
use crate::pipeline::{DecodeError, Identity};

/// A snapshot in a storage that has it.
#[derive(Clone)]
pub struct Side {
    /// Where it is read from.
    pub storage: OpenStorage,
    pub snapshot: Snapshot,
}

/// A snapshot whose manifest and facts were read.
pub(in crate::engine) struct Opened {
    pub(in crate::engine) engine: Engine,
    pub(in crate::engine) storage: OpenStorage,
    pub(in crate::engine) folder: String,
    pub(in crate::engine) manifest: Manifest,
    /// None when it is encrypted and there is no key to open it with.
    pub(in crate::engine) facts: Option<Facts>,
    identities: Vec<Identity>,
    runtime: Handle,
    _lock: Option<ReadLock>,
}

impl Opened {
    pub(in crate::engine) async fn new(
        engine: &Engine,
        side: &Side,
        identities: &[Identity],
    ) -> Result<Self, EngineError> {
        let manifest = usable_manifest(&side.storage, &side.snapshot, identities)?;
        let lock =
            ReadLock::share(&engine.state_dir, &side.snapshot.instance, &side.snapshot.strategy)?;
        let facts = read_facts(engine, &side.storage, manifest, identities).await?;
        Ok(Self {
            engine: engine.clone(),
            storage: side.storage.clone(),
            folder: side.snapshot.folder(),
            manifest: manifest.clone(),
            facts,
            identities: identities.to_vec(),
            runtime: Handle::current(),
            _lock: lock,
        })
    }

    /// The indexes of its folders, with the sources that they are of, in the order of the manifest.
    pub(in crate::engine) fn indexes(&self) -> impl Iterator<Item = (&Name, &Artifact)> {
        let indexes =
            self.manifest.artifacts.iter().filter(|artifact| artifact.kind == ArtifactKind::Index);
        indexes.filter_map(|artifact| Some((artifact.source.as_ref()?, artifact)))
    }

    /// Gives every entry of an index to `each`, in the order of the tarball, until it breaks off.
    /// For threads that may block.
    ///
    /// # Errors
    /// When the index is damaged or cannot be reached; what was given out before that is right as
    /// far as is known, and not all.
    pub(in crate::engine) fn entries(
        &self,
        index: &Artifact,
        mut each: impl FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let failed = |error: &std::io::Error| match self.engine.cancel.is_cancelled() {
            true => EngineError::Cancelled,
            false => reading_failed(&self.storage, &self.manifest.id, &index.name, error),
        };
        let damaged = |error: IndexError| match error {
            IndexError::Stream { error, .. } => failed(&error),
            error => EngineError::damaged(
                &self.manifest.id,
                &self.storage.name,
                format!("`{}`: {error}", index.name),
            ),
        };
        self.engine.progress.begin(format!("reading {} of {}", index.name, self.manifest.id), None);
        let facts = self.facts.as_ref();
        let plain =
            read_plain(&self.storage, &self.folder, index, &self.identities, facts, &self.runtime);
        let plain = plain.map_err(|error| match error {
            DecodeError::Locked(_) => EngineError::Request(format!("`{}`: {error}", index.name)),
            DecodeError::Io(error) => failed(&error),
        })?;
        let mut entries = IndexReader::new(plain).map_err(damaged)?;
        while let Some(entry) = entries.next_entry().map_err(damaged)? {
            if self.engine.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            if each(entry).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Gives every entry of every folder of a snapshot to `each`, with the source it is of and which
/// folder of that it is in, until it breaks off: those that `paths` match, with all that lies in
/// folders that match; all of them when there are no patterns.
///
/// # Errors
/// When the snapshot is encrypted and `identities` do not open it, damaged, or out of reach.
pub async fn files(
    engine: &Engine,
    side: &Side,
    identities: &[Identity],
    paths: &[Pattern],
    mut each: impl FnMut(&Name, NonZeroU32, Entry) -> ControlFlow<()> + Send + 'static,
) -> Result<(), EngineError> {
    let opened = Opened::new(engine, side, identities).await?;
    let mut paths = PathSet::new(paths).map_err(|error| EngineError::Request(error.to_string()))?;
    blocking(move || {
        let mut ended = false;
        for (source, index) in opened.indexes() {
            opened.entries(index, |entry| {
                if paths.has(&entry) {
                    ended = each(source, index.number(), entry).is_break();
                }
                if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            if ended {
                break;
            }
        }
        Ok(())
    })
    .await?
}
