//! The routes: liveness, readiness, metrics and the status document.
//!
//! Anybody who can reach the page can read it. It has names, times, sizes and errors, and no
//! secrets.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::connections::serve;
use crate::config::Host;
use crate::daemon::{DaemonError, Scheduled};
use crate::engine;
use crate::model::Cancel;
use crate::report::{METRICS_TYPE, Status, metrics};

/// The configuration that is in force.
pub(in crate::daemon) type Current = watch::Receiver<Arc<Scheduled>>;

/// Requests that read the catalog at a time; others wait. Liveness needs nothing.
const READERS: usize = 8;

/// Serves until it is dropped.
pub(in crate::daemon) struct StatusPage {
    pub(in crate::daemon) address: SocketAddr,
    stop: Cancel,
}

impl Drop for StatusPage {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl StatusPage {
    /// # Errors
    /// When the address cannot be listened on.
    pub(in crate::daemon) async fn open(
        address: SocketAddr,
        current: Current,
    ) -> Result<Self, DaemonError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| DaemonError::Listen { address, error })?;
        let bound = listener.local_addr().unwrap_or(address);
        let readers = Arc::new(Semaphore::new(READERS));
        let limited = from_fn(move |request: Request, next: Next| {
            let readers = Arc::clone(&readers);
            async move {
                // Nobody closes the semaphore; were it closed, nothing would be limited.
                let _reader = readers.acquire().await;
                next.run(request).await
            }
        });
        let routes = Router::new()
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics_text))
            .route("/api/status", get(status_document))
            .layer(limited)
            .route("/healthz", get(async || "alive\n"))
            .layer(from_fn_with_state(current.clone(), known_host))
            .with_state(current);
        let stop = Cancel::new();
        tokio::spawn(serve(listener, routes, stop.clone()));
        tracing::info!("status at http://{bound}");
        Ok(Self { address, stop })
    }
}

/// Refuses a name that somebody else's domain could have: a page in a browser would read what it
/// may not, from a name that came to mean this machine.
async fn known_host(State(current): State<Current>, request: Request, next: Next) -> Response {
    let refused = |code: StatusCode, why: String| (code, why + "\n").into_response();
    let mut named = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else {
        return refused(StatusCode::BAD_REQUEST, "there must be one `Host`".to_owned());
    };
    // Where a request has a whole address, its host counts.
    let whole = request.uri().authority().map(Authority::as_str);
    for host in [Some(host.to_str().unwrap_or_default()), whole].into_iter().flatten() {
        let host: Host = match host.parse() {
            Ok(host) => host,
            Err(error) => return refused(StatusCode::BAD_REQUEST, error),
        };
        let listed = current.borrow().settings.listen_hosts.clone().unwrap_or_default();
        if host.is_of_a_domain() && !listed.iter().any(|one| one.means(&host)) {
            let why = "this name is not in `listen_hosts` of the configuration";
            return refused(StatusCode::MISDIRECTED_REQUEST, why.to_owned());
        }
    }
    next.run(request).await
}

/// The status of every instance together.
async fn status(current: &Current) -> Status {
    let scheduled = Arc::clone(&current.borrow());
    let mut strategies = Vec::new();
    let mut problems = Vec::new();
    let mut at = None;
    for one in &scheduled.instances {
        let status = engine::status(&one.engine, &one.instance).await;
        at = Some(status.at);
        strategies.extend(status.strategies);
        problems.extend(status.problems);
    }
    Status::new(at.unwrap_or_default(), strategies, problems)
}

async fn ready(State(current): State<Current>) -> Response {
    let status = status(&current).await;
    let mut text = String::new();
    for strategy in status.strategies.iter().filter(|strategy| !strategy.state.is_well()) {
        let reason = strategy.reason.as_deref().unwrap_or_default();
        text.push_str(&format!(
            "{}/{} is {}: {reason}\n",
            strategy.instance, strategy.strategy, strategy.state
        ));
    }
    for problem in &status.problems {
        text.push_str(&format!("not known: {problem}\n"));
    }
    if status.ready {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn metrics_text(State(current): State<Current>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics(&status(&current).await)).into_response()
}

async fn status_document(State(current): State<Current>) -> Response {
    /// As the program prints it with `--json`.
    #[derive(serde::Serialize)]
    struct Document {
        format: u32,
        #[serde(flatten)]
        status: Status,
    }
    let document = Document { format: 1, status: status(&current).await };
    match serde_json::to_string_pretty(&document) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
