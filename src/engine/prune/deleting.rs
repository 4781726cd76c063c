//! Carrying out a plan: who else is kept out, and how a snapshot is deleted.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{PlacePlan, PrunePlan, PruneScope, plan_prune, rests};
use crate::catalog::CatalogError;
use crate::engine::lock::{Heartbeat, ReadLock, StateLock, node};
use crate::engine::{Engine, EngineError, OpenStorage, sweep};
use crate::model::{MANIFEST_KEY, Name, RUN_KEY, SnapshotId};
use crate::report::Pruned;
use crate::storage::StorageError;

/// What a pruning did.
#[derive(Debug, Clone, Serialize)]
pub struct PruneReport {
    /// The plan that it carried out.
    pub plan: PrunePlan,
    /// What came of it, by place, as in the plan.
    pub pruned: Vec<Pruned>,
}

impl PruneReport {
    /// Whether all was done that the plan says, and nothing was refused.
    pub fn is_well(&self) -> bool {
        self.pruned.iter().all(|pruned| pruned.problem.is_none())
    }
}

/// Prunes `scope`: plans under the locks, and deletes. With `expected`, only a plan is carried out whose digest, in hex, begins with
/// it. `force` overrules the refusals that
/// [yield](Refusal::yields) to it.
///
/// # Errors
/// [`EngineError::Locked`] while a run writes or a restore reads, [`EngineError::Request`] when the plan is not the expected one: then nothing was
/// deleted.
pub async fn prune(
    engine: &Engine,
    scope: PruneScope<'_>,
    expected: Option<&str>,
    force: bool,
) -> Result<PruneReport, EngineError> {
    let instance = scope.instance;
    let deleting = scope.strategies().flat_map(|strategy| {
        let opened = scope.places(strategy).filter_map(move |(_, open)| Some((&strategy.name, open.ok()?)));
        opened.filter(move |(_, open)| rests(instance, strategy, &open.name).is_none())
    });
    let locks = exclude(engine, &instance.name, &deleting.collect::<Vec<_>>()).await?;
    let plan = plan_prune(engine, scope).await;
    let digest = plan.digest.hex();
    if let Some(expected) = expected.filter(|expected| !digest.starts_with(expected)) {
        return Err(EngineError::Request(format!(
            "The plan is not `{expected}` any more but `{}`: the snapshots, or what is said of them, have changed since. Nothing was deleted. Look \
             at `backup prune --plan` again",
            digest.get(..expected.len()).unwrap_or(&digest)
        )));
    }
    let mut pruned = Vec::new();
    for place in &plan.places {
        let open = scope.storages.iter().filter_map(|open| open.as_ref().ok()).find(|open| open.name == place.storage);
        pruned.push(match open {
            Some(open) => carry_out(engine, &instance.name, open, place, &locks.node, force).await,
            None => Pruned::refused(place.strategy.clone(), place.storage.clone(), refused(place, force)),
        });
    }
    drop(locks);
    Ok(PruneReport { plan, pruned })
}

/// What who deletes holds: nobody else writes or reads there meanwhile, on this machine or another.
pub(in crate::engine) struct Exclusive {
    /// Of the state folder.
    pub(in crate::engine) node: String,
    _held: Vec<Box<dyn Send + Sync>>,
}

/// Excludes writers and readers of the strategies of `instance` in `places`, and collects what dead runs and prunings left there.
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
    for (strategy, open) in places {
        match exclude_writers(open, &format!("{instance}/{strategy}/"), &node).await {
            Ok(lock) => held.extend(lock),
            Err(StorageError::Busy { address, folder }) => {
                let holder = format!("it holds the lock of `{folder}` in `{address}`");
                return Err(EngineError::Locked { strategy: (*strategy).clone(), holder });
            }
            // What cannot be looked into cannot be listed either, and that is refused.
            Err(error) => tracing::warn!(storage = %open.name, "{error}"),
        }
    }
    Ok(Exclusive { node, _held: held })
}

