//! What is kept: a policy and the snapshots that there are, to a decision for each with its reasons.
//!
//! This room is pure: it knows calendars and counts, and is handed the time. It does not know where snapshots are,
//! nor delete them. To add a rule: a field of [`Policy`], a line in `decide`, and its cases.

mod decide;
mod policy;

pub use decide::{Decision, Snapshot, decide};
pub use policy::{Count, Period, Policy, PolicyError};
