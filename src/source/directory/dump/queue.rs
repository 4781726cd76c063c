//! The entries that the walk is ahead of what is written.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::ahead::{FILE_AHEAD, Reading};
use crate::archive::header::Attribute;
use crate::source::directory::meta::Meta;

/// How many entries the walk is ahead of what is written.
const AHEAD_ENTRIES: usize = 64;
/// Bytes that are held of them: of what is read, of names, of attributes.
const AHEAD_BYTES: u64 = 2 << 20;

/// An entry that the walk came to and that is not written yet.
pub(super) struct Waiting {
    pub(super) path: Vec<u8>,
    pub(super) name: CString,
    pub(super) meta: Meta,
    pub(super) within: bool,
    pub(super) retries: u32,
    /// Bytes that are held of it.
    pub(super) cost: u64,
    pub(super) what: What,
}

pub(super) enum What {
    Folder {
        attributes: Vec<Attribute>,
        left_out: bool,
    },
    /// A file in that folder, which is being read.
    Read(Arc<OwnedFd>, Reading),
    /// Looked at and read when its turn comes: what is no file, and what may be a further name of
    /// an entry that comes before it.
    Look(Arc<OwnedFd>),
}

/// The entries that the walk is ahead, in its order.
#[derive(Default)]
pub(super) struct Queue {
    entries: VecDeque<Waiting>,
    held: u64,
}

impl Queue {
    pub(super) fn has_room(&self) -> bool {
        self.entries.is_empty()
            || self.entries.len() < AHEAD_ENTRIES && self.held + FILE_AHEAD <= AHEAD_BYTES
    }

    pub(super) fn push(&mut self, mut waiting: Waiting) {
        waiting.cost = waiting.path.len() as u64
            + match &waiting.what {
                What::Folder { attributes, .. } => {
                    attributes.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
                }
                What::Read(..) => waiting.meta.size.min(FILE_AHEAD),
                What::Look(_) => 0,
            };
        self.held += waiting.cost;
        self.entries.push_back(waiting);
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.entries.pop_front()?;
        self.held -= waiting.cost;
        Some(waiting)
    }
}
