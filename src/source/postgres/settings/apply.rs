//! Settings are given to a database that was restored, as far as the role may; a drill tries the
//! same and takes it back.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};

use super::facts::Settings;
use super::statements::{Kind, Statement, needed};
use crate::model::{Check, CheckOutcome, Name, Remarks};
use crate::source::SourceError;
use crate::source::postgres::address::Address;

/// How often: who owns the database after the first time may have lost privileges by that.
const TIMES: usize = 2;

/// SQL that a restore did not run, for somebody who may.
#[derive(Clone, Serialize)]
pub struct LeftStatement {
    /// Complete, without the `;`. It may hold a secret.
    pub sql: String,
    /// Why it was not run, or what the server said.
    pub reason: String,
}

impl std::fmt::Debug for LeftStatement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LeftStatement(***)")
    }
}

/// What came of it.
#[derive(Default)]
pub(in crate::source::postgres) struct Applied {
    pub(in crate::source::postgres) left: Vec<LeftStatement>,
    pub(in crate::source::postgres) remarks: Remarks,
}

/// Statements that were tried, and those that the database still lacks.
struct Tried {
    found: Settings,
    all: Vec<Statement>,
    still: Vec<Statement>,
    roles: HashSet<String>,
    /// What the server said, by SQL.
    refused: BTreeMap<String, String>,
}

/// Gives `database`, which is called so by now, the settings of the dumped one. The session is at
/// `address`, and nobody need connect to the database after this.
pub(in crate::source::postgres) async fn apply(
    address: &Address,
    database: &str,
    wanted: &Settings,
    no_owner: bool,
) -> Applied {
    let run = |statement: &Statement| match statement.kind {
        Kind::Preload => false,
        Kind::Ownership => !no_owner,
        Kind::Parameter | Kind::Comment | Kind::Other => true,
    };
    let mut applied = Applied::default();
    let attempt = "restore the settings of the database";
    let trying = async {
        let mut connection = address.connect().await?;
        let tried = attempt_all(&mut connection, database, wanted, run, "COMMIT").await;
        tried.map_err(|error| address.failed(attempt, &error))
    };
    let tried = match address.within(attempt, trying).await {
        Ok(tried) => tried,
        Err(error) => {
            applied.remarks.warn(error.to_string());
            let all = needed(wanted, &Settings::default(), database);
            let reason = "the settings could not be restored".to_owned();
            applied.left = all
                .into_iter()
                .filter(|statement| run(statement) || statement.kind == Kind::Preload)
                .map(|statement| LeftStatement { sql: statement.sql, reason: reason.clone() })
                .collect();
            return applied;
        }
    };
    wanted.note_differences(&tried.found, &mut applied.remarks);
    for statement in tried.still {
        let missing = statement.role.as_ref().filter(|role| !tried.roles.contains(*role));
        let Statement { title, sql, kind, .. } = &statement;
        if kind == &Kind::Ownership && no_owner {
            applied.remarks.note(format!("Not restored, as was asked: `{title}`"));
        } else if let Some(role) = missing {
            applied
                .remarks
                .note(format!("Not restored, as there is no role `{role}` here: `{title}`"));
        } else {
            let reason = if kind == &Kind::Preload {
                "code that the server loads is not chosen by a backup".to_owned()
            } else {
                let said = tried.refused.get(sql).cloned();
                said.unwrap_or_else(|| "the server took it, and has another value".to_owned())
            };
            applied.left.push(LeftStatement { sql: sql.clone(), reason });
        }
    }
    if !applied.left.is_empty() {
        applied.remarks.warn(format!(
            "{} settings of the database were not restored: a role that may has to run the \
             statements",
            applied.left.len()
        ));
    }
    applied
}

