//! What a database contains, counted by one session inside one snapshot.

use std::io::ErrorKind;
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::address::Address;
use super::client::Major;
use crate::model::{Note, Remarks, Span, TOLD_DIFFERENCES};
use crate::source::SourceError;

/// No table takes so long to count; a dead connection does.
const COUNT_TIMEOUT: Duration = Duration::from_secs(6 * 3_600);

/// The server, as it says itself.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) version: String,
    pub(super) version_num: i32,
    pub(super) database: String,
    pub(super) encoding: String,
    pub(super) collate: String,
    pub(super) superuser: bool,
    /// A standby, or made to take no writes.
    pub(super) read_only: bool,
    /// What the cluster was given when it was made, and every physical copy of it has; none where
    /// we may not ask.
    pub(super) identifier: Option<String>,
}

impl Server {
    /// Asks the server.
    pub(super) async fn ask(
        connection: &mut PgConnection,
        address: &Address,
    ) -> Result<Self, SourceError> {
        let sql = "SELECT current_setting('server_version') AS version, \
            current_setting('server_version_num')::int4 AS number, \
            d.datname::text AS name, pg_encoding_to_char(d.encoding)::text AS encoding, \
            d.datcollate::text AS collate, \
            (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS super, \
            current_setting('transaction_read_only') = 'on' AS read_only \
            FROM pg_database d WHERE d.datname = current_database()";
        let failed = |error: sqlx::Error| address.failed("ask for the version", &error);
        let row =
            sqlx::query(sql).persistent(false).fetch_one(&mut *connection).await.map_err(failed)?;
        // Since 9.6, and a server may forbid it.
        let identifier =
            sqlx::query_scalar("SELECT system_identifier::text FROM pg_control_system()")
                .persistent(false)
                .fetch_one(connection)
                .await;
        Ok(Self {
            identifier: identifier.ok(),
            version: row.try_get("version").map_err(failed)?,
            version_num: row.try_get("number").map_err(failed)?,
            database: row.try_get("name").map_err(failed)?,
            encoding: row.try_get("encoding").map_err(failed)?,
            collate: row.try_get("collate").map_err(failed)?,
            superuser: row.try_get::<Option<bool>, _>("super").map_err(failed)?.unwrap_or(false),
            read_only: row.try_get("read_only").map_err(failed)?,
        })
    }

    pub(super) fn major(&self) -> Major {
        Major::of_number(self.version_num)
    }
}

/// A session that reads, and holds one snapshot of the database for as long as it lives.
pub(super) struct Session {
    pub(super) connection: PgConnection,
    pub(super) address: Address,
    pub(super) server: Server,
    /// By which others join the snapshot; none where the server cannot export one, with the reason.
    pub(super) snapshot: Result<String, String>,
}

impl Session {
    /// Connects and takes a snapshot. Nothing but a stop ends it: it waits no longer than
    /// `lock_timeout` for a lock.
    pub(super) async fn open(address: Address, lock_timeout: Span) -> Result<Self, SourceError> {
        let mut connection = address.connect().await?;
        let server = Server::ask(&mut connection, &address).await?;
        begin(&mut connection, &server, lock_timeout)
            .await
            .map_err(|error| address.failed("take a snapshot", &error))?;
        let exported = sqlx::query_scalar::<_, String>("SELECT pg_export_snapshot()")
            .persistent(false)
            .fetch_one(&mut connection)
            .await;
        let snapshot = match exported {
            Ok(name) => Ok(name),
            Err(sqlx::Error::Database(said)) => {
                // The transaction is spoilt; the connection may serve on.
                sqlx::raw_sql("ROLLBACK").execute(&mut connection).await.ok();
                begin(&mut connection, &server, lock_timeout)
                    .await
                    .map_err(|error| address.failed("begin to read", &error))?;
                Err(said.message().to_owned())
            }
            Err(error) => return Err(address.failed("export a snapshot", &error)),
        };
        Ok(Self { connection, address, server, snapshot })
    }
}

async fn begin(
    connection: &mut PgConnection,
    server: &Server,
    lock_timeout: Span,
) -> Result<(), sqlx::Error> {
    let milliseconds = lock_timeout.duration().as_millis();
    // `LOCAL`, so that nothing of it stays behind in a pooled session. With `row_security` off a
    // table that policies would cut is an error, as it is for `pg_dump`. Nothing that a user of the
    // database made stands in for a function of the server.
    let mut sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; SET LOCAL \
         statement_timeout = 0; \
         SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = \
         {milliseconds}; \
         SET LOCAL search_path = pg_catalog;"
    );
    if server.version_num >= 140_000 {
        // Were we gone, a count would not go on for nobody.
        sql.push_str(" SET LOCAL client_connection_check_interval = '10s';");
    }
    if server.version_num >= 170_000 {
        sql.push_str(" SET LOCAL transaction_timeout = 0;");
    }
    // One statement at a time: `READ ONLY` holds from the first on.
    for statement in sql.split_inclusive(';') {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *connection).await?;
    }
    Ok(())
}

