//! Marks: snapshots are held and released, and what is said of them is read before anything is deleted.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::snapshots::{LARGEST_DOCUMENT, PARALLEL, read_whole};
use super::{Engine, EngineError, Listing, OpenStorage, Snapshot, chain};
use crate::catalog::CachedMark;
use crate::model::{MARK_FORMAT, Mark, Name, Says, SnapshotId, Verdict};
use crate::storage::{Object, StorageError};

/// What the marks of an instance say, all storages together.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Each mark that could be read, once, by its key.
    marks: BTreeMap<String, Mark>,
    /// What could not be read: the storage, and the mark or listing with the reason. Nobody knows what these protect.
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
    /// When.
    pub at: DateTime<Utc>,
    /// How it was judged.
    pub verdict: Verdict,
}

impl Marks {
    /// The hold on a snapshot at the time `now`, the longest of several.
    pub fn hold(&self, strategy: &Name, id: &SnapshotId, now: DateTime<Utc>) -> Option<Hold> {
        let holds = self.of(strategy, id).filter_map(|mark| match &mark.says {
            Says::Hold { reason, until } if until.is_none_or(|until| now < until) => {
                Some(Hold { reason: reason.clone(), until: *until, since: mark.made })
            }
            _ => None,
        });
        holds.max_by_key(|hold| hold.until.unwrap_or(DateTime::<Utc>::MAX_UTC))
    }

    /// The last drill of a snapshot that came to a verdict about it.
    pub fn drilled(&self, strategy: &Name, id: &SnapshotId) -> Option<Drilled> {
        let drills = self.of(strategy, id).filter_map(|mark| match mark.says {
            Says::Drill { verdict } if verdict != Verdict::Inconclusive => Some(Drilled { at: mark.made, verdict }),
            _ => None,
        });
        drills.max_by_key(|drilled| drilled.at)
    }

    fn of<'a>(&'a self, strategy: &'a Name, id: &'a SnapshotId) -> impl Iterator<Item = &'a Mark> {
        self.marks.values().filter(move |mark| mark.strategy == *strategy && mark.id == *id)
    }
}

/// Reads the marks of `instance` in every one of `storages`. A mark or storage that cannot be read is told apart, not left out.
pub async fn read_marks(engine: &Engine, storages: &[OpenStorage], instance: &Name) -> Marks {
    let mut marks = Marks::default();
    for open in storages {
        if let Err(error) = read_from(engine, open, instance, &mut marks).await {
            marks.unread.push((open.name.clone(), error.to_string()));
        }
    }
    marks
}

