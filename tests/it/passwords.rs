//! A password is printed nowhere, whatever characters it has and wherever it stands; and what libpq
//! takes for a password is one.
//!
//! The passwords are made of letters that stand side by side in nothing that the program prints, so
//! that four characters of one are enough to know it by.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast::config::parse;
use holdfast::model::{CommandLine, DatabaseUrl, Name, Secret, percent_decoded};
use holdfast::model::{has_credentials, without_credentials};
use holdfast::report::notify::NotifyConfig;
use holdfast::source::SourceConfig;
use holdfast::source::process::Environment;
use holdfast::storage::StorageConfig;
use serde_json::json;
use tempfile::TempDir;

use crate::support::daemon::until;
use crate::support::postgres::Server;
use crate::support::site::Site;
use crate::support::stores::fresh;
use crate::support::told::{Answer, Listener};
use crate::support::{Backup, Ran, backup, files, temp};

const LETTERS: &[u8] = b"QXZJKVWY";
/// What means something to an address, a connection string, TOML, JSON, HTML or a shell.
const OTHERS: &[u8] = b"#?/@:%&=+$!*'\"\\`^~;,|<>()[]{}-_.";

/// The same passwords every time.
struct Passwords(u64);

impl Passwords {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) as usize % count
    }

    /// Two of `others` never stand side by side.
    fn one_of(&mut self, others: &[u8]) -> String {
        let mut password = String::new();
        let length = 12 + self.below(8);
        let mut was_other = false;
        while password.len() < length {
            was_other = !was_other && self.below(3) == 0;
            let from = if was_other { others } else { LETTERS };
            password.push(char::from(from[self.below(from.len())]));
        }
        password
    }
}

impl Iterator for Passwords {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        Some(self.one_of(OTHERS))
    }
}

fn encoded(password: &str) -> String {
    password.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What cannot be plain in an address is encoded, as an operator does who knows that.
fn half_encoded(password: &str) -> String {
    password.replace('%', "%25").replace('/', "%2F").replace('@', "%40")
}

fn toml(text: &str) -> String {
    json!(text).to_string()
}

/// The lines of the text that could have a piece of a password in them, as they are and without
/// what quoting added.
fn plain_forms(text: &str) -> Vec<String> {
    // Of three characters of a password two are letters.
    let is_close = |bytes: &[u8]| bytes.iter().filter(|byte| LETTERS.contains(byte)).count() >= 2;
    let close = |text: String| -> Option<String> {
        let lines: Vec<&str> =
            text.lines().filter(|line| line.as_bytes().windows(3).any(is_close)).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    let unquoted = text.replace("\\\"", "\"").replace("\\\\", "\\").replace("\\'", "'");
    let html = text
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    [text.to_owned(), unquoted, html, percent_encoding_removed(text)]
        .into_iter()
        .filter_map(close)
        .collect()
}

fn percent_encoding_removed(text: &str) -> String {
    let mut parts = text.as_bytes().split(|byte| *byte == b'%');
    let mut bytes = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| hex::decode(digits).ok()) {
            Some(byte) => {
                bytes.extend(byte);
                bytes.extend(&part[2..]);
            }
            None => {
                bytes.push(b'%');
                bytes.extend(part);
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A piece of four characters of the password that is in one of the forms of a text.
fn piece<'p>(password: &'p str, forms: &[String]) -> Option<&'p str> {
    (0..password.len() - 3)
        .map(|at| &password[at..at + 4])
        .find(|piece| forms.iter().any(|form| form.contains(piece)))
}

#[track_caller]
fn assert_hidden(password: &str, place: &str, text: &str) {
    assert_eq!(piece(password, &plain_forms(text)), None, "of `{password}` in {place}:\n{text}");
}

#[test]
fn the_search_finds_four_characters_in_whatever_form() {
    let password = "QX\"Z&J/KV";
    for text in [
        password.to_owned(),
        json!(password).to_string(),
        encoded(password),
        format!("{password:?}"),
        "..Z&amp;J/..".to_owned(),
        "..\"Z&J..".to_owned(),
    ] {
        assert!(piece(password, &plain_forms(&text)).is_some(), "{text}");
    }
    assert_eq!(piece(password, &plain_forms("QX\"Y Z&J")), None);
}

#[test]
fn ten_thousand_passwords_are_hidden_by_every_type() {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                for password in Passwords(seed).take(2_500) {
                    assert_hidden_by_types(&password);
                }
            });
        }
    });
}

