//! What a person sees, word by word: the texts of the commands, held against the files in
//! `output/`. What differs from run to run (ids, times, sizes of what is compressed) stands there
//! as a word. After a change that is meant, run these tests once with `HOLDFAST_WRITE_EXPECTED=1`
//! and read the difference.

use std::path::Path;

use holdfast::model::{Cancel, Completeness, Mark, Says, SnapshotId, Verdict};
use holdfast::storage::StorageConfig;
use holdfast::storage::local::LocalConfig;

use crate::support::plant::{plant, plant_one};
use crate::support::site::{Site, small_tree};
use crate::support::{Ran, backup, repository, sh, temp};

/// Holds `text` against the file of that name.
fn assert_expected(name: &str, text: &str) {
    let file = repository().join("tests/it/output").join(name);
    if std::env::var_os("HOLDFAST_WRITE_EXPECTED").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text == expected, "{} differs:\n{text}", file.display());
}

/// The output with a word for all that differs between runs; columns are two spaces apart.
fn normal(text: &str, here: &Path) -> String {
    let folder = temp();
    std::fs::write(folder.path().join("text"), text).unwrap();
    sh(
        folder.path(),
        r#"sed -E \
            -e "s#$1#HERE#g" \
            -e 's/[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}/ID/g' \
            -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}/TIME/g' \
            -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}/TIME/g' \
            -e 's/(ID +TIME +)[0-9a-z ]+  /\1AGO  /' \
            -e 's/CES?T/ZONE/g' \
            -e 's/([0-9]+[dhms] ?)+ ?ago|\<now\>/AGO/g' \
            -e 's#[0-9.]+ ([KMGT]i)?B/s#RATE#g' \
            -e 's/[0-9.]+ ([KMGT]i)?B free/SIZE free/g' \
            -e 's/[0-9]+\.[0-9]s/SECONDS/g' \
            -e 's/threads = [0-9]+/threads = N/' \
            -e 's/([^ ]) {2,}/\1  /g' text"#,
        &[here.as_os_str()],
    )
}

/// Of what this version compresses, the sizes are not promised.
fn without_sizes(text: &str) -> String {
    let folder = temp();
    std::fs::write(folder.path().join("text"), text).unwrap();
    sh(folder.path(), r"sed -E -e 's/[0-9.]+ ([KMG]i)?B\>/SIZE/g' text", &[])
}

/// `backup ARGS... --storage` on a frozen snapshot.
fn frozen(args: &[&str], variant: &str) -> Ran {
    let storage = repository().join("tests/fixtures/format-1").join(variant);
    backup(args).arg("--storage").arg(storage).run()
}

fn assert_frozen(name: &str, args: &[&str], variant: &str) {
    let ran = frozen(args, variant).expect(0);
    assert_expected(name, &normal(ran.out(), &repository()));
    assert_eq!(ran.err(), "");
}

#[test]
fn list() {
    assert_frozen("list.txt", &["list"], "plain");
}

#[test]
fn show() {
    assert_frozen("show.txt", &["show", "latest"], "plain");
}

#[test]
fn show_of_what_is_encrypted() {
    assert_frozen("show-encrypted.txt", &["show", "latest"], "encrypted");
}

#[test]
fn verify() {
    assert_frozen("verify.txt", &["verify"], "plain");
    assert_frozen("verify-read-data.txt", &["verify", "--read-data"], "plain");
    assert_frozen("verify-without-key.txt", &["verify", "--read-data"], "encrypted");
}

fn site() -> Site {
    let site = Site::new(
        r#"
[sources.db]
type = "sqlite"
path = "data/app.sqlite"
[sources.files]
type = "directory"
path = "data/files"
exclude = ["tmp/**"]
[storages.disk]
type = "local"
path = "data/../store"
[strategies.daily]
schedule = "30 1 * * *"
timezone = "Europe/Oslo"
sources = ["db", "files"]
storages = ["disk"]
retention = { keep_daily = 30, keep_weekly = 8 }
timeout = "4h"
[strategies.by-hand]
sources = ["db"]
storages = ["disk"]
"#,
    );
    small_tree(&site.path("data/files"));
    sh(&site.path("data"), "sqlite3 app.sqlite 'CREATE TABLE user(id INTEGER PRIMARY KEY)'", &[]);
    site
}

fn assert_text(name: &str, site: &Site, text: &str) {
    assert_expected(name, &without_sizes(&normal(text, site.dir.path())));
}

