//! The configuration of a bucket, and the client made of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, InterceptorContext,
};
use aws_sdk_s3::config::retry::{
    ClassifyRetry, RetryAction, RetryConfig, RetryPartition, TokenBucket,
};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Config, ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::BoxError;
use aws_types::service_config::ServiceConfigKey;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::http;
use crate::model::{ByteSize, Secret, Span, without_credentials};
use crate::storage::{Patience, StorageError, check_key, default_timeout};

/// The smallest part that S3 takes, but for the last one:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>.
pub(super) const MIN_PART_BYTES: u64 = 5 << 20;
/// Beyond this a part is not a bound of memory any more.
const MAX_PART_BYTES: u64 = 1 << 30;
const MOST_CONCURRENT: usize = 64;
const MOST_ATTEMPTS: u32 = 100;
/// More memory for the parts of one upload is a mistake.
const MOST_PARTS_BYTES: u64 = 8 << 30;
/// The region of a store that does not have any.
const ANY_REGION: &str = "us-east-1";
const CONNECT: Duration = Duration::from_secs(10);
/// How long a request that moves content may take until its answer begins, beside the transfer.
const QUICK: Duration = Duration::from_secs(60);
/// The slowest uplink that is waited for, in bytes a second.
const SLOWEST: u64 = 16 << 10;
/// How long a connection may move nothing.
const STALL: Duration = Duration::from_secs(60);
/// So often a request is sent at most while somebody watches: the reason why it fails is told
/// before the time is over.
const WATCHED_ATTEMPTS: u32 = 4;
const MAX_BACKOFF: Duration = Duration::from_secs(20);

/// A bucket of S3 or of a store that speaks its protocol.
///
/// What is not set is taken from where every program with the AWS SDK takes it: the variables
/// `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …, the shared configuration files, the
/// identity of the machine.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket. It must exist.
    pub bucket: String,
    /// The folder in the bucket that everything is kept in: `backups/clinic`. Default: the bucket
    /// itself.
    #[serde(default)]
    pub prefix: String,
    /// The address of a store other than AWS: `https://s3.example.org`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region. Where an endpoint is set and nothing else names a region, `us-east-1`.
    #[serde(default)]
    pub region: Option<String>,
    /// Whether the bucket stands in the path of the address and not in the host name. Default: when
    /// an endpoint is set.
    #[serde(default)]
    pub path_style: Option<bool>,
    /// The id of the access key.
    #[serde(default)]
    pub access_key_id: Option<Secret>,
    /// The secret of the access key.
    #[serde(default)]
    pub secret_access_key: Option<Secret>,
    /// The token of a temporary access key.
    #[serde(default)]
    pub session_token: Option<Secret>,
    /// The storage class of new objects: `STANDARD_IA`, say. One that must be thawed before it is
    /// read cannot be verified.
    #[serde(default)]
    pub storage_class: Option<String>,
    /// Encryption by the store, beside our own.
    #[serde(default)]
    pub server_side_encryption: Option<ServerSideEncryption>,
    /// The key for `server_side_encryption = "aws:kms"`.
    #[serde(default)]
    pub kms_key_id: Option<String>,
    /// How long the store shall refuse to delete a new object (Object Lock; the bucket must have it
    /// enabled): `30d`.
    #[serde(default)]
    #[schemars(extend("x-minimum" = "1h", "x-maximum" = "36600d"))]
    pub retain_for: Option<Span>,
    /// Who may shorten that: with `governance` (the default) those with a special permission, with
    /// `compliance` nobody.
    #[serde(default)]
    pub retain_mode: Option<RetainMode>,
    // The whole program shall stay at 64 MiB with two compressing threads and two buckets side by
    // side. For each, two buffers are held, one that fills and one that is uploaded; with parts of
    // 8 MiB they alone would be half of that.
    /// The size of a part of an upload, from 5 MiB (the default). Larger ones are faster where the
    /// way to the store is long. Memory is this times `upload_concurrency` + 1; an object is at
    /// most 9,000 parts.
    #[serde(default = "default_part_size")]
    #[schemars(extend("x-minimum" = "5MiB", "x-maximum" = "1GiB"))]
    pub part_size: ByteSize,
    /// How many parts are uploaded at once while the next one fills.
    #[serde(default = "default_upload_concurrency")]
    #[schemars(range(min = 1, max = MOST_CONCURRENT))]
    pub upload_concurrency: usize,
    /// How often a request is sent, the first time included, while it fails in a way that may pass.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 1, max = MOST_ATTEMPTS))]
    pub attempts: u32,
    /// How long the store may take to answer one attempt of a small request: a page of a listing, a
    /// look-up, a delete, a document. Uploads and downloads have longer. A command that shows
    /// something gives up then; a run tries again, up to `attempts`.
    #[serde(default = "default_timeout")]
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "1h"))]
    pub timeout: Span,
    /// A file with the certificates (PEM) of an authority that the endpoint's certificate is from,
    /// beside those that the system trusts.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

