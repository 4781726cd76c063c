//! The lock of the scheduler, and how others find it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::engine::error::EngineError;
use crate::engine::state::locks::open_lock;
use crate::engine::state::private::read_small;
use crate::model::open_own;

/// The lock of the scheduler, in the state folder.
const SCHEDULER: &str = "scheduler.lock";

/// Held by the scheduler of a state folder while it lives. There is one at a time.
pub struct SchedulerLock {
    _file: File,
}

impl SchedulerLock {
    /// Takes it, and leaves the number of this process in it.
    ///
    /// # Errors
    /// [`EngineError::Scheduled`] while another scheduler has it; [`EngineError::State`].
    pub async fn take(state_dir: &Path) -> Result<Self, EngineError> {
        let (mut file, path) = open_lock(state_dir, SCHEDULER)?;
        let mut tries = 0;
        loop {
            tries += 1;
            match file.try_lock() {
                Ok(()) => break,
                // Who only looks whether there is one holds it for a moment.
                Err(TryLockError::WouldBlock) if tries < 10 => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(TryLockError::WouldBlock) => return Err(EngineError::Scheduled { path }),
                Err(TryLockError::Error(error)) => {
                    return Err(EngineError::State { attempt: "lock", path, error });
                }
            }
        }
        let number = format!("{} {}\n", std::process::id(), pid_namespace());
        let written = file.set_len(0).and_then(|()| file.write_all(number.as_bytes()));
        written.map_err(|error| EngineError::State { attempt: "write", path, error })?;
        Ok(Self { _file: file })
    }
}

/// What tells the processes that we see from those of other containers.
fn pid_namespace() -> String {
    std::fs::read_link("/proc/self/ns/pid")
        .map_or_else(|_| "-".to_owned(), |link| link.display().to_string())
}

/// The scheduler of a state folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    /// The number of its process, where it runs.
    pub pid: u32,
    /// Whether that is a number here: it is not in another container.
    pub is_here: bool,
}

/// The scheduler of `state_dir`; none when there is none.
///
/// # Errors
/// [`EngineError::State`] when that cannot be found out.
pub fn scheduler(state_dir: &Path) -> Result<Option<Scheduler>, EngineError> {
    let path = state_dir.join(SCHEDULER);
    let failed = |attempt: &'static str| {
        let path = path.clone();
        move |error| EngineError::State { attempt, path, error }
    };
    let file = match open_own(&path, OpenOptions::new().read(true)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open")(error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let text = read_small(&file).map_err(failed("read"))?;
            let mut words = text.split_whitespace();
            let pid = words.next().and_then(|pid| pid.parse().ok());
            let is_here = words.next().is_some_and(|namespace| namespace == pid_namespace());
            Ok(pid.map(|pid| Scheduler { pid, is_here }))
        }
        Err(TryLockError::Error(error)) => Err(failed("lock")(error)),
    }
}
