//! A folder of files, dumped as a tarball and an index of it; and a tarball put back into a folder.
//!
//! The streams of a dump are written while the tree is walked (`walk`, `dump`), so memory does not
//! grow with it. The walk never leaves the root, and its inverse (`restore`) never leaves the
//! target. `scope` says which folders a walk does not enter, and `scratch` compares what a drill
//! restored with the index.

mod accounts;
mod attributes;
mod beneath;
mod dump;
mod meta;
mod restore;
mod scope;
mod scratch;
mod walk;

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use beneath::open_beneath;
pub use restore::{DirectoryRestorer, OwnerRule, OwnerRuleError, Who};

use self::dump::{DumpedTree, Dumper};
use self::meta::{Identity, is_mount};
use self::scope::{Boundary, Scope, identified};
use self::walk::Walk;
use super::scratch::refuse_overlap;
use super::{
    ArtifactSpec, Context, Dumped, Finding, Level, Outputs, OwnFolder, ScratchConfig, Source,
    SourceError,
};
use crate::archive::patterns::{Filter, Unmatched};
use crate::archive::{Exclusion, Pattern, Rules, lossy};
use crate::model::{ArtifactKind, Name, Note, Remarks};

/// How consistent a tarball of a live folder is: each file as it was while it was read, not all of
/// one instant.
const CONSISTENCY: &str = "files";

/// An entry was listed, and is there no more.
const VANISHED: &str = "It vanished before it was read";

/// How many entries `check` looks at for what patterns match: seconds of a local disk.
const CHECKED_ENTRIES: u64 = 100_000;

fn unusable(error: impl std::fmt::Display) -> SourceError {
    SourceError::Unsuitable(format!("The patterns cannot be used together: {error}"))
}

/// About the entry at `path`.
fn at(path: &[u8], reason: impl Into<String>) -> Note {
    Note::at(lossy(path), reason)
}

/// The configuration of a `directory` source.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DirectoryConfig {
    /// The folder. A relative path is counted from the folder of the configuration file.
    pub path: PathBuf,
    /// Patterns of what is taken; without any, everything. A pattern without a slash matches a name
    /// at any depth, another is counted from `path`; a folder that matches is taken with all that
    /// is in it. One that nothing was taken for is a warning of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<Pattern>,
    /// Patterns as those of `include`, of what may be absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include_if_present: Vec<Pattern>,
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
    /// Stay on the file system of `path`: of folders of another one (mounts, subvolumes of btrfs)
    /// nothing but the empty folder is taken, and a note names each. A single file that is mounted
    /// beneath `path` is taken.
    #[serde(default)]
    pub one_file_system: bool,
    /// Whether something must be mounted at `path`. Where nothing is, the run fails before anything
    /// is read: the folder beneath a mount that is missing is not the source.
    #[serde(default)]
    pub must_be_mount: bool,
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

    fn rules(&self) -> Rules {
        Rules {
            include: [&self.config.include[..], &self.config.include_if_present].concat(),
            exclude: self.config.exclude.clone(),
            exclude_caches: self.config.exclude_caches,
        }
    }

    fn filter(&self) -> Result<Filter, SourceError> {
        let Rules { include, exclude, .. } = self.rules();
        Filter::new(&include, &exclude).map_err(unusable)
    }

    /// What is wrong with a pattern of `include` that nothing is taken for.
    fn unmatched(&self, pattern: &Pattern) -> String {
        let text = pattern.to_string();
        let root = self.config.path.to_string_lossy();
        let inner =
            text.strip_prefix(root.trim_end_matches('/')).filter(|one| one.starts_with('/'));
        let hint = match inner {
            Some(inner) => format!("It is counted from `path`: write `{inner}`"),
            None => "Correct it, in upper and lower case too, or move it to `include_if_present`"
                .to_owned(),
        };
        format!("`{text}` in `include` matched nothing that is taken. {hint}")
    }

    /// What is said of patterns that match nothing, of the first entries of the folder.
    fn check_patterns(&self, mut walk: Walk<'_>) -> Result<Vec<Finding>, SourceError> {
        walk.unmatched =
            Unmatched::new(&self.config.include, &self.config.exclude).map_err(unusable)?;
        walk.left = CHECKED_ENTRIES;
        let mut remarks = Remarks::default();
        while !walk.unmatched.is_empty() && walk.next(&mut remarks)?.is_some() {}
        let some = if walk.left > 0 {
            String::new()
        } else {
            format!(". Only the first {CHECKED_ENTRIES} entries were looked at")
        };
        let include = walk.unmatched.include().map(|pattern| {
            let level = if walk.left > 0 { Level::Warning } else { Level::Note };
            Finding::new(level, "include", format!("{}{some}", self.unmatched(pattern)))
        });
        let exclude = walk.unmatched.exclude().map(|rule| {
            let message = format!("`{rule}` matched nothing that is looked at{some}");
            Finding::new(Level::Note, "exclude", message)
        });
        Ok(include.chain(exclude).collect())
    }

    /// Opens the root and reads its first names.
    fn open<'a>(
        &self,
        filter: &'a Filter,
        own: &'a [(Identity, OwnFolder)],
        cx: &'a Context,
    ) -> Result<Walk<'a>, SourceError> {
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
        let boundary =
            if self.config.one_file_system { Boundary::FileSystem } else { Boundary::Open };
        let scope = Scope { filter, boundary, own, exclude_caches: self.config.exclude_caches };
        let mut walk = Walk::open(&self.config.path, scope, &cx.cancel).map_err(refused)?;
        if self.config.must_be_mount && !is_mount(walk.root().0).map_err(refused)? {
            return Err(SourceError::Unsuitable(format!(
                "Nothing is mounted at `{path}`, and `must_be_mount` is set. Mount what should be \
                 there, or correct `path`"
            )));
        }
        walk.start().map_err(refused)?;
        Ok(walk)
    }
}

