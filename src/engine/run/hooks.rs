//! The programs of the operator that are started around a run and around each of its sources.

use crate::config::Hooks;
use crate::engine::context::blocking;
use crate::engine::error::{EngineError, chain};
use crate::engine::run::Run;
use crate::model::{Cancel, Completeness, Name, Note};
use crate::source::SourceError;
use crate::source::process::Call;

/// What a hook belongs to.
#[derive(Clone, Copy)]
pub(super) enum Around<'a> {
    Run,
    Source(&'a Name),
}

impl Run<'_> {
    fn hooks_of(&self, around: Around<'_>) -> Option<&Hooks> {
        match around {
            Around::Run => Some(&self.strategy.hooks),
            Around::Source(name) => self.instance.source_hooks.get(name),
        }
    }

    /// Starts `before` where there is one.
    pub(super) async fn before(
        &mut self,
        around: Around<'_>,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        let command = self.hooks_of(around).and_then(|hooks| hooks.before.clone());
        let Some(command) = command else { return Ok(()) };
        self.hook("before", &command, around, None, cancel).await
    }

    /// Starts `after`, and after a failure `on_failure`. The run may have been cancelled: they are
    /// started all the same, since they undo what `before` did. A failure of theirs is a warning:
    /// what was dumped is as good as before.
    pub(super) async fn after<T: Ended>(
        &mut self,
        around: Around<'_>,
        ended: &Result<T, EngineError>,
    ) {
        let outcome = match ended {
            Ok(ended) => ended.outcome(),
            Err(EngineError::Cancelled) => "cancelled",
            Err(_) => "failed",
        };
        let error = ended.as_ref().err().map(|error| chain(error));
        let Some(hooks) = self.hooks_of(around).cloned() else { return };
        let failed = hooks.on_failure.filter(|_| ended.is_err());
        for (name, command) in [("after", hooks.after), ("on_failure", failed)] {
            let Some(command) = command else { continue };
            let facts = Some((outcome, error.as_deref()));
            let left = Left(Cancel::new());
            if let Err(error) = self.hook(name, &command, around, facts, &left.0).await {
                let source = match around {
                    Around::Run => None,
                    Around::Source(name) => Some(name.to_string()),
                };
                let reason = match &error {
                    EngineError::Hook { error } => chain(error.as_ref()),
                    error => chain(error),
                };
                tracing::warn!(source, "{reason}");
                self.remarks.warn(Note { source, path: None, reason });
            }
        }
    }

    async fn hook(
        &mut self,
        hook: &'static str,
        command: &[String],
        around: Around<'_>,
        ended: Option<(&str, Option<&str>)>,
        cancel: &Cancel,
    ) -> Result<(), EngineError> {
        let Some((program, args)) = command.split_first() else { return Ok(()) };
        let (of, name) = match around {
            Around::Run => ("strategy", &self.strategy.name),
            Around::Source(name) => ("source", name),
        };
        let context = self.context(name, cancel);
        let mut call =
            Call::new(&context, program, format!("run the hook `{hook}` of the {of} `{name}`"))
                .args(args)
                .variable("HOLDFAST_HOOK", hook)
                .variable("HOLDFAST_INSTANCE", self.instance.name.as_str())
                .variable("HOLDFAST_STRATEGY", self.strategy.name.as_str())
                .variable("HOLDFAST_SNAPSHOT", self.id.as_str());
        if let Around::Source(name) = around {
            call = call.variable("HOLDFAST_SOURCE", name.as_str());
        }
        if let Some((outcome, error)) = ended {
            call = call
                .variable("HOLDFAST_OUTCOME", outcome)
                .variable("HOLDFAST_ERROR", error.unwrap_or_default());
        }
        tracing::info!(hook, "starting the hook of the {of} `{name}`");
        let heard = context.heard.clone();
        let started = blocking(move || call.read_into(&context, &mut std::io::sink())).await?;
        match started {
            Ok(_) => {
                let source = match around {
                    Around::Run => None,
                    Around::Source(name) => Some(name.as_str()),
                };
                self.remarks.extend(source, heard.take());
                Ok(())
            }
            Err(SourceError::Cancelled) => Err(EngineError::Cancelled),
            Err(error) => Err(EngineError::Hook { error: Box::new(error) }),
        }
    }
}

/// Ends a hook whose run is not waited for any more: it is dropped then, and this with it.
struct Left(Cancel);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// How what ended well is called in the environment of a hook.
pub(super) trait Ended {
    fn outcome(&self) -> &'static str;
}

impl Ended for Completeness {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Whole => "committed",
            Self::Partial => "partial",
        }
    }
}

impl Ended for super::attempt::Taken {
    fn outcome(&self) -> &'static str {
        "dumped"
    }
}
