//! Mail, by SMTP.

use std::net::Ipv6Addr;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ATTEMPT, Notifier, NotifyError, Unusable};
use crate::model::Secret;
use crate::report::Event;

/// A mail, by SMTP.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    /// The name of the server that takes the mail.
    #[schemars(length(min = 1))]
    pub server: String,
    /// Its port. Unless set, 587 with `starttls`, 465 with `tls`, 25 with `none`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// How the connection is encrypted.
    #[serde(default)]
    pub tls: MailTls,
    /// The user to log in as. Without it, nobody logs in.
    #[serde(default)]
    pub username: Option<String>,
    /// The user's password.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Whom the mail is from: `backup@example.org`, or `Backups <backup@example.org>`.
    #[schemars(length(min = 1))]
    pub from: String,
    /// Whom it is for.
    #[schemars(length(min = 1))]
    pub to: Vec<String>,
}

/// How the connection to a mail server is encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum MailTls {
    /// It begins plain, and must become encrypted before anything is said.
    #[default]
    Starttls,
    /// It is encrypted from the beginning.
    Tls,
    /// It is not: for a server on this machine, without a password.
    None,
}

impl MailConfig {
    pub(super) fn unusable(&self) -> Vec<Unusable> {
        let mut found = Vec::new();
        if self.server.contains(['/', '@', ' '])
            || self.server.contains(':') && self.server.parse::<Ipv6Addr>().is_err()
        {
            let hint = Some("write it like `smtp.example.org`, and its port into `port`");
            found.push(Unusable::new("server", "Not the name of a server", hint));
        }
        match (&self.username, &self.password) {
            (Some(_), None) => {
                let hint = Some("set it, or `password_file` to read it from a file");
                found.push(Unusable::new(
                    "username",
                    "Missing key `password`, which belongs to this",
                    hint,
                ));
            }
            (None, Some(_)) => {
                found.push(Unusable::new(
                    "password",
                    "Missing key `username`, which belongs to this",
                    None,
                ));
            }
            (Some(_), Some(_)) if self.tls == MailTls::None => {
                let hint =
                    Some("set it to `starttls` or `tls`, or remove `username` and `password`");
                found.push(Unusable::new(
                    "tls",
                    "The password would be sent where others can read it",
                    hint,
                ));
            }
            _ => {}
        }
        let wrong = |text: &String| {
            text.parse::<Mailbox>().is_err().then(|| format!("`{text}` is not an address of mail"))
        };
        let hint = Some("write it like `ops@example.org` or `Operators <ops@example.org>`");
        found.extend(wrong(&self.from).map(|message| Unusable::new("from", message, hint)));
        found.extend(
            self.to.iter().filter_map(wrong).map(|message| Unusable::new("to", message, hint)),
        );
        found
    }

    /// The password in the forms in which it is said to the server.
    fn said(&self) -> Vec<String> {
        let Some(password) = &self.password else { return Vec::new() };
        let password = password.expose();
        let user = self.username.as_deref().unwrap_or_default();
        let plain = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
        vec![plain, BASE64_STANDARD.encode(password), password.to_owned()]
    }

    pub(super) fn open(&self) -> Result<Mail, NotifyError> {
        let lasting = |error: String| NotifyError::Lasting(error);
        let tls = || {
            TlsParameters::new(self.server.clone())
                .map_err(|error| lasting(format!("Could not set up TLS: {error}")))
        };
        let (tls, port) = match self.tls {
            MailTls::Starttls => (Tls::Required(tls()?), 587),
            MailTls::Tls => (Tls::Wrapper(tls()?), 465),
            MailTls::None => (Tls::None, 25),
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.server)
            .port(self.port.unwrap_or(port))
            .tls(tls)
            .timeout(Some(ATTEMPT));
        if let (Some(user), Some(password)) = (&self.username, &self.password) {
            transport =
                transport.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
        }
        let mailbox = |text: &String| {
            text.parse::<Mailbox>()
                .map_err(|error| lasting(format!("`{text}` is not an address: {error}")))
        };
        let mut envelope = Message::builder().from(mailbox(&self.from)?);
        for to in &self.to {
            envelope = envelope.to(mailbox(to)?);
        }
        Ok(Mail {
            transport: transport.build(),
            envelope,
            server: self.server.clone(),
            said: self.said(),
        })
    }
}

/// A mail server, and who is written to.
pub(super) struct Mail {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    /// The addresses, before each mail gets its own headers.
    envelope: MessageBuilder,
    server: String,
    /// What was said to log in.
    said: Vec<String>,
}

#[async_trait]
impl Notifier for Mail {
    async fn tell(&self, event: &Event) -> Result<(), NotifyError> {
        let built = self
            .envelope
            .clone()
            .message_id(None)
            .date(event.at.into())
            .subject(event.title())
            .header(ContentType::TEXT_PLAIN)
            .body(format!("{}\n\n{}\n", event.title(), event.text()));
        let mut mail = built
            .map_err(|error| NotifyError::Lasting(format!("Could not write the mail: {error}")))?;
        // So that nobody's absence is announced to it (RFC 3834).
        let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
        mail.headers_mut().insert_raw(HeaderValue::new(automatic, "auto-generated".to_owned()));
        let server = &self.server;
        let Ok(sent) = tokio::time::timeout(ATTEMPT, self.transport.send(mail)).await else {
            let seconds = ATTEMPT.as_secs();
            let error = format!(
                "The mail server `{server}` did not take the mail within {seconds} seconds"
            );
            return Err(NotifyError::Passing(error));
        };
        sent.map(|_| ()).map_err(|error| {
            let mut text = format!("The mail server `{server}` did not take the mail: {error}");
            // Some servers repeat what was said to them.
            for said in &self.said {
                text = text.replace(said, "***");
            }
            if error.is_permanent() || error.is_client() {
                NotifyError::Lasting(format!("{text}. Check the settings of this notifier"))
            } else {
                NotifyError::Passing(text)
            }
        })
    }
}
