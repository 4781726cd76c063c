//! Which entries of a tarball are wanted, and the parts of the stream that have them.

use std::collections::HashMap;
use std::ops::Range;

use super::Streams;
use super::checked_index::{CheckedIndex, end_of};
use super::entry::{Kind, lossy};
use super::error::{ArchiveError, Problem};
use super::index::{Entry, Footer};
use super::path_set::PathSet;
use crate::model::Cancel;

/// How much is kept of what was chosen, so that memory stays small.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Ranges; beyond it those with the smallest gaps between them are joined, and what lies in the
    /// gaps is read over.
    pub(crate) ranges: usize,
    /// Hard links to what was not chosen, and the bytes of their paths.
    pub(crate) borrowed: usize,
    pub(crate) borrowed_bytes: usize,
}

pub(crate) const LIMITS: Limits =
    Limits { ranges: 1_000_000, borrowed: 100_000, borrowed_bytes: 32 << 20 };

/// A bit for each entry of an index.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, ordinal: u64) -> bool {
        let word = usize::try_from(ordinal / 64).ok().and_then(|word| self.0.get(word));
        word.is_some_and(|word| word >> (ordinal % 64) & 1 == 1)
    }

    fn set(&mut self, ordinal: u64) {
        let word = usize::try_from(ordinal / 64).unwrap_or(usize::MAX);
        if word >= self.0.len() {
            self.0.resize(word.saturating_add(1), 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (ordinal % 64);
        }
    }
}

/// What was chosen of a tarball.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Where it is in the stream: ascending, apart from one another. May cover more than what was
    /// chosen.
    pub(crate) ranges: Vec<Range<u64>>,
    chosen: Bits,
    /// Folders that were chosen only because they lead to something.
    leading: Bits,
    /// Files that were not chosen but have a chosen name: the path of each, and the first of those
    /// names. The content comes under that name.
    pub(crate) borrowed: HashMap<Vec<u8>, Vec<u8>>,
    /// How many entries were chosen.
    pub(crate) entries: u64,
    /// Bytes of the files among them.
    pub(crate) bytes: u64,
    pub(crate) footer: Footer,
    gap: u64,
}

impl Selection {
    /// Whether the entry of the index, counted from 0, was chosen.
    pub(crate) fn has(&self, ordinal: u64) -> bool {
        self.chosen.has(ordinal)
    }

    /// Whether it was chosen only because it leads to something that is wanted.
    pub(crate) fn leads(&self, ordinal: u64) -> bool {
        self.leading.has(ordinal)
    }

    fn choose(&mut self, ordinal: u64, range: Range<u64>, limits: Limits) {
        self.chosen.set(ordinal);
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > limits.ranges {
            self.gap = (self.gap * 2).max(4 << 10);
            self.join();
        }
    }

    /// Joins ranges that lie close together.
    fn join(&mut self) {
        self.ranges.sort_unstable_by_key(|range| range.start);
        let gap = self.gap;
        self.ranges.dedup_by(|next, last| {
            let close = next.start.saturating_sub(last.end) <= gap;
            if close {
                last.end = last.end.max(next.end);
            }
            close
        });
    }
}

/// What is wanted.
pub(crate) enum Wanted {
    /// What one of the patterns matches, and all beneath.
    Patterns(PathSet),
    /// The entry at this path, and all beneath; `.` is everything.
    At(Vec<u8>),
}

impl Wanted {
    fn want(&mut self, path: &[u8], folder: bool) -> bool {
        match self {
            Self::Patterns(patterns) => patterns.wants(path, folder),
            Self::At(at) => {
                at == b"."
                    || path
                        .strip_prefix(at.as_slice())
                        .is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
            }
        }
    }
}

fn range(entry: &Entry) -> Range<u64> {
    entry.offset..end_of(entry).unwrap_or(entry.offset)
}

/// Whether `path` lies in the folder at `folder`.
pub(crate) fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    folder == b"." && path != b"."
        || path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Reads the index, to its end, for what is wanted. With patterns the folders that lead there are
/// chosen too.
pub(crate) fn select(
    streams: &dyn Streams,
    wanted: Wanted,
    cancel: &Cancel,
) -> Result<Selection, ArchiveError> {
    select_within(LIMITS, streams, wanted, cancel)
}

