//! [`PodNet`]: the state of one node's pod network, and what can be done to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moat_cni::port::HostPort;
use moat_policies::Node;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;
use tokio::task;

use super::answers::Answers;
use super::attachment::{Attachment, AttachmentKey};
use super::heal;
use super::journal::{self, JournalError};
use super::node::{Ends, NodeNetwork};
use super::wire;
use super::{Mode, PodNetError};

/// How a node's pod network is set up.
#[derive(Clone, Debug)]
pub struct PodNetConfig {
    /// The folder of the state file.
    pub state_dir: PathBuf,
    /// How long an address rests between two pods.
    pub address_rest: Duration,
    /// The MTU of the pods' links. `None`: that of the link with the node's address, less what the tunnel needs of it
    /// while there is one.
    pub mtu: Option<u32>,
    /// How packets get to the pods of other nodes.
    pub mode: Mode,
    /// The folder where plugins leave notes of what they removed while no agent ran ([`moat_cni::note`]), if any.
    pub notes: Option<PathBuf>,
    /// How far it is answered that addresses are nobody's any more: before that they are not given to others.
    pub answers: Arc<Answers>,
}

impl PodNetConfig {
    /// The defaults, with the state in `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            address_rest: Duration::from_secs(60),
            mtu: None,
            mode: Mode::default(),
            notes: None,
            answers: Arc::new(Answers::of_nobody()),
        }
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
    /// Ports of the node that are to lead to the pod.
    pub host_ports: Vec<HostPort>,
}

/// What GC did.
#[derive(Debug, Default)]
pub struct Gc {
    /// The attachments that are gone.
    pub removed: Vec<Attachment>,
    /// The attachments that were not as they were made and are again, and what was wrong, one sentence each.
    pub mended: Vec<(Attachment, Vec<String>)>,
    /// What could not be removed.
    pub errors: Vec<PodNetError>,
}

/// The pod network of the node whose network namespace [`PodNet::open`] was called in. Cheap to clone.
///
/// Calls about different attachments may run at the same time; those about one must come one after the other
/// (the CNI server sees to that).
#[derive(Clone, Debug)]
pub struct PodNet {
    node: Arc<NodeNetwork>,
    lanes: Arc<Lanes>,
}

/// Who may change links just now. The kernel has one lock for all links of all namespaces, and who waits for it costs its holder
/// time: so they wait here, first come, first served.
#[derive(Debug)]
struct Lanes {
    make: Semaphore,
    /// Apart, so that a pod that is nearly there does not wait for all who come after it.
    raise: Semaphore,
    /// More than one: the kernel takes a link away mostly without the lock, waiting for processors to let go of it.
    remove: Semaphore,
}

impl Lanes {
    fn new() -> Self {
        Self { make: Semaphore::new(1), raise: Semaphore::new(1), remove: Semaphore::new(4) }
    }
}

/// Every attachment that the agent with the state folder `state_dir` has recorded. Safe while that agent runs.
pub fn read_attachments(state_dir: &Path) -> Result<Vec<Attachment>, JournalError> {
    journal::read_attachments(state_dir)
}

impl PodNet {
    /// Takes the pod network of the calling thread's network namespace over from the agent that ran before, if any.
    ///
    /// First the notes are worked off that plugins left. Then records and links are compared, and the links go first: an
    /// attachment whose link or namespace is gone is released; one that only its link tells of is recorded; a link of which
    /// nobody knows whose it is is closed, its addresses reserved. Routes are made where they are missing.
    /// No address can be given before [`PodNet::set_nodes`].
    pub fn open(config: PodNetConfig) -> Result<Self, PodNetError> {
        Ok(Self { node: Arc::new(NodeNetwork::open(config)?), lanes: Arc::new(Lanes::new()) })
    }

    /// Tells which node this is and which others there are: where addresses come from, and which routes are needed.
    /// Cheap when nothing changed. A route that the kernel refuses (its node is not on a shared link, for example) is an
    /// error; all others are made all the same, and the next call tries again.
    pub async fn set_nodes(&self, local: &Node, others: &[Node]) -> Result<(), PodNetError> {
        let (local, others) = (local.clone(), others.to_vec());
        self.blocking(move |node| node.set_nodes(&local, &others)).await
    }

    /// How packets get to other nodes' pods from now on, and the MTU of the pods' links (`None`: it follows from the node's). What
    /// leads to the nodes that were told last is made so, and the links of pods that are there get the MTU. Cheap when nothing
    /// changed. One link that cannot be changed keeps none of the others from it.
    pub async fn shape(&self, mode: Mode, mtu: Option<u32>) -> Result<(), PodNetError> {
        self.in_lane(&self.lanes.make, move |node| node.shape(mode, mtu)).await
    }

    /// [`PodNet::set_nodes`] once more with what it was told last: makes again what is not there any more, and looks anew
    /// who shares a link with this node.
    pub async fn refresh(&self) -> Result<(), PodNetError> {
        self.blocking(NodeNetwork::refresh).await
    }

    /// From now on, what somebody removes or changes of what was made in the node's namespace is made again at once:
    /// routes, neighbours, rules, links and kernel parameters; `mended` counts them. Until nobody has the pod network any more.
    ///
    /// A link that was deleted is made again while its pod lives. `policy` is called before it comes up, and waited for: it puts
    /// in force for the new link what the pod may do. Where it says false the link is removed and made again later.
    pub fn keep(
        &self,
        mended: Counter,
        policy: impl Fn(&Attachment) -> bool + Send + Sync + 'static,
    ) -> Result<(), PodNetError> {
        heal::keep(&self.node, mended, &heal::Policy(Arc::new(policy)))
    }

