//! The walk through a tree that others are changing.
//!
//! Every folder is opened by its name in its open parent, and a link is never followed, so nothing
//! that is renamed or swapped for a link during the walk leads out of the root. Three things are
//! bounded, whatever the tree:
//! - open folders: those nearest to the root are closed in deep trees. On the way back up one is
//!   opened again through `..`, or from the root down, and used only if it still is the same
//!   folder;
//! - names: a folder of up to [`BATCH`] names is read whole and walked in the order of the names'
//!   bytes, so that two walks of a tree that did not change are the same. Of a bigger one a batch
//!   is read at a time, in the order the file system gives;
//! - names of all folders on the way together: once they reach [`HELD`] bytes, batches are small.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::io::Errno;

use super::meta::{Identity, Meta, is_mount};
use super::scope::{Listener, Scope, own_folder};
use crate::archive::Kind;
use crate::archive::header::PATH_LIMIT;
use crate::archive::patterns::{Choice, Unmatched};
use crate::model::Cancel;
use crate::source::SourceError;
use crate::source::directory::VANISHED;

/// How many folders of the way down are kept open.
const OPEN: usize = 128;
/// The most names that are read of a folder at a time.
const BATCH: usize = 10_000;
/// Bytes of names, over all folders on the way, above which batches are [`SMALL_BATCH`] names.
const HELD: usize = 8 << 20;
const SMALL_BATCH: usize = 64;
/// What a name costs beside its bytes.
const NAME_COST: usize = 48;
/// The file that marks a folder as a cache, and what it begins with:
/// <https://bford.info/cachedir/>.
const CACHE_TAG: &CStr = c"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8; 43] = b"Signature: 8a477f597d28d172789f06886806bc55";
/// What `fsck` puts what it finds into, in the root of a file system.
const LOST_AND_FOUND: &CStr = c"lost+found";
/// How often an entry that keeps becoming something else is looked at again.
const RETRIES: u32 = 5;
/// How many such entries wait for the end of the walk. Each keeps a folder open.
const LATE: usize = 256;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY);

/// Opens what `open` opens, without touching its access time where that is permitted (to its owner
/// and to root).
pub(super) fn open_quietly(
    folder: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    loop {
        match openat(folder, name, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => match openat(folder, name, flags, Mode::empty()) {
                Err(Errno::INTR) => {}
                result => return result,
            },
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Whether the system says that there is no such entry (any more).
pub(super) fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::STALE)
}

/// Whether the system says that the entry is of another kind than it just was.
pub(super) fn is_replaced(error: Errno) -> bool {
    matches!(error, Errno::LOOP | Errno::NOTDIR | Errno::NXIO)
}

const KEPT_BEING_REPLACED: &str = "It kept being replaced while it was read";

struct Frame {
    identity: Identity,
    /// None while it is closed because many are open beneath it.
    folder: Option<Arc<OwnedFd>>,
    /// The rest of a folder that has more names than one batch.
    stream: Option<Dir>,
    names: Vec<CString>,
    held: usize,
    /// How much of the walk's path is this folder's.
    path_length: usize,
    name: CString,
    within: bool,
}

/// An entry that the walk came to. A folder among them was entered: what comes next may be within
/// it.
pub(super) struct Found {
    pub(super) name: CString,
    pub(super) meta: Meta,
    /// [`Choice::Take`] or [`Choice::Look`].
    pub(super) choice: Choice,
    /// Whether the folder that it lies in is taken.
    pub(super) within: bool,
    /// How often it became something else while it was looked at.
    pub(super) retries: u32,
    /// Of a folder: its contents are left out, although no pattern says so.
    pub(super) left_out: bool,
}

/// An entry that became something else after the walk had gone on.
pub(super) struct Late {
    /// The folder that it lies in.
    pub(super) folder: Arc<OwnedFd>,
    pub(super) path: Vec<u8>,
    pub(super) name: CString,
    pub(super) within: bool,
    pub(super) retries: u32,
}

/// A walk through a folder, in depth.
pub(super) struct Walk<'a> {
    scope: Scope<'a>,
    cancel: &'a Cancel,
    root: OwnedFd,
    root_meta: Meta,
    stack: Vec<Frame>,
    path: Vec<u8>,
    held: usize,
    retries: u32,
    repeated: bool,
    late: VecDeque<Late>,
    /// Entries that a pattern left out, and folders of which what is in them was left out.
    pub(super) excluded: u64,
    /// Entries that could not be taken.
    pub(super) skipped: u64,
    /// Patterns that nothing was found for, of those that are put in here before the walk.
    pub(super) unmatched: Unmatched,
    /// How many more entries are looked at.
    pub(super) left: u64,
}

