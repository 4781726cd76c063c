//! Retention that cannot delete the wrong thing: what goes goes for a reason, and nothing goes
//! while anything is in doubt.

use chrono::{TimeDelta, Utc};
use holdfast::model::{Cancel, Completeness, Mark, Says, SnapshotId, Verdict};
use holdfast::storage::local::LocalConfig;
use holdfast::storage::{Storage, StorageConfig};
use serde_json::{Value, json};

use crate::format::edit_manifest;
use crate::marks::in_two_storages;
use crate::support::plant::{days_ago, plant, plant_one};
use crate::support::site::Site;
use crate::support::{Ran, files, sh};

/// One source that is a script, to a local storage, with the retention put in for `RETENTION`.
pub(crate) const CONFIGURATION: &str = r#"
[sources.dump]
type = "command"
command = ["sh", "-c", "echo data"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["dump"]
storages = ["local"]
retention = RETENTION
"#;

pub(crate) struct Pruned {
    pub(crate) site: Site,
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) ids: Vec<SnapshotId>,
}

impl Pruned {
    /// A site with snapshots of the last days: today's is the newest, and `ids` begins with it.
    pub(crate) async fn with(retention: &str, days: i64) -> Self {
        Self::configured(&CONFIGURATION.replace("RETENTION", retention), days).await
    }

    pub(crate) async fn configured(configuration: &str, days: i64) -> Self {
        let site = Site::new(configuration);
        let storage = store(&site, "store").await;
        let ids = plant(&*storage, "app", "daily", (0..days).map(days_ago)).await;
        Self { site, storage, ids }
    }

    pub(crate) fn prune(&self, args: &[&str], code: i32) -> Ran {
        self.site.backup(["prune", "--json"]).args(args).expect(code)
    }

    /// Nothing is deleted, and the reason is said.
    fn refuses(&self, says: &str) {
        let before = files(&self.site.path("store"));
        for args in [&["--yes"][..], &["--yes", "--force"], &["--plan"]] {
            let said = self.prune(args, 1);
            assert!(said.out().contains(says), "{says}: {said}");
        }
        let ran = self.site.backup(["--strategy", "daily", "--json"]).run();
        assert_ne!(ran.code(), Some(0), "a run reports it: {ran}");
        assert!(ran.out().contains(says), "{says}: {ran}");
        let after = files(&self.site.path("store"));
        assert!(before.keys().all(|file| after.contains_key(file)), "nothing was deleted");
    }

    pub(crate) fn path(&self, id: &SnapshotId) -> std::path::PathBuf {
        self.site.path(format!("store/app/daily/{id}"))
    }
}

pub(crate) async fn store(site: &Site, name: &str) -> Box<dyn Storage> {
    StorageConfig::Local(LocalConfig::from_path(site.path(name)))
        .open(&Cancel::new())
        .await
        .unwrap()
}

pub(crate) fn texts(ids: &[SnapshotId]) -> Vec<String> {
    let mut texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
    texts.sort();
    texts
}

/// The reasons of each snapshot in the first place of a plan, by id.
fn reasons(plan: &Value) -> Vec<(String, bool, String)> {
    let snapshots = plan["plan"]["places"][0]["snapshots"].as_array().unwrap();
    snapshots
        .iter()
        .map(|one| {
            let kinds: Vec<&str> = one["reasons"]
                .as_array()
                .unwrap()
                .iter()
                .map(|reason| reason["kind"].as_str().unwrap())
                .collect();
            (
                one["id"].as_str().unwrap().to_owned(),
                one["keep"].as_bool().unwrap(),
                kinds.join(" "),
            )
        })
        .collect()
}

#[tokio::test]
async fn after_a_run_what_no_rule_keeps_goes() {
    let pruned = Pruned::with("{ keep_daily = 3 }", 4).await;
    let report = pruned.site.run(0).json();
    let new: SnapshotId = report["id"].as_str().unwrap().parse().unwrap();
    // Of today the newest counts.
    assert_eq!(pruned.site.ids(), texts(&[new, pruned.ids[1].clone(), pruned.ids[2].clone()]));
    let told = &report["storages"][0]["pruned"];
    assert_eq!(told["deleted"], serde_json::json!([pruned.ids[0], pruned.ids[3]]));
    assert_eq!(told["kept"], 3);
    assert_eq!(told["freed_bytes"], 2_000);
    assert_eq!(pruned.site.folders().len(), 3, "nothing is left of them");
    pruned.site.backup(["verify"]).expect(0);
}

