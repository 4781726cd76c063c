//! Marks put into storages: new ones, and those of other storages.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::EngineError;
use crate::engine::snapshots::documents::read_document;
use crate::engine::snapshots::marks::LARGEST_MARK;
use crate::engine::snapshots::unexpected::no_mark;
use crate::model::{Mark, Name, Says, SnapshotId, SnapshotRef};
use crate::storage::StorageError;

/// A mark of this moment.
pub(in crate::engine) fn new_mark(
    engine: &Engine,
    of: &SnapshotRef,
    says: Says,
) -> Result<Mark, EngineError> {
    let mut salt = [0; 3];
    getrandom::fill(&mut salt)
        .map_err(|error| EngineError::Internal(format!("No random bytes: {error}")))?;
    let now = engine.clock.now_seconds();
    Ok(Mark::new(of.clone(), SnapshotId::new(now, salt), now, says))
}

/// Writes a mark.
///
/// # Errors
/// When it could not be written.
pub(in crate::engine) async fn write_mark(
    open: &OpenStorage,
    mark: &Mark,
) -> Result<(), StorageError> {
    open.storage.replace(&mark.key(), Bytes::from(mark.to_bytes())).await
}

/// Brings to `to` the marks of the snapshots `ids` that `from` has and `to` has not, byte for byte.
/// One that says that the copy in a storage is damaged is about no other copy, and stays. Returns
/// how many.
///
/// # Errors
/// When one could not be read or written.
pub(in crate::engine) async fn bring_marks(
    from: &OpenStorage,
    to: &OpenStorage,
    instance: &Name,
    ids: &BTreeSet<&SnapshotId>,
) -> Result<u64, StorageError> {
    let here = keys_of(to, instance, ids).await?;
    let mut count = 0;
    for key in keys_of(from, instance, ids).await? {
        if here.contains(&key) || is_about_one_copy(&key) {
            continue;
        }
        let body = read_document(from.storage.as_ref(), &key, LARGEST_MARK).await?;
        to.storage.replace(&key, Bytes::from(body)).await?;
        count = u64::saturating_add(count, 1);
    }
    Ok(count)
}

/// The keys of the marks of the snapshots `ids` in `open`, in the order in which they are to be
/// brought elsewhere: cut off between two of them, too much is protected and not too little.
///
/// # Errors
/// When they could not be listed.
pub(in crate::engine) async fn keys_of(
    open: &OpenStorage,
    instance: &Name,
    ids: &BTreeSet<&SnapshotId>,
) -> Result<Vec<String>, StorageError> {
    let folder = Mark::folder(instance);
    let mut listing = open.storage.list(&folder);
    let mut keys = Vec::new();
    while let Some(object) = listing.try_next().await? {
        let below = object.key.strip_prefix(&folder).unwrap_or_default();
        let is_meant = |id: &&SnapshotId| {
            below.starts_with(id.as_str()) || Mark::id_in_key(below).as_ref() == Some(id)
        };
        match no_mark(&folder, &object) {
            Some(problem) if ids.iter().any(is_meant) => {
                let attempt = format!("read `{}`", object.key);
                return Err(StorageError::failed(open.storage.address(), attempt, problem));
            }
            None if object.irregular.is_none() => {}
            _ => continue,
        }
        let id = Mark::id_in_key(below);
        if !id.is_some_and(|id| ids.contains(&id)) {
            continue;
        }
        if object.size > LARGEST_MARK {
            let key = &object.key;
            tracing::warn!(storage = %open.name, "`{key}` is too large for a mark and stays there");
            continue;
        }
        keys.push(object.key);
    }
    keys.sort_by_cached_key(|key| order(key));
    Ok(keys)
}

/// Whether the mark under `key` says something of the copy in one storage only.
pub(in crate::engine) fn is_about_one_copy(key: &str) -> bool {
    key.contains("/damaged-")
}

fn order(key: &str) -> (bool, bool) {
    let name = key.rsplit('/').next().unwrap_or(key);
    (name.starts_with("release-"), name.starts_with("drill-"))
}

/// Puts marks of another place into `to`, each given by its key, byte for byte, where they are not
/// yet.
///
/// # Errors
/// When one could not be written.
pub(in crate::engine) async fn put_marks(
    to: &OpenStorage,
    mut marks: Vec<(String, Bytes)>,
) -> Result<(), StorageError> {
    marks.sort_by_cached_key(|(key, _)| order(key));
    for (key, body) in marks {
        match to.storage.stat(&key).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => to.storage.replace(&key, body).await?,
            // An identity that may only write cannot tell. A mark with an id of its own is the same
            // wherever it stands; one of format 1 may be another one there.
            Err(error) if error.is_denied() && !Mark::is_of_format_1(&key) => {
                to.storage.replace(&key, body).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Puts the hold of format 1 back that was seen in a storage and is gone from it, before its
/// snapshot arrives there anew: a hold that is gone beside its snapshot was released.
///
/// # Errors
/// When it could not be written.
pub(in crate::engine) async fn put_back_hold(
    engine: &Engine,
    to: &OpenStorage,
    instance: &Name,
    id: &SnapshotId,
) -> Result<(), StorageError> {
    let Some(catalog) = engine.catalog().await else { return Ok(()) };
    let key = Mark::old_hold_key(instance, id);
    let known = catalog.marks(&to.storage.place()).await.unwrap_or_else(|error| {
        tracing::warn!("{error}");
        Vec::new()
    });
    let Some(known) = known.into_iter().find(|mark| mark.key == key) else { return Ok(()) };
    match to.storage.stat(&key).await {
        Err(error) if error.is_not_found() => to.storage.replace(&key, known.body.into()).await,
        Err(error) if error.is_denied() => Ok(()),
        found => found.map(drop),
    }
}
