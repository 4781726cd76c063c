//! The configuration: TOML files and the environment, to validated instances and strategies.
//!
//! This room knows how a configuration is written, and reports everything that is wrong with it at
//! once, with file, line, column and key. What a source, storage, notifier or compression can be
//! told belongs to their rooms: their types give the schema, the checks and the reference of their
//! part. It is the door to the environment, and looks at no system that is configured: that is
//! `backup check`.
//!
//! One way through: the text becomes a tree with places (`document`), variables and secrets are put
//! in (`values`), the tree is walked along the JSON Schema of the types (`check`, `format`), what
//! only the whole can tell is checked (what retention comes to on a schedule by `on_schedule`), and
//! then it is read into its types (`resolve`). What works and is rarely meant is told by `advice`.
//! To add a setting: a field in `file` (of a drill in `drill`), with its comment, and here.

mod advice;
mod check;
mod document;
mod drill;
mod error;
mod file;
mod format;
mod hooks;
mod on_schedule;
mod resolve;
mod rules;
mod schema;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use serde_json::{Value, json};

pub use drill::{
    CommandCheck, Drill, DrillCheck, FileCheck, Measure, Parses, QueryCheck, ReferencesCheck,
    ShrinkCheck,
};
pub use error::{ConfigError, ConfigErrors, FindError};
pub use hooks::Hooks;
pub use rules::{Rules, StorageRules};
pub use schema::schema;
pub use values::environment;

use crate::model::{Name, Rate, Span};
use crate::pipeline::{CompressionConfig, Recipient};
use crate::report::notify::Notify;
use crate::retention::Policy;
use crate::schedule::{Missed, Retry, Schedule};
use crate::source::SourceConfig;
use crate::source::process::Environment;
use crate::storage::StorageConfig;

/// All that is configured.
#[derive(Clone)]
pub struct Settings {
    /// The instances, one a file, in the order of the files' names. At least one.
    pub instances: Vec<Instance>,
    /// What concerns the scheduler and no instance.
    pub daemon: Daemon,
    /// The environment that they were read with.
    pub environment: Environment,
}

/// Settings of the scheduler: of the only file, or of `daemon.toml` in a folder of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// How many strategies run at a time, at least 1.
    pub max_concurrent: usize,
    /// Where it tells how it goes.
    pub listen: Option<SocketAddr>,
}

/// An application that is protected: what one configuration file describes. All paths are absolute.
#[derive(Clone)]
pub struct Instance {
    /// The file.
    pub file: PathBuf,
    /// The instance's name.
    pub name: Name,
    /// Folder of the catalog and the locks.
    pub state_dir: PathBuf,
    /// Private folder for what cannot be streamed.
    pub work_dir: PathBuf,
    /// What bytes come from.
    pub sources: BTreeMap<Name, SourceConfig>,
    /// What is started around each of the sources.
    pub source_hooks: BTreeMap<Name, Hooks>,
    /// Where snapshots are kept.
    pub storages: BTreeMap<Name, StorageConfig>,
    /// What each of the storages says of retention; [`Instance::rules`] puts it together with what
    /// a strategy says.
    pub storage_rules: BTreeMap<Name, StorageRules>,
    /// Who can read what is stored; everyone who can read the storage, where it is none.
    pub encryption: Option<Encryption>,
    /// How it is compressed.
    pub compression: CompressionConfig,
    /// Threads that compress, at least 1.
    pub threads: usize,
    /// Limit on what is read from the sources.
    pub read_rate: Option<Rate>,
    /// Limit on what is sent to each storage.
    pub upload_rate: Option<Rate>,
    /// How far the program gives way to others, 0 to 19.
    pub nice: Option<i32>,
    /// How many strategies the scheduler runs at a time, at least 1, where this file says so.
    pub max_concurrent: Option<usize>,
    /// Where the scheduler tells how it goes, where this file says so.
    pub listen: Option<SocketAddr>,
    /// How long a run may take to end in order when it is asked to.
    pub stop_grace: Span,
    /// What is backed up, where to and when.
    pub strategies: BTreeMap<Name, Strategy>,
    /// Who is told what happens. The names of strategies in it are all in [`Instance::strategies`].
    pub notify: BTreeMap<Name, Notify>,
    /// By JSON pointer into the file, strings as they were written that variables were put into.
    written: BTreeMap<String, String>,
    /// What works, with a drawback.
    notes: Vec<String>,
}

/// Who can read what is stored.
#[derive(Clone)]
pub struct Encryption {
    /// Public keys; at least one.
    pub recipients: Vec<Recipient>,
}

