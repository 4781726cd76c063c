//! Which snapshots there are: read from the storages themselves, with the catalog as a cache of
//! manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, Utc};
use futures::future::join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Semaphore;

use crate::catalog::{CachedManifest, Catalog, LARGEST_BULK};
use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::{EngineError, chain};
use crate::engine::snapshots::documents::{Document, LARGEST_MANIFEST, PARALLEL, read_listed};
use crate::engine::snapshots::marks::{Marks, read_marks};
use crate::engine::snapshots::present::{is_future, present};
use crate::engine::snapshots::unexpected::Listed;
use crate::model::{
    Completeness, LARGEST_TOTAL, MANIFEST_KEY, Manifest, ManifestError, Name, SnapshotId,
    SnapshotRef, checked_total,
};
use crate::storage::{Object, Storage, StorageError};

/// Which snapshots are meant.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Of this instance; of any when none.
    pub instance: Option<Name>,
    /// Of this strategy; of any when none. Only with an instance.
    pub strategy: Option<Name>,
}

/// A snapshot as one storage has it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub storage: Name,
    /// The application, by the folder it lies in.
    pub instance: Name,
    /// The strategy, by the folder.
    pub strategy: Name,
    /// The id, by the folder.
    pub id: SnapshotId,
    /// The manifest, or why it cannot be used.
    pub manifest: Result<Manifest, BadManifest>,
    /// Objects that the manifest names and the storage lists with another size or not at all.
    pub flaws: Vec<String>,
    /// Bytes of all objects in its folder, as listed.
    pub listed_bytes: u64,
    /// Whether it was begun later than it is now, so that nobody knows when: it is never `latest`.
    pub is_future: bool,
    /// Whether it has much less than the last good one, and nobody has released it: it is never
    /// `latest`. Only [`list`] and [`heed_marks`] look for that.
    pub is_suspect: bool,
    /// What is wrong with this copy, where somebody read it and found it damaged, and nobody has
    /// found it sound since. Known where `is_suspect` is.
    pub damage: Option<String>,
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone)]
pub struct BadManifest {
    pub problem: String,
    pub fault: ManifestFault,
}

/// What is wrong with a manifest that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestFault {
    Damaged,
    /// A later version wrote it, and knows how.
    Newer,
    /// It is larger than this version reads.
    TooLarge,
}

impl BadManifest {
    pub(in crate::engine) fn damaged(problem: String) -> Self {
        Self { problem, fault: ManifestFault::Damaged }
    }

    pub(in crate::engine) fn too_large(problem: String) -> Self {
        Self { problem, fault: ManifestFault::TooLarge }
    }

    /// What an error says that is not about reaching the storage.
    pub(in crate::engine) fn of(error: &StorageError) -> Self {
        let fault =
            if error.is_too_large() { ManifestFault::TooLarge } else { ManifestFault::Damaged };
        Self { problem: error.to_string(), fault }
    }

    /// Whether it says something against the snapshot.
    pub fn is_damage(&self) -> bool {
        self.fault == ManifestFault::Damaged
    }

    /// What a command says that needs the manifest of the snapshot `id` in `storage`.
    pub(in crate::engine) fn error_in(&self, id: &SnapshotId, storage: &Name) -> EngineError {
        let problem = format!("`{MANIFEST_KEY}`: {self}");
        match self.fault {
            ManifestFault::Damaged => EngineError::damaged(id, storage, problem),
            ManifestFault::Newer => EngineError::newer(id, storage, problem),
            ManifestFault::TooLarge => EngineError::too_large(id, storage, problem),
        }
    }
}

impl From<ManifestError> for BadManifest {
    fn from(error: ManifestError) -> Self {
        let fault = match &error {
            error if error.is_newer() => ManifestFault::Newer,
            error if error.is_too_large() => ManifestFault::TooLarge,
            _ => ManifestFault::Damaged,
        };
        Self { problem: error.to_string(), fault }
    }
}

impl fmt::Display for BadManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl Snapshot {
    /// Where it is in its storage.
    pub fn snapshot_ref(&self) -> SnapshotRef {
        SnapshotRef {
            instance: self.instance.clone(),
            strategy: self.strategy.clone(),
            id: self.id.clone(),
        }
    }

