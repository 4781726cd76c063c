//! Which of the installed clients fits a server: its own major where that is here, else the nearest
//! newer, never an older.
//!
//! The newest is not always the best: since 17 what `pg_dump` writes contains settings that older
//! servers refuse.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::source::process::{Call, is_executable};
use crate::source::{Context, SourceError};

/// Where distributions keep the clients of each major: a folder of folders, and what is between
/// those and the tools.
const FOLDERS: [(&str, &str); 2] = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];
/// A tool that does not even tell its version within this time is of no use.
const VERSION_TIMEOUT: Duration = Duration::from_secs(20);

/// A major version. Before 10 it had two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Major(u32, u32);

impl Major {
    /// The first whose restores set `transaction_timeout`.
    pub(super) const WITH_TRANSACTION_TIMEOUT: Self = Self(17, 0);
    /// Older than any that is dumped.
    pub(super) const OLDEST: Self = Self(9, 0);

    /// Of `server_version_num`: 150004 is 15, 90624 is 9.6.
    pub(super) fn of_number(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        if number >= 100_000 {
            Self(number / 10_000, 0)
        } else {
            Self(number / 10_000, number / 100 % 100)
        }
    }

    /// Of a version in words: `15.20 (Debian 15.20-0+deb12u1)`, `18beta1`.
    pub(super) fn of_text(text: &str) -> Option<Self> {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        let first = numbers.next()?.ok()?;
        let second = if first >= 10 { 0 } else { numbers.next().and_then(Result::ok).unwrap_or(0) };
        Some(Self(first, second))
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 10 { write!(f, "{}", self.0) } else { write!(f, "{}.{}", self.0, self.1) }
    }
}

/// An installed tool.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) folder: PathBuf,
    tool: &'static str,
    pub(super) major: Major,
    /// The whole version: `15.20`.
    pub(super) version: String,
}

impl Client {
    /// The client's `tool` for a server of `major`: of the folder, if one is configured, else of
    /// what is installed.
    ///
    /// # Errors
    /// When none is suitable; the error says which package is needed, and what was found.
    pub(super) fn choose(
        cx: &Context,
        folder: Option<&Path>,
        tool: &'static str,
        major: Major,
    ) -> Result<Self, SourceError> {
        Self::choose_of(cx, folder, tool, major, "client", "client_dir")
    }

    /// As [`Client::choose`], of the server's own binaries.
    ///
    /// # Errors
    /// When none is suitable.
    pub(super) fn choose_server(
        cx: &Context,
        folder: Option<&Path>,
        major: Major,
    ) -> Result<Self, SourceError> {
        Self::choose_of(cx, folder, "initdb", major, "server", "server_dir")
    }

    fn choose_of(
        cx: &Context,
        folder: Option<&Path>,
        tool: &'static str,
        major: Major,
        part: &str,
        setting: &str,
    ) -> Result<Self, SourceError> {
        let mut found = Vec::new();
        let mut broken = Vec::new();
        for folder in folder.map_or_else(|| installed(cx), |folder| vec![folder.to_owned()]) {
            if !is_executable(&folder.join(tool)) {
                continue;
            }
            match Self::examine(cx, folder, tool) {
                Ok(client) => found.push(client),
                Err(SourceError::Cancelled) => return Err(SourceError::Cancelled),
                Err(error) => broken.push(error.to_string()),
            }
        }
        // Of several with the same major, the first found.
        if let Some(client) =
            found.iter().filter(|client| client.major >= major).min_by_key(|client| client.major)
        {
            return Ok(client.clone());
        }
        let mut seen: Vec<String> = found
            .iter()
            .map(|client| format!("{} in `{}`", client.version, client.folder.display()))
            .collect();
        seen.extend(broken);
        let seen = if seen.is_empty() {
            "none was found".to_owned()
        } else {
            format!("found: {}", seen.join(", "))
        };
        let place = folder.map_or_else(String::new, |folder| {
            format!(" into `{}`, or correct `{setting}`", folder.display())
        });
        let package = if part == "client" {
            format!("postgresql-client-{major}")
        } else {
            format!("postgresql-{major}")
        };
        Err(SourceError::Unsuitable(format!(
            "No `{tool}` is new enough for PostgreSQL {major}: install `{package}`{place} ({seen})"
        )))
    }

    /// The same client's other tool.
    pub(super) fn sibling(&self, tool: &'static str) -> Self {
        Self { tool, ..self.clone() }
    }

    /// Its path.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.join(self.tool)
    }

    fn examine(cx: &Context, folder: PathBuf, tool: &'static str) -> Result<Self, SourceError> {
        let file = folder.join(tool);
        let said = Call::new(cx, &file, "ask for a version")
            .args(["--version"])
            .silent_for(Some(VERSION_TIMEOUT))
            .capture(cx, 4096)?;
        // `pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`
        let version = said.split_once(") ").and_then(|(_, rest)| rest.split_whitespace().next());
        match version.and_then(|version| Some((version.to_owned(), Major::of_text(version)?))) {
            Some((version, major)) => Ok(Self { folder, tool, major, version }),
            None => Err(SourceError::Unsuitable(format!(
                "`{}` does not tell its version",
                file.display()
            ))),
        }
    }
}

/// The folders that may have a client.
fn installed(cx: &Context) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, prefix) in FOLDERS {
        let entries = std::fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok);
        let named = entries.filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
        });
        folders.extend(named.map(|entry| entry.path().join("bin")));
    }
    folders.sort();
    // Debian's wrapper chooses by rules of its own; what it would choose from is in the list
    // already.
    let wrapped = |folder: &Path| {
        let target = folder.join("pg_dump").canonicalize();
        target.is_ok_and(|target| target.file_name() == Some(OsStr::new("pg_wrapper")))
    };
    folders.extend(cx.environment.search_path().into_iter().filter(|folder| !wrapped(folder)));
    folders
}

#[cfg(test)]
mod tests {
    use super::Major;

    #[test]
    fn majors_have_one_part_since_10() {
        for (number, text, shown) in [
            (150_004, "15.4", "15"),
            (90_624, "9.6.24", "9.6"),
            (180_000, "18beta1", "18"),
            (100_023, "10.23", "10"),
        ] {
            assert_eq!(Major::of_text(text), Some(Major::of_number(number)));
            assert_eq!(Major::of_number(number).to_string(), shown);
        }
        assert!(Major::of_number(90_624) < Major::of_number(100_000));
        assert_eq!(Major::of_text("devel"), None);
    }
}
