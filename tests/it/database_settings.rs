//! What `ALTER DATABASE`, `ALTER ROLE ... IN DATABASE`, `COMMENT` and `GRANT` gave a database comes
//! back with it, or is left as statements, loudly; and no value of it is told anywhere else.

use serde_json::Value;

use crate::support::postgres::{Database, Server};
use crate::support::shop::{Shop, assert_passed};
use crate::support::site::Site;
use crate::support::stores::fresh;
use crate::support::{Backup, Ran, backup, files, repository};

const CONFIG: &str = r#"
[sources.db]
type = "postgres"
url = "${DB_URL}"
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["db"]
storages = ["local"]
"#;
/// The end of a value that nothing but a restore may print.
const SECRET: &str = "hunter2-is-secret";

/// A role of a test, dropped with all that is granted to it.
struct Role(Server, String);

impl Role {
    fn new(server: &Server, options: &str) -> Self {
        let name = fresh("hf_role \"x\"");
        server.run("postgres", &format!("CREATE ROLE {} {options}", quoted(&name)));
        Self(server.clone(), name)
    }

    fn sql(&self) -> String {
        quoted(&self.1)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.0.run("postgres", &format!("DROP ROLE IF EXISTS {}", self.sql()));
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A database with one table, and its backups.
struct World {
    site: Site,
    database: Database,
}

impl World {
    fn new(major: u32) -> Self {
        let database = Server::new(major).database();
        database.run("CREATE TABLE t (x int); INSERT INTO t VALUES (1)");
        Self { site: Site::new(CONFIG), database }
    }

    fn server(&self) -> &Server {
        &self.database.server
    }

    /// From another database: in this one nothing may be written any more.
    fn alter(&self, sql: &str) {
        let name = &self.database.name;
        for sql in sql.split_terminator(";\n") {
            self.server().run("postgres", &sql.replace("DB", name));
        }
    }

    fn backup(&self, args: &[&str]) -> Backup {
        self.site.backup(args).env("DB_URL", self.database.url()).env("PATH", self.server().path())
    }

    fn run(&self) -> Ran {
        self.backup(&["--strategy", "daily", "--json"]).expect(0)
    }

    fn restore(&self, url: &str, args: &[&str], code: i32) -> Ran {
        self.backup(&["restore", "--strategy", "daily", "--into", url]).args(args).expect(code)
    }
}

/// All that a database is set to, by the server alone, with its name taken out.
fn settings(database: &Database) -> Vec<String> {
    let name = &database.name;
    let sql = format!(
        "SELECT coalesce(r.rolname, '') || ' ' || unnest(s.setconfig) FROM pg_db_role_setting s \
         JOIN pg_database d ON d.oid = s.setdatabase LEFT JOIN pg_roles r ON r.oid = s.setrole \
         WHERE d.datname = '{name}' UNION ALL \
         SELECT concat_ws(' | ', datconnlimit, shobj_description(oid, 'pg_database'), \
         pg_get_userbyid(datdba), datistemplate, (SELECT string_agg(concat_ws(' ', grantee, \
         privilege_type, is_grantable), ', ' ORDER BY grantee, privilege_type) FROM \
         aclexplode(coalesce(datacl, acldefault('d', datdba))))) \
         FROM pg_database WHERE datname = '{name}' ORDER BY 1"
    );
    let mut connection = database.server.connect("postgres");
    let sql = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
    database.server.runtime.block_on(sql.fetch_all(&mut connection)).unwrap()
}

/// The statements that a restore left, which is told in `--json`.
fn left(ran: &Ran) -> Vec<String> {
    let report = ran.json();
    let all = report["restored"].as_array().unwrap().iter();
    let all = all.flat_map(|one| one["statements"].as_array().cloned().unwrap_or_default());
    all.map(|one| one["sql"].as_str().unwrap().to_owned()).collect()
}

fn notes(ran: &Ran) -> Vec<Value> {
    ran.json()["notes"]["kept"].as_array().unwrap().clone()
}

/// One of every kind that a superuser may restore.
fn every_kind(owner: &Role, reader: &Role) -> String {
    let (owner, reader) = (owner.sql(), reader.sql());
    format!(
        "ALTER DATABASE DB SET work_mem = '17MB';\n\
         ALTER DATABASE DB SET search_path = \"$user\", \"odd \"\"schema\", 'with, comma', public;\n\
         ALTER DATABASE DB SET temp_tablespaces = '';\n\
         ALTER DATABASE DB SET DateStyle = 'ISO, DMY';\n\
         ALTER DATABASE DB SET TimeZone = 'Europe/Oslo';\n\
         ALTER DATABASE DB SET log_min_duration_statement = 1000;\n\
         ALTER DATABASE DB SET default_transaction_read_only = on;\n\
         ALTER DATABASE DB SET app.token = E'it''s \\\\ a\\n{SECRET}';\n\
         ALTER ROLE {reader} IN DATABASE DB SET search_path = '';\n\
         ALTER ROLE {reader} IN DATABASE DB SET app.token = '{SECRET}';\n\
         COMMENT ON DATABASE DB IS E'it''s\\nours \\\\';\n\
         REVOKE CONNECT ON DATABASE DB FROM PUBLIC;\n\
         GRANT CONNECT ON DATABASE DB TO {reader} WITH GRANT OPTION;\n\
         GRANT CREATE ON DATABASE DB TO {reader};\n\
         ALTER DATABASE DB CONNECTION LIMIT 7;\n\
         ALTER DATABASE DB OWNER TO {owner};\n"
    )
}

fn a_superuser_restores_every_setting(major: u32) {
    let server = Server::new(major);
    let (owner, reader) = (Role::new(&server, ""), Role::new(&server, ""));
    let world = World::new(major);
    world.alter(&every_kind(&owner, &reader));
    world.run();
    let target = server.database();
    let ran = world.restore(&target.url(), &["--json"], 0);
    assert_eq!(left(&ran), [""; 0]);
    assert_eq!(settings(&target), settings(&world.database));
    assert_eq!(target.number("SELECT count(*) FROM t"), 1);
    // And once more over it, though sessions there only read by now.
    world.restore(&target.url(), &["--json"], 1);
    let again = world.restore(&target.url(), &["--json", "--overwrite"], 0);
    assert_eq!(left(&again), [""; 0]);
    assert_eq!(settings(&target), settings(&world.database));
    // Into a server where owner and reader are others, of which nothing is wanted.
    let plain = server.database();
    let ran = world.restore(&plain.url(), &["--no-owner", "--json"], 0);
    assert!(settings(&plain).iter().any(|one| one.contains("| postgres |")), "{ran}");
    assert!(notes(&ran).iter().any(|one| one["reason"].as_str().unwrap().contains("OWNER TO")));
    drop((target, plain, world));
}

#[test]
fn a_superuser_restores_every_setting_of_15() {
    a_superuser_restores_every_setting(15);
}

#[test]
fn a_superuser_restores_every_setting_of_16() {
    a_superuser_restores_every_setting(16);
}

#[test]
fn a_superuser_restores_every_setting_of_18() {
    a_superuser_restores_every_setting(18);
}

fn an_owner_is_told_what_is_left(major: u32) {
    let server = Server::new(major);
    let plain = Role::new(&server, "LOGIN PASSWORD 'pw'");
    let world = World::new(major);
    world.alter(&format!(
        "ALTER DATABASE DB SET work_mem = '17MB';\n\
         ALTER DATABASE DB SET app.token = '{SECRET}';\n\
         ALTER DATABASE DB SET log_min_duration_statement = 1000;\n\
         COMMENT ON DATABASE DB IS 'ours';\n\
         ALTER DATABASE DB CONNECTION LIMIT 7;\n"
    ));
    world.run();
    let target = server.database();
    server.run("postgres", &format!("ALTER DATABASE {} OWNER TO {}", target.name, plain.sql()));
    let mut url = server.url(&target.name);
    url.set_username(&plain.1).unwrap();
    url.set_password(Some("pw")).unwrap();
    let args = ["--no-owner", "--overwrite", "--json"];
    let ran = world.restore(url.as_str(), &args, 3);
    // A superuser's parameter, and one that the server does not know.
    let alter = format!("ALTER DATABASE \"{}\" SET", target.name);
    let mut statements = left(&ran);
    statements.sort_unstable();
    assert_eq!(
        statements,
        [
            format!("{alter} \"app.token\" TO '{SECRET}'"),
            format!("{alter} \"log_min_duration_statement\" TO '1000'"),
        ]
    );
    let shown = world.restore(url.as_str(), &["--no-owner", "--overwrite"], 3);
    for statement in &statements {
        assert!(shown.out().contains(&format!("{statement};")), "{shown}");
        server.run("postgres", statement);
    }
    assert!(!shown.err().contains(SECRET), "{shown}");
    let ran = world.restore(url.as_str(), &args, 0);
    assert_eq!(left(&ran), [""; 0]);
    let without_owner = |database: &Database| {
        let text = settings(database).join("\n");
        text.split(" | ").take(2).collect::<Vec<_>>().join(" | ")
    };
    assert_eq!(without_owner(&target), without_owner(&world.database));
    drop(target);
}

#[test]
fn an_owner_of_15_is_told_what_is_left() {
    an_owner_is_told_what_is_left(15);
}

#[test]
fn an_owner_of_16_is_told_what_is_left() {
    an_owner_is_told_what_is_left(16);
}

#[test]
fn an_owner_of_18_is_told_what_is_left() {
    an_owner_is_told_what_is_left(18);
}

#[test]
fn preload_libraries_are_never_set() {
    let world = World::new(15);
    world.alter(
        "ALTER DATABASE DB SET session_preload_libraries = 'plpgsql';\n\
         ALTER DATABASE DB SET local_preload_libraries = '$libdir/plugins/a', b;\n",
    );
    // The server loads them where somebody connects; this one is not there.
    world.alter("ALTER DATABASE DB RESET local_preload_libraries;\n");
    world.run();
    let target = world.server().database();
    let ran = world.restore(&target.url(), &["--json"], 3);
    let statements = left(&ran);
    assert_eq!(statements.len(), 1, "{ran}");
    assert!(settings(&target).iter().all(|one| !one.contains("preload")), "{ran}");
    // Whoever runs it has all of it.
    world.server().run("postgres", &statements[0]);
    assert_eq!(left(&world.restore(&target.url(), &["--json", "--overwrite"], 0)), [""; 0]);
    assert_eq!(settings(&target), settings(&world.database));
}

#[test]
fn a_missing_role_is_a_note() {
    let server = Server::new(16);
    let world = World::new(16);
    {
        let gone = Role::new(&server, "");
        let role = gone.sql();
        world.alter(&format!(
            "ALTER ROLE {role} IN DATABASE DB SET app.token = '{SECRET}';\n\
             GRANT CREATE ON DATABASE DB TO {role};\n\
             ALTER DATABASE DB OWNER TO {role};\n"
        ));
        world.run();
        world.alter(&format!(
            "ALTER DATABASE DB OWNER TO postgres;\nREVOKE ALL ON DATABASE DB FROM {role};\n"
        ));
    }
    let target = server.database();
    let ran = world.restore(&target.url(), &["--json"], 0);
    assert_eq!(left(&ran), [""; 0]);
    assert!(notes(&ran).len() >= 2, "{ran}");
    assert!(!ran.out().contains(SECRET), "{ran}");
}

#[test]
fn another_encoding_or_locale_is_a_note() {
    let world = World::new(16);
    world.run();
    let server = world.server();
    let target = server.database();
    let name = &target.name;
    server.run("postgres", &format!("DROP DATABASE {name}"));
    server.run(
        "postgres",
        &format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"),
    );
    let ran = world.restore(&target.url(), &["--json"], 0);
    assert!(notes(&ran).iter().any(|one| one["reason"].as_str().unwrap().contains("SQL_ASCII")));
}

#[test]
fn values_stand_in_no_log_status_or_report() {
    let shop = Shop::new(15);
    let server = shop.server().clone();
    let reader = Role::new(&server, "");
    for (role, database) in [("postgres".to_owned(), true), (reader.sql(), false)] {
        let whose = if database {
            format!("ALTER DATABASE {}", shop.database.name)
        } else {
            format!("ALTER ROLE {role} IN DATABASE {}", shop.database.name)
        };
        server.run("postgres", &format!("{whose} SET app.token = '{SECRET}'"));
        server.run("postgres", &format!("{whose} SET work_mem = '17MB'"));
    }
    server.run(
        "postgres",
        &format!(
            "COMMENT ON DATABASE {0} IS 'ours'; ALTER DATABASE {0} CONNECTION LIMIT 0; \
             ALTER DATABASE {0} SET default_transaction_read_only = on; \
             ALTER DATABASE {0} SET search_path = 'odd, name'",
            shop.database.name
        ),
    );
    let mut said = shop.backup(&["--strategy", "daily", "--json"]).env("RUST_LOG", "trace");
    let ran = said.expect(0);
    let mut texts = vec![format!("{}{}", ran.out(), ran.err())];
    // In a cluster for itself, and on a server as a superuser.
    for (drill, taken) in
        [("", "4"), ("postgres = { url = \"${SCRATCH_15}\", on_source_server = true }\n", "7")]
    {
        shop.configure(drill);
        said = shop.backup(&["drill", "--strategy", "daily", "--json"]).env("RUST_LOG", "trace");
        let ran = said.expect(0);
        let report = ran.json();
        assert_passed(&report);
        let check = report["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["kind"] == "settings" && check["outcome"] == "passed")
            .unwrap_or_else(|| panic!("no settings: {report:#}"));
        assert_eq!(check["expected"], taken, "{check:#}");
        assert_eq!(shop.leftovers(&[&server]), [""; 0]);
        texts.push(format!("{}{}", ran.out(), ran.err()));
    }
    for args in [
        &["status", "--json"][..],
        &["list", "--json"],
        &["show", "latest"],
        &["drill", "report", "--strategy", "daily", "--json"],
        &["drill", "report", "--strategy", "daily"],
        &["verify", "--read-data", "--json"],
        &["check"],
    ] {
        let ran = shop.backup(args).run();
        texts.push(format!("{}{}", ran.out(), ran.err()));
    }
    for text in &texts {
        assert!(!text.contains(SECRET), "{text}");
    }
    for (name, content) in files(&shop.site.path("state")) {
        let found = content.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
        assert!(!found, "{}", name.display());
    }
}

#[test]
fn the_recipe_by_hand_prints_every_setting() {
    let server = Server::new(18);
    let (owner, reader) = (Role::new(&server, ""), Role::new(&server, ""));
    let world = World::new(18);
    world.alter(&every_kind(&owner, &reader));
    world.run();
    let shown = world.backup(&["show", "latest", "--json"]).expect(0).json();
    let commands: Vec<&str> = shown["commands"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["command"].as_str().unwrap())
        .collect();
    let target = server.database();
    let shell = |command: &str| {
        let mut shell = std::process::Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", command]).env_clear();
        shell.env("PATH", server.path()).env("DATABASE", target.url());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    shell(commands[0]);
    let script = shell(commands[1]);
    // But for the database itself, which is there under another name.
    let kept = |line: &&str| !line.starts_with("CREATE DATABASE ");
    let script = script.lines().filter(kept).collect::<Vec<_>>().join("\n");
    let file = world.site.path("settings.sql");
    std::fs::write(&file, script.replace(&world.database.name, &target.name)).unwrap();
    let postgres = server.url("postgres");
    shell(&format!("psql -Xq -v ON_ERROR_STOP=1 -d {postgres} -f {}", file.display()));
    assert_eq!(settings(&target), settings(&world.database));
    drop((target, world));
}

#[test]
fn a_snapshot_without_settings_is_restored_with_a_note() {
    let server = Server::new(16);
    let target = server.database();
    let old = repository().join("tests/fixtures/format-1/plain");
    let ran = backup(["restore", "--source", "db", "--json", "--no-owner", "--into"])
        .args([target.url().as_ref(), "--storage".as_ref(), old.as_os_str()])
        .env("PATH", server.path())
        .expect(0);
    assert_eq!(left(&ran), [""; 0]);
    assert_eq!(notes(&ran).len(), 1, "{ran}");
}
