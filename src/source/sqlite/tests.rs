//! Copies taken while others write are whole.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use super::{RowCounts, Sqlite, SqliteConfig, SqliteRestorer};
use crate::model::{ArtifactKind, Cancel, DatabaseUrl};
use crate::source::process::Environment;
use crate::source::{
    ArtifactSpec, Context, Dumped, Finished, Level, Output, OutputWriter, Outputs, RestoreArtifact,
    RestoreJob, RestoreOptions, Restored, Restorer as _, Source as _, SourceError, Target,
};

mod restoring;

/// A folder, a runtime, and what a source is given.
struct Place {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    cancel: Cancel,
}

impl Place {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        Self { runtime, folder, cancel: Cancel::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn context(&self) -> Context {
        Context {
            name: "db".parse().unwrap(),
            cancel: self.cancel.clone(),
            runtime: self.runtime.handle().clone(),
            no_progress_timeout: Duration::from_secs(60),
            work_dir: self.path("work"),
            environment: Environment::default(),
            own_folders: Default::default(),
            heard: Default::default(),
        }
    }

    fn connect(&self, path: &Path, page_size: u32, mode: SqliteJournalMode) -> SqliteConnection {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(page_size)
            .journal_mode(mode)
            .busy_timeout(Duration::from_secs(60));
        self.runtime.block_on(options.connect()).unwrap()
    }

    fn run(&self, connection: &mut SqliteConnection, sql: &str) {
        self.runtime
            .block_on(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection))
            .unwrap();
    }

    /// One number of a database that nobody writes to.
    fn number(&self, path: &Path, sql: &str) -> i64 {
        self.runtime.block_on(async {
            let mut connection =
                SqliteConnectOptions::new().filename(path).read_only(true).connect().await.unwrap();
            let number = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
                .fetch_one(&mut connection)
                .await
                .unwrap();
            connection.close().await.unwrap();
            number
        })
    }

    fn integrity(&self, path: &Path) -> String {
        self.runtime.block_on(async {
            let mut connection =
                SqliteConnectOptions::new().filename(path).connect().await.unwrap();
            let text = sqlx::query_scalar("PRAGMA integrity_check")
                .fetch_one(&mut connection)
                .await
                .unwrap();
            connection.close().await.unwrap();
            text
        })
    }

    fn source(&self, path: &Path) -> Sqlite {
        let mut config = SqliteConfig {
            path: path.to_owned(),
            row_counts: RowCounts::Exact,
            busy_timeout: None,
        };
        config.resolve(Path::new("/"));
        Sqlite::new(config)
    }

    /// The image, and what was reported with it.
    fn dump(&self, path: &Path) -> Result<(Vec<u8>, Dumped), SourceError> {
        let collect = Collect::default();
        let dumped = self.source(path).dump(&self.context(), &collect)?;
        assert_eq!(dumped.artifacts.len(), 1);
        assert_eq!(
            std::fs::read_dir(self.path("work")).unwrap().count(),
            0,
            "the work folder is left empty"
        );
        let bytes = collect.0.lock().unwrap().clone();
        Ok((bytes, dumped))
    }

    fn restore(
        &self,
        image: &[u8],
        facts: &Value,
        target: &Target,
        overwrite: bool,
    ) -> Result<Restored, SourceError> {
        let options = RestoreOptions { overwrite, ..RestoreOptions::default() };
        SqliteRestorer.restore(
            RestoreJob {
                cx: &self.context(),
                artifact: &artifact(image, facts),
                target,
                options: &options,
            },
            &mut &*image,
        )
    }

