//! Telling an operator what happened, by the ways that are configured.
//!
//! This room knows how a message gets to a service: webhooks, ping addresses, mail. It decides
//! nothing about what is worth a message: an [`Event`] is handed to it. A notifier that fails is
//! tried again and then logged; nobody waits for it but by [`Notifiers::settle`], and no run fails
//! because of it. It is the door to reqwest and lettre.
//!
//! Whatever is shown of a notifier is its name and the host that it speaks to: the rest of an
//! address is a secret at most services.
//!
//! To add a notifier: a file here with its configuration and its [`Notifier`], and a variant of
//! [`NotifyConfig`].

mod http;
mod mail;
mod ping;
mod template;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};

use super::{Event, EventKind};
use crate::model::{ErrorCode, Name};

pub use mail::{MailConfig, MailTls};
pub use ping::{Counted, PingConfig, PingMethod};
pub use template::Template;
pub use webhook::{WebhookConfig, WebhookMethod};

/// How long one attempt may take, from the name's resolution to the answer.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How long is waited after an attempt that failed in a way that may pass; one attempt more than
/// these.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// How many events wait for one notifier at most.
const QUEUE: usize = 64;
/// What webhooks and mails tell unless `on` says otherwise.
const NEWS: &[EventKind] = &[
    EventKind::Failure,
    EventKind::Problems,
    EventKind::Stale,
    EventKind::Recovered,
    EventKind::DrillFailed,
    EventKind::DrillInconclusive,
];

/// The configuration of a notifier, by its `type`. What it is told (`on`, `strategies`, in the same
/// table of a file) is in [`NotifyRules`].
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum NotifyConfig {
    /// A request with a body, to a chat service or a program of your own.
    Webhook(WebhookConfig),
    /// Requests to a service that watches for runs which do not come.
    Ping(PingConfig),
    /// A mail, by SMTP.
    Mail(MailConfig),
}

/// What a notifier is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NotifyRules {
    /// What it is told. Unless set, `failure`, `problems`, `stale`, `recovered`, `drill_failed` and
    /// `drill_inconclusive`; a `ping` is told `start`, `success`, `problems`, `failure` and
    /// `cancelled`.
    #[serde(default)]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub on: Option<Vec<EventKind>>,
    /// The strategies that it is told of. Unless set, all.
    #[serde(default)]
    #[schemars(length(min = 1), extend("uniqueItems" = true))]
    pub strategies: Option<Vec<Name>>,
}

impl NotifyRules {
    /// Its keys in the table of a notifier.
    pub const KEYS: [&str; 2] = ["on", "strategies"];
}

/// A notifier as it is configured: the way, and what is told.
#[derive(Debug, Clone, Deserialize)]
pub struct Notify {
    pub config: NotifyConfig,
    pub rules: NotifyRules,
}

/// Something that could never work, at a key of the configuration of a notifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// The key, in the table of the notifier.
    pub key: &'static str,
    /// What is wrong with it. It repeats no secret.
    pub message: String,
    pub hint: Option<String>,
}

impl Unusable {
    fn new(key: &'static str, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self { key, message: message.into(), hint: hint.map(str::to_owned) }
    }
}

/// Why a message was not delivered. It names the host, and nothing else of an address.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// It may be otherwise in a moment.
    #[error("{0}")]
    Passing(String),
    /// It will not be otherwise by itself.
    #[error("{0}")]
    Lasting(String),
}

impl NotifyError {
    /// The name of the kind for programs. It never changes.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Passing(_) => ErrorCode::NotifyUnavailable,
            Self::Lasting(_) => ErrorCode::NotifyFailed,
        }
    }
}

/// A way to tell somebody something.
#[async_trait]
pub trait Notifier: Send + Sync {
    /// Tells it, once, and within [`ATTEMPT`]. That it returns well means that the other side took
    /// it.
    ///
    /// # Errors
    /// When the other side was not reached, or did not take it.
    async fn tell(&self, event: &Event) -> Result<(), NotifyError>;
}

impl NotifyConfig {
    /// Its `type`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Ping(_) => "ping",
            Self::Mail(_) => "mail",
        }
    }

    /// Everything in it that could never work, without a look at the world.
    pub fn unusable(&self) -> Vec<Unusable> {
        match self {
            Self::Webhook(config) => config.unusable(),
            Self::Ping(config) => config.unusable(),
            Self::Mail(config) => config.unusable(),
        }
    }

    /// The notifier that this configures. Nothing is contacted yet.
    fn open(&self) -> Result<Box<dyn Notifier>, NotifyError> {
        match self {
            Self::Webhook(config) => Ok(Box::new(config.open()?)),
            Self::Ping(config) => Ok(Box::new(config.open()?)),
            Self::Mail(config) => Ok(Box::new(config.open()?)),
        }
    }
}

impl Notify {
    /// The kinds of events that it is told.
    pub fn on(&self) -> &[EventKind] {
        match (&self.rules.on, &self.config) {
            (Some(on), _) => on,
            (None, NotifyConfig::Ping(_)) => ping::NEWS,
            (None, NotifyConfig::Webhook(_) | NotifyConfig::Mail(_)) => NEWS,
        }
    }

