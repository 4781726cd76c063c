//! What the tests of the `directory` source stand on: trees, outputs in memory, other programs'
//! archivers.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast::archive::index::{Entry, Footer, IndexReader};
use holdfast::archive::{Exclusion, Pattern};
use holdfast::model::{ArtifactKind, Cancel, Notes, Remarks, Warnings};
use holdfast::source::directory::{Directory, DirectoryConfig, DirectoryRestorer};
use holdfast::source::process::{Environment, Heard};
use holdfast::source::{
    ArtifactSpec, Context, Finished, Output, OutputWriter, Outputs, RestoreArtifact, RestoreJob,
    RestoreOptions, Restored, Restorer, Source, SourceError, Target,
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

/// A world in memory, for tests that make very many files or restores: on a disk, each restore
/// waits until all is written.
pub(crate) fn world_in_memory() -> World {
    world_at(tempfile::tempdir_in("/dev/shm").unwrap())
}

fn world_at(scratch: tempfile::TempDir) -> World {
    World {
        runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        scratch,
        cancel: Cancel::new(),
    }
}

/// What a dump gave.
pub(crate) struct Backup {
    pub(crate) tar: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) footer: Footer,
    pub(crate) facts: serde_json::Value,
    pub(crate) warnings: Warnings,
    pub(crate) notes: Notes,
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

    /// The file as one reads it: of a sparse one what its map says, which stands before its data.
    pub(crate) fn file(&self, entry: &Entry) -> Vec<u8> {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let headers = &self.tar[at(entry.offset)..at(entry.data_offset)];
        let content = self.content(entry);
        if !headers.windows(21).any(|window| window == b"GNU.sparse.major=1\n22") {
            return content.to_vec();
        }
        let mut lines = content.split(|byte| *byte == b'\n');
        let mut number =
            || -> usize { std::str::from_utf8(lines.next().unwrap()).unwrap().parse().unwrap() };
        let pieces: Vec<(usize, usize)> = (0..number()).map(|_| (number(), number())).collect();
        let map: usize = lines_of(content, 1 + 2 * pieces.len());
        let mut data = &content[map.next_multiple_of(512)..];
        let mut file = vec![0; at(entry.size)];
        for (offset, length) in pieces {
            let (piece, rest) = data.split_at(length);
            file[offset..offset + length].copy_from_slice(piece);
            data = rest;
        }
        assert!(data.is_empty(), "the map is that of the data");
        file
    }

    /// The content of an entry, as the index says where it is.
    pub(crate) fn content(&self, entry: &Entry) -> &[u8] {
        let start = usize::try_from(entry.data_offset).unwrap();
        &self.tar[start..start + usize::try_from(entry.length).unwrap()]
    }

    /// The reason that was given for the path, and whether content is missing.
    pub(crate) fn warning(&self, path: &str) -> Option<(String, bool)> {
        let mut all = self.warnings.kept().iter();
        all.find(|warning| warning.note.path.as_deref() == Some(path))
            .map(|warning| (warning.note.reason.clone(), warning.missing))
    }
}

/// How many bytes the first lines have.
fn lines_of(content: &[u8], count: usize) -> usize {
    content.split_inclusive(|byte| *byte == b'\n').take(count).map(<[u8]>::len).sum()
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

    fn finish(&self, output: Output) -> std::io::Result<Finished> {
        let spec = output.spec.clone();
        Ok(Finished::new(spec, output.into_writer().into_any().downcast::<MemoryWriter>().unwrap()))
    }
}

pub(crate) fn config(path: &Path) -> DirectoryConfig {
    DirectoryConfig {
        path: path.to_owned(),
        include: Vec::new(),
        include_if_present: Vec::new(),
        exclude: Vec::new(),
        exclude_caches: false,
        one_file_system: false,
        must_be_mount: false,
    }
}

pub(crate) fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

