//! Holds: snapshots that retention does not delete.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::{EngineError, chain};
use crate::engine::snapshots::list::{Listing, Snapshot};
use crate::engine::snapshots::marks::forget_mark;
use crate::engine::state::locks::ReadLock;
use crate::model::{MARK_FORMAT, Mark, Name, Says, SnapshotId};
use crate::storage::StorageError;

/// What was done about a mark in each storage.
#[derive(Debug, Clone, Serialize)]
pub struct MarkReport {
    pub instance: Name,
    pub strategy: Name,
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

/// Holds a snapshot, given as its copies: marks it in each storage that has one, so that nothing
/// deletes it there or elsewhere. A hold that is there already is replaced.
///
/// # Errors
/// [`EngineError::Request`] when `until` is past, [`EngineError::Locked`] while snapshots are
/// deleted.
pub async fn hold(
    engine: &Engine,
    storages: &[OpenStorage],
    copies: &[Snapshot],
    reason: Option<String>,
    until: Option<DateTime<Utc>>,
) -> Result<MarkReport, EngineError> {
    let first = copies
        .first()
        .ok_or_else(|| EngineError::Internal("A snapshot without a copy".to_owned()))?;
    let now = engine.clock.now_seconds();
    if let Some(until) = until.filter(|until| *until <= now) {
        return Err(EngineError::Request(format!(
            "The hold would end at {}, which is past",
            until.to_rfc3339()
        )));
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
    // While snapshots are deleted here, this one may be the next.
    let _reading = ReadLock::share(&engine.state_dir, &first.instance, &first.strategy)?;
    let manifest = first.manifest_key();
    let mut report = MarkReport::new(first);
    for open in storages.iter().filter(|open| copies.iter().any(|copy| copy.storage == open.name)) {
        let written = open.storage.replace(&mark.key(), body.clone()).await;
        // Another machine may have deleted it meanwhile. It looks for a hold before it deletes.
        let held = match written {
            Ok(()) => match open.storage.stat(&manifest).await {
                Err(error) if !error.is_denied() => Err(error),
                _ => Ok(()),
            },
            Err(error) => Err(error),
        };
        report.note(&open.name, held);
    }
    Ok(report)
}

/// Releases a snapshot: takes its hold away from each of `storages` that has one, and what a drill
/// said of it, that it is suspect. A mark that cannot be read goes too.
///
/// # Errors
/// [`EngineError::NotFound`] when no storage has one.
pub async fn release(
    engine: &Engine,
    storages: &[OpenStorage],
    listing: &Listing,
    copies: &[Snapshot],
) -> Result<MarkReport, EngineError> {
    let first = copies
        .first()
        .ok_or_else(|| EngineError::Internal("A snapshot without a copy".to_owned()))?;
    let hold = Mark::hold_key(&first.instance, &first.id);
    let suspect = Mark::suspect_key(&first.instance, &first.id);
    let mut report = MarkReport::new(first);
    for open in storages {
        let address = open.storage.place();
        for key in [&hold, &suspect] {
            if engine.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let done = match open.storage.stat(key).await {
                Err(error) if error.is_not_found() && *key == suspect => continue,
                Err(error)
                    if error.is_not_found() && !is_remembered(engine, &address, key).await =>
                {
                    continue;
                }
                Err(error) if error.is_not_found() => Ok(()),
                Err(error) => Err(error),
                Ok(_) => open.storage.delete(key).await,
            };
            let is_done = done.is_ok();
            if !report.done.contains(&open.name) || !is_done {
                report.note(&open.name, done);
            }
            if is_done {
                forget_mark(engine, &address, key.clone()).await;
            }
        }
    }
    if report.done.is_empty() && report.failed.is_empty() {
        let doubts = listing.doubts();
        let doubts =
            if doubts.is_empty() { String::new() } else { format!(". {}", doubts.join(". ")) };
        return Err(EngineError::NotFound(format!(
            "`{}` is neither held nor suspect in any storage{doubts}",
            first.id
        )));
    }
    Ok(report)
}

/// Whether a mark that is gone from the storage at `address` still counts.
async fn is_remembered(engine: &Engine, address: &str, key: &str) -> bool {
    let Some(catalog) = engine.catalog().await else { return false };
    catalog.marks(address).await.is_ok_and(|marks| marks.iter().any(|mark| mark.key == key))
}
