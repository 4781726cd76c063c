//! Limits that no test reaches with as many files as it takes: the same code with smaller ones.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Cursor, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::DirectoryRestorer;
use super::extract::{self, ExtractOptions};
use super::finish::Finisher;
use super::owner_rule::OwnerRules;
use super::remove::{ExtraAction, Extras};
use crate::archive::checked_index::CheckedIndex;
use crate::archive::cursor::IndexCursor;
use crate::archive::entry_stream::EntryStream;
use crate::archive::reader::TarReader;
use crate::archive::selection::{LIMITS, Limits, Selection, Wanted, select_within};
use crate::archive::{PathSet, Pattern};
use crate::model::{ArtifactKind, Cancel, Remarks};
use crate::source::directory::accounts::Accounts;
use crate::source::directory::{Directory, DirectoryConfig};
use crate::source::process::Environment;
use crate::source::{
    ArtifactSpec, Context, Finished, Output, OutputWriter, Outputs, RestoreArtifact, RestoreJob,
    RestoreOptions, Restorer, Source, SourceError, Streams, Target,
};

struct Memory(Vec<u8>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl OutputWriter for Memory {
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any> {
        self
    }
}

struct InMemory;

impl Outputs for InMemory {
    fn create(&self, spec: ArtifactSpec) -> std::io::Result<Output> {
        Ok(Output::new(spec, Box::new(Memory(Vec::new()))))
    }

    fn finish(&self, output: Output) -> std::io::Result<Finished> {
        let spec = output.spec.clone();
        Ok(Finished::new(spec, output.into_writer().into_any().downcast::<Memory>().unwrap()))
    }
}

/// What a dump wrote.
struct Dump {
    tar: Vec<u8>,
    index: Vec<u8>,
}

impl Streams for Dump {
    fn whole(&self) -> std::io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self.tar.as_slice()))
    }

    fn parts(&self, ranges: Vec<Range<u64>>) -> std::io::Result<Box<dyn Read + Send + '_>> {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|range| &self.tar[at(range.start)..at(range.end)])
            .copied()
            .collect();
        Ok(Box::new(Cursor::new(bytes)))
    }

    fn index(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>> {
        Ok(Some(Box::new(self.index.as_slice())))
    }

    fn missing(&self) -> std::io::Result<Option<Box<dyn Read + Send + '_>>> {
        Ok(None)
    }
}