fn assert_hidden_by_types(password: &str) {
    let shown = |place: &str, text: String| assert_hidden(password, place, &text);
    let database = |text: String| -> Result<DatabaseUrl, String> {
        let url = DatabaseUrl::try_from(text);
        shown("a database address", format!("{url:?} {}", json!(url.as_ref().ok())));
        url
    };
    let raw = database(format!("postgresql://app:{password}@127.0.0.1:1/shop"));
    match (password.contains('/'), password.contains('@'), &raw) {
        (true, _, Err(error)) => assert!(error.contains("%2F"), "{password}: {error}"),
        (_, true, Err(error)) => assert!(error.contains("%40"), "{password}: {error}"),
        (false, false, Ok(url)) => {
            let found = url.expose().password().map(percent_decoded);
            if !password.contains('%') {
                assert_eq!(found, Some(Some(password.to_owned())));
            }
        }
        _ => panic!("{password}: {raw:?}"),
    }
    for form in [encoded(password), half_encoded(password)] {
        let url = database(format!("postgresql://app:{form}@127.0.0.1:1/shop")).unwrap();
        let found = url.expose().password().and_then(percent_decoded);
        assert_eq!(found.as_deref(), Some(password));
        let _ = database(format!("postgresql://h/shop?password={form}&sslmode=require"));
    }
    for text in [
        format!("app:{password}@h/shop"),
        format!("postgresql:app:{password}@h/shop"),
        format!("host=h user=app password='{password}'"),
        format!("mysql://app:{password}@h/shop?ssl=true"),
        format!("sqlite://app:{password}@h/shop"),
    ] {
        let _ = database(text);
    }
    let address = format!("postgresql://app:{password}@127.0.0.1:1/shop");
    for config in [
        json!({ "type": "postgres", "url": address }),
        json!({ "type": "postgres", "url": "postgresql://h/shop", "password": password }),
        json!({ "type": "command", "command": ["x", address], "env": { "X": password } }),
        json!({ "type": "command", "command": ["x"], "env_pass": [format!("X={password}")] }),
    ] {
        match serde_json::from_value::<SourceConfig>(config) {
            Ok(source) => {
                let validated = source.validate().map_err(|error| error.to_string());
                if validated.is_ok() {
                    shown("a source", json!(source).to_string());
                }
                shown("what is wrong with a source", format!("{validated:?}"));
            }
            Err(error) => shown("what is wrong with a source", error.to_string()),
        }
    }
    for address in [
        format!("s3://KEY:{password}@bucket/prefix"),
        format!("s3:KEY:{password}@bucket/prefix"),
        format!("KEY:{password}@bucket/prefix"),
        format!("https://KEY:{password}@bucket/prefix"),
    ] {
        let read = StorageConfig::from_address(&address).map_err(|error| error.to_string());
        assert!(read.is_err(), "{address}");
        shown("the address of a storage", format!("{read:?}"));
    }
    let bucket = json!({
        "type": "s3", "bucket": "b", "endpoint": format!("http://KEY:{password}@h"),
        "access_key_id": password, "secret_access_key": password, "session_token": password,
    });
    let bucket: StorageConfig = serde_json::from_value(bucket).unwrap();
    let wrong = bucket.validate().unwrap_err();
    shown("what is wrong with a storage", wrong.to_string());
    for config in [
        json!({ "type": "webhook", "url": format!("https://u:{password}@h/x") }),
        json!({ "type": "webhook", "url": "https://h", "body": password,
            "headers": { "Authorization": password } }),
        json!({ "type": "ping", "url": format!("https://h/{password}?x={password}") }),
        json!({ "type": "mail", "server": format!("u:{password}@h"), "username": "u",
            "password": password, "from": "a@b", "to": ["a@b"] }),
    ] {
        let notify: NotifyConfig = serde_json::from_value(config).unwrap();
        let wrong = notify.unusable();
        if !wrong.iter().any(|wrong| wrong.key == "server") {
            shown("a notifier", format!("{notify:?}"));
        }
        shown("what is wrong with a notifier", format!("{wrong:?}"));
    }
    let name = format!("s3://KEY:{password}@h").parse::<Name>().unwrap_err();
    shown("what is wrong with a name", name.to_string());
    let secret = Secret::new(password);
    let command: CommandLine = ["x".to_owned(), password.to_owned()].into_iter().collect();
    shown("a secret", format!("{secret} {secret:?} {command:?} {}", json!([secret, command])));
    let quoted = password.replace('\\', "\\\\").replace('\'', "\\'");
    for text in [
        format!("no route to mongodb://u:{password}@h/db"),
        format!("(\"redis://:{password}@h\", 'x')"),
        format!("cannot open s3://KEY:{password}@bucket/x: denied"),
        format!("PGPASSWORD={password}\nHOME=/"),
        format!("host=h password='{quoted}' user=u"),
        json!({ "db_password": password, "x": 1 }).to_string(),
    ] {
        shown("what a child said", without_credentials(&text));
    }
    assert!(has_credentials(&format!("mongodb://u:{password}@h")));
}

