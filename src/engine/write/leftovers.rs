//! Folders without a manifest: whose they are, and how they are swept.

use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;

use crate::engine::write::heartbeat::{ABANDONED, LEASE, read_heartbeat};
use crate::model::{MANIFEST_KEY, MARKS_FOLDER, RUN_KEY, SnapshotId};
use crate::storage::{Storage, StorageError};

/// A folder of the strategy that has no manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct Unfinished {
    pub(in crate::engine) id: SnapshotId,
    /// Its objects, `run.json` last.
    pub(in crate::engine) keys: Vec<String>,
    /// When the storage last saw one of them written.
    pub(in crate::engine) touched: DateTime<Utc>,
    pub(in crate::engine) beats: bool,
    /// Something in it that is no object: what it hides is not known, so the folder is not swept.
    pub(in crate::engine) irregular: Option<String>,
}

/// What may be done about a folder without a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) enum Fate {
    /// Its writer is dead for certain, or silent for so long that it counts as dead.
    Dead,
    /// Its writer may be alive: nobody else writes now.
    Alive(String),
    /// Its writer is silent, but not for long enough.
    Left,
}

impl Unfinished {
    /// Judges the folder, for a run of `node` that holds the strategy's lock in its state folder:
    /// whatever that state folder's runs left unfinished has no living writer.
    pub(in crate::engine) async fn fate(
        &self,
        storage: &dyn Storage,
        folder: &str,
        node: &str,
        now: DateTime<Utc>,
    ) -> Result<Fate, StorageError> {
        if self.irregular.is_some() {
            return Ok(Fate::Left);
        }
        let silent = now.signed_duration_since(self.touched);
        let heartbeat =
            if self.beats { read_heartbeat(storage, folder, &self.id).await? } else { None };
        Ok(match heartbeat {
            // A copy of a machine has the node of the original, and perhaps its name. Only on the
            // kernel that the lock was taken on does the lock tell that its run is dead; of any
            // other start it is not known for a while.
            Some(heartbeat)
                if heartbeat.node == node && !heartbeat.is_of_this_start() && silent < LEASE =>
            {
                Fate::Left
            }
            Some(heartbeat) if heartbeat.node == node => Fate::Dead,
            _ if silent >= ABANDONED => Fate::Dead,
            // Without a heartbeat that can be read nobody is known to be alive there, and nobody to
            // be dead.
            Some(heartbeat) if silent < LEASE => Fate::Alive(format!(
                "`{}` on `{}` (process {}) wrote to `{}` {} seconds ago",
                self.id,
                heartbeat.host,
                heartbeat.pid,
                storage.address(),
                silent.num_seconds().max(0)
            )),
            None if self.beats && silent < LEASE => Fate::Alive(format!(
                "`{}` in `{}` has a heartbeat that cannot be read",
                self.id,
                storage.address()
            )),
            _ => Fate::Left,
        })
    }
}

/// What a look over one strategy's folder found.
#[derive(Debug, Default)]
pub(in crate::engine) struct Leftovers {
    /// Folders whose writer is dead.
    pub(in crate::engine) dead: Vec<Unfinished>,
    /// Who may be writing right now.
    pub(in crate::engine) alive: Vec<String>,
    /// Heartbeats of runs that committed and died before they took them away.
    pub(in crate::engine) stale: Vec<String>,
    /// How many snapshots there are.
    pub(in crate::engine) snapshots: usize,
    /// Whether a folder is left whose writer may come back.
    pub(in crate::engine) undecided: bool,
    /// By the storage's clock.
    pub(in crate::engine) now: DateTime<Utc>,
}

/// Every folder of the strategy at `folder` (`<instance>/<strategy>/`) that has no manifest, the
/// keys of heartbeats in those that have one, and the number of these, from one complete listing of
/// `prefix`: that folder, or one of a snapshot in it.
pub(in crate::engine) async fn unfinished(
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
        if name.is_empty() {
            // A folder with nothing in it is swept with the unfinished uploads.
            continue;
        }
        let (first, is_nested) =
            name.split_once('/').map_or((name, false), |(first, _)| (first, true));
        // Keys come in order, and `manifest.json` is before `run.json`.
        if committed.as_ref() == Some(&id) {
            if name == RUN_KEY && object.irregular.is_none() {
                stale.push(object.key);
            }
            continue;
        }
        // Something else in its place commits nothing, but the snapshot may be there.
        if first == MANIFEST_KEY {
            found.retain(|unfinished| unfinished.id != id);
            committed = Some(id);
            snapshots += 1;
            continue;
        }
        let beats = name == RUN_KEY;
        if found.last().is_none_or(|last| last.id != id) {
            found.push(Unfinished {
                id,
                keys: Vec::new(),
                touched: object.modified,
                beats: false,
                irregular: None,
            });
        }
        if let Some(last) = found.last_mut() {
            if object.irregular.is_some() || is_nested {
                last.irregular = Some(object.key);
                continue;
            }
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
pub(in crate::engine) async fn look(
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
///
/// # Errors
/// What may not be deleted does not keep the rest from going; it is told at the end.
pub(in crate::engine) async fn sweep(
    storage: &dyn Storage,
    folder: &str,
    leftovers: &Leftovers,
    locked: bool,
) -> Result<usize, StorageError> {
    // Who may not delete one object may delete none; a lock is of one object only.
    let mut forbidden: Option<StorageError> = None;
    for dead in &leftovers.dead {
        let deleted = delete_folder(storage, &format!("{folder}{}/", dead.id), &dead.keys).await;
        bear(&mut forbidden, deleted)?;
        if forbidden.as_ref().is_some_and(StorageError::is_denied) {
            break;
        }
    }
    for key in &leftovers.stale {
        if forbidden.as_ref().is_some_and(StorageError::is_denied) {
            break;
        }
        bear(&mut forbidden, storage.delete(key).await)?;
    }
    let long_ago = leftovers.now.checked_sub_signed(ABANDONED).unwrap_or(DateTime::<Utc>::MIN_UTC);
    let dead = if locked && !leftovers.undecided { leftovers.now } else { long_ago };
    bear(&mut forbidden, storage.sweep_uploads(folder, dead).await.map(drop))?;
    // A mark is one small object: only on a disk it can be left unfinished.
    if storage.local_path().is_some()
        && let Some((instance, _)) = folder.split_once('/')
    {
        let marks = format!("{instance}/{MARKS_FOLDER}/");
        bear(&mut forbidden, storage.sweep_uploads(&marks, long_ago).await.map(drop))?;
    }
    forbidden.map_or(Ok(leftovers.dead.len()), Err)
}

/// Keeps an error that says that something may not be deleted.
fn bear(
    forbidden: &mut Option<StorageError>,
    deleted: Result<(), StorageError>,
) -> Result<(), StorageError> {
    match deleted {
        Err(error) if error.is_denied_or_locked() => *forbidden = Some(error),
        deleted => deleted?,
    }
    Ok(())
}

/// Deletes the folder of a snapshot that has no manifest, any more or yet.
pub(in crate::engine) async fn remove(
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
pub(in crate::engine) async fn delete_folder(
    storage: &dyn Storage,
    folder: &str,
    keys: &[String],
) -> Result<(), StorageError> {
    match storage.stat(&format!("{folder}{MANIFEST_KEY}")).await {
        Err(error) if error.is_not_found() => {}
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
