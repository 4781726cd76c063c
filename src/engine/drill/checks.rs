//! The checks that an operator writes.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use serde_json::Value;

use crate::archive::Pattern;
use crate::config::{CommandCheck, DrillCheck, FileCheck, Parses, QueryCheck, ReferencesCheck};
use crate::engine::drill::targets::{Rehearsal, Restored, Targets};
use crate::engine::error::{EngineError, chain};
use crate::model::{
    Cancel, Check, CheckOutcome, Digest, Digester, Name, Secret, Span, TOLD_DIFFERENCES,
    without_credentials,
};
use crate::source::SourceError;
use crate::source::process::{Call, ProcessError};
use crate::source::scratch::Row;

/// A file that is parsed or looked through may be no larger.
const LARGEST_FILE: u64 = 64 << 20;
/// What of the output of a program stands in the report.
const LARGEST_OUTPUT: usize = 256 << 10;

/// Makes a check of the configuration. What `shrink` compares is not restored, and is looked at
/// elsewhere.
pub(super) fn make(
    rehearsal: &Rehearsal,
    check: &DrillCheck,
    targets: &mut Targets,
) -> Result<Vec<Check>, EngineError> {
    let made = match check {
        DrillCheck::Query(query) => self::query(rehearsal, query, targets),
        DrillCheck::References(references) => self::references(rehearsal, references, targets),
        DrillCheck::File(file) => self::file(rehearsal, file, targets),
        DrillCheck::Command(command) => self::command(rehearsal, command, targets),
        DrillCheck::Shrink(_) => return Ok(Vec::new()),
    };
    rehearsal.ensure_going()?;
    Ok(vec![made])
}

/// Why nothing of a source can be looked at.
#[derive(Clone, Copy)]
enum Absent {
    FromSnapshot,
    FromTargets,
}

impl Absent {
    fn of(self, source: &Name, check: Check) -> Check {
        match self {
            Self::FromSnapshot => {
                check.judged(false, format!("a source `{source}`"), "none in the snapshot")
            }
            Self::FromTargets => {
                check.ended(CheckOutcome::Inconclusive, format!("`{source}` was not restored"))
            }
        }
    }
}

/// What was restored of a source.
fn target<'a>(
    targets: &'a mut Targets,
    source: &Name,
    rehearsal: &Rehearsal,
) -> Result<&'a mut Restored, Absent> {
    if !rehearsal.manifest.artifacts.iter().any(|artifact| artifact.source.as_ref() == Some(source))
    {
        return Err(Absent::FromSnapshot);
    }
    targets.get_mut(source).filter(|target| target.is_whole).ok_or(Absent::FromTargets)
}

/// What the failure of a query says.
fn query_failed(check: Check, expected: &str, error: &SourceError) -> Check {
    match error {
        // The server understood it, and what it asks for is not there.
        SourceError::Database { transient: false, .. } => {
            check.judged(false, expected, chain(error))
        }
        _ => check.ended(CheckOutcome::Inconclusive, chain(error)),
    }
}

fn in_one_line(query: &str) -> String {
    without_credentials(&query.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A value as people read it.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("`{text}`"),
        other => other.to_string(),
    }
}

