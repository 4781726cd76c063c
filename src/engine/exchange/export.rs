//! Out of a storage, or straight from the sources, into a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::exchange::staging::Staging;
use crate::engine::exchange::{README, STORAGE};
use crate::engine::read::by_hand::{by_hand, shell_quoted};
use crate::engine::read::damage::remembered;
use crate::engine::read::fault::reading_failed;
use crate::engine::read::fetch::read_stored;
use crate::engine::read::files::Side;
use crate::engine::run::{last_committed, run};
use crate::engine::snapshots::documents::{LARGEST_MANIFEST, read_document};
use crate::engine::snapshots::list::{Selection, Snapshot, list};
use crate::engine::snapshots::mark_writer::{is_about_one_copy, keys_of};
use crate::engine::snapshots::marks::LARGEST_MARK;
use crate::engine::state::locks::ReadLock;
use crate::engine::write::snapshot_writer::{check_keys, objects};
use crate::model::{
    Artifact, ByteSize, Completeness, MANIFEST_KEY, Manifest, Mark, Name, RemoteCheck, SnapshotId,
    StorageNote,
};
use crate::pipeline::{
    Algorithm, CompressionConfig, EncodeSettings, Encoder, ObjectSink, Recipient,
};
use crate::report::RunReport;
use crate::storage::local::LocalConfig;
use crate::storage::{StorageConfig, StorageError};

/// Room that must be left beyond what is written.
const SPARE_BYTES: u64 = 16 << 20;
/// What is written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Where an export goes.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    pub output: PathBuf,
    /// Whether a file of that name is replaced.
    pub overwrite: bool,
    /// To whom the whole file is encrypted; it is not when empty. What is in it is encrypted or not
    /// as it was stored.
    pub recipients: Vec<Recipient>,
}

/// What was exported.
#[derive(Debug, Clone, Serialize)]
pub struct ExportReport {
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// Whether content is missing.
    pub completeness: Completeness,
    pub output: PathBuf,
    pub bytes: u64,
    /// Whether the file is encrypted as a whole.
    pub sealed: bool,
    /// Whether the artifacts in it are encrypted.
    pub encrypted: bool,
}

/// Packs a snapshot that is in a storage.
///
/// # Errors
/// When it cannot be read, is damaged, or the file cannot be written: then there is no file.
pub async fn export(
    engine: &Engine,
    side: &Side,
    request: &ExportRequest,
) -> Result<ExportReport, EngineError> {
    let _reading =
        ReadLock::share(&engine.state_dir, &side.snapshot.instance, &side.snapshot.strategy)?;
    let staging = Staging::new(&request.output, request.overwrite)?;
    let packed = pack_into(engine, side, request, staging).await;
    remembered(engine, side, packed).await
}

/// Runs the sources of `strategy` into a private folder beside the file, and packs what they gave.
/// No storage of the strategy is touched, nothing is recorded, and retention does not come into it.
/// Returns how the run ended, and the export when it succeeded.
///
/// # Errors
/// When no run could begin, or the file cannot be written.
pub async fn export_fresh(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    request: &ExportRequest,
) -> Result<(RunReport, Option<ExportReport>), EngineError> {
    let staging = Staging::new(&request.output, request.overwrite)?;
    if let Some(last) = last_committed(engine, instance, strategy).await {
        // The snapshot, and the file.
        ensure_free(&staging, last.stored_bytes.saturating_mul(2))?;
    }
    let place: Name = STORAGE.parse().map_err(|error| EngineError::Internal(format!("{error}")))?;
    let config = StorageConfig::Local(LocalConfig::from_path(staging.path("run")));
    let mut instance = instance.clone();
    instance.storages = [(place.clone(), config.clone())].into();
    instance.storage_rules.clear();
    instance.upload_rate = None;
    let mut strategy = strategy.clone();
    strategy.storages = vec![place.clone()];
    strategy.retention = None;
    // No other export is due by the schedule.
    strategy.schedule = None;
    let unrecorded = engine.unrecorded();
    let report = run(&unrecorded, &instance, &strategy).await?;
    if report.completeness.is_none() {
        return Ok((report, None));
    }
    let storage = OpenStorage::open(&place, &config, &engine.cancel).await?;
    let selection =
        Selection { instance: Some(instance.name.clone()), strategy: Some(strategy.name.clone()) };
    let listing = list(&unrecorded, std::slice::from_ref(&storage), &selection).await;
    let snapshot = listing.snapshots.into_iter().find(|snapshot| snapshot.id == report.id);
    let snapshot = snapshot.ok_or_else(|| {
        EngineError::Internal("The snapshot that was taken is not there".to_owned())
    })?;
    let exported = pack_into(engine, &Side { storage, snapshot }, request, staging).await?;
    Ok((report, Some(exported)))
}

