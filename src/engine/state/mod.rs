//! The state folder: locks on this machine, its random name, private files.
//!
//! Knows files and locks; knows nothing of snapshots and storages.

pub(in crate::engine) mod locks;
pub(in crate::engine) mod node;
pub(in crate::engine) mod private;
pub(in crate::engine) mod scheduler;
