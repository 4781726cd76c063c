//! Where a drill restores to: never to a source, and nothing of it stays, however the drill ends.

use std::path::Path;

use rustix::process::Signal;

use crate::support::daemon::{Daemon, WallClock, until};
use crate::support::postgres::Server;
use crate::support::shop::{Shop, assert_passed};
use crate::support::{sh, told};

const SERVER: &str = "postgres = { url = \"${SCRATCH_15}\", on_source_server = true }\n";

/// A check that waits for the test, and how it is seen to wait.
fn waits(shop: &Shop) -> String {
    let begun = shop.site.path("begun");
    format!(
        "[[strategies.daily.drill.checks]]\ntype = \"command\"\n\
         command = [\"sh\", \"-c\", \"touch {}; sleep 1000\"]\n",
        begun.display()
    )
}

fn databases(server: &Server, like: &str) -> i64 {
    let mut connection = server.connect("postgres");
    let sql = format!("SELECT count(*) FROM pg_database WHERE datname LIKE '{like}%'");
    server
        .runtime
        .block_on(sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection))
        .unwrap()
}

#[test]
fn a_drill_that_is_aimed_at_a_source_is_refused_by_any_name_of_it() {
    let shop = Shop::new(15);
    shop.run();
    let other_name = shop.database.url().replace("127.0.0.1", "localhost");
    for (drill, scratch, words) in [
        (
            "postgres = { url = \"${SCRATCH_15}\" }\n",
            shop.database.url(),
            "is the source `db` itself",
        ),
        (
            "postgres = { url = \"${SCRATCH_15}\", on_source_server = true }\n",
            other_name,
            "is the source `db` itself",
        ),
        (
            "postgres = { url = \"${SCRATCH_15}\" }\n",
            shop.server().url("postgres").to_string(),
            "on the same server as the source `db`",
        ),
        ("work_dir = \"@/files/drills\"\n", String::new(), "is in the place of the source `files`"),
        ("work_dir = \"@/store\"\n", String::new(), "is in the place of the storage `local`"),
    ] {
        shop.configure(drill);
        let refused =
            shop.backup(&["drill", "--strategy", "daily"]).env("SCRATCH_15", scratch).expect(2);
        assert!(
            refused.err().contains(words) && refused.err().contains("Nothing was written"),
            "{drill}: {refused}"
        );
        assert!(!refused.err().contains("s3cret-pg"), "{refused}");
    }
    assert_eq!(databases(shop.server(), &shop.prefix()), 0);
    assert!(!shop.site.path("files/drills").exists());
    // Of a drill elsewhere, whose configuration has no sources, the facts tell which they were.
    let text = format!(
        "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n[strategies.daily]\n\
         storages = [\"local\"]\n[strategies.daily.drill]\n{}",
        "postgres = { url = \"${SCRATCH_15}\" }\n"
    );
    shop.site.configure(&text);
    let refused = shop
        .backup(&["drill", "--strategy", "daily"])
        .env("SCRATCH_15", shop.database.url())
        .expect(2);
    assert!(refused.err().contains("is the source `db` itself"), "{refused}");
}

#[test]
fn a_drill_with_a_configuration_and_key_of_its_own_needs_no_source() {
    let shop = Shop::of(crate::support::shop::Kind { major: 16, encrypted: true, s3: false });
    shop.run();
    shop.site.configure(
        "[storages.local]\ntype = \"local\"\npath = \"@/store\"\n[strategies.daily]\n\
         storages = [\"local\"]\n\
         [strategies.daily.drill]\nidentity_file = \"@/key\"\n[[strategies.daily.drill.checks]]\n\
         type = \"query\"\nsource = \"db\"\n\
         query = \"SELECT count(*) FROM item\"\nexpect = 500\n",
    );
    let report =
        shop.backup(&["drill", "--strategy", "daily", "--json"]).env("DB_URL", "").expect(0).json();
    assert_passed(&report);
}

