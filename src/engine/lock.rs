//! One writer at a time of an instance's strategy: locks on this machine, heartbeats across
//! machines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};

use super::{EngineError, make_private_file, make_private_folder};
use crate::model::{Name, SnapshotId};
use crate::storage::{Storage, StorageError};

/// How often a run renews its heartbeat.
pub(super) const BEAT: Duration = Duration::from_secs(60);
/// A run of another machine whose heartbeat is younger, by the storage's clock, is taken to be
/// alive.
pub(super) const LEASE: TimeDelta = TimeDelta::minutes(5);
/// What another machine left unfinished is collected when its heartbeat is older, by the storage's
/// clock.
pub(super) const ABANDONED: TimeDelta = TimeDelta::hours(24);

/// The lock of the scheduler, in the state folder.
const SCHEDULER: &str = "scheduler.lock";

/// The lock of one strategy in the state folder, held while it lives, by who writes or deletes
/// snapshots. The kernel lets it go when the process dies, however it dies.
pub(super) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock of `strategy`.
    pub(super) fn take(
        state_dir: &Path,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Self, EngineError> {
        let (file, path) = open_lock(state_dir, &format!("{instance}.{strategy}.lock"))?;
        taken(file.try_lock(), path, strategy, "it")?;
        Ok(Self { _file: file })
    }
}

/// Keeps a strategy's snapshots from being deleted while they are read: shared by those who read,
/// exclusive for who deletes. A run takes neither: who reads for hours is not in its way.
pub(super) struct ReadLock {
    _file: File,
}

impl ReadLock {
    fn open(
        state_dir: &Path,
        instance: &Name,
        strategy: &Name,
    ) -> Result<(File, PathBuf), EngineError> {
        open_lock(state_dir, &format!("{instance}.{strategy}.read.lock"))
    }

    /// Takes it to read. None where the state folder is somebody else's: who may only read a
    /// storage reads all the same.
    ///
    /// # Errors
    /// [`EngineError::Locked`] while snapshots are deleted.
    pub(super) fn share(
        state_dir: &Path,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Option<Self>, EngineError> {
        if state_dir.as_os_str().is_empty() {
            return Ok(None);
        }
        let (file, path) = match Self::open(state_dir, instance, strategy) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!("reading without a lock: {error}");
                return Ok(None);
            }
        };
        taken(file.try_lock_shared(), path, strategy, "it deletes snapshots, and")?;
        Ok(Some(Self { _file: file }))
    }

    /// Takes it to delete.
    ///
    /// # Errors
    /// [`EngineError::Locked`] while a snapshot is read.
    pub(super) fn exclude(
        state_dir: &Path,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Self, EngineError> {
        let (file, path) = Self::open(state_dir, instance, strategy)?;
        taken(file.try_lock(), path, strategy, "it reads a snapshot, and")?;
        Ok(Self { _file: file })
    }
}

/// Held by a drill of a strategy while it lives: what another drill of it left behind has no owner
/// any more.
pub(super) struct DrillLock {
    file: File,
    path: PathBuf,
}

impl DrillLock {
    /// Takes it.
    ///
    /// # Errors
    /// [`EngineError::Locked`] while another drill of the strategy is under way.
    pub(super) fn take(
        state_dir: &Path,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Self, EngineError> {
        let (file, path) = open_lock(state_dir, &format!("{instance}.{strategy}.drill.lock"))?;
        taken(file.try_lock(), path.clone(), strategy, "a drill")?;
        Ok(Self { file, path })
    }

    /// Where drills before this one were: folders, and servers by their masked addresses.
    pub(super) fn noted(&mut self) -> (Vec<PathBuf>, Vec<String>) {
        let (mut folders, mut servers) = (Vec::new(), Vec::new());
        let mut text = String::new();
        // What cannot be read is as good as not written.
        let _ = self.file.rewind().and_then(|()| self.file.read_to_string(&mut text));
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("folder", path)) => folders.push(PathBuf::from(path)),
                Some(("server", address)) => servers.push(address.to_owned()),
                _ => {}
            }
        }
        (folders, servers)
    }

    /// Notes where this one is, for those after it.
    ///
    /// # Errors
    /// [`EngineError::State`].
    pub(super) fn note(
        &mut self,
        folders: &[PathBuf],
        server: Option<&str>,
    ) -> Result<(), EngineError> {
        let mut lines: Vec<String> =
            folders.iter().map(|folder| format!("folder {}", folder.display())).collect();
        lines.extend(server.map(|server| format!("server {server}")));
        lines.sort();
        lines.dedup();
        let text = lines.join("\n") + "\n";
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| self.file.write_all(text.as_bytes()));
        written.map_err(|error| EngineError::State {
            attempt: "write",
            path: self.path.clone(),
            error,
        })
    }
}