#[tokio::test]
async fn a_plan_says_why_and_is_carried_out_exactly_or_not_at_all() {
    let pruned = Pruned::with("{ keep_last = 3 }", 5).await;
    let before = files(&pruned.site.path("store"));
    let plan = pruned.prune(&["--plan"], 0).json();
    assert_eq!(files(&pruned.site.path("store")), before, "a plan changes nothing");
    assert_eq!((plan["delete"].as_u64(), plan["freed_bytes"].as_u64()), (Some(2), Some(2_000)));
    let mut why = reasons(&plan);
    assert_eq!(why.iter().map(|(id, ..)| id.clone()).collect::<Vec<_>>(), texts(&pruned.ids));
    why.reverse();
    let kept: Vec<(bool, &str)> = why.iter().map(|(_, keep, why)| (*keep, why.as_str())).collect();
    assert_eq!(
        kept,
        [
            (true, "newest rule"),
            (true, "rule"),
            (true, "rule"),
            (false, "unmatched"),
            (false, "unmatched")
        ]
    );
    let digest = plan["plan"]["digest"].as_str().unwrap();
    // The listing changes: the plan is another.
    let late = plant(&*pruned.storage, "app", "daily", [days_ago(0) - TimeDelta::hours(1)]).await;
    let refused = pruned.prune(&["--apply", digest], 2);
    assert!(refused.err().contains("Nothing was deleted"), "{refused}");
    assert_eq!(pruned.site.ids().len(), 6);
    let shown = pruned.site.backup(["prune", "--plan"]).expect(0);
    let short = shown.out().split("--apply ").nth(1).unwrap().split('`').next().unwrap().to_owned();
    assert_eq!(short.len(), 12);
    pruned.prune(&["--apply", &short], 0);
    assert_eq!(
        pruned.site.ids(),
        texts(&[pruned.ids[0].clone(), late[0].clone(), pruned.ids[1].clone()])
    );
    // Once carried out there is nothing left of it.
    assert_eq!(pruned.prune(&["--plan"], 0).json()["delete"], 0);
    for bad in ["", "1234567", "not-a-digest"] {
        pruned.prune(&["--apply", bad], 2);
    }
}

#[tokio::test]
async fn a_plan_that_one_storage_refuses_deletes_nothing() {
    let (pruned, other) = in_two_storages().await;
    let manifest = format!("app/daily/{}/manifest.json", pruned.ids[0]);
    let (there, away) = (pruned.site.path("other"), pruned.site.path("away"));
    for damage in ["unreachable", "damaged"] {
        if damage == "damaged" {
            std::fs::remove_file(&there).unwrap();
            std::fs::rename(&away, &there).unwrap();
            other.replace(&manifest, "{}".into()).await.unwrap();
        } else {
            std::fs::rename(&there, &away).unwrap();
            std::fs::write(&there, "a file").unwrap();
        }
        let plan = pruned.prune(&["--plan"], 1).json();
        let digest = plan["plan"]["digest"].as_str().unwrap();
        let applied = pruned.prune(&["--apply", digest], 1).json();
        for place in applied["pruned"].as_array().unwrap() {
            assert!(place["problem"].is_string() && place["deleted"] == json!([]), "{place}");
        }
        assert_eq!(pruned.site.folders().len(), 3, "{damage}");
    }
    // One of them alone, planned anew.
    let only = ["--storage", "local"];
    let plan = pruned.prune(&[&["--plan"], &only[..]].concat(), 0).json();
    let digest = plan["plan"]["digest"].as_str().unwrap();
    pruned.prune(&[&["--apply", digest], &only[..]].concat(), 0);
    assert_eq!(pruned.site.folders().len(), 2);
}

#[tokio::test]
async fn a_plan_is_a_page_to_read() {
    let pruned = Pruned::with("{ keep_last = 2 }", 3).await;
    let shown = pruned.site.backup(["prune", "--plan"]).expect(0);
    for words in
        ["keep", "delete", "`keep_last = 2`", "no rule keeps it", "2 kept, 1 deleted", "--apply"]
    {
        assert!(shown.out().contains(words), "{words}: {shown}");
    }
}

