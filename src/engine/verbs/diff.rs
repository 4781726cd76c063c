//! What changed between two snapshots: files by their indexes, tables by the rows that were
//! counted, everything else by its digest.
//!
//! Nothing of the content is fetched. An index may be larger than memory, and need not be sorted
//! the same way as the other: so the entries are compared in as many passes as it takes to hold one
//! share of the older index at a time, shared out by a hash of the path.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::num::NonZeroU32;
use std::ops::ControlFlow;

use serde::Serialize;

use crate::archive::index::Entry;
use crate::archive::{Kind, Time};
use crate::engine::context::{Engine, blocking};
use crate::engine::error::EngineError;
use crate::engine::read::files::{Opened, Side};
use crate::model::{Artifact, ArtifactKind, Digest, Name, parse_artifact_name};
use crate::pipeline::Identity;

/// Entries of the older snapshot that are held at a time: about 25 MiB.
const HELD: usize = 1 << 17;

/// Differences that are held to be sorted by path before they are given out.
const SORTED: usize = 1 << 16;

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The older snapshot does not have it.
    Added,
    /// The newer snapshot does not have it.
    Removed,
    /// Both have it, and it differs.
    Changed,
}

/// What of an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// It is of another kind now.
    Kind,
    /// The bytes of a file, the target of a link, the numbers of a device.
    Content,
    /// Permissions.
    Mode,
    /// User or group.
    Owner,
    /// When it was last written.
    Mtime,
}

/// An entry as one of the snapshots has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileState {
    pub kind: Kind,
    /// Bytes of the content.
    pub size: u64,
    pub digest: Option<Digest>,
    /// When it was last written.
    pub mtime: Time,
    /// Permissions with the setuid, setgid and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of a link; bytes that are not UTF-8 replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip)]
    exact_target: Option<Vec<u8>>,
    #[serde(skip)]
    rdev: Option<(u32, u32)>,
}

impl FileState {
    /// The path, and what is compared.
    fn of(entry: Entry) -> (Vec<u8>, Self) {
        let state = Self {
            kind: entry.kind,
            size: entry.size,
            digest: entry.digest.or(entry.data_digest),
            mtime: entry.mtime,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            target: entry
                .target
                .as_ref()
                .map(|target| String::from_utf8_lossy(target).into_owned()),
            exact_target: entry.target,
            rdev: entry.rdev,
        };
        (entry.path, state)
    }

    fn differs_in(&self, other: &Self) -> Vec<Aspect> {
        let content =
            |state: &Self| (state.size, state.digest, state.exact_target.clone(), state.rdev);
        let mut aspects = Vec::new();
        if self.kind != other.kind {
            aspects.push(Aspect::Kind);
        } else if content(self) != content(other) {
            aspects.push(Aspect::Content);
        }
        if self.mode != other.mode {
            aspects.push(Aspect::Mode);
        }
        if (self.uid, self.gid) != (other.uid, other.gid) {
            aspects.push(Aspect::Owner);
        }
        if self.mtime != other.mtime {
            aspects.push(Aspect::Mtime);
        }
        aspects
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// An entry of a folder.
    File(Box<FileDifference>),
    /// A table whose rows were counted.
    Table {
        source: Name,
        /// The database, for one of several of the source.
        of: Option<String>,
        /// `schema.name`, or `name`.
        table: String,
        /// Rows in the older snapshot; none where it has no such table.
        before: Option<u64>,
        /// Rows in the newer one.
        after: Option<u64>,
    },
    /// A stream that is not a folder's, with its plain bytes.
    Stream {
        /// As the newer snapshot names it, where it has it.
        artifact: String,
        /// The database in it, for one of several of the source.
        of: Option<String>,
        /// Bytes in the older snapshot; none where it has no such artifact.
        before: Option<u64>,
        /// Bytes in the newer one.
        after: Option<u64>,
    },
}

/// An entry of a folder that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDifference {
    pub source: Name,
    /// Which folder of the source, where it has several.
    pub number: NonZeroU32,
    /// Relative to the source.
    pub path: Vec<u8>,
    /// What became of it.
    pub change: Change,
    /// What differs, when it was changed.
    pub aspects: Vec<Aspect>,
    /// As the older snapshot has it.
    pub before: Option<FileState>,
    /// As the newer one has it.
    pub after: Option<FileState>,
}

