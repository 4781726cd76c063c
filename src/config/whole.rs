//! The checks that need more than one value.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use super::check::Check;
use super::error::{Wrong, suggest};
use super::{DrillCheck, FileCheck, Instance, Strategy, on_schedule};
use crate::model::{ErrorCode, Name};
use crate::retention::{Policy, Rule};
use crate::schedule::Schedule;
use crate::source::SourceConfig;
use crate::storage::StorageConfig;

/// Reports settings that do not fit together.
pub(super) fn check(check: &mut Check<'_>, instance: &Instance) {
    for (name, strategy) in &instance.strategies {
        let at = format!("/strategies/{name}");
        check.refer(&format!("{at}/sources"), &strategy.sources, "sources");
        check.refer(&format!("{at}/storages"), &strategy.storages, "storages");
        keeps_something(
            check,
            &at,
            strategy.retention.as_ref(),
            "remove `retention` to keep everything",
        );
        without_sources(check, &at, strategy);
        into_itself(check, instance, &at, strategy);
        on_time(check, &at, strategy);
        drill(check, instance, &at, strategy);
    }
    for (name, rules) in &instance.storage_rules {
        let unlimited = "`keep_last = \"unlimited\"` to keep everything here";
        let at = format!("/storages/{name}");
        keeps_something(check, &at, rules.retention.as_ref(), unlimited);
        if let Some(policy) = &rules.retention {
            keeps_for_any(check, instance, name, policy);
        }
    }
    for (name, notify) in &instance.notify {
        let names = notify.rules.strategies.iter().flatten();
        check.refer(&format!("/notify/{name}/strategies"), names, "strategies");
    }
    own_folders(check, instance);
    memory(check, instance);
    one_place_each(check, instance);
}

/// What this program writes goes into a folder of its own, on a disk.
fn own_folders(check: &mut Check<'_>, instance: &Instance) {
    let mut folders = vec![
        ("/state_dir".to_owned(), instance.state_dir.as_path()),
        ("/work_dir".to_owned(), instance.work_dir.as_path()),
    ];
    for (name, storage) in &instance.storages {
        folders.extend(storage.folder().map(|path| (format!("/storages/{name}/path"), path)));
    }
    for (name, strategy) in &instance.strategies {
        let of_drill = strategy.drill.work_dir.as_deref();
        folders.extend(of_drill.map(|path| (format!("/strategies/{name}/drill/work_dir"), path)));
    }
    for (pointer, path) in folders {
        let problem = match top(path).as_deref() {
            None => "This is the root of the machine",
            Some("dev" | "proc" | "sys") if !path.starts_with("/dev/shm") => {
                "The system keeps no files here"
            }
            _ => continue,
        };
        // One that is not set follows from another that is.
        if check.places.get(&pointer).is_some() && !check.is_wrong(&pointer) {
            let hint = "name a folder of its own, such as `/var/lib/holdfast`";
            check.report(&pointer, Wrong::value(problem).hint(hint));
        }
    }
}

/// The first folder of an absolute path, none of the root.
fn top(path: &Path) -> Option<String> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            _ => {}
        }
    }
    names.first().map(|name| name.to_string_lossy().into_owned())
}

/// Uploads must fit into memory.
fn memory(check: &mut Check<'_>, instance: &Instance) {
    for (name, storage) in &instance.storages {
        let StorageConfig::S3(config) = storage else { continue };
        let Some(problem) = config.takes_too_much() else { continue };
        let wrong = Wrong::new(ErrorCode::ConfigConflict, problem)
            .hint("lower `part_size` or `upload_concurrency`");
        check.report(&format!("/storages/{name}/part_size"), wrong);
    }
}

/// A folder that is dumped to itself would hold every backup twice. A storage that lies deeper in
/// it is left out instead.
fn into_itself(check: &mut Check<'_>, instance: &Instance, at: &str, strategy: &Strategy) {
    for source in &strategy.sources {
        let Some(SourceConfig::Directory(folder)) = instance.sources.get(source) else { continue };
        let storage = strategy.storages.iter().find(|name| {
            let storage = instance.storages.get(*name).and_then(StorageConfig::folder);
            storage == Some(folder.path.as_path())
        });
        if let Some(storage) = storage {
            let problem =
                format!("The source `{source}` and the storage `{storage}` are one folder");
            let hint = "choose another folder for one of them; `backup copy` copies a storage";
            check.report(&format!("{at}/storages"), Wrong::value(problem).hint(hint));
        }
    }
}

