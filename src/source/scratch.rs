//! Scratch targets: where a drill restores to, what it looks at there, and how all of it goes away
//! again.
//!
//! Everything that is made is found again by its name alone: the name begins with what the drill's
//! strategy has for its own, and whoever holds the lock of its drills may remove whatever begins
//! so.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    Context, Finding, RestoreArtifact, RestoreOptions, ScratchConfig, SourceError, Streams, Target,
};
use crate::model::{Check, Name};

/// Says in a scratch folder that it is to stay.
const KEPT: &str = "KEPT";
/// How long a process that was killed may take to end.
const ENDING: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What a scratch target is made with.
#[derive(Debug, Clone)]
pub struct ScratchPlace {
    /// A private folder of the drill, which is there and is removed with it.
    pub folder: PathBuf,
    /// Where another user than the one that we run as may have a folder, when we are root.
    pub shared_folder: PathBuf,
    /// What the names begin with of all that the drills of this strategy make outside of folders of
    /// their own: lower-case letters, digits and `_`.
    pub prefix: String,
    pub config: ScratchConfig,
}

/// A row of a query: the columns with their names, as JSON. Two columns may have one name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Row(pub Vec<(String, serde_json::Value)>);

impl Row {
    /// The first column of that name.
    pub fn get(&self, name: &str) -> Option<&serde_json::Value> {
        self.0.iter().find(|(column, _)| column == name).map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Columns;
        impl<'de> Visitor<'de> for Columns {
            type Value = Row;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut columns: A) -> Result<Row, A::Error> {
                let mut row = Row::default();
                while let Some(column) = columns.next_entry()? {
                    row.0.push(column);
                }
                Ok(row)
            }
        }
        deserializer.deserialize_map(Columns)
    }
}

/// Takes the rows of a query one by one, until it breaks off.
pub type Each<'a> = dyn FnMut(Row) -> ControlFlow<()> + 'a;

/// What was restored of one source, to be looked at. It stays until [`Scratch::remove`].
pub trait Scratch: Send {
    /// Where the artifact goes; none where it is not restored in a rehearsal, with the reason.
    ///
    /// # Errors
    /// The reason.
    fn target(&self, artifact: &RestoreArtifact) -> Result<Target, String>;

    /// How it is restored.
    fn options(&self, _artifact: &RestoreArtifact) -> RestoreOptions {
        RestoreOptions::default()
    }

    /// Counts what is there now, and compares it with the facts of the artifact, which was
    /// restored.
    ///
    /// # Errors
    /// When nothing could be compared. What was compared and differs is a [`Check`].
    fn inspect(
        &mut self,
        cx: &Context,
        artifact: &RestoreArtifact,
        streams: &dyn Streams,
    ) -> Result<Vec<Check>, SourceError>;

    /// Whether what went wrong with it says nothing about what was restored: the target could not
    /// be reached, had no room, or lacks what a server must bring along.
    fn is_to_blame(&mut self, _cx: &Context, error: &SourceError) -> bool {
        !matches!(error, SourceError::Damaged(_) | SourceError::Stream(_))
    }

    /// What went wrong when something was restored to it, in words that hold nothing of what was
    /// restored, as far as that can be told: they are kept and sent.
    fn in_words(&self, error: &SourceError) -> String {
        error.to_string()
    }

    /// Asks the restored database, reading only.
    ///
    /// # Errors
    /// When it is no database, or the query failed: [`SourceError::Database`], transient where the
    /// query may be right.
    fn query(
        &mut self,
        cx: &Context,
        query: &str,
        timeout: Duration,
        each: &mut Each<'_>,
    ) -> Result<(), SourceError>;

    /// What tells a program of the operator where it is: the ends of names of variables with their
    /// values.
    fn variables(&self) -> Vec<(&'static str, String)>;

    /// What it is, in words, with versions and without secrets.
    fn description(&self) -> String;

    /// Lets it stay when the drill has ended; how to get rid of it.
    ///
    /// # Errors
    /// When that could not be noted: then the next drill removes it.
    fn keep(&mut self, cx: &Context) -> Result<String, SourceError>;

    /// Removes what is not in the folder.
    ///
    /// # Errors
    /// When something is left.
    fn remove(&mut self, _cx: &Context) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Guards and clears the scratch targets of one kind of source, where they are more than folders.
pub(super) trait ScratchProvider: Sync {
    /// Refuses scratch targets that the source `name` was dumped from, by its facts.
    fn refuse_dumped(
        &self,
        cx: &Context,
        config: &ScratchConfig,
        name: &Name,
        facts: &serde_json::Value,
    ) -> Result<(), SourceError>;

    /// Looks whether a target could be made; nothing where none is configured or `needed`.
    fn check(&self, cx: &Context, config: &ScratchConfig, needed: bool) -> Option<Finding>;

    /// Stops what runs in a scratch folder.
    fn stop(&self, folder: &Path) -> Result<(), SourceError>;

    /// Removes targets outside of folders whose name begins with `prefix`, unless they are marked
    /// as kept. Returns what was removed, in words.
    fn sweep(
        &self,
        cx: &Context,
        config: &ScratchConfig,
        prefix: &str,
    ) -> Result<Vec<String>, SourceError>;
}

/// The answer of what is no database.
pub(super) fn no_database(name: &Name) -> SourceError {
    SourceError::Unsuitable(format!("`{name}` is not a database, so nothing can be asked of it"))
}

/// Refuses a scratch folder that lies in `taken`, or in which that lies, once links are followed.
///
/// # Errors
/// [`SourceError::Unsuitable`].
pub fn refuse_overlap(folder: &Path, taken: &Path, what: &str) -> Result<(), SourceError> {
    let (ours, theirs) = (resolved(folder), resolved(taken));
    if ours.starts_with(&theirs) || theirs.starts_with(&ours) {
        return Err(SourceError::Unsuitable(format!(
            "The drill would write to `{}`, which is in the place of {what} (`{}`): set the \
             drill's `work_dir` to a folder of its own. Nothing was written",
            folder.display(),
            taken.display()
        )));
    }
    Ok(())
}

/// The path without links, of which what is not there yet is taken as it stands.
fn resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return path
                .strip_prefix(ancestor)
                .map_or_else(|_| real.clone(), |rest| real.join(rest));
        }
    }
    path.to_owned()
}

