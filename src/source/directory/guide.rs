//! The index beside the tarball: what each entry must be, and where.
//!
//! The index drives: an entry of the tarball is taken only if it is the next of the index in every
//! field, and never more is read than the index says. So a tarball that is not the one that was
//! backed up, cut, swapped or blown up, is noticed before its content has a name.

use std::io::Read;

use super::entry::{Kind, lossy};
use super::index::{Entry, Footer, IndexReader};
use super::proof::HOLES_LIMIT;
use super::reader::{Incoming, ReadError, Reader};
use super::select::Selection;
use super::tarball::{BLOCK, PATH_LIMIT, padding};
use super::trouble::{Failure, Trouble};
use crate::source::{SourceError, Streams};

/// The names on the way to an entry, and its own last; none for the root.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Trouble> {
    if path.first() == Some(&b'/') {
        return Err(Trouble::Refused("has an absolute name".to_owned()));
    }
    if path.contains(&0) {
        return Err(Trouble::Refused("has a zero byte in its name".to_owned()));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(Trouble::Refused("has a name that leads out through `..`".to_owned()));
    }
    Ok(parts)
}

/// The path as an index writes it: without what says nothing, and `.` for the root.
pub(super) fn plain_path(path: &[u8]) -> Result<Vec<u8>, Trouble> {
    let path = components(path)?.join(&b'/');
    Ok(if path.is_empty() { b".".to_vec() } else { path })
}

/// The entries of an index, of which each follows the one before in the tarball.
pub(super) struct Lines<'a> {
    index: IndexReader<Box<dyn Read + Send + 'a>>,
    /// Where the entry that was read last ends in the tarball.
    end: u64,
    last: Vec<u8>,
}

impl<'a> Lines<'a> {
    /// Opens the index; none where the snapshot has none.
    pub(super) fn open(streams: &'a dyn Streams) -> Result<Option<Self>, Failure> {
        let stream =
            streams.index().map_err(|error| Trouble::Other(SourceError::Stream(error)).at(b""))?;
        let Some(stream) = stream else { return Ok(None) };
        let index = IndexReader::new(stream).map_err(|error| Trouble::Index(error).at(b""))?;
        Ok(Some(Self { index, end: 0, last: Vec::new() }))
    }

    /// The next entry; none after the last, when the footer is right.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Failure> {
        let entry = match self.index.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None)
                if self.index.footer().is_some_and(|footer| footer.stream_bytes < self.end) =>
            {
                return Err(Trouble::Damaged(
                    "ends after the end that the footer of the index says".to_owned(),
                )
                .at(&self.last));
            }
            Ok(None) => return Ok(None),
            Err(error) => return Err(Trouble::Index(error).at(&self.last)),
        };
        match check(&entry, self.end) {
            Ok(end) => self.end = end,
            Err(problem) => return Err(Trouble::Damaged(problem).at(&entry.path)),
        }
        self.last.clone_from(&entry.path);
        Ok(Some(entry))
    }

    /// What the footer says, once all entries were read.
    pub(super) fn footer(&self) -> Footer {
        self.index.footer().unwrap_or_default()
    }
}

/// Where in the tarball an entry ends: the next begins there.
pub(super) fn end_of(entry: &Entry) -> Option<u64> {
    entry.data_offset.checked_add(entry.length)?.checked_add(padding(entry.length))
}

