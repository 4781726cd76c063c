//! What goes wrong: in every case no manifest, a clear error, the right exit code, earlier
//! snapshots untouched, and the next run succeeds.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::support::site::{SCRIPTED, Site, noise};
use crate::support::{Mounted, files, is_root, postgres, sh};

fn scripted(script: &str) -> Site {
    let site = Site::new(&format!("{SCRIPTED}no_progress_timeout = \"2s\"\n"));
    write_script(&site, script);
    site
}

fn write_script(site: &Site, script: &str) {
    std::fs::write(site.path("dump.sh"), script).unwrap();
}

/// The same run fails when the script does, with the earlier snapshot as it was; and succeeds after
/// that.
fn fails_cleanly(script: &str, says: &str) {
    let site = scripted("echo good");
    site.run(0);
    let before = files(&site.path("store"));
    write_script(&site, script);
    let failed = site.run(1);
    assert!(format!("{}{}", failed.out(), failed.err()).contains(says), "{failed}");
    assert_eq!(failed.json()["outcome"], "failed", "{failed}");
    assert_eq!(files(&site.path("store")), before, "nothing is left of it");
    write_script(&site, "echo good again");
    site.run(0);
    assert_eq!(site.ids().len(), 2);
    site.backup(["verify", "--read-data"]).expect(0);
}

#[test]
fn a_dump_that_fails_after_a_megabyte_is_no_backup() {
    fails_cleanly("head -c 1000000 /dev/zero; echo it broke >&2; exit 1", "it broke");
}

#[test]
fn a_dump_that_fails_after_many_blocks_is_no_backup() {
    fails_cleanly("head -c 50000000 /dev/urandom; exit 7", "7");
}

#[test]
fn a_dump_that_dies_by_a_signal_is_no_backup() {
    fails_cleanly("head -c 1000000 /dev/zero; kill -9 $$", "SIGKILL");
}

#[test]
fn a_dump_that_hangs_is_ended() {
    fails_cleanly("echo begun; sleep 1000", "neither wrote, read nor ended");
}

#[test]
fn a_dump_that_floods_stderr_is_a_backup_when_it_succeeds() {
    let site = scripted("head -c 50000000 /dev/zero | tr '\\0' 'x' >&2; echo good");
    let ran = site.run(0);
    assert!(ran.stderr.len() < 1_000_000, "the flood is not passed on");
}

#[test]
fn a_missing_program_or_folder_is_named() {
    let site = Site::new(&SCRIPTED.replace("\"sh\", ", "\"no-such-program\", "));
    assert!(site.run(1).out().contains("no-such-program"));
    let site = Site::new(&SCRIPTED.replace(
        "type = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]",
        "type = \"directory\"\npath = \"@/missing\"",
    ));
    assert!(site.run(1).out().contains("missing"));
    assert!(site.folders().is_empty());
}

/// Whether any process has `argument` among its arguments.
fn anything_runs(argument: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.into_iter().any(|line| {
        line.split(|byte| *byte == 0).any(|word| word == argument.as_os_str().as_bytes())
    })
}

