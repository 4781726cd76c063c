//! Places that snapshots are kept in: named objects at rest.
//!
//! This room knows keys, bytes and what a store promises. It does not know what the bytes are: no
//! manifest, no strategy, no compression. Every storage passes the same conformance suite
//! (`tests/it`), which holds the promises written on [`Storage`].
//!
//! To add a storage: a file here with its configuration and its [`Storage`], a variant of
//! [`StorageConfig`], one line in the list of the conformance suite.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod error;
pub mod local;
mod patience;
pub mod s3;

use std::ops::Range;
use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::error::{StorageError, StorageErrorKind};
pub use self::patience::Patience;
use self::patience::{Patient, default_timeout};
use crate::model::{Cancel, Irregular, RemoteCheck};

/// The configuration of a storage, by its `type`. What is kept there (`retention`, `prune` and
/// `max_delete_percent`, in the same table of a file) is no storage's business: none has settings
/// of these names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
#[expect(
    clippy::large_enum_variant,
    reason = "there are as many of these as the configuration has storages"
)]
pub enum StorageConfig {
    /// A folder on this machine, or mounted on it.
    Local(local::LocalConfig),
    /// A bucket of S3 or of a store that speaks its protocol.
    S3(s3::S3Config),
}

impl StorageConfig {
    /// The storage that this configures. Nothing is contacted yet.
    ///
    /// # Errors
    /// When the configuration cannot be used (a custom CA file that is not one, say).
    pub async fn open(&self, cancel: &Cancel) -> Result<Box<dyn Storage>, StorageError> {
        self.open_as(self.kind(), Patience::Unattended, cancel).await
    }

    /// The same, named `name` while it is waited for.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_as(
        &self,
        name: &str,
        patience: Patience,
        cancel: &Cancel,
    ) -> Result<Box<dyn Storage>, StorageError> {
        let (inner, waits): (Box<dyn Storage>, _) = match self {
            Self::Local(config) => (Box::new(local::Local::open(config)), config.waits(patience)),
            Self::S3(config) => {
                let timeout = config.timeout.duration();
                // Each of its requests ends by itself.
                (Box::new(s3::S3::open(config, patience, cancel).await?), (timeout, None))
            }
        };
        Ok(Box::new(Patient::new(inner, name, patience, waits)))
    }

    /// Refuses what could never work, without a look at the world.
    ///
    /// # Errors
    /// [`StorageErrorKind::Unsuitable`].
    pub fn validate(&self) -> Result<(), StorageError> {
        match self {
            Self::Local(_) => Ok(()),
            Self::S3(config) => config.check(),
        }
    }

    /// Its `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::S3(_) => "s3",
        }
    }

    /// What tells the place from every other, as far as the configuration tells: two names for one
    /// place would be in each other's way.
    pub fn place(&self) -> String {
        match self {
            // Without the `/` at the end, and the like.
            Self::Local(config) => {
                config.path.components().collect::<std::path::PathBuf>().display().to_string()
            }
            Self::S3(config) => config.place(),
        }
    }

    /// Its folder, where it is one that this machine can open.
    pub fn local_path(&self) -> Option<&Path> {
        match self {
            Self::Local(config) => Some(&config.path),
            Self::S3(_) => None,
        }
    }

    /// The folder of this machine that it is; none for one that is reached over a network.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Local(config) => Some(&config.path),
            Self::S3(_) => None,
        }
    }

    /// Makes relative paths absolute, counted from `base`: the folder of the configuration file.
    pub fn resolve(&mut self, base: &Path) {
        match self {
            Self::Local(config) => config.resolve(base),
            Self::S3(config) => config.resolve(base),
        }
    }

    /// The storage that an address on the command line means: `s3://bucket/prefix` (endpoint,
    /// region and credentials from the environment of the SDK) or a path.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_address(address: &str) -> Result<Self, StorageError> {
        match address.split_once("://") {
            Some(("s3", _)) => Ok(Self::S3(s3::S3Config::from_address(address)?)),
            None if address.is_empty() => {
                Err(StorageError::unsuitable("An empty text is not the address of a storage"))
            }
            // A key and its secret may be in it, which are not to be shown as a path.
            None if address.starts_with(['/', '.'])
                || !address.split_once(':').is_some_and(|(_, rest)| rest.contains('@')) =>
            {
                Ok(Self::Local(local::LocalConfig::from_path(address)))
            }
            _ => Err(StorageError::unsuitable(
                "Not the address of a storage: expected `s3://BUCKET/PREFIX` or a path. A path \
                 with `:` and `@` in it begins with `/` or `./`",
            )),
        }
    }
}

