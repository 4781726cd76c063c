//! What the room promises of whole files: everything that is wrong is reported at once with its
//! place, no secret is repeated, and what is right is read.

mod bounds;
mod codes;
mod drill;
mod folder;
mod many;
mod notify;
mod rules;

use std::fs;
use std::path::Path;

use super::{Instance, parse, schema};
use crate::model::Secret;
use crate::source::process::Environment;

const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

/// The smallest file that is right.
const SMALL: &str = r#"
instance = "small"
[sources.files]
type = "directory"
path = "data"
[storages.here]
type = "local"
path = "../backups"
[strategies.daily]
sources = ["files"]
storages = ["here"]
"#;

fn env(pairs: &[(&str, &str)]) -> Environment {
    Environment(pairs.iter().map(|(key, value)| (key.into(), value.into())).collect())
}

fn good(file: impl AsRef<Path>, text: &str, environment: &[(&str, &str)]) -> Instance {
    parse(file.as_ref(), text, &env(environment)).unwrap_or_else(|errors| panic!("{errors}"))
}

fn bad(file: impl AsRef<Path>, text: &str, environment: &[(&str, &str)]) -> String {
    match parse(file.as_ref(), text, &env(environment)) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn a_jitter_must_end_before_the_next_run_is_due() {
    let text = |jitter: &str| {
        format!(
            "instance = \"app\"\n[sources.files]\ntype = \"directory\"\npath = \"/data\"\n\
             [storages.local]\ntype = \"local\"\npath = \"/store\"\n\
             [strategies.daily]\nsources = [\"files\"]\nstorages = [\"local\"]\n\
             schedule = \"*/20 * * * *\"\njitter = \"{jitter}\"\n"
        )
    };
    let parsed = |jitter: &str| parse(Path::new("/a.toml"), &text(jitter), &env(&[]));
    assert!(parsed("19m").is_ok());
    let error = parsed("20m").err().unwrap().to_string();
    assert!(error.contains("strategies.daily.jitter: Too long for the schedule"), "{error}");
}

#[test]
fn one_file_with_many_errors_reports_them_all_with_their_places() {
    let text = r#"instance = "Ella Prod"
listen = "8484"
threads = 0
nice = "5"
state_dir = "${STATE_DIR}"
compresion = { level = 3 }

[sources.db]
type = "postgre"
url = "${DB_URL}"

[sources.Files]

[storages.offsite]
typ = "s3"

[encryption]
recipients = ["age1short", "AGE-SECRET-KEY-1QQQ"]

[strategies.daily]
shedule = "30 1 * * *"
schedule = "30 25 * * *"
timezone = "Europe/Olso"
sources = ["db", "dbb", "db"]
storages = []
retention = { keep_daily = 0, keep_weekly = -2, keep_within = "3w" }
timeout = 10
no_progress_timeout = "0s"
active = "yes"

[strategies.daily.drill]
schedule = "0 5 * * 9"

[strategies.nightly]
schedule = "0 0 31 2 *"
sources = "db"
retention = {}
"#;
    let expected = r#"strategies/ella.toml:1:12: instance: `Ella Prod` is not a name: expected 1 to 63 of `a-z`, `0-9`, `_`, `-`, beginning with a letter or digit, and not `marks`
strategies/ella.toml:2:10: listen: `8484` is not an address and a port
  hint: write it like `127.0.0.1:8484`, `0.0.0.0:8484` (every interface) or `[::1]:8484`
strategies/ella.toml:3:11: threads: Out of range: expected a number from 1 to 256
strategies/ella.toml:4:8: nice: Expected an integer, found a string
  hint: write it without quotes
strategies/ella.toml:5:13: state_dir: The environment variable `STATE_DIR` is not set
strategies/ella.toml:6:1: compresion: Unknown key
  hint: did you mean `compression`?
strategies/ella.toml:9:8: sources.db.type: `postgre` is not a known type
  hint: did you mean `postgres`?
strategies/ella.toml:10:7: sources.db.url: The environment variable `DB_URL` is empty
strategies/ella.toml:12:10: sources.Files: `Files` is not a name: expected 1 to 63 of `a-z`, `0-9`, `_`, `-`, beginning with a letter or digit, and not `marks`
strategies/ella.toml:12:10: sources.Files: Missing key `type`
  hint: expected one of `postgres`, `sqlite`, `directory`, `command`
strategies/ella.toml:14:11: storages.offsite: Missing key `type`
  hint: expected one of `local`, `s3`
strategies/ella.toml:18:15: encryption.recipients[0]: Not a public key of age
  hint: expected a form like `age1…`, 62 characters, as `age-keygen` prints it
strategies/ella.toml:18:28: encryption.recipients[1]: This is a private key, which does not belong on this host
  hint: put its public key here (`age-keygen -y FILE` prints it), and regard the private key as known to others
strategies/ella.toml:21:1: strategies.daily.shedule: Unknown key
  hint: did you mean `schedule`?
strategies/ella.toml:22:12: strategies.daily.schedule: `30 25 * * *` is not a cron line: `25` does not fit the hour (0 to 23)
strategies/ella.toml:23:12: strategies.daily.timezone: `Europe/Olso` is not a time zone: expected a name of the IANA database, such as `Europe/Oslo` or `UTC`
  hint: did you mean `Europe/Oslo`?
strategies/ella.toml:24:18: strategies.daily.sources[1]: There is no source `dbb`
  hint: did you mean `db`?
strategies/ella.toml:24:25: strategies.daily.sources[2]: Listed twice
strategies/ella.toml:25:12: strategies.daily.storages: Expected at least 1 entry
strategies/ella.toml:26:28: strategies.daily.retention.keep_daily: `0` is not a count: expected a number from 1, or `"unlimited"` (also `-1`)
strategies/ella.toml:26:45: strategies.daily.retention.keep_weekly: `-2` is not a count: expected a number from 1, or `"unlimited"` (also `-1`)
strategies/ella.toml:26:63: strategies.daily.retention.keep_within: `3w` is not a period: expected years, months, days and hours in a form like `1y2m3d4h`, more than 0
strategies/ella.toml:27:11: strategies.daily.timeout: A number alone is not a duration
  hint: give it a unit, in quotes: `"90s"`, `"10m"`, `"2h"`
strategies/ella.toml:28:23: strategies.daily.no_progress_timeout: Out of range: expected from `1s` to `31d`
strategies/ella.toml:29:10: strategies.daily.active: Expected `true` or `false`, found a string
strategies/ella.toml:32:12: strategies.daily.drill.schedule: `0 5 * * 9` is not a cron line: `9` does not fit the day of the week (0 to 7 or `SUN` to `SAT`)
strategies/ella.toml:34:13: strategies.nightly: Missing key `storages`
strategies/ella.toml:35:12: strategies.nightly.schedule: `0 0 31 2 *` is never due: no date fits it
strategies/ella.toml:36:11: strategies.nightly.sources: Expected an array, found a string
  hint: write it in brackets: `["…"]`
strategies/ella.toml:37:13: strategies.nightly.retention: Keeps nothing
  hint: add a rule, such as `keep_daily = 30`, or remove `retention` to keep everything"#;
    assert_eq!(bad("strategies/ella.toml", text, &[("DB_URL", "")]), expected);
}

/// Each a change of [`SMALL`] and a part of the message.
#[test]
fn what_is_wrong_is_said_where_it_is() {
    let cases: &[(&str, &str, &str)] = &[
        ("instance = \"small\"\n", "", "a.toml: Missing key `instance`"),
        ("\"small\"", "\"marks\"", "a.toml:2:12: instance: `marks` is not a name"),
        ("\"small\"", "2026-11-21", "a.toml:2:12: instance: Expected a string, found a date"),
        ("\"small\"", "7", "found an integer\n  hint: write it in quotes"),
        (
            "path = \"data\"",
            "path = \"\"",
            "a.toml:5:8: sources.files.path: Empty: expected a value",
        ),
        ("path = \"data\"\n", "", "a.toml:3:10: sources.files: Missing key `path`"),
        (
            "path = \"data\"",
            "paht = \"data\"",
            "a.toml:5:1: sources.files.paht: Unknown key\n  hint: did you mean `path`?",
        ),
        (
            "path = \"data\"",
            "path = [\"data\"]",
            "sources.files.path: Expected a string, found an array",
        ),
        (
            "path = \"data\"",
            "path = \"data\"\nexclude = [\"a\", 1]",
            "a.toml:6:17: sources.files.exclude[1]: Expected a string, found an integer",
        ),
        (
            "path = \"data\"",
            "path = \"data\"\none_file_system = \"true\"",
            "found a string\n  hint: write it without quotes",
        ),
        (
            "[sources.files]\n",
            "[sources]\nfiles = 1\n[sources.files2]\n",
            "a.toml:4:9: sources.files: Expected a table, found an integer",
        ),
        (
            "[sources.files]\ntype = \"directory\"\n",
            "[sources.files]\ntype = 1\n",
            "a.toml:4:8: sources.files.type: Expected a string, found an integer",
        ),
        (
            "[\"files\"]",
            "[\"fil\"]",
            "a.toml:10:12: strategies.daily.sources[0]: There is no source `fil`\n  hint: expected \
             one of `files`",
        ),
        (
            "[\"here\"]",
            "[\"there\"]",
            "a.toml:11:13: strategies.daily.storages[0]: There is no storage `there`\n  hint: did \
             you mean `here`?",
        ),
        (
            "[strategies.daily]",
            "[strategies.\"a b\"]",
            "a.toml:9:13: strategies.\"a b\": `a b` is not a name",
        ),
        (
            "[strategies.daily]",
            "stale_after = \"1h\"\n[strategies.daily]",
            "a.toml:9:1: storages.here.stale_after: Unknown key",
        ),
        (
            "\"small\"",
            "\"small\"\nthreads = 1.5",
            "a.toml:3:11: threads: Expected an integer, found a number with a fraction",
        ),
        (
            "\"small\"",
            "\"small\"\nthreads = 99999999999999999999",
            "a.toml:3:11: threads: Expected an integer, found a number beyond all bounds",
        ),
        (
            "\"small\"",
            "\"small\"\nnice = 20",
            "a.toml:3:8: nice: Out of range: expected a number from 0 to 19",
        ),
        (
            "\"small\"",
            "\"small\"\nread_rate = \"0\"",
            "a.toml:3:13: read_rate: `0` is not a rate: expected a form like `50MiB/s`, \
             more than 0",
        ),
        (
            "\"small\"",
            "\"small\"\nupload_rate = 100",
            "a.toml:3:15: upload_rate: A number alone is not a rate",
        ),
        (
            "\"small\"",
            "\"small\"\nencryption = {}",
            "a.toml:3:1: encryption: Missing key `recipients`",
        ),
        (
            "\"small\"",
            "\"small\"\nencryption = { recipients = [] }",
            "a.toml:3:29: encryption.recipients: Expected at least 1 entry",
        ),
        (
            "\"small\"",
            "\"small\"\nencryption = { identity_file = \"x\", recipients = [] }",
            "hint: private keys stay off this host",
        ),
        ("\"small\"", "\"${A\"", "a.toml:2:12: instance: `${` is not closed by `}`"),
        (
            "\"small\"",
            "\"${A-b}\"",
            "What stands between `${` and `}` is not the name of a variable",
        ),
        (
            "sources = [\"files\"]",
            "schedule = \"@reboot\"\nsources = [\"files\"]",
            "strategies.daily.schedule: `@reboot` is not a time",
        ),
        (
            "sources = [\"files\"]",
            "schedule = \"1 2 3\"\nsources = [\"files\"]",
            "it has 3 fields; expected minute, hour",
        ),
        (
            "sources = [\"files\"]",
            "retention = { keep_last = \"7\" }\nsources = [\"files\"]",
            "`7` is not a count",
        ),
        (
            "sources = [\"files\"]",
            "retention = { keep_dayly = 7 }\nsources = [\"files\"]",
            "hint: did you mean `keep_daily`?",
        ),
        (
            "sources = [\"files\"]",
            "sources = [\"files\"]\nsources = [\"files\"]",
            "a.toml:11:1: Not TOML: duplicate key",
        ),
    ];
    for (from, to, expected) in cases {
        let text = SMALL.replacen(from, to, 1);
        assert_ne!(text, SMALL, "{from}");
        let errors = bad("a.toml", &text, &[]);
        assert!(errors.contains(expected), "{errors}\n-- is not --\n{expected}");
    }
}

#[test]
fn what_the_types_of_the_other_rooms_refuse_is_reported_for_all_of_them_at_once() {
    let text = r#"
instance = "small"
compression = { algorithm = "gzip", level = 12 }
[sources.files]
type = "directory"
path = "data"
exclude = ["a[b"]
[sources.db]
type = "postgres"
url = "postgresql://u:hunter2@h/db?nonsense=1"
[sources.dump]
type = "command"
command = []
[storages.here]
type = "s3"
bucket = "b"
retain_mode = "governance"
[strategies.daily]
sources = ["files", "db", "dump"]
storages = ["here"]
"#;
    let errors = bad("a.toml", text, &[]);
    for expected in [
        "a.toml:3:1: compression: `level = 12` is not a level of `gzip`",
        "a.toml:4:10: sources.files: `a[b` is not a pattern",
        "a.toml:8:10: sources.db: The address `postgresql://u:***@h/db?nonsense=***` cannot be used: \
         the parameter `nonsense`",
        "a.toml:13:11: sources.dump.command: Expected at least 1 entry",
        "a.toml:14:11: storages.here: The storage `s3://b` cannot be used: `retain_mode` needs",
    ] {
        assert!(errors.contains(expected), "{errors}\n-- is not --\n{expected}");
    }
}

#[test]
fn text_that_is_not_toml_is_reported_by_line_without_repeating_it() {
    let errors = bad("a.toml", "a = \npassword = \"hunter2\nc = 1\n", &[]);
    let lines: Vec<&str> = errors.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].starts_with("a.toml:1:") && lines[1].starts_with("a.toml:2:"),
        "{errors}"
    );
    assert!(!errors.contains("hunter2"), "{errors}");
}

