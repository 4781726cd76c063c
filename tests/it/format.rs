//! The frozen snapshots of every format: whatever version this is, it lists, shows, verifies and
//! restores them, and so do ordinary tools. `tests/fixtures/README.md` says what they are. A format
//! that it does not know is refused in words.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::{Backup, Ran, backup, is_root, repository, sh, temp};

/// The ways in which the fixture is stored.
const VARIANTS: [&str; 3] = ["plain", "gzip", "encrypted"];

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/format-1").join(name)
}

/// `backup ARGS...` on a storage alone, with the test identity.
fn on(storage: &Path, args: &[&str]) -> Backup {
    let identity = fixture("identity.txt");
    backup(args)
        .arg("--storage")
        .arg(storage)
        .args(["--instance", "shop"])
        .arg("--identity-file")
        .arg(identity)
}

/// Restores the one snapshot of a storage to `folder`.
fn restore(storage: &Path, folder: &Path) -> Ran {
    // Owners are set by root only; that they were not is said.
    on(storage, &["restore"]).arg("--to").arg(folder).expect(if is_root() { 0 } else { 3 })
}

/// As [`on`], for a command that takes no identity.
fn listing_of(storage: &Path) -> Backup {
    backup(["list", "--json", "--storage"]).arg(storage)
}

/// The folder of the one snapshot in a storage.
fn snapshot(storage: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(storage.join("shop/daily")).unwrap();
    let folder = entries.next().unwrap().unwrap().path();
    assert!(entries.next().is_none());
    folder
}

/// What `listing.py` has of a folder: everything that a backup must keep. The owners only where
/// they can be set.
fn tree(folder: &Path) -> String {
    let listing = sh(
        folder,
        r#"python3 "$1" ."#,
        &[repository().join("tests/it/directory/listing.py").as_os_str()],
    );
    without_owners(&listing)
}

fn without_owners(listing: &str) -> String {
    if is_root() {
        return listing.to_owned();
    }
    let fields = |line: &str| {
        line.split("' '")
            .filter(|field| !field.starts_with("owner="))
            .collect::<Vec<_>>()
            .join("' '")
    };
    // A file that now belongs to someone else does not run with that one's rights.
    listing
        .lines()
        .map(|line| fields(line).replace("'mode=0o4755'", "'mode=0o755'") + "\n")
        .collect()
}

/// The folder and every stream in `restored` are what they were.
fn assert_restored(variant: &str, restored: &Path) {
    let expected = std::fs::read_to_string(fixture("files.listing")).unwrap();
    assert_eq!(tree(&restored.join("files")), without_owners(&expected), "{variant}");
    let digests = std::fs::read_to_string(fixture(&format!("{variant}.sha256"))).unwrap();
    let places = [
        ("db.pgdump", "db/db.pgdump"),
        ("db.globals.sql", "db/db.globals.sql"),
        ("app.sqlite", "app/app.sqlite"),
        ("words.out", "words/words.out"),
    ];
    let mut sums = digests;
    for (name, place) in places {
        sums = sums.replace(&format!("  {name}"), &format!("  {place}"));
    }
    std::fs::write(restored.join("sums"), sums).unwrap();
    sh(restored, "sha256sum --strict --quiet -c sums", &[]);
}

