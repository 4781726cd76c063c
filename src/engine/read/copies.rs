//! A snapshot read from the first of its copies that is good.

use std::sync::atomic::{AtomicBool, Ordering};

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

/// Does `read` with the first of the copies, and with the next where that one is damaged or cannot
/// be reached, as long as there is one with the same artifacts and it `may_go_on`. Damage is
/// remembered.
///
/// # Errors
/// That of the last copy that was tried.
pub(in crate::engine) async fn from_good_copy<T>(
    engine: &Engine,
    copies: &[Side],
    may_go_on: &AtomicBool,
    mut read: impl AsyncFnMut(&Side) -> Result<T, EngineError>,
) -> Result<(T, Vec<PassedOver>), EngineError> {
    let mut passed_over: Vec<(&Side, String)> = Vec::new();
    let mut left = copies.iter();
    let mut side =
        left.next().ok_or_else(|| EngineError::Internal("A snapshot without a copy".to_owned()))?;
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
        let may_go_on = may_be_good_elsewhere && may_go_on.load(Ordering::Relaxed);
        let Some(next) = left.find(same).filter(|_| may_go_on) else {
            break remembered(engine, side, Err(error)).await;
        };
        let problem = chain(&error);
        tracing::warn!("{problem}. Going on with the copy in `{}`", next.storage.name);
        passed_over.push((side, problem));
        side = next;
    };
    // Whoever waits for the data does not wait for a second look at what is damaged.
    for (side, problem) in &passed_over {
        remember(engine, &side.storage, &side.snapshot, problem).await;
    }
    let told = |(side, problem): (&Side, String)| {
        let storage = side.storage.name.clone();
        PassedOver { storage, problem }
    };
    Ok((done?, passed_over.into_iter().map(told).collect()))
}
