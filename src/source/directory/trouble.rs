//! What goes wrong in a restore: what stops it, and what is only noted.

use rustix::io::Errno;

use super::entry::lossy;
use super::reader::ReadError;
use super::walk::Notes;
use crate::source::SourceError;

/// Why an entry could not be restored.
pub(super) enum Trouble {
    Cancelled,
    Read(ReadError),
    /// The tarball asks for what is not done.
    Refused(String),
    /// The system failed: what was attempted, and what it said.
    System(&'static str, Errno),
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

/// What stopped a restore, which left its target incomplete.
#[derive(Debug, thiserror::Error)]
#[error("The restore stopped at `{path}`, so what is in `{place}` is incomplete")]
struct Stopped {
    path: String,
    place: String,
    source: std::io::Error,
}

/// The error that an operator reads: what stopped the restore, at which entry, and that the target is incomplete.
pub(super) fn stopped(trouble: Trouble, path: &[u8], place: &str) -> SourceError {
    let path = if path.is_empty() { ".".to_owned() } else { lossy(path) };
    let incomplete = format!("What is in `{place}` is incomplete");
    match trouble {
        Trouble::Cancelled => SourceError::Cancelled,
        Trouble::Read(ReadError::Stream(error)) => {
            let kind = error.kind();
            let stopped = Stopped { path, place: place.to_owned(), source: error };
            SourceError::Stream(std::io::Error::new(kind, stopped))
        }
        Trouble::Read(error @ ReadError::Malformed { .. }) => {
            SourceError::Unsuitable(format!("{error} (after `{path}`). {incomplete}"))
        }
        Trouble::Refused(problem) => {
            SourceError::Unsuitable(format!("The tarball is refused, as its entry `{path}` {problem}. {incomplete}"))
        }
        Trouble::System(attempt, error) => SourceError::Io {
            attempt,
            path: format!("{place}/{path}"),
            error: std::io::Error::new(std::io::Error::from(error).kind(), format!("{error}. {incomplete}")),
        },
    }
}

/// What the system refused, told once with a count.
#[derive(Default)]
pub(super) struct Refused {
    count: u64,
    first: Option<(Vec<u8>, String)>,
}

impl Refused {
    pub(super) fn add(&mut self, path: &[u8], reason: impl Into<String>) {
        self.count += 1;
        self.first.get_or_insert_with(|| (path.to_vec(), reason.into()));
    }

    pub(super) fn tell(self, notes: &mut Notes) {
        if let Some((path, reason)) = self.first {
            let others = self.count - 1;
            notes.note(&path, if others > 0 { format!("{reason} (and so {others} more)") } else { reason });
        }
    }
}
