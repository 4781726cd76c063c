//! The entries that a restore writes, one after the other: those of a tarball alone, or those that
//! an index leads to.

use super::cursor::IndexCursor;
use super::entry::Kind;
use super::error::{ArchiveError, Problem};
use super::proof::Proof;
use super::reader::{TarEntry, TarReader};

/// Where the entries come from.
pub(crate) struct EntryStream<'a> {
    pub(crate) reader: TarReader<'a>,
    /// None: nothing is known of the tarball but itself.
    pub(crate) cursor: Option<IndexCursor<'a>>,
}

/// An entry to be restored, and its content.
pub(crate) struct NextEntry {
    pub(crate) incoming: TarEntry,
    pub(crate) proof: Option<Proof>,
    /// It is restored under another of its names, before the folders that lead there.
    pub(crate) early: bool,
    /// It is a folder that only leads to what was asked for.
    pub(crate) leads: bool,
}

impl EntryStream<'_> {
    /// The next entry that is to be restored; none after the last.
    pub(crate) fn next(&mut self, path: &mut Vec<u8>) -> Result<Option<NextEntry>, ArchiveError> {
        let Some(cursor) = &mut self.cursor else {
            let Some(incoming) =
                self.reader.next().map_err(|error| Problem::from(error).at(path))?
            else {
                self.reader.drain().map_err(|error| Problem::from(error).at(path))?;
                return Ok(None);
            };
            path.clone_from(&incoming.path);
            return Ok(Some(NextEntry { incoming, proof: None, early: false, leads: false }));
        };
        while let Some(step) = cursor.step(&mut self.reader)? {
            path.clone_from(&step.entry.path);
            if !step.chosen {
                continue;
            }
            let mut incoming = step.incoming;
            let mut early = false;
            if let Some(selection) = cursor.selection {
                if step.entry.kind == Kind::Hardlink {
                    match step
                        .entry
                        .target
                        .as_ref()
                        .and_then(|target| selection.borrowed.get(target))
                    {
                        Some(name) if *name == step.entry.path => continue,
                        Some(name) => incoming.target.clone_from(name),
                        None => {}
                    }
                } else if let Some(name) = selection.borrowed.get(&step.entry.path) {
                    incoming.path.clone_from(name);
                    early = true;
                }
            }
            return Ok(Some(NextEntry {
                incoming,
                proof: Proof::of(&step.entry),
                early,
                leads: step.leads,
            }));
        }
        path.clear();
        Ok(None)
    }
}
