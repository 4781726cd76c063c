//! One strategy, looked after: its runs, its verifications and its drills, each at their times.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use super::Reread;
use super::timer::Timer;
use crate::config::{Instance, Strategy};
use crate::engine::{self, DrillRequest, Engine, EngineError};
use crate::model::{Cancel, ErrorCode, Verdict};
use crate::report::notify::Notifiers;
use crate::report::{Event, EventKind, Outcome, RunReport};
use crate::schedule::{Due, Missed, Schedule, jitter};

/// A run that another one of the strategy keeps from beginning is tried again after this time,
/// which doubles up to the second one.
const LOOK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// How long a look into the storages before a run may take. One that hangs must not keep the run
/// from the others.
const PATIENCE: Duration = Duration::from_secs(30);

/// The scheduled work of a strategy, by kind. Each kind has a schedule and a task.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Runs,
    Verifications,
    Drills,
}

impl Work {
    pub(super) const ALL: [Self; 3] = [Self::Runs, Self::Verifications, Self::Drills];
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runs => "runs",
            Self::Verifications => "verifications",
            Self::Drills => "drills",
        })
    }
}

/// Does the scheduled work of one strategy.
pub(super) struct Worker {
    pub(super) instance: Arc<Instance>,
    /// The same, with the secrets that were read last.
    pub(super) latest: Mutex<Arc<Instance>>,
    pub(super) reread: Arc<Reread>,
    pub(super) strategy: Strategy,
    pub(super) engine: Engine,
    pub(super) timer: Timer,
    /// Limits how many strategies run at a time.
    pub(super) slots: Arc<Semaphore>,
    /// Asks to begin nothing more: what is under way goes on.
    pub(super) retire: Cancel,
    pub(super) notifiers: Notifiers,
    /// Notified whenever some work has ended.
    pub(super) ended: Arc<Notify>,
}

