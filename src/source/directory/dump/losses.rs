//! What a dump could not take.

use crate::archive::missing::MissingWriter;
use crate::model::{ArtifactKind, Remarks};
use crate::source::directory::at;
use crate::source::directory::scope::Listener;
use crate::source::{ArtifactSpec, Output, Outputs, SourceError};

/// What was said of entries, and the list of those that could not be read.
pub(super) struct Losses<'a> {
    outputs: &'a dyn Outputs,
    /// Made when the first entry is missing.
    list: Option<MissingWriter<Output>>,
    /// Why no more could be written to it.
    failed: Option<std::io::Error>,
    pub(super) remarks: Remarks,
}

impl<'a> Losses<'a> {
    pub(super) fn new(outputs: &'a dyn Outputs) -> Self {
        Self { outputs, list: None, failed: None, remarks: Remarks::default() }
    }

    /// The list, if there is one, to its end.
    pub(super) fn finish(self) -> Result<(Option<Output>, Remarks), SourceError> {
        let list = match self.failed {
            Some(error) => Err(error),
            None => self.list.map(MissingWriter::finish).transpose(),
        };
        Ok((list.map_err(SourceError::Stream)?, self.remarks))
    }

    fn list(&mut self, path: &[u8], reason: &str) -> std::io::Result<()> {
        let list = match &mut self.list {
            Some(list) => list,
            none => none.insert(MissingWriter::new(self.outputs.create(ArtifactSpec {
                extension: "missing",
                number: ArtifactSpec::FIRST,
                kind: ArtifactKind::Missing,
                bulk: false,
                blocks: false,
            })?)?),
        };
        list.entry(path, reason)
    }
}

impl Listener for Losses<'_> {
    fn missing(&mut self, path: &[u8], reason: &str) {
        Listener::missing(&mut self.remarks, path, reason);
        if self.failed.is_none() {
            self.failed = self.list(path, reason).err();
        }
    }

    fn warn(&mut self, path: &[u8], reason: &str) {
        self.remarks.warn(at(path, reason));
    }

    fn note(&mut self, path: &[u8], reason: &str) {
        self.remarks.note(at(path, reason));
    }
}
