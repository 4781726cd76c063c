//! What an operator is told, by real requests and real mails; and that a notifier never harms a
//! run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast::config;
use holdfast::model::Name;
use holdfast::report::Event;
use holdfast::report::notify::{Notifiers, Notify};
use holdfast::source::process::Environment;

use crate::support::site::Site;
use crate::support::told::{Answer, Authority, Got, Listener, MailServer};
use crate::support::{Ran, repository};

/// A strategy that backs something up, one that fails, and one that loses a storage.
const BODY: &str = r#"
[sources.words]
type = "command"
command = ["echo", "words"]
[sources.broken]
type = "command"
command = ["sh", "-c", "echo \"it \\\"broke\\\"\" >&2; exit 3"]
[sources.endless]
type = "command"
command = ["sleep", "600"]
[storages.local]
type = "local"
path = "@/store"
[storages.gone]
type = "local"
path = "@/not/there"
[strategies.daily]
sources = ["words"]
storages = ["local"]
[strategies.bad]
sources = ["broken"]
storages = ["local"]
[strategies.half]
sources = ["words"]
storages = ["local", "gone"]
[strategies.long]
sources = ["endless"]
storages = ["local"]
"#;

/// An `@` in a text of TOML: as it is, it stands for the site's folder.
const AT: &str = "\\u0040";

fn site(notify: &str) -> Site {
    Site::new(&format!("{BODY}{notify}"))
}

fn webhook(name: &str, listener: &Listener, more: &str) -> String {
    format!(
        "[notify.{name}]\ntype = \"webhook\"\nurl = \"{}/hook/{name}\"\n{more}\n",
        listener.address
    )
}

fn ping(listener: &Listener, more: &str) -> String {
    format!("[notify.hc]\ntype = \"ping\"\nurl = \"{}/ping/uuid\"\n{more}\n", listener.address)
}

fn run(site: &Site, strategy: &str, code: i32) -> Ran {
    site.backup(["--strategy", strategy]).expect(code)
}

fn paths(got: &[Got]) -> Vec<String> {
    got.iter().map(|got| format!("{} {}", got.method, got.path)).collect()
}

#[test]
fn a_webhook_is_told_what_is_wrong_with_all_that_is_known_of_it() {
    let listener = Listener::new();
    let site = site(&webhook("own", &listener, ""));
    run(&site, "daily", 0);
    assert!(listener.take().is_empty(), "a success is no news unless it is asked for");

    let ran = site.backup(["--strategy", "bad", "--json"]).expect(1);
    let got = listener.take();
    assert_eq!(paths(&got), ["POST /hook/own"]);
    assert_eq!(got[0].headers["content-type"], "application/json");
    assert!(got[0].headers["user-agent"].starts_with("holdfast/"));
    let event = got[0].json();
    for (key, value) in [
        ("event", "failure"),
        ("instance", "app"),
        ("strategy", "bad"),
        ("title", "Backup app/bad failed: nothing was committed"),
    ] {
        assert_eq!(event[key], value, "{event:#}");
    }
    assert!(event["text"].as_str().unwrap().contains("it \"broke\""), "{event:#}");
    // The run in it is what the run itself says.
    let mut said = ran.json();
    said.as_object_mut().unwrap().shift_remove("format");
    assert_eq!(event["run"], said);
    assert_eq!(
        event["time"].as_str().unwrap().get(..19),
        said["finished"].as_str().unwrap().get(..19)
    );

    run(&site, "half", 3);
    let event = listener.take()[0].json();
    assert_eq!(event["event"], "problems");
    assert_eq!(event["title"], "Backup app/half finished with problems");
    let text = event["text"].as_str().unwrap();
    assert!(text.contains("Not committed to `gone`:") && text.contains("stored, in"), "{text}");
}

