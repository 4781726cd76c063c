//! Getting a snapshot back.
//!
//! Everything that can be refused is refused before anything is touched. What would replace
//! something is read through and found undamaged first; what goes to an empty place is checked
//! while it is written, and its last bytes are given out only when all of it was right. Where a
//! copy is damaged or out of reach, another is taken.

mod plan;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::runtime::Handle;

use self::plan::make_plan;

use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::copies::{PassedOver, from_good_copy};
use crate::engine::read::fault::{failed_in, usable_manifest};
use crate::engine::read::fetch::read_facts;
use crate::engine::read::files::Side;
use crate::engine::read::missing::{Missing, missing};
use crate::engine::read::streams::{ArtifactStreams, beside};
use crate::engine::read::whole::ensure_undamaged;
use crate::engine::snapshots::list::Snapshot;
use crate::engine::state::locks::ReadLock;
use crate::engine::state::private::{free_bytes, make_private_folder};
use crate::model::{
    Artifact, ArtifactKind, ByteSize, Completeness, DatabaseUrl, Digest, Facts, Manifest, Name,
    Note, Remarks, SnapshotId, total,
};
use crate::pipeline::Identity;
use crate::source::command::CommandConfig;
use crate::source::postgres::LeftStatement;
use crate::source::under_way::{self, Before, Recorded, UnderWay, WhichRestore};
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
    /// Copies that are not read, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
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
    /// The storage it was read from, to the end.
    pub storage: Name,
    /// Copies that were given up, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_over: Vec<PassedOver>,
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

/// Says what [`restore`] would do with the same request and copies, and touches nothing.
///
/// # Errors
/// When the restore would be refused, or what it takes to tell is damaged.
pub async fn plan_restore(
    engine: &Engine,
    copies: &[Side],
    request: &RestoreRequest,
) -> Result<RestorePlan, EngineError> {
    let plan = async |side: &Side| plan_from(engine, side, request).await;
    let (plan, passed_over) = from_good_copy(engine, copies, &AtomicBool::new(true), plan).await?;
    Ok(RestorePlan { passed_over, ..plan })
}

