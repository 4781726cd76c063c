//! The big buffers of a stream, used again and again.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Buffers of one size. Those that are given back are lent again, so that a stream of any length
/// needs as many as are out at the same time.
///
/// They are mapped rather than allocated: an allocator keeps big buffers that were freed, in the
/// arena of whichever thread asked, and a process that encodes one stream after another would grow.
/// A mapping is gone when it is dropped, and pages of it that were never written (a short stream)
/// are never there.
pub(super) struct Buffers {
    capacity: usize,
    free: Mutex<Vec<MmapMut>>,
}

impl Buffers {
    /// Buffers of `capacity` bytes; none is made yet.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, free: Mutex::new(Vec::new()) })
    }

    /// An empty buffer: one that was given back, else a new one. It never waits.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn lend(self: &Arc<Self>) -> io::Result<Buffer> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let map = match free {
            Some(map) => map,
            None => MmapMut::map_anon(self.capacity.max(1)).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("Could not get a buffer of {} bytes: {error}", self.capacity),
                )
            })?,
        };
        Ok(Buffer { map: Some(map), len: 0, home: Arc::clone(self) })
    }
}

/// A buffer, filled from its beginning. Dropped, it goes back to where it came from.
pub(super) struct Buffer {
    /// Taken by `drop` only.
    map: Option<MmapMut>,
    len: usize,
    home: Arc<Buffers>,
}

impl Buffer {
    /// Bytes it holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The part that is not filled yet.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let capacity = self.home.capacity;
        let map = self.map.as_deref_mut().unwrap_or_default();
        map.get_mut(self.len..capacity).unwrap_or_default()
    }

    /// Says that the first `count` bytes of the room were filled.
    pub(super) fn filled(&mut self, count: usize) {
        self.len = self.len.saturating_add(count).min(self.home.capacity);
    }

    /// Copies in as much of `bytes` as there is room for; returns how much that was.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        let count = room.len().min(bytes.len());
        if let (Some(to), Some(from)) = (room.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        self.filled(count);
        count
    }

    /// Whether there is no room left.
    pub(super) fn is_full(&self) -> bool {
        self.len == self.home.capacity
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.map.as_deref().and_then(|map| map.get(..self.len)).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(map);
        }
    }
}
