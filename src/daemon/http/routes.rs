//! The routes: liveness, readiness, metrics and the status document.
//!
//! Anybody who can reach the page can read it. It has names, times, sizes and errors, and no
//! secrets.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::limits::ConnectionLimit;
use crate::daemon::{DaemonError, Scheduled};
use crate::engine;
use crate::model::Cancel;
use crate::report::{METRICS_TYPE, Status, metrics};

/// The configuration that is in force.
pub(in crate::daemon) type Current = watch::Receiver<Arc<Scheduled>>;

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
        let routes = Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics_text))
            .route("/api/status", get(status_document))
            .with_state(current);
        let stop = Cancel::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let served = axum::serve(ConnectionLimit::new(listener), routes)
                .with_graceful_shutdown(async move { stopped.cancelled().await });
            if let Err(error) = served.await {
                tracing::error!("the status page at {bound} ended: {error}");
            }
        });
        tracing::info!("status at http://{bound}");
        Ok(Self { address, stop })
    }
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
