//! Any bytes are a tarball or an error: no panic, no endless loop, and nothing outside of the target is touched.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use holdfast::model::{ArtifactKind, Cancel};
use holdfast::source::directory::DirectoryRestorer;
use holdfast::source::process::Environment;
use holdfast::source::{Context, RestoreArtifact, RestoreOptions, Restorer, Target};
use libfuzzer_sys::fuzz_target;

/// Where the restores go; in memory, as each waits until all is written.
fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = SCRATCH.get_or_init(|| {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in /dev/shm");
        std::fs::create_dir(folder.path().join("outside")).expect("a folder");
        std::fs::write(folder.path().join("outside/file"), "untouched").expect("a file");
        folder
    });
    folder.path()
}

fuzz_target!(|bytes: &[u8]| {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));
    let place = scratch().join("target");
    let context = Context {
        name: "files".parse().expect("a name"),
        cancel: Cancel::new(),
        runtime: runtime.handle().clone(),
        no_progress_timeout: Duration::from_secs(60),
        work_dir: scratch().to_owned(),
        environment: Environment::default(),
    };
    let artifact = RestoreArtifact {
        snapshot: "20261121T013000Z-7f3a9c".to_owned(),
        name: "files.tar".to_owned(),
        kind: ArtifactKind::Tar,
        plain_bytes: None,
        facts: Default::default(),
    };
    let target = Target::Folder(place.clone());
    let _ = DirectoryRestorer.restore(&context, &artifact, &mut &*bytes, &target, &RestoreOptions::default());
    let _ = std::fs::remove_dir_all(&place);
    let outside = std::fs::read_dir(scratch()).expect("the scratch folder").count();
    let file = std::fs::read(scratch().join("outside/file")).ok();
    assert!(outside == 1 && file.as_deref() == Some(b"untouched"), "something outside of the target was touched");
});
