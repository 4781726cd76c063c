//! A source with several databases, in snapshots that ordinary tools made from what
//! `docs/format.md` says: listed, verified, restored, exported and copied.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::support::postgres::Server;
use crate::support::{Backup, Ran, backup, repository, sh, temp};

const VARIANTS: [&str; 2] = ["plain", "encrypted"];
/// The databases of the fixture.
const SHOP: &str = "several_shop";
const BLUE: &str = "several Blå";
/// The rows of each.
const ROWS: [(&str, i64); 2] = [(SHOP, 30), (BLUE, 2)];

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/format-1-several").join(name)
}

/// `backup ARGS...` on a storage alone.
fn keyless(storage: &Path, args: &[&str]) -> Backup {
    backup(args).arg("--storage").arg(storage).args(["--instance", "shop"])
}

/// With the test identity.
fn on(storage: &Path, args: &[&str]) -> Backup {
    keyless(storage, args).arg("--identity-file").arg(fixture("identity.txt"))
}

/// Asserts that it ended with an error document of that code, and returns what it says.
#[track_caller]
fn refused(code: &str, ran: &Ran) -> String {
    let err = ran.err();
    let document = err.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
    let document: serde_json::Value = document.unwrap_or_else(|| panic!("no document\n{ran}"));
    assert_eq!(document["error"]["code"], code, "{ran}");
    document.to_string()
}

/// The digests of the plain streams, as `sha256sum` had them.
fn assert_streams(folder: &Path, names: &[&str]) {
    let sums = std::fs::read_to_string(fixture("plain.sha256")).unwrap();
    let wanted: String = sums
        .lines()
        .filter(|line| names.iter().any(|name| line.ends_with(&format!("  {name}"))))
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(wanted.lines().count(), names.len());
    std::fs::write(folder.join("sums"), wanted).unwrap();
    sh(folder, "sha256sum --strict --quiet -c sums && rm sums", &[]);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), names.len());
}

/// A server with databases that are dropped in the end.
struct Targets {
    server: Server,
    names: Vec<String>,
}

impl Targets {
    fn new(names: &[&str]) -> Self {
        let server = Server::new(15);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let targets = Self { server, names };
        targets.drop_all();
        for name in &targets.names {
            targets.server.run("postgres", &format!("CREATE DATABASE \"{name}\""));
        }
        targets
    }

