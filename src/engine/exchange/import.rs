//! Out of a file, into a storage.
//!
//! The manifest stands last in the file, so what comes before it is published unjudged, under a
//! heartbeat and in a folder that is no snapshot yet. Only when the manifest says the same of every
//! object is it written; else all is deleted again.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::engine::context::{Engine, OpenStorage, on_thread};
use crate::engine::error::EngineError;
use crate::engine::exchange::{README, SEALED};
use crate::engine::snapshots::documents::{LARGEST_MANIFEST, read_document};
use crate::engine::snapshots::mark_writer::put_marks;
use crate::engine::snapshots::marks::LARGEST_MARK;
use crate::engine::write::snapshot_writer::{Arrival, Gate, check_keys, objects};
use crate::model::{
    ByteSize, Digest, Digester, Input, MANIFEST_KEY, MARKS_FOLDER, Manifest, Mark, Name, RUN_KEY,
    Rate, SnapshotId, SnapshotRef,
};
use crate::pipeline::{DecodeError, Identity, Throttle, decoder};
use crate::storage::StorageError;

/// Chunks that wait between the file and the storage.
const QUEUE: usize = 2;
/// How much is read at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// More marks than this are not of one snapshot.
const MOST_MARKS: usize = 1_000;
/// Bytes of marks that are held until the manifest is known.
const MOST_MARK_BYTES: u64 = 16 << 20;
/// More members than this are not of one snapshot.
const MOST_MEMBERS: usize = 100_000;
/// The first bytes of a file that is encrypted with age.
const AGE: &[u8] = b"age-encryption.org/v1";

/// What is to be imported.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    pub file: PathBuf,
    /// What opens it, when it is encrypted as a whole.
    pub identities: Vec<Identity>,
    /// The application that it must be of; any when none.
    pub instance: Option<Name>,
    /// How fast it is sent, at most.
    pub upload_rate: Option<Rate>,
}

/// What was imported.
#[derive(Debug, Clone, Serialize)]
pub struct ImportReport {
    pub instance: Name,
    pub strategy: Name,
    pub id: SnapshotId,
    /// The storage that has it now.
    pub storage: Name,
    pub address: String,
    /// Bytes of its objects.
    pub stored_bytes: u64,
    /// Whether it was there already, with the same artifacts: then nothing was written.
    pub present: bool,
}

/// Takes an exported snapshot into a storage.
///
/// # Errors
/// [`EngineError::BadFile`] when the file is not one whole undamaged snapshot: then nothing of it
/// is left in the storage.
pub async fn import(
    engine: &Engine,
    to: &OpenStorage,
    request: &ImportRequest,
) -> Result<ImportReport, EngineError> {
    let path = &request.file;
    let failed = |attempt| move |error| EngineError::File { attempt, path: path.clone(), error };
    let file = Input::open(path, &engine.cancel).map_err(failed("open"))?;
    let bytes = file.size().map_err(failed("look up"))?;
    engine.progress.begin(format!("importing to {}", to.name), bytes);
    let (sender, parts) = mpsc::channel(QUEUE);
    let identities = request.identities.clone();
    // It ends when nobody takes the parts any more.
    let reading = on_thread(move || {
        if let Err(fault) = read(file, &identities, &sender) {
            let _ = sender.blocking_send(Err(fault));
        }
    })?;
    let mut parts = Parts { path, parts, marks: Vec::new() };
    let first = parts.next_member().await?.ok_or_else(|| parts.bad("It has no manifest"))?;
    let SnapshotRef { instance, strategy, id } = &first.place;
    if let Some(wanted) = request.instance.as_ref().filter(|wanted| *wanted != instance) {
        return Err(EngineError::Request(format!(
            "`{}` is a snapshot of `{instance}`, and not of `{wanted}`. The address of the storage \
             in place of its name takes it in all the same",
            path.display()
        )));
    }
    let gate = Gate::open(engine, to, instance, strategy).await?;
    let place = first.place.clone();
    let work = Import { engine, to, place: &place, bytes };
    let taken = match work.present().await? {
        Some(there) => {
            work.compare(&mut parts, first, &there).await.map(|manifest| (manifest, true))
        }
        None => {
            let rate = request.upload_rate.map(Throttle::new);
            let arrival =
                Arrival::begin(&gate, id, rate).await.map_err(|error| work.failed(error))?;
            work.take_in(&mut parts, first, arrival).await.map(|manifest| (manifest, false))
        }
    };
    drop(parts);
    let _ = reading.await;
    let (manifest, present) = taken?;
    Ok(ImportReport {
        stored_bytes: manifest.stored_bytes(),
        instance: manifest.instance,
        strategy: manifest.strategy,
        id: manifest.id,
        storage: to.name.clone(),
        address: to.storage.address(),
        present,
    })
}

