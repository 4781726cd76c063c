//! What tools that end well say on their standard error is kept with the snapshot, masked and
//! bounded, and what a database's own tool marks as a warning is one.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use crate::support::postgres::{MAJORS, Server};
use crate::support::sh;
use crate::support::shop::Shop;
use crate::support::site::Site;
use crate::support::sources::script;

/// The remarks of a document, `notes` or `warnings`, as lines.
fn said(document: &Value, level: &str) -> Vec<String> {
    let kept = document[level]["kept"].as_array().unwrap_or_else(|| panic!("{document:#}"));
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    kept.iter().map(|one| format!("{}|{}", text(one, "source"), text(one, "reason"))).collect()
}

/// A search path with `tools` before the clients of the server's major.
fn before(tools: &Path, server: &Server) -> OsString {
    let path = server.path();
    std::env::join_paths([tools.to_owned()].into_iter().chain(std::env::split_paths(&path)))
        .unwrap()
}

/// The facts of the last snapshot say the same as the run's report.
fn assert_kept(site: &Site, report: &Value) {
    let shown = site.backup(["show", "latest", "--json"]).expect(0).json();
    for level in ["notes", "warnings"] {
        assert_eq!(said(&shown["facts"], level), said(report, level), "{shown:#}");
    }
}

#[test]
fn a_warning_of_pg_dump_is_one_unless_accepted() {
    for major in MAJORS {
        let database = Server::new(major).database();
        let role = format!("reader_{}", database.name);
        database.run(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'pw-of-reader' IN ROLE pg_read_all_data;
             CREATE TABLE t (a int);
             CREATE SUBSCRIPTION sub_{} CONNECTION 'dbname=elsewhere' PUBLICATION p
                 WITH (connect = false, slot_name = NONE)",
            database.name
        ));
        let mut url = database.server.url(&database.name);
        url.set_username(&role).unwrap();
        url.set_password(Some("pw-of-reader")).unwrap();
        let configuration = |accept: &str| {
            format!(
                "[sources.db]\ntype = \"postgres\"\nurl = \"{}\"\n{accept}\n[storages.local]\n\
                 type = \"local\"\npath = \"@/store\"\n[strategies.daily]\nsources = [\"db\"]\n\
                 storages = [\"local\"]\n",
                url.as_str().replace('@', "%AT%")
            )
        };
        let site = Site::new("");
        let configure = |accept: &str| {
            site.configure(&configuration(accept));
            let text = std::fs::read_to_string(site.config()).unwrap().replace("%AT%", "@");
            std::fs::write(site.config(), text).unwrap();
        };
        configure("");
        // In another language it would not be known for what it is.
        let run = |code: i32| {
            let ran = site.backup(["--strategy", "daily", "--json"]).env("LANG", "de_DE.UTF-8");
            let ran = ran.env("LC_MESSAGES", "de_DE.UTF-8").env("PATH", database.server.path());
            ran.expect(code).json()
        };
        let report = run(3);
        let warnings = said(&report, "warnings");
        let about = |line: &String| {
            line.starts_with("db|pg_dump: warning: ") && line.contains("subscriptions not dumped")
        };
        assert!(matches!(&warnings[..], [one] if about(one)), "{major}: {warnings:?}");
        assert_eq!(report["completeness"], "whole");
        assert_kept(&site, &report);
        configure("accept_warnings = [\"no such\", \"subscriptions not*superuser\"]");
        let report = run(0);
        assert_eq!(said(&report, "warnings"), [""; 0]);
        assert!(said(&report, "notes").iter().any(about), "an accepted one is a note");
        assert_eq!(report["suspect"], false);
        assert_kept(&site, &report);
        configure("accept_warnings = [\"\"]");
        site.backup(["check"]).expect(2);
        database.run(&format!(
            "DROP SUBSCRIPTION sub_{}; DROP OWNED BY {role}; DROP ROLE {role}",
            database.name
        ));
    }
}

#[test]
fn every_tool_of_postgres_is_heard() {
    let database = Server::new(18).database();
    let site = Site::new("");
    let tools = site.path("tools");
    for tool in ["pg_dump", "pg_dumpall", "pg_restore"] {
        let real = database.server.bin.join(tool);
        let body = format!(
            "case \" $* \" in *' --version '*) ;; *) echo '{tool}: warning: {tool} is odd' >&2; \
             echo '{tool}: detail: very' >&2; echo \"NOTICE:  lc=$LC_ALL\" >&2;; esac\n\
             exec '{}' \"$@\"",
            real.display()
        );
        script(&tools.join(tool), &body);
    }
    std::fs::write(
        site.config(),
        format!(
            "instance = \"app\"\nstate_dir = \"state\"\n[sources.db]\ntype = \"postgres\"\n\
             url = \"{}\"\nglobals = true\nclient_dir = \"tools\"\n[storages.local]\n\
             type = \"local\"\npath = \"store\"\n[strategies.daily]\nsources = [\"db\"]\n\
             storages = [\"local\"]\n",
            database.url()
        ),
    )
    .unwrap();
    let report = site.run(3).json();
    assert_eq!(
        said(&report, "warnings"),
        [
            "db|pg_dumpall: warning: pg_dumpall is odd detail: very",
            "db|pg_dump: warning: pg_dump is odd detail: very"
        ]
    );
    assert_eq!(said(&report, "notes"), ["db|NOTICE:  lc=C", "db|NOTICE:  lc=C"]);
    assert_kept(&site, &report);
    // A restore looks for the tools in the search path.
    let target = database.server.database();
    let restored = site
        .backup(["restore", "--json", "--into"])
        .arg(target.url())
        .env("PATH", before(&tools, &database.server))
        .expect(3)
        .json();
    let warnings = said(&restored, "warnings");
    assert_eq!(warnings, ["db|pg_restore: warning: pg_restore is odd detail: very"]);
}

