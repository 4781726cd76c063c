//! What time it is, where this host's clock may be wrong.

use chrono::{DateTime, TimeDelta, Utc};

use crate::engine::context::{Engine, OpenStorage};
use crate::model::SnapshotId;

/// How far clocks may differ before one of them counts as wrong.
const GRACE: TimeDelta = TimeDelta::minutes(5);

/// The time by this host, or by the storage where that tells another one. `newest` is the newest
/// snapshot there.
///
/// An S3 server's clock counts when it differs from the host's by more than [`GRACE`]. The clock of
/// a file system is asked only where the host's puts `newest` into the future, and counts when it
/// is later: a NAS whose clock is behind must not make every new snapshot one of the future.
pub(in crate::engine) async fn present(
    engine: &Engine,
    open: &OpenStorage,
    newest: Option<&SnapshotId>,
) -> DateTime<Utc> {
    let host = engine.clock.now();
    let is_near = open.storage.local_path().is_some();
    let Some(newest) = newest else { return host };
    if is_near && !is_future(newest, host) {
        return host;
    }
    let told = match open.storage.now().await {
        Ok(told) => told,
        Err(error) => {
            tracing::debug!(storage = %open.name, "did not tell the time: {error}");
            return host;
        }
    };
    if !differ(told, host) || (is_near && told < host) {
        return host;
    }
    tracing::warn!(
        storage = %open.name,
        host = %host.to_rfc3339(),
        storage_time = %told.to_rfc3339(),
        "the clock of this host is wrong: set it. The storage tells another time, which is believed"
    );
    told
}

/// Whether two clocks tell different times.
pub(in crate::engine) fn differ(one: DateTime<Utc>, other: DateTime<Utc>) -> bool {
    one.signed_duration_since(other).abs() > GRACE
}

/// Whether a snapshot was begun later than it is now: the clock of its host was wrong.
pub(in crate::engine) fn is_future(id: &SnapshotId, now: DateTime<Utc>) -> bool {
    id.time() > now.checked_add_signed(GRACE).unwrap_or(now)
}
