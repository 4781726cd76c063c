//! A look at the world before it matters: tools, servers, storages, keys, the next fire times.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use futures::future::join_all;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::config::{Daemon, Instance, Strategy};
use crate::engine::context::{Engine, OpenStorage, blocking};
use crate::engine::error::chain;
use crate::engine::read::fetch::read_facts;
use crate::engine::read::identities::read_identities;
use crate::engine::run::{ahead, last_committed};
use crate::engine::snapshots::decisions::rests;
use crate::engine::snapshots::find::find;
use crate::engine::snapshots::list::{Selection, Snapshot, list, list_one};
use crate::engine::snapshots::marks::read_marks;
use crate::engine::state::private::{free_bytes, irregular_files, make_private_folder};
use crate::engine::write::heartbeat::host;
use crate::model::{ByteSize, Digest, Name};
use crate::pipeline::Identity;
use crate::source::{
    Context, Finding, Level, ScratchConfig, SourceConfig, check_scratch, refuse_sources,
};
use crate::storage::{Patience, Storage, StorageError};

/// How many fire times are told.
const FIRES: usize = 3;

/// What a check of one instance found.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    pub instance: Name,
    pub file: String,
    pub strategies: Vec<StrategyCheck>,
    /// What was found of each source.
    pub sources: Vec<SourceCheck>,
    /// What was found of each storage.
    pub storages: Vec<StorageCheck>,
    /// What was found of the rest: the state folder, encryption, keys.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// All that was found.
    pub fn all(&self) -> Vec<&Finding> {
        let sources = self.sources.iter().flat_map(|source| &source.findings);
        let storages = self.storages.iter().flat_map(|storage| &storage.findings);
        let strategies = self.strategies.iter().flat_map(|strategy| &strategy.findings);
        strategies.chain(sources).chain(storages).chain(&self.findings).collect()
    }

    /// The worst that was found.
    pub fn worst(&self) -> Level {
        self.all().iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// A strategy as it was resolved.
#[derive(Debug, Clone, Serialize)]
pub struct StrategyCheck {
    pub name: Name,
    /// Whether it runs by itself at all.
    pub active: bool,
    /// The cron line and zone, if it has a schedule.
    pub schedule: Option<String>,
    /// The next times it fires.
    pub next: Vec<DateTime<Utc>>,
    /// When it is drilled next, by its schedule.
    pub next_drill: Option<DateTime<Utc>>,
    /// The strategy with its sources and storages, secrets masked.
    pub configuration: serde_json::Value,
    pub findings: Vec<Finding>,
}

/// What was found of one source.
#[derive(Debug, Clone, Serialize)]
pub struct SourceCheck {
    pub name: Name,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub findings: Vec<Finding>,
}

/// What was found of one storage.
#[derive(Debug, Clone, Serialize)]
pub struct StorageCheck {
    pub name: Name,
    pub address: String,
    pub findings: Vec<Finding>,
}

/// Checks `instance`: its sources and storages, its keys (with `identities`, whether they open the
/// newest snapshots), its next fires. Writes a small object to each storage and deletes it again.
pub async fn check(engine: &Engine, instance: &Instance, identities: &[Identity]) -> CheckReport {
    let now = engine.clock.now();
    let strategies = instance
        .strategies
        .values()
        .map(|strategy| check_strategy(engine, instance, strategy, now))
        .collect();
    let mut findings = Vec::new();
    for (subject, folder) in [("state_dir", &instance.state_dir), ("work_dir", &instance.work_dir)]
    {
        findings.push(match make_private_folder(folder) {
            Ok(()) => Finding::new(Level::Ok, subject, format!("`{}`", folder.display())),
            Err(error) => Finding::new(Level::Error, subject, error.to_string()),
        });
    }
    let irregular = irregular_files(&instance.state_dir).into_iter();
    findings.extend(irregular.map(|problem| Finding::new(Level::Error, "state_dir", problem)));
    findings.push(match instance.encryption.as_ref().map(|encryption| encryption.recipients.len()) {
        None => Finding::new(
            Level::Warning,
            "encryption",
            "Off: whoever can read a storage can read the backups. Set `encryption.recipients`",
        ),
        Some(1) => Finding::new(
            Level::Warning,
            "encryption",
            "A single recipient: when its key is lost, so are the backups. Add a second one whose \
             key is kept elsewhere",
        ),
        Some(count) => Finding::new(Level::Ok, "encryption", format!("On, to {count} recipients")),
    });
    let advice = instance.general_advice().into_iter();
    findings.extend(advice.map(|advice| Finding::new(Level::Warning, "advice", advice)));
    findings.extend(instance.notify.iter().map(|(name, notify)| {
        let on: Vec<&str> = notify.on().iter().map(|kind| kind.as_str()).collect();
        let message = format!(
            "A {} on {}; not contacted, `backup notify test {name}` does that",
            notify.config.kind(),
            on.join(", ")
        );
        Finding::new(Level::Ok, format!("notify {name}"), message)
    }));
    let mut sources = Vec::new();
    for (name, config) in &instance.sources {
        engine.progress.begin(format!("checking {name}"), None);
        let context = Context {
            name: name.clone(),
            cancel: engine.cancel.clone(),
            runtime: Handle::current(),
            no_progress_timeout: std::time::Duration::from_secs(30),
            work_dir: instance.work_dir.clone(),
            environment: engine.environment.clone(),
            own_folders: Arc::clone(&engine.own_folders),
            secrets: Arc::clone(&engine.secrets),
            heard: Default::default(),
        };
        let source = config.source();
        let found = blocking(move || source.check(&context)).await;
        let found =
            found.unwrap_or_else(|error| vec![Finding::new(Level::Error, "check", chain(&error))]);
        sources.push(SourceCheck { name: name.clone(), kind: config.kind(), findings: found });
    }
    let names: Vec<&str> = instance.storages.keys().map(Name::as_str).collect();
    engine.progress.begin(format!("checking {}", names.join(", ")), None);
    let checking = instance.storages.iter().map(|(name, config)| async move {
        let open = OpenStorage::open_with(name, config, Patience::Watched, &engine.cancel).await;
        let (address, findings, open) = match open {
            Ok(open) => {
                let mut findings = check_storage(Arc::clone(&open.storage), instance, name).await;
                findings.extend(check_content(engine, &open, instance).await);
                (open.storage.address(), findings, Some(open))
            }
            Err(error) => {
                let finding = Finding::new(Level::Error, "configuration", chain(&error));
                (String::new(), vec![finding], None)
            }
        };
        (StorageCheck { name: name.clone(), address, findings }, open)
    });
    let (storages, opened): (Vec<StorageCheck>, Vec<Option<OpenStorage>>) =
        join_all(checking).await.into_iter().unzip();
    let opened: Vec<OpenStorage> = opened.into_iter().flatten().collect();
    for strategy in instance.strategies.values().filter(|strategy| strategy.drill.is_configured()) {
        engine.progress.begin(format!("checking the drill of {}", strategy.name), None);
        let mut found = check_drill(engine, instance, strategy).await;
        findings.append(&mut found);
    }
    if !identities.is_empty() {
        findings.extend(check_identities(engine, instance, &opened, identities).await);
    }
    CheckReport {
        instance: instance.name.clone(),
        file: instance.file.display().to_string(),
        strategies,
        sources,
        storages,
        findings,
    }
}

/// Whether others than this machine reach the scheduler's page, and that is known.
pub fn check_listen(daemon: &Daemon) -> Option<Finding> {
    let address = daemon.listen.filter(|address| !address.ip().to_canonical().is_loopback())?;
    let (level, advice) = if daemon.listen_hosts.is_some() {
        (Level::Ok, "as `listen_hosts` is set, that is taken to be meant")
    } else {
        (
            Level::Warning,
            "it has no login. Let it listen on `127.0.0.1`, or let a firewall or a network of \
             containers keep others away, and set `listen_hosts`: to the names with a dot under \
             which it is asked for, or to `[]`",
        )
    };
    let message = format!("Other machines may reach the page at `{address}`: {advice}");
    Some(Finding::new(level, "listen", message))
}

fn check_strategy(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    now: DateTime<Utc>,
) -> StrategyCheck {
    let mut next = Vec::new();
    if let Some(schedule) = strategy.schedule.as_ref().filter(|_| strategy.active) {
        let fires =
            std::iter::successors(schedule.next_after(now), |last| schedule.next_after(*last));
        next.extend(fires.take(FIRES));
    }
    let findings: Vec<Finding> = instance
        .advice(strategy)
        .into_iter()
        .map(|advice| Finding::new(Level::Warning, "advice", advice))
        .chain(ahead::programs(engine, instance, strategy))
        .collect();
    StrategyCheck {
        name: strategy.name.clone(),
        active: strategy.active,
        schedule: strategy.schedule.as_ref().map(ToString::to_string),
        next,
        next_drill: strategy.drill.schedule.as_ref().and_then(|schedule| schedule.next_after(now)),
        configuration: instance.masked(strategy),
        findings,
    }
}

/// Whether a drill of the strategy could begin: its key, its targets.
async fn check_drill(engine: &Engine, instance: &Instance, strategy: &Strategy) -> Vec<Finding> {
    let subject = format!("drill: {}", strategy.name);
    let mut findings = Vec::new();
    findings.extend(strategy.drill.identity_file.as_ref().map(|path| {
        match read_identities(path) {
            Ok(_) => Finding::new(Level::Ok, &subject, format!("The key is `{}`", path.display())),
            Err(error) => Finding::new(Level::Error, &subject, chain(&error)),
        }
    }));
    findings.extend(ahead::checks(engine, instance, strategy, &subject));
    if strategy.drill.checks.iter().any(|check| check.owner().is_some())
        && !rustix::process::geteuid().is_root()
    {
        let message = "Only root can give files to their owners, so the `owner` of a check will not be \
            judged: let root drill, or remove it";
        findings.push(Finding::new(Level::Warning, &subject, message));
    }
    let context = Context {
        name: strategy.name.clone(),
        cancel: engine.cancel.clone(),
        runtime: Handle::current(),
        no_progress_timeout: std::time::Duration::from_secs(30),
        work_dir: instance.work_dir.clone(),
        environment: engine.environment.clone(),
        own_folders: Arc::clone(&engine.own_folders),
        secrets: Arc::clone(&engine.secrets),
        heard: Default::default(),
    };
    let scratch = ScratchConfig { postgres: strategy.drill.postgres.clone() };
    let folder = strategy.drill.work_dir.clone().unwrap_or_else(|| instance.work_dir.clone());
    findings.extend(short_of_work(engine, instance, strategy, &folder, &subject).await);
    let sources = instance.sources.clone();
    let of_strategy = strategy.sources.clone();
    let looked = blocking(move || {
        let all: Vec<(&Name, &SourceConfig)> = sources.iter().collect();
        let refused =
            refuse_sources(&context, &scratch, &folder, &all).err().map(|error| error.to_string());
        let wanted: Vec<&SourceConfig> =
            of_strategy.iter().filter_map(|name| sources.get(name)).collect();
        (refused, check_scratch(&context, &scratch, &wanted))
    });
    match looked.await {
        Ok((refused, found)) => {
            findings.extend(refused.map(|problem| Finding::new(Level::Error, &subject, problem)));
            findings.extend(
                found.into_iter().map(|found| Finding { subject: subject.clone(), ..found }),
            );
        }
        Err(error) => {
            findings.push(Finding::new(Level::Error, &subject, chain(&error)));
        }
    }
    findings
}

/// Whether this configuration deletes snapshots of the strategy in the storage.
fn prunes(instance: &Instance, strategy: &Strategy, storage: &Name) -> bool {
    strategy.storages.contains(storage) && rests(instance, strategy, storage).is_none()
}

/// Writes, looks up, reads back, lists and deletes a small object.
async fn check_storage(
    storage: Arc<dyn Storage>,
    instance: &Instance,
    name: &Name,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut salt = [0; 8];
    if let Err(error) = getrandom::fill(&mut salt) {
        return vec![Finding::new(Level::Error, "random", error.to_string())];
    }
    // Not in the form of a snapshot's key, so that no listing ever takes it for one. Where it may
    // not be deleted there is one for each machine, and not one for each check.
    let probe = |unique: String| format!("{}/check-{unique}/probe", instance.name);
    let random = probe(hex::encode(salt));
    let key = match storage.delete(&random).await {
        Err(error) if error.is_denied_or_locked() => {
            let host = Digest::of(host().as_bytes());
            probe(hex::encode(host.as_bytes().get(..8).unwrap_or_default()))
        }
        _ => random,
    };
    let folder = key.trim_end_matches("probe");
    let body = Bytes::from_static(b"written by `backup check`; may be deleted\n");
    let failed =
        |subject: &str, error: StorageError| Finding::new(Level::Error, subject, error.to_string());
    match storage.probe(&key, body.clone()).await {
        Ok(capabilities) => {
            let checksums =
                if capabilities.checksums { "verifies checksums" } else { "compares sizes only" };
            let conditions = if capabilities.conditional_writes {
                "refuses to overwrite"
            } else {
                "ignores conditional writes (two machines that begin in the same second are told \
                 apart by their heartbeats only)"
            };
            findings.push(Finding::new(
                Level::Ok,
                "write",
                format!("Permitted; {checksums}, {conditions}"),
            ));
        }
        Err(error) => {
            findings.push(failed("write", error));
            return findings;
        }
    }
    let read = async {
        let chunks: Vec<Bytes> = storage.read(&key, None).await?.try_collect().await?;
        Ok::<bool, StorageError>(chunks.concat() == body)
    };
    findings.push(match read.await {
        Ok(true) => Finding::new(Level::Ok, "read", "Permitted"),
        Ok(false) => Finding::new(Level::Error, "read", "What was read is not what was written"),
        Err(error) if error.is_denied() => Finding::new(
            Level::Warning,
            "read",
            "Not permitted: backups are written, and can be verified and restored with other \
             credentials only",
        ),
        Err(error) => failed("read", error),
    });
    findings.push(match storage.list(folder).try_collect::<Vec<_>>().await {
        Ok(objects) if objects.iter().any(|object| object.key == key) => {
            Finding::new(Level::Ok, "list", "Permitted")
        }
        Ok(_) => {
            Finding::new(Level::Error, "list", "An object that was just written is not listed")
        }
        Err(error) => failed("list", error),
    });
    findings.push(match storage.delete(&key).await {
        Ok(()) => Finding::new(Level::Ok, "delete", "Permitted"),
        Err(error) if error.is_denied_or_locked() => {
            let (level, meaning) = if instance
                .storage_rules
                .get(name)
                .is_some_and(|rules| !rules.prune)
            {
                (Level::Ok, "as `prune = false` says: another configuration prunes")
            } else if instance.strategies.values().any(|strategy| prunes(instance, strategy, name))
            {
                (
                    Level::Error,
                    "retention cannot be carried out. Permit it, or set `prune = false` \
                    and prune with other credentials",
                )
            } else {
                (Level::Warning, "backups accumulate until other credentials prune them")
            };
            Finding::new(level, "delete", format!("Not permitted: {meaning}; `{key}` stays"))
        }
        Err(error) => failed("delete", error),
    });
    if let Err(error) = storage.now().await {
        findings.push(failed("time", error));
    }
    match storage.free_bytes().await {
        Ok(Some(free)) => {
            findings.push(Finding::new(Level::Ok, "space", format!("{} free", ByteSize(free))));
        }
        Ok(None) => {}
        Err(error) => findings.push(failed("space", error)),
    }
    findings
}

/// What keeps retention from deleting anything in the storage, whatever is configured: snapshots
/// that are damaged as far as a listing tells, marks that cannot be read, and what is no file where
/// there should be one.
async fn check_content(engine: &Engine, open: &OpenStorage, instance: &Instance) -> Vec<Finding> {
    let mut findings = Vec::new();
    let selection = Selection { instance: Some(instance.name.clone()), strategy: None };
    let found = match list_one(engine, open, &selection).await {
        Ok(found) => found,
        // That it may not be listed is said already.
        Err(error) if error.is_about_reaching() => return findings,
        Err(error) => {
            return vec![Finding::new(Level::Error, "content", error.to_string())];
        }
    };
    for snapshot in &found.snapshots {
        if let Err(bad) = &snapshot.manifest {
            let level = if bad.is_damage() { Level::Error } else { Level::Warning };
            let message = format!("`{}`: {bad}", snapshot.manifest_key());
            findings.push(Finding::new(level, "content", message));
        } else if !snapshot.flaws.is_empty() {
            let message = format!("`{}`: {}", snapshot.snapshot_ref(), snapshot.flaws.join(", "));
            findings.push(Finding::new(Level::Error, "content", message));
        }
    }
    if let Ok(Some(free)) = open.storage.free_bytes().await {
        findings.extend(short_of_space(free, &found.snapshots));
    }
    let unexpected = found.unexpected.into_iter();
    findings.extend(unexpected.map(|problem| Finding::new(Level::Error, "content", problem)));
    let marks = read_marks(engine, std::slice::from_ref(open), &instance.name).await;
    let unread = marks.unread().into_iter();
    findings.extend(unread.map(|(_, problem)| Finding::new(Level::Error, "marks", problem)));
    let is_suspect = |one: &&Snapshot| marks.is_suspect(&one.strategy, &one.id);
    let suspect = found.snapshots.iter().filter(is_suspect).map(|snapshot| {
        let message = format!(
            "`{}` is suspect: much less is in it than in the last good snapshot, and nothing of \
             its strategy is pruned until `backup release {} --reason TEXT`",
            snapshot.snapshot_ref(),
            snapshot.id
        );
        Finding::new(Level::Warning, "marks", message)
    });
    findings.extend(suspect);
    findings
}

/// Whether a snapshot like the last of a strategy would find no room: retention deletes after the
/// commit only.
fn short_of_space(free: u64, snapshots: &[Snapshot]) -> Option<Finding> {
    let mut last: BTreeMap<&Name, &Snapshot> = BTreeMap::new();
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.manifest.is_ok()) {
        let newest = last.entry(&snapshot.strategy).or_insert(snapshot);
        if snapshot.id > newest.id {
            *newest = snapshot;
        }
    }
    let largest = last.into_values().max_by_key(|snapshot| snapshot.listed_bytes)?;
    (largest.listed_bytes > free).then(|| {
        let message = format!(
            "{} free, and the last snapshot of `{}` has {}: make room, or the next run fails",
            ByteSize(free),
            largest.strategy,
            ByteSize(largest.listed_bytes)
        );
        Finding::new(Level::Warning, "space", message)
    })
}

