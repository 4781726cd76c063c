//! Restores as the owner of a database who is no superuser, as on managed servers.

use serde_json::Value;

use crate::support::Ran;
use crate::support::postgres::{Database, Server};
use crate::support::site::Site;

/// An owner of a database, and a snapshot of another.
struct Managed {
    original: Database,
    target: Database,
    site: Site,
}

impl Managed {
    /// `sql` makes the original, and `admin` runs in the target before.
    fn new(major: u32, sql: &str, admin: &str) -> Self {
        let server = Server::new(major);
        let (original, target) = (server.database(), server.database());
        original.run(sql);
        target.run(&format!(
            "CREATE ROLE {0} LOGIN PASSWORD 'x'; ALTER DATABASE {0} OWNER TO {0}; ALTER SCHEMA \
             public OWNER TO {0}; {admin}",
            target.name
        ));
        let site = Site::new(
            "[sources.db]\ntype = \"postgres\"\nurl = \"${DB_URL}\"\n\
             [storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
             [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n",
        );
        let managed = Self { original, target, site };
        managed.backup(&["--strategy", "daily"]).expect(0);
        managed
    }

    fn backup(&self, args: &[&str]) -> crate::support::Backup {
        let server = &self.original.server;
        self.site.backup(args).env("DB_URL", self.original.url()).env("PATH", server.path())
    }

    fn restore(&self, code: i32) -> Ran {
        let mut into = self.target.server.url(&self.target.name);
        into.set_username(&self.target.name).unwrap();
        into.set_password(Some("x")).unwrap();
        let all = ["restore", "--strategy", "daily", "--no-owner", "--json", "--into"];
        self.backup(&all).arg(into.as_str()).expect(code)
    }
}

impl Drop for Managed {
    fn drop(&mut self) {
        let name = &self.target.name;
        let server = &self.target.server;
        server.run("postgres", &format!("ALTER DATABASE {name} OWNER TO postgres"));
        self.target.run(&format!("REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}"));
        server.run("postgres", &format!("DROP ROLE {name}"));
    }
}

fn kept(ran: &Ran, what: &str) -> Vec<Value> {
    ran.json()[what]["kept"].as_array().unwrap().clone()
}

#[test]
fn an_extension_of_an_administrator_is_used() {
    let managed = Managed::new(
        15,
        "CREATE EXTENSION hstore; CREATE TABLE a (h hstore); INSERT INTO a VALUES ('a=>1')",
        "CREATE EXTENSION hstore",
    );
    let ran = managed.restore(0);
    let notes = kept(&ran, "notes");
    assert!(notes.iter().any(|note| note.to_string().contains("`hstore`")), "{ran}");
    assert_eq!(managed.target.number("SELECT count(*) FROM a WHERE h ? 'a'"), 1);
}

fn a_missing_tablespace_is_a_note(major: u32) {
    let server = Server::new(major);
    let mut connection = server.connect("postgres");
    let space = crate::support::stores::fresh("space").replace('-', "_");
    let sql = [
        "SET allow_in_place_tablespaces = on".to_owned(),
        format!("CREATE TABLESPACE {space} LOCATION ''"),
    ];
    for sql in sql {
        let run = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection);
        server.runtime.block_on(run).unwrap();
    }
    let sql = format!(
        "CREATE TABLE a (x int) TABLESPACE {space}; INSERT INTO a VALUES (1); CREATE INDEX ON a \
         (x) TABLESPACE {space}"
    );
    let managed = Managed::new(major, &sql, "");
    let ran = managed.restore(0);
    let notes = kept(&ran, "notes");
    assert!(notes.iter().any(|note| note.to_string().contains(&format!("`{space}`"))), "{ran}");
    assert_eq!(managed.target.number("SELECT count(*) FROM a"), 1);
    managed.original.run("DROP TABLE a");
    server.run("postgres", &format!("DROP TABLESPACE {space}"));
}

#[test]
fn a_missing_tablespace_is_a_note_in_15() {
    a_missing_tablespace_is_a_note(15);
}

#[test]
fn a_missing_tablespace_is_a_note_in_18() {
    a_missing_tablespace_is_a_note(18);
}

#[test]
fn a_subscription_that_nobody_may_make_is_a_warning() {
    for major in [15, 18] {
        let subscription = crate::support::stores::fresh("sub").replace('-', "_");
        let sql = format!(
            "CREATE TABLE a (x int); CREATE SUBSCRIPTION {subscription} CONNECTION 'host=127.0.0.1 \
             port=1 password=hunter2' PUBLICATION p WITH (connect = false, slot_name = 'hf_slot')"
        );
        let managed = Managed::new(major, &sql, "");
        let ran = managed.restore(3);
        managed.original.run(&format!(
            "ALTER SUBSCRIPTION {subscription} SET (slot_name = NONE); DROP SUBSCRIPTION \
             {subscription}"
        ));
        let warnings = kept(&ran, "warnings");
        let told = |warning: &Value| warning.to_string().contains(&format!("`{subscription}`"));
        assert!(warnings.iter().any(told), "{ran}");
        assert_eq!(managed.target.number("SELECT count(*) FROM a"), 0);
    }
}

#[test]
fn what_an_owner_may_not_make_has_its_hint() {
    for major in [15, 18] {
        for (sql, hint) in [
            ("CREATE PUBLICATION p FOR ALL TABLES", "superuser"),
            (
                "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE \
                 EVENT TRIGGER hf_event ON sql_drop WHEN TAG IN ('DROP CAST') EXECUTE FUNCTION f()",
                "superuser",
            ),
            (
                "CREATE FUNCTION twice(x int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * x'; \
                 CREATE FUNCTION more(x int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN \
                 RETURN twice(x); END'; CREATE TABLE a (x int CHECK (more(x) > 0)); INSERT INTO \
                 a VALUES (1)",
                "search_path",
            ),
        ] {
            let managed = Managed::new(major, sql, "");
            let ran = managed.restore(1);
            assert!(ran.err().contains(hint), "{sql}: {ran}");
            assert!(!ran.err().contains("--no-owner"), "{sql}: {ran}");
        }
    }
}
