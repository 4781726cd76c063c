//! What commands need before they begin: the runtime, the log, the configuration, the storages, the
//! keys.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::Args;
use futures::future::join_all;
use tracing_subscriber::EnvFilter;

use super::progress::{Display, LogWriter};
use super::threads::{WORKERS, ensure_threads, reserve_threads};
use super::{Exit, Global, UsageError, signals};
use crate::config::{self, FindError, Instance, Settings, Strategy};
use crate::engine::{
    self, Engine, EngineError, Listing, OpenStorage, PruneScope, Selection, Side, Snapshot,
    Vanished,
};
use crate::model::{Cancel, Clock, Name};
use crate::pipeline::Identity;
use crate::source::OwnFolder;
use crate::source::process::Environment;
use crate::storage::{Patience, StorageConfig};

pub(super) struct Setup {
    pub(super) global: Global,
    pub(super) environment: Environment,
    /// Cancelled by the signals that ask for an end.
    pub(super) cancel: Cancel,
}

/// Threads that may block: beyond so many, work waits for others to end.
const MOST_THREADS: usize = 8_192;

/// Runs an async command with the log on and signals watched. What a `scheduler` does stands in its
/// log, on a terminal too.
pub(super) fn with_runtime(
    global: &Global,
    scheduler: bool,
    command: impl AsyncFnOnce(&Setup) -> anyhow::Result<Exit>,
) -> anyhow::Result<Exit> {
    start_log(global, scheduler);
    ensure_threads().map_err(EngineError::NoThreads)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        // Each strategy that is looked after has one or two, which mostly wait.
        .max_blocking_threads(MOST_THREADS)
        // Those that were reserved stay.
        .thread_keep_alive(Duration::from_secs(100 * 366 * 86_400))
        .enable_all()
        .build()
        .context("Could not start the runtime")?;
    reserve_threads(&runtime).map_err(EngineError::NoThreads)?;
    let setup =
        Setup { global: global.clone(), environment: config::environment(), cancel: Cancel::new() };
    let exit = runtime.block_on(async {
        signals::watch(&setup.cancel, scheduler)?;
        command(&setup).await
    });
    // Nothing of a command outlives it; a thread that still waits on a server is not waited for.
    runtime.shutdown_timeout(Duration::from_millis(200));
    exit
}

/// Logs of this program only: what libraries log may tell more than it should.
fn start_log(global: &Global, scheduler: bool) {
    let terminal = std::io::stderr().is_terminal();
    let level = match (global.quiet, global.verbose, terminal) {
        (true, ..) => "error",
        (_, true, _) => "debug",
        // On a terminal the progress and the closing summary say the same better.
        (_, _, true) if !scheduler => "warn",
        _ => "info",
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("off,holdfast={level}")))
        .with_target(false)
        .with_ansi(terminal)
        // They would be printed, and printing what cannot be printed panics.
        .log_internal_errors(false)
        .with_writer(|| LogWriter);
    // A second call in one process changes nothing. What a scheduler says is read by machines where
    // no terminal is: each line an object, with the run that it belongs to.
    let machine = global.json || (scheduler && !terminal);
    let _ =
        if machine { builder.json().flatten_event(true).try_init() } else { builder.try_init() };
}

/// Which storages a reading command looks into.
#[derive(Debug, Clone, Args)]
pub(super) struct StorageArgs {
    /// Look into this storage only: a name of the configuration, or, with no configuration at all,
    /// a path or s3://bucket/prefix (endpoint, region and credentials as the AWS tools take them)
    #[arg(long, value_name = "STORAGE")]
    pub(super) storage: Option<String>,
}

/// The keys that open encrypted snapshots.
#[derive(Debug, Clone, Args)]
pub(super) struct IdentityArgs {
    /// File with the age identity (`age-keygen -o FILE`) that opens encrypted snapshots; may be
    /// repeated
    #[arg(long, value_name = "FILE")]
    pub(super) identity_file: Vec<PathBuf>,
}

