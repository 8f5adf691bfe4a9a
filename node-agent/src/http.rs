//! `/healthz`, `/readyz` and `/metrics`, for people and probes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use moat_daemon::pages;
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
pub async fn serve(address: SocketAddr, from: Pages, stop: CancellationToken) -> anyhow::Result<()> {
    let router = Router::new().route("/readyz", get(readyz)).route("/metrics", get(metrics)).with_state(from);
    pages::serve(address, "--listen", router, stop).await
}

async fn readyz(State(from): State<Pages>) -> (StatusCode, String) {
    let now = from.readiness.now();
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
    if from.metrics.is_behind() {
        ready = false;
        body.push_str("error the kernel does not hold what it is to hold; it is tried again\n");
    }
    pages::readiness(ready, body)
}

async fn metrics(State(from): State<Pages>) -> (StatusCode, String) {
    // Some of the numbers are read from the kernel, by a thread that may wait.
    let numbers = tokio::task::spawn_blocking(move || pages::numbers(from.metrics.registry()));
    numbers.await.unwrap_or((StatusCode::INTERNAL_SERVER_ERROR, String::new()))
}
