//! An SQLite database file, copied while it is in use.
//!
//! The image of the database is read through SQLite's own pager, inside one read transaction: page
//! by page from `sqlite_dbpage` (<https://www.sqlite.org/dbpage.html>). So what is still in the
//! write-ahead log is in it, nothing that came later is, and the rows of every table are counted in
//! the same transaction.
//!
//! In WAL mode writers go on meanwhile; the log only cannot be folded back, and grows by what they
//! write. In the rollback-journal modes a reader keeps writers out. There the image is first copied
//! to a private file, as fast as the disk allows, and the transaction ended; what takes long,
//! counting and storing, is done on the copy.

mod restore;
mod scratch;
mod target;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::TryStreamExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::sqlite::{Sqlite as Driver, SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Decode, Row as _, Type};

use super::scratch::refuse_overlap;
use super::{
    ArtifactSpec, Context, Dumped, Finding, Level, Outputs, ScratchConfig, Source, SourceError,
};
use crate::model::{ArtifactKind, ByteSize, Name, Remarks, Span};

pub use restore::SqliteRestorer;

/// An SQLite database file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteConfig {
    /// The database file. Its `-wal` and `-shm` need not be named; what they hold is in the backup.
    pub path: PathBuf,
    /// Whether the rows of every table are counted: `exact` (the default), or `off` where that
    /// takes too long.
    #[serde(default)]
    pub row_counts: RowCounts,
    /// How long to wait while another connection keeps the database locked. Default `60s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "1d"))]
    pub busy_timeout: Option<Span>,
}

/// Whether rows are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RowCounts {
    /// Each table, in the dump's own snapshot.
    #[default]
    Exact,
    /// Not.
    Off,
}

impl SqliteConfig {
    /// Makes relative paths absolute.
    pub fn resolve(&mut self, base: &Path) {
        self.path = crate::model::counted_from(base, &self.path);
    }
}

/// The source.
pub struct Sqlite {
    config: SqliteConfig,
}

impl Sqlite {
    /// As configured.
    pub fn new(config: SqliteConfig) -> Self {
        Self { config }
    }

    fn open<'a>(&'a self, cx: &'a Context) -> Result<Session<'a>, SourceError> {
        let path = &self.config.path;
        let found = std::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                SourceError::Unsuitable(format!("The database `{}` does not exist", path.display()))
            }
            _ => SourceError::Io { attempt: "look at", path: path.display().to_string(), error },
        })?;
        if !found.is_file() {
            return Err(SourceError::Unsuitable(format!(
                "`{}` is not a file, so it is no SQLite database",
                path.display()
            )));
        }
        let busy_timeout = self.config.busy_timeout.map_or(BUSY_TIMEOUT, Span::duration);
        let mut session = Session::open(cx, path, busy_timeout, SqliteConnectOptions::new())?;
        if !session.value::<bool>(
            "ask SQLite what it can",
            "SELECT sqlite_compileoption_used('ENABLE_DBPAGE_VTAB')",
        )? {
            return Err(SourceError::Unsuitable(
                "This program was built with an SQLite that cannot read the pages of a database: \
                 build it with \
                 `LIBSQLITE3_FLAGS=-DSQLITE_ENABLE_DBPAGE_VTAB`, as its `.cargo/config.toml` does"
                    .to_owned(),
            ));
        }
        Ok(session)
    }
}

const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