/// Whether the index may say so of an entry that follows one which ended at `before`. Returns where
/// it ends.
fn check(entry: &Entry, before: u64) -> Result<u64, String> {
    let odd = |path: &[u8]| match plain_path(path) {
        Ok(plain) if plain == path && path.len() <= PATH_LIMIT => None,
        Ok(_) => Some("is not written as the path of an entry is".to_owned()),
        Err(Trouble::Refused(problem)) => Some(problem),
        Err(_) => Some("is no path".to_owned()),
    };
    if let Some(problem) = odd(&entry.path) {
        return Err(format!("is in the index and {problem}"));
    }
    if entry.archive.is_some() {
        return Err(
            "has its content in another snapshot, which this version cannot read: use a newer one"
                .to_owned(),
        );
    }
    if entry.offset != before {
        return Err(format!(
            "begins at byte {} by the index, and what comes before it ends at {before}",
            entry.offset
        ));
    }
    let end = end_of(entry).filter(|_| {
        entry.data_offset.is_multiple_of(BLOCK)
            && entry.data_offset.checked_sub(BLOCK).is_some_and(|at| at >= before)
    });
    let Some(end) = end else {
        return Err(format!(
            "cannot have its content at byte {} and be {} bytes long, as the index says",
            entry.data_offset, entry.length
        ));
    };
    let target = entry.target.as_deref();
    match entry.kind {
        Kind::File if entry.digest.is_none() && entry.data_digest.is_none() => {
            return Err("has no digest in the index".to_owned());
        }
        Kind::File
            if entry.digest.is_some() && entry.size.saturating_sub(entry.length) > HOLES_LIMIT =>
        {
            return Err(format!(
                "cannot be {} bytes long and have a digest of all of them, as the index says",
                entry.size
            ));
        }
        Kind::File => {}
        _ if entry.size != 0 || entry.length != 0 => {
            return Err("is no file and has a size in the index".to_owned());
        }
        Kind::Hardlink if target.is_none_or(|target| odd(target).is_some()) => {
            return Err("is a hard link to nothing that the index could have".to_owned());
        }
        Kind::Symlink if target.is_none() => {
            return Err("is a link without a target in the index".to_owned());
        }
        _ => {}
    }
    if entry.path == b"." && entry.kind != Kind::Directory {
        return Err("would replace the target itself".to_owned());
    }
    Ok(end)
}

/// Whether the entry of the tarball is that of the index; says what differs.
fn compare(found: &Incoming, expected: &Entry) -> Result<(), Trouble> {
    fn same<T: PartialEq>(
        what: &str,
        found: &T,
        expected: &T,
        show: impl Fn(&T) -> String,
    ) -> Result<(), Trouble> {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (show(found), show(expected));
        Err(Trouble::Damaged(format!(
            "has the {what} `{found}` in the tarball, and the index says `{expected}`"
        )))
    }
    let bytes = |bytes: &Vec<u8>| lossy(bytes);
    let number = |number: &u64| number.to_string();
    same("name", &plain_path(&found.path)?, &expected.path, bytes)?;
    same("kind", &found.kind, &expected.kind, |kind| format!("{kind:?}").to_lowercase())?;
    same("size", &found.size, &expected.size, number)?;
    same("time", &found.mtime, &expected.mtime, ToString::to_string)?;
    same("mode", &found.mode, &expected.mode, |mode| format!("{mode:04o}"))?;
    same("owner", &found.uid, &expected.uid.into(), number)?;
    same("group", &found.gid, &expected.gid.into(), number)?;
    let target = expected.target.clone().unwrap_or_default();
    match expected.kind {
        Kind::Symlink => same("target", &found.target, &target, bytes)?,
        Kind::Hardlink => same("target", &plain_path(&found.target)?, &target, bytes)?,
        Kind::Char | Kind::Block => {
            let rdev = expected.rdev.unwrap_or_default();
            same("device", &found.rdev, &rdev, |(major, minor)| format!("{major}:{minor}"))?;
        }
        _ => {}
    }
    same("beginning", &found.offset, &expected.offset, number)?;
    same("beginning of its content", &found.data_offset, &expected.data_offset, number)?;
    same("stored length", &found.length, &expected.length, number)
}

/// An entry of the tarball and what the index has of it.
pub(super) struct Step {
    pub(super) incoming: Incoming,
    pub(super) entry: Entry,
    /// Whether it is one of those that were chosen; others come along where ranges were joined.
    pub(super) chosen: bool,
    /// Whether it is a folder that was chosen only because it leads to something.
    pub(super) leads: bool,
}

