//! What a node wants of its kernel so that packets get to the pods of others: pure.
//!
//! ```text
//!                        peer on a shared link                    peer behind a router, or mode vxlan
//!  table main            10.2.0.0/24 via 192.0.2.2 src OWN        10.2.0.0/24 via 192.0.2.2 dev vxlan-moat onlink src OWN
//!  table 109             –                                        192.0.2.2 via 192.0.2.2 dev vxlan-moat onlink
//!  rule                  –                                        from 10.1.0.0/24 (own podCIDR) lookup 109
//!  neighbour             –                                        192.0.2.2 is at 0a:01:c0:00:02:02
//!  forwarding database   –                                        0a:01:c0:00:02:02 is behind 192.0.2.2
//! ```
//!
//! The rule is for what a node's pods answer to another node itself. Without it the answer would leave as it is, and a router
//! that knows no pod's address drops it; and a node that is strict about where packets come from would not take in what
//! another node sends its pods through the tunnel.
//!
//! A node says its addresses itself, and may say anything. So one that two nodes say, or that lies where pods' addresses are, leads
//! nowhere: a node that is not itself any more would otherwise be sent what is for others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use moat_policies::Node;

use super::super::route::{Hop, MAIN_TABLE, Route};
use super::Mode;

/// The metric of the routes to podCIDRs. A pod's own route has another one, and an operator's route to the same
/// prefix, as a rule with a lower metric, goes first instead of being replaced.
pub(crate) const METRIC: u32 = 2048;

/// The routing table of what pods send to other nodes themselves.
pub(crate) const NODES_TABLE: u32 = 109;

/// The MTU of a node whose links are not known.
const DEFAULT_MTU: u32 = 1500;

/// What a node sees around it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The addresses that the node's links have.
    pub(crate) held: BTreeSet<IpAddr>,
    /// The addresses of other nodes to which a link leads, with no router between.
    pub(crate) near: BTreeSet<IpAddr>,
    /// The MTU of the link that has the node's address.
    pub(crate) mtu: Option<u32>,
}

/// Where packets for a prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Nowhere.
    Unreachable,
    /// To a node on a shared link.
    Via(IpAddr),
    /// Into the tunnel, to the node that is known there by this address.
    Tunnel(IpAddr),
}

/// The tunnel's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tunnel {
    /// The address that its frames come from.
    pub(crate) local: IpAddr,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
}

/// What a node wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// By routing table and prefix: where to, and from which of the node's addresses where the node itself sends.
    pub(crate) ways: BTreeMap<(u32, IpNet), (Way, Option<IpAddr>)>,
    /// What is sent from these prefixes is looked up in [`NODES_TABLE`] first.
    pub(crate) rules: BTreeSet<IpNet>,
    /// The tunnel, where it is needed.
    pub(crate) tunnel: Option<Tunnel>,
    /// On the tunnel's device: who is known by which hardware address.
    pub(crate) neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// On the tunnel's device: behind which address each hardware address is.
    pub(crate) forwarding: BTreeMap<[u8; 6], IpAddr>,
    /// The MTU of new pods.
    pub(crate) pod_mtu: u32,
    /// What has no route, and why.
    pub(crate) skipped: Vec<String>,
}

impl Wanted {
    /// The routes, where the tunnel's device has this index.
    pub(crate) fn routes(&self, tunnel: Option<u32>) -> Vec<Route> {
        let route = |(&(table, to), &(way, source)): (&(u32, IpNet), &(Way, Option<IpAddr>))| {
            let hop = match way {
                Way::Unreachable => Hop::Unreachable,
                Way::Via(address) => Hop::Via(address),
                Way::Tunnel(address) => Hop::Onlink(tunnel?, address),
            };
            Some(Route { to, hop, metric: METRIC, source, table })
        };
        self.ways.iter().filter_map(route).collect()
    }
}

