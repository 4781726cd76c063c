//! No secret gets out: not in what is printed, not in what is stored, not to other programs; and
//! nothing of ours is for others to read.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::support::postgres::{Database, Server};
use crate::support::site::{Site, s3_storage};
use crate::support::sources::script;
use crate::support::stores::{Server as Store, fresh};
use crate::support::{Backup, Ran, S3, s3, sh, variable};

/// A part of each secret that is nowhere else. What is around it is what gets escaped.
const CORES: [&str; 7] = [
    "UrlCore7x",
    "FileCore8y",
    "InlineCore9z",
    "StoredAs6w",
    "EnvCore5v",
    "PassedCore4u",
    "ForeignCore3t",
];

fn secret(core: usize) -> String {
    format!("a%b+c/ \"{}\"'d&e?f", CORES[core])
}

/// What one finds a secret by, whatever it was put into: its name, and the text to look for.
fn traces() -> Vec<(String, String)> {
    let mut traces = Vec::new();
    let known = [
        variable("HOLDFAST_TEST_S3_SECRET_KEY"),
        Server::new(18).url.password().unwrap().to_owned(),
    ];
    for core in CORES.iter().map(|core| (*core).to_owned()).chain(known) {
        traces.push((format!("{core} in hexadecimal"), hex::encode(&core)));
        traces.push((format!("{core} in hexadecimal"), hex::encode_upper(&core)));
        for before in 0..3 {
            // Wherever it begins in a group of three bytes; the characters that its neighbours have
            // a part in are left out.
            let text = STANDARD_NO_PAD.encode(format!("{}{core}", "x".repeat(before)));
            let inner = text[if before == 0 { 0 } else { 4 }..text.len() - 2].to_owned();
            traces.push((format!("{core} in base64"), inner));
        }
        traces.push((core.clone(), core));
    }
    traces
}

/// The first secret that is in there.
fn found<'a>(traces: &'a [(String, String)], bytes: &[u8]) -> Option<&'a str> {
    let text = String::from_utf8_lossy(bytes);
    traces.iter().find(|(_, trace)| text.contains(trace)).map(|(name, _)| name.as_str())
}

fn assert_clean(traces: &[(String, String)], place: &str, bytes: &[u8]) {
    let found = found(traces, bytes);
    assert_eq!(found, None, "in {place}:\n{}", String::from_utf8_lossy(bytes));
}

#[test]
fn the_search_finds_a_secret_in_whatever_form() {
    let traces = traces();
    for (number, core) in CORES.iter().enumerate() {
        let secret = secret(number);
        for before in 0..3 {
            let around = format!("{}{secret}:", "u".repeat(before));
            let percent: String = url::form_urlencoded::byte_serialize(around.as_bytes()).collect();
            for text in [
                STANDARD_NO_PAD.encode(&around),
                hex::encode(&around),
                percent,
                format!("{around:?}"),
            ] {
                assert!(
                    found(&traces, format!("\0x {text}").as_bytes())
                        .is_some_and(|name| name.starts_with(core)),
                    "{text}"
                );
            }
        }
    }
    assert_eq!(found(&traces, b"nothing of the kind"), None);
}

