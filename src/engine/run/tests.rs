use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use serde_json::json;

use super::*;
use crate::engine::context::OpenStorage;
use crate::engine::read::by_hand::restore_artifact;
use crate::engine::read::streams::beside;
use crate::source::process::Environment;
use crate::source::{ArtifactSpec, Dumped, Finding, Finished, Outputs, SourceError};

/// A source that does what it is told.
struct Acting<F>(F);

impl<F> Source for Acting<F>
where
    F: Fn(&dyn Outputs) -> Result<Dumped, SourceError> + Send + Sync,
{
    fn dump(&self, _cx: &Context, outputs: &dyn Outputs) -> Result<Dumped, SourceError> {
        (self.0)(outputs)
    }

    fn check(&self, _cx: &Context) -> Vec<Finding> {
        Vec::new()
    }
}

/// An application with one source and one local storage.
struct World {
    folder: tempfile::TempDir,
    instance: Instance,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    /// With more settings of the strategy, and a hook of the source that counts how often it ran.
    fn with(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "instance = \"app\"\nwork_dir = \"{0}/work\"\n\
             [sources.db]\ntype = \"command\"\ncommand = [\"true\"]\n\
             before = [\"/bin/sh\", \"-c\", \"echo >> {0}/hooked\"]\n\
             [storages.local]\ntype = \"local\"\npath = \"{0}/store\"\n\
             [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n{more}",
            folder.path().display()
        );
        let environment = Environment(BTreeMap::new());
        let instance = crate::config::parse(std::path::Path::new("/a.toml"), &text, &environment);
        let instance = instance.unwrap_or_else(|error| panic!("{error}"));
        Self { folder, instance }
    }

    fn engine(&self) -> Engine {
        Engine::new(self.folder.path().join("state"), Environment(BTreeMap::new()))
    }

    fn hooked(&self) -> usize {
        std::fs::read(self.folder.path().join("hooked")).unwrap().len()
    }

    fn strategy_folder(&self) -> PathBuf {
        self.folder.path().join("store/app/daily")
    }

    /// The names in every snapshot's folder, hidden ones included.
    fn names(&self) -> Vec<String> {
        let Ok(snapshots) = std::fs::read_dir(self.strategy_folder()) else { return Vec::new() };
        let folders = snapshots.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        let mut names: Vec<String> = folders
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    async fn run(&self, source: Arc<dyn Source>) -> RunReport {
        let strategy = &self.instance.strategies["daily"];
        run_sources(&self.engine(), &self.instance, strategy, &|_| Arc::clone(&source))
            .await
            .unwrap()
    }

    async fn open(&self) -> (Engine, OpenStorage) {
        let engine = self.engine();
        let (name, storage) = self.instance.storages.first_key_value().unwrap();
        let open = OpenStorage::open(name, storage, &engine.cancel).await.unwrap();
        (engine, open)
    }

    async fn manifest(&self, id: &SnapshotId) -> crate::model::Manifest {
        let path = self.strategy_folder().join(id.as_str()).join("manifest.json");
        let (instance, strategy) = (&self.instance.name, &"daily".parse().unwrap());
        crate::model::Manifest::from_bytes(&std::fs::read(path).unwrap(), instance, strategy, id)
            .unwrap()
    }
}

fn spec(extension: &'static str) -> ArtifactSpec {
    numbered(extension, 1)
}

fn numbered(extension: &'static str, number: u32) -> ArtifactSpec {
    let number = number.try_into().unwrap();
    ArtifactSpec { extension, number, kind: ArtifactKind::Stream, bulk: true, blocks: false }
}

fn write(outputs: &dyn Outputs, spec: ArtifactSpec, body: &[u8]) -> Finished {
    let mut output = outputs.create(spec).unwrap();
    output.write_all(body).unwrap();
    outputs.finish(output).unwrap()
}

fn dumped(artifacts: Vec<Finished>) -> Dumped {
    let facts = json!({ "type": "command", "v": 1 });
    Dumped { artifacts, consistency: "command", facts, remarks: Remarks::default() }
}