/// Files that were counted, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of the files among them: of removed ones as they were, of others as they are.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// How much differs in folders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DiffSummary {
    /// Entries that the older snapshot does not have.
    pub added: Tally,
    /// Entries that the newer snapshot does not have.
    pub removed: Tally,
    /// Entries of another kind or content.
    pub changed: Tally,
    /// Entries of which only permissions, owners or times differ.
    pub metadata: u64,
    /// Entries that are the same.
    pub same: u64,
}

/// Gives every difference to `each`, which may end it: streams and tables first, then the entries
/// of each folder, sorted by path as long as there are not very many. Entries that differ only in
/// permissions, owners and times are given with `metadata` only; they are counted always.
///
/// # Errors
/// When one of the snapshots is encrypted and `identities` do not open it, damaged, or out of
/// reach.
pub async fn diff(
    engine: &Engine,
    before: &Side,
    after: &Side,
    identities: &[Identity],
    metadata: bool,
    each: impl FnMut(Difference) -> ControlFlow<()> + Send + 'static,
) -> Result<DiffSummary, EngineError> {
    let before = Opened::new(engine, before, identities).await?;
    let after = Opened::new(engine, after, identities).await?;
    blocking(move || {
        let mut comparison = Comparison {
            metadata,
            each,
            ended: false,
            held: HELD,
            summary: DiffSummary::default(),
        };
        comparison.streams(&before, &after);
        comparison.tables(&before, &after);
        for folder in folders(&before, &after) {
            comparison.files(&folder, &entries(&before, &folder), &entries(&after, &folder))?;
        }
        Ok(comparison.summary)
    })
    .await?
}

/// What makes an artifact of one snapshot the same as one of another: its name, and where its
/// source has several databases the name of the database, whatever their order is.
type StreamKey = (String, Option<String>);

/// Name, plain bytes and digest of every artifact that is compared as a whole.
fn streams(side: &Opened) -> Vec<(StreamKey, (String, u64, Digest))> {
    let whole =
        |kind| !matches!(kind, ArtifactKind::Tar | ArtifactKind::Index | ArtifactKind::Blocks);
    let known = side.facts.iter().flat_map(|facts| &facts.artifacts);
    known
        .filter(|known| {
            side.manifest.artifact(&known.name).is_some_and(|artifact| whole(artifact.kind))
        })
        .map(|known| {
            let name = match parse_artifact_name(&known.name) {
                Some((source, _, extension)) if known.of.is_some() => {
                    format!("{source}.{extension}")
                }
                _ => known.name.clone(),
            };
            let state = (known.name.clone(), known.plain_bytes, known.plain_digest);
            ((name, known.of.clone()), state)
        })
        .collect()
}

/// A table: its source, its database where the source has several, and its name.
type TableKey = (Name, Option<String>, String);

/// Rows of every table that was counted.
fn tables(side: &Opened) -> Vec<(TableKey, u64)> {
    let mut tables = Vec::new();
    let Some(facts) = &side.facts else { return tables };
    for source in &facts.sources {
        for (of, object) in facts.objects_of(&source.name) {
            let counted = object.get("tables").and_then(serde_json::Value::as_array);
            for table in counted.into_iter().flatten() {
                let text = |key: &str| table.get(key).and_then(serde_json::Value::as_str);
                let rows = table.get("rows").and_then(serde_json::Value::as_u64);
                let (Some(name), Some(rows)) = (text("name"), rows) else { continue };
                let full = text("schema")
                    .map_or_else(|| name.to_owned(), |schema| format!("{schema}.{name}"));
                tables.push(((source.name.clone(), of.map(str::to_owned), full), rows));
            }
        }
    }
    tables
}

/// A folder of files: its source, and which of that it is.
type Folder = (Name, NonZeroU32);

