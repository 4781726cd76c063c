//! A machine that starts no more threads: an error with a code, and never a panic or a hang.

use std::time::Duration;

use crate::support::site::{Site, small_tree};
use crate::support::{Ran, needs_root};

const TABLES: &str = r#"
[sources.files]
type = "directory"
path = "@/files"
[sources.dump]
type = "command"
command = ["sh", "-c", "echo data"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["files", "dump"]
storages = ["local"]
"#;

/// Nobody else runs as this user: the limit counts all that does.
const USER: u32 = 64_998;

/// The code of a failed command: that of its report, or of the error document.
fn code(ran: &Ran) -> Option<String> {
    let report = serde_json::from_slice::<serde_json::Value>(&ran.stdout).ok();
    let err = ran.err();
    let error = err.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
    let of = |document: serde_json::Value| {
        let own = document["code"].as_str().or_else(|| document["error"]["code"].as_str());
        own.map(str::to_owned)
    };
    report.and_then(of).or_else(|| error.and_then(of))
}

#[test]
fn too_few_threads_are_an_error_and_no_panic() {
    needs_root("the limit does not hold for root, and another user is needed");
    let (mut refused, mut done) = (0, 0);
    for most in (1..=16).chain([20, 30, 200]) {
        let site = Site::new(TABLES);
        small_tree(&site.path("files"));
        let to = site.path("restored");
        let to = to.to_str().unwrap();
        for args in [
            &["--strategy", "daily"][..],
            &["list"],
            &["verify", "--read-data"],
            &["restore", "--strategy", "daily", "--to", to],
            &["check"],
            &["status"],
        ] {
            let limited = site
                .backup(args)
                .arg("--json")
                .with_user(USER, site.dir.path())
                .with_processes(most)
                .patience(Duration::from_secs(30));
            let ran = limited.run();
            assert!(!ran.err().contains("panicked"), "{most}: {ran}");
            match ran.code() {
                Some(0) => done += 1,
                // `status` before the first run, a restore of nothing.
                Some(code) if (1..=3).contains(&code) => {}
                _ => panic!("{most}: {ran}"),
            }
            match code(&ran).as_deref() {
                Some("no_threads") => refused += 1,
                Some("internal" | "snapshot_damaged" | "export_damaged") => panic!("{most}: {ran}"),
                _ => {}
            }
        }
    }
    assert!(refused > 0 && done >= 5, "{refused} refused, {done} done");
}
