//! Snapshots that were there and are gone: named, unless the rules or somebody explain it.

use std::path::Path;

use crate::support::site::Site;
use crate::support::stores::{Server, fresh};
use crate::support::{Ran, backup, s3};

/// A machine whose `daily` goes to the storage at `store`, with more keys of the storage and of the
/// strategy.
fn machine(store: &Path, storage: &str, strategy: &str) -> Site {
    let site = Site::new(&format!(
        "[sources.dump]\ntype = \"command\"\ncommand = [\"echo\", \"data\"]\n\
         [storages.disk]\ntype = \"local\"\npath = \"{}\"\n{storage}\n\
         [strategies.daily]\nsources = [\"dump\"]\nstorages = [\"disk\"]\n{strategy}\n",
        store.display()
    ));
    // As a machine that was there before: what it sees now it remembers.
    site.backup(["list"]).expect(0);
    site
}

/// A store with a folder around it, which outlives the machines.
fn store() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = crate::support::temp();
    let store = folder.path().join("store");
    (folder, store)
}

fn ids(site: &Site, count: usize) -> Vec<String> {
    (0..count).map(|_| site.run(0).json()["id"].as_str().unwrap().to_owned()).collect()
}

fn remove(store: &Path, ids: &[String]) {
    for id in ids {
        std::fs::remove_dir_all(store.join("app/daily").join(id)).unwrap();
    }
}

