//! What is shipped to be tried and copied: the commands of the README, the demo, the example
//! strategies.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::shop::{assert_passed, outcomes};
use crate::support::{backup, files, repository, sh, temp};

/// The lines of a README's `sh` blocks.
pub(crate) fn commands(readme: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(readme).unwrap();
    let mut inside = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        match line.trim() {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside && !command.is_empty() && !command.starts_with('#') => {
                commands.push(command.to_owned());
            }
            _ => {}
        }
    }
    assert!(!commands.is_empty(), "{} has no commands in blocks marked `sh`", readme.display());
    commands
}

/// The program has the command and the flags that it is called with here.
pub(crate) fn is_understood(command: &str, own: &[&str]) {
    let own: Vec<&str> =
        own.iter().copied().take_while(|word| !["|", ">", "#", "&&"].contains(word)).collect();
    let verbs: Vec<&str> = own.iter().copied().take_while(|word| !word.starts_with('-')).collect();
    // `show ID`: a verb takes values too, so the longest run of verbs that the program knows
    // counts.
    let help = (0..=verbs.len())
        .rev()
        .map(|count| backup(verbs[..count].iter().copied().chain(["--help"])).run())
        .find(|ran| ran.code() == Some(0))
        .unwrap_or_else(|| panic!("`{command}`: no help"));
    let known: BTreeSet<&str> = help
        .out()
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| word.starts_with('-'))
        .collect();
    for flag in own.iter().filter(|word| word.starts_with('-')) {
        let flag = flag.split('=').next().unwrap();
        assert!(known.contains(flag), "`{command}`: no `{flag}` in\n{help}");
    }
    if let Some(verb) = verbs.first() {
        assert!(
            backup([verb, "--help"]).run().code() == Some(0),
            "`{command}`: no command `{verb}`"
        );
    }
}

#[test]
fn every_command_and_flag_in_the_readme_exists() {
    for command in commands(&repository().join("README.md")) {
        let words: Vec<&str> = command.split_whitespace().collect();
        // `cargo run ... --` stands for the program; what comes after a pipe is another one.
        match words.as_slice() {
            ["backup", own @ ..] | ["cargo", "run", "--release", "--", own @ ..] => {
                is_understood(&command, own);
            }
            _ => {}
        }
    }
}

#[test]
fn every_file_that_the_readme_names_exists() {
    let text = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let named = text.split(|c: char| c.is_whitespace() || "`()[]\"'".contains(c)).filter(|word| {
        ["strategies/", "examples/", "tests/", "docs/", ".ci/"]
            .iter()
            .any(|top| word.starts_with(top))
    });
    let mut count = 0;
    for name in named {
        let name = name.trim_end_matches(['.', ',', ':', ';']);
        assert!(repository().join(name).exists(), "`{name}` of the README does not exist");
        count += 1;
    }
    assert!(count >= 5, "the README names files");
}

/// The demo in a folder of its own, as it is in the repository.
fn demo() -> tempfile::TempDir {
    let folder = temp();
    sh(
        folder.path(),
        r#"mkdir examples && cp -r "$1/examples/demo" examples/ && cp -r "$1/strategies" ."#,
        &[repository().as_os_str()],
    );
    backup(["--config", "strategies/demo.toml", "--strategy", "daily"])
        .dir(folder.path())
        .expect(0);
    folder
}

#[test]
fn the_demo_is_backed_up_and_comes_back_byte_for_byte() {
    let folder = demo();
    let restore =
        ["restore", "--config", "strategies/demo.toml", "--strategy", "daily", "--to", "restored"];
    backup(restore).dir(folder.path()).expect(0);
    let at = |path: &str| files(&folder.path().join(path));
    assert_eq!(at("restored/attachments"), at("examples/demo/attachments"));
    assert_eq!(at("restored/attachments").len(), 12);
    let databases: Vec<Vec<u8>> = at("restored/db").into_values().collect();
    assert!(databases == [std::fs::read(repository().join("examples/demo/app.sqlite")).unwrap()]);
}

