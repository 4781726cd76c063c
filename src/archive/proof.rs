//! The content of a file held against the digest that the index has of it.

use super::error::Problem;
use super::header::Extent;
use super::index::Entry;
use super::reader::{TarEntry, TarReader};
use crate::model::{Cancel, Digest, Digester};

/// A file with more bytes of holes has a digest of its pieces only: the zeros of the holes would
/// take too long.
pub(crate) const HOLES_LIMIT: u64 = 16 << 30;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Takes in a content, piece by piece, and says whether it is the right one.
pub(crate) struct Proof {
    digester: Digester,
    expected: Digest,
    /// Whether the zeros of holes are digested too.
    holes: bool,
}

impl Proof {
    /// For the file that the index has so. None for what has no content.
    pub(crate) fn of(entry: &Entry) -> Option<Self> {
        let (expected, holes) = match (entry.digest, entry.data_digest) {
            (Some(digest), _) => (digest, true),
            (None, Some(digest)) => (digest, false),
            (None, None) => return None,
        };
        Some(Self { digester: Digester::new(), expected, holes })
    }

    pub(crate) fn data(&mut self, bytes: &[u8]) {
        self.digester.update(bytes);
    }

    /// Takes in a hole.
    pub(crate) fn hole(&mut self, mut length: u64, cancel: &Cancel) -> Result<(), Problem> {
        while self.holes && length > 0 {
            if cancel.is_cancelled() {
                return Err(Problem::Cancelled);
            }
            let most = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
            self.digester.update(ZEROS.get(..most).unwrap_or_default());
            length -= most as u64;
        }
        Ok(())
    }

    /// Whether all that was taken in is what the index says.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let found = self.digester.finish();
        if found == self.expected {
            return Ok(());
        }
        Err(Problem::Damaged(format!(
            "has the content `{found}`, and the index says `{}`",
            self.expected
        )))
    }
}

/// A piece of the content of a file.
pub(crate) enum Content<'a> {
    Data(&'a [u8]),
    /// So many zeros that are not stored.
    Hole(u64),
}

/// Reads a content of `size` bytes, and gives it piece by piece. Fails at its end when it is not
/// what `proof` expects.
///
/// What `read` reads are the `pieces`, one after the other: where each belongs and how long it is.
/// They ascend and lie within the size.
pub(crate) fn read_content(
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Problem>,
    pieces: impl Iterator<Item = Extent>,
    size: u64,
    mut proof: Option<Proof>,
    cancel: &Cancel,
    buffer: &mut [u8],
    mut give: impl FnMut(Content<'_>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut at = 0;
    for (offset, length) in pieces.chain([(size, 0)]) {
        if let Some(hole) = offset.checked_sub(at).filter(|hole| *hole > 0) {
            if let Some(proof) = &mut proof {
                proof.hole(hole, cancel)?;
            }
            give(Content::Hole(hole))?;
        }
        let mut left = length;
        while left > 0 {
            if cancel.is_cancelled() {
                return Err(Problem::Cancelled);
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let filled = read(buffer.get_mut(..most).unwrap_or_default())?;
            let data = buffer.get(..filled).filter(|data| !data.is_empty());
            let data =
                data.ok_or_else(|| Problem::Refused("has less content than it says".to_owned()))?;
            if let Some(proof) = &mut proof {
                proof.data(data);
            }
            give(Content::Data(data))?;
            left -= filled as u64;
        }
        at = offset + length;
    }
    proof.map_or(Ok(()), Proof::finish)
}

/// Reads the content of an entry of a tarball with [`read_content`].
pub(crate) fn read_entry(
    reader: &mut TarReader<'_>,
    incoming: &TarEntry,
    proof: Option<Proof>,
    cancel: &Cancel,
    buffer: &mut [u8],
    give: impl FnMut(Content<'_>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let indexed = proof.is_some();
    let read = |buffer: &mut [u8]| {
        reader
            .content(buffer)
            .map_err(|error| if indexed { Problem::damaged(error) } else { error.into() })
    };
    read_content(read, incoming.pieces(), incoming.size, proof, cancel, buffer, give)
}
