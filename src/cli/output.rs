//! Printing: aligned tables, human sizes and times, one JSON document, errors.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use anstyle::{AnsiColor, Style};
use chrono::{DateTime, TimeZone, Utc};
use serde::Serialize;
use serde_json::Value;

use super::{Color, Exit, UsageError};
use crate::catalog::CatalogError;
use crate::config::{ConfigErrors, FindError};
use crate::daemon::DaemonError;
use crate::engine::EngineError;
use crate::engine::Missing;
use crate::model::{ByteSize, ErrorCode, Remarks, Span};
use crate::pipeline::CryptError;
use crate::source::{Finding, Level, SourceError};
use crate::storage::StorageError;

pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const WARN: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();

pub(super) struct Printer {
    json: bool,
}

impl Printer {
    pub(super) fn new(json: bool, color: Color) -> Self {
        match color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        }
        .write_global();
        Self { json }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints data.
    pub(super) fn text(&self, text: &str) {
        let mut out = anstream::stdout().lock();
        wrote(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    }

    pub(super) fn document(&self, value: &impl Serialize) {
        let body = match serde_json::to_value(value) {
            Ok(Value::Object(fields)) => fields,
            Ok(other) => serde_json::Map::from_iter([("data".to_owned(), other)]),
            Err(error) => {
                serde_json::Map::from_iter([("error".to_owned(), error.to_string().into())])
            }
        };
        let mut document = serde_json::Map::from_iter([("format".to_owned(), 1.into())]);
        document.extend(body);
        self.text(&format!("{:#}\n", Value::Object(document)));
    }

    /// Prints the JSON document of a command, or `text` of it for people.
    pub(super) fn show<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        if self.json {
            self.document(value);
        } else {
            self.text(&text(value));
        }
    }

    /// Prints on stderr.
    pub(super) fn note(&self, text: &str) {
        let mut err = anstream::stderr().lock();
        let _ = writeln!(err, "{}", text.trim_end());
    }

    pub(super) fn error(&self, error: &anyhow::Error, exit: Exit) {
        let text = chain(error);
        if self.json {
            let document = serde_json::json!({
                "format": 1,
                "error": { "code": code_of(error), "message": text, "exit": exit as u8 },
            });
            self.note(&document.to_string());
        } else {
            self.note(&format!("{BAD}error:{BAD:#} {text}"));
        }
    }
}

/// The first failure to write to stdout, for [`unwritten`].
static UNWRITTEN: Mutex<Option<std::io::Error>> = Mutex::new(None);

/// Keeps the failure of a write to stdout. A closed pipe is none: its reader wants no more.
pub(super) fn wrote(result: std::io::Result<()>) -> bool {
    let Err(error) = result else { return true };
    if error.kind() != std::io::ErrorKind::BrokenPipe {
        UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
    false
}

/// Why not all of the output was written, if so. A command that says so must not exit with 0.
pub(super) fn unwritten() -> Option<EngineError> {
    UNWRITTEN.lock().unwrap_or_else(PoisonError::into_inner).take().map(EngineError::Output)
}

/// Data that is too much to be held, written as it comes.
pub(super) struct Stream {
    out: std::io::BufWriter<anstream::AutoStream<std::io::Stdout>>,
    broken: bool,
}

impl Stream {
    pub(super) fn stdout() -> Self {
        Self { out: std::io::BufWriter::new(anstream::stdout()), broken: false }
    }

    /// Writes a text. Breaks off when nobody reads any more.
    pub(super) fn put(&mut self, text: &str) -> ControlFlow<()> {
        self.broken = self.broken || !wrote(self.out.write_all(text.as_bytes()));
        if self.broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        wrote(self.out.flush());
    }
}

/// A JSON document that has one long list, written as it comes:
/// `{"format": 1, HEAD..., "LIST": [...], TAIL...}`. It is a document only once it was ended: what
/// stopped in the middle cannot be taken for the whole.
pub(super) struct LongDocument {
    stream: Stream,
    empty: bool,
}

impl LongDocument {
    pub(super) fn begin(head: serde_json::Map<String, Value>, list: &str) -> Self {
        let mut stream = Stream::stdout();
        let mut text = "{\n  \"format\": 1,\n".to_owned();
        for (key, value) in head {
            let _ = writeln!(text, "  {}: {value},", Value::from(key));
        }
        let _ = write!(text, "  {}: [", Value::from(list));
        let _ = stream.put(&text);
        Self { stream, empty: true }
    }

    /// Adds an item of the list, on a line of its own.
    pub(super) fn item(&mut self, item: &impl Serialize) -> ControlFlow<()> {
        let comma = if std::mem::take(&mut self.empty) { "" } else { "," };
        match serde_json::to_string(item) {
            Ok(item) => self.stream.put(&format!("{comma}\n    {item}")),
            Err(_) => ControlFlow::Break(()),
        }
    }

    pub(super) fn end(mut self, tail: serde_json::Map<String, Value>) {
        let mut text = if self.empty { "]".to_owned() } else { "\n  ]".to_owned() };
        for (key, value) in tail {
            let _ = write!(text, ",\n  {}: {value}", Value::from(key));
        }
        text.push_str("\n}\n");
        let _ = self.stream.put(&text);
    }
}

/// The code of the first error in the chain that has one.
fn code_of(error: &anyhow::Error) -> ErrorCode {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        None.or_else(|| cause.downcast_ref().map(EngineError::code))
            .or_else(|| cause.downcast_ref().map(DaemonError::code))
            .or_else(|| cause.downcast_ref().map(ConfigErrors::code))
            .or_else(|| cause.downcast_ref().map(FindError::code))
            .or_else(|| cause.downcast_ref().map(StorageError::code))
            .or_else(|| cause.downcast_ref().map(SourceError::code))
            .or_else(|| cause.downcast_ref().map(CatalogError::code))
            .or_else(|| cause.is::<UsageError>().then_some(ErrorCode::InvalidRequest))
            .or_else(|| cause.is::<CryptError>().then_some(ErrorCode::FileFailed))
            .or_else(|| cause.is::<std::io::Error>().then_some(ErrorCode::FileFailed))
    };
    error.chain().find_map(of).unwrap_or(ErrorCode::Internal)
}

