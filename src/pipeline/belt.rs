//! What the threads of one stream share: who has which block, and whether to stop.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::buffers::Buffer;

/// The belt that blocks travel on: the caller puts plain blocks on it, workers pack them, one
/// thread takes the packed ones off in order.
///
/// How many buffers there are. A block is in flight from when the caller puts it on until the
/// joining thread takes it off, and at most `in_flight` are. So there are at most `in_flight + 1`
/// plain and packed buffers together that are in flight or with the joining thread, a plain one
/// that is being filled, and, for a moment, a packed one more for each worker, besides what the
/// sink holds on to.
///
/// Why nobody waits for ever. Waits are only these, and each ends when the one after it makes a
/// step:
/// - the caller, until fewer than `in_flight` are in flight: the joining thread takes the next one;
/// - the joining thread, until the next block is packed: it is in flight (or its end is announced),
///   and its worker waits for nothing;
/// - workers, until there is a block or the end.
///
/// The joining thread otherwise waits inside the sink only. Nobody waits for a buffer: one that the
/// sink holds on to is replaced by a new one, so a sink that gathers many chunks before it lets go
/// of the first costs memory and not the run; how much a sink holds is bounded by the sink, which
/// makes the joining thread wait. Whoever fails, panics, gives up or is cancelled calls
/// [`Belt::stop`], which ends every one of these waits.
pub(super) struct Belt {
    in_flight: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Plain blocks that no worker took yet.
    plain: VecDeque<(u64, Buffer)>,
    /// Packed blocks that the joining thread did not take yet.
    packed: BTreeMap<u64, Packed>,
    /// How many blocks the joining thread took.
    taken: u64,
    /// How many blocks there are, once that is known.
    total: Option<u64>,
    /// Whether the joining thread is through.
    joined: bool,
    stopped: Option<Stopped>,
}

/// A packed block.
pub(super) struct Packed {
    /// Bytes before compression.
    pub(super) plain_bytes: u64,
    pub(super) bytes: Buffer,
}

/// Why the stream ended early. The first who asks gets the error itself, others one that says the
/// same.
struct Stopped {
    error: Option<io::Error>,
    kind: io::ErrorKind,
    message: String,
}

impl Belt {
    /// A belt with room for so many blocks.
    pub(super) fn new(in_flight: usize) -> Self {
        Self { in_flight: in_flight as u64, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Ends the stream early. The first reason stands.
    pub(super) fn stop(&self, error: io::Error) {
        // `write_all` tries again after `Interrupted`, and this stays.
        let error = if error.kind() == io::ErrorKind::Interrupted {
            io::Error::other(error)
        } else {
            error
        };
        let mut state = self.lock();
        if state.stopped.is_none() {
            state.stopped = Some(Stopped {
                kind: error.kind(),
                message: error.to_string(),
                error: Some(error),
            });
            state.plain.clear();
            state.packed.clear();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The reason when the stream was stopped.
    pub(super) fn check(&self) -> io::Result<()> {
        Self::check_state(&mut self.lock())
    }

    /// Puts block `number` on, for a worker; waits while too many are in flight.
    pub(super) fn put_plain(&self, number: u64, block: Buffer) -> io::Result<()> {
        let mut state = self.wait_for_room(number)?;
        state.plain.push_back((number, block));
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Puts block `number` on as it is, past the workers; waits while too many are in flight.
    pub(super) fn put_through(&self, number: u64, block: Buffer) -> io::Result<()> {
        drop(self.wait_for_room(number)?);
        self.put_packed(number, Packed { plain_bytes: block.len() as u64, bytes: block });
        Ok(())
    }

    /// Announces that there are `total` blocks.
    pub(super) fn end(&self, total: u64) {
        self.lock().total = Some(total);
        self.changed.notify_all();
    }

    /// The next block to pack; none at the end, or when stopped.
    pub(super) fn take_plain(&self) -> Option<(u64, Buffer)> {
        let mut state = self.lock();
        loop {
            if state.stopped.is_some() {
                return None;
            }
            if let Some(block) = state.plain.pop_front() {
                return Some(block);
            }
            if state.total.is_some() {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Puts a packed block on. Never waits: it is in flight already.
    pub(super) fn put_packed(&self, number: u64, block: Packed) {
        let mut state = self.lock();
        if state.stopped.is_none() {
            state.packed.insert(number, block);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Block `number`, once it is packed; none when there is no such block.
    pub(super) fn take_packed(&self, number: u64) -> io::Result<Option<Packed>> {
        let mut state = self.lock();
        loop {
            Self::check_state(&mut state)?;
            if let Some(block) = state.packed.remove(&number) {
                state.taken += 1;
                drop(state);
                self.changed.notify_all();
                return Ok(Some(block));
            }
            if state.total.is_some_and(|total| number >= total) {
                return Ok(None);
            }
            state = self.wait(state);
        }
    }

    /// Says that the joining thread is through.
    pub(super) fn joined(&self) {
        self.lock().joined = true;
        self.changed.notify_all();
    }

    /// Waits until the joining thread is through.
    pub(super) fn wait_until_joined(&self) -> io::Result<()> {
        let mut state = self.lock();
        loop {
            if state.joined {
                return Ok(());
            }
            Self::check_state(&mut state)?;
            state = self.wait(state);
        }
    }

    fn wait_for_room(&self, number: u64) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        loop {
            Self::check_state(&mut state)?;
            if number < state.taken + self.in_flight {
                return Ok(state);
            }
            state = self.wait(state);
        }
    }

    fn check_state(state: &mut State) -> io::Result<()> {
        match &mut state.stopped {
            None => Ok(()),
            Some(stopped) => Err(stopped
                .error
                .take()
                .unwrap_or_else(|| io::Error::new(stopped.kind, stopped.message.clone()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the belt when the thread that holds it panics.
pub(super) struct StopOnPanic<'a>(pub(super) &'a Belt);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(io::Error::other(
                "A thread of the encoder panicked; this is a fault of the program",
            ));
        }
    }
}
