//! Why a verb did not do what it was asked.

use std::path::PathBuf;

use crate::catalog::CatalogError;
use crate::model::{ErrorCode, Name, SnapshotId};
use crate::source::SourceError;
use crate::storage::StorageError;

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another run holds the lock.
    #[error("Another run of `{strategy}` is under way: {holder}. Wait for it to end")]
    Locked { strategy: Name, holder: String },
    /// Another scheduler looks after the same state folder.
    #[error("Another scheduler is running: it holds `{}`. Stop it first; to read a changed \
        configuration, run `backup reload`", .path.display())]
    Scheduled { path: PathBuf },
    /// A source failed.
    #[error("The source `{name}` failed")]
    Source {
        name: Name,
        #[source]
        error: Box<SourceError>,
    },
    /// An artifact could not be put where it should go.
    #[error("Could not restore `{artifact}`")]
    Restore {
        artifact: String,
        #[source]
        error: Box<SourceError>,
    },
    /// A program of the operator failed that was to be run before a source was dumped.
    #[error("A hook failed, so nothing was dumped")]
    Hook {
        #[source]
        error: Box<SourceError>,
    },
    /// A storage failed.
    #[error("The storage `{name}` failed")]
    Storage {
        name: Name,
        #[source]
        error: Box<StorageError>,
    },
    /// No storage was left to write to.
    #[error("No storage is left to write to: {0}")]
    NoStorage(String),
    /// The verb was cancelled.
    #[error("Cancelled")]
    Cancelled,
    /// A restore was cancelled after it had begun to write.
    #[error(
        "Cancelled while `{artifact}` was restored to `{place}`: the restore is incomplete. The \
         same command can be run again{}",
        if *.needs_overwrite {
            ", with `--overwrite`, which replaces what was restored already"
        } else {
            ""
        }
    )]
    Interrupted {
        /// What was being restored.
        artifact: String,
        /// Where to, secrets masked.
        place: String,
        /// Whether other artifacts were restored before it, which would refuse a second time.
        needs_overwrite: bool,
    },
    /// What was read could not be given out.
    #[error("Could not write to the output: {0}")]
    Output(std::io::Error),
    /// The run took longer than its strategy allows.
    #[error("The run took longer than its `timeout` of {0}")]
    TimedOut(crate::model::Span),
    /// The local state could not be used.
    #[error("Could not {attempt} `{}`: {error}. The state folder is set by `state_dir`",
        .path.display())]
    State {
        attempt: &'static str,
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file that was named could not be used.
    #[error("Could not {attempt} `{}`: {error}", .path.display())]
    File {
        attempt: &'static str,
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file that was named is not what it should be.
    #[error("`{}` is damaged, or no exported snapshot: {problem}. Nothing was committed",
        .path.display())]
    BadFile { path: PathBuf, problem: String },
    /// The catalog could not be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// There is no such snapshot.
    #[error("{0}")]
    NotFound(String),
    /// A snapshot could not be drilled, which says nothing about it.
    #[error("The snapshot was not drilled: {0}")]
    Undrilled(String),
    /// A snapshot is damaged.
    #[error("The snapshot `{snapshot}` is damaged in `{storage}`: {problem}")]
    Damaged {
        snapshot: String,
        storage: Name,
        problem: String,
        /// Whether this copy is not what was written, so that another may be good.
        in_copy: bool,
    },
    /// A later version wrote a snapshot, which says nothing against it.
    #[error("The snapshot `{snapshot}` in `{storage}` cannot be used by this version: {problem}")]
    Newer { snapshot: String, storage: Name, problem: String },
    /// A document of a snapshot is larger than this version reads, which says nothing against it.
    #[error("{0}")]
    TooLarge(String),
    /// The request cannot be carried out as it stands.
    #[error("{0}")]
    Request(String),
    /// The system starts no more threads.
    #[error(
        "Could not start a thread: {0}. Raise the limit of processes: `ulimit -u`, `TasksMax` of \
         the systemd unit, the limit of PIDs of the container"
    )]
    NoThreads(std::io::Error),
    /// A part of the program failed unexpectedly.
    #[error("Internal error: {0}. Nothing was committed; please report it")]
    Internal(String),
}

impl EngineError {
    pub(in crate::engine) fn storage(name: &Name, error: StorageError) -> Self {
        Self::Storage { name: name.clone(), error: Box::new(error) }
    }

    pub(in crate::engine) fn source(name: &Name, error: SourceError) -> Self {
        Self::Source { name: name.clone(), error: Box::new(error) }
    }

    pub(in crate::engine) fn damaged(
        snapshot: &SnapshotId,
        storage: &Name,
        problem: impl Into<String>,
    ) -> Self {
        let (snapshot, storage) = (snapshot.to_string(), storage.clone());
        Self::Damaged { snapshot, storage, problem: problem.into(), in_copy: true }
    }

    pub(in crate::engine) fn newer(
        snapshot: &SnapshotId,
        storage: &Name,
        problem: impl Into<String>,
    ) -> Self {
        let (snapshot, storage) = (snapshot.to_string(), storage.clone());
        Self::Newer { snapshot, storage, problem: problem.into() }
    }

    pub(in crate::engine) fn too_large(
        snapshot: &SnapshotId,
        storage: &Name,
        problem: impl Into<String>,
    ) -> Self {
        Self::TooLarge(format!(
            "The snapshot `{snapshot}` in `{storage}` cannot be used by this version: {}",
            problem.into()
        ))
    }

    /// The name of the error for programs: that of the cause, where a source or storage failed.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Locked { .. } => ErrorCode::RunLocked,
            Self::Scheduled { .. } => ErrorCode::SchedulerRunning,
            Self::Source { error, .. } | Self::Restore { error, .. } => error.code(),
            Self::Hook { .. } => ErrorCode::HookFailed,
            Self::Storage { error, .. } => error.code(),
            Self::NoStorage(_) => ErrorCode::NoStorageLeft,
            Self::Cancelled => ErrorCode::Cancelled,
            Self::Interrupted { .. } => ErrorCode::RestoreIncomplete,
            Self::Output(_) => ErrorCode::OutputFailed,
            Self::TimedOut(_) => ErrorCode::TimedOut,
            Self::State { .. } => ErrorCode::StateFailed,
            Self::File { .. } => ErrorCode::FileFailed,
            Self::BadFile { .. } => ErrorCode::ExportDamaged,
            Self::Catalog(error) => error.code(),
            Self::NotFound(_) => ErrorCode::SnapshotNotFound,
            Self::Undrilled(_) => ErrorCode::NotDrilled,
            Self::Damaged { .. } => ErrorCode::SnapshotDamaged,
            Self::Newer { .. } => ErrorCode::SnapshotNewer,
            Self::TooLarge(_) => ErrorCode::DocumentTooLarge,
            Self::Request(_) => ErrorCode::InvalidRequest,
            Self::NoThreads(_) => ErrorCode::NoThreads,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }

    /// Whether what failed may succeed by itself a little later: the network, a busy or starting
    /// server, a program that died. A wrong configuration, a refused login, a full disk and damage
    /// do not pass.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Source { error, .. } | Self::Hook { error } => error.may_pass(),
            Self::Storage { error, .. } => error.may_pass(),
            Self::NoThreads(_) => true,
            _ => false,
        }
    }
}

/// An error and what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
