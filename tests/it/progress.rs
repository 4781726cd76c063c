//! The progress bar: on a terminal, with what is known, and gone at the end.

use std::ffi::OsStr;

use crate::support::site::Site;
use crate::support::{repository, sh};

const PROGRAM: &str = env!("CARGO_BIN_EXE_backup");

const PIPED: &str = r#"
[sources.dump]
type = "command"
command = ["cat", "@/pipe"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["dump"]
storages = ["local"]
"#;

/// A site with a source of 64 KiB that does not end before the test wants it to.
fn site() -> Site {
    let site = Site::new(PIPED);
    sh(site.dir.path(), "mkfifo pipe", &[]);
    site
}

/// Shows a run on a terminal. The source ends when `mark` is shown.
fn on_a_terminal(site: &Site, mark: &str, args: &[&str]) -> String {
    let (judge, pipe) = (repository().join("tests/it/support/terminal.py"), site.path("pipe"));
    let config = site.config();
    let mut all = vec![judge.as_os_str(), pipe.as_os_str(), mark.as_ref(), PROGRAM.as_ref()];
    all.extend(["--config".as_ref(), config.as_os_str()]);
    all.extend(["--strategy", "daily"].iter().chain(args).map(OsStr::new));
    sh(site.dir.path(), r#"exec python3 "$@""#, &all)
}

#[test]
fn a_terminal_shows_bytes_while_they_are_read() {
    let site = site();
    let first = on_a_terminal(&site, "64.00 KiB", &[]);
    assert!(first.contains("64.00 KiB") && first.contains("/s"), "{first}");
    assert!(!first.contains('░'), "no bar without a style: {first}");
    assert!(!first.contains("of ~"), "the size is not known before a first run: {first}");
    assert!(first.ends_with("\nexit 0\n"), "{first}");
    let second = on_a_terminal(&site, "of ~64.00 KiB", &[]);
    assert!(second.contains("of ~64.00 KiB") && second.contains("left"), "{second}");
    let last = second.rfind("of ~64.00 KiB").unwrap();
    assert!(second[last..].contains("\u{1b}[2K"), "the bar is erased at the end: {second:?}");
    assert!(second.ends_with("\nexit 0\n"), "{second}");
}

#[test]
fn quiet_and_json_show_no_progress() {
    let site = Site::new(&PIPED.replace(r#""cat", "@/pipe""#, r#""echo", "data""#));
    std::fs::write(site.path("pipe"), "").unwrap();
    for flag in ["--quiet", "--json"] {
        let shown = on_a_terminal(&site, "", &[flag]);
        assert!(!shown.contains("KiB/s") && !shown.contains("[2K"), "{flag}: {shown:?}");
        assert!(shown.ends_with("\nexit 0\n"), "{flag}: {shown}");
    }
}
