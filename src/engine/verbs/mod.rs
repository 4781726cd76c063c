//! Verbs that need nothing of each other: each file takes an [`Engine`](super::Engine) and returns
//! a value that a command shows.
//!
//! Two verbs that need the same thing take it from `snapshots`, `read` or `write`.

pub(in crate::engine) mod check;
pub(in crate::engine) mod diff;
pub(in crate::engine) mod dump;
pub(in crate::engine) mod hold;
pub(in crate::engine) mod restore;
pub(in crate::engine) mod stats;
pub(in crate::engine) mod status;
pub(in crate::engine) mod verify;
