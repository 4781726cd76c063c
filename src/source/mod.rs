//! Systems that bytes come from: out of them for a backup, back into them for a restore.
//!
//! This room knows databases, folders and commands. It does not know what becomes of the bytes: not
//! the pipeline, not the storages, not the configuration file. A source blocks and runs on a thread
//! of its own. Its files import this one for the trait, `scratch` for that of what a drill
//! restores, and `process`, the only place that starts a child, but not one another.
//!
//! To add a source: a folder here with its configuration, its [`Source`], its [`Restorer`] and its
//! [`Scratch`]; a variant of [`SourceConfig`] with a line in each of its methods, in [`restorer`]
//! and, where scratch targets are more than folders, in `scratch_providers`; and its artifacts in
//! [`ArtifactKind`].

pub mod command;
pub mod directory;
mod error;
mod finding;
mod own_folder;
mod place;
pub mod postgres;
mod preview;
pub mod process;
pub mod scratch;
pub mod sqlite;
pub mod under_way;

use std::io::{Read, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::error::SourceError;
pub use self::finding::{Finding, Level};
pub use self::own_folder::OwnFolder;
pub use self::preview::{Action, Change, Preview};
use self::scratch::{Scratch, ScratchPlace, ScratchProvider, remove_folder, remove_folders};
pub use crate::archive::Streams;
use crate::model::{ArtifactKind, Cancel, DatabaseUrl, Name, Remarks, Secret};

/// The configuration of a source, by its `type`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SourceConfig {
    /// A PostgreSQL database, dumped whole with the server's own tools.
    Postgres(postgres::PostgresConfig),
    /// An SQLite database file, copied while it is in use.
    Sqlite(sqlite::SqliteConfig),
    /// A folder of files, taken as a tarball.
    Directory(directory::DirectoryConfig),
    /// The standard output of a command.
    Command(command::CommandConfig),
}

impl SourceConfig {
    /// The source that this configures.
    pub fn source(&self) -> Box<dyn Source> {
        match self {
            Self::Postgres(config) => Box::new(postgres::Postgres::new(config.clone())),
            Self::Sqlite(config) => Box::new(sqlite::Sqlite::new(config.clone())),
            Self::Directory(config) => Box::new(directory::Directory::new(config.clone())),
            Self::Command(config) => Box::new(command::Command::new(config.clone())),
        }
    }

    /// Refuses what could never work, without a look at the world.
    ///
    /// # Errors
    /// [`SourceError::Unsuitable`].
    pub fn validate(&self) -> Result<(), SourceError> {
        match self {
            Self::Postgres(config) => config.validate(),
            Self::Command(config) => config.validate(),
            Self::Sqlite(_) | Self::Directory(_) => Ok(()),
        }
    }

    /// Its `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Sqlite(_) => "sqlite",
            Self::Directory(_) => "directory",
            Self::Command(_) => "command",
        }
    }

    /// Makes relative paths absolute, counted from `base`: the folder of the configuration file.
    pub fn resolve(&mut self, base: &Path) {
        match self {
            Self::Postgres(config) => config.resolve(base),
            Self::Sqlite(config) => config.resolve(base),
            Self::Directory(config) => config.resolve(base),
            Self::Command(config) => config.resolve(base),
        }
    }
}

/// The inverse of the source that writes artifacts of `kind`; none for kinds that are not restored
/// by themselves (an index, the facts). It needs no configuration: the host that had it may be
/// gone.
pub fn restorer(kind: ArtifactKind) -> Option<Box<dyn Restorer>> {
    match kind {
        ArtifactKind::PgDump | ArtifactKind::PgGlobals => {
            Some(Box::new(postgres::PostgresRestorer))
        }
        ArtifactKind::Sqlite => Some(Box::new(sqlite::SqliteRestorer)),
        ArtifactKind::Tar => Some(Box::new(directory::DirectoryRestorer)),
        ArtifactKind::Stream => Some(Box::new(command::CommandRestorer)),
        ArtifactKind::Index
        | ArtifactKind::Blocks
        | ArtifactKind::Missing
        | ArtifactKind::Facts => None,
    }
}

