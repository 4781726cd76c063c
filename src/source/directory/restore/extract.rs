//! A tarball put back into a folder, as carefully as it was read.
//!
//! Nothing is written outside of the target: a name that is absolute or has `..` in it is refused,
//! each folder on the way to an entry is opened in its open parent, and a link is never followed. A
//! file appears under its name only when it is complete. What a folder is told last, its
//! permissions and time, it gets when the tarball has left it and its last file is written; a
//! tarball in another order than a walk's may come back to it, so it is remembered how it was.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, fchmod, fsync, linkat, makedev, mkdirat, mknodat, openat,
    symlinkat, syncfs, unlinkat,
};
use rustix::io::Errno;

use super::errors::restore_error;
use super::file_writer::{ContentWriter, FileJob, FileWriter, OpenFolder, is_temporary};
use super::finish::{Finish, Finisher};
use super::folders::{EntryError, FOLDER, Folder, Folders, PRIVATE, c_name, through_link};
use super::marker::{self, MARKER, Marker};
use super::write_pool::{ClosePool, SMALL, THREADS, WritePool};
use crate::archive::checked_index::components;
use crate::archive::entry_stream::{EntryStream, NextEntry};
use crate::archive::error::{ArchiveError, Problem};
use crate::archive::proof::{Content, Proof, read_content, read_entry};
use crate::archive::reader::{TarEntry, TarReader};
use crate::archive::{Kind, lossy};
use crate::model::{Cancel, Remarks};
use crate::source::directory::meta::Meta;
use crate::source::under_way::Recorded;
use crate::source::{RestoredFiles, SourceError};

/// How much is written at a time.
const BUFFER: usize = 256 << 10;

/// How an [`extract`] is done.
pub(super) struct ExtractOptions<'a> {
    pub(super) marker: Marker,
    pub(super) finisher: Finisher,
    /// The same restore was begun before: its mark and its incomplete files are there.
    pub(super) resumed: bool,
    /// Whatever is in the way of an entry is an error.
    pub(super) new: bool,
    pub(super) cancel: &'a Cancel,
    pub(super) recorded: &'a Recorded,
}

/// Restores what `entries` has to the folder at `place`, which is made when it is missing. `after`
/// is done when all is there, with the open folder.
///
/// # Errors
/// Whatever stopped it; then what is in the folder is incomplete, and the error says so.
pub(super) fn extract(
    entries: &mut EntryStream<'_>,
    place: &Path,
    manner: ExtractOptions<'_>,
    after: impl FnOnce(BorrowedFd<'_>) -> Result<(u64, Remarks), SourceError>,
) -> Result<(Remarks, RestoredFiles), SourceError> {
    let text = place.display().to_string();
    let system = |attempt, error: Errno| SourceError::Io {
        attempt,
        path: text.clone(),
        error: error.into(),
    };
    let made = place.symlink_metadata().is_err();
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(|error| {
        SourceError::Io { attempt: "make the folder", path: text.clone(), error }
    })?;
    // Whoever named the target may have named a link to it.
    let folder = openat(CWD, place, FOLDER.difference(OFlags::NOFOLLOW), Mode::empty())
        .map_err(|error| system("open the folder", error))?;
    let meta = Meta::of(folder.as_fd()).map_err(|error| system("look at the folder", error))?;
    // Nobody else looks in, or puts links in, before the permissions are right.
    fchmod(&folder, PRIVATE).map_err(|error| system("make private", error))?;
    let mut finish = Finish { mtime: None, ..Finish::as_is(&meta) };
    finish.keep_default_list(folder.as_fd());
    let root = Folder {
        name: Vec::new(),
        identity: meta.identity,
        open: Some(OpenFolder::new(folder, meta.identity)),
        finish,
    };
    let writer = FileWriter::new(manner.finisher, manner.cancel, manner.new);
    let recorded = manner.recorded;
    let after = |folder: BorrowedFd<'_>| {
        let done = after(folder)?;
        syncfs(folder).map_err(|error| system("write to disk", error))?;
        recorded.is_complete();
        Ok(done)
    };
    let result = restore(entries, root, made, &writer, &manner.marker, manner.resumed, after);
    let (files, mut remarks) = result.map_err(|stop| match stop {
        Stop::ArchiveError(failure) => restore_error(failure, &text),
        Stop::After(error) => error,
    })?;
    writer.finisher.tell(&mut remarks);
    Ok((remarks, files))
}

enum Stop {
    ArchiveError(ArchiveError),
    After(SourceError),
}

impl From<ArchiveError> for Stop {
    fn from(failure: ArchiveError) -> Self {
        Self::ArchiveError(failure)
    }
}

