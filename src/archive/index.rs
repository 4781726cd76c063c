//! The index: what is in a tarball and where, as JSON lines.
//!
//! ```text
//! {"format":1,"type":"holdfast-index","rules":{"include":[],"exclude":["*.tmp"],…}}
//! {"path":"a/b","kind":"file","size":3,"mtime":"1700000000.000000000","mode":420,…,
//!  "offset":1024,"data_offset":2560,"length":3,…}
//! {"footer":{"entries":1,"bytes":3,"stream_bytes":4096}}
//! ```
//! The first line is the header, the last the footer, and between them stands an entry a line, in
//! the order of the tarball. A reader ignores fields that it does not know. The footer always
//! begins as shown; without it the index was cut.

use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::entry::{Kind, Time};
pub use super::lines::{INDEX_FORMAT, IndexError};
use super::lines::{LineReader, LineWriter};
use super::patterns::{Exclusion, Pattern};
use crate::model::Digest;

const TYPE: &str = "holdfast-index";
/// What errors call it.
const NAME: &str = "index";

/// One entry of the tarball.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Line", try_from = "Line")]
pub struct Entry {
    /// Relative to the source; `.` is its root.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Bytes of the content as one reads it; 0 for all but files.
    pub size: u64,
    /// When it was last written.
    pub mtime: Time,
    /// Permissions with the setuid, setgid and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The owner's name where the system knew it.
    pub uname: Option<String>,
    /// The group's name where the system knew it.
    pub gname: Option<String>,
    /// What a symbolic link says; for a hard link the path of the entry that has the content.
    pub target: Option<Vec<u8>>,
    /// Major and minor of a device.
    pub rdev: Option<(u32, u32)>,
    /// Of a file's content as one reads it: zeros in place of the holes of a sparse file.
    pub digest: Option<Digest>,
    /// Of the data of a sparse file without its holes, when it has so many that there is no
    /// `digest`.
    pub data_digest: Option<Digest>,
    /// Where the entry's first header begins in the plain stream.
    pub offset: u64,
    /// Where its content begins in the plain stream; that of a sparse file is its map and then its
    /// data.
    pub data_offset: u64,
    /// How many bytes the plain stream has from there, without the filling to a full block. Equal
    /// to `size`, but for sparse files.
    pub length: u64,
    /// It changed while it was read: the content is not of one moment, and may be cut or filled up
    /// with zeros.
    pub changed: bool,
    /// The snapshot whose tarball has the content; none is this one.
    pub archive: Option<String>,
    /// Of a folder: its contents are not in the tarball, although no pattern excludes them. It is
    /// on another file system, a cache, or a folder that the program itself writes to.
    pub left_out: bool,
}

/// An entry as written. A name that is not UTF-8 is in the field that ends in `_b64` (RFC 4648,
/// with padding).
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    kind: Kind,
    size: u64,
    mtime: Time,
    mode: u32,
    uid: u32,
    gid: u32,
    #[serde(default)]
    uname: Option<String>,
    #[serde(default)]
    gname: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_b64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rdev: Option<(u32, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_digest: Option<Digest>,
    offset: u64,
    data_offset: u64,
    length: u64,
    #[serde(default)]
    changed: bool,
    #[serde(default)]
    archive: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    left_out: bool,
}

/// As text, or else in base64.
pub(super) fn encode(bytes: Vec<u8>) -> (Option<String>, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
    }
}

/// A path as a member of a JSON object, as in the index: `path`, or `path_b64` when it is not
/// UTF-8.
pub fn path_member(path: &[u8]) -> (&'static str, String) {
    match std::str::from_utf8(path) {
        Ok(text) => ("path", text.to_owned()),
        Err(_) => ("path_b64", STANDARD.encode(path)),
    }
}

/// The inverse of [`encode`].
pub(super) fn decode(
    text: Option<String>,
    encoded: Option<String>,
) -> Result<Option<Vec<u8>>, base64::DecodeError> {
    Ok(match (text, encoded) {
        (Some(text), _) => Some(text.into_bytes()),
        (None, Some(encoded)) => Some(STANDARD.decode(encoded)?),
        (None, None) => None,
    })
}

