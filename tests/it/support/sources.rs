//! What a source needs around it, without an engine: a context, and outputs that are kept in
//! memory.

use std::any::Any;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::model::Cancel;
use holdfast::source::process::{Environment, Heard};
use holdfast::source::{ArtifactSpec, Context, Finished, Output, OutputWriter, Outputs};

/// A context with a runtime and a folder of its own.
pub struct Bench {
    pub cx: Context,
    pub folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Bench {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let environment = std::env::vars_os().collect();
        let cx = Context {
            name: "src".parse().unwrap(),
            cancel: Cancel::new(),
            runtime: runtime.handle().clone(),
            no_progress_timeout: Duration::from_secs(60),
            work_dir: folder.path().to_owned(),
            environment: Environment(environment),
            own_folders: Arc::default(),
            heard: Heard::default(),
        };
        Self { cx, folder, _runtime: runtime }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits for a future of a client.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.cx.runtime.block_on(work)
    }
}

/// An executable shell script.
pub fn script(file: &Path, body: &str) -> PathBuf {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file.to_owned()
}

type Bytes = Arc<Mutex<Vec<u8>>>;
type AtWrite = Arc<dyn Fn(usize) + Send + Sync>;

/// Keeps what a source writes.
#[derive(Default)]
pub struct Kept {
    pub streams: Mutex<Vec<(ArtifactSpec, Bytes)>>,
    /// Called at each write, with the number of bytes that were written before.
    pub at_write: Option<AtWrite>,
}

impl Kept {
    /// The bytes of the stream with this extension.
    pub fn bytes(&self, extension: &str) -> Vec<u8> {
        let streams = self.streams.lock().unwrap();
        let stream = streams.iter().find(|(spec, _)| spec.extension == extension);
        stream.unwrap_or_else(|| panic!("no stream `{extension}`")).1.lock().unwrap().clone()
    }
}

struct KeptWriter(Bytes, Option<AtWrite>);

impl Write for KeptWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut kept = self.0.lock().unwrap();
        if let Some(at_write) = &self.1 {
            at_write(kept.len());
        }
        kept.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl OutputWriter for KeptWriter {
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl Outputs for Kept {
    fn create(&self, spec: ArtifactSpec) -> std::io::Result<Output> {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        self.streams.lock().unwrap().push((spec.clone(), Arc::clone(&bytes)));
        Ok(Output::new(spec, Box::new(KeptWriter(bytes, self.at_write.clone()))))
    }

    fn finish(&self, output: Output) -> std::io::Result<Finished> {
        Ok(Finished::new(output.spec.clone(), Box::new(())))
    }
}

/// A stream that turns out to be damaged after its first bytes.
pub struct Damaged<'a>(pub &'a [u8]);

impl std::io::Read for Damaged<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "The digest is not the stored one",
            ));
        }
        std::io::Read::read(&mut self.0, buffer)
    }
}
