//! Drills: what can be said of them, and what is wrong with it.

use super::{bad, good};
use crate::config::DrillCheck;

/// A configuration whose strategy `daily` has `drill`.
fn text(drill: &str) -> String {
    format!(
        r#"instance = "shop"
[sources.db]
type = "postgres"
url = "postgresql://h/shop"
[sources.files]
type = "directory"
path = "files"
[sources.keys]
type = "command"
command = ["true"]
[storages.here]
type = "local"
path = "../backups"
[storages.vault]
type = "s3"
bucket = "b"
[strategies.daily]
sources = ["db", "files"]
storages = ["here", "vault"]
[strategies.daily.drill]
{drill}"#
    )
}

/// The line of the first line of `drill`.
const FIRST: usize = 21;

/// What is wrong, with the lines counted from the drill's first.
fn errors(drill: &str) -> Vec<String> {
    errors_of(&text(drill))
}

fn errors_of(text: &str) -> Vec<String> {
    let all = bad("a.toml", text, &[]);
    let number = |line: &str| {
        let (line, rest) = line.strip_prefix("a.toml:").unwrap().split_once(':').unwrap();
        format!("{}:{rest}", line.parse::<usize>().unwrap() + 1 - FIRST)
    };
    all.lines()
        .map(|line| if line.starts_with("  hint") { line.trim().to_owned() } else { number(line) })
        .collect()
}

#[test]
fn the_copy_that_is_not_on_this_machine_is_drilled_unless_another_is_named() {
    let drill = |drill: &str| {
        good("/etc/backup/a.toml", &text(drill), &[]).strategies["daily"].drill.clone()
    };
    let usual = drill("");
    assert_eq!(usual.storage.as_str(), "vault");
    assert!(usual.schedule.is_none() && usual.checks.is_empty() && usual.identity_file.is_none());
    assert_eq!(drill("storage = \"here\"").storage.as_str(), "here");
    let full = drill(
        r#"schedule = "0 5 * * 0"
identity_file = "key.txt"
work_dir = "drills"
max_bytes = "50GiB"
rto = "2h"
rpo = "26h"
postgres = { url = "postgresql://drill@scratch/postgres" }
checks = [{ type = "query", source = "db", query = "SELECT count(*) FROM item", min = 1 }]
"#,
    );
    assert_eq!(full.schedule.unwrap().line, "0 5 * * 0");
    assert_eq!(full.identity_file.unwrap().to_str(), Some("/etc/backup/key.txt"));
    assert_eq!(full.work_dir.unwrap().to_str(), Some("/etc/backup/drills"));
    assert_eq!(full.max_bytes.unwrap().0, 50 << 30);
    assert!(matches!(full.checks.as_slice(), [DrillCheck::Query(check)] if check.min == Some(1.0)));
    // Where no sources are, those of the snapshots are meant.
    let only = "instance = \"shop\"\n[storages.here]\ntype = \"local\"\npath = \"/b\"\n\
        [strategies.daily]\nstorages = [\"here\"]\n\
                [strategies.daily.drill]\nschedule = \"@weekly\"\n\
        checks = [{ type = \"file\", source = \"files\", path = \"a\" }]\n";
    assert!(good("a.toml", only, &[]).strategies["daily"].drill.schedule.is_some());
}

#[test]
fn the_password_of_a_scratch_server_is_shown_to_nobody() {
    let drill =
        "postgres = { url = \"postgresql://drill@scratch/postgres\", password = \"hunter2\" }\n";
    let instance = good("a.toml", &text(drill), &[]);
    let masked = instance.masked(&instance.strategies["daily"]).to_string();
    assert!(masked.contains("drill@scratch") && !masked.contains("hunter2"), "{masked}");
    assert!(!format!("{:?}", instance.strategies["daily"]).contains("hunter2"));
}

