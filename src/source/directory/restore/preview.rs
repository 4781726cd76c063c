//! What a restore would do to its target, which is only looked at.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::remove::{ExtraAction, Extras, apart, open_down};
use crate::archive::checked_index::CheckedIndex;
use crate::archive::error::{ArchiveError, Problem};
use crate::archive::selection::{Wanted, no_index, select};
use crate::archive::{Kind, PathSet, lossy};
use crate::model::Cancel;
use crate::source::directory::meta::Meta;
use crate::source::{Action, Change, Context, Preview, RestoreOptions, SourceError, Streams};

/// How many changes are listed.
const LISTED: usize = 1_000;

/// Counts what a restore would do to the folder at `place`.
///
/// # Errors
/// When the index or the target cannot be read, or a pattern matches nothing.
pub(super) fn preview(
    streams: &dyn Streams,
    place: &Path,
    options: &RestoreOptions,
    cx: &Context,
) -> Result<Preview, SourceError> {
    let mut preview = Preview::default();
    let mut listed: [Vec<Change>; 4] = Default::default();
    if options.delete {
        let [deletes, keeps, _, _] = &mut listed;
        let mut extras = Extras::new(streams, place, PathSet::chosen(&options.paths)?, cx);
        extras.run(ExtraAction::Report(&mut |path, action| match action {
            Action::Keep => list(keeps, path, action),
            action => list(deletes, path, action),
        }))?;
        (preview.deletes, preview.keeps) = (extras.count, extras.spared);
    }
    entries(streams, place, options, &cx.cancel, &mut preview, &mut listed)?;
    preview.changes = listed.into_iter().flatten().take(LISTED).collect();
    Ok(preview)
}

fn list(changes: &mut Vec<Change>, path: &[u8], action: Action) {
    if changes.len() < LISTED {
        changes.push(Change { path: lossy(path), action });
    }
}

fn entries(
    streams: &dyn Streams,
    place: &Path,
    options: &RestoreOptions,
    cancel: &Cancel,
    preview: &mut Preview,
    [_, _, replaces, creates]: &mut [Vec<Change>; 4],
) -> Result<(), ArchiveError> {
    let patterns = PathSet::chosen(&options.paths)?;
    let selection =
        patterns.map(|patterns| select(streams, Wanted::Patterns(patterns), cancel)).transpose()?;
    let mut index = CheckedIndex::open(streams)?.ok_or_else(no_index)?;
    let mut there =
        There::open(place).map_err(|error| Problem::System("look at the folder", error).at(b""))?;
    let mut ordinal = 0;
    while let Some(entry) = index.next()? {
        if cancel.is_cancelled() {
            return Err(Problem::Cancelled.at(&entry.path));
        }
        let chosen = selection.as_ref().is_none_or(|selection| selection.has(ordinal));
        let leads = selection.as_ref().is_some_and(|selection| selection.leads(ordinal));
        ordinal += 1;
        if !chosen {
            continue;
        }
        if entry.kind == Kind::File {
            preview.bytes = preview.bytes.saturating_add(entry.size);
        }
        if selection.as_ref().is_some_and(|selection| selection.borrowed.contains_key(&entry.path))
        {
            // Its content comes under another name, which is an entry of its own.
            continue;
        }
        let there = there.has(&entry.path);
        if there && leads {
            // It stays as it is.
            continue;
        }
        if there {
            preview.replaces += 1;
            list(replaces, &entry.path, Action::Replace);
        } else {
            preview.creates += 1;
            list(creates, &entry.path, Action::Create);
        }
    }
    Ok(())
}

/// What a target has.
struct There {
    root: Option<OwnedFd>,
    /// The folder that was looked into last; none where it is not there.
    folder: (Vec<u8>, Option<OwnedFd>),
}

impl There {
    fn open(place: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match openat(CWD, place, flags, Mode::empty()) {
            Ok(root) => Some(root),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { root, folder: (b".".to_vec(), None) })
    }

    fn has(&mut self, path: &[u8]) -> bool {
        let Some(root) = &self.root else { return false };
        if path == b"." {
            return true;
        }
        let (folder, name) = apart(path);
        if self.folder.0 != folder {
            self.folder = (folder.to_vec(), open_down(root.as_fd(), folder).ok());
        }
        let name = std::ffi::CString::new(name).ok();
        let folder = self.folder.1.as_ref();
        folder.zip(name).is_some_and(|(folder, name)| Meta::at(folder.as_fd(), &name).is_ok())
    }
}
