//! A restore over a database that is not empty: what of it is replaced, what stays, and what is in
//! the way.
//!
//! `pg_restore --clean` drops and makes everything in one transaction. Its drops are rehearsed in a
//! transaction that is rolled back, so that the server says what depends on what before anything
//! is dropped, and what is left then is what the dump does not have. Schemas and extensions that
//! are there stay: what the dump does not have may be in them, or of them.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Read;

use sqlx::postgres::PgDatabaseError;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use super::address::Address;
use super::block;
use super::census::{member, own, some_of, user_schema};
use super::client::Client;
use super::definitions::{as_text, definitions, head};
use super::statements::{Statement, Statements};
use crate::model::TOLD_DIFFERENCES;
use crate::source::process::MemoryFile;
use crate::source::{Action, Change, Context, Preview, RestoreOptions, SourceError};

/// How a restore replaces what is there.
pub(super) struct Replacement {
    /// The beginning of the dump, which was read already.
    pub(super) head: Vec<u8>,
    /// The entries of the dump that are restored, in their order, for `--use-list`.
    list: MemoryFile,
    /// What the dump does not have.
    others: Vec<Object>,
}

/// An object of a database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Object {
    /// As in `DROP TABLE`.
    kind: String,
    /// As in SQL, with its schema.
    name: String,
}

impl Object {
    fn in_words(&self) -> String {
        format!("{} `{}`", self.kind.to_lowercase(), self.name)
    }

    fn drop_statement(&self) -> String {
        match self.kind.as_str() {
            "LARGE OBJECT" => format!("SELECT pg_catalog.lo_unlink({})", self.name),
            kind => format!("DROP {kind} IF EXISTS {} CASCADE", self.name),
        }
    }
}

/// All that a user made, without what is a part of something else: identity sequences, partitions,
/// array types, the members of extensions.
const OBJECTS: &str = concat!(
    "SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN \
     'FOREIGN TABLE' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, c.oid::regclass::text AS \
     name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' AND NOT EXISTS \
     (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND \
     d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')) AND ",
    user_schema!("n"),
    " AND ",
    own!("pg_class", "c.oid"),
    " UNION ALL SELECT CASE WHEN current_setting('server_version_num')::int4 < 110000 THEN \
     'FUNCTION' ELSE 'ROUTINE' END, p.oid::regprocedure::text FROM pg_proc p JOIN pg_namespace n \
     ON n.oid = p.pronamespace WHERE NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = \
     'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'i') AND ",
    user_schema!("n"),
    " AND ",
    own!("pg_proc", "p.oid"),
    " UNION ALL SELECT 'TYPE', t.oid::regtype::text FROM pg_type t JOIN pg_namespace n ON n.oid = \
     t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid WHERE (c.relkind = 'c' OR \
     t.typrelid = 0 AND t.typtype IN ('b', 'd', 'e', 'r') AND t.typcategory <> 'A') AND ",
    user_schema!("n"),
    " AND ",
    own!("pg_type", "t.oid"),
    " UNION ALL SELECT 'SCHEMA', quote_ident(n.nspname) FROM pg_namespace n WHERE n.nspname <> \
     'public' AND ",
    user_schema!("n"),
    " AND ",
    own!("pg_namespace", "n.oid"),
    " UNION ALL SELECT 'LARGE OBJECT', l.oid::text FROM pg_largeobject_metadata l"
);

/// Tables by schema and name, partitions too.
const TABLES: &str = concat!(
    "SELECT n.nspname::text AS schema, c.relname::text AS name FROM pg_class c JOIN pg_namespace n \
     ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'f') AND ",
    user_schema!("n")
);

/// Indexes that are a part of one of a partitioned table, and how deep below it.
const PARTS: &str = "WITH RECURSIVE up AS (SELECT inhrelid AS part, inhparent AS at, 1 AS depth \
    FROM pg_inherits UNION ALL SELECT up.part, i.inhparent, up.depth + 1 FROM up JOIN pg_inherits i \
    ON i.inhrelid = up.at) SELECT n.nspname::text AS schema, c.relname::text AS name, \
    max(up.depth)::int8 AS depth FROM up JOIN pg_class c ON c.oid = up.part JOIN pg_namespace n ON \
    n.oid = c.relnamespace WHERE c.relkind IN ('i', 'I') GROUP BY 1, 2";

