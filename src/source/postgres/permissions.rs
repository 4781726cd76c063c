//! What the user of the address lacks for a dump.

use sqlx::Row as _;

use super::census::{Session, member, own, some_of, user_schema};
use crate::source::{Finding, Level, SourceError};

/// What a dump reads or locks, and the user may not: kind, and name as in SQL.
///
/// `pg_dump` locks partitioned tables too, and reads sequences and large objects. The privileges of
/// large objects have a function since 18 only.
const LACKING: &str = concat!(
    "WITH dumped AS (SELECT c.oid, c.relkind, n.oid AS schema FROM pg_class c JOIN pg_namespace n \
     ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND ",
    user_schema!("n"),
    " AND (",
    own!("pg_class", "c.oid"),
    " OR EXISTS (SELECT 1 FROM pg_extension e WHERE c.oid = ANY (e.extconfig)))) \
     SELECT DISTINCT 'SCHEMA' AS kind, quote_ident(n.nspname) AS name FROM dumped d JOIN \
     pg_namespace n ON n.oid = d.schema WHERE NOT has_schema_privilege(n.oid, 'USAGE') \
     UNION ALL SELECT CASE d.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, \
     d.oid::regclass::text FROM dumped d WHERE CASE d.relkind WHEN 'S' THEN NOT \
     has_sequence_privilege(d.oid, 'SELECT') ELSE NOT has_table_privilege(d.oid, 'SELECT') END \
     UNION ALL SELECT 'POLICY', d.oid::regclass::text FROM dumped d WHERE d.relkind = 'r' AND \
     row_security_active(d.oid) \
     UNION ALL SELECT 'LARGE OBJECT', l.oid::text FROM pg_largeobject_metadata l WHERE \
     current_setting('lo_compat_privileges') = 'off' AND NOT pg_has_role(l.lomowner, 'USAGE') AND \
     NOT EXISTS (SELECT 1 FROM aclexplode(l.lomacl) a WHERE a.privilege_type = 'SELECT' AND \
     (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))) ORDER BY 1, 2"
);

/// The objects that a dump would fail at, by their kinds, each with the statement that helps.
pub(super) async fn lacking(session: &mut Session) -> Result<Vec<Finding>, SourceError> {
    let address = session.address.clone();
    let failed = |error: sqlx::Error| address.failed("look at the permissions", &error);
    let connection = &mut session.connection;
    let role: String = sqlx::query_scalar("SELECT quote_ident(current_user)")
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    let mut rows: Vec<(String, String)> = Vec::new();
    for row in sqlx::query(LACKING).persistent(false).fetch_all(connection).await.map_err(failed)? {
        rows.push((row.try_get("kind").map_err(failed)?, row.try_get("name").map_err(failed)?));
    }
    let everything = if session.server.version_num >= 140_000 {
        format!(", or `GRANT pg_read_all_data TO {role}`")
    } else {
        String::new()
    };
    let kinds = [
        ("SCHEMA", "schemas", "USAGE", &*everything),
        ("TABLE", "tables", "SELECT", &*everything),
        ("SEQUENCE", "sequences", "SELECT", &*everything),
        ("LARGE OBJECT", "large objects", "SELECT", ""),
    ];
    let of = |kind: &str| -> Vec<String> {
        rows.iter().filter(|(of, _)| of == kind).map(|(_, name)| name.clone()).collect()
    };
    let mut findings: Vec<Finding> = kinds
        .into_iter()
        .filter_map(|(kind, words, privilege, more)| {
            let names = of(kind);
            let statement = format!("GRANT {privilege} ON {kind} {} TO {role}", some_of(&names));
            (!names.is_empty()).then(|| {
                let message = format!("The user may not read all {words}: `{statement}`{more}");
                Finding::new(Level::Error, "permissions", message)
            })
        })
        .collect();
    let policies = of("POLICY");
    if !policies.is_empty() {
        let message = format!(
            "Row policies would cut the dump of {}: `ALTER ROLE {role} BYPASSRLS`",
            some_of(&policies)
        );
        findings.push(Finding::new(Level::Error, "permissions", message));
    }
    Ok(findings)
}
