//! Packed blocks to stored objects: joined in order, encrypted, cut, digested. On one thread.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;

use super::belt::Belt;
use super::buffers::{Buffer, Buffers};
use super::compress::Algorithm;
use super::object::{Block, EncodeSettings, EncodedObject, ObjectSink};
use crate::model::Digester;

/// Stored bytes are handed to the sink in chunks of this size.
const CHUNK_BYTES: usize = 1 << 20;

/// What the joining thread found.
pub(super) struct Joined {
    pub(super) compressed_bytes: u64,
    pub(super) objects: Vec<EncodedObject>,
    pub(super) blocks: Vec<Block>,
    pub(super) sink: Box<dyn ObjectSink>,
}

/// Takes every block off the belt, in order, and stores it.
pub(super) fn join(
    belt: &Arc<Belt>,
    settings: &EncodeSettings,
    sink: Box<dyn ObjectSink>,
) -> io::Result<Joined> {
    let objects = Objects::new(Arc::clone(belt), sink, settings.max_object_bytes);
    let mut out = Out::new(objects, settings)?;
    let (mut plain, mut compressed) = (0, 0);
    let mut blocks = Vec::new();
    while let Some(block) = belt.take_packed(blocks.len() as u64)? {
        blocks.push(Block { plain, compressed });
        plain += block.plain_bytes;
        compressed += block.bytes.len() as u64;
        out.put(block.bytes.as_ref())?;
    }
    if settings.compression.algorithm() == Algorithm::Zstd {
        compressed += seek_table(&blocks, Block { plain, compressed }, &mut out)?;
    }
    let objects = out.finish()?;
    Ok(Joined { compressed_bytes: compressed, objects: objects.done, blocks, sink: objects.sink })
}

/// Where compressed bytes go.
enum Out {
    Plain(Chunks),
    /// It allocates 64 KiB at a time, for its own chunks, which an allocator gives out again and
    /// again.
    Age(age::stream::StreamWriter<Chunks>),
}