impl IdentityArgs {
    pub(super) fn load(&self) -> anyhow::Result<Vec<Identity>> {
        let mut identities = Vec::new();
        for path in &self.identity_file {
            identities.extend(engine::read_identities(path)?);
        }
        Ok(identities)
    }
}

pub(super) struct Reading {
    pub(super) engine: Engine,
    pub(super) storages: Vec<OpenStorage>,
    /// Storages whose configuration cannot be used.
    unopened: Vec<(Name, EngineError)>,
    pub(super) selection: Selection,
    pub(super) instance: Option<Instance>,
    display: Option<Display>,
}

impl Reading {
    /// Ends the display of progress, before data is printed while it is read.
    pub(super) fn end_display(&mut self) {
        self.display = None;
    }

    pub(super) async fn list(&self) -> Listing {
        let mut listing = engine::list(&self.engine, &self.storages, &self.selection).await;
        let unopened = self.unopened.iter();
        listing.unlisted.extend(unopened.map(|(name, error)| (name.clone(), engine::chain(error))));
        listing
    }

    /// What is gone of what was listed, though the rules would keep it. Without a configuration
    /// there are none.
    pub(super) async fn vanished(&self, listing: &Listing) -> Vec<Vanished> {
        let Some(instance) = &self.instance else { return Vec::new() };
        let only = self.selection.strategy.as_ref();
        engine::vanished(&self.engine, instance, &self.storages, listing, only).await
    }

    /// Itself, for what must reach every storage.
    pub(super) fn of_all(mut self) -> anyhow::Result<Self> {
        match self.unopened.pop() {
            Some((_, error)) => Err(error.into()),
            None => Ok(self),
        }
    }

    /// The copies, the best to read first: of those that nothing is known against the first in the
    /// order of the storages, then those that were found damaged, then those whose manifest cannot
    /// be read.
    fn ranked(&self, copies: &[Snapshot]) -> Vec<Side> {
        let side = |copy: &Snapshot| {
            let storage = self.storages.iter().find(|storage| storage.name == copy.storage)?;
            Some(Side { storage: storage.clone(), snapshot: copy.clone() })
        };
        let mut sides: Vec<Side> = copies.iter().filter_map(side).collect();
        let rank = |Side { snapshot, .. }: &Side| {
            let is_flawed = snapshot.damage.is_some() || !snapshot.flaws.is_empty();
            (snapshot.manifest.is_err(), is_flawed)
        };
        sides.sort_by_key(rank);
        sides
    }

    /// The copies to restore from, the best first. Warns of what makes `latest` doubtful, and where
    /// the first in the order of the storages is not the best.
    pub(super) fn choose(
        &self,
        listing: &Listing,
        wanted: &str,
        at: Option<DateTime<Utc>>,
    ) -> anyhow::Result<(Side, Vec<Side>)> {
        let copies = engine::find(listing, wanted, at)?;
        let sides = self.ranked(&copies);
        let Some(side) = sides.first().cloned() else {
            return Err(EngineError::NotFound(format!("There is no snapshot `{wanted}`")).into());
        };
        if let Some(first) = copies.first().filter(|first| first.storage != side.storage.name) {
            let problem = match &first.manifest {
                Err(error) => format!("`manifest.json`: {error}"),
                Ok(_) => first.damage.clone().unwrap_or_else(|| first.flaws.join(", ")),
            };
            tracing::warn!(
                "The copy of `{}` in `{}` is damaged: {problem}. Reading the one in `{}`",
                first.id,
                first.storage,
                side.storage.name
            );
        }
        if wanted == "latest" {
            for doubt in listing.doubts() {
                tracing::warn!("{doubt}");
            }
        }
        Ok((side, sides))
    }

    /// A copy of the snapshot whose manifest can be read.
    pub(super) fn readable(&self, listing: &Listing, wanted: &str) -> anyhow::Result<Side> {
        let copies = engine::find(listing, wanted, None)?;
        let best = self.ranked(&copies).into_iter().next();
        best.filter(|side| side.snapshot.manifest.is_ok()).ok_or_else(|| {
            let problem = |copy: &Snapshot| {
                copy.manifest.as_ref().err().map(|error| format!("in `{}`: {error}", copy.storage))
            };
            let problems: Vec<String> = copies.iter().filter_map(problem).collect();
            let problems = problems.join("; ");
            let message = format!("No copy of `{wanted}` has a readable manifest: {problems}");
            EngineError::NotFound(message).into()
        })
    }
}

