//! What requests and readings work on: the parts of the agent, and how what a source says is put in force.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moat_manifests::{Errors, Reading};
use moat_policies::{Key, NamespacedName};
use tokio::sync::mpsc;
use tracing::{error, warn};

use crate::dataplane::{Cut, Dataplane, Ticket, Update};
use crate::desired::Desired;
use crate::droplog::DropLog;
use crate::flows::Flows;
use crate::metrics::Metrics;
use crate::podnet::{Attachment, PodNet};
use crate::readiness::{Nth, Readiness};
use crate::source::{News, Outbox, Told};

/// What a state of the source is called: by people, and by the controller it came from.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) text: String,
    /// Connection and revision.
    pub(crate) told: Option<(u64, u64)>,
    /// What people call what they have applied; empty where no controller has said it.
    pub(crate) fingerprint: Arc<str>,
}

impl Name {
    pub(crate) fn of(news: &News) -> Self {
        match news {
            News::Read(reading) => {
                Self { text: reading.fingerprint.clone(), told: None, fingerprint: Arc::default() }
            }
            News::Told(told) => Self {
                text: told.name.clone(),
                told: Some((told.connection, told.revision)),
                fingerprint: told.fingerprint.clone(),
            },
            News::Refused(_) | News::Alone(_) => {
                Self { text: String::new(), told: None, fingerprint: Arc::default() }
            }
        }
    }
}

/// What requests and readings work on.
pub(crate) struct Agent {
    pub(crate) desired: Arc<Mutex<Desired>>,
    pub(crate) droplog: DropLog,
    /// Before the data plane, so that it ends first: it listens to it.
    pub(crate) flows: Flows,
    pub(crate) dataplane: Dataplane,
    /// What new connections follow, and when the others do.
    pub(crate) followed: mpsc::UnboundedSender<(Nth, Name, Cut)>,
    /// What the controller is told; nobody, where there is none.
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) announce_wait: Duration,
    pub(crate) podnet: PodNet,
    /// Whether ports of the node can lead to pods.
    pub(crate) host_ports: bool,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Agent {
    /// Changes what is desired and hands the update over, in one order for both.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Desired) -> Update) -> Ticket {
        let mut desired = self.desired();
        let update = change(&mut desired);
        self.dataplane.submit(update)
    }

    /// Why a pod is closed, if it is.
    pub(crate) fn why_closed(&self, pod: &NamespacedName) -> Option<String> {
        self.dataplane.closed().borrow().get(pod).cloned()
    }

    /// Puts the policy of a pod in force anew, for a link of the same name that is not up yet. Must not be called on an
    /// asynchronous thread. False: it is not in force, or the pod has gone meanwhile.
    pub(crate) fn renew(&self, attachment: &Attachment) -> bool {
        // In two commits: what an old link's end took along is there no more, and nobody told the writer.
        [false, true].into_iter().all(|there| {
            let desired = self.desired();
            let ticket = desired.renew(&attachment.key(), there).map(|update| self.dataplane.submit(update));
            drop(desired);
            ticket.is_some_and(|ticket| ticket.wait().is_ok())
        })
    }

    pub(crate) fn desired(&self) -> MutexGuard<'_, Desired> {
        self.desired.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the source says.
    pub(crate) async fn take(&self, news: News) {
        let name = Name::of(&news);
        match news {
            News::Read(Reading { changes, fingerprint: _ }) => {
                changes.warnings.iter().for_each(|w| warn!("{w}"));
                let network = changes.are_about(|key| matches!(key, Key::Node(_) | Key::Config));
                self.apply(name, network, |desired| desired.read(changes)).await;
            }
            News::Told(Told { change, .. }) => {
                let network = !change.nodes.is_empty() || change.config.is_some();
                self.apply(name, network, |desired| desired.hear(change)).await;
            }
            News::Refused(errors) => refused(&self.readiness, &self.metrics, &errors),
            News::Alone(why) => alone(&self.readiness, &why),
        }
    }

    /// Puts a reading, or what a controller told, in force; `network`: it is about nodes or the network.
    async fn apply(&self, name: Name, network: bool, change: impl FnOnce(&mut Desired) -> Update) {
        let nth = self.readiness.reading();
        let before = self.desired().network();
        let ticket = self.change(change);
        let now = self.desired().network();
        if before.tunnel() && !now.tunnel() {
            // Before the tables let go of what they ask of its frames.
            self.tell_network().await;
        }
        match ticket.done().await {
            Ok(cut) => {
                self.metrics.readings.inc();
                if let Some((connection, revision)) = name.told {
                    let closed = self.dataplane.closed().borrow().len();
                    self.outbox.in_force(connection, revision, closed);
                }
                // Not waited for here: a newer reading goes into the kernel meanwhile.
                let _ = self.followed.send((nth, name, cut));
            }
            Err(error) => {
                error!("a reading is not wholly in force: {error:#}");
                if let Some((connection, _)) = name.told {
                    self.outbox.failed(connection, error.to_string());
                }
                self.readiness.failed(error.to_string());
            }
        }
        if network {
            self.tell_network().await;
        }
    }

    /// Makes the way to the other nodes, and the pods' links, as they are to be.
    pub(crate) async fn tell_network(&self) {
        let (network, node, others) = {
            let desired = self.desired();
            (desired.network(), desired.node().cloned(), desired.other_nodes())
        };
        if let Err(error) = self.podnet.shape(network.mode, network.mtu).await {
            warn!("not all links of pods are as they must be: {:#}", anyhow::Error::new(error));
        }
        let Some(node) = node else { return };
        if let Err(error) = self.podnet.set_nodes(&node, &others).await {
            warn!("not all routes are as they must be: {:#}", anyhow::Error::new(error));
        }
    }
}

/// There is no controller just now.
pub(crate) fn alone(readiness: &Readiness, why: &str) {
    warn!("no controller, what it told stays in force: {why}");
    readiness.reading();
    readiness.failed(why.to_owned());
}

/// The folders say something that cannot be decoded.
pub(crate) fn refused(readiness: &Readiness, metrics: &Metrics, errors: &Errors) {
    metrics.reading_errors.inc();
    for error in errors.iter() {
        error!("refused, what was in force stays: {error}");
    }
    readiness.reading();
    readiness.failed(errors.to_string());
}