impl From<Entry> for Line {
    fn from(entry: Entry) -> Self {
        let (path, path_b64) = encode(entry.path);
        let (target, target_b64) = entry.target.map_or((None, None), encode);
        Self {
            path,
            path_b64,
            kind: entry.kind,
            size: entry.size,
            mtime: entry.mtime,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            uname: entry.uname,
            gname: entry.gname,
            target,
            target_b64,
            rdev: entry.rdev,
            digest: entry.digest,
            data_digest: entry.data_digest,
            offset: entry.offset,
            data_offset: entry.data_offset,
            length: entry.length,
            changed: entry.changed,
            archive: entry.archive,
            left_out: entry.left_out,
        }
    }
}

impl TryFrom<Line> for Entry {
    type Error = String;

    fn try_from(line: Line) -> Result<Self, String> {
        let wrong = |error| format!("a name is not base64: {error}");
        Ok(Self {
            path: decode(line.path, line.path_b64).map_err(wrong)?.ok_or("an entry has no path")?,
            kind: line.kind,
            size: line.size,
            mtime: line.mtime,
            mode: line.mode,
            uid: line.uid,
            gid: line.gid,
            uname: line.uname,
            gname: line.gname,
            target: decode(line.target, line.target_b64).map_err(wrong)?,
            rdev: line.rdev,
            digest: line.digest,
            data_digest: line.data_digest,
            offset: line.offset,
            data_offset: line.data_offset,
            length: line.length,
            changed: line.changed,
            archive: line.archive,
            left_out: line.left_out,
        })
    }
}

/// Which entries of a source were to be in the tarball.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    #[serde(default)]
    pub include: Vec<Pattern>,
    #[serde(default)]
    pub exclude: Vec<Exclusion>,
    /// Contents of folders that are marked as caches were left out.
    #[serde(default)]
    pub exclude_caches: bool,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rules: Option<Rules>,
}

/// What the last line of an index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Footer {
    /// How many entries came before it.
    pub entries: u64,
    /// The sizes of them all together.
    pub bytes: u64,
    /// Bytes of the whole tarball, plain.
    pub stream_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct FooterLine {
    footer: Footer,
}

/// Writes an index while its tarball is written.
pub(crate) struct IndexWriter<W: Write> {
    lines: LineWriter<W>,
    footer: Footer,
}

impl<W: Write> IndexWriter<W> {
    pub(crate) fn new(out: W, rules: Rules) -> std::io::Result<Self> {
        let mut lines = LineWriter::new(out);
        let rules = Some(rules);
        lines.write(&Header { format: INDEX_FORMAT, r#type: TYPE.to_owned(), rules })?;
        Ok(Self { lines, footer: Footer::default() })
    }

    pub(crate) fn entry(&mut self, entry: Entry) -> std::io::Result<()> {
        self.footer.entries += 1;
        // Sparse files may have any size; readers add up in the same way.
        self.footer.bytes = self.footer.bytes.saturating_add(entry.size);
        self.lines.write(&Line::from(entry))
    }

    /// Writes the footer and gives the output back.
    pub(crate) fn finish(mut self, stream_bytes: u64) -> std::io::Result<(W, Footer)> {
        self.footer.stream_bytes = stream_bytes;
        let footer = self.footer;
        self.lines.write(&FooterLine { footer })?;
        Ok((self.lines.into_inner(), footer))
    }
}

/// Reads an index, an entry at a time. What it gave may be relied on only once it has given
/// [`IndexReader::footer`].
pub struct IndexReader<R: Read> {
    lines: LineReader<R>,
    rules: Option<Rules>,
    found: Footer,
    footer: Option<Footer>,
}

impl<R: Read> IndexReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When it is not an index that this version reads.
    pub fn new(input: R) -> Result<Self, IndexError> {
        let mut lines = LineReader::new(input, NAME);
        let header: Header = lines.header()?;
        lines.expect(&header.r#type, TYPE, header.format)?;
        Ok(Self { lines, rules: header.rules, found: Footer::default(), footer: None })
    }

    /// Which entries were to be in the tarball; none where the version that wrote it did not say.
    pub fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()
    }

    /// The next entry; none after the last, when the footer was found and its counts are right.
    ///
    /// # Errors
    /// When the index is damaged or cut.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, IndexError> {
        if self.footer.is_some() {
            return Ok(None);
        }
        if let Some(entry) = self.lines.entry::<Entry>()? {
            self.found.entries += 1;
            self.found.bytes = self.found.bytes.saturating_add(entry.size);
            return Ok(Some(entry));
        }
        let FooterLine { footer } = self.lines.footer()?;
        if (footer.entries, footer.bytes) != (self.found.entries, self.found.bytes) {
            return Err(IndexError::Counts {
                document: NAME,
                found_entries: self.found.entries,
                found_bytes: self.found.bytes,
                entries: footer.entries,
                bytes: footer.bytes,
            });
        }
        self.footer = Some(footer);
        Ok(None)
    }

