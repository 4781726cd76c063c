//! What an operator is told: what happened, to which strategy, in plain words.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

use super::{Outcome, RunReport};
use crate::model::{ByteSize, Completeness, Name, Span};

/// How long [`Event::text`] is at most, in characters: with its title it fits into a message of every chat service.
const MOST_CHARS: usize = 1_500;
/// How much of that one error may take.
const MOST_ERROR_CHARS: usize = 600;
/// How many warnings are told; the others are counted.
const MOST_WARNINGS: usize = 5;

/// What happened. The words are those of `on` in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A run begins.
    Start,
    /// A run committed its snapshot to every storage, whole, and there is nothing else to say.
    Success,
    /// A run committed its snapshot, with warnings, in part, or not to every storage.
    Problems,
    /// A run failed, or could not begin: nothing was committed. Or what is stored was verified, and is damaged.
    Failure,
    /// A run was asked to stop: nothing was committed.
    Cancelled,
    /// The last whole snapshot is older than the schedule allows.
    Stale,
    /// There is a whole snapshot again, after a time without one or a run that failed.
    Recovered,
    /// Somebody tries whether messages arrive.
    #[serde(skip_deserializing)]
    #[schemars(skip)]
    Test,
}

impl EventKind {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Success => "success",
            Self::Problems => "problems",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
            Self::Stale => "stale",
            Self::Recovered => "recovered",
            Self::Test => "test",
        }
    }
}

/// One thing to tell. Serialized it is the document that a webhook without a template gets: `event`, `of` (`run` or `verification`), `instance`, `strategy`, `time`, `title`,
/// `text`, `reason` and `run`, which is the document of `backup run --json`.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The application.
    pub instance: Name,
    /// The strategy, where it is about one.
    pub strategy: Option<Name>,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The run that ended.
    pub run: Option<Arc<RunReport>>,
    /// Why, where no run says it.
    pub reason: Option<String>,
    /// Whether it is about a verification, and not about a run.
    of_verification: bool,
}

impl Event {
    fn of(
        kind: EventKind,
        instance: &Name,
        strategy: Option<&Name>,
        at: DateTime<Utc>,
        reason: Option<String>,
    ) -> Self {
        Self {
            kind,
            instance: instance.clone(),
            strategy: strategy.cloned(),
            at,
            run: None,
            reason,
            of_verification: false,
        }
    }

    /// A run ended so.
    pub fn of_run(report: &RunReport) -> Self {
        let kind = match report.outcome {
            Outcome::Success => EventKind::Success,
            Outcome::Problems => EventKind::Problems,
            Outcome::Failed => EventKind::Failure,
            Outcome::Cancelled => EventKind::Cancelled,
        };
        let run = Some(Arc::new(report.clone()));
        Self { run, ..Self::of(kind, &report.instance, Some(&report.strategy), report.finished, None) }
    }

    /// A run begins.
    pub fn start(instance: &Name, strategy: &Name, at: DateTime<Utc>) -> Self {
        Self::of(EventKind::Start, instance, Some(strategy), at, None)
    }

    /// A run could not even begin, for this reason. Another run that holds the lock is no such reason: that one will tell its end.
    pub fn not_run(instance: &Name, strategy: &Name, at: DateTime<Utc>, reason: String) -> Self {
        Self::of(EventKind::Failure, instance, Some(strategy), at, Some(reason))
    }

    /// A verification of the strategy's snapshots found damage, or could not be done.
    pub fn verification_failed(instance: &Name, strategy: &Name, at: DateTime<Utc>, reason: String) -> Self {
        Self { of_verification: true, ..Self::not_run(instance, strategy, at, reason) }
    }

    /// The last whole snapshot of the strategy is too old, for this reason.
    pub fn stale(instance: &Name, strategy: &Name, at: DateTime<Utc>, reason: String) -> Self {
        Self::of(EventKind::Stale, instance, Some(strategy), at, Some(reason))
    }

    /// What was stale is not any more, or what failed succeeded.
    pub fn recovered(instance: &Name, strategy: &Name, at: DateTime<Utc>, reason: Option<String>) -> Self {
        Self::of(EventKind::Recovered, instance, Some(strategy), at, reason)
    }

