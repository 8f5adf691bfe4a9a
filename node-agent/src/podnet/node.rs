//! The node's side of the pod network: what is recorded and what the kernel has, and how one follows the other.
//!
//! Everything here waits for the kernel or the disk; [`super::PodNet`] calls it where that holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use moat_policies::Node;
use tracing::{info, warn};

use super::attachment::{Attachment, AttachmentKey, is_host_ifname, macs};
use super::check;
use super::ipam::Ipam;
use super::journal::{Journal, Record};
use super::messages::Link;
use super::netlink::Netlink;
use super::netns::{Netns, NetnsError};
use super::routes;
use super::sysctl;
use super::wire;
use super::{PodNetConfig, PodNetError, Prepare};

/// The MTU of a pod whose node's links are not known.
const DEFAULT_MTU: u32 = 1500;

#[derive(Debug)]
pub(crate) struct NodeNetwork {
    config: PodNetConfig,
    node: Netns,
    /// Sockets that nobody uses just now. The kernel takes tens of milliseconds to remove a link; who waits for
    /// that must not keep the others waiting.
    idle: Mutex<Vec<Netlink>>,
    state: Mutex<State>,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    ipam: Ipam,
    journal: Journal,
    mtu: u32,
    /// What was last said about nodes without a route, so that it is said once.
    skipped: BTreeSet<String>,
}

impl State {
    fn attachments(&self) -> &BTreeMap<AttachmentKey, Attachment> {
        &self.journal.contents().attachments
    }
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

impl NodeNetwork {
    /// Takes over what is there; see [`super::PodNet::open`].
    pub(crate) fn open(config: PodNetConfig) -> Result<Self, PodNetError> {
        let journal = Journal::open(&config.state_dir)?;
        let clock = Clock::start();
        let mut ipam = Ipam::new(config.address_rest);
        for (&address, &at) in &journal.contents().resting {
            // The clock may have been set back since.
            ipam.release(address, at.min(clock.at_start));
        }
        for address in journal.contents().attachments.values().flat_map(Attachment::addresses) {
            ipam.hold(address);
        }
        let state = State { ipam, journal, mtu: config.mtu.unwrap_or(DEFAULT_MTU), skipped: BTreeSet::new() };
        let network = Self {
            config,
            node: Netns::current()?,
            idle: Mutex::new(vec![Netlink::open()?]),
            state: Mutex::new(state),
            clock,
        };
        network.adopt()?;
        Ok(network)
    }

    // Nothing is left half-done in memory where a thread could panic, so a poisoned lock holds good state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` with a socket of its own in the node's namespace.
    pub(crate) fn netlink<T>(
        &self,
        work: impl FnOnce(&mut Netlink) -> Result<T, PodNetError>,
    ) -> Result<T, PodNetError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut netlink = match kept {
            Some(netlink) => netlink,
            None => self.node.run(Netlink::open)??,
        };
        let result = work(&mut netlink);
        idle().push(netlink);
        result
    }

    pub(crate) fn attachments(&self) -> Vec<Attachment> {
        self.state().attachments().values().cloned().collect()
    }

    pub(crate) fn attachment(&self, key: &AttachmentKey) -> Option<Attachment> {
        self.state().attachments().get(key).cloned()
    }

    pub(crate) fn available(&self) -> Result<(), PodNetError> {
        Ok(self.state().ipam.available(self.clock.now())?)
    }

