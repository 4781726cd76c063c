//! The rehearsal proper: every artifact is read, what can be restored is, and what was restored is
//! looked at. On one thread, which may block.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use crate::engine::context::Engine;
use crate::engine::drill::checks;
use crate::engine::drill::subject::Subject;
use crate::engine::drill::targets::{Rehearsal, Restored, Targets};
use crate::engine::error::{EngineError, chain};
use crate::engine::read::by_hand::restore_artifact;
use crate::engine::read::fault::reading_failed;
use crate::engine::read::streams::ArtifactStreams;
use crate::engine::read::whole::read_through;
use crate::engine::state::private::make_private_folder;
use crate::model::{
    Artifact, ArtifactKind, Cancel, Check, CheckOutcome, Facts, Name, Proof, Remarks,
};
use crate::pipeline::{Identity, Step};
use crate::report::{DrillTarget, DrilledArtifact};
use crate::source::postgres::ScratchServer;
use crate::source::scratch::keep_folder;
use crate::source::{
    Context, RestoreArtifact, RestoreJob, Restorer, SourceError, remove_scratch_folder, restorer,
};

/// Room that a fresh cluster takes, and a database beyond its dump, in bytes.
const CLUSTER: u64 = 96 << 20;

/// What came of it.
pub(super) struct Rehearsed {
    /// Whether it came to its end.
    pub(super) ended: Result<(), EngineError>,
    pub(super) checks: Vec<Check>,
    pub(super) targets: Vec<DrillTarget>,
    pub(super) proof: BTreeMap<Name, Proof>,
    pub(super) artifacts: Vec<DrilledArtifact>,
    pub(super) remarks: Remarks,
    pub(super) left: Vec<String>,
}

/// Room that restoring takes, in bytes.
pub(super) struct Room {
    pub(super) folder: u64,
    pub(super) cluster: u64,
}

/// How much room the artifacts of `facts` take once they are restored, as far as it is taken on
/// this machine.
pub(super) fn room(facts: &Facts, postgres: &ScratchServer) -> Room {
    let mut room = Room { folder: 0, cluster: 0 };
    for artifact in &facts.artifacts {
        match artifact.name.rsplit('.').next().unwrap_or_default() {
            // With its indexes a database is larger than its dump.
            "pgdump" if postgres.url.is_none() => {
                let needed = artifact.plain_bytes.saturating_mul(2).saturating_add(CLUSTER);
                room.cluster = room.cluster.saturating_add(needed);
            }
            "pgdump" | "index" | "blocks" => {}
            _ => room.folder = room.folder.saturating_add(artifact.plain_bytes),
        }
    }
    room
}

/// Whether what is stored of an artifact is what was written, decrypted or not; what is wrong
/// otherwise.
pub(super) async fn is_as_stored(
    engine: &Engine,
    subject: &Subject,
    name: &str,
) -> Result<Result<(), String>, EngineError> {
    let Some(artifact) = subject.manifest.artifact(name) else {
        return Ok(Err("the manifest does not list it".to_owned()));
    };
    let read = read_through(
        engine,
        &subject.storage,
        &subject.manifest.id,
        &subject.folder,
        artifact,
        &[],
        None,
    )
    .await;
    match read {
        Ok(()) => Ok(Ok(())),
        Err(EngineError::Damaged { problem, .. }) => Ok(Err(problem)),
        // It cannot be opened without a key: its bytes as stored were not read then.
        Err(EngineError::Request(_)) => Ok(Ok(())),
        Err(error) => Err(error),
    }
}

/// What came of reading or restoring one artifact.
enum Fate {
    Sound,
    Damaged(String),
    /// It could not be done, which says nothing about the artifact.
    Open(String),
    /// It arrived as it was stored, and cannot be restored.
    Bad(String),
}

impl Rehearsal {
    pub(super) fn run(mut self) -> Rehearsed {
        let mut rehearsed = Rehearsed {
            ended: Ok(()),
            checks: Vec::new(),
            targets: Vec::new(),
            proof: BTreeMap::new(),
            artifacts: Vec::new(),
            remarks: Remarks::default(),
            left: Vec::new(),
        };
        let mut targets = Targets::new();
        rehearsed.ended = self.work(&mut targets, &mut rehearsed);
        self.watch.turn(Step::CleanUp);
        self.clean_up(targets, &mut rehearsed);
        rehearsed
    }

