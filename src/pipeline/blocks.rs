//! Where the blocks of a stream are: the list that is stored beside it (`docs/format.md`,
//! *Blocks*), as it is read again.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

use serde::Deserialize;

use super::decode::damage;
use super::object::{Block, MAX_BLOCK_BYTES};
use super::stored::seek_table_bytes;
use crate::model::Compression;

/// The format that this version reads.
const FORMAT: u32 = 1;
const TYPE: &str = "holdfast-blocks";

/// A line has two numbers, the last one three. Fields of later versions have room.
const MAX_LINE_BYTES: u64 = 4 << 10;

/// No compression that is written makes a block larger than this.
const MAX_PACKED_BYTES: u64 =
    (MAX_BLOCK_BYTES + MAX_BLOCK_BYTES / 8 + MAX_BLOCK_BYTES / 64 + 64) as u64;

/// One block of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSpan {
    /// Its bytes in the plain stream.
    pub plain: Range<u64>,
    /// Its bytes in the compressed stream, before encryption.
    pub compressed: Range<u64>,
}

/// Yields the blocks of a list, in order, as they are read. What it yields follows one on another
/// from 0, and no block has more than [`MAX_BLOCK_BYTES`]; a list that says something else, or is
/// cut, ends with an error. After one, nothing comes.
pub struct BlockList<R> {
    lines: BufReader<R>,
    compression: Compression,
    /// What the manifest says that the stream has.
    compressed_bytes: u64,
    line: Vec<u8>,
    count: u64,
    last: Option<Block>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Beginning,
    Blocks,
    Ended,
}

/// Every kind of line. Which one it is, its place and `end` say.
#[derive(Deserialize)]
struct Line {
    format: Option<u32>,
    r#type: Option<String>,
    plain: Option<u64>,
    compressed: Option<u64>,
    #[serde(default)]
    end: bool,
    blocks: Option<u64>,
    plain_bytes: Option<u64>,
    compressed_bytes: Option<u64>,
}

impl<R: Read> BlockList<R> {
    /// Reads `list`, the plain stream of the artifact that lists the blocks of a stream. That
    /// stream has `compressed_bytes` bytes after `compression`, by the manifest.
    pub fn new(list: R, compression: Compression, compressed_bytes: u64) -> Self {
        Self {
            lines: BufReader::new(list),
            compression,
            compressed_bytes,
            line: Vec::new(),
            count: 0,
            last: None,
            state: State::Beginning,
        }
    }

    fn read_line(&mut self) -> io::Result<Line> {
        self.line.clear();
        (&mut self.lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line)?;
        if self.line.last() != Some(&b'\n') {
            let problem = if self.line.len() as u64 == MAX_LINE_BYTES {
                "has a line that is too long"
            } else {
                "is cut"
            };
            return Err(damage(format!("The list of blocks {problem}")));
        }
        serde_json::from_slice(&self.line).map_err(|error| {
            damage(format!("The list of blocks has a line that is none of it: {error}"))
        })
    }

    fn read_header(&mut self) -> io::Result<()> {
        let header = self.read_line()?;
        match (header.format, header.r#type.as_deref()) {
            (Some(FORMAT), Some(TYPE)) => Ok(()),
            (Some(format), Some(TYPE)) => Err(damage(format!(
                "The list of blocks has format {format}, and this version reads {FORMAT}: use a \
                 newer version of the program"
            ))),
            _ => Err(damage("It is not a list of blocks".to_owned())),
        }
    }

    /// The next block, whose end is where the one after it begins.
    fn read_span(&mut self) -> io::Result<Option<BlockSpan>> {
        if self.state == State::Beginning {
            self.read_header()?;
            self.state = State::Blocks;
        }
        loop {
            let line = self.read_line()?;
            if line.end {
                return self.finish(&line);
            }
            let (Some(plain), Some(compressed)) = (line.plain, line.compressed) else {
                return Err(damage("The list of blocks has a line that is no block".to_owned()));
            };
            let block = Block { plain, compressed };
            self.count += 1;
            match self.last.replace(block) {
                Some(last) => return self.span(last, block, false).map(Some),
                None if block == (Block { plain: 0, compressed: 0 }) => {}
                None => {
                    return Err(damage(
                        "The list of blocks does not begin at the beginning".to_owned(),
                    ));
                }
            }
        }
    }

    /// The last block, held against what the last line says.
    fn finish(&mut self, line: &Line) -> io::Result<Option<BlockSpan>> {
        self.state = State::Ended;
        let (Some(blocks), Some(plain), Some(compressed)) =
            (line.blocks, line.plain_bytes, line.compressed_bytes)
        else {
            return Err(damage(
                "The last line of the list of blocks is not what it should be".to_owned(),
            ));
        };
        if blocks != self.count {
            let count = self.count;
            return Err(damage(format!(
                "The list of blocks has {count} blocks, and its end says {blocks}"
            )));
        }
        if compressed != self.compressed_bytes {
            let known = self.compressed_bytes;
            return Err(damage(format!(
                "The list of blocks is of a stream of {compressed} compressed bytes, and the \
                 manifest says {known}"
            )));
        }
        if !self.lines.fill_buf()?.is_empty() {
            return Err(damage("The list of blocks goes on after its end".to_owned()));
        }
        let table =
            if self.compression == Compression::Zstd { seek_table_bytes(blocks) } else { 0 };
        let Some(compressed) = compressed.checked_sub(table) else {
            return Err(damage(format!("The list of blocks leaves no room for {blocks} blocks")));
        };
        match self.last.take() {
            Some(last) => self.span(last, Block { plain, compressed }, blocks == 1).map(Some),
            None if plain == 0 => Ok(None),
            None => Err(damage(format!("The list of blocks has none for {plain} bytes"))),
        }
    }