#[test]
fn on_and_strategies_say_what_is_told() {
    let listener = Listener::new();
    let all = webhook("all", &listener, "on = [\"start\", \"success\", \"failure\"]");
    let site = site(
        &(all
            + &webhook(
                "daily",
                &listener,
                "on = [\"success\", \"failure\"]\nstrategies = [\"daily\"]",
            )),
    );
    run(&site, "bad", 1);
    let events: Vec<_> =
        listener.take().iter().map(|got| (got.path.clone(), got.json()["event"].clone())).collect();
    assert_eq!(
        events,
        [("/hook/all".to_owned(), "start".into()), ("/hook/all".to_owned(), "failure".into())]
    );
    run(&site, "daily", 0);
    let mut paths = paths(&listener.take());
    paths.sort();
    assert_eq!(paths, ["POST /hook/all", "POST /hook/all", "POST /hook/daily"]);
    run(&site, "half", 3);
    assert_eq!(listener.take().len(), 1, "the start");
    // A look at what would be done is no run.
    site.backup(["--strategy", "daily", "--dry-run"]).expect(0);
    assert!(listener.take().is_empty());
}

#[test]
fn a_template_and_headers_make_the_request_that_a_service_wants() {
    let listener = Listener::new();
    let json = webhook(
        "json",
        &listener,
        "method = \"PUT\"\nheaders = { Authorization = \"Bearer ${TOKEN}\", X-Plain = \"1\" }\n\
         body = '{\"text\": {{title_json}}, \"all\": {{json}}, \"fields\": [{{message_json}}, \
         {{snapshot_json}}, \"{{event}} {{instance}}/{{strategy}}\"]}'",
    );
    let plain = webhook(
        "plain",
        &listener,
        "content_type = \"text/plain\"\nbody = \"{{title}} at {{time}}\\n{{text}}\"",
    );
    let get = webhook("get", &listener, "method = \"GET\"");
    let site = site(&(json + &plain + &get));
    site.backup(["--strategy", "bad"]).env("TOKEN", "t0ken").expect(1);
    let got: BTreeMap<String, Got> =
        listener.take().into_iter().map(|got| (got.path.clone(), got)).collect();
    let json = &got["/hook/json"];
    assert_eq!(
        (json.method.as_str(), json.headers["authorization"].as_str()),
        ("PUT", "Bearer t0ken")
    );
    assert_eq!(json.headers["x-plain"], "1");
    let body = json.json();
    let title = "Backup app/bad failed: nothing was committed";
    assert_eq!((&body["text"], &body["all"]["event"]), (&title.into(), &"failure".into()));
    assert!(
        body["fields"][0]
            .as_str()
            .unwrap()
            .starts_with(&format!("{title}\nThe source `broken` failed"))
    );
    assert_eq!(body["fields"][1], body["all"]["run"]["id"]);
    assert_eq!(body["fields"][2], "failure app/bad");
    let plain = &got["/hook/plain"];
    assert_eq!(
        (plain.method.as_str(), plain.headers["content-type"].as_str()),
        ("POST", "text/plain")
    );
    assert!(plain.body.starts_with(&format!("{title} at 2")), "{plain:?}");
    assert_eq!((got["/hook/get"].method.as_str(), got["/hook/get"].body.as_str()), ("GET", ""));
}