fn restore(
    entries: &mut EntryStream<'_>,
    root: Folder,
    made: bool,
    writer: &FileWriter<'_>,
    marker: &Marker,
    resumed: bool,
    after: impl FnOnce(BorrowedFd<'_>) -> Result<(u64, Remarks), SourceError>,
) -> Result<(RestoredFiles, Remarks), Stop> {
    let folder = root
        .open
        .as_ref()
        .ok_or(Problem::System("open", Errno::BADF))
        .map_err(|problem| problem.at(b""))?;
    let folder = folder.folder.as_fd();
    let held = if resumed { marker::take_over(folder) } else { Ok(None) };
    let _held = match held.map_err(|problem| problem.at(b""))? {
        Some(held) => {
            marker::remove_stale(folder)
                .map_err(|error| Problem::System("remove incomplete files from", error).at(b""))?;
            held
        }
        None => marker::put(writer, folder, marker).map_err(|problem| problem.at(b""))?,
    };
    let pool = WritePool::new(writer);
    std::thread::scope(|scope| {
        let _closing = ClosePool(&pool);
        for _ in 0..THREADS {
            std::thread::Builder::new()
                .name("restore".to_owned())
                .spawn_scoped(scope, || pool.work())
                .map_err(|error| {
                    let error = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
                    Problem::System("start the threads that write to", error).at(b"")
                })?;
        }
        let mut extractor = Extractor {
            cancel: writer.cancel,
            writer,
            pool: &pool,
            resumed,
            made,
            marked: true,
            folders: Folders::new(root, writer, &pool),
            buffer: vec![0; BUFFER],
            files: RestoredFiles::default(),
        };
        extractor.run(entries)?;
        extractor.end(after)
    })
}

struct Extractor<'a> {
    cancel: &'a Cancel,
    writer: &'a FileWriter<'a>,
    pool: &'a WritePool<'a>,
    resumed: bool,
    /// Whether the target was made just now.
    made: bool,
    /// Whether the mark of the restore is still there: an entry may have its name.
    marked: bool,
    folders: Folders<'a>,
    buffer: Vec<u8>,
    files: RestoredFiles,
}

