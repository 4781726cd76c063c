//! From the text of a file to its typed tables, and to the values that are not in the file: default
//! folders, absolute paths, the storage that a drill reads.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json, json};

use super::check::Check;
use super::error::Wrong;
use super::file::{SourceRules, StorageRules};
use super::{
    ConfigError, ConfigErrors, Daemon, DrillCheck, Hooks, Instance, default_state_dir, schema,
    whole,
};
use crate::model::{Digest, ErrorCode, counted_from};
use crate::pipeline::CompressionConfig;
use crate::report::notify::{Notify, NotifyRules};
use crate::source::SourceConfig;
use crate::source::postgres::ScratchServer;
use crate::source::process::Environment;
use crate::storage::StorageConfig;

pub(super) fn instance(
    file: &Path,
    text: &str,
    environment: &Environment,
) -> Result<Instance, ConfigErrors> {
    let absolute = std::path::absolute(file).map_err(|error| {
        let message = format!("Could not make out its folder: {error}");
        ConfigError::of_file(file, ErrorCode::ConfigUnreadable, message, None)
    })?;
    let base = absolute.parent().unwrap_or(&absolute);
    // Without links, as `counted_from` wants it.
    let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    let schema = schema::base();
    let (mut check, mut tree) = Check::new(file, text, &base, &schema, environment)?;
    arrange(&mut tree);
    parts(&mut check, &mut tree);
    let mut read = serde_json::from_value::<Instance>(tree);
    if let Ok(instance) = &mut read {
        check.note_bare_secrets(&absolute);
        let secrets = Digest::of(check.secrets.join("\0").as_bytes());
        instance.digests = Some((Digest::of(text.as_bytes()), secrets));
        instance.file = file.to_owned();
        instance.written = std::mem::take(&mut check.written);
        instance.notes = std::mem::take(&mut check.notes);
        instance.resolve(&base, environment);
        whole::check(&mut check, instance);
    }
    check.finish(read)
}

/// Reads the file `daemon.toml` of a folder.
pub(super) fn daemon(
    file: &Path,
    text: &str,
    environment: &Environment,
) -> Result<Daemon, ConfigErrors> {
    let schema = schema::daemon();
    let base = file.parent().unwrap_or(file);
    let (check, tree) = Check::new(file, text, base, &schema, environment)?;
    check.finish(serde_json::from_value(tree))
}

/// Brings the tables of the file into the form of the types: a table that is of two types is
/// divided, a strategy has its name in it, and a drill the storage that it reads.
fn arrange(tree: &mut Json) {
    let Json::Object(root) = tree else { return };
    let besides: [(&str, &str, &[&str]); 3] = [
        ("sources", "source_hooks", &Hooks::KEYS),
        ("sources", "source_rules", &SourceRules::KEYS),
        ("storages", "storage_rules", &StorageRules::KEYS),
    ];
    for (table, beside, keys) in besides {
        let own: Map<String, Json> =
            each(root, table).map(|(name, table)| (name.clone(), take(table, keys))).collect();
        root.insert(beside.to_owned(), own.into());
    }
    for (_, notify) in each(root, "notify") {
        let rules = take(notify, &NotifyRules::KEYS);
        *notify = json!({ "config": notify.take(), "rules": rules });
    }
    let elsewhere: Vec<String> = each(root, "storages")
        .filter(|(_, storage)| storage.get("type").is_some_and(|kind| kind != "local"))
        .map(|(name, _)| name.clone())
        .collect();
    for (name, strategy) in each(root, "strategies") {
        let Json::Object(strategy) = strategy else { continue };
        let storages = strategy.get("storages").and_then(Json::as_array);
        let storages: Vec<&str> = storages.into_iter().flatten().filter_map(Json::as_str).collect();
        let is_elsewhere = |storage: &&&str| elsewhere.iter().any(|name| name == **storage);
        let chosen = storages.iter().find(is_elsewhere).or(storages.first());
        // A strategy without a storage is a mistake, which is reported.
        let chosen = Json::from(*chosen.unwrap_or(&name.as_str()));
        let drill = strategy.entry("drill").or_insert_with(|| json!({ "configured": false }));
        if let Json::Object(drill) = drill {
            let reads = drill.get("storage").cloned().unwrap_or(chosen);
            drill.insert("reads".to_owned(), reads);
        }
        strategy.insert("name".to_owned(), name.as_str().into());
    }
}

