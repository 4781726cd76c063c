//! Every signal that asks for an end is heeded in order: with hooks, clean-up and a record. Those
//! that the caller ignores stay ignored.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::daemon::{Daemon, until};
use crate::support::site::{SCRIPTED, Site};
use crate::support::{Backup, Running, files, sh};

/// A site whose dump says that it began, and goes on when `gate` is written to; its hooks leave
/// files.
fn site() -> Site {
    let hooks = "after = [\"touch\", \"@/after\"]\non_failure = [\"touch\", \"@/on-failure\"]\n";
    let drill = "[strategies.daily.drill]\n[[strategies.daily.drill.checks]]\ntype = \"command\"\n\
        command = [\"sh\", \"@/dump.sh\"]\n";
    let site = Site::new(&format!("{SCRIPTED}{hooks}{drill}"));
    dumps(&site, "echo good");
    site
}

fn dumps(site: &Site, script: &str) {
    std::fs::write(site.path("dump.sh"), script).unwrap();
}

/// From here on the dump waits.
fn gate(site: &Site) {
    sh(site.dir.path(), "mkfifo gate", &[]);
    let folder = site.dir.path().display();
    dumps(
        site,
        &format!(
            "grep ^Sig /proc/self/status >{folder}/reached.new; mv {folder}/reached.new \
        {folder}/reached; read x <{folder}/gate; echo end"
        ),
    );
}

fn reached(site: &Site, backup: Backup) -> Running {
    let running = backup.spawn();
    until("it began", || site.path("reached").exists());
    running
}

fn run(site: &Site) -> Backup {
    site.backup(["--strategy", "daily", "--json"])
}

#[test]
fn every_asking_signal_ends_a_run_in_order() {
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::XCPU] {
        let site = site();
        site.run(0);
        let before = files(&site.path("store"));
        std::fs::remove_file(site.path("after")).unwrap();
        gate(&site);
        let running = reached(&site, run(&site).with_signals(&[]));
        // A kernel and a shell send one each.
        running.signal(signal);
        running.signal(signal);
        let ended = running.wait().expect(1);
        assert_eq!(ended.json()["outcome"], "cancelled", "{signal:?} {ended}");
        assert!(site.path("after").exists() && site.path("on-failure").exists(), "{signal:?}");
        assert_eq!(files(&site.path("store")), before, "nothing is left of it");
        let runs = site.backup(["status", "--json"]).run().json();
        assert!(runs.to_string().contains("cancelled"), "it is recorded: {runs:#}");
    }
}

#[test]
fn a_hangup_ends_a_drill_in_order() {
    let site = site();
    site.run(0);
    gate(&site);
    let drill = site.backup(["drill", "--strategy", "daily", "--json"]).with_signals(&[]);
    let running = reached(&site, drill);
    running.signal(Signal::HUP);
    running.wait().expect(1);
    let left = sh(site.dir.path(), "find state/work -mindepth 1", &[]);
    assert_eq!(left, "", "its scratch folders are gone");
}

#[test]
fn signals_that_the_caller_ignores_stay_ignored() {
    for (name, signal) in [("HUP", Signal::HUP), ("INT", Signal::INT), ("QUIT", Signal::QUIT)] {
        let site = site();
        gate(&site);
        let ignoring = run(&site).with_signals(&[&format!("--ignore-signal={name}")]);
        let running = reached(&site, ignoring);
        running.signal(signal);
        std::fs::write(site.path("gate"), "go\n").unwrap();
        let ended = running.wait().expect(0);
        assert_eq!(ended.json()["outcome"], "success", "{name}");
    }
}

/// The masks of a child, as `/proc` shows them.
fn masks(site: &Site) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(site.path("reached")).unwrap();
    let line = |line: &str| {
        let (name, mask) = line.split_once(':').unwrap();
        (name.to_owned(), u64::from_str_radix(mask.trim(), 16).unwrap())
    };
    text.lines().filter(|line| line.contains("Ign") || line.contains("Blk")).map(line).collect()
}

#[test]
fn children_inherit_ignored_signals_and_no_blocked_ones() {
    for (args, hup) in [(&[][..], 0), (&["--ignore-signal=HUP"], 1)] {
        let site = site();
        gate(&site);
        let args = [&["--block-signal=TERM"][..], args].concat();
        let running = reached(&site, run(&site).with_signals(&args));
        std::fs::write(site.path("gate"), "go\n").unwrap();
        running.wait().expect(0);
        let [(_, blocked), (_, ignored)] = &masks(&site)[..] else { panic!("two masks") };
        // SIGHUP and SIGPIPE: ours is ignored, and no child's.
        assert_eq!((*blocked, ignored & 1, ignored & 1 << 12), (0, hup, 0));
    }
}

#[test]
fn a_scheduler_beneath_nohup_reloads() {
    let site = site();
    let text = std::fs::read_to_string(site.config()).unwrap();
    let drill = "[strategies.daily.drill]";
    let scheduled = text.replace(drill, &format!("schedule = \"0 0 1 1 *\"\n{drill}"));
    std::fs::write(site.config(), scheduled).unwrap();
    let mut daemon = Daemon::start_by(&site, &["--ignore-signal=HUP"]);
    daemon.says("waiting");
    daemon.holds_the_lock(&site);
    site.backup(["reload"]).expect(0);
    daemon.says("reading the configuration again");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ends(), Some(0));
}

/// Beyond `ulimit -f` the system sends a signal that ends a program by default.
#[test]
fn a_limit_of_file_sizes_is_an_error() {
    let site = site();
    dumps(&site, "head -c 3000000 /dev/urandom");
    let limited = r#"ulimit -f 1000; "$@" >out || echo $?"#;
    let program = env!("CARGO_BIN_EXE_backup");
    let args = ["--config", "app.toml", "--strategy", "daily", "--json"];
    let args: Vec<&std::ffi::OsStr> =
        [program].into_iter().chain(args).map(std::ffi::OsStr::new).collect();
    assert_eq!(sh(site.dir.path(), limited, &args), "1\n");
    let report: Value = serde_json::from_slice(&std::fs::read(site.path("out")).unwrap()).unwrap();
    assert_eq!(report["outcome"], "failed", "{report:#}");
    assert!(site.path("after").exists() && site.path("on-failure").exists());
}
