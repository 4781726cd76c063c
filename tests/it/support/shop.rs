//! An application to be drilled: a PostgreSQL database, an SQLite database, the files that the
//! first one names, and a stream.

use std::path::{Path, PathBuf};

use holdfast::model::Digest;
use serde_json::Value;

use super::postgres::{Database, MAJORS, Server};
use super::site::{Site, s3_storage};
use super::stores::{Server as Store, fresh};
use super::{Backup, Ran, sh};

/// What is in its database.
const SCHEMA: &str = r#"
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE item (id serial PRIMARY KEY, name text NOT NULL UNIQUE, mood mood DEFAULT 'glad', price numeric(10, 2) CHECK (price > 0));
INSERT INTO item (name, price) SELECT 'item ' || i, i FROM generate_series(1, 500) i;
CREATE TABLE attachment (id serial PRIMARY KEY, item_id int REFERENCES item, sha256 text NOT NULL UNIQUE, size bigint NOT NULL);
CREATE TABLE "user" (id serial PRIMARY KEY, name text, admin boolean);
INSERT INTO "user" (name, admin) VALUES ('Ann', true), ('Bob', false);
CREATE INDEX item_mood ON item (mood) WHERE mood = 'sad';
CREATE VIEW sad AS SELECT * FROM item WHERE mood = 'sad';
CREATE MATERIALIZED VIEW prices AS SELECT sum(price) FROM item;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN NEW.name := trim(NEW.name); RETURN NEW; END $f$;
CREATE TRIGGER item_touch BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TABLE log (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE log_2026 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO log SELECT '2026-01-01'::date + i, 'log ' || i FROM generate_series(0, 99) i;
SELECT lo_from_bytea(777, decode('deadbeef', 'hex'));
"#;

/// The sources and storages. What is added belongs to the strategy.
const CONFIG: &str = r#"
[sources.db]
type = "postgres"
url = "${DB_URL}"
[sources.settings]
type = "sqlite"
path = "@/settings.db"
[sources.files]
type = "directory"
path = "@/files"
[sources.keys]
type = "command"
command = ["printf", "a key"]
[storages.local]
type = "local"
path = "@/store"
"#;

/// The application and its backup configuration.
pub struct Shop {
    pub site: Site,
    pub database: Database,
    s3: Option<String>,
    bucket: String,
    recipient: Option<String>,
}

/// What a shop is like.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub major: u32,
    pub encrypted: bool,
    pub s3: bool,
}

impl Shop {
    /// A shop on that server, backed up to a folder, not encrypted.
    pub fn new(major: u32) -> Self {
        Self::of(Kind { major, encrypted: false, s3: false })
    }

