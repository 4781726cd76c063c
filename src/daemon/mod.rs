//! The scheduler: the one process that runs every strategy on time.
//!
//! This room decides when to begin and when to try again, and reports it: in the log, by
//! notifications and on the status page. `schedule` computes the times, `engine` does the work and
//! knows the status. It does not print. tokio-cron-scheduler only wakes it.
//!
//! Only a request to stop ends the process: a run that fails, a source that hangs, a panic or a
//! configuration that cannot be read are errors in the log, and the scheduler goes on.
//!
//! A new kind of scheduled work is a variant of [`work::Work`]; a new route belongs into
//! `http/routes.rs`.

mod http;
mod timer;
mod watch;
mod work;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Current, StatusPage};
use timer::Timer;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use watch::Watch;
use work::{Work, Worker};

use crate::config::{self, Instance};
use crate::engine::{self, Engine, EngineError, SchedulerLock};
use crate::model::{Cancel, ErrorCode};
use crate::report::notify::Notifiers;

/// The end waits so long for notifications that are still being sent.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between a panic and the restart of the task that it ended.
const RESTART_DELAY: Duration = Duration::from_secs(30);

/// Why the scheduler could not begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No strategy has a schedule that is followed.
    #[error(
        "Nothing is scheduled: no strategy has a `schedule` and is active. Give one a `schedule`, \
         or run it by hand with `backup --strategy NAME`"
    )]
    Nothing,
    /// The timer did not start.
    #[error("Could not start the timer: {0}")]
    Timer(String),
    /// The status page has nowhere to be.
    #[error(
        "Could not listen on {address}, where `listen` wants the status page: {error}. Free the \
         port, or set `listen` to another"
    )]
    Listen {
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The local state cannot be used, or another scheduler has it.
    #[error(transparent)]
    State(#[from] EngineError),
    /// The scheduler is in another container.
    #[error("The scheduler of `{}` (process {pid}) runs in another container: run `backup reload` \
        in that one", .state_dir.display())]
    Elsewhere {
        state_dir: PathBuf,
        /// Its number there.
        pid: u32,
    },
    /// The scheduler could not be told.
    #[error("Could not signal the scheduler (process {pid}): {error}")]
    Signal {
        /// Its number.
        pid: u32,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is none.
    #[error("No scheduler is running with the state folder `{}`. `backup schedule` starts one",
        .0.display())]
    NotRunning(PathBuf),
}

impl DaemonError {
    /// The name of the error for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Nothing => ErrorCode::NothingScheduled,
            Self::Timer(_) | Self::Signal { .. } => ErrorCode::SchedulerFailed,
            Self::Listen { .. } => ErrorCode::ListenFailed,
            Self::State(error) => error.code(),
            Self::Elsewhere { .. } => ErrorCode::SchedulerElsewhere,
            Self::NotRunning(_) => ErrorCode::SchedulerNotRunning,
        }
    }
}

/// Everything to run, from one reading of the configuration.
pub struct Scheduled {
    /// The instances; at least one strategy has a schedule, of runs or of verifications.
    pub instances: Vec<ScheduledInstance>,
    /// The limit of concurrent strategies, and the status page's address.
    pub settings: config::Daemon,
}

impl Scheduled {
    fn has_work(&self) -> bool {
        let strategies = self.instances.iter().flat_map(|one| one.instance.strategies.values());
        strategies.into_iter().any(|one| {
            one.active
                && (one.schedule.is_some() || one.verify.is_some() || one.drill.schedule.is_some())
        })
    }
}

/// An instance, and the engine with its state.
pub struct ScheduledInstance {
    pub instance: Arc<Instance>,
    /// Its cancellation is that of the scheduler.
    pub engine: Engine,
    /// Reads the instance again; none where it cannot be used now.
    pub reread: Arc<Reread>,
}

/// Reads one instance of the configuration anew.
pub type Reread = dyn Fn() -> Option<Instance> + Send + Sync;

/// Reads the configuration anew; in words why it cannot be used.
pub type Load<'a> = dyn Fn() -> Result<Scheduled, String> + 'a;