/// What was found in the file, by key.
type Found = BTreeMap<String, (u64, Digest)>;

struct Import<'a> {
    engine: &'a Engine,
    to: &'a OpenStorage,
    place: &'a SnapshotRef,
    bytes: Option<u64>,
}

impl Import<'_> {
    fn failed(&self, error: StorageError) -> EngineError {
        match error {
            _ if self.engine.cancel.is_cancelled() => EngineError::Cancelled,
            error if error.is_busy() => EngineError::Locked {
                strategy: self.place.strategy.clone(),
                holder: format!("it writes to `{}` in `{}`", error.subject(), error.address()),
            },
            error => EngineError::storage(&self.to.name, error),
        }
    }

    /// The snapshot as the storage has it already.
    async fn present(&self) -> Result<Option<Manifest>, EngineError> {
        let SnapshotRef { instance, strategy, id } = self.place;
        match read_document(self.to.storage.as_ref(), &self.place.manifest_key(), LARGEST_MANIFEST)
            .await
        {
            Ok(body) => match Manifest::from_bytes(&body, instance, strategy, id) {
                Ok(manifest) => Ok(Some(manifest)),
                Err(error) => Err(EngineError::Request(format!(
                    "`{}` has a snapshot `{id}` whose manifest cannot be used ({error}); nothing \
                     was overwritten",
                    self.to.storage.address()
                ))),
            },
            // Credentials that may only write cannot tell; the storage refuses a manifest that is
            // not new.
            Err(error) if error.is_not_found() || error.is_denied() => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Reads the file to its end and checks it against itself. With `arrival` its objects are
    /// stored on the way.
    async fn read(
        &self,
        parts: &mut Parts<'_>,
        first: Member,
        mut arrival: Option<&mut Arrival<'_>>,
    ) -> Result<(Manifest, Vec<u8>), EngineError> {
        let (mut found, mut body, mut next) = (Found::new(), None, Some(first));
        while let Some(member) = next {
            self.check(parts, &member, &found)?;
            if member.key == MANIFEST_KEY {
                body = Some(parts.small(&member).await?);
            } else {
                let digest = match &mut arrival {
                    Some(arrival) => self.store(parts, &member, arrival).await?,
                    None => self.digest(parts).await?,
                };
                found.insert(member.key, (member.size, digest));
            }
            next = parts.next_member().await?;
        }
        self.judge(parts, body, &found)
    }

    /// Reads the file, whose snapshot is already stored as `there`, and compares.
    async fn compare(
        &self,
        parts: &mut Parts<'_>,
        first: Member,
        there: &Manifest,
    ) -> Result<Manifest, EngineError> {
        let (manifest, _) = self.read(parts, first, None).await?;
        if manifest.artifacts != there.artifacts {
            return Err(EngineError::Request(format!(
                "`{}` has a snapshot `{}` with other artifacts; nothing was overwritten",
                self.to.storage.address(),
                there.id
            )));
        }
        self.put_marks(parts).await?;
        Ok(manifest)
    }

    /// What was said of the snapshot where it was exported counts where it is imported.
    async fn put_marks(&self, parts: &mut Parts<'_>) -> Result<(), EngineError> {
        let marks = std::mem::take(&mut parts.marks);
        put_marks(self.to, marks).await.map_err(|error| self.failed(error))
    }

    async fn take_in(
        &self,
        parts: &mut Parts<'_>,
        first: Member,
        mut arrival: Arrival<'_>,
    ) -> Result<Manifest, EngineError> {
        match self.receive(parts, first, &mut arrival).await {
            Ok(manifest) => {
                arrival.leave().await;
                Ok(manifest)
            }
            Err(error) => {
                arrival.give_up(false).await;
                Err(error)
            }
        }
    }

    async fn receive(
        &self,
        parts: &mut Parts<'_>,
        first: Member,
        arrival: &mut Arrival<'_>,
    ) -> Result<Manifest, EngineError> {
        arrival
            .ensure_free(self.bytes.unwrap_or_default())
            .await
            .map_err(|error| self.failed(error))?;
        let (manifest, body) = self.read(parts, first, Some(&mut *arrival)).await?;
        // Before the manifest: at no moment may a held snapshot be pruned.
        self.put_marks(parts).await?;
        arrival.commit(&manifest, &body).await.map_err(|error| self.failed(error))?;
        Ok(manifest)
    }

    async fn digest(&self, parts: &mut Parts<'_>) -> Result<Digest, EngineError> {
        let mut digester = Digester::new();
        while let Some(chunk) = parts.chunk().await? {
            if self.engine.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            self.engine.progress.add(chunk.len() as u64);
            digester.update(&chunk);
        }
        Ok(digester.finish())
    }

    async fn store(
        &self,
        parts: &mut Parts<'_>,
        member: &Member,
        arrival: &mut Arrival<'_>,
    ) -> Result<Digest, EngineError> {
        if let Some(largest) =
            self.to.storage.max_object_bytes().filter(|largest| member.size > *largest)
        {
            return Err(self.failed(StorageError::unsuitable(format!(
                "`{}` has {}, and `{}` takes objects of up to {}: raise the `part_size` of that \
                 storage",
                member.key,
                ByteSize(member.size),
                self.to.storage.address(),
                ByteSize(largest)
            ))));
        }
        let mut incoming =
            arrival.open(&member.key, member.size).await.map_err(|error| self.failed(error))?;
        loop {
            let written = match parts.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) => incoming.write(chunk).await.map_err(|error| self.failed(error)),
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                incoming.abort().await;
                return Err(error);
            }
        }
        let digest = incoming.digest();
        arrival.publish(incoming).await.map_err(|error| self.failed(error))?;
        Ok(digest)
    }

    /// Refuses a member that has no place among those before it.
    fn check(&self, parts: &Parts<'_>, member: &Member, found: &Found) -> Result<(), EngineError> {
        let Member { place, key, .. } = member;
        if place != self.place {
            return Err(
                parts.bad(&format!("It has objects of two snapshots, the second is {place}"))
            );
        }
        if found.contains_key(key) {
            return Err(parts.bad(&format!("It has `{key}` twice")));
        }
        if found.len() > MOST_MEMBERS {
            return Err(parts.bad(&format!("It has more than {MOST_MEMBERS} members")));
        }
        Ok(())
    }

    /// Holds what was found against the manifest.
    fn judge(
        &self,
        parts: &Parts<'_>,
        body: Option<Vec<u8>>,
        found: &Found,
    ) -> Result<(Manifest, Vec<u8>), EngineError> {
        let SnapshotRef { instance, strategy, id } = self.place;
        let body = body.ok_or_else(|| parts.bad("It has no manifest: it was cut"))?;
        let manifest = Manifest::from_bytes(&body, instance, strategy, id);
        let manifest =
            manifest.map_err(|error| parts.bad(&format!("`{MANIFEST_KEY}`: {error}")))?;
        check_keys(&manifest).map_err(|problem| parts.bad(&problem))?;
        for object in objects(&manifest) {
            let problem = match found.get(&object.key) {
                None => "is missing".to_owned(),
                Some((size, _)) if *size != object.size => {
                    format!("has {size} bytes of {}", object.size)
                }
                Some((_, digest)) if *digest != object.digest => {
                    format!("has the digest {digest}, and should have {}", object.digest)
                }
                Some(_) => continue,
            };
            return Err(parts.bad(&format!("`{}` {problem}", object.key)));
        }
        let folder = Mark::folder(instance);
        let is_own = |key: &str| {
            key.strip_prefix(&folder).and_then(Mark::id_in_key).is_some_and(|of| of == *id)
        };
        if let Some((key, _)) = parts.marks.iter().find(|(key, _)| !is_own(key)) {
            return Err(parts.bad(&format!("`{key}` is a mark of another snapshot")));
        }
        for (key, body) in &parts.marks {
            match Mark::from_bytes(body, key) {
                Err(error) if !error.is_newer() => {
                    return Err(parts.bad(&format!("`{key}`: {error}")));
                }
                _ => {}
            }
        }
        if objects(&manifest).count() != found.len() {
            return Err(parts.bad("It has objects that its manifest does not name"));
        }
        Ok((manifest, body))
    }
}

