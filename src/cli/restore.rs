//! `backup restore`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output::{
    BAD, BOLD, DIM, GOOD, Printer, Table, WARN, missing_lines, or_dash, remarks_text, seconds,
};
use super::setup::{IdentityArgs, Reading, Setup, StorageArgs};
use super::{Exit, UsageError};
use crate::archive::Pattern;
use crate::engine::{
    self, Destination, Missing, PassedOver, RestorePlan, RestoreReport, RestoreRequest,
};
use crate::model::{ByteSize, DatabaseUrl, Name};
use crate::source::command::CommandConfig;
use crate::source::directory::OwnerRule;
use crate::source::postgres::LeftStatement;
use crate::source::process::Environment;
use crate::source::{Action, RestoreOptions, SourceConfig};

/// A child that makes no progress for this long during a restore is killed, where no configuration
/// says otherwise.
const NO_PROGRESS: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// An id, the beginning or end of one, or `latest`: the newest whole one
    #[arg(long, value_name = "ID", default_value = "latest")]
    snapshot: String,
    /// With `latest`: the newest begun at or before this time (`2026-11-21`, `2026-11-21 01:30` in
    /// UTC, or RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = engine::parse_at)]
    at: Option<chrono::DateTime<chrono::Utc>>,
    /// Only this source; may be repeated
    #[arg(long, value_name = "NAME")]
    source: Vec<Name>,
    /// Only this database, of a source that has several: `NAME`, or `NAME=NEW` to restore it to
    /// the database NEW of the server that `--into` names. May be repeated
    #[arg(long, value_name = "NAME[=NEW]", conflicts_with_all = ["path", "to_command"])]
    database: Vec<String>,
    #[command(flatten)]
    destination: DestinationArgs,
    /// Restore only the files and folders that this matches, as `exclude` in the configuration
    /// does: `*.pdf` at any depth, `/a/b` from the folder that was backed up. May be repeated. Only
    /// the parts of the snapshot that they lie in are fetched
    #[arg(long, value_name = "GLOB", requires = "to", value_parser = Pattern::new)]
    path: Vec<Pattern>,
    /// Replace what is there. The snapshot is read through and found undamaged first; with `--path`
    /// only what leads to its files is, and each file is found undamaged before it replaces another
    #[arg(long)]
    overwrite: bool,
    /// Remove what is there and the snapshot does not have: files, or objects of a PostgreSQL
    /// database; with `--path`, in the folders that it matches
    #[arg(long, requires = "overwrite", conflicts_with = "to_command")]
    delete: bool,
    /// Say what would be new, replaced and removed, and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Give files to another owner: `USER[:GROUP]` for all of them, or `OLD=NEW` for those of an
    /// owner. May be repeated; the first that fits counts
    #[arg(long, value_name = "RULE", requires = "to", conflicts_with = "no_owner")]
    owner: Vec<OwnerRule>,
    /// Do not restore owners and privileges: everything belongs to who restores
    #[arg(long)]
    no_owner: bool,
    /// Restore a PostgreSQL database with this many jobs. It is not one transaction then
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Private folder for what cannot be streamed [default: the configuration's `work_dir`, else
    /// $TMPDIR]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    identities: IdentityArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct DestinationArgs {
    /// Restore each source to DIR/<source>
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// Restore the database to this one: `postgresql://user@host/name` or `sqlite:///path`. Without
    /// a name, `postgresql://user@host`, it is the server: each database of a source that has
    /// several goes to the database of its own name there, or of the new one that `--database`
    /// gives it. All of them must exist and be empty. A password is better put into the environment
    /// as PGPASSWORD than into the address, which other users can see
    // Parsed later: what is said of a value that is wrong repeats it, and a password may be in it.
    #[arg(long, value_name = "URL")]
    into: Option<String>,
    /// Feed each command source's stream to the `restore_command` of the configuration
    #[arg(long)]
    to_command: bool,
}

