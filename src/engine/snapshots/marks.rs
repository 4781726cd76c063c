//! Marks: snapshots are held and released, and what is said of them is read before anything is
//! deleted.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::catalog::CachedMark;
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::snapshots::list::{LARGEST_DOCUMENT, PARALLEL, read_whole};
use crate::model::{Mark, Name, Says, SnapshotId, Verdict};
use crate::storage::{Object, StorageError};

/// What the marks of an instance say, all storages together.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Each mark that could be read, once, by its key.
    marks: BTreeMap<String, Mark>,
    /// What could not be read: the storage, and the mark or listing with the reason. Nobody knows
    /// what these protect.
    pub unread: Vec<(Name, String)>,
}

/// Why a snapshot must not be deleted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// What the operator said.
    pub reason: Option<String>,
    /// Until when; until it is released, where none is given.
    pub until: Option<DateTime<Utc>>,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// The last drill that judged a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drilled {
    pub at: DateTime<Utc>,
    /// How it was judged.
    pub verdict: Verdict,
}

impl Marks {
    /// The hold on a snapshot at the time `now`, the longest of several. The name of a hold has the
    /// id only, so it holds the snapshots of every strategy that have it.
    pub fn hold(&self, id: &SnapshotId, now: DateTime<Utc>) -> Option<Hold> {
        let holds =
            self.marks.values().filter(|mark| mark.id == *id).filter_map(|mark| match &mark.says {
                Says::Hold { reason, until } if until.is_none_or(|until| now < until) => {
                    Some(Hold { reason: reason.clone(), until: *until, since: mark.made })
                }
                _ => None,
            });
        holds.max_by_key(|hold| hold.until.unwrap_or(DateTime::<Utc>::MAX_UTC))
    }

    /// Takes in a mark. The same one stands in several storages; of two that differ the one that
    /// protects longer counts.
    fn take(&mut self, key: String, mark: Mark) {
        if self.marks.get(&key).is_none_or(|known| until(known) < until(&mark)) {
            self.marks.insert(key, mark);
        }
    }

    /// The snapshots of a strategy that a drill found suspect, and nobody has released.
    pub fn suspects(&self, strategy: &Name) -> Vec<&SnapshotId> {
        let is_suspect =
            |mark: &&Mark| mark.strategy == *strategy && matches!(mark.says, Says::Suspect { .. });
        let ids: BTreeSet<&SnapshotId> =
            self.marks.values().filter(is_suspect).map(|mark| &mark.id).collect();
        ids.into_iter().collect()
    }

    /// Whether a drill found the snapshot suspect, and somebody has released it since.
    pub fn is_released(&self, id: &SnapshotId) -> bool {
        let of_it = || self.marks.values().filter(|mark| mark.id == *id);
        let was = of_it().any(|mark| {
            matches!(&mark.says, Says::Drill { evidence: Some(evidence),
                .. } if evidence.suspect)
        });
        was && !of_it().any(|mark| matches!(mark.says, Says::Suspect { .. }))
    }

    /// The last drill of a snapshot that came to a verdict about it.
    pub fn drilled(&self, strategy: &Name, id: &SnapshotId) -> Option<Drilled> {
        let of_snapshot = |mark: &&Mark| mark.strategy == *strategy && mark.id == *id;
        let drills = self.marks.values().filter(of_snapshot).filter_map(|mark| match mark.says {
            Says::Drill { verdict, .. } if verdict != Verdict::Inconclusive => {
                Some(Drilled { at: mark.made, verdict })
            }
            _ => None,
        });
        drills.max_by_key(|drilled| drilled.at)
    }
}

/// The marks of drills of a strategy, of those that were seen in a storage.
pub(in crate::engine) fn drill_marks(
    cached: Vec<CachedMark>,
    instance: &Name,
    strategy: &Name,
) -> Vec<Mark> {
    let drills = format!("{}drill-", Mark::folder(instance));
    let read = |mark: CachedMark| Mark::from_bytes(&mark.body, &mark.key).ok();
    let of_instance = cached.into_iter().filter(|mark| mark.key.starts_with(&drills));
    of_instance.filter_map(read).filter(|mark| mark.strategy == *strategy).collect()
}

/// Reads the marks of `instance` in every one of `storages`. A mark or storage that cannot be read
/// is told apart, not left out.
///
/// A hold that is gone together with its snapshot still counts when it was seen before: the disk
/// that both were on may be lost, or not mounted, and there may be copies elsewhere.
pub async fn read_marks(engine: &Engine, storages: &[OpenStorage], instance: &Name) -> Marks {
    let mut marks = Marks::default();
    let mut vanished: Vec<Vanished> = Vec::new();
    for open in storages {
        match read_from(engine, open, instance, &mut marks).await {
            Ok(here) => vanished.extend(here),
            Err(error) => marks.unread.push((open.name.clone(), error.to_string())),
        }
    }
    let released: BTreeSet<String> =
        vanished.iter().filter(|one| one.released).map(|one| one.key.clone()).collect();
    for Vanished { address, key, mark, .. } in vanished {
        if released.contains(&key) {
            forget_mark(engine, &address, key).await;
        } else {
            marks.take(key, mark);
        }
    }
    marks
}