#[test]
fn the_snapshots_of_format_1_are_listed_shown_and_verified() {
    for variant in VARIANTS {
        let storage = fixture(variant);
        let list = listing_of(&storage).expect(0).json();
        let [row] = list["snapshots"].as_array().unwrap().as_slice() else { panic!("{list}") };
        assert_eq!(row["instance"], "shop");
        assert_eq!(row["completeness"], "whole");
        assert_eq!(row["encrypted"], variant == "encrypted");

        let shown = on(&storage, &["show", "latest", "--json"]).expect(0).json();
        assert_eq!(shown["manifest"]["id"], row["id"]);
        let kinds: Vec<&str> = shown["manifest"]["artifacts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|artifact| artifact["kind"].as_str().unwrap())
            .collect();
        for kind in ["pgdump", "pgglobals", "sqlite", "tar", "index", "blocks", "stream", "facts"] {
            assert!(kinds.contains(&kind), "{variant}: {kind} in {kinds:?}");
        }
        // Their facts are older than notes.
        assert_eq!(shown["facts"]["notes"]["kept"], serde_json::json!([]), "{variant}");
        let sources = shown["facts"]["sources"].as_array().unwrap();
        let words: Vec<&str> =
            sources.iter().map(|source| source["consistency"].as_str().unwrap()).collect();
        assert_eq!(words, ["snapshot", "snapshot", "files", "command"]);
        let things = sources[0]["facts"]["tables"]
            .as_array()
            .unwrap()
            .iter()
            .find(|table| table["name"] == "thing");
        assert_eq!(things.unwrap()["rows"], 500);

        let files = on(&storage, &["show", "latest", "--files", "--json"]).expect(0).json();
        let expected = std::fs::read_to_string(fixture("files.listing")).unwrap();
        assert_eq!(files["files"].as_array().unwrap().len(), expected.lines().count());

        let verdict = on(&storage, &["verify", "--read-data", "--json"]).expect(0).json();
        assert_eq!(verdict["snapshots"][0]["decoded"], true, "{verdict}");
    }
}

#[test]
fn the_snapshots_of_format_1_are_restored() {
    for variant in VARIANTS {
        let out = temp();
        restore(&fixture(variant), &out.path().join("restored"));
        assert_restored(variant, &out.path().join("restored"));
    }
}

#[test]
fn the_snapshots_of_format_1_are_restored_by_ordinary_tools() {
    for variant in VARIANTS {
        let out = temp();
        sh(
            out.path(),
            r#"
            mkdir db app files words
            plain() {
                case "$2" in
                plain) zstd -dc "$1/$3.zst" ;;
                gzip) gzip -dc "$1/$3.gz" ;;
                encrypted) age -d -i "$4" "$1/$3.zst.age" | zstd -dc ;;
                esac
            }
            plain "$1" "$2" db.pgdump "$3" >db/db.pgdump
            plain "$1" "$2" db.globals.sql "$3" >db/db.globals.sql
            plain "$1" "$2" app.sqlite "$3" >app/app.sqlite
            plain "$1" "$2" words.out "$3" >words/words.out
            plain "$1" "$2" files.tar "$3" | tar -xpf - --numeric-owner --xattrs --xattrs-include='*' -C files
            sqlite3 app/app.sqlite 'PRAGMA integrity_check; SELECT group_concat(name) FROM user' | tee /dev/stderr | grep -q ann,bob,
            "#,
            &[
                snapshot(&fixture(variant)).as_os_str(),
                OsStr::new(variant),
                fixture("identity.txt").as_os_str(),
            ],
        );
        // SQLite changes a database in WAL mode that it opens.
        sh(out.path(), "rm -f app/app.sqlite-wal app/app.sqlite-shm", &[]);
        assert_restored(variant, out.path());
    }
}

