//! Whether there is much less than in the last good snapshot. What disappears from a system
//! restores as well as what is there.

use crate::config::{DrillCheck, Instance, Measure, ShrinkCheck, Strategy};
use crate::engine::context::Engine;
use crate::engine::drill::subject::Subject;
use crate::engine::error::{EngineError, chain};
use crate::engine::read::fetch::read_facts;
use crate::engine::snapshots::decisions::marks_for;
use crate::engine::snapshots::list::Snapshot;
use crate::engine::snapshots::marks::Marks;
use crate::model::{
    ByteSize, Check, CheckOutcome, Facts, Manifest, Name, SnapshotId, Verdict, rows,
};
use crate::pipeline::Identity;

/// Makes the checks of the strategy's drill that compare with an earlier snapshot.
pub(in crate::engine) async fn checks(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    subject: &Subject,
    facts: &Facts,
    identities: &[Identity],
) -> Result<Vec<Check>, EngineError> {
    let wanted: Vec<&ShrinkCheck> = strategy
        .drill
        .checks
        .iter()
        .filter_map(|check| match check {
            DrillCheck::Shrink(shrink) => Some(shrink),
            _ => None,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let marks = marks_for(engine, instance, strategy, &subject.storage).await;
    let all = |outcome: CheckOutcome, reason: &str| -> Vec<Check> {
        wanted
            .iter()
            .map(|check| empty(check, check.source.as_ref()).ended(outcome, reason))
            .collect()
    };
    let of_subject = |(storage, _): &&(Name, String)| *storage == subject.storage.name;
    if let Some((_, problem)) = marks.unread().iter().find(of_subject) {
        return Ok(all(
            CheckOutcome::Inconclusive,
            &format!("the marks of the snapshots cannot be read: {problem}"),
        ));
    }
    if marks.is_released(&strategy.name, &subject.manifest.id) {
        return Ok(all(CheckOutcome::Skipped, "somebody looked at it and released it"));
    }
    let Some(before) = baseline(subject, &marks) else {
        return Ok(all(CheckOutcome::Skipped, "there is no earlier snapshot to compare with"));
    };
    let Ok(manifest) = &before.manifest else { return Ok(Vec::new()) };
    let earlier = match read_facts(engine, &subject.storage, manifest, identities).await {
        Ok(Some(earlier)) => earlier,
        Ok(None) => {
            return Ok(all(
                CheckOutcome::Inconclusive,
                &format!("`{}` is encrypted for others", before.id),
            ));
        }
        Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
        Err(error) => return Ok(all(CheckOutcome::Inconclusive, &chain(&error))),
    };
    let then = Then { id: &before.id, manifest, facts: &earlier };
    Ok(wanted.iter().flat_map(|check| compare(check, &then, &subject.manifest, facts)).collect())
}

fn empty(check: &ShrinkCheck, source: Option<&Name>) -> Check {
    Check::new(
        "shrink",
        source,
        check.name.as_deref().unwrap_or("no less than in the last good snapshot"),
    )
}

/// The last good snapshot before this one: the newest that passed a drill, or was released; where
/// none did, the newest whole one that no drill found bad.
fn baseline<'a>(subject: &'a Subject, marks: &Marks) -> Option<&'a Snapshot> {
    let id = &subject.manifest.id;
    let older: Vec<&Snapshot> = subject
        .others
        .iter()
        .filter(|one| one.id < *id && one.is_whole() && !one.is_future)
        .filter(|one| !marks.is_suspect(&one.strategy, &one.id))
        .collect();
    let verdict =
        |one: &Snapshot| marks.drilled(&one.strategy, &one.id).map(|drilled| drilled.verdict);
    let good = |one: &&&Snapshot| {
        verdict(one) == Some(Verdict::Passed) || marks.is_released(&one.strategy, &one.id)
    };
    let not_bad = |one: &&&Snapshot| verdict(one) != Some(Verdict::Failed);
    let newest = |found: Option<&&'a Snapshot>| found.copied();
    newest(older.iter().filter(good).max_by_key(|one| &one.id))
        .or_else(|| newest(older.iter().filter(not_bad).max_by_key(|one| &one.id)))
}

