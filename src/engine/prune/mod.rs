//! Deleting what retention does not keep: a plan that gives a reason for each snapshot, and its
//! execution.
//!
//! Everything here fails closed. What could not be listed, read or understood is a refusal, and a
//! refusal means that nothing is deleted there. A snapshot's manifest is deleted first, so that a
//! pruning that dies leaves no half snapshot but a folder that the next one collects.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub(in crate::engine) mod deleting;
mod forget;
pub(in crate::engine) mod refusal;

use chrono::{DateTime, Utc};
use futures::future::join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Serialize, Serializer};

use crate::catalog::{CachedManifest, CatalogError};
use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::snapshots::decisions::{decisions, rests};
use crate::engine::snapshots::documents::PARALLEL;
use crate::engine::snapshots::list::{
    BadManifest, Listing, Selection, Snapshot, list_without_marks,
};
use crate::engine::snapshots::marks::{Marks, read_marks};
use crate::engine::snapshots::present::{is_future, present};
use crate::model::{
    Completeness, Digest, Digester, MANIFEST_KEY, Manifest, Name, SnapshotId, total,
};
use crate::retention::{Decision, Policy};
use crate::storage::{Storage, StorageError};

pub use deleting::{PruneReport, prune};
pub use forget::forget;
pub use refusal::Refusal;

/// What is to be pruned.
#[derive(Clone, Copy)]
pub struct PruneScope<'a> {
    pub instance: &'a Instance,
    /// Its storages, each opened or with the reason why it could not be. All of them: what is held
    /// in one is held in the others too.
    pub storages: &'a [Result<OpenStorage, (Name, String)>],
    /// Of this strategy only.
    pub strategy: Option<&'a Name>,
    /// On this storage only.
    pub storage: Option<&'a Name>,
}

/// What a pruning would do.
#[derive(Debug, Clone, Serialize)]
pub struct PrunePlan {
    /// Each strategy on each of its storages.
    pub places: Vec<PlacePlan>,
    /// Of all that decides what is deleted: snapshots, manifests, decisions. Two plans with the
    /// same digest delete the same.
    pub digest: Digest,
}

/// What a pruning would do with the snapshots of one strategy on one storage.
#[derive(Debug, Clone, Serialize)]
pub struct PlacePlan {
    pub strategy: Name,
    pub storage: Name,
    pub address: String,
    /// Why nothing is pruned here, where that is as it was configured.
    pub rests: Option<String>,
    /// Why nothing may be deleted here now, whatever the decisions say.
    #[serde(serialize_with = "refusal::with_messages")]
    pub refusals: Vec<Refusal>,
    /// Every snapshot that there is, newest first; serialized oldest first, as everywhere.
    #[serde(serialize_with = "oldest_first")]
    pub snapshots: Vec<PlannedSnapshot>,
}

fn oldest_first<S: Serializer>(
    snapshots: &[PlannedSnapshot],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(snapshots.iter().rev())
}

/// What would become of one snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedSnapshot {
    /// What retention says of it.
    #[serde(flatten)]
    pub decision: Decision,
    /// Whether content is missing; none where its manifest cannot be read.
    pub completeness: Option<Completeness>,
    /// Bytes of its artifacts, by the manifest; of all that lies in its folder, where that cannot
    /// be read.
    pub stored_bytes: u64,
}

impl PlacePlan {
    /// What would be deleted, newest first: a pruning that is cut off is finished by the next one
    /// with the same decisions. In any other order the oldest that is left could be another one,
    /// and be kept as such.
    pub fn to_delete(&self) -> impl Iterator<Item = &PlannedSnapshot> {
        self.snapshots.iter().filter(|snapshot| !snapshot.decision.keep)
    }

    /// Bytes that would be freed.
    pub fn freed_bytes(&self) -> u64 {
        total(self.to_delete().map(|snapshot| snapshot.stored_bytes))
    }

    /// The refusals that stand, where those that `force` overrules do not count.
    pub fn standing(&self, force: bool) -> impl Iterator<Item = &Refusal> {
        self.refusals.iter().filter(move |refusal| !(force && refusal.yields()))
    }
}

impl PrunePlan {
    fn new(places: Vec<PlacePlan>) -> Self {
        let mut digester = Digester::new();
        for place in &places {
            for snapshot in &place.snapshots {
                let line = format!(
                    "{} {} {} {} {} {}\n",
                    place.strategy,
                    place.storage,
                    place.address,
                    snapshot.decision.id,
                    snapshot.stored_bytes,
                    snapshot.decision.keep
                );
                digester.update(line.as_bytes());
            }
        }
        Self { places, digest: digester.finish() }
    }

    /// How many snapshots would be deleted.
    pub fn delete_count(&self) -> usize {
        self.places.iter().flat_map(PlacePlan::to_delete).count()
    }