/// Refuses what is not a key: it must be of plain names joined by `/`. A name that begins with a
/// dot is refused too: such names are kept for what must stay invisible (temporary files, locks),
/// and `..` would leave the root.
fn check_key(key: &str) -> Result<(), StorageError> {
    let plain =
        |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains(char::is_control);
    if key.split('/').all(plain) {
        Ok(())
    } else {
        Err(StorageError::unsuitable(format!(
            "{key:?} is not a key: expected names joined by `/`, none empty, beginning with a dot, \
             or with control characters"
        )))
    }
}

/// Refuses what is not a prefix: empty, or a key followed by `/`.
fn check_prefix(prefix: &str) -> Result<(), StorageError> {
    match prefix.strip_suffix('/') {
        Some(key) => check_key(key),
        None if prefix.is_empty() => Ok(()),
        None => Err(StorageError::unsuitable(format!(
            "{prefix:?} is not a prefix: expected it to end in `/`"
        ))),
    }
}

/// A prefix as messages name it.
fn named(prefix: &str) -> String {
    if prefix.is_empty() { "everything".to_owned() } else { format!("`{prefix}`") }
}

/// Random hex digits: the part of a name that keeps two writers apart.
fn salt() -> Result<String, StorageError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        StorageError::unsuitable(format!("The system gave no random bytes: {error}"))
    })?;
    Ok(hex::encode(bytes))
}

/// Named objects at rest. Keys are relative to the storage's root, of plain names joined by `/`,
/// never beginning or ending with it.
#[async_trait]
pub trait Storage: Send + Sync {
    /// What it is, for messages: `/backups`, `s3://bucket/prefix`. Never a secret.
    fn address(&self) -> String;

    /// What tells it from every other place, where the address alone does not. Never a secret.
    fn place(&self) -> String {
        self.address()
    }

    /// Its folder, where it is one that this machine can open.
    fn local_path(&self) -> Option<&Path> {
        None
    }

    /// Begins an object. Nothing is visible under `key`, nor counted by [`Storage::list`], before
    /// [`Upload::finish`] returned.
    ///
    /// # Errors
    /// [`StorageErrorKind::AlreadyExists`] when it is there and that is seen already.
    async fn create(
        &self,
        key: &str,
        options: CreateOptions,
    ) -> Result<Box<dyn Upload>, StorageError>;

    /// Writes a small object whole, replacing what is there, atomically: a reader sees the old or
    /// the new. For heartbeats and marks.
    ///
    /// # Errors
    /// When it could not be written; then the old one stands.
    async fn replace(&self, key: &str, body: Bytes) -> Result<(), StorageError>;

    /// The bytes of an object, or of a range of it, as they come. A stream that ends early ends
    /// with an error.
    ///
    /// # Errors
    /// [`StorageErrorKind::NotFound`] and [`StorageErrorKind::NotAFile`], at the latest with the
    /// first item.
    async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError>;

    /// The bytes of a small object, each part of the answer waited for only as long as for a
    /// look-up.
    ///
    /// # Errors
    /// As [`Storage::read`].
    async fn read_document(
        &self,
        key: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        self.read(key, None).await
    }

    /// Every finished object whose key begins with `prefix` (a whole number of names, ending in
    /// `/`, or empty), in the order of keys, to the very end. A storage or prefix that does not
    /// exist is empty, unless the root itself cannot be reached.
    ///
    /// What has a name there and is no object comes too, as [`Object::irregular`]: who expects an
    /// object under that key must not take it for missing. Of a folder with nothing in it the key
    /// ends in `/`.
    ///
    /// An error ends it: what came before it is not the whole listing, and nothing may be deleted
    /// because of it.
    fn list(&self, prefix: &str) -> BoxStream<'static, Result<Object, StorageError>>;

