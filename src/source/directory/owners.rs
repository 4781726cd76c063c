//! The names of users and groups.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// The names that the system's own files give to owners. Names from elsewhere (LDAP, say) are not
/// looked up: the numbers are what is restored, and a name is a hint for people.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

/// As much of each file as is looked at; real ones are far smaller.
const LIMIT: u64 = 4 << 20;

impl Owners {
    pub(super) fn of_this_system() -> Self {
        Self { users: names(Path::new("/etc/passwd")), groups: names(Path::new("/etc/group")) }
    }

    pub(super) fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }

    pub(super) fn group(&self, gid: u32) -> Option<&str> {
        self.groups.get(&gid).map(String::as_str)
    }
}

/// Both files have lines of `name:password:number:…`; of several names for a number the first
/// counts.
fn names(path: &Path) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    let Ok(file) = std::fs::File::open(path) else { return names };
    for line in BufReader::new(file.take(LIMIT)).lines().map_while(Result::ok) {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(number)) = (fields.next(), fields.next(), fields.next())
            && let Ok(number) = number.parse()
            && !name.is_empty()
        {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}
