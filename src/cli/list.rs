//! `backup list`.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::Exit;
use super::output::{BAD, BOLD, Cell, DIM, GOOD, Printer, Table, WARN, age, count};
use super::setup::{Setup, StorageArgs};
use crate::engine::{self, Listing, Snapshot};
use crate::model::{ByteSize, Completeness, Name, SnapshotId};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Of this strategy only
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    #[command(flatten)]
    storage: StorageArgs,
}

#[derive(Serialize)]
struct Document {
    snapshots: Vec<Row>,
    unlisted: Vec<Unlisted>,
}

#[derive(Serialize)]
struct Unlisted {
    storage: Name,
    error: String,
}

/// One snapshot, with all its copies.
#[derive(Serialize)]
struct Row {
    instance: Name,
    strategy: Name,
    id: SnapshotId,
    taken: DateTime<Utc>,
    stored_bytes: Option<u64>,
    completeness: Option<Completeness>,
    encrypted: Option<bool>,
    storages: Vec<Name>,
    damaged: Vec<Unlisted>,
}

pub(super) async fn run(setup: &Setup, args: ListArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let reading = setup.reading(&args.storage, args.strategy.as_deref()).await?;
    let listing = engine::list(&reading.engine, &reading.storages, &reading.selection).await;
    let now = reading.engine.clock.now();
    drop(reading);
    let rows = rows(&listing);
    let damaged = rows.iter().any(|row| !row.damaged.is_empty());
    let unlisted: Vec<Unlisted> =
        listing.unlisted.into_iter().map(|(storage, error)| Unlisted { storage, error }).collect();
    let failed = !unlisted.is_empty();
    if printer.is_json() {
        printer.document(&Document { snapshots: rows, unlisted });
    } else {
        printer.text(&text(&rows, now));
        for unlisted in &unlisted {
            printer.note(&format!("{BAD}{} could not be listed:{BAD:#} {}", unlisted.storage, unlisted.error));
        }
    }
    Ok(match (damaged, failed) {
        (true, _) => Exit::Damaged,
        (false, true) => Exit::Failed,
        (false, false) => Exit::Done,
    })
}

fn rows(listing: &Listing) -> Vec<Row> {
    let same = |a: &Snapshot, b: &Snapshot| (&a.instance, &a.strategy, &a.id) == (&b.instance, &b.strategy, &b.id);
    let mut rows = Vec::new();
    for copies in listing.snapshots.chunk_by(same) {
        let Some(first) = copies.first() else { continue };
        let manifest = copies.iter().find_map(|copy| copy.manifest.as_ref().ok());
        rows.push(Row {
            instance: first.instance.clone(),
            strategy: first.strategy.clone(),
            id: first.id.clone(),
            taken: first.id.time(),
            stored_bytes: manifest.map(crate::model::Manifest::stored_bytes),
            completeness: manifest.map(|manifest| manifest.completeness),
            encrypted: manifest.map(crate::model::Manifest::is_encrypted),
            storages: copies.iter().filter(|copy| copy.manifest.is_ok()).map(|copy| copy.storage.clone()).collect(),
            damaged: copies
                .iter()
                .filter_map(|copy| {
                    let error = copy.manifest.as_ref().err()?.clone();
                    Some(Unlisted { storage: copy.storage.clone(), error })
                })
                .collect(),
        });
    }
    rows
}

fn text(rows: &[Row], now: DateTime<Utc>) -> String {
    let mut text = String::new();
    for group in rows.chunk_by(|a, b| (&a.instance, &a.strategy) == (&b.instance, &b.strategy)) {
        let Some(first) = group.first() else { continue };
        if !text.is_empty() {
            text.push('\n');
        }
        let bytes = group.iter().filter_map(|row| row.stored_bytes).sum();
        let _ = writeln!(
            text,
            "{BOLD}{} / {}{BOLD:#}  {DIM}{}, {}{DIM:#}",
            first.instance,
            first.strategy,
            count(group.len() as u64, "snapshot"),
            ByteSize(bytes)
        );
        let mut table = Table::new(&["ID", "TAKEN (UTC)", ">AGE", ">SIZE", "STATE", "STORAGES"]).indented(2);
        for row in group.iter().rev() {
            let state = match (row.completeness, row.damaged.is_empty()) {
                (None, false) => Cell::styled("unreadable", BAD),
                (Some(_), false) => Cell::styled("one copy is unreadable", BAD),
                (Some(Completeness::Partial), true) => Cell::styled("partial", WARN),
                _ => Cell::styled("whole", GOOD),
            };
            let storages: Vec<&str> = row
                .storages
                .iter()
                .chain(row.damaged.iter().map(|damaged| &damaged.storage))
                .map(Name::as_str)
                .collect();
            table.row(vec![
                row.id.as_str().into(),
                row.taken.format("%Y-%m-%d %H:%M").to_string().into(),
                age(row.taken, now).trim_end_matches(" ago").into(),
                row.stored_bytes.map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string()).into(),
                state,
                storages.join(", ").into(),
            ]);
        }
        text.push_str(&table.render());
        for row in group.iter().rev() {
            for damaged in &row.damaged {
                let _ = writeln!(
                    text,
                    "  {BAD}{} in {}:{BAD:#} `manifest.json`: {}",
                    row.id, damaged.storage, damaged.error
                );
            }
        }
    }
    if text.is_empty() { "No snapshots.\n".to_owned() } else { text }
}
