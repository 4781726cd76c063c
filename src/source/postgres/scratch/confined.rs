//! A restore into a cluster that the drill made, where no code of the source's users runs as a
//! superuser.
//!
//! `pg_restore` writes the definitions as SQL, from the head of the dump, and this sends them one
//! by one as a role that is no superuser. Extensions come first, into the empty database. What that
//! role may not do, a superuser does if it is on the list of what evaluates nothing (`allowed`).
//! The rows come in one stream. Then what was made is given to its owners, and event triggers are
//! made last, disabled.

use std::io::{Cursor, Read};

use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, PgConnection};

use super::allowed::{Allowed, allowed, without_privileges};
use super::blame::is_not_the_dumps;
use crate::model::{DatabaseUrl, Remarks};
use crate::source::postgres::address::{Address, dbname_argument};
use crate::source::postgres::block;
use crate::source::postgres::census::{Server, quoted};
use crate::source::postgres::client::Client;
use crate::source::postgres::definitions::{as_text, definitions, head};
use crate::source::postgres::statements::{Statement, Statements, Token};
use crate::source::process::{Call, MemoryFile};
use crate::source::{Context, SourceError};

/// The functions of a language that only a superuser may use can be made, but not called: none of
/// their code runs, and none is looked at.
const TAME_LANGUAGES: &str = "UPDATE pg_catalog.pg_language SET lanpltrusted = true, \
    lanplcallfoid = 0, laninline = 0, lanvalidator = 0 \
    WHERE lanispl AND NOT lanpltrusted";
/// Foreign tables can be made, but not read: no other server is contacted, and no file is opened.
const TAME_WRAPPERS: &str = "SELECT pg_catalog.format('ALTER FOREIGN DATA WRAPPER %I NO HANDLER NO \
    VALIDATOR; GRANT USAGE ON FOREIGN DATA WRAPPER %I TO ', fdwname, fdwname) \
    FROM pg_catalog.pg_foreign_data_wrapper";

/// The two who restore.
pub(in crate::source::postgres) struct Confined<'a> {
    pub(in crate::source::postgres) address: &'a Address,
    pub(in crate::source::postgres) client: &'a Client,
    pub(in crate::source::postgres) server: &'a Server,
    pub(in crate::source::postgres) superuser: &'a DatabaseUrl,
    /// Owners and privileges are not restored.
    pub(in crate::source::postgres) no_owner: bool,
}

/// The sessions, and what is left to be done.
struct Work {
    restorer: PgConnection,
    superuser: PgConnection,
    /// The restorer, as SQL.
    role: String,
    /// Whether the last statement was the superuser's, so that what it made is to be handed over.
    handed: bool,
    /// `ALTER ... OWNER TO `, and to whom.
    owners: Vec<(String, String)>,
    event_triggers: Vec<String>,
    /// Schemas that were made for extensions.
    schemas: Vec<String>,
    /// Materialized views that read other servers.
    unread: u64,
    remarks: Remarks,
}