    fn adopt(&self) -> Result<(), PodNetError> {
        let links: BTreeMap<String, (u32, bool)> =
            self.links()?.into_iter().map(|link| (link.name, (link.index, link.up))).collect();
        let attachments = self.attachments();
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
                    if let Err(error) = self.remove(&attachment.key()) {
                        warn!(
                            error = &error as &dyn std::error::Error,
                            "it stays recorded, and so do its addresses"
                        );
                    }
                }
            }
        }
        for result in self.netlink(|netlink| Ok(netlink.apply_each(requests)))? {
            if let Err(error) = result {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "a pod's route or neighbour cannot be restored"
                );
            }
        }
        if let Err(error) = self.remove_strays() {
            warn!(error = &error as &dyn std::error::Error, "a link that belongs to no attachment stays");
        }
        Ok(())
    }

    /// Removes the links that look like a pod's and belong to no attachment. Their addresses are not known to be taken, so
    /// they must not be left to answer for them.
    pub(crate) fn remove_strays(&self) -> Result<(), PodNetError> {
        let known: BTreeSet<String> =
            self.state().attachments().values().map(|a| a.host_ifname.clone()).collect();
        let mut errors = Vec::new();
        for link in self.links()? {
            if link.veth && is_host_ifname(&link.name) && !known.contains(&link.name) {
                warn!(link = link.name, "a pod's link that belongs to no recorded attachment: removed");
                errors.extend(self.netlink(|netlink| Ok(wire::remove(netlink, &link.name)?)).err());
            }
        }
        PodNetError::collect(errors)
    }

    fn links(&self) -> Result<Vec<Link>, PodNetError> {
        self.netlink(|netlink| Ok(netlink.links()?))
    }

    pub(crate) fn reserve(&self, request: Prepare) -> Result<Attachment, PodNetError> {
        let key = request.key;
        let pod = Netns::open(&request.netns)?;
        if pod.is(&self.node) {
            return Err(NetnsError::NotAPods(request.netns).into());
        }
        let host_ifname = key.host_ifname();
        if let Some(link) = self.netlink(|netlink| Ok(netlink.link(&host_ifname)?))?
            && link.up
            && self.state().attachments().contains_key(&key)
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
            attachment
        };
        Ok(attachment)
    }

    pub(crate) fn build(&self, attachment: &Attachment) -> Result<(), PodNetError> {
        let made = Netns::open(&attachment.netns)
            .map_err(PodNetError::from)
            .and_then(|pod| wire::build(attachment, &pod, &self.node));
        made.map_err(|error| match self.remove(&attachment.key()) {
            Ok(_) => error,
            Err(also) => PodNetError::Several(vec![error, also]),
        })
    }

    pub(crate) fn activate(&self, attachment: &Attachment) -> Result<(), PodNetError> {
        // On a thread that is sure to be in the node's namespace, where the link's parameters are.
        self.node.run(|| sysctl::prepare_host_end(&attachment.host_ifname, attachment.v6.is_some()))??;
        self.netlink(|netlink| wire::connect(netlink, attachment))?;
        wire::wait_until_ready(attachment, &Netns::open(&attachment.netns)?)
    }

    pub(crate) fn remove(&self, key: &AttachmentKey) -> Result<Option<Attachment>, PodNetError> {
        // The link first: an address is free only when nobody can use it any more. The name follows from the key, so that
        // a link is found which no record tells of.
        self.netlink(|netlink| Ok(wire::remove(netlink, &key.host_ifname())?))?;
        let mut state = self.state();
        let Some(attachment) = state.attachments().get(key).cloned() else {
            return Ok(None);
        };
        let now = self.clock.now();
        for address in attachment.addresses() {
            state.ipam.release(address, now);
        }
        state.journal.write_or_keep(Record::Released { key: key.clone(), at: now });
        Ok(Some(attachment))
    }

    pub(crate) fn check(
        &self,
        key: AttachmentKey,
        netns: &Path,
        addresses: &[IpAddr],
        gateways: &[IpAddr],
    ) -> Result<(), PodNetError> {
        let Some(attachment) = self.attachment(&key) else {
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
        drift.extend(self.netlink(|netlink| check::drift(netlink, &attachment, gateways))?);
        if drift.is_empty() { Ok(()) } else { Err(PodNetError::Drifted { key, drift }) }
    }

    pub(crate) fn set_nodes(&self, local: &Node, others: &[Node]) -> Result<(), PodNetError> {
        let first =
            |ipv6: bool| local.pod_cidrs.iter().copied().find(|cidr| matches!(cidr, IpNet::V6(_)) == ipv6);
        let (v4, v6) = (first(false), first(true));
        self.node.run(|| {
            if v4.is_some() {
                sysctl::forward_ipv4()?;
            }
            if v6.is_some() {
                sysctl::forward_ipv6()?;
            }
            Ok::<_, PodNetError>(())
        })??;
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
        self.netlink(|netlink| {
            let mut present = netlink.routes(false, true)?;
            present.extend(netlink.routes(true, true)?);
            let plan = routes::plan(&wanted.routes, &present);
            let set = plan.set.iter().map(routes::Route::set);
            let requests = set.chain(plan.remove.iter().map(routes::Route::delete)).collect();
            let results = netlink.apply_each(requests);
            PodNetError::collect(
                results.into_iter().filter_map(Result::err).map(PodNetError::Kernel).collect(),
            )
        })
    }

    /// The MTU of the link that has one of these addresses.
    fn mtu_of(&self, addresses: &[IpAddr]) -> Result<u32, PodNetError> {
        let present = self.netlink(|netlink| Ok(netlink.addresses()?))?;
        let index = present.into_iter().find(|(_, address)| addresses.contains(address));
        let link = self.links()?.into_iter().find(|link| index.is_some_and(|(index, _)| index == link.index));
        Ok(link.map_or(DEFAULT_MTU, |link| link.mtu))
    }
}
