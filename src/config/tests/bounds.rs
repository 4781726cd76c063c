//! Every number, size and length of time of the schema has bounds, and these hold.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::{SMALL, env, good};
use crate::config::format::{LEAST, MOST, measure};
use crate::config::{ConfigError, parse, schema};
use crate::model::ErrorCode;

/// A quantity of the schema.
struct Quantity {
    /// The table that it stands in: a definition, with its `type` where it has several.
    table: String,
    key: String,
    schema: Value,
}

/// Collects the quantities below `schema`, which is a part of `table`.
fn collect(schema: &Value, table: &str, all: &mut Vec<Quantity>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (key, property) in properties.into_iter().flatten() {
        let has = |name: &str, words: &[&str]| {
            let value = property.get(name).cloned().unwrap_or_default();
            let of = |value: &Value| value.as_str().is_some_and(|text| words.contains(&text));
            of(&value) || value.as_array().is_some_and(|types| types.iter().any(of))
        };
        if has("type", &["integer", "number"])
            || has("format", &["span", "size", "rate", "count", "period"])
        {
            let (table, key) = (table.to_owned(), key.clone());
            all.push(Quantity { table, key, schema: property.clone() });
        }
        // Nothing is nested but by a definition.
        assert!(property.get("properties").is_none(), "{table}.{key}");
    }
    for option in schema.get("oneOf").and_then(Value::as_array).into_iter().flatten() {
        if let Some(kind) = option.pointer("/properties/type/const").and_then(Value::as_str) {
            collect(option, &format!("{table}/{kind}"), all);
        }
    }
}

fn quantities() -> Vec<Quantity> {
    let schema = schema();
    let mut all = Vec::new();
    collect(&schema, "File", &mut all);
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        collect(definition, name, &mut all);
    }
    assert!(all.len() > 50, "{}", all.len());
    all
}

/// A configuration that is right, but for `line` in a table of the schema.
fn file(table: &str, line: &str) -> String {
    let add = |table: &str, text: &str| SMALL.replace(table, &format!("{table}\n{text}"));
    let strategy = |text: &str| add("[strategies.daily]", text);
    let source = |kind: &str, keys: &str| {
        format!("{SMALL}[sources.other]\ntype = \"{kind}\"\n{keys}\n{line}\n")
    };
    let drill = |keys: &str| {
        let drill = "[strategies.daily.drill]\nschedule = \"30 1 * * 0\"\n";
        format!("{SMALL}{drill}{keys}\n{line}\n")
    };
    let check = |kind: &str, keys: &str| {
        let sources = "[sources.db]\ntype = \"sqlite\"\npath = \"/x\"\n";
        let file = SMALL.replace("[\"files\"]", "[\"db\", \"files\"]");
        format!(
            "{file}{sources}[[strategies.daily.drill.checks]]\ntype = \"{kind}\"\n{keys}\n{line}\n"
        )
    };
    let notify = |kind: &str, keys: &str| {
        format!("{SMALL}[notify.somebody]\ntype = \"{kind}\"\n{keys}\n{line}\n")
    };
    match table {
        "File" => format!("{line}\n{SMALL}"),
        "Source/postgres" => source("postgres", "url = \"postgresql://u@h/d\""),
        "Source/sqlite" => source("sqlite", "path = \"/x\""),
        "Source/directory" => source("directory", "path = \"/x\""),
        "Source/command" => source("command", "command = [\"x\"]"),
        "Storage/local" => add("path = \"../backups\"", line),
        "Storage/s3" => format!("{SMALL}[storages.s]\ntype = \"s3\"\nbucket = \"b\"\n{line}\n"),
        "Policy" => strategy(&format!("retention = {{ {line} }}")),
        "CompressionConfig" => format!("compression = {{ {line} }}\n{SMALL}"),
        "StrategyTable" => strategy(line),
        "Retry" => strategy(&format!("retry = {{ {line} }}")),
        "VerifyTable" => strategy(&format!("verify = {{ schedule = \"1 1 * * *\", {line} }}")),
        "DrillTable" => drill(""),
        "DrillCheck/query" if line.starts_with("timeout") => {
            check("query", "source = \"db\"\nquery = \"SELECT 1\"\nexpect = 1")
        }
        "DrillCheck/query" => check("query", "source = \"db\"\nquery = \"SELECT 1\""),
        "DrillCheck/references" => {
            check("references", "source = \"db\"\nquery = \"SELECT 1\"\nfiles = \"files\"")
        }
        "DrillCheck/file" => check("file", "source = \"files\"\npath = \"a\""),
        "DrillCheck/command" => check("command", "command = [\"x\"]"),
        "DrillCheck/shrink" => check("shrink", ""),
        "Notify/mail" => notify("mail", "server = \"h\"\nfrom = \"a@b.org\"\nto = [\"a@b.org\"]"),
        other => panic!("say here how `{other}` is written"),
    }
}

