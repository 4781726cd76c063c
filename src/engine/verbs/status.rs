//! How each strategy fares, from what is recorded on this machine. No storage is asked, so that it
//! can be looked at every few seconds.

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;

use crate::catalog::{Catalog, CatalogError, RunRecord};
use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::{EngineError, chain};
use crate::engine::snapshots::drills::{last_drills, to_report};
use crate::engine::snapshots::list::{list_opened, list_side_by_side};
use crate::engine::snapshots::marks::Marks;
use crate::engine::snapshots::present::is_future;
use crate::engine::state::locks::is_running;
use crate::model::{Completeness, Manifest, Name, Verdict, VerificationOutcome};
use crate::report::{
    Drills, LastDrill, LastRun, LastVerification, RunReport, State, Status, StorageStatus,
    StrategyStatus,
};
use crate::schedule::{Allowance, Missed, jitter};
use crate::storage::Patience;

/// How the strategies of `instance` fare.
pub async fn status(engine: &Engine, instance: &Instance) -> Status {
    let now = engine.clock.now();
    let mut strategies = Vec::new();
    let mut problems = Vec::new();
    match engine.try_catalog().await {
        Ok(catalog) => {
            for strategy in instance.strategies.values().filter(|strategy| is_looked_at(strategy)) {
                match strategy_status(engine, catalog, instance, strategy, now).await {
                    Ok(status) => strategies.push(status),
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
        Err(error) => problems.push(error.to_string()),
    }
    Status::new(now, strategies, problems)
}

/// Whether there is something to say of a strategy: it backs something up, or drills what another
/// configuration does.
fn is_looked_at(strategy: &Strategy) -> bool {
    !strategy.sources.is_empty() || strategy.drill.schedule.is_some()
}

/// What is known of the drills of a strategy, and what of it is not as its schedule promises.
async fn drills(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    since: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(Option<Drills>, Option<String>), CatalogError> {
    let known = last_drills(engine, instance, strategy).await?;
    let schedule = strategy.drill.schedule.as_ref().filter(|_| strategy.active);
    if schedule.is_none() && known.last.is_none() && known.judged.is_none() {
        return Ok((None, None));
    }
    let last = known.last.as_ref();
    let report = last.and_then(|last| to_report(last).ok());
    let report = report.as_ref();
    let problem = report.and_then(|report| report.problem.clone());
    let took = last.map(|last| took((last.finished - last.started).num_seconds() as f64));
    let allowance = Allowance { jitter: TimeDelta::zero(), stale_after: None, last_took: took };
    let from = known.passed.or(since).map(|from| from.min(now));
    let overdue =
        schedule.zip(from).and_then(|(schedule, from)| schedule.overdue(from, now, allowance));
    let wrong = match (known.judged, overdue) {
        // Scheduled or not: the newest that is known of the backup is that it is bad.
        (Some((at, Verdict::Failed)), _) => {
            let why = problem
                .as_deref()
                .filter(|_| last.is_some_and(|last| last.verdict == Verdict::Failed))
                .unwrap_or("see `backup drill report`");
            Some(format!("the drill of {} failed: {why}", at.to_rfc3339()))
        }
        (_, Some(overdue)) => {
            let passed = known.passed.map_or_else(|| "none".to_owned(), |at| at.to_rfc3339());
            let why =
                last.filter(|last| last.verdict == Verdict::Inconclusive).and(problem.as_deref());
            let why =
                why.map(|why| format!("; the last could not judge: {why}")).unwrap_or_default();
            Some(format!(
                "no drill has passed since the one due at {} (the last that passed: {passed}){why}",
                overdue.due.to_rfc3339()
            ))
        }
        _ => None,
    };
    let began = last.map(|last| last.started).or(since).unwrap_or(now).min(now);
    let drills = Drills {
        schedule: strategy.drill.schedule.as_ref().map(|schedule| schedule.line.clone()),
        next: schedule
            .and_then(|schedule| schedule.due(began, now, Missed::RunOnce, TimeDelta::zero()))
            .map(|due| due.begins),
        last_passed: known.passed,
        last_judged: known.judged.map(|(at, _)| at),
        verdict: known.judged.map(|(_, verdict)| verdict),
        last: last.map(|last| LastDrill {
            id: last.id.clone(),
            snapshot: last.snapshot.clone(),
            verdict: last.verdict,
            started: last.started,
            finished: last.finished,
            recovery_seconds: report.map(|report| report.recovery_seconds),
            recovery_point_seconds: report.and_then(|report| report.recovery_point_seconds),
            proof: report.map(|report| report.proof.clone()).unwrap_or_default(),
            problem: problem.clone(),
        }),
    };
    Ok((Some(drills), wrong))
}

/// Lists the storages of each strategy of which nothing at all is recorded, so that the status
/// after the loss of the state folder is that of the storages.
pub async fn fill_status(engine: &Engine, instance: &Instance) {
    let Some(catalog) = engine.catalog().await else { return };
    let opening = instance.storages.iter().map(|(name, config)| async move {
        let open = OpenStorage::open_with(name, config, Patience::Watched, &engine.cancel).await;
        (name, open.map_err(|error| (name.clone(), chain(&error))))
    });
    // Opened once: one that does not answer is not waited for again by the next strategy.
    let opened = join_all(opening).await;
    for strategy in instance.strategies.values().filter(|strategy| is_looked_at(strategy)) {
        match catalog.last_run(&instance.name, &strategy.name, false).await {
            Ok(None) => {
                let of_it = opened.iter().filter(|(name, _)| strategy.storages.contains(name));
                let of_it = of_it.map(|(_, open)| open);
                list_opened(engine, instance, strategy, of_it).await;
            }
            Ok(Some(_)) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

/// Brings what the catalog has of a strategy up to date with its storages.
pub async fn list_strategy(engine: &Engine, instance: &Instance, strategy: &Strategy) {
    list_side_by_side(engine, instance, strategy).await;
}

/// When the newest snapshot was begun that is whole in every storage of the strategy, by a fresh
/// listing of them; none where one has none or cannot be listed.
pub async fn newest_everywhere(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Option<DateTime<Utc>> {
    let now = engine.clock.now();
    let newest = list_side_by_side(engine, instance, strategy).await.into_iter().map(|listed| {
        // One that a clock dated ahead says nothing about today.
        let whole = listed?
            .into_iter()
            .filter(|one| one.is_whole() && !one.is_future)
            .map(|one| one.id.time());
        whole.filter(|taken| *taken <= now).max()
    });
    newest.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Notes that a strategy is looked after from now on; since when it is.
pub async fn watch(engine: &Engine, instance: &Instance, strategy: &Strategy) -> DateTime<Utc> {
    let now = engine.clock.now_seconds();
    let Some(catalog) = engine.catalog().await else { return now };
    catalog.watch(&instance.name, &strategy.name, now).await.unwrap_or_else(|error| {
        tracing::warn!("{error}");
        now
    })
}

/// Whether a stale alert was sent that no recovery has followed yet.
pub async fn stale_alert_sent(engine: &Engine, instance: &Name, strategy: &Name) -> bool {
    let Some(catalog) = engine.catalog().await else { return false };
    matches!(catalog.watched(instance, strategy).await,
        Ok(Some(watched)) if watched.stale.is_some())
}

/// Remembers, also for a process after this one, that somebody was told that a strategy is stale
/// since `stale`, or that it is not.
///
/// # Errors
/// When it could not be remembered.
pub async fn note_stale(
    engine: &Engine,
    status: &StrategyStatus,
    stale: Option<DateTime<Utc>>,
) -> Result<(), EngineError> {
    let catalog = engine.try_catalog().await?;
    Ok(catalog
        .set_stale(&status.instance, &status.strategy, stale, engine.clock.now_seconds())
        .await?)
}

async fn strategy_status(
    engine: &Engine,
    catalog: &Catalog,
    instance: &Instance,
    strategy: &Strategy,
    now: DateTime<Utc>,
) -> Result<StrategyStatus, CatalogError> {
    let (of, name) = (&instance.name, &strategy.name);
    let last_run = catalog.last_run(of, name, false).await?;
    let last_committed = catalog.last_run(of, name, true).await?;
    let watched = catalog.watched(of, name).await?;
    // Whatever is dated in the future was so by a clock that was wrong.
    let since = watched.map(|watched| watched.since.min(now));
    let verified = catalog.last_verification(of, name, false).await?;
    let judged = catalog.last_verification(of, name, true).await?;
    let jitter = jitter(strategy.jitter, &format!("{of}/{name}"));
    let schedule = strategy.schedule.as_ref().filter(|_| strategy.active);
    let allowance = Allowance {
        jitter,
        stale_after: strategy
            .stale_after
            .and_then(|span| TimeDelta::from_std(span.duration()).ok()),
        // As it was measured: the clock may have been set while it ran.
        last_took: last_committed.as_ref().map(|run| told(run.clone()).seconds).map(took),
    };
    let places = instance.storages.iter().map(|(name, config)| (name, config.place()));
    let marks = Marks::known(catalog, of, places).await?;
    let mut storages: Vec<StorageStatus> = Vec::new();
    let mut damaged: Vec<String> = Vec::new();
    let mut overdue = Vec::new();
    let mut unknown = Vec::new();
    for (storage, config) in
        instance.storages.iter().filter(|(storage, _)| strategy.storages.contains(storage))
    {
        let place = config.place();
        let (mut found, damage) = kept(catalog, of, name, storage, &place, &marks, now).await?;
        let damage = damage.zip(found.damaged.last());
        damaged.extend(
            damage.map(|(why, id)| format!("the copy of `{id}` in `{storage}` is damaged: {why}")),
        );
        let first_listed = catalog.first_listed(&place).await?;
        if first_listed.is_none() && schedule.is_some() {
            unknown.push(storage.clone());
        }
        // Where there is none, the first is due since somebody looks after the strategy, and since
        // there is such a storage; nobody promised one before.
        let newest = found
            .newest_whole
            .or(since.map(|since| since.max(first_listed.unwrap_or(since).min(now))));
        let missed = schedule.and_then(|schedule| schedule.overdue(newest?, now, allowance));
        found.fresh = missed.is_none() && (found.newest_whole.is_some() || schedule.is_none());
        if let Some(missed) = missed {
            overdue.push((missed, storage.clone(), found.newest_whole));
        }
        storages.push(found);
    }
    let never_watched = schedule.is_some() && watched.is_none();
    let lacking: Vec<&StorageStatus> =
        storages.iter().filter(|storage| storage.newest_whole.is_none()).collect();
    let stale_since = overdue.iter().map(|(missed, ..)| missed.since).min();
    let (state, reason) = if !strategy.active {
        (State::Inactive, None)
    } else if schedule.is_none() && storages.iter().all(|one| one.damaged.is_empty()) {
        (State::Manual, None)
    } else if !overdue.is_empty() {
        let mut words: Vec<String> = Vec::new();
        for (missed, storage, newest) in &overdue {
            let newest = newest.map_or_else(|| "none".to_owned(), |newest| newest.to_rfc3339());
            words.push(format!(
                "`{storage}` has no whole snapshot of {} or later (the newest: {newest})",
                missed.due.to_rfc3339()
            ));
        }
        (State::Stale, Some(words.join("; ")))
    } else if let Some(unknown) = unknown.first() {
        (
            State::Stale,
            Some(format!("`{unknown}` was never reached from here: what it has is not known")),
        )
    } else if never_watched && let Some(lacking) = lacking.first() {
        let words = format!(
            "`{}` has no whole snapshot, and no scheduler has looked after it yet",
            lacking.storage
        );
        (State::Stale, Some(words))
    } else if let Some(first) = damaged.first() {
        let count = storages.iter().map(|one| one.damaged.len()).sum::<usize>();
        let more = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
        let words =
            format!("{first}{more}. Once repaired, `backup verify --read-data` ends the mark");
        (State::Damaged, Some(words))
    } else if let Some(damaged) =
        judged.as_ref().filter(|judged| judged.outcome == VerificationOutcome::Damaged)
    {
        let problem = damaged.problem.as_deref().unwrap_or_default();
        (
            State::Damaged,
            Some(format!("the verification of {} found: {problem}", damaged.started.to_rfc3339())),
        )
    } else if lacking.is_empty() {
        (State::Fresh, None)
    } else {
        (State::Waiting, None)
    };
    let (drills, unproven) = drills(engine, instance, strategy, since, now).await?;
    let suspect = storages.iter().flat_map(|storage| &storage.suspect).max().map(|id| {
        format!(
            "`{id}` is suspect: much less is in it than in the last good snapshot, and nothing is \
             pruned until `backup release {id} --reason TEXT`"
        )
    });
    let reason = match (reason, &suspect) {
        (Some(reason), Some(suspect)) => Some(format!("{reason}; {suspect}")),
        (reason, _) => reason,
    };
    let (state, reason) = match suspect.or(unproven) {
        Some(unproven) if state.is_well() && state != State::Inactive => {
            (State::Unproven, Some(unproven))
        }
        _ => (state, reason),
    };
    let last = last_run
        .as_ref()
        .map(|run| run.started)
        .or(watched.map(|watched| watched.since))
        .unwrap_or(now)
        .min(now);
    Ok(StrategyStatus {
        instance: of.clone(),
        strategy: name.clone(),
        state,
        reason,
        stale_since,
        schedule: strategy.schedule.as_ref().map(|schedule| schedule.line.clone()),
        timezone: strategy.timezone.name().to_owned(),
        next: schedule
            .and_then(|schedule| schedule.due(last, now, strategy.missed, jitter))
            .map(|due| due.begins),
        running: is_running(&engine.state_dir, of, name),
        last_run: last_run.map(told),
        last_committed: last_committed.map(told),
        failures_in_a_row: catalog.failures_in_a_row(of, name).await?,
        runs: catalog.tally(of, name).await?,
        storages,
        verified: verified.map(|verified| LastVerification {
            outcome: verified.outcome,
            started: verified.started,
            finished: verified.finished,
            snapshots: verified.snapshots,
            read_bytes: verified.read_bytes,
            problem: verified.problem,
        }),
        drills,
    })
}

/// What a storage has of a strategy, by the catalog, and how the newest damaged copy is damaged.
async fn kept(
    catalog: &Catalog,
    instance: &Name,
    strategy: &Name,
    storage: &Name,
    place: &str,
    marks: &Marks,
    now: DateTime<Utc>,
) -> Result<(StorageStatus, Option<String>), CatalogError> {
    let mut newest_damage = None;
    let mut found = StorageStatus {
        storage: storage.clone(),
        newest_whole: None,
        suspect: Vec::new(),
        damaged: Vec::new(),
        fresh: false,
        snapshots: 0,
        stored_bytes: 0,
    };
    for cached in catalog.manifests_of(place, instance, strategy).await? {
        let Ok(manifest) = Manifest::from_bytes(&cached.body, instance, strategy, &cached.id)
        else {
            continue;
        };
        found.snapshots += 1;
        found.stored_bytes = found.stored_bytes.saturating_add(manifest.stored_bytes());
        if let Some(why) = marks.damage(storage, &manifest) {
            newest_damage = Some(why);
            found.damaged.push(cached.id.clone());
        }
        if marks.is_suspect(strategy, &cached.id) {
            found.suspect.push(cached.id);
        } else if manifest.completeness == Completeness::Whole && !is_future(&cached.id, now) {
            found.newest_whole = found.newest_whole.max(Some(cached.id.time()));
        }
    }
    Ok((found, newest_damage))
}

/// What a run took, as far as it is believed.
fn took(seconds: f64) -> TimeDelta {
    TimeDelta::seconds((seconds.clamp(0.0, 86_400.0)) as i64)
}

fn told(run: RunRecord) -> LastRun {
    let report = serde_json::from_str::<RunReport>(&run.report).ok();
    let seconds = (run.finished - run.started).num_seconds() as f64;
    LastRun {
        id: run.id,
        outcome: run.outcome,
        started: run.started,
        finished: run.finished,
        seconds: report.as_ref().map_or(seconds, |report| report.seconds),
        plain_bytes: run.plain_bytes,
        stored_bytes: run.stored_bytes,
        tally: report.as_ref().map(RunReport::tally),
        error: report.and_then(|report| report.error),
    }
}
