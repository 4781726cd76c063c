//! One artifact of a snapshot, or one file or folder of a tarball, given out as it was.

use std::io::{self, Read, Write};
use std::sync::Arc;

use serde::Serialize;

use crate::archive::selection::lies_in;
use crate::archive::{self, Kind, lossy};
use crate::engine::context::{Engine, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::damage::remembered;
use crate::engine::read::fault::{failed_in, usable_manifest};
use crate::engine::read::fetch::read_facts;
use crate::engine::read::files::Side;
use crate::engine::read::missing::{Missing, Part};
use crate::engine::read::streams::ArtifactStreams;
use crate::engine::state::locks::ReadLock;
use crate::model::{Artifact, ArtifactKind, Cancel, Completeness, Manifest, Name};
use crate::pipeline::Identity;
use crate::source::{SourceError, Streams};

/// How much is read at a time.
const BUFFER_BYTES: usize = 128 << 10;

/// How many names that are near a missing one are told.
const NEAR: usize = 3;

/// How like a missing name another must be, of 1.
const LIKENESS: f64 = 0.85;

/// What is to be given out.
#[derive(Clone)]
pub struct DumpRequest {
    /// The name of a source, which stands for its main artifact, or of any artifact.
    pub what: String,
    /// A file or folder in it, counted from the folder that was backed up; the artifact itself when
    /// none.
    pub path: Option<Vec<u8>>,
    /// What opens it, when it is encrypted.
    pub identities: Vec<Identity>,
}

/// What was given out.
#[derive(Debug, Clone, Serialize)]
pub struct DumpReport {
    pub artifact: String,
    /// Bytes that were written.
    pub bytes: u64,
    /// What the snapshot lacks of it.
    pub missing: Missing,
    /// Bytes of artifacts that were fetched from the storage.
    pub fetched_bytes: u64,
}

/// Writes what `request` names of `snapshot` to `out`. The last bytes are written only when all was
/// found undamaged; so an output that is followed by an error is incomplete.
///
/// # Errors
/// When it is not there, or damaged; [`EngineError::Output`] when `out` fails.
pub async fn dump(
    engine: &Engine,
    side: &Side,
    request: &DumpRequest,
    out: Box<dyn Write + Send>,
) -> Result<DumpReport, EngineError> {
    let dumped = dump_from(engine, side, request, out).await;
    remembered(engine, side, dumped).await
}

async fn dump_from(
    engine: &Engine,
    Side { storage, snapshot }: &Side,
    request: &DumpRequest,
    out: Box<dyn Write + Send>,
) -> Result<DumpReport, EngineError> {
    let _reading = ReadLock::share(&engine.state_dir, &snapshot.instance, &snapshot.strategy)?;
    let fetched_before = storage.fetched_bytes();
    let manifest = usable_manifest(storage, snapshot, &request.identities)?;
    let artifact = find_artifact(manifest, &request.what)?.clone();
    if request.path.is_some() && !artifact.kind.is_files() {
        return Err(EngineError::Request(format!(
            "`{}` is no folder of files, so there is no path in it: leave the path out",
            artifact.name
        )));
    }
    let facts = match artifact.kind {
        // They are held against nothing but what is stored of them.
        ArtifactKind::Facts => None,
        _ => read_facts(engine, storage, manifest, &request.identities).await?.map(Arc::new),
    };
    engine.progress.begin(artifact.name.clone(), None);
    let streams = ArtifactStreams::new(
        storage,
        manifest,
        &artifact,
        &request.identities,
        facts.as_ref(),
        &engine.progress,
    );
    let (path, cancel) = (request.path.clone(), engine.cancel.clone());
    let mut out = Counting { inner: out, bytes: 0, error: None };
    let partial = manifest.completeness == Completeness::Partial && artifact.kind.is_main();
    let of = artifact.clone();
    let (out, missing, given) = blocking(move || {
        let mut missing = Missing::default();
        let lacks = |missing: &mut Missing| {
            if partial {
                let folder = path.as_deref().map_or_else(|| Ok(b".".to_vec()), archive::asked)?;
                let part = Part::Within(&folder);
                missing.add(&streams, &of, facts.as_deref(), &part, &cancel)?;
            }
            Ok(())
        };
        let given =
            lacks(&mut missing).and_then(|()| give(&streams, path.as_deref(), &mut out, &cancel));
        (out, missing, given)
    })
    .await?;
    match (out.error, given) {
        (Some(error), _) => return Err(EngineError::Output(error)),
        // Nothing is wrong but the path.
        (None, Err(SourceError::Unsuitable(problem))) => {
            return Err(EngineError::NotFound(problem));
        }
        (None, given) => {
            given
                .map_err(|error| failed_in(engine, storage, &manifest.id, &artifact.name, error))?;
        }
    }
    Ok(DumpReport {
        artifact: artifact.name,
        bytes: out.bytes,
        missing,
        fetched_bytes: storage.fetched_bytes().saturating_sub(fetched_before),
    })
}

/// The artifact with that name, or the main one of the source with that name.
fn find_artifact<'a>(manifest: &'a Manifest, what: &str) -> Result<&'a Artifact, EngineError> {
    let main = |artifact: &&Artifact| {
        artifact.source.as_ref().map(Name::as_str) == Some(what) && artifact.kind.is_main()
    };
    let artifacts = &manifest.artifacts;
    if let Some(named) = artifacts.iter().find(|artifact| artifact.name == what) {
        return Ok(named);
    }
    let mains: Vec<&Artifact> = artifacts.iter().filter(main).collect();
    if mains.len() > 1 {
        let names: Vec<String> = mains.iter().map(|main| format!("`{}`", main.name)).collect();
        return Err(EngineError::Request(format!(
            "The source `{what}` has several artifacts: name one of {}",
            names.join(", ")
        )));
    }
    mains.first().copied().ok_or_else(|| {
        let names: Vec<String> =
            artifacts.iter().map(|artifact| format!("`{}`", artifact.name)).collect();
        EngineError::NotFound(format!(
            "The snapshot has neither a source nor an artifact `{what}`; it has {}",
            names.join(", ")
        ))
    })
}

