//! The local index of runs, snapshots and drills, in SQLite.
//!
//! A cache: what it says of snapshots is copied from manifests and can be rebuilt from the
//! storages, and losing it loses no backup. What it remembers of runs, of what a scheduler looked
//! after and told (`watch`), and the evidence of drills (`drill`; their verdicts stand in the
//! storages), begins anew then. It knows rows; it does not know how they came about, and never
//! decides whether a snapshot exists.

mod cached;
mod drill;
mod watch;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::value::Error as WordError;
use serde::de::{DeserializeOwned, IntoDeserializer as _};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection, Row, Sqlite};
use tokio::sync::Mutex;

use crate::model::{ErrorCode, Name, Outcome, SnapshotId, expect_file, open_own};

pub use cached::{CachedManifest, CachedMark, LARGEST_BULK};
pub use drill::DrillRecord;
pub use watch::{VerificationRecord, Watched};

/// The file in the state folder.
pub const FILE: &str = "catalog.db";

/// Each step brings the schema from the version of its position to the next. Steps are only ever
/// added.
const MIGRATIONS: [&str; 4] = [
    "
    CREATE TABLE run (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL,
        instance TEXT NOT NULL,
        strategy TEXT NOT NULL,
        started TEXT NOT NULL,
        finished TEXT NOT NULL,
        outcome TEXT NOT NULL,
        plain_bytes INTEGER NOT NULL,
        stored_bytes INTEGER NOT NULL,
        report TEXT NOT NULL,
        UNIQUE (instance, strategy, id)
    ) STRICT;
    CREATE TABLE manifest (
        address TEXT NOT NULL,
        instance TEXT NOT NULL,
        strategy TEXT NOT NULL,
        id TEXT NOT NULL,
        size INTEGER NOT NULL,
        modified TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (address, instance, strategy, id)
    ) STRICT, WITHOUT ROWID;
",
    "
    ALTER TABLE manifest ADD COLUMN gone TEXT;
    CREATE TABLE mark (
        address TEXT NOT NULL,
        key TEXT NOT NULL,
        size INTEGER NOT NULL,
        modified TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (address, key)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE INDEX run_of ON run (instance, strategy, number);
    CREATE TABLE tally (
        instance TEXT NOT NULL,
        strategy TEXT NOT NULL,
        outcome TEXT NOT NULL,
        runs INTEGER NOT NULL,
        PRIMARY KEY (instance, strategy, outcome)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO tally SELECT instance, strategy, outcome, count(*) FROM run GROUP BY instance, \
     strategy, outcome;
    CREATE TABLE watched (
        instance TEXT NOT NULL,
        strategy TEXT NOT NULL,
        since TEXT NOT NULL,
        stale TEXT,
        PRIMARY KEY (instance, strategy)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE listed (
        address TEXT PRIMARY KEY,
        first TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO listed SELECT DISTINCT address, '1970-01-01T00:00:00+00:00' FROM manifest;
    CREATE TABLE verification (
        number INTEGER PRIMARY KEY,
        instance TEXT NOT NULL,
        strategy TEXT NOT NULL,
        started TEXT NOT NULL,
        finished TEXT NOT NULL,
        outcome TEXT NOT NULL,
        snapshots INTEGER NOT NULL,
        read_bytes INTEGER NOT NULL,
        problem TEXT
    ) STRICT;
    CREATE INDEX verification_of ON verification (instance, strategy, number);
",
    "
    CREATE TABLE drill (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        instance TEXT NOT NULL,
        strategy TEXT NOT NULL,
        snapshot TEXT,
        started TEXT NOT NULL,
        finished TEXT NOT NULL,
        verdict TEXT NOT NULL,
        report TEXT NOT NULL
    ) STRICT;
    CREATE INDEX drill_of ON drill (instance, strategy, number);
",
];

/// How many runs of a strategy are remembered, and the last that committed. Of all others only how
/// they ended is counted.
const REMEMBERED_RUNS: usize = 500;

fn advice(problem: &str) -> &'static str {
    // EAGAIN, ENOMEM, ENFILE, EMFILE: of the driver's error only the words are left.
    let is_of_the_system = ["(os error 11)", "(os error 12)", "(os error 23)", "(os error 24)"];
    if is_of_the_system.iter().any(|code| problem.contains(code)) {
        "Raise the limits of processes, memory and open files"
    } else {
        "It is a cache: move it away and run `backup catalog rebuild`"
    }
}

/// Why the catalog could not be used. It never fails a committed run.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// SQLite said no.
    #[error(
        "Could not {attempt} the catalog `{}`: {problem}. {}",
        .path.display(),
        advice(.problem)
    )]
    Failed { attempt: &'static str, path: PathBuf, problem: String },
    /// A later version of the program wrote it.
    #[error("The catalog `{}` was written by a newer version of the program (schema {found}, known \
        {known}). Use that version, or move the file away: it is a cache", .path.display())]
    Newer {
        path: PathBuf,
        found: usize,
        /// The newest schema that this version knows.
        known: usize,
    },
}

