//! What a regular file holds: opened, mapped, read in order, digested.
//!
//! Where the holes of a sparse file are is looked up once, when it is opened, and reading follows
//! that map: what the header of the entry promises is what the stream gets, whatever becomes of the
//! file meanwhile.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::io::Errno;

use crate::archive::Kind;
use crate::archive::header::{Attribute, Extent};
use crate::archive::proof::HOLES_LIMIT;
use crate::model::{Digest, Digester};
use crate::source::directory::attributes::AttributeReader;
use crate::source::directory::meta::Meta;
use crate::source::directory::walk::open_quietly;

/// How much is read of a file at a time.
pub(super) const CHUNK: usize = 64 << 10;
/// The most pieces of a sparse file. What comes after them is one piece, holes and all.
const PIECES_LIMIT: usize = 65_536;
/// How an SQLite database, its journal and its write-ahead log begin:
/// <https://www.sqlite.org/fileformat.html>.
const SQLITE: [&[u8]; 4] = [
    b"SQLite format 3\0",
    b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7",
    b"\x37\x7f\x06\x82",
    b"\x37\x7f\x06\x83",
];
static ZEROS: [u8; CHUNK] = [0; CHUNK];

const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// What was found when a file was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) meta: Meta,
    /// Or why they could not be read.
    pub(super) attributes: Result<Vec<Attribute>, Errno>,
    /// Of a sparse file: the pieces between its holes, in order. One that ends in a hole has an
    /// empty piece at its end.
    pub(super) map: Option<Vec<Extent>>,
}

/// How the reading of a file went.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Of all that the file holds, zeros in place of its holes. None when there are too many of
    /// them.
    pub(super) digest: Option<Digest>,
    /// In place of it: of the pieces of data, joined.
    pub(super) data_digest: Option<Digest>,
    /// Where in the file nothing more came, and the error if it was one. From there on it was taken
    /// for zeros.
    pub(super) stopped: Option<(u64, Option<Errno>)>,
    /// What the system says of it afterwards.
    pub(super) after: Result<Meta, Errno>,
    /// It only grew: read again, what had been there was the same.
    pub(super) appended: bool,
}

/// Opens a regular file, and looks at all of it but the content.
///
/// # Errors
/// What the system said; [`Errno::LOOP`] also when it is something else than a regular file.
pub(super) fn open(
    folder: BorrowedFd<'_>,
    name: &CStr,
    attributes: &mut AttributeReader,
) -> Result<(OwnedFd, Opened), Errno> {
    let file = open_quietly(folder, name, FILE)?;
    let meta = Meta::of(file.as_fd())?;
    if meta.kind != Some(Kind::File) {
        return Err(Errno::LOOP);
    }
    let attributes = attributes.read(file.as_fd());
    let map = if meta.allocated < meta.size { map(file.as_fd(), meta.size)? } else { None };
    Ok((file, Opened { meta, attributes, map }))
}

/// The pieces of data of a file; none if it has no holes, or its file system does not tell. The
/// file stands at its begin again.
fn map(file: BorrowedFd<'_>, size: u64) -> Result<Option<Vec<Extent>>, Errno> {
    let pieces = pieces(size, |from| seek(file, from));
    match seek(file, SeekFrom::Start(0)) {
        Ok(_) | Err(Errno::SPIPE) => {}
        Err(error) => return Err(error),
    }
    Ok(pieces.filter(|pieces| pieces.as_slice() != [(0, size)]))
}

fn pieces(size: u64, seek: impl Fn(SeekFrom) -> Result<u64, Errno>) -> Option<Vec<Extent>> {
    let mut pieces = Vec::new();
    let mut position = 0;
    while position < size {
        let data = match seek(SeekFrom::Data(position)) {
            Ok(data) if data < size => data,
            Ok(_) | Err(Errno::NXIO) => {
                pieces.push((size, 0));
                break;
            }
            Err(_) => return None,
        };
        let hole = if pieces.len() + 1 == PIECES_LIMIT {
            size
        } else {
            seek(SeekFrom::Hole(data)).ok()?.min(size)
        };
        let length = hole.checked_sub(data).filter(|length| *length > 0)?;
        pieces.push((data, length));
        position = hole;
    }
    Some(pieces)
}

/// Bytes of data, without the holes.
pub(super) fn data_bytes(opened: &Opened) -> u64 {
    opened.map.as_ref().map_or(opened.meta.size, |map| map.iter().map(|(_, length)| length).sum())
}