pub(super) struct Deleting {
    pub(super) engine: Engine,
    pub(super) instance: Instance,
    storages: Vec<Result<OpenStorage, (Name, String)>>,
    strategy: Option<Name>,
    storage: Option<Name>,
    display: Option<Display>,
}

impl Deleting {
    pub(super) fn scope(&self) -> PruneScope<'_> {
        PruneScope {
            instance: &self.instance,
            storages: &self.storages,
            strategy: self.strategy.as_ref(),
            storage: self.storage.as_ref(),
        }
    }

    /// The snapshots of the scope, in every storage that could be opened.
    pub(super) async fn list(&self) -> Listing {
        let opened: Vec<OpenStorage> =
            self.storages.iter().filter_map(|open| open.as_ref().ok()).cloned().collect();
        let selection = Selection {
            instance: Some(self.instance.name.clone()),
            strategy: self.strategy.clone(),
        };
        engine::list(&self.engine, &opened, &selection).await
    }

    /// What is gone of the scope, though the rules would keep it.
    pub(super) async fn vanished(&self, listing: &Listing) -> Vec<Vanished> {
        let is_meant = |name: &Name| self.storage.as_ref().is_none_or(|wanted| wanted == name);
        let opened = self.storages.iter().filter_map(|open| open.as_ref().ok());
        let opened: Vec<OpenStorage> =
            opened.filter(|open| is_meant(&open.name)).cloned().collect();
        let (engine, strategy) = (&self.engine, self.strategy.as_ref());
        engine::vanished(engine, &self.instance, &opened, listing, strategy).await
    }

    /// Ends the display of progress, before something is printed or asked.
    pub(super) fn end_display(&mut self) {
        self.display = None;
    }
}

/// For commands that have no engine, which has a clock.
pub(super) fn clock() -> Clock {
    Clock::system()
}

/// Asks on the terminal. Where there is none the command was meant as it stands.
pub(super) fn confirmed(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        return true;
    }
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok()
        && matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")
}