/// An error and its causes, leaving out a cause that its effect already tells.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str("\n  ");
        }
        text.push_str(&cause);
    }
    text
}

/// A table with a header, columns aligned by their widest cell.
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
    right: Vec<bool>,
    indent: usize,
}

pub(super) struct Cell {
    text: String,
    style: Style,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), style: Style::new() }
    }
}

impl Cell {
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl Table {
    /// A table of these columns; a name that begins with `>` is of a column of numbers, which is
    /// aligned at the right.
    pub(super) fn new(columns: &[&str]) -> Self {
        let right = columns.iter().map(|name| name.starts_with('>')).collect();
        let header =
            columns.iter().map(|name| Cell::styled(name.trim_start_matches('>'), DIM)).collect();
        Self { rows: vec![header], right, indent: 0 }
    }

    pub(super) fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    pub(super) fn render(&self) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            for (column, cell) in row.iter().enumerate() {
                let width = widths.get(column).copied().unwrap_or(0);
                let pad = " ".repeat(width.saturating_sub(cell.text.chars().count()));
                let styled = format!("{}{}{:#}", cell.style, cell.text, cell.style);
                let right = self.right.get(column).copied().unwrap_or(false);
                line.push_str(&if right {
                    format!("{pad}{styled}")
                } else {
                    format!("{styled}{pad}")
                });
                if column + 1 < row.len() {
                    line.push_str("  ");
                }
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

pub(super) fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A time to come, as the clocks of its strategy's zone will show it.
pub(super) fn local_time<Z: TimeZone<Offset: std::fmt::Display>>(
    time: DateTime<Utc>,
    zone: &Z,
) -> String {
    time.with_timezone(zone).format("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// How long ago, in its two largest units.
pub(super) fn age(time: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let whole = |seconds: u64| match seconds {
        0..10 => format!("{seconds}s"),
        _ => Span::from(std::time::Duration::from_secs(seconds)).to_string(),
    };
    match (now - time).num_seconds() {
        0 => "now".to_owned(),
        past @ 1.. => format!("{} ago", whole(past.unsigned_abs())),
        future => format!("in {}", whole(future.unsigned_abs())),
    }
}

/// Settings that are durations, besides the timeouts.
const SPANS: [&str; 6] = ["retain_for", "jitter", "backoff", "stale_after", "rto", "rpo"];

/// A setting as the configuration file would have it: `key = value`.
pub(super) fn setting(key: &str, value: &Value) -> String {
    format!("{key} = {}", literal(key, value))
}

fn literal(key: &str, value: &Value) -> String {
    match value {
        // Durations and sizes are numbers in JSON and have units in the file.
        Value::Number(number) if key.ends_with("timeout") || SPANS.contains(&key) => number
            .as_f64()
            .and_then(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok())
            .map_or_else(|| number.to_string(), |span| format!("\"{}\"", Span::from(span))),
        Value::Number(number) if key.ends_with("_size") || key == "max_bytes" => number
            .as_u64()
            .map_or_else(|| number.to_string(), |bytes| format!("\"{}\"", ByteSize(bytes))),
        Value::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(|item| literal(key, item)).collect::<Vec<_>>().join(", ")
            )
        }
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(key, value)| setting(key, value)).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

pub(super) fn seconds(seconds: f64) -> String {
    Span::from(std::time::Duration::from_secs_f64(seconds.max(0.0))).to_string()
}

/// A value, or a dash where there is none.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `1 warning`, `2 warnings`.
pub(super) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// What a look at the world found, a line each.
pub(super) fn findings_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    let width = findings.iter().map(|finding| finding.subject.chars().count()).max().unwrap_or(0);
    for Finding { level, subject, message } in findings {
        let (word, style) = match level {
            Level::Ok => ("ok", GOOD),
            Level::Note => ("note", DIM),
            Level::Warning => ("warning", WARN),
            Level::Error => ("error", BAD),
        };
        let _ = writeln!(text, "  {style}{word:7}{style:#}  {subject:width$}  {message}");
    }
    text
}

/// The warnings, then the notes, the first `most` of each; `more` says where the others are.
pub(super) fn remarks_text(remarks: &Remarks, most: usize, more: &str) -> String {
    let mut text = String::new();
    let mut list = |style: Style, inner: Style, lines: Vec<String>, total: u64, noun: &str| {
        if total > 0 {
            text.push_str(&format!("  {style}{}{style:#}\n", count(total, noun)));
        }
        let rest = total.saturating_sub(lines.len() as u64);
        let rest = (rest > 0).then(|| format!("and {rest} more{more}"));
        for line in lines.into_iter().chain(rest) {
            text.push_str(&format!("    {inner}{line}{inner:#}\n"));
        }
    };
    let Remarks { warnings, notes } = remarks;
    let told = warnings.kept().iter().take(most).map(|warning| {
        let missing = if warning.missing {
            format!("  {BAD}content is missing{BAD:#}")
        } else {
            String::new()
        };
        format!("{}{missing}", warning.note)
    });
    list(WARN, Style::new(), told.collect(), warnings.count(), "warning");
    let told = notes.kept().iter().take(most).map(ToString::to_string);
    list(DIM, DIM, told.collect(), notes.count(), "note");
    text
}

/// The entries that a partial snapshot lacks, under a line that counts them; none where it lacks
/// none.
pub(super) fn missing_lines(missing: &Missing) -> Vec<String> {
    if missing.is_empty() {
        return Vec::new();
    }
    let entries = if missing.count == 1 { "entry is" } else { "entries are" };
    let head = format!(
        "{BAD}{} {entries} missing{BAD:#}: they could not be read when the snapshot was taken",
        missing.count
    );
    let lines = missing
        .entries
        .iter()
        .map(|line| format!("  `{}`: {}", line.place().escape_debug(), line.reason));
    let rest = missing.count.saturating_sub(missing.entries.len() as u64);
    let rest = (rest > 0).then(|| format!("  {DIM}and {rest} more{DIM:#}"));
    std::iter::once(head).chain(lines).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_content_and_colour() {
        let mut table = Table::new(&["NAME", ">SIZE", "STATE"]);
        table.row(vec!["a".into(), "1.0 KiB".into(), Cell::styled("ok", GOOD)]);
        table.row(vec!["längst".into(), "12 B".into(), "damaged".into()]);
        let plain = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(
            plain,
            "NAME       SIZE  STATE\na       1.0 KiB  ok\nlängst     12 B  damaged\n"
        );
    }

    #[test]
    fn settings_are_shown_as_the_file_has_them() {
        let value = serde_json::json!({
            "timeout": 5400.0, "part_size": 16_777_216, "on": true, "list": ["a", "b\"c"],
        });
        assert_eq!(
            setting("strategy", &value),
            r#"strategy = { timeout = "1h 30m", part_size = "16.0 MiB", on = true, list = ["a", "b\"c"] }"#
        );
    }

    #[test]
    fn ages_are_whole() {
        let at =
            |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 900_000_000).unwrap();
        for (then, expected) in
            [(0, "now"), (-1, "1s ago"), (-75, "1m 15s ago"), (-90_000, "1d 1h ago"), (7, "in 7s")]
        {
            assert_eq!(age(at(then), at(0)), expected);
        }
    }
}
