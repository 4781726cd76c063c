//! Which entries of a tarball are wanted, and the parts of the stream that have them.

use std::collections::HashMap;
use std::ops::Range;

use super::entry::{Kind, lossy};
use super::filter::{Choice, Filter, Pattern};
use super::guide::{Lines, end_of};
use super::index::{Entry, Footer};
use super::trouble::{Failure, Trouble};
use crate::model::Cancel;
use crate::source::{SourceError, Streams};

/// The most ranges that are kept; beyond it those with the smallest gaps between them are joined, and what lies in the gaps is read over.
const RANGES_LIMIT: usize = 1_000_000;
/// The most hard links to what was not chosen, and the bytes of their paths.
const BORROWED_LIMIT: usize = 100_000;
const BORROWED_BYTES: usize = 32 << 20;

/// What was chosen of a tarball.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Where it is in the stream: ascending, apart from one another. May cover more than what was chosen.
    pub(super) ranges: Vec<Range<u64>>,
    /// A bit for each entry of the index.
    chosen: Vec<u64>,
    /// Files that were not chosen but have a chosen name: the path of each, and the first of those names. The content comes under that name.
    pub(super) borrowed: HashMap<Vec<u8>, Vec<u8>>,
    /// How many entries were chosen.
    pub(super) entries: u64,
    /// Bytes of the files among them.
    pub(super) bytes: u64,
    pub(super) footer: Footer,
    gap: u64,
}

impl Selection {
    /// Whether the entry of the index, counted from 0, was chosen.
    pub(super) fn has(&self, ordinal: u64) -> bool {
        let word = usize::try_from(ordinal / 64).ok().and_then(|word| self.chosen.get(word));
        word.is_some_and(|word| word >> (ordinal % 64) & 1 == 1)
    }

