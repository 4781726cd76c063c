//! What children that ended well said on their standard error, for the notes and warnings of a
//! source: masked, line by line, and bounded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Remarks, Secret, without_credentials};

/// How many warnings are kept of a source, and as many other lines.
const KEPT_LINES: usize = 100;
/// How many bytes are kept of its warnings, and as many of the other lines.
const KEPT_BYTES: usize = 32 << 10;
/// The most bytes of one warning or line.
const LONGEST: usize = 1 << 10;
/// How much of a line is looked at.
const LINE_BYTES: usize = 16 << 10;

/// A text that is looked for in a line. `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct LinePattern(#[schemars(length(min = 1))] String);

impl TryFrom<String> for LinePattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Err("an empty pattern matches every line") } else { Ok(Self(text)) }
    }
}

impl LinePattern {
    fn matches(&self, line: &str) -> bool {
        let mut rest = Some(line);
        for part in self.0.split('*') {
            rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, rest)| rest);
        }
        rest.is_some()
    }
}

/// Collects what the children of one source said. Clones share it.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Lines>>);

impl fmt::Debug for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heard")
    }
}

#[derive(Default)]
struct Lines {
    warnings: Kept,
    notes: Kept,
}

#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    bytes: usize,
    more: u64,
}

impl Kept {
    fn is_full(&self) -> bool {
        self.lines.len() >= KEPT_LINES || self.bytes >= KEPT_BYTES
    }

    fn push(&mut self, line: String) {
        if !self.is_full() {
            self.bytes += line.len();
            self.lines.push(line);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn extend(&mut self, other: Self) {
        other.lines.into_iter().for_each(|line| self.push(line));
        self.more = self.more.saturating_add(other.more);
    }
}

impl Heard {
    fn add(&self, said: Lines) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.warnings.extend(said.warnings);
        lines.notes.extend(said.notes);
    }

    /// All that was said since the last time.
    pub fn take(&self) -> Remarks {
        let lines = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let Lines { warnings, notes } = lines;
        let mut remarks = Remarks::default();
        warnings.lines.into_iter().for_each(|line| remarks.warn(line));
        if warnings.more > 0 {
            remarks.warn(format!("There were {} more warnings, which are not kept", warnings.more));
        }
        notes.lines.into_iter().for_each(|line| remarks.note(line));
        if notes.more > 0 {
            remarks.note(format!("There were {} more lines, which are not kept", notes.more));
        }
        remarks
    }
}

/// How the lines of a child are understood.
#[derive(Debug, Clone, Default)]
pub(super) enum Voice {
    /// Nothing is known of its lines.
    #[default]
    Any,
    /// A tool of PostgreSQL, which marks its own warnings: `pg_dump: warning: …`. Those that a
    /// pattern matches were expected.
    Postgres { accepted: Vec<LinePattern> },
}

/// Reads what one child says.
pub(super) struct Listener {
    program: String,
    voice: Voice,
    redacted: Vec<Secret>,
    line: Vec<u8>,
    /// Whether the end of the line is left out.
    cut: bool,
    /// A warning that may go on in the next line.
    warning: Option<String>,
    lines: Lines,
}

impl Listener {
    pub(super) fn new(program: String, voice: Voice, redacted: Vec<Secret>) -> Self {
        Self {
            program,
            voice,
            redacted,
            line: Vec::new(),
            cut: false,
            warning: None,
            lines: Lines::default(),
        }
    }

    pub(super) fn hear(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| is_end(*byte)) {
            let (text, ends) = match piece.split_last() {
                Some((last, text)) if is_end(*last) => (text, true),
                _ => (piece, false),
            };
            let room = LINE_BYTES - self.line.len();
            self.cut |= text.len() > room;
            self.line.extend_from_slice(text.get(..room).unwrap_or(text));
            if ends {
                self.end_line();
            }
        }
    }

