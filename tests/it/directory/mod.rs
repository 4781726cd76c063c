//! The `directory` source: what it keeps of a tree, what it does when the tree changes under it,
//! and what it refuses to restore.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "everything here is a test or serves one; that functions beside the tests do, clippy \
        cannot see"
)]

mod bounds;
mod by_index;
mod changes;
mod corpus;
mod hostile;
mod interrupted;
mod lies;
mod removing;
mod restoring;
mod world;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use holdfast::archive::Kind;
use holdfast::model::Digest;

use world::{
    Archiver, assert_same, config, exclusions, is_root, join, listing, mode, mtime, owner,
    patterns, run, world, write,
};

/// A tree with every kind of entry and every attribute that is kept.
fn full_tree(root: &Path) {
    fs::create_dir(root).unwrap();
    write(&root.join("empty"), "");
    write(&root.join("file"), "content\n");
    write(&root.join("block"), [7; 512]);
    write(
        &root.join("big"),
        (0..1_000_003_u32).map(|number| number.to_le_bytes()[1]).collect::<Vec<_>>(),
    );
    fs::create_dir_all(root.join("folder/deeper/empty folder")).unwrap();
    write(&root.join("folder/deeper/-dash"), "x");
    write(&root.join("folder/.hidden"), "x");
    write(&root.join("æøå ☃"), "utf-8");
    write(&join(root, b"not utf-8 \xff\xfe"), "raw");
    write(&join(root, b"new\nline\\and \"quotes\" = 10%"), "x");
    symlink(std::ffi::OsStr::new("target \u{2603}"), root.join("link ☃")).unwrap();
    symlink(join(Path::new(""), b"\xff"), root.join("link to raw")).unwrap();
    symlink("../../outside", root.join("folder/link out")).unwrap();
    symlink("/absolute", root.join("absolute link")).unwrap();
    symlink("folder", root.join("link to folder")).unwrap();
    symlink("t".repeat(150), root.join("long link")).unwrap();
    symlink(format!("{}/", "long/".repeat(200)), root.join("longer link")).unwrap();
    for length in [97, 98, 99, 100, 101, 155, 200, 255] {
        write(&root.join("n".repeat(length)), format!("{length}"));
    }
    let mut deep = root.join("d".repeat(100));
    for _ in 0..4 {
        fs::create_dir(&deep).unwrap();
        write(&deep.join("f".repeat(100)), "deep");
        deep.push("e".repeat(99));
    }
    fs::hard_link(root.join("file"), root.join("folder/hard link")).unwrap();
    fs::hard_link(root.join("file"), root.join("h".repeat(150))).unwrap();
    fs::hard_link(root.join("link to folder"), root.join("hard link to link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        0o640.into(),
        0,
    )
    .unwrap();
    for (name, bits) in [
        ("r", 0o400),
        ("x", 0o755),
        ("none", 0o000),
        ("all", 0o777),
        ("suid", 0o4755),
        ("sgid", 0o2755),
    ] {
        write(&root.join(name), name);
        mode(&root.join(name), bits);
    }
    for (name, bits) in [("sticky", 0o1777), ("setgid", 0o2770), ("read only", 0o555)] {
        fs::create_dir(root.join(name)).unwrap();
        write(&root.join(name).join("x"), "x");
        mode(&root.join(name), bits);
    }
    for (name, seconds, nanos) in [
        ("t-whole", 1_000_000_000, 0),
        ("t-nanos", 1_000_000_000, 1),
        ("t-all-nanos", 1_700_000_000, 999_999_999),
        ("t-zero", 0, 0),
        ("t-before", -1_000_000, 0),
        ("t-before-nanos", -2, 250_000_000),
        ("t-late", 8_589_934_592, 5),
    ] {
        write(&root.join(name), name);
        mtime(&root.join(name), seconds, nanos);
    }
    let attribute = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(name), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    attribute("file", "user.plain", b"value");
    write(&root.join("odd attribute"), "x");
    attribute("odd attribute", "user.a=b%c", b"x");
    attribute("file", "user.bytes", b"with = and\nnewline and \0 zero and \xff");
    attribute("folder", "user.empty", b"");
    if is_root() {
        // An access list: user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
        let entry = |tag: u16, bits: u16, id: u32| {
            [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let list = [
            2_u32.to_le_bytes().to_vec(),
            entry(1, 6, u32::MAX),
            entry(2, 4, 1000),
            entry(4, 4, u32::MAX),
            entry(16, 4, u32::MAX),
            entry(32, 0, u32::MAX),
        ]
        .concat();
        attribute("big", "system.posix_acl_access", &list);
        attribute("folder", "system.posix_acl_default", &list);
        attribute(
            "x",
            "security.capability",
            &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        );
        attribute("x", "trusted.holdfast", b"t");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("device"),
            rustix::fs::FileType::CharacterDevice,
            0o600.into(),
            rustix::fs::makedev(1, 3),
        )
        .unwrap();
        owner(&root.join("empty"), 10_001, 10_001);
        owner(&root.join("t-whole"), 3_000_000, 4_000_000);
        owner(&root.join("link ☃"), 1, 2);
        owner(&root.join("sticky"), 33, 33);
        owner(&root.join("suid"), 33, 34);
        mode(&root.join("suid"), 0o6755);
    }
    for (name, seconds) in
        [("folder/deeper", 1_100_000_000), ("folder", 1_200_000_000), ("link ☃", 1_300_000_000)]
    {
        mtime(&root.join(name), seconds, 123_456_789);
    }
    mode(root, 0o751);
    mtime(root, 1_400_000_000, 987_654_321);
}

/// Without the lines of entries whose names begin so.
fn without(lines: &[String], names: &[&str]) -> Vec<String> {
    let named = |line: &&String| !names.iter().any(|name| line.starts_with(name));
    lines.iter().filter(named).cloned().collect()
}

/// What bsdtar does not give back, of its own tarballs either: the time of the root, access lists
/// that are not text, times before 1970 with a fraction, and the sign `=` in the name of an
/// attribute.
const NOT_BY_BSDTAR: [&str; 3] = ["b'.' ", "b'./t-before-nanos' ", "b'./odd attribute' "];
/// How to look at what Python's `tarfile` extracted: it gives back neither attributes nor the times
/// of links, nor times finer than its floating point.
const PYTHON: [&str; 4] = ["holes", "no-attributes", "no-link-times", "milliseconds"];

#[test]
fn other_programs_extract_the_same_tree() {
    let world = world();
    let root = world.path("root");
    full_tree(&root);
    sparse_files(&root);
    attributes_of_every_kind(&root);
    world::settle_times(&root);
    let backup = world.dump(config(&root)).unwrap();
    assert!(backup.warnings.is_empty(), "{:?}", backup.warnings);
    for (archiver, options, except) in [
        (Archiver::Gnu, &["holes"][..], &[][..]),
        (Archiver::GnuWithLists, &["holes"], &[]),
        (Archiver::Bsd, &["holes"], &NOT_BY_BSDTAR),
        (Archiver::Python, &PYTHON, &[]),
    ] {
        let place = world.path(&format!("{archiver:?}"));
        archiver.extract(&backup.tar, &place);
        let expected = without(&listing(&root, options), except);
        assert_same(
            &without(&listing(&place, options), except),
            &expected,
            &format!("{archiver:?}"),
        );
    }
}

#[test]
fn other_programs_extract_the_same_tree_as_an_ordinary_user() {
    // The rights of nobody from the begin; only the comparing is done by whoever runs the tests,
    // who may look everywhere.
    let world = changes::as_ordinary_user(world);
    let root = world.path("root");
    let backup = changes::as_ordinary_user(|| {
        full_tree(&root);
        sparse_files(&root);
        mode(&root.join("none"), 0o600);
        world::settle_times(&root);
        world.dump(config(&root)).unwrap()
    });
    assert!(backup.warnings.is_empty(), "{:?}", backup.warnings);
    for (archiver, options, except) in [
        (Archiver::Gnu, &["holes"][..], &[][..]),
        (Archiver::GnuWithLists, &["holes"], &[]),
        (Archiver::Bsd, &["holes"], &NOT_BY_BSDTAR),
        (Archiver::Python, &PYTHON, &[]),
    ] {
        let place = world.path(&format!("{archiver:?}"));
        changes::as_ordinary_user(|| archiver.extract(&backup.tar, &place));
        let expected = without(&listing(&root, options), except);
        assert_same(
            &without(&listing(&place, options), except),
            &expected,
            &format!("{archiver:?}"),
        );
    }
}

/// Attributes of links, named pipes and devices, which only root may give; and an access list on
/// each that can have one.
fn attributes_of_every_kind(root: &Path) {
    if !is_root() {
        return;
    }
    for name in ["link ☃", "absolute link", "fifo", "device"] {
        rustix::fs::lsetxattr(
            root.join(name),
            "trusted.kind",
            name.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }
    for (list, name) in [
        ("user:1000:rw-,group:50:r--", "fifo"),
        ("user:1001:r--", "device"),
        ("user:1002:rwx,group:7:--x,mask::r-x", "file"),
        ("user:1003:r-x,default:user:1004:rwx,default:group:8:r--", "sticky"),
    ] {
        let path = root.join(name);
        run("setfacl", &["-m".as_ref(), list.as_ref(), path.as_os_str()], &[]);
    }
}

#[test]
fn access_lists_are_given_back_by_programs_that_know_them_as_text_only() {
    let world = world();
    let root = world.path("root");
    fs::create_dir_all(root.join("folder")).unwrap();
    write(&root.join("file"), "x");
    let set = |list: &str, name: &str| {
        let path = root.join(name);
        run("setfacl", &["-m".as_ref(), list.as_ref(), path.as_os_str()], &[]);
    };
    set("user:1000:rw-,group:50:r-x", "file");
    set("user:1001:rwx,default:user:1002:r--,default:mask::r--", "folder");
    let lists = |place: &Path| {
        let text = run(
            "sh",
            &["-c".as_ref(), "cd \"$0\" && getfacl -Rn .".as_ref(), place.as_os_str()],
            &[],
        );
        String::from_utf8(text).unwrap()
    };
    let backup = world.dump(config(&root)).unwrap();
    for (name, command) in
        [("gnu", "tar --acls -xpf - -C"), ("bsd", "bsdtar --no-xattrs --acls -xpf - -C")]
    {
        let place = world.path(name);
        fs::create_dir(&place).unwrap();
        run(
            "sh",
            &["-c".as_ref(), format!("{command} '{}'", place.display()).as_ref()],
            &backup.tar,
        );
        assert_eq!(lists(&place), lists(&root), "{name}");
    }
    assert!(lists(&root).contains("default:user:1002:r--"));
}

/// A way to write a tarball, and what it has no place for.
struct Way {
    /// What writes it; the folder is told it in the place of `ROOT`.
    command: &'static str,
    /// How to look at both trees.
    options: &'static [&'static str],
    /// How the lines begin that are not compared.
    lacks: &'static [&'static [&'static str]],
}

/// Octal digits of a fixed length, which hold no time before 1970 or after 2242.
const OCTAL_TIMES: &[&str] = &["b'./t-before", "b'./t-late'"];
/// And no great numbers of owners.
const OCTAL_OWNERS: &[&str] = &["b'./t-whole'"];
/// Names in a fixed place.
const LONG_NAMES: &[&str] = &["b'./nnn", "b'./ddd", "b'./hhh", "b'./long", "b'./s-long"];
const SPECIALS: &[&str] = &["b'./fifo'", "b'./device'"];
/// bsdtar writes the fraction of a time before 1970 as if it counted from 1970.
const BEFORE_NANOS: &[&str] = &["b'./t-before-nanos' "];
/// Python's `tarfile` knows hard links of files only.
const LINKED_LINKS: &[&str] = &["b'./link to folder'", "b'./hard link to link'"];

const COARSE: &[&str] = &["no-attributes", "seconds", "holes"];
const COARSE_WHOLE: &[&str] = &["no-attributes", "seconds"];

#[rustfmt::skip]
const WAYS: &[Way] = &[
    Way { command: "tar --format=v7 -C ROOT -cf - .", options: COARSE_WHOLE, lacks: &[OCTAL_TIMES,
        OCTAL_OWNERS, LONG_NAMES, SPECIALS] },
    Way { command: "tar --format=oldgnu -C ROOT -cf - .", options: COARSE_WHOLE, lacks: &[] },
    Way { command: "tar --format=oldgnu --sparse -C ROOT -cf - .", options: COARSE, lacks: &[] },
    Way { command: "tar --format=ustar -C ROOT -cf - .", options: COARSE_WHOLE,
        lacks: &[OCTAL_TIMES, OCTAL_OWNERS, LONG_NAMES] },
    Way { command: "tar --format=gnu -C ROOT -cf - .", options: COARSE_WHOLE, lacks: &[] },
    Way { command: "tar --format=gnu --sparse -C ROOT -cf - .", options: COARSE, lacks: &[] },
    Way { command: "tar --format=posix --xattrs --xattrs-include='*' -C ROOT -cf - .",
        options: &[], lacks: &[] },
    Way { command: "tar --format=posix --xattrs --xattrs-include='*' --sparse -C ROOT -cf - .",
        options: &["holes"], lacks: &[] },
    Way { command: "tar --format=posix --xattrs --xattrs-include='*' --sparse --sparse-version=0.1 \
        -C ROOT -cf - .", options: &["holes"], lacks: &[] },
    Way { command: "bsdtar --format=pax --acls --xattrs -C ROOT -cf - .", options: &["holes"],
        lacks: &[BEFORE_NANOS] },
    Way { command: "bsdtar --format=gnutar --no-acls -C ROOT -cf - .", options: COARSE_WHOLE,
        lacks: &[OCTAL_TIMES] },
    Way { command: "bsdtar --format=ustar --no-acls -C ROOT -cf - .", options: COARSE_WHOLE,
        lacks: &[OCTAL_TIMES, OCTAL_OWNERS, LONG_NAMES] },
    Way { command: "bsdtar --format=v7 --no-acls -C ROOT -cf - .", options: COARSE_WHOLE,
        lacks: &[OCTAL_TIMES, OCTAL_OWNERS, LONG_NAMES, SPECIALS] },
    Way { command: "python3 CREATE ustar ROOT", options: COARSE_WHOLE, lacks: &[OCTAL_TIMES,
        OCTAL_OWNERS, LONG_NAMES, LINKED_LINKS] },
    Way { command: "python3 CREATE gnu ROOT", options: COARSE_WHOLE, lacks: &[LINKED_LINKS] },
    Way { command: "python3 CREATE pax ROOT", options: &["no-attributes", "milliseconds"],
        lacks: &[LINKED_LINKS] },
];

#[test]
fn tarballs_of_other_programs_in_every_format_are_restored() {
    let world = world();
    let root = world.path("root");
    full_tree(&root);
    sparse_files(&root);
    attributes_of_every_kind(&root);
    world::settle_times(&root);
    let script = world::script("create.py");
    for (number, Way { command, options, lacks }) in WAYS.iter().enumerate() {
        let place = world.path(&format!("place {number}"));
        // What the format has no place for is left out, and the program says so with its status.
        let text =
            command.replace("ROOT", "\"$0\"").replace("CREATE", "\"$1\"") + " || test $? -le 2";
        let tar =
            run("sh", &["-c".as_ref(), text.as_ref(), root.as_os_str(), script.as_os_str()], &[]);
        let restored =
            world.restore(&tar, &place).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert!(
            !is_root() || restored.remarks.warnings.is_empty(),
            "{command}: {:?}",
            restored.remarks.warnings
        );
        let except = lacks.concat();
        let expected = without(&listing(&root, options), &except);
        assert_same(&without(&listing(&place, options), &except), &expected, command);
        fs::remove_dir_all(&place).unwrap();
    }
}

/// Files with holes: at the front, in the middle, at the end, nothing else, very many of them; and
/// names of every sort.
fn sparse_files(root: &Path) {
    use std::os::unix::fs::FileExt;
    let many: Vec<u64> = (0..1_000).map(|number| number * 10_000).collect();
    let long = format!("s-long {}", "n".repeat(200));
    fs::create_dir(root.join("s-folder")).unwrap();
    for (name, size, pieces) in [
        (b"s-front".as_slice(), 300_000, &[290_000_u64][..]),
        (
            b"s-middle",
            3_000_000,
            &[0, 200_000, 400_000, 600_000, 800_000, 1_000_000, 1_200_000, 2_000_000, 2_999_990],
        ),
        (b"s-end", 1_000_000, &[0]),
        (b"s-only", 1_000_000, &[]),
        (b"s-many", 10_000_000, &many),
        (long.as_bytes(), 100_000, &[50_000]),
        (b"s-raw \xff", 100_000, &[50_000]),
        ("s-folder/s ☃ \n".as_bytes(), 100_000, &[50_000]),
    ] {
        let file = fs::File::create(join(root, name)).unwrap();
        file.set_len(size).unwrap();
        for offset in pieces {
            file.write_all_at(b"data", *offset).unwrap();
        }
    }
}

#[test]
fn a_sparse_file_is_stored_without_its_holes_and_digested_as_one_reads_it() {
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    sparse_files(&root);
    let backup = world.dump(config(&root)).unwrap();
    let size = |name: &str| fs::metadata(root.join(name)).unwrap().len();
    for entry in backup.entries.iter().filter(|entry| entry.kind == Kind::File) {
        let name = String::from_utf8_lossy(&entry.path);
        let content = fs::read(join(&root, &entry.path)).unwrap();
        assert!(backup.file(entry) == content, "{name}");
        assert_eq!(
            (entry.size, entry.digest),
            (content.len() as u64, Some(Digest::of(&content))),
            "{name}"
        );
        assert_eq!(entry.data_digest, None);
    }
    assert_eq!(backup.entry("s-only").length, 512, "a map and no data");
    assert!(backup.content(backup.entry("s-only")).starts_with(b"1\n1000000\n0\n\0"));
    assert!(backup.content(backup.entry("s-end")).starts_with(b"2\n0\n4096\n1000000\n0\n\0"));
    assert!(backup.content(backup.entry("s-middle")).starts_with(b"9\n0\n4096\n"));
    assert!(backup.entry("s-many").length < size("s-many") / 2);
    assert_eq!(backup.facts["bytes"], backup.footer.bytes);
    assert!(
        backup.footer.bytes > backup.footer.stream_bytes,
        "sizes are counted as one reads the files"
    );
}

#[test]
fn a_file_of_more_holes_than_are_worth_digesting_has_the_digest_of_its_data() {
    use std::os::unix::fs::FileExt;
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    let size = (16 << 30) + 12_288_u64;
    let file = fs::File::create(root.join("huge")).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    file.write_all_at(&[2; 4096], 8 << 30).unwrap();
    let backup = world.dump(config(&root)).unwrap();
    let entry = backup.entry("huge");
    assert_eq!((entry.size, entry.length, entry.digest), (size, 512 + 8192, None));
    assert_eq!(entry.data_digest, Some(Digest::of(&[[1; 4096], [2; 4096]].concat())));
    let place = world.path("extracted");
    Archiver::Gnu.extract(&backup.tar, &place);
    let extracted = fs::File::open(place.join("huge")).unwrap();
    let mut piece = [0; 4096];
    extracted.read_exact_at(&mut piece, 8 << 30).unwrap();
    assert!(piece == [2; 4096] && extracted.metadata().unwrap().len() == size);
}

#[test]
fn a_restore_gives_back_the_same_tree() {
    let world = world();
    let root = world.path("root");
    full_tree(&root);
    sparse_files(&root);
    attributes_of_every_kind(&root);
    let backup = world.dump(config(&root)).unwrap();
    let expected = listing(&root, &["holes"]);
    // As one reads any tarball, and driven by the index.
    let (alone, by_index) = (world.path("alone"), world.path("by index"));
    let restored = world.restore(&backup.tar, &alone).unwrap();
    assert!(!is_root() || restored.remarks.warnings.is_empty(), "{:?}", restored.remarks.warnings);
    assert_same(&listing(&alone, &["holes"]), &expected, "our own restore");
    let options = holdfast::source::RestoreOptions::default();
    let restored = world.restore_from(&backup.streams(), &by_index, &options).unwrap();
    assert!(!is_root() || restored.remarks.warnings.is_empty(), "{:?}", restored.remarks.warnings);
    assert_same(&listing(&by_index, &["holes"]), &expected, "our own restore by the index");
}

/// Access lists as text, holes in each of the three ways of pax: what GNU tar writes on request.
#[test]
fn what_gnu_tar_and_bsdtar_write_of_access_lists_and_holes_is_restored() {
    let world = world();
    let root = world.path("root");
    full_tree(&root);
    sparse_files(&root);
    attributes_of_every_kind(&root);
    for (name, options) in [
        ("sparse 0.0", "--sparse --sparse-version=0.0"),
        ("sparse 0.1", "--sparse --sparse-version=0.1"),
        ("sparse 1.0", "--sparse --sparse-version=1.0"),
    ] {
        let place = world.path(name);
        let lists =
            "--format=posix --acls --xattrs --xattrs-include='*' --xattrs-exclude='system.*'";
        let command = format!("tar {lists} {options} -C '{}' -cf - .", root.display());
        let tar = run("sh", &["-c".as_ref(), command.as_ref()], &[]);
        world.restore(&tar, &place).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_same(&listing(&place, &["holes"]), &listing(&root, &["holes"]), name);
    }
}

#[test]
fn the_index_says_where_everything_is() {
    let world = world();
    let root = world.path("root");
    full_tree(&root);
    let backup = world.dump(config(&root)).unwrap();
    let mut end = 0;
    for entry in &backup.entries {
        let place = String::from_utf8_lossy(&entry.path);
        assert_eq!(entry.offset, end, "{place} begins where the one before it ends");
        assert!(entry.data_offset >= entry.offset + 512 && entry.data_offset % 512 == 0, "{place}");
        end = (entry.data_offset + entry.length).next_multiple_of(512);
        if entry.kind == Kind::File {
            assert_eq!(entry.digest, Some(Digest::of(backup.content(entry))), "{place}");
            assert!(
                backup.content(entry) == fs::read(join(&root, &entry.path)).unwrap(),
                "{place}"
            );
            assert_eq!(entry.size, entry.length);
        } else {
            assert_eq!((entry.size, entry.length, entry.digest), (0, 0, None), "{place}");
        }
        assert!(!entry.changed && entry.archive.is_none());
    }
    assert_eq!(end + 1024, backup.footer.stream_bytes);
    assert_eq!(backup.footer.entries, listing(&root, &[]).len() as u64);
    assert_eq!(backup.entries[0].path, b".");
    assert_eq!(backup.entry("folder/hard link").kind, Kind::Hardlink);
    assert_eq!(backup.entry("folder/hard link").target.as_deref(), Some(b"file".as_slice()));
    let count = |kind| backup.entries.iter().filter(|entry| entry.kind == kind).count() as u64;
    assert_eq!(backup.facts["files"], count(Kind::File));
    assert_eq!(backup.facts["directories"], count(Kind::Directory));
    assert_eq!(backup.facts["hardlinks"], count(Kind::Hardlink));
    assert_eq!(backup.facts["entries"], backup.footer.entries);
    assert_eq!(backup.facts["bytes"], backup.footer.bytes);
}

#[test]
fn two_dumps_of_a_tree_are_the_same_bytes_and_so_is_one_of_the_restored_tree() {
    let world = world();
    let root = world.path("root");
    full_tree(&root);
    let first = world.dump(config(&root)).unwrap();
    assert!(world.dump(config(&root)).unwrap().tar == first.tar);
    let place = world.path("restored");
    world.restore(&first.tar, &place).unwrap();
    assert!(world.dump(config(&place)).unwrap().tar == first.tar);
}

#[test]
fn only_what_is_included_and_not_excluded_is_taken() {
    let world = world();
    let root = world.path("root");
    for folder in ["attachments/ab", "attachments/tmp", "analyses/deep/er", "conf"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for file in [
        "attachments/ab/x",
        "attachments/tmp/y",
        "analyses/deep/er/z",
        "conf/a.yml",
        "conf/b.txt",
        "top.tmp",
    ] {
        write(&root.join(file), file);
    }
    let mut chosen = config(&root);
    chosen.exclude = exclusions(&["*.tmp", "/attachments/tmp/**", "analyses"]);
    let backup = world.dump(chosen.clone()).unwrap();
    let expected = [
        ".",
        "attachments",
        "attachments/ab",
        "attachments/ab/x",
        "attachments/tmp",
        "conf",
        "conf/a.yml",
        "conf/b.txt",
    ];
    assert_eq!(backup.paths(), expected);
    assert_eq!(backup.facts["excluded"], 3);
    chosen.include = patterns(&["/attachments/**", "*.yml", "nothing"]);
    let backup = world.dump(chosen).unwrap();
    let expected = [
        ".",
        "attachments",
        "attachments/ab",
        "attachments/ab/x",
        "attachments/tmp",
        "conf",
        "conf/a.yml",
    ];
    assert_eq!(backup.paths(), expected);
}

#[test]
fn what_a_pattern_left_out_is_taken_back_by_a_later_one_but_not_from_a_folder_that_is_left_out() {
    let world = world();
    let root = world.path("root");
    fs::create_dir_all(root.join("tmp/keep")).unwrap();
    fs::create_dir_all(root.join("gone")).unwrap();
    for file in ["a.log", "keep.log", "tmp/x", "tmp/keep/y", "gone/keep.log"] {
        write(&root.join(file), file);
    }
    let mut chosen = config(&root);
    chosen.exclude = exclusions(&[
        "*.log",
        "!keep.log",
        "/tmp/**",
        "!/tmp/keep",
        "!/tmp/keep/**",
        "/gone",
        "!/gone/keep.log",
    ]);
    let backup = world.dump(chosen).unwrap();
    assert_eq!(backup.paths(), [".", "keep.log", "tmp", "tmp/keep", "tmp/keep/y"]);
    assert_eq!(backup.facts["excluded"], 3);
}

#[test]
fn of_folders_marked_as_caches_the_mark_is_taken_on_request() {
    let world = world();
    let root = world.path("root");
    let tag = "Signature: 8a477f597d28d172789f06886806bc55\n# a cache";
    for (folder, tag) in [
        ("cache", tag),
        ("deep/cache", tag),
        ("other", "Signature: 8a477f597d28d172789f0688"),
        ("empty", ""),
    ] {
        fs::create_dir_all(root.join(folder).join("folder")).unwrap();
        write(&root.join(folder).join("folder/x"), "x");
        write(&root.join(folder).join("CACHEDIR.TAG"), tag);
    }
    fs::create_dir_all(root.join("link")).unwrap();
    symlink("../cache/CACHEDIR.TAG", root.join("link/CACHEDIR.TAG")).unwrap();
    fs::create_dir_all(root.join("folder/CACHEDIR.TAG/x")).unwrap();
    let mut chosen = config(&root);
    assert!(
        world.dump(chosen.clone()).unwrap().find("cache/folder/x").is_some(),
        "only on request"
    );
    chosen.exclude_caches = true;
    let backup = world.dump(chosen.clone()).unwrap();
    let expected = [
        ".",
        "cache",
        "cache/CACHEDIR.TAG",
        "deep",
        "deep/cache",
        "deep/cache/CACHEDIR.TAG",
        "empty",
        "empty/CACHEDIR.TAG",
        "empty/folder",
        "empty/folder/x",
        "folder",
        "folder/CACHEDIR.TAG",
        "folder/CACHEDIR.TAG/x",
        "link",
        "link/CACHEDIR.TAG",
        "other",
        "other/CACHEDIR.TAG",
        "other/folder",
        "other/folder/x",
    ];
    assert_eq!(backup.paths(), expected);
    assert_eq!(backup.facts["excluded"], 2);
    // GNU tar follows the link to see a tag.
    let command = format!(
        "tar --exclude-caches --exclude=./link/CACHEDIR.TAG -C '{}' -cf - . | tar -tf - | sed -E \
         's#^./##; s#/$##; s#^$#.#' | grep -v ^link/ | LC_ALL=C sort",
        root.display()
    );
    let by_tar = String::from_utf8(run("sh", &["-c".as_ref(), command.as_ref()], &[])).unwrap();
    let mut ours = backup.paths();
    ours.retain(|path| !path.starts_with("link/"));
    ours.sort();
    assert_eq!(ours, by_tar.lines().collect::<Vec<_>>());
    write(&root.join("CACHEDIR.TAG"), tag);
    assert_eq!(
        world.dump(chosen).unwrap().entries.len(),
        expected.len() + 1,
        "the root was asked for by name"
    );
}

#[test]
fn other_file_systems_are_left_out_on_request() {
    let world = world();
    // Every Linux system has a file system of its own mounted there.
    let mut chosen = config(Path::new("/dev"));
    chosen.include = patterns(&["/pts"]);
    assert!(world.dump(chosen.clone()).unwrap().paths().contains(&"pts/ptmx".to_owned()));
    chosen.one_file_system = true;
    assert_eq!(world.dump(chosen).unwrap().paths(), [".", "pts"], "the place of the mount is kept");
}

#[test]
fn a_root_that_is_missing_or_no_folder_is_fatal_and_check_says_so_before() {
    use holdfast::source::{Level, Source, directory::Directory};
    let world = world();
    write(&world.path("file"), "x");
    symlink("nowhere", world.path("dangling")).unwrap();
    for (name, reason) in
        [("missing", "does not exist"), ("file", "is not a folder"), ("dangling", "does not exist")]
    {
        let path = world.path(name);
        let error = world.dump(config(&path)).err().unwrap().to_string();
        assert!(error.contains(reason) && error.contains(name), "{error}");
        let findings = Directory::new(config(&path)).check(&world.context());
        assert!(matches!(&findings[..], [finding] if finding.level == Level::Error
                && finding.message == error));
    }
    let findings = Directory::new(config(world.scratch.path())).check(&world.context());
    assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
    symlink(world.scratch.path(), world.path("link")).unwrap();
    assert!(
        world.dump(config(&world.path("link"))).unwrap().find("file").is_some(),
        "the root may be a link"
    );
}

#[test]
fn a_socket_is_skipped_with_a_note() {
    let world = world();
    let _listener = std::os::unix::net::UnixListener::bind(world.path("socket")).unwrap();
    let backup = world.dump(config(world.scratch.path())).unwrap();
    assert_eq!(backup.paths(), ["."]);
    let [note] = backup.notes.kept() else { panic!("{:?}", backup.notes) };
    assert_eq!(note.path.as_deref(), Some("socket"));
    assert!(backup.warnings.is_empty(), "{:?}", backup.warnings);
    assert_eq!(backup.facts["skipped"], 1);
}
