//! What a snapshot could not have: it is named before and after a restore, and `--delete` leaves it
//! alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::support::site::Site;
use crate::support::{Ran, needs_root, sh};

const PROGRAM: &str = env!("CARGO_BIN_EXE_backup");

/// The source `data`, and everything that the program writes inside it.
const INSIDE: &str = r#"
work_dir = "@/data/work"
[sources.data]
type = "directory"
path = "@/data"
[storages.local]
type = "local"
path = "@/data/deep/link"
[strategies.daily]
sources = ["data"]
storages = ["local"]
drill = { work_dir = "@/data/drills" }
"#;

fn paths(site: &Site, id: &str) -> BTreeSet<String> {
    let shown = site.backup(["show", id, "--files", "--json"]).expect(0).json();
    let files = shown["files"].as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

fn notes(report: &Value, key: &str) -> BTreeMap<String, String> {
    let kept = report[key]["kept"].as_array().unwrap().iter();
    let text = |note: &Value, key: &str| note[key].as_str().unwrap_or_default().to_owned();
    kept.map(|note| (text(note, "path"), text(note, "reason"))).collect()
}

/// The code of the error that a command with `--json` ended with.
fn code(ran: &Ran) -> String {
    let err = ran.err();
    let error: Value = serde_json::from_str(err.lines().next_back().unwrap()).unwrap();
    error["error"]["code"].as_str().unwrap().to_owned()
}

fn inside() -> Site {
    let site = Site::new(INSIDE);
    let script = r#"
        mkdir -p data/deep data/real data/drills data/work; ln -s ../real data/deep/link
        echo one >data/one; mkdir data/folder; echo two >data/folder/two
    "#;
    sh(site.dir.path(), script, &[]);
    site
}

#[test]
fn folders_of_the_program_are_left_out() {
    let site = inside();
    let first = site.run(0).json();
    let second = site.run(0).json();
    assert_eq!(first["plain_bytes"], second["plain_bytes"], "it does not grow by itself");
    let left_out: Vec<String> = notes(&second, "notes").into_keys().collect();
    assert_eq!(left_out, ["drills", "real", "work"]);
    let taken = paths(&site, "latest");
    for path in ["real", "work", "drills", "deep/link", "folder/two"] {
        assert!(taken.contains(path), "{path}: {taken:?}");
    }
    assert!(taken.iter().all(|path| !path.starts_with("real/") && !path.starts_with("work/")));
    let check = site.backup(["check", "--json"]).run().json();
    let findings = check["instances"][0]["sources"][0]["findings"].as_array().unwrap();
    let told = |what: &str| {
        findings.iter().any(|finding| finding["message"].as_str().unwrap().contains(what))
    };
    assert!(told("the storage `local`") && told("`work_dir`"), "{findings:#?}");
}

#[test]
fn deleting_spares_folders_of_the_program() {
    let site = inside();
    // An older snapshot holds the folders as they were: the storage is put among them later.
    site.run(0);
    sh(site.dir.path(), "echo extra >data/extra; mkdir data/gone; echo x >data/gone/x", &[]);
    let to = site.dir.path().to_str().unwrap();
    let restore = ["restore", "--to", to, "--overwrite", "--delete", "--json"];
    let plan = site.backup([&restore[..], &["--dry-run"]].concat()).expect(0).json();
    let preview = &plan["artifacts"][0]["preview"];
    assert_eq!((preview["deletes"].as_u64(), preview["keeps"].as_u64()), (Some(3), Some(3)));
    let report = site.backup(restore).expect(0).json();
    assert_eq!(report["restored"][0]["files"]["deleted"], 3);
    let spared: Vec<String> = notes(&report, "notes").into_keys().collect();
    assert_eq!(spared, ["drills", "real", "work"]);
    assert!(!site.path("data/extra").exists() && !site.path("data/gone").exists());
    assert_eq!(site.ids().len(), 1, "the storage is as it was");
    site.backup(["verify", "--read-data"]).expect(0);
}

#[test]
fn a_storage_made_later_is_spared_too() {
    let site = Site::new(&INSIDE.replace("@/data/deep/link", "@/store"));
    sh(site.dir.path(), "mkdir -p data/drills; echo one >data/one", &[]);
    site.run(0);
    // Since then the storage was moved into the source.
    sh(site.dir.path(), "mkdir data/deep; mv store data/deep/store", &[]);
    site.configure(&INSIDE.replace("@/data/deep/link", "@/data/deep/store"));
    let to = site.dir.path().to_str().unwrap();
    let report =
        site.backup(["restore", "--to", to, "--overwrite", "--delete", "--json"]).expect(0).json();
    assert!(notes(&report, "notes").contains_key("deep/store"), "{report:#}");
    assert_eq!(site.ids().len(), 1);
    // Nor from within it.
    let within = site.path("data/deep/store/target");
    std::fs::create_dir_all(within.join("data")).unwrap();
    let within = within.to_str().unwrap();
    let refused =
        site.backup(["restore", "--to", within, "--overwrite", "--delete", "--json"]).expect(1);
    assert_eq!(code(&refused), "delete_unsafe");
}

#[test]
fn a_source_that_is_its_storage_is_refused() {
    let site = Site::new(&INSIDE.replace("@/data/deep/link", "@/data"));
    let refused = site.backup(["--strategy", "daily", "--json"]).expect(2);
    assert_eq!(code(&refused), "config_invalid_value", "{refused}");
}

/// A tree that an ordinary user can read in part only.
const UNREADABLE: &str = r#"
    mkdir -p data/secret data/listable data/open
    echo s >data/secret/file; echo l >data/listable/inner; echo o >data/open/file
    echo p >data/private; echo b >"data/$(printf 'odd-\xfe')"
    chmod 0700 data/secret; chmod 0744 data/listable; chmod 0600 data/private data/odd-*
"#;

fn partial() -> Site {
    needs_root("some files must be another user's");
    let site = Site::new(
        "work_dir = \"@/work\"\n[sources.data]\ntype = \"directory\"\npath = \"@/data\"\n\
         [storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"data\"]\nstorages = [\"local\"]\n",
    );
    sh(site.dir.path(), UNREADABLE, &[]);
    as_nobody(&site, "\"$1\" --config app.toml --strategy daily --json >run.json || [ $? = 3 ]");
    // From here on root reads it.
    sh(site.dir.path(), "chown -R 0:0 state work store", &[]);
    site
}

/// Runs a script as an ordinary user, who may write to the program's own folders.
fn as_nobody(site: &Site, script: &str) {
    std::fs::write(site.path("nobody.sh"), script).unwrap();
    let prepare = r#"
        mkdir -p state work store out; touch run.json; chmod 0755 .
        chown -R 64999 state work store out run.json
        umask 077; cp "$1" out/backup; chown 64999 out/backup
        setpriv --reuid 64999 --regid 64999 --clear-groups --no-new-privs --inh-caps=-all \
            env HOME="$PWD/out" bash -euo pipefail nobody.sh "$PWD/out/backup"
    "#;
    sh(site.dir.path(), prepare, &[PROGRAM.as_ref()]);
}

fn missing(report: &Value) -> BTreeSet<String> {
    let entries = report["missing"]["entries"].as_array().unwrap();
    assert_eq!(report["missing"]["count"].as_u64().unwrap(), entries.len() as u64, "{report:#}");
    let path = |entry: &Value| {
        assert!(!entry["reason"].as_str().unwrap().is_empty(), "{entry}");
        entry["path"].as_str().or(entry["path_b64"].as_str()).unwrap().to_owned()
    };
    entries.iter().map(path).collect()
}

#[test]
fn what_a_partial_snapshot_lacks_is_named() {
    let site = partial();
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(site.newest().join("manifest.json")).unwrap())
            .unwrap();
    let requires = manifest["manifest"]["requires"].as_array().unwrap();
    assert!(requires.contains(&"missing".into()), "{requires:?}");
    // `odd-\xfe` in base64.
    let all: BTreeSet<String> =
        ["listable/inner", "b2RkLf4=", "private", "secret"].map(str::to_owned).into();
    let to = site.path("restored");
    let to = to.to_str().unwrap();
    let by_id = site.ids().remove(0);
    let restore = ["restore", "--snapshot", &by_id, "--to", to, "--json"];
    let plan = site.backup([&restore[..], &["--dry-run"]].concat()).expect(3).json();
    assert_eq!(missing(&plan), all);
    let ran = site.backup(restore).expect(3);
    assert_eq!(missing(&ran.json()), all);
    let before = ran.err();
    assert!(all.iter().filter(|path| !path.ends_with('=')).all(|path| before.contains(path)));
    // Of some paths only what they could have matched.
    for (path, lacks) in [
        ("/open", &[][..]),
        ("/secret/deep/file", &["secret"]),
        ("*.pdf", &["secret", "listable/inner", "private", "b2RkLf4="]),
        ("/listable/", &["listable/inner"]),
    ] {
        let chosen = ["restore", "--snapshot", &by_id, "--to", to, "--path", path, "--overwrite"];
        let plan = site.backup([&chosen[..], &["--dry-run", "--json"]].concat()).run();
        let told = all.iter().filter(|lacking| plan.err().contains(&format!("data/{lacking}")));
        let wanted = lacks.iter().filter(|lacking| !lacking.ends_with('='));
        assert_eq!(told.count(), wanted.count(), "{path}: {plan}");
        // In what could not be read nothing matches.
        if plan.code() != Some(1) {
            assert_eq!(missing(&plan.json()).len(), lacks.len(), "{path}: {plan}");
            assert_eq!(plan.code(), Some(if lacks.is_empty() { 0 } else { 3 }), "{plan}");
        }
    }
    // And of a folder that is dumped.
    site.backup(["dump", &by_id, "data", "open"]).expect(0);
    assert!(site.backup(["dump", &by_id, "data"]).expect(3).err().contains("private"));
    assert!(site.backup(["dump", &by_id, "data", "listable"]).expect(3).err().contains("inner"));
    let gone = site.backup(["dump", &by_id, "data", "secret/file"]).expect(1);
    assert!(gone.err().contains("`secret` could not be read"), "{gone}");
}

