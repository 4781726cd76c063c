//! A restored database file in a private folder.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, Column as _, Row as _, TypeInfo as _, ValueRef as _};

use super::super::scratch::{Each, Row, Scratch, ScratchPlace};
use super::super::{Context, RestoreArtifact, SourceError, Streams, Target};
use super::target::place;
use super::{BUSY_TIMEOUT, Fault, RowCounts, SQLITE_ERROR, Session, primary_code, quoted, wait};
use crate::model::{Check, CheckOutcome, Name, Remarks, TOLD_DIFFERENCES};

/// Instructions of SQLite between two looks at the clock.
const INSTRUCTIONS: i32 = 10_000;

/// A database that a drill restored.
pub(super) struct ScratchDatabase {
    name: Name,
    folder: PathBuf,
    /// Known once it was looked at.
    file: Option<PathBuf>,
}

impl ScratchDatabase {
    pub(super) fn new(name: &Name, scratch: &ScratchPlace) -> Self {
        Self { name: name.clone(), folder: scratch.folder.join(name.as_str()), file: None }
    }

    fn file(&self) -> Result<&PathBuf, SourceError> {
        let missing =
            || SourceError::Unsuitable(format!("The database of `{}` was not restored", self.name));
        self.file.as_ref().ok_or_else(missing)
    }
}

impl Scratch for ScratchDatabase {
    fn target(&self, _artifact: &RestoreArtifact) -> Result<Target, String> {
        Ok(Target::Folder(self.folder.clone()))
    }

    fn inspect(
        &mut self,
        cx: &Context,
        artifact: &RestoreArtifact,
        _streams: &dyn Streams,
    ) -> Result<Vec<Check>, SourceError> {
        let target = Target::Folder(self.folder.clone());
        let file = self.file.insert(place(cx, artifact, &target)?);
        // Nobody else has the file, so no lock and nothing beside it is needed.
        let mut session =
            Session::open(cx, file, BUSY_TIMEOUT, SqliteConnectOptions::new().immutable(true))?;
        let mut checks = vec![integrity(&mut session, &self.name)?];
        let counted = artifact
            .facts
            .get("tables")
            .and_then(Value::as_array)
            .is_some_and(|tables| tables.iter().any(|table| table.get("rows").is_some()));
        let mut remarks = Remarks::default();
        let found =
            session.facts(if counted { RowCounts::Exact } else { RowCounts::Off }, &mut remarks)?;
        let uncounted: Vec<String> =
            remarks.warnings.kept().iter().map(|warning| warning.note.reason.clone()).collect();
        checks.extend(rows(&self.name, &artifact.facts, &found, &uncounted));
        for what in ["indexes", "triggers", "views", "user_version", "application_id"] {
            let Some(expected) = artifact.facts.get(what) else { continue };
            let found = found.get(what).unwrap_or(&Value::Null);
            let check = Check::new("counts", Some(&self.name), what.replace('_', " "));
            checks.push(match (expected.as_array(), found.as_array()) {
                (Some(expected), Some(found)) => {
                    let missing: Vec<String> = expected
                        .iter()
                        .filter(|one| !found.contains(one))
                        .map(|one| format!("{one} is missing"))
                        .chain(
                            found
                                .iter()
                                .filter(|one| !expected.contains(one))
                                .map(|one| format!("{one} was not there")),
                        )
                        .collect();
                    let all = missing.len() as u64;
                    let (expected, found) = (expected.len().to_string(), found.len().to_string());
                    check.judged(all == 0, expected, found).detailed(missing, all)
                }
                _ => check.compared(expected, found),
            });
        }
        Ok(checks)
    }

    fn is_to_blame(&mut self, _cx: &Context, error: &SourceError) -> bool {
        // What SQLite says of a file that arrived whole is about the file.
        let about_the_file = matches!(error, SourceError::Database { transient: false, .. });
        !about_the_file && !matches!(error, SourceError::Damaged(_) | SourceError::Stream(_))
    }

