//! A database file put back: written beside its place, checked there, and moved into place at once.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, fcntl_lock, renameat_with};
use rustix::io::Errno;
use sqlx::sqlite::SqliteConnectOptions;

use super::super::place::{are_same, hold, leftovers};
use super::super::scratch::{Scratch, ScratchPlace};
use super::super::{Context, RestoreArtifact, RestoreJob, Restored, Restorer, SourceError, Target};
use super::scratch::ScratchDatabase;
use super::target::{original_name, place};
use super::{
    BUSY_TIMEOUT, Fault, PrivateFile, SQLITE_ERROR, Session, free_bytes, primary_code, quoted,
    random_name,
};
use crate::model::{ByteSize, Remarks};

/// What SQLite keeps beside a database. One that is left over from another database would be played
/// into the restored one.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Messages of the integrity check that are shown.
const SHOWN_PROBLEMS: usize = 5;

/// The inverse.
pub struct SqliteRestorer;

impl Restorer for SqliteRestorer {
    fn restore(&self, job: RestoreJob<'_>, input: &mut dyn Read) -> Result<Restored, SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        self.prepare(job)?;
        let place = place(cx, artifact, target)?;
        let folder = parent(&place);
        let make = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        make.map_err(|error| io("create", folder, error))?;
        let name =
            place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        for left in leftovers(folder, |found| is_incomplete(&name, found)) {
            std::fs::remove_file(&left).map_err(|error| io("remove", &left, error))?;
        }
        // Dropped without having been moved, it removes itself.
        let mut file =
            PrivateFile::new(folder.join(format!(".{name}.restore-{}", random_name()?)))?;
        // Where there are no locks, nobody takes it for left behind either.
        let _ = hold(&file.file);
        receive(cx, input, &mut file)?;
        let mut restored = Restored { place: place.display().to_string(), ..Restored::default() };
        check(cx, artifact, &file.path, &mut restored.remarks)?;
        if options.overwrite {
            replace(&file, &place, &mut restored.remarks)?;
        } else {
            match publish(&file.path, &place) {
                // All that the interrupted restore had to do.
                Err(SourceError::NotEmpty(_))
                    if options.recorded.has_started()
                        && are_same(&file.path, &place).unwrap_or_default() => {}
                published => published?,
            }
        }
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| io("sync", folder, error))?;
        Ok(restored)
    }

    fn prepare(&self, job: RestoreJob<'_>) -> Result<(), SourceError> {
        let RestoreJob { cx, artifact, target, options } = job;
        let place = place(cx, artifact, target)?;
        if place.is_dir() {
            return Err(SourceError::Unsuitable(format!(
                "`{}` is a folder, and a database file cannot take its place",
                place.display()
            )));
        }
        if options.overwrite {
            refuse_in_use(&place)?;
        } else {
            let own = place.file_name().map(|name| name.to_string_lossy().into_owned());
            let own = own.unwrap_or_default();
            let of_ours = options.recorded.has_started().then(|| place.clone());
            if let Target::Folder(folder) = target {
                let left = leftovers(folder, |found| is_incomplete(&own, found));
                let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
                if entries.any(|entry| {
                    let path = entry.path();
                    !left.contains(&path) && of_ours.as_ref() != Some(&path)
                }) {
                    return Err(SourceError::NotEmpty(folder.display().to_string()));
                }
            }
            let all = std::iter::once(place.clone()).chain(companions(&place));
            let all = all.filter(|path| of_ours.as_ref() != Some(path));
            for path in all {
                // A dangling link is something too.
                if path.symlink_metadata().is_ok() {
                    return Err(SourceError::NotEmpty(path.display().to_string()));
                }
            }
        }
        if let Some(needed) = artifact.plain_bytes {
            let there =
                place.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
            let free = free_bytes(there)?;
            if free < needed {
                return Err(SourceError::Unsuitable(format!(
                    "`{}` has {} free, and the database needs {}",
                    there.display(),
                    ByteSize(free),
                    ByteSize(needed)
                )));
            }
        }
        Ok(())
    }

    fn scratch(
        &self,
        cx: &Context,
        _artifact: &RestoreArtifact,
        place: &ScratchPlace,
    ) -> Result<Box<dyn Scratch>, SourceError> {
        Ok(Box::new(ScratchDatabase::new(&cx.name, place)))
    }

    fn describe(&self, facts: &serde_json::Value) -> Option<String> {
        let text = |key: &str| facts.get(key).and_then(serde_json::Value::as_str);
        Some(format!("SQLite {}, `{}`", text("sqlite_version")?, text("file").unwrap_or_default()))
    }

    fn by_hand(&self, artifact: &RestoreArtifact) -> Vec<String> {
        let name = original_name(artifact).unwrap_or_else(|| artifact.name.clone());
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+=@%,".contains(c))
            && !name.starts_with('-');
        vec![if plain {
            format!("cat > {name}")
        } else {
            format!("cat > './{}'", name.replace('\'', "'\\''"))
        }]
    }
}