    /// Its folder, ending in `/`.
    pub fn folder(&self) -> String {
        self.snapshot_ref().folder()
    }

    /// The key of its manifest.
    pub fn manifest_key(&self) -> String {
        self.snapshot_ref().manifest_key()
    }

    /// Why this copy is damaged, where it was found so and has not been found sound since. One
    /// whose manifest cannot be read says so itself.
    pub(in crate::engine) fn damage_by(&self, marks: &Marks) -> Option<String> {
        marks.damage(&self.storage, self.manifest.as_ref().ok()?)
    }

    /// Bytes of its artifacts, by the manifest; of all that lies in its folder, where that cannot
    /// be read.
    pub fn stored_bytes(&self) -> u64 {
        self.manifest.as_ref().map_or(self.listed_bytes, Manifest::stored_bytes)
    }

    /// Whether it has all that its sources had, as far as manifest and listing tell.
    pub fn is_whole(&self) -> bool {
        self.flaws.is_empty()
            && self
                .manifest
                .as_ref()
                .is_ok_and(|manifest| manifest.completeness == Completeness::Whole)
    }
}

/// What a look into the storages found.
#[derive(Debug, Default, Clone)]
pub struct Listing {
    /// By instance, strategy and time; copies of one snapshot in the order of the storages.
    pub snapshots: Vec<Snapshot>,
    /// Storages that could not be listed, and why. What they hold is not known.
    pub unlisted: Vec<(Name, String)>,
    /// What stands in a storage where the format has a file or a folder, and is none: the storage,
    /// and which with what it is. While it is there nothing is deleted beside it.
    pub unexpected: Vec<(Name, String)>,
    /// Storages with marks that cannot be read, and why. What these say of the snapshots is not
    /// known.
    pub unread_marks: Vec<(Name, String)>,
}

impl Listing {
    /// Why the newest snapshot that was found may not be the newest there is.
    pub fn doubts(&self) -> Vec<String> {
        let doubt = |(name, error): &(Name, String)| {
            format!("`{name}` could not be listed, and may have a newer snapshot: {error}")
        };
        let unread = |(name, error): &(Name, String)| {
            format!("Marks in `{name}` cannot be read, so the snapshot may be suspect: {error}")
        };
        self.unlisted.iter().map(doubt).chain(self.unread_marks.iter().map(unread)).collect()
    }
}

/// Lists the snapshots of `selection` in every storage, and looks which are suspect and which
/// copies were found damaged. A storage that cannot be listed is told apart, not left out.
pub async fn list(engine: &Engine, storages: &[OpenStorage], selection: &Selection) -> Listing {
    let mut listing = list_without_marks(engine, storages, selection).await;
    let unread = heed_marks(engine, storages, &mut listing.snapshots).await;
    // That of a storage which cannot be listed is said already.
    let unlisted: BTreeSet<&Name> = listing.unlisted.iter().map(|(name, _)| name).collect();
    let unread = unread.into_iter().filter(|(name, _)| !unlisted.contains(name));
    listing.unread_marks = unread.collect();
    listing
}

/// Looks which of the snapshots are suspect, and which copies damaged, by the marks in `storages`.
/// Returns where marks could not be read, and why.
pub(in crate::engine) async fn heed_marks(
    engine: &Engine,
    storages: &[OpenStorage],
    snapshots: &mut [Snapshot],
) -> Vec<(Name, String)> {
    let mut unread = Vec::new();
    for of_instance in snapshots.chunk_by_mut(|a, b| a.instance == b.instance) {
        let Some(instance) = of_instance.first().map(|first| first.instance.clone()) else {
            continue;
        };
        let marks = read_marks(engine, storages, &instance).await;
        for snapshot in of_instance {
            snapshot.is_suspect = marks.is_suspect(&snapshot.strategy, &snapshot.id);
            snapshot.damage = snapshot.damage_by(&marks);
        }
        unread.extend(marks.unread());
    }
    unread
}

