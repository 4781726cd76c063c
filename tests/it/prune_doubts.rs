//! Retention where something is not as it seems: a storage that lost what it had, marks that only
//! one storage has, names that collide.

use std::path::Path;

use holdfast::model::{Mark, Says, SnapshotId, Verdict};

use crate::prune::{CONFIGURATION, Pruned, store, texts};
use crate::support::plant::{days_ago, plant, plant_one};
use crate::support::site::Site;
use crate::support::{Mounted, is_root, sh};

/// What a drill says of a snapshot of `daily`.
fn drilled(id: &SnapshotId, verdict: Verdict) -> Mark {
    mark("daily", id, Says::Drill { verdict, evidence: None })
}

fn mark(strategy: &str, id: &SnapshotId, says: Says) -> Mark {
    Mark {
        format: 1,
        mark_id: None,
        instance: "app".parse().unwrap(),
        strategy: strategy.parse().unwrap(),
        id: id.clone(),
        made: days_ago(0),
        says,
    }
}

/// The configuration with a second local storage, which the strategy does not name.
fn with_archive(retention: &str) -> String {
    CONFIGURATION.replace("RETENTION", retention)
        + "[storages.archive]\ntype = \"local\"\npath = \"@/archive\"\n"
}

#[tokio::test]
async fn the_last_one_that_no_drill_found_bad_stays() {
    let pruned = Pruned::with("{ keep_last = 1 }", 3).await;
    for bad in &pruned.ids[..2] {
        let mark = drilled(bad, Verdict::Failed);
        pruned.storage.replace(&mark.key(), mark.to_bytes().into()).await.unwrap();
    }
    let plan = pruned.prune(&["--plan"], 0);
    assert!(plan.out().contains("last_good"), "{plan}");
    pruned.prune(&["--yes"], 0);
    assert_eq!(pruned.site.ids(), texts(&[pruned.ids[0].clone(), pruned.ids[2].clone()]));
    let good = pruned.ids[2].as_str();
    let refused = pruned.site.backup(["forget", good, "--yes", "--force"]).expect(2);
    assert!(refused.err().contains("is the last good one"), "{refused}");
    // Those that are known to be bad can be got rid of, and once there is a new one it is the good
    // one.
    pruned.site.backup(["forget", pruned.ids[0].as_str(), "--yes"]).expect(0);
    pruned.site.run(0);
    assert_eq!(pruned.site.ids().len(), 1);
}

#[tokio::test]
async fn a_run_heeds_the_marks_of_storages_that_it_does_not_write_to() {
    let pruned = Pruned::configured(&with_archive("{ keep_last = 2 }"), 3).await;
    let archive = store(&pruned.site, "archive").await;
    plant_one(&*archive, "app", "daily", &pruned.ids[2], holdfast::model::Completeness::Whole)
        .await;
    pruned.site.backup(["hold", pruned.ids[2].as_str(), "--storage", "archive"]).expect(0);
    pruned.site.run(0);
    assert!(pruned.path(&pruned.ids[2]).exists(), "held in another storage");
    // What that storage holds is not known when it cannot be reached.
    std::fs::rename(pruned.site.path("archive"), pruned.site.path("away")).unwrap();
    std::fs::write(pruned.site.path("archive"), "not a folder").unwrap();
    let report = pruned.site.run(3).json();
    let problem = report["storages"][0]["pruned"]["problem"].as_str().unwrap();
    assert!(problem.contains("`archive`"), "{problem}");
}

#[tokio::test]
async fn all_that_is_gone_is_not_taken_as_it_is() {
    let pruned = Pruned::with("{ keep_last = 5 }", 4).await;
    assert_eq!(pruned.site.ids().len(), 4);
    std::fs::remove_dir_all(pruned.site.path("store")).unwrap();
    let refused = pruned.prune(&["--yes"], 1);
    assert!(refused.out().contains("are gone since they were last listed"), "{refused}");
    // A second look does not make it well.
    pruned.prune(&["--yes"], 1);
    assert!(pruned.site.run(3).out().contains("are gone since they were last listed"));
    pruned.prune(&["--yes", "--force"], 0);
    pruned.site.run(0);
}