/// What `list` and `verify` miss, which must be the same, and that they end with 4 for it.
#[track_caller]
fn missed(site: &Site) -> Vec<String> {
    let of = |ran: Ran| {
        let vanished: Vec<String> = ran.json()["vanished"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect();
        let expected = if vanished.is_empty() { 0 } else { 4 };
        assert_eq!(ran.code(), Some(expected), "{ran}");
        vanished
    };
    let listed = of(site.backup(["list", "--json"]).run());
    assert_eq!(of(site.backup(["verify", "--json"]).run()), listed);
    listed
}

#[test]
fn snapshots_that_vanished_are_named_until_acknowledged() {
    let (_folder, store) = store();
    let site = machine(&store, "", "");
    let all = ids(&site, 3);
    assert!(missed(&site).is_empty());
    remove(&store, &all);
    assert_eq!(missed(&site), all);
    // Again, and after another run, too, which warns that nothing is there.
    assert_eq!(missed(&site), all);
    site.run(3);
    assert_eq!(missed(&site), all);
    site.backup(["forget", &all[0], "--yes"]).expect(0);
    assert_eq!(missed(&site), all[1..]);
    let forgotten = site.backup(["forget", "--vanished", "--json"]).expect(0).json();
    assert_eq!(forgotten["acknowledged"].as_array().unwrap().len(), 2, "{forgotten}");
    assert!(missed(&site).is_empty());
}

#[test]
fn what_another_machine_prunes_by_the_rules_is_no_alarm() {
    let (_folder, store) = store();
    let rules = "retention = { keep_last = 2 }\nmax_delete_percent = 100";
    let (prunes, looks) = (machine(&store, "", rules), machine(&store, "", rules));
    ids(&prunes, 2);
    assert!(missed(&looks).is_empty());
    let new = ids(&prunes, 3);
    assert!(missed(&looks).is_empty());
    // A rule that keeps more from now on says nothing against what was explained.
    let more = "retention = { keep_last = 10 }";
    looks.configure(
        &std::fs::read_to_string(looks.config())
            .unwrap()
            .lines()
            .skip(2)
            .fold(String::new(), |all, line| {
                format!("{all}{}\n", line.replace("retention = { keep_last = 2 }", more))
            }),
    );
    assert!(missed(&looks).is_empty());
    // And one that the rules keep is missed.
    remove(&store, &new[2..]);
    assert_eq!(missed(&looks), new[2..]);
    assert_eq!(missed(&prunes), new[2..]);
}

#[test]
fn what_one_machine_forgets_no_other_misses() {
    let (_folder, store) = store();
    let (one, other) = (machine(&store, "", ""), machine(&store, "", ""));
    let all = ids(&one, 3);
    assert!(missed(&other).is_empty());
    one.backup(["forget", &all[0], "--yes"]).expect(0);
    assert!(missed(&other).is_empty());
    // What vanished, and one of them said that it is meant.
    remove(&store, &all[1..2]);
    assert_eq!(missed(&other), all[1..2]);
    one.backup(["list"]).expect(4);
    one.backup(["forget", &all[1], "--yes"]).expect(0);
    assert!(missed(&one).is_empty());
    assert!(missed(&other).is_empty());
}

#[test]
fn a_forced_pruning_acknowledges_for_other_machines() {
    let (_folder, store) = store();
    let rules = "retention = { keep_last = 5 }";
    let (one, other) = (machine(&store, "", rules), machine(&store, "", rules));
    let all = ids(&one, 3);
    assert!(missed(&other).is_empty());
    remove(&store, &all[..1]);
    one.backup(["prune", "--yes"]).expect(1);
    one.backup(["prune", "--yes", "--force"]).expect(0);
    assert!(missed(&one).is_empty());
    assert!(missed(&other).is_empty());
}

#[test]
fn where_others_prune_only_the_newest_is_missed() {
    let (_folder, store) = store();
    let site = machine(&store, "prune = false", "retention = { keep_last = 100 }");
    let all = ids(&site, 3);
    assert!(missed(&site).is_empty());
    remove(&store, &all[..2]);
    assert!(missed(&site).is_empty());
    remove(&store, &all[2..]);
    assert_eq!(missed(&site), all[2..]);
}

#[test]
fn a_verification_that_reads_all_records_what_vanished() {
    let (_folder, store) = store();
    let site = machine(&store, "", "");
    let all = ids(&site, 2);
    remove(&store, &all);
    site.backup(["verify", "--read-data"]).expect(4);
    let status = site.backup(["status", "--json"]).run().json();
    assert_eq!(status["strategies"][0]["verified"]["outcome"], "damaged", "{status}");
}

#[tokio::test]
async fn other_prefixes_of_a_storage_are_hinted_at() {
    let (folder, store) = store();
    let site = machine(&store, "", "");
    let id = ids(&site, 1).remove(0);
    let list = |address: &str| backup(["list", "--json", "--storage", address]);
    let above = list(folder.path().to_str().unwrap()).expect(0).json();
    assert_eq!(above["elsewhere"][0]["prefix"], "store", "{above}");
    let here = list(store.to_str().unwrap()).expect(0).json();
    assert_eq!(here["elsewhere"].as_array().unwrap().len(), 0, "{here}");
    let to = site.path("restored");
    let restore = backup(["restore", "--instance", "app", "--storage"]);
    restore.arg(folder.path()).arg("--to").arg(&to).expect(1);

    let (server, bucket) = (s3("S3S"), fresh("elsewhere"));
    Server::S3s.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let key = format!("backups/clinic/app/daily/{id}/manifest.json");
    let body = std::fs::read(store.join("app/daily").join(&id).join("manifest.json")).unwrap();
    let put = Server::S3s.client().put_object().bucket(&bucket).key(key).body(body.into());
    put.send().await.unwrap();
    let far = |address: String| {
        let list = list(&address)
            .env("AWS_ENDPOINT_URL", &server.endpoint)
            .env("AWS_REGION", &server.region)
            .env("AWS_ACCESS_KEY_ID", &server.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &server.secret_key);
        list.run().json()["elsewhere"][0]["prefix"].as_str().map(str::to_owned)
    };
    let told =
        [("", Some("backups/clinic")), ("/backup", Some("backups")), ("/backups", Some("clinic"))];
    for (prefix, hint) in told {
        assert_eq!(far(format!("s3://{bucket}{prefix}")).as_deref(), hint, "{prefix}");
    }
    // That one has a snapshot.
    assert_eq!(far(format!("s3://{bucket}/backups/clinic")), None);
}

#[test]
fn a_storage_that_refuses_has_no_number_of_snapshots() {
    let (_folder, store) = store();
    let site = machine(&store, "", "");
    ids(&site, 1);
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::write(&store, "no folder").unwrap();
    for args in [&["list"][..], &["stats"], &["verify"]] {
        let ran = site.backup(args).expect(1);
        assert!(!ran.out().contains("No snapshots"), "{ran}");
        assert!(ran.out().contains("disk") || ran.err().contains("disk"), "{ran}");
    }
}
