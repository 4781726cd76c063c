//! The shape of a configuration file, as it is written. The comments on the fields are the user's reference: they are in the schema.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::model::{Name, Rate, Span};
use crate::pipeline::CompressionConfig;
use crate::retention::Policy;
use crate::source::SourceConfig;
use crate::storage::StorageConfig;

/// The configuration of Holdfast for one instance: the application that is protected. In a string, `${NAME}` stands for the environment
/// variable `NAME`, and `$${` for `${` itself. A relative path is relative to the folder of this file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// The name of the application: the first folder of everything that is stored.
    pub instance: Name,
    /// Folder of the catalog and the locks. Unless set, `/var/lib/holdfast` for root, and `holdfast` in the user's state folder for others.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// Private folder for what cannot be streamed. Unless set, `work` in `state_dir`.
    #[serde(default)]
    pub work_dir: Option<PathBuf>,
    /// What bytes come from, by name.
    #[schemars(extend("minProperties" = 1))]
    pub sources: BTreeMap<Name, SourceConfig>,
    /// Where snapshots are kept, by name.
    #[schemars(extend("minProperties" = 1))]
    pub storages: BTreeMap<Name, StorageConfig>,
    /// Who can read what is stored. Without it, everyone who can read the storage can read the backups.
    #[serde(default)]
    pub encryption: Option<EncryptionTable>,
    /// How what is stored is compressed.
    #[serde(default)]
    pub compression: Option<CompressionConfig>,
    /// Threads that compress. Unless set, as many as there are processors, but at most 4.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub threads: Option<usize>,
    /// Limit on what is read from the sources, such as `50MiB/s`.
    #[serde(default)]
    pub read_rate: Option<Rate>,
    /// Limit on what is sent to each storage, such as `10MiB/s`.
    #[serde(default)]
    pub upload_rate: Option<Rate>,
    /// How far the program and what it starts give way to others on this machine, from 0 (not) to 19.
    #[serde(default)]
    #[schemars(range(min = 0, max = 19))]
    pub nice: Option<i32>,
    /// What is backed up, where to, when, and what is kept, by name.
    #[schemars(extend("minProperties" = 1))]
    pub strategies: BTreeMap<Name, StrategyTable>,
}

/// Who can read what is stored.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EncryptionTable {
    /// Public keys of age (`age1…`), each of whose private keys opens everything. The private keys stay off this host.
    #[schemars(length(min = 1), extend("items" = { "type": "string", "format": "recipient" }, "uniqueItems" = true))]
    pub recipients: Vec<String>,
}

/// A named choice of sources, storages, schedule and retention.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StrategyTable {
    /// Whether its schedule is followed. It can be run by hand either way.
    #[serde(default = "yes")]
    pub active: bool,
    /// When it is due, as a cron line: minute, hour, day of the month, month, day of the week. Without it, it is run by hand only.
    #[serde(default)]
    #[schemars(extend("format" = "cron"))]
    pub schedule: Option<String>,
    /// The time zone of the schedule, and of the days, weeks and months of `retention`.
    #[serde(default = "utc")]
    #[schemars(extend("format" = "time-zone"))]
    pub timezone: String,
    /// The sources, in the order they are taken: databases first, directories last.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub sources: Vec<Name>,
    /// The storages, each of which gets every snapshot.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub storages: Vec<Name>,
    /// What is kept. Without it, everything is.
    #[serde(default)]
    pub retention: Option<Policy>,
    /// A run that takes longer is cancelled.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// A source that gives nothing for so long is given up.
    #[serde(default = "ten_minutes")]
    #[schemars(with = "Span", extend("default" = "10m"))]
    pub no_progress_timeout: Span,
}

fn yes() -> bool {
    true
}

fn utc() -> String {
    "UTC".to_owned()
}

fn ten_minutes() -> Span {
    std::time::Duration::from_secs(600).into()
}
