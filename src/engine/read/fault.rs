//! What an error of a stream tells: damage, an unreachable storage, or a refusal.

use std::error::Error;
use std::io;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::{EngineError, chain};
use crate::engine::snapshots::list::Snapshot;
use crate::model::{Encryption, Manifest, SnapshotId};
use crate::pipeline::Identity;
use crate::source::SourceError;
use crate::storage::{StorageError, StorageErrorKind};

/// An error of a stream, and which one it is of. It travels through the restorer, which knows one
/// artifact only.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub(in crate::engine) struct Fault {
    pub(in crate::engine) artifact: String,
    /// Whether nothing is wrong with the snapshot: it cannot be read in the way that was asked for.
    pub(in crate::engine) is_refusal: bool,
    problem: String,
}

impl Fault {
    pub(in crate::engine) fn wrap(artifact: &str, error: &io::Error) -> io::Error {
        let fault =
            Self { artifact: artifact.to_owned(), is_refusal: false, problem: error.to_string() };
        io::Error::new(error.kind(), fault)
    }

    pub(in crate::engine) fn refusal(artifact: &str, problem: String) -> io::Error {
        let fault = Self { artifact: artifact.to_owned(), is_refusal: true, problem };
        io::Error::new(io::ErrorKind::Unsupported, fault)
    }

    /// The fault that `error` is, or that it wraps.
    pub(in crate::engine) fn within(error: &io::Error) -> Option<&Self> {
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(error) = next {
            // An I/O error passes over what it holds itself when it is asked for its source.
            let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(fault) = held.and_then(|held| held.downcast_ref()) {
                return Some(fault);
            }
            next = error.source();
        }
        None
    }
}

/// The kind of an error that tells nothing about what is stored. What wraps the stream keeps the
/// kind of its errors.
pub(in crate::engine) const UNREACHED: io::ErrorKind = io::ErrorKind::NotConnected;

/// What an error that ended the reading of `what` tells: that the snapshot is damaged, or only that
/// it could not be reached, or not opened. An error that says itself which stream it is of (an
/// index that was read beside) is believed.
pub(in crate::engine) fn reading_failed(
    storage: &OpenStorage,
    id: &SnapshotId,
    what: &str,
    error: &io::Error,
) -> EngineError {
    let fault = Fault::within(error);
    let what = fault.map_or(what, |fault| &fault.artifact);
    if fault.is_some_and(|fault| fault.is_refusal) {
        return EngineError::Request(format!("`{what}`: {}", chain(error)));
    }
    if error.kind() == UNREACHED {
        let error = StorageError::new(
            StorageErrorKind::Unavailable,
            storage.storage.address(),
            format!("read `{what}` of `{id}`"),
            chain(error),
        );
        return EngineError::storage(&storage.name, error);
    }
    EngineError::damaged(id, &storage.name, format!("`{what}`: {}", chain(error)))
}

/// The manifest of a snapshot that can be read with `identities`, as far as can be told without
/// reading.
pub(in crate::engine) fn usable_manifest<'a>(
    storage: &OpenStorage,
    snapshot: &'a Snapshot,
    identities: &[Identity],
) -> Result<&'a Manifest, EngineError> {
    let manifest =
        snapshot.manifest.as_ref().map_err(|bad| bad.error_in(&snapshot.id, &storage.name))?;
    let encrypted =
        manifest.artifacts.iter().any(|artifact| artifact.codec.encryption == Encryption::Age);
    if encrypted && identities.is_empty() {
        return Err(EngineError::Request(format!(
            "The snapshot `{}` is encrypted: name the file of a key that opens it with \
             `--identity-file`",
            snapshot.id
        )));
    }
    Ok(manifest)
}

/// What the failure of a restorer that read from a storage tells.
pub(in crate::engine) fn failed_in(
    engine: &Engine,
    storage: &OpenStorage,
    id: &SnapshotId,
    artifact: &str,
    error: SourceError,
) -> EngineError {
    match error {
        _ if engine.cancel.is_cancelled() => EngineError::Cancelled,
        SourceError::Stream(error) => reading_failed(storage, id, artifact, &error),
        SourceError::Damaged(problem) => EngineError::Damaged {
            snapshot: id.to_string(),
            storage: storage.name.clone(),
            problem: format!("`{artifact}`: {problem}"),
            in_copy: false,
        },
        error => failed(artifact, error),
    }
}

pub(in crate::engine) fn failed(artifact: &str, error: SourceError) -> EngineError {
    EngineError::Restore { artifact: artifact.to_owned(), error: Box::new(error) }
}