/// Bytes that no compression makes smaller.
fn noise(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_one_upload_is_open() {
    let world = Arc::new(World::new());
    let open = Arc::new(Mutex::new(Vec::new()));
    let source = Acting({
        let (world, open) = (Arc::clone(&world), Arc::clone(&open));
        move |outputs: &dyn Outputs| {
            let look = || {
                let parts = world.names().iter().filter(|name| name.ends_with(".part")).count();
                open.lock().unwrap().push(parts);
            };
            let mut artifacts = Vec::new();
            for number in 1..=200 {
                let mut output = outputs.create(numbered("out", number)).unwrap();
                // The first is too large for the queues in front of the storage.
                output.write_all(&noise(if number == 1 { 24 << 20 } else { 10 })).unwrap();
                look();
                artifacts.push(outputs.finish(output).unwrap());
                look();
            }
            Ok(dumped(artifacts))
        }
    });
    let report = world.run(Arc::new(source)).await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
    let open = open.lock().unwrap().clone();
    assert_eq!(open[..2], [1, 0], "the count sees an open upload");
    assert!(open.iter().all(|count| *count <= 1), "{open:?}");
    let artifacts = world.manifest(&report.id).await.artifacts;
    assert_eq!(artifacts.len(), 201);
    assert_eq!(artifacts[199].name, "db.200.out");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_source_published_is_removed() {
    let world = World::new();
    let source = Acting(|outputs: &dyn Outputs| {
        write(outputs, spec("one"), b"1");
        write(outputs, spec("two"), b"2");
        Err(SourceError::Unsuitable("the third is missing".to_owned()))
    });
    let report = world.run(Arc::new(source)).await;
    assert_eq!(report.outcome, Outcome::Failed);
    assert_eq!(world.names(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_does_not_return_is_not_listed() {
    let world = World::new();
    let source = Acting(|outputs: &dyn Outputs| {
        write(outputs, spec("one"), b"1");
        Ok(dumped(vec![write(outputs, spec("two"), b"2")]))
    });
    let report = world.run(Arc::new(source)).await;
    let names: Vec<String> =
        world.manifest(&report.id).await.artifacts.into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["db.two", "facts.json"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_collects_a_killed_one() {
    let world = Arc::new(World::new());
    let (reached, at) = channel();
    let (go_on, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let source = Acting(move |outputs: &dyn Outputs| {
        write(outputs, spec("one"), b"1");
        reached.send(()).unwrap();
        let _ = wait.lock().unwrap().recv();
        Err(SourceError::Cancelled)
    });
    let run = tokio::spawn({
        let world = Arc::clone(&world);
        async move { world.run(Arc::new(source)).await }
    });
    tokio::task::spawn_blocking(move || at.recv().unwrap()).await.unwrap();
    run.abort();
    assert!(run.await.is_err_and(|error| error.is_cancelled()));
    assert_eq!(world.names(), ["db.one.zst", "run.json"]);
    let (engine, open) = world.open().await;
    let listing = list(&engine, &[open], &Selection::default()).await;
    assert!(listing.snapshots.is_empty());

    let other = Acting(|outputs: &dyn Outputs| Ok(dumped(vec![write(outputs, spec("two"), b"2")])));
    let report = world.run(Arc::new(other)).await;
    assert_eq!(report.outcome, Outcome::Success, "{report:?}");
    assert_eq!(world.names(), ["db.two.zst", "facts.json.zst", "manifest.json"]);
    drop(go_on);
}

#[tokio::test(flavor = "multi_thread")]
async fn numbered_artifacts_are_named_required_and_described() {
    let world = World::new();
    let source = Acting(|outputs: &dyn Outputs| {
        let tar = |number| ArtifactSpec {
            kind: ArtifactKind::Tar,
            blocks: true,
            ..numbered("tar", number)
        };
        let mut first = write(outputs, tar(1), b"1");
        let second = write(outputs, tar(2), b"2");
        first.of = Some("shop".to_owned());
        first.facts = Some(json!({ "type": "command", "v": 1, "bytes": 1 }));
        Ok(dumped(vec![first, second]))
    });
    let report = world.run(Arc::new(source)).await;
    let manifest = world.manifest(&report.id).await;
    let names: Vec<&str> = manifest.artifacts.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["db.tar", "db.blocks", "db.2.tar", "db.2.blocks", "facts.json"]);
    assert_eq!(manifest.artifacts[3].objects[0].key, "db.2.blocks.zst");
    assert_eq!(manifest.requires, ["zstd", "numbered"]);
    let text = String::from_utf8(manifest.to_bytes()).unwrap();
    assert!(!text.contains("shop"), "names of databases are content: {text}");
    let (_, open) = world.open().await;
    let facts = crate::engine::read_facts(&world.engine(), &open, &manifest, &[]).await.unwrap();
    let facts = facts.unwrap();
    let of: Vec<_> = facts.artifacts.iter().map(|one| one.of.as_deref()).collect();
    assert_eq!(of, [Some("shop"), None, None, None]);
    let restored = |number: usize| {
        restore_artifact(&manifest.id, &manifest.artifacts[number], Some(&facts)).facts
    };
    assert_eq!(restored(0)["bytes"], 1, "its own");
    assert_eq!(restored(2).get("bytes"), None, "that of the source");
    let beside = |number: usize, kind| {
        beside(&manifest, &manifest.artifacts[number], kind).map(|other| other.name.as_str())
    };
    assert_eq!(beside(0, ArtifactKind::Blocks), Some("db.blocks"));
    assert_eq!(beside(2, ArtifactKind::Blocks), Some("db.2.blocks"));
}

/// Fails so often as it is told, each time after it has published two artifacts and has a third
/// open, then succeeds.
fn unsteady(failures: u32) -> (Arc<dyn Source>, Arc<Mutex<u32>>) {
    let attempts = Arc::new(Mutex::new(0));
    let source = Acting({
        let attempts = Arc::clone(&attempts);
        move |outputs: &dyn Outputs| {
            let mut attempts = attempts.lock().unwrap();
            *attempts += 1;
            let body = format!("attempt {attempts}");
            let artifacts = vec![
                write(outputs, numbered("out", 1), body.as_bytes()),
                write(outputs, numbered("out", 2), body.as_bytes()),
            ];
            if *attempts <= failures {
                let mut open = outputs.create(numbered("out", 3)).unwrap();
                open.write_all(b"cut").unwrap();
                return Err(SourceError::BeginAgain { reason: format!("reason {attempts}") });
            }
            Ok(dumped(artifacts))
        }
    });
    (Arc::new(source), attempts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_begun_again_under_new_keys() {
    for failures in [1, 2] {
        let world = World::new();
        let (source, attempts) = unsteady(failures);
        let report = world.run(source).await;
        let attempt = failures + 1;
        assert_eq!(*attempts.lock().unwrap(), attempt);
        assert_eq!(world.hooked(), 1, "hooks are not repeated");
        assert_eq!(report.completeness, Some(Completeness::Whole));
        assert_eq!(report.outcome, Outcome::Success);
        let [note] = report.remarks.notes.kept() else { panic!("{report:?}") };
        for number in 1..=failures {
            assert!(note.reason.contains(&format!("reason {number}")), "{note:?}");
        }
        // Nothing is left of the earlier attempts.
        let own = [format!("db.2.out.try{attempt}.zst"), format!("db.out.try{attempt}.zst")];
        let [second, first] = own.each_ref().map(String::as_str);
        assert_eq!(world.names(), [second, first, "facts.json.zst", "manifest.json"]);
        let manifest = world.manifest(&report.id).await;
        assert_eq!(manifest.artifacts[0].name, "db.out");
        assert_eq!(manifest.artifacts[0].objects[0].key, first);
        let (engine, open) = world.open().await;
        let facts = crate::engine::read_facts(&engine, &open, &manifest, &[]).await.unwrap();
        let body = tokio::task::spawn_blocking({
            let (folder, runtime) = (manifest.snapshot_ref().folder(), Handle::current());
            move || {
                let artifact = &manifest.artifacts[0];
                let plain = crate::engine::read_plain(
                    &open,
                    &folder,
                    artifact,
                    &[],
                    facts.as_ref(),
                    &runtime,
                );
                std::io::read_to_string(plain.unwrap()).unwrap()
            }
        });
        assert_eq!(body.await.unwrap(), format!("attempt {attempt}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_not_begun_a_fourth_time() {
    let world = World::new();
    let (source, attempts) = unsteady(u32::MAX);
    let report = world.run(source).await;
    assert_eq!(*attempts.lock().unwrap(), 3);
    assert_eq!(report.outcome, Outcome::Failed);
    assert_eq!(report.code, Some(crate::model::ErrorCode::SourceChanged));
    assert!(report.may_pass);
    let error = report.error.unwrap();
    assert!(error.contains("db") && error.contains("reason 3"), "{error}");
    assert_eq!(world.names(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_without_a_name_go_with_the_snapshot() {
    let world = World::with("retention = { keep_last = 1 }\n");
    let first = world.run(unsteady(0).0).await;
    assert_eq!(first.outcome, Outcome::Success, "{first:?}");
    // What could not be deleted when the source was begun again.
    let folder = world.strategy_folder().join(first.id.as_str());
    std::fs::write(folder.join("db.out.try2.zst"), "of an earlier attempt").unwrap();
    let second = world.run(unsteady(0).0).await;
    assert_eq!(second.outcome, Outcome::Success, "{second:?}");
    assert!(!folder.exists(), "{:?}", world.names());
}

/// A hundred thousand tables and a million warnings.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_honest_facts_are_committed_and_restored() {
    use crate::engine::{Destination, RestoreRequest, Selection, Side, list, restore};

    const TABLES: usize = 100_000;
    let world = World::new();
    let source = Acting(|outputs: &dyn Outputs| {
        let table = |number| {
            let name = format!("table_{number}_with_a_name_as_they_are");
            json!({ "schema": "public", "name": name, "kind": "table", "rows": number })
        };
        let mut dumped = dumped(vec![write(outputs, spec("out"), b"content")]);
        let tables: Vec<_> = (0..TABLES).map(table).collect();
        dumped.facts = json!({ "type": "command", "v": 1, "bytes": 7, "tables": tables });
        for number in 0..1_000_000 {
            dumped.remarks.warn(format!("warning {number}"));
        }
        Ok(dumped)
    });
    let report = world.run(Arc::new(source)).await;
    assert_eq!(report.outcome, Outcome::Problems, "{report:?}");
    assert_eq!(report.remarks.warnings.count(), 1_000_000);
    let (engine, open) = world.open().await;
    let manifest = world.manifest(&report.id).await;
    let facts = crate::engine::read_facts(&engine, &open, &manifest, &[]).await.unwrap().unwrap();
    assert_eq!(facts.sources[0].facts["tables"].as_array().unwrap().len(), TABLES);
    let out = world.folder.path().join("out");
    let request = RestoreRequest {
        sources: Vec::new(),
        databases: Vec::new(),
        destination: Destination::Folder(out.clone()),
        options: crate::source::RestoreOptions::default(),
        identities: Vec::new(),
        work_dir: world.instance.work_dir.clone(),
        no_progress_timeout: std::time::Duration::from_secs(60),
    };
    let listing = list(&engine, std::slice::from_ref(&open), &Selection::default()).await;
    let copy = Side { storage: open, snapshot: listing.snapshots[0].clone() };
    restore(&engine, &[copy], &request).await.unwrap();
    assert_eq!(std::fs::read(out.join("db/db.out")).unwrap(), b"content");
}
