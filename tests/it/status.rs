//! What an operator sees of a scheduler: the status page, `backup status`, and what is told; and
//! that all of them agree.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use chrono::{DateTime, TimeDelta, Utc};

use crate::support::daemon::{Daemon, WallClock, until};
use crate::support::site::{SCRIPTED, Site, noise};
use crate::support::told::Listener;
use crate::support::{sh, variable};

/// A site with a status page, and a port that was free a moment ago.
fn site(more: &str) -> (Site, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let daily = "schedule = \"30 1 * * *\"\nretry = { attempts = 1 }\n";
    let site = Site::new(&format!("listen = \"127.0.0.1:{port}\"\n{SCRIPTED}{daily}{more}"));
    succeed(&site);
    (site, port)
}

fn succeed(site: &Site) {
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
}

fn fail(site: &Site) {
    std::fs::write(site.path("dump.sh"), "echo out of order >&2; exit 1").unwrap();
}

/// The status line's code and the body.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The metrics, as a strict reader reads them: by name with the labels that tell.
fn metrics(site: &Site, port: u16) -> BTreeMap<String, f64> {
    let (code, text) = get(port, "/metrics");
    assert_eq!(code, 200);
    let file = site.path("metrics");
    std::fs::write(&file, text).unwrap();
    let reader = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(open(sys.argv[1]).read()):
    assert family.documentation, family
    for sample in family.samples:
        labels = ','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()) if k != 'instance')
        print(f'{sample.name}{{{labels}}} {sample.value!r}')
";
    let python = format!("exec {} -c \"$1\" \"$2\"", variable("HOLDFAST_TEST_PYTHON"));
    let out = sh(site.dir.path(), &python, &[reader.as_ref(), file.as_os_str()]);
    out.lines()
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

#[test]
fn the_page_tells_what_is_fresh_and_what_is_not_and_so_does_the_command() {
    let (site, port) = site("");
    let due = at("2026-05-02T01:30:00Z");
    let clock = WallClock::at(due - TimeDelta::hours(20));
    let status = |code: i32| clock.shown_to(site.backup(["status", "--json"])).expect(code).json();
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    assert_eq!(get(port, "/healthz"), (200, "alive\n".to_owned()));
    // Nothing was due yet.
    assert_eq!(get(port, "/readyz").0, 200);
    assert_eq!(status(0)["strategies"][0]["state"], "waiting");
    fail(&site);
    clock.set(due - TimeDelta::seconds(1));
    daemon.says("nothing was committed");
    // It may still be made good for an hour.
    assert_eq!(get(port, "/readyz").0, 200);
    assert_eq!(status(0)["strategies"][0]["last_run"]["outcome"], "failed");
    clock.set(due + TimeDelta::minutes(61));
    let (code, why) = get(port, "/readyz");
    assert_eq!(code, 503);
    assert!(
        why.contains("app/daily is stale: `local` has no whole snapshot of 2026-05-02T01:30:00"),
        "{why}"
    );
    let told = status(1);
    assert_eq!(told["strategies"][0]["state"], "stale", "{told:#}");
    assert_eq!(told["strategies"][0]["failures_in_a_row"], 1);
    assert!(
        told["strategies"][0]["last_run"]["error"].to_string().contains("out of order"),
        "{told:#}"
    );
    let read = metrics(&site, port);
    assert_eq!(read["holdfast_ready{}"], 0.0);
    assert_eq!(read["holdfast_runs_total{outcome=failed,strategy=daily}"], 1.0);
    assert_eq!(read["holdfast_runs_total{outcome=success,strategy=daily}"], 0.0);
    // A run by hand makes it good, also in the eyes of the scheduler.
    succeed(&site);
    clock.shown_to(site.backup(["--strategy", "daily"])).expect(0);
    assert_eq!(get(port, "/readyz"), (200, "ready\n".to_owned()));
    assert_eq!(status(0)["strategies"][0]["state"], "fresh");
    let read = metrics(&site, port);
    assert_eq!(read["holdfast_ready{}"], 1.0);
    assert_eq!(read["holdfast_snapshots{storage=local,strategy=daily}"], 1.0);
    let newest = read["holdfast_newest_snapshot_timestamp_seconds{storage=local,strategy=daily}"];
    assert!((newest - clock.now().timestamp() as f64).abs() < 60.0, "{newest}");
    assert_eq!(get(port, "/nothing").0, 404);
    let (code, page) = get(port, "/api/status");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!((code, page["format"].as_u64()), (200, Some(1)));
    let (mut page, mut told) = (page, status(0));
    (page["at"], told["at"]) = (0.into(), 0.into());
    assert_eq!(page, told, "the page and the command tell the same");
    daemon.stop();
    // Also when the scheduler is down, and for what nobody looks after any more.
    clock.set(due + TimeDelta::days(3));
    let text = clock.shown_to(site.backup(["status"])).expect(1);
    assert!(text.out().contains("stale"), "{text}");
    assert!(text.err().contains("No scheduler of app is running here"), "{text}");
}

