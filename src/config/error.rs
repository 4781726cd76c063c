//! What is wrong with a configuration: everything at once, each with its place.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::model::ErrorCode;

/// A mistake in a value, before its place is known.
#[derive(Debug)]
pub(super) struct Wrong {
    pub code: ErrorCode,
    pub message: String,
    pub hint: Option<String>,
}

impl Wrong {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(super) fn value(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::ConfigInvalidValue, message)
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, or the folder that was looked into.
    pub file: PathBuf,
    /// The line, from 1, where it can be told.
    pub line: Option<usize>,
    /// The column, in characters from 1, where it can be told.
    pub column: Option<usize>,
    /// The dotted key, such as `strategies.daily.schedule`; empty when it is about the file as a
    /// whole.
    pub key: String,
    /// The kind of mistake.
    pub code: ErrorCode,
    /// It never repeats a secret.
    pub message: String,
    pub hint: Option<String>,
}

impl ConfigError {
    /// About a file or folder as a whole.
    pub(super) fn of_file(
        file: &Path,
        code: ErrorCode,
        message: impl Into<String>,
        hint: Option<&str>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            column: None,
            key: String::new(),
            code,
            message: message.into(),
            hint: hint.map(str::to_owned),
        }
    }

    /// Sets the line and column, of a byte of the text.
    pub(super) fn locate(&mut self, text: &str, at: Option<usize>) {
        let Some(before) = at.and_then(|at| text.get(..at)) else { return };
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        self.line = Some(before.matches('\n').count() + 1);
        self.column = before.get(line_start..).map(|line| line.chars().count() + 1);
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        for place in [self.line, self.column].into_iter().flatten() {
            write!(f, "{place}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration, by file and line; never nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// Of so many mistakes in one file is told; a file with more was not meant to be a configuration,
/// or has one mistake that makes all the others.
pub(super) const MOST_TOLD: usize = 100;

impl ConfigErrors {
    /// `told`, by line, and how many more there are.
    pub(super) fn bounded(file: &Path, mut told: Vec<ConfigError>, more: usize) -> Self {
        told.sort_by_key(|error| (error.line, error.column));
        if let Some(last) = told.last().filter(|_| more > 0) {
            let noun = if more == 1 { "mistake is" } else { "mistakes are" };
            let message = format!("{more} more {noun} not shown");
            told.push(ConfigError::of_file(file, last.code, message, None));
        }
        Self(told)
    }

    /// The code of the first mistake.
    pub fn code(&self) -> ErrorCode {
        self.0.first().map_or(ErrorCode::ConfigInvalidValue, |first| first.code)
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

/// A name that was asked for, and is not configured for what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// No instance has it.
    #[error("There is no {what} `{name}`{}", suggestion(.name, .known))]
    Unknown {
        /// `strategy` or `instance`.
        what: &'static str,
        /// What was asked for.
        name: String,
        known: Vec<String>,
    },
    /// More than one instance has it.
    #[error("The strategy `{name}` is in several instances: `{}`. Say which with `--instance`",
        .instances.join("`, `"))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Those who have it.
        instances: Vec<String>,
    },
    /// It is there, and cannot be run.
    #[error(
        "The strategy `{name}` has no `sources` in this configuration, which only prunes, lists, \
         verifies and restores it. Run it where its sources are configured, or list them here"
    )]
    PruneOnly {
        /// What was asked for.
        name: String,
    },
}

impl FindError {
    /// The kind of mistake.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown { .. } => ErrorCode::ConfigUnknownName,
            Self::Ambiguous { .. } => ErrorCode::ConfigAmbiguousStrategy,
            Self::PruneOnly { .. } => ErrorCode::ConfigPruneOnly,
        }
    }
}

fn suggestion(name: &str, known: &[String]) -> String {
    format!(": {}", suggest(name, known.iter().map(String::as_str)))
}

/// A hint at what may have been meant: the nearest of the known words, or all of them.
pub(super) fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "there is none".to_owned(),
        None => format!("expected one of `{}`", known.join("`, `")),
    }
}

/// The known word that is spelt most like `word`, unless none is near.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate)
        })
        .filter(|(distance, candidate)| {
            *distance <= (candidate.chars().count().min(lower.chars().count()) / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
