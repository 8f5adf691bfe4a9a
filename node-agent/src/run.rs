//! `moat-agent run`: from readings and CNI requests to the kernel, until it is told to stop.
//!
//! What is in the kernel stays there when the agent stops; the next one adopts it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use moat_manifests::{Folders, Reading};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::agent::{Agent, Name, alone, refused};
use crate::cni_files::{CniFolders, Invitation};
use crate::cni_server::CniServer;
use crate::crowding::{Crowding, CrowdingNumbers};
use crate::dataplane::{self, Closed, Cut, Dataplane, LayoutConfig, Limits, PodToNode};
use crate::desired::Desired;
use crate::doctor;
use crate::droplog::{DropLog, DropLogConfig, DropNumbers};
use crate::flows::{FlowNumbers, Flows};
use crate::guard::Launch;
use crate::http;
use crate::metrics::Metrics;
use crate::network::Network;
use crate::podnet::{Answers, Attachment, PodNet, PodNetConfig, sysctl};
use crate::readiness::{Nth, Readiness};
use crate::source::{self, News, Outbox, Source};

/// How the agent is to work.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of this node's Node object.
    pub node: Arc<str>,
    /// Where policy comes from.
    pub source: Source,
    /// How long ADD waits until nodes of the same controller know the pod's address.
    pub announce_wait: Duration,
    /// Where attachments are kept.
    pub state_dir: PathBuf,
    /// Where the socket is.
    pub run_dir: PathBuf,
    /// Where the node's runtime looks for the plugin and its configuration.
    pub cni: CniFolders,
    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub listen: SocketAddr,
    /// Whether the kernel is to guard our tables, where it can.
    pub owner: bool,
    /// Whether the agent starts the guard, where there is none; else somebody else does.
    pub starts_guard: bool,
    /// How long an address rests between two pods.
    pub address_rest: Duration,
    /// How the network is to be where no NetworkConfig says otherwise.
    pub network: Network,
    /// What pods, policies and the node may ask of the kernel.
    pub limits: Limits,
    /// Whether policy decides what a pod may send to its own node.
    pub pod_to_node: PodToNode,
}

/// Runs the agent until `stop`.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let readiness = Arc::new(Readiness::default());
    let metrics = Arc::new(Metrics::default());
    let pages = http::Pages { readiness: readiness.clone(), metrics: metrics.clone() };
    let mut http = tokio::spawn(http::serve(options.listen, pages, stop.clone()));
    let answers = Arc::new(match &options.source {
        Source::Folders(_) => Answers::of_nobody(),
        Source::Controller(_) => Answers::of_controllers(),
    });
    let outbox = Arc::new(Outbox::new(answers.clone()));
    let (mut source, ended) = match &options.source {
        Source::Folders(folders) => {
            (watch(folders.clone())?, "the manifest folders are not watched any more")
        }
        Source::Controller(controllers) => {
            let (node, state_dir) = (options.node.clone(), options.state_dir.clone());
            let news = source::follow(controllers.clone(), node, state_dir, outbox.clone(), stop.clone());
            (
                news.context("cannot keep what the controller tells")?,
                "the controller is not followed any more",
            )
        }
    };

    let first = loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ended = &mut http => return ended.context("HTTP server")?,
            news = source.recv() => match news.context(ended)? {
                News::Refused(errors) => refused(&readiness, &metrics, &errors),
                News::Alone(why) => alone(&readiness, &why),
                first @ (News::Read(_) | News::Told(_)) => break first,
            },
        }
    };
    let name = Name::of(&first);
    let socket = options.run_dir.join("agent.sock");
    let mut invitation = Invitation::of(&options.cni, &socket)?;
    let agent = Arc::new(start(&options, first, readiness, metrics, outbox, answers).await?);
    let policy = Arc::downgrade(&agent);
    let policy = move |attachment: &Attachment| policy.upgrade().is_some_and(|agent| agent.renew(attachment));
    agent.podnet.keep(agent.metrics.mended.clone(), policy).context("cannot watch over the pod network")?;

    let cni = CniServer::bind(&socket)?;
    // Requests wait in the socket's queue from now on. Whoever found nobody listening before left a note.
    agent.work_off_notes().await;
    let cni = tokio::spawn(cni.serve(agent.clone(), stop.clone().cancelled_owned()));
    // Only now: whoever is told so may send pods at once.
    agent.readiness.applied(agent.readiness.reading(), name.text.clone());
    if let Some((connection, revision)) = name.told {
        agent.outbox.in_force(connection, revision, agent.dataplane.closed().borrow().len());
        agent.outbox.followed(connection, revision, &name.fingerprint);
    }
    info!(node = %options.node, "ready");

    let defect = defect(agent.dataplane.ended(), agent.flows.ended());
    tokio::pin!(defect);
    loop {
        // Without a podCIDR there is no network to give to anybody yet.
        if agent.podnet.has_blocks() {
            invitation.send();
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = invitation.try_again() => {}
            thread = &mut defect => bail!("the thread that {thread} has ended, by a defect that it told above"),
            ended = &mut http => return ended.context("HTTP server")?,
            news = source.recv() => agent.take(news.context(ended)?).await,
        }
    }
    info!("stopping; what is in the kernel stays in force");
    cni.await.context("CNI server")?;
    http.await.context("HTTP server")?
}