#[test]
fn with_the_state_folder_lost_the_status_is_that_of_the_storages() {
    let (site, _) = site("");
    let clock = WallClock::at(at("2026-05-02T02:00:00Z"));
    clock.shown_to(site.backup(["--strategy", "daily"])).expect(0);
    std::fs::remove_dir_all(site.path("state")).unwrap();
    let status = clock.shown_to(site.backup(["status", "--json"])).expect(0).json();
    assert_eq!(status["strategies"][0]["state"], "fresh", "{status:#}");
    // And where there is nothing at all, nothing is well.
    std::fs::remove_dir_all(site.path("state")).unwrap();
    std::fs::remove_dir_all(site.path("store")).unwrap();
    let status = clock.shown_to(site.backup(["status", "--json"])).expect(1).json();
    assert_eq!(status["strategies"][0]["state"], "stale", "{status:#}");
}

#[test]
fn with_the_state_folder_lost_and_a_storage_out_of_reach_nothing_is_called_well() {
    let more = "[storages.usb]\ntype = \"local\"\npath = \"@/disk/usb\"\n";
    let (site, port) = site(more);
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), text.replace("[\"local\"]", "[\"local\", \"usb\"]")).unwrap();
    let clock = WallClock::at(at("2026-05-02T02:00:00Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    let (code, why) = get(port, "/readyz");
    assert_eq!(code, 503);
    assert!(why.contains("`usb` was never reached from here"), "{why}");
    daemon.stop();
}

#[test]
fn a_storage_that_is_added_is_not_stale_before_a_snapshot_is_due_there() {
    let (site, _) = site("");
    let clock = WallClock::at(at("2026-05-02T01:35:00Z"));
    clock.shown_to(site.backup(["--strategy", "daily"])).expect(0);
    clock.set(at("2026-05-20T01:35:00Z"));
    clock.shown_to(site.backup(["--strategy", "daily"])).expect(0);
    let text = std::fs::read_to_string(site.config()).unwrap();
    let text = text.replace("[\"local\"]", "[\"local\", \"usb\"]");
    let usb = format!(
        "{text}[storages.usb]\ntype = \"local\"\npath = \"{}\"\n",
        site.path("usb").display()
    );
    std::fs::write(site.config(), usb).unwrap();
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    let state = |code| {
        clock.shown_to(site.backup(["status", "--json"])).expect(code).json()["strategies"][0]
            .clone()
    };
    assert_eq!(state(0)["state"], "waiting", "{:#}", state(0));
    clock.set(at("2026-05-21T01:29:59Z"));
    daemon.says("run committed");
    assert_eq!(state(0)["state"], "fresh");
    daemon.stop();
}

#[test]
fn a_storage_that_falls_behind_makes_a_strategy_stale_although_another_is_fresh() {
    let more = "[storages.usb]\ntype = \"local\"\npath = \"@/disk/usb\"\n";
    let (site, _) = site(more);
    let text = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), text.replace("[\"local\"]", "[\"local\", \"usb\"]")).unwrap();
    std::fs::create_dir(site.path("disk")).unwrap();
    let clock = WallClock::at(at("2026-05-02T01:35:00Z"));
    let run = || clock.shown_to(site.backup(["--strategy", "daily"]));
    let state = |code| {
        clock.shown_to(site.backup(["status", "--json"])).expect(code).json()["strategies"][0]
            .clone()
    };
    run().expect(0);
    assert_eq!(state(0)["state"], "fresh");
    // Its disk is gone.
    std::fs::rename(site.path("disk"), site.path("gone")).unwrap();
    clock.set(at("2026-05-03T01:35:00Z"));
    run().expect(3);
    clock.set(at("2026-05-03T03:00:00Z"));
    let told = state(1);
    assert_eq!(told["state"], "stale");
    assert!(
        told["reason"].as_str().unwrap().starts_with("`usb` has no whole snapshot"),
        "{told:#}"
    );
    let fresh = |at: usize| told["storages"][at]["fresh"].as_bool().unwrap();
    assert_eq!((fresh(0), fresh(1)), (true, false));
}

