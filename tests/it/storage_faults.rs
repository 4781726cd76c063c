//! Storages that fail: what can pass is retried through, everything else ends in words and leaves
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::types::ChecksumAlgorithm;
use bytes::Bytes;
use chrono::TimeDelta;
use futures::{FutureExt as _, TryStreamExt as _};
use holdfast::model::{Cancel, Irregular, RemoteCheck, Secret};
use holdfast::storage::local::LocalConfig;
use holdfast::storage::s3::{RetainMode, S3Config};
use holdfast::storage::{CreateOptions, Object, StorageConfig, StorageError, StorageErrorKind};

use crate::storage::{list, read, sample, write};
use crate::support::s3_proxy::{Fault, Op, S3Proxy};
use crate::support::small_server::SmallServer;
use crate::support::stores::{Place, Server, fresh, hidden_files, unfinished_uploads};

const MIB: usize = 1 << 20;
/// Three parts of 5 MiB.
const LARGE: usize = 11 * MIB;

/// A fresh bucket behind a proxy. What it says of itself was probed.
async fn behind_a_proxy(server: Server) -> (Place, S3Proxy) {
    behind(S3Proxy::before(&server.endpoint()).await, server).await
}

async fn behind(proxy: S3Proxy, server: Server) -> (Place, S3Proxy) {
    let config =
        S3Config { endpoint: Some(proxy.endpoint.clone()), attempts: 3, ..server.bucket().await };
    let place = Place::of(server, config).await;
    place.storage.probe("probe", Bytes::from_static(b"probe")).await.unwrap();
    (place, proxy)
}

/// Whether nothing but the probe's object is there.
async fn assert_nothing_is_left(place: &Place) {
    let direct: Vec<String> =
        list(&*place.storage, "").await.into_iter().map(|object| object.key).collect();
    assert_eq!(direct, ["probe"]);
    place.assert_no_uploads_where_listed().await;
}

async fn assert_retried_through(server: Server, faults: &[Fault]) {
    retried_through(behind_a_proxy(server).await, server, faults).await;
}

