//! PostgreSQL out and back, on real servers of three majors, with real tools and with ones that
//! fail.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use holdfast::model::{ArtifactKind, DatabaseUrl, Secret, Span};
use holdfast::source::postgres::{Postgres, PostgresConfig, PostgresRestorer, RowCounts};
use holdfast::source::process::{Call, ProcessError};
use holdfast::source::{
    Dumped, Level, RestoreArtifact, RestoreJob, RestoreOptions, Restorer, Source, SourceError,
    Target,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::sh;
use crate::support::sources::{Bench, Damaged, Kept, script};

const MAJORS: [u32; 3] = [15, 16, 18];

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tests/run"))
}

/// A bench beside one of the real servers, with clients of all majors in its search path.
struct Server {
    bench: Bench,
    major: u32,
    url: String,
}

impl Server {
    fn new(major: u32) -> Self {
        let mut bench = Bench::new();
        let path = bench.cx.environment.get("PATH").unwrap_or_default().to_owned();
        let mut folders: Vec<PathBuf> =
            MAJORS.iter().map(|major| Self::client_dir(*major)).collect();
        folders.extend(std::env::split_paths(&path));
        bench.cx.environment.0.insert("PATH".into(), std::env::join_paths(folders).unwrap());
        Self { bench, major, url: variable(&format!("HOLDFAST_TEST_PG{major}_URL")) }
    }

    fn client_dir(major: u32) -> PathBuf {
        variable(&format!("HOLDFAST_TEST_PG{major}_BIN")).into()
    }

    fn url(&self, database: &str) -> String {
        let mut url = url::Url::parse(&self.url).unwrap();
        url.set_path(database);
        url.to_string()
    }

    fn connect(&self, database: &str) -> PgConnection {
        let url = self.url(database);
        self.bench.wait(async { PgConnection::connect(&url).await }).unwrap()
    }

    fn run(&self, database: &str, sql: &str) {
        let mut connection = self.connect(database);
        self.bench.wait(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection)).unwrap();
    }

    fn number(&self, database: &str, sql: &str) -> i64 {
        let mut connection = self.connect(database);
        self.bench.wait(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection)).unwrap()
    }

    fn database(&self) -> Database<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hf_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.run("postgres", &format!("CREATE DATABASE {name}"));
        Database { server: self, name }
    }

    /// The whole of a database as sorted lines of SQL, by the tools alone.
    fn canonical(&self, database: &str) -> Vec<String> {
        let url = url::Url::parse(&self.url).unwrap();
        let file = self.bench.path("canonical.sql");
        let call = Call::new(&self.bench.cx, Self::client_dir(self.major).join("pg_dump"), "dump")
            .variable("PGPASSWORD", url.password().unwrap())
            .variable("PGHOST", url.host_str().unwrap())
            .variable("PGPORT", url.port().unwrap().to_string())
            .variable("PGUSER", url.username())
            .args(["--file", file.to_str().unwrap(), database]);
        call.capture(&self.bench.cx, 1_000).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        // A key that is new each time.
        let varies =
            |line: &&str| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ");
        let mut lines: Vec<String> =
            text.lines().filter(|line| !varies(line)).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }
}

struct Database<'a> {
    server: &'a Server,
    name: String,
}

