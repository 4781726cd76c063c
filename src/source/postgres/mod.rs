//! A PostgreSQL database, dumped whole with the server's own tools on a snapshot in which its rows
//! are counted.
//!
//! Always the whole database in the custom format: what is restored from parts (`--data-only`,
//! `-n public`) is known to fail where functions, triggers or schemas depend on each other.

mod address;
mod census;
mod client;
mod cluster;
mod definitions;
mod jail;
mod replace;
mod restore;
mod scratch;
mod settings;
mod statements;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::Row;

use self::address::{Address, dbname_argument};
use self::census::{Census, Session};
use self::client::Client;
pub use self::restore::PostgresRestorer;
pub(super) use self::scratch::ScratchDatabases;
pub use self::scratch::ScratchServer;
use self::scratch::refuse_source;
pub use self::settings::LeftStatement;
use self::settings::Settings;
use super::process::LinePattern;
use super::{
    ArtifactSpec, Context, Dumped, Finding, Level, Output, Outputs, ScratchConfig, Source,
    SourceError,
};
use crate::model::{ArtifactKind, DatabaseUrl, Name, Remarks, Secret, Span};

/// A PostgreSQL database.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// `postgresql://user@host:port/database`, as libpq reads it.
    pub url: DatabaseUrl,
    /// The password, if it is not in the address. No server tool has it in its arguments or
    /// environment. `~/.pgpass` and the variables `PG*` are not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Whether roles and tablespaces are dumped too, as a second artifact. Passwords of roles need
    /// a superuser.
    #[serde(default)]
    pub globals: bool,
    /// Whether the rows of every table are counted inside the dump's own snapshot.
    #[serde(default)]
    pub row_counts: RowCounts,
    /// The folder of the client's tools. Default: the installed ones, of the server's major or the
    /// nearest newer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_dir: Option<PathBuf>,
    /// How long to wait for a lock that someone holds on a table.
    #[serde(default = "default_lock_timeout")]
    #[schemars(extend("x-minimum" = "0s", "x-maximum" = "1d"))]
    pub lock_timeout: Span,
    /// Texts by which a warning of `pg_dump` or `pg_dumpall` is expected and only a note: each is
    /// looked for in the warning, and `*` stands for any text, as in `"subscriptions not dumped"`
    /// or `"circular foreign-key*orders"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accept_warnings: Vec<LinePattern>,
}

/// Whether rows are counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RowCounts {
    /// Every row of every table.
    #[default]
    Exact,
    /// Not at all: each table is read once, not twice.
    Off,
}

fn default_lock_timeout() -> Span {
    Span::from(Duration::from_secs(60))
}

impl PostgresConfig {
    /// Refuses an address that could never be used.
    ///
    /// # Errors
    /// [`SourceError::Unsuitable`].
    pub fn validate(&self) -> Result<(), SourceError> {
        let address = Address::new(&self.url, self.password.as_ref())?;
        // libpq takes the one named as the user: mostly an empty one, dumped as it is.
        if address.names_database() {
            return Ok(());
        }
        Err(SourceError::Unsuitable(format!(
            "The address `{}` names no database. Add it: `postgresql://user@host/database`",
            address.masked
        )))
    }

    /// Makes relative paths absolute.
    pub fn resolve(&mut self, base: &Path) {
        if let Some(folder) = &mut self.client_dir {
            *folder = crate::model::counted_from(base, folder);
        }
    }
}

/// The source.
pub struct Postgres {
    config: PostgresConfig,
}

impl Postgres {
    /// As configured.
    pub fn new(config: PostgresConfig) -> Self {
        Self { config }
    }

    async fn open(&self, address: &Address) -> Result<Session, SourceError> {
        address
            .within("take a snapshot", Session::open(address.clone(), self.config.lock_timeout))
            .await
    }

