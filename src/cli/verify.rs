//! `backup verify`.

use std::fmt::Write as _;

use clap::Args;

use super::Exit;
use super::output::{BAD, Cell, DIM, GOOD, Printer, Table, count};
use super::setup::{IdentityArgs, Setup, StorageArgs};
use crate::engine::{self, Listing, ReadData, Vanished, VerifyReport};
use crate::model::ByteSize;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Of this strategy only
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// This snapshot only: an id, the beginning or end of one, or `latest`
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Read every stored byte and hold it against its digest; with an identity, or where nothing is
    /// encrypted, decode it too
    #[arg(long)]
    read_data: bool,
    /// Read so many percent of the stored bytes, whole snapshots that are chosen by lot
    #[arg(long, value_name = "PERCENT", conflicts_with = "read_data", value_parser =
        clap::value_parser!(u8).range(1..=100))]
    read_data_percent: Option<u8>,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    identities: IdentityArgs,
}

pub(super) async fn run(
    setup: &Setup,
    args: VerifyArgs,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let identities = args.identities.load()?;
    let is_some = args.snapshot.is_some() || args.storage.storage.is_some();
    let reading = setup.reading(&args.storage, args.strategy.as_deref()).await?;
    let mut listing = reading.list().await;
    if let Some(wanted) = &args.snapshot {
        let snapshots = engine::find(&listing, wanted, None)?;
        listing = Listing { snapshots, ..listing };
    }
    let read_data = match (args.read_data, args.read_data_percent) {
        (true, _) => ReadData::All,
        (false, Some(percent)) => ReadData::Percent(percent),
        (false, None) => ReadData::None,
    };
    let started = reading.engine.clock.now_seconds();
    let mut report =
        engine::verify(&reading.engine, &reading.storages, &listing, read_data, &identities)
            .await?;
    if args.snapshot.is_none() {
        report.vanished = reading.vanished(&listing).await;
    }
    let is_all = read_data == ReadData::All && !is_some;
    if let Some(instance) = reading.instance.as_ref().filter(|_| is_all) {
        engine::record_verification(&reading.engine, instance, started, &report).await;
    }
    drop(reading);
    printer.show(&report, report_text);
    Ok(match (report.is_damaged(), report.is_complete()) {
        (true, _) => Exit::Damaged,
        (false, false) => Exit::Failed,
        (false, true) => Exit::Done,
    })
}

fn report_text(report: &VerifyReport) -> String {
    let mut table = Table::new(&["STORAGE", "INSTANCE", "STRATEGY", "ID", ">SIZE", "STATE"]);
    for verdict in &report.snapshots {
        let state = match (verdict.problems.is_empty(), verdict.read, verdict.decoded) {
            (false, ..) => Cell::styled("damaged", BAD),
            _ if !verdict.unread.is_empty() => Cell::styled("not known", BAD),
            (true, false, _) => Cell::styled("sizes match", GOOD),
            (true, true, false) => Cell::styled("digests match", GOOD),
            (true, true, true) => Cell::styled("decoded", GOOD),
        };
        table.row(vec![
            verdict.storage.as_str().into(),
            verdict.instance.as_str().into(),
            verdict.strategy.as_str().into(),
            verdict.id.as_str().into(),
            ByteSize(verdict.stored_bytes).to_string().into(),
            state,
        ]);
    }
    let is_empty = table.is_empty() && report.unlisted.is_empty() && report.vanished.is_empty();
    let mut text = if is_empty { "No snapshots.\n".to_owned() } else { String::new() };
    if !table.is_empty() {
        text = table.render();
    }
    for Vanished { storage, strategy, id } in &report.vanished {
        let _ = writeln!(
            text,
            "{BAD}{strategy}/{id} has vanished from {storage}:{BAD:#} the rules would keep it. \
             Look whether the storage is mounted and who can delete there; when it was meant, \
             `backup forget {id}`"
        );
    }
    for verdict in &report.snapshots {
        for problem in &verdict.problems {
            let _ = writeln!(text, "{BAD}{} in {}:{BAD:#} {problem}", verdict.id, verdict.storage);
        }
        for unread in &verdict.unread {
            let _ = writeln!(
                text,
                "{BAD}{} in {}, not looked at:{BAD:#} {unread}",
                verdict.id, verdict.storage
            );
        }
    }
    for (storage, error) in &report.unlisted {
        let _ = writeln!(text, "{BAD}{storage} could not be listed:{BAD:#} {error}");
    }
    for (storage, problem) in &report.unexpected {
        let _ = writeln!(text, "{BAD}unexpected in {storage}:{BAD:#} {problem}");
    }
    let damaged =
        report.snapshots.iter().filter(|verdict| !verdict.problems.is_empty()).count() as u64;
    if damaged > 0 {
        let _ = writeln!(text, "{BAD}{} damaged{BAD:#}", count(damaged, "snapshot"));
    } else if report.is_complete()
        && let Some(looked) = what_was_looked_at(report)
    {
        let _ = writeln!(text, "{DIM}{looked}{DIM:#}");
    }
    text
}

fn what_was_looked_at(report: &VerifyReport) -> Option<String> {
    let sound = || report.snapshots.iter().filter(|verdict| verdict.problems.is_empty());
    let (all, read) = (sound().count(), sound().filter(|verdict| verdict.read).count());
    let decoded = sound().all(|verdict| verdict.decoded);
    Some(match (read, decoded) {
        _ if all == 0 => return None,
        (0, _) => {
            "Manifests, presence and sizes were checked; `--read-data` reads every byte.".to_owned()
        }
        (some, _) if some < all => {
            format!(
                "Every byte of {some} of {all} was read; of the others manifests, presence and \
                sizes were checked."
            )
        }
        (_, true) => {
            "Every byte was read, decoded, and held against the digests of what was stored and \
             what was backed up."
                .to_owned()
        }
        (_, false) => {
            "Every stored byte was read and held against its digest; with `--identity-file`, what \
             is encrypted is decoded too."
                .to_owned()
        }
    })
}
