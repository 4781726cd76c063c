//! The JSON Schema of a configuration file: one source of truth for editors, for the documentation,
//! and for the checks of this room, which walk the same schema.

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::format::{LEAST, MOST, measure};

/// The JSON Schema (draft 2020-12) of a configuration file.
pub fn schema() -> Value {
    let mut schema = base();
    add_files(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), "Holdfast".into());
    }
    schema
}

/// The schema as the types give it, without what TOML cannot say (null), and without the `_file`
/// siblings of secrets.
pub(super) fn base() -> Value {
    of::<super::Instance>()
}

/// The same of the file `daemon.toml`.
pub(super) fn daemon() -> Value {
    of::<super::Daemon>()
}

fn of<T: JsonSchema>() -> Value {
    let mut schema = schemars::schema_for!(T).to_value();
    simplify(&mut schema);
    schema
}

/// The schema that `reference` (`#/$defs/Name`) means.
pub(super) fn definition<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

/// The name of the file that a secret may be read from instead.
pub(super) fn file_key(secret: &str) -> String {
    format!("{secret}_file")
}

/// Whether the value of a property is a secret.
pub(super) fn is_secret(schema: &Value) -> bool {
    schema.get("format").and_then(Value::as_str) == Some("secret")
}

/// Takes null out of everything, and puts the defaults of durations as they are written.
fn simplify(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(options)) = object.get_mut("anyOf") {
                options.retain(|option| option.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = options.as_mut_slice() {
                    let only = std::mem::take(only);
                    object.remove("anyOf");
                    for (key, value) in only {
                        object.entry(key).or_insert(value);
                    }
                }
            }
            if object.get("default").is_some_and(Value::is_null) {
                object.shift_remove("default");
            }
            // Whether it is shown again is nobody's business.
            object.shift_remove("writeOnly");
            if object.get("format").is_some_and(|format| format == "span")
                && let Some(seconds) = object.get("default").and_then(Value::as_f64)
            {
                object.insert("default".to_owned(), format!("{seconds}s").into());
            }
            // A size may be a number too, of bytes, for which JSON Schema has words.
            for (text, number) in [(LEAST, "minimum"), (MOST, "maximum")] {
                if object.get("format").is_some_and(|format| format == "size")
                    && let Some(bytes) =
                        object.get(text).and_then(Value::as_str).and_then(|b| measure("size", b))
                {
                    object.insert(number.to_owned(), bytes.into());
                }
            }
            // The numbers' formats say how they are kept, which is nobody's business.
            let numeric = object
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|format| format.contains("int"));
            if numeric {
                object.remove("format");
            }
            object.values_mut().for_each(simplify);
        }
        _ => {}
    }
}

/// Gives each secret a sibling that names a file to read it from; only one of them may be there.
fn add_files(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(add_files),
        Value::Object(object) => {
            object.values_mut().for_each(add_files);
            let secrets: Vec<String> = match object.get("properties") {
                Some(Value::Object(properties)) => properties
                    .iter()
                    .filter(|(_, schema)| is_secret(schema))
                    .map(|(name, _)| name.clone())
                    .collect(),
                _ => Vec::new(),
            };
            for secret in secrets {
                add_file(object, &secret);
            }
        }
        _ => {}
    }
}

fn add_file(object: &mut Map<String, Value>, secret: &str) {
    let file = file_key(secret);
    let mut conditions = vec![json!({ "not": { "required": [secret, file] } })];
    if let Some(Value::Array(required)) = object.get_mut("required")
        && required.iter().any(|name| name == secret)
    {
        required.retain(|name| name != secret);
        conditions.push(json!({ "anyOf": [{ "required": [secret] }, { "required": [file] }] }));
    }
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        let description = format!(
            "A file to read `{secret}` from, instead of writing it here. A newline at its end is \
             cut off."
        );
        properties
            .entry(file)
            .or_insert_with(|| json!({ "type": "string", "description": description }));
    }
    if let Value::Array(all) = object.entry("allOf").or_insert_with(|| json!([])) {
        all.append(&mut conditions);
    }
}
