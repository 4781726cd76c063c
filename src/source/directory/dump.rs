//! A walk written as a tarball and its index, side by side.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{OFlags, readlinkat};
use rustix::io::Errno;

use super::attributes::AttributeReader;
use super::entry::{Identity, Kind, Meta, Time};
use super::filter::Choice;
use super::index::{Entry, IndexWriter};
use super::owners::Owners;
use super::tarball::{Attribute, END, Member, padding};
use super::walk::{Found, Notes, Walk, is_gone, is_replaced, open_quietly};
use crate::model::{Cancel, Digester};
use crate::source::{Output, SourceError};

/// How much is read of a file at a time.
const BUFFER: usize = 256 << 10;
/// Bytes of names of files with several links that are remembered. A tree with more keeps every content, but those beyond it are
/// files of their own.
const LINKS_LIMIT: usize = 8 << 20;
/// What a remembered name costs beside its bytes.
const LINK_COST: usize = 112;

const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) symlinks: u64,
    pub(super) hardlinks: u64,
    /// Named pipes and devices.
    pub(super) others: u64,
    pub(super) bytes: u64,
    pub(super) skipped: u64,
    pub(super) changed: u64,
}

/// A file of which another name was stored.
struct Linked {
    path: Vec<u8>,
    size: u64,
    mtime: Time,
    /// Names of it that may still come.
    left: u32,
}

/// A folder that is stored only if something within it is.
struct Pending {
    path: Vec<u8>,
    meta: Meta,
    attributes: Vec<Attribute>,
}

/// Writes what a walk finds.
pub(super) struct Dumper<'a> {
    tar: Output,
    /// Bytes written to `tar`.
    offset: u64,
    index: IndexWriter<Output>,
    owners: Owners,
    attributes: AttributeReader,
    links: HashMap<Identity, Linked>,
    links_held: usize,
    links_full: bool,
    pending: Vec<Pending>,
    /// Header blocks of an entry.
    blocks: Vec<u8>,
    buffer: Vec<u8>,
    cancel: &'a Cancel,
    pub(super) counts: Counts,
    pub(super) notes: Notes,
}

/// Where an entry's headers begin and end in the stream.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    data_offset: u64,
}

impl<'a> Dumper<'a> {
    pub(super) fn new(tar: Output, index: Output, cancel: &'a Cancel) -> Result<Self, SourceError> {
        Ok(Self {
            tar,
            offset: 0,
            index: IndexWriter::new(index).map_err(SourceError::Stream)?,
            owners: Owners::of_this_system(),
            attributes: AttributeReader::new(),
            links: HashMap::new(),
            links_held: 0,
            links_full: false,
            pending: Vec::new(),
            blocks: Vec::new(),
            buffer: vec![0; BUFFER],
            cancel,
            counts: Counts::default(),
            notes: Notes::default(),
        })
    }

    /// Writes all that the walk finds, the root first.
    pub(super) fn run(&mut self, walk: &mut Walk<'_>) -> Result<(), SourceError> {
        let (root, meta) = walk.root();
        let attributes = self.attributes_of(root, b".");
        self.folder(b".", &meta, &attributes)?;
        while let Some(found) = walk.next(&mut self.notes)? {
            self.found(found, walk)?;
        }
        Ok(())
    }

    /// Ends both streams and gives them back, the tarball first, with how many entries there are.
    pub(super) fn finish(mut self) -> Result<(Output, Output, u64, Counts, Notes), SourceError> {
        self.put(&END)?;
        let (index, footer) = self.index.finish(self.offset).map_err(SourceError::Stream)?;
        Ok((self.tar, index, footer.entries, self.counts, self.notes))
    }

    fn found(&mut self, found: Found, walk: &mut Walk<'_>) -> Result<(), SourceError> {
        let Found { name, meta, choice } = found;
        let path = walk.path().to_vec();
        while self.pending.last().is_some_and(|pending| !lies_in(&path, &pending.path)) {
            self.pending.pop();
        }
        match meta.kind {
            Some(Kind::Directory) => {
                let folder = walk.folder().filter(|_| walk.entered());
                let attributes = folder.map_or_else(Vec::new, |folder| self.attributes_of(folder, &path));
                if choice == Choice::Look {
                    self.pending.push(Pending { path, meta, attributes });
                    return Ok(());
                }
                self.flush_pending()?;
                return self.folder(&path, &meta, &attributes);
            }
            None => {
                self.counts.skipped += 1;
                self.notes
                    .note(&path, "It is a socket, which only the program that listens on it can make: it was skipped");
                return Ok(());
            }
            Some(_) => {}
        }
        self.flush_pending()?;
        if self.link(&path, &meta)? {
            return Ok(());
        }
        let Some(folder) = walk.folder() else { return Ok(()) };
        let outcome = match meta.kind {
            Some(Kind::File) => self.file(folder, &name, &path)?,
            Some(Kind::Symlink) => self.symlink(folder, &name, &path, &meta)?,
            _ => {
                self.counts.others += 1;
                let rdev = matches!(meta.kind, Some(Kind::Char | Kind::Block)).then_some(meta.rdev);
                let place = self.headers(&path, &meta, 0, None, rdev, &[])?;
                self.entry(&path, &meta, place, None, rdev)?;
                self.remember(&path, &meta);
                Ok(())
            }
        };
        match outcome {
            Ok(()) => {}
            Err(error) if is_gone(error) => walk.vanished(&mut self.notes),
            Err(error) if is_replaced(error) => walk.again(name, &mut self.notes),
            Err(error) => {
                self.counts.skipped += 1;
                self.notes.missing(&path, format!("It could not be read: {error}"));
            }
        }
        Ok(())
    }

