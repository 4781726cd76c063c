//! The tree changes while it is read. Each change is made at a known moment: when the headers of an
//! entry are written. Files are read ahead of that, but only so far:
//! - of a file of 600,000 bytes the last third is not read before its headers are written;
//! - behind four such files nothing is opened before the first of them is written, though it was
//!   looked at;
//! - behind 100 small files nothing was looked at.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use holdfast::archive::Kind;
use holdfast::source::SourceError;
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::world::{Archiver, Backup, config, is_root, mode, world, write};

/// A hook that acts once, when the headers of the entry with that name in the tarball are about to
/// be written.
fn when_headers_of(
    name: &str,
    act: impl FnOnce() + Send + 'static,
) -> impl FnMut(&[u8]) + Send + 'static {
    let field = format!("{name}\0");
    let mut act = Some(act);
    move |bytes| {
        let header = bytes.len().checked_sub(512).map(|at| &bytes[at..]);
        if header.is_some_and(|header| header.starts_with(field.as_bytes()))
            && let Some(act) = act.take()
        {
            act();
        }
    }
}

/// Whatever happened, every content is where the index says, and GNU tar reads the tarball to its
/// end.
fn assert_sound(backup: &Backup) {
    for entry in backup.entries.iter().filter(|entry| entry.kind == Kind::File) {
        assert_eq!(entry.digest, Some(holdfast::model::Digest::of(&backup.file(entry))));
    }
    let scratch = tempfile::tempdir().unwrap();
    Archiver::Gnu.extract(&backup.tar, &scratch.path().join("x"));
}

fn tree() -> (super::world::World, std::path::PathBuf) {
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    for name in ["a", "b", "c"] {
        write(&root.join(name), name.repeat(600_000));
    }
    (world, root)
}

/// Files that keep the threads busy that read ahead, until the first of them is written: `a0` to
/// `a3`.
fn busy_files(root: &Path) {
    for number in 0..4 {
        write(&root.join(format!("a{number}")), "a".repeat(600_000));
    }
}

/// More files than the walk is ahead.
fn many_files(folder: &Path, prefix: &str) {
    for number in 0..100 {
        write(&folder.join(format!("{prefix}{number:03}")), "small");
    }
}

/// Writes the whole file anew, without making it shorter meanwhile.
fn rewrite(file: &Path) {
    use std::os::unix::fs::FileExt;
    let content = "B".repeat(600_000);
    fs::OpenOptions::new()
        .write(true)
        .open(file)
        .unwrap()
        .write_all_at(content.as_bytes(), 0)
        .unwrap();
}

fn append(file: &Path) {
    fs::OpenOptions::new().append(true).open(file).unwrap().write_all(b"more").unwrap();
}

#[test]
fn a_file_that_was_appended_to_is_a_note() {
    let (world, root) = tree();
    let file = root.join("b");
    let grow = move || append(&file);
    let backup = world.dump_while(config(&root), when_headers_of("b", grow)).unwrap();
    assert_eq!(backup.content(backup.entry("b")), "b".repeat(600_000).as_bytes());
    assert!(backup.entry("b").changed && !backup.entry("c").changed);
    let [note] = backup.notes.kept() else { panic!("{:?}", backup.notes) };
    assert_eq!(note.path.as_deref(), Some("b"));
    assert!(backup.warnings.is_empty(), "{:?}", backup.warnings);
    assert_eq!(backup.facts["changed"], 1);
    assert_sound(&backup);
}

#[test]
fn a_file_that_grew_otherwise_stays_a_warning() {
    // Each grows, and is not what it was: in its last bytes, or as a database.
    let rewritten = |file: &Path| {
        rewrite(file);
        append(file);
    };
    let cut_and_longer = |file: &Path| {
        let file = fs::OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(100_000).unwrap();
        file.set_len(700_000).unwrap();
    };
    let acts: [fn(&Path); 4] = [rewritten, cut_and_longer, append, append];
    let begins: [&[u8]; 4] = [b"b", b"b", b"SQLite format 3\0", b"\x37\x7f\x06\x82"];
    for (begin, act) in begins.into_iter().zip(acts) {
        let (world, root) = tree();
        let file = root.join("b");
        write(&file, [begin, "b".repeat(600_000).as_bytes()].concat());
        let act = move || act(&file);
        let backup = world.dump_while(config(&root), when_headers_of("b", act)).unwrap();
        assert!(backup.entry("b").changed);
        assert!(backup.warning("b").is_some_and(|(_, missing)| !missing), "{:?}", backup.notes);
        assert!(backup.notes.is_empty(), "{:?}", backup.notes);
        assert_sound(&backup);
    }
}

