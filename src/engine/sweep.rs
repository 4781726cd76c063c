//! Collecting what dead runs left: folders without a manifest, uploads that nobody will finish.

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;

use super::lock::{ABANDONED, Fate, Unfinished};
use crate::model::{MANIFEST_KEY, RUN_KEY, SnapshotId};
use crate::storage::{Storage, StorageError};

/// What a look over one strategy's folder found.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Folders whose writer is dead.
    pub(super) dead: Vec<Unfinished>,
    /// Who may be writing right now.
    pub(super) alive: Vec<String>,
    /// Heartbeats of runs that committed and died before they took them away.
    pub(super) stale: Vec<String>,
    /// How many snapshots there are.
    pub(super) snapshots: usize,
    /// Whether a folder is left whose writer may come back.
    pub(super) undecided: bool,
    /// By the storage's clock.
    pub(super) now: DateTime<Utc>,
}

/// Every folder of the strategy at `folder` (`<instance>/<strategy>/`) that has no manifest, the
/// keys of heartbeats in those that have one, and the number of these, from one complete listing of
/// `prefix`: that folder, or one of a snapshot in it.
pub(super) async fn unfinished(
    storage: &dyn Storage,
    prefix: &str,
    folder: &str,
) -> Result<(Vec<Unfinished>, Vec<String>, usize), StorageError> {
    let mut stale = Vec::new();
    let mut snapshots = 0;
    let mut found: Vec<Unfinished> = Vec::new();
    let mut committed: Option<SnapshotId> = None;
    let mut listing = storage.list(prefix);
    while let Some(object) = listing.try_next().await? {
        let Some((id, name)) =
            object.key.strip_prefix(folder).and_then(|rest| rest.split_once('/'))
        else {
            continue;
        };
        // What is not named as a snapshot's folder is not ours to judge.
        let Ok(id) = id.parse::<SnapshotId>() else { continue };
        // Keys come in order, and `manifest.json` is before `run.json`.
        if committed.as_ref() == Some(&id) {
            if name == RUN_KEY {
                stale.push(object.key);
            }
            continue;
        }
        if name == MANIFEST_KEY {
            found.retain(|unfinished| unfinished.id != id);
            committed = Some(id);
            snapshots += 1;
            continue;
        }
        let beats = name == RUN_KEY;
        if found.last().is_none_or(|last| last.id != id) {
            found.push(Unfinished { id, keys: Vec::new(), touched: object.modified, beats: false });
        }
        if let Some(last) = found.last_mut() {
            last.touched = last.touched.max(object.modified);
            last.beats |= beats;
            last.keys.push(object.key);
        }
    }
    for unfinished in &mut found {
        // The heartbeat tells whose the folder is; it goes last, so that a sweep that is cut off
        // can be taken up again.
        unfinished.keys.sort_by_key(|key| key.ends_with(RUN_KEY));
    }
    Ok((found, stale, snapshots))
}

/// Looks for what dead runs left, and for living ones, on behalf of who holds the strategy's lock
/// as `node`. A run's `own` folder is not looked at.
pub(super) async fn look(
    storage: &dyn Storage,
    folder: &str,
    node: &str,
    own: Option<&SnapshotId>,
) -> Result<Leftovers, StorageError> {
    let (found, stale, snapshots) = unfinished(storage, folder, folder).await?;
    let now = storage.now().await?;
    let mut leftovers = Leftovers { now, stale, snapshots, ..Leftovers::default() };
    for unfinished in found {
        if own == Some(&unfinished.id) {
            continue;
        }
        match unfinished.fate(storage, folder, node, now).await? {
            Fate::Dead => leftovers.dead.push(unfinished),
            Fate::Alive(who) => leftovers.alive.push(who),
            Fate::Left => leftovers.undecided = true,
        }
    }
    Ok(leftovers)
}

/// Deletes what [`look`] found dead, and what died before it had anything to list. Returns how many
/// folders went. `locked` tells that the storage's own lock is held: then nobody else writes there.
pub(super) async fn sweep(
    storage: &dyn Storage,
    folder: &str,
    leftovers: &Leftovers,
    locked: bool,
) -> Result<usize, StorageError> {
    for dead in &leftovers.dead {
        delete_folder(storage, &format!("{folder}{}/", dead.id), &dead.keys).await?;
    }
    for key in &leftovers.stale {
        storage.delete(key).await?;
    }
    let dead =
        if locked && !leftovers.undecided { leftovers.now } else { leftovers.now - ABANDONED };
    storage.sweep_uploads(folder, dead).await?;
    Ok(leftovers.dead.len())
}

/// Deletes the folder of a snapshot that has no manifest, any more or yet.
pub(super) async fn remove(
    storage: &dyn Storage,
    strategy_folder: &str,
    id: &SnapshotId,
) -> Result<(), StorageError> {
    let folder = format!("{strategy_folder}{id}/");
    let (found, ..) = unfinished(storage, &folder, strategy_folder).await?;
    let keys = found
        .iter()
        .find(|unfinished| unfinished.id == *id)
        .map(|unfinished| unfinished.keys.as_slice());
    delete_folder(storage, &folder, keys.unwrap_or_default()).await
}

/// Deletes the objects of a folder that has no manifest, having looked once more that it has none.
pub(super) async fn delete_folder(
    storage: &dyn Storage,
    folder: &str,
    keys: &[String],
) -> Result<(), StorageError> {
    match storage.stat(&format!("{folder}{MANIFEST_KEY}")).await {
        Err(StorageError::NotFound { .. }) => {}
        Ok(_) => return Ok(()),
        Err(error) => return Err(error),
    }
    // Nobody writes here any more, so every upload under it is stale.
    storage.sweep_uploads(folder, DateTime::<Utc>::MAX_UTC).await?;
    for key in keys {
        storage.delete(key).await?;
    }
    Ok(())
}
