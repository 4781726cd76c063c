//! Snapshots from one storage to another, byte for byte and without a key.
//!
//! Every object is held against the manifest while it travels, and the manifest is written last,
//! with a note of the storage that it is in now. So a copy is as good as what a run leaves, or it
//! is nothing.

use serde::Serialize;
use tokio::runtime::Handle;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::{EngineError, chain};
use crate::engine::read::damage::remember;
use crate::engine::read::fetch::read_ahead;
use crate::engine::snapshots::documents::{LARGEST_MANIFEST, read_document};
use crate::engine::snapshots::find::find;
use crate::engine::snapshots::list::{Listing, Selection, Snapshot, heed_marks, list_one};
use crate::engine::snapshots::mark_writer::bring_marks;
use crate::engine::write::snapshot_writer::{Arrival, Gate, Incoming, check_keys, objects};
use crate::model::{MANIFEST_KEY, Manifest, Name, Rate, SnapshotId, StoredObject, total};
use crate::pipeline::Throttle;
use crate::storage::{StorageError, StorageErrorKind};

/// What is to be copied.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// Of which instance and strategy.
    pub selection: Selection,
    /// This snapshot only: an id, the beginning or end of one, or `latest`.
    pub snapshot: Option<String>,
    /// How fast, at most.
    pub upload_rate: Option<Rate>,
    /// Whether it is only to be found out what would be done.
    pub dry_run: bool,
}

/// What a copy did.
#[derive(Debug, Clone, Serialize)]
pub struct CopyReport {
    /// The storage that was read from.
    pub from: Name,
    pub from_address: String,
    /// The storage that was written to.
    pub to: Name,
    pub to_address: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Every snapshot that was meant, oldest first.
    pub snapshots: Vec<CopiedSnapshot>,
    /// Why it ended before it was done.
    pub error: Option<String>,
}

impl CopyReport {
    /// How many snapshots fared so.
    pub fn count(&self, state: CopyState) -> usize {
        self.snapshots.iter().filter(|one| one.state == state).count()
    }
}

/// How one snapshot fared.
#[derive(Debug, Clone, Serialize)]
pub struct CopiedSnapshot {
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// What became of it.
    pub state: CopyState,
    /// Bytes of all its objects; none when its manifest cannot be read.
    pub stored_bytes: Option<u64>,
    /// Bytes that were there already, from a copy that was broken off, and were found right.
    pub taken_up_bytes: u64,
    /// Why it was not copied.
    pub error: Option<String>,
}

/// What became of one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyState {
    /// It was copied and committed.
    Copied,
    /// It would be copied.
    Planned,
    /// It was there already, with the same artifacts.
    Present,
    /// It is there already, and is not the same.
    Differs,
    /// Its manifest cannot be read where it should come from.
    Unreadable,
    /// It is damaged where it should come from. Nothing was committed.
    Damaged,
    /// A run or another copy holds the lock of its strategy.
    Locked,
    /// Nothing was committed.
    Failed,
}

