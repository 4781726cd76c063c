//! The file system under a local storage: every call here may block.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use rustix::fs::{Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use super::rename::{CLAIM, rename_new};
use crate::model::{Irregular, expect_file, open_own, utc};
use crate::storage::{Object, StorageError, StorageErrorKind, named, salt};

/// The end of the name of a file that is not finished.
const PART: &str = ".part";
/// The file that is touched to ask for the time.
const CLOCK: &str = ".clock";
/// The file that is locked in a folder.
const LOCK: &str = ".lock";
/// A folder may go away between being made and being used, when another process deletes the last
/// object in it. So often it is made again.
const FOLDER_ATTEMPTS: usize = 10;

/// The folder of a local storage.
#[derive(Debug)]
pub(super) struct Disk {
    root: PathBuf,
}

/// A file that is being written beside its place. Dropping it removes it.
pub(super) struct Draft {
    /// The object it will be.
    pub(super) key: String,
    pub(super) file: File,
    temporary: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now is swept later.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Disk {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn address(&self) -> String {
        self.root.display().to_string()
    }

    /// What `error` means to the caller, who attempted `attempt`.
    pub(super) fn error(&self, attempt: &str, error: &io::Error) -> StorageError {
        if Irregular::within(error).is_some() {
            let problem = format!("{error}; put the file back in its place, or move this away");
            return StorageError::new(StorageErrorKind::NotAFile, self.address(), attempt, problem);
        }
        let (kind, advice) = match Errno::from_io_error(error) {
            Some(Errno::NOSPC | Errno::DQUOT) => {
                (StorageErrorKind::Full, "; free some space there")
            }
            Some(Errno::ACCESS | Errno::PERM) => (
                StorageErrorKind::Denied,
                "; check that this user owns the folder and what is in it",
            ),
            Some(Errno::ROFS) => (StorageErrorKind::Denied, "; mount it writable"),
            Some(
                Errno::STALE
                | Errno::TIMEDOUT
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::CONNREFUSED
                | Errno::CONNRESET
                | Errno::REMOTEIO
                | Errno::NOTCONN,
            ) => (StorageErrorKind::Unavailable, "; check the mount"),
            // Of this machine, and nothing is said of what is stored.
            Some(Errno::MFILE | Errno::NFILE) => {
                (StorageErrorKind::Unavailable, "; raise the limit of open files")
            }
            Some(Errno::NOMEM | Errno::AGAIN | Errno::INTR) => (StorageErrorKind::Unavailable, ""),
            _ => (StorageErrorKind::Failed, ""),
        };
        StorageError::new(kind, self.address(), attempt, format!("{error}{advice}"))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    /// The path of an object, whose folders, as far as they are there, are folders.
    fn object_path(&self, key: &str, attempt: &str) -> Result<PathBuf, StorageError> {
        let mut path = self.root.clone();
        let mut names = key.split('/').peekable();
        while let Some(name) = names.next() {
            path.push(name);
            if names.peek().is_some() {
                self.check_folder(&path, attempt)?;
            }
        }
        Ok(path)
    }

    /// The folder that the root is in.
    fn above(&self) -> &Path {
        match self.root.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => &self.root,
        }
    }

    /// An error when the root is neither there nor could be made: then nothing can be said of what
    /// is in it.
    fn check_root(&self, attempt: &str) -> Result<(), StorageError> {
        match fs::metadata(&self.root) {
            Ok(root) if root.is_dir() => Ok(()),
            Ok(_) => Err(self.no_root(attempt, "it is not a folder")),
            Err(error) if error.kind() == ErrorKind::NotFound => match fs::metadata(self.above()) {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => Err(self.no_root(
                    attempt,
                    "neither this folder nor the one that it is in exists; mount its disk, or make \
                     the folder",
                )),
                Err(error) => Err(self.error(attempt, &error)),
            },
            Err(error) => Err(self.error(attempt, &error)),
        }
    }

    fn no_root(&self, attempt: &str, problem: &str) -> StorageError {
        StorageError::failed(self.address(), attempt, problem)
    }

    /// Makes `folder` and what is missing above it, up to the root, so that all of it survives a
    /// crash. Returns its path.
    fn make_folder(&self, folder: &str, attempt: &str) -> Result<PathBuf, StorageError> {
        self.check_root(attempt)?;
        let mut path = self.root.clone();
        self.make_one(&path, self.above(), attempt)?;
        for name in folder.split('/').filter(|name| !name.is_empty()) {
            let inner = path.join(name);
            self.check_folder(&inner, attempt)?;
            self.make_one(&inner, &path, attempt)?;
            path = inner;
        }
        Ok(path)
    }

    /// An error when `path`, a folder below the root, is something else. A walk follows no link, so
    /// what is kept behind one would be in no listing.
    fn check_folder(&self, path: &Path, attempt: &str) -> Result<(), StorageError> {
        let kind = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(metadata) => Irregular::of(metadata.file_type()),
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(self.error(attempt, &error)),
        };
        let shown = path.display();
        let problem = match kind {
            Some(Irregular::Link) => format!(
                "`{shown}` is a symbolic link, and nothing is kept behind one. Move what it points \
                 to in its place, mount it there, or set the storage's `path` to another folder"
            ),
            Some(kind) => format!("`{shown}` is {kind}, not a folder"),
            None => format!("`{shown}` is a file, not a folder"),
        };
        Err(StorageError::failed(self.address(), attempt, problem))
    }

