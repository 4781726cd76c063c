//! An object on its way into a bucket: one put while it fits into a part, a multipart upload beyond
//! that.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::config::{MIN_PART_BYTES, RetainMode};
use super::fault::Fault;
use super::{Bucket, PutOptions, crc, header};
use crate::model::RemoteCheck;
use crate::storage::{Capabilities, CreateOptions, Finished, Object, StorageError, Upload, salt};

/// The name of the metadata that tells our upload from another of the same key. When an answer is
/// lost and the request sent again, the store says that the key is not new: then this tells whether
/// it was we who wrote it.
pub(super) const TOKEN: &str = "holdfast-upload";
/// S3 refuses parts beyond this number.
const LAST_PART: i32 = 10_000;

/// A part that the store has acknowledged.
struct Part {
    etag: String,
    checksum: u32,
}

/// A multipart upload that was begun.
struct Multipart {
    id: String,
    begun_parts: i32,
    parts: BTreeMap<i32, Part>,
}

pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    key: String,
    token: String,
    /// What the store understood when this began; it holds for all of it.
    known: Capabilities,
    part_bytes: usize,
    /// How many parts travel while the next one fills.
    overlap: usize,
    buffer: BytesMut,
    /// Buffers of parts that have arrived.
    spare: Vec<BytesMut>,
    multipart: Option<Multipart>,
    uploads: JoinSet<Result<(i32, Part, Bytes), StorageError>>,
    size: u64,
    /// Whether all that was written is held or sent.
    intact: bool,
    /// Of the whole object.
    checksum: crc_fast::Digest,
}