pub(crate) fn exclusions(texts: &[&str]) -> Vec<Exclusion> {
    texts.iter().map(|text| Exclusion::new(text).unwrap()).collect()
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
            own_folders: Arc::default(),
            secrets: Default::default(),
            heard: Heard::default(),
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
        self.dump_into(
            config,
            &Memory { keep: true, hook: Some(Arc::new(Mutex::new(Box::new(hook)))) },
        )
    }

    /// Throws the streams away, and gives the facts.
    pub(crate) fn dump_to_nowhere(
        &self,
        config: DirectoryConfig,
    ) -> Result<serde_json::Value, SourceError> {
        let dumped =
            Directory::new(config).dump(&self.context(), &Memory { keep: false, hook: None })?;
        Ok(dumped.facts)
    }

    fn dump_into(&self, config: DirectoryConfig, outputs: &Memory) -> Result<Backup, SourceError> {
        let dumped = Directory::new(config).dump(&self.context(), outputs)?;
        let mut streams = dumped.artifacts.into_iter().map(|artifact| {
            let spec = artifact.spec.clone();
            (spec, artifact.into_written().downcast::<MemoryWriter>().unwrap().bytes)
        });
        let (spec, tar) = streams.next().unwrap();
        assert_eq!(
            spec,
            ArtifactSpec {
                extension: "tar",
                number: ArtifactSpec::FIRST,
                kind: ArtifactKind::Tar,
                bulk: true,
                blocks: true
            }
        );
        let (spec, index) = streams.next().unwrap();
        assert_eq!(
            spec,
            ArtifactSpec {
                extension: "index",
                number: ArtifactSpec::FIRST,
                kind: ArtifactKind::Index,
                bulk: false,
                blocks: false
            }
        );
        let mut reader = IndexReader::new(index.as_slice()).unwrap();
        let entries = reader.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
        let footer = reader.footer().unwrap();
        assert_eq!(footer.stream_bytes, tar.len() as u64);
        let Remarks { warnings, notes } = dumped.remarks;
        Ok(Backup { tar, entries, footer, facts: dumped.facts, warnings, notes })
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
        DirectoryRestorer.restore(
            RestoreJob {
                cx: &self.context(),
                artifact: &artifact(),
                target: &Target::Folder(place.to_owned()),
                options,
            },
            input,
        )
    }
}

