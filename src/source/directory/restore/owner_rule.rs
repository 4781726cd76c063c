//! To whom restored entries belong, when not to those that the backup names.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::archive::Kind;
use crate::archive::access_list::IdLookup as _;
use crate::archive::reader::TarEntry;
use crate::source::SourceError;
use crate::source::directory::accounts::Accounts;

/// A rule of `--owner`: `USER[:GROUP]` for every entry, or `OLD=NEW` for those of an owner, each
/// side `USER`, `USER:GROUP` or `:GROUP`. Users and groups are numbers, or names: those of the
/// backup on the left, those of this system on the right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerRule {
    /// None fits every entry.
    pub(super) old: Option<Owner>,
    pub(super) new: Owner,
}

/// A user, a group, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) user: Option<Who>,
    pub(super) group: Option<Who>,
}

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Its number, on any system.
    Number(u32),
    /// Its name, on some system.
    Name(String),
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not an owner: {problem}; expected `USER`, `USER:GROUP`, `:GROUP`, or `OLD=NEW` of \
     two of these, in numbers or names"
)]
pub struct OwnerRuleError {
    text: String,
    problem: &'static str,
}

impl FromStr for OwnerRule {
    type Err = OwnerRuleError;

    fn from_str(text: &str) -> Result<Self, OwnerRuleError> {
        let wrong = |problem| OwnerRuleError { text: text.chars().take(200).collect(), problem };
        let (old, new) = match text.split_once('=') {
            Some((old, new)) => {
                (Some(Owner::parse(old).map_err(wrong)?), Owner::parse(new).map_err(wrong)?)
            }
            None => (None, Owner::parse(text).map_err(wrong)?),
        };
        Ok(Self { old, new })
    }
}

impl Owner {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (user, group) =
            text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
        let user = if user.is_empty() { None } else { Some(Who::parse(user)?) };
        let group = group.map(Who::parse).transpose()?;
        if user.is_none() && group.is_none() {
            return Err("a side of it is empty");
        }
        Ok(Self { user, group })
    }
}

impl Who {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("there is nothing after the colon");
        }
        if text.contains([':', '=', '/']) || text.contains(char::is_whitespace) {
            return Err("a name has a sign that no name has");
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Name(text.to_owned()));
        }
        // The greatest number stands for "nobody" in the system calls that change owners.
        match text.parse() {
            Ok(number) if number != u32::MAX => Ok(Self::Number(number)),
            _ => Err("a number is too large"),
        }
    }
}

impl Who {
    /// The number that this system has for the user.
    pub fn user_id(&self) -> Option<u32> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Name(name) => Accounts::default().user_id(name),
        }
    }
}

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = if text.is_empty() { Err("it is empty") } else { Self::parse(text) };
        parsed.map_err(|problem| {
            let text: String = text.chars().take(200).collect();
            format!("`{text}` is no user: {problem}; expected a name or a number")
        })
    }
}

impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Who {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u32),
            Text(String),
        }
        let text = match Either::deserialize(deserializer)? {
            Either::Number(number) => number.to_string(),
            Either::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Who {
    fn schema_name() -> Cow<'static, str> {
        "Who".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "format": "user",
            "minimum": 0,
            "maximum": u32::MAX - 1,
        })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The rules of a restore, with the numbers that this system has for their names.
#[derive(Debug, Default)]
pub(super) struct OwnerRules(Vec<Resolved>);

#[derive(Debug)]
struct Resolved {
    old: Option<Owner>,
    user: Option<u32>,
    group: Option<u32>,
}

impl OwnerRules {
    /// # Errors
    /// When a user or group on the right is not known here.
    pub(super) fn resolve(rules: &[OwnerRule], accounts: &Accounts) -> Result<Self, SourceError> {
        let number = |who: &Option<Who>, what: &str, find: &dyn Fn(&str) -> Option<u32>| match who {
            None => Ok(None),
            Some(Who::Number(number)) => Ok(Some(*number)),
            Some(Who::Name(name)) => find(name).map(Some).ok_or_else(|| {
                SourceError::Unsuitable(format!(
                    "`--owner` names the {what} `{name}`, which this system does not have. Make it \
                     first, or say its number. Nothing was \
                     restored"
                ))
            }),
        };
        let resolve = |rule: &OwnerRule| {
            Ok(Resolved {
                old: rule.old.clone(),
                user: number(&rule.new.user, "user", &|name| accounts.user_id(name))?,
                group: number(&rule.new.group, "group", &|name| accounts.group_id(name))?,
            })
        };
        rules.iter().map(resolve).collect::<Result<_, _>>().map(Self)
    }