impl Out {
    fn new(objects: Objects, settings: &EncodeSettings) -> io::Result<Self> {
        let buffers = Buffers::new(CHUNK_BYTES.min(settings.block_bytes));
        let chunks = Chunks { objects, buffers, filling: None };
        if settings.recipients.is_empty() {
            return Ok(Self::Plain(chunks));
        }
        let recipients =
            settings.recipients.iter().map(|recipient| &recipient.0 as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| {
            io::Error::other(format!("Could not encrypt to the recipients: {error}"))
        })?;
        Ok(Self::Age(encryptor.wrap_output(chunks)?))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(chunks) => chunks.write_all(bytes),
            Self::Age(writer) => writer.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Objects> {
        let mut objects = match self {
            Self::Plain(chunks) => chunks,
            Self::Age(writer) => writer.finish()?,
        }
        .finish()?;
        if objects.current.is_none() {
            objects.begin()?;
        }
        objects.end();
        Ok(objects)
    }
}

/// Gathers stored bytes into chunks of one size. A storage that holds on to some holds that much
/// and no more: a packed block fills its own buffer in part only, and goes back to the workers at
/// once.
struct Chunks {
    objects: Objects,
    buffers: Arc<Buffers>,
    filling: Option<Buffer>,
}

impl Chunks {
    fn finish(mut self) -> io::Result<Objects> {
        if let Some(rest) = self.filling.take() {
            self.objects.put(Bytes::from_owner(rest))?;
        }
        Ok(self.objects)
    }
}

impl Write for Chunks {
    /// Always takes all: the writer of age's header fails when it does not.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut buffer = match self.filling.take() {
                Some(buffer) => buffer,
                None => self.buffers.lend()?,
            };
            let count = buffer.fill(rest);
            rest = rest.get(count..).unwrap_or_default();
            if buffer.is_full() {
                self.objects.put(Bytes::from_owner(buffer))?;
            } else {
                self.filling = Some(buffer);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts the stored stream into objects and digests each.
struct Objects {
    belt: Arc<Belt>,
    sink: Box<dyn ObjectSink>,
    max_bytes: u64,
    current: Option<(u64, Digester)>,
    done: Vec<EncodedObject>,
}

impl Objects {
    fn new(belt: Arc<Belt>, sink: Box<dyn ObjectSink>, max_bytes: Option<u64>) -> Self {
        Self {
            belt,
            sink,
            max_bytes: max_bytes.unwrap_or(u64::MAX),
            current: None,
            done: Vec::new(),
        }
    }

    fn put(&mut self, mut chunk: Bytes) -> io::Result<()> {
        while !chunk.is_empty() {
            // A stream that was given up does not reach the sink any more.
            self.belt.check()?;
            if self.current.as_ref().is_none_or(|(size, _)| *size >= self.max_bytes) {
                self.end();
                self.begin()?;
            }
            let Some((size, digester)) = &mut self.current else { continue };
            let room = usize::try_from(self.max_bytes - *size).unwrap_or(usize::MAX);
            let part = chunk.split_to(room.min(chunk.len()));
            digester.update(&part);
            *size += part.len() as u64;
            self.sink.write(part).map_err(lasting)?;
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<()> {
        let index = u32::try_from(self.done.len()).map_err(io::Error::other)?;
        self.sink.begin(index).map_err(lasting)?;
        self.current = Some((0, Digester::new()));
        Ok(())
    }

    fn end(&mut self) {
        if let Some((size, digester)) = self.current.take() {
            self.done.push(EncodedObject { size, digest: digester.finish() });
        }
    }
}

/// `write_all` would try again after `Interrupted`, with bytes that the sink has already.
fn lasting(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::Interrupted { io::Error::other(error) } else { error }
}

const SEEK_ENTRY_BYTES: usize = 8;
const SEEK_FOOTER_BYTES: usize = 9;
const SKIPPABLE_HEADER_BYTES: u64 = 8;
/// The seekable format has no table for more: 128 TiB in blocks of 1 MiB. Such a stream is read
/// from its beginning by others.
const MAX_FRAMES: u64 = 0x0800_0000;

/// Bytes of the seek table at the end of a zstd stream of `blocks` blocks; there is none where the
/// format has none.
pub(super) fn seek_table_bytes(blocks: u64) -> u64 {
    if blocks > MAX_FRAMES {
        return 0;
    }
    SKIPPABLE_HEADER_BYTES + blocks * SEEK_ENTRY_BYTES as u64 + SEEK_FOOTER_BYTES as u64
}

/// The skippable frame at the end of a stream that lists its frames:
/// <https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md>.
/// Returns its size.
fn seek_table(blocks: &[Block], end: Block, out: &mut Out) -> io::Result<u64> {
    const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
    const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
    const PIECE_BYTES: usize = 64 << 10;
    let total = seek_table_bytes(blocks.len() as u64);
    if total == 0 {
        return Ok(0);
    }
    let count = u32::try_from(blocks.len()).map_err(io::Error::other)?;
    let size = u32::try_from(total - SKIPPABLE_HEADER_BYTES).map_err(io::Error::other)?;
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    piece.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    piece.extend_from_slice(&size.to_le_bytes());
    let ends = blocks.iter().skip(1).chain(std::iter::once(&end));
    for (begin, end) in blocks.iter().zip(ends) {
        let compressed =
            u32::try_from(end.compressed - begin.compressed).map_err(io::Error::other)?;
        let plain = u32::try_from(end.plain - begin.plain).map_err(io::Error::other)?;
        piece.extend_from_slice(&compressed.to_le_bytes());
        piece.extend_from_slice(&plain.to_le_bytes());
        if piece.len() + SEEK_FOOTER_BYTES > PIECE_BYTES {
            out.put(&piece)?;
            piece.clear();
        }
    }
    piece.extend_from_slice(&count.to_le_bytes());
    // The descriptor: no checksums here, each frame has its own.
    piece.push(0);
    piece.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
    out.put(&piece)?;
    Ok(total)
}
