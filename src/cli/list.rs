//! `backup list`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::Exit;
use super::output::{BAD, BOLD, Cell, DIM, GOOD, Printer, Table, WARN, age, count, or_dash};
use super::setup::{Setup, StorageArgs};
use crate::config::Instance;
use crate::engine::{self, Drilled, Hold, Listing, Retention, Snapshot, Standing, Vanished};
use crate::model::{ByteSize, Completeness, Manifest, Name, SnapshotId, Verdict};
use crate::retention::Reason;

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
    unread_marks: Vec<Unlisted>,
    /// What is no file or folder where there should be one.
    unexpected: Vec<Unlisted>,
    /// What is gone, though the rules would keep it.
    vanished: Vec<Vanished>,
    /// Prefixes at which there may be snapshots, where there are none at the one asked for.
    elsewhere: Vec<Elsewhere>,
}

#[derive(Serialize)]
struct Elsewhere {
    storage: Name,
    prefix: String,
}

#[derive(Serialize)]
pub(super) struct Unlisted {
    pub(super) storage: Name,
    pub(super) error: String,
}

#[derive(Serialize)]
struct Row {
    instance: Name,
    strategy: Name,
    /// Whether the schedule of the strategy is followed; nothing where it is not configured.
    active: Option<bool>,
    id: SnapshotId,
    taken: DateTime<Utc>,
    age_seconds: i64,
    stored_bytes: Option<u64>,
    completeness: Option<Completeness>,
    encrypted: Option<bool>,
    storages: Vec<Name>,
    damaged: Vec<Unlisted>,
    /// Copies that only a newer version can read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    newer: Vec<Unlisted>,
    /// What retention says of each copy that it is configured for.
    retention: BTreeMap<Name, Retention>,
    held: Option<Hold>,
    drilled: Option<Drilled>,
    /// Whether it has much less than the last good one, and nobody has released it.
    suspect: bool,
}

pub(super) async fn run(setup: &Setup, args: ListArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let reading = setup.showing(&args.storage, args.strategy.as_deref()).await?;
    let listing = reading.list().await;
    let (standings, unread) =
        engine::standings(&reading.engine, &reading.storages, &listing, reading.instance.as_ref())
            .await;
    let vanished = reading.vanished(&listing).await;
    let now = reading.engine.clock.now();
    let rows = rows(&listing, standings, now, reading.instance.as_ref());
    drop(reading);
    let damaged = !vanished.is_empty() || rows.iter().any(|row| !row.damaged.is_empty());
    let newer = rows.iter().any(|row| !row.newer.is_empty());
    let told = |(storage, error)| Unlisted { storage, error };
    let unlisted: Vec<Unlisted> = listing.unlisted.into_iter().map(told).collect();
    // Of a storage that could not be listed the marks are not known either.
    let unread: Vec<Unlisted> = unread
        .into_iter()
        .filter(|(name, _)| unlisted.iter().all(|one| one.storage != *name))
        .map(told)
        .collect();
    let unexpected: Vec<Unlisted> = listing.unexpected.into_iter().map(told).collect();
    let failed = !unlisted.is_empty() || !unexpected.is_empty();
    if printer.is_json() {
        let elsewhere = listing.elsewhere.into_iter();
        printer.document(&Document {
            snapshots: rows,
            unlisted,
            unread_marks: unread,
            unexpected,
            vanished,
            elsewhere: elsewhere
                .chain(listing.beside)
                .map(|(storage, prefix)| Elsewhere { storage, prefix })
                .collect(),
        });
    } else {
        let shown = text(&rows, now);
        if !shown.is_empty() {
            printer.text(&shown);
        } else if unlisted.is_empty() {
            printer.text("No snapshots.\n");
        }
        for (storage, prefix) in &listing.elsewhere {
            printer.note(&format!("hint: snapshots lie below `{prefix}` in {storage}"));
        }
        for (storage, folder) in &listing.beside {
            printer.note(&format!("hint: {storage} has the prefix `{folder}` too"));
        }
        for Vanished { storage, strategy, id } in &vanished {
            printer.note(&format!(
                "{BAD}{strategy}/{id} has vanished from {storage}:{BAD:#} the rules would keep it. \
                 Look whether the storage is mounted and who can delete there; when it was meant, \
                 `backup forget {id}`"
            ));
        }
        for unlisted in &unlisted {
            printer.note(&format!(
                "{BAD}{} could not be listed:{BAD:#} {}",
                unlisted.storage, unlisted.error
            ));
        }
        for Unlisted { storage, error } in &unexpected {
            printer.note(&format!(
                "{BAD}unexpected in {storage}, so nothing is pruned beside it:{BAD:#} {error}"
            ));
        }
        for unread in &unread {
            let Unlisted { storage, error } = unread;
            printer.note(&format!(
                "{BAD}marks in {storage} cannot be read, so nothing is pruned:{BAD:#} {error}"
            ));
        }
    }
    Ok(match (damaged, failed) {
        (true, _) => Exit::Damaged,
        (false, true) => Exit::Failed,
        (false, false) if newer => Exit::Problems,
        (false, false) => Exit::Done,
    })
}

