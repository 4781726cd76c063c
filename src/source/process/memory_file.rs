//! Files that a child can open by way of us, and that have no name of their own.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use crate::source::SourceError;

/// The path by which a child of the same user opens a file that we hold open, even one that has no
/// name. It is good for as long as the file is held.
pub fn path_for_children(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

/// A text that a child, and nobody else, can read as a file while this value lives: a password
/// file. It is in memory, never on a disk, and not inherited: the child opens it through our entry
/// in `/proc`, for which it needs to be the same user.
pub struct MemoryFile {
    file: File,
}

impl MemoryFile {
    /// A file with this content, which its owner only may read.
    ///
    /// # Errors
    /// When the system has no memory files.
    pub fn new(name: &str, content: &[u8]) -> Result<Self, SourceError> {
        let failed = |error| SourceError::Io {
            attempt: "create the memory file",
            path: name.to_owned(),
            error,
        };
        let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        // libpq ignores a password file that others could read.
        rustix::fs::fchmod(&fd, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        let mut file = File::from(fd);
        file.write_all(content).map_err(failed)?;
        Ok(Self { file })
    }

    /// The path by which a child opens it.
    pub fn path(&self) -> PathBuf {
        path_for_children(&self.file)
    }
}
