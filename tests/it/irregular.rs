//! What stands where the format has a file or a folder, and is none: a link, a folder, a named
//! pipe, a socket, a device. Nothing is deleted beside it, it is named, and nobody waits for it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

use crate::support::site::{SCRIPTED, Site};
use crate::support::{Ran, age_key, files, needs_root, sh};

/// A command that waits for something takes for ever.
const PROMPTLY: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To what was there, which is elsewhere now.
    Link,
    Dangling,
    Folder,
    /// With a file in it.
    Filled,
    Pipe,
    Socket,
    Device,
    Empty,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Link,
        Self::Dangling,
        Self::Folder,
        Self::Filled,
        Self::Pipe,
        Self::Socket,
        Self::Device,
        Self::Empty,
    ];

    fn node(path: &Path, kind: FileType, device: u64) {
        mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    }

    /// Puts it to `path`, of which the original is at `aside`.
    fn put(self, path: &Path, aside: &Path) {
        match self {
            Self::Link => symlink(aside, path).unwrap(),
            Self::Dangling => symlink("nowhere", path).unwrap(),
            Self::Folder => std::fs::create_dir(path).unwrap(),
            Self::Filled => {
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join("x.json"), "x").unwrap();
            }
            Self::Pipe => Self::node(path, FileType::Fifo, 0),
            // Its name stays when it is closed. It may be too long for a socket.
            Self::Socket => {
                let short = tempfile::tempdir_in("/tmp").unwrap();
                drop(UnixListener::bind(short.path().join("s")).unwrap());
                std::fs::rename(short.path().join("s"), path)
                    .unwrap_or_else(|_| Self::node(path, FileType::Socket, 0));
            }
            // As `/dev/null`.
            Self::Device => {
                Self::node(path, FileType::CharacterDevice, rustix::fs::makedev(1, 3));
            }
            Self::Empty => std::fs::write(path, "").unwrap(),
        }
    }
}

/// Something of a site that was put in the place of something else, until it is put back.
struct Replaced {
    path: PathBuf,
    aside: PathBuf,
}

impl Replaced {
    fn new(site: &Site, path: PathBuf, kind: Kind) -> Self {
        let aside = site.path("aside");
        match std::fs::rename(&path, &aside) {
            Ok(()) => {}
            Err(_) => std::fs::write(&aside, "{}").unwrap(),
        }
        kind.put(&path, &aside);
        Self { path, aside }
    }

    /// `there` tells whether there was anything before.
    fn put_back(self, there: bool) {
        if std::fs::symlink_metadata(&self.path).unwrap().is_dir() {
            std::fs::remove_dir_all(&self.path).unwrap();
        } else {
            std::fs::remove_file(&self.path).unwrap();
        }
        if there {
            std::fs::rename(&self.aside, &self.path).unwrap();
        } else {
            std::fs::remove_file(&self.aside).unwrap();
        }
    }
}

/// Three snapshots, of which retention keeps one and a hold another.
struct Stored {
    site: Site,
    ids: Vec<String>,
}

const RETENTION: &str = "retention = { keep_last = 1 }\n";

impl Stored {
    fn new() -> Self {
        needs_root("it makes devices");
        let site = Site::new(SCRIPTED);
        std::fs::write(site.path("dump.sh"), "echo data").unwrap();
        for _ in 0..3 {
            site.run(0);
        }
        let ids = site.ids();
        site.backup(["hold", &ids[0]]).expect(0);
        site.configure(&format!("{SCRIPTED}{RETENTION}"));
        Self { site, ids }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.site.backup(args).patience(PROMPTLY).run()
    }

    /// All that is stored, also what was put elsewhere.
    fn data(&self) -> BTreeMap<OsString, Vec<u8>> {
        let mut data = files(&self.site.path("store"));
        data.retain(|name, _| !name.to_string_lossy().ends_with(".lock"));
        let aside = self.site.path("aside");
        if aside.is_dir() {
            data.extend(files(&aside));
        } else if aside.is_file() {
            data.insert("aside".into(), std::fs::read(aside).unwrap());
        }
        data
    }