    /// Whether it is told this event.
    pub fn wants(&self, event: &Event) -> bool {
        let of_its_strategies = match (&self.rules.strategies, &event.strategy) {
            (Some(strategies), Some(strategy)) => strategies.contains(strategy),
            _ => true,
        };
        of_its_strategies && self.on().contains(&event.kind)
    }

    /// Tells it that somebody tries it, with the same patience as any event, and waits for the end
    /// of that.
    ///
    /// # Errors
    /// When the last attempt failed.
    pub async fn test(
        &self,
        name: &Name,
        instance: &Name,
        at: DateTime<Utc>,
    ) -> Result<(), NotifyError> {
        deliver(name, self.config.open()?.as_ref(), &Event::test(instance, at)).await
    }
}

/// Tells an event, again where that may help.
async fn deliver(name: &Name, notifier: &dyn Notifier, event: &Event) -> Result<(), NotifyError> {
    let mut backoff = BACKOFF.iter();
    loop {
        let error = match notifier.tell(event).await {
            Err(NotifyError::Passing(error)) => error,
            ended => return ended,
        };
        let Some(wait) = backoff.next() else {
            return Err(NotifyError::Passing(format!(
                "{error}. It was tried {} times",
                BACKOFF.len() + 1
            )));
        };
        let (kind, subject) = (event.kind.as_str(), event.subject());
        tracing::warn!(notifier = %name, event = kind, strategy = subject, "not told yet, and \
            tried again: {error}");
        tokio::time::sleep(*wait).await;
    }
}

/// The notifiers of an instance, at work. Clones are the same notifiers. Once all are dropped, what
/// was told already is still delivered.
#[derive(Clone, Default)]
pub struct Notifiers(Arc<[Queue]>);

/// One notifier's way in.
struct Queue {
    name: Name,
    notify: Notify,
    events: mpsc::Sender<Event>,
    /// How many events are not done with.
    waiting: watch::Sender<usize>,
}

impl Notifiers {
    /// Those of an instance. A task for each is started in the present runtime; nothing is opened
    /// or contacted before there is something to tell.
    pub fn new(configured: &BTreeMap<Name, Notify>) -> Self {
        let start = |(name, notify): (&Name, &Notify)| {
            let (events, queue) = mpsc::channel(QUEUE);
            let waiting = watch::Sender::new(0);
            tokio::spawn(work(name.clone(), notify.config.clone(), queue, waiting.clone()));
            Queue { name: name.clone(), notify: notify.clone(), events, waiting }
        };
        Self(configured.iter().map(start).collect())
    }

    /// Hands an event to every notifier that wants it, and returns at once. Each notifier is told
    /// its events in the order of the calls.
    pub fn tell(&self, event: &Event) {
        for queue in self.0.iter().filter(|queue| queue.notify.wants(event)) {
            queue.waiting.send_modify(|waiting| *waiting += 1);
            if queue.events.try_send(event.clone()).is_err() {
                queue.waiting.send_modify(|waiting| *waiting -= 1);
                tracing::error!(
                    notifier = %queue.name,
                    event = event.kind.as_str(),
                    strategy = event.subject(),
                    "not told: {QUEUE} events wait for this notifier already, so this one is \
                     dropped"
                );
            }
        }
    }

    /// Whether nothing waits to be delivered, and nobody else can tell anything here.
    pub fn is_done(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.0.iter().all(|queue| *queue.waiting.borrow() == 0)
    }

    /// Waits until all that was told is delivered or given up, but for so long at most. What is not
    /// delivered then is logged, and goes on.
    pub async fn settle(&self, patience: Duration) {
        let deadline = tokio::time::Instant::now() + patience;
        for queue in self.0.iter() {
            let mut waiting = queue.waiting.subscribe();
            let done = tokio::time::timeout_at(deadline, waiting.wait_for(|waiting| *waiting == 0))
                .await
                .is_ok();
            if !done {
                tracing::error!(
                    notifier = %queue.name,
                    "{} events could not be delivered within {} seconds, and are not waited for",
                    *queue.waiting.borrow(),
                    patience.as_secs()
                );
            }
        }
    }
}

/// Tells one notifier its events, one after the other.
async fn work(
    name: Name,
    config: NotifyConfig,
    mut queue: mpsc::Receiver<Event>,
    waiting: watch::Sender<usize>,
) {
    let mut opened = None;
    while let Some(event) = queue.recv().await {
        let told = match &opened {
            Some(notifier) => deliver(&name, Box::as_ref(notifier), &event).await,
            None => match config.open() {
                Ok(notifier) => deliver(&name, Box::as_ref(opened.insert(notifier)), &event).await,
                Err(error) => Err(error),
            },
        };
        let (kind, subject) = (event.kind.as_str(), event.subject());
        match told {
            Ok(()) => tracing::debug!(notifier = %name, event = kind, strategy = subject, "told"),
            Err(error) => {
                tracing::error!(notifier = %name, event = kind, strategy = subject, "not told: \
                    {error}");
            }
        }
        waiting.send_modify(|waiting| *waiting -= 1);
    }
}
