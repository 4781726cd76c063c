//! Snapshots that were seen in a storage and are gone from it, though nobody is known to have
//! deleted them.

use std::num::NonZeroU32;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::catalog::{CachedManifest, CatalogError};
use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::EngineError;
use crate::engine::snapshots::decisions::decisions;
use crate::engine::snapshots::list::{BadManifest, Listing, Snapshot};
use crate::engine::snapshots::mark_writer::{new_mark, write_mark};
use crate::engine::snapshots::marks::{Marks, read_marks};
use crate::engine::snapshots::present::is_future;
use crate::model::{Manifest, Name, Says, SnapshotId, SnapshotRef};
use crate::retention::{Count, Policy};

/// A snapshot that is gone from a storage, though the rules would keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vanished {
    pub storage: Name,
    pub strategy: Name,
    pub id: SnapshotId,
}

/// The snapshots of `strategy` that are gone from a storage, though no pruning of ours took them,
/// none of another host that keeps to the same policy would have, and nobody has said that it is
/// meant; oldest first. `present` are those that are there.
///
/// With `settles`, what the policy does not keep is explained by it and forgotten: a policy that
/// keeps more later says nothing against it.
#[expect(
    clippy::too_many_arguments,
    reason = "what decides of what is there decides of what is gone"
)]
pub(in crate::engine) async fn unexplained(
    engine: &Engine,
    instance: &Name,
    strategy: &Strategy,
    (policy, settles): (&Policy, bool),
    open: &OpenStorage,
    present: &[Snapshot],
    marks: &Marks,
    now: DateTime<Utc>,
) -> Result<Vec<SnapshotId>, CatalogError> {
    let Some(catalog) = engine.catalog().await else { return Ok(Vec::new()) };
    let place = open.storage.place();
    let mut gone = catalog.gone(&place, instance, &strategy.name).await?;
    gone.retain(|one| !marks.is_forgotten(&open.name, &strategy.name, &one.id, one.modified));
    let mut all = present.to_vec();
    for manifest in &gone {
        let CachedManifest { instance, strategy, id, body, .. } = manifest;
        all.push(Snapshot {
            storage: open.name.clone(),
            instance: instance.clone(),
            strategy: strategy.clone(),
            id: id.clone(),
            manifest: Manifest::from_bytes(body, instance, strategy, id).map_err(BadManifest::from),
            flaws: Vec::new(),
            listed_bytes: 0,
            is_future: is_future(id, now),
            is_suspect: false,
            damage: None,
        });
    }
    let is_gone = |id: &SnapshotId| gone.iter().any(|manifest| manifest.id == *id);
    let (missed, explained): (Vec<_>, Vec<_>) =
        decisions(strategy, policy, &all, &marks.as_of(&open.name), now)
            .into_iter()
            .filter(|decision| is_gone(&decision.id))
            .partition(|decision| decision.keep);
    // What is held is not known where marks cannot be read.
    if settles && marks.unread().is_empty() {
        for decision in explained {
            catalog.forget(&place, instance, &strategy.name, &decision.id).await?;
        }
    }
    let mut missed: Vec<SnapshotId> = missed.into_iter().map(|decision| decision.id).collect();
    missed.reverse();
    Ok(missed)
}

/// What is gone from `storages`, as they were listed, of the strategies of `instance`, or of the
/// one of that name.
///
/// Where another configuration prunes (`prune = false`), its rules are not known here: only the
/// newest snapshot is missed, which every rule keeps.
pub async fn vanished(
    engine: &Engine,
    instance: &Instance,
    storages: &[OpenStorage],
    listing: &Listing,
    only: Option<&Name>,
) -> Vec<Vanished> {
    let found = look(engine, instance, storages, listing, only).await;
    found.unwrap_or_else(|error| {
        tracing::warn!("{error}");
        Vec::new()
    })
}

async fn look(
    engine: &Engine,
    instance: &Instance,
    storages: &[OpenStorage],
    listing: &Listing,
    only: Option<&Name>,
) -> Result<Vec<Vanished>, CatalogError> {
    let Some(catalog) = engine.catalog().await else { return Ok(Vec::new()) };
    let mut places = Vec::new();
    let is_listed = |name: &Name| listing.unlisted.iter().all(|(unlisted, _)| unlisted != name);
    let strategies = instance.strategies.values();
    for strategy in strategies.filter(|one| only.is_none_or(|only| *only == one.name)) {
        for open in storages.iter().filter(|open| is_listed(&open.name)) {
            let place = open.storage.place();
            if !catalog.gone(&place, &instance.name, &strategy.name).await?.is_empty() {
                places.push((strategy, open));
            }
        }
    }
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let marks = read_marks(engine, storages, &instance.name).await;
    let now = engine.clock.now();
    let everything = Policy::default();
    let newest = Policy { keep_last: Some(Count::Limited(NonZeroU32::MIN)), ..Policy::default() };
    let mut all = Vec::new();
    for (strategy, open) in places {
        let rules = instance.rules(strategy, &open.name);
        let policy = if rules.prune {
            (rules.policy.unwrap_or(&everything), true)
        } else {
            (&newest, false)
        };
        let here = |one: &&Snapshot| {
            (&one.storage, &one.instance, &one.strategy)
                == (&open.name, &instance.name, &strategy.name)
        };
        let present: Vec<Snapshot> = listing.snapshots.iter().filter(here).cloned().collect();
        let missed =
            unexplained(engine, &instance.name, strategy, policy, open, &present, &marks, now);
        all.extend(missed.await?.into_iter().map(|id| Vanished {
            storage: open.name.clone(),
            strategy: strategy.name.clone(),
            id,
        }));
    }
    Ok(all)
}

/// Says in the storage that it is meant that a snapshot is gone from it, so that this machine and
/// others miss it no more.
///
/// # Errors
/// When the mark could not be made. One that cannot be written is logged: here it is known.
pub(in crate::engine) async fn acknowledge(
    engine: &Engine,
    open: &OpenStorage,
    of: &SnapshotRef,
) -> Result<(), EngineError> {
    let says = Says::Release { ends: Vec::new(), reason: None, forgotten: true };
    let mark = new_mark(engine, of, says)?;
    if let Err(error) = write_mark(open, &mark).await {
        tracing::warn!(storage = %open.name, "other machines are not told that `{}` was deleted: \
            {error}", of.id);
    }
    if let Some(catalog) = engine.catalog().await
        && let Err(error) =
            catalog.forget(&open.storage.place(), &of.instance, &of.strategy, &of.id).await
    {
        tracing::warn!("{error}");
    }
    Ok(())
}
