//! The server that scratch databases are made on, where the configuration names one: that it is no
//! source, and what earlier drills left there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::model::{DatabaseUrl, Name, Secret};
use crate::source::postgres::address::Address;
use crate::source::postgres::census::{Server, quoted};
use crate::source::postgres::client::{Client, Major};
use crate::source::postgres::cluster::stop_clusters;
use crate::source::postgres::{PostgresConfig, block, jail};
use crate::source::scratch::ScratchProvider;
use crate::source::{Context, Finding, Level, ScratchConfig, SourceError};

/// How long to wait before looking again whether the sessions of a drill that was killed have
/// ended.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Where drills restore PostgreSQL databases to.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScratchServer {
    /// A server for scratch databases, as an address of any database on it that is there already
    /// (`postgresql://drill@scratch/postgres`). The user must be allowed to create databases
    /// (`CREATEDB`), and should be no superuser: code that users of the source made runs as it.
    /// Unless set, the drill starts a cluster of its own from installed binaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<DatabaseUrl>,
    /// The password, if it is not in the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Whether `url` may be a server that a source is on. The scratch database is another one than
    /// the source even so, but the load and the room are those of the source's server.
    #[serde(default)]
    pub on_source_server: bool,
    /// The folder of a server's binaries (`initdb`, `postgres`) for the drill's own cluster.
    /// Default: the installed ones, of the dumped server's major or the nearest newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_dir: Option<PathBuf>,
    /// The user that the drill's own cluster runs as when the drill runs as root, which PostgreSQL
    /// refuses to do. Default: `nobody`. Code of the source's users runs as it: name one that
    /// owns no file and no other process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
}

impl ScratchServer {
    fn address(&self) -> Result<Option<Address>, SourceError> {
        self.url.as_ref().map(|url| Address::new(url, self.password.as_ref())).transpose()
    }

    /// Makes relative paths absolute.
    pub fn resolve(&mut self, base: &Path) {
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
                "`{key}` is for a cluster of the drill's own, and `url` names a server: keep one \
                 of them"
            )))
        };
        match &self.url {
            Some(_) if self.server_dir.is_some() => both("server_dir"),
            Some(_) if self.run_as.is_some() => both("run_as"),
            None if self.run_as.as_deref() == Some("root") => Err(SourceError::Unsuitable(
                "`run_as` is `root`, as which PostgreSQL does not run: name another user"
                    .to_owned(),
            )),
            None if self.password.is_some() => Err(SourceError::Unsuitable(
                "`password` is for a server, and no `url` names one".to_owned(),
            )),
            _ => self.address().map(drop),
        }
    }
}

/// Scratch databases on a server, or in throwaway clusters in folders.
pub(in crate::source) struct ScratchDatabases;

impl ScratchProvider for ScratchDatabases {
    fn refuse_dumped(
        &self,
        cx: &Context,
        config: &ScratchConfig,
        name: &Name,
        facts: &Value,
    ) -> Result<(), SourceError> {
        refuse_dumped(cx, &config.postgres, name, facts)
    }

    fn check(&self, cx: &Context, config: &ScratchConfig, needed: bool) -> Option<Finding> {
        (needed || config.postgres.url.is_some()).then(|| check_scratch(cx, &config.postgres))
    }

    fn stop(&self, folder: &Path) -> Result<(), SourceError> {
        stop_clusters(folder)
    }

    fn sweep(
        &self,
        cx: &Context,
        config: &ScratchConfig,
        prefix: &str,
    ) -> Result<Vec<String>, SourceError> {
        sweep(cx, &config.postgres, prefix)
    }
}

/// Looks whether scratch databases could be made.
fn check_scratch(cx: &Context, config: &ScratchServer) -> Finding {
    let subject = "postgres";
    let asked = config.address().and_then(|address| {
        let Some(address) = address else { return Ok(None) };
        let attempt = "ask whether databases may be created";
        let asking = async {
            let mut connection = address.connect().await?;
            let server = Server::ask(&mut connection, &address).await?;
            let sql = "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user";
            let may = sqlx::query_scalar::<_, bool>(sql)
                .persistent(false)
                .fetch_one(&mut connection)
                .await;
            Ok((
                server.superuser,
                server.version,
                may.map_err(|error| address.failed(attempt, &error))?,
            ))
        };
        Ok(Some((address.masked.clone(), block(cx, address.within(attempt, asking))?)))
    });
    match asked {
        Err(error) => Finding::new(Level::Error, subject, error.to_string()),
        Ok(Some((address, (true, version, _)))) => Finding::new(
            Level::Warning,
            subject,
            format!(
                "Databases go to PostgreSQL {version} at `{address}` as a superuser, and code that \
                 users of the source made runs as one too: name a role that has `CREATEDB` and is \
                 no superuser"
            ),
        ),
        Ok(Some((address, (false, version, true)))) => Finding::new(
            Level::Ok,
            subject,
            format!("Databases go to PostgreSQL {version} at `{address}`"),
        ),
        Ok(Some((address, _))) => Finding::new(
            Level::Error,
            subject,
            format!("The user at `{address}` may not create databases: `ALTER ROLE ... CREATEDB`"),
        ),
        Ok(None) => check_cluster(cx, config),
    }
}

