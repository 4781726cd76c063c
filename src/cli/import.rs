//! `backup import`.

use std::path::PathBuf;

use clap::Args;

use super::Exit;
use super::output::{BOLD, DIM, GOOD, Printer};
use super::setup::{IdentityArgs, Setup, open_storage};
use crate::engine::{self, ImportReport, ImportRequest};
use crate::model::ByteSize;

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// The file that `export` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The storage that shall have it: a name of the configuration, or, with no configuration at
    /// all, a path or s3://bucket/prefix
    #[arg(long, value_name = "STORAGE")]
    storage: String,
    #[command(flatten)]
    identities: IdentityArgs,
}

pub(super) async fn run(
    setup: &Setup,
    args: ImportArgs,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let identities = args.identities.load()?;
    let (instance, engine, display) = setup.between(&[&args.storage], None)?;
    let to = open_storage(&args.storage, instance.as_ref(), &engine.cancel).await?;
    let request = ImportRequest {
        file: args.file,
        identities,
        instance: setup.instance_name(instance.as_ref())?,
        upload_rate: instance.as_ref().and_then(|instance| instance.upload_rate),
    };
    let report = engine::import(&engine, &to, &request).await?;
    drop(display);
    printer.show(&report, text);
    Ok(Exit::Done)
}

fn text(report: &ImportReport) -> String {
    let state = if report.present { "was there already, the same" } else { "imported" };
    format!(
        "{BOLD}{}/{} {}{BOLD:#}  {GOOD}{state}{GOOD:#}\n  {DIM}{} in `{}`{DIM:#}\n",
        report.instance,
        report.strategy,
        report.id,
        ByteSize(report.stored_bytes),
        report.address,
    )
}
