//! Carrying out a plan: who else is kept out, and how a snapshot is deleted.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::catalog::CatalogError;
use crate::engine::context::{Engine, OpenStorage, not_twice};
use crate::engine::error::EngineError;
use crate::engine::prune::{PlacePlan, PrunePlan, PruneScope, Refusal, marks_of, plan_with};
use crate::engine::snapshots::decisions::rests;
use crate::engine::snapshots::marks::Marks;
use crate::engine::snapshots::vanished::acknowledge;
use crate::engine::state::locks::{ReadLock, StateLock};
use crate::engine::state::node::node;
use crate::engine::write::heartbeat::Heartbeat;
use crate::engine::write::{leftovers, writer};
use crate::model::{ErrorCode, MANIFEST_KEY, Name, RUN_KEY, SnapshotId, SnapshotRef};
use crate::report::Pruned;
use crate::storage::{StorageError, StorageErrorKind};

/// What a pruning did.
#[derive(Debug, Clone, Serialize)]
pub struct PruneReport {
    /// The plan that it carried out.
    pub plan: PrunePlan,
    /// What came of it, by place, as in the plan.
    pub pruned: Vec<Pruned>,
}

/// Prunes `scope`: plans under the locks, and deletes. With `expected`, only a plan is carried out
/// whose digest, in hex, begins with it, and nothing of it where one place refuses. `force`
/// overrules the refusals that [yield](super::Refusal::yields) to it.
///
/// # Errors
/// [`EngineError::Locked`] while a run writes or a restore reads, [`EngineError::Request`] when the
/// plan is not the expected one: then nothing was deleted.
pub async fn prune(
    engine: &Engine,
    scope: PruneScope<'_>,
    expected: Option<&str>,
    force: bool,
) -> Result<PruneReport, EngineError> {
    let instance = scope.instance;
    let deleting = scope.strategies().flat_map(|strategy| {
        let opened =
            scope.places(strategy).filter_map(move |(_, open)| Some((&strategy.name, open.ok()?)));
        opened.filter(move |(_, open)| rests(instance, strategy, &open.name).is_none())
    });
    let locks = exclude(engine, &instance.name, &deleting.collect::<Vec<_>>()).await?;
    let marks = marks_of(engine, scope).await;
    let plan = plan_with(engine, scope, &marks).await;
    let digest = plan.digest.hex();
    if let Some(expected) = expected.filter(|expected| !digest.starts_with(expected)) {
        return Err(EngineError::Request(format!(
            "The plan is not `{expected}` any more but `{}`: the snapshots, or what is said of \
             them, have changed since. Nothing was deleted. Look \
             at `backup prune --plan` again",
            digest.get(..expected.len()).unwrap_or(&digest)
        )));
    }
    let deleter = Deleter { engine, instance: &instance.name, node: &locks.node, marks: &marks };
    let problem_of = |place: &PlacePlan| {
        let unlocked = locks.unlocked.get(&(place.strategy.clone(), place.storage.clone()));
        refused(place, force).or_else(|| unlocked.cloned()).filter(|_| place.rests.is_none())
    };
    let refusing = plan.places.iter().find(|place| problem_of(place).is_some());
    let mut pruned = Vec::new();
    for place in &plan.places {
        if let Some(refusing) = refusing.filter(|_| expected.is_some()) {
            let problem = problem_of(place).unwrap_or_else(|| {
                format!(
                    "`{}` refuses, and a plan is carried out whole or not at all. Plan for this \
                     storage alone with `--storage {}`",
                    refusing.storage, place.storage
                )
            });
            let (strategy, storage) = (place.strategy.clone(), place.storage.clone());
            let refused = Pruned::refused(strategy, storage, Some(problem));
            pruned.push(Pruned { kept: place.snapshots.len(), ..refused });
            continue;
        }
        let unlocked = locks.unlocked.get(&(place.strategy.clone(), place.storage.clone()));
        let open = scope
            .storages
            .iter()
            .filter_map(|open| open.as_ref().ok())
            .find(|open| open.name == place.storage);
        pruned.push(match open.filter(|_| unlocked.is_none()) {
            Some(open) => deleter.carry_out(open, place, force).await,
            None => {
                let problem = refused(place, force).or_else(|| unlocked.cloned());
                Pruned::refused(place.strategy.clone(), place.storage.clone(), problem)
            }
        });
    }
    drop(locks);
    Ok(PruneReport { plan, pruned })
}

/// What who deletes holds: nobody else writes or reads there meanwhile, on this machine or another.
pub(in crate::engine) struct Exclusive {
    /// Of the state folder.
    pub(in crate::engine) node: String,
    /// Places, by strategy and storage, where it is not known whether anybody else writes, and why:
    /// nothing may be deleted there.
    pub(in crate::engine) unlocked: BTreeMap<(Name, Name), String>,
    _held: Vec<Box<dyn Send + Sync>>,
}