fn ensure_free(staging: &Staging, needed: u64) -> Result<(), EngineError> {
    let free = staging.free_bytes()?;
    if free >= needed.saturating_add(SPARE_BYTES) {
        return Ok(());
    }
    Err(EngineError::Request(format!(
        "{} are free beside the file, and about {} are needed. Free some space, or choose another \
         folder",
        ByteSize(free),
        ByteSize(needed)
    )))
}

async fn pack_into(
    engine: &Engine,
    side: &Side,
    request: &ExportRequest,
    staging: Staging,
) -> Result<ExportReport, EngineError> {
    let Side { storage, snapshot } = side;
    let damaged = |problem: String| EngineError::damaged(&snapshot.id, &storage.name, problem);
    // The one that is stored: what the catalog remembers of it proves nothing.
    let key = snapshot.manifest_key();
    let body = read_document(storage.storage.as_ref(), &key, LARGEST_MANIFEST)
        .await
        .map_err(|error| EngineError::storage(&storage.name, error))?;
    let manifest =
        Manifest::from_bytes(&body, &snapshot.instance, &snapshot.strategy, &snapshot.id)
            .map_err(|error| damaged(format!("`{MANIFEST_KEY}`: {error}")))?;
    check_keys(&manifest).map_err(&damaged)?;
    ensure_free(&staging, manifest.stored_bytes())?;
    let note = StorageNote {
        name: STORAGE.parse().map_err(|error| EngineError::Internal(format!("{error}")))?,
        remote_check: RemoteCheck::Size,
    };
    let body = Manifest::for_copy(&body, &note).map_err(|error| damaged(error.to_string()))?;
    let report = ExportReport {
        instance: manifest.instance.clone(),
        strategy: manifest.strategy.clone(),
        id: manifest.id.clone(),
        completeness: manifest.completeness,
        output: request.output.clone(),
        bytes: 0,
        sealed: !request.recipients.is_empty(),
        encrypted: manifest.is_encrypted(),
    };
    let marks = marks(storage, snapshot)
        .await
        .map_err(|error| EngineError::storage(&storage.name, error))?;
    engine.progress.begin("packing", Some(manifest.stored_bytes()));
    let packer = Packer {
        engine: engine.clone(),
        storage: storage.clone(),
        snapshot: snapshot.clone(),
        manifest,
        body,
        marks,
        runtime: Handle::current(),
    };
    let (recipients, output) = (request.recipients.clone(), request.output.clone());
    let bytes = blocking(move || -> Result<u64, EngineError> {
        let failed = |error| EngineError::File { attempt: "write", path: output.clone(), error };
        let file = Arc::new(staging.create()?);
        let out = Out::new(&file, recipients, &packer.engine).map_err(&failed)?;
        packer.pack(out, failed)?;
        let bytes = file.metadata().map(|found| found.len()).unwrap_or_default();
        if packer.engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        staging.publish(&file)?;
        Ok(bytes)
    })
    .await??;
    Ok(ExportReport { bytes, ..report })
}