impl Database<'_> {
    fn run(&self, sql: &str) {
        self.server.run(&self.name, sql);
    }

    fn url(&self) -> DatabaseUrl {
        self.server.url(&self.name).try_into().unwrap()
    }

    fn target(&self) -> Target {
        Target::Database(self.url())
    }

    fn config(&self) -> PostgresConfig {
        config(&self.server.url(&self.name))
    }

    fn dump(&self) -> (Dumped, Kept) {
        let outputs = Kept::default();
        let dumped = Postgres::new(self.config()).dump(&self.server.bench.cx, &outputs).unwrap();
        (dumped, outputs)
    }

    fn is_empty(&self) -> bool {
        self.server.number(
            &self.name,
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace",
        ) == 0
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        self.server.run("postgres", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}

fn config(url: &str) -> PostgresConfig {
    PostgresConfig {
        url: url.to_owned().try_into().unwrap(),
        password: None,
        globals: false,
        row_counts: RowCounts::Exact,
        client_dir: None,
        lock_timeout: Span::from(Duration::from_secs(10)),
        accept_warnings: Vec::new(),
    }
}

fn artifact(dumped: &Dumped) -> RestoreArtifact {
    RestoreArtifact {
        snapshot: "20261121T013000Z-7f3a9c".to_owned(),
        name: "src.pgdump".to_owned(),
        kind: ArtifactKind::PgDump,
        plain_bytes: None,
        of: None,
        partial: false,
        facts: dumped.facts.clone(),
    }
}

fn rows(dumped: &Dumped, table: &str) -> Option<i64> {
    let tables = dumped.facts["tables"].as_array().unwrap();
    tables.iter().find(|found| found["name"] == table).and_then(|found| found["rows"].as_i64())
}

/// All that the three protected systems use, and what else is known to get lost.
const RICH: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE SCHEMA "Other Schema";
CREATE TABLE "user" (id serial PRIMARY KEY, name text NOT NULL, "we""ird" mood, tags text[], address inet,
  doc jsonb, words tsvector, active bool DEFAULT true, full_name text GENERATED ALWAYS AS (upper(name)) STORED);
CREATE UNIQUE INDEX one_active ON "user" (name) WHERE active;
CREATE INDEX ON "user" USING gin (words);
INSERT INTO "user" (name, "we""ird", tags, address, doc, words)
  SELECT 'n' || i, 'happy', ARRAY['a', NULL, 'c"' || i], '10.0.0.1/8', jsonb_build_object('k', i), to_tsvector('simple', 'a b ' || i)
  FROM generate_series(1, 1000) i;
CREATE TABLE "Other Schema"."empty one" (at timestamptz, CHECK (at > '2000-01-01'));
CREATE TABLE parted (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (1000);
INSERT INTO parted SELECT i, 'v' || i FROM generate_series(0, 99) i;
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3), (4, 5);
CREATE TABLE log (what text, at int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN INSERT INTO log VALUES (NEW.name, 1); RETURN NEW; END $f$;
CREATE TRIGGER noted AFTER INSERT ON "user" FOR EACH ROW EXECUTE FUNCTION note();
INSERT INTO "user" (name, active) VALUES ('n1', false);
CREATE VIEW moods AS SELECT "we""ird" AS m, count(*) FROM "user" GROUP BY 1;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM "user";
CREATE SEQUENCE steps INCREMENT 7; SELECT nextval('steps'), nextval('steps');
SELECT lo_from_bytea(424242, '\xdeadbeef');
CREATE UNLOGGED TABLE quick (x float8); INSERT INTO quick VALUES ('NaN'), (1e-300), (0.1);
CREATE TEMP TABLE gone (x int);
"#;

#[test]
fn a_database_comes_back_as_it_was_on_every_major() {
    for major in MAJORS {
        let server = Server::new(major);
        let (original, copy, parallel) = (server.database(), server.database(), server.database());
        original.run(RICH);
        let (dumped, outputs) = original.dump();
        assert_eq!(dumped.consistency, "snapshot");
        assert!(dumped.remarks.warnings.is_empty(), "{:?}", dumped.remarks.warnings);
        // The client of the server's own major, though newer ones are there.
        let client = dumped.facts["client_version"].as_str().unwrap();
        assert!(client.starts_with(&format!("{major}.")), "{client}");
        for (table, expected) in [
            ("user", 1_001),
            ("empty one", 0),
            ("parted_low", 10),
            ("parted_high", 90),
            ("parent", 1),
            ("child", 2),
            ("quick", 3),
        ] {
            assert_eq!(rows(&dumped, table), Some(expected), "{table}");
        }
        assert_eq!(rows(&dumped, "parted"), None);
        for (what, expected) in [
            ("enums", 1),
            ("functions", 1),
            ("triggers", 1),
            ("sequences", 2),
            ("views", 1),
            ("large_objects", 1),
        ] {
            assert_eq!(dumped.facts["counts"][what], expected, "{what}");
        }
        assert!(
            !dumped
                .facts
                .to_string()
                .contains(url::Url::parse(&server.url).unwrap().password().unwrap())
        );

        let stream = outputs.bytes("pgdump");
        let before = server.canonical(&original.name);
        for (target, jobs) in [(&copy, 1), (&parallel, 3)] {
            let options = RestoreOptions { jobs, ..RestoreOptions::default() };
            let artifact =
                RestoreArtifact { plain_bytes: Some(stream.len() as u64), ..artifact(&dumped) };
            PostgresRestorer
                .prepare(RestoreJob {
                    cx: &server.bench.cx,
                    artifact: &artifact,
                    target: &target.target(),
                    options: &options,
                })
                .unwrap();
            let restored = PostgresRestorer
                .restore(
                    RestoreJob {
                        cx: &server.bench.cx,
                        artifact: &artifact,
                        target: &target.target(),
                        options: &options,
                    },
                    &mut stream.as_slice(),
                )
                .unwrap();
            assert!(
                restored.place.contains(&target.name) && restored.place.contains("***"),
                "{}",
                restored.place
            );
            assert_eq!(server.canonical(&target.name), before, "PostgreSQL {major}, {jobs} jobs");
        }
        let left = std::fs::read_dir(&server.bench.cx.work_dir).unwrap();
        let left: Vec<_> = left
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "canonical.sql")
            .collect();
        assert!(left.is_empty(), "{left:?}");

        // What is there is refused, and replaced only on request.
        let refused = PostgresRestorer.prepare(RestoreJob {
            cx: &server.bench.cx,
            artifact: &artifact(&dumped),
            target: &copy.target(),
            options: &RestoreOptions::default(),
        });
        assert!(
            matches!(&refused, Err(SourceError::NotEmpty(place)) if place.contains("***")),
            "{refused:?}"
        );
        copy.run("DELETE FROM \"user\"; CREATE TABLE later (x int)");
        let options =
            RestoreOptions { overwrite: true, no_owner: true, ..RestoreOptions::default() };
        let restored = PostgresRestorer
            .restore(
                RestoreJob {
                    cx: &server.bench.cx,
                    artifact: &artifact(&dumped),
                    target: &copy.target(),
                    options: &options,
                },
                &mut stream.as_slice(),
            )
            .unwrap();
        assert!(
            restored.remarks.warnings.kept()[0].note.reason.contains("`public.later`"),
            "{:?}",
            restored.remarks.warnings
        );
        copy.run("DROP TABLE later");
        assert_eq!(server.canonical(&copy.name), before);
    }
}

#[test]
fn the_rows_in_the_facts_are_those_in_the_dump_while_others_write() {
    let server = Server::new(16);
    let (original, copy) = (server.database(), server.database());
    original.run(
        "CREATE TABLE a (x int, pad text); CREATE TABLE b (x int); INSERT INTO a SELECT \
        i, repeat('x', 500) FROM generate_series(1, 20000) i",
    );
    let stop = AtomicBool::new(false);
    let (dumped, outputs) = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut connection = server.connect(&original.name);
                while !stop.load(Ordering::Relaxed) {
                    let sql = "INSERT INTO a SELECT 0, 'y' FROM generate_series(1, 20); INSERT \
                        INTO b VALUES (1); DELETE FROM a WHERE x = \
                               (SELECT max(x) FROM a WHERE x > 0)";
                    server.bench.wait(sqlx::raw_sql(sql).execute(&mut connection)).unwrap();
                }
            });
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| original.dump()));
        stop.store(true, Ordering::Relaxed);
        result.unwrap()
    });
    let options = RestoreOptions::default();
    PostgresRestorer
        .restore(
            RestoreJob {
                cx: &server.bench.cx,
                artifact: &artifact(&dumped),
                target: &copy.target(),
                options: &options,
            },
            &mut outputs.bytes("pgdump").as_slice(),
        )
        .unwrap();
    for table in ["a", "b"] {
        let restored = server.number(&copy.name, &format!("SELECT count(*) FROM {table}"));
        assert_eq!(rows(&dumped, table), Some(restored), "{table}");
    }
}

