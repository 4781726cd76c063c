//! The formats of the schema that are this program's own: each is checked by the type that reads
//! it.

use std::net::SocketAddr;
use std::str::FromStr;

use super::document::Value;
use super::error::nearest;
use crate::model::{ByteSize, DatabaseUrl, Rate, Span};
use crate::pipeline::Recipient;
use crate::retention::{Count, Period};
use crate::schedule;

/// Why a value does not have its format.
pub(super) struct Wrong {
    pub message: String,
    pub hint: Option<String>,
}

impl Wrong {
    fn new(message: &impl ToString) -> Self {
        Self { message: message.to_string(), hint: None }
    }
}

/// Checks a value that may have a format. Values of a type that the format is not about pass: their
/// type is checked elsewhere.
pub(super) fn check(format: &str, value: &Value) -> Result<(), Wrong> {
    match (format, value) {
        ("span", Value::String(text)) => reads::<Span>(text),
        ("span", Value::Integer(_) | Value::Float(_)) => Err(Wrong {
            message: "A number alone is not a duration".to_owned(),
            hint: Some("give it a unit, in quotes: `\"90s\"`, `\"10m\"`, `\"2h\"`".to_owned()),
        }),
        ("size", Value::String(text)) => reads::<ByteSize>(text),
        ("rate", Value::String(text)) => reads::<Rate>(text),
        ("rate", Value::Integer(_) | Value::Float(_)) => Err(Wrong {
            message: "A number alone is not a rate".to_owned(),
            hint: Some("give it a unit, in quotes: `\"50MiB/s\"`".to_owned()),
        }),
        ("count", Value::Integer(number)) => {
            Count::try_from(*number).map(|_| ()).map_err(|error| Wrong::new(&error))
        }
        ("count", Value::String(text)) => reads::<Count>(text),
        ("period", Value::String(text)) => reads::<Period>(text),
        ("cron", Value::String(text)) => schedule::Schedule::new(text, chrono_tz::UTC)
            .map(|_| ())
            .map_err(|error| Wrong::new(&error)),
        ("time-zone", Value::String(text)) => {
            schedule::timezone(text).map(|_| ()).map_err(|error| Wrong {
                message: error.to_string(),
                hint: nearest(text, schedule::timezones()).map(|near| {
                    format!(
                        "did you mean \
                `{near}`?"
                    )
                }),
            })
        }
        ("listen-address", Value::String(text)) => {
            text.parse::<SocketAddr>().map(|_| ()).map_err(|_| Wrong {
                message: format!("`{text}` is not an address and a port"),
                hint: Some(
                    "write it like `127.0.0.1:8484`, `0.0.0.0:8484` (every interface) or \
                `[::1]:8484`"
                        .to_owned(),
                ),
            })
        }
        ("recipient", Value::String(text)) => recipient(text),
        // Its errors do not repeat the text.
        ("uri", Value::String(text)) => {
            DatabaseUrl::try_from(text.clone()).map(|_| ()).map_err(|error| Wrong::new(&error))
        }
        _ => Ok(()),
    }
}

fn reads<T>(text: &str) -> Result<(), Wrong>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse::<T>().map(|_| ()).map_err(|error| Wrong::new(&error))
}

/// The text is not repeated: a private key may have been put here by mistake.
fn recipient(text: &str) -> Result<(), Wrong> {
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err(Wrong {
            message: "This is a private key, which does not belong on this host".to_owned(),
            hint: Some(
                "put its public key here (`age-keygen -y FILE` prints it), and regard the \
                private key as known to others"
                    .to_owned(),
            ),
        });
    }
    text.parse::<Recipient>().map(|_| ()).map_err(|_| Wrong {
        message: "Not a public key of age".to_owned(),
        hint: Some(
            "expected a form like `age1…`, 62 characters, as `age-keygen` prints it".to_owned(),
        ),
    })
}