#[test]
fn no_error_repeats_a_secret_or_what_came_from_the_environment() {
    let text = r#"
instance = "${PW}"
threads = "${PW}"
read_rate = "${PW}"
encryption = { recipients = ["${PW}"] }
[sources.db]
type = "${PW}"
[sources.db2]
type = "postgres"
url = "u:${PW}@h/db"
password = "Hunter2-Pass"
password_file = "/nonexistent/Hunter2"
[sources.db3]
type = "postgres"
url = "u:Hunter2-Pass@h/db"
[storages.here]
type = "local"
path = "x${PW"
[strategies.daily]
schedule = "${PW}"
timezone = "${PW}"
timeout = "${PW}"
retention = { keep_last = "${PW}", keep_within = "${PW}" }
sources = ["${PW}"]
storages = ["here"]
"#;
    for secret in ["Hunter2-Pass", "p@$"] {
        let text = text.replace("Hunter2-Pass", secret);
        let errors = bad("a.toml", &text, &[("PW", secret)]);
        assert!(!errors.contains(secret), "{errors}");
        assert!(
            errors.lines().filter(|line| line.starts_with("a.toml:")).count() >= 14,
            "{errors}"
        );
    }
}

#[test]
fn the_file_of_the_design_is_read_as_it_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("db"), "hunter2\n").unwrap();
    let text = r#"
