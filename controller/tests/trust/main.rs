//! Who is let in: over real TLS on this host, with tokens that an API server is asked about.
#![allow(clippy::unwrap_used)]

mod agent;
mod api_server;
mod authority;
mod files;
mod real;
#[path = "../../../apiserver/tests/live/server.rs"]
#[allow(dead_code, reason = "the source's tests use the rest")]
mod server;
mod tokens;

use std::time::{Duration, Instant};

/// What has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !so().await {
        assert!(begin.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
