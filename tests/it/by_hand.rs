//! The script that `backup show --script` prints restores with ordinary tools alone.

use std::path::Path;
use std::process::Command;

use crate::support::postgres::{Database, Server as Postgres};
use crate::support::site::{Site, noise, s3_storage, small_tree};
use crate::support::stores::{Server, fresh};
use crate::support::{S3, age_key, s3, sh};

/// Two folders, a stream, an SQLite file and two databases, with a name or a quote that needs care.
const SOURCES: &str = r#"
[sources.uploads]
type = "directory"
path = "@/data"
[sources.more]
type = "directory"
path = "@/more"
[sources.dump]
type = "command"
command = ["head", "-c", "300000", "@/noise"]
[sources.small]
type = "sqlite"
path = "@/it's small.db"
[sources.shop]
type = "postgres"
url = "${SHOP_URL}"
[sources.blog-2]
type = "postgres"
url = "${BLOG_URL}"
"#;

struct Scripted {
    site: Site,
    server: Postgres,
    shop: Database,
    blog: Database,
    s3: S3,
}

impl Scripted {
    fn new(storage: &str, more: &str) -> Self {
        let server = Postgres::new(16);
        let (shop, blog) = (server.database(), server.database());
        shop.run("CREATE TABLE item AS SELECT generate_series(1, 500) AS id");
        blog.run("CREATE TABLE post AS SELECT generate_series(1, 70) AS id");
        let site = Site::new(&format!(
            "{SOURCES}{storage}{more}[strategies.daily]\n\
             sources = [\"uploads\", \"more\", \"dump\", \"small\", \"shop\", \"blog-2\"]\n\
             storages = [\"store\"]\n"
        ));
        small_tree(&site.path("data"));
        std::fs::create_dir(site.path("more")).unwrap();
        std::fs::write(site.path("more/a"), noise(900_000)).unwrap();
        std::fs::write(site.path("noise"), noise(300_000)).unwrap();
        let sql = "CREATE TABLE t (x); INSERT INTO t VALUES (7)";
        sh(site.dir.path(), "sqlite3 \"it's small.db\" \"$1\"", &[sql.as_ref()]);
        let scripted = Self { site, server, shop, blog, s3: s3("SEAWEEDFS") };
        scripted.backup(&["--strategy", "daily"], 0);
        scripted
    }

    fn backup(&self, args: &[&str], code: i32) -> String {
        let ran = self
            .site
            .backup(args)
            .env("SHOP_URL", self.shop.url())
            .env("BLOG_URL", self.blog.url())
            .env("PATH", self.server.path())
            .expect(code);
        ran.out().to_owned()
    }

    /// Runs the script, with the program out of reach.
    fn run(&self, script: &str, more: &[(&str, &Path)]) -> (Option<i32>, [Database; 2]) {
        let targets = [self.server.database(), self.server.database()];
        let out = self.site.path(format!("out-{}", fresh("x")));
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(script).current_dir(self.site.dir.path()).env_clear();
        shell
            .env("PATH", self.server.path())
            .env("HOME", self.site.dir.path())
            .env("DIR", out.file_name().unwrap())
            .env("DATABASE_SHOP", targets[0].url())
            .env("DATABASE_BLOG_2", targets[1].url())
            .env("AWS_ENDPOINT_URL", &self.s3.endpoint)
            .env("AWS_REGION", &self.s3.region)
            .env("AWS_ACCESS_KEY_ID", &self.s3.access_key)
            .env("AWS_SECRET_ACCESS_KEY", &self.s3.secret_key);
        shell.envs(more.iter().copied());
        let output = shell.output().unwrap();
        if output.status.success() {
            let looks = "diff -r --no-dereference data \"$1/uploads\"\n\
                         diff -r more \"$1/more\"\n\
                         cmp noise \"$1\"/dump/*\n\
                         cmp \"it's small.db\" \"$1/small/it's small.db\"";
            sh(self.site.dir.path(), looks, &[out.as_os_str()]);
            assert_eq!(targets[0].number("SELECT count(*) FROM item"), 500);
            assert_eq!(targets[1].number("SELECT count(*) FROM post"), 70);
        } else {
            println!("{}\n{}", script, String::from_utf8_lossy(&output.stderr));
        }
        (output.status.code(), targets)
    }

    fn script(&self, more: &[&str]) -> String {
        let mut args = vec!["show", "latest", "--strategy", "daily", "--script"];
        args.extend(more);
        self.backup(&args, 0)
    }
}

const LOCAL: &str = "[storages.store]\ntype = \"local\"\npath = \"@/the store\"\n";

#[test]
fn a_script_restores_from_a_folder() {
    let scripted = Scripted::new(LOCAL, "");
    let script = scripted.script(&[]);
    assert_eq!(scripted.run(&script, &[]).0, Some(0));
    // Nothing is overwritten, and nothing of what is damaged is restored.
    let object = sh(scripted.site.dir.path(), "ls 'the store'/app/daily/*/more.tar.zst", &[]);
    let object = scripted.site.path(object.trim());
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[400_000] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    let (code, targets) = scripted.run(&script, &[]);
    assert_eq!(code, Some(4));
    assert_eq!(targets[0].number("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), 0);
}

#[test]
fn a_script_restores_from_s3_and_decrypts() {
    let (store, bucket) = (s3("SEAWEEDFS"), fresh("by-hand"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let made = Server::SeaweedFs.client().create_bucket().bucket(&bucket).send();
    runtime.block_on(made).unwrap();
    let keys = crate::support::temp();
    let (identity, recipient) = age_key(keys.path(), "key");
    let encryption = format!("[encryption]\nrecipients = [\"{recipient}\"]\n");
    let storage = s3_storage("store", &store, &bucket) + "prefix = \"of/all\"\n";
    let scripted = Scripted::new(&storage, &encryption);
    // The name of the database file is in the facts.
    let script = scripted.script(&["--identity-file", identity.to_str().unwrap()]);
    assert_eq!(scripted.run(&script, &[("KEY", &identity)]).0, Some(0));
}

#[test]
fn a_script_restores_an_exported_file() {
    let scripted = Scripted::new(LOCAL, "");
    let script = scripted.script(&[]);
    let file = scripted.site.path("app.tar");
    let export = ["export", "--strategy", "daily", "--snapshot", "latest", "--output"];
    scripted.backup(&[&export[..], &[file.to_str().unwrap()]].concat(), 0);
    std::fs::remove_dir_all(scripted.site.path("the store")).unwrap();
    let unpacked =
        "mkdir file && tar -xf app.tar -C file && dirname \"$(find file -name manifest.json)\"";
    let folder = sh(scripted.site.dir.path(), unpacked, &[]);
    let folder = scripted.site.path(folder.trim());
    assert_eq!(scripted.run(&script, &[("SNAPSHOT", &folder)]).0, Some(0));
}
