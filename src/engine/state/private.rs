//! Private files and folders of the state folder.

use std::io::Read;
use std::path::Path;

use crate::engine::error::EngineError;
use crate::model::Irregular;

/// The largest local file that is read as a whole, in bytes.
const LARGEST: u64 = 1 << 20;

/// Bytes that are free where `folder` lies, for who is not root.
pub(in crate::engine) fn free_bytes(folder: &Path) -> Result<u64, EngineError> {
    let space = rustix::fs::statvfs(folder).map_err(|error| EngineError::File {
        attempt: "measure the free space of",
        path: folder.to_owned(),
        error: error.into(),
    })?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The text of a small local file: state, or keys.
///
/// # Errors
/// When it cannot be read, or has more than 1 MiB.
pub(in crate::engine) fn read_small(file: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        let problem = "it has more than 1 MiB";
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, problem));
    }
    Ok(text)
}

/// Makes a folder, with its parents, that only its owner may look into.
pub(in crate::engine) fn make_private_folder(path: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::{DirBuilderExt as _, lchown};
    let mut builder = std::fs::DirBuilder::new();
    let failed =
        |error| EngineError::State { attempt: "create the folder", path: path.to_owned(), error };
    if let Some(parent) = path.parent() {
        builder.recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    match builder.recursive(false).create(path) {
        Ok(()) => {
            if let Some((user, group)) = owner_of_the_folder_of(path) {
                let _ = lchown(path, Some(user), Some(group));
            }
            Ok(())
        }
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// What stands under the names of the state folder's files and is none, in words.
pub(in crate::engine) fn irregular_files(state_dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(state_dir).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let is_ours = name == "node" || name.starts_with("catalog.db") || name.ends_with(".lock");
        let kind = entry.file_type().ok().and_then(Irregular::of);
        if let Some(kind) = kind.filter(|_| is_ours) {
            found.push(format!("`{}` is {kind}, not a file: move it away", path.display()));
        }
    }
    found.sort();
    found
}

/// Makes an empty private file, unless there is one.
pub(in crate::engine) fn make_private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, fchown};
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            if let Some((user, group)) = owner_of_the_folder_of(path) {
                // Through the file that was just made, so that nothing else changes hands which
                // somebody puts under its name.
                let _ = fchown(&file, Some(user), Some(group));
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whose what root makes in the state of another user has to be: a service that runs as this user
/// goes on after root had a look.
fn owner_of_the_folder_of(path: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let folder = std::fs::metadata(path.parent()?).ok()?;
    (rustix::process::geteuid().is_root() && folder.uid() != 0)
        .then(|| (folder.uid(), folder.gid()))
}
