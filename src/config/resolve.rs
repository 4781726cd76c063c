//! From a checked document to an instance; and the checks that need more than one value.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::check::{Check, Place, Problem};
use super::document::{self, Node, Value};
use super::drill::{Drill, DrillTable};
use super::error::suggest;
use super::file::{DaemonFile, File, NotifyTable, SourceTable, StorageTable};
use super::{
    ConfigError, ConfigErrors, Encryption, Hooks, Instance, Strategy, Verification,
    default_state_dir, on_schedule, schema,
};
use crate::model::{Name, Span};
use crate::pipeline::{CompressionConfig, Recipient};
use crate::retention::{Policy, Rule};
use crate::schedule::{Schedule, timezone};
use crate::source::postgres::ScratchServer;
use crate::source::process::Environment;
use crate::storage::StorageConfig;

/// Threads that compress, unless set.
const MOST_THREADS: usize = 4;

pub(super) fn instance(
    file: &Path,
    text: &str,
    environment: &Environment,
) -> Result<Instance, ConfigErrors> {
    let absolute = std::path::absolute(file).map_err(|error| {
        ConfigError::of_file(file, format!("Could not make out its folder: {error}"), None)
    })?;
    let base = absolute.parent().unwrap_or(&absolute);
    // Without links, as `counted_from` wants it.
    let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    let mut document = document::parse(file, text).map_err(ConfigErrors)?;
    let root = schema::base();
    let mut check = Check::new(&root, environment, &base);
    check.document(&mut document);
    references(&mut check, &document);
    durations(&mut check, &document);
    retentions(&mut check, &document);
    without_sources(&mut check, &document);
    jitters(&mut check, &document);
    one_place_each(&mut check, &document, &base);
    rules_on_schedule(&mut check, &document);
    drills(&mut check, &document);
    notifiers(&mut check, &document);
    let compression = sections(&mut check, &document);
    if check.problems.is_empty() {
        check.note_bare_secrets(&absolute);
        if let Some(written) =
            check.written.get("/state_dir").filter(|_| document.get("work_dir").is_none())
        {
            let written = format!("{written}/work");
            check.written.insert("/work_dir".to_owned(), written);
        }
        match serde_json::from_value::<File>(document.to_json()) {
            Ok(read) => match build(read, &absolute, &base, environment, compression) {
                Ok(mut instance) => {
                    instance.file = file.to_owned();
                    instance.written = check.written;
                    instance.notes = check.notes;
                    return Ok(instance);
                }
                Err(message) => check.problem(&Place::default(), None, message, None),
            },
            Err(error) => check.problem(&Place::default(), None, error.to_string(), None),
        }
    }
    let mut problems = check.problems;
    problems.sort_by_key(|problem| problem.at);
    Err(ConfigErrors(problems.into_iter().map(|problem| located(file, text, problem)).collect()))
}

/// Reads the file `daemon.toml` of a folder.
pub(super) fn daemon(
    file: &Path,
    text: &str,
    environment: &Environment,
) -> Result<DaemonFile, ConfigErrors> {
    let mut document = document::parse(file, text).map_err(ConfigErrors)?;
    let root = schema::daemon();
    let mut check = Check::new(&root, environment, file.parent().unwrap_or(file));
    check.document(&mut document);
    if check.problems.is_empty() {
        match serde_json::from_value::<DaemonFile>(document.to_json()) {
            Ok(read) => return Ok(read),
            Err(error) => check.problem(&Place::default(), None, error.to_string(), None),
        }
    }
    Err(ConfigErrors(
        check.problems.into_iter().map(|problem| located(file, text, problem)).collect(),
    ))
}

fn located(file: &Path, text: &str, problem: Problem) -> ConfigError {
    let place = problem.at.map(|at| document::place(text, at));
    ConfigError {
        file: file.to_owned(),
        line: place.map(|(line, _)| line),
        column: place.map(|(_, column)| column),
        key: problem.key,
        message: problem.message,
        hint: problem.hint,
    }
}

