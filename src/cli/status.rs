//! `backup status`.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use clap::Args;
use futures::future::join_all;

use super::Exit;
use super::output::{
    BAD, BOLD, Cell, DIM, GOOD, Printer, Table, WARN, age, count, or_dash, seconds,
};
use super::setup::{Setup, chosen};
use crate::engine::{self, Scheduler};
use crate::model::{ByteSize, Outcome, Proof, Verdict, VerificationOutcome};
use crate::report::{State, Status, StrategyStatus, Tally};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Of this strategy only
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
}

pub(super) async fn run(
    setup: &Setup,
    args: StatusArgs,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let settings = setup.settings()?;
    let wanted = setup.global.instance.as_deref();
    if let Some(strategy) = &args.strategy {
        settings.find_strategy(strategy, wanted)?;
    }
    let (mut strategies, mut problems) = (Vec::new(), Vec::new());
    let mut now = None;
    let mut schedulers = Vec::new();
    let looks = chosen(&settings, wanted)?.into_iter().map(|instance| async move {
        let engine = setup.quiet_engine(instance);
        engine::fill_status(&engine, instance).await;
        (instance, engine::status(&engine, instance).await)
    });
    for (instance, status) in join_all(looks).await {
        now = Some(status.at);
        strategies.extend(status.strategies);
        problems.extend(status.problems);
        schedulers.push((instance.name.clone(), engine::scheduler(&instance.state_dir)));
    }
    if let Some(wanted) = &args.strategy {
        strategies.retain(|strategy| strategy.strategy.as_str() == wanted);
    }
    let status = Status::new(now.unwrap_or_default(), strategies, problems);
    if printer.is_json() {
        printer.document(&status);
    } else {
        printer.text(&text(&status));
        for (instance, scheduler) in schedulers {
            let words = match scheduler {
                Ok(Some(Scheduler { pid, is_here: true })) => {
                    format!("{DIM}The scheduler of {instance} is running (process {pid}).{DIM:#}")
                }
                Ok(Some(_)) => format!(
                    "{DIM}The scheduler of {instance} is running in another container.{DIM:#}"
                ),
                Ok(None) => format!("{DIM}No scheduler of {instance} is running here.{DIM:#}"),
                Err(error) => {
                    format!(
                        "{WARN}Whether a scheduler of {instance} is running is not known:{WARN:#} \
                         {error}"
                    )
                }
            };
            printer.note(&words);
        }
    }
    Ok(if status.ready { Exit::Done } else { Exit::Failed })
}