#[test]
fn what_is_wrong_with_a_drill_is_told_at_its_key() {
    for (drill, expected) in [
        (
            "storage = \"valt\"",
            vec![
                "1:11: strategies.daily.drill.storage: There is no storage `valt`",
                "hint: did you mean `vault`?",
            ],
        ),
        (
            "shedule = \"@daily\"",
            vec![
                "1:1: strategies.daily.drill.shedule: Unknown key",
                "hint: did you mean `schedule`?",
            ],
        ),
        (
            "rto = \"0s\"",
            vec!["1:7: strategies.daily.drill.rto: Out of range: expected from `1s` to `366d`"],
        ),
        (
            "postgres = { password = \"x\" }",
            vec![
                "1:1: strategies.daily.drill.postgres: `password` is for a server, and no `url` \
                 names one",
            ],
        ),
        (
            "checks = [{ type = \"query\", source = \"db\", query = \"SELECT 1\" }]",
            vec![
                "1:11: strategies.daily.drill.checks[0]: Nothing is expected of the answer",
                "hint: set `expect`, or one of `min` and `max`, or both of those",
            ],
        ),
        (
            "checks = [{ type = \"query\", source = \"files\", query = \"SELECT 1\", expect = 1 }]",
            vec![
                "1:38: strategies.daily.drill.checks[0].source: `files` is a source of type \
                 `directory`, and `query` looks at postgres or sqlite",
                "hint: name another source",
            ],
        ),
        (
            "checks = [{ type = \"references\", source = \"db\", query = \"SELECT 1\", files = \
             \"keys\" }]",
            vec![
                "1:77: strategies.daily.drill.checks[0].files: The strategy has no source `keys`",
                "hint: expected one of `db`, `files`",
            ],
        ),
        (
            "checks = [{ type = \"shrink\", percent = 100 }]",
            vec![
                "1:40: strategies.daily.drill.checks[0].percent: Out of range: expected a number \
                 from 0 to 99",
            ],
        ),
        (
            "postgres = { run_as = \"root\" }",
            vec![
                "1:1: strategies.daily.drill.postgres: `run_as` is `root`, as which PostgreSQL \
                 does not run: name another user",
            ],
        ),
        (
            "checks = [{ type = \"query\", source = \"db\", query = \"SELECT 1\", min = 2, max = 1 \
             }]",
            vec![
                "1:11: strategies.daily.drill.checks[0]: `min` is larger than `max`: no answer can \
                 be right",
                "hint: exchange them",
            ],
        ),
        (
            "checks = [{ type = \"command\", command = [\"\"] }]",
            vec![
                "1:41: strategies.daily.drill.checks[0].command: Names no program",
                "hint: the first entry is the program",
            ],
        ),
        (
            "checks = [{ type = \"shrink\", percent = 1, tables = [\"a\"], of = [\"files\"] }]",
            vec![
                "1:11: strategies.daily.drill.checks[0]: `tables` compares their rows, and `of` \
                 something else",
                "hint: remove one of them",
            ],
        ),
        (
            "checks = [{ type = \"qery\" }]",
            vec![
                "1:20: strategies.daily.drill.checks[0].type: `qery` is not a known type",
                "hint: did you mean `query`?",
            ],
        ),
    ] {
        assert_eq!(errors(drill), expected, "{drill}");
    }
}

#[test]
fn checks_of_files_that_judge_nothing_are_refused() {
    let with_keys = |check: &str| {
        text(&format!("checks = [{{ type = \"file\", {check} }}]"))
            .replace("[\"db\", \"files\"]", "[\"db\", \"files\", \"keys\"]")
    };
    for (check, at) in [
        ("source = \"files\", path = \"a\", owner = \"\"", "owner"),
        ("source = \"files\", path = \"a\", owner = \"a:b\"", "owner"),
        ("source = \"files\", path = \"a\", owner = \"4294967295\"", "owner"),
        ("source = \"files\", path = \"a\", owner = -1", "owner"),
        ("source = \"files\", path = \"a\", owner = 4294967295", "owner"),
        ("source = \"files\", path = \"a\", owner = 1.5", "owner"),
        ("source = \"db\", path = \"a\"", "source"),
        ("source = \"keys\", path = \"a\"", "path"),
        ("source = \"keys\", path = \"keys.out\", owner = 0", "owner"),
    ] {
        let errors = errors_of(&with_keys(check));
        let key = format!("strategies.daily.drill.checks[0].{at}: ");
        assert!(errors[0].starts_with("1:") && errors[0].contains(&key), "{check}: {errors:?}");
    }
    for check in [
        "source = \"keys\", path = \"keys.out\", contains = \"a\"",
        "source = \"files\", path = \"a\", owner = \"www-data\"",
        "source = \"files\", path = \"a\", owner = 33",
        "source = \"files\", path = \"a\", owner = \"33\", not_empty = false",
    ] {
        good("a.toml", &with_keys(check), &[]);
    }
}
