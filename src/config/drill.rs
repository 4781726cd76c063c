//! Drills: when a strategy's snapshots are rehearsed, where to, and what is looked at besides what
//! is always looked at.

use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::error::Wrong;
use crate::archive::Pattern;
use crate::model::{ByteSize, CommandLine, ErrorCode, Name, Span, without_credentials};
use crate::schedule::Schedule;
use crate::source::directory::Who;
use crate::source::postgres::ScratchServer;

/// When the snapshots of a strategy are restored for trial, and how.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DrillTable")]
pub struct Drill {
    #[serde(default = "yes", skip_serializing)]
    #[schemars(skip)]
    configured: bool,
    /// When, as a cron line in the time zone of the strategy. Without it, by hand only:
    /// `backup drill --strategy NAME`.
    pub schedule: Option<Schedule>,
    /// The storage that is read. Unless set, the first of the strategy's storages that is not on
    /// this machine, else the first.
    #[serde(rename = "storage")]
    pub(super) named_storage: Option<Name>,
    /// The storage that is read: the named one, or the one that is chosen.
    #[serde(rename = "reads", skip_serializing)]
    #[schemars(skip)]
    pub storage: Name,
    /// The file of the key that opens what is encrypted. Who only takes backups needs none; a drill
    /// needs one, and may run elsewhere, with a configuration of its own.
    pub identity_file: Option<PathBuf>,
    /// The folder that scratch folders are made in. Unless set, the instance's `work_dir`.
    pub work_dir: Option<PathBuf>,
    /// The most that is restored. A snapshot with more is not drilled, which is told.
    #[schemars(extend("x-minimum" = "1B", "x-maximum" = "1024TiB"))]
    pub max_bytes: Option<ByteSize>,
    /// A drill that takes longer is given up, and tells nothing about the snapshot.
    #[serde(default = "twelve_hours")]
    #[schemars(with = "Span",
        extend("default" = "12h", "x-minimum" = "1s", "x-maximum" = "31d"))]
    pub timeout: Span,
    /// How long getting everything back may take (the recovery time objective). A drill that takes
    /// longer fails.
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "366d"))]
    pub rto: Option<Span>,
    /// How old the newest data that can be got back may be (the recovery point objective). A drill
    /// that finds it older fails.
    #[schemars(extend("x-minimum" = "1m", "x-maximum" = "3660d"))]
    pub rpo: Option<Span>,
    /// Where PostgreSQL databases are restored to. Unless set, to a cluster that the drill starts
    /// for itself and removes again.
    #[serde(default, skip_serializing_if = "is_unset")]
    #[schemars(with = "Option<ScratchServer>", extend("default" = null))]
    pub postgres: ScratchServer,
    /// What is looked at besides what always is: digests, rows, counts, each file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<DrillCheck>,
}

fn twelve_hours() -> Span {
    Duration::from_secs(12 * 3_600).into()
}

impl Drill {
    /// Whether there is a table of it.
    pub fn is_configured(&self) -> bool {
        self.configured
    }

    pub(super) fn is_unset(&self) -> bool {
        !self.configured
    }
}

fn is_unset(server: &ScratchServer) -> bool {
    let ScratchServer { url, password, on_source_server, server_dir, run_as } = server;
    url.is_none()
        && password.is_none()
        && !on_source_server
        && server_dir.is_none()
        && run_as.is_none()
}

/// Something that a drill looks at, by its `type`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum DrillCheck {
    /// The answer of a query to a restored database.
    Query(QueryCheck),
    /// Files that a database names and a folder must have.
    References(ReferencesCheck),
    /// One restored file.
    File(FileCheck),
    /// A program that looks itself.
    Command(CommandCheck),
    /// Whether there is much less than in the last good snapshot.
    Shrink(ShrinkCheck),
}

impl DrillCheck {
    /// The source that it is about.
    pub fn source(&self) -> Option<&Name> {
        match self {
            Self::Query(check) => Some(&check.source),
            Self::References(check) => Some(&check.source),
            Self::File(check) => Some(&check.source),
            Self::Shrink(check) => check.source.as_ref(),
            Self::Command(_) => None,
        }
    }

    /// The user that files must belong to.
    pub fn owner(&self) -> Option<&Who> {
        match self {
            Self::References(check) => check.owner.as_ref(),
            Self::File(check) => check.owner.as_ref(),
            Self::Query(_) | Self::Command(_) | Self::Shrink(_) => None,
        }
    }

    /// Everything in it because of which it could never fail, or never pass; each at its key, or at
    /// the whole where the key is empty.
    pub(super) fn unusable(&self) -> Vec<(&'static str, Wrong)> {
        let conflict = |message: &str, hint: &str| {
            ("", Wrong::new(ErrorCode::ConfigConflict, message).hint(hint))
        };
        let mut wrong = Vec::new();
        match self {
            Self::Query(check) => {
                let hint = "set `expect`, or one of `min` and `max`, or both of those";
                let has_bound = check.min.is_some() || check.max.is_some();
                match (&check.expect, has_bound) {
                    (None, false) => {
                        wrong.push(conflict("Nothing is expected of the answer", hint));
                    }
                    (Some(_), true) => {
                        wrong.push(conflict("`expect` and a bound are set at once", hint));
                    }
                    _ => {}
                }
                if check.min.zip(check.max).is_some_and(|(min, max)| min > max) {
                    let message = "`min` is larger than `max`: no answer can be right";
                    wrong.push(conflict(message, "exchange them"));
                }
            }
            Self::Shrink(check) if !check.tables.is_empty() && !check.of.is_empty() => {
                let message = "`tables` compares their rows, and `of` something else";
                wrong.push(conflict(message, "remove one of them"));
            }
            _ => {}
        }
        wrong
    }