/// Where drills restore to, as it is configured, for sources that need to be told.
#[derive(Debug, Clone, Default)]
pub struct ScratchConfig {
    pub postgres: postgres::ScratchServer,
}

/// The kinds of sources whose scratch targets need more than a folder.
fn scratch_providers() -> [(&'static str, &'static dyn ScratchProvider); 1] {
    [("postgres", &postgres::ScratchDatabases)]
}

/// Refuses scratch targets that are one of `sources`, or in a folder of one, before anything is
/// written.
///
/// # Errors
/// [`SourceError::Unsuitable`] when one is.
pub fn refuse_sources(
    cx: &Context,
    config: &ScratchConfig,
    folder: &Path,
    sources: &[(&Name, &SourceConfig)],
) -> Result<(), SourceError> {
    sources
        .iter()
        .try_for_each(|(name, source)| source.source().refuse_scratch(cx, config, folder, name))
}

/// Refuses scratch targets that the source `name` was dumped from, by its facts in a snapshot.
/// Folders are not compared: they may be those of another machine.
///
/// # Errors
/// [`SourceError::Unsuitable`] when one is.
pub fn refuse_dumped(
    cx: &Context,
    config: &ScratchConfig,
    name: &Name,
    facts: &serde_json::Value,
) -> Result<(), SourceError> {
    let dumped = facts.get("type").and_then(serde_json::Value::as_str);
    scratch_providers()
        .iter()
        .filter(|(kind, _)| Some(*kind) == dumped)
        .try_for_each(|(_, provider)| provider.refuse_dumped(cx, config, name, facts))
}

/// Looks whether the scratch targets for `sources` could be made.
pub fn check_scratch(
    cx: &Context,
    config: &ScratchConfig,
    sources: &[&SourceConfig],
) -> Vec<Finding> {
    let check = |(kind, provider): &(&str, &dyn ScratchProvider)| {
        provider.check(cx, config, sources.iter().any(|source| source.kind() == *kind))
    };
    scratch_providers().iter().filter_map(check).collect()
}

/// Removes the leavings of drills: everything whose name begins with `prefix`, in `folders` and on
/// servers, except what is marked as kept. Returns what was removed and what could not be, in
/// words.
pub fn sweep_scratch(
    cx: &Context,
    config: &ScratchConfig,
    folders: &[&Path],
    prefix: &str,
) -> (Vec<String>, Vec<String>) {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    for folder in folders {
        match remove_folders(folder, prefix, stop_in) {
            Ok(paths) => removed.extend(paths.iter().map(|path| format!("`{}`", path.display()))),
            Err(error) => failed.push(error.to_string()),
        }
    }
    for (_, provider) in scratch_providers() {
        match provider.sweep(cx, config, prefix) {
            Ok(targets) => removed.extend(targets),
            Err(error) => failed.push(error.to_string()),
        }
    }
    (removed, failed)
}

/// Removes the scratch folder of a drill and all that is in it; what runs in it is stopped first.
///
/// # Errors
/// When something is left.
pub fn remove_scratch_folder(folder: &Path) -> Result<(), SourceError> {
    remove_folder(folder, stop_in)
}

fn stop_in(folder: &Path) -> Result<(), SourceError> {
    scratch_providers().iter().try_for_each(|(_, provider)| provider.stop(folder))
}

/// What a source or restorer is given of the run it belongs to.
#[derive(Clone)]
pub struct Context {
    pub name: Name,
    /// Watched throughout; cancelled, the call ends with [`SourceError::Cancelled`], its children
    /// killed and reaped.
    pub cancel: Cancel,
    /// For what has an async client only. Sources run on threads that are not the runtime's, so
    /// they may block on it.
    pub runtime: tokio::runtime::Handle,
    /// A child that neither writes, reads nor ends for this long is killed.
    pub no_progress_timeout: Duration,
    /// A private folder for what cannot be streamed.
    pub work_dir: PathBuf,
    /// The program's environment, from which children get an allow-list only.
    pub environment: process::Environment,
    /// Folders that are never dumped, and in which nothing is removed.
    pub own_folders: std::sync::Arc<[OwnFolder]>,
    /// Masked in whatever children say.
    pub secrets: std::sync::Arc<[Secret]>,
    /// What children that ended well said on their standard error.
    pub heard: process::Heard,
}

