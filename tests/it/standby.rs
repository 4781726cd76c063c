//! Backups of a standby, which has no rows of unlogged tables.

use crate::support::own_cluster::OwnCluster;
use crate::support::postgres::Server;
use crate::support::shop::assert_passed;
use crate::support::site::Site;

const SCHEMA: &str = "CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item VALUES (1), (2);
CREATE UNLOGGED TABLE session (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
INSERT INTO session DEFAULT VALUES;
CREATE UNLOGGED SEQUENCE ticket;
CREATE TABLE log (at int) PARTITION BY RANGE (at);
CREATE UNLOGGED TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (10);
INSERT INTO log VALUES (1);";

fn a_standby_passes(major: u32) {
    let server = Server::new(major);
    let standby = OwnCluster::start(&server.bin, "");
    standby.run(SCHEMA);
    standby.becomes_standby();
    let site = Site::new(&format!(
        "[sources.db]\ntype = \"postgres\"\nurl = \"{}\"\n\
         [storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n",
        standby.url("postgres")
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
