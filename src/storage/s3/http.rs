//! The HTTP clients: which certificates they trust, and how much of an answer they read.

use std::net::IpAddr;
use std::path::Path;

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, HttpClient, Intercept, RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Builder, Connector, tls};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse, Metadata};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::model::{ByteSize, read_input};
use crate::storage::StorageError;

/// A file of more bytes has no certificates.
const CA_BYTES: u64 = 16 << 20;

/// The HTTP clients of one storage.
pub(super) struct Clients {
    /// For the store. It goes through the proxy that the environment names.
    pub(super) store: SharedHttpClient,
    /// For the services that say who we are: STS, and the identity service of the machine, which
    /// no proxy reaches. Their answers are short.
    pub(super) credentials: SharedHttpClient,
}

impl Clients {
    fn new(context: &tls::TlsContext) -> Self {
        let store = https(context.clone());
        // These speak plain HTTP.
        let own = Builder::new().build_http();
        let credentials = SharedHttpClient::new(Bounded { far: store.clone(), own });
        Self { store, credentials }
    }

    /// Those that trust the certificates of the system.
    pub(super) fn plain() -> Self {
        Self::new(&tls::TlsContext::default())
    }
}

fn https(context: tls::TlsContext) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder();
        connector.set_connector_settings(settings.cloned());
        if let Some(components) = components {
            connector.set_sleep_impl(components.sleep_impl());
        }
        connector
            .proxy_config(ProxyConfig::from_env())
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .tls_context(context.clone())
            .build()
    })
}

/// The proxy that requests to `endpoint` go through: its host and port.
pub(super) fn proxy_to(endpoint: &str) -> Option<String> {
    let found = Matcher::from_env().intercept(&endpoint.parse().ok()?)?;
    let host = found.uri().host()?.to_owned();
    Some(found.uri().port_u16().map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
}

/// Clients that also trust the certificates in `file`. They are read here first, since the
/// client itself takes a file that is none for a mistake of the programmer.
pub(super) fn trusting(file: &Path) -> Result<Clients, StorageError> {
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
    Ok(Clients::new(&context))
}

/// Reads a bounded part of an answer.
#[derive(Debug)]
struct Bounded<C> {
    far: C,
    /// For addresses of the machine's own link.
    own: C,
}

impl HttpClient for Bounded<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Bounded {
            far: self.far.http_connector(settings, components),
            own: self.own.http_connector(settings, components),
        })
    }
}

impl HttpConnector for Bounded<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let uri: Option<Uri> = request.uri().parse().ok();
        let uri = uri.filter(|uri| uri.scheme_str() == Some("http"));
        let host = uri.as_ref().and_then(Uri::host).map(|host| host.trim_matches(['[', ']']));
        let is_own = host.and_then(|host| host.parse::<IpAddr>().ok()).is_some_and(|ip| match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
            // fd00:ec2::/32, as AWS has it.
            IpAddr::V6(ip) => {
                ip.is_unicast_link_local() || ip.is_unique_local() || ip.is_loopback()
            }
        });
        let answer = if is_own { self.own.call(request) } else { self.far.call(request) };
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