/// The marks of a snapshot. One that says that the copy in a storage is damaged is about no other
/// copy; this one is held against its digests while it is packed.
async fn marks(
    storage: &OpenStorage,
    snapshot: &Snapshot,
) -> Result<Vec<(String, Vec<u8>)>, StorageError> {
    let mut marks = Vec::new();
    for key in keys_of(storage, &snapshot.instance, &[&snapshot.id].into()).await? {
        if !is_about_one_copy(&key) {
            let body = read_document(storage.storage.as_ref(), &key, LARGEST_MARK).await?;
            match Mark::from_bytes(&body, &key) {
                Err(error) if !error.is_newer() => {
                    tracing::warn!(storage = %storage.name, "`{key}` is not exported: {error}");
                }
                _ => marks.push((key, body)),
            }
        }
    }
    Ok(marks)
}

struct Packer {
    engine: Engine,
    storage: OpenStorage,
    snapshot: Snapshot,
    manifest: Manifest,
    body: Vec<u8>,
    /// By key.
    marks: Vec<(String, Vec<u8>)>,
    runtime: Handle,
}

impl Packer {
    fn pack(
        &self,
        out: Out,
        failed: impl FnOnce(io::Error) -> EngineError,
    ) -> Result<(), EngineError> {
        let mut archive = tar::Builder::new(out);
        let packed = self.members(&mut archive);
        let cancelled = self.engine.cancel.is_cancelled();
        // What the output said itself is the cause of whatever else failed.
        match (archive.get_mut().error.take(), packed) {
            _ if cancelled => Err(EngineError::Cancelled),
            (Some(error), _) => Err(failed(error)),
            (None, Err((what, error))) => {
                Err(reading_failed(&self.storage, &self.snapshot.id, &what, &error))
            }
            (None, Ok(())) => archive.into_inner().and_then(Out::finish).map_err(failed),
        }
    }

    fn members(&self, archive: &mut tar::Builder<Out>) -> Result<(), (String, io::Error)> {
        let folder = self.snapshot.folder();
        let mut member = |path: &str, key: &str, size: u64, content: &mut dyn Read| {
            let mut header = tar::Header::new_ustar();
            header.set_size(size);
            header.set_mode(0o600);
            header.set_mtime(u64::try_from(self.manifest.finished.timestamp()).unwrap_or_default());
            archive.append_data(&mut header, path, content).map_err(|error| (key.to_owned(), error))
        };
        let text = readme(&self.manifest, &folder);
        member(README, README, text.len() as u64, &mut text.as_bytes())?;
        for artifact in &self.manifest.artifacts {
            for object in &artifact.objects {
                let alone = Artifact { objects: vec![object.clone()], ..artifact.clone() };
                let stored = read_stored(&self.storage, &folder, &alone, &self.runtime);
                let mut watched = Watched { inner: stored, engine: &self.engine };
                member(&format!("{folder}{}", object.key), &object.key, object.size, &mut watched)?;
                // Its digest is known to be right only when its end was read.
                match watched.read(&mut [0]) {
                    Ok(0) => {}
                    Ok(_) => {
                        return Err((
                            object.key.clone(),
                            io::Error::other("It is longer than the manifest says"),
                        ));
                    }
                    Err(error) => return Err((object.key.clone(), error)),
                }
            }
        }
        for (key, body) in &self.marks {
            member(key, key, body.len() as u64, &mut body.as_slice())?;
        }
        let path = format!("{folder}{MANIFEST_KEY}");
        member(&path, MANIFEST_KEY, self.body.len() as u64, &mut self.body.as_slice())
    }
}

/// Counts what is read, and ends when the verb is cancelled.
struct Watched<'a, R> {
    inner: R,
    engine: &'a Engine,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.engine.cancel.is_cancelled() {
            return Err(io::Error::other("Cancelled"));
        }
        let count = self.inner.read(buffer)?;
        self.engine.progress.add(count as u64);
        Ok(count)
    }
}

