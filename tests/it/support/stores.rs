//! The storages that the tests run against, each fresh.

use std::fmt::Write as _;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use holdfast::model::{Cancel, Secret};
use holdfast::storage::local::LocalConfig;
use holdfast::storage::s3::S3Config;
use holdfast::storage::{Storage, StorageConfig};

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
    Garage,
    Moto,
}

impl Server {
    pub(crate) fn endpoint(self) -> String {
        setting(match self {
            Self::S3s => "HOLDFAST_TEST_S3S_ENDPOINT",
            Self::Garage => "HOLDFAST_TEST_GARAGE_ENDPOINT",
            Self::Moto => "HOLDFAST_TEST_MOTO_ENDPOINT",
        })
    }

    pub(crate) fn region(self) -> String {
        match self {
            Self::S3s | Self::Garage => setting("HOLDFAST_TEST_S3_REGION"),
            // It knows the regions of AWS only.
            Self::Moto => "us-east-1".to_owned(),
        }
    }

    /// A client of the test's own.
    pub(crate) fn client(self) -> Client {
        let credentials = Credentials::new(
            setting("HOLDFAST_TEST_S3_ACCESS_KEY"),
            setting("HOLDFAST_TEST_S3_SECRET_KEY"),
            None,
            None,
            "the tests",
        );
        Client::from_conf(
            aws_sdk_s3::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .endpoint_url(self.endpoint())
                .region(Region::new(self.region()))
                .force_path_style(true)
                .credentials_provider(credentials)
                .build(),
        )
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

    /// How many unfinished uploads a bucket has, where the server can tell.
    pub(crate) async fn unfinished_uploads(self, bucket: &str) -> Option<usize> {
        if self == Self::S3s {
            return None;
        }
        let list = self.client().list_multipart_uploads().bucket(bucket).send().await.unwrap();
        Some(list.uploads().len())
    }
}

/// A fresh storage, and what it lives in.
pub(crate) struct Place {
    pub(crate) storage: Box<dyn Storage>,
    pub(crate) config: StorageConfig,
    pub(crate) server: Option<Server>,
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    pub(crate) async fn local() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = StorageConfig::Local(LocalConfig::from_path(folder.path().join("root")));
        Self { storage: open(&config).await, config, server: None, _folder: Some(folder) }
    }

    pub(crate) async fn on(server: Server) -> Self {
        Self::of(server, server.bucket().await).await
    }

    pub(crate) async fn of(server: Server, config: S3Config) -> Self {
        let config = StorageConfig::S3(config);
        Self { storage: open(&config).await, config, server: Some(server), _folder: None }
    }

    /// The same place, opened again.
    pub(crate) async fn again(&self) -> Box<dyn Storage> {
        open(&self.config).await
    }

    /// How many uploads were left unfinished, where that can be told.
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
