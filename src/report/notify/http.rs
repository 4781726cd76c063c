//! Requests to addresses that are secret but for their host.

use std::error::Error as _;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Client, Method, StatusCode, Url};

use super::{ATTEMPT, NotifyError};
use crate::model::Secret;

/// A client for webhooks and pings.
pub(super) struct Http(Client);

impl Http {
    /// One that trusts whom the system trusts.
    pub(super) fn new() -> Result<Self, NotifyError> {
        let client = Client::builder()
            .connect_timeout(ATTEMPT)
            .timeout(ATTEMPT)
            // What is sent is for one address. Elsewhere nobody is to read it, and a POST that was
            // redirected would arrive without its body.
            .redirect(Policy::none())
            .user_agent(concat!("holdfast/", env!("CARGO_PKG_VERSION")))
            .build();
        let client = client.map_err(|error| {
            NotifyError::Lasting(format!("Could not set up TLS: {}", causes(error)))
        })?;
        Ok(Self(client))
    }

    /// Sends a request. Anything but a status from 200 to 299 is an error.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Option<String>,
    ) -> Result<(), NotifyError> {
        let host = shown(url);
        let mut request = self.0.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let status = match request.send().await {
            Ok(response) => response.status(),
            Err(error) if error.is_timeout() => {
                return Err(NotifyError::Passing(format!(
                    "`{host}` did not answer within {} seconds",
                    ATTEMPT.as_secs()
                )));
            }
            Err(error) => {
                return Err(NotifyError::Passing(format!(
                    "Could not reach `{host}`: {}",
                    causes(error)
                )));
            }
        };
        // What stands in the body of the answer is not told: some services repeat the address
        // there.
        let answered = format!("`{host}` answered {status}");
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(NotifyError::Passing(answered))
            }
            _ if status.is_server_error() => Err(NotifyError::Passing(answered)),
            _ if status.is_redirection() => Err(NotifyError::Lasting(format!(
                "{answered}: it sends elsewhere, which is not followed. Set the address that it \
                 sends to"
            ))),
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::GONE => Err(NotifyError::Lasting(format!(
                "{answered}: check the address and the key of this notifier"
            ))),
            _ => Err(NotifyError::Lasting(format!(
                "{answered}: check the settings of this notifier"
            ))),
        }
    }
}

/// Why a request failed, without its address.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut texts: Vec<String> = Vec::new();
    // The outermost says only that there was an error, and the next one often the same.
    let mut cause = error.source();
    while let Some(one) = cause {
        let text = one.to_string();
        if !text.starts_with("client error (") {
            texts.push(text);
        }
        cause = one.source();
    }
    if texts.is_empty() { error.to_string() } else { texts.join(": ") }
}

/// The host, with the port where one is set: all that may be shown of an address.
fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The address in a secret; in words, what is wrong with it.
pub(super) fn address(text: &Secret) -> Result<Url, String> {
    let text = text.expose();
    let url = Url::parse(text).map_err(|error| format!("Not an address: {error}"))?;
    // Where a user or password ends the host too early, the rest of it is sent to a stranger, and
    // what is taken for the host is shown.
    let after = text.split_once("://").map_or(text, |(_, after)| after);
    let end = after.find(['/', '?', '#', '@']).map(|end| after.split_at(end));
    let is_cut = end.is_some_and(|(host, rest)| {
        let is_user = host.ends_with(':') || !rest.starts_with('/');
        is_user && !rest.starts_with('@') && rest.contains('@')
    });
    if is_cut || url.fragment().is_some() {
        return Err("Not an address: in a user or password, write `#` as `%23`, `/` as `%2F` and \
                    `?` as `%3F`"
            .to_owned());
    }
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("Not an address of the web: expected a form like `https://host/path`".to_owned()),
    }
}

/// The address that [`address`] found nothing wrong with.
pub(super) fn checked(text: &Secret) -> Result<Url, NotifyError> {
    address(text).map_err(NotifyError::Lasting)
}

#[cfg(test)]
mod tests {
    use super::address;
    use crate::model::Secret;

    #[test]
    fn a_password_is_never_taken_for_the_host() {
        for text in [
            "https://u:#hunter2@h/x",
            "https://hunter2#y@h/x",
            "https://u:?hunter2@h/x",
            "https://hunter2?y@h/x",
            "https://u:/hunter2@h/x",
            "https://u:hun/ter2@h/x",
            "https://h/x#hunter2",
        ] {
            let error = address(&Secret::new(text)).unwrap_err();
            assert!(!error.contains("hunter2") && !error.contains("hun/"), "{text}: {error}");
        }
        for text in [
            "https://u:hunter%232@h/x",
            "https://u:hun@ter2@h/x?y=z@z",
            "https://h/webhook/a@b/c",
            "http://h:80/x?y=a@b",
        ] {
            let url = address(&Secret::new(text)).unwrap();
            assert_eq!(url.host_str(), Some("h"), "{text}");
        }
    }
}
