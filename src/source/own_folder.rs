//! Folders that the program writes to.

use std::path::{Path, PathBuf};

/// A folder that the program itself writes to: a storage, `state_dir`, `work_dir`. A source that it
/// lies in would grow by its own backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFolder {
    /// What it is, after "It is": "the storage `disk`".
    pub what: String,
    pub path: PathBuf,
}

impl OwnFolder {
    /// Whether `path`, or the nearest folder to it that is there, lies in this one or is it.
    pub fn holds(&self, path: &Path) -> bool {
        let real = |path: &Path| path.ancestors().find_map(|path| std::fs::canonicalize(path).ok());
        real(path).zip(real(&self.path)).is_some_and(|(path, own)| path.starts_with(own))
    }
}
