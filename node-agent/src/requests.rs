//! What the CNI plugin asks of the agent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use moat_cni::error::{CniError, code};
use moat_cni::failpoint;
use moat_cni::protocol::{Add, Attached, Check, Del, Gc, Status};
use moat_cni::stream::Event;
use moat_policies::NamespacedName;
use tokio::sync::{broadcast, mpsc};
use tracing::{info, warn};

use crate::agent::Agent;
use crate::cni_server::Handler;
use crate::droplog::Names;
use crate::podnet::{Attachment, AttachmentKey, PodNetError, Prepare};

/// How long ADD waits for a pod that no manifest describes yet.
const UNKNOWN_POD: Duration = Duration::from_secs(5);

impl Handler for Agent {
    async fn add(&self, request: Add) -> Result<Attached, CniError> {
        let pod = NamespacedName::new(request.pod_namespace.as_str(), request.pod_name.as_str());
        let added = self.add_pod(&pod, request).await;
        match &added {
            Ok(attached) => info!(%pod, interface = attached.host_ifname, "added"),
            Err(error) => {
                self.metrics.add_errors.inc();
                warn!(%pod, "not added: {error}");
            }
        }
        self.metrics.attachments(self.podnet.attached());
        added
    }

    async fn del(&self, request: Del) -> Result<(), CniError> {
        let key = AttachmentKey::new(request.container_id, request.ifname);
        failpoint::reach("before detaching");
        self.forget(&key).await;
        failpoint::reach("detached");
        let removed = match self.podnet.remove(&key).await {
            Ok(removed) => removed,
            Err(error) => {
                // What is left of it is to carry on no connection until it is tried again.
                if let Some(left) = self.podnet.attachment(&key) {
                    self.flows.forget(left.addresses()).await;
                }
                return Err(error.into());
            }
        };
        failpoint::reach("removed");
        self.metrics.attachments(self.podnet.attached());
        if let Some(attachment) = removed {
            self.flows.forget(attachment.addresses()).await;
            info!(pod = %attachment.pod(), interface = attachment.host_ifname, "removed");
        }
        Ok(())
    }

    async fn check(&self, request: Check) -> Result<(), CniError> {
        let key = AttachmentKey::new(request.container_id, request.ifname);
        let Check { netns, addresses, gateways, host_ports, .. } = request;
        Ok(self.podnet.check(&key, &netns, &addresses, &gateways, &host_ports).await?)
    }

    async fn gc(&self, request: Gc) -> Result<(), CniError> {
        let key = |a: moat_cni::protocol::ValidAttachment| AttachmentKey::new(a.container_id, a.ifname);
        let valid: BTreeSet<AttachmentKey> = request.valid.into_iter().map(key).collect();
        for stale in self.podnet.stale(&request.network, &valid) {
            self.forget(&stale.key()).await;
        }
        let done = self.podnet.gc(&request.network, &valid).await;
        self.flows.forget(done.removed.iter().flat_map(Attachment::addresses)).await;
        for attachment in &done.removed {
            info!(pod = %attachment.pod(), interface = attachment.host_ifname, "removed by GC");
        }
        for (attachment, drift) in &done.mended {
            warn!(pod = %attachment.pod(), interface = attachment.host_ifname, "mended by GC: {}", drift.join("; "));
        }
        self.metrics.attachments(self.podnet.attached());
        Ok(PodNetError::collect(done.errors)?)
    }

    fn drops(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.droplog.follow()
    }

    fn flows(self: &Arc<Self>) -> mpsc::Receiver<Event> {
        let (events, listed) = mpsc::channel(256);
        let agent = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let mut names = Names::default();
            let result = agent.flows.live(|flow| {
                let event = Event::Flow(names.live(&flow, &agent.desired()));
                // Who does not listen any more does not mind.
                let _ = events.blocking_send(event);
            });
            match result {
                Ok(()) => drop(events.blocking_send(Event::End)),
                Err(error) => warn!("cannot list the live flows: {:#}", anyhow::Error::new(error)),
            }
        });
        listed
    }

    async fn status(&self, _: Status) -> Result<(), CniError> {
        self.podnet.available().map_err(|e| CniError { code: code::NOT_AVAILABLE, ..e.into() })
    }
}

