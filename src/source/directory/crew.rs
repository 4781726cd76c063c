//! Files put in their places, small ones by several threads.
//!
//! What a small file needs is a handful of system calls, so one thread after another waits on the
//! file system. The main thread reads the tarball and makes folders and links; files that fit in
//! memory go to the crew through a bounded queue.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, SeekFrom, ftruncate, openat, renameat, renameat_with, seek,
    unlinkat,
};
use rustix::io::Errno;

use super::finish::{Finish, Finisher};
use super::meta::{Identity, Meta};
use crate::archive::error::{ArchiveError, Problem};
use crate::archive::proof::{Content, Proof, read_content};
use crate::model::Cancel;

/// Threads that write small files.
pub(super) const THREADS: usize = 4;
/// The most files that wait or are being written, and the bytes of them.
const FILES: usize = 64;
const BYTES: usize = 4 << 20;
/// So many files wait before a thread that sleeps is woken for them, and as many fewer than the
/// most before the main thread is: each waking costs about as much as writing a small file.
const WORTH_WAKING: usize = 16;
/// A file that takes more memory is written by the main thread.
pub(super) const SMALL: usize = 256 << 10;
/// How much is written at a time.
const BUFFER: usize = 64 << 10;

/// What a file is called until it is complete, with a dot and a number.
pub(super) const TEMPORARY: &str = ".holdfast-restore";
/// How many names of that kind are tried: the tarball itself may have some.
const TEMPORARY_TRIES: u32 = 1_000;

/// A folder that is being filled. Whoever lets go of it last finishes it.
pub(super) struct Open {
    pub(super) folder: OwnedFd,
    pub(super) identity: Identity,
    /// What it gets, and its path, once nothing more comes into it.
    pub(super) last: Mutex<Option<(Finish, Vec<u8>)>>,
}

impl Open {
    pub(super) fn new(folder: OwnedFd, identity: Identity) -> Arc<Self> {
        Arc::new(Self { folder, identity, last: Mutex::new(None) })
    }
}

/// A file to be written.
pub(super) struct File {
    pub(super) folder: Arc<Open>,
    pub(super) name: CString,
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
    /// Where the content belongs.
    pub(super) pieces: Vec<(u64, u64)>,
    pub(super) content: Vec<u8>,
    pub(super) proof: Option<Proof>,
    pub(super) finish: Finish,
}

impl File {
    /// About how much memory it takes.
    fn cost(&self) -> usize {
        let attributes: usize =
            self.finish.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.content.len() + attributes + self.path.len() + self.pieces.len() * 16
    }
}

/// Puts files under their names, from any thread.
pub(super) struct Placer<'a> {
    pub(super) finisher: Finisher,
    pub(super) cancel: &'a Cancel,
    /// Nothing may be there under the name of what is restored.
    pub(super) new: bool,
    counter: AtomicU64,
}

impl<'a> Placer<'a> {
    pub(super) fn new(finisher: Finisher, cancel: &'a Cancel, new: bool) -> Self {
        Self { finisher, cancel, new, counter: AtomicU64::new(0) }
    }

    /// Makes a file of what `fill` writes and finishes it; only then it gets its name.
    pub(super) fn place(
        &self,
        folder: BorrowedFd<'_>,
        name: &CStr,
        path: &[u8],
        finish: &Finish,
        fill: impl FnOnce(BorrowedFd<'_>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let (file, temporary) = self.create_temporary(folder)?;
        let result = fill(file.as_fd())
            .and_then(|()| self.finisher.finish(file.as_fd(), finish, path))
            .and_then(|()| self.give_name(folder, &temporary, name));
        if result.is_err() {
            // The first error is the one to tell of.
            let _ = unlinkat(folder, &temporary, AtFlags::empty());
        }
        result
    }

    /// Makes an empty file that only its owner can use.
    pub(super) fn create_temporary(
        &self,
        folder: BorrowedFd<'_>,
    ) -> Result<(OwnedFd, CString), Problem> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..TEMPORARY_TRIES {
            let number = self.counter.fetch_add(1, Ordering::Relaxed);
            let Ok(name) = CString::new(format!("{TEMPORARY}.{number}")) else { break };
            match openat(folder, &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((file, name)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(Problem::System("create", error)),
            }
        }
        Err(Problem::System("create", Errno::EXIST))
    }

    fn give_name(
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
    pub(super) fn let_go(&self, open: Arc<Open>) -> Result<(), ArchiveError> {
        let Some(open) = Arc::into_inner(open) else { return Ok(()) };
        let last = open.last.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Some((finish, path)) = last else { return Ok(()) };
        self.finisher
            .finish(open.folder.as_fd(), &finish, &path)
            .map_err(|problem| problem.at(&path))
    }

    fn small(&self, file: &mut File, buffer: &mut [u8]) -> Result<(), Problem> {
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
        self.place(file.folder.folder.as_fd(), &file.name, &file.path, &file.finish, |out| {
            let mut filling = Filling::new(out);
            read_content(&mut read, pieces, size, proof, self.cancel, buffer, |piece| {
                filling.take(&piece)
            })?;
            filling.end(size)
        })
    }
}

/// Writes a content, piece by piece, into an empty file.
pub(super) struct Filling<'a> {
    file: BorrowedFd<'a>,
    sparse: bool,
}

impl<'a> Filling<'a> {
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

/// The threads that write small files, and what they have to do.
pub(super) struct Crew<'a> {
    pub(super) placer: &'a Placer<'a>,
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    /// Something was done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, File)>,
    /// Those that wait and those that are being written: path, folder, cost.
    flying: BTreeMap<u64, (Vec<u8>, Identity, usize)>,
    bytes: usize,
    next: u64,
    /// Threads of the crew that sleep.
    idle: usize,
    /// While the main thread sleeps: to be woken when no more files than this wait or are being
    /// written.
    wake_at: Option<usize>,
    failure: Option<ArchiveError>,
    failed: bool,
    closed: bool,
}

/// Ends the crew's work, whatever happens to who has it.
pub(super) struct Closing<'a>(pub(super) &'a Crew<'a>);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        // Whoever waited for all left none; after an error the rest is not wanted.
        state.waiting.clear();
        self.0.work.notify_all();
    }
}

