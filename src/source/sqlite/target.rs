//! The file that a database is restored to.

use std::path::PathBuf;

use url::Url;

use super::super::{Context, RestoreArtifact, SourceError, Target};
use crate::model::DatabaseUrl;

/// The name that the file had, where it is a plain one: the facts may come from anyone who can
/// write to the storage.
pub(super) fn original_name(artifact: &RestoreArtifact) -> Option<String> {
    let name = artifact.facts.get("file")?.as_str()?;
    let plain =
        !matches!(name, "" | "." | "..") && name.len() <= 200 && !name.contains(['/', '\\']);
    (plain && !name.chars().any(char::is_control)).then(|| name.to_owned())
}

/// Where the database file goes.
pub(super) fn place(
    cx: &Context,
    artifact: &RestoreArtifact,
    target: &Target,
) -> Result<PathBuf, SourceError> {
    match target {
        Target::Folder(folder) => {
            Ok(folder
                .join(original_name(artifact).unwrap_or_else(|| format!("{}.sqlite", cx.name))))
        }
        Target::Database(address) => {
            let place = file_of(address).ok_or_else(|| {
                SourceError::Unsuitable(format!(
                    "`{address}` is not the address of an SQLite database: expected \
                     `sqlite:///path/of/the/file`, or \
                     `sqlite://file` for one in the current folder"
                ))
            })?;
            // Replacing a link would leave the database that it leads to.
            Ok(std::fs::canonicalize(&place).unwrap_or(place))
        }
        Target::Command(_) => Err(SourceError::Unsuitable(
            "An SQLite database is restored to a folder or to `sqlite:///path`, not to a command"
                .to_owned(),
        )),
    }
}

fn file_of(address: &DatabaseUrl) -> Option<PathBuf> {
    let url = address.expose();
    if url.scheme() != "sqlite" {
        return None;
    }
    // The path is decoded by the rules of `file` addresses. A host is the first part of a relative
    // path.
    let decoded = |path: &str| Url::parse(&format!("file:///{path}")).ok()?.to_file_path().ok();
    let relative = |path: &str| Some(decoded(path)?.strip_prefix("/").ok()?.to_owned());
    let path = match url.host_str() {
        Some(host) => relative(&format!("{host}{}", url.path()))?,
        None if url.cannot_be_a_base() => relative(url.path())?,
        None => decoded(url.path().trim_start_matches('/'))?,
    };
    path.file_name().is_some().then_some(path)
}
