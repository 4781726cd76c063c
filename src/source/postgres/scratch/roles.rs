//! The roles of a source in a cluster that the drill made: their names, and who is a member of
//! whom. None can log in, none is a superuser, and no statement of the script is run as it stands.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::model::{DatabaseUrl, Remarks};
use crate::source::postgres::address::Address;
use crate::source::postgres::block;
use crate::source::postgres::census::quoted;
use crate::source::postgres::statements::Statements;
use crate::source::{Context, SourceError};

/// Roles of the server that only let their members read and write tables.
const HARMLESS: [&str; 2] = ["pg_read_all_data", "pg_write_all_data"];

/// What is taken of the script.
#[derive(Debug, Default, PartialEq, Eq)]
struct Roles {
    names: Vec<String>,
    /// Those that see all rows: superusers and those with `BYPASSRLS`.
    see_all: Vec<String>,
    superusers: Vec<String>,
    /// Which role, and its member.
    members: Vec<(String, String)>,
    left_out: u64,
}

/// Makes the roles of the script, with the role of `restorer` a member of each.
pub(in crate::source::postgres) fn restore(
    cx: &Context,
    superuser: &DatabaseUrl,
    restorer: &Address,
    script: &[u8],
) -> Result<Remarks, SourceError> {
    let roles = read(&String::from_utf8_lossy(script)).map_err(|problem| {
        SourceError::Damaged(format!("The script of the roles cannot be read: {problem}"))
    })?;
    let address = Address::new(superuser, None)?;
    let restorer = restorer.user().unwrap_or_default();
    block(cx, async {
        let making = async {
            let mut connection = address.connect().await?;
            make(&mut connection, &roles, &restorer)
                .await
                .map_err(|error| address.failed("make the roles", &error))
        };
        address.within("make the roles", making).await
    })?;
    let mut remarks = Remarks::default();
    if roles.left_out > 0 {
        remarks.note(format!(
            "{} settings and memberships of roles were left out: in a drill no role is a \
             superuser, runs programs or reads files of the server",
            roles.left_out
        ));
    }
    Ok(remarks)
}

async fn make(
    connection: &mut PgConnection,
    roles: &Roles,
    restorer: &str,
) -> Result<(), sqlx::Error> {
    let restorer = quoted(restorer);
    let version: i32 =
        sqlx::query_scalar("SELECT pg_catalog.current_setting('server_version_num')::int4")
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
    let mut statements = Vec::new();
    for name in &roles.names {
        let sees = if roles.see_all.contains(name) { "BYPASSRLS" } else { "NOBYPASSRLS" };
        let role = quoted(name);
        statements.push(format!("CREATE ROLE {role} NOSUPERUSER NOLOGIN {sees}"));
        statements.push(format!("GRANT {role} TO {restorer}"));
        if roles.superusers.contains(name) && version >= 140_000 {
            // A view of a superuser reads any table.
            statements.push(format!("GRANT pg_read_all_data TO {role}"));
        }
    }
    for (role, member) in &roles.members {
        if roles.names.contains(role) || version >= 140_000 {
            statements.push(format!("GRANT {} TO {}", quoted(role), quoted(member)));
        }
    }
    for sql in statements {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    }
    Ok(())
}

fn read(script: &str) -> Result<Roles, String> {
    let mut roles = Roles::default();
    for statement in Statements::of(script) {
        let statement = statement?;
        let name = |at: usize| statement.name(at).map(str::to_owned);
        if statement.begins(&["create", "role"]) && statement.tokens.len() == 3 {
            let name = name(2).ok_or("a role has no name")?;
            if !name.starts_with("pg_") && !roles.names.contains(&name) {
                roles.names.push(name);
            }
        } else if statement.begins(&["alter", "role"]) && statement.is_word(3, "with") {
            let has =
                |word: &str| (4..statement.tokens.len()).any(|at| statement.is_word(at, word));
            let Some(name) = name(2) else { continue };
            if has("superuser") {
                roles.superusers.push(name.clone());
            }
            if has("superuser") || has("bypassrls") {
                roles.see_all.push(name);
            }
        } else if statement.begins(&["grant"]) && statement.is_word(2, "to") {
            let (Some(role), Some(member)) = (name(1), name(3)) else { continue };
            if role.starts_with("pg_") && !HARMLESS.contains(&role.as_str()) {
                roles.left_out += 1;
            } else if !member.starts_with("pg_") {
                roles.members.push((role, member));
            }
        } else if !statement.begins(&["set"]) {
            roles.left_out += 1;
        }
    }
    // What is granted to nobody here is granted to nobody.
    let known = |name: &String| roles.names.contains(name) || HARMLESS.contains(&name.as_str());
    roles.members.retain(|(role, member)| known(role) && known(member));
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn only_names_and_memberships_are_taken() {
        let script = "\\restrict x\nSET default_transaction_read_only = off;\n\
            CREATE ROLE app;\nALTER ROLE app WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM;x';\n\
            CREATE ROLE \"a\n\\! touch /tmp/x\n;\";\nALTER ROLE \"a\n\\! touch /tmp/x\n;\" WITH \
            SUPERUSER;\n\
            ALTER ROLE app SET session_preload_libraries TO 'x';\n\
            GRANT pg_execute_server_program TO app GRANTED BY postgres;\n\
            GRANT app TO \"a\n\\! touch /tmp/x\n;\" WITH ADMIN OPTION;\n\
            GRANT ALL ON TABLESPACE x TO app;\nGRANT SET ON PARAMETER log_min_messages TO app;\n\
            GRANT nobody TO app;\n";
        let roles = read(script).unwrap();
        let strange = "a\n\\! touch /tmp/x\n;".to_owned();
        assert_eq!(roles.names, ["app".to_owned(), strange.clone()]);
        assert!(roles.superusers.iter().eq([&strange]));
        assert_eq!(roles.members, [("app".to_owned(), strange)]);
    }

    #[test]
    fn a_script_that_was_cut_is_refused() {
        assert!(read("CREATE ROLE \"a").is_err());
    }
}
