//! A bucket of S3 or of a store that speaks its protocol, through the AWS SDK. The only place that
//! knows the SDK.
//!
//! Stores differ in what they understand. What matters here is found out by [`Storage::probe`] and
//! kept for the storage's lifetime: whether a write can be refused when the key is not new, and
//! whether a body is checked against a checksum. Before that neither is assumed. Safety rests on
//! neither: keys of snapshots are unique, and after each upload the store is asked what it has.
//!
//! The bucket must exist and is never made. Some stores take objects for a bucket that does not
//! exist, and keep them; a wrong name is then not noticed here.
//!
//! Deleting from a bucket with versions hides the object and keeps the version; a rule of the
//! bucket's lifecycle frees the space.

mod config;
mod fault;
mod http;
mod list;
mod read;
mod upload;

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::list_multipart_uploads::ListMultipartUploadsOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime as SdkTime};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ObjectLockLegalHoldStatus};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::{self, BoxStream, StreamExt};

use self::config::{Dates, Transfers};
pub use self::config::{RetainMode, S3Config, ServerSideEncryption};
use self::fault::Fault;
use self::list::{Listing, listed};
use self::upload::S3Upload;
use super::{
    Capabilities, CreateOptions, Object, ObjectLock, Patience, Storage, StorageError,
    StorageErrorKind, Upload, check_key, check_prefix, named,
};
use crate::model::Cancel;

/// S3 takes 10,000 parts; the rest is room for error.
const MAX_PARTS: u64 = 9_000;
/// How long a request that moves little may go on after the run was cancelled: what tidies up, and
/// what takes effect at a moment that is not known here.
const CANCEL_GRACE: Duration = Duration::from_secs(5);

/// The storage of a [`S3Config`].
pub struct S3 {
    bucket: Arc<Bucket>,
}

/// What every request needs.
struct Bucket {
    client: Client,
    config: S3Config,
    name: String,
    /// Before every key: empty, or ending in `/`.
    prefix: String,
    /// Where requests are sent, for messages.
    endpoint: String,
    cancel: Cancel,
    /// How long requests take that move content.
    transfers: Transfers,
    known: Mutex<Option<Capabilities>>,
}

impl S3 {
    /// The storage that `config` describes. A cancelled run ends what writes and reads; what tidies
    /// up goes on, for a few seconds a request.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub async fn open(
        config: &S3Config,
        patience: Patience,
        cancel: &Cancel,
    ) -> Result<Self, StorageError> {
        // Loading the shared configuration makes a large future.
        let connected = Box::pin(config.client(patience)).await?;
        Ok(Self {
            bucket: Arc::new(Bucket {
                client: connected.client,
                name: config.bucket.clone(),
                prefix: config.key_prefix(),
                endpoint: connected.endpoint,
                cancel: cancel.clone(),
                known: Mutex::new(None),
                transfers: Transfers::new(config, patience),
                config: config.clone(),
            }),
        })
    }
}

/// How a small object is written whole.
#[derive(Default)]
struct PutOptions {
    /// Only if the key is new.
    only_new: bool,
    /// With this checksum of the body.
    checksum: Option<u32>,
    /// With the token of an upload, and locked as configured.
    upload: Option<String>,
}

