//! Where the streams of a source go: through an encoder each, once, into every storage side by
//! side.
//!
//! A stream has one lane for each storage that is still well: a task with a short queue, which
//! writes objects that stay unpublished. A lane that fails takes its storage out of the run and
//! leaves the others going. An artifact's objects are published when its source has finished it;
//! they count once the source has returned success with it.

use std::any::Any;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::engine::context::OpenStorage;
use crate::model::{
    Artifact, ArtifactFacts, ArtifactKind, Cancel, Codec, Name, RemoteCheck, StoredObject,
    artifact_name,
};
use crate::pipeline::{Block, EncodeSettings, Encoded, Encoder, ObjectSink, Throttle};
use crate::report::Progress;
use crate::source::{ArtifactSpec, Finished, Output, OutputWriter, Outputs};
use crate::storage::{CreateOptions, StorageError, Upload};

/// Chunks that wait in front of one storage.
const QUEUE: usize = 1;

/// One storage of a run.
pub(in crate::engine) struct Member {
    pub(in crate::engine) open: OpenStorage,
    pub(in crate::engine) upload_rate: Option<Throttle>,
    state: Mutex<MemberState>,
}

struct MemberState {
    /// Why it is out of the run.
    failure: Option<StorageError>,
    /// The weakest check that any of its objects had.
    check: RemoteCheck,
}

impl Member {
    pub(in crate::engine) fn new(open: OpenStorage, upload_rate: Option<Throttle>) -> Arc<Self> {
        let state = Mutex::new(MemberState { failure: None, check: RemoteCheck::Crc32c });
        Arc::new(Self { open, upload_rate, state })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, MemberState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the storage out of the run. The first failure is the one that is told.
    pub(in crate::engine) fn fail(&self, error: StorageError) {
        let mut state = self.state();
        if state.failure.is_none() {
            tracing::error!(storage = %self.open.name, "{error}");
            state.failure = Some(error);
        }
    }

    pub(in crate::engine) fn is_well(&self) -> bool {
        self.state().failure.is_none()
    }

    pub(in crate::engine) fn take_failure(&self) -> Option<StorageError> {
        self.state().failure.take()
    }

    pub(in crate::engine) fn check(&self) -> RemoteCheck {
        self.state().check
    }

    fn checked(&self, check: RemoteCheck) {
        let mut state = self.state();
        state.check = state.check.min(check);
    }
}

/// What all streams of a run share.
#[derive(Clone)]
pub(in crate::engine) struct Outlet {
    pub(in crate::engine) members: Vec<Arc<Member>>,
    /// For the bulk of a source.
    pub(in crate::engine) settings: EncodeSettings,
    /// `<instance>/<strategy>/<id>/`.
    pub(in crate::engine) folder: String,
    pub(in crate::engine) cancel: Cancel,
    pub(in crate::engine) progress: Progress,
    pub(in crate::engine) runtime: Handle,
    /// Every task of the run's streams, so that its end can wait until nothing of it is left open.
    pub(in crate::engine) tasks: TaskTracker,
}

impl Outlet {
    /// Waits until what was given up is aborted. Only when no stream is open any more.
    pub(in crate::engine) async fn settle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A stream that was encoded and published.
pub(in crate::engine) struct Written {
    pub(in crate::engine) artifact: Artifact,
    pub(in crate::engine) facts: ArtifactFacts,
    blocks: Vec<Block>,
}

enum Message {
    Begin(u32),
    Chunk(Bytes),
}

type Lane = JoinHandle<Vec<Box<dyn Upload>>>;

/// One storage's end of a stream: objects in order, left open. On failure it gives up what it began
/// and takes its storage out.
async fn lane(
    member: Arc<Member>,
    base: String,
    options: CreateOptions,
    mut messages: mpsc::Receiver<Message>,
    cancel: Cancel,
) -> Vec<Box<dyn Upload>> {
    let mut uploads: Vec<Box<dyn Upload>> = Vec::new();
    let written: Result<(), StorageError> = async {
        while let Some(message) = messages.recv().await {
            match message {
                Message::Begin(index) => {
                    uploads.push(
                        member.open.storage.create(&object_key(&base, index), options).await?,
                    );
                }
                Message::Chunk(chunk) => {
                    if let Some(rate) = &member.upload_rate {
                        rate.pass(chunk.len() as u64, &cancel).await;
                    }
                    match uploads.last_mut() {
                        Some(upload) => upload.write(chunk).await?,
                        None => {
                            return Err(StorageError::unsuitable("Bytes came before their object"));
                        }
                    }
                }
            }
        }
        Ok(())
    }
    .await;
    if let Err(error) = written {
        member.fail(error);
        // The sender sees the closed queue before the aborts are waited for.
        drop(messages);
        abort(std::mem::take(&mut uploads)).await;
    }
    uploads
}

async fn abort(uploads: Vec<Box<dyn Upload>>) {
    for upload in uploads {
        upload.abort().await;
    }
}

/// The key of a stream's object: `db.pgdump.zst`, then `db.pgdump.zst.0002`, ...
fn object_key(base: &str, index: u32) -> String {
    if index == 0 { base.to_owned() } else { format!("{base}.{:04}", index + 1) }
}

/// Sends the objects of one stream to every lane that still takes them.
struct FanOut {
    senders: Vec<mpsc::Sender<Message>>,
}

impl FanOut {
    fn send(&mut self, message: impl Fn() -> Message) -> io::Result<()> {
        self.senders.retain(|sender| sender.blocking_send(message()).is_ok());
        if self.senders.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "No storage is left to write to",
            ));
        }
        Ok(())
    }
}