/// Kills a drill once it is seen at a step, and drills again.
fn nothing_is_left(drill: &str, seen: impl Fn(&Shop) -> bool) {
    let shop = Shop::new(15);
    shop.configure(drill);
    shop.run();
    shop.configure(&format!("{drill}{}", waits(&shop)));
    let killed = shop.backup(&["drill", "--strategy", "daily"]).spawn();
    until("the drill is at that step", || seen(&shop));
    killed.signal(Signal::KILL);
    killed.wait();
    shop.configure(drill);
    assert_passed(&shop.drill(0, &[]).json());
    assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
    assert_eq!(clusters(&shop), 0);
}

/// Servers that run in a scratch folder of this shop.
fn clusters(shop: &Shop) -> usize {
    let script = r#"for p in /proc/[0-9]*; do case "$(readlink $p/cwd)" in *"/$1"*) cat $p/comm;; esac; done 2>/dev/null | grep -c postgres || true"#;
    sh(shop.site.dir.path(), script, &[shop.prefix().as_ref()]).trim().parse().unwrap()
}

#[test]
fn killed_when_its_folder_was_made_nothing_is_left_after_the_next() {
    nothing_is_left(SERVER, |shop| {
        shop.site.path("state/node").exists() && !shop.leftovers(&[]).is_empty()
    });
}

#[test]
fn killed_when_its_database_was_made_nothing_is_left_after_the_next() {
    nothing_is_left(SERVER, |shop| {
        shop.site.path("state/node").exists() && databases(shop.server(), &shop.prefix()) > 0
    });
}

#[test]
fn killed_while_it_checks_nothing_is_left_after_the_next() {
    nothing_is_left(SERVER, |shop| shop.site.path("begun").exists());
}

#[test]
fn killed_when_its_cluster_was_made_nothing_is_left_after_the_next() {
    let known = |shop: &Shop| shop.site.path("state/node").exists();
    let made = |path: &String| Path::new(path).join("db/cluster/PG_VERSION").exists();
    nothing_is_left("", |shop| known(shop) && shop.leftovers(&[]).iter().any(made));
    nothing_is_left("", |shop| known(shop) && clusters(shop) > 0);
    nothing_is_left("", |shop| shop.site.path("begun").exists());
}

#[test]
fn asked_to_stop_it_cleans_up_and_judges_nothing() {
    for drill in [SERVER, ""] {
        let shop = Shop::new(15);
        shop.configure(&format!("{drill}{}", waits(&shop)));
        shop.run();
        let stopped = shop.backup(&["drill", "--strategy", "daily"]).spawn();
        until("the drill checks", || shop.site.path("begun").exists());
        stopped.signal(Signal::TERM);
        stopped.wait().expect(1);
        assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
        assert_eq!(clusters(&shop), 0);
        assert!(!shop.site.path("store/app/marks").exists());
        shop.backup(&["drill", "report"]).expect(1);
    }
}

