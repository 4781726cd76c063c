//! From the plain stream of an artifact to the stored one, and the exact inverse.
//!
//! Plain bytes are cut into blocks, compressed by several threads, joined in order, encrypted,
//! digested and cut into objects. This room knows streams and codecs. It does not know where the
//! bytes come from or go to: no source, no storage.
//!
//! To add a compression: a variant of [`Algorithm`] with its packer in `compress.rs`, its unpacker
//! in `decode.rs`, and its line in the property tests.

mod belt;
mod blocks;
mod buffers;
mod compress;
mod crypt;
mod decode;
mod encode;
mod object;
mod parts;
mod stopwatch;
mod stored;
#[cfg(test)]
mod tests;
mod throttle;

pub use blocks::{BlockList, BlockSpan};
pub use compress::{Algorithm, CompressionConfig, CompressionError};
pub use crypt::{CryptError, Identity, Recipient};
pub use decode::{DecodeError, Expected, Verified, decoder, timed_decoder};
pub use encode::{Encoded, Encoder, WORKER_BYTES};
pub use object::{Block, EncodeSettings, EncodedObject, MAX_BLOCK_BYTES, ObjectSink};
pub use parts::{Fetch, parts};
pub use stopwatch::{Clocked, Step, Stopwatch};
pub use throttle::Throttle;
