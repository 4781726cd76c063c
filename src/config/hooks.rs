//! Programs of the operator that are started around a run, or around one source of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::CommandLine;

/// What is started when. Each is a program with its arguments, started without a shell, with the
/// facts of the run in its environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hooks {
    /// Started before: the program and its arguments, without a shell. When it fails, nothing is
    /// dumped.
    pub before: Option<CommandLine>,
    /// Started after, however it went, also when `before` failed: it undoes what `before` did.
    pub after: Option<CommandLine>,
    /// Started after a failure, and after `after`.
    pub on_failure: Option<CommandLine>,
}

impl Hooks {
    /// Its keys in the table of a source or strategy.
    pub(super) const KEYS: [&str; 3] = ["before", "after", "on_failure"];
}