/// Comes to an end when one of these threads does, and says which. Without them policy is in force only by half, and nobody would
/// see it. The next agent begins by making it right.
async fn defect(writes: CancellationToken, looks: CancellationToken) -> &'static str {
    tokio::select! {
        () = writes.cancelled() => "writes the tables",
        () = looks.cancelled() => "looks after connections",
    }
}

/// Takes the node over: pod network, then policy of all pods at once.
async fn start(
    options: &Options,
    first: News,
    readiness: Arc<Readiness>,
    metrics: Arc<Metrics>,
    outbox: Arc<Outbox>,
    answers: Arc<Answers>,
) -> anyhow::Result<Agent> {
    sysctl::make_writable();
    let mut podnet = PodNetConfig::new(&options.state_dir);
    podnet.answers = answers;
    podnet.address_rest = options.address_rest;
    (podnet.mode, podnet.mtu) = (options.network.mode, options.network.mtu);
    podnet.notes = Some(moat_cni::note::folder(&options.run_dir.join("agent.sock")));
    let podnet = tokio::task::spawn_blocking(move || PodNet::open(podnet))
        .await?
        .context("cannot take the pod network over")?;
    let mut desired = Desired::new(options.node.clone(), podnet.attachments())
        .limited(options.limits.of_the_engine())
        .flagged(options.network.clone());
    let update = match first {
        News::Read(Reading { changes, fingerprint: _ }) => {
            changes.warnings.iter().for_each(|w| warn!("{w}"));
            desired.start(changes)
        }
        News::Told(told) => {
            desired = desired.told_by_a_controller();
            desired.start_told(told.change)
        }
        News::Refused(_) | News::Alone(_) => bail!("the source has not said anything yet"),
    };
    outbox.begin(podnet.attachments());
    let mut layout = LayoutConfig { pod_to_node: options.pod_to_node, ..LayoutConfig::default() };
    match desired.node() {
        None => warn!("nothing describes Node {}: no pod gets an address before one does", options.node),
        Some(node) => {
            layout.v4 = node.pod_cidrs.iter().any(|c| c.addr().is_ipv4());
            layout.v6 = node.pod_cidrs.iter().any(|c| c.addr().is_ipv6());
        }
    }
    let blocks = desired.node().map(|node| node.pod_cidrs.clone()).unwrap_or_default();
    let cidrs = blocks.clone();
    let able = match tokio::task::spawn_blocking(move || doctor::at_start(&cidrs)).await? {
        Ok(able) => able,
        Err(refused) => bail!("this host is refused:\n{refused}"),
    };
    layout.host_ports = able.translate;
    layout = layout.with(desired.network().live());
    // This program as it runs, whatever its file is by now.
    let program = options.starts_guard.then(|| "/proc/self/exe".into());
    let guard = Launch { run_dir: options.run_dir.clone(), program };
    let log = DropLogConfig::of(&layout);
    let config = dataplane::Config {
        layout: layout.clone(),
        owner: options.owner,
        followed: true,
        guard: Some(guard),
        limits: options.limits.clone(),
    };
    let dataplane = tokio::task::spawn_blocking(move || Dataplane::start(config, &update))
        .await?
        .context("cannot take the tables over")?;
    let (dataplane, flows) = tokio::task::spawn_blocking(move || {
        let flows = Flows::start(&dataplane, &layout, &blocks);
        (dataplane, flows)
    })
    .await?;
    let flows = flows.context("cannot look after connections")?;
    metrics.dataplane(dataplane.stats().clone());
    metrics.flows(FlowNumbers(flows.stats().clone()));
    tell_closed(dataplane.closed(), readiness.clone(), outbox.clone());
    metrics.readings.inc();
    let followed = follow(readiness.clone(), outbox.clone());
    let desired = Arc::new(Mutex::new(desired));
    let droplog = DropLog::start(log, desired.clone()).context("cannot read the drop log")?;
    let numbers = DropNumbers::open(desired.clone(), droplog.stats().clone());
    metrics.drops(numbers.context("cannot read the counters of drops")?);
    let crowding = Crowding::start(desired.clone()).and_then(CrowdingNumbers::open);
    metrics.crowding(crowding.context("cannot look how full the connection tracking table is")?);
    let host_ports = able.translate;
    let announce_wait = options.announce_wait;
    let agent = Agent {
        desired,
        droplog,
        flows,
        dataplane,
        followed,
        outbox,
        announce_wait,
        podnet,
        host_ports,
        readiness,
        metrics,
    };
    agent.metrics.podnet(agent.podnet.clone());
    agent.metrics.attachments(agent.podnet.attached());
    agent.tell_network().await;
    Ok(agent)
}