impl Bucket {
    fn address(&self) -> String {
        self.config.address()
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// What the store understands; nothing before it was probed.
    fn known(&self) -> Capabilities {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.unwrap_or(Capabilities { conditional_writes: false, checksums: false })
    }

    /// The text without the credentials of the configuration, which some stores repeat, and others.
    fn without_credentials(&self, text: &str) -> String {
        let config = &self.config;
        let secrets = [&config.access_key_id, &config.secret_access_key, &config.session_token];
        let text = secrets
            .into_iter()
            .flatten()
            .filter(|secret| !secret.expose().is_empty())
            .fold(text.to_owned(), |text, secret| text.replace(secret.expose(), "***"));
        crate::model::without_credentials(&text)
    }

    fn failed(&self, attempt: &str, problem: impl Into<String>) -> StorageError {
        StorageError::failed(self.address(), attempt, problem)
    }

    fn unavailable(&self, attempt: &str, problem: impl Into<String>) -> StorageError {
        StorageError::new(StorageErrorKind::Unavailable, self.address(), attempt, problem)
    }

    fn not_found(&self, key: &str) -> StorageError {
        StorageError::not_found(self.address(), key)
    }

    /// Waits for a request, but not longer than until the run is cancelled.
    async fn until_cancelled<T>(
        &self,
        request: impl Future<Output = T>,
    ) -> Result<T, StorageError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(StorageError::cancelled()),
            result = request => Ok(result),
        }
    }

    /// Waits for the answer to a request that moves little. A cancelled run gives it some seconds,
    /// so that the answer is had and what is left can be tidied up; a store that does not answer at
    /// all holds nobody up.
    async fn answer<T, E>(
        &self,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Fault>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        tokio::select! {
            biased;
            result = request => result.map_err(|error| Fault::of(&error)),
            () = async {
                self.cancel.cancelled().await;
                tokio::time::sleep(CANCEL_GRACE).await;
            } => Err(Fault::cancelled()),
        }
    }

    /// The same bucket for the rest of a commit that has begun: nothing of it is cancelled.
    fn steady(&self) -> Self {
        Self {
            client: self.client.clone(),
            config: self.config.clone(),
            name: self.name.clone(),
            prefix: self.prefix.clone(),
            endpoint: self.endpoint.clone(),
            cancel: Cancel::new(),
            transfers: self.transfers,
            known: Mutex::new(Some(self.known())),
        }
    }

    /// Until when an object that is written now is locked, by the store's clock.
    async fn retain_until(&self) -> Result<Option<SdkTime>, StorageError> {
        let Some(span) = self.config.retain_for else { return Ok(None) };
        let seconds = i64::try_from(span.duration().as_secs()).unwrap_or(i64::MAX);
        Ok(Some(SdkTime::from_secs(self.now().await?.timestamp().saturating_add(seconds))))
    }

    async fn put(
        &self,
        key: &str,
        body: Bytes,
        options: PutOptions,
    ) -> Result<Result<(), Fault>, StorageError> {
        tracing::debug!(
            bucket = self.name,
            key,
            bytes = body.len(),
            only_new = options.only_new,
            "put"
        );
        let size = body.len();
        let mut request = self
            .client
            .put_object()
            .bucket(&self.name)
            .key(self.full(key))
            .set_storage_class(self.config.storage_class.as_deref().map(Into::into))
            .set_server_side_encryption(self.config.server_side_encryption.map(Into::into))
            .set_ssekms_key_id(self.config.kms_key_id.clone())
            .set_checksum_algorithm(options.checksum.map(|_| ChecksumAlgorithm::Crc32C))
            .set_checksum_crc32_c(options.checksum.map(header))
            .set_if_none_match(options.only_new.then(|| "*".to_owned()))
            .body(ByteStream::from(body));
        if let Some(token) = options.upload {
            request = request.metadata(upload::TOKEN, token);
            if let Some(until) = self.retain_until().await? {
                request = request
                    .object_lock_mode(
                        self.config.retain_mode.unwrap_or(RetainMode::Governance).into(),
                    )
                    .object_lock_retain_until_date(until);
            }
        }
        let sending = request.customize().config_override(self.transfers.of(size)).send();
        Ok(self.answer(Box::pin(sending)).await.map(|_| ()))
    }

    async fn head(&self, key: &str) -> Result<HeadObjectOutput, Fault> {
        tracing::debug!(bucket = self.name, key, "head");
        let request = self
            .client
            .head_object()
            .bucket(&self.name)
            .key(self.full(key))
            .checksum_mode(ChecksumMode::Enabled);
        self.answer(Box::pin(request.send())).await
    }

    /// What a HEAD says of an object.
    fn object(&self, key: &str, head: &HeadObjectOutput) -> Result<Object, StorageError> {
        let attempt = format!("look up `{key}`");
        let size = head
            .content_length()
            .and_then(|size| u64::try_from(size).ok())
            .ok_or_else(|| self.failed(&attempt, "the answer has no size"))?;
        let modified = head
            .last_modified()
            .and_then(time)
            .ok_or_else(|| self.failed(&attempt, "the answer has no time of change"))?;
        Ok(Object { key: key.to_owned(), size, modified, irregular: None })
    }

    /// What the listing says of an object: for those who may list but not read.
    async fn stat_by_list(&self, key: &str) -> Result<Object, StorageError> {
        let page = list::page(self, key, &self.full(key), None, Some(1)).await?;
        // The key itself is before all that begin with it.
        let found =
            page.contents().first().filter(|object| object.key() == Some(self.full(key).as_str()));
        found.and_then(|object| listed(object, key.to_owned())).ok_or_else(|| self.not_found(key))
    }

    async fn stat(&self, key: &str) -> Result<Object, StorageError> {
        match self.head(key).await {
            Ok(head) => self.object(key, &head),
            Err(fault) if fault.is_missing() => Err(self.not_found(key)),
            Err(fault) if fault.is_wordless() => match self.stat_by_list(key).await {
                // The listing is refused in words, the look-up is not.
                Err(error) if error.is_denied() => Err(error.of(format!("look up `{key}`"))),
                result => result,
            },
            Err(fault) => Err(fault.into_error(self, &format!("look up `{key}`"))),
        }
    }

    async fn now(&self) -> Result<DateTime<Utc>, StorageError> {
        let attempt = "ask for the time";
        let dates = Dates::default();
        let request =
            self.client.head_bucket().bucket(&self.name).customize().interceptor(dates.clone());
        match self.answer(Box::pin(request.send())).await {
            Ok(_) => {}
            // Whoever may only write is told the time too.
            Err(fault) if fault.is_denied() => {
                return dates.latest().ok_or_else(|| fault.into_error(self, attempt));
            }
            Err(fault) if fault.is_missing() => {
                return Err(self.failed(attempt, format!("there is no bucket `{}`", self.name)));
            }
            Err(fault) => return Err(fault.into_error(self, attempt)),
        }
        dates.latest().ok_or_else(|| self.failed(attempt, "the answer has no date"))
    }

    async fn delete(&self, key: &str) -> Result<(), Fault> {
        tracing::debug!(bucket = self.name, key, "delete");
        let request = self.client.delete_object().bucket(&self.name).key(self.full(key));
        match self.answer(Box::pin(request.send())).await {
            Err(fault) if !fault.is_missing() => Err(fault),
            _ => Ok(()),
        }
    }

    async fn abort_upload(&self, full_key: &str, id: &str) -> Result<(), Fault> {
        tracing::debug!(bucket = self.name, key = full_key, "abort upload");
        let request =
            self.client.abort_multipart_upload().bucket(&self.name).key(full_key).upload_id(id);
        match self.answer(Box::pin(request.send())).await {
            Err(fault) if !fault.is_no_such_upload() => Err(fault),
            _ => Ok(()),
        }
    }

    /// The lock of an object, if it has one now. One that is not there has none.
    async fn lock_of(&self, key: &str) -> Result<Option<ObjectLock>, Fault> {
        let head = match self.head(key).await {
            Err(fault) if fault.is_missing() => return Ok(None),
            head => head?,
        };
        if head.object_lock_legal_hold_status() == Some(&ObjectLockLegalHoldStatus::On) {
            return Ok(Some(ObjectLock { until: None }));
        }
        let Some(until) = head.object_lock_retain_until_date().and_then(time) else {
            return Ok(None);
        };
        // By the store's clock; where that cannot be asked it is taken to be locked still.
        let over = self.now().await.is_ok_and(|now| until <= now);
        Ok((!over).then_some(ObjectLock { until: Some(until) }))
    }
}