/// Takes a file off the list, also when the thread that writes it panics.
struct Landing<'a>(&'a Crew<'a>, u64, Option<ArchiveError>);

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let Some((_, _, cost)) = state.flying.remove(&self.1) {
            state.bytes -= cost;
        }
        if let Some(failure) = self.2.take() {
            state.failed = true;
            state.failure.get_or_insert(failure);
        }
        let few = state.wake_at.is_some_and(|most| state.flying.len() <= most);
        if few || state.failed {
            self.0.done.notify_one();
        }
    }
}

impl<'a> Crew<'a> {
    pub(super) fn new(placer: &'a Placer<'a>) -> Self {
        Self { placer, state: Mutex::default(), work: Condvar::new(), done: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread of the crew does until the crew is closed.
    pub(super) fn work(&self) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let mut state = self.state();
            let (number, mut file) = loop {
                if let Some(next) = state.waiting.pop_front() {
                    break next;
                }
                if state.closed {
                    return;
                }
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            };
            let failed = state.failed;
            drop(state);
            let mut landing = Landing(self, number, None);
            if failed {
                continue;
            }
            let written = if self.placer.cancel.is_cancelled() {
                Err(Problem::Cancelled)
            } else {
                self.placer.small(&mut file, &mut buffer)
            };
            let written = written.map_err(|problem| problem.at(&file.path));
            landing.2 = written.and_then(|()| self.placer.let_go(file.folder)).err();
        }
    }

    /// Waits until nothing holds back what is asked for, and looks for it when no more than `most`
    /// files are on their way; fails with the first error of the crew.
    fn wait(
        &self,
        most: usize,
        ready: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'_, State>, ArchiveError> {
        let mut state = self.state();
        loop {
            if state.failed {
                let failure = state.failure.take();
                return Err(failure.unwrap_or_else(|| Problem::Cancelled.at(b"")));
            }
            if ready(&state) {
                return Ok(state);
            }
            if state.idle > 0 && !state.waiting.is_empty() {
                self.work.notify_all();
            }
            state.wake_at = Some(most);
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.wake_at = None;
        }
    }

    /// Hands a file to the crew, when there is room for it.
    pub(super) fn submit(&self, file: File) -> Result<(), ArchiveError> {
        let cost = file.cost();
        let mut state = self.wait(FILES - WORTH_WAKING, |state| {
            state.flying.is_empty()
                || state.flying.len() < FILES && state.bytes.saturating_add(cost) <= BYTES
        })?;
        let number = state.next;
        state.next += 1;
        state.bytes += cost;
        state.flying.insert(number, (file.path.clone(), file.folder.identity, cost));
        state.waiting.push_back((number, file));
        if state.idle > 0 && state.waiting.len() >= WORTH_WAKING {
            self.work.notify_one();
        }
        Ok(())
    }

    /// Waits until all files are written.
    pub(super) fn wait_for_all(&self) -> Result<(), ArchiveError> {
        self.wait(0, |state| state.flying.is_empty()).map(drop)
    }

    /// Waits until no file of that path is being written.
    pub(super) fn wait_for(&self, path: &[u8]) -> Result<(), ArchiveError> {
        self.wait(FILES, |state| state.flying.values().all(|(flying, _, _)| flying != path))
            .map(drop)
    }

    /// Waits until nothing is being written in the folder. Returns whether something was.
    pub(super) fn wait_for_folder(&self, identity: Identity) -> Result<bool, ArchiveError> {
        let busy = |state: &State| state.flying.values().any(|(_, folder, _)| *folder == identity);
        let was = busy(&self.state());
        self.wait(FILES, |state| !busy(state)).map(|_| was)
    }
}
