//! Marks put into storages: new ones, and those of other storages.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::snapshots::documents::read_whole;
use crate::engine::snapshots::marks::LARGEST_MARK;
use crate::model::{Mark, Name, SnapshotId};
use crate::storage::StorageError;

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
/// Returns how many.
///
/// # Errors
/// When one could not be read or written.
pub(in crate::engine) async fn bring_marks(
    from: &OpenStorage,
    to: &OpenStorage,
    instance: &Name,
    ids: &BTreeSet<&SnapshotId>,
) -> Result<u64, StorageError> {
    let folder = Mark::folder(instance);
    let list = async |open: &OpenStorage| -> Result<BTreeMap<String, u64>, StorageError> {
        let listing = open.storage.list(&folder);
        listing.map_ok(|object| (object.key, object.size)).try_collect().await
    };
    let (there, here) = (list(from).await?, list(to).await?);
    let is_meant = |key: &str| {
        let name = key.strip_prefix(&folder).and_then(Mark::id_in_key);
        name.is_some_and(|id| ids.contains(&id)) && !here.contains_key(key)
    };
    let mut missing: Vec<(&String, &u64)> = there.iter().filter(|(key, _)| is_meant(key)).collect();
    // Cut off between two of them, too much is protected and not too little.
    missing.sort_by_key(|(key, _)| {
        let name = key.rsplit('/').next().unwrap_or(key);
        (name.starts_with("release-"), name.starts_with("drill-"))
    });
    let mut count = 0;
    for (key, size) in missing {
        if *size > LARGEST_MARK {
            tracing::warn!(storage = %from.name, "`{key}` is too large for a mark and stays \
                there");
            continue;
        }
        let body = read_whole(from.storage.as_ref(), key).await?;
        to.storage.replace(key, Bytes::from(body)).await?;
        count += 1;
    }
    Ok(count)
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