impl Confined<'_> {
    /// Restores a dump.
    pub(in crate::source::postgres) fn restore(
        &self,
        cx: &Context,
        input: &mut dyn Read,
    ) -> Result<Remarks, SourceError> {
        let (head, before) = head(input, |head| self.definitions(cx, head, "pre-data"))?;
        let after = self.definitions(cx, &head, "post-data")?;
        let superuser = Address::new(self.superuser, None)?;
        let mut work = block(cx, async {
            let opening = async {
                let mut work = Work {
                    restorer: self.address.connect().await?,
                    superuser: superuser.connect().await?,
                    role: quoted(&self.address.user().unwrap_or_default()),
                    handed: false,
                    owners: Vec::new(),
                    event_triggers: Vec::new(),
                    schemas: Vec::new(),
                    unread: 0,
                    remarks: Remarks::default(),
                };
                self.prepare(&mut work).await?;
                Ok(work)
            };
            self.address.within("open the sessions of the restore", opening).await
        })?;
        let before = block(cx, as_text(&mut work.superuser, self.address, before))?;
        block(cx, async {
            for statement in Statements::of(&before) {
                let statement = statement.map_err(|problem| self.cut(&problem))?;
                if statement.begins(&["create", "extension"]) {
                    self.extension(&mut work, &statement).await?;
                }
            }
            self.tame(&mut work).await?;
            self.walk(&mut work, &before).await
        })?;
        drop(before);
        self.rows(cx, head, input)?;
        let after = block(cx, as_text(&mut work.superuser, self.address, after))?;
        block(cx, async {
            self.walk(&mut work, &after).await?;
            self.finish(&mut work).await
        })?;
        if work.unread > 0 {
            work.remarks.note(format!(
                "{} materialized views read foreign tables and were not filled: a drill contacts \
                 no other server",
                work.unread
            ));
        }
        Ok(work.remarks)
    }

    /// The definitions that `pg_restore` writes of a section.
    fn definitions(
        &self,
        cx: &Context,
        head: &[u8],
        section: &str,
    ) -> Result<Vec<u8>, SourceError> {
        let (call, _password) = self.call(cx)?;
        let mut args = vec!["--file=-", "--no-tablespaces", "--no-subscriptions"];
        if self.no_owner {
            args.push("--no-privileges");
        }
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        args.push(format!("--section={section}"));
        definitions(cx, call, head, &args)
    }

    /// The rows, in one stream and one transaction.
    fn rows(&self, cx: &Context, head: Vec<u8>, input: &mut dyn Read) -> Result<(), SourceError> {
        let (call, _password) = self.call(cx)?;
        call.args(["--exit-on-error", "--no-password", "--single-transaction", "--section=data"])
            .args(["--no-owner", "--no-privileges", "--no-tablespaces", "--no-subscriptions"])
            .args([dbname_argument(&self.server.database)])
            .silent_for(None)
            .feed(cx, &mut Cursor::new(head).chain(input))?;
        Ok(())
    }

    fn call(&self, cx: &Context) -> Result<(Call, Option<MemoryFile>), SourceError> {
        self.address.call(
            cx,
            self.client,
            format!("restore into the database `{}`", self.server.database),
        )
    }

    async fn prepare(&self, work: &mut Work) -> Result<(), SourceError> {
        // From here on nothing that a user of the source makes stands in for anything of the
        // server; and the session has its settings, whatever those of the database become.
        for setting in [
            "SET search_path = ''",
            "SET check_function_bodies = off",
            "SET row_security = off",
            "SET statement_timeout = 0",
            "SET lock_timeout = '60s'",
        ] {
            self.superuser_runs(work, setting).await?;
        }
        if self.server.version_num < 150_000 {
            // Since then it belongs to the owner of the database.
            let sql = format!("ALTER SCHEMA public OWNER TO {}", work.role);
            self.superuser_runs(work, &sql).await?;
        }
        Ok(())
    }

    /// `CREATE EXTENSION IF NOT EXISTS name WITH SCHEMA schema`, whose scripts are the server's.
    async fn extension(
        &self,
        work: &mut Work,
        statement: &Statement<'_>,
    ) -> Result<(), SourceError> {
        let found = (2..statement.tokens.len())
            .find(|at| statement.is_word(*at, "schema"))
            .and_then(|at| statement.name(at + 1));
        if let Some(schema) = found.filter(|name| {
            !matches!(*name, "public" | "pg_catalog") && !work.schemas.iter().any(|one| one == name)
        }) {
            let sql = format!("CREATE SCHEMA {} AUTHORIZATION {}", quoted(schema), work.role);
            self.superuser_runs(work, &sql).await?;
            work.schemas.push(schema.to_owned());
        }
        self.superuser_runs(work, statement.text).await
    }

    /// What extensions and superusers made does not run, nor reach anything.
    async fn tame(&self, work: &mut Work) -> Result<(), SourceError> {
        self.superuser_runs(work, TAME_LANGUAGES).await?;
        let wrappers: Vec<String> = sqlx::query_scalar(TAME_WRAPPERS)
            .persistent(false)
            .fetch_all(&mut work.superuser)
            .await
            .map_err(|error| self.failed("list the foreign data wrappers", &error))?;
        for sql in wrappers {
            let sql = format!("{sql}{}", work.role);
            self.superuser_runs(work, &sql).await?;
        }
        Ok(())
    }

    /// Runs definitions, in their order.
    async fn walk(&self, work: &mut Work, script: &str) -> Result<(), SourceError> {
        for statement in Statements::of(script) {
            let statement = statement.map_err(|problem| self.cut(&problem))?;
            self.step(work, &statement).await?;
        }
        Ok(())
    }

    async fn step(&self, work: &mut Work, statement: &Statement<'_>) -> Result<(), SourceError> {
        if statement.begins(&["set", "client_encoding"])
            || statement.begins(&["create", "extension"])
            // Of a privilege that another than the owner gave. Here the owner gives it.
            || statement.begins(&["set", "session", "authorization"])
            || statement.begins(&["reset", "session", "authorization"])
        {
            return Ok(());
        }
        if statement.begins(&["set", "standard_conforming_strings"]) {
            let value = if statement.is_word(3, "off") { "off" } else { "on" };
            self.superuser_runs(work, &format!("SET standard_conforming_strings = {value}"))
                .await?;
        }
        if statement.begins(&["create", "schema"])
            && work.schemas.iter().any(|one| Some(one.as_str()) == statement.name(2))
        {
            return Ok(());
        }
        if statement.begins(&["create", "event", "trigger"]) {
            work.event_triggers.push(statement.text.to_owned());
            return Ok(());
        }
        if statement.begins(&["alter", "event", "trigger"])
            || statement.begins(&["comment", "on", "event", "trigger"])
        {
            return Ok(());
        }
        if let Some((prefix, owner)) = owner(statement) {
            return self.owner(work, prefix, owner).await;
        }
        work.handed = false;
        let is_privilege = statement.begins(&["grant"])
            || statement.begins(&["revoke"])
            || statement.begins(&["alter", "default", "privileges"]);
        let Err(error) = execute(&mut work.restorer, statement.text).await else { return Ok(()) };
        let said = code(&error);
        match &error {
            // On what belongs to the server or an extension, or cannot be the restorer's.
            _ if is_privilege && said == "42501" => Ok(()),
            sqlx::Error::Database(words)
                if statement.begins(&["refresh"]) && reads_elsewhere(words.as_ref(), work) =>
            {
                work.unread += 1;
                Ok(())
            }
            // The state of an aggregate may be `internal` for a superuser only.
            _ if said == "42501" || said == "42P13" => {
                self.privileged(work, statement, error).await
            }
            _ => Err(self.judged(statement, &error)),
        }
    }

    /// What the restorer may not do.
    async fn privileged(
        &self,
        work: &mut Work,
        statement: &Statement<'_>,
        error: sqlx::Error,
    ) -> Result<(), SourceError> {
        if let Some(how) = allowed(statement) {
            let sql = match &how {
                Allowed::Wrapper(name) => format!("CREATE FOREIGN DATA WRAPPER {name}"),
                Allowed::Internal(function) if !self.is_for_all(work, function).await? => {
                    return Err(self.refused(statement, &error));
                }
                _ => statement.text.to_owned(),
            };
            execute(&mut work.superuser, &sql)
                .await
                .map_err(|error| self.judged(statement, &error))?;
            work.handed = true;
            return match how {
                Allowed::Language | Allowed::Wrapper(_) => self.tame(work).await,
                _ => Ok(()),
            };
        }
        if let Some(plain) = without_privileges(statement) {
            return execute(&mut work.restorer, &plain)
                .await
                .map_err(|error| self.judged(statement, &error));
        }
        Err(self.refused(statement, &error))
    }

    /// Whether a function of the server may be called by anybody.
    async fn is_for_all(&self, work: &mut Work, function: &str) -> Result<bool, SourceError> {
        sqlx::query_scalar(
            "SELECT pg_catalog.count(*) > 0 AND pg_catalog.bool_and(proacl IS NULL) FROM \
             pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
             WHERE p.prosrc = $1 AND l.lanname = 'internal' AND p.oid < 16384",
        )
        .bind(function)
        .persistent(false)
        .fetch_one(&mut work.superuser)
        .await
        .map_err(|error| self.failed("look at a function of the server", &error))
    }

    async fn owner(&self, work: &mut Work, prefix: &str, owner: &str) -> Result<(), SourceError> {
        let is = |kind: &str| prefix.to_ascii_uppercase().starts_with(kind);
        // It can only be a superuser's.
        if is("ALTER FOREIGN DATA WRAPPER") {
            return Ok(());
        }
        if std::mem::take(&mut work.handed) {
            let sql = format!("{prefix}{}", work.role);
            self.superuser_runs(work, &sql).await?;
        }
        if !self.no_owner {
            work.owners.push((prefix.to_owned(), owner.to_owned()));
        }
        Ok(())
    }

    /// Owners, and the triggers of events.
    async fn finish(&self, work: &mut Work) -> Result<(), SourceError> {
        for (prefix, owner) in std::mem::take(&mut work.owners) {
            self.superuser_runs(work, &format!("{prefix}{owner}")).await?;
        }
        for sql in std::mem::take(&mut work.event_triggers) {
            let text = format!("{sql};");
            let Some(Ok(statement)) = Statements::of(&text).next() else { continue };
            let name = statement.raw(3);
            // In one transaction: it is never there and enabled.
            let sql = format!("BEGIN; {sql}; ALTER EVENT TRIGGER {name} DISABLE; COMMIT");
            self.superuser_runs(work, &sql).await?;
        }
        Ok(())
    }

    /// A statement of ours, or of the list.
    async fn superuser_runs(&self, work: &mut Work, sql: &str) -> Result<(), SourceError> {
        let done = execute(&mut work.superuser, sql).await;
        done.map_err(|error| {
            let text = format!("{sql};");
            let statement = Statements::of(&text).next().and_then(Result::ok).unwrap_or_default();
            self.judged(&statement, &error)
        })
    }

    fn failed(&self, attempt: &str, error: &sqlx::Error) -> SourceError {
        self.address.failed(attempt, error)
    }

    fn cut(&self, problem: &str) -> SourceError {
        SourceError::Damaged(format!("The definitions in the dump cannot be read: {problem}"))
    }

    /// What a failed statement says of the dump.
    fn judged(&self, statement: &Statement<'_>, error: &sqlx::Error) -> SourceError {
        let attempt = format!("restore into the database `{}`", self.server.database);
        let sqlx::Error::Database(said) = error else { return self.failed(&attempt, error) };
        let code = said.code().unwrap_or_default();
        let text =
            format!("Could not {attempt}: {}: {} ({code})", statement.title(), said.message());
        if is_not_the_dumps(&code, said.message()) {
            SourceError::Unsuitable(text)
        } else {
            SourceError::Damaged(text)
        }
    }

    fn refused(&self, statement: &Statement<'_>, error: &sqlx::Error) -> SourceError {
        let said = match error {
            sqlx::Error::Database(said) => said.message().to_owned(),
            other => other.to_string(),
        };
        SourceError::Unsuitable(format!(
            "Could not restore into the database `{}`: {}: {said}. A drill does it as a role that \
             is no superuser, and a superuser does not run this for it",
            self.server.database,
            statement.title()
        ))
    }
}

