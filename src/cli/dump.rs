//! `backup dump`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;

use anyhow::Context as _;
use clap::Args;

use super::output::{Printer, missing_lines};
use super::setup::{IdentityArgs, Setup, StorageArgs};
use super::{Exit, UsageError};
use crate::engine::{self, DumpRequest, EngineError};
use crate::model::ByteSize;

#[derive(Debug, Args)]
pub(super) struct DumpArgs {
    /// An id, the beginning or end of one, or `latest`
    snapshot: String,
    /// A source, for its dump, tarball or stream; or an artifact as `show` names it:
    /// `db.globals.sql`, `files.index`, `facts.json`
    source: String,
    /// Of a folder of files, one file as it was, or one folder as a tarball. It is counted from the
    /// folder that was backed up; only the parts of the snapshot that it lies in are fetched
    path: Option<OsString>,
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Write to a terminal too
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    identities: IdentityArgs,
}

pub(super) async fn run(setup: &Setup, args: DumpArgs, printer: &Printer) -> anyhow::Result<Exit> {
    if printer.is_json() {
        return Err(UsageError(
            "`dump` writes bytes as they were, so there is no `--json` of it".to_owned(),
        )
        .into());
    }
    let stdout = std::io::stdout();
    if stdout.is_terminal() && !args.force {
        return Err(UsageError(
            "Binary data does not belong on a terminal: send stdout to a file or a pipe, or pass \
             `--force`"
                .to_owned(),
        )
        .into());
    }
    // Written to as it comes: the standard handle would look for the ends of lines.
    let out = File::from(stdout.as_fd().try_clone_to_owned().context("Could not use stdout")?);
    let identities = args.identities.load()?;
    let reading = setup.reading(&args.storage, args.strategy.as_deref()).await?;
    let listing = reading.list().await;
    let (side, _) = reading.choose(&listing, &args.snapshot, None)?;
    let request =
        DumpRequest { what: args.source, path: args.path.map(OsString::into_vec), identities };
    let dumped = engine::dump(&reading.engine, &side, &request, Box::new(out)).await;
    drop(reading);
    match dumped {
        Ok(report) => {
            if !setup.global.quiet {
                let (bytes, fetched) = (ByteSize(report.bytes), ByteSize(report.fetched_bytes));
                printer.note(&format!(
                    "{} of {}: {bytes} written, {fetched} fetched",
                    report.artifact, side.snapshot.id
                ));
            }
            for line in missing_lines(&report.missing) {
                printer.note(&line);
            }
            Ok(if report.missing.is_empty() { Exit::Done } else { Exit::Problems })
        }
        // Who reads has enough, as with `| head`.
        Err(EngineError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => {
            Ok(Exit::Failed)
        }
        Err(error @ EngineError::Damaged { .. }) => {
            Err(anyhow::Error::from(error)
                .context("What was written is incomplete and not to be used"))
        }
        Err(error) => Err(error.into()),
    }
}