    /// With something else at `place`, below the folder of the instance, it is named and nothing is
    /// deleted.
    fn refuses(&self, place: &str, kinds: &[Kind]) {
        let named = place.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("app");
        for kind in kinds {
            let app = self.site.path("store/app");
            let path = if place.is_empty() { app } else { app.join(place) };
            let there = path.exists();
            let replaced = Replaced::new(&self.site, path, *kind);
            let what = format!("{place}: {kind:?}");
            let list = self.run(&["list", "--json"]);
            let said = [list.out(), &list.err()].concat();
            assert!(said.contains(named), "{what}: {list}");
            let verify = self.run(&["verify", "--json"]);
            // A mark that is a file and cannot be used says nothing of the data.
            let is_mark = place.starts_with("marks") && *kind == Kind::Empty && place != "marks";
            assert!(verify.code() != Some(0) || is_mark, "{what}: {verify}");
            let said = [verify.out(), &verify.err()].concat();
            assert!(said.contains(named) || is_mark, "{what}: {verify}");
            // What verification found is remembered there.
            let before = self.data();
            let check = self.run(&["check", "--json"]).expect(1);
            assert!(check.out().contains(named), "{what}: {check}");
            let prune = self.run(&["prune", "--yes", "--json"]).expect(1);
            let said = [prune.out(), &prune.err()].concat();
            let id = place.split('/').nth(1).unwrap_or(named);
            assert!(said.contains(named) || said.contains(id), "{what}: {prune}");
            self.run(&["prune", "--yes", "--force", "--json"]).expect(1);
            assert!(self.data() == before, "{what}: data stays\n{prune}");
            replaced.put_back(there);
        }
    }

    /// Without anything unexpected retention deletes what it should.
    fn ends_well(self) {
        self.site.backup(["verify", "--read-data"]).expect(0);
        self.site.backup(["check"]).expect(0);
        self.site.backup(["prune", "--yes"]).expect(0);
        assert_eq!(self.site.ids(), [&*self.ids[0], &*self.ids[2]]);
    }
}

#[test]
fn a_manifest_that_is_no_file_keeps_its_snapshot() {
    let stored = Stored::new();
    for id in [&stored.ids[1], &stored.ids[2]] {
        stored.refuses(&format!("daily/{id}/manifest.json"), &Kind::ALL);
    }
    stored.ends_well();
}

#[test]
fn artifacts_that_are_no_files_stop_deletions() {
    let stored = Stored::new();
    let folder = format!("daily/{}", stored.ids[1]);
    for name in ["dump.out.zst", "facts.json.zst"] {
        stored.refuses(&format!("{folder}/{name}"), &Kind::ALL);
    }
    // A part, or whatever else.
    stored.refuses(&format!("{folder}/dump.out.zst.0002"), &Kind::ALL[..7]);
    stored.refuses(&format!("{folder}/run.json"), &Kind::ALL[..7]);
    stored.ends_well();
}

#[test]
fn marks_that_are_no_files_stop_deletions() {
    let stored = Stored::new();
    let id = &stored.ids[0];
    let hold = sh(&stored.site.path("store/app"), &format!("ls marks/{id}/hold-*"), &[]);
    stored.refuses(hold.trim(), &Kind::ALL);
    stored.refuses(&format!("marks/hold-{}.json", stored.ids[1]), &Kind::ALL);
    stored.refuses(&format!("marks/{id}"), &without_folders());
    stored.refuses(&format!("marks/{}", stored.ids[1]), &without_folders());
    stored.refuses("marks", &without_folders());
    // Nor does a copy leave a hold behind that it cannot read.
    let path = stored.site.path("store/app").join(hold.trim());
    for kind in &Kind::ALL[..7] {
        let replaced = Replaced::new(&stored.site, path.clone(), *kind);
        let to = stored.site.path("second");
        let copy = ["copy", "--strategy", "daily", "--from", "local", "--to", to.to_str().unwrap()];
        stored.run(&copy).expect(1);
        assert!(!to.join("app/daily").join(id).exists(), "{kind:?}");
        replaced.put_back(true);
    }
    stored.ends_well();
}