impl ObjectSink for FanOut {
    fn begin(&mut self, index: u32) -> io::Result<()> {
        self.send(|| Message::Begin(index))
    }

    fn write(&mut self, chunk: Bytes) -> io::Result<()> {
        self.send(|| Message::Chunk(chunk.clone()))
    }
}

/// A stream on its way: the encoder, and the lanes behind it.
struct Stream {
    encoder: Encoder,
    progress: Progress,
    lanes: Lanes,
}

struct Lanes {
    tasks: Vec<(Arc<Member>, Lane)>,
    outlet: Outlet,
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.encoder.write(bytes)?;
        self.progress.add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

impl OutputWriter for Stream {
    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl Drop for Lanes {
    /// What was not finished is given up: the lanes end with the encoder, and what they hold open
    /// is aborted. The run waits for that with [`Outlet::settle`].
    fn drop(&mut self) {
        for (_, task) in self.tasks.drain(..) {
            let aborting = async move {
                if let Ok(uploads) = task.await {
                    abort(uploads).await;
                }
            };
            self.outlet.tasks.spawn_on(aborting, &self.outlet.runtime);
        }
    }
}

/// The [`Outputs`] of one source.
pub(in crate::engine) struct SourceOutputs {
    outlet: Outlet,
    source: Option<Name>,
    /// Which attempt at the source this is: each has keys that no other has.
    attempt: u32,
    /// The keys of objects that were published, or may have been.
    published: Mutex<Vec<String>>,
}

impl SourceOutputs {
    pub(in crate::engine) fn new(outlet: Outlet, source: Option<Name>) -> Self {
        Self { outlet, source, attempt: 1, published: Mutex::default() }
    }

    /// Those of a later attempt at the same source.
    pub(in crate::engine) fn of_attempt(self, attempt: u32) -> Self {
        Self { attempt, ..self }
    }

    /// Deletes what this attempt published, as far as the storages let it: nothing will name it.
    pub(in crate::engine) async fn discard(&self) {
        let keys =
            std::mem::take(&mut *self.published.lock().unwrap_or_else(PoisonError::into_inner));
        for member in self.outlet.members.iter().filter(|member| member.is_well()) {
            for key in &keys {
                if self.outlet.cancel.is_cancelled() {
                    return;
                }
                let key = format!("{}{key}", self.outlet.folder);
                match member.open.storage.delete(&key).await {
                    Ok(()) => {}
                    // Credentials that may only write are a normal case.
                    Err(error) if error.is_denied_or_locked() => break,
                    Err(error) => {
                        tracing::warn!(storage = %member.open.name, "what an attempt left could \
                            not be deleted, and goes with the snapshot: {error}");
                        break;
                    }
                }
            }
        }
    }

