//! Trees of several file systems: what `one_file_system` leaves out, and what a restore with
//! `--delete` leaves alone.

use std::collections::BTreeSet;

use crate::support::site::Site;
use crate::support::{needs_root, sh_in_mounts};

const PROGRAM: &str = env!("CARGO_BIN_EXE_backup");

/// An overlay at `tree` of two layers on two file systems, which gives files another device than
/// their folders; and in it, every kind of entry, from either layer.
const OVERLAY: &str = r#"
    mkdir -p lower upper tree
    mount -t tmpfs lower lower; mount -t tmpfs upper upper
    mkdir -p lower/a/b lower/mounted lower/bound upper/up upper/work
    echo lower >lower/a/file; ln lower/a/file lower/a/hard; ln -s file lower/a/link
    mkfifo lower/a/fifo; mknod lower/a/null c 1 3; echo deep >lower/a/b/deep
    echo old >lower/changed; echo gone >lower/removed; touch lower/one
    mount -t overlay -o lowerdir=lower,upperdir=upper/up,workdir=upper/work overlay tree
    echo upper >tree/a/new; ln -s new tree/a/new-link; mkfifo tree/a/new-fifo; mkdir tree/made
    echo new >tree/changed; rm tree/removed
    if [ "$(stat -c %d tree/a)" = "$(stat -c %d tree/a/file)" ]
    then echo "the layers are not on two file systems" >&2; exit 1; fi
"#;

fn site() -> Site {
    Site::new(
        r#"
[sources.files]
type = "directory"
path = "@/tree"
one_file_system = true
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["files"]
storages = ["local"]
"#,
    )
}

fn in_mounts(site: &Site, script: &str) -> String {
    let script = format!("backup() {{ \"$1\" --config app.toml \"${{@:2}}\"; }}\n{script}");
    let script = script.replace("backup ", "backup \"$1\" ");
    sh_in_mounts(site.dir.path(), &script, &[PROGRAM.as_ref()])
}

#[test]
fn folders_of_other_file_systems_alone_are_left_out() {
    let site = site();
    // A file system, a single file and a folder are mounted in it; the folder is of the same one.
    let mounts = r#"
        mount -t tmpfs mounted tree/mounted; echo beyond >tree/mounted/beyond
        echo single >single; mount --bind single tree/one
        mount --bind tree/a tree/bound
        backup --strategy daily --json >run.json
        backup --strategy daily --json >again.json
        backup drill --strategy daily --json >drill.json
        backup restore --to restored >restore.txt
        tar --one-file-system -C tree -cf - . 2>tar.txt | tar -tf - | sed "s#^./##; s#/\$##; s#^\$#.#"
    "#;
    let by_tar = in_mounts(&site, &format!("{OVERLAY}{mounts}"));
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(site.path(name)).unwrap()).unwrap()
    };
    let shown = site.backup(["show", "latest", "--files", "--json"]).expect(0).json();
    let ours: BTreeSet<&str> = shown["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert_eq!(ours, by_tar.lines().collect(), "as GNU tar takes");
    for taken in ["a/file", "a/hard", "a/link", "a/fifo", "a/null", "a/new", "one", "bound/file"] {
        assert!(ours.contains(taken), "{taken}");
    }
    let run = json("run.json");
    assert_eq!(run["outcome"], "success", "{run:#}");
    let notes = run["notes"]["kept"].as_array().unwrap();
    let about: Vec<&str> = notes.iter().map(|note| note["path"].as_str().unwrap()).collect();
    assert_eq!(about, ["mounted"], "{run:#}");
    assert_eq!(json("drill.json")["verdict"], "passed");
    let ids = site.ids();
    let difference = site.backup(["diff", &ids[0], &ids[1], "--json"]).expect(0).json();
    assert_eq!(difference["differences"].as_array().unwrap().len(), 0, "{difference:#}");
    let restored = |path: &str| site.path("restored/files").join(path);
    assert_eq!(std::fs::read_to_string(restored("a/hard")).unwrap(), "lower\n");
    assert_eq!(std::fs::read_to_string(restored("one")).unwrap(), "single\n");
    assert_eq!(std::fs::read_dir(restored("mounted")).unwrap().count(), 0);
}