#[test]
fn a_run_and_a_restore() {
    let site = site();
    let run = site.backup(["--strategy", "daily"]).expect(0);
    assert_text("run.txt", &site, run.out());
    let plan = site.backup(["--strategy", "daily", "--dry-run"]).expect(0);
    assert_text("dry-run.txt", &site, plan.out());
    let restored =
        site.backup(["restore", "--strategy", "daily", "--to"]).arg(site.path("out")).expect(0);
    assert_text("restore.txt", &site, restored.out());
}

#[test]
fn strategies_and_check() {
    let site = site();
    assert_text("strategies.txt", &site, site.backup(["strategies"]).expect(0).out());
    assert_text("check.txt", &site, site.backup(["check"]).expect(0).out());
}

#[tokio::test]
async fn how_each_strategy_fares() {
    let site = site();
    let mut text = String::new();
    let mut shown = |code| {
        let ran = site.backup(["status"]).expect(code);
        text += &format!("$ backup status\n{}{}\n", ran.out(), ran.err());
    };
    shown(1);
    site.backup(["--strategy", "daily"]).expect(0);
    shown(0);
    // Of another year, and the database is gone.
    let newest = site.newest();
    let config = LocalConfig::from_path(site.path("store"));
    let storage = StorageConfig::Local(config).open(&Cancel::new()).await.unwrap();
    plant(&*storage, "app", "daily", ["2026-01-04T03:00:00Z".parse().unwrap()]).await;
    std::fs::remove_dir_all(newest).unwrap();
    site.backup(["list"]).expect(4);
    std::fs::remove_file(site.path("data/shop.sqlite")).unwrap_or_default();
    shown(1);
    assert_text("status.txt", &site, &text);
}

#[tokio::test]
async fn snapshots_and_what_keeps_them() {
    let site = site();
    let config = LocalConfig::from_path(site.path("store"));
    let storage = StorageConfig::Local(config).open(&Cancel::new()).await.unwrap();
    // Sundays, and one Saturday.
    let days =
        ["03-01", "02-28", "02-22", "02-15", "02-08", "02-01", "01-25", "01-18", "01-11", "01-04"];
    let times = days.map(|day| format!("2026-{day}T03:00:00Z").parse().unwrap());
    let ids = plant(&*storage, "app", "daily", times).await;
    let partial = SnapshotId::new("2026-02-10T03:00:00Z".parse().unwrap(), [9, 9, 9]);
    plant_one(&*storage, "app", "daily", &partial, Completeness::Partial).await;
    let rules = std::fs::read_to_string(site.config()).unwrap();
    let rules =
        rules.replace("{ keep_daily = 30, keep_weekly = 8 }", "{ keep_last = 2, keep_weekly = 4 }");
    std::fs::write(site.config(), rules).unwrap();
    let drilled = Mark {
        format: 1,
        mark_id: None,
        instance: "app".parse().unwrap(),
        strategy: "daily".parse().unwrap(),
        id: ids[7].clone(),
        made: "2026-02-20T05:00:00Z".parse().unwrap(),
        says: Says::Drill { verdict: Verdict::Passed, evidence: None },
    };
    storage.replace(&drilled.key(), drilled.to_bytes().into()).await.unwrap();
    let mut text = String::new();
    let mut shown = |args: &[&str], code| {
        let ran = site.backup(args).expect(code);
        text += &format!("$ backup {}\n{}{}\n", args.join(" "), ran.out(), ran.err());
    };
    shown(
        &["hold", ids[8].as_str(), "--reason", "before the migration", "--until", "2036-01-31"],
        0,
    );
    shown(&["list"], 0);
    shown(&["prune", "--plan"], 0);
    // The oldest of those that go is damaged.
    std::fs::remove_file(site.path(format!("store/app/daily/{}/dump.out", ids[9]))).unwrap();
    shown(&["list"], 4);
    shown(&["prune", "--yes", "--strategy", "daily"], 1);
    shown(&["forget", ids[9].as_str()], 0);
    shown(&["prune", "--yes", "-q"], 0);
    shown(&["forget", ids[8].as_str()], 2);
    shown(&["release", ids[8].as_str()], 0);
    shown(&["stats"], 0);
    let digest = |text: &str| {
        let at = text.find("--apply ").unwrap() + 8;
        text.replace(&text[at..at + 12], "DIGEST")
    };
    assert_text("kept.txt", &site, &digest(&text));
}