async fn retried_through((place, proxy): (Place, S3Proxy), server: Server, faults: &[Fault]) {
    for (index, fault) in faults.iter().enumerate() {
        for op in [Op::Put, Op::Begin, Op::Part(2), Op::Complete, Op::Head, Op::List, Op::Get] {
            proxy.inject(op, fault.clone(), 1);
        }
        let (small, large) = (format!("a/{index}-small"), format!("a/{index}-large"));
        for (key, body) in [(&small, sample(1_000)), (&large, sample(LARGE))] {
            let finished = write(&*place.storage, key, &body).await.unwrap();
            assert_eq!(finished.size, body.len() as u64);
            assert!(read(&*place.storage, key).await.unwrap() == body);
        }
        assert!(list(&*place.storage, "a/").await.iter().any(|object| object.key == large));
    }
    if server == Server::SeaweedFs {
        // Where the answer to a begin was lost nobody knows the upload's id; it is swept.
        let future = place.storage.now().await.unwrap() + TimeDelta::hours(1);
        assert!(place.storage.sweep_uploads("", future).await.unwrap() <= 1);
    }
    place.assert_no_uploads_where_listed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_busy_is_asked_again() {
    let busy = [
        Fault::Say(500, "InternalError"),
        Fault::Say(503, "SlowDown"),
        Fault::Say(429, "TooManyRequests"),
    ];
    assert_retried_through(Server::SeaweedFs, &busy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_connections_and_lost_answers_are_retried_through_on_s3s() {
    assert_retried_through(Server::S3s, &[Fault::DropRequest, Fault::DropAnswer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_connections_and_lost_answers_are_retried_through_on_seaweedfs() {
    assert_retried_through(Server::SeaweedFs, &[Fault::DropRequest, Fault::DropAnswer]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_are_retried_without_conditional_writes() {
    let proxy = S3Proxy::before(&Server::SeaweedFs.endpoint()).await;
    proxy.ignore_conditions();
    let place = behind(proxy, Server::SeaweedFs).await;
    let faults = [Fault::DropRequest, Fault::DropAnswer];
    retried_through(place, Server::SeaweedFs, &faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_pass_ends_in_words_and_leaves_nothing() {
    for server in [Server::S3s, Server::SeaweedFs] {
        for op in [Op::Put, Op::Begin, Op::Part(2), Op::Complete] {
            let (place, proxy) = behind_a_proxy(server).await;
            proxy.inject(op, Fault::Say(503, "SlowDown"), 3);
            let body = sample(if op == Op::Put { 1_000 } else { LARGE });
            let error = write(&*place.storage, "a/b", &body).await.unwrap_err();
            assert_eq!(error.code(), "storage_unavailable", "{op:?}: {error:?}");
            assert!(
                error.to_string().contains("`a/b`")
                    && error.to_string().contains(
                        "SlowDown: \
                As told"
                    ),
                "{error}"
            );
            assert_nothing_is_left(&place).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_always_breaks_is_unavailable_and_names_the_endpoint() {
    let (place, proxy) = behind_a_proxy(Server::SeaweedFs).await;
    proxy.inject(Op::Part(1), Fault::DropRequest, 3);
    let error = write(&*place.storage, "a/b", &sample(LARGE)).await.unwrap_err();
    assert_eq!(error.code(), "storage_unavailable", "{error:?}");
    assert!(error.to_string().contains(&proxy.endpoint), "{error}");
    assert_nothing_is_left(&place).await;
}

#[tokio::test]
async fn what_cannot_pass_is_not_retried() {
    for (status, code) in [(403, "AccessDenied"), (400, "InvalidRequest"), (404, "NoSuchBucket")] {
        let (place, proxy) = behind_a_proxy(Server::S3s).await;
        let before = proxy.count(Op::Put);
        proxy.inject(Op::Put, Fault::Say(status, code), 9);
        let error = write(&*place.storage, "a/b", &sample(10)).await.unwrap_err();
        match status {
            403 => assert_eq!(error.code(), "storage_denied", "{error:?}"),
            _ => assert_eq!(error.code(), "storage_failed", "{error:?}"),
        }
        assert!(error.to_string().contains(code), "{error}");
        assert_eq!(proxy.count(Op::Put) - before, 1);
        assert_nothing_is_left(&place).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_acknowledged_and_lost_is_found() {
    let (place, proxy) = behind_a_proxy(Server::S3s).await;
    proxy.inject(Op::Put, Fault::Swallow, 1);
    let error = write(&*place.storage, "a/b", &sample(10)).await.unwrap_err();
    assert_eq!(error.code(), "object_mismatch", "{error:?}");
    assert_nothing_is_left(&place).await;
    // A server that knows of parts refuses to join one that it does not have.
    for server in [Server::S3s, Server::SeaweedFs] {
        let (place, proxy) = behind_a_proxy(server).await;
        proxy.inject(Op::Part(2), Fault::Swallow, 1);
        write(&*place.storage, "a/b", &sample(LARGE)).await.unwrap_err();
        assert_nothing_is_left(&place).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_acknowledged_and_changed_is_found() {
    for server in [Server::S3s, Server::SeaweedFs] {
        for size in [10, LARGE] {
            let (place, proxy) = behind_a_proxy(server).await;
            let StorageConfig::S3(config) = &place.config else { unreachable!() };
            // By the time that the store is asked a bit of it has changed.
            let mut changed = sample(size).to_vec();
            changed[size / 2] ^= 1;
            let (bucket, changed) = (config.bucket.clone(), Bytes::from(changed));
            let act = move || {
                let (bucket, changed) = (bucket.clone(), changed.clone());
                async move {
                    let (client, key) = (server.client(), "some/where/a/b");
                    let head = client.head_object().bucket(&bucket).key(key).send().await.unwrap();
                    let put =
                        client.put_object().bucket(&bucket).key(key).set_metadata(head.metadata);
                    put.checksum_algorithm(ChecksumAlgorithm::Crc32C)
                        .body(changed.into())
                        .send()
                        .await
                        .unwrap();
                }
                .boxed()
            };
            proxy.inject(
                if size == LARGE { Op::Complete } else { Op::Put },
                Fault::Then(Arc::new(act)),
                1,
            );
            let error = write(&*place.storage, "a/b", &sample(size)).await.unwrap_err();
            assert_eq!(error.code(), "object_mismatch", "{server:?}, {size}: {error:?}");
            assert!(error.to_string().contains("CRC-32C"), "{error}");
            assert_nothing_is_left(&place).await;
        }
    }
}

#[tokio::test]
async fn an_object_of_another_size_is_found_where_there_are_no_checksums() {
    let place = Place::on(Server::Moto).await;
    let StorageConfig::S3(config) = &place.config else { unreachable!() };
    let proxy = S3Proxy::before(&Server::Moto.endpoint()).await;
    let behind = Place::of(
        Server::Moto,
        S3Config { endpoint: Some(proxy.endpoint.clone()), ..config.clone() },
    )
    .await;
    let mut upload = behind.storage.create("a/b", CreateOptions::default()).await.unwrap();
    upload.write(sample(100)).await.unwrap();
    place.storage.replace("a/b", sample(99)).await.unwrap();
    proxy.inject(Op::Put, Fault::Swallow, 1);
    let error = upload.finish().await.unwrap_err();
    assert!(error.to_string().contains("100 bytes were sent, and it has 99"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_store_is_waited_for() {
    let (place, proxy) = behind_a_proxy(Server::S3s).await;
    for op in [Op::Part(1), Op::Part(2), Op::Complete, Op::Head] {
        proxy.inject(op, Fault::Slow(Duration::from_millis(300)), 1);
    }
    let body = sample(LARGE);
    let finished = write(&*place.storage, "a/b", &body).await.unwrap();
    assert_eq!(finished.size, LARGE as u64);
    assert_eq!(proxy.count(Op::Part(1)), 1);
}

#[tokio::test]
async fn a_listing_that_lies_is_an_error_and_never_a_short_listing() {
    let lies = [
        ("<IsTruncated>false</IsTruncated>", "<IsTruncated>true</IsTruncated>"),
        ("<Key>some/where/a/1</Key>", "<Key>elsewhere/1</Key>"),
        ("<Key>some/where/a/1</Key>", "<Key>some/where/a/3</Key>"),
        ("<Key>some/where/a/2</Key>", "<Key>some/where/a/1</Key>"),
        ("<Size>2</Size>", ""),
        ("</ListBucketResult>", ""),
    ];
    for (from, to) in lies {
        let (place, proxy) = behind_a_proxy(Server::S3s).await;
        for key in ["a/1", "a/2"] {
            place.storage.replace(key, Bytes::from_static(b"ab")).await.unwrap();
        }
        proxy.inject(Op::List, Fault::Rewrite(from, to), 9);
        let listed: Result<Vec<Object>, StorageError> =
            place.storage.list("a/").try_collect().await;
        assert!(listed.is_err(), "{from} as {to}: {listed:?}");
    }
}

#[tokio::test]
async fn a_listing_that_breaks_off_ends_with_an_error() {
    let (place, proxy) = behind_a_proxy(Server::S3s).await;
    proxy.inject(Op::List, Fault::Say(500, "InternalError"), 3);
    let listed: Result<Vec<Object>, StorageError> = place.storage.list("").try_collect().await;
    assert_eq!(listed.unwrap_err().code(), "storage_unavailable");
    proxy.inject(Op::List, Fault::CutBody(200), 3);
    let listed: Result<Vec<Object>, StorageError> = place.storage.list("").try_collect().await;
    assert!(listed.is_err(), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_always_breaks_off_ends_with_an_error() {
    let (place, proxy) = behind_a_proxy(Server::S3s).await;
    write(&*place.storage, "a/b", &sample(6 * MIB)).await.unwrap();
    proxy.inject(Op::Get, Fault::CutBody(0), 99);
    let error = read(&*place.storage, "a/b").await.unwrap_err();
    assert_eq!(error.code(), "storage_unavailable", "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_is_read_on_from_there() {
    let (place, proxy) = behind_a_proxy(Server::SeaweedFs).await;
    let body = sample(6 * MIB);
    write(&*place.storage, "a/b", &body).await.unwrap();
    proxy.inject(Op::Get, Fault::CutBody(MIB), 5);
    assert!(read(&*place.storage, "a/b").await.unwrap() == body);
    assert_eq!(proxy.count(Op::Get), 6);
    // Another object of that name is not read on.
    let (StorageConfig::S3(config), client) = (&place.config, Server::SeaweedFs.client()) else {
        unreachable!()
    };
    let (bucket, other) = (config.bucket.clone(), sample(6 * MIB + 1));
    let act = move || {
        let put =
            client.put_object().bucket(&bucket).key("some/where/a/b").body(other.clone().into());
        async move {
            put.send().await.unwrap();
        }
        .boxed()
    };
    proxy.inject(Op::Get, Fault::ThenCut(Arc::new(act), MIB), 1);
    let error = read(&*place.storage, "a/b").await.unwrap_err();
    assert!(error.to_string().contains("it was changed while it was read"), "{error}");
}

#[tokio::test]
async fn a_store_that_is_not_there_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let config =
        S3Config { endpoint: Some(endpoint.clone()), attempts: 2, ..Server::S3s.bucket().await };
    let place = Place::of(Server::S3s, config).await;
    let error = place.storage.stat("a/b").await.unwrap_err();
    assert_eq!(error.code(), "storage_unavailable", "{error:?}");
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[tokio::test]
async fn wrong_credentials_are_denied_in_words_without_saying_them() {
    for server in [Server::S3s, Server::SeaweedFs] {
        let right = server.bucket().await;
        let secret = "not-the-secret-0123456789";
        let wrong_secret =
            S3Config { secret_access_key: Some(Secret::new(secret)), ..right.clone() };
        let wrong_id =
            S3Config { access_key_id: Some(Secret::new("GK0123456789abcdef01234567")), ..right };
        for config in [wrong_secret, wrong_id] {
            let place = Place::of(server, config).await;
            for error in [
                place.storage.replace("a/b", Bytes::new()).await.unwrap_err(),
                place.storage.list("").try_collect::<Vec<_>>().await.unwrap_err(),
                place.storage.stat("a/b").await.unwrap_err(),
            ] {
                assert_eq!(error.code(), "storage_denied", "{error:?}");
                let text = format!("{error} {error:?}");
                assert!(
                    !text.contains(secret) && !text.contains("GK0123456789abcdef01234567"),
                    "{text}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_missing_bucket_is_said_to_be_missing() {
    for server in [Server::SeaweedFs, Server::Moto] {
        let config =
            S3Config { bucket: "bucket-that-is-not-there".to_owned(), ..server.bucket().await };
        let place = Place::of(server, config).await;
        for error in [
            place.storage.replace("a/b", Bytes::new()).await.unwrap_err(),
            place.storage.list("").try_collect::<Vec<_>>().await.unwrap_err(),
            place.storage.now().await.unwrap_err(),
        ] {
            assert!(error.to_string().contains("bucket-that-is-not-there"), "{error}");
        }
    }
}

/// What stores say of a bucket that may not grow: Garage 2.5, MinIO, Ceph.
const OVER_QUOTA: [(u16, &str, &str); 4] = [
    (
        403,
        "AccessDenied",
        "Forbidden: Bucket size quota is reached, maximum total size of objects for this bucket: \
         8388608. The bucket is already 5 bytes, and this object would add 11534336 bytes.",
    ),
    (400, "XMinioAdminBucketQuotaExceeded", "Bucket quota exceeded"),
    (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
    (403, "QuotaExceeded", ""),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_over_its_quota_is_full() {
    for (status, code, words) in OVER_QUOTA {
        for op in [Op::Put, Op::Part(2), Op::Complete] {
            let (place, proxy) = behind_a_proxy(Server::SeaweedFs).await;
            proxy.inject(op, Fault::SayInWords(status, code, words), 1);
            let body = sample(if op == Op::Put { 1_000 } else { LARGE });
            let error = write(&*place.storage, "a/b", &body).await.unwrap_err();
            assert_eq!(error.code(), "storage_full", "{code}, {op:?}: {error:?}");
            assert_nothing_is_left(&place).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_full_disk_keeps_nothing_half() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else can mount a disk that fills at once.
        return;
    }
    let server = SmallServer::new(24);
    let (client, bucket) = (server.client(), fresh("full"));
    client.create_bucket().bucket(&bucket).send().await.unwrap();
    let config = S3Config {
        endpoint: Some(server.endpoint.clone()),
        attempts: 2,
        bucket: bucket.clone(),
        ..Server::SeaweedFs.bucket().await
    };
    let place = Place::of(Server::SeaweedFs, config).await;
    write(&*place.storage, "a/old", &sample(LARGE)).await.unwrap();
    // It does not say that its disk is full, so this cannot be `Full`.
    let error = write(&*place.storage, "a/new", &sample(2 * LARGE)).await.unwrap_err();
    assert!(error.code() == "storage_unavailable", "{error:?}");
    assert!(error.to_string().contains("InternalError"), "{error}");
    let objects = list(&*place.storage, "").await;
    assert_eq!(objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a/old"]);
    assert_eq!(unfinished_uploads(&client, &bucket).await, 0);
    assert!(read(&*place.storage, "a/old").await.unwrap() == sample(LARGE));
    server.resize(200);
    write(&*place.storage, "a/new", &sample(2 * LARGE)).await.unwrap();
    assert!(read(&*place.storage, "a/new").await.unwrap() == sample(2 * LARGE));
}

#[tokio::test]
async fn a_locked_object_is_not_deleted_and_says_until_when() {
    let mut config = Server::Moto.bucket().await;
    config.bucket = fresh("locked");
    let client = Server::Moto.client();
    client
        .create_bucket()
        .bucket(&config.bucket)
        .object_lock_enabled_for_bucket(true)
        .send()
        .await
        .unwrap();
    config.retain_for = Some("2d".parse().unwrap());
    config.retain_mode = Some(RetainMode::Compliance);
    let place = Place::of(Server::Moto, config).await;
    let now = place.storage.now().await.unwrap();
    // Moto forgets the lock of an object that was uploaded in parts.
    write(&*place.storage, "a/b", &sample(10)).await.unwrap();
    match place.storage.delete("a/b").await.unwrap_err().kind() {
        StorageErrorKind::Locked { until: Some(until) } => {
            let left = until - now;
            assert!(left > TimeDelta::hours(47) && left < TimeDelta::hours(49), "{left}");
        }
        other => panic!("{other:?}"),
    }
    write(&*place.storage, "a/parts", &sample(LARGE)).await.unwrap();
    // What is replaced all the time is never locked.
    place.storage.replace("a/run.json", Bytes::from_static(b"{}")).await.unwrap();
    place.storage.delete("a/run.json").await.unwrap();
    assert_eq!(list(&*place.storage, "").await.len(), 2);
}

#[tokio::test]
async fn tls_that_does_not_come_about_is_explained() {
    let config = Server::S3s.bucket().await;
    let endpoint = config.endpoint.as_deref().unwrap().replace("http://", "https://");
    let place = Place::of(
        Server::S3s,
        S3Config { endpoint: Some(endpoint), attempts: 1, ..config.clone() },
    )
    .await;
    let error = place.storage.stat("a/b").await.unwrap_err();
    assert!(
        error.to_string().contains("`ca_file`") && error.to_string().contains("`endpoint`"),
        "{error}"
    );
    let folder = tempfile::tempdir().unwrap();
    for text in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n\
        -----END CERTIFICATE-----\n",
    ] {
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, text).unwrap();
        let config = StorageConfig::S3(S3Config { ca_file: Some(file), ..config.clone() });
        let error = config.open(&Cancel::new()).await.err().unwrap();
        assert!(
            error.code() == "storage_unsuitable" && error.to_string().contains("ca.pem"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_store_with_a_certificate_of_an_authority_of_ones_own_needs_the_ca_file() {
    let proxy = S3Proxy::with_tls_before(&Server::S3s.endpoint()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), proxy.certificate.as_deref().unwrap()).unwrap();
    let strange = S3Config {
        endpoint: Some(proxy.endpoint.clone()),
        attempts: 1,
        ..Server::S3s.bucket().await
    };
    let trusted = S3Config { ca_file: Some(file.path().to_owned()), ..strange.clone() };
    let place = Place::of(Server::S3s, trusted).await;
    write(&*place.storage, "a/b", &sample(LARGE)).await.unwrap();
    assert!(read(&*place.storage, "a/b").await.unwrap() == sample(LARGE));
    let error = Place::of(Server::S3s, strange).await.storage.stat("a/b").await.unwrap_err();
    assert!(
        error.to_string().contains("UnknownIssuer") && error.to_string().contains("`ca_file`"),
        "{error}"
    );
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused() {
    let right = Server::S3s.bucket().await;
    let wrong = [
        S3Config { bucket: String::new(), ..right.clone() },
        S3Config { prefix: "a/../b".to_owned(), ..right.clone() },
        S3Config { endpoint: Some("storage.example.org".to_owned()), ..right.clone() },
        S3Config { secret_access_key: None, ..right.clone() },
        S3Config { part_size: "4MiB".parse().unwrap(), ..right.clone() },
        S3Config { upload_concurrency: 0, ..right.clone() },
        S3Config { attempts: 0, ..right.clone() },
        S3Config { retain_mode: Some(RetainMode::Governance), ..right.clone() },
        S3Config { kms_key_id: Some("key".to_owned()), ..right },
    ];
    for config in wrong {
        let opened = StorageConfig::S3(config.clone()).open(&Cancel::new()).await;
        assert!(
            matches!(opened.err(), Some(error) if error.code() == "storage_unsuitable"),
            "{config:?}"
        );
    }
    for address in ["", "s3://", "ftp://host/x", "s3:///x"] {
        assert!(StorageConfig::from_address(address).is_err(), "{address}");
    }
    assert!(matches!(StorageConfig::from_address("/backups"), Ok(StorageConfig::Local(_))));
    let Ok(StorageConfig::S3(config)) = StorageConfig::from_address("s3://bucket/a/b/") else {
        panic!()
    };
    assert_eq!((config.bucket.as_str(), config.prefix.trim_end_matches('/')), ("bucket", "a/b"));
}

#[tokio::test]
async fn files_and_folders_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let storage =
        StorageConfig::Local(LocalConfig::from_path(&root)).open(&Cancel::new()).await.unwrap();
    write(&*storage, "a/b/c", &sample(10)).await.unwrap();
    storage.replace("a/b/run.json", Bytes::new()).await.unwrap();
    let _lock = storage.lock("a").await.unwrap();
    let mode =
        |path: &str| std::fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    for (path, expected) in [
        ("", 0o700),
        ("a", 0o700),
        ("a/b", 0o700),
        ("a/b/c", 0o600),
        ("a/b/run.json", 0o600),
        ("a/.lock", 0o600),
    ] {
        assert_eq!(mode(path), expected, "{path}");
    }
}

#[tokio::test]
async fn a_folder_whose_parent_is_missing_is_an_error_and_not_empty() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not-mounted/backups");
    let storage =
        StorageConfig::Local(LocalConfig::from_path(&path)).open(&Cancel::new()).await.unwrap();
    let errors = [
        storage.list("").try_collect::<Vec<_>>().await.unwrap_err(),
        storage.stat("a").await.unwrap_err(),
        storage.replace("a", Bytes::new()).await.unwrap_err(),
        storage.create("a", CreateOptions::default()).await.err().unwrap(),
        storage.delete("a").await.unwrap_err(),
        storage.lock("a").await.err().unwrap(),
    ];
    for error in errors {
        assert!(error.to_string().contains("mount its disk"), "{error}");
    }
    assert!(!path.exists());
}

#[tokio::test]
async fn links_and_strange_names_in_the_folder_are_not_objects() {
    let place = Place::local().await;
    let storage = &*place.storage;
    let StorageConfig::Local(config) = &place.config else { unreachable!() };
    write(storage, "a/b", &sample(10)).await.unwrap();
    std::os::unix::fs::symlink("b", config.path.join("a/link")).unwrap();
    std::os::unix::fs::symlink("/etc", config.path.join("a/folder")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        config.path.join("a/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let keys: Vec<String> = list(storage, "").await.into_iter().map(|object| object.key).collect();
    assert_eq!(keys, ["a/b"]);
    let all: Vec<Object> = storage.list("").try_collect().await.unwrap();
    let told: Vec<_> = all.iter().map(|object| (object.key.as_str(), object.irregular)).collect();
    let expected = [
        ("a/b", None),
        ("a/folder", Some(Irregular::Link)),
        ("a/link", Some(Irregular::Link)),
        ("a/pipe", Some(Irregular::Pipe)),
    ];
    assert_eq!(told, expected, "but nobody takes their names for free");
    for key in ["a/link", "a/pipe", "a/folder"] {
        let errors = [
            storage.stat(key).await.unwrap_err(),
            read(storage, key).await.unwrap_err(),
            storage.replace(key, Bytes::new()).await.unwrap_err(),
            storage.delete(key).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.code(), "object_not_a_file", "{key}");
        }
        // But their names are taken.
        let taken = storage.create(key, CreateOptions::default()).await.err();
        assert!(taken.is_some_and(|error| error.code() == "object_exists"));
    }
}

#[tokio::test]
async fn nothing_is_kept_behind_a_link_where_no_listing_would_find_it() {
    let place = Place::local().await;
    let storage = &*place.storage;
    let StorageConfig::Local(config) = &place.config else { unreachable!() };
    write(storage, "app/weekly/b", &sample(10)).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), config.path.join("app/daily")).unwrap();
    let errors = [
        storage.create("app/daily/x/a", CreateOptions::default()).await.err().unwrap(),
        storage.replace("app/daily/a", Bytes::new()).await.unwrap_err(),
        storage.lock("app/daily").await.err().unwrap(),
        storage.list("app/daily/").try_next().await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("app/daily` is a symbolic link"), "{error}");
    }
    assert!(std::fs::read_dir(elsewhere.path()).unwrap().next().is_none());
}

/// A file system of a few MiB, which only root may mount.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        rustix::mount::mount(
            "none",
            folder.path(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(c"size=4m"),
        )
        .unwrap();
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_disk_that_fills_is_full_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else can mount a disk that fills at once.
        return;
    }
    let disk = SmallDisk::new();
    let path = disk.0.path().join("backups");
    let storage =
        StorageConfig::Local(LocalConfig::from_path(&path)).open(&Cancel::new()).await.unwrap();
    let free = storage.free_bytes().await.unwrap().unwrap();
    assert!(free > 0 && free <= 4 << 20, "{free}");
    let finished = write(&*storage, "a/old", &sample(MIB)).await.unwrap();
    assert_eq!(finished.check, RemoteCheck::Size);
    let error = write(&*storage, "a/new", &sample(LARGE)).await.unwrap_err();
    assert_eq!(error.code(), "storage_full", "{error:?}");
    let replaced = storage.replace("a/old", sample(LARGE)).await.unwrap_err();
    assert_eq!(replaced.code(), "storage_full", "{replaced:?}");
    assert_eq!(hidden_files(&path), 0);
    assert!(read(&*storage, "a/old").await.unwrap() == sample(MIB));
    write(&*storage, "a/new", &sample(MIB)).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_is_dropped_removes_its_file() {
    let place = Place::local().await;
    let mut upload = place.storage.create("a/b", CreateOptions::default()).await.unwrap();
    upload.write(sample(10)).await.unwrap();
    assert_eq!(place.unfinished().await, Some(1));
    drop(upload);
    assert_eq!(place.unfinished().await, Some(0));
}
