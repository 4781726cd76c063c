//! A snapshot that is brought into a storage from elsewhere, byte for byte: from another storage,
//! or from an exported file.
//!
//! It arrives under a heartbeat, as a run's does, and its manifest is written last. The objects of
//! an arrival that died are taken up again, one by one, after they were read back.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::TryStreamExt as _;
use tokio::task::JoinHandle;

use crate::engine::context::{Engine, OpenStorage};
use crate::engine::error::EngineError;
use crate::engine::snapshots::damage::note_arrival;
use crate::engine::snapshots::mark_writer::put_back_hold;
use crate::engine::state::locks::StateLock;
use crate::engine::state::node::node;
use crate::engine::write::heartbeat::{Heartbeat, read_heartbeat};
use crate::engine::write::leftovers::{self, Fate};
use crate::engine::write::writer;
use crate::model::{
    ByteSize, Digest, Digester, MANIFEST_KEY, Manifest, Name, RUN_KEY, RemoteCheck, SnapshotId,
    SnapshotRef, StorageNote, StoredObject, total,
};
use crate::pipeline::Throttle;
use crate::storage::{CreateOptions, Storage, StorageError, StorageErrorKind, Upload};

/// An object up to this size is small for its storage: it is held in less memory.
const SMALL_BYTES: u64 = 16 << 20;

/// Room that must be left on a storage beyond what arrives.
const SPARE_BYTES: u64 = 16 << 20;

/// The right to bring snapshots of one strategy into one storage, while it lives: no run of it
/// writes there meanwhile.
pub(in crate::engine) struct Gate<'a> {
    engine: &'a Engine,
    to: &'a OpenStorage,
    instance: Name,
    /// `<instance>/<strategy>/`.
    folder: String,
    node: String,
    _state: StateLock,
    _storage: Option<Box<dyn Send + Sync>>,
}

impl<'a> Gate<'a> {
    /// Locks the strategy, on this machine and in the storage.
    ///
    /// # Errors
    /// [`EngineError::Locked`] when a run, or another arrival, holds the lock.
    pub(in crate::engine) async fn open(
        engine: &'a Engine,
        to: &'a OpenStorage,
        instance: &Name,
        strategy: &Name,
    ) -> Result<Self, EngineError> {
        let state = StateLock::take(&engine.state_dir, instance, strategy)?;
        let node = node(&engine.state_dir)?;
        let folder = SnapshotRef::strategy_folder(instance, strategy);
        let lock =
            to.storage.lock(folder.trim_end_matches('/')).await.map_err(|error| match error {
                error if error.is_busy() => EngineError::Locked {
                    strategy: strategy.clone(),
                    holder: writer::holder(&error),
                },
                error => EngineError::storage(&to.name, error),
            })?;
        Ok(Self {
            engine,
            to,
            instance: instance.clone(),
            folder,
            node,
            _state: state,
            _storage: lock,
        })
    }
}

/// One snapshot on its way into a storage.
pub(in crate::engine) struct Arrival<'a> {
    gate: &'a Gate<'a>,
    id: SnapshotId,
    /// `<instance>/<strategy>/<id>/`.
    folder: String,
    heartbeat: Heartbeat,
    beating: JoinHandle<()>,
    rate: Option<Throttle>,
    /// Sizes of what an earlier arrival left, by key within the folder.
    left: BTreeMap<String, u64>,
    /// Those of them that are not right and may not be deleted.
    stuck: BTreeSet<String>,
    /// The weakest check that any of its objects had.
    check: RemoteCheck,
    /// Whether a manifest was sent: then it may be there, whatever the storage answered.
    attempted: bool,
}