#[tokio::test]
async fn two_strategies_with_the_same_id_do_not_take_each_others_hold() {
    let second = "[strategies.weekly]\nsources = [\"dump\"]\nstorages = [\"local\"]\n\
        retention = { keep_last = 1 }\n";
    let pruned =
        Pruned::configured(&(CONFIGURATION.replace("RETENTION", "{ keep_last = 1 }") + second), 2)
            .await;
    for id in &pruned.ids {
        plant_one(&*pruned.storage, "app", "weekly", id, holdfast::model::Completeness::Whole)
            .await;
    }
    let id = pruned.ids[1].as_str();
    pruned.site.backup(["hold", id, "--strategy", "daily"]).expect(0);
    pruned.site.backup(["hold", id, "--strategy", "weekly"]).expect(0);
    pruned.prune(&["--yes"], 0);
    for strategy in ["daily", "weekly"] {
        assert!(
            pruned.site.path(format!("store/app/{strategy}/{id}/manifest.json")).exists(),
            "{strategy}"
        );
    }
}

#[tokio::test]
async fn a_hold_that_is_replaced_within_a_tick_of_the_clock_counts() {
    let pruned = Pruned::with("{ keep_last = 1 }", 2).await;
    let id = pruned.ids[1].as_str();
    let stamp = |reference: &Path| {
        let mark = pruned.site.path(format!("store/app/marks/hold-{id}.json"));
        sh(reference, r#"touch -d 2026-01-01 "$1""#, &[mark.as_os_str()]);
    };
    let past = mark(
        "daily",
        &pruned.ids[1],
        Says::Hold { reason: None, until: Some("2020-01-01T00:00:00Z".parse().unwrap()) },
    );
    pruned.storage.replace(&past.key(), past.to_bytes().into()).await.unwrap();
    stamp(pruned.site.dir.path());
    pruned.prune(&["--plan"], 0);
    let longer = mark(
        "daily",
        &pruned.ids[1],
        Says::Hold { reason: None, until: Some("2999-01-01T00:00:00Z".parse().unwrap()) },
    );
    pruned.storage.replace(&longer.key(), longer.to_bytes().into()).await.unwrap();
    stamp(pruned.site.dir.path());
    pruned.prune(&["--yes"], 0);
    assert!(pruned.path(&pruned.ids[1]).exists());
}

#[tokio::test]
async fn nothing_is_held_while_snapshots_are_deleted() {
    let pruned = Pruned::with("{ keep_last = 1 }", 2).await;
    std::fs::create_dir_all(pruned.site.path("state")).unwrap();
    let deleter = std::fs::File::create(pruned.site.path("state/app.daily.read.lock")).unwrap();
    deleter.lock().unwrap();
    let refused = pruned.site.backup(["hold", pruned.ids[1].as_str()]).expect(5);
    assert!(refused.err().contains("deletes snapshots"), "{refused}");
    assert!(!pruned.site.path("store/app/marks").exists());
}

#[tokio::test]
async fn two_names_for_one_storage_are_an_error_of_the_configuration() {
    let twice = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 3 }")
        .replace("[\"local\"]", "[\"local\", \"again\"]")
        + "[storages.again]\ntype = \"local\"\npath = \"@/store/\"\n";
    let pruned = Pruned::configured(&twice, 1).await;
    let refused = pruned.site.run(2);
    assert!(refused.err().contains("the same place"), "{refused}");
    // What is seen only on the disk.
    let linked = twice.replace("@/store/", "@/link");
    pruned.site.configure(&linked);
    std::os::unix::fs::symlink(pruned.site.path("store"), pruned.site.path("link")).unwrap();
    let refused = pruned.site.run(1);
    assert!(refused.out().contains("the same place"), "{refused}");
    let refused = pruned.prune(&["--yes"], 2);
    assert!(refused.err().contains("the same place"), "{refused}");
}