/// A named choice of sources, storages, schedule and retention.
#[derive(Debug, Clone)]
pub struct Strategy {
    /// Its name.
    pub name: Name,
    /// Whether its schedule is followed.
    pub active: bool,
    /// When it is due; by hand only, where it is none.
    pub schedule: Option<Schedule>,
    /// What becomes of runs that were missed.
    pub missed: Missed,
    /// How long after its time a run begins at most.
    pub jitter: Option<Span>,
    /// The zone of the schedule, and of the periods of the retention.
    pub timezone: Tz,
    /// The sources, in the order they are taken; each once, all of them in [`Instance::sources`].
    /// Where there are none, the strategy cannot be run ([`Strategy::check_runnable`]): this
    /// configuration prunes, lists, verifies and restores what another backs up.
    pub sources: Vec<Name>,
    /// The storages; at least one, each once, all of them in [`Instance::storages`].
    pub storages: Vec<Name>,
    /// What is kept, unless a storage says otherwise; everything, where it is none. What holds on a
    /// storage, [`Instance::rules`] says.
    pub retention: Option<Policy>,
    /// The most that one pruning deletes unless it is forced, in percent of a storage's snapshots
    /// of this strategy, 1 to 100, unless a storage says otherwise.
    pub max_delete_percent: u8,
    /// A run that takes longer is cancelled; more than 0.
    pub timeout: Option<Span>,
    /// A source that gives nothing for so long is given up; more than 0.
    pub no_progress_timeout: Span,
    /// How often the scheduler tries again, when a run fails for a reason that may pass.
    pub retry: Retry,
    /// How long after its time a snapshot must be there, where that is said.
    pub stale_after: Option<Span>,
    /// When what is stored is looked at again, where it is.
    pub verify: Option<Verification>,
    /// When and how its snapshots are restored for trial.
    pub drill: Drill,
    /// What is started around a run.
    pub hooks: Hooks,
}

/// When what is stored is looked at again.
#[derive(Debug, Clone)]
pub struct Verification {
    /// When.
    pub schedule: Schedule,
    /// How much of the stored bytes is read each time, in percent, 0 to 100.
    pub read_data_percent: u8,
}

/// The file of a folder of configurations that is not of an instance.
const DAEMON_FILE: &str = "daemon.toml";

/// Where a configuration is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locations {
    /// The file that is read unless another is named.
    pub file: PathBuf,
    /// The folder that is read when that file is not there.
    pub folder: PathBuf,
}

impl Default for Locations {
    fn default() -> Self {
        Self { file: "/etc/backup/backup.toml".into(), folder: "/etc/backup/strategies".into() }
    }
}

/// Reads the configuration: the file or folder `config`, else the one that the variable
/// `BACKUP_CONFIG` names, else the default [`Locations`]. A folder stands for every `*.toml` in it.
///
/// # Errors
/// Everything that is wrong with all of the files.
pub fn load(config: Option<&Path>, environment: Environment) -> Result<Settings, ConfigErrors> {
    Locations::default().load(config, environment)
}

impl Locations {
    /// As [`load`], with these defaults.
    ///
    /// # Errors
    /// Everything that is wrong with all of the files.
    pub fn load(
        &self,
        config: Option<&Path>,
        environment: Environment,
    ) -> Result<Settings, ConfigErrors> {
        let mut instances: Vec<Instance> = Vec::new();
        let mut errors: Vec<ConfigError> = Vec::new();
        let mut daemon = None;
        let files = self.files(config, &environment)?;
        let several = files.len() > 1;
        for file in files {
            let text = match std::fs::read(&file).map(String::from_utf8) {
                Ok(Ok(text)) => text,
                Ok(Err(_)) => {
                    errors.push(ConfigError::of_file(&file, "Not UTF-8, which TOML must be", None));
                    continue;
                }
                Err(error) => {
                    errors.push(ConfigError::of_file(
                        &file,
                        format!("Could not read it: {error}"),
                        None,
                    ));
                    continue;
                }
            };
            if several && file.file_name().is_some_and(|name| name == DAEMON_FILE) {
                match resolve::daemon(&file, &text, &environment) {
                    Ok(read) => {
                        daemon = Some(Daemon {
                            max_concurrent: read.max_concurrent,
                            listen: read.listen,
                        });
                    }
                    Err(wrong) => errors.extend(wrong.0),
                }
                continue;
            }
            match parse(&file, &text, &environment) {
                Ok(instance) => instances.push(instance),
                Err(wrong) => errors.extend(wrong.0),
            }
        }
        let mut seen: BTreeMap<&Name, &Path> = BTreeMap::new();
        for instance in &instances {
            if let Some(first) = seen.insert(&instance.name, &instance.file) {
                errors.push(ConfigError {
                    key: "instance".to_owned(),
                    ..ConfigError::of_file(
                        &instance.file,
                        format!(
                            "`{}` is described by `{}` already",
                            instance.name,
                            first.display()
                        ),
                        Some(
                            "give each instance a name of its own, or describe it in one file"
                                .to_owned(),
                        ),
                    )
                });
            }
        }
        let daemon = match instances.as_slice() {
            [only] if daemon.is_none() => {
                Daemon { max_concurrent: only.max_concurrent.unwrap_or(1), listen: only.listen }
            }
            several => {
                for instance in several {
                    errors.extend(process_settings(instance));
                }
                daemon.unwrap_or(Daemon { max_concurrent: 1, listen: None })
            }
        };
        if errors.is_empty() {
            Ok(Settings { instances, daemon, environment })
        } else {
            Err(ConfigErrors(errors))
        }
    }

