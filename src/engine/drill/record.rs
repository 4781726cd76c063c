//! What becomes of a verdict: it stands in the catalog with all the evidence, and beside the
//! snapshot in every storage that has it, so that it outlives the machine and is heeded by whoever
//! prunes.

use crate::catalog::DrillRecord;
use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::{EngineError, chain};
use crate::engine::read::damage::remember;
use crate::engine::snapshots::damage::note_arrival;
use crate::engine::snapshots::list::Snapshot;
use crate::engine::snapshots::mark_writer::write_mark;
use crate::model::{
    CheckOutcome, Evidence, MANIFEST_KEY, Mark, Name, Says, SnapshotId, SnapshotRef, Verdict,
};
use crate::report::DrillReport;

/// Records a drill. What could not be recorded is in the report.
pub(in crate::engine) async fn record(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    copy: Option<&Snapshot>,
    report: &mut DrillReport,
) {
    let is_sound_again = report.verdict == Verdict::Passed;
    if let Some(copy) = copy
        && (report.only_this_copy || copy.damage.is_some() && is_sound_again)
        && let Err(error) = note_copy(engine, instance, copy, report).await
    {
        report.unrecorded.push((report.storage.to_string(), chain(&error)));
    }
    // Of a drill that judged nothing, or one copy only, there is nothing to say of the snapshot.
    if let Some(id) = report.snapshot.as_ref().map(|snapshot| snapshot.id.clone())
        && report.verdict != Verdict::Inconclusive
        && !report.only_this_copy
    {
        let names = instance
            .storages
            .keys()
            .filter(|name| strategy.storages.contains(*name) || **name == report.storage);
        for name in names.cloned().collect::<Vec<_>>() {
            match mark(engine, instance, &name, &id, report).await {
                Ok(true) => report.recorded.push(name),
                Ok(false) => {}
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(storage = %name, "the verdict of the drill could not be put \
                        there: {error}");
                    report.unrecorded.push((name.to_string(), error));
                }
            }
        }
    }
    let catalog = match engine.try_catalog().await {
        Ok(catalog) => catalog,
        Err(error) => {
            report.unrecorded.push(("catalog".to_owned(), chain(&error)));
            return;
        }
    };
    let record = DrillRecord {
        id: report.id.clone(),
        instance: instance.name.clone(),
        strategy: strategy.name.clone(),
        snapshot: report.snapshot.as_ref().map(|snapshot| snapshot.id.clone()),
        started: report.started,
        finished: report.finished,
        verdict: report.verdict,
        report: serde_json::to_string(report).unwrap_or_default(),
    };
    if let Err(error) = catalog.record_drill(&record).await {
        report.unrecorded.push(("catalog".to_owned(), error.to_string()));
    }
}

/// Says beside the copy that was drilled that it is damaged, or that it is so no more: a drill that
/// passed has held every object against its digest. The other copies may be what they are.
async fn note_copy(
    engine: &Engine,
    instance: &Instance,
    copy: &Snapshot,
    report: &mut DrillReport,
) -> Result<(), EngineError> {
    let (Some(config), Ok(manifest)) = (instance.storages.get(&copy.storage), &copy.manifest)
    else {
        return Ok(());
    };
    let open = OpenStorage::open(&copy.storage, config, &engine.cancel).await?;
    if report.verdict == Verdict::Passed {
        note_arrival(engine, &open, manifest).await;
    } else {
        let problem = report.problem.clone().unwrap_or_default();
        remember(engine, &open, copy, &problem).await;
        report.recorded.push(copy.storage.clone());
    }
    Ok(())
}

/// Puts the verdict beside the snapshot in one storage. False when it has no such snapshot.
pub(in crate::engine) async fn mark(
    engine: &Engine,
    instance: &Instance,
    name: &Name,
    id: &SnapshotId,
    report: &DrillReport,
) -> Result<bool, EngineError> {
    let Some(config) = instance.storages.get(name) else { return Ok(false) };
    let open = OpenStorage::open(name, config, &engine.cancel).await?;
    let failed = |error| EngineError::storage(name, error);
    let manifest = format!("{}/{}/{id}/{MANIFEST_KEY}", report.instance, report.strategy);
    match open.storage.stat(&manifest).await {
        // Where its manifest is gone from, that is the finding.
        Err(error) if error.is_not_found() && *name != report.storage => return Ok(false),
        Err(error) if !error.is_not_found() => return Err(failed(error)),
        _ => {}
    }
    let count = |outcome| report.count(outcome) as u64;
    let evidence = Evidence {
        drill: report.id.clone(),
        storage: report.storage.clone(),
        recovery_seconds: report.recovery_seconds.round() as u64,
        passed: count(CheckOutcome::Passed),
        not_passed: count(CheckOutcome::Failed) + count(CheckOutcome::Inconclusive),
        suspect: report.suspect,
        version: report.program.version.clone(),
    };
    let of = SnapshotRef {
        instance: report.instance.clone(),
        strategy: report.strategy.clone(),
        id: id.clone(),
    };
    let says = Says::Drill { verdict: report.verdict, evidence: Some(evidence) };
    // The drill's own id makes it the same mark in every storage.
    let drilled = Mark::new(of, report.id.clone(), report.finished, says);
    // First what protects: this may be cut off at any moment.
    if report.suspect {
        write_mark(&open, &drilled.suspicion()).await.map_err(failed)?;
    }
    write_mark(&open, &drilled).await.map_err(failed)?;
    Ok(true)
}