    fn base_name(&self, spec: &ArtifactSpec) -> String {
        match &self.source {
            Some(source) => artifact_name(source, spec.number, spec.extension),
            None => spec.extension.to_owned(),
        }
    }

    /// The key of its first object, in the snapshot's folder.
    fn base_key(&self, spec: &ArtifactSpec, codec: Codec) -> String {
        let attempt = match self.attempt {
            1 => String::new(),
            attempt => format!(".try{attempt}"),
        };
        format!("{}{attempt}{}", self.base_name(spec), codec.suffix())
    }

    fn open(&self, spec: &ArtifactSpec) -> io::Result<Stream> {
        let mut settings = self.outlet.settings.clone();
        if !spec.bulk {
            settings.threads = 1;
            settings.read_rate = None;
        }
        let codec = settings.compression.codec(!settings.recipients.is_empty());
        let base = format!("{}{}", self.outlet.folder, self.base_key(spec, codec));
        let options = CreateOptions { small: !spec.bulk, ..CreateOptions::default() };
        let mut senders = Vec::new();
        let mut tasks = Vec::new();
        for member in self.outlet.members.iter().filter(|member| member.is_well()) {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let cancel = self.outlet.cancel.clone();
            let work = lane(Arc::clone(member), base.clone(), options, receiver, cancel);
            let task = self.outlet.tasks.spawn_on(work, &self.outlet.runtime);
            senders.push(sender);
            tasks.push((Arc::clone(member), task));
        }
        let lanes = Lanes { tasks, outlet: self.outlet.clone() };
        let encoder = Encoder::new(settings, Box::new(FanOut { senders }))?;
        Ok(Stream { encoder, progress: self.outlet.progress.clone(), lanes })
    }

    /// Ends a stream that is complete: encodes what is left and publishes its objects in every
    /// storage that took them all.
    fn end(&self, spec: &ArtifactSpec, stream: Stream) -> io::Result<Written> {
        let Stream { encoder, mut lanes, .. } = stream;
        let (encoded, sink) = encoder.finish()?;
        drop(sink);
        let name = self.base_name(spec);
        let base = self.base_key(spec, encoded.codec);
        let artifact = artifact(&name, &base, self.source.as_ref(), spec.kind, &encoded);
        let keys = artifact.objects.iter().map(|object| object.key.clone());
        self.published.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        // Taken out one by one: should one lane have panicked, the others are given up with the
        // rest.
        while let Some((member, task)) = lanes.tasks.pop() {
            let uploads = self.outlet.runtime.block_on(task).map_err(io::Error::other)?;
            if !member.is_well() {
                self.outlet.runtime.block_on(abort(uploads));
            } else if let Err(error) =
                self.outlet.runtime.block_on(publish(&member, uploads, &artifact.objects))
            {
                member.fail(error);
            }
        }
        if !self.outlet.members.iter().any(|member| member.is_well()) {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "No storage is left to write to",
            ));
        }
        let facts = ArtifactFacts {
            name,
            plain_bytes: encoded.plain_bytes,
            plain_digest: encoded.plain_digest,
            of: None,
            facts: None,
        };
        Ok(Written { artifact, facts, blocks: encoded.blocks })
    }

    /// What a source that succeeded has written, in the order it gave it.
    pub(in crate::engine) fn written(artifacts: Vec<Finished>) -> io::Result<Vec<Written>> {
        let mut all = Vec::new();
        for artifact in artifacts {
            let (of, facts) = (artifact.of.clone(), artifact.facts.clone());
            let written = artifact.into_written().downcast::<Vec<Written>>();
            let mut written = *written.map_err(|_| not_of_this_run())?;
            // What comes after it belongs to it, as its block list does.
            if let Some(first) = written.first_mut() {
                (first.facts.of, first.facts.facts) = (of, facts);
            }
            all.extend(written);
        }
        Ok(all)
    }

