//! Small files written by several threads.
//!
//! What a small file needs is a handful of system calls, so one thread after another waits on the
//! file system. The main thread reads the tarball and makes folders and links; files that fit in
//! memory go to the pool through a bounded queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::file_writer::{FileJob, FileWriter};
use crate::archive::error::{ArchiveError, Problem};
use crate::source::directory::meta::Identity;

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

/// The threads that write small files, and what they have to do.
pub(super) struct WritePool<'a> {
    pub(super) writer: &'a FileWriter<'a>,
    state: Mutex<State>,
    /// There is something to do.
    work: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, FileJob)>,
    /// Those that wait and those that are being written: path, folder, cost.
    flying: BTreeMap<u64, (Vec<u8>, Identity, usize)>,
    bytes: usize,
    next: u64,
    /// Threads of the pool that sleep.
    idle: usize,
    /// While the main thread sleeps: to be woken when no more files than this wait or are being
    /// written.
    wake_at: Option<usize>,
    failure: Option<ArchiveError>,
    failed: bool,
    closed: bool,
}

/// Ends the pool's work, whatever happens to who has it.
pub(super) struct ClosePool<'a>(pub(super) &'a WritePool<'a>);

impl Drop for ClosePool<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        // Whoever waited for all left none; after an error the rest is not wanted.
        state.waiting.clear();
        self.0.work.notify_all();
    }
}

/// Takes a file off the list, also when the thread that writes it panics.
struct WrittenGuard<'a>(&'a WritePool<'a>, u64, Option<ArchiveError>);

impl Drop for WrittenGuard<'_> {
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

impl<'a> WritePool<'a> {
    pub(super) fn new(writer: &'a FileWriter<'a>) -> Self {
        Self { writer, state: Mutex::default(), work: Condvar::new(), done: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread of the pool does until the pool is closed.
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
            let mut written_guard = WrittenGuard(self, number, None);
            if failed {
                continue;
            }
            let written = if self.writer.cancel.is_cancelled() {
                Err(Problem::Cancelled)
            } else {
                self.writer.write_small(&mut file, &mut buffer)
            };
            let written = written.map_err(|problem| problem.at(&file.path));
            written_guard.2 = written.and_then(|()| self.writer.release(file.folder)).err();
        }
    }

    /// Waits until nothing holds back what is asked for, and looks for it when no more than `most`
    /// files are on their way; fails with the first error of the pool.
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

    /// Hands a file to the pool, when there is room for it.
    pub(super) fn submit(&self, file: FileJob) -> Result<(), ArchiveError> {
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