/// Values around the bounds of a quantity, as they are written, and whether each is accepted.
fn around(quantity: &Quantity) -> Vec<(String, bool)> {
    let Quantity { table, key, schema } = quantity;
    let at = format!("{table}: {key}");
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    if let Some((least, most)) = text(LEAST).zip(text(MOST)) {
        let amount = |text: &str| measure(format, text).unwrap_or_else(|| panic!("{at}: {text}"));
        let (from, to) = (amount(least), amount(most));
        assert!(from < to, "{at}");
        let write = |amount: u64| match format {
            "span" => format!("{amount}s"),
            "size" => format!("{amount}B"),
            "rate" => format!("{amount}B/s"),
            // No unit has more than 100,000.
            "period" => format!("{}d{}h", amount / 24, amount % 24),
            other => panic!("{at}: {other}"),
        };
        // Below nothing is nothing, which no form of these has.
        let below = from.checked_sub(1).map_or("-1".to_owned(), write);
        let all = [(below, false), (write(from), true), (write(to), true), (write(to + 1), false)];
        let quoted = all.map(|(text, fits)| (format!("\"{text}\""), fits));
        return quoted.into_iter().collect();
    }
    let number = |key: &str| {
        let bound = schema.get(key).unwrap_or_else(|| panic!("{at} has no `{key}`"));
        bound.as_f64().unwrap_or_else(|| panic!("{at}: {bound}"))
    };
    let (least, most) = (number("minimum"), number("maximum"));
    let is_whole = schema["type"].to_string().contains("integer");
    let write =
        |number: f64| if is_whole { format!("{number:.0}") } else { format!("{number:.1}") };
    vec![
        (write(least - 1.0), false),
        (write(least), true),
        (write(most), true),
        (write(most + 1.0), false),
    ]
}

#[test]
fn every_quantity_holds_its_bounds() {
    let parsed = |text: &str| match parse(Path::new("/etc/backup/a.toml"), text, &env(&[])) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0,
    };
    let mut seen = BTreeSet::new();
    for quantity in quantities() {
        let Quantity { table, key, schema } = &quantity;
        assert!(seen.insert((table.clone(), key.clone())));
        // Whole numbers of TOML, beyond which it is no TOML, and numbers with a fraction.
        if key == "expect" {
            for (value, fits) in [
                (i64::MIN.to_string(), true),
                (i64::MAX.to_string(), true),
                ("inf".to_owned(), false),
                ("-inf".to_owned(), false),
                ("nan".to_owned(), false),
                ("1e400".to_owned(), false),
                ("9223372036854775808".to_owned(), false),
            ] {
                let errors = parsed(&file(table, &format!("{key} = {value}")));
                assert_eq!(errors.is_empty(), fits, "{key} = {value}: {errors:?}");
            }
            continue;
        }
        for (value, fits) in around(&quantity) {
            let errors = parsed(&file(table, &format!("{key} = {value}")));
            let is_told =
                |error: &ConfigError| error.key.ends_with(&format!(".{key}")) || error.key == *key;
            let told = errors.iter().any(|error| {
                is_told(error)
                    && error.line.is_some()
                    && error.code == ErrorCode::ConfigInvalidValue
            });
            assert!(
                if fits { errors.is_empty() } else { told && errors.len() == 1 },
                "{table}: {key} = {value} {}: {errors:?}\n{schema}",
                if fits { "is in bounds" } else { "is not" }
            );
        }
    }
}