    fn database(&self, name: &str) -> Target {
        address(&format!("sqlite://{}", self.path(name).display()))
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn artifact(image: &[u8], facts: &Value) -> RestoreArtifact {
    RestoreArtifact {
        snapshot: "20261121T013000Z-7f3a9c".to_owned(),
        name: "db.sqlite".to_owned(),
        kind: ArtifactKind::Sqlite,
        plain_bytes: Some(image.len() as u64),
        of: None,
        partial: false,
        facts: facts.clone(),
    }
}

fn address(text: &str) -> Target {
    Target::Database(DatabaseUrl::try_from(text.to_owned()).unwrap())
}

/// Keeps what a source writes, and fails after so many bytes.
#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Vec<u8>>>, Option<usize>);

impl Outputs for Collect {
    fn create(&self, spec: ArtifactSpec) -> io::Result<Output> {
        assert_eq!((spec.extension, spec.kind, spec.bulk), ("sqlite", ArtifactKind::Sqlite, true));
        Ok(Output::new(spec, Box::new(self.clone())))
    }

    fn finish(&self, output: Output) -> io::Result<Finished> {
        Ok(Finished::new(output.spec.clone(), Box::new(())))
    }
}

impl OutputWriter for Collect {
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

impl Write for Collect {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap();
        if self.1.is_some_and(|most| kept.len() + bytes.len() > most) {
            return Err(io::Error::other("The storage is full"));
        }
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rows(facts: &Value, table: &str) -> i64 {
    let tables = facts["tables"].as_array().unwrap();
    tables
        .iter()
        .find(|found| found["name"] == table)
        .and_then(|found| found["rows"].as_i64())
        .unwrap()
}

fn copies_while_others_write(mode: SqliteJournalMode) {
    const ACCOUNTS: i64 = 100;
    let place = Place::new();
    let path = place.path("live.db");
    let mut setup = place.connect(&path, 4096, mode);
    place.run(
        &mut setup,
        "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
         CREATE TABLE transfer (id INTEGER PRIMARY KEY, note TEXT);
         CREATE INDEX transfer_note ON transfer (note);
         CREATE TABLE counter (transfers INTEGER);
         INSERT INTO counter VALUES (0);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
         INSERT INTO account SELECT i, 1000 FROM n;",
    );
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..2_i64)
        .map(|seed| {
            let mut connection = place.connect(&path, 4096, mode);
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            place.runtime.spawn(async move {
                let mut state = seed;
                while !stop.load(Ordering::SeqCst) {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let (from, to) = ((state >> 33) & 63, (state >> 40) & 63);
                    let sql = format!(
                        "BEGIN IMMEDIATE;
                         UPDATE account SET balance = balance - 7 WHERE id = {from} + 1;
                         UPDATE account SET balance = balance + 7 WHERE id = {to} + 1;
                         INSERT INTO transfer (note) VALUES (hex(randomblob(100)));
                         UPDATE counter SET transfers = transfers + 1;
                         COMMIT;"
                    );
                    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut counts = Vec::new();
    for number in 0..6 {
        let before = done.load(Ordering::SeqCst);
        let (image, dumped) = place.dump(&path).unwrap();
        let facts = &dumped.facts;
        assert_eq!(dumped.consistency, "snapshot");
        assert_eq!(
            image.len() as u64,
            facts["pages"].as_u64().unwrap() * facts["page_size"].as_u64().unwrap()
        );
        let copy = place.path(&format!("copy{number}.db"));
        std::fs::write(&copy, &image).unwrap();
        assert_eq!(place.integrity(&copy), "ok");
        assert_eq!(place.number(&copy, "SELECT sum(balance) FROM account"), ACCOUNTS * 1000);
        let transfers = place.number(&copy, "SELECT count(*) FROM transfer");
        assert_eq!(place.number(&copy, "SELECT transfers FROM counter"), transfers);
        assert_eq!((rows(facts, "account"), rows(facts, "transfer")), (ACCOUNTS, transfers));
        assert!(transfers.unsigned_abs() >= before, "what was committed before is in the copy");
        counts.push(transfers);
        // The next copy is of another state: wait until a writer has got further.
        while done.load(Ordering::SeqCst) < transfers.unsigned_abs() + 20 {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        place.runtime.block_on(writer).unwrap();
    }
    assert!(counts.windows(2).all(|pair| pair[0] < pair[1]), "{counts:?}");
    drop(setup);
}

#[test]
fn copies_are_whole_while_others_write_in_wal_mode() {
    copies_while_others_write(SqliteJournalMode::Wal);
}

#[test]
fn copies_are_whole_while_others_write_in_rollback_mode() {
    copies_while_others_write(SqliteJournalMode::Delete);
}

#[test]
fn what_is_only_in_the_write_ahead_log_is_in_the_copy_and_the_database_is_left_alone() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut writer = place.connect(&path, 4096, SqliteJournalMode::Wal);
    place.run(
        &mut writer,
        "CREATE TABLE t (a); PRAGMA wal_checkpoint(TRUNCATE); PRAGMA wal_autocheckpoint = 0;",
    );
    place.run(&mut writer, "INSERT INTO t VALUES (1), (2), (3);");
    let main = std::fs::read(&path).unwrap();
    let (image, dumped) = place.dump(&path).unwrap();
    assert_eq!(dumped.facts["journal_mode"], "wal");
    assert_eq!(rows(&dumped.facts, "t"), 3);
    assert_ne!(image, main);
    assert_eq!(std::fs::read(&path).unwrap(), main, "nothing was folded back");
    let restored = place.restore(&image, &dumped.facts, &place.database("back.db"), false).unwrap();
    assert!(restored.remarks.warnings.is_empty());
    assert_eq!(place.number(&place.path("back.db"), "SELECT count(*) FROM t"), 3);
    drop(writer);
}

/// Most that a schema may have.
const SCHEMA: &str = r#"
    CREATE TABLE "we""ird name" ("a ""b""" TEXT, 'c d' INTEGER DEFAULT 3);
    INSERT INTO "we""ird name" VALUES ('æøå', 1), (NULL, 2), (x'00ff', 3);
    CREATE TABLE pair (a INTEGER, b TEXT, PRIMARY KEY (b, a)) WITHOUT ROWID;
    INSERT INTO pair VALUES (1, 'x'), (2, 'y');
    CREATE TABLE made (a INTEGER, twice INTEGER GENERATED ALWAYS AS (a * 2) STORED, thrice AS (a * 3));
    INSERT INTO made (a) VALUES (1), (2), (3), (4);
    CREATE TABLE numbered (id INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB) STRICT;
    INSERT INTO numbered (body) SELECT zeroblob(20000) UNION ALL SELECT randomblob(70000);
    CREATE UNIQUE INDEX made_a ON made (a) WHERE a > 1;
    CREATE INDEX made_lower ON made (abs(twice));
    CREATE VIEW seen AS SELECT a, thrice FROM made;
    CREATE TRIGGER watch AFTER INSERT ON pair BEGIN INSERT INTO made (a) VALUES (new.a + 100); END;
    CREATE VIRTUAL TABLE words USING fts5(body);
    INSERT INTO words VALUES ('the quick brown fox'), ('jumps over');
    CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1);
    INSERT INTO boxes VALUES (1, 0.0, 1.0);
    PRAGMA user_version = 42;
    PRAGMA application_id = 77;
"#;

#[test]
fn every_page_size_and_kind_of_table_comes_back_byte_for_byte() {
    for mode in [SqliteJournalMode::Wal, SqliteJournalMode::Delete] {
        for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
            let place = Place::new();
            let path = place.path("app 1.db");
            let mut connection = place.connect(&path, page_size, mode);
            place.run(&mut connection, SCHEMA);
            let (image, dumped) = place.dump(&path).unwrap();
            let facts = &dumped.facts;
            assert!(dumped.remarks.warnings.is_empty(), "{:?}", dumped.remarks.warnings);
            assert_eq!((&facts["type"], &facts["v"]), (&"sqlite".into(), &1.into()));
            assert_eq!(facts["page_size"], page_size);
            assert_eq!(rows(facts, "we\"ird name"), 3);
            assert_eq!(
                (rows(facts, "pair"), rows(facts, "made"), rows(facts, "numbered")),
                (2, 4, 2)
            );
            assert_eq!(rows(facts, "words_docsize"), 2);
            assert_eq!(
                (&facts["user_version"], &facts["application_id"]),
                (&42.into(), &77.into())
            );
            assert_eq!(facts["views"], serde_json::json!(["seen"]));
            assert_eq!(facts["triggers"], serde_json::json!(["watch"]));
            assert!(facts["indexes"].as_array().unwrap().contains(&"made_lower".into()));

            let folder = Target::Folder(place.path("out/db"));
            let restored = place.restore(&image, facts, &folder, false).unwrap();
            let back = place.path("out/db/app 1.db");
            assert_eq!(
                (restored.place, restored.remarks.warnings.count()),
                (back.display().to_string(), 0)
            );
            assert_eq!(std::fs::read(&back).unwrap(), image);
            assert_eq!(place.names("out/db"), ["app 1.db"], "nothing else is left there");
            // The judge: another connection to the original says the same as one to the copy.
            for sql in [
                "SELECT count(*) FROM sqlite_schema",
                "SELECT sum(length(body)) FROM numbered",
                "SELECT count(*) FROM words WHERE words MATCH 'quick'",
                "SELECT sum(thrice) FROM seen",
                "SELECT count(*) FROM boxes WHERE x1 > 0.5",
                "SELECT seq FROM sqlite_sequence",
            ] {
                assert_eq!(place.number(&back, sql), place.number(&path, sql), "{sql}");
            }
            place.runtime.block_on(connection.close()).unwrap();
        }
    }
}

#[test]
fn an_empty_database_is_copied_with_a_warning() {
    let place = Place::new();
    std::fs::write(place.path("empty.db"), b"").unwrap();
    let (image, dumped) = place.dump(&place.path("empty.db")).unwrap();
    assert!(image.is_empty());
    assert_eq!((dumped.facts["pages"].as_u64(), dumped.remarks.warnings.count()), (Some(0), 1));
    place.restore(&image, &dumped.facts, &place.database("back.db"), false).unwrap();
    assert_eq!(std::fs::read(place.path("back.db")).unwrap(), b"");
}

#[test]
fn what_cannot_be_copied_is_said_in_words() {
    let place = Place::new();
    let noise: Vec<u8> = (0..20_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    std::fs::write(place.path("noise.db"), noise).unwrap();
    for (name, words) in [
        ("missing.db", "does not exist"),
        ("work", "is not a file"),
        ("noise.db", "is not an SQLite database, or it is encrypted"),
    ] {
        let error =
            place.dump(&place.path(name)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(words) && error.contains(name), "{error}");
        let findings = place.source(&place.path(name)).check(&place.context());
        assert!(
            findings
                .iter()
                .any(|finding| finding.level == Level::Error && finding.message.contains(words))
        );
    }
    assert!(!place.path("missing.db").exists(), "looking did not make it");
}

#[test]
fn a_database_that_stays_locked_is_an_error_that_may_pass() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Delete);
    place.run(&mut connection, "CREATE TABLE t (a); BEGIN EXCLUSIVE;");
    let busy_timeout = Some("0s".parse().unwrap());
    let source = Sqlite::new(SqliteConfig { path, row_counts: RowCounts::Exact, busy_timeout });
    let error = source.dump(&place.context(), &Collect::default()).err();
    assert!(matches!(error, Some(SourceError::Database { transient: true, .. })), "{error:?}");
    assert!(error.is_some_and(|error| error.to_string().contains("locked")));
}

#[test]
fn an_output_that_fails_fails_the_dump() {
    for mode in [SqliteJournalMode::Wal, SqliteJournalMode::Delete] {
        let place = Place::new();
        let path = place.path("app.db");
        let mut connection = place.connect(&path, 1024, mode);
        place.run(&mut connection, SCHEMA);
        let outputs = Collect(Arc::default(), Some(5_000));
        let error = place.source(&path).dump(&place.context(), &outputs).err();
        assert!(matches!(error, Some(SourceError::Stream(_))), "{error:?}");
        assert_eq!(place.names("work"), [""; 0]);
        // And the database is free again.
        place.run(&mut connection, "BEGIN EXCLUSIVE; COMMIT;");
    }
}

/// Takes what comes, and cancels the run.
#[derive(Clone)]
struct CancelsOnWrite(Cancel);

impl Outputs for CancelsOnWrite {
    fn create(&self, spec: ArtifactSpec) -> io::Result<Output> {
        Ok(Output::new(spec, Box::new(self.clone())))
    }

    fn finish(&self, output: Output) -> io::Result<Finished> {
        Ok(Finished::new(output.spec.clone(), Box::new(())))
    }
}

impl OutputWriter for CancelsOnWrite {
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

impl Write for CancelsOnWrite {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.cancel();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_run_that_is_cancelled_midway_ends_and_leaves_nothing() {
    for mode in [SqliteJournalMode::Wal, SqliteJournalMode::Delete] {
        let place = Place::new();
        let path = place.path("app.db");
        let mut connection = place.connect(&path, 1024, mode);
        place.run(&mut connection, SCHEMA);
        place.run(&mut connection, "INSERT INTO numbered (body) VALUES (zeroblob(1000000))");
        let outputs = CancelsOnWrite(place.cancel.clone());
        assert!(matches!(
            place.source(&path).dump(&place.context(), &outputs).err(),
            Some(SourceError::Cancelled)
        ));
        assert_eq!(place.names("work"), [""; 0]);
        let result = place.restore(b"", &Value::Null, &place.database("back.db"), false);
        assert!(matches!(result.err(), Some(SourceError::Cancelled)));
        assert!(!place.names(".").iter().any(|name| name.contains("back.db")));
        place.run(&mut connection, "BEGIN EXCLUSIVE; COMMIT;");
    }
}

#[test]
fn a_count_that_takes_long_ends_when_cancelled() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Wal);
    place.run(&mut connection, "CREATE TABLE t (a)");
    let (cx, cancel) = (place.context(), place.cancel.clone());
    let mut session =
        super::Session::open(&cx, &path, Duration::ZERO, SqliteConnectOptions::new()).unwrap();
    let canceller = std::thread::spawn(move || cancel.cancel());
    let endless =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let error = session.value::<i64>("count", endless).err();
    assert!(matches!(error, Some(SourceError::Cancelled)), "{error:?}");
    canceller.join().unwrap();
    // Closing waits for the thread that SQLite runs on: it was interrupted, so it comes.
    place.runtime.block_on(session.connection.close()).unwrap();
}

#[test]
fn a_database_in_wal_mode_that_nobody_has_open_is_copied_and_opens_afterwards() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Wal);
    place.run(&mut connection, SCHEMA);
    place.runtime.block_on(connection.close()).unwrap();
    assert_eq!(place.names("."), ["app.db", "work"]);
    let before = std::fs::read(&path).unwrap();
    let (image, dumped) = place.dump(&path).unwrap();
    assert!(image == before && dumped.remarks.warnings.is_empty());
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Wal);
    place.run(&mut connection, "INSERT INTO pair VALUES (3, 'z')");
    place.runtime.block_on(connection.close()).unwrap();
    assert_eq!(
        place.names("."),
        ["app.db", "work"],
        "what reading made beside it goes with the next writer"
    );
}

/// The `sqlite3` program, a process of its own, with a database open.
struct Application(std::process::Child);

impl Application {
    #[expect(
        clippy::disallowed_methods,
        reason = "another process has locks of its own, and can be killed"
    )]
    fn open(path: &Path) -> Self {
        let child = std::process::Command::new("sqlite3")
            .arg(path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("`sqlite3` is needed by the tests");
        Self(child)
    }

    /// Runs `sql`, and returns when it is done.
    fn run(&mut self, sql: &str) {
        use std::io::BufRead as _;
        writeln!(self.0.stdin.as_mut().unwrap(), "{sql}; SELECT 'it is done';").unwrap();
        let lines = io::BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.map(Result::unwrap).any(|line| line == "it is done"));
    }