#[tokio::test]
async fn more_than_half_is_not_deleted_at_once_unless_told_so() {
    let pruned = Pruned::with("{ keep_last = 2 }", 6).await;
    let refused = pruned.prune(&["--yes"], 1);
    assert!(
        refused.out().contains("4 of 6 snapshots would be deleted, and `max_delete_percent` is 50"),
        "{refused}"
    );
    assert_eq!(pruned.site.ids().len(), 6);
    // After a run it is a problem that the run reports; the snapshot is committed.
    let report = pruned.site.run(3).json();
    assert!(
        report["storages"][0]["pruned"]["problem"].as_str().unwrap().contains("max_delete_percent")
    );
    assert_eq!(pruned.site.ids().len(), 7);
    pruned.prune(&["--yes", "--force"], 0);
    assert_eq!(pruned.site.ids().len(), 2);
    // One is never too many.
    let pruned = Pruned::with("{ keep_last = 1 }", 1).await;
    pruned.site.run(0);
    assert_eq!(pruned.site.ids().len(), 1);
}

#[tokio::test]
async fn the_brake_is_set_by_strategy_and_by_storage() {
    let configuration = CONFIGURATION.replace("RETENTION", "{ keep_last = 2 }");
    let strategy = configuration.clone() + "max_delete_percent = 100\n";
    let pruned = Pruned::configured(&strategy, 6).await;
    pruned.prune(&["--yes"], 0);
    let storage = strategy.replace(
        "path = \"@/store\"",
        "path = \"@/store\"\nmax_delete_percent = 10\nretention = { keep_last = 4 }",
    );
    let pruned = Pruned::configured(&storage, 7).await;
    let refused = pruned.prune(&["--yes"], 1);
    assert!(refused.out().contains("3 of 7"), "its own retention: {refused}");
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_stops_deleting_until_it_is_forgotten() {
    let pruned = Pruned::with("{ keep_last = 2 }", 3).await;
    let manifest = pruned.path(&pruned.ids[1]).join("manifest.json");
    sh(
        &pruned.site.path("store"),
        r#"sed -i 's/dump.out/dump.oof/' "$1""#,
        &[manifest.as_os_str()],
    );
    pruned.refuses("cannot be read");
    let id = pruned.ids[1].to_string();
    pruned.site.backup(["forget", &id, "--yes"]).expect(0);
    assert!(!pruned.path(&pruned.ids[1]).exists());
    pruned.prune(&["--yes"], 0);
    assert_eq!(pruned.site.ids().len(), 2);
}

#[tokio::test]
async fn a_snapshot_of_a_newer_version_stops_deleting() {
    let pruned = Pruned::with("{ keep_last = 2 }", 4).await;
    edit_manifest(&pruned.path(&pruned.ids[1]), |manifest, _| {
        manifest["requires"] = serde_json::json!(["later"]);
    });
    pruned.refuses("requires later");
    let plan = pruned.prune(&["--plan"], 1).json();
    assert_eq!(plan["plan"]["places"][0]["refusals"][0]["newer"], true, "{plan}");
}

#[tokio::test]
async fn an_object_that_is_missing_or_cut_stops_deleting() {
    for damage in [r#"rm "$1/dump.out""#, r#"truncate -s 10 "$1/dump.out""#] {
        let pruned = Pruned::with("{ keep_last = 2 }", 3).await;
        let folder = pruned.path(&pruned.ids[0]);
        sh(&folder, damage, &[folder.as_os_str()]);
        pruned.refuses("is damaged");
    }
}

#[tokio::test]
async fn a_mark_that_cannot_be_read_stops_deleting() {
    let pruned = Pruned::with("{ keep_last = 2 }", 3).await;
    pruned.site.backup(["hold", pruned.ids[0].as_str()]).expect(0);
    let marks = pruned.site.path(format!("store/app/marks/{}", pruned.ids[0]));
    let original = files(&marks);
    for damage in [
        "truncate -s 20 hold-*",
        "sed -i 's/hold/told/' hold-*",
        "mv hold-* hold-20200101T000000Z-000000.json",
    ] {
        sh(&marks, damage, &[]);
        pruned.refuses("marks");
        sh(&marks, "rm hold-*", &[]);
        for (name, body) in &original {
            std::fs::write(marks.join(name), body).unwrap();
        }
    }
    // What a later version may say is not understood, so it is taken to protect.
    std::fs::write(marks.parent().unwrap().join("frozen-for-ever.json"), "{}").unwrap();
    pruned.refuses("frozen-for-ever.json");
}

#[tokio::test]
async fn marks_of_a_storage_that_cannot_be_reached_may_hold_anything() {
    let configuration = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 2 }")
        .replace("[\"local\"]", "[\"local\", \"far\"]")
        + "[storages.far]\ntype = \"s3\"\nbucket = \"none\"\nendpoint = \"http://127.0.0.1:9\"\n\
            region = \"here\"\n\
           access_key_id = \"a\"\nsecret_access_key = \"b\"\nattempts = 1\n";
    let pruned = Pruned::configured(&configuration, 3).await;
    pruned.refuses("it is not known what is held");
}

