//! The snapshot that is drilled: found, and still there at the end.

use super::Drill;
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::EngineError;
use crate::engine::snapshots::decisions::marks_for;
use crate::engine::snapshots::documents::{LARGEST_MANIFEST, read_document};
use crate::engine::snapshots::find::{find, future_of, suspects_of};
use crate::engine::snapshots::list::{BadManifest, Listing, Selection, Snapshot, list_one};
use crate::model::{Check, CheckOutcome, Completeness, MANIFEST_KEY, Manifest, Name, SnapshotId};
use crate::pipeline::Step;
use crate::report::DrilledSnapshot;

/// The snapshot that a drill is about, in the storage that it reads.
pub(in crate::engine) struct Subject {
    pub(super) storage: OpenStorage,
    pub(super) folder: String,
    pub(super) manifest: Manifest,
    /// What else there is of the strategy in the storage.
    pub(super) others: Vec<Snapshot>,
}

impl Drill<'_> {
    /// The snapshot that is meant. None when its manifest is bad: then that is in the report.
    pub(super) async fn find(&mut self, engine: &Engine) -> Result<Option<Subject>, EngineError> {
        let name = self.report.storage.clone();
        let config = self.instance.storages.get(&name).ok_or_else(|| {
            let known: Vec<&str> = self.instance.storages.keys().map(Name::as_str).collect();
            EngineError::Request(format!(
                "There is no storage `{name}` in the configuration; there is {}",
                known.join(", ")
            ))
        })?;
        let mut open = OpenStorage::open(&name, config, &engine.cancel).await?;
        open.watch = Some(self.watch.clone());
        self.report.address = open.storage.address();
        self.watch.turn(Step::Fetch);
        let selection = Selection {
            instance: Some(self.instance.name.clone()),
            strategy: Some(self.strategy.name.clone()),
        };
        let mut snapshots = list_one(engine, &open, &selection)
            .await
            .map_err(|error| EngineError::storage(&name, error))?
            .snapshots;
        let marks = marks_for(engine, self.instance, self.strategy, &open).await;
        for one in &mut snapshots {
            one.is_suspect = marks.is_suspect(&one.strategy, &one.id);
            one.damage = one.damage_by(&marks);
        }
        let id = match choose(&snapshots, &self.request.snapshot) {
            Ok(id) => id,
            Err(error) => {
                return match self.without_manifest(&open).await? {
                    Some(id) => {
                        self.bad_manifest(
                            &id,
                            "it is not there, and artifacts of the snapshot \
                            are: it was deleted, or its run never committed it",
                        );
                        Ok(None)
                    }
                    None => Err(error),
                };
            }
        };
        self.copy = snapshots.iter().find(|one| one.id == id).cloned();
        let folder = format!("{}/{}/{id}/", self.instance.name, self.strategy.name);
        // The one that is stored: what the catalog remembers of it proves nothing.
        let key = format!("{folder}{MANIFEST_KEY}");
        let manifest = match read_document(open.storage.as_ref(), &key, LARGEST_MANIFEST).await {
            Ok(body) => Manifest::from_bytes(&body, &self.instance.name, &self.strategy.name, &id)
                .map_err(BadManifest::from),
            Err(error) if error.is_about_reaching() => {
                return Err(EngineError::storage(&name, error));
            }
            Err(error) => Err(BadManifest::of(&error)),
        };
        let manifest = match manifest {
            Ok(manifest) => manifest,
            // Nothing is known against it.
            Err(bad) if !bad.is_damage() => return Err(bad.error_in(&id, &name)),
            Err(bad) => {
                self.bad_manifest(&id, &bad.problem);
                return Ok(None);
            }
        };
        self.report.snapshot = Some(DrilledSnapshot {
            id: id.clone(),
            taken: manifest.started,
            completeness: Some(manifest.completeness),
            program: Some(manifest.program.clone()),
            encrypted: manifest.is_encrypted(),
            stored_bytes: manifest.stored_bytes(),
            plain_bytes: None,
        });
        let check = Check::new("manifest", None, "manifest, by its own digest and place");
        self.report.checks.push(check.judged(true, format!("of {id}"), "as written"));
        let words = |completeness| match completeness {
            Completeness::Whole => "whole",
            Completeness::Partial => "partial: content is missing",
        };
        let check = Check::new("completeness", None, "completeness, by the manifest");
        self.report
            .checks
            .push(check.compared(words(Completeness::Whole), words(manifest.completeness)));
        Ok(Some(Subject { storage: open, folder, manifest, others: snapshots }))
    }

    /// Whoever prunes elsewhere does not know of this drill. What was deleted meanwhile is not bad.
    pub(super) async fn ensure_still_there(
        &mut self,
        subject: &Subject,
    ) -> Result<(), EngineError> {
        let failed = |check: &&mut Check| check.outcome == CheckOutcome::Failed;
        let manifest = format!("{}{MANIFEST_KEY}", subject.folder);
        if !self.report.checks.iter().any(|check| check.outcome == CheckOutcome::Failed)
            || !matches!(
                subject.storage.storage.stat(&manifest).await,
                Err(error) if error.is_not_found()
            )
        {
            return Ok(());
        }
        for check in self.report.checks.iter_mut().filter(failed) {
            check.outcome = CheckOutcome::Inconclusive;
        }
        Err(EngineError::Undrilled("it was deleted while it was drilled".to_owned()))
    }

    pub(super) fn bad_manifest(&mut self, id: &SnapshotId, problem: &str) {
        self.report.snapshot = Some(DrilledSnapshot {
            id: id.clone(),
            taken: id.time(),
            completeness: None,
            program: None,
            encrypted: false,
            stored_bytes: 0,
            plain_bytes: None,
        });
        let check = Check::new("manifest", None, "`manifest.json`");
        self.report.checks.push(check.judged(false, format!("the manifest of {id}"), problem));
    }

    /// The snapshot that is asked for by its whole id, when the storage has artifacts of it and no
    /// manifest.
    pub(super) async fn without_manifest(
        &self,
        open: &OpenStorage,
    ) -> Result<Option<SnapshotId>, EngineError> {
        use futures::StreamExt as _;
        let Ok(id) = self.request.snapshot.parse::<SnapshotId>() else { return Ok(None) };
        let folder = format!("{}/{}/{id}/", self.instance.name, self.strategy.name);
        let mut objects = open.storage.list(&folder);
        match objects.next().await {
            None => Ok(None),
            Some(Ok(_)) => Ok(Some(id)),
            Some(Err(error)) => Err(EngineError::storage(&open.name, error)),
        }
    }
}

