//! POSIX access lists as text, as they stand in tarballs for other programs, and as the system
//! calls take them.
//!
//! GNU tar (`--acls`) writes `user:name:r-x` with names, bsdtar and star add the number as a fourth
//! field. Entries are parted by commas or newlines, and may have a comment. The binary form is that
//! of the Linux attribute `system.posix_acl_access` (`linux/posix_acl_xattr.h`).

use std::fmt::Write as _;

/// The extended attributes that hold the access lists of an entry.
pub(crate) const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
pub(crate) const DEFAULT_LIST: &[u8] = b"system.posix_acl_default";

/// Finds the ids of users and groups by name.
pub(crate) trait IdLookup {
    fn user_id(&self, name: &str) -> Option<u32>;
    fn group_id(&self, name: &str) -> Option<u32>;
}

/// The version of the binary form, which begins with it; then come entries of a tag, rights and an
/// id, all of them little-endian.
const VERSION: [u8; 4] = 2_u32.to_le_bytes();

/// A list as the kernel has it in words: `user::rw-,user:1000:r--,group::r--,mask::r--,other::---`.
/// Users and groups are numbers, as those who restore may know others by the same names. None when
/// it is not such a list.
pub(crate) fn text(value: &[u8]) -> Option<String> {
    let (entries, rest) = value.strip_prefix(&VERSION)?.as_chunks::<8>();
    if !rest.is_empty() || entries.is_empty() {
        return None;
    }
    let mut text = String::new();
    for [tag_low, tag_high, rights_low, rights_high, id @ ..] in entries {
        let id = u32::from_le_bytes(*id);
        let (word, named) = match u16::from_le_bytes([*tag_low, *tag_high]) {
            0x01 => ("user", false),
            0x02 => ("user", true),
            0x04 => ("group", false),
            0x08 => ("group", true),
            0x10 => ("mask", false),
            0x20 => ("other", false),
            _ => return None,
        };
        let rights = u16::from_le_bytes([*rights_low, *rights_high]);
        let right = |bit: u16, letter: char| if rights & bit == 0 { '-' } else { letter };
        let comma = if text.is_empty() { "" } else { "," };
        let id = if named { id.to_string() } else { String::new() };
        // Writing to a text does not fail.
        let _ =
            write!(text, "{comma}{word}:{id}:{}{}{}", right(4, 'r'), right(2, 'w'), right(1, 'x'));
    }
    Some(text)
}

/// Who is meant, where the tag says all.
const NOBODY: u32 = u32::MAX;

/// An entry: its tag, what is permitted, who is meant.
type Rule = (u16, u16, u32);

/// The binary form of a list. The error says what could not be understood.
pub(crate) fn binary(text: &[u8], ids: &impl IdLookup) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
    let lines =
        text.split(['\n', ',']).map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut rules = lines
        .filter(|line| !line.is_empty())
        .map(|line| rule(line, ids))
        .collect::<Result<Vec<_>, _>>()?;
    // The kernel wants them in the order of their tags.
    rules.sort_unstable();
    let mut bytes = VERSION.to_vec();
    for (tag, permitted, who) in rules {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permitted.to_le_bytes());
        bytes.extend_from_slice(&who.to_le_bytes());
    }
    Ok(bytes)
}

