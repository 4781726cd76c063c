//! The settings of a database, as the server has them and as they stand in the facts.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row};

use crate::model::Remarks;

/// The settings of one database, as the facts have them.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::source::postgres) struct Settings {
    /// Of the database, and of roles in it; not those that a role has in all databases.
    pub(super) settings: Vec<Setting>,
    /// -1: none.
    pub(super) connection_limit: i32,
    pub(super) comment: Option<String>,
    /// Null: those of a new database.
    pub(super) acl: Option<Vec<Privilege>>,
    pub(super) security_labels: Vec<Label>,
    pub(super) is_template: bool,
    pub(super) owner: Option<String>,
    tablespace: Option<String>,
    encoding: Option<String>,
    collate: Option<String>,
    ctype: Option<String>,
    /// `libc`, `icu`, `builtin`; null before 15.
    locale_provider: Option<String>,
    locale: Option<String>,
    icu_rules: Option<String>,
}

/// `ALTER DATABASE ... SET`, or `ALTER ROLE ... IN DATABASE ... SET`.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Setting {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<String>,
    pub(super) name: String,
    pub(super) value: String,
}

/// One privilege on the database.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Privilege {
    /// Null: `PUBLIC`.
    pub(super) role: Option<String>,
    /// `CONNECT`, `CREATE`, `TEMPORARY`.
    pub(super) privilege: String,
    #[serde(default)]
    pub(super) grantable: bool,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Label {
    pub(super) provider: String,
    pub(super) label: String,
}

/// What a new database lets everybody do.
pub(super) const OF_PUBLIC: [&str; 2] = ["TEMPORARY", "CONNECT"];
pub(super) const OF_OWNER: [&str; 3] = ["CREATE", "TEMPORARY", "CONNECT"];

/// `row_to_json`, since columns came and went with the versions.
const DATABASE: &str = "SELECT d.datconnlimit::int4 AS connection_limit, \
    shobj_description(d.oid, 'pg_database') AS comment, d.datacl IS NOT NULL AS has_acl, \
    d.datistemplate AS is_template, pg_get_userbyid(d.datdba)::text AS owner, \
    (SELECT t.spcname::text FROM pg_tablespace t WHERE t.oid = d.dattablespace) AS tablespace, \
    pg_encoding_to_char(d.encoding)::text AS encoding, d.datcollate::text AS collate, \
    d.datctype::text AS ctype, row_to_json(d)->>'datlocprovider' AS provider, \
    coalesce(row_to_json(d)->>'datlocale', row_to_json(d)->>'daticulocale') AS locale, \
    row_to_json(d)->>'daticurules' AS icu_rules \
    FROM pg_database d WHERE d.datname::text = $1";
const SETTINGS: &str = "SELECT r.rolname::text AS role, unnest(s.setconfig) AS setting \
    FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase \
    LEFT JOIN pg_roles r ON r.oid = s.setrole \
    WHERE d.datname::text = $1 AND (s.setrole = 0 OR r.rolname IS NOT NULL) \
    ORDER BY r.rolname NULLS FIRST";
const PRIVILEGES: &str = "SELECT CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END \
    AS role, a.privilege_type AS privilege, a.is_grantable AS grantable \
    FROM pg_database d, aclexplode(d.datacl) a WHERE d.datname::text = $1 ORDER BY 1 NULLS FIRST, 2";
const LABELS: &str = "SELECT l.provider, l.label FROM pg_shseclabel l JOIN pg_database d ON \
    l.classoid = 'pg_database'::regclass AND l.objoid = d.oid WHERE d.datname::text = $1 ORDER BY 1";

impl Settings {
    /// Those in the facts of a dump; none where an older version took it.
    ///
    /// # Errors
    /// When they cannot be understood, in words without a value.
    pub(in crate::source::postgres) fn of_facts(
        facts: &serde_json::Value,
    ) -> Result<Option<Self>, String> {
        if facts.get("settings").is_none() {
            return Ok(None);
        }
        let read = Self::deserialize(facts);
        // What serde says may quote a value.
        read.map(Some)
            .map_err(|_| "the facts about the settings of the database are malformed".to_owned())
    }

