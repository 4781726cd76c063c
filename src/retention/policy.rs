//! The policy as it is configured.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is kept of a strategy's snapshots, on each storage by itself. A snapshot is kept when any
/// rule keeps it; without a policy everything is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The newest so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<Count>,
    /// The newest of each of the last so many hours that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_hourly: Option<Count>,
    /// The newest of each of the last so many days that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<Count>,
    /// The newest of each of the last so many ISO weeks that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<Count>,
    /// The newest of each of the last so many months that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<Count>,
    /// The newest of each of the last so many quarters of a year that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_quarterly: Option<Count>,
    /// The newest of each of the last so many years that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_yearly: Option<Count>,
    /// Everything no older than this, counted back from the newest snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<Period>,
    /// The newest of each hour within this period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within_hourly: Option<Period>,
    /// The newest of each day within this period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within_daily: Option<Period>,
    /// The newest of each ISO week within this period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within_weekly: Option<Period>,
    /// The newest of each month within this period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within_monthly: Option<Period>,
    /// The newest of each quarter of a year within this period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within_quarterly: Option<Period>,
    /// The newest of each year within this period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_within_yearly: Option<Period>,
}

/// A text or number that a policy cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not a count.
    #[error("`{0}` is not a count: expected a number from 1, or `\"unlimited\"` (also `-1`)")]
    Count(String),
    /// Not a period.
    #[error(
        "`{0}` is not a period: expected years, months, days and hours in a form like `1y2m3d4h`, \
         more than 0"
    )]
    Period(String),
}

/// How many are kept by a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// So many.
    Limited(NonZeroU32),
    /// All: written `"unlimited"` or `-1`.
    Unlimited,
}

/// Every hour of a hundred years, and more.
const MOST_COUNT: u32 = 1_000_000;

impl Count {
    const UNLIMITED: &'static str = "unlimited";
}

impl TryFrom<i64> for Count {
    type Error = PolicyError;

    fn try_from(number: i64) -> Result<Self, PolicyError> {
        match number {
            -1 => Ok(Self::Unlimited),
            _ => u32::try_from(number)
                .ok()
                .and_then(NonZeroU32::new)
                .map(Self::Limited)
                .ok_or_else(|| PolicyError::Count(number.to_string())),
        }
    }
}

impl FromStr for Count {
    type Err = PolicyError;

    /// Only `unlimited`: a number is written as one.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        if text == Self::UNLIMITED {
            Ok(Self::Unlimited)
        } else {
            Err(PolicyError::Count(text.to_owned()))
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limited(count) => count.fmt(f),
            Self::Unlimited => f.pad(Self::UNLIMITED),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Limited(count) => serializer.serialize_u32(count.get()),
            Self::Unlimited => serializer.serialize_str(Self::UNLIMITED),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Self::try_from(number),
            Either::Text(text) => text.parse(),
        }
        .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["integer", "string"],
            "format": "count",
            "minimum": -1,
            "maximum": MOST_COUNT,
            "not": { "const": 0 },
            "pattern": "^unlimited$",
        })
    }
}

/// A length of calendar time: `1y2m3d4h`, years, months, days and hours in that order, each at most
/// once. Here `m` is a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// Years and months, in months.
    pub months: u32,
    pub days: u32,
    pub hours: u32,
}

impl FromStr for Period {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError::Period(text.to_owned());
        let mut amounts = [0_u32; 4];
        let mut units = ["y", "m", "d", "h"].into_iter().zip(&mut amounts);
        let mut rest = text.trim();
        while !rest.is_empty() {
            let split = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(split);
            let (tail, amount) = units
                .find_map(|(unit, amount)| Some((tail.strip_prefix(unit)?, amount)))
                .ok_or_else(wrong)?;
            // Beyond this the calendar ends; within it nothing overflows.
            *amount = number.parse().ok().filter(|number| *number <= 100_000).ok_or_else(wrong)?;
            rest = tail;
        }
        let [years, months, days, hours] = amounts;
        let period = Self { months: years.saturating_mul(12).saturating_add(months), days, hours };
        if (period.months, days, hours) == (0, 0, 0) { Err(wrong()) } else { Ok(period) }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts =
            [(self.months / 12, 'y'), (self.months % 12, 'm'), (self.days, 'd'), (self.hours, 'h')];
        let text: String = parts
            .iter()
            .filter(|(amount, _)| *amount > 0)
            .map(|(amount, unit)| format!("{amount}{unit}"))
            .collect();
        f.pad(&text)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "format": "period",
            "x-minimum": "1h", "x-maximum": "200y",
            "pattern": "^([0-9]+y)?([0-9]+m)?([0-9]+d)?([0-9]+h)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Count, Period, Policy};

    #[test]
    fn counts_are_from_one_or_without_limit() {
        for (text, printed) in
            [("7", "7"), ("-1", "\"unlimited\""), ("\"unlimited\"", "\"unlimited\"")]
        {
            let count: Count = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&count).unwrap(), printed);
        }
        for bad in ["0", "-2", "4294967296", "\"7\"", "\"\"", "1.5", "true"] {
            assert!(serde_json::from_str::<Count>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn periods_are_calendar_time_in_order() {
        for (text, months, days, hours) in
            [("1y2m3d4h", 14, 3, 4), ("30d", 0, 30, 0), ("12m", 12, 0, 0), ("36h", 0, 0, 36)]
        {
            assert_eq!(text.parse::<Period>(), Ok(Period { months, days, hours }), "{text}");
        }
        assert_eq!(
            "14m36h".parse::<Period>().map(|period| period.to_string()),
            Ok("1y2m36h".to_owned())
        );
        for bad in [
            "",
            "0d",
            "3",
            "d",
            "1d1y",
            "1d1d",
            "1w",
            "1.5d",
            "-1d",
            "99999999999y",
            "100001d",
            "1dä",
        ] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_reads_back_as_written() {
        let text = r#"{"keep_daily":30,"keep_yearly":"unlimited","keep_within":"2d"}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        assert!(serde_json::from_str::<Policy>(r#"{"keep_dayly":30}"#).is_err());
    }
}
