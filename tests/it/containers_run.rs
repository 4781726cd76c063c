//! The services of the compose examples as they stand, run by the kernel's own means: what they may
//! read is read, what they may not touch is not.

use std::path::Path;

use crate::support::container::{Project, listing, texts, user};
use crate::support::postgres::{Database, Server};
use crate::support::site::Site;
use crate::support::stores::{Server as Store, fresh, setting};
use crate::support::{age_key, needs_root, repository, sh};

/// Why these tests need root.
const OTHER_USERS: &str = "a service runs as another user, on files of other users";

/// An example, ready to be run: its secrets and folders made, the database it names on a real
/// server, its files with their owners.
struct Shop {
    project: Project,
    database: Database,
    /// What `.env` gives.
    variables: Vec<(&'static str, String)>,
}

impl Shop {
    fn new(variant: &str) -> Self {
        let project = Project::example(variant);
        let database = Server::new(15).database();
        database.run(
            "CREATE TABLE upload (name text PRIMARY KEY); INSERT INTO upload VALUES \
            ('a.txt'), ('b.txt')",
        );
        let url = database.server.url(&database.name);
        let (uid, gid) = user(&project.compose["services"]["backups"]);
        let mut variables = Vec::new();
        sh(
            project.dir.path(),
            "install -d -m 0700 backups state uploads secrets; chmod 755 .",
            &[],
        );
        let secret = |name: &str, value: &str| {
            std::fs::write(project.path("secrets").join(name), value).unwrap();
        };
        secret("db-password", url.password().unwrap());
        if variant == "s3" {
            let bucket = fresh("shop");
            let created = Store::S3s.client().create_bucket().bucket(&bucket).send();
            database.server.runtime.block_on(created).unwrap();
            secret("s3-key-id", &setting("HOLDFAST_TEST_S3_ACCESS_KEY"));
            secret("s3-key", &setting("HOLDFAST_TEST_S3_SECRET_KEY"));
            variables.push(("S3_ENDPOINT", Store::S3s.endpoint()));
            variables.push(("S3_REGION", Store::S3s.region()));
            variables.push(("S3_BUCKET", bucket));
            variables.push(("AGE_RECIPIENT", age_key(&project.path("config"), "key.txt").1));
        }
        let shop = Self { project, database, variables };
        let ids = format!("{uid}:{gid}");
        let owned = "chown -R \"$1\" backups state uploads secrets; chmod 0400 secrets/*";
        sh(shop.project.dir.path(), owned, &[ids.as_ref()]);
        // Outside of the test's own network a server is on a port of its own.
        let config = shop.project.path("config/backup.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains("postgresql://shop@db/shop"));
        let text = text.replace("postgresql://shop@db/shop", &shop.database.open_url());
        std::fs::write(config, text).unwrap();
        shop
    }

    /// The folder of the application's files on this machine.
    fn uploads(&self) -> std::path::PathBuf {
        let restored = crate::support::container::mounts(
            &self.project.compose,
            &self.project.compose["services"]["restore"],
        );
        self.project.source(
            &restored.iter().find(|mount| mount.target == "/restore/uploads").unwrap().source,
        )
    }

    /// `docker compose exec backups backup --strategy daily`
    fn backup(&self, code: i32) -> serde_json::Value {
        let command = ["backup", "--strategy", "daily", "--json"];
        serde_json::from_str(&self.project.expect(code, "backups", &command, &self.variables))
            .unwrap()
    }

    fn restore(&self, args: &[&str]) {
        let mut all = vec!["--strategy", "daily", "--overwrite"];
        if !self.variables.is_empty() {
            all.extend(["--identity-file", "/etc/backup/key.txt"]);
        }
        all.extend(args);
        self.project.run(0, "restore", &all, &self.variables);
    }
}

/// Files, folders and links of these owners, none of which another may look into.
fn plant(uploads: &Path, owners: &[&str]) {
    for owner in owners {
        let script = r#"
            d=of-${1%:*}; mkdir -p $d/set; echo "of $1" >$d/file; ln -s file $d/link; ln $d/file $d/hard; truncate -s 1M $d/sparse
            touch -h -d '2020-02-03 04:05:06.789' $d/file $d/link $d/sparse
            chown -hR "$1" $d; chmod 0600 $d/file $d/sparse; chmod 2750 $d/set; chmod 0700 $d"#;
        sh(uploads, script, &[owner.as_ref()]);
    }
}

/// Backs up, loses everything, restores, and is what it was.
fn comes_back(variant: &str, owners: &[&str]) {
    let shop = Shop::new(variant);
    let uploads = shop.uploads();
    plant(&uploads, owners);
    let before = listing(&uploads);
    let report = shop.backup(0);
    assert_eq!(report["outcome"], "success", "{report:#}");
    shop.project.expect(0, "backups", &["backup", "check"], &shop.variables);
    let health = texts(&shop.project.compose["services"]["backups"]["healthcheck"]["test"]);
    shop.project.expect(0, "backups", &health[1..], &shop.variables);

    sh(&uploads, "find . -mindepth 1 -delete; echo later > later", &[]);
    shop.restore(&["--source", "uploads", "--to", "/restore", "--delete"]);
    assert_eq!(listing(&uploads), before);

    shop.database.run("DROP TABLE upload");
    shop.restore(&["--source", "db", "--into", &shop.database.open_url()]);
    assert_eq!(shop.database.number("SELECT count(*) FROM upload"), 2);
}

#[test]
fn root_with_one_capability_backs_up_files_of_others_and_they_come_back_with_their_owners() {
    needs_root(OTHER_USERS);
    comes_back("local", &["10001:10001", "33:10001", "0:0"]);
}

#[test]
fn the_same_to_a_bucket_encrypted() {
    needs_root(OTHER_USERS);
    comes_back("s3", &["10001:10001"]);
}

#[test]
fn an_ordinary_user_backs_up_files_of_its_own_and_they_come_back() {
    needs_root(OTHER_USERS);
    comes_back("non-root", &["1000:1000"]);
}

#[test]
fn without_its_capability_root_cannot_read_what_belongs_to_others() {
    needs_root(OTHER_USERS);
    let shop = Shop::new("local");
    plant(&shop.uploads(), &["10001:10001"]);
    let command = ["backup", "--strategy", "daily", "--json"];
    let output = shop.project.command("backups", &command, &shop.variables, &["DAC_READ_SEARCH"]);
    assert_eq!(
        output.status.code(),
        Some(3),
        "partial, and said so: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_services_can_write_to_their_volumes_and_nowhere_else() {
    needs_root(OTHER_USERS);
    for variant in ["local", "non-root"] {
        let shop = Shop::new(variant);
        let try_write = "for place in / /etc /etc/backup /usr /var/lib /run/secrets /data/uploads \
            /backups /var/lib/holdfast /tmp; do
            if touch $place/tried 2>/dev/null; then echo $place; fi; done";
        let written = shop.project.expect(0, "backups", &["sh", "-c", try_write], &[]);
        assert_eq!(
            written.split_whitespace().collect::<Vec<_>>(),
            ["/backups", "/var/lib/holdfast", "/tmp"],
            "{variant}"
        );
        let status = shop.project.expect(0, "backups", &["sh", "-c", "cat /proc/self/status"], &[]);
        let effective =
            status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
        let wanted = if texts(&shop.project.compose["services"]["backups"]["cap_add"]).is_empty() {
            0
        } else {
            1 << 2
        };
        assert_eq!(
            u64::from_str_radix(effective, 16).unwrap(),
            wanted,
            "{variant}: CAP_DAC_READ_SEARCH is bit 2"
        );
    }
}

#[test]
fn the_user_of_the_units_reads_what_belongs_to_others() {
    needs_root(OTHER_USERS);
    for unit in ["holdfast.service", "backup@.service"] {
        let text =
            std::fs::read_to_string(repository().join("examples/systemd").join(unit)).unwrap();
        assert!(text.contains(
            "\nAmbientCapabilities=CAP_DAC_READ_SEARCH\n\
            CapabilityBoundingSet=CAP_DAC_READ_SEARCH\nNoNewPrivileges=yes\n"
        ));
    }
    let site = Site::new(
        "[sources.files]\ntype = \"directory\"\npath = \"@/files\"\n[storages.disk]\n\
         type = \"local\"\npath = \"@/store\"\n\
         [strategies.daily]\nsources = [\"files\"]\nstorages = [\"disk\"]\n",
    );
    sh(site.dir.path(), "mkdir files && install -d -o 64999 -g 64999 -m 0700 state store", &[]);
    plant(&site.path("files"), &["10001:10001", "0:0"]);
    let script = r#"
        only=-all,+dac_read_search
        setpriv --reuid 64999 --regid 64999 --clear-groups --no-new-privs --inh-caps=$only --ambient-caps=$only --bounding-set=$only \
            "$1" --config app.toml --strategy daily --json"#;
    // Root had a look before.
    site.backup(["list"]).expect(0);
    site.backup(["check"]).expect(0);
    let said = sh(site.dir.path(), script, &[env!("CARGO_BIN_EXE_backup").as_ref()]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["outcome"], "success", "{report:#}");
    let before = listing(&site.path("files"));
    site.backup(["restore", "--strategy", "daily", "--to"]).arg(site.path("restored")).expect(0);
    assert_eq!(listing(&site.path("restored/files")), before);
    let of_others = sh(site.dir.path(), "find state ! -uid 64999", &[]);
    assert_eq!(of_others, "", "what root makes in the state of the service is the service's");
}
