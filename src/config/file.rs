//! The shape of a configuration file, as it is written. The comments on the fields are the user's
//! reference: they are in the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::drill::DrillTable;
use super::hooks::Hooks;
use super::rules::StorageRules;
use crate::model::{Name, Rate, Span};
use crate::pipeline::CompressionConfig;
use crate::report::notify::{Notify, NotifyConfig, NotifyRules};
use crate::retention::Policy;
use crate::schedule::{Missed, Retry};
use crate::source::SourceConfig;
use crate::storage::StorageConfig;

/// The configuration of Holdfast for one instance: the application that is protected. In a string,
/// `${NAME}` stands for the environment variable `NAME`, and `$${` for `${` itself. A relative path
/// is relative to the folder of this file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    /// The name of the application: the first folder of everything that is stored.
    pub instance: Name,
    /// Folder of the catalog and the locks. Unless set, `/var/lib/holdfast` for root, and
    /// `holdfast` in the user's state folder for others.
    #[serde(default)]
    pub state_dir: Option<PathBuf>,
    /// Private folder for what cannot be streamed. Unless set, `work` in `state_dir`.
    #[serde(default)]
    pub work_dir: Option<PathBuf>,
    /// What bytes come from, by name. Without any, this configuration backs nothing up, but may
    /// prune, list, verify and restore.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    pub sources: Option<BTreeMap<Name, SourceTable>>,
    /// Where snapshots are kept, by name.
    #[schemars(extend("minProperties" = 1))]
    pub storages: BTreeMap<Name, StorageTable>,
    /// Who can read what is stored. Without it, everyone who can read the storage can read the
    /// backups.
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
    /// How far the program and what it starts give way to others on this machine, from 0 (not)
    /// to 19.
    #[serde(default)]
    #[schemars(range(min = 0, max = 19))]
    pub nice: Option<i32>,
    /// How many strategies the scheduler runs at a time.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64), extend("default" = 1))]
    pub max_concurrent: Option<usize>,
    /// Where the scheduler tells how it goes, as an address and a port: `/healthz`, `/readyz`,
    /// `/metrics`, `/api/status`. Without it, nowhere. Whoever reaches it can read names, times and
    /// sizes, but no secret.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("format" = "listen-address"))]
    pub listen: Option<SocketAddr>,
    /// How long a run may take to end in order when it is asked to. What waits for the scheduler to
    /// stop (Docker, systemd, Kubernetes) must have more patience.
    #[serde(default = "one_minute")]
    #[schemars(with = "Span", extend("default" = "1m"))]
    pub stop_grace: Span,
    /// What is backed up, where to, when, and what is kept, by name.
    #[schemars(extend("minProperties" = 1))]
    pub strategies: BTreeMap<Name, StrategyTable>,
    /// Who is told what happens, and how, by name. Without any, it is in the log only.
    #[serde(default)]
    pub notify: BTreeMap<Name, NotifyTable>,
}

/// The file `daemon.toml` in a folder of configurations: what concerns the scheduler and no
/// instance.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DaemonFile {
    /// How many strategies the scheduler runs at a time, of all instances together.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub max_concurrent: usize,
    /// Where the scheduler tells how it goes, as an address and a port.
    #[serde(default)]
    #[schemars(with = "Option<String>", extend("format" = "listen-address"))]
    pub listen: Option<SocketAddr>,
}

/// A storage: where it is, which is its room's, and what is kept there, which is not.
#[derive(Debug, Clone)]
pub(super) struct StorageTable {
    pub config: StorageConfig,
    pub rules: StorageRules,
}

impl<'de> Deserialize<'de> for StorageTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (config, rules) = in_two(deserializer, &StorageRules::KEYS)?;
        Ok(Self { config, rules })
    }
}

impl JsonSchema for StorageTable {
    fn schema_name() -> Cow<'static, str> {
        "Storage".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let own = StorageRules::json_schema(generator);
        with_keys(StorageConfig::json_schema(generator), &own)
    }
}

/// A source: what is read, which is its room's, and what is started around it, which is not.
#[derive(Debug, Clone)]
pub(super) struct SourceTable {
    pub config: SourceConfig,
    pub hooks: Hooks,
}

impl<'de> Deserialize<'de> for SourceTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (config, hooks) = in_two(deserializer, &Hooks::KEYS)?;
        Ok(Self { config, hooks })
    }
}

impl JsonSchema for SourceTable {
    fn schema_name() -> Cow<'static, str> {
        "Source".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let own = Hooks::json_schema(generator);
        with_keys(SourceConfig::json_schema(generator), &own)
    }
}

/// Reads one table as two: the keys of `own`, and the rest. (Serde's `flatten` would let unknown
/// keys pass.)
fn in_two<'de, A, B, D>(deserializer: D, own: &[&str]) -> Result<(A, B), D::Error>
where
    A: DeserializeOwned,
    B: DeserializeOwned,
    D: Deserializer<'de>,
{
    let mut rest = Map::deserialize(deserializer)?;
    let own: Map<String, Value> = own.iter().filter_map(|key| rest.remove_entry(*key)).collect();
    Ok((
        serde_json::from_value(rest.into()).map_err(serde::de::Error::custom)?,
        serde_json::from_value(own.into()).map_err(serde::de::Error::custom)?,
    ))
}

