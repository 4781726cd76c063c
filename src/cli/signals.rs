//! The signals that ask for an end.

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::model::Cancel;

/// Cancels at each signal that asks for an end. Those that the caller had ignored stay so: SIGHUP
/// beneath `nohup`, SIGINT and SIGQUIT of what a shell started with `&`. For a `scheduler` SIGHUP
/// means something else.
///
/// # Errors
/// When a signal cannot be watched.
pub(super) fn watch(cancel: &Cancel, scheduler: bool) -> anyhow::Result<()> {
    let ignored = ignored();
    let is_ignored = |one: Signal| ignored & (1 << (one.as_raw() - 1)) != 0;
    let mut ends = vec![Signal::TERM];
    let others = [Signal::INT, Signal::QUIT, Signal::XCPU, Signal::HUP];
    ends.extend(others.into_iter().filter(|one| !is_ignored(*one)));
    ends.retain(|one| !(scheduler && *one == Signal::HUP));
    for end in ends {
        let mut signals = watched(end)?;
        let cancel = cancel.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                cancel.cancel();
                tracing::warn!("asked to stop: ending what is under way");
            }
        });
    }
    // A file beyond the limit of its size (`ulimit -f`) is an error of writing it then.
    watched(Signal::XFSZ).map(drop)
}

fn watched(one: Signal) -> anyhow::Result<tokio::signal::unix::Signal> {
    let number = one.as_raw();
    signal(SignalKind::from_raw(number)).with_context(|| format!("Could not watch signal {number}"))
}

/// The signals that are ignored, a bit each; none where the system does not tell. To be asked
/// before any of them is watched.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