#[tokio::test]
async fn a_clock_before_the_newest_snapshot_deletes_nothing() {
    let pruned = Pruned::with("{ keep_last = 2 }", 3).await;
    let future = plant(&*pruned.storage, "app", "daily", [Utc::now() + TimeDelta::days(400)]).await;
    pruned.refuses("The clock of this machine says");
    pruned.site.backup(["forget", future[0].as_str(), "--yes"]).expect(0);
    pruned.prune(&["--yes", "--force"], 0);
}

#[tokio::test]
async fn snapshots_that_vanish_stop_deleting_until_somebody_says_that_it_is_well() {
    let pruned = Pruned::with("{ keep_last = 5 }", 5).await;
    assert_eq!(pruned.site.ids().len(), 5);
    std::fs::remove_dir_all(pruned.path(&pruned.ids[1])).unwrap();
    pruned.site.backup(["list"]).expect(0);
    plant(&*pruned.storage, "app", "daily", [days_ago(30)]).await;
    let refused = pruned.prune(&["--yes"], 1);
    assert!(refused.out().contains(pruned.ids[1].as_str()), "{refused}");
    assert!(pruned.site.run(3).out().contains("are gone since they were last listed"));
    assert_eq!(pruned.site.ids().len(), 6);
    pruned.prune(&["--yes", "--force"], 0);
    assert_eq!(pruned.site.ids().len(), 5);
    // That was that; what the program deletes itself is explained.
    pruned.site.run(0);
    pruned.prune(&["--yes"], 0);
    assert_eq!(pruned.site.ids().len(), 5);
}

#[tokio::test]
async fn what_another_host_pruned_by_the_same_rules_is_explained() {
    let pruned = Pruned::with("{ keep_last = 3 }", 4).await;
    pruned.site.backup(["list"]).expect(0);
    let other = pruned.site.path("other.toml");
    let text = std::fs::read_to_string(pruned.site.config())
        .unwrap()
        .replace("/state\"", "/other-state\"");
    std::fs::write(&other, text).unwrap();
    crate::support::backup(["prune", "--yes", "--config"]).arg(&other).expect(0);
    assert_eq!(pruned.site.ids().len(), 3);
    pruned.site.run(0);
    assert_eq!(pruned.site.ids().len(), 3);
}

#[tokio::test]
async fn what_comes_back_was_never_gone() {
    let pruned = Pruned::with("{ keep_last = 3 }", 4).await;
    pruned.site.backup(["list"]).expect(0);
    let (here, away) = (pruned.path(&pruned.ids[3]), pruned.site.path("away"));
    std::fs::rename(&here, &away).unwrap();
    assert_eq!(pruned.site.ids().len(), 3);
    std::fs::rename(&away, &here).unwrap();
    pruned.prune(&["--yes"], 0);
    assert_eq!(pruned.site.ids().len(), 3);
}

