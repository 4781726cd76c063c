//! Sources that have much less than before: nothing good goes for what came of them, and nobody
//! takes it for a good backup.

use std::fs;

use holdfast::model::{Mark, Says, SnapshotId, SnapshotRef, Suspector};
use serde_json::Value;

use crate::marks::put;
use crate::prune::store;
use crate::support::postgres::{Database, Server};
use crate::support::site::Site;
use crate::support::{Ran, age_key, files, repository, sh, sh_in_mounts, temp};

const STORAGE: &str = r#"
[storages.local]
type = "local"
path = "@/store"
"#;

const STRATEGY: &str = r#"
[strategies.daily]
storages = ["local"]
retention = { keep_last = 2 }
max_delete_percent = 100
"#;

/// A folder, with `more` in the table of the source.
fn folder(more: &str) -> String {
    format!(
        "[sources.files]\ntype = \"directory\"\npath = \"@/files\"\n{more}\n{STORAGE}{STRATEGY}\
         sources = [\"files\"]\n"
    )
}

/// Makes that many files, and no others.
fn fill(site: &Site, count: usize) {
    let path = site.path("files");
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    fs::create_dir(&path).unwrap();
    for number in 0..count {
        fs::write(path.join(number.to_string()), format!("file {number}")).unwrap();
    }
}

fn full(more: &str, count: usize) -> Site {
    let site = Site::new(&folder(more));
    fill(&site, count);
    site
}

fn id(ran: &Ran) -> String {
    ran.json()["id"].as_str().unwrap().to_owned()
}

/// The ids that `list` calls suspect.
fn suspects(site: &Site) -> Vec<String> {
    let list = site.backup(["list", "--json"]).expect(0).json();
    let rows = list["snapshots"].as_array().unwrap().iter();
    rows.filter(|row| row["suspect"] == true)
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect()
}

fn is_suspect(report: &Value) -> bool {
    report["suspect"].as_bool().unwrap()
}

#[test]
fn an_emptied_folder_costs_no_good_snapshot() {
    let site = full("", 200);
    let good = id(&site.run(0));
    fill(&site, 0);
    let bad: Vec<String> = (0..3)
        .map(|_| {
            let ran = site.run(3);
            let report = ran.json();
            assert!(is_suspect(&report), "{ran}");
            assert!(report["storages"][0]["pruned"]["problem"].is_string(), "{ran}");
            id(&ran)
        })
        .collect();
    assert_eq!(site.ids().len(), 4, "all are there");
    assert_eq!(suspects(&site), bad);
    // Nobody takes one of them for a good backup.
    site.backup(["restore", "--to", "restored"]).dir(site.dir.path()).expect(0);
    assert_eq!(files(&site.path("restored/files")).len(), 200);
    let shown = site.backup(["show", "latest", "--json"]).expect(0);
    assert!(shown.out().contains(&good) && shown.err().contains(bad.last().unwrap()), "{shown}");
    let drilled = site.backup(["drill", "--strategy", "daily", "--json"]).expect(0).json();
    assert_eq!(drilled["snapshot"]["id"], good.as_str());
    site.backup(["show", bad.last().unwrap(), "--json"]).expect(0);
    let status = site.backup(["status", "--json"]).expect(1).json();
    let strategy = &status["strategies"][0];
    assert_eq!(strategy["state"], "unproven");
    assert_eq!(strategy["storages"][0]["suspect"].as_array().unwrap().len(), 3);
    let newest = strategy["storages"][0]["newest_whole"].as_str().unwrap();
    assert!(good.starts_with(&newest.replace(['-', ':'], "")[..15]), "{newest}");
    let checked = site.backup(["check", "--json"]).expect(0).json();
    let findings = checked["instances"][0]["storages"][0]["findings"].as_array().unwrap();
    let marks = findings.iter().filter(|one| one["subject"] == "marks");
    assert_eq!(marks.filter(|one| one["level"] == "warning").count(), 3, "{checked:#}");
    // Nothing is deleted.
    for args in [&["--yes"][..], &["--yes", "--force"], &["--plan"]] {
        let plan = site.backup(["prune", "--json"]).args(args).expect(1).json();
        let refusals = plan.pointer("/plan/places/0/refusals").unwrap().as_array().unwrap();
        assert_eq!(refusals.len(), 3, "{plan:#}");
        assert!(refusals.iter().all(|one| one["kind"] == "suspect"), "{plan:#}");
    }
    site.backup(["forget", &bad[0], "--yes"]).expect(2);
    assert_eq!(site.ids().len(), 4);
    // Somebody looks, and means it.
    for bad in &bad {
        site.backup(["release", bad, "--reason", "moved to another host"]).expect(0);
    }
    assert_eq!(suspects(&site), [""; 0]);
    site.backup(["status"]).expect(0);
    let ran = site.run(0);
    assert!(!is_suspect(&ran.json()), "the released one is what it is held against: {ran}");
    // The first passed a drill.
    assert_eq!(site.ids(), [good, bad.last().unwrap().clone(), id(&ran)]);
}