    /// Of names that no other test has.
    fn fresh(count: usize) -> Self {
        let names: Vec<String> = (0..count).map(|_| crate::support::stores::fresh("hf")).collect();
        Self::new(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn drop_all(&self) {
        for name in &self.names {
            let sql = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
            self.server.run("postgres", &sql);
        }
    }

    fn restore(&self, storage: &Path, address: &str, databases: &[&str]) -> Backup {
        let mut url = self.server.url.clone();
        url.set_path(address);
        url.set_password(None).unwrap();
        let mut command = on(storage, &["restore", "--json", "--into", url.as_str()])
            .env("PGPASSWORD", self.server.url.password().unwrap())
            .env("PATH", self.server.path());
        for database in databases {
            command = command.args(["--database", database]);
        }
        command
    }

    /// The rows of `thing` there; none where the database is empty.
    fn rows(&self, name: &str) -> Option<i64> {
        let sql = "SELECT to_regclass('thing') IS NOT NULL";
        let database = crate::support::postgres::Database {
            server: self.server.clone(),
            name: name.to_owned(),
        };
        // It is dropped with the others, quoted.
        let database = std::mem::ManuallyDrop::new(database);
        let is_there = database.texts(&format!("SELECT ({sql})::text")) == ["true"];
        is_there.then(|| database.number("SELECT count(*) FROM thing"))
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.drop_all();
    }
}

#[test]
fn several_databases_are_listed_shown_and_verified() {
    for variant in VARIANTS {
        let storage = fixture(variant);
        let list = backup(["list", "--json", "--storage"]).arg(&storage).expect(0).json();
        assert_eq!(list["snapshots"][0]["encrypted"], variant == "encrypted");
        let shown = on(&storage, &["show", "latest", "--json"]).expect(0).json();
        let of: Vec<&serde_json::Value> = shown["facts"]["artifacts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|artifact| &artifact["of"])
            .collect();
        assert_eq!(of, [&serde_json::Value::Null, &SHOP.into(), &BLUE.into()]);
        assert_eq!(shown["manifest"]["artifacts"][2]["name"], "db.2.pgdump");
        let text = on(&storage, &["show", "latest"]).expect(0);
        for part in ["db.2.pgdump", BLUE, "public.thing"] {
            assert!(text.out().contains(part), "{part}: {text}");
        }
        let verdict = on(&storage, &["verify", "--read-data", "--json"]).expect(0).json();
        assert_eq!(verdict["snapshots"][0]["decoded"], true, "{verdict}");
    }
}

#[test]
fn names_of_databases_need_the_key() {
    let shown = keyless(&fixture("encrypted"), &["show", "latest", "--json"]).expect(0);
    for name in [SHOP, BLUE] {
        assert!(!shown.out().contains(name), "{shown}");
    }
    let out = temp();
    let args = ["restore", "--json", "--database", SHOP];
    let ran = keyless(&fixture("encrypted"), &args).arg("--to").arg(out.path()).run();
    refused("invalid_request", &ran);
}

#[test]
fn all_databases_or_one_come_to_a_folder() {
    for variant in VARIANTS {
        let out = temp();
        on(&fixture(variant), &["restore"]).arg("--to").arg(out.path().join("all")).expect(0);
        assert_streams(&out.path().join("all/db"), &["db.globals.sql", "db.pgdump", "db.2.pgdump"]);
        let one = on(&fixture(variant), &["restore", "--json", "--database", BLUE]);
        let report = one.arg("--to").arg(out.path().join("one")).expect(0).json();
        assert_streams(&out.path().join("one/db"), &["db.2.pgdump"]);
        assert_eq!(report["restored"][0]["of"], BLUE);
        assert_eq!(report["left_out"].as_array().unwrap().len(), 2, "{report}");
    }
}

#[test]
fn every_database_goes_to_its_own_name() {
    let targets = Targets::new(&[SHOP, BLUE]);
    for address in ["", "/"] {
        for name in &targets.names {
            let sql = "DROP TABLE IF EXISTS thing, empty";
            targets.server.run(name, sql);
        }
        targets.restore(&fixture("encrypted"), address, &[]).expect(0);
        for (name, rows) in ROWS {
            assert_eq!(targets.rows(name), Some(rows), "{name}");
        }
    }
}

#[test]
fn one_database_goes_to_the_one_named() {
    let targets = Targets::fresh(1);
    let name = &targets.names[0];
    targets.restore(&fixture("plain"), name, &[BLUE]).expect(0);
    assert_eq!(targets.rows(name), Some(2));
}

#[test]
fn databases_are_restored_under_other_names() {
    let targets = Targets::fresh(3);
    let [first, second, untouched] = targets.names.as_slice() else { panic!() };
    let (shop, blue) = (format!("{SHOP}={first}"), format!("{BLUE}={second}"));
    let report = targets.restore(&fixture("plain"), "", &[&shop, &blue]).expect(0).json();
    assert_eq!(targets.rows(first), Some(30));
    assert_eq!(targets.rows(second), Some(2));
    assert_eq!(targets.rows(untouched), None);
    let restored = report["restored"].as_array().unwrap();
    assert!(restored[0]["place"].as_str().unwrap().contains(first.as_str()), "{report}");
    assert!(!report.to_string().contains(targets.server.url.password().unwrap()));
}

#[test]
fn a_target_that_refuses_leaves_all_untouched() {
    let targets = Targets::fresh(2);
    let [first, second] = targets.names.as_slice() else { panic!() };
    targets.server.run(second, "CREATE TABLE there(a int)");
    let (shop, blue) = (format!("{SHOP}={first}"), format!("{BLUE}={second}"));
    let ran = targets.restore(&fixture("plain"), "", &[&shop, &blue]).run();
    refused("target_not_empty", &ran);
    let absent = format!("{BLUE}=no_such_{second}");
    let ran = targets.restore(&fixture("plain"), "", &[&shop, &absent]).run();
    assert_ne!(ran.code(), Some(0), "{ran}");
    assert_eq!(targets.rows(first), None);
}

#[test]
fn choices_that_are_ambiguous_are_refused() {
    let targets = Targets::fresh(1);
    let name = targets.names[0].as_str();
    let plain = fixture("plain");
    let new = |database: &str| format!("{database}={name}");
    for (address, databases) in [
        // Several for one database.
        (name, vec![]),
        ("", vec![new(SHOP), new(BLUE)]),
        // Both name the target.
        (name, vec![new(SHOP)]),
        ("", vec![SHOP.to_owned(), new(SHOP)]),
        ("", vec![format!("{SHOP}=")]),
        ("", vec!["nosuch".to_owned()]),
    ] {
        let databases: Vec<&str> = databases.iter().map(String::as_str).collect();
        let ran = targets.restore(&plain, address, &databases).run();
        let said = refused("invalid_request", &ran);
        if databases == ["nosuch"] {
            assert!(said.contains(SHOP) && said.contains(BLUE), "{said}");
        }
    }
    assert_eq!(targets.rows(name), None);
    let out = temp();
    let to = on(&plain, &["restore", "--json", "--database", &new(SHOP)]);
    refused("invalid_request", &to.arg("--to").arg(out.path().join("to")).run());
    assert!(!out.path().join("to").exists());
    let of_one = repository().join("tests/fixtures/format-1/plain");
    let none = on(&of_one, &["restore", "--json", "--database", "shop"]);
    refused("invalid_request", &none.arg("--to").arg(out.path().join("to")).run());
}

#[test]
fn dump_wants_the_name_of_an_artifact() {
    let plain = fixture("plain");
    on(&plain, &["dump", "latest", "db"]).expect(2);
    let out = temp();
    let listed = sh(
        out.path(),
        r#""$1" dump latest db.2.pgdump --storage "$2" --instance shop | pg_restore --list"#,
        &[OsStr::new(env!("CARGO_BIN_EXE_backup")), plain.as_os_str()],
    );
    assert!(listed.contains("thing"), "{listed}");
}

#[test]
fn ordinary_tools_restore_the_second_database() {
    let targets = Targets::fresh(1);
    let name = targets.names[0].as_str();
    let folder = fixture("encrypted").join("shop/daily/20261121T013000Z-7f3a9c");
    let url = targets.server.url(name).to_string();
    sh(
        &folder,
        r#"age -d -i "$1" db.2.pgdump.zst.age | zstd -d | "$2"/pg_restore --exit-on-error --single-transaction --no-owner -d "$3""#,
        &[fixture("identity.txt").as_os_str(), targets.server.bin.as_os_str(), OsStr::new(&url)],
    );
    assert_eq!(targets.rows(name), Some(2));
}

#[test]
fn numbered_names_without_the_word_are_read() {
    let copy = temp();
    sh(copy.path(), r#"cp -r "$1/." ."#, &[fixture("plain").as_os_str()]);
    let folder = copy.path().join("shop/daily/20261121T013000Z-7f3a9c");
    sh(
        &folder,
        r#"
        sed '1d;$d' manifest.json | jq '.requires -= ["numbered"]' >body
        { printf '{"digest": "sha256:%s", "manifest":\n' "$(sha256sum <body | cut -d' ' -f1)"; cat body; echo '}'; } >manifest.json
        rm body"#,
        &[],
    );
    on(copy.path(), &["verify", "--read-data"]).expect(0);
    on(copy.path(), &["restore"]).arg("--to").arg(copy.path().join("out")).expect(0);
    assert_streams(&copy.path().join("out/db"), &["db.globals.sql", "db.pgdump", "db.2.pgdump"]);
}

/// A configuration of the instance with two storages, the first of which has the snapshot.
fn configured(variant: &str, more: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = temp();
    sh(dir.path(), r#"mkdir store && cp -r "$1/." store"#, &[fixture(variant).as_os_str()]);
    let text = format!(
        "instance = \"shop\"\nstate_dir = \"{0}/state\"\n\
         [sources.db]\ntype = \"postgres\"\nurl = \"postgresql://nobody@127.0.0.1:1/none\"\n\
         [storages.local]\ntype = \"local\"\npath = \"{0}/store\"\n\
         [storages.usb]\ntype = \"local\"\npath = \"{0}/usb\"\n\
         [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n{more}",
        dir.path().display()
    );
    let config = dir.path().join("shop.toml");
    std::fs::write(&config, text).unwrap();
    (dir, config)
}

#[test]
fn several_databases_are_copied_exported_and_imported() {
    for variant in VARIANTS {
        let (dir, config) = configured(variant, "");
        let with = |args: &[&str]| backup(["--config"]).arg(&config).args(args.iter().copied());
        let file = dir.path().join("one.tar");
        with(&["copy", "--from", "local", "--to", "usb", "--strategy", "daily"]).expect(0);
        with(&["export", "--strategy", "daily", "--snapshot", "latest", "--output"])
            .arg(&file)
            .expect(0);
        let imported = dir.path().join("imported");
        std::fs::create_dir(&imported).unwrap();
        keyless(&imported, &["import"]).arg(&file).expect(0);
        for storage in [dir.path().join("usb"), imported] {
            let out = temp();
            on(&storage, &["verify", "--read-data"]).expect(0);
            on(&storage, &["restore"]).arg("--to").arg(out.path()).expect(0);
            assert_streams(&out.path().join("db"), &["db.globals.sql", "db.pgdump", "db.2.pgdump"]);
        }
    }
}

#[test]
fn a_drill_of_several_databases_never_passes() {
    let (dir, config) = configured("plain", "");
    std::fs::create_dir(dir.path().join("scratch")).unwrap();
    let report = backup(["--config"])
        .arg(&config)
        .args(["drill", "--strategy", "daily", "--json"])
        .expect(1)
        .json();
    assert_eq!(report["verdict"], "inconclusive", "{report:#}");
    let digests = report["checks"].as_array().unwrap().iter();
    let digests = digests.filter(|check| check["kind"] == "digest" && check["outcome"] == "passed");
    assert_eq!(digests.count(), 4, "each artifact was read: {report:#}");
}
