//! The commands. The only room that parses the command line and prints.
//!
//! Data goes to stdout, everything else to stderr. A command resolves what was typed, calls a verb
//! of the engine and shows what it returns; it decides nothing about backups.
//!
//! To add a command: a file here with its arguments and a `run` function, and a variant of
//! [`Command`].

mod catalog;
mod check;
mod completions;
mod config;
mod copy;
mod diff;
mod drill;
mod dump;
mod export;
mod files;
mod hold;
mod import;
mod list;
mod notify;
mod output;
mod progress;
mod prune;
mod restore;
mod run;
mod schedule;
mod setup;
mod show;
mod signals;
mod stats;
mod status;
mod strategies;
mod threads;
mod verify;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::config::{ConfigErrors, FindError};
use crate::daemon::DaemonError;
use crate::engine::EngineError;
use crate::model::has_credentials;
use output::{Printer, wrote};

/// Backs up databases and files together, by named strategies, and gets them back.
#[derive(Debug, Parser)]
#[command(name = "backup", version, max_term_width = 100, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  backup --strategy daily                         run a strategy now
  backup check                                    is all as it should be?
  backup list                                     which snapshots are there?
  backup restore --strategy daily --to /restore   get the newest one back

Exit codes:
  0  done                                     3  committed, with problems
  1  failed or cancelled, nothing committed   4  verify, restore or drill found damage
  2  wrong usage or configuration             5  another run holds the lock")]