impl Source for Directory {
    fn dump(&self, cx: &Context, outputs: &dyn Outputs) -> Result<Dumped, SourceError> {
        let filter = self.filter()?;
        let own = identified(&cx.own_folders);
        let mut walk = self.open(&filter, &own, cx)?;
        walk.unmatched = Unmatched::new(&self.config.include, &[]).map_err(unusable)?;
        let create = |spec| outputs.create(spec).map_err(SourceError::Stream);
        let tar = create(ArtifactSpec {
            extension: "tar",
            number: ArtifactSpec::FIRST,
            kind: ArtifactKind::Tar,
            bulk: true,
            blocks: true,
        })?;
        let index = create(ArtifactSpec {
            extension: "index",
            number: ArtifactSpec::FIRST,
            kind: ArtifactKind::Index,
            bulk: false,
            blocks: false,
        })?;
        let mut dumper = Dumper::new(tar, index, self.rules(), outputs, &cx.cancel)?;
        dumper.run(&mut walk).map_err(|error| cancelled(cx, error))?;
        if walk.root_is_gone() {
            return Err(SourceError::Unsuitable(format!(
                "The folder `{}` was removed while it was read, so what was read of it is not a \
                 backup",
                self.config.path.display()
            )));
        }
        let DumpedTree { tar, index, missing, entries, counts, mut remarks } = dumper.finish()?;
        for pattern in walk.unmatched.include() {
            remarks.warn(self.unmatched(pattern));
        }
        let artifacts = [Some(tar), Some(index), missing]
            .into_iter()
            .flatten()
            .map(|output| outputs.finish(output).map_err(SourceError::Stream))
            .collect::<Result<_, _>>()?;
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
        Ok(Dumped { artifacts, consistency: CONSISTENCY, facts, remarks })
    }

    fn ensure_present(&self, cx: &Context) -> Result<(), SourceError> {
        self.open(&self.filter()?, &[], cx).map(drop)
    }

    fn check(&self, cx: &Context) -> Vec<Finding> {
        let own = identified(&cx.own_folders);
        let looked = self.filter().and_then(|filter| {
            let walk = self.open(&filter, &own, cx)?;
            self.check_patterns(walk)
        });
        let mut findings = match looked {
            Ok(findings) => {
                let read = Finding::new(Level::Ok, "path", "The folder can be read");
                std::iter::once(read).chain(findings).collect()
            }
            Err(error) => vec![Finding::new(Level::Error, "path", error.to_string())],
        };
        findings.extend(own_within(&own, &self.config.path).map(|own| {
            let message = format!(
                "`{}` is {}: its contents are left out of the backup",
                own.path.display(),
                own.what
            );
            Finding::new(Level::Ok, "path", message)
        }));
        findings
    }

    fn refuse_scratch(
        &self,
        _cx: &Context,
        _config: &ScratchConfig,
        folder: &Path,
        name: &Name,
    ) -> Result<(), SourceError> {
        refuse_overlap(folder, &self.config.path, &format!("the source `{name}`"))
    }
}

/// Those of the program's own folders that lie in `folder`.
fn own_within<'a>(
    own: &'a [(Identity, OwnFolder)],
    folder: &Path,
) -> impl Iterator<Item = &'a OwnFolder> {
    let folder = std::fs::canonicalize(folder).ok();
    own.iter().map(|(_, own)| own).filter(move |own| {
        let path = std::fs::canonicalize(&own.path);
        folder
            .as_ref()
            .zip(path.ok())
            .is_some_and(|(folder, path)| path != *folder && path.starts_with(folder))
    })
}

/// A stream whose other end was cancelled fails as any other; the cancellation is the reason.
fn cancelled(cx: &Context, error: SourceError) -> SourceError {
    match error {
        SourceError::Stream(_) if cx.cancel.is_cancelled() => SourceError::Cancelled,
        error => error,
    }
}
