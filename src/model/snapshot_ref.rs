//! The place of a snapshot in a storage.

use std::fmt;

use super::layout::MANIFEST_KEY;
use super::{Name, SnapshotId};

/// A snapshot by instance, strategy and id. Displayed as `instance/strategy/id`; `docs/format.md`
/// has the layout of its folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotRef {
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
}

impl SnapshotRef {
    /// The snapshot whose folder `key` lies in, and the rest of the key. None for a key that is not
    /// directly in a snapshot's folder.
    pub fn of_key(key: &str) -> Option<(Self, &str)> {
        let mut parts = key.split('/');
        let instance = parts.next()?.parse().ok()?;
        let strategy = parts.next()?.parse().ok()?;
        let id = parts.next()?.parse().ok()?;
        let name = parts.next()?;
        parts.next().is_none().then_some((Self { instance, strategy, id }, name))
    }

    /// Its folder, ending in `/`.
    pub fn folder(&self) -> String {
        format!("{self}/")
    }

    /// The key of `name` in its folder.
    pub fn key(&self, name: &str) -> String {
        format!("{self}/{name}")
    }

    /// The key of its manifest.
    pub fn manifest_key(&self) -> String {
        self.key(MANIFEST_KEY)
    }

    /// The folder of a strategy's snapshots, ending in `/`.
    pub fn strategy_folder(instance: &Name, strategy: &Name) -> String {
        format!("{instance}/{strategy}/")
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.instance, self.strategy, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::SnapshotRef;
    use crate::model::MANIFEST_KEY;

    #[test]
    fn only_a_key_directly_in_the_folder_belongs() {
        let key = "ella/daily/20261121T013000Z-7f3a9c/manifest.json";
        let (snapshot, name) = SnapshotRef::of_key(key).unwrap();
        assert_eq!((snapshot.manifest_key().as_str(), name), (key, MANIFEST_KEY));
        for key in [
            "manifest.json",
            "ella/daily/manifest.json",
            "ella/daily/20261121T013000Z-7f3a9c",
            "ella/daily/20261121T013000Z-7f3a9c/a/manifest.json",
            "ella/daily/20261121T013000Z-7f3a9/manifest.json",
            "Ella/daily/20261121T013000Z-7f3a9c/manifest.json",
        ] {
            assert!(SnapshotRef::of_key(key).is_none(), "{key}");
        }
    }
}