    fn close(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn what_a_killed_application_committed_in_wal_mode_is_in_the_copy() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut application = Application::open(&path);
    application.run("PRAGMA journal_mode = WAL; CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)");
    application.run("BEGIN; INSERT INTO t VALUES (3)");
    application.kill();
    let (image, dumped) = place.dump(&path).unwrap();
    assert_eq!(rows(&dumped.facts, "t"), 2);
    place.restore(&image, &dumped.facts, &place.database("back.db"), false).unwrap();
}

#[test]
fn a_transaction_that_broke_off_in_rollback_mode_is_not_copied_half() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut application = Application::open(&path);
    application.run("CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(100000))");
    // So small a cache writes to the file before the commit.
    application.run("PRAGMA cache_size = 1; BEGIN; UPDATE t SET a = randomblob(100000)");
    application.run("INSERT INTO t SELECT randomblob(100000) FROM t, t AS u");
    application.kill();
    let before = std::fs::read(&path).unwrap();
    let error = place.dump(&path).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(error.contains("a transaction that broke off must be undone first"), "{error}");
    assert!(
        std::fs::read(&path).unwrap() == before && place.path("app.db-journal").exists(),
        "it was only read"
    );
    let mut application = Application::open(&path);
    application.run("SELECT count(*) FROM t");
    application.close();
    assert_eq!(rows(&place.dump(&path).unwrap().1.facts, "t"), 1);
}

#[test]
fn without_counting_the_tables_are_still_named() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Wal);
    place.run(&mut connection, "CREATE TABLE t (a); INSERT INTO t VALUES (1);");
    let source = Sqlite::new(SqliteConfig { path, row_counts: RowCounts::Off, busy_timeout: None });
    let dumped = source.dump(&place.context(), &Collect::default()).unwrap();
    assert_eq!(dumped.facts["tables"], serde_json::json!([{ "name": "t" }]));
    let findings = source.check(&place.context());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
}
