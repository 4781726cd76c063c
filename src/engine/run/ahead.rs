//! What can be seen before a run begins: sources that are not there, and programs.

use std::path::PathBuf;

use tokio::runtime::Handle;

use crate::config::{DrillCheck, Hooks, Instance, Strategy};
use crate::engine::context::{Engine, blocking};
use crate::engine::error::{EngineError, chain};
use crate::engine::run::Run;
use crate::model::{Cancel, Name};
use crate::source::process::Call;
use crate::source::{Context, Finding, Level, SourceError};

impl Run<'_> {
    /// Fails where a source is not there, before the first one is dumped. One that a hook may put
    /// there is not looked for.
    pub(super) async fn look_ahead(&self, cancel: &Cancel) -> Result<(), EngineError> {
        let mut made = false;
        for name in &self.strategy.sources {
            let config = self.instance.sources.get(name);
            made |=
                self.instance.source_hooks.get(name).is_some_and(|hooks| hooks.before.is_some());
            let Some(config) = config.filter(|_| !made) else { continue };
            let (source, context) = ((self.make_source)(config), self.context(name, cancel));
            let looked = blocking(move || source.ensure_present(&context)).await?;
            looked.map_err(|error| self.source_failed(name, error, cancel))?;
        }
        Ok(())
    }
}

/// What a run of `strategy` would miss: sources and the programs of hooks. Nothing is contacted.
pub(in crate::engine) async fn missing(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Vec<Finding> {
    let mut findings = programs(engine, instance, strategy);
    let mut made = strategy.hooks.before.is_some();
    for name in &strategy.sources {
        made |= instance.source_hooks.get(name).is_some_and(|hooks| hooks.before.is_some());
        let Some(config) = instance.sources.get(name) else { continue };
        let (source, context) = (config.source(), context(engine, instance, name));
        let looked = blocking(move || source.ensure_present(&context)).await;
        let problem = match looked {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => chain(&error),
            Err(error) => chain(&error),
        };
        let (level, hint) = if made {
            (Level::Warning, ". A `before` hook may change that")
        } else {
            (Level::Error, "")
        };
        findings.push(Finding::new(level, format!("source {name}"), format!("{problem}{hint}")));
    }
    findings
}

/// The programs of hooks that would not be found, those around the strategy and around each of its
/// sources.
pub(in crate::engine) fn programs(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
) -> Vec<Finding> {
    if strategy.sources.is_empty() {
        return Vec::new();
    }
    let mut findings = hooks(engine, instance, &strategy.name, &strategy.hooks, "strategy");
    for name in &strategy.sources {
        if let Some(own) = instance.source_hooks.get(name) {
            findings.extend(hooks(engine, instance, name, own, "source"));
        }
    }
    findings
}

fn hooks(
    engine: &Engine,
    instance: &Instance,
    name: &Name,
    hooks: &Hooks,
    of: &str,
) -> Vec<Finding> {
    let all =
        [("before", &hooks.before), ("after", &hooks.after), ("on_failure", &hooks.on_failure)];
    let found = all.into_iter().filter_map(|(hook, command)| {
        let attempt = format!("run the hook `{hook}` of the {of} `{name}`");
        let error = not_found(engine, instance, name, command.as_deref()?, &attempt)?;
        Some(Finding::new(Level::Error, hook, chain(&error)))
    });
    found.collect()
}

/// The programs of a drill's checks that would not be found.
pub(in crate::engine) fn checks(
    engine: &Engine,
    instance: &Instance,
    strategy: &Strategy,
    subject: &str,
) -> Vec<Finding> {
    let commands = strategy.drill.checks.iter().filter_map(|check| match check {
        DrillCheck::Command(check) => Some(&check.command),
        _ => None,
    });
    let found = commands.filter_map(|command| {
        let attempt = "run a check of the drill";
        // One that is counted from the folder of the drill is known in the drill only.
        let program = PathBuf::from(command.first()?);
        let is_known = program.is_absolute() || program.components().count() == 1;
        let error = not_found(engine, instance, &strategy.name, command, attempt)?;
        is_known.then(|| Finding::new(Level::Error, subject, chain(&error)))
    });
    found.collect()
}

fn not_found(
    engine: &Engine,
    instance: &Instance,
    name: &Name,
    command: &[String],
    attempt: &str,
) -> Option<SourceError> {
    let program = command.first()?;
    Call::new(&context(engine, instance, name), program, attempt)
        .when_missing("Install it, correct its name, or write its whole path")
        .ensure_found()
        .err()
}

fn context(engine: &Engine, instance: &Instance, name: &Name) -> Context {
    Context {
        name: name.clone(),
        cancel: engine.cancel.clone(),
        runtime: Handle::current(),
        no_progress_timeout: std::time::Duration::from_secs(30),
        work_dir: instance.work_dir.clone(),
        environment: engine.environment.clone(),
        own_folders: std::sync::Arc::clone(&engine.own_folders),
        secrets: std::sync::Arc::clone(&engine.secrets),
        heard: Default::default(),
    }
}