    fn attributes_of(&mut self, file: BorrowedFd<'_>, path: &[u8]) -> Vec<Attribute> {
        self.attributes.read(file).unwrap_or_else(|error| {
            self.notes.note(
                path,
                format!("Its extended attributes could not be read, so it has none in the backup: {error}"),
            );
            Vec::new()
        })
    }

    fn flush_pending(&mut self) -> Result<(), SourceError> {
        for folder in std::mem::take(&mut self.pending) {
            self.folder(&folder.path, &folder.meta, &folder.attributes)?;
        }
        Ok(())
    }

    fn folder(&mut self, path: &[u8], meta: &Meta, attributes: &[Attribute]) -> Result<(), SourceError> {
        self.counts.directories += 1;
        let place = self.headers(path, meta, 0, None, None, attributes)?;
        self.entry(path, meta, place, None, None)
    }

    fn symlink(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        meta: &Meta,
    ) -> Result<Result<(), Errno>, SourceError> {
        let target = match readlinkat(folder, name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            // No link any more.
            Err(Errno::INVAL) => return Ok(Err(Errno::LOOP)),
            Err(error) => return Ok(Err(error)),
        };
        self.counts.symlinks += 1;
        let place = self.headers(path, meta, 0, Some(&target), None, &[])?;
        self.entry(path, meta, place, Some(target), None)?;
        self.remember(path, meta);
        Ok(Ok(()))
    }

    /// Stores a further name of a file that was stored, as a link to it. False when it is none.
    fn link(&mut self, path: &[u8], meta: &Meta) -> Result<bool, SourceError> {
        if meta.links < 2 {
            return Ok(false);
        }
        let Slot::Occupied(mut slot) = self.links.entry(meta.identity) else { return Ok(false) };
        let linked = slot.get_mut();
        if (linked.size, linked.mtime) != (meta.size, meta.mtime) {
            // It was written since, or is another file with the number of one that was deleted.
            return Ok(false);
        }
        linked.left = linked.left.saturating_sub(1);
        let target = if linked.left > 0 {
            linked.path.clone()
        } else {
            let linked = slot.remove();
            self.links_held -= linked.path.len() + LINK_COST;
            linked.path
        };
        self.counts.hardlinks += 1;
        let meta = Meta { kind: Some(Kind::Hardlink), ..*meta };
        let place = self.headers(path, &meta, 0, Some(&target), None, &[])?;
        self.entry(path, &meta, place, Some(target), None)?;
        Ok(true)
    }

    /// Keeps in mind that a file with further names was stored.
    fn remember(&mut self, path: &[u8], meta: &Meta) {
        if meta.links < 2 {
            return;
        }
        let cost = path.len() + LINK_COST;
        if self.links_held + cost > LINKS_LIMIT {
            if !std::mem::replace(&mut self.links_full, true) {
                self.notes.note(
                    path,
                    "There are more files with several names than are remembered: from here on some names are stored as files of their own",
                );
            }
            return;
        }
        let linked = Linked { path: path.to_vec(), size: meta.size, mtime: meta.mtime, left: meta.links - 1 };
        if let Some(before) = self.links.insert(meta.identity, linked) {
            self.links_held -= before.path.len() + LINK_COST;
        }
        self.links_held += cost;
    }

