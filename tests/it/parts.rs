//! Parts of a snapshot: one file out of a large tree costs the blocks that it lies in, on any
//! storage, encrypted or not; and a restore of parts is as careful as one of all.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use holdfast::model::{Digest, Manifest, StoredObject};
use rustix::process::Signal;
use tokio::sync::Notify;

use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{Site, noise, s3_storage};
use crate::support::stores::{Server, fresh};
use crate::support::{self, Backup, Ran, S3, files, sh};

const LOCAL: &str = "[storages.store]\ntype = \"local\"\npath = \"@/store\"\n";
const MOST: u64 = 8 << 20;

/// A site whose `daily` takes the folder `data` to the storage `store`.
fn site(storage: &str, settings: &str) -> Site {
    Site::new(&format!(
        "[sources.files]\ntype = \"directory\"\npath = \"@/data\"\n{storage}\
         [strategies.daily]\nsources = [\"files\"]\nstorages = [\"store\"]\n{settings}"
    ))
}

/// 200 MiB in large files, and some small ones among them.
fn large_tree(data: &Path) {
    std::fs::create_dir_all(data.join("docs")).unwrap();
    std::fs::create_dir_all(data.join("many/deep")).unwrap();
    std::fs::write(data.join("a-large"), noise(100 << 20)).unwrap();
    let line = b"0123456789 and again, so that it is packed well\n".as_slice();
    std::fs::write(data.join("z-large"), line.repeat((100 << 20) / line.len())).unwrap();
    std::fs::write(data.join("docs/needle.txt"), noise(40_000)).unwrap();
    for number in 0..400 {
        std::fs::write(data.join(format!("many/{number}")), noise(1_000 + number)).unwrap();
    }
    std::fs::write(data.join("many/deep/last"), "last").unwrap();
    sh(data, "truncate -s 64M sparse && printf end >> sparse && ln docs/needle.txt hard", &[]);
}

fn restore(site: &Site, to: &str, args: &[&str]) -> Backup {
    let identity = site.path("key.txt");
    let restore = site
        .backup(["restore", "--strategy", "daily", "--json", "--to"])
        .arg(site.path(to))
        .args(args);
    if identity.exists() { restore.arg("--identity-file").arg(identity) } else { restore }
}

fn dump(site: &Site, path: &str) -> Backup {
    let identity = site.path("key.txt");
    let dump = site.backup(["dump", "latest", "files", path, "--strategy", "daily"]);
    if identity.exists() { dump.arg("--identity-file").arg(identity) } else { dump }
}

/// A new key in `key.txt`, and the setting that encrypts to it.
fn key(site: &Site) -> String {
    let recipient = sh(
        site.dir.path(),
        "age-keygen -o key.txt 2>/dev/null && age-keygen -y \
        key.txt",
        &[],
    );
    format!("[encryption]\nrecipients = [\"{}\"]\n", recipient.trim())
}

fn fetched(ran: &Ran) -> u64 {
    ran.json()["fetched_bytes"].as_u64().unwrap()
}

/// One small file, a hard link to it, and one of many small ones.
fn assert_small_files_are_cheap(site: &Site) {
    for (number, path) in
        ["docs/needle.txt", "hard", "many/399", "many/deep/last"].into_iter().enumerate()
    {
        let to = format!("out-{number}");
        let restored = restore(site, &to, &["--path", &format!("/{path}")]).expect(0);
        let expected = std::fs::read(site.path("data").join(path)).unwrap();
        assert!(
            std::fs::read(site.path(&to).join("files").join(path)).unwrap() == expected,
            "{path}"
        );
        assert!(fetched(&restored) < MOST, "{restored}");
        assert!(dump(site, path).expect(0).stdout == expected, "{path}");
    }
    let found = files(&site.path("out-3"));
    assert_eq!(found.len(), 1, "nothing else is restored: {:?}", found.keys());
    assert!(
        dump(site, "sparse").expect(0).stdout == std::fs::read(site.path("data/sparse")).unwrap()
    );
}

