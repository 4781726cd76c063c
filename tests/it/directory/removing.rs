//! What a restore removes, and what it says beforehand.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use holdfast::source::{Action, RestoreOptions, SourceError};

use super::changes::as_ordinary_user;
use super::world::{
    Backup, World, assert_same, config, listing, mode, patterns, world, world_in_memory, write,
};
use crate::support::needs_root;

fn delete(paths: &[&str]) -> RestoreOptions {
    RestoreOptions {
        overwrite: true,
        delete: true,
        paths: patterns(paths),
        ..RestoreOptions::default()
    }
}

fn tree(world: &World) -> Backup {
    let root = world.path("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir(root.join("c")).unwrap();
    for name in ["a/1", "a/b/2", "c/3", "z"] {
        write(&root.join(name), name);
    }
    for (name, seconds) in [("a/b", 1_000), ("a", 2_000), ("c", 3_000), ("", 4_000)] {
        super::mtime(&root.join(name), seconds, 5);
    }
    world.dump(config(&root)).unwrap()
}

/// A target with much that the backup does not have.
fn cluttered(world: &World, place: &Path) {
    fs::create_dir_all(place.join("a/b")).unwrap();
    fs::create_dir_all(place.join("c/extra/deep/er")).unwrap();
    fs::create_dir_all(place.join("whole")).unwrap();
    for name in
        ["a/1", "a/extra", "a/b/extra", "c/extra/deep/er/x", "c/extra/y", "extra", "whole/x", "z"]
    {
        write(&place.join(name), "clutter");
    }
    fs::create_dir_all(world.path("outside")).unwrap();
    write(&world.path("outside/victim"), "untouched");
    symlink("../outside", place.join("link out")).unwrap();
    symlink("../../outside", place.join("whole/link out")).unwrap();
}

#[test]
fn what_the_snapshot_does_not_have_is_removed_and_links_are_not_followed() {
    let world = world();
    let backup = tree(&world);
    let place = world.path("target");
    cluttered(&world, &place);
    let before = listing(&place, &[]);
    let preview = world.preview(&backup.streams(), &place, &delete(&[])).unwrap();
    assert_eq!(listing(&place, &[]), before, "a preview touches nothing");
    assert_eq!(
        (preview.creates, preview.replaces, preview.deletes),
        (2, 6, 12),
        "{:#?}",
        preview.changes
    );
    assert_eq!(preview.bytes, backup.footer.bytes);
    let actions: Vec<_> = preview.changes.iter().map(|change| change.action).collect();
    assert!(
        actions.starts_with(&[Action::Delete; 12]) && actions.ends_with(&[Action::Create; 2]),
        "{actions:?}"
    );
    let restored = world.restore_from(&backup.streams(), &place, &delete(&[])).unwrap();
    assert_eq!(restored.files.unwrap().deleted, preview.deletes);
    assert_same(
        &listing(&place, &[]),
        &listing(&world.path("root"), &[]),
        "nothing else is there, and all times are right",
    );
    assert_eq!(fs::read(world.path("outside/victim")).unwrap(), b"untouched");
}

#[test]
fn with_patterns_only_the_folders_that_they_match_are_cleared() {
    let world = world_in_memory();
    let backup = tree(&world);
    let place = world.path("target");
    cluttered(&world, &place);
    fs::create_dir_all(place.join("elsewhere/a")).unwrap();
    write(&place.join("elsewhere/a/x"), "not in a folder that the snapshot has");
    let preview = world.preview(&backup.streams(), &place, &delete(&["a", "z"])).unwrap();
    let restored = world.restore_from(&backup.streams(), &place, &delete(&["a", "z"])).unwrap();
    assert_eq!((restored.files.unwrap().deleted, preview.deletes), (2, 2), "{:?}", preview.changes);
    assert!(!place.join("a/extra").exists() && !place.join("a/b/extra").exists());
    for kept in ["c/extra/deep/er/x", "extra", "whole/x", "elsewhere/a/x"] {
        assert!(place.join(kept).exists(), "{kept}");
    }
}

#[test]
fn removing_needs_overwriting_and_comes_only_after_everything_was_restored() {
    let world = world_in_memory();
    let backup = tree(&world);
    let place = world.path("target");
    let options = RestoreOptions { delete: true, ..RestoreOptions::default() };
    let error = world.restore_from(&backup.streams(), &place, &options).err().unwrap();
    assert!(error.to_string().contains("needs `--overwrite`") && !place.exists(), "{error}");
    cluttered(&world, &place);
    let mut damaged = backup.streams();
    let at = damaged.tar.windows(5).rposition(|bytes| bytes == b"a/b/2").unwrap();
    damaged.tar[at] = b'X';
    let error = world.restore_from(&damaged, &place, &delete(&[])).err().unwrap();
    assert!(matches!(error, SourceError::Damaged(_)), "{error}");
    assert!(place.join("a/extra").exists() && place.join("whole/x").exists());
}

#[test]
fn what_cannot_be_removed_is_named_and_a_mount_is_left() {
    needs_root("it acts as several users, and mounts");
    let world = world();
    let backup = tree(&world);
    let place = world.path("home/target");
    fs::create_dir(world.path("home")).unwrap();
    mode(world.scratch.path(), 0o755);
    mode(&world.path("home"), 0o777);
    as_ordinary_user(|| {
        world.restore_from(&backup.streams(), &place, &RestoreOptions::default()).unwrap();
        fs::create_dir(place.join("mine")).unwrap();
        fs::create_dir(place.join("a/closed")).unwrap();
        write(&place.join("a/closed/x"), "x");
        mode(&place.join("a/closed"), 0o500);
    });
    fs::create_dir(place.join("roots")).unwrap();
    write(&place.join("roots/x"), "x");
    let error = as_ordinary_user(|| {
        world.restore_from(&backup.streams(), &place, &delete(&[])).err().unwrap()
    });
    assert!(error.to_string().contains("target/roots"), "{error}");
    assert!(!place.join("a/closed").exists() && !place.join("mine").exists());
    assert!(place.join("roots/x").exists());
    // A file system that is mounted within.
    let mounted = rustix::mount::mount(
        c"tmpfs",
        place.join("roots"),
        c"tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    );
    mounted.expect("mounting within a folder needs CAP_SYS_ADMIN");
    write(&place.join("roots/precious"), "precious");
    let result = world.restore_from(&backup.streams(), &place, &delete(&[]));
    let kept = fs::read(place.join("roots/precious"));
    rustix::mount::unmount(place.join("roots"), rustix::mount::UnmountFlags::empty()).unwrap();
    let restored = result.unwrap();
    assert_eq!(kept.unwrap(), b"precious");
    assert!(
        restored
            .remarks
            .warnings
            .kept()
            .iter()
            .any(|warning| warning.note.reason.contains("mounted there"))
    );
}

#[test]
fn a_thousand_levels_are_removed() {
    let world = world_in_memory();
    let backup = tree(&world);
    let place = world.path("target");
    fs::create_dir(&place).unwrap();
    let mut folder =
        rustix::fs::open(&place, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..1_000 {
        rustix::fs::mkdirat(&folder, "deeper", rustix::fs::Mode::RWXU).unwrap();
        folder = rustix::fs::openat(
            &folder,
            "deeper",
            rustix::fs::OFlags::DIRECTORY,
            rustix::fs::Mode::empty(),
        )
        .unwrap();
    }
    let restored = world.restore_from(&backup.streams(), &place, &delete(&[])).unwrap();
    assert_eq!((restored.files.unwrap().deleted, place.join("deeper").exists()), (1_000, false));
    assert_eq!(place.metadata().unwrap().mtime(), 4_000);
}
