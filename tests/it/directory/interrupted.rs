//! Restores that do not come to their end, and are run again.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use holdfast::source::directory::DirectoryRestorer;
use holdfast::source::{
    RestoreArtifact, RestoreJob, RestoreOptions, Restorer, SourceError, Target,
};

use super::world::{Backup, World, artifact, assert_same, config, listing, world_in_memory, write};

const MARKER: &str = ".holdfast-restore";

fn tree(world: &World) -> Backup {
    let root = world.path("root");
    for folder in 0..20 {
        fs::create_dir_all(root.join(format!("{folder:02}"))).unwrap();
        for file in 0..50 {
            write(
                &root.join(format!("{folder:02}/{file}")),
                format!("{folder} {file}").repeat(100),
            );
        }
    }
    write(&root.join("30 big"), vec![7; 3 << 20]);
    world.dump(config(&root)).unwrap()
}

/// Does something once, when so much was read.
struct At<'a, F: FnMut()>(&'a [u8], usize, F);

impl<F: FnMut()> Read for At<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.len() <= self.1 {
            self.1 = 0;
            (self.2)();
        }
        let most = buffer.len().min(4096);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn a_cancelled_restore_is_marked_and_the_same_command_ends_it() {
    let world = world_in_memory();
    let backup = tree(&world);
    for left in [backup.tar.len() - 10_000, backup.tar.len() / 2, 2 << 20, 1 << 20] {
        let world = world_in_memory();
        let place = world.path("target");
        let mut input = At(&backup.tar, left, || world.cancel.cancel());
        let error =
            world.restore_with(&mut input, &place, &RestoreOptions::default()).err().unwrap();
        assert!(matches!(error, SourceError::Cancelled), "{error}");
        assert!(place.join(MARKER).exists(), "{left}");
        let again = world_in_memory();
        // What a kill leaves beside the mark.
        write(&place.join(".holdfast-restore.7"), "half");
        let _ = fs::create_dir(place.join("05"));
        write(&place.join("05/.holdfast-restore.0"), "half");
        let restored =
            again.restore_from(&backup.streams(), &place, &RestoreOptions::default()).unwrap();
        assert!(restored.remarks.warnings.is_empty());
        assert_same(
            &listing(&place, &[]),
            &listing(&crate_root(&backup, &again), &[]),
            "run again",
        );
    }
}

/// The tree of the backup, restored in one go.
fn crate_root(backup: &Backup, world: &World) -> PathBuf {
    let place = world.path("reference");
    world.restore_from(&backup.streams(), &place, &RestoreOptions::default()).unwrap();
    place
}

#[test]
fn only_the_restore_that_was_interrupted_goes_on() {
    let world = world_in_memory();
    let backup = tree(&world);
    let place = world.path("target");
    let mut input = At(&backup.tar, 1 << 20, || world.cancel.cancel());
    assert!(world.restore_with(&mut input, &place, &RestoreOptions::default()).is_err());
    let mut other = artifact();
    other.snapshot = "20261122T013000Z-000000".to_owned();
    let target = Target::Folder(place.clone());
    let again = world_in_memory();
    let prepare = |artifact: &RestoreArtifact, options: &RestoreOptions| {
        DirectoryRestorer.prepare(RestoreJob {
            cx: &again.context(),
            artifact,
            target: &target,
            options,
        })
    };
    let error = prepare(&other, &RestoreOptions::default()).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, SourceError::NotEmpty(_)), "{error}");
    assert!(
        text.contains(
            "interrupted restore of `files.tar` from the snapshot `20261121T013000Z-7f3a9c`"
        ),
        "{text}"
    );
    assert!(text.contains("is not empty. Pass `--overwrite`"), "{text}");
    assert!(
        prepare(&other, &RestoreOptions { overwrite: true, ..RestoreOptions::default() }).is_ok()
    );
    assert!(prepare(&artifact(), &RestoreOptions::default()).is_ok());
    // Some of its files are no end of it.
    let some = RestoreOptions {
        paths: vec![holdfast::archive::Pattern::new("/05").unwrap()],
        ..RestoreOptions::default()
    };
    assert!(matches!(prepare(&artifact(), &some), Err(SourceError::NotEmpty(_))));
    assert!(place.join(MARKER).exists());
    fs::remove_file(place.join(MARKER)).unwrap();
    assert!(matches!(
        prepare(&artifact(), &RestoreOptions::default()),
        Err(SourceError::NotEmpty(_))
    ));
    write(&place.join(MARKER), "no mark");
    assert!(matches!(
        prepare(&artifact(), &RestoreOptions::default()),
        Err(SourceError::NotEmpty(_))
    ));
}

