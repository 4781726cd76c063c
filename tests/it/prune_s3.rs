//! Retention in buckets: those of others are never touched, and a store that misbehaves loses
//! nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::types::{ObjectLockLegalHold, ObjectLockLegalHoldStatus};
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt as _;
use holdfast::model::{Cancel, SnapshotId};
use holdfast::storage::local::LocalConfig;
use holdfast::storage::{Storage, StorageConfig};
use rustix::process::Signal;
use tokio::sync::Notify;

use crate::support::plant::{days_ago, plant};
use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{Site, s3_storage};
use crate::support::stores::{Place, Server, fresh, setting};
use crate::support::{self, Ran, S3};

const ALWAYS: usize = 1_000_000;
/// The first page of a listing.
const PAGE: usize = 1_000;

/// A bucket behind a proxy, and a site that prunes it.
struct Bucket {
    site: Site,
    proxy: S3Proxy,
    name: String,
    storage: Box<dyn Storage>,
}

fn configuration(storage: &str, retention: &str) -> String {
    format!(
        "[sources.dump]\ntype = \"command\"\ncommand = [\"echo\", \"data\"]\n{storage}\
         [strategies.daily]\nsources = [\"dump\"]\nstorages = [\"offsite\"]\n\
         retention = {retention}\n\
         [strategies.daily-2]\nsources = [\"dump\"]\nstorages = [\"offsite\"]\n\
         retention = {retention}\n"
    )
}

impl Bucket {
    async fn new(retention: &str) -> Self {
        let name = fresh("prune");
        Server::S3s.client().create_bucket().bucket(&name).send().await.unwrap();
        let proxy = S3Proxy::before(&Server::S3s.endpoint()).await;
        let behind = S3 { endpoint: proxy.endpoint.clone(), ..support::s3("S3S") };
        let offsite = s3_storage("offsite", &behind, &name) + "attempts = 3\n";
        let site = Site::new(&configuration(&offsite, retention));
        // This server keeps the objects of a bucket as files.
        let folder = PathBuf::from(setting("HOLDFAST_TEST_S3S_ROOT")).join(&name);
        let storage = StorageConfig::Local(LocalConfig::from_path(folder))
            .open(&Cancel::new())
            .await
            .unwrap();
        Self { site, proxy, name, storage }
    }

    async fn with(retention: &str, days: i64) -> (Self, Vec<SnapshotId>) {
        let bucket = Self::new(retention).await;
        let ids = plant(&*bucket.storage, "app", "daily", (0..days).map(days_ago)).await;
        (bucket, ids)
    }

    fn prune(&self, args: &[&str]) -> support::Backup {
        self.site.backup(["prune", "--strategy", "daily", "--json"]).args(args)
    }