async fn plan_from(
    engine: &Engine,
    Side { storage, snapshot }: &Side,
    request: &RestoreRequest,
) -> Result<RestorePlan, EngineError> {
    let fetched_before = storage.fetched_bytes();
    let Prepared { manifest, facts, mut plan } =
        prepare(engine, storage, snapshot, request).await?;
    let before = before(&manifest, request);
    for planned in plan.artifacts.iter_mut().filter(|planned| !is_done(planned, &before)) {
        engine.progress.begin(format!("planning {}", planned.name), None);
        let Work { artifact, restore, target } = planned.work.clone();
        let context = context(engine, planned, request);
        let options = options(request, &artifact, before.recorded(&planned.name, None));
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

/// What was restored so far.
#[derive(Default)]
struct Progress {
    restored: Vec<RestoredArtifact>,
    /// Whether anything may have been written.
    has_begun: bool,
    remarks: Remarks,
    fetched_bytes: u64,
    /// Of a restore into a folder that replaces nothing.
    under_way: Option<Arc<Mutex<UnderWay>>>,
    /// What was recorded when it began.
    before: Option<Before>,
}

impl Progress {
    fn has(&self, planned: &PlannedArtifact) -> bool {
        self.restored.iter().any(|done| done.name == planned.name)
    }

    /// Counts as restored what the same restore had restored before it was interrupted.
    fn take_up(&mut self, plan: &RestorePlan, before: &Before) {
        for planned in &plan.artifacts {
            if self.has(planned) || !is_done(planned, before) {
                continue;
            }
            self.remarks.note(Note {
                source: Some(planned.source.to_string()),
                path: None,
                reason: format!(
                    "`{}` was restored before this restore was interrupted, and is left as it is",
                    planned.name
                ),
            });
            self.restored.push(RestoredArtifact {
                name: planned.name.clone(),
                source: planned.source.clone(),
                of: planned.of.clone(),
                place: planned.place.clone(),
                plain_bytes: planned.plain_bytes,
                files: None,
                statements: Vec::new(),
            });
        }
    }

    /// Records that an artifact is begun, so that the same command can go on with it.
    fn begin(&mut self, manifest: &Manifest, request: &RestoreRequest, artifact: &str) {
        let Some(folder) = recorded(request) else { return };
        if self.under_way.is_none() {
            let record = UnderWay::begin(folder, &which(manifest, request));
            self.under_way = record.map(|record| Arc::new(Mutex::new(record)));
        }
        if let Some(record) = &self.under_way {
            record.lock().unwrap_or_else(PoisonError::into_inner).starts(artifact);
        }
    }
}

/// Restores a snapshot from the first of its `copies` that is good. Where one turns out not to be,
/// the next goes on with what is not restored yet.
///
/// # Errors
/// When the request cannot be carried out (nothing was touched then), no copy is good, or a target
/// refuses.
pub async fn restore(
    engine: &Engine,
    copies: &[Side],
    request: &RestoreRequest,
) -> Result<RestoreReport, EngineError> {
    let Some(Side { snapshot, .. }) = copies.first() else {
        return Err(EngineError::Internal("A snapshot without a copy".to_owned()));
    };
    let _reading = ReadLock::share(&engine.state_dir, &snapshot.instance, &snapshot.strategy)?;
    let began = tokio::time::Instant::now();
    let mut progress = Progress::default();
    let may_go_on = AtomicBool::new(true);
    let from = async |side: &Side| {
        let before = side.storage.fetched_bytes();
        let done = restore_from(engine, side, request, &mut progress, &may_go_on).await;
        let fetched = side.storage.fetched_bytes().saturating_sub(before);
        progress.fetched_bytes = total([progress.fetched_bytes, fetched]);
        done
    };
    let done = from_good_copy(engine, copies, &may_go_on, from).await;
    if let Some(record) = progress.under_way.take() {
        record.lock().unwrap_or_else(PoisonError::into_inner).end(done.is_ok());
    }
    let (plan, passed_over) = match done {
        Err(EngineError::Damaged { snapshot, storage, problem, in_copy })
            if request.options.overwrite && !progress.has_begun =>
        {
            let problem = format!("{problem}. Nothing was overwritten");
            return Err(EngineError::Damaged { snapshot, storage, problem, in_copy });
        }
        done => done?,
    };
    Ok(RestoreReport {
        instance: plan.instance,
        strategy: plan.strategy,
        id: plan.id,
        storage: plan.storage,
        passed_over,
        restored: progress.restored,
        left_out: plan.left_out,
        missing: plan.missing,
        fetched_bytes: progress.fetched_bytes,
        seconds: began.elapsed().as_secs_f64(),
        remarks: progress.remarks,
    })
}

/// Restores from one copy what is not restored yet.
async fn restore_from(
    engine: &Engine,
    side: &Side,
    request: &RestoreRequest,
    progress: &mut Progress,
    may_go_on: &AtomicBool,
) -> Result<RestorePlan, EngineError> {
    let Side { storage, snapshot } = side;
    let Prepared { manifest, facts, plan } = prepare(engine, storage, snapshot, request).await?;
    make_private_folder(&request.work_dir)?;
    let before = progress.before.take().unwrap_or_else(|| before(&manifest, request));
    progress.before = Some(before.clone());
    progress.take_up(&plan, &before);
    let left: Vec<&PlannedArtifact> =
        plan.artifacts.iter().filter(|planned| !progress.has(planned)).collect();
    let streams = |artifact: &Artifact| {
        let identities = &request.identities;
        ArtifactStreams::new(
            storage,
            &manifest,
            artifact,
            identities,
            facts.as_ref(),
            &engine.progress,
        )
    };
    for planned in &left {
        let (context, work) = (context(engine, planned, request), planned.work.clone());
        let options = options(request, &work.artifact, before.recorded(&planned.name, None));
        let streams = streams(&work.artifact);
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
            left.iter().any(|planned| needed(&manifest, planned, request, artifact))
        };
        ensure_undamaged(engine, storage, &manifest, &request.identities, facts.as_deref(), wanted)
            .await?;
    }
    for planned in left {
        let expected = planned.plain_bytes.filter(|_| request.options.paths.is_empty());
        engine.progress.begin(planned.name.clone(), expected);
        let Work { artifact, restore, target } = planned.work.clone();
        progress.has_begun = true;
        progress.begin(&manifest, request, &planned.name);
        let context = context(engine, planned, request);
        let recorded = before.recorded(&planned.name, progress.under_way.as_ref());
        let options = options(request, &artifact, recorded);
        let heard = context.heard.clone();
        let streams = streams(&artifact);
        // What a command was given, and what was committed in pieces, is not taken back.
        let is_begun_once = match &target {
            Target::Folder(_) => false,
            Target::Database(_) => options.jobs > 1,
            Target::Command(_) => true,
        };
        may_go_on.store(!is_begun_once, Ordering::Relaxed);
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
                    needs_overwrite: !progress.restored.is_empty()
                        && progress.under_way.is_none()
                        && !request.options.overwrite,
                });
            }
            Err(error @ SourceError::Damaged(_)) => {
                // What the restorer stumbled over may be what is stored here, or what was backed
                // up.
                let (identities, facts) = (&request.identities, facts.as_deref());
                let this = |artifact: &Artifact| needed(&manifest, planned, request, artifact);
                ensure_undamaged(engine, storage, &manifest, identities, facts, this).await?;
                return Err(failed_in(engine, storage, &manifest.id, &planned.name, error));
            }
            done => done
                .map_err(|error| failed_in(engine, storage, &manifest.id, &planned.name, error))?,
        };
        progress.remarks.extend(Some(planned.source.as_str()), done.remarks);
        progress.remarks.extend(Some(planned.source.as_str()), heard.take());
        may_go_on.store(true, Ordering::Relaxed);
        if let Some(record) = &progress.under_way {
            under_way::done(record, &planned.name);
        }
        progress.restored.push(RestoredArtifact {
            name: planned.name.clone(),
            source: planned.source.clone(),
            of: planned.of.clone(),
            place: done.place,
            plain_bytes: planned.plain_bytes,
            files: done.files,
            statements: done.statements,
        });
    }
    Ok(plan)
}