/// Leads through a tarball, whole or the chosen parts of it.
pub(super) struct Guide<'a> {
    lines: Lines<'a>,
    pub(super) selection: Option<&'a Selection>,
    /// How many entries of the index were read.
    ordinal: u64,
    /// The range in which the reader stands.
    range: usize,
}

impl<'a> Guide<'a> {
    pub(super) fn new(lines: Lines<'a>, selection: Option<&'a Selection>) -> Self {
        Self { lines, selection, ordinal: 0, range: 0 }
    }

    /// The next entry of the tarball; none after the last, when the end of both is right.
    pub(super) fn step(&mut self, reader: &mut Reader<'_>) -> Result<Option<Step>, Failure> {
        while let Some(entry) = self.lines.next()? {
            let ordinal = self.ordinal;
            self.ordinal += 1;
            if !self.is_fetched(&entry) {
                continue;
            }
            let chosen = self.selection.is_none_or(|selection| selection.has(ordinal));
            let leads = self.selection.is_some_and(|selection| selection.leads(ordinal));
            let incoming = only(&entry, reader).map_err(|trouble| trouble.at(&entry.path))?;
            return Ok(Some(Step { incoming, entry, chosen, leads }));
        }
        self.end(reader).map_err(|trouble| trouble.at(&self.lines.last))?;
        Ok(None)
    }

    /// Whether the entry is in the stream.
    fn is_fetched(&mut self, entry: &Entry) -> bool {
        let Some(selection) = self.selection else { return true };
        while selection.ranges.get(self.range).is_some_and(|range| range.end <= entry.offset) {
            self.range += 1;
        }
        selection.ranges.get(self.range).is_some_and(|range| range.contains(&entry.offset))
    }

    fn end(&mut self, reader: &mut Reader<'_>) -> Result<(), Trouble> {
        let footer = self.lines.footer();
        let more = |what: &str| {
            Trouble::Damaged(format!("is the last entry of the index, and the tarball {what}"))
        };
        if let Some(selection) = self.selection {
            if footer != selection.footer {
                return Err(Trouble::Damaged(
                    "is the last entry of an index that changed while it was used".to_owned(),
                ));
            }
            return end_of_parts(reader);
        }
        reader.set_limit(footer.stream_bytes);
        if reader.next().map_err(damaged)?.is_some() {
            return Err(more("goes on"));
        }
        reader.drain().map_err(damaged)?;
        if reader.position() == footer.stream_bytes {
            return Ok(());
        }
        Err(more(&format!("has {} bytes, not {}", reader.position(), footer.stream_bytes)))
    }
}

/// Reads the headers of an entry, which begins where the reader stands or, in parts of a stream,
/// with the next part.
pub(super) fn only(entry: &Entry, reader: &mut Reader<'_>) -> Result<Incoming, Trouble> {
    reader.go_to(entry.offset).map_err(damaged)?;
    reader.set_limit(end_of(entry).unwrap_or_default());
    let incoming = reader.next().map_err(damaged)?;
    let incoming = incoming.ok_or_else(|| {
        Trouble::Damaged("is in the index, and the tarball ends before it".to_owned())
    })?;
    compare(&incoming, entry)?;
    Ok(incoming)
}

/// Reads the end of parts of a stream, which have no end mark.
pub(super) fn end_of_parts(reader: &mut Reader<'_>) -> Result<(), Trouble> {
    reader.skip().map_err(damaged)?;
    reader.set_limit(reader.position());
    reader.drain().map_err(damaged)
}

/// With an index the tarball is known to be ours: what cannot be read as one was damaged.
pub(super) fn damaged(error: ReadError) -> Trouble {
    match error {
        ReadError::Malformed { .. } => {
            Trouble::Damaged(format!("is where the tarball and the index part: {error}"))
        }
        ReadError::Stream(_) => Trouble::Read(error),
    }
}
