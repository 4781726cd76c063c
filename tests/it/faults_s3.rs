//! Buckets that misbehave while the program runs: in every case no half backup, a clear error, the
//! right exit code, earlier snapshots untouched and readable, the next run succeeds, and nothing is
//! left behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use rustix::process::Signal;
use tokio::sync::Notify;

use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::site::{Site, s3_storage};
use crate::support::small_server::SmallServer;
use crate::support::stores::{Server, fresh, setting, unfinished_uploads};
use crate::support::{self, Ran, S3, sh};

/// As often as anybody asks.
const ALWAYS: usize = 1_000_000;
/// How long the program may take to end once it was asked to, whatever a store does.
const SOON: Duration = Duration::from_secs(30);
/// Longer than any test waits.
const NEVER: Fault = Fault::Slow(Duration::from_secs(100_000));
const LOCAL: &str = "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n";
const ALL: [Op; 10] = [
    Op::Put,
    Op::Begin,
    Op::Part(1),
    Op::Part(2),
    Op::Complete,
    Op::Abort,
    Op::Head,
    Op::Get,
    Op::List,
    Op::Delete,
];

/// A site with one bucket, behind a proxy.
struct Bucket {
    site: Site,
    proxy: S3Proxy,
    server: Server,
    name: String,
}

fn s3(server: Server) -> S3 {
    support::s3(if server == Server::SeaweedFs { "SEAWEEDFS" } else { "S3S" })
}

/// The configuration of a site whose `daily` stores what a script writes in `storages`.
fn configuration(storages: &[&str], tables: &str, strategy: &str) -> String {
    format!(
        "[sources.dump]\ntype = \"command\"\ncommand = [\"sh\", \"@/dump.sh\"]\n{tables}\
         [strategies.daily]\nsources = [\"dump\"]\nstorages = {storages:?}\n{strategy}"
    )
}

impl Bucket {
    async fn new(server: Server) -> Self {
        Self::with(server, &["offsite"], "", "").await
    }

    /// With more storages before the bucket's, which is `offsite`, and more settings of the
    /// strategy.
    async fn with(server: Server, storages: &[&str], tables: &str, strategy: &str) -> Self {
        let name = fresh("faults");
        server.client().create_bucket().bucket(&name).send().await.unwrap();
        let proxy = S3Proxy::before(&server.endpoint()).await;
        let behind = S3 { endpoint: proxy.endpoint.clone(), ..s3(server) };
        let offsite = s3_storage("offsite", &behind, &name)
            + "part_size = \"5MiB\"\n\
            attempts = 3\n";
        let site = Site::new(&configuration(storages, &format!("{tables}{offsite}"), strategy));
        let bucket = Self { site, proxy, server, name };
        bucket.script("head -c 12000000 /dev/urandom");
        bucket
    }

    fn script(&self, script: &str) {
        std::fs::write(self.site.path("dump.sh"), script).unwrap();
    }

    /// Every key with the size and the time of the object, as the server tells them without the
    /// proxy.
    async fn objects(&self) -> Vec<(String, String)> {
        let page = self.server.client().list_objects_v2().bucket(&self.name).send().await.unwrap();
        assert_ne!(page.is_truncated(), Some(true));
        let told = |object: &aws_sdk_s3::types::Object| {
            format!("{:?} {:?}", object.size(), object.last_modified())
        };
        page.contents()
            .iter()
            .map(|object| (object.key().unwrap().to_owned(), told(object)))
            .collect()
    }

    /// Nothing is under way: no heartbeat, no unfinished upload, no folder without a manifest.
    async fn assert_tidy(&self) {
        let objects = self.objects().await;
        let folder = |key: &str| key.rsplit_once('/').unwrap().0.to_owned();
        for (key, _) in &objects {
            assert!(!key.ends_with("run.json"), "{key}");
            let manifest = folder(key) + "/manifest.json";
            assert!(objects.iter().any(|(key, _)| *key == manifest), "{key} has no manifest");
        }
        self.server.assert_no_uploads_where_listed(&self.name).await;
    }

    fn verify(&self, code: i32) -> Ran {
        self.site.backup(["verify", "--read-data", "--json"]).expect(code)
    }

