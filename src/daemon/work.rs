//! One strategy, looked after: its runs, its verifications and its drills, each at their times.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use super::timer::Timer;
use crate::config::{Instance, Strategy, Verification};
use crate::engine::{self, DrillRequest, Engine, EngineError};
use crate::model::{Cancel, Verdict};
use crate::report::notify::Notifiers;
use crate::report::{Event, EventKind, Outcome, RunReport};
use crate::schedule::{Due, Missed, Schedule, jitter};

/// How long to wait before looking again whether another run of the strategy has ended: at first,
/// and at most.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// How long to wait before a verification that met a pruning begins again.
const LOCKED: Duration = Duration::from_secs(30);
/// How long a look into the storages before a run may take. One that hangs must not keep the run
/// from the others.
const PATIENCE: Duration = Duration::from_secs(30);

/// One strategy, looked after.
pub(super) struct Work {
    pub(super) instance: Arc<Instance>,
    pub(super) strategy: Strategy,
    pub(super) engine: Engine,
    pub(super) timer: Timer,
    /// How many run at a time.
    pub(super) places: Arc<Semaphore>,
    /// Asks to begin nothing more: what is under way goes on.
    pub(super) retire: Cancel,
    pub(super) notifiers: Notifiers,
    /// Told whenever a run has ended.
    pub(super) ended: Arc<Notify>,
}

/// How waiting ended.
enum Waited {
    /// The time has come.
    Reached,
    /// The clock was set back.
    SetBack,
    /// It was asked to stop.
    Retired,
}

/// Does what is good to know before a run, and is not worth waiting for.
async fn in_time<T>(look: impl Future<Output = T>) -> Option<T> {
    let done = tokio::time::timeout(PATIENCE, look).await;
    done.inspect_err(|_| {
        tracing::warn!("a storage does not answer: going on without having looked into it");
    })
    .ok()
}

/// How an attempt ended, and what there is to tell if it was the last.
enum Attempt {
    /// There is nothing more to do for this time.
    Over(Option<Event>),
    /// It failed, for a reason that may pass.
    MayPass(Event),
    /// Another run of the strategy is under way.
    Locked,
}