/// Each value of a table of the document, with its place.
fn each<'a>(document: &'a Node, table: &str) -> Vec<(Place, &'a Node)> {
    let Some(entry) = document.entries().iter().find(|entry| entry.key == table) else {
        return Vec::new();
    };
    let place = Place::default().child(table, entry.at);
    entry
        .node
        .entries()
        .iter()
        .map(|entry| (place.child(&entry.key, entry.at), &entry.node))
        .collect()
}

/// The value of a key of a table, with its place.
fn field<'a>(place: &Place, node: &'a Node, key: &str) -> Option<(Place, &'a Node)> {
    node.entries()
        .iter()
        .find(|entry| entry.key == key)
        .map(|entry| (place.child(key, entry.at), &entry.node))
}

/// What a strategy or a notifier names must be there.
fn references(check: &mut Check<'_>, document: &Node) {
    for (owner, table, what) in [
        ("strategies", "sources", "source"),
        ("strategies", "storages", "storage"),
        ("notify", "strategies", "strategy"),
    ] {
        for (place, node) in each(document, owner) {
            let Some((place, list)) = field(&place, node, table) else { continue };
            let known = names(document, table);
            for (index, item) in list.items().iter().enumerate() {
                if let Some(name) = item.as_str().filter(|name| !known.contains(name)) {
                    let hint = suggest(name, known.iter().copied());
                    check.problem(
                        &place.item(index, item.at),
                        Some(item.at),
                        format!("There is no {what} `{name}`"),
                        Some(hint),
                    );
                }
            }
        }
    }
}

/// What a notifier's room finds wrong, each at its key. Tables that the walk found wrong are passed
/// over.
fn notifiers(check: &mut Check<'_>, document: &Node) {
    for (place, node) in each(document, "notify") {
        let Some(NotifyTable(notify)) =
            section(check, &place, node, |_: &NotifyTable| Ok::<(), String>(()))
        else {
            continue;
        };
        for wrong in notify.config.unusable() {
            let (at, place) = match field(&place, node, wrong.key) {
                Some((place, value)) => (Some(value.at), place),
                None => (place.at, place.clone()),
            };
            check.problem(&place, at, wrong.message, wrong.hint);
        }
    }
}

/// The values of a list in a table, each with its place.
fn items<'a>(place: &Place, node: &'a Node, key: &str) -> Vec<(Place, &'a Node)> {
    let Some((place, list)) = field(place, node, key) else { return Vec::new() };
    list.items()
        .iter()
        .enumerate()
        .map(|(index, item)| (place.item(index, item.at), item))
        .collect()
}

/// What a drill names must be there, and each of its checks must be able to fail.
fn drills(check: &mut Check<'_>, document: &Node) {
    for (place, strategy) in each(document, "strategies") {
        let Some((place, drill)) = field(&place, strategy, "drill") else { continue };
        let storages: Vec<&str> = names(document, "storages");
        if let Some((place, node)) = field(&place, drill, "storage")
            && let Some(name) = node.as_str().filter(|name| !storages.contains(name))
        {
            let hint = suggest(name, storages.iter().copied());
            check.problem(
                &place,
                Some(node.at),
                format!("There is no storage `{name}`"),
                Some(hint),
            );
        }
        if let Some((place, node)) = field(&place, drill, "postgres") {
            section(check, &place, node, ScratchServer::validate);
        }
        // Where nothing is backed up, the sources are those of another configuration.
        let sources: Option<Vec<&str>> = strategy
            .get("sources")
            .map(|list| list.items().iter().filter_map(Node::as_str).collect());
        section(check, &place, drill, |_: &DrillTable| Ok::<(), String>(()));
        for (place, one) in items(&place, drill, "checks") {
            drill_check(check, document, sources.as_deref(), &place, one);
        }
    }
}

