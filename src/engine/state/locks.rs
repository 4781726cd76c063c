//! Locks on this machine: one writer of a strategy at a time, readers beside it, and drills.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};

use crate::engine::error::EngineError;
use crate::engine::state::private::{make_private_file, make_private_folder, read_small};
use crate::model::{Irregular, Name, open_own};

/// The lock of one strategy in the state folder, held while it lives, by who writes or deletes
/// snapshots. The kernel lets it go when the process dies, however it dies.
pub(in crate::engine) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Takes the lock of `strategy`.
    pub(in crate::engine) fn take(
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
pub(in crate::engine) struct ReadLock {
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
    pub(in crate::engine) fn share(
        state_dir: &Path,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Option<Self>, EngineError> {
        if state_dir.as_os_str().is_empty() {
            return Ok(None);
        }
        let (file, path) = match Self::open(state_dir, instance, strategy) {
            Ok(opened) => opened,
            Err(EngineError::State { error, path, .. }) if Irregular::within(&error).is_some() => {
                tracing::warn!("reading without the lock `{}`: {error}", path.display());
                return Ok(None);
            }
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
    pub(in crate::engine) fn exclude(
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
pub(in crate::engine) struct DrillLock {
    file: File,
    path: PathBuf,
}

impl DrillLock {
    /// Takes it.
    ///
    /// # Errors
    /// [`EngineError::Locked`] while another drill of the strategy is under way.
    pub(in crate::engine) fn take(
        state_dir: &Path,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Self, EngineError> {
        let (file, path) = open_lock(state_dir, &format!("{instance}.{strategy}.drill.lock"))?;
        taken(file.try_lock(), path.clone(), strategy, "a drill")?;
        Ok(Self { file, path })
    }

    /// Where drills before this one were: folders, and servers by their masked addresses.
    pub(in crate::engine) fn noted(&mut self) -> (Vec<PathBuf>, Vec<String>) {
        let (mut folders, mut servers) = (Vec::new(), Vec::new());
        // What cannot be read is as good as not written.
        let text = self.file.rewind().and_then(|()| read_small(&self.file)).unwrap_or_default();
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
    pub(in crate::engine) fn note(
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
pub(in crate::engine) fn is_running(state_dir: &Path, instance: &Name, strategy: &Name) -> bool {
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

pub(in crate::engine) fn open_lock(
    state_dir: &Path,
    name: &str,
) -> Result<(File, PathBuf), EngineError> {
    make_private_folder(state_dir)?;
    let path = state_dir.join(name);
    let opened = make_private_file(&path)
        .and_then(|()| open_own(&path, OpenOptions::new().read(true).write(true)));
    match opened {
        Ok(file) => Ok((file, path)),
        Err(error) => Err(EngineError::State { attempt: "open", path, error }),
    }
}

/// What came of trying a lock; `who` holds it where it is not free.
pub(in crate::engine) fn taken(
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
}