/// Notes in a scratch folder that it is to stay.
///
/// # Errors
/// When it could not be written.
pub fn keep_folder(folder: &Path) -> Result<(), SourceError> {
    std::fs::write(folder.join(KEPT), "A drill was asked to keep this. Remove it by hand.\n")
        .map_err(|error| SourceError::Io {
            attempt: "write in",
            path: folder.display().to_string(),
            error,
        })
}

/// What runs in a scratch folder is stopped by this.
pub(super) type Stop = fn(&Path) -> Result<(), SourceError>;

/// Removes every scratch folder in `folder` whose name begins with `prefix`, what runs in it
/// stopped first. Those that are to stay stay. What was removed.
pub(super) fn remove_folders(
    folder: &Path,
    prefix: &str,
    stop: Stop,
) -> Result<Vec<PathBuf>, SourceError> {
    let failed = |attempt: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error| SourceError::Io { attempt, path, error }
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("look into", folder)(error)),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("look into", folder))?;
        if !entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)) {
            continue;
        }
        // In a folder for everybody anybody may make something of such a name, a link say. Of the
        // one who made it, `lstat` does not lie.
        let found = match entry.path().symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("look at", &entry.path())(error)),
        };
        let is_ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        if is_ours && entry.path().join(KEPT).symlink_metadata().is_err() {
            remove_folder(&entry.path(), stop)?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

/// Removes a scratch folder and all that is in it, what runs in it stopped first.
pub(super) fn remove_folder(folder: &Path, stop: Stop) -> Result<(), SourceError> {
    let failed =
        |error| SourceError::Io { attempt: "remove", path: folder.display().to_string(), error };
    stop(folder)?;
    end_processes(folder)?;
    match std::fs::remove_dir_all(folder) {
        Err(error)
            if error.kind() == std::io::ErrorKind::PermissionDenied
                && !rustix::process::geteuid().is_root() =>
        {
            // A restored folder may forbid its own owner to look into it.
            make_removable(folder);
            std::fs::remove_dir_all(folder).map_err(failed)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed),
    }
}

/// Ends every process that works in `folder`: what a drill that was killed had started, and that
/// goes on without it.
pub(super) fn end_processes(folder: &Path) -> Result<(), SourceError> {
    let failed = |error: Errno| SourceError::Io {
        attempt: "end what still works in",
        path: folder.display().to_string(),
        error: error.into(),
    };
    let Ok(real) = folder.canonicalize() else { return Ok(()) };
    // What is ended may have started another one meanwhile.
    while end_those_found(&real).map_err(failed)? > 0 {}
    Ok(())
}

/// Ends the processes that are found to work in `folder` now; how many.
fn end_those_found(folder: &Path) -> Result<usize, Errno> {
    let works_there = |pid: Pid| {
        std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()))
            .is_ok_and(|path| path.starts_with(folder))
    };
    let mut ended = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number =
            entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = number.filter(|pid| *pid != rustix::process::getpid() && works_there(*pid))
        else {
            continue;
        };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error),
        };
        // The number may have gone to another one meanwhile; from here on it cannot.
        if !works_there(pid) {
            continue;
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&ENDING))? == 0 => {
                return Err(Errno::TIMEDOUT);
            }
            Ok(()) => ended += 1,
            Err(Errno::SRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// Gives us all rights on the folders in `folder`, as far as they are ours.
fn make_removable(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut waiting = vec![folder.to_owned()];
    while let Some(next) = waiting.pop() {
        // What cannot be changed is told by the removal.
        let _ = std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o700));
        let Ok(entries) = std::fs::read_dir(&next) else { continue };
        let folders =
            entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(folders.map(|entry| entry.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_folder_may_not_touch_a_source_even_through_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("files");
        std::fs::create_dir(&source).unwrap();
        std::os::unix::fs::symlink(&source, folder.path().join("link")).unwrap();
        for ours in ["files", "files/drill", "link", "link/deep/er", "."] {
            assert!(
                refuse_overlap(&folder.path().join(ours), &source, "the source `files`").is_err(),
                "{ours}"
            );
        }
        for ours in ["files2", "work"] {
            refuse_overlap(&folder.path().join(ours), &source, "the source `files`").unwrap();
        }
    }

    #[test]
    fn only_folders_of_the_own_prefix_are_removed_and_kept_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["drill_a_1", "drill_a_2", "drill_b_1", "other"] {
            std::fs::create_dir_all(folder.path().join(name).join("in")).unwrap();
        }
        std::fs::write(folder.path().join("drill_a_file"), "").unwrap();
        keep_folder(&folder.path().join("drill_a_2")).unwrap();
        assert_eq!(
            remove_folders(folder.path(), "drill_a_", |_| Ok(())).unwrap(),
            [folder.path().join("drill_a_1")]
        );
        for name in ["drill_a_2", "drill_b_1", "other", "drill_a_file"] {
            assert!(folder.path().join(name).exists(), "{name}");
        }
        assert_eq!(
            remove_folders(&folder.path().join("none"), "drill_a_", |_| Ok(())).unwrap(),
            [""; 0].map(PathBuf::from)
        );
    }
}
