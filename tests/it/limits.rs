//! What an operator limits: how fast it reads and uploads, how much it asks of the machine.

use std::time::{Duration, Instant};

use crate::support::site::Site;

fn site(settings: &str, script: &str) -> Site {
    let site = Site::new(&format!(
        r#"
{settings}
[sources.dump]
type = "command"
command = ["sh", "-c", "{script}"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["dump"]
storages = ["local"]
"#
    ));
    std::fs::create_dir(site.path("out")).unwrap();
    site
}

fn seconds_of_a_run(settings: &str) -> Duration {
    let site = site(settings, "head -c 12000000 /dev/urandom");
    let began = Instant::now();
    site.run(0);
    began.elapsed()
}

#[test]
fn reading_keeps_to_its_rate() {
    assert!(seconds_of_a_run("read_rate = \"4MB/s\"") >= Duration::from_secs(2));
}

#[test]
fn uploading_keeps_to_its_rate() {
    assert!(seconds_of_a_run("upload_rate = \"4MB/s\"") >= Duration::from_secs(2));
}

#[test]
fn niceness_reaches_the_children() {
    let site = site("nice = 7", "nice");
    site.run(0);
    site.backup(["restore", "--strategy", "daily", "--to"]).arg(site.path("out")).expect(0);
    assert_eq!(std::fs::read_to_string(site.path("out/dump/dump.out")).unwrap().trim(), "7");
}

#[test]
fn niceness_reaches_every_thread() {
    // The command looks at the threads of its parent: the fields of stat after the name, the 17th
    // of which is the niceness.
    let script = "sed 's/.*) //' /proc/$PPID/task/*/stat | cut -d' ' -f17 | sort -u";
    let site = site("nice = 9", script);
    site.run(0);
    site.backup(["restore", "--strategy", "daily", "--to"]).arg(site.path("out")).expect(0);
    assert_eq!(std::fs::read_to_string(site.path("out/dump/dump.out")).unwrap().trim(), "9");
}
