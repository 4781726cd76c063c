//! Header blocks of the tarball: POSIX.1-2001 pax, written so that GNU tar, bsdtar and Python's
//! `tarfile` read the same.
//!
//! Every entry has a ustar header. What does not fit in it comes before it in a pax header: times
//! with a fraction, long names, names that are not ASCII, big numbers, extended attributes
//! (`SCHILY.xattr.`, as all three programs write them), access lists once more as text
//! (`SCHILY.acl.`), and what tells a sparse file (`GNU.sparse.`, version 1.0 of GNU tar's ways).

use std::fmt::Write as _;

use tar::{EntryType, Header};

use super::access_list::{self, ACCESS_LIST, DEFAULT_LIST};
use super::entry::{Kind, Time};

/// Headers and contents are filled up to whole blocks of this size.
pub(crate) const BLOCK: u64 = 512;
/// The longest path that is stored or restored: thousands of levels, so that what is known of a way
/// down stays small.
pub(crate) const PATH_LIMIT: usize = 1 << 20;
/// What a tarball ends with: two blocks of zeros.
pub(crate) const END: [u8; 1024] = [0; 1024];
/// The biggest size or time that eleven octal digits hold.
const MAX_OCTAL_11: u64 = 0o777_7777_7777;
/// The biggest owner that seven octal digits hold.
const MAX_OCTAL_7: u32 = 0o777_7777;
/// What GNU tar puts before the name of a sparse file where a reader looks that does not know them.
const SPARSE_FOLDER: &[u8] = b"./GNUSparseFile.0/";
/// Bytes of the fields for a name and a link's target.
const NAME_FIELD: usize = 100;
/// Bytes of the fields for the names of owners, without the zero at their end.
const OWNER_FIELD: usize = 31;

/// A run of stored bytes in a sparse file: its offset and its length.
pub(crate) type Extent = (u64, u64);

/// An extended attribute: its name with the name space, and its value.
pub(crate) type Attribute = (Vec<u8>, Vec<u8>);

/// What the headers of an entry say.
pub(crate) struct EntryHeader<'a> {
    /// As it stands in the tarball: relative, a folder with a slash at its end.
    pub(crate) name: &'a [u8],
    pub(crate) kind: Kind,
    pub(crate) target: Option<&'a [u8]>,
    /// Bytes of content that follow.
    pub(crate) size: u64,
    /// Of a sparse file, whose content is its map and then its data: the size that it has when one
    /// reads it.
    pub(crate) sparse: Option<u64>,
    pub(crate) mtime: Time,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) uname: Option<&'a str>,
    pub(crate) gname: Option<&'a str>,
    pub(crate) rdev: Option<(u32, u32)>,
    pub(crate) attributes: &'a [Attribute],
}