    /// A session, and the client that suits its server.
    fn begin(&self, cx: &Context) -> Result<(Session, Client), SourceError> {
        let address = Address::new(&self.config.url, self.config.password.as_ref())?;
        let session = block(cx, self.open(&address))?;
        let client = Client::choose(
            cx,
            self.config.client_dir.as_deref(),
            "pg_dump",
            session.server.major(),
        )?;
        Ok((session, client))
    }

    fn dump_database(
        &self,
        cx: &Context,
        session: Session,
        client: &Client,
        output: &mut Output,
    ) -> Result<(Session, Census, Option<Settings>), SourceError> {
        let attempt = format!("dump the database `{}`", session.server.database);
        let (call, _password) = session.address.call(cx, client, attempt)?;
        let lock_timeout = self.config.lock_timeout.duration().as_millis();
        let mut call = call
            .args(["--format=custom", "--compress=0", "--no-password"])
            .args([format!("--lock-wait-timeout={lock_timeout}")])
            .of_postgres(&self.config.accept_warnings)
            .explained_by(explain_dump);
        // Rows that are counted outside of the snapshot are not those of the dump: then there are
        // none in the facts.
        let mut rows = false;
        if let Ok(snapshot) = &session.snapshot {
            call = call.args([format!("--snapshot={snapshot}")]);
            rows = self.config.row_counts == RowCounts::Exact;
        }
        // The session is in the task and its transaction open until the dump has ended.
        let mut session = session;
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let mut counting = AbortOnDrop(cx.runtime.spawn(async move {
            // A lock of ours before the tool has all of its own could, with one that somebody waits
            // for in between, keep the tool from it for ever.
            let _ = has_begun.await;
            let settings = settings_of(&mut session).await;
            let mut census = census::take(&mut session, rows).await;
            let settings = settings.map_err(|error| census.remarks.warn(error.to_string()));
            (session, census, settings.ok())
        }));
        call.read_into(cx, &mut Begun { output, begun: Some(begun) })?;
        block(cx, async {
            (&mut counting.0)
                .await
                .map_err(|error| SourceError::Unsuitable(format!("Counting ended: {error}")))
        })
    }

    fn dump_globals(
        &self,
        cx: &Context,
        session: &Session,
        client: &Client,
        output: &mut Output,
        remarks: &mut Remarks,
    ) -> Result<(), SourceError> {
        let client = client.sibling("pg_dumpall");
        let (call, _password) = session.address.call(cx, &client, "dump the roles".to_owned())?;
        let database =
            dbname_argument(&session.server.database).replacen("--dbname=", "--database=", 1);
        let mut call = call
            .args(["--globals-only", "--no-password", &database])
            .of_postgres(&self.config.accept_warnings)
            .explained_by(explain_dump);
        if !session.server.superuser {
            call = call.args(["--no-role-passwords"]);
            remarks.warn(
                "The roles were dumped without their passwords, which only a superuser can read",
            );
        }
        call.read_into(cx, output)?;
        Ok(())
    }
}

