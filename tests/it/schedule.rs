//! The scheduler as a process: it runs what is due, once, survives what goes wrong, and ends when it is asked to.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use holdfast::model::Cancel;
use holdfast::storage::StorageConfig;
use holdfast::storage::local::LocalConfig;

use crate::support::PATIENCE;
use crate::support::plant::{days_ago, plant};
use crate::support::site::Site;

/// One source that is a script of the test, with the schedule put in for `SCHEDULE`.
const CONFIGURATION: &str = r#"
[sources.dump]
type = "command"
command = ["sh", "@/dump.sh"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["dump"]
storages = ["local"]
schedule = "SCHEDULE"
"#;

fn site(schedule: &str) -> Site {
    let site = Site::new(&CONFIGURATION.replace("SCHEDULE", schedule));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site
}

/// `backup schedule`, and what it logs, a line at a time.
struct Daemon {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Daemon {
    fn start(site: &Site) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_backup"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", site.dir.path())
            .args(["schedule", "--json", "--config"])
            .arg(site.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line with these words.
    fn says(&mut self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { panic!("{words}: not said in {:#?}", self.seen) };
            self.seen.push(line.clone());
            if line.contains(words) {
                return line;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end, and gives the exit code.
    fn ends(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        // Its stderr is closed when it ends.
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push(line);
        }
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_runs_at_each_time_of_the_schedule_and_ends_when_asked_to() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let site = site("*/2 * * * * *");
        let mut daemon = Daemon::start(&site);
        for _ in 0..3 {
            daemon.says("run committed");
        }
        daemon.signal(signal);
        assert_eq!(daemon.ends(), Some(0), "{:#?}", daemon.seen);
        let ids = site.ids();
        assert!(ids.len() >= 3, "{ids:?}");
        site.backup(["verify", "--read-data"]).expect(0);
    }
}

#[test]
fn a_run_that_fails_does_not_end_it() {
    let site = site("*/2 * * * * *");
    std::fs::write(site.path("dump.sh"), "echo broken >&2; exit 1").unwrap();
    let mut daemon = Daemon::start(&site);
    assert!(daemon.says("nothing was committed").contains("broken"));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    daemon.says("run committed");
    assert!(!site.ids().is_empty());
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_once_also_when_the_catalog_is_lost() {
    let site = site("0 0 * * *");
    let config = LocalConfig::from_path(site.path("store"));
    let storage = StorageConfig::Local(config).open(&Cancel::new()).await.unwrap();
    plant(&*storage, "app", "daily", [days_ago(5), days_ago(4)]).await;
    let mut daemon = Daemon::start(&site);
    daemon.says("a run was missed");
    daemon.says("run committed");
    daemon.says("waiting");
    assert_eq!(site.ids().len(), 3, "four days were missed, and are one run");
    daemon.signal(rustix::process::Signal::KILL);
    daemon.ends();
    // A restart does not run it again.
    let mut daemon = Daemon::start(&site);
    daemon.says("waiting");
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.ends(), Some(0));
    assert_eq!(site.ids().len(), 3);
}

#[tokio::test]
async fn what_was_missed_is_left_when_the_strategy_says_so_and_a_first_start_misses_nothing() {
    for planted in [true, false] {
        let site = Site::new(&(CONFIGURATION.replace("SCHEDULE", "0 0 * * *") + "missed = \"skip\"\n"));
        if planted {
            let config = LocalConfig::from_path(site.path("store"));
            let storage = StorageConfig::Local(config).open(&Cancel::new()).await.unwrap();
            plant(&*storage, "app", "daily", [days_ago(5)]).await;
        } else {
            site.configure(&CONFIGURATION.replace("SCHEDULE", "0 0 * * *"));
        }
        let mut daemon = Daemon::start(&site);
        daemon.says("waiting");
        daemon.signal(rustix::process::Signal::TERM);
        assert_eq!(daemon.ends(), Some(0));
        assert_eq!(site.ids().len(), usize::from(planted));
    }
}

#[test]
fn asked_to_stop_it_cancels_the_run_that_is_under_way() {
    let site = site("* * * * * *");
    std::fs::write(site.path("dump.sh"), format!("touch {}; sleep 1000", site.path("begun").display())).unwrap();
    let mut daemon = Daemon::start(&site);
    daemon.says("run begins");
    let deadline = Instant::now() + PATIENCE;
    while !site.path("begun").exists() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    let asked = Instant::now();
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.ends(), Some(0), "{:#?}", daemon.seen);
    assert!(asked.elapsed() < Duration::from_secs(30));
    assert!(daemon.seen.iter().any(|line| line.contains("cancelled, nothing was committed")), "{:#?}", daemon.seen);
    assert!(site.folders().is_empty(), "nothing is left of it");
}

#[test]
fn without_anything_to_run_it_says_so() {
    let site = Site::new(&CONFIGURATION.replace("schedule = \"SCHEDULE\"\n", ""));
    assert!(site.backup(["schedule"]).expect(2).err().contains("Nothing is scheduled"));
    site.configure(&(CONFIGURATION.replace("SCHEDULE", "0 0 * * *") + "active = false\n"));
    assert!(site.backup(["schedule"]).expect(2).err().contains("Nothing is scheduled"));
}
