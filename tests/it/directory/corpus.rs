//! The saved cases of the fuzz targets, and what becomes of them when bytes are changed: whatever
//! is read is read or refused, without a panic, and nothing outside of the target is touched.

use std::path::{Path, PathBuf};

use holdfast::archive::index::IndexReader;
use holdfast::source::RestoreOptions;
use proptest::prelude::{Strategy, any, prop, proptest};

use super::world::{Streamed, World, patterns, world_in_memory, write};

fn cases(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let mut cases: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

/// Reads an index to its end, or to where it is wrong. Whether it was right.
fn read_index(bytes: &[u8]) -> bool {
    let Ok(mut index) = IndexReader::new(bytes) else { return false };
    let mut entries = 0;
    loop {
        match index.next_entry() {
            Ok(Some(_)) => entries += 1,
            Ok(None) => break,
            Err(_) => return false,
        }
    }
    assert_eq!(index.footer().map(|footer| footer.entries), Some(entries));
    true
}

/// Restores a tarball. Whether it could be.
fn restore(world: &World, bytes: &[u8]) -> bool {
    let place = world.path("target");
    let restored = world.restore(bytes, &place).is_ok();
    remove_target(world);
    restored
}

/// Removes what was restored. Nothing else is there or was touched.
fn remove_target(world: &World) {
    let place = world.path("target");
    if place.exists() {
        // What was restored may forbid its owner to look in.
        assert!(
            std::process::Command::new("chmod")
                .args(["-R", "u+rwX"])
                .arg(&place)
                .status()
                .unwrap()
                .success()
        );
        std::fs::remove_dir_all(&place).unwrap();
    }
    let around: Vec<_> = std::fs::read_dir(world.scratch.path())
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(
        (around.len(), std::fs::read(world.path("outside")).unwrap().as_slice()),
        (1, &b"untouched"[..])
    );
}

fn world_with_neighbour() -> World {
    let world = world_in_memory();
    write(&world.path("outside"), "untouched");
    world
}

#[test]
fn every_saved_index_is_read_or_refused() {
    let read = cases("index").iter().filter(|(_, bytes)| read_index(bytes)).count();
    assert!(read > 0, "some of them are right");
}

#[test]
fn every_saved_tarball_is_restored_or_refused() {
    let world = world_with_neighbour();
    let restored = cases("tarball").iter().filter(|(_, bytes)| restore(&world, bytes)).count();
    assert!(restored > 0, "some of them are right");
}

/// A saved snapshot: a byte that says how it is restored, three with the length of the index, the
/// index, the tarball. See `tests/fuzz/targets/snapshot.rs`.
fn snapshot(bytes: &[u8]) -> Option<(u8, Streamed)> {
    let (flags, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk::<3>()?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], 0]);
    let (index, tar) = rest.split_at_checked(usize::try_from(length).unwrap())?;
    let tar = with_right_checksums(tar.to_vec());
    Some((
        *flags,
        Streamed {
            tar,
            index: Some(index.to_vec()),
            fetched: std::sync::atomic::AtomicU64::new(0),
        },
    ))
}

#[test]
fn every_saved_snapshot_is_restored_or_refused() {
    let world = world_with_neighbour();
    let mut restored = 0;
    for (_, bytes) in cases("snapshot") {
        let Some((flags, streams)) = snapshot(&bytes) else { continue };
        let paths = if flags & 4 == 0 { Vec::new() } else { patterns(&["a*"]) };
        let (overwrite, delete) = (flags & 1 != 0, flags & 3 == 3);
        let options = RestoreOptions { overwrite, delete, paths, ..RestoreOptions::default() };
        let place = world.path("target");
        if overwrite {
            std::fs::create_dir_all(place.join("a/b")).unwrap();
            write(&place.join("a/1"), "before");
            std::os::unix::fs::symlink("../outside", place.join("b")).unwrap();
        }
        restored += usize::from(world.restore_from(&streams, &place, &options).is_ok());
        remove_target(&world);
    }
    assert!(restored >= 7, "those that are right");
}

/// One of the saved cases, a few of its bytes changed, and maybe cut.
fn changed(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let cases = cases(target);
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (prop::sample::select(cases), edits, prop::option::of(any::<prop::sample::Index>())).prop_map(
        |((_, mut bytes), edits, cut)| {
            if bytes.is_empty() {
                return bytes;
            }
            for (place, byte) in edits {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

/// A header with a changed byte has a wrong checksum and says nothing: it is put right, so that the
/// change is read.
pub(super) fn with_right_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
    for header in bytes.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

proptest! {
    #[test]
    fn a_changed_index_is_read_or_refused(bytes in changed("index")) {
        read_index(&bytes);
    }

    #[test]
    fn a_changed_tarball_is_restored_or_refused(
        bytes in changed("tarball").prop_map(with_right_checksums)) {
        restore(&world_with_neighbour(), &bytes);
    }
}
