//! Names from the configuration, and the ids of snapshots.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, Utc};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of an instance, strategy, source or storage: `[a-z0-9][a-z0-9_-]{0,62}`. Such a name is
/// safe as a part of a file name and of an object key. `marks` is not a name: a folder of that name
/// stands beside the strategies.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// A text that is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name: expected 1 to 63 of `a-z`, `0-9`, `_`, `-`, beginning with a letter or \
     digit, and not `marks`"
)]
pub struct NameError(String);

impl Name {
    /// The pattern of a name, as a regular expression.
    pub const PATTERN: &'static str = "^[a-z0-9][a-z0-9_-]{0,62}$";

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = text.len() <= 63
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || byte == b'_' || byte == b'-')
            && text != super::layout::MARKS_FOLDER;
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            // An address may have got here, with a password in it.
            let is_address = text.contains([':', '@', '=']);
            let shown = if is_address { "***" } else { text };
            Err(NameError(shown.chars().take(100).collect()))
        }
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Name {
    fn schema_name() -> Cow<'static, str> {
        "Name".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": Self::PATTERN })
    }
}

/// The id of a snapshot, and the name of its folder: the second its run began, in UTC, and six
/// random hex digits (`20261121T013000Z-7f3a9c`). Ids sort by time.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId {
    text: String,
    time: DateTime<Utc>,
}

/// A text that is not a snapshot's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a snapshot id: expected the form `20261121T013000Z-7f3a9c`")]
pub struct IdError(String);

impl SnapshotId {
    const TIME: &'static str = "%Y%m%dT%H%M%SZ";

    /// The id of a run that began at `time`, told apart by `salt` from others of the same second.
    pub fn new(time: DateTime<Utc>, salt: [u8; 3]) -> Self {
        use chrono::SubsecRound as _;
        let time = time.trunc_subsecs(0);
        Self { text: format!("{}-{}", time.format(Self::TIME), hex::encode(salt)), time }
    }

    /// Whether a person means it by `text`: its beginning, or that of the digits after the dash.
    pub fn is_meant_by(&self, text: &str) -> bool {
        let salt = self.text.rsplit('-').next();
        self.text.starts_with(text) || salt.is_some_and(|salt| salt.starts_with(text))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// When the run began, to the second.
    pub fn time(&self) -> DateTime<Utc> {
        self.time
    }
}

impl FromStr for SnapshotId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError(text.chars().take(100).collect());
        let (time, salt) = text.split_once('-').ok_or_else(wrong)?;
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if salt.len() != 6 || !salt.bytes().all(lower_hex) || time.len() != 16 {
            return Err(wrong());
        }
        let parsed =
            NaiveDateTime::parse_from_str(time, Self::TIME).map_err(|_| wrong())?.and_utc();
        // A leap second (which chrono keeps as a nanosecond beyond the last) and a shortened field
        // parse too, but are never written.
        if parsed.timestamp_subsec_nanos() != 0 || parsed.format(Self::TIME).to_string() != time {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), time: parsed })
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Name, SnapshotId};

    #[test]
    fn names_are_safe_in_paths_and_keys() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "ella-prod", "a_b", &longest] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let longer = "a".repeat(64);
        for bad in ["", "-a", "_a", "A", "a.b", "a/b", "..", "ä", "a b", "marks", &longer] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_reads_back_as_written_and_knows_its_time() {
        let id: SnapshotId =
            "20261121T013000Z-7f3a9c".parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(id.time().to_rfc3339(), "2026-11-21T01:30:00+00:00");
        assert_eq!(SnapshotId::new(id.time(), [0x7f, 0x3a, 0x9c]), id);
        for bad in [
            "20261121T013000Z",
            "20261121T013000Z-7F3A9C",
            "20261121T013000Z-7f3a9",
            "20261321T013000Z-7f3a9c",
            "20261121T013060Z-7f3a9c",
            "../../etc-7f3a9c",
            "20261121T013000Z-7f3a9c/",
        ] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad}");
        }
    }
}
