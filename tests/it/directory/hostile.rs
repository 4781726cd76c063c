//! Tarballs that were made to do harm, and damaged ones.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};

use proptest::prelude::Strategy;
use proptest::{collection, proptest, sample};
use tar::{EntryType, Header};

use super::world::{World, config, world_in_memory, write};
use holdfast::source::{RestoreOptions, SourceError};

/// Headers and contents put together without any check.
#[derive(Default)]
struct Forge(Vec<u8>);

impl Forge {
    fn entry(mut self, kind: EntryType, name: &[u8], target: &[u8], content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        for (field, bytes) in [(0, name), (157, target)] {
            for (place, byte) in header.as_mut_bytes()[field..field + 100].iter_mut().zip(bytes) {
                *place = *byte;
            }
        }
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str) -> Self {
        self.entry(EntryType::Regular, name.as_bytes(), b"", b"harm")
    }

    fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name.as_bytes(), b"", b"")
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.entry(kind, name.as_bytes(), target.as_bytes(), b"")
    }

    fn pax(self, key: &str, value: &[u8]) -> Self {
        let rest = key.len() + value.len() + 3;
        let length = (1..).find(|length| *length == rest + length.to_string().len()).unwrap();
        let record = [format!("{length} {key}=").as_bytes(), value, b"\n"].concat();
        self.entry(EntryType::XHeader, b"pax", b"", &record)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// All that could change of what lies beside the target.
fn outside(world: &World) -> impl PartialEq + std::fmt::Debug {
    let of = |name: &str| {
        let metadata = world.path(name).symlink_metadata().unwrap();
        (
            metadata.mode(),
            metadata.nlink(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime_nsec(),
        )
    };
    let names: Vec<_> = fs::read_dir(world.path("outside"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    (names, of("outside"), of("outside/victim"), fs::read(world.path("outside/victim")).unwrap())
}

#[test]
fn what_would_lead_out_of_the_target_is_refused_by_name() {
    let forge = Forge::default;
    for (name, tar) in [
        ("/etc/harm", forge().file("/etc/harm")),
        ("../harm", forge().file("../harm")),
        ("a/../../harm", forge().folder("a/").file("a/../../harm")),
        ("a/..", forge().folder("a/..")),
        ("l/harm", forge().link(EntryType::Symlink, "l", "../outside").file("l/harm")),
        ("l/d", forge().link(EntryType::Symlink, "l", "../outside").folder("l/d")),
        (
            "l/s",
            forge().link(EntryType::Symlink, "l", "../outside").link(
                EntryType::Symlink,
                "l/s",
                "x",
            ),
        ),
        (
            "a/l/harm",
            forge().folder("a").link(EntryType::Symlink, "a/l", "../../outside").file("a/l/harm"),
        ),
        ("h", forge().link(EntryType::Link, "h", "/etc/passwd")),
        ("h2", forge().link(EntryType::Link, "h2", "../outside/victim")),
        (
            "h3",
            forge().link(EntryType::Symlink, "l", "../outside").link(
                EntryType::Link,
                "h3",
                "l/victim",
            ),
        ),
        ("h4", forge().link(EntryType::Link, "h4", "not there")),
        ("h5", forge().link(EntryType::Link, "h5", "./")),
        ("f/x", forge().file("f").file("f/x")),
        ("./", forge().link(EntryType::Symlink, "./", "../outside")),
        ("../pax", forge().pax("path", b"../pax").file("fine")),
        (
            "/gnu",
            forge().entry(EntryType::GNULongName, b"././@LongLink", b"", b"/gnu\0").file("fine"),
        ),
        ("h6", forge().pax("linkpath", b"../outside/victim").link(EntryType::Link, "h6", "fine")),
        ("z\u{0}ero", forge().pax("path", b"z\0ero").file("fine")),
    ] {
        let world = world_in_memory();
        fs::create_dir(world.path("outside")).unwrap();
        write(&world.path("outside/victim"), "untouched");
        let before = outside(&world);
        let error = world
            .restore(&tar.end(), &world.path("target"))
            .err()
            .unwrap_or_else(|| panic!("{name} was restored"));
        let text = error.to_string();
        assert!(matches!(error, SourceError::Unsuitable(_)), "{name}: {text}");
        assert!(
            text.contains(&format!("its entry `{name}` ")) && text.contains("is incomplete"),
            "{name}: {text}"
        );
        assert_eq!(outside(&world), before, "{name}");
        let mut there: Vec<_> = fs::read_dir(world.scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        there.sort();
        assert_eq!(there, ["outside", "target"], "{name}");
    }
}

#[test]
fn links_that_lead_out_are_kept_as_they_are_and_never_followed() {
    let world = world_in_memory();
    fs::create_dir(world.path("outside")).unwrap();
    write(&world.path("outside/victim"), "untouched");
    // Each time something takes the place of the link.
    let tar = Forge::default()
        .link(EntryType::Symlink, "a", "../outside/victim")
        .file("a")
        .link(EntryType::Symlink, "b", "../outside")
        .folder("b/")
        .file("b/victim")
        .link(EntryType::Symlink, "c", "../outside/victim")
        .entry(EntryType::Fifo, b"c", b"", b"")
        .link(EntryType::Symlink, "d", "../outside/victim")
        .link(EntryType::Link, "e", "d")
        .end();
    world.restore(&tar, &world.path("target")).unwrap();
    assert_eq!(fs::read(world.path("outside/victim")).unwrap(), b"untouched");
    assert_eq!(fs::read(world.path("target/a")).unwrap(), b"harm");
    assert_eq!(fs::read(world.path("target/b/victim")).unwrap(), b"harm");
    assert!(
        world.path("target/e").symlink_metadata().unwrap().is_symlink(),
        "a hard link to a link is one to the link"
    );
}

#[test]
fn headers_that_lie_are_refused_and_take_no_memory() {
    let forge = Forge::default;
    let mut huge = Header::new_ustar();
    huge.set_entry_type(EntryType::XHeader);
    huge.set_size(1 << 40);
    huge.set_cksum();
    let sparse = |map: &str, size: &str| {
        forge()
            .pax("GNU.sparse.map", map.as_bytes())
            .pax("GNU.sparse.size", size.as_bytes())
            .file("sparse")
            .end()
    };
    for (what, tar) in [
        ("a pax header of a terabyte", huge.as_bytes().to_vec()),
        (
            "a record longer than its header",
            forge().entry(EntryType::XHeader, b"x", b"", b"99 path=x\n").file("f").end(),
        ),
        (
            "a record without a sign",
            forge().entry(EntryType::XHeader, b"x", b"", b"7 path\n").file("f").end(),
        ),
        (
            "a record without an end",
            forge().entry(EntryType::XHeader, b"x", b"", b"8 path=x").file("f").end(),
        ),
        ("a size that is none", forge().pax("size", b"-1").file("f").end()),
        ("a size beyond all", forge().pax("size", b"18446744073709551615").file("f").end()),
        ("a map beyond the size", sparse("0,4", "3")),
        ("a map that goes back", sparse("8,2,0,2", "10")),
        ("a map of another content", sparse("0,3", "10")),
        ("a map that overflows", sparse("18446744073709551615,4", "10")),
        ("an unknown type", forge().entry(EntryType::new(b'?'), b"f", b"", b"").end()),
        ("a pax header and nothing", forge().pax("path", b"x").end()),
        ("nothing at all", Vec::new()),
        ("text", b"this is no tarball".repeat(100)),
    ] {
        let world = world_in_memory();
        let error = world
            .restore(&tar, &world.path("target"))
            .err()
            .unwrap_or_else(|| panic!("{what} was restored"));
        let text = error.to_string();
        assert!(
            text.contains("damaged or no tarball") && text.contains("is incomplete"),
            "{what}: {text}"
        );
    }
}

#[test]
fn a_cut_or_failing_stream_is_an_error_and_leaves_no_broken_file() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Err(std::io::Error::other("The block is damaged"));
            }
            self.0.read(buffer)
        }
    }
    let world = world_in_memory();
    let root = world.path("root");
    fs::create_dir_all(root.join("folder")).unwrap();
    for name in ["a", "folder/b", "z"] {
        write(&root.join(name), name.repeat(700));
    }
    symlink("a", root.join("link")).unwrap();
    let tar = world.dump(config(&root)).unwrap().tar;
    let overwrite = RestoreOptions { overwrite: true, ..RestoreOptions::default() };
    let place = world.path("target");
    for cut in (0..tar.len()).step_by(256).chain([tar.len() - 1]) {
        let part = &tar[..cut];
        // The end mark of two blocks may lack its second: nothing is missing then.
        if cut < tar.len() - 512 {
            let error = world.restore_with(&mut &*part, &place, &overwrite).err();
            assert!(
                error.is_some_and(|error| error.to_string().contains("incomplete")),
                "cut at {cut}"
            );
        }
        let error = world.restore_with(&mut Failing(part), &place, &overwrite).err().unwrap();
        assert!(
            matches!(error, SourceError::Stream(_)) && error.to_string().contains("incomplete"),
            "cut at {cut}"
        );
        assert!(
            format!("{:?}", std::error::Error::source(&error)).contains("The block is damaged")
        );
        for path in ["a", "folder/b", "z"] {
            if let Ok(content) = fs::read(place.join(path)) {
                assert_eq!(content, path.repeat(700).as_bytes(), "cut at {cut}");
            }
        }
        for folder in [place.clone(), place.join("folder")] {
            let names =
                fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().file_name());
            let temporary = names
                .filter(|name| name.to_string_lossy().starts_with(".holdfast-restore."))
                .count();
            assert_eq!(temporary, 0, "no temporary file stays");
        }
        fs::remove_dir_all(&place).unwrap();
    }
    let error = world.restore_with(&mut Failing(&tar), &place, &overwrite).err().unwrap();
    assert!(matches!(error, SourceError::Stream(_)), "damage that shows after the last entry");
}

fn any_path() -> impl Strategy<Value = String> {
    let part = sample::select(vec!["a", "b", "l", "outside", "victim", "..", ".", ""]);
    collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 1_000, failure_persistence: None,
        ..Default::default() })]

    #[test]
    fn no_tarball_writes_outside_of_its_target(
        entries in collection::vec((sample::select(b"052216".to_vec()), any_path(), any_path()),
            1..12),
    ) {
        let world = world_in_memory();
        fs::create_dir(world.path("outside")).unwrap();
        write(&world.path("outside/victim"), "untouched");
        let before = outside(&world);
        let mut forge = Forge::default();
        for (kind, name, target) in &entries {
            let content: &[u8] = if *kind == b'0' { b"harm" } else { b"" };
            forge = forge.entry(EntryType::new(*kind), name.as_bytes(), format!("../{target}")
                .as_bytes(), content);
            forge = forge.entry(EntryType::new(*kind), name.as_bytes(), target.as_bytes(), content);
        }
        // Refused or not: what counts is what is there afterwards.
        let _ = world.restore(&forge.end(), &world.path("target"));
        assert_eq!(outside(&world), before);
        assert_eq!(fs::read_dir(world.scratch.path()).unwrap().count(), 2);
    }
}
