//! `backup import`.

use std::path::PathBuf;

use clap::Args;

use super::Exit;
use super::output::{BOLD, DIM, GOOD, Printer};
use super::setup::{IdentityArgs, Setup, is_address, open_storage, parse_name, pick_instance};
use crate::config;
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
    let wanted = setup.global.instance.as_deref();
    let instance = if is_address(&args.storage) {
        None
    } else {
        Some(pick_instance(&setup.settings()?, wanted)?.clone())
    };
    let state_dir = match &instance {
        Some(instance) => instance.state_dir.clone(),
        None => config::default_state_dir(&setup.environment),
    };
    let (engine, display) = setup.engine(&state_dir);
    let to = open_storage(&args.storage, instance.as_ref(), &engine.cancel).await?;
    let request = ImportRequest {
        file: args.file,
        identities,
        instance: match &instance {
            Some(instance) => Some(instance.name.clone()),
            None => wanted.map(parse_name).transpose()?,
        },
        upload_rate: instance.as_ref().and_then(|instance| instance.upload_rate),
    };
    let report = engine::import(&engine, &to, &request).await?;
    drop(display);
    if printer.is_json() {
        printer.document(&report);
    } else {
        printer.text(&text(&report));
    }
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
