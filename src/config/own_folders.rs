//! The folders that the program itself writes to.

use std::path::Path;

use super::Instance;
use crate::source::OwnFolder;

impl Instance {
    /// The storages on this machine, `state_dir`, `work_dir` and those of the drills. A source that
    /// one of them lies in leaves its contents out.
    pub fn own_folders(&self) -> Vec<OwnFolder> {
        let own = |what: String, path: &Path| OwnFolder { what, path: path.to_owned() };
        let storages = self.storages.iter().filter_map(|(name, storage)| {
            Some(own(format!("the storage `{name}`"), storage.folder()?))
        });
        let drills = self.strategies.iter().filter_map(|(name, strategy)| {
            let folder = strategy.drill.work_dir.as_deref()?;
            Some(own(format!("the `work_dir` of the drill of `{name}`"), folder))
        });
        storages
            .chain([
                own("`state_dir`".to_owned(), &self.state_dir),
                own("`work_dir`".to_owned(), &self.work_dir),
            ])
            .chain(drills)
            .collect()
    }
}