impl Agent {
    async fn add_pod(&self, pod: &NamespacedName, request: Add) -> Result<Attached, CniError> {
        if !self.host_ports && !request.host_ports.is_empty() {
            let why = "the kernel does not translate addresses (see moat-agent doctor), so no port of this node can lead to a pod";
            return Err(CniError::new(
                code::UNSUPPORTED_FIELD,
                "runtimeConfig.portMappings cannot be had",
                why,
            ));
        }
        self.known(pod, request.pod_uid.as_deref()).await?;
        let attachment = self
            .podnet
            .reserve(Prepare {
                key: AttachmentKey::new(request.container_id, request.ifname),
                network: request.network,
                pod_namespace: request.pod_namespace,
                pod_name: request.pod_name,
                pod_uid: request.pod_uid,
                netns: request.netns,
                host_ports: request.host_ports,
            })
            .await?;
        // Beside each other: only who is told of the attachment has to know that it is on the disk.
        let (up, recorded) = tokio::join!(self.bring_up(pod, &attachment), self.podnet.recorded());
        if let Err(error) = up.and(recorded.map_err(CniError::from)) {
            self.forget(&attachment.key()).await;
            if let Err(left) = self.podnet.remove(&attachment.key()).await {
                warn!(%pod, "a failed ADD could not be undone: {left}");
            }
            return Err(error);
        }
        failpoint::reach("added");
        Ok(attachment.attached())
    }

    /// Makes the pod's link, puts its policy in force, and then lets packets pass.
    async fn bring_up(&self, pod: &NamespacedName, attachment: &Attachment) -> Result<(), CniError> {
        let announced = self.outbox.attach(attachment);
        // While its link is made, the address loses what is left of its last owner's connections.
        let (built, ()) =
            tokio::join!(self.podnet.build(attachment), self.flows.hand_out(attachment.addresses()));
        let ends = built?;
        failpoint::reach("built");
        // The node's end is down until the kernel holds the pod's policy.
        self.change(|desired| desired.attach(attachment)).done().await.map_err(|e| {
            CniError::new(code::TRY_AGAIN, "the pod's policy could not be put in force", e.to_string())
        })?;
        failpoint::reach("in force");
        // Whoever sends on and on would be held to where the ports led before.
        self.flows.lead(&attachment.host_ports, attachment.addresses()).await.map_err(|e| {
            let msg = "connections that do not go to the pod could not be removed from its host ports";
            CniError::new(code::TRY_AGAIN, msg, format!("{:#}", anyhow::Error::new(e)))
        })?;
        if let Some(why) = self.why_closed(pod) {
            let closed = format!("the pod {pod} is closed: no packet of it would pass");
            return Err(CniError::new(code::TRY_AGAIN, closed, why));
        }
        // That peers on other nodes know it is for its own good: it is closed to them before, never open.
        if tokio::time::timeout(self.announce_wait, self.outbox.announced(announced)).await.is_err() {
            warn!(%pod, "not every node has said that it knows the pod's address; it starts all the same");
        }
        Ok(self.podnet.activate(attachment, ends).await?)
    }

    /// Waits until the source knows the pod, this one and not an earlier one of its name: before that nobody knows its policy.
    async fn known(&self, pod: &NamespacedName, uid: Option<&str>) -> Result<(), CniError> {
        let mut changes = self.readiness.watch();
        let known = async {
            while !self.desired().knows(pod, uid) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(UNKNOWN_POD, known).await.map_err(|_| {
            let (what, why) = match self.desired().knows(pod, None) {
                true => (
                    format!("another pod {pod} is known"),
                    "the source knows it with another UID, so nobody knows the policy of this one",
                ),
                false => (
                    format!("the pod {pod} is not known"),
                    "neither a manifest nor the controller has told of it on this node, so nobody knows its policy",
                ),
            };
            CniError::new(code::TRY_AGAIN, what, why)
        })
    }

    /// Removes what plugins removed, or should have, between this agent's start and its listening.
    pub(crate) async fn work_off_notes(&self) {
        let noted = self.podnet.noted().await.unwrap_or_else(|error| {
            warn!(error = &error as &dyn std::error::Error, "notes of removed pods are not worked off");
            Vec::new()
        });
        for key in noted {
            self.forget(&key).await;
            match self.podnet.remove(&key).await {
                Ok(Some(gone)) => {
                    self.flows.forget(gone.addresses()).await;
                    info!(pod = %gone.pod(), "removed, as its runtime wanted while no agent listened")
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(%key, error = &error as &dyn std::error::Error, "not removed, as its runtime wants")
                }
            }
        }
    }

    /// Takes an attachment out of the kernel's tables: from then on its packets are an unknown pod's, and dropped. Its address is
    /// free when everybody who is told so has answered; who removes it does not wait for that.
    async fn forget(&self, key: &AttachmentKey) {
        if let Err(error) = self.change(|desired| desired.detach(key)).done().await {
            warn!(%key, "the tables still hold a pod that is going: {error}");
        }
        if let Some(attachment) = self.podnet.attachment(key) {
            self.outbox.detach(&attachment);
        }
    }
}
