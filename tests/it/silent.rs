//! Storages that do not answer: what shows something answers all the same, and says which.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::site::{SCRIPTED, Site, s3_storage};
use crate::support::{Ran, S3};

/// Within so long a command answers whose `timeout` is 10 s.
const SOON: Duration = Duration::from_secs(12);
/// The commands that show something, and need no more of a storage than what is in it.
const SHOWING: [&[&str]; 5] = [
    &["list"],
    &["status"],
    &["prune", "--plan"],
    &["stats"],
    &["show", "latest", "--strategy", "daily"],
];

/// A site with a snapshot in `local`, and then a second storage at `endpoint`.
fn site(endpoint: &str, more: &str) -> Site {
    let site = Site::new(SCRIPTED);
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site.run(0);
    let server = S3 {
        endpoint: endpoint.to_owned(),
        access_key: "GK0123456789abcdef01234567".to_owned(),
        secret_key: "secret".to_owned(),
        region: "us-east-1".to_owned(),
    };
    let away = s3_storage("away", &server, "bucket");
    let both = SCRIPTED.replace("[\"local\"]", "[\"local\", \"away\"]");
    // A second strategy, of which nothing is recorded, and which `status` therefore looks for.
    let other = "retention = { keep_last = 3 }\n[strategies.other]\nsources = [\"dump\"]\n\
                 storages = [\"local\", \"away\"]\n";
    site.configure(&format!("{away}{more}{both}{other}"));
    site
}

/// Runs each of [`SHOWING`] at once, and tells how long each took.
fn shown(site: &Site) -> Vec<(&'static [&'static str], Ran, Duration)> {
    std::thread::scope(|scope| {
        let running = SHOWING.map(|args| {
            scope.spawn(move || {
                let began = Instant::now();
                let ran = site.backup(args).arg("--json").run();
                (args, ran, began.elapsed())
            })
        });
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn showing_commands_answer_beside_a_silent_storage() {
    // It accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let site = site(&format!("http://{}", silent.local_addr().unwrap()), "");
    for (args, ran, took) in shown(&site) {
        assert!(took < SOON, "{args:?} took {took:?}: {ran}");
        let slow = |line: &&str| line.contains("\"storage\":\"away\"") && line.contains("waiting");
        assert!(ran.err().lines().any(|line| slow(&line)), "{args:?}: {ran}");
        match args {
            ["list"] => {
                assert_eq!(ran.code(), Some(1), "{ran}");
                assert_eq!(ran.json()["snapshots"][0]["storages"][0], "local", "{ran}");
                assert_eq!(ran.json()["unlisted"][0]["storage"], "away", "{ran}");
            }
            ["prune", ..] => {
                let places = ran.json()["plan"]["places"].clone();
                let place = |name: &str| {
                    places.as_array().unwrap().iter().find(|one| one["storage"] == name).unwrap()
                };
                assert_eq!(place("away")["refusals"][0]["kind"], "unreachable", "{ran}");
                assert_eq!(place("local")["snapshots"][0]["keep"], true, "{ran}");
            }
            ["status"] => {
                let daily = &ran.json()["strategies"][0];
                assert_eq!(daily["storages"].as_array().unwrap().len(), 2, "{ran}");
            }
            ["stats"] => {
                assert_eq!(ran.code(), Some(1), "{ran}");
                assert_eq!(ran.json()["storages"][0]["storage"], "local", "{ran}");
                assert_eq!(ran.json()["unlisted"][0]["storage"], "away", "{ran}");
            }
            ["show", ..] => assert_eq!(ran.code(), Some(0), "{ran}"),
            _ => unreachable!("{args:?}"),
        }
    }
}

#[test]
fn showing_commands_answer_beside_an_unreachable_storage() {
    let site = site("http://127.0.0.1:1", "");
    for (args, ran, took) in shown(&site) {
        assert!(took < SOON, "{args:?} took {took:?}: {ran}");
        // The reason is told, and not only that it took too long.
        let is_told = ran.err().contains("refused") || ran.out().contains("refused");
        assert!(is_told || args[0] == "show", "{args:?}: {ran}");
    }
}

#[test]
fn a_silent_storage_does_not_delay_a_check() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let site = site(&format!("http://{}", silent.local_addr().unwrap()), "timeout = \"2s\"\n");
    let began = Instant::now();
    let ran = site.backup(["check", "--json"]).expect(1);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {ran}", began.elapsed());
    let storages = ran.json()["instances"][0]["storages"].clone();
    let findings = |name: &str| {
        let all = storages.as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap()["findings"].to_string()
    };
    assert!(findings("away").contains("\"error\""), "{ran}");
    assert!(!findings("local").contains("\"error\""), "{ran}");
}

#[test]
fn what_did_not_answer_is_not_pruned() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let site = site(&endpoint, "timeout = \"1s\"\nattempts = 1\n");
    let ran = site.backup(["prune", "--yes", "--json"]).expect(1);
    for place in ran.json()["pruned"].as_array().unwrap() {
        assert_eq!(place["deleted"].as_array().unwrap().len(), 0, "{ran}");
    }
}

#[test]
fn a_storage_that_cannot_be_opened_hides_no_other() {
    let site = site("http://127.0.0.1:1", "timeout = \"1s\"\nca_file = \"@/none.pem\"\n");
    let list = site.backup(["list", "--json"]).expect(1).json();
    assert_eq!(list["snapshots"][0]["storages"][0], "local", "{list}");
    assert_eq!(list["unlisted"][0]["storage"], "away", "{list}");
    let to = site.path("restored");
    site.backup(["restore", "--strategy", "daily", "--to"]).arg(&to).expect(0);
    // A release must reach every storage where the hold may stand.
    site.backup(["release", "latest", "--strategy", "daily"]).expect(1);
}