/// Each rule keeps something, which its type sees to; so a policy keeps nothing only when it has
/// none.
fn keeps_something(check: &mut Check<'_>, at: &str, policy: Option<&Policy>, or: &str) {
    let pointer = format!("{at}/retention");
    if policy.is_some_and(|policy| policy.rules().next().is_none()) && !check.is_wrong(&pointer) {
        let hint = format!("add a rule, such as `keep_daily = 30`, or {or}");
        let place = check.places.nearest(&pointer).value;
        check.report_at(&pointer, place, Wrong::value("Keeps nothing").hint(hint));
    }
}

/// A strategy without sources is for a configuration that only prunes. Where it has nothing to
/// prune by either, its sources were forgotten; and a schedule would start what cannot be run.
fn without_sources(check: &mut Check<'_>, at: &str, strategy: &Strategy) {
    let has = |check: &Check<'_>, pointer: String| check.places.get(&pointer).is_some();
    if has(check, format!("{at}/sources")) {
        return;
    }
    let mut storages = strategy.storages.iter();
    let schedule = format!("{at}/schedule");
    if !has(check, format!("{at}/retention"))
        && !has(check, format!("{at}/drill"))
        && !storages.any(|name| has(check, format!("/storages/{name}/retention")))
    {
        let hint = "list what is backed up; or, to prune or drill what another configuration backs \
            up, set `retention` or `drill`";
        check.report(
            at,
            Wrong::new(ErrorCode::ConfigMissingKey, "Missing key `sources`").hint(hint),
        );
    } else if has(check, schedule.clone()) {
        let hint = "list `sources`; or remove `schedule`, and start `backup prune` with a timer of \
            the system";
        let message =
            "Nothing can be run: the strategy has no `sources`, so that it only prunes and drills";
        check.report(&schedule, Wrong::new(ErrorCode::ConfigConflict, message).hint(hint));
    }
}

/// The schedule of a strategy, where it can be read and is followed.
fn followed<'s>(check: &Check<'_>, strategy: &'s Strategy) -> Option<&'s Schedule> {
    let zone = format!("/strategies/{}/timezone", strategy.name);
    strategy.schedule.as_ref().filter(|_| strategy.active && !check.is_wrong(&zone))
}

/// A strategy must have begun before its next time comes, and its rules must keep something on its
/// schedule.
fn on_time(check: &mut Check<'_>, at: &str, strategy: &Strategy) {
    let Some(schedule) = followed(check, strategy) else { return };
    let shortest = on_schedule::shortest(schedule).to_std().ok();
    if let Some((jitter, shortest)) = strategy.jitter.zip(shortest)
        && jitter.duration() >= shortest
    {
        let message = format!(
            "Too long for the schedule `{}`: the next run is due before this one begins",
            schedule.line
        );
        let hint = "make it shorter than the time from one run to the next";
        check.report(
            &format!("{at}/jitter"),
            Wrong::new(ErrorCode::ConfigConflict, message).hint(hint),
        );
    }
    if let Some(policy) = &strategy.retention {
        for (rule, words) in on_schedule::never(policy, schedule) {
            keeps_nothing(check, at, rule, words);
        }
    }
}

/// The rules of a storage are for every strategy that is kept there, so they are wrong when they
/// keep nothing for any.
fn keeps_for_any(check: &mut Check<'_>, instance: &Instance, name: &Name, policy: &Policy) {
    let here = instance.strategies.values().filter(|strategy| strategy.storages.contains(name));
    // One that is run by hand may run at any time.
    let schedules: Option<Vec<&Schedule>> =
        here.map(|strategy| followed(check, strategy)).collect();
    let mut wrong =
        schedules.into_iter().flatten().map(|schedule| on_schedule::never(policy, schedule));
    let Some(first) = wrong.next() else { return };
    let others: Vec<_> = wrong.collect();
    for (rule, words) in first {
        if others.iter().all(|other| other.iter().any(|(also, _)| *also == rule)) {
            keeps_nothing(check, &format!("/storages/{name}"), rule, words);
        }
    }
}

