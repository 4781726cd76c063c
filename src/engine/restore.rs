//! Getting a snapshot back.
//!
//! Everything that can be refused is refused before anything is touched. What would replace something is read through and found undamaged
//! first; what goes to an empty place is checked while it is written, and its last bytes are given out only when all of it was right.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio::runtime::Handle;

use super::fetch::{read_plain, reading_failed};
use super::verify::ensure_undamaged;
use super::{Engine, EngineError, OpenStorage, Snapshot, blocking, make_private_folder, read_facts};
use crate::model::{Artifact, ArtifactKind, ByteSize, DatabaseUrl, Encryption, Facts, Manifest, Name, Warnings};
use crate::pipeline::{DecodeError, Identity};
use crate::source::command::CommandConfig;
use crate::source::{Context, RestoreArtifact, RestoreOptions, SourceError, Target, restorer};

/// Where a restore goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Each source to a folder of its name in this one.
    Folder(PathBuf),
    /// The one database source that is meant, to this database.
    Database(DatabaseUrl),
    /// Each source named here to the standard input of its `restore_command`.
    Commands(Vec<(Name, CommandConfig)>),
}

/// What is to be restored, and how.
#[derive(Clone)]
pub struct RestoreRequest {
    /// Only these sources; all when empty.
    pub sources: Vec<Name>,
    /// Where to.
    pub destination: Destination,
    /// How.
    pub options: RestoreOptions,
    /// What opens it, when it is encrypted.
    pub identities: Vec<Identity>,
    /// A private folder for what cannot be streamed.
    pub work_dir: PathBuf,
    /// A child that neither reads, writes nor ends for this long is killed.
    pub no_progress_timeout: std::time::Duration,
}

/// What a restore will do.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    /// The artifacts, in the order they are restored.
    pub artifacts: Vec<PlannedArtifact>,
    /// What is left out, and why.
    pub left_out: Vec<String>,
}

/// One artifact of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedArtifact {
    /// Its name.
    pub name: String,
    /// The source it came from.
    pub source: Name,
    /// Where it goes, secrets masked.
    pub place: String,
    /// Plain bytes, where known.
    pub plain_bytes: Option<u64>,
    #[serde(skip)]
    work: Work,
}

#[derive(Debug, Clone)]
struct Work {
    artifact: Artifact,
    restore: RestoreArtifact,
    target: Target,
}

/// A restore that succeeded.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreReport {
    /// The application.
    pub instance: Name,
    /// The strategy.
    pub strategy: Name,
    /// The snapshot.
    pub id: crate::model::SnapshotId,
    /// The storage it was read from.
    pub storage: Name,
    /// What was restored, and where it is now.
    pub restored: Vec<RestoredArtifact>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What went not quite right.
    pub warnings: Warnings,
}

/// One artifact that was restored.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredArtifact {
    /// Its name.
    pub name: String,
    /// The source it came from.
    pub source: Name,
    /// Where it is now, secrets masked.
    pub place: String,
    /// Plain bytes, where known.
    pub plain_bytes: Option<u64>,
}

/// What restoring needs to know of an artifact.
fn restore_artifact(artifact: &Artifact, facts: Option<&Facts>) -> RestoreArtifact {
    let plain = facts.and_then(|facts| facts.artifacts.iter().find(|known| known.name == artifact.name));
    let source = facts.and_then(|facts| {
        facts.sources.iter().find(|source| artifact.source.as_ref().is_some_and(|name| *name == source.name))
    });
    RestoreArtifact {
        name: artifact.name.clone(),
        kind: artifact.kind,
        plain_bytes: plain.map(|known| known.plain_bytes),
        facts: source.map(|source| source.facts.clone()).unwrap_or_default(),
    }
}

/// The ordinary command that restores the plain stream of `artifact` from its standard input; none for what is not restored by itself.
pub fn by_hand(artifact: &Artifact, facts: Option<&Facts>) -> Option<String> {
    restorer(artifact.kind).map(|restorer| restorer.by_hand(&restore_artifact(artifact, facts)))
}