    fn make_one(&self, path: &Path, parent: &Path, attempt: &str) -> Result<(), StorageError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => sync_folder(parent).map_err(|error| self.error(attempt, &error)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            // A folder that vanished is made again by the caller, and a root on a read-only disk
            // may be there all the same.
            Err(_) if path.is_dir() => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.error(attempt, &error)),
        }
    }

    /// Opens a file in `folder` with `options`, after making the folder. One that root makes
    /// belongs to whom the folder does, who may not be kept out of it.
    fn open_in(
        &self,
        folder: &str,
        name: &str,
        options: &mut OpenOptions,
        attempt: &str,
    ) -> Result<File, StorageError> {
        let mut open = || {
            let path = self.make_folder(folder, attempt)?;
            let file = open_own(&path.join(name), options);
            Ok(file.and_then(|file| hand_over(&path, file)))
        };
        for _ in 1..FOLDER_ATTEMPTS {
            match open()? {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => return result.map_err(|error| self.error(attempt, &error)),
            }
        }
        open()?.map_err(|error| self.error(attempt, &error))
    }

    /// A new hidden file beside the place of `key`.
    pub(super) fn draft(&self, key: &str) -> Result<Draft, StorageError> {
        let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
        let salt = salt()?;
        // The name helps a person who looks; file names end at 255 bytes.
        let hidden = if name.len() <= 200 {
            format!(".{name}.{salt}{PART}")
        } else {
            format!(".{salt}{PART}")
        };
        let file = self.open_in(
            folder,
            &hidden,
            OpenOptions::new().write(true).create_new(true).mode(0o600),
            &format!("write `{key}`"),
        )?;
        let temporary = self.path(folder).join(hidden);
        Ok(Draft { key: key.to_owned(), file, temporary, target: self.path(key), published: false })
    }

    /// Makes the draft durable, then visible under its key, which must be new.
    pub(super) fn publish_new(&self, mut draft: Draft) -> Result<(), StorageError> {
        let attempt = format!("finish `{}`", draft.key);
        draft.file.sync_all().map_err(|error| self.error(&attempt, &error))?;
        match rename_new(&draft.temporary, &draft.target) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(StorageError::already_exists(self.address(), &draft.key));
            }
            Err(error) => return Err(self.error(&attempt, &error)),
        }
        draft.published = true;
        self.sync_parent(&draft.target, &attempt)
    }

    /// Makes the draft durable, then visible under its key, in the place of what was there.
    pub(super) fn publish_over(&self, mut draft: Draft) -> Result<(), StorageError> {
        let attempt = format!("write `{}`", draft.key);
        match fs::symlink_metadata(&draft.target) {
            Err(error) if is_missing(&error) => {}
            found => found
                .and_then(|metadata| expect_file(&metadata))
                .map_err(|error| self.error(&attempt, &error))?,
        }
        draft.file.sync_all().map_err(|error| self.error(&attempt, &error))?;
        fs::rename(&draft.temporary, &draft.target)
            .map_err(|error| self.error(&attempt, &error))?;
        draft.published = true;
        self.sync_parent(&draft.target, &attempt)
    }

    fn sync_parent(&self, path: &Path, attempt: &str) -> Result<(), StorageError> {
        sync_folder(path.parent().unwrap_or(&self.root))
            .map_err(|error| self.error(attempt, &error))
    }

    /// Whether there is anything under the name of `key`.
    pub(super) fn exists(&self, key: &str) -> Result<bool, StorageError> {
        let attempt = format!("look up `{key}`");
        match fs::symlink_metadata(self.object_path(key, &attempt)?) {
            Ok(_) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(self.error(&attempt, &error)),
        }
    }

    /// Opens an object for reading. Returns its size too.
    pub(super) fn open(&self, key: &str) -> Result<(File, u64), StorageError> {
        let attempt = format!("read `{key}`");
        let path = self.object_path(key, &attempt)?;
        match open_own(&path, OpenOptions::new().read(true)) {
            Ok(file) => {
                let metadata = file.metadata().map_err(|error| self.error(&attempt, &error))?;
                Ok((file, metadata.len()))
            }
            Err(error) if is_missing(&error) => {
                self.check_root(&attempt)?;
                Err(self.not_found(key))
            }
            Err(error) => Err(self.error(&attempt, &error)),
        }
    }

    pub(super) fn stat(&self, key: &str) -> Result<Object, StorageError> {
        let attempt = format!("look up `{key}`");
        match fs::symlink_metadata(self.object_path(key, &attempt)?) {
            Ok(metadata) => expect_file(&metadata)
                .and_then(|()| object(key.to_owned(), &metadata))
                .map_err(|error| self.error(&attempt, &error)),
            Err(error) if is_missing(&error) => {
                self.check_root(&attempt)?;
                Err(self.not_found(key))
            }
            Err(error) => Err(self.error(&attempt, &error)),
        }
    }

    fn not_found(&self, key: &str) -> StorageError {
        StorageError::not_found(self.address(), key)
    }

    pub(super) fn delete(&self, key: &str) -> Result<(), StorageError> {
        let attempt = format!("delete `{key}`");
        let path = self.object_path(key, &attempt)?;
        let found = fs::symlink_metadata(&path).and_then(|metadata| expect_file(&metadata));
        match found.and_then(|()| fs::remove_file(&path)) {
            Ok(()) => self.sync_parent(&path, &attempt)?,
            Err(error) if is_missing(&error) => self.check_root(&attempt)?,
            Err(error) => return Err(self.error(&attempt, &error)),
        }
        self.tidy(path.parent());
        Ok(())
    }

    /// Removes `folder` and what is above it, as long as it is empty and below the root. One with a
    /// dot in its name stays: it is in the place of an object.
    fn tidy(&self, folder: Option<&Path>) {
        let mut folder = folder;
        while let Some(path) = folder {
            let is_ours = path != self.root
                && path.starts_with(&self.root)
                && path.file_name().is_some_and(|name| !name.as_encoded_bytes().contains(&b'.'));
            // Removing fails for a folder that is not empty, and an empty one that stays does no
            // harm.
            if !is_ours || fs::remove_dir(path).is_err() {
                return;
            }
            folder = path.parent();
        }
    }

    /// Hands every object under `prefix` to `each`, in the order of keys, until it returns false.
    /// Returns whether it came to the end.
    pub(super) fn walk(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(Object) -> bool,
    ) -> Result<bool, StorageError> {
        let attempt = format!("list {}", named(prefix));
        self.check_root(&attempt)?;
        let mut path = self.root.clone();
        for name in prefix.split('/').filter(|name| !name.is_empty()) {
            path.push(name);
            self.check_folder(&path, &attempt)?;
        }
        Ok(self.walk_folder(prefix, each)?.unwrap_or(true))
    }

    /// The entries of a folder are held in memory and sorted; a snapshot has few. None when there
    /// are none.
    fn walk_folder(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(Object) -> bool,
    ) -> Result<Option<bool>, StorageError> {
        let attempt = format!("list {}", named(prefix));
        let fail = |error: io::Error| self.error(&attempt, &error);
        let mut entries = Vec::new();
        for (name, kind) in self.entries(prefix)? {
            let is_own = name == LOCK || name == CLOCK;
            if name.starts_with('.') && (kind.is_file() || !is_own) {
                continue;
            }
            // So a folder stands among its siblings where its keys do.
            let slash = if kind.is_dir() { "/" } else { "" };
            entries.push(format!("{prefix}{name}{slash}"));
        }
        entries.sort_unstable();
        let any = !entries.is_empty();
        for key in entries {
            if key.ends_with('/')
                && let Some(go_on) = self.walk_folder(&key, each)?
            {
                if !go_on {
                    return Ok(Some(false));
                }
                continue;
            }
            let go_on = match fs::symlink_metadata(self.path(key.trim_end_matches('/'))) {
                Ok(metadata) => each(object(key, &metadata).map_err(fail)?),
                // Deleted since the folder was read.
                Err(error) if is_missing(&error) => true,
                Err(error) => return Err(fail(error)),
            };
            if !go_on {
                return Ok(Some(false));
            }
        }
        Ok(any.then_some(true))
    }

    /// The names in a folder; none when it is not there. A name that is not UTF-8 is nobody's key.
    fn entries(&self, prefix: &str) -> Result<Vec<(String, fs::FileType)>, StorageError> {
        let fail = |error: io::Error| self.error(&format!("list {}", named(prefix)), &error);
        let folder = match fs::read_dir(self.path(prefix)) {
            Ok(folder) => folder,
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut entries = Vec::new();
        for entry in folder {
            let entry = entry.map_err(fail)?;
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(fail(error)),
            };
            if let Ok(name) = entry.file_name().into_string() {
                entries.push((name, kind));
            }
        }
        Ok(entries)
    }

    /// Removes the unfinished files under `prefix` that were last written before `before`.
    pub(super) fn sweep(&self, prefix: &str, before: DateTime<Utc>) -> Result<u64, StorageError> {
        let attempt = format!("sweep unfinished files of {}", named(prefix));
        self.check_root(&attempt)?;
        self.object_path(prefix, &attempt)?;
        let before = SystemTime::from(before);
        let mut swept = 0_u64;
        let mut folders = vec![prefix.to_owned()];
        while let Some(folder) = folders.pop() {
            let path = self.path(folder.trim_end_matches('/'));
            // A folder that was made and never written into is a leftover too.
            let made = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
            let mut any = folder != prefix && made.is_ok_and(|made| made < before);
            for (name, kind) in self.entries(&folder)? {
                let hidden = name.starts_with('.');
                if kind.is_dir() && !hidden {
                    folders.push(format!("{folder}{name}/"));
                } else if kind.is_file()
                    && hidden
                    && (name.ends_with(PART) || name.ends_with(CLAIM))
                {
                    let path = self.path(&folder).join(&name);
                    let old = match fs::symlink_metadata(&path)
                        .and_then(|metadata| metadata.modified())
                    {
                        Ok(modified) => modified < before,
                        Err(error) if is_missing(&error) => false,
                        Err(error) => return Err(self.error(&attempt, &error)),
                    };
                    if old {
                        match fs::remove_file(&path) {
                            Ok(()) => swept = swept.saturating_add(1),
                            Err(error) if is_missing(&error) => {}
                            Err(error) => return Err(self.error(&attempt, &error)),
                        }
                        any = true;
                    }
                }
            }
            if any {
                self.tidy(Some(&path));
            }
        }
        Ok(swept)
    }

    pub(super) fn now(&self) -> Result<DateTime<Utc>, StorageError> {
        let attempt = "ask for the time";
        let fail = |error: io::Error| self.error(attempt, &error);
        // Always the same name, so that whoever dies in between leaves no more than one.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = self.open_in("", CLOCK, &mut options, attempt)?;
        // This sets the time by the clock of whoever keeps the file, which is the server for a
        // network share.
        let present = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        rustix::fs::futimens(
            &file,
            &Timestamps { last_access: present, last_modification: present },
        )
        .map_err(|error| fail(error.into()))?;
        file.metadata().and_then(|metadata| modified(&metadata)).map_err(fail)
    }

    pub(super) fn free_bytes(&self) -> Result<u64, StorageError> {
        let attempt = "ask for the free space";
        self.check_root(attempt)?;
        let path = if self.root.exists() { &self.root } else { self.above() };
        let space =
            rustix::fs::statvfs(path).map_err(|error| self.error(attempt, &error.into()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Locks `folder` against other writers. None where the file system has no locks.
    pub(super) fn lock(&self, folder: &str) -> Result<Option<File>, StorageError> {
        let attempt = format!("lock `{folder}`");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = self.open_in(folder, LOCK, &mut options, &attempt)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(StorageError::busy(self.address(), folder)),
            Err(TryLockError::Error(error)) => match Errno::from_io_error(&error) {
                Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(None),
                _ => Err(self.error(&attempt, &error)),
            },
        }
    }
}

fn hand_over(folder: &Path, file: File) -> io::Result<File> {
    let owner = fs::metadata(folder)?;
    if rustix::process::geteuid().is_root() && owner.uid() != 0 && file.metadata()?.uid() == 0 {
        fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(file)
}

fn object(key: String, metadata: &fs::Metadata) -> io::Result<Object> {
    let irregular = Irregular::of(metadata.file_type());
    let size = if irregular.is_none() { metadata.len() } else { 0 };
    let modified = modified(metadata)
        .map_err(|error| io::Error::new(error.kind(), format!("`{key}`: {error}")))?;
    Ok(Object { key, size, modified, irregular })
}

/// When a file was last written.
fn modified(metadata: &fs::Metadata) -> io::Result<DateTime<Utc>> {
    utc(metadata.modified()?).ok_or_else(|| {
        io::Error::new(
            ErrorKind::InvalidData,
            "its modification time is beyond the calendar; `touch` corrects it",
        )
    })
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Makes what was added to and removed from a folder durable. Some file systems (SMB, FUSE) cannot
/// sync a folder and say so; there its durability is theirs alone.
fn sync_folder(path: &Path) -> io::Result<()> {
    let result = File::open(path).and_then(|folder| folder.sync_all());
    match result {
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}
