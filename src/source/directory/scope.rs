//! How far a walk goes, and who hears of what it leaves out.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::at;
use super::meta::{Identity, Meta};
use crate::archive::patterns::Filter;
use crate::model::Remarks;
use crate::source::OwnFolder;

/// Which folders are not entered, but found empty. Only folders are asked: an overlay of layers on
/// two file systems gives a file another device than its folder, and a single file that is mounted
/// into a tree belongs to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Boundary {
    /// None.
    Open,
    /// Those of another file system than the root, as GNU tar has it: mounts, and subvolumes of
    /// btrfs.
    FileSystem,
    /// Those, and those that are mounted from the same file system.
    Mount,
}

/// Those of `folders` that can be found now, with what identifies them.
pub(super) fn identified(folders: &[OwnFolder]) -> Vec<(Identity, OwnFolder)> {
    let identity = |folder: &OwnFolder| Some((meta_of(&folder.path)?.identity, folder.clone()));
    folders.iter().filter_map(identity).collect()
}

/// The one of the program's own folders that `meta` is of.
pub(super) fn own_folder<'a>(
    folders: &'a [(Identity, OwnFolder)],
    meta: &Meta,
) -> Option<&'a OwnFolder> {
    folders.iter().find(|(identity, _)| *identity == meta.identity).map(|(_, folder)| folder)
}

/// The one that `path` is, or lies in.
pub(super) fn own_folder_around(
    folders: &[(Identity, OwnFolder)],
    path: &Path,
) -> Option<OwnFolder> {
    let of = |path: &Path| own_folder(folders, &meta_of(path)?).cloned();
    path.ancestors().find_map(of)
}

/// Of a folder, which a link may lead to.
fn meta_of(path: &Path) -> Option<Meta> {
    let flags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    Meta::of(openat(CWD, path, flags, Mode::empty()).ok()?.as_fd()).ok()
}

impl Boundary {
    pub(super) fn excludes(self, folder: &Meta, root: &Meta) -> bool {
        match self {
            Self::Open => false,
            Self::FileSystem => folder.device() != root.device(),
            Self::Mount => folder.mounted || folder.device() != root.device(),
        }
    }
}

/// What of a tree is walked.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) filter: &'a Filter,
    pub(super) boundary: Boundary,
    /// Folders that the program writes to itself, which are not entered.
    pub(super) own: &'a [(Identity, OwnFolder)],
    /// Of folders that are marked as caches the mark only.
    pub(super) exclude_caches: bool,
}

/// Hears what the walk says of entries.
pub(super) trait Listener {
    /// An entry could not be taken, nor anything beneath it.
    fn missing(&mut self, path: &[u8], reason: &str);
    fn warn(&mut self, path: &[u8], reason: &str);
    fn note(&mut self, path: &[u8], reason: &str);
}

impl Listener for Remarks {
    fn missing(&mut self, path: &[u8], reason: &str) {
        Remarks::missing(self, at(path, reason));
    }

    fn warn(&mut self, path: &[u8], reason: &str) {
        Remarks::warn(self, at(path, reason));
    }

    fn note(&mut self, path: &[u8], reason: &str) {
        Remarks::note(self, at(path, reason));
    }
}
