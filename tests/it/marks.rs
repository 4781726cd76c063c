//! Marks are added and never changed: marks of several storages count together, a release ends
//! what it names and nothing else, and what is not understood protects.

use std::fs;
use std::path::Path;

use holdfast::model::{
    Completeness, Digest, Evidence, Mark, MarkRef, Says, SnapshotId, Suspector, Verdict,
};
use holdfast::storage::Storage;

use crate::prune::{CONFIGURATION, Pruned, store};
use crate::support::daemon::until;
use crate::support::plant::{plant, plant_one};
use crate::support::site::{Site, s3_storage};
use crate::support::stores::{Identity, Server, fresh};
use crate::support::{S3, files, repository, s3};

const TWO: &str = "[storages.other]\ntype = \"local\"\npath = \"@/other\"\n";

/// Three snapshots in `local` and `other`, of which retention keeps the two newest.
pub(crate) async fn in_two_storages() -> (Pruned, Box<dyn Storage>) {
    let configuration = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 2 }")
        .replace("[\"local\"]", "[\"local\", \"other\"]")
        + TWO;
    let pruned = Pruned::configured(&configuration, 3).await;
    let other = store(&pruned.site, "other").await;
    plant(&*other, "app", "daily", pruned.ids.iter().map(SnapshotId::time)).await;
    (pruned, other)
}

/// A mark as version 0.1 wrote it: a key of its snapshot's id only.
fn old_mark(id: &SnapshotId, says: Says) -> Mark {
    Mark {
        format: 1,
        instance: "app".parse().unwrap(),
        strategy: "daily".parse().unwrap(),
        id: id.clone(),
        mark_id: None,
        made: "2026-11-01T00:00:00Z".parse().unwrap(),
        says,
    }
}

fn new_mark(id: &SnapshotId, says: Says) -> Mark {
    let of = old_mark(id, says.clone()).snapshot_ref();
    let own = "20261122T050000Z-0a1b2c".parse().unwrap();
    Mark::new(of, own, "2026-11-22T05:00:00Z".parse().unwrap(), says)
}

fn old_hold(id: &SnapshotId, reason: &str) -> Mark {
    old_mark(id, Says::Hold { reason: Some(reason.to_owned()), until: None })
}

pub(crate) async fn put(storage: &dyn Storage, mark: &Mark) {
    storage.replace(&mark.key(), mark.to_bytes().into()).await.unwrap();
}

/// The names of a snapshot's marks in a storage, without what makes them unique.
fn kinds(site: &Site, storage: &str, id: &SnapshotId) -> Vec<String> {
    let folder = site.path(format!("{storage}/app/marks/{id}"));
    let names = files(&folder).into_keys().map(|name| name.into_string().unwrap());
    names.map(|name| name.split_once('-').unwrap().0.to_owned()).collect()
}

/// Prunes, and says whether the oldest snapshot is still in `local`.
fn stays(pruned: &Pruned) -> bool {
    pruned.prune(&["--yes"], 0);
    pruned.path(&pruned.ids[2]).exists()
}

