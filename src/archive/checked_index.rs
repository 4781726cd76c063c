//! The index as a restore may rely on it: each entry is possible and follows the one before.

use std::io::Read;

use super::Streams;
use super::entry::Kind;
use super::error::{ArchiveError, Problem};
use super::header::{BLOCK, PATH_LIMIT, padding};
use super::index::{Entry, Footer, IndexReader, Rules};
use super::proof::HOLES_LIMIT;

/// The names on the way to an entry, and its own last; none for the root.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    if path.first() == Some(&b'/') {
        return Err(Problem::Refused("has an absolute name".to_owned()));
    }
    if path.contains(&0) {
        return Err(Problem::Refused("has a zero byte in its name".to_owned()));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(Problem::Refused("has a name that leads out through `..`".to_owned()));
    }
    Ok(parts)
}

/// The path as an index writes it: without what says nothing, and `.` for the root.
///
/// # Errors
/// When it leads out.
pub(crate) fn plain_path(path: &[u8]) -> Result<Vec<u8>, Problem> {
    let path = components(path)?.join(&b'/');
    Ok(if path.is_empty() { b".".to_vec() } else { path })
}

/// The entries of an index, of which each follows the one before in the tarball.
pub(crate) struct CheckedIndex<'a> {
    index: IndexReader<Box<dyn Read + Send + 'a>>,
    /// Where the entry that was read last ends in the tarball.
    end: u64,
    /// The path of that entry.
    pub(crate) last: Vec<u8>,
}

impl<'a> CheckedIndex<'a> {
    /// Opens the index; none where the snapshot has none.
    pub(crate) fn open(streams: &'a dyn Streams) -> Result<Option<Self>, ArchiveError> {
        let stream = streams.index().map_err(|error| Problem::Stream(error).at(b""))?;
        let Some(stream) = stream else { return Ok(None) };
        let index = IndexReader::new(stream).map_err(|error| Problem::Index(error).at(b""))?;
        Ok(Some(Self { index, end: 0, last: Vec::new() }))
    }

    /// Which entries were to be in the tarball; none where the index does not say.
    pub(crate) fn rules(&self) -> Option<&Rules> {
        self.index.rules()
    }

    /// The next entry; none after the last, when the footer is right.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let entry = match self.index.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None)
                if self.index.footer().is_some_and(|footer| footer.stream_bytes < self.end) =>
            {
                return Err(Problem::Damaged(
                    "ends after the end that the footer of the index says".to_owned(),
                )
                .at(&self.last));
            }
            Ok(None) => return Ok(None),
            Err(error) => return Err(Problem::Index(error).at(&self.last)),
        };
        match check(&entry, self.end) {
            Ok(end) => self.end = end,
            Err(problem) => return Err(Problem::Damaged(problem).at(&entry.path)),
        }
        self.last.clone_from(&entry.path);
        Ok(Some(entry))
    }

    /// What the footer says, once all entries were read.
    pub(crate) fn footer(&self) -> Footer {
        self.index.footer().unwrap_or_default()
    }
}

/// Where in the tarball an entry ends: the next begins there.
pub(crate) fn end_of(entry: &Entry) -> Option<u64> {
    entry.data_offset.checked_add(entry.length)?.checked_add(padding(entry.length))
}

/// Whether the index may say so of an entry that follows one which ended at `before`. Returns where
/// it ends.
fn check(entry: &Entry, before: u64) -> Result<u64, String> {
    let odd = |path: &[u8]| match plain_path(path) {
        Ok(plain) if plain == path && path.len() <= PATH_LIMIT => None,
        Ok(_) => Some("is not written as the path of an entry is".to_owned()),
        Err(Problem::Refused(problem)) => Some(problem),
        Err(_) => Some("is no path".to_owned()),
    };
    if let Some(problem) = odd(&entry.path) {
        return Err(format!("is in the index and {problem}"));
    }
    if entry.archive.is_some() {
        return Err(
            "has its content in another snapshot, which this version cannot read: use a newer one"
                .to_owned(),
        );
    }
    if entry.offset != before {
        return Err(format!(
            "begins at byte {} by the index, and what comes before it ends at {before}",
            entry.offset
        ));
    }
    let end = end_of(entry).filter(|_| {
        entry.data_offset.is_multiple_of(BLOCK)
            && entry.data_offset.checked_sub(BLOCK).is_some_and(|at| at >= before)
    });
    let Some(end) = end else {
        return Err(format!(
            "cannot have its content at byte {} and be {} bytes long, as the index says",
            entry.data_offset, entry.length
        ));
    };
    let target = entry.target.as_deref();
    match entry.kind {
        Kind::File if entry.digest.is_none() && entry.data_digest.is_none() => {
            return Err("has no digest in the index".to_owned());
        }
        Kind::File
            if entry.digest.is_some() && entry.size.saturating_sub(entry.length) > HOLES_LIMIT =>
        {
            return Err(format!(
                "cannot be {} bytes long and have a digest of all of them, as the index says",
                entry.size
            ));
        }
        Kind::File => {}
        _ if entry.size != 0 || entry.length != 0 => {
            return Err("is no file and has a size in the index".to_owned());
        }
        Kind::Hardlink if target.is_none_or(|target| odd(target).is_some()) => {
            return Err("is a hard link to nothing that the index could have".to_owned());
        }
        Kind::Symlink if target.is_none() => {
            return Err("is a link without a target in the index".to_owned());
        }
        _ => {}
    }
    if entry.path == b"." && entry.kind != Kind::Directory {
        return Err("would replace the target itself".to_owned());
    }
    Ok(end)
}
