//! Which copies were found damaged: such a mark is about the copy in one storage.

use super::{Marks, Standing, printable};
use crate::model::{Manifest, MarkRef, Name, Says};

impl Marks {
    /// The marks, not ended, that say that the copy in `storage` is damaged: each with the reason,
    /// the oldest first.
    fn damage_marks(
        &self,
        in_storage: &Name,
        manifest: &Manifest,
    ) -> Vec<(&MarkRef, &Standing, &str)> {
        let mut found: Vec<_> = self
            .of(&manifest.id)
            .filter_map(|(one, standing)| match &standing.mark.says {
                // Names of storages are of a configuration: another may have given the same one.
                Says::Damaged { storage, reason }
                    if standing.mark.strategy == manifest.strategy
                        && *storage == manifest.storage.name
                        && standing.storages.contains(in_storage) =>
                {
                    Some((one, standing, reason.as_str()))
                }
                _ => None,
            })
            .collect();
        found.sort_by_key(|(_, standing, _)| standing.mark.made);
        found
    }

    /// Why the copy in `storage` is damaged, where it was found so and has not been found sound
    /// since.
    pub fn damage(&self, storage: &Name, manifest: &Manifest) -> Option<String> {
        let (_, standing, reason) = self.damage_marks(storage, manifest).pop()?;
        let found = standing.mark.made.format("%Y-%m-%d %H:%M UTC");
        Some(format!("{} (found {found})", printable(reason)))
    }

    /// The marks that end when the copy is found sound.
    pub(in crate::engine) fn ends_when_sound(
        &self,
        storage: &Name,
        manifest: &Manifest,
    ) -> Vec<MarkRef> {
        let marks = self.damage_marks(storage, manifest);
        marks.into_iter().map(|(one, ..)| one.clone()).collect()
    }
}
