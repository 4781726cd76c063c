//! Why a source could not be dumped or restored.

use super::process::ProcessError;
use crate::model::ErrorCode;

/// Why a source could not be dumped or restored.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The run was cancelled.
    #[error("Cancelled")]
    Cancelled,
    /// A child did not do its work.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The database refused or could not be reached.
    #[error("Could not {attempt} on `{target}`: {problem}")]
    Database {
        /// What was attempted: `count the rows of "a"."b"`.
        attempt: String,
        /// The masked address.
        target: String,
        /// What the server or client said.
        problem: String,
        /// Whether trying again later may help (network, server starting).
        transient: bool,
    },
    /// What is needed is not there, or is not as it must be.
    #[error("{0}")]
    Unsuitable(String),
    /// The target has something in it.
    #[error(
        "`{0}` is not empty. Pass `--overwrite` to replace what is there, or choose another target"
    )]
    NotEmpty(String),
    /// The snapshot does not say which entries it could not have, and a deletion would remove them.
    #[error("{0}")]
    DeleteUnsafe(String),
    /// A file or folder could not be used.
    #[error("Could not {attempt} `{path}`: {error}")]
    Io {
        /// What was attempted: `read`, `create`.
        attempt: &'static str,
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// What was read is not what was backed up.
    #[error("{0}")]
    Damaged(String),
    /// What was dumped so far is worthless, and another dump from the beginning may succeed at
    /// once. The engine makes one, so often as it sees fit.
    #[error("The dump had to begin again: {reason}")]
    BeginAgain {
        /// What happened to the source.
        reason: String,
    },
    /// The stream could not be written on, or could not be read: the fault is behind it.
    #[error(transparent)]
    Stream(std::io::Error),
}

impl SourceError {
    /// The stable code of the error, by what the operator does about it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Cancelled => ErrorCode::Cancelled,
            Self::Process(error) => error.code(),
            Self::Database { transient: true, .. } => ErrorCode::SourceUnreachable,
            Self::Database { transient: false, .. } => ErrorCode::SourceFailed,
            Self::Unsuitable(_) => ErrorCode::SourceUnsuitable,
            Self::NotEmpty(_) => ErrorCode::TargetNotEmpty,
            Self::DeleteUnsafe(_) => ErrorCode::DeleteUnsafe,
            Self::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
                ErrorCode::FileDenied
            }
            // Files never say so, but threads that were not started.
            Self::Io { error, .. } | Self::Stream(error)
                if error.kind() == std::io::ErrorKind::WouldBlock =>
            {
                ErrorCode::NoThreads
            }
            Self::Io { .. } | Self::Stream(_) => ErrorCode::FileFailed,
            Self::Damaged(_) => ErrorCode::SnapshotDamaged,
            Self::BeginAgain { .. } => ErrorCode::SourceChanged,
        }
    }

    /// Whether it may succeed by itself a little later. Of a program that ended with an error
    /// nobody can tell, and another try costs little.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Database { transient, .. } => *transient,
            Self::BeginAgain { .. } => true,
            Self::Process(error) => matches!(
                error,
                ProcessError::Exit { .. }
                    | ProcessError::Signal { .. }
                    | ProcessError::Hung { .. }
                    | ProcessError::HeldOpen { .. }
                    | ProcessError::Pipe { .. }
            ),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ProcessError, SourceError};

    #[test]
    fn every_error_has_a_code() {
        let io = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let database = |transient| SourceError::Database {
            attempt: String::new(),
            target: String::new(),
            problem: String::new(),
            transient,
        };
        let missing = ProcessError::NotFound {
            attempt: String::new(),
            program: String::new(),
            hint: String::new(),
        };
        let full = std::io::ErrorKind::StorageFull.into();
        for (error, code) in [
            (SourceError::Cancelled, "cancelled"),
            (missing.into(), "tool_missing"),
            (database(true), "source_unreachable"),
            (database(false), "source_failed"),
            (SourceError::Unsuitable(String::new()), "source_unsuitable"),
            (SourceError::NotEmpty(String::new()), "target_not_empty"),
            (SourceError::DeleteUnsafe(String::new()), "delete_unsafe"),
            (SourceError::Io { attempt: "read", path: String::new(), error: io() }, "file_denied"),
            (SourceError::Io { attempt: "read", path: String::new(), error: full }, "file_failed"),
            (SourceError::Damaged(String::new()), "snapshot_damaged"),
            (SourceError::BeginAgain { reason: String::new() }, "source_changed"),
            (SourceError::Stream(io()), "file_failed"),
        ] {
            assert_eq!(error.code(), code);
        }
    }
}