/// Waits until `condition` holds of the site, looking whenever something may have changed.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A script that writes, tells that it got so far, and goes on only when let.
fn gated(site: &Site) -> (PathBuf, PathBuf) {
    let (reached, gate) = (site.path("reached"), site.path("gate"));
    sh(site.dir.path(), r#"mkfifo "$1""#, &[gate.as_os_str()]);
    write_script(
        site,
        &format!(
            "head -c 9000000 /dev/urandom; touch {}; read x < {}; echo end",
            reached.display(),
            gate.display()
        ),
    );
    (reached, gate)
}

#[test]
fn killed_in_the_middle_it_leaves_nothing_that_counts_and_the_next_run_collects_it() {
    let site = scripted("echo good");
    site.run(0);
    let (reached, _gate) = gated(&site);
    let running = site.backup(["--strategy", "daily"]).spawn();
    until("the dump began", || reached.exists());
    running.signal(Signal::KILL);
    assert_eq!(running.wait().code(), None);
    assert_eq!(site.folders().len(), 2, "it had begun a folder");
    assert_eq!(site.ids().len(), 1, "which is not listed");
    site.backup(["verify", "--read-data"]).expect(0);
    write_script(&site, "echo good again");
    site.run(0);
    assert_eq!(site.ids().len(), 2);
    assert_eq!(site.folders().len(), 2, "the dead run's folder is collected");
}

#[test]
fn killed_at_many_points_it_never_leaves_half_a_backup() {
    let site = Site::new(
        &(SCRIPTED.replace("[\"dump\"]", "[\"dump\", \"files\"]")
            + "[sources.files]\ntype = \"directory\"\npath = \"@/data\"\n"),
    );
    write_script(&site, "head -c 20000000 /dev/urandom");
    std::fs::create_dir(site.path("data")).unwrap();
    for number in 0..50 {
        std::fs::write(site.path(format!("data/{number}")), noise(100_000 + number)).unwrap();
    }
    site.run(0);
    let strace = |count: usize| {
        // Dies at its n-th rename, fsync, or write: strace injects the signal at exactly that call.
        let call = ["renameat2", "fsync", "write", "openat", "unlink", "mkdirat"][count % 6];
        format!("inject={call}:signal=KILL:when={}", 1 + (count / 6) * 7)
    };
    for count in 0..36 {
        let mut command = std::process::Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &strace(count)]);
        command
            .arg(env!("CARGO_BIN_EXE_backup"))
            .arg("--config")
            .arg(site.config())
            .args(["--strategy", "daily"]);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", site.dir.path());
        let _ = command.output().expect("strace runs");
        let verdict = site.backup(["verify", "--read-data", "--json"]).expect(0).json();
        assert!(!verdict["snapshots"].as_array().unwrap().is_empty(), "{count}");
    }
    let before = site.ids().len();
    site.run(0);
    assert_eq!(site.ids().len(), before + 1);
    assert_eq!(site.folders().len(), before + 1, "all that the dead left is collected");
    let strays = sh(&site.path("store"), "find . -name '.*.part' -o -name 'run.json'", &[]);
    assert_eq!(strays, "", "nothing else is left either");
}

#[test]
fn asked_to_stop_it_ends_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let site = scripted("echo good");
        site.run(0);
        let before = files(&site.path("store"));
        let (reached, _gate) = gated(&site);
        let running = site.backup(["--strategy", "daily", "--json"]).spawn();
        until("the dump began", || reached.exists());
        running.signal(signal);
        let ended = running.wait().expect(1);
        assert_eq!(ended.json()["outcome"], "cancelled", "{ended}");
        assert_eq!(files(&site.path("store")), before, "nothing is left of it");
        assert!(!anything_runs(&site.path("dump.sh")), "its child is gone");
    }
}

#[test]
fn a_run_that_takes_too_long_is_ended() {
    let site = scripted("while true; do echo more; done");
    site.configure(&(SCRIPTED.to_owned() + "timeout = \"3s\"\n"));
    let failed = site.run(1);
    assert!(failed.out().contains("longer than its `timeout`"), "{failed}");
    assert!(site.folders().is_empty());
}

#[test]
fn a_second_run_of_a_strategy_is_refused_while_the_first_goes_on() {
    let site = scripted("");
    let (reached, gate) = gated(&site);
    let running = site.backup(["--strategy", "daily"]).spawn();
    until("the dump began", || reached.exists());
    let refused = site.backup(["--strategy", "daily"]).expect(5);
    assert!(refused.err().contains("under way"), "{refused}");
    // Another state folder, as a second container has one: the storage's own lock is in the way.
    site.backup(["list"]).expect(0);
    let other = site.path("other.toml");
    let text =
        std::fs::read_to_string(site.config()).unwrap().replace("/state\"", "/other-state\"");
    std::fs::write(&other, text).unwrap();
    crate::support::backup(["--config"]).arg(&other).args(["--strategy", "daily"]).expect(5);
    std::fs::write(gate, "go\n").unwrap();
    running.wait().expect(0);
    assert_eq!(site.ids().len(), 1);
}

#[test]
fn a_storage_that_fails_does_not_take_the_others_with_it() {
    let site = Site::new(
        &(SCRIPTED.replace("[\"local\"]", "[\"bad\", \"local\"]")
            + "[storages.bad]\ntype = \"local\"\npath = \"@/dump.sh/store\"\n"),
    );
    write_script(&site, "head -c 20000000 /dev/urandom");
    let report = site.run(3).json();
    assert_eq!(report["outcome"], "problems");
    assert_eq!(report["storages"][0]["committed"], false);
    assert_eq!(report["storages"][1]["committed"], true);
    let listed = site.backup(["list", "--storage", "local", "--json"]).expect(0).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 1);
}

