//! What a scheduler tells over HTTP: whether it lives, whether all is as fresh as promised, and the
//! figures.
//!
//! Whoever reaches the page can read it. It has names, times, sizes and errors, none of which holds
//! a secret.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::door::Door;
use super::{DaemonError, Scheduled};
use crate::engine;
use crate::model::Cancel;
use crate::report::{METRICS_TYPE, Status, metrics};

/// What is looked after at present.
pub(super) type Present = watch::Receiver<Arc<Scheduled>>;

/// The page, until it is dropped.
pub(super) struct Page {
    pub(super) address: SocketAddr,
    stop: Cancel,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Page {
    /// Listens on `address`.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(super) async fn open(address: SocketAddr, present: Present) -> Result<Self, DaemonError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| DaemonError::Listen { address, error })?;
        let bound = listener.local_addr().unwrap_or(address);
        let routes = Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(figures))
            .route("/api/status", get(document))
            .with_state(present);
        let stop = Cancel::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            let served = axum::serve(Door::new(listener), routes)
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
async fn status(present: &Present) -> Status {
    let scheduled = Arc::clone(&present.borrow());
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

async fn ready(State(present): State<Present>) -> Response {
    let status = status(&present).await;
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

async fn figures(State(present): State<Present>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], metrics(&status(&present).await)).into_response()
}

async fn document(State(present): State<Present>) -> Response {
    /// As the program prints it with `--json`.
    #[derive(serde::Serialize)]
    struct Document {
        format: u32,
        #[serde(flatten)]
        status: Status,
    }
    let document = Document { format: 1, status: status(&present).await };
    match serde_json::to_string_pretty(&document) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
