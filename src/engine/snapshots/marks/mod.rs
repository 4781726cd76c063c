//! Marks: snapshots are held and released, and what is said of them is read before anything is
//! deleted.

mod damage;
mod suspicions;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use crate::catalog::CachedMark;
use crate::engine::context::{Engine, OpenStorage};
use crate::engine::snapshots::documents::{Document, PARALLEL, read_listed};
use crate::engine::snapshots::unexpected::no_mark;
use crate::model::{Digest, Mark, MarkRef, Name, Says, SnapshotId, SnapshotRef, Verdict};
use crate::storage::{Object, Storage, StorageError};

/// A larger object is no mark.
pub(in crate::engine) const LARGEST_MARK: u64 = 1 << 20;
/// More bytes of marks are not read, of one instance in one storage.
const MOST_BYTES: u64 = 16 << 20;
/// More marks are not read, of one instance in one storage.
const MOST_MARKS: usize = 100_000;

/// The clocks of a host and a storage differ by less. A copy made anew later than that is missed
/// when it vanishes.
const SKEW: TimeDelta = TimeDelta::minutes(5);

/// What the marks of an instance say, all storages together.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Each mark that could be read, by its snapshot. The same one may stand in several storages.
    marks: BTreeMap<SnapshotId, BTreeMap<MarkRef, Standing>>,
    /// Every mark that a release ends.
    ended: BTreeSet<MarkRef>,
    /// Snapshots that a run found suspect and that no storage has.
    uncommitted: BTreeSet<SnapshotId>,
    /// Marks that cannot be read. Nobody knows what they protect.
    unreadable: Vec<Unreadable>,
    /// Storages whose marks could not be read, and why. Nobody knows what these protect.
    pub unlisted: Vec<(Name, String)>,
    /// What of these is there and is no file, or no folder of them.
    pub unexpected: Vec<(Name, String)>,
}

/// A mark, and the storages where it stands.
#[derive(Debug, Clone)]
struct Standing {
    mark: Mark,
    storages: BTreeSet<Name>,
}

#[derive(Debug, Clone)]
struct Unreadable {
    storage: Name,
    /// Below the folder of the instance's marks. None where its bytes are not known.
    mark: Option<MarkRef>,
    /// The key and the reason.
    problem: String,
    /// A later version knows what it says.
    is_newer: bool,
}

/// Why a snapshot must not be deleted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// What the operator said.
    pub reason: Option<String>,
    /// Until when; until it is released, where none is given.
    pub until: Option<DateTime<Utc>>,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// The last drill that judged a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drilled {
    pub at: DateTime<Utc>,
    /// How it was judged.
    pub verdict: Verdict,
}

impl Marks {
    /// The marks of a snapshot that no release has ended.
    fn of(&self, id: &SnapshotId) -> impl Iterator<Item = (&MarkRef, &Standing)> {
        let of_it = self.marks.get(id).into_iter().flatten();
        of_it.filter(|(one, _)| !self.ended.contains(*one))
    }

    /// Whether it was said, in the storage, that it is meant that the snapshot is gone from it,
    /// which was stored there at `stored`. One that came back later was not meant.
    pub(in crate::engine) fn is_forgotten(
        &self,
        storage: &Name,
        strategy: &Name,
        id: &SnapshotId,
        stored: DateTime<Utc>,
    ) -> bool {
        let mut of_it = self.marks.get(id).into_iter().flat_map(BTreeMap::values);
        of_it.any(|Standing { mark, storages }| {
            mark.strategy == *strategy
                && storages.contains(storage)
                && matches!(mark.says, Says::Release { forgotten: true, .. })
                && mark.made.checked_add_signed(SKEW).is_none_or(|latest| stored <= latest)
        })
    }

    /// What could not be read and no release has ended: the storage, and the mark or listing with
    /// the reason. Nobody knows what these protect.
    pub fn unread(&self) -> Vec<(Name, String)> {
        let unreadable = self
            .unreadable
            .iter()
            .filter(|one| one.mark.as_ref().is_none_or(|mark| !self.ended.contains(mark)))
            .map(|one| (one.storage.clone(), one.problem.clone()));
        self.unlisted.iter().cloned().chain(unreadable).collect()
    }

