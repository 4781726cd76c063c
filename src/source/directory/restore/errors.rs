//! Errors of reading an archive, in words for the operator.

use crate::archive::error::Problem;
use crate::archive::index::IndexError;
use crate::archive::reader::ReadError;
use crate::archive::{ArchiveError, lossy};
use crate::source::SourceError;

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

fn name(error: &ArchiveError) -> String {
    if error.path.is_empty() { ".".to_owned() } else { lossy(&error.path) }
}

/// The error of a restore to `place`: what stopped it, at which entry, and what to do.
pub(super) fn restore_error(error: ArchiveError, place: &str) -> SourceError {
    let path = name(&error);
    let incomplete = format!("What is in `{place}` is incomplete");
    let again = "run the same command again, which replaces what is there";
    match *error.problem {
        Problem::Read(ReadError::Stream(error)) => stopped(
            format!(
                "The restore stopped at `{path}`, so what is in `{place}` is incomplete: \
                     {again}"
            ),
            error,
        ),
        Problem::Index(IndexError::Stream { error, .. }) => stopped(
            format!(
                "The index could not be read on after `{path}`, so what is in `{place}` is \
                     incomplete: {again}"
            ),
            error,
        ),
        Problem::System(attempt, error) => SourceError::Io {
            attempt,
            path: format!("{place}/{path}"),
            error: std::io::Error::new(
                std::io::Error::from(error).kind(),
                format!("{error}. {incomplete}: put this right and {again}"),
            ),
        },
        problem => plainly(problem.at(&error.path), &incomplete),
    }
}

/// The error of reading, which touches no target.
impl From<ArchiveError> for SourceError {
    fn from(error: ArchiveError) -> Self {
        let path = name(&error);
        match *error.problem {
            Problem::Read(ReadError::Stream(error)) => {
                stopped(format!("Reading stopped at `{path}`"), error)
            }
            Problem::Index(IndexError::Stream { error, .. }) => {
                stopped("The index could not be read".to_owned(), error)
            }
            problem => plainly(problem.at(&error.path), "What was read of it is not to be used"),
        }
    }
}
fn plainly(error: ArchiveError, then: &str) -> SourceError {
    let path = name(&error);
    match *error.problem {
        Problem::Cancelled => SourceError::Cancelled,
        Problem::Read(error) => {
            SourceError::Unsuitable(format!("{error} (after `{path}`). {then}"))
        }
        Problem::Index(error @ IndexError::Newer { .. }) => {
            SourceError::Unsuitable(format!("{error}. {then}"))
        }
        Problem::Index(error) => SourceError::Damaged(format!("{error}. {then}")),
        Problem::Refused(problem) => SourceError::Unsuitable(format!(
            "The tarball is refused, as its entry `{path}` {problem}. {then}"
        )),
        Problem::Damaged(problem) => SourceError::Damaged(format!("`{path}` {problem}. {then}")),
        Problem::Taken => SourceError::Unsuitable(format!(
            "`{path}` was to be new, and something has its name already: the snapshot names it \
                 twice, or the file system of the \
                 target does not tell upper case from lower. {then}"
        )),
        Problem::System(attempt, error) => SourceError::Io { attempt, path, error: error.into() },
        Problem::Stream(error) => SourceError::Stream(error),
        Problem::Unsuitable(problem) => SourceError::Unsuitable(problem),
    }
}
