//! The entries that a restore writes, one after the other: those of a tarball alone, or those that
//! an index leads to.

use super::entry::Kind;
use super::guide::Guide;
use super::proof::Proof;
use super::reader::{Incoming, Reader};
use super::trouble::{Failure, Trouble};

/// Where the entries come from.
pub(super) struct Feed<'a> {
    pub(super) reader: Reader<'a>,
    /// None: nothing is known of the tarball but itself.
    pub(super) guide: Option<Guide<'a>>,
}

/// An entry to be restored, and its content.
pub(super) struct Arrival {
    pub(super) incoming: Incoming,
    pub(super) proof: Option<Proof>,
    /// It is restored under another of its names, before the folders that lead there.
    pub(super) early: bool,
    /// It is a folder that only leads to what was asked for.
    pub(super) leads: bool,
}

impl Feed<'_> {
    /// The next entry that is to be restored; none after the last.
    pub(super) fn next(&mut self, path: &mut Vec<u8>) -> Result<Option<Arrival>, Failure> {
        let Some(guide) = &mut self.guide else {
            let Some(incoming) =
                self.reader.next().map_err(|error| Trouble::from(error).at(path))?
            else {
                self.reader.drain().map_err(|error| Trouble::from(error).at(path))?;
                return Ok(None);
            };
            path.clone_from(&incoming.path);
            return Ok(Some(Arrival { incoming, proof: None, early: false, leads: false }));
        };
        while let Some(step) = guide.step(&mut self.reader)? {
            path.clone_from(&step.entry.path);
            if !step.chosen {
                continue;
            }
            let mut incoming = step.incoming;
            let mut early = false;
            if let Some(selection) = guide.selection {
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
            return Ok(Some(Arrival {
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
