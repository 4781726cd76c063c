//! What an operator is told: what happened, to which strategy, in plain words.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};

use super::{DrillReport, Outcome, RunReport};
use crate::model::{ByteSize, Completeness, Name, Remarks, SnapshotId, Span, Verdict};

/// How long [`Event::text`] is at most, in characters: with its title it fits into a message of
/// every chat service.
const MOST_CHARS: usize = 1_500;
/// How much of that one error may take.
const MOST_ERROR_CHARS: usize = 600;
/// How many warnings, and how many notes, are told; the others are counted.
const MOST_TOLD: usize = 5;

/// What happened. The words are those of `on` in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// A run begins.
    Start,
    /// A run committed its snapshot to every storage, whole, without warnings. It may
    /// have notes.
    Success,
    /// A run committed its snapshot, with warnings, in part, or not to every storage.
    Problems,
    /// A run failed, or could not begin: nothing was committed. Or what is stored was verified, and
    /// is damaged.
    Failure,
    /// A run was asked to stop: nothing was committed.
    Cancelled,
    /// The last whole snapshot is older than the schedule allows.
    Stale,
    /// There is a whole snapshot again, after a time without one or a run that failed.
    Recovered,
    /// A drill passed: a snapshot was restored for trial, and is what it was when it was taken.
    #[serde(rename = "drill_passed")]
    DrillPassed,
    /// A drill failed: a snapshot is bad, or took too long, or is too old.
    #[serde(rename = "drill_failed")]
    DrillFailed,
    /// A drill could not judge a snapshot.
    #[serde(rename = "drill_inconclusive")]
    DrillInconclusive,
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
            Self::DrillPassed => "drill_passed",
            Self::DrillFailed => "drill_failed",
            Self::DrillInconclusive => "drill_inconclusive",
            Self::Test => "test",
        }
    }
}

/// One thing to tell. Serialized it is the document that a webhook without a template gets:
/// `event`, `of` (`run`, `verification` or `drill`), `instance`, `strategy`, `time`, `title`,
/// `text`, `reason`, `run`, which is the document of `backup run --json`, and `drill`: its `id`,
/// the `snapshot`, the `verdict`, and `recovery_seconds` and `recovery_point_seconds`.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: EventKind,
    pub instance: Name,
    /// The strategy, where it is about one.
    pub strategy: Option<Name>,
    pub at: DateTime<Utc>,
    /// The run that ended.
    pub run: Option<Arc<RunReport>>,
    /// The drill that ended, where it judged anything.
    pub drill: Option<Drilled>,
    /// Why, where no run says it.
    pub reason: Option<String>,
    of: Of,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Run,
    Verification,
    Drill,
}