/// Dumps with a `pg_dump` that runs a statement before the real one, or after it.
fn dumped_beside(database: &Database, before: &str, after: &str) -> Dumped {
    let bench = &database.server.bench;
    let tools = Server::client_dir(18).display().to_string();
    let run = |statement: &str| match statement {
        "" => "true".to_owned(),
        _ => format!(
            "{tools}/psql -Xqv ON_ERROR_STOP=1 -c \"SET lock_timeout = '20s'\" -c '{statement}' >&2"
        ),
    };
    let body = format!(
        "[ \"$1\" != --version ] || exec {tools}/pg_dump --version\n\
         {} && {tools}/pg_dump \"$@\" && {}",
        run(before),
        run(after)
    );
    let folder = bench.path("tools");
    script(&folder.join("pg_dump"), &body);
    let config = PostgresConfig { client_dir: Some(folder), ..database.config() };
    Postgres::new(config).dump(&bench.cx, &Kept::default()).unwrap()
}

#[test]
fn rows_are_counted_as_the_dump_has_them() {
    let server = Server::new(18);
    for (before, rows_of_a, warned) in [
        ("TRUNCATE a", 0, true),
        ("TRUNCATE a; INSERT INTO a VALUES (3)", 0, true),
        ("ALTER TABLE a ALTER x TYPE bigint", 0, true),
        ("CLUSTER a USING by_x", 2, false),
        ("DELETE FROM a", 2, false),
    ] {
        let database = server.database();
        database.run(
            "CREATE TABLE a (x int); CREATE INDEX by_x ON a (x); INSERT INTO a VALUES (1), (2); \
             CREATE TABLE b AS SELECT 1 AS x; CREATE TABLE c (x int)",
        );
        let dumped = dumped_beside(&database, before, "");
        let counted = (rows(&dumped, "a"), rows(&dumped, "b"), rows(&dumped, "c"));
        assert_eq!(counted, (Some(rows_of_a), Some(1), Some(0)), "{before}");
        let warnings = dumped.remarks.warnings.kept();
        let paths: Vec<_> = warnings.iter().map(|it| it.note.path.as_deref()).collect();
        let expected: &[_] = if warned { &[Some("\"public\".\"a\"")] } else { &[] };
        assert_eq!(paths, expected, "{before}");
    }
}

