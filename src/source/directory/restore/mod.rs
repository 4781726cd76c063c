//! A tarball put back into a folder: `extract` reads the entries, a few threads write the files
//! (`write_pool`, `file_writer`), `finish` gives owners, permissions and times. `remove` deletes
//! entries that the snapshot does not have, except those that it could not have (`spared`),
//! `preview` lists the changes without making them, and `marker` tells an interrupted restore from
//! a folder in use.

mod errors;
mod extract;
mod file_writer;
mod finish;
mod folders;
mod marker;
mod owner_rule;
mod preview;
mod remove;
mod spared;
#[cfg(test)]
mod tests;
mod write_pool;

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::Access;

pub use owner_rule::{OwnerRule, OwnerRuleError, Who};

use self::extract::ExtractOptions;
use self::finish::Finisher;
use self::marker::{Marker, TargetState};
use self::owner_rule::OwnerRules;
use self::remove::{ExtraAction, Extras};
use super::accounts::Accounts;
use super::cancelled;
use super::scratch::ScratchFolder;
use crate::archive::checked_index::CheckedIndex;
use crate::archive::cursor::IndexCursor;
use crate::archive::entry_stream::EntryStream;
use crate::archive::reader::TarReader;
use crate::archive::selection::{Wanted, no_index, select};
use crate::archive::{ArchiveError, PathSet};
use crate::model::Remarks;
use crate::source::scratch::{Scratch, ScratchPlace};
use crate::source::{
    Context, Preview, RestoreArtifact, RestoreJob, RestoreOptions, Restored, Restorer, SourceError,
    Streams, Target,
};

/// Puts a tarball back into a folder.
pub struct DirectoryRestorer;

impl DirectoryRestorer {
    /// What the target has in it, when a restore to it may begin.
    fn stand(
        place: &Path,
        artifact: &RestoreArtifact,
        options: &RestoreOptions,
    ) -> Result<TargetState, SourceError> {
        let path = place.display().to_string();
        match marker::standing(place, &Marker::new(artifact, options)) {
            Ok(TargetState::InUse(marker)) => Err(marker::refuse_in_use(place, &marker)),
            Ok(TargetState::Occupied) if !options.overwrite => Err(SourceError::NotEmpty(path)),
            Ok(TargetState::OtherRestore(marker)) if !options.overwrite => {
                Err(marker::refuse_another(place, &marker))
            }
            Ok(standing) => Ok(standing),
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && place.symlink_metadata().is_err() =>
            {
                Ok(TargetState::Empty)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                Err(SourceError::Unsuitable(format!(
                    "`{path}` is not a folder, or lies in what is none. Choose another target, or \
                     remove what is there"
                )))
            }
            Err(error) => Err(SourceError::Io { attempt: "look into the folder", path, error }),
        }
    }

    /// Who entries are given to; refuses what cannot be asked for together.
    fn finisher(options: &RestoreOptions) -> Result<Finisher, SourceError> {
        if options.no_owner && !options.owners.is_empty() {
            return Err(SourceError::Unsuitable(
                "`--owner` says to whom files belong and `--no-owner` that no owner is restored: \
                 choose one"
                    .to_owned(),
            ));
        }
        if options.delete && !options.overwrite {
            return Err(SourceError::Unsuitable(
                "`--delete` removes what is in the target and not in the snapshot, so it needs \
                 `--overwrite`. Look at what it would do with `--dry-run` first"
                    .to_owned(),
            ));
        }
        let accounts = Accounts::default();
        let rules = OwnerRules::resolve(&options.owners, &accounts)?;
        Ok(Finisher::new(options.no_owner, rules, accounts))
    }

    /// Restores what `entries` has.
    fn extract(
        cx: &Context,
        artifact: &RestoreArtifact,
        entries: &mut EntryStream<'_>,
        target: &Target,
        options: &RestoreOptions,
        after: impl FnOnce(BorrowedFd<'_>) -> Result<(u64, Remarks), SourceError>,
    ) -> Result<Restored, SourceError> {
        let place = folder(target)?;
        let resumed = matches!(Self::stand(place, artifact, options)?, TargetState::Interrupted);
        let new = entries.cursor.is_some() && !options.overwrite && !resumed;
        let manner = ExtractOptions {
            marker: Marker::new(artifact, options),
            finisher: Self::finisher(options)?,
            resumed,
            new,
            cancel: &cx.cancel,
            recorded: &options.recorded,
        };
        let (remarks, files) = extract::extract(entries, place, manner, after)
            .map_err(|error| cancelled(cx, error))?;
        Ok(Restored {
            place: place.display().to_string(),
            remarks,
            files: Some(files),
            ..Restored::default()
        })
    }
}

impl Restorer for DirectoryRestorer {
    fn restore(&self, job: RestoreJob<'_>, input: &mut dyn Read) -> Result<Restored, SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        self.prepare(job)?;
        if !options.paths.is_empty() || options.delete {
            return Err(no_index().into());
        }
        let mut entries = EntryStream { reader: TarReader::new(input), cursor: None };
        Self::extract(cx, artifact, &mut entries, target, options, |_| Ok((0, Remarks::default())))
    }

