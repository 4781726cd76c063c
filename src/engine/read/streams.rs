//! The streams of a snapshot that a restorer reads: whole, in parts, and the index beside them.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::engine::context::OpenStorage;
use crate::engine::read::fault::Fault;
use crate::engine::read::fetch::{read_plain, read_range};
use crate::model::{Artifact, ArtifactKind, Facts, Manifest};
use crate::pipeline::{BlockList, DecodeError, Identity, parts};
use crate::report::Progress;
use crate::source::Streams;

/// Names the artifact in every error of a stream.
struct Named<R> {
    inner: R,
    artifact: String,
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted || Fault::within(&error).is_some() {
                error
            } else {
                Fault::wrap(&self.artifact, &error)
            }
        })
    }
}

/// Counts what is read of a stream as progress.
struct Counted<R> {
    inner: R,
    progress: Progress,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.add(count as u64);
        Ok(count)
    }
}

/// The streams that belong to one artifact of a snapshot in a storage. For threads that may block.
pub(in crate::engine) struct ArtifactStreams {
    storage: OpenStorage,
    folder: String,
    artifact: Artifact,
    index: Option<Artifact>,
    blocks: Option<Artifact>,
    missing: Option<Artifact>,
    identities: Vec<Identity>,
    facts: Option<Arc<Facts>>,
    runtime: Handle,
    progress: Progress,
}

impl ArtifactStreams {
    /// Those of `artifact` in `manifest`; nothing is read yet. What is read counts in `progress`.
    pub(in crate::engine) fn new(
        storage: &OpenStorage,
        manifest: &Manifest,
        artifact: &Artifact,
        identities: &[Identity],
        facts: Option<&Arc<Facts>>,
        progress: &Progress,
    ) -> Self {
        Self {
            storage: storage.clone(),
            folder: manifest.snapshot_ref().folder(),
            artifact: artifact.clone(),
            index: beside(manifest, artifact, ArtifactKind::Index).cloned(),
            blocks: beside(manifest, artifact, ArtifactKind::Blocks).cloned(),
            missing: beside(manifest, artifact, ArtifactKind::Missing).cloned(),
            identities: identities.to_vec(),
            facts: facts.map(Arc::clone),
            runtime: Handle::current(),
            progress: progress.clone(),
        }
    }

    fn plain(&self, artifact: &Artifact) -> io::Result<Named<Box<dyn Read + Send>>> {
        let facts = self.facts.as_deref();
        let inner = read_plain(
            &self.storage,
            &self.folder,
            artifact,
            &self.identities,
            facts,
            &self.runtime,
        );
        let inner = inner.map_err(|error| opening_failed(artifact, &error))?;
        Ok(Named { inner, artifact: artifact.name.clone() })
    }
}

/// The artifact of `kind` that belongs to the tarball `of`; only tarballs have any.
pub(in crate::engine) fn beside<'a>(
    manifest: &'a Manifest,
    of: &Artifact,
    kind: ArtifactKind,
) -> Option<&'a Artifact> {
    manifest.artifacts.iter().find(|other| {
        of.kind == ArtifactKind::Tar
            && other.kind == kind
            && (&other.source, other.number()) == (&of.source, of.number())
    })
}

fn opening_failed(artifact: &Artifact, error: &DecodeError) -> io::Error {
    match error {
        DecodeError::Locked(_) => Fault::refusal(&artifact.name, error.to_string()),
        DecodeError::Io(error) => Fault::wrap(&artifact.name, error),
    }
}

impl Streams for ArtifactStreams {
    fn whole(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(Counted {
            inner: self.plain(&self.artifact)?,
            progress: self.progress.clone(),
        }))
    }

    fn parts(&self, ranges: Vec<Range<u64>>) -> io::Result<Box<dyn Read + Send + '_>> {
        let Some(blocks) = &self.blocks else {
            let problem =
                "The snapshot does not say where its blocks begin, so it can be read whole only"
                    .to_owned();
            return Err(Fault::refusal(&self.artifact.name, problem));
        };
        if ranges.iter().all(Range::is_empty) {
            return Ok(Box::new(io::empty()));
        }
        let (compression, compressed_bytes) =
            (self.artifact.codec.compression, self.artifact.compressed_bytes);
        let spans =
            BlockList::new(self.plain(blocks)?, compression, compressed_bytes).map(|span| {
                span.map_err(|error| match Fault::within(&error) {
                    Some(_) => error,
                    None => Fault::wrap(&blocks.name, &error),
                })
            });
        let fetch = |object: &crate::model::StoredObject,
                     range: Range<u64>|
         -> io::Result<Box<dyn Read + Send + '_>> {
            let key = format!("{}{}", self.folder, object.key);
            Ok(Box::new(read_range(&self.storage, key, range, &self.runtime)))
        };
        let inner =
            parts(&self.artifact, Box::new(spans), Box::new(fetch), &self.identities, ranges);
        let inner = inner.map_err(|error| opening_failed(&self.artifact, &error))?;
        let inner = Named { inner, artifact: self.artifact.name.clone() };
        Ok(Box::new(Counted { inner, progress: self.progress.clone() }))
    }

    fn index(&self) -> io::Result<Option<Box<dyn Read + Send + '_>>> {
        let Some(index) = &self.index else { return Ok(None) };
        Ok(Some(Box::new(self.plain(index)?)))
    }

    fn missing(&self) -> io::Result<Option<Box<dyn Read + Send + '_>>> {
        let Some(missing) = &self.missing else { return Ok(None) };
        Ok(Some(Box::new(self.plain(missing)?)))
    }
}
