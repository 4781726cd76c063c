//! Errors of reading an archive, or of writing its content out, with the entry they came at.

use rustix::io::Errno;

use super::index::IndexError;
use super::reader::ReadError;

/// Why an entry could not be read or restored.
#[derive(Debug)]
pub(crate) enum Problem {
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
    /// A stream could not be opened, or what takes the bytes failed.
    Stream(std::io::Error),
    /// The request cannot be met.
    Unsuitable(String),
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl Problem {
    /// With an index the tarball is known to be ours: what cannot be read as one was damaged.
    pub(crate) fn damaged(error: ReadError) -> Self {
        match error {
            ReadError::Malformed { .. } => {
                Self::Damaged(format!("is where the tarball and the index part: {error}"))
            }
            ReadError::Stream(_) => Self::Read(error),
        }
    }

    /// With the entry it came at; an empty path is none of them.
    pub(crate) fn at(self, path: &[u8]) -> ArchiveError {
        ArchiveError { problem: Box::new(self), path: path.to_vec() }
    }
}

/// A [`Problem`] and the entry it came at. The source that reads the archive says it in words.
#[derive(Debug)]
pub struct ArchiveError {
    /// Boxed, as it is large and rare.
    pub(crate) problem: Box<Problem>,
    pub(crate) path: Vec<u8>,
}
