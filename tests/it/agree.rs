//! What commands say of one thing agrees.

use serde_json::Value;

use crate::support::site::{Site, noise};

const TWO: &str = r#"
[sources.dump]
type = "command"
command = ["head", "-c", "200000", "@/noise"]
[storages.local]
type = "local"
path = "@/store"
[storages.usb]
type = "local"
path = "@/usb"
[strategies.daily]
sources = ["dump"]
storages = ["local", "usb"]
retention = { keep_last = 2 }
[strategies.weekly]
sources = ["dump"]
storages = ["local"]
"#;

fn site() -> Site {
    let site = Site::new(TWO);
    std::fs::write(site.path("noise"), noise(200_000)).unwrap();
    site
}

#[test]
fn latest_is_of_one_strategy() {
    let site = site();
    for strategy in ["daily", "weekly"] {
        site.backup(["--strategy", strategy]).expect(0);
    }
    let out = site.path("out");
    let out = out.to_str().unwrap();
    let guesses: [&[&str]; 8] = [
        &["hold", "latest"],
        &["show", "latest"],
        &["show", "latest", "--files"],
        &["dump", "latest", "dump"],
        &["diff", "latest", "latest"],
        &["restore", "--to", out],
        &["verify", "--snapshot", "latest"],
        &["copy", "--from", "local", "--to", "usb", "--snapshot", "latest"],
    ];
    for args in guesses {
        let refused = site.backup(args).expect(2);
        assert!(refused.err().contains("`weekly` of `app`"), "{refused}");
    }
    assert!(!site.path("store/app/marks").exists() && !site.path("out").exists());
    site.backup(["hold", "latest", "--strategy", "weekly"]).expect(0);
}

#[test]
fn list_and_prune_give_the_same_order_and_sizes() {
    let site = site();
    for _ in 0..4 {
        site.backup(["--strategy", "daily"]).expect(0);
    }
    let list = site.backup(["list", "--strategy", "daily", "--json"]).expect(0).json();
    let plan = ["prune", "--plan", "--strategy", "daily", "--storage", "local", "--json"];
    let plan = site.backup(plan).expect(0).json();
    let told = |rows: &Value| -> Vec<(String, u64)> {
        let row = |row: &Value| {
            (row["id"].as_str().unwrap().to_owned(), row["stored_bytes"].as_u64().unwrap())
        };
        rows.as_array().unwrap().iter().map(row).collect()
    };
    assert_eq!(told(&list["snapshots"]), told(&plan["plan"]["places"][0]["snapshots"]));
}

#[test]
fn a_storage_without_a_snapshot_hides_no_other() {
    let site = site();
    site.backup(["--strategy", "daily"]).expect(0);
    std::fs::remove_dir_all(site.path("usb")).unwrap();
    site.backup(["list"]).run();
    let status = site.backup(["status"]).run();
    let line = status.out().lines().find(|line| line.contains("app/daily")).unwrap().to_owned();
    assert!(line.contains("in 1 of 2") && !line.contains("none"), "{status}");
}

#[test]
fn check_says_of_encryption_once() {
    let check = site().backup(["check", "--json"]).run();
    let count = check.out().matches("encrypt").count();
    // The setting's own name, and the sentence about it.
    assert!(check.out().matches("can read the backups").count() == 1, "{count}: {check}");
}