/// A hold that was seen in a storage once, and is not there any more.
struct Vanished {
    address: String,
    key: String,
    mark: Mark,
    /// Its snapshot is still there: somebody released it.
    released: bool,
}

pub(in crate::engine) async fn forget_mark(engine: &Engine, address: &str, key: String) {
    if let Some(catalog) = engine.catalog().await
        && let Err(error) = catalog.update_marks(address, &[], &[key]).await
    {
        tracing::warn!("{error}");
    }
}

async fn read_from(
    engine: &Engine,
    open: &OpenStorage,
    instance: &Name,
    marks: &mut Marks,
) -> Result<Vec<Vanished>, StorageError> {
    let storage = open.storage.as_ref();
    let address = storage.place();
    let folder = Mark::folder(instance);
    let objects: Vec<Object> = storage.list(&folder).try_collect().await?;
    let mut cached: BTreeMap<String, CachedMark> = BTreeMap::new();
    if let Some(catalog) = engine.catalog().await {
        match catalog.marks(&address).await {
            Ok(known) => cached.extend(known.into_iter().map(|mark| (mark.key.clone(), mark))),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    let holds = format!("{folder}hold-");
    let there = |key: &String| objects.iter().any(|object| object.key == *key);
    let mut gone: Vec<String> = Vec::new();
    let mut vanished: Vec<Vanished> = Vec::new();
    for known in
        cached.values().filter(|known| known.key.starts_with(&folder) && !there(&known.key))
    {
        let hold = Mark::from_bytes(&known.body, &known.key)
            .ok()
            .filter(|_| known.key.starts_with(&holds));
        let Some(mark) = hold else {
            gone.push(known.key.clone());
            continue;
        };
        let manifest = mark.snapshot_ref().manifest_key();
        let released = match storage.stat(&manifest).await {
            Ok(_) => true,
            Err(error) if error.is_not_found() => false,
            Err(error) => return Err(error),
        };
        vanished.push(Vanished {
            address: address.clone(),
            key: known.key.clone(),
            mark,
            released,
        });
    }
    let read: Vec<(String, Result<Mark, String>, Option<CachedMark>)> = stream::iter(objects)
        .map(|object| {
            let known = cached
                .remove(&object.key)
                .filter(|known| (known.size, known.modified) == (object.size, object.modified))
                // A hold may be replaced by another of the same size within a tick of the storage's
                // clock. A drill is never replaced.
                .filter(|known| !known.key.starts_with(&holds));
            async move {
                let fresh = known.is_none();
                let body = match known {
                    Some(known) => known.body,
                    None if object.size > LARGEST_DOCUMENT => {
                        let problem =
                            format!("It has {} bytes, which is too many for a mark", object.size);
                        return Ok((object.key, Err(problem), None));
                    }
                    None => match read_whole(storage, &object.key).await {
                        // Released since it was listed.
                        Err(error) if error.is_not_found() => {
                            return Ok((object.key, Err(String::new()), None));
                        }
                        body => body?,
                    },
                };
                let mark = Mark::from_bytes(&body, &object.key).map_err(|error| error.to_string());
                let keep = (fresh && mark.is_ok()).then(|| CachedMark {
                    key: object.key.clone(),
                    size: object.size,
                    modified: object.modified,
                    body,
                });
                Ok((object.key, mark, keep))
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let mut added = Vec::new();
    for (key, mark, keep) in read {
        match mark {
            Ok(mark) => marks.take(key, mark),
            Err(problem) if problem.is_empty() => {}
            Err(problem) => marks.unread.push((open.name.clone(), format!("`{key}`: {problem}"))),
        }
        added.extend(keep);
    }
    if let Some(catalog) = engine.catalog().await
        && let Err(error) = catalog.update_marks(&address, &added, &gone).await
    {
        tracing::warn!("{error}");
    }
    Ok(vanished)
}

/// Until when a mark protects.
pub(in crate::engine) fn until(mark: &Mark) -> DateTime<Utc> {
    match mark.says {
        Says::Hold { until, .. } => until.unwrap_or(DateTime::<Utc>::MAX_UTC),
        Says::Drill { .. } | Says::Suspect { .. } => DateTime::<Utc>::MIN_UTC,
    }
}
