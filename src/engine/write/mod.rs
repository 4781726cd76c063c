//! Writing into a snapshot's folder: outputs to several storages, heartbeats, leftovers of runs
//! that did not finish, and snapshots that arrive from elsewhere.

pub(in crate::engine) mod heartbeat;
pub(in crate::engine) mod leftovers;
pub(in crate::engine) mod outputs;
pub(in crate::engine) mod snapshot_writer;
pub(in crate::engine) mod writer;
