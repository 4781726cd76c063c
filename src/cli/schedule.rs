//! `backup schedule` and `backup reload`.

use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Exit;
use super::output::Printer;
use super::setup::{Setup, chosen};
use crate::config;
use crate::daemon::{self, Scheduled, ScheduledInstance};

pub(super) async fn run(setup: &Setup) -> anyhow::Result<Exit> {
    // Beneath `nohup` too: this is how it is asked to reload.
    let mut hangups = signal(SignalKind::hangup()).context("Could not watch for SIGHUP")?;
    let scheduled = load(setup)?;
    let (ask, reloads) = mpsc::channel(1);
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            // One that waits already reads what is there by then.
            let _ = ask.try_send(());
        }
    });
    let again = || load(setup).map_err(|error| format!("{error:#}"));
    daemon::serve(scheduled, &again, reloads, &setup.cancel).await?;
    Ok(Exit::Done)
}

fn load(setup: &Setup) -> anyhow::Result<Scheduled> {
    let settings = setup.settings()?;
    // No display: what a scheduler has to say is in its log.
    let chosen = chosen(&settings, setup.global.instance.as_deref())?;
    let instances = chosen.into_iter().map(|instance| {
        let (config, name) = (setup.global.config.clone(), instance.name.clone());
        let environment = setup.environment.clone();
        ScheduledInstance {
            engine: setup.quiet_engine(instance),
            instance: Arc::new(instance.clone()),
            reread: Arc::new(move || {
                let settings = config::load(config.as_deref(), environment.clone()).ok()?;
                settings.instances.into_iter().find(|instance| instance.name == name)
            }),
        }
    });
    Ok(Scheduled { instances: instances.collect(), settings: settings.daemon.clone() })
}

#[derive(Serialize)]
struct Asked {
    /// The process that was asked.
    pid: u32,
}

/// Asks the scheduler to read its configuration again, once it is known to be right.
pub(super) fn reload(setup: &Setup, printer: &Printer) -> anyhow::Result<Exit> {
    let scheduled = load(setup)?;
    let mut asked = Vec::new();
    for one in &scheduled.instances {
        let pid = daemon::ask_to_reload(&one.engine.state_dir)?;
        if !asked.contains(&pid) {
            asked.push(pid);
        }
    }
    for pid in asked {
        if printer.is_json() {
            printer.document(&Asked { pid });
        } else {
            printer.text(&format!(
                "The scheduler (process {pid}) reads its configuration again; its log says what \
                 came of it.\n"
            ));
        }
    }
    Ok(Exit::Done)
}