/// The snapshot that is compared with.
struct Then<'a> {
    id: &'a SnapshotId,
    manifest: &'a Manifest,
    facts: &'a Facts,
}

fn compare(check: &ShrinkCheck, then: &Then<'_>, manifest: &Manifest, facts: &Facts) -> Vec<Check> {
    let sources: Vec<Name> = match &check.source {
        Some(source) => vec![source.clone()],
        None => then.facts.sources.iter().map(|source| source.name.clone()).collect(),
    };
    let mut made = Vec::new();
    for source in &sources {
        let mut one = |what: String, before: Option<u128>, now: Option<u128>, is_bytes: bool| {
            let Some(before) = before else { return };
            let words = |number: u128| {
                let size = || ByteSize(u64::try_from(number).unwrap_or(u64::MAX));
                if is_bytes { size().to_string() } else { number.to_string() }
            };
            let least = before * u128::from(100 - check.percent.min(100));
            let now = now.unwrap_or(0);
            let holds = now * 100 >= least;
            let name =
                check.name.as_ref().map_or_else(|| what.clone(), |name| format!("{name}: {what}"));
            let check = Check {
                what: format!("{name}, against {}", then.id),
                ..empty(check, Some(source))
            };
            let expected = match least.is_multiple_of(100) {
                _ if is_bytes => format!("at least {}", words(least / 100)),
                true => format!("at least {}", least / 100),
                false => format!("at least {}", least / 100 + 1),
            };
            made.push(check.judged(holds, expected, words(now)));
        };
        if !check.tables.is_empty() {
            for table in &check.tables {
                let before = table_rows(then.facts, source, table);
                one(format!("rows of {table}"), before, table_rows(facts, source, table), false);
            }
            continue;
        }
        let measures = if check.of.is_empty() {
            vec![Measure::Rows, Measure::Bytes, Measure::Files]
        } else {
            check.of.clone()
        };
        for measure in measures {
            let (what, before, now) = match measure {
                Measure::Rows => ("rows", then.facts.rows_of(source), facts.rows_of(source)),
                Measure::Files => ("files", files(then.facts, source), files(facts, source)),
                Measure::Bytes => (
                    "bytes",
                    bytes(then.facts, then.manifest, source),
                    bytes(facts, manifest, source),
                ),
            };
            one(what.to_owned(), before, now, measure == Measure::Bytes);
        }
    }
    if made.is_empty() {
        let nothing = empty(check, check.source.as_ref());
        made.push(nothing.ended(
            CheckOutcome::Skipped,
            format!("`{}` has nothing of what is compared", then.id),
        ));
    }
    made
}

/// The rows of the tables of that name, `name` or `schema.name`.
fn table_rows(facts: &Facts, source: &Name, wanted: &str) -> Option<u128> {
    let text = |table: &serde_json::Value, key: &str| {
        table.get(key).and_then(serde_json::Value::as_str).map(str::to_owned)
    };
    let is_meant = |table: &&serde_json::Value| -> bool {
        let Some(name) = text(table, "name") else { return false };
        name == wanted
            || text(table, "schema").is_some_and(|schema| format!("{schema}.{name}") == wanted)
    };
    let mut meant = facts.tables_of(source)?.into_iter().filter(is_meant).peekable();
    meant.peek()?;
    meant.map(rows).sum()
}

fn files(facts: &Facts, source: &Name) -> Option<u128> {
    let mut counts = facts
        .objects_of(source)
        .filter_map(|(_, object)| object.get("files")?.as_u64().map(u128::from))
        .peekable();
    counts.peek()?;
    Some(counts.sum())
}

/// The plain bytes of what was dumped of the source.
fn bytes(facts: &Facts, manifest: &Manifest, source: &Name) -> Option<u128> {
    let dumped = manifest
        .artifacts
        .iter()
        .filter(|artifact| artifact.source.as_ref() == Some(source) && artifact.kind.is_main());
    let bytes = dumped
        .map(|artifact| facts.artifact(&artifact.name).map(|known| u128::from(known.plain_bytes)));
    bytes.sum()
}