    /// The files to read; at least one.
    fn files(
        &self,
        config: Option<&Path>,
        environment: &Environment,
    ) -> Result<Vec<PathBuf>, ConfigErrors> {
        let named =
            config.or_else(|| values::variable(environment, "BACKUP_CONFIG").map(Path::new));
        let chosen = match named {
            Some(path) => path,
            None if self.file.exists() => &self.file,
            None if self.folder.exists() => &self.folder,
            None => {
                let message =
                    format!("There is no configuration here, nor in `{}`", self.folder.display());
                let hint =
                    "write one, or name it with `--config FILE` or the variable `BACKUP_CONFIG`"
                        .to_owned();
                return Err(ConfigError::of_file(&self.file, message, Some(hint)).into());
            }
        };
        if !chosen.is_dir() {
            return Ok(vec![chosen.to_owned()]);
        }
        let unreadable = |error: std::io::Error| {
            ConfigError::of_file(chosen, format!("Could not read the folder: {error}"), None)
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(chosen).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let hidden =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if path.extension().is_some_and(|extension| extension == "toml") && !hidden {
                files.push(path);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(
                ConfigError::of_file(chosen, "There is no `*.toml` in this folder", None).into()
            );
        }
        Ok(files)
    }
}

/// What is wrong with settings of the scheduler in the file of an instance, where that is one of
/// several.
fn process_settings(instance: &Instance) -> impl Iterator<Item = ConfigError> {
    let set = [
        ("listen", instance.listen.is_some()),
        ("max_concurrent", instance.max_concurrent.is_some()),
    ];
    let file = instance.file.clone();
    set.into_iter().filter(|(_, is_set)| *is_set).map(move |(key, _)| ConfigError {
        key: key.to_owned(),
        ..ConfigError::of_file(
            &file,
            "One scheduler looks after every file of this folder",
            Some(format!("set it in the file `{DAEMON_FILE}` of the folder")),
        )
    })
}

/// Reads the text of one configuration file. Relative paths in it are relative to the folder of
/// `file`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(file: &Path, text: &str, environment: &Environment) -> Result<Instance, ConfigErrors> {
    resolve::instance(file, text, environment)
}

/// The folder of the catalog and the locks, unless it is configured: `/var/lib/holdfast` for root;
/// else `holdfast` in `$XDG_STATE_HOME`, or in `~/.local/state`.
pub fn default_state_dir(environment: &Environment) -> PathBuf {
    const FOR_ROOT: &str = "/var/lib/holdfast";
    if rustix::process::geteuid().is_root() {
        return FOR_ROOT.into();
    }
    // A relative path is not one, by the XDG base directory specification.
    let folder = |name: &str| {
        values::variable(environment, name).map(PathBuf::from).filter(|path| path.is_absolute())
    };
    let state =
        folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
    state.map_or_else(|| FOR_ROOT.into(), |state| state.join("holdfast"))
}

/// Where files go that are needed for a moment only: `$TMPDIR`, or `/tmp`.
pub fn temporary_dir(environment: &Environment) -> PathBuf {
    let folder = values::variable(environment, "TMPDIR")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    folder.unwrap_or_else(|| "/tmp".into())
}

impl Settings {
    /// The instance of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_instance(&self, name: &str) -> Result<&Instance, FindError> {
        self.instances.iter().find(|instance| instance.name.as_str() == name).ok_or_else(|| {
            FindError::Unknown {
                what: "instance",
                name: name.to_owned(),
                known: self.instances.iter().map(|instance| instance.name.to_string()).collect(),
            }
        })
    }

    /// The strategy of a name, of the named instance or of the only one that has it.
    ///
    /// # Errors
    /// When there is none, or several have it.
    pub fn find_strategy(
        &self,
        name: &str,
        instance: Option<&str>,
    ) -> Result<(&Instance, &Strategy), FindError> {
        if let Some(instance) = instance {
            let instance = self.find_instance(instance)?;
            return Ok((instance, instance.find_strategy(name)?));
        }
        let found: Vec<(&Instance, &Strategy)> = self
            .instances
            .iter()
            .filter_map(|instance| {
                instance.strategies.get(name).map(|strategy| (instance, strategy))
            })
            .collect();
        match found.as_slice() {
            [only] => Ok(*only),
            [] => Err(FindError::Unknown {
                what: "strategy",
                name: name.to_owned(),
                known: self
                    .instances
                    .iter()
                    .flat_map(|instance| instance.strategies.keys())
                    .map(Name::to_string)
                    .collect(),
            }),
            _ => Err(FindError::Ambiguous {
                name: name.to_owned(),
                instances: found.iter().map(|(instance, _)| instance.name.to_string()).collect(),
            }),
        }
    }
}

