//! `backup drill` and `backup drill report`.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};

use super::output::{
    BAD, BOLD, Cell, DIM, GOOD, Printer, Table, WARN, age, or_dash, remarks_text, seconds, time,
};
use super::run::{SHOWN_REMARKS, settle};
use super::setup::{IdentityArgs, Setup, parse_name};
use super::{Exit, UsageError};
use crate::engine::{self, DrillRequest, EngineError};
use crate::model::{ByteSize, Check, CheckOutcome, Proof, Verdict};
use crate::report::notify::Notifiers;
use crate::report::{DrillReport, Event, html};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct DrillArgs {
    #[command(subcommand)]
    command: Option<DrillCommand>,
    /// Of this strategy
    #[arg(long, value_name = "NAME", required = true)]
    strategy: Option<String>,
    /// An id, the beginning or end of one, or `latest`: the newest
    #[arg(long, value_name = "ID", default_value = "latest")]
    snapshot: String,
    /// Read this storage, instead of the one that the strategy's drill names
    #[arg(long, value_name = "NAME")]
    storage: Option<String>,
    #[command(flatten)]
    identities: IdentityArgs,
    /// Let the scratch databases and folders stay, to be looked at
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Subcommand)]
enum DrillCommand {
    #[command(after_help = "\
Examples:
  backup drill report                             the last one, as text
  backup drill report --format html > drill.html  to be filed
  backup drill report 7f3a9c --format json        of a drill, or of a snapshot")]
    /// Show the evidence of a drill
    Report(ReportArgs),
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// The id of a drill or of a snapshot, or the beginning or end of one [default: the last drill]
    #[arg(value_name = "ID")]
    id: Option<String>,
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// In this format
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One page that needs nothing else, to be filed
    Html,
    Json,
    Text,
}

pub(super) async fn run(setup: &Setup, args: DrillArgs, printer: &Printer) -> anyhow::Result<Exit> {
    if let Some(DrillCommand::Report(args)) = args.command {
        return report(setup, &args, printer).await;
    }
    let (instance, strategy) = setup.strategy(&args.strategy.unwrap_or_default())?;
    let request = DrillRequest {
        snapshot: args.snapshot,
        storage: args.storage.as_deref().map(parse_name).transpose()?,
        identities: args.identities.load()?,
        keep: args.keep,
    };
    let (engine, display) = setup.engine(&instance);
    let notifiers = Notifiers::new(&instance.notify);
    let ended = engine::drill(&engine, &instance, &strategy, &request).await;
    drop(display);
    if let Ok(report) = &ended {
        notifiers.tell(&Event::of_drill(report));
        printer.show(report, |report| text(report, false));
    }
    settle(&notifiers, &setup.cancel).await;
    let report = ended?;
    Ok(match report.verdict {
        Verdict::Failed => Exit::Damaged,
        Verdict::Inconclusive => Exit::Failed,
        Verdict::Passed
            if !report.unrecorded.is_empty() || (!request.keep && !report.left.is_empty()) =>
        {
            Exit::Problems
        }
        Verdict::Passed => Exit::Done,
    })
}

async fn report(setup: &Setup, args: &ReportArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let instance = setup.instance(args.strategy.as_deref())?;
    let engine = setup.quiet_engine(&instance);
    let records = engine::drill_reports(&engine, &instance.name).await?;
    let of_strategy = records.iter().filter(|record| {
        args.strategy.as_deref().is_none_or(|name| name == record.strategy.as_str())
    });
    let meant = |id: &str| {
        let wanted = args.id.as_deref().unwrap_or_default();
        id.starts_with(wanted) || id.rsplit('-').next().is_some_and(|end| end.starts_with(wanted))
    };
    let mut found = of_strategy.filter(|record| {
        args.id.is_none()
            || meant(record.id.as_str())
            || record.snapshot.as_ref().is_some_and(|id| meant(id.as_str()))
    });
    // The newest of several that are meant.
    let Some(record) = found.next() else {
        let what = args.id.as_ref().map(|id| format!(" `{id}`")).unwrap_or_default();
        return Err(EngineError::NotFound(format!(
            "No drill{what} is recorded in `{}`. `backup drill --strategy NAME` makes one",
            instance.state_dir.display()
        ))
        .into());
    };
    let report = engine::to_report(record)?;
    if printer.is_json() && args.format == Format::Html {
        return Err(UsageError(
            "`--json` and `--format html` ask for two formats: choose one".to_owned(),
        )
        .into());
    }
    match args.format {
        Format::Html => printer.text(&html(&report)),
        _ if printer.is_json() => printer.document(&report),
        Format::Json => printer.document(&report),
        Format::Text => printer.text(&text(&report, true)),
    }
    Ok(Exit::Done)
}

