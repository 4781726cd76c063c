//! A throwaway cluster: made from installed binaries in a private folder, reached by a socket in it
//! only, and gone with it.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, lchown,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::client::{Client, Major};
use super::jail::{self, User};
use crate::model::{DatabaseUrl, Secret};
use crate::source::process::ProcessError;
use crate::source::scratch::{ScratchPlace, keep_folder, remove_folder};
use crate::source::{Context, SourceError};

/// What begins the names of the cluster's own roles. The rest is random, so that no role of a
/// source is one of them.
const ROLE: &str = "holdfast_";
/// The folder of a cluster in a scratch folder.
const FOLDER: &str = "cluster";
/// The longest path that a socket can have.
const SOCKET_LIMIT: usize = 107;
const SOCKET: &str = ".s.PGSQL.5432";
/// How long a server may take to start, in seconds.
const START_SECONDS: &str = "120";
/// How long a server may take to end at once, before it is killed.
const STOP: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };
/// No write-ahead log is kept for a crash, which this cluster does not outlive. It listens on its
/// socket only.
const SETTINGS: [&str; 13] = [
    "listen_addresses=",
    "port=5432",
    "unix_socket_permissions=0700",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "wal_level=minimal",
    "max_wal_senders=0",
    "max_wal_size=2GB",
    "max_connections=40",
    "maintenance_work_mem=128MB",
    "autovacuum=off",
    "logging_collector=off",
];

/// A server that was started for one drill. It runs on until it is stopped, by this process or by
/// the next drill.
pub(super) struct Cluster {
    folder: PathBuf,
    /// The scratch folder, where it is not the drill's own.
    apart: Option<PathBuf>,
    /// Whether it goes on when this is dropped.
    stays: bool,
    pub(super) superuser: Login,
    /// Who is no superuser: as that one a drill restores and asks.
    pub(super) restorer: Login,
}

/// A role that may log in.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) name: String,
    pub(super) password: Secret,
}

