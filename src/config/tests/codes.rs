//! The codes of mistakes, which scripts read.

use std::path::Path;

use super::{SMALL, env, parse};
use crate::config::{ConfigErrors, Locations, Settings};
use crate::model::ErrorCode;

/// The key and code of each mistake of [`SMALL`] with `from` replaced.
fn codes(from: &str, to: &str) -> Vec<(String, ErrorCode)> {
    let text = SMALL.replacen(from, to, 1);
    assert_ne!(text, SMALL, "{from}");
    let errors = parse(Path::new("a.toml"), &text, &env(&[])).err().unwrap();
    assert_eq!(errors.code(), errors.0[0].code);
    errors.0.into_iter().map(|error| (error.key, error.code)).collect()
}

#[test]
fn each_mistake_has_its_code() {
    for (from, to, key, code) in [
        (
            "path = \"data\"",
            "path = \"data\"\nx = 1",
            "sources.files.x",
            ErrorCode::ConfigUnknownKey,
        ),
        ("path = \"data\"\n", "", "sources.files", ErrorCode::ConfigMissingKey),
        ("path = \"data\"", "path = 1", "sources.files.path", ErrorCode::ConfigInvalidValue),
        ("\"directory\"", "2026-11-21", "sources.files.type", ErrorCode::ConfigInvalidValue),
        ("path = \"data\"", "path = ", "", ErrorCode::ConfigSyntax),
        ("\"data\"", "\"${NO}\"", "sources.files.path", ErrorCode::ConfigUnresolvedVariable),
        ("[\"files\"]", "[\"fil\"]", "strategies.daily.sources[0]", ErrorCode::ConfigUnknownName),
        (
            "[\"here\"]",
            "[\"here\", \"here\"]",
            "strategies.daily.storages[1]",
            ErrorCode::ConfigConflict,
        ),
        (
            "type = \"directory\"\npath = \"data\"",
            "type = \"postgres\"\nurl = \"postgresql://h/d\"\npassword_file = \"/nowhere/x\"",
            "sources.files.password_file",
            ErrorCode::ConfigSecretUnreadable,
        ),
        (
            "type = \"directory\"\npath = \"data\"",
            "type = \"postgres\"\nurl = \"postgresql://h/d\"\npassword_file = 2026-11-21",
            "sources.files.password_file",
            ErrorCode::ConfigInvalidValue,
        ),
    ] {
        assert_eq!(codes(from, to), [(key.to_owned(), code)], "{to}");
    }
}

#[test]
fn a_mistake_does_not_hide_the_next() {
    let found = codes("[\"files\"]", "[\"Files\", \"fil\"]");
    assert_eq!(
        found,
        [
            ("strategies.daily.sources[0]".to_owned(), ErrorCode::ConfigInvalidValue),
            ("strategies.daily.sources[1]".to_owned(), ErrorCode::ConfigUnknownName),
        ]
    );
    let found = codes(
        "storages = [\"here\"]",
        "timeout = \"0s\"\nnotify = 1\n[strategies.daily.drill]\nstorage = \"x\"\nchecks = [\
         { type = \"file\" }, { type = \"file\", source = \"x\", path = \"a\" }, \
         { type = \"query\", source = \"files\", query = \"a\" }]",
    );
    let expected = [
        ("", ErrorCode::ConfigMissingKey),
        (".timeout", ErrorCode::ConfigInvalidValue),
        (".notify", ErrorCode::ConfigUnknownKey),
        (".drill.storage", ErrorCode::ConfigUnknownName),
        (".drill.checks[0]", ErrorCode::ConfigMissingKey),
        (".drill.checks[0]", ErrorCode::ConfigMissingKey),
        (".drill.checks[1].source", ErrorCode::ConfigUnknownName),
        (".drill.checks[2]", ErrorCode::ConfigConflict),
        (".drill.checks[2].source", ErrorCode::ConfigInvalidValue),
    ];
    assert_eq!(found, expected.map(|(key, code)| (format!("strategies.daily{key}"), code)));
    let found = codes("[strategies.daily]", "[strategies.Daily]\ntimeout = \"0s\"");
    assert_eq!(found.len(), 2, "{found:?}");
}

fn load(folder: &Path, files: &[(&str, &str)]) -> Result<Settings, ConfigErrors> {
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    Locations { file: folder.join("none"), folder: folder.to_owned() }.load(None, env(&[]))
}

#[test]
fn names_and_files_have_codes() {
    let folder = tempfile::tempdir().unwrap();
    let code = |files: &[(&str, &str)]| load(folder.path(), files).err().unwrap().code();
    assert_eq!(code(&[]), ErrorCode::ConfigNotFound);
    let other = SMALL.replace("small", "other");
    let settings = load(folder.path(), &[("a.toml", SMALL), ("b.toml", &other)]);
    let settings = settings.unwrap_or_else(|errors| panic!("{errors}"));
    let find = |name: &str| settings.find_strategy(name, None).map(drop).unwrap_err().code();
    assert_eq!(find("daily"), ErrorCode::ConfigAmbiguousStrategy);
    assert_eq!(find("dayly"), ErrorCode::ConfigUnknownName);
    assert_eq!(code(&[("b.toml", SMALL)]), ErrorCode::ConfigConflict);
    std::fs::write(folder.path().join("b.toml"), b"\xe9").unwrap();
    assert_eq!(code(&[]), ErrorCode::ConfigUnreadable);
}
