//! A machine in small: a configuration, its state, a local storage, in one temporary folder.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Backup, Ran, S3, backup, temp};

/// One source that is a script of the test, `dump.sh`, to a local storage. What is added at the end
/// belongs to the strategy.
pub const SCRIPTED: &str = r#"
[sources.dump]
type = "command"
command = ["sh", "@/dump.sh"]
[storages.local]
type = "local"
path = "@/store"
[strategies.daily]
sources = ["dump"]
storages = ["local"]
"#;

/// The configuration file and what belongs to it.
pub struct Site {
    pub dir: TempDir,
}

impl Site {
    /// A site whose configuration is `body`, with the instance `app` and its state inside the site.
    /// In `body`, `@` stands for the site's folder.
    pub fn new(body: &str) -> Self {
        let site = Self { dir: temp() };
        site.configure(body);
        site
    }

    /// Writes the configuration anew.
    pub fn configure(&self, body: &str) {
        let head = "instance = \"app\"\nstate_dir = \"@/state\"\n";
        let text = format!("{head}{body}").replace('@', self.dir.path().to_str().unwrap());
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.path("app.toml")
    }

    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// The program with this site's configuration.
    pub fn backup<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Backup {
        backup(["--config"]).arg(self.config()).args(args).env("HOME", self.dir.path())
    }

    /// A run of `daily`, which must end with that exit code.
    pub fn run(&self, code: i32) -> Ran {
        self.backup(["--strategy", "daily", "--json"]).expect(code)
    }

    /// The ids of the snapshots of `daily`, oldest first, as `list` has them. Where a test took
    /// some away or damaged them, `list` ends with 4.
    pub fn ids(&self) -> Vec<String> {
        let list = self.backup(["list", "--strategy", "daily", "--json"]).run();
        let list = if list.code() == Some(4) { list.json() } else { list.expect(0).json() };
        list["snapshots"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The snapshot folders of `daily` in the local storage `store`, with a manifest or without.
    pub fn folders(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path("store/app/daily")) else {
            return Vec::new();
        };
        let mut folders: Vec<PathBuf> =
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    }

    /// The folder of the newest snapshot in the local storage `store`.
    pub fn newest(&self) -> PathBuf {
        self.path("store/app/daily").join(self.ids().pop().unwrap())
    }
}

/// A small tree of files below `dir`.
pub fn small_tree(dir: &Path) {
    std::fs::create_dir_all(dir.join("sub/empty")).unwrap();
    std::fs::write(dir.join("a.txt"), "alpha\n").unwrap();
    std::fs::write(dir.join("sub/b.bin"), noise(300_000)).unwrap();
    std::fs::write(dir.join("sub/quote'd \"name\""), "c").unwrap();
    std::os::unix::fs::symlink("../a.txt", dir.join("sub/link")).unwrap();
}

/// Bytes that do not compress, the same every time.
pub fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// The TOML table of an S3 storage `name` in `bucket`.
pub fn s3_storage(name: &str, server: &S3, bucket: &str) -> String {
    format!(
        "[storages.{name}]\ntype = \"s3\"\nbucket = \"{bucket}\"\nendpoint = \"{}\"\n\
         region = \"{}\"\n\
         access_key_id = \"{}\"\nsecret_access_key = \"{}\"\n",
        server.endpoint, server.region, server.access_key, server.secret_key
    )
}