fn give(
    streams: &ArtifactStreams,
    path: Option<&[u8]>,
    out: &mut Counting,
    cancel: &Cancel,
) -> Result<(), SourceError> {
    let Some(path) = path else {
        let mut input = streams.whole().map_err(SourceError::Stream)?;
        return copy(&mut input, out, cancel);
    };
    let Some(entry) = archive::entry_at(streams, path, cancel)? else {
        return Err(SourceError::Unsuitable(match unread(streams, path, cancel)? {
            Some(problem) => problem,
            None => unknown(streams, path, cancel)?,
        }));
    };
    match entry.kind {
        Kind::Directory => archive::write_folder(streams, path, out, cancel)?,
        _ => archive::write_file(streams, path, out, cancel)?,
    };
    Ok(())
}

fn copy(input: &mut dyn Read, out: &mut dyn Write, cancel: &Cancel) -> Result<(), SourceError> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        match input.read(&mut buffer) {
            Ok(0) => return out.flush().map_err(SourceError::Stream),
            Ok(count) => out
                .write_all(buffer.get(..count).unwrap_or_default())
                .map_err(SourceError::Stream)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(SourceError::Stream(error)),
        }
    }
}

/// That the path, or a folder that it lies in, could not be read; none where all could.
fn unread(
    streams: &ArtifactStreams,
    path: &[u8],
    cancel: &Cancel,
) -> Result<Option<String>, SourceError> {
    let wanted = archive::asked(path)?;
    let mut problem = None;
    archive::each_missing(streams, cancel, |entry| {
        if entry.path == b"." || entry.path == wanted || lies_in(&wanted, &entry.path) {
            problem = Some(format!(
                "`{}` is not in the snapshot: `{}` could not be read when it was taken. {}",
                lossy(&wanted),
                lossy(&entry.path),
                entry.reason
            ));
        }
    })?;
    Ok(problem)
}

/// That there is no such path, and which ones are like it.
fn unknown(streams: &ArtifactStreams, path: &[u8], cancel: &Cancel) -> Result<String, SourceError> {
    let wanted = String::from_utf8_lossy(path).trim_matches('/').to_owned();
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let wanted_name = name(&wanted);
    let mut near: Vec<(f64, String)> = Vec::new();
    if let Some(index) = streams.index().map_err(SourceError::Stream)? {
        // What is wrong with the index was told when the path was looked up in it.
        for entry in archive::index::IndexReader::new(index).into_iter().flatten() {
            let Ok(entry) = entry else { break };
            if cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            let found = String::from_utf8_lossy(&entry.path).into_owned();
            // The same name in another folder is as near as can be.
            let likeness = if name(&found) == wanted_name {
                1.0
            } else {
                strsim::jaro_winkler(&found, &wanted)
            };
            if likeness >= LIKENESS {
                near.push((likeness, found));
                near.sort_by(|a, b| b.0.total_cmp(&a.0));
                near.truncate(NEAR);
            }
        }
    }
    let mut text = format!(
        "The snapshot has no `{wanted}`. A path is counted from the folder that was backed up"
    );
    if !near.is_empty() {
        let near: Vec<String> = near.into_iter().map(|(_, path)| format!("`{path}`")).collect();
        text = format!("{text}; there is {}", near.join(", "));
    }
    Ok(text)
}

/// Counts what is written, and keeps why no more can be: for who reads, an output that fails looks
/// like an input that does.
struct Counting {
    inner: Box<dyn Write + Send>,
    bytes: u64,
    error: Option<io::Error>,
}

impl Counting {
    fn keep<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.error = Some(error);
            }
            kind.into()
        })
    }
}

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes);
        let count = self.keep(count)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.inner.flush();
        self.keep(flushed)
    }
}
