//! The table of contents and the definitions of a dump, which `pg_restore` reads from its head.

use std::io::{Read, Write};

use sqlx::PgConnection;

use super::address::Address;
use crate::model::ByteSize;
use crate::source::process::{Call, Heard, MemoryFile};
use crate::source::{Context, SourceError};

/// How much of a dump is taken for its table of contents at first; four times as much, until it is
/// enough.
const HEAD: usize = 256 << 10;
/// No table of contents is so long, and no definitions of a database are.
const LONGEST: usize = 256 << 20;

/// Reads the beginning of the dump with all of its table of contents into `head`; what `define`
/// makes of it.
pub(super) fn read_head(
    input: &mut dyn Read,
    head: &mut Vec<u8>,
    define: impl Fn(&[u8]) -> Result<Vec<u8>, SourceError>,
) -> Result<Vec<u8>, SourceError> {
    let mut wanted = HEAD;
    loop {
        let missing = wanted.saturating_sub(head.len()) as u64;
        let read = input.take(missing).read_to_end(head).map_err(SourceError::Stream)? as u64;
        match define(head) {
            Ok(definitions) => return Ok(definitions),
            Err(SourceError::Process(_)) if read == missing && wanted < LONGEST => wanted *= 4,
            Err(error) => return Err(error),
        }
    }
}

/// What `pg_restore` with these arguments writes of the head of a dump.
pub(super) fn definitions(
    cx: &Context,
    call: Call,
    head: &[u8],
    args: &[String],
) -> Result<Vec<u8>, SourceError> {
    let head = MemoryFile::new("head", head)?;
    let mut written = Written(Vec::new());
    // The restore of the same dump says it again.
    let unheard = Context { heard: Heard::default(), ..cx.clone() };
    let wrote = call.args(args.to_vec()).args([head.path()]).read_into(&unheard, &mut written);
    match wrote {
        Ok(_) => Ok(written.0),
        Err(SourceError::Stream(_)) => Err(SourceError::Unsuitable(format!(
            "The definitions in the dump have more than {}, which is not supported",
            ByteSize(LONGEST as u64)
        ))),
        Err(error) => Err(error),
    }
}

/// The definitions as text; the server knows the encodings that we do not.
pub(super) async fn as_text(
    connection: &mut PgConnection,
    address: &Address,
    written: Vec<u8>,
) -> Result<String, SourceError> {
    let encoding = encoding(&written);
    let written = match String::from_utf8(written) {
        Ok(text) if text.is_ascii() || matches!(&*encoding, "UTF8" | "SQL_ASCII") => {
            return Ok(text);
        }
        Ok(text) => text.into_bytes(),
        Err(error) => error.into_bytes(),
    };
    sqlx::query_scalar("SELECT pg_catalog.convert_from($1, $2)")
        .bind(&written)
        .bind(&encoding)
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(|error| {
            let error = address.failed("read the definitions in the dump", &error);
            SourceError::Unsuitable(format!("{error} (they are in {encoding})"))
        })
}

/// Collects what a tool writes, up to a limit.
struct Written(Vec<u8>);

impl Write for Written {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + part.len() > LONGEST {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(part)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The encoding that the definitions say they are in.
fn encoding(written: &[u8]) -> String {
    let start = String::from_utf8_lossy(written.get(..written.len().min(4096)).unwrap_or_default());
    let named = start.lines().find_map(|line| line.strip_prefix("SET client_encoding = '"));
    named.and_then(|rest| rest.split('\'').next()).unwrap_or("UTF8").to_owned()
}
