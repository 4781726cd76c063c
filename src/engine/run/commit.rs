//! The end of a run: the manifest is written where everything is there, and what must not stay is
//! taken away.

use std::num::NonZeroU32;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::engine::context::OpenStorage;
use crate::engine::error::{EngineError, chain};
use crate::engine::prune::deleting::Deleter;
use crate::engine::prune::plan_place;
use crate::engine::run::{Run, RunMember};
use crate::engine::snapshots::decisions::rests;
use crate::engine::snapshots::documents::LARGEST_MANIFEST;
use crate::engine::snapshots::mark_writer::write_mark;
use crate::engine::snapshots::marks::{Marks, read_marks};
use crate::engine::state::locks::ReadLock;
use crate::engine::write::{leftovers, writer};
use crate::model::{
    Artifact, ArtifactKind, Cancel, Completeness, FORMAT, MANIFEST_KEY, Manifest, Name, Program,
    StorageNote,
};
use crate::report::Pruned;
use crate::schedule::jitter;
use crate::storage::{CreateOptions, StorageError};

impl Run<'_> {
    /// Looks up every object in each storage once more, then writes the manifest there.
    pub(super) async fn commit(
        &mut self,
        artifacts: Vec<Artifact>,
        completeness: Completeness,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        let mut requires: Vec<String> = Vec::new();
        for artifact in &artifacts {
            let suffix = artifact.codec.suffix();
            let features = suffix.split('.').map(|codec| match codec {
                "zst" => "zstd",
                "gz" => "gzip",
                other => other,
            });
            let continued = (artifact.objects.len() > 1).then_some("continued");
            let numbered = (artifact.number() > NonZeroU32::MIN).then_some("numbered");
            let missing = (artifact.kind == ArtifactKind::Missing).then_some("missing");
            for feature in features
                .chain(continued)
                .chain(numbered)
                .chain(missing)
                .filter(|feature| !feature.is_empty())
            {
                if !requires.iter().any(|known| known == feature) {
                    requires.push(feature.to_owned());
                }
            }
        }
        let folder = self.folder();
        let next_due = self.next_due();
        let suspicion = self.suspicion();
        let mut committed = false;
        for place in &mut self.members {
            // The last moment at which a cancellation stops the commit. After the first manifest
            // the run goes through: stopping between two storages would only leave one behind.
            if cancel.is_cancelled() && !committed {
                break;
            }
            if !place.member.is_well() {
                continue;
            }
            let name = place.member.open.name.clone();
            self.engine.progress.begin(format!("committing to {name}"), None);
            let manifest = Manifest {
                format: FORMAT,
                requires: requires.clone(),
                instance: self.instance.name.clone(),
                strategy: self.strategy.name.clone(),
                id: self.id.clone(),
                started: self.started,
                finished: self.engine.clock.now_seconds(),
                next_due,
                program: Program {
                    name: "holdfast".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                },
                completeness,
                storage: StorageNote { name: name.clone(), remote_check: place.member.check() },
                artifacts: artifacts.clone(),
            };
            // First what protects: this may be cut off at any moment.
            if let Some(mark) = &suspicion
                && let Err(error) = write_mark(&place.member.open, mark).await
            {
                place.member.fail(error);
                continue;
            }
            match commit_to(place, &folder, &manifest, committed).await {
                Ok(()) => {
                    place.committed = true;
                    committed = true;
                    tracing::info!(storage = %name, "committed");
                }
                Err(error) => place.member.fail(error),
            }
        }
        if committed {
            Ok(())
        } else if cancel.is_cancelled() {
            Err(EngineError::Cancelled)
        } else {
            Err(EngineError::NoStorage("Each of them failed".to_owned()))
        }
    }

    fn next_due(&self) -> Option<DateTime<Utc>> {
        let schedule = self.strategy.schedule.as_ref().filter(|_| self.strategy.active)?;
        let jitter =
            jitter(self.strategy.jitter, &format!("{}/{}", self.instance.name, self.strategy.name));
        Some(schedule.due(self.started, self.started, self.strategy.missed, jitter)?.begins)
    }

    /// Carries out the retention in each storage where the run committed. What cannot be pruned now
    /// is pruned after a later run. After a partial run only partial snapshots are deleted.
    pub(super) async fn prune(&mut self, node: &str, completeness: Completeness) {
        let (instance, strategy) = (&self.instance.name, &self.strategy.name);
        let rests = |place: &RunMember| {
            rests(self.instance, self.strategy, &place.member.open.name).is_some()
        };
        if !self.members.iter().any(|place| place.committed && !rests(place)) {
            return;
        }
        // Who restores or verifies holds it, for hours perhaps. The next run prunes.
        let reading = match ReadLock::exclude(&self.engine.state_dir, instance, strategy) {
            Ok(lock) => lock,
            Err(error) => {
                tracing::info!("nothing is pruned now: {error}");
                return;
            }
        };
        if let Err(error) = self.engine.ensure_catalog_files() {
            let problem = chain(&error);
            tracing::warn!("retention: {problem}");
            for place in self.members.iter_mut().filter(|place| place.committed && !rests(place)) {
                let name = place.member.open.name.clone();
                place.pruned = Some(Pruned::refused(strategy.clone(), name, Some(problem.clone())));
            }
            return;
        }
        let marks = self.marks().await;
        let deleter = Deleter { engine: self.engine, instance, node, marks: &marks };
        for place in self.members.iter_mut().filter(|place| place.committed && !rests(place)) {
            let open = &place.member.open;
            let mut plan =
                plan_place(self.engine, self.instance, self.strategy, open, &marks).await;
            if completeness == Completeness::Partial {
                let others = plan.snapshots.iter_mut();
                others
                    .filter(|one| one.completeness != Some(Completeness::Partial))
                    .for_each(|one| one.decision.keep = true);
                if plan.to_delete().next().is_none() {
                    continue;
                }
            }
            let pruned = deleter.carry_out(open, &plan, false).await;
            if let Some(problem) = &pruned.problem {
                tracing::warn!(storage = %open.name, "retention: {problem}");
            }
            place.pruned = Some(pruned);
        }
        drop(reading);
    }

    /// The marks in every storage of the instance: what is held in one is held in the others too.
    /// One that could not be reached is not asked again.
    async fn marks(&self) -> Marks {
        let mut reached: Vec<OpenStorage> = Vec::new();
        let mut unread: Vec<(Name, String)> = Vec::new();
        for (name, config) in &self.instance.storages {
            let member = self.members.iter().find(|place| place.member.open.name == *name);
            match member {
                Some(place) if place.reached => reached.push(place.member.open.clone()),
                None if !self.strategy.storages.contains(name) => {
                    match OpenStorage::open(name, config, &self.engine.cancel).await {
                        Ok(open) => reached.push(open),
                        Err(error) => unread.push((name.clone(), chain(&error))),
                    }
                }
                _ => unread.push((name.clone(), "It could not be reached".to_owned())),
            }
        }
        let mut marks = read_marks(self.engine, &reached, &self.instance.name).await;
        marks.unlisted.extend(unread);
        marks
    }

    /// Takes the heartbeat away where the run committed, and everything where it did not.
    pub(super) async fn clean_up(&mut self) {
        self.engine.progress.begin("cleaning up", None);
        let (strategy_folder, folder) = (self.strategy_folder(), self.folder());
        for place in self.members.iter_mut().filter(|place| place.reached) {
            let storage = place.member.open.storage.as_ref();
            let cleaned = if place.committed {
                writer::leave(storage, &folder).await
            } else if place.attempted {
                // The manifest may yet come to light, and must find its artifacts when it does. A
                // later run's sweep decides.
                place.warn(format!(
                    "The manifest was sent, and it is not certain whether it is there: look for \
                     `{}` in `backup list`",
                    self.id
                ));
                continue;
            } else {
                leftovers::remove(storage, &strategy_folder, &self.id).await
            };
            match cleaned {
                // It tells nobody anything beside a manifest.
                Err(error) if error.is_denied_or_locked() => {}
                Err(error) if place.committed => {
                    place.note(format!("The heartbeat could not be taken away: {error}"));
                }
                Err(error) => {
                    tracing::warn!(storage = %place.member.open.name, "could not clean up: \
                        {error}; a later run will");
                }
                Ok(()) => {}
            }
        }
    }
}

/// Looks up every object of `manifest` in the storage, then writes the manifest, which is the
/// commit. Where another storage has `committed` already no cancellation is heeded.
async fn commit_to(
    place: &mut RunMember,
    folder: &str,
    manifest: &Manifest,
    committed: bool,
) -> Result<(), StorageError> {
    let storage = place.member.open.storage.as_ref();
    writer::look_up(
        storage,
        folder,
        manifest.artifacts.iter().flat_map(|artifact| &artifact.objects),
    )
    .await?;
    let key = format!("{folder}{MANIFEST_KEY}");
    let body = manifest.to_bytes();
    // One that nobody could read again is not written.
    let read = Manifest::from_bytes(&body, &manifest.instance, &manifest.strategy, &manifest.id);
    if body.len() as u64 > LARGEST_MANIFEST || read.is_err() {
        return Err(StorageError::too_large(storage.address(), key, LARGEST_MANIFEST));
    }
    let mut upload = storage
        .create(&key, CreateOptions { small: true, steady: committed, replaces: false })
        .await?;
    upload.write(Bytes::from(body)).await?;
    place.attempted = true;
    upload.finish().await.map(|_| ())
}