    fn choose(&mut self, ordinal: u64, range: Range<u64>) {
        let word = usize::try_from(ordinal / 64).unwrap_or(usize::MAX);
        if word >= self.chosen.len() {
            self.chosen.resize(word.saturating_add(1), 0);
        }
        if let Some(word) = self.chosen.get_mut(word) {
            *word |= 1 << (ordinal % 64);
        }
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > RANGES_LIMIT {
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
pub(super) enum Wanted {
    /// What one of the patterns matches, and all beneath.
    Patterns(Patterns),
    /// The entry at this path, and all beneath; `.` is everything.
    At(Vec<u8>),
}

/// Patterns of paths, each with whether it matched anything.
pub(super) struct Patterns {
    filters: Vec<(Filter, bool)>,
    texts: Vec<String>,
    /// The folder that was asked for last, and whether it is matched or lies in one that is.
    folder: Vec<u8>,
    within: bool,
}

impl Patterns {
    pub(super) fn new(patterns: &[Pattern]) -> Result<Self, SourceError> {
        let filter = |pattern: &Pattern| {
            Filter::new(std::slice::from_ref(pattern), &[])
                .map(|filter| (filter, false))
                .map_err(|error| SourceError::Unsuitable(format!("The pattern `{pattern}` cannot be used: {error}")))
        };
        Ok(Self {
            filters: patterns.iter().map(filter).collect::<Result<_, _>>()?,
            texts: patterns.iter().map(ToString::to_string).collect(),
            folder: Vec::new(),
            within: false,
        })
    }

    /// Whether the entry is matched itself.
    fn matches(&self, path: &[u8], folder: bool) -> bool {
        self.filters.iter().any(|(filter, _)| filter.choose(path, folder, false) == Choice::Take)
    }

    /// Whether the entry lies in a folder that is matched.
    pub(super) fn lies_within(&mut self, path: &[u8]) -> bool {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return false };
        let Some(folder) = path.get(..slash) else { return false };
        if self.folder != folder {
            let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
            self.within = ends.filter_map(|end| path.get(..end)).any(|folder| self.matches(folder, true));
            self.folder = folder.to_vec();
        }
        self.within
    }

    /// Whether the entry is matched, or lies in a folder that is.
    pub(super) fn want(&mut self, path: &[u8], folder: bool) -> bool {
        if path == b"." {
            return false;
        }
        self.lies_within(path) || self.matches(path, folder)
    }

    fn note_hits(&mut self, path: &[u8], folder: bool) {
        for (filter, hit) in self.filters.iter_mut().filter(|(_, hit)| !hit) {
            *hit = path != b"." && filter.choose(path, folder, false) == Choice::Take;
        }
    }

    /// The first pattern that matched nothing.
    fn missed(&self) -> Option<&str> {
        let mut all = self.filters.iter().zip(&self.texts);
        all.find(|((_, hit), _)| !hit).map(|(_, text)| text.as_str())
    }
}

impl Wanted {
    fn want(&mut self, path: &[u8], folder: bool) -> bool {
        match self {
            Self::Patterns(patterns) => patterns.want(path, folder),
            Self::At(at) => {
                at == b"."
                    || path.strip_prefix(at.as_slice()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
            }
        }
    }
}

fn range(entry: &Entry) -> Range<u64> {
    entry.offset..end_of(entry).unwrap_or(entry.offset)
}

/// Whether `path` lies in the folder at `folder`.
pub(super) fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    folder == b"." && path != b"." || path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Reads the index, to its end, for what is wanted. With patterns the folders that lead there are chosen too.
pub(super) fn select(streams: &dyn Streams, mut wanted: Wanted, cancel: &Cancel) -> Result<Selection, Failure> {
    let mut selection = Selection::default();
    let mut lines = Lines::open(streams)?.ok_or_else(no_index)?;
    let leading = matches!(wanted, Wanted::Patterns(_));
    // Folders of which it is not known yet whether something in them is wanted.
    let mut pending: Vec<(u64, Range<u64>, Vec<u8>)> = Vec::new();
    let mut borrowed_bytes = 0;
    let mut ordinal = 0;
    while let Some(entry) = lines.next()? {
        if cancel.is_cancelled() {
            return Err(Trouble::Cancelled.at(&entry.path));
        }
        let folder = entry.kind == Kind::Directory;
        if let Wanted::Patterns(patterns) = &mut wanted {
            patterns.note_hits(&entry.path, folder);
        }
        if wanted.want(&entry.path, folder) {
            for (ordinal, range, path) in std::mem::take(&mut pending) {
                if lies_in(&entry.path, &path) {
                    selection.choose(ordinal, range);
                    selection.entries += 1;
                }
            }
            selection.choose(ordinal, range(&entry));
            selection.entries += 1;
            selection.bytes = selection.bytes.saturating_add(entry.size);
            if let Some(target) = entry.target.filter(|_| entry.kind == Kind::Hardlink)
                && !wanted.want(&target, false)
                && !selection.borrowed.contains_key(&target)
            {
                borrowed_bytes += target.len() + entry.path.len();
                if selection.borrowed.len() >= BORROWED_LIMIT || borrowed_bytes > BORROWED_BYTES {
                    return Err(Trouble::Other(SourceError::Unsuitable(
                        "What was asked for has too many hard links to files outside of it: restore a folder that has both".to_owned(),
                    ))
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
    selection.footer = lines.footer();
    if let Wanted::Patterns(patterns) = &wanted
        && let Some(pattern) = patterns.missed()
    {
        return Err(Trouble::Other(SourceError::Unsuitable(format!(
            "Nothing in the snapshot matches `{pattern}`, so nothing was restored. Correct the pattern; a path is counted from the \
             folder that was backed up"
        )))
        .at(b""));
    }
    borrow(streams, &mut selection, cancel)?;
    selection.join();
    Ok(selection)
}

/// Chooses the files that only their other names are chosen of.
fn borrow(streams: &dyn Streams, selection: &mut Selection, cancel: &Cancel) -> Result<(), Failure> {
    if selection.borrowed.is_empty() {
        return Ok(());
    }
    let mut lines = Lines::open(streams)?.ok_or_else(no_index)?;
    let mut found = 0;
    let mut ordinal = 0;
    while let Some(entry) = lines.next()? {
        if cancel.is_cancelled() {
            return Err(Trouble::Cancelled.at(&entry.path));
        }
        if selection.borrowed.contains_key(&entry.path) && !selection.has(ordinal) {
            if matches!(entry.kind, Kind::Hardlink | Kind::Directory) {
                return Err(Trouble::Damaged(
                    "is named by a hard link in the index, and is not what it could name".to_owned(),
                )
                .at(&entry.path));
            }
            found += 1;
            selection.choose(ordinal, range(&entry));
            selection.bytes = selection.bytes.saturating_add(entry.size);
        }
        ordinal += 1;
    }
    if found == selection.borrowed.len() {
        return Ok(());
    }
    let some = selection.borrowed.keys().next().map(|path| lossy(path)).unwrap_or_default();
    Err(Trouble::Damaged(format!(
        "is the only index, and a hard link names what it does not have or has twice, such as `{some}`"
    ))
    .at(b""))
}

/// What needs the index cannot be done without.
pub(super) fn no_index() -> Failure {
    Trouble::Other(SourceError::Unsuitable(
        "The snapshot has no index of these files, so only all of them can be restored, and nothing be removed"
            .to_owned(),
    ))
    .at(b"")
}
