//! Whether what seemed to be damaged is: the copy, and not the way to it or what was backed up.

use tokio::runtime::Handle;

use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::fault::UNREACHED;
use crate::engine::read::fetch::read_stored;
use crate::engine::read::files::Side;
use crate::engine::snapshots::damage::note_damage;
use crate::engine::snapshots::list::Snapshot;
use crate::model::{Artifact, Manifest};

/// Passes on how the reading of a copy ended. Where it is damaged, that is remembered.
pub(in crate::engine) async fn remembered<T>(
    engine: &Engine,
    Side { storage, snapshot }: &Side,
    read: Result<T, EngineError>,
) -> Result<T, EngineError> {
    if let Err(EngineError::Damaged { problem, in_copy: true, .. }) = &read {
        remember(engine, storage, snapshot, problem).await;
    }
    read
}

/// Remembers, beside a copy, that it is damaged, where a second look finds that too: at the
/// artifact that the problem names, where it does. A copy whose manifest cannot be read says so
/// itself.
pub(in crate::engine) async fn remember(
    engine: &Engine,
    storage: &OpenStorage,
    copy: &Snapshot,
    problem: &str,
) {
    let Ok(manifest) = &copy.manifest else { return };
    if copy.damage.is_some() || engine.cancel.is_cancelled() {
        return;
    }
    let is_named = |name: &str| problem.contains(&format!("`{name}`"));
    let (named, others): (Vec<&Artifact>, Vec<&Artifact>) =
        manifest.artifacts.iter().partition(|artifact| {
            is_named(&artifact.name) || artifact.objects.iter().any(|one| is_named(&one.key))
        });
    let looked_at = if named.is_empty() { others } else { named };
    engine.progress.begin(format!("looking again at the copy in {}", storage.name), None);
    match first_damaged(engine, storage, manifest, &looked_at).await {
        Ok(Some(object)) => note_damage(engine, storage, manifest, &object).await,
        Ok(None) => tracing::info!(
            storage = %storage.name, snapshot = %copy.id, "read again, it is what was written"
        ),
        Err(error) => tracing::debug!("{error}"),
    }
}

/// The first object of these artifacts that is not what was written, or is not there.
async fn first_damaged(
    engine: &Engine,
    storage: &OpenStorage,
    manifest: &Manifest,
    artifacts: &[&Artifact],
) -> Result<Option<String>, EngineError> {
    let folder = manifest.snapshot_ref().folder();
    let objects = || {
        artifacts
            .iter()
            .flat_map(|artifact| artifact.objects.iter().map(move |object| (*artifact, object)))
    };
    for (_, object) in objects() {
        match storage.storage.stat(&format!("{folder}{}", object.key)).await {
            Ok(found) if found.size == object.size => {}
            Err(error) if error.is_about_reaching() => return Ok(None),
            _ => return Ok(Some(object.key.clone())),
        }
    }
    for (artifact, object) in objects() {
        if engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let alone = Artifact { objects: vec![object.clone()], ..artifact.clone() };
        let mut stored = read_stored(storage, &folder, &alone, &Handle::current());
        match blocking(move || std::io::copy(&mut stored, &mut std::io::sink())).await? {
            Ok(_) => {}
            Err(error) if error.kind() == UNREACHED => return Ok(None),
            Err(_) => return Ok(Some(object.key.clone())),
        }
    }
    Ok(None)
}
