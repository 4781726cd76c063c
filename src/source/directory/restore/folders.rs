//! The open folders from the target down to the entry that is restored.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use rustix::fs::{Mode, OFlags, fchmod, mkdirat, openat};
use rustix::io::Errno;

use super::file_writer::{FileWriter, OpenFolder};
use super::finish::Finish;
use super::write_pool::WritePool;
use crate::archive::error::{ArchiveError, Problem};
use crate::archive::lossy;
use crate::source::directory::meta::{Identity, Meta};

/// How many folders of the way down are kept open.
const OPEN: usize = 128;

pub(super) const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);
pub(super) const PRIVATE: Mode = Mode::RWXU;

pub(super) struct Folder {
    pub(super) name: Vec<u8>,
    pub(super) identity: Identity,
    /// None while it is closed because many are open beneath it. That on top is open.
    pub(super) open: Option<Arc<OpenFolder>>,
    pub(super) finish: Finish,
}

/// The root and the folders that lead to where the tarball is.
pub(super) struct Folders<'a> {
    writer: &'a FileWriter<'a>,
    pool: &'a WritePool<'a>,
    stack: Vec<Folder>,
    /// Folders that were made for an entry which came before them.
    early: HashSet<Vec<u8>>,
}

/// Problem with the entry at hand, or a failure that names its own.
pub(super) enum EntryError {
    Here(Problem),
    There(ArchiveError),
}

impl From<Problem> for EntryError {
    fn from(problem: Problem) -> Self {
        Self::Here(problem)
    }
}

impl From<ArchiveError> for EntryError {
    fn from(failure: ArchiveError) -> Self {
        Self::There(failure)
    }
}

pub(super) fn c_name(name: &[u8]) -> Result<CString, Problem> {
    CString::new(name).map_err(|_| Problem::Refused("has a zero byte in its name".to_owned()))
}

pub(super) fn through_link(error: Errno, folder: &[u8]) -> Problem {
    match error {
        Errno::LOOP | Errno::NOTDIR => Problem::Refused(format!(
            "leads through `{}`, which is no folder but a link or a file",
            lossy(folder)
        )),
        error => Problem::System("open the folder of", error),
    }
}

impl<'a> Folders<'a> {
    pub(super) fn new(root: Folder, writer: &'a FileWriter<'a>, pool: &'a WritePool<'a>) -> Self {
        Self { writer, pool, stack: vec![root], early: HashSet::new() }
    }

    pub(super) fn root(&self) -> Result<&Arc<OpenFolder>, Problem> {
        let root = self.stack.first().and_then(|root| root.open.as_ref());
        root.ok_or(Problem::System("open the folder of", Errno::BADF))
    }

    /// The root, when all other folders were left.
    pub(super) fn into_root(mut self) -> Option<Folder> {
        self.stack.pop()
    }

    /// Goes back up to the root, which is returned.
    pub(super) fn leave_all(&mut self) -> Result<Option<&mut Folder>, EntryError> {
        while self.stack.len() > 1 {
            self.leave()?;
        }
        Ok(self.stack.last_mut())
    }

    /// Whether the folder was made for an entry that came before it; it is forgotten then.
    pub(super) fn was_early(&mut self, path: &[u8]) -> bool {
        self.early.remove(path)
    }

    /// Makes the folder with these names the one on top of the stack. Folders that the tarball did
    /// not name are made.
    pub(super) fn go_to(&mut self, folders: &[&[u8]], early: bool) -> Result<(), EntryError> {
        let known = self
            .stack
            .iter()
            .skip(1)
            .zip(folders)
            .take_while(|(level, name)| level.name == **name)
            .count();
        while self.stack.len() > known + 1 {
            self.leave()?;
        }
        for name in folders.iter().skip(known) {
            let key = c_name(name)?;
            // It may be a file that is still written.
            self.pool.wait_for(&self.path_of(name))?;
            let made = match mkdirat(self.top()?, &key, PRIVATE) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(Problem::System("make the folder of", error).into()),
            };
            let folder = openat(self.top()?, &key, FOLDER, Mode::empty())
                .map_err(|error| through_link(error, name))?;
            let meta = self.meta_of(folder.as_fd(), made)?;
            let mut finish = Finish::as_is(&meta);
            if made {
                finish = Finish { mode: 0o755, mtime: None, only_these_rights: true, ..finish };
            }
            if made && early {
                let path = self.path_of(name);
                self.early.insert(path);
            }
            self.enter(name, folder, &meta, finish)?;
        }
        Ok(())
    }

    /// What the system says of a folder. Files that are still written into one that is come back to
    /// are waited for: then it gets what it was told last, and that is remembered.
    pub(super) fn meta_of(&self, folder: BorrowedFd<'_>, made: bool) -> Result<Meta, EntryError> {
        let look = |error| Problem::System("look at the folder of", error);
        let meta = Meta::of(folder).map_err(look)?;
        if made || !self.pool.wait_for_folder(meta.identity)? {
            return Ok(meta);
        }
        Ok(Meta::of(folder).map_err(look)?)
    }

    pub(super) fn top(&self) -> Result<BorrowedFd<'_>, Problem> {
        self.top_open().map(|open| open.folder.as_fd())
    }

    pub(super) fn top_open(&self) -> Result<&Arc<OpenFolder>, Problem> {
        let open = self.stack.last().and_then(|level| level.open.as_ref());
        open.ok_or(Problem::System("open the folder of", Errno::BADF))
    }

    pub(super) fn enter(
        &mut self,
        name: &[u8],
        folder: OwnedFd,
        meta: &Meta,
        mut finish: Finish,
    ) -> Result<(), EntryError> {
        finish.keep_default_list(folder.as_fd());
        if meta.mode & 0o700 != 0o700 {
            // A folder that its owner may not write to still has to be filled.
            fchmod(&folder, PRIVATE)
                .map_err(|error| Problem::System("make writable the folder of", error))?;
        }
        let open = Some(OpenFolder::new(folder, meta.identity));
        self.stack.push(Folder { name: name.to_vec(), identity: meta.identity, open, finish });
        let far = self.stack.len().checked_sub(OPEN + 1).filter(|far| *far > 0);
        if let Some(level) =
            far.and_then(|far| self.stack.get_mut(far)).filter(|level| level.open.is_some())
        {
            // Nobody else has it then, and it is not yet told what it gets: so it is closed, and
            // not finished.
            self.pool.wait_for_folder(level.identity)?;
            level.open = None;
        }
        Ok(())
    }

    /// Goes back up from the folder on top. It is finished when its last file is written.
    pub(super) fn leave(&mut self) -> Result<(), EntryError> {
        let Some(level) = self.stack.pop() else { return Ok(()) };
        let moved =
            || Problem::Refused("is in a folder that was moved away during the restore".to_owned());
        let open = level.open.ok_or_else(moved)?;
        if self.stack.last().is_some_and(|parent| parent.open.is_none()) {
            let up = openat(&open.folder, c"..", FOLDER, Mode::empty())
                .map_err(|error| Problem::System("open the folder of", error))?;
            let identity = Meta::of(up.as_fd())
                .map_err(|error| Problem::System("look at the folder of", error))?
                .identity;
            let parent = self
                .stack
                .last_mut()
                .filter(|parent| parent.identity == identity)
                .ok_or_else(moved)?;
            parent.open = Some(OpenFolder::new(up, identity));
        }
        let path = self.path_of(&level.name);
        *open.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((level.finish, path));
        Ok(self.writer.release(open)?)
    }

    /// The path of an entry in the folder on top.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for level in self.stack.iter().skip(1) {
            path.extend_from_slice(&level.name);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }
}