/// What of the target decides how the entries of a dump are arranged.
#[derive(Default)]
struct Existing {
    schemas: Vec<String>,
    extensions: Vec<String>,
    /// Schema, name and depth of [`PARTS`].
    parts: Vec<(String, String, i64)>,
}

impl Replacement {
    /// Finds out what a restore of the dump replaces; `args` are those of the restore.
    ///
    /// # Errors
    /// When something that the dump does not have depends on what is replaced, or would go with
    /// it. Nothing was changed.
    pub(super) fn plan(
        cx: &Context,
        (address, client): (&Address, &Client),
        options: &RestoreOptions,
        args: &[String],
        input: &mut dyn Read,
    ) -> Result<Self, SourceError> {
        let attempt = "look at what the restore replaces";
        let define = |head: &[u8], more: &[&str]| {
            let (call, _password) = address.call(cx, client, attempt.to_owned())?;
            let more = more.iter().map(|arg| (*arg).to_owned());
            let args: Vec<String> = args.iter().cloned().chain(more).collect();
            definitions(cx, call, head, &args)
        };
        let (head, contents) = head(input, |head| define(head, &["--list"]))?;
        let failed = |error: sqlx::Error| address.failed(attempt, &error);
        let (mut connection, existing) = block(cx, async {
            let looking = async {
                let mut connection = address.connect().await?;
                let existing = Existing::read(&mut connection).await.map_err(failed)?;
                Ok((connection, existing))
            };
            address.within(attempt, looking).await
        })?;
        let (list, kept) = existing.arrange(&String::from_utf8_lossy(&contents));
        let defined = MemoryFile::new("definitions", without_data(&list).as_bytes())?;
        let list = MemoryFile::new("entries", list.as_bytes())?;
        let chosen = format!("--use-list={}", defined.path().display());
        let script = ["--file=-", chosen.as_str()];
        let clean = [&script[..], &["--clean", "--if-exists"]].concat();
        let (clean, plain) = (define(&head, &clean)?, define(&head, &script)?);
        let others = block(cx, async {
            let clean = as_text(&mut connection, address, clean).await?;
            let plain = as_text(&mut connection, address, plain).await?;
            let drops = drops(&clean, &plain)?;
            let others = rehearse(&mut connection, address, &drops, options.delete).await?;
            Ok(others
                .into_iter()
                .filter(|one| one.kind != "SCHEMA" || !kept.contains(&one.name))
                .collect())
        })?;
        Ok(Self { head, list, others })
    }

    /// The argument by which the dump is restored so.
    pub(super) fn argument(&self) -> String {
        format!("--use-list={}", self.list.path().display())
    }

    /// What the dump does not have, in words; none where there is nothing.
    pub(super) fn others(&self) -> Option<String> {
        let names: Vec<String> = self.others.iter().map(Object::in_words).collect();
        (!names.is_empty()).then(|| some_of(&names))
    }

    /// What a restore of so many bytes does to what the dump does not have.
    pub(super) fn preview(&self, options: &RestoreOptions, bytes: u64) -> Preview {
        let action = if options.delete { Action::Delete } else { Action::Keep };
        let number = self.others.len() as u64;
        let change = |other: &Object| Change { path: other.in_words(), action };
        Preview {
            deletes: if options.delete { number } else { 0 },
            keeps: if options.delete { 0 } else { number },
            bytes,
            changes: self.others.iter().take(TOLD_DIFFERENCES).map(change).collect(),
            ..Preview::default()
        }
    }

    /// Drops what the dump does not have: all of it, or nothing when that would take along what was
    /// restored.
    pub(super) fn delete(&self, cx: &Context, address: &Address) -> Result<(), SourceError> {
        let attempt = "remove what the snapshot does not have";
        let failed = |error: sqlx::Error| address.failed(attempt, &error);
        block(cx, async {
            let mut connection = address.connect().await?;
            run(&mut connection, "BEGIN; SET LOCAL search_path = ''").await.map_err(failed)?;
            let mut wanted: HashSet<Object> =
                objects(&mut connection).await.map_err(failed)?.into_iter().collect();
            for other in &self.others {
                // One that was a part of another is gone by now.
                if wanted.remove(other)
                    && objects(&mut connection).await.map_err(failed)?.contains(other)
                {
                    run(&mut connection, &other.drop_statement()).await.map_err(failed)?;
                }
            }
            let left: HashSet<Object> =
                objects(&mut connection).await.map_err(failed)?.into_iter().collect();
            let lost: Vec<String> = wanted.difference(&left).map(Object::in_words).collect();
            if !lost.is_empty() {
                return Err(SourceError::Unsuitable(format!(
                    "Could not {attempt}: {} would go with it",
                    some_of(&lost)
                )));
            }
            run(&mut connection, "COMMIT").await.map_err(failed)
        })
    }
}