impl Setup {
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        Ok(config::load(self.global.config.as_deref(), self.environment.clone())?)
    }

    fn shows_progress(&self) -> bool {
        !self.global.quiet && !self.global.json
    }

    /// An engine for the instance, without a display of its progress.
    pub(super) fn quiet_engine(&self, instance: &Instance) -> Engine {
        let mut engine = Engine::new(instance.state_dir.clone(), self.environment.clone());
        engine.cancel = self.cancel.clone();
        engine.own_folders = instance.own_folders().into();
        engine.secrets = instance.secrets.clone().into();
        engine
    }

    /// An engine for the instance, its progress shown.
    pub(super) fn engine(&self, instance: &Instance) -> (Engine, Display) {
        let engine = self.quiet_engine(instance);
        let display = Display::start(&engine.progress, self.shows_progress());
        (engine, display)
    }

    /// The instance and strategy that `--strategy` means.
    pub(super) fn strategy(&self, strategy: &str) -> anyhow::Result<(Instance, Strategy)> {
        let settings = self.settings()?;
        let (instance, strategy) =
            settings.find_strategy(strategy, self.global.instance.as_deref())?;
        Ok((instance.clone(), strategy.clone()))
    }

    /// The instance of `strategy`, or the one that is named, or the only one.
    pub(super) fn instance(&self, strategy: Option<&str>) -> anyhow::Result<Instance> {
        let settings = self.settings()?;
        let wanted = self.global.instance.as_deref();
        Ok(match strategy {
            Some(strategy) => settings.find_strategy(strategy, wanted)?.0.clone(),
            None => pick_instance(&settings, wanted)?.clone(),
        })
    }

    /// The instance that the commands between storages work for, none where every storage is given
    /// by its address, and an engine for it.
    pub(super) fn between(
        &self,
        storages: &[&str],
        strategy: Option<&str>,
    ) -> anyhow::Result<(Option<Instance>, Engine, Display)> {
        let addresses = storages.iter().all(|storage| is_address(storage));
        let instance = if addresses { None } else { Some(self.instance(strategy)?) };
        let engine = match &instance {
            Some(instance) => self.quiet_engine(instance),
            None => {
                let state_dir = config::default_state_dir(&self.environment);
                let mut engine = Engine::new(state_dir, self.environment.clone());
                engine.cancel = self.cancel.clone();
                engine
            }
        };
        let display = Display::start(&engine.progress, self.shows_progress());
        Ok((instance, engine, display))
    }

    /// The name of `instance`, or else the one that is given with `--instance`.
    pub(super) fn instance_name(
        &self,
        instance: Option<&Instance>,
    ) -> anyhow::Result<Option<Name>> {
        match instance {
            Some(instance) => Ok(Some(instance.name.clone())),
            None => self.global.instance.as_deref().map(parse_name).transpose(),
        }
    }

    /// What a command works on that deletes: the instance that is meant, and all of its storages,
    /// opened or with the reason why not.
    pub(super) async fn deleting(
        &self,
        strategy: Option<&str>,
        storage: Option<&str>,
        patience: Patience,
    ) -> anyhow::Result<Deleting> {
        let instance = self.instance(strategy)?;
        let storage = storage.map(parse_name).transpose()?;
        if let Some(unknown) =
            storage.as_ref().filter(|name| !instance.storages.contains_key(*name))
        {
            return Err(no_storage(&instance, unknown.as_str()).into());
        }
        let (engine, display) = self.engine(&instance);
        let cancel = &engine.cancel;
        let opening = instance.storages.iter().map(|(name, config)| async move {
            let open = OpenStorage::open_with(name, config, patience, cancel).await;
            open.map_err(|error| (name.clone(), engine::chain(&error)))
        });
        let storages = join_all(opening).await;
        let strategy = strategy.map(parse_name).transpose()?;
        Ok(Deleting { engine, instance, storages, strategy, storage, display: Some(display) })
    }

    /// Opens what a reading command works on, with the configuration or without.
    pub(super) async fn reading(
        &self,
        storage: &StorageArgs,
        strategy: Option<&str>,
    ) -> anyhow::Result<Reading> {
        self.reading_with(storage, strategy, Patience::Unattended).await
    }

    /// The same for a command that shows something, and gives up a storage that does not answer.
    pub(super) async fn showing(
        &self,
        storage: &StorageArgs,
        strategy: Option<&str>,
    ) -> anyhow::Result<Reading> {
        self.reading_with(storage, strategy, Patience::Watched).await
    }

    async fn reading_with(
        &self,
        storage: &StorageArgs,
        strategy: Option<&str>,
        patience: Patience,
    ) -> anyhow::Result<Reading> {
        if let Some(address) = storage.storage.as_deref().filter(|text| is_address(text)) {
            return self.reading_address(address, strategy, patience).await;
        }
        let instance = self.instance(strategy)?;
        let (engine, display) = self.engine(&instance);
        let wanted = instance.storages.iter().filter(|(name, _)| {
            storage.storage.as_deref().is_none_or(|wanted| wanted == name.as_str())
        });
        let cancel = &engine.cancel;
        let opening = wanted.map(|(name, config)| async move {
            (name, OpenStorage::open_with(name, config, patience, cancel).await)
        });
        let (mut storages, mut unopened) = (Vec::new(), Vec::new());
        for (name, open) in join_all(opening).await {
            match open {
                Ok(open) => storages.push(open),
                Err(error) => unopened.push((name.clone(), error)),
            }
        }
        if storages.is_empty()
            && let Some((_, error)) = unopened.pop()
        {
            return Err(error.into());
        }
        if storages.is_empty() {
            return Err(
                no_storage(&instance, storage.storage.as_deref().unwrap_or_default()).into()
            );
        }
        let selection = Selection {
            instance: Some(instance.name.clone()),
            strategy: strategy.map(parse_name).transpose()?,
        };
        Ok(Reading {
            engine,
            storages,
            unopened,
            selection,
            instance: Some(instance),
            display: Some(display),
        })
    }

    /// Works on a storage by its address, as when the host is gone: no configuration, no local
    /// state.
    async fn reading_address(
        &self,
        address: &str,
        strategy: Option<&str>,
        patience: Patience,
    ) -> anyhow::Result<Reading> {
        let config = StorageConfig::from_address(address)?;
        let mut engine = Engine::stateless(self.environment.clone());
        engine.cancel = self.cancel.clone();
        engine.own_folders = config
            .folder()
            .map(|path| OwnFolder { what: "the storage".to_owned(), path: path.to_owned() })
            .into_iter()
            .collect();
        let display = Display::start(&engine.progress, self.shows_progress());
        let name = parse_name("storage")?;
        let open = OpenStorage::open_with(&name, &config, patience, &engine.cancel).await?;
        let storages = vec![open];
        let instance = self.instance_name(None)?;
        let strategy = strategy.map(parse_name).transpose()?;
        if strategy.is_some() && instance.is_none() {
            return Err(UsageError(
                "`--strategy` with the address of a storage needs `--instance` too".to_owned(),
            )
            .into());
        }
        let selection = Selection { instance, strategy };
        Ok(Reading {
            engine,
            storages,
            unopened: Vec::new(),
            selection,
            instance: None,
            display: Some(display),
        })
    }
}

