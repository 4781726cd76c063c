//! A copy in another storage is as good as what the run left, or it is nothing.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::Notify;

use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{Site, noise, s3_storage, small_tree};
use crate::support::stores::{Server, fresh};
use crate::support::{Mounted, S3, age_key, files, is_root, s3, sh};

const FILES: &str = r#"
[sources.small]
type = "command"
command = ["head", "-c", "400000", "@/noise"]
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
sources = ["small", "files"]
storages = ["local"]
"#;

/// A site with some files, and that many snapshots of them in `local`.
fn site(extra: &str, snapshots: usize) -> Site {
    let site = Site::new(&format!("{extra}{FILES}"));
    small_tree(&site.path("data"));
    std::fs::write(site.path("noise"), noise(9_000_000)).unwrap();
    std::fs::copy(site.path("noise"), site.path("data/noise")).unwrap();
    for _ in 0..snapshots {
        site.run(0);
    }
    site
}

fn to_usb(site: &Site, code: i32) -> Value {
    site.backup(["copy", "--from", "local", "--to", "usb", "--strategy", "daily", "--json"])
        .expect(code)
        .json()
}

/// What became of each snapshot.
fn states(report: &Value) -> Vec<&str> {
    report["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["state"].as_str().unwrap())
        .collect()
}

/// The snapshot's objects in the storage at `root`, without the manifest.
fn stored(
    site: &Site,
    root: &str,
    id: &str,
) -> std::collections::BTreeMap<std::ffi::OsString, Vec<u8>> {
    let mut all = files(&site.path(format!("{root}/app/daily/{id}")));
    all.remove(OsStr::new("manifest.json")).expect("a manifest");
    all
}

/// What is left in `usb` besides snapshots.
fn strays(site: &Site) -> String {
    sh(site.dir.path(), "find usb -name '*.part' -o -name run.json", &[])
}

fn restores(site: &Site, storage: &str) {
    let out = site.path(format!("out-{storage}"));
    let args =
        ["restore", "--strategy", "daily", "--storage", storage, "--source", "files", "--to"];
    site.backup(args).arg(&out).expect(0);
    sh(
        site.dir.path(),
        r#"diff -r --no-dereference data "$1"/files || diff -r --no-dereference data "$1""#,
        &[out.as_os_str()],
    );
}

#[test]
fn what_a_storage_lacks_is_copied_byte_for_byte_and_only_once() {
    let site = site("", 2);
    let ids = site.ids();
    let planned = site
        .backup(["copy", "--from", "local", "--to", "usb", "--dry-run", "--json"])
        .expect(0)
        .json();
    assert_eq!(states(&planned), ["planned", "planned"]);
    assert!(!site.path("usb").exists(), "nothing was done");
    // One by its id, then the rest.
    let one = site
        .backup(["copy", "--from", "local", "--to", "usb", "--snapshot", "latest", "--json"])
        .expect(0);
    assert_eq!(states(&one.json()), ["copied"]);
    let report = to_usb(&site, 0);
    assert_eq!(states(&report), ["copied", "present"], "oldest first");
    assert_eq!(states(&to_usb(&site, 0)), ["present", "present"]);
    for id in &ids {
        assert_eq!(stored(&site, "usb", id), stored(&site, "store", id));
        let manifest = |root: &str| {
            let text =
                std::fs::read_to_string(site.path(format!("{root}/app/daily/{id}/manifest.json")))
                    .unwrap();
            let mut manifest: Value = serde_json::from_str(&text).unwrap();
            (manifest["manifest"]["storage"].take(), manifest["manifest"].take())
        };
        assert_eq!(manifest("usb").1, manifest("store").1, "equal but for the storage");
        assert_eq!(manifest("usb").0["name"], "usb");
    }
    assert_eq!(strays(&site), "");
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
    restores(&site, "usb");
}

#[test]
fn addresses_need_no_configuration_and_the_source_may_be_read_only() {
    assert!(is_root(), "mounting needs root");
    let site = site("", 1);
    // Nothing can be written there, a lock file neither.
    let store = site.path("store");
    sh(
        site.dir.path(),
        r#"mount --bind "$1" "$1" && mount -o remount,bind,ro "$1""#,
        &[store.as_os_str()],
    );
    let unmount = Mounted(store);
    let (from, to) = (site.path("store"), site.path("usb"));
    let said = without_configuration(
        &site,
        r#"copy --from "$1" --to "$2""#,
        &[from.as_os_str(), to.as_os_str()],
    );
    assert!(said.contains("1 snapshot copied"), "{said}");
    assert_eq!(states(&to_usb(&site, 0)), ["present"]);
    drop(unmount);
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
    site.backup(["copy", "--from", "local", "--to", "nowhere"]).expect(2);
    site.backup(["copy", "--from", "local", "--to"]).arg(site.path("store")).expect(2);
}

/// What `backup ARGS` prints that has no configuration, and so keeps its locks where this user
/// does. For root that is a folder of the system, which the test does not touch: it sees another.
pub(crate) fn without_configuration(site: &Site, args: &str, words: &[&OsStr]) -> String {
    let program = env!("CARGO_BIN_EXE_backup");
    let hide = if is_root() { "mount -t tmpfs none /var/lib" } else { "true" };
    let script = format!("{hide} && HOME=\"$PWD\" XDG_STATE_HOME= {program} {args}");
    let outer = if is_root() { "unshare -m " } else { "" };
    sh(
        site.dir.path(),
        &format!(r#"{outer}bash -c "$@""#),
        &[&[script.as_ref(), "inner".as_ref()], words].concat(),
    )
}

fn table(server: Server, name: &str, bucket: &str) -> String {
    let name_of = match server {
        Server::S3s => "S3S",
        Server::SeaweedFs => "SEAWEEDFS",
        Server::Moto => "MOTO",
    };
    s3_storage(name, &S3 { region: server.region(), ..s3(name_of) }, bucket)
}

async fn bucket(server: Server) -> String {
    let name = fresh("bucket");
    server.client().create_bucket().bucket(&name).send().await.unwrap();
    name
}

/// Encrypted, to one bucket, from there to another server's, and from there to a folder: no key is
/// needed on the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_travels_from_server_to_server_without_a_key() {
    let (first, second) = (bucket(Server::S3s).await, bucket(Server::SeaweedFs).await);
    let keys = crate::support::temp();
    let (identity, recipient) = age_key(keys.path(), "key.txt");
    let site = site("", 0);
    let tables = table(Server::S3s, "near", &first) + &table(Server::SeaweedFs, "far", &second);
    let body = FILES.replace("storages = [\"local\"]", "storages = [\"near\"]");
    site.configure(&format!("{body}{tables}[encryption]\nrecipients = [\"{recipient}\"]\n"));
    site.run(0);
    for (from, to) in [("near", "far"), ("far", "usb")] {
        let report = site.backup(["copy", "--from", from, "--to", to, "--json"]).expect(0).json();
        assert_eq!(states(&report), ["copied"], "{from} to {to}");
    }
    for storage in ["far", "usb"] {
        let verify = ["verify", "--storage", storage, "--read-data", "--identity-file"];
        let verified = site.backup(verify).arg(&identity).expect(0);
        assert!(verified.out().contains("decoded"), "{verified}");
    }
    assert_eq!(Server::SeaweedFs.unfinished_uploads(&second).await, Some(0));
}

#[test]
fn a_storage_that_missed_a_run_is_refilled_by_the_command_that_the_run_named() {
    let site = site("", 0);
    let body = FILES
        .replace("\"@/usb\"", "\"@/mount/point/usb\"")
        .replace("storages = [\"local\"]", "storages = [\"usb\", \"local\"]");
    site.configure(&body);
    let report = site.run(3).json();
    let note = report["storages"][0]["notes"][0].as_str().unwrap();
    let command = note.split('`').nth(1).unwrap();
    assert_eq!(command, "backup copy --from local --to usb --strategy daily");
    std::fs::create_dir_all(site.path("mount/point")).unwrap();
    site.backup(command.split(' ').skip(1)).expect(0);
    let listed = site.backup(["list", "--storage", "usb", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"][0]["id"], report["id"]);
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
    site.run(0);
}

/// The largest object of the snapshot in `store`.
fn tarball(site: &Site, id: &str) -> PathBuf {
    site.path(format!("store/app/daily/{id}/files.tar.zst"))
}

#[test]
fn damage_is_found_on_the_way_and_the_others_are_copied() {
    let site = site("", 5);
    let ids = site.ids();
    let flip = |id: &String| {
        let mut bytes = std::fs::read(tarball(&site, id)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(tarball(&site, id), bytes).unwrap();
    };
    flip(&ids[0]);
    let file = std::fs::OpenOptions::new().write(true).open(tarball(&site, &ids[1])).unwrap();
    file.set_len(5_000_000).unwrap();
    std::fs::remove_file(tarball(&site, &ids[2])).unwrap();
    let mut longer = std::fs::read(tarball(&site, &ids[3])).unwrap();
    longer.push(0);
    std::fs::write(tarball(&site, &ids[3]), longer).unwrap();
    let report = to_usb(&site, 4);
    assert_eq!(states(&report), ["damaged", "damaged", "damaged", "damaged", "copied"]);
    for one in report["snapshots"].as_array().unwrap().iter().take(4) {
        assert!(one["error"].as_str().unwrap().contains("files.tar.zst"), "{one}");
    }
    let there: Vec<PathBuf> =
        std::fs::read_dir(site.path("usb/app/daily")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(
        there.iter().filter(|path| path.is_dir()).count(),
        1,
        "nothing is left of the \
        damaged: {there:?}"
    );
    assert_eq!(strays(&site), "");
}

#[test]
fn an_unreadable_manifest_is_named_and_the_others_are_copied() {
    let site = site("", 2);
    let ids = site.ids();
    std::fs::write(site.path(format!("store/app/daily/{}/manifest.json", ids[0])), "{").unwrap();
    let report = to_usb(&site, 3);
    assert_eq!(states(&report), ["unreadable", "copied"]);
    assert_eq!(report["snapshots"][0]["id"], ids[0].as_str());
    // Nothing is left to copy, and still it is not all well.
    assert_eq!(states(&to_usb(&site, 3)), ["unreadable", "present"]);
}

#[test]
fn a_snapshot_that_is_there_is_never_overwritten() {
    let site = site("", 1);
    to_usb(&site, 0);
    let id = site.ids().remove(0);
    // Another run that happens to have the same id.
    let other = site.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::rename(site.path("store"), other.join("store")).unwrap();
    let manifest = site.path(format!("usb/app/daily/{id}/manifest.json"));
    let text = std::fs::read_to_string(&manifest).unwrap();
    // It is noticed that the storage is suddenly empty.
    site.run(3);
    let newer = site.folders().remove(0);
    let folder = newer.parent().unwrap().join(&id);
    std::fs::rename(&newer, &folder).unwrap();
    let script = r#"
        body=$(sed '1d;$d' "$1"/manifest.json | sed "s/\"id\": \".*\"/\"id\": \"$2\"/")
        printf '{"digest": "sha256:%s", "manifest":\n%s\n}\n' "$(printf '%s\n' "$body" | sha256sum | cut -d' ' -f1)" "$body" > "$1"/new
        mv "$1"/new "$1"/manifest.json"#;
    sh(site.dir.path(), script, &[folder.as_os_str(), id.as_ref()]);
    let report = to_usb(&site, 1);
    assert_eq!(states(&report), ["differs"]);
    assert_eq!(std::fs::read_to_string(&manifest).unwrap(), text);
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
}

/// Waits until `condition` holds.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A copy that has sent its first object and will take long over the next.
fn halfway(site: &Site) -> crate::support::Running {
    site.configure(&format!("upload_rate = \"1MiB/s\"\n{FILES}"));
    let id = site.ids().pop().unwrap();
    let running = site.backup(["copy", "--from", "local", "--to", "usb", "--json"]).spawn();
    let first = site.path(format!("usb/app/daily/{id}/small.out.zst"));
    until("the first object arrived", || first.exists());
    site.configure(FILES);
    running
}

#[test]
fn a_copy_that_was_killed_is_taken_up_again() {
    let site = site("", 1);
    let running = halfway(&site);
    // Meanwhile nothing else of this strategy writes.
    site.backup(["--strategy", "daily"]).expect(5);
    site.backup(["copy", "--from", "local", "--to", "usb"]).expect(5);
    running.signal(Signal::KILL);
    running.wait();
    let listed = site.backup(["list", "--storage", "usb", "--json"]).expect(0).json();
    assert!(listed["snapshots"].as_array().unwrap().is_empty(), "nothing half is listed");
    let report = to_usb(&site, 0);
    assert_eq!(states(&report), ["copied"]);
    assert!(report["snapshots"][0]["taken_up_bytes"].as_u64().unwrap() >= 400_000, "{report}");
    assert_eq!(strays(&site), "");
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
}

#[test]
fn what_a_killed_copy_left_is_not_believed_unread() {
    let site = site("", 1);
    let running = halfway(&site);
    running.signal(Signal::KILL);
    running.wait();
    let id = site.ids().pop().unwrap();
    let first = site.path(format!("usb/app/daily/{id}/small.out.zst"));
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[200_000] ^= 1;
    std::fs::write(&first, bytes).unwrap();
    let report = to_usb(&site, 0);
    assert_eq!(report["snapshots"][0]["taken_up_bytes"], 0);
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
}

#[test]
fn a_copy_that_is_asked_to_stop_leaves_nothing() {
    let site = site("", 1);
    let running = halfway(&site);
    running.signal(Signal::TERM);
    let ended = running.wait().expect(1);
    assert!(ended.json()["error"].as_str().unwrap().contains("Cancelled"), "{ended}");
    assert!(
        files(&site.path("usb"))
            .keys()
            .all(|path| path.to_string_lossy().contains("/.lock") || path == ".clock")
    );
    to_usb(&site, 0);
}

#[test]
fn killed_at_any_call_it_never_leaves_half_a_snapshot() {
    let site = site("", 1);
    for count in 0..24 {
        let call = ["renameat2", "fsync", "write", "openat", "unlink", "mkdirat"][count % 6];
        let inject = format!("inject={call}:signal=KILL:when={}", 1 + (count / 6) * 5);
        let mut command = std::process::Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
        command.arg(env!("CARGO_BIN_EXE_backup")).arg("--config").arg(site.config());
        command.args(["copy", "--from", "local", "--to", "usb"]);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", site.dir.path());
        let _ = command.output().expect("strace runs");
        if site.path("usb").exists() {
            site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
        }
    }
    let report = to_usb(&site, 0);
    assert!(matches!(states(&report)[..], ["copied" | "present"]), "{report}");
    // A heartbeat beside a manifest means nothing, and the next writer takes it away.
    site.configure(&FILES.replace("storages = [\"local\"]", "storages = [\"usb\"]"));
    site.run(0);
    assert_eq!(strays(&site), "");
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
}

/// As often as anybody asks.
const ALWAYS: usize = 1_000_000;

/// A site whose `usb` is a bucket, behind a proxy.
async fn before_a_bucket(server: Server) -> (Site, S3Proxy, String) {
    let (proxy, name) = (S3Proxy::before(&server.endpoint()).await, bucket(server).await);
    let behind = S3 { endpoint: proxy.endpoint.clone(), region: server.region(), ..s3("S3S") };
    let site = site("", 1);
    let usb = s3_storage("usb", &behind, &name) + "part_size = \"5MiB\"\nattempts = 2\n";
    site.configure(&FILES.replace("[storages.usb]\ntype = \"local\"\npath = \"@/usb\"\n", &usb));
    (site, proxy, name)
}

/// Nothing is in the bucket but snapshots.
async fn assert_tidy(server: Server, bucket: &str) {
    let page = server.client().list_objects_v2().bucket(bucket).send().await.unwrap();
    let keys: Vec<&str> = page.contents().iter().map(|object| object.key().unwrap()).collect();
    assert!(!keys.iter().any(|key| key.ends_with("run.json")), "{keys:?}");
    assert_eq!(keys.iter().filter(|key| key.ends_with("manifest.json")).count(), 1, "{keys:?}");
    server.assert_no_uploads_where_listed(bucket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_goes_away_midway_has_nothing_half_and_is_filled_when_it_is_back() {
    let (site, proxy, name) = before_a_bucket(Server::SeaweedFs).await;
    for op in [Op::Begin, Op::Abort, Op::Delete, Op::Complete] {
        proxy.inject(op, Fault::DropRequest, ALWAYS);
    }
    let failed = to_usb(&site, 1);
    assert_eq!(states(&failed), ["failed"]);
    assert!(failed["error"].as_str().unwrap().contains("usb"), "{failed}");
    let listed = site.backup(["list", "--storage", "usb", "--json"]).expect(0).json();
    assert!(listed["snapshots"].as_array().unwrap().is_empty());
    proxy.heal();
    let report = to_usb(&site, 0);
    assert_eq!(states(&report), ["copied"]);
    assert!(report["snapshots"][0]["taken_up_bytes"].as_u64().unwrap() >= 400_000, "{report}");
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
    assert_tidy(Server::SeaweedFs, &name).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_cannot_be_read_on_is_not_called_damaged() {
    let (site, proxy, _) = before_a_bucket(Server::S3s).await;
    to_usb(&site, 0);
    std::fs::remove_dir_all(site.path("store")).unwrap();
    let back = || site.backup(["copy", "--from", "usb", "--to", "local", "--json"]);
    proxy.inject_at(Op::Get, "files.tar.zst", Fault::DropAnswer, ALWAYS);
    let failed = back().expect(1).json();
    assert_eq!(states(&failed), ["failed"]);
    assert!(site.ids().len() == 1 && !site.folders()[0].join("manifest.json").exists());
    proxy.heal();
    let report = back().expect(0).json();
    assert!(report["snapshots"][0]["taken_up_bytes"].as_u64().unwrap() >= 400_000, "{report}");
    site.backup(["verify", "--read-data"]).expect(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_that_copy_the_same_snapshot_at_once_never_hurt_each_other() {
    copied_by_two_machines(before_a_bucket(Server::SeaweedFs).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_copy_unharmed_without_conditional_writes() {
    let bucket = before_a_bucket(Server::SeaweedFs).await;
    bucket.1.ignore_conditions();
    copied_by_two_machines(bucket).await;
}

async fn copied_by_two_machines((site, _proxy, name): (Site, S3Proxy, String)) {
    let other = site.path("other.toml");
    let text =
        std::fs::read_to_string(site.config()).unwrap().replace("/state\"", "/other-state\"");
    std::fs::write(&other, text).unwrap();
    let copy = ["copy", "--from", "local", "--to", "usb"];
    let running = [
        site.backup(copy).spawn(),
        crate::support::backup(["--config"])
            .arg(&other)
            .args(copy)
            .env("HOME", site.dir.path())
            .spawn(),
    ];
    for one in running {
        let ran = one.wait();
        // Whoever came second gives way; when both see each other, both do.
        assert!(matches!(ran.code(), Some(0 | 1 | 5)), "{ran}");
    }
    site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
    let last = site.backup(copy).run();
    assert!(matches!(last.code(), Some(0 | 5)), "{last}");
    if last.code() == Some(0) {
        site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
        assert_tidy(Server::SeaweedFs, &name).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_the_other_storage_cannot_take_is_refused_before_anything_is_sent() {
    let site = site("", 1);
    let sparse = tarball(&site, &site.ids()[0]);
    // As large as the manifest says it is; nothing of it is read.
    let folder = sparse.parent().unwrap();
    let script = r#"
        body=$(sed '1d;$d' "$1"/manifest.json | sed 's/"size": 9[0-9]*/"size": 999999999999/')
        printf '{"digest": "sha256:%s", "manifest":\n%s\n}\n' "$(printf '%s\n' "$body" | sha256sum | cut -d' ' -f1)" "$body" > "$1"/manifest.json"#;
    sh(site.dir.path(), script, &[folder.as_os_str()]);
    let usb = table(Server::S3s, "usb", &bucket(Server::S3s).await) + "part_size = \"5MiB\"\n";
    site.configure(&FILES.replace("[storages.usb]\ntype = \"local\"\npath = \"@/usb\"\n", &usb));
    let ran = site.backup(["copy", "--from", "local", "--to", "usb", "--json"]).expect(1).json();
    assert!(ran["snapshots"][0]["error"].as_str().unwrap().contains("`part_size`"), "{ran}");
}

#[test]
fn strategies_do_not_mix() {
    let site = site("", 1);
    let weekly = "[strategies.weekly]\nsources = [\"small\"]\nstorages = [\"local\"]\n";
    site.configure(&format!("{FILES}{weekly}"));
    site.backup(["--strategy", "weekly"]).expect(0);
    let copy = |extra: &[&str]| {
        let report = site
            .backup(["copy", "--from", "local", "--to", "usb", "--json"])
            .args(extra)
            .expect(0)
            .json();
        let row = |one: &Value| {
            format!("{} {}", one["strategy"].as_str().unwrap(), one["state"].as_str().unwrap())
        };
        report["snapshots"].as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(copy(&["--strategy", "weekly"]), ["weekly copied"]);
    assert!(!site.path("usb/app/daily").exists());
    assert_eq!(copy(&[]), ["daily copied", "weekly present"], "all of the instance");
    // One that never ran has nothing to copy, and one that is not configured is a mistake.
    site.backup(["copy", "--from", "local", "--to", "usb", "--strategy", "never"]).expect(2);
    site.backup(["copy", "--from", "local", "--to", "usb", "--snapshot", "ffffff"]).expect(1);
}

/// Where a copy is stopped: the request was carried out, its answer never came.
const POINTS: [(Op, &str); 8] = [
    (Op::List, ""),
    (Op::Put, "run.json"),
    (Op::Put, "small.out.zst"),
    (Op::Begin, ""),
    (Op::Part(2), ""),
    (Op::Complete, ""),
    (Op::Delete, "run.json"),
    (Op::Put, "manifest.json"),
];

async fn stopped_anywhere(server: Server, signal: Signal) {
    for (op, suffix) in POINTS {
        let (site, proxy, name) = before_a_bucket(server).await;
        let reached = Arc::new(Notify::new());
        let tell = Arc::clone(&reached);
        let never = Fault::Then(Arc::new(move || {
            tell.notify_one();
            std::future::pending().boxed()
        }));
        proxy.inject_at(op, suffix, never, 1);
        let running = site.backup(["copy", "--from", "local", "--to", "usb"]).spawn();
        reached.notified().await;
        running.signal(signal);
        let ended = running.wait();
        proxy.heal();
        let committed = suffix == "manifest.json" || op == Op::Delete;
        let listed = site.backup(["list", "--storage", "usb", "--json"]).expect(0).json();
        let count = listed["snapshots"].as_array().unwrap().len();
        assert_eq!(count, usize::from(committed), "{op:?} {suffix}: {ended}");
        if signal == Signal::TERM {
            let page = server.client().list_objects_v2().bucket(&name).send().await.unwrap();
            assert!(
                committed || page.contents().is_empty(),
                "{op:?} {suffix}: nothing is left of \
                it"
            );
            assert_eq!(
                ended.code(),
                Some(if committed { 0 } else { 1 }),
                "{op:?} {suffix}: \
                {ended}"
            );
        }
        let report = to_usb(&site, 0);
        assert_eq!(states(&report), [if committed { "present" } else { "copied" }]);
        site.backup(["verify", "--storage", "usb", "--read-data"]).expect(0);
        if signal == Signal::TERM || !committed {
            assert_tidy(server, &name).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_over_s3_it_leaves_nothing_that_counts() {
    stopped_anywhere(Server::SeaweedFs, Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_to_stop_anywhere_over_s3_it_leaves_nothing() {
    stopped_anywhere(Server::SeaweedFs, Signal::TERM).await;
}

/// What earlier versions wrote is copied as it is.
#[test]
fn frozen_snapshots_are_copied_as_they_are() {
    for variant in ["plain", "gzip", "encrypted"] {
        let site = Site::new(FILES);
        let frozen = crate::support::repository().join("tests/fixtures/format-1").join(variant);
        let to = site.path("usb");
        without_configuration(
            &site,
            r#"copy --from "$1" --to "$2""#,
            &[frozen.as_os_str(), to.as_os_str()],
        );
        let verified =
            crate::support::backup(["verify", "--read-data", "--storage"]).arg(&to).expect(0);
        assert!(
            verified.out().contains("match") || verified.out().contains("decoded"),
            "{verified}"
        );
        let here = |root: &std::path::Path| {
            let mut all = files(root);
            all.retain(|path, _| {
                !path.to_string_lossy().ends_with("manifest.json")
                    && !path.to_string_lossy().contains("/.")
            });
            all.remove(OsStr::new(".clock"));
            all
        };
        assert_eq!(here(&to), here(&frozen), "{variant}");
    }
}
