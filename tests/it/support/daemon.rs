//! `backup schedule` as a process, what it logs, and the wall clock that it sees.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use super::site::Site;
use super::{Backup, PATIENCE, temp};

/// A wall clock that the test sets, for processes that are started with it. It goes on by itself.
pub struct WallClock {
    folder: tempfile::TempDir,
}

impl WallClock {
    /// A clock that shows `at`.
    pub fn at(at: DateTime<Utc>) -> Self {
        let folder = temp();
        let made = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(folder.path().join("clock.so"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/clock.c"))
            .status()
            .unwrap();
        assert!(made.success());
        let clock = Self { folder };
        std::fs::write(clock.file(), [0; 8]).unwrap();
        clock.set(at);
        clock
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// Sets it.
    pub fn set(&self, at: DateTime<Utc>) {
        use std::os::unix::fs::FileExt as _;
        let offset = (at - Utc::now()).num_seconds();
        // In place: the processes have it mapped.
        let file = std::fs::OpenOptions::new().write(true).open(self.file()).unwrap();
        file.write_all_at(&offset.to_ne_bytes(), 0).unwrap();
    }

    /// What it shows.
    pub fn now(&self) -> DateTime<Utc> {
        let offset = i64::from_ne_bytes(std::fs::read(self.file()).unwrap().try_into().unwrap());
        Utc::now() + TimeDelta::seconds(offset)
    }

    /// The variables for a process that is to see it.
    pub fn variables(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", self.folder.path().join("clock.so")), ("HOLDFAST_TEST_CLOCK", self.file())]
    }

    /// `backup` with it.
    pub fn shown_to(&self, backup: Backup) -> Backup {
        self.variables().into_iter().fold(backup, |backup, (name, value)| backup.env(name, value))
    }
}

/// `backup schedule`, and what it logs, a line at a time.
pub struct Daemon {
    child: Child,
    lines: mpsc::Receiver<String>,
    pub seen: Vec<String>,
}

impl Daemon {
    /// The scheduler of `site`.
    pub fn start(site: &Site) -> Self {
        Self::start_with(site, None, &[])
    }

    /// The same, started by `env` with these arguments.
    pub fn start_by(site: &Site, env: &[&str]) -> Self {
        Self::start_with(site, None, env)
    }

    /// The same, with a clock of its own.
    pub fn start_at(site: &Site, clock: &WallClock) -> Self {
        Self::start_with(site, Some(clock), &[])
    }

    fn start_with(site: &Site, clock: Option<&WallClock>, env: &[&str]) -> Self {
        let mut command = Command::new("env");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", site.dir.path())
            .envs(clock.iter().flat_map(|clock| clock.variables()))
            .args(env)
            .arg(env!("CARGO_BIN_EXE_backup"))
            .args(["schedule", "--config"])
            .arg(site.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok())
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line with these words.
    pub fn says(&mut self, words: &str) -> String {
        self.says_one_of(&[words])
    }

    /// Waits for a line with any of these words.
    pub fn says_one_of(&mut self, words: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("{words:?}: not said in {:#?}", self.seen)
            };
            self.seen.push(line.clone());
            if words.iter().any(|words| line.contains(words)) {
                return line;
            }
        }
    }

    /// Waits until it says when `strategy` runs next, and gives that.
    pub fn next(&mut self, strategy: &str) -> DateTime<Utc> {
        loop {
            let line = self.says("\"waiting\"");
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["strategy"] == strategy {
                return line["next"]
                    .as_str()
                    .unwrap()
                    .replace(" UTC", "Z")
                    .replace(' ', "T")
                    .parse()
                    .unwrap();
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it is the scheduler of `site`.
    pub fn holds_the_lock(&self, site: &Site) {
        let holder = format!("{} ", self.pid());
        until("the scheduler holds its lock", || {
            std::fs::read_to_string(site.path("state/scheduler.lock"))
                .is_ok_and(|text| text.starts_with(&holder))
        });
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .unwrap();
    }

    /// Waits for its end, and gives the exit code.
    pub fn ends(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        // Its stderr is closed when it ends.
        while let Ok(line) =
            self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            self.seen.push(line);
        }
        self.child.wait().unwrap().code()
    }

    /// Asks it to end, which it must do in order.
    pub fn stop(mut self) -> Vec<String> {
        self.signal(rustix::process::Signal::TERM);
        assert_eq!(self.ends(), Some(0), "{:#?}", self.seen);
        std::mem::take(&mut self.seen)
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.signal(rustix::process::Signal::KILL);
        self.ends();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `is` says yes.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