struct Cli {
    /// `backup --strategy NAME` is short for `backup run --strategy NAME`.
    #[command(flatten)]
    run: run::TopLevel,
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "General options")]
struct Global {
    /// Configuration file, or a folder of them [default: $BACKUP_CONFIG, else
    /// /etc/backup/backup.toml, else /etc/backup/strategies/]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The instance that is meant, where several are configured or stored
    #[arg(long, global = true, value_name = "NAME")]
    instance: Option<String>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    json: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: Color,
    /// Log more
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Log errors only, and show no progress
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a strategy now
    #[command(after_help = "\
Examples:
  backup run --strategy daily
  backup --strategy daily              the same
  backup --strategy daily --dry-run    what would be taken, and to where")]
    Run(run::RunArgs),
    #[command(after_help = "\
Examples:
  backup schedule
  backup schedule --config /etc/backup/strategies")]
    /// Stay, and run every strategy at its times; SIGTERM and Ctrl-C end it in order
    Schedule,
    #[command(after_help = "\
Examples:
  backup reload
  docker compose exec backups backup reload")]
    /// Ask the running scheduler to read its configuration again
    Reload,
    #[command(after_help = "\
Examples:
  backup status              exit code 0 when all is fresh, 1 when not
  backup status --json")]
    /// Show how each strategy fares: fresh or stale, its last run, its next
    Status(status::StatusArgs),
    #[command(after_help = "\
Examples:
  backup check
  backup check --config strategies/demo.toml
  backup check --identity-file key.txt    does this key open the newest snapshots?")]
    /// Check the configuration, then the world: tools, servers, storages, keys
    Check(check::CheckArgs),
    #[command(after_help = "\
Examples:
  backup strategies
  backup strategies --json")]
    /// List the configured strategies and when they run next
    Strategies,
    #[command(after_help = "\
Examples:
  backup list
  backup list --strategy daily --json
  backup list --storage s3://bucket/prefix    without any configuration")]
    /// List the snapshots
    List(list::ListArgs),
    #[command(after_help = "\
Examples:
  backup show latest --strategy daily
  backup show 7f3a9c --identity-file key.txt
  backup show latest --strategy daily --files
  backup show latest --strategy daily --files '*.pdf'")]
    /// Show one snapshot: artifacts, facts, warnings, and the ordinary commands that restore it
    Show(show::ShowArgs),
    #[command(after_help = "\
Examples:
  backup diff 20261120 20261121 --strategy daily
  backup diff 7f3a9c latest --strategy daily --json")]
    /// Show what changed from one snapshot to another: files, rows of tables, sizes
    Diff(diff::DiffArgs),
    #[command(after_help = "\
Examples:
  backup verify
  backup verify --strategy daily --snapshot latest --read-data --identity-file key.txt")]
    /// Check that what is stored is what was written
    Verify(verify::VerifyArgs),
    #[command(after_help = "\
Examples:
  backup restore --strategy daily --to /restore
  backup restore --strategy daily --at 2026-11-20 --source uploads --to /restore
  backup restore --strategy daily --source uploads --path '/2026/11/*.pdf' --to /restore
  backup restore --strategy daily --source uploads --to /srv --overwrite --delete --dry-run
  backup restore --strategy daily --source db --into postgresql://postgres@localhost/shop
  backup restore --storage s3://bucket/prefix --instance shop --identity-file key.txt --to \
        /restore")]
    /// Get a snapshot back
    Restore(restore::RestoreArgs),
    #[command(after_help = "\
Examples:
  backup drill --strategy daily
  backup drill --strategy daily --snapshot 7f3a9c --identity-file key.txt
  backup drill report --format html > drill.html

Exit codes: 0 it passed, 4 the backup is bad, 1 it could not be judged")]
    /// Restore a snapshot for trial, and judge it by what was true when it was taken
    Drill(drill::DrillArgs),
    #[command(after_help = "\
Examples:
  backup dump latest uploads 2026/11/a.pdf --strategy daily > a.pdf
  backup dump latest uploads 2026/11 --strategy daily | tar t
  backup dump 7f3a9c db --identity-file key.txt | pg_restore --list
  backup dump latest uploads.index --strategy daily | head")]
    /// Write one artifact of a snapshot, or one file or folder in it, to stdout
    Dump(dump::DumpArgs),
    #[command(after_help = "\
Examples:
  backup copy --from local --to offsite --strategy daily
  backup copy --from local --to /mnt/usb/backups --snapshot latest --strategy daily
  backup copy --from s3://bucket/prefix --to /backups --instance shop --dry-run")]
    /// Copy snapshots that a storage lacks from another one, byte for byte
    Copy(copy::CopyArgs),
    #[command(after_help = "\
Examples:
  backup export --strategy daily --output shop.tar              a fresh snapshot
  backup export --strategy daily --output shop.tar.age          the whole file encrypted
  backup export --strategy daily --snapshot latest --output shop.tar")]
    /// Write a snapshot into one ordinary tar file
    Export(export::ExportArgs),
    #[command(after_help = "\
Examples:
  backup import shop.tar --storage local
  backup import shop.tar.age --storage s3://bucket/prefix --identity-file key.txt")]
    /// Take a file that `export` wrote into a storage
    Import(import::ImportArgs),
    #[command(after_help = "\
Examples:
  backup stats
  backup stats --storage offsite --json")]
    /// Show what the snapshots take, how they grow, and what they will take
    Stats(stats::StatsArgs),
    #[command(after_help = "\
Examples:
  backup prune --plan                    what would be kept and deleted, and why
  backup prune --apply 1f0c5a2b9d3e      exactly that, or nothing
  backup prune --strategy daily --yes    without asking")]
    /// Delete what retention does not keep
    Prune(prune::PruneArgs),
    #[command(after_help = "\
Examples:
  backup hold 7f3a9c --reason 'before the migration' --until 2027-03-31
  backup hold latest --strategy daily")]
    /// Keep a snapshot, whatever retention says
    Hold(hold::HoldArgs),
    #[command(after_help = "\
Examples:
  backup release 7f3a9c")]
    /// Take a hold away: retention decides again
    Release(hold::ReleaseArgs),
    #[command(after_help = "\
Examples:
  backup forget 7f3a9c
  backup forget 20261120T013000Z-7f3a9c --storage local --yes")]
    /// Delete snapshots by name, damaged ones too
    Forget(hold::ForgetArgs),
    /// About those who are told what happens
    #[command(subcommand)]
    Notify(notify::NotifyCommand),
    /// Look after the local index of snapshots
    #[command(subcommand)]
    Catalog(catalog::CatalogCommand),
    /// About the configuration file
    #[command(subcommand)]
    Config(config::ConfigCommand),
    #[command(after_help = "\
Examples:
  backup completions bash > /etc/bash_completion.d/backup")]
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
}

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Problems = 3,
    Damaged = 4,
    Locked = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error of what was typed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Parses the command line, runs the command, and says how it ended.
pub fn main() -> ExitCode {
    let args: Vec<String> =
        std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    // Which of the options were meant is not known yet, but this one can mean nothing else.
    let json = args.iter().any(|arg| arg == "--json");
    if let Err(error) = refuse_credentials(&args) {
        Printer::new(json, Color::Auto).error(&error.into(), Exit::Usage);
        return Exit::Usage.into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed on stdout and are no error.
            if !error.use_stderr() {
                let printed = error.print();
                return if wrote(printed.and_then(|()| std::io::stdout().flush())) {
                    Exit::Done.into()
                } else {
                    Exit::Failed.into()
                };
            }
            if json {
                let text = without_addresses(error.to_string(), &args);
                let text = text.split("\n\nUsage:").next().unwrap_or(&text);
                let text = text.strip_prefix("error: ").unwrap_or(text);
                let words: Vec<&str> = text.split_whitespace().collect();
                let error = UsageError(words.join(" ")).into();
                Printer::new(true, Color::Never).error(&error, Exit::Usage);
            } else {
                let text = without_addresses(error.render().ansi().to_string(), &args);
                Printer::new(false, Color::Auto).note(&text);
            }
            return Exit::Usage.into();
        }
    };
    let printer = Printer::new(cli.global.json, cli.global.color);
    let exit = match dispatch(cli, &printer) {
        Ok(exit) => exit,
        Err(error) => {
            let exit = exit_of(&error);
            printer.error(&error, exit);
            exit
        }
    };
    let Some(error) = output::unwritten() else { return exit.into() };
    printer.error(&error.into(), Exit::Failed);
    if matches!(exit, Exit::Done) { Exit::Failed.into() } else { exit.into() }
}