#[async_trait]
impl Storage for S3 {
    fn address(&self) -> String {
        self.bucket.address()
    }

    fn place(&self) -> String {
        self.bucket.config.place()
    }

    async fn create(
        &self,
        key: &str,
        options: CreateOptions,
    ) -> Result<Box<dyn Upload>, StorageError> {
        check_key(key)?;
        // Not every store refuses a key that is not new at the end, so it is looked at the
        // beginning. Who may not look does without.
        let bucket = if options.steady { &Arc::new(self.bucket.steady()) } else { &self.bucket };
        match bucket.until_cancelled(bucket.stat(key)).await? {
            Ok(_) if options.replaces => Ok(()),
            Ok(_) => Err(StorageError::already_exists(bucket.address(), key)),
            Err(error) if error.is_not_found() || error.is_denied() => Ok(()),
            Err(error) => Err(error),
        }?;
        Ok(Box::new(S3Upload::new(Arc::clone(bucket), key.to_owned(), options)?))
    }

    async fn replace(&self, key: &str, body: Bytes) -> Result<(), StorageError> {
        check_key(key)?;
        let checksum = self.bucket.known().checksums.then(|| crc(&body));
        let put = self.bucket.put(key, body, PutOptions { checksum, ..PutOptions::default() });
        put.await?.map_err(|fault| fault.into_error(&self.bucket, &format!("write `{key}`")))
    }

