//! Parts of a stored stream: the plain bytes of some ranges, from the blocks that they lie in and
//! nothing else.
//!
//! Ranges of the plain stream lead to blocks, blocks to ranges of the compressed stream, and those
//! to ranges of the stored one: the same where nothing is encrypted, else the chunks of age that
//! they lie in, by arithmetic. Blocks that lie near each other are fetched together. One block at a
//! time is in memory.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blocks::BlockSpan;
use super::crypt::Identity;
use super::decode::{DecodeError, Headed, Layer, MAX_HEADER_BYTES, damage, decrypted};
use crate::model::{Artifact, Compression, Encryption, StoredObject};

/// Up to this many bytes between two blocks are read over: asking anew takes about as long.
const GAP_BYTES: u64 = 256 << 10;

/// The most blocks, and the most compressed bytes, that are asked for at once. They bound what is
/// known of blocks to come.
const RUN_BLOCKS: usize = 1_024;
const RUN_BYTES: u64 = 64 << 20;

/// Of age (<https://age-encryption.org/v1>): plain bytes of a chunk, what each chunk has besides,
/// and the nonce behind the header.
const CHUNK_BYTES: u64 = 64 << 10;
const TAG_BYTES: u64 = 16;
const NONCE_BYTES: u64 = 16;

/// Gets exactly these bytes of a stored object.
pub type Fetch<'a> =
    Box<dyn FnMut(&StoredObject, Range<u64>) -> io::Result<Box<dyn Read + Send + 'a>> + Send + 'a>;

/// The plain bytes of `ranges` of `artifact`, one range after the other. `spans` are its blocks, as
/// a [`super::BlockList`] yields them; they are read as far as they are needed. Only what the
/// ranges lie in is asked of `fetch`, and what is near.
///
/// Each block is held against its own checksum (zstd, gzip) and, encrypted, against that of its
/// chunks; nothing is held against the digests of the objects or of the stream. Whoever knows the
/// digest of a part has to check it.
///
/// # Errors
/// When it cannot be decrypted with `identities`, or `ranges` do not ascend. Reading fails on
/// damage, and where a range goes beyond the end of the stream.
pub fn parts<'a>(
    artifact: &Artifact,
    spans: Box<dyn Iterator<Item = io::Result<BlockSpan>> + Send + 'a>,
    fetch: Fetch<'a>,
    identities: &[Identity],
    ranges: Vec<Range<u64>>,
) -> Result<Box<dyn Read + Send + 'a>, DecodeError> {
    let mut reached = 0;
    for range in &ranges {
        if range.start < reached || range.end < range.start {
            let message = format!(
                "Bytes {} to {} were asked for after byte {reached}",
                range.start, range.end
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message).into());
        }
        reached = range.end;
    }
    if ranges.iter().all(Range::is_empty) {
        return Ok(Box::new(io::empty()));
    }
    let unpack = match artifact.codec.compression {
        Compression::Zstd => Unpack::Zstd(zstd::bulk::Decompressor::new()?),
        Compression::Gzip => Unpack::Gzip,
        Compression::None => Unpack::Raw,
    };
    Ok(Box::new(Parts {
        spans,
        ranges,
        current: 0,
        planned: 0,
        seen: 0,
        waiting: None,
        run: VecDeque::new(),
        compressed: Compressed::open(artifact, fetch, identities)?,
        packed: Vec::new(),
        unpack,
        block: Vec::new(),
        block_start: 0,
        failed: None,
    }))
}

/// Yields the bytes of the ranges.
struct Parts<'a> {
    spans: Box<dyn Iterator<Item = io::Result<BlockSpan>> + Send + 'a>,
    /// The first one not wholly given out, at `current`, begins with the next byte to give.
    ranges: Vec<Range<u64>>,
    current: usize,
    /// The first range that may need a block that was not looked at.
    planned: usize,
    /// The end of the last block that was looked at, in the plain stream.
    seen: u64,
    /// A block that is needed and not asked for yet.
    waiting: Option<BlockSpan>,
    /// The blocks that were asked for together and are not read yet.
    run: VecDeque<BlockSpan>,
    compressed: Compressed<'a>,
    packed: Vec<u8>,
    unpack: Unpack,
    /// The block that was read last.
    block: Vec<u8>,
    block_start: u64,
    /// Nothing is given out after an error.
    failed: Option<(io::ErrorKind, String)>,
}

