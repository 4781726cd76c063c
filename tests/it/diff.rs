//! `backup diff`, and the listing of files: what is in snapshots, without fetching any of their
//! content.

use std::os::unix::fs::symlink;

use crate::support::site::Site;
use crate::support::{Ran, age_key, sh, temp};

const CONFIG: &str = r#"
[sources.db]
type = "sqlite"
path = "@/app.db"
[sources.files]
type = "directory"
path = "@/tree"
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["db", "files"]
storages = ["local"]
"#;

/// Two snapshots, with something of every kind changed between them.
fn two_snapshots(config: &str) -> (Site, String, String) {
    let site = Site::new(config);
    let tree = site.path("tree");
    std::fs::create_dir_all(tree.join("folder")).unwrap();
    for (name, content) in
        [("same", "same"), ("gone", "gone"), ("folder/rewritten", "one"), ("mode", "mode")]
    {
        std::fs::write(tree.join(name), content).unwrap();
    }
    symlink("same", tree.join("becomes a folder")).unwrap();
    sh(
        site.dir.path(),
        "sqlite3 app.db 'CREATE TABLE item(a); CREATE TABLE old(a); INSERT INTO item VALUES (1)'",
        &[],
    );
    site.run(0);
    std::fs::remove_file(tree.join("gone")).unwrap();
    std::fs::write(tree.join("folder/rewritten"), "two and more").unwrap();
    std::fs::write(tree.join("new\nname"), "new").unwrap();
    std::fs::remove_file(tree.join("becomes a folder")).unwrap();
    std::fs::create_dir(tree.join("becomes a folder")).unwrap();
    sh(&tree, "chmod 600 mode", &[]);
    sh(site.dir.path(), "sqlite3 app.db 'INSERT INTO item VALUES (2); DROP TABLE old'", &[]);
    site.run(0);
    let ids = site.ids();
    (site, ids[0].clone(), ids[1].clone())
}

fn changes(ran: &Ran) -> Vec<String> {
    let document = ran.json();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let one = |row: &serde_json::Value| match text(&row["type"]).as_str() {
        "file" => format!("{} {}", text(&row["change"]), text(&row["path"])),
        "table" => {
            format!(
                "{} {} {} {}",
                text(&row["change"]),
                text(&row["table"]),
                row["rows_before"],
                row["rows_after"]
            )
        }
        _ => format!("{} {}", text(&row["change"]), text(&row["artifact"])),
    };
    document["differences"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn what_changed_is_told_by_path_table_and_size() {
    let (site, first, second) = two_snapshots(CONFIG);
    let ran = site.backup(["diff", &first, &second, "--json"]).expect(0);
    let expected = [
        "changed db.sqlite",
        "changed item 1 2",
        "removed old 0 null",
        "changed becomes a folder",
        "changed folder/rewritten",
        "removed gone",
        "added new\nname",
    ];
    assert_eq!(changes(&ran), expected);
    let document = ran.json();
    let rewritten = &document["differences"][4];
    assert_eq!(
        (&rewritten["before"]["size"], &rewritten["after"]["size"]),
        (&3.into(), &12.into())
    );
    assert_eq!(rewritten["differs_in"], serde_json::json!(["content", "mtime"]));
    let digest = sh(&site.path("tree"), "sha256sum folder/rewritten | cut -c -64", &[]);
    assert_eq!(rewritten["after"]["digest"], format!("sha256:{}", digest.trim()));
    assert_eq!(document["summary"]["changed"]["entries"], 2);
    assert_eq!(document["summary"]["metadata"], 2, "the root, and `mode`");

    let back = site.backup(["diff", &second, &first, "--json"]).expect(0);
    assert!(changes(&back).contains(&"added gone".to_owned()));
    let none = site.backup(["diff", "latest", "latest", "--strategy", "daily", "--json"]).expect(0);
    assert_eq!(changes(&none), [""; 0]);
}

#[test]
fn permissions_owners_and_times_are_listed_on_request() {
    let (site, first, second) = two_snapshots(CONFIG);
    let plain = site.backup(["diff", &first, &second]).expect(0);
    assert!(
        !plain.out().contains("files/mode") && plain.out().contains("`--metadata` lists them"),
        "{}",
        plain.out()
    );
    let full = site.backup(["diff", &first, &second, "--metadata"]).expect(0);
    assert!(full.out().contains("files/mode  mode 0644 -> 0600"), "{}", full.out());
    assert!(full.out().contains(r"files/new\nname"), "a name is one line: {}", full.out());
}

#[test]
fn what_is_encrypted_is_compared_with_its_key_and_not_without() {
    let keys = temp();
    let (key, recipient) = age_key(keys.path(), "key");
    let config = format!("{CONFIG}[encryption]\nrecipients = [\"{recipient}\"]\n");
    let (site, first, second) = two_snapshots(&config);
    let refused = site.backup(["diff", &first, &second]).expect(2);
    assert!(refused.err().contains("--identity-file"), "{}", refused.err());
    let key = key.to_str().unwrap();
    assert_eq!(
        changes(
            &site.backup(["diff", &first, &second, "--json", "--identity-file", key]).expect(0)
        )
        .len(),
        7
    );
}

#[test]
fn files_are_listed_by_pattern() {
    let (site, first, _) = two_snapshots(CONFIG);
    let listed = |args: &[&str]| -> Vec<String> {
        let ran = site.backup(["show", &first, "--json"]).args(args).expect(0);
        let files = ran.json()["files"].as_array().unwrap().clone();
        files.iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
    };
    let all = [".", "becomes a folder", "folder", "folder/rewritten", "gone", "mode", "same"];
    assert_eq!(listed(&["--files"]), all);
    assert_eq!(
        listed(&["--files", "folder"]),
        ["folder", "folder/rewritten"],
        "a folder with what is in it"
    );
    assert_eq!(listed(&["--files", "*e", "--files", "/gone"]), ["gone", "mode", "same"]);
    assert_eq!(listed(&["--files", "nothing"]), [""; 0]);
    site.backup(["show", &first, "--files", "a//b"]).expect(2);
}

#[test]
fn a_damaged_index_is_told_and_no_document_is_ended() {
    let (site, first, second) = two_snapshots(CONFIG);
    let index = site.newest().join("files.index.zst");
    let mut bytes = std::fs::read(&index).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&index, bytes).unwrap();
    for args in
        [&["show", second.as_str(), "--files", "--json"][..], &["diff", &first, &second, "--json"]]
    {
        let ran = site.backup(args).expect(4);
        assert!(ran.err().contains("files.index"), "{}", ran.err());
        assert!(serde_json::from_str::<serde_json::Value>(ran.out()).is_err(), "{}", ran.out());
    }
}
