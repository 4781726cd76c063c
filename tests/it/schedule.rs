//! The scheduler as a process: it runs what is due, once, survives what goes wrong, and ends when
//! it is asked to.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use holdfast::model::Cancel;
use holdfast::storage::StorageConfig;
use holdfast::storage::local::LocalConfig;

use crate::support::daemon::{Daemon, WallClock, until};
use crate::support::plant::{days_ago, plant};
use crate::support::postgres::Server;
use crate::support::sh;
use crate::support::site::{SCRIPTED, Site};

/// A strategy with this schedule.
fn scheduled(schedule: &str) -> String {
    format!("{SCRIPTED}schedule = \"{schedule}\"\n")
}

fn site(schedule: &str) -> Site {
    let site = Site::new(&scheduled(schedule));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site
}

#[test]
fn it_runs_at_each_time_of_the_schedule_and_ends_when_asked_to() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let site = site("*/2 * * * * *");
        let mut daemon = Daemon::start(&site);
        for _ in 0..3 {
            // What is logged within a run says of which.
            let line: serde_json::Value =
                serde_json::from_str(&daemon.says("\"committed\"")).unwrap();
            let ended: serde_json::Value =
                serde_json::from_str(&daemon.says("run committed")).unwrap();
            assert_eq!(line["span"]["id"], ended["id"], "{line:#}");
        }
        daemon.signal(signal);
        assert_eq!(daemon.ends(), Some(0), "{:#?}", daemon.seen);
        let ids = site.ids();
        assert!(ids.len() >= 3, "{ids:?}");
        site.backup(["verify", "--read-data"]).expect(0);
    }
}

#[test]
fn a_run_that_fails_does_not_end_it() {
    let site = Site::new(&(scheduled("*/2 * * * * *") + "retry = { attempts = 1 }\n"));
    std::fs::write(site.path("dump.sh"), "echo broken >&2; exit 1").unwrap();
    let mut daemon = Daemon::start(&site);
    assert!(daemon.says("nothing was committed").contains("broken"));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    daemon.says("run committed");
    assert!(!site.ids().is_empty());
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_once_also_when_the_catalog_is_lost() {
    let site = site("0 0 * * *");
    let config = LocalConfig::from_path(site.path("store"));
    let storage = StorageConfig::Local(config).open(&Cancel::new()).await.unwrap();
    plant(&*storage, "app", "daily", [days_ago(5), days_ago(4)]).await;
    let mut daemon = Daemon::start(&site);
    daemon.says("a run was missed");
    daemon.says("run committed");
    daemon.says("waiting");
    assert_eq!(site.ids().len(), 3, "four days were missed, and are one run");
    daemon.signal(rustix::process::Signal::KILL);
    daemon.ends();
    // A restart does not run it again.
    let mut daemon = Daemon::start(&site);
    daemon.says("waiting");
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.ends(), Some(0));
    assert_eq!(site.ids().len(), 3);
}

#[tokio::test]
async fn what_was_missed_is_left_when_the_strategy_says_so_and_a_first_start_misses_nothing() {
    for planted in [true, false] {
        let site = Site::new(&(scheduled("0 0 * * *") + "missed = \"skip\"\n"));
        if planted {
            let config = LocalConfig::from_path(site.path("store"));
            let storage = StorageConfig::Local(config).open(&Cancel::new()).await.unwrap();
            plant(&*storage, "app", "daily", [days_ago(5)]).await;
        } else {
            site.configure(&scheduled("0 0 * * *"));
        }
        let mut daemon = Daemon::start(&site);
        daemon.says("waiting");
        daemon.signal(rustix::process::Signal::TERM);
        assert_eq!(daemon.ends(), Some(0));
        assert_eq!(site.ids().len(), usize::from(planted));
    }
}

#[test]
fn asked_to_stop_it_cancels_the_run_that_is_under_way() {
    let site = site("* * * * * *");
    std::fs::write(
        site.path("dump.sh"),
        format!("touch {}; sleep 1000", site.path("begun").display()),
    )
    .unwrap();
    let mut daemon = Daemon::start(&site);
    daemon.says("run begins");
    until("the run has begun", || site.path("begun").exists());
    let asked = Instant::now();
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.ends(), Some(0), "{:#?}", daemon.seen);
    assert!(asked.elapsed() < Duration::from_secs(30));
    assert!(
        daemon.seen.iter().any(|line| line.contains("cancelled, nothing was committed")),
        "{:#?}",
        daemon.seen
    );
    let errors = daemon.seen.iter().filter(|line| line.contains("\"ERROR\""));
    assert_eq!(errors.count(), 0, "that was no error: {:#?}", daemon.seen);
    let status = site.backup(["status", "--json"]).run().json();
    assert_eq!(status["strategies"][0]["last_run"]["outcome"], "cancelled", "{status:#}");
    assert!(site.folders().is_empty(), "nothing is left of it");
}

