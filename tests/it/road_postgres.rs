//! The whole road of a clinical application: a PostgreSQL database and the files that its rows
//! name, to a folder and a bucket, while it is in use; and back, by the program and by ordinary
//! tools.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast::model::Digest;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::postgres::{Database, MAJORS, Server};
use crate::support::site::{Site, s3_storage};
use crate::support::stores::{Server as Store, fresh};
use crate::support::{self, Backup, Ran, backup, sh};

/// What such an application has in its database, and what else is known to get lost.
const SCHEMA: &str = r#"
CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY); INSERT INTO alembic_version VALUES ('e371dfeb38c1');
CREATE TYPE interpretation_status AS ENUM ('Not started', 'Ongoing', 'Done');
CREATE TABLE "user" (id serial PRIMARY KEY, username varchar UNIQUE NOT NULL, "firstName" text, config jsonb DEFAULT '{}', last_ip inet);
INSERT INTO "user" (username, "firstName", config, last_ip)
  SELECT 'user' || i, E'Ann\nO''Neill \\ ' || i, jsonb_build_object('overview', jsonb_build_object('n', i)), '10.0.0.1/8' FROM generate_series(1, 200) i;
CREATE TABLE attachment (id serial PRIMARY KEY, sha256 text UNIQUE NOT NULL, size bigint NOT NULL, user_id int REFERENCES "user");
CREATE TABLE allele (id serial PRIMARY KEY, chromosome text, start_position int, genes text[], change_type text);
INSERT INTO allele (chromosome, start_position, genes, change_type)
  SELECT (i % 22 + 1)::text, i * 100, ARRAY['BRCA' || i, NULL, 'a"b,c'], 'SNP' FROM generate_series(1, 2000) i;
CREATE TABLE annotation (id serial PRIMARY KEY, allele_id int REFERENCES allele, annotations jsonb, schema_version int);
CREATE TABLE annotationshadow (id serial PRIMARY KEY, allele_id int REFERENCES allele, words tsvector);
CREATE UNIQUE INDEX one_each ON annotationshadow (allele_id) WHERE allele_id > 0;
CREATE INDEX ON annotationshadow USING gin (words);
CREATE FUNCTION annotation_version() RETURNS trigger LANGUAGE plpgsql AS
  $f$ BEGIN NEW.schema_version := coalesce(NEW.schema_version, 1) + 1; RETURN NEW; END $f$;
CREATE FUNCTION annotation_to_shadow() RETURNS trigger LANGUAGE plpgsql AS
  $f$ BEGIN INSERT INTO annotationshadow (allele_id, words) VALUES (NEW.allele_id, to_tsvector('english', NEW.annotations->>'text')); RETURN NEW; END $f$;
