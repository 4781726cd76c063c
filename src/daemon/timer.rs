//! Waiting for an instant of the wall clock.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Mutex, Notify};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::DaemonError;
use crate::model::Clock;

/// A clock that goes back by less is one that is kept right.
const SET_BACK: TimeDelta = TimeDelta::seconds(5);
/// How often the clock is looked at besides.
const LOOK: Duration = Duration::from_secs(1);

/// Wakes who waits. The scheduler looks at the wall clock twice a second, so that a machine that
/// was asleep and a clock that was set are noticed at once.
#[derive(Clone)]
pub(super) struct Timer(Arc<Mutex<JobScheduler>>);

impl Timer {
    pub(super) async fn start() -> Result<Self, DaemonError> {
        let failed = |error: JobSchedulerError| DaemonError::Timer(error.to_string());
        let scheduler = JobScheduler::new().await.map_err(failed)?;
        scheduler.start().await.map_err(failed)?;
        Ok(Self(Arc::new(Mutex::new(scheduler))))
    }

    /// Returns true once `clock` has reached `at`, which was found out at `seen`, and never before;
    /// false when the clock was set back since then, so that what is due has to be found out anew.
    pub(super) async fn until(
        &self,
        at: DateTime<Utc>,
        mut seen: DateTime<Utc>,
        clock: &Clock,
    ) -> bool {
        loop {
            let Ok(left) = (at - clock.now()).to_std() else { return true };
            if left.is_zero() {
                return true;
            }
            let woken = Arc::new(Notify::new());
            let tell = Arc::clone(&woken);
            // A job's time is cut to whole seconds, so it may come early. Then there is another
            // one, for what is left.
            let armed = async {
                let job = Job::new_one_shot_async(left, move |_, _| {
                    let tell = Arc::clone(&tell);
                    Box::pin(async move { tell.notify_one() })
                })?;
                self.0.lock().await.add(job).await
            };
            let armed = armed
                .await
                .inspect_err(|error| tracing::error!("could not arm the timer: {error}"));
            // A job is run and deleted by tasks that do not wait for one another, so that on a busy
            // machine one may be deleted before it is run. A run that nobody began would be missed
            // until the next restart: the clock is looked at all the same.
            let set_back = loop {
                tokio::select! {
                    () = woken.notified() => break false,
                    () = tokio::time::sleep(LOOK) => {}
                }
                let now = clock.now();
                if now < seen - SET_BACK {
                    break true;
                }
                seen = now;
                if now >= at {
                    break false;
                }
            };
            if let Ok(job) = armed
                && let Err(error) = self.0.lock().await.remove(&job).await
            {
                tracing::debug!("the job that woke was gone already: {error}");
            }
            if set_back {
                return false;
            }
        }
    }

    pub(super) async fn stop(&self) {
        if let Err(error) = self.0.lock().await.shutdown().await {
            tracing::debug!("could not stop the timer: {error}");
        }
    }
}