/// Refuses addresses with a user or password in them but as the value of `--into`: every other
/// argument is shown.
fn refuse_credentials(args: &[String]) -> Result<(), UsageError> {
    let before = std::iter::once("").chain(args.iter().map(String::as_str));
    let shown =
        |(before, arg): &(&str, &String)| *before != "--into" && !arg.starts_with("--into=");
    if before.zip(args).filter(shown).any(|(_, arg)| has_credentials(arg)) {
        return Err(UsageError(
            "An address with a user or password is taken as the value of `--into` only. For a \
             bucket the keys are in the configuration, or in the variables `AWS_ACCESS_KEY_ID` and \
             `AWS_SECRET_ACCESS_KEY`"
                .to_owned(),
        ));
    }
    Ok(())
}

/// What is said of the command line, without the arguments that may be addresses with a password.
fn without_addresses(mut text: String, args: &[String]) -> String {
    for arg in args {
        let values = [Some(arg.as_str()), arg.split_once('=').map(|(_, value)| value)];
        for value in values.into_iter().flatten().filter(|value| value.contains('@')) {
            text = text.replace(value, "***").replace(&format!("{value:?}"), "***");
        }
    }
    text
}

fn dispatch(cli: Cli, printer: &Printer) -> anyhow::Result<Exit> {
    let Cli { global, run: top, command } = cli;
    if top.is_given() && command.is_some() {
        return Err(UsageError(
            "`--strategy` before a command is not understood. Put it after the command".to_owned(),
        )
        .into());
    }
    match command {
        // These need no runtime and no configuration.
        Some(Command::Config(command)) => config::run(&command, printer),
        Some(Command::Completions(args)) => completions::run(&args, printer, &mut Cli::command()),
        Some(Command::Strategies) => strategies::run(&global, printer),
        Some(command) => {
            setup::with_runtime(&global, matches!(command, Command::Schedule), async |setup| {
                match command {
                    Command::Run(args) => run::run(setup, args, printer).await,
                    Command::Schedule => schedule::run(setup).await,
                    Command::Reload => schedule::reload(setup, printer),
                    Command::Status(args) => status::run(setup, args, printer).await,
                    Command::Check(args) => check::run(setup, args, printer).await,
                    Command::List(args) => list::run(setup, args, printer).await,
                    Command::Show(args) => show::run(setup, args, printer).await,
                    Command::Diff(args) => diff::run(setup, args, printer).await,
                    Command::Verify(args) => verify::run(setup, args, printer).await,
                    Command::Restore(args) => restore::run(setup, args, printer).await,
                    Command::Drill(args) => drill::run(setup, args, printer).await,
                    Command::Dump(args) => dump::run(setup, args, printer).await,
                    Command::Copy(args) => copy::run(setup, args, printer).await,
                    Command::Export(args) => export::run(setup, args, printer).await,
                    Command::Import(args) => import::run(setup, args, printer).await,
                    Command::Stats(args) => stats::run(setup, args, printer).await,
                    Command::Prune(args) => prune::run(setup, args, printer).await,
                    Command::Hold(args) => hold::hold(setup, args, printer).await,
                    Command::Release(args) => hold::release(setup, args, printer).await,
                    Command::Forget(args) => hold::forget(setup, args, printer).await,
                    Command::Notify(command) => notify::run(setup, command, printer).await,
                    Command::Catalog(command) => catalog::run(setup, command, printer).await,
                    Command::Config(_) | Command::Completions(_) | Command::Strategies => {
                        Ok(Exit::Done)
                    }
                }
            })
        }
        None => match top.into_args() {
            Some(args) => setup::with_runtime(&global, false, async |setup| {
                run::run(setup, args, printer).await
            }),
            None => {
                printer.note(&Cli::command().render_help().ansi().to_string());
                Ok(Exit::Usage)
            }
        },
    }
}

fn exit_of(error: &anyhow::Error) -> Exit {
    if error.is::<UsageError>() || error.is::<ConfigErrors>() || error.is::<FindError>() {
        return Exit::Usage;
    }
    let engine = match error.downcast_ref::<DaemonError>() {
        Some(DaemonError::Nothing) => return Exit::Usage,
        Some(DaemonError::State(error)) => Some(error),
        _ => error.downcast_ref::<EngineError>(),
    };
    match engine {
        Some(EngineError::Locked { .. } | EngineError::Scheduled { .. }) => Exit::Locked,
        Some(EngineError::Request(_)) => Exit::Usage,
        Some(EngineError::Damaged { .. } | EngineError::BadFile { .. }) => Exit::Damaged,
        _ => Exit::Failed,
    }
}
