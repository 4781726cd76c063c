//! Backups that are bad at the root: stored without a flaw, and wrong. Each is found by the check
//! that is for it, and by that alone.

use std::path::PathBuf;

use chrono::{TimeDelta, Utc};
use serde_json::Value;

use crate::support::daemon::WallClock;
use crate::support::forge;
use crate::support::postgres::MAJORS;
use crate::support::sh;
use crate::support::shop::{Shop, assert_passed, outcomes};

/// Databases go to the server of the source, which is quick.
const SERVER: &str = "postgres = { url = \"${SCRATCH_15}\", on_source_server = true }\n";

/// A check of every file that the database names.
const REFERENCES: &str = r#"
[[strategies.daily.drill.checks]]
type = "references"
source = "db"
query = "SELECT substr(sha256, 1, 2) || '/' || sha256 AS path, size, sha256 FROM attachment"
files = "files"
prefix = "attachments"
"#;

fn shop(checks: &str) -> Shop {
    let shop = Shop::new(15);
    shop.configure(&format!("{SERVER}{checks}"));
    shop
}

/// The kinds of the checks that failed, each once.
fn kinds(report: &Value) -> Vec<String> {
    let failed = outcomes(report, "failed");
    let mut kinds: Vec<String> =
        failed.iter().map(|check| check.split(' ').next().unwrap().to_owned()).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// A dump of the shop's database as `pg_dump` makes it with these arguments.
fn dump(shop: &Shop, args: &str) -> PathBuf {
    let script =
        format!(r#""$1"/pg_dump --format=custom --compress=0 {args} --dbname="$2" > dump"#);
    sh(
        shop.site.dir.path(),
        &script,
        &[shop.server().bin.as_os_str(), shop.database.url().as_ref()],
    );
    shop.site.path("dump")
}

/// What a drill says of a snapshot whose dump was replaced by one with these arguments, after this
/// was done to the database.
fn drilled_with(sql: &str, args: &str) -> Value {
    let shop = shop("");
    let id = shop.run();
    if !sql.is_empty() {
        shop.database.run(sql);
    }
    forge::replace(&shop, &id, "db.pgdump", &dump(&shop, args));
    let report = shop.drill(4, &[]).json();
    assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
    report
}

#[test]
fn a_table_that_is_missing_is_found_by_name() {
    let report = drilled_with("", "--exclude-table='\"user\"'");
    let failed = outcomes(&report, "failed");
    assert!(
        failed
            .iter()
            .any(|check| check
                .contains("rows of \"public\".\"user\": expected 2, found no such table")),
        "{failed:#?}"
    );
    assert_eq!(kinds(&report), ["counts", "rows"]);
}

#[test]
fn rows_that_are_missing_are_found_in_their_table() {
    let report = drilled_with("DELETE FROM item WHERE id > 490", "");
    assert_eq!(
        outcomes(&report, "failed"),
        ["rows db: rows of \"public\".\"item\": expected 500, found 490 "]
    );
    assert!(report["problem"].as_str().unwrap().contains("expected 500, found 490"), "{report:#}");
}

#[test]
fn a_dump_that_was_cut_before_its_indexes_and_triggers_is_found() {
    let report = drilled_with("", "--section=pre-data --section=data");
    let failed = outcomes(&report, "failed");
    for what in ["indexes", "constraints", "triggers"] {
        assert!(
            failed.iter().any(|check| check.starts_with(&format!("counts db: {what}:"))),
            "{what}: {failed:#?}"
        );
    }
    assert_eq!(kinds(&report), ["counts"]);
}

#[test]
fn a_dump_that_was_cut_in_the_middle_does_not_restore() {
    let shop = shop("");
    let id = shop.run();
    let whole = std::fs::read(dump(&shop, "")).unwrap();
    std::fs::write(shop.site.path("cut"), &whole[..whole.len() / 2]).unwrap();
    forge::replace(&shop, &id, "db.pgdump", &shop.site.path("cut"));
    let report = shop.drill(4, &[]).json();
    assert_eq!(kinds(&report), ["restore"], "{report:#}");
    // The files were looked at all the same.
    assert!(outcomes(&report, "passed").iter().any(|check| check.starts_with("files files")));
}

#[test]
fn an_sqlite_database_without_some_rows_or_an_index_is_found() {
    let shop = shop("");
    let id = shop.run();
    let other = |sql: &str| {
        sh(
            shop.site.dir.path(),
            r#"cp settings.db other.db && sqlite3 other.db "$1""#,
            &[sql.as_ref()],
        );
        forge::replace(&shop, &id, "settings.sqlite", &shop.site.path("other.db"));
        shop.drill(4, &[]).json()
    };
    // Its restore counts the rows already.
    let report = other("DELETE FROM setting WHERE key = 'key 1'");
    assert!(report["problem"].as_str().unwrap().contains("49"), "{report:#}");
    assert_eq!(kinds(&report), ["restore"]);
    let report = other("DROP INDEX by_value");
    let failed = outcomes(&report, "failed");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(
        failed[0].starts_with("counts settings: indexes") && failed[0].contains("by_value"),
        "{failed:#?}"
    );
}

#[test]
fn a_file_that_the_database_names_and_the_folder_lacks_is_found() {
    let shop = shop(REFERENCES);
    shop.run();
    let report = shop.drill(0, &[]).json();
    assert_passed(&report);
    let passed = outcomes(&report, "passed");
    assert!(
        passed.iter().any(|check| check.contains("expected 10 files as they are named, found 10")),
        "{passed:#?}"
    );
    let gone = shop.attach("soon gone");
    std::fs::remove_file(&gone).unwrap();
    shop.run();
    let report = shop.drill(4, &[]).json();
    let failed = outcomes(&report, "failed");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    let name = gone.file_name().unwrap().to_str().unwrap();
    assert!(
        failed[0].starts_with("references db")
            && failed[0].contains(&format!("{name}` is missing")),
        "{failed:#?}"
    );
    // What may be absent is counted, and no fault.
    let name = format!("may_be_absent = [\"/{}/{name}\"]\n", &name[..2]);
    shop.configure(&format!("{SERVER}{REFERENCES}{name}"));
    let report = shop.drill(0, &[]).json();
    assert!(
        outcomes(&report, "passed")
            .iter()
            .any(|check| check.contains("1 of them absent as they may be"))
    );
}

#[test]
fn files_named_must_be_filled_and_owned() {
    let shop = shop("");
    let empty = shop.attach("");
    shop.run();
    let name = empty.file_name().unwrap().to_str().unwrap();
    let check = |more: &str| {
        let check = REFERENCES.trim_start().strip_prefix("[[strategies.daily.drill.checks]]\n");
        format!("{}name = \"media\"\n{more}", check.unwrap())
    };
    for (more, code, words) in [
        ("", 0, "media: expected 11 files"),
        ("not_empty = true", 4, &*format!("{name}` is empty")),
        ("owner = \"root\"", 0, "media: expected 11 files"),
        ("owner = 0", 0, "media: expected 11 files"),
        ("owner = 64999", 4, "belongs to the user 0"),
        ("owner = \"no-such-user\"", 1, "no user `no-such-user`"),
    ] {
        comes_out(&shop, &check(more), code, words);
    }
    // Elsewhere all files belong to who restores them, whoever should have them.
    shop.configure(&format!(
        "work_dir = \"@/w\"\n{SERVER}[[strategies.daily.drill.checks]]\n{}",
        check("owner = 64999")
    ));
    let drill = shop.backup(&["drill", "--strategy", "daily", "--json"]);
    let report = drill.with_user(64999, shop.site.dir.path()).expect(0).json();
    let skipped = outcomes(&report, "skipped");
    let told = |check: &String| check.starts_with("references db: owner of media");
    assert!(skipped.iter().any(told), "{skipped:#?}");
    let check = shop.backup(&["check"]).with_user(64999, shop.site.dir.path()).expect(0);
    assert!(check.out().contains("`owner`"), "{check}");
}

#[test]
fn an_attachment_whose_content_or_size_changed_is_found() {
    let shop = shop(REFERENCES);
    let path = shop.attach("the right content");
    std::fs::write(&path, "the wong! content").unwrap();
    shop.run();
    let failed = outcomes(&shop.drill(4, &[]).json(), "failed");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert!(
        failed[0].starts_with("references db") && failed[0].contains("has the digest"),
        "{failed:#?}"
    );
    std::fs::write(&path, "shorter").unwrap();
    shop.run();
    let failed = outcomes(&shop.drill(4, &[]).json(), "failed");
    assert!(failed[0].contains("has 7 bytes, and 17 are named"), "{failed:#?}");
}

#[test]
fn a_path_that_leads_out_of_the_folder_is_no_file_in_it() {
    let shop =
        shop(&REFERENCES.replace(
            "substr(sha256, 1, 2) || '/' || sha256",
            "'../../../../../../../../etc/passwd'",
        ));
    shop.run();
    let failed = outcomes(&shop.drill(4, &[]).json(), "failed");
    assert!(failed[0].contains("leads out of the folder"), "{failed:#?}");
}

/// One check, and how it comes out: the code of the drill, and what is said.
fn comes_out(shop: &Shop, check: &str, code: i32, words: &str) {
    shop.configure(&format!("{SERVER}[[strategies.daily.drill.checks]]\n{check}\n"));
    let report = shop.drill(code, &[]).json();
    let outcome = ["passed", "inconclusive", "", "", "failed"]
        [usize::from(code == 1) + usize::from(code == 4) * 4];
    let found = outcomes(&report, outcome);
    assert!(found.iter().any(|check| check.contains(words)), "{check}: {words}: {found:#?}");
}

#[test]
fn queries_are_held_against_what_is_expected() {
    let shop = shop("");
    shop.run();
    let query = |query: &str, more: &str| {
        format!("type = \"query\"\nsource = \"db\"\nquery = '''{query}'''\n{more}")
    };
    for (check, code, words) in [
        (
            query("SELECT count(*) > 0 FROM \"user\" WHERE admin;", "expect = true"),
            0,
            "expected true, found true",
        ),
        (
            query("SELECT count(*) FROM item -- all", "min = 500\nmax = 500"),
            0,
            "at least 500 and at most 500, found 500",
        ),
        (query("SELECT count(*) FROM item", "min = 501"), 4, "expected at least 501, found 500"),
        (query("SELECT name FROM \"user\" WHERE id = 1", "expect = \"Ann\""), 0, "found `Ann`"),
        (query("SELECT sum(price) FROM item", "expect = 125250"), 0, "found 125250"),
        (query("SELECT 1 WHERE false", "expect = 1"), 4, "found no row"),
        (query("SELECT id FROM item", "expect = 1"), 4, "several rows"),
        (query("SELECT 1, 2 AS b", "expect = 1"), 4, "2 columns"),
        (
            query("SELECT * FROM itm", "expect = 1"),
            4,
            "relation \\\"itm\\\" does not exist".trim_matches('\\'),
        ),
        (query("SELECT pg_sleep(60)", "expect = 1\ntimeout = \"1s\""), 1, "statement timeout"),
        (
            query(
                "WITH gone AS (DELETE FROM item RETURNING 1) SELECT count(*) FROM gone",
                "min = 0",
            ),
            1,
            "cannot be asked",
        ),
        (query("SELECT 1; DROP TABLE item", "expect = 1"), 1, "syntax error"),
        (query("SELECT 2 AS n, 1 AS n", "expect = 1"), 4, "2 columns"),
        (query("SELECT repeat('x', 5000000)", "expect = 1"), 1, "ask for less"),
    ] {
        comes_out(&shop, &check, code, words.replace("\\\"", "\"").as_str());
    }
    let query = |query: &str, more: &str| {
        format!("type = \"query\"\nsource = \"settings\"\nquery = '''{query}'''\n{more}")
    };
    let forever =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    for (check, code, words) in [
        (query("SELECT count(*) = 50 FROM setting", "expect = true"), 0, "expected true, found 1"),
        (query("SELECT max(value) FROM setting", "max = 49"), 4, "expected at most 49, found 50"),
        (query("SELECT x FROM setting", "expect = 1"), 4, "no such column"),
        (query(forever, "expect = 1\ntimeout = \"1s\""), 1, "it took longer than 1.0s"),
    ] {
        comes_out(&shop, &check, code, words);
    }
}

#[test]
fn files_are_there_not_empty_and_parse() {
    let shop = shop("");
    std::fs::write(shop.site.path("files/bad.json"), "{\"name\": ").unwrap();
    shop.run();
    let file = |path: &str, more: &str| {
        format!("type = \"file\"\nsource = \"files\"\npath = \"{path}\"\n{more}")
    };
    for (check, code, words) in [
        (file("config.json", "parses = \"json\"\ncontains = \"shop\""), 0, "that is JSON"),
        (file("app.toml", "parses = \"toml\""), 0, "that is TOML"),
        (file("nothing", ""), 4, "found an empty file"),
        (file("nothing", "not_empty = false"), 0, "found 0 bytes"),
        (file("bad.json", "parses = \"json\""), 4, "not JSON"),
        (file("config.json", "parses = \"toml\""), 4, "not TOML"),
        (file("app.toml", "contains = \"SECRET_KEY\""), 4, "without it"),
        (file("none", ""), 4, "nothing of that name"),
        (file("app.toml", "owner = \"root\"\nname = \"settings\""), 0, "files: settings: "),
        (file("app.toml", "owner = 64999"), 4, "found a file of the user 0"),
        (file("app.toml", "owner = \"no-such-user\""), 1, "no user `no-such-user`"),
        (file("sub", ""), 4, "no file"),
    ] {
        comes_out(&shop, &check, code, words);
    }
}

#[test]
fn a_program_looks_for_itself_at_what_was_restored() {
    let shop = shop("");
    shop.run();
    let command = |script: &str, more: &str| {
        format!("type = \"command\"\ncommand = [\"sh\", \"-c\", '''{script}''']\n{more}")
    };
    let looks = r#"test "$(psql -XAtd "$HOLDFAST_DB_URL" -c "SELECT count(*) FROM item")" = 500 && test -s "$HOLDFAST_FILES_PATH/config.json" \
        && test "$(sqlite3 "$HOLDFAST_SETTINGS_PATH" "SELECT count(*) FROM setting")" = 50 && test "$(cat "$HOLDFAST_KEYS_PATH/keys.out")" = "a key""#;
    let looks = looks.replace("\\\n", "");
    for (check, code, words) in [
        (command(&looks, "name = \"all of it\""), 0, "all of it"),
        (command("echo this is wrong >&2; exit 3", ""), 4, "exit status 3 this is wrong"),
        (command("sleep 100", "timeout = \"1s\""), 1, "it took longer than 1.0s"),
        ("type = \"command\"\ncommand = [\"no-such-program\"]".to_owned(), 1, "was not found"),
    ] {
        comes_out(&shop, &check, code, words);
    }
    // What it is told of is not told to anybody else.
    let report = shop.backup(&["drill", "report", "--format", "json"]).expect(0);
    assert!(!report.out().contains("s3cret-pg"), "{report}");
}

#[test]
fn paths_beyond_4096_bytes_pass_a_drill() {
    let shop = shop("");
    let script = r#"set -e
        name=$(printf 'd%.0s' $(seq 200)) path=files
        cd files
        for _ in $(seq 25); do mkdir $name; cd $name; done
        echo deep > file; ln file other; ln -s file link; mkdir folder"#;
    sh(shop.site.dir.path(), script, &[]);
    let path = format!("{}/file", vec!["d".repeat(200); 25].join("/"));
    shop.configure(&format!(
        "{SERVER}[[strategies.daily.drill.checks]]\ntype = \"file\"\nsource = \"files\"\n\
         path = \"{path}\"\ncontains = \"deep\"\n\
         [[strategies.daily.drill.checks]]\ntype = \"references\"\nsource = \"db\"\nfiles = \
         \"files\"\nquery = \"SELECT '{path}' AS path\"\n"
    ));
    shop.run();
    assert_passed(&shop.drill(0, &[]).json());
    assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
}

#[test]
fn the_output_of_a_command_is_proved_by_who_reads_it() {
    let shop = shop("");
    shop.run();
    let proof = |check: &str, code: i32| {
        let check = format!("[[strategies.daily.drill.checks]]\n{check}\n");
        shop.configure(&format!("{SERVER}{}", if check.contains("type") { &check } else { "" }));
        let report = shop.drill(code, &[]).json();
        for source in ["db", "settings", "files"] {
            assert_eq!(report["proof"][source], "content", "{report:#}");
        }
        report["proof"]["keys"].as_str().unwrap().to_owned()
    };
    let command =
        |script: &str| format!("type = \"command\"\ncommand = [\"sh\", \"-c\", '''{script}''']");
    let file = "type = \"file\"\nsource = \"keys\"\npath = \"keys.out\"\n";
    for (check, code, expected) in [
        (file.to_owned(), 0, "content"),
        (format!("{file}contains = \"a lock\""), 4, "bytes"),
        (command("true"), 0, "bytes"),
        (command("test -s $HOLDFAST_KEYS_PATH/keys.out"), 0, "bytes"),
        (command("cat $HOLDFAST_KEYS_PATH/keys.out; exit 1"), 4, "bytes"),
        (command("grep -q key $HOLDFAST_KEYS_PATH/keys.out"), 0, "content"),
        (String::new(), 0, "bytes"),
    ] {
        assert_eq!(proof(&check, code), expected, "{check}");
    }
    let words = "only the bytes of keys";
    let status = shop.backup(&["status"]).expect(0);
    assert!(status.out().contains(words), "{status}");
    let status = shop.backup(&["status", "--json"]).expect(0).json();
    let one = &status["strategies"][0];
    assert_eq!(one["drills"]["last"]["proof"]["keys"], "bytes", "{one:#}");
    assert_eq!(one["drills"]["last"]["proof"]["db"], "content", "{one:#}");
    assert_eq!(one["state"], "manual", "{one:#}");
    for format in ["text", "html"] {
        let report = shop.backup(&["drill", "report", "--format", format]).expect(0);
        assert!(report.out().contains(words), "{report}");
    }
}

#[test]
fn much_less_than_before_is_suspect_and_holds_all_pruning_until_it_is_released() {
    let shop = Shop::new(15);
    let checks = "[[strategies.daily.drill.checks]]\ntype = \"shrink\"\nsource = \"db\"\n\
        percent = 10\n\
                  [[strategies.daily.drill.checks]]\ntype = \"shrink\"\nsource = \"db\"\n\
        tables = [\"user\"]\npercent = 0\n";
    shop.configure(&format!("{SERVER}{checks}"));
    // What the drill finds, the run lets pass.
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    let lenient = text.replace("[sources.db]", "[sources.db]\nmax_shrink_percent = 100");
    std::fs::write(shop.site.config(), lenient).unwrap();
    let first = shop.run();
    let report = shop.drill(0, &[]).json();
    assert!(
        outcomes(&report, "skipped").iter().any(|check| check.contains("no earlier snapshot")),
        "{report:#}"
    );
    // A little less is nothing to speak of; of the second table not a row may go.
    shop.database.run("DELETE FROM item WHERE id > 480");
    let second = shop.run();
    assert_passed(&shop.drill(0, &[]).json());
    shop.database.run("DELETE FROM \"user\" WHERE id = 2; DELETE FROM item WHERE id > 100");
    let bad = shop.run();
    let report = shop.drill(4, &[]).json();
    assert_eq!(kinds(&report), ["shrink"], "{report:#}");
    assert_eq!(report["suspect"], true);
    let failed = outcomes(&report, "failed");
    assert!(
        failed
            .iter()
            .any(|check| check.contains("rows of user") && check.contains("at least 2, found 1")),
        "{failed:#?}"
    );
    // Whoever prunes is stopped.
    let with = "[strategies.daily.drill]";
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    std::fs::write(
        shop.site.config(),
        text.replace(
            with,
            &format!("retention = {{ keep_last = 1 }}\nmax_delete_percent = 100\n{with}"),
        ),
    )
    .unwrap();
    let refused = shop.backup(&["prune", "--yes", "--force"]).expect(1);
    assert!(
        refused.out().contains(&format!("backup release {bad}"))
            || refused.err().contains(&format!("backup release {bad}")),
        "{refused}"
    );
    assert_eq!(
        shop.site
            .backup(["list", "--json"])
            .env("DB_URL", "postgresql://h/x")
            .env("SCRATCH_15", "postgresql://h/x")
            .expect(0)
            .json()["snapshots"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    let forgotten = shop.backup(&["forget", &bad, "--yes"]).expect(2);
    assert!(forgotten.err().contains("backup release"), "{forgotten}");
    shop.backup(&["release", &bad]).expect(0);
    // The release stands in another storage, as where this one could not be reached.
    let other = shop.site.path("other").display().to_string();
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    let more = format!("[storages.other]\ntype = \"local\"\npath = \"{other}\"\n");
    std::fs::write(shop.site.config(), format!("{text}\n{more}")).unwrap();
    let script = r#"mkdir -p "other/app/marks/$1"
        mv "store/app/marks/$1"/release-* "other/app/marks/$1""#;
    sh(shop.site.dir.path(), script, &[bad.as_ref()]);
    // Somebody looked: it is what later ones are held against now.
    let report = shop.drill(0, &["--snapshot", &bad]).json();
    assert!(
        outcomes(&report, "skipped").iter().any(|check| check.contains("released it")),
        "{report:#}"
    );
    shop.backup(&["prune", "--yes"]).expect(0);
    assert!(!shop.snapshot(&first).exists() && !shop.snapshot(&second).exists());
}

#[test]
fn a_dump_that_does_not_restore_is_told_without_what_is_in_it() {
    let shop = shop("");
    shop.database.run(
        "CREATE TABLE zz (a int); INSERT INTO zz VALUES (1); CREATE FUNCTION known(int) RETURNS \
         boolean LANGUAGE plpgsql AS \
         $f$ BEGIN RETURN EXISTS (SELECT 1 FROM public.zz WHERE a = $1); END $f$; \
         CREATE TABLE aa (x int, t text, CHECK (known(x))); INSERT INTO aa VALUES (1, \
         'TOPSECRET-4111')",
    );
    shop.run();
    let report = shop.drill(4, &[]);
    assert!(
        report.json()["problem"].as_str().unwrap().contains("violates check constraint"),
        "{report}"
    );
    let page = shop.backup(&["drill", "report", "--format", "html"]).expect(0);
    let status = shop.backup(&["status", "--json"]).expect(1);
    for said in [report.out(), page.out(), status.out(), &report.err()] {
        assert!(!said.contains("TOPSECRET"), "{said}");
    }
    let status = status.json();
    assert_eq!(
        status["strategies"][0]["state"], "unproven",
        "it has no schedule, and it is known to be bad: {status:#}"
    );
}

#[test]
fn what_a_new_database_has_and_the_source_has_not_is_no_fault_of_the_backup() {
    let shop = shop("");
    shop.database.run(
        "DROP SCHEMA public CASCADE; DROP EXTENSION plpgsql; SELECT lo_unlink(777); CREATE SCHEMA \
         app; CREATE TABLE app.a (x int); \
         INSERT INTO app.a VALUES (1)",
    );
    shop.run();
    assert_passed(&shop.drill(0, &[]).json());
}

/// One of each that is counted and that `pg_dump` leaves out, or that comes with something else.
const LEFT_OUT: &str = r#"
CREATE TABLE twice (a int); INSERT INTO twice VALUES (1), (1);
CREATE TYPE span AS RANGE (subtype = int);
CREATE TABLE of_extension (a int PRIMARY KEY, b int GENERATED ALWAYS AS IDENTITY, c int CHECK (c > 0));
CREATE INDEX ON of_extension (c);
CREATE TRIGGER touched BEFORE INSERT ON of_extension FOR EACH ROW EXECUTE FUNCTION touch();
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE VIEW seen AS SELECT 1 AS name;
CREATE TRIGGER seen INSTEAD OF INSERT ON seen FOR EACH ROW EXECUTE FUNCTION touch();
CREATE MATERIALIZED VIEW kept AS SELECT 1 AS a;
CREATE INDEX ON kept (a);
ALTER EXTENSION plpgsql ADD TABLE of_extension;
ALTER EXTENSION plpgsql ADD DOMAIN positive;
ALTER EXTENSION plpgsql ADD VIEW seen;
ALTER EXTENSION plpgsql ADD MATERIALIZED VIEW kept;
CREATE TRIGGER logged BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION touch();
CREATE INDEX of_parent ON ONLY log (what);
"#;

#[test]
fn objects_that_dumps_leave_out_fail_no_drill() {
    for major in MAJORS {
        let shop = Shop::new(major);
        shop.configure(&SERVER.replace("15", &major.to_string()));
        shop.database.run(LEFT_OUT);
        let mut connection = shop.server().connect(&shop.database.name);
        let failed = sqlx::raw_sql("CREATE UNIQUE INDEX CONCURRENTLY invalid ON twice (a)");
        shop.server().runtime.block_on(failed.execute(&mut connection)).unwrap_err();
        let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
        assert_eq!(shop.database.number(invalid), 2);
        shop.run();
        assert_passed(&shop.drill(0, &[]).json());
    }
}

#[test]
fn a_database_that_subscribes_to_another_does_not_do_so_in_a_drill() {
    let shop = shop("");
    shop.database.run(
        "CREATE SUBSCRIPTION hf_sub CONNECTION 'host=127.0.0.1 port=1 password=hunter2' \
         PUBLICATION p WITH (connect = false, slot_name = 'hf_slot')",
    );
    shop.run();
    let report = shop.drill(0, &[]);
    shop.database.run("ALTER SUBSCRIPTION hf_sub SET (slot_name = NONE); DROP SUBSCRIPTION hf_sub");
    assert_passed(&report.json());
    assert!(!report.to_string().contains("hunter2"), "{report}");
    assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
}

#[test]
fn files_and_bytes_that_fell_are_suspect_too() {
    let shop = Shop::new(15);
    let mut fallen = String::new();
    for (name, of) in [("files", "files"), ("files", "bytes"), ("keys", "bytes")] {
        let check = format!(
            "[[strategies.daily.drill.checks]]\ntype = \"shrink\"\nsource = \"{name}\"\n\
             of = [\"{of}\"]\npercent = 20\n"
        );
        shop.configure(&format!("{SERVER}{check}"));
        if of == "files" {
            shop.run();
            shop.drill(0, &[]);
            sh(shop.site.dir.path(), "rm -r files/attachments", &[]);
            fallen = shop.run();
        }
        // The stream of the command is as long as it was. (A suspect one is not `latest`.)
        let of_it = ["--snapshot", &fallen];
        let report = shop.drill(if name == "keys" { 0 } else { 4 }, &of_it).json();
        let expected: &[&str] = if name == "keys" { &[] } else { &["shrink"] };
        assert_eq!(kinds(&report), expected, "{name} {of}: {report:#}");
    }
}

#[test]
fn objectives_of_time_fail_a_drill_that_misses_them() {
    let shop = Shop::new(15);
    shop.configure(&format!("rto = \"2h\"\nrpo = \"1h\"\n{SERVER}"));
    shop.run();
    let passed = outcomes(&shop.drill(0, &[]).json(), "passed");
    assert!(
        passed.iter().any(|check| check.starts_with("rto -: recovery time: expected at most 2h")),
        "{passed:#?}"
    );
    // What the drill looks at besides is not the time that getting everything back takes.
    let looks =
        "[[strategies.daily.drill.checks]]\ntype = \"command\"\ncommand = [\"sleep\", \"3\"]\n";
    shop.configure(&format!("rto = \"3s\"\n{SERVER}{looks}"));
    assert_passed(&shop.drill(0, &[]).json());
    shop.database.run(
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql AS 'SELECT pg_sleep(2) IS NOT NULL'; \
         CREATE TABLE late (x int, CHECK (slow())); \
         INSERT INTO late VALUES (1)",
    );
    shop.run();
    shop.configure(&format!("rto = \"1s\"\nrpo = \"1h\"\n{SERVER}"));
    let clock = WallClock::at(Utc::now() + TimeDelta::hours(2));
    let report =
        clock.shown_to(shop.backup(&["drill", "--strategy", "daily", "--json"])).expect(4).json();
    assert_eq!(kinds(&report), ["rpo", "rto"], "{report:#}");
}
