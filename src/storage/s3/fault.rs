//! What a store's refusal means to the caller.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::Bucket;
use super::http::proxy_to;
use crate::storage::{StorageError, StorageErrorKind};

/// Why a request failed, freed of the type of the request.
#[derive(Debug)]
pub(super) struct Fault {
    /// The HTTP status of the last answer, if there was one.
    status: Option<u16>,
    /// The store's word for it: `NoSuchKey`.
    code: Option<String>,
    /// What was said, by the store or by the network.
    message: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The store answered.
    Answer,
    /// It did not, or not in time, or not to the end.
    Network,
    /// The request could not be made.
    Request,
    /// The run was cancelled, and the answer did not come soon after.
    Cancelled,
}

impl Fault {
    pub(super) fn of<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().map(ToOwned::to_owned);
        let kind = match error {
            SdkError::ServiceError(_) => Kind::Answer,
            SdkError::ConstructionFailure(_) => Kind::Request,
            SdkError::DispatchFailure(failure) if failure.is_user() => Kind::Request,
            _ => Kind::Network,
        };
        let message = match (kind, error.message()) {
            (Kind::Answer, Some(message)) => message.to_owned(),
            (Kind::Answer, None) => String::new(),
            _ => chain(error),
        };
        Self { status, code, message, kind }
    }

    /// The run was cancelled, and the answer did not come soon after.
    pub(super) fn cancelled() -> Self {
        Self { status: None, code: None, message: "Cancelled".to_owned(), kind: Kind::Cancelled }
    }

    /// What the store said, with its word for it. Never a credential.
    fn problem(&self, bucket: &Bucket) -> String {
        let said = match (&self.code, self.status) {
            (Some(code), _) if self.message.is_empty() => code.clone(),
            (Some(code), _) => format!("{code}: {}", self.message),
            (None, Some(status)) if self.message.is_empty() => format!("HTTP status {status}"),
            (None, Some(status)) => format!("{} (HTTP status {status})", self.message),
            (None, None) => self.message.clone(),
        };
        let said = bucket.without_credentials(said.trim_end_matches('.'));
        match self.hint(bucket) {
            Some(hint) => format!("{said}; {hint}"),
            None => said,
        }
    }

    fn is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    fn mentions(&self, words: &[&str]) -> bool {
        let message = self.message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }

    /// The object is not there. An answer to HEAD has no body, hence no code but one made of the
    /// status.
    pub(super) fn is_missing(&self) -> bool {
        self.is(&["NoSuchKey"])
            || (self.status == Some(404) && (self.code.is_none() || self.is(&["NotFound"])))
    }

    /// The condition of a write did not hold.
    pub(super) fn is_precondition(&self) -> bool {
        self.status == Some(412)
    }

    pub(super) fn is_no_such_upload(&self) -> bool {
        self.is(&["NoSuchUpload"])
    }

    /// The store does not know such a request.
    pub(super) fn is_unknown_request(&self) -> bool {
        self.status == Some(501) || self.is(&["NotImplemented", "MethodNotAllowed"])
    }

    /// The store answered that the request is wrong, and not that it is forbidden.
    pub(super) fn is_refusal(&self) -> bool {
        self.kind == Kind::Answer
            && !self.is_denied()
            && self.status.is_some_and(|status| {
                (400..500).contains(&status) && !matches!(status, 404 | 408 | 429)
            })
    }

    pub(super) fn is_denied(&self) -> bool {
        !self.is_full()
            && (matches!(self.status, Some(401 | 403))
                || self.is(&[
                    "AccessDenied",
                    "InvalidAccessKeyId",
                    "SignatureDoesNotMatch",
                    "AuthorizationHeaderMalformed",
                    "ExpiredToken",
                    "InvalidToken",
                    "RequestTimeTooSkewed",
                ]))
    }

    /// It was refused with a status alone, as every answer to HEAD is.
    pub(super) fn is_wordless(&self) -> bool {
        self.message.is_empty() && matches!(self.status, Some(400 | 401 | 403))
    }

    /// The store keeps the object from being deleted.
    pub(super) fn is_locked(&self) -> bool {
        self.is(&["ObjectLocked", "InvalidObjectState"])
            || (self.mentions(&["object lock", "worm", "retention", "legal hold"])
                && matches!(self.status, Some(400 | 403 | 409)))
    }

    fn is_full(&self) -> bool {
        self.status == Some(507)
            || self.is(&["QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded",
                "InsufficientStorage"])
            // Garage says `AccessDenied` to a bucket whose quota is used up.
            || (self.is(&["AccessDenied", "Forbidden"]) && self.mentions(&["quota", "size limit"]))
    }

    /// It may work at another time.
    pub(super) fn may_pass(&self) -> bool {
        match self.kind {
            Kind::Network => !self.is_tls() && !self.is_unsigned(),
            Kind::Request | Kind::Cancelled => false,
            Kind::Answer => {
                self.status.is_some_and(|status| {
                    matches!(status, 408 | 429) || (status >= 500 && status != 501 && status != 507)
                }) || self.is(&[
                    "SlowDown",
                    "RequestTimeout",
                    "ServiceUnavailable",
                    "InternalError",
                    "ConditionalRequestConflict",
                ])
            }
        }
    }

    fn is_tls(&self) -> bool {
        self.kind == Kind::Network
            && self.mentions(&["certificate", "corrupt message", "tls", "handshake"])
    }

    /// There were no credentials to sign with.
    fn is_unsigned(&self) -> bool {
        self.kind != Kind::Answer && self.mentions(&["credential", "no providers in chain"])
    }

    /// What to do about it.
    fn hint(&self, bucket: &Bucket) -> Option<String> {
        let hint = match self.code.as_deref().unwrap_or_default() {
            "NoSuchBucket" => format!("make the bucket `{}` or correct `bucket`", bucket.name),
            "InvalidAccessKeyId" => "the store does not know this access key; correct \
                `access_key_id`"
                .to_owned(),
            "SignatureDoesNotMatch" => {
                "the secret does not belong to the access key, or something between changes the \
                 requests; correct \
                 `secret_access_key`"
                    .to_owned()
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect" => {
                "the bucket is of another region or endpoint; correct `region` or `endpoint`"
                    .to_owned()
            }
            "ExpiredToken" | "InvalidToken" => "the temporary credentials have run out; renew \
                them"
                .to_owned(),
            "RequestTimeTooSkewed" => "set the clock of this machine".to_owned(),
            _ if self.status == Some(301) => "correct `region` or `endpoint`".to_owned(),
            _ if self.is_full() => "delete something there, or raise the quota".to_owned(),
            _ if self.is_unsigned() => {
                "set `access_key_id` and `secret_access_key`, or give credentials in one of the \
                 ways of the AWS SDK"
                    .to_owned()
            }
            _ if self.is_tls() => format!(
                "no trusted connection to `{}`: set `ca_file` when its certificate is of an \
                 authority of your own, and \
                 correct `endpoint` when it does not speak TLS",
                bucket.endpoint
            ),
            _ if self.kind == Kind::Network => {
                let proxy = proxy_to(&bucket.endpoint);
                let proxy = proxy
                    .map(|proxy| format!(" through the proxy `{proxy}` of the environment"))
                    .unwrap_or_default();
                let late = self.mentions(&["timed out", "timeout"]);
                let timeout = if late { ", or raise `timeout`" } else { "" };
                format!("check that `{}` can be reached{proxy}{timeout}", bucket.endpoint)
            }
            _ if self.is_denied() => {
                "check the access key, its secret and what it may do".to_owned()
            }
            // An answer to HEAD has no words.
            "" if self.status == Some(400) => {
                "check `region`, `endpoint` and the access key".to_owned()
            }
            _ => return None,
        };
        Some(hint)
    }

    /// The error for a caller who attempted `attempt`.
    pub(super) fn into_error(self, bucket: &Bucket, attempt: &str) -> StorageError {
        let kind = if self.kind == Kind::Cancelled {
            return StorageError::cancelled();
        } else if self.is_full() {
            StorageErrorKind::Full
        } else if self.is_denied() || self.is_unsigned() {
            StorageErrorKind::Denied
        } else if self.may_pass() {
            StorageErrorKind::Unavailable
        } else {
            StorageErrorKind::Failed
        };
        StorageError::new(kind, bucket.address(), attempt, self.problem(bucket))
    }
}

/// What the layers of the SDK say of themselves, which helps nobody.
const LAYERS: [&str; 4] = ["dispatch failure", "response error", "io error", "other"];

/// An error and its causes, each said once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !text.is_empty()
            && !LAYERS.contains(&text.as_str())
            && !parts.iter().any(|part| part.contains(&text))
        {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}
