//! What goes wrong in a restore: what stops it, and what is only noted.

use rustix::io::Errno;

use super::entry::lossy;
use super::index::IndexError;
use super::reader::ReadError;
use super::walk::Notes;
use crate::source::SourceError;

/// Why an entry could not be restored.
pub(super) enum Trouble {
    Cancelled,
    Read(ReadError),
    Index(IndexError),
    /// The tarball asks for what is not done.
    Refused(String),
    /// The entry is not what the index says, or the index says what cannot be.
    Damaged(String),
    /// What was to be new is there already.
    Taken,
    /// The system failed: what was attempted, and what it said.
    System(&'static str, Errno),
    /// Who takes the bytes fails.
    Output(std::io::Error),
    /// Told as it is.
    Other(SourceError),
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl Trouble {
    /// What went wrong, and at which entry; an empty path is none of them.
    pub(super) fn at(self, path: &[u8]) -> Failure {
        Failure { trouble: Box::new(self), path: path.to_vec() }
    }
}

/// Trouble, and the entry it came at.
pub(super) struct Failure {
    /// Boxed, as it is large and rare.
    pub(super) trouble: Box<Trouble>,
    pub(super) path: Vec<u8>,
}

/// What an error of a stream interrupted.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Stopped {
    what: String,
    source: std::io::Error,
}

fn stopped(what: String, error: std::io::Error) -> SourceError {
    SourceError::Stream(std::io::Error::new(error.kind(), Stopped { what, source: error }))
}

impl Failure {
    fn name(&self) -> String {
        if self.path.is_empty() { ".".to_owned() } else { lossy(&self.path) }
    }

    /// The error that an operator reads, of a restore to `place`: what stopped it, at which entry,
    /// and what to do.
    pub(super) fn of_restore(self, place: &str) -> SourceError {
        let path = self.name();
        let incomplete = format!("What is in `{place}` is incomplete");
        let again = "run the same command again, which replaces what is there";
        match *self.trouble {
            Trouble::Read(ReadError::Stream(error)) => stopped(
                format!(
                    "The restore stopped at `{path}`, so what is in `{place}` is incomplete: \
                     {again}"
                ),
                error,
            ),
            Trouble::Index(IndexError::Stream(error)) => stopped(
                format!(
                    "The index could not be read on after `{path}`, so what is in `{place}` is \
                     incomplete: {again}"
                ),
                error,
            ),
            Trouble::System(attempt, error) => SourceError::Io {
                attempt,
                path: format!("{place}/{path}"),
                error: std::io::Error::new(
                    std::io::Error::from(error).kind(),
                    format!("{error}. {incomplete}: put this right and {again}"),
                ),
            },
            _ => self.plainly(&incomplete),
        }
    }

    /// The error that an operator reads, of what touches no target.
    pub(super) fn of_reading(self) -> SourceError {
        let path = self.name();
        match *self.trouble {
            Trouble::Read(ReadError::Stream(error)) => {
                stopped(format!("Reading stopped at `{path}`"), error)
            }
            Trouble::Index(IndexError::Stream(error)) => {
                stopped("The index could not be read".to_owned(), error)
            }
            _ => self.plainly("What was read of it is not to be used"),
        }
    }

    fn plainly(self, then: &str) -> SourceError {
        let path = self.name();
        match *self.trouble {
            Trouble::Cancelled => SourceError::Cancelled,
            Trouble::Read(error) => {
                SourceError::Unsuitable(format!("{error} (after `{path}`). {then}"))
            }
            Trouble::Index(error @ IndexError::Newer(_)) => {
                SourceError::Unsuitable(format!("{error}. {then}"))
            }
            Trouble::Index(error) => SourceError::Damaged(format!("{error}. {then}")),
            Trouble::Refused(problem) => SourceError::Unsuitable(format!(
                "The tarball is refused, as its entry `{path}` {problem}. {then}"
            )),
            Trouble::Damaged(problem) => {
                SourceError::Damaged(format!("`{path}` {problem}. {then}"))
            }
            Trouble::Taken => SourceError::Unsuitable(format!(
                "`{path}` was to be new, and something has its name already: the snapshot names it \
                 twice, or the file system of the \
                 target does not tell upper case from lower. {then}"
            )),
            Trouble::System(attempt, error) => {
                SourceError::Io { attempt, path, error: error.into() }
            }
            Trouble::Output(error) => SourceError::Stream(error),
            Trouble::Other(error) => error,
        }
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
            notes.note(
                &path,
                if others > 0 { format!("{reason} (and so {others} more)") } else { reason },
            );
        }
    }
}