fn rows(
    listing: &Listing,
    standings: Vec<Standing>,
    now: DateTime<Utc>,
    configured: Option<&Instance>,
) -> Vec<Row> {
    let same = |a: &Snapshot, b: &Snapshot| {
        (&a.instance, &a.strategy, &a.id) == (&b.instance, &b.strategy, &b.id)
    };
    let mut standings = standings.into_iter();
    let mut rows = Vec::new();
    for copies in listing.snapshots.chunk_by(same) {
        let Some(first) = copies.first() else { continue };
        let manifest = copies.iter().find_map(|copy| copy.manifest.as_ref().ok());
        let configured = configured.filter(|instance| instance.name == first.instance);
        let strategy = configured.and_then(|instance| instance.strategies.get(&first.strategy));
        let mut row = Row {
            active: strategy.map(|strategy| strategy.active),
            instance: first.instance.clone(),
            strategy: first.strategy.clone(),
            id: first.id.clone(),
            taken: first.id.time(),
            age_seconds: (now - first.id.time()).num_seconds(),
            stored_bytes: manifest.map(Manifest::stored_bytes),
            completeness: manifest.map(|manifest| manifest.completeness),
            encrypted: manifest.map(Manifest::is_encrypted),
            storages: Vec::new(),
            damaged: Vec::new(),
            newer: Vec::new(),
            retention: BTreeMap::new(),
            held: None,
            drilled: None,
            suspect: copies.iter().any(|copy| copy.is_suspect),
        };
        for (copy, standing) in copies.iter().zip(&mut standings) {
            let storage = copy.storage.clone();
            let sound = copy.manifest.is_ok() && copy.flaws.is_empty();
            match &copy.manifest {
                Err(bad) => {
                    let error = format!("`manifest.json`: {bad}");
                    let copies = if bad.is_damage() { &mut row.damaged } else { &mut row.newer };
                    copies.push(Unlisted { storage, error });
                }
                Ok(_) if !copy.flaws.is_empty() => {
                    row.damaged.push(Unlisted { storage, error: copy.flaws.join(", ") });
                }
                Ok(_) => match &copy.damage {
                    Some(damage) => {
                        row.damaged.push(Unlisted { storage, error: damage.clone() });
                    }
                    None => row.storages.push(storage),
                },
            }
            // While one is damaged nothing is deleted beside it, whatever retention says.
            if let Some(retention) = standing.retention.filter(|_| sound) {
                row.retention.insert(copy.storage.clone(), retention);
            }
            row.held = standing.hold;
            row.drilled = standing.drilled;
        }
        rows.push(row);
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
        let active = if first.active == Some(false) { ", not active" } else { "" };
        let totals = totals(group);
        let _ = writeln!(
            text,
            "{BOLD}{} / {}{BOLD:#}  {DIM}{totals}{active}{DIM:#}",
            first.instance, first.strategy
        );
        let retained = group.iter().any(|row| !row.retention.is_empty());
        let mut columns = vec!["ID", "TAKEN (UTC)", ">AGE", ">SIZE", "STATE", "STORAGES"];
        if retained {
            columns.push("KEPT BY");
        }
        let mut table = Table::new(&columns).indented(2);
        for row in group.iter().rev() {
            let storages: Vec<&str> = row
                .storages
                .iter()
                .chain(row.damaged.iter().chain(&row.newer).map(|copy| &copy.storage))
                .map(Name::as_str)
                .collect();
            let mut cells = vec![
                row.id.as_str().into(),
                row.taken.format("%Y-%m-%d %H:%M").to_string().into(),
                age(row.taken, now).trim_end_matches(" ago").into(),
                or_dash(row.stored_bytes.map(ByteSize)).into(),
                state(row),
                storages.join(", ").into(),
            ];
            if retained {
                cells.push(kept_by(row));
            }
            table.row(cells);
        }
        text.push_str(&table.render());
        for row in group.iter().rev() {
            if row.suspect {
                let release = format!("`backup release {} --reason TEXT`", row.id);
                let _ = writeln!(
                    text,
                    "  {WARN}{} has much less than the last good one:{WARN:#} nothing is pruned \
                     until {release}",
                    row.id
                );
            }
            if let Some(reason) = row.held.as_ref().and_then(|hold| hold.reason.as_ref()) {
                let _ = writeln!(text, "  {DIM}{} is held: {reason}{DIM:#}", row.id);
            }
            let damaged = row.damaged.iter().map(|copy| (BAD, copy));
            let newer = row.newer.iter().map(|copy| (WARN, copy));
            for (style, Unlisted { storage, error }) in damaged.chain(newer) {
                let _ = writeln!(text, "  {style}{} in {storage}:{style:#} {error}", row.id);
            }
        }
    }
    text
}