pub(super) async fn run(
    setup: &Setup,
    args: RestoreArgs,
    printer: &Printer,
) -> anyhow::Result<Exit> {
    let identities = args.identities.load()?;
    let reading = setup.reading(&args.storage, args.strategy.as_deref()).await?;
    let listing = reading.list().await;
    let (side, copies) = reading.choose(&listing, &args.snapshot, args.at)?;
    let instance = reading.instance.as_ref();
    let work_dir = args
        .work_dir
        .or_else(|| instance.map(|instance| instance.work_dir.clone()))
        .unwrap_or_else(|| crate::config::temporary_dir(&setup.environment));
    let no_progress = instance
        .and_then(|instance| instance.strategies.get(side.snapshot.strategy.as_str()))
        .map_or(NO_PROGRESS, |strategy| strategy.no_progress_timeout.duration());
    let request = RestoreRequest {
        destination: destination(setup, args.destination, &reading)?,
        sources: args.source,
        databases: args.database,
        options: RestoreOptions {
            overwrite: args.overwrite,
            jobs: args.jobs,
            no_owner: args.no_owner,
            owners: args.owner,
            paths: args.path,
            delete: args.delete,
            ..RestoreOptions::default()
        },
        identities,
        work_dir,
        no_progress_timeout: no_progress,
    };
    if args.dry_run {
        let plan = engine::plan_restore(&reading.engine, &copies, &request).await?;
        drop(reading);
        printer.show(&plan, plan_text);
        return Ok(if plan.missing.is_empty() { Exit::Done } else { Exit::Problems });
    }
    let report = engine::restore(&reading.engine, &copies, &request).await?;
    drop(reading);
    printer.show(&report, report_text);
    let is_whole = report.missing.is_empty() && report.remarks.warnings.is_empty();
    Ok(if is_whole { Exit::Done } else { Exit::Problems })
}

/// The address with the password of `PGPASSWORD`, unless it has one.
fn with_password(url: DatabaseUrl, environment: &Environment) -> anyhow::Result<DatabaseUrl> {
    let wants_one = url.expose().scheme().starts_with("postgres") && !url.has_password();
    let Some(password) = environment.get("PGPASSWORD").filter(|_| wants_one) else {
        return Ok(url);
    };
    let password =
        password.to_str().ok_or_else(|| UsageError("`PGPASSWORD` is not UTF-8".to_owned()))?;
    Ok(url.with_password(password))
}

fn destination(
    setup: &Setup,
    args: DestinationArgs,
    reading: &Reading,
) -> anyhow::Result<Destination> {
    if let Some(folder) = args.to {
        return Ok(Destination::Folder(std::path::absolute(folder)?));
    }
    if let Some(url) = args.into {
        let url = DatabaseUrl::try_from(url)
            .map_err(|problem| UsageError(format!("`--into`: {problem}")))?;
        return Ok(Destination::Database(with_password(url, &setup.environment)?));
    }
    let Some(instance) = &reading.instance else {
        return Err(UsageError(
            "`--to-command` takes the command from the configuration: name one with `--config`"
                .to_owned(),
        )
        .into());
    };
    let commands: Vec<(Name, CommandConfig)> = instance
        .sources
        .iter()
        .filter_map(|(name, config)| match config {
            SourceConfig::Command(config) if config.restore_command.is_some() => {
                Some((name.clone(), config.clone()))
            }
            _ => None,
        })
        .collect();
    if commands.is_empty() {
        return Err(UsageError(
            "No source of the configuration has a `restore_command`".to_owned(),
        )
        .into());
    }
    Ok(Destination::Commands(commands))
}

