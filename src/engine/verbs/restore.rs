//! Getting a snapshot back.
//!
//! Everything that can be refused is refused before anything is touched. What would replace
//! something is read through and found undamaged first; what goes to an empty place is checked
//! while it is written, and its last bytes are given out only when all of it was right.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::runtime::Handle;

use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::by_hand::restore_artifact;
use crate::engine::read::databases::Chosen;
use crate::engine::read::fault::{failed_in, usable_manifest};
use crate::engine::read::fetch::read_facts;
use crate::engine::read::missing::{Missing, missing};
use crate::engine::read::streams::{ArtifactStreams, beside};
use crate::engine::read::whole::ensure_undamaged;
use crate::engine::snapshots::list::Snapshot;
use crate::engine::state::locks::ReadLock;
use crate::engine::state::private::{free_bytes, make_private_folder};
use crate::model::{
    Artifact, ArtifactKind, ByteSize, Completeness, DatabaseUrl, Facts, Manifest, Name, Remarks,
    SnapshotId, total,
};
use crate::pipeline::Identity;
use crate::source::command::CommandConfig;
use crate::source::postgres::LeftStatement;
use crate::source::{
    Context, OwnFolder, Preview, RestoreArtifact, RestoreJob, RestoreOptions, RestoredFiles,
    SourceError, Target, restorer,
};

/// Where a restore goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Each source to a folder of its name in this one.
    Folder(PathBuf),
    /// To this database the one that is meant; to the server, where it names no database, each of
    /// several to one of its own or a new name.
    Database(DatabaseUrl),
    /// Each source named here to the standard input of its `restore_command`.
    Commands(Vec<(Name, CommandConfig)>),
}

/// What is to be restored, and how.
#[derive(Clone)]
pub struct RestoreRequest {
    /// Only these sources; all when empty.
    pub sources: Vec<Name>,
    /// Only the databases that these name, `NAME` or `NAME=NEW`; all when empty.
    pub databases: Vec<String>,
    pub destination: Destination,
    pub options: RestoreOptions,
    /// What opens it, when it is encrypted.
    pub identities: Vec<Identity>,
    /// A private folder for what cannot be streamed.
    pub work_dir: PathBuf,
    /// A child that neither reads, writes nor ends for this long is killed.
    pub no_progress_timeout: std::time::Duration,
}

/// What a restore will do. Nothing was touched.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// The storage it is read from.
    pub storage: Name,
    /// The artifacts, in the order they are restored.
    pub artifacts: Vec<PlannedArtifact>,
    /// What is left out, and why.
    pub left_out: Vec<String>,
    /// What the snapshot lacks of it.
    pub missing: Missing,
    /// Bytes that were fetched from the storage to make the plan.
    pub fetched_bytes: u64,
}

/// One artifact of a plan.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedArtifact {
    pub name: String,
    /// The source it came from.
    pub source: Name,
    /// The name of the database in it, where its source had several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Where it goes, secrets masked.
    pub place: String,
    /// Plain bytes, where known.
    pub plain_bytes: Option<u64>,
    /// What would be changed there, for folders of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<Preview>,
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
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// The storage it was read from.
    pub storage: Name,
    /// What was restored, and where it is now.
    pub restored: Vec<RestoredArtifact>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// What the snapshot lacks of it.
    pub missing: Missing,
    /// Bytes of artifacts that were fetched from the storage.
    pub fetched_bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    #[serde(flatten)]
    pub remarks: Remarks,
}

/// One artifact that was restored.
#[derive(Debug, Clone, Serialize)]
pub struct RestoredArtifact {
    pub name: String,
    /// The source it came from.
    pub source: Name,
    /// The name of the database in it, where its source had several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// Where it is now, secrets masked.
    pub place: String,
    /// Plain bytes, where known.
    pub plain_bytes: Option<u64>,
    /// Of a folder of files: what of it was restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<RestoredFiles>,
    /// Of a database: SQL that restores what of its settings was not restored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statements: Vec<LeftStatement>,
}

/// Refuses several artifacts for one database.
fn ensure_one_each(url: &DatabaseUrl, plan: &RestorePlan) -> Result<(), EngineError> {
    let artifacts = &plan.artifacts;
    for (number, first) in artifacts.iter().enumerate() {
        let Some(second) =
            artifacts.iter().skip(number + 1).find(|other| other.place == first.place)
        else {
            continue;
        };
        let problem = if first.source == second.source && url.names_database() {
            format!(
                "`--into` names one database, and the source `{}` has several: choose one with \
                 `--database`, or leave the database out of the address, so that each goes to the \
                 database of its own name",
                first.source
            )
        } else if first.source == second.source {
            format!("`{}` and `{}` would go to the same database", first.name, second.name)
        } else {
            format!(
                "`--into` takes one database, and the snapshot has `{}` and `{}`: choose one with \
                 `--source`",
                first.source, second.source
            )
        };
        return Err(EngineError::Request(problem));
    }
    Ok(())
}