/// Where an operator writes a password that does not belong there, or writes it wrong.
const MISTAKES: [&str; 22] = [
    "[sources.db]\ntype = \"postgres\"\nurl = \"postgresql://app:PASSWORD@h/shop",
    "[sources.db]\ntype = \"postgres\"\nurl = 'postgresql://app:PASSWORD@h/shop'",
    "[sources.db]\ntype = \"postgres\"\nurl = 'postgresql://app:PASSWORD@h/shop?nonsense=1'",
    "[sources.db]\ntype = \"postgres\"\nurl = 'app:PASSWORD@h/shop'",
    "[sources.db]\ntype = \"postgres\"\nurl = 'host=h password=PASSWORD'",
    "[sources.db]\ntype = \"postgres\"\nurl = postgresql://app:PASSWORD@h/shop",
    "[sources.db]\npassword = PASSWORD",
    "[sources.db]\npassword PASSWORD",
    "[sources.db]\npassword = \"\"PASSWORD\"\"",
    "[sources.db]\npassword = '''PASSWORD",
    "[sources.db]\ntype = \"postgres\"\nurl = { password = 'PASSWORD' }",
    "[sources.db]\ntype = \"sqlite\"\npath = 'sqlite://app:PASSWORD@h/shop'",
    "[sources.db]\ntype = \"directory\"\npath = 'https://app:PASSWORD@h/shop'",
    "[sources.db]\ntype = \"command\"\ncommand = [\"x\"]\nenv_pass = ['X=PASSWORD']",
    "[sources.db]\ntype = \"command\"\ncommand = [\"x\"]\nenv = ['X=PASSWORD']",
    "[storages.x]\ntype = \"s3\"\nbucket = 's3://KEY:PASSWORD@bucket'",
    "[storages.x]\ntype = \"s3\"\nbucket = 'KEY:PASSWORD@bucket'",
    "[storages.x]\ntype = \"s3\"\nbucket = \"b\"\nendpoint = 'https://KEY:PASSWORD@h'",
    "[storages.x]\ntype = \"local\"\npath = 's3://KEY:PASSWORD@bucket/prefix'",
    "[strategies.x]\nsources = ['postgresql://app:PASSWORD@h/shop']\nstorages = ['KEY:PASSWORD@b']",
    "[notify.x]\ntype = \"mail\"\nserver = 'u:PASSWORD@h'\nfrom = 'a@b'\n\
     to = ['smtp://u:PASSWORD@h']",
    "[notify.x]\ntype = \"webhook\"\nurl = 'https://u:PASSWORD@h'\nbody = '{{PASSWORD'",
];

#[test]
fn a_mistake_is_told_without_the_password_in_it() {
    for password in Passwords(11).take(50) {
        for mistake in MISTAKES {
            // A password that ends the string before its time is one more mistake.
            let text = format!("instance = \"app\"\n{}\n", mistake.replace("PASSWORD", &password));
            let Err(error) = parse("app.toml".as_ref(), &text, &Environment::default()) else {
                panic!("it is a mistake: {text}");
            };
            assert_hidden(&password, mistake, &error.to_string());
        }
    }
}

