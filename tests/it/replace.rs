//! `restore --overwrite` of a PostgreSQL database that has other objects than the snapshot.

use crate::support::postgres::{Database, Server};
use crate::support::site::Site;
use crate::support::{Backup, Ran};

/// One of each that a plain `DROP` in the order of a dump would not get past.
const SCHEMA: &str = "
CREATE SCHEMA app;
CREATE TYPE app.mood AS ENUM ('sad', 'glad');
CREATE TABLE app.item (id serial PRIMARY KEY, mood app.mood);
INSERT INTO app.item (mood) VALUES ('sad'), ('glad');
CREATE TABLE log (at int PRIMARY KEY, item int REFERENCES app.item) PARTITION BY RANGE (at);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (at);
CREATE TABLE a_leaf PARTITION OF log_1 FOR VALUES FROM (0) TO (5);
CREATE INDEX ON log (item);
INSERT INTO log VALUES (1, 1);
CREATE VIEW seen AS SELECT * FROM log;
CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT lo_from_bytea(777, 'x');
";

/// What only the target has, in any schema, and needs nothing of the snapshot's.
const EXTRA: &str = "
CREATE TABLE app.later (id serial PRIMARY KEY); INSERT INTO app.later VALUES (7);
CREATE SCHEMA other; CREATE VIEW other.more AS SELECT 1 AS a;
CREATE FUNCTION app.two() RETURNS int LANGUAGE sql AS 'SELECT 2';
CREATE TYPE app.color AS ENUM ('red');
";

struct Clinic {
    site: Site,
    original: Database,
    target: Database,
}

impl Clinic {
    /// A snapshot of a database, and a target that has the same and more.
    fn new(major: u32, more: &str) -> Self {
        let server = Server::new(major);
        let (original, target) = (server.database(), server.database());
        original.run(SCHEMA);
        target.run(SCHEMA);
        target.run("DELETE FROM log; UPDATE app.item SET mood = 'sad'; DROP FUNCTION one()");
        target.run(more);
        let site = Site::new(
            "[sources.db]\ntype = \"postgres\"\nurl = \"${DB_URL}\"\n\
             [storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
             [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n",
        );
        let clinic = Self { site, original, target };
        clinic.backup(&["--strategy", "daily"]).expect(0);
        clinic
    }

    fn backup(&self, args: &[&str]) -> Backup {
        let server = &self.original.server;
        self.site.backup(args).env("DB_URL", self.original.url()).env("PATH", server.path())
    }

    fn restore(&self, args: &[&str], code: i32) -> Ran {
        let into = self.target.url();
        let all = ["restore", "--strategy", "daily", "--overwrite", "--json", "--into", &into];
        self.backup(&all).args(args).expect(code)
    }

    fn canonical(&self, database: &Database) -> Vec<String> {
        database.canonical(&self.original.server.bin)
    }
}

fn warnings(ran: &Ran) -> String {
    ran.json()["warnings"]["kept"].to_string()
}

/// The names of `EXTRA`, as they are told.
const NAMES: [&str; 5] = ["app.later", "other", "other.more", "app.two()", "app.color"];

fn objects_are_replaced_and_others_stay(major: u32) {
    for jobs in ["1", "2"] {
        let clinic = Clinic::new(major, EXTRA);
        let ran = clinic.restore(&["-j", jobs], 3);
        for name in NAMES {
            assert!(warnings(&ran).contains(&format!("`{name}`")), "{name}: {ran}");
        }
        assert_eq!(clinic.target.number("SELECT max(id)::int8 FROM app.later"), 7);
        assert_eq!(clinic.target.number("SELECT count(*) FROM other.more"), 1);
        clinic.target.run(
            "DROP TABLE app.later; DROP SCHEMA other CASCADE; DROP FUNCTION app.two(); DROP TYPE \
             app.color",
        );
        assert_eq!(clinic.canonical(&clinic.target), clinic.canonical(&clinic.original));
        // Again, over what is the same.
        clinic.restore(&["-j", jobs], 0);
        assert_eq!(clinic.canonical(&clinic.target), clinic.canonical(&clinic.original));
    }
}

#[test]
fn objects_of_15_are_replaced_and_others_stay() {
    objects_are_replaced_and_others_stay(15);
}

#[test]
fn objects_of_18_are_replaced_and_others_stay() {
    objects_are_replaced_and_others_stay(18);
}

#[test]
fn with_delete_only_the_snapshot_is_left() {
    let clinic = Clinic::new(16, EXTRA);
    clinic.target.run("CREATE TABLE b_leaf PARTITION OF log_1 FOR VALUES FROM (5) TO (10)");
    let before = clinic.canonical(&clinic.target);
    let shown = clinic.restore(&["--delete", "--dry-run"], 0);
    assert_eq!(clinic.canonical(&clinic.target), before);
    for name in NAMES {
        assert!(shown.out().contains(&format!("`{name}`")), "{name}: {shown}");
    }
    let ran = clinic.restore(&["--delete"], 0);
    for name in NAMES {
        assert!(ran.out().contains(&format!("`{name}`")), "{name}: {ran}");
    }
    assert_eq!(clinic.canonical(&clinic.target), clinic.canonical(&clinic.original));
}

#[test]
fn what_depends_on_a_replaced_object_stops_the_restore() {
    for (more, names) in [
        ("CREATE VIEW kept AS SELECT * FROM app.item", ["view public.kept", "table app.item"]),
        ("CREATE TABLE kept (m app.mood)", ["table public.kept", "type app.mood"]),
        ("CREATE TABLE kept (i int REFERENCES app.item)", ["on table public.kept", "app.item"]),
        ("CREATE TABLE kept () INHERITS (app.item)", ["table public.kept", "table app.item"]),
        (
            "CREATE TABLE kept PARTITION OF log_1 FOR VALUES FROM (5) TO (10)",
            ["public.kept", "--delete"],
        ),
        ("DROP VIEW seen; CREATE TABLE seen (a int)", ["public.seen", "is not a view"]),
    ] {
        for jobs in ["1", "2"] {
            let clinic = Clinic::new(15, more);
            let before = clinic.canonical(&clinic.target);
            clinic.restore(&["-j", jobs, "--dry-run"], 1);
            let ran = clinic.restore(&["-j", jobs], 1);
            for name in names {
                assert!(ran.err().contains(name), "{name}: {ran}");
            }
            assert_eq!(clinic.canonical(&clinic.target), before, "{more}");
        }
    }
}
