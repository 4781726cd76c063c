//! Values that must never be printed. Addresses of databases, which may contain one, are in
//! `database_url`; what others print is in `redact`.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

/// What stands where a secret was.
pub(super) const MASK: &str = "***";

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

/// A program and its arguments. It debugs and serialises with the program only: arguments may hold
/// what should not be there.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("format" = "command"))]
pub struct CommandLine(#[schemars(length(min = 1))] Vec<String>);

impl CommandLine {
    /// The program, to be replaced by its whole path.
    pub fn program_mut(&mut self) -> Option<&mut String> {
        self.0.first_mut()
    }
}

impl FromIterator<String> for CommandLine {
    fn from_iter<T: IntoIterator<Item = String>>(words: T) -> Self {
        Self(words.into_iter().collect())
    }
}

impl Deref for CommandLine {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.0
    }
}

impl Serialize for CommandLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let words = self.0.iter().enumerate();
        serializer.collect_seq(words.map(|(at, word)| if at == 0 { word } else { MASK }))
    }
}

impl fmt::Debug for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.first()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{CommandLine, Secret};

    #[test]
    fn a_secret_is_masked_however_it_is_printed() {
        let secret = Secret::new("hunter2");
        let command: CommandLine = ["curl", "hunter2"].map(str::to_owned).into_iter().collect();
        let json = serde_json::json!([secret, command]).to_string();
        for printed in [format!("{secret}"), format!("{secret:?} {command:?}"), json] {
            assert!(!printed.contains("hunter2"), "{printed}");
        }
    }
}