impl<'a> Arrival<'a> {
    /// Makes sure that nobody writes there, and leaves a heartbeat.
    ///
    /// # Errors
    /// [`StorageErrorKind::Busy`] when somebody writes there, or may come back to,
    /// [`StorageErrorKind::AlreadyExists`] when the snapshot is there.
    pub(in crate::engine) async fn begin(
        gate: &'a Gate<'a>,
        id: &SnapshotId,
        rate: Option<Throttle>,
    ) -> Result<Self, StorageError> {
        let storage = gate.to.storage.as_ref();
        writer::look(storage, &gate.folder, &gate.node, id).await?;
        let folder = format!("{}{id}/", gate.folder);
        put_back_hold(gate.engine, gate.to, &gate.instance, id).await?;
        let left = take_over(storage, gate, id, &folder).await?;
        let heartbeat = Heartbeat::new(gate.node.clone(), gate.engine.clock.now_seconds());
        if let Err(error) = writer::enter(storage, &gate.folder, &heartbeat, id).await {
            // What was left before keeps the heartbeat, which tells that we may take it up again.
            if left.is_empty() && may_tidy(gate, id, &heartbeat).await {
                let _ = storage.delete(&format!("{folder}{RUN_KEY}")).await;
            }
            return Err(error);
        }
        // Another machine may have begun the same snapshot at the same moment: then the last
        // heartbeat says whose turn it is.
        ensure_ours(gate, id, &heartbeat).await?;
        let key = format!("{folder}{RUN_KEY}");
        let beating = writer::beat(
            gate.to.clone(),
            key,
            gate.engine.clock.clone(),
            heartbeat.clone(),
            || true,
        );
        Ok(Self {
            gate,
            id: id.clone(),
            folder,
            heartbeat,
            beating: tokio::spawn(beating),
            rate,
            left,
            stuck: BTreeSet::new(),
            check: RemoteCheck::Crc32c,
            attempted: false,
        })
    }

    fn storage(&self) -> &dyn Storage {
        self.gate.to.storage.as_ref()
    }

    /// Refuses a snapshot that could not arrive whole, before anything of it is sent.
    ///
    /// # Errors
    /// [`StorageErrorKind::Unsuitable`] for an object that is too large,
    /// [`StorageErrorKind::Full`].
    pub(in crate::engine) async fn ensure_room(
        &self,
        manifest: &Manifest,
    ) -> Result<(), StorageError> {
        if let Some(largest) = self.storage().max_object_bytes()
            && let Some(object) = objects(manifest).find(|object| object.size > largest)
        {
            return Err(StorageError::unsuitable(format!(
                "`{}` has {}, and `{}` takes objects of up to {}: raise the `part_size` of that \
                 storage",
                object.key,
                ByteSize(object.size),
                self.storage().address(),
                ByteSize(largest)
            )));
        }
        let there = objects(manifest)
            .filter(|object| self.left.get(&object.key) == Some(&object.size))
            .map(|object| object.size);
        let there = total(there);
        let needed = manifest.stored_bytes().saturating_sub(there);
        self.ensure_free(needed).await
    }