#[test]
fn what_came_back_is_good_and_waits_for_the_release() {
    let site = full("", 30);
    let good = id(&site.run(0));
    fill(&site, 0);
    let bad = id(&site.run(3));
    fill(&site, 30);
    let ran = site.run(3);
    assert!(!is_suspect(&ran.json()), "{ran}");
    assert!(site.ids().contains(&good), "a suspect one uses no count, and nothing goes: {ran}");
    let latest = site.backup(["show", "latest", "--json"]).expect(0);
    assert!(latest.out().contains(&id(&ran)));
    site.backup(["release", &bad]).expect(0);
    let last = id(&site.run(0));
    assert_eq!(site.ids(), [id(&ran), last]);
}

#[test]
fn where_all_are_suspect_there_is_no_latest() {
    let site = full("", 30);
    let good = id(&site.run(0));
    fill(&site, 0);
    let bad = id(&site.run(3));
    fs::remove_dir_all(site.path("store/app/daily").join(good)).unwrap();
    for command in ["show", "restore"] {
        let args = if command == "show" { vec!["latest"] } else { vec!["--to", "restored"] };
        let ran = site.backup([command]).args(args).dir(site.dir.path()).expect(1);
        assert!(ran.err().contains(&bad) && ran.err().contains("backup release"), "{ran}");
    }
    site.backup(["show", &bad]).expect(0);
}

/// The sources of a database, a file of one, a command, and a folder; each is emptied by a script.
const SOURCES: &str = r#"
[sources.files]
type = "directory"
path = "@/files"
[sources.lite]
type = "sqlite"
path = "@/lite.db"
[sources.out]
type = "command"
command = ["cat", "@/out"]
[sources.pg]
type = "postgres"
url = "${PG}"
"#;

struct Everything {
    site: Site,
    database: Database,
}

impl Everything {
    fn new(source: &str) -> Self {
        let strategy = format!("{STORAGE}{STRATEGY}sources = [\"{source}\"]\n");
        let site = Site::new(&format!("{SOURCES}{strategy}"));
        let everything = Self { site, database: Server::new(15).database() };
        everything
            .shell("mkdir files; for i in {1..40}; do echo $i >files/$i; done; echo out >out");
        everything.lite("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2)");
        everything
            .database
            .run("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 2000)");
        everything
    }

    /// From now on, for somebody else.
    fn encrypt(&self) {
        let (_, recipient) = age_key(self.site.dir.path(), "key");
        let text = fs::read_to_string(self.site.config()).unwrap();
        let text = format!("{text}[encryption]\nrecipients = [\"{recipient}\"]\n");
        fs::write(self.site.config(), text).unwrap();
    }

    fn shell(&self, script: &str) {
        sh(self.site.dir.path(), script, &[]);
    }

    fn lite(&self, sql: &str) {
        sh(self.site.dir.path(), "sqlite3 lite.db \"$1\"", &[sql.as_ref()]);
    }

    fn run(&self, code: i32) -> Ran {
        self.site
            .backup(["--strategy", "daily", "--json"])
            .env("PG", self.database.url())
            .env("PATH", self.database.server.path())
            .expect(code)
    }
}

#[test]
fn nothing_where_there_was_something_always_counts() {
    type Empty = fn(&Everything);
    let cases: [(&str, Empty); 8] = [
        ("files", |all| all.shell("rm files/*")),
        ("files", |all| all.shell("rm files/*; mkdir -p files/some/folders")),
        ("out", |all| all.shell(": >out")),
        ("lite", |all| all.lite("DROP TABLE t")),
        ("lite", |all| all.lite("DELETE FROM t")),
        ("lite", |all| all.shell(": >lite.db")),
        ("pg", |all| all.database.run("DROP TABLE t")),
        ("pg", |all| all.database.run("DELETE FROM t")),
    ];
    for (source, empty) in cases {
        for lost in ["nothing", "state", "state and key"] {
            // What was deleted in a database, its file still has.
            if lost == "state and key" && source == "lite" {
                continue;
            }
            let all = Everything::new(source);
            if lost == "state and key" {
                all.encrypt();
            }
            all.run(0);
            empty(&all);
            if lost != "nothing" {
                all.shell("rm -r state");
            }
            let ran = all.run(3);
            assert!(is_suspect(&ran.json()), "{source}, lost: {lost}: {ran}");
        }
    }
}