/// Excludes writers and readers of the strategies of `instance` in `places`, and collects what dead
/// runs and prunings left there.
///
/// # Errors
/// [`EngineError::Locked`].
pub(in crate::engine) async fn exclude(
    engine: &Engine,
    instance: &Name,
    places: &[(&Name, &OpenStorage)],
) -> Result<Exclusive, EngineError> {
    let node = node(&engine.state_dir)?;
    engine.ensure_catalog_files()?;
    let mut held: Vec<Box<dyn Send + Sync>> = Vec::new();
    let strategies: BTreeSet<&Name> = places.iter().map(|(strategy, _)| *strategy).collect();
    for strategy in strategies {
        held.push(Box::new(StateLock::take(&engine.state_dir, instance, strategy)?));
        held.push(Box::new(ReadLock::exclude(&engine.state_dir, instance, strategy)?));
    }
    let mut unlocked = BTreeMap::new();
    for (position, (strategy, open)) in places.iter().enumerate() {
        match exclude_writers(open, &SnapshotRef::strategy_folder(instance, strategy), &node).await
        {
            Ok(lock) => held.extend(lock),
            Err(error) if error.is_busy() => {
                let ours = places
                    .iter()
                    .take(position)
                    .filter(|(of, _)| of == strategy)
                    .map(|(_, open)| *open);
                not_twice(open, ours).await?;
                let holder = writer::holder(&error);
                return Err(EngineError::Locked { strategy: (*strategy).clone(), holder });
            }
            Err(error) => {
                let problem = format!("It is not known whether anybody writes there: {error}");
                unlocked.insert(((*strategy).clone(), open.name.clone()), problem);
            }
        }
    }
    Ok(Exclusive { node, unlocked, _held: held })
}

async fn exclude_writers(
    open: &OpenStorage,
    folder: &str,
    node: &str,
) -> Result<Option<Box<dyn Send + Sync>>, StorageError> {
    let storage = open.storage.as_ref();
    let lock = storage.lock(folder.trim_end_matches('/')).await?;
    let leftovers = leftovers::look(storage, folder, node, None).await?;
    if let Some(who) = leftovers.alive.first() {
        return Err(writer::busy(storage, folder, who));
    }
    match leftovers::sweep(storage, folder, &leftovers, lock.is_some()).await {
        Ok(0) => {}
        Ok(count) => {
            tracing::info!(storage = %open.name, "collected what {count} unfinished run(s) or \
                pruning(s) left");
        }
        Err(error) => {
            tracing::warn!(storage = %open.name, "could not collect what an unfinished run left: \
                {error}");
        }
    }
    Ok(lock)
}

/// The refusals that stand, in words.
fn refused(place: &PlacePlan, force: bool) -> Option<String> {
    let standing: Vec<String> = place.standing(force).map(ToString::to_string).collect();
    (!standing.is_empty()).then(|| standing.join(". "))
}

/// Deletes snapshots, for who holds the locks.
#[derive(Clone, Copy)]
pub(in crate::engine) struct Deleter<'a> {
    pub(in crate::engine) engine: &'a Engine,
    pub(in crate::engine) instance: &'a Name,
    /// Of the state folder.
    pub(in crate::engine) node: &'a str,
    /// What was known when it was decided what is deleted.
    pub(in crate::engine) marks: &'a Marks,
}

