//! The storages that the tests run against, each fresh.

use std::fmt::Write as _;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use holdfast::model::{Cancel, Secret};
use holdfast::storage::local::LocalConfig;
use holdfast::storage::s3::S3Config;
use holdfast::storage::{Storage, StorageConfig};

use super::s3_proxy::S3Proxy;

/// The value of a variable that `tests/run` sets.
#[expect(clippy::disallowed_methods, reason = "the test servers are told by the environment")]
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run tests/run"))
}

/// A random name.
pub(crate) fn fresh(what: &str) -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    bytes.iter().fold(format!("{what}-"), |mut name, byte| {
        write!(name, "{byte:02x}").unwrap();
        name
    })
}

/// A server that speaks S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    S3s,
    SeaweedFs,
    Moto,
}

impl Server {
    pub(crate) fn endpoint(self) -> String {
        setting(match self {
            Self::S3s => "HOLDFAST_TEST_S3S_ENDPOINT",
            Self::SeaweedFs => "HOLDFAST_TEST_SEAWEEDFS_ENDPOINT",
            Self::Moto => "HOLDFAST_TEST_MOTO_ENDPOINT",
        })
    }

    pub(crate) fn region(self) -> String {
        match self {
            Self::S3s | Self::SeaweedFs => setting("HOLDFAST_TEST_S3_REGION"),
            // It knows the regions of AWS only.
            Self::Moto => "us-east-1".to_owned(),
        }
    }

    /// A client of the test's own.
    pub(crate) fn client(self) -> Client {
        self.client_as(Identity::All)
    }

    /// The same with the key of an identity.
    pub(crate) fn client_as(self, identity: Identity) -> Client {
        client(&self.endpoint(), &self.region(), identity)
    }

    /// A configuration for a bucket that was just made.
    pub(crate) async fn bucket(self) -> S3Config {
        let bucket = fresh("bucket");
        self.client().create_bucket().bucket(&bucket).send().await.unwrap();
        S3Config {
            prefix: "some/where".to_owned(),
            endpoint: Some(self.endpoint()),
            region: Some(self.region()),
            access_key_id: Some(Secret::new(setting("HOLDFAST_TEST_S3_ACCESS_KEY"))),
            secret_access_key: Some(Secret::new(setting("HOLDFAST_TEST_S3_SECRET_KEY"))),
            part_size: "5MiB".parse().unwrap(),
            ..S3Config::new(bucket)
        }
    }

    /// s3s-fs answers 501 to a request for the list of uploads.
    pub(crate) fn lists_uploads(self) -> bool {
        self != Self::S3s
    }

    /// How many unfinished uploads a bucket has; none where the server does not list them.
    pub(crate) async fn unfinished_uploads(self, bucket: &str) -> Option<usize> {
        if !self.lists_uploads() {
            return None;
        }
        Some(unfinished_uploads(&self.client(), bucket).await)
    }

    /// Asserts that a bucket has no unfinished uploads, on servers that list them.
    pub(crate) async fn assert_no_uploads_where_listed(self, bucket: &str) {
        let expected = self.lists_uploads().then_some(0);
        assert_eq!(self.unfinished_uploads(bucket).await, expected, "{self:?}: {bucket}");
    }
}

/// How many unfinished uploads a bucket has.
pub(crate) async fn unfinished_uploads(client: &Client, bucket: &str) -> usize {
    client.list_multipart_uploads().bucket(bucket).send().await.unwrap().uploads().len()
}

/// Whose key a request is signed with. Every server knows `All`, only SeaweedFS the others;
/// `tests/servers` says what they may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    All,
    NoDelete,
    PutOnly,
}

impl Identity {
    /// Its access key and secret key.
    pub(crate) fn keys(self) -> (String, String) {
        let name = match self {
            Self::All => "S3",
            Self::NoDelete => "S3_NODELETE",
            Self::PutOnly => "S3_PUTONLY",
        };
        let key = |kind: &str| setting(&format!("HOLDFAST_TEST_{name}_{kind}_KEY"));
        (key("ACCESS"), key("SECRET"))
    }
}

/// A client of the S3 server at that endpoint.
pub(crate) fn client(endpoint: &str, region: &str, identity: Identity) -> Client {
    let (access_key, secret_key) = identity.keys();
    let credentials = Credentials::new(access_key, secret_key, None, None, "the tests");
    Client::from_conf(
        aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint)
            .region(Region::new(region.to_owned()))
            .force_path_style(true)
            .credentials_provider(credentials)
            .build(),
    )
}

/// A fresh storage, and what it lives in.
pub(crate) struct Place {
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) config: StorageConfig,
    pub(crate) server: Option<Server>,
    /// Whether a proxy keeps the conditions of writes from the server.
    pub(crate) ignores_conditions: bool,
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    pub(crate) async fn local() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = StorageConfig::Local(LocalConfig::from_path(folder.path().join("root")));
        let (storage, ignores_conditions) = (open(&config).await, false);
        Self { storage, config, server: None, ignores_conditions, _folder: Some(folder) }
    }

    pub(crate) async fn on(server: Server) -> Self {
        Self::of(server, server.bucket().await).await
    }

    pub(crate) async fn of(server: Server, config: S3Config) -> Self {
        let config = StorageConfig::S3(config);
        let (storage, ignores_conditions) = (open(&config).await, false);
        Self { storage, config, server: Some(server), ignores_conditions, _folder: None }
    }

    /// A server that ignores conditional writes, as some stores do.
    pub(crate) async fn ignoring_conditions(server: Server) -> Self {
        let proxy = S3Proxy::before(&server.endpoint()).await;
        proxy.ignore_conditions();
        let config = S3Config { endpoint: Some(proxy.endpoint.clone()), ..server.bucket().await };
        Self { ignores_conditions: true, ..Self::of(server, config).await }
    }

    /// The same place, opened again.
    pub(crate) async fn again(&self) -> Box<dyn Storage> {
        open(&self.config).await
    }

    /// Asserts that no uploads were left unfinished, on servers that list them.
    pub(crate) async fn assert_no_uploads_where_listed(&self) {
        let expected = self.server.is_none_or(Server::lists_uploads).then_some(0);
        assert_eq!(self.unfinished().await, expected, "{:?}", self.server);
    }

    /// How many uploads were left unfinished; none where the server does not list them.
    pub(crate) async fn unfinished(&self) -> Option<usize> {
        match (&self.config, self.server) {
            (StorageConfig::S3(config), Some(server)) => {
                server.unfinished_uploads(&config.bucket).await
            }
            (StorageConfig::Local(config), _) => Some(hidden_files(&config.path)),
            _ => None,
        }
    }
}

async fn open(config: &StorageConfig) -> Box<dyn Storage> {
    config.open(&Cancel::new()).await.unwrap()
}

/// How many files below `folder` have a name that begins with a dot, locks and the clock aside.
pub(crate) fn hidden_files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                hidden_files(&entry.path())
            } else {
                usize::from(name.starts_with('.') && name != ".lock" && name != ".clock")
            }
        })
        .sum()
}
