//! A tarball put back into a folder, as carefully as it was read.
//!
//! Nothing is written outside of the target: a name that is absolute or has `..` in it is refused, each folder on the way to an entry is
//! opened in its open parent, and a link is never followed. A file appears under its name only when it is complete. What a folder
//! is told last, its permissions and time, it gets when the tarball has left it; a tarball in another order than a walk's may
//! come back to it, so it is remembered how it was.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT, Uid, chmodat, chownat,
    fchmod, fchown, ftruncate, futimens, linkat, makedev, mkdirat, mknodat, openat, renameat, seek, symlinkat, syncfs,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::attributes::{self, Turn};
use super::entry::{Identity, Kind, Meta, Time, lossy};
use super::reader::{Incoming, Reader};
use super::tarball::Attribute;
use super::trouble::{Refused, Trouble, stopped};
use super::walk::Notes;
use crate::model::{Cancel, Warnings};
use crate::source::{RestoreOptions, SourceError};

/// How much is written at a time.
const BUFFER: usize = 256 << 10;
/// How many folders of the way down are kept open.
const OPEN: usize = 128;
/// What a file is called until it is complete.
const TEMPORARY: &str = ".holdfast-restore";
/// How many names of that kind are tried: the tarball itself may have some.
const TEMPORARY_TRIES: u32 = 1_000;

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NOCTTY);
const PRIVATE: Mode = Mode::RWXU;

/// What an entry gets when its content is there.
struct Finish {
    /// None leaves it as it is.
    owner: Option<(u64, u64)>,
    mode: u32,
    /// None leaves it as it is.
    mtime: Option<Time>,
    attributes: Vec<Attribute>,
    /// An access list that the backup does not have is taken away: a folder may have been there before, or have inherited one.
    only_these_rights: bool,
}

impl Finish {
    fn of(entry: &mut Incoming) -> Self {
        Self {
            owner: Some((entry.uid, entry.gid)),
            mode: entry.mode,
            mtime: Some(entry.mtime),
            attributes: std::mem::take(&mut entry.attributes),
            only_these_rights: entry.kind == Kind::Directory,
        }
    }

    /// Nothing in the folder inherits rights while it is filled; a folder that stays as it is gets its list back.
    fn keep_default_list(&mut self, folder: BorrowedFd<'_>) {
        let list = attributes::take_default_list(folder);
        if !self.only_these_rights {
            self.attributes.extend(list);
        }
    }

    /// A folder of which the tarball says nothing (here).
    fn as_is(meta: &Meta) -> Self {
        Self { owner: None, mode: meta.mode, mtime: Some(meta.mtime), attributes: Vec::new(), only_these_rights: false }
    }
}

struct Level {
    name: Vec<u8>,
    identity: Identity,
    /// None while it is closed because many are open beneath it. That on top is open.
    folder: Option<OwnedFd>,
    finish: Finish,
}

/// Restores the tarball to the folder at `place`, which is made when it is missing.
///
/// # Errors
/// Whatever stopped it; then what is in the folder is incomplete, and the error says so.
pub(super) fn extract(
    input: &mut dyn std::io::Read,
    place: &Path,
    options: &RestoreOptions,
    cancel: &Cancel,
) -> Result<Warnings, SourceError> {
    let system =
        |attempt, error: Errno| SourceError::Io { attempt, path: place.display().to_string(), error: error.into() };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(|error| SourceError::Io {
        attempt: "make the folder",
        path: place.display().to_string(),
        error,
    })?;
    // Whoever named the target may have named a link to it.
    let root = openat(CWD, place, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty())
        .map_err(|error| system("open the folder", error))?;
    let meta = Meta::of(root.as_fd()).map_err(|error| system("look at the folder", error))?;
    // Nobody else looks in, or puts links in, before the permissions are right.
    fchmod(&root, PRIVATE).map_err(|error| system("make private", error))?;
    let owner = !options.no_owner && rustix::process::geteuid().is_root();
    let mut finish = Finish { mtime: None, ..Finish::as_is(&meta) };
    finish.keep_default_list(root.as_fd());
    let mut extractor = Extractor {
        cancel,
        restore_owner: owner,
        no_owner: options.no_owner,
        stack: vec![Level { name: Vec::new(), identity: meta.identity, folder: Some(root), finish }],
        buffer: vec![0; BUFFER],
        notes: Notes::default(),
        owners: Refused::default(),
        attributes: Refused::default(),
        specials: Refused::default(),
        text_acls: Refused::default(),
    };
    let mut reader = Reader::new(input);
    let mut path = Vec::new();
    let result = extractor.run(&mut reader, &mut path);
    let place_text = place.display().to_string();
    match result {
        Ok(()) => Ok(extractor.tell()),
        Err(trouble) => Err(stopped(trouble, &path, &place_text)),
    }
}

