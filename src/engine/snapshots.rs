//! Which snapshots there are: read from the storages themselves, with the catalog as a cache of
//! manifests.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{Engine, EngineError, OpenStorage, blocking};
use crate::catalog::{CachedManifest, Catalog};
use crate::model::{Completeness, MANIFEST_KEY, Manifest, Name, SnapshotId};
use crate::storage::{Object, Storage, StorageError};

/// Manifests and marks that are fetched from one storage at a time.
pub(super) const PARALLEL: usize = 8;
/// A manifest or mark that is larger is not one of ours.
pub(super) const LARGEST_DOCUMENT: u64 = 64 << 20;

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
    /// The storage's name.
    pub storage: Name,
    /// The application, by the folder it lies in.
    pub instance: Name,
    /// The strategy, by the folder.
    pub strategy: Name,
    /// The id, by the folder.
    pub id: SnapshotId,
    /// The manifest, or why it cannot be used.
    pub manifest: Result<Manifest, String>,
    /// Objects that the manifest names and the storage lists with another size or not at all.
    pub flaws: Vec<String>,
    /// Bytes of all objects in its folder, as listed.
    pub listed_bytes: u64,
}

impl Snapshot {
    /// `<instance>/<strategy>/<id>/`.
    pub fn folder(&self) -> String {
        format!("{}/{}/{}/", self.instance, self.strategy, self.id)
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
}

impl Listing {
    /// Why the newest snapshot that was found may not be the newest there is.
    pub fn doubts(&self) -> Vec<String> {
        let doubt = |(name, error): &(Name, String)| {
            format!("`{name}` could not be listed, and may have a newer snapshot: {error}")
        };
        self.unlisted.iter().map(doubt).collect()
    }
}

/// Lists the snapshots of `selection` in every storage. A storage that cannot be listed is told
/// apart, not left out.
pub async fn list(engine: &Engine, storages: &[OpenStorage], selection: &Selection) -> Listing {
    let mut listing = Listing::default();
    for open in storages {
        engine.progress.begin(format!("listing {}", open.name), None);
        match list_one(engine, open, selection).await {
            Ok(snapshots) => listing.snapshots.extend(snapshots),
            Err(error) => listing.unlisted.push((open.name.clone(), error.to_string())),
        }
    }
    // Stable: copies keep the order of the storages.
    listing
        .snapshots
        .sort_by(|a, b| (&a.instance, &a.strategy, &a.id).cmp(&(&b.instance, &b.strategy, &b.id)));
    listing
}

type Place = (Name, Name, SnapshotId);

/// What was listed in a snapshot's folder.
#[derive(Default)]
struct Folder {
    manifest: Option<Object>,
    sizes: BTreeMap<String, u64>,
}

/// A manifest as the catalog has it, and what tells whether it still is the one in the storage.
struct Known {
    size: u64,
    modified: DateTime<Utc>,
    manifest: Result<Manifest, String>,
}

/// The manifests that the catalog has of the storage that is `known_as`; none where it cannot be
/// read.
async fn known_manifests(catalog: Option<&Catalog>, known_as: &str) -> BTreeMap<Place, Known> {
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
            let manifest = Manifest::from_bytes(&body, &instance, &strategy, &id)
                .map_err(|error| error.to_string());
            ((instance, strategy, id), Known { size, modified, manifest })
        };
        cached.into_iter().map(read).collect()
    };
    blocking(read).await.unwrap_or_default()
}