#[test]
fn errors() {
    let site = site();
    let refused = |args: &[&str], code| {
        format!("$ backup {}\n{}\n", args.join(" "), site.backup(args).expect(code).err())
    };
    let mut text = refused(&["--strategy", "dialy"], 2);
    text += &refused(&["show", "latest"], 1);
    text += &refused(&["restore", "--strategy", "daily", "--to", "out"], 1);
    text += &refused(&["verify", "--storage", "disc"], 2);
    text += &refused(&["check", "--identity-file", "nothing.txt"], 1);
    std::fs::remove_dir_all(site.path("data/files")).unwrap();
    text += &format!(
        "$ backup --strategy daily\n{}\n",
        site.backup(["--strategy", "daily", "-q"]).expect(1).out()
    );
    std::fs::write(
        site.config(),
        r#"
instance = "App"
[sources.db]
type = "sqlit"
[sources.files]
type = "directory"
path = "${NOT_SET}/files"
exlude = ["tmp"]
[storages.disk]
type = "local"
[strategies.daily]
schedule = "30 25 * * *"
timezone = "Europe/Olso"
sources = ["db", "file"]
storages = ["disk"]
retention = { keep_daily = 0 }
"#,
    )
    .unwrap();
    text += &refused(&["check"], 2);
    assert_text("errors.txt", &site, &text);
}

#[test]
fn colour_is_for_terminals_and_for_who_asks() {
    let has_colour = |text: &str| text.contains('\u{1b}');
    assert!(!has_colour(frozen(&["list"], "plain").out()));
    assert!(!has_colour(frozen(&["list", "--color", "never"], "plain").out()));
    assert!(has_colour(frozen(&["list", "--color", "always"], "plain").out()));
}

#[test]
fn json_is_one_document_and_errors_are_json_too() {
    for args in [&["list", "--json"][..], &["show", "latest", "--json"], &["verify", "--json"]] {
        assert_eq!(frozen(args, "plain").expect(0).json()["format"], 1);
    }
    let site = site();
    let failed = site.backup(["show", "latest", "--json"]).expect(1);
    assert_eq!(failed.out(), "");
    let error: serde_json::Value = serde_json::from_str(&failed.err()).unwrap();
    assert_eq!(error["error"]["exit"], 1, "{error}");
}

#[test]
fn every_command_gives_an_example() {
    for command in [
        "",
        "run",
        "check",
        "strategies",
        "list",
        "show",
        "verify",
        "restore",
        "dump",
        "stats",
        "prune",
        "hold",
        "release",
        "forget",
        "diff",
        "catalog rebuild",
        "config schema",
        "completions",
    ] {
        let help = backup(command.split_whitespace()).arg("--help").expect(0);
        assert!(help.out().contains("Examples:\n  backup"), "{help}");
    }
}

#[test]
fn copy_export_and_import() {
    let body = "[sources.db]\ntype = \"sqlite\"\npath = \"app.sqlite\"\n\
                [storages.disk]\ntype = \"local\"\npath = \"store\"\n\
                [storages.usb]\ntype = \"local\"\npath = \"usb\"\n\
                [strategies.daily]\nsources = [\"db\"]\nstorages = [\"disk\"]\n";
    let site = Site::new(body);
    sh(site.dir.path(), "sqlite3 app.sqlite 'CREATE TABLE user(id INTEGER PRIMARY KEY)'", &[]);
    site.run(0);
    let steps = [
        &["copy", "--from", "disk", "--to", "usb", "--dry-run"][..],
        &["copy", "--from", "disk", "--to", "usb"],
        &["copy", "--from", "disk", "--to", "usb"],
        &["export", "--strategy", "daily", "--output", "app.tar"],
        &["import", "app.tar", "--storage", "disk"],
        &["import", "app.tar", "--storage", "disk"],
    ];
    let mut text = String::new();
    for args in steps {
        let ran = site.backup(args).dir(site.dir.path()).expect(0);
        text += &format!("$ backup {}\n{}", args.join(" "), ran.out());
    }
    assert_expected("copy.txt", &without_sizes(&normal(&text, site.dir.path())));
    let readme = sh(site.dir.path(), "tar xOf app.tar README.txt", &[]);
    let begun = sh(
        site.dir.path(),
        r#"sed -E -e 's/begun at [^ ]+\.$/begun at THEN./' -e 's/holdfast [0-9.]+,/holdfast VERSION,/' <<< "$1""#,
        &[readme.as_ref()],
    );
    assert_expected("export-readme.txt", &normal(&begun, site.dir.path()));
}