instance = "ella-prod"
state_dir = "/var/lib/holdfast"

[sources.db]
type = "postgres"
url = "${DB_URL}"
password_file = "db"

[sources.attachments]
type = "directory"
path = "/data/attachments"
exclude = ["tmp/**"]

[storages.local]
type = "local"
path = "backups"

[storages.offsite]
type = "s3"
bucket = "clinic-backups"
endpoint = "${S3_ENDPOINT}"

[encryption]
recipients = ["RECIPIENT"]

[strategies.daily]
schedule = "30 1 * * *"
timezone = "Europe/Oslo"
sources  = ["db", "attachments"]
storages = ["local", "offsite"]
retention = { keep_daily = 30, keep_weekly = 8, keep_monthly = 12, keep_yearly = 10 }
timeout = "6h"
"#
    .replace("RECIPIENT", RECIPIENT);
    let variables = [
        ("DB_URL", "postgresql://ella@db/ella"),
        ("S3_ENDPOINT", "https://s3.internal.example.org"),
    ];
    let instance = good(folder.path().join("ella.toml"), &text, &variables);
    let strategy = instance.find_strategy("daily").unwrap();
    let next = strategy
        .schedule
        .as_ref()
        .and_then(|schedule| schedule.next_after("2026-11-21T00:00:00Z".parse().unwrap()));
    assert_eq!(next.unwrap().to_rfc3339(), "2026-11-21T00:30:00+00:00");
    assert_eq!(instance.work_dir, Path::new("/var/lib/holdfast/work"));
    assert!((1..=4).contains(&instance.threads));
    assert_eq!(strategy.no_progress_timeout.duration().as_secs(), 600);
    assert_eq!(instance.encryption.as_ref().map(|encryption| encryption.recipients.len()), Some(1));

    let masked = instance.masked(strategy);
    let text = masked.to_string();
    for secret in ["hunter2", "s3.internal"] {
        assert!(!text.contains(secret), "{text}");
    }
    let at = |pointer: &str| {
        masked.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    assert_eq!(at("/sources/db/url"), "postgresql://ella@db/ella");
    assert_eq!(at("/sources/db/password"), "***");
    assert_eq!(at("/storages/offsite/endpoint"), "${S3_ENDPOINT}");
    assert_eq!(at("/storages/local/path"), folder.path().join("backups").display().to_string());
    assert_eq!(at("/strategies/daily/schedule"), "30 1 * * *");
    assert_eq!(at("/strategies/daily/sources/1"), "attachments");
    let advice = instance.advice(strategy).join("\n");
    assert!(!advice.contains("taken before"), "{advice}");
}