impl<'a> Walk<'a> {
    /// Opens the root. It may be a link: whoever configured it named it.
    pub(super) fn open(
        path: &std::path::Path,
        scope: Scope<'a>,
        cancel: &'a Cancel,
    ) -> Result<Self, Errno> {
        let flags = FOLDER.difference(OFlags::NOFOLLOW);
        let root = openat(CWD, path, flags, Mode::empty())?;
        let root_meta = Meta::of(root.as_fd())?;
        Ok(Self {
            scope,
            cancel,
            root,
            root_meta,
            stack: Vec::new(),
            path: Vec::new(),
            held: 0,
            retries: 0,
            repeated: false,
            late: VecDeque::new(),
            excluded: 0,
            skipped: 0,
            unmatched: Unmatched::default(),
            left: u64::MAX,
        })
    }

    pub(super) fn root(&self) -> (BorrowedFd<'_>, Meta) {
        (self.root.as_fd(), self.root_meta)
    }

    /// Whether the root was removed since it was opened.
    pub(super) fn root_is_gone(&self) -> bool {
        Meta::of(self.root.as_fd()).is_ok_and(|meta| meta.links == 0)
    }

    /// The path of the entry that was found last, relative to the root.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The folder in which the walk stands: a folder that was found last, else the one that holds
    /// what was found last. None if that folder could not be entered.
    pub(super) fn folder(&self) -> Option<&Arc<OwnedFd>> {
        self.stack.last().and_then(|frame| frame.folder.as_ref())
    }

    /// Whether the folder that was found last could be entered.
    pub(super) fn entered(&self) -> bool {
        self.stack.last().is_some_and(|frame| frame.path_length == self.path.len())
    }

    /// Does not go through the folder that was found last.
    pub(super) fn pass_over(&mut self) {
        if self.entered()
            && let Some(frame) = self.stack.last_mut()
        {
            self.held -= std::mem::take(&mut frame.held);
            frame.names.clear();
            frame.stream = None;
        }
    }

    /// Reads the names of the root.
    ///
    /// # Errors
    /// When they cannot be read: then nothing of the root can.
    pub(super) fn start(&mut self) -> Result<(), Errno> {
        let folder = self
            .root
            .try_clone()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let stream = listing(folder.as_fd())?;
        self.stack.push(Frame {
            identity: self.root_meta.identity,
            folder: Some(Arc::new(folder)),
            stream: Some(stream),
            names: Vec::new(),
            held: 0,
            path_length: 0,
            name: CString::default(),
            within: self.scope.filter.takes_all(),
        });
        self.fill().map_or(Ok(()), Err)
    }