fn query(rehearsal: &Rehearsal, query: &QueryCheck, targets: &mut Targets) -> Check {
    let what = query.name.clone().unwrap_or_else(|| in_one_line(&query.query));
    let check = Check::new("query", Some(&query.source), what);
    let bound = |words: &str, bound: Option<f64>| bound.map(|bound| format!("{words} {bound}"));
    let bounds: Vec<String> =
        [bound("at least", query.min), bound("at most", query.max)].into_iter().flatten().collect();
    let expected = query.expect.as_ref().map_or_else(|| bounds.join(" and "), shown);
    let target = match target(targets, &query.source, rehearsal) {
        Ok(target) => target,
        Err(absent) => return absent.of(&query.source, check),
    };
    let mut rows: Vec<Row> = Vec::new();
    let cx = rehearsal.context(&query.source, &rehearsal.engine.cancel);
    let asked = target.scratch.query(&cx, &query.query, query.timeout.duration(), &mut |row| {
        rows.push(row);
        if rows.len() > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if let Err(error) = asked {
        return query_failed(check, &expected, &error);
    }
    let value = match rows.as_slice() {
        [] => return check.judged(false, expected, "no row"),
        [row] => match row.0.as_slice() {
            [(_, value)] => value.clone(),
            several => {
                return check.judged(
                    false,
                    expected,
                    format!("{} columns, where one is compared", several.len()),
                );
            }
        },
        _ => return check.judged(false, expected, "several rows, where one is compared"),
    };
    let holds = match &query.expect {
        Some(expected) => is_equal(expected, &value),
        None => number(&value).is_some_and(|number| {
            query.min.is_none_or(|min| number >= min) && query.max.is_none_or(|max| number <= max)
        }),
    };
    check.judged(holds, expected, shown(&value))
}

/// The number that a value is; a database may write a large one as text.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// Whether a database gave what is expected. SQLite has no truth values: 1 is true there.
fn is_equal(expected: &Value, found: &Value) -> bool {
    match (expected, found) {
        (Value::Bool(expected), Value::Number(found)) => {
            found.as_i64() == Some(i64::from(*expected))
        }
        (Value::Number(expected), found) => {
            let integers = expected
                .as_i64()
                .zip(found.as_i64().or_else(|| found.as_str()?.trim().parse().ok()));
            match integers {
                Some((expected, found)) => expected == found,
                None => expected
                    .as_f64()
                    .zip(number(found))
                    .is_some_and(|(expected, found)| expected == found),
            }
        }
        (expected, found) => expected == found,
    }
}

fn references(rehearsal: &Rehearsal, references: &ReferencesCheck, targets: &mut Targets) -> Check {
    let what = references.name.clone().unwrap_or_else(|| {
        format!(
            "files in `{}` that are named by: {}",
            references.files,
            in_one_line(&references.query)
        )
    });
    let check = Check::new("references", Some(&references.source), what);
    let files = match target(targets, &references.files, rehearsal) {
        Ok(target) => target.folder.clone(),
        Err(absent) => return absent.of(&references.files, check),
    };
    let Some(files) = files else {
        return check.ended(
            CheckOutcome::Inconclusive,
            format!("`{}` is no folder of files", references.files),
        );
    };
    let target = match target(targets, &references.source, rehearsal) {
        Ok(target) => target,
        Err(absent) => return absent.of(&references.source, check),
    };
    let root = match openat(
        CWD,
        &files,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(root) => root,
        Err(error) => {
            return check
                .ended(CheckOutcome::Inconclusive, format!("`{}`: {error}", files.display()));
        }
    };
    let mut tally = Tally {
        root,
        references,
        named: 0,
        absent: 0,
        wrong: 0,
        told: Vec::new(),
        buffer: vec![0; 256 << 10],
    };
    let cx = rehearsal.context(&references.source, &rehearsal.engine.cancel);
    let cancel = rehearsal.engine.cancel.clone();
    let asked =
        target.scratch.query(&cx, &references.query, references.timeout.duration(), &mut |row| {
            tally.take(&row);
            if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    if let Err(error) = asked {
        return query_failed(check, "files by name", &error);
    }
    if tally.named == 0 {
        return check.ended(CheckOutcome::Skipped, "the query names no file");
    }
    let found = match tally.absent {
        0 => format!("{}", tally.named - tally.wrong),
        absent => format!("{}, {absent} of them absent as they may be", tally.named - tally.wrong),
    };
    check
        .judged(tally.wrong == 0, format!("{} files as they are named", tally.named), found)
        .detailed(tally.told, tally.wrong)
}

/// The files that were looked for.
struct Tally<'a> {
    root: OwnedFd,
    references: &'a ReferencesCheck,
    named: u64,
    absent: u64,
    wrong: u64,
    told: Vec<String>,
    buffer: Vec<u8>,
}

impl Tally<'_> {
    fn take(&mut self, row: &Row) {
        self.named += 1;
        if let Err(problem) = self.look(row) {
            self.wrong += 1;
            if self.told.len() < TOLD_DIFFERENCES {
                self.told.push(problem);
            }
        }
    }

    fn look(&mut self, row: &Row) -> Result<(), String> {
        let named = match row.get("path") {
            Some(Value::String(path)) if !path.is_empty() => path,
            Some(Value::Null | Value::String(_)) => {
                return Err("a row names no file: its path is empty".to_owned());
            }
            Some(other) => return Err(format!("a row has the path {other}, which is no text")),
            None => return Err("the query has no column `path`".to_owned()),
        };
        let words = |problem: &str| format!("`{}` {problem}", named.escape_debug());
        let path = match &self.references.prefix {
            Some(prefix) => format!("{}/{named}", prefix.trim_end_matches('/')),
            None => named.clone(),
        };
        let path = path.trim_start_matches('/');
        if Path::new(path).components().any(|part| part == Component::ParentDir) {
            return Err(words("leads out of the folder"));
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::BENEATH);
        let file = match opened {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                if may_be_absent(&self.references.may_be_absent, named) {
                    self.absent += 1;
                    return Ok(());
                }
                return Err(words("is missing"));
            }
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(words("is a link that leads out of the folder"));
            }
            Err(error) => return Err(words(&format!("cannot be read: {error}"))),
        };
        let metadata =
            file.metadata().map_err(|error| words(&format!("cannot be looked at: {error}")))?;
        if !metadata.is_file() {
            return Err(words("is no file"));
        }
        match row.get("size") {
            None | Some(Value::Null) => {}
            Some(size) => {
                let wanted = number(size)
                    .ok_or_else(|| words(&format!("has the size {size}, which is no number")))?;
                if metadata.len() as f64 != wanted {
                    return Err(words(&format!(
                        "has {} bytes, and {} are named",
                        metadata.len(),
                        shown(size)
                    )));
                }
            }
        }
        match row.get("sha256") {
            None | Some(Value::Null) => Ok(()),
            Some(wanted) => {
                let text = wanted.as_str().unwrap_or_default().to_ascii_lowercase();
                let digits = text.trim_start_matches("\\x").trim_start_matches("sha256:");
                let wanted: Digest = format!("sha256:{digits}")
                    .parse()
                    .map_err(|_| words(&format!("has the digest {wanted}, which is no SHA-256")))?;
                let found = digest(&file, &mut self.buffer)
                    .map_err(|error| words(&format!("cannot be read: {error}")))?;
                if found == wanted {
                    Ok(())
                } else {
                    Err(words(&format!("has the digest {found}, and {wanted} is named")))
                }
            }
        }
    }
}

