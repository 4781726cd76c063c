//! What would make a run fail is said by `check` and `--dry-run`, and found before the first source
//! is dumped.

use serde_json::Value;

use crate::support::sh_in_mounts;
use crate::support::site::{Site, noise};

/// Two sources, of which the first leaves a file when it is dumped, and the table `LATER` of the
/// second. What is put in for `MORE` belongs to the strategy.
fn site(later: &str, more: &str) -> Site {
    Site::new(&format!(
        "[sources.first]\ntype = \"command\"\ncommand = [\"sh\", \"-c\", \"touch @/dumped; echo x\"]\n\
         [sources.later]\n{later}\n[storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"first\", \"later\"]\nstorages = [\"local\"]\n{more}\n"
    ))
}

/// The findings of that level: subject and message.
fn findings(document: &Value, level: &str) -> Vec<String> {
    let mut all: Vec<&Value> = vec![document];
    let mut found = Vec::new();
    while let Some(value) = all.pop() {
        all.extend(value.as_array().into_iter().flatten());
        all.extend(value.as_object().into_iter().flatten().map(|(_, value)| value));
        if value["level"] == level {
            let text = |key: &str| value[key].as_str().unwrap().to_owned();
            found.push(format!("{} {}", text("subject"), text("message")));
        }
    }
    found.sort();
    found
}

const COMMAND: &str = "type = \"command\"\ncommand = [\"echo\", \"x\"]";

#[test]
fn a_later_source_that_is_missing_ends_a_run_before_any_dump() {
    for later in [
        "type = \"directory\"\npath = \"@/none\"",
        "type = \"directory\"\npath = \"@/\"\nmust_be_mount = true",
        "type = \"sqlite\"\npath = \"@/none.sqlite\"",
        "type = \"command\"\ncommand = [\"no-such-program\"]",
        "type = \"command\"\ncommand = [\"echo\", \"x\"]\nworking_dir = \"@/none\"",
    ] {
        let site = site(later, "after = [\"touch\", \"@/after\"]");
        let planned = site.backup(["--strategy", "daily", "--dry-run", "--json"]).expect(1).json();
        let errors = findings(&planned, "error");
        assert!(matches!(&errors[..], [one] if one.starts_with("source later ")), "{errors:?}");
        let failed = site.run(1).json();
        assert!(!site.path("dumped").exists(), "{failed:#}");
        assert_eq!(failed["outcome"], "failed");
        assert!(failed["error"].as_str().unwrap().contains("`later`"), "{failed:#}");
        assert!(site.path("after").exists(), "the hooks of the strategy were started");
        site.backup(["check"]).expect(1);
    }
}

#[test]
fn a_source_that_a_hook_makes_is_no_failure() {
    for (own, of_strategy) in [
        ("before = [\"mkdir\", \"-p\", \"@/made\"]", ""),
        ("", "before = [\"mkdir\", \"-p\", \"@/made\"]"),
    ] {
        let later = format!("type = \"directory\"\npath = \"@/made\"\n{own}");
        let site = site(&later, of_strategy);
        let planned = site.backup(["--strategy", "daily", "--dry-run", "--json"]).expect(0).json();
        assert_eq!(findings(&planned, "error"), [""; 0]);
        assert_eq!(findings(&planned, "warning").len(), 1, "{planned:#}");
        site.run(0);
    }
}

#[test]
fn a_hook_or_check_that_cannot_start_is_an_error_of_check() {
    let check = |program: &str| {
        format!(
            "[strategies.daily.drill]\n[[strategies.daily.drill.checks]]\ntype = \"command\"\n\
             command = [\"{program}\"]\n"
        )
    };
    // Missing, and not executable.
    for program in ["no-such-program", "@/plain"] {
        for hook in ["before", "after", "on_failure"] {
            let line = format!("{hook} = [\"{program}\"]");
            for (later, more) in [(format!("{COMMAND}\n{line}"), ""), (COMMAND.to_owned(), &*line)]
            {
                let site = site(&later, more);
                std::fs::write(site.path("plain"), "#!/bin/sh\n").unwrap();
                for args in
                    [&["check", "--json"][..], &["--strategy", "daily", "--dry-run", "--json"]]
                {
                    let errors = findings(&site.backup(args).expect(1).json(), "error");
                    assert!(matches!(&errors[..], [one] if one.starts_with(hook)), "{errors:?}");
                }
            }
        }
        let site = site(COMMAND, &check(program));
        std::fs::write(site.path("plain"), "#!/bin/sh\n").unwrap();
        let errors = findings(&site.backup(["check", "--json"]).expect(1).json(), "error");
        assert!(matches!(&errors[..], [one] if one.starts_with("drill: daily ")), "{errors:?}");
    }
    let good = site(&format!("{COMMAND}\nbefore = [\"true\"]"), &check("true"));
    good.backup(["check"]).expect(0);
    good.backup(["--strategy", "daily", "--dry-run"]).expect(0);
}

#[test]
fn too_little_room_for_another_snapshot_is_a_warning() {
    let site = site(
        "type = \"directory\"\npath = \"@/files\"",
        "[strategies.daily.drill]\nwork_dir = \"@/work\"",
    );
    std::fs::create_dir(site.path("files")).unwrap();
    std::fs::write(site.path("files/noise"), noise(5_000_000)).unwrap();
    let script = r#"
        mkdir store work; mount -t tmpfs -o size=16m store store; mount -t tmpfs -o size=16m work work
        backup() { "$1" --config app.toml "${@:2}"; }
        backup "$1" --strategy daily >run.json
        backup "$1" check --json >roomy.json
        head -c 8000000 /dev/zero >store/filler; head -c 14000000 /dev/zero >work/filler
        backup "$1" check --json >full.json
    "#;
    sh_in_mounts(site.dir.path(), script, &[env!("CARGO_BIN_EXE_backup").as_ref()]);
    let warnings = |name: &str| {
        let text = std::fs::read(site.path(name)).unwrap();
        let all = findings(&serde_json::from_slice(&text).unwrap(), "warning");
        all.into_iter().filter(|one| one.contains("make room")).collect::<Vec<_>>()
    };
    assert_eq!(warnings("roomy.json"), [""; 0]);
    let full = warnings("full.json");
    assert!(
        matches!(&full[..], [drill, space] if drill.starts_with("drill: daily ")
            && space.starts_with("space ")),
        "{full:?}"
    );
}
