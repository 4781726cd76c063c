//! What a restore would do, before it does.

use serde::Serialize;

/// What a restore would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Entries that the target has not.
    pub creates: u64,
    /// Entries that the target has under that name, and which are replaced whether or not they
    /// differ.
    pub replaces: u64,
    /// Entries of the target that are removed.
    pub deletes: u64,
    /// Entries of the target that are not removed, although the snapshot does not have them: it
    /// could not have them. What lies beneath one is not counted.
    pub keeps: u64,
    /// Bytes of files that are written.
    pub bytes: u64,
    /// The first changes: deletions, then what is kept, replacements and new entries.
    pub changes: Vec<Change>,
}

/// What a restore would do to one entry of its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Relative to the target; bytes that are not UTF-8 replaced.
    pub path: String,
    /// What is done to it.
    pub action: Action,
}

/// What is done to an entry of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is not there.
    Create,
    /// Something is there under its name.
    Replace,
    /// The snapshot does not have it.
    Delete,
    /// The snapshot could not have it.
    Keep,
}
