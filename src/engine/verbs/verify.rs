//! Whether what is stored is what was written.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::catalog::VerificationRecord;
use crate::config::{Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::{EngineError, chain};
use crate::engine::read::damage::remember;
use crate::engine::read::fetch::read_facts;
use crate::engine::read::whole::read_through;
use crate::engine::snapshots::damage::note_sound;
use crate::engine::snapshots::documents::{LARGEST_MANIFEST, read_document};
use crate::engine::snapshots::list::{BadManifest, Listing, Selection, Snapshot, list};
use crate::engine::snapshots::marks::read_marks;
use crate::engine::snapshots::vanished::{Vanished, vanished};
use crate::engine::state::locks::ReadLock;
use crate::model::{Manifest, Name, SnapshotId, VerificationOutcome, total};
use crate::pipeline::Identity;

/// What a verification found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// Every copy that was looked at.
    pub snapshots: Vec<SnapshotVerdict>,
    /// Storages that could not be listed, and why.
    pub unlisted: Vec<(Name, String)>,
    /// What stands where the format has a file or a folder, and is none; with its storage.
    pub unexpected: Vec<(Name, String)>,
    /// What is gone, though the rules would keep it.
    pub vanished: Vec<Vanished>,
}

impl VerifyReport {
    /// Whether anything is damaged, or gone.
    pub fn is_damaged(&self) -> bool {
        !self.vanished.is_empty()
            || self.snapshots.iter().any(|verdict| !verdict.problems.is_empty())
    }

    /// Whether all that was to be looked at could be.
    pub fn is_complete(&self) -> bool {
        self.unlisted.is_empty()
            && self.unexpected.is_empty()
            && self.snapshots.iter().all(|verdict| verdict.unread.is_empty())
    }
}

/// What was found of one snapshot in one storage.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotVerdict {
    pub storage: Name,
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    pub objects: u64,
    /// Bytes stored, by the manifest.
    pub stored_bytes: u64,
    /// Whether every stored byte was read and held against its digest.
    pub read: bool,
    /// Whether every artifact was decrypted and decompressed too, and held against the facts.
    pub decoded: bool,
    /// What is wrong; nothing when it is undamaged as far as it was looked at.
    pub problems: Vec<String>,
    /// What could not be reached, and why: of that it is not known whether it is damaged.
    pub unread: Vec<String>,
}

impl SnapshotVerdict {
    fn note(&mut self, error: EngineError) -> Result<(), EngineError> {
        match error {
            EngineError::Damaged { problem, .. } => self.problems.push(problem),
            EngineError::Storage { error, .. } => self.unread.push(error.to_string()),
            // Another key may open it; that it is damaged is not said.
            EngineError::Request(problem) => self.unread.push(problem),
            other => return Err(other),
        }
        Ok(())
    }
}

/// Verifies what the storages of a strategy have of it, as its schedule says, and records what came
/// of it. After one that found damage everything is read, until nothing is found any more. None,
/// and nothing recorded, while snapshots are deleted.
pub async fn verify_strategy(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    percent: u8,
) -> Option<VerificationRecord> {
    let percent =
        if is_known_to_be_damaged(engine, instance, strategy).await { 100 } else { percent };
    let started = engine.clock.now_seconds();
    match look_through(engine, instance, strategy, percent).await {
        Err(EngineError::Locked { .. }) => None,
        found => Some(record(engine, (&instance.name, &strategy.name), started, found).await),
    }
}

/// Records what came of a verification of an instance, begun at `started`, that read all that its
/// storages have: for each of its strategies that was looked at, as one on schedule.
pub async fn record_verification(
    engine: &Engine,
    instance: &Instance,
    started: DateTime<Utc>,
    report: &VerifyReport,
) {
    for strategy in instance.strategies.keys() {
        let own = |one: &&SnapshotVerdict| one.strategy == *strategy;
        let snapshots: Vec<_> = report.snapshots.iter().filter(own).cloned().collect();
        let gone = report.vanished.iter().filter(|one| one.strategy == *strategy);
        let gone: Vec<_> = gone.cloned().collect();
        if !snapshots.is_empty() || !gone.is_empty() {
            let found = VerifyReport { snapshots, vanished: gone, ..report.clone() };
            record(engine, (&instance.name, strategy), started, Ok(found)).await;
        }
    }
}

