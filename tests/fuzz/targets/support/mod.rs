//! What the targets share that restore: a place in memory, something beside it that must stay as it
//! is, and what a restore is given.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use holdfast::model::{ArtifactKind, Cancel};
use holdfast::source::process::{Environment, Heard};
use holdfast::source::{Context, RestoreArtifact};

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

/// The target, which is not there yet.
pub fn place() -> PathBuf {
    scratch().join("target")
}

pub fn context() -> Context {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| tokio::runtime::Builder::new_current_thread().build()
        .expect("a runtime"));
    Context {
        name: "files".parse().expect("a name"),
        cancel: Cancel::new(),
        runtime: runtime.handle().clone(),
        no_progress_timeout: Duration::from_secs(60),
        work_dir: scratch().to_owned(),
        environment: Environment::default(),
        own_folders: std::sync::Arc::default(),
        heard: Heard::default(),
    }
}

pub fn artifact() -> RestoreArtifact {
    RestoreArtifact {
        snapshot: "20261121T013000Z-7f3a9c".to_owned(),
        name: "files.tar".to_owned(),
        kind: ArtifactKind::Tar,
        plain_bytes: None,
        of: None,
        partial: false,
        facts: Default::default(),
    }
}

/// Removes the target. What lies beside it must be as it was.
pub fn clear() {
    let _ = std::fs::remove_dir_all(place());
    let count = |folder: &Path| std::fs::read_dir(folder).expect("a folder").count();
    let file = std::fs::read(scratch().join("outside/file")).ok();
    assert!(
        count(scratch()) == 1 && count(&scratch().join("outside")) == 1
            && file.as_deref() == Some(b"untouched"),
        "something outside of the target was touched"
    );
}