#[test]
fn a_secret_comes_from_its_file_or_is_written_but_not_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    let text = |password: &str| {
        let source = format!("type = \"postgres\"\nurl = \"postgresql://u@h/db\"\n{password}\n");
        SMALL.replacen("type = \"directory\"\npath = \"data\"\n", &source, 1)
    };
    fs::write(folder.path().join("empty"), "\n").unwrap();
    fs::write(folder.path().join("secret"), "hunter2\n").unwrap();
    for (password, expected) in [
        (
            "password_file = \"missing\"",
            "a.toml:6:17: sources.files.password_file: Could not read `",
        ),
        ("password_file = \"empty\"", "/empty` is empty"),
        ("password_file = \"\"", "sources.files.password_file: Empty: expected a value"),
        ("password_file = 1", "sources.files.password_file: Expected a string, found an integer"),
        (
            "password_file = \"${NO}\"",
            "sources.files.password_file: The environment variable `NO` is not set",
        ),
        ("password = \"\"", "sources.files.password: Empty: expected a value"),
        (
            "password = \"hunter2\"\npassword_file = \"secret\"",
            "a.toml:7:1: sources.files.password_file: Both `password` and `password_file` are set",
        ),
        ("pasword_file = \"secret\"", "hint: did you mean `password_file`?"),
    ] {
        let errors = bad(&file, &text(password), &[]);
        assert!(errors.contains(expected), "{errors}\n-- is not --\n{expected}");
        assert_eq!(errors.lines().filter(|line| line.contains("a.toml")).count(), 1, "{errors}");
        assert!(!errors.contains("hunter2"), "{errors}");
    }
    for password in
        ["password_file = \"secret\"", "password_file = \"${NAME}\"", "password = \"hunter2\""]
    {
        let instance = good(&file, &text(password), &[("NAME", "secret")]);
        let crate::source::SourceConfig::Postgres(config) = &instance.sources["files"] else {
            panic!("{password}")
        };
        assert_eq!(config.password.as_ref().map(Secret::expose), Some("hunter2"), "{password}");
    }
}

