//! What every verb is handed: the engine, and opened storages.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::runtime::Handle;
use tokio::sync::{OnceCell, oneshot};

use crate::catalog::{self, Catalog, CatalogError};
use crate::engine::error::EngineError;
use crate::engine::state::private::{make_private_file, make_private_folder};
use crate::model::{Cancel, Clock, Name};
use crate::pipeline::Stopwatch;
use crate::report::Progress;
use crate::source::OwnFolder;
use crate::source::process::Environment;
use crate::storage::{Patience, Storage, StorageConfig};

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
    /// Folders that are left out of every dump, and in which no restore removes anything.
    pub own_folders: Arc<[OwnFolder]>,
    /// Called when a run has its lock and begins.
    pub began: Option<Arc<dyn Fn() + Send + Sync>>,
    pub(in crate::engine) catalog: Arc<OnceCell<Option<Catalog>>>,
    /// Whether it was said that the catalog cannot be used.
    pub(in crate::engine) warned: Arc<AtomicBool>,
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
            own_folders: Arc::default(),
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
    pub(in crate::engine) async fn try_catalog(&self) -> Result<&Catalog, EngineError> {
        let open = || async {
            make_private_folder(&self.state_dir)?;
            Ok::<_, EngineError>(Some(self.open_catalog().await?))
        };
        let none = || EngineError::Request("Nothing is recorded without a state folder".to_owned());
        self.catalog.get_or_try_init(open).await?.as_ref().ok_or_else(none)
    }

    /// The catalog, or none, with a warning the first time, when it cannot be used: it is a cache.
    pub(in crate::engine) async fn catalog(&self) -> Option<&Catalog> {
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
    pub(in crate::engine) fn unrecorded(&self) -> Self {
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

    /// Refuses to delete beside a catalog that is no file: what it remembers of snapshots and holds
    /// that are gone keeps others from being deleted.
    ///
    /// # Errors
    /// [`EngineError::State`].
    pub(in crate::engine) fn ensure_catalog_files(&self) -> Result<(), EngineError> {
        catalog::ensure_files(&self.state_dir).map_err(|error| {
            let path = self.state_dir.join(catalog::FILE);
            EngineError::State { attempt: "use", path, error }
        })
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
    pub storage: Arc<dyn Storage>,
    pub(in crate::engine) fetched: Arc<AtomicU64>,
    /// Counts the time that reading from it takes, by step, where somebody wants to know.
    pub(in crate::engine) watch: Option<Stopwatch>,
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
        Self::open_with(name, config, Patience::Unattended, cancel).await
    }

    /// The same, with the patience of whoever waits for it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(
        name: &Name,
        config: &StorageConfig,
        patience: Patience,
        cancel: &Cancel,
    ) -> Result<Self, EngineError> {
        let storage = config.open_as(name.as_str(), patience, cancel).await;
        let storage = storage.map_err(|error| EngineError::storage(name, error))?;
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
pub(in crate::engine) async fn not_twice(
    open: &OpenStorage,
    ours: impl Iterator<Item = &OpenStorage>,
) -> Result<(), EngineError> {
    let Some(path) = real_path(open).await else { return Ok(()) };
    for other in ours {
        if real_path(other).await.as_ref() == Some(&path) {
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

async fn real_path(open: &OpenStorage) -> Option<PathBuf> {
    tokio::fs::canonicalize(open.storage.local_path()?).await.ok()
}

/// Runs `work` on a thread that may block, and what it logs belongs to what the caller's does. A
/// panic there is an error of the verb, not the end of the program.
pub(in crate::engine) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    on_thread(work)?.await
}

/// Starts `work` on a thread of its own at once; what is returned waits for its end.
///
/// For work that waits for other work. The threads of the runtime are for what waits for nobody:
/// where the system starts no more of them, work is queued until one is free, so they must not wait
/// for one another.
///
/// # Errors
/// [`EngineError::NoThreads`].
pub fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<impl Future<Output = Result<T, EngineError>>, EngineError> {
    let (span, runtime) = (tracing::Span::current(), Handle::current());
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("work".to_owned()).spawn(move || {
        let _in_runtime = runtime.enter();
        // Whoever waited may have gone.
        let _ = sender.send(span.in_scope(work));
    });
    let thread = thread.map_err(EngineError::NoThreads)?;
    Ok(async move {
        let Ok(done) = receiver.await else {
            // It panicked, so it has ended or is about to.
            let panic = thread.join().err();
            let words = panic.as_ref().and_then(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                text.or_else(|| panic.downcast_ref::<&str>().copied())
            });
            let words = words.unwrap_or("a thread ended early");
            return Err(EngineError::Internal(format!("panic: {words}")));
        };
        Ok(done)
    })
}