/// Runs every active strategy with a schedule, each at its times, until `stop`. A run that is under
/// way then is cancelled by its engine, and awaited. At each of `reloads` the configuration is read
/// again; one that is wrong is refused, and the old one goes on.
///
/// # Errors
/// When there is nothing to run, no timer, another scheduler with the same state folder, or no
/// place for the status page.
pub async fn serve(
    scheduled: Scheduled,
    load: &Load<'_>,
    mut reloads: mpsc::Receiver<()>,
    stop: &Cancel,
) -> Result<(), DaemonError> {
    if !scheduled.has_work() {
        return Err(DaemonError::Nothing);
    }
    let mut locks = BTreeMap::new();
    lock_all(&scheduled, &mut locks).await?;
    let timer = Timer::start().await?;
    let scheduled = Arc::new(scheduled);
    let (sender, current) = tokio::sync::watch::channel(Arc::clone(&scheduled));
    let mut page = match scheduled.settings.listen {
        Some(address) => Some(StatusPage::open(address, current.clone()).await?),
        None => None,
    };
    let mut workers = Workers::start(scheduled, &timer, Retired::default());
    // Of the configurations before.
    let mut retired: Vec<Notifiers> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(()) = reloads.recv() => {
                tracing::info!("reading the configuration again");
                match take_over(load, &mut locks, &mut page, &current).await {
                    Ok(next) => {
                        sender.send_replace(Arc::clone(&next));
                        retired.retain(|notifiers| !notifiers.is_done());
                        retired.append(&mut workers.notifiers.clone());
                        workers = Workers::start(next, &timer, workers.retire());
                        tracing::info!("the new configuration is taken over; a run that is under \
                            way ends with the old one");
                    }
                    Err(error) => tracing::error!("the configuration was not taken over, and the \
                        old one goes on: {error}"),
                }
            }
        }
    }
    retired.append(&mut workers.notifiers);
    for (name, task) in workers.retire().tasks {
        if let Err(error) = task.await {
            tracing::error!(
                "internal error: `{name}` was not looked after any more: {error}; please report it"
            );
        }
    }
    let settled = retired.iter().map(|notifiers| notifiers.settle(SETTLE_TIMEOUT));
    futures::future::join_all(settled).await;
    timer.stop().await;
    drop(locks);
    Ok(())
}

/// Reads the configuration and takes what it needs of the machine.
async fn take_over(
    load: &Load<'_>,
    locks: &mut BTreeMap<PathBuf, SchedulerLock>,
    page: &mut Option<StatusPage>,
    current: &Current,
) -> Result<Arc<Scheduled>, String> {
    let next = load()?;
    if !next.has_work() {
        return Err(DaemonError::Nothing.to_string());
    }
    lock_all(&next, locks).await.map_err(|error| error.to_string())?;
    match next.settings.listen {
        None => *page = None,
        Some(address) if page.as_ref().is_some_and(|page| page.address == address) => {}
        Some(address) => {
            let opened = StatusPage::open(address, current.clone())
                .await
                .map_err(|error| error.to_string())?;
            *page = Some(opened);
        }
    }
    Ok(Arc::new(next))
}

/// Takes the locks of those state folders that are not in `held` yet. Those that are not needed any
/// more stay: what is under way may need them.
async fn lock_all(
    scheduled: &Scheduled,
    held: &mut BTreeMap<PathBuf, SchedulerLock>,
) -> Result<(), DaemonError> {
    for one in &scheduled.instances {
        let folder = &one.engine.state_dir;
        if !held.contains_key(folder) {
            held.insert(folder.clone(), SchedulerLock::take(folder).await?);
        }
    }
    Ok(())
}

/// By strategy and kind of work.
type Tasks = BTreeMap<String, JoinHandle<()>>;

/// The tasks of one configuration.
struct Workers {
    retire: Cancel,
    tasks: Tasks,
    notifiers: Vec<Notifiers>,
    slots: Arc<Semaphore>,
    most: usize,
}

/// The tasks of an earlier configuration that are still at work.
#[derive(Default)]
struct Retired {
    tasks: Tasks,
    slots: Option<(Arc<Semaphore>, usize)>,
}

