//! The tables of a configuration file. One type serves to read a table, to work with, and to show.
//! The comments on the fields are the user's reference: they are in the schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::drill::Drill;
use super::hooks::Hooks;
use super::host::Host;
use crate::model::{Digest, Name, Rate, Span};
use crate::pipeline::{CompressionConfig, Recipient};
use crate::report::notify::{Notify, NotifyConfig, NotifyRules};
use crate::retention::Policy;
use crate::schedule::{Missed, Retry, Schedule};
use crate::source::OwnFolder;
use crate::source::SourceConfig;
use crate::storage::StorageConfig;

/// The configuration of Holdfast for one instance: the application that is protected. In a string,
/// `${NAME}` stands for the environment variable `NAME`, and `$${` for `${` itself. A relative path
/// is relative to the folder of this file.
// Once it is resolved, all paths are absolute.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "File")]
pub struct Instance {
    /// The file.
    #[serde(skip)]
    pub file: PathBuf,
    /// Of the text of the file, and of the secrets that were read for it.
    #[serde(skip)]
    pub(super) digests: Option<(Digest, Digest)>,
    /// Folders that other instances of the same configuration write to.
    #[serde(skip)]
    pub(super) neighbours: Vec<OwnFolder>,
    /// The name of the application: the first folder of everything that is stored.
    #[serde(rename = "instance")]
    pub name: Name,
    /// Folder of the catalog and the locks. Unless set, `/var/lib/holdfast` for root, and
    /// `holdfast` in the user's state folder for others.
    #[serde(default, serialize_with = "displayed")]
    #[schemars(with = "Option<PathBuf>", extend("default" = null))]
    pub state_dir: PathBuf,
    /// Private folder for what cannot be streamed. Unless set, `work` in `state_dir`.
    #[serde(default, serialize_with = "displayed")]
    #[schemars(with = "Option<PathBuf>", extend("default" = null))]
    pub work_dir: PathBuf,
    /// What bytes come from, by name. Without any, this configuration backs nothing up, but may
    /// prune, list, verify and restore.
    #[serde(default)]
    #[schemars(
        with = "Option<BTreeMap<Name, Beside<Beside<SourceConfig, Hooks>, SourceRules>>>",
        extend("minProperties" = 1, "default" = null)
    )]
    pub sources: BTreeMap<Name, SourceConfig>,
    /// Of each source; in the file the keys stand in its table.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub source_hooks: BTreeMap<Name, Hooks>,
    /// Of each source; in the file the keys stand in its table.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub source_rules: BTreeMap<Name, SourceRules>,
    /// Where snapshots are kept, by name.
    #[schemars(
        with = "BTreeMap<Name, Beside<StorageConfig, StorageRules>>",
        extend("minProperties" = 1)
    )]
    pub storages: BTreeMap<Name, StorageConfig>,
    /// Of each storage; in the file the keys stand in its table. [`Instance::rules`] puts it
    /// together with the strategy's own.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub storage_rules: BTreeMap<Name, StorageRules>,
    /// Who can read what is stored. Without it, everyone who can read the storage can read the
    /// backups.
    pub encryption: Option<Encryption>,
    /// How what is stored is compressed.
    #[serde(default)]
    #[schemars(with = "Option<CompressionConfig>", extend("default" = null))]
    pub compression: CompressionConfig,
    /// Threads that compress. Unless set, as many as there are processors, but at most 4.
    #[serde(default = "processors")]
    #[schemars(with = "Option<usize>", range(min = 1, max = 256), extend("default" = null))]
    pub threads: usize,
    /// Limit on what is read from the sources, such as `50MiB/s`.
    #[schemars(extend("x-minimum" = "1KiB/s", "x-maximum" = "1024GiB/s"))]
    pub read_rate: Option<Rate>,
    /// Limit on what is sent to each storage, such as `10MiB/s`.
    #[schemars(extend("x-minimum" = "1KiB/s", "x-maximum" = "1024GiB/s"))]
    pub upload_rate: Option<Rate>,
    /// How far the program and what it starts give way to others on this machine, from 0 (not)
    /// to 19.
    #[schemars(range(min = 0, max = 19))]
    pub nice: Option<i32>,
    /// How many strategies the scheduler runs at a time.
    #[serde(skip_serializing)]
    #[schemars(range(min = 1, max = 64), extend("default" = 1))]
    pub max_concurrent: Option<usize>,
    /// Where the scheduler tells how it goes, as an address and a port: `/healthz`, `/readyz`,
    /// `/metrics`, `/api/status`. Without it, nowhere. Whoever reaches it can read names, times and
    /// sizes, but no secret.
    #[serde(default, skip_serializing)]
    #[schemars(with = "Option<String>", extend("format" = "listen-address"))]
    pub listen: Option<SocketAddr>,
    /// Names with a dot, such as `backup.example.org`, under which the page at `listen` may be
    /// asked for; with a port, only at that. Addresses, `localhost` and names without a dot need
    /// not be listed. Others are refused, so that no page in a browser reads it by a name of its
    /// own. Set it, to `[]` if need be, where `listen` is not of this machine alone and that is
    /// meant.
    #[serde(default, skip_serializing)]
    #[schemars(with = "Option<Vec<String>>", extend("items" =
        { "type": "string", "format": "host" }, "uniqueItems" = true))]
    pub listen_hosts: Option<Vec<Host>>,
    /// How long a run may take to end in order when it is asked to. What waits for the scheduler to
    /// stop (Docker, systemd, Kubernetes) must have more patience.
    #[serde(default = "one_minute", skip_serializing)]
    #[schemars(with = "Span",
        extend("default" = "1m", "x-minimum" = "1s", "x-maximum" = "1d"))]
    pub stop_grace: Span,
    /// What is backed up, where to, when, and what is kept, by name.
    #[schemars(extend("minProperties" = 1))]
    pub strategies: BTreeMap<Name, Strategy>,
    /// Who is told what happens, and how, by name. Without any, it is in the log only.
    #[serde(default, skip_serializing)]
    #[schemars(with = "BTreeMap<Name, Beside<NotifyConfig, NotifyRules>>")]
    pub notify: BTreeMap<Name, Notify>,
    /// By JSON pointer, strings as they were written that are shown so.
    #[serde(skip)]
    pub(super) written: BTreeMap<String, String>,
    /// Sentences about settings that work, with a drawback.
    #[serde(skip)]
    pub(super) notes: Vec<String>,
}

