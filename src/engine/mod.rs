//! The verbs: run, list, status, hold, prune, copy, export, import, files, diff, dump, verify,
//! restore, drill, check; and the locks.
//!
//! This room puts the others together: sources write through the pipeline into the storages, and a
//! manifest commits what they wrote. It does not parse the command line, does not print, and reads
//! no configuration file; it is handed validated settings.
//!
//! To add a verb: a file here that takes an [`Engine`] and returns a value that the command shows.

mod arrival;
mod check;
mod copy;
mod diff;
mod drill;
mod dump;
mod exchange;
mod fetch;
mod files;
mod forget;
mod lock;
mod marks;
mod outputs;
mod overview;
mod prune;
mod restore;
mod run;
mod snapshots;
mod status;
mod streams;
mod sweep;
mod verify;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::OnceCell;

pub use check::{CheckReport, StorageCheck, StrategyCheck, check};
pub use copy::{CopiedSnapshot, CopyReport, CopyRequest, CopyState, copy};
pub use diff::{Aspect, Change, DiffSummary, Difference, FileDifference, FileState, Tally, diff};
pub use drill::{
    DrillRequest, LastDrills, drill, drill_reports, last_drilled, last_drills, to_report,
};
pub use dump::{DumpReport, DumpRequest, dump};
pub use exchange::{
    ExportReport, ExportRequest, ImportReport, ImportRequest, export, export_fresh, import,
};
pub use fetch::{read_facts, read_plain};
pub use files::{Side, files};
pub use forget::forget;
pub use lock::{Scheduler, SchedulerLock, scheduler};
pub use marks::{Drilled, Hold, MarkReport, Marks, hold, read_marks, release};
pub use overview::{
    Forecast, HORIZONS, PlaceStats, Retention, Standing, Stats, StorageStats, standings, stats,
};
pub use prune::{
    PlacePlan, PlannedSnapshot, PrunePlan, PruneReport, PruneScope, Refusal, plan_prune, prune,
};
pub use restore::{
    Destination, PlannedArtifact, RestorePlan, RestoreReport, RestoreRequest, RestoredArtifact,
    by_hand, plan_restore, restore, shell_quoted,
};
pub use run::{RunPlan, last_began, plan, run};
pub use snapshots::{Listing, Selection, Snapshot, find, list, parse_at};
pub use status::{
    fill_status, is_said_to_be_stale, list_strategy, newest_everywhere, note_stale, status, watch,
};
pub use verify::{ReadData, SnapshotVerdict, VerifyReport, last_verified, verify, verify_strategy};

use crate::catalog::{self, Catalog, CatalogError};
use crate::model::{Cancel, Clock, Name};
use crate::pipeline::Stopwatch;
use crate::report::Progress;
use crate::source::SourceError;
use crate::source::process::Environment;
use crate::storage::{Storage, StorageConfig, StorageError};

/// What every verb needs of the world.
#[derive(Clone)]
pub struct Engine {
    /// Where the catalog and the locks are.
    pub state_dir: PathBuf,
    /// Where the time comes from.
    pub clock: Clock,
    /// Asks the verb to stop.
    pub cancel: Cancel,
    /// Counts what was done, for a display.
    pub progress: Progress,
    /// The program's environment, for children.
    pub environment: Environment,
    /// Called when a run has its lock and begins.
    pub began: Option<Arc<dyn Fn() + Send + Sync>>,
    catalog: Arc<OnceCell<Option<Catalog>>>,
    /// Whether it was said that the catalog cannot be used.
    warned: Arc<AtomicBool>,
}

impl Engine {
    /// An engine that keeps its state in `state_dir`.
    pub fn new(state_dir: PathBuf, environment: Environment) -> Self {
        Self {
            state_dir,
            clock: Clock::system(),
            cancel: Cancel::new(),
            progress: Progress::new(),
            environment,
            began: None,
            catalog: Arc::default(),
            warned: Arc::default(),
        }
    }

    /// An engine that keeps no state, for reading from a storage on a machine that has no
    /// configuration.
    pub fn stateless(environment: Environment) -> Self {
        let catalog = Arc::new(OnceCell::new_with(Some(None)));
        Self { catalog, ..Self::new(PathBuf::new(), environment) }
    }

    /// The catalog. What cannot be used now may be a moment later.
    ///
    /// # Errors
    /// When it cannot be used.
    async fn try_catalog(&self) -> Result<&Catalog, EngineError> {
        let open = || async {
            make_private_folder(&self.state_dir)?;
            Ok::<_, EngineError>(Some(self.open_catalog().await?))
        };
        let none = || EngineError::Request("Nothing is recorded without a state folder".to_owned());
        self.catalog.get_or_try_init(open).await?.as_ref().ok_or_else(none)
    }

