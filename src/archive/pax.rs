//! The records of pax headers: POSIX.1-2001 and what GNU tar, bsdtar and star add to it.

use super::access_list::{ACCESS_LIST, DEFAULT_LIST};
use super::entry::{Time, lossy};
use super::header::Attribute;

/// Bytes of the attributes of one entry.
const ATTRIBUTES_LIMIT: usize = 16 << 20;
/// The most pieces that a sparse file may have.
pub(crate) const EXTENTS_LIMIT: usize = 1 << 20;

/// An access list as text.
#[derive(Debug, Clone)]
pub(crate) struct TextList {
    /// The attribute that says the same.
    pub(crate) attribute: &'static [u8],
    pub(crate) text: Vec<u8>,
}

/// What pax headers say of an entry, beyond its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) uname: Option<Vec<u8>>,
    pub(crate) gname: Option<Vec<u8>>,
    pub(crate) mtime: Option<Time>,
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) text_lists: Vec<TextList>,
    pub(crate) sparse_major: Option<u64>,
    pub(crate) sparse_name: Option<Vec<u8>>,
    pub(crate) sparse_size: Option<u64>,
    pub(crate) sparse_map: Option<Vec<(u64, u64)>>,
    /// Of a map in the way of format 0.0: where the piece begins of which the length was not yet
    /// said.
    pub(crate) sparse_offset: Option<u64>,
}

impl Pax {
    /// Takes in the records of a header, each over what was said before.
    pub(crate) fn read(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() {
            let broken = || "a pax record is broken".to_owned();
            let digits = data.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
            let length: usize =
                number(data.get(..digits).unwrap_or_default()).ok_or_else(broken)?;
            let record = data.get(digits + 1..length).ok_or_else(broken)?;
            let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
            let (key, value) = record.split_at_checked(equals).ok_or_else(broken)?;
            self.set(key, value.get(1..).unwrap_or_default())?;
            data = data.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    /// An empty value takes back what was said.
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let wrong = || format!("the pax record `{}` has an impossible value", lossy(key));
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let count = || -> Result<Option<u64>, String> {
            if value.is_empty() { Ok(None) } else { number(value).map(Some).ok_or_else(wrong) }
        };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.linkpath = text(),
            b"size" => self.size = count()?,
            b"uid" => self.uid = count()?,
            b"gid" => self.gid = count()?,
            b"uname" => self.uname = text(),
            b"gname" => self.gname = text(),
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => {
                let time = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                self.mtime = Some(time.ok_or_else(wrong)?);
            }
            b"SCHILY.acl.access" => self.set_list(ACCESS_LIST, value),
            b"SCHILY.acl.default" => self.set_list(DEFAULT_LIST, value),
            b"GNU.sparse.major" => self.sparse_major = count()?,
            b"GNU.sparse.name" => self.sparse_name = text(),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse_size = count()?,
            b"GNU.sparse.map" => {
                // A file that is one hole has a map of nothing.
                let parts = value.split(|byte| *byte == b',').filter(|_| !value.is_empty());
                let numbers: Option<Vec<u64>> = parts.map(number).collect();
                let numbers = numbers.filter(|numbers| numbers.len() % 2 == 0).ok_or_else(wrong)?;
                self.sparse_map = Some(pairs(&numbers));
            }
            b"GNU.sparse.numblocks" => {
                self.sparse_map = Some(self.sparse_map.take().unwrap_or_default());
            }
            b"GNU.sparse.offset" => self.sparse_offset = count()?,
            b"GNU.sparse.numbytes" => {
                let piece =
                    (self.sparse_offset.take().ok_or_else(wrong)?, count()?.ok_or_else(wrong)?);
                let map = self.sparse_map.get_or_insert_default();
                if map.len() >= EXTENTS_LIMIT {
                    return Err("a sparse file has too many pieces".to_owned());
                }
                map.push(piece);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    let name = decode_key(name);
                    self.attributes.retain(|(known, _)| *known != name);
                    let held: usize =
                        self.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
                    if held + value.len() > ATTRIBUTES_LIMIT {
                        return Err("it has too many extended attributes".to_owned());
                    }
                    self.attributes.push((name, value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn set_list(&mut self, attribute: &'static [u8], text: &[u8]) {
        self.text_lists.retain(|list| list.attribute != attribute);
        if !text.is_empty() {
            self.text_lists.push(TextList { attribute, text: text.to_vec() });
        }
    }
}

/// Digits only, without a sign.
pub(crate) fn number<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(bytes).ok()?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

pub(crate) fn pairs(numbers: &[u64]) -> Vec<(u64, u64)> {
    numbers.as_chunks::<2>().0.iter().map(|[offset, length]| (*offset, *length)).collect()
}

/// The inverse of what GNU tar does to the two signs that a key must not have.
fn decode_key(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match (rest.strip_prefix(b"%3D"), rest.strip_prefix(b"%25")) {
            (Some(after), _) => (b'=', after),
            (_, Some(after)) => (b'%', after),
            (None, None) => (*first, after),
        };
        decoded.push(byte);
        rest = after;
    }
    decoded
}