#[tokio::test]
async fn a_held_snapshot_stays_until_it_is_released_or_the_time_is_over() {
    let pruned = Pruned::with("{ keep_last = 2 }", 4).await;
    let (held, timed) = (pruned.ids[3].as_str(), pruned.ids[2].as_str());
    pruned.site.backup(["hold", held, "--reason", "before the migration"]).expect(0);
    let soon = (Utc::now() + TimeDelta::days(2)).to_rfc3339();
    pruned.site.backup(["hold", timed, "--until", &soon]).expect(0);
    pruned.site.backup(["hold", timed, "--until", "2020-01-01"]).expect(2);
    let plan = pruned.prune(&["--plan"], 0);
    assert!(plan.out().contains("before the migration"), "{plan}");
    pruned.site.run(0);
    // The new one and the newest of the planted ones by the rule; the two that are held.
    assert_eq!(pruned.site.ids().len(), 4);
    for forgotten in [held, timed] {
        let refused = pruned.site.backup(["forget", forgotten, "--yes", "--force"]).expect(2);
        assert!(
            refused.err().contains("is held") && refused.err().contains("backup release"),
            "{refused}"
        );
    }
    pruned.site.backup(["release", held]).expect(0);
    assert!(
        pruned.site.backup(["release", held]).expect(1).err().contains("neither held nor suspect")
    );
    pruned.prune(&["--yes"], 0);
    assert_eq!(pruned.site.ids().len(), 3);
    assert!(!pruned.path(&pruned.ids[3]).exists() && pruned.path(&pruned.ids[2]).exists());
    // A hold whose time is over holds nothing.
    let past = Mark {
        format: 1,
        mark_id: None,
        instance: "app".parse().unwrap(),
        strategy: "daily".parse().unwrap(),
        id: pruned.ids[2].clone(),
        made: days_ago(9),
        says: Says::Hold { reason: None, until: Some(days_ago(1)) },
    };
    pruned.site.backup(["release", timed]).expect(0);
    pruned.storage.replace(&past.key(), past.to_bytes().into()).await.unwrap();
    pruned.prune(&["--yes"], 0);
    assert_eq!(pruned.site.ids().len(), 2);
}

#[tokio::test]
async fn what_is_held_in_one_storage_is_held_in_all() {
    let configuration = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 2 }")
        .replace("[\"local\"]", "[\"local\", \"other\"]")
        + "[storages.other]\ntype = \"local\"\npath = \"@/other\"\n";
    let pruned = Pruned::configured(&configuration, 3).await;
    let other = store(&pruned.site, "other").await;
    plant(&*other, "app", "daily", pruned.ids.iter().map(SnapshotId::time)).await;
    let id = pruned.ids[2].as_str();
    assert!(pruned.site.backup(["hold", id]).expect(0).out().contains("local, other"));
    std::fs::remove_dir_all(pruned.site.path(format!("store/app/marks/{id}"))).unwrap();
    pruned.prune(&["--yes"], 0);
    assert!(pruned.path(&pruned.ids[2]).exists(), "the other storage's mark holds it here too");
    pruned.site.backup(["release", id]).expect(0);
    pruned.prune(&["--yes"], 0);
    assert!(!pruned.path(&pruned.ids[2]).exists());
}

#[tokio::test]
async fn the_newest_that_passed_a_drill_stays() {
    let pruned = Pruned::with("{ keep_last = 2 }", 5).await;
    for (position, verdict) in [(4, Verdict::Passed), (3, Verdict::Passed), (2, Verdict::Failed)] {
        let mark = Mark {
            format: 1,
            mark_id: None,
            instance: "app".parse().unwrap(),
            strategy: "daily".parse().unwrap(),
            id: pruned.ids[position].clone(),
            made: days_ago(0),
            says: Says::Drill { verdict, evidence: None },
        };
        pruned.storage.replace(&mark.key(), mark.to_bytes().into()).await.unwrap();
    }
    pruned.prune(&["--yes"], 0);
    assert_eq!(
        pruned.site.ids(),
        texts(&[pruned.ids[0].clone(), pruned.ids[1].clone(), pruned.ids[3].clone()])
    );
    let id = pruned.ids[3].as_str();
    assert!(pruned.site.backup(["forget", id, "--yes"]).expect(2).err().contains("passed a drill"));
    pruned.site.backup(["forget", id, "--yes", "--force"]).expect(0);
}

