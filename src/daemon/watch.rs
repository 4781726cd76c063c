//! Notices when a strategy grows stale, and when it is well again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::Scheduled;
use crate::engine;
use crate::model::Cancel;
use crate::report::notify::Notifiers;
use crate::report::{Event, State, StrategyStatus};

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);
/// For how long nothing is said of a strategy that is found stale: a machine that woke begins the
/// run that makes it good in a moment.
const AT_FIRST: Duration = Duration::from_secs(4);
/// The same of one of which it is only not known what a storage has: the first listing may take a
/// while.
const UNKNOWN: Duration = Duration::from_secs(300);
/// The same while it runs, or waits for its turn to run. A run that hangs must not keep it secret.
const AT_WORK: Duration = Duration::from_secs(3_600);

/// What is known of one strategy.
#[derive(Default)]
struct Known {
    /// Whether somebody was told that it is stale; not known before it is looked up.
    told: Option<bool>,
    /// When it was first found stale, of the times in a row.
    stale: Option<Instant>,
}

impl Known {
    /// Whether the strategy has been found stale for so long.
    fn is_ripe(&mut self, patience: Duration) -> bool {
        self.stale.get_or_insert_with(Instant::now).elapsed() >= patience
    }
}

/// What the looks need.
pub(super) struct Watch {
    pub(super) scheduled: Arc<Scheduled>,
    /// Of each instance, in the order of the instances.
    pub(super) notifiers: Vec<Notifiers>,
    /// Told whenever a run has ended.
    pub(super) ended: Arc<Notify>,
    /// Taken by who runs.
    pub(super) slots: Arc<Semaphore>,
}

impl Watch {
    /// Looks now and then, and when a run has ended, until `retire`.
    pub(super) async fn go_on(self: Arc<Self>, retire: Cancel) {
        // Not at once: what was missed while this process was down is made up for first.
        let mut ticks = tokio::time::interval_at(Instant::now() + EVERY, EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known: BTreeMap<String, Known> = BTreeMap::new();
        let mut problem_said: Option<Instant> = None;
        loop {
            tokio::select! {
                () = retire.cancelled() => return,
                _ = ticks.tick() => {}
                () = self.ended.notified() => {}
            }
            for (one, notifiers) in self.scheduled.instances.iter().zip(&self.notifiers) {
                let status = engine::status(&one.engine, &one.instance).await;
                for problem in &status.problems {
                    if problem_said.is_none_or(|said| said.elapsed() > AT_WORK) {
                        tracing::error!(instance = %one.instance.name, "it is not known whether \
                            all is fresh: {problem}");
                        problem_said = Some(Instant::now());
                    }
                }
                for strategy in &status.strategies {
                    let name = format!("{}/{}", strategy.instance, strategy.strategy);
                    let known = known.entry(name).or_default();
                    self.look(&one.engine, strategy, notifiers, known).await;
                }
            }
        }
    }

    async fn look(
        &self,
        engine: &engine::Engine,
        strategy: &StrategyStatus,
        notifiers: &Notifiers,
        known: &mut Known,
    ) {
        let (of, which) = (&strategy.instance, &strategy.strategy);
        let name = format!("{of}/{which}");
        let told = match known.told {
            Some(told) => told,
            None => *known.told.insert(engine::stale_alert_sent(engine, of, which).await),
        };
        let now = engine.clock.now_seconds();
        let noted = match strategy.state {
            State::Stale if told => return,
            State::Stale => {
                let at_work = strategy.running || self.slots.available_permits() == 0;
                let patience = match strategy.stale_since {
                    _ if at_work => AT_WORK,
                    None => UNKNOWN,
                    Some(_) => AT_FIRST,
                };
                if !known.is_ripe(patience) {
                    return;
                }
                let reason = strategy.reason.as_deref().unwrap_or_default();
                tracing::error!(strategy = name, "stale: {reason}");
                notifiers.tell(&Event::stale(of, which, now, reason.to_owned()));
                known.told = Some(true);
                engine::note_stale(engine, strategy, Some(strategy.stale_since.unwrap_or(now)))
                    .await
            }
            State::Fresh | State::Unproven if told => {
                tracing::info!(strategy = name, "fresh again");
                notifiers.tell(&Event::recovered(of, which, now, None));
                *known = Known { told: Some(false), stale: None };
                engine::note_stale(engine, strategy, None).await
            }
            _ => {
                known.stale = None;
                return;
            }
        };
        // What was told stays known here as long as this process lives.
        if let Err(error) = noted {
            tracing::warn!(
                strategy = name,
                "{}; what was told is not remembered",
                engine::chain(&error)
            );
        }
    }
}
