//! Snapshots read through, and held against their digests.

use std::io::Read;

use tokio::runtime::Handle;

use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::fault::reading_failed;
use crate::engine::read::fetch::{read_plain, read_stored};
use crate::model::{Artifact, Encryption, Facts, Manifest, SnapshotId};
use crate::pipeline::{DecodeError, Identity};

/// Reads an artifact to its end, decoded where it can be.
///
/// # Errors
/// [`EngineError::Damaged`], or that it could not be reached.
pub(in crate::engine) async fn read_through(
    engine: &Engine,
    storage: &OpenStorage,
    id: &SnapshotId,
    folder: &str,
    artifact: &Artifact,
    identities: &[Identity],
    facts: Option<&Facts>,
) -> Result<(), EngineError> {
    let (engine, storage, id, folder) =
        (engine.clone(), storage.clone(), id.clone(), folder.to_owned());
    let (artifact, identities, facts) = (artifact.clone(), identities.to_vec(), facts.cloned());
    let runtime = Handle::current();
    blocking(move || {
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
                    return Err(EngineError::Request(format!(
                        "`{}` is encrypted, and {why}",
                        artifact.name
                    )));
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
    .await?
}

/// Whether every artifact of `manifest` that `wanted` accepts reads undamaged from the storage.
pub(in crate::engine) async fn ensure_undamaged(
    engine: &Engine,
    storage: &OpenStorage,
    manifest: &Manifest,
    identities: &[Identity],
    facts: Option<&Facts>,
    wanted: impl Fn(&Artifact) -> bool,
) -> Result<(), EngineError> {
    let folder = manifest.snapshot_ref().folder();
    for artifact in manifest.artifacts.iter().filter(|artifact| wanted(artifact)) {
        let expected = facts
            .and_then(|facts| facts.artifacts.iter().find(|known| known.name == artifact.name));
        engine
            .progress
            .begin(format!("checking {}", artifact.name), expected.map(|known| known.plain_bytes));
        read_through(engine, storage, &manifest.id, &folder, artifact, identities, facts).await?;
    }
    Ok(())
}
