//! Reading what is stored: the objects of an artifact as one blocking stream, and what it decodes
//! to.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf as _, Bytes};
use futures::TryStreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::fault::{UNREACHED, reading_failed};
use crate::model::{Artifact, Encryption, Facts, FactsError, Manifest};
use crate::pipeline::{Clocked, DecodeError, Expected, Identity, Step, Verified, timed_decoder};
use crate::storage::StorageError;

/// Chunks that wait between the storage and who reads.
const QUEUE: usize = 2;

/// An object by its key, and the part of it that is read; all of it where none is given.
type StoredRange = (String, Option<Range<u64>>);

/// Reads objects one after the other into a short queue, while the receiver works on what came
/// before. It ends with the first error, or when the receiver is dropped.
pub(in crate::engine) fn read_ahead(
    storage: &OpenStorage,
    pieces: Vec<StoredRange>,
    runtime: &Handle,
) -> mpsc::Receiver<Result<Bytes, StorageError>> {
    let (sender, chunks) = mpsc::channel(QUEUE);
    let (fetched, storage) = (Arc::clone(&storage.fetched), Arc::clone(&storage.storage));
    runtime.spawn(async move {
        let read = async {
            for (key, range) in pieces {
                let mut stream = storage.read(&key, range).await?;
                while let Some(chunk) = stream.try_next().await? {
                    fetched.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    if sender.send(Ok(chunk)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        if let Err(error) = read.await {
            // A dropped receiver wants no error either.
            let _ = sender.send(Err(error)).await;
        }
    });
    chunks
}

/// Objects, or ranges of them, joined, for a thread that may block. Dropping it ends the transfer.
struct StoredReader {
    chunks: mpsc::Receiver<Result<Bytes, StorageError>>,
    current: Bytes,
}

impl StoredReader {
    fn open(storage: &OpenStorage, pieces: Vec<StoredRange>, runtime: &Handle) -> Self {
        Self { chunks: read_ahead(storage, pieces, runtime), current: Bytes::new() }
    }
}

impl Read for StoredReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(error)) if error.is_about_reaching() => {
                    return Err(io::Error::new(UNREACHED, error));
                }
                Some(Err(error)) => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

/// The stored stream of `artifact`, held against its sizes and digests while it is read. For
/// threads that may block.
pub(in crate::engine) fn read_stored(
    storage: &OpenStorage,
    folder: &str,
    artifact: &Artifact,
    runtime: &Handle,
) -> impl Read + Send + use<> {
    let pieces =
        artifact.objects.iter().map(|object| (format!("{folder}{}", object.key), None)).collect();
    let watch = storage.watch.as_ref();
    let fetched = Clocked::new(StoredReader::open(storage, pieces, runtime), watch, Step::Fetch);
    Clocked::new(Verified::new(fetched, &artifact.objects), watch, Step::Digest)
}

/// A range of a stored object, held against nothing. For threads that may block.
pub(in crate::engine) fn read_range(
    storage: &OpenStorage,
    key: String,
    range: Range<u64>,
    runtime: &Handle,
) -> impl Read + Send + use<> {
    StoredReader::open(storage, vec![(key, Some(range))], runtime)
}

/// The plain stream of `artifact`, whose last bytes come only when all of it was found undamaged.
/// For threads that may block.
///
/// # Errors
/// When none of `identities` opens it, or it is not what its codec says.
pub fn read_plain(
    storage: &OpenStorage,
    folder: &str,
    artifact: &Artifact,
    identities: &[Identity],
    facts: Option<&Facts>,
    runtime: &Handle,
) -> Result<Box<dyn Read + Send>, DecodeError> {
    let expected =
        facts.and_then(|facts| facts.artifacts.iter().find(|known| known.name == artifact.name));
    let expected = expected
        .map(|known| Expected { plain_bytes: known.plain_bytes, plain_digest: known.plain_digest });
    let stored: Box<dyn Read + Send> = Box::new(read_stored(storage, folder, artifact, runtime));
    timed_decoder(stored, artifact.codec, identities, expected, storage.watch.as_ref())
}

/// The facts of a snapshot; none when they are encrypted and there is no identity to open them
/// with.
///
/// # Errors
/// [`EngineError::Damaged`] when they cannot be read, or are of another snapshot.
pub async fn read_facts(
    engine: &Engine,
    storage: &OpenStorage,
    manifest: &Manifest,
    identities: &[Identity],
) -> Result<Option<Facts>, EngineError> {
    let damaged = |problem: String| EngineError::damaged(&manifest.id, &storage.name, problem);
    let artifact = manifest
        .artifact("facts.json")
        .ok_or_else(|| damaged("The manifest lists no facts".to_owned()))?
        .clone();
    if artifact.codec.encryption == Encryption::Age && identities.is_empty() {
        return Ok(None);
    }
    let folder = manifest.snapshot_ref().folder();
    let (from, identities, runtime) = (storage.clone(), identities.to_vec(), Handle::current());
    let facts = blocking(move || -> Result<_, DecodeError> {
        let plain = read_plain(&from, &folder, &artifact, &identities, None, &runtime)?;
        match Facts::from_reader(plain) {
            Err(FactsError::Stream(error)) => Err(error.into()),
            read => Ok(read),
        }
    })
    .await?
    .map_err(|error| match error {
        DecodeError::Locked(why) => {
            EngineError::Request(format!("`{}` is encrypted, and {why}", manifest.id))
        }
        DecodeError::Io(_) if engine.cancel.is_cancelled() => EngineError::Cancelled,
        DecodeError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            EngineError::too_large(&manifest.id, &storage.name, format!("`facts.json` is {error}"))
        }
        DecodeError::Io(error) => reading_failed(storage, &manifest.id, "facts.json", &error),
    })?;
    let facts = facts
        .map_err(|error| damaged(format!("`facts.json` is not what it should be: {error}")))?;
    if (&facts.instance, &facts.strategy, &facts.id)
        != (&manifest.instance, &manifest.strategy, &manifest.id)
    {
        return Err(damaged(format!(
            "Its facts are of {}/{}/{}: they were moved or planted there",
            facts.instance, facts.strategy, facts.id
        )));
    }
    Ok(Some(facts))
}
