//! A folder that a drill restored, held against the index entry by entry.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, readlinkat};
use rustix::io::Errno;

use super::beneath::open_beneath;
use super::meta::Meta;
use crate::archive::checked_index::CheckedIndex;
use crate::archive::error::{ArchiveError, Problem};
use crate::archive::index::Entry;
use crate::archive::proof::{Proof, read_content};
use crate::archive::{Kind, lossy};
use crate::model::{Cancel, Check, CheckOutcome, Name, TOLD_DIFFERENCES};
use crate::source::scratch::{Each, Scratch, ScratchPlace, no_database};
use crate::source::{Context, RestoreArtifact, SourceError, Streams, Target};

/// A folder that a drill restored.
pub(super) struct ScratchFolder {
    name: Name,
    folder: PathBuf,
}

impl ScratchFolder {
    pub(super) fn new(name: &Name, place: &ScratchPlace) -> Self {
        Self { name: name.clone(), folder: place.folder.join(name.as_str()) }
    }
}

impl Scratch for ScratchFolder {
    fn target(&self, _artifact: &RestoreArtifact) -> Result<Target, String> {
        Ok(Target::Folder(self.folder.clone()))
    }

    fn inspect(
        &mut self,
        cx: &Context,
        artifact: &RestoreArtifact,
        streams: &dyn Streams,
    ) -> Result<Vec<Check>, SourceError> {
        let mut tally = Tally::default();
        let has_index =
            self.walk(streams, &cx.cancel, &mut tally).map_err(|error| match SourceError::from(
                error,
            ) {
                SourceError::Stream(_) if cx.cancel.is_cancelled() => SourceError::Cancelled,
                error => error,
            })?;
        if !has_index {
            let check = Check::new("files", Some(&self.name), "entries against the index");
            return Ok(vec![check.judged(false, "an index", "none in the snapshot")]);
        }
        Ok(tally.checks(&self.name, &artifact.facts))
    }

    fn query(
        &mut self,
        _: &Context,
        _: &str,
        _: Duration,
        _: &mut Each<'_>,
    ) -> Result<(), SourceError> {
        Err(no_database(&self.name))
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![("PATH", self.folder.display().to_string())]
    }

    fn description(&self) -> String {
        format!("a folder, `{}`", self.folder.display())
    }

    fn keep(&mut self, _: &Context) -> Result<String, SourceError> {
        Ok(format!("rm -r {}", self.folder.display()))
    }
}

impl ScratchFolder {
    /// Holds every entry against the index. False when there is none.
    fn walk(
        &self,
        streams: &dyn Streams,
        cancel: &Cancel,
        tally: &mut Tally,
    ) -> Result<bool, ArchiveError> {
        let Some(mut index) = CheckedIndex::open(streams)? else { return Ok(false) };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let root = openat(CWD, &self.folder, flags, Mode::empty())
            .map_err(|error| Problem::System("open the folder", error).at(b""))?;
        let mut buffer = vec![0; 256 << 10];
        while let Some(entry) = index.next()? {
            if cancel.is_cancelled() {
                return Err(Problem::Cancelled.at(&entry.path));
            }
            tally
                .take(&root, &entry, cancel, &mut buffer)
                .map_err(|problem| problem.at(&entry.path))?;
        }
        Ok(true)
    }
}

/// What was found so far.
#[derive(Default)]
struct Tally {
    entries: u64,
    files: u64,
    bytes: u64,
    /// Whether owners can be restored at all by who we run as.
    owners: Differences,
    modes: Differences,
    sizes: Differences,
    contents: Differences,
    kinds: Differences,
    times: Differences,
    /// Files that changed while they were backed up: their content is that of the tarball.
    changed: u64,
}

#[derive(Default)]
struct Differences {
    told: Vec<String>,
    all: u64,
}