/// Every secret there is, in every way that one can be given.
const CONFIG: &str = r#"
[sources.url]
type = "postgres"
url = "${URL_DB}"
globals = true
client_dir = "@/tools"
[sources.file]
type = "postgres"
url = "${FILE_DB}"
password_file = "@/password"
client_dir = "@/tools"
[sources.words]
type = "command"
command = ["@/tools/words"]
restore_command = ["@/tools/take-words"]
env = { TOKEN = "${TOKEN_VALUE}" }
env_pass = ["PASSED"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["url", "file", "words"]
storages = ["local", "inline", "keyfile"]
"#;

struct Vault {
    site: Site,
    database: Database,
    roles: [String; 2],
    buckets: Vec<String>,
    ran: Vec<Ran>,
}

impl Vault {
    fn new() -> Self {
        let server = Server::new(18);
        let database = server.database();
        database.run("CREATE TABLE t AS SELECT generate_series(1, 100) AS x");
        let roles = [0, 1].map(|core| {
            let role = fresh("vault").replace('-', "_");
            database.run(&format!(
                "CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{}'",
                secret(core).replace('\'', "''")
            ));
            role
        });
        let site = Site::new("");
        let mut body = CONFIG.to_owned();
        let mut buckets = Vec::new();
        for (name, store) in [("inline", "S3S"), ("keyfile", "SEAWEEDFS")] {
            let (bucket, keys) = (fresh("vault"), s3(store));
            let client = if store == "S3S" { Store::S3s } else { Store::SeaweedFs }.client();
            server.runtime.block_on(client.create_bucket().bucket(&bucket).send()).unwrap();
            let table = s3_storage(name, &keys, &bucket) + "attempts = 1\n";
            body += &if name == "inline" {
                table
            } else {
                std::fs::write(site.path("s3-key"), format!("{}\n", keys.secret_key)).unwrap();
                table.replace(
                    &format!("secret_access_key = \"{}\"", keys.secret_key),
                    "secret_access_key_file = \"@/s3-key\"",
                )
            };
            buckets.push(bucket);
        }
        site.configure(&body);
        std::fs::write(site.path("password"), secret(1) + "\n").unwrap();
        for tool in ["pg_dump", "pg_dumpall", "pg_restore", "psql"] {
            let real = format!("exec {}/{tool} \"$@\"", server.bin.display());
            script(&site.path("tools").join(tool), &(noted(&site) + &real));
        }
        script(
            &site.path("tools/words"),
            &(noted(&site)
                + "echo some words; test ! -e \"$0.fails\" || { env >&2; env; exit 3; }"),
        );
        script(
            &site.path("tools/take-words"),
            &(noted(&site) + "cat > /dev/null; test ! -e \"$0.fails\" || { env >&2; exit 3; }"),
        );
        std::fs::create_dir(site.path("seen")).unwrap();
        Self { site, database, roles, buckets, ran: Vec::new() }
    }

    fn url(&self, role: usize, password: Option<&str>) -> String {
        let mut url = self.database.server.url(&self.database.name);
        url.set_username(&self.roles[role]).unwrap();
        url.set_password(None).unwrap();
        // By hand: the other way leaves some characters as they are.
        let encoded: String =
            password.unwrap_or_default().bytes().map(|byte| format!("%{byte:02x}")).collect();
        let text = url.to_string();
        if password.is_some() { text.replace('@', &format!(":{encoded}@")) } else { text }
    }

    fn backup(&self, args: &[&str]) -> Backup {
        let path = std::env::var("PATH").unwrap();
        self.site
            .backup(args)
            .env("URL_DB", self.url(0, Some(&secret(0))))
            .env("FILE_DB", self.url(1, None))
            .env("TOKEN_VALUE", secret(4))
            .env("PASSED", secret(5))
            .env("FOREIGN", secret(6))
            .env("AWS_SESSION_TOKEN_UNUSED", secret(6))
            .env("PATH", format!("{}:{path}", self.site.path("tools").display()))
    }

    /// Runs the program, which must end so, and keeps what it said.
    fn ends(&mut self, code: i32, args: &[&str]) -> String {
        let backup = self.backup(args);
        self.takes(code, backup)
    }

    fn takes(&mut self, code: i32, backup: Backup) -> String {
        let ran = backup.expect(code);
        let said = format!("{}{}", ran.out(), ran.err());
        self.ran.push(ran);
        said
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let roles = self.roles.join(", ");
        self.database.run(&format!(
            "REASSIGN OWNED BY {roles} TO CURRENT_USER; DROP OWNED BY {roles}; DROP \
                ROLE {roles}"
        ));
    }
}

/// Notes what every user of the machine, and the owner, can see of a program while it runs.
fn noted(site: &Site) -> String {
    format!(
        "name=$(basename \"$0\"); for what in cmdline environ; do cat /proc/$$/$what > \
         {}/$name.$what.$$; done\n",
        site.path("seen").display()
    )
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let found = sh(dir, "find . -type f -print0", &[]);
    found.split('\0').filter(|path| !path.is_empty()).map(|path| dir.join(path)).collect()
}

/// A file, decompressed where it is.
fn content(file: &Path) -> Vec<u8> {
    let bytes = std::fs::read(file).unwrap();
    if bytes.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        let plain = zstd::stream::decode_all(bytes.as_slice()).unwrap();
        return [bytes, plain].concat();
    }
    bytes
}

