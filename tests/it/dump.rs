//! `backup dump`: any artifact, any file and any folder of a snapshot on stdout, and nothing else
//! there.

use std::path::{Path, PathBuf};

use crate::support::site::{Site, noise, small_tree};
use crate::support::{Backup, backup, repository, sh};

const PROGRAM: &str = env!("CARGO_BIN_EXE_backup");

const FILES: &str = r#"
[sources.files]
type = "directory"
path = "@/data"
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["files"]
storages = ["local"]
"#;

/// A site with a snapshot of a small tree.
fn site() -> Site {
    let site = Site::new(FILES);
    let data = site.path("data");
    small_tree(&data);
    sh(
        &data,
        "truncate -s 3M sparse && printf end >> sparse && ln a.txt hard && mkfifo pipe && mkdir -p \
         deep/er && seq 9 > deep/er/x && ln a.txt deep/other",
        &[],
    );
    site.run(0);
    site
}

fn dump(site: &Site, args: &[&str]) -> Backup {
    site.backup(["dump", "latest"]).args(args)
}

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures/format-1").join(name)
}

#[test]
fn every_artifact_of_the_frozen_snapshots_comes_out_as_it_was() {
    for variant in ["plain", "gzip", "encrypted"] {
        let dump = |what: &str| {
            let args = ["dump", "latest", what, "--quiet", "--storage"];
            let dump = backup(args)
                .arg(fixture(variant))
                .arg("--identity-file")
                .arg(fixture("identity.txt"));
            let dumped = dump.expect(0);
            assert_eq!(dumped.err(), "", "{variant} {what}");
            dumped.stdout
        };
        let facts: serde_json::Value = serde_json::from_slice(&dump("facts.json")).unwrap();
        let artifacts = facts["artifacts"].as_array().unwrap();
        assert!(artifacts.len() >= 7, "{facts}");
        for artifact in artifacts {
            let name = artifact["name"].as_str().unwrap();
            let bytes = dump(name);
            let digest = holdfast::model::Digest::of(&bytes).to_string();
            assert_eq!(artifact["plain_digest"], digest, "{variant} {name}");
            assert_eq!(artifact["plain_bytes"], bytes.len(), "{variant} {name}");
        }
        // A source stands for its main artifact.
        for (source, artifact) in [
            ("db", "db.pgdump"),
            ("app", "app.sqlite"),
            ("files", "files.tar"),
            ("words", "words.out"),
        ] {
            assert!(dump(source) == dump(artifact), "{variant} {source}");
        }
    }
}

#[test]
fn every_file_is_as_it_was_and_a_folder_is_a_tarball() {
    let site = site();
    let data = site.path("data");
    for path in [
        "a.txt",
        "sub/b.bin",
        "sub/quote'd \"name\"",
        "hard",
        "sparse",
        "./deep//er/x",
        "deep/other",
    ] {
        let dumped = dump(&site, &["files", path]).expect(0);
        assert!(dumped.stdout == std::fs::read(data.join(path)).unwrap(), "{path}");
        assert!(
            dumped.err().contains(" written, ") && dumped.err().contains(" fetched"),
            "{dumped}"
        );
    }
    for folder in ["sub", "deep/er", "."] {
        let tarball = dump(&site, &["files", folder]).expect(0);
        std::fs::write(site.path("folder.tar"), &tarball.stdout).unwrap();
        // Whoever is not root makes no pipe less: all of it compares.
        sh(site.dir.path(), "rm -rf out && mkdir out && tar -xpf folder.tar -C out", &[]);
        sh(
            site.dir.path(),
            r#"diff -r --no-dereference -x pipe "data/$1" "out/$1""#,
            &[folder.as_ref()],
        );
    }
    // A hard link whose content lies outside of the folder would be lost in it.
    let outside = dump(&site, &["files", "deep"]).run();
    assert!(matches!(outside.code(), Some(0 | 1)), "{outside}");
    if outside.code() == Some(1) {
        assert!(outside.err().contains("hard link"), "{outside}");
    }
}

