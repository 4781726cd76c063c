//! Holds: snapshots that retention does not delete.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::{EngineError, chain};
use crate::engine::snapshots::list::{Listing, Snapshot};
use crate::engine::snapshots::mark_writer::{new_mark, write_mark};
use crate::engine::snapshots::marks::{Marks, Released, read_marks};
use crate::engine::state::locks::ReadLock;
use crate::engine::write::heartbeat::read_heartbeat;
use crate::engine::write::writer;
use crate::model::{MarkRef, Name, Says, SnapshotId, SnapshotRef};
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
    fn new(snapshot: &SnapshotRef) -> Self {
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
            Ok(()) if self.done.contains(storage) => {}
            Ok(()) => self.done.push(storage.clone()),
            Err(error) => self.failed.push((storage.clone(), chain(&error))),
        }
    }
}

/// Holds a snapshot, given as its copies: marks it in each storage that has one, so that nothing
/// deletes it there or elsewhere. Holds that there are already end.
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
    let of = first.snapshot_ref();
    let mark = new_mark(engine, &of, Says::Hold { reason, until })?;
    // While snapshots are deleted here, this one may be the next.
    let _reading = ReadLock::share(&engine.state_dir, &first.instance, &first.strategy)?;
    let before = read_marks(engine, storages, &first.instance).await;
    let mut report = MarkReport::new(&of);
    for open in storages.iter().filter(|open| copies.iter().any(|copy| copy.storage == open.name)) {
        let held = match write_mark(open, &mark).await {
            Ok(()) => ensure_kept(open, &of).await,
            Err(error) => Err(error),
        };
        report.note(&open.name, held);
    }
    if !report.done.is_empty() {
        // The new one stands: only now those that it replaces may end.
        let (ends, mut places) = before.releasable(&of, Released::Hold);
        places.retain(|name| {
            report.done.contains(name) || copies.iter().all(|copy| copy.storage != *name)
        });
        let mut ended = MarkReport::new(&of);
        end_marks(engine, storages, &of, (ends, None), &places, &mut ended).await?;
        report.failed.extend(ended.failed);
    }
    Ok(report)
}

/// How long a deletion that has begun is waited for, and how often it is looked at.
const DELETION: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);

/// Makes sure that a snapshot was not deleted before its hold stood there. Who deletes says so in
/// the heartbeat, looks for holds, and only then deletes: so either it saw the hold, or we see the
/// heartbeat and wait for what comes of it.
async fn ensure_kept(open: &OpenStorage, of: &SnapshotRef) -> Result<(), StorageError> {
    let storage = open.storage.as_ref();
    let folder = SnapshotRef::strategy_folder(&of.instance, &of.strategy);
    let began = tokio::time::Instant::now();
    loop {
        match read_heartbeat(storage, &folder, &of.id).await {
            Ok(Some(heartbeat)) if heartbeat.deleting => {
                if began.elapsed() > DELETION {
                    let who = format!(
                        "`{}` (process {}) began to delete `{}` and does not go on: hold it again",
                        heartbeat.host, heartbeat.pid, of.id
                    );
                    return Err(writer::busy(storage, &folder, &who));
                }
                tokio::time::sleep(LOOK).await;
            }
            Err(error) if !error.is_denied() => return Err(error),
            _ => break,
        }
    }
    match storage.stat(&of.manifest_key()).await {
        Err(error) if !error.is_denied() => Err(error),
        _ => Ok(()),
    }
}

/// Releases a snapshot, for a `reason`: ends its holds, and what a run or a drill said of it, that
/// it is suspect. A mark of it that is damaged ends too.
///
/// # Errors
/// [`EngineError::NotFound`] when no storage has one.
pub async fn release(
    engine: &Engine,
    storages: &[OpenStorage],
    listing: &Listing,
    of: &SnapshotRef,
    what: Released,
    reason: Option<String>,
) -> Result<MarkReport, EngineError> {
    let marks = read_marks(engine, storages, &of.instance).await;
    let (ends, places) = marks.releasable(of, what);
    let missing = marks.missing_releases(&of.id);
    let mut report = MarkReport::new(of);
    report.failed.extend(marks.unlisted.iter().cloned());
    if ends.is_empty() && missing.is_empty() && report.failed.is_empty() {
        return Err(nothing_to_end(&marks, listing, of));
    }
    for (release, places) in missing {
        for open in storages.iter().filter(|open| places.contains(&open.name)) {
            report.note(&open.name, write_mark(open, release).await);
        }
    }
    end_marks(engine, storages, of, (ends, reason), &places, &mut report).await?;
    // The catalog shall know: the status asks no storage.
    read_marks(engine, storages, &of.instance).await;
    Ok(report)
}

fn nothing_to_end(marks: &Marks, listing: &Listing, of: &SnapshotRef) -> EngineError {
    let mut doubts = listing.doubts();
    doubts.extend(
        marks.unread().into_iter().map(|(storage, problem)| format!("`{storage}`: {problem}")),
    );
    let doubts = if doubts.is_empty() { String::new() } else { format!(". {}", doubts.join(". ")) };
    EngineError::NotFound(match marks.held_by_unknown(&of.id) {
        Some(reason) => {
            format!("`{}` is held by {reason}, which alone can release it{doubts}", of.id)
        }
        None => format!("`{}` is neither held nor suspect in any storage{doubts}", of.id),
    })
}

/// Says in each of `places` that the marks `ends` count no more.
async fn end_marks(
    engine: &Engine,
    storages: &[OpenStorage],
    of: &SnapshotRef,
    (ends, reason): (Vec<MarkRef>, Option<String>),
    places: &BTreeSet<Name>,
    report: &mut MarkReport,
) -> Result<(), EngineError> {
    if ends.is_empty() {
        return Ok(());
    }
    let mark = new_mark(engine, of, Says::Release { ends, reason, forgotten: false })?;
    for open in storages.iter().filter(|open| places.contains(&open.name)) {
        if engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        report.note(&open.name, write_mark(open, &mark).await);
    }
    Ok(())
}
