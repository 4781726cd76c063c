//! Regular files read ahead by a few threads, for one writer that takes them in the order in which
//! it asked for them.
//!
//! A thread opens a file, looks at it, reads and digests it, and hands it over part by part through
//! a bounded channel: nothing but when it happens is other than if the writer did so itself. Files
//! are begun in the order in which they were asked for, so what the writer waits for was begun, and
//! nobody waits for what comes after it. When the writer is done or gives up, the channels' other
//! ends are gone and every thread ends.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::content::{self, CHUNK, Opened, Outcome};
use crate::archive::header::Extent;
use crate::model::Cancel;
use crate::source::SourceError;
use crate::source::directory::attributes::AttributeReader;

/// How many threads read.
const READERS: usize = 4;
/// How many parts of a file wait for the writer: what was found when it was opened, and chunks.
const PARTS: usize = 5;
/// The most bytes of a file that are read before the writer asks for it: the chunks that wait, and
/// one in the thread's hand.
pub(super) const FILE_AHEAD: u64 = (PARTS * CHUNK) as u64;
/// A file with more bytes of attributes, or pieces, is handed over only when the writer asks for
/// it. As good as no file has.
const LARGE: usize = 16 << 10;

/// A file to be read.
struct Job {
    number: u64,
    folder: Arc<OwnedFd>,
    name: CString,
    parts: SyncSender<Part>,
}

enum Part {
    /// It could not be opened; nothing else comes.
    Failed(Errno),
    Opened(Arc<Opened>),
    Chunk(Vec<u8>),
    /// The last part.
    Outcome(Box<Outcome>),
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// How many files were asked for.
    asked: u64,
    /// The number of the file that the writer takes.
    turn: u64,
    /// No more is read.
    ended: bool,
}

/// The threads that read, as the writer sees them.
#[derive(Default)]
pub(super) struct Readers {
    state: Mutex<State>,
    /// There is a job, or the end.
    asked: Condvar,
    /// The writer took another file, or ended.
    taken: Condvar,
}

/// A file that is read ahead.
pub(super) struct Reading {
    number: u64,
    parts: Receiver<Part>,
}

/// Nobody waits for the file any more, or the run was cancelled.
struct Unwanted;

/// Does `work` with threads beside it that read for it. They have ended when this returns.
///
/// # Errors
/// When no threads can be started, and those of `work`.
pub(super) fn with_readers(
    cancel: &Cancel,
    work: impl FnOnce(&Readers) -> Result<(), SourceError>,
) -> Result<(), SourceError> {
    let readers = Readers::default();
    std::thread::scope(|scope| {
        let _end = End(&readers);
        for _ in 0..READERS {
            let thread = std::thread::Builder::new().name("read-ahead".to_owned());
            thread.spawn_scoped(scope, || readers.serve(cancel)).map_err(|error| {
                SourceError::Io {
                    attempt: "start the thread",
                    path: "read-ahead".to_owned(),
                    error,
                }
            })?;
        }
        work(&readers)
    })
}

/// Ends the threads, however the work ended.
struct End<'a>(&'a Readers);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ended = true;
        // The writer's ends are gone, so nobody would take them.
        state.jobs.clear();
        drop(state);
        self.0.asked.notify_all();
        self.0.taken.notify_all();
    }
}

