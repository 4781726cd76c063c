//! A dump back into a database, or as a file into a folder.
//!
//! A stream is restored in one transaction by one `pg_restore`: it is there as a whole, or nothing
//! of it is. Several jobs need a file to jump about in, and cannot share a transaction.

use std::collections::HashSet;
use std::io::{Cursor, Read};
use std::path::Path;

use sqlx::Row;

use super::address::{Address, dbname_argument};
use super::census::{ANYTHING, Server};
use super::client::{Client, Major};
use super::replace::Replacement;
use super::scratch::{Confined, ScratchDatabase, roles};
use super::settings::{Applied, Settings, apply};
use super::{NO_PASSWORD, block};
use crate::model::{ArtifactKind, ByteSize, DatabaseUrl, Remarks};
use crate::source::place::{file_in, refuse_occupied, write_nameless, write_private};
use crate::source::process::{Call, MemoryFile, ProcessError, path_for_children};
use crate::source::scratch::{Scratch, ScratchPlace};
use crate::source::{
    Context, Preview, RestoreArtifact, RestoreJob, RestoreOptions, Restored, Restorer, SourceError,
    Streams, Target,
};

/// Roles and tablespaces are a short script; more than this is not one.
const GLOBALS_LIMIT: u64 = 64 << 20;

/// Prints the statements about the database itself, for somebody to choose from. What is not needed
/// is read all the same: the pipe would break.
const SETTINGS_BY_HAND: &str = concat!(
    "{ pg_restore --create --schema-only --file=-; cat > /dev/null; } | ",
    r"awk '/^-- Name: /{p = /; Type: DATABASE/ || /^-- Name: DATABASE /} ",
    r"/^\\(connect|(un)?restrict) /{next} p'"
);

/// The inverse of the source, for its dump and its roles.
pub struct PostgresRestorer;

/// A target that may be restored to.
struct Prepared {
    address: Address,
    server: Server,
    client: Client,
}