    pub fn of(kind: Kind) -> Self {
        let server = Server::new(kind.major);
        let database = server.database();
        database.run(SCHEMA);
        let site = Site::new("");
        let bucket = fresh("shop");
        let s3 = kind.s3.then(|| {
            let s3 = super::s3("S3S");
            server
                .runtime
                .block_on(Store::S3s.client().create_bucket().bucket(&bucket).send())
                .unwrap();
            s3_storage("offsite", &s3, &bucket)
        });
        let recipient = kind.encrypted.then(|| {
            let script = r#"age-keygen -o key 2>/dev/null && age-keygen -y key"#;
            sh(site.dir.path(), script, &[]).trim().to_owned()
        });
        let shop = Self { site, database, s3, bucket, recipient };
        let files = shop.site.path("files");
        std::fs::create_dir_all(files.join("sub/empty")).unwrap();
        std::fs::write(files.join("config.json"), "{\"name\": \"shop\"}\n").unwrap();
        std::fs::write(files.join("app.toml"), "name = \"shop\"\n").unwrap();
        std::fs::write(files.join("nothing"), "").unwrap();
        std::fs::hard_link(files.join("app.toml"), files.join("sub/same.toml")).unwrap();
        std::os::unix::fs::symlink("../config.json", files.join("sub/link")).unwrap();
        for number in 0..10 {
            shop.attach(&format!("the attachment {number}\n").repeat(number + 1));
        }
        let sql = "CREATE TABLE setting (key TEXT PRIMARY KEY, value); CREATE INDEX by_value ON \
            setting (value); \
                   WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50) \
            INSERT INTO setting SELECT 'key ' || i, i FROM n;";
        sh(shop.site.dir.path(), r#"sqlite3 settings.db "$1""#, &[sql.as_ref()]);
        shop.configure("");
        shop
    }

    /// Writes the configuration anew, with the drill so.
    pub fn configure(&self, drill: &str) {
        let storages = if self.s3.is_some() { "[\"local\", \"offsite\"]" } else { "[\"local\"]" };
        let encryption = self
            .recipient
            .as_ref()
            .map(|key| format!("[encryption]\nrecipients = [\"{key}\"]\n"))
            .unwrap_or_default();
        let key = if self.recipient.is_some() { "identity_file = \"@/key\"\n" } else { "" };
        let body = format!(
            "{CONFIG}{}{encryption}[strategies.daily]\n\
             sources = [\"db\", \"settings\", \"keys\", \"files\"]\nstorages = {storages}\n\
             retry = {{ attempts = 1 }}\n[strategies.daily.drill]\n{key}{drill}",
            self.s3.clone().unwrap_or_default()
        );
        self.site.configure(&body);
    }

    /// Adds a file that a row names.
    pub fn attach(&self, content: &str) -> PathBuf {
        let digest = Digest::of(content.as_bytes()).to_string();
        let digest = digest.strip_prefix("sha256:").unwrap();
        let path = self.site.path("files/attachments").join(&digest[..2]).join(digest);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        self.database.run(&format!(
            "INSERT INTO attachment (item_id, sha256, size) VALUES (1, '{digest}', {})",
            content.len()
        ));
        path
    }

    pub fn server(&self) -> &Server {
        &self.database.server
    }

    pub fn backup(&self, args: &[&str]) -> Backup {
        let backup = self
            .site
            .backup(args)
            .env("DB_URL", self.database.url())
            .env("PATH", self.server().path());
        // In a configuration of a test `@` stands for its folder.
        MAJORS.into_iter().fold(backup, |backup, major| {
            backup.env(format!("SCRATCH_{major}"), super::postgres(major).url)
        })
    }

    /// A run; the id of its snapshot.
    pub fn run(&self) -> String {
        let ran = self.backup(&["--strategy", "daily", "--json"]).expect(0);
        ran.json()["id"].as_str().unwrap().to_owned()
    }

    /// `backup drill --strategy daily --json`, which must end so.
    pub fn drill(&self, code: i32, args: &[&str]) -> Ran {
        self.backup(&["drill", "--strategy", "daily", "--json"]).args(args).expect(code)
    }

    /// The folder of a snapshot in the local storage.
    pub fn snapshot(&self, id: &str) -> PathBuf {
        self.site.path("store/app/daily").join(id)
    }

    /// An object of a snapshot, in the storage that drills read; none takes it away.
    pub fn object(&self, id: &str, name: &str) -> Option<Vec<u8>> {
        let key = format!("app/daily/{id}/{name}");
        if self.s3.is_none() {
            return std::fs::read(self.site.path("store").join(key)).ok();
        }
        self.server().runtime.block_on(async {
            let got =
                Store::S3s.client().get_object().bucket(&self.bucket).key(key).send().await.ok()?;
            Some(got.body.collect().await.unwrap().to_vec())
        })
    }

    /// Puts an object of a snapshot there, or takes it away.
    pub fn put_object(&self, id: &str, name: &str, body: Option<&[u8]>) {
        let key = format!("app/daily/{id}/{name}");
        if self.s3.is_none() {
            let path = self.site.path("store").join(key);
            match body {
                Some(body) => std::fs::write(path, body).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            return;
        }
        self.server().runtime.block_on(async {
            let client = Store::S3s.client();
            match body {
                Some(body) => {
                    let put = client
                        .put_object()
                        .bucket(&self.bucket)
                        .key(key)
                        .body(body.to_vec().into());
                    put.send().await.map(drop).unwrap();
                }
                None => client
                    .delete_object()
                    .bucket(&self.bucket)
                    .key(key)
                    .send()
                    .await
                    .map(drop)
                    .unwrap(),
            }
        });
    }

    /// What drills left: folders, and databases on this shop's server and on that of another major.
    pub fn leftovers(&self, others: &[&Server]) -> Vec<String> {
        let mut left = Vec::new();
        let prefix = self.prefix();
        // As root a cluster is where its user may go.
        for folder in [self.site.path("state/work"), std::env::temp_dir()] {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.path().display().to_string());
            left.extend(names.filter(|name| name.contains(&prefix)));
        }
        for server in others {
            let mut connection = server.connect("postgres");
            let sql =
                format!("SELECT datname::text FROM pg_database WHERE datname LIKE '{prefix}%'");
            let names: Vec<String> = server
                .runtime
                .block_on(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&mut connection))
                .unwrap();
            left.extend(names);
        }
        left
    }

    /// What begins the name of all that the drills of this shop make.
    pub fn prefix(&self) -> String {
        let node = std::fs::read_to_string(self.site.path("state/node")).unwrap();
        let owner = Digest::of(format!("{} app daily", node.trim()).as_bytes()).to_string();
        format!("holdfast_drill_{}_", &owner["sha256:".len()..][..8])
    }
}

/// The checks of a report that came out so, in words.
pub fn outcomes(report: &Value, outcome: &str) -> Vec<String> {
    let all = report["checks"].as_array().unwrap_or_else(|| panic!("no report: {report:#}")).iter();
    all.filter(|check| check["outcome"] == outcome)
        .map(|check| {
            let text = |key: &str| check[key].as_str().unwrap_or("-").to_owned();
            let details: Vec<&str> = check["details"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            format!(
                "{} {}: {}: expected {}, found {} {}",
                text("kind"),
                text("source"),
                text("what"),
                text("expected"),
                text("found"),
                details.join("; ")
            )
        })
        .collect()
}

/// Fails unless a drill passed.
pub fn assert_passed(report: &Value) {
    assert_eq!(
        report["verdict"],
        "passed",
        "{:#?} {:#?}",
        outcomes(report, "failed"),
        outcomes(report, "inconclusive")
    );
}

/// All files of a folder, as a tree of names.
pub fn names(folder: &Path) -> Vec<String> {
    let text = sh(folder, "find . -mindepth 1 | sort", &[]);
    text.lines().map(str::to_owned).collect()
}