fn drill_check(
    check: &mut Check<'_>,
    document: &Node,
    sources: Option<&[&str]>,
    place: &Place,
    one: &Node,
) {
    let kind = one.get("type").and_then(Node::as_str).unwrap_or_default();
    let wanted: &[&str] = match kind {
        "query" | "references" => &["postgres", "sqlite"],
        "file" => &["directory"],
        _ => &[],
    };
    for (key, wanted) in [("source", wanted), ("files", &["directory"])] {
        let (Some((place, node)), Some(sources)) = (field(place, one, key), sources) else {
            continue;
        };
        let Some(name) = node.as_str() else { continue };
        if !sources.contains(&name) {
            let hint = suggest(name, sources.iter().copied());
            check.problem(
                &place,
                Some(node.at),
                format!("The strategy has no source `{name}`"),
                Some(hint),
            );
            continue;
        }
        let found = document.get("sources").and_then(|all| all.get(name)?.get("type")?.as_str());
        if let Some(found) = found.filter(|found| !wanted.is_empty() && !wanted.contains(found)) {
            let message = format!(
                "`{name}` is a source of type `{found}`, and `{kind}` looks at {}",
                wanted.join(" or ")
            );
            check.problem(&place, Some(node.at), message, Some("name another source".to_owned()));
        }
    }
    let has = |key: &str| one.get(key).is_some();
    if kind == "query" {
        let bounds = has("min") || has("max");
        let hint = Some("set `expect`, or one of `min` and `max`, or both of those".to_owned());
        match (has("expect"), bounds) {
            (false, false) => {
                check.problem(place, place.at, "Nothing is expected of the answer", hint);
            }
            (true, true) => {
                check.problem(place, place.at, "`expect` and a bound are set at once", hint);
            }
            _ => {}
        }
        let number = |key: &str| match one.get(key).map(|node| &node.value) {
            Some(Value::Integer(number)) => Some(*number as f64),
            Some(Value::Float(number)) => Some(*number),
            _ => None,
        };
        if number("min").zip(number("max")).is_some_and(|(min, max)| min > max) {
            let hint = "exchange them".to_owned();
            check.problem(
                place,
                place.at,
                "`min` is larger than `max`: no answer can be right",
                Some(hint),
            );
        }
    }
    if let Some((place, node)) = field(place, one, "command")
        && node.items().first().and_then(Node::as_str) == Some("")
    {
        check.problem(&place, Some(node.at), "Names no program", None);
    }
    if kind == "shrink" && has("tables") && has("of") {
        let hint = "remove one of them".to_owned();
        check.problem(
            place,
            place.at,
            "`tables` compares their rows, and `of` something else",
            Some(hint),
        );
    }
}

/// The keys of a table of the document.
fn names<'a>(document: &'a Node, table: &str) -> Vec<&'a str> {
    document
        .get(table)
        .map(Node::entries)
        .unwrap_or_default()
        .iter()
        .map(|entry| entry.key.as_str())
        .collect()
}

/// A run that may take no time cannot succeed.
fn durations(check: &mut Check<'_>, document: &Node) {
    for (place, strategy) in each(document, "strategies") {
        for key in ["timeout", "no_progress_timeout", "stale_after"] {
            more_than_nothing(check, field(&place, strategy, key));
        }
        if let Some((place, drill)) = field(&place, strategy, "drill") {
            for key in ["timeout", "rto", "rpo"] {
                more_than_nothing(check, field(&place, drill, key));
            }
            for (place, one) in items(&place, drill, "checks") {
                more_than_nothing(check, field(&place, one, "timeout"));
            }
        }
        if let Some((place, retry)) = field(&place, strategy, "retry") {
            more_than_nothing(check, field(&place, retry, "backoff"));
        }
    }
    more_than_nothing(check, field(&Place::default(), document, "stop_grace"));
}

fn more_than_nothing(check: &mut Check<'_>, span: Option<(Place, &Node)>) {
    let Some((place, node)) = span else { return };
    let span = node.as_str().and_then(|text| text.parse::<Span>().ok());
    if span.is_some_and(|span| span.duration().is_zero()) {
        check.problem(&place, Some(node.at), "Too short: expected more than 0", None);
    }
}