fn without_folders() -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Folder | Kind::Filled)).collect()
}

#[test]
fn folders_that_are_none_stop_deletions() {
    let stored = Stored::new();
    let id = &stored.ids[1];
    for place in [format!("daily/{id}"), "daily".to_owned(), String::new()] {
        stored.refuses(&place, &without_folders());
    }
    stored.refuses("daily/.lock", &Kind::ALL[..7]);
    stored.ends_well();
}

#[test]
fn forgetting_does_not_reach_through_a_link() {
    let stored = Stored::new();
    let id = &stored.ids[1];
    for place in [format!("daily/{id}"), format!("daily/{id}/manifest.json")] {
        let path = stored.site.path("store/app").join(place);
        let replaced = Replaced::new(&stored.site, path, Kind::Link);
        let before = stored.data();
        stored.run(&["forget", id, "--yes"]).expect(1);
        assert!(stored.data() == before);
        replaced.put_back(true);
    }
    stored.ends_well();
}

#[test]
fn a_storage_may_be_reached_by_a_link() {
    let stored = Stored::new();
    let site = &stored.site;
    std::fs::rename(site.path("store"), site.path("elsewhere")).unwrap();
    symlink("elsewhere", site.path("store")).unwrap();
    site.run(0);
    assert_eq!(site.ids().len(), 2, "the held one and the new one");
    site.backup(["verify", "--read-data"]).expect(0);
}

#[test]
fn what_a_dead_run_left_is_kept_with_what_is_no_file() {
    let stored = Stored::new();
    let site = &stored.site;
    let folder = site.path("store/app/daily/20200101T000000Z-abcdef");
    for name in ["manifest.json", "dump.out.zst", "facts.json.zst", "run.json"] {
        for kind in &Kind::ALL[..7] {
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("db.pgdump.zst"), "all there is").unwrap();
            std::fs::write(site.path("aside"), "good").unwrap();
            kind.put(&folder.join(name), &site.path("aside"));
            sh(&folder, "find . -exec touch -h -d 2020-01-01 {} +", &[]);
            let what = format!("{name}: {kind:?}");
            let list = stored.run(&["list", "--json"]);
            assert!(list.out().contains("20200101T000000Z-abcdef"), "{what}: {list}");
            stored.run(&["prune", "--yes"]).expect(1);
            let run = stored.run(&["--strategy", "daily", "--json"]);
            assert_eq!(run.json()["storages"][0]["committed"], true, "{what}: {run}");
            let left = std::fs::read_to_string(folder.join("db.pgdump.zst"));
            assert_eq!(left.unwrap(), "all there is", "{what}");
            assert!(std::fs::symlink_metadata(folder.join(name)).is_ok(), "{what}");
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
    // With nothing but files in it, it goes.
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("db.pgdump.zst"), "cut").unwrap();
    sh(&folder, "find . -exec touch -d 2020-01-01 {} +", &[]);
    stored.run(&["--strategy", "daily"]);
    assert!(!folder.exists());
}

#[test]
fn unfinished_marks_are_swept_a_day_later() {
    let stored = Stored::new();
    let marks = stored.site.path("store/app/marks");
    for (name, day) in [("old", "2020-01-01"), ("new", "now")] {
        let part = marks.join(format!("{}/.hold-{name}.json.0123.part", stored.ids[0]));
        std::fs::write(&part, "{").unwrap();
        sh(&marks, "touch -d \"$1\" \"$2\"", &[day.as_ref(), part.as_os_str()]);
    }
    let held = files(&marks).len();
    stored.site.run(0);
    let left = files(&marks);
    assert_eq!(left.len(), held - 1, "{:?}", left.keys());
    assert!(left.keys().any(|name| name.to_string_lossy().contains(".hold-new.json")));
}

