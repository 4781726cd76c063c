//! Files that have several names.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};

use crate::archive::Time;
use crate::source::directory::meta::{Identity, Meta};

/// Bytes of names of files with several links that are remembered. A tree with more keeps every
/// content, but those beyond it are files of their own.
const LIMIT: usize = 8 << 20;
/// What a remembered name costs beside its bytes.
const COST: usize = 112;

/// A file of which a name was stored.
struct Linked {
    path: Vec<u8>,
    size: u64,
    mtime: Time,
    /// Accounts of it that may still come.
    left: u32,
}

/// What is known of files with several names: those of which one was stored, and those that are
/// being read.
#[derive(Default)]
pub(super) struct Links {
    stored: HashMap<Identity, Linked>,
    ahead: HashSet<Identity>,
    held: usize,
}

impl Links {
    /// Whether another name of the file was stored or will be before this one; if not, this one
    /// will be.
    pub(super) fn comes_before(&mut self, meta: &Meta) -> bool {
        meta.links > 1
            && (self.stored.contains_key(&meta.identity) || !self.ahead.insert(meta.identity))
    }

    /// The file that was read ahead, as it was when it was asked for, is not any more.
    pub(super) fn written(&mut self, meta: &Meta) {
        if meta.links > 1 {
            self.ahead.remove(&meta.identity);
        }
    }

    /// The name under which the file was stored. None if it was not, or was written since, or is
    /// another file with the number of one that was deleted.
    pub(super) fn target(&mut self, meta: &Meta) -> Option<Vec<u8>> {
        if meta.links < 2 {
            return None;
        }
        let Slot::Occupied(mut slot) = self.stored.entry(meta.identity) else { return None };
        let linked = slot.get_mut();
        if (linked.size, linked.mtime) != (meta.size, meta.mtime) {
            return None;
        }
        linked.left = linked.left.saturating_sub(1);
        if linked.left > 0 {
            return Some(linked.path.clone());
        }
        let path = slot.remove().path;
        self.held -= path.len() + COST;
        Some(path)
    }

    /// Keeps in mind that a name of the file was stored. False when there are too many.
    pub(super) fn remember(&mut self, path: &[u8], meta: &Meta) -> bool {
        if meta.links < 2 {
            return true;
        }
        let cost = path.len() + COST;
        if self.held + cost > LIMIT {
            return false;
        }
        let linked = Linked {
            path: path.to_vec(),
            size: meta.size,
            mtime: meta.mtime,
            left: meta.links - 1,
        };
        if let Some(before) = self.stored.insert(meta.identity, linked) {
            self.held -= before.path.len() + COST;
        }
        self.held += cost;
        true
    }
}
