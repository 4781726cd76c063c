//! Walks a document along the schema, and reports everything that does not fit.
//!
//! It understands only the parts of JSON Schema that this program uses. The rest passes here, and
//! is found when the value is read into its type. A wrong value is reported and becomes null, which
//! is passed over from then on; an empty value stands in for a required one, so that the rest of
//! the table can still be checked.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value as Json};

use super::check::Check;
use super::document::child;
use super::error::{Wrong, nearest, suggest};
use super::format;
use super::schema::{definition, file_key, is_secret};
use super::values::{expand, read_secret};
use crate::model::{DatabaseUrl, ErrorCode, Name, has_credentials};

/// Stands in for a name that is missing or wrong.
const UNNAMED: &str = "unnamed";
/// Keys of text that is for others, and is not shown or shown without credentials.
const FREE_TEXT: [&str; 7] =
    ["command", "restore_command", "before", "after", "on_failure", "query", "body"];

impl<'a> Check<'a> {
    /// Puts variables into strings.
    pub(super) fn expand(&mut self, value: &mut Json, pointer: &str) {
        match value {
            Json::String(text) => match expand(text, self.environment) {
                Ok(None) => {}
                Ok(Some(expanded)) => {
                    self.secrets.push(expanded.clone());
                    let written = std::mem::replace(text, expanded);
                    self.expanded.insert(pointer.to_owned(), written);
                }
                Err(errors) => {
                    for error in errors {
                        self.report(
                            pointer,
                            Wrong::new(ErrorCode::ConfigUnresolvedVariable, error),
                        );
                    }
                    *value = Json::Null;
                }
            },
            Json::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.expand(item, &format!("{pointer}/{index}"));
                }
            }
            Json::Object(entries) => {
                for (key, value) in entries {
                    self.expand(value, &child(pointer, key));
                }
            }
            _ => {}
        }
    }

    pub(super) fn value(&mut self, value: &mut Json, schema: &Json, pointer: &str) {
        if value.is_null() && self.places.get(pointer).is_none_or(|place| place.odd.is_none()) {
            return;
        }
        let found = self.count();
        if let Some(target) = self.definition(schema) {
            self.value(value, target, pointer);
        }
        self.alternatives(value, schema, pointer);
        if self.count() > found {
            return;
        }
        let format = schema.get("format").and_then(Json::as_str);
        if let Some(wrong) = format.and_then(|format| format::check(format, value).err()) {
            self.report(pointer, wrong);
        } else if let Err(wrong) = format::within(schema, value) {
            self.report(pointer, wrong);
        } else if let Some(expected) = types(schema).filter(|types| !is_one_of(value, types)) {
            self.wrong_type(value, &expected, pointer);
        } else {
            match value {
                Json::String(text) => self.string(text, schema, pointer),
                Json::Number(number) => {
                    self.number(number.as_f64().unwrap_or(f64::NAN), schema, pointer);
                }
                Json::Array(items) => return self.array(items, schema, pointer),
                Json::Object(entries) => {
                    if self.table(entries, schema, pointer) {
                        return;
                    }
                    *value = Json::Null;
                }
                Json::Bool(_) | Json::Null => {}
            }
        }
        if self.count() > found {
            *value = Json::Null;
        }
    }

    fn definition(&self, schema: &Json) -> Option<&'a Json> {
        definition(self.schema, schema.get("$ref")?.as_str()?)
    }

    /// One of several: of tables told apart by a constant key, or of words.
    fn alternatives(&mut self, value: &mut Json, schema: &Json, pointer: &str) {
        let options = schema.get("oneOf").and_then(Json::as_array);
        if let Some((tag, variants)) = options.and_then(|options| tagged(options)) {
            self.variant(value, tag, &variants, pointer);
        } else if let Some(words) = words(schema) {
            self.word(value, &words, pointer);
        }
    }

    fn variant(&mut self, value: &mut Json, tag: &str, variants: &[(&str, &Json)], pointer: &str) {
        let Json::Object(entries) = value else {
            self.wrong_type(value, &["object"], pointer);
            *value = Json::Null;
            return;
        };
        let kinds = variants.iter().map(|(kind, _)| *kind);
        let tag_at = child(pointer, tag);
        match entries.get(tag) {
            Some(Json::String(text)) => {
                if let Some((_, variant)) = variants.iter().find(|(name, _)| name == text) {
                    return self.value(value, variant, pointer);
                }
                let message = format!("`{text}` is not a known {tag}");
                let wrong = Wrong::value(message).hint(suggest(text, kinds));
                self.report(&tag_at, wrong);
            }
            Some(other) => self.wrong_type(other, &["string"], &tag_at),
            None => {
                let list = kinds.collect::<Vec<_>>().join("`, `");
                let wrong = Wrong::new(ErrorCode::ConfigMissingKey, format!("Missing key `{tag}`"));
                self.report(pointer, wrong.hint(format!("expected one of `{list}`")));
            }
        }
        *value = Json::Null;
    }

    /// One of a list of words.
    fn word(&mut self, value: &mut Json, words: &[&str], pointer: &str) {
        match value {
            Json::String(text) if words.contains(&text.as_str()) => return,
            Json::String(text) => {
                let list = words.join("`, `");
                let mut wrong = Wrong::value(format!("`{text}` is not one of `{list}`"));
                wrong.hint = nearest(text, words.iter().copied())
                    .map(|near| format!("did you mean `{near}`?"));
                self.report(pointer, wrong);
            }
            _ => self.wrong_type(value, &["string"], pointer),
        }
        *value = Json::Null;
    }

    fn wrong_type(&mut self, value: &Json, expected: &[&str], pointer: &str) {
        let mut names: Vec<&str> = expected.iter().map(|name| in_toml(name)).collect();
        names.dedup();
        let place = self.places.nearest(pointer);
        let found = match value {
            Json::String(_) => "a string",
            Json::Number(number) if number.is_f64() => "a number with a fraction",
            Json::Number(_) => "an integer",
            Json::Bool(_) => "a boolean",
            Json::Array(_) => "an array",
            Json::Object(_) => "a table",
            Json::Null => match place.odd {
                Some(odd) => odd,
                None => return,
            },
        };
        let hint = match (expected, value) {
            (["boolean"], Json::String(text)) if text == "true" || text == "false" => {
                Some("write it without quotes")
            }
            (["integer" | "number"], Json::String(text)) if text.parse::<f64>().is_ok() => {
                Some("write it without quotes")
            }
            (["string"], Json::Number(_) | Json::Bool(_) | Json::Null) => {
                Some("write it in quotes")
            }
            (["array"], Json::String(_)) => Some("write it in brackets: `[\"…\"]`"),
            _ => None,
        };
        let mut wrong = Wrong::value(format!("Expected {}, found {found}", names.join(" or ")));
        wrong.hint = hint.map(str::to_owned);
        self.report(pointer, wrong);
    }

    fn string(&mut self, text: &str, schema: &Json, pointer: &str) {
        let is_secret = is_secret(schema);
        if is_secret {
            self.secrets.push(text.to_owned());
        }
        match self.expanded.get(pointer) {
            // What has a form of its own masks itself (a secret, an address), or could not be a
            // secret (a duration, a public key).
            Some(_) if schema.get("format").or_else(|| schema.get("pattern")).is_some() => {}
            Some(written) => {
                self.written.insert(pointer.to_owned(), written.clone());
            }
            None => {
                let is_address = schema.get("format").is_some_and(|format| format == "uri");
                let has_password =
                    || DatabaseUrl::try_from(text.to_owned()).is_ok_and(|url| url.has_password());
                if is_secret || is_address && has_password() {
                    self.bare_secrets.push(self.places.nearest(pointer).dotted);
                }
            }
        }
        let is_free = FREE_TEXT.iter().any(|key| pointer.split('/').any(|part| part == *key));
        if schema.get("format").is_none() && !is_free && has_credentials(text) {
            let wrong = Wrong::value("Credentials do not belong here, where they would be shown");
            self.report(pointer, wrong);
            return;
        }
        if is_name(schema)
            && let Err(error) = text.parse::<Name>()
        {
            self.report(pointer, Wrong::value(error.to_string()));
            return;
        }
        if text.contains('\0') {
            self.report(pointer, Wrong::value("A NUL character stands in it").hint("remove it"));
            return;
        }
        let least = schema.get("minLength").and_then(Json::as_u64).unwrap_or(0);
        // An empty path would mean the folder of the configuration file, and an empty secret is
        // none.
        let never_empty =
            is_secret || ["path", "dir", "file"].iter().any(|end| pointer.ends_with(end));
        if text.is_empty() && (least > 0 || never_empty) {
            self.report(pointer, Wrong::value("Empty: expected a value"));
        } else if (text.chars().count() as u64) < least {
            let message = format!("Too short: expected at least {least} characters");
            self.report(pointer, Wrong::value(message));
        }
    }

    fn number(&mut self, number: f64, schema: &Json, pointer: &str) {
        let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
        let (least, most) = (bound("minimum"), bound("maximum"));
        if least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most) {
            return;
        }
        let range = match (least, most) {
            (Some(least), Some(most)) => format!("from {least} to {most}"),
            (Some(least), None) => format!("from {least}"),
            (None, most) => format!("up to {}", most.unwrap_or_default()),
        };
        let message = format!("Out of range: expected a number {range}");
        self.report(pointer, Wrong::value(message));
    }

    fn array(&mut self, items: &mut [Json], schema: &Json, pointer: &str) {
        self.at_least(items.len(), schema.get("minItems"), pointer);
        if schema.get("uniqueItems").and_then(Json::as_bool) == Some(true) {
            let mut seen: HashSet<&str> = HashSet::new();
            for (index, item) in items.iter().enumerate() {
                let Some(text) = item.as_str() else { continue };
                if !seen.insert(text) {
                    let wrong = Wrong::new(ErrorCode::ConfigConflict, "Listed twice");
                    self.report(&format!("{pointer}/{index}"), wrong);
                }
            }
        }
        if let Some(inner) = schema.get("items") {
            for (index, item) in items.iter_mut().enumerate() {
                self.value(item, inner, &format!("{pointer}/{index}"));
            }
        }
    }

    fn at_least(&mut self, count: usize, least: Option<&Json>, pointer: &str) {
        let least = least.and_then(Json::as_u64).unwrap_or(0);
        if (count as u64) < least {
            let noun = if least == 1 { "entry" } else { "entries" };
            self.report(pointer, Wrong::value(format!("Expected at least {least} {noun}")));
        }
    }

    /// Returns whether the table can be read, without what is null in it.
    fn table(&mut self, entries: &mut Map<String, Json>, schema: &Json, pointer: &str) -> bool {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Json::as_object).unwrap_or(&empty);
        let of_names = schema.get("patternProperties").and_then(|all| all.get(Name::PATTERN));
        self.secret_files(entries, properties, pointer);
        self.at_least(entries.len(), schema.get("minProperties"), pointer);
        let required = schema.get("required").and_then(Json::as_array);
        let required: Vec<&str> = required.into_iter().flatten().filter_map(Json::as_str).collect();
        for key in required.iter().filter(|key| !entries.contains_key(**key)) {
            let mut wrong = Wrong::new(ErrorCode::ConfigMissingKey, format!("Missing key `{key}`"));
            if properties.get(*key).is_some_and(is_secret) {
                let file = file_key(key);
                wrong = wrong.hint(format!("set it, or `{file}` to read it from a file"));
            }
            self.report(pointer, wrong);
        }
        let mut misnamed = Vec::new();
        for (key, value) in entries.iter_mut() {
            let place = child(pointer, key);
            if let Some(property) = properties.get(key.as_str()) {
                self.value(value, property, &place);
            } else if let Some(named) = of_names {
                if let Err(error) = key.parse::<Name>() {
                    self.report_key(&place, Wrong::value(error.to_string()));
                    misnamed.push(key.clone());
                }
                self.value(value, named, &place);
            } else {
                match schema.get("additionalProperties") {
                    Some(Json::Bool(false)) => {
                        self.unknown_key(key, properties, &place);
                        *value = Json::Null;
                    }
                    Some(additional @ Json::Object(_)) => self.value(value, additional, &place),
                    _ => {}
                }
            }
        }
        if !misnamed.is_empty() {
            // All at once: taking one out of many moves all that follow it.
            let mut stand_ins = HashMap::new();
            for (index, key) in misnamed.into_iter().enumerate() {
                let stand_in = format!("{UNNAMED}-{index}");
                self.places.rename(&child(pointer, &key), &child(pointer, &stand_in));
                stand_ins.insert(key, stand_in);
            }
            let all = std::mem::take(entries).into_iter();
            let (named, renamed): (Vec<_>, Vec<_>) = all
                .map(|(key, value)| (stand_ins.remove(&key), key, value))
                .partition(|(stand_in, ..)| stand_in.is_none());
            let named = named.into_iter().map(|(_, key, value)| (key, value));
            let renamed = renamed.into_iter().filter_map(|(to, _, value)| Some((to?, value)));
            entries.extend(named.chain(renamed));
        }
        required.iter().all(|key| {
            if entries.get(*key).is_some_and(|value| !value.is_null()) {
                return true;
            }
            let stand_in = properties.get(*key).and_then(|property| self.stand_in(property));
            stand_in.map(|value| entries.insert((*key).to_owned(), value)).is_some()
        })
    }

    /// An empty value of the type that a key must have.
    fn stand_in(&self, schema: &Json) -> Option<Json> {
        let schema = self.definition(schema).unwrap_or(schema);
        match schema.get("type")?.as_str()? {
            "array" => Some(Json::Array(Vec::new())),
            "object" if schema.get("required").is_none() => Some(Map::new().into()),
            "string" if is_name(schema) => Some(UNNAMED.into()),
            _ => None,
        }
    }

    fn unknown_key(&mut self, key: &str, properties: &Map<String, Json>, pointer: &str) {
        let wrong = Wrong::new(ErrorCode::ConfigUnknownKey, "Unknown key");
        if self.is_full() {
            return self.report_key(pointer, wrong);
        }
        let secrets = properties.iter().filter(|(_, schema)| is_secret(schema));
        let files: Vec<String> = secrets.map(|(name, _)| file_key(name)).collect();
        let known = properties.keys().map(String::as_str).chain(files.iter().map(String::as_str));
        let hint = elsewhere(key).map_or_else(|| suggest(key, known), str::to_owned);
        self.report_key(pointer, wrong.hint(hint));
    }

    /// Puts each secret in the place of the name of its file.
    fn secret_files(
        &mut self,
        entries: &mut Map<String, Json>,
        properties: &Map<String, Json>,
        pointer: &str,
    ) {
        for (secret, _) in properties.iter().filter(|(_, schema)| is_secret(schema)) {
            let key = file_key(secret);
            let (from, to) = (child(pointer, &key), child(pointer, secret));
            let Some(file) = entries.get(&key).filter(|_| !properties.contains_key(&key)) else {
                continue;
            };
            let content = match file {
                Json::String(name) if name.is_empty() => {
                    Err(Some(Wrong::value("Empty: expected a value")))
                }
                Json::String(name) => read_secret(&self.base.join(name))
                    .map(|content| (self.base.join(name), content))
                    .map_err(|error| Some(Wrong::new(ErrorCode::ConfigSecretUnreadable, error))),
                other => {
                    self.wrong_type(other, &["string"], &from);
                    Err(None)
                }
            };
            let content = match content {
                Ok((path, content)) => {
                    self.secrets.push(content.clone());
                    self.note_permissions(&path);
                    content.into()
                }
                Err(wrong) => {
                    if let Some(wrong) = wrong {
                        self.report(&from, wrong);
                    }
                    Json::Null
                }
            };
            entries.shift_remove(&key);
            if entries.contains_key(secret) {
                let message = format!("Both `{secret}` and `{key}` are set");
                let wrong =
                    Wrong::new(ErrorCode::ConfigConflict, message).hint("remove one of them");
                self.report_key(&from, wrong);
                continue;
            }
            self.places.rename(&from, &to);
            if content.is_null() {
                self.places.forget_odd(&to);
            }
            self.expanded.insert(to, key);
            entries.insert(secret.clone(), content);
        }
    }
}