#[test]
fn deleting_spares_what_could_not_be_read() {
    let site = partial();
    sh(site.dir.path(), "echo extra >data/open/extra; mkdir data/new; echo x >data/new/x", &[]);
    let before = crate::support::files(&site.path("data"));
    let (to, id) = (site.dir.path().to_str().unwrap().to_owned(), site.ids().remove(0));
    let report = site
        .backup(["restore", "--snapshot", &id, "--to", &to, "--overwrite", "--delete", "--json"])
        .expect(3)
        .json();
    let spared: Vec<String> = notes(&report, "warnings").into_keys().collect();
    assert_eq!(spared, ["listable/inner", "odd-\u{fffd}", "private", "secret"]);
    let mut expected = before;
    assert!(expected.remove(Path::new("open/extra").as_os_str()).is_some());
    assert!(expected.remove(Path::new("new/x").as_os_str()).is_some());
    assert_eq!(crate::support::files(&site.path("data")), expected);
    assert!(!site.path("data/new").exists());
}

#[test]
fn an_ordinary_user_restores_beside_what_stays_closed() {
    let site = partial();
    let script = r#"
        "$1" --config app.toml restore --snapshot "$(ls store/app/daily | head -n 1)" --to out \
            --json >out/first.json || [ $? = 3 ]
        mkdir -p out/data/secret/closed out/data/listable/inner/in out/data/private
        touch out/data/extra out/data/private/file
        chmod 0 out/data/secret/closed out/data/listable/inner out/data/private
        "$1" --config app.toml restore --snapshot "$(ls store/app/daily | head -n 1)" --to out \
            --overwrite --delete --json >out/second.json || [ $? = 3 ]
        [ ! -e out/data/extra ]
        chmod -R u+rwx out/data
        [ -d out/data/secret/closed -a -d out/data/listable/inner/in -a -f out/data/private/file ]
    "#;
    as_nobody(&site, script);
}