#[test]
fn a_ping_is_told_when_a_run_begins_and_how_it_ends() {
    let listener = Listener::new();
    let site = site(&ping(&listener, ""));
    run(&site, "daily", 0);
    let got = listener.take();
    assert_eq!(paths(&got), ["POST /ping/uuid/start", "POST /ping/uuid"]);
    assert!(got[0].body.starts_with("Backup app/daily began\n"), "{got:?}");
    assert!(got[1].body.starts_with("Backup app/daily succeeded\nSnapshot 2"), "{got:?}");
    run(&site, "bad", 1);
    let got = listener.take();
    assert_eq!(paths(&got), ["POST /ping/uuid/start", "POST /ping/uuid/fail"]);
    assert!(got[1].body.contains("it \"broke\""), "{got:?}");
    run(&site, "half", 3);
    assert_eq!(
        paths(&listener.take()),
        ["POST /ping/uuid/start", "POST /ping/uuid"],
        "there is a snapshot"
    );

    site.configure(&format!(
        "{BODY}{}",
        ping(&listener, "problems = \"failure\"\nmethod = \"GET\"\non = [\"problems\"]")
    ));
    run(&site, "half", 3);
    assert_eq!(paths(&listener.take()), ["GET /ping/uuid/fail"]);
    run(&site, "daily", 0);
    assert!(listener.take().is_empty());

    // A service with an address for each, as one that pushes to a monitor.
    let urls = format!(
        "[notify.kuma]\ntype = \"ping\"\nsuccess_url = \"{0}/push?status=up&msg=OK\"\n\
         failure_url = \"{0}/push?status=down\"\nmethod = \"GET\"\n",
        listener.address
    );
    site.configure(&format!("{BODY}{urls}"));
    run(&site, "daily", 0);
    assert_eq!(paths(&listener.take()), ["GET /push?status=up&msg=OK"]);
    run(&site, "bad", 1);
    assert_eq!(paths(&listener.take()), ["GET /push?status=down"]);
}

#[test]
fn a_run_that_is_cancelled_is_a_failure_to_a_ping_and_no_news_to_others() {
    let listener = Listener::new();
    let site = site(&(ping(&listener, "") + &webhook("own", &listener, "")));
    let running = site.backup(["--strategy", "long"]).spawn();
    listener.await_first();
    // Meanwhile another run finds the lock held: it tells nothing, for it never began.
    run(&site, "long", 5);
    running.signal(rustix::process::Signal::TERM);
    running.wait().expect(1);
    let got = listener.take();
    assert_eq!(paths(&got), ["POST /ping/uuid/start", "POST /ping/uuid/fail"]);
    assert!(got[1].body.starts_with("Backup app/long was cancelled"), "{got:?}");
}

#[test]
fn a_run_that_could_not_begin_is_a_failure() {
    let listener = Listener::new();
    let site = site(&(ping(&listener, "") + &webhook("own", &listener, "")));
    std::fs::write(site.path("state"), "not a folder").unwrap();
    let ran = run(&site, "daily", 1);
    let mut got = listener.take();
    got.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(paths(&got), ["POST /hook/own", "POST /ping/uuid/fail"]);
    let event = got[0].json();
    assert_eq!((&event["event"], &event["run"]), (&"failure".into(), &serde_json::Value::Null));
    let reason = event["reason"].as_str().unwrap();
    assert!(
        reason.contains("state") && ran.err().contains(reason.split(':').next().unwrap()),
        "{reason}\n{ran}"
    );
}

#[test]
fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let listener = Listener::new();
    let site = site(&webhook("own", &listener, "on = [\"success\"]"));
    for (answers, tries) in [
        (&[Answer::Status(500), Answer::Status(204)][..], 2),
        (&[Answer::Status(429), Answer::Status(200)], 2),
        (&[Answer::Status(408)], 2),
    ] {
        listener.answer(answers);
        let ran = run(&site, "daily", 0);
        assert_eq!(listener.take().len(), tries, "{answers:?}\n{ran}");
        assert!(
            ran.err().contains("not told yet, and tried again: `127.0.0.1:")
                && !ran.err().contains("ERROR"),
            "{ran}"
        );
    }
    for (answer, said) in [
        (
            Answer::Status(403),
            "answered 403 Forbidden: check the address and the key of this notifier",
        ),
        (Answer::Status(400), "answered 400 Bad Request: check the settings of this notifier"),
        // What was meant for one address is not taken to another.
        (
            Answer::Redirect(302, "/elsewhere"),
            "answered 302 Found: it sends elsewhere, which is not followed",
        ),
        (
            Answer::Redirect(307, "/elsewhere"),
            "answered 307 Temporary Redirect: it sends elsewhere",
        ),
    ] {
        listener.answer(&[answer]);
        let ran = run(&site, "daily", 0);
        assert_eq!(listener.take().len(), 1, "{answer:?}");
        assert!(ran.err().contains("ERROR") && ran.err().contains(said), "{ran}");
        assert!(!ran.err().contains("hook/own"), "{ran}");
    }
}

