//! What retention and the marks say of the snapshots of a storage.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::future::join_all;

use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::snapshots::list::Snapshot;
use crate::engine::snapshots::marks::{Marks, read_marks};
use crate::model::{Name, SnapshotId, Verdict};
use crate::retention::{self, Decision, Policy, Reason, decide};

/// Why the configuration has nothing deleted of `strategy` in a storage, if it has not.
pub(in crate::engine) fn rests(
    instance: &Instance,
    strategy: &Strategy,
    storage: &Name,
) -> Option<String> {
    let rules = instance.rules(strategy, storage);
    match rules.policy {
        None => Some("no retention is configured, so everything is kept".to_owned()),
        Some(_) if !rules.prune => {
            Some("`prune = false`: another configuration prunes here".to_owned())
        }
        Some(_) => None,
    }
}

/// The marks of the instance in the storage that is read, and where a snapshot of the strategy is
/// suspect by these, in all others too: the release may stand there. One that cannot be reached has
/// released nothing.
pub(in crate::engine) async fn marks_for(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    open: &OpenStorage,
) -> Marks {
    let mut storages = vec![open.clone()];
    let marks = read_marks(engine, &storages, &instance.name).await;
    if marks.suspects(&strategy.name).is_empty() {
        return marks;
    }
    let others = instance.storages.iter().filter(|(name, _)| **name != open.name);
    let opening = others.map(|(name, config)| OpenStorage::open(name, config, &engine.cancel));
    storages.extend(join_all(opening).await.into_iter().flatten());
    read_marks(engine, &storages, &instance.name).await
}

/// What `policy` and the marks say of the snapshots of `strategy` in one storage, newest first.
pub(in crate::engine) fn decisions(
    strategy: &Strategy,
    policy: &Policy,
    snapshots: &[Snapshot],
    marks: &Marks,
    now: DateTime<Utc>,
) -> Vec<Decision> {
    let mut protected: BTreeMap<SnapshotId, Vec<Reason>> = BTreeMap::new();
    let mut drilled = None;
    for snapshot in snapshots {
        if let Some(hold) = marks.hold(&snapshot.id, now) {
            let held = Reason::Held { reason: hold.reason, until: hold.until };
            protected.entry(snapshot.id.clone()).or_default().push(held);
        }
        if marks.is_suspect(&strategy.name, &snapshot.id) {
            protected.entry(snapshot.id.clone()).or_default().push(Reason::Suspect);
        }
        let passed = marks
            .drilled(&strategy.name, &snapshot.id)
            .filter(|drilled| drilled.verdict == Verdict::Passed);
        drilled = drilled.max(passed.map(|passed| (snapshot.id.clone(), passed.at)));
    }
    if let Some((id, at)) = drilled {
        protected.entry(id).or_default().push(Reason::Drilled { at });
    }
    // Where no drill found the newest one bad, that is the one; it stays anyhow.
    let whole = |snapshot: &&Snapshot| {
        snapshot.is_whole()
            && !snapshot.is_future
            && !marks.is_suspect(&strategy.name, &snapshot.id)
    };
    let newest = snapshots.iter().filter(whole).map(|snapshot| &snapshot.id).max();
    let good = snapshots
        .iter()
        .filter(|snapshot| is_good(snapshot, marks))
        .map(|snapshot| &snapshot.id)
        .max();
    if let Some(good) = good.filter(|good| Some(*good) != newest) {
        protected.entry(good.clone()).or_default().push(Reason::LastGood);
    }
    // A whole one that is bad supersedes no partial one: that may be all there is.
    let intact = snapshots.iter().filter(|snapshot| is_intact(snapshot, marks));
    let intact = intact.map(|snapshot| &snapshot.id).max();
    if let Some(intact) = intact.filter(|one| Some(*one) > good && Some(*one) < newest) {
        protected.entry(intact.clone()).or_default().push(Reason::NothingWhole);
    }
    let known: Vec<retention::Snapshot> = snapshots
        .iter()
        .map(|snapshot| retention::Snapshot { id: snapshot.id.clone(), whole: snapshot.is_whole() })
        .collect();
    // Those of the future are later than every other.
    let present = snapshots.iter().filter(|snapshot| !snapshot.is_future);
    let present = present.map(|snapshot| snapshot.id.time()).max().unwrap_or(now);
    decide(policy, &known, strategy.timezone, present, &protected)
}

/// Whether a snapshot is good as far as is known: nothing is missing from it, its last drill did
/// not find it bad, it is not suspect, and nobody found it damaged.
pub(in crate::engine) fn is_good(snapshot: &Snapshot, marks: &Marks) -> bool {
    let bad = marks
        .drilled(&snapshot.strategy, &snapshot.id)
        .is_some_and(|drilled| drilled.verdict == Verdict::Failed);
    snapshot.is_whole() && !bad && is_intact(snapshot, marks)
}

/// Whether what the snapshot has can be restored, as far as is known. (A drill finds every partial
/// one bad.)
fn is_intact(snapshot: &Snapshot, marks: &Marks) -> bool {
    snapshot.manifest.is_ok()
        && snapshot.flaws.is_empty()
        && !snapshot.is_future
        && !marks.is_suspect(&snapshot.strategy, &snapshot.id)
        && snapshot.damage_by(marks).is_none()
}
