//! `backup hold`, `backup release` and `backup forget`.

use std::fmt::Write as _;

use clap::Args;

use super::output::{BAD, BOLD, GOOD, Printer, count};
use super::prune::{exit, pruned_text};
use super::setup::{Setup, StorageArgs, confirmed};
use super::{Exit, UsageError};
use crate::engine::{
    self, EngineError, MarkReport, Released, Snapshot, Vanished, parse_at, read_marks,
};
use crate::model::{Name, SnapshotId};
use crate::storage::Patience;

#[derive(Debug, Args)]
pub(super) struct HoldArgs {
    /// The snapshot: its id, the beginning of it, the digits after the dash, or `latest`
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// Why it is held
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Until when; until it is released, where none is given: `2027-01-31`, `2027-01-31 12:00`
    /// (UTC) or RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    #[command(flatten)]
    storage: StorageArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReleaseArgs {
    /// The snapshot: its id, the beginning of it, or the digits after the dash
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// Why it is released
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// End only its holds, only the suspicion of a run or drill, or only marks of it that are
    /// damaged; all of these where this is not given. `damage`: copies of it that were found
    /// damaged count as sound again, as `backup verify --read-data` has it when it finds them so
    #[arg(long, value_name = "WHICH")]
    only: Option<Only>,
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    #[command(flatten)]
    storage: StorageArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Only {
    Hold,
    Suspicion,
    Damaged,
    /// That copies of it are damaged
    Damage,
}

#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// The snapshots: their ids, the beginning of them, or the digits after the dash
    #[arg(value_name = "SNAPSHOT", required_unless_present = "vanished")]
    snapshots: Vec<String>,
    /// Every snapshot that vanished: that it is gone is meant
    #[arg(long)]
    vanished: bool,
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// In this storage only
    #[arg(long, value_name = "NAME")]
    storage: Option<String>,
    /// Delete the newest one that passed a drill, too
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn hold(setup: &Setup, args: HoldArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let until = args.until.as_deref().map(parse_at).transpose().map_err(UsageError)?;
    let reading = setup.reading(&args.storage, args.strategy.as_deref()).await?.of_all()?;
    let listing = reading.list().await;
    let copies = engine::find(&listing, &args.snapshot, None)?;
    let mut report =
        engine::hold(&reading.engine, &reading.storages, &copies, args.reason, until).await?;
    drop(reading);
    report.failed.extend(listing.unlisted);
    let until = until.map(|until| format!(" until {}", until.to_rfc3339())).unwrap_or_default();
    Ok(show(printer, &report, &format!("held{until}"), "not held"))
}

pub(super) async fn release(
    setup: &Setup,
    args: ReleaseArgs,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let reading = setup.reading(&args.storage, args.strategy.as_deref()).await?.of_all()?;
    let listing = reading.list().await;
    let what = match args.only {
        None => Released::All,
        Some(Only::Hold) => Released::Hold,
        Some(Only::Suspicion) => Released::Suspicion,
        Some(Only::Damaged) => Released::Damaged,
        Some(Only::Damage) => Released::Damage,
    };
    let of = match (engine::find(&listing, &args.snapshot, None), &reading.instance) {
        (Ok(copies), _) => copies.first().map(Snapshot::snapshot_ref),
        // What is said of a snapshot may have outlived it.
        (Err(error), Some(instance)) => {
            let marks = read_marks(&reading.engine, &reading.storages, &instance.name).await;
            let known = args.snapshot.parse().ok().and_then(|id| marks.snapshot(&id));
            Some(known.ok_or(error)?)
        }
        (Err(error), None) => return Err(error.into()),
    };
    let of = of.ok_or_else(|| EngineError::Internal("A snapshot without a copy".to_owned()))?;
    let (storages, reason) = (&reading.storages, args.reason);
    let report = engine::release(&reading.engine, storages, &listing, &of, what, reason).await?;
    drop(reading);
    Ok(show(printer, &report, "released", "not released"))
}

fn show(printer: &Printer, report: &MarkReport, done: &str, failed: &str) -> Exit {
    if printer.is_json() {
        printer.document(report);
    } else {
        let names: Vec<&str> = report.done.iter().map(Name::as_str).collect();
        let mut text =
            format!("{BOLD}{}/{} {}{BOLD:#}", report.instance, report.strategy, report.id);
        if names.is_empty() {
            text.push('\n');
        } else {
            let _ = writeln!(text, "  {GOOD}{done}{GOOD:#} in {}", names.join(", "));
        }
        for (storage, problem) in &report.failed {
            let _ = writeln!(text, "  {BAD}{failed} in {storage}:{BAD:#} {problem}");
        }
        printer.text(&text);
    }
    match (report.done.is_empty(), report.failed.is_empty()) {
        (_, true) => Exit::Done,
        (false, false) => Exit::Problems,
        (true, false) => Exit::Failed,
    }
}

pub(super) async fn forget(
    setup: &Setup,
    args: ForgetArgs,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let mut work = setup
        .deleting(args.strategy.as_deref(), args.storage.as_deref(), Patience::Unattended)
        .await?;
    let listing = work.list().await;
    let vanished = work.vanished(&listing).await;
    let mut wanted: Vec<(Name, SnapshotId)> = Vec::new();
    for snapshot in &args.snapshots {
        if snapshot == "latest" {
            return Err(
                UsageError("`latest` is not deleted by that name: give its id".to_owned()).into()
            );
        }
        match engine::find(&listing, snapshot, None) {
            Ok(copies) => {
                wanted.extend(copies.into_iter().map(|copy| (copy.strategy, copy.id)));
            }
            Err(error) => {
                let mut meant: Vec<&Vanished> =
                    vanished.iter().filter(|one| one.id.is_meant_by(snapshot)).collect();
                meant.dedup_by_key(|one| (&one.strategy, &one.id));
                let [one] = meant.as_slice() else { return Err(error.into()) };
                wanted.push((one.strategy.clone(), one.id.clone()));
            }
        }
    }
    if args.vanished {
        wanted.extend(vanished.iter().map(|one| (one.strategy.clone(), one.id.clone())));
    }
    wanted.sort();
    wanted.dedup();
    work.end_display();
    let is_there = |one: &&(Name, SnapshotId)| {
        listing.snapshots.iter().any(|there| (&there.strategy, &there.id) == (&one.0, &one.1))
    };
    let there: Vec<&(Name, SnapshotId)> = wanted.iter().filter(is_there).collect();
    if !args.yes && !there.is_empty() {
        let names: Vec<String> =
            there.iter().map(|(strategy, id)| format!("{strategy}/{id}")).collect();
        let count = count(there.len() as u64, "snapshot");
        if !confirmed(&format!("Delete {count} for ever: {}?", names.join(", "))) {
            printer.note("Nothing was deleted.");
            return Ok(Exit::Done);
        }
    }
    let report = engine::forget(&work.engine, work.scope(), &wanted, args.force).await?;
    if printer.is_json() {
        printer.document(&report);
    } else {
        let mut text = report.pruned.iter().map(pruned_text).collect::<String>();
        for Vanished { storage, strategy, id } in &report.acknowledged {
            let _ = writeln!(
                text,
                "{BOLD}{strategy}{BOLD:#} in {BOLD}{storage}{BOLD:#}: {id} is \
                missed no more"
            );
        }
        if text.is_empty() {
            "Nothing has vanished.\n".clone_into(&mut text);
        }
        printer.text(&text);
    }
    Ok(exit(&report.pruned))
}
