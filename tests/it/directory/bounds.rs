//! Trees that are deep, wide, or random; big sizes.

use std::fs;
use std::os::fd::OwnedFd;

use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::{collection, prop_assert, prop_assert_eq, proptest};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use super::world::{
    Archiver, assert_same, config, join, listing, mode, mtime, run, world, world_in_memory, write,
};

fn put(folder: &OwnedFd, name: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let file = openat(folder, name, flags, Mode::RUSR | Mode::WUSR).unwrap();
    rustix::io::write(file, name.as_bytes()).unwrap();
}

#[test]
fn a_thousand_levels_are_walked_and_restored_with_few_open_folders() {
    let world = world_in_memory();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    let mut folder = openat(CWD, &root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..1_000 {
        // Longer together than any path may be; with something to do before and after the way down.
        put(&folder, "after");
        put(&folder, "a file");
        mkdirat(&folder, "a folder", Mode::RWXU).unwrap();
        folder = openat(&folder, "a folder", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let backup = world.dump(config(&root)).unwrap();
    assert!(backup.warnings.is_empty(), "{:?}", backup.warnings.kept().first());
    assert_eq!(
        (backup.facts["files"].as_u64(), backup.facts["directories"].as_u64()),
        (Some(2_000), Some(1_001))
    );
    let place = world.path("restored");
    world.restore(&backup.tar, &place).unwrap();
    assert!(world.dump(config(&place)).unwrap().tar == backup.tar, "the restored tree is the same");
    run("rm", &["-rf".as_ref(), root.as_os_str(), place.as_os_str()], &[]);
}

#[test]
fn a_folder_of_more_names_than_a_batch_is_walked_whole() {
    let world = world_in_memory();
    let root = world.path("root");
    fs::create_dir_all(root.join("folder")).unwrap();
    for number in 0..25_000 {
        write(&root.join(format!("folder/{number}")), "");
    }
    write(&root.join("last"), "");
    let backup = world.dump(config(&root)).unwrap();
    let mut paths = backup.paths();
    assert_eq!(paths.len(), 25_003);
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 25_003, "each once");
}

#[test]
fn a_folder_of_a_million_entries_takes_little_memory() {
    // In a process of its own, as the memory of other tests would count too.
    let program = std::env::current_exe().unwrap();
    let name = "directory::bounds::dump_a_million_entries";
    let output = run(
        program.to_str().unwrap(),
        &["--exact", name, "--ignored"].map(std::ffi::OsStr::new),
        &[],
    );
    assert!(
        String::from_utf8_lossy(&output).contains("1 passed"),
        "{}",
        String::from_utf8_lossy(&output)
    );
}

#[test]
#[ignore = "the test above runs it alone in a process"]
fn dump_a_million_entries() {
    let peak_kib = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let world = world_in_memory();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    let folder = openat(CWD, &root, OFlags::DIRECTORY, Mode::empty()).unwrap();
    put(&folder, "first");
    for number in 0..1_000_000 {
        // Every other one has a second name.
        let name = format!("{number:032}");
        if number % 2 == 0 {
            openat(&folder, &name, OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
        } else {
            rustix::fs::linkat(
                &folder,
                format!("{:032}", number - 1),
                &folder,
                name,
                rustix::fs::AtFlags::empty(),
            )
            .unwrap();
        }
    }
    let before = peak_kib();
    let facts = world.dump_to_nowhere(config(&root)).unwrap();
    assert_eq!(facts["entries"], 1_000_002);
    assert_eq!(facts["hardlinks"], 500_000);
    let grown = peak_kib() - before;
    assert!(grown < 20 << 10, "{grown} KiB");
}

#[test]
fn sizes_beyond_eight_gigabytes_are_written_so_that_others_read_them() {
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    let size = (8 << 30) + 12_345_u64;
    // Room that is kept for it and not written is no hole.
    let file = fs::File::create(root.join("big")).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).unwrap();
    // The first blocks are enough: the content is not looked at.
    let cancel = world.cancel.clone();
    let headers = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = std::sync::Arc::clone(&headers);
    let result = world.dump_while(config(&root), move |bytes| {
        let mut kept = kept.lock().unwrap();
        if kept.len() > 1 << 20 {
            cancel.cancel();
        } else {
            kept.extend_from_slice(bytes);
        }
    });
    assert!(result.is_err());
    let lines = run(
        "sh",
        &["-c".as_ref(), "tar -tvf - 2>/dev/null; true".as_ref()],
        &headers.lock().unwrap(),
    );
    assert!(
        String::from_utf8_lossy(&lines).contains(&format!(" {size} ")),
        "{}",
        String::from_utf8_lossy(&lines)
    );
}

#[derive(Debug, Clone)]
enum Node {
    File { size: usize, bits: u32 },
    Folder(u32),
    Link(Vec<u8>),
    Hard(usize),
    Fifo,
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => b'a'..=b'z', 1 => (1_u8..=255)
        .prop_filter("no slash", |byte| *byte != b'/')];
    let length = prop_oneof![5 => 1..20_usize, 1 => 90..110_usize, 1 => 240..=255_usize];
    length
        .prop_flat_map(move |length| collection::vec(byte.clone(), length))
        .prop_filter("a name", |name| name != b"." && name != b"..")
}

fn any_node() -> impl Strategy<Value = Node> {
    prop_oneof![
        (
            prop_oneof![0..2_000_usize, Just(512), Just(1024), 200_000..300_000_usize],
            0o400_u32..=0o7777
        )
            .prop_map(|(size, bits)| Node::File { size, bits: bits | 0o400 }),
        (0_u32..=0o7777).prop_map(|bits| Node::Folder(bits | 0o700)),
        any_name().prop_map(Node::Link),
        (0..100_usize).prop_map(Node::Hard),
        Just(Node::Fifo),
    ]
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 24, failure_persistence: None,
        ..Default::default() })]

    #[test]
    fn any_tree_comes_back_the_same(
        nodes in collection::vec((any_name(), any_node(), 0..100_usize,
            -5_000_000_000_i64..20_000_000_000, 0..1_000_000_000_i64), 0..30),
    ) {
        let world = world_in_memory();
        let root = world.path("root");
        fs::create_dir(&root).unwrap();
        let mut folders = vec![root.clone()];
        let mut files = Vec::new();
        let mut times = Vec::new();
        for (name, node, at, seconds, nanos) in nodes {
            let path = join(&folders[at % folders.len()], &name);
            if path.symlink_metadata().is_ok() || path.as_os_str().len() > 3_000 {
                continue;
            }
            match node {
                Node::File { size, bits } => {
                    write(&path, vec![u8::try_from(size % 251).unwrap(); size]);
                    mode(&path, bits);
                    files.push(path.clone());
                }
                Node::Folder(bits) => {
                    fs::create_dir(&path).unwrap();
                    mode(&path, bits);
                    folders.push(path.clone());
                }
                Node::Link(target) => std::os::unix::fs::symlink(join(std::path::Path::new(""),
                    &target), &path).unwrap(),
                Node::Hard(of) if !files.is_empty() => fs::hard_link(&files[of % files.len()],
                    &path).unwrap(),
                Node::Hard(_) | Node::Fifo => {
                    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
                        .unwrap();
                }
            }
            times.push((path, seconds, nanos));
        }
        // Folders last, as what is made in them sets their time.
        for (path, seconds, nanos) in times.iter().rev() {
            mtime(path, (*seconds).max(-2_000_000_000), *nanos);
        }
        let backup = world.dump(config(&root)).unwrap();
        prop_assert!(backup.warnings.is_empty());
        let place = world.path("restored");
        let restored = world.restore(&backup.tar, &place).unwrap();
        prop_assert!(restored.remarks.warnings.is_empty());
        let expected = listing(&root, &[]);
        assert_same(&listing(&place, &[]), &expected, "restored");
        let place = world.path("by hand");
        Archiver::Gnu.extract(&backup.tar, &place);
        assert_same(&listing(&place, &[]), &expected, "by hand");
    }

    /// Layouts of pieces of any length, at any place, after holes of any length.
    #[test]
    fn any_file_with_holes_comes_back_the_same(
        layout in collection::vec((0..50_000_u64, 0..50_000_usize), 0..40),
        end in 0..50_000_u64,
    ) {
        use std::os::unix::fs::FileExt;
        let world = world_in_memory();
        let root = world.path("root");
        fs::create_dir(&root).unwrap();
        let file = fs::File::create(root.join("file")).unwrap();
        let mut at = 0;
        for (hole, data) in layout {
            at += hole;
            file.write_all_at(&vec![7; data], at).unwrap();
            at += data as u64;
        }
        file.set_len(at + end).unwrap();
        mtime(&root, 1_000_000_000, 0);
        let backup = world.dump(config(&root)).unwrap();
        let entry = backup.entry("file");
        let content = fs::read(root.join("file")).unwrap();
        prop_assert!(backup.file(entry) == content);
        prop_assert_eq!(entry.digest, Some(holdfast::model::Digest::of(&content)));
        let expected = listing(&root, &["holes"]);
        let place = world.path("restored");
        world.restore(&backup.tar, &place).unwrap();
        assert_same(&listing(&place, &["holes"]), &expected, "restored");
        for archiver in [Archiver::Gnu, Archiver::Bsd] {
            let place = world.path(&format!("{archiver:?}"));
            archiver.extract(&backup.tar, &place);
            mtime(&place, 1_000_000_000, 0);
            assert_same(&listing(&place, &["holes"]), &expected, "by hand");
        }
    }
}
