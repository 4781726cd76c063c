//! A private folder beside a file that is to be, for what is not yet complete.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::engine::error::EngineError;

/// The hidden folder of a file in the making, locked while this lives, removed with all that is in
/// it when it is dropped. What a process that was killed left is removed by the next that makes the
/// same file.
pub(in crate::engine) struct Staging {
    folder: PathBuf,
    output: PathBuf,
    overwrite: bool,
    _lock: File,
}

impl Staging {
    /// Makes and locks the folder for `output`.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the output exists and is not to be overwritten, or another
    /// process makes it.
    pub(super) fn new(output: &Path, overwrite: bool) -> Result<Self, EngineError> {
        let refused = |problem: String| Err(EngineError::Request(problem));
        let Some(name) = output.file_name().and_then(|name| name.to_str()) else {
            return refused(format!("`{}` is not the name of a file", output.display()));
        };
        match std::fs::symlink_metadata(output) {
            Ok(found) if found.is_dir() => {
                return refused(format!("`{}` is a folder", output.display()));
            }
            Ok(_) if !overwrite => {
                return refused(format!(
                    "`{}` exists. Pass `--overwrite` to replace it",
                    output.display()
                ));
            }
            _ => {}
        }
        let parent = output
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let folder = parent.join(format!(".{name}.export"));
        let failed = |attempt: &'static str| {
            let path = folder.clone();
            move |error: io::Error| EngineError::File { attempt, path, error }
        };
        let found = match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => true,
            made => made.map(|()| false).map_err(failed("create the folder"))?,
        };
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed();
        let lock = OpenOptions::new().read(true).custom_flags(flags).open(&folder);
        let lock = lock.map_err(failed("open the folder"))?;
        // Whoever owns it could exchange what is in it. One that was just made is ours, whomever
        // the file system shows as its owner.
        if found
            && lock.metadata().map_err(failed("look up"))?.uid()
                != rustix::process::geteuid().as_raw()
        {
            return refused(format!(
                "`{}` belongs to another user: remove it, or choose another folder",
                folder.display()
            ));
        }
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return refused(format!(
                    "Another export to `{}` is under way. Wait for it to end",
                    output.display()
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock")(error)),
        }
        let staging =
            Self { folder: folder.clone(), output: output.to_owned(), overwrite, _lock: lock };
        staging.empty().map_err(failed("empty"))?;
        Ok(staging)
    }

    /// Removes what a dead process left.
    fn empty(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// A path in the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Free bytes there.
    pub(super) fn free_bytes(&self) -> Result<u64, EngineError> {
        let space = rustix::fs::statvfs(&self.folder).map_err(|error| EngineError::File {
            attempt: "ask for the free space of",
            path: self.folder.clone(),
            error: error.into(),
        })?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// The file to be, under a name of its own, readable by its owner only.
    pub(super) fn create(&self) -> Result<File, EngineError> {
        let path = self.path("packed");
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.map_err(|error| EngineError::File { attempt: "create", path, error })
    }

    /// Makes the file durable, and gives it its name.
    pub(super) fn publish(self, file: &File) -> Result<(), EngineError> {
        let failed = |error: io::Error| EngineError::File {
            attempt: "write",
            path: self.output.clone(),
            error,
        };
        file.sync_all().map_err(failed)?;
        let packed = self.path("packed");
        if self.overwrite {
            std::fs::rename(&packed, &self.output).map_err(failed)?;
        } else {
            match rustix::fs::renameat_with(CWD, &packed, CWD, &self.output, RenameFlags::NOREPLACE)
            {
                // Some file systems have no such rename. There it was looked at the beginning.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    std::fs::rename(&packed, &self.output).map_err(failed)?;
                }
                renamed => renamed.map_err(|error| failed(error.into()))?,
            }
        }
        let parent = self.folder.parent().unwrap_or(Path::new("."));
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match File::open(parent).and_then(|parent| parent.sync_all()) {
            // Some file systems cannot sync a folder, and say so.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS)
                ) =>
            {
                Ok(())
            }
            synced => synced.map_err(failed),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next export to the same file.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