#[test]
fn nonsense_is_refused_at_its_key() {
    let command = "[sources.c]\ntype = \"command\"\n";
    let check = "[[strategies.daily.drill.checks]]\n";
    let s3 = "[storages.s]\ntype = \"s3\"\nbucket = \"b\"\n";
    let cases = [
        ("strategies.daily.before", file("StrategyTable", "before = [\"\"]")),
        ("strategies.daily.after", file("StrategyTable", "after = [\" \", \"x\"]")),
        ("strategies.daily.on_failure", file("StrategyTable", "on_failure = [\"\"]")),
        ("sources.other.before", file("Source/sqlite", "before = [\"\"]")),
        ("sources.c.command", format!("{SMALL}{command}command = [\"\"]\n")),
        (
            "sources.c.restore_command",
            format!("{SMALL}{command}command = [\"x\"]\nrestore_command = [\"\"]\n"),
        ),
        (
            "strategies.daily.drill.checks[0].command",
            format!("{SMALL}{check}type = \"command\"\ncommand = [\"\"]\n"),
        ),
        (
            "storages.s.part_size",
            format!("{SMALL}{s3}part_size = \"1GiB\"\nupload_concurrency = 64\n"),
        ),
        ("strategies.daily.drill.max_bytes", file("DrillTable", "max_bytes = \"0\"")),
        ("strategies.daily.drill.max_bytes", file("DrillTable", "max_bytes = 0")),
        (
            "strategies.daily.drill.checks[0].of",
            format!("{SMALL}{check}type = \"shrink\"\npercent = 1\nof = []\n"),
        ),
        (
            "strategies.daily.drill.checks[0].tables",
            format!("{SMALL}{check}type = \"shrink\"\npercent = 1\ntables = []\n"),
        ),
        ("strategies.daily.drill.checks[0].expect", file("DrillCheck/query", "expect = inf")),
        ("sources.files.path", SMALL.replace("\"data\"", "\"da\\u0000ta\"")),
        ("storages.here.path", SMALL.replace("../backups", "/\\u0000")),
        ("state_dir", file("File", "state_dir = \"/\"")),
        ("state_dir", file("File", "state_dir = \"/var/../\"")),
        ("state_dir", file("File", "state_dir = \"/proc/self/fd\"")),
        ("work_dir", file("File", "work_dir = \"/dev/null\"")),
        ("strategies.daily.drill.work_dir", file("DrillTable", "work_dir = \"/sys\"")),
        ("storages.here.path", SMALL.replace("../backups", "/")),
        (
            "strategies.daily.retention.keep_within",
            file("StrategyTable", "retention = { keep_within = \"99999y\" }"),
        ),
        ("storages.s.retain_for", file("Storage/s3", "retain_for = \"1s\"")),
        ("strategies.daily.drill.rpo", file("DrillTable", "rpo = \"1s\"")),
        ("upload_rate", file("File", "upload_rate = \"1B\"")),
    ];
    for (key, text) in cases {
        let errors = parse(Path::new("/etc/backup/a.toml"), &text, &env(&[])).err();
        let errors = errors.unwrap_or_else(|| panic!("{key} is accepted")).0;
        let told = errors.iter().any(|error| error.key == key && error.line.is_some());
        assert!(told && errors.len() == 1, "{key}: {errors:?}");
    }
}

#[test]
fn an_unknown_storage_class_is_a_warning() {
    let advice = |class: &str| {
        let text = file("Storage/s3", &format!("storage_class = \"{class}\""));
        let text = text.replace("storages = [\"here\"]", "storages = [\"here\", \"s\"]");
        let instance = good("/etc/backup/a.toml", &text, &[]);
        let advice = instance.advice(instance.find_strategy("daily").unwrap());
        advice.into_iter().filter(|sentence| sentence.contains("storage_class")).count()
    };
    assert_eq!((advice("NONSENSE"), advice("STANDARD_IA"), advice("GLACIER_IR")), (1, 0, 0));
}
