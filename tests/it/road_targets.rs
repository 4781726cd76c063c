//! Back into what is not a folder: the command that reads a stream, and an SQLite database that is
//! there already.

use crate::support::site::Site;
use crate::support::sources::script;
use crate::support::{Backup, sh};

const COMMAND: &str = r#"
[sources.queue]
type = "command"
command = ["seq", "100000"]
restore_command = ["@/load"]
env = { TOKEN = "t0ken-of-load" }
working_dir = "@"
[sources.other]
type = "command"
command = ["echo", "other"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["queue", "other"]
storages = ["local"]
"#;

fn to_command(site: &Site) -> Backup {
    site.backup(["restore", "--strategy", "daily", "--to-command"])
}

#[test]
fn a_stream_goes_to_the_command_that_reads_it() {
    let site = Site::new(COMMAND);
    script(&site.path("load"), "test \"$TOKEN\" = t0ken-of-load && cat > loaded");
    site.run(0);
    let restored = to_command(&site).expect(0);
    assert!(
        restored.out().contains("`other.out`: its source has no `restore_command`"),
        "{restored}"
    );
    assert_eq!(
        std::fs::read_to_string(site.path("loaded")).unwrap(),
        sh(site.dir.path(), "seq 100000", &[])
    );
}

#[test]
fn a_command_that_fails_to_read_is_a_failed_restore() {
    let site = Site::new(COMMAND);
    script(&site.path("load"), "");
    site.run(0);
    for (body, says) in [
        (
            "head -c 10 > /dev/null; echo the queue is closed >&2; exit 7",
            "exit status 7: the queue is closed",
        ),
        ("cat > /dev/null; exit 1", "exit status 1"),
        ("kill -9 $$", "SIGKILL"),
    ] {
        script(&site.path("load"), body);
        let failed = to_command(&site).expect(1);
        assert!(
            failed.err().contains("Could not restore `queue.out`") && failed.err().contains(says),
            "{failed}"
        );
    }
    // One that reads not all of it may mean it; it is said.
    script(&site.path("load"), "head -c 10 > /dev/null");
    let early = to_command(&site).expect(3);
    assert!(early.out().contains("before it had read all"), "{early}");
    std::fs::remove_file(site.path("load")).unwrap();
    let missing = to_command(&site).expect(1);
    assert!(missing.err().contains("was not found or is not executable"), "{missing}");
    // A damaged stream is never a success, even for a command that believes it.
    script(&site.path("load"), "cat > /dev/null");
    let file = site.newest().join("queue.out.zst");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let damaged = to_command(&site).run();
    assert!(matches!(damaged.code(), Some(1 | 4)), "{damaged}");
}

#[test]
fn an_sqlite_database_is_replaced_only_when_that_is_asked_for() {
    let site = Site::new(
        "[sources.db]\ntype = \"sqlite\"\npath = \"@/app.db\"\n[storages.local]\ntype = \"local\"\n\
         path = \"@/store\"\n\
         [strategies.daily]\nsources = [\"db\"]\nstorages = [\"local\"]\n",
    );
    let sql = |file: &str, sql: &str| {
        sh(site.dir.path(), "sqlite3 \"$1\" \"$2\"", &[file.as_ref(), sql.as_ref()])
    };
    sql("app.db", "PRAGMA journal_mode = wal; CREATE TABLE t(x); INSERT INTO t VALUES (1), (2)");
    site.run(0);
    let url = format!("sqlite://{}", site.path("new folder/copy.db").display()).replace(' ', "%20");
    let into = |url: &str, extra: &[&str]| {
        site.backup(["restore", "--strategy", "daily", "--into", url]).args(extra.iter().copied())
    };
    into(&url, &[]).expect(0);
    assert_eq!(sql("new folder/copy.db", "SELECT sum(x) FROM t"), "3\n");
    sql("new folder/copy.db", "DELETE FROM t");
    let refused = into(&url, &[]).expect(1);
    assert!(refused.err().contains("is not empty. Pass `--overwrite`"), "{refused}");
    assert_eq!(sql("new folder/copy.db", "SELECT count(*) FROM t"), "0\n");
    into(&url, &["--overwrite"]).expect(0);
    assert_eq!(sql("new folder/copy.db", "SELECT sum(x) FROM t"), "3\n");

    // What is no such address, or of another kind of database, is said before anything is done.
    for (address, says) in [
        ("postgresql://u@127.0.0.1:1/db", "sqlite:///path"),
        ("sqlite:///", "sqlite:///path"),
        ("nonsense", "Not a database address"),
    ] {
        let wrong = into(address, &[]).run();
        assert!(matches!(wrong.code(), Some(1 | 2)) && wrong.err().contains(says), "{wrong}");
    }
}
