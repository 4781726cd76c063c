//! A request with a body: chat services, and programs of one's own.

use std::collections::BTreeMap;

use async_trait::async_trait;
use chrono::DateTime;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::http::{Http, address, checked};
use super::template::Template;
use super::{Notifier, NotifyError, Unusable};
use crate::model::Secret;
use crate::report::Event;

const JSON: &str = "application/json";

/// A request with a body, to a chat service or a program of your own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// The address. It is a secret: who knows it may write there.
    pub url: Secret,
    /// The method of the request. A `GET` has no body.
    #[serde(default)]
    pub method: WebhookMethod,
    /// Headers of the request. Their values are secrets.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// The type of the body.
    #[serde(default = "json")]
    pub content_type: String,
    /// The body. `{{title}}`, `{{text}}`, `{{message}}` (both), `{{event}}`, `{{instance}}`,
    /// `{{strategy}}`, `{{time}}` and `{{snapshot}}` stand for what happened; with `_json` behind
    /// the name (`{{title_json}}`) for the same as a JSON string, its quotes included. `{{json}}`
    /// is all of it, as one JSON document, which is also what is sent without this setting.
    #[serde(default)]
    pub body: Option<Template>,
}

fn json() -> String {
    JSON.to_owned()
}

/// The method of a webhook.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum WebhookMethod {
    /// The usual one.
    #[default]
    Post,
    /// For services that want it.
    Put,
    /// Without a body.
    Get,
}

impl WebhookConfig {
    fn body(&self, event: &Event) -> Result<Option<String>, String> {
        match (self.method, &self.body) {
            (WebhookMethod::Get, _) => Ok(None),
            (_, Some(template)) => template.fill(event).map(Some),
            (_, None) => serde_json::to_string(event).map(Some).map_err(|error| error.to_string()),
        }
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        if self.method != WebhookMethod::Get {
            let kind = HeaderValue::from_str(&self.content_type)
                .map_err(|_| "Not the value of a header")?;
            headers.insert(CONTENT_TYPE, kind);
        }
        for (name, value) in &self.headers {
            let key: HeaderName =
                name.parse().map_err(|_| format!("`{name}` is not the name of a header"))?;
            let mut value = HeaderValue::from_str(value.expose()).map_err(|_| {
                format!("The value of `{name}` has characters that a header cannot have")
            })?;
            value.set_sensitive(true);
            headers.insert(key, value);
        }
        Ok(headers)
    }

    pub(super) fn unusable(&self) -> Vec<Unusable> {
        let mut found = Vec::new();
        if let Err(error) = address(&self.url) {
            found.push(Unusable::new("url", error, None));
        }
        if HeaderValue::from_str(&self.content_type).is_err() || self.content_type.is_empty() {
            found.push(Unusable::new(
                "content_type",
                "Not the type of a body",
                Some("a usual one is `text/plain`"),
            ));
        } else if let Err(error) = self.headers() {
            found.push(Unusable::new("headers", error, None));
        }
        if self.body.is_some() && self.method == WebhookMethod::Get {
            found.push(Unusable::new(
                "body",
                "A `GET` has no body",
                Some("remove it, or set `method` to `POST`"),
            ));
        }
        if let Some(error) = self.sample().and_then(|sample| self.body(&sample).err()) {
            found.push(Unusable::new("body", error, None));
        } else if self.body.is_some() && self.content_type.starts_with(JSON) {
            let filled = self.sample().and_then(|sample| self.body(&sample).ok().flatten());
            if let Some(Err(error)) = filled.map(|body| serde_json::from_str::<IgnoredAny>(&body)) {
                found.push(Unusable::new(
                    "body",
                    format!("Not JSON once it is filled in ({error})"),
                    Some(
                        "use names with `_json` behind them, such as `{{title_json}}`, and put no \
                        quotes around those; or set another `content_type`",
                    ),
                ));
            }
        }
        found
    }

    /// An event with all that JSON has to escape.
    fn sample(&self) -> Option<Event> {
        let name = "sample".parse().ok()?;
        Some(Event::stale(
            &name,
            &name,
            DateTime::UNIX_EPOCH,
            "\"quoted\" \\ and\nbroken".to_owned(),
        ))
    }

    pub(super) fn open(&self) -> Result<Webhook, NotifyError> {
        let headers = self.headers().map_err(NotifyError::Lasting)?;
        Ok(Webhook { http: Http::new()?, url: checked(&self.url)?, headers, config: self.clone() })
    }
}

/// An address that is sent requests.
pub(super) struct Webhook {
    http: Http,
    url: Url,
    headers: HeaderMap,
    config: WebhookConfig,
}

#[async_trait]
impl Notifier for Webhook {
    async fn tell(&self, event: &Event) -> Result<(), NotifyError> {
        let method = match self.config.method {
            WebhookMethod::Post => Method::POST,
            WebhookMethod::Put => Method::PUT,
            WebhookMethod::Get => Method::GET,
        };
        let body = self.config.body(event).map_err(NotifyError::Lasting)?;
        self.http.send(method, &self.url, self.headers.clone(), body).await
    }
}