async fn record(
    engine: &Engine,
    (instance, strategy): (&Name, &Name),
    started: DateTime<Utc>,
    found: Result<VerifyReport, EngineError>,
) -> VerificationRecord {
    let mut record = VerificationRecord {
        instance: instance.clone(),
        strategy: strategy.clone(),
        started,
        finished: started,
        outcome: VerificationOutcome::Failed,
        snapshots: 0,
        read_bytes: 0,
        problem: None,
    };
    let (outcome, problem) = match found {
        Err(error) => (VerificationOutcome::Failed, Some(chain(&error))),
        Ok(report) => {
            let read = |verdict: &&SnapshotVerdict| verdict.read;
            record.snapshots = report.snapshots.len() as u64;
            record.read_bytes =
                total(report.snapshots.iter().filter(read).map(|verdict| verdict.stored_bytes));
            let words = |verdict: &SnapshotVerdict, problem: &String| {
                format!("`{}` in `{}`: {problem}", verdict.id, verdict.storage)
            };
            let damage =
                report.snapshots.iter().find_map(|one| Some(words(one, one.problems.first()?)));
            let gone = report
                .vanished
                .first()
                .map(|one| format!("`{}` has vanished from `{}`", one.id, one.storage));
            let damage = damage.or(gone);
            let unread =
                report.snapshots.iter().find_map(|one| Some(words(one, one.unread.first()?)));
            let unlisted = report
                .unlisted
                .first()
                .map(|(name, error)| format!("`{name}` could not be listed: {error}"));
            let unexpected =
                report.unexpected.first().map(|(name, problem)| format!("In `{name}`: {problem}"));
            match (damage, unlisted.or(unread).or(unexpected)) {
                (Some(damage), _) => (VerificationOutcome::Damaged, Some(damage)),
                (None, Some(problem)) => (VerificationOutcome::Failed, Some(problem)),
                (None, None) => (VerificationOutcome::Sound, None),
            }
        }
    };
    record.finished = engine.clock.now_seconds();
    record.outcome = outcome;
    record.problem = problem;
    // One that was asked to stop is no verification.
    if let Some(catalog) = engine.catalog().await.filter(|_| !engine.cancel.is_cancelled())
        && let Err(error) = catalog.record_verification(&record).await
    {
        tracing::warn!("the verification could not be recorded: {error}");
    }
    record
}

async fn is_known_to_be_damaged(engine: &Engine, instance: &Instance, strategy: &Strategy) -> bool {
    let Some(catalog) = engine.catalog().await else { return false };
    let last = catalog.last_verification(&instance.name, &strategy.name, true).await;
    matches!(last, Ok(Some(last)) if last.outcome == VerificationOutcome::Damaged)
}

async fn look_through(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    percent: u8,
) -> Result<VerifyReport, EngineError> {
    let mut storages = Vec::new();
    for (name, config) in
        instance.storages.iter().filter(|(name, _)| strategy.storages.contains(name))
    {
        storages.push(OpenStorage::open(name, config, &engine.cancel).await?);
    }
    let selection =
        Selection { instance: Some(instance.name.clone()), strategy: Some(strategy.name.clone()) };
    let listing = list(engine, &storages, &selection).await;
    let mut report = verify(engine, &storages, &listing, ReadData::Percent(percent), &[]).await?;
    report.vanished = vanished(engine, instance, &storages, &listing, Some(&strategy.name)).await;
    Ok(report)
}