/// A copy of a fixture whose manifest was changed by `edit`, under a digest that matches.
fn edited(variant: &str, edit: impl FnOnce(&mut serde_json::Value, &Path)) -> TempDir {
    let copy = temp();
    sh(copy.path(), r#"cp -r "$1/." ."#, &[fixture(variant).as_os_str()]);
    edit_manifest(&snapshot(copy.path()), edit);
    copy
}

/// Changes the manifest of the snapshot in `folder`, under a digest that matches.
pub(crate) fn edit_manifest(folder: &Path, edit: impl FnOnce(&mut serde_json::Value, &Path)) {
    let file = folder.join("manifest.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut whole: serde_json::Value = serde_json::from_str(&text).unwrap();
    edit(&mut whole["manifest"], folder);
    let body = format!("{:#}\n", whole["manifest"]);
    std::fs::write(folder.join("body"), &body).unwrap();
    // The digest line, as `docs/format.md` has it.
    sh(
        folder,
        r#"{ printf '{"digest": "sha256:%s", "manifest":\n' "$(sha256sum <body | cut -d' ' -f1)"; cat body; echo '}'; } >manifest.json; rm body"#,
        &[],
    );
}

#[test]
fn a_newer_format_is_refused_in_words() {
    let copy = edited("plain", |manifest, _| manifest["format"] = 2.into());
    let said = "format 2";
    // It is not damaged, as far as anybody knows.
    let list = listing_of(copy.path()).expect(3);
    assert!(list.out().contains(said), "{list}");
    for args in [&["show", "latest"][..], &["verify"], &["restore", "--to", "nowhere"]] {
        let refused = on(copy.path(), args).dir(copy.path()).run();
        assert!(refused.code().is_some_and(|code| code != 0), "{refused}");
        assert!(format!("{}{}", refused.out(), refused.err()).contains(said), "{refused}");
    }
    assert!(!copy.path().join("nowhere").exists());
}

#[test]
fn an_unknown_requirement_is_refused_in_words() {
    let copy =
        edited("plain", |manifest, _| manifest["requires"] = serde_json::json!(["zstd", "chunks"]));
    for args in [&["show", "latest"][..], &["verify"], &["restore", "--to", "nowhere"]] {
        let refused = on(copy.path(), args).dir(copy.path()).run();
        assert!(refused.code().is_some_and(|code| code != 0), "{refused}");
        assert!(
            format!("{}{}", refused.out(), refused.err()).contains("requires chunks"),
            "{refused}"
        );
    }
    assert!(!copy.path().join("nowhere").exists());
}

#[test]
fn fields_that_are_not_known_are_ignored() {
    let copy = edited("plain", |manifest, _| {
        manifest["weather"] = "fine".into();
        manifest["artifacts"][0]["mood"] = serde_json::json!({ "good": true });
        manifest["artifacts"][0]["objects"][0]["colour"] = serde_json::json!([1, 2]);
    });
    on(copy.path(), &["verify", "--read-data"]).expect(0);
    let out = temp();
    restore(copy.path(), &out.path().join("restored"));
    assert_restored("plain", &out.path().join("restored"));
}

#[test]
fn an_artifact_that_goes_on_in_further_objects_is_read_as_one() {
    for variant in VARIANTS {
        let copy = edited(variant, |manifest, folder| {
            manifest["requires"].as_array_mut().unwrap().push("continued".into());
            for artifact in manifest["artifacts"].as_array_mut().unwrap() {
                let [object] = artifact["objects"].as_array().unwrap().as_slice() else {
                    panic!("{artifact}")
                };
                let key = object["key"].as_str().unwrap().to_owned();
                let bytes = std::fs::read(folder.join(&key)).unwrap();
                let mut objects = Vec::new();
                for (number, part) in bytes.chunks(bytes.len().div_ceil(3)).enumerate() {
                    let key =
                        if number == 0 { key.clone() } else { format!("{key}.{:04}", number + 1) };
                    std::fs::write(folder.join(&key), part).unwrap();
                    let digest = holdfast::model::Digest::of(part).to_string();
                    objects.push(
                        serde_json::json!({ "key": key, "size": part.len(), "digest": digest }),
                    );
                }
                artifact["objects"] = objects.into();
            }
        });
        on(copy.path(), &["verify", "--read-data"]).expect(0);
        let out = temp();
        restore(copy.path(), &out.path().join("restored"));
        assert_restored(variant, &out.path().join("restored"));
    }
}

#[test]
fn a_newer_snapshot_that_cannot_be_read_is_not_passed_over_in_silence() {
    let copy = temp();
    sh(copy.path(), r#"cp -r "$1/." ."#, &[fixture("plain").as_os_str()]);
    let newer = copy.path().join("shop/daily/20261121T103550Z-abcdef");
    std::fs::create_dir(&newer).unwrap();
    std::fs::write(newer.join("manifest.json"), "cut").unwrap();
    let restored = restore(copy.path(), &copy.path().join("out"));
    assert!(
        restored.err().contains("20261121T103550Z-abcdef")
            && restored.err().contains("passed over"),
        "{restored}"
    );
}

/// The storage of the fixture with holes, access lists and attributes.
fn files_fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/format-1-files").join(name)
}

/// The folder is what it was, its holes and access lists included.
fn assert_files_restored(variant: &str, folder: &Path) {
    let listing = sh(
        folder,
        r#"python3 "$1" . holes"#,
        &[repository().join("tests/it/directory/listing.py").as_os_str()],
    );
    let expected = std::fs::read_to_string(files_fixture("files.listing")).unwrap();
    assert_eq!(without_owners(&listing), without_owners(&expected), "{variant}");
}

#[test]
fn holes_access_lists_and_attributes_of_format_1_are_restored() {
    for variant in VARIANTS {
        let out = temp();
        let command = |args: &[&str]| {
            let identity = files_fixture("identity.txt");
            let storage = files_fixture(variant);
            backup(args)
                .arg("--storage")
                .arg(storage)
                .args(["--instance", "shop"])
                .arg("--identity-file")
                .arg(identity)
        };
        command(&["verify", "--read-data"]).expect(0);
        command(&["restore"]).arg("--to").arg(out.path()).expect(if is_root() { 0 } else { 3 });
        assert_files_restored(variant, &out.path().join("files"));
    }
}

#[test]
fn holes_access_lists_and_attributes_of_format_1_are_restored_by_ordinary_tools() {
    for variant in VARIANTS {
        let out = temp();
        sh(
            out.path(),
            r#"
            mkdir files
            case "$2" in
            plain) zstd -dc "$1/files.tar.zst" ;;
            gzip) gzip -dc "$1/files.tar.gz" ;;
            encrypted) age -d -i "$3" "$1/files.tar.zst.age" | zstd -dc ;;
            esac | tar -xpf - --numeric-owner --xattrs --xattrs-include='*' -C files
            "#,
            &[
                snapshot(&files_fixture(variant)).as_os_str(),
                OsStr::new(variant),
                files_fixture("identity.txt").as_os_str(),
            ],
        );
        assert_files_restored(variant, &out.path().join("files"));
    }
}

