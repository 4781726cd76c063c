//! One thing that a drill looked at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Name, Verdict};

/// How long a text of a check is at most, in characters: what it tells may come from what was
/// backed up.
const LONGEST: usize = 2_000;
/// How many differences one check tells by name; the others are counted.
pub const TOLD_DIFFERENCES: usize = 20;

/// One thing that a drill looked at: what was expected and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Of which kind it is, in one word: `digest`, `rows`, `files`, `query`.
    pub kind: String,
    /// The source it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
    /// What was looked at, in words.
    pub what: String,
    /// How it came out.
    pub outcome: CheckOutcome,
    /// What should be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Differences by name, the first [`TOLD_DIFFERENCES`]; or why it could not be looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

/// What a drill proved of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proof {
    /// Its content was counted or looked at.
    Content,
    /// No more than that its bytes are those that were written.
    Bytes,
}

impl Proof {
    /// Kinds of checks that look at content.
    const KINDS: [&str; 7] =
        ["rows", "counts", "integrity", "files", "query", "references", "file"];

    /// Of a source, by its checks: none where not even its bytes are right. A program of the
    /// operator may have looked at its content besides.
    pub fn of(source: &Name, checks: &[Check], looked_at: bool) -> Option<Self> {
        let any = |outcome, kinds: &[&str]| {
            checks.iter().any(|check| {
                check.source.as_ref() == Some(source)
                    && check.outcome == outcome
                    && kinds.contains(&check.kind.as_str())
            })
        };
        if !any(CheckOutcome::Failed, &Self::KINDS)
            && (looked_at || any(CheckOutcome::Passed, &Self::KINDS))
        {
            Some(Self::Content)
        } else {
            any(CheckOutcome::Passed, &["digest"]).then_some(Self::Bytes)
        }
    }

    /// Of all sources, in words.
    pub fn in_words(proofs: &BTreeMap<Name, Self>) -> String {
        let of = |words: &str, wanted: Self| {
            let names: Vec<&str> = proofs
                .iter()
                .filter(|(_, proof)| **proof == wanted)
                .map(|(name, _)| name.as_str())
                .collect();
            (!names.is_empty()).then(|| format!("{words} of {}", names.join(", ")))
        };
        let all = [of("content", Self::Content), of("only the bytes", Self::Bytes)];
        all.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    /// As expected.
    Passed,
    /// The backup is not what it should be.
    Failed,
    /// It could not be found out, for a reason that is not the backup's.
    Inconclusive,
    /// There was nothing to compare with.
    Skipped,
}

impl CheckOutcome {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Inconclusive => "inconclusive",
            Self::Skipped => "skipped",
        }
    }
}

impl Check {
    /// A check that has not come out yet: it counts as inconclusive.
    pub fn new(kind: &str, source: Option<&Name>, what: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            source: source.cloned(),
            what: what.into(),
            outcome: CheckOutcome::Inconclusive,
            expected: None,
            found: None,
            details: Vec::new(),
        }
    }

    /// Passed when both read the same, else failed.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "mostly numbers")]
    pub fn compared(self, expected: impl ToString, found: impl ToString) -> Self {
        let (expected, found) = (cut(expected.to_string()), cut(found.to_string()));
        let outcome = if expected == found { CheckOutcome::Passed } else { CheckOutcome::Failed };
        Self { outcome, expected: Some(expected), found: Some(found), ..self }
    }

    /// Passed when `holds`, else failed.
    #[must_use]
    pub fn judged(
        self,
        holds: bool,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        let outcome = if holds { CheckOutcome::Passed } else { CheckOutcome::Failed };
        Self {
            outcome,
            expected: Some(cut(expected.into())),
            found: Some(cut(found.into())),
            ..self
        }
    }

    /// It came out so, for this reason.
    #[must_use]
    pub fn ended(mut self, outcome: CheckOutcome, reason: impl Into<String>) -> Self {
        self.outcome = outcome;
        self.details.push(cut(reason.into()));
        self
    }

    /// With differences by name; more than [`TOLD_DIFFERENCES`] were counted, where `all` is
    /// larger.
    #[must_use]
    pub fn detailed(mut self, differences: Vec<String>, all: u64) -> Self {
        let told = differences.len().min(TOLD_DIFFERENCES);
        self.details.extend(differences.into_iter().take(TOLD_DIFFERENCES).map(cut));
        if all > told as u64 {
            self.details.push(format!("and {} more", all.saturating_sub(told as u64)));
        }
        self
    }

    /// In one line, for an alarm: what was expected and found.
    pub fn in_words(&self) -> String {
        let source = self.source.as_ref().map(|source| format!("`{source}`: ")).unwrap_or_default();
        let mut text = format!("{source}{}", self.what);
        if let (Some(expected), Some(found)) = (&self.expected, &self.found) {
            text = format!("{text}: expected {expected}, found {found}");
        }
        if let Some(first) = self.details.first() {
            text = format!("{text} ({first})");
        }
        text
    }
}

/// What is cut off is shown as `…`.
fn cut(text: String) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// What all of `checks` together say of a snapshot: one that failed makes it bad, and one that
/// could not be made leaves it open.
pub fn verdict(checks: &[Check]) -> Verdict {
    let any = |outcome| checks.iter().any(|check| check.outcome == outcome);
    if any(CheckOutcome::Failed) {
        Verdict::Failed
    } else if any(CheckOutcome::Inconclusive) || !any(CheckOutcome::Passed) {
        Verdict::Inconclusive
    } else {
        Verdict::Passed
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, CheckOutcome, verdict};
    use crate::model::Verdict;

    #[test]
    fn nothing_that_was_not_looked_at_makes_a_drill_pass() {
        let check = |outcome| Check::new("rows", None, "rows").ended(outcome, "so");
        let of = |outcomes: &[CheckOutcome]| {
            verdict(&outcomes.iter().map(|one| check(*one)).collect::<Vec<_>>())
        };
        use CheckOutcome::{Failed, Inconclusive, Passed, Skipped};
        assert_eq!(of(&[]), Verdict::Inconclusive);
        assert_eq!(of(&[Skipped]), Verdict::Inconclusive);
        assert_eq!(of(&[Passed, Skipped]), Verdict::Passed);
        assert_eq!(of(&[Passed, Inconclusive]), Verdict::Inconclusive);
        assert_eq!(of(&[Inconclusive, Failed, Passed]), Verdict::Failed);
    }

    #[test]
    fn differences_are_told_up_to_a_number_and_counted_beyond() {
        let names: Vec<String> = (0..30).map(|number| number.to_string()).collect();
        let check = Check::new("files", None, "files").detailed(names, 1_000);
        assert_eq!(check.details.len(), 21);
        assert_eq!(check.details.last().map(String::as_str), Some("and 980 more"));
    }
}