/// Looks whether the drill could make a cluster of its own.
fn check_cluster(cx: &Context, config: &ScratchServer) -> Finding {
    let subject = "postgres";
    let Ok(client) = Client::choose_server(cx, config.server_dir.as_deref(), Major::OLDEST) else {
        return Finding::new(
            Level::Error,
            subject,
            "No server of PostgreSQL is installed here for a cluster of the drill's own: install \
             `postgresql`, or name a server for scratch databases (`postgres.url` of the drill)",
        );
    };
    let user = match jail::user(config.run_as.as_deref()) {
        Ok(user) => user,
        Err(error) => return Finding::new(Level::Error, subject, error.to_string()),
    };
    if let Some((user, process)) = user.and_then(|user| Some((user.0, jail::other_process(user)?)))
    {
        let message = format!(
            "The drill's own cluster runs as the user {user}, which owns other processes \
             ({process}): code that users of the source wrote could reach them. Set `run_as` to a \
             user that owns none"
        );
        return Finding::new(Level::Warning, subject, message);
    }
    let message = format!(
        "Databases go to a cluster of the drill's own, of the binaries in `{}`",
        client.folder.display()
    );
    Finding::new(Level::Ok, subject, message)
}

/// What tells a server from all others: when it was started, to the microsecond, and its version.
async fn fingerprint(address: &Address) -> Result<(String, String), SourceError> {
    let attempt = "ask which server it is";
    let asking = async {
        let mut connection = address.connect().await?;
        let sql = "SELECT extract(epoch FROM pg_postmaster_start_time())::text || ' ' || \
            current_setting('server_version_num') AS server, \
                   current_database()::text AS name";
        let failed = |error: sqlx::Error| address.failed(attempt, &error);
        let row =
            sqlx::query(sql).persistent(false).fetch_one(&mut connection).await.map_err(failed)?;
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
            "the source `{name}` itself: name another database of a server for scratch databases \
             (`postgres`, say)"
        ))
    };
    // Its password may be beside it; for its name none is needed.
    let theirs = Address::new(&source.url, None)?;
    if ours.is_same_database(&theirs) {
        return is_the_source();
    }
    // Who drills need not reach what is backed up.
    let with_password = Address::new(&source.url, source.password.as_ref())?;
    let Ok((their_server, their_database)) = block(cx, fingerprint(&with_password)) else {
        return Ok(());
    };
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
        "on the same server as the source `{name}`. Name another server; or set `on_source_server \
         = true`, and the scratch database is made \
         beside the source, with the load and the room that takes there"
    ))
}

/// Refuses a scratch server that is the one a snapshot was dumped from, by its facts.
fn refuse_dumped(
    cx: &Context,
    config: &ScratchServer,
    name: &Name,
    facts: &Value,
) -> Result<(), SourceError> {
    let text = |key: &str| facts.get(key).and_then(Value::as_str);
    let (Some(address), Some(dumped)) = (config.address()?, text("system_identifier")) else {
        return Ok(());
    };
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
            "the source `{name}` itself, or a physical copy of it: name another database of a \
             server for scratch databases (`postgres`, say)"
        )
    } else if config.on_source_server {
        return Ok(());
    } else {
        format!(
            "on the server that the source `{name}` was dumped from, or a physical copy of it. \
             Name another server; or set `on_source_server = true`, and \
             the scratch database is made there, with the load and the room that takes"
        )
    };
    Err(SourceError::Unsuitable(format!(
        "The drill would restore to `{}`, which is {what}. Nothing was written",
        address.masked
    )))
}

/// Drops the databases that drills with this prefix left on the server, other than those that are
/// to stay.
fn sweep(cx: &Context, config: &ScratchServer, prefix: &str) -> Result<Vec<String>, SourceError> {
    let Some(address) = config.address()? else { return Ok(Vec::new()) };
    let attempt = "look for databases that an earlier drill left";
    let left = block(cx, async {
        let looking = async {
            let mut connection = address.connect().await?;
            // A drill that was killed may still have one made, which is seen only when that is
            // done.
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE \
                application_name = $1 AND pid <> pg_backend_pid()";
            let ended = async |connection: &mut PgConnection| {
                let rows =
                    sqlx::query(sql).bind(prefix).persistent(false).fetch_all(connection).await;
                rows.map(|rows| rows.is_empty()).map_err(|error| address.failed(attempt, &error))
            };
            while !ended(&mut connection).await? {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let sql = "SELECT datname::text FROM pg_database WHERE left(datname::text, length($1)) \
                = $1 \
                       AND coalesce(shobj_description(oid, 'pg_database'), '') NOT LIKE 'Kept%' \
                ORDER BY 1";
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
    Ok(left
        .into_iter()
        .map(|name| format!("the database `{name}` on `{}`", address.masked))
        .collect())
}

/// Drops a database, whoever is connected to it.
pub(super) fn drop_database(cx: &Context, admin: &Address, name: &str) -> Result<(), SourceError> {
    let attempt = format!("drop the scratch database `{name}`");
    block(cx, async {
        let dropping = async {
            let mut connection = admin.connect().await?;
            let failed = |error: sqlx::Error| admin.failed(attempt.clone(), &error);
            let server = Server::ask(&mut connection, admin).await?;
            // Before 13 there is no FORCE.
            let force = if server.version_num >= 130_000 { " WITH (FORCE)" } else { "" };
            if force.is_empty() {
                sqlx::query(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
                )
                .bind(name)
                .persistent(false)
                .execute(&mut connection)
                .await
                .map_err(failed)?;
            }
            let sql = format!("DROP DATABASE IF EXISTS {}{force}", quoted(name));
            sqlx::raw_sql(AssertSqlSafe(sql))
                .execute(&mut connection)
                .await
                .map(drop)
                .map_err(failed)
        };
        admin.within(&attempt, dropping).await
    })
}