/// A system that can be dumped.
pub trait Source: Send + Sync {
    /// Writes the source to `outputs`, reading it only.
    ///
    /// Nothing that was written counts unless it is in a returned [`Dumped`]. An artifact is
    /// finished as soon as it is complete, and for one that a child writes that is after its exit
    /// status is known.
    ///
    /// # Errors
    /// When anything that the source must have could not be read; then nothing of it is kept.
    /// [`SourceError::BeginAgain`] makes the engine call it once more.
    fn dump(&self, cx: &Context, outputs: &dyn Outputs) -> Result<Dumped, SourceError>;

    /// Looks whether a dump could begin: tools and versions, reachability, permissions. Reads only,
    /// and quickly.
    fn check(&self, cx: &Context) -> Vec<Finding>;

    /// Looks whether what is dumped is there, without a connection to anything: before the first of
    /// several sources is dumped.
    ///
    /// # Errors
    /// The one that [`Source::dump`] would end with.
    fn ensure_present(&self, _cx: &Context) -> Result<(), SourceError> {
        Ok(())
    }

    /// Refuses scratch targets, on servers or in `folder`, that are this source, or lie in it.
    ///
    /// # Errors
    /// [`SourceError::Unsuitable`].
    fn refuse_scratch(
        &self,
        _cx: &Context,
        _config: &ScratchConfig,
        _folder: &Path,
        _name: &Name,
    ) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Takes the streams of one source.
pub trait Outputs: Sync {
    /// Opens a stream. Several may be open at a time.
    ///
    /// # Errors
    /// When no storage takes it.
    fn create(&self, spec: ArtifactSpec) -> std::io::Result<Output>;

    /// Publishes a stream that is complete. It counts once it is in the [`Dumped`] that the source
    /// returns.
    ///
    /// # Errors
    /// When no storage has all of it.
    fn finish(&self, output: Output) -> std::io::Result<Finished>;
}

/// An artifact that is complete and published. Only [`Outputs::finish`] makes it.
pub struct Finished {
    pub spec: ArtifactSpec,
    /// The name of the database in it, where the source has several.
    pub of: Option<String>,
    /// An object about this artifact alone, tagged with `type` and `v`, where that of the source is
    /// not about it.
    pub facts: Option<serde_json::Value>,
    written: Box<dyn std::any::Any + Send>,
}

impl Finished {
    /// For the engine: `written` is what it knows of the artifact.
    pub fn new(spec: ArtifactSpec, written: Box<dyn std::any::Any + Send>) -> Self {
        Self { spec, of: None, facts: None, written }
    }

    /// For the engine, which gets back what it knows.
    pub fn into_written(self) -> Box<dyn std::any::Any + Send> {
        self.written
    }
}

/// One stream of a source, while it is written. Dropping it gives it up.
pub struct Output {
    pub spec: ArtifactSpec,
    writer: Box<dyn OutputWriter>,
}

/// The writing end of an [`Output`], made and finished by the engine.
pub trait OutputWriter: Write + Send + std::any::Any {
    /// For the engine, which gets its own type back to finish it.
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any>;
}

impl Output {
    /// An output that writes to `writer`.
    pub fn new(spec: ArtifactSpec, writer: Box<dyn OutputWriter>) -> Self {
        Self { spec, writer }
    }

