//! Archives of files: tarballs and the index beside them, read and written as streams.
//!
//! This room knows the bytes of a header (`header`, `pax`, `access_list`), reads any tar
//! (`reader`), and reads and writes the index (`index`) and the list of entries that could not be
//! read (`missing`), both as `lines`. A restore is driven by the index
//! (`checked_index`, `cursor`, `entry_stream`), by that of chosen entries (`patterns`, `path_set`,
//! `selection`): what differs from it, content included (`proof`), is damage. `lookup` writes a
//! single file or folder out. This room knows neither file systems nor sources: where the bytes
//! come from is [`Streams`], and a source says its errors in words.

pub(crate) mod access_list;
pub(crate) mod checked_index;
pub(crate) mod cursor;
mod entry;
pub(crate) mod entry_stream;
pub(crate) mod error;
pub(crate) mod header;
pub mod index;
mod lines;
mod lookup;
pub(crate) mod missing;
mod path_set;
pub(crate) mod patterns;
mod pax;
pub(crate) mod proof;
pub(crate) mod reader;
pub(crate) mod selection;

use std::io::Read;
use std::ops::Range;

pub(crate) use entry::lossy;
pub use entry::{Kind, Time, TimeError};
pub use error::ArchiveError;
pub use index::Rules;
pub(crate) use lookup::asked;
pub use lookup::{entry_at, write_file, write_folder};
pub use missing::{MissingEntry, each_missing};
pub use path_set::PathSet;
pub use patterns::{Exclusion, Pattern, PatternError};

/// The streams of a snapshot that belong to one artifact. Each may be read several times, from its
/// beginning.
pub trait Streams: Sync {
    /// The plain stream, whole. Its last bytes come only after all of it was found undamaged.
    ///
    /// # Errors
    /// When it could not be opened; an error while it is read means damage.
    fn whole(&self) -> std::io::Result<Box<dyn Read + Send + '_>>;

    /// The bytes of the plain stream in `ranges`, which ascend and do not overlap, one range after
    /// the other. Little more than them is fetched. They are not held against the digest of the
    /// stream: who reads them holds what they are against the index.
    ///
    /// # Errors
    /// When there is no way into the middle of the stream, or it could not be opened.
    fn parts(&self, ranges: Vec<Range<u64>>) -> std::io::Result<Box<dyn Read + Send + '_>>;

    /// The plain stream of the index; none where the snapshot has none of this artifact.
    ///
    /// # Errors
    /// When it could not be opened.
    fn index(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>>;

    /// The plain stream of the list of entries that could not be read; none where nothing is
    /// missing, or the version that wrote the snapshot kept no such list.
    ///
    /// # Errors
    /// When it could not be opened.
    fn missing(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>>;
}