#[test]
fn a_cluster_that_is_kept_can_be_entered() {
    let shop = Shop::new(15);
    shop.run();
    let report = shop.drill(0, &["--keep"]).json();
    let left = report["left"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    let [line] = left.filter(|line| line.contains("`psql ")).collect::<Vec<_>>()[..] else {
        panic!("{report:#}")
    };
    let (remove, open) = line.split("To remove it: ").nth(1).unwrap().split_once(". `").unwrap();
    let open = open.split_once('`').unwrap().0;
    let enter = format!("PATH=\"$1:$PATH\"; {open} -Atc 'SELECT count(*) > 0 FROM pg_class'");
    let entered = sh(shop.site.dir.path(), &enter, &[shop.server().bin.as_os_str()]);
    assert_eq!(entered.trim(), "t");
    sh(shop.site.dir.path(), remove, &[]);
}

#[test]
fn what_is_to_be_kept_stays_until_somebody_removes_it() {
    let shop = Shop::new(15);
    shop.configure(SERVER);
    shop.run();
    let report = shop.drill(0, &["--keep"]).json();
    let left = report["left"].as_array().unwrap();
    assert!(left.iter().any(|line| line.as_str().unwrap().contains("DROP DATABASE")), "{left:#?}");
    assert_eq!(databases(shop.server(), &shop.prefix()), 1);
    shop.drill(0, &[]);
    assert_eq!(databases(shop.server(), &shop.prefix()), 1, "the next drill leaves it");
    assert!(
        shop.leftovers(&[]).iter().any(|path| Path::new(path).join("files/config.json").exists())
    );
    let prefix = shop.prefix();
    let sql = format!("SELECT datname::text FROM pg_database WHERE datname LIKE '{prefix}%'");
    for name in shop.database.texts(&sql) {
        shop.server().run("postgres", &format!("DROP DATABASE {name}"));
    }
}

#[test]
fn what_could_not_be_judged_is_inconclusive_and_says_nothing_of_the_snapshot() {
    let shop = Shop::of(crate::support::shop::Kind { major: 15, encrypted: true, s3: false });
    shop.run();
    for (drill, words) in [
        (
            "postgres = { url = \"postgresql://127.0.0.1:1/postgres?user=drill\" }\n",
            "Look whether the server runs",
        ),
        ("max_bytes = \"1KiB\"\n", "`max_bytes` allows 1.0 KiB"),
        (
            "timeout = \"1s\"\n[[strategies.daily.drill.checks]]\ntype = \"command\"\n\
             command = [\"sleep\", \"1000\"]\n",
            "took longer than its `timeout` of 1",
        ),
        ("postgres = { server_dir = \"@/nothing\" }\n", "No `initdb` is new enough"),
    ] {
        shop.configure(drill);
        let report = shop.drill(1, &[]).json();
        assert_eq!(report["verdict"], "inconclusive", "{drill}: {report:#}");
        assert!(report["problem"].as_str().unwrap().contains(words), "{drill}: {report:#}");
        assert_eq!(shop.leftovers(&[]), [""; 0]);
    }
    // Without the key, and with another.
    shop.configure("");
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    let key = text.lines().find(|line| line.starts_with("identity_file")).unwrap().to_owned();
    std::fs::write(shop.site.config(), text.replace(&key, "")).unwrap();
    let report = shop.drill(1, &[]).json();
    assert!(report["problem"].as_str().unwrap().contains("no key was given"), "{report:#}");
    sh(shop.site.dir.path(), "age-keygen -o other 2>/dev/null", &[]);
    let other = shop.site.path("other");
    let report = shop.drill(1, &["--identity-file", other.to_str().unwrap()]).json();
    assert_eq!(report["verdict"], "inconclusive", "{report:#}");
    assert!(!shop.site.path("store/app/marks").exists());
    let list = shop.backup(&["list", "--json"]).expect(0).json();
    assert_eq!(list["snapshots"][0]["drilled"], serde_json::Value::Null);
    // There is nothing to drill, and there is no such snapshot.
    std::fs::remove_dir_all(shop.site.path("store/app/daily")).unwrap();
    assert!(shop.drill(1, &[]).json()["problem"].as_str().unwrap().contains("no snapshot"), "none");
    assert!(
        shop.backup(&["drill", "--strategy", "daily", "--snapshot", "20200101"])
            .expect(1)
            .err()
            .contains("There is no snapshot `20200101`")
    );
}

#[test]
fn the_evidence_is_a_page_a_document_or_text() {
    let shop = Shop::new(15);
    shop.configure(SERVER);
    let id = shop.run();
    let none = shop.backup(&["drill", "report"]).expect(1);
    assert!(none.err().contains("No drill is recorded"), "{none}");
    let drilled = shop.drill(0, &[]).json();
    let report =
        |args: &[&str]| shop.backup(&["drill", "report"]).args(args).expect(0).out().to_owned();
    let page = report(&["--format", "html"]);
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    for part in [
        "Restore drill of app/daily",
        "passed",
        id.as_str(),
        "PostgreSQL 15",
        "rows of &quot;public&quot;.&quot;item&quot;",
        "sha256:",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(
        !page.contains("<script") && !page.contains("src=") && !page.contains("href="),
        "it needs nothing else"
    );
    let document: serde_json::Value =
        serde_json::from_str(&report(&["--format", "json", &id])).unwrap();
    assert_eq!(document["id"], drilled["id"]);
    assert_eq!(document["checks"], drilled["checks"]);
    let text = report(&[drilled["id"].as_str().unwrap()]);
    assert!(
        text.contains("drill passed") && text.contains("rows of \"public\".\"item\""),
        "{text}"
    );
    assert!(!page.contains("s3cret-pg") && !text.contains("s3cret-pg"));
}

#[test]
fn a_drill_that_is_under_way_is_not_begun_twice() {
    let shop = Shop::new(15);
    shop.configure(&format!("{SERVER}{}", waits(&shop)));
    shop.run();
    let first = shop.backup(&["drill", "--strategy", "daily"]).spawn();
    until("the drill checks", || shop.site.path("begun").exists());
    shop.backup(&["drill", "--strategy", "daily"]).expect(5);
    first.signal(Signal::TERM);
    first.wait();
}

#[test]
fn the_scheduler_drills_on_time_and_tells_what_it_found() {
    let site = crate::support::site::Site::new("");
    let hook = told::Listener::new();
    std::fs::create_dir_all(site.path("files")).unwrap();
    std::fs::write(site.path("files/a"), "alpha").unwrap();
    let config = format!(
        "[sources.files]\ntype = \"directory\"\npath = \"@/files\"\n[storages.local]\n\
         type = \"local\"\npath = \"@/store\"\n\
             [notify.hook]\ntype = \"webhook\"\nurl = \"{}\"\n\
         on = [\"drill_passed\", \"drill_failed\", \"drill_inconclusive\"]\n\
             [strategies.daily]\nsources = [\"files\"]\nstorages = [\"local\"]\n\
         retry = {{ attempts = 2, backoff = \"1s\" }}\n\
             [strategies.daily.drill]\nschedule = \"0 5 * * 0\"\n",
        hook.address
    );
    site.configure(&config);
    let at = |text: &str| text.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let clock = WallClock::at(at("2026-05-03T01:30:00Z"));
    clock.shown_to(site.backup(["--strategy", "daily"])).expect(0);
    let mut daemon = Daemon::start_at(&site, &clock);
    until("it looks after the strategy", || site.path("state/scheduler.lock").exists());
    clock.set(at("2026-05-03T04:59:59Z"));
    daemon.says("drill passed");
    let status = clock.shown_to(site.backup(["status", "--json"])).expect(0).json();
    let drills = &status["strategies"][0]["drills"];
    assert_eq!(drills["verdict"], "passed", "{status:#}");
    assert_eq!(drills["next"], "2026-05-10T05:00:00Z");
    // The next finds that the content was changed under it.
    let newest = site.newest().join("files.tar.zst");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    clock.set(at("2026-05-10T04:59:59Z"));
    daemon.says("drill failed");
    daemon.stop();
    let status = clock.shown_to(site.backup(["status", "--json"])).expect(1).json();
    assert_eq!(status["strategies"][0]["state"], "damaged", "{status:#}");
    assert!(
        status["strategies"][0]["reason"].as_str().unwrap().contains("files.tar"),
        "{status:#}"
    );
    let events: Vec<serde_json::Value> = hook.take().iter().map(told::Got::json).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["drill_passed", "drill_failed"], "{events:#?}");
    assert_eq!(events[1]["of"], "drill");
    assert_eq!(events[1]["drill"]["verdict"], "failed");
    assert!(events[1]["reason"].as_str().unwrap().contains("files.tar"));
}

#[test]
fn roles_and_what_is_theirs_come_back_in_a_cluster_of_the_drills_own() {
    let shop = Shop::new(15);
    let role = crate::support::stores::fresh("hf_role").replace('-', "_");
    shop.server().run("postgres", &format!("CREATE ROLE {role}"));
    shop.database.run(&format!(
        "ALTER TABLE item OWNER TO {role}; ALTER TABLE item ENABLE ROW LEVEL SECURITY, FORCE ROW \
         LEVEL SECURITY; \
         CREATE POLICY few ON item TO {role} USING (id < 10); GRANT SELECT ON \"user\" TO {role}"
    ));
    // Without the roles everything belongs to who restores; whom the policy is for is known.
    shop.run();
    assert_passed(&shop.drill(0, &[]).json());
    // On a server that has no such role nothing can be said about the backup.
    let elsewhere = Server::new(16);
    shop.configure("postgres = { url = \"${SCRATCH_16}\" }\n");
    let report = shop.drill(1, &[]).json();
    assert!(
        report["problem"].as_str().unwrap().contains(&format!("role \"{role}\" does not exist")),
        "{report:#}"
    );
    assert_eq!(shop.leftovers(&[&elsewhere]), [""; 0]);
    shop.configure("");
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    std::fs::write(
        shop.site.config(),
        text.replace("[sources.settings]", "globals = true\n[sources.settings]"),
    )
    .unwrap();
    shop.run();
    let check = format!(
        "[[strategies.daily.drill.checks]]\ntype = \"query\"\nsource = \"db\"\n\
         query = \"SELECT tableowner FROM pg_tables WHERE tablename = 'item'\"\n\
         expect = \"{role}\"\n"
    );
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    std::fs::write(shop.site.config(), text + &check).unwrap();
    let report = shop.drill(0, &[]).json();
    shop.server().run("postgres", &format!("DROP DATABASE {} WITH (FORCE)", shop.database.name));
    shop.server().run("postgres", &format!("DROP ROLE {role}"));
    assert_passed(&report);
    let restored: Vec<&str> = report["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["done"].as_str().unwrap())
        .collect();
    assert_eq!(&restored[..2], ["restored", "restored"], "roles, then the database: {report:#}");
}

#[test]
fn a_verdict_outlives_the_machine_and_retention_heeds_it() {
    let shop = Shop::new(15);
    shop.configure(SERVER);
    let drilled = shop.run();
    shop.drill(0, &[]);
    // Another machine sees it once it has looked into the storage.
    let text = std::fs::read_to_string(shop.site.config()).unwrap();
    let text = text
        .replace("state_dir = ", "state_dir = \"@/other\" # ")
        .replace('@', shop.site.dir.path().to_str().unwrap());
    let text = text
        .replace("retry = {", "retention = { keep_last = 1 }\nmax_delete_percent = 100\nretry = {");
    std::fs::write(shop.site.config(), text).unwrap();
    let list = shop.backup(&["list", "--json"]).expect(0).json();
    assert_eq!(list["snapshots"][0]["drilled"]["verdict"], "passed", "{list:#}");
    let drills =
        shop.backup(&["status", "--json"]).expect(0).json()["strategies"][0]["drills"].clone();
    assert_eq!(drills["verdict"], "passed", "{drills:#}");
    assert!(drills["last_passed"].is_string() && drills["last"].is_null(), "{drills:#}");
    // The newest that passed stays, whatever the rules say.
    let (second, third) = (shop.run(), shop.run());
    let left: Vec<String> = shop.backup(&["list", "--json"]).expect(0).json()["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(left, [drilled, third], "{second} is gone");
}

#[test]
fn without_room_for_it_a_drill_does_not_begin() {
    let shop = Shop::new(15);
    std::fs::write(shop.site.path("files/large"), crate::support::site::noise(6 << 20)).unwrap();
    shop.configure(&format!("work_dir = \"@/small\"\n{SERVER}"));
    shop.run();
    std::fs::create_dir(shop.site.path("small")).unwrap();
    sh(shop.site.dir.path(), "mount -t tmpfs -o size=4m tmpfs small", &[]);
    let unmount = crate::support::Mounted(shop.site.path("small"));
    let report = shop.drill(1, &[]).json();
    assert!(report["problem"].as_str().unwrap().contains("which has 4.0 MiB free"), "{report:#}");
    assert_eq!(std::fs::read_dir(shop.site.path("small")).unwrap().count(), 0);
    drop(unmount);
}

#[test]
fn what_others_put_where_drills_leave_things_is_not_touched() {
    assert!(crate::support::is_root(), "another user is needed");
    let shop = Shop::new(15);
    shop.run();
    shop.drill(0, &[]);
    // A server of somebody, and in the folder for everybody a link to it under a name of ours.
    let server = shop.site.path("server");
    std::fs::create_dir(&server).unwrap();
    let mut process =
        std::process::Command::new("sleep").arg("1000").current_dir(&server).spawn().unwrap();
    std::fs::write(server.join("postmaster.pid"), format!("{}\n", process.id())).unwrap();
    let evil = std::env::temp_dir().join(format!("{}evil_pg", shop.prefix()));
    std::fs::create_dir_all(evil.join("db")).unwrap();
    std::os::unix::fs::symlink(&server, evil.join("db/cluster")).unwrap();
    let linked = std::env::temp_dir().join(format!("{}link", shop.prefix()));
    std::os::unix::fs::symlink(&server, &linked).unwrap();
    std::os::unix::fs::chown(&evil, Some(65_534), Some(65_534)).unwrap();
    shop.drill(0, &[]);
    let alive = process.try_wait().unwrap().is_none();
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(alive, "it was not stopped");
    assert!(evil.join("db/cluster").exists() && linked.exists());
    std::fs::remove_dir_all(evil).unwrap();
    std::fs::remove_file(linked).unwrap();
}

#[test]
fn what_a_killed_drill_left_is_found_where_it_was_whatever_is_configured_now() {
    let shop = Shop::new(15);
    let drill = format!("work_dir = \"@/before\"\n{SERVER}");
    std::fs::create_dir(shop.site.path("before")).unwrap();
    shop.configure(&format!("{drill}{}", waits(&shop)));
    shop.run();
    let killed = shop.backup(&["drill", "--strategy", "daily"]).spawn();
    until("the drill checks", || shop.site.path("begun").exists());
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(std::fs::read_dir(shop.site.path("before")).unwrap().count() > 0);
    shop.configure(SERVER);
    shop.drill(0, &[]);
    assert_eq!(std::fs::read_dir(shop.site.path("before")).unwrap().count(), 0);
    assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
}

#[test]
fn a_cluster_is_not_made_in_a_source_or_storage_that_is_the_temporary_folder() {
    assert!(crate::support::is_root(), "elsewhere it is in the drill's own folder");
    let shop = Shop::new(15);
    shop.run();
    for folder in ["files", "store"] {
        let refused = shop
            .backup(&["drill", "--strategy", "daily"])
            .env("TMPDIR", shop.site.path(folder))
            .expect(2);
        assert!(refused.err().contains("Nothing was written"), "{refused}");
    }
}

#[test]
fn a_snapshot_that_is_pruned_elsewhere_while_it_is_drilled_is_not_called_bad() {
    let shop = Shop::new(15);
    shop.configure(SERVER);
    shop.database.run(
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql AS 'SELECT pg_sleep(3) IS NOT NULL'; \
         CREATE TABLE late (x int, CHECK (slow())); \
         INSERT INTO late VALUES (1)",
    );
    let id = shop.run();
    let drilling = shop.backup(&["drill", "--strategy", "daily", "--json"]).spawn();
    until("the database is restored", || databases(shop.server(), &shop.prefix()) > 0);
    std::fs::remove_file(shop.snapshot(&id).join("manifest.json")).unwrap();
    std::fs::remove_dir_all(shop.snapshot(&id)).unwrap();
    let report = drilling.wait().expect(1).json();
    assert_eq!(report["verdict"], "inconclusive", "{report:#}");
    assert!(
        report["problem"].as_str().unwrap().contains("deleted while it was drilled"),
        "{report:#}"
    );
    assert!(!shop.site.path("store/app/marks").exists());
}

#[test]
fn killed_while_it_cleans_up_nothing_is_left_after_the_next() {
    let shop = Shop::new(15);
    let (begun, go) = (shop.site.path("begun"), shop.site.path("go"));
    let waits = format!(
        "[[strategies.daily.drill.checks]]\ntype = \"command\"\n\
         command = [\"sh\", \"-c\", \"touch {}; until [ -e {} ]; do sleep 0.02; done\"]\n",
        begun.display(),
        go.display()
    );
    shop.configure(&format!("{SERVER}{waits}"));
    shop.run();
    let killed = shop.backup(&["drill", "--strategy", "daily"]).spawn();
    until("the drill checks", || begun.exists());
    // Nobody drops a database while this is locked.
    let server = shop.server();
    let mut lock = server.connect("postgres");
    let run = |connection: &mut sqlx::PgConnection, sql: &'static str| {
        server.runtime.block_on(sqlx::raw_sql(sql).execute(connection)).unwrap();
    };
    run(&mut lock, "BEGIN; LOCK TABLE pg_database IN SHARE MODE");
    std::fs::write(&go, "").unwrap();
    let dropping = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE%{}%' AND \
         wait_event_type = 'Lock'",
        shop.prefix()
    );
    until("it drops the database", || shop.database.number(&dropping) > 0);
    killed.signal(Signal::KILL);
    killed.wait();
    run(&mut lock, "ROLLBACK");
    assert_passed(&shop.drill(0, &[]).json());
    assert_eq!(shop.leftovers(&[shop.server()]), [""; 0]);
}

#[test]
fn on_a_schedule_what_could_not_be_judged_is_tried_again_and_then_told() {
    let site = crate::support::site::Site::new("");
    let hook = told::Listener::new();
    std::fs::create_dir_all(site.path("files")).unwrap();
    std::fs::write(site.path("files/a"), "alpha").unwrap();
    let config = format!(
        "[sources.files]\ntype = \"directory\"\npath = \"@/files\"\n[storages.local]\n\
         type = \"local\"\npath = \"@/store\"\n\
         [notify.hook]\ntype = \"webhook\"\nurl = \"{}\"\n\
         [strategies.daily]\nsources = [\"files\"]\nstorages = [\"local\"]\n\
         retry = {{ attempts = 2, backoff = \"1s\" }}\n\
         [strategies.daily.drill]\nschedule = \"0 5 * * 0\"\n",
        hook.address
    );
    site.configure(&format!("{config}max_bytes = \"1KiB\"\n"));
    let at = |text: &str| text.parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let clock = WallClock::at(at("2026-05-03T01:30:00Z"));
    clock.shown_to(site.backup(["--strategy", "daily"])).expect(0);
    hook.take();
    let mut daemon = Daemon::start_at(&site, &clock);
    until("it looks after the strategy", || site.path("state/scheduler.lock").exists());
    clock.set(at("2026-05-03T04:59:59Z"));
    daemon.says("drill inconclusive");
    daemon.says("trying again");
    daemon.says("drill inconclusive");
    daemon.stop();
    let events: Vec<serde_json::Value> = hook.take().iter().map(told::Got::json).collect();
    assert_eq!(events.len(), 1, "once, after the last attempt: {events:#?}");
    assert_eq!(events[0]["event"], "drill_inconclusive");
    // It never counts as passed: an hour after it was due the strategy is not proved.
    clock.set(at("2026-05-03T06:30:00Z"));
    let status = clock.shown_to(site.backup(["status", "--json"])).expect(1).json();
    assert_eq!(status["strategies"][0]["state"], "unproven", "{status:#}");
    assert!(status["strategies"][0]["drills"]["last_passed"].is_null(), "{status:#}");
    // Once that is mended it is made up for.
    site.configure(&config);
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.says("drill passed");
    daemon.stop();
}