/// What `local` needs: its own podCIDRs lead nowhere, unless a pod has the address; others' lead to their node.
pub(crate) fn wanted(local: &Node, others: &[Node], mode: Mode, seen: &Seen) -> Wanted {
    let link_mtu = seen.mtu.unwrap_or(DEFAULT_MTU);
    let mut wanted = Wanted { pod_mtu: link_mtu, ..Wanted::default() };
    for &cidr in &local.pod_cidrs {
        wanted.ways.insert((MAIN_TABLE, cidr.trunc()), (Way::Unreachable, None));
    }
    let mut others: Vec<&Node> = others.iter().filter(|node| node.name != local.name).collect();
    others.sort_by(|a, b| a.name.cmp(&b.name));
    let disputed = disputed(local, &others);
    // IPv4 carries both, where a node has it: every node comes to the same answer for itself.
    let outer = first(local, true).or(first(local, false));
    for node in others {
        for cidr in node.pod_cidrs.iter().map(IpNet::trunc) {
            let skip = if cidr.prefix_len() == 0 {
                "it is everything".to_owned()
            } else if let Some((way, _)) = wanted.ways.get(&(MAIN_TABLE, cidr)) {
                match way {
                    Way::Unreachable => "it is this node's, too".to_owned(),
                    _ => "another node has it, too".to_owned(),
                }
            } else {
                match wanted.carry(local, node, cidr, mode, seen, outer) {
                    Ok(()) => continue,
                    Err(why) => why.to_owned(),
                }
            };
            wanted.skipped.push(format!("no route to podCIDR {cidr} of node {}: {skip}", node.name));
        }
    }
    for address in disputed {
        if wanted.ways.remove(&(NODES_TABLE, IpNet::from(address))).is_some() {
            wanted
                .skipped
                .push(format!("no way through the tunnel to a node at {address}: it is another's, too"));
        }
    }
    if let Some(local_address) = outer.filter(|_| !wanted.forwarding.is_empty()) {
        let mtu = link_mtu.saturating_sub(overhead(local_address));
        wanted.pod_mtu = mtu;
        wanted.tunnel = Some(Tunnel { local: local_address, mac: mac(local_address), mtu });
        let families: BTreeSet<bool> = wanted
            .ways
            .keys()
            .filter(|(table, _)| *table == NODES_TABLE)
            .map(|(_, to)| to.addr().is_ipv4())
            .collect();
        let own = local.pod_cidrs.iter().map(IpNet::trunc);
        wanted.rules = own.filter(|cidr| families.contains(&cidr.addr().is_ipv4())).collect();
    }
    wanted
}

impl Wanted {
    /// The way to one podCIDR of another node.
    fn carry(
        &mut self,
        local: &Node,
        node: &Node,
        cidr: IpNet,
        mode: Mode,
        seen: &Seen,
        outer: Option<IpAddr>,
    ) -> Result<(), &'static str> {
        let v4 = cidr.addr().is_ipv4();
        let source = local.addresses.iter().copied().find(|a| a.is_ipv4() == v4 && seen.held.contains(a));
        let direct = first(node, v4);
        let routed = match mode {
            Mode::Routed => true,
            Mode::Vxlan => false,
            Mode::Auto => direct.is_some_and(|address| seen.near.contains(&address)),
        };
        if routed {
            let address = direct.ok_or("the node has no address of its family")?;
            self.ways.insert((MAIN_TABLE, cidr), (Way::Via(address), source));
            return Ok(());
        }
        let outer = outer.ok_or("this node has no address that a tunnel could begin at")?;
        let end = first(node, outer.is_ipv4())
            .ok_or("the node has no address of the family that the tunnel is in")?;
        let mac = mac(end);
        if self.forwarding.get(&mac).is_some_and(|known| *known != end) {
            return Err("another node's address makes the same hardware address");
        }
        let gateway = match (v4, direct) {
            (true, Some(address)) => address,
            // Nobody has it as an address, and it is told apart by the prefix.
            (true, None) => cidr.network(),
            (false, _) => link_local(mac).into(),
        };
        if self.neighbours.get(&gateway).is_some_and(|known| *known != mac) {
            return Err("another node has the same address");
        }
        self.forwarding.insert(mac, end);
        self.neighbours.insert(gateway, mac);
        self.ways.insert((MAIN_TABLE, cidr), (Way::Tunnel(gateway), source));
        for &address in node.addresses.iter().filter(|a| a.is_ipv4() == v4) {
            self.ways.insert((NODES_TABLE, IpNet::from(address)), (Way::Tunnel(gateway), None));
        }
        Ok(())
    }
}

