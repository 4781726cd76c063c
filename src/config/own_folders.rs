//! The folders that the program itself writes to.

use std::path::Path;

use super::Instance;
use crate::model::Name;
use crate::source::OwnFolder;

impl Instance {
    /// The storages on this machine, `state_dir`, `work_dir` and those of the drills, of this
    /// instance and of others in the same configuration. A source that one of them lies in leaves
    /// its contents out.
    pub fn own_folders(&self) -> Vec<OwnFolder> {
        [self.folders(), self.neighbours.clone()].concat()
    }

    fn folders(&self) -> Vec<OwnFolder> {
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

/// Tells each instance of the folders of the others.
pub(super) fn introduce(instances: &mut [Instance]) {
    let all: Vec<(Name, Vec<OwnFolder>)> =
        instances.iter().map(|instance| (instance.name.clone(), instance.folders())).collect();
    for instance in instances {
        let others = all.iter().filter(|(name, _)| *name != instance.name);
        let named = |(name, folders): &(Name, Vec<OwnFolder>)| {
            let of = |folder: &OwnFolder| OwnFolder {
                what: format!("{} of the instance `{name}`", folder.what),
                path: folder.path.clone(),
            };
            folders.iter().map(of).collect::<Vec<_>>()
        };
        instance.neighbours = others.flat_map(named).collect();
    }
}
