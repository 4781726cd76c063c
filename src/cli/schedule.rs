//! `backup schedule`.

use super::Exit;
use super::setup::Setup;
use crate::daemon::{self, Scheduled};

pub(super) async fn run(setup: &Setup) -> anyhow::Result<Exit> {
    let settings = setup.settings()?;
    let most = settings.instances.iter().map(|instance| instance.max_concurrent).max().unwrap_or(1);
    let wanted = setup.global.instance.as_deref();
    let mut scheduled = Vec::new();
    for instance in &settings.instances {
        if wanted.is_none_or(|wanted| wanted == instance.name.as_str()) {
            // No display: what a scheduler has to say is in its log.
            scheduled.push(Scheduled { engine: setup.quiet_engine(&instance.state_dir), instance: instance.clone() });
        }
    }
    if let Some(wanted) = wanted.filter(|_| scheduled.is_empty()) {
        settings.find_instance(wanted)?;
    }
    daemon::serve(scheduled, most, &setup.cancel).await?;
    Ok(Exit::Done)
}
