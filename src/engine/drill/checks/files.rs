//! The checks of restored files: those that a database names, and single ones.

use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat};
use rustix::io::Errno;
use serde_json::Value;

use super::{in_one_line, number, query_failed, shown, target};
use crate::archive::Pattern;
use crate::config::{FileCheck, Parses, ReferencesCheck};
use crate::engine::drill::targets::{Rehearsal, Targets};
use crate::model::{Check, CheckOutcome, Digest, Digester, TOLD_DIFFERENCES};
use crate::source::directory::{Who, open_beneath};
use crate::source::scratch::Row;

/// A file that is parsed or looked through may be no larger.
const LARGEST_FILE: u64 = 64 << 20;

pub(super) fn references(
    rehearsal: &Rehearsal,
    references: &ReferencesCheck,
    targets: &mut Targets,
) -> Check {
    let what = references.name.clone().unwrap_or_else(|| {
        format!(
            "files in `{}` that are named by: {}",
            references.files,
            in_one_line(&references.query)
        )
    });
    let check = Check::new("references", Some(&references.source), what);
    let files = match target(targets, &references.files, rehearsal) {
        Ok(target) => target.folder.clone(),
        Err(absent) => return absent.of(&references.files, check),
    };
    let Some(files) = files else {
        return check.ended(
            CheckOutcome::Inconclusive,
            format!("`{}` is no folder of files", references.files),
        );
    };
    let target = match target(targets, &references.source, rehearsal) {
        Ok(target) => target,
        Err(absent) => return absent.of(&references.source, check),
    };
    let owner = match owner(references.owner.as_ref()) {
        Ok(owner) => owner,
        Err(reason) => return check.ended(CheckOutcome::Inconclusive, reason),
    };
    let root = match openat(
        CWD,
        &files,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(root) => root,
        Err(error) => {
            return check
                .ended(CheckOutcome::Inconclusive, format!("`{}`: {error}", files.display()));
        }
    };
    let mut tally = Tally {
        root,
        references,
        owner,
        named: 0,
        absent: 0,
        wrong: 0,
        told: Vec::new(),
        buffer: vec![0; 256 << 10],
    };
    let cx = rehearsal.context(&references.source, &rehearsal.engine.cancel);
    let cancel = rehearsal.engine.cancel.clone();
    let asked =
        target.scratch.query(&cx, &references.query, references.timeout.duration(), &mut |row| {
            tally.take(&row);
            if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    if let Err(error) = asked {
        return query_failed(check, "files by name", &error);
    }
    if tally.named == 0 {
        return check.ended(CheckOutcome::Skipped, "the query names no file");
    }
    let found = match tally.absent {
        0 => format!("{}", tally.named - tally.wrong),
        absent => format!("{}, {absent} of them absent as they may be", tally.named - tally.wrong),
    };
    check
        .judged(tally.wrong == 0, format!("{} files as they are named", tally.named), found)
        .detailed(tally.told, tally.wrong)
}

/// The files that were looked for.
struct Tally<'a> {
    root: OwnedFd,
    references: &'a ReferencesCheck,
    owner: Option<u32>,
    named: u64,
    absent: u64,
    wrong: u64,
    told: Vec<String>,
    buffer: Vec<u8>,
}

impl Tally<'_> {
    fn take(&mut self, row: &Row) {
        self.named += 1;
        if let Err(problem) = self.look(row) {
            self.wrong += 1;
            if self.told.len() < TOLD_DIFFERENCES {
                self.told.push(problem);
            }
        }
    }

    fn look(&mut self, row: &Row) -> Result<(), String> {
        let named = match row.get("path") {
            Some(Value::String(path)) if !path.is_empty() => path,
            Some(Value::Null | Value::String(_)) => {
                return Err("a row names no file: its path is empty".to_owned());
            }
            Some(other) => return Err(format!("a row has the path {other}, which is no text")),
            None => return Err("the query has no column `path`".to_owned()),
        };
        let words = |problem: &str| format!("`{}` {problem}", named.escape_debug());
        let path = match &self.references.prefix {
            Some(prefix) => format!("{}/{named}", prefix.trim_end_matches('/')),
            None => named.clone(),
        };
        let path = path.trim_start_matches('/');
        if Path::new(path).components().any(|part| part == Component::ParentDir) {
            return Err(words("leads out of the folder"));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = open_beneath(self.root.as_fd(), path.as_bytes(), flags, ResolveFlags::empty());
        let file = match opened {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => {
                if may_be_absent(&self.references.may_be_absent, named) {
                    self.absent += 1;
                    return Ok(());
                }
                return Err(words("is missing"));
            }
            Err(Errno::XDEV | Errno::LOOP) => {
                return Err(words("is a link that leads out of the folder"));
            }
            Err(error) => return Err(words(&format!("cannot be read: {error}"))),
        };
        let metadata =
            file.metadata().map_err(|error| words(&format!("cannot be looked at: {error}")))?;
        if !metadata.is_file() {
            return Err(words("is no file"));
        }
        if self.references.not_empty && metadata.len() == 0 {
            return Err(words("is empty"));
        }
        if let Some(owner) = self.owner.filter(|owner| *owner != metadata.uid()) {
            return Err(words(&format!(
                "belongs to the user {}, and not to {owner}",
                metadata.uid()
            )));
        }
        match row.get("size") {
            None | Some(Value::Null) => {}
            Some(size) => {
                let wanted = number(size)
                    .ok_or_else(|| words(&format!("has the size {size}, which is no number")))?;
                if metadata.len() as f64 != wanted {
                    return Err(words(&format!(
                        "has {} bytes, and {} are named",
                        metadata.len(),
                        shown(size)
                    )));
                }
            }
        }
        match row.get("sha256") {
            None | Some(Value::Null) => Ok(()),
            Some(wanted) => {
                let text = wanted.as_str().unwrap_or_default().to_ascii_lowercase();
                let digits = text.trim_start_matches("\\x").trim_start_matches("sha256:");
                let wanted: Digest = format!("sha256:{digits}")
                    .parse()
                    .map_err(|_| words(&format!("has the digest {wanted}, which is no SHA-256")))?;
                let found = digest(&file, &mut self.buffer)
                    .map_err(|error| words(&format!("cannot be read: {error}")))?;
                if found == wanted {
                    Ok(())
                } else {
                    Err(words(&format!("has the digest {found}, and {wanted} is named")))
                }
            }
        }
    }
}

/// The number of the user that files must belong to, where root restored them.
fn owner(named: Option<&Who>) -> Result<Option<u32>, String> {
    let Some(who) = named.filter(|_| rustix::process::geteuid().is_root()) else {
        return Ok(None);
    };
    let unknown = || format!("this machine has no user `{who}`: give its number");
    who.user_id().map(Some).ok_or_else(unknown)
}

fn may_be_absent(patterns: &[Pattern], path: &str) -> bool {
    patterns.iter().any(|pattern| pattern.covers(path.as_bytes()))
}

fn digest(mut file: &std::fs::File, buffer: &mut [u8]) -> std::io::Result<Digest> {
    use std::io::Read as _;
    let mut digester = Digester::new();
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok(digester.finish()),
            Ok(count) => digester.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn file(rehearsal: &Rehearsal, file: &FileCheck, targets: &mut Targets) -> Check {
    use std::io::Read as _;
    let check = Check::new(
        "file",
        Some(&file.source),
        file.name.clone().unwrap_or_else(|| format!("`{}`", file.path)),
    );
    let mut expected = vec!["a file".to_owned()];
    expected.extend(file.not_empty.then(|| "not empty".to_owned()));
    expected.extend(file.owner.as_ref().map(|owner| format!("of the user {owner}")));
    expected.extend(file.parses.map(|parses| match parses {
        Parses::Json => "that is JSON".to_owned(),
        Parses::Toml => "that is TOML".to_owned(),
    }));
    expected.extend(file.contains.as_ref().map(|text| format!("with `{text}` in it")));
    let expected = expected.join(", ");
    let target = match target(targets, &file.source, rehearsal) {
        Ok(target) => target,
        Err(absent) => return absent.of(&file.source, check),
    };
    let Some(folder) = &target.folder else {
        return check
            .ended(CheckOutcome::Inconclusive, format!("`{}` is no folder of files", file.source));
    };
    let owner = match owner(file.owner.as_ref()) {
        Ok(owner) => owner,
        Err(reason) => return check.ended(CheckOutcome::Inconclusive, reason),
    };
    let root =
        openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = file.path.trim_start_matches('/').as_bytes();
    let opened =
        root.and_then(|root| open_beneath(root.as_fd(), path, flags, ResolveFlags::empty()));
    let opened = match opened {
        Ok(opened) => std::fs::File::from(opened),
        Err(Errno::NOENT | Errno::NOTDIR) => {
            return check.judged(false, expected, "nothing of that name");
        }
        Err(Errno::XDEV | Errno::LOOP) => {
            return check.judged(false, expected, "a link that leads out of the folder");
        }
        Err(error) => return check.judged(false, expected, error.to_string()),
    };
    let (size, uid) = match opened.metadata() {
        Ok(metadata) if metadata.is_file() => (metadata.len(), metadata.uid()),
        Ok(_) => return check.judged(false, expected, "something that is no file"),
        Err(error) => return check.ended(CheckOutcome::Inconclusive, error.to_string()),
    };
    if file.not_empty && size == 0 {
        return check.judged(false, expected, "an empty file");
    }
    if owner.is_some_and(|owner| owner != uid) {
        return check.judged(false, expected, format!("a file of the user {uid}"));
    }
    let bytes = format!("{size} bytes");
    if file.parses.is_none() && file.contains.is_none() {
        return check.judged(true, expected, bytes);
    }
    let mut body = Vec::new();
    match opened.take(LARGEST_FILE + 1).read_to_end(&mut body) {
        Ok(_) if body.len() as u64 > LARGEST_FILE => {
            return check.ended(CheckOutcome::Inconclusive, "it is too large to be looked through");
        }
        Ok(_) => {}
        Err(error) => return check.ended(CheckOutcome::Inconclusive, error.to_string()),
    }
    let parsed = match file.parses {
        None => Ok(()),
        Some(Parses::Json) => serde_json::from_slice::<serde::de::IgnoredAny>(&body)
            .map(drop)
            .map_err(|error| format!("not JSON: {error}")),
        Some(Parses::Toml) => std::str::from_utf8(&body)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                text.parse::<toml::Table>().map(drop).map_err(|error| error.message().to_owned())
            })
            .map_err(|error| format!("not TOML: {error}")),
    };
    if let Err(problem) = parsed {
        return check.judged(false, expected, problem);
    }
    if let Some(text) = &file.contains
        && !body.windows(text.len().max(1)).any(|part| part == text.as_bytes())
        && !text.is_empty()
    {
        return check.judged(false, expected, format!("{bytes}, without it"));
    }
    check.judged(true, expected, bytes)
}