/// The file `daemon.toml` in a folder of configurations: what concerns the scheduler and no
/// instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DaemonFile")]
pub struct Daemon {
    /// How many strategies the scheduler runs at a time, of all instances together.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub max_concurrent: usize,
    /// Where the scheduler tells how it goes, as an address and a port.
    #[schemars(with = "Option<String>", extend("format" = "listen-address"))]
    pub listen: Option<SocketAddr>,
    /// Names with a dot under which that page may be asked for.
    #[schemars(with = "Option<Vec<String>>", extend("items" =
        { "type": "string", "format": "host" }, "uniqueItems" = true))]
    pub listen_hosts: Option<Vec<Host>>,
}

impl Default for Daemon {
    fn default() -> Self {
        Self { max_concurrent: one(), listen: None, listen_hosts: None }
    }
}

/// Stands in the schema for a table with the keys of two types. `C` belongs to a room and is told
/// apart by its `type`; the keys of `O` are the same for each. (Serde's `flatten` would let unknown
/// keys pass.)
struct Beside<C, O>(PhantomData<(C, O)>);

impl<C: JsonSchema, O: JsonSchema> JsonSchema for Beside<C, O> {
    fn schema_name() -> Cow<'static, str> {
        C::schema_name().trim_end_matches("Config").to_owned().into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let own = O::json_schema(generator);
        let own = own.get("properties").and_then(Value::as_object);
        let mut schema = C::json_schema(generator);
        let kinds = schema.get_mut("oneOf").and_then(Value::as_array_mut);
        for kind in kinds.into_iter().flatten() {
            if let Some(properties) = kind.get_mut("properties").and_then(Value::as_object_mut) {
                properties.extend(own.cloned().into_iter().flatten());
            }
        }
        schema
    }
}

