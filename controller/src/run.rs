//! `moat-controller`: from its source to the agents, until it is told to stop.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use moat_manifests::Errors;
use moat_policies::Limits;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::authority::leaf::Shown;
use crate::entrance::Entrance;
use crate::events::Events;
use crate::http::{self, Pages};
use crate::index::Index;
use crate::metrics::Metrics;
use crate::replicas;
use crate::serve::Serve;
use crate::source::{Source, Taken};
use crate::status::Status;

/// How the controller is to work.
#[derive(Clone)]
pub struct Options {
    /// Where objects come from.
    pub source: Source,
    /// How agents are let in.
    pub entrance: Entrance,
    /// Where the replicas of this controller are, as agents are to connect to them. This one may be among them. None: where an API
    /// server says that they are, if there is one.
    pub replicas: Vec<String>,
    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub http: SocketAddr,
    /// How much the policies of one pod may ask for.
    pub limits: Limits,
}

/// Runs the controller until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let client = options.source.client().cloned();
    options.entrance.check(client.is_some())?;
    let index = Arc::new(Mutex::new(Index::new(options.limits)));
    let mut source = options.source.begin()?;
    let shown = Shown::default();
    let metrics = Arc::new(Metrics::new(index.clone(), source.states(), shown.clone()));
    let (tell, reading) = watch::channel(http::Reading::default());
    let pages = Pages {
        reading,
        source: source.states(),
        index: index.clone(),
        metrics: metrics.clone(),
        shown: shown.clone(),
    };
    let mut http = tokio::spawn(http::serve(options.http, pages, stop.clone()));
    let name = name();
    let events = Events::default();
    if let Some(client) = &client {
        let events = events.clone().write(client.clone(), name.clone(), metrics.clone(), stop.clone());
        tokio::spawn(events);
    }
    let status = client.clone().map(|client| Status {
        index: index.clone(),
        client,
        namespace: options.entrance.namespace.clone(),
        name: name.clone(),
        metrics: metrics.clone(),
    });
    let mut refused = BTreeSet::new();
    let mut take = |taken: Result<Taken, Errors>| match taken {
        Ok(Taken { changes, fingerprint, notes }) => {
            changes.warnings.iter().for_each(|warning| warn!("{warning}"));
            index.lock().unwrap_or_else(PoisonError::into_inner).read_as(changes, &fingerprint);
            metrics.readings.inc();
            tell.send_replace(http::Reading { taken: Some(fingerprint), error: None });
            for (policy, note) in notes {
                let findings = note.iter().flat_map(|note| &note.refused);
                findings.for_each(|finding| error!(%policy, "isolates whom it may select: {finding}"));
                match note.as_ref().is_some_and(|note| !note.refused.is_empty()) {
                    true => refused.insert(policy.clone()),
                    false => refused.remove(&policy),
                };
                events.say(policy, note);
            }
            metrics.policies_refused.set(i64::try_from(refused.len()).unwrap_or(i64::MAX));
        }
        Err(errors) => {
            metrics.reading_errors.inc();
            errors.iter().for_each(|error| error!("refused, what was served stays: {error}"));
            tell.send_modify(|reading| reading.error = Some(errors.to_string()));
        }
    };

    let gate = options.entrance.prepare(client.clone(), shown, &stop).await?;
    // Nobody is listened to before all objects are there: half of them would be another policy.
    while tell.borrow().taken.is_none() {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ended = &mut http => return ended.context("HTTP server")?,
            taken = source.next() => take(taken?),
        }
    }
    let listen = &options.entrance.listen;
    let listener = gate.listen(listen).await?;
    info!(%listen, %name, tokens = gate.tokens.is_some(), "serving");
    let (_known, replicas) = match &client {
        // Whoever serves by TLS is one of those behind the Service.
        Some(client) if gate.is_tls() && options.replicas.is_empty() => {
            let (tell, replicas) = watch::channel(None);
            let follow = replicas::follow(client.clone(), options.entrance.namespace.clone(), tell.clone());
            tokio::spawn(stop.clone().run_until_cancelled_owned(follow));
            (tell, replicas)
        }
        _ => watch::channel(Some(options.replicas)),
    };
    let serve =
        Serve::new(index.clone(), metrics.clone(), name, stop.clone()).checking(gate.tokens).beside(replicas);
    let mut served = tokio::spawn(serve.run(listener));
    let status = status.map(|status| tokio::spawn(status.run(stop.clone())));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            ended = &mut http => return ended.context("HTTP server")?,
            ended = &mut served => return ended.context("server")?.context("cannot serve agents any more"),
            taken = source.next() => take(taken?),
        }
    }
    info!("stopping; agents keep what they were told in force");
    served.await.context("server")?.context("server")?;
    if let Some(status) = status {
        status.await.context("status")?;
    }
    http.await.context("HTTP server")?
}

/// What this process is called: where it runs, which it is, and when it began.
fn name() -> Arc<str> {
    let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}-{:x}", host.trim(), std::process::id(), began.as_nanos()).into()
}
