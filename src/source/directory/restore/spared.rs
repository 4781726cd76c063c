//! Entries of a target that a restore does not remove, although the snapshot lacks them: it could
//! not have them.

use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::archive::checked_index::CheckedIndex;
use crate::archive::error::Problem;
use crate::archive::index::Entry;
use crate::archive::patterns::{Choice, Filter};
use crate::archive::selection::no_index;
use crate::archive::{ArchiveError, Kind, Rules, each_missing};
use crate::model::{Cancel, Remarks};
use crate::source::directory::at;
use crate::source::directory::meta::Identity;
use crate::source::directory::scope::{Listener, identified, own_folder, own_folder_around};
use crate::source::directory::walk::{Found, Walk, is_cache};
use crate::source::{Context, OwnFolder, RestoreArtifact, SourceError, Streams};

/// The most paths that are kept in mind, as hashes.
const LIMIT: usize = 1_000_000;

/// Refuses to remove anything by a snapshot that does not say what it could not have, or from a
/// folder in which the program itself writes.
///
/// # Errors
/// [`SourceError::DeleteUnsafe`].
pub(super) fn ensure_deletable(
    cx: &Context,
    artifact: &RestoreArtifact,
    place: &Path,
    streams: &dyn Streams,
) -> Result<(), SourceError> {
    // The target may be still to be made: then it is the folder that it is made in.
    let place = place.ancestors().find_map(|folder| std::fs::canonicalize(folder).ok());
    let own = own_folder_around(&identified(&cx.own_folders), &place.unwrap_or_default());
    if let Some(own) = own {
        return Err(SourceError::DeleteUnsafe(format!(
            "The target lies in `{}`, which is {}: `--delete` removes nothing there. Restore to \
             another folder",
            own.path.display(),
            own.what
        )));
    }
    let index = CheckedIndex::open(streams)?.ok_or_else(no_index)?;
    if index.rules().is_some() {
        return Ok(());
    }
    let excluded = artifact.facts.get("excluded").and_then(serde_json::Value::as_u64);
    let problem = match excluded {
        _ if artifact.partial => "could not be read when the snapshot was taken",
        Some(0) => return Ok(()),
        _ => "the source's `include` and `exclude` left out",
    };
    Err(SourceError::DeleteUnsafe(format!(
        "`{}` was written by an earlier version, which did not record which entries {problem}: \
         `--delete` would remove them. Restore without `--delete`, or to an empty folder",
        artifact.name
    )))
}

/// Why an entry is not removed.
pub(super) enum Reason {
    /// It, or something in it, could not be read.
    Missing,
    /// A folder whose contents were left out.
    LeftOut,
    /// `include` and `exclude` leave it out.
    Rules,
    /// The program itself writes there.
    Own(String),
    Socket,
    Mounted,
}

impl Reason {
    pub(super) fn tell(&self, path: &[u8], remarks: &mut Remarks) {
        match self {
            Self::Missing => remarks.warn(at(
                path,
                "It could not be read when the snapshot was taken, so nothing there was removed",
            )),
            Self::Mounted => remarks.warn(at(
                path,
                "Something is mounted there, so it was left, with the folders that lead there",
            )),
            Self::LeftOut => remarks.note(at(
                path,
                "Its contents were left out of the snapshot, so nothing there was removed",
            )),
            Self::Rules => remarks.note(at(
                path,
                "The rules of the source leave it out of the snapshot, so it was not removed",
            )),
            Self::Own(what) => {
                remarks.note(at(path, format!("It is {what}, so nothing there was removed")));
            }
            Self::Socket => remarks
                .note(at(path, "It is a socket, which no snapshot has, so it was not removed")),
        }
    }
}

/// What a snapshot could not have.
pub(super) struct Spared {
    hasher: RandomState,
    filter: Filter,
    /// Hashes of paths that could not be read.
    missing: Vec<u64>,
    /// Hashes of folders whose contents were left out.
    left_out: Vec<u64>,
    own: Vec<(Identity, OwnFolder)>,
    /// Links that lead to them.
    links: Vec<(PathBuf, OwnFolder)>,
    exclude_caches: bool,
}

/// Every link on the way to one of `folders`, its own folder without links.
fn links_to(folders: &[OwnFolder]) -> Vec<(PathBuf, OwnFolder)> {
    let mut links = Vec::new();
    for folder in folders {
        for path in folder.path.ancestors().filter(|path| path.is_symlink()) {
            let parent = path.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
            if let Some((parent, name)) = parent.zip(path.file_name()) {
                links.push((parent.join(name), folder.clone()));
            }
        }
    }
    links
}