#[test]
fn one_small_file_of_a_local_storage_is_cheap_whatever_the_codec() {
    for (settings, encrypted) in [
        ("", false),
        ("[compression]\nalgorithm = \"none\"\n", true),
        ("[compression]\nalgorithm = \"gzip\"\nlevel = 1\n", false),
    ] {
        let site = site(LOCAL, settings);
        if encrypted {
            let storage = format!("{LOCAL}{}", key(&site));
            site.configure(&format!(
                "[sources.files]\ntype = \"directory\"\npath = \"@/data\"\n{storage}\
                 [strategies.daily]\nsources = [\"files\"]\nstorages = [\"store\"]\n{settings}"
            ));
        }
        large_tree(&site.path("data"));
        site.run(0);
        assert_small_files_are_cheap(&site);
    }
}

/// A site with a bucket behind a proxy.
async fn bucket(server: Server, settings: &str, encrypted: bool) -> (Site, S3Proxy) {
    let name = fresh("parts");
    server.client().create_bucket().bucket(&name).send().await.unwrap();
    let proxy = S3Proxy::before(&server.endpoint()).await;
    let real = support::s3(if server == Server::SeaweedFs { "SEAWEEDFS" } else { "S3S" });
    let storage = s3_storage("store", &S3 { endpoint: proxy.endpoint.clone(), ..real }, &name);
    let site = site(&storage, settings);
    if encrypted {
        let storage = format!("{storage}{}", key(&site));
        site.configure(&format!(
            "[sources.files]\ntype = \"directory\"\npath = \"@/data\"\n{storage}\
             [strategies.daily]\nsources = [\"files\"]\nstorages = [\"store\"]\n{settings}"
        ));
    }
    (site, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_small_file_of_a_bucket_is_cheap_encrypted_or_not() {
    for (server, encrypted) in [(Server::S3s, true), (Server::SeaweedFs, false)] {
        let (site, proxy) = bucket(server, "", encrypted).await;
        large_tree(&site.path("data"));
        site.run(0);
        let before = proxy.sent_bytes();
        let restored = restore(&site, "out", &["--path", "/docs/needle.txt"]).expect(0);
        let sent = proxy.sent_bytes() - before;
        // What is told is what was sent, but for the manifest.
        assert!(
            sent < MOST && fetched(&restored) <= sent && sent - fetched(&restored) < 64 << 10,
            "{sent} {restored}"
        );
        assert_small_files_are_cheap(&site);

        // A folder of many small files is got by few requests.
        let before = proxy.count(Op::Get);
        restore(&site, "folder", &["--path", "/many"]).expect(0);
        let requests = proxy.count(Op::Get) - before;
        assert!(requests <= 12, "{requests}");
        sh(site.dir.path(), "diff -r data/many folder/files/many", &[]);
    }
}

/// Where in `files.tar.zst` the first compressed byte of the block is that has the content of
/// `path`.
fn block_of(site: &Site, path: &str) -> usize {
    let lines = |artifact: &str| {
        let dumped = site.backup(["dump", "latest", artifact]).expect(0);
        dumped
            .out()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect::<Vec<serde_json::Value>>()
    };
    let index = lines("files.index");
    let offset =
        index.iter().find(|entry| entry["path"] == path).unwrap()["data_offset"].as_u64().unwrap();
    let blocks = lines("files.blocks");
    let block = blocks
        .iter()
        .rev()
        .find(|block| block["plain"].as_u64().is_some_and(|plain| plain <= offset));
    usize::try_from(block.unwrap()["compressed"].as_u64().unwrap()).unwrap()
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// A site with files of noise that lie in blocks of their own.
fn three_files(settings: &str) -> Site {
    let site = site(LOCAL, settings);
    std::fs::create_dir(site.path("data")).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(site.path("data").join(name), noise(3 << 20)).unwrap();
    }
    site.run(0);
    site
}

#[test]
fn damage_takes_the_files_that_lie_in_it_and_no_other() {
    for settings in [
        "",
        "[compression]\nalgorithm = \"none\"\n",
        "[compression]\n\
        algorithm = \"gzip\"\n",
    ] {
        let site = three_files(settings);
        let names = files(&site.newest());
        let name =
            names.keys().find(|name| name.to_str().unwrap().starts_with("files.tar")).unwrap();
        flip(&site.newest().join(name), block_of(&site, "b") + 1_500_000);
        let damaged = restore(&site, "out", &["--path", "/b"]).expect(4);
        assert!(damaged.err().contains("`files.tar`"), "{damaged}");
        assert!(!site.path("out/files/b").exists(), "nothing of it is there");
        dump(&site, "b").expect(4);
        // Beside it, the files come back all the same.
        restore(&site, "others", &["--path", "/a", "--path", "/c"]).expect(0);
        assert!(dump(&site, "c").expect(0).stdout == noise(3 << 20));
        assert_eq!(files(&site.path("others")).len(), 2);
        restore(&site, "whole", &[]).expect(4);
    }
}

#[test]
fn what_leads_to_the_files_is_named_when_it_is_damaged() {
    for artifact in ["files.index", "files.blocks"] {
        let site = three_files("");
        flip(&site.newest().join(format!("{artifact}.zst")), 60);
        let damaged = restore(&site, "out", &["--path", "/b"]).expect(4);
        assert!(damaged.err().contains(&format!("`{artifact}`")), "{damaged}");
        assert!(!site.path("out/files/b").exists());
        let dumped = dump(&site, "b").expect(4);
        assert!(
            dumped.err().contains(&format!("`{artifact}`")) && dumped.stdout.is_empty(),
            "{dumped}"
        );
        // Whoever would replace something is told before anything is.
        std::fs::create_dir_all(site.path("there/files")).unwrap();
        std::fs::write(site.path("there/files/b"), "mine").unwrap();
        let refused = restore(&site, "there", &["--path", "/b", "--overwrite"]).expect(4);
        assert!(refused.err().contains("Nothing was overwritten"), "{refused}");
        assert_eq!(std::fs::read_to_string(site.path("there/files/b")).unwrap(), "mine");
    }
}

#[test]
fn a_damaged_file_replaces_nothing() {
    let site = three_files("");
    flip(&site.newest().join("files.tar.zst"), block_of(&site, "b") + 1_500_000);
    std::fs::create_dir_all(site.path("out/files")).unwrap();
    std::fs::write(site.path("out/files/b"), "mine").unwrap();
    restore(&site, "out", &["--path", "/b", "--overwrite"]).expect(4);
    assert_eq!(std::fs::read_to_string(site.path("out/files/b")).unwrap(), "mine");
    // Beside it is only the mark of a restore that can be run again.
    let beside: Vec<_> =
        files(&site.path("out/files")).into_keys().filter(|name| name != "b").collect();
    assert!(matches!(beside.as_slice(), [mark] if mark == ".holdfast-restore"), "{beside:?}");
}

#[test]
fn an_artifact_that_goes_on_in_further_objects_is_read_in_parts_too() {
    for encrypted in [false, true] {
        let site = site(LOCAL, "");
        let setting = if encrypted { key(&site) } else { String::new() };
        site.configure(&format!(
            "[sources.files]\ntype = \"directory\"\npath = \"@/data\"\n{LOCAL}{setting}\
             [strategies.daily]\nsources = [\"files\"]\nstorages = [\"store\"]\n"
        ));
        std::fs::create_dir(site.path("data")).unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(site.path("data").join(name), noise(3 << 20)).unwrap();
        }
        site.run(0);
        continue_in_pieces(&site, 1_234_567);
        for name in ["a", "b", "c"] {
            assert!(dump(&site, name).expect(0).stdout == noise(3 << 20), "{name}");
        }
        let restored = restore(&site, "out", &["--path", "/b"]).expect(0);
        // Its own blocks, the one that the root is in, and no more of the 9 MiB.
        assert!(fetched(&restored) < 6 << 20, "{restored}");
        restore(&site, "whole", &[]).expect(0);
        sh(site.dir.path(), "diff -r data whole/files && cmp data/b out/files/b", &[]);
    }
}

/// Cuts the tarball of the newest snapshot into objects of that size, as a storage with a limit
/// would have them.
fn continue_in_pieces(site: &Site, size: usize) {
    let folder = site.newest();
    let id = folder.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let body = std::fs::read(folder.join("manifest.json")).unwrap();
    let names = ("app".parse().unwrap(), "daily".parse().unwrap());
    let mut manifest = Manifest::from_bytes(&body, &names.0, &names.1, &id).unwrap();
    manifest.requires.push("continued".to_owned());
    let artifact =
        manifest.artifacts.iter_mut().find(|artifact| artifact.name == "files.tar").unwrap();
    let key = artifact.objects[0].key.clone();
    let bytes = std::fs::read(folder.join(&key)).unwrap();
    artifact.objects = bytes
        .chunks(size)
        .zip(1..)
        .map(|(piece, number)| {
            let key = if number == 1 { key.clone() } else { format!("{key}.{number:04}") };
            std::fs::write(folder.join(&key), piece).unwrap();
            StoredObject { key, size: piece.len() as u64, digest: Digest::of(piece) }
        })
        .collect();
    assert!(artifact.objects.len() > 3);
    std::fs::write(folder.join("manifest.json"), manifest.to_bytes()).unwrap();
}

/// Everything that could tell that something was touched.
fn state_of(folder: &Path) -> String {
    sh(folder, r"find . -printf '%p %y %m %s %T@ %C@ %l\n' | sort", &[])
}

#[test]
fn a_plan_says_what_would_change_and_touches_nothing() {
    let site = three_files("");
    let plan = |args: &[&str]| restore(&site, "out", args).arg("--dry-run").expect(0).json();
    let preview = |plan: &serde_json::Value| {
        let preview = &plan["artifacts"][0]["preview"];
        ["creates", "replaces", "deletes", "bytes"].map(|field| preview[field].as_u64().unwrap())
    };
    let empty = plan(&[]);
    assert_eq!(preview(&empty)[1..], [0, 0, 9 << 20], "{empty}");
    assert!(!site.path("out").exists(), "not even the folder is made");

    std::fs::create_dir_all(site.path("out/files/old")).unwrap();
    std::fs::write(site.path("out/files/b"), "mine").unwrap();
    std::fs::write(site.path("out/files/old/x"), "x").unwrap();
    let before = state_of(&site.path("out"));
    let full = plan(&["--overwrite", "--delete"]);
    let [_, replaces, deletes, bytes] = preview(&full);
    assert!(replaces >= 1 && deletes == 2 && bytes == 9 << 20, "{full}");
    let changes = full["artifacts"][0]["preview"]["changes"].as_array().unwrap();
    assert!(
        changes.iter().any(|change| change["path"] == "old/x" && change["action"] == "delete"),
        "{full}"
    );
    let one = plan(&["--overwrite", "--path", "/b"]);
    assert_eq!(
        preview(&one)[1..],
        [1, 0, 3 << 20],
        "the file; the folder that leads there stays \
        as it is: {one}"
    );
    // What would be refused is refused.
    let refused = restore(&site, "out", &["--dry-run"]).expect(1);
    assert!(refused.err().contains("--overwrite"), "{refused}");
    let text = site.backup([
        "restore",
        "--strategy",
        "daily",
        "--dry-run",
        "--overwrite",
        "--delete",
        "--to",
    ]);
    let text = text.arg(site.path("out")).expect(0);
    for says in ["would be restored from store", "remove   old/x", "Nothing was touched"] {
        assert!(text.out().contains(says), "{text}");
    }
    assert_eq!(state_of(&site.path("out")), before);

    let done = restore(&site, "out", &["--overwrite", "--delete"]).expect(0).json();
    let restored = &done["restored"][0]["files"];
    assert_eq!(
        (restored["deleted"].as_u64(), restored["bytes"].as_u64()),
        (Some(2), Some(9 << 20)),
        "{done}"
    );
    sh(site.dir.path(), "diff -r data out/files", &[]);
}

#[test]
fn parts_are_of_folders_and_of_one() {
    let site = Site::new(&format!(
        "[sources.one]\ntype = \"directory\"\npath = \"@/one\"\n[sources.two]\n\
         type = \"directory\"\npath = \"@/two\"\n\
         [sources.words]\ntype = \"command\"\ncommand = [\"echo\", \"words\"]\n{LOCAL}\
         [strategies.daily]\nsources = [\"one\", \"two\", \"words\"]\nstorages = [\"store\"]\n\
         [strategies.single]\nsources = [\"one\", \"words\"]\nstorages = [\"store\"]\n"
    ));
    for name in ["one", "two"] {
        std::fs::create_dir(site.path(name)).unwrap();
        std::fs::write(site.path(name).join("x"), name).unwrap();
    }
    site.run(0);
    let which = restore(&site, "out", &["--path", "x"]).expect(2);
    assert!(which.err().contains("`one` and `two`: choose one with `--source`"), "{which}");
    let wrong = restore(&site, "out", &["--path", "x", "--source", "words"]).expect(2);
    assert!(wrong.err().contains("the source `words` is none"), "{wrong}");
    restore(&site, "out", &["--path", "x", "--source", "two"]).expect(0);
    assert_eq!(files(&site.path("out")).into_values().collect::<Vec<_>>(), [b"two"]);
    // What is no folder is left out, and that is said.
    site.backup(["--strategy", "single"]).expect(0);
    let restored = site
        .backup(["restore", "--strategy", "single", "--path", "x", "--to"])
        .arg(site.path("other"));
    let restored = restored.expect(0);
    assert!(restored.out().contains("left out: `words.out` is no folder of files"), "{restored}");
    // With `--delete` alone, what is no folder is restored as ever.
    let whole = ["restore", "--strategy", "single", "--overwrite", "--delete", "--to"];
    site.backup(whole).arg(site.path("other")).expect(0);
    assert_eq!(files(&site.path("other")).len(), 2);
    for wrong in [
        &["--to-command", "--path", "x"][..],
        &["--to", "out", "--delete"],
        &["--to", "out", "--owner", "a:b:c=d"],
        &["--to", "out", "--path", "../x"],
    ] {
        site.backup(["restore", "--strategy", "daily"]).args(wrong).expect(2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_says_so_and_can_be_run_again() {
    let (site, proxy) = bucket(Server::S3s, "", false).await;
    std::fs::create_dir(site.path("data")).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(site.path("data").join(name), noise(3 << 20)).unwrap();
    }
    site.run(0);
    for signal in [Signal::TERM, Signal::INT] {
        // After the first file the connection breaks, and the next request for the rest has no
        // answer.
        let reached = Arc::new(Notify::new());
        let tell = Arc::clone(&reached);
        let hang = Fault::Then(Arc::new(move || {
            tell.notify_one();
            std::future::pending().boxed()
        }));
        proxy.inject_at(Op::Get, "files.tar.zst", Fault::CutBody(4 << 20), 1);
        proxy.inject_at(Op::Get, "files.tar.zst", hang, 1_000);
        let to = format!("out-{}", signal.as_raw());
        let running = restore(&site, &to, &[]).spawn();
        reached.notified().await;
        running.signal(signal);
        let stopped = tokio::task::spawn_blocking(|| running.wait()).await.unwrap().expect(1);
        for says in ["the restore is incomplete", "The same command can be run again"] {
            assert!(stopped.err().contains(says), "{stopped}");
        }
        proxy.heal();
        restore(&site, &to, &[]).patience(Duration::from_secs(60)).expect(0);
        sh(site.dir.path(), r#"diff -r data "$1/files""#, &[to.as_ref()]);
    }
}
