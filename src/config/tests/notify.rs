//! Notifiers, as they are configured.

use super::{SMALL, bad, good};
use crate::report::EventKind;
use crate::report::notify::NotifyConfig;

fn text(notify: &str) -> String {
    format!("{SMALL}\n[notify.chat]\n{notify}\n")
}

/// The lines of `SMALL`, so that places are counted from the table of the notifier, whose header is
/// line 1.
fn errors(notify: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let before = SMALL.lines().count() + 1;
    let number = |line: &str| {
        let (place, message) = line.strip_prefix("a.toml:").unwrap().split_once(": ").unwrap();
        let (line, column) = place.split_once(':').unwrap();
        format!("{}:{column}: {message}", line.parse::<usize>().unwrap() - before)
    };
    let all = bad("a.toml", &text(notify), variables);
    all.lines()
        .map(|line| if line.starts_with("  hint") { line.trim().to_owned() } else { number(line) })
        .collect()
}

#[test]
fn a_notifier_is_told_what_is_usual_for_its_kind_unless_it_says_otherwise() {
    let on = |notify: &str| good("a.toml", &text(notify), &[]).notify["chat"].on().to_owned();
    let news = [
        EventKind::Failure,
        EventKind::Problems,
        EventKind::Stale,
        EventKind::Recovered,
        EventKind::DrillFailed,
        EventKind::DrillInconclusive,
    ];
    assert_eq!(on("type = \"webhook\"\nurl = \"https://h/x\""), news);
    assert_eq!(on("type = \"mail\"\nserver = \"h\"\nfrom = \"a@b.c\"\nto = [\"d@e.f\"]"), news);
    let ping = on("type = \"ping\"\nurl = \"https://h/x\"");
    assert!(ping.contains(&EventKind::Start) && ping.contains(&EventKind::Cancelled), "{ping:?}");
    let own = "on = [\"start\"]\nstrategies = [\"daily\"]\n";
    assert_eq!(on(&format!("{own}type = \"ping\"\nurl = \"https://h/x\"")), [EventKind::Start]);
}