impl Spared {
    /// Reads what the snapshot says.
    ///
    /// # Errors
    /// When it cannot be read, or is too much.
    pub(super) fn read(
        streams: &dyn Streams,
        own: &[OwnFolder],
        cancel: &Cancel,
    ) -> Result<Self, ArchiveError> {
        let mut index = CheckedIndex::open(streams)?.ok_or_else(no_index)?;
        let Rules { include, exclude, exclude_caches } = index.rules().cloned().unwrap_or_default();
        let filter = Filter::new(&include, &exclude)
            .map_err(|error| Problem::Unsuitable(error.to_string()).at(b""))?;
        let hasher = RandomState::new();
        let mut left_out = Hashes::default();
        while let Some(Entry { path, left_out: is_left_out, .. }) = index.next()? {
            if cancel.is_cancelled() {
                return Err(Problem::Cancelled.at(&path));
            }
            if is_left_out {
                left_out.push(hasher.hash_one(path.as_slice()));
            }
        }
        let mut missing = Hashes::default();
        each_missing(streams, cancel, |entry| {
            missing.push(hasher.hash_one(entry.path.as_slice()));
        })?;
        let (missing, left_out) = (missing.sorted()?, left_out.sorted()?);
        let links = links_to(own);
        let own = identified(own);
        Ok(Self { hasher, filter, exclude_caches, missing, left_out, own, links })
    }

    /// Whether the folder at `path` is looked into although the snapshot would not have it itself.
    pub(super) fn only_leads(&self, path: &[u8], is_folder: bool) -> bool {
        is_folder && self.filter.choose_at(path, true) == Choice::Look
    }

    /// Whether the source could not be listed to its end, so that anything may be missing.
    pub(super) fn root(&self) -> bool {
        self.lists(b".")
    }

    /// Whether the snapshot says that the path, or what is in it, is not in it.
    fn lists(&self, path: &[u8]) -> bool {
        self.listed(path).is_some()
    }

    fn listed(&self, path: &[u8]) -> Option<Reason> {
        let hash = self.hasher.hash_one(path);
        let has = |hashes: &[u64]| hashes.binary_search(&hash).is_ok();
        has(&self.missing)
            .then_some(Reason::Missing)
            .or_else(|| has(&self.left_out).then_some(Reason::LeftOut))
    }

    /// Why nothing is removed at the entry or beneath it; none where it may be. Of one that the
    /// snapshot has (not `extra`) only its contents are in question. `root` is the target.
    pub(super) fn reason(
        &self,
        walk: &Walk<'_>,
        found: &Found,
        extra: bool,
        place: &Path,
    ) -> Option<Reason> {
        let (path, (_, root)) = (walk.path(), walk.root());
        let is_folder = found.meta.kind == Some(Kind::Directory);
        if extra && found.meta.kind == Some(Kind::Symlink) {
            let here = place.join(OsStr::from_bytes(path));
            if let Some((_, own)) = self.links.iter().find(|(link, _)| *link == here) {
                return Some(Reason::Own(format!("a link to {}", own.what)));
            }
        }
        if is_folder && let Some(own) = own_folder(&self.own, &found.meta) {
            return Some(Reason::Own(own.what.clone()));
        }
        if let Some(reason) = self.listed(path).filter(|_| extra || is_folder) {
            return Some(reason);
        }
        let beyond = is_folder && found.meta.device() != root.device();
        if (extra || is_folder) && (found.meta.mounted || beyond) {
            return Some(Reason::Mounted);
        }
        if !extra {
            return None;
        }
        let is_cache = || {
            let folder = walk.folder().filter(|_| is_folder && walk.entered());
            self.exclude_caches && folder.is_some_and(|folder| is_cache(folder.as_fd()))
        };
        if found.meta.kind.is_none() {
            Some(Reason::Socket)
        } else if self.filter.choose_at(path, is_folder) == Choice::Leave || is_cache() {
            Some(Reason::Rules)
        } else {
            None
        }
    }
}

#[derive(Default)]
struct Hashes(Vec<u64>);

impl Hashes {
    fn push(&mut self, hash: u64) {
        if self.0.len() <= LIMIT {
            self.0.push(hash);
        }
    }

    fn sorted(self) -> Result<Vec<u64>, ArchiveError> {
        let Self(mut hashes) = self;
        if hashes.len() > LIMIT {
            let problem = format!(
                "More than {LIMIT} entries are not in the snapshot although they were there, so \
                 `--delete` is refused: restore without it"
            );
            return Err(Problem::Unsuitable(problem).at(b""));
        }
        hashes.sort_unstable();
        Ok(hashes)
    }
}

/// Hears what of the target cannot be read; what is spared need not be.
pub(super) struct Unread<'a> {
    pub(super) spared: &'a Spared,
    /// The first entry, and why.
    pub(super) first: Option<(Vec<u8>, String)>,
}

impl Listener for Unread<'_> {
    fn missing(&mut self, path: &[u8], reason: &str) {
        let spared =
            self.spared.lists(path) || self.spared.filter.choose_at(path, true) == Choice::Leave;
        if self.first.is_none() && !spared {
            self.first = Some((path.to_vec(), reason.to_owned()));
        }
    }

    fn warn(&mut self, _: &[u8], _: &str) {}

    fn note(&mut self, _: &[u8], _: &str) {}
}
