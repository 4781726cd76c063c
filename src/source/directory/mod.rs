//! A folder of files, taken as a tarball and an index of it; and a tarball put back into a folder.
//!
//! The tarball is an ordinary one (`tarball`), the index says where in it each entry is and what
//! its content's digest is (`index`). Both are written while the tree is walked (`walk`, `dump`),
//! so memory does not grow with it; files are read a little ahead, by a few threads (`ahead`,
//! `content`), and written in the order of the walk. The walk never leaves the root, and the
//! inverse (`extract`, which reads any tar through `reader`) never leaves its target.
//!
//! A restore of a snapshot is driven by its index (`guide`, `feed`): what differs from it, content
//! included (`proof`), is damage. Parts are chosen by `select`, given out without a restore by
//! `give`, written by a few threads (`crew`, `finish`); `remove` takes away what the snapshot does
//! not have, `preview` says what would happen, `scratch` compares what a drill restored with the
//! index, and `marker` tells a restore that was interrupted from a folder in use.

mod accounts;
mod ahead;
mod attributes;
mod content;
mod crew;
mod dump;
mod errors;
mod extract;
mod finish;
mod links;
mod marker;
mod meta;
mod owner_rule;
mod preview;
mod remove;
mod scratch;
#[cfg(test)]
mod tests;
mod walk;

use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use owner_rule::{OwnerRule, OwnerRuleError};

use super::scratch::{Scratch, ScratchPlace};
use super::{
    ArtifactSpec, Context, Dumped, Finding, Level, Outputs, Preview, RestoreArtifact,
    RestoreOptions, Restored, Restorer, Source, SourceError, Streams, Target,
};
use crate::archive::checked_index::CheckedIndex;
use crate::archive::cursor::IndexCursor;
use crate::archive::entry_stream::EntryStream;
use crate::archive::error::Problem;
use crate::archive::patterns::Filter;
use crate::archive::reader::TarReader;
use crate::archive::selection::{Wanted, no_index, select};
use crate::archive::{ArchiveError, Exclusion, PathSet, Pattern};
use crate::model::ArtifactKind;
use accounts::Accounts;
use dump::Dumper;
use extract::Manner;
use finish::Finisher;
use marker::Standing;
use owner_rule::OwnerRules;
use remove::{Extras, Fate};
use scratch::ScratchFolder;
use walk::{Notes, Scope, Walk};

/// How consistent a tarball of a live folder is: each file as it was while it was read, not all of
/// one instant.
const CONSISTENCY: &str = "files";

/// The configuration of a `directory` source.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectoryConfig {
    /// The folder. A relative path is counted from the folder of the configuration file.
    pub path: PathBuf,
    /// Patterns of what is taken; without any, everything. A pattern without a slash matches a name
    /// at any depth, another is counted from `path`; a folder that matches is taken with all that
    /// is in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<Pattern>,
    /// Patterns of what is left out, stronger than `include`: `"*.tmp"`, `"cache/"` (folders only),
    /// `"/tmp/**"` (what is in `tmp`). A pattern that begins with `!` takes back what one before it
    /// left out; the last that matches decides. What lies in a folder that is left out cannot be
    /// taken back, as nobody looks there: write `["/tmp/**", "!/tmp/keep"]`, not
    /// `["/tmp", "!/tmp/keep"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Exclusion>,
    /// Leave out what is in folders marked as caches: those with a file `CACHEDIR.TAG` that begins
    /// as <https://bford.info/cachedir/> says. Such a folder and its tag are taken. `path` itself
    /// is never taken for one.
    #[serde(default)]
    pub exclude_caches: bool,
    /// Stay on the file system of `path`: what is mounted beneath it is left out.
    #[serde(default)]
    pub one_file_system: bool,
}

impl DirectoryConfig {
    /// Makes relative paths absolute.
    pub fn resolve(&mut self, base: &Path) {
        self.path = crate::model::counted_from(base, &self.path);
    }
}

