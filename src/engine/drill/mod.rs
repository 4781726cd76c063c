//! A rehearsed restore: a snapshot is restored into scratch targets, judged by what was true when
//! it was taken, and the verdict is recorded.
//!
//! A drill never writes to a source: its targets are its own, made for it, and refused where they
//! could be anything else. What it made goes at its end, however it ends; what a killed one left
//! goes at the beginning of the next.

mod checks;
mod record;
mod rehearsal;
mod shrink;
mod subject;
mod targets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rehearsal::Rehearsed;
use targets::Rehearsal;
use tokio::runtime::Handle;
use tracing::Instrument as _;

use self::subject::Subject;
use crate::config::{Instance, Strategy, temporary_dir};
use crate::engine::context::{Engine, blocking};
use crate::engine::error::{EngineError, chain};
use crate::engine::read::fetch::read_facts;
use crate::engine::read::identities::read_identities;
use crate::engine::snapshots::list::Snapshot;
use crate::engine::state::locks::{DrillLock, ReadLock};
use crate::engine::state::node::node;
use crate::engine::state::private::{free_bytes, make_private_folder};
use crate::model::{
    ByteSize, Cancel, Check, CheckOutcome, Digest, ErrorCode, Facts, Name, Program, Remarks,
    SnapshotId, Span, Verdict, verdict,
};
use crate::pipeline::{Identity, Step, Stopwatch};
use crate::report::{DrillReport, DrillStep};
use crate::source::scratch::{ScratchPlace, refuse_overlap};
use crate::source::{
    Context, ScratchConfig, SourceConfig, SourceError, refuse_dumped, refuse_sources, sweep_scratch,
};

/// What is to be drilled, and how.
#[derive(Clone)]
pub struct DrillRequest {
    /// `latest`, or an id or the beginning or end of one.
    pub snapshot: String,
    /// The storage that is read, instead of the one that the strategy's drill names.
    pub storage: Option<Name>,
    /// What opens it, instead of the key that the strategy's drill names.
    pub identities: Vec<Identity>,
    /// Whether the scratch targets stay.
    pub keep: bool,
}

impl Default for DrillRequest {
    fn default() -> Self {
        Self { snapshot: "latest".to_owned(), storage: None, identities: Vec::new(), keep: false }
    }
}

/// Rehearses the restore of a snapshot of `strategy`, and records what came of it.
///
/// # Errors
/// When nothing was judged for a reason that is not the world's: a drill of the strategy is under
/// way, the target is a source, the request cannot be carried out, or the drill was asked to stop.
/// What could not be reached is an inconclusive report.
pub async fn drill(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    request: &DrillRequest,
) -> Result<DrillReport, EngineError> {
    let drilling = DrillLock::take(&engine.state_dir, &instance.name, &strategy.name)?;
    let started = engine.clock.now_seconds();
    let mut salt = [0; 3];
    getrandom::fill(&mut salt)
        .map_err(|error| EngineError::Internal(format!("No random bytes: {error}")))?;
    let mut drill = Drill {
        lock: drilling,
        instance,
        strategy,
        request,
        copy: None,
        watch: Stopwatch::start(Step::Prepare),
        report: empty_report(instance, strategy, request, SnapshotId::new(started, salt), started),
    };
    // Everything of the drill hears of a cancellation through this one, which the timeout cancels
    // too.
    let stop = Cancel::new();
    let _chained = engine.cancel.on_cancel({
        let stop = stop.clone();
        move || stop.cancel()
    });
    let timed_out = Arc::new(AtomicBool::new(false));
    let timer = tokio::spawn({
        let (stop, timed_out, limit) =
            (stop.clone(), Arc::clone(&timed_out), strategy.drill.timeout.duration());
        async move {
            tokio::time::sleep(limit).await;
            timed_out.store(true, Ordering::SeqCst);
            stop.cancel();
        }
    });
    let own = Engine { cancel: stop, ..engine.clone() };
    let span = tracing::info_span!("drill", instance = %instance.name, strategy = %strategy.name,
        id = %drill.report.id);
    span.in_scope(|| tracing::info!(storage = %drill.report.storage, "drill begins"));
    let judged = drill.judge(&own).instrument(span).await;
    timer.abort();
    let unjudged = match judged {
        Ok(()) => None,
        Err(_) if engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
        Err(_) if timed_out.load(Ordering::SeqCst) => {
            let limit = strategy.drill.timeout;
            let problem = format!("The drill took longer than its `timeout` of {limit}");
            Some((ErrorCode::TimedOut, problem))
        }
        Err(
            error @ (EngineError::Request(_)
            | EngineError::Locked { .. }
            | EngineError::Internal(_)),
        ) => {
            return Err(error);
        }
        Err(error @ EngineError::NotFound(_)) if request.snapshot != "latest" => return Err(error),
        Err(error) => Some((error.code(), chain(&error))),
    };
    let copy = drill.copy.take();
    let mut report = drill.conclude(engine, unjudged);
    record::record(engine, instance, strategy, copy.as_ref(), &mut report).await;
    Ok(report)
}