#[test]
fn deleting_spares_what_the_rules_leave_out() {
    let site = Site::new(
        "[sources.data]\ntype = \"directory\"\npath = \"@/data\"\nexclude_caches = true\n\
         include = [\"keep/\", \"/some/where/*.pdf\"]\ninclude_if_present = [\"*.txt\"]\n\
         exclude = [\"*.tmp\", \"/keep/cache/\"]\n\
         [storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"data\"]\nstorages = [\"local\"]\n",
    );
    let make = r#"
        mkdir -p data/keep/cache data/keep/marked data/other data/some/where; cd data
        for file in keep/file keep/cache/c keep/a.tmp keep/marked/m other/o other/t.txt \
            some/where/a.pdf some/where/b
        do echo x >$file; done
        printf "Signature: 8a477f597d28d172789f06886806bc55" >keep/marked/CACHEDIR.TAG
    "#;
    sh(site.dir.path(), make, &[]);
    site.run(0);
    // The same tree with more of everything.
    let more = r#"
        mkdir -p data/some/new/deep; cd data
        for file in keep/cache/later keep/later.tmp keep/marked/later other/later some/where/later \
            keep/extra other/extra.txt some/where/extra.pdf some/new/deep/later
        do echo later >$file; done
        python3 -c "import socket; socket.socket(socket.AF_UNIX).bind(\"keep/socket\")"
    "#;
    sh(site.dir.path(), more, &[]);
    let to = site.dir.path().to_str().unwrap();
    let restore = ["restore", "--to", to, "--overwrite", "--delete", "--json"];
    let plan = site.backup([&restore[..], &["--dry-run"]].concat()).expect(0).json();
    let report = site.backup(restore).expect(0).json();
    let changes = plan["artifacts"][0]["preview"]["changes"].as_array().unwrap().clone();
    let planned = |action: &str| -> BTreeSet<String> {
        let of = changes.iter().filter(|change| change["action"] == action);
        of.map(|change| change["path"].as_str().unwrap().to_owned()).collect()
    };
    let gone: BTreeSet<String> =
        ["keep/extra", "other/extra.txt", "some/where/extra.pdf"].map(str::to_owned).into();
    assert_eq!(planned("delete"), gone);
    let spared: BTreeSet<String> = notes(&report, "notes").into_keys().collect();
    assert_eq!(planned("keep"), spared);
    for path in ["keep/cache", "keep/later.tmp", "keep/marked", "other/later", "keep/socket"] {
        assert!(spared.contains(path), "{path}: {spared:?}");
    }
    for path in ["keep/cache/later", "keep/marked/later", "some/where/later", "keep/socket"] {
        assert!(site.path("data").join(path).exists(), "{path}");
    }
    assert!(site.path("data/some/new/deep/later").exists());
    assert!(gone.iter().all(|path| !site.path("data").join(path).exists()));
}

