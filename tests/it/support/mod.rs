//! What the tests share: the servers that `tests/run` started, the program as a process, folders,
//! other programs as judges.
//!
//! It knows nothing of what is promised: that is in the tests.
#![allow(dead_code, reason = "helpers are written for all tests, those to come included")]

pub mod container;
pub mod daemon;
pub mod forge;
pub mod own_cluster;
pub mod plant;
pub mod postgres;
pub mod s3_proxy;
pub mod shop;
pub mod site;
pub mod small_server;
pub mod sources;
pub mod stores;
pub mod told;

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A variable that `tests/servers` sets. A missing server fails the test; it is never a reason to
/// skip it.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "`{name}` is not set: run tests/run, or source the file that `tests/servers start` \
            prints"
        )
    })
}

/// A PostgreSQL server.
pub struct Postgres {
    /// Of its superuser, password and the database `postgres` included.
    pub url: String,
    /// The folder with the clients of its major version.
    pub bin: PathBuf,
}

/// The server of that major version: 15, 16 or 18.
pub fn postgres(major: u32) -> Postgres {
    Postgres {
        url: variable(&format!("HOLDFAST_TEST_PG{major}_URL")),
        bin: variable(&format!("HOLDFAST_TEST_PG{major}_BIN")).into(),
    }
}

/// An S3 server, by the name in its variable: `S3S`, `SEAWEEDFS`, `MOTO`. One key is valid on all.
pub struct S3 {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
}

/// The S3 server of that name.
pub fn s3(name: &str) -> S3 {
    S3 {
        endpoint: variable(&format!("HOLDFAST_TEST_{name}_ENDPOINT")),
        access_key: variable("HOLDFAST_TEST_S3_ACCESS_KEY"),
        secret_key: variable("HOLDFAST_TEST_S3_SECRET_KEY"),
        region: variable("HOLDFAST_TEST_S3_REGION"),
    }
}

/// A folder that is removed at the end of the test.
pub fn temp() -> TempDir {
    tempfile::Builder::new().prefix("holdfast-test.").tempdir().unwrap()
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A promise that cannot be tested without root fails there, and says why.
#[track_caller]
pub fn needs_root(why: &str) {
    assert!(is_root(), "run this test as root: {why}");
}

/// How long a program may take in a test. A test that needs more says so.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The program under test, about to be run in a cleared environment.
pub struct Backup {
    command: Command,
    patience: Duration,
}

/// `backup ARGS...`
pub fn backup<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Backup {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backup"));
    command.env_clear().args(args);
    for name in ["PATH", "TMPDIR", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Backup { command, patience: PATIENCE }
}

impl Backup {
    /// With one more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// With more arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// With a variable in its environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Run in that folder.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Run as an ordinary user without any rights, who is given `folder` and all that is in it, and
    /// a copy of the program there.
    pub fn with_user(self, uid: u32, folder: &Path) -> Self {
        needs_root("another user is needed");
        let program = folder.join("program");
        std::fs::copy(self.command.get_program(), &program).unwrap();
        sh(folder, "chown -Rh \"$1:$1\" .", &[uid.to_string().as_ref()]);
        let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
        let rights = ["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"];
        let rights = rights.map(str::to_owned);
        self.through("setpriv", ids.into_iter().chain(rights), &program)
    }

    /// Started by `env` with these arguments, such as `--ignore-signal=HUP`; whatever started this
    /// test, no other signal is ignored.
    pub fn with_signals(self, args: &[&str]) -> Self {
        let default = "--default-signal=HUP,INT,QUIT,TERM,XFSZ,XCPU".to_owned();
        let args = [default].into_iter().chain(args.iter().map(|arg| (*arg).to_owned()));
        let program = PathBuf::from(self.command.get_program());
        self.through("env", args, &program)
    }

    fn through(
        mut self,
        starter: &str,
        args: impl IntoIterator<Item = String>,
        program: &Path,
    ) -> Self {
        let mut command = Command::new(starter);
        command
            .args(args)
            .arg(program)
            .args(self.command.get_args())
            .env_clear()
            .envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.command = command;
        self
    }

    /// As a user who may have so many processes and threads, after [`with_user`](Self::with_user).
    pub fn with_processes(mut self, most: u32) -> Self {
        let limit = ["prlimit".to_owned(), format!("--nproc={most}")];
        let args: Vec<_> = self.command.get_args().map(ToOwned::to_owned).collect();
        let at = args.iter().position(|arg| arg.as_encoded_bytes().ends_with(b"/program"));
        let (before, after) = args.split_at(at.unwrap());
        let mut command = Command::new(self.command.get_program());
        command
            .args(before)
            .args(limit)
            .args(after)
            .env_clear()
            .envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.command = command;
        self
    }

    /// Given that long.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Ran {
        self.spawn().wait()
    }

    /// Runs it to its end, which must have that exit code.
    pub fn expect(self, code: i32) -> Ran {
        self.run().expect(code)
    }

    /// Starts it, for a test that does something to it meanwhile.
    pub fn spawn(mut self) -> Running {
        let line = format!("{:?}", self.command);
        let child = self.command.spawn().unwrap_or_else(|error| {
            panic!(
                "Could not start {line}: \
            {error}"
            )
        });
        Running::new(line, child, self.patience)
    }
}

/// A program that runs. Dropped, it is killed.
pub struct Running {
    line: String,
    pid: rustix::process::Pid,
    ended: mpsc::Receiver<(ExitStatus, Vec<u8>, Vec<u8>)>,
    patience: Duration,
    over: bool,
}

impl Running {
    fn new(line: String, mut child: Child, patience: Duration) -> Self {
        let pid = rustix::process::Pid::from_child(&child);
        let (sender, ended) = mpsc::channel();
        let stdout = drain(child.stdout.take().unwrap());
        let stderr = drain(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            let outputs = (stdout.join().unwrap(), stderr.join().unwrap());
            let status = child.wait().unwrap();
            let _ = sender.send((status, outputs.0, outputs.1));
        });
        Self { line, pid, ended, patience, over: false }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid, signal).unwrap();
    }

    /// Waits for its end; fails the test when it takes too long.
    pub fn wait(mut self) -> Ran {
        let end = self.ended.recv_timeout(self.patience);
        let Ok((status, stdout, stderr)) = end else {
            panic!("It did not end within {:?}: {}", self.patience, self.line);
        };
        self.over = true;
        Ran { line: std::mem::take(&mut self.line), status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
        }
    }
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

