//! What is restored is what was backed up, and what was there stays until that is known.

use std::io::{self, Read};

use serde_json::Value;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteJournalMode;

use super::super::SqliteRestorer;
use super::{Application, Place, SCHEMA, artifact};
use crate::model::DatabaseUrl;
use crate::source::{RestoreJob, RestoreOptions, Restorer as _, SourceError, Target};

#[test]
fn a_damaged_database_is_found_at_the_latest_before_it_replaces_anything() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 1024, SqliteJournalMode::Delete);
    place.run(&mut connection, SCHEMA);
    place.runtime.block_on(connection.close()).unwrap();
    let (image, dumped) = place.dump(&path).unwrap();
    std::fs::write(place.path("old.db"), b"what was there").unwrap();
    let mut refused = 0;
    for page in (1..image.len() / 1024).step_by(7) {
        let mut damaged = image.clone();
        damaged[page * 1024..page * 1024 + 100].fill(0xA5);
        match place.restore(&damaged, &dumped.facts, &place.database("old.db"), true) {
            Err(_) => {
                refused += 1;
                assert_eq!(std::fs::read(place.path("old.db")).unwrap(), b"what was there");
            }
            // Bytes of a value in the middle of a long blob: no structure of SQLite is hurt. The
            // digest of the stream finds those.
            Ok(_) => std::fs::write(place.path("old.db"), b"what was there").unwrap(),
        }
        assert!(!place.names(".").iter().any(|name| name.contains("restore-")));
    }
    assert!(refused > 5, "{refused}");
    // A table whose root is no page of tables cannot be counted, so it is not dumped.
    let mut damaged = image;
    damaged[1024..1124].fill(0xA5);
    std::fs::write(&path, &damaged).unwrap();
    let error = place.dump(&path).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(
        error.contains("damaged") && error.contains("count the rows of \"we\"\"ird name\""),
        "{error}"
    );
}

/// Ends with an error after its bytes.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 => Err(io::Error::new(io::ErrorKind::InvalidData, "It is damaged")),
            count => Ok(count),
        }
    }
}

#[test]
fn a_stream_that_breaks_leaves_the_target_as_it_was() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 1024, SqliteJournalMode::Delete);
    place.run(&mut connection, SCHEMA);
    let (image, dumped) = place.dump(&path).unwrap();
    std::fs::write(place.path("old.db"), b"old").unwrap();
    std::fs::write(place.path("old.db-wal"), b"its log").unwrap();
    for (target, overwrite) in [(place.database("new.db"), false), (place.database("old.db"), true)]
    {
        let options = RestoreOptions { overwrite, ..RestoreOptions::default() };
        let context = place.context();
        let result = SqliteRestorer.restore(
            RestoreJob {
                cx: &context,
                artifact: &artifact(&image, &dumped.facts),
                target: &target,
                options: &options,
            },
            &mut Broken(&image),
        );
        assert!(matches!(result.err(), Some(SourceError::Stream(_))));
    }
    assert_eq!(place.names("."), ["app.db", "old.db", "old.db-wal", "work"]);
    assert_eq!(std::fs::read(place.path("old.db")).unwrap(), b"old");
}