impl Existing {
    async fn read(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let names = async |connection: &mut PgConnection, sql: &'static str| {
            sqlx::query_scalar::<_, String>(sql).persistent(false).fetch_all(connection).await
        };
        let schemas = names(connection, "SELECT nspname::text FROM pg_namespace").await?;
        let extensions = names(connection, "SELECT extname::text FROM pg_extension").await?;
        let parts = sqlx::query_as(PARTS).persistent(false).fetch_all(connection).await?;
        Ok(Self { schemas, extensions, parts })
    }

    /// The lines of a table of contents that are restored, in their order; and the schemas, as in
    /// SQL, that the dump has and that stay.
    ///
    /// An index that is a part of another can be dropped with that one only. What is listed last is
    /// dropped first: the parts are listed before.
    fn arrange(&self, contents: &str) -> (String, HashSet<String>) {
        let mut lines: Vec<&str> = Vec::new();
        let mut parts: Vec<(i64, &str)> = Vec::new();
        let mut kept = HashSet::new();
        let mut first = None;
        for line in contents.lines() {
            // `3315; 2606 122444 CONSTRAINT app p p_pkey postgres`
            let entry = line.splitn(4, ' ').nth(3).unwrap_or_default();
            let named = |names: &[String], rest: &str| {
                let of = |name: &&String| {
                    rest.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with(' '))
                };
                names.iter().filter(of).max_by_key(|name| name.len()).cloned()
            };
            if let Some(rest) = entry.strip_prefix("SCHEMA - ")
                && let Some(name) = named(&self.schemas, rest)
            {
                kept.insert(quote_ident(&name));
                continue;
            }
            if let Some(rest) = entry.strip_prefix("EXTENSION - ")
                && named(&self.extensions, rest).is_some()
            {
                continue;
            }
            let index = entry.strip_prefix("CONSTRAINT ").or_else(|| entry.strip_prefix("INDEX "));
            if let Some(index) = index.filter(|_| !entry.starts_with("INDEX ATTACH ")) {
                first.get_or_insert(lines.len());
                let depth = self.parts.iter().filter_map(|(schema, name, depth)| {
                    let rest = index.strip_prefix(schema.as_str())?.strip_prefix(' ')?;
                    format!(" {rest}").contains(&format!(" {name} ")).then_some(*depth)
                });
                if let Some(depth) = depth.max() {
                    parts.push((depth, line));
                    continue;
                }
            }
            lines.push(line);
        }
        parts.sort_by_key(|(depth, _)| std::cmp::Reverse(*depth));
        let at = first.unwrap_or(lines.len()).min(lines.len());
        lines.splice(at..at, parts.into_iter().map(|(_, line)| line));
        let text = lines.into_iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        });
        (text, kept)
    }
}

/// What of an arranged table of contents is only definitions, which the head of the dump has.
fn without_data(list: &str) -> String {
    let has_data = |line: &&str| {
        let entry = line.splitn(4, ' ').nth(3).unwrap_or_default();
        entry.starts_with("TABLE DATA ") || entry.starts_with("BLOBS ")
    };
    list.split_inclusive('\n').filter(|line| !has_data(line)).collect()
}

/// A name as `quote_ident` writes it, as far as that is compared with what it wrote.
fn quote_ident(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let is_plain = name.bytes().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit());
    if is_plain { name.to_owned() } else { super::census::quoted(name) }
}

