//! A drill restores what users of the source made, and none of it gets the power of a superuser;
//! and a good backup of everything that PostgreSQL has passes all the same.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;

use crate::support::needs_root;
use crate::support::postgres::Server;
use crate::support::shop::{Shop, assert_passed};
use crate::support::stores::fresh;

/// Beside the source, as a superuser: there the carriers do what they can.
const AS_SUPERUSER: &str = "postgres = { url = \"${SCRATCH_15}\", on_source_server = true }\n";

/// A role of a test, dropped with it.
struct Role(Server, String);

impl Role {
    fn new(server: &Server, name: &str) -> Self {
        let name = format!("{}{name}", fresh("hf_role").replace('-', "_"));
        server.run("postgres", &format!("CREATE ROLE {}", quoted(&name)));
        Self(server.clone(), name)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.0.run("postgres", &format!("DROP ROLE {}", quoted(&self.1)));
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A folder that anybody may write in.
fn open_folder() -> TempDir {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Objects of a database that run a program when they are used, in a database of a drill only: each
/// makes a file of its name.
fn carriers(folder: &Path) -> String {
    format!(
        r#"
CREATE FUNCTION evil(what text) RETURNS int LANGUAGE plpgsql AS $f$
BEGIN
  IF current_database() LIKE 'holdfast_drill_%' THEN
    BEGIN EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'touch {folder}/' || what);
    EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN EXECUTE format('COPY (SELECT 1) TO %L', '{folder}/' || what || '_file');
    EXCEPTION WHEN OTHERS THEN NULL; END;
    BEGIN ALTER ROLE CURRENT_USER SUPERUSER;
      EXECUTE format('COPY (SELECT 1) TO PROGRAM %L', 'touch {folder}/' || what);
    EXCEPTION WHEN OTHERS THEN NULL; END;
  END IF;
  RETURN 1;
END $f$;
CREATE FUNCTION still(what text) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
  $f$ BEGIN RETURN public.evil(what); END $f$;
CREATE FUNCTION fires() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS
  $f$ BEGIN PERFORM public.evil('trigger'); RETURN NEW; END $f$;
CREATE FUNCTION fires_on_event() RETURNS event_trigger LANGUAGE plpgsql AS
  $f$ BEGIN PERFORM public.evil('event'); END $f$;
CREATE VIEW carrier_view AS SELECT evil('view') AS one;
CREATE MATERIALIZED VIEW carrier_filled AS SELECT evil('filled') AS one;
CREATE TABLE carrier (a int);
INSERT INTO carrier VALUES (1);
CREATE INDEX carrier_index ON carrier ((still('index') + a));
CREATE TABLE carrier_check (a int, CHECK (evil('check') = a));
INSERT INTO carrier_check VALUES (1);
CREATE TABLE carrier_made (a int, b int GENERATED ALWAYS AS (still('made') + a) STORED);
INSERT INTO carrier_made VALUES (1);
CREATE DOMAIN of_default AS int CHECK (evil('default') = 1);
CREATE TYPE with_default AS (a of_default);
CREATE FUNCTION defaults(a with_default DEFAULT '(1)') RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE DOMAIN of_leakproof AS int CHECK (evil('leakproof') = 1);
CREATE TYPE with_leakproof AS (a of_leakproof);
CREATE FUNCTION tight(a with_leakproof DEFAULT '(1)') RETURNS int LEAKPROOF LANGUAGE sql AS 'SELECT 1';
CREATE DOMAIN of_table AS int CHECK (evil('domain') = 1);
CREATE TABLE carrier_domain (a of_table DEFAULT evil('column'));
INSERT INTO carrier_domain VALUES (1);
CREATE DOMAIN of_aggregate AS int CHECK (evil('aggregate') = 1);
CREATE FUNCTION adds(of_aggregate, int) RETURNS of_aggregate LANGUAGE sql AS 'SELECT $1';
CREATE AGGREGATE carrier_sum(int) (SFUNC = adds, STYPE = of_aggregate, INITCOND = '1');
CREATE TABLE carrier_trigger (a int);
CREATE TRIGGER carrier_fires BEFORE INSERT ON carrier_trigger FOR EACH ROW EXECUTE FUNCTION fires();
CREATE EVENT TRIGGER {event} ON ddl_command_end EXECUTE FUNCTION fires_on_event();
CREATE SCHEMA of_extension;
CREATE FUNCTION of_extension.format(text, text) RETURNS text LANGUAGE sql AS
  $f$ SELECT public.evil('extension')::text $f$;
CREATE EXTENSION hstore SCHEMA of_extension;
CREATE FUNCTION of_extension.text(of_extension.hstore) RETURNS int LANGUAGE sql AS
  $f$ SELECT public.evil('extension') $f$;
"#,
        folder = folder.display(),
        event = fresh("carrier").replace('-', "_"),
    )
}

/// Asks and writes as an operator's checks do.
const CHECKS: &str = r#"
[[strategies.daily.drill.checks]]
type = "query"
source = "db"
query = "SELECT one FROM carrier_view"
expect = 1
[[strategies.daily.drill.checks]]
type = "query"
source = "db"
query = "SELECT evil('query')"
expect = 1
[[strategies.daily.drill.checks]]
type = "command"
command = ["sh", "-c", '''psql -XAtqv ON_ERROR_STOP=1 -d "$HOLDFAST_DB_URL" -c "INSERT INTO carrier_trigger VALUES (1)"''']
"#;

/// The carriers that ran something.
fn ran(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The shop with everything of its server's roles in the snapshot.
fn with_roles(shop: &Shop, drill: &str) {
    shop.configure(drill);
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    let text = text.replace("[sources.settings]", "globals = true\n[sources.settings]");
    std::fs::write(shop.site.config(), text).unwrap();
}

#[test]
fn no_code_of_the_source_runs_a_program() {
    let shop = Shop::new(15);
    let folder = open_folder();
    shop.database.run(&carriers(folder.path()));
    let touch = format!("touch {}/globals", folder.path().display());
    let _role = Role::new(shop.server(), &format!("\n\\! {touch}\n; \\! {touch}\n"));
    // Without the roles, and with them.
    for roles in [false, true] {
        if roles {
            with_roles(&shop, CHECKS);
        } else {
            shop.configure(CHECKS);
        }
        shop.run();
        let report = shop.drill(0, &[]).json();
        assert_passed(&report);
        assert_eq!(ran(folder.path()), [""; 0], "with roles: {roles}");
    }
    // They would have: as a superuser each of them does.
    shop.configure(&format!("{AS_SUPERUSER}{CHECKS}"));
    shop.drill(0, &[]);
    let names = ran(folder.path());
    for name in [
        "aggregate",
        "check",
        "default",
        "domain",
        "event",
        "filled",
        "index",
        "leakproof",
        "made",
        "query",
        "trigger",
        "view",
    ] {
        assert!(names.iter().any(|one| one == name), "{name}: {names:?}");
    }
}

#[test]
fn without_root_no_code_runs_a_program_either() {
    let shop = Shop::new(15);
    let folder = open_folder();
    shop.database.run(&carriers(folder.path()));
    with_roles(&shop, &format!("work_dir = \"@/w\"\n{CHECKS}"));
    shop.run();
    let drill = shop.backup(&["drill", "--strategy", "daily", "--json"]);
    // `daemon`: who runs `psql` must have a name, and `nobody` must have no other process.
    assert_passed(&drill.with_user(1, shop.site.dir.path()).expect(0).json());
    assert_eq!(ran(folder.path()), [""; 0]);
}

/// One object of each kind that `pg_dump` knows, as far as a server has it without packages.
fn one_of_each(role: &str, event: &str, server: &Server) -> String {
    let for_schema = "CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA app;";
    let extension = if server.major == 15 {
        "CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; COMMENT ON EXTENSION hstore IS 'pairs';
         CREATE EXTENSION postgres_fdw; CREATE EXTENSION file_fdw;
         CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '192.0.2.1', dbname 'x');
         CREATE USER MAPPING FOR postgres SERVER far OPTIONS (user 'x', password_required 'false');
         CREATE FOREIGN TABLE app.far (a int) SERVER far;
         CREATE MATERIALIZED VIEW app.of_far AS SELECT * FROM app.far WITH NO DATA;
         CREATE SERVER near FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE app.near (a text) SERVER near OPTIONS (filename '/etc/hostname');
         CREATE MATERIALIZED VIEW app.of_near AS SELECT * FROM app.near;
         CREATE MATERIALIZED VIEW app.of_of_near AS SELECT * FROM app.of_near;"
    } else {
        "CREATE EXTENSION vector; CREATE TABLE app.vectors (v vector(3));
         INSERT INTO app.vectors VALUES ('[1,2,3]');"
    };
    format!(
        r#"
CREATE SCHEMA app;
COMMENT ON SCHEMA app IS 'it''s ours';
COMMENT ON SCHEMA public IS 'for all';
GRANT USAGE ON SCHEMA app TO {role};
{extension}
CREATE TYPE app.color AS ENUM ('red', 'green');
CREATE TYPE app.pair AS (a int, b text);
CREATE DOMAIN app.positive AS int CHECK (VALUE > 0);
CREATE TYPE app.span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE app.closed;
CREATE FUNCTION app.canon(app.closed) RETURNS app.closed LANGUAGE internal IMMUTABLE STRICT AS 'int4range_canonical';
CREATE TYPE app.closed AS RANGE (subtype = int, canonical = app.canon);
CREATE TYPE app.note;
CREATE FUNCTION app.note_in(cstring) RETURNS app.note LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION app.note_out(app.note) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE app.note (INPUT = app.note_in, OUTPUT = app.note_out, LIKE = text, DEFAULT = 'a', DELIMITER = '|', COLLATABLE = true);
ALTER TYPE app.note OWNER TO {role};
COMMENT ON TYPE app.note IS 'a base type';
CREATE FUNCTION app.note_lt(app.note, app.note) RETURNS bool LANGUAGE internal IMMUTABLE STRICT LEAKPROOF AS 'text_lt';
CREATE FUNCTION app.note_le(app.note, app.note) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'text_le';
CREATE FUNCTION app.note_eq(app.note, app.note) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'texteq';
CREATE FUNCTION app.note_ge(app.note, app.note) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'text_ge';
CREATE FUNCTION app.note_gt(app.note, app.note) RETURNS bool LANGUAGE internal IMMUTABLE STRICT AS 'text_gt';
CREATE FUNCTION app.note_cmp(app.note, app.note) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'bttextcmp';
CREATE OPERATOR app.< (FUNCTION = app.note_lt, LEFTARG = app.note, RIGHTARG = app.note, COMMUTATOR = OPERATOR(app.>), RESTRICT = scalarltsel);
CREATE OPERATOR app.<= (FUNCTION = app.note_le, LEFTARG = app.note, RIGHTARG = app.note);
CREATE OPERATOR app.= (FUNCTION = app.note_eq, LEFTARG = app.note, RIGHTARG = app.note, COMMUTATOR = OPERATOR(app.=), RESTRICT = eqsel, HASHES, MERGES);
CREATE OPERATOR app.>= (FUNCTION = app.note_ge, LEFTARG = app.note, RIGHTARG = app.note);
CREATE OPERATOR app.> (FUNCTION = app.note_gt, LEFTARG = app.note, RIGHTARG = app.note);
CREATE OPERATOR CLASS app.note_ops DEFAULT FOR TYPE app.note USING btree AS OPERATOR 1 app.<, OPERATOR 2 app.<=, OPERATOR 3 app.=, OPERATOR 4 app.>=, OPERATOR 5 app.>, FUNCTION 1 app.note_cmp(app.note, app.note);
COMMENT ON OPERATOR CLASS app.note_ops USING btree IS 'ordered';
CREATE OPERATOR FAMILY app.loose USING btree;
CREATE CAST (app.note AS text) WITHOUT FUNCTION AS ASSIGNMENT;
COMMENT ON CAST (app.note AS text) IS 'the same bytes';
CREATE FUNCTION app.from_color(app.color) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE CAST (app.color AS int) WITH FUNCTION app.from_color(app.color);
CREATE TABLE app.notes (n app.note NOT NULL) PARTITION BY RANGE (n);
CREATE TABLE app.notes_a PARTITION OF app.notes FOR VALUES FROM ('a') TO ('n');
INSERT INTO app.notes VALUES ('b');
CREATE INDEX ON app.notes (n);
CREATE COLLATION app.plain (locale = 'C');
CREATE CONVERSION app.latin FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE TEXT SEARCH PARSER app.words (START = prsd_start, GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype);
CREATE TEXT SEARCH TEMPLATE app.simple (INIT = dsimple_init, LEXIZE = dsimple_lexize);
CREATE TEXT SEARCH DICTIONARY app.words (TEMPLATE = app.simple);
CREATE TEXT SEARCH CONFIGURATION app.words (PARSER = app.words);
ALTER TEXT SEARCH CONFIGURATION app.words ADD MAPPING FOR asciiword WITH app.words;
COMMENT ON TEXT SEARCH PARSER app.words IS 'splits';
CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE app.other_heap (a int) USING heap2;
COMMENT ON ACCESS METHOD heap2 IS 'the same';
CREATE FUNCTION app.handler() RETURNS language_handler LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler';
CREATE LANGUAGE odd HANDLER app.handler;
COMMENT ON LANGUAGE odd IS 'untrusted';
CREATE FUNCTION app.in_odd() RETURNS int LANGUAGE odd AS 'BEGIN RETURN 1; END';
CREATE FUNCTION app.from_sql(internal) RETURNS internal LANGUAGE internal IMMUTABLE STRICT AS 'prsd_lextype';
CREATE TRANSFORM FOR app.note LANGUAGE plpgsql (FROM SQL WITH FUNCTION app.from_sql(internal));
CREATE FOREIGN DATA WRAPPER own OPTIONS (a 'b;c');
CREATE SERVER own FOREIGN DATA WRAPPER own;
CREATE USER MAPPING FOR PUBLIC SERVER own OPTIONS (password 'hunter2');
CREATE FOREIGN TABLE app.foreign_own (a int) SERVER own;
GRANT USAGE ON FOREIGN DATA WRAPPER own TO {role};
CREATE AGGREGATE app.list(anynonarray) (SFUNC = array_agg_transfn, STYPE = internal, FINALFUNC = array_agg_finalfn, FINALFUNC_EXTRA);
COMMENT ON AGGREGATE app.list(anynonarray) IS 'a list';
CREATE AGGREGATE app.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE FUNCTION app.tight(a int, b text DEFAULT 'x') RETURNS bool LANGUAGE sql IMMUTABLE LEAKPROOF SET search_path TO 'app', 'pg_catalog' AS $$ SELECT true; $$;
CREATE FUNCTION app.supported(int, int) RETURNS SETOF int LANGUAGE sql SUPPORT generate_series_int4_support AS 'SELECT 1';
CREATE FUNCTION app.replica() RETURNS int LANGUAGE plpgsql SET session_replication_role TO 'replica' AS $$ BEGIN RETURN 1; END $$;
CREATE FUNCTION app.body() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE WHEN true THEN 1 ELSE 2 END; SELECT 2; END;
CREATE PROCEDURE app.does() LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
ALTER FUNCTION app.body() OWNER TO {role};
CREATE TABLE app.all_of_it (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, c app.color DEFAULT 'red', p app.pair, d app.positive, s app.span, twice int GENERATED ALWAYS AS (2) STORED, t text COLLATE app.plain, EXCLUDE USING gist (s WITH &&));
INSERT INTO app.all_of_it (p, d, s, t) VALUES ((1, 'a'), 1, '[1,2]', 'x'), ((2, 'b'), 2, '[3,4]', 'ünï');
ALTER TABLE app.all_of_it OWNER TO {role};
ALTER TABLE app.all_of_it ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY, REPLICA IDENTITY FULL;
CREATE POLICY few ON app.all_of_it TO {role} USING (id < 10);
GRANT SELECT (id), UPDATE (t) ON app.all_of_it TO PUBLIC;
CREATE TABLE app.child (x int REFERENCES app.all_of_it) INHERITS (app.other_heap);
CREATE UNLOGGED TABLE app.fast (a int);
CREATE STATISTICS app.both ON c, t FROM app.all_of_it;
CREATE SEQUENCE app.numbers OWNED BY app.fast.a;
CREATE RULE quiet AS ON UPDATE TO app.fast DO ALSO (SELECT 1; SELECT 2);
CREATE VIEW app.seen WITH (security_barrier) AS SELECT id, t FROM app.all_of_it WITH CHECK OPTION;
CREATE RECURSIVE VIEW app.counted(n) AS SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < 3;
CREATE MATERIALIZED VIEW app.kept AS SELECT count(*) FROM app.all_of_it;
CREATE UNIQUE INDEX ON app.kept (count);
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER touched BEFORE UPDATE ON app.all_of_it FOR EACH ROW EXECUTE FUNCTION app.touch();
ALTER TABLE app.all_of_it DISABLE TRIGGER touched;
COMMENT ON TRIGGER touched ON app.all_of_it IS 'off';
CREATE FUNCTION app.on_event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE EVENT TRIGGER {event} ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION app.on_event();
COMMENT ON EVENT TRIGGER {event} IS 'listens';
CREATE PUBLICATION of_all FOR ALL TABLES WITH (publish = 'insert, update');
COMMENT ON PUBLICATION of_all IS 'all';
CREATE PUBLICATION of_one FOR TABLE app.all_of_it WHERE (id > 1);
{for_schema}
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO {role};
ALTER DEFAULT PRIVILEGES FOR ROLE {role} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_catalog.lo_import(text) TO {role};
REVOKE EXECUTE ON FUNCTION app.replica() FROM PUBLIC;
SELECT lo_from_bytea(778, 'x');
ALTER LARGE OBJECT 778 OWNER TO {role};
COMMENT ON LARGE OBJECT 778 IS 'large';
GRANT SELECT ON LARGE OBJECT 778 TO PUBLIC;
"#
    )
}

/// A backup of one of each passes, without the roles and with them.
fn one_of_each_passes(major: u32) {
    let server = Server::new(major);
    let role = Role::new(&server, "");
    let shop = Shop::new(major);
    let event = fresh("one").replace('-', "_");
    shop.database.run(&one_of_each(&role.1, &event, &server));
    let asks = format!(
        "[[strategies.daily.drill.checks]]\ntype = \"query\"\nsource = \"db\"\n\
         query = \"SELECT count(*) FROM pg_event_trigger WHERE evtname = '{event}' AND evtenabled = 'D'\"\n\
         expect = 1\n\
         [[strategies.daily.drill.checks]]\ntype = \"query\"\nsource = \"db\"\n\
         query = \"SELECT count(*) FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner WHERE \
         r.rolsuper AND p.pronamespace = 'app'::regnamespace AND p.prosrc NOT LIKE \
         '%range_constructor%'\"\nexpect = 0\n\
         [[strategies.daily.drill.checks]]\ntype = \"query\"\nsource = \"db\"\n\
         query = \"SELECT count(*) FROM pg_roles WHERE rolsuper AND oid <> 10 OR rolname = \
         current_user AND rolsuper\"\nexpect = 0\n\
         [[strategies.daily.drill.checks]]\ntype = \"query\"\nsource = \"db\"\n\
         query = \"SELECT count(*) FROM pg_auth_members WHERE roleid IN (4569, 4570, 4571) AND \
         member NOT IN (3373)\"\nexpect = 0\n\
         [[strategies.daily.drill.checks]]\ntype = \"query\"\nsource = \"db\"\n\
         query = \"SELECT count(*) FROM app.seen\"\nexpect = 2\n"
    );
    let mut reports = Vec::new();
    for roles in [false, true] {
        if roles {
            with_roles(&shop, &asks);
        } else {
            shop.configure(&asks);
        }
        shop.run();
        reports.push(shop.backup(&["drill", "--strategy", "daily", "--json"]).run());
    }
    let (url, leftovers) = (shop.database.name.clone(), shop.leftovers(&[]));
    server.run("postgres", &format!("DROP DATABASE {url} WITH (FORCE)"));
    for report in reports {
        assert_passed(&report.expect(0).json());
    }
    assert_eq!(leftovers, [""; 0]);
}

#[test]
fn one_of_each_object_of_postgres_15_passes() {
    one_of_each_passes(15);
}

#[test]
fn one_of_each_object_of_postgres_16_passes() {
    one_of_each_passes(16);
}

#[test]
fn one_of_each_object_of_postgres_18_passes() {
    one_of_each_passes(18);
}

#[test]
fn check_warns_of_a_drill_as_superuser() {
    let shop = Shop::new(15);
    let server = shop.server();
    let found = |url: &str, code: i32| {
        shop.configure("postgres = { url = \"${SCRATCH}\", on_source_server = true }\n");
        let checked = shop.backup(&["check", "--json"]).env("SCRATCH", url).expect(code).json();
        let all = checked["instances"][0]["findings"].as_array().unwrap().clone();
        let mut levels = all
            .iter()
            .filter(|one| one["subject"] == "drill: daily")
            .map(|one| one["level"].as_str().unwrap().to_owned());
        let level = levels.next().unwrap_or_else(|| panic!("{checked:#}"));
        assert_eq!(levels.next(), None, "{checked:#}");
        level
    };
    assert_eq!(found(server.url("postgres").as_str(), 0), "warning");
    // One that may make databases and no more, and one that may not even do that.
    let role = Role::new(server, "");
    let mut url = server.url("postgres");
    url.set_username(&role.1).unwrap();
    url.set_password(Some("pw")).unwrap();
    for (option, level, code) in [("CREATEDB", "ok", 0), ("NOCREATEDB", "error", 1)] {
        let name = quoted(&role.1);
        server.run("postgres", &format!("ALTER ROLE {name} LOGIN PASSWORD 'pw' {option}"));
        assert_eq!(found(url.as_str(), code), level, "{option}");
    }
}

#[test]
fn a_cluster_of_the_drill_has_no_network() {
    needs_root("another user and a network namespace are needed");
    let shop = Shop::new(15);
    let found = open_folder();
    let seen = found.path().join("seen");
    // Whatever works in the folder of a drill, with its user and its network; and our own.
    let look = format!(
        r#"[[strategies.daily.drill.checks]]
type = "command"
command = ["bash", "-c", '''
    for process in /proc/[0-9]*; do
        case "$(readlink $process/cwd)" in *holdfast_drill_*_pg/*)
            echo "$(stat -c %U $process) $(readlink $process/ns/net)";;
        esac
    done 2>/dev/null | sort -u >{}
''']
"#,
        seen.display()
    );
    shop.configure(&look);
    shop.run();
    assert_passed(&shop.drill(0, &[]).json());
    let seen = std::fs::read_to_string(seen).unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!seen.is_empty(), "no server was seen");
    for line in seen.lines() {
        assert!(line.starts_with("nobody net:"), "{seen}");
        assert!(!line.ends_with(own.to_str().unwrap()), "{seen}");
    }
}

#[test]
fn a_user_with_other_processes_is_warned_of() {
    needs_root("another user is needed");
    let shop = Shop::new(15);
    let level = |user: &str| {
        shop.configure(&format!("postgres = {{ run_as = \"{user}\" }}\n"));
        let check = shop.backup(&["check", "--json"]).run().json();
        let findings = check["instances"][0]["findings"].as_array().unwrap().clone();
        let of_drill = findings
            .into_iter()
            .filter(|finding| finding["subject"] == "drill: daily")
            .find(|finding| finding["message"].as_str().unwrap().contains("cluster"));
        of_drill.unwrap()["level"].as_str().unwrap().to_owned()
    };
    // The servers of the tests are its own.
    assert_eq!(level("postgres"), "warning");
    // Of every Debian, and of no test.
    assert_eq!(level("games"), "ok");
    assert_eq!(level("no-such-user"), "error");
}