CREATE TRIGGER annotation_schema_version BEFORE INSERT ON annotation FOR EACH ROW EXECUTE FUNCTION annotation_version();
CREATE TRIGGER annotation_to_annotationshadow AFTER INSERT ON annotation FOR EACH ROW EXECUTE FUNCTION annotation_to_shadow();
INSERT INTO annotation (allele_id, annotations) SELECT id, jsonb_build_object('text', 'benign variants of ' || id) FROM allele;
CREATE TABLE analysisinterpretation (id serial PRIMARY KEY, status interpretation_status, state jsonb, date timestamptz DEFAULT '2026-01-01');
INSERT INTO analysisinterpretation (status, state) SELECT 'Ongoing', jsonb_build_object('i', i) FROM generate_series(1, 300) i;
CREATE TABLE interpretationlog (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE interpretationlog_2025 PARTITION OF interpretationlog FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE interpretationlog_2026 PARTITION OF interpretationlog FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO interpretationlog SELECT '2025-01-01'::date + i, 'log ' || i FROM generate_series(0, 700) i;
CREATE SCHEMA "Odd ""Schema"; CREATE TABLE "Odd ""Schema"."Table; DROP" ("a b" bytea); INSERT INTO "Odd ""Schema"."Table; DROP" VALUES ('\x00ff0a');
CREATE VIEW busy AS SELECT status, count(*) FROM analysisinterpretation GROUP BY 1;
SELECT lo_from_bytea(777, decode(repeat('deadbeef', 100000), 'hex'));
"#;

const CONFIG: &str = r#"
[sources.db]
type = "postgres"
url = "${DB_URL}"
globals = true
[sources.data]
type = "directory"
path = "@/data"
exclude = ["attachments/tmp/**"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
schedule = "30 1 * * *"
timezone = "Europe/Oslo"
sources = ["db", "data"]
storages = ["local", "offsite"]
"#;

/// The application, its backup configuration, and two keys.
struct Clinic {
    site: Site,
    database: Database,
    s3: support::S3,
    bucket: String,
}

impl Clinic {
    fn new(major: u32, encrypted: bool) -> Self {
        let server = Server::new(major);
        let database = server.database();
        database.run(SCHEMA);
        let s3 = support::s3("S3S");
        let bucket = fresh("clinic");
        server
            .runtime
            .block_on(Store::S3s.client().create_bucket().bucket(&bucket).send())
            .unwrap();
        let clinic = Self { site: Site::new(""), database, s3, bucket };
        let mut body = CONFIG.to_owned()
            + &s3_storage("offsite", &clinic.s3, &clinic.bucket)
            + "prefix = \"backups\"\n";
        if encrypted {
            let recipients: Vec<String> = ["key", "spare"]
                .iter()
                .map(|name| format!("\"{}\"", clinic.new_key(name)))
                .collect();
            body += &format!("[encryption]\nrecipients = [{}]\n", recipients.join(", "));
        }
        clinic.site.configure(&body);
        std::fs::create_dir_all(clinic.site.path("data/attachments/tmp")).unwrap();
        std::fs::write(clinic.site.path("data/ella_config.yml"), "frequencies: {}\n").unwrap();
        let mut connection = clinic.database.server.connect(&clinic.database.name);
        for number in 0..20 {
            clinic.database.server.runtime.block_on(attach(
                &clinic.site.path("data"),
                &mut connection,
                number,
            ));
        }
        clinic
    }

    /// A key in the file `name` of the site; its recipient.
    fn new_key(&self, name: &str) -> String {
        let file = self.site.path(name);
        sh(
            self.site.dir.path(),
            r#"age-keygen -o "$1" 2>/dev/null && age-keygen -y "$1""#,
            &[file.as_os_str()],
        )
        .trim()
        .to_owned()
    }

    fn server(&self) -> &Server {
        &self.database.server
    }

    fn backup(&self, args: &[&str]) -> Backup {
        self.site.backup(args).env("DB_URL", self.database.url()).env("PATH", self.server().path())
    }

    fn run(&self, code: i32) -> Ran {
        self.backup(&["--strategy", "daily", "--json"]).expect(code)
    }

    /// `backup restore` of the newest snapshot.
    fn restore(&self, args: &[&str]) -> Backup {
        self.backup(&["restore", "--strategy", "daily"]).args(args).args(self.key())
    }

    fn key(&self) -> Vec<String> {
        let key = self.site.path("key");
        if key.exists() {
            vec!["--identity-file".to_owned(), key.to_str().unwrap().to_owned()]
        } else {
            Vec::new()
        }
    }

    /// The program on a machine that has the bucket and the key only.
    fn elsewhere(&self, args: &[&str]) -> Backup {
        backup(args.iter().copied().chain(["--storage", &format!("s3://{}/backups", self.bucket)]))
            .env("PATH", self.server().path())
            .env("AWS_ENDPOINT_URL", &self.s3.endpoint)
            .env("AWS_REGION", &self.s3.region)
            .env("AWS_ACCESS_KEY_ID", &self.s3.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.s3.secret_key)
    }

    /// Runs the commands that were printed, and nothing else, with what an operator knows in the
    /// environment.
    fn by_hand(&self, shown: &serde_json::Value, database: &Database, dir: &Path) {
        let commands: Vec<&str> = shown["commands"]
            .as_array()
            .unwrap()
            .iter()
            .map(|command| command["command"].as_str().unwrap())
            .collect();
        assert_eq!(commands.len(), 4, "roles, database, its settings, files: {commands:#?}");
        for command in commands {
            let mut shell = std::process::Command::new("bash");
            shell.args(["-euo", "pipefail", "-c", command]).current_dir(dir).env_clear();
            shell.env("PATH", database.server.path()).env("HOME", dir);
            shell.env("KEY", self.site.path("key")).env("DATABASE", database.url()).env("DIR", dir);
            shell.env("AWS_ENDPOINT_URL", &self.s3.endpoint).env("AWS_REGION", &self.s3.region);
            shell
                .env("AWS_ACCESS_KEY_ID", &self.s3.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &self.s3.secret_key);
            let output = shell.output().unwrap();
            assert!(
                output.status.success(),
                "{command}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

/// What the application does: the file is renamed into place before its row commits.
async fn attach(data: &Path, connection: &mut PgConnection, number: usize) {
    let content = format!("attachment {number}\n").repeat(500);
    let digest = Digest::of(content.as_bytes()).hex();
    let folder = data.join("attachments").join(&digest[..2]);
    std::fs::create_dir_all(&folder).unwrap();
    let upload = data.join("attachments/tmp").join(&digest);
    std::fs::write(&upload, &content).unwrap();
    std::fs::rename(upload, folder.join(&digest)).unwrap();
    let sql = format!(
        "INSERT INTO attachment (sha256, size, user_id) VALUES ('{digest}', {}, 1)",
        content.len()
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.unwrap();
}

/// Inserts attachments, one after the other, until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    task: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(clinic: &Clinic) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, data) = (clinic.database.url(), clinic.site.path("data"));
        let (runtime, stopped) = (Arc::clone(&clinic.server().runtime), Arc::clone(&stop));
        let task = std::thread::spawn(move || {
            let mut connection = runtime.block_on(PgConnection::connect(&url)).unwrap();
            for number in 1_000.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                runtime.block_on(attach(&data, &mut connection, number));
            }
        });
        Self { stop, task: Some(task) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.take().unwrap().join().unwrap();
    }
}

fn rows(shown: &serde_json::Value, table: &str) -> i64 {
    let source = shown["facts"]["sources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|source| source["name"] == "db")
        .unwrap();
    let tables = source["facts"]["tables"].as_array().unwrap();
    tables.iter().find(|found| found["name"] == table).unwrap()["rows"].as_i64().unwrap()
}

/// Each attachment that the database has is there, and is what its row says.
fn assert_attachments(database: &Database, data: &Path) -> usize {
    let named = database
        .texts("SELECT substr(sha256, 1, 2) || '/' || sha256 || ' ' || size FROM attachment");
    for row in &named {
        let (path, size) = row.split_once(' ').unwrap();
        let content = std::fs::read(data.join("attachments").join(path))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(content.len().to_string(), size);
        assert!(path.ends_with(&Digest::of(&content).hex()));
    }
    named.len()
}

fn newer(major: u32) -> Option<u32> {
    MAJORS.into_iter().find(|other| *other > major)
}

fn a_clinic_comes_back(major: u32, encrypted: bool) {
    let clinic = Clinic::new(major, encrypted);
    let server = clinic.server().clone();

    // While it is in use: one snapshot of rows and files that belong together.
    let writer = Writer::start(&clinic);
    let before = clinic.database.number("SELECT count(*) FROM attachment");
    let report = clinic.run(0).json();
    drop(writer);
    assert!(
        report["storages"].as_array().unwrap().iter().all(|storage| storage["committed"] == true),
        "{report:#}"
    );
    let shown = clinic.backup(&["show", "latest", "--json"]).args(clinic.key()).expect(0).json();
    let counted = rows(&shown, "attachment");
    let after = clinic.database.number("SELECT count(*) FROM attachment");
    assert!((before..after).contains(&counted), "{before} {counted} {after}");
    let (used, out) = (server.database(), clinic.site.path("used"));
    clinic.restore(&["--source", "db", "--into", &used.url()]).expect(0);
    clinic.restore(&["--source", "data", "--to", out.to_str().unwrap()]).expect(0);
    assert_eq!(i64::try_from(assert_attachments(&used, &out.join("data"))).unwrap(), counted);
    for table in [
        "user",
        "allele",
        "annotation",
        "annotationshadow",
        "analysisinterpretation",
        "interpretationlog_2026",
    ] {
        assert_eq!(
            rows(&shown, table),
            used.number(&format!("SELECT count(*) FROM \"{table}\"")),
            "{table}"
        );
    }

    // At rest: what comes back is what is there, by every way.
    let role = fresh("Role \"x\"");
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    clinic.database.run(&format!(
        "CREATE ROLE {quoted} LOGIN PASSWORD 'pw' CONNECTION LIMIT 7; GRANT SELECT ON \"user\" TO \
         {quoted}"
    ));
    let role_limit = format!("SELECT rolconnlimit::int8 FROM pg_roles WHERE rolname = '{role}'");
    clinic.run(0);
    let original = clinic.database.canonical(&server.bin);
    let same = |database: &Database, how: &str| {
        assert!(database.canonical(&server.bin) == original, "{how}");
    };
    let target = server.database();
    clinic.restore(&["--source", "db", "--into", &target.url(), "-j", "3"]).expect(0);
    same(&target, "several jobs");
    let refused = clinic.restore(&["--source", "db", "--into", &target.url()]).expect(1);
    assert!(refused.err().contains("is not empty. Pass `--overwrite`"), "{refused}");
    target
        .run("DELETE FROM attachment; DROP VIEW busy; INSERT INTO alembic_version VALUES ('mine')");
    clinic.restore(&["--source", "db", "--into", &target.url(), "--overwrite"]).expect(0);
    same(&target, "overwrite");

    // The host is gone: bucket and key are left.
    let list = clinic.elsewhere(&["list", "--json"]).expect(0).json();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 2);
    let rescued = server.database();
    let args = [
        "restore",
        "--instance",
        "app",
        "--strategy",
        "daily",
        "--source",
        "db",
        "--into",
        &rescued.url(),
    ];
    clinic.elsewhere(&args).args(clinic.key()).expect(0);
    same(&rescued, "bucket and key");
    drop((used, rescued));

    // By hand, with exactly what is printed, from both storages; the roles too.
    let remote = clinic.elsewhere(&["show", "latest", "--json"]).expect(0).json();
    let local = clinic.backup(&["show", "latest", "--json"]).args(clinic.key()).expect(0).json();
    for (name, shown) in [("hand-s3", &remote), ("hand-local", &local)] {
        let (dir, hand) = (clinic.site.path(name), server.database());
        std::fs::create_dir(&dir).unwrap();
        clinic.database.run(&format!("ALTER ROLE {quoted} CONNECTION LIMIT 1"));
        clinic.by_hand(shown, &hand, &dir);
        assert_eq!(hand.number(&role_limit), 7);
        same(&hand, name);
        assert_attachments(&hand, &dir);
    }

    // As a file, for the tools.
    let out = clinic.site.path("out");
    clinic.restore(&["--to", out.to_str().unwrap()]).expect(0);
    let (dump, globals) = (out.join("db/db.pgdump"), out.join("db/db.globals.sql"));
    assert!(std::fs::read_to_string(globals).unwrap().contains(&quoted));
    let tools = server.database();
    let script = r#""$1"/pg_restore --exit-on-error --no-owner -d "$2" "$3""#;
    sh(&out, script, &[server.bin.as_os_str(), tools.url().as_ref(), dump.as_os_str()]);
    same(&tools, "pg_restore");
    drop((tools, target));

    // Into a newer server.
    if let Some(newer) = newer(major) {
        let newer = Server::new(newer);
        let target = newer.database();
        clinic
            .backup(&[
                "restore",
                "--strategy",
                "daily",
                "--source",
                "db",
                "--no-owner",
                "--into",
                &target.url(),
            ])
            .args(clinic.key())
            .expect(0);
        let data = |database: &Database| {
            let dump =
                r#""$1"/pg_dump --data-only --inserts "$2" | grep -v '^\(--\|SET\|\\\)' | sort"#;
            sh(Path::new("/"), dump, &[newer.bin.as_os_str(), database.url().as_ref()])
        };
        assert!(data(&target) == data(&clinic.database));
        let triggers = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal";
        assert_eq!(target.number(triggers), clinic.database.number(triggers));
        // Roles first, as a new machine needs it.
        let (dir, hand) = (clinic.site.path("newer"), newer.database());
        std::fs::create_dir(&dir).unwrap();
        clinic.by_hand(&remote, &hand, &dir);
        assert_eq!(hand.number(&role_limit), 7);
        assert!(data(&hand) == data(&clinic.database));
        hand.run(&format!("DROP OWNED BY {quoted}; DROP ROLE {quoted}"));
    }
    clinic.database.run(&format!("DROP OWNED BY {quoted}; DROP ROLE {quoted}"));
    clinic.backup(&["verify", "--read-data"]).args(clinic.key()).expect(0);
}

#[test]
fn a_clinic_on_postgresql_15_comes_back_encrypted() {
    a_clinic_comes_back(15, true);
}

#[test]
fn a_clinic_on_postgresql_16_comes_back() {
    a_clinic_comes_back(16, false);
}

#[test]
fn a_clinic_on_postgresql_18_comes_back_encrypted() {
    a_clinic_comes_back(18, true);
}

/// A database of 18 with one table, and where its tools are looked for.
fn small(url: &str, extra: &str) -> Site {
    let site = Site::new(&format!(
        "[sources.db]\ntype = \"postgres\"\nurl = \"${{DB_URL}}\"\n{extra}\n[storages.local]\n\
         type = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n"
    ));
    std::fs::write(site.path("url"), url).unwrap();
    site
}

#[test]
fn a_client_that_is_too_old_is_refused_before_anything_is_written() {
    let server = Server::new(18);
    let database = server.database();
    let old = support::postgres(15).bin;
    let site = small("", &format!("client_dir = \"{}\"", old.display()));
    let failed = site.backup(["--strategy", "daily"]).env("DB_URL", database.url()).expect(1);
    let said = format!("{}{}", failed.out(), failed.err());
    assert!(said.contains("install `postgresql-client-18`"), "{failed}");
    assert!(site.folders().is_empty());
    let check = site.backup(["check"]).env("DB_URL", database.url()).expect(1);
    assert!(check.out().contains("install `postgresql-client-18`"), "{check}");
}

#[test]
fn what_cannot_be_reached_is_said_with_what_to_do() {
    let server = Server::new(16);
    let database = server.database();
    database.run("CREATE TABLE t (x int)");
    let site = small("", "");
    let with =
        |args: &[&str], url: &str| site.backup(args).env("DB_URL", url).env("PATH", server.path());
    with(&["--strategy", "daily"], &database.url()).expect(0);
    let wrong_password = database.url().replace("s3cret-pg", "wr0ng-pg");
    let missing = server.url("no_such_db").to_string();
    let unreachable = "postgresql://u:wr0ng-pg@127.0.0.1:1/db".to_owned();
    for (url, says, to_do) in [
        (&wrong_password, "password authentication failed", "Correct the user and password"),
        (&missing, "\"no_such_db\" does not exist", "create it with `createdb`"),
        (&unreachable, "refused", "Look whether the server runs"),
    ] {
        for failed in [
            with(&["--strategy", "daily"], url).expect(1),
            with(&["check"], url).expect(1),
            with(&["restore", "--strategy", "daily", "--into", url], &database.url()).expect(1),
        ] {
            let said = format!("{}{}", failed.out(), failed.err());
            assert!(said.contains(says) && said.contains(to_do), "{failed}");
            assert!(!said.contains("wr0ng-pg"), "{failed}");
        }
    }
    assert_eq!(site.folders().len(), 1);
}

#[test]
fn the_password_of_a_target_may_be_in_the_environment() {
    let server = Server::new(16);
    let (database, target) = (server.database(), server.database());
    database.run("CREATE TABLE t AS SELECT generate_series(1, 10) AS x");
    let site = small("", "");
    site.backup(["--strategy", "daily"])
        .env("DB_URL", database.url())
        .env("PATH", server.path())
        .expect(0);
    let restore = || {
        let open = target.open_url();
        site.backup(["restore", "--strategy", "daily", "--into", &open])
            .env("DB_URL", "postgresql://h/d")
            .env("PATH", server.path())
    };
    restore().expect(1);
    restore().env("PGPASSWORD", server.url.password().unwrap()).expect(0);
    assert_eq!(target.number("SELECT count(*) FROM t"), 10);
}

#[test]
fn check_says_what_is_there_and_what_would_fail() {
    let clinic = Clinic::new(15, true);
    let none = clinic.backup(&["check", "--json"]).args(clinic.key()).expect(0).json();
    assert!(none.to_string().contains("There is no snapshot"), "{none:#}");
    clinic.run(0);
    let report = clinic.backup(&["check", "--json"]).args(clinic.key()).expect(0).json();
    let instance = &report["instances"][0];
    assert_eq!(instance["strategies"][0]["next"].as_array().unwrap().len(), 3);
    let opened: Vec<&serde_json::Value> = instance["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["subject"].as_str().unwrap().starts_with("keys"))
        .collect();
    assert_eq!(opened.len(), 2);
    assert!(
        opened.iter().all(|finding| finding["level"] == "ok"
            && finding["message"].as_str().unwrap().contains("open")),
        "{opened:#?}"
    );
    let text = clinic.backup(&["check"]).args(clinic.key()).expect(0);
    assert!(!text.out().lines().any(|line| line.trim_start().starts_with("error")), "{text}");

    // A key that opens nothing, and a single recipient.
    clinic.new_key("other");
    let other: PathBuf = clinic.site.path("other");
    let wrong = clinic.backup(&["check", "--identity-file"]).arg(&other).expect(1);
    assert!(wrong.out().contains("none of the keys") || wrong.out().contains("key"), "{wrong}");
    let config = std::fs::read_to_string(clinic.site.config()).unwrap();
    let (head, recipients) = config.split_once("recipients = [").unwrap();
    let first = recipients.split(", ").next().unwrap();
    std::fs::write(clinic.site.config(), format!("{head}recipients = [{first}]\n")).unwrap();
    let single = clinic.backup(&["check"]).expect(0);
    assert!(single.out().contains("single recipient"), "{single}");
}
