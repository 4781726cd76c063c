//! Stored objects back to plain bytes.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::crypt::Identity;
use super::object::MAX_BLOCK_BYTES;
use super::stopwatch::{Clocked, Step, Stopwatch};
use crate::model::{Codec, Compression, Digest, Digester, Encryption, StoredObject};

/// Bytes that are read at a time, and held back at the end.
const BUFFER_BYTES: usize = 128 << 10;

/// A header of age that is longer than this is not read: its parser begins again at each line, so a
/// hostile one would take hours.
pub(super) const MAX_HEADER_BYTES: usize = 16 << 10;

/// The largest window of zstd that is taken, as a power of 2. A stream that asks for more was not
/// written by this program.
const WINDOW_LOG_MAX: u32 = MAX_BLOCK_BYTES.ilog2();

/// Reads the stored stream of an artifact, all objects joined, and holds it against their sizes and
/// digests: a difference is an error of the read that reaches it, at the latest at the end of the
/// object it is in.
pub struct Verified<R> {
    inner: R,
    objects: VecDeque<StoredObject>,
    /// Bytes of the first object that were read.
    read: u64,
    digester: Digester,
    /// Set by the first difference; nothing is read after it.
    damage: Option<String>,
}

impl<R: Read> Verified<R> {
    /// Reads `objects`, which `inner` yields joined.
    pub fn new(inner: R, objects: &[StoredObject]) -> Self {
        let objects = objects.iter().cloned().collect();
        Self { inner, objects, read: 0, digester: Digester::new(), damage: None }
    }

    fn damaged<T>(&mut self, kind: io::ErrorKind, message: String) -> io::Result<T> {
        self.damage = Some(message.clone());
        Err(io::Error::new(kind, message))
    }

    /// Holds objects that were read to their end against their digests, and goes on to the next.
    fn pass_ends(&mut self) -> io::Result<()> {
        while let Some(object) = self.objects.pop_front_if(|object| object.size == self.read) {
            self.read = 0;
            let found = std::mem::take(&mut self.digester).finish();
            if found != object.digest {
                let message = format!(
                    "`{}` is damaged: its digest is {found}, and {} was stored",
                    object.key, object.digest
                );
                return self.damaged(io::ErrorKind::InvalidData, message);
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(damage) = &self.damage {
            return Err(io::Error::new(io::ErrorKind::InvalidData, damage.clone()));
        }
        if buf.is_empty() {
            return Ok(0);
        }
        self.pass_ends()?;
        let Some(object) = self.objects.front() else {
            return match self.inner.read(buf)? {
                0 => Ok(0),
                _ => self.damaged(
                    io::ErrorKind::InvalidData,
                    "There are more bytes than were stored after the end of the last object"
                        .to_owned(),
                ),
            };
        };
        let left = usize::try_from(object.size.saturating_sub(self.read)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        let part = buf.get_mut(..count).unwrap_or_default();
        let count = self.inner.read(part)?;
        if count == 0 {
            let message =
                format!("`{}` is cut: it has {} of {} bytes", object.key, self.read, object.size);
            return self.damaged(io::ErrorKind::UnexpectedEof, message);
        }
        self.digester.update(part.get(..count).unwrap_or_default());
        self.read += count as u64;
        self.pass_ends()?;
        Ok(count)
    }
}

/// What is known of a plain stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Bytes.
    pub plain_bytes: u64,
    pub plain_digest: Digest,
}

/// The plain stream of `stored`. Its last bytes are yielded only after `stored` was read to its end
/// without an error, and, where `expected` is known, the plain bytes were as expected; so who reads
/// it to its end has read undamaged bytes, and who is fed a damaged stream never gets a complete
/// one.
///
/// A stream that was cut where one frame or member ends and the next begins is whole to its codec.
/// It takes [`Verified`], `expected` or encryption to see that.
///
/// # Errors
/// When it cannot be decrypted with `identities` or is not what `codec` says.
pub fn decoder<'a>(
    stored: Box<dyn Read + Send + 'a>,
    codec: Codec,
    identities: &[Identity],
    expected: Option<Expected>,
) -> Result<Box<dyn Read + Send + 'a>, DecodeError> {
    timed_decoder(stored, codec, identities, expected, None)
}