/// The evidence in lines. Checks of one kind that all passed are one line, unless `all` are wanted.
fn text(report: &DrillReport, all: bool) -> String {
    let (style, words) = match report.verdict {
        Verdict::Passed => (GOOD, "passed: it was restored, and is what it was when it was taken"),
        Verdict::Failed if report.suspect => {
            (BAD, "failed: it has much less than the last good one")
        }
        Verdict::Failed => (BAD, "failed: it is bad"),
        Verdict::Inconclusive => (WARN, "inconclusive: it could not be judged"),
    };
    let subject =
        report.snapshot.as_ref().map(|snapshot| format!(" {}", snapshot.id)).unwrap_or_default();
    let mut text = format!(
        "{BOLD}{}/{}{subject}{BOLD:#}  drill {style}{words}{style:#}\n",
        report.instance, report.strategy
    );
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {DIM}{name:10}{DIM:#}  {value}");
    };
    line("drill", format!("{}, at {}, on {}", report.id, time(report.started), report.host));
    line(
        "read from",
        format!(
            "{} ({}), {} fetched",
            report.storage,
            report.address,
            ByteSize(report.fetched_bytes)
        ),
    );
    for target in &report.targets {
        line("restored", format!("{} to {}", target.source, target.place));
    }
    if !report.proof.is_empty() {
        line("proof", Proof::in_words(&report.proof));
    }
    if let Some(snapshot) = &report.snapshot {
        let objective = report
            .rpo_seconds
            .map(|rpo| format!(" of at most {}", seconds(rpo)))
            .unwrap_or_default();
        line(
            "data",
            format!(
                "{}, taken {}{objective}",
                age(snapshot.taken, report.started),
                time(snapshot.taken)
            ),
        );
    }
    let objective =
        report.rto_seconds.map(|rto| format!(" of at most {}", seconds(rto))).unwrap_or_default();
    let steps: Vec<String> = report
        .steps
        .iter()
        .filter(|step| step.seconds >= 0.05)
        .map(|step| format!("{} {}", step.name, seconds(step.seconds)))
        .collect();
    let all_of_it = seconds(report.seconds);
    line(
        "recovery",
        format!(
            "{}{objective}; the drill took {all_of_it}: {}",
            seconds(report.recovery_seconds),
            steps.join(", ")
        ),
    );
    text.push_str(&checks_text(report, all));
    let _ = writeln!(
        text,
        "  {} passed, {} failed, {} could not be made, {} had nothing to compare with",
        report.count(CheckOutcome::Passed),
        report.count(CheckOutcome::Failed),
        report.count(CheckOutcome::Inconclusive),
        report.count(CheckOutcome::Skipped)
    );
    let more = format!("; `backup drill report {}` has them", report.id);
    text.push_str(&remarks_text(
        &report.remarks,
        if all { usize::MAX } else { SHOWN_REMARKS },
        &more,
    ));
    for left in &report.left {
        let _ = writeln!(text, "  {WARN}left:{WARN:#} {left}");
    }
    for (name, error) in &report.unrecorded {
        let _ = writeln!(text, "  {WARN}not recorded in {name}:{WARN:#} {error}");
    }
    if report.suspect
        && let Some(snapshot) = &report.snapshot
    {
        let _ = writeln!(
            text,
            "  Nothing of this strategy is deleted until somebody has looked. When it is as it \
             should be: backup release {}",
            snapshot.id
        );
    }
    if let Some(problem) = &report.problem {
        let _ = writeln!(text, "  {style}{}:{style:#} {problem}", report.verdict);
    }
    text
}

fn checks_text(report: &DrillReport, all: bool) -> String {
    let mut table = Table::new(&["CHECK", "SOURCE", "WHAT", "EXPECTED", "FOUND", ""]).indented(2);
    let source = |check: &Check| or_dash(check.source.as_ref());
    let row = |check: &Check| {
        let outcome = check.outcome.as_str();
        let most = if all { MOST } else { MOST / 2 };
        let shown = |text: &Option<String>| shortened(text.as_deref().unwrap_or("-"), most);
        vec![
            check.kind.as_str().into(),
            source(check).into(),
            shortened(&check.what, MOST).into(),
            shown(&check.expected).into(),
            shown(&check.found).into(),
            match check.outcome {
                CheckOutcome::Passed => Cell::styled(outcome, GOOD),
                CheckOutcome::Failed => Cell::styled(outcome, BAD),
                CheckOutcome::Inconclusive => Cell::styled(outcome, WARN),
                CheckOutcome::Skipped => Cell::styled(outcome, DIM),
            },
        ]
    };
    let kind = |check: &Check| (check.kind.clone(), check.source.clone());
    let mut kinds: HashMap<_, Vec<&Check>> = HashMap::new();
    for check in &report.checks {
        kinds.entry(kind(check)).or_default().push(check);
    }
    let mut told = HashSet::new();
    for check in &report.checks {
        let of_kind = kinds.get(&kind(check)).map_or(&[][..], Vec::as_slice);
        if all || of_kind.len() < 3 || check.outcome != CheckOutcome::Passed {
            table.row(row(check));
            continue;
        }
        if !told.insert(kind(check)) {
            continue;
        }
        let passed: Vec<&&Check> =
            of_kind.iter().filter(|one| one.outcome == CheckOutcome::Passed).collect();
        let some: Vec<&str> = passed.iter().take(2).map(|one| one.what.as_str()).collect();
        table.row(vec![
            check.kind.as_str().into(),
            source(check).into(),
            shortened(&format!("{}, ... ({} in all)", some.join(", "), passed.len()), MOST).into(),
            "-".into(),
            "as expected".into(),
            Cell::styled("passed", GOOD),
        ]);
    }
    let mut text = if table.is_empty() { String::new() } else { table.render() };
    for check in report.bad_news().filter(|check| !check.details.is_empty()) {
        let _ = writeln!(text, "  {BOLD}{}{BOLD:#}", check.what);
        for detail in &check.details {
            let _ = writeln!(text, "    {detail}");
        }
    }
    text
}

/// What fits in a table, in characters.
const MOST: usize = 56;

fn shortened(text: &str, most: usize) -> String {
    let text: String = text
        .chars()
        .map(|one| {
            if one.is_control() || matches!(one, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                ' '
            } else {
                one
            }
        })
        .collect();
    if text.chars().count() <= most {
        text
    } else {
        text.chars().take(most - 1).chain(['…']).collect()
    }
}