#[test]
fn a_password_that_libpq_takes_logs_in_as_it_is() {
    let server = Server::new(15);
    let database = server.database();
    database.run("CREATE TABLE t AS SELECT 1 AS x");
    let host = server.url.host_str().unwrap();
    let port = server.url.port().unwrap();
    let mut passwords = Passwords(3);
    let mut all: Vec<String> =
        ["#Hunter2xyz", "?Hunter2xyz", "a?b#c", "a:b\\c'd\"e"].map(str::to_owned).to_vec();
    all.extend((0..4).map(|_| passwords.one_of(PLAIN)));
    all.extend((0..2).map(|_| passwords.one_of(OTHERS)));
    for password in all {
        let role = fresh("libpq").replace('-', "_");
        database.run(&format!(
            "CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{}'",
            password.replace('\'', "''")
        ));
        let address = |password: &str| {
            format!("postgresql://{role}:{password}@{host}:{port}/{}", database.name)
        };
        let takes = |address: &str| {
            let ran = std::process::Command::new(server.bin.join("psql"))
                .args(["--no-password", "--command", "SELECT 1", address])
                .output()
                .unwrap();
            ran.status.success()
        };
        let site = |address: &str| {
            let site = Site::new("");
            let text = format!(
                "instance = \"app\"\nstate_dir = \"state\"\n[sources.db]\ntype = \"postgres\"\n\
                 url = {}\nclient_dir = \"{}\"\n[storages.local]\ntype = \"local\"\n\
                 path = \"store\"\n[strategies.daily]\nsources = [\"db\"]\n\
                 storages = [\"local\"]\n",
                toml(address),
                server.bin.display(),
            );
            std::fs::write(site.config(), text).unwrap();
            site
        };
        let raw = address(&password);
        if password.contains(['/', '@', '%']) {
            assert!(!takes(&raw), "{raw}");
            let refused = site(&raw).backup(["check", "--json"]).expect(2);
            let error: serde_json::Value = serde_json::from_str(&refused.err()).unwrap();
            assert_eq!(error["error"]["code"], "config_invalid_value", "{refused}");
            assert_hidden(&password, "the refusal", &refused.err());
        } else {
            assert!(takes(&raw), "{raw}");
            site(&raw).run(0);
        }
        let half = address(&half_encoded(&password));
        assert!(takes(&half), "{half}");
        site(&half).run(0);
        let mut wrong = half.clone();
        wrong.insert(half.rfind('@').unwrap(), 'x');
        let failed = site(&wrong).backup(["--strategy", "daily"]).expect(1);
        assert_hidden(&password, "the failure", &failed.err());
        database.run(&format!(
            "REASSIGN OWNED BY {role} TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"
        ));
    }
}

/// What libpq takes as it is where a password stands in an address.
const PLAIN: &[u8] = b"#?:&=+$!*'\"\\`^~;,|<>()[]{}-_.";