/// A flood that has secrets in it, of every program of the operator.
#[test]
fn what_programs_say_is_a_note_masked_and_bounded() {
    let site = Site::new(
        r#"
[sources.dump]
type = "command"
command = ["sh", "@/said.sh"]
restore_command = ["sh", "-c", "cat >/dev/null; exec sh @/said.sh restore"]
env = { SECRET = "hunter22" }
before = ["sh", "@/said.sh", "before"]
after = ["sh", "@/said.sh", "after"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["dump"]
storages = ["local"]
before = ["sh", "@/said.sh", "run"]
"#,
    );
    let body = "echo \"$1 warning: token=hunter22 ${SECRET:-none}\" >&2; echo data";
    std::fs::write(site.path("said.sh"), body).unwrap();
    let report = site.run(0).json();
    assert_eq!(said(&report, "warnings"), [""; 0]);
    let expected = [
        "|sh: run warning: token=*** none",
        "dump|sh: before warning: token=*** none",
        "dump|sh: after warning: token=*** none",
        "dump|sh: warning: token=*** ***",
    ];
    assert_eq!(said(&report, "notes"), expected);
    assert_kept(&site, &report);
    let restored = site.backup(["restore", "--to-command", "--json"]);
    let restored = restored.expect(0).json();
    assert!(
        said(&restored, "notes").contains(&"dump|sh: restore warning: token=*** ***".to_owned()),
        "{restored:#}"
    );
    let flood = "i=0; while [ $i -lt 5000 ]; do echo \"line $i hunter22\" >&2; i=$((i+1)); done";
    std::fs::write(site.path("said.sh"), format!("[ -n \"$1\" ] || {{ {flood}; }}; echo x"))
        .unwrap();
    let report = site.run(0).json();
    let notes = said(&report, "notes");
    assert_eq!(notes.len(), 101);
    assert!(notes[100].contains("4900") && !notes.join("").contains("hunter22"), "{notes:?}");
}

#[test]
fn a_drill_shows_what_tools_and_checks_said() {
    let shop = Shop::new(18);
    let check = "[[strategies.daily.drill.checks]]\ntype = \"command\"\n\
        command = [\"sh\", \"-c\", \"echo looked at all >&2\"]\n";
    shop.configure(check);
    let tools = shop.site.path("tools");
    let real = shop.server().bin.join("pg_restore");
    let body = format!(
        "[ \"$1\" = --version ] || echo 'pg_restore: warning: odd' >&2\nexec '{}' \"$@\"",
        real.display()
    );
    script(&tools.join("pg_restore"), &body);
    shop.run();
    let drill = shop.backup(&["drill", "--strategy", "daily", "--json"]);
    let report = drill.env("PATH", before(&tools, shop.server())).expect(0).json();
    assert!(said(&report, "warnings").contains(&"db|pg_restore: warning: odd".to_owned()));
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["kind"] == "command").unwrap();
    assert_eq!(check["details"], serde_json::json!(["sh: looked at all"]), "{report:#}");
}

#[test]
fn what_programs_say_has_no_secret_of_another_part() {
    let site = Site::new(
        r#"
[sources.db]
type = "postgres"
url = "postgresql://app:Tq9xw7zkAT127.0.0.1:1/shop"
[sources.dump]
type = "command"
command = ["sh", "@/said.sh"]
[storages.local]
type = "local"
path = "@/store"
[storages.far]
type = "s3"
bucket = "b"
endpoint = "http://127.0.0.1:1"
region = "eu"
access_key_id = "AKIAV5J2"
secret_access_key_file = "far-key"
[notify.chat]
type = "webhook"
url = "http://127.0.0.1:1/hook/Wv8mmQ2p"
[strategies.daily]
sources = ["dump"]
storages = ["local"]
before = ["sh", "@/said.sh"]
"#,
    );
    let text = std::fs::read_to_string(site.config()).unwrap().replace("AT127", "@127");
    std::fs::write(site.config(), text).unwrap();
    let secrets = ["Tq9xw7zk", "Kf3vbn8r", "http://127.0.0.1:1/hook/Wv8mmQ2p"];
    std::fs::write(site.path("far-key"), secrets[1]).unwrap();
    let body = format!("echo x{}x >&2; echo data", secrets.join("x >&2; echo x"));
    std::fs::write(site.path("said.sh"), &body).unwrap();
    let report = site.run(0);
    assert_eq!(said(&report.json(), "notes").len(), 6);
    std::fs::remove_file(site.path("said.sh")).unwrap();
    std::fs::remove_file(site.path("far-key")).unwrap();
    std::fs::remove_file(site.config()).unwrap();
    for secret in secrets {
        assert!(!report.to_string().contains(secret), "{secret} in {report}");
        let looks = "for one in $(find store -name '*.zst'); do zstd -dqf \"$one\"; done\n\
                     grep -rl \"$1\" . || :";
        let found = sh(site.dir.path(), looks, &[secret.as_ref()]);
        assert_eq!(found, "", "{secret}");
    }
}
