//! The configuration: TOML files and the environment, to validated instances and strategies.
//!
//! This room knows how a configuration is written, and reports everything that is wrong with it at
//! once, with file, line, column and key. What a source, storage, notifier or compression can be
//! told belongs to their rooms: their types give the schema, the checks and the reference of their
//! part. It is the door to the environment, and looks at no system that is configured: that is
//! `backup check`.
//!
//! One way through: the text becomes a tree of values and a map of their places (`document`). The
//! tree is walked along the JSON Schema of the types, which puts variables and secrets in (`walk`,
//! `format`, `values`), and is read into the types (`resolve`). Checks that need more than one
//! value run on those (`whole`; rules of retention against schedules in `on_schedule`). `check`
//! collects the mistakes on the way. `advice` is about settings that work and are rarely meant, and
//! `own_folders` names the folders that the program itself writes to. To add a setting: a field in
//! `file` (of a drill in `drill`), with its comment.

mod advice;
mod check;
mod document;
mod drill;
mod error;
mod file;
mod format;
mod hooks;
mod host;
mod masked;
mod on_schedule;
mod own_folders;
mod resolve;
mod rules;
mod schema;
mod values;
mod walk;
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::{ErrorCode, Name, read_input};
use crate::source::process::Environment;

pub use drill::{
    CommandCheck, Drill, DrillCheck, FileCheck, Measure, Parses, QueryCheck, ReferencesCheck,
    ShrinkCheck,
};
pub use error::{ConfigError, ConfigErrors, FindError};
pub use file::{Daemon, Encryption, Instance, SourceRules, StorageRules, Strategy, Verification};
pub use hooks::Hooks;
pub use host::Host;
pub use rules::Rules;
pub use schema::schema;
pub use values::environment;

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
            let is_daemon = several && file.file_name().is_some_and(|name| name == DAEMON_FILE);
            let read = read(&file).and_then(|text| {
                if is_daemon {
                    daemon = Some(resolve::daemon(&file, &text, &environment)?);
                } else {
                    instances.push(parse(&file, &text, &environment)?);
                }
                Ok(())
            });
            errors.extend(read.err().into_iter().flat_map(|wrong| wrong.0));
        }
        errors.extend(twins(&instances));
        own_folders::introduce(&mut instances);
        let daemon = match instances.as_slice() {
            [only] if daemon.is_none() => Daemon {
                max_concurrent: only.max_concurrent.unwrap_or(1),
                listen: only.listen,
                listen_hosts: only.listen_hosts.clone(),
            },
            several => {
                errors.extend(several.iter().flat_map(process_settings));
                daemon.unwrap_or_default()
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
                    "write one, or name it with `--config FILE` or the variable `BACKUP_CONFIG`";
                let code = ErrorCode::ConfigNotFound;
                return Err(ConfigError::of_file(&self.file, code, message, Some(hint)).into());
            }
        };
        if !chosen.is_dir() {
            return Ok(vec![chosen.to_owned()]);
        }
        let unreadable = |error: std::io::Error| {
            let message = format!("Could not read the folder: {error}");
            ConfigError::of_file(chosen, ErrorCode::ConfigUnreadable, message, None)
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
            let message = "There is no `*.toml` in this folder";
            return Err(
                ConfigError::of_file(chosen, ErrorCode::ConfigNotFound, message, None).into()
            );
        }
        Ok(files)
    }
}

/// A configuration is small; a larger file is a mistake.
const FILE_BYTES: u64 = 4 << 20;

/// The text of a file.
fn read(file: &Path) -> Result<String, ConfigErrors> {
    let (code, message) = match read_input(file, FILE_BYTES).map(String::from_utf8) {
        Ok(Ok(text)) => return Ok(text),
        Ok(Err(_)) => (ErrorCode::ConfigUnreadable, "Not UTF-8, which TOML must be".to_owned()),
        Err(error) => {
            let is_there = error.kind() != std::io::ErrorKind::NotFound;
            let code =
                if is_there { ErrorCode::ConfigUnreadable } else { ErrorCode::ConfigNotFound };
            (code, format!("Could not read it: {error}"))
        }
    };
    Err(ConfigError::of_file(file, code, message, None).into())
}

/// Refuses files that describe the same instance.
fn twins(instances: &[Instance]) -> Vec<ConfigError> {
    let mut seen: BTreeMap<&Name, &Path> = BTreeMap::new();
    let twin = |instance: &'_ Instance, first: &Path| {
        let message = format!("`{}` is described by `{}` already", instance.name, first.display());
        let hint = "give each instance a name of its own, or describe it in one file";
        let code = ErrorCode::ConfigConflict;
        ConfigError {
            key: "instance".to_owned(),
            ..ConfigError::of_file(&instance.file, code, message, Some(hint))
        }
    };
    let mut errors = Vec::new();
    for instance in instances {
        if let Some(first) = seen.insert(&instance.name, &instance.file) {
            errors.push(twin(instance, first));
        }
    }
    errors
}

/// Refuses settings of the scheduler in the file of an instance, where that is one of several.
fn process_settings(instance: &Instance) -> Vec<ConfigError> {
    let set = [
        ("listen", instance.listen.is_some()),
        ("listen_hosts", instance.listen_hosts.is_some()),
        ("max_concurrent", instance.max_concurrent.is_some()),
    ];
    let wrong = |key: &str| {
        let message = "One scheduler looks after every file of this folder";
        let hint = format!("set it in the file `{DAEMON_FILE}` of the folder");
        ConfigError {
            key: key.to_owned(),
            ..ConfigError::of_file(
                &instance.file,
                ErrorCode::ConfigUnknownKey,
                message,
                Some(&hint),
            )
        }
    };
    set.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| wrong(key)).collect()
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

fn unknown<'n>(what: &'static str, name: &str, known: impl Iterator<Item = &'n Name>) -> FindError {
    FindError::Unknown { what, name: name.to_owned(), known: known.map(Name::to_string).collect() }
}

impl Settings {
    /// The instance of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_instance(&self, name: &str) -> Result<&Instance, FindError> {
        self.instances.iter().find(|instance| instance.name.as_str() == name).ok_or_else(|| {
            unknown("instance", name, self.instances.iter().map(|instance| &instance.name))
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
            [] => {
                let known = self.instances.iter().flat_map(|instance| instance.strategies.keys());
                Err(unknown("strategy", name, known))
            }
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
    /// Whether this is the other one, read again from the same text with other secrets.
    pub fn has_other_secrets(&self, other: &Self) -> bool {
        let (Some((text, secrets)), Some((other_text, other_secrets))) =
            (&self.digests, &other.digests)
        else {
            return false;
        };
        (&self.file, text) == (&other.file, other_text) && secrets != other_secrets
    }

    /// The strategy of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_strategy(&self, name: &str) -> Result<&Strategy, FindError> {
        self.strategies.get(name).ok_or_else(|| unknown("strategy", name, self.strategies.keys()))
    }
}

#[cfg(test)]
mod tests;