    /// What these said of the snapshots that were in `storage`: a hold or verdict that never stood
    /// there came after they had gone.
    pub(in crate::engine) fn as_of(&self, storage: &Name) -> Self {
        let mut own = self.clone();
        for marks in own.marks.values_mut() {
            marks.retain(|_, standing| standing.storages.contains(storage));
        }
        own
    }

    /// The hold on a snapshot at the time `now`, the longest of several. A hold has the id only in
    /// its key, so it holds the snapshots of every strategy that have it.
    pub fn hold(&self, id: &SnapshotId, now: DateTime<Utc>) -> Option<Hold> {
        let holds = self.of(id).filter_map(|(_, Standing { mark, .. })| match &mark.says {
            Says::Hold { reason, until } if until.is_none_or(|until| now < until) => Some(Hold {
                reason: reason.as_deref().map(printable),
                until: *until,
                since: mark.made,
            }),
            Says::Unknown { .. } => {
                Some(Hold { reason: Some(unknown(mark)), until: None, since: mark.made })
            }
            _ => None,
        });
        holds.max_by_key(|hold| hold.until.unwrap_or(DateTime::<Utc>::MAX_UTC))
    }

    /// What holds a snapshot that only a newer version can release.
    pub(in crate::engine) fn held_by_unknown(&self, id: &SnapshotId) -> Option<String> {
        let is_unknown = |mark: &&Mark| matches!(mark.says, Says::Unknown { .. });
        self.of(id).map(|(_, standing)| &standing.mark).find(is_unknown).map(unknown)
    }

    /// The marks that a release of the snapshot ends, and the storages where any of them stands.
    pub(in crate::engine) fn releasable(
        &self,
        of: &SnapshotRef,
        what: Released,
    ) -> (Vec<MarkRef>, BTreeSet<Name>) {
        let (mut ends, mut storages) = (BTreeSet::new(), BTreeSet::new());
        for (one, standing) in self.of(&of.id) {
            let is_meant = match standing.mark.says {
                Says::Hold { .. } => matches!(what, Released::Hold | Released::All),
                Says::Suspect { .. } => {
                    standing.mark.strategy == of.strategy
                        && matches!(what, Released::Suspicion | Released::All)
                }
                Says::Damaged { .. } => {
                    standing.mark.strategy == of.strategy && what == Released::Damage
                }
                _ => false,
            };
            if is_meant {
                ends.insert(one.clone());
                storages.extend(standing.storages.iter().cloned());
            }
        }
        if matches!(what, Released::Suspicion | Released::All) {
            for (mark, standing) in self.unmarked(&of.strategy, &of.id) {
                ends.insert(mark);
                storages.extend(standing.storages.iter().cloned());
            }
        }
        let damaged = self.unreadable.iter().filter(|one| !one.is_newer);
        for one in damaged.filter(|_| matches!(what, Released::Damaged | Released::All)) {
            let mark = one.mark.as_ref();
            if let Some(mark) = mark.filter(|mark| mark.is_of(&of.id) && !self.ended.contains(mark))
            {
                ends.insert(mark.clone());
                storages.insert(one.storage.clone());
            }
        }
        (ends.into_iter().collect(), storages)
    }

    /// Releases of a snapshot, each with the storages where a mark stands that it ends, and it does
    /// not: they could not be reached when it was written.
    pub(in crate::engine) fn missing_releases(
        &self,
        id: &SnapshotId,
    ) -> Vec<(&Mark, BTreeSet<&Name>)> {
        let mut missing = Vec::new();
        let Some(of_it) = self.marks.get(id) else { return missing };
        for Standing { mark, storages } in of_it.values() {
            let Says::Release { ends, .. } = &mark.says else { continue };
            let read = ends.iter().filter_map(|ended| of_it.get(ended));
            let unreadable = self
                .unreadable
                .iter()
                .filter(|one| one.mark.as_ref().is_some_and(|mark| ends.contains(mark)));
            let stand = read
                .flat_map(|standing| &standing.storages)
                .chain(unreadable.map(|one| &one.storage));
            let places: BTreeSet<&Name> = stand.filter(|name| !storages.contains(*name)).collect();
            if !places.is_empty() {
                missing.push((mark, places));
            }
        }
        missing
    }

