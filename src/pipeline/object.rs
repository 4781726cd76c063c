//! The settings of an encoder and the types of its output, for the files that cut, join and read
//! streams.

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::compress::CompressionConfig;
use super::crypt::Recipient;
use super::throttle::Throttle;
use crate::model::{Cancel, Digest};

/// The largest block there may be. A decoder needs no larger a window than this.
pub const MAX_BLOCK_BYTES: usize = 8 << 20;

/// How one stream is encoded.
#[derive(Clone)]
pub struct EncodeSettings {
    /// The compression and its level.
    pub compression: CompressionConfig,
    /// Who can decrypt it, 128 at most; nobody needs to when empty: it is not encrypted then.
    pub recipients: Vec<Recipient>,
    /// Worker threads that compress; 0 is taken as 1.
    pub threads: usize,
    /// Plain bytes of a block, 1 to [`MAX_BLOCK_BYTES`].
    pub block_bytes: usize,
    /// Where the stored stream is cut into a next object.
    pub max_object_bytes: Option<u64>,
    /// Limits how fast plain bytes are taken in.
    pub read_rate: Option<Throttle>,
    /// Watched by every thread.
    pub cancel: Cancel,
}

/// Where the objects of one stream go, in order, from one thread.
///
/// A call may block; the encoder waits for it, and holds no more memory meanwhile. Nothing
/// interrupts it: a sink that may block for long watches the run's cancellation itself. When the
/// stream fails or is given up the sink is dropped, and no further call comes.
pub trait ObjectSink: Send {
    /// The next object begins; `index` counts from 0.
    ///
    /// # Errors
    /// When it cannot be taken.
    fn begin(&mut self, index: u32) -> io::Result<()>;
    /// The next bytes of the object, 1 MiB at most. They lie in a buffer of the encoder, which is
    /// used again once every clone and slice of the chunk is dropped; until then it makes do with a
    /// new one. So a sink may hold on to chunks, and it costs their memory.
    ///
    /// # Errors
    /// When they cannot be taken.
    fn write(&mut self, chunk: Bytes) -> io::Result<()>;
}

/// One stored object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedObject {
    /// Bytes.
    pub size: u64,
    pub digest: Digest,
}

/// Where a block begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// In the plain stream.
    pub plain: u64,
    /// In the compressed stream, before encryption.
    pub compressed: u64,
}
