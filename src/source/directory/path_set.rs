//! The entries of an index that patterns choose.

use super::filter::{Choice, Filter, Pattern};
use super::index::Entry;
use super::{Kind, PatternError};

/// Entries that one of some patterns matches, or that lie in a folder that one matches.
pub struct PathSet {
    filter: Filter,
}

impl PathSet {
    /// Those that `patterns` match; everything without any.
    ///
    /// # Errors
    /// When the patterns are too many or too large to be used together.
    pub fn new(patterns: &[Pattern]) -> Result<Self, PatternError> {
        Ok(Self { filter: Filter::new(patterns, &[]).map_err(|error| PatternError::together(&error))? })
    }

    /// Whether the entry is one of them.
    pub fn has(&self, entry: &Entry) -> bool {
        let path = entry.path.as_slice();
        let taken = |path: &[u8], folder| self.filter.choose(path, folder, false) == Choice::Take;
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut folders = slashes.filter_map(|(at, _)| path.get(..at));
        folders.any(|folder| taken(folder, true)) || taken(path, entry.kind == Kind::Directory)
    }
}