    /// Writes a document that this program makes itself as an artifact.
    pub(in crate::engine) fn write_document(
        &self,
        extension: &'static str,
        kind: ArtifactKind,
        body: &[u8],
    ) -> io::Result<Written> {
        let number = ArtifactSpec::FIRST;
        let spec = ArtifactSpec { extension, number, kind, bulk: false, blocks: false };
        let mut stream = self.open(&spec)?;
        stream.encoder.write_all(body)?;
        self.end(&spec, stream)
    }

    fn write_blocks(&self, of: &Written, number: NonZeroU32) -> io::Result<Written> {
        let spec = ArtifactSpec {
            extension: "blocks",
            number,
            kind: ArtifactKind::Blocks,
            bulk: false,
            blocks: false,
        };
        let mut stream = self.open(&spec)?;
        let out = &mut stream.encoder;
        writeln!(
            out,
            r#"{{"format":1,"type":"holdfast-blocks","block_bytes":{}}}"#,
            self.outlet.settings.block_bytes
        )?;
        for block in &of.blocks {
            writeln!(out, r#"{{"plain":{},"compressed":{}}}"#, block.plain, block.compressed)?;
        }
        writeln!(
            out,
            r#"{{"end":true,"blocks":{},"plain_bytes":{},"compressed_bytes":{}}}"#,
            of.blocks.len(),
            of.facts.plain_bytes,
            of.artifact.compressed_bytes
        )?;
        self.end(&spec, stream)
    }
}

impl Outputs for SourceOutputs {
    fn create(&self, spec: ArtifactSpec) -> io::Result<Output> {
        let stream = self.open(&spec)?;
        Ok(Output::new(spec, Box::new(stream)))
    }

    fn finish(&self, output: Output) -> io::Result<Finished> {
        let spec = output.spec.clone();
        let stream = output.into_writer().into_any().downcast::<Stream>();
        let written = self.end(&spec, *stream.map_err(|_| not_of_this_run())?)?;
        let blocks = spec.blocks.then(|| self.write_blocks(&written, spec.number)).transpose()?;
        let all: Vec<Written> = std::iter::once(written).chain(blocks).collect();
        Ok(Finished::new(spec, Box::new(all)))
    }
}

fn not_of_this_run() -> io::Error {
    io::Error::other("A source gave back an artifact that is not of this run")
}

/// What the manifest says of an encoded stream.
fn artifact(
    name: &str,
    base: &str,
    source: Option<&Name>,
    kind: ArtifactKind,
    encoded: &Encoded,
) -> Artifact {
    let objects = (0..)
        .zip(&encoded.objects)
        .map(|(index, object)| StoredObject {
            key: object_key(base, index),
            size: object.size,
            digest: object.digest,
        })
        .collect();
    Artifact {
        name: name.to_owned(),
        source: source.cloned(),
        kind,
        codec: encoded.codec,
        compressed_bytes: encoded.compressed_bytes,
        objects,
    }
}

/// Publishes the objects of one stream in one storage, and holds what the storage says it has
/// against what was encoded.
async fn publish(
    member: &Member,
    uploads: Vec<Box<dyn Upload>>,
    objects: &[StoredObject],
) -> Result<(), StorageError> {
    let mismatch = |key: &str, problem: String| {
        StorageError::mismatch(member.open.storage.address(), key, problem)
    };
    if uploads.len() != objects.len() {
        let problem =
            format!("{} objects were begun, and {} were encoded", uploads.len(), objects.len());
        abort(uploads).await;
        return Err(mismatch(objects.first().map_or("", |object| &object.key), problem));
    }
    let mut pairs = uploads.into_iter().zip(objects);
    while let Some((upload, object)) = pairs.next() {
        let finished = upload.finish().await.and_then(|finished| {
            if finished.size == object.size {
                Ok(finished)
            } else {
                Err(mismatch(
                    &object.key,
                    format!("it has {} bytes of {}", finished.size, object.size),
                ))
            }
        });
        match finished {
            Ok(finished) => member.checked(finished.check),
            Err(error) => {
                abort(pairs.map(|(upload, _)| upload).collect()).await;
                return Err(error);
            }
        }
    }
    Ok(())
}
