//! Error codes: those of the program, those of `docs/errors.md`, and those that are provoked here
//! through the program.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt as _;
use holdfast::model::ErrorCode;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Notify;

use crate::format::edit_manifest;
use crate::support::daemon::{Daemon, until};
use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{SCRIPTED, Site, s3_storage, small_tree};
use crate::support::stores::{Server, fresh};
use crate::support::told::{Answer, Listener};
use crate::support::{Ran, backup, files, needs_root, postgres, repository, s3, sh, temp};

/// Codes that no test provokes through the whole program, and where they are asserted instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("internal", "a fault of the program itself; one that is known is mended"),
    ("source_changed", "for sources to come; the unit tests of a run have one that asks for it"),
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
fn a_command_without_threads_provokes_its_code() {
    needs_root("the limit does not hold for root, and another user is needed");
    let site = scripted("echo a", "");
    let list = site.backup(["list", "--json"]).with_user(64_998, site.dir.path());
    provokes("no_threads", 1, list.with_processes(1).run());
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
    let store = site.path("store").to_str().unwrap().to_owned();
    provokes("delete_unsafe", 1, restore(&["--to", &store, "--overwrite", "--delete"]));
    site.run(0);
    let newest = site.newest();
    edit_manifest(&newest, |manifest, _| manifest["requires"] = json!(["zstd", "later"]));
    let newer = newest.file_name().unwrap().to_str().unwrap();
    provokes("snapshot_newer", 1, restore(&["--to", &format!("{target}3"), "--snapshot", newer]));
    let kept = std::fs::read(newest.join("manifest.json")).unwrap();
    std::fs::File::create(newest.join("manifest.json")).unwrap().set_len(1 << 30).unwrap();
    let larger = ["--to", &format!("{target}4"), "--snapshot", newer];
    provokes("document_too_large", 1, restore(&larger));
    std::fs::write(newest.join("manifest.json"), kept).unwrap();
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
    site.configure(&format!("{body}[strategies.daily.drill]\nmax_bytes = \"1B\"\n"));
    let drilled = site.backup(["drill", "--strategy", "daily", "--json"]).expect(1).json();
    reported("not_drilled", drilled["code"].as_str().unwrap());
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
    let site = scripted("echo a", "");
    std::fs::create_dir_all(site.path("store/.clock")).unwrap();
    let run = site.backup(["--strategy", "daily", "--json"]).run();
    reported("object_not_a_file", &storage_reports(&run));
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

    proxy.heal();
    site.run(0);
    site.run(0);
    site.configure(&format!("{body}retention = {{ keep_last = 1 }}\n"));
    proxy.inject_at(Op::Delete, "manifest.json", Fault::Say(403, "ObjectLocked"), 9);
    let pruned = site.backup(["prune", "--yes", "--force", "--json"]).expect(1).json();
    reported("object_locked", pruned["pruned"][0]["code"].as_str().unwrap());

    let reached = Arc::new(Notify::new());
    let tell = Arc::clone(&reached);
    let hang = Fault::Then(Arc::new(move || {
        tell.notify_one();
        std::future::pending().boxed()
    }));
    proxy.inject_at(Op::Get, "dump.out.zst", hang, 9);
    let to = site.path("out");
    let restore = site.backup(["restore", "--strategy", "daily", "--json", "--to"]).arg(to).spawn();
    reached.notified().await;
    restore.signal(Signal::TERM);
    let stopped = tokio::task::spawn_blocking(|| restore.wait()).await.unwrap();
    provokes("restore_incomplete", 1, stopped);
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let files = "type = \"directory\"\npath = \"@/data\"";
    let scripted = "type = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]";
    let site = Site::new(&SCRIPTED.replace(scripted, files));
    small_tree(&site.path("data"));
    site.run(0);
    let full = r#"
        test -c /dev/full
        for_each() { "$1" --config "$2" "${@:3}" > /dev/full 2>> says && echo "${*:3} exits 0"; true; }
        for command in list status check stats "show latest" "show latest --files" strategies \
            "verify" "drill report" "config schema" "completions bash" "prune --plan" --help; do
            for_each "$1" "$2" $command
            test "$command" = --help || for_each "$1" "$2" $command --json
        done"#;
    let program = env!("CARGO_BIN_EXE_backup").as_ref();
    let config = site.config();
    assert_eq!(sh(site.dir.path(), full, &[program, config.as_os_str()]), "");
    let closed = r#""$1" --config "$2" list --json | true"#;
    sh(site.dir.path(), closed, &[program, config.as_os_str()]);
    let list = r#""$1" --config "$2" list --json 2>&1 > /dev/full || echo"#;
    let said = sh(site.dir.path(), list, &[program, config.as_os_str()]);
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    reported("output_failed", said["error"]["code"].as_str().unwrap());
}

#[test]
fn users_without_rights_provoke_their_codes() {
    needs_root("another user is needed");
    let site = scripted("echo a", "schedule = \"0 0 1 1 *\"\n");
    site.run(0);
    std::fs::create_dir(site.path("out")).unwrap();
    // May read everything, write to nothing of others, and signal nobody.
    let as_reader = |args: &[&str]| {
        let script = r#"only=-all,+dac_read_search
            exec setpriv --reuid 64999 --regid 64999 --clear-groups --no-new-privs \
                --inh-caps=$only --ambient-caps=$only --bounding-set=$only "$0" "$@""#;
        let mut command = std::process::Command::new("bash");
        command.args(["-euc", script, env!("CARGO_BIN_EXE_backup"), "--config"]);
        command.arg(site.config()).args(args).arg("--json");
        Ran::of(command)
    };
    let to = site.path("out");
    let restore = ["restore", "--strategy", "daily", "--to", to.to_str().unwrap()];
    provokes("file_denied", 1, as_reader(&restore));
    let daemon = Daemon::start(&site);
    daemon.holds_the_lock(&site);
    provokes("scheduler_failed", 1, as_reader(&["reload"]));
    let elsewhere = ["--pid", "--fork", env!("CARGO_BIN_EXE_backup"), "reload", "--json"];
    let mut command = std::process::Command::new("unshare");
    command.args(elsewhere).arg("--config").arg(site.config());
    provokes("scheduler_elsewhere", 1, Ran::of(command));
    daemon.stop();
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
    daemon.holds_the_lock(&site);
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