    /// Gives a pod its addresses and writes that down; makes nothing yet.
    ///
    /// What an earlier try for the same attachment left is removed first, unless that try was brought to its end: then
    /// there is such an interface, and the specification wants an error.
    pub async fn reserve(&self, request: Prepare) -> Result<Attachment, PodNetError> {
        self.in_lane(&self.lanes.make, move |node| node.reserve(request)).await
    }

    /// Waits until everything that was reserved before is on the disk. Only then may anybody be told of it; but links can be made
    /// and come up meanwhile, since a power failure takes them along.
    pub async fn recorded(&self) -> Result<(), PodNetError> {
        self.blocking(NodeNetwork::sync).await
    }

    /// Makes the interface of a reserved attachment, whose node's end stays down. After an error, [`PodNet::remove`] it.
    pub async fn build(&self, attachment: &Attachment) -> Result<Ends, PodNetError> {
        let attachment = attachment.clone();
        self.in_lane(&self.lanes.make, move |node| node.build(&attachment)).await
    }

    /// Sets the node's end up and leads the pod's addresses to it: from now on packets pass. After an error,
    /// [`PodNet::remove`] it.
    pub async fn activate(&self, attachment: &Attachment, ends: Ends) -> Result<(), PodNetError> {
        let up = attachment.clone();
        let raise = move |node: &NodeNetwork| node.activate(&up, &ends).map(|()| ends);
        let mut ends = self.in_lane(&self.lanes.raise, raise).await?;
        let attachment = attachment.clone();
        self.blocking(move |_| wire::wait_until_ready(&mut ends.pod, &attachment)).await
    }

    /// Takes an attachment away and returns what it was; `None` where there was none. After an error nothing was
    /// forgotten: its addresses stay held until a later call succeeds.
    pub async fn remove(&self, key: &AttachmentKey) -> Result<Option<Attachment>, PodNetError> {
        let key = key.clone();
        self.in_lane(&self.lanes.remove, move |node| node.remove(&key)).await
    }

    /// Every attachment there is, the oldest first.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.node.attachments()
    }

    /// How many attachments there are.
    pub(crate) fn attached(&self) -> usize {
        self.node.state().journal.contents().attachments().len()
    }

    /// The attachment of this key.
    pub fn attachment(&self, key: &AttachmentKey) -> Option<Attachment> {
        self.node.attachment(key)
    }

    /// Compares an attachment with what is recorded and with what the kernel has. `addresses` and `gateways` are what
    /// ADD's answer says; default routes are compared for `gateways` only. `host_ports` are those that ADD was asked for, where
    /// the runtime says them.
    pub async fn check(
        &self,
        key: &AttachmentKey,
        netns: &Path,
        addresses: &[IpAddr],
        gateways: &[IpAddr],
        host_ports: &[HostPort],
    ) -> Result<(), PodNetError> {
        let (key, netns) = (key.clone(), netns.to_owned());
        let (addresses, gateways) = (addresses.to_vec(), gateways.to_vec());
        let host_ports = host_ports.to_vec();
        self.blocking(move |node| node.check(key, &netns, &addresses, &gateways, &host_ports)).await
    }

    /// The attachments that a plugin removed, or should have, since [`PodNet::open`] read the notes: for [`PodNet::remove`],
    /// which takes the note back as well.
    pub async fn noted(&self) -> Result<Vec<AttachmentKey>, PodNetError> {
        self.blocking(NodeNetwork::noted).await
    }

    /// The attachments of `network` that are not among `valid`.
    pub fn stale(&self, network: &str, valid: &BTreeSet<AttachmentKey>) -> Vec<Attachment> {
        let mut attachments = self.node.attachments();
        attachments.retain(|a| a.network == network && !valid.contains(&a.key()));
        attachments
    }

    /// Removes the attachments of `network` that are not among `valid`, and every link that looks like a pod's and belongs to
    /// no attachment; mends those that stay, where they are not as they were made. Goes on after an error.
    pub async fn gc(&self, network: &str, valid: &BTreeSet<AttachmentKey>) -> Gc {
        let stale = self.stale(network, valid);
        let (network, valid) = (network.to_owned(), valid.clone());
        self.blocking(move |node| {
            let mut gc = Gc::default();
            for attachment in stale {
                match node.remove(&attachment.key()) {
                    Ok(removed) => gc.removed.extend(removed),
                    Err(error) => gc.errors.push(error),
                }
            }
            gc.errors.extend(node.remove_strays(&valid).err());
            for attachment in node.attachments().into_iter().filter(|a| a.network == network) {
                match node.mend(&attachment) {
                    Ok(drift) if drift.is_empty() => {}
                    Ok(drift) => gc.mended.push((attachment, drift)),
                    Err(error) => gc.errors.push(error),
                }
            }
            gc
        })
        .await
    }

    /// Whether there are podCIDRs to take addresses from.
    pub(crate) fn has_blocks(&self) -> bool {
        self.node.state().ipam.has_blocks()
    }

    /// How many addresses wait for the answer to their release.
    pub(crate) fn unanswered(&self) -> usize {
        self.node.unanswered()
    }

    /// Whether an address could be given now.
    pub fn available(&self) -> Result<(), PodNetError> {
        self.node.available()
    }

    /// Runs `work`, which changes links, when its turn comes.
    async fn in_lane<T: Send + 'static>(
        &self,
        lane: &Semaphore,
        work: impl FnOnce(&NodeNetwork) -> T + Send + 'static,
    ) -> T {
        // Nobody ever closes a lane.
        let _turn = lane.acquire().await.ok();
        self.blocking(work).await
    }

    /// Runs `work`, which waits for the kernel and the disk, where it holds nobody up.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&NodeNetwork) -> T + Send + 'static) -> T {
        let node = Arc::clone(&self.node);
        match task::spawn_blocking(move || work(&node)).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