    /// The first of the folders beside the root, where the storage has some: whoever gave a wrong
    /// root may have meant one of them. Not all of them, and none where they may not be listed.
    async fn beside(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the storage says it holds under `key`.
    ///
    /// # Errors
    /// [`StorageErrorKind::NotFound`]; [`StorageErrorKind::NotAFile`] when something else has that
    /// name.
    async fn stat(&self, key: &str) -> Result<Object, StorageError>;

    /// Deletes an object. One that is not there is deleted already.
    ///
    /// # Errors
    /// [`StorageErrorKind::Locked`] when the store keeps it until a time;
    /// [`StorageErrorKind::NotAFile`] when something else has that name.
    async fn delete(&self, key: &str) -> Result<(), StorageError>;

    /// What keeps an object from being deleted now, where the store has such locks and tells of
    /// them.
    ///
    /// # Errors
    /// When it could not be found out: then nobody knows whether a delete would take the object or
    /// only hide it.
    async fn lock_of(&self, _key: &str) -> Result<Option<ObjectLock>, StorageError> {
        Ok(None)
    }

    /// Gives up what unfinished uploads under `prefix` left behind, invisible but taking space,
    /// where it was begun before `before`. Returns how many. Only for a prefix that no living run
    /// writes to.
    ///
    /// # Errors
    /// When it could not be found out; a store that cannot tell returns 0.
    async fn sweep_uploads(&self, prefix: &str, before: DateTime<Utc>)
    -> Result<u64, StorageError>;

    /// Finds out once what the store understands, by writing a small object to `key` and replacing
    /// it. It is left there.
    ///
    /// # Errors
    /// When it cannot be written.
    async fn probe(&self, key: &str, body: Bytes) -> Result<Capabilities, StorageError>;

    /// The time by the storage's own clock, by which the ages of its objects are judged.
    ///
    /// # Errors
    /// When it could not be reached.
    async fn now(&self) -> Result<DateTime<Utc>, StorageError>;

    /// Free bytes, where the storage can tell.
    ///
    /// # Errors
    /// When it could not be found out.
    async fn free_bytes(&self) -> Result<Option<u64>, StorageError>;

    /// Excludes other writers of `folder` on this machine, for as long as the returned value lives.
    /// None where the store has no such lock.
    ///
    /// # Errors
    /// [`StorageErrorKind::Busy`] when another holds it.
    async fn lock(&self, folder: &str) -> Result<Option<Box<dyn Send + Sync>>, StorageError>;

    /// The largest object that it takes, where it is limited by the way it is uploaded.
    fn max_object_bytes(&self) -> Option<u64>;
}

/// How an object will be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// It will be small (an index, the facts): hold less of it in memory at a time.
    pub small: bool,
    /// It belongs to a commit that has begun: it is written even when the run is cancelled.
    pub steady: bool,
    /// The key has an object that could not be deleted and that no manifest names: it is replaced.
    pub replaces: bool,
}

/// An object while it is written. Dropping it gives it up, as far as that can be done without
/// waiting; [`Upload::abort`] does it wholly.
#[async_trait]
pub trait Upload: Send {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When they could not be written; the upload can only be aborted then.
    async fn write(&mut self, chunk: Bytes) -> Result<(), StorageError>;

    /// Publishes the object atomically and durably; where the store can, only if the key is new.
    /// Then asks the store what it has, and compares.
    ///
    /// # Errors
    /// [`StorageErrorKind::AlreadyExists`] when the key was not new,
    /// [`StorageErrorKind::Mismatch`] when the store has something else than was sent.
    async fn finish(self: Box<Self>) -> Result<Finished, StorageError>;

    /// Gives it up: nothing is left where the store can be reached.
    async fn abort(self: Box<Self>);
}

/// An object that was published and looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Bytes.
    pub size: u64,
    /// What was compared with what was sent.
    pub check: RemoteCheck,
}

/// A finished object, as its storage tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Relative to the storage's root.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the storage's clock.
    pub modified: DateTime<Utc>,
    /// What it is, where it is no object.
    pub irregular: Option<Irregular>,
}

/// What keeps an object from being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// Until when; until it is taken away, where none is given.
    pub until: Option<DateTime<Utc>>,
}

/// What a store understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// A write under a condition (only if new) is refused when the condition does not hold.
    pub conditional_writes: bool,
    /// A body that does not match its checksum is refused.
    pub checksums: bool,
}