impl Work {
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.instance.name, self.strategy.name)
    }

    /// Runs the strategy at its times until asked to stop.
    pub(super) async fn run_on(&self, schedule: &Schedule) {
        let name = self.name();
        let jitter = jitter(self.strategy.jitter, &name);
        let since = engine::watch(&self.engine, &self.instance, &self.strategy).await;
        // A restart never resets the clock: what counts is when it last began, or else since when
        // it is looked after.
        let began = engine::last_began(&self.engine, &self.instance, &self.strategy);
        let mut last = in_time(began).await.flatten().unwrap_or(since);
        let mut alarmed = false;
        in_time(engine::list_strategy(&self.engine, &self.instance, &self.strategy)).await;
        while !self.retire.is_cancelled() {
            // The clock may have been ahead, now or when the last run began.
            let now = self.engine.clock.now();
            last = self.not_future(last);
            let Some(due) = schedule.due(last, now, self.strategy.missed, jitter) else { return };
            if !due.missed {
                tracing::info!(strategy = name, next = %due.begins, "waiting");
            }
            match self.wait_until(due.begins, now).await {
                Waited::Reached => {}
                Waited::SetBack => continue,
                Waited::Retired => return,
            }
            // Asleep over it: then it was missed.
            let now = self.engine.clock.now();
            if schedule
                .due(last, now, self.strategy.missed, jitter)
                .is_none_or(|due| due.begins > now)
            {
                last = now;
                continue;
            }
            // Another scheduler, or somebody by hand, may have done it meanwhile.
            if let Some(taken) = self.taken(schedule, jitter).await.filter(|taken| *taken > last) {
                tracing::info!(strategy = name, %taken, "there is a snapshot of this time already: \
                    nothing to do");
                last = taken;
                continue;
            }
            if due.missed {
                tracing::warn!(strategy = name, last = %last, "a run was missed, and is made up \
                    for now");
            }
            let Some((counted, event)) = self.run_for(&name, schedule, due, jitter).await else {
                return;
            };
            last = counted;
            if let Some(event) = event {
                self.tell(&event, &mut alarmed).await;
            }
            self.ended.notify_one();
        }
    }

    /// When the newest snapshot was begun that every storage has, where no run has been due since
    /// then.
    async fn taken(&self, schedule: &Schedule, jitter: TimeDelta) -> Option<DateTime<Utc>> {
        let newest =
            in_time(engine::newest_everywhere(&self.engine, &self.instance, &self.strategy))
                .await??;
        let now = self.engine.clock.now();
        let next = schedule.next_after(newest)?.checked_add_signed(jitter)?;
        (newest <= now && now < next).then_some(newest)
    }

    /// Tells what came of a run, and that all is well again after a failure that was told. (After a
    /// strategy was stale, who noticed that tells it.)
    async fn tell(&self, event: &Event, alarmed: &mut bool) {
        self.notifiers.tell(event);
        match event.kind {
            EventKind::Failure => *alarmed = true,
            EventKind::Success
                if std::mem::take(alarmed)
                    && !engine::is_said_to_be_stale(
                        &self.engine,
                        &self.instance.name,
                        &self.strategy.name,
                    )
                    .await =>
            {
                let reason = Some("The run before failed, and this one did not".to_owned());
                let (instance, strategy) = (&self.instance.name, &self.strategy.name);
                self.notifiers.tell(&Event::recovered(instance, strategy, event.at, reason));
            }
            _ => {}
        }
    }

    /// Runs until it is done, or no attempt is left, or the next time has come. What the next run
    /// is counted from, and what there is to tell; none when asked to stop.
    async fn run_for(
        &self,
        name: &str,
        schedule: &Schedule,
        due: Due,
        jitter: TimeDelta,
    ) -> Option<(DateTime<Utc>, Option<Event>)> {
        let mut attempts = 0;
        let [mut look_again, longest] = LOOK_AGAIN;
        let mut waits = false;
        loop {
            let place = tokio::select! {
                () = self.retire.cancelled() => return None,
                place = self.places.acquire() => place,
            };
            let began = self.engine.clock.now();
            // What the next one is counted from: the time that this one was for. Where it begins
            // much later, because the clock jumped or a run before it took long, all that lies
            // between has been made up for.
            let counted = if began - due.begins > TimeDelta::minutes(1) { began } else { due.at };
            let ended = self.run(name).await;
            drop(place);
            let (wait, failure) = match ended {
                Attempt::Over(event) => return Some((counted, event)),
                Attempt::MayPass(event) => {
                    attempts += 1;
                    match self.strategy.retry.wait_after(attempts) {
                        // While it is tried again, it has not failed yet.
                        Some(wait) => {
                            let seconds = wait.as_secs_f64();
                            tracing::warn!(
                                strategy = name,
                                attempts,
                                seconds,
                                "it may pass: trying again"
                            );
                            (wait, Some(event))
                        }
                        None => return Some((counted, Some(event))),
                    }
                }
                Attempt::Locked => {
                    if !waits {
                        tracing::info!(strategy = name, "waiting for the other run to end");
                        waits = true;
                    }
                    let wait = look_again;
                    look_again = (wait * 2).min(longest);
                    (wait, None)
                }
            };
            tokio::select! {
                // Who goes on after this one finds a run that failed for such a reason, and tries
                // again.
                () = self.retire.cancelled() => return None,
                () = tokio::time::sleep(wait) => {}
            }
            if waits && let Some(taken) = self.taken(schedule, jitter).await {
                tracing::info!(strategy = name, %taken, "the other run did it");
                return Some((taken, None));
            }
            // The next time has come: it is the next run's turn.
            let now = self.engine.clock.now();
            if attempts > 0 && schedule.next_after(counted).is_some_and(|next| next <= now) {
                return Some((counted, failure));
            }
        }
    }

    /// One run. A panic in it is an error of the run.
    async fn run(&self, name: &str) -> Attempt {
        let (instance, strategy) = (Arc::clone(&self.instance), self.strategy.clone());
        let (of, which) = (self.instance.name.clone(), self.strategy.name.clone());
        let mut engine = self.engine.clone();
        engine.began = Some({
            let (notifiers, clock) = (self.notifiers.clone(), engine.clock.clone());
            let (of, which) = (of.clone(), which.clone());
            Arc::new(move || notifiers.tell(&Event::start(&of, &which, clock.now())))
        });
        let runtime = Handle::current();
        let run = move || runtime.block_on(engine::run(&engine, &instance, &strategy));
        let not_run = |reason: String| Event::not_run(&of, &which, self.engine.clock.now(), reason);
        match tokio::task::spawn_blocking(run).await {
            Ok(Ok(report)) => {
                log(name, &report);
                let event = Event::of_run(&report);
                if report.may_pass { Attempt::MayPass(event) } else { Attempt::Over(Some(event)) }
            }
            Ok(Err(error @ EngineError::Locked { .. })) => {
                tracing::info!(strategy = name, "not run now: {error}");
                Attempt::Locked
            }
            Ok(Err(error)) => {
                let error = engine::chain(&error);
                tracing::error!(strategy = name, "not run: {error}");
                // The local state could not be used. A disk that is full may have room again.
                Attempt::MayPass(not_run(error))
            }
            Err(error) => {
                tracing::error!(
                    strategy = name,
                    "internal error: the run ended with {error}; please report it"
                );
                Attempt::Over(Some(not_run(format!("Internal error: {error}"))))
            }
        }
    }

    /// Verifies at the times of `verification` until asked to stop.
    pub(super) async fn verify_on(&self, verification: &Verification) {
        let name = self.name();
        let since = engine::watch(&self.engine, &self.instance, &self.strategy).await;
        let mut last = engine::last_verified(&self.engine, &self.instance, &self.strategy)
            .await
            .unwrap_or(since);
        while !self.retire.is_cancelled() {
            let now = self.engine.clock.now();
            last = self.not_future(last);
            let Some(due) =
                verification.schedule.due(last, now, Missed::RunOnce, TimeDelta::zero())
            else {
                return;
            };
            match self.wait_until(due.begins, now).await {
                Waited::Reached => {}
                Waited::SetBack => continue,
                Waited::Retired => return,
            }
            let began = self.engine.clock.now();
            let before = last;
            last = if began - due.begins > TimeDelta::minutes(1) { began } else { due.at };
            let (engine, instance, strategy) =
                (self.engine.clone(), Arc::clone(&self.instance), self.strategy.clone());
            let (runtime, percent) = (Handle::current(), verification.read_data_percent);
            tracing::info!(strategy = name, percent, "verification begins");
            let work = move || {
                runtime.block_on(engine::verify_strategy(&engine, &instance, &strategy, percent))
            };
            match tokio::task::spawn_blocking(work).await {
                Ok(None) => {
                    // Snapshots of it are deleted right now.
                    last = before;
                    tokio::select! {
                        () = self.retire.cancelled() => return,
                        () = tokio::time::sleep(LOCKED) => {}
                    }
                }
                Ok(Some(done)) => match done.problem {
                    None => {
                        let (snapshots, bytes) = (done.snapshots, done.read_bytes);
                        tracing::info!(
                            strategy = name,
                            snapshots,
                            read_bytes = bytes,
                            "verified: nothing is wrong"
                        );
                    }
                    Some(_) if self.engine.cancel.is_cancelled() => return,
                    Some(problem) => {
                        tracing::error!(
                            strategy = name,
                            "verification {}: {problem}",
                            done.outcome
                        );
                        let (instance, strategy) = (&self.instance.name, &self.strategy.name);
                        let now = self.engine.clock.now();
                        self.notifiers
                            .tell(&Event::verification_failed(instance, strategy, now, problem));
                    }
                },
                Err(error) => {
                    tracing::error!(
                        strategy = name,
                        "internal error: the verification ended with {error}; please report it"
                    );
                }
            }
        }
    }

    /// Drills at the times of `schedule` until asked to stop.
    pub(super) async fn drill_on(&self, schedule: &Schedule) {
        let name = self.name();
        let since = engine::watch(&self.engine, &self.instance, &self.strategy).await;
        let mut last = engine::last_drilled(&self.engine, &self.instance, &self.strategy)
            .await
            .unwrap_or(since);
        while !self.retire.is_cancelled() {
            let now = self.engine.clock.now();
            last = self.not_future(last);
            let Some(due) = schedule.due(last, now, Missed::RunOnce, TimeDelta::zero()) else {
                return;
            };
            match self.wait_until(due.begins, now).await {
                Waited::Reached => {}
                Waited::SetBack => continue,
                Waited::Retired => return,
            }
            let began = self.engine.clock.now();
            last = if began - due.begins > TimeDelta::minutes(1) { began } else { due.at };
            let mut attempts = 0;
            loop {
                let place = tokio::select! {
                    () = self.retire.cancelled() => return,
                    place = self.places.acquire() => place,
                };
                let event = self.drill(&name).await;
                drop(place);
                attempts += 1;
                let Some(event) = event else { return };
                // What could not be judged now may be a moment later: the server that starts, the
                // network.
                let wait = self
                    .strategy
                    .retry
                    .wait_after(attempts)
                    .filter(|_| event.kind == EventKind::DrillInconclusive);
                let Some(wait) = wait else {
                    self.notifiers.tell(&event);
                    break;
                };
                tracing::warn!(
                    strategy = name,
                    attempts,
                    seconds = wait.as_secs_f64(),
                    "it may pass: trying again"
                );
                tokio::select! {
                    () = self.retire.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
            self.ended.notify_one();
        }
    }

    /// One drill, and what there is to tell of it. None when it was asked to stop.
    async fn drill(&self, name: &str) -> Option<Event> {
        let (engine, instance, strategy) =
            (self.engine.clone(), Arc::clone(&self.instance), self.strategy.clone());
        let runtime = Handle::current();
        let work = move || {
            runtime.block_on(engine::drill(&engine, &instance, &strategy, &DrillRequest::default()))
        };
        let ended = tokio::task::spawn_blocking(work).await;
        let (of, which, now) = (&self.instance.name, &self.strategy.name, self.engine.clock.now());
        match ended {
            Ok(Ok(report)) => {
                let (id, seconds) = (report.id.as_str(), report.recovery_seconds);
                let snapshot = report
                    .snapshot
                    .as_ref()
                    .map(|snapshot| snapshot.id.to_string())
                    .unwrap_or_default();
                let problem = report.problem.as_deref().unwrap_or_default();
                match report.verdict {
                    Verdict::Passed => {
                        tracing::info!(strategy = name, id, snapshot, seconds, "drill passed");
                    }
                    verdict => tracing::error!(
                        strategy = name,
                        id,
                        snapshot,
                        seconds,
                        "drill {verdict}: {problem}"
                    ),
                }
                Some(Event::of_drill(&report))
            }
            Ok(Err(EngineError::Cancelled)) => None,
            Ok(Err(error)) => {
                let error = engine::chain(&error);
                tracing::error!(strategy = name, "not drilled: {error}");
                Some(Event::not_drilled(of, which, now, error))
            }
            Err(error) => {
                tracing::error!(
                    strategy = name,
                    "internal error: the drill ended with {error}; please report it"
                );
                Some(Event::not_drilled(of, which, now, format!("Internal error: {error}")))
            }
        }
    }

    async fn wait_until(&self, at: DateTime<Utc>, seen: DateTime<Utc>) -> Waited {
        tokio::select! {
            () = self.retire.cancelled() => Waited::Retired,
            reached = self.timer.until(at, seen, &self.engine.clock) =>
                if reached { Waited::Reached } else { Waited::SetBack },
        }
    }

    fn not_future(&self, last: DateTime<Utc>) -> DateTime<Utc> {
        let now = self.engine.clock.now();
        if last > now {
            tracing::warn!(
                strategy = self.name(),
                "the last run began at {last}, which is in the future: the clock of this machine \
                 was set back"
            );
        }
        last.min(now)
    }
}

fn log(name: &str, report: &RunReport) {
    let (id, bytes, seconds) = (report.id.as_str(), report.stored_bytes, report.seconds);
    match report.outcome {
        Outcome::Success => {
            tracing::info!(strategy = name, id, stored_bytes = bytes, seconds, "run committed");
        }
        Outcome::Problems => {
            for storage in &report.storages {
                let pruned = storage.pruned.as_ref().and_then(|pruned| pruned.problem.as_ref());
                for problem in storage.error.iter().chain(&storage.notes).chain(pruned) {
                    tracing::warn!(strategy = name, id, storage = %storage.name, "{problem}");
                }
            }
            tracing::warn!(
                strategy = name,
                id,
                stored_bytes = bytes,
                seconds,
                "run committed, with problems"
            );
        }
        Outcome::Failed | Outcome::Cancelled => {
            let error = report.error.as_deref().unwrap_or_default();
            for storage in &report.storages {
                if let Some(error) = &storage.error {
                    tracing::error!(strategy = name, id, storage = %storage.name, "{error}");
                }
            }
            tracing::error!(
                strategy = name,
                id,
                "run {}, nothing was committed: {error}",
                report.outcome
            );
        }
    }
}