/// A program that ended.
pub struct Ran {
    line: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    /// What came of a command that is not `backup` itself.
    pub fn of(mut command: Command) -> Self {
        let line = format!("{command:?}");
        let output = command.stdin(Stdio::null()).output().unwrap();
        Self { line, status: output.status, stdout: output.stdout, stderr: output.stderr }
    }

    /// Its exit code; none when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What it wrote to stdout, which must be UTF-8.
    pub fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// What it wrote to stderr.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Its stdout, one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| {
            panic!(
                "stdout is not JSON: \
            {error}\n{self}"
            )
        })
    }

    /// Itself, when it ended with that exit code.
    pub fn expect(self, code: i32) -> Self {
        assert!(self.code() == Some(code), "expected exit code {code}\n{self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let out = String::from_utf8_lossy(&self.stdout);
        write!(f, "{}\n{}\n--- stdout\n{out}\n--- stderr\n{}", self.line, self.status, self.err())
    }
}

/// What a shell script prints on stdout; the script is a judge, so its failure fails the test. Run
/// by bash in `dir`, every command of a pipe counts; `args` are `$1`, `$2`, ….
pub fn sh(dir: &Path, script: &str, args: &[&OsStr]) -> String {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script, "judge"])
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("Could not start bash: {error}"));
    assert!(
        output.status.success(),
        "{script}\n{args:?}\n{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// As [`sh`], in a mount namespace of its own: whatever the script mounts is gone when it ends,
/// however it ends. It has no single quotes.
pub fn sh_in_mounts(dir: &Path, script: &str, args: &[&OsStr]) -> String {
    needs_root("it mounts file systems");
    let script = format!("unshare --mount bash -euo pipefail -c '{script}' judge \"$@\"");
    sh(dir, &script, args)
}

/// Every file under `dir` with its content, by its path relative to `dir`.
pub fn files(dir: &Path) -> std::collections::BTreeMap<OsString, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                let path = entry.path();
                let name = path.strip_prefix(dir).unwrap().as_os_str().to_owned();
                all.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// A new age key: the file of the identity, and the recipient.
pub fn age_key(dir: &Path, name: &str) -> (PathBuf, String) {
    let file = dir.join(name);
    sh(dir, r#"age-keygen -o "$1" 2>/dev/null"#, &[file.as_os_str()]);
    let recipient = sh(dir, r#"age-keygen -y "$1""#, &[file.as_os_str()]);
    (file, recipient.trim().to_owned())
}

/// A place where something is mounted, until this is dropped.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
