//! Why a snapshot is kept or goes.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use crate::model::SnapshotId;

/// A reason, in words by its `Display`. As JSON an object that `kind` tells apart:
/// `{"kind": "rule", "rule": "keep_daily = 30", "oldest": false}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// Kept: somebody said so.
    Held {
        /// What for, in the words of who said so.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// When the hold ends; never by itself, where it is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<DateTime<Utc>>,
    },
    /// Kept: no newer one has passed a drill.
    Drilled { at: DateTime<Utc> },
    /// Kept: no newer one is known to be good.
    LastGood,
    /// Kept: it has much less than the last good one, and nobody has released it.
    Suspect,
    /// Kept: its time is later than the present. A clock was wrong, and nobody can say what it is.
    Future,
    /// Kept: it is the newest that is partial, and there is no newer one that is whole.
    NothingWhole,
    /// Kept: it is the newest that is whole.
    Newest,
    /// Kept: a rule of the policy keeps it.
    Rule {
        /// `keep_daily = 30`.
        rule: String,
        /// It is not the newest of its period, but the oldest snapshot that there is, and the rule
        /// is not used up.
        oldest: bool,
    },
    /// Kept: the policy has no rule, and so keeps everything.
    NoPolicy,
    /// Kept, though no rule keeps it: the storage does not let it be deleted yet.
    Locked {
        /// When the lock ends; never by itself, where it is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<DateTime<Utc>>,
    },
    /// Goes: no rule keeps it.
    Unmatched,
    /// Goes: it is partial, and a newer one is whole.
    Superseded {
        /// The newest that is whole.
        by: SnapshotId,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: &DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
        match self {
            Self::Held { reason, until } => {
                f.write_str("held")?;
                if let Some(until) = until {
                    write!(f, " until {}", time(until))?;
                }
                reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
            }
            Self::Drilled { at } => write!(f, "the newest that passed a drill, at {}", time(at)),
            Self::LastGood => f.write_str("the newest that is known to be good"),
            Self::Suspect => f.write_str("it is suspect, and not released"),
            Self::Future => f.write_str("its time is in the future"),
            Self::NothingWhole => f.write_str("it is partial, but no whole one is newer"),
            Self::Newest => f.write_str("the newest whole one"),
            Self::Rule { rule, oldest: false } => write!(f, "`{rule}`"),
            Self::Rule { rule, oldest: true } => write!(f, "`{rule}`, as the oldest there is"),
            Self::NoPolicy => f.write_str("the policy has no rule"),
            Self::Locked { until: Some(until) } => {
                write!(f, "no rule keeps it, but it is locked until {}", time(until))
            }
            Self::Locked { until: None } => {
                f.write_str("no rule keeps it, but it is locked by a legal hold")
            }
            Self::Unmatched => f.write_str("no rule keeps it"),
            Self::Superseded { by } => write!(f, "it is partial, and `{by}` is newer and whole"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn a_reason_is_words_for_people_and_an_object_for_programs() {
        let until = "2026-12-24T17:00:00.5Z".parse().unwrap();
        let reason = Some("audit 12".to_owned());
        for (given, words, json) in [
            (Reason::Held { reason: None, until: None }, "held", r#"{"kind":"held"}"#),
            (
                Reason::Held { reason, until: Some(until) },
                "held until 2026-12-24T17:00:00Z: audit 12",
                r#"{"kind":"held","reason":"audit 12","until":"2026-12-24T17:00:00.500Z"}"#,
            ),
            (
                Reason::Rule { rule: "keep_daily = 30".to_owned(), oldest: true },
                "`keep_daily = 30`, as the oldest there is",
                r#"{"kind":"rule","rule":"keep_daily = 30","oldest":true}"#,
            ),
            (
                Reason::Locked { until: Some(until) },
                "no rule keeps it, but it is locked until 2026-12-24T17:00:00Z",
                r#"{"kind":"locked","until":"2026-12-24T17:00:00.500Z"}"#,
            ),
            (
                Reason::Superseded { by: "20261121T013000Z-7f3a9c".parse().unwrap() },
                "it is partial, and `20261121T013000Z-7f3a9c` is newer and whole",
                r#"{"kind":"superseded","by":"20261121T013000Z-7f3a9c"}"#,
            ),
        ] {
            assert_eq!(given.to_string(), words);
            assert_eq!(serde_json::to_string(&given).unwrap(), json);
        }
    }
}
