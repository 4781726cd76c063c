//! Reading an object, or a range of it. A body that breaks off is asked for again from where it
//! broke: a restore of hours must not begin anew for one lost connection.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};

use super::Bucket;
use super::fault::{Fault, chain};
use crate::storage::StorageError;

/// How long a body may send nothing.
const STALL: Duration = Duration::from_secs(60);

/// An object that is being read.
struct Reading {
    bucket: Arc<Bucket>,
    key: String,
    /// It is small, and its answer is waited for as for that of a look-up.
    is_document: bool,
    body: ByteStream,
    /// The next byte that is wanted, counted from the start of the object.
    next: u64,
    /// The end of what is wanted.
    end: u64,
    /// The object's version: it must not change midway.
    etag: Option<String>,
    /// How often the body broke since the last byte came.
    broken: u32,
}

/// The bytes of `key`, or of a range of it.
pub(super) async fn read(
    bucket: Arc<Bucket>,
    key: &str,
    range: Option<Range<u64>>,
    is_document: bool,
) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
    if let Some(range) = &range
        && range.start >= range.end
    {
        // HTTP has no word for a range of nothing.
        let size = bucket.stat(key).await?.size;
        if range.start > range.end || range.end > size {
            let problem =
                format!("bytes {} to {} were asked for, but it has {size}", range.start, range.end);
            return Err(bucket.failed(&attempt(key), problem));
        }
        return Ok(stream::empty().boxed());
    }
    let mut reading = Reading {
        bucket,
        key: key.to_owned(),
        is_document,
        body: ByteStream::default(),
        next: range.as_ref().map_or(0, |range| range.start),
        end: 0,
        etag: None,
        broken: 0,
    };
    let size = reading.ask(range.clone()).await?;
    reading.end = range.map_or(size, |range| range.end);
    Ok(stream::try_unfold(reading, |mut reading| async move {
        Ok(reading.chunk().await?.map(|chunk| (chunk, reading)))
    })
    .boxed())
}

fn attempt(key: &str) -> String {
    format!("read `{key}`")
}

impl Reading {
    /// Asks for the object or a range of it. Returns how many bytes are coming.
    async fn ask(&mut self, range: Option<Range<u64>>) -> Result<u64, StorageError> {
        let bucket = &self.bucket;
        tracing::debug!(bucket = bucket.name, key = self.key, ?range, "get");
        let wanted = range.as_ref().map(|range| range.end.saturating_sub(range.start));
        let request = bucket
            .client
            .get_object()
            .bucket(&bucket.name)
            .key(bucket.full(&self.key))
            .set_if_match(self.etag.clone())
            .set_range(
                range.map(|range| format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
            );
        let mut request = request.customize();
        if !self.is_document {
            request = request.config_override(bucket.transfers.of(0));
        }
        let answer = bucket.until_cancelled(Box::pin(request.send())).await?.map_err(|error| {
            let fault = Fault::of(&error);
            if fault.is_missing() {
                bucket.not_found(&self.key)
            } else if fault.is_precondition() {
                bucket.failed(&attempt(&self.key), "it was changed while it was read")
            } else {
                fault.into_error(bucket, &attempt(&self.key))
            }
        })?;
        let size = answer
            .content_length()
            .and_then(|size| u64::try_from(size).ok())
            .ok_or_else(|| bucket.failed(&attempt(&self.key), "the answer has no size"))?;
        if wanted.is_some_and(|wanted| wanted != size) {
            let problem = format!(
                "{} bytes of it were asked for, and {size} are sent",
                wanted.unwrap_or_default()
            );
            return Err(bucket.failed(&attempt(&self.key), problem));
        }
        self.etag = answer.e_tag().map(ToOwned::to_owned);
        self.body = answer.body;
        Ok(size)
    }

    /// The next bytes; none at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        while self.next < self.end {
            let left = self.end.saturating_sub(self.next);
            let stall = match self.is_document {
                true => self.bucket.config.timeout.duration(),
                false => STALL,
            };
            let next = tokio::time::timeout(stall, self.body.next());
            let problem = match self.bucket.until_cancelled(next).await? {
                Ok(Some(Ok(chunk))) if chunk.len() as u64 > left => {
                    return Err(self
                        .bucket
                        .failed(&attempt(&self.key), "more was sent than was announced"));
                }
                Ok(Some(Ok(chunk))) => {
                    self.next = self.next.saturating_add(chunk.len() as u64);
                    self.broken = 0;
                    return Ok(Some(chunk));
                }
                Ok(Some(Err(error))) => {
                    format!("the answer broke off {left} bytes before its end ({})", chain(&error))
                }
                Ok(None) => format!("the answer ended {left} bytes before its end"),
                Err(_) => {
                    format!("nothing came for {} s, {left} bytes before the end", stall.as_secs())
                }
            };
            self.broken = self.broken.saturating_add(1);
            if self.broken >= self.bucket.config.attempts {
                return Err(self.bucket.unavailable(&attempt(&self.key), problem));
            }
            tracing::debug!(bucket = self.bucket.name, key = self.key, problem, "read on");
            self.ask(Some(self.next..self.end)).await?;
        }
        Ok(None)
    }
}