/// Copies every snapshot of `request` that `from` has and `to` has not, oldest first. One that
/// fails does not keep the others back, unless a storage cannot be reached any more.
///
/// # Errors
/// When a storage cannot be listed, or there is no such snapshot. What happened to each snapshot is
/// in the report.
pub async fn copy(
    engine: &Engine,
    from: &OpenStorage,
    to: &OpenStorage,
    request: &CopyRequest,
) -> Result<CopyReport, EngineError> {
    if from.storage.address() == to.storage.address() {
        return Err(EngineError::Request(format!(
            "`{}` cannot be copied to itself",
            from.storage.address()
        )));
    }
    let list = async |open: &OpenStorage| {
        engine.progress.begin(format!("listing {}", open.name), None);
        let found = list_one(engine, open, &request.selection).await;
        found.map(|found| found.snapshots).map_err(|error| match error {
            error if error.is_cancelled() => EngineError::Cancelled,
            error => EngineError::storage(&open.name, error),
        })
    };
    let mut wanted = Listing { snapshots: list(from).await?, ..Listing::default() };
    wanted
        .snapshots
        .sort_by(|a, b| (&a.instance, &a.strategy, &a.id).cmp(&(&b.instance, &b.strategy, &b.id)));
    wanted.unread_marks =
        heed_marks(engine, std::slice::from_ref(from), &mut wanted.snapshots).await;
    if let Some(which) = &request.snapshot {
        wanted.snapshots = find(&wanted, which, None)?;
    }
    let mut present = list(to).await?;
    heed_marks(engine, std::slice::from_ref(to), &mut present).await;
    let mut report = CopyReport {
        from: from.name.clone(),
        from_address: from.storage.address(),
        to: to.name.clone(),
        to_address: to.storage.address(),
        dry_run: request.dry_run,
        snapshots: Vec::new(),
        error: None,
    };
    let work = Copy { engine, from, to, rate: request.upload_rate.map(Throttle::new) };
    let mut strategies =
        wanted.snapshots.chunk_by(|a, b| (&a.instance, &a.strategy) == (&b.instance, &b.strategy));
    let ended = loop {
        let Some(strategy) = strategies.next() else { break Ok(()) };
        let mut done = Ok(());
        if !request.dry_run {
            done = work.marks(strategy).await;
        }
        if done.is_ok() {
            done = work.strategy(strategy, &present, request.dry_run, &mut report.snapshots).await;
        }
        if done.is_err() {
            break done;
        }
    };
    report.error = ended.err().map(|error| chain(&error));
    Ok(report)
}

struct Copy<'a> {
    engine: &'a Engine,
    from: &'a OpenStorage,
    to: &'a OpenStorage,
    rate: Option<Throttle>,
}

/// Why a snapshot was not copied.
struct Failure {
    state: CopyState,
    error: EngineError,
    /// Whether there is no use in going on with others.
    gone: bool,
    /// Whether what was brought so far is left for the next copy to take up.
    keep: bool,
}