/// One table with the number of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Table {
    pub(super) schema: String,
    pub(super) name: String,
    /// None where it was not counted.
    pub(super) rows: Option<i64>,
    /// Which of its rows are dumped, as SQL; empty: all.
    #[serde(skip)]
    condition: String,
    #[serde(skip)]
    oid: i64,
    /// The file of its rows when the snapshot was taken, and when the tables were listed.
    #[serde(skip)]
    files: (i64, Option<i64>),
    /// An unlogged one on a standby, which has no rows of it.
    #[serde(skip)]
    absent: bool,
}

impl Table {
    fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// What is in the database.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) tables: Vec<Table>,
    pub(super) counts: serde_json::Map<String, serde_json::Value>,
    /// How many of those [`IMPLIED`] counts.
    pub(super) implied: serde_json::Map<String, serde_json::Value>,
    pub(super) extensions: Vec<serde_json::Value>,
    /// Roles that must be there for a restore, whoever owns what: those that row policies and user
    /// mappings are for.
    pub(super) roles: Vec<String>,
    pub(super) remarks: Remarks,
}

/// Of `pg_class`, `pg_proc` …: a member of an extension, which is restored as a whole.
macro_rules! member {
    ($class:literal, $oid:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM pg_depend x WHERE x.classid = '",
            $class,
            "'::regclass AND x.objid = ",
            $oid,
            " AND x.refclassid = 'pg_extension'::regclass AND x.deptype = 'e')"
        )
    };
}

macro_rules! own {
    ($class:literal, $oid:literal) => {
        concat!("NOT ", member!($class, $oid))
    };
}

/// The schemas of users.
macro_rules! user_schema {
    ($namespace:literal) => {
        concat!(
            $namespace,
            ".nspname !~ '^pg_' AND ",
            $namespace,
            ".nspname <> 'information_schema'"
        )
    };
}

pub(super) use {member, own, user_schema};

/// Tables that hold rows of their own: no partitioned parents, no foreign ones, no temporary ones;
/// of an extension's tables only those whose rows are dumped, with the condition that says which.
const TABLES: &str = concat!(
    "SELECT n.nspname::text AS schema, c.relname::text AS name, coalesce((SELECT \
     e.extcondition[array_position(e.extconfig, c.oid)] \
     FROM pg_extension e WHERE c.oid = ANY (e.extconfig) LIMIT 1), '') AS condition, \
     c.oid::int8 AS oid, c.relfilenode::int8 AS file, pg_relation_filenode(c.oid)::int8 \
     AS file_now, c.relpersistence = 'u' AND \
     pg_is_in_recovery() AS absent \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND ",
    user_schema!("n"),
    " AND (",
    own!("pg_class", "c.oid"),
    " OR EXISTS (SELECT 1 FROM pg_extension e WHERE c.oid = ANY (e.extconfig))) ORDER BY 1, 2"
);

const RELATIONS: &str = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace";

/// Objects that are counted: the name in the facts, the catalog with its alias and the way to the
/// schema `n`, and the condition. Members of extensions and system schemas do not count.
const COUNTS: [(&str, &str, &str); 11] = [
    // An invalid one is not dumped, such as what a failed `CREATE INDEX CONCURRENTLY` leaves.
    (
        "indexes",
        RELATIONS,
        "c.relkind IN ('i', 'I') AND EXISTS (SELECT 1 FROM pg_index i JOIN pg_class t ON t.oid = \
         i.indrelid WHERE i.indexrelid = c.oid AND i.indisready AND (i.indisvalid OR t.relkind = \
         'p'))",
    ),
    ("sequences", RELATIONS, "c.relkind = 'S' AND c.relpersistence <> 't'"),
    ("views", RELATIONS, "c.relkind = 'v'"),
    ("materialized_views", RELATIONS, "c.relkind = 'm'"),
    ("partitioned_tables", RELATIONS, "c.relkind = 'p'"),
    ("foreign_tables", RELATIONS, "c.relkind = 'f'"),
    // Since 18 each NOT NULL is a constraint too: left out, so that the numbers mean the same on
    // every server.
    (
        "constraints",
        "pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace",
        "c.contype <> 'n'",
    ),
    (
        "triggers",
        "pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = \
         c.relnamespace",
        "NOT t.tgisinternal",
    ),
    ("functions", "pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace", "true"),
    ("enums", "pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace", "t.typtype = 'e'"),
    ("schemas", "pg_namespace n", "true"),
];

