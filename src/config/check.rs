//! Walks a document along the schema and reports everything that does not fit, each with its place.
//!
//! Only what the schemas of this program use is understood. What is not understood here passes, and
//! is found when the value is read into its type, without a place of its own.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::document::{Entry, Node, Value};
use super::error::suggest;
use super::format;
use super::schema::{definition, file_key, is_secret};
use super::values::{expand, read_secret};
use crate::model::{DatabaseUrl, Name};
use crate::source::process::Environment;

/// Something wrong at a place of the document.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    /// In bytes of the text.
    pub at: Option<usize>,
    pub key: String,
    pub message: String,
    pub hint: Option<String>,
}

/// Where a value is: as it is written for people, and as a JSON pointer.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    pub dotted: String,
    pub pointer: String,
    /// Of the key, in bytes of the text; the root has none.
    pub at: Option<usize>,
}

impl Place {
    pub(super) fn child(&self, key: &str, at: usize) -> Self {
        let bare = !key.is_empty()
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let name = if bare { key.to_owned() } else { format!("{key:?}") };
        let dotted = if self.dotted.is_empty() { name } else { format!("{}.{name}", self.dotted) };
        let pointer = format!("{}/{}", self.pointer, key.replace('~', "~0").replace('/', "~1"));
        Self { dotted, pointer, at: Some(at) }
    }

    pub(super) fn item(&self, index: usize, at: usize) -> Self {
        Self {
            dotted: format!("{}[{index}]", self.dotted),
            pointer: format!("{}/{index}", self.pointer),
            at: Some(at),
        }
    }
}

/// What the walk finds.
pub(super) struct Check<'a> {
    /// The schema, for its definitions.
    root: &'a Json,
    environment: &'a Environment,
    /// The folder that files of secrets are relative to.
    base: &'a Path,
    pub problems: Vec<Problem>,
    /// Values that must not be repeated in a message: all that came from the environment, and
    /// secrets.
    secrets: Vec<String>,
    /// By JSON pointer, the strings as they were written that variables were put into, where those
    /// could be secret.
    pub written: BTreeMap<String, String>,
    /// The dotted keys of secrets that are written in the file itself.
    pub bare_secrets: Vec<String>,
    /// What works, with a drawback.
    pub notes: Vec<String>,
}

impl<'a> Check<'a> {
    pub(super) fn new(root: &'a Json, environment: &'a Environment, base: &'a Path) -> Self {
        Self {
            root,
            environment,
            base,
            problems: Vec::new(),
            secrets: Vec::new(),
            written: BTreeMap::new(),
            bare_secrets: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Checks the whole document, puts variables into its strings, and replaces the files of
    /// secrets by the secrets.
    pub(super) fn document(&mut self, document: &mut Node) {
        self.expand(document, &Place::default());
        let root = self.root;
        self.value(document, root, &Place::default());
    }

    /// Reports a problem.
    pub(super) fn problem(
        &mut self,
        place: &Place,
        at: Option<usize>,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        let message = self.without_secrets(message.into());
        self.problems.push(Problem { at, key: place.dotted.clone(), message, hint });
    }

    /// Short values are masked only where they are quoted: a message is not to be shredded by every
    /// `a` of it.
    fn without_secrets(&self, mut message: String) -> String {
        for secret in &self.secrets {
            if secret.chars().count() >= 4 {
                message = message.replace(secret.as_str(), "***");
            } else {
                for quote in ['`', '"'] {
                    message = message
                        .replace(&format!("{quote}{secret}{quote}"), &format!("{quote}***{quote}"));
                }
            }
        }
        message
    }

    fn expand(&mut self, node: &mut Node, place: &Place) {
        match &mut node.value {
            Value::String(text) => match expand(text, self.environment) {
                Ok(None) => {}
                Ok(Some(expanded)) => {
                    self.secrets.push(expanded.clone());
                    node.written = Some(std::mem::replace(text, expanded));
                }
                Err(errors) => {
                    for error in errors {
                        self.problem(place, Some(node.at), error, None);
                    }
                    node.value = Value::Unknown;
                }
            },
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.expand(item, &place.item(index, item.at));
                }
            }
            Value::Table(entries) => {
                for Entry { key, at, node } in entries {
                    self.expand(node, &place.child(key, *at));
                }
            }
            _ => {}
        }
    }

