//! Small objects that are read whole: manifests, marks and heartbeats.

use futures::TryStreamExt as _;

use crate::storage::{Object, Storage, StorageError};

/// Documents that are fetched from one storage at a time.
pub(in crate::engine) const PARALLEL: usize = 8;

/// The largest manifest that is read: about 80,000 objects.
pub(in crate::engine) const LARGEST_MANIFEST: u64 = 16 << 20;

/// A document that was listed.
pub(in crate::engine) enum Document {
    Read(Vec<u8>),
    /// It is there and cannot be read.
    Unreadable(String),
    /// It is larger than this version reads, which says nothing against it.
    TooLarge(String),
    /// It was deleted since.
    Gone,
}

/// Reads a document of at most `largest` bytes, and no more than the listing says.
///
/// # Errors
/// When the storage went away, which tells nothing about the document.
pub(in crate::engine) async fn read_listed(
    storage: &dyn Storage,
    object: &Object,
    largest: u64,
) -> Result<Document, StorageError> {
    if object.size > largest {
        let error = StorageError::too_large(storage.address(), &object.key, largest);
        return Ok(Document::TooLarge(error.to_string()));
    }
    match read_document(storage, &object.key, object.size).await {
        Ok(body) => Ok(Document::Read(body)),
        Err(error) if error.is_not_found() => Ok(Document::Gone),
        Err(error) if error.is_about_reaching() => Err(error),
        Err(error) if error.is_too_large() => Ok(Document::Unreadable(format!(
            "It is listed with {} bytes and has more",
            object.size
        ))),
        Err(error) => Ok(Document::Unreadable(error.to_string())),
    }
}

/// A document of at most `limit` bytes, whole. Nothing else is read into memory as a whole.
///
/// # Errors
/// [`StorageErrorKind::TooLarge`](crate::storage::StorageErrorKind::TooLarge), as soon as more
/// bytes than that have come.
pub(in crate::engine) async fn read_document(
    storage: &dyn Storage,
    key: &str,
    limit: u64,
) -> Result<Vec<u8>, StorageError> {
    let mut stream = storage.read_document(key).await?;
    let mut body = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        if (body.len() as u64).saturating_add(chunk.len() as u64) > limit {
            return Err(StorageError::too_large(storage.address(), key, limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
