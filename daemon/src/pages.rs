//! `/healthz`, `/readyz` and `/metrics`, for people and probes.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Listens at `address`, which the `flag` of the command line gives, and serves the pages and `/healthz` until `stop`.
pub async fn serve(
    address: SocketAddr,
    flag: &str,
    pages: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; give another {flag}"))?;
    let app = pages.route("/healthz", get(|| async { "ok\n" }));
    axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await.context("HTTP server")
}

/// What `/readyz` answers.
pub fn readiness(ready: bool, body: String) -> (StatusCode, String) {
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

/// What `/metrics` answers.
pub fn numbers(registry: &Registry) -> (StatusCode, String) {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => (StatusCode::OK, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
    }
}