/// The snapshot that `wanted` means. `latest` is the newest that is not known to be partial, nor
/// suspect, nor of the future: one that is damaged is not passed over.
fn choose(snapshots: &[Snapshot], wanted: &str) -> Result<SnapshotId, EngineError> {
    if wanted == "latest" {
        let partial = |snapshot: &&Snapshot| {
            snapshot
                .manifest
                .as_ref()
                .is_ok_and(|manifest| manifest.completeness == Completeness::Partial)
        };
        let newest = snapshots
            .iter()
            .filter(|one| !one.is_future && !one.is_suspect && !partial(one))
            .map(|snapshot| &snapshot.id)
            .max();
        if let Some(words) = future_of(snapshots) {
            tracing::warn!("{words}");
        }
        let suspects = suspects_of(snapshots.iter().filter(|one| newest < Some(&one.id)));
        if let Some(words) = suspects.as_ref().filter(|_| newest.is_some()) {
            tracing::warn!("{words}");
        }
        let suspects = suspects.map(|words| format!(". {words}")).unwrap_or_default();
        return newest.cloned().ok_or_else(|| {
            EngineError::NotFound(format!("There is no snapshot to drill{suspects}"))
        });
    }
    let listing = Listing { snapshots: snapshots.to_vec(), ..Listing::default() };
    let found = find(&listing, wanted, None)?;
    found
        .into_iter()
        .next()
        .map(|snapshot| snapshot.id)
        .ok_or_else(|| EngineError::NotFound(wanted.to_owned()))
}