#[tokio::test]
async fn a_release_adds_a_mark_and_removes_none() {
    let (pruned, _other) = in_two_storages().await;
    let id = &pruned.ids[2];
    pruned.site.backup(["hold", id.as_str()]).expect(0);
    let before = files(&pruned.site.path("store/app/marks"));
    pruned.site.backup(["release", id.as_str()]).expect(0);
    let after = files(&pruned.site.path("store/app/marks"));
    assert!(before.iter().all(|(name, body)| after.get(name) == Some(body)));
    for storage in ["store", "other"] {
        assert_eq!(kinds(&pruned.site, storage, id), ["hold", "release"]);
    }
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn a_release_in_one_storage_counts_in_all() {
    let (pruned, _other) = in_two_storages().await;
    let id = pruned.ids[2].as_str();
    pruned.site.backup(["hold", id]).expect(0);
    // The other storage's copy of the mark is not released: it could not be reached.
    pruned.site.backup(["release", id, "--storage", "local"]).expect(0);
    assert_eq!(kinds(&pruned.site, "other", &pruned.ids[2]), ["hold"]);
    let report = pruned.prune(&["--yes"], 0).json();
    for place in report["pruned"].as_array().unwrap() {
        assert_eq!(place["deleted"], serde_json::json!([id]), "{place}");
    }
}

#[tokio::test]
async fn a_hold_made_after_a_release_holds() {
    let (pruned, _other) = in_two_storages().await;
    let id = pruned.ids[2].as_str();
    pruned.site.backup(["hold", id]).expect(0);
    pruned.site.backup(["release", id]).expect(0);
    pruned.site.backup(["hold", id]).expect(0);
    assert!(stays(&pruned));
    pruned.site.backup(["release", id]).expect(0);
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn an_older_version_holds_again_under_the_same_key() {
    let (pruned, _other) = in_two_storages().await;
    let id = &pruned.ids[2];
    put(&*pruned.storage, &old_hold(id, "before the migration")).await;
    pruned.site.backup(["release", id.as_str()]).expect(0);
    pruned.site.backup(["release", id.as_str()]).expect(1);
    put(&*pruned.storage, &old_hold(id, "audit")).await;
    assert!(stays(&pruned), "the release names another mark, whose key was the same");
    pruned.site.backup(["release", id.as_str()]).expect(0);
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn a_hold_that_an_older_version_removed_is_over() {
    let (pruned, _other) = in_two_storages().await;
    let hold = old_hold(&pruned.ids[2], "audit");
    put(&*pruned.storage, &hold).await;
    assert!(stays(&pruned));
    pruned.storage.delete(&hold.key()).await.unwrap();
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn a_hold_that_vanished_still_holds() {
    let (pruned, _other) = in_two_storages().await;
    let id = pruned.ids[2].as_str();
    pruned.site.backup(["hold", id]).expect(0);
    assert!(stays(&pruned));
    for storage in ["store", "other"] {
        fs::remove_dir_all(pruned.site.path(format!("{storage}/app/marks"))).unwrap();
    }
    assert!(stays(&pruned), "nobody released it");
    pruned.site.backup(["release", id]).expect(0);
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn a_release_that_vanished_still_counts() {
    let (pruned, _other) = in_two_storages().await;
    let id = pruned.ids[2].as_str();
    pruned.site.backup(["hold", id]).expect(0);
    pruned.site.backup(["release", id]).expect(0);
    pruned.prune(&["--plan"], 0);
    for storage in ["store", "other"] {
        fs::remove_dir_all(pruned.site.path(format!("{storage}/app/marks"))).unwrap();
    }
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn a_new_hold_replaces_a_longer_one() {
    let (pruned, _other) = in_two_storages().await;
    let id = &pruned.ids[2];
    let until = |time: &str| pruned.site.backup(["hold", id.as_str(), "--until", time]);
    until("2999-01-01").expect(0);
    until("2998-01-01").expect(0);
    assert_eq!(kinds(&pruned.site, "store", id), ["hold", "hold", "release"]);
    let listed = pruned.site.backup(["list", "--json"]).expect(0).json();
    let held: Vec<&str> = listed["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["held"]["until"].as_str())
        .collect();
    assert_eq!(held, ["2998-01-01T23:59:59Z"]);
}

#[tokio::test]
async fn hold_and_suspicion_end_separately() {
    for (only, code) in [("hold", 1), ("suspicion", 0)] {
        let (pruned, _other) = in_two_storages().await;
        let id = &pruned.ids[2];
        put(
            &*pruned.storage,
            &old_mark(id, Says::Suspect { reason: "rows".to_owned(), by: Suspector::Drill }),
        )
        .await;
        pruned.site.backup(["hold", id.as_str()]).expect(0);
        pruned.prune(&["--plan"], 1);
        pruned.site.backup(["release", id.as_str(), "--only", only]).expect(0);
        // While one is suspect nothing is deleted at all.
        pruned.prune(&["--yes"], code);
        assert!(pruned.path(id).exists());
        pruned.site.backup(["release", id.as_str()]).expect(0);
        assert!(!stays(&pruned));
    }
}

#[tokio::test]
async fn a_suspicion_is_of_one_strategy() {
    let second = "[strategies.weekly]\nsources = [\"dump\"]\nstorages = [\"local\"]\n\
        retention = { keep_last = 2 }\n";
    let configuration = CONFIGURATION.replace("RETENTION", "{ keep_last = 2 }") + second;
    let pruned = Pruned::configured(&configuration, 3).await;
    let id = &pruned.ids[2];
    plant_one(&*pruned.storage, "app", "weekly", id, Completeness::Whole).await;
    let suspect = old_mark(id, Says::Suspect { reason: "rows".to_owned(), by: Suspector::Drill });
    put(&*pruned.storage, &Mark { strategy: "weekly".parse().unwrap(), ..suspect }).await;
    pruned.prune(&["--plan", "--strategy", "weekly"], 1);
    pruned.site.backup(["release", id.as_str(), "--strategy", "daily"]).expect(1);
    pruned.prune(&["--plan", "--strategy", "weekly"], 1);
    pruned.site.backup(["release", id.as_str(), "--strategy", "weekly"]).expect(0);
    pruned.prune(&["--plan", "--strategy", "weekly"], 0);
}

#[tokio::test]
async fn a_drill_that_died_before_its_suspicion_leaves_it_suspect() {
    let (pruned, _other) = in_two_storages().await;
    let id = &pruned.ids[2];
    let evidence = Evidence {
        drill: "20261122T050000Z-0a1b2c".parse().unwrap(),
        storage: "local".parse().unwrap(),
        recovery_seconds: 1,
        passed: 1,
        not_passed: 1,
        suspect: true,
        version: "0.1.0".to_owned(),
    };
    let says = Says::Drill { verdict: Verdict::Failed, evidence: Some(evidence) };
    put(&*pruned.storage, &new_mark(id, says)).await;
    assert_eq!(
        pruned.prune(&["--plan"], 1).json()["plan"]["places"][0]["refusals"][0]["kind"],
        "suspect"
    );
    pruned.site.backup(["release", id.as_str()]).expect(0);
    pruned.site.backup(["release", id.as_str()]).expect(1);
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn a_release_is_brought_to_storages_that_missed_it() {
    let (pruned, _other) = in_two_storages().await;
    let id = &pruned.ids[2];
    pruned.site.backup(["hold", id.as_str()]).expect(0);
    pruned.site.backup(["release", id.as_str(), "--storage", "local"]).expect(0);
    pruned.site.backup(["release", id.as_str()]).expect(0);
    let release = |storage: &str| {
        let marks = files(&pruned.site.path(format!("{storage}/app/marks/{id}")));
        marks.into_iter().find(|(name, _)| name.to_str().unwrap().starts_with("release-")).unwrap()
    };
    assert_eq!(release("store"), release("other"));
    pruned.site.backup(["release", id.as_str()]).expect(1);
}

#[tokio::test]
async fn a_hold_outlives_a_disk_that_is_filled_again() {
    for old in [true, false] {
        let (pruned, _other) = in_two_storages().await;
        let id = &pruned.ids[2];
        if old {
            put(&*pruned.storage, &old_hold(id, "audit")).await;
        } else {
            pruned.site.backup(["hold", id.as_str(), "--storage", "local"]).expect(0);
        }
        pruned.prune(&["--plan"], 0);
        fs::remove_dir_all(pruned.site.path("store")).unwrap();
        fs::create_dir(pruned.site.path("store")).unwrap();
        pruned.site.backup(["copy", "--from", "other", "--to", "local"]).expect(0);
        pruned.prune(&["--yes", "--force"], 0);
        assert!(pruned.path(id).exists(), "of format 1: {old}");
    }
}

#[tokio::test]
async fn a_hold_of_another_storage_explains_nothing_that_is_gone() {
    let configuration = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 9 }")
        .replace("[\"local\"]", "[\"local\", \"other\"]")
        + "[storages.other]\ntype = \"local\"\npath = \"@/other\"\nretention = { keep_last = 2 }\n";
    let pruned = Pruned::configured(&configuration, 3).await;
    let other = store(&pruned.site, "other").await;
    plant(&*other, "app", "daily", pruned.ids.iter().map(SnapshotId::time)).await;
    // Another machine, which has seen all of them, while this one prunes `other`.
    pruned.prune(&["--plan"], 0);
    let copy = "cp -r state state-of-another";
    crate::support::sh(pruned.site.dir.path(), copy, &[]);
    pruned.prune(&["--yes"], 0);
    crate::support::sh(pruned.site.dir.path(), "rm -r state; mv state-of-another state", &[]);
    pruned.site.backup(["hold", pruned.ids[2].as_str()]).expect(0);
    let plan = pruned.prune(&["--plan"], 0).json();
    for place in plan["plan"]["places"].as_array().unwrap() {
        assert_eq!(place["refusals"], serde_json::json!([]), "{place}");
    }
}

#[tokio::test]
async fn a_hold_waits_for_a_deletion_that_has_begun() {
    for deleted in [false, true] {
        let (pruned, _other) = in_two_storages().await;
        let id = &pruned.ids[2];
        let folder = pruned.path(id);
        let beat = "{\"format\": 1, \"node\": \"n\", \"host\": \"h\", \"pid\": 1, \
            \"started\": \"2026-11-22T05:00:00Z\", \"beat\": \"2026-11-22T05:00:00Z\", \
            \"deleting\": true}";
        fs::write(folder.join("run.json"), beat).unwrap();
        let args = ["hold", id.as_str(), "--storage", "local"];
        let holding = pruned.site.backup(args).spawn();
        let marks = pruned.site.path(format!("store/app/marks/{id}"));
        until("the mark stands", || marks.exists());
        if deleted {
            fs::remove_file(folder.join("manifest.json")).unwrap();
        }
        fs::remove_file(folder.join("run.json")).unwrap();
        let code = holding.wait().code();
        assert_eq!(code, Some(i32::from(deleted)), "deleted: {deleted}");
    }
}

#[tokio::test]
async fn what_is_said_of_a_lost_snapshot_can_be_released() {
    let (pruned, other) = in_two_storages().await;
    let lost: SnapshotId = "20200101T000000Z-00000a".parse().unwrap();
    put(
        &*other,
        &old_mark(&lost, Says::Suspect { reason: "rows".to_owned(), by: Suspector::Drill }),
    )
    .await;
    pruned.prune(&["--plan"], 1);
    pruned.site.backup(["release", "20200101T000000Z-00000b"]).expect(1);
    pruned.site.backup(["release", lost.as_str()]).expect(0);
    assert!(!stays(&pruned));
}

#[tokio::test]
async fn a_damaged_mark_is_released_and_a_newer_one_is_not() {
    for newer in [false, true] {
        let (pruned, _other) = in_two_storages().await;
        let id = &pruned.ids[2];
        pruned.site.backup(["hold", id.as_str()]).expect(0);
        let folder = pruned.site.path(format!("store/app/marks/{id}"));
        let name = files(&folder).into_keys().next().unwrap();
        let original = fs::read_to_string(folder.join(&name)).unwrap();
        let changed = if newer {
            later(&original, |document| document["format"] = 9.into())
        } else {
            original.replace("hold", "hood")
        };
        fs::write(folder.join(&name), changed).unwrap();
        pruned.prune(&["--plan"], 1);
        if !newer {
            // The whole one in the other storage holds while the damaged one is released.
            pruned.site.backup(["release", id.as_str(), "--only", "damaged"]).expect(0);
            assert!(stays(&pruned));
        }
        pruned.site.backup(["release", id.as_str()]).expect(0);
        let code = i32::from(newer);
        let plan = pruned.prune(&["--yes"], code).json();
        assert_eq!(pruned.path(id).exists(), newer, "{plan}");
    }
}

/// A mark with another document, under a digest that matches it.
fn later(mark: &str, edit: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut sealed: serde_json::Value = serde_json::from_str(mark).unwrap();
    edit(&mut sealed["mark"]);
    let body = format!("{}\n", sealed["mark"]);
    format!("{{\"digest\": \"{}\", \"mark\":\n{body}}}\n", Digest::of(body.as_bytes()))
}

#[tokio::test]
async fn an_unknown_kind_stops_deleting_or_holds_its_snapshot() {
    for holds in [false, true] {
        let (pruned, _other) = in_two_storages().await;
        let id = &pruned.ids[2];
        pruned.site.backup(["hold", id.as_str(), "--storage", "local"]).expect(0);
        let folder = pruned.site.path(format!("store/app/marks/{id}"));
        let name = files(&folder).into_keys().next().unwrap().into_string().unwrap();
        let original = fs::read_to_string(folder.join(&name)).unwrap();
        fs::remove_file(folder.join(&name)).unwrap();
        let frozen = later(&original, |document| {
            document["kind"] = "frozen".into();
            if holds {
                document["if_unknown"] = "hold".into();
            }
        });
        fs::write(folder.join(name.replace("hold-", "frozen-")), frozen).unwrap();
        let plan = pruned.prune(&["--plan"], i32::from(!holds)).json();
        let place = &plan["plan"]["places"][0];
        let oldest = place["snapshots"].as_array().unwrap().first().unwrap();
        assert_eq!(oldest["keep"], holds, "{place}");
        let refusals = place["refusals"].as_array().unwrap();
        assert_eq!(refusals.iter().any(|one| one["kind"] == "mark"), !holds, "{place}");
        // Only a version that knows what it says can release it.
        pruned.site.backup(["release", id.as_str()]).expect(1);
        pruned.prune(&["--yes"], i32::from(!holds));
        assert!(pruned.path(id).exists());
    }
}

#[tokio::test]
async fn a_damaged_copy_is_not_the_last_good_one() {
    let pruned = Pruned::with("{ keep_last = 1 }", 3).await;
    // Retention keeps the newest; two are damaged, so the oldest is the last good one.
    for id in &pruned.ids[..2] {
        let says =
            Says::Damaged { storage: "local".parse().unwrap(), reason: "dump.out".to_owned() };
        put(&*pruned.storage, &new_mark(id, says)).await;
    }
    pruned.prune(&["--yes"], 0);
    let left: Vec<bool> = pruned.ids.iter().map(|id| pruned.path(id).exists()).collect();
    assert_eq!(left, [true, false, true]);
}

#[tokio::test]
async fn a_release_cannot_end_marks_of_another_snapshot() {
    let (pruned, _other) = in_two_storages().await;
    let (id, another) = (&pruned.ids[2], &pruned.ids[0]);
    let hold = old_hold(id, "audit");
    put(&*pruned.storage, &hold).await;
    let ends =
        vec![MarkRef { key: format!("hold-{id}.json"), digest: Digest::of(&hold.to_bytes()) }];
    put(
        &*pruned.storage,
        &new_mark(another, Says::Release { ends, reason: None, forgotten: false }),
    )
    .await;
    pruned.prune(&["--yes"], 1);
    assert!(pruned.path(id).exists());
}

#[tokio::test]
async fn a_copy_brings_the_marks_along() {
    let configuration = CONFIGURATION.replace("RETENTION", "{ keep_last = 2 }") + TWO;
    let pruned = Pruned::configured(&configuration, 3).await;
    let (held, released) = (&pruned.ids[2], &pruned.ids[1]);
    pruned.site.backup(["hold", held.as_str()]).expect(0);
    put(&*pruned.storage, &old_hold(released, "audit")).await;
    pruned.site.backup(["release", released.as_str()]).expect(0);
    let copy = || pruned.site.backup(["copy", "--from", "local", "--to", "other"]).expect(0);
    copy();
    let marks = |storage: &str| files(&pruned.site.path(format!("{storage}/app/marks")));
    let tree = |storage: &str| {
        let folder = pruned.site.path(format!("{storage}/app/marks"));
        [held, released].map(|id| files(&folder.join(id.as_str())))
    };
    assert_eq!((marks("store"), tree("store")), (marks("other"), tree("other")));
    // A mark that came later comes with the next copy, of snapshots that are there already.
    pruned.site.backup(["release", held.as_str(), "--storage", "local"]).expect(0);
    copy();
    assert_eq!(kinds(&pruned.site, "other", held), ["hold", "release"]);
    // A storage by itself knows all that was said.
    let alone = pruned.site.path("other");
    let list = ["list", "--storage", alone.to_str().unwrap(), "--json"];
    let listed = crate::support::backup(list).expect(0).json();
    for snapshot in listed["snapshots"].as_array().unwrap() {
        assert!(snapshot["held"].is_null(), "{snapshot}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_cannot_delete_can_release() {
    let bucket = fresh("marks");
    Server::SeaweedFs.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let (access_key, secret_key) = Identity::NoDelete.keys();
    let server = S3 { access_key, secret_key, ..s3("SEAWEEDFS") };
    let configured = |server: &S3| {
        format!(
            "[sources.dump]\ntype = \"command\"\ncommand = [\"echo\", \"words\"]\n\
             [strategies.daily]\nsources = [\"dump\"]\nstorages = [\"offsite\"]\n\
             retention = {{ keep_last = 1 }}\n{}",
            s3_storage("offsite", server, &bucket)
        )
    };
    let site = Site::new(&configured(&server).replace("keep_last = 1", "keep_last = 9"));
    site.run(0);
    let id = site.ids()[0].clone();
    site.run(0);
    site.backup(["hold", &id]).expect(0);
    let pruner = Site::new(&configured(&s3("SEAWEEDFS")));
    pruner.backup(["prune", "--yes"]).expect(0);
    assert_eq!(site.ids().len(), 2);
    site.backup(["release", &id]).expect(0);
    site.backup(["release", &id]).expect(1);
    pruner.backup(["prune", "--yes"]).expect(0);
    assert_eq!(site.ids().len(), 1);
}

#[tokio::test]
async fn the_marks_of_every_version_are_read() {
    let site = Site::new(&CONFIGURATION.replace("RETENTION", "{ keep_last = 1 }"));
    let fixture = repository().join("tests/fixtures/marks");
    copy_tree(&fixture, &site.path("store"));
    let storage = store(&site, "store").await;
    let id = |number: u8| format!("2026110{number}T010000Z-00000{number}");
    for number in 1..=8 {
        let id = id(number).parse().unwrap();
        plant_one(&*storage, "app", "daily", &id, Completeness::Whole).await;
    }
    let listed = site.backup(["list", "--json"]).expect(4).json();
    assert_eq!(listed["unread_marks"], serde_json::json!([]));
    let damaged = |row: &serde_json::Value| !row["damaged"].as_array().unwrap().is_empty();
    assert!(damaged(&listed["snapshots"][7]) && !damaged(&listed["snapshots"][6]));
    let said: Vec<(String, bool, Option<&str>)> = listed["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let id = one["id"].as_str().unwrap().to_owned();
            (id, !one["held"].is_null(), one["drilled"]["verdict"].as_str())
        })
        .collect();
    let expected = [
        (id(1), true, None),            // a hold of format 1
        (id(2), false, Some("failed")), // a drill of format 1 that found it suspect, released
        (id(3), true, Some("passed")),  // a hold and a drill
        (id(4), false, None),           // a hold of format 1 and a release
        (id(5), false, None),           // a hold and a release
        (id(6), true, None),            // a hold, a release, and another hold
        (id(7), true, None),            // of a kind that is not known and counts as a hold
        (id(8), false, None),           // damaged
    ];
    assert_eq!(said, expected);
    // Nothing is suspect any more, so retention deletes what is not held.
    site.backup(["prune", "--yes", "--force"]).expect(0);
    let name =
        |folder: std::path::PathBuf| folder.file_name().unwrap().to_str().unwrap().to_owned();
    let left: Vec<String> = site.folders().into_iter().map(name).collect();
    assert_eq!(left, [1, 3, 6, 7, 8].map(id));
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