#[test]
fn paths_are_relative_to_the_file_and_its_secrets_are_noticed_when_everyone_can_read_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    let text = SMALL.replacen("\"small\"\n", "\"small\"\nstate_dir = \"state\"\n", 1).replacen(
        "type = \"directory\"\npath = \"data\"\n",
        "type = \"postgres\"\nurl = \"postgresql://u:hunter2@h/db\"\n",
        1,
    );
    fs::write(&file, &text).unwrap();
    for (mode, noticed) in [(0o644, true), (0o600, false), (0o640, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let instance = good(&file, &text, &[]);
        assert_eq!(instance.state_dir, folder.path().join("state"));
        assert_eq!(instance.work_dir, folder.path().join("state/work"));
        let advice = instance.general_advice().join("\n");
        assert_eq!(
            advice.contains("which holds a secret (`sources.files.url`)"),
            noticed,
            "{advice}"
        );
        assert!(!advice.contains("hunter2"), "{advice}");
    }
}

#[test]
fn advice_is_about_what_works_but_is_rarely_meant() {
    let text = SMALL
        .replacen(
            "[storages.here]",
            "[sources.app]\ntype = \"command\"\ncommand = [\"true\"]\n[storages.here]",
            1,
        )
        .replacen("[\"files\"]", "[\"files\", \"app\"]", 1)
        .replacen(
            "[strategies.daily]",
            "[storages.unused]\ntype = \"local\"\npath = \"x\"\n[strategies.daily]",
            1,
        );
    let instance = good("a.toml", &text, &[]);
    let advice = instance.advice(instance.find_strategy("daily").unwrap());
    for expected in [
        "`files` is taken before `app`",
        "Every storage of this strategy is on this machine",
        "There is no `retention`",
        "There is no `schedule`",
    ] {
        assert!(advice.iter().any(|line| line.starts_with(expected)), "{expected}: {advice:#?}");
    }
    assert_eq!(advice.len(), 4, "{advice:#?}");
    let general = instance.general_advice();
    assert_eq!(general.len(), 1, "{general:#?}");
    assert!(general[0].contains("`unused`"), "{general:#?}");
}