    /// The catalog, or none, with a warning the first time, when it cannot be used: it is a cache.
    async fn catalog(&self) -> Option<&Catalog> {
        if self.catalog.get().is_some_and(Option::is_none) {
            return None;
        }
        match self.try_catalog().await {
            Ok(catalog) => {
                self.warned.store(false, Ordering::Relaxed);
                Some(catalog)
            }
            Err(error) if self.warned.swap(true, Ordering::Relaxed) => {
                tracing::debug!("{error}; going on without the catalog");
                None
            }
            Err(error) => {
                tracing::warn!("{error}; going on without the catalog");
                None
            }
        }
    }

    /// The same engine, for a run of which nothing is recorded.
    fn unrecorded(&self) -> Self {
        Self { catalog: Arc::new(OnceCell::new_with(Some(None))), ..self.clone() }
    }

    /// Forgets what the catalog has of snapshots and marks. The next listing reads every manifest
    /// anew.
    ///
    /// # Errors
    /// When the catalog cannot be used at all.
    pub async fn forget_manifests(&self) -> Result<(), EngineError> {
        make_private_folder(&self.state_dir)?;
        self.open_catalog().await?.clear().await?;
        Ok(())
    }

    async fn open_catalog(&self) -> Result<Catalog, CatalogError> {
        // What is wrong with it is told by the catalog.
        let _ = make_private_file(&self.state_dir.join(catalog::FILE));
        Catalog::open(&self.state_dir).await
    }
}

/// A storage by its name, opened.
#[derive(Clone)]
pub struct OpenStorage {
    /// The name in the configuration; `storage` for one that was given by its address.
    pub name: Name,
    /// The storage.
    pub storage: Arc<dyn Storage>,
    fetched: Arc<AtomicU64>,
    /// Counts the time that reading from it takes, by step, where somebody wants to know.
    watch: Option<Stopwatch>,
}

impl OpenStorage {
    /// Opens what `config` says, under `name`.
    ///
    /// # Errors
    /// When the configuration cannot be used.
    pub async fn open(
        name: &Name,
        config: &StorageConfig,
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        let storage =
            config.open(cancel).await.map_err(|error| EngineError::storage(name, error))?;
        Ok(Self {
            name: name.clone(),
            storage: Arc::from(storage),
            fetched: Arc::default(),
            watch: None,
        })
    }

    /// Bytes of artifacts that were fetched from it so far, those included that nobody read any
    /// more.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }
}

/// An error when `open`, whose lock is not free, is the same folder as one that this very verb has
/// locked: by way of a link, say.
async fn not_twice(
    open: &OpenStorage,
    ours: impl Iterator<Item = &OpenStorage>,
) -> Result<(), EngineError> {
    let Ok(path) = tokio::fs::canonicalize(open.storage.address()).await else { return Ok(()) };
    for other in ours {
        if tokio::fs::canonicalize(other.storage.address()).await.is_ok_and(|other| other == path) {
            return Err(EngineError::Request(format!(
                "The storages `{}` and `{}` are the same place, `{}`: two names for one place are \
                 no second copy. Remove one of them",
                other.name,
                open.name,
                path.display()
            )));
        }
    }
    Ok(())
}

/// Runs `work` on a thread that may block, and what it logs belongs to what the caller's does. A
/// panic there is an error of the verb, not the end of the program.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|error| EngineError::Internal(error.to_string()))
}