/// The file while it is written, encrypted or not. It remembers why it failed: who reads and who
/// writes fail in one call.
struct Out {
    inner: OutKind,
    error: Option<io::Error>,
}

enum OutKind {
    Plain(io::BufWriter<FileSink>),
    Sealed(Box<Encoder>),
}

impl Out {
    fn new(file: &Arc<File>, recipients: Vec<Recipient>, engine: &Engine) -> io::Result<Self> {
        let sink = FileSink(Arc::clone(file));
        let inner = if recipients.is_empty() {
            OutKind::Plain(io::BufWriter::with_capacity(BUFFER_BYTES, sink))
        } else {
            let settings = EncodeSettings {
                compression: CompressionConfig::new(Algorithm::None, None)
                    .map_err(io::Error::other)?,
                recipients,
                threads: 1,
                block_bytes: BUFFER_BYTES,
                max_object_bytes: None,
                read_rate: None,
                cancel: engine.cancel.clone(),
            };
            OutKind::Sealed(Box::new(Encoder::new(settings, Box::new(sink))?))
        };
        Ok(Self { inner, error: None })
    }

    fn finish(self) -> io::Result<()> {
        match self.inner {
            OutKind::Plain(mut out) => out.flush(),
            OutKind::Sealed(encoder) => encoder.finish().map(|_| ()),
        }
    }

    fn remember<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.error.get_or_insert(error);
            }
            io::Error::from(kind)
        })
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.inner {
            OutKind::Plain(out) => out.write(bytes),
            OutKind::Sealed(encoder) => encoder.write(bytes),
        };
        self.remember(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct FileSink(Arc<File>);

impl Write for FileSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ObjectSink for FileSink {
    fn begin(&mut self, _index: u32) -> io::Result<()> {
        Ok(())
    }

    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        (&*self.0).write_all(&chunk)
    }
}

/// What stands first in the file: what it is, and how to read it with ordinary programs.
fn readme(manifest: &Manifest, folder: &str) -> String {
    let mut text = format!(
        "A backup of `{}` by its strategy `{}`, begun at {}.\n\
         It was written by {} {}, which takes it in again with\n\n    \
         backup import THIS-FILE --storage STORAGE\n\n\
         Extracted, this folder is a storage of that program: `backup restore --storage ./ \
         --instance {} --to DIR`.\n\n",
        manifest.instance,
        manifest.strategy,
        manifest.started.to_rfc3339(),
        manifest.program.name,
        manifest.program.version,
        manifest.instance,
    );
    if manifest.completeness == Completeness::Partial {
        text.push_str(
            "Content is missing in it, such as files that could not be read; its facts \
            say which.\n\n",
        );
    }
    text.push_str(
        "No program of its own is needed. Extract it, and in the folder that has this file:\n\n",
    );
    text.push_str(&format!(
        "    sed '1d;$d' {folder}{MANIFEST_KEY} | sha256sum      # is in the first line of it\n"
    ));
    for artifact in &manifest.artifacts {
        let keys: Vec<String> = artifact
            .objects
            .iter()
            .map(|object| shell_quoted(&format!("{folder}{}", object.key)))
            .collect();
        for command in by_hand(&manifest.id, artifact, None, &format!("cat {}", keys.join(" "))) {
            text.push_str(&format!("    {command}\n"));
        }
    }
    text.push_str("\n$DATABASE is the address of a database, $DIR a folder");
    text.push_str(if manifest.is_encrypted() {
        ", $KEY the file of an age identity that opens it.\n"
    } else {
        ".\n"
    });
    let count = objects(manifest).count();
    text.push_str(&format!(
        "The sizes and SHA-256 digests of the {count} objects are in the manifest. All formats are \
         described in\n\
         `docs/format.md` of the program.\n"
    ));
    text
}
