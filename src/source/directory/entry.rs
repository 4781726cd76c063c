//! What the system says of one file, folder or link, in plain numbers.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of an entry that came before.
    Hardlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// A moment as file systems keep it: seconds since 1970 (negative before), and nanoseconds counted
/// forward from them. As text it is one decimal number with nine digits after the point, so half a
/// second before 1970 is `-0.500000000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

const NANOS: u32 = 1_000_000_000;

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.seconds < 0 && self.nanos > 0 {
            write!(f, "-{}.{:09}", -(self.seconds + 1), NANOS - self.nanos)
        } else {
            write!(f, "{}.{:09}", self.seconds, self.nanos)
        }
    }
}

/// A text that is not a decimal number of seconds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time: expected seconds since 1970 as a decimal number")]
pub struct TimeError(String);

impl FromStr for Time {
    type Err = TimeError;

    /// Digits beyond the ninth after the point are dropped, as other programs write more.
    fn from_str(text: &str) -> Result<Self, TimeError> {
        let wrong = || TimeError(text.chars().take(100).collect());
        let (negative, digits) =
            text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(wrong());
        }
        let whole: i64 = whole.parse().map_err(|_| wrong())?;
        let mut nanos = 0;
        let mut unit = NANOS / 10;
        for byte in fraction.bytes() {
            if !byte.is_ascii_digit() {
                return Err(wrong());
            }
            nanos += u32::from(byte - b'0') * unit;
            unit /= 10;
        }
        Ok(match (negative, nanos) {
            (false, nanos) => Self { seconds: whole, nanos },
            (true, 0) => Self { seconds: -whole, nanos: 0 },
            (true, nanos) => Self { seconds: -whole - 1, nanos: NANOS - nanos },
        })
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What identifies a file while it exists: device (major, minor) and inode.
pub(super) type Identity = (u32, u32, u64);

/// What `statx` says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    /// None for sockets, and for what no tarball can hold.
    pub(super) kind: Option<Kind>,
    pub(super) identity: Identity,
    pub(super) links: u32,
    /// Permissions with the setuid, setgid and sticky bits, without the kind.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes; of a symbolic link those of its target.
    pub(super) size: u64,
    /// Bytes that its file system keeps for it: fewer than `size` when it has holes (or is
    /// compressed).
    pub(super) allocated: u64,
    /// Major and minor of the device that it stands for.
    pub(super) rdev: (u32, u32),
    pub(super) mtime: Time,
    pub(super) ctime: Time,
}

impl Meta {
    /// Of the open file.
    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Self, Errno> {
        rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
            .map(|stat| Self::from(&stat))
    }

    /// Of what has that name in the folder, itself when it is a link.
    pub(super) fn at(folder: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<Self, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        rustix::fs::statx(folder, name, flags, StatxFlags::BASIC_STATS)
            .map(|stat| Self::from(&stat))
    }

    pub(super) fn device(&self) -> (u32, u32) {
        (self.identity.0, self.identity.1)
    }
}

impl From<&Statx> for Meta {
    fn from(stat: &Statx) -> Self {
        let mode = u32::from(stat.stx_mode);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Some(Kind::File),
            FileType::Directory => Some(Kind::Directory),
            FileType::Symlink => Some(Kind::Symlink),
            FileType::Fifo => Some(Kind::Fifo),
            FileType::CharacterDevice => Some(Kind::Char),
            FileType::BlockDevice => Some(Kind::Block),
            FileType::Socket | FileType::Unknown => None,
        };
        let time = |time: StatxTimestamp| Time { seconds: time.tv_sec, nanos: time.tv_nsec };
        Self {
            kind,
            identity: (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino),
            links: stat.stx_nlink,
            mode: mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            allocated: stat.stx_blocks.saturating_mul(512),
            rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
        }
    }
}

/// A path for people: bytes that are not UTF-8 replaced.
pub(super) fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
mod tests {
    use super::Time;

    #[test]
    fn times_read_back_as_written_before_and_after_1970() {
        for (seconds, nanos, text) in [
            (0, 0, "0.000000000"),
            (1_700_000_000, 123_456_789, "1700000000.123456789"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 0, "-2.000000000"),
            (-2, 999_999_999, "-1.000000001"),
        ] {
            let time = Time { seconds, nanos };
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse(), Ok(time));
        }
        assert_eq!("1.5".parse(), Ok(Time { seconds: 1, nanos: 500_000_000 }));
        assert_eq!("7".parse(), Ok(Time { seconds: 7, nanos: 0 }));
        assert_eq!(
            "1.00000000099".parse(),
            Ok(Time { seconds: 1, nanos: 0 }),
            "finer digits are dropped"
        );
        for wrong in ["", "-", ".5", "1.2.3", "+1", "1e3", "99999999999999999999"] {
            assert!(wrong.parse::<Time>().is_err(), "{wrong}");
        }
    }
}
