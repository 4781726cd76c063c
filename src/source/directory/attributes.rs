//! Extended attributes: those of users and programs, POSIX access lists, capabilities, security
//! labels.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{
    XattrFlags, fgetxattr, fgetxattr_query, flistxattr, fremovexattr, fsetxattr, lgetxattr,
    llistxattr, lsetxattr,
};
use rustix::io::Errno;

use crate::archive::access_list::{ACCESS_LIST, DEFAULT_LIST};
use crate::archive::header::Attribute;

/// The kernel's own limit of a list of names, and of a value.
const LIMIT: usize = 64 << 10;
/// So much of all values of one entry is kept; no file system that is known to us holds as much.
const TOTAL_LIMIT: usize = 4 << 20;

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
        self.collect(|names| flistxattr(file, names), |name, value| fgetxattr(file, name, value))
    }

    /// Those of an entry that is not opened, as it is a link, a pipe or a device. The system has no
    /// call for such an entry in an open folder, so it is named by way of `/proc`; [`Errno::NOENT`]
    /// says also that `/proc` is not there.
    pub(super) fn read_at(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<Vec<Attribute>, Errno> {
        let mut path = format!("/proc/thread-self/fd/{}/", folder.as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        self.collect(|names| llistxattr(&path, names), |name, value| lgetxattr(&path, name, value))
    }

    fn collect(
        &mut self,
        list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
        get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<Vec<Attribute>, Errno> {
        let length = match list(&mut self.names) {
            Ok(length) => length,
            Err(Errno::NOTSUP | Errno::NOSYS) => 0,
            Err(error) => return Err(error),
        };
        let mut attributes = Vec::new();
        let mut total = 0;
        for name in self.names.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
            if name.is_empty() || !kept(name) {
                continue;
            }
            match get(name, &mut self.value) {
                Ok(length) => {
                    total += length;
                    if total > TOTAL_LIMIT {
                        return Err(Errno::TOOBIG);
                    }
                    attributes.push((
                        name.to_vec(),
                        self.value.get(..length).unwrap_or_default().to_vec(),
                    ));
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

/// When an attribute is set: most before the permissions, which may take the right to set them
/// away; what permissions and owners change, after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    BeforeMode,
    AfterMode,
}

/// Sets those of `attributes` whose turn it is. Returns the names of those that the system refused,
/// with its reason.
pub(super) fn set(
    file: BorrowedFd<'_>,
    attributes: &[Attribute],
    turn: Turn,
) -> Vec<(String, Errno)> {
    set_each(attributes, turn, |key, value| fsetxattr(file, key, value, XattrFlags::empty()))
}

/// Sets those of an entry that cannot be opened: a link, a named pipe, a device. It has that name
/// in the folder.
pub(super) fn set_at(
    folder: BorrowedFd<'_>,
    name: &CStr,
    attributes: &[Attribute],
    turn: Turn,
) -> Vec<(String, Errno)> {
    // The system has no call that takes a folder and a name.
    let mut path = format!("/proc/thread-self/fd/{}/", folder.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    set_each(attributes, turn, |key, value| {
        lsetxattr(path.as_slice(), key, value, XattrFlags::empty())
    })
}

fn set_each(
    attributes: &[Attribute],
    turn: Turn,
    set: impl Fn(&CStr, &[u8]) -> Result<(), Errno>,
) -> Vec<(String, Errno)> {
    let mut refused = Vec::new();
    for (name, value) in attributes {
        let late = [ACCESS_LIST, DEFAULT_LIST, CAPABILITY].contains(&name.as_slice());
        if late != (turn == Turn::AfterMode) || !kept(name) {
            continue;
        }
        let Ok(key) = CString::new(name.as_slice()) else { continue };
        if let Err(error) = set(&key, value) {
            refused.push((String::from_utf8_lossy(name).into_owned(), error));
        }
    }
    refused
}

/// Takes the list away that a folder gives to what is made in it, so that nothing restored there
/// has rights that the backup does not know of. Returns it.
pub(super) fn take_default_list(folder: BorrowedFd<'_>) -> Option<Attribute> {
    let mut value = vec![0; fgetxattr_query(folder, DEFAULT_LIST).ok()?];
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