/// The entries of a table of the document.
fn each<'t>(
    root: &'t mut Map<String, Json>,
    table: &str,
) -> impl Iterator<Item = (&'t String, &'t mut Json)> {
    root.get_mut(table).and_then(Json::as_object_mut).into_iter().flatten()
}

/// Takes keys out of a table.
fn take(table: &mut Json, keys: &[&str]) -> Json {
    let Json::Object(table) = table else { return Map::new().into() };
    let taken: Map<String, Json> =
        keys.iter().filter_map(|key| table.shift_remove_entry(*key)).collect();
    taken.into()
}

/// Reads the parts that belong to other rooms, and lets those rooms look at them.
fn parts(check: &mut Check<'_>, tree: &mut Json) {
    fn whole<E: ToString>(validated: Result<(), E>) -> Vec<(&'static str, Wrong)> {
        validated.err().map(|error| ("", Wrong::value(error.to_string()))).into_iter().collect()
    }
    for place in children(tree, "/sources") {
        check.part(tree, &place, |source: &SourceConfig| whole(source.validate()));
    }
    for place in children(tree, "/storages") {
        check.part(tree, &place, |storage: &StorageConfig| whole(storage.validate()));
    }
    for place in children(tree, "/notify") {
        check.part(tree, &place, |notify: &Notify| {
            let wrong = notify.config.unusable().into_iter();
            wrong
                .map(|wrong| (wrong.key, Wrong { hint: wrong.hint, ..Wrong::value(wrong.message) }))
                .collect()
        });
    }
    for strategy in children(tree, "/strategies") {
        let drill = format!("{strategy}/drill");
        check.part(tree, &format!("{drill}/postgres"), |server: &ScratchServer| {
            whole(server.validate())
        });
        for place in children(tree, &format!("{drill}/checks")) {
            check.part(tree, &place, DrillCheck::unusable);
        }
    }
    check.part(tree, "/compression", |_: &CompressionConfig| Vec::new());
    check.prune(tree, "");
}

/// The pointers of what is in a table or an array.
fn children(tree: &Json, pointer: &str) -> Vec<String> {
    let child = |name: String| super::document::child(pointer, &name);
    match tree.pointer(pointer) {
        Some(Json::Object(entries)) => entries.keys().cloned().map(child).collect(),
        Some(Json::Array(items)) => (0..items.len()).map(|at| child(at.to_string())).collect(),
        _ => Vec::new(),
    }
}

impl Instance {
    /// Makes paths absolute, counted from `base`, and puts in what the file leaves out.
    fn resolve(&mut self, base: &Path, environment: &Environment) {
        let is_set = |path: &Path| !path.as_os_str().is_empty();
        self.state_dir = if is_set(&self.state_dir) {
            counted_from(base, &self.state_dir)
        } else {
            default_state_dir(environment)
        };
        if is_set(&self.work_dir) {
            self.work_dir = counted_from(base, &self.work_dir);
        } else {
            self.work_dir = self.state_dir.join("work");
            if let Some(written) = self.written.get("/state_dir").cloned() {
                self.written.insert("/work_dir".to_owned(), format!("{written}/work"));
            }
        }
        self.sources.values_mut().for_each(|source| source.resolve(base));
        self.storages.values_mut().for_each(|storage| storage.resolve(base));
        for (name, strategy) in &mut self.strategies {
            let drill = &mut strategy.drill;
            let verify = strategy.verify.as_mut().map(|verify| &mut verify.schedule);
            let schedules = [strategy.schedule.as_mut(), verify, drill.schedule.as_mut()];
            for schedule in schedules.into_iter().flatten() {
                schedule.timezone = strategy.timezone;
            }
            // Shown as they were written.
            let mut absolute = |path: Option<&mut PathBuf>, key: &str| {
                let Some(path) = path else { return };
                let written = format!("/strategies/{name}/drill/{key}");
                self.written.entry(written).or_insert_with(|| path.display().to_string());
                *path = counted_from(base, path);
            };
            absolute(drill.identity_file.as_mut(), "identity_file");
            absolute(drill.work_dir.as_mut(), "work_dir");
            absolute(drill.postgres.server_dir.as_mut(), "postgres/server_dir");
        }
    }
}