    fn span(&self, begin: Block, end: Block, may_be_empty: bool) -> io::Result<BlockSpan> {
        let plain = end.plain.checked_sub(begin.plain).filter(|size| *size > 0 || may_be_empty);
        let compressed =
            end.compressed.checked_sub(begin.compressed).filter(|size| *size > 0 || may_be_empty);
        match (plain, compressed) {
            (Some(plain), Some(compressed))
                if plain <= MAX_BLOCK_BYTES as u64
                    && compressed <= MAX_PACKED_BYTES
                    && end.compressed <= self.compressed_bytes =>
            {
                Ok(BlockSpan {
                    plain: begin.plain..end.plain,
                    compressed: begin.compressed..end.compressed,
                })
            }
            _ => Err(damage(format!(
                "The list of blocks says that block {} goes from byte {} to {}, compressed {} to \
                 {}, which cannot be",
                self.count.saturating_sub(1),
                begin.plain,
                end.plain,
                begin.compressed,
                end.compressed
            ))),
        }
    }
}

impl<R: Read> Iterator for BlockList<R> {
    type Item = io::Result<BlockSpan>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Ended {
            return None;
        }
        let span = self.read_span();
        if span.is_err() {
            self.state = State::Ended;
        }
        span.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{BlockList, BlockSpan};
    use crate::model::Compression;

    const HEAD: &str = r#"{"format":1,"type":"holdfast-blocks","block_bytes":10}"#;

    fn read(lines: &[&str], compressed_bytes: u64) -> io::Result<Vec<BlockSpan>> {
        let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        BlockList::new(text.as_bytes(), Compression::None, compressed_bytes).collect()
    }

    #[test]
    fn blocks_end_where_the_next_begins() {
        let list = [
            HEAD,
            r#"{"plain":0,"compressed":0}"#,
            r#"{"plain":10,"compressed":7,"later":"field"}"#,
            r#"{"end":true,"blocks":2,"plain_bytes":15,"compressed_bytes":12}"#,
        ];
        let spans = [
            BlockSpan { plain: 0..10, compressed: 0..7 },
            BlockSpan { plain: 10..15, compressed: 7..12 },
        ];
        assert_eq!(read(&list, 12).unwrap(), spans);
        let empty = [HEAD, r#"{"end":true,"blocks":0,"plain_bytes":0,"compressed_bytes":0}"#];
        assert_eq!(read(&empty, 0).unwrap(), []);
    }

    #[test]
    fn a_list_that_lies_is_an_error() {
        let first = r#"{"plain":0,"compressed":0}"#;
        let end = r#"{"end":true,"blocks":2,"plain_bytes":15,"compressed_bytes":12}"#;
        let huge = format!(r#"{{"plain":{},"compressed":7}}"#, u64::MAX);
        let long = format!(r#"{{"plain":10,"compressed":7,"x":"{}"}}"#, "x".repeat(5_000));
        let cases: [(&str, Vec<&str>); 12] = [
            ("not a list", vec![r#"{"format":1,"type":"holdfast-index"}"#, end]),
            ("format 2", vec![r#"{"format":2,"type":"holdfast-blocks"}"#, end]),
            ("is cut", vec![HEAD, first]),
            ("does not begin", vec![HEAD, r#"{"plain":1,"compressed":0}"#, end]),
            ("cannot be", vec![HEAD, first, r#"{"plain":0,"compressed":7}"#, end]),
            ("cannot be", vec![HEAD, first, r#"{"plain":16,"compressed":7}"#, end]),
            ("cannot be", vec![HEAD, first, r#"{"plain":10,"compressed":13}"#, end]),
            ("cannot be", vec![HEAD, first, &huge, end]),
            ("too long", vec![HEAD, first, &long, end]),
            ("none of it", vec![HEAD, "nonsense", end]),
            ("1 blocks", vec![HEAD, first, end]),
            ("goes on", vec![HEAD, first, r#"{"plain":10,"compressed":7}"#, end, end]),
        ];
        for (word, list) in cases {
            let error = read(&list, 12).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let wrong_size = [HEAD, first, r#"{"plain":10,"compressed":7}"#, end];
        assert!(read(&wrong_size, 13).unwrap_err().to_string().contains("the manifest says 13"));
    }

    #[test]
    fn a_block_is_never_larger_than_there_are() {
        let far = format!(r#"{{"plain":{},"compressed":7}}"#, (8 << 20) + 1);
        let error =
            read(&[HEAD, r#"{"plain":0,"compressed":0}"#, &far], 12).unwrap_err().to_string();
        assert!(error.contains("cannot be"), "{error}");
    }
}