impl Source for Sqlite {
    fn dump(&self, cx: &Context, outputs: &dyn Outputs) -> Result<Dumped, SourceError> {
        let spec = ArtifactSpec {
            extension: "sqlite",
            number: ArtifactSpec::FIRST,
            kind: ArtifactKind::Sqlite,
            bulk: true,
            blocks: false,
        };
        let mut session = self.open(cx)?;
        let mut remarks = Remarks::default();
        let image = session.begin()?;
        if image.pages == 0 {
            remarks.warn("The database is empty: not even a schema is in it");
        }
        let mut output;
        let mut facts;
        if image.journal_mode == "wal" {
            facts = session.facts(self.config.row_counts, &mut remarks)?;
            output = outputs.create(spec).map_err(SourceError::Stream)?;
            session.copy(&image, &mut output, SourceError::Stream)?;
            session.end()?;
        } else {
            let mut copy = PrivateFile::create(cx, &image)?;
            let path = copy.path.clone();
            let wrong = |error| SourceError::Io {
                attempt: "write",
                path: path.display().to_string(),
                error,
            };
            let mut out = BufWriter::with_capacity(256 << 10, &copy.file);
            session.copy(&image, &mut out, wrong)?;
            out.flush().map_err(wrong)?;
            drop(out);
            session.end()?;
            let mut session = Session::open(
                cx,
                &copy.path,
                BUSY_TIMEOUT,
                SqliteConnectOptions::new().immutable(true),
            )?;
            facts = session.facts(self.config.row_counts, &mut remarks)?;
            output = outputs.create(spec).map_err(SourceError::Stream)?;
            copy.pour(cx, &image, &mut output)?;
        }
        let artifact = outputs.finish(output).map_err(SourceError::Stream)?;
        let file = self.config.path.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(facts) = facts.as_object_mut() {
            facts.insert("file".to_owned(), json!(file));
            facts.insert("page_size".to_owned(), json!(image.page_bytes));
            facts.insert("pages".to_owned(), json!(image.pages));
            facts.insert("journal_mode".to_owned(), json!(image.journal_mode));
        }
        Ok(Dumped { artifacts: vec![artifact], consistency: "snapshot", facts, remarks })
    }

    fn ensure_present(&self, cx: &Context) -> Result<(), SourceError> {
        if self.config.path.exists() { Ok(()) } else { self.open(cx).map(drop) }
    }

    fn check(&self, cx: &Context) -> Vec<Finding> {
        let image = self.open(cx).and_then(|mut session| {
            let image = session.begin()?;
            session.end()?;
            Ok(image)
        });
        let path = self.config.path.display();
        match image {
            Err(error) => vec![Finding::new(Level::Error, "path", error.to_string())],
            Ok(image) => {
                let size = ByteSize(image.bytes());
                let mut findings = vec![Finding::new(
                    Level::Ok,
                    "path",
                    format!("`{path}`: {size}, journal mode `{}`", image.journal_mode),
                )];
                if image.journal_mode != "wal" {
                    let work_dir = cx.work_dir.display();
                    findings.push(match free_bytes(&cx.work_dir) {
                        Ok(free) if free < image.bytes() => Finding::new(
                            Level::Error,
                            "work_dir",
                            format!(
                                "`{work_dir}` has {} free, and a copy of the database needs {size}",
                                ByteSize(free)
                            ),
                        ),
                        Ok(_) => Finding::new(
                            Level::Ok,
                            "work_dir",
                            format!(
                                "The database is copied to `{work_dir}` first, and writers wait \
                                 meanwhile; in WAL mode \
                                 (`PRAGMA journal_mode = WAL`) neither would be"
                            ),
                        ),
                        Err(error) => Finding::new(Level::Error, "work_dir", error.to_string()),
                    });
                }
                findings
            }
        }
    }

    fn refuse_scratch(
        &self,
        _cx: &Context,
        _config: &ScratchConfig,
        folder: &Path,
        name: &Name,
    ) -> Result<(), SourceError> {
        refuse_overlap(folder, &self.config.path, &format!("the source `{name}`"))
    }
}

/// What the database is, in the snapshot that is dumped.
#[derive(Debug, PartialEq, Eq)]
struct Image {
    page_bytes: u64,
    pages: u64,
    journal_mode: String,
}

impl Image {
    fn bytes(&self) -> u64 {
        self.page_bytes.saturating_mul(self.pages)
    }
}

/// A connection that only reads, and the words for what goes wrong on it.
struct Session<'a> {
    cx: &'a Context,
    path: &'a Path,
    busy_timeout: Duration,
    connection: SqliteConnection,
}

