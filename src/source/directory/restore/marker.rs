//! The mark of a restore that is under way, so that it can be run again after it was interrupted.

use std::ffi::CStr;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fsync, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::file_writer::{FileWriter, TEMPORARY, is_temporary};
use crate::archive::error::Problem;
use crate::model::Clock;
use crate::source::directory::meta::Meta;
use crate::source::place::{Hold, hold};
use crate::source::{RestoreArtifact, RestoreOptions, SourceError};

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
    /// The patterns of the entries that were asked for; all entries where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) paths: Vec<String>,
    /// When it began (RFC 3339).
    pub(super) begun: String,
}

impl Marker {
    /// The mark of a restore that begins now.
    pub(super) fn new(artifact: &RestoreArtifact, options: &RestoreOptions) -> Self {
        Self {
            snapshot: artifact.snapshot.clone(),
            artifact: artifact.name.clone(),
            paths: options.paths.iter().map(ToString::to_string).collect(),
            begun: Clock::system().now_seconds().to_rfc3339(),
        }
    }

    fn is_of(&self, other: &Self) -> bool {
        (&self.snapshot, &self.artifact, &self.paths)
            == (&other.snapshot, &other.artifact, &other.paths)
    }
}

/// What a target has in it.
pub(super) enum TargetState {
    /// Nothing, or it is not there.
    Empty,
    /// The same restore, interrupted.
    Interrupted,
    /// Another restore, interrupted.
    OtherRestore(Marker),
    /// A restore that goes on.
    InUse(Marker),
    /// Something.
    Occupied,
}

/// Looks into the target, for the restore that would have the mark `ours`.
pub(super) fn standing(place: &Path, ours: &Marker) -> Result<TargetState, std::io::Error> {
    if std::fs::read_dir(place)?.next().is_none() {
        return Ok(TargetState::Empty);
    }
    let folder =
        openat(CWD, place, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let (marker, held) = match open(folder.as_fd()).map(std::fs::File::from) {
        Ok(file) => (read(&file), hold(&file)),
        Err(_) => (None, Ok(Hold::Ours)),
    };
    Ok(match marker {
        Some(marker) if held == Ok(Hold::Theirs) => TargetState::InUse(marker),
        Some(marker) if marker.is_of(ours) => TargetState::Interrupted,
        Some(marker) => TargetState::OtherRestore(marker),
        // It was killed before it had put its mark there.
        None if has_leftovers_only(folder.as_fd()).unwrap_or_default() => TargetState::Empty,
        None => TargetState::Occupied,
    })
}

fn open(folder: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(folder, MARKER, flags, Mode::empty())
}

/// What the mark says; none where it is none that can be read.
fn read(file: &std::fs::File) -> Option<Marker> {
    let mut text = Vec::new();
    file.take(LIMIT).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn has_leftovers_only(folder: BorrowedFd<'_>) -> Result<bool, Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_self = matches!(name.to_bytes(), b"." | b"..");
        let is_leftover = is_temporary(name.to_bytes()) && is_left(folder, name);
        if !is_self && !is_leftover {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether it is a file that nobody has locked: whoever made it has ended.
fn is_left(folder: BorrowedFd<'_>, name: &CStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(folder, name, flags, Mode::empty()).map(std::fs::File::from);
    file.is_ok_and(|file| {
        file.metadata().is_ok_and(|found| found.is_file()) && hold(&file) == Ok(Hold::Ours)
    })
}

/// Takes the mark of an interrupted restore over, for as long as the file is open. None where it
/// has none.
pub(super) fn take_over(folder: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Problem> {
    let system = |error| Problem::System("lock the mark of the restore in", error);
    let file = match open(folder) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(system(error)),
    };
    if hold(&file) == Ok(Hold::Theirs) {
        return Err(system(Errno::WOULDBLOCK));
    }
    // It may have been taken away, or replaced, before it was locked.
    let same = Meta::at(folder, c".holdfast-restore").map_err(system)?.identity
        == Meta::of(file.as_fd()).map_err(system)?.identity;
    if same { Ok(Some(file.into())) } else { Err(system(Errno::WOULDBLOCK)) }
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

/// What is said of a target that a restore writes to.
pub(super) fn refuse_in_use(place: &Path, marker: &Marker) -> SourceError {
    SourceError::Unsuitable(format!(
        "A restore of `{}` from the snapshot `{}` (begun {}) writes to `{}`. Wait for its end, or \
         choose another target",
        marker.artifact,
        marker.snapshot,
        marker.begun,
        place.display()
    ))
}

/// Puts the mark into the folder, on disk before anything else is written. As long as what is
/// returned is open, nobody takes the restore for one that is over.
pub(super) fn put(
    writer: &FileWriter<'_>,
    folder: BorrowedFd<'_>,
    marker: &Marker,
) -> Result<OwnedFd, Problem> {
    let system = |error| Problem::System("mark the restore in", error);
    // That of another restore, which is over and is replaced.
    let _before = take_over(folder)?;
    remove_stale(folder).map_err(system)?;
    let mut line = serde_json::to_vec(marker).unwrap_or_default();
    line.push(b'\n');
    let (file, temporary) = writer.create_temporary(folder, c"")?;
    let mut file = std::fs::File::from(file);
    // Where there are no locks, as before there were any.
    let _ = hold(&file);
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
    put.and_then(|()| fsync(folder)).map_err(system)?;
    Ok(file.into())
}

/// Takes the mark away.
pub(super) fn remove(folder: BorrowedFd<'_>) -> Result<(), Problem> {
    match unlinkat(folder, MARKER, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(Problem::System("take the mark of the restore out of", error)),
    }
}

/// Removes from a folder the files that an interrupted restore left incomplete. Those that are
/// locked are of one that goes on.
pub(super) fn remove_stale(folder: BorrowedFd<'_>) -> Result<(), Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_temporary(name.to_bytes()) && is_left(folder, name) {
            match unlinkat(folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
