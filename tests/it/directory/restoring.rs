//! What a restore does to a target that is not empty, and as whom.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use holdfast::source::directory::DirectoryRestorer;
use holdfast::source::{RestoreJob, RestoreOptions, Restorer, SourceError, Target};

use super::changes::as_ordinary_user;
use super::world::{artifact, assert_same, config, is_root, listing, mode, owner, world, write};

const OVERWRITE: RestoreOptions = RestoreOptions {
    overwrite: true,
    jobs: 0,
    no_owner: false,
    scratch: false,
    superuser: None,
    owners: Vec::new(),
    paths: Vec::new(),
    delete: false,
    recorded: holdfast::source::under_way::Recorded::NONE,
};

#[test]
fn a_target_that_is_not_empty_is_refused_before_anything_is_touched() {
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    let tar = world.dump(config(&root)).unwrap().tar;
    let place = world.path("target");
    fs::create_dir(&place).unwrap();
    assert!(world.restore(&tar, &place).is_ok(), "an empty one is fine");
    write(&place.join("mine"), "mine");
    let before = listing(&place, &[]);
    let error = world.restore(&tar, &place).err().unwrap();
    assert!(matches!(error, SourceError::NotEmpty(_)), "{error}");
    assert_eq!(listing(&place, &[]), before);
    let file = Target::Folder(place.join("mine"));
    let error = DirectoryRestorer
        .prepare(RestoreJob {
            cx: &world.context(),
            artifact: &artifact(),
            target: &file,
            options: &OVERWRITE,
        })
        .err()
        .unwrap();
    assert!(error.to_string().contains("is not a folder, or lies"), "{error}");
    let beneath = Target::Folder(place.join("mine/deeper"));
    let error = DirectoryRestorer
        .prepare(RestoreJob {
            cx: &world.context(),
            artifact: &artifact(),
            target: &beneath,
            options: &OVERWRITE,
        })
        .err()
        .unwrap();
    assert!(error.to_string().contains("is not a folder, or lies"), "{error}");
    mode(&place, 0o555);
    mode(world.scratch.path(), 0o755);
    let closed = Target::Folder(place.join("new/er"));
    let error = as_ordinary_user(|| {
        DirectoryRestorer
            .prepare(RestoreJob {
                cx: &world.context(),
                artifact: &artifact(),
                target: &closed,
                options: &OVERWRITE,
            })
            .err()
            .unwrap()
    });
    assert!(error.to_string().contains("Could not write to the folder"), "{error}");
    let database = Target::Database("sqlite:///file".to_owned().try_into().unwrap());
    assert!(
        DirectoryRestorer
            .prepare(RestoreJob {
                cx: &world.context(),
                artifact: &artifact(),
                target: &database,
                options: &OVERWRITE
            })
            .is_err()
    );
}

#[test]
fn overwriting_replaces_what_the_backup_has_and_follows_nothing() {
    let world = world();
    let root = world.path("root");
    super::full_tree(&root);
    let tar = world.dump(config(&root)).unwrap().tar;
    let place = world.path("target");
    fs::create_dir_all(place.join("file")).unwrap();
    fs::create_dir(place.join("extra")).unwrap();
    write(&world.path("victim"), "untouched");
    fs::hard_link(world.path("victim"), place.join("block")).unwrap();
    symlink("../victim", place.join("big")).unwrap();
    symlink("..", place.join("folder")).unwrap();
    write(&place.join("link to folder"), "was a file");
    fs::create_dir(place.join("link ☃")).unwrap();
    write(&place.join("sticky"), "was a file");
    world.restore_with(&mut &*tar, &place, &OVERWRITE).unwrap();
    assert_eq!(fs::read(world.path("victim")).unwrap(), b"untouched");
    assert!(place.join("extra").is_dir(), "what the backup does not have stays");
    fs::remove_dir(place.join("extra")).unwrap();
    // Removing it changed the root's time.
    super::mtime(&place, 1_400_000_000, 987_654_321);
    assert_same(&listing(&place, &[]), &listing(&root, &[]), "overwritten");
    // A second time, onto what is the same already.
    world.restore_with(&mut &*tar, &place, &OVERWRITE).unwrap();
    assert_same(&listing(&place, &[]), &listing(&root, &[]), "overwritten again");
}

#[test]
fn a_folder_with_something_in_it_is_not_thrown_away_for_a_file() {
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    write(&root.join("x"), "file");
    let tar = world.dump(config(&root)).unwrap().tar;
    let place = world.path("target");
    fs::create_dir_all(place.join("x")).unwrap();
    write(&place.join("x/precious"), "precious");
    let error = world.restore_with(&mut &*tar, &place, &OVERWRITE).err().unwrap().to_string();
    assert!(error.contains("replace the folder") && error.contains("target/x"), "{error}");
    assert_eq!(fs::read(place.join("x/precious")).unwrap(), b"precious");
}