#[test]
fn removing_takes_files_of_any_layer_and_no_mount() {
    let site = site();
    let script = r#"
        mkdir -p tree/kept lower upper to/files; echo kept >tree/kept/file
        backup --strategy daily >/dev/null
        mount -t tmpfs lower lower; mount -t tmpfs upper upper; mkdir upper/up upper/work
        mkdir -p lower/kept lower/extra/deep lower/mounts/{same,other,deep}
        for extra in kept/extra extra/deep/file extra/file extra-file mounts/deep/extra
        do echo extra >lower/$extra; done
        touch lower/mounts/single
        mount -t overlay -o lowerdir=lower,upperdir=upper/up,workdir=upper/work overlay to/files
        echo extra >to/files/extra/above
        # What is mounted there: a folder of the same file system, another one, a single file.
        echo precious >single; mount --bind single to/files/mounts/single
        mount -t tmpfs other to/files/mounts/other; echo precious >to/files/mounts/other/precious
        mount --bind to/files/kept to/files/mounts/same
        options="--to to --overwrite --delete --source files --json"
        backup restore $options --dry-run >plan.json
        backup restore $options >report.json || [ $? = 3 ]
        cd to/files; find . -type f -printf "%P\n" | sort
    "#;
    let left = in_mounts(&site, script);
    let precious = ["kept/file", "mounts/other/precious", "mounts/same/file", "mounts/single"];
    assert_eq!(left.lines().collect::<Vec<_>>(), precious);
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(site.path(name)).unwrap()).unwrap()
    };
    let report = json("report.json");
    let warnings = report["warnings"]["kept"].as_array().unwrap();
    let named: Vec<&str> = warnings.iter().map(|one| one["path"].as_str().unwrap()).collect();
    assert_eq!(named, ["mounts/other", "mounts/same", "mounts/single"], "{report:#}");
    let plan = json("plan.json");
    assert!(!plan.to_string().contains("precious"), "{plan:#}");
    let changes = plan["artifacts"][0]["preview"]["changes"].as_array().unwrap();
    let keeps = changes.iter().filter(|change| change["action"] == "keep");
    let kept: Vec<&str> = keeps.map(|change| change["path"].as_str().unwrap()).collect();
    assert_eq!(kept, named, "{plan:#}");
}

#[test]
fn an_unreadable_lost_and_found_is_a_note() {
    needs_root("a file system is mounted, and an ordinary user reads it");
    let site = site();
    let script = r#"
        mkdir -p tree/plain/lost+found tree/disk
        chmod 0 tree/plain/lost+found
        mount -t tmpfs disk tree/disk
        mkdir tree/disk/lost+found tree/disk/private; echo precious >tree/disk/lost+found/found
        chmod 0 tree/disk/lost+found tree/disk/private
        sed -i s/one_file_system.*/one_file_system=false/ app.toml; cp app.toml asked.toml
        cp "$1" program; chown -R 64999 app.toml .; chown -R 0 tree/disk/lost+found
        as_user() {
            setpriv --reuid=64999 --regid=64999 --clear-groups ./program --config app.toml "$@"
        }
        set +e
        as_user --strategy daily --json >partial.json; echo $?
        chmod 0700 tree/plain/lost+found tree/disk/private
        as_user --strategy daily --json >left.json; echo $?
        sed "s#^one.*#include = [\"/disk/lost+found\"]#" asked.toml >app.toml
        as_user --strategy daily --json >asked.json; echo $?
        cp asked.toml app.toml; rmdir tree/disk/private
        backup --strategy daily --json >taken.json; echo $?
        mkdir -p to; cp -a tree to/files
        as_user restore --to to --overwrite --delete --strategy daily --json >restore.json
        backup show latest --files --json >show.json
    "#;
    let said = in_mounts(&site, script);
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["3", "0", "3", "0"],
        "partial, left out, asked for, root"
    );
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(site.path(name)).unwrap()).unwrap()
    };
    let about = |name: &str, level: &str| -> Vec<String> {
        let report = json(name);
        let kept = report[level]["kept"].as_array().unwrap();
        kept.iter().filter_map(|note| Some(note["path"].as_str()?.to_owned())).collect()
    };
    assert_eq!(about("partial.json", "warnings"), ["disk/private", "plain/lost+found"]);
    assert_eq!(about("left.json", "notes"), ["disk/lost+found"]);
    assert_eq!(json("left.json")["completeness"], "whole");
    assert_eq!(about("taken.json", "notes"), [""; 0]);
    let shown = json("show.json");
    let files = shown["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["path"] == "disk/lost+found/found"), "root takes it");
}
