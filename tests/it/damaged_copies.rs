//! A copy that is damaged is known until it is repaired, and another one takes its place.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::postgres::Server;
use crate::support::sh;
use crate::support::site::{Site, noise, small_tree};

const SOURCES: &str = r#"
[sources.dump]
type = "command"
command = ["head", "-c", "3000000", "@/noise"]
restore_command = ["sh", "-c", "cat >> '@/restored'"]
[sources.files]
type = "directory"
path = "@/data"
[storages.local]
type = "local"
path = "@/store"
[storages.usb]
type = "local"
path = "@/usb"
[strategies.daily]
sources = ["dump", "files"]
storages = ["local", "usb"]
"#;

/// A site with one snapshot in two storages.
fn site(of_strategy: &str) -> Site {
    let site = Site::new(&format!("{SOURCES}{of_strategy}"));
    small_tree(&site.path("data"));
    std::fs::write(site.path("noise"), noise(9_000_000)).unwrap();
    std::fs::copy(site.path("noise"), site.path("data/noise")).unwrap();
    site.run(0);
    site
}

/// The object of the only snapshot whose name begins so.
fn object(site: &Site, root: &str, name: &str) -> PathBuf {
    let folder = site.folders().pop().unwrap();
    let folder = site.path(root).join("app/daily").join(folder.file_name().unwrap());
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name));
    found.sort();
    found.into_iter().next().unwrap_or_else(|| panic!("no object {name}"))
}

/// Changes one byte in the second half.
fn flip(object: &Path) {
    let mut bytes = std::fs::read(object).unwrap();
    let at = bytes.len() * 2 / 3;
    bytes[at] ^= 1;
    std::fs::write(object, bytes).unwrap();
}

/// The storages whose copy of the newest snapshot is listed as damaged.
fn listed(site: &Site, code: i32) -> Vec<String> {
    let listing = site.backup(["list", "--json"]).expect(code).json();
    let rows = listing["snapshots"].as_array().unwrap();
    let damaged = rows.last().unwrap()["damaged"].as_array().unwrap();
    damaged.iter().map(|one| one["storage"].as_str().unwrap().to_owned()).collect()
}

/// The state of the strategy and the storages whose copies are damaged, by the status.
fn status(site: &Site) -> (String, Vec<String>) {
    let status = site.backup(["status", "--json"]).run().json();
    let strategy = &status["strategies"][0];
    let storages = strategy["storages"].as_array().unwrap().iter();
    let damaged = storages.filter(|one| !one["damaged"].as_array().unwrap().is_empty());
    let damaged = damaged.map(|one| one["storage"].as_str().unwrap().to_owned()).collect();
    (strategy["state"].as_str().unwrap().to_owned(), damaged)
}