/// Lists the snapshots of `selection` in one storage.
pub(super) async fn list_one(
    engine: &Engine,
    open: &OpenStorage,
    selection: &Selection,
) -> Result<Vec<Snapshot>, StorageError> {
    let storage = open.storage.as_ref();
    let known_as = storage.place();
    let prefix = match (&selection.instance, &selection.strategy) {
        (None, _) => String::new(),
        (Some(instance), None) => format!("{instance}/"),
        (Some(instance), Some(strategy)) => format!("{instance}/{strategy}/"),
    };
    let walk = async {
        // Objects come in the order of their keys, so those of a snapshot come together; not relied
        // upon.
        let mut found: BTreeMap<Place, Folder> = BTreeMap::new();
        let mut objects = storage.list(&prefix);
        while let Some(object) = objects.try_next().await? {
            if engine.cancel.is_cancelled() {
                return Err(StorageError::Cancelled);
            }
            let Some((place, name)) = object_place(&object.key) else { continue };
            let name = name.to_owned();
            let folder = found.entry(place).or_default();
            folder.sizes.insert(name.clone(), object.size);
            if name == MANIFEST_KEY {
                folder.manifest = Some(object);
            }
        }
        Ok(found)
    };
    // Side by side: where a storage is near, each takes about as long as the other.
    let catalog = engine.catalog().await;
    let (found, mut known) = tokio::join!(walk, known_manifests(catalog, &known_as));
    let found: Vec<(Place, Object, BTreeMap<String, u64>)> = found?
        .into_iter()
        .filter_map(|(place, folder)| {
            folder.manifest.map(|manifest| (place, manifest, folder.sizes))
        })
        .collect();
    let gone: Vec<Place> = known
        .keys()
        .filter(|(instance, strategy, _)| {
            selection.instance.as_ref().is_none_or(|wanted| wanted == instance)
                && selection.strategy.as_ref().is_none_or(|wanted| wanted == strategy)
        })
        .filter(|place| found.binary_search_by(|(one, ..)| one.cmp(place)).is_err())
        .cloned()
        .collect();
    let read: Vec<Option<(Snapshot, Option<CachedManifest>)>> = stream::iter(found)
        .map(|(place, object, sizes)| {
            let known = known
                .remove(&place)
                .filter(|known| known.size == object.size && known.modified == object.modified)
                .map(|known| known.manifest);
            async move {
                let (instance, strategy, id) = place;
                let (manifest, keep) = match known {
                    Some(manifest) => (manifest, None),
                    None if object.size > LARGEST_DOCUMENT => {
                        (Err(format!("It has {} bytes", object.size)), None)
                    }
                    None => match read_whole(storage, &object.key).await {
                        // Deleted since it was listed.
                        Err(StorageError::NotFound { .. }) => return Ok(None),
                        // The storage went away: that tells nothing about the snapshot.
                        Err(error) if error.is_about_reaching() => return Err(error),
                        Err(error) => (Err(error.to_string()), None),
                        Ok(body) => match Manifest::from_bytes(&body, &instance, &strategy, &id) {
                            Err(error) => (Err(error.to_string()), None),
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
                        },
                    },
                };
                let listed_bytes = sizes.values().sum();
                let storage_name = open.name.clone();
                let mut snapshot = Snapshot {
                    storage: storage_name,
                    instance,
                    strategy,
                    id,
                    manifest,
                    flaws: Vec::new(),
                    listed_bytes,
                };
                snapshot.flaws = flaws(storage, &snapshot, &sizes).await?;
                Ok(Some((snapshot, keep)))
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let (snapshots, added): (Vec<_>, Vec<_>) = read.into_iter().flatten().unzip();
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
    Ok(snapshots)
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
                flaws.push(format!("`{}` has {} bytes of {}", object.key, found.size, object.size))
            }
            Err(StorageError::NotFound { .. }) => {
                flaws.push(format!("`{}` is not there", object.key))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(flaws)
}

/// The snapshot whose folder `key` lies in, and its name there, if it is one's.
fn object_place(key: &str) -> Option<(Place, &str)> {
    let mut parts = key.split('/');
    let place =
        (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let name = parts.next()?;
    parts.next().is_none().then_some((place, name))
}

/// A small object, whole.
pub(super) async fn read_whole(storage: &dyn Storage, key: &str) -> Result<Vec<u8>, StorageError> {
    let mut stream = storage.read(key, None).await?;
    let mut body = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The snapshot that `which` means, as each storage that has it has it, in the order of the
/// storages. `which` is `latest`, or an id or the beginning of one, or the end of one (the six
/// digits after the dash). `latest` with `at` is the newest begun at or before it; whole ones go
/// before partial ones.
///
/// # Errors
/// [`EngineError::NotFound`] when there is none, [`EngineError::Request`] when several are meant.
pub fn find(
    listing: &Listing,
    which: &str,
    at: Option<DateTime<Utc>>,
) -> Result<Vec<Snapshot>, EngineError> {
    let hint = || {
        let unlisted: Vec<String> = listing
            .unlisted
            .iter()
            .map(|(name, error)| format!("`{name}` could not be listed: {error}"))
            .collect();
        if unlisted.is_empty() { String::new() } else { format!(". {}", unlisted.join(". ")) }
    };
    if which == "latest" {
        let before = |snapshot: &&Snapshot| at.is_none_or(|at| snapshot.id.time() <= at);
        let rank =
            |snapshot: &&Snapshot| {
                snapshot.manifest.as_ref().ok().map(|manifest| {
                    (manifest.completeness == Completeness::Whole, snapshot.id.clone())
                })
            };
        let newest = listing
            .snapshots
            .iter()
            .filter(before)
            .filter(|one| one.manifest.is_ok())
            .max_by_key(rank);
        let unreadable = || {
            let mut all = listing
                .snapshots
                .iter()
                .filter(before)
                .filter_map(|one| Some((one, one.manifest.as_ref().err()?)));
            all.next_back().map(|(one, error)| {
                format!(". `{}` in `{}` cannot be read: {error}", one.id, one.storage)
            })
        };
        let newest = newest.ok_or_else(|| {
            let when =
                at.map(|at| format!(" at or before {}", at.to_rfc3339())).unwrap_or_default();
            let unreadable = unreadable();
            let usable = if unreadable.is_some() { " that can be read" } else { "" };
            let unreadable = unreadable.unwrap_or_default();
            EngineError::NotFound(format!(
                "There is no snapshot{usable}{when}{unreadable}{}",
                hint()
            ))
        })?;
        let newer: BTreeSet<&SnapshotId> = listing
            .snapshots
            .iter()
            .filter(before)
            .map(|one| &one.id)
            .filter(|id| *id > &newest.id)
            .collect();
        if !newer.is_empty() {
            let newer: Vec<&str> = newer.into_iter().map(SnapshotId::as_str).collect();
            tracing::warn!(taken = %newest.id, newer = newer.join(", "), "newer snapshots are \
                partial or cannot be read, and are passed over");
        }
        return Ok(copies(listing, newest));
    }
    let meant: Vec<&Snapshot> = listing
        .snapshots
        .iter()
        .filter(|snapshot| {
            let id = snapshot.id.as_str();
            id.starts_with(which)
                || id.rsplit('-').next().is_some_and(|salt| salt.starts_with(which))
        })
        .collect();
    let distinct: BTreeSet<(&Name, &Name, &SnapshotId)> = meant
        .iter()
        .map(|snapshot| (&snapshot.instance, &snapshot.strategy, &snapshot.id))
        .collect();
    match (distinct.len(), meant.first()) {
        (1, Some(snapshot)) => Ok(copies(listing, snapshot)),
        (0, _) | (_, None) => Err(EngineError::NotFound(format!(
            "There is no snapshot `{which}`{}. `backup list` shows which there are",
            hint()
        ))),
        (count, _) => {
            let some: Vec<String> = distinct
                .iter()
                .take(5)
                .map(|(instance, strategy, id)| format!("{instance}/{strategy}/{id}"))
                .collect();
            let more = if count > some.len() { ", ..." } else { "" };
            Err(EngineError::Request(format!(
                "`{which}` could be {count} snapshots: {}{more}. Give more of the id",
                some.join(", ")
            )))
        }
    }
}

fn copies(listing: &Listing, of: &Snapshot) -> Vec<Snapshot> {
    listing
        .snapshots
        .iter()
        .filter(|snapshot| {
            (&snapshot.instance, &snapshot.strategy, &snapshot.id)
                == (&of.instance, &of.strategy, &of.id)
        })
        .cloned()
        .collect()
}

/// An instant as `--at` takes it: RFC 3339, or `2026-11-21`, `2026-11-21 01:30`,
/// `2026-11-21T01:30:00` in UTC. A day alone means its end.
///
/// # Errors
/// When it is none of these.
pub fn parse_at(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    for form in ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, form) {
            return Ok(time.and_utc());
        }
    }
    let end_of_day = NaiveTime::from_hms_opt(23, 59, 59).unwrap_or_default();
    NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .map(|day| day.and_time(end_of_day).and_utc())
        .map_err(|_| {
            format!(
                "`{text}` is not a time: expected a form like `2026-11-21`, `2026-11-21 01:30` \
            (UTC) or RFC 3339"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(storage: &str, id: &str, completeness: Option<Completeness>) -> Snapshot {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let id: SnapshotId = id.parse().unwrap();
        let manifest = completeness.map(|completeness| Manifest {
            format: 1,
            requires: Vec::new(),
            instance: name("ella"),
            strategy: name("daily"),
            started: id.time(),
            finished: id.time(),
            id: id.clone(),
            program: crate::model::Program { name: String::new(), version: String::new() },
            completeness,
            storage: crate::model::StorageNote {
                name: name(storage),
                remote_check: crate::model::RemoteCheck::Size,
            },
            artifacts: Vec::new(),
        });
        Snapshot {
            storage: name(storage),
            instance: name("ella"),
            strategy: name("daily"),
            id,
            manifest: manifest.ok_or_else(|| "damaged".to_owned()),
            flaws: Vec::new(),
            listed_bytes: 0,
        }
    }

    fn listing() -> Listing {
        use Completeness::{Partial, Whole};
        let snapshots = vec![
            snapshot("local", "20261119T013000Z-aaaaaa", Some(Whole)),
            snapshot("local", "20261120T013000Z-abcdef", Some(Whole)),
            snapshot("offsite", "20261120T013000Z-abcdef", Some(Whole)),
            snapshot("local", "20261121T013000Z-bbbbbb", Some(Partial)),
            snapshot("local", "20261122T013000Z-cccccc", None),
        ];
        Listing { snapshots, unlisted: Vec::new() }
    }

    fn found(which: &str, at: Option<&str>) -> Result<Vec<String>, String> {
        let at = at.map(|at| parse_at(at).unwrap());
        let found = find(&listing(), which, at).map_err(|error| error.to_string())?;
        Ok(found.iter().map(|snapshot| format!("{}:{}", snapshot.storage, snapshot.id)).collect())
    }

    #[test]
    fn latest_is_the_newest_whole_one_with_all_its_copies() {
        let newest = ["local:20261120T013000Z-abcdef", "offsite:20261120T013000Z-abcdef"];
        assert_eq!(found("latest", None).unwrap(), newest);
        assert_eq!(found("latest", Some("2026-11-19")).unwrap(), ["local:20261119T013000Z-aaaaaa"]);
        assert!(found("latest", Some("2026-11-18")).is_err());
    }

    #[test]
    fn an_id_may_be_shortened_from_either_end_while_it_is_unambiguous() {
        assert_eq!(found("20261119", None).unwrap(), ["local:20261119T013000Z-aaaaaa"]);
        assert_eq!(found("bbb", None).unwrap(), ["local:20261121T013000Z-bbbbbb"]);
        assert!(found("a", None).unwrap_err().contains("could be 2 snapshots"));
        assert!(found("ffff", None).unwrap_err().contains("There is no snapshot"));
    }

    #[test]
    fn only_a_manifest_in_a_snapshots_folder_makes_a_snapshot() {
        let is_manifest = |key| object_place(key).is_some_and(|(_, name)| name == MANIFEST_KEY);
        assert!(is_manifest("ella/daily/20261121T013000Z-7f3a9c/manifest.json"));
        for key in [
            "manifest.json",
            "ella/daily/manifest.json",
            "ella/daily/20261121T013000Z-7f3a9c/manifest.json.part",
            "ella/daily/20261121T013000Z-7f3a9c/x/manifest.json",
            "ella/marks/20261121T013000Z-7f3a9c/manifest.json",
            "ella/daily/latest/manifest.json",
        ] {
            assert!(!is_manifest(key), "{key}");
        }
    }

    #[test]
    fn times_are_utc_unless_they_say_otherwise() {
        for (text, expected) in [
            ("2026-11-21", "2026-11-21T23:59:59+00:00"),
            ("2026-11-21 01:30", "2026-11-21T01:30:00+00:00"),
            ("2026-11-21T01:30:00+01:00", "2026-11-21T00:30:00+00:00"),
        ] {
            assert_eq!(parse_at(text).unwrap().to_rfc3339(), expected);
        }
        assert!(parse_at("yesterday").is_err());
    }
}