struct World {
    runtime: tokio::runtime::Runtime,
    scratch: tempfile::TempDir,
    cancel: Cancel,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { runtime, scratch: tempfile::tempdir().unwrap(), cancel: Cancel::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn context(&self) -> Context {
        Context {
            name: "files".parse().unwrap(),
            cancel: self.cancel.clone(),
            runtime: self.runtime.handle().clone(),
            no_progress_timeout: Duration::from_secs(60),
            work_dir: self.scratch.path().to_owned(),
            environment: Environment::default(),
            own_folders: Default::default(),
            secrets: Default::default(),
            heard: Default::default(),
        }
    }

    fn dump(&self, path: PathBuf) -> Dump {
        let (include, exclude) = (Vec::new(), Vec::new());
        let config = DirectoryConfig {
            path,
            include,
            include_if_present: Vec::new(),
            exclude,
            exclude_caches: false,
            one_file_system: false,
            must_be_mount: false,
        };
        let dumped = Directory::new(config).dump(&self.context(), &InMemory).unwrap();
        let bytes = |artifact: Finished| artifact.into_written().downcast::<Memory>().unwrap().0;
        let mut artifacts = dumped.artifacts.into_iter().map(bytes);
        Dump { tar: artifacts.next().unwrap(), index: artifacts.next().unwrap() }
    }

    fn select(
        &self,
        limits: Limits,
        dump: &Dump,
        texts: &[&str],
    ) -> Result<Selection, SourceError> {
        let wanted = Wanted::Patterns(PathSet::new(&patterns(texts)).unwrap());
        select_within(limits, dump, wanted, &self.cancel).map_err(SourceError::from)
    }

    /// Restores what was chosen.
    fn restore(&self, dump: &Dump, selection: &Selection, place: &Path) {
        let mut input = dump.parts(selection.ranges.clone()).unwrap();
        let index = CheckedIndex::open(dump).ok().flatten().unwrap();
        let mut entries = EntryStream {
            reader: TarReader::new(&mut input),
            cursor: Some(IndexCursor::new(index, Some(selection))),
        };
        let names = Accounts::default();
        let finisher = Finisher::new(false, OwnerRules::resolve(&[], &names).unwrap(), names);
        let marker = super::marker::Marker::new(&artifact(), &RestoreOptions::default());
        let manner = ExtractOptions {
            marker,
            finisher,
            resumed: false,
            new: true,
            cancel: &self.cancel,
            recorded: &Default::default(),
        };
        extract::extract(&mut entries, place, manner, |_| Ok((0, Remarks::default()))).unwrap();
    }
}

fn artifact() -> RestoreArtifact {
    RestoreArtifact {
        snapshot: "20261121T013000Z-7f3a9c".to_owned(),
        name: "files.tar".to_owned(),
        kind: ArtifactKind::Tar,
        plain_bytes: None,
        of: None,
        partial: false,
        facts: serde_json::Value::Null,
    }
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

/// All paths beneath a folder.
fn paths(root: &Path) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            all.insert(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    all
}

#[test]
fn with_more_ranges_than_are_kept_the_same_is_restored_and_more_is_read_over() {
    let world = World::new();
    let root = world.path("root");
    for folder in 0..6 {
        fs::create_dir_all(root.join(format!("f{folder}"))).unwrap();
        for file in 0..10 {
            let size = (folder * 10 + file) * 977 % 20_000;
            fs::write(root.join(format!("f{folder}/{file}")), vec![b'x'; size]).unwrap();
        }
    }
    // Their contents come first in the stream, and under other names.
    for file in 0..10 {
        fs::hard_link(root.join(format!("f0/{file}")), root.join(format!("f5/link {file}")))
            .unwrap();
    }
    let dump = world.dump(root.clone());
    let wanted = ["[13579]", "f5/link [02468]", "/f2/4"];
    let free = world.select(LIMITS, &dump, &wanted).unwrap();
    assert!(free.ranges.len() > 20, "{:?}", free.ranges);
    world.restore(&dump, &free, &world.path("free"));
    let expected = paths(&world.path("free"));
    assert!(
        expected.contains("f5/link 8") && expected.contains("f2/4") && !expected.contains("f0/8"),
        "{expected:?}"
    );
    let read = |selection: &Selection| {
        selection.ranges.iter().map(|range| range.end - range.start).sum::<u64>()
    };
    for ranges in [1, 2, 3, 7, 15] {
        let bound = world.select(Limits { ranges, ..LIMITS }, &dump, &wanted).unwrap();
        assert!(bound.ranges.len() <= ranges, "{ranges}: {:?}", bound.ranges);
        assert_eq!((bound.entries, bound.bytes), (free.entries, free.bytes), "{ranges}");
        assert!(read(&bound) > read(&free) && read(&bound) <= dump.tar.len() as u64, "{ranges}");
        let place = world.path(&format!("place {ranges}"));
        world.restore(&dump, &bound, &place);
        assert_eq!(paths(&place), expected, "{ranges}");
        for path in expected.iter().filter(|path| root.join(path).is_file()) {
            assert!(
                fs::read(place.join(path)).unwrap() == fs::read(root.join(path)).unwrap(),
                "{ranges}: {path}"
            );
        }
    }
}

#[test]
fn more_hard_links_to_what_was_not_asked_for_than_are_kept_are_refused() {
    let world = World::new();
    let root = world.path("root");
    fs::create_dir_all(root.join("a")).unwrap();
    fs::create_dir_all(root.join("b")).unwrap();
    for file in 0..5 {
        fs::write(root.join(format!("a/{file}")), "x").unwrap();
        fs::hard_link(root.join(format!("a/{file}")), root.join(format!("b/{file}"))).unwrap();
    }
    let dump = world.dump(root);
    let select = |limits| world.select(limits, &dump, &["/b"]);
    let enough = Limits { borrowed: 5, borrowed_bytes: 5 * 6, ..LIMITS };
    assert_eq!(select(enough).unwrap().borrowed.len(), 5);
    for limits in [Limits { borrowed: 4, ..enough }, Limits { borrowed_bytes: 5 * 6 - 1, ..enough }]
    {
        let error = select(limits).unwrap_err().to_string();
        assert!(
            error.contains("too many hard links")
                && error.contains("restore a folder that has both"),
            "{error}"
        );
    }
}

#[test]
fn in_several_passes_the_same_is_removed_as_in_one() {
    let world = World::new();
    let root = world.path("root");
    for folder in ["a/b/c", "d", "e"] {
        fs::create_dir_all(root.join(folder)).unwrap();
        for file in 0..5 {
            fs::write(root.join(folder).join(file.to_string()), "x").unwrap();
        }
    }
    let dump = world.dump(root.clone());
    let clutter = |place: &Path| {
        let overwrite = RestoreOptions { overwrite: true, ..RestoreOptions::default() };
        let target = Target::Folder(place.to_owned());
        DirectoryRestorer
            .restore_from(
                RestoreJob {
                    cx: &world.context(),
                    artifact: &artifact(),
                    target: &target,
                    options: &overwrite,
                },
                &dump,
            )
            .unwrap();
        for folder in ["a/x/y/z", "a/b/c/x", "d/x", "x/y", "e/1 x"] {
            fs::create_dir_all(place.join(folder)).unwrap();
            for file in 0..4 {
                fs::write(place.join(folder).join(format!("extra {file}")), "x").unwrap();
            }
        }
    };
    for wanted in [&[][..], &["/a", "d"]] {
        let cx = world.context();
        let set = || (!wanted.is_empty()).then(|| PathSet::new(&patterns(wanted)).unwrap());
        let mut told = Vec::new();
        for batch in [usize::MAX, 1, 2, 5, 9] {
            let place = world.path(&format!("{} {batch}", wanted.len()));
            clutter(&place);
            let mut tell = Vec::new();
            let mut extras = Extras::new(&dump, &place, set(), &cx).in_batches_of(batch);
            extras
                .run(ExtraAction::Report(&mut |path, _| {
                    tell.push(String::from_utf8(path.to_vec()).unwrap());
                }))
                .unwrap();
            tell.sort();
            assert_eq!(extras.count, tell.len() as u64);
            if batch == usize::MAX {
                assert!(tell.len() >= 12, "{tell:?}");
                told.clone_from(&tell);
            }
            assert_eq!(tell, told, "{wanted:?}, {batch}: each once");
            let before = paths(&place);
            let folder = fs::File::open(&place).unwrap();
            let mut extras = Extras::new(&dump, &place, set(), &cx).in_batches_of(batch);
            extras.run(ExtraAction::Remove(std::os::fd::AsFd::as_fd(&folder))).unwrap();
            assert_eq!(extras.count, told.len() as u64, "{wanted:?}, {batch}");
            let left: BTreeSet<_> =
                before.into_iter().filter(|path| !told.contains(path)).collect();
            assert_eq!(paths(&place), left, "{wanted:?}, {batch}");
            assert!(!wanted.is_empty() || left == paths(&root), "{wanted:?}, {batch}");
        }
    }
}

#[test]
fn a_drill_sees_every_way_in_which_a_restored_folder_is_not_what_was_backed_up() {
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};

    use crate::model::CheckOutcome;
    use crate::source::scratch::ScratchPlace;

    let world = World::new();
    let root = world.path("root");
    fs::create_dir_all(root.join("folder")).unwrap();
    for (name, content) in [("one", "alpha"), ("two", "beta"), ("folder/three", "gamma")] {
        fs::write(root.join(name), content).unwrap();
    }
    fs::hard_link(root.join("one"), root.join("zwei")).unwrap();
    symlink("one", root.join("link")).unwrap();
    let dump = world.dump(root);
    let is_root = rustix::process::geteuid().is_root();
    type Tamper<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Tamper<'_>); 8] = [
        ("", &|_| ()),
        ("each entry there", &|place| fs::remove_file(place.join("folder/three")).unwrap()),
        ("each entry there", &|place| {
            fs::remove_file(place.join("zwei")).unwrap();
            fs::write(place.join("zwei"), "alpha").unwrap();
        }),
        ("size of each file", &|place| fs::write(place.join("two"), "longer than it was").unwrap()),
        ("content of each file", &|place| fs::write(place.join("two"), "BETA").unwrap()),
        ("content of each file", &|place| {
            fs::remove_file(place.join("link")).unwrap();
            symlink("two", place.join("link")).unwrap();
        }),
        ("mode of each entry", &|place| {
            fs::set_permissions(place.join("two"), fs::Permissions::from_mode(0o1600)).unwrap();
        }),
        ("owner of each entry", &|place| {
            if is_root {
                lchown(place.join("two"), Some(4_711), Some(4_711)).unwrap();
            }
        }),
    ];
    for (number, (what, tamper)) in cases.into_iter().enumerate() {
        let folder = world.path(&format!("drill-{number}"));
        let place = ScratchPlace {
            folder: folder.clone(),
            shared_folder: folder,
            prefix: String::new(),
            config: crate::source::ScratchConfig::default(),
        };
        let (cx, artifact) = (world.context(), artifact());
        let mut scratch = DirectoryRestorer.scratch(&cx, &artifact, &place).unwrap();
        let target = scratch.target(&artifact).unwrap();
        fs::create_dir_all(&place.folder).unwrap();
        DirectoryRestorer
            .restore_from(
                RestoreJob {
                    cx: &cx,
                    artifact: &artifact,
                    target: &target,
                    options: &RestoreOptions::default(),
                },
                &dump,
            )
            .unwrap();
        let Target::Folder(restored) = target else { panic!("a folder") };
        tamper(&restored);
        let checks = scratch.inspect(&cx, &artifact, &dump).unwrap();
        let failed: Vec<&str> = checks
            .iter()
            .filter(|check| check.outcome == CheckOutcome::Failed)
            .map(|check| check.what.as_str())
            // What is written anew has another time.
            .filter(|what| !what.starts_with("time of each entry"))
            .collect();
        if what.is_empty() || (what.starts_with("owner") && !is_root) {
            assert_eq!(failed, [""; 0], "{number}");
        } else {
            assert!(
                failed.len() == 1 && failed[0].starts_with(what),
                "{number}: {what}: {failed:?}"
            );
        }
    }
}