    pub(super) fn finish(mut self, heard: &Heard) {
        self.end_line();
        if let Some(warning) = self.warning.take() {
            self.judge(warning);
        }
        heard.add(self.lines);
    }

    fn end_line(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.cut) {
            // It may end with a part of a secret. None is longer than a quarter of it.
            line.truncate(LINE_BYTES / 4 * 3);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        let mark = match self.voice {
            Voice::Any => Mark::None,
            Voice::Postgres { .. } => mark(text),
        };
        match (mark, self.warning.take()) {
            (Mark::More(rest), Some(warning)) => {
                let rest = self.masked(rest);
                self.warning = Some(shortened(format!("{warning} {rest}")));
            }
            (mark, before) => {
                before.into_iter().for_each(|warning| self.judge(warning));
                if matches!(mark, Mark::Warning) {
                    self.warning = Some(shortened(self.masked(text)));
                } else if self.lines.notes.is_full() {
                    self.lines.notes.more = self.lines.notes.more.saturating_add(1);
                } else {
                    let text = self.masked(text);
                    let line = match self.voice {
                        Voice::Any if !text.starts_with(&self.program) => {
                            format!("{}: {text}", self.program)
                        }
                        _ => text,
                    };
                    self.lines.notes.push(shortened(line));
                }
            }
        }
    }

    fn judge(&mut self, warning: String) {
        match &self.voice {
            Voice::Postgres { accepted }
                if accepted.iter().any(|pattern| pattern.matches(&warning)) =>
            {
                self.lines.notes.push(warning);
            }
            _ => self.lines.warnings.push(warning),
        }
    }

    fn masked(&self, line: &str) -> String {
        let text = without_credentials(&without(&self.redacted, line.to_owned()));
        text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
            match c {
                '\t' => shown.push(' '),
                c if c.is_control() => shown.extend(c.escape_default()),
                c => shown.push(c),
            }
            shown
        })
    }
}

/// The text with `***` in place of the secrets, of which the longest come first.
pub(super) fn without(secrets: &[Secret], text: String) -> String {
    secrets.iter().fold(text, |text, secret| text.replace(secret.expose(), "***"))
}

/// Progress is often shown in one line that is written again and again.
fn is_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn shortened(mut line: String) -> String {
    if line.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| line.is_char_boundary(*end)).unwrap_or_default();
        line.truncate(end);
        line.push('…');
    }
    line
}

enum Mark<'a> {
    Warning,
    /// It belongs to the line before it: its text without the name of the tool.
    More(&'a str),
    None,
}

/// How a tool of PostgreSQL marks the line (`src/common/logging.c` there). What a server says
/// through it (`pg_dump: WARNING:  …`) is not the tool's.
fn mark(line: &str) -> Mark<'_> {
    let tool =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let Some((_, said)) = line.split_once(": ").filter(|(name, _)| tool(name)) else {
        return Mark::More(line);
    };
    let begins = |marks: &[&str]| marks.iter().any(|mark| said.starts_with(mark));
    if begins(&["warning: ", "error: ", "fatal: "]) {
        Mark::Warning
    } else if begins(&["detail: ", "hint: "]) {
        Mark::More(said)
    } else {
        Mark::None
    }
}

#[cfg(test)]
mod tests {
    use super::{Heard, KEPT_BYTES, KEPT_LINES, LONGEST, LinePattern, Listener, Voice};
    use crate::model::{Remarks, Secret};

    fn heard(voice: Voice, redacted: &str, said: &[&[u8]]) -> Remarks {
        let heard = Heard::default();
        let mut listener = Listener::new("tool".to_owned(), voice, Secret::new(redacted).forms());
        said.iter().for_each(|part| listener.hear(part));
        listener.finish(&heard);
        heard.take()
    }

    fn warnings(remarks: &Remarks) -> Vec<&str> {
        remarks.warnings.kept().iter().map(|warning| warning.note.reason.as_str()).collect()
    }

    fn notes(remarks: &Remarks) -> Vec<&str> {
        remarks.notes.kept().iter().map(|note| note.reason.as_str()).collect()
    }

