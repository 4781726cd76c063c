//! Snapshots that a wrong clock dated, and hosts whose clock is wrong.

use chrono::{TimeDelta, Utc};
use holdfast::model::SnapshotId;

use crate::prune::Pruned;
use crate::support::daemon::WallClock;
use crate::support::plant::plant;
use crate::support::site::{SCRIPTED, Site, s3_storage};
use crate::support::stores::{Server, fresh};
use crate::support::{Ran, s3};

const TWO: &str = "[storages.other]\ntype = \"local\"\npath = \"@/other\"\n";

/// Each command that means the newest snapshot where none is named.
fn commands(site: &Site) -> Vec<Vec<String>> {
    let out = |name: &str| site.path(name).to_str().unwrap().to_owned();
    [
        &["show", "latest", "--strategy", "daily"][..],
        &["verify", "--snapshot", "latest", "--strategy", "daily"],
        &["drill", "--strategy", "daily"],
        &["restore", "--strategy", "daily", "--to", &out("restored")],
        &["export", "--strategy", "daily", "--snapshot", "latest", "--output", &out("one.tar")],
        &["copy", "--snapshot", "latest", "--from", "local", "--to", "other"],
        &["hold", "latest", "--strategy", "daily"],
    ]
    .map(|args| args.iter().map(|arg| (*arg).to_owned()).collect())
    .into()
}

fn takes(ran: &Ran, taken: &SnapshotId, other: &SnapshotId) {
    assert!(ran.out().contains(taken.as_str()) && !ran.out().contains(other.as_str()), "{ran}");
}

/// A run by a clock that is ahead by so much.
fn run_ahead(site: &Site, ahead: TimeDelta) -> SnapshotId {
    let clock = WallClock::at(Utc::now() + ahead);
    let ran = clock.shown_to(site.backup(["--strategy", "daily", "--json"])).expect(0).json();
    ran["id"].as_str().unwrap().parse().unwrap()
}

fn on_disk(more: &str) -> (Site, SnapshotId) {
    let site = Site::new(&format!("{SCRIPTED}{more}"));
    std::fs::write(site.path("dump.sh"), "echo a").unwrap();
    let id = site.run(0).json()["id"].as_str().unwrap().parse().unwrap();
    (site, id)
}

#[test]
fn a_snapshot_of_the_future_is_never_latest() {
    let (site, good) = on_disk(TWO);
    for ahead in [TimeDelta::minutes(6), TimeDelta::days(400)] {
        let future = run_ahead(&site, ahead);
        for args in commands(&site) {
            let ran = site.backup(args).args(["--json"]).expect(0);
            takes(&ran, &good, &future);
            assert!(ran.err().contains(future.as_str()), "not named: {ran}");
        }
        // By its id it can be used.
        site.backup(["show", future.as_str()]).expect(0);
        for left in ["restored", "one.tar", "other"] {
            let left = site.path(left);
            let _ = std::fs::remove_dir_all(&left).or_else(|_| std::fs::remove_file(&left));
        }
    }
}

#[test]
fn clocks_that_differ_by_minutes_make_no_future() {
    let (site, good) = on_disk("retention = { keep_last = 2 }\n");
    let soon = run_ahead(&site, TimeDelta::minutes(4));
    takes(&site.backup(["show", "latest", "--json"]).expect(0), &soon, &good);
    site.backup(["prune", "--yes"]).expect(0);
}

#[tokio::test]
async fn only_snapshots_of_the_future_are_no_latest() {
    let pruned = Pruned::with("{ keep_last = 2 }", 0).await;
    let future = [Utc::now() + TimeDelta::days(400)];
    let future = plant(&*pruned.storage, "app", "daily", future).await;
    let refused = pruned.site.backup(["show", "latest"]).expect(1);
    assert!(refused.err().contains(future[0].as_str()), "{refused}");
}

/// A site with an S3 storage, whose server has the right time.
async fn on_s3(more: &str) -> Site {
    let bucket = fresh("clocks");
    Server::SeaweedFs.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let local = "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n";
    let storage = s3_storage("local", &s3("SEAWEEDFS"), &bucket);
    let site = Site::new(&format!("{}{more}", SCRIPTED.replace(local, &storage)));
    std::fs::write(site.path("dump.sh"), "echo a").unwrap();
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_years_behind_believes_the_server() {
    let site = on_s3("").await;
    let good: SnapshotId = site.run(0).json()["id"].as_str().unwrap().parse().unwrap();
    let clock = WallClock::at(Utc::now() - TimeDelta::days(1_000));
    let shown = clock.shown_to(site.backup(["show", "latest", "--json"])).expect(0);
    assert!(shown.out().contains(good.as_str()), "{shown}");
    assert!(shown.err().contains("clock of this host"), "{shown}");
    // Whoever runs there is told.
    let ran = clock.shown_to(site.backup(["--strategy", "daily", "--json"])).expect(3).json();
    assert_eq!(ran["storages"][0]["warnings"].as_array().unwrap().len(), 1, "{ran:#}");
    let shown = site.backup(["show", "latest", "--json"]).expect(0);
    assert!(shown.out().contains(good.as_str()), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_years_ahead_believes_the_server() {
    let retention = "retention = { keep_within = \"30d\" }\n";
    let site = on_s3(retention).await;
    let good: SnapshotId = site.run(0).json()["id"].as_str().unwrap().parse().unwrap();
    let clock = WallClock::at(Utc::now() + TimeDelta::days(1_000));
    let ran = clock.shown_to(site.backup(["--strategy", "daily", "--json"])).expect(3).json();
    let future: SnapshotId = ran["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(site.ids(), [good.as_str(), future.as_str()], "nothing is pruned by that clock");
    for backup in [
        site.backup(["show", "latest", "--json"]),
        clock.shown_to(site.backup(["show", "latest", "--json"])),
    ] {
        takes(&backup.expect(0), &good, &future);
    }
}

#[test]
fn a_host_behind_its_disk_believes_the_disk() {
    let (site, good) = on_disk("");
    let clock = WallClock::at(Utc::now() - TimeDelta::days(1_000));
    let shown = clock.shown_to(site.backup(["show", "latest", "--json"])).expect(0);
    assert!(shown.out().contains(good.as_str()), "{shown}");
}