    fn restore_from(
        &self,
        job: RestoreJob<'_>,
        streams: &dyn Streams,
    ) -> Result<Restored, SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        self.prepare(job)?;
        let read = |error: ArchiveError| cancelled(cx, error.into());
        let Some(index) = CheckedIndex::open(streams).map_err(read)? else {
            let mut input = streams.whole().map_err(SourceError::Stream)?;
            return self.restore(job, &mut input);
        };
        if options.delete {
            self.ensure_deletable(job, streams)?;
        }
        let place = folder(target)?;
        let patterns = || PathSet::chosen(&options.paths);
        let selection =
            patterns()?.map(|patterns| select(streams, Wanted::Patterns(patterns), &cx.cancel));
        let selection = selection.transpose().map_err(read)?;
        let input = match &selection {
            Some(selection) => streams.parts(selection.ranges.clone()),
            None => streams.whole(),
        };
        let mut input = input.map_err(SourceError::Stream)?;
        let cursor = Some(IndexCursor::new(index, selection.as_ref()));
        let mut entries = EntryStream { reader: TarReader::new(&mut input), cursor };
        Self::extract(cx, artifact, &mut entries, target, options, |root| {
            if !options.delete {
                return Ok((0, Remarks::default()));
            }
            let mut extras = Extras::new(streams, place, patterns()?, cx);
            extras.run(ExtraAction::Remove(root))?;
            Ok((extras.count, extras.remarks))
        })
    }

    fn preview(&self, job: RestoreJob<'_>, streams: &dyn Streams) -> Result<Preview, SourceError> {
        let RestoreJob { cx, target, options, .. } = job;
        self.prepare(job)?;
        if options.delete {
            self.ensure_deletable(job, streams)?;
        }
        preview::preview(streams, folder(target)?, options, cx)
            .map_err(|error| cancelled(cx, error))
    }

    fn ensure_deletable(
        &self,
        job: RestoreJob<'_>,
        streams: &dyn Streams,
    ) -> Result<(), SourceError> {
        spared::ensure_deletable(job.cx, job.artifact, folder(job.target)?, streams)
    }

    fn prepare(&self, job: RestoreJob<'_>) -> Result<(), SourceError> {
        let RestoreJob { artifact, target, options, .. } = job;
        let place = folder(target)?;
        Self::finisher(options)?;
        // What is missing is made, in the nearest folder that is there.
        if let Some(nearest) = place
            .ancestors()
            .find(|ancestor| ancestor.symlink_metadata().is_ok())
            .filter(|nearest| nearest.is_dir())
        {
            rustix::fs::access(nearest, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
                SourceError::Io {
                    attempt: "write to the folder",
                    path: nearest.display().to_string(),
                    error: error.into(),
                }
            })?;
        }
        Self::stand(place, artifact, options).map(drop)
    }

    fn scratch(
        &self,
        cx: &Context,
        _artifact: &RestoreArtifact,
        place: &ScratchPlace,
    ) -> Result<Box<dyn Scratch>, SourceError> {
        Ok(Box::new(ScratchFolder::new(&cx.name, place)))
    }

    fn describe(&self, facts: &serde_json::Value) -> Option<String> {
        Some(format!("the folder `{}`", facts.get("path")?.as_str()?))
    }

    fn by_hand(&self, _artifact: &RestoreArtifact) -> Vec<String> {
        vec!["tar -xpf - --numeric-owner --xattrs --xattrs-include='*' -C \"$DIR\"".to_owned()]
    }
}

/// The folder that `target` is.
fn folder(target: &Target) -> Result<&Path, SourceError> {
    match target {
        Target::Folder(path) => Ok(path),
        Target::Database(_) | Target::Command(_) => Err(SourceError::Unsuitable(
            "A tarball of files can be restored to a folder only. Choose a folder as the target"
                .to_owned(),
        )),
    }
}