/// Every field that takes a password, with a password of its own in each, in one configuration.
struct Fields {
    dir: PathBuf,
    number: usize,
    /// By the field.
    passwords: Vec<(&'static str, String)>,
    variables: Vec<(&'static str, String)>,
    ran: Vec<Ran>,
}

impl Fields {
    /// In a folder of its own in `folder`; `hook` is the address of who is told what happens.
    fn new(folder: &Path, number: usize, hook: &str) -> Self {
        let mut fields = Self {
            dir: folder.join(format!("site-{number}")),
            number,
            passwords: Vec::new(),
            variables: Vec::new(),
            ran: Vec::new(),
        };
        std::fs::create_dir(&fields.dir).unwrap();
        let text = fields.text(hook);
        std::fs::write(fields.path("app.toml"), text).unwrap();
        fields
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A password for that field.
    fn of(&mut self, field: &'static str, others: &[u8]) -> String {
        let seed = (self.number * 100 + self.passwords.len()) as u64;
        let password = Passwords(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).one_of(others);
        self.passwords.push((field, password.clone()));
        password
    }

    fn any(&mut self, field: &'static str) -> String {
        self.of(field, OTHERS)
    }

    /// A file that a child shows, which is how it comes to say a password that nobody gave it.
    fn said(&mut self, field: &'static str) -> PathBuf {
        let (plain, odd) = (self.of(field, PLAIN), self.any(field));
        let (quoted, file) = (half_encoded(&self.any(field)), self.path(field));
        let text = format!(
            "no route to mongodb://u:{plain}@h/db\nneither (redis://:{odd}@h)\n\
             {{\"url\": \"amqp://u:{quoted}@h\"}}\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    fn text(&mut self, hook: &str) -> String {
        let database = |credentials: String| format!("postgresql://{credentials}127.0.0.1:1/shop");
        let number = self.number;
        let raw = toml(&database(format!("app:{}@", self.of("source: url, raw", PLAIN))));
        let half = half_encoded(&self.any("source: url"));
        let half = toml(&database(format!("app:{half}@")));
        let query = encoded(&self.any("source: url, parameter"));
        let query = toml(&(database("app@".to_owned()) + "?sslmode=disable&password=" + &query));
        let beside = toml(&self.any("source: password"));
        std::fs::write(self.path("password"), self.any("source: password_file")).unwrap();
        let password_file = self.path("password");
        let url = database(format!("app:{}@", encoded(&self.any("source: url, variable"))));
        self.variables.push(("DB_URL", url));
        let passed = self.any("source: env_pass");
        self.variables.push(("PASSED", passed));
        let token = toml(&self.any("source: env"));
        let inner = format!("mongodb://u:{}@h/db", encoded(&self.any("source: env, address")));
        let argument = toml(&self.any("source: command"));
        let says = self.said("said by a source");
        let hook_argument = toml(&self.any("strategy: after"));
        let hook_says = self.said("said by a hook");
        let check_argument = toml(&self.any("drill: command"));
        let check_says = self.said("said by a check");
        let drill_url = encoded(&self.any("drill: url"));
        let drill_password = toml(&self.any("drill: password"));
        let keys = ["access_key_id", "secret_access_key", "session_token"]
            .map(|key| format!("{key} = {}\n", toml(&self.any(key))))
            .concat();
        let user = format!("u:{}@", encoded(&self.any("webhook: url, user")));
        let path = encoded(&self.any("webhook: url, path"));
        let parameter = encoded(&self.any("webhook: url, parameter"));
        let told = hook.replacen("://", &format!("://{user}"), 1);
        let told = toml(&format!("{told}/{path}?token={parameter}"));
        let header = toml(&format!("Bearer {}", self.any("webhook: headers")));
        let body = toml(&format!("{{{{json}}}} {}.", self.any("webhook: body")));
        let ping = toml(&format!("{hook}/{}", encoded(&self.any("ping: url"))));
        let mail = toml(&self.any("mail: password"));
        let at = self.dir.display();
        let strategy = ["raw", "half", "query", "beside", "file", "variable", "says"][number % 7];
        let schedule = "schedule = \"0 0 1 1 *\"\nmissed = \"skip\"\nretry = { attempts = 1 }";
        format!(
            r#"
instance = "app{number}"
state_dir = "{at}/state"
[sources.raw]
type = "postgres"
url = {raw}
[sources.half]
type = "postgres"
url = {half}
[sources.query]
type = "postgres"
url = {query}
[sources.beside]
type = "postgres"
url = "postgresql://app@127.0.0.1:1/shop"
password = {beside}
[sources.file]
type = "postgres"
url = "postgresql://app@127.0.0.1:1/shop"
password_file = "{}"
[sources.variable]
type = "postgres"
url = "${{DB_URL}}"
[sources.says]
type = "command"
command = ["sh", "-c", "cat \"$0\" >&2; env >&2; echo \"$1\" >&2; exit 3", "{}", {argument}]
env = {{ TOKEN = {token}, ADDRESS = "{inner}", ARGUMENT = {argument} }}
env_pass = ["PASSED"]
[sources.words]
type = "command"
command = ["echo", "words"]
after = ["true", {hook_argument}]
[storages.local]
type = "local"
path = "{at}/store"
[storages.bucket]
type = "s3"
bucket = "b"
endpoint = "http://127.0.0.1:1"
attempts = 1
{keys}
[strategies.broken]
sources = ["{strategy}"]
storages = ["local"]
{schedule}
[strategies.daily]
sources = ["words"]
storages = ["local", "bucket"]
after = ["sh", "-c", "cat \"$0\" >&2; exit 3", "{}", {hook_argument}]
{schedule}
[strategies.daily.drill]
storage = "local"
[[strategies.daily.drill.checks]]
type = "command"
command = ["sh", "-c", "cat \"$0\" >&2; exit 3", "{}", {check_argument}]
[strategies.all]
sources = ["raw", "half", "query", "beside", "file", "variable", "says"]
storages = ["local"]
[strategies.one]
sources = ["words"]
storages = ["local"]
drill = {{ postgres = {{ url = "postgresql://drill:{drill_url}@127.0.0.1:1/postgres" }} }}
[strategies.two]
sources = ["words"]
storages = ["local"]
[strategies.two.drill.postgres]
url = "postgresql://drill@127.0.0.1:1/postgres"
password = {drill_password}
[notify.hook]
type = "webhook"
url = {told}
headers = {{ Authorization = {header} }}
on = ["failure", "problems", "drill_failed"]
[notify.filled]
type = "webhook"
url = {told}
content_type = "text/plain"
body = {body}
on = ["stale"]
[notify.ping]
type = "ping"
url = {ping}
[notify.mail]
type = "mail"
server = "127.0.0.1"
port = 1
username = "robot"
password = {mail}
from = "robot@example.org"
to = ["ops@example.org"]
on = ["stale"]
"#,
            password_file.display(),
            says.display(),
            hook_says.display(),
            check_says.display(),
        )
    }

    fn backup(&self, args: &[&str]) -> Backup {
        let backup = backup(args.iter().copied()).env("HOME", &self.dir);
        self.variables
            .iter()
            .fold(backup, |backup, (name, value)| backup.env(name, value))
            .env("BACKUP_CONFIG", self.path("app.toml"))
    }

    fn ends(&mut self, code: i32, args: &[&str]) {
        self.ran.push(self.backup(args).expect(code));
    }

    /// The same for a command that is given a password by itself.
    fn ends_with(&mut self, code: i32, args: impl Fn(&str) -> Vec<String>) {
        let password = self.any("command line");
        let args = args(&password);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.ends(code, &args);
    }

    fn assert_hidden(&self, place: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        self.assert_hidden_in(place, &plain_forms(&text));
    }

    fn assert_hidden_in(&self, place: &str, forms: &[String]) {
        for (field, password) in &self.passwords {
            let found = piece(password, forms);
            assert_eq!(found, None, "of {field}, `{password}`, in {place}:\n{forms:?}");
        }
    }

    fn assert_nothing_shown(&self) {
        for ran in &self.ran {
            self.assert_hidden(&ran.to_string(), &[&ran.stdout[..], &ran.stderr].concat());
        }
        for folder in ["state", "store"] {
            for (name, bytes) in files(&self.path(folder)) {
                let plain = if bytes.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
                    zstd::stream::decode_all(bytes.as_slice()).unwrap()
                } else {
                    bytes
                };
                self.assert_hidden(&format!("{folder}/{}", name.display()), &plain);
            }
        }
    }
}

/// Runs every command that has something to say of the fields.
fn run_commands(fields: &mut Fields) {
    let extra: &[&str] = [&[][..], &["--json"], &["--verbose"]][fields.number % 3];
    let words = |words: &str| -> Vec<String> {
        words
            .split(' ')
            .map(str::to_owned)
            .chain(extra.iter().map(|&word| word.to_owned()))
            .collect()
    };
    let mut plain: Vec<(i32, &str)> = vec![
        (1, "run --strategy broken"),
        (3, "run --strategy daily"),
        (1, "check"),
        (1, "status"),
        (4, "drill --strategy daily"),
        (1, "drill --strategy one"),
        (1, "drill --strategy two"),
        (0, "drill report"),
    ];
    // Those that hardly speak of what is configured: each sees more than 50 passwords even so.
    if fields.number.is_multiple_of(7) {
        plain.extend([
            (0, "run --strategy all --dry-run"),
            (0, "run --strategy daily --dry-run"),
            (0, "strategies"),
            (0, "list --storage local"),
            (0, "show latest --strategy daily --storage local"),
            (0, "verify --storage local"),
            (1, "copy --strategy daily --from local --to bucket"),
            (1, "prune --plan"),
            (0, "stats --storage local"),
            (1, "catalog rebuild"),
            (1, "reload"),
            (1, "notify test mail"),
            (0, "config schema"),
        ]);
        for notifier in ["notify test hook", "notify test filled", "notify test ping"] {
            plain.push(((fields.number % 2) as i32, notifier));
        }
    }
    for (code, command) in plain {
        let args = words(command);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        fields.ends(code, &args);
    }
    fields.ends(0, &["drill", "report", "--format", "html"]);
    for (code, command) in [
        (2, "list --storage s3://KEY:PASSWORD@bucket/x"),
        (1, "list --storage s3:KEY:PASSWORD@bucket/x"),
        (1, "copy --from KEY:PASSWORD@bucket/x --to local"),
        (2, "restore --strategy daily --storage local --into app:PASSWORD@h/shop"),
        (2, "restore --strategy daily --storage local --to postgresql://app:PASSWORD@h/shop"),
        (2, "restore --strategy daily --storage local postgresql://app:PASSWORD@h/shop"),
        (2, "restore --strategy daily --storage local app:PASSWORD@h/shop"),
        (2, "import s3://KEY:PASSWORD@bucket/x --storage local"),
    ] {
        fields.ends_with(code, |password| words(&command.replace("PASSWORD", password)));
    }
    let into = fields.of("command line: --into", PLAIN);
    let into = format!("postgresql://app:{into}@127.0.0.1:1/shop");
    let args = words(&format!("restore --strategy daily --storage local --into {into}"));
    fields.ends(2, &args.iter().map(String::as_str).collect::<Vec<_>>());
}

/// A folder whose name, which is shown, could be no piece of a password.
fn quiet_folder() -> TempDir {
    let named = |folder: &TempDir| plain_forms(folder.path().to_str().unwrap()).is_empty();
    std::iter::repeat_with(temp).find(named).unwrap()
}

/// Everything that the scheduler's page says, and what the scheduler logs meanwhile.
fn page(all: &[Fields]) -> Vec<u8> {
    let folder = quiet_folder();
    for fields in all {
        let copy = folder.path().join(format!("app{}.toml", fields.number));
        std::fs::copy(fields.path("app.toml"), copy).unwrap();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::fs::write(folder.path().join("daemon.toml"), format!("listen = \"127.0.0.1:{port}\"\n"))
        .unwrap();
    let running =
        all[0].backup(&["schedule", "--verbose"]).env("BACKUP_CONFIG", folder.path()).spawn();
    let mut said = Vec::new();
    until("the page is there", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    for path in ["/healthz", "/readyz", "/metrics", "/api/status", "/nothing"] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        stream.read_to_end(&mut said).unwrap();
    }
    running.signal(rustix::process::Signal::TERM);
    let ran = running.wait().expect(0);
    let shown = String::from_utf8_lossy(&said);
    for fields in all {
        assert!(shown.contains(&format!("app{}", fields.number)), "{shown}");
    }
    [said, ran.stdout, ran.stderr].concat()
}

#[test]
fn no_piece_of_a_password_leaves_the_program() {
    const SITES: usize = 50;
    let folder = quiet_folder();
    let (taking, refusing) = (Listener::new(), Listener::new());
    refusing.answer(&[Answer::Status(404); 50 * SITES]);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= SITES {
                        break;
                    }
                    let hook = [&taking, &refusing][number % 2];
                    let mut fields = Fields::new(folder.path(), number, &hook.address);
                    run_commands(&mut fields);
                    fields.assert_nothing_shown();
                    done.lock().unwrap().push(fields);
                }
            });
        }
    });
    let all = done.into_inner().unwrap();
    assert_eq!(all.len(), SITES);
    let (page, told) = (page(&all), taking.take());
    assert!(told.len() >= SITES, "{told:?}");
    // One of them sends a password in the body, which is what it is for.
    let told: Vec<&str> = told
        .iter()
        .map(|got| got.body.as_str())
        .filter(|body| !body.starts_with('{') || body.ends_with('}'))
        .collect();
    let (page, told) =
        (plain_forms(&String::from_utf8_lossy(&page)), plain_forms(&told.join("\n")));
    for fields in &all {
        fields.assert_hidden_in("the page", &page);
        fields.assert_hidden_in("what was told", &told);
    }
}
