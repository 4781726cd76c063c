//! A walk written as a tarball and its index, side by side, and as a list of the entries that could
//! not be read (`losses`).

mod ahead;
mod content;
mod links;
mod losses;
mod queue;

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::readlinkat;
use rustix::io::Errno;

use self::ahead::{Readers, with_readers};
use self::content::{Opened, Outcome, data_bytes};
use self::links::Links;
use self::losses::Losses;
use self::queue::{Queue, Waiting, What};
use crate::archive::Kind;
use crate::archive::header::{Attribute, END, EntryHeader, padding, sparse_map};
use crate::archive::index::{Entry, IndexWriter, Rules};
use crate::archive::patterns::Choice;
use crate::archive::selection::lies_in;
use crate::model::{Cancel, Remarks};
use crate::source::directory::accounts::Accounts;
use crate::source::directory::attributes::AttributeReader;
use crate::source::directory::meta::Meta;
use crate::source::directory::scope::Listener;
use crate::source::directory::walk::{Found, Late, Walk, is_gone, is_replaced};
use crate::source::directory::{VANISHED, at};
use crate::source::{Output, Outputs, SourceError};

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

/// Writes what a walk finds.
pub(super) struct Dumper<'a> {
    tar: Output,
    /// Bytes written to `tar`.
    offset: u64,
    index: IndexWriter<Output>,
    accounts: Accounts,
    attributes: AttributeReader,
    links: Links,
    links_full: bool,
    /// Folders that are stored only if something within them is.
    pending: Vec<Waiting>,
    /// Header blocks of an entry.
    blocks: Vec<u8>,
    proc_missing: bool,
    cancel: &'a Cancel,
    counts: Counts,
    losses: Losses<'a>,
}

/// All that was dumped.
pub(super) struct DumpedTree {
    pub(super) tar: Output,
    pub(super) index: Output,
    /// The list of entries that could not be read; none when all could.
    pub(super) missing: Option<Output>,
    pub(super) entries: u64,
    pub(super) counts: Counts,
    pub(super) remarks: Remarks,
}

/// What the headers of an entry say beyond what the system says of it.
#[derive(Default)]
struct Headers<'a> {
    size: u64,
    sparse: Option<u64>,
    target: Option<&'a [u8]>,
    rdev: Option<(u32, u32)>,
    attributes: &'a [Attribute],
    /// Said in the index only.
    left_out: bool,
}

/// Where an entry's headers begin and end in the stream.
#[derive(Clone, Copy)]
struct Place {
    offset: u64,
    data_offset: u64,
}

