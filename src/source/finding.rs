//! What a check found.

use serde::Serialize;

/// One line of what a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at: `pg_dump`, `server`, `path`.
    pub subject: String,
    /// What was found and, unless it is fine, what to do.
    pub message: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Perhaps not as it was meant.
    Note,
    /// Works, with a drawback.
    Warning,
    /// A run would fail.
    Error,
}

impl Finding {
    /// A finding.
    pub fn new(level: Level, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self { level, subject: subject.into(), message: message.into() }
    }
}