impl Copy<'_> {
    /// Brings what is said of the snapshots of one strategy, before the snapshots themselves: one
    /// that is held is held from the beginning.
    ///
    /// # Errors
    /// When not all of it could be brought.
    async fn marks(&self, snapshots: &[Snapshot]) -> Result<(), EngineError> {
        let Some(first) = snapshots.first() else { return Ok(()) };
        let ids = snapshots.iter().map(|snapshot| &snapshot.id).collect();
        self.engine.progress.begin("copying marks", None);
        match bring_marks(self.from, self.to, &first.instance, &ids).await {
            Ok(count) => tracing::debug!(count, "marks copied"),
            Err(error) => return Err(EngineError::storage(&self.to.name, error)),
        }
        Ok(())
    }

    /// Copies the snapshots of one strategy, and says of each what became of it.
    ///
    /// # Errors
    /// What ended the whole copy.
    async fn strategy(
        &self,
        snapshots: &[Snapshot],
        present: &[Snapshot],
        dry_run: bool,
        done: &mut Vec<CopiedSnapshot>,
    ) -> Result<(), EngineError> {
        let first = done.len();
        for snapshot in snapshots {
            let (state, error) = judge(snapshot, present);
            done.push(CopiedSnapshot {
                instance: snapshot.instance.clone(),
                strategy: snapshot.strategy.clone(),
                id: snapshot.id.clone(),
                state,
                stored_bytes: snapshot.manifest.as_ref().ok().map(Manifest::stored_bytes),
                taken_up_bytes: 0,
                error,
            });
        }
        let mine = done.get_mut(first..).unwrap_or_default();
        let mut planned = mine
            .iter_mut()
            .zip(snapshots)
            .filter(|(one, _)| one.state == CopyState::Planned)
            .peekable();
        let Some((_, any)) = planned.peek() else { return Ok(()) };
        if dry_run {
            return Ok(());
        }
        let gate = match Gate::open(self.engine, self.to, &any.instance, &any.strategy).await {
            Ok(gate) => gate,
            Err(error @ EngineError::Locked { .. }) => {
                for (one, _) in planned {
                    (one.state, one.error) = (CopyState::Locked, Some(error.to_string()));
                }
                return Ok(());
            }
            Err(error) => {
                for (one, _) in planned {
                    one.state = CopyState::Failed;
                }
                return Err(error);
            }
        };
        let mut ended = None;
        for (one, snapshot) in planned {
            if ended.is_some() {
                one.state = CopyState::Failed;
                continue;
            }
            match self.snapshot(&gate, snapshot).await {
                Ok(taken_up) => (one.state, one.taken_up_bytes) = (CopyState::Copied, taken_up),
                Err(failure) => {
                    let text = chain(&failure.error);
                    tracing::error!(id = %snapshot.id, "{text}");
                    if failure.state == CopyState::Damaged {
                        remember(self.engine, self.from, snapshot, &text).await;
                    }
                    (one.state, one.error) = (failure.state, Some(text));
                    ended = failure.gone.then_some(failure.error);
                }
            }
        }
        ended.map_or(Ok(()), Err)
    }

    /// Copies one snapshot. Returns how many bytes were there already.
    async fn snapshot(&self, gate: &Gate<'_>, snapshot: &Snapshot) -> Result<u64, Failure> {
        if self.engine.cancel.is_cancelled() {
            return Err(self.target_failed(StorageError::cancelled()));
        }
        // The one that is stored: what the catalog remembers of it proves nothing.
        let key = snapshot.manifest_key();
        let body = match read_document(self.from.storage.as_ref(), &key, LARGEST_MANIFEST).await {
            Ok(body) => body,
            Err(error) => return Err(self.source_failed(snapshot, MANIFEST_KEY, error).await),
        };
        let manifest =
            Manifest::from_bytes(&body, &snapshot.instance, &snapshot.strategy, &snapshot.id);
        let manifest = manifest
            .map_err(|error| self.damaged(snapshot, format!("`{MANIFEST_KEY}`: {error}")))?;
        check_keys(&manifest).map_err(|problem| self.damaged(snapshot, problem))?;
        let mut arrival = Arrival::begin(gate, &snapshot.id, self.rate.clone())
            .await
            .map_err(|error| self.target_failed(error))?;
        self.engine
            .progress
            .begin(format!("copying {}", snapshot.id), Some(manifest.stored_bytes()));
        match self.bring(&mut arrival, snapshot, &manifest, &body).await {
            Ok(taken_up) => {
                arrival.leave().await;
                Ok(taken_up)
            }
            Err(failure) => {
                arrival.give_up(failure.keep).await;
                Err(failure)
            }
        }
    }

    async fn bring(
        &self,
        arrival: &mut Arrival<'_>,
        snapshot: &Snapshot,
        manifest: &Manifest,
        body: &[u8],
    ) -> Result<u64, Failure> {
        arrival.ensure_room(manifest).await.map_err(|error| self.target_failed(error))?;
        let mut taken_up = 0;
        for object in objects(manifest) {
            if arrival.has(object).await.map_err(|error| self.target_failed(error))? {
                taken_up = total([taken_up, object.size]);
                continue;
            }
            let mut incoming = arrival
                .open(&object.key, object.size)
                .await
                .map_err(|error| self.target_failed(error))?;
            match self.transfer(&mut incoming, snapshot, object).await {
                Ok(()) => {
                    arrival.publish(incoming).await.map_err(|error| self.target_failed(error))?;
                }
                Err(failure) => {
                    incoming.abort().await;
                    return Err(failure);
                }
            }
        }
        arrival.commit(manifest, body).await.map_err(|error| self.target_failed(error))?;
        Ok(taken_up)
    }

    /// Moves the bytes of one object, and holds them against the manifest. Nothing is published.
    async fn transfer(
        &self,
        incoming: &mut Incoming,
        snapshot: &Snapshot,
        object: &StoredObject,
    ) -> Result<(), Failure> {
        let key = format!("{}{}", snapshot.folder(), object.key);
        let mut chunks = read_ahead(self.from, vec![(key, None)], &Handle::current());
        while let Some(chunk) = chunks.recv().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => return Err(self.source_failed(snapshot, &object.key, error).await),
            };
            if incoming.size().saturating_add(chunk.len() as u64) > object.size {
                let problem = format!("`{}` has more than its {} bytes", object.key, object.size);
                return Err(self.damaged(snapshot, problem));
            }
            incoming.write(chunk).await.map_err(|error| self.target_failed(error))?;
        }
        if incoming.size() != object.size {
            let problem =
                format!("`{}` has {} bytes of {}", object.key, incoming.size(), object.size);
            return Err(self.damaged(snapshot, problem));
        }
        let digest = incoming.digest();
        if digest != object.digest {
            let problem = format!(
                "`{}`: its digest is {digest}, and should be {}",
                object.key, object.digest
            );
            return Err(self.damaged(snapshot, problem));
        }
        Ok(())
    }

    fn damaged(&self, snapshot: &Snapshot, problem: String) -> Failure {
        let error = EngineError::damaged(&snapshot.id, &self.from.name, problem);
        Failure { state: CopyState::Damaged, error, gone: false, keep: false }
    }

    /// What a failure to read `what` tells: that it is damaged, or only that it could not be
    /// reached.
    async fn source_failed(&self, snapshot: &Snapshot, what: &str, error: StorageError) -> Failure {
        if self.engine.cancel.is_cancelled() {
            return Failure {
                state: CopyState::Failed,
                error: EngineError::Cancelled,
                gone: true,
                keep: false,
            };
        }
        if error.is_about_reaching() {
            let gone = error.may_pass();
            let error = EngineError::storage(&self.from.name, error);
            return Failure { state: CopyState::Failed, error, gone, keep: true };
        }
        let manifest = snapshot.manifest_key();
        // Whoever deletes a snapshot takes the manifest away first.
        if let Err(error) = self.from.storage.stat(&manifest).await
            && error.is_not_found()
        {
            let error =
                EngineError::NotFound(format!("`{}` was deleted while it was copied", snapshot.id));
            return Failure { state: CopyState::Failed, error, gone: false, keep: false };
        }
        self.damaged(snapshot, format!("`{what}`: {error}"))
    }

    fn target_failed(&self, error: StorageError) -> Failure {
        if self.engine.cancel.is_cancelled() {
            return Failure {
                state: CopyState::Failed,
                error: EngineError::Cancelled,
                gone: true,
                keep: false,
            };
        }
        let state = if error.is_busy() { CopyState::Locked } else { CopyState::Failed };
        let keep = error.is_about_reaching();
        let gone = keep || error.kind() == StorageErrorKind::Full;
        Failure { state, error: EngineError::storage(&self.to.name, error), gone, keep }
    }
}

