//! A snapshot travels in one ordinary file, and arrives whole or not at all.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::copy::without_configuration;
use crate::support::site::{Site, noise, s3_storage, small_tree};
use crate::support::stores::{Server, fresh};
use crate::support::{Ran, age_key, backup, files, s3, sh};

const APP: &str = r#"
[sources.db]
type = "sqlite"
path = "@/app.db"
[sources.files]
type = "directory"
path = "@/data"
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["db", "files"]
storages = ["local"]
"#;

fn sql(site: &Site, file: &Path, sql: &str) -> String {
    sh(site.dir.path(), "sqlite3 \"$1\" \"$2\"", &[file.as_os_str(), sql.as_ref()])
}

/// A machine with an application.
fn host(extra: &str) -> Site {
    let site = Site::new(&format!("{APP}{extra}"));
    small_tree(&site.path("data"));
    std::fs::write(site.path("data/noise"), noise(3_000_000)).unwrap();
    sql(&site, &site.path("app.db"), "CREATE TABLE t(x); INSERT INTO t VALUES (1), (41)");
    site
}

fn export(site: &Site, output: &str, extra: &[&str], code: i32) -> Ran {
    let args =
        site.backup(["export", "--strategy", "daily", "--json", "--output"]).arg(site.path(output));
    args.args(extra.iter().copied()).expect(code)
}

fn import(site: &Site, file: &Path, extra: &[&str], code: i32) -> Ran {
    site.backup(["import", "--storage", "local", "--json"])
        .arg(file)
        .args(extra.iter().copied())
        .expect(code)
}

/// The application's data, out of the storage of `site`, is that of `origin`.
fn restores(site: &Site, origin: &Site, extra: &[&str]) {
    let out = site.path("out");
    site.backup(["restore", "--strategy", "daily", "--to"])
        .arg(&out)
        .args(extra.iter().copied())
        .expect(0);
    is_the_data(&out, origin);
}

fn is_the_data(out: &Path, origin: &Site) {
    let data = origin.path("data");
    let files = if out.join("files").is_dir() { out.join("files") } else { out.to_owned() };
    sh(out, r#"diff -r --no-dereference "$1" "$2""#, &[data.as_os_str(), files.as_os_str()]);
    let databases = sh(out, "find . -name '*db*' -type f", &[]);
    let database = out.join(databases.trim());
    assert_eq!(sql(origin, &database, "SELECT sum(x) FROM t"), "42\n");
}

/// The hidden things beside the files of the site.
fn hidden(site: &Site) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(site.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('.')).collect()
}

