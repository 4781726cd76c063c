//! What the tests of the `directory` source stand on: trees, outputs in memory, other programs' archivers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::model::{ArtifactKind, Cancel, Warnings};
use holdfast::source::directory::index::{Entry, Footer, IndexReader};
use holdfast::source::directory::{Directory, DirectoryConfig, DirectoryRestorer, Pattern};
use holdfast::source::process::Environment;
use holdfast::source::{
    ArtifactSpec, Context, Output, OutputWriter, Outputs, RestoreArtifact, RestoreOptions, Restored, Restorer, Source,
    SourceError, Target,
};

/// A context, and the runtime that its handle belongs to.
pub(crate) struct World {
    runtime: tokio::runtime::Runtime,
    pub(crate) scratch: tempfile::TempDir,
    pub(crate) cancel: Cancel,
}

pub(crate) fn world() -> World {
    world_at(tempfile::tempdir().unwrap())
}

/// A world in memory, for tests that make very many files or restores: on a disk, each restore waits until all is written.
pub(crate) fn world_in_memory() -> World {
    world_at(tempfile::tempdir_in("/dev/shm").unwrap())
}

fn world_at(scratch: tempfile::TempDir) -> World {
    World { runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(), scratch, cancel: Cancel::new() }
}

/// What a dump gave.
pub(crate) struct Backup {
    pub(crate) tar: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) footer: Footer,
    pub(crate) facts: serde_json::Value,
    pub(crate) warnings: Warnings,
}

impl Backup {
    pub(crate) fn entry(&self, path: &str) -> &Entry {
        self.find(path).unwrap_or_else(|| panic!("`{path}` is not in the index"))
    }

    pub(crate) fn find(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path == path.as_bytes())
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.entries.iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect()
    }

    /// The content of an entry, as the index says where it is.
    pub(crate) fn content(&self, entry: &Entry) -> &[u8] {
        let start = usize::try_from(entry.data_offset).unwrap();
        &self.tar[start..start + usize::try_from(entry.length).unwrap()]
    }

    /// The reason that was given for the path, and whether content is missing.
    pub(crate) fn warning(&self, path: &str) -> Option<(String, bool)> {
        let mut all = self.warnings.kept().iter();
        all.find(|warning| warning.path.as_deref() == Some(path))
            .map(|warning| (warning.reason.clone(), warning.missing))
    }
}

type Hook = Box<dyn FnMut(&[u8]) + Send>;

struct MemoryWriter {
    bytes: Vec<u8>,
    keep: bool,
    hook: Option<Arc<Mutex<Hook>>>,
}

