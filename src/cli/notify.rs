//! `backup notify`.

use clap::{Args, Subcommand};
use futures::future::join_all;
use serde::Serialize;

use super::output::{BAD, Cell, GOOD, Printer, Table, seconds};
use super::setup::{Setup, chosen, clock};
use super::{Exit, UsageError};
use crate::config::{FindError, Instance, Settings};
use crate::engine::EngineError;
use crate::model::{ErrorCode, Name};
use crate::report::notify::{Notify, NotifyError};

#[derive(Debug, Subcommand)]
pub(super) enum NotifyCommand {
    #[command(after_help = "\
Examples:
  backup notify test
  backup notify test chat")]
    /// Send a test message to every notifier, or to the named one, and show whether it was taken
    ///
    /// A `ping` is told a failure, so that the alarm is seen to come; the next run that succeeds
    /// ends it.
    Test(TestArgs),
}

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// The notifier; all, unless one is named
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

#[derive(Serialize)]
struct Document {
    notifiers: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    instance: Name,
    name: Name,
    #[serde(rename = "type")]
    kind: &'static str,
    /// Whether the other side took the message.
    ok: bool,
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<ErrorCode>,
    seconds: f64,
}

pub(super) async fn run(
    setup: &Setup,
    command: NotifyCommand,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let NotifyCommand::Test(args) = command;
    let settings = setup.settings()?;
    let chosen = choose(&settings, setup.global.instance.as_deref(), args.name.as_deref())?;
    let tests =
        join_all(chosen.into_iter().map(|(instance, name, notify)| test(instance, name, notify)));
    let rows = tokio::select! {
        rows = tests => rows,
        () = setup.cancel.cancelled() => {
            let told = "Cancelled: not every notifier was told";
            return Err(anyhow::Error::from(EngineError::Cancelled).context(told));
        },
    };
    let all_well = rows.iter().all(|row| row.ok);
    printer.show(&Document { notifiers: rows }, |document| rows_text(&document.notifiers));
    Ok(if all_well { Exit::Done } else { Exit::Failed })
}

/// The notifiers that are meant; at least one.
fn choose<'a>(
    settings: &'a Settings,
    instance: Option<&str>,
    name: Option<&str>,
) -> anyhow::Result<Vec<(&'a Instance, &'a Name, &'a Notify)>> {
    let all: Vec<_> = chosen(settings, instance)?
        .into_iter()
        .flat_map(|instance| {
            instance.notify.iter().map(move |(name, notify)| (instance, name, notify))
        })
        .collect();
    if all.is_empty() {
        return Err(UsageError(
            "No notifier is configured: there is no `[notify.NAME]`".to_owned(),
        )
        .into());
    }
    let Some(wanted) = name else { return Ok(all) };
    let known = all.iter().map(|(_, name, _)| name.to_string()).collect();
    let found: Vec<_> = all.into_iter().filter(|(_, name, _)| name.as_str() == wanted).collect();
    if found.is_empty() {
        return Err(FindError::Unknown { what: "notifier", name: wanted.to_owned(), known }.into());
    }
    Ok(found)
}

async fn test(instance: &Instance, name: &Name, notify: &Notify) -> Row {
    let began = tokio::time::Instant::now();
    let error = notify.test(name, &instance.name, clock().now()).await.err();
    Row {
        instance: instance.name.clone(),
        name: name.clone(),
        kind: notify.config.kind(),
        ok: error.is_none(),
        code: error.as_ref().map(NotifyError::code),
        error: error.map(|error| error.to_string()),
        seconds: began.elapsed().as_secs_f64(),
    }
}

fn rows_text(rows: &[Row]) -> String {
    let mut table = Table::new(&["INSTANCE", "NAME", "TYPE", ">TIME", "RESULT"]);
    for row in rows {
        table.row(vec![
            row.instance.as_str().into(),
            row.name.as_str().into(),
            row.kind.into(),
            seconds(row.seconds).into(),
            match &row.error {
                None => Cell::styled("taken", GOOD),
                Some(error) => Cell::styled(error.as_str(), BAD),
            },
        ]);
    }
    table.render()
}