    /// The snapshot with this id, as the marks know it.
    pub fn snapshot(&self, id: &SnapshotId) -> Option<SnapshotRef> {
        self.marks.get(id)?.values().next().map(|standing| standing.mark.snapshot_ref())
    }

    async fn take_all(
        &mut self,
        storage: &OpenStorage,
        instance: &Name,
        objects: Vec<Object>,
    ) -> Result<(), StorageError> {
        let folder = Mark::folder(instance);
        for object in objects {
            if let Some((read, _)) = read_mark(storage.storage.as_ref(), &folder, object).await? {
                self.take(&storage.name, instance, read);
            }
        }
        Ok(())
    }

    /// Takes in what was read under `key`, below the folder of the instance's marks.
    fn take(&mut self, storage: &Name, instance: &Name, read: ReadMark) {
        let folder = Mark::folder(instance);
        let key = read.key.strip_prefix(&folder).unwrap_or(&read.key).to_owned();
        let (mark, problem, is_newer) = match read.body {
            Err((problem, is_newer)) => (None, problem, is_newer),
            Ok(body) => {
                let found = MarkRef { key, digest: Digest::of(&body) };
                match Mark::from_bytes(&body, &read.key) {
                    Ok(mark) => {
                        if let Says::Release { ends, .. } = &mark.says {
                            self.ended.extend(ends.iter().cloned());
                        }
                        let of_it = self.marks.entry(mark.id.clone()).or_default();
                        let new = || Standing { mark, storages: BTreeSet::new() };
                        of_it.entry(found).or_insert_with(new).storages.insert(storage.clone());
                        return;
                    }
                    Err(error) => (Some(found), error.to_string(), error.is_newer()),
                }
            }
        };
        let problem = format!("`{}`: {problem}", read.key);
        self.unreadable.push(Unreadable { storage: storage.clone(), mark, problem, is_newer });
    }

    /// The last drill of a snapshot that came to a verdict about it.
    pub fn drilled(&self, strategy: &Name, id: &SnapshotId) -> Option<Drilled> {
        let marks = self.of(id).map(|(_, standing)| &standing.mark);
        let drills =
            marks.filter(|mark| mark.strategy == *strategy).filter_map(|mark| match mark.says {
                Says::Drill { verdict, .. } if verdict != Verdict::Inconclusive => {
                    Some(Drilled { at: mark.made, verdict })
                }
                _ => None,
            });
        drills.max_by_key(|drilled| drilled.at)
    }

    /// Why the snapshot must not be deleted from the storage, by the marks that stand there now,
    /// which may be newer than these.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(in crate::engine) async fn refuses_now(
        &self,
        storage: &OpenStorage,
        of: &SnapshotRef,
        now: DateTime<Utc>,
    ) -> Result<Option<String>, StorageError> {
        let SnapshotRef { instance, strategy, id } = of;
        let place = storage.storage.as_ref();
        let mut objects: Vec<Object> =
            place.list(&Mark::folder_of(instance, id)).try_collect().await?;
        match place.stat(&Mark::old_hold_key(instance, id)).await {
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
            Ok(old) => objects.push(old),
        }
        let mut marks = Self { ended: self.ended.clone(), ..Self::default() };
        marks.marks.extend(self.marks.get(id).map(|of_it| (id.clone(), of_it.clone())));
        marks.take_all(storage, instance, objects).await?;
        if let Some((_, problem)) = marks.unread().first() {
            return Ok(Some(problem.clone()));
        }
        if marks.is_suspect(strategy, id) {
            return Ok(Some("it is suspect".to_owned()));
        }
        Ok(marks.hold(id, now).map(|hold| match hold.reason {
            Some(reason) => format!("it is held ({reason})"),
            None => "it is held".to_owned(),
        }))
    }
}

/// What the marks say that a storage has of one snapshot, those of format 1 left out.
///
/// # Errors
/// When they cannot be read.
pub(in crate::engine) async fn read_marks_of(
    storage: &OpenStorage,
    of: &SnapshotRef,
) -> Result<Marks, StorageError> {
    let folder = Mark::folder_of(&of.instance, &of.id);
    let objects = storage.storage.list(&folder).try_collect().await?;
    let mut marks = Marks::default();
    marks.take_all(storage, &of.instance, objects).await?;
    Ok(marks)
}