/// The addresses that several nodes say they have, and those that a pod can have.
fn disputed(local: &Node, others: &[&Node]) -> BTreeSet<IpAddr> {
    let all = || others.iter().copied().chain([local]);
    let (mut said, mut twice) = (BTreeSet::new(), BTreeSet::new());
    for node in all() {
        // One node may well say the same twice, as its internal and its external address.
        let own: BTreeSet<IpAddr> = node.addresses.iter().copied().collect();
        twice.extend(own.into_iter().filter(|address| !said.insert(*address)));
    }
    let blocks: BTreeSet<IpNet> = all().flat_map(|node| &node.pod_cidrs).map(IpNet::trunc).collect();
    // Of blocks that are apart, an address can only be in the one that begins at it or before it.
    let is_a_pods = |address: &IpAddr| {
        blocks.range(..=IpNet::from(*address)).next_back().is_some_and(|block| block.contains(address))
    };
    twice.extend(said.into_iter().filter(is_a_pods));
    twice
}

/// A node's first address of a family.
fn first(node: &Node, v4: bool) -> Option<IpAddr> {
    node.addresses.iter().copied().find(|address| address.is_ipv4() == v4)
}

/// What a tunnel between addresses of this family adds to a packet: IP, UDP, VXLAN and Ethernet headers.
fn overhead(outer: IpAddr) -> u32 {
    let ip = if outer.is_ipv4() { 20 } else { 40 };
    ip + 8 + 8 + 14
}

/// The hardware address of the end of the tunnel at this address. Every node computes the same, so that none has to ask.
pub(crate) fn mac(end: IpAddr) -> [u8; 6] {
    // The second-lowest bit of the first byte says "locally administered", the lowest "not multicast".
    match end {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x0a, 0x01, a, b, c, d]
        }
        IpAddr::V6(v6) => {
            let hash = blake3::hash(&v6.octets());
            let [a, b, c, d, e, ..] = *hash.as_bytes();
            [0x0e, a, b, c, d, e]
        }
    }
}

/// The address that an end is known by on the tunnel for IPv6: link-local, made of its hardware address.
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, pair(a, b), pair(c, d), pair(e, f))
}

/// What to set, then what to remove, so that of `present` and `wanted` the latter is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) set: Vec<Route>,
    pub(crate) remove: Vec<Route>,
}

/// The way from `present`, all routes of our protocol number, to `wanted`.
pub(crate) fn plan(wanted: &[Route], present: &[Route]) -> Plan {
    let key = |route: &Route| (route.table, route.to);
    // The routes to local pods have no such metric; they come and go with the pods' links.
    let present: BTreeMap<(u32, IpNet), &Route> =
        present.iter().filter(|route| route.metric == METRIC).map(|route| (key(route), route)).collect();
    let wanted: BTreeMap<(u32, IpNet), &Route> = wanted.iter().map(|route| (key(route), route)).collect();
    let same = |there: &Route, route: &Route| {
        let hop = match (&there.hop, &route.hop) {
            // Which link a router is on is for the kernel to find.
            (Hop::LinkVia(_, there), Hop::Via(hop)) => there == hop,
            // For IPv6 the kernel forgets that it was told so.
            (Hop::LinkVia(index, there), Hop::Onlink(tunnel, hop)) => (index, there) == (tunnel, hop),
            (there, hop) => there == hop,
        };
        hop && there.source == route.source
    };
    let of = |routes: Vec<&&Route>| routes.into_iter().map(|&route| route.clone()).collect();
    Plan {
        set: of(wanted
            .values()
            .filter(|route| !present.get(&key(route)).is_some_and(|there| same(there, route)))
            .collect()),
        remove: of(present.values().filter(|route| !wanted.contains_key(&key(route))).collect()),
    }
}