/// Reads the data of a file in order and gives it to `take`, in chunks of up to [`CHUNK`] bytes: as
/// many bytes in all as [`data_bytes`] said, zeros in place of those that cannot be had. `go_on` is
/// asked often.
///
/// # Errors
/// Those of `take` and `go_on` only.
pub(super) fn read<E>(
    file: BorrowedFd<'_>,
    opened: &Opened,
    go_on: impl Fn() -> Result<(), E>,
    mut take: impl FnMut(Vec<u8>) -> Result<(), E>,
) -> Result<Outcome, E> {
    let size = opened.meta.size;
    let mut left = data_bytes(opened);
    let digest_holes = size - left <= HOLES_LIMIT;
    let whole = [(0, size)];
    let mut digester = Digester::new();
    let mut stopped = None;
    let mut chunk = Vec::new();
    let mut position = 0;
    for (offset, length) in opened.map.as_deref().unwrap_or(&whole).iter().copied() {
        if digest_holes {
            zeros(&mut digester, offset - position, &go_on)?;
        }
        position = offset;
        let end = offset + length;
        while position < end {
            go_on()?;
            let filled = chunk.len();
            let room = (CHUNK - filled).min(usize::try_from(end - position).unwrap_or(CHUNK));
            if filled == 0 {
                chunk.reserve_exact(usize::try_from(left).unwrap_or(CHUNK).min(CHUNK));
            }
            chunk.resize(filled + room, 0);
            let buffer = chunk.get_mut(filled..).unwrap_or_default();
            if stopped.is_none() {
                let result = match opened.map {
                    None => rustix::io::read(file, &mut *buffer),
                    Some(_) => rustix::io::pread(file, &mut *buffer, position),
                };
                match result {
                    Ok(0) => stopped = Some((position, None)),
                    Ok(read) => chunk.truncate(filled + read),
                    Err(Errno::INTR) => {
                        chunk.truncate(filled);
                        continue;
                    }
                    Err(error) => stopped = Some((position, Some(error))),
                }
            }
            let came = chunk.get(filled..).unwrap_or_default();
            digester.update(came);
            position += came.len() as u64;
            left -= came.len() as u64;
            if chunk.len() == CHUNK || left == 0 {
                take(std::mem::take(&mut chunk))?;
            }
        }
    }
    if digest_holes {
        zeros(&mut digester, size - position, &go_on)?;
    }
    let digest = digester.finish();
    let (digest, data_digest) =
        if digest_holes { (Some(digest), None) } else { (None, Some(digest)) };
    let after = Meta::of(file);
    let grew = after.ok().filter(|after| after.size > size && stopped.is_none());
    let appended = match (grew, digest) {
        (Some(after), Some(digest)) => {
            only_grew(file, size, digest, go_on)?
                && Meta::of(file).is_ok_and(|last| last.size >= after.size)
        }
        _ => false,
    };
    Ok(Outcome { digest, data_digest, stopped, after, appended })
}

/// Whether the first `size` bytes of a file still have this digest, so that they were not written
/// to since they were read. Never for the files of an SQLite database, which may have been caught
/// between two writes of one transaction.
fn only_grew<E>(
    file: BorrowedFd<'_>,
    size: u64,
    digest: Digest,
    go_on: impl Fn() -> Result<(), E>,
) -> Result<bool, E> {
    let mut digester = Digester::new();
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < size {
        go_on()?;
        let room = usize::try_from(size - position).unwrap_or(CHUNK).min(CHUNK);
        let part = buffer.get_mut(..room).unwrap_or_default();
        match rustix::io::pread(file, &mut *part, position) {
            Ok(0) => return Ok(false),
            Ok(read) => {
                let came = part.get(..read).unwrap_or_default();
                if position == 0 && SQLITE.iter().any(|begin| came.starts_with(begin)) {
                    return Ok(false);
                }
                digester.update(came);
                position += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(_) => return Ok(false),
        }
    }
    Ok(digester.finish() == digest)
}

/// Digests a hole.
fn zeros<E>(
    digester: &mut Digester,
    mut length: u64,
    go_on: impl Fn() -> Result<(), E>,
) -> Result<(), E> {
    while length > 0 {
        go_on()?;
        let part = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        digester.update(ZEROS.get(..part).unwrap_or_default());
        length -= part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, FileType, Mode, OFlags, SeekFrom, mknodat, openat};
    use rustix::io::Errno;

    use super::{PIECES_LIMIT, open, pieces};
    use crate::source::directory::attributes::AttributeReader;

    /// What a file may have become between a look at it and opening it.
    #[test]
    fn opening_a_file_neither_follows_a_link_nor_waits_for_a_pipe() {
        let scratch = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("link")).unwrap();
        mknodat(CWD, scratch.path().join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let folder = openat(CWD, scratch.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for name in [c"link", c"pipe"] {
            assert_eq!(
                open(folder.as_fd(), name, &mut AttributeReader::new()).err(),
                Some(Errno::LOOP),
                "{name:?}"
            );
        }
    }

    /// A file with a piece of data of one byte at every other one.
    fn of_many_holes(size: u64) -> impl Fn(SeekFrom) -> Result<u64, Errno> {
        move |from| match from {
            SeekFrom::Data(at) if at.next_multiple_of(2) < size => Ok(at.next_multiple_of(2)),
            SeekFrom::Hole(at) => Ok((at | 1).min(size)),
            _ => Err(Errno::NXIO),
        }
    }

    #[test]
    fn beyond_so_many_pieces_the_rest_of_a_file_is_one() {
        assert_eq!(pieces(4, of_many_holes(4)), Some(vec![(0, 1), (2, 1), (4, 0)]));
        assert_eq!(pieces(3, of_many_holes(3)), Some(vec![(0, 1), (2, 1)]));
        let size = 1_000_000;
        let many = pieces(size, of_many_holes(size)).unwrap();
        assert_eq!(many.len(), PIECES_LIMIT);
        let (offset, length) = *many.last().unwrap();
        assert_eq!((offset, offset + length), (2 * (PIECES_LIMIT as u64 - 1), size));
    }

    #[test]
    fn a_file_system_that_gives_no_sense_gives_no_holes() {
        assert_eq!(pieces(10, |_| Err(Errno::INVAL)), None);
        assert_eq!(pieces(10, |_| Ok(5)), None, "a piece without data would never end");
        let first = Cell::new(true);
        let failing = |_| if first.replace(false) { Ok(0) } else { Err(Errno::IO) };
        assert_eq!(pieces(10, failing), None);
        assert_eq!(pieces(10, |_| Err(Errno::NXIO)), Some(vec![(10, 0)]), "all of it is a hole");
    }
}
