//! Access lists as text, as other programs write them in tarballs, made what the system calls take.
//!
//! GNU tar (`--acls`) writes `user:name:r-x` with names, bsdtar and star add the number as a fourth field. Entries are parted by commas or
//! newlines, and may have a comment. The binary form is that of the Linux attribute `system.posix_acl_access` (`linux/posix_acl_xattr.h`).

use super::names::Names;

/// The version of the binary form.
const VERSION: u32 = 2;
/// Who is meant, where the tag says all.
const NOBODY: u32 = u32::MAX;

/// An entry: its tag, what is permitted, who is meant.
type Rule = (u16, u16, u32);

/// The binary form of a list. The error says what could not be understood.
pub(super) fn binary(text: &[u8], names: &Names) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
    let lines = text.split(['\n', ',']).map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut rules =
        lines.filter(|line| !line.is_empty()).map(|line| rule(line, names)).collect::<Result<Vec<_>, _>>()?;
    // The kernel wants them in the order of their tags.
    rules.sort_unstable();
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permitted, who) in rules {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permitted.to_le_bytes());
        bytes.extend_from_slice(&who.to_le_bytes());
    }
    Ok(bytes)
}

fn rule(line: &str, names: &Names) -> Result<Rule, String> {
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
        ("user" | "u", false) => (0x02, permitted, who(&|name| names.user(name))?),
        ("group" | "g", true) => (0x04, permitted, NOBODY),
        ("group" | "g", false) => (0x08, permitted, who(&|name| names.group(name))?),
        ("mask" | "m", true) => (0x10, permitted, NOBODY),
        ("other" | "o", true) => (0x20, permitted, NOBODY),
        _ => return Err(wrong()),
    })
}

#[cfg(test)]
mod tests {
    use super::{Names, binary};

    #[test]
    fn lists_are_read_as_gnu_tar_bsdtar_and_star_write_them() {
        let names = Names::default();
        let plain =
            binary(b"user::rw-\nuser:1000:r--\ngroup::r--\ngroup:7:r-x\nmask::r-x\nother::---\n", &names).unwrap();
        assert_eq!(plain.len(), 4 + 6 * 8);
        for same in [
            "user::rw-,user:nobody-here:r--:1000,group::r--,group:7:r-x,mask::r-x,other::---",
            "other::---,mask::r-x,group:x:r-x:7,group::r--,user:1000:r--,user::rw-",
            "u::rw-,u:1000:r--,g::r--,g:7:r-x #effective:r-x,m:r-x,o:---",
            "default:user::rw-\ndefault:user:1000:r--\ndefault:group::r--\ndefault:group:7:r-x\ndefault:mask::r-x\ndefault:other::---",
        ] {
            assert_eq!(binary(same.as_bytes(), &names).unwrap(), plain, "{same}");
        }
        assert_eq!(binary(b"group:root:rwx", &names).unwrap()[4..], [8, 0, 7, 0, 0, 0, 0, 0]);
        for wrong in
            ["user", "user:x", "user::rwq", "nobody::rwx", "user:no such user:rwx", "user:x:rwx:y", "mask:x:rwx"]
        {
            assert!(binary(wrong.as_bytes(), &names).is_err(), "{wrong}");
        }
    }
}
