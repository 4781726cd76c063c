//! A folder on this machine, or mounted on it.
//!
//! An object is a file of the same name under the root. Until it is finished it is a hidden file
//! beside its place (`.<name>.<hex>.part`), which is never listed; a crash leaves at most that, and
//! [`Storage::sweep_uploads`] collects it. Files are made with mode 0600 and folders with 0700.
//! Symbolic links below the root are not followed; the root may be one.
//!
//! The root is made when the folder that it is in exists; that folder is never made. So a disk that
//! is not mounted is an error where the root is two folders below its mount point. Where the mount
//! point is the root or its parent, the empty folder under it would be taken for the disk.

mod disk;
mod rename;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::disk::Disk;
use super::{
    Capabilities, CreateOptions, Finished, Object, Patience, Storage, StorageError, Upload,
    check_key, check_prefix, default_timeout,
};
use crate::model::{RemoteCheck, Span};

/// How much is read at a time, in bytes.
const READ_BYTES: usize = 256 << 10;
/// How many objects of a listing are handed over at a time: a thread that wakes another for each
/// spends its time on that.
const PAGE: usize = 128;
/// After so long a page is handed over that is not full: a slow disk is not a silent one.
const PAGE_TIME: Duration = Duration::from_secs(1);
/// So many times the timeout a folder is waited for by what nobody watches: a disk may have to spin
/// up, a mount to come back.
const ATTEMPTS: u32 = 6;
/// How many pages the walk of a listing may be ahead of whoever takes them.
const LIST_AHEAD: usize = 2;

/// A folder on this machine, or mounted on it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// The folder. It is made when it is missing, but not the folder that it is in: a disk that is
    /// not mounted is noticed. A relative path counts from the configuration file.
    pub path: PathBuf,
    /// How long the folder may take to answer a look-up, a listing's next objects, a small read or
    /// a delete. A command that shows something gives up then; a run waits six times as long.
    #[serde(default = "default_timeout")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "1h"))]
    pub timeout: Span,
}

impl LocalConfig {
    /// The storage in the folder at `path`.
    pub fn from_path(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), timeout: default_timeout() }
    }

    /// The configured timeout, and how long an answer is waited for.
    pub(super) fn waits(&self, patience: Patience) -> (Duration, Option<Duration>) {
        let timeout = self.timeout.duration();
        let attempts = if patience == Patience::Watched { 1 } else { ATTEMPTS };
        (timeout, Some(timeout.saturating_mul(attempts)))
    }

    /// Makes relative paths absolute.
    pub fn resolve(&mut self, base: &Path) {
        self.path = crate::model::counted_from(base, &self.path);
    }
}

/// The storage of a [`LocalConfig`].
#[derive(Debug)]
pub struct Local {
    disk: Arc<Disk>,
}

impl Local {
    /// The storage that `config` describes. Nothing is looked at yet.
    pub fn open(config: &LocalConfig) -> Self {
        Self { disk: Arc::new(Disk::new(config.path.clone())) }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let disk = Arc::clone(&self.disk);
        blocking(move || work(&disk)).await
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that shuts down drops blocking work.
            Err(_) => Err(StorageError::cancelled()),
        },
    }
}

#[async_trait]
impl Storage for Local {
    fn address(&self) -> String {
        self.disk.address()
    }

    fn local_path(&self) -> Option<&Path> {
        Some(self.disk.root())
    }

    async fn create(
        &self,
        key: &str,
        _options: CreateOptions,
    ) -> Result<Box<dyn Upload>, StorageError> {
        check_key(key)?;
        let key = key.to_owned();
        let draft = self
            .run(move |disk| {
                if disk.exists(&key)? {
                    return Err(StorageError::already_exists(disk.address(), key));
                }
                disk.draft(&key)
            })
            .await?;
        Ok(Box::new(LocalUpload { disk: Arc::clone(&self.disk), draft: Some(draft), written: 0 }))
    }

    async fn replace(&self, key: &str, body: Bytes) -> Result<(), StorageError> {
        check_key(key)?;
        let key = key.to_owned();
        self.run(move |disk| {
            let draft = disk.draft(&key)?;
            (&draft.file)
                .write_all(&body)
                .map_err(|error| disk.error(&format!("write `{key}`"), &error))?;
            disk.publish_over(draft)
        })
        .await
    }