/// What holds the snapshot of a mark that this version does not know.
fn unknown(mark: &Mark) -> String {
    let Says::Unknown { kind } = &mark.says else { return String::new() };
    format!("a mark of the kind `{}`, which a newer version knows", printable(kind))
}

/// A text that somebody else wrote, fit for a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Of which marks a release frees a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Its holds.
    Hold,
    /// That it is suspect.
    Suspicion,
    /// Marks of it that are damaged.
    Damaged,
    /// All of these.
    All,
    /// That copies of it are damaged.
    Damage,
}

/// The marks of drills of a strategy, of those that were seen in a storage.
pub(in crate::engine) fn drill_marks(
    cached: Vec<CachedMark>,
    instance: &Name,
    strategy: &Name,
) -> Vec<Mark> {
    let folder = Mark::folder(instance);
    let read = |mark: CachedMark| Mark::from_bytes(&mark.body, &mark.key).ok();
    let of_instance = cached.into_iter().filter(|mark| mark.key.starts_with(&folder));
    let is_meant =
        |mark: &Mark| mark.strategy == *strategy && matches!(mark.says, Says::Drill { .. });
    of_instance.filter_map(read).filter(is_meant).collect()
}

/// Reads the marks of `instance` in every one of `storages`. A mark or storage that cannot be read
/// is told apart, not left out.
///
/// A hold or release that is gone still counts when it was seen before: the disk that it was on
/// may be lost, or not mounted, and there may be copies elsewhere. So does that a copy is damaged,
/// which a storage may have refused to take. Only a hold of format 1 whose
/// snapshot is still there was released, by an older version.
pub async fn read_marks(engine: &Engine, storages: &[OpenStorage], instance: &Name) -> Marks {
    let mut marks = Marks::default();
    let mut vanished: Vec<Vanished> = Vec::new();
    let looks = storages.iter().map(|open| read_from(engine, open, instance));
    for (open, look) in storages.iter().zip(join_all(looks).await) {
        match look {
            Ok((read, gone)) => {
                for read in read {
                    if let (true, Err((problem, _))) = (read.irregular, &read.body) {
                        let problem = format!("`{}`: {problem}", read.key);
                        marks.unexpected.push((open.name.clone(), problem));
                    }
                    marks.take(&open.name, instance, read);
                }
                vanished.extend(gone);
            }
            Err(error) => {
                let problem = (open.name.clone(), error.to_string());
                if !error.is_about_reaching() {
                    marks.unexpected.push(problem.clone());
                }
                marks.unlisted.push(problem);
            }
        }
    }
    let released: BTreeSet<String> =
        vanished.iter().filter(|one| one.released).map(|one| one.cached.key.clone()).collect();
    for Vanished { storage, address, cached, .. } in vanished {
        if released.contains(&cached.key) {
            update(engine, &address, &[], &[cached.key]).await;
        } else {
            let read = ReadMark { key: cached.key, body: Ok(cached.body), irregular: false };
            marks.take(&storage, instance, read);
        }
    }
    marks.pass_over_uncommitted(storages).await;
    marks
}

/// A mark that was seen in a storage once, and is not there any more.
struct Vanished {
    storage: Name,
    address: String,
    cached: CachedMark,
    /// An older version released it.
    released: bool,
}

/// What stands under a mark's key, or why it cannot be read.
struct ReadMark {
    key: String,
    /// Otherwise why not, and whether that says nothing against it.
    body: Result<Vec<u8>, (String, bool)>,
    /// Whether it is no file.
    irregular: bool,
}

async fn update(engine: &Engine, address: &str, added: &[CachedMark], gone: &[String]) {
    if let Some(catalog) = engine.catalog().await
        && let Err(error) = catalog.update_marks(address, added, gone).await
    {
        tracing::warn!("{error}");
    }
}

