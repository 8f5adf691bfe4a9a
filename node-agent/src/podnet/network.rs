//! [`PodNet`]: the state of one node's pod network, and what can be done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use moat_policies::Node;
use tokio::task;
use tracing::{info, warn};

use super::PodNetError;
use super::attachment::{Attachment, AttachmentKey, is_host_ifname, macs};
use super::check;
use super::ipam::Ipam;
use super::journal::{self, Journal, JournalError, Record};
use super::netlink::Netlink;
use super::netns::Netns;
use super::routes;
use super::sysctl;
use super::wire;

/// The MTU of a pod whose node's links are not known.
const DEFAULT_MTU: u32 = 1500;

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
pub struct PodNet(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: PodNetConfig,
    node: Netns,
    netlink: Mutex<Netlink>,
    state: Mutex<State>,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    ipam: Ipam,
    journal: Journal,
    attachments: BTreeMap<AttachmentKey, Attachment>,
    mtu: u32,
    /// What was last said about nodes without a route, so that it is said once.
    skipped: BTreeSet<String>,
}

/// Microseconds since the Unix epoch that never go back while the agent runs, whatever is done to the machine's clock.
#[derive(Debug)]
struct Clock {
    started: Instant,
    at_start: u64,
}

impl Clock {
    fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), at_start: since_epoch.as_micros() as u64 }
    }

    fn now(&self) -> u64 {
        self.at_start + self.started.elapsed().as_micros() as u64
    }
}

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
        let (journal, contents) = Journal::open(&config.state_dir)?;
        let clock = Clock::start();
        let mut ipam = Ipam::new(config.address_rest);
        for (address, at) in contents.resting {
            // The clock may have been set back since.
            ipam.release(address, at.min(clock.at_start));
        }
        for address in contents.attachments.values().flat_map(Attachment::addresses) {
            ipam.hold(address);
        }
        let state = State {
            ipam,
            journal,
            attachments: contents.attachments,
            mtu: config.mtu.unwrap_or(DEFAULT_MTU),
            skipped: BTreeSet::new(),
        };
        let inner = Inner {
            config,
            node: Netns::current()?,
            netlink: Mutex::new(Netlink::open()?),
            state: Mutex::new(state),
            clock,
        };
        inner.adopt()?;
        Ok(Self(Arc::new(inner)))
    }

    /// Tells which node this is and which others there are: where addresses come from, and which routes are needed.
    /// Cheap when nothing changed. A route that the kernel refuses (its node is not on a shared link, for example) is an
    /// error; all others are made all the same, and the next call tries again.
    pub async fn set_nodes(&self, local: &Node, others: &[Node]) -> Result<(), PodNetError> {
        let (local, others) = (local.clone(), others.to_vec());
        self.blocking(move |inner| inner.set_nodes(&local, &others)).await
    }

    /// Gives a pod its addresses and its interface, whose node's end stays down.
    ///
    /// What an earlier try for the same attachment left is removed first, unless that try was brought to its end: then
    /// there is such an interface, and the specification wants an error.
    pub async fn prepare(&self, request: Prepare) -> Result<Attachment, PodNetError> {
        self.blocking(move |inner| inner.prepare(request)).await
    }

    /// Sets the node's end up and leads the pod's addresses to it: from now on packets pass. May be called again.
    pub async fn activate(&self, attachment: &Attachment) -> Result<(), PodNetError> {
        let attachment = attachment.clone();
        self.blocking(move |inner| wire::connect(&mut inner.netlink(), &attachment)).await
    }

    /// Takes an attachment away and returns what it was; `None` where there was none. After an error nothing was
    /// forgotten: its addresses stay held until a later call succeeds.
    pub async fn remove(&self, key: &AttachmentKey) -> Result<Option<Attachment>, PodNetError> {
        let key = key.clone();
        self.blocking(move |inner| inner.remove(&key)).await
    }

    /// Every attachment there is.
    pub fn attachments(&self) -> Vec<Attachment> {
        self.0.state().attachments.values().cloned().collect()
    }

    /// The attachment of this key.
    pub fn attachment(&self, key: &AttachmentKey) -> Option<Attachment> {
        self.0.state().attachments.get(key).cloned()
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
        self.blocking(move |inner| inner.check(key, &netns, &addresses, &gateways)).await
    }

    /// The attachments of `network` that are not among `valid`.
    pub fn stale(&self, network: &str, valid: &BTreeSet<AttachmentKey>) -> Vec<Attachment> {
        let state = self.0.state();
        let stale = state.attachments.values().filter(|a| a.network == network && !valid.contains(&a.key()));
        stale.cloned().collect()
    }

    /// Removes the attachments of `network` that are not among `valid`, and every link that looks like a pod's and belongs to
    /// no attachment. Goes on after an error.
    pub async fn gc(&self, network: &str, valid: &BTreeSet<AttachmentKey>) -> Gc {
        let stale = self.stale(network, valid);
        self.blocking(move |inner| {
            let mut gc = Gc::default();
            for attachment in stale {
                match inner.remove(&attachment.key()) {
                    Ok(removed) => gc.removed.extend(removed),
                    Err(error) => gc.errors.push(error),
                }
            }
            gc.errors.extend(inner.remove_strays().err());
            gc
        })
        .await
    }

    /// Whether an address could be given now.
    pub fn available(&self) -> Result<(), PodNetError> {
        Ok(self.0.state().ipam.available(self.0.clock.now())?)
    }

    /// Runs `work`, which waits for the kernel and the disk, where it holds nobody up.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> T + Send + 'static) -> T {
        let inner = Arc::clone(&self.0);
        match task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