impl PostgresRestorer {
    fn prepare_database(
        cx: &Context,
        artifact: &RestoreArtifact,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<Prepared, SourceError> {
        let Target::Database(url) = target else {
            return Err(SourceError::Unsuitable(
                "A PostgreSQL dump is restored into a database (`postgresql://...`) or put into a \
                 folder as a file, not fed to a \
                 command"
                    .to_owned(),
            ));
        };
        let mut address = Address::new(url, None)?;
        if options.overwrite
            && Settings::of_facts(&artifact.facts)
                .is_ok_and(|it| it.is_some_and(|it| it.only_reads()))
        {
            // It is what an earlier restore of such a snapshot made it.
            address = address.for_writing();
        }
        let attempt = "look whether the database is empty";
        let looking = async {
            let mut connection = address.connect().await?;
            let server = Server::ask(&mut connection, &address).await?;
            let sql = sqlx::query_scalar::<_, String>(ANYTHING).persistent(false);
            let content = sql.fetch_optional(&mut connection).await;
            Ok((server, content.map_err(|error| address.failed(attempt, &error))?))
        };
        let (server, content) = block(cx, address.within(attempt, looking))?;
        let is_dump = artifact.kind == ArtifactKind::PgDump;
        if is_dump && !options.overwrite && content.is_some() {
            return Err(SourceError::NotEmpty(address.masked.clone()));
        }
        if server.read_only {
            let problem =
                "It takes no writes: it is a standby, or `default_transaction_read_only` is set"
                    .to_owned();
            let target = address.masked;
            return Err(SourceError::Database {
                attempt: "restore".to_owned(),
                target,
                problem,
                transient: false,
            });
        }
        let archive = artifact
            .facts
            .get("client_version")
            .and_then(|version| Major::of_text(version.as_str()?));
        let archive = archive.filter(|_| is_dump);
        if archive.is_some_and(|archive| archive >= Major::WITH_TRANSACTION_TIMEOUT)
            && server.major() < Major::WITH_TRANSACTION_TIMEOUT
        {
            return Err(SourceError::Unsuitable(format!(
                "The dump was written by `pg_dump` {}, whose restore needs settings that \
                 PostgreSQL {} at `{}` does not know. Restore \
                 into a server of version 17 or newer, or by hand from `pg_restore --file=-` \
                 without the line `SET transaction_timeout`",
                archive.map(|archive| archive.to_string()).unwrap_or_default(),
                server.major(),
                address.masked
            )));
        }
        let tool = if is_dump { "pg_restore" } else { "psql" };
        let major = archive.map_or(server.major(), |archive| archive.max(server.major()));
        let client = Client::choose(cx, None, tool, major)?;
        Ok(Prepared { address, server, client })
    }

    /// A dump, beside what the target has or in its place.
    fn database(
        cx: &Context,
        prepared: &Prepared,
        artifact: &RestoreArtifact,
        input: &mut dyn Read,
        options: &RestoreOptions,
    ) -> Result<Remarks, SourceError> {
        let mut args = restore_args(options);
        let mut replacement = None;
        if options.overwrite {
            let target = (&prepared.address, &prepared.client);
            let planned = Replacement::plan(cx, target, options, &args, input)?;
            args.extend(["--clean", "--if-exists"].map(str::to_owned));
            args.push(planned.argument());
            replacement = Some(planned);
        }
        args.extend(["--exit-on-error", "--no-password"].map(str::to_owned));
        let head = replacement.as_mut().map(|planned| std::mem::take(&mut planned.head));
        let mut input = Cursor::new(head.unwrap_or_default()).chain(input);
        if options.jobs > 1 {
            Self::parallel(cx, prepared, artifact, &args, &mut input, options)?;
        } else {
            Self::stream(cx, prepared, &args, &mut input, options)?;
        }
        let mut remarks = Remarks::default();
        if let Some((replacement, others)) =
            replacement.and_then(|it| it.others().map(|others| (it, others)))
        {
            if !options.delete {
                remarks.warn(format!("The target has what the snapshot does not have: {others}"));
            } else if let Err(error) = replacement.delete(cx, &prepared.address) {
                remarks.warn(format!("{error}. What the snapshot does not have: {others}"));
            } else {
                remarks.note(format!("Removed, as the snapshot does not have it: {others}"));
            }
        }
        Ok(remarks)
    }

    /// One `pg_restore`, one transaction, nothing on the disk.
    fn stream(
        cx: &Context,
        prepared: &Prepared,
        args: &[String],
        input: &mut dyn Read,
        options: &RestoreOptions,
    ) -> Result<(), SourceError> {
        let (call, _password) = prepared.call(cx)?;
        // An index is built in silence for as long as it takes: only a stop or the server's end
        // ends this.
        call.args(args.to_vec())
            .args([dbname_argument(&prepared.server.database)])
            .args(["--single-transaction"])
            .explained_by(if options.scratch { explain_rehearsal } else { explain_restore })
            .silent_for(None)
            .feed(cx, input)?;
        Ok(())
    }

    /// Several jobs, from a file in the work folder.
    fn parallel(
        cx: &Context,
        prepared: &Prepared,
        artifact: &RestoreArtifact,
        args: &[String],
        input: &mut dyn Read,
        options: &RestoreOptions,
    ) -> Result<(), SourceError> {
        refuse_without_space(&cx.work_dir, artifact.plain_bytes)?;
        // All of it, and so undamaged, before the database is touched.
        let spool = write_nameless(&cx.work_dir, input)?;
        let (call, _password) = prepared.call(cx)?;
        let restored = call
            .args(args.to_vec())
            .args([dbname_argument(&prepared.server.database)])
            .args([format!("--jobs={}", options.jobs)])
            .args([path_for_children(&spool)])
            .explained_by(explain_restore)
            .silent_for(None)
            .feed(cx, &mut std::io::empty());
        match restored {
            Ok(_) => Ok(()),
            Err(SourceError::Process(mut error)) => {
                if let ProcessError::Exit { said, .. } | ProcessError::Signal { said, .. } =
                    &mut error
                {
                    let partial = "Several jobs share no transaction: the database is now partial. \
                        Empty it before it is used or \
                                   restored again";
                    let known = said.hint.take();
                    said.hint =
                        Some(known.map_or_else(
                            || partial.to_owned(),
                            |known| format!("{known}. {partial}"),
                        ));
                }
                Err(SourceError::Process(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Into a cluster that was made for it: no code of the source's users runs as a superuser.
    fn confined(
        cx: &Context,
        prepared: &Prepared,
        artifact: &RestoreArtifact,
        input: &mut dyn Read,
        superuser: &DatabaseUrl,
        options: &RestoreOptions,
    ) -> Result<Remarks, SourceError> {
        if artifact.kind == ArtifactKind::PgGlobals {
            let script = globals_script(input)?;
            return roles::restore(cx, superuser, &prepared.address, &script);
        }
        Confined {
            address: &prepared.address,
            client: &prepared.client,
            server: &prepared.server,
            superuser,
            no_owner: options.no_owner,
        }
        .restore(cx, input)
    }

    /// What the dump does not bring along.
    fn settings(
        cx: &Context,
        prepared: &Prepared,
        artifact: &RestoreArtifact,
        options: &RestoreOptions,
    ) -> Result<Applied, SourceError> {
        let mut applied = Applied::default();
        match Settings::of_facts(&artifact.facts) {
            Ok(Some(wanted)) => {
                let (address, database) = (&prepared.address, &prepared.server.database);
                let applying = apply(address, database, &wanted, options.no_owner);
                applied = block(cx, async { Ok(applying.await) })?;
            }
            Ok(None) => applied.remarks.note(
                "The snapshot does not say which settings the database had, such as `ALTER \
                 DATABASE ... SET`; `pg_restore --create --schema-only --file=-` of the dump does",
            ),
            Err(problem) => applied.remarks.warn(problem),
        }
        Ok(applied)
    }

    /// Roles and tablespaces. What is there already is left as it is, unless it is to be replaced.
    fn globals(
        cx: &Context,
        prepared: &Prepared,
        input: &mut dyn Read,
        options: &RestoreOptions,
    ) -> Result<Remarks, SourceError> {
        let script = globals_script(input)?;
        let address = &prepared.address;
        let existing = block(cx, address.within("list the roles", existing_globals(address)))?;
        let mut kept = Vec::with_capacity(script.len());
        let mut remarks = Remarks::default();
        for line in script.split_inclusive(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(line);
            let mut words = text.trim_end().trim_end_matches(';').splitn(3, ' ');
            let (verb, object, rest) =
                (words.next(), words.next(), words.next().unwrap_or_default());
            let object = object.unwrap_or_default();
            let named =
                |name: &&String| rest == name.as_str() || rest.starts_with(&format!("{name} "));
            let found = existing
                .iter()
                .filter(|(kind, _)| kind == object)
                .map(|(_, name)| name)
                .find(named);
            match (verb, found) {
                (Some("CREATE"), Some(name)) => {
                    if !options.overwrite {
                        remarks.warn(format!(
                            "The {} {name} exists and was left as it is",
                            object.to_lowercase()
                        ));
                    }
                }
                (Some("ALTER"), Some(_)) if !options.overwrite => {}
                _ => kept.extend_from_slice(line),
            }
        }
        let (call, _password) = prepared.call(cx)?;
        let mut call = call
            .args(["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"])
            .args([dbname_argument(&prepared.server.database)])
            .explained_by(explain_restore);
        // A tablespace cannot be created in a transaction.
        if !kept.windows(18).any(|part| part == b"CREATE TABLESPACE ") {
            call = call.args(["--single-transaction"]);
        }
        call.feed(cx, &mut kept.as_slice())?;
        Ok(remarks)
    }
}

impl Prepared {
    fn call(&self, cx: &Context) -> Result<(Call, Option<MemoryFile>), SourceError> {
        self.address.call(
            cx,
            &self.client,
            format!("restore into the database `{}`", self.server.database),
        )
    }
}

fn globals_script(input: &mut dyn Read) -> Result<Vec<u8>, SourceError> {
    let mut script = Vec::new();
    let read =
        input.take(GLOBALS_LIMIT + 1).read_to_end(&mut script).map_err(SourceError::Stream)?;
    if read as u64 > GLOBALS_LIMIT {
        let limit = ByteSize(GLOBALS_LIMIT);
        return Err(SourceError::Unsuitable(format!(
            "The script of the roles is larger than {limit}: it is not one"
        )));
    }
    Ok(script)
}

/// What is restored of a dump, for `pg_restore`.
fn restore_args(options: &RestoreOptions) -> Vec<String> {
    let mut args = Vec::new();
    if options.no_owner {
        args.extend(["--no-owner".to_owned(), "--no-privileges".to_owned()]);
    }
    if options.scratch {
        args.extend(["--no-tablespaces".to_owned(), "--no-subscriptions".to_owned()]);
    }
    args
}

/// The roles and tablespaces of a server: `ROLE` or `TABLESPACE`, and the name as the server's
/// tools quote it.
async fn existing_globals(address: &Address) -> Result<HashSet<(String, String)>, SourceError> {
    let failed = |error: sqlx::Error| address.failed("list the roles", &error);
    let sql = "SELECT 'ROLE' AS kind, quote_ident(rolname)::text AS name FROM pg_roles \
        UNION ALL SELECT 'TABLESPACE', quote_ident(spcname)::text FROM pg_tablespace";
    let mut connection = address.connect().await?;
    let rows =
        sqlx::query(sql).persistent(false).fetch_all(&mut connection).await.map_err(failed)?;
    rows.iter()
        .map(|row| Ok((row.try_get("kind").map_err(failed)?, row.try_get("name").map_err(failed)?)))
        .collect()
}

/// Fails when the folder's file system has not the space for so many bytes.
fn refuse_without_space(folder: &Path, bytes: Option<u64>) -> Result<(), SourceError> {
    let failed = |error: rustix::io::Errno| SourceError::Io {
        attempt: "look for free space in",
        path: folder.display().to_string(),
        error: error.into(),
    };
    let state = rustix::fs::statvfs(folder).map_err(failed)?;
    let free = state.f_bavail.saturating_mul(state.f_frsize);
    match bytes {
        Some(bytes) if bytes > free => Err(SourceError::Unsuitable(format!(
            "A restore with several jobs needs {} in `{}`, which has {}: restore with one job, \
             which needs none, or name another \
             work folder",
            ByteSize(bytes),
            folder.display(),
            ByteSize(free)
        ))),
        _ => Ok(()),
    }
}

/// What to do about what `pg_restore` says in a drill on a server that is configured.
fn explain_rehearsal(said: &str) -> Option<String> {
    if said.contains(LOCKS) {
        let hint = "One transaction takes a lock for each table and index: raise \
            `max_locks_per_transaction` of the scratch server, or let the drill start a cluster \
            for itself, which has enough";
        return Some(hint.to_owned());
    }
    explain_restore(said)
}

/// The setting that the server names when one transaction takes more locks than it has.
const LOCKS: &str = "max_locks_per_transaction";

/// What to do about what `pg_restore` and `psql` say.
fn explain_restore(said: &str) -> Option<String> {
    let hints = [
        (
            "transaction_timeout",
            "The client is newer than the server: install the client of the server's major version",
        ),
        ("no password supplied", NO_PASSWORD),
        (
            "other objects depend on it",
            "Something in the target that is not in the dump needs what is replaced: use an empty \
             database",
        ),
        ("unsupported version (", "A newer client wrote the dump: install that one"),
        ("extension control file", "Install the extension on the target server"),
        ("is not available", "Install the extension on the target server"),
        ("end of file", "The stream ended too early: verify the snapshot"),
        ("must be owner", "Restore as the owner or a superuser, or pass `--no-owner`"),
        ("must be superuser", "Restore as a superuser, or pass `--no-owner`"),
        ("permission denied", "Restore as the owner of the database or a superuser"),
        (
            LOCKS,
            "One transaction takes a lock for each table and index: restore with `-j 2`, which has \
             no such transaction, or raise `max_locks_per_transaction` of the server",
        ),
    ];
    if said.contains("role \"") && said.contains("does not exist") {
        let hint = "Restore the roles first (`globals.sql`), or pass `--no-owner` so that \
            everything belongs to who restores";
        return Some(hint.to_owned());
    }
    hints.iter().find(|(part, _)| said.contains(part)).map(|(_, hint)| (*hint).to_owned())
}

impl Restorer for PostgresRestorer {
    fn restore(&self, job: RestoreJob<'_>, input: &mut dyn Read) -> Result<Restored, SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        if let Some(file) = file_in(target, &artifact.name)? {
            write_private(&file, input, options)?;
            return Ok(Restored { place: file.display().to_string(), ..Restored::default() });
        }
        let prepared = Self::prepare_database(cx, artifact, target, options)?;
        let mut remarks = Remarks::default();
        match artifact.kind {
            ArtifactKind::PgGlobals if options.no_owner => {
                std::io::copy(input, &mut std::io::sink()).map_err(SourceError::Stream)?;
                // As was asked for.
                remarks.note("The roles were not restored, since nothing is to belong to them");
            }
            _ if let Some(superuser) = &options.superuser => {
                remarks = Self::confined(cx, &prepared, artifact, input, superuser, options)?;
            }
            ArtifactKind::PgGlobals => remarks = Self::globals(cx, &prepared, input, options)?,
            _ => remarks = Self::database(cx, &prepared, artifact, input, options)?,
        }
        let mut statements = Vec::new();
        if artifact.kind == ArtifactKind::PgDump && !options.scratch {
            // Last: nobody connects to the database after this.
            let applied = Self::settings(cx, &prepared, artifact, options)?;
            remarks.extend(None, applied.remarks);
            statements = applied.left;
        }
        Ok(Restored { place: prepared.address.masked, remarks, files: None, statements })
    }

    fn prepare(&self, job: RestoreJob<'_>) -> Result<(), SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        match file_in(target, &artifact.name)? {
            Some(file) => refuse_occupied(&file, options),
            None => Self::prepare_database(cx, artifact, target, options).map(|_| ()),
        }
    }

    fn preview(&self, job: RestoreJob<'_>, streams: &dyn Streams) -> Result<Preview, SourceError> {
        self.prepare(job)?;
        let RestoreJob { cx, artifact, target, options } = job;
        if !options.overwrite
            || artifact.kind != ArtifactKind::PgDump
            || file_in(target, &artifact.name)?.is_some()
        {
            return Ok(Preview::default());
        }
        let Prepared { address, client, .. } =
            Self::prepare_database(cx, artifact, target, options)?;
        let mut input = streams.whole().map_err(SourceError::Stream)?;
        let args = restore_args(options);
        let planned = Replacement::plan(cx, (&address, &client), options, &args, &mut input)?;
        Ok(planned.preview(options, artifact.plain_bytes.unwrap_or_default()))
    }

    fn scratch(
        &self,
        cx: &Context,
        artifact: &RestoreArtifact,
        place: &ScratchPlace,
    ) -> Result<Box<dyn Scratch>, SourceError> {
        Ok(Box::new(ScratchDatabase::create(cx, artifact, place)?))
    }

    fn describe(&self, facts: &serde_json::Value) -> Option<String> {
        let text = |key: &str| facts.get(key).and_then(serde_json::Value::as_str);
        Some(format!("PostgreSQL {}, `{}`", text("server_version")?, text("database")?))
    }

    fn by_hand(&self, artifact: &RestoreArtifact) -> Vec<String> {
        match artifact.kind {
            ArtifactKind::PgGlobals => vec!["psql -X -d \"$DATABASE\"".to_owned()],
            _ => vec![
                "pg_restore --exit-on-error --single-transaction --no-owner -d \"$DATABASE\""
                    .to_owned(),
                SETTINGS_BY_HAND.to_owned(),
            ],
        }
    }
}