/// How waiting ended.
enum Waited {
    Reached,
    ClockSetBack,
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

/// How an attempt ended, and the event to send if it was the last.
enum Attempt {
    Done(Option<Event>),
    /// It failed, for a reason that may pass.
    MayPass(Event),
    /// Another process works on the strategy.
    Locked,
    Stopped,
}

impl Worker {
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.instance.name, self.strategy.name)
    }

    fn latest(&self) -> Arc<Instance> {
        Arc::clone(&self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether files of secrets have other ones than those that were used: from now on the new ones
    /// are.
    async fn has_new_secrets(&self) -> bool {
        let (reread, latest) = (Arc::clone(&self.reread), self.latest());
        let read = move || reread().filter(|fresh| fresh.has_other_secrets(&latest));
        let Ok(read) = engine::on_thread(read) else { return false };
        let Ok(Some(fresh)) = read.await else { return false };
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        true
    }

    fn schedule(&self, work: Work) -> Option<&Schedule> {
        match work {
            Work::Runs => self.strategy.schedule.as_ref(),
            Work::Verifications => self.strategy.verify.as_ref().map(|verify| &verify.schedule),
            Work::Drills => self.strategy.drill.schedule.as_ref(),
        }
    }

    /// When `work` was last begun, as far as that is recorded.
    async fn last(&self, work: Work) -> Option<DateTime<Utc>> {
        let (engine, instance, strategy) = (&self.engine, &self.instance, &self.strategy);
        match work {
            Work::Runs => in_time(engine::last_began(engine, instance, strategy)).await.flatten(),
            Work::Verifications => engine::last_verified(engine, instance, strategy).await,
            Work::Drills => engine::last_drilled(engine, instance, strategy).await,
        }
    }

    /// Does `work` whenever it is due, until retired.
    pub(super) async fn work_on(&self, work: Work) {
        // What its storages have, and what is said of it there: the state folder may be new.
        let list = || engine::list_strategy(&self.engine, &self.instance, &self.strategy);
        let Some(schedule) = self.schedule(work) else {
            if work == Work::Runs {
                in_time(list()).await;
            }
            return;
        };
        let name = self.name();
        let (missed, jitter) = match work {
            Work::Runs => (self.strategy.missed, jitter(self.strategy.jitter, &name)),
            Work::Verifications | Work::Drills => (Missed::RunOnce, TimeDelta::zero()),
        };
        let since = engine::watch(&self.engine, &self.instance, &self.strategy).await;
        // A restart never resets the clock: what counts is when it last began, or else since when
        // it is looked after.
        let mut last = self.last(work).await.unwrap_or(since);
        // Who was told of a failure before a restart waits for the good news, too.
        let (engine, instance, strategy) = (&self.engine, &self.instance, &self.strategy);
        let mut alarmed =
            work == Work::Runs && engine::has_failed(engine, instance, strategy).await;
        if work == Work::Runs {
            in_time(list()).await;
        }
        while !self.retire.is_cancelled() {
            // The clock may have been ahead, now or when the last run began.
            let now = self.engine.clock.now();
            last = self.not_future(last);
            let Some(due) = schedule.due(last, now, missed, jitter) else { return };
            if work == Work::Runs && !due.missed {
                tracing::info!(strategy = name, next = %due.begins, "waiting");
            }
            match self.wait_until(due.begins, now).await {
                Waited::Reached => {}
                Waited::ClockSetBack => continue,
                Waited::Retired => return,
            }
            // Asleep over it: then it was missed.
            let now = self.engine.clock.now();
            if schedule.due(last, now, missed, jitter).is_none_or(|due| due.begins > now) {
                last = now;
                continue;
            }
            if work == Work::Runs {
                // Another scheduler, or somebody by hand, may have done it meanwhile.
                let taken = self.taken(schedule, jitter).await;
                if let Some(taken) = taken.filter(|taken| *taken > last) {
                    tracing::info!(strategy = name, %taken, "there is a snapshot of this time \
                        already: nothing to do");
                    last = taken;
                    continue;
                }
                if due.missed {
                    tracing::warn!(strategy = name, last = %last, "a run was missed, and is made \
                        up for now");
                }
            }
            let Some((counted, event)) = self.perform(work, &name, schedule, due, jitter).await
            else {
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
                    && !engine::stale_alert_sent(
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

    /// Tries until it is done, or no attempt is left, or the next time has come. The time that the
    /// next one is counted from, and the event to send; none when asked to stop.
    async fn perform(
        &self,
        work: Work,
        name: &str,
        schedule: &Schedule,
        due: Due,
        jitter: TimeDelta,
    ) -> Option<(DateTime<Utc>, Option<Event>)> {
        let mut attempts = 0;
        let [mut look_again, longest] = LOOK_AGAIN;
        let mut waits = false;
        loop {
            let slot = match work {
                Work::Verifications => None,
                Work::Runs | Work::Drills => Some(tokio::select! {
                    () = self.retire.cancelled() => return None,
                    slot = self.slots.acquire() => slot,
                }),
            };
            let began = self.engine.clock.now();
            // What the next one is counted from: the time that this one was for. Where it begins
            // much later, because the clock jumped or a run before it took long, all that lies
            // between has been made up for.
            let counted = if began - due.begins > TimeDelta::minutes(1) { began } else { due.at };
            let ended = match work {
                Work::Runs => self.run(name).await,
                Work::Verifications => self.verify(name).await,
                Work::Drills => self.drill(name).await,
            };
            drop(slot);
            // Whatever is wrong: a password may have been changed, at the server and in its file.
            if let Attempt::Done(Some(Event { kind, .. })) | Attempt::MayPass(Event { kind, .. }) =
                &ended
                && matches!(
                    kind,
                    EventKind::Failure | EventKind::Problems | EventKind::DrillInconclusive
                )
                && self.has_new_secrets().await
                // What was committed to one storage is not taken once more.
                && *kind != EventKind::Problems
            {
                tracing::warn!(strategy = name, "a file of a secret has changed: trying again");
                continue;
            }
            let (wait, failure) = match ended {
                Attempt::Done(event) => return Some((counted, event)),
                Attempt::Stopped => return None,
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
                // A verification that met a pruning.
                Attempt::Locked if work == Work::Verifications => (longest, None),
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
            if work == Work::Runs
                && attempts > 0
                && schedule.next_after(counted).is_some_and(|next| next <= now)
            {
                return Some((counted, failure));
            }
        }
    }

    /// Does `work` on a thread of its own, so that a panic in it ends nothing else.
    async fn apart<T: Send + 'static>(
        &self,
        engine: Engine,
        work: impl AsyncFnOnce(&Engine, &Instance, &Strategy) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        let instance = self.latest();
        let strategy = instance.strategies.get(&self.strategy.name).unwrap_or(&self.strategy);
        let strategy = strategy.clone();
        let runtime = Handle::current();
        engine::on_thread(move || runtime.block_on(work(&engine, &instance, &strategy)))?.await
    }

    async fn run(&self, name: &str) -> Attempt {
        let (of, which) = (&self.instance.name, &self.strategy.name);
        let mut engine = self.engine.clone();
        engine.began = Some({
            let (notifiers, clock) = (self.notifiers.clone(), engine.clock.clone());
            let (of, which) = (of.clone(), which.clone());
            Arc::new(move || notifiers.tell(&Event::start(&of, &which, clock.now())))
        });
        let ended = self.apart(engine, async |engine, instance, strategy| {
            engine::run(engine, instance, strategy).await
        });
        let ended = ended.await;
        let not_run = |reason: String| Event::not_run(of, which, self.engine.clock.now(), reason);
        match ended {
            Ok(Ok(report)) => {
                log(name, &report);
                let event = Event::of_run(&report);
                if report.may_pass { Attempt::MayPass(event) } else { Attempt::Done(Some(event)) }
            }
            Ok(Err(error @ EngineError::Locked { .. })) => {
                tracing::info!(strategy = name, "not run now: {error}");
                Attempt::Locked
            }
            Ok(Err(error)) => {
                let (code, error) = (error.code().as_str(), engine::chain(&error));
                tracing::error!(strategy = name, code, "not run: {error}");
                // The local state could not be used. A disk that is full may have room again.
                Attempt::MayPass(not_run(error))
            }
            Err(error) => {
                tracing::error!(
                    strategy = name,
                    "internal error: the run ended with {error}; please report it"
                );
                Attempt::Done(Some(not_run(format!("Internal error: {error}"))))
            }
        }
    }

    async fn verify(&self, name: &str) -> Attempt {
        let percent = self.strategy.verify.as_ref().map_or(0, |verify| verify.read_data_percent);
        tracing::info!(strategy = name, percent, "verification begins");
        let ended = self.apart(self.engine.clone(), async move |engine, instance, strategy| {
            engine::verify_strategy(engine, instance, strategy, percent).await
        });
        match ended.await {
            Ok(None) => Attempt::Locked,
            Ok(Some(done)) => match done.problem {
                None => {
                    let (snapshots, bytes) = (done.snapshots, done.read_bytes);
                    tracing::info!(
                        strategy = name,
                        snapshots,
                        read_bytes = bytes,
                        "verified: nothing is wrong"
                    );
                    Attempt::Done(None)
                }
                Some(_) if self.engine.cancel.is_cancelled() => Attempt::Stopped,
                Some(problem) => {
                    tracing::error!(strategy = name, "verification {}: {problem}", done.outcome);
                    let (of, which) = (&self.instance.name, &self.strategy.name);
                    let now = self.engine.clock.now();
                    Attempt::Done(Some(Event::verification_failed(of, which, now, problem)))
                }
            },
            Err(error) => {
                tracing::error!(
                    strategy = name,
                    "internal error: the verification ended with {error}; please report it"
                );
                Attempt::Done(None)
            }
        }
    }

    async fn drill(&self, name: &str) -> Attempt {
        let ended = self.apart(self.engine.clone(), async |engine, instance, strategy| {
            engine::drill(engine, instance, strategy, &DrillRequest::default()).await
        });
        let ended = ended.await;
        let (of, which, now) = (&self.instance.name, &self.strategy.name, self.engine.clock.now());
        let event = match ended {
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
                Event::of_drill(&report)
            }
            Ok(Err(EngineError::Cancelled)) => return Attempt::Stopped,
            Ok(Err(error)) => {
                let (code, error) = (error.code().as_str(), engine::chain(&error));
                tracing::error!(strategy = name, code, "not drilled: {error}");
                Event::not_drilled(of, which, now, error)
            }
            Err(error) => {
                tracing::error!(
                    strategy = name,
                    "internal error: the drill ended with {error}; please report it"
                );
                Event::not_drilled(of, which, now, format!("Internal error: {error}"))
            }
        };
        // What could not be judged now may be a moment later: the server that starts, the network.
        if event.kind == EventKind::DrillInconclusive {
            Attempt::MayPass(event)
        } else {
            Attempt::Done(Some(event))
        }
    }

    async fn wait_until(&self, at: DateTime<Utc>, seen: DateTime<Utc>) -> Waited {
        tokio::select! {
            () = self.retire.cancelled() => Waited::Retired,
            reached = self.timer.until(at, seen, &self.engine.clock) =>
                if reached { Waited::Reached } else { Waited::ClockSetBack },
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
                for problem in storage.error.iter().chain(&storage.warnings).chain(pruned) {
                    tracing::warn!(strategy = name, id, storage = %storage.name, "{problem}");
                }
                for note in &storage.notes {
                    tracing::info!(strategy = name, id, storage = %storage.name, "{note}");
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
        Outcome::Cancelled => {
            tracing::warn!(strategy = name, id, "run cancelled, nothing was committed");
        }
        Outcome::Failed => {
            let error = report.error.as_deref().unwrap_or_default();
            for storage in &report.storages {
                if let Some(error) = &storage.error {
                    let code = storage.code.map(ErrorCode::as_str);
                    tracing::error!(strategy = name, id, storage = %storage.name, code, "{error}");
                }
            }
            let code = report.code.map(ErrorCode::as_str);
            tracing::error!(
                strategy = name,
                id,
                code,
                "run {}, nothing was committed: {error}",
                report.outcome
            );
        }
    }
}
