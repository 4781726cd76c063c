//! Databases with more tables than a server has locks for in one transaction.

use crate::support::own_cluster::OwnCluster;
use crate::support::postgres::{Database, Server};
use crate::support::shop::{assert_passed, outcomes};
use crate::support::site::Site;

/// A database with so many tables; and a configuration of its backup.
fn site(server: &Server, tables: u32, drill: &str) -> (Site, Database) {
    let database = server.database();
    // Not in one transaction, whose locks the server of the tests may lack too.
    database.run(&format!(
        "DO $$ BEGIN FOR i IN 1..{tables} LOOP EXECUTE format('CREATE TABLE t%s (id serial PRIMARY \
         KEY, t text)', i); COMMIT; END LOOP; END $$"
    ));
    let site = Site::new(&format!(
        "[sources.db]\ntype = \"postgres\"\nurl = \"${{DB_URL}}\"\n\
         [storages.local]\ntype = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n\
         [strategies.daily.drill]\n{drill}"
    ));
    (site, database)
}

#[test]
fn a_drill_has_locks_for_thousands_of_tables() {
    let server = Server::new(15);
    let (site, database) = site(&server, 3_000, "");
    let backup =
        |args: &[&str]| site.backup(args).env("DB_URL", database.url()).env("PATH", server.path());
    backup(&["--strategy", "daily"]).expect(0);
    assert_passed(&backup(&["drill", "--strategy", "daily", "--json"]).expect(0).json());
}

#[test]
fn a_server_short_of_locks_is_told_what_to_do() {
    let server = Server::new(15);
    let few = OwnCluster::start(
        &server.bin,
        "-c max_connections=5 -c max_locks_per_transaction=10 -c autovacuum_max_workers=1 \
         -c max_worker_processes=0 -c max_wal_senders=0",
    );
    few.run("CREATE DATABASE target");
    let drill = "postgres = { url = \"${FEW}\" }\n";
    let (site, database) = site(&server, 400, drill);
    let backup = |args: &[&str]| {
        let backup = site.backup(args).env("DB_URL", database.url()).env("PATH", server.path());
        backup.env("FEW", few.url("postgres"))
    };
    backup(&["--strategy", "daily"]).expect(0);
    let into = few.url("target");
    let restore = ["restore", "--strategy", "daily", "--into", &into];
    let failed = backup(&restore).expect(1);
    assert!(failed.err().contains("`-j 2`"), "{failed}");
    backup(&restore).args(["-j", "2"]).expect(0);
    let report = backup(&["drill", "--strategy", "daily", "--json"]).expect(1).json();
    let open = outcomes(&report, "inconclusive");
    assert!(open.iter().any(|one| one.contains("max_locks_per_transaction")), "{open:#?}");
    assert!(!open.iter().any(|one| one.contains("-j")), "{open:#?}");
}
