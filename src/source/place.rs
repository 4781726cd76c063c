//! One restored file, private and whole: it appears under its name only when all of it is on the
//! disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{SourceError, Target};

/// Where the artifact `name` goes in `target`; none when the target is not a folder. A name comes
/// from a storage, and must not lead out of the folder.
pub(super) fn file_in(target: &Target, name: &str) -> Result<Option<PathBuf>, SourceError> {
    match target {
        Target::Folder(folder) if Path::new(name).file_name() == Some(name.as_ref()) => {
            Ok(Some(folder.join(name)))
        }
        Target::Folder(_) => Err(SourceError::Unsuitable(format!(
            "`{name}` is not a file name: the manifest is damaged"
        ))),
        Target::Database(_) | Target::Command(_) => Ok(None),
    }
}

/// Refuses a file that is there.
pub(super) fn refuse_existing(file: &Path, overwrite: bool) -> Result<(), SourceError> {
    match file.symlink_metadata() {
        Ok(_) if !overwrite => Err(SourceError::NotEmpty(file.display().to_string())),
        Ok(metadata) if metadata.is_dir() => {
            Err(io_error("replace", file)(ErrorKind::IsADirectory.into()))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("look at", file)(error)),
    }
}

/// Writes all of `input` to `file`, which only its owner may read, by way of a temporary name. The
/// number of bytes.
pub(super) fn write_private(
    file: &Path,
    input: &mut dyn Read,
    overwrite: bool,
) -> Result<u64, SourceError> {
    refuse_existing(file, overwrite)?;
    let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else {
        return Err(io_error("create", file)(ErrorKind::InvalidInput.into()));
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(io_error("create", folder))?;
    let temporary = Temporary::create(folder, &name.to_string_lossy())?;
    let bytes = temporary.fill(input)?;
    temporary.publish(file, overwrite)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("write", folder))?;
    Ok(bytes)
}

/// A private file that is deleted when it is dropped, unless it was published.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// A new, empty file beside where `name` will be. One that an earlier process of the same id
    /// left behind is replaced.
    fn create(folder: &Path, name: &str) -> Result<Self, SourceError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".{name}.partial-{}-{number}", std::process::id()));
        let create =
            || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = create().or_else(|error| {
            if error.kind() != ErrorKind::AlreadyExists {
                return Err(error);
            }
            std::fs::remove_file(&path)?;
            create()
        });
        match file {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(io_error("create", &path)(error)),
        }
    }

    /// Writes all of `input`, and waits for the disk.
    fn fill(&self, input: &mut dyn Read) -> Result<u64, SourceError> {
        let mut buffer = vec![0; 128 * 1024];
        let mut file = &self.file;
        let mut bytes = 0;
        loop {
            let count = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(SourceError::Stream(error)),
            };
            file.write_all(buffer.get(..count).unwrap_or_default())
                .map_err(io_error("write", &self.path))?;
            bytes += count as u64;
        }
        self.file.sync_all().map_err(io_error("write", &self.path))?;
        Ok(bytes)
    }

    fn publish(&self, file: &Path, overwrite: bool) -> Result<(), SourceError> {
        use rustix::fs::{CWD, RenameFlags};
        if overwrite {
            return std::fs::rename(&self.path, file).map_err(io_error("create", file));
        }
        match rustix::fs::renameat_with(CWD, &self.path, CWD, file, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => Err(SourceError::NotEmpty(file.display().to_string())),
            // This file system cannot refuse by itself.
            Err(
                rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP,
            ) => {
                refuse_existing(file, false)?;
                std::fs::rename(&self.path, file).map_err(io_error("create", file))
            }
            Err(error) => Err(io_error("create", file)(error.into())),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After it was published there is nothing under this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A private file in `folder` with all of `input` in it and without a name: however we end, nothing
/// of it is left behind.
pub(super) fn write_nameless(folder: &Path, input: &mut dyn Read) -> Result<File, SourceError> {
    let temporary = Temporary::create(folder, "spool")?;
    std::fs::remove_file(&temporary.path).map_err(io_error("delete", &temporary.path))?;
    temporary.fill(input)?;
    temporary.file.try_clone().map_err(io_error("read", &temporary.path))
}

/// What the system said of a path.
fn io_error(
    attempt: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> SourceError + use<> {
    let path = path.display().to_string();
    move |error| SourceError::Io { attempt, path, error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::{SourceError, Target, file_in, write_private};

    #[test]
    fn a_name_does_not_lead_out_of_the_folder() {
        let folder = Target::Folder("/to".into());
        assert_eq!(file_in(&folder, "db.pgdump").unwrap(), Some("/to/db.pgdump".into()));
        for name in ["../x", "/x", "a/b", "..", ".", "", "x/"] {
            assert!(file_in(&folder, name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_appears_whole_private_and_never_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deep/db.pgdump");
        assert_eq!(write_private(&file, &mut &b"one"[..], false).unwrap(), 3);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(
            write_private(&file, &mut &b"two"[..], false),
            Err(SourceError::NotEmpty(_))
        ));
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        write_private(&file, &mut &b"two"[..], true).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
    }

    #[test]
    fn damage_leaves_what_was_there_and_nothing_else() {
        struct Damaged;
        impl std::io::Read for Damaged {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::InvalidData.into())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.out");
        write_private(&file, &mut &b"one"[..], false).unwrap();
        assert!(matches!(write_private(&file, &mut Damaged, true), Err(SourceError::Stream(_))));
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