#[test]
fn rows_gone_after_the_dump_are_a_note() {
    let server = Server::new(18);
    let database = server.database();
    database.run("CREATE TABLE a AS SELECT 1 AS x; CREATE TABLE b AS SELECT 1 AS x");
    let folder = server.bench.path("tools");
    let version = "if [ \"$1\" = --version ]; then echo 'pg_dump (PostgreSQL) 18.1'; exit; fi";
    script(&folder.join("pg_dump"), &format!("{version}\necho dump"));
    let mut holder = server.connect(&database.name);
    server.bench.wait(sqlx::raw_sql("BEGIN; LOCK TABLE a").execute(&mut holder)).unwrap();
    // The count waits for the table when its rows go.
    let (runtime, holder) = (server.bench.cx.runtime.clone(), std::sync::Mutex::new(holder));
    let waits = "SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND NOT granted";
    let outputs = Kept {
        at_write: Some(Arc::new(move |_| {
            let mut holder = holder.lock().unwrap();
            runtime.block_on(async {
                while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut *holder).await.unwrap()
                    == 0
                {}
                sqlx::raw_sql("TRUNCATE a; COMMIT").execute(&mut *holder).await.unwrap();
            });
        })),
        ..Kept::default()
    };
    let config = PostgresConfig { client_dir: Some(folder), ..database.config() };
    let dumped = Postgres::new(config).dump(&server.bench.cx, &outputs).unwrap();
    assert_eq!((rows(&dumped, "a"), rows(&dumped, "b")), (None, Some(1)));
    let notes = dumped.remarks.notes.kept();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert_eq!(notes[0].path.as_deref(), Some("\"public\".\"a\""));
    assert!(dumped.remarks.warnings.is_empty());
}

#[test]
fn the_password_is_neither_in_the_arguments_nor_in_the_environment_of_a_tool() {
    let server = Server::new(18);
    let database = server.database();
    let role = format!("{}_role", database.name);
    let password = r"sec:ret\wi'th $odd€";
    database.run(&format!(
        "CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{}'",
        password.replace('\'', "''")
    ));
    // The real tool, after it noted what everyone can see of it.
    let tools = server.bench.path("tools");
    let real = Server::client_dir(18);
    let body = format!(
        "tr '\\0' '\\n' < /proc/$$/cmdline > {0}/seen; tr '\\0' '\\n' < /proc/$$/environ >> \
         {0}/seen; exec {1}/pg_dump \"$@\"",
        server.bench.folder.path().display(),
        real.display()
    );
    script(&tools.join("pg_dump"), &body);
    let mut url = url::Url::parse(&server.url(&database.name)).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(None).unwrap();
    let config = PostgresConfig {
        password: Some(Secret::new(password)),
        client_dir: Some(tools),
        ..config(url.as_str())
    };
    let result = Postgres::new(config.clone()).dump(&server.bench.cx, &Kept::default());
    let seen = std::fs::read_to_string(server.bench.path("seen")).unwrap();
    drop(result.unwrap());
    database.run(&format!("DROP ROLE {role}"));
    assert!(seen.contains("PGPASSFILE=/proc/") && seen.contains("--format=custom"), "{seen}");
    assert!(!seen.contains("sec:ret") && !seen.contains("odd"), "{seen}");
    assert!(!format!("{config:?}{}", serde_json::to_string(&config).unwrap()).contains("odd"));
}

#[test]
fn an_older_client_is_refused_before_the_run_and_the_needed_one_is_named() {
    let server = Server::new(18);
    let database = server.database();
    let config = PostgresConfig { client_dir: Some(Server::client_dir(15)), ..database.config() };
    let source = Postgres::new(config);
    let outputs = Kept::default();
    let error = source.dump(&server.bench.cx, &outputs).err().unwrap().to_string();
    assert!(error.contains("`postgresql-client-18`") && error.contains("found: 15."), "{error}");
    assert!(outputs.streams.lock().unwrap().is_empty());
    let findings = source.check(&server.bench.cx);
    assert!(
        findings.iter().any(|found| found.level == Level::Error && found.subject == "pg_dump"),
        "{findings:?}"
    );
    assert!(
        Postgres::new(database.config())
            .check(&server.bench.cx)
            .iter()
            .all(|found| found.level == Level::Ok)
    );
}

#[test]
fn a_dump_of_a_newer_client_is_refused_for_an_old_server_before_it_is_touched() {
    let server = Server::new(15);
    let (original, copy) = (server.database(), server.database());
    original.run("CREATE TABLE a (x int)");
    let config = PostgresConfig { client_dir: Some(Server::client_dir(18)), ..original.config() };
    let dumped = Postgres::new(config).dump(&server.bench.cx, &Kept::default()).unwrap();
    let error = PostgresRestorer
        .prepare(RestoreJob {
            cx: &server.bench.cx,
            artifact: &artifact(&dumped),
            target: &copy.target(),
            options: &RestoreOptions::default(),
        })
        .unwrap_err()
        .to_string();
    assert!(error.contains("transaction_timeout"), "{error}");
}