#[test]
fn as_empty_as_before_is_not_suspect() {
    for source in ["files", "out", "lite", "pg"] {
        let all = Everything::new(source);
        all.shell("rm files/*; : >out");
        all.lite("DROP TABLE t");
        all.database.run("DROP TABLE t");
        // A command that writes nothing is a warning for itself.
        let code = if source == "out" { 3 } else { 0 };
        all.run(code);
        assert!(!is_suspect(&all.run(code).json()), "{source}");
        all.shell("rm -r state");
        let ran = all.run(code);
        assert!(!is_suspect(&ran.json()), "{source}: {ran}");
    }
}

#[test]
fn rows_and_tables_of_a_small_database_may_shrink() {
    for source in ["lite", "pg"] {
        let all = Everything::new(source);
        let sql = |sql: &str| {
            all.lite(sql);
            all.database.run(sql);
        };
        sql("DELETE FROM t WHERE a > 2; CREATE TABLE u (a int); CREATE TABLE v (a int)");
        for number in 0..28 {
            sql(&format!("INSERT INTO u VALUES ({number})"));
        }
        all.run(0);
        sql("DELETE FROM u WHERE a >= 18; DROP TABLE v");
        all.run(0);
        // Of twenty rows two are left.
        sql("DELETE FROM u");
        let ran = all.run(3);
        assert!(is_suspect(&ran.json()), "{ran}");
    }
}

#[test]
fn a_source_shrinks_as_far_as_it_may() {
    for (more, before, after, expected) in [
        ("", 200, 100, false),
        ("", 200, 99, true),
        ("", 19, 1, false),
        ("", 1, 0, true),
        ("max_shrink_percent = 90", 200, 20, false),
        ("max_shrink_percent = 90", 200, 19, true),
        ("max_shrink_percent = 100", 200, 1, false),
        ("max_shrink_percent = 100", 200, 0, true),
        ("max_shrink_percent = 1", 200, 197, true),
    ] {
        let site = full(more, before);
        site.run(0);
        fill(&site, after);
        let ran = site.run(if expected { 3 } else { 0 });
        assert_eq!(is_suspect(&ran.json()), expected, "{more} {before} -> {after}: {ran}");
    }
}

#[test]
fn bytes_count_where_files_do_not() {
    let keys = temp();
    let (_, recipient) = age_key(keys.path(), "key");
    for (is_lost, codec, expected) in [
        (false, "", true),
        (true, "", true),
        // Sizes after compression say nothing beside those of another codec.
        (true, "compression = { algorithm = \"none\" }\n", false),
    ] {
        let encrypted = format!("[encryption]\nrecipients = [\"{recipient}\"]\n");
        let site = Site::new(&(folder("") + &encrypted));
        fill(&site, 0);
        let large = site.path("files/large");
        fs::write(&large, crate::support::site::noise(3 << 20)).unwrap();
        site.run(0);
        fs::write(&large, crate::support::site::noise(1 << 20)).unwrap();
        if is_lost {
            fs::remove_dir_all(site.path("state")).unwrap();
        }
        site.configure(&(codec.to_owned() + &folder("") + &encrypted));
        let ran = site.run(if expected { 3 } else { 0 });
        assert_eq!(is_suspect(&ran.json()), expected, "{ran}");
    }
}

#[test]
fn a_changed_rule_is_no_shrinkage_unless_nothing_is_left() {
    let site = full("", 200);
    site.run(0);
    site.configure(&folder("exclude = [\"1*\"]"));
    let ran = site.run(0);
    assert_eq!(ran.json()["notes"]["kept"].as_array().unwrap().len(), 1, "{ran}");
    let ran = site.run(0);
    assert!(ran.json()["notes"]["kept"].as_array().unwrap().is_empty(), "{ran}");
    // What says nothing of the content is no rule.
    site.configure(&folder("exclude = [\"1*\"]\nmax_shrink_percent = 40"));
    fill(&site, 40);
    assert!(is_suspect(&site.run(3).json()));
    for exclude in ["[\"**\"]", "[\"*\"]"] {
        site.configure(&folder(&format!("exclude = {exclude}")));
        assert!(is_suspect(&site.run(3).json()), "{exclude}");
    }
}

