//! Snapshots that somebody changed before they were restored: a true one of a random small tree,
//! with random lies in its index, in its tarball, or the same lie in both.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use holdfast::archive::index::Entry;
use holdfast::archive::{Kind, Time, write_file, write_folder};
use holdfast::model::Digest;
use holdfast::source::{RestoreOptions, Restored, SourceError};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use proptest::sample::{Index, select};

use super::changes::as_ordinary_user;
use super::corpus::with_right_checksums;
use super::world::{
    Backup, Streamed, World, config, index_of, join, mode, mtime, patterns, world_in_memory, write,
};

const PATHS: [&str; 12] =
    ["a", "A", "b", "c", "l", "a/x", "a/y", "a/b", "a/b/z", "b/x", "c/x", "sparse"];
/// Each leads somewhere that no entry may lead, or is written as no index writes it.
const HOSTILE: [&[u8]; 14] = [
    b"../outside/victim",
    b"..",
    b"/etc/harm",
    b"a/../../outside/new",
    b"",
    b".",
    b"a//x",
    b"a/",
    b"./a",
    b"a/./x",
    b"l/victim",
    b"b/new",
    b"a\0b",
    b"a/b/../../../harm",
];
const NUMBERS: [u64; 14] =
    [0, 1, 3, 511, 512, 513, 1024, 4096, 1 << 20, 1 << 34, 1 << 35, 1 << 62, 1 << 63, u64::MAX];
const KINDS: [(Kind, u8); 7] = [
    (Kind::File, b'0'),
    (Kind::Hardlink, b'1'),
    (Kind::Symlink, b'2'),
    (Kind::Char, b'3'),
    (Kind::Block, b'4'),
    (Kind::Directory, b'5'),
    (Kind::Fifo, b'6'),
];

