//! `backup prune`.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::output::{BAD, BOLD, Cell, DIM, GOOD, Printer, Table, WARN, age, count};
use super::setup::{Setup, confirmed};
use super::{Exit, UsageError};
use crate::engine::{self, PlacePlan, PrunePlan, PruneReport};
use crate::model::{ByteSize, Completeness};
use crate::report::Pruned;
use crate::storage::Patience;

/// So many hex digits of a plan's digest are shown; they are enough to name it.
const SHOWN_DIGEST: usize = 12;
const SHORTEST_DIGEST: usize = 8;

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Of this strategy only
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// In this storage only
    #[arg(long, value_name = "NAME")]
    storage: Option<String>,
    /// Only show what would be kept and deleted, with the reasons
    #[arg(long, conflicts_with_all = ["apply", "yes"])]
    plan: bool,
    /// Carry out the plan with this digest, and none other
    #[arg(long, value_name = "DIGEST")]
    apply: Option<String>,
    /// Delete more than `max_delete_percent`, or although snapshots are gone that nobody is known
    /// to have deleted
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Serialize)]
struct PlanDocument<'a> {
    plan: &'a PrunePlan,
    delete: usize,
    freed_bytes: u64,
}

pub(super) async fn run(setup: &Setup, args: PruneArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let expected = args.apply.as_deref().map(parse_digest).transpose()?;
    let patience = if args.plan { Patience::Watched } else { Patience::Unattended };
    let mut work =
        setup.deleting(args.strategy.as_deref(), args.storage.as_deref(), patience).await?;
    let expected = match expected {
        Some(expected) => Some(expected),
        None if args.yes => None,
        None => {
            let plan = engine::plan_prune(&work.engine, work.scope()).await;
            work.end_display();
            let digest = plan.digest.hex();
            if printer.is_json() && args.plan {
                let (delete, freed_bytes) = (plan.delete_count(), plan.freed_bytes());
                printer.document(&PlanDocument { plan: &plan, delete, freed_bytes });
            } else if !printer.is_json() {
                printer.text(&plan_text(
                    &plan,
                    work.instance.name.as_str(),
                    work.engine.clock.now(),
                    args.force,
                ));
            }
            if args.plan {
                if !printer.is_json() && plan.delete_count() > 0 {
                    let short = digest.get(..SHOWN_DIGEST).unwrap_or(&digest);
                    printer.text(&format!(
                        "{DIM}Carried out by `backup prune --apply {short}`{DIM:#}\n"
                    ));
                }
                return Ok(if plan.is_refused(args.force) { Exit::Failed } else { Exit::Done });
            }
            if plan.is_refused(args.force) && plan.delete_count() > 0 {
                printer.note("Nothing was deleted: a plan is carried out whole or not at all.");
                return Ok(Exit::Failed);
            }
            let (delete, freed) =
                (count(plan.delete_count() as u64, "snapshot"), ByteSize(plan.freed_bytes()));
            if plan.delete_count() > 0 && !confirmed(&format!("Delete {delete} ({freed})?")) {
                printer.note("Nothing was deleted.");
                return Ok(Exit::Done);
            }
            Some(digest)
        }
    };
    let report = engine::prune(&work.engine, work.scope(), expected.as_deref(), args.force).await?;
    work.end_display();
    printer.show(&report, report_text);
    Ok(exit(&report.pruned))
}

pub(super) fn exit(pruned: &[Pruned]) -> Exit {
    let deleted = pruned.iter().any(|pruned| !pruned.deleted.is_empty());
    match (pruned.iter().any(|pruned| pruned.problem.is_some()), deleted) {
        (false, _) => Exit::Done,
        (true, true) => Exit::Problems,
        (true, false) => Exit::Failed,
    }
}

fn parse_digest(text: &str) -> Result<String, UsageError> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    if (SHORTEST_DIGEST..=64).contains(&hex.len())
        && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        Ok(hex)
    } else {
        Err(UsageError(format!(
            "`{text}` is not the digest of a plan: expected {SHORTEST_DIGEST} hex digits or more, \
             as `backup prune --plan` prints them"
        )))
    }
}

fn plan_text(plan: &PrunePlan, instance: &str, now: DateTime<Utc>, force: bool) -> String {
    let mut text = String::new();
    for place in &plan.places {
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "{BOLD}{instance} / {}{BOLD:#} in {BOLD}{}{BOLD:#}  {DIM}{}{DIM:#}",
            place.strategy, place.storage, place.address
        );
        text.push_str(&place_text(place, now, force));
    }
    if text.is_empty() { "There is nothing to prune.\n".to_owned() } else { text }
}

fn place_text(place: &PlacePlan, now: DateTime<Utc>, force: bool) -> String {
    let mut text = String::new();
    if let Some(rests) = &place.rests {
        let _ = writeln!(
            text,
            "  {DIM}{}: {rests}{DIM:#}",
            count(place.snapshots.len() as u64, "snapshot")
        );
    } else if !place.snapshots.is_empty() {
        let mut table = Table::new(&["", "ID", "TAKEN (UTC)", ">AGE", ">SIZE", "WHY"]).indented(2);
        for snapshot in &place.snapshots {
            let decision = &snapshot.decision;
            let mut why: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
            if snapshot.completeness == Some(Completeness::Partial) && decision.keep {
                why.push("partial".to_owned());
            }
            table.row(vec![
                if decision.keep {
                    Cell::styled("keep", GOOD)
                } else {
                    Cell::styled("delete", WARN)
                },
                decision.id.as_str().into(),
                decision.id.time().format("%Y-%m-%d %H:%M").to_string().into(),
                age(decision.id.time(), now).trim_end_matches(" ago").into(),
                ByteSize(snapshot.stored_bytes).to_string().into(),
                why.join("; ").into(),
            ]);
        }
        text.push_str(&table.render());
        let delete = place.to_delete().count();
        let kept = place.snapshots.len() - delete;
        let _ = writeln!(
            text,
            "  {DIM}{kept} kept, {delete} deleted, {} freed{DIM:#}",
            ByteSize(place.freed_bytes())
        );
    } else if place.refusals.is_empty() {
        let _ = writeln!(text, "  {DIM}no snapshots{DIM:#}");
    }
    for refusal in &place.refusals {
        let (style, word) =
            if force && refusal.yields() { (WARN, "overruled") } else { (BAD, "refused") };
        let _ = writeln!(text, "  {style}{word}:{style:#} {refusal}");
    }
    text
}

fn report_text(report: &PruneReport) -> String {
    let mut text = String::new();
    for (place, pruned) in report.plan.places.iter().zip(&report.pruned) {
        if place.rests.is_none() || pruned.problem.is_some() {
            text.push_str(&pruned_text(pruned));
        }
    }
    if text.is_empty() { "There is nothing to prune.\n".to_owned() } else { text }
}

pub(super) fn pruned_text(pruned: &Pruned) -> String {
    let place = format!("{BOLD}{}{BOLD:#} in {BOLD}{}{BOLD:#}", pruned.strategy, pruned.storage);
    let deleted = count(pruned.deleted.len() as u64, "snapshot");
    let done = format!("{deleted} deleted, {} freed", ByteSize(pruned.freed_bytes));
    match &pruned.problem {
        None => format!("{place}: {GOOD}{done}{GOOD:#}\n"),
        Some(problem) if pruned.deleted.is_empty() => {
            format!("{place}: {BAD}nothing was deleted{BAD:#}\n  {problem}\n")
        }
        Some(problem) => format!("{place}: {WARN}{done}, not all{WARN:#}\n  {problem}\n"),
    }
}
