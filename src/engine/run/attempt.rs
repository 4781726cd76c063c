//! One source of a run, dumped.

use std::sync::Arc;

use crate::engine::context::blocking;
use crate::engine::error::EngineError;
use crate::engine::run::Run;
use crate::engine::write::outputs::{Outlet, SourceOutputs, Written};
use crate::model::{Cancel, Name, Warnings};
use crate::source::{Source, SourceError};

impl Run<'_> {
    pub(super) async fn dump_source(
        &self,
        name: &Name,
        source: Arc<dyn Source>,
        outlet: &Outlet,
        cancel: &Cancel,
    ) -> Result<Taken, EngineError> {
        let context = self.context(name, cancel);
        let outputs = SourceOutputs::new(outlet.clone(), Some(name.clone()));
        let taken = blocking(move || -> Result<Taken, SourceError> {
            let dumped = source.dump(&context, &outputs)?;
            // The source says that it succeeded: only now does anything that it wrote count.
            let written = SourceOutputs::written(dumped.artifacts).map_err(SourceError::Stream)?;
            Ok(Taken {
                written,
                consistency: dumped.consistency,
                facts: dumped.facts,
                warnings: dumped.warnings,
            })
        })
        .await?;
        taken.map_err(|error| match error {
            SourceError::Cancelled => EngineError::Cancelled,
            SourceError::Stream(error) => self.stream_error(&error, cancel),
            error if cancel.is_cancelled() => {
                tracing::debug!(source = %name, "ended while cancelled: {error}");
                EngineError::Cancelled
            }
            error => EngineError::source(name, error),
        })
    }

    /// What an error of the streams' far end was really about.
    pub(super) fn stream_error(&self, error: &std::io::Error, cancel: &Cancel) -> EngineError {
        if cancel.is_cancelled() {
            EngineError::Cancelled
        } else if self.members.iter().any(|member| member.member.is_well()) {
            EngineError::Internal(format!("The pipeline failed: {error}"))
        } else {
            EngineError::NoStorage("Each of them failed".to_owned())
        }
    }
}

/// A source that was dumped.
pub(super) struct Taken {
    pub(super) written: Vec<Written>,
    pub(super) consistency: &'static str,
    pub(super) facts: serde_json::Value,
    pub(super) warnings: Warnings,
}
