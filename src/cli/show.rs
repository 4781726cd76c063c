//! `backup show`.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use super::output::{
    BOLD, Cell, DIM, Printer, Table, WARN, age, or_dash, remarks_text, seconds, time,
};
use super::setup::{IdentityArgs, Setup, StorageArgs};
use super::{Exit, files};
use crate::archive::Pattern;
use crate::engine::{self, OpenStorage, Side, Snapshot};
use crate::model::{Artifact, ByteSize, Completeness, Facts, Manifest, Name};

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// An id, the beginning or end of one, or `latest`
    snapshot: String,
    /// Of this strategy
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// List the files of its folders: all, or what a pattern like those of `exclude` matches; may
    /// be repeated
    #[arg(long, value_name = "GLOB", num_args = 0..=1, default_missing_value = "**",
        value_parser = Pattern::new)]
    files: Option<Vec<Pattern>>,
    /// Print a script for bash that restores it without this program, with ordinary tools
    #[arg(long, conflicts_with = "files")]
    script: bool,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    identities: IdentityArgs,
}

#[derive(Serialize)]
struct Document<'a> {
    storages: Vec<Name>,
    manifest: &'a Manifest,
    /// None when they are encrypted and no identity was given.
    facts: Option<&'a Facts>,
    /// The ordinary commands that restore each artifact.
    commands: Vec<ByHand>,
    /// The same as one script, which also holds every object against its digest.
    script: String,
}

#[derive(Serialize)]
struct ByHand {
    artifact: String,
    command: String,
}

pub(super) async fn run(setup: &Setup, args: ShowArgs, printer: &Printer) -> anyhow::Result<Exit> {
    let identities = args.identities.load()?;
    let reading = setup.showing(&args.storage, args.strategy.as_deref()).await?;
    let listing = reading.list().await;
    let copies = engine::find(&listing, &args.snapshot, None)?;
    let side = reading.readable(&listing, &args.snapshot)?;
    if let Some(patterns) = &args.files {
        // The pattern that stands for none matches everything, and so would it together with
        // others.
        return files::run(reading, &side, &identities, patterns, printer).await;
    }
    let Side { storage, snapshot } = &side;
    let Ok(manifest) = &snapshot.manifest else { return Ok(Exit::Damaged) };
    let facts = engine::read_facts(&reading.engine, storage, manifest, &identities).await?;
    let commands = by_hand(storage, snapshot, manifest, facts.as_ref());
    let place = format!("{}/{}", storage.storage.address(), snapshot.folder());
    let script = engine::script(&place, manifest, facts.as_ref());
    let storages = copies.iter().map(|copy| copy.storage.clone()).collect();
    let now = reading.engine.clock.now();
    let manifest = manifest.clone();
    drop(reading);
    if args.script {
        printer.text(&script);
    } else if printer.is_json() {
        printer.document(&Document {
            storages,
            manifest: &manifest,
            facts: facts.as_ref(),
            commands,
            script,
        });
    } else {
        let mut text = header(&manifest, &storages, now);
        text.push_str(&artifacts(&manifest, facts.as_ref()));
        text.push_str(&facts_text(facts.as_ref()));
        let _ = writeln!(
            text,
            "\n  {BOLD}Without this program{BOLD:#}  {DIM}`backup show {} --script` prints what \
             restores it with ordinary tools; keep it where the backups are{DIM:#}",
            manifest.id
        );
        printer.text(&text);
    }
    Ok(Exit::Done)
}

fn header(manifest: &Manifest, storages: &[Name], now: chrono::DateTime<chrono::Utc>) -> String {
    let mut text =
        format!("{BOLD}{}/{} {}{BOLD:#}\n", manifest.instance, manifest.strategy, manifest.id);
    let storages: Vec<&str> = storages.iter().map(Name::as_str).collect();
    let completeness = match manifest.completeness {
        Completeness::Whole => "whole".to_owned(),
        Completeness::Partial => format!("{WARN}partial: content is missing{WARN:#}"),
    };
    let took = (manifest.finished - manifest.started).num_seconds();
    let lines = [
        (
            "taken",
            format!(
                "{} ({}), in {}",
                time(manifest.started),
                age(manifest.started, now),
                seconds(took as f64)
            ),
        ),
        ("state", completeness),
        ("stored", format!("{} in {}", ByteSize(manifest.stored_bytes()), storages.join(", "))),
        ("encrypted", if manifest.is_encrypted() { "yes, with age" } else { "no" }.to_owned()),
        (
            "written by",
            format!(
                "{} {}, format {}",
                manifest.program.name, manifest.program.version, manifest.format
            ),
        ),
    ];
    for (name, value) in lines {
        let _ = writeln!(text, "  {DIM}{name:10}{DIM:#}  {value}");
    }
    text
}

fn artifacts(manifest: &Manifest, facts: Option<&Facts>) -> String {
    let of_any =
        facts.is_some_and(|facts| facts.artifacts.iter().any(|artifact| artifact.of.is_some()));
    let columns: &[&str] = if of_any {
        &["ARTIFACT", "DATABASE", ">PLAIN", ">STORED", "OBJECTS"]
    } else {
        &["ARTIFACT", ">PLAIN", ">STORED", "OBJECTS"]
    };
    let mut table = Table::new(columns).indented(2);
    for artifact in &manifest.artifacts {
        let plain = facts.and_then(|facts| facts.artifact(&artifact.name));
        let of = of_any.then(|| or_dash(plain.and_then(|plain| plain.of.as_ref())).into());
        let keys: Vec<&str> = artifact.objects.iter().map(|object| object.key.as_str()).collect();
        let mut row: Vec<Cell> = vec![artifact.name.as_str().into()];
        row.extend(of);
        row.extend([
            or_dash(plain.map(|plain| ByteSize(plain.plain_bytes))).into(),
            ByteSize(artifact.stored_bytes()).to_string().into(),
            keys.join(" ").into(),
        ]);
        table.row(row);
    }
    format!("\n{}", table.render())
}

