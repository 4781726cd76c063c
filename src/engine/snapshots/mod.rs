//! Which snapshots there are, and what is said of them: listings, marks, drills, retention's
//! decisions. Reads manifests and marks, writes marks, and never touches an artifact.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

pub(in crate::engine) mod damage;
pub(in crate::engine) mod decisions;
pub(in crate::engine) mod documents;
pub(in crate::engine) mod drills;
pub(in crate::engine) mod find;
pub(in crate::engine) mod list;
pub(in crate::engine) mod mark_writer;
pub(in crate::engine) mod marks;
pub(in crate::engine) mod present;
pub(in crate::engine) mod unexpected;
pub(in crate::engine) mod vanished;