#[test]
fn tools_that_fail_leave_no_dump() {
    let mut server = Server::new(15);
    server.bench.cx.no_progress_timeout = Duration::from_secs(2);
    let database = server.database();
    type Expected = fn(&SourceError) -> bool;
    let cases: [(&str, &str, Expected); 5] = [
        ("late", "head -c 1000000 /dev/zero; echo no space left >&2; exit 1", |error| {
            matches!(error, SourceError::Process(ProcessError::Exit { status: 1, .. }))
                && error.to_string().contains("no space left")
        }),
        ("signal", "head -c 1000000 /dev/zero; kill -11 $$", |error| {
            matches!(error, SourceError::Process(ProcessError::Signal { .. }))
                && error.to_string().contains("SIGSEGV")
        }),
        ("flood", "head -c 100000000 /dev/zero >&2; exit 9", |error| {
            matches!(error, SourceError::Process(ProcessError::Exit { status: 9, .. }))
        }),
        ("hang", "echo some; sleep 1000", |error| {
            matches!(error, SourceError::Process(ProcessError::Hung { .. }))
        }),
        ("held", "sleep 1000 & echo some", |error| {
            matches!(error, SourceError::Process(ProcessError::HeldOpen { .. }))
        }),
    ];
    for (name, body, expected) in cases {
        let folder = server.bench.path(name);
        let version = "if [ \"$1\" = --version ]; then echo 'pg_dump (PostgreSQL) 15.1'; exit; fi";
        script(&folder.join("pg_dump"), &format!("{version}\n{body}"));
        let config = PostgresConfig { client_dir: Some(folder), ..database.config() };
        let error = Postgres::new(config).dump(&server.bench.cx, &Kept::default()).err().unwrap();
        assert!(expected(&error), "{name}: {error}");
    }
    // Nothing of ours stays behind on the server.
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", database.name);
    let mut connection = server.connect("postgres");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let sessions: i64 = server
            .bench
            .wait(sqlx::query_scalar(AssertSqlSafe(sql.as_str())).fetch_one(&mut connection))
            .unwrap();
        if sessions == 0 {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{sessions} sessions are left");
    }
}