impl Extractor<'_> {
    fn run(&mut self, entries: &mut EntryStream<'_>) -> Result<(), ArchiveError> {
        let mut path = Vec::new();
        let at = |wrong, path: &[u8]| match wrong {
            EntryError::Here(problem) => problem.at(path),
            EntryError::There(failure) => failure,
        };
        while let Some(mut next) = entries.next(&mut path)? {
            if self.cancel.is_cancelled() {
                return Err(Problem::Cancelled.at(&path));
            }
            let touched =
                self.entry(&mut next, &mut entries.reader).map_err(|wrong| at(wrong, &path))?;
            self.files.entries += u64::from(touched);
            if next.incoming.kind == Kind::File {
                self.files.bytes = self.files.bytes.saturating_add(next.incoming.size);
            }
        }
        path.clear();
        self.folders.leave_all().map_err(|wrong| at(wrong, &path))?;
        self.pool.wait_for_all()
    }

    /// Everything is written: the rest is done, and the root gets what it is told last.
    fn end(
        self,
        after: impl FnOnce(BorrowedFd<'_>) -> Result<(u64, Remarks), SourceError>,
    ) -> Result<(RestoredFiles, Remarks), Stop> {
        let Self { writer, marked, mut files, folders, .. } = self;
        let root = folders.into_root().and_then(|root| root.open.map(|open| (open, root.finish)));
        let (open, finish) =
            root.ok_or(Problem::System("open", Errno::BADF)).map_err(|problem| problem.at(b""))?;
        let folder = open.folder.as_fd();
        let (deleted, remarks) = after(folder).map_err(Stop::After)?;
        files.deleted = deleted;
        let done = || -> Result<(), Problem> {
            if marked {
                writer.finisher.finish(folder, &finish, b".")?;
                marker::remove(folder)?;
            }
            writer.finisher.finish(folder, &finish, b".")?;
            fsync(folder).map_err(|error| Problem::System("write to disk", error))
        };
        done().map_err(|problem| problem.at(b""))?;
        Ok((files, remarks))
    }

    /// Restores an entry. False when it is a folder that was there and only leads to what was asked
    /// for: it stays as it was.
    fn entry(
        &mut self,
        next: &mut NextEntry,
        reader: &mut TarReader<'_>,
    ) -> Result<bool, EntryError> {
        let entry = &mut next.incoming;
        let path = std::mem::take(&mut entry.path);
        let parts = components(&path)?;
        // As it is named in what waits and in remarks, however the tarball writes it.
        entry.path = parts.join(&b'/');
        let Some((name, folders)) = parts.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(Problem::Refused("would replace the target itself".to_owned()).into());
            }
            let root = self.folders.leave_all()?;
            if next.leads && !self.made && !self.resumed {
                return Ok(false);
            }
            if let Some(root) = root {
                root.finish = self.writer.finisher.of(entry);
            }
            return Ok(true);
        };
        if parts.iter().any(|part| is_temporary(part)) {
            self.pool.wait_for_all()?;
        } else {
            // The same path may come again, and only the last counts.
            self.pool.wait_for(&entry.path)?;
        }
        self.folders.go_to(folders, next.early)?;
        if self.marked && folders.is_empty() && *name == MARKER.as_bytes() {
            // Rare, and right: from here on an interrupted restore is not known as one.
            marker::remove(self.folders.top()?)?;
            self.marked = false;
        }
        match entry.kind {
            Kind::Directory => return self.folder(name, entry, next.leads),
            Kind::File => self.file(name, entry, next.proof.take(), reader),
            Kind::Symlink => self.symlink(name, entry),
            Kind::Hardlink => self.hardlink(name, entry),
            Kind::Fifo | Kind::Char | Kind::Block => self.special(name, entry),
        }?;
        Ok(true)
    }

    /// Makes a folder, or enters the one that is there. With `leads` that one stays as it is; false
    /// then.
    fn folder(
        &mut self,
        name: &[u8],
        entry: &mut TarEntry,
        leads: bool,
    ) -> Result<bool, EntryError> {
        let key = c_name(name)?;
        let early = self.folders.was_early(&self.folders.path_of(name));
        let mut opened = None;
        for _ in 0..2 {
            let made = match mkdirat(self.folders.top()?, &key, PRIVATE) {
                Ok(()) => true,
                Err(Errno::EXIST) if self.writer.new && !early => return Err(Problem::Taken.into()),
                Err(Errno::EXIST) => false,
                Err(error) => return Err(Problem::System("make the folder", error).into()),
            };
            match openat(self.folders.top()?, &key, FOLDER, Mode::empty()) {
                Ok(folder) => {
                    opened = Some((folder, made));
                    break;
                }
                // Something else has its name: it is replaced.
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    unlinkat(self.folders.top()?, &key, AtFlags::empty())
                        .map_err(|error| Problem::System("replace", error))?;
                }
                Err(error) => return Err(Problem::System("open the folder", error).into()),
            }
        }
        let (folder, made) = opened.ok_or(Problem::System("open the folder", Errno::NOTDIR))?;
        let meta = self.folders.meta_of(folder.as_fd(), made)?;
        if self.resumed && !made {
            marker::remove_stale(folder.as_fd())
                .map_err(|error| Problem::System("remove incomplete files from", error))?;
        }
        // One that an interrupted restore left is not as it was before that.
        let stays = leads && !made && !early && !self.resumed;
        let finish = if stays {
            Finish { mtime: None, ..Finish::as_is(&meta) }
        } else {
            self.writer.finisher.of(entry)
        };
        self.folders.enter(name, folder, &meta, finish)?;
        Ok(!stays)
    }

    fn file(
        &mut self,
        name: &[u8],
        entry: &mut TarEntry,
        proof: Option<Proof>,
        reader: &mut TarReader<'_>,
    ) -> Result<(), EntryError> {
        let key = c_name(name)?;
        let finish = self.writer.finisher.of(entry);
        let stored: u64 = entry.pieces().map(|(_, length)| length).sum();
        let pieces = entry.extents.as_ref().map_or(1, Vec::len);
        let beside: usize =
            finish.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        let memory = usize::try_from(stored)
            .unwrap_or(usize::MAX)
            .saturating_add(pieces * 16)
            .saturating_add(beside);
        let indexed = proof.is_some();
        let read = |reader: &mut TarReader<'_>, buffer: &mut [u8]| {
            reader
                .content(buffer)
                .map_err(|error| if indexed { Problem::damaged(error) } else { error.into() })
        };
        if memory <= SMALL && !is_temporary(name) {
            let mut content = Vec::with_capacity(usize::try_from(stored).unwrap_or_default());
            read_content(
                |buffer| read(reader, buffer),
                [(0, stored)].into_iter(),
                stored,
                None,
                self.cancel,
                &mut self.buffer,
                |piece| {
                    if let Content::Data(data) = piece {
                        content.extend_from_slice(data);
                    }
                    Ok(())
                },
            )?;
            let folder = Arc::clone(self.folders.top_open()?);
            let (path, size) = (std::mem::take(&mut entry.path), entry.size);
            let pieces = entry.extents.take().unwrap_or_else(|| vec![(0, size)]);
            return Ok(self.pool.submit(FileJob {
                folder,
                name: key,
                path,
                size,
                pieces,
                content,
                proof,
                finish,
            })?);
        }
        let folder = Arc::clone(self.folders.top_open()?);
        Ok(self.writer.write(folder.folder.as_fd(), &key, &entry.path, &finish, |file| {
            let mut filling = ContentWriter::new(file);
            read_entry(reader, entry, proof, self.cancel, &mut self.buffer, |piece| {
                filling.take(&piece)
            })?;
            filling.end(entry.size)
        })?)
    }

    /// Makes an entry that is no file or folder; what has its name already is replaced.
    fn make(
        &self,
        name: &CString,
        attempt: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<(), Problem> {
        let folder = self.folders.top()?;
        let result = match make(folder) {
            Err(Errno::EXIST) if self.writer.new => return Err(Problem::Taken),
            Err(Errno::EXIST) => unlinkat(folder, name, AtFlags::empty())
                .or_else(|error| match error {
                    Errno::ISDIR => unlinkat(folder, name, AtFlags::REMOVEDIR),
                    error => Err(error),
                })
                .and_then(|()| make(folder)),
            result => result,
        };
        result.map_err(|error| Problem::System(attempt, error))
    }

    fn symlink(&mut self, name: &[u8], entry: &mut TarEntry) -> Result<(), EntryError> {
        let key = c_name(name)?;
        let target = c_name(&entry.target)?;
        let finish = self.writer.finisher.of(entry);
        self.make(&key, "make the link", |folder| symlinkat(&target, folder, &key))?;
        Ok(self.writer.finisher.finish_at(
            self.folders.top()?,
            &key,
            entry.kind,
            &finish,
            &entry.path,
        )?)
    }

    fn hardlink(&mut self, name: &[u8], entry: &TarEntry) -> Result<(), EntryError> {
        let key = c_name(name)?;
        let of_target = |problem: Problem| match problem {
            Problem::Refused(problem) => Problem::Refused(format!(
                "is a hard link to `{}`, which {problem}",
                lossy(&entry.target)
            )),
            problem => problem,
        };
        let parts = components(&entry.target).map_err(of_target)?;
        let Some((target, folders)) = parts.split_last() else {
            return Err(Problem::Refused("is a hard link to the target itself".to_owned()).into());
        };
        self.pool.wait_for(&parts.join(&b'/'))?;
        let there = self.find(folders).map_err(of_target)?;
        let target = c_name(target)?;
        if Meta::at(there.as_fd(), &target) == Err(Errno::NOENT) {
            let target = lossy(&entry.target);
            let problem = format!("is a hard link to `{target}`, which does not come before it");
            return Err(Problem::Refused(problem).into());
        }
        if components(&entry.path)? == parts {
            return Ok(());
        }
        Ok(self.make(&key, "make the hard link", |folder| {
            linkat(&there, &target, folder, &key, AtFlags::empty())
        })?)
    }

    /// Opens the folder with these names.
    fn find(&self, folders: &[&[u8]]) -> Result<OwnedFd, Problem> {
        let mut folder = self
            .folders
            .root()?
            .folder
            .try_clone()
            .map_err(|_| Problem::System("open the folder of", Errno::MFILE))?;
        for name in folders {
            folder =
                openat(&folder, &c_name(name)?, FOLDER, Mode::empty()).map_err(
                    |error| match error {
                        Errno::NOENT => Problem::Refused("does not come before it".to_owned()),
                        error => through_link(error, name),
                    },
                )?;
        }
        Ok(folder)
    }

    fn special(&mut self, name: &[u8], entry: &mut TarEntry) -> Result<(), EntryError> {
        let key = c_name(name)?;
        let (kind, device) = match entry.kind {
            Kind::Char => (FileType::CharacterDevice, makedev(entry.rdev.0, entry.rdev.1)),
            Kind::Block => (FileType::BlockDevice, makedev(entry.rdev.0, entry.rdev.1)),
            _ => (FileType::Fifo, 0),
        };
        let finish = self.writer.finisher.of(entry);
        let made = self.make(&key, "make", |folder| {
            mknodat(folder, &key, kind, Mode::RUSR | Mode::WUSR, device)
        });
        match made {
            Ok(()) => Ok(self.writer.finisher.finish_at(
                self.folders.top()?,
                &key,
                entry.kind,
                &finish,
                &entry.path,
            )?),
            Err(Problem::System(
                _,
                error @ (Errno::PERM | Errno::ACCESS | Errno::NOTSUP | Errno::INVAL),
            )) => {
                self.writer.finisher.special_refused(&entry.path, error);
                Ok(())
            }
            Err(problem) => Err(problem.into()),
        }
    }
}
