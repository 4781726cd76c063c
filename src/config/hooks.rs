//! Programs of the operator that are started around a run, or around one source of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is started when. Each is a program with its arguments, started without a shell, with the
/// facts of the run in its environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Started before: the program and its arguments, without a shell. When it fails, nothing is
    /// dumped.
    #[schemars(length(min = 1))]
    pub before: Option<Vec<String>>,
    /// Started after, however it went, also when `before` failed: it undoes what `before` did.
    #[schemars(length(min = 1))]
    pub after: Option<Vec<String>>,
    /// Started after a failure, and after `after`.
    #[schemars(length(min = 1))]
    pub on_failure: Option<Vec<String>>,
}

impl Hooks {
    /// Its keys in the table of a source or strategy.
    pub(super) const KEYS: [&str; 3] = ["before", "after", "on_failure"];
}
