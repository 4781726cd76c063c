//! Notices when a strategy grows stale, and when it is well again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::Scheduled;
use crate::engine::{self, Turn};
use crate::model::Cancel;
use crate::report::Event;
use crate::report::notify::Notifiers;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(5);

/// Looks now and then, and when a run has `ended`, until `retire`.
pub(super) async fn watch(scheduled: Arc<Scheduled>, notifiers: Vec<Notifiers>, ended: Arc<Notify>, retire: Cancel) {
    // Not at once: what was missed while this process was down is made up for first.
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = retire.cancelled() => return,
            _ = ticks.tick() => {}
            () = ended.notified() => {}
        }
        for (one, notifiers) in scheduled.instances.iter().zip(&notifiers) {
            let status = engine::status(&one.engine, &one.instance).await;
            for problem in &status.problems {
                tracing::warn!(instance = %one.instance.name, "it is not known whether all is fresh: {problem}");
            }
            // A run that may bring what is missed is under way: nothing is said before it has ended.
            for strategy in status.strategies.iter().filter(|one| one.state.is_well() || !one.running) {
                let (of, which) = (&strategy.instance, &strategy.strategy);
                let name = format!("{of}/{which}");
                match engine::turn(&one.engine, strategy).await {
                    Ok(None) => {}
                    Ok(Some(Turn::Stale)) => {
                        let reason = strategy.reason.as_deref().unwrap_or_default();
                        tracing::error!(strategy = name, "stale: {reason}");
                        notifiers.tell(&Event::stale(of, which, status.at, reason.to_owned()));
                    }
                    Ok(Some(Turn::Recovered)) => {
                        tracing::info!(strategy = name, "fresh again");
                        notifiers.tell(&Event::recovered(of, which, status.at, None));
                    }
                    Err(error) => tracing::warn!(strategy = name, "{}", engine::chain(&error)),
                }
            }
        }
    }
}