impl Parts<'_> {
    /// The next block that lies in a range; none when no range needs one more.
    fn next_needed(&mut self) -> io::Result<Option<BlockSpan>> {
        if let Some(span) = self.waiting.take() {
            return Ok(Some(span));
        }
        loop {
            while self
                .ranges
                .get(self.planned)
                .is_some_and(|range| range.is_empty() || range.end <= self.seen)
            {
                self.planned += 1;
            }
            let Some(range) = self.ranges.get(self.planned) else { return Ok(None) };
            let Some(span) = self.spans.next() else {
                let (start, end, seen) = (range.start, range.end, self.seen);
                return Err(damage(format!(
                    "Bytes {start} to {end} are wanted of a stream that has {seen}"
                )));
            };
            let span = span?;
            self.seen = span.plain.end;
            if range.start < span.plain.end {
                return Ok(Some(span));
            }
        }
    }

    /// Decides what is asked for next: blocks that lie near each other.
    fn plan(&mut self) -> io::Result<()> {
        let Some(first) = self.next_needed()? else { return Ok(()) };
        let start = first.compressed.start;
        let mut end = first.compressed.end;
        self.run.push_back(first);
        while self.run.len() < RUN_BLOCKS {
            let next = match self.next_needed() {
                Ok(Some(next)) => next,
                Ok(None) => break,
                // What is sound before it is given out first. Whoever asks on gets the error again,
                // or its cause.
                Err(error) => {
                    self.spans = Box::new(std::iter::once(Err(error)));
                    break;
                }
            };
            if next.compressed.start.saturating_sub(end) > GAP_BYTES
                || next.compressed.end.saturating_sub(start) > RUN_BYTES
            {
                self.waiting = Some(next);
                break;
            }
            end = next.compressed.end;
            self.run.push_back(next);
        }
        self.compressed.ask(start..end)
    }

    /// Reads the next block that is needed.
    fn advance(&mut self) -> io::Result<()> {
        if self.run.is_empty() {
            self.plan()?;
        }
        let Some(span) = self.run.pop_front() else {
            return Err(io::Error::other("A range has no block; this is a fault of the program"));
        };
        self.compressed.read(&span.compressed, &mut self.packed)?;
        let size = usize::try_from(span.plain.end - span.plain.start).map_err(io::Error::other)?;
        self.block_start = span.plain.start;
        self.unpack.unpack(&self.packed, size, &mut self.block).map_err(|problem| {
            damage(format!(
                "The block of bytes {} to {} is damaged: {problem}",
                span.plain.start, span.plain.end
            ))
        })
    }

    fn give(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(range) = self.ranges.get_mut(self.current) {
            if range.is_empty() {
                self.current += 1;
                continue;
            }
            let ready = range
                .start
                .checked_sub(self.block_start)
                .and_then(|skip| usize::try_from(skip).ok());
            let ready = ready.and_then(|skip| self.block.get(skip..)).unwrap_or_default();
            if ready.is_empty() {
                self.advance()?;
                continue;
            }
            let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let count = ready.get(..wanted).unwrap_or(ready).read(buf)?;
            range.start += count as u64;
            return Ok(count);
        }
        Ok(0)
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some((kind, message)) = &self.failed {
            return Err(io::Error::new(*kind, message.clone()));
        }
        if buf.is_empty() {
            return Ok(0);
        }
        self.give(buf).inspect_err(|error| self.failed = Some((error.kind(), error.to_string())))
    }
}

