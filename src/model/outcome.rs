//! How runs and verifications ended, in words that are stored.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a run ended. The order is that of the words: `backup status --json` counts runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was asked to stop; nothing was committed.
    Cancelled,
    /// Nothing was committed.
    Failed,
    /// Committed, with warnings or not in every storage.
    Problems,
    /// Committed everywhere, without warnings.
    Success,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Success, Self::Problems, Self::Failed, Self::Cancelled];

    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Problems => "problems",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether there is a snapshot of it.
    pub fn is_committed(self) -> bool {
        matches!(self, Self::Success | Self::Problems)
    }
}

/// How a scheduled verification ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerificationOutcome {
    /// Every object matches its manifest.
    Sound,
    /// An object does not.
    Damaged,
    /// No damage was found, but not everything could be read.
    Failed,
}

impl VerificationOutcome {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sound => "sound",
            Self::Damaged => "damaged",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for VerificationOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Outcome, VerificationOutcome};

    #[test]
    fn stored_words_are_those_of_the_json() {
        for outcome in Outcome::ALL {
            assert_eq!(json!(outcome), json!(outcome.as_str()));
        }
        for outcome in
            [VerificationOutcome::Sound, VerificationOutcome::Damaged, VerificationOutcome::Failed]
        {
            assert_eq!(json!(outcome), json!(outcome.as_str()));
        }
    }
}