/// The statements that set up the session and drop, of a script with `--clean` and one without.
fn drops<'a>(clean: &'a str, plain: &str) -> Result<Vec<Statement<'a>>, SourceError> {
    let unread = |problem: String| {
        SourceError::Damaged(format!("The definitions in the dump cannot be read: {problem}"))
    };
    let mut clean: Vec<Statement<'a>> =
        Statements::of(clean).collect::<Result<_, _>>().map_err(unread)?;
    let plain: Vec<Statement<'_>> =
        Statements::of(plain).collect::<Result<_, _>>().map_err(unread)?;
    let set_up = clean.iter().zip(&plain).take_while(|(one, other)| one.text == other.text).count();
    clean.truncate(set_up + clean.len().saturating_sub(plain.len()));
    Ok(clean)
}

/// Drops in a transaction that is rolled back; what is there without them.
async fn rehearse(
    connection: &mut PgConnection,
    address: &Address,
    drops: &[Statement<'_>],
    delete: bool,
) -> Result<Vec<Object>, SourceError> {
    let attempt = "look at what the restore replaces";
    let failed = |error: sqlx::Error| address.failed(attempt, &error);
    run(connection, "BEGIN").await.map_err(failed)?;
    let before = tables(connection).await.map_err(failed)?;
    let mut named = HashSet::new();
    for statement in drops {
        if let Err(error) = run(connection, statement.text).await {
            return Err(in_the_way(statement, &error).unwrap_or_else(|| failed(error)));
        }
        named.extend(dropped_table(statement));
    }
    run(connection, "SET LOCAL search_path = ''").await.map_err(failed)?;
    let after = tables(connection).await.map_err(failed)?;
    let lost: Vec<String> = before
        .iter()
        .filter(|table| !after.contains(*table) && !named.contains(*table))
        .map(|(schema, name)| format!("`{}.{}`", quote_ident(schema), quote_ident(name)))
        .collect();
    if !lost.is_empty() && !delete {
        return Err(SourceError::Unsuitable(format!(
            "{} are partitions of tables that are replaced, and the snapshot does not have them: \
             they would be dropped with those. Nothing was changed. Detach them (`ALTER TABLE ... \
             DETACH PARTITION`), or pass `--delete` to lose them",
            some_of(&lost)
        )));
    }
    let others = objects(connection).await.map_err(failed)?;
    run(connection, "ROLLBACK").await.map_err(failed)?;
    Ok(others)
}

/// Why something cannot be dropped, where that is the target's.
fn in_the_way(statement: &Statement<'_>, error: &sqlx::Error) -> Option<SourceError> {
    let sqlx::Error::Database(said) = error else { return None };
    let detail = said.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
    let what = format!(
        "{}: {}{}",
        statement.title(),
        said.message(),
        detail.map(|detail| format!(" ({})", detail.replace('\n', "; "))).unwrap_or_default()
    );
    let advice = match &*said.code()? {
        "2BP01" => {
            "Something that the snapshot does not have needs what is replaced: drop that, \
            or restore into an empty database"
        }
        "42809" => "The target has something else under that name: rename or drop it",
        "42501" => "Restore as the owner of what is replaced, or as a superuser",
        _ => return None,
    };
    Some(SourceError::Unsuitable(format!(
        "The target cannot be replaced: {what}. Nothing was changed. {advice}"
    )))
}

/// Schema and name of the table that a statement drops.
fn dropped_table(statement: &Statement<'_>) -> Option<(String, String)> {
    let table = match () {
        () if statement.begins(&["drop", "table", "if", "exists"]) => 4,
        () if statement.begins(&["drop", "foreign", "table", "if", "exists"]) => 5,
        () => return None,
    };
    Some((statement.name(table)?.to_owned(), statement.name(table + 2)?.to_owned()))
}

async fn tables(connection: &mut PgConnection) -> Result<HashSet<(String, String)>, sqlx::Error> {
    let rows = sqlx::query(TABLES).persistent(false).fetch_all(connection).await?;
    rows.iter().map(|row| Ok((row.try_get("schema")?, row.try_get("name")?))).collect()
}

async fn objects(connection: &mut PgConnection) -> Result<Vec<Object>, sqlx::Error> {
    let rows = sqlx::query(OBJECTS).persistent(false).fetch_all(connection).await?;
    let object = |row: &sqlx::postgres::PgRow| {
        Ok(Object { kind: row.try_get("kind")?, name: row.try_get("name")? })
    };
    rows.iter().map(object).collect()
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(drop)
}