#[test]
fn one_file_is_got_out_of_the_blocks_as_the_format_says() {
    let text = std::fs::read_to_string(repository().join("docs/format.md")).unwrap();
    let mut recipes = text.split("```").filter(|block| block.starts_with("sh\nPATH_IN_SOURCE="));
    let recipe = recipes.next().unwrap().strip_prefix("sh\n").unwrap();
    assert!(recipes.next().is_none());
    let (given, commands) = recipe.split_once('\n').unwrap();
    assert_eq!(given, "PATH_IN_SOURCE=invoices/17.pdf");
    let folder = snapshot(&files_fixture("plain"));
    let expected = std::fs::read_to_string(files_fixture("files.listing")).unwrap();
    // In the first block and in later ones, within a block and across several.
    for path in
        ["numbers", "zeros/z", "attributes", "m-zeros", "zeros/more", "access lists/inherited/file"]
    {
        let script = format!(
            "PATH_IN_SOURCE=$1\n{}\n",
            commands.trim_end().to_owned() + " | sha256sum | cut -d' ' -f1"
        );
        let digest =
            sh(&folder, r#"bash -c "$2" recipe "$1""#, &[OsStr::new(path), OsStr::new(&script)]);
        let line =
            expected.lines().find(|line| line.starts_with(&format!("b'./{path}' "))).unwrap();
        assert!(line.contains(&format!("'{}'", digest.trim())), "{path}: {digest} in {line}");
    }
    let blocks = sh(&folder, "zstd -dc files.blocks.zst | grep -c '\"plain\"'", &[]);
    assert!(blocks.trim().parse::<u32>().unwrap() > 3, "{blocks}");
}

#[test]
fn partial_snapshots_of_format_1_say_what_they_lack() {
    let fixture = |name: &str| repository().join("tests/fixtures/format-1-partial").join(name);
    for variant in ["plain", "encrypted"] {
        let out = temp();
        let restore = |more: &[&str]| {
            backup([
                "restore",
                "--snapshot",
                snapshot(&fixture(variant)).file_name().unwrap().to_str().unwrap(),
            ])
            .arg("--storage")
            .arg(fixture(variant))
            .args(["--instance", "shop", "--json", "--identity-file"])
            .arg(fixture("identity.txt"))
            .arg("--to")
            .arg(out.path())
            .args(more)
            .expect(3)
            .json()
        };
        let report = restore(&[]);
        let missing = report["missing"]["entries"].as_array().unwrap().iter();
        let missing: Vec<&str> = missing
            .map(|entry| entry["path"].as_str().or(entry["path_b64"].as_str()).unwrap())
            .collect();
        assert_eq!(missing, ["listable/inner", "secret", "b2RkLf4=", "private"], "{variant}");
        let later = r#"
            cd files; touch private secret/x cache/warm extra logs/today.log "$(printf 'odd-\xfe')"
            mkdir -p listable/inner/deeper
        "#;
        sh(out.path(), later, &[]);
        let deleted = restore(&["--overwrite", "--delete"]);
        assert_eq!(deleted["restored"][0]["files"]["deleted"], 1, "{variant}: {deleted:#}");
        assert!(!out.path().join("files/extra").exists());
    }
}