fn may_be_absent(patterns: &[Pattern], path: &str) -> bool {
    patterns.iter().any(|pattern| pattern.covers(path.as_bytes()))
}

fn digest(mut file: &std::fs::File, buffer: &mut [u8]) -> std::io::Result<Digest> {
    use std::io::Read as _;
    let mut digester = Digester::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(digester.finish()),
            Ok(count) => digester.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn file(rehearsal: &Rehearsal, file: &FileCheck, targets: &mut Targets) -> Check {
    use std::io::Read as _;
    let check = Check::new(
        "file",
        Some(&file.source),
        file.name.clone().unwrap_or_else(|| format!("`{}`", file.path)),
    );
    let mut expected = vec!["a file".to_owned()];
    expected.extend(file.not_empty.then(|| "not empty".to_owned()));
    expected.extend(file.parses.map(|parses| match parses {
        Parses::Json => "that is JSON".to_owned(),
        Parses::Toml => "that is TOML".to_owned(),
    }));
    expected.extend(file.contains.as_ref().map(|text| format!("with `{text}` in it")));
    let expected = expected.join(", ");
    let target = match target(targets, &file.source, rehearsal) {
        Ok(target) => target,
        Err(absent) => return absent.of(&file.source, check),
    };
    let Some(folder) = &target.folder else {
        return check
            .ended(CheckOutcome::Inconclusive, format!("`{}` is no folder of files", file.source));
    };
    let root =
        openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = file.path.trim_start_matches('/');
    let opened =
        root.and_then(|root| openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH));
    let opened = match opened {
        Ok(opened) => std::fs::File::from(opened),
        Err(Errno::NOENT | Errno::NOTDIR) => {
            return check.judged(false, expected, "nothing of that name");
        }
        Err(Errno::XDEV | Errno::LOOP) => {
            return check.judged(false, expected, "a link that leads out of the folder");
        }
        Err(error) => return check.judged(false, expected, error.to_string()),
    };
    let size = match opened.metadata() {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) => return check.judged(false, expected, "something that is no file"),
        Err(error) => return check.ended(CheckOutcome::Inconclusive, error.to_string()),
    };
    if file.not_empty && size == 0 {
        return check.judged(false, expected, "an empty file");
    }
    let bytes = format!("{size} bytes");
    if file.parses.is_none() && file.contains.is_none() {
        return check.judged(true, expected, bytes);
    }
    let mut body = Vec::new();
    match opened.take(LARGEST_FILE + 1).read_to_end(&mut body) {
        Ok(_) if body.len() as u64 > LARGEST_FILE => {
            return check.ended(CheckOutcome::Inconclusive, "it is too large to be looked through");
        }
        Ok(_) => {}
        Err(error) => return check.ended(CheckOutcome::Inconclusive, error.to_string()),
    }
    let parsed = match file.parses {
        None => Ok(()),
        Some(Parses::Json) => serde_json::from_slice::<serde::de::IgnoredAny>(&body)
            .map(drop)
            .map_err(|error| format!("not JSON: {error}")),
        Some(Parses::Toml) => std::str::from_utf8(&body)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                text.parse::<toml::Table>().map(drop).map_err(|error| error.message().to_owned())
            })
            .map_err(|error| format!("not TOML: {error}")),
    };
    if let Err(problem) = parsed {
        return check.judged(false, expected, problem);
    }
    if let Some(text) = &file.contains
        && !body.windows(text.len().max(1)).any(|part| part == text.as_bytes())
        && !text.is_empty()
    {
        return check.judged(false, expected, format!("{bytes}, without it"));
    }
    check.judged(true, expected, bytes)
}