impl<'a> Session<'a> {
    fn open(
        cx: &'a Context,
        path: &'a Path,
        busy_timeout: Duration,
        options: SqliteConnectOptions,
    ) -> Result<Self, SourceError> {
        // Few rows wait for us at a time: one may be a page of 64 KiB.
        let options = options
            .filename(path)
            .busy_timeout(busy_timeout)
            .read_only(true)
            .create_if_missing(false)
            .row_buffer_size(8)
            .disable_statement_logging();
        let attempt = "open the database";
        let connection = wait(cx, options.connect())
            .map_err(|error| explain(error, attempt, path, busy_timeout))?;
        let mut session = Self { cx, path, busy_timeout, connection };
        let cancel = cx.cancel.clone();
        // A count may run for long inside SQLite, where nothing else would interrupt it.
        wait(cx, session.connection.lock_handle())
            .map_err(|error| explain(error, attempt, path, busy_timeout))?
            .set_progress_handler(100_000, move || !cancel.is_cancelled());
        Ok(session)
    }

    fn explain(&self, error: Fault, attempt: &str) -> SourceError {
        explain(error, attempt, self.path, self.busy_timeout)
    }

    fn run(&mut self, attempt: &str, sql: &'static str) -> Result<(), SourceError> {
        let done = wait(self.cx, sqlx::query(sql).execute(&mut self.connection));
        done.map(|_| ()).map_err(|error| self.explain(error, attempt))
    }

    fn try_value<T>(&mut self, sql: String) -> Result<T, Fault>
    where
        T: for<'r> Decode<'r, Driver> + Type<Driver> + Send + Unpin,
    {
        wait(self.cx, sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.connection))
    }

    fn value<T>(&mut self, attempt: &str, sql: &str) -> Result<T, SourceError>
    where
        T: for<'r> Decode<'r, Driver> + Type<Driver> + Send + Unpin,
    {
        self.try_value(sql.to_owned()).map_err(|error| self.explain(error, attempt))
    }

    fn try_texts(&mut self, sql: &'static str) -> Result<Vec<String>, Fault> {
        wait(self.cx, sqlx::query_scalar(sql).fetch_all(&mut self.connection))
    }

    fn texts(&mut self, attempt: &str, sql: &'static str) -> Result<Vec<String>, SourceError> {
        self.try_texts(sql).map_err(|error| self.explain(error, attempt))
    }

    /// Begins a transaction and takes its snapshot, which is that of its first read.
    fn begin(&mut self) -> Result<Image, SourceError> {
        let attempt = "take a snapshot";
        self.run(attempt, "BEGIN")?;
        let _: i64 = self.value(attempt, "SELECT count(*) FROM sqlite_schema")?;
        let pages: i64 = self.value(attempt, "PRAGMA page_count")?;
        let page_bytes: i64 = self.value(attempt, "PRAGMA page_size")?;
        let journal_mode = self.value(attempt, "PRAGMA journal_mode")?;
        Ok(Image {
            pages: pages.unsigned_abs(),
            page_bytes: page_bytes.unsigned_abs(),
            journal_mode,
        })
    }

    /// Ends the transaction, and closes the connection: when this returns, nothing of it is on the
    /// database any more.
    fn end(mut self) -> Result<(), SourceError> {
        self.run("end the transaction", "COMMIT")?;
        wait(self.cx, self.connection.close())
            .map_err(|error| explain(error, "close the database", self.path, self.busy_timeout))
    }

    /// Writes the whole image of the database to `out`.
    fn copy(
        &mut self,
        image: &Image,
        out: &mut dyn Write,
        out_failed: impl Fn(std::io::Error) -> SourceError,
    ) -> Result<(), SourceError> {
        let attempt = "read the pages";
        let (cx, path, busy_timeout) = (self.cx, self.path, self.busy_timeout);
        let (mut pages, mut bytes) = (0_u64, 0_u64);
        let mut rows = sqlx::query("SELECT pgno, data FROM sqlite_dbpage('main') ORDER BY pgno")
            .fetch(&mut self.connection);
        // The runtime is left before each page is written: what takes it may need the runtime
        // itself.
        while let Some(row) = wait(cx, rows.try_next())
            .map_err(|error| explain(error, attempt, path, busy_timeout))?
        {
            let read = row
                .try_get::<i64, _>(0)
                .and_then(|number| Ok((number, row.try_get::<&[u8], _>(1)?)));
            let (number, page) =
                read.map_err(|error| explain(error.into(), attempt, path, busy_timeout))?;
            pages += 1;
            bytes += page.len() as u64;
            if number.unsigned_abs() != pages || page.len() as u64 != image.page_bytes {
                break;
            }
            out.write_all(page).map_err(|error| {
                if cx.cancel.is_cancelled() { SourceError::Cancelled } else { out_failed(error) }
            })?;
        }
        if pages != image.pages || bytes != image.bytes() {
            return Err(SourceError::Database {
                attempt: attempt.to_owned(),
                target: path.display().to_string(),
                problem: format!(
                    "{pages} pages of {bytes} bytes came where {} of {} bytes each should be",
                    image.pages, image.page_bytes
                ),
                transient: false,
            });
        }
        Ok(())
    }

    /// All that is counted.
    fn facts(
        &mut self,
        row_counts: RowCounts,
        remarks: &mut Remarks,
    ) -> Result<serde_json::Value, SourceError> {
        let attempt = "read the schema";
        let number = |session: &mut Self, sql| session.value::<i64>(attempt, sql);
        let mut facts = json!({
            "type": "sqlite",
            "v": 1,
            "sqlite_version": self.value::<String>(attempt, "SELECT sqlite_version()")?,
            "user_version": number(self, "PRAGMA user_version")?,
            "application_id": number(self, "PRAGMA application_id")?,
            "indexes": self.texts(attempt, "SELECT name FROM sqlite_schema WHERE type = 'index' \
                ORDER BY name")?,
            "triggers": self.texts(attempt, "SELECT name FROM sqlite_schema WHERE type = 'trigger' \
                ORDER BY name")?,
            "views": self.texts(attempt, "SELECT name FROM sqlite_schema WHERE type = 'view' ORDER \
                BY name")?,
        });
        let mut tables = Vec::new();
        for name in self.tables()? {
            let mut table = json!({ "name": name });
            if row_counts == RowCounts::Exact {
                match self.count(&name) {
                    Ok(rows) => table = json!({ "name": name, "rows": rows }),
                    Err(Fault::Sqlx(error)) if primary_code(&error) == Some(SQLITE_ERROR) => {
                        remarks.warn(format!(
                            "The rows of {} could not be counted, and a drill cannot compare them: \
                             {error}",
                            quoted(&name)
                        ));
                    }
                    Err(error) => {
                        return Err(
                            self.explain(error, &format!("count the rows of {}", quoted(&name)))
                        );
                    }
                }
            }
            tables.push(table);
        }
        if let Some(facts) = facts.as_object_mut() {
            facts.insert("tables".to_owned(), json!(tables));
        }
        Ok(facts)
    }

    /// The tables that have pages: those that virtual ones are made of are among them, virtual ones
    /// are not.
    fn tables(&mut self) -> Result<Vec<String>, SourceError> {
        let sql =
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 ORDER BY name";
        self.texts("read the schema", sql)
    }

    fn count(&mut self, table: &str) -> Result<i64, Fault> {
        self.try_value(format!("SELECT count(*) FROM main.{}", quoted(table)))
    }
}