#[test]
fn the_demo_passes_its_drill_and_fails_it_when_an_attachment_is_gone() {
    let folder = demo();
    let drill = |code| {
        let args = ["drill", "--config", "strategies/demo.toml", "--strategy", "daily", "--json"];
        backup(args).dir(folder.path()).expect(code).json()
    };
    assert_passed(&drill(0));
    sh(folder.path(), "rm -r examples/demo/attachments/0a", &[]);
    backup(["--config", "strategies/demo.toml", "--strategy", "daily"])
        .dir(folder.path())
        .expect(0);
    let failed = outcomes(&drill(4), "failed");
    assert!(
        failed.len() == 1 && failed[0].contains("every attachment has its file"),
        "{failed:#?}"
    );
}

/// The one line of `docs/format.md` that begins so, without its indentation.
fn documented(beginning: &str) -> String {
    let text = std::fs::read_to_string(repository().join("docs/format.md")).unwrap();
    let mut found = text.lines().map(str::trim).filter(|line| line.starts_with(beginning));
    let line =
        found.next().unwrap_or_else(|| panic!("docs/format.md has no command `{beginning}`"));
    line.to_owned()
}

#[test]
fn the_commands_of_the_format_restore_the_demo_without_the_program() {
    let folder = demo();
    let find = sh(&folder.path().join("backups"), &documented("ls */"), &[]);
    let snapshot = folder.path().join("backups").join(find.trim()).parent().unwrap().to_owned();

    let first = sh(&snapshot, &documented("head -n 1 manifest.json"), &[]);
    let digest = sh(&snapshot, &documented("sed '1d;$d' manifest.json"), &[]);
    let digest = digest.split_whitespace().next().unwrap();
    assert!(first.contains(&format!("\"sha256:{digest}\"")), "{first}{digest}");
    sh(&snapshot, &documented("jq -r '.manifest.artifacts"), &[]);

    // The commands are written for an encrypted snapshot; the demo has none of that.
    let plain = |command: String| command.replace(" | age -d -i key.txt", "").replace(".age", "");
    let facts = sh(&snapshot, &plain(documented("cat facts.json.zst.age")), &[]);
    let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
    assert_eq!(facts["artifacts"][0]["name"], "db.sqlite");

    std::fs::create_dir(snapshot.join("FOLDER")).unwrap();
    sh(&snapshot, &plain(documented("cat attachments.tar.zst.age")), &[]);
    let restored = files(&snapshot.join("FOLDER"));
    assert_eq!(restored, files(&folder.path().join("examples/demo/attachments")));
    sh(
        &snapshot,
        &documented("cat files.index.zst").replace("files.index", "attachments.index"),
        &[],
    );
    sh(
        &snapshot,
        "cat db.sqlite.zst | zstd -d | cmp - \"$1\"",
        &[folder.path().join("examples/demo/app.sqlite").as_os_str()],
    );
}

#[test]
fn the_example_strategies_are_understood() {
    let folder = temp();
    let secrets = folder.path().join("secrets");
    sh(folder.path(), "mkdir secrets && age-keygen -o key.txt 2>/dev/null", &[]);
    for name in ["ella-db", "s3-key-id", "s3-key"] {
        sh(&secrets, "umask 077 && echo s3cret > \"$1\"", &[name.as_ref()]);
    }
    let recipient = sh(folder.path(), "age-keygen -y key.txt", &[]);
    for entry in std::fs::read_dir(repository().join("strategies")).unwrap() {
        let path = entry.unwrap().path();
        // What lies elsewhere on the host of the example is here for the test.
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replace("/run/secrets", secrets.to_str().unwrap());
        let file = folder.path().join(path.file_name().unwrap());
        std::fs::write(&file, text).unwrap();
        let listed = backup(["strategies", "--json", "--config"])
            .arg(&file)
            .env("AGE_RECIPIENT", recipient.trim())
            .env("DB_URL", "postgresql://ella@localhost/ella")
            .env("POSTGRES_HOST", "db")
            .env("POSTGRES_DB", "pixel")
            .env("POSTGRES_USER", "pixel")
            .env("POSTGRES_PASSWORD", "s3cret")
            .expect(0);
        assert!(listed.json().is_object());
        assert!(!listed.out().contains("s3cret"), "{listed}");
    }
}
