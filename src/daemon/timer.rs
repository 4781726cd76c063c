//! Waiting for an instant of the wall clock.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Mutex, Notify};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use super::DaemonError;
use crate::model::Clock;

/// How often the clock is looked at besides.
const LOOK: Duration = Duration::from_secs(1);

/// Wakes who waits. The scheduler looks at the wall clock twice a second, so that a machine that was asleep and a clock that was set are noticed at once.
#[derive(Clone)]
pub(super) struct Timer(Arc<Mutex<JobScheduler>>);

impl Timer {
    pub(super) async fn start() -> Result<Self, DaemonError> {
        let failed = |error: JobSchedulerError| DaemonError::Timer(error.to_string());
        let scheduler = JobScheduler::new().await.map_err(failed)?;
        scheduler.start().await.map_err(failed)?;
        Ok(Self(Arc::new(Mutex::new(scheduler))))
    }

    /// Returns once `clock` has reached `at`, never before.
    pub(super) async fn until(&self, at: DateTime<Utc>, clock: &Clock) {
        loop {
            let Ok(left) = (at - clock.now()).to_std() else { return };
            if left.is_zero() {
                return;
            }
            let woken = Arc::new(Notify::new());
            let tell = Arc::clone(&woken);
            // A job's time is cut to whole seconds, so it may come early. Then there is another one, for what is left.
            let armed = async {
                let job = Job::new_one_shot_async(left, move |_, _| {
                    let tell = Arc::clone(&tell);
                    Box::pin(async move { tell.notify_one() })
                })?;
                self.0.lock().await.add(job).await
            };
            let armed = armed.await.inspect_err(|error| tracing::error!("could not arm the timer: {error}"));
            // A job is run and deleted by tasks that do not wait for one another, so that on a busy machine one may be deleted before it is run.
            // A run that nobody began would be missed until the next restart: the clock is looked at all the same.
            loop {
                tokio::select! {
                    () = woken.notified() => break,
                    () = tokio::time::sleep(LOOK) => {}
                }
                if clock.now() >= at {
                    break;
                }
            }
            if let Ok(job) = armed
                && let Err(error) = self.0.lock().await.remove(&job).await
            {
                tracing::debug!("the job that woke was gone already: {error}");
            }
        }
    }

    pub(super) async fn stop(&self) {
        if let Err(error) = self.0.lock().await.shutdown().await {
            tracing::debug!("could not stop the timer: {error}");
        }
    }
}