/// Where an identifier stands in SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Why a call to SQLite did not come to its end.
enum Fault {
    Cancelled,
    Sqlx(sqlx::Error),
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlx(error)
    }
}

/// Waits for SQLite, or until cancelled.
fn wait<T>(cx: &Context, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Fault> {
    cx.runtime.block_on(async {
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(Fault::Cancelled),
            done = work =>
                done.map_err(|error| match error {
                    _ if cx.cancel.is_cancelled() => Fault::Cancelled,
                    error => Fault::Sqlx(error),
                }),
        }
    })
}

// The primary result codes that are told apart: <https://www.sqlite.org/rescode.html>.
const SQLITE_ERROR: i32 = 1;
const SQLITE_BUSY: i32 = 5;
const SQLITE_LOCKED: i32 = 6;
const SQLITE_READONLY: i32 = 8;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_CANTOPEN: i32 = 14;
const SQLITE_NOTADB: i32 = 26;

/// The low byte of the code is the primary one.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    Some(error.as_database_error()?.code()?.parse::<i32>().ok()? & 0xff)
}

fn explain(error: Fault, attempt: &str, path: &Path, busy_timeout: Duration) -> SourceError {
    let Fault::Sqlx(error) = error else { return SourceError::Cancelled };
    let code = primary_code(&error);
    let problem = match code {
        Some(SQLITE_NOTADB) => {
            return SourceError::Unsuitable(format!(
                "`{}` is not an SQLite database, or it is encrypted: its header is another",
                path.display()
            ));
        }
        Some(SQLITE_BUSY | SQLITE_LOCKED) => format!(
            "another connection kept it locked for {}. Find what holds it, or set a longer \
             `busy_timeout` ({error})",
            Span::from(busy_timeout)
        ),
        Some(SQLITE_CORRUPT) => {
            format!(
                "it is damaged ({error}). `PRAGMA integrity_check` tells more; keep the backups \
                 that you have"
            )
        }
        Some(SQLITE_READONLY) => format!(
            "a transaction that broke off must be undone first, and this program only reads. Open \
             the database once with its \
             application or with `sqlite3`, and look at it ({error})"
        ),
        Some(SQLITE_CANTOPEN) => format!(
            "it could not be opened ({error}). The file must be readable, and a database in WAL \
             mode needs its `-shm` and `-wal` \
             beside it or a folder in which they can be made"
        ),
        _ => error.to_string(),
    };
    SourceError::Database {
        attempt: attempt.to_owned(),
        target: path.display().to_string(),
        problem,
        transient: matches!(code, Some(SQLITE_BUSY | SQLITE_LOCKED)),
    }
}