/// Each rule keeps something, which its type sees to; so a policy keeps nothing only when it has
/// none.
fn retentions(check: &mut Check<'_>, document: &Node) {
    for table in ["storages", "strategies"] {
        for (place, owner) in each(document, table) {
            if let Some((place, node)) = field(&place, owner, "retention")
                && matches!(&node.value, Value::Table(rules) if rules.is_empty())
            {
                let hint = match table {
                    "storages" => {
                        "add a rule, such as `keep_daily = 30`, or `keep_last = \"unlimited\"` to \
                         keep everything here"
                    }
                    _ => {
                        "add a rule, such as `keep_daily = 30`, or remove `retention` to keep \
                         everything"
                    }
                };
                check.problem(&place, Some(node.at), "Keeps nothing", Some(hint.to_owned()));
            }
        }
    }
}

/// A strategy without sources is for a configuration that only prunes. Where it has nothing to
/// prune by either, its sources were forgotten; and a schedule would start what cannot be run.
fn without_sources(check: &mut Check<'_>, document: &Node) {
    for (place, strategy) in each(document, "strategies") {
        if !matches!(strategy.value, Value::Table(_)) || strategy.get("sources").is_some() {
            continue;
        }
        let storages = strategy.get("storages").map(Node::items).unwrap_or_default();
        let of_storage = |name: &str| document.get("storages")?.get(name)?.get("retention");
        if strategy.get("retention").is_none()
            && strategy.get("drill").is_none()
            && !storages.iter().filter_map(Node::as_str).any(|name| of_storage(name).is_some())
        {
            let hint = "list what is backed up; or, to prune or drill what another configuration \
                backs up, set `retention` or `drill`";
            check.problem(&place, place.at, "Missing key `sources`", Some(hint.to_owned()));
        } else if let Some((place, node)) = field(&place, strategy, "schedule") {
            let hint = "list `sources`; or remove `schedule`, and start `backup prune` with a \
                timer of the system";
            let message = "Nothing can be run: the strategy has no `sources`, so that it only \
                prunes and drills";
            check.problem(&place, Some(node.at), message, Some(hint.to_owned()));
        }
    }
}

/// A strategy must have begun before its next time comes.
fn jitters(check: &mut Check<'_>, document: &Node) {
    for (place, strategy) in each(document, "strategies") {
        let Some(schedule) = schedule(strategy) else { continue };
        if let Some((place, node)) = field(&place, strategy, "jitter")
            && let Some(jitter) = node.as_str().and_then(|text| text.parse::<Span>().ok())
            && on_schedule::shortest(&schedule)
                .to_std()
                .is_ok_and(|shortest| jitter.duration() >= shortest)
        {
            let message = format!(
                "Too long for the schedule `{}`: the next run is due before this one begins",
                schedule.line
            );
            check.problem(
                &place,
                Some(node.at),
                message,
                Some("make it shorter than the time from one run to the next".to_owned()),
            );
        }
    }
}

/// Two names for one place are no second copy, and each would be in the way of the other: what one
/// deletes is gone from the other too.
fn one_place_each(check: &mut Check<'_>, document: &Node, base: &Path) {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for (place, node) in each(document, "storages") {
        let Ok(mut table) = serde_json::from_value::<StorageTable>(node.to_json()) else {
            continue;
        };
        table.config.resolve(base);
        if let Some(other) = known.get(&table.config.place()) {
            let hint = Some("use one of them in its stead".to_owned());
            check.problem(&place, place.at, format!("This is the same place as `{other}`"), hint);
        } else {
            known.insert(table.config.place(), place.dotted.clone());
        }
    }
}