/// Whether somebody on this machine runs the strategy, or deletes of it, right now. The lock is not
/// tried: one that is tried is taken for a moment, and a run that begins in that moment would find
/// it so.
pub(super) fn is_running(state_dir: &Path, instance: &Name, strategy: &Name) -> bool {
    use std::os::linux::fs::MetadataExt as _;
    let path = state_dir.join(format!("{instance}.{strategy}.lock"));
    let (Ok(metadata), Ok(locks)) =
        (std::fs::metadata(path), std::fs::read_to_string("/proc/locks"))
    else {
        return false;
    };
    let (major, minor) =
        (rustix::fs::major(metadata.st_dev()), rustix::fs::minor(metadata.st_dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.st_ino());
    locks
        .lines()
        .any(|line| line.contains(" FLOCK ") && line.split_whitespace().any(|word| word == place))
}

/// Held by the scheduler of a state folder while it lives. There is one at a time.
pub struct SchedulerLock {
    _file: File,
}

impl SchedulerLock {
    /// Takes it, and leaves the number of this process in it.
    ///
    /// # Errors
    /// [`EngineError::Scheduled`] while another scheduler has it; [`EngineError::State`].
    pub async fn take(state_dir: &Path) -> Result<Self, EngineError> {
        let (mut file, path) = open_lock(state_dir, SCHEDULER)?;
        let mut tries = 0;
        loop {
            tries += 1;
            match file.try_lock() {
                Ok(()) => break,
                // Who only looks whether there is one holds it for a moment.
                Err(TryLockError::WouldBlock) if tries < 10 => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                Err(TryLockError::WouldBlock) => return Err(EngineError::Scheduled { path }),
                Err(TryLockError::Error(error)) => {
                    return Err(EngineError::State { attempt: "lock", path, error });
                }
            }
        }
        let number = format!("{} {}\n", std::process::id(), pid_namespace());
        let written = file.set_len(0).and_then(|()| file.write_all(number.as_bytes()));
        written.map_err(|error| EngineError::State { attempt: "write", path, error })?;
        Ok(Self { _file: file })
    }
}

/// What tells the processes that we see from those of other containers.
fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid")
        .map_or_else(|_| "-".to_owned(), |link| link.display().to_string())
}

/// The scheduler of a state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    /// The number of its process, where it runs.
    pub pid: u32,
    /// Whether that is a number here: it is not in another container.
    pub is_here: bool,
}

/// The scheduler of `state_dir`; none when there is none.
///
/// # Errors
/// [`EngineError::State`] when that cannot be found out.
pub fn scheduler(state_dir: &Path) -> Result<Option<Scheduler>, EngineError> {
    let path = state_dir.join(SCHEDULER);
    let failed = |attempt: &'static str| {
        let path = path.clone();
        move |error| EngineError::State { attempt, path, error }
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open")(error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let text = std::fs::read_to_string(&path).map_err(failed("read"))?;
            let mut words = text.split_whitespace();
            let pid = words.next().and_then(|pid| pid.parse().ok());
            let is_here = words.next().is_some_and(|namespace| namespace == pid_namespace());
            Ok(pid.map(|pid| Scheduler { pid, is_here }))
        }
        Err(TryLockError::Error(error)) => Err(failed("lock")(error)),
    }
}