    /// Refuses what would not fit.
    pub(in crate::engine) async fn ensure_free(&self, needed: u64) -> Result<(), StorageError> {
        match self.storage().free_bytes().await? {
            Some(free) if free < needed.saturating_add(SPARE_BYTES) => Err(StorageError::new(
                StorageErrorKind::Full,
                self.storage().address(),
                format!("bring in `{}`", self.id),
                format!(
                    "{} are free, and it has {}. Free some space",
                    ByteSize(free),
                    ByteSize(needed)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether the object is there already, from an earlier arrival, and right: it is read back.
    /// What is there and not right is deleted.
    pub(in crate::engine) async fn has(
        &mut self,
        object: &StoredObject,
    ) -> Result<bool, StorageError> {
        let Some(size) = self.left.remove(&object.key) else { return Ok(false) };
        let key = format!("{}{}", self.folder, object.key);
        if size == object.size && self.digest_of(&key).await? == object.digest {
            // Read back is more than any check of the storage, but there is no word for it.
            self.check = RemoteCheck::Size;
            return Ok(true);
        }
        tracing::info!(key, "what an earlier copy left is not whole, and is sent again");
        self.discard(&object.key).await?;
        Ok(false)
    }

    async fn discard(&mut self, key: &str) -> Result<(), StorageError> {
        match self.storage().delete(&format!("{}{key}", self.folder)).await {
            Err(error) if error.is_denied_or_locked() => {
                self.stuck.insert(key.to_owned());
                Ok(())
            }
            deleted => deleted,
        }
    }

    async fn digest_of(&self, key: &str) -> Result<Digest, StorageError> {
        let mut stream = self.storage().read(key, None).await?;
        let mut digester = Digester::new();
        while let Some(chunk) = stream.try_next().await? {
            if self.gate.engine.cancel.is_cancelled() {
                return Err(StorageError::cancelled());
            }
            digester.update(&chunk);
            self.gate.engine.progress.add(chunk.len() as u64);
        }
        Ok(digester.finish())
    }

    /// Begins an object of about `size` bytes.
    pub(in crate::engine) async fn open(
        &mut self,
        key: &str,
        size: u64,
    ) -> Result<Incoming, StorageError> {
        if self.left.remove(key).is_some() {
            self.discard(key).await?;
        }
        let (small, replaces) = (size <= SMALL_BYTES, self.stuck.contains(key));
        let options = CreateOptions { small, replaces, ..CreateOptions::default() };
        let upload = self.storage().create(&format!("{}{key}", self.folder), options).await?;
        Ok(Incoming {
            upload,
            engine: self.gate.engine.clone(),
            rate: self.rate.clone(),
            digester: Digester::new(),
            size: 0,
        })
    }

    /// Publishes an object that was found right.
    pub(in crate::engine) async fn publish(
        &mut self,
        incoming: Incoming,
    ) -> Result<(), StorageError> {
        let (size, finished) = (incoming.size, incoming.upload.finish().await?);
        if finished.size != size {
            return Err(StorageError::mismatch(
                self.storage().address(),
                &self.folder,
                format!("an object has {} bytes of {size}", finished.size),
            ));
        }
        self.check = self.check.min(finished.check);
        Ok(())
    }

    /// Looks up every object, then writes the manifest `body`, as read and with a note of this
    /// storage: the commit.
    ///
    /// # Errors
    /// When it is not certain that it is committed.
    pub(in crate::engine) async fn commit(
        &mut self,
        manifest: &Manifest,
        body: &[u8],
    ) -> Result<(), StorageError> {
        writer::look_up(self.storage(), &self.folder, objects(manifest)).await?;
        ensure_ours(self.gate, &self.id, &self.heartbeat).await?;
        if self.gate.engine.cancel.is_cancelled() {
            return Err(StorageError::cancelled());
        }
        let note = StorageNote { name: self.gate.to.name.clone(), remote_check: self.check };
        let body = Manifest::for_copy(body, &note)
            .map_err(|error| StorageError::unsuitable(error.to_string()))?;
        let copy = Manifest { storage: note, ..manifest.clone() };
        let options = CreateOptions { small: true, ..CreateOptions::default() };
        let mut upload =
            self.storage().create(&format!("{}{MANIFEST_KEY}", self.folder), options).await?;
        upload.write(Bytes::from(body)).await?;
        self.attempted = true;
        upload.finish().await?;
        tracing::info!(storage = %self.gate.to.name, id = %self.id, "committed");
        note_arrival(self.gate.engine, self.gate.to, &copy).await;
        Ok(())
    }

    /// Ends the renewing of the heartbeat: none may come after it was taken away.
    async fn hush(&mut self) {
        self.beating.abort();
        let _ = (&mut self.beating).await;
    }

    /// Ends an arrival that was committed. The heartbeat goes; one that stays tells nobody
    /// anything.
    pub(in crate::engine) async fn leave(mut self) {
        self.hush().await;
        match writer::leave(self.storage(), &self.folder).await {
            // It tells nobody anything beside a manifest.
            Err(error) if error.is_denied_or_locked() => {}
            Err(error) => {
                tracing::warn!(storage = %self.gate.to.name, "the heartbeat could not be taken \
                    away: {error}");
            }
            Ok(()) => {}
        }
    }

    /// Ends an arrival that was not committed. What it brought is deleted, unless `keep`: then the
    /// next one takes it up.
    pub(in crate::engine) async fn give_up(mut self, keep: bool) {
        self.hush().await;
        // A manifest that was sent may yet come to light, and must find its objects when it does.
        if keep || self.attempted || !may_tidy(self.gate, &self.id, &self.heartbeat).await {
            return;
        }
        match self.remove().await {
            // Who may delete there sweeps it.
            Err(error) if error.is_denied_or_locked() => {}
            Err(error) => {
                tracing::warn!(storage = %self.gate.to.name, "could not clean up: {error}; a later \
                    run will");
            }
            Ok(()) => {}
        }
    }

    /// Deletes what this brought. Where another machine committed the snapshot first, only our
    /// heartbeat goes: that machine has removed its own before ours was there.
    async fn remove(&self) -> Result<(), StorageError> {
        leftovers::remove(self.storage(), &self.gate.folder, &self.id).await?;
        let (_, stale, _) =
            leftovers::unfinished(self.storage(), &self.folder, &self.gate.folder).await?;
        for key in stale {
            self.storage().delete(&key).await?;
        }
        Ok(())
    }
}

/// Refuses to go on where another has taken over.
async fn ensure_ours(
    gate: &Gate<'_>,
    id: &SnapshotId,
    heartbeat: &Heartbeat,
) -> Result<(), StorageError> {
    let storage = gate.to.storage.as_ref();
    let who = match read_heartbeat(storage, &gate.folder, id).await {
        Ok(Some(found)) if found.is_of(heartbeat) => return Ok(()),
        Ok(Some(found)) => format!("`{}` (process {}) took over `{id}`", found.host, found.pid),
        Ok(None) => format!("our heartbeat in `{id}` was taken away"),
        // Credentials that may only write cannot tell.
        Err(error) if error.is_denied() => return Ok(()),
        Err(error) => return Err(error),
    };
    Err(writer::busy(storage, &gate.folder, &who))
}

/// Whether what lies there is ours to delete. When asked to stop, a storage does not read any more;
/// that nobody took over was seen before.
async fn may_tidy(gate: &Gate<'_>, id: &SnapshotId, heartbeat: &Heartbeat) -> bool {
    match ensure_ours(gate, id, heartbeat).await {
        Ok(()) => true,
        Err(error) => error.is_cancelled(),
    }
}

/// Refuses a manifest whose objects would get in the way of what makes a snapshot of a folder.
pub(in crate::engine) fn check_keys(manifest: &Manifest) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for StoredObject { key, .. } in objects(manifest) {
        let reserved = key == MANIFEST_KEY
            || key == RUN_KEY
            || key.starts_with('.')
            || key.contains(char::is_control);
        if reserved || !seen.insert(key) {
            return Err(format!(
                "`manifest.json` lists an object {key:?} {}",
                if reserved { "that can be none" } else { "twice" }
            ));
        }
    }
    Ok(())
}

/// Every object of a snapshot, in order.
pub(in crate::engine) fn objects(manifest: &Manifest) -> impl Iterator<Item = &StoredObject> {
    manifest.artifacts.iter().flat_map(|artifact| &artifact.objects)
}

/// What an arrival that died left in the folder of `id`, if its writer is dead for certain.
async fn take_over(
    storage: &dyn Storage,
    gate: &Gate<'_>,
    id: &SnapshotId,
    folder: &str,
) -> Result<BTreeMap<String, u64>, StorageError> {
    let (found, _, snapshots) = leftovers::unfinished(storage, folder, &gate.folder).await?;
    if snapshots > 0 {
        return Err(StorageError::already_exists(
            storage.address(),
            format!("{folder}{MANIFEST_KEY}"),
        ));
    }
    let Some(unfinished) = found.first() else { return Ok(BTreeMap::new()) };
    if let Some(key) = &unfinished.irregular {
        let problem = format!("`{key}` is not a file; move it out of the storage");
        return Err(StorageError::failed(storage.address(), format!("write `{folder}`"), problem));
    }
    match unfinished.fate(storage, &gate.folder, &gate.node, storage.now().await?).await? {
        Fate::Dead => {}
        Fate::Alive(who) => return Err(writer::busy(storage, &gate.folder, &who)),
        Fate::Left => {
            let who = format!(
                "whoever began `{id}` is silent and may come back; it counts as dead after 24 \
                 hours, to the machine that it was on after 5 minutes"
            );
            return Err(writer::busy(storage, &gate.folder, &who));
        }
    }
    match storage.sweep_uploads(folder, chrono::DateTime::<chrono::Utc>::MAX_UTC).await {
        // Credentials that may only write are a normal case; what is left there is in nobody's way.
        Err(error) if !error.is_denied() => return Err(error),
        _ => {}
    }
    let mut left = BTreeMap::new();
    let mut listing = storage.list(folder);
    while let Some(object) = listing.try_next().await? {
        if let Some(key) = object.key.strip_prefix(folder) {
            left.insert(key.to_owned(), object.size);
        }
    }
    left.remove(RUN_KEY);
    Ok(left)
}

/// An object while it arrives, not yet visible.
pub(in crate::engine) struct Incoming {
    upload: Box<dyn Upload>,
    engine: Engine,
    rate: Option<Throttle>,
    digester: Digester,
    size: u64,
}

impl Incoming {
    /// Takes the next bytes.
    pub(in crate::engine) async fn write(&mut self, chunk: Bytes) -> Result<(), StorageError> {
        let cancel = &self.engine.cancel;
        if let Some(rate) = &self.rate {
            rate.pass(chunk.len() as u64, cancel).await;
        }
        if cancel.is_cancelled() {
            return Err(StorageError::cancelled());
        }
        let size = chunk.len() as u64;
        self.digester.update(&chunk);
        self.size = self.size.saturating_add(size);
        self.upload.write(chunk).await?;
        self.engine.progress.add(size);
        Ok(())
    }

    /// Bytes that came so far.
    pub(in crate::engine) fn size(&self) -> u64 {
        self.size
    }

    /// The digest of what came so far.
    pub(in crate::engine) fn digest(&self) -> Digest {
        self.digester.clone().finish()
    }

    /// Gives it up.
    pub(in crate::engine) async fn abort(self) {
        self.upload.abort().await;
    }
}
