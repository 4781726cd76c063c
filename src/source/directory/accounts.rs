//! The ids of users and groups of this system by their names, and the names by the ids.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::OnceLock;

use crate::archive::access_list::IdLookup;

/// Bytes that are read of each file; beyond them names stay numbers.
const LIMIT: u64 = 4 << 20;

/// `/etc/passwd` and `/etc/group`, read when they are first asked for.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    users: OnceLock<Table>,
    groups: OnceLock<Table>,
}

/// The first line of an id, or of a name, counts.
#[derive(Debug, Default)]
struct Table {
    ids: HashMap<String, u32>,
    names: HashMap<u32, String>,
}

impl Accounts {
    fn users(&self) -> &Table {
        self.users.get_or_init(|| Table::read(Path::new("/etc/passwd")))
    }

    fn groups(&self) -> &Table {
        self.groups.get_or_init(|| Table::read(Path::new("/etc/group")))
    }

    pub(super) fn user_name(&self, uid: u32) -> Option<&str> {
        self.users().names.get(&uid).map(String::as_str)
    }

    pub(super) fn group_name(&self, gid: u32) -> Option<&str> {
        self.groups().names.get(&gid).map(String::as_str)
    }
}

impl IdLookup for Accounts {
    fn user_id(&self, name: &str) -> Option<u32> {
        self.users().ids.get(name).copied()
    }

    fn group_id(&self, name: &str) -> Option<u32> {
        self.groups().ids.get(name).copied()
    }
}

impl Table {
    fn read(path: &Path) -> Self {
        let mut table = Self::default();
        let Ok(file) = std::fs::File::open(path) else { return table };
        for line in BufReader::new(file.take(LIMIT)).lines().map_while(Result::ok) {
            let mut fields = line.split(':');
            if let (Some(name), Some(_), Some(id)) = (fields.next(), fields.next(), fields.next())
                && let Ok(id) = id.parse()
                && !name.is_empty()
            {
                table.ids.entry(name.to_owned()).or_insert(id);
                table.names.entry(id).or_insert_with(|| name.to_owned());
            }
        }
        table
    }
}
