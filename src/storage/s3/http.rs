//! The HTTP clients: which certificates they trust, and how much of an answer they read.

use std::path::Path;

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, HttpClient, Intercept, RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::{Builder, tls};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, Metadata};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::model::{ByteSize, read_input};
use crate::storage::StorageError;

/// A file of more bytes has no certificates.
const CA_BYTES: u64 = 16 << 20;

fn https(context: Option<tls::TlsContext>) -> SharedHttpClient {
    let client =
        Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc));
    match context {
        Some(context) => client.tls_context(context).build_https(),
        None => client.build_https(),
    }
}

/// An HTTP client that trusts the certificates of the system.
pub(super) fn plain() -> SharedHttpClient {
    https(None)
}

/// An HTTP client that also trusts the certificates in `file`. They are read here first, since the
/// client itself takes a file that is none for a mistake of the programmer.
pub(super) fn trusting(file: &Path) -> Result<SharedHttpClient, StorageError> {
    let unsuitable = |problem: String| {
        StorageError::unsuitable(format!(
            "The `ca_file` `{}` cannot be used: {problem}",
            file.display()
        ))
    };
    let pem = read_input(file, CA_BYTES).map_err(|error| unsuitable(error.to_string()))?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unsuitable(format!("it is not in the form PEM ({error})")))?;
    if certificates.is_empty() {
        return Err(unsuitable("it has no certificate in the form PEM".to_owned()));
    }
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| unsuitable(format!("a certificate in it is not one ({error})")))?;
    }
    let context = tls::TlsContext::builder()
        .with_trust_store(tls::TrustStore::default().with_pem_certificate(pem))
        .build()
        .map_err(|error| unsuitable(error.to_string()))?;
    Ok(https(Some(context)))
}

/// The client for services that say who we are: the identity service of the machine, STS. Their
/// answers are short.
pub(super) fn for_credentials(client: SharedHttpClient) -> SharedHttpClient {
    SharedHttpClient::new(Bounded(client))
}

#[derive(Debug)]
struct Bounded<C>(C);

impl HttpClient for Bounded<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Bounded(self.0.http_connector(settings, components)))
    }
}

impl HttpConnector for Bounded<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            let mut answer = answer.await?;
            limit_body(&mut answer, LARGEST_REFUSAL);
            Ok(answer)
        })
    }
}

/// Ends the body with an error after so many bytes.
fn limit_body(response: &mut HttpResponse, limit: usize) {
    let body = std::mem::replace(response.body_mut(), SdkBody::taken());
    let limited = Limited::new(body, limit).map_err(move |error| -> BoxError {
        if error.is::<LengthLimitError>() {
            format!("the answer has more than {}", ByteSize(limit as u64)).into()
        } else {
            error
        }
    });
    *response.body_mut() = SdkBody::from_body_1_x(limited);
}

/// The largest answer that is read into memory: a page of a listing with a thousand long keys.
const LARGEST_ANSWER: usize = 8 << 20;
/// The largest answer that says why a request failed.
const LARGEST_REFUSAL: usize = 1 << 20;

/// Ends what the SDK would read into memory without a limit: everything but the content of an
/// object.
#[derive(Debug)]
pub(super) struct Limits;

impl Intercept for Limits {
    fn name(&self) -> &'static str {
        "Limits"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_content = bag.load::<Metadata>().is_some_and(|of| of.name() == "GetObject");
        let response = context.response_mut();
        let limit = match response.status().is_success() {
            true if is_content => return Ok(()),
            true => LARGEST_ANSWER,
            false => LARGEST_REFUSAL,
        };
        limit_body(response, limit);
        Ok(())
    }
}