impl Login {
    fn random() -> Result<Self, SourceError> {
        let number = || {
            getrandom::u64().map_err(|error| {
                SourceError::Unsuitable(format!("The system gives no random numbers: {error}"))
            })
        };
        Ok(Self {
            name: format!("{ROLE}{:016x}", number()?),
            password: Secret::new(format!("{:016x}{:016x}", number()?, number()?)),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.stays {
            // What cannot be ended or removed now, the next drill finds.
            let _ = self.stop();
        }
    }
}

impl Cluster {
    /// Makes a cluster of `major`, or of the nearest newer one that is installed, for a database
    /// with so many relations, and starts it.
    pub(super) fn start(
        cx: &Context,
        major: Option<Major>,
        relations: u64,
        place: &ScratchPlace,
    ) -> Result<Self, SourceError> {
        let config = &place.config.postgres;
        let major = major.unwrap_or(Major::OLDEST);
        let initdb = Client::choose_server(cx, config.server_dir.as_deref(), major)?;
        let user = jail::user(config.run_as.as_deref())?;
        let (parent, apart) = match user {
            None => (place.folder.join(cx.name.as_str()), None),
            // Nobody else may look into our own folders.
            Some(_) => {
                let name = place.folder.file_name().unwrap_or_default().to_string_lossy();
                // Beside the drill's own, which stays ours even where both lie in one folder.
                let apart = place.shared_folder.join(format!("{name}_pg"));
                (apart.join(cx.name.as_str()), Some(apart))
            }
        };
        let cluster = Self {
            folder: parent.join(FOLDER),
            apart,
            stays: false,
            superuser: Login::random()?,
            restorer: Login::random()?,
        };
        cluster.make(cx, &initdb, &parent, user, relations)?;
        Ok(cluster)
    }

    fn make(
        &self,
        cx: &Context,
        initdb: &Client,
        parent: &Path,
        user: Option<User>,
        relations: u64,
    ) -> Result<(), SourceError> {
        let folder = &self.folder;
        let io = |attempt: &'static str, path: &Path| {
            let path = path.display().to_string();
            move |error| SourceError::Io { attempt, path, error }
        };
        if folder.join(SOCKET).as_os_str().len() > SOCKET_LIMIT {
            return Err(SourceError::Unsuitable(format!(
                "`{}` is too long for the path of a socket: set the drill's `work_dir` to a \
                 shorter one",
                folder.display()
            )));
        }
        // Of all but the innermost nobody else may change anything: there a name could be given to
        // something else while we are at work.
        for path in self.apart.iter().map(PathBuf::as_path).chain([parent]) {
            DirBuilder::new().mode(0o700).create(path).map_err(io("create", path))?;
            if user.is_some() {
                std::fs::set_permissions(path, Permissions::from_mode(0o711))
                    .map_err(io("open", path))?;
            }
        }
        DirBuilder::new().mode(0o700).create(folder).map_err(io("create", folder))?;
        if let Some((uid, gid)) = user {
            lchown(folder, Some(uid), Some(gid)).map_err(io("give away", folder))?;
        }
        let call = |tool: &'static str, attempt: &str| {
            jail::confined(cx, user, &initdb.sibling(tool).file(), attempt)
                .working_dir(Some(parent.to_owned()))
                .variable("LC_ALL", "C")
                .of_postgres(&[])
                .when_missing("Install the PostgreSQL server of that major version, all of it")
        };
        // Not even the user that the server runs as gets in without it.
        let password = parent.join("password");
        let mut secret = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&password)
            .map_err(io("create", &password))?;
        secret
            .write_all(self.superuser.password.expose().as_bytes())
            .map_err(io("write", &password))?;
        if let Some((uid, gid)) = user {
            fchown(&secret, Some(uid), Some(gid)).map_err(io("give away", &password))?;
        }
        let made = call("initdb", "make a cluster for the drill")
            .args([
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
                "--no-instructions",
            ])
            .args(["--username", &self.superuser.name, "--pgdata"])
            .args([folder.as_os_str(), "--pwfile".as_ref(), password.as_os_str()])
            .capture(cx, 1 << 20);
        std::fs::remove_file(&password).map_err(io("remove", &password))?;
        made?;
        // As options, and not in its file: that is another user's, and may lead anywhere by the
        // time we write.
        let sockets = format!(
            "unix_socket_directories=\"{}\"",
            folder.display().to_string().replace('"', "\"\"")
        );
        let options = SETTINGS
            .iter()
            .map(|setting| (*setting).to_owned())
            .chain([sockets, format!("max_locks_per_transaction={}", locks(relations))]);
        let options: Vec<String> =
            options.map(|setting| format!("-c {}", shell_quoted(&setting))).collect();
        let log = folder.join("log");
        let started = call("pg_ctl", "start the drill's cluster")
            .args(["start", "--wait", "--silent", "--timeout", START_SECONDS])
            .args(["--pgdata".as_ref(), folder.as_os_str(), "--log".as_ref(), log.as_os_str()])
            .args(["--options", &options.join(" ")])
            .silent_for(Some(Duration::from_secs(180)))
            .capture(cx, 1 << 20);
        started.map(drop).map_err(|error| with_log(error, &log))
    }

    /// The address of its database `postgres`, for that role.
    pub(super) fn url(&self, login: &Login) -> Result<DatabaseUrl, SourceError> {
        let mut url = url::Url::parse("postgresql:///postgres").map_err(|error| {
            SourceError::Unsuitable(format!(
                "The address of the cluster cannot be written: {error}"
            ))
        })?;
        url.query_pairs_mut()
            .append_pair("host", &self.folder.display().to_string())
            .append_pair("port", "5432")
            .append_pair("user", &login.name);
        // `+` means itself in an address of PostgreSQL.
        let query = url.query().map(|query| query.replace('+', "%20"));
        url.set_query(query.as_deref());
        let url = DatabaseUrl::try_from(url.to_string()).map_err(SourceError::Unsuitable)?;
        Ok(url.with_password(login.password.expose()))
    }

    /// Lets it go on; how to end and remove it.
    pub(super) fn keep(&mut self) -> Result<String, SourceError> {
        if let Some(apart) = &self.apart {
            keep_folder(apart)?;
        }
        self.stays = true;
        let pid = pid(&self.folder)
            .map_or_else(|| "PID".to_owned(), |pid| pid.as_raw_nonzero().to_string());
        Ok(format!(
            "kill -QUIT {pid} && rm -rf {}",
            self.apart.as_ref().unwrap_or(&self.folder).display()
        ))
    }

    /// Stops it and removes what is not in the drill's own folder.
    pub(super) fn stop(&mut self) -> Result<(), SourceError> {
        stop(&self.folder)?;
        self.apart.as_ref().map_or(Ok(()), |apart| remove_folder(apart, stop_clusters))
    }
}

