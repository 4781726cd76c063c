//! Warnings of a dump or a restore, by path.

use crate::archive::lossy;
use crate::model::{Warning, Warnings};

#[derive(Default)]
pub(super) struct Notes(pub(super) Warnings);

impl Notes {
    /// The snapshot is whole all the same.
    pub(super) fn note(&mut self, path: &[u8], reason: impl Into<String>) {
        self.push(path, reason.into(), false);
    }

    /// Content is missing because of it.
    pub(super) fn missing(&mut self, path: &[u8], reason: impl Into<String>) {
        self.push(path, reason.into(), true);
    }

    /// It was listed, and is there no more.
    pub(super) fn vanished(&mut self, path: &[u8]) {
        self.note(path, "It vanished before it was read");
    }

    fn push(&mut self, path: &[u8], reason: String, missing: bool) {
        self.0.push(Warning { source: None, path: Some(lossy(path)), reason, missing });
    }
}