/// Bytes that are free where `folder` lies, for who is not root.
fn free_bytes(folder: &Path) -> Result<u64, EngineError> {
    let space = rustix::fs::statvfs(folder).map_err(|error| EngineError::File {
        attempt: "measure the free space of",
        path: folder.to_owned(),
        error: error.into(),
    })?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Makes a folder, with its parents, that only its owner may look into.
fn make_private_folder(path: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::{DirBuilderExt as _, lchown};
    let mut builder = std::fs::DirBuilder::new();
    let failed =
        |error| EngineError::State { attempt: "create the folder", path: path.to_owned(), error };
    if let Some(parent) = path.parent() {
        builder.recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    match builder.recursive(false).create(path) {
        Ok(()) => {
            if let Some((user, group)) = owner_of_the_folder_of(path) {
                let _ = lchown(path, Some(user), Some(group));
            }
            Ok(())
        }
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Makes an empty private file, unless there is one.
fn make_private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, fchown};
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            if let Some((user, group)) = owner_of_the_folder_of(path) {
                // Through the file that was just made, so that nothing else changes hands which
                // somebody puts under its name.
                let _ = fchown(&file, Some(user), Some(group));
            }
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whose what root makes in the state of another user has to be: a service that runs as this user
/// goes on after root had a look.
fn owner_of_the_folder_of(path: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt as _;
    let folder = std::fs::metadata(path.parent()?).ok()?;
    (rustix::process::geteuid().is_root() && folder.uid() != 0)
        .then(|| (folder.uid(), folder.gid()))
}

/// Why a verb did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Another run holds the lock.
    #[error("Another run of `{strategy}` is under way: {holder}. Wait for it to end")]
    Locked {
        /// The strategy.
        strategy: Name,
        /// Who holds it.
        holder: String,
    },
    /// Another scheduler looks after the same state folder.
    #[error("Another scheduler is running: it holds `{}`. Stop it first; to read a changed \
        configuration, run `backup reload`", .path.display())]
    Scheduled {
        /// Its lock.
        path: PathBuf,
    },
    /// A source failed.
    #[error("The source `{name}` failed")]
    Source {
        /// Its name.
        name: Name,
        /// Why.
        #[source]
        error: Box<SourceError>,
    },
    /// An artifact could not be put where it should go.
    #[error("Could not restore `{artifact}`")]
    Restore {
        /// Its name.
        artifact: String,
        /// Why.
        #[source]
        error: Box<SourceError>,
    },
    /// A program of the operator failed that was to be run before a source was dumped.
    #[error("A hook failed, so nothing was dumped")]
    Hook {
        /// Which, and why.
        #[source]
        error: Box<SourceError>,
    },
    /// A storage failed.
    #[error("The storage `{name}` failed")]
    Storage {
        /// Its name.
        name: Name,
        /// Why.
        #[source]
        error: Box<StorageError>,
    },
    /// No storage was left to write to.
    #[error("No storage is left to write to: {0}")]
    NoStorage(String),
    /// The verb was cancelled.
    #[error("Cancelled")]
    Cancelled,
    /// A restore was cancelled after it had begun to write.
    #[error(
        "Cancelled while `{artifact}` was restored to `{place}`: the restore is incomplete. The \
         same command can be run again{}",
        if *.needs_overwrite {
            ", with `--overwrite`, which replaces what was restored already"
        } else {
            ""
        }
    )]
    Interrupted {
        /// What was being restored.
        artifact: String,
        /// Where to, secrets masked.
        place: String,
        /// Whether other artifacts were restored before it, which would refuse a second time.
        needs_overwrite: bool,
    },
    /// What was read could not be given out.
    #[error("Could not write to the output: {0}")]
    Output(std::io::Error),
    /// The run took longer than its strategy allows.
    #[error("The run took longer than its `timeout` of {0}")]
    TimedOut(crate::model::Span),
    /// The local state could not be used.
    #[error("Could not {attempt} `{}`: {error}. The state folder is set by `state_dir`",
        .path.display())]
    State {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file that was named could not be used.
    #[error("Could not {attempt} `{}`: {error}", .path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file that was named is not what it should be.
    #[error("`{}` is damaged, or no exported snapshot: {problem}. Nothing was committed",
        .path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The catalog could not be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// There is no such snapshot.
    #[error("{0}")]
    NotFound(String),
    /// A snapshot could not be drilled, which says nothing about it.
    #[error("The snapshot was not drilled: {0}")]
    Undrilled(String),
    /// A snapshot is damaged.
    #[error("The snapshot `{snapshot}` is damaged in `{storage}`: {problem}")]
    Damaged {
        /// Its id.
        snapshot: String,
        /// The storage's name.
        storage: Name,
        /// What is wrong.
        problem: String,
    },
    /// The request cannot be carried out as it stands.
    #[error("{0}")]
    Request(String),
    /// A part of the program failed unexpectedly.
    #[error("Internal error: {0}. Nothing was committed; please report it")]
    Internal(String),
}

impl EngineError {
    fn storage(name: &Name, error: StorageError) -> Self {
        Self::Storage { name: name.clone(), error: Box::new(error) }
    }

    fn source(name: &Name, error: SourceError) -> Self {
        Self::Source { name: name.clone(), error: Box::new(error) }
    }

    /// Whether what failed may succeed by itself a little later: the network, a busy or starting
    /// server, a program that died. A wrong configuration, a refused login, a full disk and damage
    /// do not pass.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Source { error, .. } | Self::Hook { error } => error.may_pass(),
            Self::Storage { error, .. } => error.may_pass(),
            _ => false,
        }
    }
}

/// An error and what caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