/// Unpacks one block after another.
enum Unpack {
    Zstd(zstd::bulk::Decompressor<'static>),
    Gzip,
    Raw,
}

impl Unpack {
    /// Unpacks a block of `size` bytes, or says in words why it is none.
    fn unpack(&mut self, packed: &[u8], size: usize, block: &mut Vec<u8>) -> Result<(), String> {
        block.clear();
        match self {
            Self::Zstd(decompressor) => {
                block.reserve_exact(size);
                decompressor
                    .decompress_to_buffer(packed, block)
                    .map_err(|error| error.to_string())?;
            }
            Self::Gzip => {
                let mut member = flate2::bufread::GzDecoder::new(packed);
                let more = size as u64 + 1;
                (&mut member).take(more).read_to_end(block).map_err(|error| error.to_string())?;
                if !member.into_inner().is_empty() {
                    return Err("it goes on after its end".to_owned());
                }
            }
            Self::Raw => block.extend_from_slice(packed),
        }
        if block.len() == size {
            return Ok(());
        }
        let found = block.len();
        // Whoever looks again must not take it for the block.
        block.clear();
        Err(format!("it has {found} bytes, and {size} are listed"))
    }
}

/// The compressed stream, of which spans are read in ascending order.
struct Compressed<'a> {
    reader: Reader<'a>,
    /// Where the next byte that `reader` yields is.
    position: u64,
    /// How far the stored stream may be fetched.
    until: Arc<AtomicU64>,
}

type StoredParts<'a> = Layer<Windowed<'a>>;

enum Reader<'a> {
    Plain(StoredParts<'a>),
    Age {
        reader: Box<Layer<age::stream::StreamReader<Headed<StoredParts<'a>>>>>,
        payload: Range<u64>,
    },
}

impl<'a> Compressed<'a> {
    fn open(
        artifact: &Artifact,
        fetch: Fetch<'a>,
        identities: &[Identity],
    ) -> Result<Self, DecodeError> {
        let mut total: u64 = 0;
        for object in &artifact.objects {
            total = total.checked_add(object.size).ok_or_else(|| misfit(artifact))?;
        }
        let until = Arc::new(AtomicU64::new(0));
        let stored = Layer {
            inner: Windowed {
                objects: artifact.objects.clone(),
                fetch,
                total,
                position: 0,
                until: Arc::clone(&until),
                open: None,
            },
            fault: "The stored stream could not be read",
        };
        let reader = match artifact.codec.encryption {
            Encryption::None if total == artifact.compressed_bytes => Reader::Plain(stored),
            Encryption::None => return Err(misfit(artifact).into()),
            Encryption::Age => {
                let payload =
                    payload(artifact.compressed_bytes, total).ok_or_else(|| misfit(artifact))?;
                until.store(payload.start, Ordering::Relaxed);
                let inner = decrypted(stored, identities)?;
                Reader::Age {
                    reader: Box::new(Layer {
                        inner,
                        fault: "The encrypted stream is damaged or cut",
                    }),
                    payload,
                }
            }
        };
        Ok(Self { reader, position: 0, until })
    }

    /// Goes to the beginning of `span`, all of which will be read and nothing else.
    fn ask(&mut self, span: Range<u64>) -> io::Result<()> {
        match &mut self.reader {
            Reader::Plain(stored) => {
                self.until.store(span.end, Ordering::Relaxed);
                stored.seek(SeekFrom::Start(span.start))?;
            }
            Reader::Age { reader, payload } => {
                let chunks = span.end.div_ceil(CHUNK_BYTES);
                let end = payload
                    .start
                    .saturating_add(chunks.saturating_mul(CHUNK_BYTES + TAG_BYTES))
                    .min(payload.end);
                self.until.store(end, Ordering::Relaxed);
                if self.position != span.start {
                    // Asked for the beginning of a chunk, age first reads the last one of all, to
                    // know how many there are. So the byte after it is asked for, and the one
                    // before that then, which is in the same chunk.
                    if span.start.is_multiple_of(CHUNK_BYTES) {
                        reader.seek(SeekFrom::Start(span.start.saturating_add(1)))?;
                    }
                    reader.seek(SeekFrom::Start(span.start))?;
                }
            }
        }
        self.position = span.start;
        Ok(())
    }