    /// Bytes that would be freed.
    pub fn freed_bytes(&self) -> u64 {
        total(self.places.iter().map(PlacePlan::freed_bytes))
    }

    /// Whether something is refused that `force` does not overrule.
    pub fn is_refused(&self, force: bool) -> bool {
        self.places.iter().any(|place| place.standing(force).next().is_some())
    }
}

/// What a pruning of `scope` would do now. Nothing is changed.
pub async fn plan_prune(engine: &Engine, scope: PruneScope<'_>) -> PrunePlan {
    plan_with(engine, scope, &marks_of(engine, scope).await).await
}

async fn plan_with(engine: &Engine, scope: PruneScope<'_>, marks: &Marks) -> PrunePlan {
    let mut places = Vec::new();
    for strategy in scope.strategies() {
        let planning = scope.places(strategy).map(|(name, open)| async move {
            match open {
                Ok(open) => plan_place(engine, scope.instance, strategy, open, marks).await,
                Err(problem) => {
                    let refusals = vec![Refusal::Unreachable { problem: problem.clone() }];
                    let (strategy, address) = (strategy.name.clone(), String::new());
                    PlacePlan {
                        strategy,
                        storage: name.clone(),
                        address,
                        rests: None,
                        refusals,
                        snapshots: Vec::new(),
                    }
                }
            }
        });
        places.extend(join_all(planning).await);
    }
    PrunePlan::new(places)
}

async fn marks_of(engine: &Engine, scope: PruneScope<'_>) -> Marks {
    let opened: Vec<OpenStorage> =
        scope.storages.iter().filter_map(|open| open.as_ref().ok()).cloned().collect();
    let mut marks = read_marks(engine, &opened, &scope.instance.name).await;
    marks.unlisted.extend(scope.storages.iter().filter_map(|open| open.as_ref().err()).cloned());
    marks
}

impl<'a> PruneScope<'a> {
    fn strategies(self) -> impl Iterator<Item = &'a Strategy> {
        let all = self.instance.strategies.values();
        all.filter(move |strategy| self.strategy.is_none_or(|wanted| *wanted == strategy.name))
    }

    /// The storages of `strategy`, and those that have a retention of their own: copies of its
    /// snapshots may be there.
    fn places(
        self,
        strategy: &'a Strategy,
    ) -> impl Iterator<Item = (&'a Name, Result<&'a OpenStorage, &'a String>)> {
        let all = self.storages.iter().map(|open| match open {
            Ok(open) => (&open.name, Ok(open)),
            Err((name, problem)) => (name, Err(problem)),
        });
        all.filter(move |(name, _)| self.storage.is_none_or(|wanted| wanted == *name)).filter(
            move |(name, _)| {
                let own = self.instance.storage_rules.get(*name);
                strategy.storages.contains(*name) || own.is_some_and(|own| own.retention.is_some())
            },
        )
    }
}

/// What a pruning would do with the snapshots of `strategy` in one storage.
pub(in crate::engine) async fn plan_place(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    open: &OpenStorage,
    marks: &Marks,
) -> PlacePlan {
    let rules = instance.rules(strategy, &open.name);
    let mut plan = PlacePlan {
        strategy: strategy.name.clone(),
        storage: open.name.clone(),
        address: open.storage.address(),
        rests: rests(instance, strategy, &open.name),
        refusals: Vec::new(),
        snapshots: Vec::new(),
    };
    let selection =
        Selection { instance: Some(instance.name.clone()), strategy: Some(strategy.name.clone()) };
    let listing = list_without_marks(engine, std::slice::from_ref(open), &selection).await;
    if let Some((_, problem)) = listing.unlisted.first() {
        plan.refusals
            .push(Refusal::Unreachable { problem: format!("It could not be listed: {problem}") });
        return plan;
    }
    let Listing { snapshots, unexpected, .. } = listing;
    let newest = snapshots.iter().map(|snapshot| &snapshot.id).max();
    let now = present(engine, open, newest).await;
    let everything = Policy::default();
    let policy =
        if plan.rests.is_none() { rules.policy.unwrap_or(&everything) } else { &everything };
    let decisions = decisions(strategy, policy, &snapshots, marks, now);
    plan.snapshots = decisions
        .into_iter()
        .filter_map(|decision| {
            let snapshot = snapshots.iter().find(|snapshot| snapshot.id == decision.id)?;
            Some(PlannedSnapshot {
                completeness: snapshot.manifest.as_ref().ok().map(|manifest| manifest.completeness),
                stored_bytes: snapshot.stored_bytes(),
                decision,
            })
        })
        .collect();
    if plan.rests.is_some() {
        return plan;
    }
    plan.refusals = refusals(&snapshots, marks, now);
    let unexpected = unexpected.into_iter();
    plan.refusals.extend(unexpected.map(|(_, problem)| Refusal::Unexpected { problem }));
    plan.refusals.extend(
        marks.suspects(&strategy.name).into_iter().map(|id| Refusal::Suspect { id: id.clone() }),
    );
    match respect_locks(open.storage.as_ref(), &snapshots, &mut plan.snapshots, now).await {
        Ok(()) => {}
        Err(error) => plan.refusals.push(Refusal::Unreachable {
            problem: format!("It could not be asked what it keeps locked: {error}"),
        }),
    }
    match unexplained(engine, &instance.name, strategy, policy, open, &snapshots, marks, now).await
    {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => plan.refusals.push(Refusal::Shrunk { gone }),
        Err(error) => plan.refusals.push(Refusal::Unreachable { problem: error.to_string() }),
    }
    let (delete, of) = (plan.to_delete().count(), plan.snapshots.len());
    if rules.is_too_much(delete, of) {
        plan.refusals.push(Refusal::TooMany { delete, of, percent: rules.max_delete_percent });
    }
    plan
}