    /// Gives the entry the owner that the first rule says which fits it. A rule of the form
    /// `OLD=NEW` says that both are the same, so the entry keeps the right to act as its owner; one
    /// for all entries takes it from a file that it gives to somebody else. Returns whether it did.
    pub(super) fn apply(&self, entry: &mut TarEntry) -> bool {
        let fits = |who: &Option<Who>, number: u64, name: &Option<Vec<u8>>| match who {
            None => true,
            Some(Who::Number(wanted)) => u64::from(*wanted) == number,
            Some(Who::Name(wanted)) => name.as_deref() == Some(wanted.as_bytes()),
        };
        let rule = self.0.iter().find(|rule| {
            rule.old.as_ref().is_none_or(|old| {
                fits(&old.user, entry.uid, &entry.uname)
                    && fits(&old.group, entry.gid, &entry.gname)
            })
        });
        let Some(rule) = rule else { return false };
        let user = rule.user.map_or(entry.uid, u64::from);
        let group = rule.group.map_or(entry.gid, u64::from);
        let mut lost = 0;
        if rule.old.is_none() && entry.kind != Kind::Directory {
            lost |= if user == entry.uid { 0 } else { entry.mode & 0o4000 };
            lost |= if group == entry.gid { 0 } else { entry.mode & 0o2000 };
        }
        (entry.uid, entry.gid) = (user, group);
        entry.mode &= !lost;
        lost != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{OwnerRule, OwnerRules};
    use crate::archive::reader::TarEntry;
    use crate::archive::{Kind, Time};
    use crate::source::directory::accounts::Accounts;

    fn entry(uid: u64, gid: u64, uname: &str, mode: u32) -> TarEntry {
        TarEntry {
            path: b"x".to_vec(),
            kind: Kind::File,
            target: Vec::new(),
            size: 0,
            mode,
            uid,
            gid,
            uname: Some(uname.as_bytes().to_vec()),
            gname: None,
            mtime: Time::default(),
            rdev: (0, 0),
            attributes: Vec::new(),
            text_lists: Vec::new(),
            extents: None,
            offset: 0,
            data_offset: 512,
            length: 0,
        }
    }

    fn rules(texts: &[&str]) -> OwnerRules {
        let rules: Vec<OwnerRule> = texts.iter().map(|text| text.parse().unwrap()).collect();
        OwnerRules::resolve(&rules, &Accounts::default()).unwrap()
    }

    #[test]
    fn the_first_rule_that_fits_gives_the_owner() {
        for (texts, uid, gid, expected) in [
            (&["7"][..], 1, 2, (7, 2)),
            (&["7:8"], 1, 2, (7, 8)),
            (&[":8"], 1, 2, (1, 8)),
            (&["1=7"], 1, 2, (7, 2)),
            (&["2=7"], 1, 2, (1, 2)),
            (&["2=7", "1=5:6", "9"], 1, 2, (5, 6)),
            (&["2=7", "9"], 1, 2, (9, 2)),
            (&["1:2=7:8"], 1, 2, (7, 8)),
            (&["1:3=7:8"], 1, 2, (1, 2)),
            (&[":2=:8"], 1, 2, (1, 8)),
            (&["alice=7"], 1, 2, (7, 2)),
            (&["bob=7"], 1, 2, (1, 2)),
            (&["1=:root"], 1, 2, (1, 0)),
            (&[], 1, 2, (1, 2)),
        ] {
            let mut entry = entry(uid, gid, "alice", 0o644);
            assert!(!rules(texts).apply(&mut entry));
            assert_eq!((entry.uid, entry.gid), expected, "{texts:?}");
        }
    }

    #[test]
    fn the_right_to_act_as_the_owner_goes_with_a_renamed_owner_only() {
        let mode = |text: &str, mode: u32| {
            let mut entry = entry(0, 0, "root", mode);
            let lost = rules(&[text]).apply(&mut entry);
            (entry.mode, lost)
        };
        assert_eq!(mode("0=7", 0o6755), (0o6755, false));
        assert_eq!(mode("7", 0o6755), (0o2755, true), "the group stayed");
        assert_eq!(mode("7:8", 0o6755), (0o755, true));
        assert_eq!(mode("0:0", 0o6755), (0o6755, false), "nothing changed");
    }

    #[test]
    fn what_is_no_rule_or_names_nobody_is_refused_in_words() {
        for wrong in ["", ":", "=", "a=", "=a", "a:b:c", "a b", "4294967295", "a/b", "a:", "a=b=c"]
        {
            let error = wrong.parse::<OwnerRule>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{wrong}` is not an owner")), "{error}");
        }
        let rule: OwnerRule = "1=no-such-user".parse().unwrap();
        let error = OwnerRules::resolve(&[rule], &Accounts::default()).unwrap_err().to_string();
        assert!(
            error.contains("`no-such-user`") && error.contains("Nothing was restored"),
            "{error}"
        );
    }
}
