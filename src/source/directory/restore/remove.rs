//! What a target has and the snapshot has not: found in bounded memory, counted or removed.
//!
//! Of the paths of the index only hashes are kept, so many at a time that memory stays small; an
//! index of more is gone through several times, and the target with it, each time for a part of all
//! hashes. The target is walked as a source is: by names in open folders, never through a link, and
//! not into what is mounted there. `spared` says what stays although the index lacks it.

use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, futimens, openat, unlinkat};
use rustix::io::Errno;

use super::finish::times;
use super::marker::MARKER;
use super::spared::{Reason, Spared, Unread};
use crate::archive::PathSet;
use crate::archive::checked_index::CheckedIndex;
use crate::archive::error::{ArchiveError, Problem};
use crate::archive::patterns::Filter;
use crate::archive::selection::{lies_in, no_index};
use crate::archive::{Kind, lossy};
use crate::model::{Cancel, Remarks};
use crate::source::directory::meta::Meta;
use crate::source::directory::scope::{Boundary, Scope};
use crate::source::directory::walk::{Found, Walk};
use crate::source::{Action, Context, OwnFolder, SourceError, Streams};

/// How many hashes are kept at a time.
const BATCH: usize = 1_000_000;
/// The most folders that patterns may match.
const TOPS_LIMIT: usize = 1_000_000;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);

/// What becomes of what the snapshot does not have.
pub(super) enum ExtraAction<'a> {
    /// Each path is reported, with whether it would be deleted or kept.
    Report(&'a mut dyn FnMut(&[u8], Action)),
    /// It is removed from this folder, which is the target.
    Remove(BorrowedFd<'a>),
}

/// Goes through a target for what the index does not have; with patterns only in the folders that
/// they match.
pub(super) struct Extras<'a> {
    streams: &'a dyn Streams,
    place: &'a Path,
    patterns: Option<PathSet>,
    own: &'a [OwnFolder],
    cancel: &'a Cancel,
    batch: usize,
    hasher: RandomState,
    /// Folders that the patterns match, by their hashes, and those that lie in none of them.
    tops: Vec<u64>,
    /// The folder that was asked for last, and whether what is in it may be removed.
    folder: Vec<u8>,
    covered: bool,
    pub(super) count: u64,
    /// How many entries were spared, without what lies beneath them.
    pub(super) spared: u64,
    pub(super) remarks: Remarks,
}

/// The hashes of some of the paths of an index.
struct Known {
    part: RangeInclusive<u64>,
    hashes: Vec<u64>,
}

impl Known {
    /// Whether the path is known not to be in the index.
    fn lacks(&self, hash: u64) -> bool {
        self.part.contains(&hash) && self.hashes.binary_search(&hash).is_err()
    }
}

impl<'a> Extras<'a> {
    pub(super) fn new(
        streams: &'a dyn Streams,
        place: &'a Path,
        patterns: Option<PathSet>,
        cx: &'a Context,
    ) -> Self {
        Self {
            streams,
            place,
            patterns,
            own: &cx.own_folders,
            cancel: &cx.cancel,
            batch: BATCH,
            hasher: RandomState::new(),
            tops: Vec::new(),
            folder: Vec::new(),
            covered: false,
            count: 0,
            spared: 0,
            remarks: Remarks::default(),
        }
    }