#[test]
fn notifiers_that_are_down_or_hang_change_neither_the_end_of_a_run_nor_what_others_are_told() {
    let (listener, hanging) = (Listener::new(), Listener::new());
    hanging.answer(&[Answer::Silence; 9]);
    let down = "[notify.down]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:1/hook/down\"\n\
        on = [\"success\"]\n";
    let hung = webhook("hung", &hanging, "on = [\"success\", \"start\"]");
    let good = webhook("own", &listener, "on = [\"success\"]");
    let site = site(&format!("{down}{hung}{good}"));
    let began = Instant::now();
    let ran = site.backup(["--strategy", "daily", "--json"]).expect(0);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(36) && took < Duration::from_secs(60), "{took:?}");
    assert_eq!(ran.json()["outcome"], "success");
    assert_eq!(listener.take().len(), 1);
    let said = ran.err();
    for expected in [
        "Could not reach `127.0.0.1:1`",
        "It was tried 3 times",
        "did not answer within 10 seconds",
        "1 events could not be delivered within 45 seconds, and are not waited for",
    ] {
        assert!(said.contains(expected), "{expected}\n{ran}");
    }
    assert!(!said.contains("hook/"), "{ran}");
    assert_eq!(site.folders().len(), 1);
}

#[test]
fn secrets_of_notifiers_are_neither_printed_nor_stored() {
    let listener = Listener::new();
    let authority_dir = crate::support::temp();
    let authority = Authority::new(authority_dir.path());
    let server = MailServer::new("starttls", &authority, "another");
    let port = server.port;
    let own = format!(
        "[notify.own]\ntype = \"webhook\"\nurl = \"{}/CoreHook5\"\non = [\"start\", \"success\"]\n\
         headers = {{ X-Key = \"CoreHeader4\" }}\n\
         body = '{{\"key\": \"${{BODY_KEY}}\", \"title\": {{{{title_json}}}}}}'\n",
        listener.address
    );
    let site = site(&format!(
        "{own}[notify.hc]\ntype = \"ping\"\nurl_file = \"hc-url\"\n\
         [notify.down]\ntype = \"webhook\"\n\
         url = \"http://user:CoreUser1{AT}127.0.0.1:1/CorePath2?key=CoreQuery3\"\n\
         on = [\"start\"]\n\
         [notify.mail]\ntype = \"mail\"\nserver = \"localhost\"\nport = {port}\n\
         username = \"robot\"\npassword_file = \"mail-password\"\n\
         from = \"a{AT}b.example\"\nto = [\"c{AT}d.example\"]\non = [\"start\"]\n",
    ));
    std::fs::write(site.path("hc-url"), format!("{}/CorePing6\n", listener.address)).unwrap();
    std::fs::write(site.path("mail-password"), "CoreMail7\n").unwrap();
    let cores = [
        "CoreUser1",
        "CorePath2",
        "CoreQuery3",
        "CoreHeader4",
        "CoreHook5",
        "CorePing6",
        "CoreMail7",
        "CoreBody8",
    ];
    let mut outputs = Vec::new();
    for (answer, args) in [
        (Answer::Status(200), &["--strategy", "daily", "--verbose"][..]),
        (Answer::Status(403), &["--strategy", "daily", "--json", "--verbose"]),
        (Answer::Redirect(302, "/x"), &["--strategy", "bad", "--verbose"]),
        (Answer::Status(500), &["notify", "test"]),
        (Answer::Status(403), &["notify", "test", "--json", "--verbose"]),
        (Answer::Status(200), &["check"]),
        (Answer::Status(200), &["check", "--json"]),
        (Answer::Status(200), &["--strategy", "daily", "--dry-run", "--json"]),
        (Answer::Status(200), &["show", "latest", "--strategy", "daily", "--json"]),
    ] {
        listener.answer(&[answer; 9]);
        let backup = site
            .backup(args)
            .env("BODY_KEY", "CoreBody8")
            .env("SSL_CERT_FILE", &authority.certificate);
        outputs.push(backup.run());
    }
    let got = listener.take();
    assert!(
        got.iter()
            .any(|got| got.body.contains("CoreBody8") && got.headers["x-key"] == "CoreHeader4")
    );
    assert!(
        outputs[0].err().contains("mail server `localhost` did not take the mail"),
        "{}",
        outputs[0]
    );
    assert!(outputs[0].err().contains("Not the password: ***"), "{}", outputs[0]);
    for ran in &outputs {
        let said = format!("{}{}", ran.out(), ran.err());
        assert_eq!(cores.iter().find(|core| said.contains(**core)), None, "{ran}");
    }
    for place in ["state", "store"] {
        for (file, bytes) in crate::support::files(&site.path(place)) {
            let plain = zstd::stream::decode_all(bytes.as_slice()).unwrap_or_default();
            let text = String::from_utf8_lossy(&[bytes, plain].concat()).into_owned();
            assert_eq!(cores.iter().find(|core| text.contains(**core)), None, "{file:?}");
        }
    }
}