impl Inner {
    // Nothing is left half-done in memory where a thread could panic, so a poisoned lock holds good state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn netlink(&self) -> MutexGuard<'_, Netlink> {
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopt(&self) -> Result<(), PodNetError> {
        let links: BTreeMap<String, (u32, bool)> =
            self.netlink().links()?.into_iter().map(|link| (link.name, (link.index, link.up))).collect();
        let attachments: Vec<Attachment> = self.state().attachments.values().cloned().collect();
        let mut requests = Vec::new();
        for attachment in &attachments {
            match links.get(&attachment.host_ifname) {
                Some(&(index, up)) if Netns::open(&attachment.netns).is_ok() => {
                    // One that is down was never activated: its runtime was never told that it is there.
                    if up {
                        requests.extend(wire::lead(index, attachment));
                    }
                }
                _ => {
                    info!(pod = %attachment.pod(), attachment = %attachment.key(), "its pod is gone: released");
                    self.remove(&attachment.key())?;
                }
            }
        }
        for result in self.netlink().apply_each(requests) {
            if let Err(error) = result {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "a pod's route or neighbour cannot be restored"
                );
            }
        }
        self.remove_strays()
    }

    /// Removes the links that look like a pod's and belong to no attachment. Their addresses are not known to be taken, so
    /// they must not be left to answer for them.
    fn remove_strays(&self) -> Result<(), PodNetError> {
        let known: BTreeSet<String> =
            self.state().attachments.values().map(|a| a.host_ifname.clone()).collect();
        let mut netlink = self.netlink();
        let mut errors = Vec::new();
        for link in netlink.links()? {
            if link.veth && is_host_ifname(&link.name) && !known.contains(&link.name) {
                warn!(link = link.name, "a pod's link that belongs to no recorded attachment: removed");
                errors.extend(wire::remove(&mut netlink, &link.name).err().map(PodNetError::Kernel));
            }
        }
        PodNetError::collect(errors)
    }

    fn prepare(&self, request: Prepare) -> Result<Attachment, PodNetError> {
        let key = request.key;
        let host_ifname = key.host_ifname();
        if let Some(link) = self.netlink().link(&host_ifname)?
            && link.up
            && self.state().attachments.contains_key(&key)
        {
            return Err(PodNetError::InterfaceExists(key));
        }
        self.remove(&key)?;
        let attachment = {
            let mut state = self.state();
            let addresses = state.ipam.allocate(self.clock.now())?;
            let (host_mac, pod_mac) = macs(addresses.v4, addresses.v6);
            let attachment = Attachment {
                container_id: key.container_id.clone(),
                ifname: key.ifname.clone(),
                network: request.network,
                pod_namespace: request.pod_namespace,
                pod_name: request.pod_name,
                pod_uid: request.pod_uid,
                netns: request.netns,
                host_ifname,
                host_mac,
                pod_mac,
                v4: addresses.v4,
                v6: addresses.v6,
                mtu: state.mtu,
            };
            // On the disk before it is in the kernel: else a crash could leave a pod with an address that looks free.
            if let Err(error) = state.journal.write(Record::Attached(attachment.clone())) {
                for address in attachment.addresses() {
                    state.ipam.release(address, self.clock.now());
                }
                return Err(error.into());
            }
            state.attachments.insert(key.clone(), attachment.clone());
            attachment
        };
        if let Err(error) = wire::build(&attachment, &self.node) {
            return Err(match self.remove(&key) {
                Ok(_) => error,
                Err(also) => PodNetError::Several(vec![error, also]),
            });
        }
        Ok(attachment)
    }

    fn remove(&self, key: &AttachmentKey) -> Result<Option<Attachment>, PodNetError> {
        // The link first: an address is free only when nobody can use it any more. The name follows from the key, so that
        // a link is found which no record tells of.
        wire::remove(&mut self.netlink(), &key.host_ifname())?;
        let mut state = self.state();
        let Some(attachment) = state.attachments.remove(key) else {
            return Ok(None);
        };
        let now = self.clock.now();
        for address in attachment.addresses() {
            state.ipam.release(address, now);
        }
        state.journal.write_or_keep(Record::Released { key: key.clone(), at: now });
        Ok(Some(attachment))
    }

    fn check(
        &self,
        key: AttachmentKey,
        netns: &Path,
        addresses: &[IpAddr],
        gateways: &[IpAddr],
    ) -> Result<(), PodNetError> {
        let Some(attachment) = self.state().attachments.get(&key).cloned() else {
            return Err(PodNetError::UnknownAttachment(key));
        };
        let mut drift = Vec::new();
        if attachment.netns != netns {
            drift.push(format!("it was made in the namespace {}", attachment.netns.display()));
        }
        for address in attachment.addresses().filter(|address| !addresses.contains(address)) {
            drift.push(format!("the runtime does not know that it has {address}"));
        }
        let held: Vec<IpAddr> = attachment.addresses().collect();
        for address in addresses.iter().filter(|address| !held.contains(address)) {
            drift.push(format!("the runtime believes that it has {address}"));
        }
        drift.extend(check::drift(&mut self.netlink(), &attachment, gateways)?);
        if drift.is_empty() { Ok(()) } else { Err(PodNetError::Drifted { key, drift }) }
    }

    fn set_nodes(&self, local: &Node, others: &[Node]) -> Result<(), PodNetError> {
        let first =
            |ipv6: bool| local.pod_cidrs.iter().copied().find(|cidr| matches!(cidr, IpNet::V6(_)) == ipv6);
        let (v4, v6) = (first(false), first(true));
        if v4.is_some() {
            sysctl::forward_ipv4()?;
        }
        if v6.is_some() {
            sysctl::forward_ipv6()?;
        }
        let wanted = routes::wanted(local, others);
        let mtu = match self.config.mtu {
            Some(mtu) => mtu,
            None => self.mtu_of(&local.addresses)?,
        };
        {
            let mut state = self.state();
            let reserved = local.addresses.iter().chain(others.iter().flat_map(|node| &node.addresses));
            state.ipam.set_blocks(v4, v6, reserved.copied().collect());
            state.mtu = mtu;
            let skipped: BTreeSet<String> = wanted.skipped.into_iter().collect();
            for skip in skipped.difference(&state.skipped) {
                warn!("{skip}");
            }
            state.skipped = skipped;
        }
        let mut netlink = self.netlink();
        let mut present = netlink.routes(false, true)?;
        present.extend(netlink.routes(true, true)?);
        let plan = routes::plan(&wanted.routes, &present);
        let set = plan.set.iter().map(routes::Route::set);
        let requests = set.chain(plan.remove.iter().map(routes::Route::delete)).collect();
        let results = netlink.apply_each(requests);
        PodNetError::collect(results.into_iter().filter_map(Result::err).map(PodNetError::Kernel).collect())
    }

    /// The MTU of the link that has one of these addresses.
    fn mtu_of(&self, addresses: &[IpAddr]) -> Result<u32, PodNetError> {
        let mut netlink = self.netlink();
        let index = netlink.addresses()?.into_iter().find(|(_, address)| addresses.contains(address));
        let link =
            netlink.links()?.into_iter().find(|link| index.is_some_and(|(index, _)| index == link.index));
        Ok(link.map_or(DEFAULT_MTU, |link| link.mtu))
    }
}