    /// With another number of hashes that are kept at a time.
    #[cfg(test)]
    pub(super) fn in_batches_of(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// # Errors
    /// When the index or the target cannot be read to its end, or something cannot be removed; what
    /// was removed until then is gone.
    pub(super) fn run(&mut self, mut action: ExtraAction<'_>) -> Result<(), SourceError> {
        let spared = Spared::read(self.streams, self.own, self.cancel)?;
        if spared.root() {
            self.spared += 1;
            Reason::Missing.tell(b".", &mut self.remarks);
            return Ok(());
        }
        let all = 0..=u64::MAX;
        let (known, count) = self.read(all)?;
        if count <= self.batch {
            return self.sweep(&known, &spared, &mut action);
        }
        drop(known);
        let parts = u64::try_from(count / self.batch).unwrap_or_default() + 1;
        let step = u64::MAX / parts;
        for part in 0..parts {
            let end = if part + 1 == parts { u64::MAX } else { step * (part + 1) - 1 };
            let (known, _) = self.read(step * part..=end)?;
            self.sweep(&known, &spared, &mut action)?;
        }
        Ok(())
    }

    /// Reads the index for the hashes in `part`. Returns also how many paths there are; those
    /// beyond a batch are only counted.
    fn read(&mut self, part: RangeInclusive<u64>) -> Result<(Known, usize), ArchiveError> {
        let all = part == (0..=u64::MAX);
        let mut known = Known { part, hashes: Vec::new() };
        let mut index = CheckedIndex::open(self.streams)?.ok_or_else(no_index)?;
        let mut count = 0;
        let mut last_folder = Vec::new();
        self.tops.clear();
        while let Some(entry) = index.next()? {
            if self.cancel.is_cancelled() {
                return Err(Problem::Cancelled.at(&entry.path));
            }
            if let Some(patterns) = &mut self.patterns
                && !patterns.lies_within(&entry.path)
            {
                if entry.kind == Kind::Directory && patterns.wants(&entry.path, true) {
                    self.tops.push(self.hasher.hash_one(entry.path.as_slice()));
                    if self.tops.len() > TOPS_LIMIT {
                        let problem = "The patterns match too many folders to remove anything \
                            from: use `--delete` without `--path`";
                        return Err(Problem::Unsuitable(problem.to_owned()).at(b""));
                    }
                }
                continue;
            }
            let mut keep = |path: &[u8]| {
                let hash = self.hasher.hash_one(path);
                count += 1;
                if known.part.contains(&hash) && !(all && count > self.batch) {
                    known.hashes.push(hash);
                }
            };
            // A folder stays for what is in it, even if the index should not have it.
            let slash = entry.path.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
            let folder = entry.path.get(..slash).unwrap_or_default();
            if folder != last_folder {
                let ends = folder
                    .iter()
                    .enumerate()
                    .filter(|(_, byte)| **byte == b'/')
                    .map(|(end, _)| end);
                ends.chain([slash]).filter_map(|end| folder.get(..end)).for_each(&mut keep);
                last_folder = folder.to_vec();
            }
            keep(&entry.path);
        }
        known.hashes.sort_unstable();
        known.hashes.dedup();
        self.tops.sort_unstable();
        Ok((known, count))
    }

    /// Whether what lies in the same folder as `path` may be removed.
    fn covers(&mut self, path: &[u8]) -> bool {
        let Some(patterns) = &mut self.patterns else { return true };
        let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
        let folder = path.get(..slash).unwrap_or_default();
        if self.folder != folder {
            let ends =
                folder.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
            let mut folders = ends.chain([slash]).filter_map(|end| folder.get(..end));
            // The first one that a pattern matches must be one that the snapshot has.
            let top = folders.find(|folder| patterns.wants(folder, true));
            self.covered =
                top.is_some_and(|top| self.tops.binary_search(&self.hasher.hash_one(top)).is_ok());
            self.folder = folder.to_vec();
        }
        !folder.is_empty() && self.covered
    }

    fn sweep(
        &mut self,
        known: &Known,
        spared: &Spared,
        action: &mut ExtraAction<'_>,
    ) -> Result<(), SourceError> {
        let place = self.place.display().to_string();
        let filter =
            Filter::new(&[], &[]).map_err(|error| SourceError::Unsuitable(error.to_string()))?;
        let failed = |error: Errno| SourceError::Io {
            attempt: "look for what is to be removed in",
            path: place.clone(),
            error: error.into(),
        };
        let scope =
            Scope { filter: &filter, boundary: Boundary::Mount, own: &[], exclude_caches: false };
        let mut walk = match Walk::open(self.place, scope, self.cancel) {
            Err(Errno::NOENT) => return Ok(()),
            walk => walk.map_err(failed)?,
        };
        let (_, root) = walk.root();
        if let ExtraAction::Remove(folder) = action
            && Meta::of(*folder).map_err(failed)?.identity != root.identity
        {
            return Err(SourceError::Unsuitable(format!(
                "`{place}` was replaced by another folder while it was restored to. Nothing was \
                 removed"
            )));
        }
        walk.start().map_err(failed)?;
        let real_place =
            std::fs::canonicalize(self.place).unwrap_or_else(|_| self.place.to_owned());
        let mut unread = Unread { spared, first: None };
        let mut remover = match action {
            ExtraAction::Remove(root) => Some(Remover {
                place: &place,
                root: *root,
                kept: Vec::new(),
                doomed: Vec::new(),
                count: 0,
            }),
            ExtraAction::Report(_) => None,
        };
        while let Some(found) = walk.next(&mut unread)? {
            let path = walk.path();
            if let Some(remover) = &mut remover {
                remover.leave(path)?;
            }
            if path == MARKER.as_bytes() {
                continue;
            }
            let is_folder = found.meta.kind == Some(Kind::Directory);
            let within = remover.as_ref().is_some_and(|remover| !remover.doomed.is_empty());
            let hash = self.hasher.hash_one(path);
            let extra = within
                || known.lacks(hash) && self.covers(path) && !spared.only_leads(path, is_folder);
            if let Some(reason) = spared.reason(&walk, &found, extra, &real_place) {
                // In one pass only, where several are made; and not of what stays anyway.
                let tells = known.part.contains(&hash)
                    && (extra || self.covers(&[path, b"/entry"].concat()));
                if tells {
                    self.spared += 1;
                    reason.tell(path, &mut self.remarks);
                    if let ExtraAction::Report(tell) = action {
                        tell(path, Action::Keep);
                    }
                }
                if let Some(remover) = remover.as_mut().filter(|_| extra) {
                    remover.doomed.iter_mut().for_each(|folder| folder.held = true);
                }
                if is_folder {
                    walk.pass_over();
                }
                continue;
            }
            match (action as &mut ExtraAction<'_>, &mut remover) {
                (ExtraAction::Report(tell), _) if extra => {
                    self.count += 1;
                    tell(path, Action::Delete);
                }
                (_, Some(remover)) if extra => remover.remove(&walk, &found)?,
                (_, Some(remover)) if is_folder && walk.entered() => {
                    remover.kept.push(Kept {
                        path: path.to_vec(),
                        meta: found.meta,
                        touched: false,
                    });
                }
                _ => {}
            }
        }
        if let Some(mut remover) = remover {
            remover.leave(b"")?;
            self.count += remover.count;
        }
        if let Some((path, reason)) = unread.first {
            return Err(SourceError::Unsuitable(format!(
                "Could not look for what is to be removed in `{place}/{}`: {reason}. Everything \
                 was restored",
                lossy(&path)
            )));
        }
        Ok(())
    }
}

/// A folder that stays.
struct Kept {
    path: Vec<u8>,
    meta: Meta,
    /// Something was removed from it, so its time is another.
    touched: bool,
}

/// A folder that goes.
struct Doomed {
    path: Vec<u8>,
    /// Its permissions, where they were changed.
    mode: Option<u32>,
    /// Something in it stays.
    held: bool,
}

/// Removes what the walk finds.
struct Remover<'a> {
    place: &'a str,
    root: BorrowedFd<'a>,
    kept: Vec<Kept>,
    doomed: Vec<Doomed>,
    count: u64,
}