impl CatalogError {
    /// The name of the kind for programs. It never changes.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Failed { .. } => ErrorCode::CatalogFailed,
            Self::Newer { .. } => ErrorCode::CatalogNewer,
        }
    }
}

/// A run as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRecord {
    /// The id of the run.
    pub id: SnapshotId,
    pub instance: Name,
    pub strategy: Name,
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes read from the sources.
    pub plain_bytes: u64,
    /// Bytes stored.
    pub stored_bytes: u64,
    /// The whole report, as JSON.
    pub report: String,
}

type Sql<'q> = Query<'q, Sqlite, SqliteArguments>;

/// An error when the catalog in `state_dir`, or something that SQLite keeps beside it, is there and
/// no file: a named pipe would be waited for.
///
/// # Errors
/// That, and when it cannot be looked at.
pub fn ensure_files(state_dir: &Path) -> std::io::Result<()> {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let path = state_dir.join(format!("{FILE}{suffix}"));
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            found => found.and_then(|metadata| expect_file(&metadata)).map_err(|error| {
                std::io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
            })?,
        }
    }
    Ok(())
}

/// The open catalog.
pub struct Catalog {
    path: PathBuf,
    connection: Mutex<SqliteConnection>,
}

impl Catalog {
    /// Opens the catalog in `state_dir`, which must exist, making or migrating it first.
    ///
    /// # Errors
    /// When it cannot be opened, or is newer than this version.
    pub async fn open(state_dir: &Path) -> Result<Self, CatalogError> {
        let path = state_dir.join(FILE);
        let failed = |attempt: &'static str| {
            let path = path.clone();
            move |error: sqlx::Error| CatalogError::Failed {
                attempt,
                path,
                problem: error.to_string(),
            }
        };
        // SQLite would make it readable by all; what it puts beside the file gets the mode of the
        // file.
        ensure_files(state_dir).map_err(|error| failed("open")(sqlx::Error::Io(error)))?;
        let made = open_own(&path, OpenOptions::new().append(true).create(true).mode(0o600));
        made.map_err(|error| failed("create")(sqlx::Error::Io(error)))?;
        let mut connection = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(30))
            // Rows come from a thread of SQLite's; with the usual 50 the two wait for one another
            // more than they work.
            .row_buffer_size(1_000)
            .disable_statement_logging()
            .connect()
            .await
            .map_err(failed("open"))?;
        // What reads only should not write here either: as a rule the schema is the one that it
        // should be.
        let found = schema(&mut connection).await.map_err(failed("read"))?;
        if found != MIGRATIONS.len() {
            // An exclusive transaction, so that two processes do not migrate at once.
            let mut migration =
                connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed("migrate"))?;
            let found = schema(&mut migration).await.map_err(failed("read"))?;
            if found > MIGRATIONS.len() {
                return Err(CatalogError::Newer { path, found, known: MIGRATIONS.len() });
            }
            for step in MIGRATIONS.iter().skip(found) {
                sqlx::raw_sql(*step).execute(&mut *migration).await.map_err(failed("migrate"))?;
            }
            let version =
                sqlx::AssertSqlSafe(format!("PRAGMA user_version = {}", MIGRATIONS.len()));
            sqlx::raw_sql(version).execute(&mut *migration).await.map_err(failed("migrate"))?;
            migration.commit().await.map_err(failed("migrate"))?;
        }
        Ok(Self { path, connection: Mutex::new(connection) })
    }

    fn failed(&self, attempt: &'static str) -> impl Fn(sqlx::Error) -> CatalogError {
        let path = self.path.clone();
        move |error| CatalogError::Failed {
            attempt,
            path: path.clone(),
            problem: error.to_string(),
        }
    }

    /// What every row that `query` finds reads as.
    async fn all<T, C: FromIterator<T>>(
        &self,
        query: Sql<'_>,
        read: impl Fn(&SqliteRow) -> Result<T, sqlx::Error>,
    ) -> Result<C, CatalogError> {
        let mut connection = self.connection.lock().await;
        let rows = query.fetch_all(&mut *connection).await.map_err(self.failed("read"))?;
        rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(self.failed("read"))
    }

    /// The same of the one row that it finds, if any.
    async fn one<T>(
        &self,
        query: Sql<'_>,
        read: impl Fn(&SqliteRow) -> Result<T, sqlx::Error>,
    ) -> Result<Option<T>, CatalogError> {
        let mut connection = self.connection.lock().await;
        let row = query.fetch_optional(&mut *connection).await.map_err(self.failed("read"))?;
        row.as_ref().map(read).transpose().map_err(self.failed("read"))
    }

    async fn execute(&self, query: Sql<'_>) -> Result<(), CatalogError> {
        let mut connection = self.connection.lock().await;
        query.execute(&mut *connection).await.map(|_| ()).map_err(self.failed("write"))
    }

    /// Records a run that ended.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn record_run(&self, run: &RunRecord) -> Result<(), CatalogError> {
        let mut connection = self.connection.lock().await;
        let write = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::query(
                "INSERT INTO run (id, instance, strategy, started, finished, outcome, plain_bytes, \
                 stored_bytes, report) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(run.id.as_str())
            .bind(run.instance.as_str())
            .bind(run.strategy.as_str())
            .bind(run.started.to_rfc3339())
            .bind(run.finished.to_rfc3339())
            .bind(run.outcome.as_str())
            .bind(i64::try_from(run.plain_bytes).unwrap_or(i64::MAX))
            .bind(i64::try_from(run.stored_bytes).unwrap_or(i64::MAX))
            .bind(&run.report)
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "INSERT INTO tally (instance, strategy, outcome, runs) VALUES (?, ?, ?, 1) \
                 ON CONFLICT DO UPDATE SET runs = runs + 1",
            )
            .bind(run.instance.as_str())
            .bind(run.strategy.as_str())
            .bind(run.outcome.as_str())
            .execute(&mut *transaction)
            .await?;
            sqlx::query(
                "DELETE FROM run WHERE instance = ?1 AND strategy = ?2 \
                 AND number <= (SELECT number FROM run WHERE instance = ?1 AND strategy = ?2 ORDER \
                 BY number DESC LIMIT 1 OFFSET ?3) \
                 AND number IS NOT (SELECT max(number) FROM run WHERE instance = ?1 AND strategy = \
                 ?2 AND outcome IN ('success', 'problems'))",
            )
            .bind(run.instance.as_str())
            .bind(run.strategy.as_str())
            .bind(i64::try_from(REMEMBERED_RUNS).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await
        };
        write.await.map_err(self.failed("write"))
    }

    /// The last run of a strategy that committed something; any run when `committed` is false.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn last_run(
        &self,
        instance: &Name,
        strategy: &Name,
        committed: bool,
    ) -> Result<Option<RunRecord>, CatalogError> {
        let query = sqlx::query(
            "SELECT id, started, finished, outcome, plain_bytes, stored_bytes, report FROM run \
             WHERE instance = ? AND strategy = ? AND (NOT ? OR outcome IN ('success', 'problems')) \
             ORDER BY number DESC LIMIT 1",
        )
        .bind(instance.as_str())
        .bind(strategy.as_str())
        .bind(committed);
        self.one(query, |row| run_record(row, instance, strategy)).await
    }

    /// The last run of a strategy that committed something and was not suspect.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn last_good_run(
        &self,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Option<RunRecord>, CatalogError> {
        let query = sqlx::query(
            "SELECT id, started, finished, outcome, plain_bytes, stored_bytes, report FROM run \
             WHERE instance = ? AND strategy = ? AND outcome IN ('success', 'problems') \
             AND json_valid(report) AND coalesce(json_extract(report, '$.suspect'), 0) = 0 \
             ORDER BY number DESC LIMIT 1",
        )
        .bind(instance.as_str())
        .bind(strategy.as_str());
        self.one(query, |row| run_record(row, instance, strategy)).await
    }

    /// The run of the strategy with that id, where it is remembered.
    ///
    /// # Errors
    /// When it could not be read.
    pub async fn run(
        &self,
        instance: &Name,
        strategy: &Name,
        id: &SnapshotId,
    ) -> Result<Option<RunRecord>, CatalogError> {
        let query = sqlx::query(
            "SELECT id, started, finished, outcome, plain_bytes, stored_bytes, report FROM run \
             WHERE instance = ? AND strategy = ? AND id = ?",
        )
        .bind(instance.as_str())
        .bind(strategy.as_str())
        .bind(id.as_str());
        self.one(query, |row| run_record(row, instance, strategy)).await
    }
}

