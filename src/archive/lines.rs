//! JSON lines: a header, an entry a line, and a footer, without which the document was cut.

use std::io::{BufRead, BufReader, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format of the index and the list beside it that this version writes, and the newest it
/// reads.
pub const INDEX_FORMAT: u32 = 1;
const FOOTER: &[u8] = b"{\"footer\"";
/// No line is longer: a path has at most some thousand bytes, even in a deep tree.
const LINE_LIMIT: u64 = 16 << 20;

/// Why an index, or a list beside it, could not be read. `document` says which of them it was.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The stream behind it failed.
    #[error("Could not read the {document}")]
    Stream {
        document: &'static str,
        #[source]
        error: std::io::Error,
    },
    /// A line is not what the format has there.
    #[error("Line {line} of the {document} is damaged: {problem}")]
    Malformed {
        document: &'static str,
        /// Counted from 1.
        line: u64,
        problem: String,
    },
    /// A later version wrote it.
    #[error(
        "The {document} has format {found}, and this version reads up to {INDEX_FORMAT}: use a \
         newer version of the program"
    )]
    Newer { document: &'static str, found: u32 },
    /// It ends before its footer.
    #[error("The {document} was cut after line {line}: its footer is missing")]
    Cut { document: &'static str, line: u64 },
    /// The footer counts something else than was read.
    #[error(
        "The {document} has {found_entries} entries of {found_bytes} bytes, and its footer \
        says {entries} of {bytes}"
    )]
    Counts {
        document: &'static str,
        found_entries: u64,
        found_bytes: u64,
        /// By the footer.
        entries: u64,
        bytes: u64,
    },
}

/// Writes one document.
pub(super) struct LineWriter<W: Write> {
    out: W,
    line: Vec<u8>,
}

impl<W: Write> LineWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, line: Vec::new() }
    }

    pub(super) fn write(&mut self, line: &impl Serialize) -> std::io::Result<()> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)?;
        self.line.push(b'\n');
        self.out.write_all(&self.line)
    }

    pub(super) fn into_inner(self) -> W {
        self.out
    }
}

/// Reads one document, which errors name.
pub(super) struct LineReader<R: Read> {
    input: BufReader<R>,
    buffer: Vec<u8>,
    line: u64,
    document: &'static str,
}

impl<R: Read> LineReader<R> {
    pub(super) fn new(input: R, document: &'static str) -> Self {
        Self { input: BufReader::new(input), buffer: Vec::new(), line: 0, document }
    }

    /// The first line.
    pub(super) fn header<T: DeserializeOwned>(&mut self) -> Result<T, IndexError> {
        if self.next_line()? { self.parse() } else { Err(self.cut(0)) }
    }

    /// Refuses a header of another type or of a later format.
    pub(super) fn expect(&self, found: &str, wanted: &str, format: u32) -> Result<(), IndexError> {
        if found != wanted {
            return Err(self.malformed(format!("its type is not `{wanted}`")));
        }
        if format > INDEX_FORMAT || format == 0 {
            return Err(IndexError::Newer { document: self.document, found: format });
        }
        Ok(())
    }

    /// The next entry; none where the footer stands.
    pub(super) fn entry<T: DeserializeOwned>(&mut self) -> Result<Option<T>, IndexError> {
        if !self.next_line()? {
            return Err(self.cut(self.line));
        }
        if self.buffer.starts_with(FOOTER) { Ok(None) } else { self.parse().map(Some) }
    }

    /// The footer, after [`LineReader::entry`] has come to it. It must be the last line.
    pub(super) fn footer<T: DeserializeOwned>(&mut self) -> Result<T, IndexError> {
        let footer = self.parse()?;
        if self.next_line()? {
            return Err(self.malformed("it comes after the footer".to_owned()));
        }
        Ok(footer)
    }

    /// Reads a line without its end; false at the end of the stream. A line that was cut does not
    /// count as one.
    fn next_line(&mut self) -> Result<bool, IndexError> {
        self.buffer.clear();
        let document = self.document;
        self.input
            .by_ref()
            .take(LINE_LIMIT)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| IndexError::Stream { document, error })?;
        if self.buffer.is_empty() {
            return Ok(false);
        }
        self.line += 1;
        if self.buffer.pop() == Some(b'\n') { Ok(true) } else { Err(self.cut(self.line - 1)) }
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, IndexError> {
        serde_json::from_slice(&self.buffer).map_err(|error| self.malformed(error.to_string()))
    }

    pub(super) fn malformed(&self, problem: String) -> IndexError {
        IndexError::Malformed { document: self.document, line: self.line, problem }
    }

    fn cut(&self, line: u64) -> IndexError {
        IndexError::Cut { document: self.document, line }
    }
}