#[test]
fn a_file_that_shrinks_is_filled_up_with_zeros() {
    let (world, root) = tree();
    let file = root.join("b");
    let shrink =
        move || fs::OpenOptions::new().write(true).open(file).unwrap().set_len(500_000).unwrap();
    let backup = world.dump_while(config(&root), when_headers_of("b", shrink)).unwrap();
    let expected = ["b".repeat(500_000).as_bytes(), &[0; 100_000]].concat();
    assert_eq!(backup.content(backup.entry("b")), expected);
    assert!(backup.entry("b").changed && !backup.entry("c").changed);
    assert_eq!(
        backup.warning("b"),
        Some(("It shrank while it was read, so its last 100000 bytes are zeros".to_owned(), false))
    );
    assert_sound(&backup);
}

#[test]
fn a_file_that_is_written_in_place_is_noticed() {
    let (world, root) = tree();
    let file = root.join("b");
    let backup =
        world.dump_while(config(&root), when_headers_of("b", move || rewrite(&file))).unwrap();
    assert_eq!(backup.warning("b"), Some(("It changed while it was read".to_owned(), false)));
    assert!(backup.entry("b").changed);
    assert_sound(&backup);
}

#[test]
fn a_file_whose_times_are_set_back_after_a_write_is_noticed_too() {
    let (world, root) = tree();
    let file = root.join("b");
    super::mtime(&file, 1_000_000_000, 0);
    let act = move || {
        rewrite(&file);
        super::mtime(&file, 1_000_000_000, 0);
    };
    let backup = world.dump_while(config(&root), when_headers_of("b", act)).unwrap();
    assert!(backup.entry("b").changed);
}

#[test]
fn entries_that_vanish_or_become_something_else_before_they_are_looked_at_do_not_end_the_run() {
    let (world, root) = tree();
    many_files(&root, "a");
    fs::create_dir(root.join("folder")).unwrap();
    fs::create_dir(root.join("gone folder")).unwrap();
    let at = root.clone();
    let change = move || {
        fs::remove_file(at.join("b")).unwrap();
        fs::remove_dir(at.join("gone folder")).unwrap();
        fs::remove_file(at.join("c")).unwrap();
        fs::create_dir(at.join("c")).unwrap();
        write(&at.join("c/inner"), "inner");
        fs::remove_dir(at.join("folder")).unwrap();
        symlink("/etc", at.join("folder")).unwrap();
    };
    let backup = world.dump_while(config(&root), when_headers_of("a", change)).unwrap();
    let mut paths = backup.paths();
    paths.retain(|path| !path.starts_with('a'));
    assert_eq!(paths, [".", "c", "c/inner", "folder"]);
    assert_eq!(
        (backup.entry("c").kind, backup.entry("folder").kind),
        (Kind::Directory, Kind::Symlink)
    );
    assert_eq!(backup.warning("b"), Some(("It vanished before it was read".to_owned(), false)));
    assert_eq!(
        (backup.warnings.count(), backup.warnings.missing()),
        (2, 0),
        "what vanished was not there any more"
    );
    assert_eq!(backup.facts["skipped"], 2);
    assert_sound(&backup);
}

#[test]
fn files_that_vanish_or_become_something_else_after_they_were_looked_at_do_not_end_the_run() {
    let world = world();
    let root = world.path("root");
    fs::create_dir_all(root.join("sub")).unwrap();
    busy_files(&root);
    for name in ["b", "c", "d", "e", "sub/f", "z"] {
        write(&root.join(name), "before");
    }
    fs::hard_link(root.join("d"), root.join("d second")).unwrap();
    symlink("before", root.join("link")).unwrap();
    let at = root.clone();
    let change = move || {
        for name in ["b", "c", "d", "d second", "e", "sub/f", "link"] {
            fs::remove_file(at.join(name)).unwrap();
        }
        fs::create_dir(at.join("c")).unwrap();
        write(&at.join("c/inner"), "inner");
        symlink("/nowhere", at.join("e")).unwrap();
        fs::create_dir_all(at.join("sub/f/deep/er")).unwrap();
        write(&at.join("link"), "a file now");
    };
    let backup = world.dump_while(config(&root), when_headers_of("a0", change)).unwrap();
    let mut paths = backup.paths();
    paths.retain(|path| !path.starts_with('a'));
    let late = ["c", "c/inner", "e", "sub/f", "sub/f/deep", "sub/f/deep/er"];
    assert_eq!(
        paths,
        [&[".", "link", "sub", "z"][..], &late].concat(),
        "what is looked at again comes last"
    );
    assert_eq!((backup.entry("c").kind, backup.entry("e").kind), (Kind::Directory, Kind::Symlink));
    assert_eq!(backup.content(backup.entry("link")), b"a file now");
    for name in ["b", "d", "d second"] {
        assert_eq!(
            backup.warning(name),
            Some(("It vanished before it was read".to_owned(), false))
        );
    }
    assert_eq!(
        (backup.warnings.count(), backup.warnings.missing()),
        (3, 0),
        "{:?}",
        backup.warnings
    );
    assert_eq!(backup.facts["skipped"], 3);
    assert_sound(&backup);
}

