//! What a storage could not do, and why.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::model::{ByteSize, ErrorCode};

/// Why a storage did not do what was asked, by what the caller does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageErrorKind {
    /// No object has this key.
    NotFound,
    /// Something that is no object has this key: a link, a folder, a named pipe.
    NotAFile,
    /// The existing object was not overwritten.
    AlreadyExists,
    /// The store refuses to delete the object.
    Locked {
        /// None where the store does not say.
        until: Option<DateTime<Utc>>,
    },
    /// The store holds something other than the bytes that were sent.
    Mismatch,
    /// Another writer holds the folder.
    Busy,
    /// Not permitted with these credentials or as this user.
    Denied,
    /// The disk or the quota is full.
    Full,
    /// It may succeed a little later: the network, a busy server.
    Unavailable,
    /// Trying again is no use.
    Failed,
    /// It is larger than a document of its kind may be. That says nothing against it.
    TooLarge,
    /// Not an error of the storage: the run was cancelled.
    Cancelled,
    /// The configuration, key or address cannot be used.
    Unsuitable,
}

/// A failed operation of a storage.
#[derive(Debug)]
pub struct StorageError {
    kind: StorageErrorKind,
    address: String,
    /// The key or folder; for kinds that do not say what was attempted, the operation with it.
    subject: String,
    problem: String,
}

impl StorageError {
    /// That `operation` (``read `a/b` ``) failed. For `Denied`, `Full`, `Unavailable` and `Failed`;
    /// `NotAFile`; the other kinds have constructors of their own.
    pub fn new(
        kind: StorageErrorKind,
        address: impl Into<String>,
        operation: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        let (address, subject, problem) = (address.into(), operation.into(), problem.into());
        Self { kind, address, subject, problem }
    }