impl EntryHeader<'_> {
    /// Appends the header blocks to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut records = Records::default();
        let target = self.target.unwrap_or_default();
        // Readers take names in pax records for UTF-8 unless they are told otherwise first.
        if std::str::from_utf8(self.name).is_err() || std::str::from_utf8(target).is_err() {
            records.add(b"hdrcharset", b"BINARY");
        }
        let fits = |bytes: &[u8], field: usize| bytes.len() <= field && bytes.is_ascii();
        // Who does not know sparse files shall not take the map and the data for the file.
        let stand_in = [SPARSE_FOLDER, self.name].concat();
        let name = if self.sparse.is_some() { &stand_in } else { self.name };
        if !fits(name, NAME_FIELD) {
            records.add(b"path", name);
        }
        if let Some(size) = self.sparse {
            // After `path`: some readers take the last name that comes.
            records.add(b"GNU.sparse.major", b"1");
            records.add(b"GNU.sparse.minor", b"0");
            records.add(b"GNU.sparse.name", self.name);
            records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        }
        if !fits(target, NAME_FIELD) {
            records.add(b"linkpath", target);
        }
        if self.size > MAX_OCTAL_11 {
            records.add(b"size", self.size.to_string().as_bytes());
        }
        if self.uid > MAX_OCTAL_7 {
            records.add(b"uid", self.uid.to_string().as_bytes());
        }
        if self.gid > MAX_OCTAL_7 {
            records.add(b"gid", self.gid.to_string().as_bytes());
        }
        for (key, name) in [(b"uname", self.uname), (b"gname", self.gname)] {
            if let Some(name) = name.filter(|name| !fits(name.as_bytes(), OWNER_FIELD)) {
                records.add(key, name.as_bytes());
            }
        }
        let seconds =
            u64::try_from(self.mtime.seconds).ok().filter(|seconds| *seconds <= MAX_OCTAL_11);
        if seconds.is_none() || self.mtime.nanos != 0 {
            records.add(b"mtime", self.mtime.to_string().as_bytes());
        }
        for (name, value) in self.attributes {
            let mut key = b"SCHILY.xattr.".to_vec();
            encode_key(name, &mut key);
            records.add(&key, value);
        }
        for (key, list) in
            [(b"SCHILY.acl.access".as_slice(), ACCESS_LIST), (b"SCHILY.acl.default", DEFAULT_LIST)]
        {
            let value =
                self.attributes.iter().find_map(|(name, value)| (name == list).then_some(value));
            if let Some(text) = value.and_then(|value| access_list::text(value)) {
                records.add(key, text.as_bytes());
            }
        }
        if !records.0.is_empty() {
            let mut header = Header::new_ustar();
            put(&mut header.as_old_mut().name, b"./PaxHeaders/next");
            header.set_entry_type(EntryType::XHeader);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(records.0.len() as u64);
            header.set_cksum();
            out.extend_from_slice(header.as_bytes());
            out.append(&mut records.0);
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
        }

        let mut header = Header::new_ustar();
        put(&mut header.as_old_mut().name, name);
        put(&mut header.as_old_mut().linkname, target);
        header.set_entry_type(match self.kind {
            Kind::File => EntryType::Regular,
            Kind::Directory => EntryType::Directory,
            Kind::Symlink => EntryType::Symlink,
            Kind::Hardlink => EntryType::Link,
            Kind::Fifo => EntryType::Fifo,
            Kind::Char => EntryType::Char,
            Kind::Block => EntryType::Block,
        });
        header.set_mode(self.mode);
        // A reader that knows no pax gets a number that fits, and never one that means root.
        header.set_uid(u64::from(self.uid.min(MAX_OCTAL_7)));
        header.set_gid(u64::from(self.gid.min(MAX_OCTAL_7)));
        header.set_size(if self.size > MAX_OCTAL_11 { 0 } else { self.size });
        header.set_mtime(seconds.unwrap_or(if self.mtime.seconds < 0 { 0 } else { MAX_OCTAL_11 }));
        if let Some(ustar) = header.as_ustar_mut() {
            for (field, name) in [(&mut ustar.uname, self.uname), (&mut ustar.gname, self.gname)] {
                if let Some(name) = name.filter(|name| fits(name.as_bytes(), OWNER_FIELD)) {
                    put(field, name.as_bytes());
                }
            }
            let (major, minor) = self.rdev.unwrap_or_default();
            ustar.set_device_major(major);
            ustar.set_device_minor(minor);
        }
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
    }
}

/// As much of `bytes` as the field holds; the rest of it is zeros already.
fn put(field: &mut [u8], bytes: &[u8]) {
    for (place, byte) in field.iter_mut().zip(bytes) {
        *place = *byte;
    }
}

/// The key of a record ends at its first `=`, so GNU tar writes that sign, and the percent sign, as
/// in addresses.
fn encode_key(name: &[u8], key: &mut Vec<u8>) {
    for byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            byte => key.push(*byte),
        }
    }
}

/// The content of a pax header: records of `<length> <key>=<value>\n`, the length counting itself.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + digits(rest);
        if digits(length) > digits(rest) {
            length += 1;
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or_default() as usize + 1
}

/// The map of a sparse file: how many pieces there are, then offset and length of each, a number a
/// line; filled up to whole blocks.
pub(crate) fn sparse_map(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len());
    for (offset, length) in extents {
        // Writing to a text does not fail.
        let _ = write!(map, "{offset}\n{length}\n");
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

/// How many zeros fill a content of `size` bytes up to a whole block.
pub(crate) fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

#[cfg(test)]
mod tests {
    use super::{Records, padding};

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..1200 {
            let mut records = Records::default();
            records.add(b"k", &vec![b'v'; length]);
            let text = String::from_utf8(records.0).unwrap();
            let (number, _) = text.split_once(' ').unwrap();
            assert_eq!(number.parse(), Ok(text.len()), "a value of {length} bytes");
        }
    }

    #[test]
    fn contents_fill_whole_blocks() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}
