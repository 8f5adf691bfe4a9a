//! `/healthz`, `/readyz` and `/metrics`, for people and probes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// What the pages are made from.
#[derive(Clone)]
pub struct Pages {
    /// What is in force.
    pub readiness: Arc<Readiness>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
}

/// Listens at `address`, and serves until `stop`.
pub async fn serve(address: SocketAddr, pages: Pages, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; give another --listen"))?;
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(pages);
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await.context("HTTP server")
}

async fn readyz(State(pages): State<Pages>) -> (StatusCode, String) {
    let now = pages.readiness.now();
    let mut body = String::new();
    match &now.applied {
        Some(fingerprint) => body.push_str(&format!("applied {fingerprint}\n")),
        None => body.push_str("nothing is in force yet\n"),
    }
    for line in now.error.iter().flat_map(|e| e.lines()) {
        body.push_str(&format!("error {line}\n"));
    }
    for (pod, why) in now.closed.iter() {
        let line: Vec<&str> = why.lines().collect();
        body.push_str(&format!("closed {pod}: {}\n", line.join(" ")));
    }
    let mut ready = now.applied.is_some() && now.error.is_none() && now.closed.is_empty();
    if pages.metrics.is_behind() {
        ready = false;
        body.push_str("error the kernel does not hold what it is to hold; it is tried again\n");
    }
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, body)
}

async fn metrics(State(pages): State<Pages>) -> (StatusCode, String) {
    // Some of the numbers are read from the kernel, by a thread that may wait.
    let encoded = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, pages.metrics.registry()).map(|()| text)
    });
    match encoded.await {
        Ok(Ok(text)) => (StatusCode::OK, text),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
    }
}
