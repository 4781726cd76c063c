//! A file or a folder of a tarball given out, without a restore.

use std::cell::RefCell;
use std::io::{self, Read, Write};

use super::Streams;
use super::checked_index::{CheckedIndex, end_of, plain_path};
use super::cursor::{self, IndexCursor};
use super::entry::{Kind, lossy};
use super::error::{ArchiveError, Problem};
use super::header::END;
use super::index::Entry;
use super::proof::{Content, Proof, read_entry};
use super::reader::TarReader;
use super::selection::{Wanted, no_index, select};
use crate::model::Cancel;

/// How much is read at a time, and held back until the digest is known to be right.
const BUFFER: usize = 256 << 10;

/// What the index has at `path`. The index is read to its end, so that what it says may be relied
/// on.
///
/// # Errors
/// When the snapshot has no index of these files, or it is damaged; when `path` could not be one.
pub fn entry_at(
    streams: &dyn Streams,
    path: &[u8],
    cancel: &Cancel,
) -> Result<Option<Entry>, ArchiveError> {
    let path = asked(path)?;
    let mut index = CheckedIndex::open(streams)?.ok_or_else(no_index)?;
    let mut found = None;
    while let Some(entry) = index.next()? {
        if cancel.is_cancelled() {
            return Err(Problem::Cancelled.at(&path));
        }
        if entry.path == path {
            found = Some(entry);
        }
    }
    Ok(found)
}

/// Writes the content of the file at `path`: holes as zeros, a hard link as the file that it names.
/// Returns its bytes. The last of them are written only when the digest of all was found right.
///
/// # Errors
/// When there is no file at `path`, it is not what the index says, or `out` fails.
pub fn write_file(
    streams: &dyn Streams,
    path: &[u8],
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<u64, ArchiveError> {
    let mut entry = must_find(streams, path, cancel)?;
    if let Some(target) = entry.target.take().filter(|_| entry.kind == Kind::Hardlink) {
        entry = must_find(streams, &target, cancel)?;
    }
    let range = entry.offset..end_of(&entry).unwrap_or_default();
    let Some(proof) = Proof::of(&entry).filter(|_| entry.kind == Kind::File) else {
        return Err(unsuitable(
            format!("`{}` is no file, so it has no content", lossy(path)),
            path,
        ));
    };
    let failed = |problem: Problem| problem.at(&entry.path);
    let mut input = streams.parts(vec![range]).map_err(|error| failed(Problem::Stream(error)))?;
    let mut reader = TarReader::new(&mut input);
    let give = || -> Result<(), Problem> {
        let incoming = cursor::only(&entry, &mut reader)?;
        let mut held = Held { out, bytes: Vec::new() };
        let mut buffer = vec![0; BUFFER];
        read_entry(
            &mut reader,
            &incoming,
            Some(proof),
            cancel,
            &mut buffer,
            |piece| match piece {
                Content::Data(bytes) => held.put(bytes),
                Content::Hole(length) => held.zeros(length, cancel),
            },
        )?;
        cursor::end_of_parts(&mut reader)?;
        held.out.write_all(&held.bytes).and_then(|()| held.out.flush()).map_err(Problem::Stream)
    };
    give().map_err(failed)?;
    Ok(entry.size)
}

/// Writes the folder at `path`, with all in it, as a tarball; its names are those of the whole.
/// Returns how many entries it has. The end mark is written only when all was found as the index
/// says.
///
/// # Errors
/// When there is no folder at `path`, it is not what the index says, a hard link in it names a file
/// outside of it, or `out` fails.
pub fn write_folder(
    streams: &dyn Streams,
    path: &[u8],
    out: &mut dyn Write,
    cancel: &Cancel,
) -> Result<u64, ArchiveError> {
    let entry = must_find(streams, path, cancel)?;
    if entry.kind != Kind::Directory {
        return Err(unsuitable(format!("`{}` is no folder", lossy(path)), path));
    }
    let selection = select(streams, Wanted::At(entry.path), cancel)?;
    if let Some((target, link)) = selection.borrowed.iter().next() {
        let (target, link) = (lossy(target), lossy(link));
        return Err(unsuitable(
            format!(
                "`{link}` is a hard link to `{target}`, which lies outside of `{}`: restore it \
                 instead",
                lossy(path)
            ),
            path,
        ));
    }
    let index = CheckedIndex::open(streams)?.ok_or_else(no_index)?;
    let sink = RefCell::new(Sink { out, mode: Mode::Hold, held: Vec::new(), error: None });
    let input = streams.parts(selection.ranges.clone());
    let input = input.map_err(|error| Problem::Stream(error).at(b""))?;
    let mut tee = Tee { input, sink: &sink };
    let mut reader = TarReader::new(&mut tee);
    let mut cursor = IndexCursor::new(index, Some(&selection));
    let copied = copy(&mut cursor, &mut reader, &sink, cancel);
    let error = sink.borrow_mut().error.take();
    if let Some(error) = error {
        return Err(Problem::Stream(error).at(b""));
    }
    copied?;
    let out = &mut *sink.borrow_mut().out;
    out.write_all(&END)
        .and_then(|()| out.flush())
        .map_err(|error| Problem::Stream(error).at(b""))?;
    Ok(selection.entries)
}

fn unsuitable(problem: String, path: &[u8]) -> ArchiveError {
    Problem::Unsuitable(problem).at(path)
}

pub(crate) fn asked(path: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    plain_path(path).map_err(|problem| match problem {
        Problem::Refused(problem) => unsuitable(
            format!(
                "`{}` {problem}: a path is counted from the folder that was backed up",
                lossy(path)
            ),
            path,
        ),
        problem => problem.at(path),
    })
}

fn must_find(streams: &dyn Streams, path: &[u8], cancel: &Cancel) -> Result<Entry, ArchiveError> {
    entry_at(streams, path, cancel)?.ok_or_else(|| {
        unsuitable(
            format!(
                "The snapshot has no `{}`. A path is counted from the folder that was backed up",
                lossy(path)
            ),
            path,
        )
    })
}

/// Holds back the piece that came last.
struct Held<'a> {
    out: &'a mut dyn Write,
    bytes: Vec<u8>,
}