impl Deleter<'_> {
    /// Deletes what `place` says.
    pub(in crate::engine) async fn carry_out(
        self,
        open: &OpenStorage,
        place: &PlacePlan,
        force: bool,
    ) -> Pruned {
        let mut pruned =
            Pruned::refused(place.strategy.clone(), place.storage.clone(), refused(place, force));
        pruned.kept = place.snapshots.iter().filter(|snapshot| snapshot.decision.keep).count();
        if pruned.problem.is_some() || place.rests.is_some() {
            pruned.kept = place.snapshots.len();
            return pruned;
        }
        if let Err(error) = accept_gone(self.engine, self.instance, open, place).await {
            tracing::warn!("{error}");
        }
        let going: Vec<(SnapshotId, u64)> = place
            .to_delete()
            .map(|snapshot| (snapshot.decision.id.clone(), snapshot.stored_bytes))
            .collect();
        self.delete_each(open, &going, &mut pruned).await;
        for id in &pruned.deleted {
            tracing::info!(storage = %open.name, snapshot = %id, "deleted");
        }
        pruned
    }

    /// Deletes snapshots, each given with the bytes that it takes, in this order, until the first
    /// that cannot be deleted. `pruned` says what came of it.
    pub(in crate::engine) async fn delete_each(
        self,
        open: &OpenStorage,
        going: &[(SnapshotId, u64)],
        pruned: &mut Pruned,
    ) {
        let count = going.len();
        for (number, (id, bytes)) in going.iter().enumerate() {
            if self.engine.cancel.is_cancelled() {
                pruned.problem = Some(format!(
                    "Cancelled after {number} of {count} snapshots; the others were kept"
                ));
                break;
            }
            self.engine.progress.begin(
                format!("deleting in {}, {} of {count}", open.name, number.saturating_add(1)),
                None,
            );
            match self.delete(&pruned.strategy, open, id).await {
                Ok(()) => {
                    pruned.deleted.push(id.clone());
                    pruned.freed_bytes = pruned.freed_bytes.saturating_add(*bytes);
                }
                Err(error) => {
                    if error.is_gone() {
                        pruned.deleted.push(id.clone());
                    }
                    pruned.problem = Some(format!("`{id}` {error}"));
                    pruned.code = error.code();
                    break;
                }
            }
        }
    }

    /// Deletes one snapshot: its manifest first, then all else. A heartbeat of ours says who is at
    /// work there, so that whoever comes next, after a crash too, knows whose the rest is.
    pub(in crate::engine) async fn delete(
        self,
        strategy: &Name,
        open: &OpenStorage,
        id: &SnapshotId,
    ) -> Result<(), Undeleted> {
        let Self { engine, instance, node, marks } = self;
        let storage = open.storage.as_ref();
        let strategy_folder = SnapshotRef::strategy_folder(instance, strategy);
        let folder = format!("{strategy_folder}{id}/");
        let of =
            SnapshotRef { instance: instance.clone(), strategy: strategy.clone(), id: id.clone() };
        let heartbeat = Heartbeat {
            deleting: true,
            ..Heartbeat::new(node.to_owned(), engine.clock.now_seconds())
        };
        let beat = format!("{folder}{RUN_KEY}");
        let beats = match storage.replace(&beat, heartbeat.to_bytes()).await {
            Err(error) if error.is_about_reaching() => return Err(Undeleted::There(error)),
            // The disk may be full.
            Err(error) => {
                tracing::debug!(storage = %open.name, "no heartbeat while deleting: {error}");
                false
            }
            Ok(()) => true,
        };
        // Marks were read a while ago, and another machine may have held it since.
        let deleted = match marks.refuses_now(open, &of, engine.clock.now()).await {
            Ok(None) => {
                storage.delete(&format!("{folder}{MANIFEST_KEY}")).await.map_err(Undeleted::There)
            }
            Ok(Some(reason)) => Err(Undeleted::Held(reason)),
            Err(error) => Err(Undeleted::There(error)),
        };
        if let Err(error) = deleted {
            // Where no answer came the manifest may be gone, and then the heartbeat tells whose the
            // rest is.
            let unanswered = matches!(
                &error,
                Undeleted::There(error) if error.may_pass() || error.is_cancelled()
            );
            if beats && !unanswered && storage.delete(&beat).await.is_err() {
                // Who may not delete says at least that nobody is deleting: a hold would wait.
                let over = Heartbeat { deleting: false, ..heartbeat };
                if let Err(error) = storage.replace(&beat, over.to_bytes()).await {
                    tracing::debug!(storage = %open.name, "could not take the heartbeat away \
                        again: {error}");
                }
            }
            return Err(error);
        }
        if let Some(catalog) = engine.catalog().await
            && let Err(error) = catalog.forget(&storage.place(), instance, strategy, id).await
        {
            tracing::warn!("{error}");
        }
        let removed = leftovers::remove(storage, &strategy_folder, id).await;
        // With the heartbeat the next run knows whose the rest is; without it the rest waits for a
        // day. The manifest has made room for it.
        if removed.is_err()
            && !beats
            && let Err(error) = storage.replace(&beat, heartbeat.to_bytes()).await
        {
            tracing::debug!(storage = %open.name, "no heartbeat beside what is left: {error}");
        }
        removed.map_err(Undeleted::Rest)
    }
}

/// What is gone from a place is as it should be from now on: it was explained, or the operator
/// overruled the refusal.
async fn accept_gone(
    engine: &Engine,
    instance: &Name,
    open: &OpenStorage,
    place: &PlacePlan,
) -> Result<(), CatalogError> {
    let known_as = open.storage.place();
    let Some(catalog) = engine.catalog().await else { return Ok(()) };
    for refusal in &place.refusals {
        let Refusal::Shrunk { gone } = refusal else { continue };
        for id in gone {
            let (instance, strategy) = (instance.clone(), place.strategy.clone());
            let of = SnapshotRef { instance, strategy, id: id.clone() };
            if let Err(error) = acknowledge(engine, open, &of).await {
                tracing::warn!("{error}");
            }
        }
    }
    for gone in catalog.gone(&known_as, instance, &place.strategy).await? {
        catalog.forget(&known_as, instance, &place.strategy, &gone.id).await?;
    }
    Ok(())
}