/// What is to be done about a snapshot, by what is at the other side.
fn judge(snapshot: &Snapshot, present: &[Snapshot]) -> (CopyState, Option<String>) {
    let same = |other: &&Snapshot| {
        (&other.instance, &other.strategy, &other.id)
            == (&snapshot.instance, &snapshot.strategy, &snapshot.id)
    };
    let manifest = match &snapshot.manifest {
        Ok(manifest) => manifest,
        Err(error) => {
            return (
                CopyState::Unreadable,
                Some(format!("Its manifest in `{}` cannot be used: {error}", snapshot.storage)),
            );
        }
    };
    let there = present.iter().find(same);
    if let Some((there, damage)) = there.and_then(|there| Some((there, there.damage.as_ref()?))) {
        let Snapshot { storage, id, .. } = there;
        let problem = format!(
            "The copy in `{storage}` is damaged: {damage}. Nothing was overwritten. To replace it, \
             `backup forget {id} --storage {storage}`, then copy again"
        );
        return (CopyState::Differs, Some(problem));
    }
    match there.map(|there| (&there.storage, &there.manifest)) {
        None => (CopyState::Planned, None),
        Some((_, Ok(there))) if there.artifacts == manifest.artifacts => (CopyState::Present, None),
        Some((storage, Ok(_))) => {
            let problem = format!(
                "`{storage}` has a snapshot of this id with other artifacts; nothing was \
                 overwritten. Look at both with `backup show`"
            );
            (CopyState::Differs, Some(problem))
        }
        Some((storage, Err(error))) if !error.is_damage() => {
            let problem = format!("`{storage}` has a snapshot of this id: {error}");
            (CopyState::Differs, Some(problem))
        }
        Some((storage, Err(error))) => {
            let problem = format!(
                "`{storage}` has a snapshot of this id whose manifest cannot be used ({error}); \
                 nothing was overwritten. \
                 Delete that folder there, then copy again"
            );
            (CopyState::Differs, Some(problem))
        }
    }
}