pub(crate) fn artifact() -> RestoreArtifact {
    RestoreArtifact {
        snapshot: "20261121T013000Z-7f3a9c".to_owned(),
        name: "files.tar".to_owned(),
        kind: ArtifactKind::Tar,
        plain_bytes: None,
        of: None,
        partial: false,
        facts: serde_json::json!({ "excluded": 0 }),
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
        .unwrap_or_else(|error| {
            panic!("`{program}` is needed for this test and could not be started: {error}")
        });
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that fails early reads no further; its exit status tells.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A script beside the tests.
pub(crate) fn script(name: &str) -> PathBuf {
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

/// Moves times that floating point could round either way to a millisecond.
pub(crate) fn settle_times(root: &Path) {
    run("python3", &[script("settle.py").as_os_str(), root.as_os_str()], &[]);
}

/// Compares trees line by line, so that a failure shows the lines that differ and not all of them.
pub(crate) fn assert_same(found: &[String], expected: &[String], what: &str) {
    let missing: Vec<_> = expected.iter().filter(|line| !found.contains(line)).collect();
    let extra: Vec<_> = found.iter().filter(|line| !expected.contains(line)).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{what}\nexpected: {missing:#?}\nfound: {extra:#?}"
    );
}

/// Another program that writes and reads tarballs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archiver {
    /// As `by_hand` says.
    Gnu,
    /// With all that it can.
    GnuWithLists,
    Bsd,
    Python,
}

impl Archiver {
    pub(crate) fn extract(self, tar: &[u8], place: &Path) {
        fs::create_dir(place).unwrap();
        match self {
            // What `by_hand` says, word by word.
            Self::Gnu => {
                let hand = DirectoryRestorer
                    .by_hand(&artifact())
                    .join("\n")
                    .replace("\"$DIR\"", &format!("'{}'", place.display()));
                run("sh", &["-c".as_ref(), hand.as_ref()], tar);
            }
            Self::GnuWithLists => {
                let options = [
                    "-xpf",
                    "-",
                    "--numeric-owner",
                    "--sparse",
                    "--acls",
                    "--xattrs",
                    "--xattrs-include=*",
                    "-C",
                ];
                let options = options.map(std::ffi::OsStr::new);
                run("tar", &[&options[..], &[place.as_os_str()]].concat(), tar);
            }
            Self::Bsd => {
                let arguments = ["-xpf", "-", "--numeric-owner", "-C"].map(std::ffi::OsStr::new);
                run("bsdtar", &[&arguments[..], &[place.as_os_str()]].concat(), tar);
            }
            Self::Python => {
                // As text: an ordinary user may not be let into the folder of the script.
                run(
                    "python3",
                    &["-c".as_ref(), include_str!("extract.py").as_ref(), place.as_os_str()],
                    tar,
                );
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
    utimensat(
        CWD,
        path,
        &Timestamps { last_access: time, last_modification: time },
        AtFlags::SYMLINK_NOFOLLOW,
    )
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

/// The streams of a backup, or what somebody made of them.
pub(crate) struct Streamed {
    pub(crate) tar: Vec<u8>,
    pub(crate) index: Option<Vec<u8>>,
    /// Bytes of the tarball that were asked for in parts.
    pub(crate) fetched: std::sync::atomic::AtomicU64,
}

impl holdfast::source::Streams for Streamed {
    fn whole(&self) -> std::io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self.tar.as_slice()))
    }

    fn parts(
        &self,
        ranges: Vec<std::ops::Range<u64>>,
    ) -> std::io::Result<Box<dyn Read + Send + '_>> {
        let mut bytes = Vec::new();
        let mut last = 0;
        for range in ranges {
            assert!(
                range.start >= last && range.start < range.end,
                "ranges ascend and do not overlap"
            );
            last = range.end;
            let part = self
                .tar
                .get(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap());
            bytes.extend_from_slice(
                part.ok_or_else(|| std::io::Error::other("The stream has no such part"))?,
            );
        }
        self.fetched.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(Box::new(std::io::Cursor::new(bytes)))
    }

    fn index(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>> {
        Ok(self.index.as_deref().map(|index| Box::new(index) as Box<dyn Read + Send>))
    }

    fn missing(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>> {
        Ok(None)
    }
}

/// An index of these entries, with a footer that fits.
pub(crate) fn index_of(entries: &[Entry], stream_bytes: u64) -> Vec<u8> {
    let mut text = "{\"format\":1,\"type\":\"holdfast-index\"}\n".to_owned();
    let mut bytes = 0_u64;
    for entry in entries {
        bytes = bytes.saturating_add(entry.size);
        text.push_str(&serde_json::to_string(entry).unwrap());
        text.push('\n');
    }
    let entries = entries.len();
    let footer = serde_json::json!({
        "footer": { "entries": entries, "bytes": bytes, "stream_bytes": stream_bytes },
    });
    (text + &footer.to_string() + "\n").into_bytes()
}

impl Backup {
    /// The streams that a restore reads.
    pub(crate) fn streams(&self) -> Streamed {
        self.streams_with(&self.entries)
    }

    /// The streams, with another index.
    pub(crate) fn streams_with(&self, entries: &[Entry]) -> Streamed {
        let index = Some(index_of(entries, self.tar.len() as u64));
        Streamed { tar: self.tar.clone(), index, fetched: std::sync::atomic::AtomicU64::new(0) }
    }
}

impl World {
    /// Restores by the index.
    pub(crate) fn restore_from(
        &self,
        streams: &Streamed,
        place: &Path,
        options: &RestoreOptions,
    ) -> Result<Restored, SourceError> {
        DirectoryRestorer.restore_from(
            RestoreJob {
                cx: &self.context(),
                artifact: &artifact(),
                target: &Target::Folder(place.to_owned()),
                options,
            },
            streams,
        )
    }

    pub(crate) fn preview(
        &self,
        streams: &Streamed,
        place: &Path,
        options: &RestoreOptions,
    ) -> Result<holdfast::source::Preview, SourceError> {
        DirectoryRestorer.preview(
            RestoreJob {
                cx: &self.context(),
                artifact: &artifact(),
                target: &Target::Folder(place.to_owned()),
                options,
            },
            streams,
        )
    }
}
