//! What is in a restored database, held against the facts of the dumped one.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::model::{Check, CheckOutcome, Name};
use crate::source::SourceError;
use crate::source::postgres::address::Address;
use crate::source::postgres::census::{Census, Table, quoted};

/// Whether the schema `public` is there and nothing is in it.
pub(super) async fn public_is_empty(address: &Address) -> Result<bool, SourceError> {
    let sql = "SELECT count(*) = 1 FROM pg_namespace n WHERE nspname = 'public' \
               AND NOT EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = n.oid) \
               AND NOT EXISTS (SELECT 1 FROM pg_proc WHERE pronamespace = n.oid) \
               AND NOT EXISTS (SELECT 1 FROM pg_type WHERE typnamespace = n.oid)";
    let mut connection = address.connect().await?;
    let empty = sqlx::query_scalar(sql).persistent(false).fetch_one(&mut connection).await;
    empty.map_err(|error| address.failed("look into `public`", &error))
}

/// What is in the restored database, held against what was in the dumped one.
pub(super) fn compare(source: &Name, facts: &Value, census: &Census) -> Vec<Check> {
    let mut checks = Vec::new();
    let uncounted: Vec<String> =
        census.remarks.warnings.kept().iter().map(|warning| warning.note.reason.clone()).collect();
    let tables = facts.get("tables").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let restored: HashMap<(&str, &str), &Table> =
        census.tables.iter().map(|one| ((one.schema.as_str(), one.name.as_str()), one)).collect();
    let mut dumped = HashSet::new();
    for table in tables {
        let (schema, name) = (text(table, "schema"), text(table, "name"));
        let check = Check::new(
            "rows",
            Some(source),
            format!("rows of {}.{}", quoted(&schema), quoted(&name)),
        );
        let there = restored.get(&(schema.as_str(), name.as_str())).copied();
        let counted = table.get("rows").and_then(Value::as_i64);
        checks.push(match (counted, there) {
            (Some(rows), None) => check.judged(false, rows.to_string(), "no such table"),
            (None, None) => check.judged(false, "the table", "no such table"),
            (None, Some(_)) => check.ended(
                CheckOutcome::Skipped,
                "its rows were not counted when the snapshot was taken",
            ),
            (Some(rows), Some(found)) => match found.rows {
                Some(found) => check.compared(rows, found),
                None => check.ended(CheckOutcome::Inconclusive, uncounted.join("; ")),
            },
        });
        dumped.insert((schema, name));
    }
    let extra: Vec<String> = census
        .tables
        .iter()
        .filter(|one| !dumped.contains(&(one.schema.clone(), one.name.clone())))
        .map(|one| format!("{}.{} was not there", quoted(&one.schema), quoted(&one.name)))
        .collect();
    // Without those that a dump does not have; older versions did not tell them apart.
    let implied = facts.get("implied").and_then(Value::as_object);
    let explicit = |what: &str, number: &Value, implied: &Map<String, Value>| {
        let number = number.as_i64()?;
        Some(number - implied.get(what).and_then(Value::as_i64).unwrap_or(0))
    };
    if let Some(counts) = facts.get("counts").and_then(Value::as_object) {
        for (what, expected) in counts {
            let check = Check::new("counts", Some(source), what.replace('_', " "));
            checks.push(match census.counts.get(what) {
                Some(found) if what == "tables" => {
                    let all = extra.len() as u64;
                    check.compared(expected, found).detailed(extra.clone(), all)
                }
                Some(found) => {
                    let explicit = implied.and_then(|implied| {
                        let expected = explicit(what, expected, implied)?;
                        Some((expected, explicit(what, found, &census.implied)?))
                    });
                    match explicit {
                        Some((expected, found)) => check.compared(expected, found),
                        None => check.compared(expected, found),
                    }
                }
                None if uncounted.is_empty() => check.ended(
                    CheckOutcome::Skipped,
                    "this version of the program does not count them",
                ),
                None => check.ended(CheckOutcome::Inconclusive, uncounted.join("; ")),
            });
        }
    }
    if let Some(expected) = facts.get("extensions").and_then(Value::as_array) {
        // Their versions are the server's: a newer one brings newer ones.
        let names = |all: &[Value]| {
            let names: Vec<String> = all.iter().map(|one| text(one, "name")).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        checks.push(
            Check::new("extensions", Some(source), "extensions")
                .compared(names(expected), names(&census.extensions)),
        );
    }
    if checks.is_empty() {
        let check = Check::new("rows", Some(source), "what the database contains");
        checks.push(
            check.ended(CheckOutcome::Skipped, "it was not counted when the snapshot was taken"),
        );
    }
    checks
}
