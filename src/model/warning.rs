//! What went not quite right in a run that still committed.

use serde::{Deserialize, Serialize};

/// One thing that an operator should know of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The source it happened in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The path it is about, relative to the source, with bytes that are not UTF-8 replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What happened, in words.
    pub reason: String,
    /// Whether content is missing from the snapshot because of it; then the snapshot is partial.
    #[serde(default)]
    pub missing: bool,
}

/// Warnings of a run. The first [`Warnings::LIMIT`] are kept and the rest are counted, so that a
/// million unreadable files do not fill the memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warnings {
    kept: Vec<Warning>,
    /// How many came after the kept ones.
    omitted: u64,
    /// How many, kept or not, say that content is missing.
    missing: u64,
}

impl Warnings {
    /// How many warnings are kept with their text.
    pub const LIMIT: usize = 1_000;

    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one more.
    pub fn push(&mut self, warning: Warning) {
        self.missing += u64::from(warning.missing);
        if self.kept.len() < Self::LIMIT {
            self.kept.push(warning);
        } else {
            self.omitted += 1;
        }
    }

    /// Takes in all of `other`, each without a source marked as from `source`.
    pub fn extend(&mut self, source: &str, other: Self) {
        let (omitted, missing) = (other.omitted, other.missing);
        let before = self.missing;
        for mut warning in other.kept {
            warning.source.get_or_insert_with(|| source.to_owned());
            self.push(warning);
        }
        self.omitted += omitted;
        self.missing = before + missing;
    }

    /// The warnings whose text was kept.
    pub fn kept(&self) -> &[Warning] {
        &self.kept
    }

    /// How many there were in all.
    pub fn count(&self) -> u64 {
        self.kept.len() as u64 + self.omitted
    }

    /// How many of them say that content is missing.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Warning, Warnings};

    #[test]
    fn a_flood_of_warnings_is_counted_but_not_kept() {
        let mut all = Warnings::new();
        for number in 0..2 * Warnings::LIMIT {
            all.push(Warning {
                source: None,
                path: Some(format!("{number}")),
                reason: String::new(),
                missing: true,
            });
        }
        assert_eq!(all.kept().len(), Warnings::LIMIT);
        assert_eq!((all.count(), all.missing()), (2_000, 2_000));
        let mut sum = Warnings::new();
        sum.extend("files", all);
        assert_eq!((sum.count(), sum.missing()), (2_000, 2_000));
        assert_eq!(sum.kept().first().and_then(|warning| warning.source.as_deref()), Some("files"));
    }
}
