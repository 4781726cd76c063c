//! The promises of every storage, tested on a folder, s3s-fs, SeaweedFS (also without conditional
//! writes) and moto. Then those of one storage alone.

use bytes::Bytes;
use chrono::TimeDelta;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast::model::{Cancel, Clock, RemoteCheck};
use holdfast::storage::{CreateOptions, Object, Storage, StorageConfig, StorageError};

use crate::support::stores::{Place, Server};

const MIB: usize = 1 << 20;

/// Bytes that differ from place to place.
pub(crate) fn sample(length: usize) -> Bytes {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Writes an object in chunks that fit neither blocks nor parts.
pub(crate) async fn write(
    storage: &dyn Storage,
    key: &str,
    body: &Bytes,
) -> Result<holdfast::storage::Finished, StorageError> {
    write_as(storage, key, body, CreateOptions::default()).await
}

async fn write_as(
    storage: &dyn Storage,
    key: &str,
    body: &Bytes,
    options: CreateOptions,
) -> Result<holdfast::storage::Finished, StorageError> {
    let mut upload = storage.create(key, options).await?;
    let mut rest = body.clone();
    while !rest.is_empty() {
        if let Err(error) = upload.write(rest.split_to(rest.len().min(700_001))).await {
            upload.abort().await;
            return Err(error);
        }
    }
    upload.finish().await
}

pub(crate) async fn read(storage: &dyn Storage, key: &str) -> Result<Bytes, StorageError> {
    read_range(storage, key, None).await
}

async fn read_range(
    storage: &dyn Storage,
    key: &str,
    range: Option<std::ops::Range<u64>>,
) -> Result<Bytes, StorageError> {
    let chunks: Vec<Bytes> = storage.read(key, range).await?.try_collect().await?;
    Ok(chunks.concat().into())
}

/// The objects, without what is none.
pub(crate) async fn list(storage: &dyn Storage, prefix: &str) -> Vec<Object> {
    let mut all: Vec<Object> = storage.list(prefix).try_collect().await.unwrap();
    all.retain(|object| object.irregular.is_none());
    all
}

async fn keys(storage: &dyn Storage, prefix: &str) -> Vec<String> {
    list(storage, prefix).await.into_iter().map(|object| object.key).collect()
}

async fn an_object_appears_whole_when_it_is_finished_and_not_before(place: Place) {
    let storage = &*place.storage;
    for (index, size) in [0, 1, 5 * MIB, 5 * MIB + 1, 12 * MIB + 7].into_iter().enumerate() {
        for small in [false, true] {
            let (key, body) = (format!("a/b/{index}-{small}"), sample(size));
            let mut upload = storage
                .create(&key, CreateOptions { small, ..CreateOptions::default() })
                .await
                .unwrap();
            for chunk in body.chunks(1_000_003) {
                upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
                assert!(!keys(storage, "").await.contains(&key));
            }
            let finished = upload.finish().await.unwrap();
            assert_eq!(finished.size, size as u64);
            assert!(read(storage, &key).await.unwrap() == body, "{key} differs");
            let object = storage.stat(&key).await.unwrap();
            assert_eq!((object.key.as_str(), object.size), (key.as_str(), size as u64));
            let listed =
                list(storage, "a/b/").await.into_iter().find(|object| object.key == key).unwrap();
            assert_eq!(listed.size, size as u64);
            assert!((listed.modified - object.modified).abs() < TimeDelta::seconds(1));
        }
    }
    place.assert_no_uploads_where_listed().await;
}

async fn an_upload_that_is_given_up_leaves_nothing(place: Place) {
    let storage = &*place.storage;
    for size in [1, 12 * MIB] {
        let mut upload = storage.create("a/aborted", CreateOptions::default()).await.unwrap();
        upload.write(sample(size)).await.unwrap();
        upload.abort().await;
    }
    assert_eq!(keys(storage, "").await, Vec::<String>::new());
    assert!(matches!(storage.stat("a/aborted").await, Err(error) if error.is_not_found()));
    place.assert_no_uploads_where_listed().await;
}

async fn an_existing_object_is_refused_and_left(place: Place) {
    let storage = &*place.storage;
    let known = storage.probe("marks/probe", Bytes::from_static(b"{}")).await.unwrap();
    for size in [3, 6 * MIB] {
        let key = format!("a/{size}");
        let old = sample(size);
        // Begun before the key was there, so that only the end can notice.
        let mut late = storage.create(&key, CreateOptions::default()).await.unwrap();
        write(storage, &key, &old).await.unwrap();
        late.write(sample(size + 1)).await.unwrap();
        if known.conditional_writes {
            assert!(matches!(late.finish().await, Err(error) if error.code() == "object_exists"));
        } else {
            late.abort().await;
        }
        let refused = storage.create(&key, CreateOptions::default()).await;
        assert!(matches!(refused.err(), Some(error) if error.code() == "object_exists"));
        assert!(read(storage, &key).await.unwrap() == old);
    }
    place.assert_no_uploads_where_listed().await;
}

async fn replacing_shows_the_new_bytes(place: Place) {
    let storage = &*place.storage;
    for body in ["one", "two, longer", ""] {
        storage.replace("a/run.json", Bytes::from_static(body.as_bytes())).await.unwrap();
        assert_eq!(read(storage, "a/run.json").await.unwrap(), body.as_bytes());
    }
    assert_eq!(keys(storage, "").await, ["a/run.json"]);
}

async fn a_range_gives_just_those_bytes(place: Place) {
    let storage = &*place.storage;
    let body = sample(6 * MIB);
    write(storage, "a/b", &body).await.unwrap();
    let size = body.len();
    for range in [0..1, 0..size, 5..5, size..size, 1_000..3_000_000, size - 1..size] {
        let got =
            read_range(storage, "a/b", Some(range.start as u64..range.end as u64)).await.unwrap();
        assert!(got == body[range.clone()], "{range:?}");
    }
    for (start, end) in
        [(0, size + 1), (size, size + 1), (size + 5, size + 6), (size + 5, size + 5)]
    {
        assert!(
            read_range(storage, "a/b", Some(start as u64..end as u64)).await.is_err(),
            "{start} to {end}"
        );
    }
}

async fn what_is_not_there_is_not_found_and_already_deleted(place: Place) {
    let storage = &*place.storage;
    assert_eq!(keys(storage, "").await, Vec::<String>::new());
    assert_eq!(keys(storage, "a/b/").await, Vec::<String>::new());
    assert!(matches!(storage.stat("a/b").await, Err(error) if error.is_not_found()));
    assert!(matches!(read(storage, "a/b").await, Err(error) if error.is_not_found()));
    storage.delete("a/b").await.unwrap();
    write(storage, "a/b", &sample(10)).await.unwrap();
    // To s3s-fs a folder is an error of its own, and on a disk it is in the way of an object.
    match place.server {
        Some(Server::S3s) => {}
        Some(_) => {
            assert!(storage.stat("a").await.unwrap_err().is_not_found());
        }
        None => {
            let error = storage.stat("a").await.unwrap_err();
            assert_eq!(error.code(), "object_not_a_file");
        }
    }
    storage.delete("a/b").await.unwrap();
    storage.delete("a/b").await.unwrap();
    assert!(matches!(storage.stat("a/b").await, Err(error) if error.is_not_found()));
    assert_eq!(keys(storage, "").await, Vec::<String>::new());
}

async fn a_listing_is_in_the_order_of_keys_and_knows_whole_names(place: Place) {
    let storage = &*place.storage;
    let mut expected =
        ["a/b.c", "a/b/c", "a/b/d/e", "a/b0", "a/b-1/x", "ab/x", "a", "b"].map(str::to_owned);
    // A name cannot be a file and a folder at once on a disk.
    expected[6] = "aa".to_owned();
    for key in &expected {
        storage.replace(key, Bytes::from_static(b"x")).await.unwrap();
    }
    let mut expected = expected.to_vec();
    expected.sort();
    if place.server == Some(Server::SeaweedFs) {
        // It lists folder by folder, so `a/b/c` comes before these. That is an error, never a
        // listing in another order, from which a part may be missing.
        let listed: Result<Vec<Object>, _> = storage.list("").try_collect().await;
        assert!(listed.unwrap_err().to_string().contains("the listing cannot be trusted"));
        for key in ["a/b-1/x", "a/b.c"] {
            storage.delete(key).await.unwrap();
            expected.retain(|one| one != key);
        }
    }
    assert_eq!(keys(storage, "").await, expected);
    assert_eq!(keys(storage, "a/b/").await, ["a/b/c", "a/b/d/e"]);
    assert_eq!(keys(storage, "a/").await.len(), expected.len() - 3);
    let wrong: Result<Vec<Object>, _> = storage.list("a").try_collect().await;
    assert!(wrong.is_err(), "a prefix ends in a slash");
}

async fn a_listing_goes_beyond_a_page(place: Place) {
    let storage = &*place.storage;
    let expected: Vec<String> = (0..1_015).map(|number| format!("a/{number:04}/x")).collect();
    stream::iter(&expected)
        .map(|key| storage.replace(key, Bytes::from_static(b"x")))
        .buffer_unordered(32)
        .try_collect::<()>()
        .await
        .unwrap();
    assert_eq!(keys(storage, "").await, expected);
    // Whoever has seen enough may leave.
    assert_eq!(storage.list("").take(3).count().await, 3);
}

async fn only_plain_keys_are_taken(place: Place) {
    let storage = &*place.storage;
    for key in
        ["", "/", "/a", "a/", "a//b", "../a", "a/../b", ".", "..", ".a", "a/.b", "a/b.\n", "a\0"]
    {
        assert!(storage.create(key, CreateOptions::default()).await.is_err(), "{key:?}");
        assert!(storage.replace(key, Bytes::new()).await.is_err(), "{key:?}");
        assert!(storage.read(key, None).await.is_err(), "{key:?}");
        assert!(storage.stat(key).await.is_err(), "{key:?}");
        assert!(storage.delete(key).await.is_err(), "{key:?}");
        assert!(
            storage.lock(key).await.is_ok_and(|lock| lock.is_none()) || place.server.is_none(),
            "{key:?}"
        );
    }
}

async fn it_tells_the_time_and_the_age_of_its_objects(place: Place) {
    let storage = &*place.storage;
    let before = storage.now().await.unwrap();
    assert!((before - Clock::system().now()).abs() < TimeDelta::minutes(1));
    write(storage, "a/b", &sample(10)).await.unwrap();
    let after = storage.now().await.unwrap();
    let written = storage.stat("a/b").await.unwrap().modified;
    // HTTP tells whole seconds.
    assert!(before - TimeDelta::seconds(2) <= written && written <= after + TimeDelta::seconds(2));
    assert_eq!(keys(storage, "").await, ["a/b"]);
}

async fn what_a_crash_left_is_invisible_and_swept(place: Place) {
    let storage = &*place.storage;
    write(storage, "a/x/done", &sample(10)).await.unwrap();
    for key in ["a/x/left", "a/y/left", "b/left"] {
        let mut upload = storage.create(key, CreateOptions::default()).await.unwrap();
        upload.write(sample(11 * MIB)).await.unwrap();
        // A process that is killed runs no destructor.
        Box::leak(upload);
    }
    assert_eq!(keys(storage, "").await, ["a/x/done"]);
    let now = storage.now().await.unwrap();
    let (past, future) = (now - TimeDelta::hours(1), now + TimeDelta::hours(1));
    // To moto every upload was begun in 2010.
    let past =
        if place.server == Some(Server::Moto) { past - TimeDelta::weeks(10_000) } else { past };
    assert_eq!(storage.sweep_uploads("", past).await.unwrap(), 0);
    let swept = storage.sweep_uploads("a/", future).await.unwrap();
    match place.unfinished().await {
        Some(left) => assert_eq!((swept, left), (2, 1), "only those under the prefix"),
        None => assert_eq!(swept, 0, "it cannot tell"),
    }
    storage.sweep_uploads("", future).await.unwrap();
    place.assert_no_uploads_where_listed().await;
    assert_eq!(keys(storage, "").await, ["a/x/done"]);
}

async fn a_probe_finds_out_what_is_understood_and_leaves_its_object(place: Place) {
    let storage = &*place.storage;
    let body = Bytes::from_static(b"{\"format\": 1}");
    let known = storage.probe("a/run.json", body.clone()).await.unwrap();
    assert_eq!(known.conditional_writes, !place.ignores_conditions);
    assert_eq!(known.checksums, matches!(place.server, Some(Server::S3s | Server::SeaweedFs)));
    assert_eq!(read(storage, "a/run.json").await.unwrap(), body);
    assert_eq!(list(storage, "").await.len(), 1);
    for size in [3, 11 * MIB] {
        // s3s-fs does not tell the checksum of an object made of parts.
        let told = known.checksums && (size == 3 || place.server != Some(Server::S3s));
        let expected = if told { RemoteCheck::Crc32c } else { RemoteCheck::Size };
        let body = sample(size);
        assert_eq!(
            write(storage, &format!("a/{size}"), &body).await.unwrap().check,
            expected,
            "{size} bytes"
        );
        assert!(read(storage, &format!("a/{size}")).await.unwrap() == body);
    }
}

async fn a_lock_excludes_another_writer_where_there_are_locks(place: Place) {
    let storage = &*place.storage;
    let held = storage.lock("a/daily").await.unwrap();
    assert_eq!(held.is_some(), place.server.is_none());
    let other = place.again().await;
    if held.is_some() {
        assert!(matches!(other.lock("a/daily").await, Err(error) if error.is_busy()));
        assert!(other.lock("a/weekly").await.unwrap().is_some());
        drop(held);
        assert!(other.lock("a/daily").await.unwrap().is_some());
    }
    assert_eq!(keys(storage, "").await, Vec::<String>::new());
}

async fn its_address_is_told_without_secrets(place: Place) {
    let address = place.storage.address();
    match &place.config {
        StorageConfig::Local(config) => assert_eq!(address, config.path.display().to_string()),
        StorageConfig::S3(config) => {
            assert_eq!(address, format!("s3://{}/some/where", config.bucket));
        }
    }
}

/// Makes a test of each promise for each storage.
macro_rules! conformance {
    ($($promise:ident),* $(,)?) => {
        conformance!(@ local, Place::local(), $($promise),*);
        conformance!(@ s3s, Place::on(super::Server::S3s), $($promise),*);
        conformance!(@ seaweedfs, Place::on(super::Server::SeaweedFs), $($promise),*);
        conformance!(
            @ ignoring_conditions,
            Place::ignoring_conditions(super::Server::SeaweedFs),
            $($promise),*
        );
        conformance!(@ moto, Place::on(super::Server::Moto), $($promise),*);
    };
    (@ $store:ident, $place:expr, $($promise:ident),*) => {
        mod $store {
            use super::Place;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise($place.await).await;
            })*

        }
    };
}

