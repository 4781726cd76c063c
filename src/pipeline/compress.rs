//! How blocks are compressed.

use std::io;
use std::sync::Arc;

use flate2::{Compress, FlushCompress, Status};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::buffers::{Buffer, Buffers};
use crate::model::{Codec, Compression, Encryption};

/// How artifacts are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, try_from = "CompressionText")]
#[schemars(!try_from)]
pub struct CompressionConfig {
    /// `zstd` (the default), `gzip`, or `none`.
    #[serde(default)]
    algorithm: Algorithm,
    /// More is smaller and slower: 1 to 19 for `zstd` (default 3), 1 to 9 for `gzip` (default 6).
    /// `none` has no level. Levels of `zstd` above 6 take more memory for each thread than the
    /// stated cost of a worker: about 10 MiB more at 9, and 50 MiB more at 19.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 19))]
    level: Option<u8>,
}

/// A compression that can be chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// RFC 8878, read by `zstd -d`.
    #[default]
    Zstd,
    /// RFC 1952, read by `gzip -d`.
    Gzip,
    /// As it is.
    None,
}

impl Algorithm {
    /// The levels that it has, least and most, and the one taken when none is stated.
    fn levels(self) -> Option<(u8, u8, u8)> {
        match self {
            Self::Zstd => Some((1, 19, 3)),
            Self::Gzip => Some((1, 9, 6)),
            Self::None => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }
}

/// A level that the algorithm does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// It is out of range.
    #[error("`level = {level}` is not a level of `{algorithm}`: expected {least} to {most}")]
    Level {
        level: u8,
        algorithm: &'static str,
        /// The least there is.
        least: u8,
        /// The greatest there is.
        most: u8,
    },
    /// There are none.
    #[error("`algorithm = \"none\"` has no level: leave `level` out")]
    NoLevels,
}

/// The configuration as it was written, not yet held against itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompressionText {
    #[serde(default)]
    algorithm: Algorithm,
    level: Option<u8>,
}

impl TryFrom<CompressionText> for CompressionConfig {
    type Error = CompressionError;

    fn try_from(text: CompressionText) -> Result<Self, CompressionError> {
        Self::new(text.algorithm, text.level)
    }
}

impl CompressionConfig {
    /// A compression and its level; the algorithm's default level for none.
    ///
    /// # Errors
    /// When the algorithm has no such level.
    pub fn new(algorithm: Algorithm, level: Option<u8>) -> Result<Self, CompressionError> {
        match (algorithm.levels(), level) {
            (_, None) => {}
            (None, Some(_)) => return Err(CompressionError::NoLevels),
            (Some((least, most, _)), Some(level)) => {
                if !(least..=most).contains(&level) {
                    return Err(CompressionError::Level {
                        level,
                        algorithm: algorithm.name(),
                        least,
                        most,
                    });
                }
            }
        }
        Ok(Self { algorithm, level })
    }

    /// The algorithm.
    pub fn algorithm(self) -> Algorithm {
        self.algorithm
    }

    /// The level that is used; none where there are no levels.
    pub fn level(self) -> Option<u8> {
        self.level.or_else(|| self.algorithm.levels().map(|(_, _, default)| default))
    }

    /// What the manifest says of a stream that is compressed so.
    pub fn codec(self, encrypted: bool) -> Codec {
        Codec {
            compression: match self.algorithm {
                Algorithm::Zstd => Compression::Zstd,
                Algorithm::Gzip => Compression::Gzip,
                Algorithm::None => Compression::None,
            },
            encryption: if encrypted { Encryption::Age } else { Encryption::None },
        }
    }

    /// What packs blocks; none where they stay as they are.
    pub(super) fn packer(self) -> io::Result<Option<Packer>> {
        let level = self.level().unwrap_or_default();
        Ok(match self.algorithm {
            Algorithm::Zstd => {
                let mut compressor = zstd::bulk::Compressor::new(i32::from(level))?;
                // Together with the size of the content, which is in every frame that is compressed
                // in one go, a decoder sees damage even when it has nothing else to hold the stream
                // against.
                compressor.include_checksum(true)?;
                Some(Packer::Zstd(compressor))
            }
            Algorithm::Gzip => Some(Packer::Gzip(Compress::new_gzip(
                flate2::Compression::new(u32::from(level)),
                GZIP_WINDOW_BITS,
            ))),
            Algorithm::None => None,
        })
    }

    /// The most bytes that a block of `plain` bytes is packed into.
    pub(super) fn bound(self, plain: usize) -> usize {
        match self.algorithm {
            Algorithm::Zstd => zstd::zstd_safe::compress_bound(plain),
            // The conservative bound of zlib's `deflateBound`, and the header and trailer of a
            // member. What is not used of it is never touched.
            Algorithm::Gzip => {
                plain.saturating_add(plain / 8).saturating_add(plain / 64).saturating_add(64)
            }
            Algorithm::None => plain,
        }
    }
}

/// The largest there is: 32 KiB.
const GZIP_WINDOW_BITS: u8 = 15;

/// Packs one block after another, each into a frame or member of its own. Its state is used again:
/// nothing is allocated for a block.
pub(super) enum Packer {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(Compress),
}

impl Packer {
    /// `plain`, packed into a buffer of `buffers`.
    pub(super) fn pack(&mut self, plain: &[u8], buffers: &Arc<Buffers>) -> io::Result<Buffer> {
        let mut packed = buffers.lend()?;
        let count = match self {
            Self::Zstd(compressor) => compressor.compress_to_buffer(plain, packed.room())?,
            Self::Gzip(compress) => {
                compress.reset();
                let status = compress.compress(plain, packed.room(), FlushCompress::Finish)?;
                if status != Status::StreamEnd {
                    return Err(io::Error::other(
                        "A block did not fit the bound of its compression",
                    ));
                }
                usize::try_from(compress.total_out()).map_err(io::Error::other)?
            }
        };
        packed.filled(count);
        Ok(packed)
    }
}