/// Tries the same in a transaction that is rolled back, and compares what the server took. Nothing
/// of it is there for a session that comes later.
pub(in crate::source::postgres) async fn rehearse(
    source: &Name,
    address: &Address,
    database: &str,
    wanted: &Settings,
) -> Result<Vec<Check>, SourceError> {
    // A drill owns its database, and its comment there is for the next drill.
    let run = |statement: &Statement| matches!(statement.kind, Kind::Parameter | Kind::Other);
    let attempt = "try the settings of the database";
    let trying = async {
        let mut connection = address.connect().await?;
        let tried = attempt_all(&mut connection, database, wanted, run, "ROLLBACK").await;
        tried.map_err(|error| address.failed(attempt, &error))
    };
    let tried = address.within(attempt, trying).await?;
    let was_taken = |statement: &&Statement| {
        let missing = statement.role.as_ref().is_some_and(|role| !tried.roles.contains(role));
        run(statement) && !missing && !tried.refused.contains_key(&statement.sql)
    };
    let taken = tried.all.iter().filter(was_taken).count();
    let differing: Vec<String> =
        tried.still.iter().filter(was_taken).map(|statement| statement.title.clone()).collect();
    let others: Vec<String> = tried
        .all
        .iter()
        .filter(|statement| !matches!(statement.kind, Kind::Comment | Kind::Ownership))
        .filter(|statement| !was_taken(statement))
        .map(|statement| statement.title.clone())
        .collect();
    let mut checks = Vec::new();
    if taken > 0 {
        let all = differing.len();
        checks.push(
            Check::new("settings", Some(source), "settings of the database")
                .compared(taken, taken.saturating_sub(all))
                .detailed(differing, all as u64),
        );
    }
    if !others.is_empty() {
        let all = others.len() as u64;
        let reason = "a drill does not load code for the source, and its role may not set them all";
        checks.push(
            Check::new("settings", Some(source), "other settings of the database")
                .ended(CheckOutcome::Skipped, reason)
                .detailed(others, all),
        );
    }
    Ok(checks)
}

/// Runs what is needed and wanted, each statement by itself, in one transaction that ends as
/// `end` says.
async fn attempt_all(
    connection: &mut PgConnection,
    database: &str,
    wanted: &Settings,
    run: impl Fn(&Statement) -> bool,
    end: &'static str,
) -> Result<Tried, sqlx::Error> {
    for sql in ["BEGIN READ WRITE", "SET LOCAL search_path = pg_catalog"] {
        sqlx::raw_sql(sql).execute(&mut *connection).await?;
    }
    let found = Settings::read(connection, database).await?;
    let all = needed(wanted, &found, database);
    let named: Vec<String> = all.iter().filter_map(|it| it.role.clone()).collect();
    let roles =
        sqlx::query_scalar("SELECT rolname::text FROM pg_roles WHERE rolname::text = ANY ($1)")
            .bind(named)
            .persistent(false)
            .fetch_all(&mut *connection)
            .await?;
    let mut tried = Tried {
        found,
        still: all.clone(),
        all,
        roles: roles.into_iter().collect(),
        refused: BTreeMap::new(),
    };
    for _ in 0..TIMES {
        for statement in tried.still.iter().filter(|statement| run(statement)) {
            if statement.role.as_ref().is_some_and(|role| !tried.roles.contains(role)) {
                continue;
            }
            match one(connection, &statement.sql).await? {
                Ok(()) => {
                    tried.refused.remove(&statement.sql);
                }
                Err(said) => {
                    tried.refused.insert(statement.sql.clone(), said);
                }
            }
        }
        let now = Settings::read(connection, database).await?;
        tried.still = needed(wanted, &now, database);
        if !tried.still.iter().any(|it| run(it) && !tried.refused.contains_key(&it.sql)) {
            break;
        }
    }
    sqlx::raw_sql(end).execute(&mut *connection).await?;
    Ok(tried)
}

/// One statement; what the server said against it.
async fn one(connection: &mut PgConnection, sql: &str) -> Result<Result<(), String>, sqlx::Error> {
    sqlx::raw_sql("SAVEPOINT setting").execute(&mut *connection).await?;
    match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await {
        Ok(_) => {
            sqlx::raw_sql("RELEASE setting").execute(connection).await?;
            Ok(Ok(()))
        }
        Err(sqlx::Error::Database(said)) => {
            sqlx::raw_sql("ROLLBACK TO setting").execute(connection).await?;
            Ok(Err(format!("{} ({})", said.message(), said.code().unwrap_or_default())))
        }
        Err(error) => Err(error),
    }
}
