//! Carrying out a plan: who else is kept out, and how a snapshot is deleted.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::catalog::CatalogError;
use crate::engine::context::{Engine, OpenStorage, not_twice};
use crate::engine::error::EngineError;
use crate::engine::prune::{PlacePlan, PrunePlan, PruneScope, plan_prune};
use crate::engine::snapshots::decisions::rests;
use crate::engine::snapshots::list::read_whole;
use crate::engine::state::locks::{ReadLock, StateLock};
use crate::engine::state::node::node;
use crate::engine::write::heartbeat::Heartbeat;
use crate::engine::write::{leftovers, writer};
use crate::model::{MANIFEST_KEY, Mark, Name, RUN_KEY, Says, SnapshotId, SnapshotRef};
use crate::report::Pruned;
use crate::storage::{Storage, StorageError, StorageErrorKind};

/// What a pruning did.
#[derive(Debug, Clone, Serialize)]
pub struct PruneReport {
    /// The plan that it carried out.
    pub plan: PrunePlan,
    /// What came of it, by place, as in the plan.
    pub pruned: Vec<Pruned>,
}

/// Prunes `scope`: plans under the locks, and deletes. With `expected`, only a plan is carried out
/// whose digest, in hex, begins with it. `force` overrules the refusals that
/// [yield](super::Refusal::yields) to it.
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
    let plan = plan_prune(engine, scope).await;
    let digest = plan.digest.hex();
    if let Some(expected) = expected.filter(|expected| !digest.starts_with(expected)) {
        return Err(EngineError::Request(format!(
            "The plan is not `{expected}` any more but `{}`: the snapshots, or what is said of \
             them, have changed since. Nothing was deleted. Look \
             at `backup prune --plan` again",
            digest.get(..expected.len()).unwrap_or(&digest)
        )));
    }
    let mut pruned = Vec::new();
    for place in &plan.places {
        let unlocked = locks.unlocked.get(&(place.strategy.clone(), place.storage.clone()));
        let open = scope
            .storages
            .iter()
            .filter_map(|open| open.as_ref().ok())
            .find(|open| open.name == place.storage);
        pruned.push(match open.filter(|_| unlocked.is_none()) {
            Some(open) => carry_out(engine, &instance.name, open, place, &locks.node, force).await,
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

/// Deletes what `place` says, for who holds the locks.
pub(in crate::engine) async fn carry_out(
    engine: &Engine,
    instance: &Name,
    open: &OpenStorage,
    place: &PlacePlan,
    node: &str,
    force: bool,
) -> Pruned {
    let mut pruned =
        Pruned::refused(place.strategy.clone(), place.storage.clone(), refused(place, force));
    pruned.kept = place.snapshots.iter().filter(|snapshot| snapshot.decision.keep).count();
    if pruned.problem.is_some() || place.rests.is_some() {
        pruned.kept = place.snapshots.len();
        return pruned;
    }
    if let Err(error) = accept_gone(engine, instance, open, place).await {
        tracing::warn!("{error}");
    }
    let going: Vec<(SnapshotId, u64)> = place
        .to_delete()
        .map(|snapshot| (snapshot.decision.id.clone(), snapshot.stored_bytes))
        .collect();
    delete_each(engine, instance, open, &going, node, &mut pruned).await;
    for id in &pruned.deleted {
        tracing::info!(storage = %open.name, snapshot = %id, "deleted");
    }
    pruned
}

/// Deletes snapshots, each given with the bytes that it takes, in this order, until the first that
/// cannot be deleted. `pruned` says what came of it.
pub(in crate::engine) async fn delete_each(
    engine: &Engine,
    instance: &Name,
    open: &OpenStorage,
    going: &[(SnapshotId, u64)],
    node: &str,
    pruned: &mut Pruned,
) {
    let count = going.len();
    for (number, (id, bytes)) in going.iter().enumerate() {
        if engine.cancel.is_cancelled() {
            pruned.problem = Some(format!(
                "Cancelled after {number} of {count} snapshots; the others were kept"
            ));
            break;
        }
        engine
            .progress
            .begin(format!("deleting in {}, {} of {count}", open.name, number + 1), None);
        match delete(engine, instance, &pruned.strategy, open, id, node).await {
            Ok(()) => {
                pruned.deleted.push(id.clone());
                pruned.freed_bytes += bytes;
            }
            Err(error) => {
                if error.is_gone() {
                    pruned.deleted.push(id.clone());
                }
                pruned.problem = Some(format!("`{id}` {error}"));
                break;
            }
        }
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

/// Deletes one snapshot: its manifest first, then all else. A heartbeat of ours says who is at work
/// there, so that whoever comes next, after a crash too, knows whose the rest is.
pub(in crate::engine) async fn delete(
    engine: &Engine,
    instance: &Name,
    strategy: &Name,
    open: &OpenStorage,
    id: &SnapshotId,
    node: &str,
) -> Result<(), Undeleted> {
    let storage = open.storage.as_ref();
    let strategy_folder = SnapshotRef::strategy_folder(instance, strategy);
    let folder = format!("{strategy_folder}{id}/");
    let heartbeat = Heartbeat::new(node.to_owned(), engine.clock.now_seconds());
    let beat = format!("{folder}{RUN_KEY}");
    match storage.replace(&beat, heartbeat.to_bytes()).await {
        Err(error) if error.is_about_reaching() => return Err(Undeleted::There(error)),
        // The disk may be full, or the credentials may only delete. Without it the rest is
        // collected a day later, if need be.
        Err(error) => tracing::debug!(storage = %open.name, "no heartbeat while deleting: {error}"),
        Ok(()) => {}
    }
    // Marks were read a while ago, and another machine may have held it since.
    let deleted = match held_now(engine, storage, instance, id).await {
        Ok(()) => {
            storage.delete(&format!("{folder}{MANIFEST_KEY}")).await.map_err(Undeleted::There)
        }
        Err(error) => Err(error),
    };
    if let Err(error) = deleted {
        // Where no answer came the manifest may be gone, and then the heartbeat tells whose the
        // rest is.
        let unanswered = matches!(
            &error,
            Undeleted::There(error) if error.may_pass() || error.is_cancelled()
        );
        if !unanswered && let Err(error) = storage.delete(&beat).await {
            tracing::debug!(storage = %open.name, "could not take the heartbeat away again: \
                {error}");
        }
        return Err(error);
    }
    if let Some(catalog) = engine.catalog().await
        && let Err(error) = catalog.forget(&storage.place(), instance, strategy, id).await
    {
        tracing::warn!("{error}");
    }
    leftovers::remove(storage, &strategy_folder, id).await.map_err(Undeleted::Rest)
}

/// An error when the storage has a hold of the snapshot now.
async fn held_now(
    engine: &Engine,
    storage: &dyn Storage,
    instance: &Name,
    id: &SnapshotId,
) -> Result<(), Undeleted> {
    let key = Mark::hold_key(instance, id);
    match storage.stat(&key).await {
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(Undeleted::There(error)),
        Ok(_) => {}
    }
    match read_whole(storage, &key).await {
        // Released just now.
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(Undeleted::There(error)),
        Ok(body) => match Mark::from_bytes(&body, &key) {
            Ok(Mark { says: Says::Hold { until: Some(until), .. }, .. })
                if until <= engine.clock.now() =>
            {
                Ok(())
            }
            Ok(_) => Err(Undeleted::Held(format!("`{key}` is there"))),
            Err(error) => Err(Undeleted::Held(format!("`{key}` cannot be read: {error}"))),
        },
    }
}