#[test]
fn a_disk_that_fills_is_an_error_and_leaves_room_again() {
    assert!(is_root(), "mounting a small disk needs root");
    let site = scripted("head -c 1000000 /dev/urandom");
    std::fs::create_dir(site.path("store")).unwrap();
    let store = site.path("store");
    let store = store.as_os_str();
    sh(site.dir.path(), r#"mount -t tmpfs -o size=40m none "$1""#, &[store]);
    let unmount = Mounted(site.path("store"));
    site.run(0);
    write_script(&site, "head -c 60000000 /dev/urandom");
    let failed = site.run(1);
    assert!(format!("{}{}", failed.out(), failed.err()).contains("No space left"), "{failed}");
    assert_eq!(site.ids().len(), 1);
    let used = sh(site.dir.path(), r#"df --output=used -k "$1" | tail -1"#, &[store]);
    assert!(used.trim().parse::<u64>().unwrap() < 2_000, "what was written is gone: {used}");
    write_script(&site, "head -c 15000000 /dev/urandom");
    site.run(0);
    // The next one would not fit, and that is said before anything is read.
    write_script(
        &site,
        &format!("touch {}; head -c 15000000 /dev/urandom", site.path("was-read").display()),
    );
    let refused = site.run(1);
    assert!(
        format!("{}{}", refused.out(), refused.err()).contains("the last snapshot took"),
        "{refused}"
    );
    assert!(!site.path("was-read").exists());
    drop(unmount);
}

#[test]
fn what_may_pass_by_itself_is_told_from_what_does_not() {
    let may_pass = |configuration: &str| {
        let site = Site::new(configuration);
        write_script(&site, "exit 1");
        // `@` stands for the site's folder there.
        let text = std::fs::read_to_string(site.config()).unwrap();
        std::fs::write(site.config(), text.replace("AT", "@")).unwrap();
        let ran = site.run(1);
        ran.json()["may_pass"].as_bool().unwrap_or_else(|| panic!("{ran}"))
    };
    let database = |url: &str| {
        SCRIPTED.replace(
            "type = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]",
            &format!("type = \"postgres\"\nurl = \"{url}\""),
        )
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = postgres(16).url;
    assert!(
        may_pass(&database(&format!("postgresql://postgresAT127.0.0.1:{closed}/postgres"))),
        "the server is down"
    );
    let (_, place) = server.split_once('@').unwrap();
    let refused = format!("postgresql://postgres:wrongAT{place}");
    assert!(!may_pass(&database(&refused)), "the password is wrong");
    assert!(may_pass(SCRIPTED), "of a program that failed nobody can tell");
    assert!(
        !may_pass(&SCRIPTED.replace("\"sh\", ", "\"no-such-program\", ")),
        "there is no such program"
    );
    assert!(!may_pass(&SCRIPTED.replace("@/store", "@/dump.sh/store")), "there is no such disk");
}

/// A stored file may have any modification time: file systems take what is set.
#[test]
fn modification_times_beyond_the_calendar_are_errors() {
    let shared = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = shared.path().to_str().unwrap();
    let site = Site::new(
        &SCRIPTED
            .replace("@/store", store)
            .replace("[strategies.daily]", "[strategies.daily]\nretention = { keep_last = 1 }"),
    );
    write_script(&site, "echo good");
    site.run(0);
    let id = site.ids().pop().unwrap();
    let manifest = shared.path().join("app/daily").join(&id).join("manifest.json");
    let kept = std::fs::metadata(&manifest).unwrap().modified().unwrap();
    let far = std::time::Duration::from_secs(10_000_000_000_000);
    for absurd in [std::time::UNIX_EPOCH + far, std::time::UNIX_EPOCH - far] {
        let file = std::fs::File::options().write(true).open(&manifest).unwrap();
        file.set_modified(absurd).unwrap();
        let taken = std::fs::metadata(&manifest).unwrap().modified().unwrap();
        assert_eq!(taken, absurd, "/dev/shm does not keep such a time, so nothing is shown");
        for args in [
            &["list", "--json"][..],
            &["verify", "--json"],
            &["prune", "--json"],
            &["restore", "--strategy", "daily", "--to", "/nowhere", "--json"],
            &["drill", "--strategy", "daily", "--json"],
            &["--strategy", "daily", "--json"],
        ] {
            let ran = site.backup(args).expect(1);
            assert!(format!("{}{}", ran.out(), ran.err()).contains("beyond the calendar"), "{ran}");
        }
        assert!(manifest.exists(), "nothing is deleted beside it");
        file.set_modified(kept).unwrap();
        assert_eq!(site.ids(), std::slice::from_ref(&id));
    }
}
