//! Notices when a strategy grows stale, and when it is well again.

use std::sync::Arc;
use std::time::Duration;

use super::Scheduled;
use crate::engine::{self, Turn};
use crate::model::Cancel;

/// How often it is looked.
const EVERY: Duration = Duration::from_secs(10);

/// Looks until `retire`.
pub(super) async fn watch(scheduled: Arc<Vec<Scheduled>>, retire: Cancel) {
    // Not at once: what was missed while this process was down is made up for first.
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = retire.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for one in scheduled.iter() {
            let status = engine::status(&one.engine, &one.instance).await;
            for problem in &status.problems {
                tracing::warn!(instance = %one.instance.name, "it is not known whether all is fresh: {problem}");
            }
            // A run that may bring what is missed is under way: nothing is said before it has ended.
            for strategy in status.strategies.iter().filter(|one| one.state.is_well() || !one.running) {
                let name = format!("{}/{}", strategy.instance, strategy.strategy);
                match engine::turn(&one.engine, strategy).await {
                    Ok(None) => {}
                    Ok(Some(Turn::Stale)) => {
                        let reason = strategy.reason.as_deref().unwrap_or_default();
                        tracing::error!(strategy = name, "stale: {reason}");
                    }
                    Ok(Some(Turn::Recovered)) => tracing::info!(strategy = name, "fresh again"),
                    Err(error) => tracing::warn!(strategy = name, "{}", engine::chain(&error)),
                }
            }
        }
    }
}