/// A folder that can be dumped.
pub struct Directory {
    config: DirectoryConfig,
}

impl Directory {
    /// As configured.
    pub fn new(config: DirectoryConfig) -> Self {
        Self { config }
    }

    fn filter(&self) -> Result<Filter, SourceError> {
        Filter::new(&self.config.include, &self.config.exclude).map_err(|error| {
            SourceError::Unsuitable(format!("The patterns cannot be used together: {error}"))
        })
    }

    /// Opens the root and reads its first names.
    fn open<'a>(&self, filter: &'a Filter, cx: &'a Context) -> Result<Walk<'a>, SourceError> {
        let path = self.config.path.display();
        let refused = |error: Errno| match error {
            Errno::NOENT => SourceError::Unsuitable(format!(
                "The folder `{path}` does not exist. Correct `path`, or mount what should be there"
            )),
            Errno::NOTDIR => {
                SourceError::Unsuitable(format!("`{path}` is not a folder. Correct `path`"))
            }
            error => SourceError::Io {
                attempt: "read the folder",
                path: path.to_string(),
                error: error.into(),
            },
        };
        let scope = Scope {
            filter,
            one_file_system: self.config.one_file_system,
            exclude_caches: self.config.exclude_caches,
        };
        let mut walk = Walk::open(&self.config.path, scope, &cx.cancel).map_err(refused)?;
        walk.start().map_err(refused)?;
        Ok(walk)
    }
}

impl Source for Directory {
    fn dump(&self, cx: &Context, outputs: &dyn Outputs) -> Result<Dumped, SourceError> {
        let filter = self.filter()?;
        let mut walk = self.open(&filter, cx)?;
        let create = |spec| outputs.create(spec).map_err(SourceError::Stream);
        let tar = create(ArtifactSpec {
            extension: "tar",
            kind: ArtifactKind::Tar,
            bulk: true,
            blocks: true,
        })?;
        let index = create(ArtifactSpec {
            extension: "index",
            kind: ArtifactKind::Index,
            bulk: false,
            blocks: false,
        })?;
        let mut dumper = Dumper::new(tar, index, &cx.cancel)?;
        dumper.run(&mut walk).map_err(|error| cancelled(cx, error))?;
        if walk.root_is_gone() {
            return Err(SourceError::Unsuitable(format!(
                "The folder `{}` was removed while it was read, so what was read of it is not a \
                 backup",
                self.config.path.display()
            )));
        }
        let (tar, index, entries, counts, notes) = dumper.finish()?;
        let facts = json!({
            "type": "directory",
            "v": 1,
            "path": self.config.path.to_string_lossy(),
            "entries": entries,
            "files": counts.files,
            "directories": counts.directories,
            "symlinks": counts.symlinks,
            "hardlinks": counts.hardlinks,
            "others": counts.others,
            "bytes": counts.bytes,
            "skipped": counts.skipped + walk.skipped,
            "excluded": walk.excluded,
            "changed": counts.changed,
        });
        Ok(Dumped { outputs: vec![tar, index], consistency: CONSISTENCY, facts, warnings: notes.0 })
    }

    fn check(&self, cx: &Context) -> Vec<Finding> {
        let filter = self.filter();
        let opened = filter
            .as_ref()
            .map_err(ToString::to_string)
            .and_then(|filter| self.open(filter, cx).map_err(|error| error.to_string()));
        vec![match opened {
            Ok(_) => Finding::new(Level::Ok, "path", "The folder can be read"),
            Err(problem) => Finding::new(Level::Error, "path", problem),
        }]
    }
}

/// Puts a tarball back into a folder.
pub struct DirectoryRestorer;