#[tokio::test]
async fn the_last_good_one_is_never_deleted() {
    let configuration =
        CONFIGURATION.replace("RETENTION", "{ keep_last = 1 }") + "max_delete_percent = 100\n";
    let mut pruned = Pruned::configured(&configuration, 0).await;
    pruned.ids = plant(&*pruned.storage, "app", "daily", [days_ago(1), days_ago(2)]).await;
    let partial = SnapshotId::new(pruned.ids[0].time(), [9, 9, 9]);
    plant_one(&*pruned.storage, "app", "daily", &partial, Completeness::Partial).await;
    pruned.prune(&["--yes"], 0);
    assert_eq!(
        pruned.site.ids(),
        texts(&[pruned.ids[0].clone(), partial.clone()]),
        "a partial one counts for nothing"
    );
    let refused = pruned
        .site
        .backup(["forget", pruned.ids[0].as_str(), partial.as_str(), "--yes", "--force"])
        .expect(2);
    assert!(refused.err().contains("the last good one"), "{refused}");
    assert_eq!(pruned.site.ids().len(), 2, "none of those that were named");
    let run: SnapshotId = pruned.site.run(0).json()["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(pruned.site.ids(), [run.to_string()], "both are superseded by it");
}

#[tokio::test]
async fn a_partial_run_deletes_nothing() {
    // The loopback device has no speed: the file opens, and reading it is an error.
    let folder = "type = \"directory\"\npath = \"/sys/class/net/lo\"\ninclude = [\"/speed\"]";
    let configuration = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 1 }")
        .replace("type = \"command\"\ncommand = [\"sh\", \"-c\", \"echo data\"]", folder);
    let pruned = Pruned::configured(&configuration, 2).await;
    let report = pruned.site.run(3).json();
    assert_eq!(report["completeness"], "partial");
    assert!(report["storages"][0]["pruned"].is_null());
    assert_eq!(pruned.site.ids().len(), 3);
}

/// Weeks of partial runs fill no storage, and the whole snapshots stay that the rules keep.
#[tokio::test]
async fn partial_runs_prune_partial_snapshots_only() {
    let folder = "type = \"directory\"\npath = \"/sys/class/net/lo\"\ninclude = [\"/speed\"]";
    let configuration = CONFIGURATION
        .replace("RETENTION", "{ keep_last = 2 }")
        .replace("type = \"command\"\ncommand = [\"sh\", \"-c\", \"echo data\"]", folder);
    let site = Site::new(&configuration);
    let storage = store(&site, "store").await;
    let whole = plant(&*storage, "app", "daily", (20..23).map(days_ago)).await;
    let mut partial = Vec::new();
    for days in 1..4 {
        let id = SnapshotId::new(days_ago(days), [7, 7, 7]);
        plant_one(&*storage, "app", "daily", &id, Completeness::Partial).await;
        partial.push(id);
    }
    let report = site.run(3).json();
    assert_eq!(report["storages"][0]["pruned"]["deleted"].as_array().unwrap().len(), 2);
    let run: SnapshotId = report["id"].as_str().unwrap().parse().unwrap();
    let kept = [&whole[..], &[partial[0].clone(), run.clone()]].concat();
    assert_eq!(site.ids(), texts(&kept), "a partial run deletes no whole one");
    site.backup(["prune", "--yes"]).expect(0);
    let kept = [&whole[..2], &[partial[0].clone(), run]].concat();
    assert_eq!(site.ids(), texts(&kept), "each kind by the same rules");
}

#[tokio::test]
async fn a_configuration_that_may_not_prune_does_not_and_another_does() {
    let retention = CONFIGURATION.replace("RETENTION", "{ keep_last = 2 }");
    let pruned = Pruned::configured(
        &retention.replace("path = \"@/store\"", "path = \"@/store\"\nprune = false"),
        4,
    )
    .await;
    let shown = pruned.prune(&["--yes"], 0);
    assert!(shown.out().contains("another configuration prunes here"), "{shown}");
    assert!(pruned.site.run(0).json()["storages"][0]["pruned"].is_null());
    let refused = pruned.site.backup(["forget", pruned.ids[3].as_str(), "--yes"]).expect(2);
    assert!(refused.err().contains("prune = false"), "{refused}");
    assert_eq!(pruned.site.ids().len(), 5);
    // The one that prunes has no sources, and so nothing to run.
    let only = retention.replace("sources = [\"dump\"]\n", "");
    let start = only.find("[sources.dump]").unwrap();
    let end = only.find("[storages.local]").unwrap();
    pruned.site.configure(&format!("{}{}max_delete_percent = 60\n", &only[..start], &only[end..]));
    assert_eq!(pruned.site.backup(["--strategy", "daily"]).run().code(), Some(2));
    pruned.prune(&["--yes"], 0);
    assert_eq!(pruned.site.ids().len(), 2);
}

