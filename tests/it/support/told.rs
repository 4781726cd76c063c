//! Whom a notifier talks to: a server of the web and a mail server, which remember what they were
//! told.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{PATIENCE, repository, variable};

/// A request that came.
#[derive(Debug, Clone)]
pub struct Got {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Got {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// How a request is answered; with 200 where nothing else is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    Status(u16),
    /// Not at all.
    Silence,
    /// With a status and the address of another path of this server.
    Redirect(u16, &'static str),
}

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    got: Vec<Got>,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// A server of the web that remembers its requests. It ends with the test.
pub struct Listener {
    /// `http://127.0.0.1:PORT`
    pub address: String,
    state: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl Listener {
    pub fn new() -> Self {
        Self::start(None)
    }

    /// One that speaks TLS as that authority, and is called `localhost`.
    pub fn with_tls(authority: &Authority) -> Self {
        Self::start(Some(authority.acceptor()))
    }

    fn start(tls: Option<TlsAcceptor>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = if tls.is_some() {
            format!("https://localhost:{port}")
        } else {
            format!("http://127.0.0.1:{port}")
        };
        let state = Shared::default();
        let shared = Arc::clone(&state);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => converse(stream, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, state, _runtime: runtime }
    }

    /// Answers the next requests so.
    pub fn answer(&self, answers: &[Answer]) {
        self.state.0.lock().unwrap().answers = answers.iter().copied().collect();
    }

    /// Waits until something came.
    pub fn await_first(&self) {
        let (state, came) = &*self.state;
        let guard = state.lock().unwrap();
        let waited =
            came.wait_timeout_while(guard, PATIENCE, |state| state.got.is_empty()).unwrap().1;
        assert!(!waited.timed_out(), "a request comes");
    }

    /// Everything that came since this was last asked.
    pub fn take(&self) -> Vec<Got> {
        std::mem::take(&mut self.state.0.lock().unwrap().got)
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, state: Shared) {
    let service = service_fn(|request| serve(request, Arc::clone(&state)));
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn serve(
    request: Request<Incoming>,
    state: Shared,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header =
        |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let got = Got {
        method: head.method.to_string(),
        path: head.uri.to_string(),
        headers: head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), header(value)))
            .collect(),
        body: String::from_utf8(body.to_vec()).unwrap(),
    };
    // What services do that want to be helpful.
    let repeated = format!("Cannot {} {} with {:?}", got.method, got.path, got.headers);
    let answer = {
        let (state, came) = &*state;
        let mut state = state.lock().unwrap();
        state.got.push(got);
        came.notify_all();
        state.answers.pop_front().unwrap_or(Answer::Status(200))
    };
    let response = Response::builder();
    let response = match answer {
        Answer::Status(status) => response.status(status),
        Answer::Redirect(status, path) => response.status(status).header("location", path),
        Answer::Silence => std::future::pending().await,
    };
    Ok(response.body(Full::new(repeated.into())).unwrap())
}

/// A certificate of `localhost`, its key, and their files in `dir`. Who is to trust it has its file
/// in `SSL_CERT_FILE`.
pub struct Authority {
    pub certificate: PathBuf,
    key: PathBuf,
    config: Arc<rustls::ServerConfig>,
}

impl Authority {
    pub fn new(dir: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let authority = Self {
            certificate: dir.join("localhost.pem"),
            key: dir.join("localhost.key"),
            config: Arc::new(config),
        };
        std::fs::write(&authority.certificate, made.cert.pem()).unwrap();
        std::fs::write(&authority.key, made.signing_key.serialize_pem()).unwrap();
        authority
    }

    fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

/// A mail server that remembers its mails. It ends with the test.
pub struct MailServer {
    pub port: u16,
    child: Child,
    mails: mpsc::Receiver<serde_json::Value>,
}

impl MailServer {
    /// One that is called `localhost`: `starttls`, `tls` or `plain`. But for `plain` it wants the
    /// user `robot` with this password.
    pub fn new(mode: &str, authority: &Authority, password: &str) -> Self {
        let mut child = Command::new(variable("HOLDFAST_TEST_PYTHON"))
            .arg(repository().join("tests/it/support/mail_server.py"))
            .args([mode.as_ref(), authority.certificate.as_os_str(), authority.key.as_os_str()])
            .env("PASSWORD", password)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port = lines.next().expect("the mail server begins").parse().unwrap();
        let (sender, mails) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { port, child, mails }
    }

    /// The next mail.
    pub fn mail(&self) -> serde_json::Value {
        self.mails.recv_timeout(PATIENCE).expect("a mail comes")
    }

    /// Whether no mail came that was not asked for.
    pub fn is_empty(&self) -> bool {
        self.mails.try_recv().is_err()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