fn mailing(mode: &str, server: &MailServer, login: &str) -> Site {
    site(&format!(
        "[notify.mail]\ntype = \"mail\"\nserver = \"localhost\"\nport = {}\ntls = \"{mode}\"\n\
         {login}\
         from = \"Sicherung ÄÖ <backup{AT}example.org>\"\n\
         to = [\"ops{AT}example.org\", \"Boss <boss{AT}example.org>\"]\n",
        server.port
    ))
}

#[test]
fn a_mail_is_sent_encrypted_and_with_a_login() {
    let dir = crate::support::temp();
    let authority = Authority::new(dir.path());
    for mode in ["starttls", "tls"] {
        let server = MailServer::new(mode, &authority, "hunter2");
        let site = mailing(mode, &server, "username = \"robot\"\npassword_file = \"password\"\n");
        std::fs::write(site.path("password"), "hunter2\n").unwrap();
        let backup = |args: &[&str], code| {
            site.backup(args).env("SSL_CERT_FILE", &authority.certificate).expect(code)
        };
        backup(&["--strategy", "daily"], 0);
        let ran = backup(&["--strategy", "bad"], 1);
        let mail = server.mail();
        assert_eq!(
            (&mail["encrypted"], &mail["user"]),
            (&true.into(), &"robot".into()),
            "{mail:#}\n{ran}"
        );
        assert_eq!(mail["from"], "backup@example.org");
        assert_eq!(mail["to"], serde_json::json!(["ops@example.org", "boss@example.org"]));
        let headers = &mail["headers"];
        assert_eq!(headers["subject"], "Backup app/bad failed: nothing was committed");
        assert_eq!(headers["from"], "Sicherung ÄÖ <backup@example.org>");
        assert_eq!(headers["auto-submitted"], "auto-generated");
        assert!(headers["message-id"].is_string() && headers["date"].is_string(), "{headers:#}");
        let text = mail["text"].as_str().unwrap();
        assert!(
            text.starts_with("Backup app/bad failed") && text.contains("it \"broke\""),
            "{text}"
        );
        assert!(server.is_empty(), "a success is no news");

        // Whom the system does not know is told nothing.
        let ran = site.backup(["notify", "test"]).expect(1);
        assert!(ran.out().contains("certificate"), "{ran}");
        std::fs::write(site.path("password"), "wrong\n").unwrap();
        let ran = backup(&["notify", "test"], 1);
        assert!(
            ran.out().contains("Not the password: ***. Check the settings of this notifier"),
            "{ran}"
        );
        assert!(server.is_empty());
    }
    let server = MailServer::new("plain", &authority, "");
    let site = mailing("none", &server, "");
    site.backup(["notify", "test", "mail"]).expect(0);
    assert_eq!(server.mail()["headers"]["subject"], "Test message about the backups of app");
    // A server that cannot encrypt gets nothing from one that wants it.
    let site = mailing("starttls", &server, "");
    let ran = site.backup(["notify", "test", "mail"]).expect(1);
    assert!(ran.out().contains("STARTTLS"), "{ran}");
    assert!(server.is_empty());
}