    async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        check_key(key)?;
        read::read(Arc::clone(&self.bucket), key, range, false).await
    }

    async fn read_document(
        &self,
        key: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        check_key(key)?;
        read::read(Arc::clone(&self.bucket), key, None, true).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Object, StorageError>> {
        if let Err(error) = check_prefix(prefix) {
            return stream::once(async { Err(error) }).boxed();
        }
        Listing::new(Arc::clone(&self.bucket), prefix).into_stream()
    }

    async fn beside(&self) -> Vec<String> {
        if self.bucket.prefix.is_empty() {
            return Vec::new();
        }
        list::folders(&self.bucket).await
    }

    async fn stat(&self, key: &str) -> Result<Object, StorageError> {
        check_key(key)?;
        self.bucket.stat(key).await
    }

    async fn delete(&self, key: &str) -> Result<(), StorageError> {
        check_key(key)?;
        let bucket = &self.bucket;
        let locked = |until| StorageError::locked(bucket.address(), key, until);
        // A bucket with Object Lock keeps versions, and there a plain delete hides even a locked
        // object. So it is looked first.
        if bucket.config.retain_for.is_some()
            && let Ok(Some(lock)) = bucket.lock_of(key).await
        {
            return Err(locked(lock.until));
        }
        match bucket.delete(key).await {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_locked() || fault.is_denied() => match bucket.lock_of(key).await
            {
                Ok(Some(lock)) => Err(locked(lock.until)),
                _ if fault.is_locked() => Err(locked(None)),
                _ => Err(fault.into_error(bucket, &format!("delete `{key}`"))),
            },
            Err(fault) => Err(fault.into_error(bucket, &format!("delete `{key}`"))),
        }
    }

    async fn lock_of(&self, key: &str) -> Result<Option<ObjectLock>, StorageError> {
        check_key(key)?;
        let lock = self.bucket.lock_of(key).await;
        lock.map_err(|fault| {
            fault.into_error(&self.bucket, &format!("ask for the lock of `{key}`"))
        })
    }

    async fn sweep_uploads(
        &self,
        prefix: &str,
        before: DateTime<Utc>,
    ) -> Result<u64, StorageError> {
        check_prefix(prefix)?;
        let bucket = &self.bucket;
        let (attempt, full) =
            (format!("sweep unfinished uploads of {}", named(prefix)), bucket.full(prefix));
        let mut swept = 0;
        let mut markers: Option<(Option<String>, Option<String>)> = None;
        loop {
            let (key_marker, id_marker) = markers.clone().unwrap_or_default();
            let request = bucket
                .client
                .list_multipart_uploads()
                .bucket(&bucket.name)
                .prefix(&full)
                .set_key_marker(key_marker)
                .set_upload_id_marker(id_marker);
            let page: ListMultipartUploadsOutput =
                match bucket.answer(Box::pin(request.send())).await {
                    Ok(page) => page,
                    Err(fault) if fault.is_unknown_request() => return Ok(swept),
                    Err(fault) => return Err(fault.into_error(bucket, &attempt)),
                };
            for upload in page.uploads() {
                let (Some(key), Some(id), Some(begun)) =
                    (upload.key(), upload.upload_id(), upload.initiated().and_then(time))
                else {
                    continue;
                };
                // A store that does not heed the prefix must not have others' uploads given up.
                if begun < before && key.starts_with(&full) {
                    bucket
                        .abort_upload(key, id)
                        .await
                        .map_err(|fault| fault.into_error(bucket, &attempt))?;
                    swept = swept.saturating_add(1);
                }
            }
            if page.is_truncated() != Some(true) {
                return Ok(swept);
            }
            let next = (
                page.next_key_marker().map(ToOwned::to_owned),
                page.next_upload_id_marker().map(ToOwned::to_owned),
            );
            if next.0.is_none() || markers.as_ref() == Some(&next) {
                return Err(
                    bucket.failed(&attempt, "the list of uploads goes on, but does not say where")
                );
            }
            markers = Some(next);
        }
    }

    async fn probe(&self, key: &str, body: Bytes) -> Result<Capabilities, StorageError> {
        check_key(key)?;
        let bucket = &self.bucket;
        let attempt = format!("write `{key}`");
        let put = |options| bucket.put(key, body.clone(), options);
        let error = |fault: Fault| fault.into_error(bucket, &attempt);
        put(PutOptions::default()).await?.map_err(error)?;
        let conditional_writes =
            match put(PutOptions { only_new: true, ..PutOptions::default() }).await? {
                Ok(()) => false,
                Err(fault) if fault.is_precondition() => true,
                Err(fault) if fault.is_refusal() || fault.is_unknown_request() => false,
                Err(fault) => return Err(error(fault)),
            };
        let wrong = Some(!crc(&body));
        let checksums = match put(PutOptions { checksum: wrong, ..PutOptions::default() }).await? {
            Ok(()) => false,
            Err(fault) if fault.is_refusal() => {
                // A store that refuses the header whatever it says does not understand it either.
                let right = Some(crc(&body));
                match put(PutOptions { checksum: right, ..PutOptions::default() }).await? {
                    Ok(()) => true,
                    Err(fault) if fault.is_refusal() => false,
                    Err(fault) => return Err(error(fault)),
                }
            }
            Err(fault) if fault.is_unknown_request() => false,
            Err(fault) => return Err(error(fault)),
        };
        if !checksums {
            // Some store kept the refused body, or none at all.
            put(PutOptions::default()).await?.map_err(error)?;
        }
        let known = Capabilities { conditional_writes, checksums };
        *bucket.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        tracing::debug!(bucket = bucket.name, conditional_writes, checksums, "probed");
        Ok(known)
    }

    async fn now(&self) -> Result<DateTime<Utc>, StorageError> {
        self.bucket.now().await
    }

    async fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }

    async fn lock(&self, _folder: &str) -> Result<Option<Box<dyn Send + Sync>>, StorageError> {
        Ok(None)
    }

    fn max_object_bytes(&self) -> Option<u64> {
        Some(self.bucket.config.part_size.bytes().saturating_mul(MAX_PARTS))
    }
}

fn time(time: &SdkTime) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.secs(), time.subsec_nanos())
}

/// The CRC-32C (Castagnoli) of `bytes`.
fn crc(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// A checksum as it travels: base64 of its bytes, the highest first.
fn header(checksum: u32) -> String {
    BASE64_STANDARD.encode(checksum.to_be_bytes())
}
