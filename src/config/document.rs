//! A TOML document as a tree in which every key and value knows its place.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use std::path::Path;

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub value: Value,
    /// Where it begins, in bytes of the text.
    pub at: usize,
    /// The string as it was written, when environment variables were put into it, or a secret from
    /// a file in its place.
    pub written: Option<String>,
}

/// A value of TOML.
#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// Nothing is configured by a date: only its type matters.
    Datetime,
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// Could not be made out, which has been reported: nothing more is said of it.
    Unknown,
}

/// A key of a table with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    /// Where the key begins, in bytes of the text.
    pub at: usize,
    pub node: Node,
}

impl Node {
    /// The value of a key, where this is a table that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The entries of a table; none when it is not one.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The items of an array; none when it is not one.
    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::Array(items) => items,
            _ => &[],
        }
    }

    /// The text of a string.
    pub(super) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The same value for serde, without places. What could not be made out is null.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::String(text) => text.as_str().into(),
            Value::Integer(number) => (*number).into(),
            Value::Float(number) => (*number).into(),
            Value::Boolean(yes) => (*yes).into(),
            Value::Array(items) => items.iter().map(Self::to_json).collect(),
            Value::Table(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
            Value::Datetime | Value::Unknown => serde_json::Value::Null,
        }
    }
}

/// Reads a document.
///
/// # Errors
/// Every place at which the text is not TOML.
pub(super) fn parse(file: &Path, text: &str) -> Result<Node, Vec<ConfigError>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let mut errors: Vec<_> = errors.iter().collect();
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        return Err(errors
            .into_iter()
            .map(|error| {
                // Only the message: the error's own print repeats the line, which may hold a
                // secret.
                let mut wrong = ConfigError::of_file(
                    file,
                    format!("Not TOML: {}", error.message().trim_end_matches('.')),
                    None,
                );
                if let Some(span) = error.span() {
                    let (line, column) = place(text, span.start);
                    (wrong.line, wrong.column) = (Some(line), Some(column));
                }
                wrong
            })
            .collect());
    }
    let at = root.span().start;
    Ok(Node { value: table(root.into_inner()), at, written: None })
}

/// The line and column, both from 1, of a byte of the text.
pub(super) fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).map_or(0, |line| line.chars().count());
    (before.matches('\n').count() + 1, column + 1)
}

fn table(table: DeTable<'_>) -> Value {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| Entry {
            at: key.span().start,
            key: key.into_inner().into_owned(),
            node: node(value),
        })
        .collect();
    entries.sort_by_key(|entry| entry.at);
    Value::Table(entries)
}

fn node(value: Spanned<DeValue<'_>>) -> Node {
    let at = value.span().start;
    let value = match value.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        // Whether the text is a number of this type is not checked by the parser.
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            // Beyond any setting; as infinity it is refused where it stands, in words.
            Err(_) => Value::Float(f64::INFINITY),
        },
        DeValue::Float(number) => {
            number.as_str().parse().map_or(Value::Float(f64::NAN), Value::Float)
        }
        DeValue::Boolean(yes) => Value::Boolean(yes),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(items) => Value::Array(items.into_iter().map(node).collect()),
        DeValue::Table(inner) => table(inner),
    };
    Node { value, at, written: None }
}
