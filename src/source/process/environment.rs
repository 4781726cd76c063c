//! What children get of the program's environment, and where programs are.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a child may have of the program's environment, beside `LC_*`. Nothing here is a secret. The
/// settings of the database clients (`PG*`) are not passed on: what a source connects to is what
/// its configuration says, and nothing else.
const PASSED_ON: [&str; 16] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "LOCPATH",
    "TZ",
    "TZDIR",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "LD_LIBRARY_PATH",
    "XDG_CONFIG_HOME",
    "KRB5_CONFIG",
    "KRB5CCNAME",
];
/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// The environment of the program, read once by the configuration and handed down. Children get an
/// allow-list of it.
#[derive(Clone, Default)]
pub struct Environment(pub BTreeMap<OsString, OsString>);

impl Environment {
    /// The value of a variable; none when it is unset or empty.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The part that every child gets.
    pub(super) fn for_children(&self) -> BTreeMap<OsString, OsString> {
        let passed = |name: &OsStr| {
            name.to_str().is_some_and(|name| PASSED_ON.contains(&name) || name.starts_with("LC_"))
        };
        self.0
            .iter()
            .filter(|(name, _)| passed(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// The folders that programs are looked for in.
    pub fn search_path(&self) -> Vec<PathBuf> {
        let path = self.get("PATH").unwrap_or(OsStr::new(DEFAULT_PATH));
        std::env::split_paths(path).filter(|folder| folder.is_absolute()).collect()
    }

    /// The file of a program: `program` itself when it has a `/`, else the first of that name in
    /// the search path that may be executed.
    pub fn find_program(&self, program: &Path) -> Option<PathBuf> {
        if program.as_os_str().as_encoded_bytes().contains(&b'/') {
            return is_executable(program).then(|| program.to_owned());
        }
        self.search_path()
            .into_iter()
            .map(|folder| folder.join(program))
            .find(|file| is_executable(file))
    }
}

impl fmt::Debug for Environment {
    /// The names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Whether this is a file that we may execute.
pub fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::Environment;

    #[test]
    fn children_get_an_allow_list_only() {
        let names = [
            "PATH",
            "LC_TIME",
            "AWS_SECRET_ACCESS_KEY",
            "PGPASSWORD",
            "DB_URL",
            "BACKUP_KEY",
            "PGHOST",
        ];
        let all = names.iter().map(|name| (OsString::from(name), OsString::from("x"))).collect();
        let passed: Vec<OsString> = Environment(all).for_children().into_keys().collect();
        assert_eq!(passed, ["LC_TIME", "PATH"]);
    }
}
