//! Requests to a service that expects one after every run, and raises the alarm when none comes.

use async_trait::async_trait;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::http::{Http, address, checked};
use super::{Notifier, NotifyError, Unusable};
use crate::model::Secret;
use crate::report::{Event, EventKind};

/// What it is told unless `on` says otherwise.
pub(super) const NEWS: &[EventKind] = &[
    EventKind::Start,
    EventKind::Success,
    EventKind::Problems,
    EventKind::Failure,
    EventKind::Cancelled,
];

/// Requests to a service that watches for runs which do not come. What happened is in the body, as
/// plain text.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PingConfig {
    /// The address of a success, which the others are made of unless they are set: a start is told
    /// to `<url>/start`, a failure to `<url>/fail`. It is a secret: who knows it may write there.
    #[serde(default)]
    pub url: Option<Secret>,
    /// The address that is told of a start. Without it and `url`, none is.
    #[serde(default)]
    pub start_url: Option<Secret>,
    /// The address that is told of a success.
    #[serde(default)]
    pub success_url: Option<Secret>,
    /// The address that is told of a failure. Without it and `url`, none is.
    #[serde(default)]
    pub failure_url: Option<Secret>,
    /// The method of the requests. A `GET` has no body.
    #[serde(default)]
    pub method: PingMethod,
    /// What a run counts as that committed its snapshot with problems: as `success`, for there is a
    /// snapshot, or as `failure`.
    #[serde(default)]
    pub problems: Counted,
}

/// The method of a ping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum PingMethod {
    /// With a short text for the log of the service.
    #[default]
    Post,
    /// Without.
    Get,
}

/// What a run with problems counts as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Counted {
    /// There is a snapshot.
    #[default]
    Success,
    /// Not all is well.
    Failure,
}

impl PingConfig {
    pub(super) fn unusable(&self) -> Vec<Unusable> {
        let mut found = Vec::new();
        for (key, url) in [
            ("url", &self.url),
            ("start_url", &self.start_url),
            ("success_url", &self.success_url),
            ("failure_url", &self.failure_url),
        ] {
            if let Some(Err(error)) = url.as_ref().map(address) {
                found.push(Unusable::new(key, error, None));
            }
        }
        if [&self.url, &self.success_url, &self.failure_url].iter().all(|url| url.is_none()) {
            found.push(Unusable::new(
                "",
                "Missing key `url`",
                Some("set it, or `success_url` and `failure_url`"),
            ));
        }
        found
    }

    pub(super) fn open(&self) -> Result<Ping, NotifyError> {
        let of = |own: &Option<Secret>, end: Option<&str>| match (own, &self.url) {
            (Some(own), _) => checked(own).map(Some),
            (None, Some(url)) => checked(url).map(|url| Some(below(url, end))),
            (None, None) => Ok(None),
        };
        Ok(Ping {
            http: Http::new()?,
            start: of(&self.start_url, Some("start"))?,
            success: of(&self.success_url, None)?,
            failure: of(&self.failure_url, Some("fail"))?,
            method: self.method,
            problems: self.problems,
        })
    }
}

/// The address with one more name at the end of its path.
fn below(mut url: Url, end: Option<&str>) -> Url {
    // An address of the web always has a path.
    if let (Some(end), Ok(mut path)) = (end, url.path_segments_mut()) {
        path.pop_if_empty().push(end);
    }
    url
}

/// Addresses that are pinged.
pub(super) struct Ping {
    http: Http,
    start: Option<Url>,
    success: Option<Url>,
    failure: Option<Url>,
    method: PingMethod,
    problems: Counted,
}

impl Ping {
    fn address(&self, kind: EventKind) -> Option<&Url> {
        match kind {
            EventKind::Start => self.start.as_ref(),
            EventKind::Success | EventKind::Recovered | EventKind::DrillPassed => {
                self.success.as_ref()
            }
            EventKind::Problems => match self.problems {
                Counted::Success => self.success.as_ref(),
                Counted::Failure => self.failure.as_ref(),
            },
            EventKind::Failure
            | EventKind::Cancelled
            | EventKind::Stale
            | EventKind::DrillFailed
            | EventKind::DrillInconclusive => self.failure.as_ref(),
            // A success that was none would put an alarm off that is needed. A failure shows that
            // the alarm comes, and the next run ends it.
            EventKind::Test => self.failure.as_ref().or(self.success.as_ref()),
        }
    }
}

#[async_trait]
impl Notifier for Ping {
    async fn tell(&self, event: &Event) -> Result<(), NotifyError> {
        let Some(url) = self.address(event.kind) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        match self.method {
            PingMethod::Get => self.http.send(Method::GET, url, headers, None).await,
            PingMethod::Post => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                self.http.send(Method::POST, url, headers, Some(event.message())).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn the_addresses_of_start_and_failure_are_made_of_that_of_success() {
        for (url, expected) in [
            ("https://h/ping/uuid", "https://h/ping/uuid/fail"),
            ("https://h/ping/uuid/", "https://h/ping/uuid/fail"),
            ("https://h/ping/slug?create=1", "https://h/ping/slug/fail?create=1"),
            ("https://h", "https://h/fail"),
        ] {
            assert_eq!(below(url.parse().unwrap(), Some("fail")).as_str(), expected);
        }
    }
}
