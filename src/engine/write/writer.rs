//! A writer of a storage: how it enters under a heartbeat, keeps it up, and leaves.

use chrono::{DateTime, Utc};

use crate::engine::context::OpenStorage;
use crate::engine::write::heartbeat::{BEAT, Heartbeat};
use crate::engine::write::leftovers::{self, Leftovers};
use crate::model::{Clock, RUN_KEY, SnapshotId, StoredObject};
use crate::storage::{Storage, StorageError};

/// Looks for what others left in the strategy's folder (`<instance>/<strategy>/`). What lies under
/// `own` is not judged.
///
/// # Errors
/// [`StorageErrorKind::Busy`](crate::storage::StorageErrorKind::Busy) when somebody may be writing
/// there right now.
pub(in crate::engine) async fn look(
    storage: &dyn Storage,
    folder: &str,
    node: &str,
    own: &SnapshotId,
) -> Result<Leftovers, StorageError> {
    let leftovers = leftovers::look(storage, folder, node, Some(own)).await?;
    match leftovers.alive.first() {
        Some(who) => Err(busy(storage, folder, who)),
        None => Ok(leftovers),
    }
}

/// That `who` writes to the strategy's folder.
pub(in crate::engine) fn busy(storage: &dyn Storage, folder: &str, who: &str) -> StorageError {
    StorageError::busy(storage.address(), format!("{folder} ({who})"))
}

/// The holder that an error of kind `Busy` names.
pub(in crate::engine) fn holder(error: &StorageError) -> String {
    format!("it holds the lock of `{}` in `{}`", error.subject(), error.address())
}

/// Leaves the heartbeat of a writer of `own`, and finds out what the storage understands.
///
/// # Errors
/// [`StorageErrorKind::Busy`](crate::storage::StorageErrorKind::Busy) when another began at the
/// same moment; then the heartbeat is taken away again.
pub(in crate::engine) async fn enter(
    storage: &dyn Storage,
    folder: &str,
    heartbeat: &Heartbeat,
    own: &SnapshotId,
) -> Result<(), StorageError> {
    let key = format!("{folder}{own}/{RUN_KEY}");
    let understood = storage.probe(&key, heartbeat.to_bytes()).await?;
    tracing::debug!(address = storage.address(), ?understood, "probed");
    // Two machines may have looked at the same moment. Each has left its heartbeat by now, so the
    // later one to look sees the other and gives way; when both see each other both do, and nothing
    // was written twice.
    match look(storage, folder, &heartbeat.node, own).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_busy() => {
            if let Err(error) = storage.delete(&key).await {
                tracing::warn!(
                    address = storage.address(),
                    "could not take our heartbeat away again: {error}"
                );
            }
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Renews the heartbeat at `key` while `goes_on` says so.
pub(in crate::engine) async fn beat(
    open: OpenStorage,
    key: String,
    clock: Clock,
    mut heartbeat: Heartbeat,
    goes_on: impl Fn() -> bool,
) {
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if !goes_on() {
            return;
        }
        heartbeat.beat = clock.now_seconds();
        if let Err(error) = open.storage.replace(&key, heartbeat.to_bytes()).await {
            tracing::warn!(storage = %open.name, "could not renew the heartbeat: {error}");
        }
    }
}

/// Looks up every object once more, in the snapshot's folder: what comes just before the manifest.
pub(in crate::engine) async fn look_up(
    storage: &dyn Storage,
    folder: &str,
    objects: impl Iterator<Item = &StoredObject>,
) -> Result<(), StorageError> {
    for object in objects {
        let key = format!("{folder}{}", object.key);
        let found = storage.stat(&key).await?;
        if found.size != object.size {
            return Err(StorageError::mismatch(
                storage.address(),
                key,
                format!("it has {} bytes of {}", found.size, object.size),
            ));
        }
    }
    Ok(())
}

/// Takes the heartbeat away after the commit to `folder`, and what was begun twice because an
/// answer was lost: nothing else writes there.
pub(in crate::engine) async fn leave(
    storage: &dyn Storage,
    folder: &str,
) -> Result<(), StorageError> {
    if let Err(error) = storage.sweep_uploads(folder, DateTime::<Utc>::MAX_UTC).await {
        tracing::debug!(
            address = storage.address(),
            "could not look for unfinished uploads: {error}"
        );
    }
    storage.delete(&format!("{folder}{RUN_KEY}")).await
}
