//! Renaming that never replaces, on file systems that know how and on those that do not.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

/// The end of the name of a file that keeps others from publishing the same key, where the file
/// system cannot.
pub(super) const CLAIM: &str = ".claim";

/// Renames `from` to `to`, in one folder, and refuses when `to` exists.
///
/// Not every file system knows such a rename (NFS does not, nor do many FUSE and SMB ones). Then a
/// hard link is made, which never replaces. Where there are no hard links either (vfat, exFAT), a
/// claim file excludes other writers of this program while it is looked whether `to` exists.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
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
