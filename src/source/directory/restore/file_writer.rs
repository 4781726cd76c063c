//! Files written under a temporary name, finished, and renamed into place.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, SeekFrom, ftruncate, openat, renameat, renameat_with, seek,
    unlinkat,
};
use rustix::io::Errno;

use super::finish::{Finish, Finisher};
use crate::archive::error::{ArchiveError, Problem};
use crate::archive::proof::{Content, Proof, read_content};
use crate::model::Cancel;
use crate::source::directory::meta::{Identity, Meta};

/// What a file is called until it is complete, with a dot and a number.
pub(super) const TEMPORARY: &str = ".holdfast-restore";
/// How many names of that kind are tried: the tarball itself may have some.
const TEMPORARY_TRIES: u32 = 1_000;

/// Whether an incomplete file may have this name. An entry of such a name is restored while no
/// other file is being written: each would take the other's name.
pub(super) fn is_temporary(name: &[u8]) -> bool {
    let number = name.strip_prefix(TEMPORARY.as_bytes()).and_then(|rest| rest.strip_prefix(b"."));
    number.is_some_and(|digits| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// A folder that is being filled. Whoever lets go of it last finishes it.
pub(super) struct OpenFolder {
    pub(super) folder: OwnedFd,
    pub(super) identity: Identity,
    /// What it gets, and its path, once nothing more comes into it.
    pub(super) last: Mutex<Option<(Finish, Vec<u8>)>>,
}

impl OpenFolder {
    pub(super) fn new(folder: OwnedFd, identity: Identity) -> Arc<Self> {
        Arc::new(Self { folder, identity, last: Mutex::new(None) })
    }
}

/// A file to be written.
pub(super) struct FileJob {
    pub(super) folder: Arc<OpenFolder>,
    pub(super) name: CString,
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    /// Where the content belongs.
    pub(super) pieces: Vec<(u64, u64)>,
    pub(super) content: Vec<u8>,
    pub(super) proof: Option<Proof>,
    pub(super) finish: Finish,
}

impl FileJob {
    /// About how much memory it takes.
    pub(super) fn cost(&self) -> usize {
        let attributes: usize =
            self.finish.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.content.len() + attributes + self.path.len() + self.pieces.len() * 16
    }
}

/// Puts files under their names, from any thread.
pub(super) struct FileWriter<'a> {
    pub(super) finisher: Finisher,
    pub(super) cancel: &'a Cancel,
    /// Nothing may be there under the name of what is restored.
    pub(super) new: bool,
    counter: AtomicU64,
}

impl<'a> FileWriter<'a> {
    pub(super) fn new(finisher: Finisher, cancel: &'a Cancel, new: bool) -> Self {
        Self { finisher, cancel, new, counter: AtomicU64::new(0) }
    }

    /// Makes a file of what `fill` writes and finishes it; only then it gets its name.
    pub(super) fn write(
        &self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        finish: &Finish,
        fill: impl FnOnce(BorrowedFd<'_>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let (file, temporary) = self.create_temporary(folder, name)?;
        let result = fill(file.as_fd())
            .and_then(|()| self.finisher.finish(file.as_fd(), finish, path))
            .and_then(|()| self.rename_into_place(folder, &temporary, name));
        if result.is_err() {
            // The first error is the one to tell of.
            let _ = unlinkat(folder, &temporary, AtFlags::empty());
        }
        result
    }

    /// Makes an empty file that only its owner can use, under another name than `besides`.
    pub(super) fn create_temporary(
        &self,
        folder: BorrowedFd<'_>,
        besides: &CStr,
    ) -> Result<(OwnedFd, CString), Problem> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..TEMPORARY_TRIES {
            let number = self.counter.fetch_add(1, Ordering::Relaxed);
            let Ok(name) = CString::new(format!("{TEMPORARY}.{number}")) else { break };
            if name.as_c_str() == besides {
                continue;
            }
            match openat(folder, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((file, name)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Problem::System("create", error)),
            }
        }
        Err(Problem::System("create", Errno::EXIST))
    }

    fn rename_into_place(
        &self,
        folder: BorrowedFd<'_>,
        temporary: &CStr,
        name: &CStr,
    ) -> Result<(), Problem> {
        let named = |error| Problem::System("give its name to", error);
        if self.new {
            return match renameat_with(folder, temporary, folder, name, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => Err(Problem::Taken),
                // A file system that does not know how: then a look before has to do.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match Meta::at(folder, name) {
                    Err(Errno::NOENT) => renameat(folder, temporary, folder, name).map_err(named),
                    Ok(_) => Err(Problem::Taken),
                    Err(error) => Err(named(error)),
                },
                result => result.map_err(named),
            };
        }
        match renameat(folder, temporary, folder, name) {
            // An empty folder may be replaced; one with something in it is not thrown away.
            Err(Errno::ISDIR) => unlinkat(folder, name, AtFlags::REMOVEDIR)
                .and_then(|()| renameat(folder, temporary, folder, name))
                .map_err(|error| Problem::System("replace the folder", error)),
            result => result.map_err(named),
        }
    }

    /// Lets go of a folder, and finishes it when nobody else has it.
    pub(super) fn release(&self, open: Arc<OpenFolder>) -> Result<(), ArchiveError> {
        let Some(open) = Arc::into_inner(open) else { return Ok(()) };
        let last = open.last.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some((finish, path)) = last else { return Ok(()) };
        self.finisher
            .finish(open.folder.as_fd(), &finish, &path)
            .map_err(|problem| problem.at(&path))
    }

    pub(super) fn write_small(&self, file: &mut FileJob, buffer: &mut [u8]) -> Result<(), Problem> {
        let (size, proof) = (file.size, file.proof.take());
        let mut rest = file.content.as_slice();
        let mut read = |buffer: &mut [u8]| {
            let (part, after) = rest.split_at_checked(buffer.len()).unwrap_or((rest, &[]));
            for (place, byte) in buffer.iter_mut().zip(part) {
                *place = *byte;
            }
            rest = after;
            Ok(part.len())
        };
        let pieces = file.pieces.iter().copied();
        self.write(file.folder.folder.as_fd(), &file.name, &file.path, &file.finish, |out| {
            let mut filling = ContentWriter::new(out);
            read_content(&mut read, pieces, size, proof, self.cancel, buffer, |piece| {
                filling.take(&piece)
            })?;
            filling.end(size)
        })
    }
}

/// Writes a content, piece by piece, into an empty file.
pub(super) struct ContentWriter<'a> {
    file: BorrowedFd<'a>,
    sparse: bool,
}

impl<'a> ContentWriter<'a> {
    pub(super) fn new(file: BorrowedFd<'a>) -> Self {
        Self { file, sparse: false }
    }

    pub(super) fn take(&mut self, piece: &Content<'_>) -> Result<(), Problem> {
        let write = |error| Problem::System("write", error);
        let mut rest = match piece {
            Content::Data(data) => *data,
            Content::Hole(length) => {
                self.sparse = true;
                let length = i64::try_from(*length).map_err(|_| write(Errno::FBIG))?;
                return seek(self.file, SeekFrom::Current(length)).map(drop).map_err(write);
            }
        };
        while !rest.is_empty() {
            match rustix::io::write(self.file, rest) {
                Ok(0) => return Err(write(Errno::IO)),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(write(error)),
            }
        }
        Ok(())
    }

    pub(super) fn end(self, size: u64) -> Result<(), Problem> {
        if self.sparse {
            ftruncate(self.file, size).map_err(|error| Problem::System("write", error))?;
        }
        Ok(())
    }
}
