//! Whether what is stored is what was written.

use std::collections::BTreeSet;
use std::io::Read;

use serde::Serialize;
use tokio::runtime::Handle;

use super::fetch::{read_plain, read_stored, reading_failed};
use super::lock::ReadLock;
use super::snapshots::{Listing, Snapshot, read_whole};
use super::{Engine, EngineError, OpenStorage, read_facts};
use crate::model::{Artifact, Encryption, Facts, MANIFEST_KEY, Manifest, Name, SnapshotId};
use crate::pipeline::{DecodeError, Identity};
use crate::storage::StorageError;

/// What a verification found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// Every copy that was looked at.
    pub snapshots: Vec<SnapshotVerdict>,
    /// Storages that could not be listed, and why.
    pub unlisted: Vec<(Name, String)>,
}

impl VerifyReport {
    /// Whether anything is damaged.
    pub fn is_damaged(&self) -> bool {
        self.snapshots.iter().any(|verdict| !verdict.problems.is_empty())
    }

    /// Whether all that was to be looked at could be.
    pub fn is_complete(&self) -> bool {
        self.unlisted.is_empty() && self.snapshots.iter().all(|verdict| verdict.unread.is_empty())
    }
}

/// What was found of one snapshot in one storage.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotVerdict {
    /// The storage's name.
    pub storage: Name,
    /// The application.
    pub instance: Name,
    /// The strategy.
    pub strategy: Name,
    /// The snapshot.
    pub id: SnapshotId,
    /// Objects looked at.
    pub objects: u64,
    /// Bytes stored, by the manifest.
    pub stored_bytes: u64,
    /// Whether every stored byte was read and held against its digest.
    pub read: bool,
    /// Whether every artifact was decrypted and decompressed too, and held against the facts.
    pub decoded: bool,
    /// What is wrong; nothing when it is undamaged as far as it was looked at.
    pub problems: Vec<String>,
    /// What could not be reached, and why: of that it is not known whether it is damaged.
    pub unread: Vec<String>,
}

impl SnapshotVerdict {
    fn note(&mut self, error: EngineError) -> Result<(), EngineError> {
        match error {
            EngineError::Damaged { problem, .. } => self.problems.push(problem),
            EngineError::Storage { error, .. } => self.unread.push(error.to_string()),
            // Another key may open it; that it is damaged is not said.
            EngineError::Request(problem) => self.unread.push(problem),
            other => return Err(other),
        }
        Ok(())
    }
}

/// Looks at each copy in `listing`: the manifest, the presence and size of every object, and with `read_data` every byte.
///
/// # Errors
/// [`EngineError::Cancelled`], and [`EngineError::Internal`]. Damage is not an error but in the report.
pub async fn verify(
    engine: &Engine,
    storages: &[OpenStorage],
    listing: &Listing,
    read_data: bool,
    identities: &[Identity],
) -> Result<VerifyReport, EngineError> {
    let strategies: BTreeSet<_> = listing.snapshots.iter().map(|one| (&one.instance, &one.strategy)).collect();
    let mut locks = Vec::new();
    for (instance, strategy) in strategies {
        locks.push(ReadLock::share(&engine.state_dir, instance, strategy)?);
    }
    let mut snapshots = Vec::new();
    for snapshot in &listing.snapshots {
        let Some(storage) = storages.iter().find(|storage| storage.name == snapshot.storage) else { continue };
        let verdict = verify_one(engine, storage, snapshot, read_data, identities).await?;
        let manifest = format!("{}{MANIFEST_KEY}", snapshot.folder());
        if !verdict.problems.is_empty()
            && matches!(storage.storage.stat(&manifest).await, Err(StorageError::NotFound { .. }))
        {
            tracing::info!(storage = %storage.name, snapshot = %snapshot.id, "deleted since it was listed");
            continue;
        }
        snapshots.push(verdict);
    }
    drop(locks);
    Ok(VerifyReport { snapshots, unlisted: listing.unlisted.clone() })
}