#[test]
fn a_folder_that_is_swapped_for_a_link_leads_nowhere() {
    let (world, root) = tree();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["x", "y"] {
        write(&outside.join(name), "SECRET");
        for folder in ["m", "n"] {
            fs::create_dir_all(root.join(folder)).unwrap();
            write(&root.join(folder).join(name), "inside");
        }
    }
    many_files(&root.join("m"), "x");
    // One before it is entered, the other while the walk stands in it.
    let at = root.clone();
    let swap = move || {
        for folder in ["m", "n"] {
            fs::rename(at.join(folder), at.join(format!("../old {folder}"))).unwrap();
            symlink("../outside", at.join(folder)).unwrap();
        }
    };
    let backup = world.dump_while(config(&root), when_headers_of("m/x", swap)).unwrap();
    let mut paths = backup.paths();
    paths.retain(|path| !path.starts_with("m/x0"));
    assert_eq!(paths, [".", "a", "b", "c", "m", "m/x", "m/y", "n"]);
    assert_eq!(backup.content(backup.entry("m/y")), b"inside");
    assert_eq!(backup.entry("n").kind, Kind::Symlink);
    assert!(!backup.tar.windows(6).any(|bytes| bytes == b"SECRET"));
    assert_sound(&backup);
}

/// The folder of a file that was looked at is not left, whatever becomes of its name.
#[test]
fn a_file_is_read_from_the_folder_it_was_found_in() {
    let world = world();
    let root = world.path("root");
    fs::create_dir_all(root.join("m")).unwrap();
    busy_files(&root);
    write(&root.join("m/x"), "inside");
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    write(&outside.join("x"), "SECRET");
    let at = root.clone();
    let swap = move || {
        fs::rename(at.join("m"), at.join("../old m")).unwrap();
        symlink(&outside, at.join("m")).unwrap();
    };
    let backup = world.dump_while(config(&root), when_headers_of("a0", swap)).unwrap();
    assert_eq!(backup.content(backup.entry("m/x")), b"inside");
    assert_sound(&backup);
}

#[test]
fn a_folder_that_moves_away_beneath_the_walk_is_missing_and_the_rest_is_taken() {
    let world = world();
    let root = world.path("root");
    // Deep enough that the folders near the root are closed when the walk is at the end.
    let top = root.join("top");
    let mut folder = top.clone();
    for _ in 0..200 {
        folder.push("m");
    }
    fs::create_dir_all(&folder).unwrap();
    write(&folder.join("end"), "end");
    many_files(&folder, "f");
    write(&top.join("z"), "z");
    write(&root.join("zz"), "zz");
    let (from, to) = (top.clone(), world.path("elsewhere"));
    let name = format!("top/{}end", "m/".repeat(200));
    let mut acted = false;
    let act = move |bytes: &[u8]| {
        // The name is too long for the header's field, so it stands in the pax header.
        if !acted && bytes.windows(name.len()).any(|window| window == name.as_bytes()) {
            acted = true;
            fs::create_dir(&to).unwrap();
            fs::rename(from.join("m"), to.join("m")).unwrap();
            fs::rename(&from, to.join("top")).unwrap();
        }
    };
    let backup = world.dump_while(config(&root), act).unwrap();
    assert!(backup.find("zz").is_some() && backup.find("top/z").is_none());
    let (reason, missing) = backup.warning("top").unwrap();
    assert!(reason.contains("moved") && missing, "{reason}");
}

#[test]
fn what_may_not_be_read_is_missing_and_the_rest_is_taken() {
    let (world, root) = tree();
    fs::create_dir(root.join("closed")).unwrap();
    write(&root.join("closed/x"), "x");
    fs::create_dir(root.join("names only")).unwrap();
    write(&root.join("names only/x"), "x");
    mode(&root.join("b"), 0);
    mode(&root.join("closed"), 0);
    mode(&root.join("names only"), 0o444);
    mode(world.scratch.path(), 0o755);
    let backup = as_ordinary_user(|| world.dump(config(&root)).unwrap());
    assert_eq!(backup.paths(), [".", "a", "c", "closed", "names only"]);
    for path in ["b", "closed", "names only/x"] {
        let (reason, missing) =
            backup.warning(path).unwrap_or_else(|| panic!("{path}: {:?}", backup.warnings));
        assert!(missing && reason.contains("Permission denied"), "{path}: {reason}");
    }
    assert_eq!(backup.warnings.missing(), 3);
    assert_sound(&backup);
    mode(&root, 0);
    let error = as_ordinary_user(|| world.dump(config(&root)).err().unwrap());
    assert!(matches!(&error, SourceError::Io { attempt: "read the folder", .. }), "{error}");
    mode(&root, 0o700);
}