    /// The next entry, none after the last.
    pub(super) fn next(&mut self, heard: &mut dyn Listener) -> Result<Option<Found>, SourceError> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            if self.stack.is_empty() && !self.go_to_late(heard) {
                return Ok(None);
            }
            let Some(frame) = self.stack.last_mut() else { continue };
            self.path.truncate(frame.path_length);
            let Some(name) = frame.names.pop() else {
                if frame.stream.is_some() {
                    if let Some(error) = self.fill() {
                        heard.missing(
                            &self.path,
                            &format!("The rest of the folder could not be listed: {error}"),
                        );
                    }
                } else {
                    self.leave(heard);
                }
                continue;
            };
            if !std::mem::take(&mut self.repeated) {
                self.retries = 0;
            }
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.as_bytes());
            let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
            self.left = left;
            if let Some(found) = self.look(name, heard) {
                return Ok(Some(found));
            }
        }
    }

    /// Looks at an entry once more when all else was walked, as it turned out to be of another
    /// kind.
    pub(super) fn later(&mut self, late: Late, heard: &mut dyn Listener) {
        if late.retries >= RETRIES {
            self.skipped += 1;
            heard.missing(&late.path, KEPT_BEING_REPLACED);
        } else if self.late.len() >= LATE {
            self.skipped += 1;
            heard
                .missing(&late.path, "It was replaced before it was read, as too many others were");
        } else {
            self.late.push_back(Late { retries: late.retries + 1, ..late });
        }
    }

    /// Goes to an entry that waits for the end of the walk. False when none does.
    fn go_to_late(&mut self, heard: &mut dyn Listener) -> bool {
        let Some(late) = self.late.pop_front() else { return false };
        let folder = late.path.len().saturating_sub(late.name.as_bytes().len() + 1);
        self.path.clear();
        self.path.extend_from_slice(late.path.get(..folder).unwrap_or_default());
        match Meta::of(late.folder.as_fd()) {
            Ok(meta) => {
                self.retries = late.retries;
                self.repeated = true;
                self.stack.push(Frame {
                    identity: meta.identity,
                    folder: Some(late.folder),
                    stream: None,
                    names: vec![late.name],
                    held: 0,
                    path_length: folder,
                    name: CString::default(),
                    within: late.within,
                });
            }
            Err(error) => {
                self.skipped += 1;
                heard.missing(&late.path, &format!("It could not be looked at: {error}"));
            }
        }
        true
    }

    /// Looks at the entry that was found last once more, as it turned out to be of another kind.
    pub(super) fn again(&mut self, name: CString, heard: &mut dyn Listener) {
        self.retries += 1;
        if self.retries > RETRIES {
            self.skipped += 1;
            heard.missing(&self.path, KEPT_BEING_REPLACED);
        } else if let Some(frame) = self.stack.last_mut() {
            frame.names.push(name);
            self.repeated = true;
        }
    }

    /// What the entry is. None when it is left out.
    fn look(&mut self, name: CString, heard: &mut dyn Listener) -> Option<Found> {
        let frame = self.stack.last()?;
        let within = frame.within;
        let retries = self.retries;
        let meta = match Meta::at(frame.folder.as_ref()?.as_fd(), &name) {
            Ok(meta) => meta,
            // What is left out may vanish as it likes.
            Err(error) if is_gone(error) => {
                if self.scope.filter.choose(&self.path, true, within) != Choice::Leave {
                    self.vanished(heard);
                }
                return None;
            }
            Err(error) => {
                self.skipped += 1;
                heard.missing(&self.path, &format!("It could not be looked at: {error}"));
                return None;
            }
        };
        let is_folder = meta.kind == Some(Kind::Directory);
        let choice = self.scope.filter.choose(&self.path, is_folder, within);
        self.unmatched.see(&self.path, is_folder, choice);
        if choice == Choice::Leave {
            self.excluded += 1;
            return None;
        }
        let found = Found { name, meta, choice, within, retries, left_out: false };
        if !is_folder {
            return Some(found);
        }
        if self.is_closed(&meta, heard) {
            return Some(Found { left_out: true, ..found });
        }
        self.enter(found, heard)
    }

    /// Whether the folder that was found last is not entered. Then it is taken as an empty folder.
    fn is_closed(&mut self, folder: &Meta, heard: &mut dyn Listener) -> bool {
        let reason = if self.scope.boundary.excludes(folder, &self.root_meta) {
            "Another file system begins there, and `one_file_system` leaves out what is in it"
                .to_owned()
        } else if let Some(own) = own_folder(self.scope.own, folder) {
            format!("It is {}, so its contents were left out", own.what)
        } else {
            return false;
        };
        self.excluded += 1;
        heard.note(&self.path, &reason);
        true
    }

    fn enter(&mut self, mut found: Found, heard: &mut dyn Listener) -> Option<Found> {
        if self.path.len() > PATH_LIMIT - 512 {
            self.skipped += 1;
            heard.missing(&self.path, "The folder lies too deep, so nothing in it was read");
            return Some(found);
        }
        let parent = self.folder()?.as_fd();
        let opened = open_quietly(parent, &found.name, FOLDER)
            .and_then(|folder| Ok((Meta::of(folder.as_fd())?, listing(folder.as_fd())?, folder)));
        let (meta, stream, folder) = match opened {
            Ok(opened) => opened,
            Err(error) if is_gone(error) => {
                self.vanished(heard);
                return None;
            }
            Err(error) if is_replaced(error) => {
                self.again(found.name, heard);
                return None;
            }
            // One that a pattern asks for by its name is missing.
            Err(Errno::ACCESS | Errno::PERM)
                if found.name.as_c_str() == LOST_AND_FOUND
                    && (found.within || found.choice == Choice::Look)
                    && is_mount(parent) == Ok(true) =>
            {
                self.excluded += 1;
                heard.note(
                    &self.path,
                    "Only root may read this folder of the file system's own, so its contents \
                     were left out",
                );
                return Some(Found { left_out: true, ..found });
            }
            Err(error) => {
                self.skipped += 1;
                heard.missing(
                    &self.path,
                    &format!("The folder could not be opened, so nothing in it was read: {error}"),
                );
                return Some(found);
            }
        };
        found.meta = meta;
        if self.is_closed(&meta, heard) {
            // Something was mounted on it just now.
            return Some(Found { left_out: true, ..found });
        }
        let is_cache = self.scope.exclude_caches && is_cache(folder.as_fd());
        found.left_out = is_cache;
        self.stack.push(Frame {
            identity: meta.identity,
            folder: Some(Arc::new(folder)),
            stream: Some(stream),
            names: Vec::new(),
            held: 0,
            path_length: self.path.len(),
            name: found.name.clone(),
            within: found.choice == Choice::Take,
        });
        if is_cache {
            self.excluded += 1;
            if let Some(frame) = self.stack.last_mut() {
                frame.stream = None;
                frame.names.push(CACHE_TAG.to_owned());
            }
        } else if let Some(error) = self.fill() {
            heard.missing(&self.path, &format!("The folder could not be listed: {error}"));
        }
        // A folder that is still being listed stays open: its place in the listing would be lost.
        let far = self.stack.len().checked_sub(OPEN + 1).filter(|far| *far > 0);
        if let Some(frame) =
            far.and_then(|far| self.stack.get_mut(far)).filter(|frame| frame.stream.is_none())
        {
            frame.folder = None;
        }
        Some(found)
    }

    /// What was listed is there no more. That is how a live tree is, so the snapshot is whole.
    fn vanished(&mut self, heard: &mut dyn Listener) {
        self.skipped += 1;
        heard.warn(&self.path, VANISHED);
    }

    /// Reads the next batch of names of the folder on top. Returns what went wrong; then no more
    /// names come.
    fn fill(&mut self) -> Option<Errno> {
        let limit = if self.held > HELD { SMALL_BATCH } else { BATCH };
        let frame = self.stack.last_mut()?;
        self.held -= frame.held;
        frame.held = 0;
        let mut problem = None;
        while frame.names.len() < limit {
            match frame.stream.as_mut()?.read() {
                None => {
                    frame.stream = None;
                    break;
                }
                Some(Err(Errno::INTR)) => {}
                Some(Err(error)) => {
                    frame.stream = None;
                    // A folder that was removed has no more names; that is not an error.
                    problem = (!is_gone(error)).then_some(error);
                    break;
                }
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if !matches!(name.to_bytes(), b"." | b"..") {
                        frame.held += name.to_bytes().len() + NAME_COST;
                        frame.names.push(name.to_owned());
                    }
                }
            }
        }
        frame.names.sort_unstable_by(|a, b| b.cmp(a));
        self.held += frame.held;
        problem
    }

    /// Goes back up from the folder on top, all of which was walked.
    fn leave(&mut self, heard: &mut dyn Listener) {
        let Some(left) = self.stack.pop() else { return };
        self.held -= left.held;
        let Some(parent) = self.stack.last() else { return };
        if parent.folder.is_some() || parent.names.is_empty() && parent.stream.is_none() {
            return;
        }
        let same = |folder: OwnedFd| {
            Meta::of(folder.as_fd())
                .is_ok_and(|meta| meta.identity == parent.identity)
                .then_some(folder)
        };
        let up = left
            .folder
            .as_ref()
            .and_then(|folder| open_quietly(folder.as_fd(), c"..", FOLDER).ok());
        let found = up.and_then(same).or_else(|| self.down_from_root().and_then(same));
        let Some(parent) = self.stack.last_mut() else { return };
        if found.is_none() {
            let rest = parent.names.len();
            parent.names.clear();
            self.path.truncate(parent.path_length);
            self.skipped += rest as u64;
            heard.missing(
                &self.path,
                &format!(
                    "The folder was moved or removed while it was read: {rest} entries of it \
                    are missing"
                ),
            );
        }
        parent.folder = found.map(Arc::new);
    }

    /// Opens the folder on top again, by the names that lead to it from where the walk began.
    fn down_from_root(&self) -> Option<OwnedFd> {
        let (first, rest) = self.stack.split_first()?;
        let mut folder = first.folder.as_ref()?.try_clone().ok()?;
        for frame in rest {
            folder = open_quietly(folder.as_fd(), &frame.name, FOLDER).ok()?;
        }
        Some(folder)
    }
}