impl Source for Postgres {
    fn dump(&self, cx: &Context, outputs: &dyn Outputs) -> Result<Dumped, SourceError> {
        let (session, client) = self.begin(cx)?;
        let mut remarks = Remarks::default();
        let mut artifacts = Vec::new();
        // First, since they are restored first: what the database contains belongs to these roles.
        if self.config.globals {
            let spec = ArtifactSpec {
                extension: "globals.sql",
                number: ArtifactSpec::FIRST,
                kind: ArtifactKind::PgGlobals,
                bulk: false,
                blocks: false,
            };
            let mut output = outputs.create(spec).map_err(SourceError::Stream)?;
            self.dump_globals(cx, &session, &client, &mut output, &mut remarks)?;
            artifacts.push(outputs.finish(output).map_err(SourceError::Stream)?);
        }
        let spec = ArtifactSpec {
            extension: "pgdump",
            number: ArtifactSpec::FIRST,
            kind: ArtifactKind::PgDump,
            bulk: true,
            blocks: false,
        };
        let mut output = outputs.create(spec).map_err(SourceError::Stream)?;
        let (session, census, settings) = self.dump_database(cx, session, &client, &mut output)?;
        let Session { server, snapshot, connection, .. } = session;
        // The transaction need not last while a storage takes the end of the dump.
        drop(connection);
        artifacts.push(outputs.finish(output).map_err(SourceError::Stream)?);

        let mut counted = if self.config.row_counts == RowCounts::Exact { "exact" } else { "off" };
        let consistency = match snapshot {
            Ok(_) => "snapshot",
            Err(reason) => {
                counted = "off";
                remarks.warn(format!(
                    "The server did not export a snapshot ({reason}), so the rows of the dump were \
                     not counted"
                ));
                "dump"
            }
        };
        remarks.extend(None, census.remarks);
        let mut facts = serde_json::json!({
            "type": "postgres",
            "v": 1,
            "server_version": server.version,
            "server_version_num": server.version_num,
            "client_version": client.version,
            "database": server.database,
            "system_identifier": server.identifier,
            "encoding": server.encoding,
            "collate": server.collate,
            "row_counts": counted,
            "tables": census.tables,
            "counts": census.counts,
            "implied": census.implied,
            "extensions": census.extensions,
            "roles": census.roles,
        });
        if let (Some(facts), Some(serde_json::Value::Object(settings))) =
            (facts.as_object_mut(), settings.map(serde_json::to_value).and_then(Result::ok))
        {
            facts.extend(settings);
        }
        Ok(Dumped { artifacts, consistency, facts, remarks })
    }

    fn check(&self, cx: &Context) -> Vec<Finding> {
        let mut findings = Vec::new();
        let opened = Address::new(&self.config.url, self.config.password.as_ref())
            .and_then(|address| block(cx, self.open(&address)));
        let mut session = match opened {
            Ok(session) => session,
            Err(error) => return vec![Finding::new(Level::Error, "server", error.to_string())],
        };
        let server = session.server.clone();
        findings.push(Finding::new(
            Level::Ok,
            "server",
            format!(
                "PostgreSQL {}, database `{}`, at `{}`",
                server.version, server.database, session.address.masked
            ),
        ));
        let mut tools = vec!["pg_dump", "pg_restore"];
        if self.config.globals {
            tools.push("pg_dumpall");
            if !server.superuser {
                let message = "The roles will be dumped without their passwords, which only a \
                    superuser can read";
                findings.push(Finding::new(Level::Warning, "globals", message));
            }
        }
        for tool in tools {
            findings.push(
                match Client::choose(cx, self.config.client_dir.as_deref(), tool, server.major()) {
                    Ok(client) if client.major > server.major() => Finding::new(
                        Level::Warning,
                        tool,
                        format!(
                            "{} in `{}` is newer than the server, which may not take back what it \
                         writes: install \
                         `postgresql-client-{}`",
                            client.version,
                            client.file().display(),
                            server.major()
                        ),
                    ),
                    Ok(client) => Finding::new(
                        Level::Ok,
                        tool,
                        format!("{} in `{}`", client.version, client.file().display()),
                    ),
                    Err(error) => Finding::new(Level::Error, tool, error.to_string()),
                },
            );
        }
        if let Err(reason) = &session.snapshot {
            let message = format!(
                "The server does not export snapshots ({reason}): rows will not be counted"
            );
            findings.push(Finding::new(Level::Warning, "snapshot", message));
        }
        let address = session.address.clone();
        match block(cx, address.within("look at the permissions", unreadable(&mut session))) {
            Ok(tables) if tables.is_empty() => {}
            Ok(tables) => findings.push(Finding::new(
                Level::Error,
                "permissions",
                format!(
                    "The user may not read all of `{}`: `GRANT pg_read_all_data TO ...` \
                     (PostgreSQL 14 and newer), and \
                     `BYPASSRLS` where there are row policies",
                    tables.join("`, `")
                ),
            )),
            Err(error) => {
                findings.push(Finding::new(Level::Error, "permissions", error.to_string()));
            }
        }
        findings
    }