/// Something of the tree; where something has its name already, it is left out.
#[derive(Debug, Clone)]
enum Plant {
    File(&'static str, usize),
    Holes(&'static str, u64),
    Folder(&'static str),
    Symlink(&'static str, &'static str),
    Hardlink(&'static str, &'static str),
    Fifo(&'static str),
}

fn plant(root: &Path, plants: &[Plant]) {
    for plant in plants {
        let (Plant::File(name, _)
        | Plant::Holes(name, _)
        | Plant::Folder(name)
        | Plant::Symlink(name, _)
        | Plant::Hardlink(name, _)
        | Plant::Fifo(name)) = plant;
        let path = root.join(name);
        let parent = path.parent().unwrap();
        let _ = fs::create_dir_all(parent);
        // Nothing is planted through a link or into a pipe.
        if path.symlink_metadata().is_ok()
            || !parent.symlink_metadata().is_ok_and(|parent| parent.is_dir())
        {
            continue;
        }
        match plant {
            Plant::File(_, size) => write(&path, vec![b'x'; *size]),
            Plant::Holes(_, size) => {
                let file = fs::File::create(path).unwrap();
                file.set_len(*size + 100_000).unwrap();
                file.write_all_at(b"data", 50_000).unwrap();
            }
            Plant::Folder(_) => fs::create_dir(path).unwrap(),
            Plant::Symlink(_, target) => symlink(target, path).unwrap(),
            Plant::Hardlink(_, target) => drop(fs::hard_link(root.join(target), path)),
            Plant::Fifo(_) => {
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    path,
                    rustix::fs::FileType::Fifo,
                    0o640.into(),
                    0,
                )
                .unwrap();
            }
        }
    }
}

fn any_plant() -> impl Strategy<Value = Plant> {
    let path = || select(&PATHS[..]);
    prop_oneof![
        4 => (path(), select(vec![0_usize, 1, 511, 512, 700, 5_000, 300_000]))
            .prop_map(|(path, size)| Plant::File(path, size)),
        1 => (path(), select(vec![0, 1_000, 1 << 20]))
            .prop_map(|(path, size)| Plant::Holes(path, size)),
        1 => path().prop_map(Plant::Folder),
        2 => (path(), select(vec!["a", "..", "../outside", "../outside/victim", "/etc", "x"]))
            .prop_map(|(path, to)| Plant::Symlink(path, to)),
        2 => (path(), path()).prop_map(|(path, of)| Plant::Hardlink(path, of)),
        1 => path().prop_map(Plant::Fifo),
    ]
}

/// A lie about one entry. Those that `both` say can be told by the header in the tarball too.
#[derive(Debug, Clone)]
enum Lie {
    Size(u64),
    Offset(u64),
    DataOffset(u64),
    Length(u64),
    Kind(Kind, u8),
    Path(Vec<u8>),
    PathOf(Index),
    CaseChanged,
    Target(Vec<u8>),
    DigestOf(Index),
    DataDigest,
    NoDigest,
    Time(i64),
    Mode(u32),
    Owner(u32),
    Device(u32, u32),
    Elsewhere,
    Changed,
    Remove,
    Twice,
    SwapWith(Index),
}

fn any_lie() -> impl Strategy<Value = Lie> {
    let number = || select(&NUMBERS[..]);
    let path = || {
        prop_oneof![
            select(&HOSTILE[..]).prop_map(<[u8]>::to_vec),
            select(&PATHS[..]).prop_map(|path| path.as_bytes().to_vec()),
        ]
    };
    prop_oneof![
        1 => number().prop_map(Lie::Size),
        1 => number().prop_map(Lie::Offset),
        1 => number().prop_map(Lie::DataOffset),
        1 => number().prop_map(Lie::Length),
        1 => select(&KINDS[..]).prop_map(|(kind, letter)| Lie::Kind(kind, letter)),
        4 => path().prop_map(Lie::Path),
        1 => any::<Index>().prop_map(Lie::PathOf),
        1 => Just(Lie::CaseChanged),
        2 => path().prop_map(Lie::Target),
        1 => any::<Index>().prop_map(Lie::DigestOf),
        1 => Just(Lie::DataDigest),
        1 => Just(Lie::NoDigest),
        1 => any::<i32>().prop_map(|seconds| Lie::Time(seconds.into())),
        1 => select(vec![0o700, 0o705, 0o777, 0o4755, 0o1777, 0o2755]).prop_map(Lie::Mode),
        1 => any::<u32>().prop_map(Lie::Owner),
        1 => any::<(u32, u32)>().prop_map(|(major, minor)| Lie::Device(major, minor)),
        1 => Just(Lie::Elsewhere),
        1 => Just(Lie::Changed),
        1 => Just(Lie::Remove),
        1 => Just(Lie::Twice),
        1 => any::<Index>().prop_map(Lie::SwapWith),
    ]
}

fn change_case(path: &[u8]) -> Vec<u8> {
    path.iter()
        .map(|byte| {
            if byte.is_ascii_lowercase() {
                byte.to_ascii_uppercase()
            } else {
                byte.to_ascii_lowercase()
            }
        })
        .collect()
}

/// Tells a lie in the index, and where `both` says so in the entry's own header in the tarball.
fn tell(lie: &Lie, at: Index, both: bool, entries: &mut Vec<Entry>, tar: &mut [u8]) {
    if entries.is_empty() {
        return;
    }
    let at = at.index(entries.len());
    let other = |index: &Index| entries[index.index(entries.len())].clone();
    let (other_path, other_digest) = match lie {
        Lie::PathOf(index) | Lie::DigestOf(index) => (Some(other(index).path), other(index).digest),
        _ => (None, None),
    };
    let start = usize::try_from(entries[at].data_offset).unwrap_or(usize::MAX).wrapping_sub(512);
    let mut header = tar.get_mut(start..start.wrapping_add(512)).filter(|_| both);
    let mut put = |place: usize, length: usize, bytes: &[u8]| {
        if let Some(field) =
            header.as_deref_mut().and_then(|header| header.get_mut(place..place + length))
        {
            field.fill(0);
            for (byte, new) in field.iter_mut().zip(bytes) {
                *byte = *new;
            }
        }
    };
    let entry = &mut entries[at];
    match lie {
        Lie::Size(size) => {
            entry.size = *size;
            if both {
                entry.length = *size;
                put(124, 12, format!("{size:011o}").as_bytes());
            }
        }
        Lie::Offset(offset) => entry.offset = *offset,
        Lie::DataOffset(offset) => entry.data_offset = *offset,
        Lie::Length(length) => entry.length = *length,
        Lie::Kind(kind, letter) => {
            entry.kind = *kind;
            put(156, 1, &[*letter]);
            if entry.target.is_none() && matches!(kind, Kind::Symlink | Kind::Hardlink) {
                entry.target = Some(b"a".to_vec());
                put(157, 100, b"a");
            }
        }
        Lie::Path(path) => {
            entry.path.clone_from(path);
            put(0, 100, path);
        }
        Lie::PathOf(_) => {
            entry.path = other_path.unwrap_or_default();
            put(0, 100, &entry.path);
        }
        Lie::CaseChanged => {
            entry.path = change_case(&entry.path);
            put(0, 100, &entry.path);
        }
        Lie::Target(target) => {
            entry.target = Some(target.clone());
            put(157, 100, target);
        }
        Lie::DigestOf(_) => entry.digest = other_digest,
        Lie::DataDigest => entry.data_digest = entry.digest.take(),
        Lie::NoDigest => entry.digest = None,
        Lie::Time(seconds) => entry.mtime = Time { seconds: *seconds, nanos: 0 },
        Lie::Mode(mode) => {
            entry.mode = *mode;
            put(100, 8, format!("{mode:07o}").as_bytes());
        }
        Lie::Owner(owner) => entry.uid = *owner,
        Lie::Device(major, minor) => entry.rdev = Some((*major, *minor)),
        Lie::Elsewhere => entry.archive = Some("20261121T013000Z-7f3a9c".to_owned()),
        Lie::Changed => entry.changed = true,
        Lie::Remove => drop(entries.remove(at)),
        Lie::Twice => entries.insert(at, entries[at].clone()),
        Lie::SwapWith(index) => {
            let other = index.index(entries.len());
            entries.swap(at, other);
        }
    }
}

/// What a restore is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    All,
    Part,
    Over,
    OverAndDelete,
}

/// All that lies in the folder but what is left out: path, what it is, when it was changed, and its
/// content.
fn around(folder: &Path, leave_out: &Path) -> BTreeMap<String, (u32, i64, i64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.path() != leave_out)
        {
            let metadata = entry.path().symlink_metadata().unwrap();
            let content =
                if metadata.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            let says = (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), content);
            all.insert(entry.path().display().to_string(), says);
        }
    }
    all
}