/// How many locks each session may have, so that one that restores so many relations in one
/// transaction has enough: for each its own and those of its TOAST table. All sessions share them.
fn locks(relations: u64) -> u64 {
    const SESSIONS: u64 = 40;
    const DEFAULT: u64 = 64;
    relations.saturating_mul(4).div_ceil(SESSIONS).clamp(DEFAULT, 1 << 20)
}

/// A text as one word of the shell by which `pg_ctl` starts the server.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A file in the cluster's folder. It is another user's, and may have become a link to something
/// that is not theirs to read, or something that never ends.
fn open_theirs(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, path, flags, Mode::empty()).ok()?);
    file.metadata().is_ok_and(|found| found.is_file()).then_some(file)
}

/// The error with the end of what the server said.
fn with_log(error: SourceError, log: &Path) -> SourceError {
    let tail = || {
        let mut file = open_theirs(log)?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2_000))).ok()?;
        let mut text = Vec::new();
        file.take(2_000).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    };
    match (error, tail()) {
        (
            SourceError::Process(ProcessError::Exit { attempt, program, status, said }),
            Some(tail),
        ) => {
            let said = said.followed_by(&tail);
            ProcessError::Exit { attempt, program, status, said }.into()
        }
        (error, _) => error,
    }
}

/// The process of the server that runs in `folder`, by its own note; whether it still is that one
/// is seen by the folder it works in.
fn pid(folder: &Path) -> Option<Pid> {
    let mut note = String::new();
    open_theirs(&folder.join("postmaster.pid"))?.take(4096).read_to_string(&mut note).ok()?;
    // One that is not a server yet, which makes the cluster, writes its number with a minus.
    let pid =
        note.lines().next()?.trim().parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)?;
    let works_in = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
    (works_in == folder.canonicalize().ok()?).then_some(pid)
}

/// Ends the server that runs in `folder`, if one does, and waits for that.
fn stop(folder: &Path) -> Result<(), SourceError> {
    let Some(pid) = pid(folder) else { return Ok(()) };
    let failed = |error: rustix::io::Errno| SourceError::Io {
        attempt: "stop the cluster in",
        path: folder.display().to_string(),
        error: error.into(),
    };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    // At once, and without a word to the disk: nothing of it is needed any more.
    for signal in [Signal::QUIT, Signal::KILL] {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&STOP)).map_err(failed)? > 0 {
            return Ok(());
        }
    }
    Err(failed(rustix::io::Errno::TIMEDOUT))
}

/// Stops every cluster in a scratch folder.
pub(in crate::source) fn stop_clusters(scratch: &Path) -> Result<(), SourceError> {
    let Ok(entries) = std::fs::read_dir(scratch) else { return Ok(()) };
    for entry in entries.flatten() {
        let folder = entry.path().join(FOLDER);
        if folder.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            stop(&folder)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_another_process_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(pid(folder.path()), None);
        // This process works elsewhere; the other is none yet.
        for note in [format!("{}\n", std::process::id()), "-17\n".to_owned(), String::new()] {
            std::fs::write(folder.path().join("postmaster.pid"), note).unwrap();
            assert_eq!(pid(folder.path()), None);
        }
        stop(folder.path()).unwrap();
    }
}