    /// Reads `span`, and over what is before it.
    fn read(&mut self, span: &Range<u64>, packed: &mut Vec<u8>) -> io::Result<()> {
        let reader: &mut dyn Read = match &mut self.reader {
            Reader::Plain(stored) => stored,
            Reader::Age { reader, .. } => reader,
        };
        let gap = span.start.saturating_sub(self.position);
        io::copy(&mut reader.take(gap), &mut io::sink())?;
        let size = span.end.saturating_sub(span.start);
        packed.clear();
        let count = reader.take(size).read_to_end(packed)?;
        self.position = span.end;
        if (count as u64) < size {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("The stream is cut: {count} of {size} bytes of a block are there"),
            ));
        }
        Ok(())
    }
}

/// Where in a stored stream of `total` bytes the chunks of age lie; none when the sizes do not fit
/// each other.
fn payload(compressed: u64, total: u64) -> Option<Range<u64>> {
    // What is empty has a chunk too.
    let chunks = compressed.div_ceil(CHUNK_BYTES).max(1);
    let start = total.checked_sub(chunks.checked_mul(TAG_BYTES)?.checked_add(compressed)?)?;
    (NONCE_BYTES..=MAX_HEADER_BYTES as u64 + NONCE_BYTES).contains(&start).then_some(start..total)
}

fn misfit(artifact: &Artifact) -> io::Error {
    damage(format!(
        "The manifest says {} bytes after compression and {} stored, which do not fit each other",
        artifact.compressed_bytes,
        artifact.objects.iter().fold(0, |sum: u64, object| sum.saturating_add(object.size))
    ))
}

/// The stored stream, all objects joined, of which only what is read is fetched: from where reading
/// begins to `until`, or the end of the object if that comes first.
struct Windowed<'a> {
    objects: Vec<StoredObject>,
    fetch: Fetch<'a>,
    /// Bytes of all objects.
    total: u64,
    position: u64,
    until: Arc<AtomicU64>,
    open: Option<Opened<'a>>,
}

/// A part of an object that is being read.
struct Opened<'a> {
    reader: Box<dyn Read + Send + 'a>,
    key: String,
    left: u64,
}

impl<'a> Windowed<'a> {
    fn begin(&mut self) -> io::Result<Opened<'a>> {
        let mut start = self.position;
        let mut objects = self.objects.iter();
        let object = loop {
            match objects.next() {
                Some(object) if start < object.size => break object,
                Some(object) => start -= object.size,
                None => {
                    return Err(damage("The stored stream is shorter than its objects".to_owned()));
                }
            }
        };
        let window = self.until.load(Ordering::Relaxed).saturating_sub(self.position);
        let end = start.saturating_add(window).min(object.size);
        if end <= start {
            // The manifest's sizes decide what is asked for, and the stream itself what is read.
            return Err(damage(
                "The stored stream is not laid out as the manifest says".to_owned(),
            ));
        }
        let reader = (self.fetch)(object, start..end)?;
        Ok(Opened { reader, key: object.key.clone(), left: end - start })
    }
}

impl Read for Windowed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.position >= self.total {
            return Ok(0);
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin()?,
        };
        let wanted = usize::try_from(open.left).unwrap_or(usize::MAX).min(buf.len());
        let count = match open.reader.read(buf.get_mut(..wanted).unwrap_or_default()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.open = Some(open);
                return Err(error);
            }
            count => count?,
        };
        if count == 0 {
            let message = format!(
                "`{}` is cut: {} bytes that were asked for are not there",
                open.key, open.left
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.position += count as u64;
        open.left -= count as u64;
        self.open = (open.left > 0).then_some(open);
        Ok(count)
    }
}

impl Seek for Windowed<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.total.checked_add_signed(by),
        };
        let position = position.ok_or(io::ErrorKind::InvalidInput)?;
        if position != self.position {
            self.open = None;
            self.position = position;
        }
        Ok(position)
    }
}