    /// The writing end, for the engine to finish.
    pub fn into_writer(self) -> Box<dyn OutputWriter> {
        self.writer
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

/// What a source says of a stream before it writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactSpec {
    /// The last part of its name: `pgdump`, `tar`.
    pub extension: &'static str,
    /// Which of the source it is, [`ArtifactSpec::FIRST`] where there is but one. What belongs
    /// together has the same, as a tarball and its index.
    pub number: NonZeroU32,
    /// What the stream is.
    pub kind: ArtifactKind,
    /// Whether it is the bulk of the source. Others are small and are written with little memory,
    /// on one thread.
    pub bulk: bool,
    /// Whether where each block begins is stored too, as an artifact of kind `Blocks`.
    pub blocks: bool,
}

impl ArtifactSpec {
    /// The number of a source's only artifact of its kind.
    pub const FIRST: NonZeroU32 = NonZeroU32::MIN;
}

/// A dump that succeeded.
#[must_use = "only what it names is in the snapshot"]
pub struct Dumped {
    /// In the order the manifest lists them.
    pub artifacts: Vec<Finished>,
    /// How consistent the dump is in itself: `snapshot`, or another word of `docs/format.md`.
    pub consistency: &'static str,
    /// An object tagged with `type` and `v`.
    pub facts: serde_json::Value,
    pub remarks: Remarks,
}

/// The inverse of a source: puts its artifacts back.
pub trait Restorer {
    /// Restores one artifact to `target`, reading `input` to its end. The last bytes of `input`
    /// come only after all of it was found undamaged; an error while reading it means damage, and
    /// the restore must not be completed.
    ///
    /// # Errors
    /// When the target is not empty and `overwrite` is not set (before anything is touched), or
    /// anything fails.
    fn restore(&self, job: RestoreJob<'_>, input: &mut dyn Read) -> Result<Restored, SourceError>;

    /// Restores one artifact as [`Restorer::restore`] does, from the streams of a snapshot: for
    /// what reads more than the one stream, or only parts of it.
    ///
    /// # Errors
    /// As [`Restorer::restore`]; and when `options` ask for what this kind of artifact does not
    /// have (`paths`, `delete`).
    fn restore_from(
        &self,
        job: RestoreJob<'_>,
        streams: &dyn Streams,
    ) -> Result<Restored, SourceError> {
        job.options.refuse_files_only(job.artifact)?;
        let mut input = streams.whole().map_err(SourceError::Stream)?;
        self.restore(job, &mut input)
    }

    /// What [`Restorer::restore_from`] would do to `target`, which is not touched.
    ///
    /// # Errors
    /// When it would be refused.
    fn preview(&self, job: RestoreJob<'_>, _streams: &dyn Streams) -> Result<Preview, SourceError> {
        job.options.refuse_files_only(job.artifact)?;
        self.prepare(job)?;
        Ok(Preview::default())
    }

    /// Whether `target` could take it: exists, reachable, empty unless `overwrite`. Called for
    /// every source before any is touched.
    ///
    /// # Errors
    /// When a restore would be refused or could not begin.
    fn prepare(&self, job: RestoreJob<'_>) -> Result<(), SourceError>;

    /// Refuses a restore that removes entries of the target, where the snapshot does not say which
    /// ones it could not have. Called for every source before any is touched.
    ///
    /// # Errors
    /// [`SourceError::DeleteUnsafe`].
    fn ensure_deletable(
        &self,
        _job: RestoreJob<'_>,
        _streams: &dyn Streams,
    ) -> Result<(), SourceError> {
        Ok(())
    }

    /// Makes a scratch target for the artifacts of the source that `artifact` is of.
    ///
    /// # Errors
    /// When it could not be made; nothing of it is left then, or the next sweep finds it.
    fn scratch(
        &self,
        cx: &Context,
        artifact: &RestoreArtifact,
        place: &ScratchPlace,
    ) -> Result<Box<dyn Scratch>, SourceError>;

    /// The source that was dumped, in words, by the `facts` it reported; none where they do not
    /// say.
    fn describe(&self, facts: &serde_json::Value) -> Option<String>;

    /// The ordinary commands that restore the plain stream of `artifact` without this program,
    /// each from standard input (`… | <this>`).
    fn by_hand(&self, artifact: &RestoreArtifact) -> Vec<String>;
}

/// What is restored.
#[derive(Debug, Clone)]
pub struct RestoreArtifact {
    /// The id of the snapshot that it is of.
    pub snapshot: String,
    /// `db.pgdump`.
    pub name: String,
    /// What the stream is.
    pub kind: ArtifactKind,
    /// Bytes of the plain stream, where the facts could be read.
    pub plain_bytes: Option<u64>,
    /// The name of the database in it, where its source had several.
    pub of: Option<String>,
    /// Whether entries of the source are missing, as far as the facts tell; true where they could
    /// not be read.
    pub partial: bool,
    /// What the source reported of it when it was dumped, its tagged object; null where unknown.
    pub facts: serde_json::Value,
}

/// Where a restore goes.
#[derive(Debug, Clone)]
pub enum Target {
    /// A folder of this source's own (`DIR/<source>`), made when missing. A database dump is put
    /// there as a file.
    Folder(PathBuf),
    /// A database: `postgresql://…`, `sqlite:///path`.
    Database(DatabaseUrl),
    /// The `restore_command` of a source, which reads the stream on its standard input.
    Command(Box<command::CommandConfig>),
}

/// One restore of one artifact.
#[derive(Clone, Copy)]
pub struct RestoreJob<'a> {
    /// The run it belongs to.
    pub cx: &'a Context,
    /// The artifact that is restored.
    pub artifact: &'a RestoreArtifact,
    pub target: &'a Target,
    /// How it is done.
    pub options: &'a RestoreOptions,
}

/// How a restore is done.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Replace what is there.
    pub overwrite: bool,
    /// What the same restore did before it was interrupted.
    pub recorded: under_way::Recorded,
    /// Parallel jobs, for what knows them (`pg_restore -j`); 0 or 1 is one.
    pub jobs: usize,
    /// Do not restore owners (nor, in databases, privileges): everything belongs to who restores.
    pub no_owner: bool,
    /// Databases only: the target is thrown away again. Everything lies in the default tablespace,
    /// and nothing subscribes to other servers.
    pub scratch: bool,
    /// Databases only: a superuser of the target, which is in a cluster that was made for this
    /// restore. It makes what only a superuser can make, and runs no code of the source's users:
    /// all else is restored as the user of the target.
    pub superuser: Option<DatabaseUrl>,
    /// Files only: to whom entries belong; the first rule that fits an entry counts, and none
    /// leaves it its owner.
    pub owners: Vec<directory::OwnerRule>,
    /// Files only: restore what these patterns match, with the folders that lead there, which stay
    /// as they are where they are there already; everything when empty.
    pub paths: Vec<crate::archive::Pattern>,
    /// Files and PostgreSQL databases: remove what the target has and the snapshot has not. With
    /// `paths`, in the folders that they match.
    pub delete: bool,
}

impl RestoreOptions {
    /// Refuses, for the artifact, what only folders of files can do, or these and databases.
    fn refuse_files_only(&self, artifact: &RestoreArtifact) -> Result<(), SourceError> {
        let name = &artifact.name;
        let delete = self.delete && artifact.kind != ArtifactKind::PgDump;
        let option =
            if self.paths.is_empty() { delete.then_some("--delete") } else { Some("--path") };
        option.map_or(Ok(()), |option| {
            Err(SourceError::Unsuitable(format!(
                "`{option}` is for folders of files, and `{name}` is none: name the source that is \
                 meant with `--source`"
            )))
        })
    }
}

/// A restore that succeeded.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// Where it is now, in words: a path or a masked address.
    pub place: String,
    pub remarks: Remarks,
    /// Of a folder: entries restored, bytes of their files, and entries removed.
    pub files: Option<RestoredFiles>,
    /// Of a database: what of its settings somebody else has to restore.
    pub statements: Vec<postgres::LeftStatement>,
}

/// What was restored to a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RestoredFiles {
    /// Entries written, folders among them.
    pub entries: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
    /// Entries that were removed as the snapshot does not have them.
    pub deleted: u64,
}
