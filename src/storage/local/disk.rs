//! The file system under a local storage: every call here may block.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use rustix::fs::{CWD, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use crate::model::utc;
use crate::storage::{Object, StorageError, StorageErrorKind, named, salt};

/// The end of the name of a file that is not finished.
const PART: &str = ".part";
/// The end of the name of a file that keeps others from publishing the same key, where the file
/// system cannot.
const CLAIM: &str = ".claim";
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
                | Errno::NOTCONN,
            ) => (StorageErrorKind::Unavailable, "; check the mount"),
            _ => (StorageErrorKind::Failed, ""),
        };
        StorageError::new(kind, self.address(), attempt, format!("{error}{advice}"))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
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
            self.check_no_link(&inner, attempt)?;
            self.make_one(&inner, &path, attempt)?;
            path = inner;
        }
        Ok(path)
    }

    /// An error when `path`, a folder below the root, is a symbolic link. A walk follows none, so
    /// what is kept behind one would be in no listing.
    fn check_no_link(&self, path: &Path, attempt: &str) -> Result<(), StorageError> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => Err(StorageError::failed(
                self.address(),
                attempt,
                format!(
                    "`{}` is a symbolic link, and nothing is kept behind one. Move what it points \
                     to in its place, mount it there, or set the storage's `path` to another \
                     folder",
                    path.display()
                ),
            )),
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(self.error(attempt, &error)),
        }
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

    /// Opens a file in `folder` with `options`, after making the folder.
    fn open_in(
        &self,
        folder: &str,
        name: &str,
        options: &OpenOptions,
        attempt: &str,
    ) -> Result<File, StorageError> {
        for _ in 1..FOLDER_ATTEMPTS {
            match options.open(self.make_folder(folder, attempt)?.join(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => return result.map_err(|error| self.error(attempt, &error)),
            }
        }
        options
            .open(self.make_folder(folder, attempt)?.join(name))
            .map_err(|error| self.error(attempt, &error))
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
        match fs::symlink_metadata(self.path(key)) {
            Ok(_) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(self.error(&format!("look up `{key}`"), &error)),
        }
    }

    /// Opens an object for reading. Returns its size too.
    pub(super) fn open(&self, key: &str) -> Result<(File, u64), StorageError> {
        let attempt = format!("read `{key}`");
        let flags = flags(OFlags::NOFOLLOW | OFlags::NONBLOCK);
        match OpenOptions::new().read(true).custom_flags(flags).open(self.path(key)) {
            Ok(file) => {
                let metadata = file.metadata().map_err(|error| self.error(&attempt, &error))?;
                if metadata.is_file() {
                    Ok((file, metadata.len()))
                } else {
                    Err(self.not_found(key))
                }
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
        match fs::symlink_metadata(self.path(key)) {
            Ok(metadata) if metadata.is_file() => {
                object(key.to_owned(), &metadata).map_err(|error| self.error(&attempt, &error))
            }
            Ok(_) => Err(self.not_found(key)),
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
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => self.sync_parent(&path, &attempt)?,
            Err(error) if is_missing(&error) => self.check_root(&attempt)?,
            Err(error) => return Err(self.error(&attempt, &error)),
        }
        self.tidy(path.parent());
        Ok(())
    }

    /// Removes `folder` and what is above it, as long as it is empty and below the root.
    fn tidy(&self, folder: Option<&Path>) {
        let mut folder = folder;
        while let Some(path) = folder {
            // Removing fails for a folder that is not empty, and an empty one that stays does no
            // harm.
            if path == self.root || !path.starts_with(&self.root) || fs::remove_dir(path).is_err() {
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
            self.check_no_link(&path, &attempt)?;
        }
        self.walk_folder(prefix, each)
    }

    /// The entries of a folder are held in memory and sorted; a snapshot has few.
    fn walk_folder(
        &self,
        prefix: &str,
        each: &mut dyn FnMut(Object) -> bool,
    ) -> Result<bool, StorageError> {
        let attempt = format!("list {}", named(prefix));
        let fail = |error: io::Error| self.error(&attempt, &error);
        let mut entries = Vec::new();
        for (name, kind) in self.entries(prefix)? {
            if name.starts_with('.') {
                continue;
            }
            if kind.is_dir() {
                // So a folder stands among its siblings where its keys do.
                entries.push(format!("{prefix}{name}/"));
            } else if kind.is_file() {
                entries.push(format!("{prefix}{name}"));
            }
        }
        entries.sort_unstable();
        for key in entries {
            let go_on = if key.ends_with('/') {
                self.walk_folder(&key, each)?
            } else {
                match fs::symlink_metadata(self.path(&key)) {
                    Ok(metadata) if metadata.is_file() => {
                        each(object(key, &metadata).map_err(fail)?)
                    }
                    Ok(_) => true,
                    // Deleted since the folder was read.
                    Err(error) if is_missing(&error) => true,
                    Err(error) => return Err(fail(error)),
                }
            };
            if !go_on {
                return Ok(false);
            }
        }
        Ok(true)
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
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags(OFlags::NOFOLLOW));
        let file = self.open_in("", CLOCK, &options, attempt)?;
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
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags(OFlags::NOFOLLOW));
        let file = self.open_in(folder, LOCK, &options, &attempt)?;
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

fn object(key: String, metadata: &fs::Metadata) -> io::Result<Object> {
    let modified = modified(metadata)
        .map_err(|error| io::Error::new(error.kind(), format!("`{key}`: {error}")))?;
    Ok(Object { key, size: metadata.len(), modified })
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

/// Flags as the standard library takes them.
fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
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

/// Renames `from` to `to`, in one folder, and refuses when `to` exists.
///
/// Not every file system knows such a rename (NFS does not, nor do many FUSE and SMB ones). Then a
/// hard link is made, which never replaces. Where there are no hard links either (vfat, exFAT), a
/// claim file excludes other writers of this program while it is looked whether `to` exists.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rename_no_replace(from, to) {
        Err(error) if is_unknown(&error) => {}
        result => return result,
    }
    match link_and_unlink(from, to) {
        Err(error) if is_unknown(&error) => {}
        result => return result,
    }
    rename_claimed(from, to)
}

/// Whether a file system says that it does not have such a call. `EPERM` is what Linux says of a
/// hard link on vfat.
fn is_unknown(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::PERM | Errno::MLINK)
    )
}

fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

fn link_and_unlink(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    // The object stands; a second name that cannot be removed is swept later.
    let _ = fs::remove_file(from);
    Ok(())
}

fn rename_claimed(from: &Path, to: &Path) -> io::Result<()> {
    struct Claim(PathBuf);
    impl Drop for Claim {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let claim = to.with_file_name(format!(".{name}{CLAIM}"));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&claim)?;
    let _claim = Claim(claim);
    match fs::symlink_metadata(to) {
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == ErrorKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::path::Path;

    use super::{link_and_unlink, rename_claimed, rename_new, rename_no_replace};

    #[test]
    fn every_way_to_rename_refuses_an_existing_target_and_leaves_nothing_else() {
        let ways: [fn(&Path, &Path) -> std::io::Result<()>; 4] =
            [rename_new, rename_no_replace, link_and_unlink, rename_claimed];
        for way in ways {
            let folder = tempfile::tempdir().unwrap();
            let (from, to) = (folder.path().join(".a.part"), folder.path().join("a"));
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            assert_eq!(way(&from, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&to).unwrap(), "old");
            fs::remove_file(&to).unwrap();
            way(&from, &to).unwrap();
            assert_eq!(fs::read_to_string(&to).unwrap(), "new");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