    /// With the store well again: what was there is, a run succeeds, and all is readable and tidy.
    async fn recovers(&self, snapshots: usize) {
        self.proxy.heal();
        assert_eq!(self.site.ids().len(), snapshots);
        self.verify(0);
        self.script("head -c 12000000 /dev/urandom");
        self.site.run(0);
        assert_eq!(self.site.ids().len(), snapshots + 1);
        self.verify(0);
        self.assert_tidy().await;
    }
}

/// The path of the artifact of the script.
const DUMP: &str = "dump.out.zst";

/// With the fault the run fails and says so, leaving all as it was; without it the next one
/// succeeds.
async fn fails_cleanly(server: Server, op: Op, suffix: &'static str, fault: Fault, says: &str) {
    let bucket = Bucket::new(server).await;
    bucket.site.run(0);
    let before = bucket.objects().await;
    bucket.proxy.inject_at(op, suffix, fault, ALWAYS);
    let failed = bucket.site.run(1);
    assert_eq!(failed.json()["outcome"], "failed", "{failed}");
    let said = failed.json()["storages"][0]["error"].to_string();
    assert!(said.contains(says), "{says}: {failed}");
    bucket.proxy.heal();
    assert_eq!(bucket.objects().await, before, "{op:?}: nothing is left of it");
    server.assert_no_uploads_where_listed(&bucket.name).await;
    bucket.recovers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_midway_is_no_backup() {
    fails_cleanly(Server::S3s, Op::Part(2), "", Fault::Say(500, "InternalError"), "InternalError")
        .await;
    fails_cleanly(Server::SeaweedFs, Op::Complete, "", Fault::Say(503, "SlowDown"), "SlowDown")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_always_drops_midway_is_no_backup() {
    fails_cleanly(Server::S3s, Op::Part(2), "", Fault::DropRequest, "can be reached").await;
    fails_cleanly(Server::SeaweedFs, Op::Part(2), "", Fault::DropAnswer, "can be reached").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_was_accepted_and_lost_is_no_backup() {
    fails_cleanly(Server::S3s, Op::Part(2), "", Fault::Swallow, DUMP).await;
    fails_cleanly(Server::SeaweedFs, Op::Part(2), "", Fault::Swallow, DUMP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bit_that_changed_on_the_way_is_no_backup() {
    fails_cleanly(Server::S3s, Op::Part(2), "", Fault::Flip, DUMP).await;
    fails_cleanly(Server::SeaweedFs, Op::Part(2), "", Fault::Flip, DUMP).await;
    fails_cleanly(Server::SeaweedFs, Op::Put, "facts.json.zst", Fault::Flip, "facts.json").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_breaks_off_deletes_nothing() {
    let bucket = Bucket::new(Server::SeaweedFs).await;
    bucket.site.run(0);
    // A dead run of this machine, which the next run would collect.
    let (client, name) = (bucket.server.client(), &bucket.name);
    let dead = "app/daily/20200101T000000Z-aaaaaa/dump.out.zst";
    client.put_object().bucket(name).key(dead).body(b"half".to_vec().into()).send().await.unwrap();
    let before = bucket.objects().await;
    for fault in [Fault::CutBody(700), Fault::Say(500, "InternalError")] {
        bucket.proxy.inject(Op::List, fault, ALWAYS);
        let failed = bucket.site.run(1);
        assert!(failed.out().contains("list `app/daily/`"), "{failed}");
        bucket.proxy.heal();
        assert_eq!(bucket.objects().await, before);
    }
    client.delete_object().bucket(name).key(dead).send().await.unwrap();
    bucket.recovers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_retried_and_committed_once() {
    for server in [Server::S3s, Server::SeaweedFs] {
        let bucket = Bucket::new(server).await;
        let faults = [Fault::Say(503, "SlowDown"), Fault::DropRequest, Fault::DropAnswer];
        for (number, fault) in faults.into_iter().enumerate() {
            for op in ALL {
                bucket.proxy.inject(op, fault.clone(), 1);
            }
            bucket.proxy.inject_at(Op::Put, "manifest.json", fault, 1);
            let ran = bucket.site.run(0);
            assert_eq!(ran.json()["outcome"], "success", "{ran}");
            bucket.proxy.heal();
            assert_eq!(bucket.site.ids().len(), number + 1);
            bucket.assert_tidy().await;
        }
        bucket.proxy.inject(Op::Part(1), Fault::Slow(Duration::from_secs(2)), 1);
        bucket.site.run(0);
        bucket.recovers(4).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_was_acknowledged_and_lost_is_no_backup() {
    let bucket = Bucket::new(Server::SeaweedFs).await;
    bucket.site.run(0);
    for fault in [Fault::Swallow, Fault::Say(500, "InternalError"), Fault::Flip] {
        bucket.proxy.inject_at(Op::Put, "manifest.json", fault, ALWAYS);
        let failed = bucket.site.run(1);
        assert_eq!(failed.json()["outcome"], "failed", "{failed}");
        assert!(
            failed.json()["storages"][0]["error"].to_string().contains("manifest.json"),
            "{failed}"
        );
        bucket.proxy.heal();
        assert_eq!(bucket.site.ids().len(), 1);
    }
    bucket.recovers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_arrived_unknown_to_us_keeps_its_artifacts() {
    let bucket = Bucket::new(Server::SeaweedFs).await;
    bucket.site.run(0);
    bucket.proxy.inject_at(Op::Put, "manifest.json", Fault::DropAnswer, ALWAYS);
    bucket.proxy.inject_at(Op::Head, "manifest.json", Fault::DropAnswer, ALWAYS);
    let failed = bucket.site.run(1);
    // The first look was before the manifest was sent, and failed; so nothing was sent then.
    assert_eq!(
        bucket.objects().await.iter().filter(|(key, _)| key.ends_with("manifest.json")).count(),
        1,
        "{failed}"
    );
    bucket.proxy.heal();
    // Now the store is lost between the manifest and its answer.
    let lost = Arc::new(Notify::new());
    let act = tell(&lost);
    bucket.proxy.inject_at(Op::Put, "manifest.json", Fault::Then(act), 1);
    let running = bucket.site.backup(["--strategy", "daily", "--json"]).spawn();
    lost.notified().await;
    for op in ALL {
        bucket.proxy.inject(op, Fault::DropRequest, ALWAYS);
    }
    bucket.proxy.inject_at(Op::Head, "manifest.json", Fault::DropRequest, ALWAYS);
    // The answer never comes: the program asks again after its patience, so it is asked to stop
    // meanwhile.
    running.signal(Signal::TERM);
    let failed = running.wait().expect(1);
    assert!(failed.out().contains("not certain whether it is there"), "{failed}");
    bucket.recovers(2).await;
}

/// Tells that a request was carried out, and never lets its answer go.
fn tell(
    happened: &Arc<Notify>,
) -> Arc<dyn Fn() -> futures::future::BoxFuture<'static, ()> + Send + Sync> {
    let happened = Arc::clone(happened);
    Arc::new(move || {
        happened.notify_one();
        std::future::pending().boxed()
    })
}

/// Where a run is stopped: the request was carried out, its answer never came.
const POINTS: [(Op, &str); 8] = [
    (Op::List, ""),
    (Op::Put, "run.json"),
    (Op::Begin, ""),
    (Op::Part(2), ""),
    (Op::Complete, ""),
    (Op::Put, "facts.json.zst"),
    (Op::Delete, "run.json"),
    (Op::Put, "manifest.json"),
];

async fn stopped_anywhere(server: Server, signal: Signal) {
    bucket_stopped_anywhere(Bucket::new(server).await, signal).await;
}

async fn bucket_stopped_anywhere(bucket: Bucket, signal: Signal) {
    let server = bucket.server;
    bucket.site.run(0);
    let mut snapshots = 1;
    for (op, suffix) in POINTS {
        let before = bucket.objects().await;
        let reached = Arc::new(Notify::new());
        bucket.proxy.inject_at(op, suffix, Fault::Then(tell(&reached)), 1);
        let running = bucket.site.backup(["--strategy", "daily", "--json"]).patience(SOON).spawn();
        reached.notified().await;
        let began = Instant::now();
        running.signal(signal);
        let ended = running.wait();
        println!("{op:?} {suffix}: {:?} after {:?}", ended.status, began.elapsed());
        let committed = matches!(suffix, "manifest.json") || op == Op::Delete;
        bucket.proxy.heal();
        if signal == Signal::KILL {
            assert_eq!(ended.code(), None);
        } else if committed {
            // The manifest is there: the program found out, and says so.
            assert!(matches!(ended.code(), Some(0 | 3)), "{op:?} {suffix}: {ended}");
        } else {
            assert_eq!(ended.json()["outcome"], "cancelled", "{ended}");
            assert_eq!(bucket.objects().await, before, "{op:?} {suffix}: nothing is left of it");
            server.assert_no_uploads_where_listed(&bucket.name).await;
        }
        snapshots += usize::from(committed);
        assert_eq!(bucket.site.ids().len(), snapshots, "{op:?} {suffix}: {ended}");
        if signal == Signal::KILL {
            // The next run collects what the dead one left.
            bucket.site.run(0);
            bucket.assert_tidy().await;
            snapshots += 1;
        }
    }
    bucket.recovers(snapshots).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_on_s3s_it_leaves_nothing_that_counts() {
    stopped_anywhere(Server::S3s, Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_on_seaweedfs_it_leaves_nothing_that_counts() {
    stopped_anywhere(Server::SeaweedFs, Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_without_conditional_writes_it_leaves_nothing() {
    let bucket = Bucket::new(Server::SeaweedFs).await;
    bucket.proxy.ignore_conditions();
    bucket_stopped_anywhere(bucket, Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_to_stop_anywhere_it_ends_soon_and_leaves_nothing() {
    stopped_anywhere(Server::SeaweedFs, Signal::TERM).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_never_answers_holds_nobody_up_who_asks_to_stop() {
    for first in [Op::Put, Op::Part(2)] {
        let bucket = Bucket::new(Server::SeaweedFs).await;
        bucket.site.run(0);
        for op in ALL.into_iter().filter(|op| *op != first) {
            if first == Op::Put
                || !matches!(op, Op::Put | Op::Head | Op::List | Op::Begin | Op::Part(_))
            {
                bucket.proxy.inject(op, NEVER, if op == Op::List { 0 } else { ALWAYS });
            }
        }
        let hung = Arc::new(Notify::new());
        bucket.proxy.inject(first, Fault::Then(tell(&hung)), ALWAYS);
        let running = bucket.site.backup(["--strategy", "daily", "--json"]).patience(SOON).spawn();
        hung.notified().await;
        for op in ALL {
            bucket.proxy.inject(op, NEVER, ALWAYS);
        }
        running.signal(Signal::TERM);
        let ended = running.wait().expect(1);
        assert_eq!(ended.json()["outcome"], "cancelled", "{ended}");
        bucket.recovers(1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_upload_hangs_ends_at_its_timeout() {
    let bucket = Bucket::with(Server::SeaweedFs, &["offsite"], "", "timeout = \"3s\"\n").await;
    bucket.proxy.inject(Op::Part(2), NEVER, ALWAYS);
    let began = Instant::now();
    let failed = bucket.site.run(1);
    assert!(failed.out().contains("longer than its `timeout`"), "{failed}");
    assert!(began.elapsed() < SOON);
    bucket.proxy.heal();
    bucket.assert_tidy().await;
    assert_eq!(bucket.objects().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_disappears_midway_does_not_take_the_others_with_it() {
    let bucket = Bucket::with(Server::SeaweedFs, &["local", "offsite"], LOCAL, "").await;
    bucket.site.run(0);
    for op in ALL {
        if op != Op::Head && op != Op::List && op != Op::Begin && op != Op::Put {
            bucket.proxy.inject(op, Fault::DropRequest, ALWAYS);
        }
    }
    let ran = bucket.site.run(3).json();
    assert_eq!(ran["outcome"], "problems");
    assert_eq!(ran["storages"][0]["committed"], true);
    assert_eq!(ran["storages"][1]["committed"], false);
    // What cannot be reached is said, and what can be is listed.
    for op in ALL {
        bucket.proxy.inject(op, Fault::DropRequest, ALWAYS);
    }
    let listed = bucket.site.backup(["list", "--json"]).expect(1).json();
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(listed["unlisted"][0]["storage"], "offsite");
    let verdict = bucket.site.backup(["verify", "--json"]).expect(1).json();
    assert_eq!(verdict["snapshots"].as_array().unwrap().len(), 2);
    let restored =
        bucket.site.backup(["restore", "--strategy", "daily", "--to"]).arg(bucket.site.path("out"));
    assert!(restored.expect(0).err().contains("may have a newer snapshot"));
    bucket.recovers(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_has_begun_goes_through_to_the_other_storages() {
    let bucket = Bucket::with(Server::SeaweedFs, &["first", "offsite"], "", "").await;
    let second = fresh("faults");
    bucket.server.client().create_bucket().bucket(&second).send().await.unwrap();
    let first = S3 { endpoint: bucket.proxy.endpoint.clone(), ..s3(bucket.server) };
    let behind = S3 { endpoint: bucket.proxy.endpoint.clone(), ..s3(bucket.server) };
    let tables =
        s3_storage("first", &first, &second) + &s3_storage("offsite", &behind, &bucket.name);
    bucket.site.configure(&configuration(&["first", "offsite"], &tables, ""));
    let committing = Arc::new(Notify::new());
    let go_on = Arc::new(Notify::new());
    let act: Arc<dyn Fn() -> futures::future::BoxFuture<'static, ()> + Send + Sync> = {
        let (committing, go_on) = (Arc::clone(&committing), Arc::clone(&go_on));
        Arc::new(move || {
            let go_on = Arc::clone(&go_on);
            committing.notify_one();
            async move { go_on.notified().await }.boxed()
        })
    };
    bucket.proxy.inject_at(Op::Put, "manifest.json", Fault::Then(act), 1);
    let running = bucket.site.backup(["--strategy", "daily", "--json"]).spawn();
    committing.notified().await;
    running.signal(Signal::TERM);
    go_on.notify_one();
    let ran = running.wait().expect(0).json();
    assert!(
        ran["storages"].as_array().unwrap().iter().all(|storage| storage["committed"] == true),
        "{ran}"
    );
    bucket.assert_tidy().await;
    bucket.verify(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_up_quota_is_named_and_leaves_nothing() {
    let bucket = Bucket::new(Server::SeaweedFs).await;
    bucket.site.run(0);
    let before = bucket.objects().await;
    // In the words of Garage 2.5, which does not say `QuotaExceeded`.
    let words = "Forbidden: Bucket size quota is reached, maximum total size of objects for this \
                 bucket: 20971520. The bucket is already 12004000 bytes, and this object would add \
                 12000000 bytes.";
    bucket.proxy.inject(Op::Part(2), Fault::SayInWords(403, "AccessDenied", words), ALWAYS);
    let failed = bucket.site.run(1);
    assert!(failed.out().contains("raise the quota"), "{failed}");
    assert_eq!(bucket.objects().await, before);
    assert_eq!(bucket.server.unfinished_uploads(&bucket.name).await, Some(0));
    bucket.recovers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_at_the_server_is_no_backup() {
    if !support::is_root() {
        // Nobody else can mount a disk that fills at once.
        return;
    }
    // One snapshot of 12 MB fits, two do not.
    let server = SmallServer::new(20);
    let (client, name) = (server.client(), fresh("full"));
    client.create_bucket().bucket(&name).send().await.unwrap();
    let settings = "part_size = \"5MiB\"\nattempts = 2\n";
    let offsite = s3_storage("offsite", &server.s3(), &name) + settings;
    let site = Site::new(&configuration(&["offsite"], &offsite, ""));
    std::fs::write(site.path("dump.sh"), "head -c 12000000 /dev/urandom").unwrap();
    let keys = async || {
        let page = client.list_objects_v2().bucket(&name).send().await.unwrap();
        let keys = page.contents().iter().map(|object| object.key().unwrap().to_owned());
        keys.collect::<Vec<_>>()
    };
    site.run(0);
    let before = keys().await;
    let failed = site.run(1);
    assert!(failed.out().contains("InternalError"), "{failed}");
    assert_eq!(keys().await, before, "nothing is left of it");
    assert_eq!(unfinished_uploads(&client, &name).await, 0);
    let verify = || site.backup(["verify", "--read-data"]).expect(0);
    verify();
    server.resize(200);
    site.run(0);
    assert_eq!(site.ids().len(), 2);
    verify();
}

/// A second machine: the same configuration, another state folder.
fn other_machine(bucket: &Bucket) -> Site {
    let site = Site { dir: support::temp() };
    let (from, to) = (bucket.site.dir.path().to_str().unwrap(), site.dir.path().to_str().unwrap());
    let text = std::fs::read_to_string(bucket.site.config()).unwrap().replace(from, to);
    std::fs::write(site.config(), text).unwrap();
    std::fs::write(site.path("dump.sh"), "head -c 12000000 /dev/urandom").unwrap();
    site
}

/// The files of the bucket, which this server keeps as they are.
fn files_of(bucket: &Bucket) -> PathBuf {
    PathBuf::from(setting("HOLDFAST_TEST_S3S_ROOT")).join(&bucket.name).join("app/daily")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_another_machine_is_respected_while_it_lives_and_collected_a_day_later() {
    let bucket = Bucket::new(Server::S3s).await;
    let other = other_machine(&bucket);
    bucket.site.run(0);
    let reached = Arc::new(Notify::new());
    bucket.proxy.inject(Op::Part(2), Fault::Then(tell(&reached)), 1);
    let running = bucket.site.backup(["--strategy", "daily", "--json"]).spawn();
    reached.notified().await;
    let refused = other.run(5);
    assert!(refused.err().contains("seconds ago"), "{refused}");
    running.signal(Signal::KILL);
    running.wait();
    other.run(5);
    let folder = files_of(&bucket);
    let unfinished = || {
        sh(
            &folder,
            "for d in */; do [ -e $d/manifest.json ] || [ -z \"$(find $d -type f)\" ] || \
            echo $d; done",
            &[],
        )
    };
    let dead = unfinished();
    assert_eq!(dead.lines().count(), 1, "the refused runs left nothing");
    let age = |age: &str| sh(&folder, &format!("touch -d '{age} ago' {}*", dead.trim()), &[]);
    // Silent for longer than a living run can be: others may run, but nobody deletes it yet.
    age("6 minutes");
    other.run(0);
    assert_eq!(unfinished(), dead);
    // A heartbeat that cannot be read is nobody's, and nobody is known to be dead.
    sh(&folder, &format!("echo '{{' > {}run.json", dead.trim()), &[]);
    assert!(other.run(5).err().contains("cannot be read"));
    age("6 minutes");
    other.run(0);
    assert_eq!(unfinished(), dead);
    age("25 hours");
    other.run(0);
    assert_eq!(unfinished(), "");
    assert_eq!(bucket.site.ids().len(), 4);
    bucket.verify(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_at_once_never_hurt_each_other() {
    let stores = [(Server::SeaweedFs, false), (Server::SeaweedFs, true), (Server::S3s, false)];
    for (server, ignores_conditions) in stores {
        let bucket = Bucket::new(server).await;
        if ignores_conditions {
            bucket.proxy.ignore_conditions();
        }
        let other = other_machine(&bucket);
        let mut committed = 0;
        for _ in 0..4 {
            let both = [&bucket.site, &other]
                .map(|site| site.backup(["--strategy", "daily", "--json"]).spawn());
            for ran in both.map(support::Running::wait) {
                assert!(matches!(ran.code(), Some(0 | 5)), "{ran}");
                committed += usize::from(ran.code() == Some(0));
            }
        }
        assert_eq!(bucket.site.ids().len(), committed);
        bucket.recovers(committed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_copy_gives_way_to_another() {
    let bucket = Bucket::with(Server::S3s, &["local", "offsite"], LOCAL, "").await;
    bucket.site.run(0);
    let file = bucket.site.newest().join(DUMP);
    let mut body = std::fs::read(&file).unwrap();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    std::fs::write(&file, body).unwrap();
    let restore = |to: &str| {
        bucket.site.backup(["restore", "--strategy", "daily", "--to"]).arg(bucket.site.path(to))
    };
    let report = restore("out").arg("--json").expect(0).json();
    assert_eq!(report["storage"], "offsite", "{report}");
    assert_eq!(report["passed_over"][0]["storage"], "local", "{report}");
    restore("again").args(["--storage", "local"]).expect(4);
    bucket.verify(4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_is_not_called_damaged() {
    let bucket = Bucket::new(Server::SeaweedFs).await;
    bucket.site.run(0);
    bucket.site.ids();
    bucket.proxy.inject(Op::Get, Fault::Say(503, "SlowDown"), ALWAYS);
    let verdict = bucket.verify(1).json();
    assert_eq!(verdict["snapshots"][0]["problems"], serde_json::json!([]), "{verdict}");
    assert_ne!(verdict["snapshots"][0]["unread"], serde_json::json!([]), "{verdict}");
    bucket
        .site
        .backup(["restore", "--strategy", "daily", "--to"])
        .arg(bucket.site.path("out"))
        .expect(1);
    // Not even when the manifest itself is what does not come.
    std::fs::remove_dir_all(bucket.site.path("state")).unwrap();
    let listed = bucket.site.backup(["list", "--json"]).expect(1).json();
    assert_eq!(listed["unlisted"][0]["storage"], "offsite", "{listed}");
    bucket.recovers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_ends_soon_when_asked_to() {
    let bucket = Bucket::new(Server::SeaweedFs).await;
    bucket.site.run(0);
    for command in
        [&["verify", "--read-data"][..], &["restore", "--strategy", "daily", "--to", "out"][..]]
    {
        let reached = Arc::new(Notify::new());
        bucket.proxy.inject_at(Op::Get, DUMP, Fault::Then(tell(&reached)), ALWAYS);
        let running =
            bucket.site.backup(command).dir(bucket.site.dir.path()).patience(SOON).spawn();
        reached.notified().await;
        running.signal(Signal::TERM);
        let ended = running.wait().expect(1);
        assert!(ended.err().contains("Cancelled"), "{ended}");
        bucket.proxy.heal();
    }
    bucket
        .site
        .backup(["restore", "--strategy", "daily", "--to"])
        .arg(bucket.site.path("again"))
        .expect(0);
}

#[test]
fn what_the_catalog_remembers_of_a_manifest_proves_nothing() {
    let site = Site::new(&configuration(&["local"], LOCAL, ""));
    std::fs::write(site.path("dump.sh"), "echo good").unwrap();
    site.run(0);
    let file = site.newest().join("manifest.json");
    // It rots: the size and the time stay.
    sh(
        site.dir.path(),
        r#"touch -r "$1" stamp; sed -i 's/"completeness"/"completenes5"/' "$1"; touch -r stamp "$1""#,
        &[file.as_os_str()],
    );
    let verdict = site.backup(["verify", "--json"]).expect(4).json();
    assert!(verdict["snapshots"][0]["problems"].to_string().contains("manifest.json"), "{verdict}");
}

#[test]
fn a_storage_that_is_suddenly_empty_is_asked_about() {
    let site = Site::new(&configuration(&["local"], LOCAL, ""));
    std::fs::write(site.path("dump.sh"), "echo good").unwrap();
    site.run(0);
    site.run(0);
    std::fs::rename(site.path("store"), site.path("unmounted")).unwrap();
    let ran = site.run(3);
    assert!(ran.out().contains("not mounted"), "{ran}");
}

#[test]
fn a_state_folder_that_cannot_be_used_is_named_and_nothing_is_begun() {
    let site = Site::new(&configuration(&["local"], LOCAL, ""));
    std::fs::write(site.path("dump.sh"), "echo good").unwrap();
    std::fs::write(site.path("state"), "a file").unwrap();
    let failed = site.run(1);
    assert!(failed.err().contains("state_dir"), "{failed}");
    assert!(!site.path("store").exists());
}

#[test]
fn a_catalog_of_a_newer_version_is_gone_without() {
    let site = Site::new(&configuration(&["local"], LOCAL, ""));
    std::fs::write(site.path("dump.sh"), "echo good").unwrap();
    site.run(0);
    let catalog = site.path("state/catalog.db");
    sh(site.dir.path(), r#"sqlite3 "$1" 'PRAGMA user_version = 99'"#, &[catalog.as_os_str()]);
    let ran = site.run(0);
    assert!(ran.err().contains("newer version"), "{ran}");
    assert_eq!(site.ids().len(), 2);
}

#[test]
fn what_a_copy_of_this_machine_may_be_writing_is_left_until_its_heartbeat_is_old() {
    let site = Site::new(&configuration(&["local"], LOCAL, ""));
    let script = |text: &str| std::fs::write(site.path("dump.sh"), text).unwrap();
    script("kill -9 $PPID");
    assert_eq!(site.backup(["--strategy", "daily"]).run().code(), None);
    let dead = site.folders().pop().unwrap();
    sh(&dead, r#"sed -i 's/"boot": ".*"/"boot": "another"/' run.json"#, &[]);
    script("echo good");
    site.run(0);
    assert!(dead.join("run.json").exists(), "it may be alive there");
    sh(&dead, "touch -d '6 minutes ago' *", &[]);
    site.run(0);
    assert!(!dead.exists(), "what runs beats every minute");
    assert_eq!(site.ids().len(), 2);
}