#[test]
fn no_secret_is_printed_stored_or_shown_to_other_programs() {
    let traces = traces();
    let mut vault = Vault::new();
    let log = ["--verbose"];
    for extra in [&[][..], &["--json"], &log] {
        let with = |args: &[&'static str]| [args, extra].concat();
        vault.ends(0, &with(&["--strategy", "daily", "--dry-run"]));
        vault.ends(0, &with(&["--strategy", "daily"]));
        vault.ends(0, &with(&["check"]));
        vault.ends(0, &with(&["strategies"]));
        vault.ends(0, &with(&["list"]));
        vault.ends(0, &with(&["show", "latest"]));
        vault.ends(0, &with(&["verify", "--read-data"]));
        let out = vault.site.path(format!("out{}", extra.concat()));
        let restore =
            vault.backup(&with(&["restore", "--strategy", "daily"])).arg("--to").arg(&out);
        vault.takes(0, restore);
        vault.ends(0, &with(&["restore", "--strategy", "daily", "--to-command"]));
        let target = vault.database.server.database();
        let url = vault.url(0, None).replace(&vault.database.name, &target.name);
        let args = with(&[
            "restore",
            "--strategy",
            "daily",
            "--source",
            "url",
            "--into",
            &*url.clone().leak(),
        ]);
        let restore = vault.backup(&args).env("PGPASSWORD", secret(0));
        vault.takes(0, restore);
    }

    // And when things go wrong.
    let wrong = vault.url(0, Some(&secret(2)));
    for extra in [&[][..], &["--json"], &log] {
        let with = |args: &[&'static str]| [args, extra].concat();
        for args in [with(&["--strategy", "daily"]), with(&["check"])] {
            let failed = vault.backup(&args).env("URL_DB", &wrong);
            let said = vault.takes(1, failed);
            assert!(said.contains("password authentication failed"), "{said}");
        }
        let target: &'static str = wrong.clone().leak();
        vault.ends(
            1,
            &with(&["restore", "--strategy", "daily", "--source", "url", "--into", target]),
        );
        // Typed wrongly, so that the password is not known for one.
        let target = format!("user:{}@h/db", secret(2)).leak();
        vault.ends(
            2,
            &with(&["restore", "--strategy", "daily", "--source", "url", "--into", target]),
        );
        let text =
            vault.backup(&with(&["check"])).env("URL_DB", format!("user:{}@h/db", secret(2)));
        vault.takes(2, text);
        let twice = vault.backup(&with(&["check"])).env("FILE_DB", &wrong);
        vault.takes(2, twice);
        for tool in ["words", "take-words"] {
            std::fs::write(vault.site.path(format!("tools/{tool}.fails")), "").unwrap();
        }
        let said = vault.ends(1, &with(&["--strategy", "daily"]));
        assert!(said.contains("TOKEN=***") && said.contains("PASSED=***"), "{said}");
        let said = vault.ends(1, &with(&["restore", "--strategy", "daily", "--to-command"]));
        assert!(said.contains("exit status 3") && said.contains("TOKEN=***"), "{said}");
        for tool in ["words", "take-words"] {
            std::fs::remove_file(vault.site.path(format!("tools/{tool}.fails"))).unwrap();
        }
    }
    // A bucket that cannot be reached, and one that does not know the key.
    let config = std::fs::read_to_string(vault.site.config()).unwrap();
    let S3 { endpoint, secret_key, .. } = s3("S3S");
    let unreachable = config
        .replace(&endpoint, "http://127.0.0.1:1")
        .replace(&secret_key, &secret(2).replace('"', "\\\""));
    std::fs::write(vault.site.config(), unreachable).unwrap();
    std::fs::write(vault.site.path("s3-key"), secret(3)).unwrap();
    for args in [&["--strategy", "daily"][..], &["--strategy", "daily", "--json", "--verbose"]] {
        vault.ends(3, args);
    }
    vault.ends(1, &["check"]);
    vault.ends(1, &["check", "--json", "--verbose"]);
    vault.ran.push(vault.backup(&["list", "--verbose"]).run());
    vault.ran.push(vault.backup(&["verify", "--json"]).run());

    for ran in &vault.ran {
        assert_clean(
            &traces,
            &format!("the output of {ran}"),
            &[&ran.stdout[..], &ran.stderr].concat(),
        );
    }
    let mut places =
        vec![vault.site.path("state"), vault.site.path("store"), vault.site.path("out")];
    places.extend(
        vault
            .buckets
            .iter()
            .map(|bucket| Path::new(&variable("HOLDFAST_TEST_S3S_ROOT")).join(bucket))
            .filter(|dir| dir.exists()),
    );
    assert_eq!(places.len(), 4, "the bucket's files are looked into");
    for file in places.iter().flat_map(|place| all_files(place)) {
        assert_clean(&traces, &file.display().to_string(), &content(&file));
    }
    let seen = all_files(&vault.site.path("seen"));
    for tool in ["pg_dump", "pg_dumpall", "pg_restore", "words", "take-words"] {
        assert!(
            seen.iter().any(|file| file
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&format!("{tool}."))),
            "{tool} ran"
        );
    }
    for file in seen {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = std::fs::read(&file).unwrap();
        if name.contains("words.environ") {
            // Its own, and no others.
            let text = String::from_utf8(bytes).unwrap();
            let rest: String = text
                .split('\0')
                .filter(|line| !line.starts_with("TOKEN=") && !line.starts_with("PASSED="))
                .collect();
            assert!(text.contains(&secret(4)) && text.contains(&secret(5)));
            assert_clean(&traces, &name, rest.as_bytes());
        } else {
            assert_clean(&traces, &name, &bytes);
        }
    }
}

#[test]
fn nothing_of_ours_can_be_read_by_others() {
    let site = Site::new(
        "work_dir = \"@/work\"\n[sources.words]\ntype = \"command\"\n\
         command = [\"echo\", \"words\"]\n[sources.db]\ntype = \"sqlite\"\npath = \"@/app.db\"\n\
         [storages.local]\ntype = \"local\"\npath = \"@/store\"\n[strategies.daily]\n\
         sources = [\"db\", \"words\"]\nstorages = [\"local\"]\n",
    );
    sh(site.dir.path(), "sqlite3 app.db 'CREATE TABLE t(x)'", &[]);
    // A folder that a package or a container made: open to all.
    std::fs::create_dir(site.path("state")).unwrap();
    std::fs::set_permissions(site.path("state"), std::fs::Permissions::from_mode(0o755)).unwrap();
    site.run(0);
    site.run(0);
    site.backup(["restore", "--strategy", "daily", "--to"]).arg(site.path("out")).expect(0);
    site.backup(["check"]).expect(0);
    for place in ["state", "work", "store", "out"] {
        let found = sh(&site.path(place), "find . -mindepth 1 -perm /077 -printf '%m %p\\n'", &[]);
        assert_eq!(found, "", "in {place}");
    }
    for place in ["work", "store", "out"] {
        let mode = std::fs::metadata(site.path(place)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{place}");
    }
}