/// Opens the folder at a path in `root`, by its names, never through a link.
pub(super) fn open_down(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut folder = openat(root, c".", FOLDER, Mode::empty())?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        folder = openat(&folder, name, FOLDER, Mode::empty())?;
    }
    Ok(folder)
}

/// The folder of an entry, and its name there.
pub(super) fn apart(path: &[u8]) -> (&[u8], &[u8]) {
    let slash = path.iter().rposition(|byte| *byte == b'/');
    slash.map_or((b"", path), |slash| {
        (path.get(..slash).unwrap_or_default(), path.get(slash + 1..).unwrap_or_default())
    })
}

impl Remover<'_> {
    fn failed(&self, path: &[u8], error: Errno) -> SourceError {
        SourceError::Io {
            attempt: "remove",
            path: format!("{}/{}", self.place, lossy(path)),
            error: std::io::Error::new(
                std::io::Error::from(error).kind(),
                format!(
                    "{error}. Everything was restored, but not all removed that the snapshot does \
                     not have"
                ),
            ),
        }
    }

    fn remove(&mut self, walk: &Walk<'_>, found: &Found) -> Result<(), SourceError> {
        let path = walk.path();
        if found.meta.kind == Some(Kind::Directory) {
            let Some(folder) = walk.folder().filter(|_| walk.entered()) else {
                return Err(self.failed(path, Errno::ACCESS));
            };
            let mode = (found.meta.mode & 0o700 != 0o700).then_some(found.meta.mode);
            if mode.is_some() {
                fchmod(folder, Mode::RWXU).map_err(|error| self.failed(path, error))?;
            }
            self.doomed.push(Doomed { path: path.to_vec(), mode, held: false });
            return Ok(());
        }
        let folder = walk.folder().ok_or_else(|| self.failed(path, Errno::BADF))?;
        self.touch(folder.as_fd(), path)?;
        unlinkat(folder, &found.name, AtFlags::empty())
            .map_err(|error| self.failed(path, error))?;
        self.count += 1;
        Ok(())
    }

    /// Something will be removed from the folder.
    fn touch(&mut self, folder: BorrowedFd<'_>, path: &[u8]) -> Result<(), SourceError> {
        let Some(kept) = self.kept.last_mut().filter(|_| self.doomed.is_empty()) else {
            return Ok(());
        };
        if !std::mem::replace(&mut kept.touched, true) && kept.meta.mode & 0o300 != 0o300 {
            fchmod(folder, Mode::RWXU).map_err(|error| self.failed(path, error))?;
        }
        Ok(())
    }

    /// Ends with the folders that `path` does not lie in.
    fn leave(&mut self, path: &[u8]) -> Result<(), SourceError> {
        while let Some(folder) = self.doomed.pop_if(|folder| !lies_in(path, &folder.path)) {
            if folder.held {
                if let Some(mode) = folder.mode {
                    open_down(self.root, &folder.path)
                        .and_then(|opened| fchmod(&opened, Mode::from_raw_mode(mode)))
                        .map_err(|error| self.failed(&folder.path, error))?;
                }
                continue;
            }
            let (parent, name) = apart(&folder.path);
            let opened =
                open_down(self.root, parent).map_err(|error| self.failed(&folder.path, error))?;
            self.touch(opened.as_fd(), &folder.path)?;
            unlinkat(&opened, name, AtFlags::REMOVEDIR)
                .map_err(|error| self.failed(&folder.path, error))?;
            self.count += 1;
        }
        while let Some(folder) = self.kept.pop_if(|folder| !lies_in(path, &folder.path)) {
            if folder.touched {
                let opened = open_down(self.root, &folder.path);
                opened
                    .and_then(|opened| {
                        fchmod(&opened, Mode::from_raw_mode(folder.meta.mode))?;
                        futimens(&opened, &times(folder.meta.mtime))
                    })
                    .map_err(|error| self.failed(&folder.path, error))?;
            }
        }
        Ok(())
    }
}