#[test]
fn without_anything_to_run_it_says_so() {
    let site = Site::new(SCRIPTED);
    assert!(site.backup(["schedule"]).expect(2).err().contains("Nothing is scheduled"));
    site.configure(&(scheduled("0 0 * * *") + "active = false\n"));
    assert!(site.backup(["schedule"]).expect(2).err().contains("Nothing is scheduled"));
}

/// When each of the snapshots of `daily` was begun.
fn taken(site: &Site) -> Vec<DateTime<Utc>> {
    let list = site.backup(["list", "--strategy", "daily", "--json"]).expect(0).json();
    let rows = list["snapshots"].as_array().unwrap();
    rows.iter().map(|row| row["taken"].as_str().unwrap().parse().unwrap()).collect()
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// Each of `taken` was begun at its time, never before, and soon after: the machine is busy with
/// other tests.
fn prompt(taken: &[DateTime<Utc>], times: &[DateTime<Utc>]) {
    assert_eq!(taken.len(), times.len(), "{taken:?} {times:?}");
    for (taken, time) in taken.iter().zip(times) {
        let late = *taken - *time;
        assert!(TimeDelta::zero() <= late && late < TimeDelta::seconds(20), "{taken} for {time}");
    }
}

#[test]
fn across_both_changes_of_the_clocks_it_runs_once_each_night() {
    // At 02:30 in Oslo: in the night of the gap at its end, 03:00 summer time; in the night with
    // two 02:30 at the first.
    for (start, nights) in [
        (
            "2026-03-27T12:00:00Z",
            [
                "2026-03-28T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z",
                "2026-03-31T00:30:00Z",
            ],
        ),
        (
            "2026-10-23T12:00:00Z",
            [
                "2026-10-24T00:30:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-26T01:30:00Z",
                "2026-10-27T01:30:00Z",
            ],
        ),
    ] {
        let site = Site::new(&(scheduled("30 2 * * *") + "timezone = \"Europe/Oslo\"\n"));
        std::fs::write(site.path("dump.sh"), "echo data").unwrap();
        let clock = WallClock::at(at(start));
        let mut daemon = Daemon::start_at(&site, &clock);
        for night in nights {
            assert_eq!(daemon.next("app/daily"), at(night));
            clock.set(at(night) - TimeDelta::seconds(1));
            daemon.says("run committed");
        }
        daemon.next("app/daily");
        daemon.stop();
        prompt(&taken(&site), &nights.map(at));
    }
}

#[test]
fn a_clock_that_jumps_neither_doubles_nor_loses_a_run() {
    let site = site("30 1 * * *");
    let clock = WallClock::at(at("2026-05-01T01:00:00Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    assert_eq!(daemon.next("app/daily"), at("2026-05-01T01:30:00Z"));
    clock.set(at("2026-05-01T01:29:59Z"));
    daemon.says("run committed");
    assert_eq!(daemon.next("app/daily"), at("2026-05-02T01:30:00Z"));
    // Set back by an hour, over the time that it has run at already.
    clock.set(at("2026-05-01T00:40:00Z"));
    clock.set(at("2026-05-01T01:29:59Z"));
    clock.set(at("2026-05-02T01:29:59Z"));
    daemon.says("run committed");
    // Asleep for four days: several that were missed are one.
    assert_eq!(daemon.next("app/daily"), at("2026-05-03T01:30:00Z"));
    clock.set(at("2026-05-07T09:00:00Z"));
    daemon.says("run committed");
    assert_eq!(daemon.next("app/daily"), at("2026-05-08T01:30:00Z"));
    daemon.stop();
    let taken = taken(&site);
    assert_eq!(taken.len(), 3, "{taken:?}");
    prompt(
        &taken,
        &["2026-05-01T01:30:00Z", "2026-05-02T01:30:00Z", "2026-05-07T09:00:00Z"].map(at),
    );
}

#[test]
fn killed_and_started_again_around_a_due_time_it_runs_once() {
    let site = site("30 1 * * *");
    let due = at("2026-05-02T01:30:00Z");
    let clock = WallClock::at(due - TimeDelta::hours(20));
    let mut daemon = Daemon::start_at(&site, &clock);
    assert_eq!(daemon.next("app/daily"), due);
    // Down when its time comes, although it has never run at all.
    daemon.kill();
    clock.set(due + TimeDelta::seconds(5));
    std::fs::write(
        site.path("dump.sh"),
        format!("touch {}; sleep 1000", site.path("begun").display()),
    )
    .unwrap();
    let daemon = Daemon::start_at(&site, &clock);
    // Killed in the middle.
    until("the run has begun", || site.path("begun").exists());
    daemon.kill();
    assert!(taken(&site).is_empty());
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    let mut daemon = Daemon::start_at(&site, &clock);
    // Killed as soon as there is a snapshot, whether it was recorded or not.
    daemon.says("\"committed\"");
    daemon.kill();
    for _ in 0..2 {
        let mut daemon = Daemon::start_at(&site, &clock);
        assert_eq!(daemon.next("app/daily"), due + TimeDelta::days(1));
        daemon.stop();
    }
    assert_eq!(taken(&site).len(), 1);
    assert_eq!(site.folders().len(), 1, "what was killed is collected");
}

#[test]
fn two_schedulers_on_one_storage_run_each_night_once() {
    let one = site("30 1 * * *");
    let two = site("30 1 * * *");
    two.configure(&scheduled("30 1 * * *").replace("@/store", one.path("store").to_str().unwrap()));
    let start = at("2026-05-01T12:00:00Z");
    let clock = WallClock::at(start);
    let mut daemons = [Daemon::start_at(&one, &clock), Daemon::start_at(&two, &clock)];
    let mut due = start;
    for _ in 0..4 {
        for daemon in &mut daemons {
            due = daemon.next("app/daily");
        }
        clock.set(due - TimeDelta::seconds(1));
    }
    for daemon in &mut daemons {
        assert_eq!(daemon.next("app/daily"), due + TimeDelta::days(1));
    }
    let ran: usize = daemons
        .into_iter()
        .map(|daemon| daemon.stop().iter().filter(|line| line.contains("run committed")).count())
        .sum();
    assert_eq!((ran, taken(&one).len()), (4, 4));
}

#[test]
fn what_may_pass_is_tried_again_and_what_does_not_is_not() {
    let script = "n=$(cat @/tries 2>/dev/null || echo 0); echo $((n + 1)) > @/tries; [ $n -ge 2 ] \
        && echo data";
    let more = "retry = { attempts = 3, backoff = \"1s\" }\n";
    let site = Site::new(&(scheduled("30 1 * * *") + more));
    std::fs::write(site.path("dump.sh"), script.replace('@', site.dir.path().to_str().unwrap()))
        .unwrap();
    let clock = WallClock::at(at("2026-05-01T01:29:50Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.says("it may pass: trying again");
    daemon.says("it may pass: trying again");
    daemon.says("run committed");
    assert_eq!(daemon.next("app/daily"), at("2026-05-02T01:30:00Z"));
    // Now there is no such program, which does not pass.
    site.configure(&(scheduled("30 1 * * *").replace("\"sh\"", "\"no-such-program\"") + more));
    site.backup(["reload"]).expect(0);
    daemon.next("app/daily");
    clock.set(at("2026-05-02T01:29:59Z"));
    daemon.says("nothing was committed");
    assert_eq!(daemon.next("app/daily"), at("2026-05-03T01:30:00Z"));
    let seen = daemon.stop();
    assert_eq!(seen.iter().filter(|line| line.contains("trying again")).count(), 2, "{seen:#?}");
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused_and_the_old_one_goes_on() {
    let site = site("*/2 * * * * *");
    let mut daemon = Daemon::start(&site);
    daemon.says("run committed");
    std::fs::write(site.config(), "instance = [").unwrap();
    site.backup(["reload"]).expect(2);
    daemon.signal(rustix::process::Signal::HUP);
    let refused = daemon.says("was not taken over");
    assert!(refused.contains("app.toml:1"), "{refused}");
    daemon.says("run committed");
    // One that is right, but has nothing to do, is refused too.
    site.configure(&(scheduled("30 1 * * *") + "active = false\n"));
    site.backup(["reload"]).expect(0);
    assert!(daemon.says("was not taken over").contains("Nothing is scheduled"));
    daemon.says("run committed");
    site.configure(&scheduled("*/3 * * * * *").replace("daily", "hourly"));
    site.backup(["reload"]).expect(0);
    daemon.says("is taken over");
    assert!(daemon.says("run committed").contains("app/hourly"));
    daemon.stop();
}

/// Makes the site's dump wait: it makes the first file when it has begun, and ends once the second
/// exists.
fn held_dump(site: &Site) -> (PathBuf, PathBuf) {
    let (begun, go) = (site.path("begun"), site.path("go"));
    let script = format!(
        "touch {}; while [ ! -e {} ]; do sleep 0.05; done; echo data",
        begun.display(),
        go.display()
    );
    std::fs::write(site.path("dump.sh"), script).unwrap();
    (begun, go)
}

#[test]
fn a_run_that_is_under_way_ends_with_the_old_configuration() {
    let site = site("* * * * * *");
    let (begun, go) = held_dump(&site);
    let mut daemon = Daemon::start(&site);
    until("the run has begun", || begun.exists());
    site.configure(&scheduled("30 1 1 1 *"));
    site.backup(["reload"]).expect(0);
    daemon.says("is taken over");
    std::fs::write(go, "").unwrap();
    daemon.says("run committed");
    daemon.next("app/daily");
    daemon.stop();
    assert_eq!(site.ids().len(), 1);
}

#[test]
fn there_is_one_scheduler_at_a_time_and_none_to_reload_where_there_is_none() {
    let site = site("0 0 * * *");
    assert!(site.backup(["reload"]).expect(1).err().contains("No scheduler is running"));
    let mut daemon = Daemon::start(&site);
    daemon.next("app/daily");
    assert!(site.backup(["schedule"]).expect(5).err().contains("Another scheduler is running"));
    daemon.kill();
    let mut daemon = Daemon::start(&site);
    daemon.next("app/daily");
    daemon.stop();
}

#[test]
fn at_most_so_many_strategies_run_at_once() {
    let second = "[strategies.other]\nsources = [\"dump\"]\nstorages = [\"local\"]\n\
        schedule = \"30 1 * * *\"\n";
    let site = Site::new(&(scheduled("30 1 * * *") + second));
    // It fails when it is run twice at a time.
    let alone = site.path("alone");
    let script = format!("mkdir {0} || exit 1; sleep 0.5; rmdir {0}; echo data", alone.display());
    std::fs::write(site.path("dump.sh"), script).unwrap();
    let clock = WallClock::at(at("2026-05-01T01:29:55Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    for _ in 0..2 {
        daemon.says_one_of(&["run committed", "nothing was committed"]);
    }
    let seen = daemon.stop();
    assert_eq!(seen.iter().filter(|line| line.contains("run committed")).count(), 2, "{seen:#?}");
}

#[test]
fn what_is_stored_is_verified_on_a_schedule_of_its_own() {
    let more = "verify = { schedule = \"0 6 * * 0\", read_data_percent = 100 }\n";
    let site = Site::new(&(scheduled("30 1 * * *") + more));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    let sunday = at("2026-05-03T06:00:00Z");
    let clock = WallClock::at(sunday - TimeDelta::hours(5));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    clock.set(at("2026-05-03T01:29:59Z"));
    daemon.says("run committed");
    clock.set(sunday - TimeDelta::seconds(1));
    daemon.says("verified: nothing is wrong");
    let dump = site.newest().join("dump.out.zst");
    let dump = if dump.exists() {
        dump
    } else {
        std::fs::read_dir(site.newest())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "zst"))
            .unwrap()
    };
    let mut bytes = std::fs::read(&dump).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&dump, bytes).unwrap();
    clock.set(sunday + TimeDelta::days(7) - TimeDelta::seconds(1));
    daemon.says("verification damaged");
    daemon.stop();
    let status = clock.shown_to(site.backup(["status", "--json"])).expect(1).json();
    let verified = &status["strategies"][0]["verified"];
    assert_eq!(verified["outcome"], "damaged", "{status:#}");
    assert!(status["strategies"][0]["reason"].is_string(), "{status:#}");
}

#[test]
fn a_run_that_a_restart_cut_off_and_one_that_was_to_be_tried_again_are_made_up_for() {
    let more = "retry = { attempts = 3, backoff = \"1h\" }\n";
    let site = Site::new(&(scheduled("30 1 * * *") + more));
    let due = at("2026-05-02T01:30:00Z");
    let clock = WallClock::at(due - TimeDelta::seconds(2));
    let begun = site.path("begun");
    std::fs::write(site.path("dump.sh"), format!("touch {}; sleep 1000", begun.display())).unwrap();
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.next("app/daily");
    until("the run has begun", || begun.exists());
    let seen = daemon.stop();
    assert!(seen.iter().any(|line| line.contains("cancelled, nothing was committed")), "{seen:#?}");
    clock.set(due + TimeDelta::minutes(10));
    std::fs::write(site.path("dump.sh"), "echo out of order >&2; exit 1").unwrap();
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.says("a run was missed");
    daemon.says("trying again");
    // Asked to stop while it waits for the next attempt.
    daemon.stop();
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.says("run committed");
    assert_eq!(daemon.next("app/daily"), due + TimeDelta::days(1));
    daemon.stop();
    assert_eq!(taken(&site).len(), 1);
}

#[test]
fn a_clock_that_was_years_ahead_stops_nothing_once_it_is_right() {
    let site = site("30 1 * * *");
    let clock = WallClock::at(at("2031-06-01T01:29:58Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.says("run committed");
    assert_eq!(daemon.next("app/daily"), at("2031-06-02T01:30:00Z"));
    // It is set right while the scheduler waits.
    clock.set(at("2026-05-01T12:00:00Z"));
    assert_eq!(daemon.next("app/daily"), at("2026-05-02T01:30:00Z"));
    clock.set(at("2026-05-02T01:29:59Z"));
    daemon.says("run committed");
    daemon.stop();
    // And a scheduler that starts then is not fooled either.
    let mut daemon = Daemon::start_at(&site, &clock);
    assert_eq!(daemon.next("app/daily"), at("2026-05-03T01:30:00Z"));
    daemon.stop();
    clock.set(at("2026-05-04T12:00:00Z"));
    let status = clock.shown_to(site.backup(["status", "--json"])).expect(1).json();
    assert_eq!(status["strategies"][0]["state"], "stale", "{status:#}");
}

#[test]
fn a_machine_that_slept_over_a_time_skips_it_where_the_strategy_says_so() {
    let site = Site::new(&(scheduled("30 1 * * *") + "missed = \"skip\"\n"));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    let clock = WallClock::at(at("2026-05-01T12:00:00Z"));
    let mut daemon = Daemon::start_at(&site, &clock);
    assert_eq!(daemon.next("app/daily"), at("2026-05-02T01:30:00Z"));
    clock.set(at("2026-05-04T09:00:00Z"));
    assert_eq!(daemon.next("app/daily"), at("2026-05-05T01:30:00Z"));
    daemon.stop();
    assert!(site.ids().is_empty());
}

#[test]
fn a_log_that_cannot_be_written_ends_no_run_and_no_scheduler() {
    let site = site("* * * * * *");
    let program = env!("CARGO_BIN_EXE_backup");
    let mut daemon = std::process::Command::new("sh")
        .args(["-c", "exec \"$0\" schedule --config \"$1\" 2>/dev/full"])
        .arg(program)
        .arg(site.config())
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("runs go on", || site.folders().len() > 3);
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
    let script = "\"$1\" --strategy daily --config \"$2\" 2>/dev/full";
    sh(site.dir.path(), script, &[program.as_ref(), site.config().as_os_str()]);
}

#[test]
fn a_run_of_another_machine_is_waited_for_and_taken_over_from_when_its_heartbeat_stops() {
    let site = site("30 1 * * *");
    site.backup(["--strategy", "daily"]).expect(0);
    // What a run of another machine leaves that is under way.
    let folder = site.path("store/app/daily/20260502T013000Z-abcdef");
    std::fs::create_dir(&folder).unwrap();
    let beat = folder.join("run.json");
    let time = "2026-05-02T01:30:00Z";
    let heartbeat = serde_json::json!({
        "format": 1, "node": "0".repeat(32), "host": "other", "pid": 1,
        "started": time, "beat": time,
    });
    std::fs::write(&beat, heartbeat.to_string()).unwrap();
    let clock = WallClock::at(Utc::now() + TimeDelta::days(2));
    let mut daemon = Daemon::start_at(&site, &clock);
    daemon.says("waiting for the other run to end");
    assert_eq!(site.ids().len(), 1);
    sh(
        site.dir.path(),
        "touch -d '6 minutes ago' \"$1\" \"$2\"",
        &[beat.as_os_str(), folder.as_os_str()],
    );
    daemon.says("run committed");
    daemon.stop();
    assert_eq!(site.ids().len(), 2);
}

#[test]
fn every_listing_says_that_a_strategy_is_not_active() {
    let site = Site::new(&(scheduled("30 1 * * *") + "active = false\n"));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site.run(0);
    for (command, words) in [
        ("strategies", "not active"),
        ("check", "not active"),
        ("list", "not active"),
        ("status", "inactive"),
    ] {
        let shown = site.backup([command]).run();
        assert!(shown.out().contains(words), "{command}: {shown}");
    }
}

#[test]
fn a_strategy_that_is_run_by_hand_may_be_verified_on_a_schedule() {
    let verify = "verify = { schedule = \"* * * * * *\", read_data_percent = 100 }\n";
    let site = Site::new(&format!("{SCRIPTED}{verify}"));
    std::fs::write(site.path("dump.sh"), "echo data").unwrap();
    site.run(0);
    let mut daemon = Daemon::start(&site);
    daemon.says("verified: nothing is wrong");
    daemon.stop();
    assert_eq!(site.ids().len(), 1);
}

#[test]
fn a_strategy_that_is_removed_and_brought_back_while_it_runs_is_not_run_twice() {
    let site = site("* * * * * *");
    let (begun, go) = held_dump(&site);
    let mut daemon = Daemon::start(&site);
    until("the run has begun", || begun.exists());
    for configuration in [scheduled("0 0 1 1 *").replace("daily", "other"), scheduled("0 0 1 1 *")]
    {
        site.configure(&configuration);
        site.backup(["reload"]).expect(0);
        daemon.says("is taken over");
    }
    std::fs::write(go, "").unwrap();
    daemon.says("run committed");
    daemon.next("app/daily");
    daemon.stop();
    assert_eq!(site.ids().len(), 1);
}

#[test]
fn a_manifest_says_when_the_next_is_due() {
    let manifest = |site: &Site| {
        let text = std::fs::read(site.newest().join("manifest.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap()["manifest"].clone()
    };
    let body = scheduled("0 0 3 3 *") + "timezone = \"Europe/Berlin\"\njitter = \"1h\"\n";
    let site = site("0 0 3 3 *");
    site.configure(&body);
    site.run(0);
    let status = site.backup(["status", "--json"]).run().json();
    let due = manifest(&site)["next_due"].clone();
    assert!(due.is_string() && due == status["strategies"][0]["next"], "{due}\n{status:#}");
    for body in [body + "active = false\n", SCRIPTED.to_owned()] {
        site.configure(&body);
        site.run(0);
        assert_eq!(manifest(&site)["next_due"], serde_json::Value::Null);
    }
}

#[test]
fn a_changed_password_is_read_when_a_login_fails() {
    let server = Server::new(16);
    let database = server.database();
    database.run("CREATE TABLE t (x int)");
    let role = format!("{}_reader", database.name);
    server.run("postgres", &format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'first'"));
    let mut url = server.url(&database.name);
    url.set_username(&role).unwrap();
    url.set_password(None).unwrap();
    let site = Site::new("");
    let text = format!(
        "instance = \"app\"\nstate_dir = \"state\"\n[sources.db]\ntype = \"postgres\"\n\
         url = \"{url}\"\npassword_file = \"password\"\nclient_dir = \"{}\"\n\
         [storages.local]\ntype = \"local\"\npath = \"store\"\n[strategies.daily]\n\
         sources = [\"db\"]\nstorages = [\"local\"]\nretry = {{ attempts = 1 }}\n\
         schedule = \"*/2 * * * * *\"\n",
        server.bin.display()
    );
    std::fs::write(site.config(), &text).unwrap();
    std::fs::write(site.path("password"), "first").unwrap();
    let mut daemon = Daemon::start(&site);
    daemon.says("run committed");
    for password in ["second", "third"] {
        server.run("postgres", &format!("ALTER ROLE {role} PASSWORD '{password}'"));
        daemon.says("nothing was committed");
        std::fs::write(site.path("password"), password).unwrap();
        daemon.says("trying again");
        daemon.says("run committed");
    }
    // With other settings it is taken over when that is asked for, and not before.
    std::fs::write(site.config(), text + "timeout = \"1h\"\n").unwrap();
    server.run("postgres", &format!("ALTER ROLE {role} PASSWORD 'fourth'"));
    std::fs::write(site.path("password"), "fourth").unwrap();
    daemon.says("nothing was committed");
    daemon.says("nothing was committed");
    site.backup(["reload"]).expect(0);
    daemon.says("run committed");
    let seen = daemon.stop();
    assert_eq!(seen.iter().filter(|line| line.contains("trying again")).count(), 2);
    server.run("postgres", &format!("DROP ROLE {role}"));
}