const OTHER: &str = "[storages.other]\ntype = \"local\"\npath = \"@/other\"\n";

fn two_storages() -> Site {
    let site = full("", 30);
    site.configure(&(folder("").replace("[\"local\"]", "[\"local\", \"other\"]") + OTHER));
    site
}

#[test]
fn a_storage_that_refuses_the_mark_gets_no_manifest() {
    let site = two_storages();
    site.run(0);
    fill(&site, 0);
    fs::write(site.path("other/app/marks"), "").unwrap();
    let ran = site.run(3);
    let report = ran.json();
    let committed = |at: usize| report["storages"][at]["committed"].as_bool().unwrap();
    assert!(committed(0) && !committed(1), "{ran}");
    let manifest =
        |name: &str| site.path(format!("{name}/app/daily/{}/manifest.json", id(&ran))).exists();
    assert!(manifest("store") && !manifest("other"), "{ran}");
    fs::remove_file(site.path("other/app/marks")).unwrap();
    site.backup(["copy", "--from", "local", "--to", "other"]).expect(0);
    let list = site.backup(["list", "--storage", "other", "--json"]).expect(0).json();
    let last = list["snapshots"].as_array().unwrap().last().unwrap().clone();
    assert!(last["id"] == id(&ran).as_str() && last["suspect"] == true, "{list:#}");
}

#[test]
fn what_a_storage_has_that_is_away_is_remembered() {
    let site = two_storages();
    site.run(0);
    // The one with all snapshots is away, and the other one is new.
    fs::rename(site.path("store"), site.path("away")).unwrap();
    fs::write(site.path("store"), "not mounted").unwrap();
    fs::remove_dir_all(site.path("other")).unwrap();
    fill(&site, 0);
    for _ in 0..2 {
        assert!(is_suspect(&site.run(3).json()));
    }
    fs::remove_file(site.path("store")).unwrap();
    fs::rename(site.path("away"), site.path("store")).unwrap();
    assert!(is_suspect(&site.run(3).json()));
}

#[test]
fn a_suspicion_stands_in_every_storage() {
    let site = two_storages();
    let good = id(&site.run(0));
    fill(&site, 0);
    let bad = id(&site.run(3));
    for storage in ["store", "other"] {
        let marks = files(&site.path(format!("{storage}/app/marks/{bad}")));
        assert_eq!(marks.len(), 1, "{storage}");
    }
    // It is known with one storage alone, and so is the release.
    fs::rename(site.path("store"), site.path("gone")).unwrap();
    fs::remove_dir_all(site.path("state")).unwrap();
    let latest = |storage: &str, expected: &str| {
        let args = ["show", "latest", "--storage", storage, "--json"];
        let shown = site.backup(args).expect(0);
        assert!(shown.out().contains(expected), "{storage}: {shown}");
    };
    latest("other", &good);
    fs::rename(site.path("gone"), site.path("store")).unwrap();
    site.backup(["release", &bad, "--reason", "it is so"]).expect(0);
    latest("other", &bad);
    latest("local", &bad);
    assert!(!is_suspect(&site.run(0).json()));
}

#[tokio::test]
async fn a_suspicion_without_its_snapshot_stops_nothing() {
    let site = full("", 30);
    let last = id(&site.run(0));
    let of = SnapshotRef {
        instance: "app".parse().unwrap(),
        strategy: "daily".parse().unwrap(),
        id: "20200101T000000Z-00000a".parse().unwrap(),
    };
    let mark = |of: SnapshotRef| {
        let says = Says::Suspect { reason: "less".to_owned(), by: Suspector::Run };
        let own: SnapshotId = of.id.clone();
        Mark::new(of, own, chrono::Utc::now(), says)
    };
    let storage = store(&site, "store").await;
    put(&*storage, &mark(of.clone())).await;
    site.backup(["prune", "--plan"]).expect(0);
    // The same of a snapshot that is there.
    put(&*storage, &mark(SnapshotRef { id: last.parse().unwrap(), ..of })).await;
    site.backup(["prune", "--plan"]).expect(1);
}