/// Whether this is the name of an incomplete file that becomes the database `name`.
fn is_incomplete(name: &str, found: &str) -> bool {
    let rest = found.strip_prefix('.').and_then(|found| found.strip_prefix(name));
    let random = rest.and_then(|rest| rest.strip_prefix(".restore-"));
    random.is_some_and(|random| {
        random.len() == 16 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

fn io(attempt: &'static str, path: &Path, error: std::io::Error) -> SourceError {
    SourceError::Io { attempt, path: path.display().to_string(), error }
}

/// The folder of `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn companions(path: &Path) -> impl Iterator<Item = PathBuf> {
    COMPANIONS.iter().map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// Refuses a database that another process has open: it would go on with the file that is gone, and
/// its log would be taken from it. In WAL mode every connection holds a lock on the file; in the
/// other modes only one that is in a transaction does, so this does not find all. Only locks of
/// other processes are seen, and those that this process has on the file are lost: a restore runs
/// in a process that does not dump.
fn refuse_in_use(place: &Path) -> Result<(), SourceError> {
    let Ok(old) = File::options().read(true).write(true).open(place) else { return Ok(()) };
    match fcntl_lock(&old, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Err(SourceError::Unsuitable(format!(
            "`{}` is in use. Stop the application that has it open, and restore then",
            place.display()
        ))),
        // The lock goes with the file.
        _ => Ok(()),
    }
}

/// Reads `input` to its end, and makes what it was durable.
fn receive(cx: &Context, input: &mut dyn Read, file: &mut PrivateFile) -> Result<(), SourceError> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        if cx.cancel.is_cancelled() {
            return Err(SourceError::Cancelled);
        }
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) if cx.cancel.is_cancelled() => return Err(SourceError::Cancelled),
            Err(error) => return Err(SourceError::Stream(error)),
        };
        let written = file.file.write_all(buffer.get(..count).unwrap_or_default());
        written.map_err(|error| io("write", &file.path, error))?;
    }
    file.file.sync_all().map_err(|error| io("sync", &file.path, error))
}

/// Lets SQLite look through all of the file, and compares the rows with what was counted at the
/// dump.
fn check(
    cx: &Context,
    artifact: &RestoreArtifact,
    path: &Path,
    remarks: &mut Remarks,
) -> Result<(), SourceError> {
    // Nobody else has the file, so no lock and nothing beside it is needed.
    let mut session =
        Session::open(cx, path, BUSY_TIMEOUT, SqliteConnectOptions::new().immutable(true))?;
    match session.try_texts("PRAGMA integrity_check(100)") {
        Ok(lines) if lines.iter().all(|line| line == "ok") => {}
        Ok(lines) => {
            let shown: Vec<_> = lines.iter().take(SHOWN_PROBLEMS).map(String::as_str).collect();
            return Err(SourceError::Damaged(format!(
                "The database arrived as it was backed up, but SQLite finds it damaged, so it was \
                 damaged before; nothing was \
                 replaced. If you must have it as it is, restore it by hand, as `backup show` \
                 prints. `PRAGMA integrity_check` says: {}",
                shown.join("; ")
            )));
        }
        // A collation or function that only its application has.
        Err(Fault::Sqlx(error)) if primary_code(&error) == Some(SQLITE_ERROR) => {
            remarks.warn(format!("SQLite could not check the restored database wholly: {error}"));
        }
        Err(error) => return Err(session.explain(error, "check the integrity")),
    }
    let counted = artifact
        .facts
        .get("tables")
        .and_then(serde_json::Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    for table in counted {
        let (Some(name), Some(rows)) = (
            table.get("name").and_then(serde_json::Value::as_str),
            table.get("rows").and_then(serde_json::Value::as_i64),
        ) else {
            continue;
        };
        let found = session.count(name).map_err(|error| {
            session.explain(error, &format!("count the rows of {}", quoted(name)))
        })?;
        if found != rows {
            return Err(SourceError::Damaged(format!(
                "The restored database has {found} rows in {}, and {rows} were backed up; nothing \
                 was replaced",
                quoted(name)
            )));
        }
    }
    Ok(())
}

/// Moves `from` to `to`, where nothing may be.
fn publish(from: &Path, to: &Path) -> Result<(), SourceError> {
    let moved = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system does not know it; a hard link refuses an existing target too. The old
        // name removes itself.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => std::fs::hard_link(from, to),
        other => other.map_err(Into::into),
    };
    moved.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => SourceError::NotEmpty(to.display().to_string()),
        _ => io("move the restored database to", to, error),
    })
}

/// Moves `file` to `place`, whatever is there, and gives it the owner and mode of what it replaces.
fn replace(file: &PrivateFile, place: &Path, remarks: &mut Remarks) -> Result<(), SourceError> {
    if let Ok(old) = std::fs::metadata(place) {
        let mode = std::fs::Permissions::from_mode(old.mode() & 0o777);
        let kept = std::os::unix::fs::fchown(&file.file, Some(old.uid()), Some(old.gid()))
            .and_then(|()| file.file.set_permissions(mode));
        if let Err(error) = kept {
            remarks.warn(format!(
                "The owner and mode of the old `{}` could not be kept: {error}",
                place.display()
            ));
        }
    }
    // Before the new file is in place: a crash between the two must not leave it beside the log of
    // the old one.
    for companion in companions(place) {
        match std::fs::remove_file(&companion) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("remove", &companion, error)),
        }
    }
    let folder = parent(place);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| io("sync", folder, error))?;
    std::fs::rename(&file.path, place)
        .map_err(|error| io("move the restored database to", place, error))
}