/// Lists the snapshots of `selection` in every storage, for who reads the marks besides.
pub(in crate::engine) async fn list_without_marks(
    engine: &Engine,
    storages: &[OpenStorage],
    selection: &Selection,
) -> Listing {
    let mut listing = Listing::default();
    let names: Vec<&str> = storages.iter().map(|open| open.name.as_str()).collect();
    engine.progress.begin(format!("listing {}", names.join(", ")), None);
    let looks = storages.iter().map(|open| list_one(engine, open, selection));
    for (open, found) in storages.iter().zip(join_all(looks).await) {
        match found {
            Ok(found) => {
                listing.snapshots.extend(found.snapshots);
                let here = found.unexpected.into_iter();
                listing.unexpected.extend(here.map(|problem| (open.name.clone(), problem)));
            }
            Err(error) => listing.unlisted.push((open.name.clone(), error.to_string())),
        }
    }
    // Stable: copies keep the order of the storages.
    listing
        .snapshots
        .sort_by(|a, b| (&a.instance, &a.strategy, &a.id).cmp(&(&b.instance, &b.strategy, &b.id)));
    listing
}

/// What was listed in a snapshot's folder.
#[derive(Default)]
struct Folder {
    /// The manifest, or what is in its place. None in what is no snapshot.
    manifest: Option<Result<Object, String>>,
    sizes: BTreeMap<String, u64>,
}

/// What was found in one storage.
#[derive(Debug, Default)]
pub(in crate::engine) struct Found {
    pub(in crate::engine) snapshots: Vec<Snapshot>,
    /// As in [`Listing::unexpected`].
    pub(in crate::engine) unexpected: Vec<String>,
}

/// A manifest as the catalog has it, and what tells whether it still is the one in the storage.
struct Known {
    size: u64,
    modified: DateTime<Utc>,
    /// None for one that is so large that it is read from the storage each time.
    manifest: Option<Result<Manifest, BadManifest>>,
}

/// The manifests that the catalog has of the storage that is `known_as`; none where it cannot be
/// read.
async fn known_manifests(
    catalog: Option<&Catalog>,
    known_as: &str,
) -> BTreeMap<SnapshotRef, Known> {
    let Some(catalog) = catalog else { return BTreeMap::new() };
    let cached = match catalog.manifests(known_as).await {
        Ok(cached) => cached,
        Err(error) => {
            tracing::warn!("{error}");
            return BTreeMap::new();
        }
    };
    // On a thread of its own: a thousand of them take as long as walking through the storage.
    let read = move || {
        let read = |cached: CachedManifest| {
            let CachedManifest { instance, strategy, id, size, modified, body } = cached;
            let manifest = (!body.is_empty()).then(|| {
                Manifest::from_bytes(&body, &instance, &strategy, &id).map_err(BadManifest::from)
            });
            (SnapshotRef { instance, strategy, id }, Known { size, modified, manifest })
        };
        cached.into_iter().map(read).collect()
    };
    blocking(read).await.unwrap_or_default()
}

