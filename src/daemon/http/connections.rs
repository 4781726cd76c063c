//! The connections of the status page, bounded in number, time and memory: a flood of requests
//! takes nothing from the backups, and idle ones keep nobody out.
//!
//! Accepting waits for no client. A connection is one request: it has little time to send its head,
//! and ends with the answer. Where there are too many, the one that has waited longest without a
//! request goes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::model::Cancel;

/// Connections at a time.
const MOST: usize = 128;
/// How long a client may take to send its request.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last, whatever it does.
const LIFETIME: Duration = Duration::from_secs(60);
/// What a connection may hold of what it sent, in bytes.
const BUFFER: usize = 16 << 10;

struct Open {
    /// Whether its request has arrived.
    asked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

/// Serves until `stop`. Requests that have arrived by then are answered.
pub(super) async fn serve(mut listener: TcpListener, routes: Router, stop: Cancel) {
    let mut open: VecDeque<Open> = VecDeque::new();
    loop {
        let (stream, _) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = Listener::accept(&mut listener) => accepted,
        };
        open.retain(|one| !one.task.is_finished());
        while open.len() >= MOST {
            let idle = open.iter().position(|one| !one.asked.load(Ordering::Relaxed));
            if let Some(oldest) = open.remove(idle.unwrap_or_default()) {
                oldest.task.abort();
                // Until it has ended, its socket is still open.
                let _ = oldest.task.await;
            }
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(answer(stream, routes.clone(), Arc::clone(&asked)));
        open.push_back(Open { asked, task });
    }
    for one in open.iter().filter(|one| !one.asked.load(Ordering::Relaxed)) {
        one.task.abort();
    }
}

/// One connection. How it ends is the client's affair.
async fn answer(stream: TcpStream, routes: Router, asked: Arc<AtomicBool>) {
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        routes.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(LIFETIME, connection).await {
        tracing::debug!("a connection to the status page ended: {error}");
    }
}