async fn exclude_writers(
    open: &OpenStorage,
    folder: &str,
    node: &str,
) -> Result<Option<Box<dyn Send + Sync>>, StorageError> {
    let storage = open.storage.as_ref();
    let lock = storage.lock(folder.trim_end_matches('/')).await?;
    let leftovers = sweep::look(storage, folder, node, None).await?;
    if let Some(who) = leftovers.alive.first() {
        return Err(StorageError::Busy { address: storage.address(), folder: format!("{folder} ({who})") });
    }
    match sweep::sweep(storage, folder, &leftovers, lock.is_some()).await {
        Ok(0) => {}
        Ok(count) => {
            tracing::info!(storage = %open.name, "collected what {count} unfinished run(s) or pruning(s) left");
        }
        Err(error) => {
            tracing::warn!(storage = %open.name, "could not collect what an unfinished run left: {error}");
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
    let mut pruned = Pruned::refused(place.strategy.clone(), place.storage.clone(), refused(place, force));
    pruned.kept = place.snapshots.iter().filter(|snapshot| snapshot.decision.keep).count();
    if pruned.problem.is_some() || place.rests.is_some() {
        pruned.kept = place.snapshots.len();
        return pruned;
    }
    if let Err(error) = accept_gone(engine, instance, place).await {
        tracing::warn!("{error}");
    }
    let count = place.to_delete().count();
    for (number, snapshot) in place.to_delete().enumerate() {
        if engine.cancel.is_cancelled() {
            pruned.problem = Some(format!("Cancelled after {number} of {count} snapshots; the next pruning goes on"));
            break;
        }
        engine.progress.begin(format!("pruning {}, {} of {count}", open.name, number + 1), None);
        match delete(engine, instance, &place.strategy, open, &snapshot.decision.id, node).await {
            Ok(()) => {
                tracing::info!(storage = %open.name, snapshot = %snapshot.decision.id, "deleted");
                pruned.deleted.push(snapshot.decision.id.clone());
                pruned.freed_bytes += snapshot.stored_bytes;
            }
            Err(error) => {
                let hint = match error {
                    StorageError::Denied { .. } => {
                        ". Set `prune = false` for this storage where other credentials prune it"
                    }
                    _ => "",
                };
                pruned.problem = Some(format!("`{}` could not be deleted: {error}{hint}", snapshot.decision.id));
                break;
            }
        }
    }
    pruned
}

/// What is gone from a place is as it should be from now on: it was explained, or the operator overruled the refusal.
async fn accept_gone(engine: &Engine, instance: &Name, place: &PlacePlan) -> Result<(), CatalogError> {
    let Some(catalog) = engine.catalog().await else { return Ok(()) };
    for gone in catalog.gone(&place.address, instance, &place.strategy).await? {
        catalog.forget(&place.address, instance, &place.strategy, &gone.id).await?;
    }
    Ok(())
}

/// Deletes one snapshot: its manifest first, then all else. A heartbeat of ours says who is at work there, so that whoever comes next, after a crash too,
/// knows whose the rest is.
pub(in crate::engine) async fn delete(
    engine: &Engine,
    instance: &Name,
    strategy: &Name,
    open: &OpenStorage,
    id: &SnapshotId,
    node: &str,
) -> Result<(), StorageError> {
    let storage = open.storage.as_ref();
    let strategy_folder = format!("{instance}/{strategy}/");
    let folder = format!("{strategy_folder}{id}/");
    let heartbeat = Heartbeat::new(node.to_owned(), engine.clock.now_seconds());
    let beat = format!("{folder}{RUN_KEY}");
    match storage.replace(&beat, heartbeat.to_bytes()).await {
        Err(error) if error.is_about_reaching() => return Err(error),
        // The disk may be full, or the credentials may only delete. Without it the rest is collected a day later, if need be.
        Err(error) => tracing::debug!(storage = %open.name, "no heartbeat while deleting: {error}"),
        Ok(()) => {}
    }
    if let Err(error) = storage.delete(&format!("{folder}{MANIFEST_KEY}")).await {
        if let Err(error) = storage.delete(&beat).await {
            tracing::debug!(storage = %open.name, "could not take the heartbeat away again: {error}");
        }
        return Err(error);
    }
    if let Some(catalog) = engine.catalog().await
        && let Err(error) = catalog.forget(&storage.address(), instance, strategy, id).await
    {
        tracing::warn!("{error}");
    }
    sweep::remove(storage, &strategy_folder, id).await
}