#[test]
fn a_port_in_use_is_said_at_the_start_and_refused_by_a_reload() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let used = taken.local_addr().unwrap().port();
    let (site, port) = site("");
    let there = std::fs::read_to_string(site.config()).unwrap();
    let elsewhere = there.replace(&port.to_string(), &used.to_string());
    std::fs::write(site.config(), &elsewhere).unwrap();
    let refused = site.backup(["schedule"]).expect(1);
    assert!(refused.err().contains(&format!("Could not listen on 127.0.0.1:{used}")), "{refused}");
    std::fs::write(site.config(), &there).unwrap();
    let mut daemon = Daemon::start(&site);
    daemon.next("app/daily");
    std::fs::write(site.config(), &elsewhere).unwrap();
    site.backup(["reload"]).expect(0);
    assert!(daemon.says("was not taken over").contains("Could not listen on"));
    assert_eq!(get(port, "/healthz").0, 200, "the old page goes on");
    drop(taken);
    site.backup(["reload"]).expect(0);
    daemon.says("is taken over");
    assert_eq!(get(used, "/healthz").0, 200);
    until("the old page is gone", || TcpStream::connect(("127.0.0.1", port)).is_err());
    daemon.stop();
}

#[test]
fn who_floods_the_page_takes_a_few_connections_and_no_run() {
    let (site, port) = site("");
    let clock = WallClock::at(at("2026-05-02T01:29:50Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    let open: Vec<TcpStream> = (0..100)
        .filter_map(|_| {
            TcpStream::connect_timeout(
                &([127, 0, 0, 1], port).into(),
                std::time::Duration::from_secs(5),
            )
            .ok()
        })
        .collect();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    until("they are let in", || descriptors() > 60);
    assert!(descriptors() < 120, "{}", descriptors());
    clock.set(at("2026-05-02T01:29:59Z"));
    daemon.says("run committed");
    drop(open);
    assert_eq!(get(port, "/healthz").0, 200);
    daemon.stop();
}

#[test]
fn a_notifier_that_cannot_be_reached_changes_no_run() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let more = format!(
        "[notify.chat]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:{nobody}/\"\n\
         on = [\"success\"]\n"
    );
    let (site, _) = site(&more);
    let clock = WallClock::at(at("2026-05-02T01:29:58Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.says("run committed");
    daemon.next("app/daily");
    clock.set(at("2026-05-03T01:29:58Z"));
    daemon.says("run committed");
    daemon.says("not told");
    daemon.stop();
    assert_eq!(site.ids().len(), 2);
}

/// Seconds within which a run begins, on a machine that is busy with other tests.
const PROMPT: f64 = 20.0;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn over_a_month_with_failures_snapshots_status_metrics_and_what_is_told_agree() {
    let listener = Listener::new();
    let every = "[\"success\", \"problems\", \"failure\", \"stale\", \"recovered\"]";
    let more = format!(
        "[notify.chat]\ntype = \"webhook\"\nurl = \"{}/\"\non = {every}\n",
        listener.address
    );
    let (site, port) = site(&more);
    let first = at("2026-05-01T01:30:00Z");
    let clock = WallClock::at(first - TimeDelta::hours(20));
    let mut daemon = Daemon::start_at(&site, &clock);
    let mut dice = Dice(7);
    let (mut good, mut failed, mut newest, mut was_stale, mut was_failed) =
        (0_u64, 0_u64, None::<DateTime<Utc>>, false, false);
    for day in 0..31 {
        let due = first + TimeDelta::days(day);
        assert_eq!(daemon.next("app/daily"), due);
        let fails = dice.roll(3) == 0;
        let mut expected = Vec::new();
        if fails {
            fail(&site);
            failed += 1;
            expected.push("failure");
        } else {
            succeed(&site);
            good += 1;
            newest = Some(due);
            expected.push("success");
        }
        // The process dies now and then, at a quiet time.
        if dice.roll(5) == 0 {
            daemon.kill();
            daemon = Daemon::start_at(&site, &clock);
            daemon.next("app/daily");
        }
        // Or it reads its configuration again. Neither makes it forget what it told.
        if dice.roll(5) == 0 {
            site.backup(["reload"]).expect(0);
            daemon.says("is taken over");
            daemon.next("app/daily");
        }
        clock.set(due - TimeDelta::seconds(1));
        daemon.says_one_of(&["run committed", "nothing was committed"]);
        if !fails && (was_stale || was_failed) {
            expected.push("recovered");
        }
        // Two hours later what failed is stale.
        if fails {
            clock.set(due + TimeDelta::hours(2));
            if !was_stale {
                expected.push("stale");
            }
        }
        let mut told: Vec<String> = Vec::new();
        until("it is told", || {
            told.extend(
                listener.take().iter().map(|got| got.json()["event"].as_str().unwrap().to_owned()),
            );
            told.len() >= expected.len()
        });
        told.sort();
        expected.sort_unstable();
        assert_eq!(told, expected, "day {day}");
        (was_stale, was_failed) = (fails, fails);
        let (code, _) = get(port, "/readyz");
        assert_eq!(code, if fails { 503 } else { 200 }, "day {day}");
        let status =
            clock.shown_to(site.backup(["status", "--json"])).expect(i32::from(fails)).json();
        let one = &status["strategies"][0];
        assert_eq!(one["state"], if fails { "stale" } else { "fresh" }, "day {day}: {status:#}");
        assert_eq!(one["runs"]["failed"].as_u64().unwrap_or(0), failed);
        assert_eq!(one["runs"]["success"].as_u64().unwrap_or(0), good);
        assert_eq!(one["storages"][0]["snapshots"], good);
        let read = metrics(&site, port);
        assert_eq!(read["holdfast_runs_total{outcome=failed,strategy=daily}"], failed as f64);
        assert_eq!(read["holdfast_runs_total{outcome=success,strategy=daily}"], good as f64);
        assert_eq!(read["holdfast_ready{}"], f64::from(u8::from(!fails)));
        let stamp = read
            .get("holdfast_newest_snapshot_timestamp_seconds{storage=local,strategy=daily}")
            .copied();
        let late = stamp.zip(newest).map(|(stamp, newest)| stamp - newest.timestamp() as f64);
        assert_eq!(stamp.is_some(), newest.is_some());
        assert!(late.is_none_or(|late| (0.0..PROMPT).contains(&late)), "{late:?}");
    }
    daemon.stop();
    assert!(good > 10 && failed > 5, "{good} {failed}");
    assert_eq!(site.ids().len() as u64, good);
}

#[test]
fn the_page_knows_how_old_the_last_passed_drill_is_and_is_not_ready_without_one() {
    let (site, port) = site("[strategies.daily.drill]\nschedule = \"0 5 * * *\"\n");
    let clock = WallClock::at(at("2026-05-02T00:30:00Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    clock.set(at("2026-05-02T01:29:59Z"));
    daemon.says("run committed");
    assert_eq!(get(port, "/readyz").0, 200);
    clock.set(at("2026-05-02T04:59:59Z"));
    daemon.says("drill passed");
    let read = metrics(&site, port);
    let passed = read["holdfast_last_passed_drill_timestamp_seconds{strategy=daily}"];
    assert!((passed - at("2026-05-02T05:00:00Z").timestamp() as f64).abs() < 60.0, "{passed}");
    assert_eq!(read["holdfast_last_drill_success{strategy=daily}"], 1.0);
    assert_eq!(
        read["holdfast_last_drill_recovery_point_seconds{strategy=daily}"].round(),
        12_600.0
    );
    assert!(read["holdfast_last_drill_recovery_seconds{strategy=daily}"] > 0.0);
    assert_eq!(read["holdfast_last_drill_content{source=dump,strategy=daily}"], 0.0);
    // The next day the stored file is damaged: the run is fresh, and the backup is not proved.
    clock.set(at("2026-05-03T01:29:59Z"));
    daemon.says("run committed");
    let dump = site.newest().join("dump.out.zst");
    let mut bytes = std::fs::read(&dump).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&dump, bytes).unwrap();
    clock.set(at("2026-05-03T04:59:59Z"));
    daemon.says("drill failed");
    let (code, why) = get(port, "/readyz");
    assert_eq!(code, 503);
    assert!(why.contains("app/daily is damaged") && why.contains(&site.ids()[1]), "{why}");
    let read = metrics(&site, port);
    assert_eq!(read["holdfast_last_drill_success{strategy=daily}"], 0.0);
    assert_eq!(read["holdfast_ready{}"], 0.0);
    assert_eq!(read["holdfast_last_passed_drill_timestamp_seconds{strategy=daily}"], passed);
    daemon.stop();
}

#[test]
fn notes_warnings_and_errors_are_told_apart_everywhere() {
    // A hook of the run before which everything that was stored is deleted.
    const LOST: &str = "true # all is lost";
    let listener = Listener::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let site = Site::new(&format!(
        r#"
listen = "127.0.0.1:{port}"
[sources.files]
type = "directory"
path = "@/data"
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["files"]
storages = ["local"]
schedule = "30 1 * * *"
after = ["sh", "@/after.sh"]
[notify.chat]
type = "webhook"
url = "{}/"
on = ["success", "problems", "failure"]
"#,
        listener.address
    ));
    std::fs::create_dir(site.path("data")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(site.path("data/socket")).unwrap();
    // After the commit: what is a folder now cannot be removed as the heartbeat.
    let stays = format!(
        "cd {}/app/daily/$HOLDFAST_SNAPSHOT && rm run.json && mkdir run.json && \
         touch run.json/it-stays",
        site.path("store").display()
    );
    let clock = WallClock::at(at("2026-05-02T02:00:00Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    for (hook, code, outcome, event, counts) in [
        (stays.as_str(), 0, "success", "success", [2, 0, 0]),
        ("exit 7", 3, "problems", "problems", [1, 1, 0]),
        (LOST, 3, "problems", "problems", [1, 1, 0]),
        ("true", 1, "failed", "failure", [0, 0, 1]),
    ] {
        std::fs::write(site.path("after.sh"), hook).unwrap();
        if hook == LOST {
            std::fs::remove_dir_all(site.path("store")).unwrap();
        } else if code == 1 {
            std::fs::remove_dir_all(site.path("data")).unwrap();
        }
        let ran = clock.shown_to(site.backup(["--strategy", "daily", "--json"])).expect(code);
        let report = ran.json();
        assert_eq!(report["outcome"], outcome, "{report:#}");
        let warnings = report["warnings"]["kept"].as_array().unwrap();
        let of_storage = |level: &str| report["storages"][0][level].as_array().unwrap().len();
        assert_eq!(warnings.len() + of_storage("warnings"), counts[1], "{report:#}");
        assert_eq!(of_storage("warnings"), usize::from(hook == LOST), "{report:#}");
        assert_eq!(of_storage("notes"), usize::from(hook == stays), "{report:#}");
        let notes = &report["notes"]["kept"];
        if code != 1 {
            assert_eq!(report["completeness"], "whole");
            let [note] = notes.as_array().unwrap().as_slice() else { panic!("{report:#}") };
            assert_eq!((&note["source"], &note["path"]), (&"files".into(), &"socket".into()));
            let shown = site.backup(["show", "latest", "--strategy", "daily", "--json"]).expect(0);
            assert_eq!(shown.json()["facts"]["notes"]["kept"], *notes);
        }
        let [got] = &listener.take()[..] else { panic!("one message") };
        let got = got.json();
        assert_eq!((&got["event"], &got["run"]["notes"]["kept"]), (&event.into(), notes));
        let text = got["text"].as_str().unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("Note: ")).count(), counts[0]);
        let status = clock.shown_to(site.backup(["status", "--json"])).run().json();
        let last = &status["strategies"][0]["last_run"];
        let read = metrics(&site, port);
        for (level, count) in ["notes", "warnings", "errors"].into_iter().zip(counts) {
            assert_eq!(last[level], count, "{last:#}");
            let name = format!("holdfast_last_run_{level}{{strategy=daily}}");
            assert_eq!(read[&name], count as f64, "{name}");
        }
    }
    daemon.stop();
}

/// A strategy whose snapshots a drill finds bad, with one snapshot.
fn drilled(schedule: &str) -> (Site, u16) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let site = Site::new(&format!(
        "listen = \"127.0.0.1:{port}\"\n[sources.data]\ntype = \"directory\"\npath = \"@/data\"\n\
         [storages.local]\ntype = \"local\"\npath = \"@/store\"\n[strategies.daily]\n\
         sources = [\"data\"]\nstorages = [\"local\"]\n{schedule}\
         [[strategies.daily.drill.checks]]\ntype = \"file\"\nsource = \"data\"\npath = \"wanted\"\n"
    ));
    std::fs::create_dir(site.path("data")).unwrap();
    std::fs::write(site.path("data/a"), noise(500_000)).unwrap();
    site.run(0);
    (site, port)
}

#[test]
fn what_storages_know_outlives_the_state_folder() {
    let state = |status: &serde_json::Value| {
        status["strategies"][0]["state"].as_str().map(str::to_owned).unwrap_or_default()
    };
    // With a schedule of runs, and with one of drills only.
    for schedule in
        ["schedule = \"0 0 1 1 *\"\n", "[strategies.daily.drill]\nschedule = \"0 0 1 1 *\"\n"]
    {
        for expected in ["unproven", "damaged"] {
            let (site, port) = drilled(schedule);
            if expected == "damaged" {
                let object = site.newest().join("data.tar.zst");
                let mut bytes = std::fs::read(&object).unwrap();
                bytes[250_000] ^= 1;
                std::fs::write(&object, bytes).unwrap();
                site.backup(["verify", "--read-data"]).expect(4);
            } else {
                site.backup(["drill", "--strategy", "daily"]).expect(4);
            }
            std::fs::remove_dir_all(site.path("state")).unwrap();
            let told = site.backup(["status", "--json"]).run().json();
            assert_eq!(state(&told), expected, "{schedule}");
            std::fs::remove_dir_all(site.path("state")).unwrap();
            let daemon = Daemon::start(&site);
            until("the scheduler knows it too", || {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
                    && state(&serde_json::from_str(&get(port, "/api/status").1).unwrap())
                        == expected
            });
            daemon.stop();
        }
    }
}