impl<'a> Dumper<'a> {
    pub(super) fn new(
        tar: Output,
        index: Output,
        rules: Rules,
        outputs: &'a dyn Outputs,
        cancel: &'a Cancel,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            tar,
            offset: 0,
            index: IndexWriter::new(index, rules).map_err(SourceError::Stream)?,
            accounts: Accounts::default(),
            attributes: AttributeReader::new(),
            links: Links::default(),
            links_full: false,
            pending: Vec::new(),
            blocks: Vec::new(),
            proc_missing: false,
            cancel,
            counts: Counts::default(),
            losses: Losses::new(outputs),
        })
    }

    /// Writes all that the walk finds, the root first.
    pub(super) fn run(&mut self, walk: &mut Walk<'_>) -> Result<(), SourceError> {
        let (root, meta) = walk.root();
        let attributes = self.attributes_of(root, b".");
        self.folder(b".", &meta, &attributes, false)?;
        with_readers(self.cancel, |readers| self.drive(walk, readers))
    }

    /// Lets the walk go ahead as far as there is room, and writes what comes first, until nothing
    /// is left.
    fn drive(&mut self, walk: &mut Walk<'_>, readers: &Readers) -> Result<(), SourceError> {
        let mut queue = Queue::default();
        loop {
            while queue.has_room() {
                let Some(found) = walk.next(&mut self.losses)? else { break };
                self.found(found, walk, readers, &mut queue);
            }
            let Some(waiting) = queue.pop() else { return Ok(()) };
            self.write(waiting, walk, readers)?;
        }
    }

    /// Ends the streams and gives them back.
    pub(super) fn finish(mut self) -> Result<DumpedTree, SourceError> {
        self.put(&END)?;
        let (index, footer) = self.index.finish(self.offset).map_err(SourceError::Stream)?;
        let (missing, remarks) = self.losses.finish()?;
        let (tar, counts, entries) = (self.tar, self.counts, footer.entries);
        Ok(DumpedTree { tar, index, missing, entries, counts, remarks })
    }

    /// Takes an entry into the queue, with the folders that were not certain to be taken before it.
    fn found(&mut self, found: Found, walk: &Walk<'_>, readers: &Readers, queue: &mut Queue) {
        let Found { name, meta, choice, within, retries, left_out } = found;
        let path = walk.path().to_vec();
        while self.pending.last().is_some_and(|pending| !lies_in(&path, &pending.path)) {
            self.pending.pop();
        }
        let wait = |what| Waiting {
            path: path.clone(),
            name: name.clone(),
            meta,
            within,
            retries,
            cost: 0,
            what,
        };
        if meta.kind == Some(Kind::Directory) {
            let folder = walk.folder().filter(|_| walk.entered());
            let attributes =
                folder.map_or_else(Vec::new, |folder| self.attributes_of(folder.as_fd(), &path));
            let folder = wait(What::Folder { attributes, left_out });
            if choice == Choice::Look {
                self.pending.push(folder);
            } else {
                self.pending.drain(..).for_each(|pending| queue.push(pending));
                queue.push(folder);
            }
            return;
        }
        if meta.kind.is_none() {
            self.socket(&path);
            return;
        }
        let Some(folder) = walk.folder().map(Arc::clone) else { return };
        self.pending.drain(..).for_each(|pending| queue.push(pending));
        queue.push(wait(if meta.kind != Some(Kind::File) || self.links.comes_before(&meta) {
            What::Look(folder)
        } else {
            let reading = readers.ask(Arc::clone(&folder), name.clone());
            What::Read(folder, reading)
        }));
    }

    fn socket(&mut self, path: &[u8]) {
        self.counts.skipped += 1;
        self.losses.remarks.note(at(
            path,
            "It is a socket, which only the program that listens on it can make: it was skipped",
        ));
    }

    /// Writes an entry whose turn has come.
    fn write(
        &mut self,
        waiting: Waiting,
        walk: &mut Walk<'_>,
        readers: &Readers,
    ) -> Result<(), SourceError> {
        let Waiting { path, name, meta, within, retries, what, .. } = waiting;
        let (folder, outcome) = match what {
            What::Folder { attributes, left_out } => {
                return self.folder(&path, &meta, &attributes, left_out);
            }
            What::Read(folder, reading) => {
                let outcome = match readers.take(&reading)? {
                    Ok(opened) => {
                        self.content(&path, &opened, |dumper| {
                            reading.content(|chunk| dumper.put(&chunk))
                        })?;
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                self.links.written(&meta);
                (folder, outcome)
            }
            What::Look(folder) => {
                let outcome = self.look(folder.as_fd(), &name, &path)?;
                (folder, outcome)
            }
        };
        match outcome {
            Ok(()) => {}
            Err(error) if is_gone(error) => {
                self.counts.skipped += 1;
                self.losses.remarks.warn(at(&path, VANISHED));
            }
            Err(error) if is_replaced(error) => {
                walk.later(Late { folder, path, name, within, retries }, &mut self.losses);
            }
            Err(error) => {
                self.counts.skipped += 1;
                self.losses.missing(&path, &format!("It could not be read: {error}"));
            }
        }
        Ok(())
    }

    /// Looks at an entry and stores it. The inner error is one of looking at it, before anything
    /// was written.
    fn look(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<Result<(), Errno>, SourceError> {
        let meta = match Meta::at(folder, name) {
            Ok(meta) => meta,
            Err(error) => return Ok(Err(error)),
        };
        if let Some(target) = self.links.target(&meta) {
            self.counts.hardlinks += 1;
            let meta = Meta { kind: Some(Kind::Hardlink), ..meta };
            self.bare(path, &meta, &Headers { target: Some(&target), ..Headers::default() })?;
            return Ok(Ok(()));
        }
        match meta.kind {
            Some(Kind::File) => self.file(folder, name, path),
            Some(Kind::Symlink) => self.symlink(folder, name, path, &meta),
            // The walk has to enter it.
            Some(Kind::Directory) => Ok(Err(Errno::NOTDIR)),
            Some(_) => {
                let attributes = self.attributes_at(folder, name, path);
                self.counts.others += 1;
                let rdev = matches!(meta.kind, Some(Kind::Char | Kind::Block)).then_some(meta.rdev);
                self.bare(
                    path,
                    &meta,
                    &Headers { rdev, attributes: &attributes, ..Headers::default() },
                )?;
                self.remember(path, &meta);
                Ok(Ok(()))
            }
            None => {
                self.socket(path);
                Ok(Ok(()))
            }
        }
    }

    fn attributes_of(&mut self, file: BorrowedFd<'_>, path: &[u8]) -> Vec<Attribute> {
        self.attributes.read(file).unwrap_or_else(|error| {
            self.no_attributes(path, error);
            Vec::new()
        })
    }

    /// Of an entry that is not opened.
    fn attributes_at(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Vec<Attribute> {
        match self.attributes.read_at(folder, name) {
            Ok(attributes) => return attributes,
            // It may be gone since: then it has none, and that it was there is true all the same.
            Err(Errno::NOENT) if std::path::Path::new("/proc/thread-self").exists() => {}
            Err(Errno::NOENT) => {
                if !std::mem::replace(&mut self.proc_missing, true) {
                    self.losses.remarks.warn(at(
                        path,
                        "`/proc` is not there, so the extended attributes of links, named pipes \
                         and devices are not in the backup",
                    ));
                }
            }
            Err(error) => self.no_attributes(path, error),
        }
        Vec::new()
    }

    fn no_attributes(&mut self, path: &[u8], error: Errno) {
        self.losses.remarks.warn(at(
            path,
            format!(
                "Its extended attributes could not be read, so it has none in the backup: {error}"
            ),
        ));
    }

    fn folder(
        &mut self,
        path: &[u8],
        meta: &Meta,
        attributes: &[Attribute],
        left_out: bool,
    ) -> Result<(), SourceError> {
        self.counts.directories += 1;
        self.bare(path, meta, &Headers { attributes, left_out, ..Headers::default() })
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
        let attributes = self.attributes_at(folder, name, path);
        self.counts.symlinks += 1;
        self.bare(
            path,
            meta,
            &Headers { target: Some(&target), attributes: &attributes, ..Headers::default() },
        )?;
        self.remember(path, meta);
        Ok(Ok(()))
    }

    /// Keeps in mind that a file with further names was stored.
    fn remember(&mut self, path: &[u8], meta: &Meta) {
        if !self.links.remember(path, meta) && !std::mem::replace(&mut self.links_full, true) {
            self.losses.remarks.warn(at(
                path,
                "There are more files with several names than are remembered: from here on some \
                 names are stored as files of their own",
            ));
        }
    }

    /// Stores a file. The inner error is one of opening it, before anything was written.
    fn file(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
    ) -> Result<Result<(), Errno>, SourceError> {
        let (file, opened) = match content::open(folder, name, &mut self.attributes) {
            Ok(opened) => opened,
            Err(error) => return Ok(Err(error)),
        };
        let cancel = self.cancel;
        let go_on = || if cancel.is_cancelled() { Err(SourceError::Cancelled) } else { Ok(()) };
        let read = |dumper: &mut Self| {
            content::read(file.as_fd(), &opened, go_on, |chunk| dumper.put(&chunk))
        };
        self.content(path, &opened, read)?;
        Ok(Ok(()))
    }

    /// Writes a file that was opened, of which `read` writes the data: the size that it had then is
    /// what its headers promise.
    fn content(
        &mut self,
        path: &[u8],
        opened: &Opened,
        read: impl FnOnce(&mut Self) -> Result<Outcome, SourceError>,
    ) -> Result<(), SourceError> {
        if let Err(error) = opened.attributes {
            self.no_attributes(path, error);
        }
        let attributes = opened.attributes.as_deref().unwrap_or_default();
        let map = opened.map.as_deref().map(sparse_map).unwrap_or_default();
        let length = map.len() as u64 + data_bytes(opened);
        let sparse = opened.map.is_some().then_some(opened.meta.size);
        let headers = Headers { size: length, sparse, attributes, ..Headers::default() };
        let place = self.headers(path, &opened.meta, &headers)?;
        self.put(&map)?;
        let outcome = read(self)?;
        debug_assert_eq!(self.offset - place.data_offset, length, "as much as the headers promise");
        let zeros: Vec<u8> =
            std::iter::repeat_n(0, usize::try_from(padding(length)).unwrap_or_default()).collect();
        self.put(&zeros)?;
        let changed = self.changed(path, &opened.meta, &outcome);
        self.counts.files += 1;
        self.counts.changed += u64::from(changed);
        self.counts.bytes = self.counts.bytes.saturating_add(opened.meta.size);
        let entry = Entry {
            size: opened.meta.size,
            length,
            digest: outcome.digest,
            data_digest: outcome.data_digest,
            changed,
            ..self.describe(path, &opened.meta, place)
        };
        self.index.entry(entry).map_err(SourceError::Stream)?;
        self.remember(path, &opened.meta);
        Ok(())
    }

    /// Whether a file is not what it was when it was opened, and says so.
    fn changed(&mut self, path: &[u8], meta: &Meta, outcome: &Outcome) -> bool {
        let size = meta.size;
        match (outcome.stopped, outcome.after) {
            (Some((position, Some(error))), _) => {
                let cut = size - position;
                self.losses.missing(
                    path,
                    &format!("Reading it failed, so its last {cut} bytes are zeros: {error}"),
                );
            }
            (Some((position, None)), _) => {
                let cut = size - position;
                self.losses.remarks.warn(at(
                    path,
                    format!("It shrank while it was read, so its last {cut} bytes are zeros"),
                ));
            }
            (None, Ok(_)) if outcome.appended => {
                self.losses.remarks.note(at(
                    path,
                    format!(
                        "It was appended to while it was read: the {size} bytes it had at first \
                         were stored"
                    ),
                ));
            }
            (None, Ok(after)) if after.size > size => {
                self.losses.remarks.warn(at(
                    path,
                    format!(
                        "It grew while it was read: the {size} bytes it had at first were stored"
                    ),
                ));
            }
            (None, Ok(after))
                if (after.size, after.mtime, after.ctime) == (size, meta.mtime, meta.ctime) =>
            {
                return false;
            }
            (None, _) => self.losses.remarks.warn(at(path, "It changed while it was read")),
        }
        true
    }

    /// Writes the headers of an entry.
    fn headers(
        &mut self,
        path: &[u8],
        meta: &Meta,
        headers: &Headers<'_>,
    ) -> Result<Place, SourceError> {
        let kind = meta.kind.unwrap_or(Kind::File);
        let mut name = path.to_vec();
        if kind == Kind::Directory {
            name.push(b'/');
        }
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.clear();
        EntryHeader {
            name: &name,
            kind,
            target: headers.target,
            size: headers.size,
            sparse: headers.sparse,
            mtime: meta.mtime,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            uname: self.accounts.user_name(meta.uid),
            gname: self.accounts.group_name(meta.gid),
            rdev: headers.rdev,
            attributes: headers.attributes,
        }
        .write(&mut blocks);
        let offset = self.offset;
        let written = self.put(&blocks);
        self.blocks = blocks;
        written?;
        Ok(Place { offset, data_offset: self.offset })
    }

    /// Writes an entry that has no content.
    fn bare(&mut self, path: &[u8], meta: &Meta, headers: &Headers<'_>) -> Result<(), SourceError> {
        let place = self.headers(path, meta, headers)?;
        let target = headers.target.map(<[u8]>::to_vec);
        let entry = Entry {
            target,
            rdev: headers.rdev,
            left_out: headers.left_out,
            ..self.describe(path, meta, place)
        };
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
            uname: self.accounts.user_name(meta.uid).map(str::to_owned),
            gname: self.accounts.group_name(meta.gid).map(str::to_owned),
            target: None,
            rdev: None,
            digest: None,
            data_digest: None,
            offset: place.offset,
            data_offset: place.data_offset,
            length: 0,
            changed: false,
            archive: None,
            left_out: false,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.tar.write_all(bytes).map_err(SourceError::Stream)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