#[test]
fn secrets_of_notifiers_come_from_variables_and_files_and_are_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.toml");
    std::fs::write(folder.path().join("url"), "https://h/hunter2\n").unwrap();
    let instance = good(
        &file,
        &text("type = \"webhook\"\nurl_file = \"url\"\nheaders = { A = \"${A}\" }"),
        &[("A", "hunter2")],
    );
    let notify = &instance.notify["chat"];
    let NotifyConfig::Webhook(config) = &notify.config else { panic!("{notify:?}") };
    assert_eq!(
        (config.url.expose(), config.headers["A"].expose()),
        ("https://h/hunter2", "hunter2")
    );
    let body = "type = \"webhook\"\nurl = \"https://h\"\nbody = '{\"key\": \"${A}\"}'";
    let keyed = good(&file, &text(body), &[("A", "hunter2")]);
    for shown in [
        format!("{notify:?}"),
        format!("{:?}", keyed.notify),
        instance.masked(&instance.strategies["daily"]).to_string(),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn what_could_never_work_is_an_error_at_its_key() {
    const HOOK: &str = "type = \"webhook\"\nurl = \"https://h/x\"\n";
    const MAIL: &str = "type = \"mail\"\nserver = \"h\"\nfrom = \"a@b.c\"\nto = [\"d@e.f\"]\n";
    let hook = |more: &str| format!("{HOOK}{more}");
    let mail = |more: &str| format!("{MAIL}{more}");
    let json = "hint: use names with `_json` behind them, such as `{{title_json}}`, and put no \
        quotes around those; or set another `content_type`";
    for (notify, expected) in [
        (
            hook("body = '{{titel}}'"),
            &["4:8: notify.chat.body: `{{titel}}` is not known: expected one of `json`, `event`, \
                 `title`, `text`, `message`, `instance`, `strategy`, `time`, `snapshot`, each but \
                 `json` also with `_json` behind it for a JSON string in quotes"][..],
        ),
        (hook("body = '{{title'"), &["4:8: notify.chat.body: `{{` is not closed by `}}`"]),
        (
            hook("body = '{\"text\": \"{{text}}\"}'"),
            &[
                "4:8: notify.chat.body: Not JSON once it is filled in (expected `,` or `}` at line \
                 1 column 12)",
                json,
            ],
        ),
        (
            hook("body = '{\"text\": {{title}}}'"),
            &[
                "4:8: notify.chat.body: Not JSON once it is filled in (expected value at line 1 \
                 column 10)",
                json,
            ],
        ),
        (
            hook("method = \"GET\"\nbody = 'x'\ncontent_type = \"text/plain\""),
            &[
                "5:8: notify.chat.body: A `GET` has no body",
                "hint: remove it, or set `method` to `POST`",
            ],
        ),
        (
            hook("method = \"PSOT\""),
            &[
                "4:10: notify.chat.method: `PSOT` is not one of `POST`, `PUT`, `GET`",
                "hint: did you mean `POST`?",
            ],
        ),
        (
            hook("headers = { \"A B\" = \"x\" }"),
            &["4:11: notify.chat.headers: `A B` is not the name of a header"],
        ),
        (
            hook("headers = { A = \"x\\ny\" }"),
            &["4:11: notify.chat.headers: The value of `A` has characters that a header cannot \
                 have"],
        ),
        (
            hook("strategies = [\"dayly\"]"),
            &[
                "4:15: notify.chat.strategies[0]: There is no strategy `dayly`",
                "hint: did you mean `daily`?",
            ],
        ),
        (
            hook("on = [\"failed\"]"),
            &["4:7: notify.chat.on[0]: `failed` is not one of `start`, `success`, `problems`, \
                 `failure`, `cancelled`, `stale`, `recovered`, `drill_passed`, `drill_failed`, \
                 `drill_inconclusive`"],
        ),
        (
            hook("on = [\"test\"]"),
            &["4:7: notify.chat.on[0]: `test` is not one of `start`, `success`, `problems`, \
                 `failure`, `cancelled`, `stale`, `recovered`, `drill_passed`, `drill_failed`, \
                 `drill_inconclusive`"],
        ),
        (hook("on = []"), &["4:6: notify.chat.on: Expected at least 1 entry"]),
        (
            hook("boddy = ''"),
            &["4:1: notify.chat.boddy: Unknown key", "hint: did you mean `body`?"],
        ),
        (
            "type = \"webhook\"".to_owned(),
            &[
                "1:9: notify.chat: Missing key `url`",
                "hint: set it, or `url_file` to read it from a file",
            ],
        ),
        (
            "type = \"webhook\"\nurl = \"hunter2\"".to_owned(),
            &["3:7: notify.chat.url: Not an address: relative URL without a base"],
        ),
        (
            "type = \"webhook\"\nurl = \"ftp://hunter2\"".to_owned(),
            &["3:7: notify.chat.url: Not an address of the web: expected a form like \
                 `https://host/path`"],
        ),
        (
            "type = \"slack\"".to_owned(),
            &[
                "2:8: notify.chat.type: `slack` is not a known type",
                "hint: expected one of `webhook`, `ping`, `mail`",
            ],
        ),
        (
            "type = \"ping\"\nstart_url = \"https://h\"".to_owned(),
            &[
                "1:9: notify.chat: Missing key `url`",
                "hint: set it, or `success_url` and `failure_url`",
            ],
        ),
        (
            mail("username = \"u\""),
            &[
                "6:12: notify.chat.username: Missing key `password`, which belongs to this",
                "hint: set it, or `password_file` to read it from a file",
            ],
        ),
        (
            mail("password = \"hunter2\""),
            &["6:12: notify.chat.password: Missing key `username`, which belongs to this"],
        ),
        (
            mail("username = \"u\"\npassword = \"hunter2\"\ntls = \"none\""),
            &[
                "8:7: notify.chat.tls: The password would be sent where others can read it",
                "hint: set it to `starttls` or `tls`, or remove `username` and `password`",
            ],
        ),
        (
            mail("port = 0"),
            &["6:8: notify.chat.port: Out of range: expected a number from 1 to 65535"],
        ),
        (
            MAIL.replace("\"h\"", "\"h:25\""),
            &[
                "3:10: notify.chat.server: Not the name of a server",
                "hint: write it like `smtp.example.org`, and its port into `port`",
            ],
        ),
        (
            MAIL.replace("d@e.f", "nobody"),
            &[
                "5:6: notify.chat.to: `nobody` is not an address of mail",
                "hint: write it like `ops@example.org` or `Operators <ops@example.org>`",
            ],
        ),
    ] {
        let found = errors(&notify, &[]);
        assert_eq!(found, expected, "{notify}");
        assert!(!found.concat().contains("hunter2"));
    }
    // Without a place of its own, and all mistakes of all notifiers at once.
    let two = format!("{}[notify.two]\ntype = \"ping\"\nurl = \"x\"\n", hook("body = '{{a}}'\n"));
    assert_eq!(errors(&two, &[]).len(), 2);
}