fn make_plan(
    storage: &OpenStorage,
    manifest: &Manifest,
    facts: Option<&Facts>,
    request: &RestoreRequest,
) -> Result<RestorePlan, EngineError> {
    let present: Vec<&Name> =
        manifest.artifacts.iter().filter_map(|artifact| artifact.source.as_ref()).collect();
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
    let mut plan = RestorePlan {
        instance: manifest.instance.clone(),
        strategy: manifest.strategy.clone(),
        id: manifest.id.clone(),
        storage: storage.name.clone(),
        artifacts: Vec::new(),
        left_out: Vec::new(),
        missing: Missing::default(),
        fetched_bytes: 0,
    };
    let some_files = !request.options.paths.is_empty();
    let chosen = Chosen::new(facts, &request.databases)?;
    match (chosen.renamed(), &request.destination) {
        (Some(name), Destination::Database(url)) if url.names_database() => {
            return Err(EngineError::Request(format!(
                "`--into` and the new name of `{name}` both say which database to restore to: \
                 leave one of them out"
            )));
        }
        (Some(name), Destination::Folder(_)) => {
            return Err(EngineError::Request(format!(
                "A new name of `{name}` is for `--into`: files in a folder are named as the \
                 artifacts are"
            )));
        }
        _ => {}
    }
    for artifact in &manifest.artifacts {
        let Some(source) = &artifact.source else { continue };
        if !(request.sources.is_empty() || request.sources.contains(source))
            || restorer(artifact.kind).is_none()
        {
            continue;
        }
        if some_files && !artifact.kind.is_files() {
            if request.sources.contains(source) {
                return Err(EngineError::Request(format!(
                    "`--path` is for folders of files, and the source `{source}` is none: leave \
                     `--path` or this `--source` out"
                )));
            }
            plan.left_out
                .push(format!("`{}` is no folder of files, which `--path` is for", artifact.name));
            continue;
        }
        let restore = restore_artifact(&manifest.id, artifact, facts);
        if !chosen.has(restore.of.as_deref()) {
            plan.left_out.push(format!("`{}` is none of the databases chosen", artifact.name));
            continue;
        }
        let target = match &request.destination {
            // A folder of files is restored to a folder for itself.
            Destination::Folder(folder) => Target::Folder(match artifact.number() {
                number if artifact.kind.is_files() && number > NonZeroU32::MIN => {
                    folder.join(format!("{source}.{number}"))
                }
                _ => folder.join(source.as_str()),
            }),
            Destination::Database(url) => match artifact.kind {
                kind if kind.is_database() => Target::Database(match restore.of.as_deref() {
                    Some(of) if !url.names_database() => url.with_database(chosen.new_name(of)),
                    _ => url.clone(),
                }),
                ArtifactKind::PgGlobals => {
                    plan.left_out.push(format!(
                        "`{}` (roles of the whole server): restore it with `--to`, look at it, and \
                         feed it to `psql`",
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
                    plan.left_out.push(format!(
                        "`{}` is not a database: restore it with `--to DIR`",
                        artifact.name
                    ));
                    continue;
                }
            },
            Destination::Commands(commands) => match commands
                .iter()
                .find(|(name, _)| name == source)
            {
                Some((_, command)) if artifact.kind == ArtifactKind::Stream => {
                    Target::Command(Box::new(command.clone()))
                }
                _ => {
                    plan.left_out
                        .push(format!("`{}`: its source has no `restore_command`", artifact.name));
                    continue;
                }
            },
        };
        let place = match &target {
            Target::Folder(folder) => folder.display().to_string(),
            Target::Database(url) => url.masked(),
            Target::Command(config) => config
                .restore_command
                .as_ref()
                .and_then(|command| command.first())
                .cloned()
                .unwrap_or_default(),
        };
        plan.artifacts.push(PlannedArtifact {
            name: artifact.name.clone(),
            source: source.clone(),
            of: restore.of.clone(),
            place,
            plain_bytes: restore.plain_bytes,
            preview: None,
            work: Work { artifact: artifact.clone(), restore, target },
        });
    }
    if let Destination::Database(url) = &request.destination {
        ensure_one_each(url, &plan)?;
    }
    if let (true, [first, second, ..]) = (some_files, plan.artifacts.as_slice()) {
        return Err(EngineError::Request(format!(
            "`--path` is counted from one folder, and the snapshot has `{}` and `{}`: choose one \
             with `--source`",
            first.source, second.source
        )));
    }
    if plan.artifacts.is_empty() {
        return Err(EngineError::Request(format!(
            "There is nothing to restore. {}",
            plan.left_out.join(". ")
        )));
    }
    Ok(plan)
}

/// A request that was held against the snapshot and the world.
struct Prepared {
    manifest: Manifest,
    facts: Option<Arc<Facts>>,
    plan: RestorePlan,
}

/// Refuses what can be refused. Nothing is touched.
async fn prepare(
    engine: &Engine,
    storage: &OpenStorage,
    snapshot: &Snapshot,
    request: &RestoreRequest,
) -> Result<Prepared, EngineError> {
    let manifest = usable_manifest(storage, snapshot, &request.identities)?;
    let facts = read_facts(engine, storage, manifest, &request.identities).await?;
    let mut plan = make_plan(storage, manifest, facts.as_ref(), request)?;
    if let Destination::Folder(folder) = &request.destination
        && request.options.paths.is_empty()
    {
        ensure_room(folder, &plan)?;
    }
    let facts = facts.map(Arc::new);
    if manifest.completeness == Completeness::Partial {
        let artifacts = plan.artifacts.iter().map(|planned| &planned.work.artifact);
        let side = (storage, manifest, facts.as_ref());
        plan.missing =
            missing(engine, side, artifacts, &request.identities, &request.options.paths).await?;
        for line in &plan.missing.entries {
            tracing::warn!(source = %line.source, path = %line.place(), "missing: {}", line.reason);
        }
    }
    Ok(Prepared { manifest: manifest.clone(), facts, plan })
}

/// Says what [`restore`] would do with the same request, and touches nothing.
///
/// # Errors
/// When the restore would be refused, or what it takes to tell is damaged.
pub async fn plan_restore(
    engine: &Engine,
    storage: &OpenStorage,
    snapshot: &Snapshot,
    request: &RestoreRequest,
) -> Result<RestorePlan, EngineError> {
    let fetched_before = storage.fetched_bytes();
    let Prepared { manifest, facts, mut plan } =
        prepare(engine, storage, snapshot, request).await?;
    for planned in &mut plan.artifacts {
        engine.progress.begin(format!("planning {}", planned.name), None);
        let Work { artifact, restore, target } = planned.work.clone();
        let (context, options) = (context(engine, planned, request), options(request, &artifact));
        let streams = ArtifactStreams::new(
            storage,
            &manifest,
            &artifact,
            &request.identities,
            facts.as_ref(),
            &engine.progress,
        );
        let is_folder = artifact.kind.is_files();
        let preview = blocking(move || match restorer(artifact.kind) {
            Some(restorer) => restorer.preview(
                RestoreJob { cx: &context, artifact: &restore, target: &target, options: &options },
                &streams,
            ),
            None => Ok(Preview::default()),
        })
        .await?
        .map_err(|error| failed_in(engine, storage, &manifest.id, &planned.name, error))?;
        planned.preview = (is_folder || !preview.changes.is_empty()).then_some(preview);
    }
    plan.fetched_bytes = storage.fetched_bytes().saturating_sub(fetched_before);
    Ok(plan)
}

/// Restores `snapshot`, read from `storage`.
///
/// # Errors
/// When the request cannot be carried out (nothing was touched then), the snapshot is damaged, or a
/// target refuses.
pub async fn restore(
    engine: &Engine,
    storage: &OpenStorage,
    snapshot: &Snapshot,
    request: &RestoreRequest,
) -> Result<RestoreReport, EngineError> {
    let _reading = ReadLock::share(&engine.state_dir, &snapshot.instance, &snapshot.strategy)?;
    let began = tokio::time::Instant::now();
    let fetched_before = storage.fetched_bytes();
    let Prepared { manifest, facts, plan } = prepare(engine, storage, snapshot, request).await?;
    make_private_folder(&request.work_dir)?;
    for planned in &plan.artifacts {
        let (context, work) = (context(engine, planned, request), planned.work.clone());
        let options = options(request, &work.artifact);
        let streams = ArtifactStreams::new(
            storage,
            &manifest,
            &work.artifact,
            &request.identities,
            facts.as_ref(),
            &engine.progress,
        );
        blocking(move || {
            let Some(restorer) = restorer(work.artifact.kind) else { return Ok(()) };
            let (cx, artifact, target, options) = (&context, &work.restore, &work.target, &options);
            let job = RestoreJob { cx, artifact, target, options };
            restorer.prepare(job)?;
            if options.delete { restorer.ensure_deletable(job, &streams) } else { Ok(()) }
        })
        .await?
        .map_err(|error| failed_in(engine, storage, &manifest.id, &planned.name, error))?;
    }
    if request.options.overwrite {
        let wanted = |artifact: &Artifact| {
            plan.artifacts.iter().any(|planned| needed(&manifest, planned, request, artifact))
        };
        ensure_undamaged(engine, storage, &manifest, &request.identities, facts.as_deref(), wanted)
            .await?;
    }
    let mut remarks = Remarks::default();
    let mut restored: Vec<RestoredArtifact> = Vec::new();
    for planned in &plan.artifacts {
        let expected = planned.plain_bytes.filter(|_| request.options.paths.is_empty());
        engine.progress.begin(planned.name.clone(), expected);
        let Work { artifact, restore, target } = planned.work.clone();
        let (context, options) = (context(engine, planned, request), options(request, &artifact));
        let streams = ArtifactStreams::new(
            storage,
            &manifest,
            &artifact,
            &request.identities,
            facts.as_ref(),
            &engine.progress,
        );
        let done = blocking(move || match restorer(artifact.kind) {
            Some(restorer) => restorer.restore_from(
                RestoreJob { cx: &context, artifact: &restore, target: &target, options: &options },
                &streams,
            ),
            None => Err(SourceError::Unsuitable(format!("`{}` has no restorer", artifact.name))),
        })
        .await?;
        let done = match done {
            Err(_) if engine.cancel.is_cancelled() => {
                return Err(EngineError::Interrupted {
                    artifact: planned.name.clone(),
                    place: planned.place.clone(),
                    needs_overwrite: !restored.is_empty() && !request.options.overwrite,
                });
            }
            done => done
                .map_err(|error| failed_in(engine, storage, &manifest.id, &planned.name, error))?,
        };
        remarks.extend(Some(planned.source.as_str()), done.remarks);
        restored.push(RestoredArtifact {
            name: planned.name.clone(),
            source: planned.source.clone(),
            of: planned.of.clone(),
            place: done.place,
            plain_bytes: planned.plain_bytes,
            files: done.files,
            statements: done.statements,
        });
    }
    Ok(RestoreReport {
        instance: plan.instance,
        strategy: plan.strategy,
        id: plan.id,
        storage: plan.storage,
        restored,
        left_out: plan.left_out,
        missing: plan.missing,
        fetched_bytes: storage.fetched_bytes().saturating_sub(fetched_before),
        seconds: began.elapsed().as_secs_f64(),
        remarks,
    })
}

/// Whether `artifact` must be found undamaged before what `planned` replaces is touched. Of some
/// files only what leads to them is: they are held against their own digests while they are written
/// beside what they replace.
fn needed(
    manifest: &Manifest,
    planned: &PlannedArtifact,
    request: &RestoreRequest,
    artifact: &Artifact,
) -> bool {
    let tarball = &planned.work.artifact;
    let is_beside =
        |kind| beside(manifest, tarball, kind).is_some_and(|other| other.name == artifact.name);
    if request.options.paths.is_empty() {
        artifact.name == tarball.name || is_beside(ArtifactKind::Index)
    } else {
        is_beside(ArtifactKind::Index) || is_beside(ArtifactKind::Blocks)
    }
}

/// The options for one artifact: what is for folders of files, or for these and databases, goes to
/// those only.
fn options(request: &RestoreRequest, artifact: &Artifact) -> RestoreOptions {
    let may_delete = artifact.kind.is_files() || artifact.kind == ArtifactKind::PgDump;
    let delete = request.options.delete && may_delete;
    RestoreOptions { delete, ..request.options.clone() }
}

fn context(engine: &Engine, planned: &PlannedArtifact, request: &RestoreRequest) -> Context {
    Context {
        name: planned.source.clone(),
        cancel: engine.cancel.clone(),
        runtime: Handle::current(),
        no_progress_timeout: request.no_progress_timeout,
        work_dir: request.work_dir.clone(),
        environment: engine.environment.clone(),
        own_folders: own_folders(engine, &planned.work.target, &request.work_dir),
    }
}

/// Those of the engine, and the `work_dir` of this restore: unless the target lies in that, as with
/// one in `/tmp`.
fn own_folders(engine: &Engine, target: &Target, work_dir: &Path) -> Arc<[OwnFolder]> {
    let chosen = OwnFolder { what: "the `work_dir`".to_owned(), path: work_dir.to_owned() };
    let is_apart = matches!(target, Target::Folder(folder) if !chosen.holds(folder));
    let chosen = is_apart.then_some(chosen);
    engine.own_folders.iter().cloned().chain(chosen).collect()
}

/// Refuses a restore that would not fit, as far as sizes are known.
fn ensure_room(folder: &Path, plan: &RestorePlan) -> Result<(), EngineError> {
    let needed = total(plan.artifacts.iter().filter_map(|planned| planned.plain_bytes));
    let existing = folder.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let free = free_bytes(existing)?;
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