/// Whether a folder has a tag that says that all in it can be made again.
pub(super) fn is_cache(folder: BorrowedFd<'_>) -> bool {
    let is_file = |meta: Result<Meta, Errno>| meta.is_ok_and(|meta| meta.kind == Some(Kind::File));
    if !is_file(Meta::at(folder, CACHE_TAG)) {
        return false;
    }
    let Ok(tag) = open_quietly(folder, CACHE_TAG, FOLDER.difference(OFlags::DIRECTORY)) else {
        return false;
    };
    if !is_file(Meta::of(tag.as_fd())) {
        return false;
    }
    let mut begin = [0; CACHE_SIGNATURE.len()];
    File::from(tag).read_exact(&mut begin).is_ok() && begin == *CACHE_SIGNATURE
}

/// Lists an open folder. It shares the position in the listing with `folder`, which is not listed
/// otherwise.
fn listing(folder: BorrowedFd<'_>) -> Result<Dir, Errno> {
    let folder = folder
        .try_clone_to_owned()
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Dir::new(folder)
}

#[cfg(test)]
mod tests {
    use super::{Choice, Found, Kind, Late, Meta, RETRIES, Scope, Walk};
    use crate::archive::patterns::Filter;
    use crate::model::{Cancel, Remarks};
    use crate::source::directory::scope::Boundary;
    use std::os::fd::AsFd;