/// How many of the migrations the file has been through.
async fn schema(connection: &mut SqliteConnection) -> Result<usize, sqlx::Error> {
    let version: i64 =
        sqlx::query("PRAGMA user_version").fetch_one(connection).await?.try_get(0)?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// A column that holds the text form of a `T`.
fn parsed<T>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.try_get(column)?;
    text.parse().map_err(|error: T::Err| sqlx::Error::Decode(Box::new(error)))
}

/// A row of the runs.
fn run_record(row: &SqliteRow, instance: &Name, strategy: &Name) -> Result<RunRecord, sqlx::Error> {
    Ok(RunRecord {
        id: parsed(row, "id")?,
        instance: instance.clone(),
        strategy: strategy.clone(),
        started: parsed(row, "started")?,
        finished: parsed(row, "finished")?,
        outcome: word(row, "outcome")?,
        plain_bytes: row.try_get::<i64, _>("plain_bytes")?.unsigned_abs(),
        stored_bytes: row.try_get::<i64, _>("stored_bytes")?.unsigned_abs(),
        report: row.try_get("report")?,
    })
}

/// A column that holds the stored word of an enum.
fn word<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error> {
    let text: String = row.try_get(column)?;
    T::deserialize(text.into_deserializer())
        .map_err(|error: WordError| sqlx::Error::Decode(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn id(salt: u8) -> SnapshotId {
        SnapshotId::new(DateTime::UNIX_EPOCH, [0, 0, salt])
    }

    #[tokio::test]
    async fn the_last_committed_run_is_not_the_last_run_when_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(folder.path()).await.unwrap();
        let run = |salt, outcome| RunRecord {
            id: id(salt),
            instance: name("ella"),
            strategy: name("daily"),
            started: DateTime::UNIX_EPOCH,
            finished: DateTime::UNIX_EPOCH,
            outcome,
            plain_bytes: 5,
            stored_bytes: 3,
            report: "{}".to_owned(),
        };
        for run in [run(1, Outcome::Success), run(2, Outcome::Problems), run(3, Outcome::Failed)] {
            catalog.record_run(&run).await.unwrap();
        }
        let (instance, strategy) = (name("ella"), name("daily"));
        let committed = catalog.last_run(&instance, &strategy, true).await.unwrap();
        assert_eq!(committed, Some(run(2, Outcome::Problems)));
        let any = catalog.last_run(&instance, &strategy, false).await.unwrap();
        assert_eq!(any, Some(run(3, Outcome::Failed)));
    }

    #[tokio::test]
    async fn a_catalog_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(folder.path()).await.unwrap();
        sqlx::raw_sql("PRAGMA user_version = 99")
            .execute(&mut *catalog.connection.lock().await)
            .await
            .unwrap();
        drop(catalog);
        assert!(matches!(
            Catalog::open(folder.path()).await,
            Err(CatalogError::Newer { found: 99, .. })
        ));
    }
}