async fn verify_one(
    engine: &Engine,
    storage: &OpenStorage,
    snapshot: &Snapshot,
    read_data: bool,
    identities: &[Identity],
) -> Result<SnapshotVerdict, EngineError> {
    let mut verdict = SnapshotVerdict {
        storage: storage.name.clone(),
        instance: snapshot.instance.clone(),
        strategy: snapshot.strategy.clone(),
        id: snapshot.id.clone(),
        objects: 0,
        stored_bytes: 0,
        read: false,
        decoded: false,
        problems: Vec::new(),
        unread: Vec::new(),
    };
    // The one that is stored: what the catalog remembers of it proves nothing.
    let key = format!("{}{MANIFEST_KEY}", snapshot.folder());
    let manifest = match read_whole(storage.storage.as_ref(), &key).await {
        Ok(body) => Manifest::from_bytes(&body, &snapshot.instance, &snapshot.strategy, &snapshot.id)
            .map_err(|error| error.to_string()),
        Err(_) if engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
        Err(error) if error.is_about_reaching() => {
            verdict.unread.push(error.to_string());
            return Ok(verdict);
        }
        Err(error) => Err(error.to_string()),
    };
    let manifest = match &manifest {
        Ok(manifest) => manifest,
        Err(error) => {
            verdict.problems.push(format!("`manifest.json`: {error}"));
            return Ok(verdict);
        }
    };
    verdict.stored_bytes = manifest.stored_bytes();
    engine.progress.begin(format!("{} in {}", snapshot.id, storage.name), read_data.then_some(verdict.stored_bytes));
    let folder = snapshot.folder();
    for object in manifest.artifacts.iter().flat_map(|artifact| &artifact.objects) {
        if engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        verdict.objects += 1;
        match storage.storage.stat(&format!("{folder}{}", object.key)).await {
            Ok(found) if found.size == object.size => {}
            Ok(found) => {
                verdict.problems.push(format!("`{}` has {} bytes of {}", object.key, found.size, object.size));
            }
            Err(_) if engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
            Err(error) if error.is_about_reaching() => verdict.unread.push(format!("`{}`: {error}", object.key)),
            Err(error) => verdict.problems.push(format!("`{}`: {error}", object.key)),
        }
    }
    if read_data {
        let facts = match read_facts(engine, storage, manifest, identities).await {
            Ok(facts) => facts,
            Err(error) => {
                verdict.note(error)?;
                None
            }
        };
        verdict.decoded = facts.is_some();
        for artifact in &manifest.artifacts {
            let read = read_through(engine, storage, &snapshot.id, &folder, artifact, identities, facts.as_ref()).await;
            if let Err(error) = read {
                // Its size may have been noticed already; what reading it says is said as well.
                verdict.note(error)?;
            }
        }
        verdict.read = verdict.unread.is_empty();
    }
    Ok(verdict)
}

/// Reads an artifact to its end, decoded where it can be.
///
/// # Errors
/// [`EngineError::Damaged`], or that it could not be reached.
pub(super) async fn read_through(
    engine: &Engine,
    storage: &OpenStorage,
    id: &SnapshotId,
    folder: &str,
    artifact: &Artifact,
    identities: &[Identity],
    facts: Option<&Facts>,
) -> Result<(), EngineError> {
    let (engine, storage, id, folder) = (engine.clone(), storage.clone(), id.clone(), folder.to_owned());
    let (artifact, identities, facts) = (artifact.clone(), identities.to_vec(), facts.cloned());
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let failed = |error: &std::io::Error| {
            if engine.cancel.is_cancelled() {
                EngineError::Cancelled
            } else {
                reading_failed(&storage, &id, &artifact.name, error)
            }
        };
        let readable = artifact.codec.encryption == Encryption::None || facts.is_some();
        let mut stream: Box<dyn Read + Send> = if readable {
            match read_plain(&storage, &folder, &artifact, &identities, facts.as_ref(), &runtime) {
                Ok(plain) => plain,
                Err(DecodeError::Locked(why)) => {
                    return Err(EngineError::Request(format!("`{}` is encrypted, and {why}", artifact.name)));
                }
                Err(DecodeError::Io(error)) => return Err(failed(&error)),
            }
        } else {
            Box::new(read_stored(&storage, &folder, &artifact, &runtime))
        };
        let mut buffer = vec![0; 256 << 10];
        loop {
            if engine.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => engine.progress.add(count as u64),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&error)),
            }
        }
    })
    .await
    .map_err(|error| EngineError::Internal(error.to_string()))?
}

/// Whether every artifact of `manifest` that `wanted` accepts reads undamaged from the storage.
pub(super) async fn ensure_undamaged(
    engine: &Engine,
    storage: &OpenStorage,
    manifest: &Manifest,
    identities: &[Identity],
    facts: Option<&Facts>,
    wanted: impl Fn(&Artifact) -> bool,
) -> Result<(), EngineError> {
    let folder = format!("{}/{}/{}/", manifest.instance, manifest.strategy, manifest.id);
    for artifact in manifest.artifacts.iter().filter(|artifact| wanted(artifact)) {
        let expected = facts.and_then(|facts| facts.artifacts.iter().find(|known| known.name == artifact.name));
        engine.progress.begin(format!("checking {}", artifact.name), expected.map(|known| known.plain_bytes));
        match read_through(engine, storage, &manifest.id, &folder, artifact, identities, facts).await {
            Err(EngineError::Damaged { snapshot, storage, problem }) => {
                let problem = format!("{problem}. Nothing was overwritten");
                return Err(EngineError::Damaged { snapshot, storage, problem });
            }
            read => read?,
        }
    }
    Ok(())
}