/// The folder in which a restore is recorded: with `--overwrite` the same command begins anew.
fn recorded(request: &RestoreRequest) -> Option<&Path> {
    match &request.destination {
        Destination::Folder(folder) if !request.options.overwrite => Some(folder),
        _ => None,
    }
}

fn which(manifest: &Manifest, request: &RestoreRequest) -> WhichRestore {
    let RestoreOptions { paths, owners, no_owner, .. } = &request.options;
    let text =
        format!("{}/{} {paths:?} {owners:?} {no_owner}", manifest.instance, manifest.strategy);
    WhichRestore { snapshot: manifest.id.to_string(), request: Digest::of(text.as_bytes()) }
}

/// What the same restore did before it was interrupted.
fn before(manifest: &Manifest, request: &RestoreRequest) -> Before {
    recorded(request)
        .map(|folder| Before::of(folder, &which(manifest, request)))
        .unwrap_or_default()
}

/// Whether an artifact was restored before, and somebody has not taken it away since.
fn is_done(planned: &PlannedArtifact, before: &Before) -> bool {
    match &planned.work.target {
        Target::Folder(folder) => {
            before.has_done(&planned.name, planned.work.artifact.kind, folder)
        }
        Target::Database(_) | Target::Command(_) => false,
    }
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
fn options(request: &RestoreRequest, artifact: &Artifact, recorded: Recorded) -> RestoreOptions {
    let may_delete = artifact.kind.is_files() || artifact.kind == ArtifactKind::PgDump;
    let delete = request.options.delete && may_delete;
    RestoreOptions { delete, recorded, ..request.options.clone() }
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
        heard: Default::default(),
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