#[test]
fn an_ordinary_user_gets_the_content_and_a_note_about_owners() {
    let world = world();
    let root = world.path("root");
    super::full_tree(&root);
    let tar = world.dump(config(&root)).unwrap().tar;
    let home = world.path("home");
    fs::create_dir(&home).unwrap();
    mode(world.scratch.path(), 0o755);
    mode(&home, 0o777);
    let place = home.join("restored");
    let restored = as_ordinary_user(|| world.restore(&tar, &place)).unwrap();
    let metadata = |name: &str| place.join(name).symlink_metadata().unwrap();
    assert_eq!(fs::read(place.join("file")).unwrap(), b"content\n");
    assert_eq!(metadata("").mode() & 0o7777, 0o751);
    assert_eq!(metadata("read only").mode() & 0o7777, 0o555);
    assert_eq!(
        (metadata("folder").mtime(), metadata("folder").mtime_nsec()),
        (1_200_000_000, 123_456_789)
    );
    if is_root() {
        assert_eq!(metadata("suid").mode() & 0o7777, 0o755, "no setuid for another owner");
        assert_eq!(metadata("suid").uid(), 65_534);
        let reasons: Vec<_> = restored
            .remarks
            .warnings
            .kept()
            .iter()
            .map(|warning| warning.note.reason.as_str())
            .collect();
        let told = |text: &str| reasons.iter().filter(|reason| reason.contains(text)).count();
        assert_eq!(
            (told("only root can"), told("device"), told("extended attribute")),
            (1, 1, 1),
            "{reasons:#?}"
        );
        assert!(!place.join("device").exists());
    }
}

#[test]
fn without_owners_nothing_keeps_the_rights_of_another() {
    let world = world();
    let root = world.path("root");
    fs::create_dir(&root).unwrap();
    for (name, uid) in [("theirs", 1234), ("mine", rustix::process::geteuid().as_raw())] {
        write(&root.join(name), name);
        if is_root() {
            owner(&root.join(name), uid, rustix::process::getegid().as_raw());
        }
        mode(&root.join(name), 0o4755);
    }
    let tar = world.dump(config(&root)).unwrap().tar;
    let place = world.path("target");
    let options = RestoreOptions { no_owner: true, ..RestoreOptions::default() };
    let restored = world.restore_with(&mut &*tar, &place, &options).unwrap();
    assert!(restored.remarks.warnings.is_empty(), "{:?}", restored.remarks.warnings);
    let metadata = |name: &str| place.join(name).metadata().unwrap();
    assert_eq!(metadata("mine").mode() & 0o7777, 0o4755);
    assert_eq!(metadata("theirs").uid(), rustix::process::geteuid().as_raw());
    if is_root() {
        assert_eq!(metadata("theirs").mode() & 0o7777, 0o755);
    }
}

#[test]
fn a_tarball_in_any_order_gives_the_same_tree() {
    let world = world();
    let root = world.path("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir_all(root.join("c")).unwrap();
    for name in ["a/1", "a/b/2", "c/3", "4"] {
        write(&root.join(name), name);
        super::mtime(&root.join(name), 1_000, 5);
    }
    mode(&root.join("a"), 0o500);
    for name in ["a/b", "a", "c", ""] {
        super::mtime(&root.join(name), 2_000, 7);
    }
    // Folders first, files after, from one to the other and back.
    let command = format!(
        "tar --format=posix -C '{}' --no-recursion -cf - . a c a/b c/3 a/1 4 a/b/2",
        root.display()
    );
    let tar = super::run("sh", &["-c".as_ref(), command.as_ref()], &[]);
    let place = world.path("target");
    world.restore(&tar, &place).unwrap();
    assert_same(&listing(&place, &[]), &listing(&root, &[]), "folders first");
    // Without any folders: they are made.
    let command =
        format!("tar --format=posix -C '{}' --no-recursion -cf - a/b/2 a/1", root.display());
    let tar = super::run("sh", &["-c".as_ref(), command.as_ref()], &[]);
    let place = world.path("parts");
    world.restore(&tar, &place).unwrap();
    assert_eq!(fs::read(place.join("a/b/2")).unwrap(), b"a/b/2");
    assert_eq!(
        place.metadata().unwrap().mode() & 0o777,
        0o700,
        "of which nothing is said, nobody else may see"
    );
}

#[test]
fn a_folder_that_is_only_gone_through_keeps_its_default_list() {
    let world = world();
    let root = world.path("root");
    fs::create_dir_all(root.join("folder")).unwrap();
    write(&root.join("folder/x"), "x");
    let set = |list: &str, path: &std::path::Path| {
        super::run("setfacl", &["-m".as_ref(), list.as_ref(), path.as_os_str()], &[]);
    };
    // The tarball does not name the folder, which is there already.
    let command = format!("tar --format=posix -C '{}' -cf - folder/x", root.display());
    let tar = super::run("sh", &["-c".as_ref(), command.as_ref()], &[]);
    let place = world.path("target");
    fs::create_dir_all(place.join("folder")).unwrap();
    set("user:1000:r-x,default:user:1001:rwx", &place.join("folder"));
    set("default:group:7:r--", &place);
    let before = listing(&place, &[]);
    world.restore_with(&mut &*tar, &place, &OVERWRITE).unwrap();
    fs::remove_file(place.join("folder/x")).unwrap();
    let lists = |lines: &[String]| -> Vec<String> {
        lines.iter().map(|line| line.split("system.").skip(1).collect()).collect()
    };
    assert!(before.iter().all(|line| line.contains("posix_acl_default")), "{before:#?}");
    assert_eq!(lists(&listing(&place, &[])), lists(&before));
}