/// Lists the snapshots of `selection` in one storage.
pub(in crate::engine) async fn list_one(
    engine: &Engine,
    open: &OpenStorage,
    selection: &Selection,
) -> Result<Found, StorageError> {
    let storage = open.storage.as_ref();
    let known_as = storage.place();
    let prefix = match (&selection.instance, &selection.strategy) {
        (None, _) => String::new(),
        (Some(instance), None) => format!("{instance}/"),
        (Some(instance), Some(strategy)) => SnapshotRef::strategy_folder(instance, strategy),
    };
    let walk = async {
        // Objects come in the order of their keys, so those of a snapshot come together; not relied
        // upon.
        let mut found: BTreeMap<SnapshotRef, Folder> = BTreeMap::new();
        let mut unexpected = Vec::new();
        let mut objects = storage.list(&prefix);
        while let Some(object) = objects.try_next().await? {
            if engine.cancel.is_cancelled() {
                return Err(StorageError::cancelled());
            }
            match Listed::of(&object) {
                Listed::Object(place, name) => {
                    let folder = found.entry(place).or_default();
                    folder.sizes.insert(name.to_owned(), object.size);
                    if name == MANIFEST_KEY {
                        folder.manifest = Some(Ok(object));
                    }
                }
                Listed::NoSnapshot(place, problem) => {
                    let folder = found.entry(place).or_default();
                    folder.manifest.get_or_insert(Err(problem));
                }
                // Every file in a folder says it once more.
                Listed::Unexpected(problem) if unexpected.last() == Some(&problem) => {}
                Listed::Unexpected(problem) => unexpected.push(problem),
                Listed::Other => {}
            }
        }
        Ok((found, unexpected))
    };
    // Side by side: where a storage is near, each takes about as long as the other.
    let catalog = engine.catalog().await;
    let (found, mut known) = tokio::join!(walk, known_manifests(catalog, &known_as));
    let (folders, unexpected) = found?;
    let is_snapshot = |(_, folder): &(SnapshotRef, Folder)| folder.manifest.is_some();
    let found: Vec<(SnapshotRef, Folder)> = folders.into_iter().filter(is_snapshot).collect();
    let gone: Vec<SnapshotRef> = known
        .keys()
        .filter(|SnapshotRef { instance, strategy, .. }| {
            selection.instance.as_ref().is_none_or(|wanted| wanted == instance)
                && selection.strategy.as_ref().is_none_or(|wanted| wanted == strategy)
        })
        .filter(|place| found.binary_search_by(|(one, ..)| one.cmp(place)).is_err())
        .cloned()
        .collect();
    // In KiB: as much as the largest takes, of all that are read at a time.
    let room = Semaphore::new((LARGEST_MANIFEST >> 10) as usize);
    let read: Vec<Option<(Snapshot, Option<CachedManifest>)>> = stream::iter(found)
        .map(|(place, Folder { manifest: object, sizes })| {
            let known = known.remove(&place).filter(|known| {
                let is_it = |object: &Object| {
                    known.size == object.size && known.modified == object.modified
                };
                matches!(&object, Some(Ok(object)) if is_it(object))
            });
            let is_known = known.is_some();
            let known = known.and_then(|known| known.manifest);
            let (room, known_as) = (&room, &known_as);
            async move {
                let SnapshotRef { instance, strategy, id } = place;
                let listed = object.as_ref().and_then(|object| object.as_ref().ok());
                let size = listed.map_or(0, |object| object.size);
                let needed = size.div_ceil(1 << 10).clamp(1, LARGEST_MANIFEST >> 10);
                let room = room.acquire_many(u32::try_from(needed).unwrap_or(u32::MAX)).await;
                let (manifest, mut keep) = match (known, object) {
                    (Some(manifest), _) => (manifest, None),
                    (None, None) => return Ok(None),
                    (None, Some(Err(problem))) => (Err(BadManifest::damaged(problem)), None),
                    (None, Some(Ok(object))) => {
                        match read_listed(storage, &object, LARGEST_MANIFEST).await? {
                            Document::Gone => return Ok(None),
                            Document::Unreadable(problem) => {
                                (Err(BadManifest::damaged(problem)), None)
                            }
                            Document::TooLarge(problem) => {
                                (Err(BadManifest::too_large(problem)), None)
                            }
                            Document::Read(body) => {
                                match Manifest::from_bytes(&body, &instance, &strategy, &id) {
                                    Err(error) => (Err(error.into()), None),
                                    Ok(manifest) => {
                                        let keep = CachedManifest {
                                            instance: instance.clone(),
                                            strategy: strategy.clone(),
                                            id: id.clone(),
                                            size: object.size,
                                            modified: object.modified,
                                            body,
                                        };
                                        (Ok(manifest), Some(keep))
                                    }
                                }
                            }
                        }
                    }
                };
                drop(room);
                // What is large is not held until the listing is complete.
                if let Some(large) = keep.take_if(|keep| keep.size > LARGEST_BULK)
                    && let Some(catalog) = catalog.filter(|_| !is_known)
                {
                    let now = engine.clock.now_seconds();
                    if let Err(error) = catalog.update_manifests(known_as, &[large], &[], now).await
                    {
                        tracing::warn!("{error}");
                    }
                }
                let (manifest, listed_bytes) = match checked_total(sizes.values().copied()) {
                    Some(listed_bytes) => (manifest, listed_bytes),
                    None => {
                        let problem = "The objects of its folder are larger than can be";
                        (Err(BadManifest::damaged(problem.to_owned())), LARGEST_TOTAL)
                    }
                };
                let storage_name = open.name.clone();
                let mut snapshot = Snapshot {
                    storage: storage_name,
                    instance,
                    strategy,
                    id,
                    manifest,
                    flaws: Vec::new(),
                    listed_bytes,
                    is_future: false,
                    is_suspect: false,
                    damage: None,
                };
                snapshot.flaws = flaws(storage, &snapshot, &sizes).await?;
                Ok(Some((snapshot, keep)))
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let (mut snapshots, added): (Vec<Snapshot>, Vec<_>) = read.into_iter().flatten().unzip();
    let newest = snapshots.iter().map(|snapshot| &snapshot.id).max();
    let now = present(engine, open, newest).await;
    for snapshot in &mut snapshots {
        snapshot.is_future = is_future(&snapshot.id, now);
    }
    if let Some(catalog) = catalog {
        if let Err(error) = catalog.note_listed(&known_as, engine.clock.now_seconds()).await {
            tracing::warn!("{error}");
        }
        let added: Vec<CachedManifest> = added.into_iter().flatten().collect();
        if let Err(error) =
            catalog.update_manifests(&known_as, &added, &gone, engine.clock.now_seconds()).await
        {
            tracing::warn!("{error}");
        }
    }
    Ok(Found { snapshots, unexpected })
}

/// Which objects that the manifest names are not there as it says. A listing is not of one moment:
/// what it did not have as it should is looked up.
async fn flaws(
    storage: &dyn Storage,
    snapshot: &Snapshot,
    sizes: &BTreeMap<String, u64>,
) -> Result<Vec<String>, StorageError> {
    let Ok(manifest) = &snapshot.manifest else { return Ok(Vec::new()) };
    let mut flaws = Vec::new();
    for object in manifest.artifacts.iter().flat_map(|artifact| &artifact.objects) {
        if sizes.get(&object.key) == Some(&object.size) {
            continue;
        }
        match storage.stat(&format!("{}{}", snapshot.folder(), object.key)).await {
            Ok(found) if found.size == object.size => {}
            Ok(found) => {
                flaws.push(format!("`{}` has {} bytes of {}", object.key, found.size, object.size));
            }
            Err(error) if error.is_not_found() => {
                flaws.push(format!("`{}` is not there", object.key));
            }
            Err(error) if error.is_not_a_file() => {
                flaws.push(format!("`{}`: {}", object.key, error.problem()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(flaws)
}

/// Lists what each storage of a strategy has of it, side by side: one that hangs does not keep the
/// others. What could not be listed is logged, and none.
pub(in crate::engine) async fn list_side_by_side(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Vec<Option<Vec<Snapshot>>> {
    let storages = instance.storages.iter().filter(|(name, _)| strategy.storages.contains(name));
    let opening = storages.map(|(name, config)| async move {
        let open = OpenStorage::open(name, config, &engine.cancel).await;
        open.map_err(|error| (name.clone(), chain(&error)))
    });
    let opened = join_all(opening).await;
    list_opened(engine, instance, strategy, opened.iter()).await
}

/// As [`list_side_by_side`], in storages that are open or could not be opened.
pub(in crate::engine) async fn list_opened(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    storages: impl Iterator<Item = &Result<OpenStorage, (Name, String)>>,
) -> Vec<Option<Vec<Snapshot>>> {
    let selection =
        Selection { instance: Some(instance.name.clone()), strategy: Some(strategy.name.clone()) };
    let selection = &selection;
    let looks = storages.map(|open| async move {
        let open = open.as_ref().map_err(|(name, error)| (name, error.clone()));
        let listed = match open {
            Ok(open) => match list_one(engine, open, selection).await {
                Ok(mut found) => {
                    let one = std::slice::from_ref(open);
                    heed_marks(engine, one, &mut found.snapshots).await;
                    Ok(found.snapshots)
                }
                Err(error) => Err((&open.name, error.to_string())),
            },
            Err(unopened) => Err(unopened),
        };
        let warn = |(name, error): &(&Name, String)| {
            tracing::warn!(storage = %name, "could not be listed: {error}");
        };
        listed.inspect_err(warn).ok()
    });
    join_all(looks).await
}