    /// An error of kind `NotFound`.
    pub fn not_found(address: impl Into<String>, key: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::NotFound, address, key, "")
    }

    /// An error of kind `AlreadyExists`.
    pub fn already_exists(address: impl Into<String>, key: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::AlreadyExists, address, key, "")
    }

    /// An error of kind `Locked`.
    pub fn locked(
        address: impl Into<String>,
        key: impl Into<String>,
        until: Option<DateTime<Utc>>,
    ) -> Self {
        Self::new(StorageErrorKind::Locked { until }, address, key, "")
    }

    /// `problem` says how the stored bytes differ from the ones that were sent.
    pub fn mismatch(
        address: impl Into<String>,
        key: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::new(StorageErrorKind::Mismatch, address, key, problem)
    }

    /// `folder` may name its writer too: `a/b (process 7)`.
    pub fn busy(address: impl Into<String>, folder: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::Busy, address, folder, "")
    }

    /// An error of kind `Failed`.
    pub fn failed(
        address: impl Into<String>,
        operation: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::new(StorageErrorKind::Failed, address, operation, problem)
    }

    /// `problem` is the whole message.
    pub fn unsuitable(problem: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::Unsuitable, "", "", problem)
    }

    /// That the document under `key` has more than `limit` bytes.
    pub fn too_large(address: impl Into<String>, key: impl Into<String>, limit: u64) -> Self {
        let problem = format!("it reads up to {}. Use a newer version", ByteSize(limit));
        Self::new(StorageErrorKind::TooLarge, address, key, problem)
    }

    /// An error of kind `Cancelled`.
    pub fn cancelled() -> Self {
        Self::new(StorageErrorKind::Cancelled, "", "", "")
    }

    /// For a match; for one kind there are predicates.
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    /// The name of the kind for programs. It never changes.
    pub fn code(&self) -> ErrorCode {
        match self.kind {
            StorageErrorKind::NotAFile => ErrorCode::ObjectNotAFile,
            StorageErrorKind::AlreadyExists => ErrorCode::ObjectExists,
            StorageErrorKind::Locked { .. } => ErrorCode::ObjectLocked,
            StorageErrorKind::Mismatch => ErrorCode::ObjectMismatch,
            StorageErrorKind::Busy => ErrorCode::RunLocked,
            StorageErrorKind::Denied => ErrorCode::StorageDenied,
            StorageErrorKind::Full => ErrorCode::StorageFull,
            StorageErrorKind::Unavailable => ErrorCode::StorageUnavailable,
            StorageErrorKind::NotFound | StorageErrorKind::Failed => ErrorCode::StorageFailed,
            StorageErrorKind::TooLarge => ErrorCode::DocumentTooLarge,
            StorageErrorKind::Cancelled => ErrorCode::Cancelled,
            StorageErrorKind::Unsuitable => ErrorCode::StorageUnsuitable,
        }
    }

    /// The storage. Empty where none is concerned.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The key, the folder, or the operation with its key.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// What went wrong, without what was attempted.
    pub fn problem(&self) -> &str {
        &self.problem
    }

    /// The same failure, of another operation.
    pub(super) fn of(self, operation: String) -> Self {
        Self { subject: operation, ..self }
    }

    /// Whether no object has the key.
    pub fn is_not_found(&self) -> bool {
        self.kind == StorageErrorKind::NotFound
    }

    /// Whether a document is larger than this version reads, which says nothing against it.
    pub fn is_too_large(&self) -> bool {
        self.kind == StorageErrorKind::TooLarge
    }

    /// Whether something that is no object has the key.
    pub fn is_not_a_file(&self) -> bool {
        self.kind == StorageErrorKind::NotAFile
    }

    /// Whether another writer holds the folder.
    pub fn is_busy(&self) -> bool {
        self.kind == StorageErrorKind::Busy
    }

    /// Whether the credentials or the user lack permission.
    pub fn is_denied(&self) -> bool {
        self.kind == StorageErrorKind::Denied
    }

    /// Whether the run was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.kind == StorageErrorKind::Cancelled
    }

    /// Whether the credentials or a lock forbid it.
    pub fn is_denied_or_locked(&self) -> bool {
        matches!(self.kind, StorageErrorKind::Denied | StorageErrorKind::Locked { .. })
    }

    /// Whether the storage was not reached, so that the error tells nothing about its content.
    pub fn is_about_reaching(&self) -> bool {
        self.may_pass() || self.is_denied() || self.is_cancelled()
    }

    /// Whether it may succeed by itself a little later.
    pub fn may_pass(&self) -> bool {
        self.kind == StorageErrorKind::Unavailable
    }
}

impl std::error::Error for StorageError {}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, subject, problem } = self;
        match kind {
            StorageErrorKind::NotFound => write!(f, "`{address}` does not have `{subject}`"),
            StorageErrorKind::AlreadyExists => {
                write!(f, "`{address}` already has `{subject}`; it was left as it is")
            }
            StorageErrorKind::Locked { until: None } => {
                write!(f, "`{address}` keeps `{subject}` locked")
            }
            StorageErrorKind::Locked { until: Some(until) } => {
                write!(f, "`{address}` keeps `{subject}` locked until {}", until.to_rfc3339())
            }
            StorageErrorKind::Mismatch => write!(
                f,
                "`{address}` acknowledged `{subject}` but does not hold what was sent: {problem}"
            ),
            StorageErrorKind::Busy => write!(f, "Another run writes to `{subject}` in `{address}`"),
            StorageErrorKind::Denied => {
                write!(f, "Not permitted to {subject} in `{address}`: {problem}")
            }
            StorageErrorKind::Full => {
                write!(f, "No space left to {subject} in `{address}`: {problem}")
            }
            StorageErrorKind::Unavailable => {
                write!(f, "Could not {subject} in `{address}` for now: {problem}")
            }
            StorageErrorKind::NotAFile | StorageErrorKind::Failed => {
                write!(f, "Could not {subject} in `{address}`: {problem}")
            }
            StorageErrorKind::TooLarge => {
                write!(f, "`{subject}` in `{address}` is larger than this version reads: {problem}")
            }
            StorageErrorKind::Cancelled => f.write_str("Cancelled"),
            StorageErrorKind::Unsuitable => f.write_str(problem),
        }
    }
}
