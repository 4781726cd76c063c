//! `backup run`, and `backup --strategy NAME`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::Exit;
use super::output::{
    BAD, BOLD, Cell, DIM, GOOD, Printer, Table, WARN, count, findings_text, remarks_text, seconds,
    setting, time,
};
use super::setup::Setup;
use crate::engine::{self, EngineError, RunPlan};
use crate::model::{ByteSize, Cancel, Completeness, Rate};
use crate::report::notify::Notifiers;
use crate::report::{Event, Outcome, RunReport};
use crate::source::Level;

/// How long the end of a run waits for notifiers: for all attempts of one that does not answer.
const SETTLE: Duration = Duration::from_secs(45);
/// The same for a run that was asked to stop: whoever asked kills it soon.
const SETTLE_CANCELLED: Duration = Duration::from_secs(5);
/// How many warnings, and how many notes, are shown; the rest is in the facts.
pub(super) const SHOWN_REMARKS: usize = 10;

/// The arguments of a run, where no command was given.
#[derive(Debug, Args)]
pub(super) struct TopLevel {
    /// Run this strategy now
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Only show what the run would do
    #[arg(long, requires = "strategy")]
    dry_run: bool,
}

impl TopLevel {
    pub(super) fn is_given(&self) -> bool {
        self.strategy.is_some()
    }

