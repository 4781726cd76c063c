//! One source of a run, dumped.

use std::sync::Arc;

use crate::engine::context::blocking;
use crate::engine::error::EngineError;
use crate::engine::run::Run;
use crate::engine::write::outputs::{Outlet, SourceOutputs, Written};
use crate::model::{Cancel, Name, Remarks};
use crate::source::{Context, Source, SourceError};

/// How often a source is begun in one run.
const ATTEMPTS: u32 = 3;

impl Run<'_> {
    /// Dumps a source, and begins again where it asks for that.
    pub(super) async fn dump_source(
        &self,
        name: &Name,
        source: Arc<dyn Source>,
        outlet: &Outlet,
        cancel: &Cancel,
    ) -> Result<Taken, EngineError> {
        let mut reasons: Vec<String> = Vec::new();
        for attempt in 1.. {
            let outputs =
                SourceOutputs::new(outlet.clone(), Some(name.clone())).of_attempt(attempt);
            let outputs = Arc::new(outputs);
            let dumping = dump(Arc::clone(&source), self.context(name, cancel), &outputs);
            match dumping.await? {
                Err(SourceError::BeginAgain { reason })
                    if attempt < ATTEMPTS && !cancel.is_cancelled() =>
                {
                    tracing::info!(source = %name, attempt, "begins again: {reason}");
                    outputs.discard().await;
                    reasons.push(reason);
                }
                Err(error) => return Err(self.source_failed(name, error, cancel)),
                Ok(mut taken) => {
                    if !reasons.is_empty() {
                        let reason =
                            format!("The dump was begun again: {}", reasons.join(", and then: "));
                        taken.remarks.note(reason);
                    }
                    return Ok(taken);
                }
            }
        }
        Err(EngineError::Internal(format!("`{name}` was never dumped")))
    }

    pub(super) fn source_failed(
        &self,
        name: &Name,
        error: SourceError,
        cancel: &Cancel,
    ) -> EngineError {
        match error {
            SourceError::Cancelled => EngineError::Cancelled,
            SourceError::Stream(error) => self.stream_error(&error, cancel),
            error if cancel.is_cancelled() => {
                tracing::debug!(source = %name, "ended while cancelled: {error}");
                EngineError::Cancelled
            }
            error => EngineError::source(name, error),
        }
    }

    /// What an error of the streams' far end was really about.
    pub(super) fn stream_error(&self, error: &std::io::Error, cancel: &Cancel) -> EngineError {
        if cancel.is_cancelled() {
            EngineError::Cancelled
        } else if error.kind() == std::io::ErrorKind::WouldBlock {
            // Nothing else of a stream says so: its threads were not started.
            let code = error.raw_os_error().unwrap_or(rustix::io::Errno::AGAIN.raw_os_error());
            EngineError::NoThreads(std::io::Error::from_raw_os_error(code))
        } else if self.members.iter().any(|member| member.member.is_well()) {
            EngineError::Internal(format!("The pipeline failed: {error}"))
        } else {
            EngineError::NoStorage("Each of them failed".to_owned())
        }
    }
}

/// One attempt at a source.
async fn dump(
    source: Arc<dyn Source>,
    context: Context,
    outputs: &Arc<SourceOutputs>,
) -> Result<Result<Taken, SourceError>, EngineError> {
    let outputs = Arc::clone(outputs);
    blocking(move || {
        let dumped = source.dump(&context, outputs.as_ref())?;
        // The source says that it succeeded: only now does anything that it wrote count.
        let written = SourceOutputs::written(dumped.artifacts).map_err(SourceError::Stream)?;
        let mut remarks = dumped.remarks;
        remarks.extend(None, context.heard.take());
        Ok(Taken { written, consistency: dumped.consistency, facts: dumped.facts, remarks })
    })
    .await
}

/// A source that was dumped.
pub(super) struct Taken {
    pub(super) written: Vec<Written>,
    pub(super) consistency: &'static str,
    pub(super) facts: serde_json::Value,
    pub(super) remarks: Remarks,
}