async fn execute(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(drop)
}

fn code(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(said) => said.code().unwrap_or_default().into_owned(),
        _ => String::new(),
    }
}

/// Whether a view is not filled since it reads a foreign table, or another view that does.
fn reads_elsewhere(said: &dyn DatabaseError, work: &Work) -> bool {
    said.code().is_some_and(|code| code == "55000")
        && (said.message().contains("has no handler")
            || work.unread > 0 && said.message().contains("has not been populated"))
}

/// `ALTER ... OWNER TO ` and the owner, of a statement that does nothing else.
fn owner<'a>(statement: &Statement<'a>) -> Option<(&'a str, &'a str)> {
    let last = statement.tokens.len().checked_sub(1)?;
    let mut depth = 0_usize;
    let mut alone = true;
    for token in &statement.tokens {
        match token {
            Token::Symbol('(') => depth += 1,
            Token::Symbol(')') => depth = depth.saturating_sub(1),
            // Another action, which may evaluate something.
            Token::Symbol(',') => alone &= depth > 0,
            Token::Text => alone = false,
            _ => {}
        }
    }
    let is = alone
        && last > 3
        && statement.begins(&["alter"])
        && statement.is_word(last - 1, "to")
        && statement.is_word(last - 2, "owner")
        && statement.name(last).is_some();
    let start = statement.places.get(last)?.start;
    is.then(|| (statement.text.get(..start).unwrap_or_default(), statement.raw(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_all_that_a_statement_changes() {
        let of = |sql: &str| {
            let script = format!("{sql};");
            let statement = Statements::of(&script).next().unwrap().unwrap();
            owner(&statement).map(|(prefix, owner)| (prefix.to_owned(), owner.to_owned()))
        };
        let found = |prefix: &str, owner: &str| Some((prefix.to_owned(), owner.to_owned()));
        assert_eq!(
            of("ALTER FUNCTION a.f(integer, b.\"C\") OWNER TO \"x y\""),
            found("ALTER FUNCTION a.f(integer, b.\"C\") OWNER TO ", "\"x y\"")
        );
        assert_eq!(
            of("ALTER LARGE OBJECT 5 OWNER TO app"),
            found("ALTER LARGE OBJECT 5 OWNER TO ", "app")
        );
        for sql in [
            "ALTER TABLE t ALTER a TYPE int USING evil(a), OWNER TO app",
            "ALTER TABLE t ALTER a SET DEFAULT 'x', OWNER TO app",
            "ALTER TABLE t OWNER TO app, ADD CHECK (evil())",
        ] {
            assert_eq!(of(sql), None, "{sql}");
        }
    }
}