/// The snapshots that are gone from a place, though no pruning of ours took them, and none of
/// another host that keeps to the same policy would have.
#[expect(
    clippy::too_many_arguments,
    reason = "what decides of what is there decides of what is gone"
)]
async fn unexplained(
    engine: &Engine,
    instance: &Name,
    strategy: &Strategy,
    policy: &Policy,
    open: &OpenStorage,
    present: &[Snapshot],
    marks: &Marks,
    now: DateTime<Utc>,
) -> Result<Vec<SnapshotId>, CatalogError> {
    let Some(catalog) = engine.catalog().await else { return Ok(Vec::new()) };
    let gone = catalog.gone(&open.storage.place(), instance, &strategy.name).await?;
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
    let kept = decisions(strategy, policy, &all, &marks.as_of(&open.name), now)
        .into_iter()
        .filter(|decision| decision.keep);
    let mut missed: Vec<SnapshotId> = kept
        .map(|decision| decision.id)
        .filter(|id| gone.iter().any(|manifest| manifest.id == *id))
        .collect();
    missed.reverse();
    Ok(missed)
}

/// Why nothing may be deleted beside these snapshots.
fn refusals(snapshots: &[Snapshot], marks: &Marks, now: DateTime<Utc>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for snapshot in snapshots {
        let id = snapshot.id.clone();
        match &snapshot.manifest {
            Err(bad) => {
                let (problem, newer) = (bad.problem.clone(), !bad.is_damage());
                refusals.push(Refusal::Manifest { id, problem, newer });
            }
            Ok(_) if !snapshot.flaws.is_empty() => {
                refusals.push(Refusal::Damaged { id, problem: snapshot.flaws.join(", ") });
            }
            Ok(_) => {}
        }
    }
    let unread = marks.unread().into_iter();
    refusals.extend(unread.map(|(storage, problem)| Refusal::Mark { storage, problem }));
    if let Some(newest) = snapshots.iter().filter(|one| one.is_future).map(|one| &one.id).max() {
        refusals.push(Refusal::Clock { newest: newest.clone(), now });
    }
    refusals
}

/// Keeps what the storage would not let go anyway.
async fn respect_locks(
    storage: &dyn Storage,
    snapshots: &[Snapshot],
    planned: &mut [PlannedSnapshot],
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    for planned in planned.iter_mut().filter(|planned| !planned.decision.keep) {
        let Some(snapshot) = snapshots.iter().find(|snapshot| snapshot.id == planned.decision.id)
        else {
            continue;
        };
        if let Some(until) = locked(storage, snapshot).await? {
            planned.decision.lock(until, now);
        }
    }
    Ok(())
}

/// Until when any object of the snapshot is locked, if one is; the inner none is a lock without an
/// end.
pub(in crate::engine) async fn locked(
    storage: &dyn Storage,
    snapshot: &Snapshot,
) -> Result<Option<Option<DateTime<Utc>>>, StorageError> {
    let folder = snapshot.folder();
    let artifacts = snapshot.manifest.iter().flat_map(|manifest| &manifest.artifacts);
    let names = artifacts.flat_map(|artifact| &artifact.objects).map(|object| object.key.as_str());
    let keys: Vec<String> =
        names.chain([MANIFEST_KEY]).map(|name| format!("{folder}{name}")).collect();
    let locks =
        stream::iter(keys).map(|key| async move { storage.lock_of(&key).await }).buffered(PARALLEL);
    let locks: Vec<_> = locks.try_collect().await?;
    let latest = locks
        .into_iter()
        .flatten()
        .max_by_key(|lock| lock.until.unwrap_or(DateTime::<Utc>::MAX_UTC));
    Ok(latest.map(|lock| lock.until))
}
