//! What is kept: a policy and the snapshots that there are, to a decision for each with its
//! reasons.
//!
//! This room is pure: it knows calendars and counts, and is handed the time. It does not know where
//! snapshots are, nor delete them, nor who protects one from deletion and why: that is handed to it
//! too. To add a rule: a field of [`Policy`], a line in [`Policy::rules`], and its cases in
//! `tests/cases.rs`.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects))]

mod decide;
mod policy;
mod reason;
mod rule;
#[cfg(test)]
mod tests;

pub use decide::{Decision, Snapshot, decide};
pub use policy::{Count, Period, Policy, PolicyError};
pub use reason::Reason;
pub use rule::{Calendar, Reach, Rule};