#[test]
fn an_error_of_the_stream_says_that_the_same_command_can_be_run_again() {
    struct Gone;
    impl Read for Gone {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::NotConnected.into())
        }
    }
    let world = world_in_memory();
    let backup = tree(&world);
    let place = world.path("target");
    let half = &backup.tar[..backup.tar.len() / 2];
    let error = world
        .restore_with(&mut half.chain(Gone), &place, &RestoreOptions::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("run the same command again"), "{error}");
    assert!(world.restore(&backup.tar, &place).is_ok());
    assert!(!place.join(MARKER).exists());
}

#[test]
fn a_snapshot_that_has_the_names_of_incomplete_files_is_restored_whole() {
    let world = world_in_memory();
    let root = world.path("root");
    fs::create_dir_all(root.join("folder")).unwrap();
    // So many ordinary files come first that incomplete ones are written under numbers that are a
    // little ahead: just those of the entries that follow.
    for (folder, ordinary, numbers) in [("", 112, 100..300), ("folder/", 30, 300..500)] {
        write(&root.join(format!("{folder}{MARKER}")), MARKER);
        for number in 0..ordinary {
            write(&root.join(format!("{folder}!{number:03}")), "ordinary");
        }
        for number in numbers {
            let name = format!("{folder}{MARKER}.{number}");
            let path = root.join(&name);
            match number % 20 {
                7 => fs::create_dir(path).unwrap(),
                11 => std::os::unix::fs::symlink("nowhere", path).unwrap(),
                13 => write(&path, name.repeat(20_000)),
                17 => fs::hard_link(root.join(format!("{folder}{MARKER}")), path).unwrap(),
                _ => write(&path, name),
            }
        }
    }
    let backup = world.dump(config(&root)).unwrap();
    for (name, overwrite) in [("new", false), ("new", true)] {
        let options = RestoreOptions { overwrite, ..RestoreOptions::default() };
        let place = world.path(name);
        world.restore_from(&backup.streams(), &place, &options).unwrap();
        assert_same(&listing(&place, &[]), &listing(&root, &[]), "with odd names");
    }
}

/// Restores what is in the folder of the environment until it is killed.
#[test]
#[ignore = "the test below runs it in a process that it kills"]
fn restore_until_killed() {
    let folder = PathBuf::from(std::env::var_os("HOLDFAST_TEST_FOLDER").unwrap());
    let tar = fs::read(folder.join("tar")).unwrap();
    let stop = tar.len() / 2;
    let world = world_in_memory();
    let mut input = At(&tar, stop, || {
        println!("half of it is read");
        // Killed here: there is no more to read until then.
        let mut byte = [0];
        let _ = std::io::stdin().read(&mut byte);
    });
    let _ = world.restore_with(&mut input, &folder.join("target"), &RestoreOptions::default());
}

#[test]
fn a_killed_restore_is_ended_by_the_same_command() {
    let world = world_in_memory();
    let backup = tree(&world);
    write(&world.path("tar"), &backup.tar);
    let mut child = start(&world.path(""));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("half of it is read")));
    let place = world.path("target");
    let before = listing(&place, &[]);
    for overwrite in [false, true] {
        let options = RestoreOptions { overwrite, ..RestoreOptions::default() };
        let refused = world.restore_from(&backup.streams(), &place, &options).err().unwrap();
        assert!(matches!(refused, SourceError::Unsuitable(_)), "it is not over: {refused}");
    }
    assert_same(&listing(&place, &[]), &before, "nothing of it was touched");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(place.join(MARKER).exists());
    let there: Vec<_> =
        fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(there.len() > 20 && !there.iter().any(|name| *name == "30 big"), "{there:?}");
    world.restore_from(&backup.streams(), &place, &RestoreOptions::default()).unwrap();
    assert_same(&listing(&place, &[]), &listing(&world.path("root"), &[]), "after a kill");
}

fn start(folder: &Path) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "directory::interrupted::restore_until_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("HOLDFAST_TEST_FOLDER", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