impl DirectoryRestorer {
    /// What the target has in it, when a restore to it may begin.
    fn stand(
        place: &Path,
        artifact: &RestoreArtifact,
        options: &RestoreOptions,
    ) -> Result<Standing, SourceError> {
        let path = place.display().to_string();
        match marker::standing(place, artifact) {
            Ok(Standing::Full) if !options.overwrite => Err(SourceError::NotEmpty(path)),
            Ok(Standing::Another(marker)) if !options.overwrite => {
                Err(marker::refuse_another(place, &marker))
            }
            Ok(standing) => Ok(standing),
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound
                    && place.symlink_metadata().is_err() =>
            {
                Ok(Standing::Empty)
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
        after: impl FnOnce(BorrowedFd<'_>) -> Result<(u64, Notes), SourceError>,
    ) -> Result<Restored, SourceError> {
        let place = folder(target)?;
        let resumed = matches!(Self::stand(place, artifact, options)?, Standing::Interrupted);
        let new = entries.cursor.is_some() && !options.overwrite && !resumed;
        let manner = Manner {
            artifact,
            finisher: Self::finisher(options)?,
            resumed,
            new,
            cancel: &cx.cancel,
        };
        let (warnings, files) = extract::extract(entries, place, manner, after)
            .map_err(|error| cancelled(cx, error))?;
        Ok(Restored { place: place.display().to_string(), warnings, files: Some(files) })
    }
}

impl Restorer for DirectoryRestorer {
    fn restore(
        &self,
        cx: &Context,
        artifact: &RestoreArtifact,
        input: &mut dyn Read,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<Restored, SourceError> {
        self.prepare(cx, artifact, target, options)?;
        if !options.paths.is_empty() || options.delete {
            return Err(no_index().into());
        }
        let mut entries = EntryStream { reader: TarReader::new(input), cursor: None };
        Self::extract(cx, artifact, &mut entries, target, options, |_| Ok((0, Notes::default())))
    }

    fn restore_from(
        &self,
        cx: &Context,
        artifact: &RestoreArtifact,
        streams: &dyn Streams,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<Restored, SourceError> {
        self.prepare(cx, artifact, target, options)?;
        let read = |error: ArchiveError| cancelled(cx, error.into());
        let Some(index) = CheckedIndex::open(streams).map_err(read)? else {
            let mut input = streams.whole().map_err(SourceError::Stream)?;
            return self.restore(cx, artifact, &mut input, target, options);
        };
        let place = folder(target)?;
        let patterns = || path_set(options);
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
                return Ok((0, Notes::default()));
            }
            let mut extras = Extras::new(streams, place, patterns()?, &cx.cancel);
            extras.run(Fate::Remove(root))?;
            Ok((extras.count, extras.notes))
        })
    }

    fn preview(
        &self,
        cx: &Context,
        artifact: &RestoreArtifact,
        streams: &dyn Streams,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<Preview, SourceError> {
        self.prepare(cx, artifact, target, options)?;
        preview::preview(streams, folder(target)?, options, &cx.cancel)
            .map_err(|error| cancelled(cx, error))
    }

    fn prepare(
        &self,
        _cx: &Context,
        artifact: &RestoreArtifact,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<(), SourceError> {
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

    fn by_hand(&self, _artifact: &RestoreArtifact) -> String {
        "tar -xpf - --numeric-owner --xattrs --xattrs-include='*' -C \"$DIR\"".to_owned()
    }
}

/// A stream whose other end was cancelled fails as any other; the cancellation is the reason.
fn cancelled(cx: &Context, error: SourceError) -> SourceError {
    match error {
        SourceError::Stream(_) if cx.cancel.is_cancelled() => SourceError::Cancelled,
        error => error,
    }
}

/// The chosen paths; none when everything is restored.
fn path_set(options: &RestoreOptions) -> Result<Option<PathSet>, ArchiveError> {
    let set = (!options.paths.is_empty()).then(|| PathSet::new(&options.paths)).transpose();
    set.map_err(|error| Problem::Unsuitable(format!("{error}. Use a smaller one")).at(b""))
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