    pub(super) fn into_args(self) -> Option<RunArgs> {
        self.strategy.map(|strategy| RunArgs { strategy, dry_run: self.dry_run })
    }
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The strategy to run
    #[arg(long, value_name = "NAME")]
    strategy: String,
    /// Only show what the run would do
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(setup: &Setup, args: RunArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let (instance, strategy) = setup.strategy(&args.strategy)?;
    strategy.check_runnable()?;
    let (mut engine, display) = setup.engine(&instance);
    if args.dry_run {
        let plan = engine::plan(&engine, &instance, &strategy).await;
        drop(display);
        printer.show(&plan, plan_text);
        let fails = plan.findings.iter().any(|finding| finding.level == Level::Error);
        return Ok(if fails { Exit::Failed } else { Exit::Done });
    }
    let notifiers = Notifiers::new(&instance.notify);
    engine.began = Some({
        let (notifiers, clock) = (notifiers.clone(), engine.clock.clone());
        let (instance, strategy) = (instance.name.clone(), strategy.name.clone());
        Arc::new(move || notifiers.tell(&Event::start(&instance, &strategy, clock.now())))
    });
    let ended = engine::run(&engine, &instance, &strategy).await;
    drop(display);
    match &ended {
        Ok(report) => notifiers.tell(&Event::of_run(report)),
        // The one that holds the lock tells its own end.
        Err(EngineError::Locked { .. }) => {}
        Err(error) => {
            let (name, now) = (&strategy.name, engine.clock.now());
            notifiers.tell(&Event::not_run(&instance.name, name, now, engine::chain(error)));
        }
    }
    if let Ok(report) = &ended {
        printer.show(report, report_text);
    }
    settle(&notifiers, &setup.cancel).await;
    let report = ended?;
    Ok(match report.outcome {
        Outcome::Success => Exit::Done,
        Outcome::Problems => Exit::Problems,
        Outcome::Failed | Outcome::Cancelled => Exit::Failed,
    })
}

/// Waits for what is being told. Who asked to stop does not want to wait long.
pub(super) async fn settle(notifiers: &Notifiers, cancel: &Cancel) {
    if cancel.is_cancelled() {
        notifiers.settle(SETTLE_CANCELLED).await;
        return;
    }
    tokio::select! {
        () = notifiers.settle(SETTLE) => {}
        () = cancel.cancelled() => tracing::warn!("not every notifier was told: it was asked to \
            stop"),
    }
}

fn plan_text(plan: &RunPlan) -> String {
    let configuration = &plan.configuration;
    let mut text = format!("{BOLD}{}/{}{BOLD:#}  would be run\n", plan.instance, plan.strategy);
    for (table, what) in [("sources", "source"), ("storages", "storage")] {
        let parts = configuration.get(table).and_then(serde_json::Value::as_object);
        for (name, part) in parts.into_iter().flatten() {
            let kind = part.get("type").and_then(serde_json::Value::as_str).unwrap_or_default();
            let _ = writeln!(text, "  {what} {BOLD}{name}{BOLD:#}  {kind}");
            text.push_str(&settings_text(part, 4));
        }
    }
    if let Some(own) = configuration
        .get("strategies")
        .and_then(|strategies| strategies.get(plan.strategy.as_str()))
    {
        let _ = writeln!(text, "  strategy {BOLD}{}{BOLD:#}", plan.strategy);
        text.push_str(&settings_text(own, 4));
    }
    let _ = writeln!(text, "  general");
    text.push_str(&settings_text(configuration, 4));
    if let (Some(plain), Some(stored), Some(started)) =
        (plan.last_plain_bytes, plan.last_stored_bytes, plan.last_started)
    {
        let (plain, stored) = (ByteSize(plain), ByteSize(stored));
        let _ =
            writeln!(text, "The last run, of {}, read {plain} and stored {stored}.", time(started));
    }
    text.push_str(&findings_text(&plan.findings));
    text.push_str("Nothing was done.\n");
    text
}

/// The settings of one part of a configuration, one a line: not its type and name, which head it,
/// nor other parts, nor what is no part of a run.
pub(super) fn settings_text(part: &serde_json::Value, indent: usize) -> String {
    let heads = ["type", "instance", "sources", "storages", "strategies", "drill"];
    let mut text = String::new();
    for (key, value) in
        part.as_object().into_iter().flatten().filter(|(key, _)| !heads.contains(&key.as_str()))
    {
        let _ = writeln!(text, "{:indent$}{DIM}{}{DIM:#}", "", setting(key, value));
    }
    text
}

pub(super) fn report_text(report: &RunReport) -> String {
    let (style, words) = match report.outcome {
        Outcome::Success => (GOOD, "committed"),
        Outcome::Problems => (WARN, "committed, with problems"),
        Outcome::Failed => (BAD, "failed, nothing was committed"),
        Outcome::Cancelled => (BAD, "cancelled, nothing was committed"),
    };
    let mut text = format!(
        "{BOLD}{}/{} {}{BOLD:#}  {style}{words}{style:#}{}{}\n",
        report.instance,
        report.strategy,
        report.id,
        if report.suspect { ", suspect: much less than before" } else { "" },
        if report.completeness == Some(Completeness::Partial) {
            ", partial: content is missing"
        } else {
            ""
        },
    );
    if !report.sources.is_empty() {
        let mut table = Table::new(&["SOURCE", "TYPE", ">READ", ">STORED", ">TIME"]).indented(2);
        for source in &report.sources {
            table.row(vec![
                source.name.as_str().into(),
                source.kind.as_str().into(),
                ByteSize(source.plain_bytes).to_string().into(),
                ByteSize(source.stored_bytes).to_string().into(),
                seconds(source.seconds).into(),
            ]);
        }
        text.push_str(&table.render());
    }
    let mut table = Table::new(&["STORAGE", "PLACE", "STATE"]).indented(2);
    for storage in &report.storages {
        let state = match (storage.committed, &storage.error) {
            (true, None) => Cell::styled("committed", GOOD),
            (_, Some(_)) => Cell::styled("failed", BAD),
            (false, None) => Cell::styled("nothing committed", DIM),
        };
        table.row(vec![storage.name.as_str().into(), storage.address.as_str().into(), state]);
    }
    if !table.is_empty() {
        text.push_str(&table.render());
    }
    for storage in &report.storages {
        if let Some(error) = &storage.error {
            let _ = writeln!(text, "  {BAD}{}:{BAD:#} {error}", storage.name);
        }
        for warning in &storage.warnings {
            let _ = writeln!(text, "  {WARN}{}:{WARN:#} {warning}", storage.name);
        }
        for note in &storage.notes {
            let _ = writeln!(text, "  {DIM}{}: note: {note}{DIM:#}", storage.name);
        }
        if let Some(pruned) = &storage.pruned {
            if !pruned.deleted.is_empty() {
                let deleted = count(pruned.deleted.len() as u64, "snapshot");
                let freed = ByteSize(pruned.freed_bytes);
                let _ = writeln!(
                    text,
                    "  {DIM}{}: {deleted} pruned, {freed} freed{DIM:#}",
                    storage.name
                );
            }
            if let Some(problem) = &pruned.problem {
                let _ = writeln!(text, "  {WARN}{}: not pruned:{WARN:#} {problem}", storage.name);
            }
        }
    }
    let more = format!("; `backup show {}` has them", report.id);
    text.push_str(&remarks_text(&report.remarks, SHOWN_REMARKS, &more));
    if let Some(error) = &report.error {
        let _ = writeln!(text, "  {BAD}error:{BAD:#} {error}");
    }
    if report.completeness.is_some() {
        let rate =
            if report.seconds > 0.0 { report.plain_bytes as f64 / report.seconds } else { 0.0 };
        let rate =
            format!("{}/s", ByteSize(rate as u64)).parse::<Rate>().map(|rate| rate.to_string());
        let _ = writeln!(
            text,
            "  {DIM}{} read, {} stored, in {}{}{DIM:#}",
            ByteSize(report.plain_bytes),
            ByteSize(report.stored_bytes),
            seconds(report.seconds),
            rate.map(|rate| format!(" ({rate})")).unwrap_or_default(),
        );
    } else {
        let _ = writeln!(text, "  {DIM}after {}{DIM:#}", seconds(report.seconds));
    }
    text
}