fn make_plan(manifest: &Manifest, facts: Option<&Facts>, request: &RestoreRequest) -> Result<RestorePlan, EngineError> {
    let present: Vec<&Name> = manifest.artifacts.iter().filter_map(|artifact| artifact.source.as_ref()).collect();
    for wanted in &request.sources {
        if !present.contains(&wanted) {
            let mut names: Vec<String> = present.iter().map(|name| format!("`{name}`")).collect();
            names.dedup();
            return Err(EngineError::Request(format!(
                "The snapshot has no source `{wanted}`; it has {}",
                names.join(", ")
            )));
        }
    }
    let mut plan = RestorePlan { artifacts: Vec::new(), left_out: Vec::new() };
    for artifact in &manifest.artifacts {
        let Some(source) = &artifact.source else { continue };
        if !(request.sources.is_empty() || request.sources.contains(source)) || restorer(artifact.kind).is_none() {
            continue;
        }
        let target = match &request.destination {
            Destination::Folder(folder) => Target::Folder(folder.join(source.as_str())),
            Destination::Database(url) => match artifact.kind {
                ArtifactKind::PgDump | ArtifactKind::Sqlite => Target::Database(url.clone()),
                ArtifactKind::PgGlobals => {
                    plan.left_out.push(format!(
                        "`{}` (roles of the whole server): restore it with `--to`, look at it, and feed it to `psql`",
                        artifact.name
                    ));
                    continue;
                }
                _ if request.sources.contains(source) => {
                    return Err(EngineError::Request(format!(
                        "The source `{source}` is not a database: restore it with `--to DIR`"
                    )));
                }
                _ => {
                    plan.left_out.push(format!("`{}` is not a database: restore it with `--to DIR`", artifact.name));
                    continue;
                }
            },
            Destination::Commands(commands) => match commands.iter().find(|(name, _)| name == source) {
                Some((_, command)) if artifact.kind == ArtifactKind::Stream => {
                    Target::Command(Box::new(command.clone()))
                }
                _ => {
                    plan.left_out.push(format!("`{}`: its source has no `restore_command`", artifact.name));
                    continue;
                }
            },
        };
        let restore = restore_artifact(artifact, facts);
        let place = match &target {
            Target::Folder(folder) => folder.display().to_string(),
            Target::Database(url) => url.masked(),
            Target::Command(config) => {
                config.restore_command.as_ref().and_then(|command| command.first()).cloned().unwrap_or_default()
            }
        };
        plan.artifacts.push(PlannedArtifact {
            name: artifact.name.clone(),
            source: source.clone(),
            place,
            plain_bytes: restore.plain_bytes,
            work: Work { artifact: artifact.clone(), restore, target },
        });
    }
    if let (Destination::Database(_), [first, second, ..]) = (&request.destination, plan.artifacts.as_slice()) {
        return Err(EngineError::Request(format!(
            "`--into` takes one database, and the snapshot has `{}` and `{}`: choose one with `--source`",
            first.source, second.source
        )));
    }
    if plan.artifacts.is_empty() {
        return Err(EngineError::Request(format!("There is nothing to restore. {}", plan.left_out.join(". "))));
    }
    Ok(plan)
}

