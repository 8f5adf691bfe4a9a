//! [`PodNet`]: the state of one node's pod network, and what can be done to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moat_policies::Node;
use tokio::task;

use super::PodNetError;
use super::attachment::{Attachment, AttachmentKey};
use super::journal::{self, JournalError};
use super::node::NodeNetwork;

/// How a node's pod network is set up.
#[derive(Clone, Debug)]
pub struct PodNetConfig {
    /// The folder of the state file.
    pub state_dir: PathBuf,
    /// How long an address rests between two pods.
    pub address_rest: Duration,
    /// The MTU of the pods' links. `None`: that of the link with the node's address.
    pub mtu: Option<u32>,
}

impl PodNetConfig {
    /// The defaults, with the state in `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self { state_dir: state_dir.into(), address_rest: Duration::from_secs(10), mtu: None }
    }
}

/// What ADD asks for.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// `CNI_CONTAINERID` and `CNI_IFNAME`.
    pub key: AttachmentKey,
    /// The `name` of the network configuration.
    pub network: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's `metadata.uid`, where the runtime told it.
    pub pod_uid: Option<String>,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
}

/// What GC did.
#[derive(Debug, Default)]
pub struct Gc {
    /// The attachments that are gone.
    pub removed: Vec<Attachment>,
    /// What could not be removed.
    pub errors: Vec<PodNetError>,
}

/// The pod network of the node whose network namespace [`PodNet::open`] was called in. Cheap to clone.
///
/// Calls about different attachments may run at the same time; those about one must come one after the other
/// (the CNI server sees to that).
#[derive(Clone, Debug)]
pub struct PodNet(Arc<NodeNetwork>);

/// Every attachment that the agent with the state folder `state_dir` has recorded. Safe while that agent runs.
pub fn read_attachments(state_dir: &Path) -> Result<Vec<Attachment>, JournalError> {
    journal::read_attachments(state_dir)
}

impl PodNet {
    /// Takes the pod network of the calling thread's network namespace over from the agent that ran before, if any.
    ///
    /// Attachments whose link or namespace is gone are released; links with no attachment are removed;
    /// the routes of the others are made where they are missing. No address can be given before [`PodNet::set_nodes`].
    pub fn open(config: PodNetConfig) -> Result<Self, PodNetError> {
        Ok(Self(Arc::new(NodeNetwork::open(config)?)))
    }

    /// Tells which node this is and which others there are: where addresses come from, and which routes are needed.
    /// Cheap when nothing changed. A route that the kernel refuses (its node is not on a shared link, for example) is an
    /// error; all others are made all the same, and the next call tries again.
    pub async fn set_nodes(&self, local: &Node, others: &[Node]) -> Result<(), PodNetError> {
        let (local, others) = (local.clone(), others.to_vec());
        self.blocking(move |node| node.set_nodes(&local, &others)).await
    }

    /// Gives a pod its addresses and writes that down; makes nothing yet.
    ///
    /// What an earlier try for the same attachment left is removed first, unless that try was brought to its end: then
    /// there is such an interface, and the specification wants an error.
    pub async fn reserve(&self, request: Prepare) -> Result<Attachment, PodNetError> {
        self.blocking(move |node| node.reserve(request)).await
    }

    /// Makes the interface of a reserved attachment; its node's end stays down. After an error nothing is left, and the
    /// addresses are released.
    pub async fn build(&self, attachment: &Attachment) -> Result<(), PodNetError> {
        let attachment = attachment.clone();
        self.blocking(move |node| node.build(&attachment)).await
    }

    /// [`PodNet::reserve`], then [`PodNet::build`].
    pub async fn prepare(&self, request: Prepare) -> Result<Attachment, PodNetError> {
        let attachment = self.reserve(request).await?;
        self.build(&attachment).await?;
        Ok(attachment)
    }

    /// Sets the node's end up and leads the pod's addresses to it: from now on packets pass. May be called again.
    pub async fn activate(&self, attachment: &Attachment) -> Result<(), PodNetError> {
        let attachment = attachment.clone();
        self.blocking(move |node| node.activate(&attachment)).await
    }

    /// Takes an attachment away and returns what it was; `None` where there was none. After an error nothing was
    /// forgotten: its addresses stay held until a later call succeeds.
    pub async fn remove(&self, key: &AttachmentKey) -> Result<Option<Attachment>, PodNetError> {
        let key = key.clone();
        self.blocking(move |node| node.remove(&key)).await
    }

    /// Every attachment there is.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.0.attachments()
    }

    /// The attachment of this key.
    pub fn attachment(&self, key: &AttachmentKey) -> Option<Attachment> {
        self.0.attachment(key)
    }

    /// Compares an attachment with what is recorded and with what the kernel has. `addresses` and `gateways` are what
    /// ADD's answer says; default routes are compared for `gateways` only.
    pub async fn check(
        &self,
        key: &AttachmentKey,
        netns: &Path,
        addresses: &[IpAddr],
        gateways: &[IpAddr],
    ) -> Result<(), PodNetError> {
        let (key, netns) = (key.clone(), netns.to_owned());
        let (addresses, gateways) = (addresses.to_vec(), gateways.to_vec());
        self.blocking(move |node| node.check(key, &netns, &addresses, &gateways)).await
    }

    /// The attachments of `network` that are not among `valid`.
    pub fn stale(&self, network: &str, valid: &BTreeSet<AttachmentKey>) -> Vec<Attachment> {
        let mut attachments = self.0.attachments();
        attachments.retain(|a| a.network == network && !valid.contains(&a.key()));
        attachments
    }

    /// Removes the attachments of `network` that are not among `valid`, and every link that looks like a pod's and belongs to
    /// no attachment. Goes on after an error.
    pub async fn gc(&self, network: &str, valid: &BTreeSet<AttachmentKey>) -> Gc {
        let stale = self.stale(network, valid);
        self.blocking(move |node| {
            let mut gc = Gc::default();
            for attachment in stale {
                match node.remove(&attachment.key()) {
                    Ok(removed) => gc.removed.extend(removed),
                    Err(error) => gc.errors.push(error),
                }
            }
            gc.errors.extend(node.remove_strays().err());
            gc
        })
        .await
    }

    /// Whether an address could be given now.
    pub fn available(&self) -> Result<(), PodNetError> {
        self.0.available()
    }

    /// Runs `work`, which waits for the kernel and the disk, where it holds nobody up.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&NodeNetwork) -> T + Send + 'static) -> T {
        let node = Arc::clone(&self.0);
        match task::spawn_blocking(move || work(&node)).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