    /// Its `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Query(_) => "query",
            Self::References(_) => "references",
            Self::File(_) => "file",
            Self::Command(_) => "command",
            Self::Shrink(_) => "shrink",
        }
    }
}

/// Whole numbers up to here are told apart, those with a fraction too.
const MOST_NUMBER: f64 = 9e15;

/// The answer of a query to a restored database.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryCheck {
    /// What it shows, in words for the report. Unless set, the query itself.
    pub name: Option<String>,
    /// The database source.
    pub source: Name,
    /// One statement that gives one value. It is carried out in a transaction that reads only.
    #[schemars(length(min = 1))]
    #[serde(serialize_with = "masked")]
    pub query: String,
    /// The value that it must give.
    #[serde(default)]
    #[schemars(schema_with = "scalar")]
    pub expect: Option<Value>,
    /// The least that it must give.
    #[schemars(range(min = -MOST_NUMBER, max = MOST_NUMBER))]
    pub min: Option<f64>,
    /// The most that it may give.
    #[schemars(range(min = -MOST_NUMBER, max = MOST_NUMBER))]
    pub max: Option<f64>,
    /// How long it may take.
    #[serde(default = "ten_minutes")]
    #[schemars(with = "Span",
        extend("default" = "10m", "x-minimum" = "1s", "x-maximum" = "31d"))]
    pub timeout: Span,
}

/// Files that a database names and a folder must have.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReferencesCheck {
    /// What it shows, in words for the report. Unless set, the query itself.
    pub name: Option<String>,
    /// The database source.
    pub source: Name,
    /// One statement with a column `path`, the path of a file from the folder; and, where it is
    /// known, `size` in bytes, and `sha256` in hexadecimal digits or as bytes. Each row names a
    /// file that must be there.
    #[schemars(length(min = 1))]
    #[serde(serialize_with = "masked")]
    pub query: String,
    /// The directory source that must have them.
    pub files: Name,
    /// What stands before each path, in the folder.
    pub prefix: Option<String>,
    /// Patterns of paths that may be absent, as in `exclude` of a directory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub may_be_absent: Vec<Pattern>,
    /// Whether each must have something in it.
    #[serde(default)]
    pub not_empty: bool,
    /// The user that each must belong to: a name that this machine knows, or a number. A drill
    /// needs root to judge that.
    pub owner: Option<Who>,
    /// How long the query may take.
    #[serde(default = "ten_minutes")]
    #[schemars(with = "Span",
        extend("default" = "10m", "x-minimum" = "1s", "x-maximum" = "31d"))]
    pub timeout: Span,
}

/// One restored file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileCheck {
    /// What it shows, in words for the report. Unless set, the path.
    pub name: Option<String>,
    /// The directory source; or a command, whose output is the file `NAME.out`.
    pub source: Name,
    /// Its path from the folder. It must be there.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Whether it must have something in it.
    #[serde(default = "yes")]
    pub not_empty: bool,
    /// The user that it must belong to: a name that this machine knows, or a number. A drill needs
    /// root to judge that.
    pub owner: Option<Who>,
    /// What it must parse as.
    pub parses: Option<Parses>,
    /// A text that it must contain.
    pub contains: Option<String>,
}

/// A format of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Parses {
    /// RFC 8259.
    Json,
    /// TOML 1.0.
    Toml,
}

/// A program that looks itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandCheck {
    /// What it shows, in words for the report. Unless set, the program.
    pub name: Option<String>,
    /// The program and its arguments, without a shell. Where things were restored to is in its
    /// environment, by source: `HOLDFAST_DB_URL`, `HOLDFAST_UPLOADS_PATH`. When it ends with an
    /// exit status other than 0, the backup is bad.
    pub command: CommandLine,
    /// How long it may take.
    #[serde(default = "ten_minutes")]
    #[schemars(with = "Span",
        extend("default" = "10m", "x-minimum" = "1s", "x-maximum" = "31d"))]
    pub timeout: Span,
}

/// Whether there is much less than in the last good snapshot.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShrinkCheck {
    /// What it shows, in words for the report.
    pub name: Option<String>,
    /// The source. Unless set, each.
    pub source: Option<Name>,
    /// What is compared. Unless set, all that the source counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub of: Vec<Measure>,
    /// Only the rows of these tables, each by itself: `name`, or `schema.name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub tables: Vec<String>,
    /// By how much it may be less, in percent. 0: not at all.
    #[schemars(range(min = 0, max = 99))]
    pub percent: u8,
}

/// What is counted of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Measure {
    /// The rows of all its tables.
    Rows,
    /// The bytes of what was dumped.
    Bytes,
    /// Its files.
    Files,
}

fn masked<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&without_credentials(text))
}

fn ten_minutes() -> Span {
    Duration::from_secs(600).into()
}

fn yes() -> bool {
    true
}

fn scalar(_: &mut SchemaGenerator) -> Schema {
    // Whole numbers are those of TOML.
    json_schema!({
        "type": ["boolean", "integer", "number", "string"],
        "minimum": i64::MIN, "maximum": i64::MAX,
    })
}