/// What a message says of a drill.
#[derive(Debug, Clone, Serialize)]
pub struct Drilled {
    pub id: SnapshotId,
    /// The snapshot, where there was one.
    pub snapshot: Option<SnapshotId>,
    /// How it was judged.
    pub verdict: Verdict,
    /// How long getting everything back took, in seconds.
    pub recovery_seconds: f64,
    /// How old the data was, in seconds.
    pub recovery_point_seconds: Option<f64>,
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
            drill: None,
            reason,
            of: Of::Run,
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
        Self {
            run,
            ..Self::of(kind, &report.instance, Some(&report.strategy), report.finished, None)
        }
    }

    /// A run begins.
    pub fn start(instance: &Name, strategy: &Name, at: DateTime<Utc>) -> Self {
        Self::of(EventKind::Start, instance, Some(strategy), at, None)
    }

    /// A run could not even begin, for this reason. Another run that holds the lock is no such
    /// reason: that one will tell its end.
    pub fn not_run(instance: &Name, strategy: &Name, at: DateTime<Utc>, reason: String) -> Self {
        Self::of(EventKind::Failure, instance, Some(strategy), at, Some(reason))
    }

    /// A verification of the strategy's snapshots found damage, or could not be done.
    pub fn verification_failed(
        instance: &Name,
        strategy: &Name,
        at: DateTime<Utc>,
        reason: String,
    ) -> Self {
        Self { of: Of::Verification, ..Self::not_run(instance, strategy, at, reason) }
    }

    /// A drill ended so.
    pub fn of_drill(report: &DrillReport) -> Self {
        let kind = match report.verdict {
            Verdict::Passed => EventKind::DrillPassed,
            Verdict::Failed => EventKind::DrillFailed,
            Verdict::Inconclusive => EventKind::DrillInconclusive,
        };
        let drill = Drilled {
            id: report.id.clone(),
            snapshot: report.snapshot.as_ref().map(|snapshot| snapshot.id.clone()),
            verdict: report.verdict,
            recovery_seconds: report.recovery_seconds,
            recovery_point_seconds: report.recovery_point_seconds,
        };
        let (instance, strategy) = (&report.instance, Some(&report.strategy));
        let event = Self::of(kind, instance, strategy, report.finished, report.problem.clone());
        Self { of: Of::Drill, drill: Some(drill), ..event }
    }

    /// A drill could not even begin, for this reason.
    pub fn not_drilled(
        instance: &Name,
        strategy: &Name,
        at: DateTime<Utc>,
        reason: String,
    ) -> Self {
        Self {
            of: Of::Drill,
            ..Self::of(EventKind::DrillInconclusive, instance, Some(strategy), at, Some(reason))
        }
    }

    /// The last whole snapshot of the strategy is too old, for this reason.
    pub fn stale(instance: &Name, strategy: &Name, at: DateTime<Utc>, reason: String) -> Self {
        Self::of(EventKind::Stale, instance, Some(strategy), at, Some(reason))
    }

    /// What was stale is not any more, or what failed succeeded.
    pub fn recovered(
        instance: &Name,
        strategy: &Name,
        at: DateTime<Utc>,
        reason: Option<String>,
    ) -> Self {
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
        let partial =
            self.run.as_ref().is_some_and(|run| run.completeness == Some(Completeness::Partial));
        match self.kind {
            EventKind::Start => format!("Backup {subject} began"),
            EventKind::Success => format!("Backup {subject} succeeded"),
            EventKind::Problems if self.run.as_ref().is_some_and(|run| run.suspect) => {
                format!("Backup {subject} is suspect: much less than before")
            }
            EventKind::Problems if partial => {
                format!("Backup {subject} is partial: content is missing")
            }
            EventKind::Problems => format!("Backup {subject} finished with problems"),
            EventKind::Failure if self.of == Of::Verification => {
                format!("Verification of the backups {subject} failed")
            }
            EventKind::Failure => format!("Backup {subject} failed: nothing was committed"),
            EventKind::Cancelled => {
                format!("Backup {subject} was cancelled: nothing was committed")
            }
            EventKind::Stale => format!("Backup {subject} is overdue"),
            EventKind::Recovered => format!("Backup {subject} is as it should be again"),
            EventKind::DrillPassed => format!("Restore drill of {subject} passed"),
            EventKind::DrillFailed => {
                format!("Restore drill of {subject} failed: the backup is bad")
            }
            EventKind::DrillInconclusive => {
                format!("Restore drill of {subject} could not judge the backup")
            }
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
        if let Some(drill) = &self.drill {
            let span = |seconds: f64| {
                Span::from(std::time::Duration::from_secs_f64(seconds.max(0.0).round()))
            };
            let snapshot =
                drill.snapshot.as_ref().map(|id| format!("Snapshot {id}, ")).unwrap_or_default();
            let age = drill
                .recovery_point_seconds
                .map(|age| format!(", data {} old", span(age)))
                .unwrap_or_default();
            lines.push(format!(
                "{snapshot}drill {}: {} to get everything back{age}",
                drill.id,
                span(drill.recovery_seconds)
            ));
        }
        if self.kind == EventKind::Test {
            lines.push(
                "Nothing happened: somebody tries whether messages arrive. This one did".to_owned(),
            );
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
        let mut event = serializer.serialize_struct("Event", 11)?;
        event.serialize_field("format", &1)?;
        event.serialize_field("event", self.kind.as_str())?;
        let of = match self.of {
            Of::Run => "run",
            Of::Verification => "verification",
            Of::Drill => "drill",
        };
        event.serialize_field("of", of)?;
        event.serialize_field("instance", &self.instance)?;
        event.serialize_field("strategy", &self.strategy)?;
        event.serialize_field("time", &self.time())?;
        event.serialize_field("title", &self.title())?;
        event.serialize_field("text", &self.text())?;
        event.serialize_field("reason", &self.reason)?;
        event.serialize_field("run", &self.run.as_deref())?;
        event.serialize_field("drill", &self.drill)?;
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
        lines.extend(
            storage
                .warnings
                .iter()
                .chain(pruned)
                .map(|warning| cut(&format!("`{name}`: {warning}"), MOST_ERROR_CHARS)),
        );
    }
    let Remarks { warnings, notes } = &run.remarks;
    let told = warnings.kept().iter().map(|warning| warning.note.to_string());
    tell(told, warnings.count(), "warning", lines);
    let of_storages = run.storages.iter().flat_map(|storage| {
        storage.notes.iter().map(move |note| format!("`{}`: {note}", storage.name))
    });
    let told = of_storages.chain(notes.kept().iter().map(ToString::to_string));
    tell(told.map(|note| format!("Note: {note}")), run.tally().notes, "note", lines);
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

/// The first ones, and how many more there are.
fn tell(told: impl Iterator<Item = String>, count: u64, noun: &str, lines: &mut Vec<String>) {
    lines.extend(told.take(MOST_TOLD).map(|line| cut(&line, MOST_ERROR_CHARS)));
    let more = count.saturating_sub(MOST_TOLD as u64);
    if more > 0 {
        lines.push(format!("And {more} more {noun}{}", if more == 1 { "" } else { "s" }));
    }
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
    use crate::model::{Completeness, Name, Note, Remarks, SnapshotId};
    use crate::report::{Outcome, RunReport};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn noted(notes: usize) -> RunReport {
        let mut report = report(Outcome::Success, 0);
        for number in 0..notes {
            report.remarks.note(format!("small {number}"));
        }
        report
    }

    fn report(outcome: Outcome, warnings: usize) -> RunReport {
        let at = chrono::DateTime::UNIX_EPOCH;
        let mut remarks = Remarks::default();
        for number in 0..warnings {
            let path = format!("{number}/{}", "ü".repeat(number));
            remarks.missing(Note { source: Some("files".to_owned()), ..Note::at(path, "gone") });
        }
        RunReport {
            instance: name("shop"),
            strategy: name("daily"),
            id: SnapshotId::new(at, [1, 2, 3]),
            outcome,
            completeness: (warnings > 0).then_some(Completeness::Partial),
            suspect: false,
            started: at,
            finished: at,
            seconds: 75.0,
            sources: Vec::new(),
            storages: Vec::new(),
            plain_bytes: 2048,
            stored_bytes: 1024,
            remarks,
            error: None,
            code: None,
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
                Event::of_run(&noted(7)),
                "Backup shop/daily succeeded",
                "Note: small 0\nNote: small 1\nNote: small 2\nNote: small 3\nNote: small 4\n\
                 And 2 more notes\n\
                 Snapshot 19700101T000000Z-010203: 2.0 KiB read, 1.0 KiB stored, in 1m 15s",
            ),
            (
                Event::of_run(&report(Outcome::Problems, 6)),
                "Backup shop/daily is partial: content is missing",
                "`files/0/`: gone\n`files/1/ü`: gone\n`files/2/üü`: gone\n`files/3/üüü`: gone\n\
                 `files/4/üüüü`: gone\nAnd 1 more warning\n\
                 Snapshot 19700101T000000Z-010203: 2.0 KiB read, 1.0 KiB stored, in 1m 15s",
            ),
            (
                Event::of_run(&RunReport { suspect: true, ..report(Outcome::Problems, 1) }),
                "Backup shop/daily is suspect: much less than before",
                "`files/0/`: gone\n\
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
                code: None,
                warnings: Vec::new(),
                notes: Vec::new(),
                pruned: None,
            })
            .collect();
        let text = Event::of_run(&long).text();
        assert_eq!(text.chars().count(), MOST_CHARS);
        assert!(text.starts_with("ää") && text.contains("Not committed to `disk`: xx"), "{text}");
    }
}