    /// Somebody tries whether messages arrive.
    pub fn test(instance: &Name, at: DateTime<Utc>) -> Self {
        Self::of(EventKind::Test, instance, None, at, None)
    }

    /// What it is about: `shop/daily`, or `shop`.
    pub fn subject(&self) -> String {
        match &self.strategy {
            Some(strategy) => format!("{}/{strategy}", self.instance),
            None => self.instance.to_string(),
        }
    }

    /// What happened, in one line.
    pub fn title(&self) -> String {
        let subject = self.subject();
        let partial = self.run.as_ref().is_some_and(|run| run.completeness == Some(Completeness::Partial));
        match self.kind {
            EventKind::Start => format!("Backup {subject} began"),
            EventKind::Success => format!("Backup {subject} succeeded"),
            EventKind::Problems if partial => format!("Backup {subject} is partial: content is missing"),
            EventKind::Problems => format!("Backup {subject} finished with problems"),
            EventKind::Failure if self.of_verification => format!("Verification of the backups {subject} failed"),
            EventKind::Failure => format!("Backup {subject} failed: nothing was committed"),
            EventKind::Cancelled => format!("Backup {subject} was cancelled: nothing was committed"),
            EventKind::Stale => format!("Backup {subject} is overdue"),
            EventKind::Recovered => format!("Backup {subject} is as it should be again"),
            EventKind::Test => format!("Test message about the backups of {subject}"),
        }
    }

    /// What is to be known besides, in lines, at most 1,500 characters.
    pub fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(self.reason.as_deref().map(|reason| cut(reason, MOST_ERROR_CHARS)));
        if let Some(run) = &self.run {
            tell_run(run, &mut lines);
        }
        if self.kind == EventKind::Test {
            lines.push("Nothing happened: somebody tries whether messages arrive. This one did".to_owned());
        }
        if lines.is_empty() {
            lines.push(format!("At {}", self.time()));
        }
        cut(&lines.join("\n"), MOST_CHARS)
    }

    /// The title and the text.
    pub fn message(&self) -> String {
        format!("{}\n{}", self.title(), self.text())
    }

    /// When it happened, in the form `2026-11-21T01:30:00Z`.
    pub fn time(&self) -> String {
        self.at.to_rfc3339_opts(SecondsFormat::Secs, true)
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut event = serializer.serialize_struct("Event", 10)?;
        event.serialize_field("format", &1)?;
        event.serialize_field("event", self.kind.as_str())?;
        event.serialize_field("of", if self.of_verification { "verification" } else { "run" })?;
        event.serialize_field("instance", &self.instance)?;
        event.serialize_field("strategy", &self.strategy)?;
        event.serialize_field("time", &self.time())?;
        event.serialize_field("title", &self.title())?;
        event.serialize_field("text", &self.text())?;
        event.serialize_field("reason", &self.reason)?;
        event.serialize_field("run", &self.run.as_deref())?;
        event.end()
    }
}

fn tell_run(run: &RunReport, lines: &mut Vec<String>) {
    lines.extend(run.error.as_deref().map(|error| cut(error, MOST_ERROR_CHARS)));
    for storage in &run.storages {
        let name = &storage.name;
        if let Some(error) = &storage.error {
            lines.push(cut(&format!("Not committed to `{name}`: {error}"), MOST_ERROR_CHARS));
        }
        let pruned = storage.pruned.as_ref().and_then(|pruned| pruned.problem.as_ref());
        lines
            .extend(storage.notes.iter().chain(pruned).map(|note| cut(&format!("`{name}`: {note}"), MOST_ERROR_CHARS)));
    }
    for warning in run.warnings.kept().iter().take(MOST_WARNINGS) {
        let place: Vec<&str> = [&warning.source, &warning.path].into_iter().flatten().map(String::as_str).collect();
        let line = if place.is_empty() {
            warning.reason.clone()
        } else {
            format!("`{}`: {}", place.join("/"), warning.reason)
        };
        lines.push(cut(&line, MOST_ERROR_CHARS));
    }
    let more = run.warnings.count().saturating_sub(MOST_WARNINGS as u64);
    if more > 0 {
        let noun = if more == 1 { "warning" } else { "warnings" };
        lines.push(format!("And {more} more {noun}"));
    }
    let seconds = Span::from(std::time::Duration::from_secs_f64(run.seconds.max(0.0)));
    lines.push(match run.outcome {
        Outcome::Success | Outcome::Problems => format!(
            "Snapshot {}: {} read, {} stored, in {seconds}",
            run.id,
            ByteSize(run.plain_bytes),
            ByteSize(run.stored_bytes)
        ),
        Outcome::Failed | Outcome::Cancelled => format!("Run {}, ended after {seconds}", run.id),
    });
}