    fn refuse_scratch(
        &self,
        cx: &Context,
        config: &ScratchConfig,
        _folder: &Path,
        name: &Name,
    ) -> Result<(), SourceError> {
        refuse_source(cx, &config.postgres, name, &self.config)
    }
}

/// The settings of the database, in the session's snapshot. A failure leaves that as it is.
async fn settings_of(session: &mut Session) -> Result<Settings, SourceError> {
    let attempt = "read the settings of the database";
    let Session { connection, address, server, .. } = session;
    let failed = |error: sqlx::Error| address.failed(attempt, &error);
    sqlx::raw_sql("SAVEPOINT settings").execute(&mut *connection).await.map_err(failed)?;
    let read = Settings::read(connection, &server.database).await;
    let end = if read.is_ok() { "RELEASE settings" } else { "ROLLBACK TO settings" };
    sqlx::raw_sql(end).execute(connection).await.map_err(failed)?;
    read.map_err(failed)
}

/// Some of the tables that a dump would fail at.
async fn unreadable(session: &mut Session) -> Result<Vec<String>, SourceError> {
    let sql = "SELECT c.oid::regclass::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = \
        c.relnamespace \
        WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> \
        'information_schema' \
        AND (NOT has_schema_privilege(n.oid, 'USAGE') OR NOT has_table_privilege(c.oid, 'SELECT') \
        OR row_security_active(c.oid)) \
        ORDER BY 1 LIMIT 5";
    let address = session.address.clone();
    let failed = |error: sqlx::Error| address.failed("look at the permissions", &error);
    let rows = sqlx::query(sql)
        .persistent(false)
        .fetch_all(&mut session.connection)
        .await
        .map_err(failed)?;
    rows.iter().map(|row| row.try_get("name").map_err(failed)).collect()
}

/// A tool that was given a password did not find it.
const NO_PASSWORD: &str = "The server wants a password. If one is configured, the tool could not \
    open it through `/proc`: run this program \
                           without file capabilities (`setcap`), and with `/proc` mounted";

/// What to do about what `pg_dump` says.
fn explain_dump(said: &str) -> Option<String> {
    let hints = [
        ("server version mismatch", "Install the client of the server's major version"),
        ("row-level security", "Row policies would cut the dump: give the user `BYPASSRLS`"),
        ("row security", "Row policies would cut the dump: give the user `BYPASSRLS`"),
        (
            "permission denied",
            "Let the user read everything: `GRANT pg_read_all_data TO ...` (PostgreSQL 14 and \
             newer)",
        ),
        (
            "statement timeout",
            "Something holds a lock on a table: see `pg_locks`, or raise `lock_timeout`",
        ),
        ("no password supplied", NO_PASSWORD),
        (
            "lock timeout",
            "Something holds a lock on a table: see `pg_locks`, or raise `lock_timeout`",
        ),
        (
            "invalid snapshot identifier",
            "The tool reached another server or session: connect to the server itself, not to a \
             balancer",
        ),
        (
            "conflict with recovery",
            "Raise `max_standby_streaming_delay`, or set `hot_standby_feedback`, on this standby",
        ),
    ];
    hints.iter().find(|(part, _)| said.contains(part)).map(|(_, hint)| (*hint).to_owned())
}

/// Runs a future from a thread that may block; a stop ends it.
fn block<T>(
    cx: &Context,
    work: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    cx.runtime.block_on(async {
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(SourceError::Cancelled),
            result = work => result,
        }
    })
}

/// Tells of the first byte: a tool that writes has locked the tables that it dumps.
struct Begun<'a> {
    output: &'a mut Output,
    /// Dropped then.
    begun: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Write for Begun<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.begun = None;
        self.output.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.output.flush()
    }
}

/// A task that does not outlive whoever waits for it.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
