//! The SQL that gives a database the settings of another one.

use super::facts::{OF_OWNER, OF_PUBLIC, Settings};
use crate::source::postgres::census::quoted;

/// Parameters whose value is a list of quoted names, which `SET` takes one by one: as
/// `variable_is_guc_list_quote` of `pg_dump` has them.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];
/// Code that the server loads into every session is for its operator to choose.
const PRELOAD: &str = "_preload_libraries";

/// One setting that the database does not have.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// Without its value.
    pub(super) title: String,
    pub(super) sql: String,
    /// The role that it is about, which may not be there.
    pub(super) role: Option<String>,
    /// What is done with it.
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Parameter,
    /// Of a drill's own databases too, and nothing that a rehearsal changes.
    Comment,
    /// Owner and privileges.
    Ownership,
    /// Never run.
    Preload,
    Other,
}

/// What `found` lacks of `wanted`, in an order in which no statement takes away the right to run
/// the next one: the owner comes last. What `found` has beside it stays.
pub(super) fn needed(wanted: &Settings, found: &Settings, database: &str) -> Vec<Statement> {
    let database = quoted(database);
    let mut statements = Vec::new();
    let mut add = |title: String, value: &str, role: Option<&String>, kind: Kind| {
        let sql = format!("{title}{value}");
        statements.push(Statement { title, sql, role: role.cloned(), kind });
    };
    for setting in &wanted.settings {
        let name = setting.name.to_ascii_lowercase();
        let is_list = LISTS.contains(&name.as_str());
        let same = |left: &str, right: &str| {
            left == right || is_list && elements(left).is_some_and(|it| elements(right) == Some(it))
        };
        let has = found.settings.iter().any(|other| {
            other.role == setting.role
                && other.name.eq_ignore_ascii_case(&name)
                && same(&other.value, &setting.value)
        });
        if has {
            continue;
        }
        let title = match &setting.role {
            None => format!("ALTER DATABASE {database} SET {}", quoted(&setting.name)),
            Some(role) => format!(
                "ALTER ROLE {} IN DATABASE {database} SET {}",
                quoted(role),
                quoted(&setting.name)
            ),
        };
        let list = elements(&setting.value).filter(|_| is_list);
        let value = list.map_or_else(
            || literal(&setting.value),
            |list| list.iter().map(|one| literal(one)).collect::<Vec<_>>().join(", "),
        );
        let kind = if name.ends_with(PRELOAD) { Kind::Preload } else { Kind::Parameter };
        add(title, &format!(" TO {value}"), setting.role.as_ref(), kind);
    }
    if let Some(comment) = wanted.comment.as_ref().filter(|_| wanted.comment != found.comment) {
        let title = format!("COMMENT ON DATABASE {database}");
        add(title, &format!(" IS {}", literal(comment)), None, Kind::Comment);
    }
    for label in wanted.security_labels.iter().filter(|it| !found.security_labels.contains(it)) {
        let title =
            format!("SECURITY LABEL FOR {} ON DATABASE {database}", quoted(&label.provider));
        add(title, &format!(" IS {}", literal(&label.label)), None, Kind::Other);
    }
    for (title, role) in privileges(wanted, found, &database) {
        add(title, "", role.as_ref(), Kind::Ownership);
    }
    if wanted.is_template && !found.is_template {
        add(format!("ALTER DATABASE {database} IS_TEMPLATE true"), "", None, Kind::Other);
    }
    if wanted.connection_limit >= 0 && wanted.connection_limit != found.connection_limit {
        let limit = format!(" {}", wanted.connection_limit);
        add(format!("ALTER DATABASE {database} CONNECTION LIMIT"), &limit, None, Kind::Other);
    }
    if let Some(owner) = wanted.owner.as_ref().filter(|_| wanted.owner != found.owner) {
        let title = format!("ALTER DATABASE {database} OWNER TO {}", quoted(owner));
        add(title, "", Some(owner), Kind::Ownership);
    }
    statements
}

/// Privileges to grant, and those of a new database to revoke. Those of the owner belong to
/// whoever owns the database.
fn privileges(
    wanted: &Settings,
    found: &Settings,
    database: &str,
) -> Vec<(String, Option<String>)> {
    let mut statements = Vec::new();
    if wanted.acl.is_none() {
        return statements;
    }
    let here = |role: &Option<String>| {
        let is_owner = role.is_some() && *role == wanted.owner;
        if is_owner { found.owner.clone().or_else(|| role.clone()) } else { role.clone() }
    };
    let name = |role: &Option<String>| role.as_deref().map_or("PUBLIC".to_owned(), quoted);
    let (is, should) = (found.privileges(), wanted.privileges());
    for one in &is {
        let of_new: &[&str] = match &one.role {
            None => &OF_PUBLIC,
            role if *role == found.owner => &OF_OWNER,
            Some(_) => &[],
        };
        let stays = should
            .iter()
            .any(|other| here(&other.role) == one.role && other.privilege == one.privilege);
        if !stays && of_new.contains(&one.privilege.as_str()) {
            let (privilege, role) = (&one.privilege, name(&one.role));
            let sql = format!("REVOKE {privilege} ON DATABASE {database} FROM {role}");
            statements.push((sql, one.role.clone()));
        }
    }
    for one in &should {
        let role = here(&one.role);
        let has = is.iter().any(|other| {
            other.role == role
                && other.privilege == one.privilege
                && (other.grantable || !one.grantable)
        });
        // It comes from a storage, and is no name that could be quoted.
        if has || !OF_OWNER.contains(&one.privilege.as_str()) {
            continue;
        }
        let option = if one.grantable { " WITH GRANT OPTION" } else { "" };
        let privilege = &one.privilege;
        let sql = format!("GRANT {privilege} ON DATABASE {database} TO {}{option}", name(&role));
        statements.push((sql, role));
    }
    statements
}