#[test]
fn notify_test_tells_each_notifier_and_shows_who_took_it() {
    let dir = crate::support::temp();
    let authority = Authority::new(dir.path());
    let (listener, secure) = (Listener::new(), Listener::with_tls(&authority));
    let site = site(&(webhook("chat", &secure, "") + &ping(&listener, "")));
    let backup = |args: &[&str]| site.backup(args).env("SSL_CERT_FILE", &authority.certificate);
    let ran = backup(&["notify", "test"]).expect(0);
    let shown: Vec<Vec<&str>> =
        ran.out().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(shown[0], ["INSTANCE", "NAME", "TYPE", "TIME", "RESULT"]);
    assert_eq!((shown[1][..3].to_vec(), shown[1][4]), (vec!["app", "chat", "webhook"], "taken"));
    assert_eq!((shown[2][..3].to_vec(), shown[2][4]), (vec!["app", "hc", "ping"], "taken"));
    let event = secure.take()[0].json();
    assert_eq!((&event["event"], &event["strategy"]), (&"test".into(), &serde_json::Value::Null));
    // Not a success, which would put off an alarm that is needed.
    assert_eq!(paths(&listener.take()), ["POST /ping/uuid/fail"]);

    backup(&["notify", "test", "chat"]).expect(0);
    assert_eq!((secure.take().len(), listener.take().len()), (1, 0));
    listener.answer(&[Answer::Status(404)]);
    let ran = backup(&["notify", "test", "--json"]).expect(1);
    let rows = ran.json()["notifiers"].clone();
    assert_eq!((&rows[0]["ok"], &rows[0]["error"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!((&rows[1]["ok"], &rows[1]["type"]), (&false.into(), &"ping".into()));
    assert!(rows[1]["error"].as_str().unwrap().contains("answered 404 Not Found"), "{ran}");
    assert!(rows[1]["seconds"].is_f64());

    let ran = backup(&["notify", "test", "chta"]).expect(2);
    assert!(ran.err().contains("There is no notifier `chta`: did you mean `chat`?"), "{ran}");
    // It fails for the storage that is gone, and contacts no notifier.
    secure.take();
    let ran = backup(&["check"]).expect(1);
    assert!(secure.take().is_empty());
    assert!(ran.out().contains("notify chat"), "{ran}");
    assert!(
        ran.out().contains(
            "A webhook on failure, problems, stale, recovered, drill_failed, drill_inconclusive; \
             not contacted"
        ),
        "{ran}"
    );
    site.configure(BODY);
    let ran = backup(&["notify", "test"]).expect(2);
    assert!(ran.err().contains("No notifier is configured: there is no `[notify.NAME]`"), "{ran}");
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let (proxy, listener) = (Listener::new(), Listener::new());
    let site = site(&webhook("own", &listener, ""));
    site.backup(["notify", "test"]).env("HTTP_PROXY", &proxy.address).expect(0);
    assert_eq!(paths(&proxy.take()), [format!("POST {}/hook/own", listener.address)]);
    assert!(listener.take().is_empty());
    site.backup(["notify", "test"])
        .env("HTTP_PROXY", &proxy.address)
        .env("NO_PROXY", "127.0.0.1")
        .expect(0);
    assert_eq!((proxy.take().len(), listener.take().len()), (0, 1));
}

/// The notifiers of a configuration, outside of the program.
fn configured(text: &str) -> BTreeMap<Name, Notify> {
    let site = site(text);
    let text = std::fs::read_to_string(site.config()).unwrap();
    let environment = Environment(Default::default());
    config::parse(&site.config(), &text, &environment)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .notify
}

#[test]
fn events_come_in_their_order_and_a_flood_of_them_is_bounded() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let name = |text: &str| text.parse::<Name>().unwrap();
    let (app, daily, now) = (name("app"), name("daily"), chrono::DateTime::UNIX_EPOCH);
    let listener = Listener::new();
    let notify = configured(&webhook("own", &listener, ""));
    runtime.block_on(async {
        let notifiers = Notifiers::new(&notify);
        // The first has to be tried again, and the others wait for it.
        listener.answer(&[Answer::Status(503)]);
        notifiers.tell(&Event::stale(&app, &daily, now, "no run since 1970".to_owned()));
        notifiers.tell(&Event::recovered(&app, &daily, now, None));
        notifiers.settle(Duration::from_secs(30)).await;
        let told: Vec<String> =
            listener.take().iter().map(|got| got.json()["title"].to_string()).collect();
        let titles =
            ["\"Backup app/daily is overdue\"", "\"Backup app/daily is as it should be again\""];
        assert_eq!(told, [titles[0], titles[0], titles[1]]);

        // The first is tried for 6 seconds, and meanwhile 64 others wait: the rest is dropped.
        listener.answer(&[Answer::Status(503), Answer::Status(503)]);
        let began = Instant::now();
        for number in 0..1_000 {
            notifiers.tell(&Event::stale(&app, &daily, now, format!("number {number}")));
        }
        notifiers.settle(Duration::from_millis(300)).await;
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        notifiers.settle(crate::support::PATIENCE).await;
        let told: Vec<String> =
            listener.take().iter().map(|got| got.json()["reason"].to_string()).collect();
        assert_eq!(told[..4], ["\"number 0\"", "\"number 0\"", "\"number 0\"", "\"number 1\""]);
        // The first waits for nobody, or it is one of the 64.
        assert!(told.len() == 2 + 64 || told.len() == 3 + 64, "{}", told.len());
        drop(notifiers);
    });
}

#[test]
fn every_recipe_of_the_documentation_is_a_configuration() {
    let text = std::fs::read_to_string(repository().join("docs/notifications.md")).unwrap();
    let site = site("");
    let head = std::fs::read_to_string(site.config()).unwrap();
    let mut recipes = 0;
    for block in text.split("```toml\n").skip(1) {
        let recipe = block.split("```").next().unwrap();
        // What a recipe takes from the environment or a file is there.
        let mut environment = Environment(Default::default());
        for part in recipe.split("${").skip(1) {
            let name = part.split('}').next().unwrap();
            environment.0.insert(
                name.into(),
                if name.ends_with("URL") { "https://example.org/x" } else { "x" }.into(),
            );
        }
        let secrets = site.path("secrets");
        std::fs::create_dir_all(&secrets).unwrap();
        for part in recipe.split("/run/secrets/").skip(1) {
            std::fs::write(secrets.join(part.split('"').next().unwrap()), "https://example.org/x")
                .unwrap();
        }
        let recipe = recipe.replace("/run/secrets", secrets.to_str().unwrap());
        let read =
            config::parse(Path::new("recipe.toml"), &format!("{head}{recipe}"), &environment);
        let read = read.unwrap_or_else(|errors| panic!("{errors}\n{recipe}"));
        assert!(!read.notify.is_empty(), "{recipe}");
        recipes += 1;
    }
    assert!(recipes >= 8, "{recipes}");
}
