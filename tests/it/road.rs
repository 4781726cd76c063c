//! The whole road: a run, its snapshot in every storage, and back, by the program and by ordinary
//! tools.

use std::ffi::OsStr;
use std::path::Path;

use crate::support::site::{Site, noise, s3_storage, small_tree};
use crate::support::stores::{Server, fresh};
use crate::support::{self, age_key, backup, files, sh, temp};

/// A database and a folder, to a local storage.
const PLAIN: &str = r#"
[sources.db]
type = "sqlite"
path = "@/data/app.sqlite"
[sources.files]
type = "directory"
path = "@/data/files"
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["db", "files"]
storages = ["local"]
"#;

fn with_data(site: Site) -> Site {
    small_tree(&site.path("data/files"));
    sh(
        &site.path("data"),
        "sqlite3 app.sqlite 'CREATE TABLE user(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO \
         user(name) VALUES (\"ann\"),(\"bob\");'",
        &[],
    );
    site
}

fn plain_site() -> Site {
    with_data(Site::new(PLAIN))
}

/// The trees are the same by GNU diff, links compared as links.
fn assert_same_tree(a: &Path, b: &Path) {
    sh(Path::new("/"), r#"diff -r --no-dereference "$1" "$2""#, &[a.as_os_str(), b.as_os_str()]);
}

#[test]
fn a_run_commits_what_restore_gives_back() {
    let site = plain_site();
    let report = site.run(0).json();
    assert_eq!(report["outcome"], "success");
    let ids = site.ids();
    assert_eq!(ids, [report["id"].as_str().unwrap()]);
    let names: Vec<String> =
        files(&site.newest()).into_keys().map(|name| name.into_string().unwrap()).collect();
    assert_eq!(
        names,
        [
            "db.sqlite.zst",
            "facts.json.zst",
            "files.blocks.zst",
            "files.index.zst",
            "files.tar.zst",
            "manifest.json",
        ]
    );
    let restored = site
        .backup(["restore", "--strategy", "daily", "--json", "--to"])
        .arg(site.path("out"))
        .expect(0);
    assert_eq!(restored.json()["id"], report["id"]);
    assert_same_tree(&site.path("data/files"), &site.path("out/files"));
    let rows =
        sh(&site.path("out/db"), "sqlite3 app.sqlite 'SELECT group_concat(name) FROM user'", &[]);
    assert_eq!(rows.trim(), "ann,bob");
    site.backup(["verify", "--read-data"]).expect(0);
}

#[test]
fn a_manifest_can_be_checked_with_sha256sum() {
    let site = plain_site();
    site.run(0);
    let digest = sh(&site.newest(), "sed '1d;$d' manifest.json | sha256sum | cut -d' ' -f1", &[]);
    let stated =
        sh(&site.newest(), r#"sed -n '1s/.*sha256:\([0-9a-f]*\).*/\1/p' manifest.json"#, &[]);
    assert_eq!(digest, stated);
    let objects = sh(
        &site.newest(),
        r#"python3 - <<'PY'
import json, hashlib
manifest = json.load(open("manifest.json"))["manifest"]
for artifact in manifest["artifacts"]:
    for o in artifact["objects"]:
        data = open(o["key"], "rb").read()
        assert len(data) == o["size"] and "sha256:" + hashlib.sha256(data).hexdigest() == o["digest"], o
print("checked")
PY"#,
        &[],
    );
    assert_eq!(objects.trim(), "checked");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_read_goes_to_all_storages_and_comes_back_from_each_with_the_key_alone() {
    let keys = temp();
    let (key, recipient) = age_key(keys.path(), "key");
    let (other, second) = age_key(keys.path(), "other");
    let mut storages = String::new();
    let mut buckets = Vec::new();
    for (name, server) in [("small", Server::S3s), ("weed", Server::SeaweedFs)] {
        let bucket = fresh("road");
        server.client().create_bucket().bucket(&bucket).send().await.unwrap();
        let s3 = support::s3(if server == Server::SeaweedFs { "SEAWEEDFS" } else { "S3S" });
        storages += &s3_storage(name, &s3, &bucket);
        storages += "prefix = \"deep/er\"\n";
        buckets.push((name, s3, bucket));
    }
    let body = PLAIN.replace("[\"local\"]", "[\"local\", \"small\", \"weed\"]")
        + &storages
        + &format!("[encryption]\nrecipients = [\"{recipient}\", \"{second}\"]\n");
    let site = with_data(Site::new(&body));
    let report = site.run(0).json();
    assert!(
        report["storages"].as_array().unwrap().iter().all(|storage| storage["committed"] == true)
    );
    site.backup(["verify", "--read-data", "--identity-file"]).arg(&key).expect(0);

    // The host is gone: no configuration, no state. The bucket and either key are left.
    for (number, (name, s3, bucket)) in buckets.iter().enumerate() {
        let out = site.path(format!("out-{name}"));
        let key = if number == 0 { &key } else { &other };
        let by_address = |command: &str| {
            backup([command, "--storage", &format!("s3://{bucket}/deep/er")])
                .env("AWS_ENDPOINT_URL", &s3.endpoint)
                .env("AWS_REGION", &s3.region)
                .env("AWS_ACCESS_KEY_ID", &s3.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &s3.secret_key)
        };
        let list = by_address("list").arg("--json").expect(0).json();
        assert_eq!(list["snapshots"][0]["id"], report["id"]);
        let refused = by_address("restore").arg("--to").arg(&out).expect(2);
        assert!(refused.err().contains("--identity-file"), "{refused}");
        by_address("restore").arg("--identity-file").arg(key).arg("--to").arg(&out).expect(0);
        assert_same_tree(&site.path("data/files"), &out.join("files"));
    }
    let local = site.path("out-local");
    backup(["restore", "--storage"])
        .arg(site.path("store"))
        .args(["--instance", "app", "--strategy", "daily", "--identity-file"])
        .arg(&key)
        .arg("--to")
        .arg(&local)
        .expect(0);
    assert_same_tree(&site.path("data/files"), &local.join("files"));
}

#[test]
fn what_show_prints_restores_with_ordinary_tools() {
    let keys = temp();
    let (key, recipient) = age_key(keys.path(), "key");
    for (compression, encryption) in [
        ("zstd", ""),
        ("gzip", ""),
        ("none", ""),
        ("zstd", recipient.as_str()),
        ("gzip", recipient.as_str()),
    ] {
        let mut body = format!("compression = {{ algorithm = \"{compression}\" }}\n{PLAIN}");
        if !encryption.is_empty() {
            body += &format!("[encryption]\nrecipients = [\"{encryption}\"]\n");
        }
        body = body.replace("[\"db\", \"files\"]", "[\"db\", \"files\", \"words\"]")
            + "[sources.words]\ntype = \"command\"\ncommand = [\"echo\", \"some words\"]\n";
        let site = with_data(Site::new(&body));
        site.run(0);
        let shown =
            site.backup(["show", "latest", "--json", "--identity-file"]).arg(&key).expect(0).json();
        let out = site.path("by hand");
        std::fs::create_dir(&out).unwrap();
        for command in shown["commands"].as_array().unwrap() {
            let script =
                format!("export KEY=\"$1\" DIR=\"$2\"; {}", command["command"].as_str().unwrap());
            sh(&out, &script, &[key.as_os_str(), out.as_os_str()]);
        }
        let found = files(&out);
        assert_eq!(found[OsStr::new("words.out")], b"some words\n");
        assert_eq!(found[OsStr::new("a.txt")], b"alpha\n");
        assert_eq!(found[OsStr::new("sub/b.bin")], noise(300_000));
        let rows = sh(
            &out,
            "sqlite3 app.sqlite 'PRAGMA integrity_check; SELECT count(*) FROM \
            user'",
            &[],
        );
        assert_eq!(rows, "ok\n2\n", "{compression}");
    }
}

#[test]
fn each_of_several_snapshots_is_found_by_time_and_by_a_short_id() {
    let site = plain_site();
    site.run(0);
    std::fs::write(site.path("data/files/a.txt"), "beta\n").unwrap();
    site.run(0);
    let ids = site.ids();
    assert_eq!(ids.len(), 2);
    let salt = |id: &str| id.rsplit('-').next().unwrap().to_owned();
    for (id, content) in ids.iter().zip(["alpha\n", "beta\n"]) {
        let out = site.path(format!("out-{id}"));
        site.backup(["restore", "--snapshot", &salt(id), "--source", "files", "--to"])
            .arg(&out)
            .expect(0);
        assert_eq!(std::fs::read_to_string(out.join("files/a.txt")).unwrap(), content);
        assert!(!out.join("db").exists(), "only the source that was asked for");
    }
    let before = site
        .backup(["restore", "--strategy", "daily", "--at", "2001-01-01", "--to"])
        .arg(site.path("x"));
    assert!(before.expect(1).err().contains("no snapshot at or before"));
    assert!(site.backup(["show", "20"]).expect(2).err().contains("could be 2 snapshots"));
}

#[test]
fn a_restore_replaces_nothing_unless_told_to_and_nothing_at_all_from_a_damaged_snapshot() {
    let site = plain_site();
    site.run(0);
    let restore = |extra: &[&str]| {
        site.backup(["restore", "--strategy", "daily", "--to"])
            .arg(site.path("out"))
            .args(extra.iter().copied())
    };
    restore(&[]).expect(0);
    std::fs::write(site.path("out/files/a.txt"), "mine\n").unwrap();
    let refused = restore(&[]).expect(1);
    assert!(refused.err().contains("--overwrite"), "{refused}");
    assert_eq!(std::fs::read_to_string(site.path("out/files/a.txt")).unwrap(), "mine\n");
    restore(&["--overwrite"]).expect(0);
    assert_eq!(std::fs::read_to_string(site.path("out/files/a.txt")).unwrap(), "alpha\n");

    std::fs::write(site.path("out/files/a.txt"), "mine\n").unwrap();
    for name in ["db.sqlite.zst", "files.tar.zst"] {
        let file = site.newest().join(name);
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &bad).unwrap();
        let damaged = restore(&["--overwrite"]).expect(4);
        assert!(damaged.err().contains(name.trim_end_matches(".zst")), "{damaged}");
        std::fs::write(&file, &good).unwrap();
        assert_eq!(
            std::fs::read_to_string(site.path("out/files/a.txt")).unwrap(),
            "mine\n",
            "{name}"
        );
    }
}

#[test]
fn a_bit_flipped_or_a_byte_cut_anywhere_is_found() {
    let site = plain_site();
    site.run(0);
    for (name, good) in files(&site.newest()) {
        let file = site.newest().join(&name);
        let damages = [0, good.len() / 2, good.len() - 1].map(|position| {
            let mut bad = good.clone();
            bad[position] ^= 0x10;
            bad
        });
        let cut = good[..good.len() - 1].to_vec();
        for bad in damages.into_iter().chain([cut, Vec::new()]) {
            std::fs::write(&file, &bad).unwrap();
            let verdict = site.backup(["verify", "--read-data", "--json"]).expect(4);
            let problems = verdict.json()["snapshots"][0]["problems"].to_string();
            let about = name.to_str().unwrap().trim_end_matches(".zst");
            assert!(problems.contains(about), "{about}: {problems}");
        }
        std::fs::remove_file(&file).unwrap();
        if name != "manifest.json" {
            site.backup(["verify"]).expect(4);
        }
        std::fs::write(&file, &good).unwrap();
    }
    site.backup(["verify", "--read-data"]).expect(0);
}

#[test]
fn a_swapped_snapshot_is_not_taken_for_another() {
    let site = plain_site();
    site.run(0);
    site.run(0);
    let folders = site.folders();
    let (first, second) = (&folders[0], &folders[1]);
    std::fs::copy(first.join("manifest.json"), second.join("manifest.json")).unwrap();
    let verdict = site.backup(["verify", "--json"]).expect(4).json();
    assert!(verdict.to_string().contains("moved or planted"), "{verdict}");
    let list = site.backup(["list"]).expect(4);
    assert!(list.out().contains("unreadable"), "{list}");
}

#[test]
fn the_catalog_is_a_cache_that_can_be_lost() {
    let site = plain_site();
    site.run(0);
    std::fs::remove_dir_all(site.path("state")).unwrap();
    assert_eq!(site.ids().len(), 1);
    site.backup(["catalog", "rebuild"]).expect(0);
    std::fs::write(site.path("state/catalog.db"), noise(10_000)).unwrap();
    assert_eq!(site.ids().len(), 1, "a broken catalog is gone without");
    site.run(0);
    assert_eq!(site.ids().len(), 2);
}

#[test]
fn show_lists_the_files_with_their_kinds_and_sizes() {
    let site = plain_site();
    site.run(0);
    let listed = site.backup(["show", "latest", "--files"]).expect(0);
    for expected in [r"files/a.txt", r"files/sub/b.bin", r"files/sub/link -> ../a.txt"] {
        assert!(listed.out().lines().any(|line| line.ends_with(expected)), "{expected}\n{listed}");
    }
    let json = site.backup(["show", "latest", "--files", "--json"]).expect(0).json();
    let files = json["files"].as_array().unwrap();
    let big = files.iter().find(|entry| entry["path"] == "sub/b.bin").unwrap();
    assert_eq!((&big["size"], &big["source"]), (&300_000.into(), &"files".into()));
}

#[test]
fn a_dry_run_writes_nothing() {
    let site = plain_site();
    let plan = site.backup(["--strategy", "daily", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["strategy"], "daily");
    assert!(!site.path("store").exists());
}

#[test]
fn every_command_has_help_and_names_its_options() {
    for command in [
        "",
        "run",
        "check",
        "strategies",
        "list",
        "show",
        "verify",
        "restore",
        "catalog",
        "config",
        "completions",
    ] {
        let help = backup(command.split_whitespace()).arg("--help").expect(0);
        assert!(help.out().contains("Usage: backup"), "{help}");
    }
    assert!(backup(["completions", "bash"]).expect(0).out().contains("_backup"));
    backup(["config", "schema"]).expect(0).json();
    backup(["--strategy"]).expect(2);
    backup(["--strategy", "daily", "list"]).expect(2);
}
