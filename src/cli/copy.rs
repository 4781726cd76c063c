//! `backup copy`.

use std::fmt::Write as _;

use clap::Args;

use super::output::{BAD, Cell, DIM, GOOD, Printer, Table, WARN, count};
use super::setup::{Setup, open_storage, parse_name};
use super::{Exit, UsageError};
use crate::engine::{self, CopyReport, CopyRequest, CopyState, Selection};
use crate::model::{ByteSize, total};

#[derive(Debug, Args)]
pub(super) struct CopyArgs {
    /// The storage that has the snapshots: a name of the configuration, or a path or
    /// s3://bucket/prefix. It may be read-only
    #[arg(long, value_name = "STORAGE")]
    from: String,
    /// The storage that shall have them, given in the same way
    #[arg(long, value_name = "STORAGE")]
    to: String,
    /// Of this strategy only
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// This snapshot only: an id, the beginning or end of one, or `latest`
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    /// Only show what would be copied
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(setup: &Setup, args: CopyArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let strategy = args.strategy.as_deref();
    // Between two addresses no configuration is needed.
    let (instance, engine, display) = setup.between(&[&args.from, &args.to], strategy)?;
    let selection = Selection {
        instance: setup.instance_name(instance.as_ref())?,
        strategy: strategy.map(parse_name).transpose()?,
    };
    if selection.strategy.is_some() && selection.instance.is_none() {
        return Err(UsageError(
            "`--strategy` between two addresses needs `--instance` too".to_owned(),
        )
        .into());
    }
    let from = open_storage(&args.from, instance.as_ref(), &engine.cancel).await?;
    let to = open_storage(&args.to, instance.as_ref(), &engine.cancel).await?;
    let request = CopyRequest {
        selection,
        snapshot: args.snapshot,
        upload_rate: instance.as_ref().and_then(|instance| instance.upload_rate),
        dry_run: args.dry_run,
    };
    let report = engine::copy(&engine, &from, &to, &request).await?;
    drop(display);
    printer.show(&report, report_text);
    Ok(exit(&report))
}

fn exit(report: &CopyReport) -> Exit {
    let any = |state| report.count(state) > 0;
    let well = |state| matches!(state, CopyState::Copied | CopyState::Present | CopyState::Planned);
    if any(CopyState::Damaged) {
        Exit::Damaged
    } else if report.error.is_none() && report.snapshots.iter().all(|one| well(one.state)) {
        Exit::Done
    } else if any(CopyState::Copied) {
        Exit::Problems
    } else if any(CopyState::Locked) {
        Exit::Locked
    } else if report.error.is_none() && !any(CopyState::Failed) && !any(CopyState::Differs) {
        // All that could be copied is there.
        Exit::Problems
    } else {
        Exit::Failed
    }
}

fn report_text(report: &CopyReport) -> String {
    let mut table = Table::new(&["INSTANCE", "STRATEGY", "ID", ">SIZE", "STATE"]);
    for one in &report.snapshots {
        let state = match one.state {
            CopyState::Copied => Cell::styled("copied", GOOD),
            CopyState::Planned => Cell::styled("would be copied", GOOD),
            CopyState::Present => Cell::styled("there already", DIM),
            CopyState::Differs => Cell::styled("there, but not the same", BAD),
            CopyState::Unreadable => Cell::styled("manifest unreadable", BAD),
            CopyState::Damaged => Cell::styled("damaged, not copied", BAD),
            CopyState::Locked => Cell::styled("locked, not copied", WARN),
            CopyState::Failed => Cell::styled("not copied", BAD),
        };
        table.row(vec![
            one.instance.as_str().into(),
            one.strategy.as_str().into(),
            one.id.as_str().into(),
            one.stored_bytes.map(|bytes| ByteSize(bytes).to_string()).unwrap_or_default().into(),
            state,
        ]);
    }
    let mut text = if table.is_empty() {
        format!("`{}` has no such snapshots.\n", report.from_address)
    } else {
        table.render()
    };
    for one in &report.snapshots {
        if let Some(error) = &one.error {
            let _ = writeln!(text, "{BAD}{}:{BAD:#} {error}", one.id);
        }
    }
    if let Some(error) = &report.error {
        let _ = writeln!(text, "{BAD}It ended early:{BAD:#} {error}");
    }
    let (from, to) = (&report.from_address, &report.to_address);
    if report.dry_run {
        let planned = count(report.count(CopyState::Planned) as u64, "snapshot");
        let _ = writeln!(
            text,
            "{DIM}{planned} would be copied from `{from}` to `{to}`. Nothing was done.{DIM:#}"
        );
    } else if !report.snapshots.is_empty() {
        let copied = count(report.count(CopyState::Copied) as u64, "snapshot");
        let taken_up = total(report.snapshots.iter().map(|one| one.taken_up_bytes));
        let taken_up = if taken_up > 0 {
            format!(
                "; {} of that were there from a copy that was broken off, and were read back",
                ByteSize(taken_up)
            )
        } else {
            String::new()
        };
        let _ = writeln!(text, "{DIM}{copied} copied from `{from}` to `{to}`{taken_up}.{DIM:#}");
    }
    text
}
