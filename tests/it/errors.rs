//! Error codes: those of the program, those of `docs/errors.md`, and those that are provoked here
//! through the program.

use std::collections::BTreeSet;
use std::path::Path;

use holdfast::model::ErrorCode;
use rustix::process::Signal;
use serde_json::json;

use crate::format::edit_manifest;
use crate::support::daemon::{Daemon, until};
use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{SCRIPTED, Site, s3_storage, small_tree};
use crate::support::stores::{Server, fresh};
use crate::support::told::{Answer, Listener};
use crate::support::{Ran, backup, files, postgres, repository, s3, sh, temp};

/// Codes that no test provokes through the whole program, and where they are asserted instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("internal", "a fault of the program itself"),
    ("artifact_damaged", "reported as `snapshot_damaged` by restore; `it directory`"),
    ("file_denied", "needs a user without rights; `it directory`"),
    ("not_drilled", "inside the report of a drill; `it drill_targets`"),
    ("object_locked", "a refusal of prune; `it prune_s3`"),
    ("object_not_found", "read as damage by every command; `it storage`"),
    ("output_failed", "of `dump`, which has no `--json`; `it dump`"),
    ("restore_incomplete", "a signal at the right moment; `it faults`"),
    ("scheduler_elsewhere", "needs two process namespaces; `it containers_run`"),
    ("scheduler_failed", "a timer that does not start"),
    ("source_changed", "no source asks to be begun again yet; the unit tests of a run"),
    ("storage_busy", "reported as `run_locked`; `it storage`"),
    ("stream_failed", "reported with the code of the storage that failed"),
];

/// Asserts that the command ended with `exit` and an error document of this code.
#[track_caller]
fn provokes(code: &str, exit: i32, ran: Ran) {
    let ran = ran.expect(exit);
    let err = ran.err();
    let document = err.lines().filter_map(|line| serde_json::from_str(line).ok()).next_back();
    let document: serde_json::Value = document.unwrap_or_else(|| panic!("no document\n{ran}"));
    assert_eq!(document["error"]["code"], code, "{ran}");
    assert_eq!(document["error"]["exit"], exit, "{ran}");
}

/// Asserts that the report of a run has this code, of the run itself.
#[track_caller]
fn reports(code: &str, exit: i32, ran: Ran) {
    let ran = ran.expect(exit);
    assert_eq!(ran.json()["code"], code, "{ran}");
}

fn scripted(script: &str, more: &str) -> Site {
    let site = Site::new(&format!("{SCRIPTED}{more}"));
    std::fs::write(site.path("dump.sh"), script).unwrap();
    site
}