/// What the reading thread hands over.
enum Part {
    Member(Member),
    Chunk(Bytes),
    /// The member is whole.
    End,
    /// A mark: its key and all of it.
    Mark(String, Bytes),
}

/// An object of a snapshot in the file.
struct Member {
    place: SnapshotRef,
    /// Within the snapshot's folder.
    key: String,
    size: u64,
}

/// Why the file could not be read on.
enum Fault {
    Locked(String),
    Bad(String),
}

/// The content of the file, in order.
struct Parts<'a> {
    path: &'a Path,
    parts: mpsc::Receiver<Result<Part, Fault>>,
    /// Those that came so far, by key.
    marks: Vec<(String, Bytes)>,
}

impl Parts<'_> {
    fn bad(&self, problem: &str) -> EngineError {
        EngineError::BadFile { path: self.path.to_owned(), problem: problem.to_owned() }
    }

    async fn next(&mut self) -> Result<Option<Part>, EngineError> {
        match self.parts.recv().await {
            None => Ok(None),
            Some(Ok(part)) => Ok(Some(part)),
            Some(Err(Fault::Bad(problem))) => Err(self.bad(&problem)),
            Some(Err(Fault::Locked(why))) => Err(EngineError::Request(format!(
                "`{}` is encrypted, and {why}: name the file of a key that opens it with \
                 `--identity-file`",
                self.path.display()
            ))),
        }
    }

    /// The next object; none at the end of the file.
    async fn next_member(&mut self) -> Result<Option<Member>, EngineError> {
        loop {
            match self.next().await? {
                Some(Part::Mark(key, body)) => self.marks.push((key, body)),
                Some(Part::Member(member)) => return Ok(Some(member)),
                None => return Ok(None),
                Some(_) => {
                    let problem = "Parts of the file came out of order".to_owned();
                    return Err(EngineError::Internal(problem));
                }
            }
        }
    }

    /// The next bytes of the present object; none at its end.
    async fn chunk(&mut self) -> Result<Option<Bytes>, EngineError> {
        match self.next().await? {
            Some(Part::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Part::End) => Ok(None),
            _ => Err(self.bad("It is cut")),
        }
    }

    /// The present object, whole.
    async fn small(&mut self, member: &Member) -> Result<Vec<u8>, EngineError> {
        if member.size > LARGEST_MANIFEST {
            return Err(EngineError::TooLarge(format!(
                "`{}` in `{}` is larger than this version reads: it has {}, and the most is {}",
                member.key,
                self.path.display(),
                ByteSize(member.size),
                ByteSize(LARGEST_MANIFEST)
            )));
        }
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Reads the file and hands over its objects, until it ends or nobody takes them.
fn read(
    mut file: Input,
    identities: &[Identity],
    parts: &mpsc::Sender<Result<Part, Fault>>,
) -> Result<(), Fault> {
    let unreadable = |error: io::Error| Fault::Bad(error.to_string());
    let mut head = Vec::with_capacity(AGE.len());
    file.by_ref().take(AGE.len() as u64).read_to_end(&mut head).map_err(unreadable)?;
    // A pipe cannot be wound back.
    let sealed = head == AGE;
    let file = io::Cursor::new(head).chain(file);
    let plain: Box<dyn Read + Send> = if sealed {
        decoder(Box::new(file), SEALED, identities, None).map_err(|error| match error {
            DecodeError::Locked(why) => Fault::Locked(why),
            DecodeError::Io(error) => Fault::Bad(error.to_string()),
        })?
    } else {
        Box::new(io::BufReader::with_capacity(CHUNK_BYTES, file))
    };
    let mut archive = tar::Archive::new(plain);
    let (mut marks, mut mark_bytes) = (0, 0_u64);
    // Only plain headers: no long names, no attributes, nothing that is read whole into memory
    // because the file says so.
    for entry in archive.entries().map_err(unreadable)?.raw(true) {
        let mut entry = entry.map_err(unreadable)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let kind = entry.header().entry_type();
        if kind.is_dir() && entry.size() == 0 {
            continue;
        }
        if !kind.is_file() {
            return Err(Fault::Bad(format!(
                "{name:?} is not an ordinary file (it has the type {:?})",
                kind.as_byte() as char
            )));
        }
        if name == README {
            continue;
        }
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        if is_mark(&name) {
            (marks, mark_bytes) = (marks + 1, mark_bytes.saturating_add(entry.size()));
            if marks > MOST_MARKS || mark_bytes > MOST_MARK_BYTES || entry.size() > LARGEST_MARK {
                return Err(Fault::Bad("It has more marks than a snapshot has".to_owned()));
            }
            let mut body = Vec::new();
            entry.read_to_end(&mut body).map_err(unreadable)?;
            if body.len() as u64 != entry.size() {
                return Err(Fault::Bad(format!("It ends within {name:?}")));
            }
            if parts.blocking_send(Ok(Part::Mark(name, body.into()))).is_err() {
                return Ok(());
            }
            continue;
        }
        let member = member(&name, entry.size())
            .ok_or_else(|| Fault::Bad(format!("{name:?} is not of a snapshot")))?;
        let mut left = member.size;
        if parts.blocking_send(Ok(Part::Member(member))).is_err() {
            return Ok(());
        }
        while left > 0 {
            let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
            let count = match entry.read(&mut chunk) {
                Ok(0) => {
                    return Err(Fault::Bad(format!(
                        "It ends {left} bytes before the end of {name:?}"
                    )));
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error)),
            };
            chunk.truncate(count);
            left = left.saturating_sub(count as u64);
            if parts.blocking_send(Ok(Part::Chunk(chunk.into()))).is_err() {
                return Ok(());
            }
        }
        if parts.blocking_send(Ok(Part::End)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Whether a member is a mark, by its name.
fn is_mark(name: &str) -> bool {
    let Some((instance, key)) = name.split_once('/') else { return false };
    let Some(key) = key.strip_prefix(MARKS_FOLDER).and_then(|key| key.strip_prefix('/')) else {
        return false;
    };
    let is_plain = |name: &str| !name.starts_with('.') && !name.contains(char::is_control);
    instance.parse::<Name>().is_ok()
        && Mark::id_in_key(key).is_some()
        && key.ends_with(".json")
        && key.split('/').all(is_plain)
}

/// The object that a member's name means.
fn member(name: &str, size: u64) -> Option<Member> {
    let (place, key) = SnapshotRef::of_key(name)?;
    let plain = !key.is_empty()
        && key != RUN_KEY
        && !key.starts_with('.')
        && !key.contains(char::is_control);
    plain.then(|| Member { place, key: key.to_owned(), size })
}

#[cfg(test)]
mod tests {
    use super::{is_mark, member};

    #[test]
    fn only_objects_of_a_snapshot_are_taken_from_a_file() {
        let folder = "app/daily/20261121T013000Z-7f3a9c";
        assert!(member(&format!("{folder}/db.pgdump.zst"), 1).is_some());
        assert!(member(&format!("{folder}/manifest.json"), 1).is_some());
        let id = "20261121T013000Z-7f3a9c";
        assert!(is_mark(&format!("app/marks/{id}/hold-20261122T013000Z-7f3a9c.json")));
        assert!(is_mark(&format!("app/marks/hold-{id}.json")));
        for name in [
            format!("app/marks/{id}/.."),
            format!("app/marks/{id}/.hold.json"),
            format!("app/marks/{id}/hold"),
            format!("app/marks/{id}/a/hold.json"),
            format!("app/marks/../hold-{id}.json"),
            format!("../marks/hold-{id}.json"),
            format!("app/daily/hold-{id}.json"),
            "app/marks/hold.json".to_owned(),
        ] {
            assert!(!is_mark(&name), "{name:?}");
        }
        for name in [
            format!("{folder}/../../../../etc/passwd"),
            format!("{folder}/.."),
            format!("{folder}/.lock"),
            format!("{folder}/run.json"),
            format!("{folder}/"),
            folder.to_owned(),
            format!("/{folder}/db"),
            format!("{folder}/sub/db"),
            format!("{folder}/a\nb"),
            format!("../{folder}/db"),
            "app/marks/20261121T013000Z-7f3a9c/db".to_owned(),
            "app/daily/latest/db".to_owned(),
            String::new(),
        ] {
            assert!(member(&name, 1).is_none(), "{name:?}");
        }
    }
}
