//! `moat-controller`: from its source to the agents, until it is told to stop.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use moat_manifests::{Errors, Folders, Reading};
use moat_policies::Limits;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::http::{self, Pages};
use crate::index::Index;
use crate::listen::Listen;
use crate::metrics::Metrics;
use crate::serve::Serve;

/// How the controller is to work.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where objects come from.
    pub folders: Folders,
    /// Where agents connect.
    pub listen: Listen,
    /// Whether that may be where others could read along.
    pub insecure: bool,
    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub http: SocketAddr,
    /// How much the policies of one pod may ask for.
    pub limits: Limits,
}

/// Runs the controller until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    options.listen.check(options.insecure)?;
    let index = Arc::new(Mutex::new(Index::new(options.limits)));
    let metrics = Arc::new(Metrics::new(index.clone()));
    let (tell, reading) = watch::channel(http::Reading::default());
    let pages = Pages { reading, index: index.clone(), metrics: metrics.clone() };
    let mut http = tokio::spawn(http::serve(options.http, pages, stop.clone()));
    let mut readings = watch_folders(options.folders)?;
    let take = |reading: Result<Reading, Errors>| match reading {
        Ok(Reading { changes, fingerprint }) => {
            changes.warnings.iter().for_each(|warning| warn!("{warning}"));
            index.lock().unwrap_or_else(PoisonError::into_inner).read_as(changes, &fingerprint);
            metrics.readings.inc();
            tell.send_replace(http::Reading { taken: Some(fingerprint), error: None });
        }
        Err(errors) => {
            metrics.reading_errors.inc();
            errors.iter().for_each(|error| error!("refused, what was served stays: {error}"));
            tell.send_modify(|reading| reading.error = Some(errors.to_string()));
        }
    };

    let gone = "the manifest folders are not watched any more";
    // Nobody is listened to before all objects are there: half of them would be another policy.
    while tell.borrow().taken.is_none() {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ended = &mut http => return ended.context("HTTP server")?,
            reading = readings.recv() => take(reading.context(gone)?),
        }
    }
    let listener = options.listen.bind().await?;
    let name = name();
    info!(listen = %options.listen, %name, "serving");
    let serve = Serve::new(index.clone(), metrics.clone(), name, stop.clone());
    let mut served = tokio::spawn(serve.run(listener));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            ended = &mut http => return ended.context("HTTP server")?,
            ended = &mut served => return ended.context("server")?.context("cannot serve agents any more"),
            reading = readings.recv() => take(reading.context(gone)?),
        }
    }
    info!("stopping; agents keep what they were told in force");
    served.await.context("server")?.context("server")?;
    http.await.context("HTTP server")?
}

/// What this process is called: where it runs, which it is, and when it began.
fn name() -> Arc<str> {
    let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{:x}", std::process::id(), began.as_nanos()).into()
}

/// Readings from a thread of its own: it waits for the kernel.
fn watch_folders(folders: Folders) -> anyhow::Result<mpsc::Receiver<Result<Reading, Errors>>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || {
            if let Err(error) = folders.watch(|reading| sender.blocking_send(reading).is_ok()) {
                error!("cannot watch the manifest folders: {error}");
            }
        })
        .context("cannot start a thread")?;
    Ok(receiver)
}