/// [`select`], with other limits.
pub(crate) fn select_within(
    limits: Limits,
    streams: &dyn Streams,
    mut wanted: Wanted,
    cancel: &Cancel,
) -> Result<Selection, ArchiveError> {
    let mut selection = Selection::default();
    let mut index = CheckedIndex::open(streams)?.ok_or_else(no_index)?;
    let leading = matches!(wanted, Wanted::Patterns(_));
    // Folders of which it is not known yet whether something in them is wanted.
    let mut pending: Vec<(u64, Range<u64>, Vec<u8>)> = Vec::new();
    let mut borrowed_bytes = 0;
    let mut ordinal = 0;
    while let Some(entry) = index.next()? {
        if cancel.is_cancelled() {
            return Err(Problem::Cancelled.at(&entry.path));
        }
        let folder = entry.kind == Kind::Directory;
        if let Wanted::Patterns(patterns) = &mut wanted {
            patterns.note_hits(&entry.path, folder);
        }
        if wanted.want(&entry.path, folder) {
            for (ordinal, range, path) in std::mem::take(&mut pending) {
                if lies_in(&entry.path, &path) {
                    selection.choose(ordinal, range, limits);
                    selection.leading.set(ordinal);
                    selection.entries += 1;
                }
            }
            selection.choose(ordinal, range(&entry), limits);
            selection.entries += 1;
            selection.bytes = selection.bytes.saturating_add(entry.size);
            if let Some(target) = entry.target.filter(|_| entry.kind == Kind::Hardlink)
                && !wanted.want(&target, false)
                && !selection.borrowed.contains_key(&target)
            {
                borrowed_bytes += target.len() + entry.path.len();
                if selection.borrowed.len() >= limits.borrowed
                    || borrowed_bytes > limits.borrowed_bytes
                {
                    return Err(Problem::Unsuitable(
                        "What was asked for has too many hard links to files outside of it: \
                         restore a folder that has both"
                            .to_owned(),
                    )
                    .at(&entry.path));
                }
                selection.borrowed.insert(target, entry.path);
            }
        } else if folder && leading {
            pending.retain(|(_, _, path)| lies_in(&entry.path, path));
            pending.push((ordinal, range(&entry), entry.path));
        }
        ordinal += 1;
    }
    selection.footer = index.footer();
    if let Wanted::Patterns(patterns) = &wanted
        && let Some(pattern) = patterns.missed()
    {
        return Err(Problem::Unsuitable(format!(
            "Nothing in the snapshot matches `{pattern}`, so nothing was restored. Correct the \
             pattern; a path is counted from the \
             folder that was backed up"
        ))
        .at(b""));
    }
    borrow(limits, streams, &mut selection, cancel)?;
    selection.join();
    Ok(selection)
}

/// Chooses the files that only their other names are chosen of.
fn borrow(
    limits: Limits,
    streams: &dyn Streams,
    selection: &mut Selection,
    cancel: &Cancel,
) -> Result<(), ArchiveError> {
    if selection.borrowed.is_empty() {
        return Ok(());
    }
    let mut index = CheckedIndex::open(streams)?.ok_or_else(no_index)?;
    let mut found = 0;
    let mut ordinal = 0;
    while let Some(entry) = index.next()? {
        if cancel.is_cancelled() {
            return Err(Problem::Cancelled.at(&entry.path));
        }
        if selection.borrowed.contains_key(&entry.path) && !selection.has(ordinal) {
            if matches!(entry.kind, Kind::Hardlink | Kind::Directory) {
                return Err(Problem::Damaged(
                    "is named by a hard link in the index, and is not what it could name"
                        .to_owned(),
                )
                .at(&entry.path));
            }
            found += 1;
            selection.choose(ordinal, range(&entry), limits);
            selection.bytes = selection.bytes.saturating_add(entry.size);
        }
        ordinal += 1;
    }
    if found == selection.borrowed.len() {
        return Ok(());
    }
    let some = selection.borrowed.keys().next().map(|path| lossy(path)).unwrap_or_default();
    Err(Problem::Damaged(format!(
        "is the only index, and a hard link names what it does not have or has twice, such as \
         `{some}`"
    ))
    .at(b""))
}

/// What needs the index cannot be done without.
pub(crate) fn no_index() -> ArchiveError {
    Problem::Unsuitable(
        "The snapshot has no index of these files, so only all of them can be restored, and \
         nothing be removed"
            .to_owned(),
    )
    .at(b"")
}

#[cfg(test)]
mod tests {
    use super::lies_in;

    #[test]
    fn a_folder_holds_what_has_its_name_before_a_slash() {
        assert!(lies_in(b"a/b", b"a") && lies_in(b"a/b/c", b"a"));
        assert!(!lies_in(b"ab/c", b"a") && !lies_in(b"a", b"a"));
    }
}
