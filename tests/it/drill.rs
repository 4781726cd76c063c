//! A backup proves itself: it is restored for trial, database and files together, judged by what
//! was true when it was taken, and the evidence is kept.

use crate::support::postgres::Server;
use crate::support::shop::{Kind, Shop, assert_passed, outcomes};

/// Where a drill restores to.
enum To {
    /// A cluster of its own, of the dumped server's major.
    Cluster,
    /// The server of that major.
    Server(u32),
}

/// A shop is backed up and drilled.
fn passes(kind: Kind, to: &To) {
    let shop = Shop::of(kind);
    let other;
    let mut servers: Vec<&Server> = vec![shop.server()];
    let drill = match to {
        To::Cluster => String::new(),
        To::Server(major) => {
            other = Server::new(*major);
            servers.push(&other);
            let same = if *major == kind.major { "on_source_server = true\n" } else { "" };
            format!("[strategies.daily.drill.postgres]\nurl = \"${{SCRATCH_{major}}}\"\n{same}")
        }
    };
    shop.configure(&drill);
    let id = shop.run();
    let report = shop.drill(0, &[]).json();
    assert_passed(&report);
    assert_eq!(report["snapshot"]["id"], id.as_str());
    assert_eq!(report["storage"], if kind.s3 { "offsite" } else { "local" });
    let passed = outcomes(&report, "passed");
    for part in [
        "rows db: rows of \"public\".\"item\": expected 500, found 500",
        "rows db: rows of \"public\".\"log_2026\": expected 100, found 100",
        "counts db: triggers: expected 1, found 1",
        "counts db: materialized views: expected 1, found 1",
        "counts db: large objects: expected 1, found 1",
        "rows settings: rows of \"setting\": expected 50, found 50",
        "integrity settings",
        "counts files: files: expected 13, found 13",
        "files files: content of each file",
        "digest -: facts.json",
        "digest db: db.pgdump",
        "digest files: files.tar",
        "digest files: files.index",
        "digest files: files.blocks",
        "digest keys: keys.out",
        "completeness -",
    ] {
        assert!(passed.iter().any(|check| check.contains(part)), "{part}: {passed:#?}");
    }
    let steps = report["steps"].as_array().unwrap();
    let seconds = |name: &str| {
        steps.iter().find(|step| step["name"] == name).unwrap()["seconds"].as_f64().unwrap()
    };
    let sum: f64 = steps.iter().map(|step| step["seconds"].as_f64().unwrap()).sum();
    let is = |key: &str, wanted: f64| {
        assert!((report[key].as_f64().unwrap() - wanted).abs() < 0.001, "{key}: {report:#}");
    };
    is("seconds", sum);
    is("recovery_seconds", sum - seconds("checks") - seconds("clean-up"));
    for step in ["fetch", "digest", "decompress", "restore", "checks", "clean-up"] {
        assert!(seconds(step) > 0.0, "{step}: {steps:#?}");
    }
    assert_eq!(seconds("decrypt") > 0.0, kind.encrypted);
    assert_eq!(shop.leftovers(&servers), [""; 0]);
    // It is known of the snapshot, wherever the snapshot is.
    let list = shop.backup(&["list", "--json"]).expect(0).json();
    for row in list["snapshots"].as_array().unwrap() {
        assert_eq!(row["drilled"]["verdict"], "passed", "{row:#}");
    }
}

#[test]
fn a_database_and_files_pass_a_drill_in_a_cluster_that_the_drill_starts() {
    passes(Kind { major: 15, encrypted: false, s3: false }, &To::Cluster);
}

#[test]
fn what_is_encrypted_and_off_site_passes_a_drill_of_postgres_16_in_a_cluster_of_its_own() {
    passes(Kind { major: 16, encrypted: true, s3: true }, &To::Cluster);
}

#[test]
fn what_is_off_site_passes_a_drill_of_postgres_18_in_a_cluster_of_its_own() {
    passes(Kind { major: 18, encrypted: false, s3: true }, &To::Cluster);
}

#[test]
fn what_is_encrypted_passes_a_drill_from_postgres_15_into_16() {
    passes(Kind { major: 15, encrypted: true, s3: false }, &To::Server(16));
}

#[test]
fn a_drill_from_postgres_15_into_18_passes() {
    passes(Kind { major: 15, encrypted: false, s3: true }, &To::Server(18));
}

#[test]
fn a_drill_from_postgres_16_into_18_passes() {
    passes(Kind { major: 16, encrypted: true, s3: true }, &To::Server(18));
}

#[test]
fn a_drill_on_the_server_of_the_source_passes_where_that_is_allowed() {
    passes(Kind { major: 18, encrypted: false, s3: false }, &To::Server(18));
    passes(Kind { major: 15, encrypted: true, s3: false }, &To::Server(15));
}