    fn work(
        &mut self,
        targets: &mut Targets,
        rehearsed: &mut Rehearsed,
    ) -> Result<(), EngineError> {
        self.watch.turn(Step::Prepare);
        make_private_folder(&self.place.folder)?;
        let mut sources: Vec<Name> = Vec::new();
        for source in self.manifest.artifacts.iter().filter_map(|one| one.source.as_ref()) {
            if !sources.contains(source) {
                sources.push(source.clone());
            }
        }
        for source in &sources {
            self.source(source, targets, rehearsed)?;
        }
        self.watch.turn(Step::Checks);
        for check in &self.strategy.drill.checks.clone() {
            self.ensure_going()?;
            self.engine.progress.begin(format!("checking: {}", check.kind()), None);
            tracing::info!("{} check", check.kind());
            rehearsed.checks.extend(checks::make(self, check, targets)?);
        }
        rehearsed.proof = sources
            .into_iter()
            .filter_map(|source| {
                let looked_at = targets.get(&source).is_some_and(|target| target.looked_at);
                let proof = Proof::of(&source, &rehearsed.checks, looked_at)?;
                Some((source, proof))
            })
            .collect();
        Ok(())
    }

    pub(super) fn ensure_going(&self) -> Result<(), EngineError> {
        if self.engine.cancel.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    /// What a source or program is given, with `cancel` to stop it.
    pub(super) fn context(&self, name: &Name, cancel: &Cancel) -> Context {
        Context {
            name: name.clone(),
            cancel: cancel.clone(),
            runtime: self.runtime.clone(),
            no_progress_timeout: self.strategy.no_progress_timeout.duration(),
            work_dir: self.place.folder.clone(),
            environment: self.engine.environment.clone(),
            own_folders: Arc::clone(&self.engine.own_folders),
            heard: Default::default(),
        }
    }

    /// Reads all artifacts of a source, restores those that are for it, and looks at what was
    /// restored.
    fn source(
        &self,
        source: &Name,
        targets: &mut Targets,
        rehearsed: &mut Rehearsed,
    ) -> Result<(), EngineError> {
        let cx = self.context(source, &self.engine.cancel);
        let artifacts: Vec<&Artifact> = self
            .manifest
            .artifacts
            .iter()
            .filter(|one| one.source.as_ref() == Some(source))
            .collect();
        let facts = self.facts.as_deref();
        let mut target = None;
        if artifacts.iter().any(|artifact| artifact.number() > NonZeroU32::MIN) {
            // Each needs a target for itself. Until drills make those, nothing here may pass.
            let check = Check::new("target", Some(source), "a scratch target");
            rehearsed.checks.push(check.ended(
                CheckOutcome::Inconclusive,
                "the source has several artifacts of a kind, which drills read and do not restore",
            ));
        } else if let Some((first, restorer)) =
            artifacts.iter().find_map(|one| Some((one, restorer(one.kind)?)))
        {
            self.watch.turn(Step::Prepare);
            self.engine.progress.begin(format!("making ready for {source}"), None);
            let mut wanted = restore_artifact(&self.manifest.id, first, facts);
            if let Some(main) = artifacts.iter().find(|one| one.kind.is_main()) {
                // The target is made for the database, whatever is restored before it.
                wanted.facts = restore_artifact(&self.manifest.id, main, facts).facts;
            }
            match restorer.scratch(&cx, &wanted, &self.place) {
                Ok(scratch) => {
                    tracing::info!("`{source}` goes to {}", scratch.description());
                    rehearsed.targets.push(DrillTarget {
                        source: source.clone(),
                        place: scratch.description(),
                        dumped_from: restorer.describe(&wanted.facts),
                    });
                    target =
                        Some(Restored { scratch, is_whole: true, folder: None, looked_at: false });
                }
                Err(_) if self.engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
                Err(error) => {
                    let check = Check::new("target", Some(source), "a scratch target");
                    rehearsed.checks.push(check.ended(CheckOutcome::Inconclusive, chain(&error)));
                }
            }
        }
        for artifact in artifacts {
            let result = self.artifact(&cx, artifact, target.as_mut(), rehearsed);
            if let Err(error) = result {
                // Whatever happened, the target is cleaned up.
                targets.extend(target.map(|target| (source.clone(), target)));
                return Err(error);
            }
        }
        rehearsed.remarks.extend(Some(source.as_str()), cx.heard.take());
        targets.extend(target.map(|target| (source.clone(), target)));
        Ok(())
    }

    fn artifact(
        &self,
        cx: &Context,
        artifact: &Artifact,
        target: Option<&mut Restored>,
        rehearsed: &mut Rehearsed,
    ) -> Result<(), EngineError> {
        self.ensure_going()?;
        let facts = self.facts.as_deref();
        let wanted = restore_artifact(&self.manifest.id, artifact, facts);
        let known = facts
            .and_then(|facts| facts.artifacts.iter().find(|known| known.name == artifact.name));
        let mut shown = DrilledArtifact {
            name: artifact.name.clone(),
            stored_bytes: artifact.stored_bytes(),
            plain_bytes: known.map(|known| known.plain_bytes),
            plain_digest: known.map(|known| known.plain_digest),
            done: "read".to_owned(),
        };
        self.engine.progress.begin(format!("restoring {}", artifact.name), wanted.plain_bytes);
        let fate = match (target, restorer(artifact.kind)) {
            (Some(target), Some(restorer)) => match target.scratch.target(&wanted) {
                Ok(_) => {
                    let fate =
                        self.restore(cx, artifact, &wanted, restorer.as_ref(), target, rehearsed)?;
                    target.is_whole &= matches!(fate, Fate::Sound);
                    if matches!(fate, Fate::Sound) {
                        "restored".clone_into(&mut shown.done);
                    }
                    fate
                }
                Err(reason) => {
                    shown.done = format!("read; {reason}");
                    self.read(artifact)?
                }
            },
            _ => self.read(artifact)?,
        };
        rehearsed.artifacts.push(shown);
        let expected = known.map_or_else(
            || artifact.objects.first().map(|object| object.digest.to_string()).unwrap_or_default(),
            |known| known.plain_digest.to_string(),
        );
        let digest = Check::new("digest", artifact.source.as_ref(), artifact.name.clone());
        let restored = Check::new(
            "restore",
            artifact.source.as_ref(),
            format!("restore of {}", artifact.name),
        );
        let whole = "all of it, without an error";
        rehearsed.checks.extend(match fate {
            Fate::Sound => vec![digest.judged(true, expected, "the same")],
            Fate::Damaged(problem) => vec![digest.judged(false, expected, problem)],
            Fate::Open(problem) => vec![restored.ended(CheckOutcome::Inconclusive, problem)],
            Fate::Bad(problem) => {
                vec![
                    digest.judged(true, expected, "the same"),
                    restored.judged(false, whole, problem),
                ]
            }
        });
        Ok(())
    }

    /// Restores an artifact and looks at what was restored.
    fn restore(
        &self,
        cx: &Context,
        artifact: &Artifact,
        wanted: &RestoreArtifact,
        restorer: &dyn Restorer,
        target: &mut Restored,
        rehearsed: &mut Rehearsed,
    ) -> Result<Fate, EngineError> {
        let Ok(place) = target.scratch.target(wanted) else { return self.read(artifact) };
        self.watch.turn(Step::Restore);
        tracing::info!("restoring `{}`", artifact.name);
        let streams = ArtifactStreams::new(
            &self.storage,
            &self.manifest,
            artifact,
            &self.identities,
            self.facts.as_ref(),
            &self.engine.progress,
        );
        let options = target.scratch.options(wanted);
        match restorer.restore_from(
            RestoreJob { cx, artifact: wanted, target: &place, options: &options },
            &streams,
        ) {
            Ok(done) => {
                let source = artifact.source.as_ref().map(Name::as_str);
                rehearsed.remarks.extend(source, done.remarks);
            }
            Err(error) => return self.fate(cx, artifact, &error, target),
        }
        if let (ArtifactKind::Tar | ArtifactKind::Stream, crate::source::Target::Folder(folder)) =
            (artifact.kind, &place)
        {
            target.folder = Some(folder.clone());
        }
        self.watch.turn(Step::Checks);
        tracing::info!("looking at `{}`", artifact.name);
        self.engine.progress.begin(format!("looking at {}", artifact.name), None);
        match target.scratch.inspect(cx, wanted, &streams) {
            Ok(checks) => rehearsed.checks.extend(checks),
            Err(_) if self.engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
            Err(SourceError::Damaged(problem)) => return Ok(Fate::Bad(problem)),
            Err(error) => {
                let is_to_blame = target.scratch.is_to_blame(cx, &error);
                let check = Check::new(
                    "inspect",
                    artifact.source.as_ref(),
                    format!("a look at what was restored of {}", artifact.name),
                );
                let problem = chain(&error);
                rehearsed.checks.push(if is_to_blame {
                    check.ended(CheckOutcome::Inconclusive, problem)
                } else {
                    check.judged(false, "to be read", problem)
                });
            }
        }
        Ok(Fate::Sound)
    }

    /// What the failure of a restore says of the artifact.
    fn fate(
        &self,
        cx: &Context,
        artifact: &Artifact,
        error: &SourceError,
        target: &mut Restored,
    ) -> Result<Fate, EngineError> {
        if self.engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        if let SourceError::Stream(error) = error {
            // Read by itself it says what is wrong without what that means for a restore.
            return Ok(match self.read(artifact)? {
                Fate::Sound => {
                    let error =
                        reading_failed(&self.storage, &self.manifest.id, &artifact.name, error);
                    self.reading_fate(artifact, error)?
                }
                other => other,
            });
        }
        let problem = target.scratch.in_words(error);
        let is_to_blame = target.scratch.is_to_blame(cx, error);
        // What does not restore may be damaged further on: then that is the reason.
        Ok(match (self.read(artifact)?, is_to_blame) {
            (Fate::Sound, true) => Fate::Open(problem),
            (Fate::Sound, false) => Fate::Bad(problem),
            (Fate::Damaged(damage), _) => Fate::Damaged(format!("{damage} ({problem})")),
            (other, _) => other,
        })
    }

    /// Reads an artifact to its end.
    fn read(&self, artifact: &Artifact) -> Result<Fate, EngineError> {
        self.watch.turn(Step::Fetch);
        tracing::info!("reading `{}`", artifact.name);
        match self.read_with(artifact, &self.identities) {
            Ok(()) => Ok(Fate::Sound),
            Err(error) => self.reading_fate(artifact, error),
        }
    }

    fn read_with(&self, artifact: &Artifact, identities: &[Identity]) -> Result<(), EngineError> {
        let folder = self.manifest.snapshot_ref().folder();
        let id = &self.manifest.id;
        let facts = self
            .facts
            .as_deref()
            .filter(|_| !identities.is_empty() || !self.manifest.is_encrypted());
        let reading =
            read_through(&self.engine, &self.storage, id, &folder, artifact, identities, facts);
        self.runtime.block_on(reading)
    }

    fn reading_fate(&self, artifact: &Artifact, error: EngineError) -> Result<Fate, EngineError> {
        if self.engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        match error {
            EngineError::Damaged { problem, .. } => Ok(Fate::Damaged(problem)),
            // No key that was given opens it. Whether it is as it was stored can be told all the
            // same.
            EngineError::Request(problem) => match self.read_with(artifact, &[]) {
                Err(EngineError::Damaged { problem, .. }) => Ok(Fate::Damaged(problem)),
                _ => Ok(Fate::Open(problem)),
            },
            EngineError::Cancelled => Err(EngineError::Cancelled),
            error => Ok(Fate::Open(chain(&error))),
        }
    }

    /// Removes all that was made, or lets it stay where that was asked for. Not even a cancellation
    /// keeps it from that.
    fn clean_up(&self, targets: Targets, rehearsed: &mut Rehearsed) {
        self.engine.progress.begin("cleaning up", None);
        let own = Cancel::new();
        let mut note = |problem: String| {
            tracing::warn!("{problem}");
            rehearsed.left.push(problem);
        };
        for (source, mut target) in targets {
            let cx = self.context(&source, &own);
            let what = target.scratch.description();
            if self.keep {
                note(match target.scratch.keep(&cx) {
                    Ok(how) => format!("{what} stays, as was asked. To remove it: {how}"),
                    Err(error) => format!("{what} could not be kept: {}", chain(&error)),
                });
            } else if let Err(error) = target.scratch.remove(&cx) {
                let error = chain(&error);
                note(format!(
                    "{what} could not be removed, and the next drill tries again: {error}"
                ));
            }
        }
        let folder = &self.place.folder;
        let done = if self.keep { keep_folder(folder) } else { remove_scratch_folder(folder) };
        if let Err(error) = done {
            note(format!("`{}`: {}", folder.display(), chain(&error)));
        }
    }
}
