//! A scratch database: on a server that the configuration names, or in a throwaway cluster.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::address::Address;
use super::census::{self, Census, Server, Session, quoted};
use super::client::{Client, Major};
use super::cluster::Cluster;
use super::{PostgresConfig, block, default_lock_timeout};
use crate::model::{ArtifactKind, Check, CheckOutcome, DatabaseUrl, Name, Secret};
use crate::source::process::ProcessError;
use crate::source::scratch::{Each, Row, Scratch, ScratchPlace};
use crate::source::{Context, Finding, Level, RestoreArtifact, RestoreOptions, SourceError, Streams, Target};

/// How long to wait before looking again whether the sessions of a drill that was killed have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What begins the comment of a database that is to stay.
const KEPT: &str = "Kept";

/// Where drills restore PostgreSQL databases to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScratchServer {
    /// A server for scratch databases, as an address of any database on it that is there already (`postgresql://drill@scratch/postgres`). The user must be
    /// allowed to create databases. Unless set, the drill starts a cluster of its own from installed binaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<DatabaseUrl>,
    /// The password, if it is not in the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Whether `url` may be a server that a source is on. The scratch database is another one than the source even so, but the load and the room are those
    /// of the source's server.
    #[serde(default)]
    pub on_source_server: bool,
    /// The folder of a server's binaries (`initdb`, `postgres`) for the drill's own cluster. Default: the installed ones, of the dumped server's major or the
    /// nearest newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_dir: Option<PathBuf>,
    /// The user that the drill's own cluster runs as when the drill runs as root, which PostgreSQL refuses to do. Default: `postgres`, else `nobody`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
}

impl ScratchServer {
    fn address(&self) -> Result<Option<Address>, SourceError> {
        self.url.as_ref().map(|url| Address::new(url, self.password.as_ref())).transpose()
    }

    /// Makes relative paths absolute.
    pub fn resolve(&mut self, base: &std::path::Path) {
        if let Some(folder) = &mut self.server_dir {
            *folder = crate::model::counted_from(base, folder);
        }
    }

    /// Refuses what could never work.
    ///
    /// # Errors
    /// [`SourceError::Unsuitable`].
    pub fn validate(&self) -> Result<(), SourceError> {
        let both = |key: &str| {
            Err(SourceError::Unsuitable(format!(
                "`{key}` is for a cluster of the drill's own, and `url` names a server: keep one of them"
            )))
        };
        match &self.url {
            Some(_) if self.server_dir.is_some() => both("server_dir"),
            Some(_) if self.run_as.is_some() => both("run_as"),
            None if self.password.is_some() => {
                Err(SourceError::Unsuitable("`password` is for a server, and no `url` names one".to_owned()))
            }
            _ => self.address().map(drop),
        }
    }
}

/// Looks whether scratch databases could be made.
pub(in crate::source) fn check_scratch(cx: &Context, config: &ScratchServer) -> Finding {
    let subject = "postgres";
    let asked = config.address().and_then(|address| {
        let Some(address) = address else { return Ok(None) };
        let attempt = "ask whether databases may be created";
        let asking = async {
            let mut connection = address.connect().await?;
            let server = Server::ask(&mut connection, &address).await?;
            let sql = "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user";
            let may = sqlx::query_scalar::<_, bool>(sql).persistent(false).fetch_one(&mut connection).await;
            Ok((server.version, may.map_err(|error| address.failed(attempt, &error))?))
        };
        Ok(Some((address.masked.clone(), block(cx, address.within(attempt, asking))?)))
    });
    match asked {
        Err(error) => Finding::new(Level::Error, subject, error.to_string()),
        Ok(Some((address, (version, true)))) => {
            Finding::new(Level::Ok, subject, format!("Databases go to PostgreSQL {version} at `{address}`"))
        }
        Ok(Some((address, _))) => Finding::new(
            Level::Error,
            subject,
            format!("The user at `{address}` may not create databases: `ALTER ROLE ... CREATEDB`"),
        ),
        Ok(None) => match Client::choose_server(cx, config.server_dir.as_deref(), Major::OLDEST) {
            Ok(client) => Finding::new(
                Level::Ok,
                subject,
                format!(
                    "Databases go to a cluster of the drill's own, of the binaries in `{}`",
                    client.folder.display()
                ),
            ),
            Err(_) => Finding::new(
                Level::Error,
                subject,
                "No server of PostgreSQL is installed here for a cluster of the drill's own: install `postgresql`, or name a server for scratch \
                 databases (`postgres.url` of the drill)",
            ),
        },
    }
}