fn keeps_nothing(check: &mut Check<'_>, owner: &str, rule: Rule, words: String) {
    let hint = "make it longer than the time from one run to the next, or remove it";
    let pointer = format!("{owner}/retention/{}", rule.name);
    check.report(&pointer, Wrong::new(ErrorCode::ConfigConflict, words).hint(hint));
}

/// The storage and the sources that a drill names must be there.
fn drill(check: &mut Check<'_>, instance: &Instance, at: &str, strategy: &Strategy) {
    let at = format!("{at}/drill");
    if let Some(name) = &strategy.drill.named_storage {
        check.refer_one(&format!("{at}/storage"), name, "storages");
    }
    // Where nothing is backed up, the sources are those of another configuration.
    if strategy.sources.is_empty() {
        return;
    }
    for (index, one) in strategy.drill.checks.iter().enumerate() {
        let wanted: &[&str] = match one {
            DrillCheck::Query(_) | DrillCheck::References(_) => &["postgres", "sqlite"],
            DrillCheck::File(_) => &["directory", "command"],
            DrillCheck::Command(_) | DrillCheck::Shrink(_) => &[],
        };
        let files = match one {
            DrillCheck::References(check) => Some(&check.files),
            _ => None,
        };
        let named: [(_, _, &[&str]); 2] =
            [("source", one.source(), wanted), ("files", files, &["directory"])];
        for (key, name, wanted) in named {
            let Some(name) = name else { continue };
            let pointer = format!("{at}/checks/{index}/{key}");
            // Another name may stand in for one that is wrong or missing.
            if check.is_wrong(&pointer) || check.places.get(&pointer).is_none() {
                continue;
            }
            let kind = instance.sources.get(name).map(SourceConfig::kind);
            if !strategy.sources.contains(name) {
                let hint = suggest(name.as_str(), strategy.sources.iter().map(Name::as_str));
                let message = format!("The strategy has no source `{name}`");
                check
                    .report(&pointer, Wrong::new(ErrorCode::ConfigUnknownName, message).hint(hint));
            } else if let Some(kind) = kind
                && !(wanted.is_empty() || wanted.contains(&kind))
            {
                let message = format!(
                    "`{name}` is a source of type `{kind}`, and `{}` looks at {}",
                    one.kind(),
                    wanted.join(" or ")
                );
                check.report(&pointer, Wrong::value(message).hint("name another source"));
            }
        }
        if let DrillCheck::File(file) = one
            && let Some(SourceConfig::Command(_)) = instance.sources.get(&file.source)
        {
            output_of_command(check, &format!("{at}/checks/{index}"), file);
        }
    }
}

/// A command gives one file, which is its own.
fn output_of_command(check: &mut Check<'_>, at: &str, file: &FileCheck) {
    let path = format!("{}.out", file.source);
    if file.path != path {
        let message = format!("The command `{}` has no such file", file.source);
        let hint = format!("its output is `{path}`");
        check.report(&format!("{at}/path"), Wrong::value(message).hint(hint));
    }
    if file.owner.is_some() {
        let message = "The output of a command has no owner";
        let wrong = Wrong::new(ErrorCode::ConfigConflict, message);
        check.report(&format!("{at}/owner"), wrong.hint("remove it"));
    }
}

/// Two names for one place are no second copy, and each would be in the way of the other: what one
/// deletes is gone from the other too.
fn one_place_each(check: &mut Check<'_>, instance: &Instance) {
    let pointer = |name: &Name| format!("/storages/{name}");
    let mut storages: Vec<_> = instance.storages.iter().collect();
    storages.retain(|(name, _)| !check.is_wrong(&pointer(name)));
    storages.sort_by_key(|(name, _)| check.places.nearest(&pointer(name)).key);
    let mut known: BTreeMap<String, &Name> = BTreeMap::new();
    for (name, storage) in storages {
        if let Some(other) = known.get(&storage.place()) {
            let message = format!("This is the same place as `storages.{other}`");
            let wrong = Wrong::new(ErrorCode::ConfigConflict, message);
            check.report(&pointer(name), wrong.hint("use one of them in its stead"));
        } else {
            known.insert(storage.place(), name);
        }
    }
}
