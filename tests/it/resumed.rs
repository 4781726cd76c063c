//! A restore that was killed anywhere is ended by the same command, and leaves nothing behind.

use std::path::Path;

use crate::support::site::{Site, noise, small_tree};
use crate::support::{Ran, sh};

/// A database, a stream and two folders.
fn site() -> Site {
    let site = Site::new(
        r#"
[sources.db]
type = "sqlite"
path = "@/db.sqlite"
[sources.stream]
type = "command"
command = ["cat", "@/stream"]
[sources.files]
type = "directory"
path = "@/files"
[sources.more]
type = "directory"
path = "@/more"
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["db", "files", "stream", "more"]
storages = ["local"]
"#,
    );
    small_tree(&site.path("files"));
    small_tree(&site.path("more"));
    std::fs::write(site.path("stream"), noise(400_000)).unwrap();
    sh(
        site.dir.path(),
        "python3 -c \"import sqlite3; c = sqlite3.connect('db.sqlite'); \
        c.execute('CREATE TABLE t (a)'); c.executemany('INSERT INTO t VALUES (?)', \
        [(n,) for n in range(9000)]); c.commit()\"",
        &[],
    );
    site.run(0);
    site
}

/// Everything in the folder, a line each: names, kinds, modes and digests; of what is in the
/// folders that were backed up the times too.
fn tree(folder: &Path) -> String {
    let script = r#"find . -printf "%P %y %m %l\n" | sort; find . -type f -exec sha256sum {} + | sort
        find files more -mindepth 1 -printf "%P %T@\n" 2>/dev/null | sort"#;
    if folder.exists() {
        sh(folder, &format!("{{ {script}; }} || true"), &[])
    } else {
        String::new()
    }
}

fn restore(site: &Site, to: &str, args: &[&str]) -> Ran {
    site.backup(["restore", "--strategy", "daily", "--json", "--to"])
        .arg(site.path(to))
        .args(args)
        .run()
}

fn refused(site: &Site, to: &str, args: &[&str]) {
    let refused = restore(site, to, args);
    assert!(refused.err().contains("target_not_empty"), "{refused}");
}

/// Calls that change names or attributes, or write or wait for the disk.
const CALLS: [&str; 12] = [
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "fsync",
    "syncfs",
    "flock",
    "fchmod",
    "write",
];

/// Kills a restore when a thread of it makes such a call for the `number`th time. False when none
/// does.
fn killed_at(site: &Site, to: &str, call: &str, number: u32) -> bool {
    let mut command = std::process::Command::new("strace");
    command
        .args(["-f", "-qq", "-o", "/dev/null", "-e"])
        .arg(format!("trace={call}"))
        .args(["-e", &format!("inject={call}:signal=KILL:when={number}")])
        .args([env!("CARGO_BIN_EXE_backup"), "--quiet", "--config"])
        .arg(site.config())
        .args(["restore", "--strategy", "daily", "--to"])
        .arg(site.path(to));
    let ran = Ran::of(command);
    assert!(matches!(ran.code(), None | Some(0 | 137)), "{ran}");
    ran.code() != Some(0)
}

#[test]
fn a_restore_killed_anywhere_is_ended_by_itself() {
    let site = site();
    restore(&site, "reference", &[]).expect(0);
    let expected = tree(&site.path("reference"));
    let mut points = 0;
    for call in CALLS {
        for number in 1..20 {
            let to = format!("to-{call}-{number}");
            if !killed_at(&site, &to, call, number) {
                break;
            }
            points += 1;
            let left = tree(&site.path(&to));
            // It was killed after its last step, or ended without the call being its own.
            if left == expected {
                refused(&site, &to, &[]);
                continue;
            }
            let planned = restore(&site, &to, &["--dry-run"]);
            assert_eq!(planned.code(), Some(0), "{to}: {planned}\n{left}");
            assert_eq!(tree(&site.path(&to)), left, "a look changes nothing");
            let again = restore(&site, &to, &[]);
            assert_eq!(again.code(), Some(0), "{to}: {again}\n{left}");
            assert_eq!(tree(&site.path(&to)), expected, "{to}\n{left}");
            // And now it is somebody's.
            refused(&site, &to, &[]);
            std::fs::remove_dir_all(site.path(&to)).unwrap();
        }
    }
    assert!(points > 20, "only {points} points");
}

#[test]
fn what_was_restored_before_is_not_touched_again() {
    let site = site();
    let object = site.newest().join("more.tar.zst");
    let good = std::fs::read(&object).unwrap();
    std::fs::write(&object, &good[..good.len() / 2]).unwrap();
    assert_ne!(restore(&site, "to", &[]).code(), Some(0));
    std::fs::write(&object, good).unwrap();
    std::fs::write(site.path("to/files/a.txt"), "of the application\n").unwrap();
    // Another restore does not go on with this one.
    refused(&site, "to", &["--no-owner"]);
    let again = restore(&site, "to", &[]).expect(0).json();
    assert_eq!(again["restored"].as_array().unwrap().len(), 4);
    assert_eq!(again["notes"]["kept"].as_array().unwrap().len(), 3, "{again:#}");
    assert_eq!(
        std::fs::read_to_string(site.path("to/files/a.txt")).unwrap(),
        "of the application\n"
    );
    // What somebody took away is restored.
    assert!(!site.path("to/.holdfast-restore").exists());
}

#[test]
fn what_is_in_the_way_of_a_killed_restore_stays() {
    let site = site();
    let object = site.newest().join("more.tar.zst");
    let good = std::fs::read(&object).unwrap();
    std::fs::write(&object, &good[..good.len() / 2]).unwrap();
    assert_ne!(restore(&site, "to", &[]).code(), Some(0));
    std::fs::write(&object, good).unwrap();
    std::fs::remove_file(site.path("to/stream/stream.out")).unwrap();
    std::fs::remove_dir_all(site.path("to/files")).unwrap();
    std::fs::create_dir(site.path("to/files")).unwrap();
    std::fs::write(site.path("to/files/mine"), "mine").unwrap();
    // It was done, and what is there now is taken for it; the stream comes back.
    restore(&site, "to", &[]).expect(0);
    assert_eq!(std::fs::read(site.path("to/files/mine")).unwrap(), b"mine");
    assert_eq!(std::fs::read(site.path("to/stream/stream.out")).unwrap(), noise(400_000));
}