/// Everything in the target.
fn found(place: &Path) -> BTreeMap<Vec<u8>, fs::Metadata> {
    let mut all = BTreeMap::new();
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(join(place, &folder)).into_iter().flatten().map(Result::unwrap) {
            let mut path = folder.clone();
            path.extend(if folder.is_empty() { &b""[..] } else { b"/" });
            path.extend(entry.file_name().as_bytes());
            let metadata = entry.path().symlink_metadata().unwrap();
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            all.insert(path, metadata);
        }
    }
    all
}

/// What is in the target is what the index says, and nothing else but folders that lead there.
fn assert_as_the_index_says(place: &Path, entries: &[Entry], restored: &Restored) {
    let found = found(place);
    let mut said = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.path != b".") {
        assert!(
            said.insert(entry.path.clone(), entry).is_none(),
            "a path twice was restored where nothing was replaced"
        );
    }
    for path in found.keys().filter(|path| !said.contains_key(*path)) {
        let leads = |entry: &Entry| {
            entry.path.strip_prefix(path.as_slice()).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        assert!(
            found[path].is_dir() && entries.iter().any(leads),
            "{:?} is not in the index",
            String::from_utf8_lossy(path)
        );
    }
    for (path, entry) in said {
        let name = String::from_utf8_lossy(&path).into_owned();
        let is_device = |metadata: &fs::Metadata| {
            !metadata.is_file() && !metadata.is_dir() && !metadata.is_symlink()
        };
        if matches!(entry.kind, Kind::Char | Kind::Block)
            && !found.get(&path).is_some_and(is_device)
        {
            // Who may not make devices is told so; what lies in one by the index makes a folder of
            // it then.
            assert!(
                !restored.remarks.warnings.is_empty(),
                "`{name}` is missing and nothing says so"
            );
            continue;
        }
        let metadata = found.get(&path).unwrap_or_else(|| panic!("`{name}` is missing"));
        let time = Time {
            seconds: metadata.mtime(),
            nanos: u32::try_from(metadata.mtime_nsec()).unwrap(),
        };
        let full = join(place, &path);
        match entry.kind {
            Kind::File => {
                assert!(metadata.is_file() && metadata.len() == entry.size, "{name}");
                let digest =
                    entry.digest.map(|digest| (digest, Digest::of(&fs::read(&full).unwrap())));
                assert!(
                    digest.is_none_or(|(said, found)| said == found),
                    "{name} has another content"
                );
            }
            Kind::Directory => assert!(metadata.is_dir(), "{name}"),
            Kind::Symlink => {
                assert_eq!(
                    fs::read_link(&full).unwrap().as_os_str().as_bytes(),
                    entry.target.as_deref().unwrap(),
                    "{name}"
                );
            }
            Kind::Hardlink => {
                assert_eq!(metadata.ino(), found[entry.target.as_deref().unwrap()].ino(), "{name}");
                continue;
            }
            Kind::Fifo | Kind::Char | Kind::Block => assert!(is_device(metadata), "{name}"),
        }
        assert_eq!(time, entry.mtime, "{name}");
        assert!(entry.kind == Kind::Symlink || metadata.mode() & 0o7777 == entry.mode, "{name}");
    }
}

