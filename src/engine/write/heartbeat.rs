//! The heartbeat of a writer, `run.json`, by which machines keep out of each other's way.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::engine::snapshots::documents::read_document;
use crate::model::{RUN_KEY, SnapshotId};
use crate::storage::{Storage, StorageError};

/// How often a run renews its heartbeat.
pub(in crate::engine) const BEAT: Duration = Duration::from_secs(60);

/// A run of another machine whose heartbeat is younger, by the storage's clock, is taken to be
/// alive.
pub(in crate::engine) const LEASE: TimeDelta = TimeDelta::minutes(5);

/// What another machine left unfinished is collected when its heartbeat is older, by the storage's
/// clock.
pub(in crate::engine) const ABANDONED: TimeDelta = TimeDelta::hours(24);

/// A larger heartbeat cannot be read.
const LARGEST: u64 = 64 << 10;

/// What `run.json` says: who writes into this folder, and that it is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Heartbeat {
    pub(in crate::engine) format: u32,
    /// Of the state folder that the run belongs to.
    pub(in crate::engine) node: String,
    pub(in crate::engine) host: String,
    /// Which start of the machine it belongs to; none where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::engine) boot: Option<String>,
    pub(in crate::engine) pid: u32,
    pub(in crate::engine) started: DateTime<Utc>,
    pub(in crate::engine) beat: DateTime<Utc>,
    /// Whether the snapshot is being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::engine) deleting: bool,
}

/// The name of this machine, as it knows itself.
pub(in crate::engine) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What tells this start of the machine from any other, and from any other machine, a copy of it
/// included.
fn boot() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

impl Heartbeat {
    pub(in crate::engine) fn new(node: String, started: DateTime<Utc>) -> Self {
        Self {
            format: 1,
            node,
            host: host(),
            boot: boot(),
            pid: std::process::id(),
            started,
            beat: started,
            deleting: false,
        }
    }

    /// Whether it was written since this machine was started, as far as that can be told: else by
    /// the name of the machine.
    pub(in crate::engine) fn is_of_this_start(&self) -> bool {
        match (&self.boot, boot()) {
            (Some(theirs), Some(ours)) => *theirs == ours,
            _ => self.host == host(),
        }
    }

    /// Whether both are of one writer, however long ago either beat.
    pub(in crate::engine) fn is_of(&self, other: &Self) -> bool {
        let Self { node, host, pid, started, .. } = other;
        (&self.node, &self.host, &self.pid, &self.started) == (node, host, pid, started)
    }

    pub(in crate::engine) fn to_bytes(&self) -> Bytes {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}

pub(in crate::engine) async fn read_heartbeat(
    storage: &dyn Storage,
    folder: &str,
    id: &SnapshotId,
) -> Result<Option<Heartbeat>, StorageError> {
    let key = format!("{folder}{id}/{RUN_KEY}");
    match read_document(storage, &key, LARGEST).await {
        Err(error) if error.is_too_large() => Ok(None),
        Ok(body) => Ok(serde_json::from_slice(&body).ok()),
        // Its run ended between the listing and now; or it is no file, which tells nothing.
        Err(error) if error.is_not_found() || error.is_not_a_file() => Ok(None),
        Err(error) => Err(error),
    }
}