/// How many there are and what they take, by storage where there are several.
fn totals(group: &[Row]) -> String {
    let mut by_storage: BTreeMap<&Name, (u64, u64)> = BTreeMap::new();
    for row in group {
        for storage in &row.storages {
            let (snapshots, bytes) = by_storage.entry(storage).or_default();
            *snapshots += 1;
            *bytes = bytes.saturating_add(row.stored_bytes.unwrap_or(0));
        }
    }
    let all = count(group.len() as u64, "snapshot");
    match by_storage.iter().collect::<Vec<_>>().as_slice() {
        [(_, (_, bytes))] => format!("{all}, {}", ByteSize(*bytes)),
        several => {
            let each = several.iter().map(|(name, (snapshots, bytes))| {
                format!("{name} {snapshots}, {}", ByteSize(*bytes))
            });
            std::iter::once(all).chain(each).collect::<Vec<_>>().join("; ")
        }
    }
}

fn state(row: &Row) -> Cell {
    if !row.damaged.is_empty() {
        return match row.storages.is_empty() {
            true if row.completeness.is_none() => Cell::styled("unreadable", BAD),
            true => Cell::styled("damaged", BAD),
            false => Cell::styled("one copy is damaged", BAD),
        };
    }
    if row.storages.is_empty() && !row.newer.is_empty() {
        return Cell::styled("of a newer version", WARN);
    }
    let (mut words, style) =
        match (row.completeness, row.drilled.as_ref().map(|drilled| drilled.verdict)) {
            (_, Some(Verdict::Failed)) => ("drill failed".to_owned(), BAD),
            _ if row.suspect => ("suspect".to_owned(), BAD),
            (Some(Completeness::Partial), _) => ("partial".to_owned(), WARN),
            (_, Some(Verdict::Passed)) => ("whole, drilled".to_owned(), GOOD),
            _ => ("whole".to_owned(), GOOD),
        };
    if let Some(hold) = &row.held {
        words.push_str(", held");
        if let Some(until) = hold.until {
            let _ = write!(words, " until {}", until.format("%Y-%m-%d"));
        }
    }
    Cell::styled(words, style)
}

/// What keeps it, by storage where that differs.
fn kept_by(row: &Row) -> Cell {
    let said: Vec<(&Name, bool, String)> = row
        .retention
        .iter()
        .map(|(name, retention)| (name, retention.keep, words(retention)))
        .collect();
    let Some((_, keep, first)) = said.first() else { return "-".into() };
    let same = said.iter().all(|(_, _, words)| words == first) && said.len() == row.storages.len();
    let text = if same {
        first.clone()
    } else {
        said.iter()
            .map(|(name, _, words)| format!("{name}: {words}"))
            .collect::<Vec<_>>()
            .join("; ")
    };
    if *keep || !same { text.into() } else { Cell::styled(text, WARN) }
}

fn words(retention: &Retention) -> String {
    if !retention.keep {
        return "nothing: goes next".to_owned();
    }
    let words: Vec<String> = retention
        .reasons
        .iter()
        .filter_map(|reason| match reason {
            Reason::Rule { rule, .. } => {
                let (name, reach) = rule.split_once(" = ")?;
                let name = name.strip_prefix("keep_").unwrap_or(name);
                Some(if name.starts_with("within") {
                    format!("{} {reach}", name.replace('_', " "))
                } else {
                    name.to_owned()
                })
            }
            // It stands in the column of the state.
            Reason::Held { .. } => Some("hold".to_owned()),
            Reason::Drilled { .. } => Some("drill".to_owned()),
            Reason::LastGood => Some("last good".to_owned()),
            Reason::Newest => Some("newest".to_owned()),
            Reason::NothingWhole => Some("no newer whole one".to_owned()),
            Reason::Suspect => Some("suspicion".to_owned()),
            Reason::Future => Some("dated in the future".to_owned()),
            Reason::NoPolicy => Some("no rule".to_owned()),
            Reason::Locked { until } => Some(until.map_or_else(
                || "lock".to_owned(),
                |until| format!("lock until {}", until.format("%Y-%m-%d")),
            )),
            Reason::Unmatched | Reason::Superseded { .. } => None,
        })
        .collect();
    words.join(", ")
}