fn rule(line: &str, ids: &impl IdLookup) -> Result<Rule, String> {
    let wrong = || format!("`{line}` is no entry of an access list");
    let mut fields = line.strip_prefix("default:").unwrap_or(line).split(':');
    let kind = fields.next().unwrap_or_default();
    let mut second = fields.next().ok_or_else(wrong)?;
    let mut third = fields.next();
    // Some write `mask:r-x`, without the empty name.
    if third.is_none() && matches!(kind, "mask" | "m" | "other" | "o") {
        (second, third) = ("", Some(second));
    }
    let mut permitted = 0;
    for sign in third.ok_or_else(wrong)?.bytes() {
        permitted |= match sign {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => 0,
            _ => return Err(wrong()),
        };
    }
    let number = fields.next().map(str::trim).filter(|number| !number.is_empty());
    let who = |find: &dyn Fn(&str) -> Option<u32>| -> Result<u32, String> {
        let found = match number {
            Some(number) => number.parse().ok(),
            None => second.parse().ok().or_else(|| find(second)),
        };
        found.ok_or_else(|| format!("this system has nobody of the name `{second}`"))
    };
    Ok(match (kind, second.is_empty()) {
        ("user" | "u", true) => (0x01, permitted, NOBODY),
        ("user" | "u", false) => (0x02, permitted, who(&|name| ids.user_id(name))?),
        ("group" | "g", true) => (0x04, permitted, NOBODY),
        ("group" | "g", false) => (0x08, permitted, who(&|name| ids.group_id(name))?),
        ("mask" | "m", true) => (0x10, permitted, NOBODY),
        ("other" | "o", true) => (0x20, permitted, NOBODY),
        _ => return Err(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::{IdLookup, binary, text};

    struct RootOnly;

    impl IdLookup for RootOnly {
        fn user_id(&self, name: &str) -> Option<u32> {
            (name == "root").then_some(0)
        }

        fn group_id(&self, name: &str) -> Option<u32> {
            (name == "root").then_some(0)
        }
    }

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            value.extend(
                [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat(),
            );
        }
        value
    }

    #[test]
    fn a_list_in_words_has_numbers_for_names() {
        let none = u32::MAX;
        let value = list(&[
            (1, 6, none),
            (2, 4, 1000),
            (4, 4, none),
            (8, 7, 50),
            (16, 5, none),
            (32, 0, none),
        ]);
        let words = "user::rw-,user:1000:r--,group::r--,group:50:rwx,mask::r-x,other::---";
        assert_eq!(text(&value).as_deref(), Some(words));
        assert_eq!(binary(words.as_bytes(), &RootOnly), Ok(value));
    }

    #[test]
    fn what_is_no_list_has_no_words() {
        let good = list(&[(1, 6, 0)]);
        for wrong in [&[][..], &good[..4], &good[..11], b"xxxxxxxxxxxx", &list(&[(3, 6, 0)])] {
            assert_eq!(text(wrong), None, "{wrong:?}");
        }
    }
    #[test]
    fn lists_are_read_as_gnu_tar_bsdtar_and_star_write_them() {
        let plain = binary(
            b"user::rw-\nuser:1000:r--\ngroup::r--\ngroup:7:r-x\nmask::r-x\nother::---\n",
            &RootOnly,
        )
        .unwrap();
        assert_eq!(plain.len(), 4 + 6 * 8);
        for same in [
            "user::rw-,user:nobody-here:r--:1000,group::r--,group:7:r-x,mask::r-x,other::---",
            "other::---,mask::r-x,group:x:r-x:7,group::r--,user:1000:r--,user::rw-",
            "u::rw-,u:1000:r--,g::r--,g:7:r-x #effective:r-x,m:r-x,o:---",
            "default:user::rw-\ndefault:user:1000:r--\ndefault:group::r--\ndefault:group:7:r-x\n\
             default:mask::r-x\ndefault:other::---",
        ] {
            assert_eq!(binary(same.as_bytes(), &RootOnly).unwrap(), plain, "{same}");
        }
        assert_eq!(binary(b"group:root:rwx", &RootOnly).unwrap()[4..], [8, 0, 7, 0, 0, 0, 0, 0]);
        for wrong in [
            "user",
            "user:x",
            "user::rwq",
            "nobody::rwx",
            "user:no such user:rwx",
            "user:x:rwx:y",
            "mask:x:rwx",
        ] {
            assert!(binary(wrong.as_bytes(), &RootOnly).is_err(), "{wrong}");
        }
    }
}
