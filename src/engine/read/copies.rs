//! A snapshot read from the first of its copies that is good.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::Serialize;

use crate::engine::context::Engine;
use crate::engine::error::{EngineError, chain};
use crate::engine::read::damage::{remember, remembered};
use crate::engine::read::files::Side;
use crate::model::Name;

/// A copy that was not read, or not to its end, and why.
#[derive(Debug, Clone, Serialize)]
pub struct PassedOver {
    pub storage: Name,
    pub problem: String,
}

/// How far a reading has come, and whether another copy may go on with it.
pub(in crate::engine) struct Standing {
    pub(in crate::engine) may_go_on: AtomicBool,
    /// Grows with every artifact that is done.
    pub(in crate::engine) done: AtomicUsize,
}

impl Default for Standing {
    fn default() -> Self {
        Self { may_go_on: AtomicBool::new(true), done: AtomicUsize::new(0) }
    }
}

/// Does `read` with the first of the copies, and with the next where that one is damaged or cannot
/// be reached, as long as there is one with the same artifacts that did not fail at the same
/// artifact. Damage is remembered.
///
/// # Errors
/// That of the last copy that was tried.
pub(in crate::engine) async fn from_good_copy<T>(
    engine: &Engine,
    copies: &[Side],
    standing: &Standing,
    mut read: impl AsyncFnMut(&Side) -> Result<T, EngineError>,
) -> Result<(T, Vec<PassedOver>), EngineError> {
    let mut passed_over: Vec<(&Side, String)> = Vec::new();
    let mut side = copies
        .first()
        .ok_or_else(|| EngineError::Internal("A snapshot without a copy".to_owned()))?;
    // How far it had come when a copy failed last, by storage.
    let mut failed_at: BTreeMap<&Name, usize> = BTreeMap::new();
    let done = loop {
        let error = match read(side).await {
            Ok(done) => break Ok(done),
            Err(error) => error,
        };
        let may_be_good_elsewhere = match &error {
            EngineError::Damaged { in_copy, .. } => *in_copy,
            EngineError::Storage { .. } => true,
            _ => false,
        };
        let same = |next: &&Side| match (&side.snapshot.manifest, &next.snapshot.manifest) {
            (Ok(this), Ok(next)) => this.artifacts == next.artifacts,
            (Err(_), Ok(_)) => true,
            (_, Err(_)) => false,
        };
        let done = standing.done.load(Ordering::Relaxed);
        failed_at.insert(&side.storage.name, done);
        let may_go_on = may_be_good_elsewhere && standing.may_go_on.load(Ordering::Relaxed);
        let mut untried =
            copies.iter().filter(|copy| failed_at.get(&copy.storage.name) != Some(&done));
        let Some(next) = untried.find(same).filter(|_| may_go_on) else {
            break remembered(engine, side, Err(error)).await;
        };
        // Without the words about a restore that ends here.
        let problem = match &error {
            EngineError::Damaged { problem, .. } => {
                let what = problem.split_once(": ").map_or("the snapshot", |(what, _)| what);
                format!("{what} is not what was written")
            }
            error => chain(error),
        };
        tracing::warn!(
            "In `{}`: {problem}. Going on with the copy in `{}`",
            side.storage.name,
            next.storage.name
        );
        passed_over.push((side, problem));
        side = next;
    };
    // Whoever waits for the data does not wait for a second look at what is damaged.
    let distinct: BTreeMap<&Name, _> =
        passed_over.iter().rev().map(|passed| (&passed.0.storage.name, passed)).collect();
    for (side, problem) in distinct.into_values() {
        remember(engine, &side.storage, &side.snapshot, problem).await;
    }
    let told = |(side, problem): (&Side, String)| {
        let storage = side.storage.name.clone();
        PassedOver { storage, problem }
    };
    Ok((done?, passed_over.into_iter().map(told).collect()))
}