    fn value(&mut self, node: &mut Node, schema: &Json, place: &Place) {
        if matches!(node.value, Value::Unknown) {
            return;
        }
        let found = self.problems.len();
        if let Some(target) =
            schema.get("$ref").and_then(Json::as_str).and_then(|name| definition(self.root, name))
        {
            self.value(node, target, place);
        }
        self.alternatives(node, schema, place);
        if self.problems.len() > found {
            return;
        }
        if let Some(format) = schema.get("format").and_then(Json::as_str)
            && let Err(wrong) = format::check(format, &node.value)
        {
            self.problem(place, Some(node.at), wrong.message, wrong.hint);
            return;
        }
        if !self.has_type(node, schema, place) {
            return;
        }
        match &mut node.value {
            Value::String(_) => self.string(node, schema, place),
            Value::Integer(number) => {
                let number = *number as f64;
                self.number(number, node.at, schema, place);
            }
            Value::Float(number) => {
                let number = *number;
                self.number(number, node.at, schema, place);
            }
            Value::Array(_) => self.array(node, schema, place),
            Value::Table(_) => self.table(node, schema, place),
            Value::Boolean(_) | Value::Datetime | Value::Unknown => {}
        }
    }

    /// One of several: of tables told apart by a constant key, of words, or of whatever fits.
    fn alternatives(&mut self, node: &mut Node, schema: &Json, place: &Place) {
        let Some(options) =
            schema.get("oneOf").or_else(|| schema.get("anyOf")).and_then(Json::as_array)
        else {
            if let Some(words) = words(schema) {
                self.word(node, &words, place);
            }
            return;
        };
        if let Some((tag, variants)) = tagged(options) {
            let Value::Table(entries) = &node.value else {
                self.wrong_type(node, &["object"], place);
                return;
            };
            let kinds = variants.iter().map(|(kind, _)| *kind);
            match entries.iter().find(|entry| entry.key == tag) {
                None => {
                    let list = kinds.collect::<Vec<_>>().join("`, `");
                    self.problem(
                        place,
                        place.at,
                        format!("Missing key `{tag}`"),
                        Some(format!("expected one of `{list}`")),
                    );
                }
                Some(Entry { key, at, node: kind }) => match &kind.value {
                    Value::String(text) => match variants.iter().find(|(name, _)| name == text) {
                        Some((_, variant)) => self.value(node, variant, place),
                        None => {
                            let place = place.child(key, *at);
                            let (at, hint) = (kind.at, suggest(text, kinds));
                            let message = format!("`{text}` is not a known {tag}");
                            self.problem(&place, Some(at), message, Some(hint));
                        }
                    },
                    Value::Unknown => {}
                    _ => {
                        let (kind, place) = (kind.clone(), place.child(key, *at));
                        self.wrong_type(&kind, &["string"], &place);
                    }
                },
            }
            return;
        }
        let all: Option<Vec<Vec<&str>>> = options.iter().map(words).collect();
        if let Some(all) = all {
            self.word(node, &all.concat(), place);
            return;
        }
        // Of several shapes the first that fits; where none does, what is wrong with the first of
        // this type is told.
        let before = self.problems.len();
        let mut told: Option<Vec<Problem>> = None;
        for option in options {
            let mut attempt = node.clone();
            let fits_type = types(self.resolved(option))
                .is_none_or(|types| types.iter().any(|name| is_type(node, name)));
            self.value(&mut attempt, option, place);
            let wrong = self.problems.split_off(before);
            if wrong.is_empty() {
                *node = attempt;
                return;
            }
            if told.is_none() && fits_type {
                told = Some(wrong);
            }
        }
        match told {
            Some(wrong) => self.problems.extend(wrong),
            None => {
                let expected: Vec<&str> = options
                    .iter()
                    .filter_map(|option| types(self.resolved(option)))
                    .flatten()
                    .collect();
                self.wrong_type(node, &expected, place);
            }
        }
    }