    fn postgres(accepted: &[&str]) -> Voice {
        let pattern = |text: &&str| LinePattern::try_from((*text).to_owned()).unwrap();
        Voice::Postgres { accepted: accepted.iter().map(pattern).collect() }
    }

    const SAID: &[u8] = b"pg_dump: warning: there are circular foreign-key constraints:\n\
        pg_dump: detail: a\npg_dump: hint: disable triggers\n\
        pg_dump: NOTICE:  server\npg_dump: WARNING:  database \"x\" has a collation\n\
        WARNUNG:  what the server says\n\
        pg_dump: last built-in OID is 16383\npg_dump: error: odd\n";

    #[test]
    fn a_tool_marks_its_own_warnings() {
        let all = heard(postgres(&[]), "", &[SAID]);
        let circular = "pg_dump: warning: there are circular foreign-key constraints: \
            detail: a hint: disable triggers";
        assert_eq!(warnings(&all), [circular, "pg_dump: error: odd"]);
        assert_eq!(all.notes.count(), 4);
        assert!(all.warnings.missing() == 0);
        let accepted = heard(postgres(&["circular*disable", "no such"]), "", &[SAID]);
        assert_eq!(warnings(&accepted), ["pg_dump: error: odd"]);
        assert!(notes(&accepted).contains(&circular), "an accepted one is a note");
        let any = heard(Voice::Any, "", &[SAID]);
        assert_eq!((any.warnings.count(), any.notes.count()), (0, 8));
    }

    #[test]
    fn patterns_are_found_anywhere_in_order() {
        for (pattern, matches) in [
            ("not dumped", true),
            ("subscriptions*dumped", true),
            ("*subscriptions*", true),
            ("*", true),
            ("dumped*subscriptions", false),
            ("Subscriptions", false),
        ] {
            let pattern = LinePattern::try_from(pattern.to_owned()).unwrap();
            assert_eq!(
                pattern.matches("pg_dump: warning: subscriptions not dumped"),
                matches,
                "{pattern:?}"
            );
        }
        assert!(LinePattern::try_from(String::new()).is_err());
    }

    #[test]
    fn secrets_in_any_piece_of_a_line_are_masked() {
        let said = "one hunter2\rtwo postgresql://u:pw@h/db \x1b[1mhunter2\n\nlast password=x";
        for cut in 0..said.len() {
            let (first, second) = said.as_bytes().split_at(cut);
            let all = heard(Voice::Any, "hunter2", &[first, second]);
            let expected = [
                "tool: one ***",
                "tool: two postgresql://***@h/db \\u{1b}[1m***",
                "tool: last password=***",
            ];
            assert_eq!(notes(&all), expected, "{cut}");
        }
        // The secret stands across the end of what is looked at.
        let long = format!("{}hunter2\n", "x".repeat(super::LINE_BYTES - 3));
        let all = heard(Voice::Any, "hunter2", &[long.as_bytes()]);
        assert!(!notes(&all)[0].contains("hun"));
    }

    #[test]
    fn a_flood_is_bounded_and_hides_no_warning() {
        let line = format!("{}\n", "x".repeat(5_000));
        let mut said: Vec<&[u8]> = vec![line.as_bytes(); 5_000];
        said.push(b"pg_dump: x\n");
        said.extend([b"pg_dump: warning: subscriptions not dumped\n".as_slice(); 300]);
        let all = heard(postgres(&[]), "", &said);
        assert_eq!(all.warnings.count(), KEPT_LINES as u64 + 1);
        let bytes: usize = notes(&all).iter().map(|line| line.len()).sum();
        assert!(bytes < KEPT_BYTES + 2 * LONGEST, "{bytes}");
        assert!(notes(&all).iter().all(|line| line.len() <= LONGEST + 4));
        assert!(notes(&all).last().unwrap().contains("4969"), "{:?}", notes(&all).last());
    }
}