struct Drill<'a> {
    lock: DrillLock,
    instance: &'a Instance,
    strategy: &'a Strategy,
    request: &'a DrillRequest,
    /// What is drilled, as the storage has it.
    copy: Option<Snapshot>,
    watch: Stopwatch,
    report: DrillReport,
}

fn empty_report(
    instance: &Instance,
    strategy: &Strategy,
    request: &DrillRequest,
    id: SnapshotId,
    started: chrono::DateTime<chrono::Utc>,
) -> DrillReport {
    DrillReport {
        id,
        instance: instance.name.clone(),
        strategy: strategy.name.clone(),
        verdict: Verdict::Inconclusive,
        problem: None,
        code: None,
        suspect: false,
        only_this_copy: false,
        snapshot: None,
        storage: request.storage.clone().unwrap_or_else(|| strategy.drill.storage.clone()),
        address: String::new(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        program: Program {
            name: "holdfast".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        started,
        finished: started,
        seconds: 0.0,
        recovery_seconds: 0.0,
        rto_seconds: strategy.drill.rto.map(|span| span.duration().as_secs_f64()),
        recovery_point_seconds: None,
        rpo_seconds: strategy.drill.rpo.map(|span| span.duration().as_secs_f64()),
        steps: Vec::new(),
        targets: Vec::new(),
        proof: BTreeMap::new(),
        artifacts: Vec::new(),
        fetched_bytes: 0,
        checks: Vec::new(),
        remarks: Remarks::default(),
        left: Vec::new(),
        recorded: Vec::new(),
        unrecorded: Vec::new(),
    }
}

impl Drill<'_> {
    /// Looks at everything. An error is what kept it from that; what is wrong with the snapshot is
    /// in the report.
    async fn judge(&mut self, engine: &Engine) -> Result<(), EngineError> {
        let work_dir =
            self.strategy.drill.work_dir.clone().unwrap_or_else(|| self.instance.work_dir.clone());
        let root = rustix::process::geteuid().is_root();
        let shared = self.strategy.drill.work_dir.clone().filter(|_| root).unwrap_or_else(|| {
            if root { temporary_dir(&engine.environment) } else { work_dir.clone() }
        });
        let place = self.place(engine, &work_dir, shared)?;
        self.refuse_targets(engine, &place, None).await?;
        make_private_folder(&work_dir)?;
        let mut folders = self.sweep(engine, &place, &work_dir).await?;
        folders.extend([work_dir.clone(), place.shared_folder.clone()]);
        let server = place.config.postgres.url.as_ref().map(ToString::to_string);
        self.lock.note(&folders, server.as_deref())?;
        let Some(subject) = self.find(engine).await? else { return Ok(()) };
        let _reading =
            ReadLock::share(&engine.state_dir, &self.instance.name, &self.strategy.name)?;
        let identities = self.identities()?;
        if subject.manifest.is_encrypted() && identities.is_empty() {
            return Err(EngineError::Undrilled(
                "it is encrypted, and no key was given. Set `identity_file` of the strategy's \
                 drill, or pass `--identity-file`"
                    .to_owned(),
            ));
        }
        let facts = self.facts(engine, &subject, &identities).await?;
        if let Some(facts) = &facts {
            self.refuse_targets(engine, &place, Some(facts)).await?;
            self.ensure_room(&place, facts)?;
        }
        let rehearsal = Rehearsal {
            engine: engine.clone(),
            strategy: self.strategy.clone(),
            manifest: subject.manifest.clone(),
            storage: subject.storage.clone(),
            facts: facts.clone().map(Arc::new),
            identities: identities.clone(),
            place,
            watch: self.watch.clone(),
            keep: self.request.keep,
            drill: self.report.id.clone(),
            runtime: Handle::current(),
        };
        let Rehearsed { ended, checks, targets, proof, artifacts, remarks, left } =
            blocking(move || rehearsal.run()).await?;
        self.report.checks.extend(checks);
        self.report.targets = targets;
        self.report.proof = proof;
        self.report.artifacts = artifacts;
        self.report.remarks.extend(None, remarks);
        self.report.left.extend(left);
        self.report.fetched_bytes = subject.storage.fetched_bytes();
        ended?;
        self.ensure_still_there(&subject).await?;
        self.watch.turn(Step::Checks);
        if let Some(facts) = &facts {
            let shrunk =
                shrink::checks(engine, self.instance, self.strategy, &subject, facts, &identities)
                    .await?;
            self.report.checks.extend(shrunk);
        }
        Ok(())
    }

    /// Where scratch targets are made.
    fn place(
        &self,
        engine: &Engine,
        work_dir: &Path,
        shared_folder: PathBuf,
    ) -> Result<ScratchPlace, EngineError> {
        // What this state folder's drills of this strategy made is told by its name, and only these
        // are ever swept.
        let owner =
            format!("{} {} {}", node(&engine.state_dir)?, self.instance.name, self.strategy.name);
        let owner = Digest::of(owner.as_bytes()).to_string();
        let owner: String = owner.rsplit(':').next().unwrap_or_default().chars().take(8).collect();
        let mut salt = [0; 4];
        getrandom::fill(&mut salt)
            .map_err(|error| EngineError::Internal(format!("No random bytes: {error}")))?;
        let prefix = format!("holdfast_drill_{owner}_");
        Ok(ScratchPlace {
            folder: work_dir.join(format!("{prefix}{}", hex::encode(salt))),
            shared_folder,
            prefix,
            config: ScratchConfig { postgres: self.strategy.drill.postgres.clone() },
        })
    }

    /// Refuses targets that are a source of the configuration, or lie in a storage; with facts,
    /// those that the snapshot was dumped from, which another configuration may back up.
    async fn refuse_targets(
        &self,
        engine: &Engine,
        place: &ScratchPlace,
        facts: Option<&Facts>,
    ) -> Result<(), EngineError> {
        let refused = |error: SourceError| match error {
            SourceError::Cancelled => EngineError::Cancelled,
            SourceError::Unsuitable(problem) => EngineError::Request(problem),
            error => EngineError::Restore {
                artifact: "scratch target".to_owned(),
                error: Box::new(error),
            },
        };
        let name = place.folder.file_name().unwrap_or_default();
        let folders = [place.folder.clone(), place.shared_folder.join(name)];
        for (name, storage) in &self.instance.storages {
            let Some(path) = storage.local_path() else { continue };
            for folder in &folders {
                // What begins with a dot is not of the storage: no instance has such a name.
                let apart = folder.strip_prefix(path).ok().and_then(|rest| rest.iter().next());
                if !apart.is_some_and(|first| first.as_encoded_bytes().starts_with(b".")) {
                    refuse_overlap(folder, path, &format!("the storage `{name}`"))
                        .map_err(refused)?;
                }
            }
        }
        let (context, place) = (self.context(engine), place.clone());
        let dumped: Vec<(Name, serde_json::Value)> = facts
            .iter()
            .flat_map(|facts| {
                facts.sources.iter().flat_map(move |source| {
                    let objects = facts.objects_of(&source.name);
                    objects.map(|(_, object)| (source.name.clone(), object.clone()))
                })
            })
            .collect();
        let sources = self.instance.sources.clone();
        blocking(move || {
            for (name, facts) in &dumped {
                refuse_dumped(&context, &place.config, name, facts)?;
            }
            let sources: Vec<(&Name, &SourceConfig)> = sources.iter().collect();
            folders
                .iter()
                .try_for_each(|folder| refuse_sources(&context, &place.config, folder, &sources))
        })
        .await?
        .map_err(refused)
    }

    fn context(&self, engine: &Engine) -> Context {
        Context {
            name: self.strategy.name.clone(),
            cancel: engine.cancel.clone(),
            runtime: Handle::current(),
            no_progress_timeout: self.strategy.no_progress_timeout.duration(),
            work_dir: self.instance.work_dir.clone(),
            environment: engine.environment.clone(),
            own_folders: Arc::clone(&engine.own_folders),
            heard: Default::default(),
        }
    }

    /// Removes what an earlier drill left. The folders where something of it may still be.
    async fn sweep(
        &mut self,
        engine: &Engine,
        place: &ScratchPlace,
        work_dir: &Path,
    ) -> Result<Vec<PathBuf>, EngineError> {
        let (context, place, work_dir) = (self.context(engine), place.clone(), work_dir.to_owned());
        // Where those before were, whatever the configuration says now.
        let (noted, servers) = self.lock.noted();
        let server = place.config.postgres.url.as_ref().map(ToString::to_string);
        for other in servers.iter().filter(|other| Some(*other) != server.as_ref()) {
            tracing::warn!(
                "drills before were on `{other}`, which is not configured any more: should one \
                 have been killed, a database whose name begins with `{}` may be there",
                place.prefix
            );
        }
        let before = noted.clone();
        let (removed, failed) = blocking(move || {
            let mut folders = vec![work_dir.as_path(), place.shared_folder.as_path()];
            folders.extend(noted.iter().map(PathBuf::as_path));
            folders.sort();
            folders.dedup();
            sweep_scratch(&context, &place.config, &folders, &place.prefix)
        })
        .await?;
        for what in removed {
            let note = format!("An earlier drill left {what}, which was removed");
            tracing::info!("{note}");
            self.report.remarks.note(note);
        }
        for problem in &failed {
            tracing::warn!("what an earlier drill may have left could not be removed: {problem}");
        }
        Ok(if failed.is_empty() { Vec::new() } else { before })
    }

    fn identities(&self) -> Result<Vec<Identity>, EngineError> {
        if !self.request.identities.is_empty() {
            return Ok(self.request.identities.clone());
        }
        self.strategy.drill.identity_file.as_deref().map_or_else(|| Ok(Vec::new()), read_identities)
    }

    /// The facts. None when they are damaged: then that is in the report, and the rest is looked at
    /// all the same.
    async fn facts(
        &mut self,
        engine: &Engine,
        subject: &Subject,
        identities: &[Identity],
    ) -> Result<Option<Facts>, EngineError> {
        self.watch.turn(Step::Fetch);
        let artifact = subject.manifest.artifact("facts.json");
        let stored = artifact
            .and_then(|artifact| artifact.objects.first())
            .map(|object| object.digest.to_string());
        let check = Check::new("digest", None, "facts.json");
        match read_facts(engine, &subject.storage, &subject.manifest, identities).await {
            Ok(Some(facts)) => {
                self.report.checks.push(check.judged(true, stored.unwrap_or_default(), "the same"));
                let plain = facts.plain_bytes();
                if let Some(snapshot) = &mut self.report.snapshot {
                    snapshot.plain_bytes = Some(plain);
                }
                Ok(Some(facts))
            }
            Ok(None) => Err(EngineError::Internal("Facts were not opened".to_owned())),
            Err(EngineError::Damaged { problem, .. }) => {
                self.report.checks.push(check.judged(false, stored.unwrap_or_default(), problem));
                Ok(None)
            }
            // No key that was given opens them: of that it is not known whether they are damaged.
            Err(EngineError::Request(problem)) => {
                let whole = rehearsal::is_as_stored(engine, subject, "facts.json").await?;
                let check = match whole {
                    Ok(()) => check.ended(CheckOutcome::Inconclusive, problem),
                    Err(damage) => check.judged(false, stored.unwrap_or_default(), damage),
                };
                self.report.checks.push(check);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses what is more than is allowed, or does not fit.
    fn ensure_room(&self, place: &ScratchPlace, facts: &Facts) -> Result<(), EngineError> {
        let plain = facts.plain_bytes();
        if let Some(most) = self.strategy.drill.max_bytes.filter(|most| plain > most.0) {
            let plain = ByteSize(plain);
            return Err(EngineError::Undrilled(format!(
                "it has {plain}, and `max_bytes` allows {most}"
            )));
        }
        let parent = |folder: &Path| folder.parent().unwrap_or(folder).to_owned();
        let needs = rehearsal::room(facts, &self.strategy.drill.postgres);
        let same = place.shared_folder == parent(&place.folder);
        let wanted = if same {
            vec![(parent(&place.folder), needs.folder.saturating_add(needs.cluster))]
        } else {
            vec![
                (parent(&place.folder), needs.folder),
                (place.shared_folder.clone(), needs.cluster),
            ]
        };
        for (folder, needed) in wanted {
            let free = free_bytes(&folder)?;
            if free < needed {
                return Err(EngineError::Undrilled(format!(
                    "it needs {} in `{}`, which has {} free. Make room, or set the drill's \
                     `work_dir`",
                    ByteSize(needed),
                    folder.display(),
                    ByteSize(free)
                )));
            }
        }
        Ok(())
    }

    /// Sums everything up.
    fn conclude(self, engine: &Engine, unjudged: Option<(ErrorCode, String)>) -> DrillReport {
        let mut report = self.report;
        report.finished = engine.clock.now_seconds();
        let spent = self.watch.seconds();
        report.recovery_seconds =
            spent.iter().filter(|(step, _)| step.is_recovery()).map(|(_, seconds)| seconds).sum();
        report.seconds = spent.iter().map(|(_, seconds)| seconds).sum();
        let step =
            |(step, seconds): (Step, f64)| DrillStep { name: step.as_str().to_owned(), seconds };
        report.steps = spent.into_iter().map(step).collect();
        let age = report
            .snapshot
            .as_ref()
            .map(|snapshot| (report.started - snapshot.taken).num_seconds() as f64);
        report.recovery_point_seconds = age;
        if unjudged.is_none() && report.snapshot.is_some() {
            let objectives = [
                ("rto", "recovery time", self.strategy.drill.rto, Some(report.recovery_seconds)),
                ("rpo", "recovery point: age of the data", self.strategy.drill.rpo, age),
            ];
            for (kind, what, objective, found) in objectives {
                if let (Some(objective), Some(found)) = (objective, found) {
                    let span = |seconds: f64| match seconds {
                        ..10.0 => format!("{seconds:.1}s"),
                        _ => Span::from(std::time::Duration::from_secs_f64(seconds.round()))
                            .to_string(),
                    };
                    let holds = found <= objective.duration().as_secs_f64();
                    let check = Check::new(kind, None, what);
                    report.checks.push(check.judged(
                        holds,
                        format!("at most {objective}"),
                        span(found),
                    ));
                }
            }
        }
        report.verdict = verdict(&report.checks);
        if unjudged.is_some() && report.verdict == Verdict::Passed {
            report.verdict = Verdict::Inconclusive;
        }
        let failed: Vec<&Check> =
            report.checks.iter().filter(|check| check.outcome == CheckOutcome::Failed).collect();
        report.suspect = !failed.is_empty() && failed.iter().all(|check| check.kind == "shrink");
        let is_stored = |check: &&Check| matches!(check.kind.as_str(), "digest" | "manifest");
        let is_content = |check: &&Check| !matches!(check.kind.as_str(), "rto" | "rpo");
        report.only_this_copy = failed.iter().any(is_stored)
            && failed.iter().copied().filter(is_content).all(|check| is_stored(&check));
        let bad: Vec<String> = report.bad_news().map(Check::in_words).collect();
        let more = bad.len().saturating_sub(1);
        let first = bad.into_iter().next();
        let (code, unjudged) = unjudged.unzip();
        report.code = code;
        report.problem = match (first, unjudged, more) {
            (None, unjudged, _) => unjudged,
            (Some(first), Some(unjudged), _) if report.verdict == Verdict::Inconclusive => {
                Some(format!("{unjudged}; {first}"))
            }
            (Some(first), _, 0) => Some(first),
            (Some(first), _, more) => Some(format!("{first}; and {more} more")),
        };
        report
    }
}