conformance!(
    an_object_appears_whole_when_it_is_finished_and_not_before,
    an_upload_that_is_given_up_leaves_nothing,
    an_existing_object_is_refused_and_left,
    replacing_shows_the_new_bytes,
    a_range_gives_just_those_bytes,
    what_is_not_there_is_not_found_and_already_deleted,
    a_listing_is_in_the_order_of_keys_and_knows_whole_names,
    a_listing_goes_beyond_a_page,
    only_plain_keys_are_taken,
    it_tells_the_time_and_the_age_of_its_objects,
    what_a_crash_left_is_invisible_and_swept,
    a_probe_finds_out_what_is_understood_and_leaves_its_object,
    a_lock_excludes_another_writer_where_there_are_locks,
    its_address_is_told_without_secrets,
);

#[tokio::test]
async fn a_cancelled_run_ends_what_writes_and_gives_up_its_upload() {
    let config = Server::SeaweedFs.bucket().await;
    let bucket = config.bucket.clone();
    let cancel = Cancel::new();
    let storage = StorageConfig::S3(config).open(&cancel).await.unwrap();
    let mut upload = storage.create("a/b", CreateOptions::default()).await.unwrap();
    upload.write(sample(11 * MIB)).await.unwrap();
    assert_eq!(Server::SeaweedFs.unfinished_uploads(&bucket).await, Some(1));
    cancel.cancel();
    assert!(matches!(upload.write(sample(1)).await, Err(error) if error.code() == "cancelled"));
    assert!(matches!(upload.finish().await, Err(error) if error.code() == "cancelled"));
    assert_eq!(Server::SeaweedFs.unfinished_uploads(&bucket).await, Some(0));
}
