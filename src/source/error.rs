//! Why a source could not be dumped or restored.

use super::process::ProcessError;

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
    /// A file or folder could not be used.
    #[error("Could not {attempt} `{path}`: {error}")]
    Io {
        /// What was attempted: `read`, `create`.
        attempt: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// What was read is not what was backed up.
    #[error("{0}")]
    Damaged(String),
    /// The stream could not be written on, or could not be read: the fault is behind it.
    #[error(transparent)]
    Stream(std::io::Error),
}

impl SourceError {
    /// Every code that [`SourceError::code`] returns. Codes are stable.
    pub const ALL: &[&str] = &[
        "artifact_damaged",
        "cancelled",
        "io",
        "permission_denied",
        "source_failed",
        "source_unreachable",
        "source_unsuitable",
        "stream_failed",
        "target_not_empty",
        "tool_failed",
        "tool_missing",
        "tool_timed_out",
    ];

    /// The stable code of the error, by what the operator does about it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Process(error) => error.code(),
            Self::Database { transient: true, .. } => "source_unreachable",
            Self::Database { transient: false, .. } => "source_failed",
            Self::Unsuitable(_) => "source_unsuitable",
            Self::NotEmpty(_) => "target_not_empty",
            Self::Io { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
                "permission_denied"
            }
            Self::Io { .. } => "io",
            Self::Damaged(_) => "artifact_damaged",
            Self::Stream(_) => "stream_failed",
        }
    }

    /// Whether it may succeed by itself a little later. Of a program that ended with an error
    /// nobody can tell, and another try costs little.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Database { transient, .. } => *transient,
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
    fn every_error_has_a_listed_code() {
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
            (
                SourceError::Io { attempt: "read", path: String::new(), error: io() },
                "permission_denied",
            ),
            (SourceError::Io { attempt: "read", path: String::new(), error: full }, "io"),
            (SourceError::Damaged(String::new()), "artifact_damaged"),
            (SourceError::Stream(io()), "stream_failed"),
        ] {
            assert_eq!(error.code(), code);
            assert!(SourceError::ALL.contains(&code), "{code}");
        }
        assert!(ProcessError::ALL.iter().all(|code| SourceError::ALL.contains(code)));
    }
}