/// A text in SQL, in one line, whatever `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    let quotes = text.replace('\'', "''");
    if !text.contains(|c: char| c == '\\' || c.is_control()) {
        return format!("'{quotes}'");
    }
    let mut escaped = String::from("E'");
    for c in quotes.chars() {
        match c {
            '\\' => escaped.push_str(r"\\"),
            c if c.is_control() => escaped.push_str(&format!(r"\u{:04X}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped.push('\'');
    escaped
}

/// The elements of a list of names as the server stores it, taken apart as `SplitGUCList` does;
/// none where it is no such list.
fn elements(list: &str) -> Option<Vec<String>> {
    let mut elements = Vec::new();
    let mut rest = list.trim_start();
    if rest.is_empty() {
        return Some(vec![String::new()]);
    }
    loop {
        let mut element = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let (before, after) = quoted.split_once('"')?;
                element.push_str(before);
                let Some(more) = after.strip_prefix('"') else {
                    rest = after;
                    break;
                };
                element.push('"');
                quoted = more;
            }
        } else {
            let end = rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(rest.len());
            let (name, after) = rest.split_at_checked(end)?;
            if name.is_empty() {
                return None;
            }
            element.push_str(name);
            rest = after;
        }
        elements.push(element);
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(elements);
        }
        rest = rest.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::facts::Settings;
    use super::{elements, literal, needed};

    fn facts(facts: &serde_json::Value) -> Settings {
        Settings::of_facts(facts).unwrap().unwrap()
    }

    #[test]
    fn names_from_a_storage_stay_names() {
        let hostile = "x\"; DROP ROLE a; --";
        let text = "'; DROP ROLE a; --";
        let wanted = facts(&json!({
            "settings": [{ "role": hostile, "name": hostile, "value": "'; DROP ROLE a; --\\" }],
            "connection_limit": -1,
            "comment": text,
            "acl": [
                { "role": hostile, "privilege": "CREATE" },
                { "role": "b", "privilege": "CONNECT ON DATABASE c TO d; --" },
            ],
            "security_labels": [{ "provider": hostile, "label": text }],
            "owner": hostile,
        }));
        let found = facts(&json!({ "settings": [], "connection_limit": -1, "owner": "o" }));
        let (name, text) = (r#""x""; DROP ROLE a; --""#, "'''; DROP ROLE a; --'");
        let sql: Vec<String> =
            needed(&wanted, &found, hostile).into_iter().map(|one| one.sql).collect();
        assert_eq!(
            sql,
            [
                format!(
                    r"ALTER ROLE {name} IN DATABASE {name} SET {name} TO E'''; DROP ROLE a; --\\'"
                ),
                format!("COMMENT ON DATABASE {name} IS {text}"),
                format!("SECURITY LABEL FOR {name} ON DATABASE {name} IS {text}"),
                format!("REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC"),
                format!("REVOKE CONNECT ON DATABASE {name} FROM PUBLIC"),
                format!("REVOKE TEMPORARY ON DATABASE {name} FROM \"o\""),
                format!("REVOKE CONNECT ON DATABASE {name} FROM \"o\""),
                format!("ALTER DATABASE {name} OWNER TO {name}"),
            ]
        );
    }

    #[test]
    fn nothing_is_needed_where_all_is_there() {
        let all = facts(&json!({
            "settings": [{ "name": "search_path", "value": "\"a\", b" }],
            "connection_limit": 3,
            "acl": [{ "role": null, "privilege": "CONNECT" }],
            "owner": "o",
        }));
        let same = facts(&json!({
            "settings": [{ "name": "Search_Path", "value": "a, b" }, { "name": "c", "value": "d" }],
            "connection_limit": 3,
            "acl": [
                { "role": null, "privilege": "CONNECT" },
                { "role": "e", "privilege": "CREATE" },
            ],
            "comment": "stays",
            "owner": "o",
        }));
        assert!(needed(&all, &same, "db").is_empty());
    }

    #[test]
    fn lists_are_taken_apart_as_the_server_does() {
        for (list, expected) in [
            (r#""$user", public"#, Some(vec!["$user", "public"])),
            (r#""a, b" ,"c""d",e"#, Some(vec!["a, b", "c\"d", "e"])),
            (r#""""#, Some(vec![""])),
            ("", Some(vec![""])),
            ("a b", None),
            ("a,", None),
            (r#""a"#, None),
        ] {
            let expected = expected.map(|it| it.into_iter().map(str::to_owned).collect());
            assert_eq!(elements(list), expected, "{list}");
        }
    }

    #[test]
    fn a_literal_is_one_line_and_quoted() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\b\n'\u{1b}"), r"E'a\\b\u000A''\u001B'");
    }
}