fn open_lock(state_dir: &Path, name: &str) -> Result<(File, PathBuf), EngineError> {
    make_private_folder(state_dir)?;
    let path = state_dir.join(name);
    let opened = make_private_file(&path)
        .and_then(|()| OpenOptions::new().read(true).write(true).open(&path));
    match opened {
        Ok(file) => Ok((file, path)),
        Err(error) => Err(EngineError::State { attempt: "open", path, error }),
    }
}

/// What came of trying a lock; `who` holds it where it is not free.
fn taken(
    tried: Result<(), TryLockError>,
    path: PathBuf,
    strategy: &Name,
    who: &str,
) -> Result<(), EngineError> {
    match tried {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(EngineError::Locked {
            strategy: strategy.clone(),
            holder: format!("{who} holds `{}`", path.display()),
        }),
        Err(TryLockError::Error(error)) => Err(EngineError::State { attempt: "lock", path, error }),
    }
}

/// What tells the runs of this state folder from those of others: a random text, made once and kept
/// there.
pub(super) fn node(state_dir: &Path) -> Result<String, EngineError> {
    make_private_folder(state_dir)?;
    let path = state_dir.join("node");
    let failed = |attempt: &'static str| {
        let path: PathBuf = path.clone();
        move |error| EngineError::State { attempt, path, error }
    };
    match std::fs::read_to_string(&path) {
        Ok(text) if text.trim().len() == 32 => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("read")(error));
        }
        // Missing, or cut short by a crash: made anew.
        _ => {}
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| EngineError::Internal(format!("No random bytes: {error}")))?;
    let node = hex::encode(bytes);
    let temporary = state_dir.join(format!("node.{node}"));
    let write = || {
        make_private_file(&temporary)?;
        let mut file = OpenOptions::new().write(true).open(&temporary)?;
        file.write_all(node.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(failed("write"))?;
    Ok(node)
}

/// What `run.json` says: who writes into this folder, and that it is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Heartbeat {
    pub(super) format: u32,
    /// Of the state folder that the run belongs to.
    pub(super) node: String,
    pub(super) host: String,
    /// Which start of the machine it belongs to; none where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) boot: Option<String>,
    pub(super) pid: u32,
    pub(super) started: DateTime<Utc>,
    pub(super) beat: DateTime<Utc>,
}

/// The name of this machine, as it knows itself.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What tells this start of the machine from any other, and from any other machine, a copy of it
/// included.
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

impl Heartbeat {
    pub(super) fn new(node: String, started: DateTime<Utc>) -> Self {
        Self {
            format: 1,
            node,
            host: host(),
            boot: boot(),
            pid: std::process::id(),
            started,
            beat: started,
        }
    }

    /// Whether it was written since this machine was started, as far as that can be told: else by
    /// the name of the machine.
    fn is_of_this_start(&self) -> bool {
        match (&self.boot, boot()) {
            (Some(theirs), Some(ours)) => *theirs == ours,
            _ => self.host == host(),
        }
    }

    /// Whether both are of one writer, however long ago either beat.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        let Self { node, host, pid, started, .. } = other;
        (&self.node, &self.host, &self.pid, &self.started) == (node, host, pid, started)
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}

/// A folder of the strategy that has no manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfinished {
    pub(super) id: SnapshotId,
    /// Its objects, `run.json` last.
    pub(super) keys: Vec<String>,
    /// When the storage last saw one of them written.
    pub(super) touched: DateTime<Utc>,
    pub(super) beats: bool,
}

/// What may be done about a folder without a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its writer is dead for certain, or silent for so long that it counts as dead.
    Dead,
    /// Its writer may be alive: nobody else writes now.
    Alive(String),
    /// Its writer is silent, but not for long enough.
    Left,
}