#[test]
fn a_clock_that_is_no_file_is_refused() {
    let stored = Stored::new();
    let clock = stored.site.path("store/.clock");
    for kind in &Kind::ALL[..7] {
        let there = clock.exists();
        let replaced = Replaced::new(&stored.site, clock.clone(), *kind);
        let before = stored.data();
        for (args, code) in [(&["check"][..], 1), (&["prune", "--yes"], 1)] {
            let ran = stored.run(args).expect(code);
            let said = [ran.out(), &ran.err()].concat();
            assert!(
                said.contains(".clock") || said.contains("ask for the time"),
                "{kind:?}: {ran}"
            );
        }
        let run = stored.run(&["--strategy", "daily", "--json"]);
        assert_ne!(run.code(), Some(0), "{run}");
        assert!(stored.data() == before, "{kind:?}");
        replaced.put_back(there);
    }
    stored.ends_well();
}

#[test]
fn state_files_that_are_no_files_stop_deletions() {
    let stored = Stored::new();
    let site = &stored.site;
    for name in ["node", "catalog.db", "catalog.db-wal", "app.daily.lock", "app.daily.read.lock"] {
        for kind in &Kind::ALL[..7] {
            let path = site.path("state").join(name);
            let there = path.exists();
            let replaced = Replaced::new(site, path, *kind);
            let before = stored.data();
            let what = format!("{name}: {kind:?}");
            let list = stored.run(&["list", "--json"]).expect(0);
            assert_eq!(list.json()["snapshots"].as_array().unwrap().len(), 3, "{what}: {list}");
            let check = stored.run(&["check", "--json"]).expect(1);
            assert!(check.out().contains(name), "{what}: {check}");
            let prune = stored.run(&["prune", "--yes", "--json"]).expect(1);
            assert!(prune.err().contains("state_failed"), "{what}: {prune}");
            assert!(prune.err().contains(name), "{what}: {prune}");
            assert!(stored.data() == before, "{what}");
            replaced.put_back(there);
        }
    }
    // A run is not kept from committing by its cache, but nothing is deleted.
    Kind::Pipe.put(
        &{
            for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
                let _ = std::fs::remove_file(site.path("state").join(name));
            }
            site.path("state/catalog.db")
        },
        Path::new(""),
    );
    let run = stored.run(&["--strategy", "daily", "--json"]).expect(3);
    assert!(run.json()["storages"][0]["pruned"]["problem"].is_string(), "{run}");
    std::fs::remove_file(site.path("state/catalog.db")).unwrap();
    assert_eq!(site.ids().len(), 4);
}

#[test]
fn locks_that_are_no_files_are_not_waited_for() {
    let stored = Stored::new();
    let site = &stored.site;
    site.configure(&format!("{SCRIPTED}schedule = \"0 3 * * *\"\n"));
    for kind in &Kind::ALL[..7] {
        for (name, args) in [
            ("app.daily.drill.lock", &["drill", "--strategy", "daily"][..]),
            ("scheduler.lock", &["schedule"]),
            ("scheduler.lock", &["reload"]),
            ("app.daily.lock", &["--strategy", "daily"]),
        ] {
            let path = site.path("state").join(name);
            let there = path.exists();
            let replaced = Replaced::new(site, path, *kind);
            let ran = stored.run(args);
            assert!(![Some(0), None].contains(&ran.code()), "{kind:?}: {ran}");
            assert!(ran.err().contains(name), "{kind:?}: {ran}");
            replaced.put_back(there);
        }
    }
}

