//! Paths as a configuration file has them.

use std::path::{Component, Path, PathBuf};

/// `path`, counted from the folder `base`, which must not contain symbolic links: then its `..` at
/// the beginning can be taken away as text, so that people see `/srv/backups` and not
/// `/srv/strategies/../backups`. A `..` further on stays: what is before it may be a link.
pub fn counted_from(base: &Path, path: &Path) -> PathBuf {
    let mut joined = base.to_owned();
    let mut leading = true;
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if leading => {
                joined.pop();
            }
            other => {
                leading = false;
                joined.push(other);
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::counted_from;
    use std::path::Path;

    #[test]
    fn only_what_cannot_lead_through_a_link_is_shortened() {
        for (path, expected) in [
            ("backups", "/srv/strategies/backups"),
            ("./backups/", "/srv/strategies/backups"),
            ("../backups", "/srv/backups"),
            ("../../../../backups", "/backups"),
            ("..", "/srv"),
            ("a/../b", "/srv/strategies/a/../b"),
            ("/elsewhere/../b", "/elsewhere/../b"),
        ] {
            assert_eq!(
                counted_from(Path::new("/srv/strategies"), Path::new(path)),
                Path::new(expected),
                "{path}"
            );
        }
    }
}