/// Dumps a tree, tells the lies, restores what is left of the truth, and looks at what became of
/// it.
fn case(
    world: &World,
    plants: &[Plant],
    lies: &[(Lie, Index, bool)],
    bytes: &[(Index, u8)],
    footer: (u64, u64),
    wish: Wish,
) {
    let outer = world.path("outer");
    let (root, place) = (outer.join("root"), outer.join("target"));
    fs::create_dir_all(outer.join("outside")).unwrap();
    fs::create_dir(&root).unwrap();
    write(&outer.join("outside/victim"), "untouched");
    plant(&root, plants);
    let Backup { mut tar, mut entries, .. } = world.dump(config(&root)).unwrap();
    for (lie, at, both) in lies {
        tell(lie, *at, *both, &mut entries, &mut tar);
    }
    for (at, byte) in bytes {
        let at = at.index(tar.len());
        tar[at] = *byte;
    }
    let tar = with_right_checksums(tar);
    let mut before_bytes = 0;
    if matches!(wish, Wish::Over | Wish::OverAndDelete) {
        // Links in the places of folders, files and links that the snapshot may have.
        fs::create_dir_all(place.join("a/b")).unwrap();
        write(&place.join("a/x"), "before");
        write(&place.join("extra"), "before");
        symlink("../outside", place.join("b")).unwrap();
        symlink("../outside/victim", place.join("l")).unwrap();
        fs::hard_link(outer.join("outside/victim"), place.join("c")).unwrap();
        before_bytes = 100;
    }
    mtime(&outer.join("outside"), 1_000, 1);
    mtime(&outer.join("outside/victim"), 2_000, 2);
    let index = Some(index_of(&entries, (tar.len() as u64 + footer.0).saturating_sub(footer.1)));
    let streams = Streamed { tar, index, fetched: std::sync::atomic::AtomicU64::new(0) };
    let options = RestoreOptions {
        overwrite: before_bytes > 0,
        delete: wish == Wish::OverAndDelete,
        paths: patterns(if wish == Wish::Part { &["a*", "c"] } else { &[] }),
        ..RestoreOptions::default()
    };
    let before = around(&outer, &place);
    let promised = entries.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));

    let _ = world.preview(&streams, &place, &options);
    assert_eq!(place.exists(), before_bytes > 0, "a preview makes nothing");
    for entry in entries.iter().filter(|entry| entry.kind == Kind::File).take(3) {
        let mut out = Vec::new();
        if write_file(&streams, &entry.path, &mut out, &world.cancel).is_ok() {
            let said = |said: &Entry| {
                said.path == entry.path
                    && said.digest.is_none_or(|digest| digest == Digest::of(&out))
            };
            assert!(entries.iter().any(said), "another content was given out");
        }
    }
    let _ = write_folder(&streams, b"a", &mut std::io::sink(), &world.cancel);

    let result = world.restore_from(&streams, &place, &options);
    assert_eq!(around(&outer, &place), before, "something beside the target was touched");
    let found = found(&place);
    let mut seen = HashMap::new();
    for metadata in found.values().filter(|metadata| metadata.is_file()) {
        seen.insert(metadata.ino(), metadata.len());
    }
    let bytes: u64 = seen.values().sum();
    // The mark of a restore that did not end is a file too.
    let mark = fs::metadata(place.join(".holdfast-restore")).map_or(0, |metadata| metadata.len());
    assert!(
        bytes <= promised.saturating_add(before_bytes + mark),
        "{bytes} bytes, and the index says {promised}"
    );
    let temporary = found
        .keys()
        .filter(|path| path.windows(18).any(|part| part == b".holdfast-restore."))
        .count();
    assert_eq!(temporary, 0, "no incomplete file stays");
    match (result, wish) {
        (Ok(restored), Wish::All) => assert_as_the_index_says(&place, &entries, &restored),
        (Ok(restored), _) => assert!(restored.files.is_some_and(|files| files.bytes <= promised)),
        (Err(error), _) => assert!(!matches!(error, SourceError::Cancelled), "{error}"),
    }
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None,
        ..Default::default() })]

    /// As an ordinary user, who may write beside the target.
    #[test]
    fn whatever_was_changed_in_a_snapshot_only_its_target_is_written_and_only_what_its_index_says(
        plants in prop::collection::vec(any_plant(), 0..10),
        lies in prop::collection::vec((any_lie(), any::<Index>(), any::<bool>()), 0..4),
        bytes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..3),
        footer in prop_oneof![6 => Just((0, 0)), 1 => (select(&NUMBERS[..11]),
            select(&NUMBERS[..11]))],
        wish in select(vec![Wish::All, Wish::All, Wish::Part, Wish::Over, Wish::OverAndDelete]),
    ) {
        let world = world_in_memory();
        mode(world.scratch.path(), 0o777);
        as_ordinary_user(|| case(&world, &plants, &lies, &bytes, footer, wish));
    }
}