/// The schema of each kind of a room's tables, with the keys of `own` beside its own.
fn with_keys(mut schema: Schema, own: &Schema) -> Schema {
    let own = own.get("properties").and_then(Value::as_object);
    let kinds = schema.get_mut("oneOf").and_then(Value::as_array_mut);
    for kind in kinds.into_iter().flatten() {
        if let Some(properties) = kind.get_mut("properties").and_then(Value::as_object_mut) {
            properties.extend(own.cloned().into_iter().flatten());
        }
    }
    schema
}

/// Who can read what is stored.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EncryptionTable {
    /// Public keys of age (`age1…`), each of whose private keys opens everything. The private keys
    /// stay off this host.
    #[schemars(length(min = 1), extend("items" =
        { "type": "string", "format": "recipient" }, "uniqueItems" = true))]
    pub recipients: Vec<String>,
}

/// A named choice of sources, storages, schedule and retention.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StrategyTable {
    /// Whether its schedule is followed. It can be run by hand either way.
    #[serde(default = "yes")]
    pub active: bool,
    /// When it is due, as a cron line: minute, hour, day of the month, month, day of the week.
    /// Without it, it is run by hand only.
    #[serde(default)]
    #[schemars(extend("format" = "cron"))]
    pub schedule: Option<String>,
    /// What becomes of runs that were missed while the machine or the scheduler was off:
    /// `run_once`, one for all of them, at once; or `skip`.
    #[serde(default)]
    pub missed: Missed,
    /// How long after its time a run begins at most: always the same for this strategy, and others
    /// for others, so that many machines do not begin at once. Shorter than the time from one run
    /// to the next.
    #[serde(default)]
    pub jitter: Option<Span>,
    /// The time zone of the schedule, and of the days, weeks and months of `retention`.
    #[serde(default = "utc")]
    #[schemars(extend("format" = "time-zone"))]
    pub timezone: String,
    /// The sources, in the order they are taken: databases first, directories last. A strategy
    /// without them cannot be run: it prunes, lists, verifies and restores what another
    /// configuration backs up under the same names.
    #[serde(default)]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub sources: Option<Vec<Name>>,
    /// The storages, each of which gets every snapshot.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub storages: Vec<Name>,
    /// What is kept, on each storage by itself. Without it, everything is. A storage may have its
    /// own.
    #[serde(default)]
    pub retention: Option<Policy>,
    /// A pruning that would delete more than so many percent of the snapshots that a storage has of
    /// this strategy (and more than one) is refused, unless it is forced. 100 is without limit.
    #[serde(default = "half")]
    #[schemars(range(min = 1, max = 100))]
    pub max_delete_percent: u8,
    /// A run that takes longer is cancelled.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// A source that gives nothing for so long is given up.
    #[serde(default = "ten_minutes")]
    #[schemars(with = "Span", extend("default" = "10m"))]
    pub no_progress_timeout: Span,
    /// How often the scheduler tries again when a run fails for a reason that may pass: the
    /// network, a server that is starting.
    #[serde(default)]
    pub retry: Retry,
    /// How long after its time a snapshot must be there, before the strategy is called stale.
    /// Unless set, an hour (the time from one run to the next where that is shorter), or twice what
    /// the last run took.
    #[serde(default)]
    pub stale_after: Option<Span>,
    /// When what is stored is looked at again.
    #[serde(default)]
    pub verify: Option<VerifyTable>,
    /// When its snapshots are restored for trial, database and files together, and judged.
    #[serde(default)]
    pub drill: Option<DrillTable>,
    /// Started before the first source is dumped: the program and its arguments, without a shell.
    /// When it fails, nothing is dumped.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub before: Option<Vec<String>>,
    /// Started after the commit, however it went, also when `before` failed: it undoes what
    /// `before` did.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub after: Option<Vec<String>>,
    /// Started after a run that committed nothing, and after `after`.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub on_failure: Option<Vec<String>>,
}

/// When what is stored is looked at again.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyTable {
    /// When, as a cron line in the time zone of the strategy.
    #[schemars(extend("format" = "cron"))]
    pub schedule: String,
    /// How much of what is stored is read and held against its digests each time, in percent, the
    /// snapshots chosen by lot. Of all others the manifests are read, and presence and size of
    /// every object are looked at.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub read_data_percent: u8,
}

/// A notifier: the way, which is its room's, and what is told, by the same keys for all.
#[derive(Debug, Clone)]
pub(super) struct NotifyTable(pub Notify);

impl<'de> Deserialize<'de> for NotifyTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (config, rules) = in_two(deserializer, &NotifyRules::KEYS)?;
        Ok(Self(Notify { config, rules }))
    }
}

impl JsonSchema for NotifyTable {
    fn schema_name() -> Cow<'static, str> {
        "Notify".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let own = NotifyRules::json_schema(generator);
        with_keys(NotifyConfig::json_schema(generator), &own)
    }
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

fn half() -> u8 {
    50
}

fn utc() -> String {
    "UTC".to_owned()
}

fn one_minute() -> Span {
    std::time::Duration::from_secs(60).into()
}

fn ten_minutes() -> Span {
    std::time::Duration::from_secs(600).into()
}