#[test]
fn a_folder_that_must_be_a_mount_is_one() {
    let site = full("must_be_mount = true", 3);
    let script = r#"
        backup() { "$1" --config app.toml "${@:2}"; }
        for at in none tmpfs bind; do
            case $at in
                tmpfs) mount -t tmpfs it files; touch files/one;;
                bind) umount files; mkdir other; touch other/one; mount --bind other files;;
            esac
            backup "$1" --strategy daily --json >$at.json && code=$? || code=$?
            backup "$1" check --json >$at.check.json && check=$? || check=$?
            echo $at $code $check
        done
    "#;
    let program = env!("CARGO_BIN_EXE_backup");
    let came = sh_in_mounts(site.dir.path(), script, &[program.as_ref()]);
    assert_eq!(came, "none 1 1\ntmpfs 0 0\nbind 0 0\n");
    let refused: Value =
        serde_json::from_slice(&fs::read(site.path("none.json")).unwrap()).unwrap();
    assert_eq!(refused["code"], "source_unsuitable");
    assert_eq!(refused["plain_bytes"], 0);
    assert_eq!(site.folders().len(), 2);
}

/// A folder with `a/b.txt`, `a/c.pdf` and `top`.
fn tree(rules: &str) -> Site {
    let site = Site::new(&folder(rules));
    fs::create_dir_all(site.path("files/a/empty")).unwrap();
    for name in ["a/b.txt", "a/c.pdf", "top"] {
        fs::write(site.path("files").join(name), name).unwrap();
    }
    site
}

/// How many warnings a run has by these rules.
fn warnings(rules: &str) -> usize {
    let ran = tree(rules).backup(["--strategy", "daily", "--json"]).run();
    let report = ran.json();
    let warnings = report["warnings"]["kept"].as_array().unwrap().len();
    assert_eq!(ran.code(), Some(if warnings == 0 { 0 } else { 3 }), "{ran}");
    assert_eq!(report["completeness"], "whole", "{ran}");
    warnings
}