fn plan_text(plan: &RestorePlan) -> String {
    let mut text = format!(
        "{BOLD}{}/{} {}{BOLD:#}  would be restored from {}\n",
        plan.instance, plan.strategy, plan.id, plan.storage
    );
    let mut table =
        Table::new(&["ARTIFACT", ">SIZE", ">NEW", ">REPLACED", ">REMOVED", "PLACE"]).indented(2);
    for planned in &plan.artifacts {
        let preview = planned.preview.as_ref();
        let bytes = preview.map_or(planned.plain_bytes, |preview| Some(preview.bytes));
        table.row(vec![
            with_of(&planned.name, planned.of.as_ref()).into(),
            or_dash(bytes.map(ByteSize)).into(),
            or_dash(preview.map(|preview| preview.creates)).into(),
            or_dash(preview.map(|preview| preview.replaces)).into(),
            or_dash(preview.map(|preview| preview.deletes)).into(),
            planned.place.as_str().into(),
        ]);
    }
    text.push_str(&table.render());
    for planned in &plan.artifacts {
        let Some(preview) = planned.preview.as_ref().filter(|preview| !preview.changes.is_empty())
        else {
            continue;
        };
        let _ = writeln!(text, "  {BOLD}{}{BOLD:#}", planned.name);
        for change in &preview.changes {
            let (style, action) = match change.action {
                Action::Create => (GOOD, "new"),
                Action::Replace => (WARN, "replace"),
                Action::Delete => (BAD, "remove"),
                Action::Keep => (DIM, "keep"),
            };
            let _ =
                writeln!(text, "    {style}{action:7}{style:#}  {}", change.path.escape_debug());
        }
        let all = preview.creates + preview.replaces + preview.deletes + preview.keeps;
        let more = all.saturating_sub(preview.changes.len() as u64);
        if more > 0 {
            let _ = writeln!(text, "    {DIM}and {more} more{DIM:#}");
        }
    }
    passed_over_text(&mut text, &plan.passed_over);
    left_out_text(&mut text, &plan.left_out);
    missing_text(&mut text, &plan.missing);
    let _ = writeln!(text, "  {DIM}fetched {}{DIM:#}", ByteSize(plan.fetched_bytes));
    let _ = writeln!(text, "Nothing was touched");
    text
}

/// The name of an artifact, with that of the database in it where there is one.
fn with_of(name: &str, of: Option<&String>) -> String {
    of.map_or_else(|| name.to_owned(), |of| format!("{name} ({of})"))
}

fn passed_over_text(text: &mut String, passed_over: &[PassedOver]) {
    for PassedOver { storage, problem } in passed_over {
        let _ = writeln!(text, "  {WARN}not from {storage}{WARN:#}  {problem}");
    }
}

fn left_out_text(text: &mut String, left_out: &[String]) {
    for left_out in left_out {
        let _ = writeln!(text, "  {DIM}left out: {left_out}{DIM:#}");
    }
}

fn missing_text(text: &mut String, missing: &Missing) {
    for line in missing_lines(missing) {
        let _ = writeln!(text, "  {line}");
    }
}

fn report_text(report: &RestoreReport) -> String {
    let mut text = format!(
        "{BOLD}{}/{} {}{BOLD:#}  restored from {} in {}\n",
        report.instance,
        report.strategy,
        report.id,
        report.storage,
        seconds(report.seconds)
    );
    let mut table = Table::new(&["ARTIFACT", ">SIZE", "PLACE"]).indented(2);
    for restored in &report.restored {
        table.row(vec![
            with_of(&restored.name, restored.of.as_ref()).into(),
            or_dash(
                restored
                    .files
                    .map_or(restored.plain_bytes, |files| Some(files.bytes))
                    .map(ByteSize),
            )
            .into(),
            restored.place.as_str().into(),
        ]);
    }
    text.push_str(&table.render());
    for (name, files) in
        report.restored.iter().filter_map(|restored| Some((&restored.name, restored.files?)))
    {
        let removed = if files.deleted > 0 {
            format!(", {} removed", entries(files.deleted))
        } else {
            String::new()
        };
        let _ = writeln!(text, "  {name}: {} restored{removed}", entries(files.entries));
    }
    passed_over_text(&mut text, &report.passed_over);
    left_out_text(&mut text, &report.left_out);
    missing_text(&mut text, &report.missing);
    let _ = writeln!(text, "  {DIM}fetched {}{DIM:#}", ByteSize(report.fetched_bytes));
    text.push_str(&remarks_text(&report.remarks, usize::MAX, ""));
    for restored in report.restored.iter().filter(|restored| !restored.statements.is_empty()) {
        let name = with_of(&restored.name, restored.of.as_ref());
        let _ = writeln!(text, "  {WARN}settings left{WARN:#}  {name} in {}", restored.place);
        for LeftStatement { sql, reason } in &restored.statements {
            // A literal has no control characters; a name may.
            let escaped =
                |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
            let sql: String = sql.chars().map(escaped).collect();
            let _ = writeln!(text, "    {sql};  {DIM}-- {}{DIM:#}", reason.escape_debug());
        }
    }
    text
}

fn entries(number: u64) -> String {
    if number == 1 { "1 entry".to_owned() } else { format!("{number} entries") }
}
