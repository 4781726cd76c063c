//! Plain bytes to stored objects.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::belt::{Belt, Packed, StopOnPanic};
use super::buffers::{Buffer, Buffers};
use super::object::{Block, EncodeSettings, EncodedObject, MAX_BLOCK_BYTES, ObjectSink};
use super::stored::{Joined, join};
use crate::model::{CancelGuard, Codec, Digest, Digester};

/// What one worker thread costs in memory at blocks of 1 MiB and ordinary levels, in bytes: a block
/// going in, what comes out of it, the compressor's state, and its share of what waits in between.
pub const WORKER_BYTES: u64 = 8 << 20;

/// Blocks in flight for each worker. With one, a worker that is done waits for the caller to fill
/// the next; with more, small blocks bridge the moments in which one of the threads does not run.
const IN_FLIGHT: usize = 2;

/// More recipients would make a header that the decoder does not read.
const MAX_RECIPIENTS: usize = 128;

/// How many bytes pass a throttle at once.
const THROTTLED_BYTES: usize = 256 << 10;

/// Encodes one stream. Dropping it without [`Encoder::finish`] gives the stream up; its threads
/// end, as soon as the sink returns from the call it may be in.
pub struct Encoder {
    settings: EncodeSettings,
    belt: Arc<Belt>,
    plain: Arc<Buffers>,
    filling: Option<Buffer>,
    blocks: u64,
    plain_bytes: u64,
    digester: Digester,
    workers: Vec<JoinHandle<()>>,
    joiner: Option<JoinHandle<Option<Joined>>>,
    _on_cancel: CancelGuard,
}

impl Encoder {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread could not be started.
    pub fn new(settings: EncodeSettings, sink: Box<dyn ObjectSink>) -> io::Result<Self> {
        let wrong = |message| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        if !(1..=MAX_BLOCK_BYTES).contains(&settings.block_bytes) {
            return wrong(format!("A block cannot have {} bytes", settings.block_bytes));
        }
        if settings.max_object_bytes == Some(0) {
            return wrong("An object cannot be limited to 0 bytes".to_owned());
        }
        if settings.recipients.len() > MAX_RECIPIENTS {
            return wrong(format!(
                "There are {} recipients, and at most {MAX_RECIPIENTS} can be",
                settings.recipients.len()
            ));
        }
        let threads = settings.threads.max(1);
        let belt = Arc::new(Belt::new(threads.saturating_mul(IN_FLIGHT)));
        let on_cancel = settings.cancel.on_cancel({
            let belt = Arc::clone(&belt);
            move || belt.stop(io::Error::other("Cancelled"))
        });
        let mut encoder = Self {
            belt: Arc::clone(&belt),
            plain: Buffers::new(settings.block_bytes),
            filling: None,
            blocks: 0,
            plain_bytes: 0,
            digester: Digester::new(),
            workers: Vec::new(),
            joiner: None,
            _on_cancel: on_cancel,
            settings,
        };
        // From here on an error drops the encoder, which ends the threads that were started.
        let packed = Buffers::new(encoder.settings.compression.bound(encoder.settings.block_bytes));
        for _ in 0..threads {
            let Some(mut packer) = encoder.settings.compression.packer()? else { break };
            let (belt, packed) = (Arc::clone(&belt), Arc::clone(&packed));
            encoder.workers.push(thread::Builder::new().name("compress".to_owned()).spawn(
                move || {
                    let _guard = StopOnPanic(&belt);
                    while let Some((number, block)) = belt.take_plain() {
                        let plain_bytes = block.len() as u64;
                        let bytes = packer.pack(block.as_ref(), &packed);
                        // Given back before the next block may come, so that no more than one a
                        // worker is out.
                        drop(block);
                        match bytes {
                            Ok(bytes) => belt.put_packed(number, Packed { plain_bytes, bytes }),
                            Err(error) => belt.stop(error),
                        }
                    }
                },
            )?);
        }
        let settings = encoder.settings.clone();
        encoder.joiner =
            Some(thread::Builder::new().name("encode".to_owned()).spawn(move || {
                let _guard = StopOnPanic(&belt);
                match join(&belt, &settings, sink) {
                    Ok(joined) => {
                        belt.joined();
                        Some(joined)
                    }
                    Err(error) => {
                        belt.stop(error);
                        None
                    }
                }
            })?);
        Ok(encoder)
    }

    /// Plain bytes taken in so far.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Encodes what is left, ends the threads, and hands the sink back.
    ///
    /// # Errors
    /// The first error of any thread or of the sink.
    pub fn finish(mut self) -> io::Result<(Encoded, Box<dyn ObjectSink>)> {
        self.belt.check()?;
        match self.filling.take() {
            Some(rest) => self.put(rest)?,
            // Nothing packed is not an empty stream to `zstd -d` and `gzip -d`, but an empty frame
            // or member is.
            None if self.blocks == 0 && !self.workers.is_empty() => {
                let empty = self.plain.lend()?;
                self.put(empty)?;
            }
            None => {}
        }
        self.belt.end(self.blocks);
        self.belt.wait_until_joined()?;
        let panicked =
            || io::Error::other("A thread of the encoder panicked; this is a fault of the program");
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| panicked())?;
        }
        let joined = self
            .joiner
            .take()
            .and_then(|joiner| joiner.join().ok())
            .flatten()
            .ok_or_else(panicked)?;
        let encoded = Encoded {
            codec: self.settings.compression.codec(!self.settings.recipients.is_empty()),
            plain_bytes: self.plain_bytes,
            plain_digest: std::mem::take(&mut self.digester).finish(),
            compressed_bytes: joined.compressed_bytes,
            objects: joined.objects,
            blocks: joined.blocks,
        };
        Ok((encoded, joined.sink))
    }

    fn put(&mut self, block: Buffer) -> io::Result<()> {
        let number = self.blocks;
        self.blocks += 1;
        if self.workers.is_empty() {
            self.belt.put_through(number, block)
        } else {
            self.belt.put_plain(number, block)
        }
    }
}

impl Write for Encoder {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.belt.check()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut offered = bytes;
        let mut block = match self.filling.take() {
            Some(block) => block,
            None => self.plain.lend()?,
        };
        if let Some(throttle) = &self.settings.read_rate {
            let count = offered.len().min(block.room().len()).min(THROTTLED_BYTES);
            offered = offered.get(..count).unwrap_or(offered);
            throttle.wait(count as u64, &self.settings.cancel);
            self.belt.check()?;
        }
        let count = block.fill(offered);
        self.digester.update(offered.get(..count).unwrap_or(offered));
        self.plain_bytes += count as u64;
        if block.is_full() {
            self.put(block)?;
        } else {
            self.filling = Some(block);
        }
        Ok(count)
    }

    /// A block is not cut short for it: what is not yet a whole block stays until more comes or
    /// [`Encoder::finish`].
    fn flush(&mut self) -> io::Result<()> {
        self.belt.check()
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // The threads are not waited for: the one that joins may be in a call to the sink that only
        // ends after this.
        self.belt.stop(io::Error::other("The stream was given up"));
    }
}

/// What came of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// How it was encoded.
    pub codec: Codec,
    /// Bytes before compression.
    pub plain_bytes: u64,
    pub plain_digest: Digest,
    /// Bytes between compression and encryption.
    pub compressed_bytes: u64,
    /// The objects, in order; at least one.
    pub objects: Vec<EncodedObject>,
    /// Where each block begins. 16 bytes for each, the one thing here that grows with the stream.
    pub blocks: Vec<Block>,
}