/// Why a snapshot was not deleted, or not all of it. Its words go on after the id.
#[derive(Debug, thiserror::Error)]
pub(in crate::engine) enum Undeleted {
    /// It is as it was.
    #[error("could not be deleted: {}{}", .0, hint(.0))]
    There(#[source] StorageError),
    /// Somebody held it since it was decided on.
    #[error("was held meanwhile, and stays: {0}")]
    Held(String),
    /// It is a snapshot no more, but not all that it took is freed.
    #[error("is deleted, but not all that it took: {0}. A later run or pruning collects the rest")]
    Rest(#[source] StorageError),
}

impl Undeleted {
    /// Whether the snapshot is gone all the same.
    pub(in crate::engine) fn is_gone(&self) -> bool {
        matches!(self, Self::Rest(_))
    }

    fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::There(error) | Self::Rest(error) => Some(error.code()),
            Self::Held(_) => None,
        }
    }
}

fn hint(error: &StorageError) -> &'static str {
    match error.kind() {
        StorageErrorKind::Denied => {
            ". Set `prune = false` for this storage where other credentials prune it"
        }
        StorageErrorKind::Unavailable => ". It may be gone all the same: look at `backup list`",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::snapshots::mark_writer::write_mark;
    use crate::engine::snapshots::marks::{Released, read_marks};
    use crate::model::{Cancel, Mark, Says};
    use crate::source::process::Environment;
    use crate::storage::StorageConfig;
    use crate::storage::local::LocalConfig;

    const ID: &str = "20261121T013000Z-7f3a9c";

    struct Place {
        dir: tempfile::TempDir,
        engine: Engine,
        open: OpenStorage,
        of: SnapshotRef,
    }

    impl Place {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("store/app/daily").join(ID);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(MANIFEST_KEY), "one").unwrap();
            let config = StorageConfig::Local(LocalConfig::from_path(dir.path().join("store")));
            let name: Name = "local".parse().unwrap();
            let open = OpenStorage::open(&name, &config, &Cancel::new()).await.unwrap();
            let of = SnapshotRef {
                instance: "app".parse().unwrap(),
                strategy: "daily".parse().unwrap(),
                id: ID.parse().unwrap(),
            };
            Self { engine: Engine::stateless(Environment::default()), open, of, dir }
        }

        fn mark(&self, salt: u8, says: Says) -> Mark {
            let made = "2026-11-22T05:00:00Z".parse().unwrap();
            Mark::new(self.of.clone(), SnapshotId::new(made, [0, 0, salt]), made, says)
        }

        async fn hold(&self) {
            let hold = self.mark(1, Says::Hold { reason: None, until: None });
            write_mark(&self.open, &hold).await.unwrap();
        }

        async fn marks(&self) -> Marks {
            read_marks(&self.engine, std::slice::from_ref(&self.open), &self.of.instance).await
        }

        /// Deletes the snapshot by what `marks` knew, and says whether it is gone.
        async fn is_deleted(&self, marks: &Marks) -> bool {
            let deleter =
                Deleter { engine: &self.engine, instance: &self.of.instance, node: "node", marks };
            let deleted = deleter.delete(&self.of.strategy, &self.open, &self.of.id).await;
            let is_there = self.dir.path().join("store").join(self.of.manifest_key()).exists();
            assert_eq!(deleted.is_ok(), !is_there, "{deleted:?}");
            assert!(deleted.is_ok() || matches!(deleted, Err(Undeleted::Held(_))), "{deleted:?}");
            !is_there
        }
    }

    #[tokio::test]
    async fn a_hold_made_after_the_plan_holds() {
        let place = Place::new().await;
        let planned = place.marks().await;
        place.hold().await;
        assert!(!place.is_deleted(&planned).await);
    }

    #[tokio::test]
    async fn a_mark_that_cannot_be_read_meanwhile_holds() {
        let place = Place::new().await;
        let planned = place.marks().await;
        let key = place.mark(1, Says::Hold { reason: None, until: None }).key();
        place.open.storage.replace(&key, "{}".into()).await.unwrap();
        assert!(!place.is_deleted(&planned).await);
    }

    #[tokio::test]
    async fn a_release_that_only_the_plan_knows_counts() {
        let place = Place::new().await;
        place.hold().await;
        let (ends, _) = place.marks().await.releasable(&place.of, Released::Hold);
        let release = place.mark(2, Says::Release { ends, reason: None, forgotten: false });
        write_mark(&place.open, &release).await.unwrap();
        // As where it stands in another storage.
        let planned = place.marks().await;
        place.open.storage.delete(&release.key()).await.unwrap();
        assert!(place.is_deleted(&planned).await);
    }
}
