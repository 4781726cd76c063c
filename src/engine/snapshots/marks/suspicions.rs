//! Which snapshots are suspect: they have much less than the last good one.

use std::collections::BTreeMap;

use futures::future::join_all;

use super::{Marks, ReadMark, Standing};
use crate::catalog::{Catalog, CatalogError};
use crate::engine::context::OpenStorage;
use crate::model::{Digest, Mark, MarkRef, Name, Says, SnapshotId, SnapshotRef, Suspector};

impl Marks {
    /// The snapshots of a strategy that a run or a drill found suspect, and nobody has released.
    pub fn suspects(&self, strategy: &Name) -> Vec<&SnapshotId> {
        self.marks.keys().filter(|id| self.is_suspect(strategy, id)).collect()
    }

    /// Whether a run or a drill found the snapshot suspect, and nobody has released it.
    pub fn is_suspect(&self, strategy: &Name, id: &SnapshotId) -> bool {
        let mut of_it = self.of(id).map(|(_, standing)| &standing.mark);
        let is_suspect = |mark: &Mark| match mark.says {
            Says::Suspect { by: Suspector::Run, .. } => !self.uncommitted.contains(id),
            Says::Suspect { .. } => true,
            _ => false,
        };
        of_it.any(|mark| mark.strategy == *strategy && is_suspect(mark))
            || self.unmarked(strategy, id).next().is_some()
    }

    /// Whether a run or a drill found the snapshot suspect, and somebody has released it since.
    pub fn is_released(&self, strategy: &Name, id: &SnapshotId) -> bool {
        let mut all = self.marks.get(id).into_iter().flat_map(BTreeMap::values);
        let was_suspect = all.any(|Standing { mark, .. }| {
            mark.strategy == *strategy && matches!(mark.says, Says::Suspect { .. })
        }) || self.suspicions(strategy, id).next().is_some();
        was_suspect && !self.is_suspect(strategy, id)
    }

    /// Takes no account of what runs said of snapshots that none of `storages` has: they said it
    /// before the commit, and never came to that.
    pub(super) async fn pass_over_uncommitted(&mut self, storages: &[OpenStorage]) {
        let by_run: Vec<SnapshotRef> = self
            .marks
            .keys()
            .flat_map(|id| self.of(id))
            .map(|(_, standing)| &standing.mark)
            .filter(|mark| matches!(mark.says, Says::Suspect { by: Suspector::Run, .. }))
            .map(Mark::snapshot_ref)
            .collect();
        for of in by_run {
            if !self.unlisted.is_empty() {
                break;
            }
            let key = of.manifest_key();
            let looks = join_all(storages.iter().map(|open| open.storage.stat(&key))).await;
            if looks.into_iter().all(|found| found.is_err_and(|error| error.is_not_found())) {
                self.uncommitted.insert(of.id);
            }
        }
    }

    /// What is known of the marks of `instance` in `storages`, each given by its name and place,
    /// without asking these.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub(in crate::engine) async fn known(
        catalog: &Catalog,
        instance: &Name,
        storages: impl Iterator<Item = (&Name, String)>,
    ) -> Result<Self, CatalogError> {
        let mut marks = Self::default();
        let folder = Mark::folder(instance);
        for (name, place) in storages {
            for cached in catalog.marks(&place).await? {
                if cached.key.starts_with(&folder) {
                    let body = Ok(cached.body);
                    let read = ReadMark { key: cached.key, body, irregular: false };
                    marks.take(name, instance, read);
                }
            }
        }
        Ok(marks)
    }

    /// The marks of drills that found the snapshot suspect.
    fn suspicions(&self, strategy: &Name, id: &SnapshotId) -> impl Iterator<Item = &Standing> {
        let of_it = self.marks.get(id).into_iter().flat_map(BTreeMap::values);
        of_it.filter(move |Standing { mark, .. }| {
            mark.strategy == *strategy
                && matches!(&mark.says, Says::Drill { evidence: Some(evidence), .. }
                    if evidence.suspect)
        })
    }

    /// The suspicions that drills did not come to mark, since they died: each as it would have
    /// been, with the mark of its drill. In format 1 a suspicion was released by deleting it, so
    /// there it is not known.
    pub(super) fn unmarked(
        &self,
        strategy: &Name,
        id: &SnapshotId,
    ) -> impl Iterator<Item = (MarkRef, &Standing)> {
        let of_it = self.marks.get(id);
        self.suspicions(strategy, id).filter(|one| one.mark.mark_id.is_some()).filter_map(
            move |standing| {
                let mark = standing.mark.suspicion();
                let folder = Mark::folder(&mark.instance);
                let key = mark.key().strip_prefix(&folder)?.to_owned();
                let is_marked = of_it.is_some_and(|of_it| of_it.keys().any(|one| one.key == key))
                    || self.ended.iter().any(|one| one.key == key);
                let found = MarkRef { key, digest: Digest::of(&mark.to_bytes()) };
                (!is_marked).then_some((found, standing))
            },
        )
    }
}