#[test]
fn what_is_included_and_matched_nothing_is_a_warning() {
    for (rules, expected) in [
        (r#"include = ["@/files/a"]"#, 1),
        (r#"include = ["/A", "top"]"#, 1),
        (r#"include = ["/a", "Top"]"#, 1),
        (r#"include = ["a", "none", "other"]"#, 2),
        (r#"include = ["top/"]"#, 1),
        (r#"include = ["b.txt/**", "top"]"#, 1),
        (r#"include = ["/a/empty/**", "top"]"#, 1),
        // What is taken already matches all the same.
        (r#"include = ["a", "*.pdf", "/a/empty/"]"#, 0),
        (r#"include = ["*.pdf", "top"]"#, 0),
        (r#"include = ["/a/**", "top"]"#, 0),
        // It is there, and is left out.
        (
            r#"include = ["*.pdf", "top"]
            exclude = ["*.pdf"]"#,
            1,
        ),
        (
            r#"include = ["a", "*.pdf"]
            exclude = ["a/c.pdf"]"#,
            1,
        ),
        (r#"include_if_present = ["none", "a"]"#, 0),
        (
            r#"include = ["top"]
            include_if_present = ["none/**", "/a/*.pdf"]"#,
            0,
        ),
        (r#"exclude = ["none"]"#, 0),
    ] {
        assert_eq!(warnings(rules), expected, "{rules}");
    }
}

#[test]
fn what_may_be_absent_is_taken_where_it_is_there() {
    let site = tree("include = [\"top\"]\ninclude_if_present = [\"none\", \"*.pdf\"]");
    site.run(0);
    site.backup(["restore", "--to", "restored"]).dir(site.dir.path()).expect(0);
    let taken: Vec<_> = files(&site.path("restored/files")).into_keys().collect();
    assert_eq!(taken, ["a/c.pdf", "top"]);
}

#[test]
fn check_names_patterns_that_match_nothing() {
    let site = tree(
        r#"include = ["a", "top", "none"]
exclude = ["*.txt", "*.tmp", "/a/none/", "!b.txt", "!/x"]"#,
    );
    let checked = site.backup(["check", "--json"]).expect(0).json();
    let findings = checked["instances"][0]["sources"][0]["findings"].as_array().unwrap().clone();
    let of = |level: &str, subject: &str| {
        let meant = |one: &&Value| one["level"] == level && one["subject"] == subject;
        findings.iter().filter(meant).count()
    };
    assert_eq!(of("warning", "include"), 1, "{findings:#?}");
    assert_eq!(of("note", "exclude"), 3, "{findings:#?}");
    assert_eq!(findings.len(), 5, "{findings:#?}");
}

#[test]
fn a_folder_that_empties_by_itself_may_say_so() {
    let site = full("max_shrink_percent = 100\nmay_be_empty = true", 200);
    site.run(0);
    fill(&site, 0);
    assert!(!is_suspect(&site.run(0).json()));
    // For itself it allows no half.
    let site = full("may_be_empty = true", 200);
    site.run(0);
    fill(&site, 2);
    assert!(is_suspect(&site.run(3).json()));
}

#[test]
fn an_address_names_its_database() {
    for (url, is_named) in [
        ("postgresql://app@host", false),
        ("postgresql://app@host/", false),
        ("postgresql://app@host:5432?sslmode=prefer", false),
        ("postgresql:///?user=app&dbname=", false),
        ("postgresql://app@host/app", true),
        ("postgresql:///?host=host&dbname=app", true),
    ] {
        let source = format!("[sources.db]\ntype = \"postgres\"\nurl = \"${{PG}}\"\n{STORAGE}");
        let site = Site::new(&format!("{source}{STRATEGY}sources = [\"db\"]\n"));
        let planned = site.backup(["--strategy", "daily", "--dry-run", "--json"]).env("PG", url);
        let ran = planned.expect(if is_named { 0 } else { 2 });
        assert_eq!(ran.err().contains("\"config_invalid_value\""), !is_named, "{url}: {ran}");
    }
}

#[test]
fn shipped_strategies_take_what_may_be_absent_silently() {
    for (file, source, present) in [
        ("ella", "settings", &["ella_config.yml"][..]),
        ("ella", "incoming", &[]),
        ("pixel", "deployment", &[".env", "docker-compose.yml"]),
    ] {
        let text = repository().join("strategies").join(file).with_extension("toml");
        let shipped: toml::Table = fs::read_to_string(text).unwrap().parse().unwrap();
        let mut table = shipped["sources"][source].as_table().unwrap().clone();
        table.insert("path".to_owned(), "@/files".into());
        let table = toml::to_string(&table).unwrap();
        let strategy = format!("{STORAGE}{STRATEGY}sources = [\"files\"]\n");
        let site = Site::new(&format!("[sources.files]\n{table}{strategy}"));
        fill(&site, if present.is_empty() { 30 } else { 0 });
        for name in present {
            fs::write(site.path("files").join(name), name).unwrap();
        }
        let ran = site.run(0);
        assert_ne!(ran.json()["sources"][0]["entries"], 0, "{file} {source}: {ran}");
        if present.is_empty() {
            fill(&site, 0);
        }
        site.run(0);
    }
}

/// Adds a file that an ordinary user cannot read.
fn close_one(site: &Site) {
    fs::write(site.path("files/closed"), "closed").unwrap();
    sh(site.dir.path(), "chmod 0 files/closed", &[]);
}

/// A run by an ordinary user, with a problem.
fn run_of_user(site: &Site) -> Value {
    let run = site.backup(["--strategy", "daily", "--json"]);
    run.with_user(64999, site.dir.path()).expect(3).json()
}

#[test]
fn a_partial_snapshot_is_compared_with_too() {
    let site = full("", 200);
    close_one(&site);
    let partial = run_of_user(&site);
    assert!(partial["completeness"] == "partial" && !is_suspect(&partial), "{partial:#}");
    fs::remove_dir_all(site.path("files")).unwrap();
    fs::create_dir(site.path("files")).unwrap();
    let emptied = run_of_user(&site);
    assert!(emptied["completeness"] == "whole" && is_suspect(&emptied), "{emptied:#}");
}

#[test]
fn a_released_partial_snapshot_is_compared_with() {
    let site = full("", 200);
    site.run(0);
    fill(&site, 30);
    close_one(&site);
    let partial = run_of_user(&site);
    assert!(partial["completeness"] == "partial" && is_suspect(&partial), "{partial:#}");
    let id = partial["id"].as_str().unwrap();
    site.backup(["release", id, "--reason", "moved"]).expect(0);
    assert!(!is_suspect(&run_of_user(&site)), "nobody releases every night");
}

#[test]
fn files_that_lost_their_content_are_less() {
    let site = full("", 30);
    let with = |content: &str| {
        sh(site.dir.path(), &format!("for file in files/*; do {content} >$file; done"), &[]);
    };
    with("head -c 100000 /dev/urandom");
    site.run(0);
    with(":");
    assert!(is_suspect(&site.run(3).json()));
}
