//! `backup diff`.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use serde_json::{Map, Value, json};

use super::Exit;
use super::files::{kind_name, shown_path};
use super::output::{BAD, BOLD, DIM, GOOD, LongDocument, Printer, Stream, WARN};
use super::setup::{IdentityArgs, Setup, StorageArgs};
use crate::archive::{self, Kind};
use crate::engine::{
    self, Aspect, Change, DiffSummary, Difference, FileDifference, FileState, Side,
};
use crate::model::ByteSize;

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// The older snapshot: an id, the beginning or end of one, or `latest`
    before: String,
    /// The newer snapshot
    after: String,
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Also list files of which only permissions, owners or times differ
    #[arg(long)]
    metadata: bool,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    identities: IdentityArgs,
}

pub(super) async fn run(setup: &Setup, args: DiffArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let identities = args.identities.load()?;
    let mut reading = setup.showing(&args.storage, args.strategy.as_deref()).await?;
    let listing = reading.list().await;
    let before = reading.readable(&listing, &args.before)?;
    let after = reading.readable(&listing, &args.after)?;
    reading.end_display();
    if printer.is_json() {
        let head = Map::from_iter([
            ("before".to_owned(), described(&before)),
            ("after".to_owned(), described(&after)),
        ]);
        // Shared, as the verb keeps what it gives the differences to.
        let document = Arc::new(Mutex::new(LongDocument::begin(head, "differences")));
        let list = Arc::clone(&document);
        let summary = engine::diff(
            &reading.engine,
            &before,
            &after,
            &identities,
            args.metadata,
            move |difference| {
                list.lock().unwrap_or_else(PoisonError::into_inner).item(&value_of(&difference))
            },
        )
        .await?;
        drop(reading);
        if let Some(document) =
            Arc::into_inner(document).and_then(|document| document.into_inner().ok())
        {
            document.end(Map::from_iter([("summary".to_owned(), serde_json::to_value(summary)?)]));
        }
        return Ok(Exit::Done);
    }
    let stream = Arc::new(Mutex::new(Stream::stdout()));
    let lines = Arc::clone(&stream);
    let put = move |text: &str| lines.lock().unwrap_or_else(PoisonError::into_inner).put(text);
    let _ = put(&format!("{BOLD}{} -> {}{BOLD:#}\n", name_of(&before), name_of(&after)));
    let each = put.clone();
    let summary = engine::diff(
        &reading.engine,
        &before,
        &after,
        &identities,
        args.metadata,
        move |difference| each(&line_of(&difference)),
    )
    .await?;
    drop(reading);
    let _ = put(&summary_text(summary, args.metadata));
    Ok(Exit::Done)
}

fn name_of(side: &Side) -> String {
    let snapshot = &side.snapshot;
    format!("{}/{} {}", snapshot.instance, snapshot.strategy, snapshot.id)
}

fn described(side: &Side) -> Value {
    let snapshot = &side.snapshot;
    json!({
        "instance": snapshot.instance, "strategy": snapshot.strategy, "id": snapshot.id,
        "storage": snapshot.storage,
    })
}

fn value_of(difference: &Difference) -> Value {
    let change = |before: &Option<u64>, after: &Option<u64>| match (before, after) {
        (None, _) => Change::Added,
        (_, None) => Change::Removed,
        _ => Change::Changed,
    };
    match difference {
        Difference::File(file) => {
            let mut value = json!({ "type": "file", "change": file.change, "source": file.source });
            if let Some(fields) = value.as_object_mut() {
                // As the index has it: a name that is not UTF-8 is in base64.
                let (key, path) = archive::index::path_member(&file.path);
                fields.insert(key.to_owned(), path.into());
                if file.number > NonZeroU32::MIN {
                    fields.insert("number".to_owned(), json!(file.number));
                }
                if !file.aspects.is_empty() {
                    fields.insert("differs_in".to_owned(), json!(file.aspects));
                }
                fields.insert("before".to_owned(), json!(file.before));
                fields.insert("after".to_owned(), json!(file.after));
            }
            value
        }
        Difference::Table { source, of, table, before, after } => with_of(
            json!({
                "type": "table", "change": change(before, after), "source": source,
                "table": table, "rows_before": before, "rows_after": after,
            }),
            of.as_ref(),
        ),
        Difference::Stream { artifact, of, before, after } => with_of(
            json!({
                "type": "artifact", "change": change(before, after), "artifact": artifact,
                "plain_bytes_before": before, "plain_bytes_after": after,
            }),
            of.as_ref(),
        ),
    }
}