    async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        check_key(key)?;
        let attempt = format!("read `{key}`");
        let key = key.to_owned();
        let (file, left) = self
            .run({
                let attempt = attempt.clone();
                move |disk| {
                    let (mut file, size) = disk.open(&key)?;
                    let range = range.unwrap_or(0..size);
                    if range.start > range.end || range.end > size {
                        let problem = format!(
                            "bytes {} to {} were asked for, but it has {size}",
                            range.start, range.end
                        );
                        return Err(StorageError::failed(disk.address(), attempt, problem));
                    }
                    file.seek(SeekFrom::Start(range.start))
                        .map_err(|error| disk.error(&attempt, &error))?;
                    Ok((file, range.end.saturating_sub(range.start)))
                }
            })
            .await?;
        let reading = (Arc::new(file), left, Arc::clone(&self.disk), attempt);
        Ok(stream::try_unfold(reading, |(file, left, disk, attempt)| async move {
            if left == 0 {
                return Ok(None);
            }
            blocking(move || {
                let wanted = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
                let mut chunk = BytesMut::zeroed(wanted);
                let count =
                    read_some(&file, &mut chunk).map_err(|error| disk.error(&attempt, &error))?;
                if count == 0 {
                    let problem = format!("it ended {left} bytes early; was it changed meanwhile?");
                    return Err(StorageError::failed(disk.address(), attempt, problem));
                }
                chunk.truncate(count);
                let left = left.saturating_sub(count as u64);
                Ok(Some((chunk.freeze(), (file, left, disk, attempt))))
            })
            .await
        })
        .boxed())
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Object, StorageError>> {
        if let Err(error) = check_prefix(prefix) {
            return stream::once(async { Err(error) }).boxed();
        }
        let (disk, prefix) = (Arc::clone(&self.disk), prefix.to_owned());
        let (sender, receiver) = tokio::sync::mpsc::channel(LIST_AHEAD);
        let walking = stream::once(async move {
            let failed = sender.clone();
            let walk = blocking(move || {
                let mut page = Vec::with_capacity(PAGE);
                let mut sent = Instant::now();
                disk.walk(&prefix, &mut |object| {
                    page.push(object);
                    if page.len() < PAGE && sent.elapsed() < PAGE_TIME {
                        return true;
                    }
                    sent = Instant::now();
                    sender.blocking_send(Ok(std::mem::take(&mut page))).is_ok()
                })?;
                let _ = sender.blocking_send(Ok(page));
                Ok(())
            });
            if let Err(error) = walk.await {
                // Whoever listed may have gone.
                let _ = failed.send(Err(error)).await;
            }
            None
        });
        let taking = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|page| (Some(page), receiver))
        });
        // The walk sends until it is done; the listing ends when its last sender is gone.
        stream::select(walking, taking)
            .filter_map(|page| async { page })
            .map_ok(|page| stream::iter(page.into_iter().map(Ok)))
            .try_flatten()
            .boxed()
    }

    async fn stat(&self, key: &str) -> Result<Object, StorageError> {
        check_key(key)?;
        let key = key.to_owned();
        self.run(move |disk| disk.stat(&key)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        check_key(key)?;
        let key = key.to_owned();
        self.run(move |disk| disk.delete(&key)).await
    }

    async fn sweep_uploads(
        &self,
        prefix: &str,
        before: DateTime<Utc>,
    ) -> Result<u64, StorageError> {
        check_prefix(prefix)?;
        let prefix = prefix.to_owned();
        self.run(move |disk| disk.sweep(&prefix, before)).await
    }

    /// A rename refuses an existing target here, by one way or another, and nothing keeps a
    /// checksum.
    async fn probe(&self, key: &str, body: Bytes) -> Result<Capabilities, StorageError> {
        self.replace(key, body).await?;
        Ok(Capabilities { conditional_writes: true, checksums: false })
    }

    /// The time that the file system gives to a file: on a mounted share that is the clock of its
    /// server.
    async fn now(&self) -> Result<DateTime<Utc>, StorageError> {
        self.run(Disk::now).await
    }

    async fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        self.run(|disk| disk.free_bytes().map(Some)).await
    }

    async fn lock(&self, folder: &str) -> Result<Option<Box<dyn Send + Sync>>, StorageError> {
        check_key(folder)?;
        let folder = folder.to_owned();
        let lock = self.run(move |disk| disk.lock(&folder)).await?;
        Ok(lock.map(|file| Box::new(file) as Box<dyn Send + Sync>))
    }

    fn max_object_bytes(&self) -> Option<u64> {
        None
    }
}

/// Reads once, however often it is interrupted.
fn read_some(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A file that is being written. Dropping the draft removes it.
struct LocalUpload {
    disk: Arc<Disk>,
    /// None once a write was given up midway; then nothing more can be written.
    draft: Option<disk::Draft>,
    written: u64,
}

impl LocalUpload {
    fn broken(&self) -> StorageError {
        StorageError::failed(self.disk.address(), "go on writing", "an earlier write failed")
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        let disk = Arc::clone(&self.disk);
        let draft = self.draft.take().ok_or_else(|| self.broken())?;
        let size = chunk.len() as u64;
        let draft = blocking(move || {
            (&draft.file)
                .write_all(&chunk)
                .map_err(|error| disk.error(&format!("write `{}`", draft.key), &error))?;
            Ok(draft)
        })
        .await?;
        self.draft = Some(draft);
        self.written = self.written.saturating_add(size);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Finished, StorageError> {
        let (disk, written) = (Arc::clone(&self.disk), self.written);
        let draft = self.draft.take().ok_or_else(|| self.broken())?;
        blocking(move || {
            let key = draft.key.clone();
            let compare = |size: u64| {
                if size == written {
                    return Ok(size);
                }
                let problem = format!("{written} bytes were written, and the file has {size}");
                Err(StorageError::mismatch(disk.address(), &key, problem))
            };
            let size = draft.file.metadata().map(|metadata| metadata.len());
            compare(size.map_err(|error| disk.error(&format!("finish `{key}`"), &error))?)?;
            disk.publish_new(draft)?;
            let size = compare(disk.stat(&key)?.size)?;
            Ok(Finished { size, check: RemoteCheck::Size })
        })
        .await
    }

    async fn abort(mut self: Box<Self>) {
        let draft = self.draft.take();
        // The draft removes its file when it is dropped; done where it may block.
        let _ = blocking(move || {
            drop(draft);
            Ok(())
        })
        .await;
    }
}