/// Whether a drill like the last run would find no room in its folder.
async fn short_of_work(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    folder: &Path,
    subject: &str,
) -> Option<Finding> {
    let needed = last_committed(engine, instance, strategy).await?.plain_bytes;
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    let free = free_bytes(there).ok()?;
    (needed > free).then(|| {
        let message = format!(
            "`{}` has {} free, and the last run read {}, which a drill restores there: make room, \
             or set the drill's `work_dir`",
            folder.display(),
            ByteSize(free),
            ByteSize(needed)
        );
        Finding::new(Level::Warning, subject, message)
    })
}

/// Whether the keys open the newest snapshot of each strategy, in each storage.
async fn check_identities(
    engine: &Engine,
    instance: &Instance,
    opened: &[OpenStorage],
    identities: &[Identity],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for strategy in instance.strategies.values() {
        let selection = Selection {
            instance: Some(instance.name.clone()),
            strategy: Some(strategy.name.clone()),
        };
        for open in opened.iter().filter(|open| strategy.storages.contains(&open.name)) {
            let subject = format!("keys: {} in {}", strategy.name, open.name);
            let listing = list(engine, std::slice::from_ref(open), &selection).await;
            let finding = match find(&listing, "latest", None) {
                Err(error) => Finding::new(Level::Warning, subject, error.to_string()),
                Ok(copies) => {
                    match copies.first().map(|snapshot| (&snapshot.id, &snapshot.manifest)) {
                        Some((id, Ok(manifest))) => {
                            match read_facts(engine, open, manifest, identities).await {
                                Ok(Some(_)) if manifest.is_encrypted() => {
                                    Finding::new(Level::Ok, subject, format!("They open `{id}`"))
                                }
                                Ok(_) => Finding::new(
                                    Level::Warning,
                                    subject,
                                    format!("`{id}` is not encrypted"),
                                ),
                                Err(error) => Finding::new(Level::Error, subject, chain(&error)),
                            }
                        }
                        _ => Finding::new(
                            Level::Error,
                            subject,
                            "The newest snapshot has no readable manifest",
                        ),
                    }
                }
            };
            findings.push(finding);
        }
    }
    findings
}