impl Unfinished {
    /// Judges the folder, for a run of `node` that holds the strategy's lock in its state folder:
    /// whatever that state folder's runs left unfinished has no living writer.
    pub(super) async fn fate(
        &self,
        storage: &dyn Storage,
        folder: &str,
        node: &str,
        now: DateTime<Utc>,
    ) -> Result<Fate, StorageError> {
        let silent = now - self.touched;
        let heartbeat =
            if self.beats { read_heartbeat(storage, folder, &self.id).await? } else { None };
        Ok(match heartbeat {
            // A copy of a machine has the node of the original, and perhaps its name. Only on the
            // kernel that the lock was taken on does the lock tell that its run is dead; of any
            // other start it is not known for a while.
            Some(heartbeat)
                if heartbeat.node == node && !heartbeat.is_of_this_start() && silent < LEASE =>
            {
                Fate::Left
            }
            Some(heartbeat) if heartbeat.node == node => Fate::Dead,
            _ if silent >= ABANDONED => Fate::Dead,
            // Without a heartbeat that can be read nobody is known to be alive there, and nobody to
            // be dead.
            Some(heartbeat) if silent < LEASE => Fate::Alive(format!(
                "`{}` on `{}` (process {}) wrote to `{}` {} seconds ago",
                self.id,
                heartbeat.host,
                heartbeat.pid,
                storage.address(),
                silent.num_seconds().max(0)
            )),
            None if self.beats && silent < LEASE => Fate::Alive(format!(
                "`{}` in `{}` has a heartbeat that cannot be read",
                self.id,
                storage.address()
            )),
            _ => Fate::Left,
        })
    }
}

pub(super) async fn read_heartbeat(
    storage: &dyn Storage,
    folder: &str,
    id: &SnapshotId,
) -> Result<Option<Heartbeat>, StorageError> {
    let key = format!("{folder}{id}/{}", crate::model::RUN_KEY);
    let body = async {
        let mut body = Vec::new();
        let mut stream = storage.read(&key, None).await?;
        while let Some(chunk) = stream.try_next().await? {
            body.extend_from_slice(&chunk);
            if body.len() > 64 << 10 {
                return Ok(Vec::new());
            }
        }
        Ok(body)
    };
    match body.await {
        Ok(body) => Ok(serde_json::from_slice(&body).ok()),
        // Its run ended between the listing and now.
        Err(StorageError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_locked_once_and_strategies_do_not_exclude_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let lock = StateLock::take(folder.path(), &name("a"), &name("daily")).unwrap();
        let again = StateLock::take(folder.path(), &name("a"), &name("daily"));
        assert!(matches!(again, Err(EngineError::Locked { .. })));
        assert!(StateLock::take(folder.path(), &name("a"), &name("weekly")).is_ok());
        drop(lock);
        assert!(StateLock::take(folder.path(), &name("a"), &name("daily")).is_ok());
    }

    #[test]
    fn reading_excludes_deleting_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (instance, strategy) = (name("a"), name("daily"));
        let reader = ReadLock::share(folder.path(), &instance, &strategy).unwrap();
        assert!(reader.is_some());
        let second = ReadLock::share(folder.path(), &instance, &strategy).unwrap();
        assert!(StateLock::take(folder.path(), &instance, &strategy).is_ok());
        assert!(ReadLock::exclude(folder.path(), &instance, &name("weekly")).is_ok());
        drop(reader);
        let refused = ReadLock::exclude(folder.path(), &instance, &strategy);
        assert!(matches!(refused, Err(EngineError::Locked { .. })));
        drop(second);
        let deleter = ReadLock::exclude(folder.path(), &instance, &strategy).unwrap();
        assert!(matches!(
            ReadLock::share(folder.path(), &instance, &strategy),
            Err(EngineError::Locked { .. })
        ));
        drop(deleter);
        // Who cannot keep a lock there reads without one.
        assert!(ReadLock::share(Path::new(""), &instance, &strategy).unwrap().is_none());
        assert!(ReadLock::share(Path::new("/proc/none"), &instance, &strategy).unwrap().is_none());
    }

    #[test]
    fn a_state_folder_keeps_its_node_and_mends_a_cut_one() {
        let folder = tempfile::tempdir().unwrap();
        let first = node(folder.path()).unwrap();
        assert_eq!(node(folder.path()).unwrap(), first);
        std::fs::write(folder.path().join("node"), b"cut").unwrap();
        let mended = node(folder.path()).unwrap();
        assert_eq!(mended.len(), 32);
        assert_eq!(node(folder.path()).unwrap(), mended);
    }
}