#[test]
fn codes_documents_and_tests_are_one_set() {
    let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    for code in &codes {
        assert!(code.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{code}");
    }
    let text = std::fs::read_to_string(repository().join("docs/errors.md")).unwrap();
    let documented: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(code, rest)| {
            let cells: Vec<&str> = rest.split('|').map(str::trim).collect();
            assert!(cells.iter().skip(1).take(2).all(|cell| cell.ends_with('.')), "{code}");
            code
        })
        .collect();
    assert_eq!(codes, documented, "docs/errors.md has every code once, in the same order");

    let own = std::fs::read_to_string(repository().join("tests/it/errors.rs")).unwrap();
    let provoked: BTreeSet<&str> = ["provokes(\n", "provokes(", "reports(", "reported("]
        .iter()
        .flat_map(|call| own.split(call).skip(1))
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
        .filter(|code| code.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    let elsewhere: BTreeSet<&str> = ELSEWHERE.iter().map(|(code, _)| *code).collect();
    let both: Vec<_> = provoked.intersection(&elsewhere).collect();
    assert!(both.is_empty(), "provoked, and need not be in ELSEWHERE: {both:?}");
    let tested: BTreeSet<&str> = provoked.union(&elsewhere).copied().collect();
    assert_eq!(codes.into_iter().collect::<BTreeSet<_>>(), tested);
}

#[test]
fn configurations_provoke_their_codes() {
    let check = |body: &str| Site::new(body).backup(["check", "--json"]).run();
    let storage = "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n";
    let strategy = "[strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n";
    let with = |source: &str| check(&format!("[sources.db]\n{source}\n{storage}{strategy}"));
    provokes("config_syntax", 2, check("x = "));
    provokes("config_unknown_key", 2, with("type = \"sqlite\"\npath = \"/x\"\nnone = 1"));
    provokes("config_missing_key", 2, with("type = \"sqlite\""));
    provokes("config_invalid_value", 2, with("type = \"sqlite\"\npath = 1"));
    provokes("config_unresolved_variable", 2, with("type = \"sqlite\"\npath = \"${NO}\""));
    let missing = "type = \"postgres\"\nurl = \"postgresql://h/d\"\npassword_file = \"/no/x\"";
    provokes("config_secret_unreadable", 2, with(missing));
    let twice = strategy.replace("\"local\"", "\"local\", \"local\"");
    let source = "[sources.db]\ntype = \"sqlite\"\npath = \"/x\"\n";
    provokes("config_conflict", 2, check(&format!("{source}{storage}{twice}")));

    let folder = temp();
    let json = |path: &Path| backup(["check", "--json", "--config"]).arg(path).run();
    provokes("config_not_found", 2, json(&folder.path().join("none.toml")));
    std::fs::write(folder.path().join("a.toml"), b"\xff").unwrap();
    provokes("config_unreadable", 2, json(&folder.path().join("a.toml")));

    let site = scripted("echo a", "");
    let named = |name: &str| site.backup(["run", "--json", "--strategy", name]).run();
    provokes("config_unknown_name", 2, named("dayly"));
    site.configure(&format!(
        "{storage}[strategies.daily]\nstorages = [\"local\"]\n\
         retention = {{ keep_last = 1 }}\n"
    ));
    provokes("config_prune_only", 2, named("daily"));
    let text = format!("{source}{}{strategy}", storage.replace("@", "/none"));
    for name in ["a", "b"] {
        let file = folder.path().join(format!("{name}.toml"));
        std::fs::write(file, format!("instance = \"{name}\"\n{text}")).unwrap();
    }
    let ambiguous = backup(["run", "--json", "--strategy", "daily", "--config"]);
    provokes("config_ambiguous_strategy", 2, ambiguous.arg(folder.path()).run());
}

#[test]
fn a_command_line_that_cannot_be_parsed_has_a_code() {
    for args in [&["list", "--none", "--json"][..], &["--json", "lisst"], &["hold", "--json"]] {
        provokes("invalid_request", 2, backup(args).run());
    }
}

#[test]
fn runs_provoke_their_codes() {
    reports(
        "tool_failed",
        1,
        scripted("exit 3", "").backup(["run", "--strategy", "daily", "--json"]).run(),
    );
    reports(
        "tool_timed_out",
        1,
        scripted("sleep 600", "no_progress_timeout = \"1s\"\n")
            .backup(["run", "--strategy", "daily", "--json"])
            .run(),
    );
    let site = scripted("", "");
    let run = || site.backup(["--strategy", "daily", "--json"]);
    site.configure(&SCRIPTED.replace("\"sh\", \"@/dump.sh\"", "\"@/none\""));
    reports("tool_missing", 1, run().run());
    site.configure(&format!("{SCRIPTED}before = [\"false\"]\n"));
    reports("hook_failed", 1, run().run());
    let slow = "touch \"$(dirname \"$0\")/reached\"; sleep 60";
    std::fs::write(site.path("dump.sh"), slow).unwrap();
    site.configure(&format!("{SCRIPTED}timeout = \"1s\"\n"));
    reports("timed_out", 1, run().run());

    site.configure(SCRIPTED);
    std::fs::remove_file(site.path("reached")).unwrap();
    let running = run().spawn();
    until("the source is read", || site.path("reached").exists());
    provokes("run_locked", 5, run().run());
    running.signal(Signal::TERM);
    reports("cancelled", 1, running.wait());

    let directory = SCRIPTED.replace(
        "type = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]",
        "type = \"directory\"\n\
            path = \"@/none\"",
    );
    site.configure(&directory);
    reports("source_unsuitable", 1, run().run());
    std::fs::remove_dir_all(site.path("store")).unwrap();
    std::fs::write(site.path("store"), "a file").unwrap();
    site.configure(SCRIPTED);
    reports("no_storage_left", 1, run().run());
}

#[test]
fn databases_provoke_their_codes() {
    let server = postgres(15);
    let run = |url: &str| {
        let body = SCRIPTED.replace(
            "type = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]",
            &format!("type = \"postgres\"\nurl = \"{url}\""),
        );
        let site = Site::new(&body);
        // `@` stands for the folder of the site there.
        let text = std::fs::read_to_string(site.config()).unwrap().replace("{AT}", "@");
        std::fs::write(site.config(), text).unwrap();
        site.backup(["--strategy", "daily", "--json"]).run()
    };
    reports("source_unreachable", 1, run("postgresql://postgres:x{AT}127.0.0.1:1/postgres"));
    let wrong = server.url.replace('@', "x{AT}");
    reports("source_failed", 1, run(&wrong));
}

#[test]
fn snapshots_provoke_their_codes() {
    let body = SCRIPTED.replace(
        "type = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]",
        "type = \"directory\"\n\
            path = \"@/data\"",
    );
    let site = Site::new(&body);
    small_tree(&site.path("data"));
    let restore = |more: &[&str]| {
        let args = ["restore", "--strategy", "daily", "--json"];
        site.backup(args).args(more).run()
    };
    let target = site.path("out").to_str().unwrap().to_owned();
    provokes("snapshot_not_found", 1, restore(&["--to", &target]));
    site.run(0);
    provokes("invalid_request", 2, restore(&["--to", &target, "--source", "none"]));
    restore(&["--to", &target]).expect(0);
    provokes("target_not_empty", 1, restore(&["--to", &target]));
    site.run(0);
    let newest = site.newest();
    edit_manifest(&newest, |manifest, _| manifest["requires"] = json!(["zstd", "later"]));
    let newer = newest.file_name().unwrap().to_str().unwrap();
    provokes("snapshot_newer", 1, restore(&["--to", &format!("{target}3"), "--snapshot", newer]));
    // It is not damaged, as far as anybody knows.
    let verified = site.backup(["verify", "--json"]).expect(1).json();
    assert_eq!(verified["snapshots"][1]["problems"], json!([]), "{verified}");
    let drilled = site.backup(["drill", "--strategy", "daily", "--json"]);
    let drilled = drilled.args(["--snapshot", newer]).expect(1).json();
    assert_eq!(drilled["verdict"], "inconclusive", "{drilled}");
    std::fs::remove_dir_all(&newest).unwrap();
    let tar = files(&site.newest())
        .into_keys()
        .find(|name| name.to_str().is_some_and(|name| name.contains(".tar")));
    std::fs::write(site.newest().join(tar.unwrap()), "damaged").unwrap();
    provokes("snapshot_damaged", 4, restore(&["--to", &format!("{target}2")]));
    std::fs::write(site.path("garbage.tar"), "garbage").unwrap();
    let import = site.backup(["import", "--json"]).arg(site.path("garbage.tar"));
    provokes("export_damaged", 4, import.args(["--storage", "local"]).run());
    provokes("file_failed", 1, restore(&["--to", &target, "--identity-file", "/none"]));
}

/// The code of the first storage in the report of a run.
#[track_caller]
fn storage_reports(ran: &Ran) -> String {
    let report = ran.json();
    report["storages"][0]["code"].as_str().unwrap_or_else(|| panic!("{ran}")).to_owned()
}

#[test]
fn storages_provoke_their_codes() {
    let server = s3("SEAWEEDFS");
    let on = |server: &crate::support::S3| {
        let local = "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n";
        let body = SCRIPTED.replace(local, &s3_storage("local", server, "no-such-bucket"));
        let site = Site::new(&body);
        std::fs::write(site.path("dump.sh"), "echo a").unwrap();
        site.backup(["--strategy", "daily", "--json"]).run()
    };
    let refused = crate::support::S3 { secret_key: "wrong".to_owned(), ..s3("SEAWEEDFS") };
    reported("storage_denied", &storage_reports(&on(&refused)));
    let silent = crate::support::S3 { endpoint: "http://127.0.0.1:1".to_owned(), ..server };
    reported("storage_unavailable", &storage_reports(&on(&silent)));
    let list = backup(["list", "--json", "--storage", "ftp://x"]);
    provokes("storage_unsuitable", 1, list.run());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_that_misbehave_provoke_their_codes() {
    let bucket = fresh("codes");
    Server::SeaweedFs.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let proxy = S3Proxy::before(&Server::SeaweedFs.endpoint()).await;
    let behind = crate::support::S3 { endpoint: proxy.endpoint.clone(), ..s3("SEAWEEDFS") };
    let local = "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n";
    let body = SCRIPTED.replace(local, &s3_storage("local", &behind, &bucket));
    let site = Site::new(&body);
    std::fs::write(site.path("dump.sh"), "echo a").unwrap();
    let with = |fault: Fault| {
        proxy.heal();
        proxy.inject_at(Op::Put, "dump.out.zst", fault, 9);
        storage_reports(&site.backup(["--strategy", "daily", "--json"]).run())
    };
    reported("object_mismatch", &with(Fault::Swallow));
    reported("object_exists", &with(Fault::Say(412, "PreconditionFailed")));
    reported("storage_failed", &with(Fault::Say(400, "InvalidRequest")));
    let words = "Bucket quota exceeded";
    reported("storage_full", &with(Fault::SayInWords(403, "QuotaExceeded", words)));
}

#[track_caller]
fn reported(code: &str, found: &str) {
    assert_eq!(found, code);
}

#[test]
fn this_machine_provokes_its_codes() {
    let site = scripted("echo a", "");
    std::fs::write(site.path("state"), "a file").unwrap();
    provokes("state_failed", 1, site.backup(["--strategy", "daily", "--json"]).run());
    std::fs::remove_file(site.path("state")).unwrap();
    site.run(0);
    let catalog = site.path("state/catalog.db");
    let rebuild = || site.backup(["catalog", "rebuild", "--json"]).run();
    sh(site.dir.path(), "sqlite3 \"$1\" 'PRAGMA user_version = 999'", &[catalog.as_os_str()]);
    provokes("catalog_newer", 1, rebuild());
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = std::fs::remove_file(site.path("state").join(name));
    }
    std::fs::create_dir(&catalog).unwrap();
    provokes("catalog_failed", 1, rebuild());
}

#[test]
fn schedulers_and_notifiers_provoke_their_codes() {
    let site = scripted("echo a", "");
    let schedule = || site.backup(["schedule", "--json"]).run();
    provokes("scheduler_not_running", 1, site.backup(["reload", "--json"]).run());
    provokes("nothing_scheduled", 2, schedule());
    let scheduled = format!("{SCRIPTED}schedule = \"@yearly\"\n");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = \"{}\"\n{}", taken.local_addr().unwrap(), scheduled);
    site.configure(&listen.replace("@yearly", "0 0 1 1 *"));
    provokes("listen_failed", 1, schedule());
    site.configure(&scheduled.replace("@yearly", "0 0 1 1 *"));
    let daemon = Daemon::start(&site);
    let holder = format!("{} ", daemon.pid());
    until("the scheduler holds its lock", || {
        std::fs::read_to_string(site.path("state/scheduler.lock"))
            .is_ok_and(|text| text.starts_with(&holder))
    });
    provokes("scheduler_running", 5, schedule());
    daemon.stop();

    let listener = Listener::new();
    let notifier = |url: &str| {
        site.configure(&format!("{SCRIPTED}[notify.hook]\ntype = \"webhook\"\nurl = \"{url}\"\n"));
        let ran = site.backup(["notify", "test", "--json"]).run().expect(1);
        ran.json()["notifiers"][0]["code"].as_str().unwrap().to_owned()
    };
    reported("notify_unavailable", &notifier("http://127.0.0.1:1/"));
    listener.answer(&[Answer::Status(404)]);
    reported("notify_failed", &notifier(&listener.address));
}
