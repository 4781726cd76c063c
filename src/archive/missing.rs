//! The entries that could not be read when a snapshot was taken, as JSON lines.
//!
//! ```text
//! {"format":1,"type":"holdfast-missing"}
//! {"path":"a/b","reason":"It could not be read: Permission denied (os error 13)"}
//! {"footer":{"entries":1}}
//! ```
//! A path stands for itself and for everything beneath it; `.` is the root. Names that are not
//! UTF-8 are in `path_b64`, as in the index.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use super::Streams;
use super::checked_index::plain_path;
use super::error::{ArchiveError, Problem};
use super::index::{decode, encode};
use super::lines::{INDEX_FORMAT, IndexError, LineReader, LineWriter};
use crate::model::Cancel;

const TYPE: &str = "holdfast-missing";
/// What errors call it.
const NAME: &str = "list of missing entries";

/// An entry that could not be read, with everything beneath it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingEntry {
    /// Relative to the source; `.` is its root.
    pub path: Vec<u8>,
    /// Why, in words.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    r#type: String,
}

#[derive(Serialize, Deserialize)]
struct Footer {
    footer: Count,
}

#[derive(Serialize, Deserialize)]
struct Count {
    entries: u64,
}

/// Writes the list while the source is read.
pub(crate) struct MissingWriter<W: Write> {
    lines: LineWriter<W>,
    entries: u64,
}

impl<W: Write> MissingWriter<W> {
    pub(crate) fn new(out: W) -> std::io::Result<Self> {
        let mut lines = LineWriter::new(out);
        lines.write(&Header { format: INDEX_FORMAT, r#type: TYPE.to_owned() })?;
        Ok(Self { lines, entries: 0 })
    }

    pub(crate) fn entry(&mut self, path: &[u8], reason: &str) -> std::io::Result<()> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let (path, path_b64) = encode(path.to_vec());
        self.entries += 1;
        self.lines.write(&Line { path, path_b64, reason: reason.to_owned() })
    }

    /// Writes the footer and gives the output back.
    pub(crate) fn finish(mut self) -> std::io::Result<W> {
        let entries = self.entries;
        self.lines.write(&Footer { footer: Count { entries } })?;
        Ok(self.lines.into_inner())
    }
}

/// Gives every entry of the list that belongs to `streams` to `each`. False where there is none.
///
/// # Errors
/// When it cannot be read to its end, or is not such a list; what was given out before may be less
/// than all.
pub fn each_missing(
    streams: &dyn Streams,
    cancel: &Cancel,
    mut each: impl FnMut(MissingEntry),
) -> Result<bool, ArchiveError> {
    let stream = streams.missing().map_err(|error| Problem::Stream(error).at(b""))?;
    let Some(stream) = stream else { return Ok(false) };
    read(stream, |entry| {
        if cancel.is_cancelled() {
            return Err(Problem::Cancelled);
        }
        // An entry of another tree would hide one that is missing in this.
        match plain_path(&entry.path)? == entry.path {
            true => each(entry),
            false => return Err(Problem::Refused("is not a path as the index has it".to_owned())),
        }
        Ok(())
    })
    .map(|()| true)
}

fn read(
    stream: impl Read,
    mut each: impl FnMut(MissingEntry) -> Result<(), Problem>,
) -> Result<(), ArchiveError> {
    let at = |error: IndexError| Problem::Index(error).at(b"");
    let mut lines = LineReader::new(stream, NAME);
    let header: Header = lines.header().map_err(at)?;
    lines.expect(&header.r#type, TYPE, header.format).map_err(at)?;
    let mut found = 0;
    while let Some(line) = lines.entry::<Line>().map_err(at)? {
        found += 1;
        let path = decode(line.path, line.path_b64).ok().flatten();
        let Some(path) = path else {
            return Err(at(lines.malformed("it has no path".to_owned())));
        };
        let entry = MissingEntry { path, reason: line.reason };
        let path = entry.path.clone();
        each(entry).map_err(|problem| problem.at(&path))?;
    }
    let Footer { footer } = lines.footer().map_err(at)?;
    if footer.entries != found {
        let problem = format!("it counts {} entries, and there are {found}", footer.entries);
        return Err(at(lines.malformed(problem)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MissingEntry, MissingWriter, read};

    fn written() -> Vec<u8> {
        let mut list = MissingWriter::new(Vec::new()).unwrap();
        list.entry(b"", "the root").unwrap();
        list.entry(b"a/\xfe\"\n", "odd").unwrap();
        list.finish().unwrap()
    }

    fn entries(bytes: &[u8]) -> Option<Vec<MissingEntry>> {
        let mut all = Vec::new();
        read(bytes, |entry| {
            all.push(entry);
            Ok(())
        })
        .ok()?;
        Some(all)
    }

    #[test]
    fn a_list_reads_back_as_written() {
        let entry = |path: &[u8], reason: &str| MissingEntry {
            path: path.to_vec(),
            reason: reason.to_owned(),
        };
        let expected = [entry(b".", "the root"), entry(b"a/\xfe\"\n", "odd")];
        assert_eq!(entries(&written()).unwrap(), expected);
    }

    #[test]
    fn a_list_cut_anywhere_is_refused() {
        let bytes = written();
        for length in 0..bytes.len() {
            assert!(entries(&bytes[..length]).is_none(), "cut at {length}");
        }
        let text = String::from_utf8(bytes).unwrap();
        for other in [
            text.replace("\"entries\":2", "\"entries\":1"),
            text.replace("\"format\":1", "\"format\":2"),
            text.replace("holdfast-missing", "holdfast-index"),
            text.replace("\"path\":\".\",", ""),
            format!("{text}{{}}\n"),
        ] {
            assert!(entries(other.as_bytes()).is_none(), "{other}");
        }
    }
}