    /// As the server has them now. The session's `search_path` is `pg_catalog`.
    pub(in crate::source::postgres) async fn read(
        connection: &mut PgConnection,
        database: &str,
    ) -> Result<Self, sqlx::Error> {
        let row =
            sqlx::query(DATABASE).bind(database).persistent(false).fetch_one(&mut *connection);
        let row = row.await?;
        let provider: Option<String> = row.try_get("provider")?;
        let mut read = Self {
            settings: Vec::new(),
            connection_limit: row.try_get("connection_limit")?,
            comment: row.try_get("comment")?,
            acl: None,
            security_labels: Vec::new(),
            is_template: row.try_get("is_template")?,
            owner: row.try_get("owner")?,
            tablespace: row.try_get("tablespace")?,
            encoding: row.try_get("encoding")?,
            collate: row.try_get("collate")?,
            ctype: row.try_get("ctype")?,
            locale_provider: provider.map(|letter| match letter.as_str() {
                "c" => "libc".to_owned(),
                "i" => "icu".to_owned(),
                "b" => "builtin".to_owned(),
                _ => letter,
            }),
            locale: row.try_get("locale")?,
            icu_rules: row.try_get("icu_rules")?,
        };
        let has_acl: bool = row.try_get("has_acl")?;
        let mut all = async |sql: &'static str| {
            sqlx::query(sql).bind(database).persistent(false).fetch_all(&mut *connection).await
        };
        for row in all(SETTINGS).await? {
            let setting: String = row.try_get("setting")?;
            let Some((name, value)) = setting.split_once('=') else { continue };
            let (name, value) = (name.to_owned(), value.to_owned());
            read.settings.push(Setting { role: row.try_get("role")?, name, value });
        }
        for row in all(LABELS).await? {
            let (provider, label) = (row.try_get("provider")?, row.try_get("label")?);
            read.security_labels.push(Label { provider, label });
        }
        if has_acl {
            let mut acl = Vec::new();
            for row in all(PRIVILEGES).await? {
                let (role, privilege) = (row.try_get("role")?, row.try_get("privilege")?);
                acl.push(Privilege { role, privilege, grantable: row.try_get("grantable")? });
            }
            read.acl = Some(acl);
        }
        Ok(read)
    }

    /// Whether sessions of the database read only, unless they say otherwise.
    pub(in crate::source::postgres) fn only_reads(&self) -> bool {
        self.settings.iter().any(|one| one.name == "default_transaction_read_only")
    }

    /// The privileges, those of a new database written out.
    pub(super) fn privileges(&self) -> Vec<Privilege> {
        let of = |role: Option<String>, privilege: &str| Privilege {
            role,
            privilege: privilege.to_owned(),
            grantable: false,
        };
        self.acl.clone().unwrap_or_else(|| {
            let public = OF_PUBLIC.iter().map(|privilege| of(None, privilege));
            let owner = OF_OWNER.iter().map(|privilege| of(self.owner.clone(), privilege));
            public.chain(owner.filter(|one| one.role.is_some())).collect()
        })
    }

    /// Notes what a database has for its life, where the one at hand was made otherwise.
    pub(super) fn note_differences(&self, found: &Self, remarks: &mut Remarks) {
        // `en_US.UTF-8` and `en_US.utf8` are one locale.
        let plain = |text: &String| text.to_ascii_lowercase().replace('-', "");
        let differing: Vec<String> = [
            ("encoding", &self.encoding, &found.encoding),
            ("collate", &self.collate, &found.collate),
            ("ctype", &self.ctype, &found.ctype),
            ("locale provider", &self.locale_provider, &found.locale_provider),
            ("locale", &self.locale, &found.locale),
            ("ICU rules", &self.icu_rules, &found.icu_rules),
            ("tablespace", &self.tablespace, &found.tablespace),
        ]
        .into_iter()
        .filter_map(|(what, was, is)| {
            let was = was.as_ref()?;
            let same = is.as_ref().is_some_and(|is| plain(is) == plain(was));
            let is = is.as_deref().unwrap_or("none");
            (!same).then(|| format!("{what} `{is}` (it was `{was}`)"))
        })
        .collect();
        if !differing.is_empty() {
            remarks.note(format!(
                "The target has another {}, which a restore does not change: they are chosen with \
                 `CREATE DATABASE`",
                differing.join(", ")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Settings;

    #[test]
    fn facts_of_older_versions_have_no_settings() {
        let old = json!({ "type": "postgres", "v": 1, "encoding": "UTF8", "collate": "C" });
        assert!(Settings::of_facts(&old).is_ok_and(|found| found.is_none()));
        let new = json!({ "settings": [{ "name": "a.b", "value": "c" }], "comment": null });
        let read = Settings::of_facts(&new).unwrap().unwrap();
        assert_eq!(read.settings.len(), 1);
        let odd = json!({ "settings": [{ "name": "a.b", "value": ["hunter2"] }] });
        assert!(Settings::of_facts(&odd).is_err_and(|error| !error.contains("hunter2")));
    }
}