/// Rules of retention must keep something on the schedule that they are for. Those of a storage are
/// for every strategy that is kept there, so they are wrong when they keep nothing for any.
fn rules_on_schedule(check: &mut Check<'_>, document: &Node) {
    let policy =
        |node: &Node| serde_json::from_value::<Policy>(node.get("retention")?.to_json()).ok();
    let strategies = each(document, "strategies");
    for (place, strategy) in &strategies {
        let (Some(policy), Some(schedule)) = (policy(strategy), schedule(strategy)) else {
            continue;
        };
        for (rule, words) in on_schedule::never(&policy, &schedule) {
            keeps_nothing(check, place, strategy, rule, words);
        }
    }
    for (place, storage) in each(document, "storages") {
        let Some(policy) = policy(storage) else { continue };
        let name = place.pointer.rsplit('/').next().unwrap_or_default();
        let is_kept_here = |strategy: &Node| {
            strategy
                .get("storages")
                .map(Node::items)
                .unwrap_or_default()
                .iter()
                .any(|item| item.as_str() == Some(name))
        };
        let here = strategies.iter().filter(|(_, strategy)| is_kept_here(strategy));
        // One that is run by hand may run at any time.
        let schedules: Option<Vec<Schedule>> =
            here.map(|(_, strategy)| schedule(strategy)).collect();
        let mut wrong = schedules
            .unwrap_or_default()
            .into_iter()
            .map(|schedule| on_schedule::never(&policy, &schedule));
        let Some(first) = wrong.next() else { continue };
        let others: Vec<_> = wrong.collect();
        for (rule, words) in first {
            if others.iter().all(|other| other.iter().any(|(also, _)| *also == rule)) {
                keeps_nothing(check, &place, storage, rule, words);
            }
        }
    }
}

fn keeps_nothing(check: &mut Check<'_>, place: &Place, owner: &Node, rule: Rule, words: String) {
    if let Some((place, policy)) = field(place, owner, "retention")
        && let Some((place, node)) = field(&place, policy, rule.name)
    {
        let hint = "make it longer than the time from one run to the next, or remove it";
        check.problem(&place, Some(node.at), words, Some(hint.to_owned()));
    }
}

/// The schedule of a strategy, where it can be read and is followed.
fn schedule(strategy: &Node) -> Option<Schedule> {
    if matches!(strategy.get("active").map(|node| &node.value), Some(Value::Boolean(false))) {
        return None;
    }
    let zone = strategy.get("timezone").map_or(Some("UTC"), Node::as_str)?;
    Schedule::new(strategy.get("schedule")?.as_str()?, timezone(zone).ok()?).ok()
}

/// Reads the parts that belong to other rooms, each by itself, so that what their types find wrong
/// is reported with the place of the part, and for all of them at once. Parts that the walk found
/// wrong are passed over.
fn sections(check: &mut Check<'_>, document: &Node) -> Option<CompressionConfig> {
    for (place, node) in each(document, "sources") {
        section(check, &place, node, |table: &SourceTable| table.config.validate());
    }
    for (place, node) in each(document, "storages") {
        section(check, &place, node, |table: &StorageTable| table.config.validate());
    }
    let unset = Node { value: Value::Table(Vec::new()), at: 0, written: None };
    let root = Place::default();
    let (place, node) = field(&root, document, "compression").unwrap_or((root, &unset));
    section(check, &place, node, |_: &CompressionConfig| Ok::<(), String>(()))
}