fn text(status: &Status) -> String {
    let now = status.at;
    let mut table =
        Table::new(&["STRATEGY", "STATE", "LAST SNAPSHOT", "LAST RUN", ">TOOK", ">STORED", "NEXT"]);
    for one in &status.strategies {
        // Of those that have one, the storage that is furthest behind tells.
        let with: Vec<DateTime<Utc>> =
            one.storages.iter().filter_map(|storage| storage.newest_whole).collect();
        let newest = with.iter().min().map(|at| match (with.len(), one.storages.len()) {
            (some, all) if some < all => format!("{}, in {some} of {all}", age(*at, now)),
            _ => age(*at, now),
        });
        let took = one.last_committed.as_ref();
        table.row(vec![
            format!("{}/{}", one.instance, one.strategy).into(),
            state(one),
            newest.map_or_else(|| Cell::styled("none", DIM), Cell::from),
            last_run(one, now),
            or_dash(took.map(|run| seconds(run.seconds))).into(),
            or_dash(took.map(|run| ByteSize(run.stored_bytes))).into(),
            one.next.map_or_else(
                || Cell::styled("-", DIM),
                |next| next.format("%Y-%m-%d %H:%M").to_string().into(),
            ),
        ]);
    }
    let mut text = if table.is_empty() { "No strategies.\n".to_owned() } else { table.render() };
    for one in &status.strategies {
        let name = format!("{}/{}", one.instance, one.strategy);
        if let Some(reason) = &one.reason {
            let _ = writeln!(text, "{BAD}{name}:{BAD:#} {reason}");
        }
        if one.failures_in_a_row > 0 {
            let failures = count(one.failures_in_a_row, "run");
            let error =
                one.last_run.as_ref().and_then(|run| run.error.as_deref()).unwrap_or_default();
            let _ = writeln!(
                text,
                "{WARN}{name}:{WARN:#} {failures} failed since the last snapshot; the last: {error}"
            );
        }
        let last = one.last_run.as_ref();
        if let Some(Tally { notes, warnings, errors }) = last.and_then(|run| run.tally) {
            // The error of a run that failed is told above.
            let errors = if one.failures_in_a_row > 0 { 0 } else { errors };
            for (style, number, noun) in
                [(BAD, errors, "error"), (WARN, warnings, "warning"), (DIM, notes, "note")]
            {
                if number > 0 {
                    let counted = count(number, noun);
                    let _ = writeln!(text, "{style}{name}:{style:#} the last run had {counted}");
                }
            }
        }
        if let Some(verified) =
            one.verified.as_ref().filter(|verified| verified.outcome == VerificationOutcome::Failed)
        {
            let problem = verified.problem.as_deref().unwrap_or_default();
            let _ = writeln!(text, "{WARN}{name}:{WARN:#} the last verification failed: {problem}");
        }
    }
    for (one, drills) in
        status.strategies.iter().filter_map(|one| Some((one, one.drills.as_ref()?)))
    {
        let passed = drills.last_passed.map_or_else(|| "never".to_owned(), |at| age(at, now));
        let next = drills
            .next
            .map(|next| format!(", next {}", next.format("%Y-%m-%d %H:%M")))
            .unwrap_or_default();
        let of_passed = drills.last.as_ref().filter(|last| last.verdict == Verdict::Passed);
        let took = of_passed.and_then(|last| last.recovery_seconds).map(seconds);
        let took = took.map(|took| format!(", recovery in {took}")).unwrap_or_default();
        let proof = drills.last.as_ref().filter(|last| !last.proof.is_empty());
        let proof = proof
            .map(|last| format!(", proof: {}", Proof::in_words(&last.proof)))
            .unwrap_or_default();
        let failed =
            (drills.verdict == Some(Verdict::Failed)).then_some(drills.last_judged).flatten();
        let failed = failed
            .map(|at| format!("{BAD}last drill failed{BAD:#} {}, ", age(at, now)))
            .unwrap_or_default();
        let name = format!("{}/{}", one.instance, one.strategy);
        let _ = writeln!(
            text,
            "{DIM}{name}:{DIM:#} {failed}last drill that passed {passed}{took}{next}{proof}"
        );
    }
    for problem in &status.problems {
        let _ = writeln!(text, "{BAD}not known:{BAD:#} {problem}");
    }
    let well = if status.ready {
        format!("{GOOD}All is fresh.{GOOD:#}")
    } else {
        format!("{BAD}Not all is fresh.{BAD:#}")
    };
    let _ = writeln!(text, "{BOLD}{well}{BOLD:#}  {DIM}Times are UTC.{DIM:#}");
    text
}

fn state(one: &StrategyStatus) -> Cell {
    let style = match one.state {
        State::Fresh => GOOD,
        State::Stale | State::Damaged | State::Unproven => BAD,
        State::Waiting | State::Manual | State::Inactive => DIM,
    };
    let words = if one.running { format!("{}, running", one.state) } else { one.state.to_string() };
    Cell::styled(words, style)
}

fn last_run(one: &StrategyStatus, now: DateTime<Utc>) -> Cell {
    let Some(run) = &one.last_run else { return Cell::styled("never", DIM) };
    let style = match run.outcome {
        Outcome::Success => GOOD,
        Outcome::Problems => WARN,
        Outcome::Failed | Outcome::Cancelled => BAD,
    };
    Cell::styled(format!("{}, {}", run.outcome, age(run.started, now)), style)
}
