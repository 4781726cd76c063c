//! One run of a strategy: from its sources to a committed snapshot.
//!
//! Lock, look over the storages, dump each source through the pipeline into all of them, write the
//! facts, look up every object again, then write the manifest to each; around it, and around each
//! source, the operator's own programs (`hooks`). Until a manifest is there nothing of the run is a
//! backup; the program may die at any point before, and a later run collects what is left.

pub(in crate::engine) mod ahead;
mod attempt;
mod commit;
mod hooks;
mod opening;
mod shrink;
mod start;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use hooks::Around;
use serde::Serialize;
use start::{be_nice, next_second};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::catalog::RunRecord;
use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, blocking};
use crate::engine::error::{EngineError, chain};
use crate::engine::snapshots::list::{Selection, list, list_side_by_side};
use crate::engine::state::locks::StateLock;
use crate::engine::state::node::node;
use crate::engine::state::private::make_private_folder;
use crate::engine::write::heartbeat::Heartbeat;
use crate::engine::write::outputs::{Member, Outlet, SourceOutputs};
use crate::model::{
    Artifact, ArtifactFacts, ArtifactKind, Cancel, Completeness, FACTS_FORMAT, Facts, FactsError,
    Name, Note, Remarks, SnapshotId, SourceFacts, Warning,
};
use crate::pipeline::{EncodeSettings, Throttle};
use crate::report::{Outcome, Pruned, RunReport, SourceReport, StorageReport, Tally};
use crate::source::{Context, Finding, Source, SourceConfig};

/// Plain bytes of a block. At the default level a block of 4 MiB is packed 0.1 % smaller, takes
/// more time, because it does not fit the caches of a processor, and costs four times the memory.
const BLOCK_BYTES: usize = 1 << 20;

/// What a run would do, as `--dry-run` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct RunPlan {
    pub instance: Name,
    pub strategy: Name,
    /// The strategy with its sources and storages, resolved, secrets masked.
    pub configuration: serde_json::Value,
    /// Bytes that the last committed run read, where one is known.
    pub last_plain_bytes: Option<u64>,
    /// Bytes that the last committed run stored.
    pub last_stored_bytes: Option<u64>,
    /// When that run began.
    pub last_started: Option<DateTime<Utc>>,
    /// Why it would fail, or might: sources and programs that are not there.
    pub findings: Vec<Finding>,
}

/// What a run of `strategy` would do. Nothing is contacted.
pub async fn plan(engine: &Engine, instance: &Instance, strategy: &Strategy) -> RunPlan {
    let last = last_committed(engine, instance, strategy).await;
    RunPlan {
        instance: instance.name.clone(),
        strategy: strategy.name.clone(),
        configuration: instance.masked(strategy),
        last_plain_bytes: last.as_ref().map(|run| run.plain_bytes),
        last_stored_bytes: last.as_ref().map(|run| run.stored_bytes),
        last_started: last.map(|run| run.started),
        findings: ahead::missing(engine, instance, strategy).await,
    }
}

