//! The end of a run: the manifest is written where everything is there, and what must not stay is taken away.

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{Run, RunMember};
use crate::engine::{EngineError, sweep};
use crate::model::{
    Artifact, Cancel, Completeness, FORMAT, MANIFEST_KEY, Manifest, Program, RUN_KEY, SnapshotId, StorageNote,
};
use crate::storage::{CreateOptions, Storage, StorageError};

impl Run<'_> {
    /// Looks up every object in each storage once more, then writes the manifest there.
    pub(super) async fn commit(
        &mut self,
        artifacts: Vec<Artifact>,
        completeness: Completeness,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        let mut requires: Vec<String> = Vec::new();
        for artifact in &artifacts {
            let suffix = artifact.codec.suffix();
            let features = suffix.split('.').map(|codec| match codec {
                "zst" => "zstd",
                "gz" => "gzip",
                other => other,
            });
            let continued = (artifact.objects.len() > 1).then_some("continued");
            for feature in features.chain(continued).filter(|feature| !feature.is_empty()) {
                if !requires.iter().any(|known| known == feature) {
                    requires.push(feature.to_owned());
                }
            }
        }
        let folder = self.folder();
        let mut committed = false;
        for place in &mut self.members {
            // The last moment at which a cancellation stops the commit. After the first manifest the run goes through: stopping between two
            // storages would only leave one behind.
            if cancel.is_cancelled() && !committed {
                break;
            }
            if !place.member.is_well() {
                continue;
            }
            let name = place.member.open.name.clone();
            self.engine.progress.begin(format!("committing to {name}"), None);
            let manifest = Manifest {
                format: FORMAT,
                requires: requires.clone(),
                instance: self.instance.name.clone(),
                strategy: self.strategy.name.clone(),
                id: self.id.clone(),
                started: self.started,
                finished: self.engine.clock.now_seconds(),
                program: Program { name: "holdfast".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
                completeness,
                storage: StorageNote { name: name.clone(), remote_check: place.member.check() },
                artifacts: artifacts.clone(),
            };
            match commit_to(place, &folder, &manifest, committed).await {
                Ok(()) => {
                    place.committed = true;
                    committed = true;
                    tracing::info!(storage = %name, "committed");
                }
                Err(error) => place.member.fail(error),
            }
        }
        if committed {
            Ok(())
        } else if cancel.is_cancelled() {
            Err(EngineError::Cancelled)
        } else {
            Err(EngineError::NoStorage("Each of them failed".to_owned()))
        }
    }

    /// Takes the heartbeat away where the run committed, and everything where it did not.
    pub(super) async fn clean_up(&mut self) {
        self.engine.progress.begin("cleaning up", None);
        let (strategy_folder, folder) = (self.strategy_folder(), self.folder());
        for place in self.members.iter_mut().filter(|place| place.reached) {
            let storage = place.member.open.storage.as_ref();
            let cleaned = if place.committed {
                // What is begun twice, because an answer was lost, stays begun once; nothing else writes into this folder.
                match storage.sweep_uploads(&folder, DateTime::<Utc>::MAX_UTC).await {
                    Ok(_) => storage.delete(&format!("{folder}{RUN_KEY}")).await,
                    Err(error) => {
                        tracing::debug!(storage = %place.member.open.name, "could not look for unfinished uploads: {error}");
                        storage.delete(&format!("{folder}{RUN_KEY}")).await
                    }
                }
            } else if place.attempted {
                // The manifest may yet come to light, and must find its artifacts when it does. A later run's sweep decides.
                place.notes.push(format!(
                    "The manifest was sent, and it is not certain whether it is there: look for `{}` in `backup list`",
                    self.id
                ));
                continue;
            } else {
                remove_own(storage, &strategy_folder, &self.id).await
            };
            match cleaned {
                // It tells nobody anything beside a manifest.
                Err(StorageError::Denied { .. } | StorageError::Locked { .. }) if place.committed => continue,
                _ => {}
            }
            if let Err(error) = cleaned {
                tracing::warn!(storage = %place.member.open.name, "could not clean up: {error}; a later run will");
                if place.committed {
                    place.notes.push(format!("The heartbeat could not be taken away: {error}"));
                }
            }
        }
    }
}

/// Looks up every object of `manifest` in the storage, then writes the manifest, which is the commit. Where another storage has `committed` already no
/// cancellation is heeded.
async fn commit_to(
    place: &mut RunMember,
    folder: &str,
    manifest: &Manifest,
    committed: bool,
) -> Result<(), StorageError> {
    let storage = place.member.open.storage.as_ref();
    for object in manifest.artifacts.iter().flat_map(|artifact| &artifact.objects) {
        let key = format!("{folder}{}", object.key);
        let found = storage.stat(&key).await?;
        if found.size != object.size {
            return Err(StorageError::Mismatch {
                address: storage.address(),
                key,
                problem: format!("it has {} bytes of {}", found.size, object.size),
            });
        }
    }
    let key = format!("{folder}{MANIFEST_KEY}");
    let mut upload = storage.create(&key, CreateOptions { small: true, steady: committed }).await?;
    upload.write(Bytes::from(manifest.to_bytes())).await?;
    place.attempted = true;
    upload.finish().await.map(|_| ())
}

/// Deletes what this run wrote to a storage where it did not commit.
async fn remove_own(storage: &dyn Storage, strategy_folder: &str, id: &SnapshotId) -> Result<(), StorageError> {
    let folder = format!("{strategy_folder}{id}/");
    let (own, ..) = sweep::unfinished(storage, &folder, strategy_folder).await?;
    match own.iter().find(|unfinished| unfinished.id == *id) {
        Some(unfinished) => sweep::delete_folder(storage, &folder, &unfinished.keys).await,
        None => sweep::delete_folder(storage, &folder, &[]).await,
    }
}