/// As [`decoder`], with the time that each of its steps takes counted by `watch`.
///
/// # Errors
/// As [`decoder`].
pub fn timed_decoder<'a>(
    stored: Box<dyn Read + Send + 'a>,
    codec: Codec,
    identities: &[Identity],
    expected: Option<Expected>,
    watch: Option<&Stopwatch>,
) -> Result<Box<dyn Read + Send + 'a>, DecodeError> {
    let ended = Arc::new(AtomicBool::new(false));
    let stored = Layer {
        inner: Stored { inner: stored, ended: Arc::clone(&ended) },
        fault: "The stored stream could not be read",
    };
    let compressed: Box<dyn Read + Send + 'a> = match codec.encryption {
        Encryption::None => Box::new(stored),
        Encryption::Age => {
            let inner = decrypted(stored, identities)?;
            let inner = Clocked::new(inner, watch, Step::Decrypt);
            Box::new(Layer { inner, fault: "The encrypted stream is damaged or cut" })
        }
    };
    let compressed = BufReader::with_capacity(BUFFER_BYTES, compressed);
    let plain: Box<dyn Read + Send + 'a> = match codec.compression {
        Compression::None => Box::new(compressed),
        Compression::Zstd => {
            let mut inner = zstd::Decoder::with_buffer(compressed)?;
            inner.window_log_max(WINDOW_LOG_MAX)?;
            Box::new(Layer { inner, fault: "The zstd stream is damaged or cut" })
        }
        Compression::Gzip => {
            let inner = flate2::bufread::MultiGzDecoder::new(compressed);
            Box::new(Layer { inner, fault: "The gzip stream is damaged or cut" })
        }
    };
    let step = if codec.compression == Compression::None { Step::Digest } else { Step::Decompress };
    let held = HeldBack {
        inner: Clocked::new(plain, watch, step),
        ended,
        expected,
        digester: Digester::new(),
        plain_bytes: 0,
        ready: Vec::with_capacity(BUFFER_BYTES),
        given: 0,
        ahead: Vec::with_capacity(BUFFER_BYTES),
        state: State::Reading,
    };
    Ok(Box::new(Clocked::new(held, watch, Step::Digest)))
}

/// Why a stored stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is encrypted and none of the identities opens it.
    #[error("It is encrypted, and {0}")]
    Locked(String),
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is inside an age file.
pub(super) fn decrypted<R: Read>(
    stored: R,
    identities: &[Identity],
) -> Result<age::stream::StreamReader<Headed<R>>, DecodeError> {
    let past_header = Arc::new(AtomicBool::new(false));
    let headed = Headed {
        inner: BufReader::with_capacity(BUFFER_BYTES, stored),
        left: MAX_HEADER_BYTES,
        past: Arc::clone(&past_header),
    };
    let opened = age::Decryptor::new_buffered(headed).and_then(|decryptor| {
        past_header.store(true, Ordering::Relaxed);
        decryptor.decrypt(identities.iter().map(|identity| &identity.0 as &dyn age::Identity))
    });
    let damaged = |what| DecodeError::Io(io::Error::new(io::ErrorKind::InvalidData, what));
    opened.map_err(|error| match error {
        age::DecryptError::NoMatchingKeys if identities.is_empty() => DecodeError::Locked(
            "no identity was given: pass the file of one of its recipients".to_owned(),
        ),
        age::DecryptError::NoMatchingKeys => DecodeError::Locked(
            "no identity that was given opens it: pass the file of one of its recipients"
                .to_owned(),
        ),
        age::DecryptError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            damaged("The header of the encrypted stream is cut".to_owned())
        }
        age::DecryptError::Io(error) => DecodeError::Io(error),
        error => damaged(format!(
            "The header of the encrypted stream is damaged, or it is not of age: {error}"
        )),
    })
}

/// Keeps a hostile header from taking time and memory.
pub(super) struct Headed<R> {
    inner: BufReader<R>,
    left: usize,
    past: Arc<AtomicBool>,
}

impl<R: Read> Read for Headed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf)
    }
}

impl<R: Read> BufRead for Headed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let bytes = self.inner.fill_buf()?;
        if self.past.load(Ordering::Relaxed) || bytes.is_empty() {
            return Ok(bytes);
        }
        match bytes.get(..self.left.min(bytes.len())) {
            Some(bytes) if !bytes.is_empty() => Ok(bytes),
            _ => Err(damage(format!(
                "The header of the encrypted stream has more than {MAX_HEADER_BYTES} bytes"
            ))),
        }
    }

    fn consume(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
        self.inner.consume(count);
    }
}