#[tokio::test]
async fn killed_between_any_two_deletes_the_next_pruning_finishes() {
    // Three snapshots go, each with its manifest and one artifact.
    for (going, name) in (3..6).flat_map(|going| [(going, "manifest.json"), (going, "dump.out")]) {
        let pruned = Pruned::with("{ keep_last = 3 }", 6).await;
        let object = pruned.path(&pruned.ids[going]).join(name);
        let mut command = std::process::Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=unlinkat,unlink"]);
        // By what is deleted, since the calls are made by several threads.
        command.args(["-e", "inject=unlinkat,unlink:signal=KILL", "-P"]).arg(&object);
        command
            .arg(env!("CARGO_BIN_EXE_backup"))
            .arg("--config")
            .arg(pruned.site.config())
            .args(["prune", "--yes"]);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", pruned.site.dir.path());
        let ended = command.output().expect("strace runs").status;
        assert!(!ended.success(), "{}: it was killed", object.display());
        // Whatever is listed is undamaged, and the newest are among it.
        let verdict = pruned.site.backup(["verify", "--json"]).expect(0).json();
        assert!(verdict["snapshots"].as_array().unwrap().len() >= 3, "{}", object.display());
        pruned.prune(&["--yes"], 0);
        assert_eq!(pruned.site.ids(), texts(&pruned.ids[..3]), "{}", object.display());
        assert_eq!(pruned.site.folders().len(), 3, "{}: the rest is collected", object.display());
        pruned.site.run(0);
    }
}

#[tokio::test]
async fn who_reads_a_snapshot_keeps_it_from_being_deleted() {
    let pruned = Pruned::with("{ keep_last = 1 }", 2).await;
    let lock = pruned.site.path("state/app.daily.read.lock");
    std::fs::create_dir_all(pruned.site.path("state")).unwrap();
    let reader = std::fs::File::create(&lock).unwrap();
    reader.lock_shared().unwrap();
    assert!(pruned.prune(&["--yes"], 5).err().contains("reads a snapshot"));
    let refused = pruned.site.backup(["forget", pruned.ids[1].as_str(), "--yes"]).expect(5);
    assert!(refused.err().contains("reads a snapshot"), "{refused}");
    // A run is not in anybody's way. It prunes another time.
    assert!(pruned.site.run(0).json()["storages"][0]["pruned"].is_null());
    assert_eq!(pruned.site.ids().len(), 3);
    drop(reader);
    // And who deletes keeps others from beginning to read.
    let deleter = std::fs::File::create(&lock).unwrap();
    deleter.lock().unwrap();
    for command in [
        &["verify"][..],
        &["restore", "--strategy", "daily", "--to"],
        &["dump", "latest", "dump", "--strategy", "daily"],
    ] {
        let refused = pruned
            .site
            .backup(command)
            .args((command.len() == 4).then(|| pruned.site.path("out")))
            .expect(5);
        assert!(refused.err().contains("deletes snapshots"), "{refused}");
    }
}

#[tokio::test]
async fn on_a_terminal_it_asks_first() {
    let pruned = Pruned::with("{ keep_last = 2 }", 3).await;
    let answer = |answer: &str| {
        let program = env!("CARGO_BIN_EXE_backup");
        let script = format!(
            r#"printf '{answer}\n' | script -qec "'{program}' --config '$1' prune" /dev/null | tr -d '\r'"#
        );
        sh(pruned.site.dir.path(), &script, &[pruned.site.config().as_os_str()])
    };
    let said = answer("n");
    assert!(said.contains("Delete 1 snapshot") && said.contains("Nothing was deleted"), "{said}");
    assert_eq!(pruned.site.ids().len(), 3);
    let said = answer("y");
    assert!(said.contains("1 snapshot deleted"), "{said}");
    assert_eq!(pruned.site.ids().len(), 2);
}
