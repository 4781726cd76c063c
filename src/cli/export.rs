//! `backup export`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::output::{BOLD, DIM, GOOD, Printer, WARN, count};
use super::run::report_text;
use super::setup::{Setup, StorageArgs};
use super::{Exit, UsageError};
use crate::engine::{self, ExportReport, ExportRequest};
use crate::model::{ByteSize, Completeness, Remarks};
use crate::pipeline::Recipient;
use crate::report::{Outcome, RunReport};

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The strategy whose sources are backed up into the file
    #[arg(long, value_name = "NAME")]
    strategy: String,
    /// The file: `NAME.tar`, or `NAME.tar.age` to encrypt it as a whole to the configured
    /// recipients
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Instead of a fresh snapshot, one that a storage has: an id, the beginning or end of one, or
    /// `latest`
    #[arg(long, value_name = "ID")]
    snapshot: Option<String>,
    #[command(flatten)]
    storage: StorageArgs,
    /// Replace the file when it exists
    #[arg(long)]
    overwrite: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    export: Option<&'a ExportReport>,
    /// Of a fresh snapshot.
    run: Option<&'a RunReport>,
}

pub(super) async fn run(
    setup: &Setup,
    args: ExportArgs,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let name = args.output.to_string_lossy();
    let sealed = name.ends_with(".tar.age");
    if !sealed && !name.ends_with(".tar") {
        return Err(UsageError(format!("`{name}` ends neither in `.tar` nor in `.tar.age`")).into());
    }
    if args.snapshot.is_none() && args.storage.storage.is_some() {
        return Err(UsageError(
            "`--storage` goes with `--snapshot` only: a fresh snapshot is in no storage".to_owned(),
        )
        .into());
    }
    let request = |recipients: Option<Vec<Recipient>>| -> anyhow::Result<ExportRequest> {
        let recipients = if sealed { recipients.unwrap_or_default() } else { Vec::new() };
        if sealed && recipients.is_empty() {
            let problem = "There is nobody to encrypt the file to: set `recipients` in \
                `[encryption]`, or write a `.tar`";
            return Err(UsageError(problem.to_owned()).into());
        }
        Ok(ExportRequest { output: args.output.clone(), overwrite: args.overwrite, recipients })
    };
    let (exported, run) = if let Some(wanted) = &args.snapshot {
        let reading = setup.reading(&args.storage, Some(&args.strategy)).await?;
        let encryption = reading.instance.as_ref().and_then(|instance| instance.encryption.clone());
        let request = request(encryption.map(|encryption| encryption.recipients))?;
        let listing = reading.list().await;
        let side = reading.readable(&listing, wanted)?;
        (Some(engine::export(&reading.engine, &side, &request).await?), None)
    } else {
        let (instance, strategy) = setup.strategy(&args.strategy)?;
        strategy.check_runnable()?;
        let request =
            request(instance.encryption.as_ref().map(|encryption| encryption.recipients.clone()))?;
        let (engine, _display) = setup.engine(&instance);
        let (run, exported) = engine::export_fresh(&engine, &instance, &strategy, &request).await?;
        (exported, Some(run))
    };
    if printer.is_json() {
        printer.document(&Document { export: exported.as_ref(), run: run.as_ref() });
    } else {
        match (&exported, &run) {
            (Some(exported), _) => printer.text(&text(exported, run.as_ref())),
            (None, Some(run)) => printer.text(&report_text(run)),
            (None, None) => {}
        }
    }
    let problems = run.as_ref().is_some_and(|run| run.outcome != Outcome::Success);
    Ok(match exported {
        None => Exit::Failed,
        Some(_) if problems => Exit::Problems,
        Some(_) => Exit::Done,
    })
}

fn text(exported: &ExportReport, run: Option<&RunReport>) -> String {
    let partial = if exported.completeness == Completeness::Partial {
        ", partial: content is missing"
    } else {
        ""
    };
    let mut text = format!(
        "{BOLD}{}/{} {}{BOLD:#}  {GOOD}exported{GOOD:#}{partial}\n  {DIM}{} in `{}`{DIM:#}\n",
        exported.instance,
        exported.strategy,
        exported.id,
        ByteSize(exported.bytes),
        exported.output.display(),
    );
    if let Some(Remarks { warnings, notes }) = run.map(|run| &run.remarks) {
        for (style, number, noun) in
            [(WARN, warnings.count(), "warning"), (DIM, notes.count(), "note")]
        {
            if number > 0 {
                let counted = count(number, noun);
                text.push_str(&format!("  {style}{counted}{style:#}; the facts in it have them\n"));
            }
        }
    }
    if !exported.sealed && !exported.encrypted {
        text.push_str(&format!(
            "  {WARN}It is not encrypted:{WARN:#} whoever has the file can read it\n"
        ));
    }
    text
}