/// When the last run of `strategy` began that need not be made up for: by the catalog, or where
/// that was lost, by the snapshots in the storages. One that was cancelled, or failed for a reason
/// that may pass with attempts left, is not it. None when there was none, as far as can be known.
pub async fn last_began(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Option<DateTime<Utc>> {
    if let Some(catalog) = engine.catalog().await {
        match catalog.last_concluded(&instance.name, &strategy.name, strategy.retry.attempts).await
        {
            Ok(Some(started)) => return Some(started),
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
    let listed = list_side_by_side(engine, instance, strategy).await.into_iter().flatten();
    listed.filter_map(|snapshots| snapshots.last().map(|snapshot| snapshot.id.time())).max()
}

/// Whether the last run of `strategy` failed, and is not made up for: somebody was told.
pub async fn has_failed(engine: &Engine, instance: &Instance, strategy: &Strategy) -> bool {
    let Some(catalog) = engine.catalog().await else { return false };
    let (of, name) = (&instance.name, &strategy.name);
    let last = catalog.last_run(of, name, false).await;
    let concluded = catalog.last_concluded(of, name, strategy.retry.attempts).await;
    matches!((last, concluded), (Ok(Some(last)), Ok(Some(concluded)))
        if last.outcome == Outcome::Failed && last.started == concluded)
}

/// The last run of `strategy` that committed, as it was recorded.
pub(in crate::engine) async fn last_committed(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Option<RunRecord> {
    let catalog = engine.catalog().await?;
    match catalog.last_run(&instance.name, &strategy.name, true).await {
        Ok(run) => run,
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}

/// Runs `strategy` once and records how it ended. A failed or cancelled run is a report too.
///
/// # Errors
/// [`EngineError::Locked`] when another run holds the lock, [`EngineError::State`] when the local
/// state cannot be used: then no run began.
pub async fn run(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Result<RunReport, EngineError> {
    run_sources(engine, instance, strategy, &|config| Arc::from(config.source())).await
}

/// Makes the source that a configuration means.
type MakeSource<'a> = &'a (dyn Fn(&SourceConfig) -> Arc<dyn Source> + Sync);

async fn run_sources(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    make_source: MakeSource<'_>,
) -> Result<RunReport, EngineError> {
    let _lock = StateLock::take(&engine.state_dir, &instance.name, &strategy.name)?;
    let node = node(&engine.state_dir)?;
    make_private_folder(&instance.work_dir)?;
    let mut salt = [0; 3];
    getrandom::fill(&mut salt)
        .map_err(|error| EngineError::Internal(format!("No random bytes: {error}")))?;
    let mut remarks = Remarks::default();
    let started = next_second(engine, instance, strategy, &mut remarks).await;
    let mut run = Run {
        engine,
        instance,
        strategy,
        make_source,
        id: SnapshotId::new(started, salt),
        started,
        began: tokio::time::Instant::now(),
        members: Vec::new(),
        unopened: Vec::new(),
        remarks,
        reports: Vec::new(),
        stored_bytes: 0,
        suspect: false,
    };
    if let Some(nice) = instance.nice
        && let Err(error) = be_nice(nice)
    {
        let note = format!("Could not lower the priority of the process to {nice}: {error}");
        tracing::info!("{note}");
        run.remarks.note(note);
    }
    let span = tracing::info_span!("run", instance = %instance.name, strategy = %strategy.name,
        id = %run.id);
    span.in_scope(|| tracing::info!("run begins"));

    // Everything of the run hears of a cancellation through this one, which a timeout cancels too.
    let cancel = Cancel::new();
    let _chained = engine.cancel.on_cancel({
        let cancel = cancel.clone();
        move || cancel.cancel()
    });
    let timed_out = async {
        match strategy.timeout {
            Some(limit) => tokio::time::sleep(limit.duration()).await,
            None => std::future::pending().await,
        }
    };
    let mut timeout = None;
    // Beyond this something hangs that cannot be interrupted, a network file system say.
    let stop_grace = instance.stop_grace.duration();
    let stuck = async {
        cancel.cancelled().await;
        tokio::time::sleep(stop_grace).await;
    };
    let ended = {
        let work = run.work(&node, &cancel).instrument(span);
        tokio::pin!(work, stuck);
        tokio::select! {
            result = &mut work => Some(result),
            () = &mut stuck => None,
            () = timed_out => {
                timeout = strategy.timeout;
                cancel.cancel();
                // The work ends by itself, children reaped and uploads aborted.
                tokio::select! {
                    result = work => Some(result),
                    () = stuck => None,
                }
            }
        }
    };
    let result = ended.unwrap_or_else(|| {
        tracing::error!(
            "it did not end within `stop_grace` ({}) after it was asked to, and is left; a later \
             run collects what it leaves",
            instance.stop_grace
        );
        if run.members.iter().any(|place| place.committed) {
            Ok(run.completeness())
        } else {
            Err(EngineError::Cancelled)
        }
    });
    let result = match (result, timeout) {
        (Err(EngineError::Locked { strategy, holder }), _) => {
            return Err(EngineError::Locked { strategy, holder });
        }
        (Err(_), Some(limit)) => Err(EngineError::TimedOut(limit)),
        (result, _) => result,
    };
    let report = run.report(result);
    run.record(&report).await;
    Ok(report)
}

pub(in crate::engine) struct Run<'a> {
    engine: &'a Engine,
    instance: &'a Instance,
    strategy: &'a Strategy,
    make_source: MakeSource<'a>,
    id: SnapshotId,
    started: DateTime<Utc>,
    began: tokio::time::Instant,
    members: Vec<RunMember>,
    /// Storages that could not even be opened.
    unopened: Vec<StorageReport>,
    remarks: Remarks,
    reports: Vec<SourceReport>,
    stored_bytes: u64,
    /// Whether the snapshot has much less than the last good one.
    suspect: bool,
}

pub(in crate::engine) struct RunMember {
    member: Arc<Member>,
    /// Whether it could be looked into. Nothing was written to one that could not, and to ask again
    /// takes long.
    reached: bool,
    /// Whether a manifest was sent: then it may be there, whatever the storage answered.
    attempted: bool,
    committed: bool,
    warnings: Vec<String>,
    notes: Vec<String>,
    pruned: Option<Pruned>,
    /// Held for the length of the run.
    _lock: Option<Box<dyn Send + Sync>>,
}

impl RunMember {
    fn note(&mut self, note: String) {
        tracing::info!(storage = %self.member.open.name, "{note}");
        self.notes.push(note);
    }

    fn warn(&mut self, warning: String) {
        tracing::warn!(storage = %self.member.open.name, "{warning}");
        self.warnings.push(warning);
    }
}

impl Run<'_> {
    fn strategy_folder(&self) -> String {
        format!("{}/{}/", self.instance.name, self.strategy.name)
    }

    fn completeness(&self) -> Completeness {
        if self.remarks.warnings.missing() > 0 {
            Completeness::Partial
        } else {
            Completeness::Whole
        }
    }

    fn folder(&self) -> String {
        format!("{}{}/", self.strategy_folder(), self.id)
    }

    /// The run proper. `Ok` means committed in at least one storage.
    async fn work(&mut self, node: &str, cancel: &Cancel) -> Result<Completeness, EngineError> {
        let last = last_committed(self.engine, self.instance, self.strategy).await;
        let heartbeat = Heartbeat::new(node.to_owned(), self.started);
        let opened = self.open_storages(node, &heartbeat, last.as_ref(), cancel).await;
        if let Err(error) = opened {
            self.clean_up().await;
            return Err(error);
        }
        if let Some(began) = &self.engine.began {
            began();
        }
        let beating = self.beat(heartbeat);
        let result = match self.before(Around::Run, cancel).await {
            Ok(()) => match self.look_ahead(cancel).await {
                Ok(()) => {
                    self.dump_and_commit(last.as_ref().map(|run| run.plain_bytes), cancel).await
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        // Before anything else that takes time: what `before` froze must not stay so while old
        // snapshots are deleted.
        self.after(Around::Run, &result).await;
        beating.abort();
        let _ = beating.await;
        self.clean_up().await;
        if let Ok(completeness) = result {
            self.prune(node, completeness).await;
        }
        self.look_again().await;
        result
    }

    /// Lists what is there now where retention did not, so that the catalog knows the new snapshot.
    async fn look_again(&mut self) {
        let selection = Selection {
            instance: Some(self.instance.name.clone()),
            strategy: Some(self.strategy.name.clone()),
        };
        let committed = |place: &&mut RunMember| place.committed && place.pruned.is_none();
        for place in self.members.iter_mut().filter(committed) {
            for (_, error) in
                list(self.engine, std::slice::from_ref(&place.member.open), &selection)
                    .await
                    .unlisted
            {
                place.note(format!("It could not be listed after the commit: {error}"));
            }
        }
    }

    async fn dump_and_commit(
        &mut self,
        last_plain_bytes: Option<u64>,
        cancel: &Cancel,
    ) -> Result<Completeness, EngineError> {
        let outlet = self.outlet(cancel);
        let written = self.dump(&outlet, last_plain_bytes, cancel).await;
        outlet.settle().await;
        let (artifacts, completeness) = written?;
        self.commit(artifacts, completeness, cancel).await?;
        Ok(completeness)
    }

    fn outlet(&self, cancel: &Cancel) -> Outlet {
        let members: Vec<Arc<Member>> =
            self.members.iter().map(|member| Arc::clone(&member.member)).collect();
        let largest =
            members.iter().filter_map(|member| member.open.storage.max_object_bytes()).min();
        Outlet {
            settings: EncodeSettings {
                compression: self.instance.compression,
                recipients: self
                    .instance
                    .encryption
                    .as_ref()
                    .map(|encryption| encryption.recipients.clone())
                    .unwrap_or_default(),
                threads: self.instance.threads,
                block_bytes: BLOCK_BYTES,
                max_object_bytes: largest,
                read_rate: self.instance.read_rate.map(Throttle::new),
                cancel: cancel.clone(),
            },
            members,
            folder: self.folder(),
            cancel: cancel.clone(),
            progress: self.engine.progress.clone(),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
        }
    }

    /// Dumps every source in order, then writes the facts.
    async fn dump(
        &mut self,
        outlet: &Outlet,
        last_plain_bytes: Option<u64>,
        cancel: &Cancel,
    ) -> Result<(Vec<Artifact>, Completeness), EngineError> {
        let mut artifacts: Vec<Artifact> = Vec::new();
        let mut artifact_facts: Vec<ArtifactFacts> = Vec::new();
        let mut sources: Vec<SourceFacts> = Vec::new();
        for name in &self.strategy.sources {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let config = self.instance.sources.get(name).ok_or_else(|| {
                EngineError::Internal(format!("The source `{name}` is not in the configuration"))
            })?;
            // What is expected is known of the whole run only.
            if sources.is_empty() {
                self.engine.progress.begin(name.to_string(), last_plain_bytes);
            } else {
                self.engine.progress.go_on(name.to_string());
            }
            let began = tokio::time::Instant::now();
            let taken = match self.before(Around::Source(name), cancel).await {
                Ok(()) => self.dump_source(name, (self.make_source)(config), outlet, cancel).await,
                Err(error) => Err(error),
            };
            self.after(Around::Source(name), &taken).await;
            let taken = taken?;
            let seconds = began.elapsed().as_secs_f64();
            let plain_bytes = taken.written.iter().map(|written| written.facts.plain_bytes).sum();
            let stored_bytes =
                taken.written.iter().map(|written| written.artifact.stored_bytes()).sum();
            tracing::info!(source = %name, plain_bytes, stored_bytes, seconds, "source dumped");
            for Note { path, reason, .. } in taken.remarks.notes.kept() {
                tracing::info!(source = %name, path, "{reason}");
            }
            for Warning { note: Note { path, reason, .. }, .. } in taken.remarks.warnings.kept() {
                tracing::warn!(source = %name, path, "{reason}");
            }
            self.remarks.extend(Some(name.as_str()), taken.remarks);
            self.reports.push(SourceReport {
                name: name.clone(),
                kind: config.kind().to_owned(),
                plain_bytes,
                stored_bytes,
                seconds,
                entries: None,
                rows: None,
                content_bytes: None,
                rules_digest: self.instance.rules_digest(self.strategy, name),
            });
            sources.push(SourceFacts {
                name: name.clone(),
                consistency: taken.consistency.to_owned(),
                seconds,
                facts: taken.facts,
            });
            for written in taken.written {
                artifacts.push(written.artifact);
                artifact_facts.push(written.facts);
            }
        }
        let completeness = self.completeness();
        let mut facts = Facts {
            format: FACTS_FORMAT,
            instance: self.instance.name.clone(),
            strategy: self.strategy.name.clone(),
            id: self.id.clone(),
            configuration: self.instance.masked(self.strategy),
            artifacts: artifact_facts,
            sources,
            remarks: Remarks::default(),
        };
        self.compare(&facts, &artifacts).await;
        facts.remarks = self.remarks.clone();
        self.engine.progress.begin("facts", None);
        let body = facts.to_bytes().map_err(|error| match error {
            FactsError::Stream(error) => EngineError::TooLarge(format!("The facts are {error}")),
            error => EngineError::Internal(error.to_string()),
        })?;
        let outputs = SourceOutputs::new(outlet.clone(), None);
        let written =
            blocking(move || outputs.write_document("facts.json", ArtifactKind::Facts, &body))
                .await?;
        artifacts.push(written.map_err(|error| self.stream_error(&error, cancel))?.artifact);
        self.stored_bytes = artifacts.iter().map(Artifact::stored_bytes).sum();
        Ok((artifacts, completeness))
    }

    /// What a source, or a hook around it, is handed.
    fn context(&self, name: &Name, cancel: &Cancel) -> Context {
        Context {
            name: name.clone(),
            cancel: cancel.clone(),
            runtime: Handle::current(),
            no_progress_timeout: self.strategy.no_progress_timeout.duration(),
            work_dir: self.instance.work_dir.clone(),
            environment: self.engine.environment.clone(),
            own_folders: Arc::clone(&self.engine.own_folders),
            secrets: Arc::clone(&self.engine.secrets),
            heard: Default::default(),
        }
    }

    fn report(&mut self, result: Result<Completeness, EngineError>) -> RunReport {
        let finished = self.engine.clock.now_seconds();
        let mut storages = std::mem::take(&mut self.unopened);
        let mut storage_may_pass = false;
        for place in self.members.drain(..) {
            let failure = place.member.take_failure();
            storage_may_pass |=
                failure.as_ref().is_some_and(crate::storage::StorageError::may_pass);
            let code = failure.as_ref().map(crate::storage::StorageError::code);
            let error = failure.map(|error| chain(&error));
            storages.push(StorageReport {
                name: place.member.open.name.clone(),
                address: place.member.open.storage.address(),
                committed: place.committed,
                error,
                code,
                warnings: place.warnings,
                notes: place.notes,
                pruned: place.pruned,
            });
        }
        // Another storage has the snapshot: how it gets to those that have not.
        if let Some(good) =
            storages.iter().find(|storage| storage.committed).map(|storage| storage.name.clone())
        {
            for storage in
                storages.iter_mut().filter(|storage| !storage.committed && storage.error.is_some())
            {
                storage.notes.push(format!(
                    "Once it is well again, `backup copy --from {good} --to {} --strategy {}` \
                     brings the snapshot there",
                    storage.name, self.strategy.name
                ));
            }
        }
        let may_pass = match &result {
            Ok(_) => false,
            Err(EngineError::NoStorage(_)) => storage_may_pass,
            Err(error) => error.may_pass(),
        };
        let code = result.as_ref().err().map(EngineError::code);
        let (outcome, completeness, error) = match result {
            Ok(completeness) => (Outcome::Success, Some(completeness), None),
            Err(EngineError::Cancelled) => (Outcome::Cancelled, None, Some("Cancelled".to_owned())),
            Err(error) => (Outcome::Failed, None, Some(chain(&error))),
        };
        let mut report = RunReport {
            instance: self.instance.name.clone(),
            strategy: self.strategy.name.clone(),
            id: self.id.clone(),
            outcome,
            completeness,
            suspect: self.suspect && completeness.is_some(),
            started: self.started,
            finished,
            seconds: self.began.elapsed().as_secs_f64(),
            plain_bytes: self.reports.iter().map(|source| source.plain_bytes).sum(),
            stored_bytes: if completeness.is_some() { self.stored_bytes } else { 0 },
            sources: std::mem::take(&mut self.reports),
            storages,
            remarks: std::mem::take(&mut self.remarks),
            error,
            code,
            may_pass,
        };
        let Tally { warnings, errors, .. } = report.tally();
        if outcome == Outcome::Success && warnings + errors > 0 {
            report.outcome = Outcome::Problems;
        }
        report
    }

    /// Records the run in the catalog, which must not fail it.
    async fn record(&self, report: &RunReport) {
        let Some(catalog) = self.engine.catalog().await else { return };
        let record = RunRecord {
            id: report.id.clone(),
            instance: report.instance.clone(),
            strategy: report.strategy.clone(),
            started: report.started,
            finished: report.finished,
            outcome: report.outcome,
            plain_bytes: report.plain_bytes,
            stored_bytes: report.stored_bytes,
            report: serde_json::to_string(report).unwrap_or_default(),
        };
        if let Err(error) = catalog.record_run(&record).await {
            tracing::warn!("the run could not be recorded: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
