//! Notes and warnings: what an operator should know of a run that committed, or of a restore.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing to know. By itself it says that nothing is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The source it happened in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The path it is about, relative to the source, with bytes that are not UTF-8 replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What happened, in words.
    pub reason: String,
}

/// One thing by which content is missing or doubtful.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    #[serde(flatten)]
    pub note: Note,
    /// Whether content is missing from the snapshot because of it; then the snapshot is partial.
    #[serde(default)]
    pub missing: bool,
}

/// The first [`Bounded::LIMIT`] are kept and the rest are counted, so that a million unreadable
/// files do not fill the memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounded<T> {
    kept: Vec<T>,
    /// How many came after the kept ones.
    omitted: u64,
}

/// Notes of a run or a restore.
pub type Notes = Bounded<Note>;

/// Warnings, and how many of them say that content is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warnings {
    #[serde(flatten)]
    list: Bounded<Warning>,
    /// Counted whether kept or not.
    missing: u64,
}

/// All that was said below the level of an error. Part of other documents, under the keys
/// `warnings` and `notes`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remarks {
    pub warnings: Warnings,
    /// Documents before this key have none.
    #[serde(default)]
    pub notes: Notes,
}

impl Note {
    /// About one path of a source.
    pub fn at(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { source: None, path: Some(path.into()), reason: reason.into() }
    }
}

impl From<String> for Note {
    fn from(reason: String) -> Self {
        Self { reason, ..Self::default() }
    }
}

impl From<&str> for Note {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place: Vec<&str> =
            [&self.source, &self.path].into_iter().flatten().map(String::as_str).collect();
        if !place.is_empty() {
            f.write_str("`")?;
            // A name may have line ends, and what follows them is no line of ours.
            for c in place.join("/").chars() {
                if c.is_control() {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            f.write_str("`: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), omitted: 0 }
    }
}

impl<T> Bounded<T> {
    /// How many are kept with their text.
    pub const LIMIT: usize = 1_000;

    fn push(&mut self, one: T) {
        if self.kept.len() < Self::LIMIT {
            self.kept.push(one);
        } else {
            self.omitted = self.omitted.saturating_add(1);
        }
    }

    fn extend(&mut self, other: Self, note: fn(&mut T) -> &mut Note, source: Option<&str>) {
        for mut one in other.kept {
            let note = note(&mut one);
            note.source = note.source.take().or_else(|| source.map(str::to_owned));
            self.push(one);
        }
        self.omitted = self.omitted.saturating_add(other.omitted);
    }

    /// Those whose text was kept.
    pub fn kept(&self) -> &[T] {
        &self.kept
    }

    /// How many there were in all.
    pub fn count(&self) -> u64 {
        self.omitted.saturating_add(self.kept.len() as u64)
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

impl Warnings {
    /// Those whose text was kept.
    pub fn kept(&self) -> &[Warning] {
        self.list.kept()
    }

    /// How many there were in all.
    pub fn count(&self) -> u64 {
        self.list.count()
    }

    /// How many of them say that content is missing.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl Remarks {
    /// Nothing is missing.
    pub fn note(&mut self, note: impl Into<Note>) {
        self.notes.push(note.into());
    }

    /// Content is doubtful.
    pub fn warn(&mut self, note: impl Into<Note>) {
        self.warnings.list.push(Warning { note: note.into(), missing: false });
    }

    /// Content is missing: the snapshot is partial.
    pub fn missing(&mut self, note: impl Into<Note>) {
        self.warnings.missing = self.warnings.missing.saturating_add(1);
        self.warnings.list.push(Warning { note: note.into(), missing: true });
    }

    /// Takes in all of `other`, each without a source marked as from `source`.
    pub fn extend(&mut self, source: Option<&str>, other: Self) {
        self.warnings.missing = self.warnings.missing.saturating_add(other.warnings.missing);
        self.warnings.list.extend(other.warnings.list, |warning| &mut warning.note, source);
        self.notes.extend(other.notes, |note| note, source);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Note, Notes, Remarks};

    #[test]
    fn a_flood_is_counted_but_not_kept() {
        let mut all = Remarks::default();
        for number in 0..2 * Notes::LIMIT {
            all.missing(Note::at(number.to_string(), ""));
            all.note(Note::at(number.to_string(), ""));
        }
        let mut sum = Remarks::default();
        sum.note("first");
        sum.extend(Some("files"), all);
        assert_eq!((sum.warnings.kept().len(), sum.notes.kept().len()), (1_000, 1_000));
        assert_eq!((sum.warnings.count(), sum.warnings.missing()), (2_000, 2_000));
        assert_eq!(sum.notes.count(), 2_001);
        let sources: Vec<_> =
            sum.notes.kept().iter().take(2).map(|note| note.source.as_deref()).collect();
        assert_eq!(sources, [None, Some("files")]);
        assert_eq!(sum.warnings.kept()[0].note.source.as_deref(), Some("files"));
    }

    #[test]
    fn documents_without_notes_are_read() {
        let warnings = json!({
            "kept": [{ "source": "files", "path": "a", "reason": "gone", "missing": true }],
            "omitted": 2,
            "missing": 3,
        });
        let mut read: Remarks = serde_json::from_value(json!({ "warnings": warnings })).unwrap();
        assert_eq!((read.warnings.count(), read.notes.count()), (3, 0));
        read.note("small");
        let notes = json!({ "kept": [{ "reason": "small" }], "omitted": 0 });
        assert_eq!(json!(read), json!({ "warnings": warnings, "notes": notes }));
    }
}