/// Of [`COUNTS`], the objects that a dump does not have: they come, or do not come, with the
/// extension, type or partitioned table that they are of, as the server's version makes them.
const IMPLIED: [(&str, &str); 5] = [
    (
        "indexes",
        concat!(
            "EXISTS (SELECT 1 FROM pg_index i WHERE i.indexrelid = c.oid AND ",
            member!("pg_class", "i.indrelid"),
            ")"
        ),
    ),
    (
        "sequences",
        concat!(
            "EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid \
             = c.oid AND d.deptype = 'i' AND ",
            member!("pg_class", "d.refobjid"),
            ")"
        ),
    ),
    (
        "constraints",
        concat!(
            member!("pg_class", "c.conrelid"),
            " OR ",
            member!("pg_type", "c.contypid"),
            " OR c.contype = 'f' AND to_jsonb(c) ->> 'conparentid' <> '0'"
        ),
    ),
    (
        "triggers",
        concat!(member!("pg_class", "t.tgrelid"), " OR to_jsonb(t) ->> 'tgparentid' <> '0'"),
    ),
    (
        "functions",
        "EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = \
         p.oid AND d.deptype = 'i')",
    ),
];

/// The query of all [`COUNTS`], a column each, and of all [`IMPLIED`].
fn counts_query() -> String {
    let mut sql = "SELECT ".to_owned();
    let implied = IMPLIED.iter().filter_map(|(name, implied)| {
        let (_, catalog, condition) = COUNTS.iter().find(|(counted, _, _)| counted == name)?;
        Some((format!("implied_{name}"), *catalog, format!("({condition}) AND ({implied})")))
    });
    let counts = COUNTS
        .iter()
        .map(|(name, catalog, condition)| ((*name).to_owned(), *catalog, (*condition).to_owned()));
    for (name, catalog, condition) in counts.chain(implied) {
        let mut words = catalog.split(' ');
        let (class, alias) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        sql.push_str(&format!(
            concat!(
                "(SELECT count(*) FROM {catalog} WHERE {condition} AND ",
                user_schema!("n"),
                " AND ",
                own!("{class}", "{alias}.oid"),
                ") AS {name}, "
            ),
            catalog = catalog,
            condition = condition,
            class = class,
            alias = alias,
            name = name,
        ));
    }
    sql.push_str("(SELECT count(*) FROM pg_largeobject_metadata) AS large_objects");
    sql
}

/// Counts what is in the database. What cannot be counted is a warning: the dump stands by itself.
pub(super) async fn take(session: &mut Session, rows: bool) -> Census {
    let mut census = Census::default();
    if let Err(error) = list(session, &mut census).await {
        census.remarks.warn(format!("What the database contains could not be listed: {error}"));
        return census;
    }
    let absent: Vec<String> =
        census.tables.iter().filter(|table| table.absent).map(Table::quoted).collect();
    if !absent.is_empty() {
        census.remarks.note(format!(
            "A standby has no rows of unlogged tables, so they are not in the dump: {}",
            some_of(&absent)
        ));
    }
    if rows {
        count_rows(session, &mut census).await;
    }
    census
}

async fn list(session: &mut Session, census: &mut Census) -> Result<(), sqlx::Error> {
    let counts = sqlx::query(AssertSqlSafe(counts_query()))
        .persistent(false)
        .fetch_one(&mut session.connection)
        .await?;
    for name in COUNTS.iter().map(|(name, _, _)| *name).chain(["large_objects"]) {
        census.counts.insert(name.to_owned(), counts.try_get::<i64, _>(name)?.into());
    }
    for (name, _) in IMPLIED {
        let number: i64 = counts.try_get(&*format!("implied_{name}"))?;
        census.implied.insert(name.to_owned(), number.into());
    }
    let sql = "SELECT extname::text AS name, extversion AS version FROM pg_extension ORDER BY 1";
    for row in sqlx::query(sql).persistent(false).fetch_all(&mut session.connection).await? {
        let (name, version): (String, String) = (row.try_get("name")?, row.try_get("version")?);
        census.extensions.push(serde_json::json!({ "name": name, "version": version }));
    }
    let sql = "SELECT DISTINCT r.rolname::text FROM pg_roles r WHERE r.rolname !~ '^pg_' AND \
        (r.oid IN (SELECT unnest(polroles) FROM pg_policy) OR r.rolname IN (SELECT usename FROM \
        pg_user_mappings)) ORDER BY 1";
    census.roles =
        sqlx::query_scalar(sql).persistent(false).fetch_all(&mut session.connection).await?;
    census.tables = tables(&mut session.connection).await?;
    census.counts.insert("tables".to_owned(), census.tables.len().into());
    Ok(())
}