/// At most so many characters; what is cut off is shown as `…`.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::{Event, MOST_CHARS};
    use crate::model::{Completeness, Name, SnapshotId, Warning, Warnings};
    use crate::report::{Outcome, RunReport};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn report(outcome: Outcome, warnings: usize) -> RunReport {
        let at = chrono::DateTime::UNIX_EPOCH;
        let mut all = Warnings::new();
        for number in 0..warnings {
            let path = Some(format!("{number}/{}", "ü".repeat(number)));
            all.push(Warning { source: Some("files".to_owned()), path, reason: "gone".to_owned(), missing: true });
        }
        RunReport {
            instance: name("shop"),
            strategy: name("daily"),
            id: SnapshotId::new(at, [1, 2, 3]),
            outcome,
            completeness: (warnings > 0).then_some(Completeness::Partial),
            started: at,
            finished: at,
            seconds: 75.0,
            sources: Vec::new(),
            storages: Vec::new(),
            plain_bytes: 2048,
            stored_bytes: 1024,
            warnings: all,
            error: None,
            may_pass: false,
        }
    }

    #[test]
    fn a_title_says_what_happened_and_the_text_why() {
        let (shop, daily, at) = (name("shop"), name("daily"), chrono::DateTime::UNIX_EPOCH);
        let because = || "because".to_owned();
        for (event, title, text) in [
            (Event::start(&shop, &daily, at), "Backup shop/daily began", "At 1970-01-01T00:00:00Z"),
            (
                Event::not_run(&shop, &daily, at, because()),
                "Backup shop/daily failed: nothing was committed",
                "because",
            ),
            (
                Event::verification_failed(&shop, &daily, at, because()),
                "Verification of the backups shop/daily failed",
                "because",
            ),
            (Event::stale(&shop, &daily, at, because()), "Backup shop/daily is overdue", "because"),
            (
                Event::of_run(&report(Outcome::Success, 0)),
                "Backup shop/daily succeeded",
                "Snapshot 19700101T000000Z-010203: 2.0 KiB read, 1.0 KiB stored, in 1m 15s",
            ),
            (
                Event::of_run(&report(Outcome::Cancelled, 0)),
                "Backup shop/daily was cancelled: nothing was committed",
                "Run 19700101T000000Z-010203, ended after 1m 15s",
            ),
            (
                Event::of_run(&report(Outcome::Problems, 6)),
                "Backup shop/daily is partial: content is missing",
                "`files/0/`: gone\n`files/1/ü`: gone\n`files/2/üü`: gone\n`files/3/üüü`: gone\n`files/4/üüüü`: gone\nAnd 1 more warning\n\
                 Snapshot 19700101T000000Z-010203: 2.0 KiB read, 1.0 KiB stored, in 1m 15s",
            ),
        ] {
            assert_eq!((event.title().as_str(), event.text().as_str()), (title, text));
        }
    }

    #[test]
    fn a_text_fits_into_a_message_and_its_beginning_is_what_matters() {
        let mut long = report(Outcome::Failed, 999);
        long.error = Some("ä".repeat(100_000));
        long.storages = (0..9)
            .map(|_| crate::report::StorageReport {
                name: name("disk"),
                address: String::new(),
                committed: false,
                error: Some("x".repeat(10_000)),
                notes: Vec::new(),
                pruned: None,
            })
            .collect();
        let text = Event::of_run(&long).text();
        assert_eq!(text.chars().count(), MOST_CHARS);
        assert!(text.starts_with("ää") && text.contains("Not committed to `disk`: xx"), "{text}");
    }
}
