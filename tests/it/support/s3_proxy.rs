//! A proxy before a real S3 server that misbehaves as it is told.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::stores::setting;

/// A request, as far as a rule looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Put,
    Begin,
    Part(u32),
    Complete,
    Abort,
    Head,
    Get,
    List,
    Delete,
    Other,
}

impl Op {
    fn of(request: &Request<Incoming>) -> Self {
        let query: Vec<(String, String)> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let value =
            |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let in_bucket = request.uri().path().trim_matches('/').contains('/');
        match (request.method(), value("partNumber"), value("uploadId"), value("uploads")) {
            (&Method::PUT, Some(part), Some(_), _) => Self::Part(part.parse().unwrap()),
            (&Method::PUT, ..) if in_bucket => Self::Put,
            (&Method::POST, _, Some(_), _) => Self::Complete,
            (&Method::POST, _, _, Some(_)) => Self::Begin,
            (&Method::DELETE, _, Some(_), _) => Self::Abort,
            (&Method::DELETE, ..) => Self::Delete,
            (&Method::HEAD, ..) if in_bucket => Self::Head,
            (&Method::GET, ..) if value("list-type").is_some() => Self::List,
            (&Method::GET, ..) if in_bucket => Self::Get,
            _ => Self::Other,
        }
    }
}

/// What is done with a request instead of passing it on.
#[derive(Clone)]
pub(crate) enum Fault {
    /// Answers with this status and code, and passes nothing on.
    Say(u16, &'static str),
    /// The same, in the words of a store.
    SayInWords(u16, &'static str, &'static str),
    /// Closes the connection when a part of the request was read.
    DropRequest,
    /// Passes it on, and closes the connection without an answer.
    DropAnswer,
    /// Answers with this status and a body of so many bytes, and passes nothing on.
    Flood(u16, u64),
    /// Says that all is well, and passes nothing on.
    Swallow,
    /// Passes it on with a bit changed.
    Flip,
    /// Passes it on after this time.
    Slow(Duration),
    /// Passes it on, and breaks off the body of the answer after so many bytes.
    CutBody(usize),
    /// Passes it on, and does this before the answer is passed back.
    Then(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>),
    /// Both.
    ThenCut(Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>, usize),
    /// Passes it on, and replaces a text in the body of the answer.
    Rewrite(&'static str, &'static str),
    /// The same, where the text is there.
    Lie(&'static str, &'static str),
}

struct Rule {
    op: Op,
    /// Only where the path ends so.
    suffix: &'static str,
    fault: Fault,
    times: usize,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    seen: Vec<Op>,
    ignores_conditions: bool,
    /// Bytes of bodies that were passed back for objects.
    sent: u64,
}

/// The proxy. It ends with the runtime of the test.
pub(crate) struct S3Proxy {
    pub(crate) endpoint: String,
    /// That it shows, in the form PEM, when it speaks TLS.
    pub(crate) certificate: Option<String>,
    state: Arc<Mutex<State>>,
}

type Body = BoxBody<Bytes, io::Error>;

impl S3Proxy {
    /// A proxy that passes everything on to `upstream`, of the form `http://HOST:PORT`. The host
    /// that requests name is signed and stays.
    pub(crate) async fn before(upstream: &str) -> Self {
        Self::start(upstream, None).await
    }

    /// The same, speaking TLS with a certificate that nobody knows.
    pub(crate) async fn with_tls_before(upstream: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut proxy = Self::start(upstream, Some(TlsAcceptor::from(Arc::new(config)))).await;
        proxy.certificate = Some(made.cert.pem());
        proxy
    }

    async fn start(upstream: &str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let upstream = upstream.strip_prefix("http://").unwrap().to_owned();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, upstream, tls) = (Arc::clone(&shared), upstream.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, state, upstream).await,
                        // Whoever does not trust the certificate goes away.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, state, upstream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { endpoint, certificate: None, state }
    }

    /// Does this to the next `times` requests of the kind.
    pub(crate) fn inject(&self, op: Op, fault: Fault, times: usize) {
        self.inject_at(op, "", fault, times);
    }

    /// The same, for keys that end in `suffix`.
    pub(crate) fn inject_at(&self, op: Op, suffix: &'static str, fault: Fault, times: usize) {
        self.state.lock().unwrap().rules.push(Rule { op, suffix, fault, times });
    }

    /// From now on the server never sees the condition of a write, as if it ignored them.
    pub(crate) fn ignore_conditions(&self) {
        self.state.lock().unwrap().ignores_conditions = true;
    }

    /// From now on all is passed on.
    pub(crate) fn heal(&self) {
        self.state.lock().unwrap().rules.clear();
    }

    /// How many requests of the kind came.
    pub(crate) fn count(&self, op: Op) -> usize {
        self.state.lock().unwrap().seen.iter().filter(|seen| **seen == op).count()
    }
}

impl S3Proxy {
    /// How many bytes of objects were sent.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.state.lock().unwrap().sent
    }
}

