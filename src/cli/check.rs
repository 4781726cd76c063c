//! `backup check`.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use super::Exit;
use super::output::{
    BAD, BOLD, DIM, GOOD, Printer, WARN, count, findings_text, local_time, setting,
};
use super::run::settings_text;
use super::setup::{IdentityArgs, Setup, chosen};
use crate::config::Instance;
use crate::engine::{self, CheckReport, StrategyCheck};
use crate::model::{Name, Span};
use crate::source::Level;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    identities: IdentityArgs,
}

#[derive(Serialize)]
struct Document {
    instances: Vec<CheckReport>,
}

pub(super) async fn run(setup: &Setup, args: CheckArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let settings = setup.settings()?;
    let identities = args.identities.load()?;
    let mut reports = Vec::new();
    let chosen = chosen(&settings, setup.global.instance.as_deref())?;
    for instance in &chosen {
        let (engine, display) = setup.engine(instance);
        reports.push(engine::check(&engine, instance, &identities).await);
        drop(display);
    }
    if let Some(first) = reports.first_mut() {
        // Of the scheduler, which looks after all of them.
        first.findings.extend(engine::check_listen(&settings.daemon));
    }
    let worst = reports.iter().map(CheckReport::worst).max().unwrap_or(Level::Ok);
    if printer.is_json() {
        printer.document(&Document { instances: reports });
    } else {
        let texts: Vec<String> = reports
            .iter()
            .zip(chosen)
            .map(|(report, instance)| report_text(report, instance))
            .collect();
        printer.text(&texts.join("\n"));
    }
    Ok(if worst == Level::Error { Exit::Failed } else { Exit::Done })
}

fn report_text(report: &CheckReport, instance: &Instance) -> String {
    let mut text = format!("{BOLD}{}{BOLD:#}  {DIM}{}{DIM:#}\n", report.instance, report.file);
    for strategy in &report.strategies {
        let _ = writeln!(text, "\nstrategy {BOLD}{}{BOLD:#}", strategy.name);
        text.push_str(&strategy_text(strategy, instance));
    }
    // What no strategy uses is looked at too, but its settings are resolved with those of a
    // strategy.
    let part = |table: &str, name: &Name| {
        report
            .strategies
            .iter()
            .find_map(|strategy| strategy.configuration.get(table)?.get(name.as_str()))
    };
    let settings = |table: &str, name: &Name| {
        part(table, name).map_or_else(
            || "  not used by any strategy\n".to_owned(),
            |part| settings_text(part, 2),
        )
    };
    for source in &report.sources {
        let _ = writeln!(text, "\nsource {BOLD}{}{BOLD:#}  {}", source.name, source.kind);
        text.push_str(&settings("sources", &source.name));
        text.push_str(&findings_text(&source.findings));
    }
    for storage in &report.storages {
        let _ = writeln!(text, "\nstorage {BOLD}{}{BOLD:#}  {}", storage.name, storage.address);
        text.push_str(&settings("storages", &storage.name));
        text.push_str(&findings_text(&storage.findings));
    }
    let _ = writeln!(text, "\ngeneral");
    if let Some(strategy) = report.strategies.first() {
        text.push_str(&settings_text(&strategy.configuration, 2));
    }
    text.push_str(&findings_text(&report.findings));
    let all = report.all();
    let number = |level| all.iter().filter(|finding| finding.level == level).count() as u64;
    let (errors, warnings) = (number(Level::Error), number(Level::Warning));
    let style = match report.worst() {
        Level::Ok | Level::Note => GOOD,
        Level::Warning => WARN,
        Level::Error => BAD,
    };
    let _ = writeln!(
        text,
        "\n{style}{}, {}{style:#}",
        count(errors, "error"),
        count(warnings, "warning")
    );
    text
}

fn strategy_text(strategy: &StrategyCheck, instance: &Instance) -> String {
    let settings =
        strategy.configuration.get("strategies").and_then(|all| all.get(strategy.name.as_str()));
    let settings = settings.and_then(serde_json::Value::as_object);
    let width = settings.into_iter().flatten().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {DIM}{name:width$}{DIM:#}  {value}");
    };
    let known = instance.strategies.get(&strategy.name);
    let when = match (&strategy.schedule, strategy.active) {
        _ if known.is_some_and(|known| known.sources.is_empty()) => "prune only: no sources here",
        (_, false) => "not active",
        (None, true) => "run by hand only",
        (Some(schedule), true) => schedule,
    };
    line("schedule", when);
    if let Some(known) = known {
        for (number, next) in strategy.next.iter().enumerate() {
            line(if number == 0 { "next" } else { "" }, &local_time(*next, &known.timezone));
        }
    }
    let heads = ["active", "schedule", "timezone", "drill"];
    for (key, value) in settings.into_iter().flatten() {
        if heads.contains(&key.as_str()) {
            continue;
        }
        // The outermost brackets of a list or table are noise here.
        let setting = setting(key, value);
        let shown = setting.split_once(" = ").map_or(setting.as_str(), |(_, value)| value);
        match value {
            serde_json::Value::Array(_) => {
                line(key, &shown.trim_matches(['[', ']']).replace('"', ""));
            }
            serde_json::Value::Object(_) => line(key, shown.trim_matches(['{', '}', ' '])),
            _ => line(key, &shown.replace('"', "")),
        }
    }
    if let Some(known) = known.filter(|known| known.drill.is_configured()) {
        let drill = &known.drill;
        let when =
            drill.schedule.as_ref().map_or_else(|| "by hand only".to_owned(), ToString::to_string);
        line("drill", &when);
        if let Some(next) = strategy.next_drill.filter(|_| known.active) {
            line("", &format!("next {}", local_time(next, &known.timezone)));
        }
        let objective = |name: &str, span: Option<Span>| {
            span.map(|span| format!(", {name} {span}")).unwrap_or_default()
        };
        let own = count(drill.checks.len() as u64, "check");
        let objectives = format!("{}{}", objective("rto", drill.rto), objective("rpo", drill.rpo));
        line("", &format!("reads {}, {own} of its own{objectives}", drill.storage));
    }
    text.push_str(&findings_text(&strategy.findings));
    text
}
