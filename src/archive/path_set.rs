//! The entries of an index that patterns choose.

use super::entry::Kind;
use super::error::{ArchiveError, Problem};
use super::index::Entry;
use super::patterns::{Choice, Filter, Pattern, PatternError};

/// Entries that one of some patterns matches, or that lie in a folder that one matches.
pub struct PathSet {
    /// Each with whether it matched anything, and how it was written.
    filters: Vec<(Filter, bool, String)>,
    /// The folder that was asked for last, and whether it is matched or lies in one that is.
    folder: Vec<u8>,
    within: bool,
}

impl PathSet {
    /// Those that `patterns` match; everything without any.
    ///
    /// # Errors
    /// When a pattern is too large to be used.
    pub fn new(patterns: &[Pattern]) -> Result<Self, PatternError> {
        let filter = |pattern: &Pattern| {
            let filter = Filter::new(std::slice::from_ref(pattern), &[]);
            let filter = filter.map_err(|error| PatternError::unusable(pattern, &error))?;
            Ok((filter, false, pattern.to_string()))
        };
        let filters = patterns.iter().map(filter).collect::<Result<_, _>>()?;
        Ok(Self { filters, folder: Vec::new(), within: false })
    }

    /// Those that `patterns` match; none when there are no patterns, and so everything is chosen.
    pub(crate) fn chosen(patterns: &[Pattern]) -> Result<Option<Self>, ArchiveError> {
        let set = (!patterns.is_empty()).then(|| Self::new(patterns)).transpose();
        set.map_err(|error| Problem::Unsuitable(format!("{error}. Use a smaller one")).at(b""))
    }

    /// Whether the entry is one of them.
    pub fn has(&mut self, entry: &Entry) -> bool {
        let folder = entry.kind == Kind::Directory;
        self.filters.is_empty()
            || self.lies_within(&entry.path)
            || self.matches(&entry.path, folder)
    }

    /// Whether what is at the path, a folder or not, is to be restored. The root is not, whatever
    /// matches it: it only leads to the others.
    pub(crate) fn wants(&mut self, path: &[u8], folder: bool) -> bool {
        path != b"." && (self.lies_within(path) || self.matches(path, folder))
    }

    fn matches(&self, path: &[u8], folder: bool) -> bool {
        self.filters.iter().any(|(filter, _, _)| filter.choose(path, folder, false) == Choice::Take)
    }

    /// Whether the entry lies in a folder that is matched.
    pub(crate) fn lies_within(&mut self, path: &[u8]) -> bool {
        let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return false };
        let Some(folder) = path.get(..slash) else { return false };
        if self.folder != folder {
            let ends =
                path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
            self.within =
                ends.filter_map(|end| path.get(..end)).any(|folder| self.matches(folder, true));
            self.folder = folder.to_vec();
        }
        self.within
    }

    /// Remembers which patterns match the entry.
    pub(crate) fn note_hits(&mut self, path: &[u8], folder: bool) {
        for (filter, hit, _) in self.filters.iter_mut().filter(|(_, hit, _)| !hit) {
            *hit = path != b"." && filter.choose(path, folder, false) == Choice::Take;
        }
    }

    /// The first pattern that matched nothing of what was noted.
    pub(crate) fn missed(&self) -> Option<&str> {
        self.filters.iter().find(|(_, hit, _)| !hit).map(|(_, _, text)| text.as_str())
    }
}