struct Extractor<'a> {
    cancel: &'a Cancel,
    restore_owner: bool,
    no_owner: bool,
    /// The root and the folders that lead to where the tarball is.
    stack: Vec<Level>,
    buffer: Vec<u8>,
    notes: Notes,
    owners: Refused,
    attributes: Refused,
    specials: Refused,
    text_acls: Refused,
}

/// The names on the way to an entry, and its own last; none for the root.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Trouble> {
    if path.first() == Some(&b'/') {
        return Err(Trouble::Refused("has an absolute name".to_owned()));
    }
    if path.contains(&0) {
        return Err(Trouble::Refused("has a zero byte in its name".to_owned()));
    }
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(Trouble::Refused("has a name that leads out through `..`".to_owned()));
    }
    Ok(parts)
}

fn c_name(name: &[u8]) -> Result<CString, Trouble> {
    CString::new(name).map_err(|_| Trouble::Refused("has a zero byte in its name".to_owned()))
}

fn through_link(error: Errno, folder: &[u8]) -> Trouble {
    match error {
        Errno::LOOP | Errno::NOTDIR => {
            Trouble::Refused(format!("leads through `{}`, which is no folder but a link or a file", lossy(folder)))
        }
        error => Trouble::System("open the folder of", error),
    }
}

impl Extractor<'_> {
    fn run(&mut self, reader: &mut Reader<'_>, path: &mut Vec<u8>) -> Result<(), Trouble> {
        while let Some(mut entry) = reader.next()? {
            self.go_on()?;
            path.clone_from(&entry.path);
            self.entry(&mut entry, reader)?;
        }
        reader.drain()?;
        path.clear();
        while self.stack.len() > 1 {
            self.leave()?;
        }
        let Some(root) = self.stack.pop() else { return Ok(()) };
        if let Some(folder) = &root.folder {
            self.finish(folder.as_fd(), &root.finish, b".")?;
            syncfs(folder).map_err(|error| Trouble::System("write to disk", error))?;
        }
        Ok(())
    }

    fn tell(self) -> Warnings {
        let mut notes = self.notes;
        for refused in [self.owners, self.attributes, self.specials, self.text_acls] {
            refused.tell(&mut notes);
        }
        notes.0
    }

    fn go_on(&self) -> Result<(), Trouble> {
        if self.cancel.is_cancelled() { Err(Trouble::Cancelled) } else { Ok(()) }
    }

    fn entry(&mut self, entry: &mut Incoming, reader: &mut Reader<'_>) -> Result<(), Trouble> {
        let path = entry.path.clone();
        let parts = components(&path)?;
        if entry.has_text_acl {
            self.text_acls.add(&path, "Its access list is written as text (GNU tar's `--acls`) and was not restored");
        }
        let Some((name, folders)) = parts.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(Trouble::Refused("would replace the target itself".to_owned()));
            }
            while self.stack.len() > 1 {
                self.leave()?;
            }
            if let Some(root) = self.stack.last_mut() {
                root.finish = Finish::of(entry);
            }
            return Ok(());
        };
        self.go_to(folders)?;
        match entry.kind {
            Kind::Directory => self.folder(name, entry),
            Kind::File => self.file(name, entry, reader),
            Kind::Symlink => self.symlink(name, entry),
            Kind::Hardlink => self.hardlink(name, entry),
            Kind::Fifo | Kind::Char | Kind::Block => self.special(name, entry),
        }
    }

    /// Makes the folder with these names the one on top of the stack. Folders that the tarball did not name are made.
    fn go_to(&mut self, folders: &[&[u8]]) -> Result<(), Trouble> {
        let known = self.stack.iter().skip(1).zip(folders).take_while(|(level, name)| level.name == **name).count();
        while self.stack.len() > known + 1 {
            self.leave()?;
        }
        for name in folders.iter().skip(known) {
            let key = c_name(name)?;
            let made = match mkdirat(self.top()?, &key, PRIVATE) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(Trouble::System("make the folder of", error)),
            };
            let folder = openat(self.top()?, &key, FOLDER, Mode::empty()).map_err(|error| through_link(error, name))?;
            let meta = Meta::of(folder.as_fd()).map_err(|error| Trouble::System("look at the folder of", error))?;
            let mut finish = Finish::as_is(&meta);
            if made {
                finish = Finish { mode: 0o755, mtime: None, only_these_rights: true, ..finish };
            }
            self.enter(name, folder, &meta, finish)?;
        }
        Ok(())
    }

    fn top(&self) -> Result<BorrowedFd<'_>, Trouble> {
        let folder = self.stack.last().and_then(|level| level.folder.as_ref());
        folder.map(AsFd::as_fd).ok_or(Trouble::System("open the folder of", Errno::BADF))
    }

    fn enter(&mut self, name: &[u8], folder: OwnedFd, meta: &Meta, mut finish: Finish) -> Result<(), Trouble> {
        finish.keep_default_list(folder.as_fd());
        if meta.mode & 0o700 != 0o700 {
            // A folder that its owner may not write to still has to be filled.
            fchmod(&folder, PRIVATE).map_err(|error| Trouble::System("make writable the folder of", error))?;
        }
        self.stack.push(Level { name: name.to_vec(), identity: meta.identity, folder: Some(folder), finish });
        let far = self.stack.len().checked_sub(OPEN + 1).filter(|far| *far > 0);
        if let Some(level) = far.and_then(|far| self.stack.get_mut(far)) {
            level.folder = None;
        }
        Ok(())
    }

    /// Finishes the folder on top and goes back up.
    fn leave(&mut self) -> Result<(), Trouble> {
        let Some(level) = self.stack.pop() else { return Ok(()) };
        let moved = || Trouble::Refused("is in a folder that was moved away during the restore".to_owned());
        let folder = level.folder.as_ref().ok_or_else(moved)?;
        if self.stack.last().is_some_and(|parent| parent.folder.is_none()) {
            let up = openat(folder, c"..", FOLDER, Mode::empty())
                .map_err(|error| Trouble::System("open the folder of", error))?;
            let identity =
                Meta::of(up.as_fd()).map_err(|error| Trouble::System("look at the folder of", error))?.identity;
            let parent = self.stack.last_mut().filter(|parent| parent.identity == identity).ok_or_else(moved)?;
            parent.folder = Some(up);
        }
        let path = self.path_of(&level.name);
        self.finish(folder.as_fd(), &level.finish, &path)
    }

    /// The path of an entry in the folder on top.
    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for level in self.stack.iter().skip(1) {
            path.extend_from_slice(&level.name);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn folder(&mut self, name: &[u8], entry: &mut Incoming) -> Result<(), Trouble> {
        let key = c_name(name)?;
        let mut opened = None;
        for _ in 0..2 {
            match mkdirat(self.top()?, &key, PRIVATE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(Trouble::System("make the folder", error)),
            }
            match openat(self.top()?, &key, FOLDER, Mode::empty()) {
                Ok(folder) => {
                    opened = Some(folder);
                    break;
                }
                // Something else has its name: it is replaced.
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    unlinkat(self.top()?, &key, AtFlags::empty()).map_err(|error| Trouble::System("replace", error))?;
                }
                Err(error) => return Err(Trouble::System("open the folder", error)),
            }
        }
        let folder = opened.ok_or(Trouble::System("open the folder", Errno::NOTDIR))?;
        let meta = Meta::of(folder.as_fd()).map_err(|error| Trouble::System("look at the folder", error))?;
        self.enter(name, folder, &meta, Finish::of(entry))
    }

    fn file(&mut self, name: &[u8], entry: &mut Incoming, reader: &mut Reader<'_>) -> Result<(), Trouble> {
        let key = c_name(name)?;
        let (file, temporary) = self.create_temporary()?;
        let result = self.fill(file.as_fd(), entry, reader).and_then(|()| {
            let path = std::mem::take(&mut entry.path);
            self.finish(file.as_fd(), &Finish::of(entry), &path)?;
            match renameat(self.top()?, &temporary, self.top()?, &key) {
                // An empty folder may be replaced; one with something in it is not thrown away.
                Err(Errno::ISDIR) => unlinkat(self.top()?, &key, AtFlags::REMOVEDIR)
                    .and_then(|()| renameat(self.top_fd()?, &temporary, self.top_fd()?, &key))
                    .map_err(|error| Trouble::System("replace the folder", error)),
                result => result.map_err(|error| Trouble::System("give its name to", error)),
            }
        });
        if result.is_err()
            && let Ok(folder) = self.top()
        {
            // The first error is the one to tell of.
            let _ = unlinkat(folder, &temporary, AtFlags::empty());
        }
        result
    }

    fn top_fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.top().map_err(|_| Errno::BADF)
    }

    fn create_temporary(&self) -> Result<(OwnedFd, CString), Trouble> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for number in 0..TEMPORARY_TRIES {
            let name = c_name(format!("{TEMPORARY}.{number}").as_bytes())?;
            match openat(self.top()?, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((file, name)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Trouble::System("create", error)),
            }
        }
        Err(Trouble::System("create", Errno::EXIST))
    }

    /// Writes the content of a file, each piece where it belongs.
    fn fill(&mut self, file: BorrowedFd<'_>, entry: &Incoming, reader: &mut Reader<'_>) -> Result<(), Trouble> {
        let write = |error| Trouble::System("write", error);
        let whole = [(0, entry.size)];
        let extents = entry.extents.as_deref().unwrap_or(&whole);
        for (offset, length) in extents {
            if entry.extents.is_some() {
                seek(file, SeekFrom::Start(*offset)).map_err(write)?;
            }
            let mut left = *length;
            while left > 0 {
                self.go_on()?;
                let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                let read = reader.content(self.buffer.get_mut(..most).unwrap_or_default())?;
                left = left.checked_sub(read as u64).filter(|_| read > 0).ok_or(Trouble::System("write", Errno::IO))?;
                let mut rest = self.buffer.get(..read).unwrap_or_default();
                while !rest.is_empty() {
                    match rustix::io::write(file, rest) {
                        Ok(0) => return Err(write(Errno::IO)),
                        Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(write(error)),
                    }
                }
            }
        }
        if entry.extents.is_some() {
            ftruncate(file, entry.size).map_err(write)?;
        }
        Ok(())
    }

    /// Gives an open file or folder its owner, permissions, attributes and time, in the order in which none undoes another.
    fn finish(&mut self, file: BorrowedFd<'_>, finish: &Finish, path: &[u8]) -> Result<(), Trouble> {
        let mut mode = finish.mode;
        if let Some((uid, gid)) = finish.owner {
            let owned = self.give(path, uid, gid, |uid, gid| fchown(file, Some(uid), Some(gid)));
            if !owned {
                mode &= 0o1777;
            }
        }
        if finish.only_these_rights {
            attributes::remove_access_list(file)
                .map_err(|error| Trouble::System("remove the access list of", error))?;
        }
        let mut refused = attributes::set(file, &finish.attributes, Turn::BeforeMode);
        fchmod(file, Mode::from_raw_mode(mode)).map_err(|error| Trouble::System("set the permissions of", error))?;
        refused.extend(attributes::set(file, &finish.attributes, Turn::AfterMode));
        for (name, error) in refused {
            self.attributes.add(path, format!("Its extended attribute `{name}` could not be set: {error}"));
        }
        if let Some(mtime) = finish.mtime {
            futimens(file, &times(mtime)).map_err(|error| Trouble::System("set the time of", error))?;
        }
        Ok(())
    }

    /// Gives an entry its owner. False when it belongs to somebody else now.
    fn give(&mut self, path: &[u8], uid: u64, gid: u64, change: impl FnOnce(Uid, Gid) -> Result<(), Errno>) -> bool {
        let (Ok(user), Ok(group)) = (u32::try_from(uid), u32::try_from(gid)) else {
            self.owners.add(path, format!("Its owner {uid}:{gid} is no number that this system has"));
            return false;
        };
        // All bits set means nobody: the system call would take it for "leave as it is".
        if self.restore_owner && user != u32::MAX && group != u32::MAX {
            return match change(Uid::from_raw(user), Gid::from_raw(group)) {
                Ok(()) => true,
                Err(error) => {
                    self.owners.add(path, format!("Its owner {uid}:{gid} could not be restored: {error}"));
                    false
                }
            };
        }
        if user == rustix::process::geteuid().as_raw() && group == rustix::process::getegid().as_raw() {
            return true;
        }
        if !self.no_owner {
            self.owners.add(path, format!("Its owner {uid}:{gid} was not restored, as only root can do that"));
        }
        false
    }

    /// Makes an entry that is no file or folder; what has its name already is replaced.
    fn make(
        &self,
        name: &CString,
        attempt: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Trouble> {
        let folder = self.top()?;
        let result = match make(folder) {
            Err(Errno::EXIST) => unlinkat(folder, name, AtFlags::empty())
                .or_else(|error| match error {
                    Errno::ISDIR => unlinkat(folder, name, AtFlags::REMOVEDIR),
                    error => Err(error),
                })
                .and_then(|()| make(folder)),
            result => result,
        };
        result.map_err(|error| Trouble::System(attempt, error))
    }

    fn symlink(&mut self, name: &[u8], entry: &Incoming) -> Result<(), Trouble> {
        let key = c_name(name)?;
        let target = c_name(&entry.target)?;
        self.make(&key, "make the link", |folder| symlinkat(&target, folder, &key))?;
        let folder =
            self.top()?.try_clone_to_owned().map_err(|_| Trouble::System("open the folder of", Errno::MFILE))?;
        self.give(&entry.path, entry.uid, entry.gid, |uid, gid| {
            chownat(&folder, &key, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        });
        utimensat(&folder, &key, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Trouble::System("set the time of", error))
    }

    fn hardlink(&mut self, name: &[u8], entry: &Incoming) -> Result<(), Trouble> {
        let key = c_name(name)?;
        let of_target = |trouble: Trouble| match trouble {
            Trouble::Refused(problem) => {
                Trouble::Refused(format!("is a hard link to `{}`, which {problem}", lossy(&entry.target)))
            }
            trouble => trouble,
        };
        let parts = components(&entry.target).map_err(of_target)?;
        let Some((target, folders)) = parts.split_last() else {
            return Err(Trouble::Refused("is a hard link to the target itself".to_owned()));
        };
        let there = self.find(folders).map_err(of_target)?;
        let target = c_name(target)?;
        if Meta::at(there.as_fd(), &target) == Err(Errno::NOENT) {
            let target = lossy(&entry.target);
            return Err(Trouble::Refused(format!("is a hard link to `{target}`, which does not come before it")));
        }
        if components(&entry.path)? == parts {
            return Ok(());
        }
        self.make(&key, "make the hard link", |folder| linkat(&there, &target, folder, &key, AtFlags::empty()))
    }

    /// Opens the folder with these names.
    fn find(&self, folders: &[&[u8]]) -> Result<OwnedFd, Trouble> {
        let root = self.stack.first().and_then(|root| root.folder.as_ref());
        let root = root.ok_or(Trouble::System("open the folder of", Errno::BADF))?;
        let mut folder = root.try_clone().map_err(|_| Trouble::System("open the folder of", Errno::MFILE))?;
        for name in folders {
            folder = openat(&folder, &c_name(name)?, FOLDER, Mode::empty()).map_err(|error| match error {
                Errno::NOENT => Trouble::Refused("does not come before it".to_owned()),
                error => through_link(error, name),
            })?;
        }
        Ok(folder)
    }

    fn special(&mut self, name: &[u8], entry: &Incoming) -> Result<(), Trouble> {
        let key = c_name(name)?;
        let (kind, device) = match entry.kind {
            Kind::Char => (FileType::CharacterDevice, makedev(entry.rdev.0, entry.rdev.1)),
            Kind::Block => (FileType::BlockDevice, makedev(entry.rdev.0, entry.rdev.1)),
            _ => (FileType::Fifo, 0),
        };
        let made = self.make(&key, "make", |folder| mknodat(folder, &key, kind, Mode::RUSR | Mode::WUSR, device));
        match made {
            Ok(()) => {}
            Err(Trouble::System(_, error @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL))) => {
                self.specials
                    .add(&entry.path, format!("It is a device or a named pipe, which could not be made: {error}"));
                return Ok(());
            }
            Err(trouble) => return Err(trouble),
        }
        let folder =
            self.top()?.try_clone_to_owned().map_err(|_| Trouble::System("open the folder of", Errno::MFILE))?;
        let owned = self.give(&entry.path, entry.uid, entry.gid, |uid, gid| {
            chownat(&folder, &key, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        });
        let mode = if owned { entry.mode } else { entry.mode & 0o1777 };
        // It was made just now in a private folder, so it is no link that would be followed.
        chmodat(&folder, &key, Mode::from_raw_mode(mode), AtFlags::empty())
            .map_err(|error| Trouble::System("set the permissions of", error))?;
        utimensat(&folder, &key, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Trouble::System("set the time of", error))
    }
}

/// The time of the last access is not in the tarball and is left to the system.
fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanos.into() },
    }
}
