//! POSIX access lists as text.

use std::fmt::Write as _;

/// The version of the kernel's form (`linux/posix_acl_xattr.h`): that number, then entries of a tag, rights and an id, all of them
/// little-endian.
const VERSION: [u8; 4] = 2_u32.to_le_bytes();

/// A list as the kernel has it in words: `user::rw-,user:1000:r--,group::r--,mask::r--,other::---`. Users and groups are numbers, as
/// those who restore may know others by the same names. None when it is not such a list.
pub(super) fn text(value: &[u8]) -> Option<String> {
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
        let _ = write!(text, "{comma}{word}:{id}:{}{}{}", right(4, 'r'), right(2, 'w'), right(1, 'x'));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::text;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            value.extend([&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
        }
        value
    }

    #[test]
    fn a_list_in_words_has_numbers_for_names() {
        let none = u32::MAX;
        let value = list(&[(1, 6, none), (2, 4, 1000), (4, 4, none), (8, 7, 50), (16, 5, none), (32, 0, none)]);
        let words = "user::rw-,user:1000:r--,group::r--,group:50:rwx,mask::r-x,other::---";
        assert_eq!(text(&value).as_deref(), Some(words));
    }

    #[test]
    fn what_is_no_list_has_no_words() {
        let good = list(&[(1, 6, 0)]);
        for wrong in [&[][..], &good[..4], &good[..11], b"xxxxxxxxxxxx", &list(&[(3, 6, 0)])] {
            assert_eq!(text(wrong), None, "{wrong:?}");
        }
    }
}