/// Restores `snapshot`, read from `storage`.
///
/// # Errors
/// When the request cannot be carried out (nothing was touched then), the snapshot is damaged, or a target refuses.
pub async fn restore(
    engine: &Engine,
    storage: &OpenStorage,
    snapshot: &Snapshot,
    request: &RestoreRequest,
) -> Result<RestoreReport, EngineError> {
    let began = tokio::time::Instant::now();
    let manifest = snapshot.manifest.as_ref().map_err(|problem| EngineError::Damaged {
        snapshot: snapshot.id.to_string(),
        storage: storage.name.clone(),
        problem: format!("`manifest.json`: {problem}"),
    })?;
    let encrypted = manifest.artifacts.iter().any(|artifact| artifact.codec.encryption == Encryption::Age);
    if encrypted && request.identities.is_empty() {
        return Err(EngineError::Request(format!(
            "The snapshot `{}` is encrypted: name the file of a key that opens it with `--identity-file`",
            snapshot.id
        )));
    }
    let facts = read_facts(engine, storage, manifest, &request.identities).await?;
    let plan = make_plan(manifest, facts.as_ref(), request)?;
    make_private_folder(&request.work_dir)?;
    if let Destination::Folder(folder) = &request.destination {
        ensure_room(folder, &plan)?;
    }
    for planned in &plan.artifacts {
        let (context, work, options) =
            (context(engine, planned, request), planned.work.clone(), request.options.clone());
        blocking(move || match restorer(work.artifact.kind) {
            Some(restorer) => restorer.prepare(&context, &work.restore, &work.target, &options),
            None => Ok(()),
        })
        .await?
        .map_err(|error| failed(&planned.name, error))?;
    }
    if request.options.overwrite {
        let wanted = |artifact: &Artifact| plan.artifacts.iter().any(|planned| planned.name == artifact.name);
        ensure_undamaged(engine, storage, manifest, &request.identities, facts.as_ref(), wanted).await?;
    }
    let mut warnings = Warnings::new();
    let mut restored = Vec::new();
    for planned in &plan.artifacts {
        engine.progress.begin(planned.name.clone(), planned.plain_bytes);
        let (context, work, options) =
            (context(engine, planned, request), planned.work.clone(), request.options.clone());
        let (storage, folder, identities) = (storage.clone(), snapshot.folder(), request.identities.clone());
        let id = snapshot.id.clone();
        let (facts, runtime, progress) = (facts.clone(), Handle::current(), engine.progress.clone());
        let done = blocking(move || {
            let restorer = restorer(work.artifact.kind)
                .ok_or_else(|| EngineError::Internal(format!("`{}` has no restorer", work.artifact.name)))?;
            let plain = read_plain(&storage, &folder, &work.artifact, &identities, facts.as_ref(), &runtime);
            let plain = plain.map_err(|error| match error {
                DecodeError::Locked(_) => EngineError::Request(format!("`{}`: {error}", work.artifact.name)),
                DecodeError::Io(error) => reading_failed(&storage, &id, &work.artifact.name, &error),
            })?;
            let mut counted = Counted { inner: plain, progress };
            restorer.restore(&context, &work.restore, &mut counted, &work.target, &options).map_err(|error| match error
            {
                SourceError::Stream(error) => reading_failed(&storage, &id, &work.artifact.name, &error),
                error => failed(&work.artifact.name, error),
            })
        })
        .await?;
        let done = match done {
            Err(_) if engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
            done => done?,
        };
        warnings.extend(planned.source.as_str(), done.warnings);
        restored.push(RestoredArtifact {
            name: planned.name.clone(),
            source: planned.source.clone(),
            place: done.place,
            plain_bytes: planned.plain_bytes,
        });
    }
    Ok(RestoreReport {
        instance: manifest.instance.clone(),
        strategy: manifest.strategy.clone(),
        id: manifest.id.clone(),
        storage: storage.name.clone(),
        restored,
        left_out: plan.left_out,
        seconds: began.elapsed().as_secs_f64(),
        warnings,
    })
}

fn failed(artifact: &str, error: SourceError) -> EngineError {
    EngineError::Restore { artifact: artifact.to_owned(), error: Box::new(error) }
}

/// Counts what is read of a stream as progress.
struct Counted<R> {
    inner: R,
    progress: crate::report::Progress,
}

impl<R: std::io::Read> std::io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.add(count as u64);
        Ok(count)
    }
}

fn context(engine: &Engine, planned: &PlannedArtifact, request: &RestoreRequest) -> Context {
    Context {
        name: planned.source.clone(),
        cancel: engine.cancel.clone(),
        runtime: Handle::current(),
        no_progress_timeout: request.no_progress_timeout,
        work_dir: request.work_dir.clone(),
        environment: engine.environment.clone(),
    }
}

/// Refuses a restore that would not fit, as far as sizes are known.
fn ensure_room(folder: &Path, plan: &RestorePlan) -> Result<(), EngineError> {
    let needed: u64 = plan.artifacts.iter().filter_map(|planned| planned.plain_bytes).sum();
    let existing = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let space = rustix::fs::statvfs(existing).map_err(|error| EngineError::State {
        attempt: "measure the free space of",
        path: existing.to_owned(),
        error: error.into(),
    })?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < needed {
        return Err(EngineError::Request(format!(
            "The restore needs {}, and `{}` has {} free. Nothing was written",
            ByteSize(needed),
            existing.display(),
            ByteSize(free)
        )));
    }
    Ok(())
}
