//! Deleting snapshots that an operator names.

use std::collections::BTreeMap;

use futures::future::join_all;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::EngineError;
use crate::engine::prune::deleting::{Deleter, exclude};
use crate::engine::prune::{PruneScope, locked};
use crate::engine::snapshots::decisions::is_good;
use crate::engine::snapshots::list::{Selection, Snapshot, list_without_marks};
use crate::engine::snapshots::marks::read_marks;
use crate::model::{Name, SnapshotId, Verdict};
use crate::report::Pruned;

/// Deletes the snapshots `wanted`, each given by its strategy and id, in every storage of `scope`.
/// Damaged ones too: this is how they are got rid of. `force` gives up the newest that passed a
/// drill; nothing gives up what is held or locked, nor the last good one.
///
/// # Errors
/// [`EngineError::Request`] with every reason why one of them must not be deleted, and
/// [`EngineError::Locked`]: then nothing was deleted.
pub async fn forget(
    engine: &Engine,
    scope: PruneScope<'_>,
    wanted: &[(Name, SnapshotId)],
    force: bool,
) -> Result<Vec<Pruned>, EngineError> {
    let instance = &scope.instance.name;
    let mut problems: Vec<String> = Vec::new();
    let mut opened: Vec<OpenStorage> = Vec::new();
    for open in scope.storages {
        match open {
            Ok(open) => opened.push(open.clone()),
            Err((name, problem)) => {
                problems.push(format!("It is not known what is held in `{name}`: {problem}"));
            }
        }
    }
    let mut by_strategy: BTreeMap<&Name, Vec<&SnapshotId>> = BTreeMap::new();
    for (strategy, id) in wanted {
        by_strategy.entry(strategy).or_default().push(id);
    }
    let chosen: Vec<&OpenStorage> = opened
        .iter()
        .filter(|open| scope.storage.is_none_or(|wanted| *wanted == open.name))
        .collect();
    let places: Vec<(&Name, &OpenStorage)> = by_strategy
        .keys()
        .flat_map(|strategy| chosen.iter().map(|open| (*strategy, *open)))
        .collect();
    let locks = exclude(engine, instance, &places).await?;
    let marks = read_marks(engine, &opened, instance).await;
    for (storage, problem) in marks.unread() {
        problems.push(format!("It is not known what is held in `{storage}`: {problem}"));
    }
    let now = engine.clock.now();
    let mut deleting: Vec<(&Name, &OpenStorage, Vec<Snapshot>)> = Vec::new();
    let selection = |strategy: &Name| Selection {
        instance: Some(instance.clone()),
        strategy: Some(strategy.clone()),
    };
    let listing = places.iter().map(|(strategy, open)| async move {
        list_without_marks(engine, std::slice::from_ref(*open), &selection(strategy)).await
    });
    for ((strategy, open), listing) in places.iter().zip(join_all(listing).await) {
        problems.extend(
            listing
                .unlisted
                .iter()
                .map(|(name, error)| format!("`{name}` could not be listed: {error}")),
        );
        let ids = by_strategy.get(strategy).map(Vec::as_slice).unwrap_or_default();
        let (going, staying): (Vec<Snapshot>, Vec<Snapshot>) =
            listing.snapshots.into_iter().partition(|snapshot| ids.contains(&&snapshot.id));
        let place = format!("in `{}`", open.name);
        if let Some(problem) = locks
            .unlocked
            .get(&((*strategy).clone(), open.name.clone()))
            .filter(|_| !going.is_empty())
        {
            problems.push(format!("`{}`: {problem}", open.name));
        }
        if !going.is_empty()
            && scope.instance.storage_rules.get(&open.name).is_some_and(|rules| !rules.prune)
        {
            problems.push(format!(
                "`{}` has `prune = false`: choose others with `--storage`",
                open.name
            ));
        }
        // Where drills found all of them bad, the last whole one is still better than nothing; a
        // damaged copy is not, where another storage has a good one to copy from.
        let any_good = going.iter().chain(&staying).any(|snapshot| is_good(snapshot, &marks));
        let damaged = going.iter().any(|snapshot| snapshot.damage_by(&marks).is_some());
        let elsewhere: Vec<OpenStorage> =
            opened.iter().filter(|other| damaged && other.name != open.name).cloned().collect();
        let elsewhere =
            list_without_marks(engine, &elsewhere, &selection(strategy)).await.snapshots;
        let is_replaceable = |damaged: &Snapshot| {
            damaged.damage_by(&marks).is_some()
                && elsewhere.iter().any(|other| other.id == damaged.id && is_good(other, &marks))
        };
        let good = |snapshot: &&Snapshot| {
            is_good(snapshot, &marks)
                || (!any_good
                    && snapshot.is_whole()
                    && !snapshot.is_future
                    && !is_replaceable(snapshot))
        };
        if let Some(last) = going.iter().rfind(good)
            && !staying.iter().any(|snapshot| good(&snapshot))
        {
            problems.push(format!("`{}` is the last good one {place}: back up first", last.id));
        }
        let all = going.iter().chain(&staying);
        let passed = all.filter_map(|snapshot| {
            let drilled = marks.drilled(strategy, &snapshot.id)?;
            (drilled.verdict == Verdict::Passed).then_some(&snapshot.id)
        });
        if let Some(newest) = passed.max().filter(|newest| !force && ids.contains(newest)) {
            problems.push(format!(
                "`{newest}` is the newest that passed a drill {place}: `--force` deletes it all \
                 the same"
            ));
        }
        for snapshot in &going {
            if let Some(hold) = marks.hold(&snapshot.id, now) {
                let why = hold.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                problems.push(format!(
                    "`{}` is held{why}: `backup release {}` first",
                    snapshot.id, snapshot.id
                ));
            }
            if marks.suspects(strategy).contains(&&snapshot.id) {
                let id = &snapshot.id;
                problems.push(format!(
                    "`{id}` is suspect, and nobody has looked at it: `backup release {id} --reason \
                     TEXT` first"
                ));
            }
            match locked(open.storage.as_ref(), snapshot).await {
                Ok(None) => {}
                Ok(Some(until)) => {
                    let until = until
                        .map(|until| format!(" until {}", until.to_rfc3339()))
                        .unwrap_or_default();
                    problems.push(format!("`{}` is locked {place}{until}", snapshot.id));
                }
                Err(error) => problems
                    .push(format!("It could not be asked whether it is locked {place}: {error}")),
            }
        }
        deleting.push((strategy, open, going));
    }
    if !problems.is_empty() {
        problems.dedup();
        return Err(EngineError::Request(format!("Nothing was deleted. {}", problems.join(". "))));
    }
    let deleter = Deleter { engine, instance, node: &locks.node, marks: &marks };
    let mut report = Vec::new();
    for (strategy, open, going) in deleting {
        let mut pruned = Pruned::refused(strategy.clone(), open.name.clone(), None);
        let going: Vec<(SnapshotId, u64)> = going
            .into_iter()
            .map(|snapshot| (snapshot.id.clone(), snapshot.stored_bytes()))
            .collect();
        deleter.delete_each(open, &going, &mut pruned).await;
        if pruned.problem.is_some() || !pruned.deleted.is_empty() {
            report.push(pruned);
        }
    }
    drop(locks);
    Ok(report)
}