#[test]
fn folders_of_other_instances_are_spared_too() {
    let site = Site::new("");
    let instance = |name: &str, source: &str, store: &str| {
        let text = format!(
            "instance = \"{name}\"\nstate_dir = \"@/{store}-state\"\n[sources.srv]\n\
             type = \"directory\"\npath = \"@/{source}\"\n[storages.local]\ntype = \"local\"\n\
             path = \"@/{store}\"\n[strategies.daily]\nsources = [\"srv\"]\nstorages = [\"local\"]\n"
        );
        let text = text.replace('@', site.dir.path().to_str().unwrap());
        std::fs::write(site.path("cfg").join(format!("{name}.toml")), text).unwrap();
    };
    sh(site.dir.path(), "mkdir -p cfg srv app; echo 1 >srv/one; echo 2 >app/two", &[]);
    instance("a", "app", "srv/of-a");
    instance("b", "srv", "of-b");
    let cfg = site.path("cfg");
    let backup = |args: &[&str]| crate::support::backup(["--config"]).arg(&cfg).args(args);
    backup(&["--strategy", "daily", "--instance", "b"]).expect(0);
    backup(&["--strategy", "daily", "--instance", "a"]).expect(0);
    let to = site.dir.path().to_str().unwrap();
    let restore = ["restore", "--instance", "b", "--strategy", "daily", "--to", to, "--overwrite"];
    let report = backup(&[&restore[..], &["--delete", "--json"]].concat()).expect(0).json();
    let spared: Vec<String> = notes(&report, "notes").into_keys().collect();
    assert_eq!(spared, ["of-a", "of-a-state"]);
    let list = backup(&["list", "--instance", "a", "--json"]).expect(0).json();
    assert_eq!(list["snapshots"].as_array().unwrap().len(), 1);
    // And they are not in its next backup.
    let run = backup(&["--strategy", "daily", "--instance", "b", "--json"]).expect(0).json();
    assert_eq!(notes(&run, "notes").len(), 2, "{run:#}");
}