impl Write for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(hook) = &self.hook {
            hook.lock().unwrap()(bytes);
        }
        if self.keep {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl OutputWriter for MemoryWriter {
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

struct Memory {
    keep: bool,
    hook: Option<Arc<Mutex<Hook>>>,
}

impl Outputs for Memory {
    fn create(&self, spec: ArtifactSpec) -> std::io::Result<Output> {
        let hook = (spec.kind == ArtifactKind::Tar).then(|| self.hook.clone()).flatten();
        let keep = self.keep;
        Ok(Output::new(spec, Box::new(MemoryWriter { bytes: Vec::new(), keep, hook })))
    }
}

pub(crate) fn config(path: &Path) -> DirectoryConfig {
    DirectoryConfig { path: path.to_owned(), include: Vec::new(), exclude: Vec::new(), one_file_system: false }
}

pub(crate) fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

impl World {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn context(&self) -> Context {
        Context {
            name: "files".parse().unwrap(),
            cancel: self.cancel.clone(),
            runtime: self.runtime.handle().clone(),
            no_progress_timeout: Duration::from_secs(60),
            work_dir: self.scratch.path().to_owned(),
            environment: Environment::default(),
        }
    }

    pub(crate) fn dump(&self, config: DirectoryConfig) -> Result<Backup, SourceError> {
        self.dump_into(config, &Memory { keep: true, hook: None })
    }

    /// Calls `hook` with each piece of the tarball before it is taken.
    pub(crate) fn dump_while(
        &self,
        config: DirectoryConfig,
        hook: impl FnMut(&[u8]) + Send + 'static,
    ) -> Result<Backup, SourceError> {
        self.dump_into(config, &Memory { keep: true, hook: Some(Arc::new(Mutex::new(Box::new(hook)))) })
    }

    /// Throws the streams away, and gives the facts.
    pub(crate) fn dump_to_nowhere(&self, config: DirectoryConfig) -> Result<serde_json::Value, SourceError> {
        let dumped = Directory::new(config).dump(&self.context(), &Memory { keep: false, hook: None })?;
        Ok(dumped.facts)
    }

    fn dump_into(&self, config: DirectoryConfig, outputs: &Memory) -> Result<Backup, SourceError> {
        let dumped = Directory::new(config).dump(&self.context(), outputs)?;
        let mut streams = dumped.outputs.into_iter().map(|output| {
            let spec = output.spec.clone();
            (spec, output.into_writer().into_any().downcast::<MemoryWriter>().unwrap().bytes)
        });
        let (spec, tar) = streams.next().unwrap();
        assert_eq!(spec, ArtifactSpec { extension: "tar", kind: ArtifactKind::Tar, bulk: true, blocks: true });
        let (spec, index) = streams.next().unwrap();
        assert_eq!(spec, ArtifactSpec { extension: "index", kind: ArtifactKind::Index, bulk: false, blocks: false });
        let mut reader = IndexReader::new(index.as_slice()).unwrap();
        let entries = reader.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
        let footer = reader.footer().unwrap();
        assert_eq!(footer.stream_bytes, tar.len() as u64);
        Ok(Backup { tar, entries, footer, facts: dumped.facts, warnings: dumped.warnings })
    }

    pub(crate) fn restore(&self, tar: &[u8], place: &Path) -> Result<Restored, SourceError> {
        self.restore_with(&mut &*tar, place, &RestoreOptions::default())
    }

    pub(crate) fn restore_with(
        &self,
        input: &mut dyn Read,
        place: &Path,
        options: &RestoreOptions,
    ) -> Result<Restored, SourceError> {
        DirectoryRestorer.restore(&self.context(), &artifact(), input, &Target::Folder(place.to_owned()), options)
    }
}

pub(crate) fn artifact() -> RestoreArtifact {
    RestoreArtifact {
        name: "files.tar".to_owned(),
        kind: ArtifactKind::Tar,
        plain_bytes: None,
        facts: serde_json::Value::Null,
    }
}

/// Runs a program with `input`, and gives what it printed. It must succeed.
#[expect(clippy::disallowed_methods, reason = "other programs' archivers are the judges here")]
pub(crate) fn run(program: &str, arguments: &[&std::ffi::OsStr], input: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("`{program}` is needed for this test and could not be started: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that fails early reads no further; its exit status tells.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/directory").join(name)
}

/// The lines that an independent program writes of a tree.
pub(crate) fn listing(root: &Path, options: &[&str]) -> Vec<String> {
    let script = script("listing.py");
    let mut arguments = vec![script.as_os_str(), root.as_os_str()];
    arguments.extend(options.iter().map(std::ffi::OsStr::new));
    let text = String::from_utf8(run("python3", &arguments, &[])).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Compares trees line by line, so that a failure shows the lines that differ and not all of them.
pub(crate) fn assert_same(found: &[String], expected: &[String], what: &str) {
    let missing: Vec<_> = expected.iter().filter(|line| !found.contains(line)).collect();
    let extra: Vec<_> = found.iter().filter(|line| !expected.contains(line)).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{what}\nexpected: {missing:#?}\nfound: {extra:#?}");
}

/// Another program that writes and reads tarballs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archiver {
    Gnu,
    Bsd,
    Python,
}

impl Archiver {
    pub(crate) fn extract(self, tar: &[u8], place: &Path) {
        fs::create_dir(place).unwrap();
        match self {
            // What `by_hand` says, word by word.
            Self::Gnu => {
                let hand =
                    DirectoryRestorer.by_hand(&artifact()).replace("\"$DIR\"", &format!("'{}'", place.display()));
                run("sh", &["-c".as_ref(), hand.as_ref()], tar);
            }
            Self::Bsd => {
                let arguments = ["-xpf", "-", "--numeric-owner", "-C"].map(std::ffi::OsStr::new);
                run("bsdtar", &[&arguments[..], &[place.as_os_str()]].concat(), tar);
            }
            Self::Python => {
                run("python3", &[script("extract.py").as_os_str(), place.as_os_str()], tar);
            }
        }
    }
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
}

pub(crate) fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn mtime(path: &Path, seconds: i64, nanos: i64) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    utimensat(CWD, path, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW)
        .unwrap();
}

pub(crate) fn owner(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Joins a name that need not be UTF-8.
pub(crate) fn join(folder: &Path, name: &[u8]) -> PathBuf {
    folder.join(std::ffi::OsStr::from_bytes(name))
}
