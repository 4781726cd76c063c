//! Values that must never be printed, and database addresses that contain one.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

/// What stands where a secret was.
const MASK: &str = "***";

/// A password or key. It prints, debugs and serialises as `***`; the value is had by
/// [`Secret::expose`] only.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself. Hand it to the one that needs it and to nobody else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

/// In the schema a secret has the format `secret`. The configuration reader gives each property of
/// that format a sibling `<name>_file`, which names a file to read it from.
impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "secret" })
    }
}

/// The address of a database, which may contain a password. Printed with the password masked.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DatabaseUrl(Url);

impl DatabaseUrl {
    /// The parsed address, password included.
    pub fn expose(&self) -> &Url {
        &self.0
    }

    /// The address with its password, and every query value that is one, replaced by `***`.
    pub fn masked(&self) -> String {
        let mut url = self.0.clone();
        // Both fail only for addresses that cannot have a password.
        if url.password().is_some() {
            let _ = url.set_password(Some(MASK));
        }
        if url.query().is_some() {
            let pairs: Vec<(String, String)> = url
                .query_pairs()
                .map(|(key, value)| {
                    let hidden = key.to_ascii_lowercase().contains("pass");
                    (key.into_owned(), if hidden { MASK.to_owned() } else { value.into_owned() })
                })
                .collect();
            url.query_pairs_mut().clear().extend_pairs(pairs);
        }
        url.to_string()
    }
}

impl DatabaseUrl {
    /// Whether it names a database, rather than only a server.
    pub fn names_database(&self) -> bool {
        let named =
            |(key, value): (Cow<'_, str>, Cow<'_, str>)| key == "dbname" && !value.is_empty();
        !self.0.path().trim_start_matches('/').is_empty() || self.0.query_pairs().any(named)
    }

    /// The same server's database of that name.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        let mut url = self.0.clone();
        let mut pairs: Vec<String> = url
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.starts_with("dbname="))
            .map(str::to_owned)
            .collect();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.chars().all(plain) {
            url.set_path(name);
        } else {
            // In a path `..` and `/` mean something, whatever way they are written.
            url.set_path("");
            let encoded: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
            pairs.push(format!("dbname={encoded}"));
        }
        let query = pairs.join("&");
        url.set_query(Some(query.as_str()).filter(|query| !query.is_empty()));
        Self(url)
    }

    /// The same address with a password in it.
    #[must_use]
    pub fn with_password(&self, password: &str) -> Self {
        let mut url = self.0.clone();
        // As a parameter, since an address without a host cannot have it before the host; each byte
        // in the one form that is read everywhere.
        let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let others = url
            .query()
            .filter(|query| !query.is_empty())
            .map(|query| format!("{query}&"))
            .unwrap_or_default();
        url.set_query(Some(&format!("{others}password={encoded}")));
        Self(url)
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // The text is not repeated in the error: it may contain a password.
        let wrong = |problem: &str| {
            format!(
                "Not a database address ({problem}): expected a form like \
                 `postgresql://user@host/name` or `sqlite:///path`"
            )
        };
        let url = Url::parse(&text).map_err(|error| wrong(&error.to_string()))?;
        // `user:password@host/name` parses too, with the user as the scheme, and its password would
        // not be known for one.
        if url.cannot_be_a_base() && url.scheme() != "sqlite" {
            Err(wrong("it has no `//`"))
        } else {
            Ok(Self(url))
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.masked())
    }
}

impl JsonSchema for DatabaseUrl {
    fn schema_name() -> Cow<'static, str> {
        "DatabaseUrl".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "uri" })
    }
}

#[cfg(test)]
mod tests {
    use super::{DatabaseUrl, Secret};

    #[test]
    fn a_secret_is_masked_however_it_is_printed() {
        let secret = Secret::new("hunter2");
        let json = serde_json::to_string(&secret).unwrap_or_default();
        for printed in [format!("{secret}"), format!("{secret:?}"), json] {
            assert!(!printed.contains("hunter2"), "{printed}");
        }
        for text in [
            "postgresql://u:hunter2@h/db?sslmode=require",
            "postgresql://u@h/db?password=hunter2&a=b",
        ] {
            let url = DatabaseUrl::try_from(text.to_owned());
            assert!(
                url.as_ref().is_ok_and(|url| !format!("{url} {url:?}").contains("hunter2")),
                "{text}"
            );
        }
        let wrong = DatabaseUrl::try_from("u:hunter2@h/db".to_owned()).map(|url| url.masked());
        assert!(!format!("{wrong:?}").contains("hunter2"), "{wrong:?}");
    }
}