/// When the last verification of the strategy on schedule began; none when there was none, as far
/// as is recorded.
pub async fn last_verified(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Option<DateTime<Utc>> {
    match engine.catalog().await?.last_verification(&instance.name, &strategy.name, false).await {
        Ok(last) => last.map(|last| last.started),
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}

/// How much of what is stored is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadData {
    /// Nothing but the manifests.
    None,
    /// Whole copies, chosen by lot, until they make up so many percent of all stored bytes.
    Percent(u8),
    /// All.
    All,
}

/// Looks at each copy in `listing`: the manifest, the presence and size of every object, and of
/// what `read_data` says every byte.
///
/// # Errors
/// [`EngineError::Cancelled`], and [`EngineError::Internal`]. Damage is not an error but in the
/// report.
pub async fn verify(
    engine: &Engine,
    storages: &[OpenStorage],
    listing: &Listing,
    read_data: ReadData,
    identities: &[Identity],
) -> Result<VerifyReport, EngineError> {
    let strategies: BTreeSet<_> =
        listing.snapshots.iter().map(|one| (&one.instance, &one.strategy)).collect();
    let mut locks = Vec::new();
    for (instance, strategy) in strategies {
        locks.push(ReadLock::share(&engine.state_dir, instance, strategy)?);
    }
    let chosen = match read_data {
        ReadData::None => BTreeSet::new(),
        ReadData::All => (0..listing.snapshots.len()).collect(),
        ReadData::Percent(percent) => lot(listing, percent)?,
    };
    let instances: BTreeSet<&Name> = listing.snapshots.iter().map(|one| &one.instance).collect();
    let (unlisted, mut unexpected) = (listing.unlisted.clone(), listing.unexpected.clone());
    let mut marks = BTreeMap::new();
    for instance in instances {
        let read = read_marks(engine, storages, instance).await;
        unexpected.extend(read.unexpected.iter().cloned());
        marks.insert(instance, read);
    }
    let mut snapshots = Vec::new();
    for (at, snapshot) in listing.snapshots.iter().enumerate() {
        let Some(storage) = storages.iter().find(|storage| storage.name == snapshot.storage) else {
            continue;
        };
        let mut verdict =
            verify_one(engine, storage, snapshot, chosen.contains(&at), identities).await?;
        let manifest = snapshot.manifest_key();
        if !verdict.problems.is_empty()
            && matches!(storage.storage.stat(&manifest).await, Err(error) if error.is_not_found())
        {
            tracing::info!(storage = %storage.name, snapshot = %snapshot.id, "deleted since it was \
                listed");
            continue;
        }
        if let Some(damage) = snapshot.damage.as_ref().filter(|_| !verdict.read) {
            verdict.problems.push(format!("{damage}; `--read-data` looks at it again"));
        }
        if let Some(problem) = verdict.problems.first() {
            remember(engine, storage, snapshot, problem).await;
        } else if let (true, Ok(manifest), Some(marks)) =
            (verdict.read, &snapshot.manifest, marks.get(&snapshot.instance))
        {
            note_sound(engine, storage, manifest, marks).await;
        }
        snapshots.push(verdict);
    }
    drop(locks);
    Ok(VerifyReport { snapshots, unlisted, unexpected, vanished: Vec::new() })
}

/// The positions of copies in `listing`, drawn by lot, whose stored bytes are at least `percent` of
/// those of all.
fn lot(listing: &Listing, percent: u8) -> Result<BTreeSet<usize>, EngineError> {
    let bytes = |snapshot: &Snapshot| snapshot.manifest.as_ref().map_or(0, Manifest::stored_bytes);
    let total: u128 = listing.snapshots.iter().map(|snapshot| u128::from(bytes(snapshot))).sum();
    let mut numbers = vec![[0_u8; 8]; listing.snapshots.len()];
    getrandom::fill(numbers.as_flattened_mut())
        .map_err(|error| EngineError::Internal(format!("No random bytes: {error}")))?;
    let mut order: Vec<(usize, &Snapshot)> = listing.snapshots.iter().enumerate().collect();
    order.sort_by_key(|(at, _)| numbers.get(*at).copied());
    let (mut chosen, mut sum) = (BTreeSet::new(), 0_u128);
    for (at, snapshot) in order {
        if sum * 100 >= total * u128::from(percent) {
            break;
        }
        chosen.insert(at);
        sum += u128::from(bytes(snapshot));
    }
    Ok(chosen)
}

async fn verify_one(
    engine: &Engine,
    storage: &OpenStorage,
    snapshot: &Snapshot,
    read_data: bool,
    identities: &[Identity],
) -> Result<SnapshotVerdict, EngineError> {
    let mut verdict = SnapshotVerdict {
        storage: storage.name.clone(),
        instance: snapshot.instance.clone(),
        strategy: snapshot.strategy.clone(),
        id: snapshot.id.clone(),
        objects: 0,
        stored_bytes: 0,
        read: false,
        decoded: false,
        problems: Vec::new(),
        unread: Vec::new(),
    };
    // The one that is stored: what the catalog remembers of it proves nothing.
    let key = snapshot.manifest_key();
    let manifest = match read_document(storage.storage.as_ref(), &key, LARGEST_MANIFEST).await {
        Ok(body) => {
            Manifest::from_bytes(&body, &snapshot.instance, &snapshot.strategy, &snapshot.id)
                .map_err(BadManifest::from)
        }
        Err(_) if engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
        Err(error) if error.is_about_reaching() => {
            verdict.unread.push(error.to_string());
            return Ok(verdict);
        }
        Err(error) => Err(BadManifest::of(&error)),
    };
    let manifest = match &manifest {
        Ok(manifest) => manifest,
        Err(error) if !error.is_damage() => {
            verdict.unread.push(format!("`manifest.json`: {error}"));
            return Ok(verdict);
        }
        Err(error) => {
            verdict.problems.push(format!("`manifest.json`: {error}"));
            return Ok(verdict);
        }
    };
    verdict.stored_bytes = manifest.stored_bytes();
    engine.progress.begin(
        format!("{} in {}", snapshot.id, storage.name),
        read_data.then_some(verdict.stored_bytes),
    );
    let folder = snapshot.folder();
    for object in manifest.artifacts.iter().flat_map(|artifact| &artifact.objects) {
        if engine.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        verdict.objects += 1;
        match storage.storage.stat(&format!("{folder}{}", object.key)).await {
            Ok(found) if found.size == object.size => {}
            Ok(found) => {
                verdict
                    .problems
                    .push(format!("`{}` has {} bytes of {}", object.key, found.size, object.size));
            }
            Err(_) if engine.cancel.is_cancelled() => return Err(EngineError::Cancelled),
            Err(error) if error.is_about_reaching() => {
                verdict.unread.push(format!("`{}`: {error}", object.key));
            }
            Err(error) => verdict.problems.push(format!("`{}`: {error}", object.key)),
        }
    }
    if read_data {
        let facts = match read_facts(engine, storage, manifest, identities).await {
            Ok(facts) => facts,
            Err(error) => {
                verdict.note(error)?;
                None
            }
        };
        verdict.decoded = facts.is_some();
        for artifact in &manifest.artifacts {
            let read = read_through(
                engine,
                storage,
                &snapshot.id,
                &folder,
                artifact,
                identities,
                facts.as_ref(),
            )
            .await;
            if let Err(error) = read {
                // Its size may have been noticed already; what reading it says is said as well.
                verdict.note(error)?;
            }
        }
        verdict.read = verdict.unread.is_empty();
    }
    Ok(verdict)
}