impl Held<'_> {
    fn put(&mut self, piece: &[u8]) -> Result<(), Problem> {
        self.out.write_all(&self.bytes).map_err(Problem::Stream)?;
        self.bytes.clear();
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn zeros(&mut self, mut length: u64, cancel: &Cancel) -> Result<(), Problem> {
        let zeros = [0; 64 << 10];
        while length > 0 {
            if cancel.is_cancelled() {
                return Err(Problem::Cancelled);
            }
            let most = usize::try_from(length).unwrap_or(usize::MAX).min(zeros.len());
            self.put(zeros.get(..most).unwrap_or_default())?;
            length -= most as u64;
        }
        Ok(())
    }
}

/// What becomes of the bytes that are read.
enum Mode {
    /// They are kept until it is known.
    Hold,
    Pass,
    Drop,
}

struct Sink<'a> {
    out: &'a mut dyn Write,
    mode: Mode,
    held: Vec<u8>,
    error: Option<io::Error>,
}

impl Sink<'_> {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.mode {
            Mode::Hold => self.held.extend_from_slice(bytes),
            Mode::Pass => self.out.write_all(bytes)?,
            Mode::Drop => {}
        }
        Ok(())
    }

    fn decide(&mut self, pass: bool) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        self.mode = if pass { Mode::Pass } else { Mode::Drop };
        self.take(&held)
    }
}

/// Gives what is read to a sink too.
struct Tee<'a, 'b> {
    input: Box<dyn Read + Send + 'a>,
    sink: &'a RefCell<Sink<'b>>,
}

impl Read for Tee<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        let mut sink = self.sink.borrow_mut();
        if let Err(error) = sink.take(buffer.get(..read).unwrap_or_default()) {
            let kind = error.kind();
            sink.error = Some(error);
            return Err(kind.into());
        }
        Ok(read)
    }
}

fn copy(
    cursor: &mut IndexCursor<'_>,
    reader: &mut TarReader<'_>,
    sink: &RefCell<Sink<'_>>,
    cancel: &Cancel,
) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; BUFFER];
    loop {
        sink.borrow_mut().mode = Mode::Hold;
        let Some(step) = cursor.step(reader)? else { return Ok(()) };
        let mut entry = || -> Result<(), Problem> {
            sink.borrow_mut().decide(step.chosen).map_err(Problem::Stream)?;
            let proof = Proof::of(&step.entry);
            read_entry(reader, &step.incoming, proof, cancel, &mut buffer, |_| Ok(()))?;
            reader.skip().map_err(Problem::damaged)
        };
        entry().map_err(|problem| problem.at(&step.entry.path))?;
    }
}
