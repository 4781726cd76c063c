//! What a restore into a folder has done so far, so that the same command goes on after it was
//! killed.
//!
//! The record lies beside the targets while the restore goes on, a JSON line for each step, and is
//! locked by it: one that nobody has locked is of a restore that is over.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::place::{Hold, hold};
use crate::model::{ArtifactKind, Digest};

/// The name of the record, in the folder that holds a folder for each source.
const RECORD: &str = ".holdfast-restore";
/// A record is a few lines.
const LIMIT: u64 = 1 << 20;

/// Which restore it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhichRestore {
    /// The id of the snapshot.
    pub snapshot: String,
    /// Of what was asked for beside the snapshot.
    pub request: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    /// A restore of this artifact into an empty place began.
    Started(String),
    Done(String),
}

/// The record of a restore.
pub struct UnderWay {
    path: PathBuf,
    file: File,
    done: BTreeSet<String>,
}

/// What the record has to do with the restore of one artifact.
#[derive(Clone, Default)]
pub struct Recorded {
    started: bool,
    complete: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorded").field("started", &self.started).finish_non_exhaustive()
    }
}

impl Recorded {
    /// There is no record.
    pub const NONE: Self = Self { started: false, complete: None };

    /// Whether it was begun before, so that a file in its place may be what it put there, and is if
    /// it has the same bytes.
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// To be called when all of it is on the disk, while it is still marked as incomplete.
    pub fn is_complete(&self) {
        if let Some(complete) = &self.complete {
            complete();
        }
    }

    #[cfg(test)]
    pub(in crate::source) fn started() -> Self {
        Self { started: true, complete: None }
    }
}

/// What the same restore did before it was interrupted.
#[derive(Debug, Clone, Default)]
pub struct Before {
    started: BTreeSet<String>,
    done: BTreeSet<String>,
}

impl Before {
    /// What is recorded in `folder`; nothing is changed there.
    pub fn of(folder: &Path, which: &WhichRestore) -> Self {
        let file = open(OpenOptions::new().read(true), &folder.join(RECORD));
        let read = file.ok().filter(|file| matches!(hold(file), Ok(Hold::Ours)));
        read.and_then(|file| Self::read(&file, which)).unwrap_or_default()
    }

    /// None where the record is of another restore, or is none.
    fn read(file: &File, which: &WhichRestore) -> Option<Self> {
        let mut text = String::new();
        file.take(LIMIT).read_to_string(&mut text).ok()?;
        let mut lines = text.split_inclusive('\n');
        let first: WhichRestore = serde_json::from_str(lines.next()?).ok()?;
        let mut before = (first == *which).then(Self::default)?;
        // The last line may have been cut off.
        let whole = lines.filter(|line| line.ends_with('\n'));
        for step in whole.filter_map(|line| serde_json::from_str(line).ok()) {
            match step {
                Step::Started(name) => before.started.insert(name),
                Step::Done(name) => before.done.insert(name),
            };
        }
        Some(before)
    }

    /// Whether the artifact was restored to `folder`, and is still there.
    pub fn has_done(&self, artifact: &str, kind: ArtifactKind, folder: &Path) -> bool {
        let is_there = match kind {
            ArtifactKind::PgDump | ArtifactKind::PgGlobals | ArtifactKind::Stream => {
                folder.join(artifact).is_file()
            }
            // One whose mark is there is not finished.
            _ => {
                !folder.join(RECORD).exists()
                    && std::fs::read_dir(folder).is_ok_and(|mut all| all.next().is_some())
            }
        };
        is_there && self.done.contains(artifact)
    }

    /// What the restore of the artifact has to do with the record, where there is one.
    pub fn recorded(&self, artifact: &str, record: Option<&Arc<Mutex<UnderWay>>>) -> Recorded {
        let complete = record.cloned().map(|record| -> Arc<dyn Fn() + Send + Sync> {
            let artifact = artifact.to_owned();
            Arc::new(move || done(&record, &artifact))
        });
        Recorded { started: self.started.contains(artifact), complete }
    }
}

