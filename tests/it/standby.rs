//! Backups of a standby, which has no rows of unlogged tables.

use std::path::{Path, PathBuf};

use crate::support::postgres::Server;
use crate::support::shop::assert_passed;
use crate::support::site::Site;
use crate::support::{needs_root, sh, temp};

/// As the user of the test servers: PostgreSQL does not run as root, nor as a user without a name.
const AS_USER: &str = "setpriv --reuid=postgres --regid=postgres --clear-groups --no-new-privs";

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1), (2);
CREATE UNLOGGED TABLE session (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
INSERT INTO session DEFAULT VALUES;
CREATE UNLOGGED SEQUENCE ticket;
CREATE TABLE log (at int) PARTITION BY RANGE (at);
CREATE UNLOGGED TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (10);
INSERT INTO log VALUES (1);";

/// A cluster that is reached by a socket in its folder, and stands by.
struct Standby {
    folder: tempfile::TempDir,
    bin: PathBuf,
}

impl Standby {
    fn new(bin: &Path, sql: &str) -> Self {
        needs_root("PostgreSQL runs as another user");
        let standby = Self { folder: temp(), bin: bin.to_owned() };
        sh(standby.folder.path(), "chown postgres:postgres .", &[]);
        standby.does("\"$1\"/initdb -D data -U postgres -A trust --no-sync >log 2>&1", &[]);
        standby.start();
        let run = "\"$1\"/psql -Xqv ON_ERROR_STOP=1 -h \"$PWD\" -U postgres -d postgres -c \"$2\"";
        standby.does(run, &[sql]);
        standby.stop();
        standby.does("touch data/standby.signal", &[]);
        standby.start();
        standby
    }

    fn does(&self, script: &str, args: &[&str]) {
        let script = format!("{AS_USER} bash -euc '{script}' does \"$@\"");
        let args: Vec<_> =
            [self.bin.as_os_str()].into_iter().chain(args.iter().map(AsRef::as_ref)).collect();
        sh(self.folder.path(), &script, &args);
    }

    fn start(&self) {
        self.does(
            "\"$1\"/pg_ctl -s -w -D data -l log -o \"-c listen_addresses= \
             -c unix_socket_directories=$PWD -c fsync=off\" start",
            &[],
        );
    }

    fn stop(&self) {
        self.does("\"$1\"/pg_ctl -s -w -D data -m fast stop", &[]);
    }

    fn url(&self) -> String {
        format!("postgresql:///postgres?host={}&user=postgres", self.folder.path().display())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        self.does(
            "test ! -e data/postmaster.pid || \"$1\"/pg_ctl -s -w -D data -m immediate stop",
            &[],
        );
    }
}

fn a_standby_passes(major: u32) {
    let server = Server::new(major);
    let standby = Standby::new(&server.bin, SCHEMA);
    let site = Site::new(&format!(
        "[sources.db]\ntype = \"postgres\"\nurl = \"{}\"\n\
         [storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n",
        standby.url()
    ));
    let backup = |args: &[&str]| site.backup(args).env("PATH", server.path());
    let ran = backup(&["--strategy", "daily", "--json"]).expect(0).json();
    let notes = ran["notes"]["kept"].as_array().unwrap();
    let said: Vec<&str> = notes.iter().map(|note| note["reason"].as_str().unwrap()).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    for table in ["\"public\".\"session\"", "\"public\".\"log_1\""] {
        assert!(said[0].contains(table), "{said:?}");
    }
    let shown = backup(&["show", "latest", "--json"]).expect(0).json();
    let facts = &shown["facts"]["sources"][0]["facts"];
    let rows: Vec<_> = facts["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| (table["name"].as_str().unwrap(), table["rows"].as_i64()))
        .collect();
    assert_eq!(rows, [("item", Some(2)), ("log_1", Some(0)), ("session", Some(0))]);
    assert_passed(&backup(&["drill", "--strategy", "daily", "--json"]).expect(0).json());
}

#[test]
fn a_standby_of_15_is_backed_up_without_unlogged_rows() {
    a_standby_passes(15);
}

#[test]
fn a_standby_of_18_is_backed_up_without_unlogged_rows() {
    a_standby_passes(18);
}