#[test]
fn what_came_later_and_would_be_left_out_is_spared() {
    needs_root("it mounts a folder");
    let site = Site::new(&INSIDE.replace("@/data/deep/link", "@/store").replace(
        "type = \"directory\"",
        "type = \"directory\"\nexclude_caches = true\ninclude = [\"*.pdf\", \"seen/\"]",
    ));
    sh(
        site.dir.path(),
        "mkdir -p data/drills data/seen; echo 1 >data/a.pdf; echo 2 >data/seen/f",
        &[],
    );
    site.run(0);
    // A cache, a link to where the storage is now, and a folder on the way to what was included.
    let later = r#"
        mkdir -p data/seen/cache data/new/sub other; mv store other/store
        ln -s ../../other/store data/seen/backups
        printf "Signature: 8a477f597d28d172789f06886806bc55" >data/seen/cache/CACHEDIR.TAG
        touch data/seen/cache/warm data/seen/extra data/new/sub/n.pdf data/new/sub/n.txt
    "#;
    sh(site.dir.path(), later, &[]);
    site.configure(&INSIDE.replace("@/data/deep/link", "@/data/seen/backups"));
    let to = site.dir.path().to_str().unwrap();
    let restore = ["restore", "--to", to, "--overwrite", "--delete", "--json"];
    let report = site.backup(restore).expect(0).json();
    let spared: Vec<String> = notes(&report, "notes").into_keys().collect();
    assert_eq!(spared, ["drills", "new/sub/n.txt", "seen/backups", "seen/cache", "work"]);
    for (path, is_there) in [
        ("seen/cache/warm", true),
        ("seen/extra", false),
        ("new/sub/n.pdf", false),
        ("new/sub/n.txt", true),
    ] {
        assert_eq!(site.path("data").join(path).exists(), is_there, "{path}");
    }
    assert_eq!(site.ids().len(), 1);
}

#[test]
fn a_folder_under_a_mount_is_named() {
    let site = Site::new(&INSIDE.replace("@/data/deep/link", "@/store"));
    let script = r#"
        mkdir -p data/mounted vol; echo 1 >data/mounted/one
        "$1" --config app.toml --strategy daily >/dev/null
        mount --bind vol data/mounted; echo 2 >data/mounted/two
        "$1" --config app.toml restore --to . --overwrite --delete --json >report.json || [ $? = 3 ]
        [ -f data/mounted/two ]
    "#;
    crate::support::sh_in_mounts(site.dir.path(), script, &[PROGRAM.as_ref()]);
    let report: Value =
        serde_json::from_slice(&std::fs::read(site.path("report.json")).unwrap()).unwrap();
    assert!(notes(&report, "warnings").contains_key("mounted"), "{report:#}");
}
