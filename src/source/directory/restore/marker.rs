//! The mark of a restore that is under way, so that it can be run again after it was interrupted.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::file_writer::{FileWriter, TEMPORARY, is_temporary};
use crate::archive::error::Problem;
use crate::model::Clock;
use crate::source::{RestoreArtifact, SourceError};

/// The name of the mark in the target. Files that are not complete have a dot and a number behind
/// it.
pub(super) const MARKER: &str = TEMPORARY;
/// A mark is one short line.
const LIMIT: u64 = 64 << 10;

/// What the mark says: which restore is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// The id of the snapshot.
    pub(super) snapshot: String,
    /// The artifact of it: `files.tar`.
    pub(super) artifact: String,
    /// When it began (RFC 3339).
    pub(super) begun: String,
}

/// What a target has in it.
pub(super) enum TargetState {
    /// Nothing, or it is not there.
    Empty,
    /// The same restore, interrupted.
    Interrupted,
    /// Another restore, interrupted.
    OtherRestore(Marker),
    /// Something.
    Occupied,
}

/// Looks into the target.
pub(super) fn standing(
    place: &Path,
    artifact: &RestoreArtifact,
) -> Result<TargetState, std::io::Error> {
    if std::fs::read_dir(place)?.next().is_none() {
        return Ok(TargetState::Empty);
    }
    let folder =
        openat(CWD, place, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(match read(folder.as_fd()) {
        Some(marker)
            if marker.snapshot == artifact.snapshot && marker.artifact == artifact.name =>
        {
            TargetState::Interrupted
        }
        Some(marker) => TargetState::OtherRestore(marker),
        None => TargetState::Occupied,
    })
}

/// The mark in a folder; none where it has none that can be read.
fn read(folder: BorrowedFd<'_>) -> Option<Marker> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(folder, MARKER, flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    std::fs::File::from(file).take(LIMIT).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// What is said of a target that has another restore in it.
pub(super) fn refuse_another(place: &Path, marker: &Marker) -> SourceError {
    SourceError::NotEmpty(format!(
        "{}` has in it an interrupted restore of `{}` from the snapshot `{}` (begun {}), so `{}",
        place.display(),
        marker.artifact,
        marker.snapshot,
        marker.begun,
        place.display()
    ))
}

/// Puts the mark into the folder, on disk before anything else is written.
pub(super) fn put(
    writer: &FileWriter<'_>,
    folder: BorrowedFd<'_>,
    artifact: &RestoreArtifact,
) -> Result<(), Problem> {
    let system = |error| Problem::System("mark the restore in", error);
    let marker = Marker {
        snapshot: artifact.snapshot.clone(),
        artifact: artifact.name.clone(),
        begun: Clock::system().now_seconds().to_rfc3339(),
    };
    let mut line = serde_json::to_vec(&marker).unwrap_or_default();
    line.push(b'\n');
    let (file, temporary) = writer.create_temporary(folder, c"")?;
    let mut file = std::fs::File::from(file);
    let written = file.write_all(&line).and_then(|()| file.sync_all());
    written.map_err(|error| system(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    let put = match renameat(folder, &temporary, folder, MARKER) {
        Err(Errno::ISDIR) => unlinkat(folder, MARKER, AtFlags::REMOVEDIR)
            .and_then(|()| renameat(folder, &temporary, folder, MARKER)),
        result => result,
    };
    if put.is_err() {
        // The first error is the one to tell of.
        let _ = unlinkat(folder, &temporary, AtFlags::empty());
    }
    put.and_then(|()| fsync(folder)).map_err(system)
}

/// Takes the mark away.
pub(super) fn remove(folder: BorrowedFd<'_>) -> Result<(), Problem> {
    match unlinkat(folder, MARKER, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Problem::System("take the mark of the restore out of", error)),
    }
}

/// Removes from a folder the files that an interrupted restore left incomplete.
pub(super) fn remove_stale(folder: BorrowedFd<'_>) -> Result<(), Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if is_temporary(entry.file_name().to_bytes()) {
            match unlinkat(folder, entry.file_name(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