    fn kept(&self, ids: &[SnapshotId]) -> Ran {
        let ran = self.site.backup(["list", "--strategy", "daily", "--json"]).expect(0);
        let mut expected: Vec<&str> = ids.iter().map(SnapshotId::as_str).collect();
        expected.sort_unstable();
        let listed = ran.json();
        let listed: Vec<&str> = listed["snapshots"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].as_str().unwrap())
            .collect();
        assert_eq!(listed, expected);
        ran
    }

    /// Every key that the server has.
    async fn keys(&self) -> Vec<String> {
        let page = Server::S3s.client().list_objects_v2().bucket(&self.name).send().await.unwrap();
        page.contents().iter().map(|object| object.key().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strategies_and_instances_in_one_bucket_never_touch_each_other() {
    let (bucket, ids) = Bucket::with("{ keep_last = 2 }", 4).await;
    for (instance, strategy) in
        [("app", "daily-2"), ("app", "dail"), ("app-2", "daily"), ("ap", "daily")]
    {
        plant(&*bucket.storage, instance, strategy, (0..4).map(days_ago)).await;
    }
    let others = |keys: Vec<String>| -> Vec<String> {
        let is_own = |key: &String| {
            // `forget` leaves a mark for other machines.
            key.starts_with("app/daily/") || key.starts_with("app/marks/")
        };
        keys.into_iter().filter(|key| !is_own(key)).collect()
    };
    let before = others(bucket.keys().await);
    assert_eq!(before.len(), 4 * 4 * 2);
    bucket.prune(&["--yes"]).expect(0);
    bucket.kept(&ids[..2]);
    bucket.site.run(0);
    bucket.site.backup(["forget", ids[0].as_str(), "--strategy", "daily", "--yes"]).expect(0);
    assert_eq!(others(bucket.keys().await), before);
    // The whole instance, and no other.
    bucket.site.backup(["prune", "--yes"]).expect(0);
    let left = bucket.keys().await;
    let of = |folder: &str| left.iter().filter(|key| key.starts_with(folder)).count();
    assert_eq!((of("app/daily-2/"), of("app/dail/"), of("app-2/"), of("ap/")), (4, 8, 8, 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_does_not_let_delete_keeps_all_and_it_is_said() {
    let (bucket, ids) = Bucket::with("{ keep_last = 2 }", 4).await;
    bucket.proxy.inject(Op::Delete, Fault::Say(403, "AccessDenied"), ALWAYS);
    let refused = bucket.prune(&["--yes"]).expect(1);
    assert!(refused.out().contains("Set `prune = false`"), "{refused}");
    bucket.kept(&ids);
    bucket.site.backup(["verify"]).expect(0);
    bucket.proxy.heal();
    // The manifest of one goes, its artifact does not.
    bucket.proxy.inject_at(Op::Delete, "dump.out", Fault::Say(403, "AccessDenied"), ALWAYS);
    let half = bucket.prune(&["--yes"]).expect(3);
    assert!(half.out().contains("is deleted, but not all that it took"), "{half}");
    assert_eq!(half.json()["pruned"][0]["deleted"], serde_json::json!([ids[2]]));
    bucket.kept(&[ids[0].clone(), ids[1].clone(), ids[3].clone()]);
    bucket.proxy.heal();
    bucket.prune(&["--yes"]).expect(0);
    bucket.kept(&ids[..2]);
    assert_eq!(bucket.keys().await.len(), 4, "nothing is left of those that went");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_throttled_or_slow_is_pruned_all_the_same() {
    for fault in
        [Fault::Say(503, "SlowDown"), Fault::DropAnswer, Fault::Slow(Duration::from_secs(2))]
    {
        let (bucket, ids) = Bucket::with("{ keep_last = 3 }", 4).await;
        bucket.proxy.inject(Op::Delete, fault.clone(), 2);
        bucket.proxy.inject(Op::List, fault, 1);
        bucket.prune(&["--yes"]).expect(0);
        bucket.kept(&ids[..3]);
        assert_eq!(bucket.keys().await.len(), 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_fails_deletes_nothing() {
    let (bucket, ids) = Bucket::with("{ keep_last = 3 }", 4).await;
    for fault in
        [Fault::Say(500, "InternalError"), Fault::Say(403, "AccessDenied"), Fault::CutBody(200)]
    {
        bucket.proxy.inject(Op::List, fault, ALWAYS);
        bucket.prune(&["--yes", "--force"]).expect(1);
        bucket.proxy.heal();
        bucket.kept(&ids);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_is_not_known_who_writes_force_deletes_nothing() {
    let (bucket, ids) = Bucket::with("{ keep_last = 1 }", 4).await;
    // The look for writers fails, the listing of the plan does not; and there is a refusal that
    // yields to force.
    bucket.proxy.inject(Op::List, Fault::Say(403, "AccessDenied"), 1);
    let refused = bucket.prune(&["--yes", "--force"]).expect(1);
    assert!(refused.out().contains("It is not known whether anybody writes there"), "{refused}");
    bucket.kept(&ids);
    bucket.prune(&["--yes", "--force"]).expect(0);
    bucket.kept(&ids[..1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_any_two_deletes_the_next_pruning_finishes() {
    let (bucket, newest) = Bucket::with("{ keep_last = 3 }", 1).await;
    for deletes in 0..9 {
        plant(
            &*bucket.storage,
            "app",
            "daily",
            (1..7).map(|day| days_ago(day) - TimeDelta::hours(deletes)),
        )
        .await;
        for _ in 0..deletes {
            bucket.proxy.inject(Op::Delete, Fault::Slow(Duration::ZERO), 1);
        }
        let reached = Arc::new(Notify::new());
        let happened = Arc::clone(&reached);
        let never_answered = Arc::new(move || {
            happened.notify_one();
            std::future::pending().boxed()
        });
        bucket.proxy.inject(Op::Delete, Fault::Then(never_answered), 1);
        let running = bucket.prune(&["--yes", "--force"]).spawn();
        reached.notified().await;
        running.signal(Signal::KILL);
        assert_eq!(running.wait().code(), None);
        bucket.proxy.heal();
        bucket.site.backup(["verify"]).expect(0);
        bucket.prune(&["--yes", "--force"]).expect(0);
        let keys = bucket.keys().await;
        assert_eq!(keys.len(), 6, "{deletes}: {keys:?}");
        assert!(keys.iter().any(|key| key.contains(newest[0].as_str())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_snapshots_are_listed_over_pages_and_a_page_that_lies_is_noticed() {
    let bucket = Bucket::new("{ keep_last = 4998 }").await;
    let hours = (0..5_000).map(|hour| days_ago(0) - TimeDelta::hours(hour));
    let ids = plant(&*bucket.storage, "app", "daily", hours).await;
    let plan = bucket.prune(&["--plan"]).expect(0).json();
    assert_eq!(plan["plan"]["places"][0]["snapshots"].as_array().unwrap().len(), 5_000);
    assert_eq!(plan["delete"], 2);
    assert!(bucket.proxy.count(Op::List) >= 10_000 / PAGE, "two objects each");
    // It says of a page that it is the last one.
    let lie = Fault::Lie("<IsTruncated>true</IsTruncated>", "<IsTruncated>false</IsTruncated>");
    bucket.proxy.inject(Op::List, lie, ALWAYS);
    let refused = bucket.prune(&["--yes"]).expect(1);
    assert!(refused.out().contains("are gone since they were last listed"), "{}", refused.err());
    bucket.proxy.heal();
    let began = Instant::now();
    bucket.prune(&["--yes"]).expect(0);
    println!("pruned 2 of 5,000 in {:?}", began.elapsed());
    bucket.kept(&ids[..4_998]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_keeps_locked_is_a_decision_and_no_error() {
    let mut config = Server::Moto.bucket().await;
    config.bucket = fresh("locked");
    config.prefix = String::new();
    let client = Server::Moto.client();
    client
        .create_bucket()
        .bucket(&config.bucket)
        .object_lock_enabled_for_bucket(true)
        .send()
        .await
        .unwrap();
    let bucket = config.bucket.clone();
    let site = Site::new(&configuration(
        &(s3_storage(
            "offsite",
            &S3 {
                region: Server::Moto.region(),
                endpoint: Server::Moto.endpoint(),
                ..support::s3("MOTO")
            },
            &bucket,
        )),
        "{ keep_last = 1 }",
    ));
    let free = Place::of(Server::Moto, config.clone()).await;
    config.retain_for = Some("2d".parse().unwrap());
    let locking = Place::of(Server::Moto, config).await;
    let old = plant(&*free.storage, "app", "daily", [days_ago(9), days_ago(8)]).await;
    let locked =
        plant(&*locking.storage, "app", "daily", [days_ago(6), days_ago(5), days_ago(4)]).await;
    // Somebody else wants one to stay, whatever is said here.
    client
        .put_object_legal_hold()
        .bucket(&bucket)
        .key(format!("app/daily/{}/dump.out", old[0]))
        .legal_hold(ObjectLockLegalHold::builder().status(ObjectLockLegalHoldStatus::On).build())
        .send()
        .await
        .unwrap();
    let plan = site.backup(["prune", "--strategy", "daily", "--plan", "--json"]).expect(0).json();
    let snapshots = plan["plan"]["places"][0]["snapshots"].as_array().unwrap();
    let why = |id: &SnapshotId| {
        let one = snapshots.iter().find(|one| one["id"] == id.as_str()).unwrap();
        (one["keep"].as_bool().unwrap(), one["reasons"][0].clone())
    };
    assert_eq!(why(&locked[2]).1["kind"], "newest");
    for id in &locked[..2] {
        let (keep, reason) = why(id);
        let until: DateTime<Utc> = reason["until"].as_str().unwrap().parse().unwrap();
        let left = until - Utc::now();
        assert!(
            keep && reason["kind"] == "locked"
                && left > TimeDelta::hours(46)
                && left < TimeDelta::hours(49)
        );
    }
    assert_eq!(why(&old[0]), (true, serde_json::json!({ "kind": "locked" })));
    assert!(!why(&old[1]).0);
    site.backup(["prune", "--strategy", "daily", "--yes"]).expect(0);
    let refused =
        site.backup(["forget", locked[0].as_str(), "--strategy", "daily", "--yes"]).expect(2);
    assert!(refused.err().contains("is locked in `offsite` until"), "{refused}");
    assert_eq!(
        site.ids(),
        [old[0].as_str(), locked[0].as_str(), locked[1].as_str(), locked[2].as_str()]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_fails_leaves_nothing_that_waits() {
    let (bucket, ids) = Bucket::with("{ keep_last = 2 }", 3).await;
    let full = || Fault::SayInWords(403, "QuotaExceeded", "Bucket quota exceeded");
    let before = bucket.keys().await;
    // The first steps: nothing is deleted, and nothing stays that was not there.
    for (op, key, fault) in [
        (Op::Delete, "manifest.json", Fault::Say(403, "AccessDenied")),
        (Op::Delete, "manifest.json", Fault::Say(403, "ObjectLocked")),
        (Op::Put, "run.json", Fault::Say(403, "AccessDenied")),
        (Op::Put, "run.json", Fault::Say(503, "SlowDown")),
    ] {
        bucket.proxy.inject_at(op, key, fault, ALWAYS);
        bucket.prune(&["--yes"]).expect(1);
        bucket.proxy.heal();
        assert_eq!(bucket.keys().await, before, "{op:?} {key}");
    }
    // Full, and then cut off: the next pruning knows whose the rest is.
    bucket.proxy.inject_at(Op::Put, "run.json", full(), 1);
    bucket.proxy.inject_at(Op::Delete, "dump.out", Fault::Say(403, "AccessDenied"), ALWAYS);
    bucket.prune(&["--yes"]).expect(3);
    assert_eq!(bucket.keys().await.len(), before.len(), "run.json in place of the manifest");
    bucket.proxy.heal();
    bucket.prune(&["--yes"]).expect(0);
    bucket.kept(&ids[..2]);
    assert_eq!(bucket.keys().await.len(), 4);
}