#[tokio::test]
async fn a_lock_that_cannot_be_taken_stops_deleting() {
    let pruned = Pruned::with("{ keep_last = 1 }", 2).await;
    // A folder where the lock should be: it cannot be opened.
    std::fs::create_dir(pruned.site.path("store/app/daily/.lock")).unwrap();
    let refused = pruned.prune(&["--yes"], 1);
    assert!(
        refused.out().contains(".lock") || refused.out().contains("lock `app/daily`"),
        "{refused}"
    );
    let refused = pruned.site.backup(["forget", pruned.ids[1].as_str(), "--yes"]).expect(2);
    assert!(refused.err().contains("Nothing was deleted"), "{refused}");
    let list = pruned.site.backup(["list", "--json"]).expect(1).json();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(list["unexpected"].as_array().unwrap().len(), 1, "{list:#}");
}

#[tokio::test]
async fn a_hold_is_not_lost_with_the_disk_that_it_stood_on() {
    let configuration = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 2 }")
        .replace("[\"local\"]", "[\"local\", \"other\"]")
        + "[storages.other]\ntype = \"local\"\npath = \"@/other\"\n";
    let pruned = Pruned::configured(&configuration, 3).await;
    let other = store(&pruned.site, "other").await;
    plant(&*other, "app", "daily", pruned.ids.iter().map(SnapshotId::time)).await;
    let id = pruned.ids[2].as_str();
    pruned.site.backup(["hold", id, "--storage", "other"]).expect(0);
    pruned.prune(&["--plan"], 0);
    // The disk of `other` is not mounted any more: what is there is an empty folder.
    std::fs::remove_dir_all(pruned.site.path("other")).unwrap();
    std::fs::create_dir(pruned.site.path("other")).unwrap();
    pruned.site.run(3);
    pruned.site.run(3);
    assert!(pruned.path(&pruned.ids[2]).exists(), "held, as far as is known");
}

#[tokio::test]
async fn on_a_full_disk_pruning_makes_room_and_the_next_run_succeeds() {
    assert!(is_root(), "mounting a small disk needs root");
    let site = Site::new(&CONFIGURATION.replace("RETENTION", "{ keep_last = 4 }"));
    let path = site.path("store");
    std::fs::create_dir(&path).unwrap();
    let mount = "mount -t tmpfs -o size=18m none \"$1\"";
    sh(site.dir.path(), mount, &[path.as_os_str()]);
    let unmount = Mounted(path.clone());
    let ids = plant(&*store(&site, "store").await, "app", "daily", (1..=6).map(days_ago)).await;
    // Its lock is there, as after any run.
    site.backup(["prune", "--plan"]).expect(0);
    let filled = std::fs::write(path.join("filling"), vec![0; 32 << 20]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    site.run(1);
    assert_eq!(site.ids().len(), 6);
    site.backup(["prune", "--yes", "--force"]).expect(0);
    assert_eq!(site.ids(), texts(&[3, 2, 1, 0].map(|at| ids[at].clone())));
    std::fs::remove_file(path.join("filling")).unwrap();
    site.run(0);
    site.backup(["verify"]).expect(0);
    drop(unmount);
}

#[tokio::test]
async fn prunings_at_the_same_time_delete_what_one_would_have_deleted() {
    let pruned = Pruned::with("{ keep_last = 3 }", 40).await;
    // Another machine: the same storage, a state folder of its own.
    let other = Site::new(&CONFIGURATION.replace("RETENTION", "{ keep_last = 3 }"));
    let text = std::fs::read_to_string(other.config()).unwrap();
    let (theirs, ours) = (other.path("store"), pruned.site.path("store"));
    std::fs::write(other.config(), text.replace(theirs.to_str().unwrap(), ours.to_str().unwrap()))
        .unwrap();
    let start = |site: &Site| site.backup(["prune", "--yes", "--force"]).spawn();
    let running = [start(&pruned.site), start(&other), start(&pruned.site), start(&other)];
    let codes: Vec<Option<i32>> = running.into_iter().map(|one| one.wait().code()).collect();
    // Who came while another was at work says so, and who came after found nothing to do.
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 5))), "{codes:?}");
    assert!(codes.contains(&Some(0)), "{codes:?}");
    let mut kept = texts(&pruned.ids[..3]);
    kept.sort();
    assert_eq!(pruned.site.ids(), kept);
    assert_eq!(pruned.site.folders().len(), 3, "nothing is left half deleted");
    pruned.site.backup(["verify"]).expect(0);
}