impl State {
    fn next(&mut self, op: Op, path: &str) -> Option<Fault> {
        self.seen.push(op);
        let rule = self
            .rules
            .iter_mut()
            .find(|rule| rule.op == op && path.ends_with(rule.suffix) && rule.times > 0)?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn error(status: u16, code: &str, words: &str) -> Response<Body> {
    let text = format!("<Error><Code>{code}</Code><Message>{words}</Message></Error>");
    let text = format!("<?xml version=\"1.0\"?>{text}");
    Response::builder().status(status).body(full(text)).unwrap()
}

/// Serves one connection. One that is to be dropped ends with an error.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    state: Arc<Mutex<State>>,
    upstream: String,
) {
    let service = service_fn(|request| serve(request, Arc::clone(&state), upstream.clone()));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Signs a request anew from which a signed header was removed.
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>
fn sign_again(head: &mut hyper::http::request::Parts) {
    let text = |name: &str| head.headers[name].to_str().unwrap().trim().to_owned();
    let (authorization, time) = (text("authorization"), text("x-amz-date"));
    // Chunks that are signed one by one would need the same.
    let payload = text("x-amz-content-sha256");
    assert!(!payload.starts_with("STREAMING-AWS4"), "{payload}");
    let field = |name: &str| {
        let (_, rest) = authorization.split_once(name).unwrap();
        rest.split(',').next().unwrap().to_owned()
    };
    let (credential, signed) = (field("Credential="), field("SignedHeaders="));
    let names: Vec<&str> =
        signed.split(';').filter(|name| head.headers.contains_key(*name)).collect();
    let headers: String = names.iter().map(|name| format!("{name}:{}\n", text(name))).collect();
    let mut query: Vec<String> = head
        .uri
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
        .collect();
    query.sort();
    let (path, query, names) = (head.uri.path(), query.join("&"), names.join(";"));
    let request = format!("{}\n{path}\n{query}\n{headers}\n{names}\n{payload}", head.method);
    let (_, scope) = credential.split_once('/').unwrap();
    let hash = hex::encode(Sha256::digest(request));
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}");
    let secret = format!("AWS4{}", setting("HOLDFAST_TEST_S3_SECRET_KEY"));
    let key = scope.split('/').fold(secret.into_bytes(), |key, part| hmac(&key, part));
    let signature = hex::encode(hmac(&key, &to_sign));
    let fields = format!("Credential={credential}, SignedHeaders={names}, Signature={signature}");
    let signed = format!("AWS4-HMAC-SHA256 {fields}");
    head.headers.insert("authorization", signed.parse().unwrap());
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

async fn serve(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    upstream: String,
) -> Result<Response<Body>, io::Error> {
    let op = Op::of(&request);
    let fault = state.lock().unwrap().next(op, request.uri().path());
    let dropped = || io::Error::other("dropped");
    let (mut head, mut body) = request.into_parts();
    if state.lock().unwrap().ignores_conditions && head.headers.remove("if-none-match").is_some() {
        sign_again(&mut head);
    }
    if matches!(fault, Some(Fault::DropRequest)) {
        let _ = body.frame().await;
        return Err(dropped());
    }
    let mut body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if matches!(fault, Some(Fault::Flip)) {
        let mut changed = body.to_vec();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        body = changed.into();
    }
    match fault {
        Some(Fault::Say(status, code)) => return Ok(error(status, code, "As told")),
        Some(Fault::SayInWords(status, code, words)) => return Ok(error(status, code, words)),
        Some(Fault::Flood(status, bytes)) => {
            let chunk = Bytes::from(vec![b' '; 64 << 10]);
            let frames = (0..bytes >> 16).map(move |_| Ok(Frame::data(chunk.clone())));
            let body = StreamBody::new(stream::iter(frames)).boxed();
            return Ok(Response::builder().status(status).body(body).unwrap());
        }
        Some(Fault::Swallow) => {
            return Ok(Response::builder()
                .header("etag", "\"d41d8cd98f00b204e9800998ecf8427e\"")
                .body(full(""))
                .unwrap());
        }
        Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
        _ => {}
    }
    let stream = TcpStream::connect(&upstream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    let answer = sender
        .send_request(Request::from_parts(head, Full::new(body)))
        .await
        .map_err(io::Error::other)?;
    let (mut head, body) = answer.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    if op == Op::Get {
        state.lock().unwrap().sent += body.len() as u64;
    }
    if let Some(Fault::Then(act) | Fault::ThenCut(act, _)) = &fault {
        act().await;
    }
    match fault {
        Some(Fault::DropAnswer) => Err(dropped()),
        Some(Fault::CutBody(length) | Fault::ThenCut(_, length)) => {
            let frames = stream::iter([
                Ok(Frame::data(body.slice(..length.min(body.len())))),
                Err(dropped()),
            ]);
            Ok(Response::from_parts(head, StreamBody::new(frames).boxed()))
        }
        Some(Fault::Rewrite(from, to) | Fault::Lie(from, to)) => {
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(
                text.contains(from) || matches!(fault, Some(Fault::Lie(..))),
                "{from} is not \
                in {text}"
            );
            head.headers.remove("content-length");
            head.headers.remove("transfer-encoding");
            Ok(Response::from_parts(head, full(text.replace(from, to))))
        }
        _ => Ok(Response::from_parts(head, full(body))),
    }
}
