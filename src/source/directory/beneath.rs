//! Entries of a folder by their paths, however long those are.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// Bytes of a path that are given to the system at once; it takes 4,095.
const PIECE: usize = 2048;

/// Opens an entry beneath `root`, by the rules of `resolve`. A path that is longer than the system
/// takes is opened by pieces, each beneath the one before.
///
/// # Errors
/// Those of the system.
pub fn open_beneath(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::BENEATH;
    let mut folder: Option<OwnedFd> = None;
    let mut rest = path;
    while let Some(piece) = rest.get(..PIECE) {
        let end = piece.iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let (piece, after) = rest.split_at(end);
        let from = folder.as_ref().map_or(root, |folder| folder.as_fd());
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        folder = Some(openat2(from, piece, step, Mode::empty(), resolve)?);
        let slashes = after.iter().take_while(|byte| **byte == b'/').count();
        rest = after.get(slashes..).unwrap_or_default();
    }
    let from = folder.as_ref().map_or(root, |folder| folder.as_fd());
    let rest = if rest.is_empty() { b"." } else { rest };
    openat2(from, rest, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}