/// Who can read what is stored.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EncryptionTable")]
pub struct Encryption {
    /// Public keys of age (`age1…`), each of whose private keys opens everything. The private keys
    /// stay off this host.
    #[schemars(with = "Vec<String>", length(min = 1), extend("items" =
        { "type": "string", "format": "recipient" }, "uniqueItems" = true))]
    pub recipients: Vec<Recipient>,
}

/// A named choice of sources, storages, schedule and retention.
// Unknown keys are refused by the schema: serde cannot, beside `flatten`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(
    rename = "StrategyTable",
    extend("additionalProperties" = false),
    transform = of_runs
)]
pub struct Strategy {
    /// In the file, the key of its table.
    #[serde(skip_serializing)]
    #[schemars(skip)]
    pub name: Name,
    /// Whether its schedule is followed. It can be run by hand either way.
    #[serde(default = "yes")]
    pub active: bool,
    /// When it is due, as a cron line: minute, hour, day of the month, month, day of the week.
    /// Without it, it is run by hand only.
    pub schedule: Option<Schedule>,
    /// What becomes of runs that were missed while the machine or the scheduler was off:
    /// `run_once`, one for all of them, at once; or `skip`.
    #[serde(default)]
    pub missed: Missed,
    /// How long after its time a run begins at most: always the same for this strategy, and others
    /// for others, so that many machines do not begin at once. Shorter than the time from one run
    /// to the next.
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "31d"))]
    pub jitter: Option<Span>,
    /// The time zone of the schedule, and of the days, weeks and months of `retention`.
    #[serde(default = "utc")]
    #[schemars(with = "String", extend("format" = "time-zone"))]
    pub timezone: Tz,
    /// The sources, in the order they are taken: databases first, directories last. A strategy
    /// without them cannot be run: it prunes, lists, verifies and restores what another
    /// configuration backs up under the same names.
    // Without them it cannot be run: [`Strategy::check_runnable`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub sources: Vec<Name>,
    /// The storages, each of which gets every snapshot.
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub storages: Vec<Name>,
    /// What is kept, on each storage by itself. Without it, everything is. A storage may have its
    /// own.
    pub retention: Option<Policy>,
    /// A pruning that would delete more than so many percent of the snapshots that a storage has of
    /// this strategy (and more than one; of fewer than ten, more than two) is refused, unless it is
    /// forced. 100 is without limit.
    #[serde(default = "half")]
    #[schemars(range(min = 1, max = 100))]
    pub max_delete_percent: u8,
    /// A run that takes longer is cancelled.
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "366d"))]
    pub timeout: Option<Span>,
    /// A source that gives nothing for so long is given up.
    #[serde(default = "ten_minutes")]
    #[schemars(with = "Span",
        extend("default" = "10m", "x-minimum" = "1s", "x-maximum" = "31d"))]
    pub no_progress_timeout: Span,
    /// How often the scheduler tries again when a run fails for a reason that may pass: the
    /// network, a server that is starting.
    #[serde(default)]
    pub retry: Retry,
    /// How long after its time a snapshot must be there, before the strategy is called stale.
    /// Unless set, an hour (the time from one run to the next where that is shorter), or twice what
    /// the last run took.
    #[schemars(extend("x-minimum" = "1m", "x-maximum" = "3660d"))]
    pub stale_after: Option<Span>,
    /// When what is stored is looked at again.
    pub verify: Option<Verification>,
    /// When its snapshots are restored for trial, database and files together, and judged.
    #[serde(skip_serializing_if = "Drill::is_unset")]
    #[schemars(with = "Option<Drill>")]
    pub drill: Drill,
    /// Started around a run.
    #[serde(flatten)]
    pub hooks: Hooks,
}