#[test]
fn a_server_that_refuses_or_is_not_there_is_named_without_the_password() {
    let server = Server::new(16);
    let cases = [
        ("postgresql://postgres:hunter2@127.0.0.1:1/x".to_owned(), true, "reached"),
        (
            server
                .url
                .replace(url::Url::parse(&server.url).unwrap().password().unwrap(), "hunter2"),
            false,
            "28P01",
        ),
        (server.url("no_such_database"), false, "createdb"),
    ];
    for (url, passing, part) in cases {
        let error =
            Postgres::new(config(&url)).dump(&server.bench.cx, &Kept::default()).err().unwrap();
        assert!(
            matches!(&error, SourceError::Database { transient, .. } if *transient == passing),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(text.contains(part) && !text.contains("hunter2") && text.contains("***"), "{text}");
    }
}

#[test]
fn a_cut_or_damaged_stream_leaves_the_target_as_it_was() {
    let server = Server::new(15);
    let (original, copy) = (server.database(), server.database());
    original.run(RICH);
    let (dumped, outputs) = original.dump();
    let stream = outputs.bytes("pgdump");
    for jobs in [1, 2] {
        let options = RestoreOptions { jobs, ..RestoreOptions::default() };
        for kept in [stream.len() - 1, stream.len() / 2, 5] {
            let mut damaged = Damaged(&stream[..kept]);
            let error = PostgresRestorer
                .restore(
                    RestoreJob {
                        cx: &server.bench.cx,
                        artifact: &artifact(&dumped),
                        target: &copy.target(),
                        options: &options,
                    },
                    &mut damaged,
                )
                .unwrap_err();
            // pg_restore itself may be quicker to see that a dump of five bytes is none.
            assert!(matches!(error, SourceError::Stream(_)) || kept == 5, "{error}");
            assert!(copy.is_empty(), "{jobs} jobs, {kept} bytes");
        }
    }
    let mut cut = &stream[..stream.len() - 1];
    let error = PostgresRestorer
        .restore(
            RestoreJob {
                cx: &server.bench.cx,
                artifact: &artifact(&dumped),
                target: &copy.target(),
                options: &RestoreOptions::default(),
            },
            &mut cut,
        )
        .unwrap_err();
    assert!(error.to_string().contains("hint: The stream ended too early"), "{error}");
    assert!(copy.is_empty());
}

#[test]
fn a_restore_that_fails_says_why_and_leaves_nothing() {
    let server = Server::new(15);
    let (original, copy) = (server.database(), server.database());
    let role = format!("{}_role", original.name);
    original
        .run(&format!("CREATE ROLE {role}; CREATE TABLE a (x int); ALTER TABLE a OWNER TO {role}"));
    let (dumped, outputs) = original.dump();
    original.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    let restore = |jobs, no_owner| {
        let options = RestoreOptions { jobs, no_owner, ..RestoreOptions::default() };
        let stream = outputs.bytes("pgdump");
        PostgresRestorer.restore(
            RestoreJob {
                cx: &server.bench.cx,
                artifact: &artifact(&dumped),
                target: &copy.target(),
                options: &options,
            },
            &mut stream.as_slice(),
        )
    };
    let error = restore(1, false).unwrap_err().to_string();
    assert!(error.contains(&role) && error.contains("--no-owner"), "{error}");
    assert!(copy.is_empty());
    let error = restore(2, false).unwrap_err().to_string();
    assert!(error.contains("partial"), "{error}");
    copy.run("DROP TABLE a");
    restore(1, true).unwrap();
    assert!(!copy.is_empty());
}

#[test]
fn roles_go_out_and_back_and_those_that_are_there_stay_as_they_are() {
    let (server, other) = (Server::new(15), Server::new(15));
    let original = server.database();
    let (old, new) = (format!("{}_old", original.name), format!("{} New\"r", original.name));
    let quoted = new.replace('"', "\"\"");
    original.run(&format!(
        "CREATE ROLE {old} NOLOGIN; CREATE ROLE \"{quoted}\" LOGIN PASSWORD 'x'; GRANT {old} TO \
         \"{quoted}\""
    ));
    let outputs = Kept::default();
    let config = PostgresConfig { globals: true, ..original.config() };
    let dumped = Postgres::new(config).dump(&server.bench.cx, &outputs).unwrap();
    let names: Vec<&str> = dumped.artifacts.iter().map(|one| one.spec.extension).collect();
    assert_eq!(names, ["globals.sql", "pgdump"]);
    original.run(&format!("DROP ROLE \"{quoted}\"; ALTER ROLE {old} CREATEDB"));

    let artifact = RestoreArtifact {
        name: "src.globals.sql".to_owned(),
        kind: ArtifactKind::PgGlobals,
        ..artifact(&dumped)
    };
    let script = outputs.bytes("globals.sql");
    let options = RestoreOptions::default();
    let restored = PostgresRestorer
        .restore(
            RestoreJob {
                cx: &other.bench.cx,
                artifact: &artifact,
                target: &original.target(),
                options: &options,
            },
            &mut script.as_slice(),
        )
        .unwrap();
    assert!(
        restored.remarks.warnings.kept().iter().any(|found| found.note.reason.contains(&old)),
        "{:?}",
        restored.remarks.warnings
    );
    let options = RestoreOptions { no_owner: true, ..options };
    let without = PostgresRestorer
        .restore(
            RestoreJob {
                cx: &other.bench.cx,
                artifact: &artifact,
                target: &original.target(),
                options: &options,
            },
            &mut script.as_slice(),
        )
        .unwrap();
    // As was asked for: nothing is missing.
    let said = (without.remarks.warnings.count(), without.remarks.notes.count());
    assert_eq!(said, (0, 1), "{:?}", without.remarks);
    let count = |sql: String| server.number("postgres", &sql);
    let plain = new.replace('\'', "''");
    assert_eq!(
        count(format!(
            "SELECT count(*) FROM pg_authid WHERE rolname = '{plain}' AND rolpassword IS NOT NULL"
        )),
        1
    );
    assert_eq!(
        count(format!("SELECT count(*) FROM pg_roles WHERE rolname = '{old}' AND rolcreatedb")),
        1
    );
    assert_eq!(
        count(
            "SELECT count(*) FROM pg_auth_members WHERE roleid = (SELECT oid FROM pg_roles WHERE \
             rolname = '"
                .to_owned()
                + &old
                + "')"
        ),
        1
    );

    // A damaged script is not begun.
    original.run(&format!("DROP ROLE \"{quoted}\""));
    let damaged = PostgresRestorer.restore(
        RestoreJob {
            cx: &other.bench.cx,
            artifact: &artifact,
            target: &original.target(),
            options: &options,
        },
        &mut Damaged(&script),
    );
    assert!(matches!(damaged, Err(SourceError::Stream(_))));
    assert_eq!(count(format!("SELECT count(*) FROM pg_authid WHERE rolname = '{plain}'")), 0);
    original.run(&format!("DROP ROLE {old}"));
}

#[test]
fn a_user_who_may_not_read_everything_is_told_before_and_fails_in_the_run() {
    let server = Server::new(15);
    let database = server.database();
    let role = format!("{}_role", database.name);
    database.run(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'x'; CREATE TABLE hidden (x int); CREATE TABLE ruled (x \
         int); \
        GRANT SELECT ON ruled TO {role}; ALTER TABLE ruled ENABLE ROW LEVEL SECURITY"
    ));
    let mut url = url::Url::parse(&server.url(&database.name)).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    let source = Postgres::new(config(url.as_str()));
    let findings = source.check(&server.bench.cx);
    let found = findings.iter().find(|found| found.level == Level::Error).unwrap();
    assert!(found.message.contains("`public.hidden`, `public.ruled`"), "{}", found.message);
    let error = source.dump(&server.bench.cx, &Kept::default()).err().unwrap().to_string();
    assert!(error.contains("hint: Let the user read everything"), "{error}");
    database.run("GRANT SELECT ON hidden TO PUBLIC");
    let error = source.dump(&server.bench.cx, &Kept::default()).err().unwrap().to_string();
    assert!(error.contains("BYPASSRLS"), "{error}");
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn a_lock_that_someone_holds_ends_the_dump_with_the_reason() {
    let server = Server::new(18);
    let database = server.database();
    database.run("CREATE TABLE held (x int)");
    let mut holder = server.connect(&database.name);
    server.bench.wait(sqlx::raw_sql("BEGIN; LOCK TABLE held").execute(&mut holder)).unwrap();
    let config = PostgresConfig {
        lock_timeout: Span::from(Duration::from_millis(200)),
        ..database.config()
    };
    let error =
        Postgres::new(config).dump(&server.bench.cx, &Kept::default()).err().unwrap().to_string();
    assert!(error.contains("lock_timeout"), "{error}");
}

#[test]
fn a_count_that_fails_is_a_warning_and_the_others_are_still_counted() {
    let server = Server::new(18);
    let database = server.database();
    database.run(
        "CREATE TABLE a (x int); CREATE TABLE held (x int); CREATE TABLE z (x int); \
        INSERT INTO z VALUES (1)",
    );
    let mut holder = server.connect(&database.name);
    server.bench.wait(sqlx::raw_sql("BEGIN; LOCK TABLE held").execute(&mut holder)).unwrap();
    let version = "if [ \"$1\" = --version ]; then echo 'pg_dump (PostgreSQL) 18.1'; exit; fi";
    let psql = Server::client_dir(18).join("psql").display().to_string();
    // A tool that does not mind the lock, and one that also ends the session that counts: it waits
    // for the lock just then.
    let ends = format!(
        "until {psql} -Xqtc \"SELECT 'ended', pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE wait_event_type = 'Lock' AND \
         datname = '{0}'\" | grep -q ended; do :; done",
        database.name
    );
    for (name, body, counted) in [("patient", "", Some(1)), ("hostile", ends.as_str(), None)] {
        let folder = server.bench.path(name);
        script(&folder.join("pg_dump"), &format!("{version}\necho dump\n{body}"));
        let lock_timeout = Span::from(Duration::from_secs(if counted.is_some() { 1 } else { 100 }));
        let config = PostgresConfig { client_dir: Some(folder), lock_timeout, ..database.config() };
        let dumped = Postgres::new(config).dump(&server.bench.cx, &Kept::default()).unwrap();
        assert_eq!(
            (rows(&dumped, "a"), rows(&dumped, "held"), rows(&dumped, "z")),
            (Some(0), None, counted),
            "{name}"
        );
        let warnings = dumped.remarks.warnings.kept();
        assert!(
            warnings[0].note.reason.contains("count the rows of \"public\".\"held\""),
            "{warnings:?}"
        );
        assert_eq!(warnings.len(), if counted.is_some() { 1 } else { 2 }, "{warnings:?}");
        assert_eq!(dumped.consistency, "snapshot");
    }
}

#[test]
fn a_stop_ends_a_dump_and_its_session() {
    let server = Server::new(16);
    let database = server.database();
    database.run("CREATE TABLE a AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
    let cancel = server.bench.cx.cancel.clone();
    let outputs = Kept {
        at_write: Some(Arc::new(move |bytes| {
            if bytes > 100_000 {
                cancel.cancel();
            }
        })),
        ..Kept::default()
    };
    let error = Postgres::new(database.config()).dump(&server.bench.cx, &outputs).err().unwrap();
    assert!(matches!(error, SourceError::Cancelled), "{error}");
}

#[test]
fn a_server_that_exports_no_snapshot_is_dumped_without_counts_and_the_snapshot_says_so() {
    let server = Server::new(16);
    let database = server.database();
    let role = format!("{}_role", database.name);
    // What a transaction pooler or an old standby refuses, refused here by a missing right.
    database.run(&format!(
        "CREATE TABLE a AS SELECT 1 AS x; CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT \
         pg_read_all_data TO {role}; \
         REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM PUBLIC"
    ));
    let mut url = url::Url::parse(&server.url(&database.name)).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some("x")).unwrap();
    let source = Postgres::new(PostgresConfig { globals: true, ..config(url.as_str()) });
    let outputs = Kept::default();
    let dumped = source.dump(&server.bench.cx, &outputs).unwrap();
    assert_eq!((dumped.consistency, &dumped.facts["row_counts"]), ("dump", &"off".into()));
    assert_eq!(rows(&dumped, "a"), None);
    assert_eq!(dumped.facts["counts"]["tables"], 1);
    let reasons: Vec<&str> =
        dumped.remarks.warnings.kept().iter().map(|found| found.note.reason.as_str()).collect();
    assert!(
        reasons.len() == 2
            && reasons[0].contains("passwords")
            && reasons[1].contains("pg_export_snapshot"),
        "{reasons:?}"
    );
    assert!(!String::from_utf8(outputs.bytes("globals.sql")).unwrap().contains("SCRAM-SHA-256"));
    let levels: Vec<Level> =
        source.check(&server.bench.cx).iter().map(|found| found.level).collect();
    assert_eq!(levels.iter().filter(|level| **level == Level::Warning).count(), 2);
    database.run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

#[test]
fn a_target_that_takes_no_writes_is_refused_before_it_is_touched() {
    let server = Server::new(15);
    let (original, copy) = (server.database(), server.database());
    let (dumped, _) = original.dump();
    server.run(
        "postgres",
        &format!("ALTER DATABASE {} SET default_transaction_read_only = on", copy.name),
    );
    let options = RestoreOptions::default();
    let error = PostgresRestorer
        .prepare(RestoreJob {
            cx: &server.bench.cx,
            artifact: &artifact(&dumped),
            target: &copy.target(),
            options: &options,
        })
        .unwrap_err();
    assert!(error.to_string().contains("takes no writes"), "{error}");
}

#[test]
fn a_server_is_reached_through_its_socket() {
    let server = Server::new(15);
    let database = server.database();
    let mut connection = server.connect("postgres");
    let folder: String = server
        .bench
        .wait(sqlx::query_scalar("SHOW unix_socket_directories").fetch_one(&mut connection))
        .unwrap();
    let folder = folder.split(',').next().unwrap().trim();
    let mut url = url::Url::parse(&server.url).unwrap();
    let user = url.username().to_owned();
    let (password, port) = (url.password().unwrap().to_owned(), url.port().unwrap());
    url = format!("postgresql:///{}", database.name).parse().unwrap();
    let port = port.to_string();
    url.query_pairs_mut().extend_pairs([
        ("host", folder),
        ("port", &port),
        ("user", &user),
        ("password", &password),
    ]);
    let dumped =
        Postgres::new(config(url.as_str())).dump(&server.bench.cx, &Kept::default()).unwrap();
    assert_eq!(dumped.facts["database"], database.name.as_str());
}

#[test]
fn without_a_user_in_the_address_it_is_the_one_that_we_run_as() {
    let server = Server::new(15);
    let mut url = url::Url::parse(&server.url).unwrap();
    url.set_username("").unwrap();
    let error =
        Postgres::new(config(url.as_str())).dump(&server.bench.cx, &Kept::default()).err().unwrap();
    let name = sh(Path::new("/"), "id -un", &[]);
    // It is no role of this server.
    assert!(error.to_string().contains(&format!("user \"{}\"", name.trim())), "{error}");
}

#[test]
fn a_restore_with_several_jobs_is_refused_where_there_is_no_space_for_it() {
    let server = Server::new(15);
    let (original, copy) = (server.database(), server.database());
    let (dumped, outputs) = original.dump();
    let artifact = RestoreArtifact { plain_bytes: Some(u64::MAX), ..artifact(&dumped) };
    let options = RestoreOptions { jobs: 2, ..RestoreOptions::default() };
    let stream = outputs.bytes("pgdump");
    let error = PostgresRestorer
        .restore(
            RestoreJob {
                cx: &server.bench.cx,
                artifact: &artifact,
                target: &copy.target(),
                options: &options,
            },
            &mut stream.as_slice(),
        )
        .unwrap_err();
    assert!(error.to_string().contains("restore with one job"), "{error}");
}

#[test]
fn rows_are_not_counted_when_that_is_not_wanted() {
    let server = Server::new(15);
    let database = server.database();
    database.run("CREATE TABLE a (x int)");
    let config = PostgresConfig { row_counts: RowCounts::Off, ..database.config() };
    let dumped = Postgres::new(config).dump(&server.bench.cx, &Kept::default()).unwrap();
    assert_eq!((rows(&dumped, "a"), &dumped.facts["row_counts"]), (None, &"off".into()));
    assert_eq!(dumped.facts["counts"]["tables"], 1);
}

#[test]
fn a_dump_is_put_into_a_folder_as_a_file_that_the_ordinary_tool_reads() {
    let server = Server::new(16);
    let database = server.database();
    database.run("CREATE TABLE a (x int)");
    let (dumped, outputs) = database.dump();
    let target = Target::Folder(server.bench.path("to"));
    let stream = outputs.bytes("pgdump");
    let options = RestoreOptions::default();
    PostgresRestorer
        .restore(
            RestoreJob {
                cx: &server.bench.cx,
                artifact: &artifact(&dumped),
                target: &target,
                options: &options,
            },
            &mut stream.as_slice(),
        )
        .unwrap();
    let file = server.bench.path("to/src.pgdump");
    let listed = Call::new(&server.bench.cx, Server::client_dir(16).join("pg_restore"), "list")
        .args(["--list", file.to_str().unwrap()])
        .capture(&server.bench.cx, 100_000)
        .unwrap();
    assert!(listed.contains("TABLE DATA public a postgres"), "{listed}");
    // What `show` prints, done by a shell and the ordinary tools.
    let copy = server.database();
    let url = url::Url::parse(&server.url).unwrap();
    let by_hand = PostgresRestorer.by_hand(&artifact(&dumped)).swap_remove(0);
    Call::new(&server.bench.cx, "sh", "restore by hand")
        .args(["-c", &by_hand])
        .variable(
            "PATH",
            std::env::join_paths([Server::client_dir(16), "/usr/bin".into(), "/bin".into()])
                .unwrap(),
        )
        .variable("DATABASE", &copy.name)
        .variable("PGPASSWORD", url.password().unwrap())
        .variable("PGHOST", url.host_str().unwrap())
        .variable("PGPORT", url.port().unwrap().to_string())
        .variable("PGUSER", url.username())
        .feed(&server.bench.cx, &mut stream.as_slice())
        .unwrap();
    assert_eq!(server.canonical(&copy.name), server.canonical(&database.name));
}