/// Acts with the rights of nobody where the tests run as root: identities of threads are their own.
pub(super) fn as_ordinary_user<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if is_root() {
                let (user, group) =
                    (rustix::fs::Uid::from_raw(65_534), rustix::fs::Gid::from_raw(65_534));
                rustix::thread::set_thread_res_gid(group, group, group).unwrap();
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            }
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_root_that_is_removed_while_it_is_read_is_no_backup() {
    let (world, root) = tree();
    let at = root.clone();
    let error = world
        .dump_while(config(&root), when_headers_of("a", move || fs::remove_dir_all(at).unwrap()))
        .err()
        .unwrap();
    assert!(error.to_string().contains("was removed while it was read"), "{error}");
}

#[test]
fn a_second_name_of_a_file_that_was_written_in_between_keeps_its_own_content() {
    let (world, root) = tree();
    fs::hard_link(root.join("a"), root.join("d")).unwrap();
    let at = root.clone();
    let backup = world
        .dump_while(config(&root), when_headers_of("c", move || write(&at.join("d"), "later")))
        .unwrap();
    assert_eq!(backup.entry("d").kind, Kind::File);
    assert_eq!(backup.content(backup.entry("d")), b"later");
}

#[test]
fn a_cancelled_dump_ends_at_once() {
    let (world, root) = tree();
    let cancel = world.cancel.clone();
    let result = world.dump_while(config(&root), when_headers_of("b", move || cancel.cancel()));
    assert!(matches!(result.err(), Some(SourceError::Cancelled)));
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 12, failure_persistence: None,
        ..Default::default() })]

    #[test]
    fn every_content_of_a_tree_that_changes_all_the_time_is_sound(
        seed in proptest::num::usize::ANY) {
        let world = world();
        let root = world.path("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        let name = |number: usize| format!("{}{}",
            if number.is_multiple_of(2) { "" } else { "sub/" }, number % 160);
        for number in 0..160 {
            write(&root.join(name(number)), "x".repeat(number * 997));
        }
        // Links lead here, and are written through: never to a file of the machine that runs the
        // test.
        let outside = world.path("outside");
        write(&outside, "outside");
        // A change at each piece that is written, while other files are being read.
        let (at, mut step) = (root.clone(), seed);
        let churn = move |_: &[u8]| {
            step = step.wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (path, other) = (at.join(name((step >> 33) % 160)),
                at.join(name((step >> 20) % 160)));
            let open = || fs::OpenOptions::new().append(true).open(&path);
            match (step >> 50) % 9 {
                0 => drop(fs::remove_file(path)),
                1 => drop(fs::write(path, "y".repeat((step >> 40) % 300_000))),
                2 => drop(fs::rename(path, other)),
                3 => drop(fs::remove_file(&path).and_then(|()| symlink(&outside, path))),
                4 => drop(open().and_then(|mut file| file.write_all(&[1; 5000]))),
                5 => drop(open().and_then(|file| file.set_len(((step >> 40) % 1_000_000) as u64))),
                6 => drop(fs::hard_link(path, other)),
                7 => drop(fs::remove_file(&path)
                    .and_then(|()| fs::create_dir_all(path.join("deep/er")))),
                _ => drop(fs::remove_dir_all(&path).and_then(|()| fs::write(path, "z"))),
            }
        };
        let backup = world.dump_while(config(&root), churn).unwrap();
        prop_assert!(backup.entries.len() > 2 && backup.warnings.missing() == 0, "{:?}",
            backup.warnings);
        let mut paths = backup.paths();
        paths.sort();
        paths.dedup();
        prop_assert_eq!(paths.len(), backup.entries.len(), "each once");
        assert_sound(&backup);
    }
}

#[test]
fn a_file_that_fails_while_it_is_read_is_missing_and_the_tarball_stays_whole() {
    let world = world();
    // The loopback device has no speed: the file has a size and opens, and reading it is an error.
    let mut chosen = config(Path::new("/sys/class/net/lo"));
    chosen.include = super::patterns(&["/speed", "/tx_queue_len"]);
    let backup = world.dump(chosen).unwrap();
    let entry = backup.entry("speed");
    assert!(entry.changed && backup.content(entry).iter().all(|byte| *byte == 0));
    let (reason, missing) = backup.warning("speed").unwrap();
    assert!(
        missing && reason.contains(&format!("its last {} bytes are zeros", entry.size)),
        "{reason}"
    );
    assert_eq!(backup.warnings.missing(), 1);
    let (reason, missing) = backup.warning("tx_queue_len").unwrap();
    assert!(
        reason.contains("shrank") && !missing,
        "the file system only claims its size: {reason}"
    );
    assert_sound(&backup);
}
