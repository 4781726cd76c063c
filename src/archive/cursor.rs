//! The index beside the tarball: what each entry must be, and where.
//!
//! The index drives: an entry of the tarball is taken only if it is the next of the index in every
//! field, and never more is read than the index says. So a tarball that is not the one that was
//! backed up, cut, swapped or blown up, is noticed before its content has a name.

use super::checked_index::{CheckedIndex, end_of, plain_path};
use super::entry::{Kind, lossy};
use super::error::{ArchiveError, Problem};
use super::index::Entry;
use super::reader::{TarEntry, TarReader};
use super::selection::Selection;

/// Whether the entry of the tarball is that of the index; says what differs.
fn compare(found: &TarEntry, expected: &Entry) -> Result<(), Problem> {
    fn same<T: PartialEq>(
        what: &str,
        found: &T,
        expected: &T,
        show: impl Fn(&T) -> String,
    ) -> Result<(), Problem> {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (show(found), show(expected));
        Err(Problem::Damaged(format!(
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
pub(crate) struct Step {
    pub(crate) incoming: TarEntry,
    pub(crate) entry: Entry,
    /// Whether it is one of those that were chosen; others come along where ranges were joined.
    pub(crate) chosen: bool,
    /// Whether it is a folder that was chosen only because it leads to something.
    pub(crate) leads: bool,
}

/// Leads through a tarball, whole or the chosen parts of it.
pub(crate) struct IndexCursor<'a> {
    index: CheckedIndex<'a>,
    pub(crate) selection: Option<&'a Selection>,
    /// How many entries of the index were read.
    ordinal: u64,
    /// The range in which the reader stands.
    range: usize,
}

impl<'a> IndexCursor<'a> {
    pub(crate) fn new(index: CheckedIndex<'a>, selection: Option<&'a Selection>) -> Self {
        Self { index, selection, ordinal: 0, range: 0 }
    }

    /// The next entry of the tarball; none after the last, when the end of both is right.
    pub(crate) fn step(
        &mut self,
        reader: &mut TarReader<'_>,
    ) -> Result<Option<Step>, ArchiveError> {
        while let Some(entry) = self.index.next()? {
            let ordinal = self.ordinal;
            self.ordinal += 1;
            if !self.is_fetched(&entry) {
                continue;
            }
            let chosen = self.selection.is_none_or(|selection| selection.has(ordinal));
            let leads = self.selection.is_some_and(|selection| selection.leads(ordinal));
            let incoming = only(&entry, reader).map_err(|problem| problem.at(&entry.path))?;
            return Ok(Some(Step { incoming, entry, chosen, leads }));
        }
        self.end(reader).map_err(|problem| problem.at(&self.index.last))?;
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

    fn end(&mut self, reader: &mut TarReader<'_>) -> Result<(), Problem> {
        let footer = self.index.footer();
        let more = |what: &str| {
            Problem::Damaged(format!("is the last entry of the index, and the tarball {what}"))
        };
        if let Some(selection) = self.selection {
            if footer != selection.footer {
                return Err(Problem::Damaged(
                    "is the last entry of an index that changed while it was used".to_owned(),
                ));
            }
            return end_of_parts(reader);
        }
        reader.set_limit(footer.stream_bytes);
        if reader.next().map_err(Problem::damaged)?.is_some() {
            return Err(more("goes on"));
        }
        reader.drain().map_err(Problem::damaged)?;
        if reader.position() == footer.stream_bytes {
            return Ok(());
        }
        Err(more(&format!("has {} bytes, not {}", reader.position(), footer.stream_bytes)))
    }
}

/// Reads the headers of an entry, which begins where the reader stands or, in parts of a stream,
/// with the next part.
pub(crate) fn only(entry: &Entry, reader: &mut TarReader<'_>) -> Result<TarEntry, Problem> {
    reader.go_to(entry.offset).map_err(Problem::damaged)?;
    reader.set_limit(end_of(entry).unwrap_or_default());
    let incoming = reader.next().map_err(Problem::damaged)?;
    let incoming = incoming.ok_or_else(|| {
        Problem::Damaged("is in the index, and the tarball ends before it".to_owned())
    })?;
    compare(&incoming, entry)?;
    Ok(incoming)
}

/// Reads the end of parts of a stream, which have no end mark.
pub(crate) fn end_of_parts(reader: &mut TarReader<'_>) -> Result<(), Problem> {
    reader.skip().map_err(Problem::damaged)?;
    reader.set_limit(reader.position());
    reader.drain().map_err(Problem::damaged)
}