impl Strategy {
    /// Refuses a strategy that has nothing to back up.
    ///
    /// # Errors
    /// When it has no sources.
    pub fn check_runnable(&self) -> Result<(), FindError> {
        if self.sources.is_empty() {
            Err(FindError::PruneOnly { name: self.name.to_string() })
        } else {
            Ok(())
        }
    }
}

impl Instance {
    /// The strategy of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_strategy(&self, name: &str) -> Result<&Strategy, FindError> {
        self.strategies.get(name).ok_or_else(|| FindError::Unknown {
            what: "strategy",
            name: name.to_owned(),
            known: self.strategies.keys().map(Name::to_string).collect(),
        })
    }

    /// The strategy with all that it uses, in the shape of a configuration file that had nothing
    /// else, for the facts and for an operator to look at. Secrets are `***`. A string that
    /// variables were put into is shown as it was written: nobody can tell which variables are
    /// secret.
    pub fn masked(&self, strategy: &Strategy) -> Value {
        let mut sources = serde_json::Map::new();
        for name in &strategy.sources {
            let mut source = json!(self.sources.get(name));
            if let (Value::Object(keys), Value::Object(hooks)) =
                (&mut source, json!(self.source_hooks.get(name)))
            {
                keys.extend(hooks);
            }
            sources.insert(name.to_string(), source);
        }
        let mut storages = serde_json::Map::new();
        for name in &strategy.storages {
            let mut storage = json!(self.storages.get(name));
            if let (Value::Object(keys), Value::Object(rules)) =
                (&mut storage, json!(self.storage_rules.get(name)))
            {
                keys.extend(rules);
            }
            storages.insert(name.to_string(), storage);
        }
        // A brake on what is never started is nothing to read about.
        let prunes =
            strategy.storages.iter().any(|name| self.rules(strategy, name).policy.is_some());
        let recipients: Option<Vec<String>> = self
            .encryption
            .as_ref()
            .map(|encryption| encryption.recipients.iter().map(ToString::to_string).collect());
        let mut masked = json!({
            "instance": self.name,
            "state_dir": self.state_dir.display().to_string(),
            "work_dir": self.work_dir.display().to_string(),
            "sources": sources,
            "storages": storages,
            "encryption": recipients.map(|recipients| json!({ "recipients": recipients })),
            "compression": self.compression,
            "threads": self.threads,
            "read_rate": self.read_rate,
            "upload_rate": self.upload_rate,
            "nice": self.nice,
            "strategies": {
                strategy.name.as_str(): {
                    "active": strategy.active,
                    "schedule": strategy.schedule.as_ref().map(|schedule| &schedule.line),
                    "missed": strategy.schedule.as_ref().map(|_| strategy.missed),
                    "jitter": strategy.jitter,
                    "timezone": strategy.timezone.name(),
                    "sources": Some(&strategy.sources).filter(|sources| !sources.is_empty()),
                    "storages": strategy.storages,
                    "retention": strategy.retention,
                    "max_delete_percent": prunes.then_some(strategy.max_delete_percent),
                    "timeout": strategy.timeout,
                    "no_progress_timeout": strategy.no_progress_timeout,
                    "retry": strategy.schedule.as_ref().map(|_| strategy.retry),
                    "stale_after": strategy.stale_after,
                    "verify": strategy.verify.as_ref().map(|verify| {
                        json!({
                            "schedule": verify.schedule.line,
                            "read_data_percent": verify.read_data_percent,
                        })
                    }),
                    "drill": strategy.drill.table,
                    "before": strategy.hooks.before,
                    "after": strategy.hooks.after,
                    "on_failure": strategy.hooks.on_failure,
                },
            },
        });
        drop_nulls(&mut masked);
        for (pointer, written) in &self.written {
            // What hides itself stays hidden: beside the variable there may be something that is
            // secret.
            if let Some(Value::String(value)) =
                masked.pointer_mut(pointer).filter(|value| *value != "***")
            {
                value.clone_from(written);
            }
        }
        masked
    }
}

/// What is not set is left out, as in a file.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(object) = value {
        object.retain(|_, value| !value.is_null());
        object.values_mut().for_each(drop_nulls);
    }
}

#[cfg(test)]
mod tests;