impl Workers {
    /// Starts a task for each strategy and kind of work. Where a retired task is still at work, the
    /// new one waits for it.
    fn start(scheduled: Arc<Scheduled>, timer: &Timer, before: Retired) -> Self {
        let Retired { tasks: mut before, slots } = before;
        let retire = Cancel::new();
        let most = scheduled.settings.max_concurrent;
        // Those that run have their slots in it.
        let slots = match slots {
            Some((slots, same)) if same == most => slots,
            _ => Arc::new(Semaphore::new(most)),
        };
        let mut tasks = Tasks::new();
        let ended = Arc::new(Notify::new());
        let notifiers: Vec<Notifiers> =
            scheduled.instances.iter().map(|one| Notifiers::new(&one.instance.notify)).collect();
        for (one, notifiers) in scheduled.instances.iter().zip(&notifiers) {
            for strategy in one.instance.strategies.values().filter(|strategy| strategy.active) {
                let worker = Worker {
                    instance: Arc::clone(&one.instance),
                    latest: Mutex::new(Arc::clone(&one.instance)),
                    reread: Arc::clone(&one.reread),
                    strategy: strategy.clone(),
                    engine: one.engine.clone(),
                    timer: timer.clone(),
                    slots: Arc::clone(&slots),
                    retire: retire.clone(),
                    notifiers: notifiers.clone(),
                    ended: Arc::clone(&ended),
                };
                let worker = Arc::new(worker);
                for work in Work::ALL {
                    let name = format!("{} ({work})", worker.name());
                    let earlier = before.remove(&name);
                    let task = look_after(Arc::clone(&worker), work, earlier);
                    tasks.insert(name, tokio::spawn(task));
                }
            }
        }
        // Of strategies that are gone.
        tasks.extend(before);
        let watch =
            Watch { scheduled, notifiers: notifiers.clone(), ended, slots: Arc::clone(&slots) };
        let (watch, until) = (Arc::new(watch), retire.clone());
        let watching = restart_on_panic("freshness", retire.clone(), RESTART_DELAY, move || {
            tokio::spawn(Arc::clone(&watch).go_on(until.clone()))
        });
        tasks.insert("freshness".to_owned(), tokio::spawn(watching));
        Self { retire, tasks, notifiers, slots, most }
    }

    /// Asks the tasks to begin nothing more; returns those that are still at work.
    fn retire(self) -> Retired {
        self.retire.cancel();
        let tasks = self.tasks.into_iter().filter(|(_, task)| !task.is_finished()).collect();
        Retired { tasks, slots: Some((self.slots, self.most)) }
    }
}

async fn look_after(worker: Arc<Worker>, work: Work, earlier: Option<JoinHandle<()>>) {
    if let Some(earlier) = earlier {
        // What went wrong with it was said.
        let _ = earlier.await;
    }
    let (name, retire) = (format!("{} ({work})", worker.name()), worker.retire.clone());
    restart_on_panic(&name, retire, RESTART_DELAY, move || {
        let (worker, runtime) = (Arc::clone(&worker), Handle::current());
        // A thread of its own, which mostly waits. (What a run is made of is not made to move
        // between threads.)
        async move { engine::on_thread(move || runtime.block_on(worker.work_on(work)))?.await }
    })
    .await;
}

/// Awaits `work` and starts it again after a panic: a scheduler that lives and does not run is
/// worse than none. Like after a restart of the process, the catalog says what is due.
async fn restart_on_panic<E: Display, W: Future<Output = Result<(), E>>>(
    name: &str,
    retire: Cancel,
    after: Duration,
    work: impl Fn() -> W,
) {
    while let Err(error) = work().await {
        tracing::error!(
            "internal error: {name} ended with {error}, and begins again in {} seconds; please \
             report it",
            after.as_secs()
        );
        tokio::select! {
            () = retire.cancelled() => return,
            () = tokio::time::sleep(after) => {}
        }
    }
}

/// Asks the scheduler of `state_dir` to read its configuration again; the number of its process.
///
/// # Errors
/// When there is none, or it cannot be told.
pub fn ask_to_reload(state_dir: &Path) -> Result<u32, DaemonError> {
    let Some(scheduler) = engine::scheduler(state_dir)? else {
        return Err(DaemonError::NotRunning(state_dir.to_owned()));
    };
    let pid = scheduler.pid;
    if !scheduler.is_here {
        return Err(DaemonError::Elsewhere { state_dir: state_dir.to_owned(), pid });
    }
    let process = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let process = process.ok_or_else(|| DaemonError::NotRunning(state_dir.to_owned()))?;
    rustix::process::kill_process(process, rustix::process::Signal::HUP)
        .map_err(|error| DaemonError::Signal { pid, error: error.into() })?;
    Ok(pid)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_a_fault_of_the_program_ended_begins_again() {
        let begun = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&begun);
        restart_on_panic("a test", Cancel::new(), Duration::ZERO, move || {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let before = count.fetch_add(1, Ordering::SeqCst);
                assert!(before >= 2, "the first two end so");
            })
        })
        .await;
        assert_eq!(begun.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn it_does_not_begin_again_once_it_was_asked_to_stop() {
        let retire = Cancel::new();
        retire.cancel();
        let fails = || tokio::spawn(async { panic!("always") });
        restart_on_panic("a test", retire, Duration::from_secs(3_600), fails).await;
    }
}