#[test]
fn what_is_there_is_replaced_only_when_asked_and_then_with_all_that_belongs_to_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Wal);
    place.run(&mut connection, SCHEMA);
    let (image, dumped) = place.dump(&path).unwrap();
    let refused = |target: &Target| {
        let prepared = SqliteRestorer.prepare(RestoreJob {
            cx: &place.context(),
            artifact: &artifact(&image, &dumped.facts),
            target,
            options: &RestoreOptions::default(),
        });
        assert!(matches!(prepared, Err(SourceError::NotEmpty(_))), "{prepared:?}");
        let restored = place.restore(&image, &dumped.facts, target, false).err();
        assert!(matches!(restored, Some(SourceError::NotEmpty(_))), "{restored:?}");
    };
    std::fs::write(place.path("old.db"), b"old").unwrap();
    std::fs::set_permissions(place.path("old.db"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::write(place.path("old.db-wal"), b"old log").unwrap();
    std::fs::write(place.path("old.db-journal"), b"old journal").unwrap();
    std::fs::write(place.path("stray.db-wal"), b"the log of a database that is gone").unwrap();
    std::fs::create_dir(place.path("full")).unwrap();
    std::fs::write(place.path("full/other"), b"").unwrap();
    for target in
        [place.database("old.db"), place.database("stray.db"), Target::Folder(place.path("full"))]
    {
        refused(&target);
    }
    assert_eq!(std::fs::read(place.path("old.db")).unwrap(), b"old");

    place.restore(&image, &dumped.facts, &place.database("old.db"), true).unwrap();
    assert_eq!(std::fs::read(place.path("old.db")).unwrap(), image);
    assert_eq!(
        std::fs::metadata(place.path("old.db")).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert!(!place.path("old.db-wal").exists() && !place.path("old.db-journal").exists());
    let new = place.restore(&image, &dumped.facts, &place.database("new.db"), false).unwrap();
    assert_eq!(std::fs::metadata(new.place).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_database_that_an_application_has_open_is_not_replaced_under_it() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Wal);
    place.run(&mut connection, SCHEMA);
    let (image, dumped) = place.dump(&path).unwrap();
    place.runtime.block_on(connection.close()).unwrap();
    let mut application = Application::open(&path);
    application.run("SELECT count(*) FROM pair");
    let error = place.restore(&image, &dumped.facts, &place.database("app.db"), true).err();
    assert!(error.is_some_and(|error| error.to_string().contains("is in use")));
    application.close();
    place.restore(&image, &dumped.facts, &place.database("app.db"), true).unwrap();
}

#[test]
fn rows_that_are_missing_are_found_before_anything_is_replaced() {
    let place = Place::new();
    let path = place.path("app.db");
    let mut connection = place.connect(&path, 4096, SqliteJournalMode::Delete);
    place.run(&mut connection, "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2);");
    let (image, dumped) = place.dump(&path).unwrap();
    let mut facts = dumped.facts;
    facts["tables"][0]["rows"] = 3.into();
    let error = place.restore(&image, &facts, &place.database("back.db"), false).err();
    let said = error.map(|error| error.to_string()).unwrap_or_default();
    assert!(said.contains("has 2 rows in \"t\", and 3 were backed up"), "{said}");
    assert!(!place.path("back.db").exists());
}

#[test]
fn a_name_that_leads_elsewhere_is_not_used() {
    let place = Place::new();
    for name in ["../evil", "/etc/evil", "..", "", "a\nb"] {
        let facts = serde_json::json!({ "file": name });
        let folder = place.path("out");
        let restored = place.restore(b"", &facts, &Target::Folder(folder.clone()), true).unwrap();
        assert_eq!(restored.place, folder.join("db.sqlite").display().to_string());
    }
    let by_hand =
        |name: &str| SqliteRestorer.by_hand(&artifact(b"", &serde_json::json!({ "file": name })));
    assert_eq!(by_hand("app.sqlite"), ["cat > app.sqlite"]);
    assert_eq!(by_hand("it's; rm -rf"), ["cat > './it'\\''s; rm -rf'"]);
    assert_eq!(by_hand("../evil"), ["cat > db.sqlite"]);
}

#[test]
fn addresses_are_those_of_sqlite() {
    let place = Place::new();
    let context = place.context();
    let file = |text: &str| {
        let target = Target::Database(DatabaseUrl::try_from(text.to_owned()).ok()?);
        super::super::target::place(&context, &artifact(b"", &Value::Null), &target)
            .map(|path| path.display().to_string())
            .ok()
    };
    assert_eq!(file("sqlite:///no/such/a%20b.db").as_deref(), Some("/no/such/a b.db"));
    assert_eq!(file("sqlite://no-such/x.db").as_deref(), Some("no-such/x.db"));
    assert_eq!(file("sqlite://no-such.db").as_deref(), Some("no-such.db"));
    assert_eq!(file("sqlite:no-such.db").as_deref(), Some("no-such.db"));
    for wrong in
        ["postgresql://h/db", "sqlite://", "sqlite:///", "sqlite:///x?mode=ro", "sqlite://u:p@h/x"]
    {
        assert_eq!(file(wrong), None, "{wrong}");
    }
}
