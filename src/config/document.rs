//! A TOML document as values, and where each of them stands in the text.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors, MOST_TOLD};
use crate::model::ErrorCode;

/// Where a value stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// As people write it: `strategies.daily.sources[0]`.
    pub dotted: String,
    /// Where its key begins, in bytes of the text; the root has none.
    pub key: Option<usize>,
    pub value: Option<usize>,
    pub is_table: bool,
    /// The words for a value that JSON does not have, which is null.
    pub odd: Option<&'static str>,
}

impl Place {
    /// A table stands where its key is, which is in its header.
    pub(super) fn at(&self) -> Option<usize> {
        if self.is_table { self.key } else { self.value }
    }
}

/// The place of each value, by its JSON pointer.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<String, Place>);

impl Places {
    pub(super) fn get(&self, pointer: &str) -> Option<&Place> {
        self.0.get(pointer)
    }

    /// The place of a value, or of the table that it is missing in.
    pub(super) fn nearest(&self, pointer: &str) -> Place {
        std::iter::successors(Some(pointer), |inner| Some(inner.rsplit_once('/')?.0))
            .find_map(|pointer| self.get(pointer))
            .cloned()
            .unwrap_or_default()
    }

    /// The value at `from`, with all that is in it, is at `to` from now on.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        // `/` comes before whatever else may follow a name, but not before all that does.
        let below = format!("{from}/");
        let below = self.0.range(below.clone()..).take_while(|(key, _)| key.starts_with(&below));
        let inside: Vec<String> = below.map(|(pointer, _)| pointer.clone()).collect();
        for pointer in inside.into_iter().chain([from.to_owned()]) {
            if let Some(place) = self.0.remove(&pointer) {
                let rest = pointer.strip_prefix(from).unwrap_or_default();
                self.0.insert(format!("{to}{rest}"), place);
            }
        }
    }

    /// The value that JSON does not have has been reported.
    pub(super) fn forget_odd(&mut self, pointer: &str) {
        if let Some(place) = self.0.get_mut(pointer) {
            place.odd = None;
        }
    }

    fn table(&mut self, table: DeTable<'_>, pointer: &str, dotted: &str) -> Json {
        let mut entries: Vec<_> = table.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut map = Map::new();
        for (key, value) in entries {
            let at = key.span().start;
            let key = key.into_inner().into_owned();
            let is_bare = !key.is_empty()
                && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            let name = if is_bare { key.clone() } else { format!("{key:?}") };
            let dotted = if dotted.is_empty() { name } else { format!("{dotted}.{name}") };
            let value = self.value(value, child(pointer, &key), Some(at), dotted);
            map.insert(key, value);
        }
        map.into()
    }

    fn value(
        &mut self,
        value: Spanned<DeValue<'_>>,
        pointer: String,
        key: Option<usize>,
        dotted: String,
    ) -> Json {
        let at = value.span().start;
        let mut place =
            Place { dotted, key: key.or(Some(at)), value: Some(at), ..Place::default() };
        let value = match value.into_inner() {
            DeValue::String(text) => text.into_owned().into(),
            // The parser does not check that the text is a number of this type.
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().into()
            }
            DeValue::Float(number) => number.as_str().parse::<f64>().ok().into(),
            DeValue::Boolean(yes) => yes.into(),
            DeValue::Datetime(_) => {
                place.odd = Some("a date");
                Json::Null
            }
            DeValue::Array(items) => {
                let item = |(index, item)| {
                    let dotted = format!("{}[{index}]", place.dotted);
                    self.value(item, format!("{pointer}/{index}"), None, dotted)
                };
                items.into_iter().enumerate().map(item).collect()
            }
            DeValue::Table(inner) => {
                place.is_table = true;
                self.table(inner, &pointer, &place.dotted)
            }
        };
        if value.is_null() {
            place.odd = place.odd.or(Some("a number beyond all bounds"));
        }
        self.0.insert(pointer, place);
        value
    }
}

/// The pointer of a key in the table at `pointer`.
pub(super) fn child(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// Reads a document.
///
/// # Errors
/// Every place at which the text is not TOML.
pub(super) fn parse(file: &Path, text: &str) -> Result<(Json, Places), ConfigErrors> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let mut places = Places::default();
        let document = places.table(root.into_inner(), "", "");
        places.0.insert(String::new(), Place::default());
        return Ok((document, places));
    }
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    let more = errors.len().saturating_sub(MOST_TOLD);
    let located = errors.into_iter().take(MOST_TOLD).map(|error| {
        // Only the message: the error's own print repeats the line, which may hold a secret.
        let message = format!("Not TOML: {}", error.message().trim_end_matches('.'));
        let mut wrong = ConfigError::of_file(file, ErrorCode::ConfigSyntax, message, None);
        wrong.locate(text, error.span().map(|span| span.start));
        wrong
    });
    Err(ConfigErrors::bounded(file, located.collect(), more))
}