impl Differences {
    fn add(&mut self, path: &[u8], what: impl FnOnce() -> String) {
        self.all += 1;
        if self.told.len() < TOLD_DIFFERENCES {
            self.told.push(format!("`{}` {}", lossy(path).escape_debug(), what()));
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Tally {
    fn take(
        &mut self,
        root: &OwnedFd,
        entry: &Entry,
        cancel: &Cancel,
        buffer: &mut [u8],
    ) -> Result<(), Problem> {
        self.entries += 1;
        self.changed += u64::from(entry.changed);
        let system = |error| Problem::System("look at the restored entry", error);
        // Beneath the folder, and through no link.
        let open = |flags| {
            let flags = flags | OFlags::NOFOLLOW;
            open_beneath(root.as_fd(), &entry.path, flags, ResolveFlags::NO_SYMLINKS)
        };
        let there = match open(OFlags::PATH) {
            Ok(there) => there,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.kinds.add(&entry.path, || "is missing".to_owned());
                return Ok(());
            }
            Err(error) => return Err(system(error)),
        };
        let meta = Meta::of(there.as_fd()).map_err(system)?;
        // Another name of a file is that file: what it is was seen under the first name.
        let is_other_name = entry.kind == Kind::Hardlink;
        if is_other_name {
            self.hard_link(root, entry, &meta)?;
            return Ok(());
        }
        if meta.kind != Some(entry.kind) {
            self.kinds.add(&entry.path, || "is of another kind".to_owned());
            return Ok(());
        }
        if is_root() && (meta.uid, meta.gid) != (entry.uid, entry.gid) {
            self.owners.add(&entry.path, || {
                format!(
                    "belongs to {}:{}, and {}:{} was backed up",
                    meta.uid, meta.gid, entry.uid, entry.gid
                )
            });
        }
        // Links have no mode of their own; and who cannot give away a file must not leave it with
        // the rights of its owner.
        let mask = if is_root() { 0o7777 } else { 0o1777 };
        if entry.kind != Kind::Symlink && meta.mode & mask != entry.mode & mask {
            self.modes.add(&entry.path, || {
                format!("has the mode {:o}, and {:o} was backed up", meta.mode, entry.mode)
            });
        }
        if meta.mtime != entry.mtime {
            self.times.add(&entry.path, || {
                format!("was changed at {}, and {} was backed up", meta.mtime, entry.mtime)
            });
        }
        match entry.kind {
            Kind::File => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(meta.size);
                if meta.size == entry.size {
                    self.content(entry, open(OFlags::RDONLY), cancel, buffer)?;
                } else {
                    self.sizes
                        .add(&entry.path, || format!("has {} bytes of {}", meta.size, entry.size));
                }
            }
            Kind::Symlink => {
                let target = readlinkat(&there, c"", Vec::new()).map_err(system)?;
                if Some(target.to_bytes()) != entry.target.as_deref() {
                    self.contents.add(&entry.path, || "is a link to somewhere else".to_owned());
                }
            }
            Kind::Char | Kind::Block if Some(meta.rdev) != entry.rdev => {
                self.contents.add(&entry.path, || "is another device".to_owned());
            }
            _ => {}
        }
        Ok(())
    }

    fn hard_link(&mut self, root: &OwnedFd, entry: &Entry, meta: &Meta) -> Result<(), Problem> {
        let target = entry.target.as_deref().unwrap_or_default();
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let other = open_beneath(root.as_fd(), target, flags, ResolveFlags::NO_SYMLINKS);
        let same = match other {
            Ok(other) => {
                let other = Meta::of(other.as_fd());
                other
                    .map_err(|error| Problem::System("look at the restored entry", error))?
                    .identity
                    == meta.identity
            }
            Err(_) => false,
        };
        if !same {
            self.kinds.add(&entry.path, || {
                format!("is not another name of `{}`", lossy(target).escape_debug())
            });
        }
        Ok(())
    }

    /// Reads what was restored, and holds it against the digest in the index.
    fn content(
        &mut self,
        entry: &Entry,
        opened: Result<OwnedFd, Errno>,
        cancel: &Cancel,
        buffer: &mut [u8],
    ) -> Result<(), Problem> {
        let proof = Proof::of(entry);
        // Of a file with more holes than can be read only what its pieces are is known, which the
        // restore held against the index.
        if proof.is_none() || entry.data_digest.is_some() {
            return Ok(());
        }
        let file = match opened {
            Ok(file) => std::fs::File::from(file),
            // A file whose mode lets not even its owner read it, when that is not root.
            Err(Errno::ACCESS) => return Ok(()),
            Err(error) => return Err(Problem::System("read the restored file", error)),
        };
        let read = |buffer: &mut [u8]| {
            std::io::Read::read(&mut &file, buffer).map_err(|error| {
                let code = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                Problem::System("read the restored file", code)
            })
        };
        let pieces = std::iter::once((0, entry.size)).filter(|(_, size)| *size > 0);
        match read_content(read, pieces, entry.size, proof, cancel, buffer, |_| Ok(())) {
            Err(Problem::Damaged(problem) | Problem::Refused(problem)) => {
                self.contents.add(&entry.path, || problem);
                Ok(())
            }
            read => read,
        }
    }

    fn checks(self, name: &Name, facts: &serde_json::Value) -> Vec<Check> {
        let number = |key: &str| facts.get(key).and_then(serde_json::Value::as_u64);
        let mut checks = Vec::new();
        for (what, found, key) in [
            ("entries", self.entries, "entries"),
            ("files", self.files, "files"),
            ("bytes of files", self.bytes, "bytes"),
        ] {
            if let Some(expected) = number(key) {
                checks.push(Check::new("counts", Some(name), what).compared(expected, found));
            }
        }
        let entries = self.entries;
        for (what, differences) in [
            ("each entry there, of its kind", self.kinds),
            ("size of each file", self.sizes),
            ("content of each file, by its digest", self.contents),
            ("mode of each entry", self.modes),
            ("time of each entry", self.times),
        ] {
            let found = entries.saturating_sub(differences.all);
            let check = Check::new("files", Some(name), what);
            checks.push(
                check
                    .judged(
                        differences.all == 0,
                        format!("{entries} as in the index"),
                        found.to_string(),
                    )
                    .detailed(differences.told, differences.all),
            );
        }
        let check = Check::new("files", Some(name), "owner of each entry");
        checks.push(if is_root() {
            let found = entries.saturating_sub(self.owners.all);
            check
                .judged(
                    self.owners.all == 0,
                    format!("{entries} as in the index"),
                    found.to_string(),
                )
                .detailed(self.owners.told, self.owners.all)
        } else {
            check.ended(
                CheckOutcome::Skipped,
                "only root can give files to their owners, and the drill does not run as root",
            )
        });
        checks
    }
}