fn default_part_size() -> ByteSize {
    ByteSize(MIN_PART_BYTES)
}

fn default_upload_concurrency() -> usize {
    1
}

fn default_attempts() -> u32 {
    6
}

/// How a store encrypts an object at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerSideEncryption {
    /// With a key of the store.
    #[serde(rename = "AES256")]
    Aes256,
    /// With a key of the key service.
    #[serde(rename = "aws:kms")]
    Kms,
}

/// Who may take a lock off an object before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RetainMode {
    /// Whoever has the permission `s3:BypassGovernanceRetention`.
    Governance,
    /// Nobody.
    Compliance,
}

impl From<ServerSideEncryption> for aws_sdk_s3::types::ServerSideEncryption {
    fn from(encryption: ServerSideEncryption) -> Self {
        match encryption {
            ServerSideEncryption::Aes256 => Self::Aes256,
            ServerSideEncryption::Kms => Self::AwsKms,
        }
    }
}

impl From<RetainMode> for aws_sdk_s3::types::ObjectLockMode {
    fn from(mode: RetainMode) -> Self {
        match mode {
            RetainMode::Governance => Self::Governance,
            RetainMode::Compliance => Self::Compliance,
        }
    }
}

impl S3Config {
    /// The bucket `bucket` with everything else by default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            storage_class: None,
            server_side_encryption: None,
            kms_key_id: None,
            retain_for: None,
            retain_mode: None,
            part_size: default_part_size(),
            upload_concurrency: default_upload_concurrency(),
            attempts: default_attempts(),
            timeout: default_timeout(),
            ca_file: None,
        }
    }

    /// The bucket that `s3://bucket/prefix` means.
    ///
    /// # Errors
    /// When it is not of that form.
    pub fn from_address(address: &str) -> Result<Self, StorageError> {
        let rest = address.strip_prefix("s3://").unwrap_or(address);
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let config = Self { prefix: prefix.to_owned(), ..Self::new(bucket) };
        config.check()?;
        Ok(config)
    }

    /// Makes relative paths absolute.
    pub fn resolve(&mut self, base: &Path) {
        if let Some(file) = &mut self.ca_file {
            *file = crate::model::counted_from(base, file);
        }
    }

    /// What every key begins with: empty, or the prefix and a `/`.
    pub(super) fn key_prefix(&self) -> String {
        match self.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        }
    }

    pub(super) fn address(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key_prefix()).trim_end_matches('/').to_owned()
    }

    /// The address, and the store that it is at: buckets of two stores may have the same name.
    pub(in crate::storage) fn place(&self) -> String {
        match &self.endpoint {
            None => self.address(),
            Some(endpoint) => format!("{} at {}", self.address(), endpoint.trim_end_matches('/')),
        }
    }

    /// Why the parts of an upload take more memory than any machine should give them.
    pub fn takes_too_much(&self) -> Option<String> {
        let parts = u64::try_from(self.upload_concurrency).unwrap_or(u64::MAX).saturating_add(1);
        let bytes = self.part_size.bytes().saturating_mul(parts);
        (bytes > MOST_PARTS_BYTES).then(|| {
            format!(
                "An upload would hold {parts} parts of {}, which is {} of memory: expected at most \
                 {}",
                self.part_size,
                ByteSize(bytes),
                ByteSize(MOST_PARTS_BYTES)
            )
        })
    }

    /// Its storage class, where AWS has none of that name.
    pub fn unknown_class(&self) -> Option<&str> {
        let known = aws_sdk_s3::types::StorageClass::values();
        self.storage_class.as_deref().filter(|class| !known.contains(class))
    }

    /// Refuses what could never work.
    ///
    /// # Errors
    /// [`StorageErrorKind::Unsuitable`](crate::storage::StorageErrorKind::Unsuitable).
    pub fn check(&self) -> Result<(), StorageError> {
        let unsuitable = |problem: String| {
            Err(StorageError::unsuitable(format!(
                "The storage `{}` cannot be used: {problem}",
                self.address()
            )))
        };
        let is_arn = self.bucket.starts_with("arn:");
        if self.bucket.is_empty()
            || self.bucket.contains(['/', '@'])
            || self.bucket.contains(':') && !is_arn
        {
            // Not repeated: some put the key before the name.
            return Err(StorageError::unsuitable(
                "That is not the name of a bucket. Keys do not belong into an address: set \
                 `access_key_id` and `secret_access_key`, or the variables `AWS_ACCESS_KEY_ID` and \
                 `AWS_SECRET_ACCESS_KEY`",
            ));
        }
        if let Some(prefix) = self.key_prefix().strip_suffix('/')
            && let Err(error) = check_key(prefix)
        {
            return unsuitable(format!("its `prefix`: {error}"));
        }
        if let Some(endpoint) = &self.endpoint {
            let fits = url::Url::parse(endpoint).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.has_host()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none()
                    && url.fragment().is_none()
                    && !url.path().contains('@')
            });
            if !fits {
                return unsuitable(
                    "its `endpoint` must be of the form `https://HOST` or `http://HOST:PORT`, \
                     without a user"
                        .to_owned(),
                );
            }
        }
        if self.access_key_id.is_some() != self.secret_access_key.is_some() {
            return unsuitable(
                "`access_key_id` and `secret_access_key` are set together or not at all".to_owned(),
            );
        }
        if self.session_token.is_some() && self.access_key_id.is_none() {
            return unsuitable("`session_token` is set without `access_key_id`".to_owned());
        }
        if self.kms_key_id.is_some()
            && self.server_side_encryption != Some(ServerSideEncryption::Kms)
        {
            return unsuitable(
                "`kms_key_id` needs `server_side_encryption = \"aws:kms\"`".to_owned(),
            );
        }
        if self.retain_mode.is_some() && self.retain_for.is_none() {
            return unsuitable("`retain_mode` needs `retain_for`".to_owned());
        }
        if !(MIN_PART_BYTES..=MAX_PART_BYTES).contains(&self.part_size.bytes()) {
            return unsuitable(format!(
                "its `part_size` is {}, and must be from {} to {}",
                self.part_size,
                ByteSize(MIN_PART_BYTES),
                ByteSize(MAX_PART_BYTES)
            ));
        }
        if !(1..=MOST_CONCURRENT).contains(&self.upload_concurrency) {
            return unsuitable(format!(
                "its `upload_concurrency` must be from 1 to {MOST_CONCURRENT}"
            ));
        }
        if !(1..=MOST_ATTEMPTS).contains(&self.attempts) {
            return unsuitable(format!("its `attempts` must be from 1 to {MOST_ATTEMPTS}"));
        }
        Ok(())
    }

    /// Makes the client. Contacts nobody but, where neither region nor endpoint is set anywhere,
    /// the identity service of the machine.
    pub(super) async fn client(&self, patience: Patience) -> Result<Connected, StorageError> {
        self.check()?;
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(endpoint) = &self.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        } else if self.endpoint.is_some() {
            // Without the identity service of AWS, which is waited for in vain elsewhere.
            loader = loader.region(
                RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                    .or_else(ProfileFileRegionProvider::new())
                    .or_else(Region::from_static(ANY_REGION)),
            );
        }
        if let (Some(id), Some(secret)) = (&self.access_key_id, &self.secret_access_key) {
            let token = self.session_token.as_ref().map(|token| token.expose().to_owned());
            loader = loader.credentials_provider(Credentials::new(
                id.expose(),
                secret.expose(),
                token,
                None,
                "the configuration",
            ));
        }
        let clients = match &self.ca_file {
            Some(file) => http::trusting(file)?,
            None => http::Clients::plain(),
        };
        loader = loader.http_client(clients.credentials);
        let loaded = loader.load().await;
        let of_the_service = ServiceConfigKey::builder()
            .service_id("S3")
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build()
            .ok()
            .and_then(|key| loaded.service_config()?.load_config(key));
        let endpoint = self
            .endpoint
            .clone()
            .or(of_the_service)
            .or_else(|| loaded.endpoint_url().map(ToOwned::to_owned));
        let mut config = aws_sdk_s3::config::Builder::from(&loaded)
            .http_client(clients.store)
            .force_path_style(self.path_style.unwrap_or(endpoint.is_some()))
            // Newer defaults add checksums that stores other than AWS refuse. Ours travel as
            // headers, where they are understood.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(
                RetryConfig::standard()
                    .with_max_attempts(match patience {
                        Patience::Unattended => self.attempts,
                        Patience::Watched => self.attempts.min(WATCHED_ATTEMPTS),
                    })
                    .with_max_backoff(MAX_BACKOFF),
            )
            // The attempts alone bound the retries: what fails in one storage is not counted
            // against another.
            .retry_partition(
                RetryPartition::custom(self.address())
                    .token_bucket(TokenBucket::unlimited())
                    .build(),
            )
            .retry_classifier(Busy)
            .interceptor(http::Limits)
            .timeout_config(match patience {
                Patience::Unattended => attempts_of(self.timeout.duration()),
                Patience::Watched => all_of(self.timeout.duration()),
            })
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(STALL).build(),
            );
        if loaded.region().is_none() {
            if endpoint.is_none() {
                return Err(StorageError::unsuitable(format!(
                    "The storage `{}` has no region: set `region`, or `endpoint` for a store other \
                     than AWS",
                    self.address()
                )));
            }
            config = config.region(Region::from_static(ANY_REGION));
        }
        // One of the environment may have a user in it.
        let shown =
            endpoint.map_or_else(|| "AWS".to_owned(), |endpoint| without_credentials(&endpoint));
        Ok(Connected { client: Client::from_conf(config.build()), endpoint: shown })
    }
}