/// Says who is closed, whenever that changes.
fn tell_closed(mut closed: watch::Receiver<Closed>, readiness: Arc<Readiness>, outbox: Arc<Outbox>) {
    readiness.closed(closed.borrow_and_update().clone());
    tokio::spawn(async move {
        while closed.changed().await.is_ok() {
            let closed = closed.borrow_and_update().clone();
            outbox.closed(closed.len());
            readiness.closed(closed);
        }
    });
}

/// Says of each reading, in their order, when connections that were there follow it too.
fn follow(readiness: Arc<Readiness>, outbox: Arc<Outbox>) -> mpsc::UnboundedSender<(Nth, Name, Cut)> {
    let (followed, mut readings) = mpsc::unbounded_channel::<(Nth, Name, Cut)>();
    tokio::spawn(async move {
        while let Some((nth, name, cut)) = readings.recv().await {
            cut.done().await;
            if let Some((connection, revision)) = name.told {
                outbox.followed(connection, revision, &name.fingerprint);
            }
            readiness.applied(nth, name.text);
        }
    });
    followed
}

/// Readings from a thread of its own: it waits for the kernel.
fn watch(folders: Folders) -> anyhow::Result<mpsc::Receiver<News>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || {
            let tell = |reading: Result<_, _>| {
                sender.blocking_send(reading.map_or_else(News::Refused, News::Read)).is_ok()
            };
            if let Err(error) = folders.watch(tell) {
                error!("cannot watch the manifest folders: {error}");
            }
        })
        .context("cannot start a thread")?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thread_that_ends_is_named() {
        for (ends, name) in [(0, "writes the tables"), (1, "looks after connections")] {
            let tokens = [CancellationToken::new(), CancellationToken::new()];
            let alive = tokens[ends].clone().drop_guard();
            let waiting = tokio::spawn(defect(tokens[0].clone(), tokens[1].clone()));
            let panics = std::thread::spawn(move || {
                let _alive = alive;
                panic!("a defect");
            });
            assert!(panics.join().is_err());
            assert_eq!(waiting.await.unwrap(), name);
        }
    }
}
