//! Small objects that are read whole: manifests and marks.

use futures::TryStreamExt as _;

use crate::storage::{Object, Storage, StorageError};

/// Documents that are fetched from one storage at a time.
pub(in crate::engine) const PARALLEL: usize = 8;

/// A document that was listed.
pub(in crate::engine) enum Document {
    Read(Vec<u8>),
    /// It is there and cannot be read, or is too large to be one.
    Unreadable(String),
    /// It was deleted since.
    Gone,
}

/// Reads a document of at most `largest` bytes.
///
/// # Errors
/// When the storage went away, which tells nothing about the document.
pub(in crate::engine) async fn read_listed(
    storage: &dyn Storage,
    object: &Object,
    largest: u64,
) -> Result<Document, StorageError> {
    if object.size > largest {
        let problem = format!("It has {} bytes, which is too many", object.size);
        return Ok(Document::Unreadable(problem));
    }
    match read_whole(storage, &object.key).await {
        Ok(body) => Ok(Document::Read(body)),
        Err(error) if error.is_not_found() => Ok(Document::Gone),
        Err(error) if error.is_about_reaching() => Err(error),
        Err(error) => Ok(Document::Unreadable(error.to_string())),
    }
}

/// A small object, whole.
pub(in crate::engine) async fn read_whole(
    storage: &dyn Storage,
    key: &str,
) -> Result<Vec<u8>, StorageError> {
    let mut stream = storage.read(key, None).await?;
    let mut body = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