impl<R: Read + Seek> Seek for Headed<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        self.inner.stream_position()
    }
}

/// Notices the end of the stored stream.
struct Stored<R> {
    inner: R,
    ended: Arc<AtomicBool>,
}

impl<R: Read> Read for Stored<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        if count == 0 && !buf.is_empty() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Ok(count)
    }
}

/// Says of an error in which layer it arose; what comes from the layers below says so already.
pub(super) struct Layer<R> {
    pub(super) inner: R,
    pub(super) fault: &'static str,
}

/// An error that says where it arose.
#[derive(Debug, thiserror::Error)]
#[error("{fault}: {error}")]
struct LayerError {
    fault: &'static str,
    error: io::Error,
}

impl<R> Layer<R> {
    fn name(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::Interrupted
            || error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<LayerError>)
        {
            return error;
        }
        io::Error::new(error.kind(), LayerError { fault: self.fault, error })
    }
}

impl<R: Read> Read for Layer<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|error| self.name(error))
    }
}

impl<R: Seek> Seek for Layer<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to).map_err(|error| self.name(error))
    }
}

/// Yields what `inner` yields, the last bytes only once all is known to be as it should.
struct HeldBack<R> {
    inner: R,
    ended: Arc<AtomicBool>,
    expected: Option<Expected>,
    digester: Digester,
    plain_bytes: u64,
    /// What is given out now, and how much of it was.
    ready: Vec<u8>,
    given: usize,
    /// What comes after it. `ready` is given out only when this has something in it, or all was
    /// checked.
    ahead: Vec<u8>,
    state: State,
}

enum State {
    Reading,
    Checked,
    Failed(io::ErrorKind, String),
}

impl<R: Read> HeldBack<R> {
    /// Reads a buffer full, and checks at the end.
    fn advance(&mut self) -> io::Result<()> {
        while matches!(self.state, State::Reading)
            && (self.ready.is_empty() || self.ahead.is_empty())
        {
            if self.ready.is_empty() {
                std::mem::swap(&mut self.ready, &mut self.ahead);
            }
            let count = (&mut self.inner).take(BUFFER_BYTES as u64).read_to_end(&mut self.ahead)?;
            self.digester.update(&self.ahead);
            self.plain_bytes += count as u64;
            if let Some(expected) =
                self.expected.filter(|expected| self.plain_bytes > expected.plain_bytes)
            {
                return Err(damage(format!(
                    "There are more than the {} bytes that were backed up",
                    expected.plain_bytes
                )));
            }
            if count == 0 {
                self.check()?;
                self.state = State::Checked;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> io::Result<()> {
        if !self.ended.load(Ordering::Relaxed) {
            return Err(damage(
                "The stored stream goes on after the end of what it contains".to_owned(),
            ));
        }
        let Some(expected) = self.expected else { return Ok(()) };
        if self.plain_bytes != expected.plain_bytes {
            let (found, expected) = (self.plain_bytes, expected.plain_bytes);
            return Err(damage(format!("There are {found} bytes where {expected} were backed up")));
        }
        let found = std::mem::take(&mut self.digester).finish();
        if found != expected.plain_digest {
            let expected = expected.plain_digest;
            return Err(damage(format!(
                "The bytes have the digest {found}, and {expected} was backed up"
            )));
        }
        Ok(())
    }
}

impl<R: Read> Read for HeldBack<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let State::Failed(kind, message) = &self.state {
            return Err(io::Error::new(*kind, message.clone()));
        }
        if buf.is_empty() {
            return Ok(0);
        }
        if self.given >= self.ready.len() {
            self.ready.clear();
            self.given = 0;
            if let Err(error) = self.advance() {
                // Nothing is given out after an error: who goes on reading must not take a part for
                // the whole.
                self.state = State::Failed(error.kind(), error.to_string());
                return Err(error);
            }
            if self.ready.is_empty() {
                std::mem::swap(&mut self.ready, &mut self.ahead);
            }
        }
        let count = self.ready.get(self.given..).unwrap_or_default().read(buf)?;
        self.given += count;
        Ok(count)
    }
}

pub(super) fn damage(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