impl UnderWay {
    /// Begins the record in `folder`, or takes it up again. None where it cannot be written, or
    /// another restore is under way there: then this one cannot be gone on with.
    pub fn begin(folder: &Path, which: &WhichRestore) -> Option<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).ok()?;
        let path = folder.join(RECORD);
        let mut options = OpenOptions::new();
        let file = open(options.read(true).write(true).create(true).mode(0o600), &path).ok()?;
        if !matches!(hold(&file), Ok(Hold::Ours)) {
            return None;
        }
        let length = file.metadata().ok()?.len();
        let before = Before::read(&file, which);
        let mut record = Self { path, file, done: BTreeSet::new() };
        if before.is_none() {
            // A file of somebody else that has this name is left alone.
            if length > 0 && !record.is_a_record() {
                return None;
            }
            record.file.set_len(0).ok()?;
            record.add(which)?;
            File::open(folder).and_then(|folder| folder.sync_all()).ok()?;
        }
        // What was cut off is no part of what comes now.
        record.file.seek(SeekFrom::End(0)).ok()?;
        record.file.write_all(b"\n").ok()?;
        Some(record)
    }

    fn is_a_record(&mut self) -> bool {
        let mut text = String::new();
        let read = self.file.seek(SeekFrom::Start(0)).map(|_| (&self.file).take(LIMIT));
        read.and_then(|mut file| file.read_to_string(&mut text)).is_ok()
            && text
                .lines()
                .next()
                .is_some_and(|line| serde_json::from_str::<WhichRestore>(line).is_ok())
    }

    /// Notes that the restore of an artifact begins.
    pub fn starts(&mut self, artifact: &str) {
        let _ = self.add(&Step::Started(artifact.to_owned()));
    }

    fn done(&mut self, artifact: &str) {
        if self.done.insert(artifact.to_owned()) {
            let _ = self.add(&Step::Done(artifact.to_owned()));
        }
    }

    /// A line at the end, on the disk. Where it cannot be written the restore cannot be gone on
    /// with, and is none the worse.
    fn add(&mut self, line: &impl Serialize) -> Option<()> {
        let mut text = serde_json::to_vec(line).ok()?;
        text.push(b'\n');
        self.file.seek(SeekFrom::End(0)).ok()?;
        self.file.write_all(&text).ok()?;
        self.file.sync_all().ok()
    }

    /// Ends the record. It is taken away when the restore is complete, and when nothing of it is:
    /// then there is nothing to go on with but what marks itself.
    pub fn end(&self, complete: bool) {
        if !complete && !self.done.is_empty() {
            return;
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Notes that an artifact was restored.
pub fn done(record: &Mutex<UnderWay>, artifact: &str) {
    record.lock().unwrap_or_else(PoisonError::into_inner).done(artifact);
}

fn open(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    options.custom_flags(i32::try_from(flags).unwrap_or_default()).open(path)
}

#[cfg(test)]
mod tests {
    use super::{Before, RECORD, UnderWay, WhichRestore};
    use crate::model::Digest;

    fn which(snapshot: &str) -> WhichRestore {
        WhichRestore { snapshot: snapshot.to_owned(), request: Digest::of(b"all") }
    }

    #[test]
    fn a_record_cut_anywhere_claims_no_more_than_was_done() {
        let folder = tempfile::tempdir().unwrap();
        let mut record = UnderWay::begin(folder.path(), &which("a")).unwrap();
        assert!(UnderWay::begin(folder.path(), &which("a")).is_none(), "it is under way");
        assert!(!Before::of(folder.path(), &which("a")).started.contains("one"));
        record.starts("one");
        record.done("one");
        record.starts("two");
        drop(record);
        let path = folder.path().join(RECORD);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let before = Before::of(folder.path(), &which("a"));
            assert!(before.done.len() <= 1 && before.done.is_subset(&before.started), "{length}");
            assert_eq!(before.started.contains("two"), length == whole.len());
            assert!(Before::of(folder.path(), &which("b")).started.is_empty());
        }
        let mut again = UnderWay::begin(folder.path(), &which("a")).unwrap();
        again.done("two");
        drop(again);
        assert_eq!(Before::of(folder.path(), &which("a")).done.len(), 2);
        UnderWay::begin(folder.path(), &which("b")).unwrap().end(true);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(RECORD);
        std::fs::write(&path, "mine\n").unwrap();
        assert!(UnderWay::begin(folder.path(), &which("a")).is_none());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine\n");
    }
}
