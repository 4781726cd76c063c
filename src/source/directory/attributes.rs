//! Extended attributes: those of users and programs, POSIX access lists, capabilities, security labels.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

use super::tarball::Attribute;

/// The kernel's own limit of a list of names, and of a value.
const LIMIT: usize = 64 << 10;
/// So much of all values of one entry is kept; no file system that is known to us holds as much.
const TOTAL_LIMIT: usize = 4 << 20;

/// The access lists. They say more than the permission bits, and setting one sets those too.
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";
/// Lost when the owner changes, so it comes last.
const CAPABILITY: &[u8] = b"security.capability";

/// Whether it is kept. Other `system.` attributes are computed by the file system and belong to it.
fn kept(name: &[u8]) -> bool {
    !name.starts_with(b"system.") || name == ACCESS_LIST || name == DEFAULT_LIST
}

/// Reads attributes into buffers that are used again.
pub(super) struct AttributeReader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl AttributeReader {
    pub(super) fn new() -> Self {
        Self { names: vec![0; LIMIT], value: vec![0; LIMIT] }
    }

    /// The attributes of an open file or folder, by name. A file system that has none gives none.
    pub(super) fn read(&mut self, file: BorrowedFd<'_>) -> Result<Vec<Attribute>, Errno> {
        let length = match flistxattr(file, self.names.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::NOTSUP | Errno::NOSYS) => 0,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut attributes = Vec::new();
        let mut total = 0;
        for name in self.names.iter().take(length).copied().collect::<Vec<_>>().split(|byte| *byte == 0) {
            if name.is_empty() || !kept(name) {
                continue;
            }
            match fgetxattr(file, name, self.value.as_mut_slice()) {
                Ok(length) => {
                    total += length;
                    if total > TOTAL_LIMIT {
                        return Err(Errno::TOOBIG);
                    }
                    attributes.push((name.to_vec(), self.value.iter().take(length).copied().collect()));
                }
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error),
            }
        }
        attributes.sort();
        Ok(attributes)
    }
}

/// When an attribute is set: most before the permissions, which may take the right to set them away; what permissions and owners
/// change, after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    BeforeMode,
    AfterMode,
}

/// Sets those of `attributes` whose turn it is. Returns the names of those that the system refused, with its reason.
pub(super) fn set(file: BorrowedFd<'_>, attributes: &[Attribute], turn: Turn) -> Vec<(String, Errno)> {
    let mut refused = Vec::new();
    for (name, value) in attributes {
        let late = [ACCESS_LIST, DEFAULT_LIST, CAPABILITY].contains(&name.as_slice());
        if late != (turn == Turn::AfterMode) || !kept(name) {
            continue;
        }
        let Ok(key) = CString::new(name.as_slice()) else { continue };
        if let Err(error) = fsetxattr(file, &key, value, XattrFlags::empty()) {
            refused.push((String::from_utf8_lossy(name).into_owned(), error));
        }
    }
    refused
}

/// Takes the list away that a folder gives to what is made in it, so that nothing restored there has rights that the backup
/// does not know of. Returns it.
pub(super) fn take_default_list(folder: BorrowedFd<'_>) -> Option<Attribute> {
    let mut value = vec![0; fgetxattr(folder, DEFAULT_LIST, [0; 0].as_mut_slice()).ok()?];
    let length = fgetxattr(folder, DEFAULT_LIST, value.as_mut_slice()).ok()?;
    value.truncate(length);
    fremovexattr(folder, DEFAULT_LIST).ok()?;
    Some((DEFAULT_LIST.to_vec(), value))
}

/// Takes the access list of a file or folder away, if it has one.
pub(super) fn remove_access_list(file: BorrowedFd<'_>) -> Result<(), Errno> {
    match fremovexattr(file, ACCESS_LIST) {
        Err(Errno::NODATA | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
        result => result,
    }
}
