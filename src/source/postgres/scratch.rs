//! A scratch database: on a server that the configuration names (`server`), or in a throwaway
//! cluster; and what is in it, held against what was in the dumped one (`compare`).

mod allowed;
mod blame;
mod compare;
mod confined;
pub(super) mod roles;
mod server;

use std::ops::ControlFlow;
use std::time::Duration;

use futures::TryStreamExt as _;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection};

use super::address::Address;
use super::census::{self, Server, Session, quoted};
use super::client::Major;
use super::cluster::{Cluster, Login};
use super::settings::{Settings, rehearse};
use super::{block, default_lock_timeout};
use crate::model::{ArtifactKind, Check, DatabaseUrl, total};
use crate::source::place::write_private;
use crate::source::process::ProcessError;
use crate::source::scratch::{Each, Row, Scratch, ScratchPlace};
use crate::source::{Context, RestoreArtifact, RestoreOptions, SourceError, Streams, Target};

use blame::{is_not_the_dumps, is_of_the_server};
use compare::{compare, public_is_empty};
pub(super) use confined::Confined;
pub use server::ScratchServer;
use server::drop_database;
pub(in crate::source) use server::{ScratchDatabases, refuse_source};

/// Bytes of a row of an answer, as JSON, that are taken at most.
const LARGEST_ROW: usize = 1 << 20;
/// What begins the comment of a database that is to stay.
const KEPT: &str = "Kept";

/// A database that a drill made.
pub(super) struct ScratchDatabase {
    url: DatabaseUrl,
    /// The same database, for the superuser of the drill's own server.
    superuser: Option<DatabaseUrl>,
    address: Address,
    /// The database that it was made from.
    admin: Address,
    name: String,
    server: Server,
    /// Where it is, when the drill brought its server along.
    cluster: Option<Cluster>,
    /// Whether the roles of the snapshot were restored, so that owners can be.
    roles: bool,
}

impl ScratchDatabase {
    pub(super) fn create(
        cx: &Context,
        artifact: &RestoreArtifact,
        place: &ScratchPlace,
    ) -> Result<Self, SourceError> {
        let (cluster, admin_url) = match &place.config.postgres.url {
            Some(url) => (None, url.clone()),
            None => {
                let dumped = artifact.facts.get("server_version_num").and_then(Value::as_i64);
                let major =
                    dumped.and_then(|number| i32::try_from(number).ok()).map(Major::of_number);
                let cluster = Cluster::start(cx, major, relations(&artifact.facts), place)?;
                let url = cluster.url(&cluster.superuser)?;
                (Some(cluster), url)
            }
        };
        let password = place.config.postgres.password.as_ref();
        let admin = Address::new(&admin_url, password)?.known_as(&place.prefix);
        let salt = getrandom::u64().map_err(|error| {
            SourceError::Unsuitable(format!("The system gives no random numbers: {error}"))
        })?;
        let name = format!("{}{salt:016x}", place.prefix);
        let url = match &cluster {
            Some(cluster) => cluster.url(&cluster.restorer)?.with_database(&name),
            None => {
                let url = admin_url.with_database(&name);
                password
                    .map_or_else(|| url.clone(), |password| url.with_password(password.expose()))
            }
        };
        let superuser = cluster.is_some().then(|| admin_url.with_database(&name));
        let address = Address::new(&url, None)?.known_as(&place.prefix);
        let text = |key: &str| artifact.facts.get(key).and_then(Value::as_str).map(str::to_owned);
        let (encoding, collate) = (text("encoding"), text("collate"));
        let attempt = "create a scratch database";
        let restorer = cluster.as_ref().map(|cluster| cluster.restorer.clone());
        let server = block(cx, async {
            let creating = async {
                let mut connection = admin.connect().await?;
                if let Some(restorer) = &restorer {
                    create_restorer(&mut connection, restorer)
                        .await
                        .map_err(|error| admin.failed("create the role that restores", &error))?;
                }
                if restorer.is_some() && artifact.kind != ArtifactKind::PgGlobals {
                    create_roles(&mut connection, &artifact.facts).await.map_err(|error| {
                        admin.failed("create the roles that the dump names", &error)
                    })?;
                }
                let owner = restorer.as_ref().map(|login| login.name.as_str());
                create_database(&mut connection, &name, owner, encoding, collate)
                    .await
                    .map_err(|error| admin.failed(attempt, &error))?;
                let comment = format!(
                    "COMMENT ON DATABASE {} IS 'A drill is at work here; the next one drops what \
                     is left'",
                    quoted(&name)
                );
                sqlx::raw_sql(AssertSqlSafe(comment))
                    .execute(&mut connection)
                    .await
                    .map_err(|error| admin.failed(attempt, &error))?;
                let within = match &superuser {
                    Some(url) => Address::new(url, None)?,
                    None => address.clone(),
                };
                let mut connection = within.connect().await?;
                if let Some(extensions) = artifact.facts.get("extensions").and_then(Value::as_array)
                    && !extensions
                        .iter()
                        .any(|one| one.get("name").is_some_and(|name| name == "plpgsql"))
                {
                    // A new database has it; a dump does not say that there was none.
                    let dropped = sqlx::raw_sql("DROP EXTENSION IF EXISTS plpgsql")
                        .execute(&mut connection)
                        .await;
                    dropped.map_err(|error| address.failed(attempt, &error))?;
                }
                Server::ask(&mut connection, &address).await
            };
            admin.within(attempt, creating).await
        });
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                // It may be there all the same; the next sweep finds it where this does not.
                let _ = drop_database(cx, &admin, &name);
                return Err(error);
            }
        };
        Ok(Self { url, superuser, address, admin, name, server, cluster, roles: false })
    }
}

