//! The kind and the time of an entry, as a header and an index have them.

use std::fmt;
use std::str::FromStr;

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

/// A path for people: bytes that are not UTF-8 replaced.
pub(crate) fn lossy(path: &[u8]) -> String {
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
