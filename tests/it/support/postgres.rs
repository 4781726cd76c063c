//! Databases on the real servers, each dropped at the end of its test.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::runtime::Runtime;
use url::Url;

use super::stores::fresh;

/// The majors that there is a server of.
pub const MAJORS: [u32; 3] = [15, 16, 18];

/// A server, with a runtime to talk to it.
#[derive(Clone)]
pub struct Server {
    pub major: u32,
    pub url: Url,
    pub bin: PathBuf,
    pub runtime: Arc<Runtime>,
}

impl Server {
    pub fn new(major: u32) -> Self {
        let server = super::postgres(major);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            major,
            url: server.url.parse().unwrap(),
            bin: server.bin,
            runtime: Arc::new(runtime),
        }
    }

    /// A new, empty database.
    pub fn database(&self) -> Database {
        let name = fresh("hf").replace('-', "_");
        self.run("postgres", &format!("CREATE DATABASE {name}"));
        Database { server: self.clone(), name }
    }

    /// The address of a database here, password included.
    pub fn url(&self, database: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(database);
        url
    }

    pub fn connect(&self, database: &str) -> PgConnection {
        self.runtime.block_on(PgConnection::connect(self.url(database).as_str())).unwrap()
    }

    pub fn run(&self, database: &str, sql: &str) {
        let mut connection = self.connect(database);
        self.runtime.block_on(sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection)).unwrap();
    }

    /// A search path with the clients of this major first, then those of the others.
    pub fn path(&self) -> OsString {
        let mut majors = MAJORS.to_vec();
        majors.sort_by_key(|major| *major != self.major);
        let mut folders: Vec<PathBuf> =
            majors.into_iter().map(|major| super::postgres(major).bin).collect();
        folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        std::env::join_paths(folders).unwrap()
    }
}

/// A database of a test.
pub struct Database {
    pub server: Server,
    pub name: String,
}

impl Database {
    pub fn url(&self) -> String {
        self.server.url(&self.name).to_string()
    }

    /// Without the password.
    pub fn open_url(&self) -> String {
        let mut url = self.server.url(&self.name);
        url.set_password(None).unwrap();
        url.to_string()
    }

    pub fn run(&self, sql: &str) {
        self.server.run(&self.name, sql);
    }

    pub fn number(&self, sql: &str) -> i64 {
        let mut connection = self.server.connect(&self.name);
        self.server
            .runtime
            .block_on(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection))
            .unwrap()
    }

    pub fn texts(&self, sql: &str) -> Vec<String> {
        let mut connection = self.server.connect(&self.name);
        self.server
            .runtime
            .block_on(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&mut connection))
            .unwrap()
    }

    /// All of it as sorted lines of SQL, by the `pg_dump` in `bin` alone; comments and settings of
    /// the tool aside.
    pub fn canonical(&self, bin: &Path) -> Vec<String> {
        let script = r#""$1"/pg_dump --no-owner "$2""#;
        let text = super::sh(Path::new("/"), script, &[bin.as_os_str(), self.url().as_ref()]);
        let varies = |line: &&str| {
            line.starts_with('\\') || line.starts_with("--") || line.starts_with("SET ")
        };
        let mut lines: Vec<String> =
            text.lines().filter(|line| !varies(line)).map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.server.run("postgres", &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name));
    }
}