#[test]
fn the_files_that_ship_are_right() {
    let secrets = tempfile::tempdir().unwrap();
    for name in ["ella-db", "s3-key-id", "s3-key"] {
        fs::write(secrets.path().join(name), "hunter2").unwrap();
    }
    let variables = [
        ("DB_URL", "postgresql://ella@db/ella"),
        ("POSTGRES_HOST", "db"),
        ("POSTGRES_DB", "pixel"),
        ("POSTGRES_USER", "pixel"),
        ("POSTGRES_PASSWORD", "hunter2"),
        ("AGE_RECIPIENT", RECIPIENT),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("strategies");
    let mut files = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().path();
        if file.ends_with("demo.toml") {
            // It needs no server, so it is run as a whole, as the README says.
            continue;
        }
        let text = fs::read_to_string(&file)
            .unwrap()
            .replace("/run/secrets", &secrets.path().display().to_string());
        let instance = good(&file, &text, &variables);
        for strategy in instance.strategies.values() {
            let masked = instance.masked(strategy).to_string();
            assert!(!masked.contains("hunter2"), "{masked}");
        }
        files += 1;
    }
    assert!(files >= 2);
}

#[test]
fn the_schema_is_one_and_knows_the_files_of_secrets() {
    let schema = schema();
    let text = schema.to_string();
    assert!(text.contains("password_file"), "{text}");
    assert!(!text.contains("null"), "TOML has no null: {text}");
    for reference in text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(schema::definition(&schema, reference).is_some(), "{reference}");
    }
}