/// What tells a server from all others: when it was started, to the microsecond, and its version.
async fn fingerprint(address: &Address) -> Result<(String, String), SourceError> {
    let attempt = "ask which server it is";
    let asking = async {
        let mut connection = address.connect().await?;
        let sql = "SELECT extract(epoch FROM pg_postmaster_start_time())::text || ' ' || current_setting('server_version_num') AS server, \
                   current_database()::text AS name";
        let failed = |error: sqlx::Error| address.failed(attempt, &error);
        let row = sqlx::query(sql).persistent(false).fetch_one(&mut connection).await.map_err(failed)?;
        Ok((row.try_get("server").map_err(failed)?, row.try_get("name").map_err(failed)?))
    };
    address.within(attempt, asking).await
}

/// Refuses a scratch server that is the source `name`, by another name too.
pub(in crate::source) fn refuse_source(
    cx: &Context,
    config: &ScratchServer,
    name: &Name,
    source: &PostgresConfig,
) -> Result<(), SourceError> {
    let Some(ours) = config.address()? else { return Ok(()) };
    let refused = |what: String| {
        Err(SourceError::Unsuitable(format!(
            "The drill would restore to `{}`, which is {what}. Nothing was written",
            ours.masked
        )))
    };
    let is_the_source = || {
        refused(format!(
            "the source `{name}` itself: name another database of a server for scratch databases (`postgres`, say)"
        ))
    };
    // Its password may be beside it; for its name none is needed.
    let theirs = Address::new(&source.url, None)?;
    if ours.is_same_database(&theirs) {
        return is_the_source();
    }
    // Who drills need not reach what is backed up.
    let with_password = Address::new(&source.url, source.password.as_ref())?;
    let Ok((their_server, their_database)) = block(cx, fingerprint(&with_password)) else { return Ok(()) };
    let (our_server, our_database) = block(cx, fingerprint(&ours))?;
    if our_server != their_server {
        return Ok(());
    }
    if our_database == their_database {
        return is_the_source();
    }
    if config.on_source_server {
        return Ok(());
    }
    refused(format!(
        "on the same server as the source `{name}`. Name another server; or set `on_source_server = true`, and the scratch database is made \
         beside the source, with the load and the room that takes there"
    ))
}

/// Refuses a scratch server that is the one a snapshot was dumped from, by its facts.
pub(in crate::source) fn refuse_dumped(
    cx: &Context,
    config: &ScratchServer,
    name: &Name,
    facts: &Value,
) -> Result<(), SourceError> {
    let text = |key: &str| facts.get(key).and_then(Value::as_str);
    let (Some(address), Some(dumped)) = (config.address()?, text("system_identifier")) else { return Ok(()) };
    let attempt = "ask which server it is";
    let server = block(cx, async {
        let asking = async {
            let mut connection = address.connect().await?;
            Server::ask(&mut connection, &address).await
        };
        address.within(attempt, asking).await
    })?;
    if server.identifier.as_deref() != Some(dumped) {
        return Ok(());
    }
    let what = if text("database") == Some(server.database.as_str()) {
        format!(
            "the source `{name}` itself, or a physical copy of it: name another database of a server for scratch databases (`postgres`, say)"
        )
    } else if config.on_source_server {
        return Ok(());
    } else {
        format!(
            "on the server that the source `{name}` was dumped from, or a physical copy of it. Name another server; or set `on_source_server = true`, and \
             the scratch database is made there, with the load and the room that takes"
        )
    };
    Err(SourceError::Unsuitable(format!(
        "The drill would restore to `{}`, which is {what}. Nothing was written",
        address.masked
    )))
}