    /// What the footer says, once it was read.
    pub fn footer(&self) -> Option<Footer> {
        self.footer
    }
}

impl<R: Read> Iterator for IndexReader<R> {
    type Item = Result<Entry, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_entry().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Footer, IndexError, IndexReader, IndexWriter, Rules};
    use crate::archive::{Exclusion, Kind, Pattern, Time};
    use crate::model::Digest;

    fn entry(path: &[u8]) -> Entry {
        Entry {
            path: path.to_vec(),
            kind: Kind::File,
            size: 3,
            mtime: Time { seconds: 1, nanos: 2 },
            mode: 0o4755,
            uid: 1,
            gid: 2,
            uname: Some("u".to_owned()),
            gname: None,
            target: Some(b"\xff".to_vec()),
            rdev: Some((8, 1)),
            digest: Some(Digest::of(b"abc")),
            data_digest: None,
            offset: 0,
            data_offset: 512,
            length: 3,
            changed: true,
            archive: None,
            left_out: false,
        }
    }

    fn rules() -> Rules {
        Rules {
            include: vec![Pattern::new("docs/").unwrap()],
            exclude: vec![Exclusion::new("!*.tmp").unwrap()],
            exclude_caches: true,
        }
    }

    fn written() -> Vec<u8> {
        let mut index = IndexWriter::new(Vec::new(), rules()).unwrap();
        index.entry(entry(b"a/b")).unwrap();
        index.entry(entry(b"not utf-8: \xfe\"\n")).unwrap();
        index.finish(4096).unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Entry>, Option<Footer>), IndexError> {
        let mut index = IndexReader::new(bytes)?;
        let entries = index.by_ref().collect::<Result<Vec<_>, _>>()?;
        Ok((entries, index.footer()))
    }

    #[test]
    fn an_index_reads_back_as_written() {
        let (entries, footer) = read(&written()).unwrap();
        assert_eq!(entries, [entry(b"a/b"), entry(b"not utf-8: \xfe\"\n")]);
        assert_eq!(footer, Some(Footer { entries: 2, bytes: 6, stream_bytes: 4096 }));
        let text = String::from_utf8(written()).unwrap();
        assert_eq!(IndexReader::new(text.as_bytes()).unwrap().rules(), Some(&rules()));
        let (header, rest) = text.split_once('\n').unwrap();
        let older = format!("{}}}\n{rest}", header.split_once(",\"rules\"").unwrap().0);
        assert_eq!(IndexReader::new(older.as_bytes()).unwrap().rules(), None);
    }

    #[test]
    fn an_index_cut_anywhere_is_refused() {
        let bytes = written();
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn wrong_counts_later_lines_and_newer_formats_are_refused_and_unknown_fields_are_not() {
        let text = String::from_utf8(written()).unwrap();
        assert!(matches!(
            read(text.replace("\"entries\":2", "\"entries\":3").as_bytes()),
            Err(IndexError::Counts { found_entries: 2, .. })
        ));
        assert!(matches!(
            read(format!("{text}{{}}\n").as_bytes()),
            Err(IndexError::Malformed { line: 5, .. })
        ));
        assert!(matches!(
            read(text.replace("\"format\":1", "\"format\":2").as_bytes()),
            Err(IndexError::Newer { found: 2, .. })
        ));
        assert!(read(text.replace("{\"path", "{\"news\":[1],\"path").as_bytes()).is_ok());
        assert!(matches!(
            read(text.replace("sha256:", "md5:").as_bytes()),
            Err(IndexError::Malformed { line: 2, .. })
        ));
    }
}