/// A client, and where it sends to, as it may be shown.
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) endpoint: String,
}

/// Each attempt of a request may take so long.
fn attempts_of(attempt: Duration) -> TimeoutConfig {
    let connect = CONNECT.min(attempt);
    TimeoutConfig::builder().connect_timeout(connect).operation_attempt_timeout(attempt).build()
}

/// All attempts of a request together may take so long.
fn all_of(request: Duration) -> TimeoutConfig {
    let connect = CONNECT.min(request);
    TimeoutConfig::builder().connect_timeout(connect).operation_timeout(request).build()
}

/// How long a request takes that moves content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfers {
    patience: Patience,
    timeout: Duration,
}

impl Transfers {
    pub(super) fn new(config: &S3Config, patience: Patience) -> Self {
        Self { patience, timeout: config.timeout.duration() }
    }

    /// The time that a request with a body of `bytes` may take: for one attempt, or for all where
    /// somebody watches.
    pub(super) fn of(self, bytes: usize) -> aws_sdk_s3::config::Builder {
        let transfer = Duration::from_secs(u64::try_from(bytes).unwrap_or(u64::MAX) / SLOWEST);
        Config::builder().timeout_config(match self.patience {
            Patience::Unattended => attempts_of(QUICK.max(self.timeout).saturating_add(transfer)),
            Patience::Watched => all_of(self.timeout.saturating_add(transfer)),
        })
    }
}

/// Retries what a store says when it is busy, beside what the SDK knows of.
#[derive(Debug)]
struct Busy;

impl ClassifyRetry for Busy {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.response().map(|response| response.status().as_u16()) {
            Some(408 | 429) => RetryAction::transient_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "Busy"
    }
}

/// Takes the `Date` of the latest answer to a request: the store's own clock.
#[derive(Debug, Clone, Default)]
pub(super) struct Dates(Arc<Mutex<Option<DateTime<Utc>>>>);

impl Dates {
    pub(super) fn latest(&self) -> Option<DateTime<Utc>> {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Intercept for Dates {
    fn name(&self) -> &'static str {
        "Dates"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context
            .response()
            .headers()
            .get("date")
            .and_then(|date| DateTime::parse_from_rfc2822(date).ok());
        if let Some(date) = date {
            *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(date.to_utc());
        }
        Ok(())
    }
}
