//! The body of a webhook, with places for what happened.

use std::fmt;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::Event;

/// The names that may stand between `{{` and `}}`. Each but `json` is there a second time with
/// `_json` behind it: as a JSON string, in quotes.
const NAMES: [&str; 9] =
    ["json", "event", "title", "text", "message", "instance", "strategy", "time", "snapshot"];

/// A text in which `{{name}}` stands for a part of an event. It may hold a key of a service, so
/// that its text is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Template(String);

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

/// A piece of a template.
enum Piece<'a> {
    Text(&'a str),
    Name(&'a str),
}

impl Template {
    /// A template of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn pieces(&self) -> Result<Vec<Piece<'_>>, String> {
        let mut pieces = Vec::new();
        let mut rest = self.0.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((name, after)) = after.split_once("}}") else {
                return Err("`{{` is not closed by `}}`".to_owned());
            };
            pieces.extend([Piece::Text(before), Piece::Name(name.trim())]);
            rest = after;
        }
        pieces.push(Piece::Text(rest));
        Ok(pieces)
    }

    /// The text for an event.
    ///
    /// # Errors
    /// In words, what is wrong with the template: the same for every event.
    pub fn fill(&self, event: &Event) -> Result<String, String> {
        let mut text = String::new();
        for piece in self.pieces()? {
            match piece {
                Piece::Text(plain) => text.push_str(plain),
                Piece::Name(name) => text.push_str(&value(name, event)?),
            }
        }
        Ok(text)
    }
}

fn value(name: &str, event: &Event) -> Result<String, String> {
    let plain = |name: &str| {
        Some(match name {
            "event" => event.kind.as_str().to_owned(),
            "title" => event.title(),
            "text" => event.text(),
            "message" => event.message(),
            "instance" => event.instance.to_string(),
            "strategy" => event.strategy.as_ref().map(ToString::to_string).unwrap_or_default(),
            "time" => event.time(),
            "snapshot" => event.run.as_ref().map(|run| run.id.to_string()).unwrap_or_default(),
            _ => return None,
        })
    };
    let found = match name {
        "json" => serde_json::to_string(event).ok(),
        _ => match name.strip_suffix("_json") {
            Some(name) => plain(name).map(|text| serde_json::Value::from(text).to_string()),
            None => plain(name),
        },
    };
    found.ok_or_else(|| {
        format!(
            "`{{{{{name}}}}}` is not known: expected one of `{}`, each but `json` also with \
            `_json` behind it for a JSON string in quotes",
            NAMES.join("`, `")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{NAMES, Template};
    use crate::report::Event;

    fn event() -> Event {
        let name = |text: &str| text.parse().unwrap();
        let at = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        Event::stale(&name("shop"), &name("daily"), at, "no \"run\"\nfor \\ days".to_owned())
    }

    #[test]
    fn every_name_has_a_value_and_as_json_it_is_json_whatever_it_holds() {
        for name in NAMES {
            let plain = Template::new(format!("<{{{{{name}}}}}>")).fill(&event()).unwrap();
            assert!(
                plain.starts_with('<') && plain.ends_with('>') && !plain.contains("{{"),
                "{plain}"
            );
            if name != "json" {
                let body = Template::new(format!("{{\"a\":{{\"b\":{{{{ {name}_json }}}}}}}}"))
                    .fill(&event())
                    .unwrap();
                let read: serde_json::Value = serde_json::from_str(&body).unwrap();
                assert_eq!(format!("<{}>", read["a"]["b"].as_str().unwrap()), plain);
            }
        }
    }

    #[test]
    fn what_is_not_a_name_is_an_error_in_words() {
        for (text, expected) in [
            ("{{titel}}", "`{{titel}}` is not known: expected one of `json`, `event`, `title`"),
            ("{{json_json}}", "`{{json_json}}` is not known"),
            ("{{}}", "`{{}}` is not known"),
            ("a {{title", "`{{` is not closed by `}}`"),
        ] {
            let error = Template::new(text).fill(&event()).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