fn section<T: DeserializeOwned, E: ToString>(
    check: &mut Check<'_>,
    place: &Place,
    node: &Node,
    validate: impl Fn(&T) -> Result<(), E>,
) -> Option<T> {
    let inside = |key: &str| {
        key.strip_prefix(&place.dotted)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    if check.problems.iter().any(|problem| inside(&problem.key)) {
        return None;
    }
    let read = serde_json::from_value::<T>(node.to_json()).map_err(|error| error.to_string());
    match read.and_then(|read| validate(&read).map(|()| read).map_err(|error| error.to_string())) {
        Ok(read) => Some(read),
        Err(error) => {
            check.problem(place, place.at, error, None);
            None
        }
    }
}

fn build(
    read: File,
    file: &Path,
    base: &Path,
    environment: &Environment,
    compression: Option<CompressionConfig>,
) -> Result<Instance, String> {
    let absolute = |path: PathBuf| crate::model::counted_from(base, &path);
    let state_dir = read.state_dir.map_or_else(|| default_state_dir(environment), absolute);
    let work_dir = read.work_dir.map_or_else(|| state_dir.join("work"), absolute);
    let (mut sources, mut source_hooks) = (BTreeMap::new(), BTreeMap::new());
    for (name, mut table) in read.sources.unwrap_or_default() {
        table.config.resolve(base);
        source_hooks.insert(name.clone(), table.hooks);
        sources.insert(name, table.config);
    }
    let (mut storages, mut storage_rules) = (BTreeMap::new(), BTreeMap::new());
    for (name, mut table) in read.storages {
        table.config.resolve(base);
        storage_rules.insert(name.clone(), table.rules);
        storages.insert(name, table.config);
    }
    let encryption = match read.encryption {
        None => None,
        Some(table) => {
            let recipients: Result<Vec<Recipient>, _> =
                table.recipients.iter().map(|key| key.parse()).collect();
            Some(Encryption { recipients: recipients.map_err(|error| error.to_string())? })
        }
    };
    let mut strategies = BTreeMap::new();
    for (name, table) in read.strategies {
        let zone = timezone(&table.timezone).map_err(|error| error.to_string())?;
        let schedule = table.schedule.map(|line| Schedule::new(&line, zone)).transpose();
        let verify = table.verify.map(|verify| -> Result<Verification, String> {
            let schedule =
                Schedule::new(&verify.schedule, zone).map_err(|error| error.to_string())?;
            Ok(Verification { schedule, read_data_percent: verify.read_data_percent })
        });
        let is_elsewhere = |name: &&Name| {
            storages.get(*name).is_some_and(|config| !matches!(config, StorageConfig::Local(_)))
        };
        let drilled = table.storages.iter().find(is_elsewhere).or(table.storages.first());
        let drilled = drilled.ok_or("A strategy has no storage")?.clone();
        let drill_schedule = table.drill.as_ref().and_then(|drill| drill.schedule.as_deref());
        let drill_schedule = drill_schedule.map(|line| Schedule::new(line, zone)).transpose();
        let drill_schedule = drill_schedule.map_err(|error| error.to_string())?;
        let strategy = Strategy {
            drill: Drill::new(table.drill, drill_schedule, drilled, base),
            name: name.clone(),
            active: table.active,
            schedule: schedule.map_err(|error| error.to_string())?,
            missed: table.missed,
            jitter: table.jitter,
            timezone: zone,
            sources: table.sources.unwrap_or_default(),
            storages: table.storages,
            retention: table.retention,
            max_delete_percent: table.max_delete_percent,
            timeout: table.timeout,
            no_progress_timeout: table.no_progress_timeout,
            retry: table.retry,
            stale_after: table.stale_after,
            verify: verify.transpose()?,
            hooks: Hooks { before: table.before, after: table.after, on_failure: table.on_failure },
        };
        strategies.insert(name, strategy);
    }
    Ok(Instance {
        file: file.to_owned(),
        name: read.instance,
        state_dir,
        work_dir,
        sources,
        source_hooks,
        storages,
        storage_rules,
        encryption,
        compression: read
            .compression
            .or(compression)
            .ok_or("The defaults of `compression` cannot be used")?,
        threads: read.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS)
        }),
        read_rate: read.read_rate,
        upload_rate: read.upload_rate,
        nice: read.nice,
        max_concurrent: read.max_concurrent,
        listen: read.listen,
        stop_grace: read.stop_grace,
        strategies,
        notify: read.notify.into_iter().map(|(name, table)| (name, table.0)).collect(),
        written: BTreeMap::new(),
        notes: Vec::new(),
    })
}