/// The relations of the dumped database, as they were counted.
fn relations(facts: &Value) -> u64 {
    const KINDS: [&str; 5] =
        ["tables", "indexes", "sequences", "partitioned_tables", "materialized_views"];
    let counts = facts.get("counts");
    total(KINDS.iter().filter_map(|kind| counts?.get(kind)?.as_u64()))
}

/// Makes the roles that policies and user mappings of the dump are for, where the snapshot does not
/// bring them itself. Nobody can log in as one.
async fn create_roles(connection: &mut PgConnection, facts: &Value) -> Result<(), sqlx::Error> {
    for role in
        facts.get("roles").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        let sql = format!("CREATE ROLE {} NOLOGIN", quoted(role));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Makes the role that restores and asks: no superuser, and in no role of the server that reads its
/// files or runs programs.
async fn create_restorer(
    connection: &mut PgConnection,
    restorer: &Login,
) -> Result<(), sqlx::Error> {
    let role = quoted(&restorer.name);
    let mut statements = vec![format!(
        "CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION BYPASSRLS \
         PASSWORD '{}'",
        restorer.password.expose()
    )];
    let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int4")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await?;
    if version >= 140_000 {
        // The tables of extensions belong to a superuser.
        statements.push(format!("GRANT pg_read_all_data, pg_write_all_data TO {role}"));
    }
    for sql in statements {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Makes an empty database of that encoding, with the collation of the source where the server has
/// it.
async fn create_database(
    connection: &mut PgConnection,
    name: &str,
    owner: Option<&str>,
    encoding: Option<String>,
    collate: Option<String>,
) -> Result<(), sqlx::Error> {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let encoding =
        encoding.map(|encoding| format!(" ENCODING {}", literal(&encoding))).unwrap_or_default();
    let owner = owner.map(|owner| format!(" OWNER {}", quoted(owner))).unwrap_or_default();
    let of = |locale: &str| {
        format!(
            "CREATE DATABASE {}{owner} TEMPLATE template0{encoding} LC_COLLATE {locale} \
             LC_CTYPE {locale}",
            quoted(name),
            locale = literal(locale)
        )
    };
    let wanted = collate.as_deref().unwrap_or("C");
    match sqlx::raw_sql(AssertSqlSafe(of(wanted))).execute(&mut *connection).await {
        // No such locale here, or not with this encoding; `C` is everywhere.
        Err(sqlx::Error::Database(said))
            if wanted != "C"
                && said.code().is_some_and(|code| code == "42809" || code == "22023") =>
        {
            sqlx::raw_sql(AssertSqlSafe(of("C"))).execute(connection).await.map(drop)
        }
        created => created.map(drop),
    }
}

impl Scratch for ScratchDatabase {
    fn target(&self, artifact: &RestoreArtifact) -> Result<Target, String> {
        if artifact.kind == ArtifactKind::PgGlobals && self.cluster.is_none() {
            return Err(
                "roles belong to a whole server, and this one is shared: they are read and \
                held against their digest only"
                    .to_owned(),
            );
        }
        Ok(Target::Database(self.url.clone()))
    }

    fn options(&self, artifact: &RestoreArtifact) -> RestoreOptions {
        // Without the roles of the snapshot there is nobody to give anything to.
        let no_owner = artifact.kind != ArtifactKind::PgGlobals && !self.roles;
        let superuser = self.superuser.clone();
        RestoreOptions { no_owner, scratch: true, superuser, ..RestoreOptions::default() }
    }

    fn inspect(
        &mut self,
        cx: &Context,
        artifact: &RestoreArtifact,
        _streams: &dyn Streams,
    ) -> Result<Vec<Check>, SourceError> {
        if artifact.kind == ArtifactKind::PgGlobals {
            self.roles = true;
            return Ok(Vec::new());
        }
        let address = self.address.clone();
        let opening = Session::open(address.clone(), default_lock_timeout());
        let mut session = block(cx, address.within("count what was restored", opening))?;
        let rows = artifact.facts.get("row_counts").and_then(Value::as_str) == Some("exact");
        let mut census = block(cx, async { Ok(census::take(&mut session, rows).await) })?;
        let counted = |counts: &Value| counts.get("schemas").and_then(Value::as_i64);
        let there = census.counts.get("schemas").and_then(Value::as_i64);
        let dumped = artifact.facts.get("counts").and_then(counted);
        // A new database has the schema `public`; a dump does not say that there was none.
        if there.zip(dumped).is_some_and(|(there, dumped)| there == dumped + 1)
            && block(cx, address.within("look into `public`", public_is_empty(&address)))?
        {
            census.counts.insert("schemas".to_owned(), dumped.into());
        }
        let mut checks = compare(&cx.name, &artifact.facts, &census);
        if let Some(wanted) =
            Settings::of_facts(&artifact.facts).map_err(SourceError::Unsuitable)?
        {
            let rehearsing = rehearse(&cx.name, &address, &self.name, &wanted);
            checks.extend(block(cx, rehearsing)?);
        }
        Ok(checks)
    }

    fn is_to_blame(&mut self, cx: &Context, error: &SourceError) -> bool {
        let SourceError::Process(ProcessError::Exit { said, .. }) = error else {
            return !matches!(error, SourceError::Damaged(_) | SourceError::Stream(_));
        };
        if is_of_the_server(said.stderr()) {
            return true;
        }
        // A server that went away may have been the reason, whatever the tool said.
        let address = self.address.clone();
        block(cx, async { address.connect().await.map(drop) }).is_err()
    }

    fn in_words(&self, error: &SourceError) -> String {
        let SourceError::Process(ProcessError::Exit { attempt, program, status, said }) = error
        else {
            return error.to_string();
        };
        // Where it happened and what the server called it. What follows those lines has rows in it,
        // and commands with passwords.
        let kept = |line: &&str| {
            line.contains(" error: ") || line.contains("FATAL: ") || line.contains("from TOC entry")
        };
        let lines: Vec<&str> = said.stderr().lines().map(str::trim).filter(kept).collect();
        let hint = said.hint.as_ref().map(|hint| format!(". {hint}")).unwrap_or_default();
        format!(
            "Could not {attempt}: `{program}` ended with exit status {status}: {}{hint}",
            lines.join("; ")
        )
    }

    fn query(
        &mut self,
        cx: &Context,
        query: &str,
        timeout: Duration,
        each: &mut Each<'_>,
    ) -> Result<(), SourceError> {
        let attempt = "ask the restored database";
        let address = self.address.clone();
        let failed = |error: &sqlx::Error| match (address.failed(attempt, error), error) {
            // It was we who gave it too little time.
            (
                SourceError::Database { attempt, target, problem, .. },
                sqlx::Error::Database(said),
            ) if said.code().is_some_and(|code| code == "57014") => {
                SourceError::Database { attempt, target, problem, transient: true }
            }
            // No query, none that only reads, or one that only a superuser may ask: that says
            // nothing about what is asked.
            (SourceError::Database { problem, .. }, sqlx::Error::Database(said))
                if said.code().is_some_and(|code| matches!(&*code, "42601" | "25006"))
                    || is_not_the_dumps(&said.code().unwrap_or_default(), said.message()) =>
            {
                SourceError::Unsuitable(format!("The query cannot be asked: {problem}"))
            }
            (error, _) => error,
        };
        let asking = async {
            let mut connection = address.connect().await?;
            // One statement at a time: `READ ONLY` holds from the first on.
            for statement in [
                "BEGIN READ ONLY".to_owned(),
                format!("SET LOCAL statement_timeout = {}", timeout.as_millis().max(1)),
                "SET LOCAL row_security = off".to_owned(),
            ] {
                sqlx::raw_sql(AssertSqlSafe(statement))
                    .execute(&mut connection)
                    .await
                    .map_err(|error| failed(&error))?;
            }
            // A query within another can be one statement only, and every type has a JSON form.
            let query = query.trim().trim_end_matches(';');
            let sql = format!(
                "SELECT CASE WHEN octet_length(row) <= {LARGEST_ROW} THEN row END FROM (SELECT \
                 to_json(answer)::text AS row FROM (\n{query}\n) AS answer) AS answers"
            );
            let rows =
                sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql)).persistent(false);
            let mut rows = rows.fetch(&mut connection);
            while let Some(row) = rows.try_next().await.map_err(|error| failed(&error))? {
                let row = row.ok_or_else(|| {
                    SourceError::Unsuitable(format!(
                        "A row of the answer has more than {LARGEST_ROW} bytes: ask for less"
                    ))
                })?;
                let row: Row =
                    serde_json::from_str(&row).map_err(|error| SourceError::Database {
                        attempt: attempt.to_owned(),
                        target: address.masked.clone(),
                        problem: format!("A row could not be read: {error}"),
                        transient: false,
                    })?;
                if each(row).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        };
        block(cx, asking).map(drop)
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![("URL", self.url.expose().to_string())]
    }

    fn description(&self) -> String {
        let kind =
            if self.cluster.is_some() { "a cluster of its own" } else { "a scratch database" };
        format!("PostgreSQL {}, {kind}: `{}`", self.server.version, self.url.masked())
    }

    fn keep(&mut self, cx: &Context) -> Result<String, SourceError> {
        let attempt = "note that the scratch database is to stay";
        let (admin, name) = (self.admin.clone(), self.name.clone());
        block(cx, async {
            let noting = async {
                let mut connection = admin.connect().await?;
                let sql = format!(
                    "COMMENT ON DATABASE {} IS '{KEPT} by a drill: drop it by hand'",
                    quoted(&name)
                );
                let noted = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
                noted.map(drop).map_err(|error| admin.failed(attempt, &error))
            };
            admin.within(attempt, noting).await
        })?;
        match &mut self.cluster {
            Some(cluster) => {
                // With its password, which nothing prints.
                let file = cx.work_dir.join(format!("{}.address", self.name));
                let options = RestoreOptions { overwrite: true, ..RestoreOptions::default() };
                write_private(&file, &mut self.url.expose().to_string().as_bytes(), &options)?;
                Ok(format!(
                    "{}. `psql \"$(cat {})\"` opens it before",
                    cluster.keep()?,
                    file.display()
                ))
            }
            None => Ok(format!("DROP DATABASE {}", quoted(&self.name))),
        }
    }

    fn remove(&mut self, cx: &Context) -> Result<(), SourceError> {
        match &mut self.cluster {
            Some(cluster) => cluster.stop(),
            None => drop_database(cx, &self.admin, &self.name),
        }
    }
}