/// Reads a mark, and as what the catalog keeps it. None when it is gone since it was listed, or is
/// the empty folder of a snapshot's marks.
async fn read_mark(
    storage: &dyn Storage,
    folder: &str,
    object: Object,
) -> Result<Option<(ReadMark, Option<CachedMark>)>, StorageError> {
    if let Some(problem) = no_mark(folder, &object) {
        let key = object.key.trim_end_matches('/').to_owned();
        return Ok(Some((ReadMark { key, body: Err((problem, false)), irregular: true }, None)));
    }
    if object.irregular.is_some() {
        return Ok(None);
    }
    let body = match read_listed(storage, &object, LARGEST_MARK).await? {
        Document::Gone => return Ok(None),
        Document::Unreadable(problem) => Err((problem, false)),
        Document::TooLarge(problem) => Err((problem, true)),
        Document::Read(body) => Ok(body),
    };
    let Object { key, size, modified, .. } = object;
    // One that is no mark is read again the next time.
    let cached = body
        .as_ref()
        .ok()
        .filter(|body| Mark::from_bytes(body, &key).is_ok())
        .map(|body| CachedMark { key: key.clone(), size, modified, body: body.clone() });
    Ok(Some((ReadMark { key, body, irregular: false }, cached)))
}

async fn read_from(
    engine: &Engine,
    open: &OpenStorage,
    instance: &Name,
) -> Result<(Vec<ReadMark>, Vec<Vanished>), StorageError> {
    let storage = open.storage.as_ref();
    let address = storage.place();
    let folder = Mark::folder(instance);
    let mut listing = storage.list(&folder);
    let (mut objects, mut bytes): (Vec<Object>, u64) = (Vec::new(), 0);
    while let Some(object) = listing.try_next().await? {
        // One that is too large is not read.
        if object.size <= LARGEST_MARK {
            bytes = bytes.saturating_add(object.size);
        }
        if bytes > MOST_BYTES || objects.len() >= MOST_MARKS {
            return Err(StorageError::too_large(open.storage.address(), folder, MOST_BYTES));
        }
        objects.push(object);
    }
    let mut cached: BTreeMap<String, CachedMark> = BTreeMap::new();
    if let Some(catalog) = engine.catalog().await {
        match catalog.marks(&address).await {
            Ok(known) => cached.extend(
                known
                    .into_iter()
                    .filter(|mark| mark.key.starts_with(&folder))
                    .map(|mark| (mark.key.clone(), mark)),
            ),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    let listed: BTreeSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
    let mut gone: Vec<String> = Vec::new();
    let mut vanished: Vec<Vanished> = Vec::new();
    for known in cached.values().filter(|known| !listed.contains(known.key.as_str())) {
        let Ok(mark) = Mark::from_bytes(&known.body, &known.key) else {
            gone.push(known.key.clone());
            continue;
        };
        let released = match (&mark.says, &mark.mark_id) {
            (
                Says::Hold { .. }
                | Says::Release { .. }
                | Says::Damaged { .. }
                | Says::Unknown { .. },
                Some(_),
            ) => false,
            (Says::Hold { .. }, None) => {
                match storage.stat(&mark.snapshot_ref().manifest_key()).await {
                    Ok(_) => true,
                    Err(error) if error.is_not_found() => false,
                    Err(error) => return Err(error),
                }
            }
            _ => {
                gone.push(known.key.clone());
                continue;
            }
        };
        vanished.push(Vanished {
            storage: open.name.clone(),
            address: address.clone(),
            cached: known.clone(),
            released,
        });
    }
    let read: Vec<Option<(ReadMark, Option<CachedMark>)>> = stream::iter(objects)
        .map(|object| {
            let folder = folder.as_str();
            let known = cached
                .remove(&object.key)
                .filter(|_| object.irregular.is_none())
                .filter(|known| (known.size, known.modified) == (object.size, object.modified))
                // A hold of format 1 may be replaced by another of the same size within a tick of
                // the storage's clock.
                .filter(|known| !is_replaceable(folder, &known.key));
            async move {
                match known {
                    Some(known) => {
                        let body = Ok(known.body);
                        Ok(Some((ReadMark { key: known.key, body, irregular: false }, None)))
                    }
                    None => read_mark(storage, folder, object).await,
                }
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let (read, keep): (Vec<ReadMark>, Vec<Option<CachedMark>>) = read.into_iter().flatten().unzip();
    let added: Vec<CachedMark> = keep.into_iter().flatten().collect();
    update(engine, &address, &added, &gone).await;
    Ok((read, vanished))
}

/// Whether another mark may come to stand under the key: holds and suspicions of format 1.
fn is_replaceable(folder: &str, key: &str) -> bool {
    let name = key.strip_prefix(folder).unwrap_or(key);
    !name.contains('/') && !name.starts_with("drill-")
}
