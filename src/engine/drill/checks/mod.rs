//! The checks that an operator writes.

mod files;

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::Value;

use crate::config::{CommandCheck, DrillCheck, QueryCheck};
use crate::engine::drill::targets::{Rehearsal, Restored, Targets};
use crate::engine::error::{EngineError, chain};
use crate::model::{Cancel, Check, CheckOutcome, Name, Secret, Span, without_credentials};
use crate::source::SourceError;
use crate::source::process::{Call, ProcessError};
use crate::source::scratch::Row;

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
        DrillCheck::References(references) => files::references(rehearsal, references, targets),
        DrillCheck::File(file) => files::file(rehearsal, file, targets),
        DrillCheck::Command(command) => self::command(rehearsal, command, targets),
        DrillCheck::Shrink(_) => return Ok(Vec::new()),
    };
    rehearsal.ensure_going()?;
    let mut all = vec![made];
    if check.owner().is_some() && !rustix::process::geteuid().is_root() {
        let what = all.first().map(|made| made.what.clone()).unwrap_or_default();
        all.push(Check::new(check.kind(), check.source(), format!("owner of {what}")).ended(
            CheckOutcome::Skipped,
            "only root can give files to their owners, and the drill does not run as root",
        ));
    }
    Ok(all)
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
    let watched = watched(targets);
    let ended = call.capture(&cx, LARGEST_OUTPUT);
    timer.abort();
    match ended {
        Ok(_) => {
            for name in watched.into_iter().filter(was_read).map(|(name, _)| name) {
                if let Some(target) = targets.get_mut(&name) {
                    target.looked_at = true;
                }
            }
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

/// The outputs of commands that were restored, watched for whoever reads them. One that cannot be
/// watched counts as not read.
fn watched(targets: &Targets) -> Vec<(Name, OwnedFd)> {
    let watch = |file: PathBuf| {
        let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&events, file, WatchFlags::ACCESS)?;
        Ok::<_, rustix::io::Errno>(events)
    };
    let output = |name: &Name, target: &Restored| {
        target.folder.as_ref().map(|folder| folder.join(format!("{name}.out")))
    };
    targets
        .iter()
        .filter_map(|(name, target)| Some((name.clone(), watch(output(name, target)?).ok()?)))
        .collect()
}

fn was_read((_, events): &(Name, OwnedFd)) -> bool {
    rustix::io::read(events, &mut [0; 1024]).is_ok_and(|bytes| bytes > 0)
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