#[test]
fn what_is_not_there_or_has_no_content_is_said_with_what_is_near() {
    let site = site();
    for (args, says) in [
        (&["files", "b.bin"][..], "there is `sub/b.bin`"),
        (&["files", "sub/b.bim"], "there is `sub/b.bin`"),
        (&["files", "nowhere/at-all"], "The snapshot has no `nowhere/at-all`"),
        (&["files", "pipe"], "has no content"),
        (&["files", "sub/link"], "has no content"),
        (&["files", "../a.txt"], "leads out"),
        (&["file"], "neither a source nor an artifact `file`; it has `files.tar`"),
    ] {
        let missing = dump(&site, args).expect(1);
        assert!(missing.err().contains(says) && missing.stdout.is_empty(), "{missing}");
    }
    for (args, says) in [
        (&["files.index", "a.txt"][..], "`files.index` is no folder of files"),
        (&["files", "--json"], "there is no `--json`"),
    ] {
        let wrong = dump(&site, args).expect(2);
        assert!(wrong.err().contains(says) && wrong.stdout.is_empty(), "{wrong}");
    }
    let locked =
        backup(["dump", "latest", "files", "--storage"]).arg(fixture("encrypted")).expect(2);
    assert!(locked.err().contains("--identity-file"), "{locked}");
}

#[test]
fn damage_is_exit_code_4_and_the_last_bytes_are_held_back() {
    let site = Site::new(FILES);
    std::fs::create_dir(site.path("data")).unwrap();
    std::fs::write(site.path("data/noise"), noise(5 << 20)).unwrap();
    site.run(0);
    let whole = dump(&site, &["files"]).expect(0).stdout.len();
    let file = site.newest().join("files.tar.zst");
    let mut bytes = std::fs::read(&file).unwrap();
    let near_the_end = bytes.len() - 600_000;
    bytes[near_the_end] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    for args in [&["files"][..], &["files", "noise"]] {
        let damaged = dump(&site, args).expect(4);
        assert!(
            damaged.err().contains("What was written is incomplete and not to be used"),
            "{damaged}"
        );
        assert!(damaged.err().contains("`files.tar`"), "{damaged}");
        assert!(damaged.stdout.len() < whole - 512, "{}", damaged.stdout.len());
    }
    dump(&site, &["files.index"]).expect(0);
}

#[test]
fn who_has_read_enough_closes_the_pipe_and_nobody_complains() {
    let site = Site::new(FILES);
    std::fs::create_dir(site.path("data")).unwrap();
    std::fs::write(site.path("data/noise"), noise(5 << 20)).unwrap();
    site.run(0);
    let script = r#"
        set +e
        "$1" --config "$2" dump latest files "${@:3}" 2> err | head -c 10 > out
        echo "${PIPESTATUS[0]} $(wc -c < out)"
        cat err"#;
    let piped = |path: &[&str]| {
        let config = site.config();
        let mut args = vec![PROGRAM.as_ref(), config.as_os_str()];
        args.extend(path.iter().map(std::ffi::OsStr::new));
        sh(site.dir.path(), script, &args)
    };
    assert_eq!(piped(&[]), "1 10\n");
    assert_eq!(piped(&["noise"]), "1 10\n");
}

#[test]
fn a_terminal_gets_bytes_only_when_it_is_forced_on_it() {
    let site = site();
    let on_a_terminal = |more: &str| {
        let script = r#"python3 -c 'import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)' "$1" --config "$2" dump latest files a.txt $3 || echo "exit $?""#;
        let config = site.config();
        sh(site.dir.path(), script, &[PROGRAM.as_ref(), config.as_os_str(), more.as_ref()])
    };
    let refused = on_a_terminal("");
    assert!(
        refused.contains("does not belong on a terminal") && refused.contains("exit 2"),
        "{refused}"
    );
    assert!(!refused.contains("alpha"), "{refused}");
    assert!(on_a_terminal("--force").contains("alpha"));
}

#[test]
fn a_name_that_is_not_utf_8_is_a_path_like_any_other() {
    use std::os::unix::ffi::OsStrExt as _;
    let site = Site::new(FILES);
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    std::fs::create_dir(site.path("data")).unwrap();
    std::fs::write(site.path("data").join(name), "noir").unwrap();
    site.run(0);
    assert_eq!(dump(&site, &["files"]).arg(name).expect(0).out(), "noir");
}

#[test]
fn an_output_that_fails_is_no_damage() {
    assert!(Path::new("/dev/full").exists(), "a device that is always full is needed");
    let site = site();
    let script = r#""$1" --config "$2" dump latest files 2>&1 > /dev/full || echo "exit $?""#;
    let said = sh(site.dir.path(), script, &[PROGRAM.as_ref(), site.config().as_os_str()]);
    assert!(
        said.contains("Could not write to the output: No space left") && said.contains("exit 1"),
        "{said}"
    );
}
