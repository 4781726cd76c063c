//! What stands in a storage where the format has a file or a folder, and is none: a link, a named
//! pipe, a folder in the place of a file. A listing that passed over it would show less than there
//! is, and something could be deleted because of it.

use crate::model::{Irregular, MANIFEST_KEY, MARKS_FOLDER, Name, SnapshotId, SnapshotRef};
use crate::storage::Object;

/// What a listed object is, by the layout of a storage.
pub(in crate::engine) enum Listed<'a> {
    /// An object of a snapshot, under that name in its folder.
    Object(SnapshotRef, &'a str),
    /// Something in the place of a snapshot's folder or manifest, and what is wrong.
    NoSnapshot(SnapshotRef, String),
    /// Something that hides what is stored, and what is wrong.
    Unexpected(String),
    /// Nothing of the format, or in order.
    Other,
}

impl<'a> Listed<'a> {
    /// What `object` is, of which the marks are read elsewhere.
    pub(in crate::engine) fn of(object: &'a Object) -> Self {
        let (key, is_folder) = match object.key.strip_suffix('/') {
            Some(key) => (key, true),
            None => (object.key.as_str(), false),
        };
        let found = match object.irregular {
            Some(kind) => kind.to_string(),
            None => "a file".to_owned(),
        };
        let mut names = key.splitn(5, '/');
        let mut next = || names.next();
        let Some(instance) = next().and_then(|name| name.parse::<Name>().ok()) else {
            return Self::Other;
        };
        let Some(second) = next() else {
            // The folder of a storage may hold other things; only a link may hide an instance.
            return if object.irregular == Some(Irregular::Link) {
                Self::Unexpected(format!("`{key}` is {found}, not the folder of an instance"))
            } else {
                Self::Other
            };
        };
        if second == MARKS_FOLDER {
            return Self::Other;
        }
        let Ok(strategy) = second.parse::<Name>() else { return Self::Other };
        let Some(third) = next() else {
            return if is_folder {
                Self::Other
            } else {
                Self::Unexpected(format!("`{key}` is {found}, not the folder of a strategy"))
            };
        };
        let Ok(id) = third.parse::<SnapshotId>() else {
            // Hidden names are listed only where one of them is no file.
            if !third.starts_with('.') {
                return Self::Other;
            }
            let found = if next().is_some() { "a folder" } else { &found };
            let lock = SnapshotRef::strategy_folder(&instance, &strategy) + third;
            return Self::Unexpected(format!("`{lock}`: it is {found}, not a file"));
        };
        let of = SnapshotRef { instance, strategy, id };
        let Some(name) = next() else {
            return if is_folder {
                Self::Other
            } else {
                Self::NoSnapshot(of, format!("the snapshot's folder is {found}"))
            };
        };
        let is_nested = next().is_some();
        if object.irregular.is_none() && !is_nested {
            return Self::Object(of, name);
        }
        let found = if is_nested { "a folder" } else { &found };
        let problem = format!("it is {found}, not a file");
        if name == MANIFEST_KEY {
            Self::NoSnapshot(of, problem)
        } else {
            Self::Unexpected(format!("`{}`: {problem}", of.key(name)))
        }
    }
}

/// What is wrong with something that was listed in `folder`, that of an instance's marks, if it can
/// be no mark.
pub(in crate::engine) fn no_mark(folder: &str, object: &Object) -> Option<String> {
    let below = object.key.strip_prefix(folder).unwrap_or(&object.key);
    let mut names = below.trim_end_matches('/').split('/');
    let is_of_snapshot = names.next().is_some_and(|id| id.parse::<SnapshotId>().is_ok());
    let deeper = names.count();
    match object.irregular {
        // The folder of a snapshot's marks, with none in it.
        Some(Irregular::Folder) if is_of_snapshot && deeper == 0 => None,
        Some(kind) => Some(format!("it is {kind}, not the file of a mark")),
        None if deeper > usize::from(is_of_snapshot) => {
            Some("it lies in a folder where the file of a mark should be".to_owned())
        }
        None => None,
    }
}