/// Free bytes where `folder` lies, for who is not root.
fn free_bytes(folder: &Path) -> Result<u64, SourceError> {
    let stat = rustix::fs::statvfs(folder).map_err(|error| SourceError::Io {
        attempt: "look for free space in",
        path: folder.display().to_string(),
        error: error.into(),
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A new name that nothing has, beside or among others: 64 random bits in hexadecimal.
fn random_name() -> Result<String, SourceError> {
    let number = getrandom::u64().map_err(|error| {
        SourceError::Unsuitable(format!("The system gives no random numbers: {error}"))
    })?;
    Ok(format!("{number:016x}"))
}

/// A copy of the database that only this program can read, removed when dropped.
struct PrivateFile {
    path: PathBuf,
    file: File,
}

impl PrivateFile {
    /// An empty file in the work folder, where there is room for `image`.
    fn create(cx: &Context, image: &Image) -> Result<Self, SourceError> {
        let free = free_bytes(&cx.work_dir)?;
        if free < image.bytes() {
            return Err(SourceError::Unsuitable(format!(
                "`{}` has {} free, and a copy of the database needs {}. Make room, or use WAL \
                 mode, which needs no copy",
                cx.work_dir.display(),
                ByteSize(free),
                ByteSize(image.bytes())
            )));
        }
        Self::new(cx.work_dir.join(format!("{}-{}.sqlite", cx.name, random_name()?)))
    }

    /// A new file at `path`, where nothing may be.
    fn new(path: PathBuf) -> Result<Self, SourceError> {
        let created =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        match created {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => {
                Err(SourceError::Io { attempt: "create", path: path.display().to_string(), error })
            }
        }
    }

    /// Writes all of it to `out`.
    fn pour(
        &mut self,
        cx: &Context,
        image: &Image,
        out: &mut dyn Write,
    ) -> Result<(), SourceError> {
        let io = |error| SourceError::Io {
            attempt: "read",
            path: self.path.display().to_string(),
            error,
        };
        self.file.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut buffer = vec![0; 256 << 10];
        let mut bytes = 0;
        loop {
            if cx.cancel.is_cancelled() {
                return Err(SourceError::Cancelled);
            }
            let count = std::io::Read::read(&mut self.file, &mut buffer).map_err(io)?;
            if count == 0 {
                break;
            }
            bytes += count as u64;
            let written = out.write_all(buffer.get(..count).unwrap_or_default());
            written.map_err(|error| {
                if cx.cancel.is_cancelled() {
                    SourceError::Cancelled
                } else {
                    SourceError::Stream(error)
                }
            })?;
        }
        if bytes != image.bytes() {
            let problem = format!("it has {bytes} bytes where {} were written", image.bytes());
            return Err(io(std::io::Error::other(problem)));
        }
        Ok(())
    }
}

impl Drop for PrivateFile {
    fn drop(&mut self) {
        // One that cannot be removed lies in the private work folder; nothing else can be done
        // about it here.
        let _ = std::fs::remove_file(&self.path);
    }
}
