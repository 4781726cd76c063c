//! A configuration that only prunes: the same names, other credentials, no sources.

use crate::support::site::{Site, small_tree};

const STORAGE: &str = "[storages.disk]\ntype = \"local\"\npath = \"@/store\"\n";

#[test]
fn a_strategy_without_sources_is_listed_verified_and_restored_and_never_run() {
    let site = Site::new(&format!(
        "[sources.files]\ntype = \"directory\"\npath = \"@/data\"\n{STORAGE}[strategies.daily]\n\
         sources = [\"files\"]\nstorages = [\"disk\"]\n"
    ));
    small_tree(&site.path("data"));
    site.run(0);
    let before = site.folders();

    site.configure(&format!(
        "{STORAGE}[strategies.daily]\nstorages = [\"disk\"]\nretention = {{ keep_daily = 7 }}\n"
    ));
    for args in [
        &["--strategy", "daily"][..],
        &["--strategy", "daily", "--dry-run"],
        &["run", "--strategy", "daily"],
    ] {
        let refused = site.backup(args).expect(2);
        assert_eq!(refused.out(), "");
        assert!(
            refused.err().contains("The strategy `daily` has no `sources` in this configuration"),
            "{refused}"
        );
    }
    assert_eq!(site.folders(), before, "nothing was written");

    assert_eq!(site.ids().len(), 1);
    site.backup(["verify", "--strategy", "daily", "--read-data"]).expect(0);
    site.backup(["restore", "--strategy", "daily", "--to"]).arg(site.path("out")).expect(0);
    assert_eq!(std::fs::read(site.path("out/files/a.txt")).unwrap(), b"alpha\n");
    let check = site.backup(["check"]).expect(0);
    assert!(check.out().contains("prune only: no sources here"), "{check}");
    site.backup(["strategies"]).expect(0);
}