/// Puts the descriptions of a strategy's hooks in the place of those of a source's.
fn of_runs(schema: &mut Schema) {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    for (key, property) in properties.into_iter().flatten() {
        let about = match key.as_str() {
            "before" => {
                "Started before the first source is dumped: the program and its arguments, without \
                 a shell.\nWhen it fails, nothing is dumped."
            }
            "after" => {
                "Started after the commit, however it went, also when `before` failed: it undoes \
                 what\n`before` did."
            }
            "on_failure" => "Started after a run that committed nothing, and after `after`.",
            _ => continue,
        };
        if let Some(property) = property.as_object_mut() {
            property.insert("description".to_owned(), about.into());
        }
    }
}

/// When what is stored is looked at again.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "VerifyTable")]
pub struct Verification {
    /// When, as a cron line in the time zone of the strategy.
    pub schedule: Schedule,
    /// How much of what is stored is read and held against its digests each time, in percent, the
    /// snapshots chosen by lot. Of all others the manifests are read, and presence and size of
    /// every object are looked at.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub read_data_percent: u8,
}

fn displayed<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn processors() -> usize {
    const MOST: usize = 4;
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST)
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

fn utc() -> Tz {
    Tz::UTC
}

fn one_minute() -> Span {
    Duration::from_secs(60).into()
}

fn ten_minutes() -> Span {
    Duration::from_secs(600).into()
}

/// What a source's table says of the comparison with earlier snapshots. The room of sources knows
/// nothing of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceRules {
    /// By how many percent the source may be smaller than in the last good snapshot, in files,
    /// tables, rows or bytes. A snapshot with less is suspect: it is kept and reported, but is not
    /// `latest`, and nothing of the strategy is pruned until `backup release`. Counts below 20 and
    /// sizes below 1 MiB are not compared. 100 allows everything, such as for a folder of logs,
    /// but that nothing is left where there was something.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100), extend("default" = 50))]
    pub max_shrink_percent: Option<u8>,
    /// Whether nothing may be left where there was something, as in a folder that is emptied when
    /// its files were processed. Together with `max_shrink_percent = 100` nothing is compared.
    #[serde(default, skip_serializing_if = "is_no")]
    #[schemars(extend("default" = false))]
    pub may_be_empty: bool,
}

impl SourceRules {
    /// Its keys in the table of a source.
    pub(super) const KEYS: [&str; 2] = ["max_shrink_percent", "may_be_empty"];
}

impl Instance {
    /// Whether nothing may be left of a source.
    pub fn may_be_empty(&self, source: &Name) -> bool {
        self.source_rules.get(source).is_some_and(|rules| rules.may_be_empty)
    }

    /// By how many percent a source may be smaller than in the last good snapshot.
    pub fn max_shrink_percent(&self, source: &Name) -> u8 {
        let own = self.source_rules.get(source).and_then(|rules| rules.max_shrink_percent);
        own.unwrap_or_else(half)
    }
}

/// What a storage's table says of retention. The room of storages knows nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageRules {
    /// What is kept here of each strategy, instead of what the strategy's own `retention` says.
    pub retention: Option<Policy>,
    /// Whether snapshots are deleted here at all. `false` where the credentials may not delete:
    /// another configuration prunes then.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    #[schemars(extend("default" = true))]
    pub prune: bool,
    /// `max_delete_percent` for this storage, instead of the strategy's.
    #[schemars(range(min = 1, max = 100))]
    pub max_delete_percent: Option<u8>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_no(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

impl Default for StorageRules {
    fn default() -> Self {
        Self { retention: None, prune: true, max_delete_percent: None }
    }
}

impl StorageRules {
    /// Its keys in the table of a storage.
    pub(super) const KEYS: [&str; 3] = ["retention", "prune", "max_delete_percent"];
}