/// Drops the databases that drills with this prefix left on the server, other than those that are to stay.
pub(in crate::source) fn sweep(cx: &Context, config: &ScratchServer, prefix: &str) -> Result<Vec<String>, SourceError> {
    let Some(address) = config.address()? else { return Ok(Vec::new()) };
    let attempt = "look for databases that an earlier drill left";
    let left = block(cx, async {
        let looking = async {
            let mut connection = address.connect().await?;
            // A drill that was killed may still have one made, which is seen only when that is done.
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()";
            let ended = async |connection: &mut PgConnection| {
                let rows = sqlx::query(sql).bind(prefix).persistent(false).fetch_all(connection).await;
                rows.map(|rows| rows.is_empty()).map_err(|error| address.failed(attempt, &error))
            };
            while !ended(&mut connection).await? {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let sql = "SELECT datname::text FROM pg_database WHERE left(datname::text, length($1)) = $1 \
                       AND coalesce(shobj_description(oid, 'pg_database'), '') NOT LIKE 'Kept%' ORDER BY 1";
            sqlx::query_scalar::<_, String>(sql)
                .bind(prefix)
                .persistent(false)
                .fetch_all(&mut connection)
                .await
                .map_err(|error| address.failed(attempt, &error))
        };
        address.within(attempt, looking).await
    })?;
    for name in &left {
        drop_database(cx, &address, name)?;
    }
    Ok(left.into_iter().map(|name| format!("the database `{name}` on `{}`", address.masked)).collect())
}

/// Drops a database, whoever is connected to it.
fn drop_database(cx: &Context, admin: &Address, name: &str) -> Result<(), SourceError> {
    let attempt = format!("drop the scratch database `{name}`");
    block(cx, async {
        let dropping = async {
            let mut connection = admin.connect().await?;
            let failed = |error: sqlx::Error| admin.failed(attempt.clone(), &error);
            let server = Server::ask(&mut connection, admin).await?;
            // Before 13 there is no FORCE.
            let force = if server.version_num >= 130_000 { " WITH (FORCE)" } else { "" };
            if force.is_empty() {
                sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1")
                    .bind(name)
                    .persistent(false)
                    .execute(&mut connection)
                    .await
                    .map_err(failed)?;
            }
            let sql = format!("DROP DATABASE IF EXISTS {}{force}", quoted(name));
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map(drop).map_err(failed)
        };
        admin.within(&attempt, dropping).await
    })
}

/// A database that a drill made.
pub(super) struct ScratchDatabase {
    url: DatabaseUrl,
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
    pub(super) fn create(cx: &Context, artifact: &RestoreArtifact, place: &ScratchPlace) -> Result<Self, SourceError> {
        let (cluster, admin_url) = match &place.config.postgres.url {
            Some(url) => (None, url.clone()),
            None => {
                let dumped = artifact.facts.get("server_version_num").and_then(Value::as_i64);
                let major = dumped.and_then(|number| i32::try_from(number).ok()).map(Major::of_number);
                let cluster = Cluster::start(cx, major, place)?;
                let url = cluster.url()?;
                (Some(cluster), url)
            }
        };
        let password = place.config.postgres.password.as_ref();
        let admin = Address::new(&admin_url, password)?.known_as(&place.prefix);
        let salt = getrandom::u64()
            .map_err(|error| SourceError::Unsuitable(format!("The system gives no random numbers: {error}")))?;
        let name = format!("{}{salt:016x}", place.prefix);
        let url = admin_url.with_database(&name);
        let url = password.map_or_else(|| url.clone(), |password| url.with_password(password.expose()));
        let address = Address::new(&url, None)?.known_as(&place.prefix);
        let text = |key: &str| artifact.facts.get(key).and_then(Value::as_str).map(str::to_owned);
        let (encoding, collate) = (text("encoding"), text("collate"));
        let attempt = "create a scratch database";
        let server = block(cx, async {
            let creating = async {
                let mut connection = admin.connect().await?;
                create_database(&mut connection, &name, encoding, collate)
                    .await
                    .map_err(|error| admin.failed(attempt, &error))?;
                let comment = format!(
                    "COMMENT ON DATABASE {} IS 'A drill is at work here; the next one drops what is left'",
                    quoted(&name)
                );
                sqlx::raw_sql(AssertSqlSafe(comment))
                    .execute(&mut connection)
                    .await
                    .map_err(|error| admin.failed(attempt, &error))?;
                let mut connection = address.connect().await?;
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
        Ok(Self { url, address, admin, name, server, cluster, roles: false })
    }
}

/// Makes an empty database of that encoding, with the collation of the source where the server has it.
async fn create_database(
    connection: &mut PgConnection,
    name: &str,
    encoding: Option<String>,
    collate: Option<String>,
) -> Result<(), sqlx::Error> {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let encoding = encoding.map(|encoding| format!(" ENCODING {}", literal(&encoding))).unwrap_or_default();
    let of = |locale: &str| {
        format!(
            "CREATE DATABASE {} TEMPLATE template0{encoding} LC_COLLATE {locale} LC_CTYPE {locale}",
            quoted(name),
            locale = literal(locale)
        )
    };
    let wanted = collate.as_deref().unwrap_or("C");
    match sqlx::raw_sql(AssertSqlSafe(of(wanted))).execute(&mut *connection).await {
        // No such locale here, or not with this encoding; `C` is everywhere.
        Err(sqlx::Error::Database(said))
            if wanted != "C" && said.code().is_some_and(|code| code == "42809" || code == "22023") =>
        {
            sqlx::raw_sql(AssertSqlSafe(of("C"))).execute(connection).await.map(drop)
        }
        created => created.map(drop),
    }
}

/// What of what `pg_restore` says is not the dump's fault.
const NOT_THE_DUMP: [&str; 22] = [
    "No space left on device",
    "could not extend file",
    "Disk quota exceeded",
    "out of memory",
    "out of shared memory",
    "connection to server",
    "could not connect",
    "server closed the connection",
    "terminating connection",
    "the database system is",
    "SSL SYSCALL",
    "too many clients",
    "too many connections",
    "permission denied",
    "must be owner",
    "must be superuser",
    "extension control file",
    "is not available",
    "could not load library",
    "could not access file",
    "unrecognized configuration parameter",
    "unsupported version (",
];

impl Scratch for ScratchDatabase {
    fn target(&self, artifact: &RestoreArtifact) -> Result<Target, String> {
        if artifact.kind == ArtifactKind::PgGlobals && self.cluster.is_none() {
            return Err("roles belong to a whole server, and this one is shared: they are read and held against their digest only".to_owned());
        }
        Ok(Target::Database(self.url.clone()))
    }

    fn options(&self, artifact: &RestoreArtifact) -> RestoreOptions {
        // Without the roles of the snapshot there is nobody to give anything to.
        let no_owner = artifact.kind != ArtifactKind::PgGlobals && !self.roles;
        RestoreOptions { no_owner, no_tablespaces: true, ..RestoreOptions::default() }
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
        let census = block(cx, async { Ok(census::take(&mut session, rows).await) })?;
        Ok(compare(&cx.name, &artifact.facts, &census))
    }

    fn is_to_blame(&mut self, cx: &Context, error: &SourceError) -> bool {
        let SourceError::Process(ProcessError::Exit { said, .. }) = error else {
            return !matches!(error, SourceError::Damaged(_) | SourceError::Stream(_));
        };
        let role_missing = said.stderr.contains("role \"") && said.stderr.contains("does not exist");
        if role_missing || NOT_THE_DUMP.iter().any(|words| said.stderr.contains(words)) {
            return true;
        }
        // A server that went away may have been the reason, whatever the tool said.
        let address = self.address.clone();
        block(cx, async { address.connect().await.map(drop) }).is_err()
    }

    fn query(&mut self, cx: &Context, query: &str, timeout: Duration, each: &mut Each<'_>) -> Result<(), SourceError> {
        let attempt = "ask the restored database";
        let address = self.address.clone();
        let failed = |error: &sqlx::Error| match (address.failed(attempt, error), error) {
            // It was we who gave it too little time.
            (SourceError::Database { attempt, target, problem, .. }, sqlx::Error::Database(said))
                if said.code().is_some_and(|code| code == "57014") =>
            {
                SourceError::Database { attempt, target, problem, transient: true }
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
            let sql = format!("SELECT to_json(answer)::text FROM (\n{query}\n) AS answer");
            let mut rows = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).persistent(false).fetch(&mut connection);
            while let Some(row) = rows.try_next().await.map_err(|error| failed(&error))? {
                let row: Row = serde_json::from_str(&row).map_err(|error| SourceError::Database {
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
        let kind = if self.cluster.is_some() { "a cluster of its own" } else { "a scratch database" };
        format!("PostgreSQL {}, {kind}: `{}`", self.server.version, self.url.masked())
    }

    fn keep(&mut self, cx: &Context) -> Result<String, SourceError> {
        let attempt = "note that the scratch database is to stay";
        let (admin, name) = (self.admin.clone(), self.name.clone());
        block(cx, async {
            let noting = async {
                let mut connection = admin.connect().await?;
                let sql = format!("COMMENT ON DATABASE {} IS '{KEPT} by a drill: drop it by hand'", quoted(&name));
                let noted = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
                noted.map(drop).map_err(|error| admin.failed(attempt, &error))
            };
            admin.within(attempt, noting).await
        })?;
        match &mut self.cluster {
            Some(cluster) => cluster.keep(),
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

/// What is in the restored database, held against what was in the dumped one.
fn compare(source: &Name, facts: &Value, census: &Census) -> Vec<Check> {
    let mut checks = Vec::new();
    let uncounted: Vec<String> = census.warnings.kept().iter().map(|warning| warning.reason.clone()).collect();
    let tables = facts.get("tables").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    for table in tables {
        let (schema, name) = (text(table, "schema"), text(table, "name"));
        let check = Check::new("rows", Some(source), format!("rows of {}.{}", quoted(&schema), quoted(&name)));
        let there = census.tables.iter().find(|one| one.schema == schema && one.name == name);
        let counted = table.get("rows").and_then(Value::as_i64);
        checks.push(match (counted, there) {
            (Some(rows), None) => check.judged(false, rows.to_string(), "no such table"),
            (None, None) => check.judged(false, "the table", "no such table"),
            (None, Some(_)) => {
                check.ended(CheckOutcome::Skipped, "its rows were not counted when the snapshot was taken")
            }
            (Some(rows), Some(found)) => match found.rows {
                Some(found) => check.compared(rows, found),
                None => check.ended(CheckOutcome::Inconclusive, uncounted.join("; ")),
            },
        });
    }
    let extra: Vec<String> = census
        .tables
        .iter()
        .filter(|one| {
            !tables.iter().any(|table| text(table, "schema") == one.schema && text(table, "name") == one.name)
        })
        .map(|one| format!("{}.{} was not there", quoted(&one.schema), quoted(&one.name)))
        .collect();
    if let Some(counts) = facts.get("counts").and_then(Value::as_object) {
        for (what, expected) in counts {
            let check = Check::new("counts", Some(source), what.replace('_', " "));
            checks.push(match census.counts.get(what) {
                Some(found) if what == "tables" => {
                    let all = extra.len() as u64;
                    check.compared(expected, found).detailed(extra.clone(), all)
                }
                Some(found) => check.compared(expected, found),
                None if uncounted.is_empty() => {
                    check.ended(CheckOutcome::Skipped, "this version of the program does not count them")
                }
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
            Check::new("extensions", Some(source), "extensions").compared(names(expected), names(&census.extensions)),
        );
    }
    if checks.is_empty() {
        let check = Check::new("rows", Some(source), "what the database contains");
        checks.push(check.ended(CheckOutcome::Skipped, "it was not counted when the snapshot was taken"));
    }
    checks
}
