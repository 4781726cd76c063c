//! `backup show --files`.

use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Map;

use super::Exit;
use super::output::{LongDocument, Printer, Stream};
use super::setup::Reading;
use crate::archive::index::Entry;
use crate::archive::{Kind, Pattern};
use crate::engine::{self, Side};
use crate::model::Name;
use crate::pipeline::Identity;

pub(super) async fn run(
    mut reading: Reading,
    side: &Side,
    identities: &[Identity],
    patterns: &[Pattern],
    printer: &Printer,
) -> anyhow::Result<Exit> {
    reading.end_display();
    // Shared, as the verb keeps what it gives the entries to.
    let out = Arc::new(Mutex::new(if printer.is_json() {
        Out::Json(LongDocument::begin(Map::new(), "files"))
    } else {
        Out::Text(Stream::stdout(), 0)
    }));
    let list = Arc::clone(&out);
    engine::files(&reading.engine, side, identities, patterns, move |source, number, entry| {
        list.lock().unwrap_or_else(PoisonError::into_inner).put(source, number, entry)
    })
    .await?;
    drop(reading);
    match Arc::into_inner(out).and_then(|out| out.into_inner().ok()) {
        Some(Out::Json(document)) => document.end(Map::new()),
        Some(Out::Text(_, 0)) => printer.note("No files"),
        Some(Out::Text(..)) | None => {}
    }
    Ok(Exit::Done)
}

enum Out {
    Json(LongDocument),
    /// And how many lines there were.
    Text(Stream, u64),
}

impl Out {
    fn put(&mut self, source: &Name, number: NonZeroU32, entry: Entry) -> ControlFlow<()> {
        match self {
            Self::Json(document) => {
                let Ok(mut value) = serde_json::to_value(&entry) else {
                    return ControlFlow::Break(());
                };
                if let Some(fields) = value.as_object_mut() {
                    fields.insert("source".to_owned(), source.as_str().into());
                    if number > NonZeroU32::MIN {
                        fields.insert("number".to_owned(), number.get().into());
                    }
                }
                document.item(&value)
            }
            Self::Text(stream, lines) => {
                *lines += 1;
                let folder = match number {
                    NonZeroU32::MIN => source.to_string(),
                    number => format!("{source}.{number}"),
                };
                stream.put(&line(&folder, entry))
            }
        }
    }
}

/// An entry, as `ls -l` has it.
fn line(folder: &str, entry: Entry) -> String {
    let target = entry.target.as_ref().map(|target| format!(" -> {}", shown_path(target)));
    let time = chrono::DateTime::from_timestamp(entry.mtime.seconds, entry.mtime.nanos)
        .unwrap_or_default();
    format!(
        "{} {:04o} {:>8} {:>8} {:>12} {} {folder}/{}{}\n",
        kind_letter(entry.kind),
        entry.mode,
        entry.uname.unwrap_or_else(|| entry.uid.to_string()),
        entry.gname.unwrap_or_else(|| entry.gid.to_string()),
        entry.size,
        time.format("%Y-%m-%d %H:%M"),
        shown_path(&entry.path),
        target.unwrap_or_default(),
    )
}

/// A path in one line, whatever is in it.
pub(super) fn shown_path(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

fn kind_letter(kind: Kind) -> char {
    match kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Hardlink => 'h',
        Kind::Fifo => 'p',
        Kind::Char => 'c',
        Kind::Block => 'b',
    }
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "folder",
        Kind::Symlink => "link",
        Kind::Hardlink => "hard link",
        Kind::Fifo => "pipe",
        Kind::Char | Kind::Block => "device",
    }
}