    fn query(
        &mut self,
        cx: &Context,
        query: &str,
        timeout: Duration,
        each: &mut Each<'_>,
    ) -> Result<(), SourceError> {
        let attempt = "ask the restored database";
        let file = self.file()?;
        let mut session =
            Session::open(cx, file, BUSY_TIMEOUT, SqliteConnectOptions::new().immutable(true))?;
        let (deadline, cancel) = (Instant::now() + timeout, cx.cancel.clone());
        wait(cx, session.connection.lock_handle())
            .map_err(|error| super::explain(error, attempt, file, BUSY_TIMEOUT))?
            .set_progress_handler(INSTRUCTIONS, move || {
                !cancel.is_cancelled() && Instant::now() < deadline
            });
        let failed = |error: Fault| match super::explain(error, attempt, file, BUSY_TIMEOUT) {
            // No query: that says nothing about what is asked.
            SourceError::Database { problem, .. } if problem.contains("syntax error") => {
                SourceError::Unsuitable(format!("The query cannot be asked: {problem}"))
            }
            SourceError::Database { attempt, target, .. } if Instant::now() >= deadline => {
                let problem = format!("it took longer than {}", crate::model::Span::from(timeout));
                SourceError::Database { attempt, target, problem, transient: true }
            }
            error => error,
        };
        // A query within another can be one statement only, and one that reads.
        let sql = format!("SELECT * FROM (\n{}\n)", query.trim().trim_end_matches(';'));
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut session.connection);
        while let Some(row) = wait(cx, rows.try_next()).map_err(failed)? {
            let row = json_row(&row).map_err(|error| failed(error.into()))?;
            if each(row).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        self.file.iter().map(|file| ("PATH", file.display().to_string())).collect()
    }

    fn description(&self) -> String {
        format!("an SQLite database in `{}`", self.folder.display())
    }

    fn keep(&mut self, _: &Context) -> Result<String, SourceError> {
        Ok(format!("rm -r {}", self.folder.display()))
    }
}

/// Lets SQLite look through all of the file.
fn integrity(session: &mut Session<'_>, name: &Name) -> Result<Check, SourceError> {
    let check = Check::new("integrity", Some(name), "`PRAGMA integrity_check`");
    match session.try_texts("PRAGMA integrity_check(100)") {
        Ok(lines) if lines.iter().all(|line| line == "ok") => Ok(check.judged(true, "ok", "ok")),
        Ok(lines) => {
            let all = lines.len() as u64;
            Ok(check.judged(false, "ok", format!("{all} problems")).detailed(lines, all))
        }
        // A collation or function that only its application has.
        Err(Fault::Sqlx(error)) if primary_code(&error) == Some(SQLITE_ERROR) => Ok(check
            .ended(CheckOutcome::Skipped, format!("SQLite could not check all of it: {error}"))),
        Err(error) => Err(session.explain(error, "check the integrity")),
    }
}

/// The rows of each table, and the tables.
fn rows(source: &Name, facts: &Value, found: &Value, uncounted: &[String]) -> Vec<Check> {
    let tables =
        |value: &Value| value.get("tables").and_then(Value::as_array).cloned().unwrap_or_default();
    let (dumped, there) = (tables(facts), tables(found));
    let name =
        |table: &Value| table.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut checks = Vec::new();
    for table in &dumped {
        let check = Check::new("rows", Some(source), format!("rows of {}", quoted(&name(table))));
        let found = there.iter().find(|one| name(one) == name(table));
        let rows = |table: &Value| table.get("rows").and_then(Value::as_i64);
        checks.push(match (rows(table), found) {
            (rows, None) => check.judged(
                false,
                rows.map_or("the table".to_owned(), |rows| rows.to_string()),
                "no such table",
            ),
            (None, Some(_)) => check.ended(
                CheckOutcome::Skipped,
                "its rows were not counted when the snapshot was taken",
            ),
            (Some(expected), Some(found)) => match rows(found) {
                Some(found) => check.compared(expected, found),
                None => check.ended(CheckOutcome::Inconclusive, uncounted.join("; ")),
            },
        });
    }
    let extra: Vec<String> = there
        .iter()
        .filter(|one| !dumped.iter().any(|table| name(table) == name(one)))
        .map(|one| format!("{} was not there", quoted(&name(one))))
        .take(TOLD_DIFFERENCES)
        .collect();
    let all = extra.len() as u64;
    checks.push(
        Check::new("counts", Some(source), "tables")
            .compared(dumped.len(), there.len())
            .detailed(extra, all),
    );
    checks
}

/// A row as JSON, by the types that SQLite gives its values. Bytes are hexadecimal digits after
/// `\x`.
fn json_row(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let mut answer = Row::default();
    for column in row.columns() {
        let raw = row.try_get_raw(column.ordinal())?;
        let value = match raw.type_info().name() {
            _ if raw.is_null() => Value::Null,
            "INTEGER" => json!(row.try_get_unchecked::<i64, _>(column.ordinal())?),
            "REAL" => json!(row.try_get_unchecked::<f64, _>(column.ordinal())?),
            "BLOB" => json!(format!(
                "\\x{}",
                hex::encode(row.try_get_unchecked::<Vec<u8>, _>(column.ordinal())?)
            )),
            _ => json!(row.try_get_unchecked::<String, _>(column.ordinal())?),
        };
        answer.0.push((column.name().to_owned(), value));
    }
    Ok(answer)
}