fn facts_text(facts: Option<&Facts>) -> String {
    let Some(facts) = facts else {
        return format!("\n  {DIM}The facts are encrypted: `--identity-file` opens them.{DIM:#}\n");
    };
    let mut text = String::new();
    for source in &facts.sources {
        let _ = writeln!(
            text,
            "\n  {BOLD}{}{BOLD:#}  {DIM}consistency {}, taken in {}{DIM:#}",
            source.name,
            source.consistency,
            seconds(source.seconds)
        );
        text.push_str(&object_text(&source.facts));
        for artifact in facts.artifacts_of(&source.name) {
            let Some(object) = &artifact.facts else { continue };
            let of = artifact.of.as_ref().map(|of| format!("  {of}")).unwrap_or_default();
            let _ = writeln!(text, "\n  {BOLD}{}{BOLD:#}{of}", artifact.name);
            text.push_str(&object_text(object));
        }
    }
    let remarks = remarks_text(&facts.remarks, usize::MAX, "");
    if !remarks.is_empty() {
        text.push('\n');
        text.push_str(&remarks);
    }
    text
}

/// What was reported about a source or an artifact.
fn object_text(object: &serde_json::Value) -> String {
    let Some(fields) = object.as_object() else { return String::new() };
    let mut tables = Table::new(&["TABLE", ">ROWS"]).indented(4);
    let mut lines = Table::new(&["", ""]).indented(4);
    for (name, value) in fields {
        match value {
            serde_json::Value::Array(rows) if name == "tables" => {
                for row in rows {
                    let schema = row.get("schema").and_then(serde_json::Value::as_str);
                    let table =
                        row.get("name").and_then(serde_json::Value::as_str).unwrap_or_default();
                    let full = schema
                        .map_or_else(|| table.to_owned(), |schema| format!("{schema}.{table}"));
                    let rows = row.get("rows").filter(|rows| !rows.is_null());
                    tables.row(vec![full.into(), or_dash(rows).into()]);
                }
            }
            // The version of the object, what there is none of, and what is told above.
            serde_json::Value::Array(none) if none.is_empty() => {}
            _ if name == "v" || name == "seconds" || value.is_null() => {}
            value => {
                lines
                    .row(vec![Cell::styled(name.replace('_', " "), DIM), fact(name, value).into()]);
            }
        }
    }
    let mut text = String::new();
    text.push_str(lines.render().split_once('\n').map(|(_, lines)| lines).unwrap_or_default());
    if !tables.is_empty() {
        text.push_str(&tables.render());
    }
    text
}

fn fact(name: &str, value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Number(number)
            if name == "bytes" || name.ends_with("_bytes") || name == "page_size" =>
        {
            number.as_u64().map_or_else(|| number.to_string(), |bytes| ByteSize(bytes).to_string())
        }
        serde_json::Value::Array(items) => {
            items.iter().map(|item| fact(name, item)).collect::<Vec<_>>().join(", ")
        }
        // `{name, version}` of an extension.
        serde_json::Value::Object(fields) if fields.contains_key("name") => {
            // The value of a setting may be a secret.
            let fields = fields.iter().filter(|(key, value)| *key != "value" && !value.is_null());
            fields.map(|(_, value)| fact(name, value)).collect::<Vec<_>>().join(" ")
        }
        serde_json::Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| value.as_u64() != Some(0));
            fields
                .map(|(key, value)| format!("{} {}", key.replace('_', " "), fact(key, value)))
                .collect::<Vec<_>>()
                .join(", ")
        }
        other => other.to_string(),
    }
}

/// The commands that get each artifact back from `storage` without this program. `$KEY`,
/// `$DATABASE` and `$DIR` stand for what only the operator knows.
fn by_hand(
    storage: &OpenStorage,
    snapshot: &Snapshot,
    manifest: &Manifest,
    facts: Option<&Facts>,
) -> Vec<ByHand> {
    let address = storage.storage.address();
    let folder = snapshot.folder();
    let fetch = |artifact: &Artifact| {
        let keys: Vec<String> = artifact
            .objects
            .iter()
            .map(|object| engine::shell_quoted(&format!("{address}/{folder}{}", object.key)))
            .collect();
        if address.starts_with("s3://") {
            let copies: Vec<String> = keys.iter().map(|key| format!("aws s3 cp {key} -")).collect();
            if let [single] = copies.as_slice() {
                single.clone()
            } else {
                format!("({})", copies.join("; "))
            }
        } else {
            format!("cat {}", keys.join(" "))
        }
    };
    manifest
        .artifacts
        .iter()
        .flat_map(|artifact| {
            let commands = engine::by_hand(&snapshot.id, artifact, facts, &fetch(artifact));
            let artifact = &artifact.name;
            commands.into_iter().map(|command| ByHand { artifact: artifact.clone(), command })
        })
        .collect()
}
