//! One restored file, private and whole: it appears under its name only when all of it is on the
//! disk.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{RestoreOptions, SourceError, Target};

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

/// Whether a file that is written is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// By us, until it is closed.
    Ours,
    /// By another process, which goes on.
    Theirs,
}

/// Locks a file that is not complete, for as long as it is open: then nobody takes it for one that
/// a process left which has ended.
///
/// # Errors
/// When the file system has no locks.
pub(super) fn hold(file: &File) -> Result<Hold, Errno> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Hold::Ours),
        Err(Errno::WOULDBLOCK) => Ok(Hold::Theirs),
        Err(error) => Err(error),
    }
}

/// The files in `folder` with such a name that a process left behind which has ended.
pub(super) fn leftovers(folder: &Path, is_one: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_one));
    named.map(|entry| entry.path()).filter(|path| is_left(path)).collect()
}

fn is_left(path: &Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(nofollow).open(path);
    is_file && file.is_ok_and(|file| hold(&file) == Ok(Hold::Ours))
}

/// Whether this is the name of an incomplete file that becomes `name`: `.NAME.partial-PID-NUMBER`.
fn is_partial(name: &str, found: &str) -> bool {
    let rest = found.strip_prefix('.').and_then(|found| found.strip_prefix(name));
    let numbers = rest.and_then(|rest| rest.strip_prefix(".partial-")?.split_once('-'));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(pid, number)| digits(pid) && digits(number))
}

/// Whether both files have the same bytes.
pub(super) fn are_same(one: &Path, other: &Path) -> std::io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    loop {
        let count = one.read(&mut a)?;
        if count == 0 {
            return Ok(true);
        }
        let (Some(a), Some(b)) = (a.get(..count), b.get_mut(..count)) else { return Ok(false) };
        match other.read_exact(b) {
            Ok(()) if a == b => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Refuses a file that is there, unless it may be what an interrupted restore put there.
pub(super) fn refuse_occupied(file: &Path, options: &RestoreOptions) -> Result<(), SourceError> {
    refuse_existing(file, options.overwrite || options.recorded.has_started())
}

/// Refuses a file that is there.
fn refuse_existing(file: &Path, overwrite: bool) -> Result<(), SourceError> {
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
    options: &RestoreOptions,
) -> Result<u64, SourceError> {
    refuse_occupied(file, options)?;
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
    match temporary.publish(file, options.overwrite) {
        // All that the interrupted restore had to do.
        Err(SourceError::NotEmpty(_))
            if options.recorded.has_started()
                && are_same(&temporary.path, file).unwrap_or_default() => {}
        published => published?,
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("write", folder))?;
    Ok(bytes)
}

/// A private file that is deleted when it is dropped, unless it was published.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// A new, empty file beside where `name` will be. Those that processes left behind which have
    /// ended are removed.
    fn create(folder: &Path, name: &str) -> Result<Self, SourceError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        for left in leftovers(folder, |found| is_partial(name, found)) {
            match std::fs::remove_file(&left) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("remove", &left)(error));
                }
                _ => {}
            }
        }
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".{name}.partial-{}-{number}", std::process::id()));
            let mut options = OpenOptions::new();
            match options.read(true).write(true).create_new(true).mode(0o600).open(&path) {
                // Where there are no locks nobody takes it for left behind either.
                Ok(file) if hold(&file) != Ok(Hold::Theirs) => return Ok(Self { path, file }),
                Ok(_) => {}
                // A process of this id writes there, in another container.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error("create", &path)(error)),
            }
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
            Err(Errno::EXIST) => Err(SourceError::NotEmpty(file.display().to_string())),
            // This file system cannot refuse by itself.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
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

    use super::{RestoreOptions, SourceError, Target, Temporary, file_in, write_private};

    fn over() -> RestoreOptions {
        RestoreOptions { overwrite: true, ..RestoreOptions::default() }
    }

    #[test]
    fn only_what_an_ended_process_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let under_way = Temporary::create(folder.path(), "db").unwrap();
        let others =
            [".db.partial-x-0", ".other.partial-1-0", ".db.partial-1-0.old", "db.partial-1-0"];
        others.iter().for_each(|name| std::fs::write(path(name), "mine").unwrap());
        std::fs::write(path(".db.partial-1-0"), "left").unwrap();
        std::fs::create_dir(path(".db.partial-2-0")).unwrap();
        write_private(&path("db"), &mut &b"new"[..], &RestoreOptions::default()).unwrap();
        assert!(others.iter().all(|name| path(name).exists()));
        assert!(under_way.path.exists() && path(".db.partial-2-0").exists());
        assert!(!path(".db.partial-1-0").exists());
    }

    #[test]
    fn an_interrupted_restore_goes_on_over_its_own_file_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("db");
        let options = RestoreOptions {
            recorded: crate::source::under_way::Recorded::started(),
            ..RestoreOptions::default()
        };
        write_private(&file, &mut &b"one"[..], &options).unwrap();
        write_private(&file, &mut &b"one"[..], &options).unwrap();
        for other in [b"two", b"ones".as_slice()] {
            let refused = write_private(&file, &mut &other[..], &options);
            assert!(matches!(refused, Err(SourceError::NotEmpty(_))));
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

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
        assert_eq!(write_private(&file, &mut &b"one"[..], &RestoreOptions::default()).unwrap(), 3);
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(
            write_private(&file, &mut &b"two"[..], &RestoreOptions::default()),
            Err(SourceError::NotEmpty(_))
        ));
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        write_private(&file, &mut &b"two"[..], &over()).unwrap();
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
        write_private(&file, &mut &b"one"[..], &RestoreOptions::default()).unwrap();
        assert!(matches!(write_private(&file, &mut Damaged, &over()), Err(SourceError::Stream(_))));
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
