//! The scheduler: the one process that runs every strategy on time.
//!
//! This room knows when to begin and what to do when a run fails; what a run is, and when one is due, it is told by `engine` and `schedule`. It does not
//! print. tokio-cron-scheduler wakes it, with one job a run; it computes no times.
//!
//! Nothing here ends the process but the request to stop: a run that fails, a source that hangs, a panic are an error in the log, and the strategy goes on
//! with its next time.

mod timer;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::{Instance, Strategy};
use crate::engine::{self, Engine, EngineError};
use crate::model::Cancel;
use crate::report::{Outcome, RunReport};
use crate::schedule::{Due, Schedule, jitter};
use timer::Timer;

/// Why the scheduler could not begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No strategy has a schedule that is followed.
    #[error(
        "Nothing is scheduled: no strategy has a `schedule` and is active. Give one a `schedule`, or run it by hand with `backup --strategy NAME`"
    )]
    Nothing,
    /// The timer did not start.
    #[error("Could not start the timer: {0}")]
    Timer(String),
}

/// An instance to look after, and the engine with its state.
pub struct Scheduled {
    /// What is to be run.
    pub instance: Instance,
    /// What runs it; its cancellation is that of the scheduler.
    pub engine: Engine,
}

/// Runs every active strategy with a schedule, each at its times, at most `max_concurrent` at once, until `stop`. A run that is under way then is cancelled
/// by its engine, and awaited.
///
/// # Errors
/// When there is nothing to run, or no timer.
pub async fn serve(scheduled: Vec<Scheduled>, max_concurrent: usize, stop: &Cancel) -> Result<(), DaemonError> {
    let timer = Timer::start().await?;
    let places = Arc::new(Semaphore::new(max_concurrent.max(1)));
    let mut strategies = JoinSet::new();
    for Scheduled { instance, engine } in scheduled {
        let instance = Arc::new(instance);
        for strategy in instance.strategies.values() {
            let Some(schedule) = strategy.schedule.clone().filter(|_| strategy.active) else { continue };
            let work = Work {
                instance: Arc::clone(&instance),
                strategy: strategy.clone(),
                schedule,
                engine: engine.clone(),
                timer: timer.clone(),
                places: Arc::clone(&places),
                stop: stop.clone(),
            };
            // A thread of its own, which mostly waits. (What a run is made of is not made to move between threads.)
            let runtime = Handle::current();
            strategies.spawn_blocking(move || runtime.block_on(work.go_on()));
        }
    }
    if strategies.is_empty() {
        return Err(DaemonError::Nothing);
    }
    while let Some(ended) = strategies.join_next().await {
        if let Err(error) = ended {
            tracing::error!(
                "internal error: a strategy is not looked after any more: {error}; restart the scheduler and report it"
            );
        }
    }
    timer.stop().await;
    Ok(())
}

/// One strategy, looked after.
struct Work {
    instance: Arc<Instance>,
    strategy: Strategy,
    schedule: Schedule,
    engine: Engine,
    timer: Timer,
    places: Arc<Semaphore>,
    stop: Cancel,
}

impl Work {
    fn name(&self) -> String {
        format!("{}/{}", self.instance.name, self.strategy.name)
    }

    /// Runs the strategy at its times until asked to stop.
    async fn go_on(self) {
        let name = self.name();
        let jitter = jitter(self.strategy.jitter, &name);
        let now = self.engine.clock.now();
        // A restart never resets the clock: what counts is when it last began. The first time of all there is nothing to make up for.
        let mut last = match engine::last_began(&self.engine, &self.instance, &self.strategy).await {
            Some(last) if last > now => {
                tracing::warn!(
                    strategy = name,
                    "the last run began at {last}, which is in the future: the clock of this machine was set back"
                );
                now
            }
            last => last.unwrap_or(now),
        };
        loop {
            let now = self.engine.clock.now();
            let Some(due) = self.schedule.due(last, now, self.strategy.missed, jitter) else { return };
            if due.missed {
                tracing::warn!(strategy = name, last = %last, "a run was missed, and is made up for now");
            } else {
                tracing::info!(strategy = name, next = %due.begins, "waiting");
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.timer.until(due.begins, &self.engine.clock) => {}
            }
            let began = self.engine.clock.now();
            last = later(due, began);
            let place = tokio::select! {
                () = self.stop.cancelled() => return,
                place = self.places.acquire() => place,
            };
            self.run(&name).await;
            drop(place);
            if self.stop.is_cancelled() {
                return;
            }
        }
    }

    /// One run. A panic in it is an error of the run.
    async fn run(&self, name: &str) {
        let (engine, instance, strategy) = (self.engine.clone(), Arc::clone(&self.instance), self.strategy.clone());
        let runtime = Handle::current();
        let run = move || runtime.block_on(engine::run(&engine, &instance, &strategy));
        let ended = tokio::task::spawn_blocking(run).await;
        match ended {
            Ok(Ok(report)) => log(name, &report),
            Ok(Err(error @ EngineError::Locked { .. })) => tracing::warn!(strategy = name, "not run: {error}"),
            Ok(Err(error)) => tracing::error!(strategy = name, "not run: {}", engine::chain(&error)),
            Err(error) => {
                tracing::error!(strategy = name, "internal error: the run ended with {error}; please report it");
            }
        }
    }
}

/// What the next run is counted from: the time that this one was for. Where it begins much later, because the clock jumped, all that lies between has
/// been made up for.
fn later(due: Due, began: DateTime<Utc>) -> DateTime<Utc> {
    if began - due.begins > chrono::TimeDelta::minutes(1) { began } else { due.at }
}

fn log(name: &str, report: &RunReport) {
    let (id, bytes, seconds) = (report.id.as_str(), report.stored_bytes, report.seconds);
    match report.outcome {
        Outcome::Success => tracing::info!(strategy = name, id, stored_bytes = bytes, seconds, "run committed"),
        Outcome::Problems => {
            for storage in &report.storages {
                let pruned = storage.pruned.as_ref().and_then(|pruned| pruned.problem.as_ref());
                for problem in storage.error.iter().chain(&storage.notes).chain(pruned) {
                    tracing::warn!(strategy = name, id, storage = %storage.name, "{problem}");
                }
            }
            tracing::warn!(strategy = name, id, stored_bytes = bytes, seconds, "run committed, with problems");
        }
        Outcome::Failed | Outcome::Cancelled => {
            let error = report.error.as_deref().unwrap_or_default();
            for storage in &report.storages {
                if let Some(error) = &storage.error {
                    tracing::error!(strategy = name, id, storage = %storage.name, "{error}");
                }
            }
            tracing::error!(strategy = name, id, "run {}, nothing was committed: {error}", report.outcome);
        }
    }
}
