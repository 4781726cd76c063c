//! A PostgreSQL server of one test, which may be what the shared ones are not.

use std::path::{Path, PathBuf};

use super::{needs_root, sh, temp};

/// As the user of the test servers: PostgreSQL does not run as root, nor as a user without a name.
const AS_USER: &str = "setpriv --reuid=postgres --regid=postgres --clear-groups --no-new-privs";

/// A cluster that is reached by a socket in its folder.
pub struct OwnCluster {
    folder: tempfile::TempDir,
    bin: PathBuf,
    options: String,
}

impl OwnCluster {
    /// Starts a cluster with these options of `postgres`.
    pub fn start(bin: &Path, options: &str) -> Self {
        needs_root("PostgreSQL runs as another user");
        let cluster = Self { folder: temp(), bin: bin.to_owned(), options: options.to_owned() };
        sh(cluster.folder.path(), "chown postgres:postgres .", &[]);
        cluster.does("\"$1\"/initdb -D data -U postgres -A trust --no-sync >log 2>&1", &[]);
        cluster.go();
        cluster
    }

    /// Starts it again as a standby.
    pub fn becomes_standby(&self) {
        self.does("\"$1\"/pg_ctl -s -w -D data -m fast stop; touch data/standby.signal", &[]);
        self.go();
    }

    pub fn run(&self, sql: &str) {
        let run = "\"$1\"/psql -Xqv ON_ERROR_STOP=1 -h \"$PWD\" -U postgres -d postgres -c \"$2\"";
        self.does(run, &[sql]);
    }

    /// The address of a database here; it wants no password.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql:///{database}?host={}&user=postgres", self.folder.path().display())
    }

    fn go(&self) {
        self.does(
            "\"$1\"/pg_ctl -s -w -D data -l log -o \"-c listen_addresses= -c \
             unix_socket_directories=$PWD -c fsync=off $2\" start",
            &[&self.options],
        );
    }

    fn does(&self, script: &str, args: &[&str]) {
        let script = format!("{AS_USER} bash -euc '{script}' does \"$@\"");
        let args: Vec<_> =
            [self.bin.as_os_str()].into_iter().chain(args.iter().map(AsRef::as_ref)).collect();
        sh(self.folder.path(), &script, &args);
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        self.does(
            "test ! -e data/postmaster.pid || \"$1\"/pg_ctl -s -w -D data -m immediate stop",
            &[],
        );
    }
}