async fn read_from(
    engine: &Engine,
    open: &OpenStorage,
    instance: &Name,
    marks: &mut Marks,
) -> Result<(), StorageError> {
    let storage = open.storage.as_ref();
    let address = storage.address();
    let folder = Mark::folder(instance);
    let objects: Vec<Object> = storage.list(&folder).try_collect().await?;
    let mut cached: BTreeMap<String, CachedMark> = BTreeMap::new();
    if let Some(catalog) = engine.catalog().await {
        match catalog.marks(&address).await {
            Ok(known) => cached.extend(known.into_iter().map(|mark| (mark.key.clone(), mark))),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    let there = |key: &String| objects.iter().any(|object| object.key == *key);
    let gone: Vec<String> = cached.keys().filter(|key| key.starts_with(&folder) && !there(key)).cloned().collect();
    let read: Vec<(String, Result<Mark, String>, Option<CachedMark>)> = stream::iter(objects)
        .map(|object| {
            let known = cached
                .remove(&object.key)
                .filter(|known| (known.size, known.modified) == (object.size, object.modified));
            async move {
                let fresh = known.is_none();
                let body = match known {
                    Some(known) => known.body,
                    None if object.size > LARGEST_DOCUMENT => {
                        let problem = format!("It has {} bytes, which is too many for a mark", object.size);
                        return Ok((object.key, Err(problem), None));
                    }
                    None => match read_whole(storage, &object.key).await {
                        // Released since it was listed.
                        Err(StorageError::NotFound { .. }) => return Ok((object.key, Err(String::new()), None)),
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
            Ok(mark) => {
                // The same mark stands in several storages. Of two that differ the one that protects longer counts.
                match marks.marks.get(&key) {
                    Some(known) if until(known) >= until(&mark) => {}
                    _ => {
                        marks.marks.insert(key, mark);
                    }
                }
            }
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
    Ok(())
}

/// Until when a mark protects.
fn until(mark: &Mark) -> DateTime<Utc> {
    match mark.says {
        Says::Hold { until, .. } => until.unwrap_or(DateTime::<Utc>::MAX_UTC),
        Says::Drill { .. } => DateTime::<Utc>::MIN_UTC,
    }
}

/// What was done about a mark in each storage.
#[derive(Debug, Clone, Serialize)]
pub struct MarkReport {
    /// The application.
    pub instance: Name,
    /// The strategy.
    pub strategy: Name,
    /// The snapshot.
    pub id: SnapshotId,
    /// Storages where it was done.
    pub done: Vec<Name>,
    /// Storages where it was not, and why.
    pub failed: Vec<(Name, String)>,
}

impl MarkReport {
    fn new(snapshot: &Snapshot) -> Self {
        Self {
            instance: snapshot.instance.clone(),
            strategy: snapshot.strategy.clone(),
            id: snapshot.id.clone(),
            done: Vec::new(),
            failed: Vec::new(),
        }
    }

    fn note(&mut self, storage: &Name, result: Result<(), StorageError>) {
        match result {
            Ok(()) => self.done.push(storage.clone()),
            Err(error) => self.failed.push((storage.clone(), chain(&error))),
        }
    }
}

/// Holds a snapshot, given as its copies: marks it in each storage that has one, so that nothing deletes it there or elsewhere. A hold that is there
/// already is replaced.
///
/// # Errors
/// [`EngineError::Request`] when `until` is past.
pub async fn hold(
    engine: &Engine,
    storages: &[OpenStorage],
    copies: &[Snapshot],
    reason: Option<String>,
    until: Option<DateTime<Utc>>,
) -> Result<MarkReport, EngineError> {
    let first = copies.first().ok_or_else(|| EngineError::Internal("A snapshot without a copy".to_owned()))?;
    let now = engine.clock.now_seconds();
    if let Some(until) = until.filter(|until| *until <= now) {
        return Err(EngineError::Request(format!("The hold would end at {}, which is past", until.to_rfc3339())));
    }
    let mark = Mark {
        format: MARK_FORMAT,
        instance: first.instance.clone(),
        strategy: first.strategy.clone(),
        id: first.id.clone(),
        made: now,
        says: Says::Hold { reason, until },
    };
    let body = Bytes::from(mark.to_bytes());
    let mut report = MarkReport::new(first);
    for open in storages.iter().filter(|open| copies.iter().any(|copy| copy.storage == open.name)) {
        report.note(&open.name, open.storage.replace(&mark.key(), body.clone()).await);
    }
    Ok(report)
}

/// Releases a snapshot: takes its hold away from each of `storages` that has one. A hold that cannot be read goes too.
///
/// # Errors
/// [`EngineError::NotFound`] when no storage has one.
pub async fn release(
    engine: &Engine,
    storages: &[OpenStorage],
    listing: &Listing,
    copies: &[Snapshot],
) -> Result<MarkReport, EngineError> {
    let first = copies.first().ok_or_else(|| EngineError::Internal("A snapshot without a copy".to_owned()))?;
    let key = Mark::hold_key(&first.instance, &first.id);
    let mut report = MarkReport::new(first);
    for open in storages {
        if engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        match open.storage.stat(&key).await {
            Err(StorageError::NotFound { .. }) => {}
            Err(error) => report.note(&open.name, Err(error)),
            Ok(_) => report.note(&open.name, open.storage.delete(&key).await),
        }
    }
    if report.done.is_empty() && report.failed.is_empty() {
        let doubts = listing.doubts();
        let doubts = if doubts.is_empty() { String::new() } else { format!(". {}", doubts.join(". ")) };
        return Err(EngineError::NotFound(format!("`{}` is not held in any storage{doubts}", first.id)));
    }
    Ok(report)
}