    fn resolved<'s>(&self, schema: &'s Json) -> &'s Json
    where
        'a: 's,
    {
        let target =
            schema.get("$ref").and_then(Json::as_str).and_then(|name| definition(self.root, name));
        target.unwrap_or(schema)
    }

    /// One of a list of words.
    fn word(&mut self, node: &Node, words: &[&str], place: &Place) {
        match &node.value {
            Value::String(text) if words.contains(&text.as_str()) => {}
            Value::String(text) => {
                let list = words.join("`, `");
                let near = super::error::nearest(text, words.iter().copied());
                let hint = near.map(|near| format!("did you mean `{near}`?"));
                self.problem(
                    place,
                    Some(node.at),
                    format!("`{text}` is not one of `{list}`"),
                    hint,
                );
            }
            _ => self.wrong_type(node, &["string"], place),
        }
    }

    fn has_type(&mut self, node: &Node, schema: &Json, place: &Place) -> bool {
        let Some(expected) = types(schema) else { return true };
        if expected.iter().any(|name| is_type(node, name)) {
            return true;
        }
        self.wrong_type(node, &expected, place);
        false
    }

    fn wrong_type(&mut self, node: &Node, expected: &[&str], place: &Place) {
        let mut names: Vec<&str> = expected.iter().map(|name| in_toml(name)).collect();
        names.dedup();
        let found = match &node.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(number) if number.is_finite() => "a number with a fraction",
            Value::Float(_) => "a number beyond all bounds",
            Value::Boolean(_) => "a boolean",
            Value::Datetime => "a date",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
            Value::Unknown => return,
        };
        let hint = match (expected, &node.value) {
            (["boolean"], Value::String(text)) if text == "true" || text == "false" => {
                Some("write it without quotes")
            }
            (["integer" | "number"], Value::String(text)) if text.parse::<f64>().is_ok() => {
                Some("write it without quotes")
            }
            (
                ["string"],
                Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime,
            ) => Some("write it in quotes"),
            (["array"], Value::String(_)) => Some("write it in brackets: `[\"…\"]`"),
            _ => None,
        };
        // For a table the header is its place, which is where its key is.
        let at = if matches!(node.value, Value::Table(_)) { place.at } else { Some(node.at) };
        let message = format!("Expected {}, found {found}", names.join(" or "));
        self.problem(place, at, message, hint.map(str::to_owned));
    }

    fn string(&mut self, node: &Node, schema: &Json, place: &Place) {
        let Value::String(text) = &node.value else { return };
        let is_address = schema.get("format").is_some_and(|format| format == "uri");
        if is_secret(schema) {
            self.secrets.push(text.clone());
        }
        match &node.written {
            // What has a form of its own masks itself (a secret, an address), or could not be a
            // secret (a duration, a public key).
            Some(_) if schema.get("format").or_else(|| schema.get("pattern")).is_some() => {}
            Some(written) => {
                self.written.insert(place.pointer.clone(), written.clone());
            }
            None => {
                let with_password = || {
                    DatabaseUrl::try_from(text.clone())
                        .is_ok_and(|url| url.masked().contains("***"))
                };
                if is_secret(schema) || is_address && with_password() {
                    self.bare_secrets.push(place.dotted.clone());
                }
            }
        }
        if schema.get("pattern").and_then(Json::as_str) == Some(Name::PATTERN)
            && let Err(error) = text.parse::<Name>()
        {
            self.problem(place, Some(node.at), error.to_string(), None);
            return;
        }
        let least = schema.get("minLength").and_then(Json::as_u64).unwrap_or(0);
        // An empty path would mean the folder of the configuration file, and an empty secret is
        // none.
        let last = place.pointer.rsplit('/').next().unwrap_or_default();
        let never_empty =
            is_secret(schema) || ["path", "dir", "file"].iter().any(|end| last.ends_with(end));
        if text.is_empty() && (least > 0 || never_empty) {
            self.problem(place, Some(node.at), "Empty: expected a value", None);
        } else if (text.chars().count() as u64) < least {
            self.problem(
                place,
                Some(node.at),
                format!("Too short: expected at least {least} characters"),
                None,
            );
        }
    }

    fn number(&mut self, number: f64, at: usize, schema: &Json, place: &Place) {
        let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
        let (least, most) = (bound("minimum"), bound("maximum"));
        let fits = !number.is_nan()
            && least.is_none_or(|least| number >= least)
            && most.is_none_or(|most| number <= most)
            && bound("exclusiveMinimum").is_none_or(|least| number > least);
        if fits {
            return;
        }
        let range = match (least, most) {
            (Some(least), Some(most)) => format!("from {least} to {most}"),
            (Some(least), None) => format!("from {least}"),
            (None, Some(most)) => format!("up to {most}"),
            (None, None) => "that is larger".to_owned(),
        };
        self.problem(place, Some(at), format!("Out of range: expected a number {range}"), None);
    }

    fn array(&mut self, node: &mut Node, schema: &Json, place: &Place) {
        let at = node.at;
        let Value::Array(items) = &mut node.value else { return };
        let least = schema.get("minItems").and_then(Json::as_u64).unwrap_or(0);
        if (items.len() as u64) < least {
            self.problem(place, Some(at), at_least("entry", "entries", least), None);
        }
        if schema.get("uniqueItems").and_then(Json::as_bool) == Some(true) {
            let mut seen: Vec<&str> = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let Some(text) = item.as_str() else { continue };
                if seen.contains(&text) {
                    self.problem(&place.item(index, item.at), Some(item.at), "Listed twice", None);
                }
                seen.push(text);
            }
        }
        if let Some(inner) = schema.get("items") {
            for (index, item) in items.iter_mut().enumerate() {
                let place = place.item(index, item.at);
                self.value(item, inner, &place);
            }
        }
    }

    fn table(&mut self, node: &mut Node, schema: &Json, place: &Place) {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Json::as_object).unwrap_or(&empty);
        let patterns = schema.get("patternProperties").and_then(Json::as_object).unwrap_or(&empty);
        self.secret_files(node, properties, place);
        let Value::Table(entries) = &mut node.value else { return };

        let least = schema.get("minProperties").and_then(Json::as_u64).unwrap_or(0);
        if (entries.len() as u64) < least {
            self.problem(place, place.at, at_least("entry", "entries", least), None);
        }
        for required in schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            if entries.iter().all(|entry| entry.key != required) {
                let hint = properties
                    .get(required)
                    .filter(|property| is_secret(property))
                    .map(|_| format!("set it, or `{}` to read it from a file", file_key(required)));
                self.problem(place, place.at, format!("Missing key `{required}`"), hint);
            }
        }
        for Entry { key, at, node } in entries {
            let place = place.child(key, *at);
            if let Some(property) = properties.get(key.as_str()) {
                self.value(node, property, &place);
            } else if let Some(value) = patterns.get(Name::PATTERN) {
                if let Err(error) = key.parse::<Name>() {
                    self.problem(&place, Some(*at), error.to_string(), None);
                }
                self.value(node, value, &place);
            } else {
                match schema.get("additionalProperties") {
                    Some(Json::Bool(false)) => self.unknown_key(key, properties, &place),
                    Some(additional @ Json::Object(_)) => self.value(node, additional, &place),
                    _ => {}
                }
            }
        }
    }

    fn unknown_key(&mut self, key: &str, properties: &Map<String, Json>, place: &Place) {
        let files: Vec<String> = properties
            .iter()
            .filter(|(_, schema)| is_secret(schema))
            .map(|(name, _)| file_key(name))
            .collect();
        let known = properties.keys().map(String::as_str).chain(files.iter().map(String::as_str));
        match elsewhere(key) {
            Some(hint) => self.problem(place, place.at, "Unknown key", Some(hint.to_owned())),
            None => self.problem(place, place.at, "Unknown key", Some(suggest(key, known))),
        }
    }

    /// Puts the secret in the place of the name of its file.
    fn secret_files(&mut self, node: &mut Node, properties: &Map<String, Json>, place: &Place) {
        let Value::Table(entries) = &mut node.value else { return };
        for (secret, _) in properties.iter().filter(|(_, schema)| is_secret(schema)) {
            let file = file_key(secret);
            if properties.contains_key(&file) {
                continue;
            }
            let Some(position) = entries.iter().position(|entry| entry.key == file) else {
                continue;
            };
            let both = entries.iter().any(|entry| entry.key == *secret);
            // The entry stays in its place, so that the table is not empty nor the key missing
            // because of an error here.
            let Some(entry) = entries.get_mut(position) else { continue };
            let (at, here, written) = (
                entry.node.at,
                place.child(&file, entry.at),
                entry.node.as_str().map(str::to_owned),
            );
            let content = match &entry.node.value {
                Value::String(name) if name.is_empty() => {
                    self.problem(&here, Some(at), "Empty: expected a value", None);
                    Value::Unknown
                }
                Value::String(name) => match read_secret(&self.base.join(name)) {
                    Ok(content) => {
                        self.secrets.push(content.clone());
                        self.note_permissions(&self.base.join(name));
                        Value::String(content)
                    }
                    Err(error) => {
                        self.problem(&here, Some(at), error, None);
                        Value::Unknown
                    }
                },
                Value::Unknown => Value::Unknown,
                _ => {
                    let found = entry.node.clone();
                    self.wrong_type(&found, &["string"], &here);
                    Value::Unknown
                }
            };
            if both {
                let message = format!("Both `{secret}` and `{file}` are set");
                self.problem(&here, here.at, message, Some("remove one of them".to_owned()));
                entries.remove(position);
            } else {
                entry.key.clone_from(secret);
                entry.node = Node { value: content, at, written };
            }
        }
    }

    /// Notes a file of a secret that every user of this machine can read. Under `/run` the
    /// machine's own tools put them, for one container.
    fn note_permissions(&mut self, path: &Path) {
        if is_open(path) && !path.starts_with("/run") && !path.starts_with("/var/run") {
            self.notes.push(format!(
                "Every user of this machine can read `{}`: `chmod o-r` takes that away",
                path.display()
            ));
        }
    }

    /// Notes that every user of this machine can read the secrets in the configuration file itself.
    pub(super) fn note_bare_secrets(&mut self, file: &Path) {
        if !self.bare_secrets.is_empty() && is_open(file) {
            self.notes.push(format!(
                "Every user of this machine can read `{}`, which holds a secret (`{}`): `chmod \
                 o-r` takes that away, and `*_file` keeps the secret elsewhere",
                file.display(),
                self.bare_secrets.join("`, `"),
            ));
        }
    }
}

/// Whether everyone may read the file.
fn is_open(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
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

fn at_least(one: &str, many: &str, least: u64) -> String {
    let noun = if least == 1 { one } else { many };
    format!("Expected at least {least} {noun}")
}

/// The words that a schema allows, when it allows nothing else.
fn words(schema: &Json) -> Option<Vec<&str>> {
    if let Some(word) = schema.get("const") {
        return word.as_str().map(|word| vec![word]);
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

fn is_type(node: &Node, name: &str) -> bool {
    matches!(
        (name, &node.value),
        ("string", Value::String(_))
            | ("integer", Value::Integer(_))
            | ("number", Value::Integer(_) | Value::Float(_))
            | ("boolean", Value::Boolean(_))
            | ("array", Value::Array(_))
            | ("object", Value::Table(_))
    )
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