    /// Stores a file: the size it has when opened is what the header promises and what the stream gets, whatever becomes
    /// of the file meanwhile. The inner error is one of opening it, before anything was written.
    fn file(&mut self, folder: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<Result<(), Errno>, SourceError> {
        let opened = open_quietly(folder, name, FILE).and_then(|file| Ok((Meta::of(file.as_fd())?, file)));
        let (meta, file) = match opened {
            Ok((meta, _)) if meta.kind != Some(Kind::File) => return Ok(Err(Errno::LOOP)),
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        let attributes = self.attributes_of(file.as_fd(), path);
        let place = self.headers(path, &meta, meta.size, None, None, &attributes)?;
        let mut digester = Digester::new();
        let mut left = meta.size;
        let mut problem = None;
        while left > 0 {
            self.go_on()?;
            let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            let Some(chunk) = self.buffer.get_mut(..length) else { break };
            match rustix::io::read(file.as_fd(), &mut *chunk) {
                Ok(0) => break,
                Ok(read) => {
                    let Some(content) = self.buffer.get(..read) else { break };
                    digester.update(content);
                    self.tar.write_all(content).map_err(SourceError::Stream)?;
                    self.offset += read as u64;
                    left -= read as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    problem = Some(error);
                    break;
                }
            }
        }
        let cut = left;
        if cut > 0 {
            self.buffer.fill(0);
            while left > 0 {
                self.go_on()?;
                let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
                let Some(zeros) = self.buffer.get(..length) else { break };
                digester.update(zeros);
                self.tar.write_all(zeros).map_err(SourceError::Stream)?;
                self.offset += length as u64;
                left -= length as u64;
            }
        }
        self.fill_block(meta.size)?;

        let after = Meta::of(file.as_fd());
        let changed = match (problem, after) {
            (Some(error), _) => {
                self.notes.missing(path, format!("Reading it failed, so its last {cut} bytes are zeros: {error}"));
                true
            }
            (None, _) if cut > 0 => {
                self.notes.note(path, format!("It shrank while it was read, so its last {cut} bytes are zeros"));
                true
            }
            (None, Ok(after)) if after.size > meta.size => {
                let size = meta.size;
                self.notes
                    .note(path, format!("It grew while it was read: the {size} bytes it had at first were stored"));
                true
            }
            (None, Ok(after)) if (after.size, after.mtime, after.ctime) == (meta.size, meta.mtime, meta.ctime) => false,
            (None, _) => {
                self.notes.note(path, "It changed while it was read");
                true
            }
        };
        self.counts.files += 1;
        self.counts.changed += u64::from(changed);
        self.counts.bytes += meta.size;
        let mut entry = self.describe(path, &meta, place);
        entry.size = meta.size;
        entry.length = meta.size;
        entry.digest = Some(digester.finish());
        entry.changed = changed;
        self.index.entry(entry).map_err(SourceError::Stream)?;
        self.remember(path, &meta);
        Ok(Ok(()))
    }

    fn go_on(&self) -> Result<(), SourceError> {
        if self.cancel.is_cancelled() { Err(SourceError::Cancelled) } else { Ok(()) }
    }

    /// Writes the headers of an entry.
    fn headers(
        &mut self,
        path: &[u8],
        meta: &Meta,
        size: u64,
        target: Option<&[u8]>,
        rdev: Option<(u32, u32)>,
        attributes: &[Attribute],
    ) -> Result<Place, SourceError> {
        let kind = meta.kind.unwrap_or(Kind::File);
        let mut name = path.to_vec();
        if kind == Kind::Directory {
            name.push(b'/');
        }
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.clear();
        Member {
            name: &name,
            kind,
            target,
            size,
            mtime: meta.mtime,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            uname: self.owners.user(meta.uid),
            gname: self.owners.group(meta.gid),
            rdev,
            attributes,
        }
        .write(&mut blocks);
        let offset = self.offset;
        let written = self.put(&blocks);
        self.blocks = blocks;
        written?;
        Ok(Place { offset, data_offset: self.offset })
    }

    /// Writes the line of an entry that has no content.
    fn entry(
        &mut self,
        path: &[u8],
        meta: &Meta,
        place: Place,
        target: Option<Vec<u8>>,
        rdev: Option<(u32, u32)>,
    ) -> Result<(), SourceError> {
        let entry = Entry { target, rdev, ..self.describe(path, meta, place) };
        self.index.entry(entry).map_err(SourceError::Stream)
    }

    fn describe(&self, path: &[u8], meta: &Meta, place: Place) -> Entry {
        Entry {
            path: path.to_vec(),
            kind: meta.kind.unwrap_or(Kind::File),
            size: 0,
            mtime: meta.mtime,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            uname: self.owners.user(meta.uid).map(str::to_owned),
            gname: self.owners.group(meta.gid).map(str::to_owned),
            target: None,
            rdev: None,
            digest: None,
            offset: place.offset,
            data_offset: place.data_offset,
            length: 0,
            changed: false,
            archive: None,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.tar.write_all(bytes).map_err(SourceError::Stream)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn fill_block(&mut self, size: u64) -> Result<(), SourceError> {
        let zeros: Vec<u8> = std::iter::repeat_n(0, usize::try_from(padding(size)).unwrap_or_default()).collect();
        self.put(&zeros)
    }
}

/// Whether `path` is within the folder at `folder`.
fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.first() == Some(&b'/'))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
    use rustix::io::Errno;

    use super::{FILE, Kind, Meta, lies_in, open_quietly};

    /// What a file may have become between a look at it and opening it.
    #[test]
    fn opening_a_file_neither_follows_a_link_nor_waits_for_a_pipe() {
        let scratch = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scratch.path().join("link")).unwrap();
        mknodat(CWD, scratch.path().join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let folder = openat(CWD, scratch.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert_eq!(open_quietly(folder.as_fd(), c"link", FILE).err(), Some(Errno::LOOP));
        let pipe = open_quietly(folder.as_fd(), c"pipe", FILE).unwrap();
        assert_eq!(Meta::of(pipe.as_fd()).unwrap().kind, Some(Kind::Fifo), "so it is not read as a file");
    }

    #[test]
    fn a_folder_holds_what_has_its_name_before_a_slash() {
        assert!(lies_in(b"a/b", b"a") && lies_in(b"a/b/c", b"a"));
        assert!(!lies_in(b"ab/c", b"a") && !lies_in(b"a", b"a"));
    }
}
