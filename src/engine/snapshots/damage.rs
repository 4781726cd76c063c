//! What is remembered of a copy: that it was found damaged, until it is found sound.

use bytes::Bytes;

use crate::catalog::CachedMark;
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::chain;
use crate::engine::snapshots::mark_writer::new_mark;
use crate::engine::snapshots::marks::{Marks, read_marks_of};
use crate::model::{Manifest, Mark, Says};

/// Remembers, beside a copy, that it is damaged; `object` is the first that is not what was
/// written.
pub(in crate::engine) async fn note_damage(
    engine: &Engine,
    storage: &OpenStorage,
    manifest: &Manifest,
    object: &str,
) {
    let reason = format!("`{object}` is not what was written");
    let says = Says::Damaged { storage: manifest.storage.name.clone(), reason };
    match new_mark(engine, &manifest.snapshot_ref(), says) {
        Ok(mark) => put(engine, storage, &mark).await,
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Remembers, beside a copy all of whose bytes were found as they were written, that it is not
/// damaged any more.
pub(in crate::engine) async fn note_sound(
    engine: &Engine,
    storage: &OpenStorage,
    manifest: &Manifest,
    marks: &Marks,
) {
    let ends = marks.ends_when_sound(&storage.name, manifest);
    if ends.is_empty() {
        return;
    }
    let reason = Some("all of its bytes were found as they were written".to_owned());
    match new_mark(
        engine,
        &manifest.snapshot_ref(),
        Says::Release { ends, reason, forgotten: false },
    ) {
        Ok(mark) => put(engine, storage, &mark).await,
        Err(error) => tracing::warn!("{error}"),
    }
}

/// Remembers of a copy that was just committed, in the place of one that may have been found
/// damaged, that it is sound. `manifest` is that of the copy.
pub(in crate::engine) async fn note_arrival(
    engine: &Engine,
    storage: &OpenStorage,
    manifest: &Manifest,
) {
    match read_marks_of(storage, &manifest.snapshot_ref()).await {
        Ok(marks) => note_sound(engine, storage, manifest, &marks).await,
        Err(error) => tracing::debug!("{error}"),
    }
}

/// Writes the mark to the storage, and to the catalog: the status asks no storage, and one that
/// takes no marks is remembered on this machine.
async fn put(engine: &Engine, storage: &OpenStorage, mark: &Mark) {
    let (key, body) = (mark.key(), mark.to_bytes());
    if let Err(error) = storage.storage.replace(&key, Bytes::from(body.clone())).await {
        tracing::warn!(
            storage = %storage.name,
            "`{key}` could not be written, so other machines do not know of it: {}",
            chain(&error)
        );
    }
    let Some(catalog) = engine.catalog().await else { return };
    let size = body.len() as u64;
    let cached = CachedMark { key, size, modified: mark.made, body };
    if let Err(error) = catalog.update_marks(&storage.storage.place(), &[cached], &[]).await {
        tracing::warn!("{error}");
    }
}
