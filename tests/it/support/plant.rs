//! Snapshots of any time, written as a run would have written them.

use bytes::Bytes;
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use futures::{StreamExt as _, stream};
use holdfast::model::{
    Artifact, ArtifactKind, Codec, Completeness, Compression, Digest, Encryption, FORMAT, Manifest,
    Name, Program, RemoteCheck, SnapshotId, StorageNote, StoredObject,
};
use holdfast::storage::{CreateOptions, Storage};

/// What each planted snapshot has stored, in `dump.out`.
const CONTENT: &[u8] = &[b'x'; 1_000];

/// So many days before now, to the second.
pub fn days_ago(days: i64) -> DateTime<Utc> {
    Utc::now().trunc_subsecs(0) - TimeDelta::days(days)
}

/// The manifest of a planted snapshot.
pub fn manifest(
    instance: &str,
    strategy: &str,
    id: &SnapshotId,
    completeness: Completeness,
) -> Manifest {
    Manifest {
        format: FORMAT,
        requires: Vec::new(),
        instance: instance.parse().unwrap(),
        strategy: strategy.parse().unwrap(),
        id: id.clone(),
        started: id.time(),
        finished: id.time(),
        next_due: None,
        program: Program { name: "holdfast".to_owned(), version: "0.1.0".to_owned() },
        completeness,
        storage: StorageNote { name: "local".parse().unwrap(), remote_check: RemoteCheck::Size },
        artifacts: vec![Artifact {
            name: "dump.out".to_owned(),
            source: Some("dump".parse::<Name>().unwrap()),
            kind: ArtifactKind::Stream,
            codec: Codec { compression: Compression::None, encryption: Encryption::None },
            compressed_bytes: CONTENT.len() as u64,
            objects: vec![StoredObject {
                key: "dump.out".to_owned(),
                size: CONTENT.len() as u64,
                digest: Digest::of(CONTENT),
            }],
        }],
    }
}

/// Puts a snapshot of each of `times` into the storage.
pub async fn plant(
    storage: &dyn Storage,
    instance: &str,
    strategy: &str,
    times: impl IntoIterator<Item = DateTime<Utc>>,
) -> Vec<SnapshotId> {
    let ids: Vec<SnapshotId> = times
        .into_iter()
        .enumerate()
        .map(|(number, time)| SnapshotId::new(time, [0, (number >> 8) as u8, number as u8]))
        .collect();
    stream::iter(&ids)
        .for_each_concurrent(16, |id| {
            plant_one(storage, instance, strategy, id, Completeness::Whole)
        })
        .await;
    ids
}

/// Puts one snapshot into the storage.
pub async fn plant_one(
    storage: &dyn Storage,
    instance: &str,
    strategy: &str,
    id: &SnapshotId,
    completeness: Completeness,
) {
    let folder = format!("{instance}/{strategy}/{id}");
    let manifest = manifest(instance, strategy, id, completeness).to_bytes();
    for (name, body) in [("dump.out", CONTENT.to_vec()), ("manifest.json", manifest)] {
        let mut upload = storage
            .create(
                &format!("{folder}/{name}"),
                CreateOptions { small: true, ..CreateOptions::default() },
            )
            .await
            .unwrap();
        upload.write(Bytes::from(body)).await.unwrap();
        upload.finish().await.unwrap();
    }
}
