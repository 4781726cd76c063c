//! The formats of the schema that are this program's own: each is checked by the type that reads
//! it.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;

use serde_json::Value as Json;

use super::error::{Wrong, nearest};
use super::host::Host;
use crate::model::{ByteSize, DatabaseUrl, Rate, Span};
use crate::pipeline::Recipient;
use crate::retention::{Count, Period};
use crate::schedule;
use crate::source::directory::Who;

/// Checks a value that may have a format. Values of a type that the format is not about pass: their
/// type is checked elsewhere.
pub(super) fn check(format: &str, value: &Json) -> Result<(), Wrong> {
    match (format, value) {
        ("span", Json::Number(_)) => Err(Wrong::value("A number alone is not a duration")
            .hint("give it a unit, in quotes: `\"90s\"`, `\"10m\"`, `\"2h\"`")),
        ("rate", Json::Number(_)) => Err(Wrong::value("A number alone is not a rate")
            .hint("give it a unit, in quotes: `\"50MiB/s\"`")),
        ("count", Json::Number(number)) => {
            number.as_i64().map_or(Ok(()), |number| reads(Count::try_from(number)))
        }
        ("command", Json::Array(words)) => match words.first().and_then(Json::as_str) {
            Some(program) if program.trim().is_empty() => {
                Err(Wrong::value("Names no program").hint("the first entry is the program"))
            }
            _ => Ok(()),
        },
        (_, Json::String(text)) => of_text(format, text),
        _ => Ok(()),
    }
}

/// The keys of the schema under which the bounds of a value stand that is written as a text.
pub(super) const LEAST: &str = "x-minimum";
pub(super) const MOST: &str = "x-maximum";

/// Holds a quantity against the bounds of its schema.
pub(super) fn within(schema: &Json, value: &Json) -> Result<(), Wrong> {
    let bound = |key: &str| schema.get(key).and_then(Json::as_str);
    let (Some(format), Some(least), Some(most)) = (bound("format"), bound(LEAST), bound(MOST))
    else {
        return Ok(());
    };
    let amount = match value {
        Json::Number(number) => number.as_u64(),
        Json::String(text) => measure(format, text),
        _ => None,
    };
    let Some(amount) = amount else { return Ok(()) };
    let is_within = |least: u64, most: u64| (least..=most).contains(&amount);
    match measure(format, least).zip(measure(format, most)) {
        Some((from, to)) if !is_within(from, to) => {
            Err(Wrong::value(format!("Out of range: expected from `{least}` to `{most}`")))
        }
        _ => Ok(()),
    }
}

/// How much a text stands for, in the least unit of its format: seconds, bytes, bytes a second, and
/// hours of a calendar whose months have 30 days.
pub(super) fn measure(format: &str, text: &str) -> Option<u64> {
    match format {
        "span" => text.parse::<Span>().ok().map(|span| span.duration().as_secs()),
        "size" => text.parse::<ByteSize>().ok().map(ByteSize::bytes),
        "rate" => text.parse::<Rate>().ok().map(Rate::bytes_per_second),
        "period" => text.parse::<Period>().ok().map(|Period { months, days, hours }| {
            (u64::from(months) * 30 + u64::from(days)) * 24 + u64::from(hours)
        }),
        _ => None,
    }
}

fn of_text(format: &str, text: &str) -> Result<(), Wrong> {
    match format {
        "span" => reads(Span::from_str(text)),
        "size" => reads(ByteSize::from_str(text)),
        "rate" => reads(Rate::from_str(text)),
        "count" => reads(Count::from_str(text)),
        "period" => reads(Period::from_str(text)),
        "cron" => reads(schedule::Schedule::new(text, chrono_tz::UTC)),
        "time-zone" => reads(schedule::timezone(text)).map_err(|wrong| {
            match nearest(text, schedule::timezones()) {
                Some(near) => wrong.hint(format!("did you mean `{near}`?")),
                None => wrong,
            }
        }),
        "listen-address" => text.parse::<SocketAddr>().map(drop).map_err(|_| {
            Wrong::value(format!("`{text}` is not an address and a port")).hint(
                "write it like `127.0.0.1:8484`, `0.0.0.0:8484` (every interface) or `[::1]:8484`",
            )
        }),
        "host" => reads(Host::from_str(text)),
        "user" => reads(Who::from_str(text)),
        "recipient" => recipient(text),
        // Its errors do not repeat the text.
        "uri" => reads(DatabaseUrl::try_from(text.to_owned())),
        _ => Ok(()),
    }
}

fn reads<T, E: Display>(read: Result<T, E>) -> Result<(), Wrong> {
    read.map(drop).map_err(|error| Wrong::value(error.to_string()))
}

/// The text is not repeated: a private key may have been put here by mistake.
fn recipient(text: &str) -> Result<(), Wrong> {
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err(Wrong::value("This is a private key, which does not belong on this host").hint(
            "put its public key here (`age-keygen -y FILE` prints it), and regard the private key \
             as known to others",
        ));
    }
    text.parse::<Recipient>().map(drop).map_err(|_| {
        Wrong::value("Not a public key of age")
            .hint("expected a form like `age1…`, 62 characters, as `age-keygen` prints it")
    })
}