#[test]
fn a_fresh_snapshot_of_one_machine_is_restored_on_another() {
    let (here, there) = (host(""), Site::new(APP));
    let exported = export(&here, "app.tar", &[], 0).json();
    let file = here.path("app.tar");
    assert_eq!(exported["export"]["bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!here.path("store").exists() && here.ids().is_empty(), "no storage was touched");
    assert!(hidden(&here).is_empty(), "{:?}", hidden(&here));

    let imported = import(&there, &file, &[], 0).json();
    assert_eq!(imported["id"], exported["export"]["id"]);
    assert_eq!(imported["present"], false);
    assert_eq!(there.ids(), [imported["id"].as_str().unwrap()]);
    there.backup(["verify", "--read-data"]).expect(0);
    restores(&there, &here, &[]);
    assert_eq!(
        import(&there, &file, &[], 0).json()["present"],
        true,
        "a second time it is there \
        already"
    );
    assert_eq!(there.folders().len(), 1);
    assert_eq!(sh(there.dir.path(), "find store -name run.json -o -name '*.part'", &[]), "");
}

#[test]
fn ordinary_programs_read_the_file_and_its_own_text_says_how() {
    let here = host("");
    export(&here, "app.tar", &[], 0);
    let listed = sh(here.dir.path(), "tar tf app.tar", &[]);
    let names: Vec<&str> = listed.lines().collect();
    assert_eq!(names[0], "README.txt");
    assert!(
        names.last().unwrap().ends_with("/manifest.json") && names[1].starts_with("app/daily/"),
        "{listed}"
    );
    assert_eq!(sh(here.dir.path(), "bsdtar tf app.tar", &[]), listed);
    sh(here.dir.path(), "mkdir x && tar xf app.tar -C x", &[]);
    // Extracted it is a storage.
    backup(["verify", "--read-data", "--storage"]).arg(here.path("x/")).expect(0);
    // By hand, as the text says.
    let script = "export DIR=$PWD/by-hand; mkdir -p \"$DIR\"; cd x; grep '^    cat ' README.txt > \
        ../steps; bash -euo pipefail ../steps";
    sh(here.dir.path(), script, &[]);
    let out = here.path("by-hand");
    assert_eq!(sql(&here, &here.path("x/db.sqlite"), "SELECT sum(x) FROM t"), "42\n");
    assert_eq!(
        std::fs::read(out.join("noise")).unwrap(),
        std::fs::read(here.path("data/noise")).unwrap()
    );
}

#[test]
fn an_encrypted_file_opens_with_age_alone() {
    let keys = crate::support::temp();
    let (identity, recipient) = age_key(keys.path(), "key.txt");
    let (other, _) = age_key(keys.path(), "other.txt");
    let encryption = format!("[encryption]\nrecipients = [\"{recipient}\"]\n");
    let (here, there) = (host(&encryption), Site::new(APP));
    export(&here, "app.tar.age", &[], 0);
    export(&here, "app.tar", &[], 0);
    let file = here.path("app.tar.age");
    let key = identity.to_str().unwrap();
    let listed =
        sh(here.dir.path(), r#"age -d -i "$1" app.tar.age | tar t"#, &[identity.as_os_str()]);
    assert!(
        listed.contains("db.sqlite.zst.age"),
        "what is in it is encrypted as in a run: \
        {listed}"
    );
    assert_eq!(sh(here.dir.path(), "tar tf app.tar", &[]).lines().count(), listed.lines().count());

    assert!(import(&there, &file, &[], 2).err().contains("`--identity-file`"));
    import(&there, &file, &["--identity-file", other.to_str().unwrap()], 2);
    assert!(there.folders().is_empty());
    import(&there, &file, &["--identity-file", key], 0);
    restores(&there, &here, &["--identity-file", key]);
    // A file in which only the artifacts are encrypted travels without a key.
    let third = Site::new(APP);
    import(&third, &here.path("app.tar"), &[], 0);
    restores(&third, &here, &["--identity-file", key]);

    let plain = host("");
    assert!(export(&plain, "app.tar.age", &[], 2).err().contains("recipients"));
    export(&plain, "app.zip", &[], 2);
}

#[test]
fn a_snapshot_that_a_storage_has_is_exported_without_a_run() {
    let (here, there) = (host(""), Site::new(APP));
    here.run(0);
    let id = here.ids().remove(0);
    std::fs::remove_file(here.path("app.db")).unwrap();
    let exported = export(&here, "app.tar", &["--snapshot", "latest"], 0).json();
    assert_eq!(exported["export"]["id"], id.as_str());
    import(&there, &here.path("app.tar"), &[], 0);
    there.backup(["verify", "--read-data"]).expect(0);
    // What is damaged does not travel.
    let tarball = here.newest().join("files.tar.zst");
    let mut bytes = std::fs::read(&tarball).unwrap();
    bytes[1_000_000] ^= 1;
    std::fs::write(&tarball, bytes).unwrap();
    let damaged = export(&here, "again.tar", &["--snapshot", "latest"], 4);
    assert!(damaged.err().contains("files.tar.zst"), "{damaged}");
    assert!(!here.path("again.tar").exists() && hidden(&here).is_empty());
}

#[test]
fn a_file_that_exists_is_replaced_only_when_that_is_asked_for() {
    let here = host("");
    std::fs::write(here.path("app.tar"), "precious").unwrap();
    assert!(export(&here, "app.tar", &[], 2).err().contains("`--overwrite`"));
    assert_eq!(std::fs::read(here.path("app.tar")).unwrap(), b"precious");
    // A source that fails leaves the old file, too.
    let broken = APP.replace("@/data", "@/missing");
    here.configure(&broken);
    export(&here, "app.tar", &["--overwrite"], 1);
    assert_eq!(std::fs::read(here.path("app.tar")).unwrap(), b"precious");
    assert!(hidden(&here).is_empty());
    here.configure(APP);
    export(&here, "app.tar", &["--overwrite"], 0);
    sh(here.dir.path(), "tar tf app.tar", &[]);
}

/// Waits until `condition` holds.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_export_that_is_stopped_leaves_nothing_and_one_that_is_killed_is_cleaned_up_after() {
    for (signal, code) in [(Signal::TERM, Some(1)), (Signal::KILL, None)] {
        let site = Site::new(&APP.replace(
            "type = \"directory\"\npath = \"@/data\"",
            "type = \"command\"\ncommand = [\"sh\", \"-c\", \"touch @/reached; read x < @/gate; \
             echo end\"]",
        ));
        sql(&site, &site.path("app.db"), "CREATE TABLE t(x)");
        sh(site.dir.path(), "mkfifo gate", &[]);
        let start = || {
            site.backup(["export", "--strategy", "daily", "--output"])
                .arg(site.path("app.tar"))
                .spawn()
        };
        let running = start();
        until("the source is read", || site.path("reached").exists());
        export(&site, "app.tar", &[], 2);
        running.signal(signal);
        assert_eq!(running.wait().code(), code);
        assert!(!site.path("app.tar").exists());
        assert_eq!(hidden(&site).is_empty(), code.is_some());
        std::fs::remove_file(site.path("gate")).unwrap();
        std::fs::write(site.path("gate"), "go\n").unwrap();
        export(&site, "app.tar", &[], 0);
        assert!(hidden(&site).is_empty());
    }
}

#[test]
fn another_application_is_not_taken_in_by_mistake() {
    let here = host("");
    export(&here, "app.tar", &[], 0);
    let there = Site::new(APP);
    let other = there.path("other.toml");
    let text = std::fs::read_to_string(there.config()).unwrap().replace("\"app\"", "\"other\"");
    std::fs::write(&other, text).unwrap();
    let refused = backup(["--config"])
        .arg(&other)
        .args(["import", "--storage", "local"])
        .arg(here.path("app.tar"))
        .env("HOME", there.dir.path())
        .expect(2);
    assert!(refused.err().contains("`app`") && refused.err().contains("`other`"), "{refused}");
    assert!(there.folders().is_empty());
    // By its address a storage takes whatever it is given.
    let (file, store) = (here.path("app.tar"), there.path("store"));
    without_configuration(
        &there,
        r#"import "$1" --storage "$2""#,
        &[file.as_os_str(), store.as_os_str()],
    );
    there.backup(["verify", "--read-data"]).expect(0);
}

/// The members of a tar file, by name, with the content.
fn members(file: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(std::fs::File::open(file).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, std::fs::File>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (String::from_utf8_lossy(&entry.path_bytes()).into_owned(), content)
    };
    archive.entries().unwrap().map(read).collect()
}

/// A tar file of these members, as they are.
fn pack(file: &Path, members: &[(String, Vec<u8>)]) {
    let mut archive = tar::Builder::new(std::fs::File::create(file).unwrap());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        let place = header.as_ustar_mut().unwrap();
        // `set_path` refuses what a hostile writer would not.
        let (prefix, rest) = if name.len() > 100 {
            name.split_at(name.find('/').unwrap())
        } else {
            ("", name.as_str())
        };
        let rest = if prefix.is_empty() { rest } else { &rest[1..] };
        place.prefix[..prefix.len()].copy_from_slice(prefix.as_bytes());
        place.name[..rest.len()].copy_from_slice(rest.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        archive.append(&header, content.as_slice()).unwrap();
    }
    archive.finish().unwrap();
}

#[test]
fn marks_travel_in_the_file() {
    let here = host("");
    here.run(0);
    let id = here.ids().remove(0);
    here.backup(["hold", &id, "--reason", "audit"]).expect(0);
    let file = here.path("held.tar");
    export(&here, "held.tar", &["--snapshot", &id], 0);
    let there = Site::new(&format!("{APP}retention = {{ keep_last = 1 }}\n"));
    import(&there, &file, &[], 0);
    let marks = |site: &Site| files(&site.path("store/app/marks"));
    assert_eq!(marks(&there), marks(&here));
    let held = |site: &Site| {
        let list = site.backup(["list", "--json"]).expect(0).json();
        !list["snapshots"][0]["held"].is_null()
    };
    assert!(held(&there));
    // It is the oldest, and stays.
    plant_newer(&there, &here);
    there.backup(["prune", "--yes", "--force"]).expect(0);
    assert!(there.ids().contains(&id));
    // A release that came later comes with the next file, though the snapshot is there.
    here.backup(["release", &id]).expect(0);
    export(&here, "released.tar", &["--snapshot", &id], 0);
    import(&there, &here.path("released.tar"), &[], 0);
    assert!(!held(&there));
    there.backup(["prune", "--yes", "--force"]).expect(0);
    assert!(!there.ids().contains(&id));

    // The extracted file is a storage that has them too.
    sh(here.dir.path(), "mkdir unpacked && tar xf held.tar -C unpacked", &[]);
    let unpacked = here.path("unpacked");
    let list = ["list", "--storage", unpacked.to_str().unwrap(), "--json"];
    assert!(!backup(list).expect(0).json()["snapshots"][0]["held"].is_null());

    let all = members(&file);
    let (name, mark) = all.iter().find(|(name, _)| name.contains("/marks/")).unwrap().clone();
    let other = format!("{}1", &id[..id.len() - 1]);
    let other = if other == id { format!("{}2", &id[..id.len() - 1]) } else { other };
    for (name, content) in [
        (name.replacen(&id, &other, 1), mark.clone()),
        (name.clone(), vec![b' '; (1 << 20) + 1]),
        (name.clone(), mark.iter().map(|byte| byte ^ 1).collect()),
        (name.replace(".json", ""), Vec::new()),
    ] {
        let mut with = all.clone();
        with.insert(1, (name.clone(), content));
        pack(&here.path("hostile.tar"), &with);
        let elsewhere = Site::new(APP);
        import(&elsewhere, &here.path("hostile.tar"), &[], 4);
        assert!(elsewhere.folders().is_empty(), "{name}");
        assert!(!elsewhere.path("store/app/marks").exists(), "{name}");
    }
}

/// Brings a newer snapshot of `from` to `to`.
fn plant_newer(to: &Site, from: &Site) {
    from.run(0);
    export(from, "newer.tar", &["--snapshot", "latest"], 0);
    import(to, &from.path("newer.tar"), &[], 0);
}

#[test]
fn a_file_that_is_not_one_whole_snapshot_leaves_nothing_behind() {
    let (here, there) = (host(""), Site::new(APP));
    here.run(0);
    export(&here, "one.tar", &["--snapshot", "latest"], 0);
    export(&here, "two.tar", &[], 0);
    let (one, two) = (members(&here.path("one.tar")), members(&here.path("two.tar")));
    let folder = one.last().unwrap().0.strip_suffix("manifest.json").unwrap().to_owned();
    let file = there.path("hostile.tar");
    let refused = |what: &str, says: &str| {
        let refused = import(&there, &file, &[], 4);
        assert!(refused.err().contains(says), "{what}: {refused}");
        assert!(there.folders().is_empty(), "{what}: {:?}", there.folders());
        assert_eq!(
            sh(there.dir.path(), "find . -name '*.part' -o -name '*evil*'", &[]),
            "",
            "{what}"
        );
    };
    let with = |name: &str, content: &[u8]| {
        let mut all = one.clone();
        all.insert(1, (name.to_owned(), content.to_vec()));
        pack(&file, &all);
    };
    for name in [
        format!("{folder}../../../../evil"),
        format!("{folder}sub/evil"),
        format!("/{folder}evil"),
        "../evil".to_owned(),
        "evil".to_owned(),
        format!("{folder}.evil"),
    ] {
        with(&name, b"x");
        refused(&name, "is not of a snapshot");
    }
    with(&format!("{folder}evil"), b"x");
    refused("an object too many", "does not name");
    with(&format!("{folder}run.json"), b"x");
    refused("a heartbeat", "is not of a snapshot");
    with(&one[1].0, &one[1].1);
    refused("an object twice", "twice");
    with(&two[1].0, &two[1].1);
    refused("two snapshots", "");

    let without = |index: usize| {
        let mut all = one.clone();
        all.remove(index);
        pack(&file, &all);
    };
    without(2);
    refused("an object is missing", "is missing");
    without(one.len() - 1);
    refused("no manifest", "no manifest");
    let mut exchanged = one.clone();
    exchanged.last_mut().unwrap().1 = two.last().unwrap().1.clone();
    pack(&file, &exchanged);
    refused("another manifest", "manifest.json");

    let whole = std::fs::read(here.path("one.tar")).unwrap();
    for cut in [0, 100, 700, 5_000, whole.len() / 2, whole.len() - 4_000] {
        std::fs::write(&file, &whole[..cut]).unwrap();
        refused("cut", "");
    }
    for position in (600..whole.len()).step_by(whole.len() / 12) {
        let mut flipped = whole.clone();
        flipped[position] ^= 1;
        std::fs::write(&file, flipped).unwrap();
        // In the text, or in what fills a block up, it does no harm.
        let ran = there.backup(["import", "--storage", "local"]).arg(&file).run();
        match ran.code() {
            Some(0) => {
                there.backup(["verify", "--read-data"]).expect(0);
                std::fs::remove_dir_all(there.path("store")).unwrap();
            }
            code => assert!(code == Some(4) && there.folders().is_empty(), "{ran}"),
        }
    }
    let links = r#"mkdir l && cd l && mkdir -p "$1" && ln -s /etc/passwd "$1"link && tar cf ../hostile.tar "$1"link"#;
    sh(there.dir.path(), links, &[folder.as_ref()]);
    refused("a link", "not an ordinary file");
    import(&there, Path::new("/no/such/file.tar"), &[], 1);
    // What is right is taken in after all that.
    import(&there, &here.path("one.tar"), &[], 0);
    there.backup(["verify", "--read-data"]).expect(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_taken_into_a_bucket_and_an_import_that_is_stopped_leaves_nothing() {
    let here = host("");
    export(&here, "app.tar", &[], 0);
    let file = here.path("app.tar");
    let bucket = fresh("bucket");
    Server::SeaweedFs.client().create_bucket().bucket(&bucket).send().await.unwrap();
    let local = "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n";
    let there = Site::new(&APP.replace(local, &s3_storage("local", &s3("SEAWEEDFS"), &bucket)));
    import(&there, &file, &[], 0);
    there.backup(["verify", "--read-data"]).expect(0);
    restores(&there, &here, &[]);
    assert_eq!(Server::SeaweedFs.unfinished_uploads(&bucket).await, Some(0));

    for (signal, code) in [(Signal::TERM, Some(1)), (Signal::KILL, None)] {
        let slow = Site::new(&format!("upload_rate = \"500KiB/s\"\n{APP}"));
        let running = slow.backup(["import", "--storage", "local"]).arg(&file).spawn();
        until("it began to write", || {
            !sh(
                slow.dir.path(),
                "find . -name '*.zst' -o -name \
            '*.part'",
                &[],
            )
            .is_empty()
        });
        running.signal(signal);
        assert_eq!(running.wait().code(), code);
        assert!(slow.ids().is_empty(), "nothing half is listed");
        assert_eq!(slow.folders().is_empty(), code.is_some());
        slow.configure(APP);
        import(&slow, &file, &[], 0);
        slow.backup(["verify", "--read-data"]).expect(0);
        assert_eq!(sh(slow.dir.path(), "find store -name run.json -o -name '*.part'", &[]), "");
    }
    // It may come through a pipe, too.
    let piped = Site::new(APP);
    let script = r#"cat "$1" | "$2" --config app.toml import /dev/stdin --storage local"#;
    sh(piped.dir.path(), script, &[file.as_os_str(), env!("CARGO_BIN_EXE_backup").as_ref()]);
    piped.backup(["verify", "--read-data"]).expect(0);
}
