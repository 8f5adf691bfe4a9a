//! The node's side of the pod network: what is recorded and what the kernel has, and how one follows the other.
//!
//! Everything here waits for the kernel or the disk; [`super::PodNet`] calls it where that holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use moat_cni::failpoint;
use moat_cni::port::HostPort;
use moat_policies::Node;
use tracing::warn;

use super::answers::Answers;
use super::attachment::{Attachment, AttachmentKey, macs};
use super::check::{self, Defaults};
use super::clock::Clock;
use super::heal::Active;
use super::ipam::{Ipam, Moment};
use super::journal::{Durable, Journal};
use super::netlink::Netlink;
use super::netns::{Netns, NetnsError};
use super::ports;
use super::sysctl;
use super::uplink;
use super::wire;
use super::{Mode, PodNetConfig, PodNetError, Prepare};

/// The MTU of a pod whose node's links are not known.
const DEFAULT_MTU: u32 = 1500;

/// Both ends of a pair that was made, and whose node's end is down.
#[derive(Debug)]
pub struct Ends {
    /// The node's.
    index: u32,
    /// A socket where the pod's is.
    pub(crate) pod: Netlink,
}

#[derive(Debug)]
pub(crate) struct NodeNetwork {
    pub(crate) config: PodNetConfig,
    pub(crate) node: Netns,
    /// Sockets that nobody uses just now. The kernel takes tens of milliseconds to remove a link; who waits for
    /// that must not keep the others waiting.
    idle: Mutex<Vec<Netlink>>,
    state: Mutex<State>,
    /// The links that are up for their pods.
    pub(crate) active: Active,
    /// Who makes the way to other nodes, one after the other: what was told last must win.
    nodes: Mutex<()>,
    clock: Clock,
    durable: Arc<Durable>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ipam: Ipam,
    answers: Arc<Answers>,
    pub(crate) journal: Journal,
    /// Links of which nobody knows whose they are, and the addresses that they may hold.
    pub(crate) closed: BTreeMap<String, Vec<IpAddr>>,
    mtu: u32,
    /// How packets get to the pods of other nodes.
    mode: Mode,
    /// The pods' MTU where it does not follow from the node's link.
    fixed_mtu: Option<u32>,
    /// What was last said about nodes without a route, so that it is said once.
    skipped: BTreeSet<String>,
    /// This node and the others, as they were last told.
    nodes: Option<(Node, Vec<Node>)>,
}

impl State {
    pub(crate) fn new(
        ipam: Ipam,
        journal: Journal,
        closed: BTreeMap<String, Vec<IpAddr>>,
        config: &PodNetConfig,
    ) -> Self {
        let mtu = config.mtu.unwrap_or(DEFAULT_MTU);
        let (mode, fixed_mtu) = (config.mode, config.mtu);
        let (answers, skipped) = (config.answers.clone(), BTreeSet::new());
        Self { ipam, answers, journal, closed, mtu, mode, fixed_mtu, skipped, nodes: None }
    }

    fn moment(&self, now: u64) -> Moment {
        Moment { now, answered: self.answers.gone() }
    }

    /// An attachment is gone, and its link with it.
    fn release(&mut self, key: &AttachmentKey, now: u64) -> Option<Attachment> {
        let attachment = self.journal.contents().get(key)?.clone();
        self.journal.release(key, now);
        attachment.addresses().for_each(|address| self.free(address, now));
        Some(attachment)
    }

    /// A link is gone of which nobody knew whose it was.
    fn release_closed(&mut self, link: &str, now: u64) {
        for address in self.closed.remove(link).unwrap_or_default() {
            self.free(address, now);
            self.journal.rest(address, now);
        }
    }

    /// One that had the address has it no more. Damage may have made that two.
    fn free(&mut self, address: IpAddr, now: u64) {
        let closed = self.closed.values().flatten().any(|held| *held == address);
        if !closed && !self.journal.contents().holds(address) {
            // Others have been told that its pod is gone, or are about to be.
            self.ipam.release(address, now, self.answers.newest());
        }
    }
}

impl NodeNetwork {
    pub(crate) fn new(
        config: PodNetConfig,
        clock: Clock,
        netlink: Netlink,
        state: State,
    ) -> Result<Self, PodNetError> {
        let durable = state.journal.durable();
        let (idle, state) = (Mutex::new(vec![netlink]), Mutex::new(state));
        let (active, nodes) = (Active::default(), Mutex::default());
        Ok(Self { config, node: Netns::current()?, idle, state, active, nodes, clock, durable })
    }