/// `value` with the database that it is about, where its source has several.
fn with_of(mut value: Value, of: Option<&String>) -> Value {
    if let (Some(of), Some(fields)) = (of, value.as_object_mut()) {
        fields.insert("of".to_owned(), json!(of));
    }
    value
}

/// One difference: a sign, what was and what is, and of what.
fn line_of(difference: &Difference) -> String {
    let bytes = |bytes: &Option<u64>| bytes.map(|bytes| ByteSize(bytes).to_string());
    let rows = |rows: &Option<u64>| rows.map(|rows| rows.to_string());
    match difference {
        Difference::Stream { artifact, of, before, after } => {
            let of = of.as_ref().map(|of| format!(" ({of})")).unwrap_or_default();
            line(bytes(before), bytes(after), &format!("{artifact}{of}"), "")
        }
        Difference::Table { source, of, table, before, after } => {
            let of = of.as_ref().map(|of| format!("{of}: ")).unwrap_or_default();
            line(rows(before), rows(after), &format!("{source}: {of}{table}"), "rows")
        }
        Difference::File(file) => {
            let folder = match file.number {
                NonZeroU32::MIN => file.source.to_string(),
                number => format!("{}.{number}", file.source),
            };
            let name = format!("{folder}/{}", shown_path(&file.path));
            let states = (&file.before, &file.after);
            match states {
                (Some(before), Some(after)) if !file.aspects.contains(&Aspect::Content) => line(
                    Some(String::new()),
                    Some(String::new()),
                    &name,
                    &aspects(file, before, after),
                ),
                _ => line(file.before.as_ref().map(size), file.after.as_ref().map(size), &name, ""),
            }
        }
    }
}

fn size(state: &FileState) -> String {
    match state.kind {
        Kind::File => ByteSize(state.size).to_string(),
        kind => kind_name(kind).to_owned(),
    }
}

fn aspects(file: &FileDifference, before: &FileState, after: &FileState) -> String {
    let of = |aspect: &Aspect| match aspect {
        Aspect::Kind => format!("{} -> {}", kind_name(before.kind), kind_name(after.kind)),
        Aspect::Content => "content".to_owned(),
        Aspect::Mode => format!("mode {:04o} -> {:04o}", before.mode, after.mode),
        Aspect::Owner => {
            format!("owner {}:{} -> {}:{}", before.uid, before.gid, after.uid, after.gid)
        }
        Aspect::Mtime => "mtime".to_owned(),
    };
    file.aspects.iter().map(of).collect::<Vec<_>>().join(", ")
}

/// Two states are joined by an arrow; equal ones are said once. The middle column is as wide as two
/// sizes.
fn line(before: Option<String>, after: Option<String>, name: &str, note: &str) -> String {
    let (sign, style, states) = match (before, after) {
        (None, after) => ('+', GOOD, after.unwrap_or_default()),
        (before, None) => ('-', BAD, before.unwrap_or_default()),
        (Some(before), Some(after)) if before == after => ('~', WARN, after),
        (Some(before), Some(after)) => ('~', WARN, format!("{before} -> {after}")),
    };
    let note = if note.is_empty() { String::new() } else { format!("  {DIM}{note}{DIM:#}") };
    format!("  {style}{sign}{style:#} {states:>24}  {name}{note}\n")
}

fn summary_text(summary: DiffSummary, metadata: bool) -> String {
    let mut text = String::new();
    let part = |counted: engine::Tally, what: &str| {
        format!("{} {what} ({})", counted.entries, ByteSize(counted.bytes))
    };
    let _ = write!(
        text,
        "  {}, {}, {}; {} the same",
        part(summary.added, "added"),
        part(summary.removed, "removed"),
        part(summary.changed, "changed"),
        summary.same,
    );
    if summary.metadata > 0 {
        let _ = write!(text, "; {} in permissions, owners or times only", summary.metadata);
        if !metadata {
            let _ = write!(text, " {DIM}(`--metadata` lists them){DIM:#}");
        }
    }
    text.push('\n');
    text
}