/// The folders of which either snapshot has an index, in the order of the newer one.
fn folders(before: &Opened, after: &Opened) -> Vec<Folder> {
    let mut folders: Vec<Folder> = Vec::new();
    for (source, index) in after.indexes().chain(before.indexes()) {
        let folder = (source.clone(), index.number());
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// The keys of both lists with what each has under them: those of the newer one in its order, then
/// those that it has not.
fn paired<K: Eq + std::hash::Hash + Clone, V: Clone>(
    before: &[(K, V)],
    after: &[(K, V)],
) -> Vec<(K, Option<V>, Option<V>)> {
    let older: HashMap<&K, &V> = before.iter().map(|(key, value)| (key, value)).collect();
    let newer: HashMap<&K, &V> = after.iter().map(|(key, value)| (key, value)).collect();
    let keys = after
        .iter()
        .map(|(key, _)| key)
        .chain(before.iter().map(|(key, _)| key).filter(|key| !newer.contains_key(key)));
    keys.map(|key| {
        (
            key.clone(),
            older.get(key).map(|value| (*value).clone()),
            newer.get(key).map(|value| (*value).clone()),
        )
    })
    .collect()
}

/// A share of all paths: those whose hash ends in these bits.
#[derive(Clone, Copy)]
struct Share {
    bits: u32,
    value: u64,
}

impl Share {
    fn has(self, hash: u64) -> bool {
        hash & ((1_u64 << self.bits) - 1) == self.value
    }
}

struct Comparison<F> {
    metadata: bool,
    each: F,
    ended: bool,
    /// Entries of the older snapshot that are held at a time.
    held: usize,
    summary: DiffSummary,
}

impl<F: FnMut(Difference) -> ControlFlow<()>> Comparison<F> {
    fn give(&mut self, difference: Difference) {
        if !self.ended {
            self.ended = (self.each)(difference).is_break();
        }
    }

    fn streams(&mut self, before: &Opened, after: &Opened) {
        let content = |state: &Option<(String, u64, Digest)>| {
            state.as_ref().map(|(_, bytes, digest)| (*bytes, *digest))
        };
        for ((name, of), older, newer) in paired(&streams(before), &streams(after)) {
            if content(&older) != content(&newer) {
                let bytes = |state: &Option<_>| content(state).map(|(bytes, _)| bytes);
                let (before, after) = (bytes(&older), bytes(&newer));
                let artifact = newer.or(older).map_or(name, |(name, ..)| name);
                self.give(Difference::Stream { artifact, of, before, after });
            }
        }
    }

    fn tables(&mut self, before: &Opened, after: &Opened) {
        for ((source, of, table), before, after) in paired(&tables(before), &tables(after)) {
            if before != after {
                self.give(Difference::Table { source, of, table, before, after });
            }
        }
    }

    /// Compares the entries that `before` and `after` give, each time they are called, in any
    /// order.
    fn files(
        &mut self,
        folder: &Folder,
        before: &Entries<'_>,
        after: &Entries<'_>,
    ) -> Result<(), EngineError> {
        let hasher = RandomState::new();
        let mut shares = vec![Share { bits: 0, value: 0 }];
        while let Some(mut share) = shares.pop() {
            let mut older: HashMap<Vec<u8>, FileState> = HashMap::new();
            before(&mut |entry| {
                if share.has(hasher.hash_one(&entry.path)) {
                    let (path, state) = FileState::of(entry);
                    older.insert(path, state);
                }
                if older.len() > self.held && share.bits < u64::BITS - 1 {
                    // Half of it is left for later.
                    shares
                        .push(Share { bits: share.bits + 1, value: share.value | 1 << share.bits });
                    share.bits += 1;
                    older.retain(|path, _| share.has(hasher.hash_one(path)));
                }
                ControlFlow::Continue(())
            })?;
            let mut found = Vec::new();
            after(&mut |entry| {
                if share.has(hasher.hash_one(&entry.path)) {
                    let (path, state) = FileState::of(entry);
                    let known = older.remove(&path);
                    found.extend(self.compare(folder, path, known, Some(state)));
                    if found.len() >= SORTED {
                        self.give_sorted(&mut found);
                    }
                }
                if self.ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            for (path, state) in older {
                found.extend(self.compare(folder, path, Some(state), None));
            }
            self.give_sorted(&mut found);
            if self.ended {
                break;
            }
        }
        Ok(())
    }

    fn give_sorted(&mut self, found: &mut Vec<FileDifference>) {
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for difference in found.drain(..) {
            self.give(Difference::File(Box::new(difference)));
        }
    }

    /// Counts an entry, and returns it if it differs.
    fn compare(
        &mut self,
        (source, number): &Folder,
        path: Vec<u8>,
        before: Option<FileState>,
        after: Option<FileState>,
    ) -> Option<FileDifference> {
        let size = after.as_ref().or(before.as_ref()).map(|state| state.size).unwrap_or_default();
        let (change, aspects) = match (&before, &after) {
            (Some(older), Some(newer)) => (Change::Changed, older.differs_in(newer)),
            (None, _) => (Change::Added, Vec::new()),
            (_, None) => (Change::Removed, Vec::new()),
        };
        match change {
            Change::Added => self.summary.added.add(size),
            Change::Removed => self.summary.removed.add(size),
            Change::Changed
                if aspects
                    .iter()
                    .any(|aspect| matches!(aspect, Aspect::Kind | Aspect::Content)) =>
            {
                self.summary.changed.add(size);
            }
            Change::Changed if aspects.is_empty() => {
                self.summary.same += 1;
                return None;
            }
            Change::Changed => {
                self.summary.metadata += 1;
                if !self.metadata {
                    return None;
                }
            }
        }
        let (source, number) = (source.clone(), *number);
        Some(FileDifference { source, number, path, change, aspects, before, after })
    }
}

/// Gives all entries of an index to the function that it is given, until that breaks off.
type Entries<'a> = dyn Fn(&mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), EngineError> + 'a;

/// Those of the folder in a snapshot; none where it has no index.
fn entries<'a>(
    side: &'a Opened,
    (source, number): &'a Folder,
) -> impl Fn(&mut dyn FnMut(Entry) -> ControlFlow<()>) -> Result<(), EngineError> + 'a {
    move |each| {
        let is_meant =
            |(name, index): &(&Name, &Artifact)| *name == source && index.number() == *number;
        match side.indexes().find(is_meant) {
            Some((_, index)) => side.entries(index, each),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: u32, content: &[u8], mode: u32) -> Entry {
        Entry {
            path: format!("folder/{path}").into_bytes(),
            kind: Kind::File,
            size: content.len() as u64,
            mtime: Time::default(),
            mode,
            uid: 0,
            gid: 0,
            uname: None,
            gname: None,
            target: None,
            rdev: None,
            digest: Some(Digest::of(content)),
            data_digest: None,
            offset: 0,
            data_offset: 0,
            length: 0,
            changed: false,
            archive: None,
            left_out: false,
        }
    }

    fn source<'a>(entries: &'a [Entry]) -> Box<Entries<'a>> {
        Box::new(move |each| {
            let _ = entries.iter().cloned().try_for_each(each);
            Ok(())
        })
    }

    fn compared(
        before: &[Entry],
        after: &[Entry],
        held: usize,
        metadata: bool,
    ) -> (Vec<FileDifference>, DiffSummary) {
        let mut found = Vec::new();
        let mut comparison = Comparison {
            metadata,
            each: |difference| {
                if let Difference::File(file) = difference {
                    found.push(*file);
                }
                ControlFlow::Continue(())
            },
            ended: false,
            held,
            summary: DiffSummary::default(),
        };
        comparison
            .files(&("files".parse().unwrap(), NonZeroU32::MIN), &source(before), &source(after))
            .unwrap();
        let summary = comparison.summary;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        (found, summary)
    }

    /// Nine of ten stay, one is removed and another added; some change.
    fn two_trees() -> (Vec<Entry>, Vec<Entry>) {
        let before = (0..2_000).map(|number| entry(number, b"same", 0o644));
        let after = (200..2_200).rev().map(|number| match number {
            500..550 => entry(number, b"another", 0o644),
            600..660 => entry(number, b"same", 0o600),
            _ => entry(number, b"same", 0o644),
        });
        (before.collect(), after.collect())
    }

    #[test]
    fn indexes_in_any_order_are_compared_in_any_number_of_shares_with_the_same_result() {
        let (before, after) = two_trees();
        let whole = compared(&before, &after, usize::MAX, true);
        assert_eq!(
            whole.1,
            DiffSummary {
                added: Tally { entries: 200, bytes: 800 },
                removed: Tally { entries: 200, bytes: 800 },
                changed: Tally { entries: 50, bytes: 350 },
                metadata: 60,
                same: 1_690,
            }
        );
        assert_eq!(whole.0.len(), 510);
        for held in [1_999, 500, 7] {
            assert_eq!(compared(&before, &after, held, true), whole, "{held} entries held");
        }
    }

    #[test]
    fn what_differs_in_permissions_only_is_counted_and_listed_on_request() {
        let (before, after) = two_trees();
        let (found, summary) = compared(&before, &after, usize::MAX, false);
        assert_eq!((found.len(), summary.metadata), (450, 60));
        assert!(found.iter().all(|file| file.aspects != [Aspect::Mode]));
    }

    #[test]
    fn nobody_who_reads_ends_the_comparison() {
        let (before, after) = two_trees();
        let mut given = 0;
        let mut comparison = Comparison {
            metadata: false,
            each: |_| {
                given += 1;
                ControlFlow::Break(())
            },
            ended: false,
            held: 100,
            summary: DiffSummary::default(),
        };
        comparison
            .files(&("files".parse().unwrap(), NonZeroU32::MIN), &source(&before), &source(&after))
            .unwrap();
        assert_eq!(given, 1);
    }
}
