//! The threads that every command needs, started before anything begins.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use tokio::runtime::Runtime;

/// Threads of the runtime that carry out what waits for nothing.
pub(super) const WORKERS: usize = 2;

/// Threads of the runtime that may block and are started at once. Where the system starts no more,
/// work is queued until one of them is free, and without any it would wait for ever.
const RESERVED: usize = 4;

/// An error when the system does not start the threads that every command needs. The runtime would
/// panic.
pub(super) fn ensure_threads() -> std::io::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        let _closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..WORKERS.saturating_add(RESERVED) {
            std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()))?;
        }
        Ok(())
    })
}

/// Starts [`RESERVED`] threads that may block, or says that the system does not.
pub(super) fn reserve_threads(runtime: &Runtime) -> std::io::Result<()> {
    let (sender, started) = mpsc::channel();
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..RESERVED {
        let (sender, gate) = (sender.clone(), Arc::clone(&gate));
        runtime.spawn_blocking(move || {
            let _ = sender.send(());
            drop(gate.lock());
        });
    }
    let all = (0..RESERVED).all(|_| started.recv_timeout(START).is_ok());
    drop(closed);
    let refused = "the threads that every command needs were not started";
    if all { Ok(()) } else { Err(std::io::Error::new(std::io::ErrorKind::WouldBlock, refused)) }
}

/// A thread that has not started after so long never will.
const START: Duration = Duration::from_secs(10);
