//! `/healthz`, `/readyz` and `/metrics`, for people and probes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract;
use axum::http::StatusCode;
use axum::routing::get;
use httpdate::fmt_http_date;
use moat_apiserver::{KindState, State};
use moat_daemon::pages;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::authority::leaf::{Shown, Standing};
use crate::index::Index;
use crate::metrics::Metrics;

/// What the source has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Names the last good reading; `None` before the first.
    pub taken: Option<String>,
    /// What is wrong with the newest one, one problem a line.
    pub error: Option<String>,
}

/// What the pages are made from.
#[derive(Clone)]
pub struct Pages {
    /// What the source has said.
    pub reading: watch::Receiver<Reading>,
    /// How it stands with the API server, if objects come from one.
    pub source: Option<watch::Receiver<State>>,
    /// What there is.
    pub index: Arc<Mutex<Index>>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// What agents are shown.
    pub shown: Shown,
}

/// Listens at `address`, and serves until `stop`.
pub async fn serve(address: SocketAddr, from: Pages, stop: CancellationToken) -> anyhow::Result<()> {
    let router = Router::new().route("/readyz", get(readyz)).route("/metrics", get(metrics)).with_state(from);
    pages::serve(address, "--http", router, stop).await
}

/// Ready is who serves what its source says: agents that lag are told, and are no reason not to serve the others. Nor is an API
/// server that is away: what it said last is what there is to serve.
async fn readyz(extract::State(from): extract::State<Pages>) -> (StatusCode, String) {
    let Reading { taken, error } = from.reading.borrow().clone();
    let mut body = match &taken {
        Some(fingerprint) => format!("serving {fingerprint}\n"),
        None => "nothing is served yet\n".to_owned(),
    };
    for line in error.iter().flat_map(|error| error.lines()) {
        body.push_str(&format!("error {line}\n"));
    }
    body.push_str(&certificate(&from.shown.standing()));
    let states = from.source.map(|states| states.borrow().clone());
    for KindState { kind, lists, failures, error } in states.iter().flatten() {
        let how = match error {
            Some(error) => format!("away: {error}"),
            None if *lists == 0 => "not listed yet".to_owned(),
            None => "watched".to_owned(),
        };
        body.push_str(&format!("source {kind} lists {lists}, failures {failures}, {how}\n"));
    }
    for agent in from.index.lock().unwrap_or_else(PoisonError::into_inner).agents() {
        let state = if agent.current { "current" } else { "behind" };
        body.push_str(&format!("agent {} {state}", agent.node));
        if agent.closed > 0 {
            body.push_str(&format!(", {} pods closed", agent.closed));
        }
        let words: Vec<&str> = agent.error.split_whitespace().collect();
        if !words.is_empty() {
            body.push_str(&format!(": {}", words.join(" ")));
        }
        body.push('\n');
    }
    let ready = taken.is_some() && error.is_none();
    pages::readiness(ready, body)
}

/// A line about what agents are shown; none where they are shown nothing, and are to be shown nothing.
fn certificate(standing: &Standing) -> String {
    let Standing { certificate, authority, trouble } = standing;
    if certificate.is_none() && trouble.is_none() {
        return String::new();
    }
    let mut line = match certificate {
        Some(until) => format!("certificate until {}", fmt_http_date(*until)),
        None => "certificate none yet, and no agent is served without".to_owned(),
    };
    if let Some(until) = authority {
        line.push_str(&format!(", its CA until {}", fmt_http_date(*until)));
    }
    if let Some(trouble) = trouble {
        line.push_str(&format!(": {}", trouble.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    line + "\n"
}

async fn metrics(extract::State(from): extract::State<Pages>) -> (StatusCode, String) {
    pages::numbers(from.metrics.registry())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn readyz_says_what_agents_are_shown_and_why_they_are_shown_nothing() {
        assert_eq!(certificate(&Standing::default()), "");
        let mut standing =
            Standing { trouble: Some("the API server\nis away".into()), ..Standing::default() };
        let none = "certificate none yet, and no agent is served without: the API server is away\n";
        assert_eq!(certificate(&standing), none);
        let day = |days: u64| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400));
        (standing.certificate, standing.authority) = (day(1), day(2));
        let both =
            "certificate until Fri, 02 Jan 1970 00:00:00 GMT, its CA until Sat, 03 Jan 1970 00:00:00 GMT";
        assert_eq!(certificate(&standing), format!("{both}: the API server is away\n"));
        standing.trouble = None;
        assert_eq!(certificate(&standing), format!("{both}\n"));
    }
}