/// The tables that hold rows, in the order of their names.
pub(super) async fn tables(connection: &mut PgConnection) -> Result<Vec<Table>, sqlx::Error> {
    let rows = sqlx::query(TABLES).persistent(false).fetch_all(connection).await?;
    let table = |row: &PgRow| {
        Ok(Table {
            schema: row.try_get("schema")?,
            name: row.try_get("name")?,
            rows: None,
            condition: row.try_get("condition")?,
            oid: row.try_get("oid")?,
            files: (row.try_get("file")?, row.try_get("file_now")?),
            absent: row.try_get("absent")?,
        })
    };
    rows.iter().map(table).collect()
}

/// Locks all tables at once, as far as nobody waits for any: whoever comes now waits for us, and we
/// for nobody. What is not locked here is locked when it is counted.
async fn lock(session: &mut Session, tables: &[Table]) -> Result<(), sqlx::Error> {
    let names: Vec<String> = tables
        .iter()
        .filter(|table| !table.absent)
        .map(|table| format!("ONLY {}", table.quoted()))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE NOWAIT", names.join(", "));
    sqlx::raw_sql("SAVEPOINT locking").execute(&mut session.connection).await?;
    let locked = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut session.connection).await;
    let end = if locked.is_ok() { "RELEASE locking" } else { "ROLLBACK TO locking" };
    sqlx::raw_sql(end).execute(&mut session.connection).await.map(drop)
}

async fn count_rows(session: &mut Session, census: &mut Census) {
    // A connection that is lost is told with the first table.
    let _ = lock(session, &census.tables).await;
    for table in &mut census.tables {
        if table.absent {
            // Of the dump, which has none.
            table.rows = Some(0);
            continue;
        }
        let name = table.quoted();
        // `ONLY`, as `pg_dump` takes each table of an inheritance for itself. The savepoint keeps
        // one failure from spoiling the rest.
        let sql = format!(
            "SELECT count(*), pg_relation_filenode({}::oid)::int8 FROM ONLY {name} {}",
            table.oid, table.condition
        );
        let counted = async {
            sqlx::raw_sql("SAVEPOINT counting").execute(&mut session.connection).await?;
            let counted = sqlx::query_as::<_, (i64, Option<i64>)>(AssertSqlSafe(sql))
                .persistent(false)
                .fetch_one(&mut session.connection)
                .await?;
            sqlx::raw_sql("RELEASE counting").execute(&mut session.connection).await?;
            Ok::<_, sqlx::Error>(counted)
        };
        // A connection that died without a word would be waited for, for ever.
        let counted = tokio::time::timeout(COUNT_TIMEOUT, counted).await.unwrap_or_else(|_| {
            Err(sqlx::Error::Io(std::io::Error::new(
                ErrorKind::TimedOut,
                "No answer within 6 hours",
            )))
        });
        match counted {
            // `TRUNCATE` and a rewrite take the rows away from snapshots too. Done twice, nobody
            // can tell what the dump met.
            Ok((_, file)) if file != table.files.1 && table.files.1 != Some(table.files.0) => {
                census.remarks.warn(Note::at(
                    name,
                    "The table was truncated or rewritten more than once while the database was \
                     dumped: the dump may have none of its rows, and they were not counted",
                ));
            }
            Ok((_, file)) if file != table.files.1 => census.remarks.note(Note::at(
                name,
                "The table was truncated or rewritten when it had been dumped, so its rows were \
                 not counted",
            )),
            Ok((0, file)) if file != Some(table.files.0) => {
                table.rows = Some(0);
                census.remarks.warn(Note::at(
                    name,
                    "The table was truncated or rewritten just before it was dumped: the dump has \
                     none of the rows that it had before, nor of those it has now",
                ));
            }
            Ok((rows, _)) => table.rows = Some(rows),
            Err(error) => {
                let lost = !matches!(error, sqlx::Error::Database(_))
                    || sqlx::raw_sql("ROLLBACK TO counting")
                        .execute(&mut session.connection)
                        .await
                        .is_err();
                let reason =
                    session.address.failed(format!("count the rows of {name}"), &error).to_string();
                census.remarks.warn(Note::at(name, reason));
                if lost {
                    census.remarks.warn(
                        "The connection was lost, so the rows of the tables after this one were \
                         not counted",
                    );
                    return;
                }
            }
        }
    }
}

/// The first names, and how many more there are.
pub(super) fn some_of(names: &[String]) -> String {
    let (told, rest) = names.split_at(names.len().min(TOLD_DIFFERENCES));
    match rest.len() {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

/// An identifier in SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quoted(r#"we"ird"#), r#""we""ird""#);
    }
}