/// The storage that `text` means: its address, or its name in the configuration.
pub(super) async fn open_storage(
    text: &str,
    instance: Option<&Instance>,
    cancel: &Cancel,
) -> anyhow::Result<OpenStorage> {
    if is_address(text) {
        return Ok(OpenStorage::open(
            &parse_name("storage")?,
            &StorageConfig::from_address(text)?,
            cancel,
        )
        .await?);
    }
    let found = instance
        .and_then(|instance| instance.storages.iter().find(|(name, _)| name.as_str() == text));
    match (found, instance) {
        (Some((name, config)), _) => Ok(OpenStorage::open(name, config, cancel).await?),
        (None, Some(instance)) => Err(no_storage(instance, text).into()),
        (None, None) => {
            Err(UsageError("Not the address of a storage: that has a `/` in it".to_owned()).into())
        }
    }
}

fn no_storage(instance: &Instance, text: &str) -> UsageError {
    // What is no name may be anything, and is not repeated.
    let text = text.parse::<Name>().map_or_else(|_| "***".to_owned(), |name| name.to_string());
    let known: Vec<&str> = instance.storages.keys().map(Name::as_str).collect();
    UsageError(format!(
        "There is no storage `{text}` in the configuration; there is {}. An address has a `/` in \
         it",
        known.join(", ")
    ))
}

/// Whether a storage is given by its address, and not by its name in the configuration.
fn is_address(text: &str) -> bool {
    text.contains('/') || text == "." || text == ".."
}

pub(super) fn parse_name(text: &str) -> anyhow::Result<Name> {
    text.parse().map_err(|error: crate::model::NameError| UsageError(error.to_string()).into())
}

/// The instances that are meant: the one that is named, or all.
pub(super) fn chosen<'a>(
    settings: &'a Settings,
    wanted: Option<&str>,
) -> Result<Vec<&'a Instance>, FindError> {
    match wanted {
        Some(wanted) => Ok(vec![settings.find_instance(wanted)?]),
        None => Ok(settings.instances.iter().collect()),
    }
}

/// The instance that is named, or the only one.
fn pick_instance<'a>(settings: &'a Settings, wanted: Option<&str>) -> anyhow::Result<&'a Instance> {
    if let Some(wanted) = wanted {
        return Ok(settings.find_instance(wanted)?);
    }
    match settings.instances.as_slice() {
        [only] => Ok(only),
        several => {
            let names: Vec<String> =
                several.iter().map(|instance| format!("`{}`", instance.name)).collect();
            let names = names.join(", ");
            Err(UsageError(format!(
                "Several instances are configured ({names}): choose one with `--instance`"
            ))
            .into())
        }
    }
}