fn command(rehearsal: &Rehearsal, command: &CommandCheck, targets: &mut Targets) -> Check {
    let Some((program, args)) = command.command.split_first() else {
        return Check::new("command", None, "an empty command")
            .ended(CheckOutcome::Inconclusive, "nothing to start");
    };
    let check =
        Check::new("command", None, command.name.clone().unwrap_or_else(|| format!("`{program}`")));
    let expected = "exit status 0";
    if let Some((name, _)) = targets.iter().find(|(_, target)| !target.is_whole) {
        return check.ended(CheckOutcome::Inconclusive, format!("`{name}` was not restored"));
    }
    // It has so long, whatever it does meanwhile.
    let (cancel, late) = (Cancel::new(), Arc::new(AtomicBool::new(false)));
    let _chained = rehearsal.engine.cancel.on_cancel({
        let cancel = cancel.clone();
        move || cancel.cancel()
    });
    let timer = rehearsal.runtime.spawn({
        let (cancel, late, limit) = (cancel.clone(), Arc::clone(&late), command.timeout.duration());
        async move {
            tokio::time::sleep(limit).await;
            late.store(true, Ordering::SeqCst);
            cancel.cancel();
        }
    });
    let cx = rehearsal.context(&rehearsal.strategy.name, &cancel);
    let manifest = &rehearsal.manifest;
    let mut call = Call::new(&cx, program, "run a check of the drill")
        .args(args)
        .working_dir(Some(rehearsal.place.folder.clone()))
        .silent_for(Some(command.timeout.duration() + Duration::from_secs(60)))
        .variable("HOLDFAST_INSTANCE", manifest.instance.as_str())
        .variable("HOLDFAST_STRATEGY", manifest.strategy.as_str())
        .variable("HOLDFAST_SNAPSHOT", manifest.id.as_str())
        .variable("HOLDFAST_DRILL", rehearsal.drill.as_str());
    if let Some(password) = &rehearsal.place.config.postgres.password {
        call = call.redact(password);
    }
    for (name, target) in targets.iter() {
        let name = name.as_str().to_ascii_uppercase().replace('-', "_");
        for (what, value) in target.scratch.variables() {
            if what == "URL" {
                call = call.redact(&Secret::new(value.clone()));
            }
            call = call.variable(format!("HOLDFAST_{name}_{what}"), value);
        }
    }
    let ended = call.capture(&cx, LARGEST_OUTPUT);
    timer.abort();
    match ended {
        Ok(_) => {
            let said = cx.heard.take().notes;
            let lines = said.kept().iter().map(ToString::to_string).collect();
            check.judged(true, expected, expected).detailed(lines, said.count())
        }
        Err(_) if late.load(Ordering::SeqCst) => check.ended(
            CheckOutcome::Inconclusive,
            format!("it took longer than {}", Span::from(command.timeout.duration())),
        ),
        Err(SourceError::Process(ProcessError::Exit { status, said, .. })) => {
            let lines: Vec<String> = said
                .stderr()
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(str::to_owned)
                .collect();
            let all = lines.len() as u64;
            check.judged(false, expected, format!("exit status {status}")).detailed(lines, all)
        }
        Err(error) => check.ended(CheckOutcome::Inconclusive, chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{is_equal, number};

    #[test]
    fn an_answer_equals_what_is_expected_by_value() {
        for (expected, found) in [
            (json!(true), json!(true)),
            (json!(true), json!(1)),
            (json!(false), json!(0)),
            (json!(5), json!(5)),
            (json!(5), json!(5.0)),
            (json!(5), json!("5")),
            (json!(9_007_199_254_740_993_i64), json!(9_007_199_254_740_993_i64)),
            (json!("a"), json!("a")),
        ] {
            assert!(is_equal(&expected, &found), "{expected} {found}");
        }
        for (expected, found) in [
            (json!(true), json!(0)),
            (json!(true), json!(null)),
            (json!(9_007_199_254_740_993_i64), json!(9_007_199_254_740_992_i64)),
            (json!("5"), json!(5)),
            (json!(0), json!(null)),
        ] {
            assert!(!is_equal(&expected, &found), "{expected} {found}");
        }
        assert_eq!(number(&json!("12.5")), Some(12.5));
        assert_eq!(number(&json!(null)), None);
    }
}