    // Nothing is left half-done in memory where a thread could panic, so a poisoned lock holds good state.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
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
        self.state().journal.contents().attachments().to_vec()
    }

    pub(crate) fn attachment(&self, key: &AttachmentKey) -> Option<Attachment> {
        self.state().journal.contents().get(key).cloned()
    }

    /// The attachment whose node's end has this name.
    pub(crate) fn by_link(&self, name: &str) -> Option<Attachment> {
        self.state().journal.contents().attachments().iter().find(|a| a.host_ifname == name).cloned()
    }

    /// The attachment that has this address.
    pub(crate) fn by_address(&self, address: IpAddr) -> Option<Attachment> {
        let holds = |a: &&Attachment| a.addresses().any(|held| held == address);
        self.state().journal.contents().attachments().iter().find(holds).cloned()
    }

    pub(crate) fn available(&self) -> Result<(), PodNetError> {
        let mut state = self.state();
        state.ipam.available(state.moment(self.clock.now()))?;
        if state.journal.is_behind() {
            // Perhaps there is room again: the question is the occasion to look.
            state.journal.renew()?;
        }
        Ok(())
    }

    /// How many addresses wait for the answer to their release.
    pub(crate) fn unanswered(&self) -> usize {
        let state = self.state();
        state.ipam.unanswered(state.answers.gone())
    }

    pub(crate) fn reserve(&self, request: Prepare) -> Result<Attachment, PodNetError> {
        let key = request.key;
        let pod = Netns::open(&request.netns)?;
        if pod.is(&self.node) {
            return Err(NetnsError::NotAPods(request.netns).into());
        }
        let host_ifname = key.host_ifname();
        // It was about an earlier container of this name.
        self.drop_note(&host_ifname);
        let link = self.netlink(|netlink| Ok(netlink.link(&host_ifname)?))?;
        let known = self.attachment(&key).is_some();
        if known && link.as_ref().is_some_and(|link| link.up) {
            return Err(PodNetError::InterfaceExists(key));
        }
        if known || link.is_some() {
            self.remove(&key)?;
        }
        failpoint::reach("before the record");
        let mut state = self.state();
        let families = [true, false].map(|ipv4| state.ipam.gives(ipv4));
        ports::can_be_had(&request.host_ports, families, state.mode, state.journal.contents().attachments())?;
        let moment = state.moment(self.clock.now());
        let addresses = state.ipam.allocate(moment)?;
        let (host_mac, pod_mac) = macs(addresses.v4, addresses.v6);
        let attachment = Attachment {
            container_id: key.container_id,
            ifname: key.ifname,
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
            host_ports: request.host_ports,
        };
        // Written before it is in the kernel: else a crash could leave a pod with an address that looks free.
        if let Err(error) = state.journal.attach(attachment.clone()) {
            let number = state.answers.newest();
            for address in attachment.addresses() {
                state.ipam.release(address, self.clock.now(), number);
            }
            return Err(error.into());
        }
        failpoint::reach("recorded");
        Ok(attachment)
    }

    pub(crate) fn build(&self, attachment: &Attachment) -> Result<Ends, PodNetError> {
        let pod = wire::build(attachment, &Netns::open(&attachment.netns)?, &self.node)?;
        failpoint::reach("pod's end made");
        let index = self.netlink(|netlink| wire::prepare_node_end(netlink, attachment, &self.node))?;
        failpoint::reach("marked");
        Ok(Ends { index, pod })
    }

    /// Waits until everything that was recorded so far is on the disk.
    pub(crate) fn sync(&self) -> Result<(), PodNetError> {
        let path = self.state().journal.path();
        self.durable.sync(&path)?;
        failpoint::reach("synced");
        Ok(())
    }

    pub(crate) fn activate(&self, attachment: &Attachment, ends: &Ends) -> Result<(), PodNetError> {
        failpoint::reach("before up");
        self.connect(attachment, ends)?;
        self.active.add(attachment);
        failpoint::reach("up");
        Ok(())
    }

    /// Sets the node's end up and leads the pod's addresses to it.
    pub(crate) fn connect(&self, attachment: &Attachment, ends: &Ends) -> Result<(), PodNetError> {
        self.netlink(|netlink| Ok(wire::connect(netlink, ends.index, attachment)?))
    }

    pub(crate) fn remove(&self, key: &AttachmentKey) -> Result<Option<Attachment>, PodNetError> {
        // The link first: an address is free only when nobody can use it any more. The name follows from the key, so that
        // a link is found which no record tells of.
        let link = key.host_ifname();
        self.active.remove(&link);
        self.netlink(|netlink| Ok(wire::remove(netlink, &link)?))?;
        failpoint::reach("link gone");
        let mut state = self.state();
        let now = self.clock.now();
        state.release_closed(&link, now);
        let released = state.release(key, now);
        drop(state);
        failpoint::reach("released");
        self.drop_note(&link);
        Ok(released)
    }

    /// Removes a link that is nobody's, or nobody knows whose.
    pub(crate) fn remove_link(&self, link: &str) -> Result<(), PodNetError> {
        self.netlink(|netlink| Ok(wire::remove(netlink, link)?))?;
        self.state().release_closed(link, self.clock.now());
        Ok(())
    }

    pub(crate) fn check(
        &self,
        key: AttachmentKey,
        netns: &Path,
        addresses: &[IpAddr],
        gateways: &[IpAddr],
        host_ports: &[HostPort],
    ) -> Result<(), PodNetError> {
        let Some(mut attachment) = self.attachment(&key) else {
            return Err(PodNetError::UnknownAttachment(key));
        };
        let mut drift = Vec::new();
        let unknown = attachment.netns.as_os_str().is_empty();
        if !unknown && attachment.netns != netns {
            drift.push(format!("it was made in the namespace {}", attachment.netns.display()));
        }
        for address in attachment.addresses().filter(|address| !addresses.contains(address)) {
            drift.push(format!("the runtime does not know that it has {address}"));
        }
        let held: Vec<IpAddr> = attachment.addresses().collect();
        for address in addresses.iter().filter(|address| !held.contains(address)) {
            drift.push(format!("the runtime believes that it has {address}"));
        }
        drift.extend(self.netlink(|netlink| {
            check::drift(netlink, &self.node, &attachment, Some(netns), Defaults::By(gateways))
        })?);
        drift.extend(self.node.run(|| ports::drift(&attachment, host_ports))?);
        if !drift.is_empty() {
            return Err(PodNetError::Drifted { key, drift });
        }
        if unknown {
            // The runtime knows what no link could tell.
            attachment.netns = netns.to_owned();
            self.state().journal.attach(attachment)?;
        }
        Ok(())
    }

    /// Makes an attachment what it was, where it is not; returns what was not.
    pub(crate) fn mend(&self, attachment: &Attachment) -> Result<Vec<String>, PodNetError> {
        let netns = Some(attachment.netns.as_path()).filter(|path| !path.as_os_str().is_empty());
        let drift =
            || self.netlink(|netlink| check::drift(netlink, &self.node, attachment, netns, Defaults::Any));
        let found = drift()?;
        if found.is_empty() {
            return Ok(found);
        }
        self.netlink(|netlink| check::mend(netlink, &self.node, attachment, netns))?;
        let left = drift()?;
        if left.is_empty() {
            return Ok(found);
        }
        Err(PodNetError::Drifted { key: attachment.key(), drift: left })
    }

    pub(crate) fn set_nodes(&self, local: &Node, others: &[Node]) -> Result<(), PodNetError> {
        let _turn = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        self.lead_to(local, others)
    }

    fn lead_to(&self, local: &Node, others: &[Node]) -> Result<(), PodNetError> {
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
        let mode = self.state().mode;
        let seen = self.netlink(|netlink| Ok(uplink::see(netlink, local, others, mode)?))?;
        let wanted = uplink::wanted::wanted(local, others, mode, &seen);
        {
            let mut state = self.state();
            let reserved = local.addresses.iter().chain(others.iter().flat_map(|node| &node.addresses));
            state.ipam.set_blocks(v4, v6, reserved.copied().collect());
            state.mtu = state.fixed_mtu.unwrap_or(wanted.pod_mtu);
            let skipped: BTreeSet<String> = wanted.skipped.iter().cloned().collect();
            for skip in skipped.difference(&state.skipped) {
                warn!("{skip}");
            }
            state.skipped = skipped;
            state.nodes = Some((local.clone(), others.to_vec()));
        }
        self.netlink(|netlink| uplink::follow(netlink, &self.node, &wanted))
    }

    pub(crate) fn shape(&self, mode: Mode, mtu: Option<u32>) -> Result<(), PodNetError> {
        let turn = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut state = self.state();
            if (state.mode, state.fixed_mtu) == (mode, mtu) {
                return Ok(());
            }
            (state.mode, state.fixed_mtu) = (mode, mtu);
            state.mtu = mtu.unwrap_or(state.mtu);
        }
        drop(turn);
        let led = self.refresh();
        let wanted = {
            let state = self.state();
            // What follows from links is not known before the nodes are; the pods' links are then as an agent before made them.
            if mtu.is_none() && state.nodes.is_none() {
                return led;
            }
            state.mtu
        };
        let others = self.attachments().into_iter().filter(|a| a.mtu != wanted);
        let stretched: Vec<_> = others.map(|a| self.stretch(Attachment { mtu: wanted, ..a })).collect();
        stretched.into_iter().fold(led, Result::and)
    }

    /// Gives the link of an attachment the MTU that it is to have.
    fn stretch(&self, attachment: Attachment) -> Result<(), PodNetError> {
        // Recorded first: else what watches over links would take the new MTU back.
        let key = attachment.key();
        let mut state = self.state();
        if state.journal.contents().get(&key).is_none() {
            return Ok(());
        }
        state.journal.attach(attachment.clone())?;
        drop(state);
        match self.mend(&attachment) {
            // It went meanwhile.
            Err(_) if self.attachment(&key).is_none() => Ok(()),
            mended => mended.map(drop),
        }
    }

    pub(crate) fn refresh(&self) -> Result<(), PodNetError> {
        let _turn = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = self.state().nodes.clone();
        nodes.map_or(Ok(()), |(local, others)| self.lead_to(&local, &others))
    }
}