    fn scope(filter: &Filter) -> Scope<'_> {
        Scope { filter, boundary: Boundary::Open, own: &[], exclude_caches: false }
    }

    /// Between a look at an entry and opening it, somebody swaps it for a link that leads out.
    #[test]
    fn a_folder_that_becomes_a_link_after_it_was_looked_at_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        std::fs::create_dir_all(scratch.path().join("outside/secret")).unwrap();
        std::fs::create_dir_all(root.join("folder")).unwrap();
        let filter = Filter::new(&[], &[]).unwrap();
        let cancel = Cancel::new();
        let mut walk = Walk::open(&root, scope(&filter), &cancel).unwrap();
        walk.start().unwrap();
        let seen = Meta::at(walk.root.as_fd(), c"folder").unwrap();
        assert_eq!(seen.kind, Some(Kind::Directory));
        walk.stack.last_mut().unwrap().names.clear();
        std::fs::remove_dir(root.join("folder")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("folder")).unwrap();

        let mut remarks = Remarks::default();
        walk.path.extend_from_slice(b"folder");
        let found = Found {
            name: c"folder".to_owned(),
            meta: seen,
            choice: Choice::Take,
            within: true,
            retries: 0,
            left_out: false,
        };
        assert!(walk.enter(found, &mut remarks).is_none());
        let found = walk.next(&mut remarks).unwrap().unwrap();
        assert_eq!((walk.path(), found.meta.kind), (b"folder".as_slice(), Some(Kind::Symlink)));
        assert!(walk.next(&mut remarks).unwrap().is_none() && remarks.warnings.is_empty());
    }

    #[test]
    fn an_entry_that_is_replaced_again_and_again_is_missing_in_the_end() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("file"), "").unwrap();
        let filter = Filter::new(&[], &[]).unwrap();
        let cancel = Cancel::new();
        let mut walk = Walk::open(scratch.path(), scope(&filter), &cancel).unwrap();
        walk.start().unwrap();
        let mut remarks = Remarks::default();
        let mut looks = 0;
        while let Some(found) = walk.next(&mut remarks).unwrap() {
            looks += 1;
            walk.again(found.name, &mut remarks);
        }
        assert_eq!((looks, remarks.warnings.missing(), walk.skipped), (6, 1, 1));
    }

    #[test]
    fn an_entry_that_is_looked_at_later_is_walked_after_the_rest_and_not_more_often_than_another() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("a/b/c")).unwrap();
        std::fs::write(scratch.path().join("z"), "").unwrap();
        let filter = Filter::new(&[], &[]).unwrap();
        let cancel = Cancel::new();
        let mut walk = Walk::open(scratch.path(), scope(&filter), &cancel).unwrap();
        walk.start().unwrap();
        let mut remarks = Remarks::default();
        let mut paths = Vec::new();
        while let Some(found) = walk.next(&mut remarks).unwrap() {
            paths.push(String::from_utf8(walk.path().to_vec()).unwrap());
            if found.name.as_c_str() == c"a" && found.retries < RETRIES {
                let late = Late {
                    folder: std::sync::Arc::new(walk.root.try_clone().unwrap()),
                    path: b"a".to_vec(),
                    name: found.name,
                    within: true,
                    retries: found.retries,
                };
                walk.later(late, &mut remarks);
            }
        }
        let mut expected = vec!["a", "a/b", "a/b/c", "z"];
        for _ in 0..RETRIES {
            expected.extend(["a", "a/b", "a/b/c"]);
        }
        assert_eq!(paths, expected);
        assert!(remarks.warnings.is_empty());
    }
}
