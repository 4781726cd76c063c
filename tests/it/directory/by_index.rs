//! Restores that the index drives: all of it, parts of it, one file of it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering;

use holdfast::archive::index::Entry;
use holdfast::archive::{Kind, entry_at, write_file, write_folder};
use holdfast::model::Digest;
use holdfast::source::directory::OwnerRule;
use holdfast::source::{RestoreOptions, SourceError};

use super::changes::as_ordinary_user;
use super::world::{
    Backup, Streamed, World, assert_same, config, index_of, is_root, listing, mode, owner,
    patterns, run, world, world_in_memory, write,
};

fn paths(texts: &[&str]) -> RestoreOptions {
    RestoreOptions { paths: patterns(texts), ..RestoreOptions::default() }
}

/// The names in a tree, sorted, folders with a slash.
fn names(root: &Path) -> Vec<String> {
    fn add(folder: &Path, before: &str, names: &mut Vec<String>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.map(Result::unwrap) {
            let name = format!("{before}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                names.push(format!("{name}/"));
                add(&entry.path(), &format!("{name}/"), names);
            } else {
                names.push(name);
            }
        }
    }
    let mut all = Vec::new();
    add(root, "", &mut all);
    all.sort();
    all
}

/// A tree with folders, files of several sizes, links of both kinds.
fn small_tree(world: &World) -> Backup {
    let root = world.path("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir_all(root.join("c")).unwrap();
    write(&root.join("a/1"), "one");
    write(&root.join("a/b/2"), vec![2; 700_000]);
    write(&root.join("a/b/3.txt"), "three");
    write(&root.join("c/4.txt"), "four");
    write(&root.join("z"), "");
    fs::hard_link(root.join("a/1"), root.join("c/5")).unwrap();
    fs::hard_link(root.join("a/1"), root.join("c/6")).unwrap();
    symlink("4.txt", root.join("c/link")).unwrap();
    for (name, seconds) in [("a/b", 1_000), ("a", 2_000), ("c", 3_000), ("", 4_000)] {
        super::mtime(&root.join(name), seconds, 5);
    }
    world.dump(config(&root)).unwrap()
}

#[test]
fn a_whole_tree_is_restored_by_its_index_with_all_its_attributes() {
    let world = world();
    let root = world.path("root");
    super::full_tree(&root);
    let backup = world.dump(config(&root)).unwrap();
    let place = world.path("target");
    let restored =
        world.restore_from(&backup.streams(), &place, &RestoreOptions::default()).unwrap();
    assert!(restored.remarks.warnings.is_empty(), "{:?}", restored.remarks.warnings);
    assert_same(&listing(&place, &[]), &listing(&root, &[]), "by the index");
    let files = restored.files.unwrap();
    assert_eq!(
        (files.entries, files.bytes, files.deleted),
        (backup.footer.entries, backup.footer.bytes, 0)
    );
}

#[test]
fn without_an_index_all_is_restored_and_nothing_less() {
    let world = world_in_memory();
    let backup = small_tree(&world);
    let streams = Streamed { index: None, ..backup.streams() };
    assert!(
        world.restore_from(&streams, &world.path("target"), &RestoreOptions::default()).is_ok()
    );
    assert_same(
        &listing(&world.path("target"), &[]),
        &listing(&world.path("root"), &[]),
        "without an index",
    );
    let error = world.restore_from(&streams, &world.path("other"), &paths(&["a"])).err().unwrap();
    assert!(error.to_string().contains("has no index"), "{error}");
    assert!(!world.path("other").exists());
}

/// Whoever wrote to the storage put another tarball, or another index, in the place of one.
#[test]
fn a_tarball_that_is_not_what_the_index_says_is_refused_by_path_field_found_and_expected() {
    let world = world_in_memory();
    let backup = small_tree(&world);
    let at =
        |path: &str| backup.entries.iter().position(|entry| entry.path == path.as_bytes()).unwrap();
    let lie = |path: &str, change: &dyn Fn(&mut Entry)| {
        let mut entries = backup.entries.clone();
        change(&mut entries[at(path)]);
        backup.streams_with(&entries)
    };
    let swapped = {
        let mut entries = backup.entries.clone();
        let (one, two) = (at("a/b/3.txt"), at("c/4.txt"));
        entries.swap(one, two);
        backup.streams_with(&entries)
    };
    let without_last = backup.streams_with(&backup.entries[..backup.entries.len() - 1]);
    let twice = {
        let mut entries = backup.entries.clone();
        entries.insert(at("z"), entries[at("z")].clone());
        backup.streams_with(&entries)
    };
    let short = Streamed {
        index: Some(index_of(&backup.entries, backup.tar.len() as u64 - 512)),
        ..backup.streams()
    };
    let long = Streamed {
        index: Some(index_of(&backup.entries, backup.tar.len() as u64 + 512)),
        ..backup.streams()
    };
    let bytes = |from: &[u8], to: &[u8]| {
        let mut streams = backup.streams();
        let place = streams.tar.windows(from.len()).position(|bytes| bytes == from).unwrap();
        streams.tar[place..place + from.len()].copy_from_slice(to);
        streams
    };
    let file = "a/b/3.txt";
    for (what, streams, path, words) in [
        (
            "name",
            lie(file, &|entry| entry.path = b"a/b/3.doc".to_vec()),
            "a/b/3.doc",
            "`a/b/3.txt` in the tarball",
        ),
        (
            "kind",
            lie(file, &|entry| (entry.kind, entry.size, entry.length) = (Kind::Fifo, 0, 0)),
            file,
            "fifo",
        ),
        ("size", lie(file, &|entry| (entry.size, entry.length) = (4, 4)), file, "says `4`"),
        ("small", lie(file, &|entry| entry.size = 4), file, "size `5`"),
        ("time", lie(file, &|entry| entry.mtime.seconds += 1), file, "time"),
        ("mode", lie(file, &|entry| entry.mode = 0o4777), file, "says `4777`"),
        ("owner", lie(file, &|entry| entry.uid += 1), file, "owner"),
        ("group", lie(file, &|entry| entry.gid += 1), file, "group"),
        (
            "target",
            lie("c/link", &|entry| entry.target = Some(b"/etc/passwd".to_vec())),
            "c/link",
            "`4.txt`",
        ),
        ("hard link", lie("c/5", &|entry| entry.target = Some(b"z".to_vec())), "c/5", "target"),
        ("offset", lie(file, &|entry| entry.offset += 512), file, "begins at byte"),
        ("offset back", lie(file, &|entry| entry.offset = 0), file, "begins at byte 0"),
        (
            "data offset",
            lie(file, &|entry| entry.data_offset += 512),
            file,
            "beginning of its content",
        ),
        (
            "data offset odd",
            lie(file, &|entry| entry.data_offset += 1),
            file,
            "cannot have its content",
        ),
        (
            "data offset before",
            lie(file, &|entry| entry.data_offset = entry.offset),
            file,
            "cannot have its content",
        ),
        ("length", lie(file, &|entry| entry.length = 600), file, "stored length"),
        (
            "length beyond all",
            lie(file, &|entry| entry.length = u64::MAX - 5),
            file,
            "cannot have its content",
        ),
        (
            "size beyond all",
            lie(file, &|entry| entry.size = 1 << 63),
            file,
            "cannot be 9223372036854775808 bytes",
        ),
        (
            "digest",
            lie(file, &|entry| entry.digest = Some(Digest::of(b"x"))),
            file,
            "has the content `sha256:",
        ),
        ("no digest", lie(file, &|entry| entry.digest = None), file, "has no digest"),
        ("content", bytes(b"three", b"thief"), file, "has the content `sha256:"),
        ("big content", bytes(&[2; 1000], &[3; 1000]), "a/b/2", "has the content `sha256:"),
        ("order", swapped, "c/4.txt", "begins at byte"),
        ("one less", without_last, "c/link", "tarball goes on"),
        ("one twice", twice, "z", "begins at byte"),
        ("shorter", short, "z", "it goes on where it should end"),
        ("longer", long, "z", "bytes, not"),
        (
            "out",
            lie(file, &|entry| entry.path = b"../out".to_vec()),
            "../out",
            "leads out through `..`",
        ),
        (
            "absolute",
            lie(file, &|entry| entry.path = b"/out".to_vec()),
            "/out",
            "has an absolute name",
        ),
        ("odd path", lie(file, &|entry| entry.path = b"a//x".to_vec()), "a//x", "not written as"),
        (
            "the root",
            lie(file, &|entry| entry.path = b".".to_vec()),
            ".",
            "would replace the target itself",
        ),
        (
            "elsewhere",
            lie(file, &|entry| entry.archive = Some("x".to_owned())),
            file,
            "in another snapshot",
        ),
        (
            "folder with a size",
            lie("a/b", &|entry| entry.size = 1),
            "a/b",
            "is no file and has a size",
        ),
    ] {
        let place = world.path("target");
        let error = world.restore_from(&streams, &place, &RestoreOptions::default()).err();
        let error = error.unwrap_or_else(|| panic!("{what}: it was restored"));
        let text = error.to_string();
        assert!(matches!(error, SourceError::Damaged(_)), "{what}: {error:?}");
        assert!(text.contains(&format!("`{path}` ")) && text.contains(words), "{what}: {text}");
        assert!(text.contains("is incomplete"), "{what}: {text}");
        if what.contains("content") || what == "digest" {
            assert!(!place.join(path).exists(), "{what}: a wrong content has no name");
        }
        let temporary =
            names(&place).into_iter().filter(|name| name.contains(".holdfast-restore.")).count();
        assert_eq!(temporary, 0, "{what}: no temporary file stays");
        fs::remove_dir_all(&place).unwrap();
        let mut there: Vec<_> =
            fs::read_dir(world.scratch.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, ["root"], "{what}");
    }
}

#[test]
fn an_index_that_is_cut_or_miscounted_is_told_as_such() {
    let world = world_in_memory();
    let backup = small_tree(&world);
    let index = index_of(&backup.entries, backup.tar.len() as u64);
    let text = String::from_utf8(index.clone()).unwrap();
    for length in (0..index.len()).step_by(97) {
        let streams = Streamed { index: Some(index[..length].to_vec()), ..backup.streams() };
        let place = world.path("target");
        let error = world.restore_from(&streams, &place, &RestoreOptions::default()).err().unwrap();
        assert!(
            matches!(error, SourceError::Damaged(_)) && error.to_string().contains("index"),
            "{error}"
        );
        let _ = fs::remove_dir_all(&place);
        // What restores parts reads all of the index first.
        let error = world.restore_from(&streams, &place, &paths(&["a"])).err().unwrap();
        assert!(matches!(error, SourceError::Damaged(_)) && !place.exists(), "{error}");
        assert!(write_file(&streams, b"a/1", &mut Vec::new(), &world.cancel).is_err());
    }
    let entries = format!("\"entries\":{}", backup.entries.len());
    let counts = text.replace(&entries, "\"entries\":3");
    assert_ne!(counts, text);
    let streams = Streamed { index: Some(counts.into_bytes()), ..backup.streams() };
    let error = world
        .restore_from(&streams, &world.path("target"), &RestoreOptions::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("its footer says 3"), "{error}");
}

#[test]
fn parts_are_restored_with_the_folders_that_lead_there_and_little_else_is_read() {
    let world = world_in_memory();
    let backup = small_tree(&world);
    for (texts, expected, most) in [
        (&["a/1"][..], &["a/", "a/1"][..], 8 << 10),
        (&["*.txt"], &["a/", "a/b/", "a/b/3.txt", "c/", "c/4.txt"], 12 << 10),
        (&["/c"], &["c/", "c/4.txt", "c/5", "c/6", "c/link"], 20 << 10),
        (&["b/"], &["a/", "a/b/", "a/b/2", "a/b/3.txt"], 720 << 10),
        (&["z", "c/link"], &["c/", "c/link", "z"], 8 << 10),
        (&["a", "a/1"], &["a/", "a/1", "a/b/", "a/b/2", "a/b/3.txt"], 720 << 10),
    ] {
        let streams = backup.streams();
        let place = world.path("target");
        let preview = world.preview(&streams, &place, &paths(texts)).unwrap();
        let restored = world.restore_from(&streams, &place, &paths(texts)).unwrap();
        assert_eq!(names(&place), expected, "{texts:?}");
        assert!(restored.remarks.warnings.is_empty());
        let fetched = streams.fetched.load(Ordering::Relaxed);
        assert!(fetched < most, "{texts:?}: {fetched}");
        let files = restored.files.unwrap();
        assert_eq!(files.entries, expected.len() as u64 + 1, "{texts:?}: with the root");
        assert_eq!((preview.creates, preview.bytes), (files.entries, files.bytes), "{texts:?}");
        // What is there is as it was.
        let all = listing(&world.path("root"), &["no-links"]);
        let found = listing(&place, &["no-links"]);
        let differing: Vec<_> = found.iter().filter(|line| !all.contains(line)).collect();
        // The number of links is part of a line, where there are some.
        let differing: Vec<_> = differing
            .into_iter()
            .filter(|line| !["a/1", "c/5", "c/6"].iter().any(|name| line.contains(name)))
            .collect();
        assert!(differing.is_empty(), "{texts:?}: {differing:#?}");
        fs::remove_dir_all(&place).unwrap();
    }
    let error = world
        .restore_from(&backup.streams(), &world.path("target"), &paths(&["z", "nowhere/*"]))
        .err()
        .unwrap();
    assert!(error.to_string().contains("matches `nowhere/*`"), "{error}");
    assert!(!world.path("target").exists());
}

#[test]
fn folders_that_only_lead_to_what_was_asked_for_stay_as_they_are_where_they_are_there() {
    let world = world_in_memory();
    let backup = small_tree(&world);
    let place = world.path("target");
    fs::create_dir_all(place.join("a")).unwrap();
    for name in ["a", ""] {
        mode(&place.join(name), 0o705);
    }
    let of = |name: &str| {
        let metadata = place.join(name).metadata().unwrap();
        (metadata.mode() & 0o7777, (metadata.mtime(), metadata.mtime_nsec()))
    };
    let options = RestoreOptions { overwrite: true, ..paths(&["a/b/2", "c"]) };
    let preview = world.preview(&backup.streams(), &place, &options).unwrap();
    let restored = world.restore_from(&backup.streams(), &place, &options).unwrap();
    for name in ["a", ""] {
        let (bits, (seconds, _)) = of(name);
        assert_eq!(bits, 0o705, "`{name}` was there before, and not asked for");
        assert!(seconds > 1_000_000_000, "something was made in it just now");
    }
    assert_eq!(
        (of("a/b").1, of("c").1),
        ((1_000, 5), (3_000, 5)),
        "made on the way, and asked for"
    );
    let entries = restored.files.unwrap().entries;
    assert_eq!(
        (entries, preview.creates, preview.replaces),
        (7, 7, 0),
        "what stayed as it was is not counted"
    );
    // Nothing is made in it this time.
    super::mtime(&place.join("a"), 10, 7);
    let preview = world.preview(&backup.streams(), &place, &options).unwrap();
    let restored = world.restore_from(&backup.streams(), &place, &options).unwrap();
    assert_eq!(of("a"), (0o705, (10, 7)));
    assert_eq!((restored.files.unwrap().entries, preview.creates, preview.replaces), (6, 0, 6));
    // What is asked for by its own name gets what the snapshot has.
    let options = RestoreOptions { overwrite: true, ..paths(&["a"]) };
    world.restore_from(&backup.streams(), &place, &options).unwrap();
    assert_eq!((of("a").1, of("").0), ((2_000, 5), 0o705));
}

#[test]
fn a_hard_link_whose_file_was_not_asked_for_brings_the_content_along() {
    let world = world_in_memory();
    let backup = small_tree(&world);
    let place = world.path("target");
    let streams = backup.streams();
    let restored = world.restore_from(&streams, &place, &paths(&["c"])).unwrap();
    assert!(!place.join("a").exists());
    assert_eq!(fs::read(place.join("c/5")).unwrap(), b"one");
    let (five, six) =
        (place.join("c/5").metadata().unwrap(), place.join("c/6").metadata().unwrap());
    assert_eq!((five.ino(), five.nlink()), (six.ino(), 2));
    assert_eq!(
        (place.join("c").metadata().unwrap().mtime(), restored.files.unwrap().bytes),
        (3_000, 7)
    );
    // Only one of them.
    let other = world.path("other");
    world.restore_from(&backup.streams(), &other, &paths(&["6"])).unwrap();
    assert_eq!(
        (names(&other), fs::read(other.join("c/6")).unwrap()),
        (vec!["c/".to_owned(), "c/6".to_owned()], b"one".to_vec())
    );
    // A hard link in the index to what is not there.
    let mut entries = backup.entries.clone();
    for entry in entries.iter_mut().filter(|entry| entry.kind == Kind::Hardlink) {
        entry.target = Some(b"nowhere".to_vec());
    }
    let error = world
        .restore_from(&backup.streams_with(&entries), &world.path("third"), &paths(&["6"]))
        .err()
        .unwrap();
    assert!(
        matches!(error, SourceError::Damaged(_)) && error.to_string().contains("nowhere"),
        "{error}"
    );
}

#[test]
fn one_file_or_folder_is_given_out_checked() {
    let world = world_in_memory();
    let backup = small_tree(&world);
    let streams = backup.streams();
    let file = |path: &str| {
        let mut out = Vec::new();
        write_file(&streams, path.as_bytes(), &mut out, &world.cancel)
            .map(|bytes| (bytes, out))
            .map_err(SourceError::from)
    };
    assert_eq!(file("a/b/2").unwrap(), (700_000, vec![2; 700_000]));
    assert_eq!(file("./z").unwrap(), (0, Vec::new()));
    assert_eq!(file("c/6").unwrap(), (3, b"one".to_vec()), "a hard link");
    for (path, words) in
        [("c", "is no file"), ("c/link", "is no file"), ("x", "has no `x`"), ("../x", "leads out")]
    {
        let error = file(path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let kind = |path: &str| {
        entry_at(&streams, path.as_bytes(), &world.cancel).unwrap().map(|entry| entry.kind)
    };
    assert_eq!(
        (kind("a/b/"), kind("z"), kind("y"), kind(".")),
        (Some(Kind::Directory), Some(Kind::File), None, Some(Kind::Directory))
    );

    let mut tar = Vec::new();
    assert_eq!(write_folder(&streams, b"a", &mut tar, &world.cancel).unwrap(), 5);
    let place = world.path("target");
    fs::create_dir(&place).unwrap();
    let arguments = ["-xpf", "-", "-C"].map(std::ffi::OsStr::new);
    run("tar", &[&arguments[..], &[place.as_os_str()]].concat(), &tar);
    assert_eq!(names(&place), ["a/", "a/1", "a/b/", "a/b/2", "a/b/3.txt"]);
    assert_eq!(fs::read(place.join("a/b/2")).unwrap(), vec![2; 700_000]);
    let error = write_folder(&streams, b"c", &mut Vec::new(), &world.cancel).unwrap_err();
    let error = SourceError::from(error).to_string();
    assert!(error.contains("is a hard link to `a/1`"), "{error}");
    tar.clear();
    assert_eq!(
        write_folder(&streams, b".", &mut tar, &world.cancel).unwrap(),
        backup.footer.entries
    );
    assert!(tar == backup.tar, "all of it is the tarball itself");

    // The last bytes of a damaged file are never given out.
    let mut damaged = backup.streams();
    let place = damaged.tar.windows(5).position(|bytes| bytes == b"three").unwrap();
    damaged.tar[place] = b'T';
    let mut out = Vec::new();
    let error = write_file(&damaged, b"a/b/3.txt", &mut out, &world.cancel).unwrap_err();
    let error = SourceError::from(error);
    assert!(matches!(error, SourceError::Damaged(_)) && out.is_empty(), "{error}");
    let error = write_folder(&damaged, b"a", &mut out, &world.cancel).unwrap_err();
    let error = SourceError::from(error);
    assert!(matches!(error, SourceError::Damaged(_)) && !out.ends_with(&[0; 1024]), "{error}");

    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for error in [
        write_file(&streams, b"a/1", &mut Full, &world.cancel).unwrap_err(),
        write_folder(&streams, b"a", &mut Full, &world.cancel).unwrap_err(),
    ] {
        let error = SourceError::from(error);
        assert!(
            matches!(&error,
                SourceError::Stream(error) if error.kind() == std::io::ErrorKind::StorageFull),
            "{error:?}"
        );
    }
}

fn rules(texts: &[&str]) -> Vec<OwnerRule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn entries_are_given_to_the_owners_that_were_asked_for() {
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    write(&root.join("suid"), "x");
    write(&root.join("other"), "x");
    symlink("x", root.join("link")).unwrap();
    if is_root() {
        owner(&root.join("suid"), 1_000, 1_000);
        owner(&root.join("link"), 1_000, 1_000);
        owner(&root.join("other"), 1, 1);
    }
    mode(&root.join("suid"), 0o6755);
    let backup = world.dump(config(&root)).unwrap();
    let options = RestoreOptions {
        owners: rules(&["1000:1000=2000:2001", ":daemon=:root", ":7"]),
        ..RestoreOptions::default()
    };
    let place = world.path("target");
    let of = |place: &Path, name: &str| {
        let metadata = place.join(name).symlink_metadata().unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    let restored = world.restore_from(&backup.streams(), &place, &options).unwrap();
    if is_root() {
        assert!(restored.remarks.warnings.is_empty(), "{:?}", restored.remarks.warnings);
        assert_eq!(of(&place, "suid"), (2000, 2001, 0o6755), "the same owner under another number");
        assert_eq!(of(&place, "link"), (2000, 2001, 0o777));
        assert_eq!(of(&place, "other"), (1, 0, 0o644), "by the name in the tarball");
        assert_eq!(of(&place, "").1, 7, "the last rule is for all others");
        let options = RestoreOptions { owners: rules(&["33:33"]), ..RestoreOptions::default() };
        let all = world.path("all");
        let restored = world.restore_from(&backup.streams(), &all, &options).unwrap();
        assert_eq!(of(&all, "suid"), (33, 33, 0o755), "somebody else may not act for the owner");
        assert_eq!(restored.remarks.warnings.count(), 1);
    }
    // As an ordinary user: a note, but for what belongs to him anyway.
    let home = world.path("home");
    fs::create_dir(&home).unwrap();
    mode(world.scratch.path(), 0o755);
    mode(&home, 0o777);
    if is_root() {
        let to_me = RestoreOptions { owners: rules(&["65534:65534"]), ..RestoreOptions::default() };
        let restored =
            as_ordinary_user(|| world.restore_from(&backup.streams(), &home.join("me"), &to_me))
                .unwrap();
        assert!(
            restored
                .remarks
                .warnings
                .kept()
                .iter()
                .all(|warning| !warning.note.reason.contains("only root")),
            "{:?}",
            restored.remarks.warnings
        );
        let restored =
            as_ordinary_user(|| world.restore_from(&backup.streams(), &home.join("x"), &options))
                .unwrap();
        assert!(
            restored
                .remarks
                .warnings
                .kept()
                .iter()
                .any(|warning| warning.note.reason.contains("only root"))
        );
    }
    let both =
        RestoreOptions { owners: rules(&["1"]), no_owner: true, ..RestoreOptions::default() };
    let unknown = RestoreOptions { owners: rules(&["no-such-user"]), ..RestoreOptions::default() };
    for (options, words) in [(both, "`--no-owner`"), (unknown, "`no-such-user`")] {
        let error =
            world.restore_from(&backup.streams(), &world.path("never"), &options).err().unwrap();
        assert!(error.to_string().contains(words) && !world.path("never").exists(), "{error}");
    }
}

#[test]
fn a_name_that_comes_twice_is_an_error_where_nothing_was_to_be_replaced() {
    let world = world_in_memory();
    let root = world.path("root");
    fs::create_dir_all(root.join("b")).unwrap();
    for name in ["a", "c", "l"] {
        write(&root.join(name), name);
    }
    symlink("x", root.join("s")).unwrap();
    fs::create_dir(root.join("d")).unwrap();
    let backup = world.dump(config(&root)).unwrap();
    // The tarball and the index agree, and name something twice: on a file system that takes upper
    // case for lower two names do.
    for (twice, first) in [("c", "a"), ("s", "a"), ("d", "b"), ("l", "b")] {
        let mut entries = backup.entries.clone();
        let mut streams = backup.streams();
        let entry = entries.iter_mut().find(|entry| entry.path == twice.as_bytes()).unwrap();
        entry.path = first.as_bytes().to_vec();
        let start = usize::try_from(entry.data_offset).unwrap() - 512;
        streams.tar[start] = first.as_bytes()[0];
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes().copy_from_slice(&streams.tar[start..start + 512]);
        header.set_cksum();
        streams.tar[start..start + 512].copy_from_slice(header.as_bytes());
        streams.index = Some(index_of(&entries, backup.tar.len() as u64));
        let place = world.path("target");
        let error = world
            .restore_from(&streams, &place, &RestoreOptions::default())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(&format!("`{first}` was to be new")) && error.contains("upper case"),
            "{twice}: {error}"
        );
        let overwrite = RestoreOptions { overwrite: true, ..RestoreOptions::default() };
        let result = world.restore_from(&streams, &place, &overwrite);
        assert!(result.is_ok() || twice == "l", "{twice}: {:?}", result.err());
        fs::remove_dir_all(&place).unwrap();
    }
}
