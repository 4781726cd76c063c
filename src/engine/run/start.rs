//! When a run begins, and with which priority.

use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};

use crate::config::{Instance, Strategy};
use crate::engine::context::Engine;
use crate::engine::snapshots::present::is_future;
use crate::model::Remarks;

/// Lowers the priority of every thread of the process. Linux keeps it by thread, and threads and
/// children take it from who starts them.
pub(super) fn be_nice(nice: i32) -> std::io::Result<()> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        let name = thread?.file_name();
        let id =
            name.to_str().and_then(|id| id.parse().ok()).and_then(rustix::process::Pid::from_raw);
        match rustix::process::setpriority_process(id, nice) {
            // It ended meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The present second; the next one when a run of this strategy began in the present one. Ids sort
/// by time, and two of one second would not.
pub(super) async fn next_second(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    remarks: &mut Remarks,
) -> DateTime<Utc> {
    let Some(catalog) = engine.catalog().await else { return engine.clock.now_seconds() };
    let last = catalog.last_run(&instance.name, &strategy.name, false).await;
    let last = last.inspect_err(|error| tracing::warn!("{error}")).ok().flatten();
    let now = engine.clock.now();
    if let Some(last) = last.as_ref().filter(|last| last.id.time() > now) {
        let means =
            if is_future(&last.id, now) { "never means that one" } else { "means that one" };
        let note = format!(
            "The clock is behind that of the last run (`{}`), and `latest` {means}: see that the \
             clock of this machine is right",
            last.id
        );
        tracing::info!("{note}");
        remarks.note(note);
    }
    if last.is_some_and(|last| last.id.time() == now.trunc_subsecs(0)) {
        let rest = 1_000 - u64::from(now.timestamp_subsec_millis()).min(999);
        tokio::time::sleep(Duration::from_millis(rest)).await;
    }
    engine.clock.now_seconds()
}