/// Nobody writes to a named pipe at `name`.
fn silent_pipe(site: &Site, name: &str) -> PathBuf {
    Kind::Pipe.put(&site.path(name), Path::new(""));
    site.path(name)
}

#[test]
fn inputs_that_nobody_writes_to_are_refused() {
    let site = Site::new(SCRIPTED);
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site.run(0);
    let pipe = silent_pipe(&site, "pipe");
    let pipe = pipe.to_str().unwrap();
    let run = |args: &[&str]| {
        let ran = site.backup(args).patience(PROMPTLY).run();
        assert!(![Some(0), None].contains(&ran.code()), "{ran}");
        assert!(ran.err().contains("pipe"), "{ran}");
    };
    run(&["import", pipe, "--storage", "local"]);
    run(&["restore", "--strategy", "daily", "--to", "/nowhere", "--identity-file", pipe]);
    let config = crate::support::backup(["check", "--config", pipe]).patience(PROMPTLY).run();
    assert_eq!(config.code(), Some(2), "{config}");
    for secret in [
        "[sources.db]\ntype = \"postgres\"\nurl = \"postgresql://a@127.0.0.1:1/b\"\n\
         password_file = \"@/pipe\"\n",
        "[storages.off]\ntype = \"s3\"\nbucket = \"b\"\naccess_key_id = \"a\"\n\
         secret_access_key_file = \"@/pipe\"\n",
    ] {
        site.configure(&format!("{secret}{SCRIPTED}"));
        run(&["check"]);
    }
}

#[test]
fn inputs_may_come_through_pipes() {
    let site = Site::new(SCRIPTED);
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site.run(0);
    let (key, recipient) = age_key(site.dir.path(), "key.txt");
    site.configure(&format!("{SCRIPTED}[encryption]\nrecipients = [\"{recipient}\"]\n"));
    site.run(0);
    site.backup(["export", "--strategy", "daily", "--output"]).arg(site.path("one.tar")).expect(0);
    // What a shell makes of `<(...)` is a pipe.
    let script = r#"
        backup=$1; key=$2
        $backup list --config <(sleep 0.2; cat app.toml) --json >by-substitution
        $backup list --config /dev/stdin --json <app.toml >by-redirection
        cat app.toml | $backup list --config /dev/stdin --json >by-pipe
        $backup restore --config app.toml --strategy daily --to out --identity-file <(cat "$key")
        rm -r store; mkdir store
        $backup import --config app.toml --storage local <(sleep 0.2; cat one.tar)
    "#;
    let program = env!("CARGO_BIN_EXE_backup");
    sh(site.dir.path(), script, &[program.as_ref(), key.as_os_str()]);
    for listed in ["by-substitution", "by-redirection", "by-pipe"] {
        let list = std::fs::read(site.path(listed)).unwrap();
        let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
        assert_eq!(list["snapshots"].as_array().unwrap().len(), 2, "{listed}");
    }
    assert_eq!(site.ids().len(), 1);
}

#[test]
fn an_import_from_a_silent_pipe_ends_when_asked() {
    let site = Site::new(SCRIPTED);
    let pipe = silent_pipe(&site, "pipe");
    // Somebody has it open and says nothing.
    let mut writer = Command::new("sh")
        .args(["-c", "exec sleep 600 >\"$1\"", "writer"])
        .arg(&pipe)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let import =
        site.backup(["import", "--storage", "local"]).arg(&pipe).patience(PROMPTLY).spawn();
    // The import has it open once the writer could open it, which becomes `sleep` then.
    let (name, began) = (format!("/proc/{}/comm", writer.id()), Instant::now());
    while std::fs::read_to_string(&name).unwrap().trim() != "sleep" {
        assert!(began.elapsed() < PROMPTLY);
        std::thread::yield_now();
    }
    import.signal(Signal::TERM);
    let ran = import.wait();
    assert_ne!(ran.code(), Some(0), "{ran}");
    writer.kill().unwrap();
    writer.wait().unwrap();
}
