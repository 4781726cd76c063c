//! The numbers of users and groups of this system, by their names.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::OnceLock;

/// As much of each file as is looked at; real ones are far smaller.
const LIMIT: u64 = 4 << 20;

/// What the system's own files say, read when it is first asked for. Names from elsewhere (LDAP,
/// say) are not looked up.
#[derive(Debug, Default)]
pub(super) struct Names {
    users: OnceLock<HashMap<String, u32>>,
    groups: OnceLock<HashMap<String, u32>>,
}

impl Names {
    pub(super) fn user(&self, name: &str) -> Option<u32> {
        self.users.get_or_init(|| numbers(Path::new("/etc/passwd"))).get(name).copied()
    }

    pub(super) fn group(&self, name: &str) -> Option<u32> {
        self.groups.get_or_init(|| numbers(Path::new("/etc/group"))).get(name).copied()
    }
}

/// Both files have lines of `name:password:number:…`; of several numbers for a name the first
/// counts.
fn numbers(path: &Path) -> HashMap<String, u32> {
    let mut numbers = HashMap::new();
    let Ok(file) = std::fs::File::open(path) else { return numbers };
    for line in BufReader::new(file.take(LIMIT)).lines().map_while(Result::ok) {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(number)) = (fields.next(), fields.next(), fields.next())
            && let Ok(number) = number.parse()
        {
            numbers.entry(name.to_owned()).or_insert(number);
        }
    }
    numbers
}
