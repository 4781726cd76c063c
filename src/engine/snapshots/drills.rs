//! The drills that the catalog and the marks know of.

use chrono::{DateTime, Utc};

use crate::catalog::{CatalogError, DrillRecord};
use crate::config::{Instance, Strategy};
use crate::engine::context::Engine;
use crate::engine::error::EngineError;
use crate::engine::snapshots::marks::drill_marks;
use crate::model::{Name, Says, Verdict};
use crate::report::DrillReport;

/// When the last drill of the strategy began that came to a verdict, as far as is recorded here.
/// One that did not is made up for at the next start.
pub async fn last_drilled(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Option<DateTime<Utc>> {
    match engine
        .catalog()
        .await?
        .last_drill(&instance.name, &strategy.name, &[Verdict::Passed, Verdict::Failed])
        .await
    {
        Ok(last) => last.map(|last| last.started),
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}

/// The evidence of the drills of an instance that are recorded here, the newest first.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn drill_reports(
    engine: &Engine,
    instance: &Name,
) -> Result<Vec<DrillRecord>, EngineError> {
    Ok(engine.try_catalog().await?.drills(instance).await?)
}

/// The evidence as it was recorded.
///
/// # Errors
/// When it cannot be read by this version.
pub fn to_report(record: &DrillRecord) -> Result<DrillReport, EngineError> {
    serde_json::from_str(&record.report).map_err(|error| {
        EngineError::NotFound(format!(
            "The evidence of the drill `{}` cannot be read: {error}",
            record.id
        ))
    })
}

/// What is known here of the drills of a strategy, of other machines too as far as their marks were
/// seen.
#[derive(Debug, Clone, Default)]
pub struct LastDrills {
    /// The last of this machine, however it ended.
    pub last: Option<DrillRecord>,
    /// When the last that came to a verdict ended, and which.
    pub judged: Option<(DateTime<Utc>, Verdict)>,
    /// When the last that passed ended.
    pub passed: Option<DateTime<Utc>>,
}

/// What is known here of the drills of a strategy. No storage is asked.
///
/// # Errors
/// When the catalog cannot be read.
pub async fn last_drills(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Result<LastDrills, CatalogError> {
    let Some(catalog) = engine.catalog().await else { return Ok(LastDrills::default()) };
    let (of, name) = (&instance.name, &strategy.name);
    let mut known: Vec<(DateTime<Utc>, Verdict)> = Vec::new();
    for verdict in [Verdict::Passed, Verdict::Failed] {
        let last = catalog.last_drill(of, name, &[verdict]).await?;
        known.extend(last.map(|last| (last.finished, verdict)));
    }
    for storage in instance.storages.values() {
        for mark in drill_marks(catalog.marks(&storage.place()).await?, of, name) {
            if let Says::Drill { verdict, .. } = mark.says
                && verdict != Verdict::Inconclusive
            {
                known.push((mark.made, verdict));
            }
        }
    }
    let latest = |all: &mut dyn Iterator<Item = &(DateTime<Utc>, Verdict)>| {
        all.max_by_key(|(at, _)| *at).copied()
    };
    Ok(LastDrills {
        last: catalog.last_drill(of, name, &[]).await?,
        judged: latest(&mut known.iter()),
        passed: latest(&mut known.iter().filter(|(_, verdict)| *verdict == Verdict::Passed))
            .map(|(at, _)| at),
    })
}