/// What to say of keys that are not misspelt, but have no place here.
fn elsewhere(key: &str) -> Option<&'static str> {
    match key {
        "drill" => Some("it belongs to a strategy: `[strategies.NAME.drill]`"),
        "identity" | "identity_file" | "identities" => Some(
            "private keys stay off this host; pass `--identity-file` where one is needed. Only a \
             drill has one of its own: `[strategies.NAME.drill]`",
        ),
        _ => None,
    }
}

fn is_name(schema: &Json) -> bool {
    schema.get("pattern").and_then(Json::as_str) == Some(Name::PATTERN)
}

/// The words that a schema allows, when it allows nothing else.
fn words(schema: &Json) -> Option<Vec<&str>> {
    if let Some(word) = schema.get("const") {
        return word.as_str().map(|word| vec![word]);
    }
    if let Some(options) = schema.get("oneOf").and_then(Json::as_array) {
        return Some(options.iter().map(words).collect::<Option<Vec<_>>>()?.concat());
    }
    schema.get("enum")?.as_array()?.iter().map(Json::as_str).collect()
}

/// The key that tells tables apart, and each of its values with its schema.
fn tagged(options: &[Json]) -> Option<(&str, Vec<(&str, &Json)>)> {
    let first = options.first()?.get("properties")?.as_object()?;
    let (tag, _) = first.iter().find(|(_, property)| property.get("const").is_some())?;
    let variants: Option<Vec<(&str, &Json)>> = options
        .iter()
        .map(|option| Some((option.get("properties")?.get(tag)?.get("const")?.as_str()?, option)))
        .collect();
    Some((tag, variants?))
}

fn types(schema: &Json) -> Option<Vec<&str>> {
    match schema.get("type")? {
        Json::String(name) => Some(vec![name]),
        Json::Array(names) => Some(names.iter().filter_map(Json::as_str).collect()),
        _ => None,
    }
}

fn is_one_of(value: &Json, types: &[&str]) -> bool {
    types.iter().any(|name| match *name {
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    })
}

fn in_toml(name: &str) -> &str {
    match name {
        "string" => "a string",
        "integer" => "an integer",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        "array" => "an array",
        "object" => "a table",
        other => other,
    }
}