impl Readers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a file. Files are to be taken in the order in which they were asked for.
    pub(super) fn ask(&self, folder: Arc<OwnedFd>, name: CString) -> Reading {
        let (sender, parts) = sync_channel(PARTS);
        let mut state = self.state();
        state.asked += 1;
        let number = state.asked;
        state.jobs.push_back(Job { number, folder, name, parts: sender });
        drop(state);
        self.asked.notify_one();
        Reading { number, parts }
    }

    /// What was found when the file was opened, or why it could not be.
    ///
    /// # Errors
    /// When the run was cancelled.
    pub(super) fn take(
        &self,
        reading: &Reading,
    ) -> Result<Result<Arc<Opened>, Errno>, SourceError> {
        self.state().turn = reading.number;
        self.taken.notify_all();
        match reading.parts.recv() {
            Ok(Part::Opened(opened)) => Ok(Ok(opened)),
            Ok(Part::Failed(error)) => Ok(Err(error)),
            Ok(Part::Chunk(_) | Part::Outcome(_)) | Err(_) => Err(SourceError::Cancelled),
        }
    }

    /// Reads for the writer until it ends.
    fn serve(&self, cancel: &Cancel) {
        let mut attributes = AttributeReader::new();
        while let Some(job) = self.next_job() {
            // If it is not wanted any more, the end comes soon.
            let _ = self.read(job, &mut attributes, cancel);
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.ended {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state = self.asked.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read(
        &self,
        job: Job,
        attributes: &mut AttributeReader,
        cancel: &Cancel,
    ) -> Result<(), Unwanted> {
        let Job { number, folder, name, parts } = job;
        let give = |part| parts.send(part).map_err(|_| Unwanted);
        let (file, opened) = match content::open(folder.as_fd(), &name, attributes) {
            Ok((file, opened)) => (file, Arc::new(opened)),
            Err(error) => return give(Part::Failed(error)),
        };
        drop(folder);
        if is_large(&opened) {
            self.wait_for_turn(number)?;
        }
        give(Part::Opened(Arc::clone(&opened)))?;
        let go_on = || if cancel.is_cancelled() { Err(Unwanted) } else { Ok(()) };
        let outcome =
            content::read(file.as_fd(), &opened, go_on, |chunk| give(Part::Chunk(chunk)))?;
        give(Part::Outcome(Box::new(outcome)))
    }

    fn wait_for_turn(&self, number: u64) -> Result<(), Unwanted> {
        let state = self.state();
        let waits = |state: &mut State| state.turn < number && !state.ended;
        let state = self.taken.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        if state.ended { Err(Unwanted) } else { Ok(()) }
    }
}

/// Whether what is known of it is more than is kept of many files at a time.
fn is_large(opened: &Opened) -> bool {
    let attributes = opened.attributes.as_deref().unwrap_or_default();
    let bytes: usize = attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
    let pieces = opened.map.as_ref().map_or(0, Vec::len);
    bytes + pieces * size_of::<Extent>() > LARGE
}

impl Reading {
    /// Gives the data of the file that was opened to `take`, in order and to its end.
    ///
    /// # Errors
    /// Those of `take`, and when the run was cancelled.
    pub(super) fn content(
        self,
        mut take: impl FnMut(Vec<u8>) -> Result<(), SourceError>,
    ) -> Result<Outcome, SourceError> {
        loop {
            match self.parts.recv() {
                Ok(Part::Chunk(chunk)) => take(chunk)?,
                Ok(Part::Outcome(outcome)) => return Ok(*outcome),
                Ok(Part::Opened(_) | Part::Failed(_)) | Err(_) => {
                    return Err(SourceError::Cancelled);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::sync::Arc;

    use super::{FILE_AHEAD, with_readers};
    use crate::model::Cancel;
    use crate::source::SourceError;

    /// More files than threads, each longer than what is read ahead of it, and short ones after
    /// them.
    fn tree() -> (tempfile::TempDir, Arc<OwnedFd>) {
        let scratch = tempfile::tempdir().unwrap();
        for number in 0..20 {
            let size = if number < 10 {
                2 * usize::try_from(FILE_AHEAD).unwrap() + number
            } else {
                number
            };
            std::fs::write(
                scratch.path().join(number.to_string()),
                vec![u8::try_from(number).unwrap(); size],
            )
            .unwrap();
        }
        let folder = Arc::new(OwnedFd::from(std::fs::File::open(scratch.path()).unwrap()));
        (scratch, folder)
    }

    fn name(number: usize) -> CString {
        CString::new(number.to_string()).unwrap()
    }

    fn content(path: &Path) -> Vec<u8> {
        std::fs::read(path).unwrap()
    }

    #[test]
    fn files_come_whole_in_the_order_in_which_they_were_asked_for() {
        let (scratch, folder) = tree();
        with_readers(&Cancel::new(), |readers| {
            let all: Vec<_> =
                (0..20).map(|number| readers.ask(Arc::clone(&folder), name(number))).collect();
            let missing = readers.ask(Arc::clone(&folder), c"missing".to_owned());
            for (number, reading) in all.into_iter().enumerate() {
                let opened = readers.take(&reading)?.unwrap();
                let mut found = Vec::new();
                reading.content(|chunk| {
                    found.extend(chunk);
                    Ok(())
                })?;
                assert!(found == content(&scratch.path().join(number.to_string())), "{number}");
                assert_eq!(opened.meta.size, found.len() as u64);
            }
            assert_eq!(readers.take(&missing)?.err(), Some(rustix::io::Errno::NOENT));
            Ok(())
        })
        .unwrap();
    }

    /// Threads that wait for the writer, and threads that wait for work, end when the writer gives
    /// up.
    #[test]
    fn no_thread_is_left_waiting_when_the_writer_gives_up() {
        let (_scratch, folder) = tree();
        let error = with_readers(&Cancel::new(), |readers| {
            let all: Vec<_> =
                (0..20).map(|number| readers.ask(Arc::clone(&folder), name(number))).collect();
            let first = all.into_iter().next().unwrap();
            readers.take(&first)?.unwrap();
            first.content(|_| Err(SourceError::Unsuitable("full".to_owned()))).map(drop)
        });
        assert_eq!(error.unwrap_err().to_string(), "full");
    }

    #[test]
    fn a_cancelled_run_ends_while_files_are_read() {
        let (_scratch, folder) = tree();
        let cancel = Cancel::new();
        let result = with_readers(&cancel, |readers| {
            let all: Vec<_> =
                (0..20).map(|number| readers.ask(Arc::clone(&folder), name(number))).collect();
            cancel.cancel();
            for reading in all {
                if readers.take(&reading)?.is_ok() {
                    reading.content(|_| Ok(()))?;
                }
            }
            Ok(())
        });
        assert!(matches!(result, Err(SourceError::Cancelled)));
    }

    /// Of each of them more is known than is kept of many at a time, so all threads wait for a
    /// turn.
    #[test]
    fn a_file_of_very_many_pieces_is_handed_over_when_its_turn_comes() {
        use std::os::unix::fs::FileExt;
        let (scratch, folder) = tree();
        for number in 0..20 {
            let file = std::fs::File::create(scratch.path().join(number.to_string())).unwrap();
            for piece in 0..1_100 {
                file.write_all_at(b"x", piece * 8_192).unwrap();
            }
        }
        with_readers(&Cancel::new(), |readers| {
            let all: Vec<_> =
                (0..20).map(|number| readers.ask(Arc::clone(&folder), name(number))).collect();
            for reading in all {
                let opened = readers.take(&reading)?.unwrap();
                assert!(super::is_large(&opened), "{:?}", opened.map.as_ref().map(Vec::len));
                reading.content(|_| Ok(()))?;
            }
            Ok(())
        })
        .unwrap();
    }
}