/// What stands in the storage's folder of marks, by kind.
fn marks(site: &Site, root: &str) -> Vec<String> {
    let found = sh(site.dir.path(), &format!("find {root}/app/marks -type f -printf '%f\\n'"), &[]);
    let mut kinds: Vec<String> =
        found.lines().map(|name| name.split('-').next().unwrap().to_owned()).collect();
    kinds.sort();
    kinds
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn damage_is_known_until_it_is_repaired() {
    // Whoever reads a copy finds it.
    let readers: [(&str, &[&str], i32); 6] = [
        ("verify", &["verify", "--read-data"], 4),
        ("restore", &["restore", "--storage", "local", "--to", "@/out"], 4),
        ("dump", &["dump", "--strategy", "daily", "latest", "files", "--storage", "local"], 4),
        ("copy", &["copy", "--from", "local", "--to", "@/elsewhere"], 4),
        (
            "export",
            &[
                "export",
                "--strategy",
                "daily",
                "--snapshot",
                "latest",
                "--storage",
                "local",
                "--output",
                "@/app.tar",
            ],
            4,
        ),
        ("drill", &["drill", "--strategy", "daily"], 4),
    ];
    for (name, args, code) in readers {
        let site = site("");
        let good = object(&site, "store", "files.tar");
        let kept = std::fs::read(&good).unwrap();
        assert_eq!(listed(&site, 0), none());
        flip(&good);
        assert_eq!(listed(&site, 0), none(), "{name}: nobody has read it yet");
        let place = |arg: &&str| arg.replace('@', site.dir.path().to_str().unwrap());
        site.backup(args.iter().map(place)).expect(code);
        for _ in 0..2 {
            assert_eq!(listed(&site, 4), ["local"], "{name}");
            assert_eq!(status(&site), ("damaged".to_owned(), vec!["local".to_owned()]), "{name}");
        }
        assert_eq!(marks(&site, "store"), ["damaged"], "{name}: once");
        assert!(!site.path("usb/app/marks").exists(), "{name}: the other copy is good");
        // Sizes alone prove nothing.
        site.backup(["verify"]).expect(4);
        assert_eq!(listed(&site, 4), ["local"], "{name}");
        std::fs::write(&good, kept).unwrap();
        site.backup(["verify", "--read-data"]).expect(0);
        assert_eq!(listed(&site, 0), none(), "{name}");
        // A drill that failed is made good by another.
        let state = if name == "drill" { "unproven" } else { "manual" };
        assert_eq!(status(&site), (state.to_owned(), none()), "{name}");
    }
}

#[test]
fn a_copy_made_anew_is_sound() {
    let site = site("");
    let id = site.ids().pop().unwrap();
    flip(&object(&site, "store", "files.tar"));
    site.backup(["verify", "--read-data"]).expect(4);
    let copy = ["copy", "--from", "usb", "--to", "local", "--json"];
    let refused = site.backup(copy).run().json();
    assert_eq!(refused["snapshots"][0]["state"], "differs");
    site.backup(["forget", &id, "--storage", "local", "--yes"]).expect(0);
    let copied = site.backup(copy).expect(0).json();
    assert_eq!(copied["snapshots"][0]["state"], "copied");
    assert_eq!(listed(&site, 0), none());
}

#[test]
fn damage_stays_with_the_copy() {
    let site = site("");
    flip(&object(&site, "store", "files.tar"));
    site.backup(["verify", "--read-data"]).expect(4);
    // Another host that calls its disk by the same name.
    site.backup(["hold", "latest", "--strategy", "daily"]).expect(0);
    std::fs::remove_dir_all(site.path("usb")).unwrap();
    site.backup(["copy", "--from", "local", "--to", "usb", "--strategy", "daily"]).expect(4);
    assert_eq!(marks(&site, "usb"), ["hold"]);
}

#[test]
fn a_repaired_copy_can_be_accepted() {
    let site = site("");
    let id = site.ids().pop().unwrap();
    let good = object(&site, "store", "files.tar");
    let kept = std::fs::read(&good).unwrap();
    flip(&good);
    site.backup(["verify", "--read-data"]).expect(4);
    std::fs::write(&good, kept).unwrap();
    let reason = ["--reason", "put back by hand"];
    site.backup(["release", &id, "--only", "damage"]).args(reason).expect(0);
    assert_eq!(listed(&site, 0), none());
}

#[test]
fn what_this_machine_alone_knows_is_not_forgotten() {
    let site = site("");
    let good = object(&site, "store", "files.tar");
    flip(&good);
    site.backup(["verify", "--read-data"]).expect(4);
    std::fs::remove_dir_all(site.path("store/app/marks")).unwrap();
    assert_eq!(listed(&site, 4), ["local"]);
}

/// Where a damaged copy was given up, and which was read to the end.
fn passed_over(report: &Value) -> (Vec<&str>, &str) {
    let passed = report["passed_over"].as_array().map_or(&[][..], Vec::as_slice);
    let passed = passed.iter().map(|one| one["storage"].as_str().unwrap()).collect();
    (passed, report["storage"].as_str().unwrap())
}

#[test]
fn a_restore_goes_on_with_a_good_copy() {
    for overwrite in [false, true] {
        for damaged in ["files.tar", "files.index", "dump", "facts", "manifest"] {
            let site = site("");
            flip(&object(&site, "store", damaged));
            let out = site.path("out");
            let mut restore = site.backup(["restore", "--json", "--to"]).arg(&out);
            if overwrite {
                std::fs::create_dir_all(out.join("files")).unwrap();
                std::fs::write(out.join("files/old"), "old").unwrap();
                restore = restore.args(["--overwrite", "--delete"]);
            }
            let report = restore.expect(0).json();
            let (passed, read) = passed_over(&report);
            assert_eq!(read, "usb", "{damaged}");
            // One without a manifest is not begun with.
            assert_eq!(passed.is_empty(), damaged == "manifest", "{damaged} {passed:?}");
            sh(
                site.dir.path(),
                "diff -r --no-dereference data out/files\nhead -c 3000000 noise | cmp - out/dump/*",
                &[],
            );
            // The next one begins with the good copy, and says so.
            let again = site.backup(["restore", "--json", "--to"]).arg(site.path("again"));
            let again = again.expect(0);
            assert_eq!(passed_over(&again.json()), (Vec::new(), "usb"), "{damaged}");
            assert!(again.err().contains("local"), "{damaged}");
        }
    }
}

#[test]
fn a_restore_goes_on_where_a_storage_is_away() {
    let site = site("");
    let id = site.ids().pop().unwrap();
    // It is listed, and then its objects cannot be read.
    let object = object(&site, "store", "files.tar");
    std::fs::remove_file(&object).unwrap();
    std::os::unix::fs::symlink("/nowhere", &object).unwrap();
    let report = site.backup(["restore", "--snapshot", &id, "--json", "--to"]);
    let report = report.arg(site.path("out")).expect(0).json();
    assert_eq!(passed_over(&report).1, "usb");
    sh(site.dir.path(), "diff -r --no-dereference data out/files", &[]);
}

#[test]
fn what_a_command_was_given_is_not_given_twice() {
    let site = site("");
    flip(&object(&site, "store", "dump"));
    site.backup(["restore", "--to-command", "--strategy", "daily"]).expect(4);
    let taken = std::fs::metadata(site.path("restored")).map_or(0, |found| found.len());
    assert!(taken < 3_000_000, "{taken} bytes");
}

#[test]
fn a_dry_run_reads_a_good_copy_too() {
    let site = site("");
    flip(&object(&site, "store", "files.index"));
    let report = site.backup(["restore", "--dry-run", "--json", "--to"]);
    let report = report.arg(site.path("out")).expect(0).json();
    assert_eq!(passed_over(&report).1, "usb");
    assert!(!site.path("out").exists());
}

#[test]
fn a_database_is_restored_from_a_good_copy() {
    let server = Server::new(16);
    let (source, target) = (server.database(), server.database());
    source.run("create table t as select generate_series(1, 200000) as id");
    let site = Site::new(&SOURCES.replace("[\"dump\", \"files\"]", "[\"db\"]").replace(
        "[sources.dump]",
        "[sources.db]\ntype = \"postgres\"\nurl = \"${DB_URL}\"\n[sources.dump]",
    ));
    let backup =
        |args: &[&str]| site.backup(args).env("DB_URL", source.url()).env("PATH", server.path());
    backup(&["--strategy", "daily"]).expect(0);
    flip(&object(&site, "store", "db.pgdump"));
    let report = backup(&["restore", "--json", "--into"]).arg(target.url());
    let report = report.expect(0).json();
    assert_eq!(passed_over(&report), (vec!["local"], "usb"), "{report}");
    assert_eq!(target.number("select count(*) from t"), 200_000);
}

#[test]
fn a_damaged_whole_copy_supersedes_no_partial_one() {
    let only = "retention = { keep_last = 1 }\nmax_delete_percent = 100\n";
    let site =
        Site::new(&format!("{}{only}", SOURCES.replace("[\"local\", \"usb\"]", "[\"local\"]")));
    small_tree(&site.path("data"));
    std::fs::write(site.path("noise"), noise(3_000_000)).unwrap();
    // As a user who may not read one of the files.
    std::fs::write(site.path("data/closed"), "closed").unwrap();
    let closed = site.path("data/closed");
    let mode =
        |mode: &str| sh(site.dir.path(), "chmod $1 \"$2\"", &[mode.as_ref(), closed.as_os_str()]);
    sh(site.dir.path(), "chown -R 64999 .", &[]);
    mode("000");
    let run = || site.backup(["--strategy", "daily"]).with_user(64_999, site.dir.path());
    run().expect(3);
    let partial = site.ids().pop().unwrap();
    mode("644");
    site.backup(["hold", &partial]).expect(0);
    run().expect(0);
    let object = site.newest().join("files.tar.zst");
    flip(&object);
    site.backup(["verify", "--read-data"]).expect(4);
    site.backup(["release", &partial]).expect(0);
    site.backup(["prune", "--yes"]).run();
    let left = site.backup(["list", "--json"]).expect(4).json();
    assert_eq!(left["snapshots"][0]["id"], partial.as_str(), "{left}");
    site.backup(["restore", "--snapshot", &partial, "--to"]).arg(site.path("out")).expect(3);
}

#[test]
fn each_copy_may_be_good_for_another_artifact() {
    let site = site("");
    flip(&object(&site, "store", "dump"));
    flip(&object(&site, "usb", "files.tar"));
    let report = site.backup(["restore", "--json", "--to"]).arg(site.path("out")).expect(0).json();
    assert_eq!(passed_over(&report), (vec!["local", "usb"], "local"));
    sh(
        site.dir.path(),
        "diff -r --no-dereference data out/files\nhead -c 3000000 noise | cmp - out/dump/*",
        &[],
    );
    assert_eq!((marks(&site, "store"), marks(&site, "usb")), (kinds(), kinds()));
    // Neither may go for the other's sake.
    let id = site.folders()[0].file_name().unwrap().to_str().unwrap().to_owned();
    site.backup(["forget", &id, "--storage", "usb", "--yes"]).expect(2);
}

fn kinds() -> Vec<String> {
    vec!["damaged".to_owned()]
}

#[test]
fn a_copy_that_nobody_has_read_is_read_before_another_goes() {
    let site = site("");
    flip(&object(&site, "usb", "files.tar"));
    site.backup(["verify", "--read-data"]).expect(4);
    flip(&object(&site, "store", "dump"));
    let id = site.folders()[0].file_name().unwrap().to_str().unwrap().to_owned();
    site.backup(["forget", &id, "--storage", "usb", "--yes"]).expect(2);
    assert!(object(&site, "usb", "dump").exists());
}

#[test]
fn a_drill_that_passes_ends_the_mark() {
    let site = site("");
    let good = object(&site, "store", "files.tar");
    let kept = std::fs::read(&good).unwrap();
    flip(&good);
    site.backup(["drill", "--strategy", "daily"]).expect(4);
    assert_eq!(listed(&site, 4), ["local"]);
    std::fs::write(&good, kept).unwrap();
    site.backup(["drill", "--strategy", "daily"]).expect(0);
    assert_eq!(listed(&site, 0), none());
}