impl S3Upload {
    pub(super) fn new(
        bucket: Arc<Bucket>,
        key: String,
        options: CreateOptions,
    ) -> Result<Self, StorageError> {
        let (part_bytes, overlap) = if options.small {
            (MIN_PART_BYTES, 0)
        } else {
            (bucket.config.part_size.bytes(), bucket.config.upload_concurrency)
        };
        let mut known = bucket.known();
        known.conditional_writes &= !options.replaces;
        Ok(Self {
            known,
            bucket,
            key,
            token: salt()?,
            part_bytes: usize::try_from(part_bytes).unwrap_or(usize::MAX),
            overlap,
            buffer: BytesMut::new(),
            spare: Vec::new(),
            multipart: None,
            uploads: JoinSet::new(),
            size: 0,
            intact: true,
            checksum: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi),
        })
    }

    fn attempt(&self) -> String {
        format!("write `{}`", self.key)
    }

    async fn begin(&mut self) -> Result<(), StorageError> {
        let config = &self.bucket.config;
        let mut request = self
            .bucket
            .client
            .create_multipart_upload()
            .bucket(&self.bucket.name)
            .key(self.bucket.full(&self.key))
            .metadata(TOKEN, &self.token)
            .set_storage_class(config.storage_class.as_deref().map(Into::into))
            .set_server_side_encryption(config.server_side_encryption.map(Into::into))
            .set_ssekms_key_id(config.kms_key_id.clone());
        if self.checked() {
            request = request
                .checksum_algorithm(ChecksumAlgorithm::Crc32C)
                .checksum_type(ChecksumType::Composite);
        }
        if let Some(until) = self.bucket.retain_until().await? {
            request = request
                .object_lock_mode(config.retain_mode.unwrap_or(RetainMode::Governance).into())
                .object_lock_retain_until_date(until);
        }
        tracing::debug!(bucket = self.bucket.name, key = self.key, "begin upload");
        let answer = self.bucket.until_cancelled(Box::pin(request.send())).await?;
        let answer =
            answer.map_err(|error| Fault::of(&error).into_error(&self.bucket, &self.attempt()))?;
        let id = answer.upload_id().ok_or_else(|| {
            self.bucket.failed(&self.attempt(), "the store gave the upload no id")
        })?;
        self.multipart =
            Some(Multipart { id: id.to_owned(), begun_parts: 0, parts: BTreeMap::new() });
        Ok(())
    }

    /// Whether checksums are sent. A lock is taken by S3 only for a body with a checksum.
    fn checked(&self) -> bool {
        self.known.checksums || self.bucket.config.retain_for.is_some()
    }

    /// Sends what is in the buffer as the next part, and waits until so few are under way that the
    /// next buffer may fill.
    async fn send_part(&mut self) -> Result<(), StorageError> {
        if self.multipart.is_none() {
            self.begin().await?;
        }
        self.wait_for_less_than(self.overlap.max(1)).await?;
        let checked = self.checked();
        let attempt = self.attempt();
        let Some(multipart) = &mut self.multipart else { return Ok(()) };
        if multipart.begun_parts >= LAST_PART {
            return Err(self.bucket.failed(
                &attempt,
                format!("it would be more than {LAST_PART} parts; raise `part_size`"),
            ));
        }
        multipart.begun_parts = multipart.begun_parts.saturating_add(1);
        let number = multipart.begun_parts;
        let body = std::mem::take(&mut self.buffer).freeze();
        let (bucket, full, id) =
            (Arc::clone(&self.bucket), self.bucket.full(&self.key), multipart.id.clone());
        self.uploads.spawn(async move {
            let checksum = crc(&body);
            tracing::debug!(
                bucket = bucket.name,
                key = full,
                part = number,
                bytes = body.len(),
                "upload part"
            );
            let request = bucket
                .client
                .upload_part()
                .bucket(&bucket.name)
                .key(&full)
                .upload_id(id)
                .part_number(number)
                .set_checksum_algorithm(checked.then_some(ChecksumAlgorithm::Crc32C))
                .set_checksum_crc32_c(checked.then(|| header(checksum)))
                .body(ByteStream::from(body.clone()));
            let sending =
                request.customize().config_override(bucket.transfers.of(body.len())).send();
            let answer = Box::pin(sending).await;
            let answer = answer.map_err(|error| Fault::of(&error).into_error(&bucket, &attempt))?;
            let etag = answer.e_tag().ok_or_else(|| {
                bucket.failed(&attempt, format!("the store gave part {number} no tag"))
            })?;
            Ok((number, Part { etag: etag.to_owned(), checksum }, body))
        });
        self.wait_for_less_than(self.overlap.saturating_add(1)).await
    }

    /// Waits until less than `count` parts are under way.
    async fn wait_for_less_than(&mut self, count: usize) -> Result<(), StorageError> {
        while self.uploads.len() >= count {
            let bucket = Arc::clone(&self.bucket);
            let (number, part, body) =
                match bucket.until_cancelled(self.uploads.join_next()).await? {
                    None => return Ok(()),
                    Some(Ok(result)) => result?,
                    Some(Err(error)) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => return Err(StorageError::cancelled()),
                    },
                };
            if let Some(multipart) = &mut self.multipart {
                multipart.parts.insert(number, part);
            }
            // The connection may still hold it; then it is freed when that lets go, and a new one
            // is made.
            if let Ok(mut buffer) = body.try_into_mut() {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
        Ok(())
    }

    /// Publishes what was written. Says nothing of what the store then has.
    async fn publish(&mut self) -> Result<(), StorageError> {
        if self.bucket.cancel.is_cancelled() {
            return Err(StorageError::cancelled());
        }
        if !self.intact {
            return Err(self
                .bucket
                .failed(&self.attempt(), "an earlier write failed or was given up midway"));
        }
        let published = if self.multipart.is_some() {
            self.send_part().await?;
            self.wait_for_less_than(1).await?;
            self.complete().await?
        } else {
            let body = std::mem::take(&mut self.buffer).freeze();
            let options = PutOptions {
                only_new: self.known.conditional_writes,
                checksum: self.checked().then(|| crc(&body)),
                upload: Some(self.token.clone()),
            };
            self.bucket.put(&self.key, body, options).await?
        };
        let Err(fault) = published else { return Ok(()) };
        // The answer to a request that took effect may have been lost, and the request sent again.
        // What a store says to the second differs: that the key is not new, that there is no such
        // upload, or even that it is not permitted.
        if self.bucket.head(&self.key).await.is_ok_and(|head| self.is_ours(&head)) {
            return Ok(());
        }
        if fault.is_precondition() {
            return Err(StorageError::already_exists(self.bucket.address(), &self.key));
        }
        Err(fault.into_error(&self.bucket, &self.attempt()))
    }

    async fn complete(&mut self) -> Result<Result<(), Fault>, StorageError> {
        let checked = self.checked();
        let Some(multipart) = &self.multipart else { return Ok(Ok(())) };
        let parts = multipart
            .parts
            .iter()
            .map(|(number, part)| {
                CompletedPart::builder()
                    .part_number(*number)
                    .e_tag(&part.etag)
                    .set_checksum_crc32_c(checked.then(|| header(part.checksum)))
                    .build()
            })
            .collect();
        let request = self
            .bucket
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket.name)
            .key(self.bucket.full(&self.key))
            .upload_id(&multipart.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .set_if_none_match(self.known.conditional_writes.then(|| "*".to_owned()));
        tracing::debug!(
            bucket = self.bucket.name,
            key = self.key,
            parts = multipart.begun_parts,
            "complete upload"
        );
        // A store may take minutes to join many parts.
        let time = self.bucket.transfers.of(MIN_PART_BYTES as usize);
        let sending = request.customize().config_override(time).send();
        Ok(self.bucket.answer(Box::pin(sending)).await.map(|_| ()))
    }

    fn is_ours(&self, head: &HeadObjectOutput) -> bool {
        head.metadata().and_then(|metadata| metadata.get(TOKEN)) == Some(&self.token)
    }

    /// Asks the store what it has, and compares it with what was sent. What is ours and wrong is
    /// withdrawn.
    async fn verify(&self) -> Result<RemoteCheck, StorageError> {
        let head = self.bucket.head(&self.key).await;
        let object = match &head {
            Ok(head) => self.bucket.object(&self.key, head),
            // It finds another way for those who may not look at objects.
            Err(_) => self.bucket.stat(&self.key).await,
        };
        let compared = match object {
            Ok(object) => self.compare(&object, head.as_ref().ok()),
            Err(error) if error.is_not_found() => Err("it is not there".to_owned()),
            Err(error) => return Err(error),
        };
        let problem = match compared {
            Ok(check) => return Ok(check),
            Err(problem) => problem,
        };
        if head.is_ok_and(|head| self.is_ours(&head))
            && let Err(fault) = self.bucket.delete(&self.key).await
        {
            let error = fault.into_error(&self.bucket, &format!("delete `{}`", self.key));
            tracing::warn!(%error, "An object that is not what was sent is left behind");
        }
        Err(StorageError::mismatch(self.bucket.address(), &self.key, problem))
    }

    /// Compares what was sent with what the store says of it. Returns what was compared, or what
    /// differs.
    fn compare(
        &self,
        object: &Object,
        head: Option<&HeadObjectOutput>,
    ) -> Result<RemoteCheck, String> {
        if object.size != self.size {
            return Err(format!("{} bytes were sent, and it has {}", self.size, object.size));
        }
        let stored =
            head.and_then(HeadObjectOutput::checksum_crc32_c).filter(|_| self.known.checksums);
        let Some(stored) = stored else { return Ok(RemoteCheck::Size) };
        let sent = self.sent_checksum(stored.contains('-'));
        if stored != sent {
            return Err(format!(
                "the CRC-32C of what was sent is `{sent}`, and that of what it has `{stored}`"
            ));
        }
        Ok(RemoteCheck::Crc32c)
    }

    /// The checksum as the store should have it: of the whole, or, for one made of parts, of their
    /// checksums with their number.
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html>
    fn sent_checksum(&self, composite: bool) -> String {
        match &self.multipart {
            Some(multipart) if composite => {
                let parts: Vec<u8> =
                    multipart.parts.values().flat_map(|part| part.checksum.to_be_bytes()).collect();
                format!("{}-{}", header(crc(&parts)), multipart.parts.len())
            }
            _ => header(u32::try_from(self.checksum.finalize()).unwrap_or_default()),
        }
    }

    /// Gives up what was begun.
    async fn give_up(&mut self) {
        self.uploads.shutdown().await;
        if let Some(multipart) = self.multipart.take() {
            let full = self.bucket.full(&self.key);
            if let Err(fault) = self.bucket.abort_upload(&full, &multipart.id).await {
                let error = fault
                    .into_error(&self.bucket, &format!("give up the upload of `{}`", self.key));
                tracing::warn!(%error, "An unfinished upload is left behind; a later run sweeps \
                    it");
            }
        }
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, mut chunk: Bytes) -> Result<(), StorageError> {
        if self.bucket.cancel.is_cancelled() {
            return Err(StorageError::cancelled());
        }
        // It stays so when this fails, or when whoever waits for it goes away.
        let intact = std::mem::replace(&mut self.intact, false);
        self.checksum.update(&chunk);
        self.size = self.size.saturating_add(chunk.len() as u64);
        while !chunk.is_empty() {
            // A full buffer is sent only when more follows: one part is a plain put.
            if self.buffer.len() >= self.part_bytes {
                self.send_part().await?;
            }
            // Memory that is not written to costs nothing, and growing by doubling would end beyond
            // the size of a part.
            if self.buffer.capacity() == 0 {
                self.buffer =
                    self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(self.part_bytes));
            }
            let room = self.part_bytes.saturating_sub(self.buffer.len()).min(chunk.len());
            self.buffer.extend_from_slice(&chunk.split_to(room));
        }
        self.intact = intact;
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<Finished, StorageError> {
        if let Err(error) = self.publish().await {
            self.give_up().await;
            return Err(error);
        }
        let check = self.verify().await;
        // Published: there is nothing to give up any more.
        self.multipart = None;
        Ok(Finished { size: self.size, check: check? })
    }

    async fn abort(mut self: Box<Self>) {
        self.give_up().await;
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        if let (Some(multipart), Ok(runtime)) =
            (self.multipart.take(), tokio::runtime::Handle::try_current())
        {
            self.uploads.abort_all();
            let (bucket, full) = (Arc::clone(&self.bucket), self.bucket.full(&self.key));
            runtime.spawn(async move {
                // What cannot be given up now is swept by a later run.
                let _ = bucket.abort_upload(&full, &multipart.id).await;
            });
        }
    }
}
